"""Convolutions whose sums are float64, in parts that stay in the processor's cache.

torch has none that is fast: its own unfolds every sample into memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sim.network import Geometry

CACHED = 1 << 18  #: values that are unfolded at a time


def conv2d(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Map (B, C_in, H, W) by float64 weights to (B, C_out, H', W'), as ``functional.conv2d`` does.

    Sums are float64 and rounded to the type of ``x``.
    """
    (stride, padding, dilation), kernel = geometry[:3], weight.shape[2:]
    if geometry.groups > 1:
        return functional.conv2d(x.double(), weight, None, *geometry).to(x.dtype)
    samples, channels, *size = x.shape
    rows, columns = ((size[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2))
    by_tap = weight.permute(0, 2, 3, 1).flatten(1).T  # the layout that is multiplied by fastest
    values = columns * len(by_tap)
    height = max(1, min(rows, CACHED // values))
    n = max(1, min(samples, CACHED // (rows * values)))
    padded = weight.new_zeros(n, size[0] + 2 * padding[0], size[1] + 2 * padding[1], channels)
    inside = padded[:, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    sample, row, column, _ = padded.stride()
    windows = padded.as_strided(
        (n, rows, columns, *kernel, channels),
        (sample, row * stride[0], column * stride[1], row * dilation[0], column * dilation[1], 1),
    )
    unfolded = weight.new_empty(n, height, columns, *kernel, channels)
    sums = weight.new_empty(n, height, columns, len(weight))
    out = x.new_empty(samples, rows, columns, len(weight))
    for start in range(0, samples, n):
        part = x[start : start + n].permute(0, 2, 3, 1)
        inside[: len(part)] = part
        for top in range(0, rows, height):
            here = min(height, rows - top)
            unfolded[:, :here] = windows[:, top : top + here]
            torch.mm(unfolded.view(-1, len(by_tap)), by_tap, out=sums.view(-1, len(weight)))
            out[start : start + n, top : top + here] = sums[: len(part), :here]
    return out.permute(0, 3, 1, 2)
