"""Sums, differences, and products with constants."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from toolchain.frontends.affine import BATCH, MIXES, PRODUCT, Affine, Term, Unsupported, image
from toolchain.frontends.linear import scaling
from toolchain.frontends.registry import handles


def expanded(value: Affine, constant: Tensor) -> Affine:
    """Repeat a value as broadcasting does, to the shape of ``constant``."""
    if value.constant.dim() != constant.dim() or len(constant) != BATCH:
        raise Unsupported(*MIXES)
    shape = tuple(constant.shape[1:])
    return value if value.shape == shape else value.selected(value.positions().expand(-1, *shape), constant)


@handles(
    functions=(torch.mul, torch.multiply, operator.mul, operator.imul),
    methods=("mul", "mul_", "multiply", "multiply_", "__imul__"),
    several=True,
)
def mul(input: Any, other: Any) -> Any:
    """Multiply a value by a constant, in either order."""
    value, factor = (input, other) if isinstance(input, Affine) else (other, input)
    if isinstance(factor, Affine):
        raise Unsupported(*PRODUCT)
    if not isinstance(value, Affine):
        return value * factor
    constant = value.constant * factor
    value = expanded(value, constant)
    factors = torch.as_tensor(factor, dtype=torch.float64).expand_as(constant)
    if not torch.equal(factors[0], factors[1]):
        raise Unsupported("scales every sample by a factor of its own", MIXES[1])
    shape = image(value.shape)
    return value.then(scaling(factors[0].reshape(shape)), constant)


@handles(
    functions=(torch.add, operator.add, operator.iadd),
    methods=("add", "add_", "__iadd__"),
    several=True,
)
def add(input: Any, other: Any, *, alpha: float = 1) -> Any:
    """Add two values, or a value and a constant."""
    left, right = (v.constant if isinstance(v, Affine) else v for v in (input, other))
    constant = left + alpha * right
    terms: tuple[Term, ...] = ()
    for value, factor in ((input, 1), (other, alpha)):
        if isinstance(value, Affine):
            terms += expanded(value if factor == 1 else mul(value, factor), constant).terms
    return Affine(constant, terms)


@handles(
    functions=(torch.sub, torch.subtract, operator.sub, operator.isub),
    methods=("sub", "sub_", "subtract", "subtract_", "__isub__"),
    several=True,
)
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Affine:
    return add(input, other, alpha=-alpha)


@handles(functions=(torch.rsub,), several=True)
def _rsub(input: Any, other: Any, *, alpha: float = 1) -> Affine:
    return add(other, input, alpha=-alpha)


@handles(
    functions=(torch.div, torch.divide, torch.true_divide, operator.truediv, operator.itruediv),
    methods=("div", "div_", "divide", "divide_", "true_divide", "true_divide_", "__itruediv__"),
    several=True,
)
def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Affine:
    if isinstance(other, Affine):
        raise Unsupported("it divides by an activation", "leave the division out, or divide by a constant")
    if rounding_mode is not None:
        raise Unsupported(f"rounds, with rounding_mode {rounding_mode!r}", "divide without rounding and fine-tune")
    return mul(input, 1 / torch.as_tensor(other, dtype=torch.float64))


@handles(
    functions=(torch.neg, torch.negative, operator.neg),
    methods=("neg", "neg_", "negative", "negative_"),
)
def _neg(input: Affine) -> Affine:
    return mul(input, -1)


@handles(functions=(torch.addcmul,), methods=("addcmul", "addcmul_"), several=True)
def _addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Affine:
    return add(input, mul(tensor1, tensor2), alpha=value)


@handles(functions=(torch.addcdiv,), methods=("addcdiv", "addcdiv_"), several=True)
def _addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: float = 1) -> Affine:
    return add(input, _div(tensor1, tensor2), alpha=value)


@handles(functions=(torch.lerp,), methods=("lerp", "lerp_"), several=True)
def _lerp(input: Any, end: Any, weight: Any) -> Affine:
    if isinstance(weight, Affine):
        raise Unsupported(*PRODUCT)
    return add(mul(input, 1 - weight), mul(end, weight))
