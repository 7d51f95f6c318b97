"""Convolutions, linear layers, normalisation, pooling and means: maps with weights, given or implied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends.affine import BATCH, Affine, Unsupported, image
from toolchain.frontends.linear import Convolution, channelwise
from toolchain.frontends.operations.arithmetic import mul
from toolchain.frontends.registry import handles


def _need_image(value: Affine) -> None:
    if len(value.shape) != 3:
        raise Unsupported(f"gets shape {value.shape} where it needs (C, H, W)", "check input_shape and what precedes")


def _two(value: int | Sequence[int]) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    return values[0], values[-1]


def _convolution_arguments(m: Any) -> tuple[Any, ...]:
    if m.padding_mode != "zeros":
        raise Unsupported(f"has padding_mode {m.padding_mode!r}", "pad with zeros and fine-tune")
    return m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups


@handles(modules={nn.Conv2d: _convolution_arguments}, functions=(functional.conv2d,), names=True)
def _conv2d(
    input: Affine,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Affine:
    _need_image(input)
    constant = functional.conv2d(input.constant, weight, bias, stride, padding, dilation, groups)
    (dy, dx), (_, _, ky, kx) = _two(dilation), weight.shape
    if padding == "same":  # where the sides differ, torch pads one more behind
        padding = (dy * (ky - 1) // 2, dx * (kx - 1) // 2)
    top, left = _two(0 if padding == "valid" else padding)
    return input.then(
        Convolution(weight, input.shape, tuple(constant.shape[1:]), _two(stride), (-top, -left), (dy, dx), groups),
        constant,
    )


@handles(modules={nn.Linear: lambda m: (m.weight, m.bias)}, functions=(functional.linear,), names=True)
def _linear(input: Affine, weight: Tensor, bias: Tensor | None = None) -> Affine:
    constant = functional.linear(input.constant, weight, bias)
    if len(input.shape) != 1:
        return input.then_other(lambda x: functional.linear(x, weight), constant)
    n_out, n_in = weight.shape
    return input.then(Convolution(weight[..., None, None], (n_in, 1, 1), (n_out, 1, 1)), constant)


def _normalisation_arguments(m: Any) -> tuple[Any, ...]:
    return m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps


@handles(
    modules=dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _normalisation_arguments),
    functions=(functional.batch_norm,),
)
def _batch_norm(
    input: Affine,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Affine:
    if training or running_mean is None or running_var is None:
        raise Unsupported(
            "normalises by the statistics of the batch",
            "train with track_running_stats=True and normalise by them in eval mode",
        )
    constant = functional.batch_norm(input.constant, running_mean, running_var, weight, bias, False, momentum, eps)
    scale = (running_var + eps).rsqrt()
    return input.then(channelwise(scale if weight is None else scale * weight, image(input.shape)), constant)


def _pool(
    input: Affine,
    constant: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    divisor: int,
) -> Affine:
    channels = input.shape[0]
    weight = torch.full((channels, 1, *kernel), 1 / divisor, dtype=torch.float64)
    return input.then(
        Convolution(
            weight, input.shape, tuple(constant.shape[1:]), stride, (-padding[0], -padding[1]), groups=channels
        ),
        constant,
    )


@handles(
    modules={
        nn.AvgPool2d: lambda m: (
            m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override,
        )
    },
    functions=(functional.avg_pool2d,),
)  # fmt: skip
def _avg_pool2d(
    input: Affine,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Affine:
    _need_image(input)
    stride = stride or kernel_size

    def pool(x: Tensor, divisor: int | None = divisor_override) -> Tensor:
        return functional.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor)

    # At the borders torch may divide by less than the kernel's size; then the pooling is no convolution.
    ones = torch.ones(1, 1, *input.shape[1:], dtype=torch.float64)
    divisors = (pool(ones, 1) / pool(ones)).round().unique()
    constant = pool(input.constant)
    if len(divisors) > 1:
        return input.then_other(pool, constant)
    return _pool(input, constant, _two(kernel_size), _two(stride), _two(padding), int(divisors))


@handles(
    modules={nn.AdaptiveAvgPool2d: lambda m: (m.output_size,)},
    functions=(functional.adaptive_avg_pool2d,),
)
def _adaptive_avg_pool2d(input: Affine, output_size: Any) -> Affine:
    _need_image(input)
    constant = functional.adaptive_avg_pool2d(input.constant, output_size)
    (h, w), (rows, columns) = input.shape[1:], constant.shape[2:]
    if rows % h == columns % w == 0:  # every window holds one value
        return input.selected(functional.adaptive_avg_pool2d(input.positions(), output_size), constant)
    if h % rows or w % columns:
        return input.then_other(lambda x: functional.adaptive_avg_pool2d(x, output_size), constant)
    kernel = (h // rows, w // columns)
    return _pool(input, constant, kernel, kernel, (0, 0), math.prod(kernel))


@handles(functions=(torch.mean,), methods=("mean",))
def _mean(input: Affine, dim: Any = None, keepdim: bool = False) -> Affine:
    rank = input.constant.dim()
    averaged = {d % rank for d in (range(rank) if dim is None else (dim,) if isinstance(dim, int) else dim)}
    if 0 in averaged:
        raise Unsupported("averages over the batch", "name the dimensions, as in x.mean((2, 3))")
    constant = input.constant.mean(dim, keepdim)
    if 1 in averaged or rank > 4:
        return input.then_other(lambda x: x.mean(dim, keepdim), constant)
    kept = replace(input, constant=input.constant.reshape(BATCH, *image(input.shape)))
    h, w = (n if axis in averaged else 1 for axis, n in enumerate(kept.shape[1:], 2))
    pooled = functional.avg_pool2d(kept.constant, (h, w))
    return _pool(kept, pooled, (h, w), (h, w), (0, 0), h * w).reshaped(constant)


@handles(functions=(torch.sum,), methods=("sum",))
def _sum(input: Affine, dim: Any = None, keepdim: bool = False) -> Affine:
    mean = _mean(input, dim, keepdim)
    return mul(mean, input.constant.numel() // mean.constant.numel())


# ---- over sequences: as the same over images of width one -----------------------------------------------------------


def _as_image(handler: Callable[..., Affine], input: Affine, *args: Any) -> Affine:
    """Handle an operation on (C, L) as the one on (C, L, 1)."""
    if len(input.shape) != 2:
        raise Unsupported(f"gets shape {input.shape} where it needs (C, L)", "check input_shape and what precedes")
    result = handler(input.reshaped(input.constant.unsqueeze(-1)), *args)
    return result.reshaped(result.constant.squeeze(-1))


def _along(value: Any, across: int = 1) -> tuple[int, int]:
    return _two(value)[0], across


@handles(modules={nn.Conv1d: _convolution_arguments}, functions=(functional.conv1d,), names=True)
def _conv1d(
    input: Affine,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Affine:
    padding = padding if isinstance(padding, str) else _along(padding, 0)
    kernel = weight.unsqueeze(-1)
    return _as_image(_conv2d, input, kernel, bias, _along(stride), padding, _along(dilation), groups)


@handles(
    modules={nn.AvgPool1d: lambda m: (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)},
    functions=(functional.avg_pool1d,),
)
def _avg_pool1d(
    input: Affine,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Affine:
    stride = _along(stride or kernel_size)
    return _as_image(_avg_pool2d, input, _along(kernel_size), stride, _along(padding, 0), ceil_mode, count_include_pad)


@handles(
    modules={nn.AdaptiveAvgPool1d: lambda m: (m.output_size,)},
    functions=(functional.adaptive_avg_pool1d,),
)
def _adaptive_avg_pool1d(input: Affine, output_size: Any) -> Affine:
    return _as_image(_adaptive_avg_pool2d, input, _along(output_size))
