"""The clock form: a file in which neurons bring the schedule, so that the host sends inputs and writes nothing.

A chain of dense layers becomes blocks that stock netx builds. Each spiking layer is a ``dense_rec`` whose population
holds relays beside the layer's neurons. They are integrate-and-fire neurons like all others of the block: a weight of
theta makes one fire in the next step, once, for it resets itself. Position j of a layer's chain fires at step
``phase - 1 + j`` of the semantics; its recurrent weights bring ``b[j]`` into u of the layer's neurons, and position T
takes off what shall keep them silent after the window. netx has no weight exponents, so that as many relays stand in a
position as its increments need weights of 7 bits. Position 0 starts the next layer's chain, and the last layer's
positions from 1 on bring the schedule of the readout. Position 0 of the first layer is started by one more input, a
pulse of 1 in the step before the payload comes.

Before the window nothing has arrived, as there is no hold-off, and v0 stays below theta. After it a layer is silent
exactly while v stays below theta + ``hold``.

What netx cannot build has the synapses of :mod:`sim.clock` in the file, for our own loader.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from exporters.netx.checks import check, check_storable, held_by_netx
from exporters.netx.content import (
    NETX,
    OURS,
    SYNAPSES,
    Content,
    in_order,
    integer,
    netx_type,
    neuron_content,
    sealed,
    under,
    whole,
)
from sim import stock
from sim.chip import Chip
from sim.clock import clock
from sim.findings import Finding, Refused
from sim.fixedpoint import RegisterOverflow, bounds
from sim.network import INPUT, Layer, Network
from sim.stock import Silence
from sim.trace import Trace

WEIGHT = 127  #: of a relay at most
RELAYS = 32  #: in a position, at most: as much as 13 bits of bias_mant could hold back


@dataclass(frozen=True, eq=False)
class Chain:
    """The relays beside the neurons of a spiking layer."""

    counts: tuple[int, ...]  #: relays in each position 0..T
    hold: int  #: su

    @property
    def size(self) -> int:
        """Number of relays."""
        return sum(self.counts)

    def at(self, position: int) -> slice:
        """Return the relays of a position, by number."""
        start = sum(self.counts[:position])
        return slice(start, start + self.counts[position])


def chains(network: Network) -> dict[str, Chain]:
    """Describe the relays of every spiking layer of a chain of dense layers."""
    found = {}
    for index, layer in enumerate(network.layers[:-1]):
        last = bounds(network, layer).outside + int(layer.offsets[-1].max())
        hold = min(max(last - layer.threshold + 1, 0), RELAYS * WEIGHT)
        brought = [[int(np.abs(row).max())] for row in layer.bias] + [[hold]]
        if index == len(network.layers) - 2:
            for position, row in enumerate(network.readout.bias, start=1):
                brought[position].append(int(np.abs(row).max()))
        found[layer.name] = Chain(tuple(max(1, -(-max(largest) // WEIGHT)) for largest in brought), hold)
    return found


def _split(values: np.ndarray, relays: int) -> np.ndarray:
    """Write increments (N,) as sums of so many weights, (N, relays)."""
    return (values[:, None].astype(np.int64) + np.arange(relays)) // relays


def matrices(network: Network) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return the weights of every block, (N + relays, sources), and its recurrent ones; None of the readout."""
    found: list[tuple[np.ndarray, np.ndarray | None]] = []
    every = chains(network)
    before: tuple[Layer, Chain] | None = None
    for layer in network.layers:
        weight = layer.edges[0].synapse.weight.astype(np.int64)
        columns = 1 if before is None else before[1].size  # the pulse, or the relays of the layer before
        chain = every.get(layer.name)
        rows = 0 if chain is None else chain.size
        full = np.zeros((layer.size + rows, weight.shape[1] + columns), np.int64)
        full[: layer.size, : weight.shape[1]] = weight
        relayed = full[:, weight.shape[1] :]
        if chain is None:
            assert before is not None
            for tau, row in enumerate(layer.bias):
                relayed[: layer.size, before[1].at(tau + 1)] = _split(row, before[1].counts[tau + 1])
            found.append((full, None))
            continue
        relayed[layer.size :, 0][chain.at(0)] = layer.threshold
        recurrent = -layer.threshold * np.eye(len(full), dtype=np.int64)
        own, relays = recurrent[: layer.size, layer.size :], recurrent[layer.size :, layer.size :]
        for position, count in enumerate(chain.counts):
            here = chain.at(position)
            brings = layer.bias[position] if position < network.timesteps else np.full(layer.size, -chain.hold)
            own[:, here] = _split(brings, count)
            if position < network.timesteps:
                relays[chain.at(position + 1), here.start] = layer.threshold
        found.append((full, recurrent))
        before = layer, chain
    return found


def obstacles(network: Network) -> list[Finding]:
    """List what keeps stock netx from building a network with its clock."""
    found = check(network)
    if len(network.layers) < 2:
        found.append(Finding("network", "no layer spikes", "there is nobody to relay a schedule"))
    for layer in network.layers:
        spiking = layer.kind == "spiking"
        if any(SYNAPSES[type(edge.synapse)].recurrent is None for edge in layer.edges):
            problem = "netx has recurrent synapses, which relays need, in dense layers alone"
            found.append(Finding(layer.name, problem, "our loader reads it"))
        if network.phase[layer.name] != network.first_arrival(layer):
            problem = "it has a hold-off, netx clears every layer one step after the layer before it"
            found.append(Finding(layer.name, problem, "our loader reads it"))
        if spiking and int(layer.v0.max()) >= layer.threshold:
            found.append(Finding(layer.name, "v0 reaches theta: it would fire at once", "our loader reads it"))
    if found:
        return found
    for layer, (weight, recurrent) in zip(network.layers, matrices(network), strict=True):
        both = [weight] if recurrent is None else [weight, recurrent]
        held = held_by_netx(*both)
        if held is None or held[1] > 8 or not all(map(np.array_equal, both, held[0])):
            problem = f"netx, or 8 bits, would change theta = {layer.threshold} or the weights beside it"
            found.append(Finding(layer.name, problem, "convert with --recipe stock"))
    return found


def held(network: Network) -> tuple[bool, dict[str, int]]:
    """Tell whether netx's blocks hold a network, and what keeps each layer silent, su, in u beside all else.

    That is in u of blocks after their window, and in ours inside it.
    """
    blocks = not obstacles(network)
    found = {name: chain.hold for name, chain in chains(network).items()} if blocks else clock(network).hold
    return blocks, {layer.name: found.get(layer.name, 0) for layer in network.layers}


def overflow(network: Network, exact: Trace, chip: Chip) -> RegisterOverflow | None:
    """Say where u or v leaves the registers of a clock form, by the trace of a run without them.

    In u stands what the host would write, too: ``v - v0``, and what :func:`held` says.
    """
    blocks, hold = held(network)
    for layer in network.layers:
        busy, kept = network.busy(layer), exact.potentials[layer.name].astype(np.int64)
        v0, begin = layer.per_neuron(layer.v0), network.phase[layer.name] - busy.start
        v = kept + layer.threshold * exact.spikes[layer.name].astype(np.int64)
        u, after = v - v0, kept[:, -1:] - v0
        if blocks:
            after -= hold[layer.name]
        else:
            u[:, begin:] += hold[layer.name]
        for register, first, values in (("v", busy.start, v), ("u", busy.start, u), ("u", busy.stop, after)):
            if len(places := np.argwhere(np.abs(values) >= chip.state_limit)):
                _, index, channel = map(int, places[0][:3])
                value = int(values[tuple(places[0])])
                return RegisterOverflow.of(layer.name, channel, first + index, register, value, chip)
    return None


def silent_below(network: Network) -> dict[str, int]:
    """Return the u of every spiking layer, su, from which it fires outside its window in spite of the clock."""
    blocks, hold = held(network)
    found = {}
    for layer in network.layers:
        if layer.kind == "spiking":
            # Before the window, where nothing has come into blocks, v0 is all that is added.
            added = int(layer.offsets[-1].max()) if blocks else max(int(layer.v0.max()), int(layer.offsets[-1].max()))
            found[layer.name] = layer.threshold + hold[layer.name] - added
    return found


def check_clock(network: Network) -> list[Finding]:
    """List everything that stops the clock form."""
    found = check_storable(network)
    if network.input.form != "payload":
        problem = f"inputs come as {network.input.form}, whose biases the host writes anyway"
        found.append(Finding(INPUT, problem, "convert with --input-form payload"))
    least = network.period + stock.AFTER["clock"]
    if network.reset_interval is not None and network.reset_interval < least:
        problem = f"{network.reset_interval} steps between samples"
        found.append(Finding("reset_interval", problem, f"give at least {least}: the last relays need them"))
    if not found:
        try:
            clock(network)
        except Refused as refused:
            found += refused.findings
    return found


def clock_content(network: Network) -> Content:
    """Describe a network with its clock, which :func:`check_clock` has passed."""
    if obstacles(network):
        return sealed(whole(network, OURS, "clock") | _ticks(network))
    blocks: list[Content] = [
        {"type": netx_type(b"input"), "shape": integer([network.layers[0].edges[0].synapse.weight.shape[1] + 1])}
    ]
    for layer, (weight, recurrent) in zip(network.layers, matrices(network), strict=True):
        bias = np.zeros(len(weight), np.int64)
        bias[: layer.size] = layer.v0
        block = {"shape": integer([len(weight)]), "type": netx_type(b"dense"), "weight": weight}
        block |= neuron_content(layer, Silence(0, 0)) | {"bias": bias}
        if recurrent is not None:
            block |= {"type": netx_type(b"dense_rec"), "weight_rec": recurrent}
        blocks.append(block)
    return sealed(whole(network, NETX, "clock") | in_order(blocks))


def _ticks(network: Network) -> Content:
    found = clock(network)
    content: Content = {"graph/@relays": integer(found.relays)}
    for index, layer in enumerate(network.layers):
        at = f"graph/layer/{index}/clock"
        content |= {f"{at}/@hold": integer(found.hold[layer.name]), f"{at}/bias": integer(found.bias[layer.name])}
        for number, ticks in enumerate(found.ticks[layer.name]):
            values = {
                "@first": integer(ticks.first),
                "@exponent": integer(ticks.exponent),
                "weight": integer(ticks.weight),
            }
            content |= under(f"{at}/{number}", values)
    return content
