"""What no network file may hold, and what stock netx would lose or corrupt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from exporters.netx.content import SYNAPSES, recurrent
from sim import stock
from sim.chip import LOIHI2, Chip
from sim.chip import check as check_chip
from sim.findings import Finding
from sim.fixedpoint import Policy
from sim.network import INPUT, Conv2d, Dense, Layer, Network, SynapseTable

NEURON_LIMIT = 1_150_000_000  #: neurons of a network; Intel's largest Loihi 2 system, Hala Point, holds as many
STEP_LIMIT = 1 << 16  #: steps from the input to the answer, so that no file can ask an engine for days

#: The way out for what stock netx cannot build.
KEPT = "write it in the form 'graph' (`ann2loihi export --form graph`), which ann2loihi loads"


def check(network: Network) -> list[Finding]:
    """List everything that stops :func:`exporters.netx.write`: also what stock netx would lose or corrupt."""
    found = check_storable(network)
    previous = INPUT
    if network.input.form == "currents":
        problem = "its payloads come as biases of layers that netx builds with synapses from it"
        remedy = f"convert with --input-form spikes or payload, or {KEPT}"
        found.append(Finding(INPUT, problem, remedy))
    for index, layer in enumerate(network.layers):
        if index == 0 and not network.on_chip(layer):
            previous = layer.name
            continue
        if len(layer.edges) > 1:
            found.append(
                Finding(
                    layer.name,
                    f"{len(layer.edges)} edges feed it, netx builds one synapse a layer",
                    KEPT,
                )
            )
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            if edge.source != previous:
                found.append(
                    Finding(
                        where,
                        f"netx feeds each layer from the one before it, here {previous!r}",
                        KEPT,
                    )
                )
            if edge.exponent:
                found.append(
                    Finding(
                        where,
                        f"weight exponent {edge.exponent}, netx reads none",
                        f"rescale the layer so that it is 0, or {KEPT}",
                    )
                )
            if type(edge.synapse) in SYNAPSES:  # others have been found already
                found.extend(CHECKS[type(edge.synapse)](where, layer, edge.synapse))
        previous = layer.name
    return found


def _check_dense(where: str, layer: Layer, synapse: Dense) -> list[Finding]:
    found = []
    largest, smallest = int(synapse.weight.max()), int(synapse.weight.min())
    if len(layer.shape) == 3:
        found.append(
            Finding(
                where,
                f"a dense layer of shape {layer.shape}, netx builds them flat",
                f"give it the shape ({layer.size},)",
            )
        )
    if largest == smallest == 0:
        found.append(
            Finding(
                where,
                "every weight is 0, on which netx fails (OverflowError)",
                "remove the layer or give it a larger threshold, which scales its weights up",
            )
        )
    # netx shifts such a matrix to -256, where lava-nc clips all-negative weights at -255 and truncates the rest.
    elif largest <= 0 and (-smallest).bit_count() == 1:
        found.append(
            Finding(
                where,
                f"no weight is positive and the lowest is {smallest}, minus a power of two: "
                "netx would change the weights",
                "make one weight positive, or the lowest no power of two",
            )
        )
    return found


def _check_conv2d(where: str, layer: Layer, synapse: Conv2d) -> list[Finding]:
    numbers = {"kernel": synapse.weight.shape[2:], **synapse.geometry._asdict()}
    return [
        Finding(
            where,
            f"{name} {np.max(value)} is above {stock.CONV_LIMIT}, the int8 of lava-nc's Conv",
            f"split the layer, or {KEPT}",
        )
        for name, value in numbers.items()
        if np.max(value) > stock.CONV_LIMIT
    ]


#: (where, layer, synapse) -> what netx would lose or corrupt of it
CHECKS = SynapseTable[Callable[[str, Layer, Any], list[Finding]]]({Dense: _check_dense, Conv2d: _check_conv2d})


def held_by_netx(*matrices: np.ndarray) -> tuple[list[np.ndarray], int] | None:
    """Return what Lava computes with, float64, of dense matrices that netx shifts together, and its bits a weight.

    None where netx fails because all are 0. Beside each other stand the weights of a block and its recurrent ones.
    """
    together = np.concatenate([matrix.ravel() for matrix in matrices])
    low, high = int(together.min()), int(together.max())
    if low == high == 0:
        return None
    if low < 0 < high:
        matrices = tuple(np.clip(matrix, -256, 254) for matrix in matrices)
        together = np.clip(together, -256, 254)
        low, high = max(low, -256), min(high, 254)
    mixed = low < 0 <= high
    scale = min(127 / high if high else math.inf, 128 / -low) if mixed else 255 / high if low >= 0 else 256 / -low
    shift = math.floor(math.log2(scale)) + mixed
    even = next(n for n in range(8, -1, -1) if n == 0 or not (together % (1 << n)).any()) - mixed
    bits = 8 - shift - even
    return [_held(matrix, shift, bits) for matrix in matrices], bits


def _held(matrix: np.ndarray, shift: int, bits: int) -> np.ndarray:
    if shift < 0:  # NumPy makes 0 of a shift by less than nothing
        return np.zeros(matrix.shape)
    shifted = matrix << shift
    low, high = int(shifted.min()), int(shifted.max())
    dropped = 8 - bits + (low < 0 < high)
    sign = -1 if low < 0 and high <= 0 else 1
    clipped = np.clip(sign * shifted, -256 if low < 0 < high else 0, 255)
    kept = (clipped >> dropped) << dropped if dropped >= 0 else clipped * 0
    return sign * kept / 2.0**shift


def check_recurrent(network: Network) -> list[Finding]:
    """List everything that stops the form in which the file itself holds the reset: netx's ``dense_rec``."""
    found = check(network)
    if network.input.form != "payload":
        problem = "input neurons that reset themselves, which the input blocks of netx cannot"
        found.append(Finding(INPUT, problem, "use the form 'netx', or convert with --input-form payload"))
    for layer in network.layers:
        if network.phase[layer.name] != network.first_arrival(layer):
            problem = "it has a hold-off, netx clears every layer one step after the layer before it"
            found.append(Finding(layer.name, problem, "convert with hold-off 0"))
        for edge in layer.edges:
            form = SYNAPSES.get(type(edge.synapse))
            if form is None or form.recurrent is None:
                problem = f"{type(edge.synapse).__name__}, netx has recurrent synapses in dense layers alone"
                found.append(Finding(f"{layer.name} <- {edge.source}", problem, "use the form 'netx'"))
            elif layer.kind == "spiking" and not holds_reset(edge.synapse.weight, layer.threshold):
                problem = f"netx, or 8 bits, would change theta = {layer.threshold} or the weights beside it"
                remedy = "up to 127 and no power of two it always holds: convert with chip='netx'"
                found.append(Finding(layer.name, problem, remedy))
    return found


def holds_reset(weight: np.ndarray, theta: int) -> bool:
    """Tell whether netx's ``dense_rec`` keeps weights (N, ...) and a recurrent -theta, which it shifts together."""
    matrices = (weight.astype(np.int64), recurrent(theta, len(weight)))
    held = held_by_netx(*matrices)
    return held is not None and held[1] <= 8 and all(map(np.array_equal, matrices, held[0]))


def check_storable(network: Network) -> list[Finding]:
    """List what neither form of file may hold. Reading checks it too: it accepts what was accepted for writing."""
    found = check_chip(network)
    found.extend(
        Finding(f"layer {layer.name!a}", "the name is empty, unprintable or above 255 bytes", "rename it")
        for layer in network.layers
        if not (layer.name.isprintable() and 0 < len(layer.name.encode(errors="replace")) < 256)
    )
    found.extend(
        Finding(
            f"{layer.name} <- {edge.source}",
            f"{type(edge.synapse).__name__} is not a synapse of the format",
            f"known: {', '.join(kind.__name__ for kind in SYNAPSES)}",
        )
        for layer in network.layers
        for edge in layer.edges
        if type(edge.synapse) not in SYNAPSES
    )
    if not 0 <= network.readout.threshold <= LOIHI2.threshold_limit:
        found.append(Finding(network.readout.name, f"threshold {network.readout.threshold} of a readout", "give 0"))
    neurons = math.prod(network.input.shape) + sum(layer.size for layer in network.layers)
    if neurons > NEURON_LIMIT:
        found.append(Finding("layers", f"{neurons} neurons, above {NEURON_LIMIT}", "use a smaller network"))
    if network.steps > STEP_LIMIT:
        found.append(
            Finding(
                "timesteps",
                f"{network.steps} steps until the answer, above {STEP_LIMIT}",
                "use fewer timesteps or a smaller hold-off",
            )
        )
    return found


def inexact(network: Network, payload: np.ndarray, chip: Chip = LOIHI2, overflow: Policy = "strict") -> list[Finding]:
    """List what a ``.net`` of ``network``, as netx builds it, would compute wrongly on ``payload``."""
    from sim.inputs import inexact as inexact_input  # torch loads where something runs

    found = inexact_input(network, payload, "stock", chip, overflow)
    first = network.layers[0]
    if not network.on_chip(first):
        return found
    (edge,) = first.edges
    # netx shifts a dense matrix up to 8 bits and a sign, and Lava sums in int32. Conv is held to fewer bits anyway.
    largest = 256 * edge.synapse.weight[0].size * int(np.abs(payload).max(initial=0))
    if not stock.by_conv(edge) and largest >= 1 << 31:
        found.append(Finding(first.name, f"sums of up to {largest} leave 32 bits in netx", "use fewer payload bits"))
    return found
