"""The definition of the semantics, in slow NumPy integers: one sample, one step, one layer after the other.

Read it beside the docstring of :mod:`sim.network`. Nothing here is optimised and no other engine calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.fixedpoint import Policy, Registers, shift
from sim.network import INPUT, Conv2d, Dense, Network, SynapseTable
from sim.progress import track
from sim.trace import Trace


def run(network: Network, payload: np.ndarray, *, chip: Chip = LOIHI2, overflow: Policy = "strict") -> Trace:
    """Run integer payloads ``(B, *input.shape)`` and record every layer.

    Raises :class:`sim.fixedpoint.RegisterOverflow` when a potential leaves ``chip``'s registers under the ``strict``
    policy, and :class:`sim.findings.Refused` for a payload of wrong shape, type or range.
    """
    payload = network.payload(payload)
    registers = Registers(network, chip, overflow)
    shape = {layer.name: (len(payload), len(network.busy(layer)), *layer.shape) for layer in network.layers}
    spikes = {name: np.zeros(size, np.uint8) for name, size in shape.items()}
    potentials = {name: np.zeros(size, np.int64) for name, size in shape.items()}
    for sample, image in enumerate(track("running on reference", payload)):
        _run_sample(
            network,
            image,
            registers,
            {n: s[sample] for n, s in spikes.items()},
            {n: v[sample] for n, v in potentials.items()},
        )
    return Trace("reference", network, spikes, potentials, registers.overflows, registers.peak)


def _run_sample(
    network: Network,
    image: np.ndarray,
    registers: Registers,
    spikes: dict[str, np.ndarray],
    potentials: dict[str, np.ndarray],
) -> None:
    v = {layer.name: layer.per_neuron(layer.v0).astype(np.int64) for layer in network.layers}
    previous: dict[str, np.ndarray] = {layer.name: np.zeros(layer.shape, np.int64) for layer in network.layers}
    previous[INPUT] = np.zeros(network.input.shape, np.int64)
    for t in range(network.steps):
        now = {INPUT: image.astype(np.int64) * (t < network.timesteps)}
        for layer in network.layers:
            name, tau = layer.name, t - network.phase[layer.name]
            window = 0 <= tau < network.timesteps
            for edge in layer.edges:
                current = CURRENT[type(edge.synapse)](edge.synapse, previous[edge.source])
                v[name] = v[name] + shift(current, edge.exponent).reshape(layer.shape)
            if window:
                v[name] = v[name] + layer.per_neuron(layer.bias[tau])
            if t in network.busy(layer):
                offset = layer.v0 if tau < 0 else layer.offsets[tau]
                registers.watch(layer, t, v[name][None], layer.per_neuron(offset))
            fires = window and layer.kind == "spiking"
            now[name] = (v[name] >= layer.threshold).astype(np.int64) if fires else np.zeros(layer.shape, np.int64)
            v[name] = v[name] - layer.threshold * now[name]
            if t in network.busy(layer):
                index = t - network.first_arrival(layer)
                spikes[name][index], potentials[name][index] = now[name], v[name]
        previous = now


def _dense(synapse: Dense, x: np.ndarray) -> np.ndarray:
    return synapse.weight.astype(np.int64) @ x.reshape(-1)


def _conv2d(synapse: Conv2d, x: np.ndarray) -> np.ndarray:
    weight = synapse.weight.astype(np.int64)
    (sy, sx), (py, px), (dy, dx), groups = synapse.geometry
    c_out, c_in, ky, kx = weight.shape
    padded = np.pad(x, ((0, 0), (py, py), (px, px)))
    out = np.zeros(synapse.output_shape(x.shape), np.int64)
    for channel in range(c_out):
        group = channel // (c_out // groups)
        source = padded[group * c_in : (group + 1) * c_in]
        for row in range(out.shape[1]):
            for column in range(out.shape[2]):
                y, z = row * sy, column * sx
                patch = source[:, y : y + dy * (ky - 1) + 1 : dy, z : z + dx * (kx - 1) + 1 : dx]
                out[channel, row, column] = (patch * weight[channel]).sum()
    return out


#: (synapse, what its source sends, (*source)) -> the current, int64, before the edge's exponent
CURRENT = SynapseTable[Callable[[Any, np.ndarray], np.ndarray]]({Dense: _dense, Conv2d: _conv2d})
