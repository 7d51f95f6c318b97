"""Activations that the conversion papers train with: what a spiking neuron can express in T steps, as torch modules.

All take and return a tensor (B, C, ...), in the unit of their own threshold, and can be scripted and traced. A
threshold is one number for the layer, or a tensor of one for each channel that broadcasts to a sample: (C,), (C, 1, 1).
The importer knows the classes by exact type. In eval mode each computes its equation and nothing else.

TorchScript reads annotations as they are, so those of this file are no texts.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sim.arguments import checked
from sim.findings import Finding, Refused


def _check(where: str, threshold: float | Tensor, levels: int = 1, slope: float = 0.0) -> None:
    findings = []
    if isinstance(threshold, Tensor):
        shape = tuple(threshold.shape)
        if not (threshold.numel() and threshold.is_floating_point() and (threshold > 0).all()):
            findings.append(Finding(where, "thresholds that are not positive numbers", "give positive ones"))
        if (shape and math.prod(shape[1:]) != 1) or not threshold.isfinite().all():
            findings.append(Finding(where, f"thresholds of shape {shape}", "give finite (C,) or (C, 1, 1)"))
    elif not (threshold > 0 and math.isfinite(threshold)):
        findings.append(Finding(where, f"threshold {threshold}", "give a positive number"))
    if levels < 1:
        findings.append(Finding(where, f"{levels} levels", "give at least 1"))
    if not 0 <= slope <= 1:
        findings.append(Finding(where, f"slope {slope}", "give 0 to 1"))
    if findings:
        raise Refused(findings)


def _tensor(threshold: float | Tensor) -> Tensor:
    return threshold.detach().float().clone() if isinstance(threshold, Tensor) else torch.tensor(float(threshold))


def _shown(threshold: Tensor) -> str:
    """Write a threshold, or the range of many."""
    low, high = float(threshold.detach().min()), float(threshold.detach().max())
    return f"{low:.4g}" if low == high else f"{low:.4g}..{high:.4g}"


def staircase(x: Tensor, threshold: Tensor, levels: int, learning: bool = False) -> Tensor:
    """``threshold * clip(floor(x * levels / threshold + 1/2), 0, levels) / levels``, for a threshold that broadcasts.

    The gradient goes straight through the floor: it is 1 for x in [0, threshold] and 0 elsewhere, and that of the
    threshold is ``(output - x) / threshold`` there, 0 below and 1 above. ``learning`` computes the same by half as many
    passes over memory; scripted and traced modules do without.
    """
    if not torch.jit.is_scripting() and learning and isinstance(x, Tensor):
        learnt: Tensor = _Staircase.apply(x, threshold, levels)
        return learnt
    steps = (x / threshold).clamp(0, 1) * levels
    # The difference is 0 and has the gradient of steps.
    whole = (steps + 0.5).floor().detach() + (steps - steps.detach())
    return threshold * (whole / levels)


class _Staircase(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, threshold: Tensor, levels: int) -> Tensor:
        scaled = x / threshold
        share = scaled.clamp(0, 1).mul_(levels).add_(0.5).floor_().div_(levels)
        ctx.save_for_backward(scaled, share, threshold)
        ctx.kind = x.dtype
        return threshold * share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        scaled, share, threshold = ctx.saved_tensors
        # One pass over memory. It is open to its bounds, 0 and 1 belong to ours.
        number = torch.finfo(scaled.dtype)
        through = torch.ops.aten.hardtanh_backward(gradient, scaled, -number.tiny, 1 + number.eps)
        moved = (gradient * share).addcmul_(through, scaled, value=-1)
        return through.to(ctx.kind), moved.to(threshold.dtype).sum_to_size(threshold.shape), None


class QCFS(nn.Module):
    """Quantisation clip-floor-shift: ``lambda * clip(floor(x * L / lambda + 1/2) / L, 0, 1)``.

    Bu et al., "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks", ICLR 2022.
    A neuron with threshold lambda and initial potential lambda/2 emits this in L steps. ``levels`` is L; ``threshold``
    starts lambda, which is trained. The default is far above what batch-normalised currents reach, so that nothing is
    clipped before lambda has learnt where to. For its gradients see :func:`staircase`. Raises
    :class:`sim.findings.Refused` for a threshold that is not positive and for less than one level.
    """

    @checked
    def __init__(self, levels: int, threshold: float | Tensor = 8.0) -> None:
        super().__init__()
        _check(type(self).__name__, threshold, levels)
        self.levels = levels
        self.threshold = nn.Parameter(_tensor(threshold))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return staircase(x, self.threshold, self.levels, self.training)

    def extra_repr(self) -> str:
        """Show the levels and where lambda stands."""
        return f"levels={self.levels}, threshold={_shown(self.threshold)}"


class NQ(QCFS):
    """Noisy quantised activation: QCFS plus ``delta * G``, G ~ N(0, 1) drawn for every element, in training only.

    Huang et al., "Converting high-performance and low-latency SNNs through explicit modelling of residual error in
    ANNs", eq. 13. The buffer ``noise`` is delta, one number for the layer, which
    :func:`toolchain.training.noise.induce` measures; at 0, where it starts, this is QCFS.
    """

    noise: Tensor

    @checked
    def __init__(self, levels: int, threshold: float | Tensor = 8.0) -> None:
        super().__init__(levels, threshold)
        self.register_buffer("noise", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        y = staircase(x, self.threshold, self.levels, self.training)
        # To ask whether the noise is 0 would make a GPU wait.
        return y + self.noise * torch.randn_like(y) if self.training else y

    def extra_repr(self) -> str:
        """Show the levels, lambda and delta."""
        return f"{super().extra_repr()}, noise={float(self.noise):.4g}"


class SlipReLU(QCFS):
    """Weighted sum of a threshold ReLU and a staircase: ``c * clip(x, 0, lambda) + (1 - c) * QCFS(x)``.

    Jiang et al., "A unified optimization framework of ANN-SNN conversion: towards optimal mapping from activation
    values to firing rates", ICML 2023, with the staircase shifted by half a step, so that a neuron that starts at
    lambda/2 emits its second part. ``slope`` is c, 0 to 1. Raises as QCFS does.
    """

    @checked
    def __init__(self, levels: int, threshold: float | Tensor = 8.0, slope: float = 0.5) -> None:
        super().__init__(levels, threshold)
        _check("SlipReLU", 1.0, slope=slope)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return slipped(x, self.threshold, self.levels, self.slope, self.training)

    def extra_repr(self) -> str:
        """Show the levels, lambda and c."""
        return f"{super().extra_repr()}, slope={self.slope:g}"


def slipped(x: Tensor, threshold: Tensor, levels: int, slope: float, learning: bool = False) -> Tensor:
    """``slope`` times what is clipped to 0..threshold and the rest of its :func:`staircase`."""
    if slope == 0:
        return staircase(x, threshold, levels, learning)
    return slope * clipped(x, threshold) + (1 - slope) * staircase(x, threshold, levels, learning)


def clipped(x: Tensor, threshold: Tensor) -> Tensor:
    """``min(max(x, 0), threshold)``; the threshold's gradient is 1 where x exceeds it."""
    return torch.minimum(x.clamp_min(0), threshold)


class TCL(nn.Module):
    """Trainable clipping: ``min(max(x, 0), lambda)`` with a trained lambda, whose gradient is 1 where x exceeds it.

    Ho and Chang, "TCL: an ANN-to-SNN conversion with trainable clipping layers", DAC 2021. A neuron with threshold
    lambda approaches this in many steps. Raises :class:`sim.findings.Refused` for a threshold that is not positive.
    """

    @checked
    def __init__(self, threshold: float | Tensor = 8.0) -> None:
        super().__init__()
        _check("TCL", threshold)
        self.threshold = nn.Parameter(_tensor(threshold))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return clipped(x, self.threshold)

    def extra_repr(self) -> str:
        """Show lambda."""
        return f"threshold={_shown(self.threshold)}"


class RNL(nn.Module):
    """Rate norm layer: ``min(max(x, 0), theta)`` with ``theta = share * max(x)`` and a trained share.

    Ding et al., "Optimal ANN-SNN conversion for fast and accurate inference in deep spiking neural networks", IJCAI
    2021, whose layer emits the rate ``clip(x / theta, 0, 1)``; here it is multiplied by theta, so that the layer takes
    a ReLU's place without another scale of the weights behind it. The buffer ``maximum`` follows the largest current of
    a batch, or of each channel where the given threshold is one for each, with ``MOMENTUM``; ``share`` starts at 1
    and ``maximum`` at the given threshold. Raises :class:`sim.findings.Refused` for one that is not positive.
    """

    MOMENTUM = 0.1  #: what a batch weighs in the running maximum

    maximum: Tensor

    @checked
    def __init__(self, threshold: float | Tensor = 8.0) -> None:
        super().__init__()
        _check("RNL", threshold)
        self.momentum = self.MOMENTUM
        self.register_buffer("maximum", _tensor(threshold))
        self.share = nn.Parameter(torch.ones_like(self.maximum))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element; in training, move the running maximum first."""
        if self.training:
            found = x.detach().float()
            largest = found.amax() if self.maximum.dim() == 0 else found.transpose(0, 1).flatten(1).amax(1)
            # A layer that is silent for a batch keeps a threshold.
            largest = largest.reshape(self.maximum.shape)
            largest = torch.where(largest > 0, largest, self.maximum)
            self.maximum.lerp_(largest, self.momentum)
        return clipped(x, self.share * self.maximum)

    def extra_repr(self) -> str:
        """Show theta."""
        return f"threshold={_shown(self.share * self.maximum)}"


class TReLU(nn.Module):
    """Threshold ReLU: ``min(max(x, 0), theta_max)``.

    Deng and Gu, "Optimal conversion of conventional artificial neural networks to spiking neural networks", ICLR 2021
    (RTS). A neuron with threshold theta_max approaches this in T steps when theta_max / (2 T) is added to its current
    in each. ``threshold`` is theta_max, a buffer: it is fixed in training and saved with the weights. Raises
    :class:`sim.findings.Refused` for a threshold that is not positive.
    """

    threshold: Tensor

    @checked
    def __init__(self, threshold: float | Tensor) -> None:
        super().__init__()
        _check("TReLU", threshold)
        self.register_buffer("threshold", _tensor(threshold))

    def forward(self, x: Tensor) -> Tensor:
        """Apply it to every element."""
        return clipped(x, self.threshold)

    def extra_repr(self) -> str:
        """Show theta_max."""
        return f"threshold={_shown(self.threshold)}"
