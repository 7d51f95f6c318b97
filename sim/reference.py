"""The definition of the semantics, in slow NumPy integers: one sample, one step, one layer after the other.

Read it beside the docstring of :mod:`sim.network`. Nothing here is optimised, no other engine calls it, and nothing
here is computed by what they call, be it a shift or the largest value of a register.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np

from sim.arguments import checked
from sim.chip import LOIHI2, Chip
from sim.findings import refuse
from sim.fixedpoint import Policy, RegisterOverflow
from sim.network import INPUT, Conv2d, Dense, Layer, Network, SynapseTable
from sim.progress import track
from sim.trace import Trace


@checked
def run(network: Network, payload: np.ndarray, *, chip: Chip = LOIHI2, overflow: Policy = "strict") -> Trace:
    """Run integer payloads ``(B, *input.shape)`` and record every layer.

    Raises :class:`sim.fixedpoint.RegisterOverflow` when a potential leaves ``chip``'s registers under the ``strict``
    policy, and :class:`sim.findings.Refused` for a payload of wrong shape, type or range.
    """
    if overflow not in get_args(Policy):
        raise refuse("overflow", f"policy {overflow!r}", f"use {' or '.join(map(repr, get_args(Policy)))}")
    payload = network.payload(payload)
    _require_64_bits(network)
    shape = {layer.name: (len(payload), len(network.busy(layer)), *layer.shape) for layer in network.layers}
    spikes = {name: np.zeros(size, np.uint8) for name, size in shape.items()}
    potentials = {name: np.zeros(size, np.int64) for name, size in shape.items()}
    overflows, peak = 0, {layer.name: 0 for layer in network.layers}
    overflowed = set()
    for sample, image in enumerate(track("running on reference", payload)):
        for layer, t, fired, v, registers in _steps(network, image):
            index = t - network.first_arrival(layer)
            spikes[layer.name][sample, index], potentials[layer.name][sample, index] = fired, v
            for register, values in registers:
                peak[layer.name] = max(peak[layer.name], int(np.abs(values).max()))
                outside = np.argwhere(np.abs(values) >= chip.state_limit)
                if len(outside) and overflow == "strict":
                    place = tuple(outside[0])
                    raise RegisterOverflow.of(layer.name, int(place[0]), t, register, int(values[place]), chip)
                overflows += len(outside)
                if len(outside):
                    overflowed.add(sample)
    return Trace("reference", network, spikes, potentials, overflows, peak, frozenset(overflowed))


def _require_64_bits(network: Network) -> None:
    """Refuse a network whose sums NumPy's integers might not hold, counted generously and in Python's."""
    for layer in network.layers:
        most = int(np.abs(layer.offsets).max())
        for edge in layer.edges:
            largest = max(map(abs, network.input.limits)) if edge.source == INPUT else 1
            fan_in = edge.synapse.weight[0].size * int(np.abs(edge.synapse.weight.astype(np.int64)).max())
            most += len(network.busy(layer)) * (fan_in * largest << max(edge.exponent, 0))
        if most >= 1 << 63:
            raise refuse(layer.name, f"potentials of up to {most} leave 64 bits", "use smaller weights or exponents")


def _steps(
    network: Network, image: np.ndarray
) -> Iterator[tuple[Layer, int, np.ndarray, np.ndarray, list[tuple[str, np.ndarray]]]]:
    """Run one sample; yields every busy step of every layer: its spikes, v after the reset, and v and u before it."""
    v = {layer.name: layer.per_neuron(layer.v0).astype(np.int64) for layer in network.layers}
    u = {layer.name: np.zeros(layer.shape, np.int64) for layer in network.layers}  # v without v0 and bias
    previous: dict[str, np.ndarray] = {layer.name: np.zeros(layer.shape, np.int64) for layer in network.layers}
    previous[INPUT] = np.zeros(network.input.shape, np.int64)
    for t in range(network.steps):
        now = {INPUT: image.astype(np.int64) * (t < network.timesteps)}
        for layer in network.layers:
            name, tau = layer.name, t - network.phase[layer.name]
            window = 0 <= tau < network.timesteps
            for edge in layer.edges:
                current = _shift(CURRENT[type(edge.synapse)](edge.synapse, previous[edge.source]), edge.exponent)
                v[name] = v[name] + current.reshape(layer.shape)
                u[name] = u[name] + current.reshape(layer.shape)
            if window:
                v[name] = v[name] + layer.per_neuron(layer.bias[tau])
            registers = [("v", v[name]), ("u", u[name])]
            fires = window and layer.kind == "spiking"
            now[name] = (v[name] >= layer.threshold).astype(np.int64) if fires else np.zeros(layer.shape, np.int64)
            v[name] = v[name] - layer.threshold * now[name]
            u[name] = u[name] - layer.threshold * now[name]
            if t in network.busy(layer):
                yield layer, t, now[name], v[name], registers
        previous = now


def _shift(current: np.ndarray, exponent: int) -> np.ndarray:
    """Multiply by ``2**exponent`` and round towards minus infinity."""
    return current * 2**exponent if exponent >= 0 else current // 2**-exponent


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
