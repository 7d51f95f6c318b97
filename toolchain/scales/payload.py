"""What of the input its few bits shall carry: what never changes is a bias, and outliers are cut off."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sim.findings import Refused
from sim.network import INPUT
from sim.progress import track
from toolchain.graph import FloatEdge, FloatGraph, FloatLayer
from toolchain.graph.channels import by_channel, reduced, spatial, spread
from toolchain.recipe import Recipe
from toolchain.scales.plan import choose_scales, largest_weights, scaled

OUTLIER = 10.0  #: times the median magnitude of a channel, 0 left out; values up to it are not looked at twice
LIMITS = (64.0, 32.0, 16.0, 8.0, 4.0, 2.0)  #: of which multiples of that median what exceeds them may be cut off
ONE_BY_CHANCE = 1 / 128  #: share of the samples by which two limits may differ that are taken for equal
CLEARLY = 0.8  #: share of the error without a limit that is left where one is set


def carried(graph: FloatGraph, x: Tensor, recipe: Recipe) -> FloatGraph:
    """Return what is to be quantised of ``graph``: itself where model inputs ``x`` (B, *model_shape) suit a payload.

    Else the same network on those inputs, but with constants in its biases and, where that helps, a ``limit``.
    """
    return _limited(_settled(graph, x), x, recipe)


def _settled(graph: FloatGraph, x: Tensor) -> FloatGraph:
    """Move into biases what channels of the input do that never change, if that is more than any other does.

    Batch normalisation divides a constant by next to nothing: its weights and the bias that undoes them would set the
    scale of the layer. Any other constant is a payload as good as any.
    """
    values = graph.arrange(x)
    lowest, highest = (by_channel(extreme[None]) for extreme in (values.amin(0), values.amax(0)))
    lowest, highest = lowest.amin(1), highest.amax(1)
    constant, reach = (lowest == highest) & (lowest != 0), torch.maximum(-lowest, highest)
    if not constant.any() or constant.all():
        return graph
    layers = []
    for layer in graph.layers:
        reads = replace(layer, edges=tuple(edge for edge in layer.edges if edge.source == INPUT))
        if reads.edges:
            still, moving = (
                float(largest_weights(graph, reads, {INPUT: reach * part}).max()) for part in (constant, ~constant)
            )
            layer = _without(graph, layer, lowest * constant) if still > moving else layer
        layers.append(layer)
    return replace(graph, layers=tuple(layers))


def _without(graph: FloatGraph, layer: FloatLayer, constant: Tensor) -> FloatLayer:
    """Make a bias of what channels of the input do to ``layer`` that are always ``constant`` (C,), not 0."""
    shape = graph.input_shape
    image = spatial(constant, shape).expand(1, *shape).float()
    bias = layer.bias if layer.bias.shape == layer.shape else spatial(layer.bias, layer.shape).expand(layer.shape)
    bias, edges = bias.double(), []
    for edge in layer.edges:
        if edge.source == INPUT:
            exact = replace(edge.map, weight=edge.map.weight.double())
            bias = bias + exact(image.double())[0].reshape(layer.shape)
            edge = FloatEdge(INPUT, replace(edge.map, weight=scaled(edge.map, (constant == 0).float(), shape).float()))
        edges.append(edge)
    return replace(layer, edges=tuple(edges), bias=reduced(bias).float())


def _limited(graph: FloatGraph, x: Tensor, recipe: Recipe) -> FloatGraph:
    """Set the ``limit`` of the input that serves its samples best, where values are out of all proportion.

    What sets the scale of a payload, and by the activations that it causes the thresholds of layers, may be a few
    values: pixels that are stuck, or a code for what is missing. A mean squared error would never sacrifice them, since
    they are the largest errors. So what counts is how many samples are decided as without a limit and a payload, and of
    limits that are equal in that the error of the outputs on the median sample. Both are those of the staircase that T
    spikes draw, on the payload as it would be.
    """
    arranged = replace(graph, order=None, given=None)  # the same on values in the order of the layers
    few, values = graph.arrange(x[spread(len(x))]), graph.arrange(x)
    ranges = by_channel(values).abs().amax(1)
    typical = torch.stack([_median(channel) for channel in by_channel(few)])
    typical = torch.where(typical > 0, typical, ranges)
    worst = float((ranges / typical).nan_to_num(1.0).max())
    if worst <= OUTLIER:
        return graph
    wanted, limits = arranged.logits(few), [torch.minimum(ranges, typical * times) for times in LIMITS if times < worst]
    # Samples that all limits cut off are not the rule, even where they are most of the calibration data.
    cut = (few.abs() > spatial(limits[0], graph.input_shape)).flatten(1).any(1)
    weight = torch.where(cut, min(1.0, int((~cut).sum()) / max(1, int(cut.sum()))) or 1.0, 1.0)
    misses, errors, candidates = [], [], [None, *limits]
    for limit in track("looking at outliers", candidates):
        logits = _drawn(replace(arranged, limit=limit), values, few, recipe)
        # Infinitely far where no scale fits, and wherever the graph has left float32.
        misses.append(float((weight * _share(_decisions(logits) != _decisions(wanted))).sum()))
        errors.append(float((logits - wanted).square().flatten(1).mean(1).nan_to_num(torch.inf).median()))
    equal = [i for i, missed in enumerate(misses) if missed <= min(misses) + ONE_BY_CHANCE * len(few)]
    best = min(equal, key=errors.__getitem__)
    return graph if 0 in equal and errors[best] >= CLEARLY * errors[0] else replace(graph, limit=candidates[best])


def _median(values: Tensor) -> Tensor:
    magnitudes = values.abs()[values != 0]
    return magnitudes.median() if len(magnitudes) else torch.zeros(())


def _decisions(logits: Tensor) -> Tensor:
    """Classes, or of a single output on which side of its median it is, (B, ...)."""
    return logits.argmax(1) if logits.shape[1] > 1 else (logits > logits.median())[:, 0]


def _share(differs: Tensor) -> Tensor:
    """Share of a sample's decisions, one or one for every place, (B,)."""
    return differs.flatten(1).double().mean(1) if differs.ndim > 1 else differs.double()


def _drawn(graph: FloatGraph, values: Tensor, few: Tensor, recipe: Recipe) -> Tensor:
    """Logits on ``few`` of the staircase of ``graph`` on its payload; NaN where no scale fits."""
    try:
        scales = choose_scales(graph, values, recipe)
    except Refused:
        return graph.logits(few) * torch.nan
    unit, largest = spatial(scales.unit, graph.input_shape), (1 << (recipe.input_bits - 1)) - 1
    payload = (graph.arrange(few) / unit).round().clamp(-largest, largest)
    return graph.stairs(scales.thetas, recipe.timesteps).logits((payload * unit).float())
