"""Which cores a network takes: every layer is cut into equal tiles, one a core, so that it takes as few as possible.

A layer of (C, H, W) is cut as the compiler's tables show: columns into tiles of 2**k, rows and channels in halves; a
layer of (N,) into any number of parts. No two layers share a core. Layers are placed from the last to the first,
because what a core sends depends on how its readers are cut. Of cuts into as few cores that with the fewest parts of
channels is taken, for every part is sent every spike; then that with the fewest words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from exporters.placement.load import LayerLoad, SynapseLoad, Tile, loads
from exporters.placement.published import CORES, Cores
from exporters.report import Fit, FitRow
from sim.arguments import checked
from sim.clock import clock
from sim.findings import refuse
from sim.network import Network

SCHEDULES = ("written", "clock")  #: who brings the biases
Readers = Sequence[tuple[SynapseLoad, int]]  #: what leads out of a layer, and into how many parts of channels


@dataclass(frozen=True)
class Words:
    """What a core holds, in words of 64 bit; a neuron takes one."""

    neurons: int
    synapses: int
    axon_in: int
    axon_map: int
    axon_mem: int

    @property
    def total(self) -> int:
        """All words."""
        return self.neurons + self.synapses + self.axon_in + self.axon_map + self.axon_mem

    def shares(self, cores: Cores) -> dict[str, float]:
        """How full each part of a core is, 1.0 being full; AxonMem has no limit of its own."""
        return {name: getattr(self, name) / getattr(cores, name) for name in BOUND}


BOUND = ("neurons", "synapses", "axon_in", "axon_map", "total")  #: what a core has a limit for


@dataclass(frozen=True)
class Placed:
    """A layer on its cores; they are numbered in the order of channels, rows, columns."""

    load: LayerLoad
    tile: Tile
    words: Words  #: of its fullest core
    fits: bool  #: whether they are within the limits
    first: int = 0  #: number of its first core

    @property
    def grid(self) -> tuple[int, int, int]:
        """Into how many parts channels, rows and columns are cut."""
        channels, rows, columns = self.load.extent
        tile = self.tile
        return (-(-channels // tile.channels), -(-rows // tile.rows), -(-columns // tile.columns))

    @property
    def cores(self) -> int:
        """Number of cores."""
        return math.prod(self.grid)


def place(layers: Sequence[LayerLoad], cores: Cores) -> dict[str, Placed]:
    """Place every layer, by name; layers are in topological order, and cores are numbered in it."""
    readers: dict[str, list[tuple[SynapseLoad, int]]] = {layer.name: [] for layer in layers}
    found: dict[str, Placed] = {}
    for layer in reversed(layers):
        for own in (synapse for synapse in layer.synapses if synapse.source == layer.name):
            readers[layer.name].append((own, 1))  # a core resets its own neurons
        found[layer.name] = placed = _place(layer, readers[layer.name], cores)
        for synapse in layer.synapses:
            if synapse.source in readers and synapse.source != layer.name:
                readers[synapse.source].append((synapse, placed.grid[0]))
    first, numbered = 0, {}
    for layer in layers:
        numbered[layer.name] = replace(found[layer.name], first=first)
        first += found[layer.name].cores
    return numbered


def _place(layer: LayerLoad, readers: Readers, cores: Cores) -> Placed:
    cuts = [_cut(layer, tile, readers, cores) for tile in _tiles(layer) if tile.neurons <= cores.neurons]
    fitting = [placed for placed in cuts if placed.fits]
    return min(fitting, key=lambda placed: (placed.cores, placed.grid[0], placed.words.total)) if fitting else cuts[-1]


def _cut(layer: LayerLoad, tile: Tile, readers: Readers, cores: Cores) -> Placed:
    words = _words(layer, tile, readers, cores)
    return Placed(layer, tile, words, fits=max(words.shares(cores).values()) <= 1)


def _tiles(layer: LayerLoad) -> Iterator[Tile]:
    """Every way to cut a layer, the smallest tile last."""
    channels, rows, columns = layer.extent
    if len(layer.shape) == 1:
        yield from (Tile(size) for size in sorted({-(-channels // k) for k in range(1, channels + 1)}, reverse=True))
        return
    for exponent in range((columns - 1).bit_length(), -1, -1):
        for height in _halves(rows):
            yield from (Tile(depth, height, 1 << exponent) for depth in _halves(channels))


def _halves(size: int) -> list[int]:
    """Halve a size as long as it is even; one is possible too, for what fits no core otherwise."""
    found = [size]
    while found[-1] % 2 == 0:
        found.append(found[-1] // 2)
    return found if found[-1] == 1 else [*found, 1]


def _words(layer: LayerLoad, tile: Tile, readers: Readers, cores: Cores) -> Words:
    out = [synapse.axons_out(tile, splits, cores) for synapse, splits in readers]
    return Words(
        tile.neurons,
        sum(synapse.words(tile, cores) for synapse in layer.synapses),
        sum(synapse.axons_in(tile, cores) for synapse in layer.synapses) or 1,
        sum(axons for axons, _ in out) if readers else tile.neurons,  # as the tables count them
        sum(memory for _, memory in out),
    )


@checked
def fit(network: Network, chip: str = "loihi2", *, schedule: str = "written") -> Fit:
    """Say which cores a network takes in its stock form, what fills them, and what to change.

    ``schedule`` is "written" by the host, which takes none, or brought by a "clock" (:mod:`sim.clock`). Raises
    :class:`Refused` for another one, and for a chip whose cores are not known.
    """
    if schedule not in SCHEDULES:
        raise refuse("schedule", f"{schedule!r} is unknown", f"use {' or '.join(map(repr, SCHEDULES))}")
    cores = known(chip)
    return summed(loads(network, cores, clock(network) if schedule == "clock" else None), cores)


def known(chip: str) -> Cores:
    """Return the cores of a chip; raises :class:`Refused` where they are not known."""
    if chip not in CORES:
        raise refuse("chip", f"the cores of {chip!r} are not known", f"use {', '.join(CORES)}")
    return CORES[chip]


def summed(layers: Sequence[LayerLoad], cores: Cores) -> Fit:
    """Place layers and sum up what they take."""
    rows = [_row(layer, cores) for layer in place(layers, cores).values()]
    counts = [row.cores for row in rows]
    total = None if None in counts else sum(count or 0 for count in counts)
    return Fit(
        chip=cores.name,
        cores=total,
        chips=None if total is None else -(-total // cores.per_chip),
        neurons=sum(layer.size for layer in layers),
        layers=tuple(rows),
    )


def _row(placed: Placed, cores: Cores) -> FitRow:
    words, shares = placed.words, placed.words.shares(cores)
    bottleneck = max(BOUND, key=shares.__getitem__)
    layer, tile = placed.load, placed.tile
    return FitRow(
        name=layer.name,
        shape=layer.shape,
        tile=(tile.channels, tile.rows, tile.columns)[: len(layer.shape)],
        cores=placed.cores if placed.fits else None,
        neurons=words.neurons,
        synapses=words.synapses,
        axon_in=words.axon_in,
        axon_map=words.axon_map,
        axon_mem=words.axon_mem,
        total=words.total,
        bottleneck=bottleneck,
        share=100 * shares[bottleneck],
        remedy=None if placed.fits and placed.cores == 1 else _remedy(placed, bottleneck, cores),
    )


def _remedy(placed: Placed, bottleneck: str, cores: Cores) -> str:
    """Say what would take fewer cores, or any at all."""
    layer = placed.load
    if not placed.fits:
        return "use fewer inputs: a pooling or a stride before it"
    if bottleneck == "neurons":
        channels, *space = layer.shape
        for fewer in range(channels - 1, channels * 3 // 4, -1) if space else ():
            other = _place(LayerLoad(layer.name, (fewer, *space)), (), cores)
            if other.cores < placed.cores:
                taken = f"{other.cores} core" + "s" * (other.cores > 1)
                return f"{fewer} channels instead of {channels} would take {taken}; or use a stride before it"
        return "use fewer neurons: fewer channels, or a stride before it" if space else "use fewer neurons"
    for bits in reversed(cores.weight_bits):
        narrower = tuple(
            synapse if synapse.source == layer.name else replace(synapse, bits=min(synapse.bits, bits))
            for synapse in layer.synapses
        )
        other = _place(replace(layer, synapses=narrower), (), cores)
        if other.fits and other.cores < placed.cores:
            count = f"{other.cores} core" + "s" * (other.cores > 1)
            return f"weights of {bits} bits would take {count}; or use fewer inputs, or fewer outputs"
    return "use fewer inputs, or fewer outputs"
