"""Linear layers, and products with constant matrices in every spelling."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends.affine import MIXES, PRODUCT, Affine, Unsupported
from toolchain.frontends.linear import Convolution
from toolchain.frontends.operations.arithmetic import add, mul
from toolchain.frontends.registry import handles


@handles(modules={nn.Linear: lambda m: (m.weight, m.bias)}, functions=(functional.linear,), names=True)
def linear(input: Affine, weight: Tensor, bias: Tensor | None = None) -> Affine:
    """Multiply the last dimension by a matrix, (N_out, N_in)."""
    constant = functional.linear(input.constant, weight, bias)
    if weight.dim() != 2 or len(input.shape) != 1:
        return input.mapped(lambda x: functional.linear(x, weight, bias))
    n_out, n_in = weight.shape
    return input.then(Convolution(weight[..., None, None], (n_in, 1, 1), (n_out, 1, 1)), constant)


def multilinear(function: Callable[..., Tensor], operands: Sequence[Any]) -> Any:
    """Apply a function that is linear in every operand; at most one of them is an activation."""
    places = [i for i, operand in enumerate(operands) if isinstance(operand, Affine)]
    if len(places) > 1:
        raise Unsupported(*PRODUCT)
    if not places:
        return function(*operands)
    (place,) = places
    return operands[place].mapped(lambda x: function(*operands[:place], x, *operands[place + 1 :]))


@handles(
    functions=(torch.matmul, torch.mm, torch.bmm, torch.linalg.matmul, operator.matmul, operator.imatmul),
    methods=("matmul", "mm", "bmm"),
    several=True,
    names=True,
)
def matmul(input: Any, other: Any) -> Any:
    """Multiply by a constant matrix from either side."""
    if isinstance(input, Affine) and isinstance(other, Tensor) and other.dim() == 2:
        return linear(input, other.t())
    if isinstance(other, Affine) and len(other.shape) == 0:  # a vector of one number for each sample
        raise Unsupported(*MIXES)
    return multilinear(torch.matmul, (input, other))


@handles(functions=(torch.addmm, torch.baddbmm), methods=("addmm", "addmm_", "baddbmm", "baddbmm_"), several=True,
         names=True)  # fmt: skip
def _addmm(input: Any, mat1: Any, mat2: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    return add(mul(input, beta), mul(matmul(mat1, mat2), alpha))


@handles(functions=(torch.einsum,), several=True, names=True)
def _einsum(equation: Any, *operands: Any) -> Any:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return multilinear(lambda *values: torch.einsum(equation, *values), operands)


@handles(functions=(torch.tensordot,), several=True, names=True)
def _tensordot(input: Any, other: Any, dims: Any = 2) -> Any:
    return multilinear(lambda a, b: torch.tensordot(a, b, dims), (input, other))


@handles(functions=(torch.inner,), methods=("inner",), several=True, names=True)
def _inner(input: Any, other: Any) -> Any:
    return multilinear(torch.inner, (input, other))


@handles(functions=(torch.linalg.multi_dot, torch.chain_matmul), several=True, names=True)
def _multi_dot(*matrices: Any) -> Any:
    first, *others = matrices[0] if len(matrices) == 1 else matrices
    for other in others:
        first = matmul(first, other)
    return first


@handles(
    modules={nn.Bilinear: lambda m: (m.weight, m.bias)},
    functions=(functional.bilinear,),
    several=True,
    names=True,
)
def _bilinear(input1: Any, input2: Any, weight: Any, bias: Any = None) -> Any:
    return multilinear(lambda a, b: functional.bilinear(a, b, weight, bias), (input1, input2))
