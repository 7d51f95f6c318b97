"""The pipeline: a trained torch model and calibration inputs become an integer Network::

import -> (tune ->) thresholds -> quantise -> calibrate, layer by layer in topological order
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sim import chip as chips
from sim import fast
from sim.findings import Refused, refuse
from sim.fixedpoint import Policy
from sim.network import Network, Shape
from sim.trace import Trace
from toolchain import calibrate, quantize, tune
from toolchain.graph import FloatGraph
from toolchain.importer import import_model
from toolchain.progress import Progress
from toolchain.recipe import Recipe
from toolchain.recipe import recipe as named


@dataclass(frozen=True, eq=False)
class Conversion:
    """The result: the deployable network, and the float graph and scales that it came from."""

    network: Network
    graph: FloatGraph  #: equals the torch model
    source: FloatGraph  #: what was quantised: the same graph, or with tuned weights its copy for T steps
    recipe: Recipe
    plans: dict[str, quantize.Plan]  #: by layer: THETA and the activation that one spike per step stands for
    peak: dict[str, int]  #: by layer: largest register magnitude on the calibration inputs, su

    def run(
        self,
        x: Any,
        *,
        record: bool = True,
        overflow: Policy = "strict",
        progress: Callable[[int], object] | None = None,
    ) -> Trace:
        """Simulate model inputs ``(B, *input_shape)`` (see :func:`as_inputs`) on the fast engine."""
        payload = self.network.input.encode(as_inputs(x, self.network.input.shape))
        return fast.run(
            self.network,
            payload,
            chip=chips.CHIPS[self.recipe.chip],
            overflow=overflow,
            record=record,
            progress=progress,
        )

    def predict(self, x: Any) -> np.ndarray:
        """Classes after the whole window, int64 (B,)."""
        return self.run(x, record=False).logits[:, -1].reshape(len(x), -1).argmax(1)


def as_inputs(x: Any, shape: Shape | None = None, where: str = "calibration") -> Tensor:
    """Turn user data into the model's inputs, float32 (B, *shape).

    uint8 is scaled by 1/255, as torchvision's ToTensor does; floats are taken as they are. Sequences (B, C, L) fit a
    ``shape`` of (C, L, 1), as the float graph has it. Raises :class:`Refused` for an empty array, a wrong shape,
    another type, NaN or infinity.
    """
    tensor = x.detach().cpu() if isinstance(x, Tensor) else torch.from_numpy(np.array(x)) if _is_numeric(x) else None
    if tensor is None or not (tensor.is_floating_point() or tensor.dtype == torch.uint8):
        raise refuse(where, f"type {getattr(x, 'dtype', type(x).__name__)}", "give uint8 or floating-point numbers")
    if tensor.ndim == 3 and shape == (*tensor.shape[1:], 1):
        tensor = tensor[..., None]
    if tensor.ndim not in (2, 3, 4) or (shape is not None and tuple(tensor.shape[1:]) != shape):
        wanted = "(N, C, H, W), (N, C, L) or (N, features)" if shape is None else f"(N, {', '.join(map(str, shape))})"
        raise refuse(where, f"shape {tuple(tensor.shape)}", f"it needs {wanted}")
    if not tensor.numel():
        raise refuse(where, f"empty: shape {tuple(tensor.shape)}", "give at least one sample")
    tensor = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
    if not tensor.isfinite().all():
        bad = int(tensor.flatten(1).isfinite().logical_not().any(1).nonzero()[0])
        raise refuse(where, f"sample {bad} holds NaN or infinity", "clean the data")
    return tensor


def _is_numeric(x: Any) -> bool:
    return np.asarray(x).dtype.kind in "fiub"


def convert(
    model: nn.Module | FloatGraph,
    calibration: Any,
    timesteps: int | None = None,
    *,
    recipe: str | Recipe = "ann2loihi",
    progress: Progress | None = None,
    **options: Any,
) -> Conversion:
    """Convert a trained model, which is left as it is, with a few hundred calibration inputs.

    ``calibration`` is ``(N, C, H, W)``, ``(N, C, L)`` or ``(N, features)``, uint8 or float (see :func:`as_inputs`);
    labels are never needed. ``recipe`` is one of ``toolchain.recipe.RECIPES`` by name, or a :class:`Recipe`;
    ``timesteps`` and ``options``, its fields, override it. Deterministic: the same arguments give an
    equal network on the same machine, and elsewhere one as good (docs/semantics.md, "Same result where?").
    Raises :class:`Refused` with every finding at once when something cannot be converted or does not fit the chip.
    """
    if timesteps is not None:
        options["timesteps"] = timesteps
    recipe = replace(recipe, **options) if isinstance(recipe, Recipe) else named(recipe, **options)
    x = as_inputs(calibration)
    graph = model if isinstance(model, FloatGraph) else import_model(model, tuple(x.shape[1:]))
    x = as_inputs(x, graph.input_shape)
    chip = chips.CHIPS[recipe.chip]
    with torch.no_grad():
        conversion = _build(graph, x, recipe, progress or (lambda *_: None))
    findings = chips.check(conversion.network, chip)
    if findings:
        raise Refused(findings)
    return conversion


def _build(graph: FloatGraph, x: Tensor, recipe: Recipe, progress: Progress) -> Conversion:
    source = tuned(graph, x, recipe, progress) if recipe.weights == "tuned" else graph
    network, plans = quantise(source, x, recipe, progress)
    network, peak = calibrated(network, source, plans, x, recipe, progress)
    return Conversion(network, graph, source, recipe, plans, peak)


def tuned(graph: FloatGraph, x: Tensor, recipe: Recipe, progress: Progress = lambda *_: None) -> FloatGraph:
    """Tune the graph to the recipe's T from the thresholds that it would get, see :func:`toolchain.tune.tune`."""
    _, plans = quantise(graph, x, recipe, progress)
    thetas = {layer.name: plans[layer.name].theta for layer in graph.layers if layer.kind == "spiking"}
    return tune.tune(graph, x, thetas, recipe.timesteps, recipe.updates, lambda *p: progress("tuning", *p))


def quantise(
    graph: FloatGraph, x: Tensor, recipe: Recipe, progress: Progress = lambda *_: None
) -> tuple[Network, dict[str, quantize.Plan]]:
    """Build the recipe's integer network before calibration, see :func:`toolchain.quantize.quantise`."""
    return quantize.quantise(
        graph,
        x,
        recipe.timesteps,
        recipe.holdoff,
        recipe.threshold,
        recipe.initial,
        recipe.input_bits,
        recipe.shift_input,
        chips.CHIPS[recipe.chip],
        lambda *p: progress("quantising", *p),
    )


def calibrated(
    network: Network,
    graph: FloatGraph,
    plans: dict[str, quantize.Plan],
    x: Tensor,
    recipe: Recipe,
    progress: Progress = lambda *_: None,
) -> tuple[Network, dict[str, int]]:
    """Calibrate what :func:`quantise` has built, see :func:`toolchain.calibrate.calibrate`."""
    return calibrate.calibrate(
        network,
        graph,
        plans,
        x,
        rule=recipe.method,
        weights=recipe.weights,
        per_neuron=recipe.per_neuron,
        chip=chips.CHIPS[recipe.chip],
        progress=lambda *p: progress("calibrating", *p),
    )
