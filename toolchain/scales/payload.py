"""What of the input its few bits shall carry: what never changes is a bias, and outliers are cut off."""

from __future__ import annotations

from dataclasses import replace
from operator import is_not

import torch
from torch import Tensor

from sim.findings import Refused
from sim.network import INPUT
from sim.progress import track
from toolchain.graph import FloatEdge, FloatGraph, FloatLayer
from toolchain.graph.channels import by_channel, reduced, spatial, spread
from toolchain.recipe import Recipe
from toolchain.scales.plan import choose_scales, extremes_of, largest_weights, scaled
from toolchain.task import Task, resolve, shares_scale

OUTLIER = 5.0  #: multiple of what is typical; values up to it are not looked at twice
LIMITS = (64.0, 32.0, 16.0, 8.0, 4.0, 2.0)  #: multiples of what is typical from which values may be cut off
BRIGHT = 0.95  #: share of the samples that are no brighter than what is typical
BY_CHANCE = 1 / 128  #: share of decisions by which two limits may differ that are taken for equal
CLEARLY = 0.8  #: share of the error without a limit that may be left where one is set


def carried(graph: FloatGraph, x: Tensor, recipe: Recipe, extremes: Tensor | None = None) -> FloatGraph:
    """Return what is to be quantised of ``graph``: itself where model inputs ``x`` (B, *model_shape) suit a payload.

    Else the same network on those inputs, but with constants in its biases and, where that helps, a ``limit``.
    ``extremes`` as :func:`toolchain.scales.plan.choose_scales` has them.
    """
    extremes = extremes_of(x) if extremes is None else extremes
    return _limited(_settled(graph, extremes), x, recipe, extremes)


def _settled(graph: FloatGraph, extremes: Tensor) -> FloatGraph:
    """Move into biases what channels of the input do that never change, if that is more than any other does.

    Batch normalisation divides a constant by next to nothing: its weights and the bias that undoes them would set the
    scale of the layer. Any other constant is a payload as good as any.
    """
    lowest, highest = (by_channel(extreme[None]) for extreme in graph.arrange(extremes))
    lowest, highest = lowest.amin(1), highest.amax(1)
    constant, reach = (lowest == highest) & (lowest != 0), torch.maximum(-lowest, highest)
    if not constant.any() or (lowest == highest).all():
        return graph
    layers = tuple(
        _without(graph, layer, lowest * constant) if _dominates(graph, layer, reach, constant) else layer
        for layer in graph.layers
    )
    return replace(graph, layers=layers) if any(map(is_not, layers, graph.layers)) else graph


def _dominates(graph: FloatGraph, layer: FloatLayer, reach: Tensor, constant: Tensor) -> bool:
    """Whether a constant channel, bool (C,), does more to a layer than any other does at its ``reach`` (C,)."""
    reads = replace(layer, edges=tuple(edge for edge in layer.edges if edge.source == INPUT))
    if not reads.edges:
        return False
    still, moving = (largest_weights(graph, reads, {INPUT: reach * part}).max() for part in (constant, ~constant))
    return bool(still > moving)


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


def _limited(graph: FloatGraph, x: Tensor, recipe: Recipe, extremes: Tensor) -> FloatGraph:
    """Set the ``limit`` of the input that serves ordinary samples best, where values are out of all proportion.

    What sets the scale of a payload, and by the activations that it causes the thresholds of layers, may be a few
    values: pixels that are stuck, or a code for what is missing. A mean squared error would never sacrifice them, since
    they are the largest errors. So what counts are the samples that no limit would change much: how many of them are
    decided as without a limit and a payload, and of limits that are equal in that, the error of their outputs, at the
    median. Both are those of the staircase that T spikes draw, on the payload as it would be. No limit is so low that
    an outlier would not still be one.
    """
    arranged = replace(graph, order=None, given=None)  # the same on values in the order of the layers
    few, extremes = graph.arrange(x[spread(len(x))]), graph.arrange(extremes)
    sample, ranges = few, by_channel(extremes).abs().amax(1)
    typical = _typical(few, ranges)
    worst = float((ranges / typical).nan_to_num(1.0).max())
    if worst <= OUTLIER:
        return graph
    limits = [torch.minimum(ranges, typical * times) for times in LIMITS if times < worst]
    ordinary = (few.abs() <= spatial(limits[0], graph.input_shape)).flatten(1).all(1)
    few = few[ordinary] if ordinary.any() else few
    task, _ = resolve(recipe.task, graph.layers[-1].shape)
    wanted, candidates = arranged.precise().logits(few), [None, *limits]
    unit = torch.ones(()) if shares_scale(task.name) else wanted.std(0).clamp_min(torch.finfo(wanted.dtype).tiny)
    misses, errors = [], []
    for limit in track("looking at outliers", candidates):
        logits = _drawn(replace(arranged, limit=limit), sample, extremes, few, recipe)
        misses.append(_missed(task, logits, wanted))
        # Infinite where no scale fits.
        errors.append(float(((logits - wanted) / unit).square().flatten(1).mean(1).nan_to_num(torch.inf).median()))
    equal = [i for i, missed in enumerate(misses) if missed <= min(misses) + BY_CHANCE]
    best = min(equal, key=errors.__getitem__)
    return graph if 0 in equal and errors[best] >= CLEARLY * errors[0] else replace(graph, limit=candidates[best])


def _typical(x: Tensor, ranges: Tensor) -> Tensor:
    """Typical magnitudes (C,) of the channels of a bright sample, of (B, *input_shape); zeros say nothing.

    Samples may be bright as a whole, and then all of their values count. An outlier is a value that its own sample does
    not explain. Channels without a value in ``x`` have their ``ranges`` (C,).
    """
    magnitudes = x.abs().where(x != 0, torch.nan)
    typical = by_channel(magnitudes).nanmedian(1).values
    typical = torch.where(typical.isnan(), ranges, typical)
    brightness = (magnitudes / spatial(typical, x.shape[1:])).flatten(1).nanmedian(1).values
    return typical * brightness.nanquantile(BRIGHT).clamp_min(1).nan_to_num(1.0).float()


def _missed(task: Task, logits: Tensor, wanted: Tensor) -> float:
    """Share of decisions that differ: all, where no scale fits; a regression decides nothing."""
    if logits.isnan().any():
        return 1.0
    return 0.0 if task.name == "regression" else float((task.decide(logits) != task.decide(wanted)).mean())


def _drawn(graph: FloatGraph, sample: Tensor, extremes: Tensor, few: Tensor, recipe: Recipe) -> Tensor:
    """Logits on ``few`` of the staircase of ``graph`` on its payload, scaled on a ``sample``; NaN if no scale fits."""
    try:
        scales = choose_scales(graph, sample, recipe, extremes)
    except Refused:
        return graph.logits(few) * torch.nan
    unit, largest = spatial(scales.unit, graph.input_shape), (1 << (recipe.input_bits - 1)) - 1
    payload = (graph.arrange(few) / unit).round().clamp(-largest, largest)
    return graph.stairs(scales.thetas, recipe.timesteps).precise().logits((payload * unit).float())
