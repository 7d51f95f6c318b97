"""Weights, biases and thresholds tuned to the staircase that T spikes draw: by gradients, without labels.

Rounding activations to T steps moves every layer's output, and weights trained without it know nothing of it. Here the
trained network teaches a copy of itself whose activations take those steps. With the teacher's activations ``a`` and
logits ``z``, the copy's ``a'`` and ``z'``, it minimises ::

    sum |z' - z|^2 / sum var(z)  +  MIDDLE * sum over spiking layers  mean (a' - a)^2 / var(a)

over the weights w, the biases and, per channel, the thresholds theta; gradients go straight through the floor
(:func:`toolchain.graph.activations.staircase`), as learned step sizes have it (Esser et al., ICLR 2020).

A few hundred inputs would be learnt by heart. So none is seen twice: each update mixes pairs of them, at a random angle
phi in 0..pi/2, in a way that keeps their contrast (as Tokozume et al., Between-class learning, CVPR 2018)::

    mean(x) + cos(phi) * (x1 - mean(x)) + sin(phi) * (x2 - mean(x))

What the teacher says about a mixture needs no labels either. Plain averages have less contrast than real inputs, and
what is learnt on them fits real ones less well. Where the recipe says that inputs mean the same ``mirrored``, each is
turned around by half a chance.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sim.findings import refuse
from sim.network import Shape
from sim.progress import track
from toolchain.calibration.fit import selects
from toolchain.graph import FloatDense, FloatGraph, FloatLayer, FloatMap
from toolchain.graph.channels import by_channel, spread
from toolchain.recipe import Recipe
from toolchain.task import shares_scale

BATCH = 16  #: inputs an update
#: How far an update moves a parameter at first: a share of the weights' rms, of the activations' standard deviation
#: for biases, and of each threshold itself.
RATE = 1e-2
MIDDLE = 0.1  #: what the layers' errors weigh beside that of the logits


def tune(graph: FloatGraph, x: Tensor, thetas: Mapping[str, Tensor], recipe: Recipe) -> FloatGraph:
    """Return ``graph`` with tuned parameters and activations of T steps, each layer's ``upper`` its thresholds (C,).

    ``x`` (B, *model_shape) are model inputs, ``thetas`` the thresholds to start from by spiking layer, (C,), as
    :class:`toolchain.scales.plan.Scales` has them. Edges that mostly select, as a shortcut into more channels, keep
    their weights, and weights that are all the same over a map, as behind a mean over it, stay so. Outputs that are not
    compared with each other count alike, whatever their unit. Deterministic.
    """
    if recipe.mirrored and (x.ndim < 3 or x.shape[-1] == 1):
        raise refuse("mirrored", f"inputs of shape {'x'.join(map(str, x.shape[1:]))} have no width", "leave it out")
    if not shares_scale(recipe.task):
        outputs = by_channel(graph.logits(x[spread(len(x))])).std(1)
        unit = outputs.where(outputs > 0, torch.ones_like(outputs))
        return _in_units(tune(_in_units(graph, 1 / unit), x, thetas, replace(recipe, task="classes")), unit)
    std = {
        layer.name: (a.var(0, correction=0).mean() if layer.kind == "readout" else a.var(correction=0)).sqrt().item()
        for layer, _, a in graph.walk(x[spread(len(x))])
    }
    copies = [_Copy.of(layer, thetas.get(layer.name), graph.shapes) for layer in graph.layers]
    groups = [group for copy in copies for group in copy.groups(std[copy.layer.name])]
    optimiser = torch.optim.Adam(groups)
    # The rates fall to 0 along half a cosine.
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, recipe.updates)

    def student() -> FloatGraph:
        return replace(graph, layers=tuple(copy.tuned(recipe.timesteps) for copy in copies))

    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x  # convolutions of few channels gain
    mean, generator = x.mean(0), torch.Generator().manual_seed(0)
    for _ in track("tuning", range(recipe.updates)):
        batch = x[torch.randperm(len(x), generator=generator)[:BATCH]]
        if recipe.mirrored:
            turned = torch.rand(len(batch), *(1,) * (x.ndim - 1), generator=generator) < 0.5
            batch = batch.flip(-1).where(turned, batch)
        angle = torch.rand(len(batch), *(1,) * (x.ndim - 1), generator=generator) * (math.pi / 2)
        mixed = mean + angle.cos() * (batch - mean) + angle.sin() * (batch.roll(1, 0) - mean)
        with torch.enable_grad():
            loss = torch.zeros(())
            for (layer, _, wanted), (_, _, found) in zip(graph.walk(mixed), student().walk(mixed), strict=True):
                error = (found - wanted).square().mean() / max(std[layer.name] ** 2, 1e-12)
                loss = loss + (1 if layer.kind == "readout" else MIDDLE) * error
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
        schedule.step()
    for group in groups:
        for parameter in group["params"]:
            parameter.requires_grad_(False)
    return student()


def _in_units(graph: FloatGraph, factor: Tensor) -> FloatGraph:
    """Multiply the outputs of a graph by a factor for each channel, (C,)."""
    readout = graph.layers[-1]

    def times(values: Tensor) -> Tensor:
        return (values.reshape(len(factor), -1) * factor[:, None]).reshape(values.shape)

    edges = tuple(replace(edge, map=replace(edge.map, weight=times(edge.map.weight))) for edge in readout.edges)
    return replace(graph, layers=(*graph.layers[:-1], replace(readout, edges=edges, bias=times(readout.bias))))


@dataclass(frozen=True, eq=False)
class _Copy:
    """What is learnt of one layer."""

    layer: FloatLayer
    weights: tuple[Tensor, ...]  #: by edge; those that are kept need no gradient, and those that are tied stand once
    bias: Tensor
    log_theta: Tensor | None  #: (C,), None for the readout

    @classmethod
    def of(cls, layer: FloatLayer, theta: Tensor | None, shapes: Mapping[str, Shape]) -> _Copy:
        weights = [_tied(edge.map, shapes[edge.source]).clone() for edge in layer.edges]
        return cls(
            layer,
            tuple(weight.requires_grad_(not selects(weight)) for weight in weights),
            layer.bias.clone().requires_grad_(),
            None if theta is None else theta.log().requires_grad_(),
        )

    def groups(self, std: float) -> list[dict[str, Any]]:
        """Group the parameters by the rate that suits them; ``std`` is that of the layer's activations."""
        rates = [(weight, RATE * weight.square().mean().sqrt().item()) for weight in self.weights]
        rates += [(self.bias, RATE * std)]
        rates += [] if self.log_theta is None else [(self.log_theta, RATE)]
        return [{"params": [parameter], "lr": rate} for parameter, rate in rates if parameter.requires_grad]

    def tuned(self, timesteps: int) -> FloatLayer:
        """Build the layer as it is learnt so far, with an activation of T steps."""
        edges = tuple(
            replace(edge, map=replace(edge.map, weight=_untied(weight, edge.map.weight)))
            for edge, weight in zip(self.layer.edges, self.weights, strict=True)
        )
        layer = replace(self.layer, edges=edges, bias=self.bias)
        if self.log_theta is None:
            return layer
        return replace(layer, upper=self.log_theta.exp(), levels=timesteps * layer.copies, slope=0.0)


def _tied(map_: FloatMap, source: Shape) -> Tensor:
    """Return a map's weights, or one for each channel (N_out, C, 1) where a dense map has the same all over it."""
    if isinstance(map_, FloatDense) and len(source) == 3:
        over_space = map_.weight.reshape(len(map_.weight), source[0], -1)
        if torch.equal(over_space, over_space[:, :, :1].expand_as(over_space)):
            return over_space[:, :, :1]
    return map_.weight


def _untied(weight: Tensor, like: Tensor) -> Tensor:
    return weight if weight.shape == like.shape else weight.expand(-1, -1, like.shape[1] // weight.shape[1]).flatten(1)
