"""Calibration inputs on which the trained network itself explodes.

A batch normalisation whose running statistics do not fit multiplies what is unusual, layer by layer. Squared errors
then know nothing but a few inputs: thresholds are chosen for these, and T steps up to them are far too coarse for all
others. So inputs that reach ``FAR`` times as far in a layer as ``USUAL`` of them do are left out, if that takes away
``WORTH`` of the error that thresholds cause on *all* inputs, each counted up to the outputs' usual variance. What they
do is then clipped at what others reach.
"""

from __future__ import annotations

import torch
from torch import Tensor

from toolchain.graph import FloatGraph
from toolchain.graph.channels import spread
from toolchain.recipe import Recipe
from toolchain.scales.plan import threshold_of

FAR, USUAL = 4.0, 0.9  #: times in root mean square of a layer's activations; share of inputs
WORTH = 0.2
FEWEST = 32  #: inputs; among fewer nothing is unusual
BATCH = 256  #: inputs whose activations are held at a time


def without_outliers(graph: FloatGraph, x: Tensor, recipe: Recipe) -> tuple[Tensor, str | None]:
    """Return the model inputs (B, *model_shape) to calibrate on, and what is to be said where some were left out."""
    layers = [layer.name for layer in graph.layers if layer.kind == "spiking"]
    if len(x) < FEWEST or not layers:
        return x, None
    parts = [
        torch.stack([a.flatten(1).norm(dim=1) for layer, _, a in graph.walk(part) if layer.kind == "spiking"])
        for part in x.split(BATCH)
    ]
    reached = torch.cat(parts, 1)  # (layers, B)
    usual = reached.quantile(USUAL, dim=1, keepdim=True)
    far = (reached > FAR * usual) & (usual > 0)
    outlying = far.any(0)
    if not outlying.any():
        return x, None
    kept, looked_at = x[~outlying], x[spread(len(x))]
    if _error(graph, looked_at, kept, recipe) > (1 - WORTH) * _error(graph, looked_at, x, recipe):
        return x, None
    times, where = float((reached / usual)[far].max()), layers[int(far.sum(1).argmax())]
    which = outlying.nonzero()[:, 0].tolist()
    shown = ", ".join(map(str, which[:5])) + (", ..." if len(which) > 5 else "")
    return kept, (
        f"{len(which)} of {len(x)} calibration inputs ({shown}) drive the trained network up to {times:.0f} "
        f"times as far as nine in ten do, most of them in {where}; they were left out."
    )


def _error(graph: FloatGraph, x: Tensor, calibration: Tensor, recipe: Recipe) -> float:
    """Mean over ``x`` of the error that thresholds for other inputs bring, each input's at most the usual variance."""
    thetas = {
        layer.name: threshold_of(layer, activation, recipe)
        for layer, _, activation in graph.walk(calibration[spread(len(calibration))])
        if layer.kind == "spiking"
    }
    wanted, found = graph.logits(x).flatten(1), graph.stairs(thetas, recipe.timesteps).logits(x).flatten(1)
    variance = (wanted - wanted.median(0).values).square().sum(1).median().clamp_min(1e-12)
    return float(((found - wanted).square().sum(1) / variance).clamp(max=1).mean())
