"""Copies: neurons that draw an activation together, where T spikes of one draw it too coarsely.

G copies of a neuron with the same input and initial potentials ``theta (g + 1/2) / G`` fire G T + 1 different numbers
of spikes, where one fires T + 1 (see :func:`toolchain.scales.integers.initial_potential`). They pay where rounding to
the levels moves the outputs most. With ``q`` the mean squared error of a channel's staircase, what it does to outputs z
is, to first order, ::

    D = sum over channels c  q[c] * sum over neurons of c  E (d (r . z) / d a)^2        r: +-1 over each output's scale

and a copy more of a layer is worth what D falls by, per neuron that it takes. They end where the budget of neurons
does, or that of cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from exporters.placement import fit
from sim.findings import refuse
from sim.network import Conv2d, Dense, Edge, Input, Layer, Network
from toolchain.graph import FloatConv2d, FloatGraph, FloatMap
from toolchain.graph.channels import by_channel, sampled, spatial, spread
from toolchain.recipe import Recipe
from toolchain.scales.input_neurons import with_input_neurons
from toolchain.scales.plan import threshold_of
from toolchain.scales.thresholds import quantisation_error
from toolchain.task import shares_scale

SAMPLES = 128  #: model inputs whose outputs are differentiated
VALUES = 1 << 11  #: of a channel's activation, on which staircases are compared
MOST = 16  #: copies of a neuron


def with_copies(graph: FloatGraph, x: Tensor, recipe: Recipe) -> FloatGraph:
    """Give every spiking layer its number of copies: the recipe's, or more where the layer brings more.

    What the recipe's budget of neurons, of cores, or of both leaves goes where it pays most on some of the model inputs
    ``x`` (B, *model_shape). Raises :class:`Refused` where the network takes more cores, or neurons, without.
    """
    size = {layer.name: math.prod(layer.shape) for layer in graph.layers if layer.kind == "spiking"}
    asked = _asked(size, recipe)
    copies = {layer.name: max(layer.copies, asked[layer.name]) for layer in graph.layers if layer.name in size}

    def copied() -> FloatGraph:
        if all(number == 1 for number in copies.values()):
            return graph
        return replace(graph, layers=tuple(replace(layer, copies=copies.get(layer.name, 1)) for layer in graph.layers))

    within_cores(stand_in(copied(), recipe), recipe)
    within_neurons(copied(), recipe)
    bounded = recipe.neuron_budget > 1 or not recipe.core_budget
    neurons = _allowed(sum(size.values()), recipe) if bounded else math.inf

    def taken() -> int:
        return sum(size[name] * copies[name] for name in size)

    if taken() + min(size.values(), default=math.inf) <= neurons:
        harm = _harm(graph, x[spread(len(x), SAMPLES)], recipe)

        def worth(name: str) -> float:
            return (harm(name, copies[name]) - harm(name, copies[name] + 1)) / size[name]

        growing = set(size)
        while growing := {name for name in growing if copies[name] < MOST and taken() + size[name] <= neurons}:
            best = max((name for name in size if name in growing), key=worth)
            copies[best] += 1
            if recipe.core_budget and _beyond(stand_in(copied(), recipe), recipe):
                copies[best] -= 1
                growing.remove(best)
    return copied()


def _asked(layers: Collection[str], recipe: Recipe) -> dict[str, int]:
    """Return the copies that a recipe asks for by spiking layer: what stands for it, its innermost module, or all."""
    given = recipe.by_layer

    def holding(layer: str) -> list[str]:
        return [name for name in given if layer == name or layer.startswith(f"{name}.")]

    if unknown := set(given).difference(*map(holding, layers)):
        problem = f"no spiking layer {', '.join(map(repr, sorted(unknown)))}"
        raise refuse("layer_copies", problem, f"give some of {', '.join(layers)}, or modules that hold them")
    return {
        layer: max(((len(name), given[name]) for name in holding(layer)), default=(0, recipe.copies))[1]
        for layer in layers
    }


def _allowed(neurons: int, recipe: Recipe) -> int:
    return math.floor(round(recipe.neuron_budget * neurons, 6))  # 1.15 times 100 are 115, and not 114.99...


def within_neurons(graph: FloatGraph, recipe: Recipe) -> None:
    """Refuse a graph whose copies alone take more neurons than the recipe's budget, if it has one."""
    spiking = [(math.prod(layer.shape), layer.copies) for layer in graph.layers if layer.kind == "spiking"]
    taken, allowed = sum(size * copies for size, copies in spiking), _allowed(sum(size for size, _ in spiking), recipe)
    if recipe.neuron_budget > 1 and taken > allowed:
        raise refuse(
            "neuron_budget",
            f"{recipe.neuron_budget:g} times the network's neurons are {allowed}, and its copies take {taken}",
            "give more, or fewer copies",
        )


def within_cores(network: Network, recipe: Recipe) -> None:
    """Refuse a network that takes more cores than the recipe's budget, if it has one."""
    if recipe.core_budget and _beyond(network, recipe):
        least = fit(network).cores
        what = "this network fits on none" if least is None else f"this network takes up to {least}"
        raise refuse(
            "core_budget", f"{recipe.core_budget} cores", f"{what}; `ann2loihi check --chip` says what fills them"
        )


def _beyond(network: Network, recipe: Recipe) -> bool:
    taken = fit(network).cores
    return taken is None or taken > recipe.core_budget


def stand_in(graph: FloatGraph, recipe: Recipe) -> Network:
    """Build a network of a graph's shapes, before its scales are known: its weights need all bits that there are."""
    if recipe.input_form == "spikes":
        graph = with_input_neurons(graph, signed=True, copies=recipe.copies)
    graph, layers = graph.widened(), []
    for layer in graph.layers:
        edges = tuple(Edge(edge.source, _filled(edge.map, recipe.limits.weight_limit)) for edge in layer.edges)
        v0, bias = np.zeros(layer.shape[0], int), np.zeros((recipe.timesteps, layer.shape[0]), int)
        threshold = int(layer.kind == "spiking")
        layers.append(Layer(layer.name, layer.shape, edges, threshold, v0, bias, layer.kind, layer.holdoff))
    source = Input(graph.input_shape, form=recipe.input_form)
    return Network(source, tuple(layers), recipe.timesteps, recipe.holdoff)


def _filled(map_: FloatMap, most: int) -> Conv2d | Dense:
    """Stand in for a map with weights of both signs, as large as they can be."""
    weight = np.where(np.arange(map_.weight.numel()) % 2, most, -most).reshape(map_.weight.shape)
    return Conv2d(weight, map_.geometry) if isinstance(map_, FloatConv2d) else Dense(weight)


def _harm(graph: FloatGraph, x: Tensor, recipe: Recipe) -> Callable[[str, int], float]:
    """Prepare D of a layer with so many copies, as model inputs ``x`` show it."""
    with torch.enable_grad():
        activations = {}
        for layer, _, activation in graph.walk(x.clone().requires_grad_()):
            activation.retain_grad()
            activations[layer] = activation
        z = activation
        scale = by_channel(z.detach()).std(1).clamp_min(1e-12)
        scale = scale.max().expand_as(scale) if shares_scale(recipe.task) else scale
        signs = torch.randint(2, z.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
        (signs * z / spatial(scale, z.shape[1:]).float()).sum().backward()
    by_name = {}
    for layer, activation in activations.items():
        assert activation.grad is not None
        pull = by_channel(activation.grad.double().square()).sum(1) / len(x)
        by_name[layer.name] = layer, sampled(activation.detach(), VALUES), pull

    @cache
    def harm(name: str, copies: int) -> float:
        layer, a, pull = by_name[name]
        theta = threshold_of(replace(layer, copies=copies), a.T, recipe)
        return float((quantisation_error(a, theta, recipe.timesteps * copies) * pull).sum())

    return harm
