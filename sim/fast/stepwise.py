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
    current: Iterable[Iterable[Tensor]],
    registers: Registers | None = None,
    bias: Bias | None = None,
    record: bool = True,
) -> tuple[Tensor, Tensor]:
    """Integrate and fire: spikes uint8 and potentials after the reset, each (busy steps, B, *shape).

    ``current`` gives what arrives at each busy step in parts of samples, (b, *shape), the same at each step: those that
    stay in the cache take least. ``bias`` replaces the layer's schedule: calibration chooses each b[tau] there, seeing
    the very potentials of all samples that it will be added to. Registers are watched only where they are given.
    ``record=False`` returns the last potentials alone, (1, B, *shape).
    """
    phase, steps, spiking = network.phase[layer.name], network.busy(layer), layer.kind == "spiking"
    spikes = potentials = v = offset = torch.empty(0)
    sizes: list[int] = []

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(layer.per_neuron(values).copy()).to(v.dtype)

    schedule = bias or (lambda tau, _: tensor(layer.bias[tau]))
    for index, (t, arriving) in enumerate(zip(steps, current, strict=True)):
        if index == 0:
            pieces = list(arriving)
            sizes = [len(piece) for piece in pieces]
            v = torch.cat(pieces)
            offset = tensor(layer.v0)
            v += offset
            # Channels last, as what is computed from them wants them.
            spikes = shaped(torch.zeros((len(steps), len(v), layer.size), dtype=torch.uint8), layer.shape)
            potentials = torch.empty((len(steps) if record else 0, len(v), layer.size), dtype=v.dtype)
            potentials = shaped(potentials, layer.shape)
        else:
            for potential, piece in zip(v.split(sizes), arriving, strict=True):
                potential += piece
        b = schedule(t - phase, v) if t >= phase else torch.zeros((), dtype=v.dtype)
        offset = offset + b
        first = 0
        for potential, fired in zip(v.split(sizes), spikes[index].split(sizes), strict=True):
            if t >= phase:
                potential += b
            if registers is not None and len(potential):
                registers.watch(layer, t, potential.numpy(), offset.numpy(), first)
            if t >= phase and spiking:
                torch.ge(potential, layer.threshold, out=fired.view(torch.bool))
                potential.sub_(fired.to(v.dtype).mul_(layer.threshold))
            if registers is not None and len(potential) and spiking and (t < phase or t == steps[-1]):
                registers.left(layer, potential.numpy(), offset.numpy())
            first += len(potential)
        if record:
            potentials[index] = v
    if registers is not None:
        registers.settle()
    return spikes, potentials if record else v[None]
