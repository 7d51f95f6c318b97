"""Every limit of Loihi 2 that the toolchain knows, as data with its source, and the check against them.

Sources are named per field. "lava-nc" is version 0.10.0; its fixed-point LIF documents the register widths
(``lava/proc/lif/models.py``, class PyLifModelBitAcc), its weight utilities the legal weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.findings import Finding
from sim.network import INPUT, Network


@dataclass(frozen=True)
class Chip:
    """Limits of one target. A register holds su * 2**fraction_bits."""

    name: str
    weight_bits: int  #: signed, symmetric; lava-nc Dense/Conv declare 8 bit precision
    state_bits: int  #: signed u and v registers; lava-nc PyLifModelBitAcc: 24
    fraction_bits: int  #: synaptic input enters u shifted left by 6; lava-nc PyLifModelBitAcc
    threshold_bits: int  #: unsigned vth, compared after << 6; lava-nc PyLifModelBitAcc: 17
    bias_bits: int  #: signed bias_mant; lava-nc PyLifModelBitAcc: 13 (its CPU model stores 16)
    recurrent_weight: int  #: largest |w| of an all-negative synapse; lava-nc weightutils, INHIBITORY: 255
    weight_exponents: tuple[int, int]  #: smallest and largest; nengo-loihi 1.1 builder/validate.py: -7..7

    @property
    def weight_limit(self) -> int:
        """Largest magnitude of a weight, in su."""
        return (1 << (self.weight_bits - 1)) - 1

    @property
    def state_limit(self) -> int:
        """|v| and |u| must stay below it, in su."""
        return 1 << (self.state_bits - 1 - self.fraction_bits)

    @property
    def threshold_limit(self) -> int:
        """Largest theta, in su: vth = theta - 1 must fit, because Lava fires on a strict comparison."""
        return 1 << self.threshold_bits

    @property
    def bias_limit(self) -> int:
        """Largest magnitude of ``v0 + cumulative bias`` (bias exponent 6), in su."""
        return (1 << (self.bias_bits - 1)) - 1

    def recurrent(self, threshold: int) -> tuple[int, int] | None:
        """Write theta as ``weight * 2**exponent`` for the recurrent synapse; None where no legal pair exists."""
        exponent = 0
        while threshold > self.recurrent_weight and threshold % 2 == 0:
            threshold //= 2
            exponent += 1
        legal = threshold <= self.recurrent_weight and exponent <= self.weight_exponents[1]
        return (threshold, exponent) if legal else None


LOIHI2 = Chip(
    "Loihi 2",
    weight_bits=8,
    state_bits=24,
    fraction_bits=6,
    threshold_bits=17,
    bias_bits=13,
    recurrent_weight=255,
    weight_exponents=(-7, 7),
)


@dataclass(frozen=True)
class InFile(Chip):
    """Limits of a chip whose recurrent synapses stand in a netx file, as ``dense_rec``."""

    def recurrent(self, threshold: int) -> tuple[int, int] | None:
        """Write theta as a weight that netx keeps whatever stands beside it: it has no exponent for it.

        It shifts a power of two that is the largest weight to 256, which is clipped (lava-dl 0.6.0 netx/utils.py,
        lava-nc weightutils).
        """
        legal = threshold <= self.recurrent_weight and threshold.bit_count() > 1
        return (threshold, 0) if legal else None


#: Loihi 2, for files that lava-dl's loader builds all by itself; above 127 all weights beside theta must be even.
NETX = InFile(**{**vars(LOIHI2), "name": "Loihi 2 by dense_rec", "recurrent_weight": 127})

#: No chip: registers so wide that an integer network follows the float one. It separates what quantisation costs
#: from what spiking costs; int32 arrays and exact float64 sums bound it.
WIDE = Chip(
    "wide registers",
    weight_bits=20,
    state_bits=50,
    fraction_bits=6,
    threshold_bits=30,
    bias_bits=31,
    recurrent_weight=1 << 30,
    weight_exponents=(-7, 7),
)

CHIPS = {"loihi2": LOIHI2, "netx": NETX, "wide": WIDE}


def check(network: Network, chip: Chip = LOIHI2) -> list[Finding]:
    """List every value of ``network`` that ``chip`` cannot hold; an empty list means that it is deployable.

    What depends on the data, the potentials, is checked where they arise: see :mod:`sim.fixedpoint`.
    """
    found: list[Finding] = []

    def limit(where: str, what: str, values: np.ndarray | int, low: int, high: int, remedy: str) -> None:
        smallest, largest = int(np.min(values)), int(np.max(values))
        if smallest < low or largest > high:
            worst = smallest if low - smallest > largest - high else largest
            found.append(Finding(where, f"{what} {worst} is outside {low}..{high} ({chip.name})", remedy))

    for layer in network.layers:
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            limit(
                where,
                "weight",
                edge.synapse.weight,
                -chip.weight_limit,
                chip.weight_limit,
                "convert again with fewer weight bits",
            )
            limit(where, "weight exponent", edge.exponent, *chip.weight_exponents, "rescale the layer")
        limit(
            layer.name,
            "v0 + cumulative bias",
            np.append(layer.offsets, layer.v0),
            -chip.bias_limit,
            chip.bias_limit,
            "lower the layer's threshold: biases shrink with it",
        )
        if layer.kind == "readout":
            continue
        limit(layer.name, "threshold", layer.threshold, 1, chip.threshold_limit, "lower the layer's integer threshold")
        if layer.threshold <= chip.threshold_limit and chip.recurrent(layer.threshold) is None:
            found.append(
                Finding(
                    layer.name,
                    f"threshold {layer.threshold} is not a recurrent weight "
                    f"(w * 2**e, w <= {chip.recurrent_weight}) on {chip.name}",
                    "round it to a multiple of a power of two",
                )
            )
    if network.input.bits > chip.state_bits:
        found.append(Finding(INPUT, f"{network.input.bits} bits", f"payloads hold {chip.state_bits} on {chip.name}"))
    return found
