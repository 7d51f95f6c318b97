"""Convolutions over images and sequences, transposed ones too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends.affine import Affine, Unsupported
from toolchain.frontends.linear import Convolution, Selection
from toolchain.frontends.operations.padding import pad
from toolchain.frontends.registry import handles


def need_image(value: Affine) -> None:
    """Refuse a value that is not (C, H, W)."""
    if len(value.shape) != 3:
        raise Unsupported(f"gets shape {value.shape} where it needs (C, H, W)", "check input_shape and what precedes")


def two(value: int | Sequence[int]) -> tuple[int, int]:
    """Write one number for both axes, or one for each."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    return values[0], values[-1]


def as_image(handler: Callable[..., Affine], input: Affine, *args: Any) -> Affine:
    """Handle an operation on (C, L) as the one on (C, L, 1)."""
    if len(input.shape) != 2:
        raise Unsupported(f"gets shape {input.shape} where it needs (C, L)", "check input_shape and what precedes")
    result = handler(input.reshaped(input.constant.unsqueeze(-1)), *args)
    return result.reshaped(result.constant.squeeze(-1))


def along(value: Any, across: int = 1) -> tuple[int, int]:
    """Write the number for a sequence as those for an image of width one."""
    return two(value)[0], across


def _of_convolution(m: Any) -> tuple[Any, ...]:
    borders = None if m.padding_mode == "zeros" else (m._reversed_padding_repeated_twice, m.padding_mode)
    return m.weight, m.bias, m.stride, m.padding if borders is None else 0, m.dilation, m.groups, borders


@handles(modules={nn.Conv2d: _of_convolution}, functions=(functional.conv2d,), names=True)
def _conv2d(
    input: Affine,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    borders: tuple[Sequence[int], str] | None = None,
) -> Affine:
    """``borders`` is the padding of a module that does not pad with zeros, as ``functional.pad`` takes it."""
    need_image(input)
    if borders is not None:
        input = pad(input, *borders)
    constant = functional.conv2d(input.constant, weight, bias, stride, padding, dilation, groups)
    (dy, dx), (_, _, ky, kx) = two(dilation), weight.shape
    if padding == "same":  # where the sides differ, torch pads one more behind
        padding = (dy * (ky - 1) // 2, dx * (kx - 1) // 2)
    top, left = two(0 if padding == "valid" else padding)
    return input.then(
        Convolution(weight, input.shape, tuple(constant.shape[1:]), two(stride), (-top, -left), (dy, dx), groups),
        constant,
    )


@handles(modules={nn.Conv1d: _of_convolution}, functions=(functional.conv1d,), names=True)
def _conv1d(
    input: Affine,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    borders: tuple[Sequence[int], str] | None = None,
) -> Affine:
    if borders is not None:
        input = pad(input, *borders)
    padding = padding if isinstance(padding, str) else along(padding, 0)
    return as_image(_conv2d, input, weight.unsqueeze(-1), bias, along(stride), padding, along(dilation), groups)


@handles(functions=(functional.conv_transpose2d,), names=True)
def _conv_transpose2d(
    input: Affine,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Affine:
    """Lay zeros between the values, ``stride`` apart, and convolve with the mirrored kernel."""
    need_image(input)
    constant = functional.conv_transpose2d(
        input.constant, weight, bias, stride, padding, output_padding, groups, dilation
    )
    (_, share, *kernel), (sy, sx) = weight.shape, two(stride)
    c, h, w = input.shape
    spread = torch.full((c, (h - 1) * sy + 1, (w - 1) * sx + 1), -1)
    spread[:, ::sy, ::sx] = torch.arange(c * h * w).reshape(c, h, w)
    mirrored = weight.flip(2, 3).reshape(groups, c // groups, share, *kernel).transpose(1, 2).flatten(0, 1)
    offset = [p - d * (k - 1) for p, d, k in zip(two(padding), two(dilation), kernel, strict=True)]
    convolution = Convolution(
        mirrored,
        tuple(spread.shape),
        tuple(constant.shape[1:]),
        offset=(offset[0], offset[1]),
        dilation=two(dilation),
        groups=groups,
    )
    if (sy, sx) != (1, 1):
        input = input.then(Selection(spread, input.shape), input.constant)
    return replace(input, constant=constant).then(convolution, constant)


@handles(functions=(functional.conv_transpose1d,), names=True)
def _conv_transpose1d(
    input: Affine,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Affine:
    more = along(stride), along(padding, 0), along(output_padding, 0), groups, along(dilation)
    return as_image(_conv_transpose2d, input, weight.unsqueeze(-1), bias, *more)


@handles(modules=dict.fromkeys((nn.ConvTranspose1d, nn.ConvTranspose2d), lambda m: (m,)), names=True)
def _transposed(input: Affine, *size_and_module: Any, output_size: Any = None) -> Affine:
    *size, m = size_and_module
    output_size = size[0] if size else output_size
    axes = len(m.kernel_size)
    extra = m._output_padding(input.constant, output_size, m.stride, m.padding, m.kernel_size, axes, m.dilation)
    handler = _conv_transpose1d if axes == 1 else _conv_transpose2d
    return handler(input, m.weight, m.bias, m.stride, m.padding, extra, m.groups, m.dilation)
