"""Input neurons in a float graph: layers then read spikes, and calibration sees that these draw a staircase."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sim.network import INPUT, Geometry, Shape
from toolchain.graph import FloatConv2d, FloatDense, FloatEdge, FloatGraph, FloatLayer, FloatMap
from toolchain.scales import thresholds
from toolchain.scales.plan import by_source

NAME = "input.neurons"


def with_input_neurons(graph: FloatGraph, signed: bool, copies: int = 1, extremes: Tensor | None = None) -> FloatGraph:
    """Return the same network with a first layer that rectifies the input, which all others read in its place.

    Each value x gets a neuron, and where inputs are ``signed`` a second one: x = relu(x) - relu(-x). The two stand next
    to each other, as channels, or as features of an input without space. What no layer reads drives no neuron.
    ``copies`` of them draw each value together, once the graph is widened. With ``extremes``
    (:func:`toolchain.scales.plan.extremes_of`) they have thresholds of their own, what is reached at most.
    """
    signs = torch.tensor([1.0, -1.0] if signed else [1.0])
    name, taken = NAME, {layer.name for layer in graph.layers}
    while name in taken:
        name += "_"
    read = torch.zeros(graph.input_shape[0], dtype=torch.bool)
    layers = []
    for layer in graph.layers:
        edges = []
        for edge in layer.edges:
            if edge.source == INPUT:
                read |= by_source(edge.map, graph.input_shape).ne(0).any(1)
                edge = FloatEdge(name, _repeated(edge.map, graph.input_shape, signs))
            edges.append(edge)
        layers.append(replace(layer, edges=tuple(edges)))
    channels, *space = graph.input_shape
    weight = (read.float()[:, None] * signs).flatten()
    shape = (len(weight), *space)
    map_ = (
        FloatConv2d(weight.reshape(-1, 1, 1, 1), Geometry(groups=channels))
        if space
        else FloatDense((weight.reshape(channels, -1, 1) * torch.eye(channels)[:, None]).flatten(0, 1))
    )
    # The input comes evenly: there is nothing to wait for.
    neurons = FloatLayer(name, shape, (FloatEdge(INPUT, map_),), torch.zeros(shape[0]), holdoff=0, copies=copies)
    if extremes is not None:
        reached = neurons.activate(map_(graph.arrange(extremes)).reshape(-1, *shape))
        neurons = replace(neurons, upper=thresholds.choose("max", reached, 1))
    return replace(graph, layers=(neurons, *layers))


def _repeated(map_: FloatMap, source: Shape, signs: Tensor) -> FloatMap:
    """Let a map read the neurons of a value in its place; the channels of a group stay together."""
    flat = isinstance(map_, FloatDense)
    weight = map_.weight.reshape(len(map_.weight), source[0], -1) if flat else map_.weight
    pairs = (weight[:, :, None] * signs.reshape(-1, *(1,) * (weight.ndim - 2))).flatten(1, 2)
    return replace(map_, weight=pairs.flatten(1) if flat else pairs)
