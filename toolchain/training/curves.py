"""A training as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib.figure import Figure

from exporters.report.figures import BLUE, DPI, GREY, VERMILION, whole_numbers
from toolchain.training.settings import Settings
from toolchain.training.trainer import Epoch


def figure(history: Sequence[Epoch], settings: Settings) -> Figure:
    """Draw loss, accuracies and, where it was measured, the residual error of each layer, by epoch."""
    measured = [epoch for epoch in history if epoch.snn is not None]
    drawn = Figure(figsize=(10.5, 3.6), layout="constrained")
    losses, scores, errors = drawn.subplots(1, 3)
    losses.plot([e.epoch for e in history], [e.loss for e in history], color=GREY)
    losses.set_ylabel("loss")
    at = [e.epoch for e in measured]
    spiking = f"SNN, T = {settings.steps}, K = {settings.holdoff}, {settings.method}"
    for label, colour, marker, values in (
        ("trained network", BLUE, "o", [e.ann for e in measured]),
        (spiking, VERMILION, "s", [e.snn for e in measured]),
    ):
        scores.plot(at, values, color=colour, marker=marker, markersize=4, label=label)
    scores.set_ylabel("accuracy, validation part (%)")
    scores.legend(frameon=False, fontsize=8)
    for number, residual in enumerate(measured[-1].residuals if measured else ()):
        shade = 0.15 + 0.7 * number / max(1, len(measured[-1].residuals) - 1)
        errors.plot(at, [e.residuals[number].std for e in measured], color=str(1 - shade), linewidth=1)
        if number in (0, len(measured[-1].residuals) - 1):
            errors.annotate(residual.layer, (at[-1], residual.std), (3, 0), textcoords="offset points", fontsize=7)
    errors.set_ylabel("standard deviation of the residual error")
    for axes in (losses, scores, errors):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(whole_numbers())
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    drawn.suptitle(f"{settings.activation}, L = {settings.levels}", x=0.01, ha="left", fontsize=11)
    return drawn


def picture(history: Sequence[Epoch], settings: Settings) -> bytes:
    """Draw a training as a PNG."""
    buffer = io.BytesIO()
    figure(history, settings).savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
