"""The operations of aten, as ``torch.export`` writes them, in torch functions with aten's names of arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from toolchain.frontends.program import CONSTANT_LIMIT, filled


def _convolution(
    input: Any,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Any:
    if transposed:
        transpose = functional.conv_transpose1d if weight.dim() == 3 else functional.conv_transpose2d
        return transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)
    convolve = functional.conv1d if weight.dim() == 3 else functional.conv2d
    return convolve(input, weight, bias, stride, padding, dilation, groups)


def _addmm(input: Any, mat1: Any, mat2: Any, beta: float = 1, alpha: float = 1) -> Any:
    return _matmul(mat1, mat2 if alpha == 1 else mat2 * alpha) + input * beta


def _matmul(input: Any, other: Any) -> Any:
    if isinstance(other, Tensor) and other.dim() == 2:
        return functional.linear(input, other.t())
    return torch.matmul(input, other)


def _batch_norm(
    input: Any,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Any:
    return functional.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)


def _instance_norm(
    input: Any,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
) -> Any:
    return functional.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _where(condition: Any, self: Any, other: Any) -> Any:
    return torch.where(condition, self, other)


def _batch_norm_of_several(input: Any, *, training: bool = False, **others: Any) -> tuple[Any, ...]:
    return _batch_norm(input, training=training, **others), None, None, None, None


def _slice(input: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    return input[(slice(None),) * (dim % input.dim()) + (slice(start, end, step),)]


def _select(input: Any, dim: int, index: int) -> Any:
    return input[(slice(None),) * (dim % input.dim()) + (index,)]


def _method(name: str) -> Callable[..., Any]:
    def call(input: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(input, name)(*args, **kwargs)

    return call


def _as_it_is(value: Any) -> Any:
    return value


def _to_copy(input: Any, dtype: torch.dtype | None = None) -> Any:
    return input.float() if dtype is None or dtype.is_floating_point else input.to(dtype)


def _few(count: float) -> None:
    if count > CONSTANT_LIMIT:
        raise RuntimeError(f"a constant has more than {CONSTANT_LIMIT:,} values")


def _arange(start: Any, end: Any = None, step: Any = 1, dtype: torch.dtype | None = None) -> Tensor:
    start, end = (0, start) if end is None else (start, end)
    _few((end - start) / step)
    return torch.arange(start, end, step, dtype=dtype)


def _full(size: Any, value: float, dtype: torch.dtype | None = None) -> Tensor:
    return filled(size, value) if dtype is None else filled(size, value).to(dtype)


def _linspace(start: float, end: float, steps: int, dtype: torch.dtype | None = None) -> Tensor:
    _few(steps)
    return torch.linspace(start, end, steps, dtype=dtype)


def _index(input: Any, indices: list[Any]) -> Any:
    return input[tuple(slice(None) if index is None else index for index in indices)]


def _slice_scatter(
    input: Any, src: Any, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Any:
    if step != 1:
        raise RuntimeError("slice_scatter with steps is not known")
    size = input.shape[dim]
    first, last, _ = slice(start, end).indices(size)
    before, after = _slice(input, dim, 0, first), _slice(input, dim, last, size)
    parts = [(before, first), (src, last - first), (after, size - last)]
    return torch.cat([part for part, length in parts if length], dim)


def _interpolate(mode: str) -> Callable[..., Any]:
    def call(
        input: Any, output_size: Any, align_corners: bool | None = None, scale_factors: Any = None, **scales: Any
    ) -> Any:
        size = None if output_size is None else tuple(output_size)
        return functional.interpolate(input, size, scale_factors, mode, align_corners)

    return call


def _grid_sample(input: Any, grid: Any, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Any:
    mode, padding = (
        ("bilinear", "nearest", "bicubic")[interpolation_mode],
        ("zeros", "border", "reflection")[padding_mode],
    )
    return functional.grid_sample(input, grid, mode, padding, align_corners)


def _pad(mode: str) -> Callable[..., Any]:
    return lambda input, padding: functional.pad(input, tuple(padding), mode)


def _reshape(input: Any, size: Any) -> Any:
    return torch.reshape(input, tuple(size))


_ARITHMETIC: dict[str, Callable[..., Any]] = {"add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div}

#: By their names in ``torch.ops.aten``, overload included. They get the first argument by position, the others by name.
ATEN: dict[str, Callable[..., Any]] = {
    "conv1d.default": functional.conv1d,
    "conv1d.padding": functional.conv1d,
    "conv2d.default": functional.conv2d,
    "conv2d.padding": functional.conv2d,
    "convolution.default": _convolution,
    "linear.default": functional.linear,
    "addmm.default": _addmm,
    "mm.default": lambda input, mat2: _matmul(input, mat2),
    "matmul.default": _matmul,
    "t.default": torch.t,
    "batch_norm.default": _batch_norm,
    "_native_batch_norm_legit_no_training.default": _batch_norm_of_several,
    "_native_batch_norm_legit.default": _batch_norm_of_several,
    "_native_batch_norm_legit_functional.default": _batch_norm_of_several,
    "bmm.default": lambda input, mat2: torch.bmm(input, mat2),
    "baddbmm.default": lambda input, batch1, batch2, beta=1, alpha=1: torch.baddbmm(
        input, batch1, batch2, beta=beta, alpha=alpha
    ),
    "mv.default": lambda input, vec: torch.matmul(input, vec),
    "einsum.default": lambda equation, tensors: torch.einsum(equation, *tensors),
    "conv_transpose1d.default": functional.conv_transpose1d,
    "conv_transpose2d.input": functional.conv_transpose2d,
    "instance_norm.default": _instance_norm,
    "relu.default": torch.relu,
    "threshold.default": torch.threshold,
    "leaky_relu.default": functional.leaky_relu,
    "leaky_relu_.default": functional.leaky_relu_,
    "hardsigmoid.default": functional.hardsigmoid,
    "clamp_max.default": lambda input, max: torch.clamp(input, None, max),
    "maximum.default": lambda input, other: torch.maximum(input, other),
    "minimum.default": lambda input, other: torch.minimum(input, other),
    "relu_.default": torch.relu_,
    "relu6.default": functional.relu6,
    "hardtanh.default": functional.hardtanh,
    "hardtanh_.default": functional.hardtanh_,
    "clamp.default": torch.clamp,
    "clamp_.default": torch.clamp_,
    "clamp_min.default": torch.clamp,
    "avg_pool1d.default": functional.avg_pool1d,
    "avg_pool2d.default": functional.avg_pool2d,
    "adaptive_avg_pool1d.default": functional.adaptive_avg_pool1d,
    "adaptive_avg_pool2d.default": functional.adaptive_avg_pool2d,
    "_adaptive_avg_pool2d.default": functional.adaptive_avg_pool2d,
    "cumsum.default": torch.cumsum,
    "diff.default": torch.diff,
    "mean.default": torch.mean,
    "mean.dim": torch.mean,
    "sum.default": torch.sum,
    "sum.dim_IntList": torch.sum,
    "flatten.using_ints": torch.flatten,
    "view.default": _reshape,
    "_unsafe_view.default": _reshape,
    "reshape.default": lambda input, shape: _reshape(input, shape),
    "squeeze.default": torch.squeeze,
    "squeeze.dim": torch.squeeze,
    "squeeze.dims": lambda input, dim: torch.squeeze(input, tuple(dim)),
    "unsqueeze.default": torch.unsqueeze,
    "permute.default": torch.permute,
    "transpose.int": torch.transpose,
    "expand.default": _method("expand"),
    "slice.Tensor": _slice,
    "select.int": _select,
    "chunk.default": torch.chunk,
    "split.Tensor": lambda input, split_size, dim=0: torch.split(input, split_size, dim),
    "split_with_sizes.default": lambda input, split_sizes, dim=0: torch.split(input, split_sizes, dim),
    "unbind.int": torch.unbind,
    "cat.default": torch.cat,
    "concat.default": torch.cat,
    "stack.default": torch.stack,
    "hstack.default": torch.hstack,
    "column_stack.default": torch.column_stack,
    "flip.default": torch.flip,
    "roll.default": torch.roll,
    "rot90.default": torch.rot90,
    "repeat.default": lambda input, repeats: input.repeat(*repeats),
    "tile.default": torch.tile,
    "repeat_interleave.self_int": torch.repeat_interleave,
    "index_select.default": torch.index_select,
    "index.Tensor": _index,
    "_unsafe_index.Tensor": _index,
    "gather.default": torch.gather,
    "diagonal.default": torch.diagonal,
    "tril.default": torch.tril,
    "triu.default": torch.triu,
    "unfold.default": lambda input, dimension, size, step: input.unfold(dimension, size, step),
    "unflatten.int": torch.unflatten,
    "movedim.int": torch.movedim,
    "movedim.intlist": torch.movedim,
    "narrow.default": torch.narrow,
    "where.self": _where,
    "masked_fill.Scalar": torch.masked_fill,
    "copy.default": lambda input, src: src.expand(tuple(input.shape)),
    "slice_scatter.default": _slice_scatter,
    "pixel_shuffle.default": functional.pixel_shuffle,
    "pixel_unshuffle.default": functional.pixel_unshuffle,
    "channel_shuffle.default": functional.channel_shuffle,
    "im2col.default": functional.unfold,
    "col2im.default": functional.fold,
    "grid_sampler_2d.default": _grid_sample,
    "grid_sampler.default": _grid_sample,
    **{
        f"upsample_{mode}{axes}d.{overload}": _interpolate(mode)
        for mode, axes in (("nearest", 1), ("nearest", 2), ("linear", 1), ("bilinear", 2), ("bicubic", 2))
        for overload in ("vec", "default")
    },
    **{
        f"{name}_pad{axes}d.default": _pad(mode)
        for name, mode in (("reflection", "reflect"), ("replication", "replicate"))
        for axes in (1, 2)
    },
    "constant_pad_nd.default": functional.pad,
    "pad.default": functional.pad,
    "dropout.default": lambda input, p, train: functional.dropout(input, p, train),
    "feature_dropout.default": lambda input, p, train: functional.dropout2d(input, p, train),
    **{f"{name}.{kind}": function for name, function in _ARITHMETIC.items() for kind in ("Tensor", "Scalar")},
    **{f"{name}_.{kind}": _method(f"{name}_") for name in _ARITHMETIC for kind in ("Tensor", "Scalar")},
    "rsub.Scalar": torch.rsub,
    "rsub.Tensor": torch.rsub,
    "lerp.Scalar": torch.lerp,
    "lerp.Tensor": torch.lerp,
    "addcmul.default": torch.addcmul,
    "addcdiv.default": torch.addcdiv,
    "div.Tensor_mode": torch.div,
    "neg.default": torch.neg,
    "clone.default": _method("clone"),
    "contiguous.default": _method("contiguous"),
    "_to_copy.default": _to_copy,
    "to.dtype": _to_copy,
    "detach.default": _as_it_is,
    "detach_.default": _as_it_is,
    "alias.default": _as_it_is,
    "lift_fresh_copy.default": _as_it_is,
    "full.default": lambda size, fill_value, dtype=None: _full(size, fill_value, dtype),
    "zeros.default": lambda size, dtype=None: _full(size, 0.0, dtype),
    "ones.default": lambda size, dtype=None: _full(size, 1.0, dtype),
    "new_zeros.default": lambda input, size, dtype=None: _full(size, 0.0, dtype),
    "new_ones.default": lambda input, size, dtype=None: _full(size, 1.0, dtype),
    "new_full.default": lambda input, size, fill_value, dtype=None: _full(size, fill_value, dtype),
    "new_empty.default": lambda input, size, dtype=None: _full(size, 0.0, dtype),
    "zeros_like.default": lambda input, dtype=None: _full(input.shape, 0.0, dtype),
    "ones_like.default": lambda input, dtype=None: _full(input.shape, 1.0, dtype),
    "full_like.default": lambda input, fill_value, dtype=None: _full(input.shape, fill_value, dtype),
    "scalar_tensor.default": lambda s, dtype=None: torch.tensor(s, dtype=dtype),
    "arange.default": _arange,
    "arange.start": _arange,
    "arange.start_step": _arange,
    "linspace.default": _linspace,
    "sym_size.int": _method("size"),
    "_operator.add": lambda a, b: a + b,
    "_operator.sub": lambda a, b: a - b,
    "_operator.mul": lambda a, b: a * b,
    "_operator.floordiv": lambda a, b: a // b,
    "_operator.ge": lambda a, b: a >= b,
    "_operator.le": lambda a, b: a <= b,
    # Of constants, as interpolation is written out; of activations the importer refuses them.
    **{
        f"{name}.{kind}": getattr(torch, name)
        for name in ("gt", "ge", "lt", "le", "eq")
        for kind in ("Tensor", "Scalar")
    },
    "softmax.int": torch.softmax,
    "_softmax.default": lambda input, dim, half_to_float: torch.softmax(input, dim),
    "log_softmax.int": torch.log_softmax,
    "_log_softmax.default": lambda input, dim, half_to_float: torch.log_softmax(input, dim),
    "sigmoid.default": torch.sigmoid,
    "log_sigmoid.default": functional.logsigmoid,
    "log_sigmoid_forward.default": lambda input: (functional.logsigmoid(input), None),
    "floor.default": torch.floor,
    "sqrt.default": torch.sqrt,
    "rsqrt.default": torch.rsqrt,
    "reciprocal.default": torch.reciprocal,
    "bitwise_and.Tensor": torch.bitwise_and,
}

#: They make a constant of the type that they take, and of no more values than the size that they are told.
CREATING = (
    "full.default", "zeros.default", "ones.default", "new_zeros.default", "new_ones.default", "new_full.default",
    "new_empty.default", "zeros_like.default", "ones_like.default", "full_like.default", "scalar_tensor.default",
    "arange.default", "arange.start", "arange.start_step", "linspace.default",
)  # fmt: skip

#: They take a type, which an activation keeps where it is a floating one.
CASTING = ("_to_copy.default", "to.dtype", "sum.dim_IntList", "mean.dim", "cumsum.default")
