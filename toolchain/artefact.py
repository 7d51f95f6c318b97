"""From a conversion to its directory: network, recipe, provenance, measurements, pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from exporters import bundle
from exporters import report as reports
from toolchain.assess import Rates
from toolchain.convert import Conversion


def write(
    directory: Path,
    conversion: Conversion,
    model: nn.Module,
    calibration: Tensor,
    report: dict[str, Any],
    rates: Rates,
) -> None:
    """Write everything about a conversion; ``report`` and ``rates`` come from :mod:`toolchain.assess`.

    ``calibration`` are the inputs that the conversion saw. Raises :class:`Refused` where the directory holds something
    else or cannot be written.
    """
    bundle.save(
        directory,
        conversion.network,
        config=conversion.recipe.as_dict(),
        provenance=bundle.provenance(seed=None, weights=model.state_dict(), calibration=calibration),
        report=report,
        add=lambda beside: reports.write(beside, report, rates=rates, network=conversion.network),
    )
