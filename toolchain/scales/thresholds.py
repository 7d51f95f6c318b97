"""Float thresholds per channel: the activation that a neuron firing at every step stands for."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sim.findings import refuse
from toolchain.graph.channels import by_channel, sampled

GRID = 100  #: fractions of the maximum that the MSE search tries, as in SNN Calibration's public setting
CACHED = 1 << 17  #: values whose error is computed at a time
RARE = 64  #: positive values of a channel in the sample, below which it is looked at where it is positive


def quantisation_error(a: Tensor, theta: Tensor, timesteps: int) -> Tensor:
    """Mean squared error per channel of the staircase that T spikes of height theta/T can draw.

    ``|clip(floor(a*T/theta + 1/2), 0, T) * theta/T - a|^2`` (Li et al., SNN Calibration, ICML 2021), for ``a`` (C, n)
    and ``theta`` (C,); returns (C,).
    """
    step, channels, errors = theta / timesteps, max(1, CACHED // max(1, a.shape[1])), []
    for part, height in zip(a.split(channels), step.split(channels), strict=True):
        spikes = part / height[:, None]
        spikes -= (spikes + 0.5).floor_().clamp_(0, timesteps)
        errors.append(spikes.square_().mean(1, dtype=torch.float64))
    return torch.cat(errors) * step**2


def _maximum(activations: Tensor, timesteps: int) -> Tensor:
    return by_channel(activations).amax(1)


def _percentile(activations: Tensor, timesteps: int) -> Tensor:
    a = by_channel(activations)
    theta = _top(a)
    for channel in (theta <= 0).nonzero().flatten():  # it fires, but less than once in a thousand times
        if (positive := a[channel][a[channel] > 0]).numel():
            theta[channel] = _top(positive[None])[0]
    return theta


def _top(a: Tensor) -> Tensor:
    # kthvalue, because torch.quantile refuses more than 2**24 values.
    return a.kthvalue(max(1, round(0.999 * a.shape[1])), dim=1).values


def _mse(activations: Tensor, timesteps: int) -> Tensor:
    whole, few = by_channel(activations), sampled(activations)
    largest = whole.amax(1)
    theta = _least(few, largest, timesteps)
    if few.shape[1] < whole.shape[1]:
        # Where too little of a channel is sampled, every small threshold is as good as any. Zeros cost nothing at any.
        for channel in ((largest > 0) & ((few > 0).sum(1) < RARE)).nonzero().flatten():
            positive = whole[channel][whole[channel] > 0]
            theta[channel] = _least(sampled(positive[:, None]), largest[channel, None], timesteps)[0]
    return theta


def _least(a: Tensor, largest: Tensor, timesteps: int) -> Tensor:
    """Fraction of ``largest`` (C,) with the least :func:`quantisation_error` of ``a`` (C, n)."""
    best, theta = torch.full_like(largest, torch.inf), largest.clone()
    for fraction in torch.arange(1, GRID + 1) / GRID:
        candidate = largest * fraction
        error = quantisation_error(a, candidate.clamp_min(torch.finfo(a.dtype).tiny), timesteps)
        theta = torch.where(error < best, candidate, theta)
        best = torch.minimum(error, best)
    return theta


RULES: dict[str, Callable[[Tensor, int], Tensor]] = {"max": _maximum, "percentile": _percentile, "mse": _mse}


def choose(rule: str, activations: Tensor, timesteps: int) -> Tensor:
    """Thresholds (C,) of one layer from its activations (B, C, ...) on the calibration data.

    ``rule`` is ``max``, ``percentile`` (99.9 %) or ``mse`` (grid search over fractions of the maximum). A channel that
    fires too rarely for its rule is looked at where it does. One that never fires on the calibration data gets the
    layer's largest threshold: it stays silent, and its weights don't squeeze the others'.
    """
    if rule not in RULES:
        raise refuse("thresholds", f"unknown rule {rule!r}", f"use one of {', '.join(RULES)}")
    theta = RULES[rule](activations, timesteps)
    largest = theta.max()
    return torch.where(theta > 0, theta, largest if largest > 0 else torch.ones(()))
