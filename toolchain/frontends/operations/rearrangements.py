"""Operations that move, repeat or leave out values."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from toolchain.frontends.affine import Affine, Unsupported
from toolchain.frontends.registry import handles


def _reshaping(function: Callable[..., Tensor]) -> Callable[..., Affine]:
    """Handle an operation that changes the shape and keeps the values in their order."""

    def handler(input: Affine, *args: Any, **kwargs: Any) -> Affine:
        return input.reshaped(function(input.constant, *args, **kwargs))

    return handler


handles(
    modules={nn.Flatten: lambda m: (m.start_dim, m.end_dim)},
    functions=(torch.flatten,),
    methods=("flatten",),
)(_reshaping(torch.flatten))

handles(modules={nn.Unflatten: lambda m: (m.dim, m.unflattened_size)})(_reshaping(Tensor.unflatten))

for _reshape in (torch.reshape, torch.squeeze, torch.unsqueeze, torch.ravel, torch.unflatten):
    handles(functions=(_reshape,))(_reshaping(_reshape))

for _name in ("view", "reshape", "squeeze", "unsqueeze", "ravel", "unflatten"):
    handles(methods=(_name,))(_reshaping(getattr(Tensor, _name)))


def selecting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Handle an operation that moves, repeats or leaves out values, and may return several tensors."""

    def handler(input: Affine, *args: Any, **kwargs: Any) -> Any:
        positions = function(input.positions(), *args, **kwargs)
        constants = function(input.constant, *args, **kwargs)
        if isinstance(constants, Tensor):
            return input.selected(positions, constants)
        return tuple(map(input.selected, positions, constants))

    return handler


#: By their names in torch and among the methods of tensors, where they are known there.
SELECTING = (
    "chunk", "split", "split_with_sizes", "tensor_split", "hsplit", "vsplit", "dsplit", "unbind",
    "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "adjoint",
    "narrow", "select", "index_select", "gather", "take_along_dim", "diagonal", "tril", "triu",
    "expand", "broadcast_to", "repeat", "tile", "repeat_interleave", "unfold",
    "flip", "fliplr", "flipud", "roll", "rot90",
)  # fmt: skip

handles(functions=(operator.getitem,))(selecting(operator.getitem))

for _name in SELECTING:
    if hasattr(torch, _name):
        handles(functions=(getattr(torch, _name),))(selecting(getattr(torch, _name)))
    if hasattr(Tensor, _name):
        handles(methods=(_name,))(selecting(getattr(Tensor, _name)))


@handles(functions=(getattr,))
def _attribute(input: Affine, name: str) -> Any:
    """Get what torch.fx writes for ``x.T`` and its like."""
    if name in ("T", "H", "mT", "mH"):
        return selecting(getattr)(input, name.replace("H", "T"))
    if name in ("data", "real"):
        return input
    raise Unsupported(f"it asks for {name}", "leave that out")


@handles(methods=("expand_as",), several=True)
def _expand_as(input: Affine, other: Any) -> Any:
    return selecting(Tensor.expand)(input, other.shape if isinstance(other, Tensor) else other.constant.shape)


@handles(methods=("view_as", "reshape_as"), several=True)
def _reshape_as(input: Affine, other: Any) -> Affine:
    return _reshaping(Tensor.reshape)(input, other.shape if isinstance(other, Tensor) else other.constant.shape)


def _joining(function: Callable[[Sequence[Tensor]], Tensor], parts: Sequence[Any]) -> Affine:
    """Handle an operation that puts values of several tensors side by side, or takes them from one or another."""
    values = [part.constant if isinstance(part, Affine) else part for part in parts]
    constants = [torch.as_tensor(value, dtype=torch.float64) for value in values]
    constant = function(constants)
    selected = [
        part.selected(
            function([part.positions() if i == j else torch.zeros_like(c) for j, c in enumerate(constants)]), constant
        )
        for i, part in enumerate(parts)
        if isinstance(part, Affine)
    ]
    return replace(selected[0], terms=tuple(term for part in selected for term in part.terms))


def _along(function: Callable[..., Tensor]) -> Callable[..., Affine]:
    def handler(tensors: Sequence[Any], *args: Any, **kwargs: Any) -> Affine:
        return _joining(lambda parts: function(parts, *args, **kwargs), tensors)

    return handler


handles(functions=(torch.cat, torch.concat, torch.concatenate))(_along(torch.cat))

for _join in (torch.stack, torch.hstack, torch.vstack, torch.row_stack, torch.dstack, torch.column_stack):
    handles(functions=(_join,))(_along(_join))


@handles(functions=(torch.where,), several=True)
def _where(condition: Any, input: Any, other: Any) -> Affine:
    if isinstance(condition, Affine):
        raise Unsupported("it chooses by an activation", "write a rectification as nn.ReLU, and fine-tune")
    return _joining(lambda parts: torch.where(condition, parts[0], parts[1]), (input, other))


@handles(functions=(torch.masked_fill,), methods=("masked_fill", "masked_fill_"))
def _masked_fill(input: Affine, mask: Tensor, value: Any) -> Affine:
    return _joining(lambda parts: torch.where(mask, parts[0], parts[1]), (value, input))
