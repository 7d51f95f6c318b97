"""The engine that users run: exact, batched, layer after layer, each over all its steps at once.

Sums of small integers are exact in floating point as long as every partial sum is representable, so currents are
computed by torch's float convolutions: float32 below 2**24, float64 below 2**53, refused beyond. A layer needs
only its sources' outputs inside their firing windows, never the network from the input again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sim.arguments import Count, checked
from sim.chip import LOIHI2, Chip
from sim.findings import refuse
from sim.fixedpoint import Policy, Registers, largest_current, largest_sums, shift, worst_case
from sim.network import INPUT, Conv2d, Dense, Layer, Network, SynapseTable
from sim.progress import counting
from sim.trace import Trace

PIECE = 1 << 18  #: potentials that are reset at a time

Bias = Callable[[int, Tensor], Tensor]  #: (window step tau, potentials (B, *shape)) -> bias that broadcasts to them

#: (synapse, its weight as floats, what its source sends (frames, *source)) -> currents (frames, ...)
CURRENT = SynapseTable[Callable[[Any, Tensor, Tensor], Tensor]](
    {
        Dense: lambda _, weight, frames: functional.linear(frames.flatten(1), weight),
        Conv2d: lambda synapse, weight, frames: functional.conv2d(frames, weight, None, *synapse.geometry),
    }
)


@checked
def run(
    network: Network,
    payload: np.ndarray,
    *,
    chip: Chip = LOIHI2,
    overflow: Policy = "strict",
    record: bool = True,
    batch: Count = 32,
) -> Trace:
    """Run integer payloads ``(B, *input.shape)``; the result equals :func:`sim.reference.run` bit for bit.

    ``record=False`` keeps only the readout's potentials. Memory is bounded by ``batch`` samples, and they are counted
    as progress. Raises as the reference does, and :class:`Refused` where sums beyond 2**53 could not be exact.
    """
    payload = network.payload(payload)
    registers = Registers(network, chip, overflow)
    arriving = {layer.name: Currents(network, layer) for layer in network.layers}
    kept = network.layers if record else (network.readout,)
    spikes: dict[str, list[Tensor]] = {layer.name: [] for layer in kept}
    potentials: dict[str, list[Tensor]] = {layer.name: [] for layer in kept}
    with counting("running on fast", len(payload)) as advance:
        for start in range(0, len(payload), batch):
            registers.first = start
            outputs: dict[str, Tensor] = {INPUT: torch.from_numpy(payload[start : start + batch])}
            for layer in network.layers:
                current = arriving[layer.name](outputs)
                fired, v = fire(network, layer, current, registers, record=layer.name in spikes)
                outputs[layer.name] = fired[-network.timesteps :]
                if layer.name in spikes:
                    spikes[layer.name].append(fired.transpose(0, 1))
                    potentials[layer.name].append(v.transpose(0, 1))
            advance(len(outputs[INPUT]))

    def join(parts: dict[str, list[Tensor]], dtype: torch.dtype) -> dict[str, np.ndarray]:
        return {
            layer.name: torch.cat(parts[layer.name]).numpy()
            if parts[layer.name]
            else torch.zeros((0, len(network.busy(layer)), *layer.shape), dtype=dtype).numpy()
            for layer in kept
        }

    return Trace(
        "fast",
        network,
        join(spikes, torch.uint8),
        join(potentials, torch.int64),
        registers.overflows,
        registers.peak,
        frozenset(registers.overflowed),
    )


class Currents:
    """Everything that arrives at one layer, with its synapses prepared once."""

    def __init__(self, network: Network, layer: Layer, margin: int = 0) -> None:
        """Raise :class:`Refused` where sums beyond 2**53 could not be exact.

        ``margin`` is what may be added to the layer's worst case, as another schedule than its own does.
        """
        bound, reach = max(largest_sums(network, layer)), worst_case(network, layer) + margin
        if bound >= 1 << 53:
            raise refuse(layer.name, f"currents of up to {bound} cannot be summed exactly", "use smaller weights")
        largest = max(reach, largest_current(network, layer))
        if largest >= 1 << 62:
            raise refuse(layer.name, f"potentials of up to {largest} leave 64 bits", "use smaller weights or exponents")
        self._network, self._layer = network, layer
        exact = torch.float32 if bound < 1 << 24 else torch.float64
        #: of the currents, wide enough for the potentials too
        self.dtype = torch.int32 if largest < 1 << 31 else torch.int64
        self._weights = [torch.from_numpy(edge.synapse.weight.copy()).to(exact) for edge in layer.edges]

    def __call__(self, outputs: Mapping[str, Tensor], steps: range | None = None) -> Tensor:
        """Sum the currents over the layer's busy steps, or some of them: integers (steps, B, *shape).

        ``outputs`` holds each source's spikes in its firing window, uint8 (T, B, *shape), and the payload (B, *shape)
        under ``INPUT``.
        """
        network, layer = self._network, self._layer
        steps = network.busy(layer) if steps is None else steps
        first = layer.edges[0].source
        samples = outputs[first].shape[0 if first == INPUT else 1]
        total: Tensor | None = None
        for edge, weight in zip(layer.edges, self._weights, strict=True):
            begin = network.phase[edge.source] + 1
            here = range(max(begin, steps.start), min(begin + network.timesteps, steps.stop))
            if not here:
                continue
            # The payload is constant: one frame, its current added at each step.
            source = outputs[edge.source]
            sent = source if edge.source == INPUT else source[here.start - begin : here.stop - begin]
            frames = sent.reshape(-1, *network.shape_of(edge.source)).to(weight.dtype)
            current = CURRENT[type(edge.synapse)](edge.synapse, weight, frames)
            current = shift(current.to(self.dtype), edge.exponent).reshape(-1, samples, *layer.shape)
            if total is None and here == steps and len(current) == len(steps):
                total = current
                continue
            if total is None:
                total = torch.zeros((len(steps), samples, *layer.shape), dtype=self.dtype)
            total[here.start - steps.start : here.stop - steps.start] += current
        return torch.zeros((len(steps), samples, *layer.shape), dtype=self.dtype) if total is None else total


def fire(
    network: Network,
    layer: Layer,
    current: Iterable[Tensor],
    registers: Registers | None = None,
    bias: Bias | None = None,
    record: bool = True,
) -> tuple[Tensor, Tensor]:
    """Integrate and fire: spikes uint8 and potentials after the reset, each (busy steps, B, *shape).

    ``current`` gives what arrives at each busy step, (B, *shape). ``bias`` replaces the layer's schedule: calibration
    chooses each b[tau] there, seeing the very potentials that it will be added to. Registers are watched only where
    they are given. ``record=False`` returns the last potentials alone, (1, B, *shape).
    """
    phase, steps = network.phase[layer.name], network.busy(layer)
    spikes = potentials = v = offset = torch.empty(0)
    piece = max(1, PIECE // layer.size)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(layer.per_neuron(values).copy()).to(v.dtype)

    schedule = bias or (lambda tau, _: tensor(layer.bias[tau]))
    for index, (t, arriving) in enumerate(zip(steps, current, strict=True)):
        if index == 0:
            v = torch.empty_like(arriving)
            offset = tensor(layer.v0)
            v.copy_(offset)
            spikes = torch.zeros((len(steps), *v.shape), dtype=torch.uint8)
            potentials = torch.empty((len(steps) if record else 0, *v.shape), dtype=v.dtype)
        v += arriving
        if t >= phase:
            b = schedule(t - phase, v)
            v += b
            offset = offset + b
        if registers is not None and len(v):
            registers.watch(layer, t, v, offset)
        if t >= phase and layer.kind == "spiking":
            # As bool, and in pieces that stay in the cache: several times faster than on bytes and all at once.
            torch.ge(v, layer.threshold, out=spikes[index].view(torch.bool))
            for potential, fired in zip(v.split(piece), spikes[index].split(piece), strict=True):
                potential.sub_(fired.to(v.dtype).mul_(layer.threshold))
        if registers is not None and len(v):
            registers.left(layer, t, v, offset)
        if record:
            potentials[index] = v
    return spikes, potentials if record else v[None]
