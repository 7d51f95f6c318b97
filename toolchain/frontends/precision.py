"""Everything that a model computes while it is imported is computed in float64, on the CPU.

A forward may say otherwise: it casts its weights, keeps a kernel as a plain tensor, or makes one in float32.
None of that decides what it computes, and tensors of two types do not meet in torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

_CASTS = (Tensor.float, Tensor.double, Tensor.half, Tensor.bfloat16)
_MOVES = (Tensor.cpu, Tensor.cuda)


class InFloat64(TorchFunctionMode):
    """Lets torch functions take and return float64 for every floating type, and ignore devices."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call ``func``."""
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "__get__":  # of a property: it tells what is there
            return func(*args, **kwargs)
        if func in _MOVES:
            return args[0]
        if func in _CASTS:
            return args[0] if args[0].dtype == torch.float64 else Tensor.double(args[0])
        if func is Tensor.to:
            args = tuple(torch.device("cpu") if _is_device(value) else value for value in args)
        elif func is Tensor.type and (kind := next(iter((*args[1:], *kwargs.values())), None)) is not None:
            return in_float64(args[0].to(named_type(kind)))
        if "device" in kwargs:
            kwargs["device"] = torch.device("cpu")
        args, kwargs = map_aggregate((args, kwargs), in_float64)
        result = func(*args, **kwargs)
        return map_aggregate(result, in_float64) if isinstance(result, list | tuple) else in_float64(result)


def in_float64(value: Any) -> Any:
    """Turn a floating tensor, or the name of a floating type, into that of float64; return all others as they are."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    # Not isinstance: symbolic values say that they are tensors.
    if issubclass(type(value), Tensor) and value.dtype != torch.float64 and value.is_floating_point():
        return Tensor.double(value)
    return value


def named_type(kind: Any) -> torch.dtype:
    """Return the element type that ``Tensor.type`` is given, also where it is a name such as "torch.LongTensor"."""
    if isinstance(kind, torch.dtype):
        return kind
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__name__}"
    return torch.empty(0).type(name.replace("cuda.", "")).dtype


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device | str)
