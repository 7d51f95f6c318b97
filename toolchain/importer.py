"""Import: a trained torch model becomes a :class:`~toolchain.graph.FloatGraph`, or says everything that hinders it.

The model is traced with ``torch.fx`` and interpreted symbolically. A value is an affine function of the spiking layers
found so far: per source a chain of linear maps, plus a constant. The constant is what torch itself computes from the
constant before, so that a bias ahead of a padded convolution comes out right at the borders too. A ReLU, bounded or
not, closes the region: the affine value becomes a layer and the rectified value a new source. To support an operation
is to add an entry to a table.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import operator
import re
import traceback
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional

from sim.findings import Finding, Refused, refuse
from sim.network import INPUT, Shape
from toolchain.graph import FloatEdge, FloatGraph, FloatLayer
from toolchain.graph.activations import QCFS, TReLU
from toolchain.linear import Chain, Convolution, OtherMap, Reshape, Selection, Step, as_maps, channelwise, reduce
from toolchain.program import Program

BATCH = 2  #: samples in every constant: enough to notice an operation that mixes samples

DENSE_LIMIT = 1 << 25  #: weights of the largest matrix that folding may create: 1,000 classes after 7x7 maps of 512


@dataclass(frozen=True)
class LayerReport:
    """What the importer makes of one module or operation of the model."""

    path: str  #: qualified module path; of a function, the module whose forward calls it
    kind: str  #: class of the module or name of the function
    shape: Shape | None  #: of its output without the batch dimension; None where it was not reached or is no tensor
    fate: str  #: "spiking layer NAME", "readout", "folded into NAME", "unused", "refused: REASON; WAY OUT", ...


def import_model(model: nn.Module, input_shape: Shape, *, dense_limit: int = DENSE_LIMIT) -> FloatGraph:
    """Reduce a trained model to spiking layers and the linear maps between them, in float64, stored as float32.

    ``input_shape`` is (C, H, W), (C, L) or (N,), without the batch dimension; the graph's input writes (C, L) as
    (C, L, 1). The model is not changed; the graph equals it in eval mode. ``dense_limit`` bounds the weights of a
    matrix or kernel that folding creates. Raises :class:`sim.findings.Refused` with every finding at once.
    """
    run = _Import(model, input_shape, dense_limit)
    if run.findings:
        raise Refused(dict.fromkeys(run.findings))
    return FloatGraph(run.shapes[INPUT], tuple(run.layers))


def inspect_model(model: nn.Module, input_shape: Shape, *, dense_limit: int = DENSE_LIMIT) -> list[LayerReport]:
    """Report on every module and operation in the order of execution, without stopping at an unsupported one.

    Raises :class:`sim.findings.Refused` only for an ``input_shape`` that is not (C, H, W), (C, L) or (N,).
    """
    return [row.report() for row in _Import(model, input_shape, dense_limit).rows]


def replace_max_pooling(model: nn.Module) -> nn.Module:
    """Return a copy in which every ``nn.MaxPool2d`` is an ``nn.AvgPool2d`` of the same kernel, stride and padding.

    The copy computes something else than the model: fine-tune it before converting. A ReLU follows a pooling that pads,
    since with a padded convolution behind it, it would be no convolution but an enormous matrix: it becomes a spiking
    layer of its own. Raises
    :class:`sim.findings.Refused` for every pooling that is dilated or returns indices, which no average pooling is.
    """
    found = {path: module for path, module in model.named_modules() if type(module) is nn.MaxPool2d}
    findings = [
        Finding(path or type(model).__name__, problem, "use a convolution with a stride, and fine-tune")
        for path, m in found.items()
        for refused, problem in (
            (_two(m.dilation) != (1, 1), f"has dilation {m.dilation}, average pooling has none"),
            (m.return_indices, "returns indices, average pooling has none"),
        )
        if refused
    ]
    if findings:
        raise Refused(findings)

    def average(m: nn.MaxPool2d) -> nn.Module:
        pooling = nn.AvgPool2d(m.kernel_size, m.stride, m.padding, m.ceil_mode)
        return (nn.Sequential(pooling, nn.ReLU()) if any(_two(m.padding)) else pooling).train(m.training)

    return copy.deepcopy(model, {id(m): average(m) for m in found.values()})


@dataclass(frozen=True)
class _Term:
    """A chain of linear maps from one source."""

    source: str
    chain: Chain = ()
    origin: int | None = None  #: row of the first convolution or linear layer of the chain


@dataclass(frozen=True, eq=False)
class _Affine:
    """A value of the model as the sum of terms plus a constant."""

    constant: Tensor  #: float64 (BATCH, *shape)
    terms: tuple[_Term, ...]
    rows: frozenset[int] = frozenset()  #: operations since the sources

    @property
    def shape(self) -> Shape:
        return tuple(self.constant.shape[1:])

    def then(self, step: Step, constant: Tensor) -> _Affine:
        terms = tuple(replace(term, chain=(*term.chain, step)) for term in self.terms)
        return replace(self, terms=terms, constant=constant)

    def then_other(self, function: Callable[[Tensor], Tensor], constant: Tensor) -> _Affine:
        """Append a linear function without a structure of its own."""
        source, shape = _image(self.shape), _image(tuple(constant.shape[1:]))

        def on_images(x: Tensor) -> Tensor:
            return function(x.reshape(-1, *self.shape)).reshape(-1, *shape)

        return self.then(OtherMap(on_images, source, shape), constant)

    def reshaped(self, constant: Tensor) -> _Affine:
        _keep_samples(constant)
        return self.then(Reshape(_image(self.shape), _image(tuple(constant.shape[1:]))), constant)

    def positions(self) -> Tensor:
        """Return the number of every value of the batch, from 1, as float64 like the values themselves."""
        return torch.arange(1, self.constant.numel() + 1, dtype=torch.float64).reshape(self.constant.shape)

    def selected(self, positions: Tensor, constant: Tensor) -> _Affine:
        """Select the values that a rearrangement of :meth:`positions` names, 0 for a zero."""
        _keep_samples(constant)
        index, second = positions.long() - 1  # of the two samples of a batch
        if not torch.equal(torch.where(index < 0, index, index + self.constant[0].numel()), second):
            raise _Unsupported("mixes the samples of a batch", _NEVER_MIX)
        return self.then(Selection(index.reshape(_image(tuple(index.shape))), _image(self.shape)), constant)


@dataclass(frozen=True, eq=False)
class _Current(_Affine):
    """A value on its way into an activation that closes the region; the fields are those of ``FloatLayer``."""

    upper: float | None = None
    levels: int | None = None
    initial: Literal["half", "shift"] | None = None

    def keeps(self, layer: FloatLayer) -> bool:
        """Whether the activation leaves what ``layer`` emits as it is."""
        if self.levels is None:
            return self.upper is None or self.upper >= float(layer.upper or math.inf)
        return (self.upper, self.levels) == (layer.upper, layer.levels)


class _Unsupported(Exception):  # noqa: N818 - it becomes a finding as soon as the place is known
    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy


class _Unreached:
    """The value of everything that follows an operation without a usable result."""


_UNREACHED = _Unreached()
_NEVER_MIX = "keep the batch as the first dimension and treat every sample alike"


def _image(shape: Shape) -> Shape:
    """Write (N,) and (C, L) with three dimensions."""
    return shape + (1,) * (3 - len(shape))


def _keep_samples(constant: Tensor) -> None:
    if constant.dim() < 2 or len(constant) != BATCH:
        raise _Unsupported("mixes the samples of a batch", _NEVER_MIX)


def _need_image(value: _Affine) -> None:
    if len(value.shape) != 3:
        raise _Unsupported(f"gets shape {value.shape} where it needs (C, H, W)", "check input_shape and what precedes")


def _two(value: int | Sequence[int]) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    return values[0], values[-1]


# The handlers below have the signatures of the torch functions that they stand for.


def _conv2d(
    input: _Affine,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Affine:
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


def _linear(input: _Affine, weight: Tensor, bias: Tensor | None = None) -> _Affine:
    constant = functional.linear(input.constant, weight, bias)
    if len(input.shape) != 1:
        return input.then_other(lambda x: functional.linear(x, weight), constant)
    n_out, n_in = weight.shape
    return input.then(Convolution(weight[..., None, None], (n_in, 1, 1), (n_out, 1, 1)), constant)


def _batch_norm(
    input: _Affine,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> _Affine:
    if training or running_mean is None or running_var is None:
        raise _Unsupported(
            "normalises by the statistics of the batch",
            "train with track_running_stats=True and normalise by them in eval mode",
        )
    constant = functional.batch_norm(input.constant, running_mean, running_var, weight, bias, False, momentum, eps)
    scale = (running_var + eps).rsqrt()
    return input.then(channelwise(scale if weight is None else scale * weight, _image(input.shape)), constant)


def _as_image(handler: Callable[..., _Affine], input: _Affine, *args: Any) -> _Affine:
    """Handle an operation on (C, L) as the one on (C, L, 1)."""
    if len(input.shape) != 2:
        raise _Unsupported(f"gets shape {input.shape} where it needs (C, L)", "check input_shape and what precedes")
    result = handler(input.reshaped(input.constant.unsqueeze(-1)), *args)
    return result.reshaped(result.constant.squeeze(-1))


def _along(value: Any, across: int = 1) -> tuple[int, int]:
    return _two(value)[0], across


def _conv1d(
    input: _Affine,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Affine:
    padding = padding if isinstance(padding, str) else _along(padding, 0)
    kernel = weight.unsqueeze(-1)
    return _as_image(_conv2d, input, kernel, bias, _along(stride), padding, _along(dilation), groups)


def _avg_pool1d(
    input: _Affine,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> _Affine:
    stride = _along(stride or kernel_size)
    return _as_image(_avg_pool2d, input, _along(kernel_size), stride, _along(padding, 0), ceil_mode, count_include_pad)


def _adaptive_avg_pool1d(input: _Affine, output_size: Any) -> _Affine:
    return _as_image(_adaptive_avg_pool2d, input, _along(output_size))


def _pool(
    input: _Affine,
    constant: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    divisor: int,
) -> _Affine:
    channels = input.shape[0]
    weight = torch.full((channels, 1, *kernel), 1 / divisor, dtype=torch.float64)
    return input.then(
        Convolution(
            weight, input.shape, tuple(constant.shape[1:]), stride, (-padding[0], -padding[1]), groups=channels
        ),
        constant,
    )


def _avg_pool2d(
    input: _Affine,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> _Affine:
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


def _adaptive_avg_pool2d(input: _Affine, output_size: Any) -> _Affine:
    _need_image(input)
    constant = functional.adaptive_avg_pool2d(input.constant, output_size)
    (h, w), (rows, columns) = input.shape[1:], constant.shape[2:]
    if rows % h == columns % w == 0:  # every window holds one value
        return input.selected(functional.adaptive_avg_pool2d(input.positions(), output_size), constant)
    if h % rows or w % columns:
        return input.then_other(lambda x: functional.adaptive_avg_pool2d(x, output_size), constant)
    kernel = (h // rows, w // columns)
    return _pool(input, constant, kernel, kernel, (0, 0), math.prod(kernel))


def _mean(input: _Affine, dim: Any = None, keepdim: bool = False) -> _Affine:
    rank = input.constant.dim()
    averaged = {d % rank for d in (range(rank) if dim is None else (dim,) if isinstance(dim, int) else dim)}
    if 0 in averaged:
        raise _Unsupported("averages over the batch", "name the dimensions, as in x.mean((2, 3))")
    constant = input.constant.mean(dim, keepdim)
    if 1 in averaged or rank > 4:
        return input.then_other(lambda x: x.mean(dim, keepdim), constant)
    kept = replace(input, constant=input.constant.reshape(BATCH, *_image(input.shape)))
    h, w = (n if axis in averaged else 1 for axis, n in enumerate(kept.shape[1:], 2))
    pooled = functional.avg_pool2d(kept.constant, (h, w))
    return _pool(kept, pooled, (h, w), (h, w), (0, 0), h * w).reshaped(constant)


def _sum(input: _Affine, dim: Any = None, keepdim: bool = False) -> _Affine:
    mean = _mean(input, dim, keepdim)
    return _mul(mean, input.constant.numel() // mean.constant.numel())


def _reshaping(operation: Callable[..., Tensor]) -> Callable[..., _Affine]:
    """Handle an operation that changes the shape and keeps the values in their order."""

    def handler(input: _Affine, *args: Any, **kwargs: Any) -> _Affine:
        return input.reshaped(operation(input.constant, *args, **kwargs))

    return handler


def _selecting(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Handle an operation that moves, repeats or leaves out values, and may return several tensors."""

    def handler(input: _Affine, *args: Any, **kwargs: Any) -> Any:
        positions = operation(input.positions(), *args, **kwargs)
        constants = operation(input.constant, *args, **kwargs)
        if isinstance(constants, Tensor):
            return input.selected(positions, constants)
        return tuple(map(input.selected, positions, constants))

    return handler


def _pad(input: _Affine, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> _Affine:
    constant = functional.pad(input.constant, pad, mode, value)
    return input.selected(functional.pad(input.positions(), pad, mode), constant)


def _cat(tensors: Sequence[Any], dim: int = 0) -> _Affine:
    constants = [value.constant if isinstance(value, _Affine) else value for value in tensors]
    whole = _Affine(torch.cat(constants, dim), ())
    for i, value in enumerate(tensors):
        if isinstance(value, _Affine):
            positions = [value.positions() if i == j else torch.zeros_like(c) for j, c in enumerate(constants)]
            part = value.selected(torch.cat(positions, dim), whole.constant)
            whole = replace(whole, terms=whole.terms + part.terms)
    return whole


def _same(input: _Affine, *args: Any, **kwargs: Any) -> _Affine:
    return input


def _dropout(input: _Affine, p: float = 0.5, training: bool = True, inplace: bool = False) -> _Affine:
    if training:
        raise _Unsupported("is active in eval mode too", "pass training=self.training")
    return input


def _contiguous(input: _Affine, **kwargs: Any) -> _Affine:
    return replace(input, constant=input.constant.contiguous())


def _clone(input: _Affine, **kwargs: Any) -> _Affine:
    return replace(input, constant=input.constant.clone())


def _add(input: Any, other: Any, *, alpha: float = 1) -> _Affine:
    left, right = (v.constant if isinstance(v, _Affine) else v for v in (input, other))
    constant = left + alpha * right
    terms: tuple[_Term, ...] = ()
    for value, factor in ((input, 1), (other, alpha)):
        if isinstance(value, _Affine):
            terms += _expanded(value if factor == 1 else _mul(value, factor), constant).terms
    return _Affine(constant, terms)


def _sub(input: Any, other: Any, *, alpha: float = 1) -> _Affine:
    return _add(input, other, alpha=-alpha)


def _mul(input: Any, other: Any) -> _Affine:
    value, factor = (input, other) if isinstance(input, _Affine) else (other, input)
    if isinstance(factor, _Affine):
        raise _Unsupported("it multiplies activations by each other", "use layers that are linear")
    constant = value.constant * factor
    value = _expanded(value, constant)
    factors = torch.as_tensor(factor, dtype=torch.float64).expand_as(constant)
    if not torch.equal(factors[0], factors[1]):
        raise _Unsupported("scales every sample by a factor of its own", _NEVER_MIX)
    shape = _image(value.shape)
    scale = factors[0].reshape(shape)
    if len(shape) == 3 and torch.equal(scale, scale[:, :1, :1].expand(shape)):
        return value.then(channelwise(scale[:, 0, 0], shape), constant)
    return value.then(OtherMap(lambda x: x * scale, shape, shape), constant)


def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> _Affine:
    if isinstance(other, _Affine):
        raise _Unsupported("it divides by an activation", "use layers that are linear")
    if rounding_mode is not None:
        raise _Unsupported(f"rounds, with rounding_mode {rounding_mode!r}", "divide without rounding and fine-tune")
    return _mul(input, 1 / torch.as_tensor(other, dtype=torch.float64))


def _neg(input: _Affine) -> _Affine:
    return _mul(input, -1)


def _expanded(value: _Affine, constant: Tensor) -> _Affine:
    if value.constant.dim() != constant.dim() or len(constant) != BATCH:
        raise _Unsupported("mixes the samples of a batch", _NEVER_MIX)
    shape = tuple(constant.shape[1:])
    return value if value.shape == shape else value.selected(value.positions().expand(-1, *shape), constant)


def _relu(input: _Affine, inplace: bool = False) -> _Current:
    return _clamp(input, 0)


def _relu6(input: _Affine, inplace: bool = False) -> _Current:
    return _clamp(input, 0, 6)


def _hardtanh(input: _Affine, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> _Current:
    return _clamp(input, min_val, max_val)


def _clamp(input: _Affine, min: Any = None, max: Any = None) -> _Current:
    if not all(bound is None or isinstance(bound, int | float) for bound in (min, max)):
        raise _Unsupported("its bounds are tensors", "give numbers, the same for the whole layer")
    if min != 0:
        raise _Unsupported(
            f"its lower bound is {min}, that of integrate-and-fire neurons is 0", "clamp at 0, or use nn.ReLU"
        )
    if max is not None and not max > 0:
        raise _Unsupported(f"its upper bound {max} leaves no value but 0", "give a positive one")
    upper = None if max in (None, math.inf) else float(max)
    return _Current(input.constant, input.terms, input.rows, upper)


def _qcfs(input: _Affine, threshold: Tensor, levels: int) -> _Current:
    return replace(_trelu(input, threshold), levels=levels, initial="half")


def _trelu(input: _Affine, threshold: Tensor) -> _Current:
    return replace(_clamp(input, 0, float(threshold.detach())), initial="shift")


def _conv_args(m: Any) -> tuple[Any, ...]:
    if m.padding_mode != "zeros":
        raise _Unsupported(f"has padding_mode {m.padding_mode!r}", "pad with zeros and fine-tune")
    return m.weight, m.bias, m.stride, m.padding, m.dilation, m.groups


def _norm_args(m: Any) -> tuple[Any, ...]:
    return m.running_mean, m.running_var, m.weight, m.bias, False, 0.0, m.eps


def _no_args(m: Any) -> tuple[Any, ...]:
    return ()


_Handler = Callable[..., _Affine]

_flatten = _reshaping(torch.flatten)

#: By exact type, since a subclass may compute anything: the handler, and the arguments that the module holds.
MODULES: dict[type[nn.Module], tuple[_Handler, Callable[[Any], tuple[Any, ...]]]] = {
    nn.Conv2d: (_conv2d, _conv_args),
    nn.Conv1d: (_conv1d, _conv_args),
    nn.Linear: (_linear, lambda m: (m.weight, m.bias)),
    nn.BatchNorm1d: (_batch_norm, _norm_args),
    nn.BatchNorm2d: (_batch_norm, _norm_args),
    nn.ReLU: (_relu, lambda m: (m.inplace,)),
    nn.ReLU6: (_relu6, lambda m: (m.inplace,)),
    nn.Hardtanh: (_hardtanh, lambda m: (m.min_val, m.max_val, m.inplace)),
    QCFS: (_qcfs, lambda m: (m.threshold, m.levels)),
    TReLU: (_trelu, lambda m: (m.threshold,)),
    nn.AvgPool2d: (
        _avg_pool2d,
        lambda m: (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override),
    ),
    nn.AvgPool1d: (_avg_pool1d, lambda m: (m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad)),
    nn.AdaptiveAvgPool1d: (_adaptive_avg_pool1d, lambda m: (m.output_size,)),
    nn.AdaptiveAvgPool2d: (_adaptive_avg_pool2d, lambda m: (m.output_size,)),
    nn.Flatten: (_flatten, lambda m: (m.start_dim, m.end_dim)),
    nn.Identity: (_same, _no_args),
    nn.Dropout: (_same, _no_args),
    nn.Dropout1d: (_same, _no_args),
    nn.Dropout2d: (_same, _no_args),
    nn.ZeroPad1d: (_pad, lambda m: (m.padding,)),
    nn.ZeroPad2d: (_pad, lambda m: (m.padding,)),
}

FUNCTIONS: dict[Any, _Handler] = {
    functional.conv1d: _conv1d,
    functional.conv2d: _conv2d,
    functional.linear: _linear,
    functional.batch_norm: _batch_norm,
    functional.relu: _relu,
    functional.relu_: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    functional.relu6: _relu6,
    functional.hardtanh: _hardtanh,
    functional.hardtanh_: _hardtanh,
    torch.clamp: _clamp,
    torch.clamp_: _clamp,
    torch.clip: _clamp,
    functional.avg_pool1d: _avg_pool1d,
    functional.avg_pool2d: _avg_pool2d,
    functional.adaptive_avg_pool1d: _adaptive_avg_pool1d,
    functional.adaptive_avg_pool2d: _adaptive_avg_pool2d,
    torch.mean: _mean,
    torch.sum: _sum,
    torch.flatten: _flatten,
    torch.reshape: _reshaping(torch.reshape),
    torch.squeeze: _reshaping(torch.squeeze),
    torch.unsqueeze: _reshaping(torch.unsqueeze),
    functional.dropout: _dropout,
    functional.dropout2d: _dropout,
    functional.pad: _pad,
    torch.cat: _cat,
    torch.concat: _cat,
    operator.getitem: _selecting(operator.getitem),
    torch.chunk: _selecting(torch.chunk),
    torch.split: _selecting(torch.split),
    torch.unbind: _selecting(torch.unbind),
    torch.permute: _selecting(torch.permute),
    torch.transpose: _selecting(torch.transpose),
    torch.add: _add,
    operator.add: _add,
    operator.iadd: _add,
    torch.sub: _sub,
    operator.sub: _sub,
    operator.isub: _sub,
    torch.mul: _mul,
    operator.mul: _mul,
    operator.imul: _mul,
    torch.div: _div,
    operator.truediv: _div,
    operator.itruediv: _div,
    torch.neg: _neg,
    operator.neg: _neg,
}

METHODS: dict[str, _Handler] = {
    "relu": _relu,
    "relu_": _relu,
    "clamp": _clamp,
    "clamp_": _clamp,
    "clip": _clamp,
    "mean": _mean,
    "sum": _sum,
    "flatten": _flatten,
    "view": _reshaping(Tensor.view),
    "reshape": _reshaping(Tensor.reshape),
    "squeeze": _reshaping(Tensor.squeeze),
    "unsqueeze": _reshaping(Tensor.unsqueeze),
    "chunk": _selecting(Tensor.chunk),
    "split": _selecting(Tensor.split),
    "unbind": _selecting(Tensor.unbind),
    "permute": _selecting(Tensor.permute),
    "transpose": _selecting(Tensor.transpose),
    "expand": _selecting(Tensor.expand),
    "contiguous": _contiguous,
    "float": _same,
    "detach": _same,
    "clone": _clone,
    "add": _add,
    "add_": _add,
    "sub": _sub,
    "sub_": _sub,
    "mul": _mul,
    "mul_": _mul,
    "div": _div,
    "div_": _div,
    "neg": _neg,
}

_SEVERAL = (_add, _sub, _mul, _div)  #: whose operands may be activations, beyond the first; they say what they can't do

_RATES = "integrate-and-fire neurons compute a ReLU and nothing else"
_RETRAIN = "replace it by nn.ReLU and fine-tune"
_KNOWN = sorted({t.__name__ for t in MODULES} | {f.__name__ for f in FUNCTIONS} | METHODS.keys())

#: Names without underscores and in lower case, why not, and the way out. The last line matches everything.
ADVICE = tuple(
    (re.compile(names), problem, remedy)
    for names, problem, remedy in (
        (
            r"(adaptive|fractional)?maxpool(\dd)?.*",
            "a maximum over spike trains is not linear",
            "use nn.AvgPool2d (toolchain.importer.replace_max_pooling) and fine-tune, or a convolution with a stride",
        ),
        (
            r"(log)?softmax.*|softmin",
            "it normalises over all classes",
            "at the output leave it out, the largest logit stays the largest; inside, put nn.ReLU and fine-tune",
        ),
        (
            r"gelu|silu|mish|(log|hard)?sigmoid|(hard)?tanh|r?r?elu6?|(leaky|p|r|thresholded)relu|[cs]?elu|glu|hardswish|"
            r"softplus|softsign|(soft|hard|tanh)shrink|threshold|clamp.*|clip|abs|maximum|minimum|max|min",
            _RATES,
            _RETRAIN,
        ),
        (r"(lstm|gru|rnn).*", "a recurrent layer carries state from step to step", "use a feed-forward network"),
        (
            r"(native)?(layer|group|instance|rms|localresponse)norm.*|normalize",
            "it does not normalise by constants",
            "use nn.BatchNorm2d or nn.BatchNorm1d and fine-tune",
        ),
        (
            r"parametrized.*",
            "its weights are computed anew at every call",
            "call torch.nn.utils.parametrize.remove_parametrizations first",
        ),
        (
            r".*attention.*|matmul|bmm|mm|einsum",
            "it multiplies activations by each other",
            "use layers that are linear",
        ),
        (r".*", "it is not known", f"use one of {', '.join(_KNOWN)}"),
    )
)


def _advice(name: str) -> tuple[str, str]:
    plain = name.replace("_", "").lower()
    return next((problem, remedy) for names, problem, remedy in ADVICE if names.fullmatch(plain))


@dataclass(eq=False)
class _Row:
    """One operation, while its fate is still open."""

    path: str
    kind: str
    name: str  #: of a layer that is named after it
    where: str  #: its place in a finding
    shape: Shape | None = None
    fates: dict[str, str] = field(default_factory=dict)  #: by the layer, or the refusal, that it came to
    refused: Finding | None = None

    def report(self) -> LayerReport:
        blocked = [fate for fate in self.fates.values() if fate.startswith("blocked by")]
        others = [fate for fate in self.fates.values() if fate not in blocked]
        if len(blocked) > 1:
            blocked = [f"{blocked[0]} and {len(blocked) - 1} more"]
        fate = ", ".join(others + blocked) or "unused"
        if self.refused is not None:
            fate = f"refused: {self.refused.problem}; {self.refused.remedy}"
        return LayerReport(self.path, self.kind, self.shape, fate)


def _evaluate(root: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Let torch compute a node."""
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(root)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    function: Any = root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    return function(*args, **kwargs)


class _Proxy(fx.Proxy):
    """A symbolic value that knows its size, so that a forward may compute with sizes and branch on them."""

    sample: Any = None  #: the value for an input of zeros; None where torch could not compute it

    def __getattribute__(self, name: str) -> Any:
        if name in ("size", "dim", "ndimension", "numel", "shape", "ndim", "dtype", "device"):
            sample = object.__getattribute__(self, "sample")
            if isinstance(sample, Tensor):
                return getattr(sample, name)
        return super().__getattribute__(name)

    def __len__(self) -> int:
        return len(self.sample) if isinstance(self.sample, Tensor) else super().__len__()


class _Tracer(fx.Tracer):
    """Traces into everything but torch's own modules, knows every size and whose forward it is in."""

    def __init__(self, opaque: Container[str], sample: Tensor) -> None:
        super().__init__()
        self.opaque = opaque
        self.input: Tensor | None = sample  #: consumed by the first placeholder
        self.path = [""]
        self.evaluating = False  # fx catches what modules call and read while it traces, also when a sample is computed
        self.owner: dict[fx.Node, str] = {}
        self.alive: WeakValueDictionary[fx.Node, _Proxy] = WeakValueDictionary()  # a sample lives as long as its proxy

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            module_qualified_name in self.opaque
            or type(m) in MODULES
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        self.path.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.path.pop()  # not in a finally: after an exception the path says where it was
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.evaluating else super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        self.owner[node] = self.root.place if type(self.root) is Program else self.path[-1]
        proxy = self.alive[node] = _Proxy(node, self)
        self.evaluating = True
        # What cannot be computed has no sizes; the interpreter comes to it again and says why.
        with contextlib.suppress(Exception):
            if node.op == "placeholder":
                proxy.sample, self.input = node.args[0] if self.input is None else self.input, None
            else:
                proxy.sample = _evaluate(self.root, node, *map_aggregate((node.args, node.kwargs), self._sample))
        self.evaluating = False
        return proxy

    def _sample(self, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        return _evaluate(self.root, value, (), {}) if value.op == "get_attr" else self.alive[value].sample


class _Import:
    """One pass over one model: collects rows, findings and layers."""

    def __init__(self, model: nn.Module, input_shape: Shape, dense_limit: int) -> None:
        if len(input_shape) not in (1, 2, 3) or min(input_shape) < 1:
            raise refuse(
                "input_shape", f"{tuple(input_shape)}", "give (C, H, W), (C, L) or (N,), without the batch dimension"
            )
        self.root = type(model).__name__
        self.limit = dense_limit
        self.rows: list[_Row] = []
        self.findings: list[Finding] = []
        self.layers: list[FloatLayer] = []
        self.input_shape = tuple(input_shape)
        # Of every source, in topological order.
        self.shapes = {INPUT: _image(self.input_shape) if len(input_shape) == 2 else self.input_shape}
        self.env: dict[fx.Node, Any] = {}  # what is still in use
        self.last_use: dict[fx.Node, fx.Node] = {}
        self.owner: dict[fx.Node, str] = {}  # path of the module whose forward made the node
        self.untraceable: dict[str, str] = {}  # why, by path
        self._check_hooks(model)
        try:
            self.model = copy.deepcopy(model).cpu().double().eval()
        except (RuntimeError, TypeError) as error:
            self._refuse_model(
                "model",
                f"it cannot be copied: {_one_line(error)}",
                "make every weight a plain parameter (torch.nn.utils.remove_weight_norm, prune.remove)",
            )
            return
        with torch.no_grad():
            self._check_values()
            self._run()

    # ---- findings ---------------------------------------------------------------------------------------------------

    def _refuse_row(self, row: _Row, problem: str, remedy: str) -> None:
        if row not in self.rows:
            self.rows.append(row)
        finding = Finding(row.where, problem, remedy)
        row.refused = row.refused or finding
        self.findings.append(finding)

    def _refuse_model(self, kind: str, problem: str, remedy: str, place: str = "", shape: Shape | None = None) -> None:
        """Note a finding about something that is no operation, in a row of its own."""
        place = place or self.root
        self._refuse_row(_Row(place, kind, place, place, shape), problem, remedy)

    def _check_hooks(self, model: nn.Module) -> None:
        for path, module in model.named_modules():
            lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)  # these carry a hook of torch's own
            if not lazy and (module._forward_hooks or module._forward_pre_hooks):
                self._refuse_model(
                    "hook",
                    "a forward hook may change what it computes",
                    "remove its hooks (torch.nn.utils.remove_weight_norm, prune.remove, handle.remove)",
                    path,
                )

    def _check_values(self) -> None:
        """Refuse NaN and infinity, and zero them so that they do not hide what else there is to find."""
        for kind, tensors in (("parameter", self.model.named_parameters()), ("buffer", self.model.named_buffers())):
            for path, tensor in tensors:
                if nn.parameter.is_lazy(tensor):
                    self._refuse_model(kind, "it has no shape yet", "run the model once before importing it", path)
                elif not tensor.isfinite().all():
                    count = int((~tensor.isfinite()).sum())
                    problem = f"{count} of {tensor.numel()} values are NaN or infinite"
                    remedy = "train again from the last good checkpoint"
                    self._refuse_model(kind, problem, remedy, path, tuple(tensor.shape))
                    tensor.nan_to_num_(0.0, 0.0, 0.0)

    # ---- tracing ----------------------------------------------------------------------------------------------------

    def _trace(self) -> fx.Graph | None:
        """Trace; a module that cannot be traced is kept whole, to be refused, and the rest is traced again."""
        while True:
            tracer = _Tracer(self.untraceable.keys(), torch.zeros(BATCH, *self.input_shape, dtype=torch.float64))
            self.owner = tracer.owner
            try:
                arguments = list(inspect.signature(self.model.forward).parameters.values())[1:]
                defaults = {
                    argument.name: argument.default for argument in arguments if argument.default != argument.empty
                }
                return tracer.trace(self.model, defaults or None)
            except Exception as error:  # whatever the model's own Python code does when it meets symbolic values
                path, reason, line = tracer.path[-1], _one_line(error), _user_line(error)
            if type(self.model) is Program:
                remedy = "check input_shape, or export it again"
                self._refuse_model("operation", f"it fails: {reason}", remedy, self.model.place)
                return None
            problem = f"torch.fx cannot trace it: {reason}{line}"
            if path in ("", *self.untraceable):
                self._refuse_model("forward", problem, _TRACEABLE, path)
                return None
            self.untraceable[path] = problem

    def _run(self) -> None:
        nodes = list(graph.nodes) if (graph := self._trace()) else []
        self.last_use = {used: node for node in nodes for used in node.all_input_nodes}
        for node in nodes:
            if node.op == "output":
                self._read_out(map_aggregate(node.args[0], self._lookup))
            else:
                self.env[node] = self._execute(node)
            for used in node.all_input_nodes:
                if self.last_use[used] is node:
                    del self.env[used]

    def _lookup(self, value: Any) -> Any:
        return self.env[value] if isinstance(value, fx.Node) else value

    # ---- one node ---------------------------------------------------------------------------------------------------

    def _execute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return _evaluate(self.model, node, (), {})
        args, kwargs = map_aggregate((node.args, node.kwargs), self._lookup)
        operands, unreached = _collect(_Affine, args, kwargs), _collect(_Unreached, args, kwargs)
        if node.target is operator.getitem and isinstance(args[0], (tuple, list, dict)):
            return args[0][args[1]]
        if not operands and not unreached:
            return self._compute(node, args, kwargs)
        row = self._new_row(node)
        if unreached:
            row.fates[""] = "not reached: what it needs is refused"
            return _UNREACHED
        try:
            return self._apply(node, row, args, kwargs, operands)
        except _Unsupported as error:
            self._refuse_row(row, error.problem, error.remedy)
        for operand in operands:
            for index in operand.rows:
                self.rows[index].fates[row.where] = f"blocked by {row.where}"
        return self._after_refusal(node, row, args, kwargs)

    def _placeholder(self, node: fx.Node) -> Any:
        if node.prev.op == "root":
            constant = torch.zeros(BATCH, *self.input_shape, dtype=torch.float64)
            return _Affine(constant, (_Term(INPUT),))
        star = str(node.target).count("*")
        if not node.args and not star:
            self._refuse_model(
                "argument",
                "forward needs a second argument",
                "give it a default or wrap the model",
                f"{node.target} of {self.root}",
            )
            return _UNREACHED
        return node.args[0] if node.args else ((), {})[star - 1]

    def _new_row(self, node: fx.Node) -> _Row:
        owner = self.owner[node]
        if node.op == "call_module":
            kind = type(self.model.get_submodule(str(node.target))).__name__
            row = _Row(owner, kind, owner, f"{owner} ({kind})")
        else:
            kind = _name(node)
            name = owner if type(self.model) is Program and owner else node.name
            row = _Row(owner or self.root, kind, name, f"{kind} in {owner or self.root}")
        self.rows.append(row)
        return row

    def _apply(self, node: fx.Node, row: _Row, args: Any, kwargs: Any, operands: list[_Affine]) -> Any:
        handler, args = self._resolve(node, args)
        index = len(self.rows) - 1
        try:
            arguments = inspect.signature(handler).bind(*args, **kwargs).arguments
            if handler not in _SEVERAL and _collect(_Affine, tuple(arguments.values())[1:]):
                raise _Unsupported("an activation stands where a parameter belongs", "use layers that are linear")
            value = handler(*args, **kwargs)
            for part in _collect(_Affine, value):
                _keep_samples(part.constant)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise _Unsupported(
                f"torch refuses it: {_one_line(error)}", "check input_shape and the sizes before it"
            ) from error
        rows = frozenset({index}).union(*(operand.rows for operand in operands))
        named = handler in (_conv1d, _conv2d, _linear)

        def traced(part: _Affine) -> _Affine:
            terms = (replace(t, origin=index) if named and t.origin is None else t for t in part.terms)
            return replace(part, rows=rows, terms=tuple(terms))

        value = map_aggregate(value, traced)
        row.shape = value.shape if isinstance(value, _Affine) else None
        if isinstance(value, _Current):
            value = self._spike(value, row)
        if arguments.get("inplace") or _writes(node):
            self._overwrite(node, operands[0], value)
        return value

    def _resolve(self, node: fx.Node, args: tuple[Any, ...]) -> tuple[_Handler, tuple[Any, ...]]:
        if node.op == "call_module":
            path = str(node.target)
            module = self.model.get_submodule(path)
            if path in self.untraceable:
                raise _Unsupported(self.untraceable[path], _TRACEABLE)
            if type(module) not in MODULES:
                raise _Unsupported(*_advice(type(module).__name__))
            handler, own = MODULES[type(module)]
            return handler, (*args, *own(module))
        known: Any = FUNCTIONS if node.op == "call_function" else METHODS
        if node.target not in known:
            raise _Unsupported(*_advice(_name(node)))
        return known[node.target], args

    def _overwrite(self, node: fx.Node, old: _Affine, new: _Affine) -> None:
        """Let every name of a value that is changed in place stand for the changed one."""
        for other, kept in self.env.items():
            used_later = self.last_use.get(other, node) is not node

            def renewed(value: Any, used_later: bool = used_later) -> Any:
                if not isinstance(value, _Affine) or not _overlap(value.constant, old.constant):
                    return value
                if _view(value.constant) != _view(old.constant) and used_later:
                    raise _Unsupported(
                        "it changes a value in place that is used again in another shape", "write it without inplace"
                    )
                return new

            self.env[other] = map_aggregate(kept, renewed)

    def _compute(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Let torch compute what does not depend on the input's values."""
        try:
            return _evaluate(self.model, node, args, kwargs)
        except Exception as error:  # whatever the operation may raise
            self._refuse_row(self._new_row(node), f"it fails: {_one_line(error)}", "check that the model runs")
            return _UNREACHED

    def _after_refusal(self, node: fx.Node, row: _Row, args: Any, kwargs: Any) -> Any:
        """Go on with a source of the right shape, so that what follows is examined too."""

        def pretend(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            shape = tuple(value.shape[1:])
            if value.dim() < 2 or len(value) != BATCH or len(shape) > 3:
                return _UNREACHED
            name = self._unique(row.where)
            self.shapes[name] = _image(shape)
            return _Affine(torch.zeros(value.shape, dtype=torch.float64), (_Term(name),))

        try:
            args, kwargs = map_aggregate((args, kwargs), lambda v: v.constant if isinstance(v, _Affine) else v)
            result = map_aggregate(_evaluate(self.model, node, args, kwargs), pretend)
        except Exception:  # it is refused already; only its shape was wanted
            return _UNREACHED
        if isinstance(result, _Affine):
            row.shape = result.shape
        return result

    # ---- closing a region -------------------------------------------------------------------------------------------

    def _spike(self, value: _Current, row: _Row) -> _Affine:
        """Make the value a spiking layer and return what it emits."""
        constant = torch.zeros_like(value.constant)
        emitter = self._emitter(value)
        if emitter and value.keeps(emitter):
            row.fates[emitter.name] = f"folded into {emitter.name}"
            return _Affine(constant, value.terms, value.rows)
        # A ReLU commutes with flattening: a layer keeps the (C, H, W) of the convolution that feeds it.
        chains = [reduce(term.chain, self.limit) for term in value.terms]
        shapes = {chain[-1].source for chain in chains if chain and type(chain[-1]) is Reshape}
        shape = value.shape
        if len(shape) == 1 and len(shapes) == 1:
            shape = next(iter(shapes))
            chains = [chain[:-1] if chain and type(chain[-1]) is Reshape else chain for chain in chains]
        elif len(shape) == 2:
            shape = _image(shape)
        name = self._close(value, chains, shape, "spiking", row)
        self.shapes[name] = shape
        chain = () if _image(value.shape) == _image(shape) else (Reshape(_image(shape), _image(value.shape)),)
        return _Affine(constant, (_Term(name, chain),))

    def _emitter(self, value: _Affine) -> FloatLayer | None:
        """Return the spiking layer whose output the value is, at most under another shape."""
        if len(value.terms) != 1 or value.constant.any():
            return None
        (term,) = value.terms
        if not all(type(step) is Reshape for step in term.chain):
            return None
        return next((layer for layer in self.layers if layer.name == term.source), None)

    def _read_out(self, value: Any) -> None:
        row = _Row(self.root, "output", "output", f"output of {self.root}")
        if not isinstance(value, _Affine):
            if not isinstance(value, _Unreached):
                self._refuse_row(
                    row,
                    f"it is a {type(value).__name__} and not one tensor computed from the input",
                    "return the logits and nothing else",
                )
        elif emitter := self._emitter(value):
            self._refuse_row(
                row,
                f"the network ends in the ReLU of {emitter.name}, and a readout has none",
                "leave the last ReLU out: the largest logit stays the largest",
            )
        elif len(value.shape) not in (1, 3):
            self._refuse_row(row, f"it has the shape {value.shape}", "return logits of shape (N,) or (C, H, W)")
        else:
            chains = [reduce(term.chain, self.limit) for term in value.terms]
            readout = self._close(value, chains, value.shape, "readout", row)
            if not self.findings:
                self._drop_unused(readout)

    def _close(
        self,
        value: _Affine,
        chains: list[Chain],
        shape: Shape,
        kind: Literal["spiking", "readout"],
        fallback: _Row,
    ) -> str:
        """Append the layer that ``chains``, one per term, and the constant of ``value`` feed, and return its name."""
        order = list(self.shapes)
        latest = max(
            (term for term in value.terms if term.origin is not None),
            key=lambda term: order.index(term.source),
            default=_Term(INPUT),
        )
        row = fallback if latest.origin is None else self.rows[latest.origin]
        name = self._unique(row.name)
        title = "readout" if kind == "readout" else f"spiking layer {name}"
        for index in value.rows:
            self.rows[index].fates[name] = title if self.rows[index] is row else f"folded into {name}"
        edges: list[FloatEdge] = []
        for source in sorted({term.source for term in value.terms}, key=order.index):
            parallel = [chain for term, chain in zip(value.terms, chains, strict=True) if term.source == source]
            try:
                maps = as_maps(parallel, self.shapes[source], shape, self.limit)
            except ValueError as error:
                self._refuse_row(row, f"with what is folded into it, it takes {error}", _CONVOLVE)
                continue
            edges += [FloatEdge(source, replace(m, weight=m.weight.float())) for m in maps]
        bias = _uniform(value.constant[0].reshape(shape)).float()
        layer = FloatLayer(name, shape, tuple(edges), bias, kind)
        if isinstance(value, _Current):
            layer = replace(layer, upper=value.upper, levels=value.levels, initial=value.initial)
        if len(shape) > 3:
            self._refuse_row(row, f"its values have the shape {shape}", "give it (C, H, W) or (N,)")
        if not torch.allclose(value.constant[0], value.constant[1], rtol=1e-9, atol=1e-12, equal_nan=True):
            self._refuse_row(
                row, "its constant differs from sample to sample", "take out what is random or indexed by the sample"
            )
        if not all(bool(t.isfinite().all()) for t in (layer.bias, *(edge.map.weight for edge in edges))):
            self._refuse_row(
                row,
                "its weights or bias leave float32 once batch normalisation is folded in",
                "look for a running_var of zero or huge weights",
            )
        self.layers.append(layer)
        return name

    def _unique(self, name: str) -> str:
        taken = self.shapes.keys() | {layer.name for layer in self.layers}
        base, count = name.replace("/", "_"), 1
        name = base
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        return name

    def _drop_unused(self, readout: str) -> None:
        """Keep the layers that the readout depends on."""
        used = {readout}
        for layer in reversed(self.layers):
            if layer.name in used:
                used |= {edge.source for edge in layer.edges}
        for row in self.rows:
            row.fates = {name: fate for name, fate in row.fates.items() if name not in self.shapes or name in used}
        self.layers = [layer for layer in self.layers if layer.name in used]


_TRACEABLE = "write its forward without Python control flow on values, and its modules as attributes"
_CONVOLVE = (
    "raise dense_limit, let pooling windows divide their input, without padding and ceil_mode, or put nn.ReLU behind "
    "the pooling, which makes it a layer of its own"
)

_T = TypeVar("_T")


def _collect(kind: type[_T], *containers: Any) -> list[_T]:
    """Find all values of one kind in nested tuples, lists and dicts."""
    found: list[_T] = []
    map_aggregate(containers, lambda value: found.append(value) if isinstance(value, kind) else None)
    return found


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _writes(node: fx.Node) -> bool:
    in_place = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
    return node.target in in_place or (node.op != "call_module" and _name(node).endswith("_"))


def _view(constant: Tensor) -> tuple[Any, ...]:
    return constant.shape, constant.stride(), constant.storage_offset()


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Whether two constants share memory: torch's own views tell which values of the model do."""
    storage = a.untyped_storage()
    if storage.data_ptr() != b.untyped_storage().data_ptr() or _view(a) == _view(b):
        return storage.data_ptr() == b.untyped_storage().data_ptr()
    memory = torch.arange(storage.nbytes() // a.element_size())
    return bool(torch.isin(memory.as_strided(*_view(a)), memory.as_strided(*_view(b))).any())


def _uniform(bias: Tensor) -> Tensor:
    """Reduce (*shape) to (C,) where it is the same all over space."""
    flat = bias.reshape(len(bias), -1)
    # Equal sums taken in different orders differ by float64's rounding, far below what float32 keeps.
    same = (flat.amax(1) - flat.amin(1)).max() <= 1e-12 * flat.abs().max()
    return flat[:, 0] if same else bias


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _user_line(error: Exception) -> str:
    """Name the last line of the user's own code in a traceback."""
    own = (str(Path(torch.__file__).parent), __file__)
    lines = [
        f" ({Path(f.filename).name}, line {f.lineno})"
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(own)
    ]
    return lines[-1] if lines else ""
