"""Activations that the conversion papers train with: what a spiking neuron can express in T steps, as torch modules.

Both take and return a tensor of any shape, in the unit of their own threshold. The importer knows them by exact type.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sim.arguments import checked
from sim.findings import Finding, Refused


def _check(where: str, threshold: float, levels: int = 1) -> None:
    findings = []
    if not (threshold > 0 and math.isfinite(threshold)):
        findings.append(Finding(where, f"threshold {threshold}", "give a positive number"))
    if levels < 1:
        findings.append(Finding(where, f"{levels} levels", "give at least 1"))
    if findings:
        raise Refused(findings)


def staircase(x: Tensor, threshold: Tensor | float, levels: int) -> Tensor:
    """``threshold * clip(floor(x * levels / threshold + 1/2), 0, levels) / levels``, for a threshold that broadcasts.

    The gradient goes straight through the floor: it is 1 for x in [0, threshold] and 0 elsewhere, and that of the
    threshold is ``(output - x) / threshold`` there, 0 below and 1 above.
    """
    steps = (x / threshold).clamp(0, 1) * levels
    # The difference is 0 and has the gradient of steps.
    whole = (steps + 0.5).floor().detach() + (steps - steps.detach())
    return threshold * (whole / levels)


class QCFS(nn.Module):
    """Quantisation clip-floor-shift: ``lambda * clip(floor(x * L / lambda + 1/2) / L, 0, 1)``.

    Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks", ICLR 2022.
    A neuron with threshold lambda and initial potential lambda/2 emits this in L steps. ``levels`` is L; ``threshold``
    starts lambda, one trainable parameter. The default is far above what batch-normalised currents reach, so that
    nothing is clipped before lambda has learnt where to. For its gradients see :func:`staircase`.

    The buffer ``noise`` is the delta of noisy quantised activation (the same plus ``delta * G``, G ~ N(0, 1) per
    element, in training only); at 0, where it starts, this is QCFS. Raises :class:`sim.findings.Refused` for a
    threshold that is not positive and for less than one level.
    """

    noise: Tensor

    @checked
    def __init__(self, levels: int, threshold: float = 8.0) -> None:
        super().__init__()
        _check("QCFS", threshold, levels)
        self.levels = levels
        self.threshold = nn.Parameter(torch.tensor(float(threshold)))
        self.register_buffer("noise", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        y = staircase(x, self.threshold, self.levels)
        return y + self.noise * torch.randn_like(y) if self.training and self.noise else y

    def extra_repr(self) -> str:
        """Show the levels and where lambda stands."""
        return f"levels={self.levels}, threshold={float(self.threshold.detach()):.4g}"


class TReLU(nn.Module):
    """Threshold ReLU: ``min(max(x, 0), theta_max)``.

    Deng and Gu, "Optimal conversion of conventional artificial neural networks to spiking neural networks", ICLR 2021
    (RTS). A neuron with threshold theta_max approaches this in T steps when theta_max / (2 T) is added to its current
    in each. ``threshold`` is theta_max, a buffer: it is fixed in training and saved with the weights. Raises
    :class:`sim.findings.Refused` for a threshold that is not positive.
    """

    threshold: Tensor

    @checked
    def __init__(self, threshold: float) -> None:
        super().__init__()
        _check("TReLU", threshold)
        self.register_buffer("threshold", torch.tensor(float(threshold)))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return torch.minimum(x.clamp_min(0), self.threshold)

    def extra_repr(self) -> str:
        """Show theta_max."""
        return f"threshold={float(self.threshold.detach()):.4g}"
