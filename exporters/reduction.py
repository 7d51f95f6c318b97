"""Where two engines differ, the smallest network and input on which they still do (delta debugging, as Zeller and
Hildebrandt, 2002, doi:10.1109/32.988498).

Each of ``REDUCERS`` proposes smaller cases; the first on which the engines still differ takes the place of the case,
until none of them has one. What they differ in may change on the way: any difference of the same two engines counts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from exporters import bundle
from exporters import engines as known
from exporters.engines import run, verify
from sim.arguments import checked
from sim.chip import LOIHI2, Chip
from sim.findings import Refused, refuse
from sim.fixedpoint import RegisterOverflow
from sim.network import INPUT, Conv2d, Dense, Edge, Input, InputForm, Layer, Network, Shape, Synapse, SynapseTable
from sim.progress import counting
from sim.trace import Difference

TRIES = 1000  #: cases that are run, at most
Kept = Mapping[str, np.ndarray]  #: by source: the channels that stay, in order


@dataclass(frozen=True, eq=False)
class Reduction:
    """What :func:`reduce` found."""

    network: Network
    payload: np.ndarray  #: (B, *input.shape), int32
    difference: Difference  #: between the two engines, on the reduced case
    tries: int  #: cases that were run

    @property
    def summary(self) -> str:
        """Say what is left, and what it shows."""
        network = self.network
        neurons = sum(layer.size for layer in network.layers)
        found = [f"{len(network.layers)} layers", f"{neurons} neurons", f"T = {network.timesteps}"]
        sizes = ", ".join((*found, f"{len(self.payload)} samples"))
        return f"{' and '.join(self.difference.engines)} differ on {sizes}: {self.difference}"

    @checked
    def save(self, directory: str | Path) -> None:
        """Write a bundle with its inputs, which ``ann2loihi verify DIRECTORY`` runs; as :func:`exporters.bundle.save`.

        What there is of other bundles in the directory is replaced, nothing else.
        """
        kept = {"task": "auto", "engines": list(self.difference.engines), "difference": str(self.difference)}
        bundle.save(
            directory,
            self.network,
            config=kept,
            provenance=bundle.provenance(
                seed=None, sha256={"inputs": bundle.digest({"x": self.payload})}, processor={}
            ),
            inputs=self.payload,
        )


@dataclass(frozen=True, eq=False)
class _Case:
    """A network and payloads, and what two engines differ in on them."""

    network: Network
    payload: np.ndarray
    difference: Difference


Proposal = tuple[Network, np.ndarray]


@checked
def reduce(
    network: Network,
    payload: np.ndarray,
    engines: Sequence[str] | None = None,
    *,
    chip: Chip = LOIHI2,
    inputs: InputForm | None = None,
    device: str = "cpu",
    tries: int = TRIES,
) -> Reduction:
    """Find the smallest network and payloads that still show what engines of these names disagree in.

    The arguments are those of :func:`exporters.engines.verify`, whose first difference is followed. ``tries`` bounds
    the cases that are run. Deterministic where the engines are. Raises :class:`Refused` where nothing differs.
    """
    if tries < 1:
        raise refuse("tries", f"{tries}", "give at least 1")
    if inputs is not None:
        network = replace(network, input=replace(network.input, form=inputs))
    payload = network.payload(payload)
    found = verify(network, payload, engines, chip=chip, device=device).difference
    if found is None:
        raise refuse("engines", "they agree on these inputs", "there is nothing to reduce")
    # What the host does with a model's inputs is no engine's part: from here on they are payloads.
    source = Input(network.input.shape, network.input.bits, network.input.signed, form=network.input.form)
    device = device if any(known.ENGINES[name].batched for name in found.engines) else "cpu"
    search = _Search(found.engines, chip, device, tries)
    case = search.smallest(_Case(replace(network, input=source, output=None), payload, found))
    return Reduction(case.network, case.payload, case.difference, search.tried)


@dataclass
class _Search:
    engines: tuple[str, str]
    chip: Chip
    device: str
    limit: int
    tried: int = 0

    def smallest(self, case: _Case) -> _Case:
        """Apply the reducers in turn until none of them has a smaller case."""
        idle, turns = 0, itertools.cycle(REDUCERS)
        with counting("reducing", self.limit) as advance:
            while idle < len(REDUCERS):
                reducer, idle = next(turns), idle + 1
                while (smaller := self._first(reducer(case, self), advance)) is not None:
                    case, idle = smaller, 0
        return case

    def _first(self, proposals: Iterator[Callable[[], Proposal]], advance: Callable[[int], None]) -> _Case | None:
        """Return the first proposal on which the engines still differ."""
        for proposal in itertools.takewhile(lambda _: self.tried < self.limit, proposals):
            try:
                network, payload = proposal()
                self.tried += 1
                advance(1)
                difference = verify(network, payload, list(self.engines), chip=self.chip, device=self.device).difference
            except (Refused, RegisterOverflow):  # no network, or none that both engines run
                continue
            if difference is not None:
                return _Case(network, payload, difference)
        return None


# ---- reducers: (case, search) -> proposals, the boldest first -------------------------------------------------------


def _samples(case: _Case, search: _Search) -> Iterator[Callable[[], Proposal]]:
    """Take the sample that differs alone, or else halves of them."""
    count = len(case.payload)
    places = [slice(case.difference.sample, case.difference.sample + 1), slice(count // 2), slice(count // 2, None)]
    for place in places if count > 1 else []:
        yield partial(_with, case, case.payload[place])


def _after(case: _Case, search: _Search) -> Iterator[Callable[[], Proposal]]:
    """Leave off what the layer that differs does not depend on; a neuron of weight 1 reads it out."""
    network = case.network
    layer = network[case.difference.layer]
    before = _before(network, layer.name)
    layers = tuple(one for one in network.layers if one.name in before or one.name == layer.name)
    if layer.kind == "spiking":
        steps = np.zeros((network.timesteps, 1), int)
        edge = Edge(layer.name, Dense(np.ones((1, layer.size), int)))
        layers = (*layers, Layer(_unused(network), (1,), (edge,), 0, steps[0], steps, "readout"))
    if len(layers) < len(network.layers):
        yield partial(_with, case, layers=layers)


def _ahead(case: _Case, search: _Search) -> Iterator[Callable[[], Proposal]]:
    """Let a layer's spikes be the input, and leave off all that leads to it."""
    network, last = case.network, case.difference.layer
    for source in reversed([layer for layer in network.layers if layer.name in _before(network, last)]):
        behind = {source.name}
        for layer in network.layers:
            behind |= {layer.name} if any(edge.source in behind for edge in layer.edges) else set()
        layers = tuple(
            replace(layer, edges=tuple(_renamed(edge, source.name) for edge in layer.edges if edge.source in behind))
            for layer in network.layers
            if layer.name in behind - {source.name}
        )
        for counts in (True, False):
            yield partial(_driven, case, search, source, layers, counts)


def _driven(case: _Case, search: _Search, source: Layer, layers: tuple[Layer, ...], counts: bool) -> Proposal:
    """Give the spikes of a layer to those that read the input: how many of each neuron, or whether there are any."""
    network = case.network
    spikes = run(search.engines[0], network, case.payload, chip=search.chip).spikes[source.name]
    payload = spikes.sum(1, dtype=np.int64) if counts else spikes.any(1).astype(np.int64)
    return _with(case, payload, input=Input(source.shape, network.timesteps.bit_length(), False), layers=layers)


def _renamed(edge: Edge, source: str) -> Edge:
    return replace(edge, source=INPUT) if edge.source == source else edge


def _edges(case: _Case, search: _Search) -> Iterator[Callable[[], Proposal]]:
    """Leave off an edge of several, and then what nobody reads."""
    for layer in case.network.layers:
        for edge in layer.edges if len(layer.edges) > 1 else ():
            rest = replace(layer, edges=tuple(other for other in layer.edges if other is not edge))
            yield partial(_with, case, layers=_read(_changed(case.network, rest)))


def _steps(case: _Case, search: _Search) -> Iterator[Callable[[], Proposal]]:
    """Take fewer steps, no hold-off, and the shortest interval."""
    network = case.network
    if network.reset_interval is not None:
        yield partial(_with, case, reset_interval=None)
    for steps in _less(network.timesteps):
        layers = tuple(replace(layer, bias=layer.bias[:steps]) for layer in network.layers)
        yield partial(_with, case, layers=layers, timesteps=steps)
    layers = tuple(replace(layer, holdoff=None) for layer in network.layers)
    if network.holdoff or layers != network.layers:
        yield partial(_with, case, layers=layers, holdoff=0)


def _channels(case: _Case, search: _Search) -> Iterator[Callable[[], Proposal]]:
    """Take some of a layer's channels, or of the input's: one, a half, then all but ever smaller parts."""
    network, difference = case.network, case.difference
    for names in _bound(network):
        sizes = {name: network.shape_of(name)[0] for name in names}
        units = math.gcd(*sizes.values(), *_groups(network, names))
        everything = range(units)
        parts = [everything[:1], everything[: units // 2], everything[units // 2 :]]
        if difference.layer in names:
            unit = difference.neuron[0] * units // sizes[difference.layer]
            parts.insert(0, everything[unit : unit + 1])
        chosen = list(map(set, parts))
        for size in reversed(_less(units)):
            chosen += [{*everything} - {*everything[start : start + size]} for start in range(0, units, size)]
        for part in chosen:
            if 0 < len(part) < units:
                kept = {name: np.arange(n).reshape(units, -1)[sorted(part)].ravel() for name, n in sizes.items()}
                yield partial(_sliced, case, kept)


def _space(case: _Case, search: _Search) -> Iterator[Callable[[], Proposal]]:
    """Take the upper left part of the input."""
    network = case.network
    if len(network.input.shape) == 3:
        _, height, width = network.input.shape
        sizes = [*((h, width) for h in _less(height)), *((height, w) for w in _less(width))]
        for size in sizes:
            yield partial(_cropped, case, size)


def _constants(case: _Case, search: _Search) -> Iterator[Callable[[], Proposal]]:
    """Leave off biases and initial potentials."""
    for layer in case.network.layers:
        for name in ("bias", "v0"):
            if getattr(layer, name).any():
                rest = replace(layer, **{name: 0 * getattr(layer, name)})
                yield partial(_with, case, layers=_changed(case.network, rest))


Reducer = Callable[[_Case, _Search], Iterator[Callable[[], Proposal]]]
REDUCERS: tuple[Reducer, ...] = (_samples, _after, _ahead, _edges, _steps, _channels, _space, _constants)


# ---- what they do to a network --------------------------------------------------------------------------------------


def _less(number: int) -> list[int]:
    """Numbers below one, from 1 in powers of two, and the next."""
    return sorted({1 << power for power in range((number - 1).bit_length())} | ({number - 1} if number > 1 else set()))


def _before(network: Network, name: str) -> set[str]:
    """Names of all layers that a layer depends on."""
    found: set[str] = set()
    for layer in reversed(network.layers):
        if layer.name == name or layer.name in found:
            found |= {edge.source for edge in layer.edges} - {INPUT}
    return found


def _with(case: _Case, payload: np.ndarray | None = None, **changes: Any) -> Proposal:
    return replace(case.network, **changes), case.payload if payload is None else payload


def _read(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """Leave off layers that lead nowhere."""
    read: set[str] = set()
    for layer in reversed(layers):
        if layer.kind == "readout" or layer.name in read:
            read |= {edge.source for edge in layer.edges}
    return tuple(layer for layer in layers if layer.kind == "readout" or layer.name in read)


def _unused(network: Network) -> str:
    name = "readout"
    while any(layer.name == name for layer in network.layers):
        name += "_"
    return name


def _changed(network: Network, layer: Layer) -> tuple[Layer, ...]:
    return tuple(layer if other.name == layer.name else other for other in network.layers)


def _groups(network: Network, names: set[str]) -> list[int]:
    """Return the groups of the convolutions into layers of these names, where there are several."""
    found = (LEFT[type(edge.synapse)].groups(edge.synapse) for name in names - {INPUT} for edge in network[name].edges)
    return [groups for groups in found if groups > 1]


def _bound(network: Network) -> list[set[str]]:
    """Return sets of sources whose channels go together, because groups of a convolution bind them."""
    sets = {name: {name} for name in (INPUT, *(layer.name for layer in network.layers))}
    for layer in network.layers:
        for edge in layer.edges:
            if LEFT[type(edge.synapse)].groups(edge.synapse) > 1:
                joined = sets[layer.name] | sets[edge.source]
                sets |= dict.fromkeys(joined, joined)
    return list({id(found): found for found in sets.values()}.values())


def _sliced(case: _Case, kept: Kept) -> Proposal:
    """Keep some channels of some sources."""
    network = case.network
    layers = []
    for layer in network.layers:
        own = kept.get(layer.name, np.arange(layer.shape[0]))
        edges = []
        for edge in layer.edges:
            shape = network.shape_of(edge.source)
            taken = kept.get(edge.source, np.arange(shape[0]))
            form = LEFT[type(edge.synapse)]
            edges.append(replace(edge, synapse=form.channels(edge.synapse, shape, layer.shape, taken, own)))
        shape = (len(own), *layer.shape[1:])
        layers.append(replace(layer, shape=shape, edges=tuple(edges), v0=layer.v0[own], bias=layer.bias[:, own]))
    taken = kept.get(INPUT, np.arange(network.input.shape[0]))
    source = replace(network.input, shape=(len(taken), *network.input.shape[1:]))
    return _with(case, case.payload[:, taken], input=source, layers=tuple(layers))


def _cropped(case: _Case, size: tuple[int, int]) -> Proposal:
    """Keep a part of the input's rows and columns, and of all that is computed from them."""
    network = case.network
    shapes: dict[str, Shape] = {INPUT: (network.input.shape[0], *size)}
    layers = []
    for layer in network.layers:
        sources = [(edge, network.shape_of(edge.source), shapes[edge.source]) for edge in layer.edges]
        made = [LEFT[type(edge.synapse)].size(edge.synapse, new) for edge, _, new in sources]
        shape = next((shape for shape in made if shape is not None), layer.shape)
        edges = tuple(
            replace(edge, synapse=LEFT[type(edge.synapse)].space(edge.synapse, old, new, layer.shape, shape))
            for edge, old, new in sources
        )
        shapes[layer.name] = shape
        bias = layer.bias if layer.bias.ndim < 4 else layer.bias[:, :, : shape[1], : shape[2]]
        layers.append(replace(layer, shape=shape, edges=edges, bias=bias))
    source = replace(network.input, shape=shapes[INPUT])
    return _with(case, case.payload[:, :, : size[0], : size[1]], input=source, layers=tuple(layers))


@dataclass(frozen=True)
class Left:
    """What is left of one type of synapse."""

    groups: Callable[[Any], int]  #: (synapse) -> that bind channels of the source to those of the layer
    #: (synapse, shape of the source, shape of the layer, channels kept of the source, of the layer) -> synapse
    channels: Callable[[Any, Shape, Shape, np.ndarray, np.ndarray], Synapse]
    size: Callable[[Any, Shape], Shape | None]  #: (synapse, new shape of the source) -> of the layer; None: as it was
    #: (synapse, old and new shape of the source, old and new shape of the layer) -> synapse
    space: Callable[[Any, Shape, Shape, Shape, Shape], Synapse]


def _dense_channels(synapse: Dense, source: Shape, layer: Shape, taken: np.ndarray, own: np.ndarray) -> Dense:
    weight = synapse.weight.reshape(layer[0], math.prod(layer[1:]), source[0], math.prod(source[1:]))
    weight = weight[own][:, :, taken]
    return Dense(weight.reshape(len(own) * weight.shape[1], -1))


def _dense_space(synapse: Dense, source: Shape, new: Shape, layer: Shape, made: Shape) -> Dense:
    weight = synapse.weight.reshape(*layer, *source)
    return Dense(weight[tuple(map(slice, (*made, *new)))].reshape(math.prod(made), math.prod(new)))


def _conv2d_channels(synapse: Conv2d, source: Shape, layer: Shape, taken: np.ndarray, own: np.ndarray) -> Conv2d:
    weight, groups = synapse.weight, synapse.geometry.groups
    if groups == 1:
        return Conv2d(weight[own][:, taken], synapse.geometry)
    left = len(own) * groups // layer[0]  # `_bound` keeps whole groups, of both sides the same
    return Conv2d(weight[own], synapse.geometry._replace(groups=left))


LEFT = SynapseTable[Left](
    {
        Dense: Left(lambda dense: 1, _dense_channels, lambda dense, new: None, _dense_space),
        Conv2d: Left(
            lambda conv: conv.geometry.groups,
            _conv2d_channels,
            lambda conv, new: conv.output_shape(new),
            lambda conv, *_: conv,
        ),
    }
)
