"""A NIR graph that :func:`exporters.nir.graph.described` made becomes its network again; all others are refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, get_args

import numpy as np

from exporters.nir.graph import OURS, VERSION, Form, Node, convolution, described, numbers, obstacles
from sim.findings import Finding, Refused, refuse
from sim.network import Conv2d, Dense, Edge, Input, Layer, Network, Output, Pair

AGAIN = "write it again with `ann2loihi export nir`"
AS_MODEL = "convert it as a trained model: `ann2loihi convert --model FILE.nir`"
SLACK = 1 << 20  #: numbers that a graph may be short of what it is compared with, before that is made
RESETTING = {"IF", "LIF", "CubaLIF"}  #: whose potentials NIR sets to a fixed one


def sealed(graph: Node) -> Node:
    """Add the digest by which a weight that has changed in the file, and is still a legal weight, is noticed."""
    digest = hashlib.sha256()
    for path, value in sorted(_flat(graph)):
        digest.update(f"{path} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    metadata = {**graph["metadata"], OURS: {**graph["metadata"][OURS], "sha256": digest.hexdigest()}}
    return {**graph, "metadata": metadata}


def form_of(graph: Node) -> Form:
    """Tell the form of a graph; raises :class:`Refused`, with one finding, for those of other tools."""
    said = _Said(graph["metadata"], "metadata") if OURS in graph.get("metadata", {}) else None
    if said is None:
        raise Refused(_foreign(graph))
    said = said.below(OURS)
    version = said.integer("version")
    if version != VERSION:
        remedy = "use a newer ann2loihi" if version > VERSION else AGAIN
        raise refuse(f"metadata/{OURS}/version", f"{version}, this ann2loihi reads {VERSION}", remedy)
    for form in get_args(Form):
        if form == said.text("form"):
            return form
    raise refuse(f"metadata/{OURS}/form", f"{said.text('form')!a:.40} is unknown", AGAIN)


def restored(graph: Node) -> Network:
    """Return the network of a graph, bit for bit; raises :class:`Refused` for whatever ``described`` would not say."""
    form = form_of(graph)
    network = _network(graph)
    if findings := obstacles(network, form):
        raise Refused(findings)
    if numbers(network, form) > 4 * sum(value.size for _, value in _flat(graph)) + SLACK:
        raise refuse("metadata", "they speak of more than the graph holds", AGAIN)
    if difference := next(_differences(graph, sealed(described(network, form))), None):
        raise Refused(difference)
    return network


def _foreign(graph: Node) -> Finding:
    """Say why a graph of another tool is no network of ours."""
    types = _types(graph)
    if hard := sorted(types & RESETTING):
        problem = f"its neurons ({', '.join(hard)}) reset to a fixed potential, a network's here by subtraction"
        return Finding("nodes", problem, AS_MODEL)
    if types >= {"I", "Threshold"}:
        problem = "it resets as a network of ours, but says no firing windows: another tool has written it"
        return Finding("nodes", problem, "give a file that `ann2loihi export nir` has written")
    return Finding("nodes", "it holds no spiking neurons", AS_MODEL)


def _types(graph: Node) -> set[str]:
    inner = (_types(node) if node["type"] == "NIRGraph" else {node["type"]} for node in graph["nodes"].values())
    return set().union(*inner)


class _Said:
    """Metadata of the graph or of a node; says what is missing or of the wrong type."""

    def __init__(self, said: Any, where: str) -> None:
        if not isinstance(said, Mapping):
            raise refuse(where, "it is no group", AGAIN)
        self._said, self.where = said, where

    def __contains__(self, name: str) -> bool:
        return name in self._said

    def _get(self, name: str, kinds: str, dimensions: int | None) -> np.ndarray:
        if name not in self._said:
            raise refuse(f"{self.where}/{name}", "it is missing", AGAIN)
        value = self._said[name]
        array = np.asarray(value) if not isinstance(value, Mapping | list) else np.asarray(None)
        if array.dtype.kind not in kinds or dimensions not in (None, array.ndim):
            raise refuse(f"{self.where}/{name}", f"{array.dtype} of shape {array.shape} does not belong here", AGAIN)
        return array

    def below(self, name: str) -> _Said:
        return _Said(self._said.get(name), f"{self.where}/{name}")

    def array(self, name: str) -> np.ndarray:
        return self._get(name, "i", None)

    def numbers(self, name: str) -> tuple[int, ...]:
        return tuple(self._get(name, "i", 1).tolist())

    def pair(self, name: str) -> Pair:
        if len(numbers := self.numbers(name)) != 2:
            raise refuse(f"{self.where}/{name}", f"{len(numbers)} numbers instead of 2", AGAIN)
        return numbers[0], numbers[1]

    def integer(self, name: str) -> int:
        return int(self._get(name, "i", 0))

    def reals(self, name: str) -> np.ndarray:
        return self._get(name, "f", None)

    def text(self, name: str) -> str:
        return str(self._get(name, "U", 0))


def _network(graph: Node) -> Network:
    said = _Said(graph["metadata"], "metadata").below(OURS)
    layers: dict[int, tuple[_Said, dict[int, Edge]]] = {}
    for name, node in graph["nodes"].items():
        if OURS in node.get("metadata", {}):
            of_node = _Said(node["metadata"], f"nodes/{name}/metadata").below(OURS)
            described_layer, edges = layers.get(of_node.integer("layer"), (None, {}))
            if "edge" in of_node:
                edges[of_node.integer("edge")] = _edge(node, of_node)
            else:
                described_layer = of_node
            layers[of_node.integer("layer")] = described_layer, edges  # type: ignore[assignment]
    source = said.below("input")
    scale, ordered = source.reals("scale"), "order" in source
    shape = graph["nodes"].get("input", {}).get("shape")
    if not isinstance(shape, np.ndarray) or shape.ndim != 1 or shape.dtype.kind != "i":
        raise refuse("nodes/input", "it has no shape", AGAIN)
    return Network(
        Input(
            tuple(shape.tolist()),
            source.integer("bits"),
            bool(source.integer("signed")),
            scale if scale.ndim else float(scale),
            source.array("order") if ordered else None,
            source.numbers("given") if ordered else None,
            source.text("form"),  # type: ignore[arg-type] # Network checks it
        ),
        tuple(_layer(*layers[index], index) for index in sorted(layers)),
        said.integer("timesteps"),
        said.integer("holdoff"),
        Output(said.below("output").reals("scale"), said.below("output").reals("offset")) if "output" in said else None,
        said.integer("reset_interval") if "reset_interval" in said else None,
    )


def _layer(said: _Said | None, edges: dict[int, Edge], index: int) -> Layer:
    if said is None:
        raise refuse("nodes", f"no node tells what layer {index} is", AGAIN)
    return Layer(
        said.text("name"),
        said.numbers("shape"),
        tuple(edges[number] for number in sorted(edges)),
        said.integer("theta"),
        said.array("v0"),
        said.array("schedule"),
        said.text("kind"),  # type: ignore[arg-type] # Network checks it
        said.integer("holdoff") if "holdoff" in said else None,
    )


def _edge(node: Node, said: _Said) -> Edge:
    kind, weight, exponent = node["type"], node.get("weight"), said.integer("exponent")
    if kind not in ("Linear", "Affine", "Conv2d") or not isinstance(weight, np.ndarray) or weight.dtype != np.float32:
        raise refuse(said.where, f"a {kind!a:.40} is no synapse of ours", AGAIN)
    integers = np.ldexp(weight.astype(np.float64), -exponent) if abs(exponent) < 64 else np.full(weight.shape, np.nan)
    if not (integers == np.rint(integers)).all() or np.abs(integers).max(initial=0) >= 1 << 31:
        raise refuse(said.where, "the weights are no integers", AGAIN)
    return Edge(said.text("source"), (_conv2d if kind == "Conv2d" else _dense)(integers, node, said), exponent)


def _dense(weight: np.ndarray, node: Node, said: _Said) -> Dense:
    return Dense(weight.astype(np.int64))


def _conv2d(weight: np.ndarray, node: Node, said: _Said) -> Conv2d:
    fields, groups, kernel = _Said(node, said.where), said.integer("groups"), said.pair("kernel")
    fits = weight.ndim == 4 and weight.size and weight.shape[2] == weight.shape[3] and groups >= 1
    if not fits or any(n % groups for n in weight.shape[:2]) or not all(0 < n <= weight.shape[2] for n in kernel):
        raise refuse(said.where, f"weights {weight.shape}, {groups} groups of {kernel}, do not belong here", AGAIN)
    stride, padding, dilation = map(fields.pair, ("stride", "padding", "dilation"))
    return convolution(weight.astype(np.int64), stride, padding, dilation, groups, kernel)


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """Every value of a graph as an array, by its path, but the digest."""
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _flat(value, f"{path}/{name}")
    elif path != f"/metadata/{OURS}/sha256":
        value = np.asarray(node)
        yield path, np.char.encode(value, "utf-8") if value.dtype.kind == "U" else value


def _differences(graph: Node, expected: Node) -> Iterator[Finding]:
    """Compare a graph with the one that its network would have been described as."""
    found, wanted = dict(_flat(graph)), dict(_flat(expected))
    for path in sorted(found.keys() | wanted.keys()):
        if path not in wanted:
            yield Finding(path[1:], "it is not part of the graph", "remove it")
        elif path not in found:
            yield Finding(path[1:], "it is missing", AGAIN)
        elif found[path].dtype != wanted[path].dtype or not np.array_equal(found[path], wanted[path]):
            yield Finding(path[1:], "it contradicts the rest of the graph", AGAIN)
    if str(graph["metadata"][OURS].get("sha256")) != expected["metadata"][OURS]["sha256"]:
        yield Finding("metadata/ann2loihi/sha256", "the graph has changed since it was written", AGAIN)
