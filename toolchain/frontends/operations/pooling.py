"""Pooling, means and sums, and normalisation by constants."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends.advice import advice
from toolchain.frontends.affine import BATCH, Affine, Unsupported, image
from toolchain.frontends.linear import Convolution, channelwise
from toolchain.frontends.operations.arithmetic import mul
from toolchain.frontends.operations.convolutions import along, as_image, need_image, two
from toolchain.frontends.operations.neutral import need_floating
from toolchain.frontends.registry import handles


def _normalisation_arguments(m: Any) -> tuple[Any, ...]:
    return m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps


@handles(
    modules=dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm), _normalisation_arguments),
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


@handles(
    modules={
        kind: lambda m: (
            m.running_mean, m.running_var, m.weight, m.bias, not m.track_running_stats, 0.0, m.eps,
        )
        for kind in (nn.InstanceNorm1d, nn.InstanceNorm2d)
    },
    functions=(functional.instance_norm,),
)  # fmt: skip
def _instance_norm(
    input: Affine,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Affine:
    if use_input_stats or running_mean is None or running_var is None:
        raise Unsupported(*advice("instance_norm"))
    return _batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


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
    need_image(input)
    stride = stride or kernel_size

    def pool(x: Tensor, divisor: int | None = divisor_override) -> Tensor:
        return functional.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor)

    # At the borders torch may divide by less than the kernel's size; then the pooling is no convolution.
    ones = torch.ones(1, 1, *input.shape[1:], dtype=torch.float64)
    divisors = (pool(ones, 1) / pool(ones)).round().unique()
    constant = pool(input.constant)
    if len(divisors) > 1:
        return input.then_other(pool, constant)
    return _pool(input, constant, two(kernel_size), two(stride), two(padding), int(divisors))


@handles(
    modules={nn.AdaptiveAvgPool2d: lambda m: (m.output_size,)},
    functions=(functional.adaptive_avg_pool2d,),
)
def _adaptive_avg_pool2d(input: Affine, output_size: Any) -> Affine:
    need_image(input)
    constant = functional.adaptive_avg_pool2d(input.constant, output_size)
    (h, w), (rows, columns) = input.shape[1:], constant.shape[2:]
    if rows % h == columns % w == 0:  # every window holds one value
        return input.selected(functional.adaptive_avg_pool2d(input.positions(), output_size), constant)
    if h % rows or w % columns:
        return input.then_other(lambda x: functional.adaptive_avg_pool2d(x, output_size), constant)
    kernel = (h // rows, w // columns)
    return _pool(input, constant, kernel, kernel, (0, 0), math.prod(kernel))


@handles(functions=(torch.mean,), methods=("mean",))
def _mean(input: Affine, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Affine:
    need_floating(dtype)
    rank = input.constant.dim()
    averaged = {d % rank for d in ((dim,) if isinstance(dim, int) else dim or range(rank))}
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
def _sum(input: Affine, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Affine:
    mean = _mean(input, dim, keepdim, dtype=dtype)
    return mul(mean, input.constant.numel() // mean.constant.numel())


@handles(functions=(torch.cumsum,), methods=("cumsum",))
def _cumsum(input: Affine, dim: int, *, dtype: torch.dtype | None = None) -> Affine:
    need_floating(dtype)
    return input.mapped(lambda x: x.cumsum(dim))


@handles(functions=(torch.diff,), methods=("diff",))
def _diff(input: Affine, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None) -> Affine:
    return input.mapped(lambda x: torch.diff(x, n, dim, prepend, append))


# ---- over sequences: as the same over images of width one -----------------------------------------------------------


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
    stride = along(stride or kernel_size)
    return as_image(_avg_pool2d, input, along(kernel_size), stride, along(padding, 0), ceil_mode, count_include_pad)


@handles(
    modules={nn.AdaptiveAvgPool1d: lambda m: (m.output_size,)},
    functions=(functional.adaptive_avg_pool1d,),
)
def _adaptive_avg_pool1d(input: Affine, output_size: Any) -> Affine:
    return as_image(_adaptive_avg_pool2d, input, along(output_size))
