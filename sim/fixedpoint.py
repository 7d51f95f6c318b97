"""Registers: what a potential may reach, proven where possible and watched everywhere else.

The state is held in su * 64 in 24 bits, so |v| and, in the stock form, |u| must stay below 2**17 su. Lava's u wraps
and its v saturates; neither ever happens silently here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sim.chip import Chip
from sim.findings import Finding, refuse
from sim.network import INPUT, Conv2d, Dense, Layer, Network, SynapseTable

Policy = Literal["strict", "count"]


class RegisterOverflow(ArithmeticError):  # noqa: N818 - named after the event, as OverflowError's kin are
    """A potential left the chip's registers; the message names layer, channel, step and value."""

    def __init__(self, finding: Finding) -> None:
        self.findings = (finding,)  #: as :class:`sim.findings.Refused` has them
        super().__init__(finding)

    @classmethod
    def of(cls, layer: str, channel: int, step: int, register: str, value: int, chip: Chip) -> RegisterOverflow:
        """Say that ``register``, "u" or "v", holds ``value``, su."""
        return cls(
            Finding(
                f"layer {layer}, channel {channel}, step {step}",
                f"{register} = {value} leaves the register of {chip.name} (|{register}| < {chip.state_limit})",
                "lower the layer's integer threshold or run with overflow='count'",
            )
        )


class Registers:
    """Watches u and v of a running network: ``strict`` raises at the first overflow, ``count`` counts them.

    The first is that of the earliest sample, there of the earliest step, there of the first layer. As engines go
    through a network in other orders, it is known when the samples are done: :meth:`settle` raises.
    """

    def __init__(self, network: Network, chip: Chip, policy: Policy, first: int = 0) -> None:
        if policy not in ("strict", "count"):
            raise refuse("overflow", f"policy {policy!r}", "use 'strict' or 'count'")
        self._chip, self._policy = chip, policy
        self._number = {layer.name: index for index, layer in enumerate(network.layers)}
        self.limit = chip.state_limit
        self.overflows = 0
        self.overflowed: set[int] = set()  #: samples in which there were some
        self.first = first  #: number of the sample that stands first in what is watched
        self.peak = {layer.name: 0 for layer in network.layers}
        #: By spiking layer, u at most where it has to be silent, su: before its window, and as the window leaves it.
        self.outside = {layer.name: 0 for layer in network.layers if layer.kind == "spiking"}
        self._earliest: tuple[tuple[int, ...], RegisterOverflow] | None = None

    def left(self, layer: Layer, v: np.ndarray, offset: np.ndarray) -> None:
        """Note potentials ``v`` (B, *shape), after the reset, with which a layer has to be silent; u = v - offset."""
        held = int((v.max(axis=0) - offset).max())
        self.outside[layer.name] = max(self.outside[layer.name], held)

    def watch(self, layer: Layer, step: int, v: np.ndarray, offset: np.ndarray, start: int = 0) -> None:
        """Note the potentials ``v`` (B, *shape) of one step, before the reset, and u = v - offset.

        They are those of the samples from ``start`` on.
        """
        high, low = v.max(axis=0), v.min(axis=0)
        most = max(int(high.max()), -int(low.min()), int((high - offset).max()), -int((low - offset).min()))
        self.reached(layer, most)
        if most >= self.limit:
            self.beyond(layer, step, v, v - offset, np.arange(start, start + len(v)))

    def reached(self, layer: Layer, largest: int) -> None:
        """Note the largest magnitude of v and u in some steps of a layer, before the reset."""
        self.peak[layer.name] = max(self.peak[layer.name], largest)

    def beyond(self, layer: Layer, step: int, v: np.ndarray, u: np.ndarray, samples: np.ndarray | None = None) -> None:
        """Note what leaves the registers among potentials (B, *shape) of a step, before the reset.

        ``samples`` are their numbers, from ``first`` on; all in order without it.
        """
        numbers = self.first + (np.arange(len(v)) if samples is None else samples)
        for order, (register, values) in enumerate((("v", v), ("u", u))):
            places = np.argwhere(np.abs(values) >= self.limit)
            if not len(places):
                continue
            self.overflows += len(places)
            self.overflowed.update(numbers[places[:, 0]].tolist())
            place = tuple(places[0].tolist())
            key = (int(numbers[place[0]]), step, self._number[layer.name], order)
            if self._earliest is None or key < self._earliest[0]:
                error = RegisterOverflow.of(layer.name, place[1], step, register, int(values[place]), self._chip)
                self._earliest = key, error

    def add(self, other: Registers) -> None:
        """Take over what another watch of the same network saw."""
        self.overflows += other.overflows
        self.overflowed |= other.overflowed
        self.peak = {name: max(peak, other.peak[name]) for name, peak in self.peak.items()}
        self.outside = {name: max(held, other.outside[name]) for name, held in self.outside.items()}
        if other._earliest and (self._earliest is None or other._earliest[0] < self._earliest[0]):
            self._earliest = other._earliest

    def settle(self) -> None:
        """Raise the first overflow, if there was one and the policy is ``strict``."""
        if self._policy == "strict" and self._earliest is not None:
            raise self._earliest[1]


def _rows(weight: np.ndarray, low: int, high: int) -> np.ndarray:
    """Smallest and largest sum of each row, int64 (2, rows), where every source value is 0 or in low..high."""
    w = weight.astype(np.int64).reshape(len(weight), -1)
    terms = np.stack([w * 0, w * low, w * high])
    return np.stack([terms.min(axis=0).sum(axis=1), terms.max(axis=0).sum(axis=1)])


#: (synapse, its layer, low, high) -> smallest and largest current, int64 (2, *shape), as in :func:`_rows`
EXTREMES = SynapseTable[Callable[[Any, Layer, int, int], np.ndarray]](
    {
        Dense: lambda synapse, layer, *limits: _rows(synapse.weight, *limits).reshape(2, *layer.shape),
        Conv2d: lambda synapse, layer, *limits: layer.per_neuron(_rows(synapse.weight, *limits)),
    }
)


def shift(current: Any, exponent: int) -> Any:
    """Apply an edge's binary exponent to accumulated integer sums: left, or right towards minus infinity."""
    if exponent == 0:
        return current
    return current << exponent if exponent > 0 else current >> -exponent


def largest_sums(network: Network, layer: Layer) -> list[int]:
    """Bound the magnitude of any partial sum of each edge's current into ``layer``, before its exponent."""
    bounds = []
    for edge in layer.edges:
        low, high = network.input.limits if edge.source == INPUT else (0, 1)
        magnitude = np.abs(edge.synapse.weight.astype(np.int64)).reshape(len(edge.synapse.weight), -1).sum(axis=1)
        bounds.append(int(magnitude.max()) * max(high, -low))
    return bounds


def largest_current(network: Network, layer: Layer) -> int:
    """Bound the magnitude of everything that edges add to a neuron of ``layer`` in a step, and of every sum on the way.

    A shift to the right makes a sum smaller, but not before it has been summed.
    """
    sums = zip(largest_sums(network, layer), layer.edges, strict=True)
    return sum(bound << max(edge.exponent, 0) for bound, edge in sums)


@dataclass(frozen=True)
class Bounds:
    """What a layer may reach over all possible inputs, su."""

    register: int  #: |v| and |u|; below the chip's ``state_limit`` no input whatever can overflow the layer
    outside: int  #: u before the firing window, and from its end until the layer is cleared


def worst_case(network: Network, layer: Layer) -> int:
    """Bound |v| and |u| of ``layer`` over all possible inputs, su, as :func:`bounds` does."""
    return bounds(network, layer).register


def bounds(network: Network, layer: Layer) -> Bounds:
    """Bound ``layer`` over all possible inputs, by interval arithmetic per channel and step."""
    phase = network.phase[layer.name]
    # Python's integers where NumPy's might wrap.
    most = largest_current(network, layer) * len(network.busy(layer)) + int(np.abs(layer.offsets).max())
    kind: Any = np.int64 if most < 1 << 61 else object
    offset = low = high = layer.per_neuron(layer.v0).astype(kind)
    bound, outside = int(np.abs(low).max()), 0
    for t in network.busy(layer):
        for edge in layer.edges:
            begin = network.phase[edge.source] + 1
            if begin <= t < begin + network.timesteps:
                limits = network.input.limits if edge.source == INPUT else (0, 1)
                extremes = EXTREMES[type(edge.synapse)](edge.synapse, layer, *limits).astype(kind)
                down, up = shift(extremes, edge.exponent)
                low, high = low + down, high + up
        if t >= phase:
            b = layer.per_neuron(layer.bias[t - phase])
            low, high, offset = low + b, high + b, layer.per_neuron(layer.offsets[t - phase])
        else:
            outside = max(outside, int((high - offset).max()))
        bound = max(bound, *(int(np.abs(x).max()) for x in (low, high, low - offset, high - offset)))
        if t >= phase and layer.kind == "spiking":
            theta = layer.threshold
            # v stays below theta or loses theta: the interval becomes the hull of both outcomes.
            stays, fires = low < theta, high >= theta
            low, high = (
                np.where(stays, np.where(fires, np.minimum(low, 0), low), low - theta),
                np.where(fires, np.where(stays, np.maximum(high - theta, theta - 1), high - theta), high),
            )
    return Bounds(bound, max(outside, int((high - offset).max())))
