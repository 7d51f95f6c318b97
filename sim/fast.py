"""The engine that users run: exact, batched, layer after layer, each over all its steps at once.

Sums of small integers are exact in floating point as long as every partial sum is representable, so currents are
computed by torch's float convolutions: float32 below 2**24, float64 below 2**53, refused beyond. A layer needs
only its sources' outputs inside their firing windows, never the network from the input again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sim.chip import LOIHI2, Chip
from sim.findings import refuse
from sim.fixedpoint import Policy, Registers, largest_sum, shift, worst_case
from sim.network import INPUT, Conv2d, Dense, Layer, Network
from sim.trace import Trace

Bias = Callable[[int, Tensor], Tensor]  #: (window step tau, potentials (B, *shape)) -> bias that broadcasts to them


def run(
    network: Network,
    payload: np.ndarray,
    *,
    chip: Chip = LOIHI2,
    overflow: Policy = "strict",
    record: bool = True,
    batch: int = 32,
    progress: Callable[[int], object] | None = None,
) -> Trace:
    """Run integer payloads ``(B, *input.shape)``; the result equals :func:`sim.reference.run` bit for bit.

    ``record=False`` keeps only the readout's potentials. Memory is bounded by ``batch`` samples; ``progress`` is
    called with the number of samples just finished. Raises as the reference does, and :class:`Refused` where
    sums beyond 2**53 could not be exact.
    """
    payload = network.payload(payload)
    registers = Registers(network, chip, overflow)
    kept = network.layers if record else (network.readout,)
    spikes: dict[str, list[Tensor]] = {layer.name: [] for layer in kept}
    potentials: dict[str, list[Tensor]] = {layer.name: [] for layer in kept}
    for start in range(0, len(payload), batch):
        outputs: dict[str, Tensor] = {INPUT: torch.from_numpy(payload[start : start + batch])}
        for layer in network.layers:
            fired, v = fire(network, layer, currents(network, layer, outputs), registers)
            outputs[layer.name] = fired[-network.timesteps :]
            if layer.name in spikes:
                spikes[layer.name].append(fired.transpose(0, 1))
                potentials[layer.name].append(v.transpose(0, 1))
        if progress is not None:
            progress(len(outputs[INPUT]))

    def join(parts: dict[str, list[Tensor]], dtype: torch.dtype) -> dict[str, np.ndarray]:
        return {
            layer.name: torch.cat(parts[layer.name]).numpy()
            if parts[layer.name]
            else torch.zeros((0, len(network.busy(layer)), *layer.shape), dtype=dtype).numpy()
            for layer in kept
        }

    return Trace(
        "fast", network, join(spikes, torch.uint8), join(potentials, torch.int64), registers.overflows, registers.peak
    )


def currents(network: Network, layer: Layer, outputs: Mapping[str, Tensor]) -> Tensor:
    """Sum the currents into ``layer`` over its busy steps: integers (steps, B, *shape).

    ``outputs`` holds each source's spikes in its firing window, uint8 (T, B, *shape), and the payload (B, *shape)
    under ``INPUT``.
    """
    steps = network.busy(layer)
    bound = largest_sum(network, layer)
    if bound >= 1 << 53:
        raise refuse(layer.name, f"currents of up to {bound} cannot be summed exactly", "use smaller weights")
    exact = torch.float32 if bound < 1 << 24 else torch.float64
    state = torch.int32 if worst_case(network, layer) < 1 << 31 else torch.int64
    total = torch.zeros(
        (
            len(steps),
            outputs[layer.edges[0].source].shape[-1 - len(network.shape_of(layer.edges[0].source))],
            *layer.shape,
        ),
        dtype=state,
    )
    for edge in layer.edges:
        source = outputs[edge.source]
        frames = source.reshape(-1, *network.shape_of(edge.source)).to(exact)
        weight = torch.from_numpy(edge.synapse.weight.copy()).to(exact)
        if type(edge.synapse) is Dense:
            current = functional.linear(frames.flatten(1), weight)
        elif type(edge.synapse) is Conv2d:
            s = edge.synapse
            current = functional.conv2d(frames, weight, None, s.stride, s.padding, s.dilation, s.groups)
        else:
            raise TypeError(f"{type(edge.synapse).__name__} is not a synapse; known: Dense, Conv2d")
        begin = network.phase[edge.source] + 1 - steps.start
        # The payload is constant: one frame, its current added at each of the T steps.
        total[begin : begin + network.timesteps] += shift(current.to(state), edge.exponent).reshape(
            -1, total.shape[1], *layer.shape
        )
    return total


def fire(
    network: Network, layer: Layer, current: Tensor, registers: Registers | None = None, bias: Bias | None = None
) -> tuple[Tensor, Tensor]:
    """Integrate and fire: spikes uint8 and potentials after the reset, each (busy steps, B, *shape).

    ``bias`` replaces the layer's schedule: calibration chooses each b[tau] there, seeing the very potentials that it
    will be added to. Registers are watched only where they are given.
    """
    phase, steps = network.phase[layer.name], network.busy(layer)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(layer.per_neuron(values).copy()).to(current.dtype)

    schedule = bias or (lambda tau, _: tensor(layer.bias[tau]))
    spikes = torch.zeros(current.shape, dtype=torch.uint8)
    potentials = torch.empty_like(current)
    v = tensor(layer.v0).expand(current.shape[1:]).clone()
    offset = tensor(layer.v0)
    for index, t in enumerate(steps):
        v += current[index]
        if t >= phase:
            b = schedule(t - phase, v)
            v += b
            offset = offset + b
        if registers is not None and len(v):
            registers.watch(layer, t, v, offset)
        if t >= phase and layer.kind == "spiking":
            torch.ge(v, layer.threshold, out=spikes[index])
            v.sub_(spikes[index], alpha=layer.threshold)
        potentials[index] = v
    return spikes, potentials
