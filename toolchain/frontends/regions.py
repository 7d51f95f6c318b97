"""Linear regions: an activation, or the end of the model, makes a layer of everything linear before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sim.network import INPUT, Shape
from toolchain.frontends.affine import BATCH, MIXES, Affine, Current, Term, Turned, Unreached, image
from toolchain.frontends.linear import Chain, Convolution, Reshape, Selection, as_maps, rearrangements, reduce
from toolchain.frontends.log import Log, Row
from toolchain.graph import FloatEdge, FloatGraph, FloatLayer
from toolchain.graph.channels import reduced

_RAISE = "raise dense_limit (--dense-limit), let pooling windows divide their input, without padding and ceil_mode, "
_RECTIFY = f"{_RAISE}or put nn.ReLU behind the pooling, which makes it a layer of its own"
_CONVOLVE = f"{_RAISE}and leave to convolutions what turns, scales or pads images otherwise than with zeros"


@dataclass(frozen=True, eq=False)
class _Read:
    """What a layer reads of the input."""

    chains: tuple[Chain, ...]  #: as the model has them, to be added up
    row: Row


class Regions:
    """The layers found so far, and every source that a value may depend on."""

    def __init__(self, input_shape: Shape, log: Log, dense_limit: int) -> None:
        self.log = log
        self.limit = dense_limit
        self.layers: list[FloatLayer] = []
        self.reads: dict[str, _Read] = {}  #: by layer; edges once all that is read of the input is known
        self.arrangement: Selection | None = None  #: of the input, before any layer reads it
        #: What the model makes of the logits at its very end, where that is left off; None where nothing is
        self.left_off: Callable[[Tensor], Tensor] | None = None
        #: Of every source, in topological order.
        self.shapes = {INPUT: image(input_shape) if len(input_shape) == 2 else input_shape}
        self.input = Affine(torch.zeros(BATCH, *input_shape, dtype=torch.float64), (Term(INPUT),))

    def graph(self) -> FloatGraph:
        """Return the layers found, their weights and biases in float64."""
        graph = FloatGraph(self.shapes[INPUT], tuple(self.layers))
        if self.arrangement is None:
            return graph
        return replace(graph, order=self.arrangement.index, given=tuple(self.input.shape))

    def pretend(self, name: str, shape: Shape) -> Affine:
        """Return a source that no layer emits, (*shape), in the place of a refused operation's result."""
        name = self._unique(name)
        self.shapes[name] = image(shape)
        return Affine(torch.zeros(BATCH, *shape, dtype=torch.float64), (Term(name),))

    def spike(self, value: Current, row: Row) -> Affine:
        """Make the value a spiking layer and return what it emits; ``row`` is that of the activation."""
        constant = torch.zeros_like(value.constant)
        emitter = self._emitter(value)
        if emitter and value.keeps(emitter):
            row.fates[emitter.name] = f"folded into {emitter.name}"
            return Affine(constant, value.terms, value.rows)
        # A ReLU commutes with flattening: a layer keeps the (C, H, W) of the convolution that feeds it.
        chains = [reduce(term.chain, self.limit) for term in value.terms]
        shapes = {chain[-1].source for chain in chains if chain and type(chain[-1]) is Reshape}
        shape = value.shape
        if len(shape) == 1 and len(shapes) == 1:
            shape = next(iter(shapes))
        elif len(shape) == 2:
            shape = image(shape)
        name = self._close(value, chains, shape, "spiking", row)
        self.shapes[name] = shape
        chain = () if image(value.shape) == image(shape) else (Reshape(image(shape), image(value.shape)),)
        return Affine(constant, (Term(name, chain),))

    def read_out(self, value: object) -> None:
        """Make what the model returns the readout and drop what it does not need."""
        row = Row(self.log.model, "output", "output", f"output of {self.log.model}")
        readout = None
        if not isinstance(value, Affine):
            if not isinstance(value, Unreached):
                self.log.refuse(
                    row,
                    f"it is a {type(value).__name__} and not one tensor computed from the input",
                    "return the logits and nothing else",
                )
        elif isinstance(value, Turned):
            self.log.refuse(row, *MIXES)
        elif emitter := self._emitter(value):
            self.log.refuse(
                row,
                f"the network ends in the ReLU of {emitter.name}, and a readout has none",
                "leave the last ReLU out: the largest logit stays the largest",
            )
        elif len(value.shape) not in (1, 3) or min(value.shape) < 1:
            self.log.refuse(row, f"it has the shape {value.shape}", "return logits of shape (N,) or (C, H, W)")
        else:
            chains = [reduce(term.chain, self.limit) for term in value.terms]
            readout = self._close(value, chains, value.shape, "readout", row)
        if readout is not None and not self.log.findings:
            used = self._used(readout)
            self.reads = {name: read for name, read in self.reads.items() if name in used}
        self._read_input()
        if readout is not None and not self.log.findings:
            self._drop_unused(readout)

    def _emitter(self, value: Affine) -> FloatLayer | None:
        """Return the spiking layer whose output the value is, at most under another shape."""
        if len(value.terms) != 1 or value.constant.any():
            return None
        (term,) = value.terms
        if not all(type(step) is Reshape for step in term.chain):
            return None
        return next((layer for layer in self.layers if layer.name == term.source), None)

    def _close(
        self,
        value: Affine,
        chains: list[Chain],
        shape: Shape,
        kind: Literal["spiking", "readout"],
        fallback: Row,
    ) -> str:
        """Append the layer that ``chains``, one per term, and the constant of ``value`` feed, and return its name."""
        rows = self.log.rows
        order = list(self.shapes)
        latest = max(
            (term for term in value.terms if term.origin is not None),
            key=lambda term: order.index(term.source),
            default=Term(INPUT),
        )
        row = fallback if latest.origin is None else rows[latest.origin]
        name = self._unique(row.name)
        title = "readout" if kind == "readout" else f"spiking layer {name}"
        for index in value.rows:
            rows[index].fates[name] = title if rows[index] is row else f"folded into {name}"
        edges: list[FloatEdge] = []
        for source in sorted({term.source for term in value.terms}, key=order.index):
            parallel = [i for i, term in enumerate(value.terms) if term.source == source]
            if source == INPUT:  # how it is arranged is not known before all layers are
                self.reads[name] = _Read(tuple(value.terms[i].chain for i in parallel), row)
            else:
                edges += self._edges(source, [chains[i] for i in parallel], shape, row)
        bias = reduced(value.constant[0].reshape(shape))
        layer = FloatLayer(name, shape, tuple(edges), bias, kind)
        if isinstance(value, Current):
            own: dict[str, Any] = {
                "upper": value.upper,
                "levels": value.levels,
                "slope": value.slope,
                "initial": value.initial,
            }
            layer = replace(layer, **own, activation=fallback.name)
            if isinstance(value.upper, Tensor) and len(value.upper) != shape[0]:
                problem = f"it has thresholds for {len(value.upper)} channels, the layer has {shape[0]}"
                self.log.refuse(fallback, problem, "give it one threshold for the layer, or leave out what is between")
        self._check(layer, value.constant, row)
        self.layers.append(layer)
        return name

    def _edges(self, source: str, chains: Sequence[Chain], shape: Shape, row: Row) -> list[FloatEdge]:
        """Turn parallel reduced chains from a source into the edges of a layer of ``shape``."""
        # What a layer emits, it may emit under another shape.
        chains = [c[:-1] if c and type(c[-1]) is Reshape and c[-1].source == shape else c for c in chains]
        try:
            maps = as_maps(chains, self.shapes[source], shape, self.limit)
        except ValueError as error:
            rectifiable = all(type(step) is Convolution for chain in chains for step in chain)
            remedy = _RECTIFY if rectifiable else _CONVOLVE
            self.log.refuse(row, f"with what is folded into it, it takes {error}", remedy)
            return []
        edges = [FloatEdge(source, m) for m in maps]
        self._check_finite([edge.map.weight for edge in edges], row)
        return edges

    def _read_input(self) -> None:
        """Make edges of all that is read of the input, arranged so that as much as possible of it is convolutions."""
        chains = [chain for read in self.reads.values() for chain in read.chains]
        ways = [rearrangements(chain) for chain in chains]
        arranged = [arrangement for way in ways for arrangement, _ in way]
        most, rests = self._convolutions(chains) if arranged else 0, chains
        for arrangement in arranged:
            behind = [_behind(arrangement, *both) for both in zip(chains, ways, strict=True)]
            found = [chain for chain in behind if chain is not None]
            if len(found) == len(chains) and (count := self._convolutions(found)) > most:
                most, rests, self.arrangement = count, found, arrangement
        if self.arrangement is not None:
            self.shapes[INPUT] = self.arrangement.shape
            row = Row("input", "rearrangement", INPUT, INPUT, self.arrangement.shape)
            row.fates[INPUT] = f"put in order by the host, from {' x '.join(map(str, self.input.shape))}"
            self.log.rows.insert(0, row)
        left = iter(rests)
        for i, layer in enumerate(self.layers):
            if read := self.reads.get(layer.name):
                parallel = [reduce(next(left), self.limit) for _ in read.chains]
                edges = self._edges(INPUT, parallel, layer.shape, read.row)
                self.layers[i] = replace(layer, edges=(*edges, *layer.edges))

    def _convolutions(self, chains: Sequence[Chain]) -> int:
        """Count the chains that are a single convolution, over all of the input for a linear layer, or nothing."""
        reduced = (reduce(chain, self.limit) for chain in chains)
        return sum(all(type(step) is Convolution for step in chain) and len(chain) <= 1 for chain in reduced)

    def _check(self, layer: FloatLayer, constant: Tensor, row: Row) -> None:
        if len(layer.shape) > 3:
            self.log.refuse(row, f"its values have the shape {layer.shape}", "give it (C, H, W) or (N,)")
        if not torch.allclose(constant[0], constant[1], rtol=1e-9, atol=1e-12, equal_nan=True):
            self.log.refuse(
                row, "its constant differs from sample to sample", "take out what is random or indexed by the sample"
            )
        self._check_finite([layer.bias], row)

    def _check_finite(self, values: Sequence[Tensor], row: Row) -> None:
        if not all(bool(t.float().isfinite().all()) for t in values):
            self.log.refuse(
                row,
                "its weights or bias leave float32 once batch normalisation is folded in",
                "look for a running_var of zero or huge weights",
            )

    def _unique(self, name: str) -> str:
        taken = self.shapes.keys() | {layer.name for layer in self.layers}
        base, count = name.replace("/", "_"), 1
        name = base
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        return name

    def _used(self, readout: str) -> set[str]:
        """Name the layers that the readout depends on."""
        used = {readout}
        for layer in reversed(self.layers):
            if layer.name in used:
                used |= {edge.source for edge in layer.edges}
        return used

    def _drop_unused(self, readout: str) -> None:
        used = self._used(readout)
        for row in self.log.rows:
            row.fates = {name: fate for name, fate in row.fates.items() if name not in self.shapes or name in used}
        self.layers = [layer for layer in self.layers if layer.name in used]


def _behind(arrangement: Selection, chain: Chain, ways: Sequence[tuple[Selection, Chain]]) -> Chain | None:
    """Write a chain so that it reads the arranged input; None where some of what it reads is not there any more."""
    for own, rest in ways:
        if torch.equal(own.index, arrangement.index):
            return rest
    if arrangement.index.numel() < math.prod(arrangement.source):
        return None
    return (Selection(arrangement.index.flatten().argsort().reshape(arrangement.source), arrangement.shape), *chain)
