"""One layer with everything that arrives at it: what a bias rule sees, and the schedule that it builds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sim import fast
from sim.fixedpoint import Registers
from sim.network import INPUT, Layer, Network
from toolchain.graph.channels import positions

CHUNK = 1 << 18  #: neuron potentials whose currents are computed at a time


@dataclass(frozen=True, eq=False)
class Batch:
    """One layer on the calibration data."""

    network: Network
    layer: Layer  #: with the trained bias as its schedule
    outputs: Mapping[str, Tensor]  #: by source: spikes uint8 (T, B, *shape), and the payload (B, *shape)
    target: Tensor  #: what the ANN wants, float32 (B, *shape): spikes per step in 0..1, or su per step of a readout
    limit: int  #: of v0 + cumulative bias, su
    per_neuron: bool = False  #: whether every neuron gets a bias of its own; else the channel's neurons share one
    registers: Registers | None = None  #: watches the final run
    #: Spikes over the window, float32 (C, 1, ...), that a channel is to fire beside its target; of copies, which take
    #: turns, each its own
    beside: Tensor = field(default_factory=lambda: torch.zeros(()))

    @cached_property
    def arriving(self) -> fast.Currents:
        """The layer's synapses, with room for any schedule inside the bias register."""
        # Another schedule may not fire where the trained one does: nothing is taken off for sure, as in a readout.
        return fast.Currents(self.network, replace(self.layer, kind="readout"), 2 * self.limit)

    def part(self, samples: slice | Tensor) -> Batch:
        """Take some of the samples; nothing watches their registers."""
        outputs = {
            source: spikes[samples] if source == INPUT else spikes[:, samples]
            for source, spikes in self.outputs.items()
        }
        return replace(self, outputs=outputs, target=self.target[samples], registers=None)

    def currents(self) -> Iterator[Iterator[Tensor]]:
        """Yield what arrives at each busy step, computed in parts of samples that stay in the cache, (b, *shape)."""
        step = max(1, CHUNK // self.layer.size)
        parts = [self.part(slice(start, start + step)).outputs for start in range(0, len(self.target), step)]
        for t in self.network.busy(self.layer):
            yield (self.arriving(part, range(t, t + 1))[0] for part in parts)

    def fire(self, layer: Layer, bias: fast.Bias | None = None) -> Tensor:
        """Run the layer with another schedule: its spikes in the firing window, uint8 (T, B, *shape)."""
        spikes, _ = fast.fire(self.network, layer, self.currents(), self.registers, bias, record=False)
        return spikes[-self.network.timesteps :]

    @property
    def rates(self) -> Tensor:
        """What can be fired of the target, spikes per step in 0..1, float32 (B, *shape); of copies, what each adds."""
        if not self.beside.any():
            return self.target.clamp(0, 1)
        most = self.network.timesteps
        return (most * self.target + self.beside + 0.5).floor().clamp(0, most) / most

    def finish(self, layer: Layer) -> tuple[Layer, Tensor]:
        """Return the layer and its spikes, as a rule does."""
        return layer, self.fire(layer)

    def mean(self, values: Tensor) -> Tensor:
        """Average (B, *shape) over the neurons that share a bias: float64 (C,), or (*shape) for one each."""
        return values.mean([0] if self.per_neuron else [0, *range(2, values.ndim)], dtype=torch.float64)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        return positions(self.target.shape)

    def grouped(self, values: Tensor) -> Tensor:
        """Line up (B, *shape) by who shares a bias: (channels or neurons, n), thinned out where n would be large."""
        if self.per_neuron:
            return values.flatten(1).T
        samples, places = self._places
        return values.flatten(2)[samples, :, places].T if values.ndim > 2 else values[samples].T

    def row(self, correction: Tensor) -> Tensor:
        """Shape a correction per channel or neuron so that it adds to a row of the schedule."""
        shape = self.layer.bias.shape[1:]
        return correction.reshape(shape if self.per_neuron else (-1, *(1,) * (len(shape) - 1)))


class Schedule:
    """A schedule being built row by row, with ``v0 + cumulative bias`` held inside the chip's bias register."""

    def __init__(self, layer: Layer, limit: int) -> None:
        self._limit = limit
        self._rows: list[Tensor] = []
        self._offset = torch.from_numpy(layer.offsets[0] - layer.bias[0])

    def add(self, row: Tensor, v: Tensor) -> Tensor:
        """Clip and keep the next row; return it in the shape and type that adds to ``v`` (B, *shape)."""
        before = self._offset
        self._offset = (before + row.to(torch.int64)).clamp(-self._limit, self._limit)
        self._rows.append(self._offset - before)
        return broadcast(self._rows[-1], v)

    def array(self) -> np.ndarray:
        """Return the rows so far, int64 (rows, C) or (rows, *shape)."""
        return torch.stack(self._rows).numpy()


def broadcast(row: Tensor, v: Tensor) -> Tensor:
    """Shape a row of a schedule, (C,) or (*shape), so that it adds to potentials (B, *shape)."""
    return row.to(v.dtype).reshape(*row.shape, *(1,) * (v.ndim - 1 - row.ndim))
