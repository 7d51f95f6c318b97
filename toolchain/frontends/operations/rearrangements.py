"""Operations that move, repeat or leave out values, and those that change nothing."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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

for _reshape in (torch.reshape, torch.squeeze, torch.unsqueeze):
    handles(functions=(_reshape,))(_reshaping(_reshape))

for _name in ("view", "reshape", "squeeze", "unsqueeze"):
    handles(methods=(_name,))(_reshaping(getattr(Tensor, _name)))


def _selecting(function: Callable[..., Any]) -> Callable[..., Any]:
    """Handle an operation that moves, repeats or leaves out values, and may return several tensors."""

    def handler(input: Affine, *args: Any, **kwargs: Any) -> Any:
        positions = function(input.positions(), *args, **kwargs)
        constants = function(input.constant, *args, **kwargs)
        if isinstance(constants, Tensor):
            return input.selected(positions, constants)
        return tuple(map(input.selected, positions, constants))

    return handler


for _select in (operator.getitem, torch.chunk, torch.split, torch.unbind, torch.permute, torch.transpose):
    handles(functions=(_select,))(_selecting(_select))

for _name in ("chunk", "split", "unbind", "permute", "transpose", "expand"):
    handles(methods=(_name,))(_selecting(getattr(Tensor, _name)))


@handles(
    modules=dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d), lambda m: (m.padding,)),
    functions=(functional.pad,),
)
def _pad(input: Affine, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Affine:
    constant = functional.pad(input.constant, pad, mode, value)
    return input.selected(functional.pad(input.positions(), pad, mode), constant)


@handles(functions=(torch.cat, torch.concat))
def _cat(tensors: Sequence[Any], dim: int = 0) -> Affine:
    constants = [value.constant if isinstance(value, Affine) else value for value in tensors]
    whole = Affine(torch.cat(constants, dim), ())
    for i, value in enumerate(tensors):
        if isinstance(value, Affine):
            positions = [value.positions() if i == j else torch.zeros_like(c) for j, c in enumerate(constants)]
            part = value.selected(torch.cat(positions, dim), whole.constant)
            whole = replace(whole, terms=whole.terms + part.terms)
    return whole


@handles(
    modules=dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d), lambda m: ()),
    methods=("float", "detach"),
)
def _same(input: Affine, *args: Any, **kwargs: Any) -> Affine:
    return input


@handles(functions=(functional.dropout, functional.dropout2d))
def _dropout(input: Affine, p: float = 0.5, training: bool = True, inplace: bool = False) -> Affine:
    if training:
        raise Unsupported("is active in eval mode too", "pass training=self.training")
    return input


@handles(methods=("contiguous",))
def _contiguous(input: Affine, **kwargs: Any) -> Affine:
    return replace(input, constant=input.constant.contiguous())


@handles(methods=("clone",))
def _clone(input: Affine, **kwargs: Any) -> Affine:
    return replace(input, constant=input.constant.clone())
