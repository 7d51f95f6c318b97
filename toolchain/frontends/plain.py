"""A model as converting and running it need it: without what training wraps around it, in float32."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from sim.findings import refuse

PLAIN_WEIGHTS = (
    "make every weight a plain parameter (torch.nn.utils.remove_weight_norm, prune.remove, "
    "parametrize.remove_parametrizations)"
)

#: Modules that run another one, by the full name of their class: what they call it.
WRAPPERS = {
    "torch.nn.parallel.data_parallel.DataParallel": "module",
    "torch.nn.parallel.distributed.DistributedDataParallel": "module",
    "torch._dynamo.eval_frame.OptimizedModule": "_orig_mod",
    "torch.optim.swa_utils.AveragedModel": "module",
}


def unwrapped(model: nn.Module) -> nn.Module:
    """Take DataParallel, ``torch.compile`` and their like off a model and off every module inside it.

    The model is left as it is: where a module inside it is wrapped, a copy is returned. Raises
    :class:`sim.findings.Refused` for TorchScript, whose code is no longer there.
    """
    model = _inner(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise refuse(
            type(model).__name__,
            "is TorchScript, which is compiled and cannot be traced",
            "give the module that was scripted or traced, or a .pt2 file that torch.export has written",
        )
    memo: dict[int, nn.Module] = {}
    for module in reversed(list(model.modules())):  # from the inside out
        if (inner := _inner(module)) is not module:
            memo[id(module)] = copied(inner, memo)
    return copied(model, memo) if memo else model


def copied(model: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """Copy a model as :func:`copy.deepcopy` does; :class:`sim.findings.Refused` where some of it cannot be copied."""
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # whatever modules of the user's own may raise
        problem = f"it cannot be copied: {' '.join(str(error).split())[:200]}"
        raise refuse(type(model).__name__, problem, PLAIN_WEIGHTS) from error


def _inner(module: nn.Module) -> nn.Module:
    while name := WRAPPERS.get(f"{type(module).__module__}.{type(module).__qualname__}"):
        module = getattr(module, name)
    return module


def as_float32(model: nn.Module) -> nn.Module:
    """Return the model itself if all its floating-point tensors are float32, and a copy in float32 otherwise."""
    tensors = (*model.parameters(), *model.buffers())
    if all(tensor.dtype == torch.float32 for tensor in tensors if tensor.is_floating_point()):
        return model
    return copied(model).float()
