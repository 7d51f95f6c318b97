"""Trained networks in NIR, as graphs that :func:`exporters.nir.read_graph` has read.

NIR has no ReLU. Its integrate-and-fire neuron, driven by a constant current x, fires ``max(0, r x) / (v_threshold -
v_reset)`` times in a unit of time (its equation, https://neuroir.org/docs/primitives.html): an ``IF`` is read as
that ReLU, which is what tools write that turn a trained network's ReLUs into spikes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sim.findings import refuse
from toolchain.frontends.program import Operation, Program, Ref, Unknown

Node = Mapping[str, Any]  #: type, fields and metadata; of a graph: nodes and edges


def program(graph: Node, where: str) -> Program:
    """Write a graph as torch functions; ``where`` is what findings call it.

    Raises :class:`sim.findings.Refused` for a graph of several inputs or outputs, and for a loop. Nodes that are not
    known are the importer's to refuse.
    """
    nodes, edges = _inlined(graph, where)
    ends = {kind: [name for name, node in nodes.items() if node["type"] == kind] for kind in ("Input", "Output")}
    for kind, found in ends.items():
        if len(found) != 1:
            raise refuse(where, f"{len(found)} nodes of type {kind}", "give a graph of one input and one output")
    (source,), (output,) = ends["Input"], ends["Output"]
    sources: dict[str, list[str]] = {name: [] for name in nodes}
    for before, after in edges:
        sources[after].append(before)
    constants: dict[str, tuple[str, Tensor]] = {}
    operations: list[Operation] = []
    for name in _ordered(sources, where):
        if not sources[name]:
            if name != source:
                raise refuse(f"{where}: {name}", "nothing leads to it", "remove it")
            continue
        value, *others = sources[name]
        for other in others:
            total = f"{name} + {other}"
            operations.append(Operation(_path(name), torch.add, (total,), args=(Ref(value), Ref(other))))
            value = total
        operations.append(_operation(where, name, nodes[name], Ref(value), constants))
    return Program(source, constants, operations, [output])


def _inlined(graph: Node, where: str, prefix: str = "") -> tuple[dict[str, Node], list[tuple[str, str]]]:
    """Nodes and edges of a graph with all graphs within it, whose nodes are named after them."""
    nodes: dict[str, Node] = {}
    edges: list[tuple[str, str]] = []
    entries: dict[str, str] = {}
    exits: dict[str, str] = {}
    for name, node in graph["nodes"].items():
        path = f"{prefix}{name}"
        if node["type"] != "NIRGraph":
            nodes[path] = node
            continue
        inner, between = _inlined(node, where, f"{path}/")
        for kind, ends in (("Input", entries), ("Output", exits)):
            found = [key for key, one in inner.items() if one["type"] == kind]
            if len(found) != 1:
                raise refuse(
                    f"{where}: {path}", f"{len(found)} nodes of type {kind}", "give it one input and one output"
                )
            ends[name] = found[0]
            inner[found[0]] = {"type": "Identity"}
        nodes |= inner
        edges += between
    for before, after in graph["edges"]:
        edges.append((exits.get(before, f"{prefix}{before}"), entries.get(after, f"{prefix}{after}")))
    return nodes, edges


def _ordered(sources: Mapping[str, list[str]], where: str) -> list[str]:
    """Names of the nodes, each after those that lead to it."""
    readers: dict[str, list[str]] = {name: [] for name in sources}
    for name, before in sources.items():
        for source in before:
            readers[source].append(name)
    missing = {name: len(before) for name, before in sources.items()}
    ready, order = [name for name, count in missing.items() if not count], []
    while ready:
        order.append(name := ready.pop())
        for reader in readers[name]:
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    if len(order) < len(sources):
        loop = sorted(sources.keys() - set(order))
        raise refuse(f"{where}: {loop[0]}", "it lies on a loop, or after one", "give a feed-forward network")
    return order


def _operation(where: str, name: str, node: Node, x: Ref, constants: dict[str, tuple[str, Tensor]]) -> Operation:
    write = WRITERS.get(node["type"])
    arrays = {key: value for key, value in node.items() if isinstance(value, np.ndarray) and value.dtype.kind in "iuf"}
    written = _Written(Unknown(node["type"], [value.shape for key, value in arrays.items() if key in _SHAPED][:1]))
    try:
        written = written if write is None else write(node)
    except (KeyError, TypeError, ValueError) as error:
        problem = f"its fields are no {node['type']} ({' '.join(str(error).split())[:80] or type(error).__name__})"
        raise refuse(f"{where}: {name}", problem, "write it again") from error
    for key, value in written.constants.items():
        constants[f"{name}.{key}"] = f"{_path(name)}.{key}", torch.from_numpy(np.array(value, np.float32))
    references = tuple(Ref(f"{name}.{key}") for key in written.constants)
    return Operation(_path(name), written.function, (name,), args=(x, *references), kwargs=written.attributes)


def _path(name: str) -> str:
    """Write a node of a graph within a graph as torch writes modules; HDF5 keeps the stroke out of names."""
    return name.replace("/", ".")


_SHAPED = {"v_threshold", "threshold", "r", "delay"}  #: fields of other nodes that have the shape of what they give


@dataclass(frozen=True)
class _Written:
    """A node as a torch function."""

    function: Callable[..., Any]
    constants: Mapping[str, np.ndarray] = field(default_factory=dict)  #: arguments after the first, by field
    attributes: Mapping[str, Any] = field(default_factory=dict)


def _linear(node: Node) -> _Written:
    if node["weight"].ndim != 2:
        raise ValueError(f"a weight of shape {node['weight'].shape}")
    biased = node["type"] == "Affine"
    return _Written(functional.linear, {key: node[key] for key in ("weight", "bias")[: 1 + biased]})


def _convolution(node: Node) -> _Written:
    dimensions = int(node["type"][4])
    padding = node["padding"] if isinstance(node["padding"], str) else _tuple(node["padding"], dimensions)
    geometry = {key: _tuple(node[key], dimensions) for key in ("stride", "dilation")}
    function = functional.conv1d if dimensions == 1 else functional.conv2d
    given = {key: node[key] for key in ("weight", "bias")}
    return _Written(function, given, {"padding": padding, "groups": int(node["groups"]), **geometry})


def _pool(node: Node) -> _Written:
    size = {key: _tuple(node[key], 2) for key in ("kernel_size", "stride", "padding")}
    return _Written(functional.avg_pool2d if node["type"] == "AvgPool2d" else _sum_pool2d, {}, size)


def _sum_pool2d(x: Any, *, kernel_size: tuple[int, ...], **more: Any) -> Any:
    return functional.avg_pool2d(x, kernel_size, **more) * math.prod(kernel_size)


def _flatten(node: Node) -> _Written:
    """Count the batch, of which NIR knows nothing, among the axes."""
    start, end = (int(node[key]) for key in ("start_dim", "end_dim"))
    axes = {"start_dim": start + (start >= 0), "end_dim": end + (end >= 0)}
    return _Written(torch.flatten, {}, axes)


def _integrate_and_fire(node: Node) -> _Written:
    span = node["v_threshold"] - node.get("v_reset", 0)
    rate = np.divide(node["r"], span, where=span > 0, out=np.zeros(np.shape(span)))
    if not (rate > 0).all():
        raise ValueError("r or v_threshold - v_reset is not above 0")
    if (rate == rate.flat[0]).all():  # of all neurons
        return _Written(_rate, {}, {"rate": float(rate.flat[0])})
    return _Written(_rate, {"rate": rate})


def _rate(x: Any, rate: Any) -> Any:
    return torch.relu(x * rate)


def _scale(node: Node) -> _Written:
    return _Written(torch.mul, {"scale": node["scale"]})


def _nothing(node: Node) -> _Written:
    return _Written(_same)


def _same(x: Any) -> Any:
    return x


def _tuple(value: Any, dimensions: int) -> tuple[int, ...]:
    """Read one integer or several."""
    return tuple(int(n) for n in np.broadcast_to(value, dimensions))


#: By type: what a node is in torch. Neurons other than IF have a time of their own, which no trained network has.
WRITERS: Mapping[str, Callable[[Node], _Written]] = {
    "Affine": _linear,
    "AvgPool2d": _pool,
    "Conv1d": _convolution,
    "Conv2d": _convolution,
    "Flatten": _flatten,
    "IF": _integrate_and_fire,
    "Identity": _nothing,
    "Linear": _linear,
    "Output": _nothing,
    "Scale": _scale,
    "SumPool2d": _pool,
}
