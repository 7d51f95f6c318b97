"""One layer, prepared once: what arrives at it, and integrate and fire over all its steps.

Everything is held sample after sample, step after step, and within a step as it lies in memory: channels last.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sim.fast.convolution import EXACT, Convolution, in_memory, shaped
from sim.findings import refuse
from sim.fixedpoint import Registers, largest_current, largest_sums, shift, worst_case
from sim.network import INPUT, Edge, Layer, Network, Shape

NEAR = 2048  #: neurons whose potentials stay in the nearest cache over all steps
NEVER = (1 << 31) - 1  #: threshold of a readout, whose potentials stay below
COMPILE = 1 << 27  #: neurons times steps from which on compiling, seconds the first time, is less than what it saves


class Arrival(NamedTuple):
    """What edges bring to every neuron from busy step ``begin`` on, for so many ``steps``."""

    values: Tensor  #: (B, steps, N), or (B, 1, N) for what is the same at each of them
    begin: int
    steps: int
    exponent: int = 0
    weight: Tensor | None = None  #: (period,), of spikes that are relayed as they are


@dataclass(frozen=True, eq=False)
class Fired:
    """What a layer did."""

    spikes: Tensor  #: in the firing window, uint8 (B, T, N)
    potentials: Tensor  #: after the reset, integers (B, busy steps or 0, N), su
    counts: Tensor  #: spikes in the window, int32 (B or 0, N)


class Population:
    """A layer with its synapses."""

    def __init__(self, network: Network, layer: Layer, device: torch.device, margin: int = 0) -> None:
        """Raise :class:`Refused` where sums beyond 2**53 could not be exact.

        ``margin`` is what may be added to the layer's worst case, as another schedule than its own does.
        """
        sums = largest_sums(network, layer)
        if (bound := max(sums)) >= EXACT[torch.float64]:
            raise refuse(layer.name, f"currents of up to {bound} cannot be summed exactly", "use smaller weights")
        reach = _reach(network, layer) + margin
        if reach >= 1 << 62:
            raise refuse(layer.name, f"potentials of up to {reach} leave 64 bits", "use smaller weights or exponents")
        self.network, self.layer, self.device = network, layer, device
        self.size = layer.size
        self.busy = network.busy(layer)
        self.phase = network.phase[layer.name] - self.busy.start  #: busy steps before the firing window
        self.integer = torch.int32 if reach < NEVER else torch.int64  #: holds every potential
        self.state = torch.float32 if reach < EXACT[torch.float32] else self.integer  #: and is the quickest to do so
        self.synapses = [
            (edge, Convolution(network, layer, edge, most, device))
            for edge, most in zip(layer.edges, sums, strict=True)
        ]
        offsets = _rows(layer, layer.offsets)
        #: After how many neurons constants repeat: as many as stay in the nearest cache, all if each has its own
        self.period = _period(layer, offsets.shape[1])
        #: v0, then v0 + cumulative bias: (1 + T, period)
        self.offsets = torch.cat([self._tiled(layer.v0[None]), self._tiled(offsets)])
        self._once = self._tiled(np.ones(1, int))
        #: By edge: weights (period,), shifted, where each neuron reads the one spike in its own place
        self.relays = [
            None
            if edge.source == INPUT or (weights := synapse.elementwise) is None
            else self._tiled(shift(weights.astype(np.int64), edge.exponent))
            for edge, synapse in self.synapses
        ]

    @property
    def paths(self) -> list[dict[str, str]]:
        """Say of every edge how it is computed, and why so."""
        return [
            {"layer": self.layer.name, "source": edge.source}
            | (
                {"path": synapse.path, "why": synapse.why}
                if relay is None
                else {"path": "relayed", "why": "one synapse a neuron: multiplied where it is integrated"}
            )
            for (edge, synapse), relay in zip(self.synapses, self.relays, strict=True)
        ]

    def arrivals(self, outputs: Mapping[str, Tensor]) -> list[Arrival]:
        """Compute what every edge brings. ``outputs`` hold spikes (B, T, N) by source, and the payload (B, *shape)."""
        found = []
        for (edge, synapse), weight in zip(self.synapses, self.relays, strict=True):
            begin, steps = self.network.phase[edge.source] + 1 - self.busy.start, self.network.timesteps
            sent = outputs[edge.source]
            if weight is not None:
                found.append(Arrival(sent, begin, steps, weight=weight))
                continue
            values = synapse(sent if edge.source == INPUT else frames(sent, self.network.shape_of(edge.source)))
            values = values.view(sent.shape[0], -1, self.size)
            if values.dtype == torch.float64:
                values, edge = self._shifted(values, edge), replace(edge, exponent=0)
            found.append(Arrival(values, begin, steps, edge.exponent))
        return found

    def _shifted(self, values: Tensor, edge: Edge) -> Tensor:
        """Apply the exponent in 64 bits, which hold the sum before a shift to the right, and keep what is left."""
        return shift(values.to(torch.int64), edge.exponent).to(self.integer)

    def run(
        self, outputs: Mapping[str, Tensor], registers: Registers, *, record: bool, count: bool, compiled: bool
    ) -> Fired:
        """Integrate what arrives and fire, watched by ``registers``; ``record`` and ``count`` ask for more than spikes.

        ``compiled`` is what the caller would like best (see :func:`compiler`); potentials beyond 32 bits are left to
        torch.
        """
        arrivals = self.arrivals(outputs)
        if not (compiled and self.integer == torch.int32):
            return self._stepwise(arrivals, registers, record, count)
        fired, peaks = self._compiled(arrivals, record, count)
        beyond = np.flatnonzero(peaks >= registers.limit)
        registers.reached(self.layer, int(peaks.max(initial=0)))
        if len(beyond):
            # Found seldom, and once more looked at step by step.
            at = torch.from_numpy(beyond)
            few = [arrival._replace(values=arrival.values[at]) for arrival in arrivals]
            self._stepwise(few, registers, False, False, beyond)
        return fired

    def _compiled(self, arrivals: Sequence[Arrival], record: bool, count: bool) -> tuple[Fired, np.ndarray]:
        from sim.fast.compiled import scan

        layer, steps = self.layer, self.network.timesteps
        samples, size = arrivals[0].values.shape[0], self.size
        current, more = self._pair(arrivals)
        spikes = np.empty((samples, steps, size), np.uint8)
        potentials = np.empty((samples, len(self.busy) if record else 0, size), np.int32)
        counts, peaks = np.empty((samples if count else 0, size), np.int32), np.empty(samples, np.int32)
        scan(
            *(current.values.numpy(), current.begin, current.steps, np.float32(2.0**current.exponent)),
            *(more.values.numpy(), more.begin, more.steps, np.float32(2.0**more.exponent)),
            (self._once if more.weight is None else more.weight).numpy(),
            *(self.offsets.numpy(), self.phase, min(size, NEAR) if self.period == size else self.period),
            layer.threshold if layer.kind == "spiking" else NEVER,
            *(spikes, potentials, counts, peaks),
        )
        return Fired(*map(torch.from_numpy, (spikes, potentials, counts))), peaks

    def _pair(self, arrivals: Sequence[Arrival]) -> tuple[Arrival, Arrival]:
        """Make two of any number of arrivals: currents, and bytes or floats that may have weights."""
        relayed = [arrival for arrival in arrivals if arrival.weight is not None]
        currents = [arrival for arrival in arrivals if arrival.weight is None]
        if len(arrivals) == 2 and len(relayed) == 1:
            return currents[0], relayed[0]
        if len(currents) == 2 and not relayed and currents[1].values.dtype == torch.float32:
            return currents[0], currents[1]
        one = currents[0] if len(currents) == 1 and not relayed else self._together(arrivals)
        return one, Arrival(torch.empty((len(one.values), 0, self.size), dtype=torch.uint8), 0, 0)

    def _tiled(self, rows: np.ndarray) -> Tensor:
        """Repeat rows (..., C or N) to the period."""
        tiled = np.tile(rows, self.period // rows.shape[-1])
        return torch.from_numpy(tiled).to(self.device, self.integer)

    def _together(self, arrivals: Sequence[Arrival]) -> Arrival:
        """Add several arrivals up, over all busy steps."""
        first = arrivals[0].values
        total = first.new_zeros((len(first), len(self.busy), self.size), dtype=self.state)
        for arrival in arrivals:
            total[:, arrival.begin : arrival.begin + arrival.steps] += self._current(arrival, arrival.values)
        return Arrival(total, 0, len(self.busy))

    def _current(self, arrival: Arrival, values: Tensor) -> Tensor:
        """Return what some of an arrival's values add to potentials, in the state's type."""
        if arrival.weight is not None:
            values = (values.unflatten(-1, (-1, self.period)) * arrival.weight.to(self.state)).flatten(-2)
        if arrival.exponent:
            values = shift(values.to(self.integer), arrival.exponent)
        return values.to(self.state)

    def _stepwise(
        self,
        arrivals: Sequence[Arrival],
        registers: Registers,
        record: bool,
        count: bool,
        samples: np.ndarray | None = None,
    ) -> Fired:
        """Do the same with torch, step after step; each is watched where ``samples``, their numbers, are given."""
        layer, steps, number = self.layer, self.network.timesteps, arrivals[0].values.shape[0]
        options: dict[str, Any] = {"device": self.device}
        spikes = torch.zeros((number, steps, self.size), dtype=torch.uint8, **options)
        potentials = torch.empty((number, len(self.busy) if record else 0, self.size), dtype=self.integer, **options)
        offsets = self.offsets.to(self.state)
        u = torch.zeros((number, self.size // self.period, self.period), dtype=self.state, **options)
        v, extremes = torch.empty_like(u), []
        for t in range(len(self.busy)):
            for arrival in arrivals:
                j = t - arrival.begin
                if 0 <= j < arrival.steps:
                    constant = arrival.values.shape[1] == 1
                    u += self._current(arrival, arrival.values[:, 0 if constant else j]).view(u.shape)
            tau = t - self.phase
            torch.add(u, offsets[max(tau + 1, 0)], out=v)
            if samples is None:
                extremes += [*torch.aminmax(v), *torch.aminmax(u)]
            else:
                v_, u_ = (shaped(values.flatten(1).cpu(), layer.shape).numpy() for values in (v, u))
                registers.beyond(layer, self.busy[t], v_, u_, samples)
            if tau >= 0 and layer.kind == "spiking":
                fired = spikes[:, tau].view(u.shape)
                torch.ge(v, layer.threshold, out=fired.view(torch.bool))
                reset = fired.to(self.state).mul_(layer.threshold)
                u -= reset
                v -= reset
            if record:
                potentials[:, t] = v.flatten(1)
        if extremes:
            registers.reached(layer, reached := int(torch.stack(extremes).abs().amax()))
            if reached >= registers.limit:
                self._stepwise(arrivals, registers, False, False, np.arange(number))
        counts = spikes.sum(1, dtype=torch.int32) if count else spikes.new_empty((0, self.size), dtype=torch.int32)
        return Fired(spikes, potentials, counts)


def frames(spikes: Tensor, shape: Shape) -> Tensor:
    """View spikes (B, T, N) as frames (B * T, *shape)."""
    if len(shape) == 1:
        return spikes.view(-1, *shape)
    channels, height, width = shape
    return spikes.view(-1, height, width, channels).permute(0, 3, 1, 2)


def _rows(layer: Layer, values: np.ndarray) -> np.ndarray:
    """Bring (..., C) or (..., *shape) into the order of memory: int64 (..., C or N)."""
    values = np.asarray(values, np.int64)
    if values.shape[-len(layer.shape) :] != layer.shape or len(layer.shape) == 1:
        return values
    return values.reshape(*values.shape[: -len(layer.shape)], -1)[..., in_memory(layer.shape)]


def _period(layer: Layer, own: int) -> int:
    """Of a layer with so many constants of its own, at most ``NEAR`` where they repeat."""
    repeats = layer.size // own
    return own * max((n for n in range(2, NEAR // own + 1) if repeats % n == 0), default=1)


def _reach(network: Network, layer: Layer) -> int:
    """Bound |v|, |u| and every current of ``layer`` over all inputs; as tight as it takes to choose a type."""
    offset, current = int(np.abs(layer.offsets).max()), largest_current(network, layer)
    loose = current * len(network.busy(layer)) + 2 * max(offset, int(np.abs(layer.v0).max()))
    return loose if loose < EXACT[torch.float32] else max(worst_case(network, layer), current)


def compiler(neuron_steps: int) -> bool:
    """Whether the compiled scan is to be used for so many neurons times steps: numba is there, and worth its start."""
    if "sim.fast.compiled" not in sys.modules and (neuron_steps < COMPILE or find_spec("numba") is None):
        return False
    try:
        import_module("sim.fast.compiled")
    except ImportError:  # numba is broken, or too old for this NumPy
        return False
    return True
