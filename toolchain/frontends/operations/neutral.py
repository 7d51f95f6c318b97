"""What changes no value: dropout in eval mode, casts and copies."""

from __future__ import annotations

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends.affine import Affine, Unsupported
from toolchain.frontends.precision import named_type
from toolchain.frontends.registry import handles

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@handles(
    modules=dict.fromkeys((nn.Identity, *_DROPOUTS), lambda m: ()),
    functions=(torch.detach, torch.positive, operator.pos),
    methods=("float", "cpu", "cuda", "detach", "detach_", "requires_grad_", "positive"),
)
def _same(input: Affine, *args: Any, **kwargs: Any) -> Affine:
    return input


@handles(functions=(functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d))
def _dropout(input: Affine, p: float = 0.5, training: bool = True, inplace: bool = False) -> Affine:
    if training and p > 0:
        raise Unsupported("is active in eval mode too", "pass training=self.training")
    return input


@handles(functions=(functional.alpha_dropout, functional.feature_alpha_dropout))
def _alpha_dropout(input: Affine, p: float = 0.5, training: bool = False, inplace: bool = False) -> Affine:
    return _dropout(input, p, training)


@handles(
    functions=(torch.dropout, torch.feature_dropout, torch.alpha_dropout, torch.feature_alpha_dropout),
)
def _dropout_of_torch(input: Affine, p: float, train: bool) -> Affine:
    return _dropout(input, p, train)


@handles(methods=("contiguous",))
def _contiguous(input: Affine, **kwargs: Any) -> Affine:
    return replace(input, constant=input.constant.contiguous())


@handles(functions=(torch.clone,), methods=("clone", "double", "half", "bfloat16"))
def _clone(input: Affine, **kwargs: Any) -> Affine:
    return replace(input, constant=input.constant.clone())


def need_floating(dtype: torch.dtype | None) -> None:
    """Refuse a type that rounds."""
    if dtype is not None and not dtype.is_floating_point:
        raise Unsupported(f"it rounds to {dtype}", "leave the cast out and fine-tune")


@handles(methods=("to", "type_as"), several=True)
def _to(input: Affine, *args: Any, **kwargs: Any) -> Affine:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.dtype | Tensor):
            need_floating(value if isinstance(value, torch.dtype) else value.dtype)
    copied = kwargs.get("copy") or torch.float16 in args or torch.bfloat16 in args or torch.float64 in args
    return _clone(input) if copied else input


@handles(methods=("type",))
def _type(input: Affine, dtype: Any, non_blocking: bool = False) -> Affine:
    need_floating(named_type(dtype))
    return input
