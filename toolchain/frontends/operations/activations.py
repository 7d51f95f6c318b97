"""What closes a region: ReLU, bounded or not, and the activations that the conversion papers train with."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends.affine import Affine, Current, Unsupported
from toolchain.frontends.registry import handles
from toolchain.graph.activations import QCFS, TReLU


@handles(functions=(torch.clamp, torch.clamp_, torch.clip), methods=("clamp", "clamp_", "clip"))
def _clamp(input: Affine, min: Any = None, max: Any = None) -> Current:
    if not all(bound is None or isinstance(bound, int | float) for bound in (min, max)):
        raise Unsupported("its bounds are tensors", "give numbers, the same for the whole layer")
    if min != 0:
        raise Unsupported(
            f"its lower bound is {min}, that of integrate-and-fire neurons is 0", "clamp at 0, or use nn.ReLU"
        )
    if max is not None and not max > 0:
        raise Unsupported(f"its upper bound {max} leaves no value but 0", "give a positive one")
    upper = None if max in (None, math.inf) else float(max)
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


@handles(modules={QCFS: lambda m: (m.threshold, m.levels)})
def _qcfs(input: Affine, threshold: Tensor, levels: int) -> Current:
    return replace(_trelu(input, threshold), levels=levels, initial="half")


@handles(modules={TReLU: lambda m: (m.threshold,)})
def _trelu(input: Affine, threshold: Tensor) -> Current:
    return replace(_clamp(input, 0, float(threshold.detach())), initial="shift")
