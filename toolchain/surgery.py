"""Changes to a model that make it convertible and call for fine-tuning."""

from __future__ import annotations

import copy

import numpy as np
from torch import nn

from sim.findings import Finding, Refused


def replace_max_pooling(model: nn.Module) -> nn.Module:
    """Return a copy in which every ``nn.MaxPool2d`` is an ``nn.AvgPool2d`` of the same kernel, stride and padding.

    The copy computes something else than the model: fine-tune it before converting. A ReLU follows a pooling that pads,
    since with a padded convolution behind it, it would be no convolution but an enormous matrix: it becomes a spiking
    layer of its own. Raises
    :class:`sim.findings.Refused` for every pooling that is dilated or returns indices, which no average pooling is.
    """
    found = {path: module for path, module in model.named_modules() if type(module) is nn.MaxPool2d}
    findings = [
        Finding(path or type(model).__name__, problem, "use a convolution with a stride, and fine-tune")
        for path, m in found.items()
        for refused, problem in (
            (np.any(np.not_equal(m.dilation, 1)), f"has dilation {m.dilation}, average pooling has none"),
            (m.return_indices, "returns indices, average pooling has none"),
        )
        if refused
    ]
    if findings:
        raise Refused(findings)

    def average(m: nn.MaxPool2d) -> nn.Module:
        pooling = nn.AvgPool2d(m.kernel_size, m.stride, m.padding, m.ceil_mode)
        return (nn.Sequential(pooling, nn.ReLU()) if np.any(m.padding) else pooling).train(m.training)

    return copy.deepcopy(model, {id(m): average(m) for m in found.values()})
