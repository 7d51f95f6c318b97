"""The operations of ONNX in torch functions: inputs by position, attributes by name.

What a function does not take by name, a file may not ask for. Older versions of the standard write some attributes that
newer ones write as inputs, and some that mean nothing any more; both are taken, and refused where they mean something.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from toolchain.frontends.onnx_resize import resize, upsample
from toolchain.frontends.onnx_windows import average_pool, conv, conv_transpose
from toolchain.frontends.program import Unknown, filled


def _numbers(value: Any) -> list[int]:
    """Read integers that ONNX keeps as an attribute or as a tensor, depending on the version of the operation."""
    return [int(n) for n in (value.flatten().tolist() if isinstance(value, Tensor) else value)]


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of the file; what depends on the input is a proxy while the importer traces."""
    return isinstance(value, Tensor)


def _global_average_pool(x: Any) -> Any:
    return torch.mean(x, tuple(range(2, x.dim())), True)


def _reduction(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, over: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        numbers = tuple(_numbers(_older(over, axes) if over is not None or axes is not None else ()))
        if not numbers and noop_with_empty_axes:
            return x
        return reduce(x, numbers or tuple(range(x.dim())), bool(keepdims))

    return call


def _gemm(
    a: Any,
    b: Any,
    c: Any = None,
    *,
    alpha: float = 1,
    beta: float = 1,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
    broadcast: int = 1,
) -> Any:
    if not _is_tensor(b) or (transA and not _is_tensor(a)):
        return torch.matmul(a, b)
    a = a.t() if transA else a
    weight = b if transB else b.t()
    weight = weight if alpha == 1 else weight * alpha
    if c is None:
        return functional.linear(a, weight)
    if c.dim() == 1 and len(c) == len(weight):
        return functional.linear(a, weight, c * beta)
    return functional.linear(a, weight) + c * beta


def _matmul(a: Any, b: Any) -> Any:
    return functional.linear(a, b.t()) if _is_tensor(b) and b.dim() == 2 else torch.matmul(a, b)


def _batch_normalization(
    x: Any,
    scale: Any,
    bias: Any,
    mean: Any,
    var: Any,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    spatial: int = 1,
    is_test: int = 1,
    consumed_inputs: Any = None,
) -> Any:
    if not spatial:
        return Unknown("BatchNormalization with statistics for every position")(x)
    training_mode = training_mode or not is_test
    return functional.batch_norm(x, mean, var, scale, bias, bool(training_mode), 1 - momentum, epsilon)


def _clip(
    x: Any,
    low: Any = None,
    high: Any = None,
    *,
    min: float | None = None,
    max: float | None = None,
    consumed_inputs: Any = None,
) -> Any:
    low, high = (float(bound) if _is_tensor(bound) else bound for bound in (low, high))
    return torch.clamp(x, min if low is None else low, max if high is None else high)


def _of_two(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Broadcast as NumPy does, or as versions before the seventh: the second along the first, from ``axis`` on."""

    def call(a: Any, b: Any, *, broadcast: int = 0, axis: int | None = None, consumed_inputs: Any = None) -> Any:
        if broadcast and axis is not None:
            b = torch.reshape(b, (*b.shape, *(1,) * (a.dim() - axis % a.dim() - b.dim())))
        return function(a, b)

    return call


def _divide(a: Any, b: Any) -> Any:
    whole = _is_tensor(a) and _is_tensor(b) and not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def _several(function: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    """Apply a function of two to any number, one after the other."""

    def call(first: Any, *others: Any, consumed_inputs: Any = None) -> Any:
        for other in others:
            first = function(first, other)
        return first

    return call


def _mean(*values: Any, consumed_inputs: Any = None) -> Any:
    return _several(torch.add)(*values) / len(values)


def _concat(*parts: Any, axis: int = 1) -> Any:
    return torch.cat(parts, axis)


def _older(value: Any, attribute: Any) -> Any:
    """Return an input, or the attribute that it was in older versions."""
    return attribute if value is None else value


def _slice(
    x: Any, first: Any = None, last: Any = None, along: Any = None, steps: Any = None,
    *, starts: Any = None, ends: Any = None, axes: Any = None,
) -> Any:  # fmt: skip
    first, last, axes = _numbers(_older(first, starts)), _numbers(_older(last, ends)), _older(along, axes)
    along = range(len(first)) if axes is None else _numbers(axes)
    index: list[Any] = [slice(None)] * x.dim()
    for axis, start, end, step in zip(
        along, first, last, [1] * len(first) if steps is None else _numbers(steps), strict=True
    ):
        if step > 0:
            index[axis] = slice(start, end, step)
        else:  # torch has no negative steps
            x = torch.index_select(x, axis, torch.tensor(range(x.shape[axis])[start:end:step], dtype=torch.long))
    return x[tuple(index)]


def _split(x: Any, sizes: Any = None, *, split: Any = None, axis: int = 0, num_outputs: int) -> Any:
    sizes = split if sizes is None else sizes
    parts = _numbers(sizes) if sizes is not None else math.ceil(x.shape[axis] / num_outputs)
    return torch.split(x, parts, axis)


def _pad(
    x: Any,
    borders: Any = None,
    filling: Any = None,
    axes: Any = None,
    *,
    mode: str = "constant",
    pads: Any = None,
    paddings: Any = None,
    value: float = 0.0,
) -> Any:
    sides = _numbers(_older(borders, _older(pads, paddings)))
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in _numbers(axes)]
    both = dict(zip(along, zip(sides[: len(along)], sides[len(along) :], strict=True), strict=True))
    last_first = [both.get(axis, (0, 0)) for axis in reversed(range(x.dim()))]
    while last_first and last_first[-1] == (0, 0) and (mode == "constant" or len(last_first) > x.dim() - 2):
        last_first.pop()
    flat = [side for pair in last_first for side in pair]
    if mode == "constant":
        return functional.pad(x, flat, "constant", float(_older(filling, value)))
    return functional.pad(x, flat, {"edge": "replicate", "wrap": "circular"}.get(mode, mode))


def _sizes(shape: Any, samples: Any) -> list[int]:
    """Read a shape; one that begins with the exported number of samples begins with the present one instead."""
    sizes = _numbers(shape)
    if samples is not None and sizes and sizes[0] == samples[0]:
        sizes[0] = samples[1]
    return sizes


def _reshape(
    x: Any, size: Any = None, *, shape: Any = None, allowzero: int = 0, samples: Any = None, consumed_inputs: Any = None
) -> Any:
    sizes = _sizes(_older(size, shape), samples)
    return torch.reshape(x, tuple(x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)))


def _expand(x: Any, shape: Any, *, samples: Any = None) -> Any:
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(_sizes(shape, samples))))


def _flatten(x: Any, *, axis: int = 1, samples: Any = None) -> Any:
    if axis == 1 or (axis == 0 and samples is not None and samples[0] == 1):
        return torch.flatten(x, 1)
    return torch.reshape(x, (math.prod(x.shape[:axis]), -1))


def _transpose(x: Any, *, perm: Any = None) -> Any:
    return torch.permute(x, tuple(perm or reversed(range(x.dim()))))


def _squeeze(x: Any, along: Any = None, *, axes: Any = None) -> Any:
    axes = _older(along, axes)
    return torch.squeeze(x) if axes is None else torch.squeeze(x, tuple(_numbers(axes)))


def _unsqueeze(x: Any, along: Any = None, *, axes: Any = None) -> Any:
    numbers = _numbers(_older(along, axes))
    rank = x.dim() + len(numbers)
    for axis in sorted(number % rank for number in numbers):
        x = torch.unsqueeze(x, axis)
    return x


def _gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    return x[(slice(None),) * (axis % x.dim()) + (indices if indices.dim() else int(indices),)]


def _shape(x: Any, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end])


def _cast(x: Any, *, to: Any, saturate: int = 1) -> Any:
    from onnx import TensorProto

    to = getattr(TensorProto, to) if isinstance(to, str) else to  # as versions before the sixth name it
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    if to in floats:
        return x.float()
    integers = (TensorProto.INT64, TensorProto.INT32)
    return x.long() if _is_tensor(x) and to in integers else Unknown("Cast to integers")(x)


def _constant(
    *, value_float: Any = None, value_floats: Any = None, value_int: Any = None, value_ints: Any = None
) -> Tensor:
    return torch.tensor(_older(value_float, _older(value_floats, _older(value_int, value_ints))))


def _constant_of_shape(shape: Any, *, value: Any = None) -> Tensor:
    from onnx import numpy_helper

    filling = 0.0 if value is None else numpy_helper.to_array(value).item()
    return filled(_numbers(shape), filling)


def _dropout(
    x: Any,
    probability: Any = None,
    training: Any = None,
    *,
    ratio: float = 0.5,
    seed: int = 0,
    is_test: int = 1,
    consumed_inputs: Any = None,
) -> tuple[Any, None]:
    return functional.dropout(x, 0.5, not is_test or (training is not None and bool(training))), None


def _of_one(function: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(x: Any, *, consumed_inputs: Any = None) -> Any:
        return function(x)

    return call


def _depth_to_space(x: Any, *, blocksize: int, mode: str = "DCR") -> Any:
    if mode == "CRD":
        return functional.pixel_shuffle(x, blocksize)
    n, c, h, w = x.shape
    split = torch.reshape(x, (n, blocksize, blocksize, c // blocksize**2, h, w))
    return torch.reshape(torch.permute(split, (0, 3, 4, 1, 5, 2)), (n, -1, h * blocksize, w * blocksize))


def _space_to_depth(x: Any, *, blocksize: int) -> Any:
    n, c, h, w = x.shape
    split = torch.reshape(x, (n, c, h // blocksize, blocksize, w // blocksize, blocksize))
    return torch.reshape(torch.permute(split, (0, 3, 5, 1, 2, 4)), (n, -1, h // blocksize, w // blocksize))


def _dequantize(x: Any, scale: Any, zero: Any = None, *, axis: int = 1, block_size: int = 0) -> Any:
    if not _is_tensor(x) or block_size:
        return Unknown("DequantizeLinear of an activation, or in blocks")(x)
    shape = [-1 if scale.dim() and scale.numel() > 1 and k == axis % x.dim() else 1 for k in range(x.dim())]
    whole = x if zero is None else x.double() - zero.double().reshape(shape)
    return (whole * scale.double().reshape(shape)).to(scale.dtype)


def _cumsum(x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Any:
    along = int(axis)
    y = torch.flip(x, (along,)) if reverse else x
    total = torch.cumsum(y, along)
    total = total - y if exclusive else total
    return torch.flip(total, (along,)) if reverse else total


def _tile(x: Any, repeats: Any) -> Any:
    return x.repeat(*_numbers(repeats))


def _einsum(*operands: Any, equation: str) -> Any:
    return torch.einsum(equation, *operands)


def _gather_elements(x: Any, indices: Any, *, axis: int = 0) -> Any:
    return torch.gather(x, axis, torch.where(indices < 0, indices + x.shape[axis], indices))


def _leaky_relu(x: Any, *, alpha: float = 0.01, consumed_inputs: Any = None) -> Any:
    return functional.leaky_relu(x, alpha)


def _hard_sigmoid(x: Any, *, alpha: float = 0.2, beta: float = 0.5, consumed_inputs: Any = None) -> Any:
    return torch.clamp(x * alpha + beta, 0, 1)


def _normalised(function: Callable[[Any, int], Any]) -> Callable[..., Any]:
    """Normalise along an axis; before version 13, along it and all that follow."""

    def call(x: Any, *, axis: int | None = None, flattens: bool = False) -> Any:
        if flattens and x.dim() != 2:
            return Unknown(f"{function.__name__} of a version before 13, of maps")(x)
        return function(x, -1 if axis is None else axis)

    return call


#: By their names in the domain ``ai.onnx``.
OPERATIONS: dict[str, Callable[..., Any]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Einsum": _einsum,
    "BatchNormalization": _batch_normalization,
    "Relu": _of_one(torch.relu),
    "LeakyRelu": _leaky_relu,
    "HardSigmoid": _hard_sigmoid,
    "Clip": _clip,
    "Sigmoid": _of_one(torch.sigmoid),
    "Softmax": _normalised(torch.softmax),
    "LogSoftmax": _normalised(torch.log_softmax),
    "Max": _several(torch.maximum),
    "Min": _several(torch.minimum),
    "AveragePool": average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "CumSum": _cumsum,
    "Add": _of_two(torch.add),
    "Sub": _of_two(torch.sub),
    "Mul": _of_two(torch.mul),
    "Div": _of_two(_divide),
    "Neg": _of_one(torch.neg),
    "Sum": _several(torch.add),
    "Mean": _mean,
    "Equal": _of_two(torch.eq),
    "Where": lambda condition, x, y: torch.where(condition, x, y),
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Resize": resize,
    "Upsample": upsample,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "Reshape": _reshape,
    "Expand": _expand,
    "Tile": _tile,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Shape": _shape,
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Dropout": _dropout,
    "Identity": _of_one(lambda x: x),
}
