"""Integrate and fire step by step, for who chooses each step's bias on the way: calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from sim.fast.convolution import shaped
from sim.fast.population import Population
from sim.fixedpoint import Registers, shift
from sim.network import INPUT, Layer, Network

PIECE = 1 << 18  #: potentials that are reset at a time

Bias = Callable[[int, Tensor], Tensor]  #: (window step tau, potentials (B, *shape)) -> bias that broadcasts to them


class Currents:
    """Everything that arrives at one layer, with its synapses prepared once."""

    def __init__(self, network: Network, layer: Layer, margin: int = 0) -> None:
        """Raise as :class:`sim.fast.population.Population`, which has a ``margin`` too."""
        self._population = Population(network, layer, torch.device("cpu"), margin)
        self.dtype = self._population.integer  #: of the currents, wide enough for the potentials too

    def __call__(self, outputs: Mapping[str, Tensor], steps: range | None = None) -> Tensor:
        """Sum the currents over the layer's busy steps, or some of them: integers (steps, B, *shape).

        ``outputs`` holds each source's spikes in its firing window, uint8 (T, B, *shape), and the payload (B, *shape)
        under ``INPUT``.
        """
        network, layer = self._population.network, self._population.layer
        steps = network.busy(layer) if steps is None else steps
        first = layer.edges[0].source
        samples = outputs[first].shape[0 if first == INPUT else 1]
        total: Tensor | None = None
        for edge, synapse in self._population.synapses:
            begin = network.phase[edge.source] + 1
            here = range(max(begin, steps.start), min(begin + network.timesteps, steps.stop))
            if here:
                # The payload is constant: one frame, its current added at each step.
                source = outputs[edge.source]
                sent = source if edge.source == INPUT else source[here.start - begin : here.stop - begin]
                frames = sent.reshape(-1, *network.shape_of(edge.source))
                current = synapse(frames)
                if edge.exponent:
                    current = shift(current.to(torch.int64), edge.exponent)
                current = current.to(self.dtype).view(-1, samples, layer.size)
                if total is None and here == steps and len(current) == len(steps):
                    total = current
                    continue
                if total is None:
                    total = current.new_zeros((len(steps), samples, layer.size))
                total[here.start - steps.start : here.stop - steps.start] += current
        if total is None:
            total = torch.zeros((len(steps), samples, layer.size), dtype=self.dtype)
        return shaped(total, layer.shape)


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
            # Channels last, as what is computed from them wants them.
            spikes = shaped(torch.zeros((len(steps), len(v), layer.size), dtype=torch.uint8), layer.shape)
            potentials = torch.empty((len(steps) if record else 0, len(v), layer.size), dtype=v.dtype)
            potentials = shaped(potentials, layer.shape)
        v += arriving
        if t >= phase:
            b = schedule(t - phase, v)
            v += b
            offset = offset + b
        if registers is not None and len(v):
            registers.watch(layer, t, v.numpy(), offset.numpy())
        if t >= phase and layer.kind == "spiking":
            # As bool, and in pieces that stay in the cache: several times faster than on bytes and all at once.
            torch.ge(v, layer.threshold, out=spikes[index].view(torch.bool))
            for potential, fired in zip(v.split(piece), spikes[index].split(piece), strict=True):
                potential.sub_(fired.to(v.dtype).mul_(layer.threshold))
        if registers is not None and len(v) and layer.kind == "spiking" and (t < phase or t == steps[-1]):
            registers.left(layer, v.numpy(), offset.numpy())
        if record:
            potentials[index] = v
    if registers is not None:
        registers.settle()
    return spikes, potentials if record else v[None]
