"""What closes a region: ReLU, bounded or not, and the activations that the conversion papers train with."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sim.network import INPUT
from toolchain.frontends.advice import advice
from toolchain.frontends.affine import Affine, Current, Unsupported
from toolchain.frontends.linear import Reshape, Selection
from toolchain.frontends.operations.arithmetic import add, expanded, mul
from toolchain.frontends.registry import handles
from toolchain.graph.activations import NQ, QCFS, RNL, TCL, SlipReLU, TReLU


def _number(bound: Any) -> float | None:
    """Read a bound that is the same for the whole layer, also from a tensor."""
    if isinstance(bound, Tensor) and bound.numel() and bool((bound == bound.flatten()[0]).all()):
        return float(bound.flatten()[0])
    if bound is None or isinstance(bound, int | float):
        return bound
    raise Unsupported("its bounds are tensors of several values", "give numbers, the same for the whole layer")


def _is_rectified(value: Affine) -> bool:
    """Whether a value holds nothing but what one spiking layer emits."""
    if len(value.terms) != 1 or value.constant.any():
        return False
    (term,) = value.terms
    return term.source != INPUT and all(type(step) in (Reshape, Selection) for step in term.chain)


@handles(
    functions=(torch.clamp, torch.clamp_, torch.clip, torch.clip_),
    methods=("clamp", "clamp_", "clip", "clip_"),
)
def _clamp(input: Affine, min: Any = None, max: Any = None) -> Current:
    low, high = _number(min), _number(max)
    if _is_rectified(input) and (low is None or low <= 0):
        low = 0
    if low != 0:
        remedy = "clamp at 0, or use nn.ReLU, and fine-tune"
        if low is not None and high is not None:
            remedy += f"; or write clamp(x - {low}, 0, {high - low}) + {low}"
        raise Unsupported(f"its lower bound is {low}, that of integrate-and-fire neurons is 0", remedy)
    if high is not None and not high > 0:
        raise Unsupported(f"its upper bound {high} leaves no value but 0", "give a positive one")
    upper = None if high in (None, math.inf) else float(high)
    return Current(input.constant, input.terms, input.rows, upper)


@handles(
    modules={nn.ReLU: lambda m: (m.inplace,)},
    functions=(functional.relu, functional.relu_, torch.relu, torch.relu_),
    methods=("relu", "relu_"),
)
def _relu(input: Affine, inplace: bool = False) -> Current:
    return _clamp(input, 0)


@handles(modules={nn.ReLU6: lambda m: (m.inplace,)}, functions=(functional.relu6,))
def _relu6(input: Affine, inplace: bool = False) -> Current:
    return _clamp(input, 0, 6)


@handles(
    modules={nn.Hardtanh: lambda m: (m.min_val, m.max_val, m.inplace)},
    functions=(functional.hardtanh, functional.hardtanh_),
)
def _hardtanh(input: Affine, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Current:
    return _clamp(input, min_val, max_val)


@handles(functions=(torch.clamp_min, torch.clamp_min_), methods=("clamp_min", "clamp_min_"))
def _clamp_min(input: Affine, min: Any) -> Current:
    return _clamp(input, min)


@handles(functions=(torch.clamp_max, torch.clamp_max_), methods=("clamp_max", "clamp_max_"))
def _clamp_max(input: Affine, max: Any) -> Current:
    return _clamp(input, None, max)


def _against_constant(input: Any, other: Any) -> tuple[Affine, Any]:
    value, bound = (input, other) if isinstance(input, Affine) else (other, input)
    if isinstance(bound, Affine):
        raise Unsupported("it compares activations with each other", "compare with 0, or use nn.ReLU")
    return expanded(value, torch.maximum(value.constant, torch.as_tensor(bound, dtype=torch.float64))), bound


@handles(functions=(torch.maximum, torch.fmax), methods=("maximum", "fmax"), several=True)
def _maximum(input: Any, other: Any) -> Current:
    value, bound = _against_constant(input, other)
    return _clamp(value, bound)


@handles(functions=(torch.minimum, torch.fmin), methods=("minimum", "fmin"), several=True)
def _minimum(input: Any, other: Any) -> Current:
    value, bound = _against_constant(input, other)
    return _clamp(value, None, bound)


@handles(functions=(torch.max,), methods=("max",), several=True)
def _max(input: Any, *others: Any, **kwargs: Any) -> Current:
    if len(others) == 1 and not kwargs and isinstance(others[0], Affine | Tensor):
        return _maximum(input, others[0])
    raise Unsupported("a maximum over spike trains is not linear", "take the mean or the sum instead and fine-tune")


@handles(functions=(torch.min,), methods=("min",), several=True)
def _min(input: Any, *others: Any, **kwargs: Any) -> Current:
    if len(others) == 1 and not kwargs and isinstance(others[0], Affine | Tensor):
        return _minimum(input, others[0])
    raise Unsupported("a minimum over spike trains is not linear", "take the mean or the sum instead and fine-tune")


@handles(
    modules={nn.Threshold: lambda m: (m.threshold, m.value, m.inplace)},
    functions=(functional.threshold, torch.threshold, torch.threshold_),
)
def _threshold(input: Affine, threshold: float, value: float, inplace: bool = False) -> Current:
    if (threshold, value) != (0, 0):
        raise Unsupported(
            f"it replaces what is at most {threshold} by {value}: integrate-and-fire neurons compute a ReLU",
            "use nn.ReLU and fine-tune",
        )
    return _clamp(input, 0)


@handles(
    modules={nn.LeakyReLU: lambda m: (m.negative_slope, m.inplace)},
    functions=(functional.leaky_relu, functional.leaky_relu_),
)
def _leaky_relu(input: Affine, negative_slope: float = 0.01, inplace: bool = False) -> Current:
    if negative_slope != 0 and not _is_rectified(input):
        raise Unsupported(*advice("prelu"))
    return _clamp(input, 0)


@handles(modules={nn.Hardsigmoid: lambda m: (m.inplace,)}, functions=(functional.hardsigmoid,))
def _hardsigmoid(input: Affine, inplace: bool = False) -> Current:
    return _clamp(add(mul(input, 1 / 6), 0.5), 0, 1)


@handles(modules={QCFS: lambda m: (m.threshold, m.levels), NQ: lambda m: (m.threshold, m.levels)})
def _qcfs(input: Affine, threshold: Tensor, levels: int) -> Current:
    return replace(_tcl(input, threshold), levels=levels, initial="half")


@handles(modules={SlipReLU: lambda m: (m.threshold, m.levels, m.slope)})
def _slip_relu(input: Affine, threshold: Tensor, levels: int, slope: float) -> Current:
    return replace(_qcfs(input, threshold, levels), slope=slope)


@handles(modules={TReLU: lambda m: (m.threshold,)})
def _trelu(input: Affine, threshold: Tensor) -> Current:
    return replace(_tcl(input, threshold), initial="shift")


@handles(modules={TCL: lambda m: (m.threshold,), RNL: lambda m: (m.share * m.maximum,)})
def _tcl(input: Affine, threshold: Tensor) -> Current:
    bounds = threshold.detach().flatten()
    if len(bounds) == 1 or not bool((bounds > 0).all()):
        return _clamp(input, 0, float(bounds.min()))
    if len(bounds) != input.shape[0]:
        raise Unsupported(f"it has {len(bounds)} thresholds for {input.shape[0]} channels", "give one for each")
    return replace(_clamp(input, 0), upper=bounds)
