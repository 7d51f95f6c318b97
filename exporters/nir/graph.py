"""A network as a NIR graph: the nodes of both forms, and what stands in their way; no file and no package yet.

NIR (Pedersen et al., 2024, doi:10.1038/s41467-024-52259-9) knows a neuron that resets to a fixed potential, no firing
window and no schedule. The exact form says ours in other nodes of it::

    synapse -> [Delay] -> I --> Threshold(theta - 1/2) --> the next synapse
                          ^                |
                          +-- Scale(-theta)                            spikes of the step before: the reset

    clock -> synapse -> I       whose current at step s is what the schedule adds there; v0 at the first step; and
                                -SILENT from there to the firing window, and from its end on

Whoever executes it step by step, connections without a delay, gets our spikes and potentials. The clock is made of
nodes too: a constant current that an I counts, and a Threshold of P values that says which step it is. A threshold
between two integers is the same for > and >=. Our synapses take a step; here a layer counts its steps from the
shortest path to it instead (:func:`depths`), and where another path is longer, a Delay stands.

The portable form has an ``IF`` for a layer, as most tools read it. That resets to zero, knows neither window nor
hold-off, and its synapses add the mean of v0 and the schedule at every step: only our own reader restores the network,
from the metadata that both forms hold.

All numbers are float32, which holds them exactly: other tools make no parameters of integers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from exporters.netx.checks import check_storable
from sim.findings import Finding
from sim.network import INPUT, Conv2d, Dense, Geometry, Layer, Network, Pair, Shape, SynapseTable

Form = Literal["exact", "portable"]
Node = dict[str, Any]  #: what ``nir.dict2NIRNode`` takes: type, fields and metadata; of a graph: nodes and edges

OURS = "ann2loihi"  #: where our metadata stand
VERSION = 1  #: of them
SILENT = 1 << 18  #: su; twice what a potential of 24 bits can reach, and exact in float32 together with it
NUMBERS_LIMIT = 1 << 26  #: numbers of a graph, 4 bytes each; :mod:`exporters.nir.hdf5` unpacks four times as much


def depths(network: Network) -> dict[str, int]:
    """Return by source the synapses on the shortest path from the input: its step 0 is our step of that number."""
    depth = {INPUT: 0}
    for layer in network.layers:
        depth[layer.name] = min(depth[edge.source] for edge in layer.edges) + 1
    return depth


def answer(network: Network) -> int:
    """Return the step after which the output holds the logits, where connections take no time."""
    name = network.readout.name
    return network.phase[name] + network.timesteps - 1 - depths(network)[name]


def steps(network: Network) -> int:
    """Return P, the number of steps until every firing window has closed, where connections take no time."""
    depth = depths(network)
    return max(network.phase[layer.name] + network.timesteps - depth[layer.name] for layer in network.layers)


def obstacles(network: Network, form: Form) -> list[Finding]:
    """List everything that stops a form from holding a network."""
    found = check_storable(network)
    if found:
        return found
    read = {edge.source for layer in network.layers for edge in layer.edges}
    for layer in network.layers:
        if form == "exact" and layer.bias.ndim == 4 and sum(layer.shape[1:]) % 2:
            problem = f"biases of every neuron of a map of {layer.shape[1:]}: NIR knows square kernels"
            found.append(Finding(layer.name, problem, "use the form 'portable', or convert with biases of channels"))
        if form == "portable" and layer.kind == "spiking" and layer.name not in read:
            found.append(Finding(layer.name, "no layer reads it, and NIR would make an output of it", "remove it"))
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            if len(edge.synapse.output_shape(network.shape_of(edge.source))) < len(layer.shape):
                problem = f"dense synapses into a layer of shape {layer.shape}, which no node of NIR unfolds"
                found.append(Finding(where, problem, "keep it in a .net: `ann2loihi export`"))
            if not NODES[type(edge.synapse)].square(edge.synapse):
                problem = f"kernel {edge.synapse.weight.shape[2:]}: NIR knows square ones, which zeros make of no such"
                found.append(Finding(where, problem, "make its sides both even or both odd"))
            if form == "exact" and edge.exponent < 0:
                problem = f"weight exponent {edge.exponent} rounds, which no node of NIR does"
                found.append(Finding(where, problem, "use the form 'portable', or convert without --shift-input"))
    if not found and (size := numbers(network, form)) > NUMBERS_LIMIT:
        remedy = "keep it in a .net: `ann2loihi export`" if form == "portable" else "use the form 'portable'"
        found.append(Finding("network", f"{size} numbers in the form {form!r}, above {NUMBERS_LIMIT}", remedy))
    return found


def numbers(network: Network, form: Form) -> int:
    """Count the numbers of all nodes, before any of them is made."""
    count = 0
    maps: dict[Shape, int] = {}
    for layer in network.layers:
        count += 3 * layer.size + layer.v0.size + layer.bias.size
        for edge in layer.edges:
            count += NODES[type(edge.synapse)].size(edge.synapse) + layer.size
        if form == "exact":
            whole = len(layer.shape) == 3 and layer.bias.ndim == 4
            count += steps(network) * layer.shape[0] * (max(layer.shape[1:]) ** 2 if whole else 1)
            size = (1, 1) if whole or len(layer.shape) == 1 else layer.shape[1:]
            maps[size] = math.prod(size) * (steps(network) + 1) + math.prod(network.input.shape)
    return count + sum(maps.values())


def described(network: Network, form: Form) -> Node:
    """Describe a network, which :func:`obstacles` has passed, as a graph. Equal networks give equal graphs."""
    drawn = _Drawn(network, form)
    drawn.add("input", "Input", shape=_integers(network.input.shape))
    for index, layer in enumerate(network.layers):
        drawn.layer(index, layer)
    return {"type": "NIRGraph", "nodes": drawn.nodes, "edges": drawn.edges, "metadata": {OURS: _said(network, form)}}


@dataclass
class _Drawn:
    """Nodes and edges, as far as they are drawn."""

    network: Network
    form: Form
    nodes: dict[str, Node] = field(default_factory=dict)
    edges: list[tuple[str, str]] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=lambda: {INPUT: "input"})  #: by name: the node of its spikes
    clocks: dict[Shape, str] = field(default_factory=dict)  #: by shape without the steps: the node that tells them

    def add(self, name: str, type: str, *after: str, **fields: Any) -> str:
        self.nodes[name] = {"type": type, **fields}
        self.edges += [(source, name) for source in after]
        return name

    def layer(self, index: int, layer: Layer) -> None:
        exact, width = self.form == "exact", len(str(len(self.network.layers)))
        name = f"l{index:0{width}}_{re.sub('[^A-Za-z0-9_]', '_', layer.name)[:64]}"
        ones, level = np.ones(layer.shape, np.float32), np.full(layer.shape, layer.threshold - 0.5, np.float32)
        currents = [self.synapses(name, index, layer, number) for number in range(len(layer.edges))]
        said: Node = {OURS: _said_of_layer(index, layer)}
        if layer.kind == "readout":
            if exact:
                currents = [self.add(f"{name}_potential", "I", *currents, r=ones)]
                self.schedule(name, layer)
            self.add("output", "Output", *currents, shape=_integers(layer.shape), metadata=said)
        elif exact:
            potential = self.add(f"{name}_potential", "I", *currents, r=ones, metadata=said)
            spikes = self.add(f"{name}_spikes", "Threshold", potential, threshold=level)
            reset = self.add(f"{name}_reset", "Scale", spikes, scale=-layer.threshold * ones)
            self.edges.append((reset, potential))
            self.schedule(name, layer)
            self.sources[layer.name] = spikes
        else:
            said = {"reset": "subtract", **said}
            fields = {"r": ones, "v_threshold": level, "v_reset": 0 * ones, "metadata": said}
            self.sources[layer.name] = self.add(f"{name}_spikes", "IF", *currents, **fields)

    def synapses(self, name: str, index: int, layer: Layer, number: int) -> str:
        """Draw an edge; returns the node of its current."""
        edge, depth, place = layer.edges[number], depths(self.network), f"{name}_synapse{number}"
        node, source, form = self.sources[edge.source], self.network.shape_of(edge.source), NODES[type(edge.synapse)]
        if form.flat and len(source) == 3:
            node = self.flattened(f"{place}_flat", node, source)
        constant = _mean(layer) if self.form == "portable" and number == 0 else None
        weight = (form.weight(edge.synapse) * 2.0**edge.exponent).astype(np.float32)
        said: Node = {"layer": index, "edge": number, "source": edge.source, "exponent": edge.exponent}
        fields = form.fields(edge.synapse, source, constant)
        said |= form.said(edge.synapse)
        node = self.add(place, fields.pop("type"), node, weight=weight, metadata={OURS: said}, **fields)
        late = depth[edge.source] + 1 - depth[layer.name]
        if late and self.form == "exact":
            node = self.add(f"{place}_delay", "Delay", node, delay=np.full(layer.shape, late, np.float32))
        return node

    def flattened(self, name: str, node: str, shape: Shape) -> str:
        return self.add(name, "Flatten", node, input_type=_integers(shape), start_dim=0, end_dim=-1)

    def schedule(self, name: str, layer: Layer) -> None:
        """Draw what v0, the schedule and the windows add to a layer's potential."""
        added = _added(self.network, layer)
        if not added.any():
            return
        changes = np.diff(added, axis=0, prepend=0).astype(np.float32)  # the clock says which steps have come
        if len(layer.shape) == 1:
            node = self.add(f"{name}_schedule", "Linear", self.clock(()), weight=changes.T.copy())
        elif changes.ndim == 2:
            size, kernel = layer.shape[1:], changes.T.copy()[:, :, None, None]
            node = self.convolution(f"{name}_schedule", self.clock(size), kernel, size)
        else:  # a kernel that reaches one value from everywhere
            kernel = squared(changes.transpose(1, 0, 2, 3)[:, :, ::-1, ::-1])
            padding = tuple((kernel.shape[2] + n) // 2 - 1 for n in layer.shape[1:])
            node = self.convolution(f"{name}_schedule", self.clock((1, 1)), kernel, (1, 1), padding)
        self.edges.append((node, f"{name}_potential"))

    def convolution(
        self,
        name: str,
        node: str,
        weight: np.ndarray,
        size: Shape,
        padding: Shape = (0, 0),
        stride: Shape = (1, 1),
        bias: float = 0,
    ) -> str:
        constant = np.full(len(weight), bias, np.float32)
        geometry = Geometry((stride[0], stride[1]), (padding[0], padding[1]))
        return self.add(name, "Conv2d", node, weight=weight, bias=constant, **_geometry(geometry, size))

    def clock(self, size: Shape) -> str:
        """Draw P values that have risen to 1 one after the other, (P,) or, at every place, (P, H, W)."""
        if size in self.clocks:
            return self.clocks[size]
        shape, total = self.network.input.shape, steps(self.network)
        name, levels = "_".join(map(str, ("clock", *size))), np.arange(total, dtype=np.float32) + 0.5
        if size:
            # Weights of 0 on the input, and a stride and padding that leave a map of the size; the bias is counted.
            stride = tuple(max(2, -(-given // wanted)) for given, wanted in zip(shape[1:], size, strict=True))
            reach = zip(stride, shape[1:], size, strict=True)
            padding = tuple(max(0, -(-(s * (wanted - 1) - given + 1) // 2)) for s, given, wanted in reach)
            zeros = np.zeros((1, shape[0], 1, 1), np.float32)
            node = self.convolution(f"{name}_drive", "input", zeros, shape[1:], padding, stride, bias=1)
            node = self.add(f"{name}_count", "I", node, r=np.ones((1, *size), np.float32))
            node = self.convolution(f"{name}_copies", node, np.ones((total, 1, 1, 1), np.float32), size)
            level = np.broadcast_to(levels[:, None, None], (total, *size)).copy()
            node = self.add(f"{name}_steps", "Threshold", node, threshold=level)
        elif len(shape) == 3:
            node = self.flattened(f"{name}_flat", self.clock((1, 1)), (total, 1, 1))
        else:
            zeros, one = np.zeros((1, shape[0]), np.float32), np.ones(1, np.float32)
            node = self.add(f"{name}_drive", "Affine", "input", weight=zeros, bias=one)
            node = self.add(f"{name}_count", "I", node, r=one)
            node = self.add(f"{name}_copies", "Linear", node, weight=np.ones((total, 1), np.float32))
            node = self.add(f"{name}_steps", "Threshold", node, threshold=levels)
        self.clocks[size] = node
        return node


def _added(network: Network, layer: Layer) -> np.ndarray:
    """Return what a layer's potential gets at each step beside synapses, int64 (P, C) or (P, *shape), su."""
    start = network.phase[layer.name] - depths(network)[layer.name]
    end = start + network.timesteps
    added = np.zeros((max(steps(network), end + 1), *layer.bias.shape[1:]), np.int64)
    added[start:end] = layer.bias
    added[0] += layer.v0 if layer.bias.ndim == 2 else layer.v0.reshape(-1, *(1,) * (len(layer.shape) - 1))
    if layer.kind == "spiking":
        if start:
            added[0] -= SILENT
            added[start] += SILENT
        added[end] -= SILENT
    return added[: steps(network)]


def _mean(layer: Layer) -> np.ndarray:
    """Return what v0 and the schedule add to each channel's potentials in a step, on average: float32 (C,)."""
    total = layer.offsets[-1].reshape(layer.shape[0], -1).mean(1)
    return (total / len(layer.bias)).astype(np.float32)


def _integers(values: Any) -> np.ndarray:
    return np.asarray(values, np.int64)


def _plain(values: Any) -> Any:
    """Return one number as Python has it, and several as float64: NIR compresses arrays, and no single number."""
    values = np.asarray(values, np.float64)
    return values if values.ndim else values.item()


def _said(network: Network, form: Form) -> Node:
    """Return what no node says of the network."""
    source, output = network.input, network.output
    said_of_input = {
        "bits": source.bits,
        "signed": int(source.signed),
        "scale": _plain(source.scale),
        "form": source.form,
    }
    if source.order is not None:
        said_of_input |= {"order": _integers(source.order), "given": _integers(source.given)}
    said = {
        "version": VERSION,
        "form": form,
        "timesteps": network.timesteps,
        "holdoff": network.holdoff,
        "steps": steps(network),
        "answer": answer(network),
        "input": said_of_input,
    }
    if network.reset_interval is not None:
        said["reset_interval"] = network.reset_interval
    if output is not None:
        said["output"] = {"scale": _plain(output.scale), "offset": _plain(output.offset)}
    return said


def _said_of_layer(index: int, layer: Layer) -> Node:
    said = {
        "layer": index,
        "name": layer.name,
        "kind": layer.kind,
        "shape": _integers(layer.shape),
        "theta": layer.threshold,
        "v0": _integers(layer.v0),
        "schedule": _integers(layer.bias),
    }
    return said if layer.holdoff is None else said | {"holdoff": layer.holdoff}


@dataclass(frozen=True)
class NodeForm:
    """What one type of synapse is in NIR."""

    flat: bool  #: whether a (C, H, W) source is flattened before it
    square: Callable[[Any], bool]  #: (synapse) -> whether NIR has a node for its shape
    size: Callable[[Any], int]  #: (synapse) -> number of the node's weights
    weight: Callable[[Any], np.ndarray]  #: (synapse) -> the node's weights, before the edge's exponent
    #: (synapse, shape of its source, what to add to its current (C,) or None) -> the node's type and other fields
    fields: Callable[[Any, Shape, np.ndarray | None], Node]
    said: Callable[[Any], Node]  #: (synapse) -> metadata


def _geometry(geometry: Geometry, size: Shape) -> Node:
    stride, padding, dilation = map(_integers, geometry[:3])
    return {
        "input_shape": _integers(size),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": 1,
    }


def squared(kernel: np.ndarray) -> np.ndarray:
    """Surround a kernel (C, C_in, kH, kW) by zeros: NIR's types take its height for its width (nir 1.0.8)."""
    side = max(kernel.shape[2:])
    return np.pad(kernel, ((0, 0), (0, 0), *(((side - n) // 2,) * 2 for n in kernel.shape[2:])))


def _added_padding(side: int, kernel: Shape, dilation: Pair) -> Pair:
    """Return the rows and columns of padding that :func:`squared` takes in addition."""
    vertical, horizontal = (d * (side - n) // 2 for d, n in zip(dilation, kernel, strict=True))
    return vertical, horizontal


def _kernel(synapse: Conv2d) -> np.ndarray:
    """Write the kernel of groups as one with zeros between them: NIR takes C_in / groups for the input's channels."""
    weight, groups = synapse.weight, synapse.geometry.groups
    whole = np.zeros((groups, len(weight) // groups, groups, *weight.shape[1:]), np.int32)
    whole[range(groups), :, range(groups)] = weight.reshape(groups, -1, *weight.shape[1:])
    return squared(whole.reshape(len(weight), -1, *weight.shape[2:]))


def _said_of_kernel(synapse: Conv2d) -> Node:
    return {"groups": synapse.geometry.groups, "kernel": _integers(synapse.weight.shape[2:])}


def convolution(weight: np.ndarray, stride: Pair, padding: Pair, dilation: Pair, groups: int, kernel: Pair) -> Conv2d:
    """Return the synapse of a node's weights, without the exponent, and of what stands beside them."""
    side, (height, width) = weight.shape[2], kernel
    top, left = (side - height) // 2, (side - width) // 2
    whole = weight[:, :, top : top + height, left : left + width]
    whole = whole.reshape(groups, len(weight) // groups, groups, -1, height, width)
    parts = whole[range(groups), :, range(groups)].reshape(len(weight), -1, height, width)
    more = _added_padding(side, kernel, dilation)
    return Conv2d(parts, Geometry(stride, (padding[0] - more[0], padding[1] - more[1]), dilation, groups))


def _dense(synapse: Dense, source: Shape, constant: np.ndarray | None) -> Node:
    return {"type": "Linear"} if constant is None else {"type": "Affine", "bias": constant}


def _conv2d(synapse: Conv2d, source: Shape, constant: np.ndarray | None) -> Node:
    bias = np.zeros(len(synapse.weight), np.float32) if constant is None else constant
    (stride, padding, dilation, _), kernel = synapse.geometry, synapse.weight.shape[2:]
    more = _added_padding(max(kernel), kernel, dilation)
    geometry = Geometry(stride, (padding[0] + more[0], padding[1] + more[1]), dilation)
    return {"type": "Conv2d", "bias": bias, **_geometry(geometry, source[1:])}


NODES = SynapseTable[NodeForm](
    {
        Dense: NodeForm(
            flat=True,
            square=lambda dense: True,
            size=lambda dense: dense.weight.size,
            weight=lambda dense: dense.weight,
            fields=_dense,
            said=lambda dense: {},
        ),
        Conv2d: NodeForm(
            flat=False,
            square=lambda conv: sum(conv.weight.shape[2:]) % 2 == 0,
            size=lambda conv: math.prod(conv.weight.shape[:2]) * conv.geometry.groups * max(conv.weight.shape[2:]) ** 2,
            weight=_kernel,
            fields=_conv2d,
            said=_said_of_kernel,
        ),
    }
)
