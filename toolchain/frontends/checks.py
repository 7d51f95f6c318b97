"""What makes a model unfit before it is looked at operation by operation."""

from __future__ import annotations

import copy

from torch import nn

from toolchain.frontends.log import Log
from toolchain.frontends.tracing import one_line


def prepared(model: nn.Module, log: Log) -> nn.Module | None:
    """Return a copy in eval mode, float64 and with finite values; None, with a finding, where it cannot be copied."""
    _check_hooks(model, log)
    try:
        model = copy.deepcopy(model).cpu().double().eval()
    except (RuntimeError, TypeError) as error:
        log.refuse_part(
            "model",
            f"it cannot be copied: {one_line(error)}",
            "make every weight a plain parameter (torch.nn.utils.remove_weight_norm, prune.remove)",
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
