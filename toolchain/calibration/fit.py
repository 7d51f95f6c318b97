"""Integer weights fitted to the spikes that really arrive.

Rounding a weight to the nearest integer makes the error of the weight small; what counts is the error of the current.
And the spikes that a calibrated layer receives are not the activations that the weights were trained for: few steps
draw a coarse staircase, clip, and carry the errors of all layers below. Both are linear least squares on the spike
counts n of the calibration data, layer after layer, without labels or gradients::

    minimise over W, beta:  E |W n + beta - T * z|^2 + lambda |W - W_trained|^2        z: the ANN's current, su per step
    lambda = F / N * mean |n|^2                                                       F synapses a neuron, N samples

lambda is what makes the trained weights win where there are fewer samples than weights. The integers are then rounded
one synapse after the other, and what rounding adds to the current is taken up by the synapses that are still free
(Frantar & Alistarh, Optimal Brain Compression, NeurIPS 2022; in the fixed order of GPTQ, ICLR 2023).

The sums over samples are exact, so that no processor's order of adding changes them: counts are integers, and the
current that is missing is rounded to a grid so coarse that sums of its products with counts fit float64 (:func:`grid`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sim.chip import Chip
from sim.fast.convolution import convolved
from sim.network import INPUT, Conv2d, Dense, Layer, Network, Synapse, SynapseTable
from toolchain.graph.channels import positions
from toolchain.scales.integers import bias_schedule

LARGEST = 4608  #: synapses of a neuron that are fitted together, 512 maps of 3x3: the normal equations are F x F
SAMPLES = 1 << 15  #: places at which currents are compared, at least, if there are as many
PLACES = 16  #: such places for every synapse of a neuron, at least
CHUNK = 1 << 22  #: values that synapses receive, at a time
CACHED = 1 << 18  #: currents that are computed at a time
EXACT = 1 << 24  #: up to which float32 holds every integer
BLOCK = 128  #: synapses that are rounded before the others hear of it


def fit(
    network: Network,
    layer: Layer,
    nominal: Sequence[Tensor],
    outputs: Mapping[str, Tensor],
    wanted: Tensor,
    chip: Chip,
    *,
    keep: bool = False,
) -> Layer:
    """Fit the edges of ``layer``, the largest first, each to what the others leave, and its bias.

    ``nominal`` holds the trained weights of every edge in su, float64; ``outputs`` the sources' spikes (T, B, *shape)
    and the payload; ``wanted`` the ANN's current into the layer without its bias, su per step, (B, *shape). What the
    integers lack of it on average is added to the layer's bias, which becomes constant again. An edge that mostly
    selects, as a shortcut into more channels, stays as it is: fitting would add synapses where there are none. With
    ``keep`` the trained weights are only rounded, together.
    """
    timesteps, edges = network.timesteps, list(layer.edges)
    largest_first = sorted(range(len(edges)), key=lambda i: -edges[i].synapse.weight.size)
    chosen = [i for i in largest_first if not selects(nominal[i])]
    if not chosen:
        return layer
    counts = {
        edge.source: outputs[edge.source].double() * timesteps * 2.0**edge.exponent
        if edge.source == INPUT
        else _counted(outputs[edge.source])
        for edge in edges
    }
    trained = torch.from_numpy(layer.bias.sum(0, dtype=np.int64)).double()
    bias = torch.from_numpy(layer.per_neuron(trained.numpy()).copy())  # over the window, su
    missing = timesteps * wanted
    for i, edge in enumerate(edges):
        if i != chosen[0]:
            _add(missing, edge.synapse, counts[edge.source], -1)

    apart = trained.ndim > 1  # a bias of its own for every neuron
    for turn, i in enumerate(chosen):
        synapse, arrived = edges[i].synapse, counts[edges[i].source]
        how = SYNAPSES[type(synapse)]
        groups = how.groups(synapse)
        trained_weights = nominal[i] / 2.0 ** edges[i].exponent
        rows = trained_weights.reshape(groups, len(trained_weights) // groups, -1).mT  # (groups, F, outputs of a group)
        if turn:
            _add(missing, synapse, arrived)
        # What one part of the synapses is fitted to lacks what the others cause.
        others = float(rows.abs().sum(1).max()) * _largest(arrived) if rows.shape[1] > LARGEST else 0.0
        step = grid(arrived, edges[i].exponent, missing, others)
        for part in _parts(missing):
            part.div_(step).round_().mul_(step)
        pairs = partial(how.pairs, synapse, arrived, missing, max(SAMPLES, PLACES * rows.shape[1]))
        integers, beta = _solve(rows, pairs, chip.weight_limit, keep)
        synapse = replace(synapse, weight=integers.mT.reshape(nominal[i].shape).to(torch.int32).numpy())
        edges[i] = replace(edges[i], synapse=synapse)
        apart |= how.apart and len(layer.shape) > 1
        beta = beta.reshape(layer.shape) if how.apart else beta.reshape(-1, *(1,) * (bias.ndim - 1))
        bias += beta
        if i != chosen[-1]:
            _add(missing, synapse, arrived, -1, beta.float())
    if not apart:
        bias = bias.reshape(len(trained), -1)[:, 0]
    return replace(layer, edges=tuple(edges), bias=bias_schedule(bias / timesteps, timesteps))


def _solve(
    rows: Tensor, pairs: Callable[[], Iterable[tuple[Tensor, Tensor]]], limit: int, keep: bool
) -> tuple[Tensor, Tensor]:
    """Integer weights (groups, F, outputs) within +-limit and the bias (outputs of all groups,) that fit ``pairs``.

    ``rows`` are the trained weights, which ``keep`` only rounds; the pairs are those of :class:`SynapseFit`, gone
    through once for every ``LARGEST`` synapses, which are fitted to what the others leave. All but the counts are
    float64, the bias su a window.
    """
    integers, beta = rows.round().clamp(-limit, limit), rows.new_zeros(rows.shape[::2])
    for block in torch.arange(rows.shape[1]).split(LARGEST):
        others = integers.index_fill(1, block, 0) if len(block) < rows.shape[1] else None
        fitted, factor, means, target = _fitted(rows, block, others, pairs(), keep)
        integers[:, block] = _round(fitted, factor, limit)
        beta = target - (means[:, None] @ integers[:, block])[:, 0]
    return integers, beta.flatten()


def _fitted(
    rows: Tensor, block: Tensor, others: Tensor | None, pairs: Iterable[tuple[Tensor, Tensor]], keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Fit some synapses beside the integers of ``others``.

    Returns real weights (groups, f, outputs), the factor by which to round them (:func:`_round`), the mean count that
    arrives at each synapse (groups, f) and the mean current that is to be caused (groups, outputs).
    """
    groups, outputs, f = len(rows), rows.shape[2], len(block)
    square, mean = rows.new_zeros(groups, f, f), rows.new_zeros(groups, f)
    product, target = rows.new_zeros(groups, f, outputs), rows.new_zeros(groups, outputs)
    n = 0
    for x, z in pairs:
        n += x.shape[2]
        if others is not None:
            z = z - others.mT @ x.to(z)
            x = x[:, block]
        for some in range(0, f, BLOCK):  # half of what is symmetric
            upto = some + BLOCK
            square[:, some:upto, :upto] += x[:, some:upto] @ x[:, :upto].mT
        for total, part in ((mean, x.sum(2)), (product, x.to(z) @ z.mT), (target, z.sum(2))):
            total += part
    for some in range(BLOCK, f, BLOCK):
        square[:, :some, some : some + BLOCK] = square[:, some : some + BLOCK, :some].mT
    for total in (square, mean, product, target):
        total /= n
    square -= mean[:, :, None] * mean[:, None]
    product -= mean[:, :, None] * target[:, None]
    ridge = rows.shape[1] / n * square.diagonal(dim1=1, dim2=2).mean(1).clamp_min(1e-9)
    trained = rows[:, block]
    missing = product - square @ trained
    square.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    # From the last synapse to the first: then the factor is that of the order in which they are rounded.
    factor = torch.linalg.cholesky(square.flip(1, 2))
    fitted = trained if keep else trained + torch.cholesky_solve(missing.flip(1), factor).flip(1)
    return fitted, factor.flip(1, 2), mean, target


def selects(weights: Tensor) -> bool:
    """Whether most weights are zero, as in a shortcut into more channels."""
    return bool((weights == 0).double().mean() > 0.5)


def grid(counts: Tensor, exponent: int, missing: Tensor, beside: float = 0.0) -> float:
    """Power of two: sums of ``counts`` times multiples of it as large as ``missing`` (B, C, ...) are exact in float64.

    So are those of what is larger by up to ``beside``.

    Counts are integers, or where ``exponent`` is negative multiples of ``2**exponent``. A sum has a product for every
    sample and place at most, and float64 holds every integer up to 2**53.
    """
    reach = _largest(missing) + beside
    largest = missing[:, 0].numel() * _largest(counts) / 2.0 ** min(exponent, 0) * reach
    return 2.0 ** (math.ceil(math.log2(max(largest, 1.0))) - 52)


def _counted(spikes: Tensor) -> Tensor:
    """Count the spikes (T, B, *shape) of each neuron: uint8 (B, *shape), or int32 where they may be more."""
    counts = spikes[0].to(torch.uint8 if len(spikes) < 256 else torch.int32, copy=True)
    for step in spikes[1:]:
        counts += step
    return counts


def _parts(values: Tensor) -> Sequence[Tensor]:
    """View (B, ...) in parts of samples that stay in the cache: what is large costs more to read than to work on."""
    return values.split(max(1, CACHED // max(1, values[0].numel())))


def _largest(values: Tensor) -> float:
    """Return the largest magnitude of (B, ...)."""
    return max(abs(float(extreme)) for part in _parts(values) for extreme in torch.aminmax(part))


def _add(missing: Tensor, synapse: Synapse, counts: Tensor, sign: int = 1, beside: Tensor | float = 0.0) -> None:
    """Add to ``missing``, or take from it, the currents over the whole window that spike counts cause, exact.

    ``counts`` (B, *source) are integers, or a payload in float64; ``beside`` is added to the currents.
    """
    weight, largest = torch.from_numpy(synapse.weight.copy()), _largest(counts)
    exact = torch.float64 if int(weight.flatten(1).abs().sum(1).max()) * largest >= EXACT else _quickest(counts)
    weight, compute = weight.to(exact), SYNAPSES[type(synapse)].map
    parts = _parts(missing)
    for part, some in zip(parts, counts.split(len(parts[0])), strict=True):
        part.add_(compute(synapse, weight, some.to(exact)).reshape(part.shape) + beside, alpha=sign)


def _quickest(counts: Tensor) -> torch.dtype:
    return counts.dtype if counts.is_floating_point() else torch.float32


def _size(counts: Tensor, values: int) -> int:
    """How many samples, or places, to pair at a time where each brings so many values.

    Integers are multiplied in float32, the quickest, and are so few that sums of their squares are exact.
    """
    size = CHUNK // values
    if _quickest(counts) == torch.float32:
        size = min(size, int(EXACT / max(_largest(counts) ** 2, 1.0)))
    return max(1, size)


def _dense_pairs(synapse: Dense, counts: Tensor, missing: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    x, z, size = counts.flatten(1), missing.flatten(1), _size(counts, synapse.weight.shape[1])
    for some, lacking in zip(x.split(size), z.split(size), strict=True):
        yield some.T.to(_quickest(counts))[None], lacking.T.double()[None]


def _conv2d_pairs(synapse: Conv2d, counts: Tensor, missing: Tensor, most: int) -> Iterator[tuple[Tensor, Tensor]]:
    samples, places = positions(missing.shape, most)
    stride, (top, left), dilation, groups = synapse.geometry
    kernel, width = synapse.weight.shape[2:], missing.shape[3]
    padded = functional.pad(counts, (left, left, top, top))
    row = padded.shape[3]
    corner = places // width * stride[0] * row + places % width * stride[1]
    tap = torch.arange(kernel[0])[:, None] * dilation[0] * row + torch.arange(kernel[1]) * dilation[1]
    sources, lacking = padded.flatten(2), missing.flatten(2)
    for part in torch.arange(len(places)).split(_size(counts, counts.shape[1] * tap.numel())):
        at = samples[part]
        x = sources[at[:, None], :, corner[part, None] + tap.flatten()]  # (n, taps, C_in)
        z = lacking[at, :, places[part]].double()
        x = x.mT.to(_quickest(counts)).reshape(len(at), groups, -1)
        yield x.permute(1, 2, 0), z.T.reshape(groups, -1, len(at))


@dataclass(frozen=True)
class SynapseFit:
    """How one type of synapse is fitted."""

    map: Callable[[Any, Tensor, Tensor], Tensor]  #: (synapse, weight, spike counts (B, *source)) -> current (B, ...)
    groups: Callable[[Any], int]  #: of outputs that read the same neurons
    apart: bool  #: whether a row of the weight is a neuron, with a bias of its own, and not a channel
    #: (synapse, spike counts, current that is missing, how many) -> pairs of what a neuron's synapses receive,
    #: (groups, F, n), and the current it lacks, (groups, outputs, n)
    pairs: Callable[[Any, Tensor, Tensor, int], Iterator[tuple[Tensor, Tensor]]]


SYNAPSES = SynapseTable[SynapseFit](
    {
        Dense: SynapseFit(
            lambda _, weight, counts: functional.linear(counts.flatten(1), weight), lambda _: 1, True, _dense_pairs
        ),
        Conv2d: SynapseFit(
            lambda synapse, weight, counts: convolved(counts, weight, synapse.geometry),
            lambda synapse: synapse.geometry.groups,
            False,
            _conv2d_pairs,
        ),
    }
)


def _round(weights: Tensor, factor: Tensor, limit: int) -> Tensor:
    """Round ``weights`` (groups, F, outputs) within +-limit so that ``E |(W - W_rounded) n|^2`` stays small.

    ``factor`` (groups, F, F) is the upper triangular R of ``E[n n^T] = R R^T``. Row j of ``R^T (W - W_rounded)``, whose
    square is the error, depends on the synapses up to j only: each integer is the nearest to what makes its row zero.
    So the synapses that are still free take up what rounding adds, as with the inverse that GPTQ needs (Chen et al.,
    The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm, 2025).
    """
    rounded = torch.empty_like(weights)
    scale = factor.diagonal(dim1=1, dim2=2)[:, :, None]
    for start in range(0, weights.shape[1], BLOCK):
        stop = min(start + BLOCK, weights.shape[1])
        lacking = factor[:, :start, start:stop].mT @ (weights[:, :start] - rounded[:, :start])
        for j in range(start, stop):
            wanted = weights[:, j] + lacking[:, j - start] / scale[:, j]
            rounded[:, j] = wanted.round().clamp(-limit, limit)
            lacking += factor[:, j, start:stop, None] * (weights[:, j] - rounded[:, j])[:, None]
    return rounded
