"""Sums, differences, and products with constants."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from toolchain.frontends.affine import BATCH, NEVER_MIX, Affine, Term, Unsupported, image
from toolchain.frontends.linear import scaling
from toolchain.frontends.registry import handles


def _expanded(value: Affine, constant: Tensor) -> Affine:
    if value.constant.dim() != constant.dim() or len(constant) != BATCH:
        raise Unsupported("mixes the samples of a batch", NEVER_MIX)
    shape = tuple(constant.shape[1:])
    return value if value.shape == shape else value.selected(value.positions().expand(-1, *shape), constant)


@handles(functions=(torch.mul, operator.mul, operator.imul), methods=("mul", "mul_"), several=True)
def mul(input: Any, other: Any) -> Affine:
    """Multiply a value by a constant, in either order."""
    value, factor = (input, other) if isinstance(input, Affine) else (other, input)
    if isinstance(factor, Affine):
        raise Unsupported("it multiplies activations by each other", "use layers that are linear")
    constant = value.constant * factor
    value = _expanded(value, constant)
    factors = torch.as_tensor(factor, dtype=torch.float64).expand_as(constant)
    if not torch.equal(factors[0], factors[1]):
        raise Unsupported("scales every sample by a factor of its own", NEVER_MIX)
    shape = image(value.shape)
    return value.then(scaling(factors[0].reshape(shape)), constant)


@handles(functions=(torch.add, operator.add, operator.iadd), methods=("add", "add_"), several=True)
def _add(input: Any, other: Any, *, alpha: float = 1) -> Affine:
    left, right = (v.constant if isinstance(v, Affine) else v for v in (input, other))
    constant = left + alpha * right
    terms: tuple[Term, ...] = ()
    for value, factor in ((input, 1), (other, alpha)):
        if isinstance(value, Affine):
            terms += _expanded(value if factor == 1 else mul(value, factor), constant).terms
    return Affine(constant, terms)


@handles(functions=(torch.sub, operator.sub, operator.isub), methods=("sub", "sub_"), several=True)
def _sub(input: Any, other: Any, *, alpha: float = 1) -> Affine:
    return _add(input, other, alpha=-alpha)


@handles(functions=(torch.div, operator.truediv, operator.itruediv), methods=("div", "div_"), several=True)
def _div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Affine:
    if isinstance(other, Affine):
        raise Unsupported("it divides by an activation", "use layers that are linear")
    if rounding_mode is not None:
        raise Unsupported(f"rounds, with rounding_mode {rounding_mode!r}", "divide without rounding and fine-tune")
    return mul(input, 1 / torch.as_tensor(other, dtype=torch.float64))


@handles(functions=(torch.neg, operator.neg), methods=("neg",))
def _neg(input: Affine) -> Affine:
    return mul(input, -1)
