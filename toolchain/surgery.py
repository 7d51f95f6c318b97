"""Changes to a model that make it convertible and call for fine-tuning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from sim.arguments import checked
from sim.findings import Finding, Refused

#: By exact type: what averages where the module takes the maximum.
_AVERAGES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.MaxPool1d: lambda m: nn.AvgPool1d(m.kernel_size, m.stride, m.padding, m.ceil_mode),
    nn.MaxPool2d: lambda m: nn.AvgPool2d(m.kernel_size, m.stride, m.padding, m.ceil_mode),
    nn.AdaptiveMaxPool1d: lambda m: nn.AdaptiveAvgPool1d(m.output_size),
    nn.AdaptiveMaxPool2d: lambda m: nn.AdaptiveAvgPool2d(m.output_size),
}


@checked
def replace_max_pooling(model: nn.Module) -> nn.Module:
    """Return a copy in which every module that pools by the maximum averages, with the same kernel, stride and padding.

    These are ``nn.MaxPool1d`` and ``2d``, and their adaptive forms; what a forward calls as a function is its author's
    to change. The copy computes something else than the model: fine-tune it before converting. A ReLU follows a pooling
    that pads, since with a padded convolution behind it, it would be no convolution but an enormous matrix: it becomes
    a spiking layer of its own. Raises :class:`sim.findings.Refused` for every pooling that is dilated or returns
    indices, which no average pooling is.
    """
    found = {path: module for path, module in model.named_modules() if type(module) in _AVERAGES}
    findings = [
        Finding(path or type(model).__name__, problem, "use a convolution with a stride, and fine-tune")
        for path, m in found.items()
        for dilation in (getattr(m, "dilation", 1),)
        for refused, problem in (
            (np.any(np.not_equal(dilation, 1)), f"has dilation {dilation}, average pooling has none"),
            (m.return_indices, "returns indices, average pooling has none"),
        )
        if refused
    ]
    if findings:
        raise Refused(findings)

    def average(m: Any) -> nn.Module:
        pooling = _AVERAGES[type(m)](m)
        return (nn.Sequential(pooling, nn.ReLU()) if np.any(getattr(m, "padding", 0)) else pooling).train(m.training)

    return copy.deepcopy(model, {id(m): average(m) for m in found.values()})
