"""A clock for the stock form: neurons that bring the bias schedule, so that nobody writes while the chip runs.

A chain of relay neurons is started by one pulse; relay number r fires at step t = r, and never again. Synapses lead
from it to the neurons whose schedule changes what they hold at r + 1, with the increment b as weight: it goes into u,
which keeps it, and ``bias_mant`` stays as it is. A spiking layer is held below its threshold by that constant bias,
v0 - hold. The relay before its window brings the hold as well, the one at its end takes it off. So u is higher by the
hold inside the window, and v = u + ``bias_mant`` is what it is with a host that writes. Where a layer has to be
silent it is exactly while u stays below theta + hold - v0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.findings import refuse
from sim.network import Layer, Network
from sim.stock import encoded

DIGIT = 7  #: bits by which a second synapse is shifted where increments need more than 8


@dataclass(frozen=True, eq=False)
class Ticks:
    """Synapses from neighbouring relays to every neuron of a layer."""

    first: int  #: number of the first relay
    weight: np.ndarray  #: su >> exponent, int64 (N, relays), as Lava's Dense holds them
    exponent: int

    @property
    def relays(self) -> int:
        """Number of relays."""
        return int(self.weight.shape[1])


@dataclass(frozen=True, eq=False)
class Clock:
    """What takes the host's place."""

    relays: int  #: length of the chain
    ticks: Mapping[str, tuple[Ticks, ...]]  #: by layer
    hold: Mapping[str, int]  #: by layer, su: what u carries inside the window alone; 0 for the readout
    bias: Mapping[str, np.ndarray]  #: by layer, su (*shape): ``bias_mant``, all along


def clock(network: Network, chip: Chip = LOIHI2) -> Clock:
    """Describe the clock of ``network``, whose biases ``chip`` holds (:func:`sim.chip.check`).

    Raises :class:`Refused` for increments that two synapses of 8 bits cannot hold, which only other chips allow.
    """
    ticks, hold, bias = {}, {}, {}
    for layer in network.layers:
        opens = network.phase[layer.name] - 1
        rows = layer.per_neuron(layer.bias).reshape(network.timesteps, -1).T.astype(np.int64)
        found = [Ticks(opens, *part) for part in _parts(layer, rows)] if rows.any() else []
        v0, held = layer.per_neuron(layer.v0).astype(np.int64), 0
        if layer.kind == "spiking":
            room = chip.bias_limit + 1 + int(v0.min())
            exponent = max(0, room.bit_length() - DIGIT)
            held = room >> exponent << exponent
            gate = np.full((layer.size, 1), held)
            found += [
                Ticks(first, *_parts(layer, sign * gate)[0])
                for sign, first in ((1, opens), (-1, opens + network.timesteps))
            ]
        ticks[layer.name], hold[layer.name], bias[layer.name] = tuple(found), held, v0 - held
    relays = max((t.first + t.relays for found in ticks.values() for t in found), default=0)
    return Clock(relays, ticks, hold, bias)


def _parts(layer: Layer, values: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Write increments (N, relays) as one matrix, or as the sum of two, each with its exponent."""
    common = int(np.bitwise_or.reduce(values, axis=None))
    even = min((common & -common).bit_length() - 1, DIGIT)
    if encoded(values >> even, even) is not None:
        return [(values >> even, even)]
    half = 1 << (DIGIT - 1)
    low = (values + half) % (2 * half) - half
    high = (values - low) >> DIGIT
    if encoded(high, DIGIT) is None:
        problem = f"biases {values.min()}..{values.max()} leave two synapses of 8 bits"
        raise refuse(layer.name, problem, "let the host write the schedule")
    return [(low, 0), (high, DIGIT)]
