"""From a conversion to its directory: network, recipe, provenance, measurements, pictures."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exporters import bundle
from exporters import report as reports
from toolchain.assess import Rates
from toolchain.convert import Conversion

#: Environment variables that make torch, oneDNN and MKL compute as on a processor that can do less.
SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def processor() -> dict[str, str | int]:
    """Say what decides the order in which torch sums floats here, beside its version."""
    set_here = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(), **set_here}


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
        provenance=bundle.provenance(
            seed=None, weights=model.state_dict(), calibration=calibration, processor=processor()
        ),
        report=report,
        add=lambda beside: reports.write(beside, report, rates=rates, network=conversion.network),
    )
