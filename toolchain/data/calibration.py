"""What calibration needs of its data: one pass over all of it, and some of the samples in memory.

Of every sample the pass takes the largest and the smallest value of each place, which set the payload's range, and the
checksum of what was calibrated on. Everything after that, from thresholds to bias schedules, looks at the samples that
are kept, and at nothing else: a layer's weights and biases are chosen with all its spikes at hand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporters.bundle import digest_header
from sim.progress import counting
from toolchain.data.source import Source
from toolchain.graph.channels import spread
from toolchain.inputs import as_inputs

KEPT = 1 << 30  #: bytes of the inputs that are kept of what is read in parts


@dataclass(frozen=True, eq=False)
class Calibration:
    """Calibration data, gathered."""

    x: Tensor  #: the inputs that are kept, float32 (n, *shape)
    y: np.ndarray | None  #: their labels, where the data has any
    lowest: Tensor  #: over all samples, float32 (*shape)
    highest: Tensor
    samples: int  #: in all
    sha256: str  #: of all inputs, as :func:`exporters.bundle.digest` has it

    def __len__(self) -> int:
        """Count the inputs that are kept."""
        return len(self.x)


def gather(data: Any) -> Calibration:
    """Read calibration data once: what fits ``KEPT`` bytes is kept, of more as many as do, from all over it.

    ``data`` is a :class:`toolchain.data.Source`, or inputs in memory (see :func:`toolchain.inputs.as_inputs`), all of
    which are kept. Which are kept depends on their number alone (:func:`toolchain.graph.channels.spread`). What has
    been gathered is returned as it is.
    """
    if isinstance(data, Calibration):
        return data
    if not isinstance(data, Source):
        x = as_inputs(data)
        return Calibration(x, None, x.amin(0), x.amax(0), len(x), _sha256(len(x), x).hexdigest())
    most = max(1, KEPT // (4 * int(np.prod(data.shape))))
    chosen = spread(len(data), most)
    kept, labels = torch.empty(len(chosen), *data.shape), []
    lowest, highest = torch.full(data.shape, torch.inf), torch.full(data.shape, -torch.inf)
    total, done = _sha256(len(data), kept[:0]), 0
    with counting("reading calibration data", len(data)) as advance:
        for part in data.parts():
            x, y = data.read(part)
            total.update(x.numpy().tobytes())
            lowest, highest = torch.minimum(lowest, x.amin(0)), torch.maximum(highest, x.amax(0))
            here = chosen[(chosen >= part.start) & (chosen < part.stop)] - part.start
            kept[done : done + len(here)] = x[here]
            done += len(here)
            if y is not None:
                labels.append(y[here.numpy()])
            advance(len(part))
    return Calibration(kept, np.concatenate(labels) if labels else None, lowest, highest, len(data), total.hexdigest())


def _sha256(samples: int, x: Tensor) -> Any:
    """Start the checksum of so many inputs like ``x`` with those."""
    values = x.numpy()
    total = hashlib.sha256(digest_header("calibration", values.dtype, (samples, *values.shape[1:])))
    total.update(values.tobytes())
    return total
