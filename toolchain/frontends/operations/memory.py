"""Tensors as memory: assignments to parts of one, and new ones of the type and size of another."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toolchain.frontends.affine import Affine, Unsupported, assembled
from toolchain.frontends.precision import in_float64
from toolchain.frontends.registry import handles


@handles(functions=(operator.setitem,), methods=("__setitem__",), several=True)
def _setitem(input: Any, index: Any, value: Any) -> Affine:
    old, new = (v.constant if isinstance(v, Affine) else v for v in (input, value))
    if not isinstance(old, Tensor) or isinstance(index, Affine):
        raise Unsupported("an activation stands where an index belongs", "assign to a slice")
    constant = old.clone()
    constant[index] = new
    parts: list[tuple[Affine, Tensor]] = []
    if isinstance(input, Affine):
        kept = input.positions()
        kept[index] = 0
        parts.append((input, kept))
    if isinstance(value, Affine):
        placed = torch.zeros_like(constant)
        placed[index] = value.positions()
        parts.append((value, placed))
    return assembled(constant, *parts)


@handles(methods=("copy_",), several=True)
def _copy(input: Any, src: Any, non_blocking: bool = False) -> Affine:
    return _setitem(input, ..., src)


@handles(methods=("fill_",))
def _fill(input: Affine, value: float) -> Affine:
    return _setitem(input, ..., value)


@handles(methods=("zero_",))
def _zero(input: Affine) -> Affine:
    return _fill(input, 0.0)


def _like(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Handle an operation that takes nothing but type and size from an activation."""

    def handler(input: Affine, *args: Any, **kwargs: Any) -> Tensor:
        return in_float64(function(input.constant, *args, **kwargs))

    return handler


for _name in ("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"):
    handles(methods=(_name,))(_like(getattr(Tensor, _name)))

for _function in (torch.zeros_like, torch.ones_like, torch.full_like, torch.empty_like):
    handles(functions=(_function,))(_like(_function))
