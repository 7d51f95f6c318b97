"""What Lava's own blocks hold and compute exactly, and how the stock form uses them: numbers and NumPy, no Lava.

The stock form makes the neuron of :mod:`sim.network` out of nothing but Lava's LIFReset and synapses. There
``LIF(du=-1, dv=4096)`` makes u a perfect integrator and v = u + bias; a recurrent synapse of weight -theta subtracts
the threshold one step after the spike, before the next comparison; and ``bias_mant`` plays ``v0 + cumulative bias``
inside the firing window and a suppressing offset outside. Files hold it (:mod:`exporters.netx`), :mod:`sim.on_lava`
runs it. Sources are files of lava-nc 0.10.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.findings import Finding, refuse
from sim.fixedpoint import Policy
from sim.network import INPUT, Conv2d, Dense, Edge, Layer, Network, SynapseTable

Form = Literal["native", "stock"]  #: how a network is built on Lava: our own neurons, or the stock form

#: Registers of LIF, in su * 2**6: u wraps beyond, v saturates (lava/proc/lif/models.py).
STATE_BITS, FRACTION_BITS = 24, 6
SUPPRESSED = -(1 << 15)  #: su; the lowest bias_mant: LIF stores 16 bits of it and wraps silently beyond
NEVER = (1 << LOIHI2.threshold_bits) - 1  #: vth of a readout: no potential inside the register exceeds it
CURRENT_BITS = 26  #: LIF shifts the int32 sum of its currents left by 6
CONV_SUM_BITS = 24  #: Conv wraps its sums (lava/proc/conv/models.py)
CONV_LIMIT = 127  #: Conv keeps kernel size, stride, padding, dilation and groups as int8 and wraps beyond


def _conv_holds(synapse: Conv2d) -> bool:
    stride, padding, dilation, groups = synapse.geometry
    return max(*synapse.weight.shape[2:], *stride, *padding, *dilation, groups) <= CONV_LIMIT


#: (synapse) -> whether Lava's Conv can hold it
CONV_HOLDS = SynapseTable[Callable[[Any], bool]]({Dense: lambda _: False, Conv2d: _conv_holds})


def legal_period(network: Network, form: Form, period: int | None = None) -> int:
    """Return ``period``, or the smallest legal one if it is None; raises :class:`Refused` for a smaller one.

    The stock form needs one step more: in it the last -theta arrives, which LIFReset then clears.
    """
    smallest = network.period + (form == "stock")
    if period is not None and period < smallest:
        raise refuse(
            "period",
            f"{period} steps are too few for the {form} form: samples would meet in a layer",
            f"give at least {smallest}",
        )
    return smallest if period is None else period


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
            if played.min() < SUPPRESSED or played.max() >= -SUPPRESSED:
                found.append(
                    Finding(
                        layer.name,
                        f"v0 + cumulative bias of {played.min()}..{played.max()} leaves the 16 "
                        "bits of Lava's bias_mant",
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


def vth(layer: Layer) -> int:
    """Threshold of the layer's LIF, su; Lava fires on a strict ``>``."""
    return NEVER if layer.kind == "readout" else layer.threshold - 1


def cycle(network: Network, layer: Layer, period: int, outside: int | None = None) -> np.ndarray:
    """Offset at every step of the layer's cycle, su (period, *shape): ``outside`` (v0 if None) around the window."""
    begin = network.phase[layer.name] - network.first_arrival(layer)
    rows = np.empty((period, *layer.shape), np.int64)
    rows[:] = layer.per_neuron(layer.v0) if outside is None else outside
    rows[begin : begin + network.timesteps] = layer.per_neuron(layer.offsets)
    return rows


def lead(network: Network) -> int:
    """Count the steps before the last layer starts its first cycle."""
    return max(network.first_arrival(layer) for layer in network.layers)
