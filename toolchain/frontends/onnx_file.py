"""ONNX files, read with the package ``onnx`` (the extra ``ann2loihi[onnx]``)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sim.findings import Refused, refuse
from sim.network import Shape
from toolchain.frontends.program import SAMPLES, Operation, Program, Ref, Unknown, filled


def load(path: Path) -> Program:
    """Read the network of an ``.onnx`` file, with weights inside or in a file beside it.

    Raises :class:`sim.findings.Refused` where the package is missing, for a file that is no ONNX model and for one of
    several inputs. Operations that are not known are the importer's to refuse.
    """
    try:
        import onnx
    except ImportError as error:
        raise refuse(str(path), "reading it takes the package onnx", "pip install 'ann2loihi[onnx]'") from error
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        return _Reader(path, model, _shapes(model)).program()
    except Refused:
        raise
    except Exception as error:  # a damaged file may be damaged anywhere
        raise refuse(str(path), f"is not a readable ONNX model ({_short(error)})", "export it again") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shapes(model: Any) -> dict[str, list[int | None]]:
    """Sizes of every value as far as the file tells them."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: [
            size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


class _Reader:
    def __init__(self, path: Path, model: Any, shapes: dict[str, list[int | None]]) -> None:
        self.graph, self.shapes = model.graph, shapes
        self.constants: dict[str, tuple[str, Tensor]] = {}
        for initializer in self.graph.initializer:
            self._constant(initializer.name, initializer)
        inputs = [value.name for value in self.graph.input if value.name not in self.constants]
        if len(inputs) != 1:
            raise refuse(str(path), f"takes {len(inputs)} inputs", "export a model of one input")
        (self.source,) = inputs
        self.samples = (shapes[self.source] or [None])[0]  # None where the batch was exported as dynamic
        self.from_input = {self.source}  # names of the values that depend on the input's

    def _constant(self, name: str, tensor: Any) -> None:
        from onnx import numpy_helper

        self.constants[name] = name, torch.from_numpy(numpy_helper.to_array(tensor).copy())

    def program(self) -> Program:
        operations = [self._operation(i, node) for i, node in enumerate(self.graph.node) if not self._is_constant(node)]
        return Program(self.source, self.constants, operations, [value.name for value in self.graph.output])

    def _is_constant(self, node: Any) -> bool:
        """Keep the tensor of a Constant; its other forms are operations."""
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            self._constant(node.output[0], node.attribute[0].t)
            return True
        return False

    def _operation(self, index: int, node: Any) -> Operation:
        from onnx import helper

        path, outputs = _path(node.name or f"{node.op_type}_{index}"), tuple(node.output)
        arguments = tuple(Ref(name) if name else None for name in node.input)
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        attributes = {key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()}
        depends = not self.from_input.isdisjoint(node.input)
        if depends and node.op_type != "Shape":
            self.from_input.update(outputs)
        if node.op_type == "BatchNormalization" and len(outputs) > 1:  # older versions tell training by its outputs
            outputs, attributes["training_mode"] = outputs[:1], 1
        several = node.op_type in ("Split", "Dropout")
        known = node.domain in ("", "ai.onnx") and node.op_type in OPERATIONS
        if not known or (len(outputs) > 1 and not several):
            shapes = [self._shape(name) for name in outputs]
            return Operation(path, Unknown(node.op_type, shapes), outputs, len(outputs) > 1, arguments)
        if node.op_type == "Split":
            attributes["num_outputs"] = len(outputs)
        if node.op_type in ("Reshape", "Expand") and depends and self.samples is not None:
            attributes["samples"] = self.samples, SAMPLES
        return Operation(path, OPERATIONS[node.op_type], outputs, several, arguments, attributes)

    def _shape(self, name: str) -> Shape | None:
        sizes = self.shapes.get(name, [])[1:]
        return tuple(size for size in sizes if size is not None) if sizes and None not in sizes else None


def _path(name: str) -> str:
    """Write ``/layer1/layer1.0/conv1/Conv``, as torch's exporter does, as ``layer1.0.conv1.Conv``."""
    parts: list[str] = []
    for part in re.sub(r"[^\w./]+", "_", name).strip("/").split("/"):
        while parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)


def _numbers(value: Any) -> list[int]:
    """Read integers that ONNX keeps as an attribute or as a tensor, depending on the version of the operation."""
    return [int(n) for n in (value.flatten().tolist() if isinstance(value, Tensor) else value)]


def _is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of the file; what depends on the input is a proxy while the importer traces."""
    return isinstance(value, Tensor)


# Functions that stand for ONNX operations: inputs by position, attributes by name.


def _padded(
    x: Any, kernel: Sequence[int], strides: Any, pads: Any, dilations: Any, auto_pad: str
) -> tuple[Any, list[int], list[int], list[int]]:
    """Strides, padding and dilations of a window; where the two sides differ, ``x`` comes back padded with zeros."""
    axes = len(kernel)
    strides, dilations = list(strides or [1] * axes), list(dilations or [1] * axes)
    before, after = list(pads or [0] * 2 * axes)[:axes], list(pads or [0] * 2 * axes)[axes:]
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


def _conv(
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
    x, strides, padding, dilations = _padded(x, weight.shape[2:], strides, pads, dilations, auto_pad)
    convolve = functional.conv1d if len(strides) == 1 else functional.conv2d
    return convolve(x, weight, bias, strides, padding, dilations, group)


def _average_pool(
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
    padded, strides, padding, dilations = _padded(x, kernel_shape, strides, pads, dilations, auto_pad)
    if (padded is not x and not count_include_pad) or set(dilations) != {1}:
        return Unknown("AveragePool with dilation, or with uneven padding that does not count")(x)
    pool = functional.avg_pool1d if len(kernel_shape) == 1 else functional.avg_pool2d
    return pool(padded, kernel_shape, strides, padding, bool(ceil_mode), bool(count_include_pad))


def _global_average_pool(x: Any) -> Any:
    return torch.mean(x, tuple(range(2, x.dim())), True)


def _reduction(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def call(x: Any, axes: Any = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Any:
        numbers = () if axes is None else tuple(_numbers(axes))
        if not numbers and noop_with_empty_axes:
            return x
        return reduce(x, numbers or tuple(range(x.dim())), bool(keepdims))

    return call


def _gemm(a: Any, b: Any, c: Any = None, *, alpha: float = 1, beta: float = 1, transA: int = 0, transB: int = 0) -> Any:  # noqa: N803
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
) -> Any:
    return functional.batch_norm(x, mean, var, scale, bias, bool(training_mode), 1 - momentum, epsilon)


def _clip(x: Any, low: Any = None, high: Any = None, *, min: float | None = None, max: float | None = None) -> Any:
    low, high = (float(bound) if _is_tensor(bound) else bound for bound in (low, high))
    return torch.clamp(x, min if low is None else low, max if high is None else high)


def _divide(a: Any, b: Any) -> Any:
    whole = _is_tensor(a) and _is_tensor(b) and not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


def _sum(first: Any, *others: Any) -> Any:
    for other in others:
        first = torch.add(first, other)
    return first


def _concat(*parts: Any, axis: int) -> Any:
    return torch.cat(parts, axis)


def _slice(x: Any, starts: Any = None, ends: Any = None, axes: Any = None, steps: Any = None) -> Any:
    first, last = _numbers(starts), _numbers(ends)
    along = range(len(first)) if axes is None else _numbers(axes)
    index: list[Any] = [slice(None)] * x.dim()
    for axis, start, end, step in zip(
        along, first, last, [1] * len(first) if steps is None else _numbers(steps), strict=True
    ):
        # torch has no negative steps.
        index[axis] = slice(start, end, step) if step > 0 else list(range(x.shape[axis]))[start:end:step]
    return x[tuple(index)]


def _split(x: Any, sizes: Any = None, *, split: Any = None, axis: int = 0, num_outputs: int) -> Any:
    sizes = split if sizes is None else sizes
    parts = _numbers(sizes) if sizes is not None else math.ceil(x.shape[axis] / num_outputs)
    return torch.split(x, parts, axis)


def _pad(
    x: Any,
    pads: Any = None,
    value: Any = None,
    axes: Any = None,
    *,
    mode: str = "constant",
) -> Any:
    sides = _numbers(pads)
    along = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in _numbers(axes)]
    both = dict(zip(along, zip(sides[: len(along)], sides[len(along) :], strict=True), strict=True))
    last_first = [both.get(axis, (0, 0)) for axis in reversed(range(x.dim()))]
    while last_first and last_first[-1] == (0, 0):
        last_first.pop()
    flat = [side for pair in last_first for side in pair]
    if mode == "constant":
        return functional.pad(x, flat, "constant", 0.0 if value is None else float(value))
    return functional.pad(x, flat, "replicate" if mode == "edge" else mode)


def _sizes(shape: Any, samples: Any) -> list[int]:
    """Read a shape; one that begins with the exported number of samples begins with the present one instead."""
    sizes = _numbers(shape)
    if samples is not None and sizes and sizes[0] == samples[0]:
        sizes[0] = samples[1]
    return sizes


def _reshape(x: Any, shape: Any, *, allowzero: int = 0, samples: Any = None) -> Any:
    sizes = _sizes(shape, samples)
    return torch.reshape(x, tuple(x.shape[i] if size == 0 and not allowzero else size for i, size in enumerate(sizes)))


def _expand(x: Any, shape: Any, *, samples: Any = None) -> Any:
    return x.expand(torch.broadcast_shapes(tuple(x.shape), tuple(_sizes(shape, samples))))


def _flatten(x: Any, *, axis: int = 1) -> Any:
    return torch.flatten(x, 1) if axis == 1 else torch.reshape(x, (math.prod(x.shape[:axis]), -1))


def _transpose(x: Any, *, perm: Any = None) -> Any:
    return torch.permute(x, tuple(perm or reversed(range(x.dim()))))


def _squeeze(x: Any, axes: Any = None, **attributes: Any) -> Any:
    axes = attributes.get("axes") if axes is None else axes
    return torch.squeeze(x) if axes is None else torch.squeeze(x, tuple(_numbers(axes)))


def _unsqueeze(x: Any, axes: Any) -> Any:
    numbers = _numbers(axes)
    rank = x.dim() + len(numbers)
    for axis in sorted(number % rank for number in numbers):
        x = torch.unsqueeze(x, axis)
    return x


def _gather(x: Any, indices: Any, *, axis: int = 0) -> Any:
    return x[(slice(None),) * (axis % x.dim()) + (indices if indices.dim() else int(indices),)]


def _shape(x: Any, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end])


def _cast(x: Any, *, to: int, **attributes: Any) -> Any:
    from onnx import TensorProto

    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
    if to in floats:
        return x.float()
    integers = (TensorProto.INT64, TensorProto.INT32)
    return x.long() if _is_tensor(x) and to in integers else Unknown("Cast to integers")(x)


def _constant(**attributes: Any) -> Tensor:
    (value,) = attributes.values()
    return torch.tensor(value)


def _constant_of_shape(shape: Any, *, value: Any = None) -> Tensor:
    from onnx import numpy_helper

    filling = 0.0 if value is None else numpy_helper.to_array(value).item()
    return filled(_numbers(shape), filling)


def _dropout(x: Any, ratio: Any = None, training: Any = None, **attributes: Any) -> tuple[Any, None]:
    return functional.dropout(x, 0.5, training is not None and bool(training)), None


OPERATIONS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "BatchNormalization": _batch_normalization,
    "Relu": torch.relu,
    "Clip": _clip,
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "ReduceMean": _reduction(torch.mean),
    "ReduceSum": _reduction(torch.sum),
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
    "Neg": torch.neg,
    "Sum": _sum,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Pad": _pad,
    "Reshape": _reshape,
    "Expand": _expand,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Gather": _gather,
    "Shape": _shape,
    "Cast": _cast,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Dropout": _dropout,
    "Identity": lambda x: x,
}
