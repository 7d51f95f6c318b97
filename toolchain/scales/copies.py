"""Copies: neurons that draw an activation together, where T spikes of one draw it too coarsely.

G copies of a neuron with the same input and initial potentials ``theta (g + 1/2) / G`` fire G T + 1 different numbers
of spikes, where one fires T + 1 (see :func:`toolchain.scales.integers.initial_potential`). They pay where rounding to
the levels moves the outputs most. With ``q`` the mean squared error of a channel's staircase, what it does to outputs z
is, to first order, ::

    D = sum over channels c  q[c] * sum over neurons of c  E (d (r . z) / d a)^2        r: +-1 over each output's scale

and a copy more of a layer is worth what D falls by, per neuron that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from toolchain.graph import FloatGraph
from toolchain.graph.channels import by_channel, sampled, spatial, spread
from toolchain.recipe import Recipe
from toolchain.scales.plan import threshold_of
from toolchain.scales.thresholds import quantisation_error
from toolchain.task import shares_scale

SAMPLES = 128  #: model inputs whose outputs are differentiated
VALUES = 1 << 11  #: of a channel's activation, on which staircases are compared
MOST = 16  #: copies of a neuron


def with_copies(graph: FloatGraph, x: Tensor, recipe: Recipe) -> FloatGraph:
    """Give every spiking layer its number of copies: the recipe's, or more where the layer brings more.

    What the recipe's budget of neurons leaves goes where it pays most on some of the model inputs ``x`` (B,
    *model_shape).
    """
    size = {layer.name: math.prod(layer.shape) for layer in graph.layers if layer.kind == "spiking"}
    copies = {layer.name: max(layer.copies, recipe.copies) for layer in graph.layers if layer.name in size}
    left = int(recipe.neuron_budget * sum(size.values())) - sum(size[name] * copies[name] for name in size)
    if left >= min(size.values(), default=math.inf):
        harm = _harm(graph, x[spread(len(x), SAMPLES)], recipe)

        def worth(name: str) -> float:
            return (harm(name, copies[name]) - harm(name, copies[name] + 1)) / size[name]

        while fitting := [name for name in size if size[name] <= left and copies[name] < MOST]:
            best = max(fitting, key=worth)
            copies[best] += 1
            left -= size[best]
    if all(number == 1 for number in copies.values()):
        return graph
    return replace(graph, layers=tuple(replace(layer, copies=copies.get(layer.name, 1)) for layer in graph.layers))


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
