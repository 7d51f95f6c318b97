"""What Lava's own blocks hold and compute exactly, and how the stock form uses them: numbers and NumPy, no Lava.

The stock form makes the neuron of :mod:`sim.network` out of nothing but Lava's LIFReset and synapses. There
``LIF(du=-1, dv=4096)`` makes u a perfect integrator and v = u + bias; a recurrent synapse of weight -theta subtracts
the threshold one step after the spike, before the next comparison; and ``bias_mant`` plays ``v0 + cumulative bias``
inside the firing window and a suppressing offset outside (:class:`Silence`). Files hold it (:mod:`exporters.netx`),
:mod:`sim.on_lava` runs it. Sources are files of lava-nc 0.10.0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.findings import Finding, refuse
from sim.fixedpoint import Policy
from sim.network import INPUT, Conv2d, Dense, Edge, Layer, Network, SynapseTable

Form = Literal["native", "stock"]  #: how a network is built on Lava: our own neurons, or the stock form
#: Steps between a layer's window and its reset: the last -theta arrives, and the last that relays of a clock send.
AFTER = {"native": 0, "stock": 1, "clock": 2}

#: Registers of LIF, in su * 2**6: u wraps beyond, v saturates (lava/proc/lif/models.py).
STATE_BITS, FRACTION_BITS = 24, 6
NEVER = (1 << LOIHI2.threshold_bits) - 1  #: vth of a readout: no potential inside the register exceeds it
CURRENT_BITS = 26  #: LIF shifts the int32 sum of its currents left by 6
CONV_SUM_BITS = 24  #: Conv wraps its sums (lava/proc/conv/models.py)
CONV_LIMIT = 127  #: Conv keeps kernel size, stride, padding, dilation and groups as int8 and wraps beyond


def _conv_holds(synapse: Conv2d) -> bool:
    stride, padding, dilation, groups = synapse.geometry
    return max(*synapse.weight.shape[2:], *stride, *padding, *dilation, groups) <= CONV_LIMIT


#: (synapse) -> whether Lava's Conv can hold it
CONV_HOLDS = SynapseTable[Callable[[Any], bool]]({Dense: lambda _: False, Conv2d: _conv_holds})


@dataclass(frozen=True)
class Silence:
    """What keeps a spiking layer from firing outside its window, exactly while u stays below :meth:`limit` there."""

    offset: int  #: bias_mant outside the window, su
    lift: int  #: added to every bias_mant inside the window, and to the threshold: there it changes nothing

    def limit(self, layer: Layer) -> int:
        """Return the smallest u, su, at which ``layer`` would fire outside its window."""
        return layer.threshold + self.lift - self.offset


#: Of input neurons, whose offsets are not known before the input is; u is never above 0 there.
UNLIFTED = Silence(-LOIHI2.bias_limit - 1, 0)


def silence(layer: Layer, chip: Chip = LOIHI2) -> Silence:
    """Use the whole of ``chip``'s bias register: the lowest value outside the window, inside as high as it goes."""
    room = min(chip.bias_limit - int(layer.offsets.max()), chip.threshold_limit - layer.threshold)
    return Silence(-chip.bias_limit - 1, max(room, 0))


def peak_outside(network: Network, layer: Layer, potentials: np.ndarray) -> int:
    """Return the largest u, su, where ``layer`` has to be silent; at least 0, which it holds before all arrivals.

    ``potentials`` are those after the reset, (B, busy steps, *shape), as a trace has them. After the window u stays as
    the last step has left it, until it is cleared.
    """
    before = network.phase[layer.name] - network.first_arrival(layer)
    held = [
        potentials[:, :before] - layer.per_neuron(layer.v0),
        potentials[:, -1] - layer.per_neuron(layer.offsets[-1]),
    ]
    return max(int(np.max(u, initial=0)) for u in held)


def legal_period(
    network: Network, form: Form | Literal["clock"], period: int | Literal["power of two"] | None = None
) -> int:
    """Return ``period``, or if it is None the smallest legal one; raises :class:`Refused` for a smaller one.

    Beside the native form, a network may ask for another one by its ``reset_interval``. The stock form needs one step
    more: in it the last -theta arrives, which LIFReset then clears; with a clock, two. "power of two" is the smallest
    legal one that silicon takes for the interval of LIFReset.
    """
    smallest = network.period + AFTER[form]
    if period is None and form != "native":
        period = network.reset_interval
    if period == "power of two":
        return reset_interval(network.period, form)
    if isinstance(period, str):
        raise refuse("period", f"{period!r} given", "give a number of steps, or 'power of two'")
    if period is not None and period < smallest:
        raise refuse(
            "period",
            f"{period} steps are too few for the {form} form: samples would meet in a layer",
            f"give at least {smallest}",
        )
    return smallest if period is None else period


def reset_interval(period: int, form: Form | Literal["clock"] = "stock") -> int:
    """Return the fewest steps, a power of two, between samples in ``form`` of a network whose period is ``period``."""
    return 1 << (period + AFTER[form] - 1).bit_length()


def inexact(
    network: Network, payload: np.ndarray, form: Form, chip: Chip = LOIHI2, overflow: Policy = "strict"
) -> list[Finding]:
    """List everything about ``network``, ``payload`` and the registers that Lava's processes would compute wrongly."""
    found: list[Finding] = []
    if form == "stock" and overflow != "strict":
        found.append(
            Finding(
                "overflow",
                f"{overflow!r}, but Lava's LIF wraps beyond its registers",
                "use 'strict', or another engine",
            )
        )
    if form == "stock" and (chip.state_bits > STATE_BITS or chip.fraction_bits != FRACTION_BITS):
        found.append(Finding("chip", f"Lava's LIF lacks the registers of {chip.name}", "use form='native'"))
    for layer in network.layers:
        total = layer.threshold
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            magnitude = np.abs(edge.synapse.weight.astype(np.int64)).reshape(len(edge.synapse.weight), -1).sum(axis=1)
            largest = int(magnitude.max()) * (int(np.abs(payload).max(initial=0)) if edge.source == INPUT else 1)
            total += largest << max(edge.exponent, 0)
            if by_conv(edge) and largest >= 1 << (CONV_SUM_BITS - 1):
                found.append(
                    Finding(
                        where,
                        f"a sum of up to {largest} leaves the {CONV_SUM_BITS} bits of Lava's Conv",
                        "use fewer weight or payload bits",
                    )
                )
            if not by_conv(edge) and encoded(edge.synapse.weight, edge.exponent) is None:
                found.append(
                    Finding(
                        where,
                        f"weights {edge.synapse.weight.min()}..{edge.synapse.weight.max()} lose bits in Lava's Dense "
                        "and Sparse, which hold -127..127, or up to 255 of one sign",
                        "convert again with at most 8 weight bits",
                    )
                )
        if total >= 1 << (CURRENT_BITS - 1):
            found.append(
                Finding(
                    layer.name,
                    f"currents of up to {total} leave the {CURRENT_BITS} bits that Lava's LIF adds",
                    "use fewer weight or payload bits",
                )
            )
        if form == "stock":
            played = np.append(layer.offsets, layer.v0)
            if played.min() < -chip.bias_limit - 1 or played.max() > chip.bias_limit:
                found.append(
                    Finding(
                        layer.name,
                        f"v0 + cumulative bias of {played.min()}..{played.max()} leaves the {chip.bias_bits} "
                        f"bits of {chip.name}'s bias_mant",
                        "lower the layer's integer threshold",
                    )
                )
            if layer.kind == "spiking" and not recurs_by_conv(layer) and chip.recurrent(layer.threshold) is None:
                found.append(
                    Finding(
                        layer.name,
                        f"threshold {layer.threshold} is not a recurrent weight (w * 2**e, "
                        f"w <= {chip.recurrent_weight})",
                        "round it to a multiple of a power of two",
                    )
                )
    return found


def by_conv(edge: Edge) -> bool:
    """Tell whether Lava's Conv computes the edge; it ignores weight exponents. Dense and Sparse compute the others."""
    return edge.exponent == 0 and CONV_HOLDS[type(edge.synapse)](edge.synapse)


def recurs_by_conv(layer: Layer) -> bool:
    """Tell whether a depthwise Conv holds the recurrent -theta, of any size; else Sparse does."""
    return len(layer.shape) == 3 and layer.shape[0] <= CONV_LIMIT


def encoded(weight: np.ndarray, exponent: int) -> tuple[np.ndarray, int] | None:
    """Weights and exponent with which Lava's Dense and Sparse compute ``sum(weight) << exponent`` exactly, or None.

    They drop the lowest of 9 bits where signs are mixed (lava/utils/weightutils.py): those weights are doubled.
    """
    low, high = int(weight.min()), int(weight.max())
    if (low >= 0 and high <= 255) or (high <= 0 and low >= -255):
        return weight, exponent
    return (weight * 2, exponent - 1) if max(-low, high) <= 127 else None


def vth(layer: Layer, silent: Silence) -> int:
    """Threshold of the layer's LIF, su; Lava fires on a strict ``>``."""
    return NEVER if layer.kind == "readout" else layer.threshold - 1 + silent.lift


def cycle(network: Network, layer: Layer, period: int, silent: Silence | None = None) -> np.ndarray:
    """Offset at every step of the layer's cycle, su (period, *shape): v0 around the window, or what silences it."""
    begin = network.phase[layer.name] - network.first_arrival(layer)
    rows = np.empty((period, *layer.shape), np.int64)
    rows[:] = layer.per_neuron(layer.v0) if silent is None else silent.offset
    rows[begin : begin + network.timesteps] = layer.per_neuron(layer.offsets) + (silent.lift if silent else 0)
    return rows


def lead(network: Network) -> int:
    """Count the steps before the last layer starts its first cycle."""
    return max(network.first_arrival(layer) for layer in network.layers)
