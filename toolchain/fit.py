"""Integer weights fitted to the spikes that really arrive.

Rounding a weight to the nearest integer makes the error of the weight small; what counts is the error of the current.
And the spikes that a calibrated layer receives are not the activations that the weights were trained for: few steps
draw a coarse staircase, clip, and carry the errors of all layers below. Both are linear least squares on the spike
counts n of the calibration data, layer after layer, without labels or gradients::

    minimise over W, beta:  E |W n + beta - T * z|^2 + lambda |W - W_trained|^2        z: the ANN's current but its bias
    lambda = F / N * mean |n|^2                                                       F synapses a neuron, N samples

lambda is what makes the trained weights win where there are fewer samples than weights. The integers are then rounded
one synapse after the other, and what rounding adds to the current is taken up by the synapses that are still free
(Frantar & Alistarh, Optimal Brain Compression, NeurIPS 2022; in the fixed order of GPTQ, ICLR 2023).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from sim.chip import Chip
from sim.network import INPUT, Conv2d, Dense, Layer, Network, Synapse
from toolchain.graph import FloatConv2d, FloatDense
from toolchain.quantize import bias_schedule
from toolchain.thresholds import positions

LARGEST = 4608  #: synapses a neuron beyond which the F x F normal equations are not worth their time: 512 maps of 3x3
SAMPLES = 1 << 15  #: places at which currents are compared, about; 32 a synapse where that is more
CHUNK = 1 << 22  #: values of unfolded sources at a time
BLOCK = 128  #: synapses that are rounded before the others hear of it


def fit(
    network: Network,
    layer: Layer,
    nominal: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
    wanted: Tensor,
    chip: Chip,
) -> Layer:
    """Fit the largest edge of ``layer`` and its bias; the others stay as they are, their errors are fitted too.

    ``nominal`` holds the trained weights of every edge in su, float64; ``outputs`` the sources' spikes (T, B, *shape)
    and the payload; ``wanted`` the ANN's current into the layer without its bias, su per step, (B, *shape). What
    the integers lack of it on average is added to the layer's bias, which becomes constant again. A layer of more than
    ``LARGEST`` synapses a neuron is returned as it is.
    """
    chosen = max(range(len(layer.edges)), key=lambda i: layer.edges[i].synapse.weight.size)
    synapse, weight = layer.edges[chosen].synapse, nominal[chosen]
    groups = synapse.groups if isinstance(synapse, Conv2d) else 1
    rows = weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2)  # (groups, F, outputs of a group)
    size = rows.shape[1]
    if size > LARGEST:
        return layer
    timesteps = network.timesteps
    counts = {
        edge.source: outputs[edge.source].float() * timesteps
        if edge.source == INPUT
        else outputs[edge.source].sum(0, dtype=torch.int32).float()
        for edge in layer.edges
    }
    missing = timesteps * wanted
    for i, edge in enumerate(layer.edges):
        if i != chosen:
            missing -= _map(edge.synapse, counts[edge.source]).reshape(missing.shape)

    features = rows.new_zeros(groups, size, size), rows.new_zeros(groups, size)
    currents = rows.new_zeros(rows.shape), rows.new_zeros(groups, rows.shape[2])
    n = 0
    for x, z in _pairs(synapse, counts[layer.edges[chosen].source], missing, groups, max(SAMPLES, 32 * size)):
        n += x.shape[2]
        for total, part in zip(features + currents, (x @ x.mT, x.sum(2), x @ z.mT, z.sum(2)), strict=True):
            total += part
    (square, mean), (product, target) = ((a / n, b / n) for a, b in (features, currents))
    square -= mean[:, :, None] * mean[:, None]
    product -= mean[:, :, None] * target[:, None]
    ridge = size / n * square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-9)
    square.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(square))
    fitted = rows + inverse @ (product - square @ rows + ridge[:, None, None] * rows)
    integers = _round(fitted, inverse, chip.weight_limit)
    beta = (target - (mean[:, None] @ integers)[:, 0]).flatten()

    new = integers.transpose(1, 2).reshape(weight.shape).to(torch.int32).numpy()
    edges = list(layer.edges)
    edges[chosen] = replace(edges[chosen], synapse=replace(synapse, weight=new))
    rest = layer.bias.sum(0)
    if rest.ndim > 1 or len(beta) != layer.shape[0]:  # a bias of its own for every neuron
        rest = layer.per_neuron(rest).copy()
        beta = beta.reshape(layer.shape) if len(beta) == layer.size else beta.reshape(-1, *(1,) * (rest.ndim - 1))
    schedule = bias_schedule((torch.from_numpy(rest) + beta) / timesteps, timesteps)
    return replace(layer, edges=tuple(edges), bias=schedule)


def _map(synapse: Synapse, counts: Tensor) -> Tensor:
    """Currents over the whole window that spike counts (B, *source) cause."""
    weight = torch.from_numpy(synapse.weight.copy()).float()
    if isinstance(synapse, Dense):
        return FloatDense(weight)(counts)
    return FloatConv2d(weight, synapse.stride, synapse.padding, synapse.dilation, synapse.groups)(counts)


def _pairs(
    synapse: Synapse, counts: Tensor, missing: Tensor, groups: int, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Pair what a neuron's synapses receive, (groups, F, n), with the current it lacks, (groups, outputs, n)."""
    if isinstance(synapse, Dense):
        yield counts.flatten(1).T.double()[None], missing.flatten(1).T.double()[None]
        return
    samples, places = positions(missing.shape, most)
    kernel, space = synapse.weight.shape[2:], math.prod(missing.shape[2:])
    step = max(1, CHUNK // (counts.shape[1] * math.prod(kernel) * space))
    for start in range(0, len(counts), step):
        here = (samples >= start) & (samples < start + step)
        columns = functional.unfold(
            counts[start : start + step], kernel, synapse.dilation, synapse.padding, synapse.stride
        )
        at = samples[here] - start, places[here]
        x = columns[at[0], :, at[1]].T.reshape(groups, -1, len(at[0]))
        z = missing[start : start + step].flatten(2)[at[0], :, at[1]].T.reshape(groups, -1, len(at[0]))
        yield x, z


def _round(weights: Tensor, inverse: Tensor, limit: int) -> Tensor:
    """Round ``weights`` (groups, F, outputs) within +-limit so that ``E |(W - W_rounded) n|^2`` stays small.

    ``inverse`` (groups, F, F) is that of ``E[n n^T]``.
    """
    free, rounded = weights.clone(), torch.empty_like(weights)
    # Row j of the factor says how the synapses after j take up an error of synapse j.
    factor = torch.linalg.cholesky(inverse, upper=True)
    for start in range(0, weights.shape[1], BLOCK):
        stop = min(start + BLOCK, weights.shape[1])
        errors = torch.empty_like(free[:, start:stop])
        for j in range(start, stop):
            rounded[:, j] = free[:, j].round().clamp(-limit, limit)
            error = (free[:, j] - rounded[:, j]) / factor[:, j, j, None]
            free[:, j:stop] -= factor[:, j, j:stop, None] * error[:, None]
            errors[:, j - start] = error
        free[:, stop:] -= factor[:, start:stop, stop:].mT @ errors
    return rounded
