"""Values by channel: how (C,) meets (B, *shape), and which few of many samples and values are looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sim.network import Shape

VALUES = 1 << 14  #: values per channel that statistics look at
SAMPLES = 256  #: model inputs that statistics look at
GOLDEN = (5**0.5 - 1) / 2


def spatial(unit: Tensor, shape: Shape) -> Tensor:
    """Reshape a value per channel (C,) so that it multiplies (B, *shape); float64."""
    return unit.double().reshape(-1, *(1,) * (len(shape) - 1))


def by_channel(activations: Tensor) -> Tensor:
    """View (B, C, ...) as (C, values)."""
    return activations.transpose(0, 1).flatten(1)


def reduced(bias: Tensor) -> Tensor:
    """Reduce float64 (*shape) to (C,) where it is the same all over space."""
    flat = bias.reshape(len(bias), -1)
    # Equal sums taken in different orders differ by float64's rounding, far below what float32 keeps.
    same = (flat.amax(1) - flat.amin(1)).max() <= 1e-12 * flat.abs().max()
    return flat[:, 0] if same else bias


def spread(samples: int, most: int = SAMPLES) -> Tensor:
    """Choose ``most`` of so many samples, or all where there are no more, from all over them: int64 (n,), rising.

    Recordings change over time and data sets are sorted, so one is taken from each of ``most`` equal parts; some also
    come in turns, as ten classes may, so each at another place in its part.
    """
    if samples <= most:
        return torch.arange(samples)
    parts = torch.arange(most + 1) * samples // most
    place = torch.arange(most, dtype=torch.float64) * GOLDEN % 1
    return parts[:-1] + (place * parts.diff()).long()


def positions(shape: Sequence[int], most: int = VALUES) -> tuple[Tensor, Tensor]:
    """Choose about ``most`` evenly spread values of each channel of (B, C, ...): their samples and places, int64 (n,).

    ``x.flatten(2)[samples, :, places]`` are the values, (n, C). The spacing has no divisor in common with the size of
    an image, so that it does not fall into step with its rows.
    """
    space = math.prod(shape[2:])
    spacing = max(1, shape[0] * space // most)
    while math.gcd(spacing, space) > 1:
        spacing += 1
    every = torch.arange(0, shape[0] * space, spacing)
    return every // space, every % space


def sampled(x: Tensor, most: int = VALUES) -> Tensor:
    """Thin (B, C, ...) out to about ``most`` values per channel, evenly: (C, n), a channel's beside each other."""
    samples, places = positions(x.shape, most)
    return x.reshape(*x.shape[:2], -1)[samples, :, places].T.contiguous()
