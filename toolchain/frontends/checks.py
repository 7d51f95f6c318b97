"""What makes a model unfit before it is looked at operation by operation."""

from __future__ import annotations

import copy
import inspect
from types import MethodType

from torch import nn

from toolchain.frontends.log import Log
from toolchain.frontends.operations import MODULES
from toolchain.frontends.plain import PLAIN_WEIGHTS
from toolchain.frontends.registry import TAUGHT
from toolchain.frontends.tracing import one_line

_CALLED = ("forward", "_conv_forward", "_call_impl", "_wrapped_call_impl", "__call__")

#: What torch's modules compute with, as it was when the importer was loaded.
_PRISTINE = {kind: [getattr(kind, name, None) for name in _CALLED] for kind in MODULES}

_SUBCLASS = "derive a class with a forward of its own, which is traced"


def prepared(model: nn.Module, log: Log) -> nn.Module | None:
    """Return a copy in eval mode, float64 and with finite values; None, with findings, where it cannot be made."""
    _check_hooks(model, log)
    _check_forwards(model, log)
    if not _check_types(model, log):
        return None
    try:
        model = copy.deepcopy(model).cpu().double().eval()
    except (RuntimeError, TypeError) as error:
        log.refuse_part(
            "model",
            f"it cannot be copied: {one_line(error)}",
            PLAIN_WEIGHTS,
        )
        return None
    _check_values(model, log)
    return model


def _check_hooks(model: nn.Module, log: Log) -> None:
    for path, module in model.named_modules():
        lazy = isinstance(module, nn.modules.lazy.LazyModuleMixin)  # these carry a hook of torch's own
        if not lazy and (module._forward_hooks or module._forward_pre_hooks):
            log.refuse_part(
                "hook",
                "a forward hook may change what it computes",
                "remove its hooks (torch.nn.utils.remove_weight_norm, prune.remove, handle.remove)",
                path,
            )


def _check_forwards(model: nn.Module, log: Log) -> None:
    """Refuse what does not compute what its class stands for."""
    for path, module in model.named_modules():
        kind = type(module)
        own = [name for name in vars(module) if inspect.isroutine(getattr(kind, name, None))]
        if own and (kind in MODULES or kind in TAUGHT):
            log.refuse_part("forward", f"its {' and '.join(own)} was replaced on the instance", _SUBCLASS, path)
        elif kind in _PRISTINE and [getattr(kind, name, None) for name in _CALLED] != _PRISTINE[kind]:
            log.refuse_part("forward", f"the forward of {kind.__name__} was replaced", _SUBCLASS, path)
    forward = vars(model).get("forward")
    if forward is not None and not (isinstance(forward, MethodType) and forward.__self__ is model):
        log.refuse_part("forward", "it was replaced on the instance", _SUBCLASS)


def _check_types(model: nn.Module, log: Log) -> bool:
    """Refuse what no float64 stands for; returns whether there is none."""
    before = len(log.findings)
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for path, tensor in tensors:
            if nn.parameter.is_lazy(tensor):
                continue
            integers = kind == "parameter" and not tensor.is_floating_point()  # of buffers they may be indices
            if integers or tensor.is_complex() or tensor.is_quantized:
                problem = f"its type is {str(tensor.dtype).removeprefix('torch.')}"
                remedy = "give real floating-point numbers; of integer levels the levels times their scale"
                log.refuse_part(kind, problem, remedy, path, tuple(tensor.shape))
    return len(log.findings) == before


def _check_values(model: nn.Module, log: Log) -> None:
    """Refuse NaN and infinity, and zero them so that they do not hide what else there is to find."""
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for path, tensor in tensors:
            if nn.parameter.is_lazy(tensor):
                log.refuse_part(kind, "it has no shape yet", "run the model once before importing it", path)
            elif not tensor.isfinite().all():
                count = int((~tensor.isfinite()).sum())
                problem = f"{count} of {tensor.numel()} values are NaN or infinite"
                remedy = "train again from the last good checkpoint"
                log.refuse_part(kind, problem, remedy, path, tuple(tensor.shape))
                tensor.nan_to_num_(0.0, 0.0, 0.0)
