"""What no network file may hold, and what stock netx would lose or corrupt."""

from __future__ import annotations

import math

from exporters.netx.content import GEOMETRY, TYPES
from sim.chip import LOIHI2
from sim.chip import check as check_chip
from sim.findings import Finding
from sim.network import INPUT, Conv2d, Dense, Layer, Network
from sim.stock import CONV_LIMIT

NEURON_LIMIT = 1_150_000_000  #: neurons of a network; Intel's largest Loihi 2 system, Hala Point, holds as many
STEP_LIMIT = 1 << 16  #: steps from the input to the answer, so that no file can ask an engine for days


def check(network: Network) -> list[Finding]:
    """List everything that stops :func:`exporters.netx.write`: also what stock netx would lose or corrupt."""
    found = check_storable(network)
    previous = INPUT
    for layer in network.layers:
        if len(layer.edges) > 1:
            found.append(
                Finding(
                    layer.name,
                    f"{len(layer.edges)} edges feed it, netx builds one synapse a layer",
                    "keep it with write_graph and run it with sim.on_lava",
                )
            )
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            if edge.source != previous:
                found.append(
                    Finding(
                        where,
                        f"netx feeds each layer from the one before it, here {previous!r}",
                        "keep it with write_graph and run it with sim.on_lava",
                    )
                )
            if edge.exponent:
                found.append(
                    Finding(
                        where,
                        f"weight exponent {edge.exponent}, netx reads none",
                        "rescale the layer so that it is 0, or keep it with write_graph",
                    )
                )
            found.extend(_check_synapse(where, layer, edge.synapse))
        previous = layer.name
    return found


def _check_synapse(where: str, layer: Layer, synapse: Dense | Conv2d) -> list[Finding]:
    found = []
    if type(synapse) is Dense:
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
    elif type(synapse) is Conv2d:
        numbers = {
            "kernel": synapse.weight.shape[2:],
            **{name: getattr(synapse, name) for name in GEOMETRY},
            "groups": (synapse.groups,),
        }
        found.extend(
            Finding(
                where,
                f"{name} {max(values)} is above {CONV_LIMIT}, the int8 of lava-nc's Conv",
                "split the layer, or keep it with write_graph",
            )
            for name, values in numbers.items()
            if max(values) > CONV_LIMIT
        )
    return found


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
            "known: Dense, Conv2d",
        )
        for layer in network.layers
        for edge in layer.edges
        if type(edge.synapse) not in TYPES.values()
    )
    if not (math.isfinite(network.input.scale) and network.input.scale > 0):
        found.append(Finding(INPUT, f"scale {network.input.scale}", "give a positive finite number"))
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
