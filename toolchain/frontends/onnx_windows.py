"""ONNX's operations on windows: convolutions, transposed ones, and average pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from toolchain.frontends.program import Unknown


def _padded(
    x: Any, kernel: Sequence[int], strides: Any, pads: Any, dilations: Any, auto_pad: str
) -> tuple[Any, list[int], list[int], list[int]]:
    """Strides, padding and dilations of a window; where the two sides differ, ``x`` comes back padded with zeros."""
    axes = len(kernel)
    strides, dilations = list(strides or [1] * axes), list(dilations or [1] * axes)
    sides = list(pads or [0] * 2 * axes)
    before, after = sides[:axes], sides[axes:]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        for axis, size in enumerate(x.shape[2:]):
            covered = (math.ceil(size / strides[axis]) - 1) * strides[axis] + dilations[axis] * (kernel[axis] - 1) + 1
            total = max(covered - size, 0)
            small, large = total // 2, total - total // 2
            before[axis], after[axis] = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    if before != after:
        x = functional.pad(x, [side for pair in zip(before[::-1], after[::-1], strict=True) for side in pair])
        before = [0] * axes
    return x, strides, before, dilations


def conv(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    kernel_shape: Any = None,
    strides: Any = None,
    pads: Any = None,
    dilations: Any = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Any:
    """Convolve (B, C, L) or (B, C, H, W)."""
    x, strides, padding, dilations = _padded(x, weight.shape[2:], strides, pads, dilations, auto_pad)
    convolve = functional.conv1d if len(strides) == 1 else functional.conv2d
    return convolve(x, weight, bias, strides, padding, dilations, group)


def average_pool(
    x: Any,
    *,
    kernel_shape: list[int],
    strides: Any = None,
    pads: Any = None,
    dilations: Any = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Any:
    """Average over windows; what lies around counts where ``count_include_pad`` says so."""
    padded, strides, padding, dilations = _padded(x, kernel_shape, strides, pads, dilations, auto_pad)
    if set(dilations) != {1}:
        return Unknown("AveragePool with dilation")(x)
    pool = functional.avg_pool1d if len(kernel_shape) == 1 else functional.avg_pool2d
    if padded is x or count_include_pad:
        return pool(padded, kernel_shape, strides, padding, bool(ceil_mode), bool(count_include_pad))
    # Where the sides differ, zeros are laid around first, and each mean is set right by how many of them it counts.
    ones, *_ = _padded(torch.ones(1, 1, *x.shape[2:]), kernel_shape, strides, pads, dilations, auto_pad)
    return pool(padded, kernel_shape, strides, 0, bool(ceil_mode)) / pool(
        ones, kernel_shape, strides, 0, bool(ceil_mode)
    )


def conv_transpose(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    kernel_shape: Any = None,
    strides: Any = None,
    pads: Any = None,
    dilations: Any = None,
    group: int = 1,
    auto_pad: str = "NOTSET",
    output_padding: Any = None,
    output_shape: Any = None,
) -> Any:
    """Convolve transposed without padding, which there is nothing but a crop, and crop."""
    axes = weight.dim() - 2
    strides, dilations, extra = list(strides or [1] * axes), list(dilations or [1] * axes), output_padding or [0] * axes
    sides = list(pads or [0] * 2 * axes)
    before, after = sides[:axes], sides[axes:]
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, weight.shape[2:], strict=True)]
    full = [s * (n - 1) + span + e for s, n, span, e in zip(strides, x.shape[2:], spans, extra, strict=True)]
    if auto_pad.startswith("SAME") and output_shape is None:
        output_shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    for axis, size in enumerate([] if output_shape is None else list(output_shape)[-axes:]):
        total = full[axis] - size
        first = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
        before[axis], after[axis] = first, total - first
    convolve = functional.conv_transpose1d if axes == 1 else functional.conv_transpose2d
    y = convolve(x, weight, bias, strides, 0, extra, group, dilations)
    crop = [slice(None)] * 2 + [slice(b, n - a) for b, n, a in zip(before, full, after, strict=True)]
    return y[tuple(crop)]
