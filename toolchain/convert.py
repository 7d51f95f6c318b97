"""The pipeline: a trained torch model and calibration inputs become an integer Network::

import -> choose scales (-> tune -> choose scales) -> build integers -> calibrate, layer by layer
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporters import bundle, engines
from exporters.report import Rates, Report
from sim import chip as chips
from sim import fast
from sim.findings import Refused
from sim.fixedpoint import Policy
from sim.network import Network
from sim.trace import Trace
from toolchain.calibration.run import calibrate
from toolchain.calibration.tune import tune
from toolchain.frontends import import_model
from toolchain.graph import FloatGraph
from toolchain.inputs import as_inputs
from toolchain.recipe import Recipe, named
from toolchain.scales.integers import build
from toolchain.scales.payload import carried
from toolchain.scales.plan import Scales, choose_scales


@dataclass(frozen=True, eq=False)
class Conversion:
    """The result: the deployable network, and the float graph and scales that it came from."""

    network: Network
    graph: FloatGraph  #: equals the torch model
    source: FloatGraph  #: what was quantised: the same graph, as far as a payload carries its input, or a tuned copy
    recipe: Recipe
    scales: Scales  #: by layer: THETA and the activation that one spike per step stands for
    peak: dict[str, int]  #: by layer: largest register magnitude on the calibration inputs, su
    origin: dict[str, str]  #: SHA-256 of the trained ``weights`` and of the ``calibration`` inputs

    def run(self, x: Any, *, record: bool = True, overflow: Policy = "strict") -> Trace:
        """Simulate model inputs ``(B, *model_shape)`` (see :func:`toolchain.inputs.as_inputs`) on the fast engine."""
        payload = self.network.input.encode(as_inputs(x, self.network.input.model_shape))
        return fast.run(self.network, payload, chip=self.recipe.limits, overflow=overflow, record=record)

    def predict(self, x: Any) -> np.ndarray:
        """Classes after the whole window, int64 (B,)."""
        return self.run(x, record=False).logits[:, -1].reshape(len(x), -1).argmax(1)

    def verify(self, x: Any, names: Sequence[str] | None = None) -> engines.Verification:
        """Compare the engines of these names, or all that can run the network, on model inputs, spike for spike.

        See :func:`exporters.engines.verify`.
        """
        return engines.verify(
            self.network, self.network.input.encode(as_inputs(x, self.network.input.model_shape)), names
        )

    def save(self, directory: str | Path, report: Report | None = None, rates: Rates | None = None) -> None:
        """Write ``network.net``, ``config.json``, ``provenance.json``, and what was measured, if it was.

        ``report`` and ``rates`` come from :mod:`toolchain.assessment`. Raises :class:`Refused` where the directory
        holds something else or cannot be written (see :func:`exporters.bundle.save`).
        """
        bundle.save(
            directory,
            self.network,
            config=self.recipe.as_dict(),
            provenance=bundle.provenance(seed=None, sha256=self.origin),
            report=report,
            rates=rates,
        )


@torch.no_grad()
def convert(
    model: nn.Module | FloatGraph,
    calibration: Any,
    timesteps: int | None = None,
    *,
    recipe: str | Recipe = "ann2loihi",
    **options: Any,
) -> Conversion:
    """Convert a trained model, which is left as it is, with a few hundred calibration inputs.

    ``calibration`` is ``(N, C, H, W)``, ``(N, C, L)``, ``(N, features)`` or what else the model takes, as numbers (see
    :func:`toolchain.inputs.as_inputs`); labels are never needed. ``recipe`` is one of ``toolchain.recipe.RECIPES`` by
    name, or a :class:`Recipe`; ``timesteps`` and ``options``, its fields, override it. Deterministic: the same
    arguments give an equal network. Raises :class:`Refused` with every finding at once when something cannot be
    converted or does not fit the chip.
    """
    recipe = named(recipe, **options if timesteps is None else options | {"timesteps": timesteps})
    graph, x = imported(model, calibration)
    source = carried(graph, x, recipe)
    scales = choose_scales(source, x, recipe)
    if recipe.weights == "tuned":
        source = tune(source, x, scales.thetas, recipe)
        scales = choose_scales(source, x, recipe)
    network, peak = calibrate(build(source, scales, recipe), source, scales, x, recipe)
    if findings := chips.check(network, recipe.limits):
        raise Refused(findings)
    origin = {
        "weights": bundle.digest(_arrays(model)),
        "calibration": bundle.digest({"calibration": as_inputs(calibration)}),
    }
    return Conversion(network, graph, source, recipe, scales, peak, origin)


def imported(model: nn.Module | FloatGraph, x: Any) -> tuple[FloatGraph, Tensor]:
    """Return the model's float graph and its inputs as the graph takes them, float32 (B, *model_shape)."""
    inputs = as_inputs(x)
    graph = model if isinstance(model, FloatGraph) else import_model(model, tuple(inputs.shape[1:]))
    return graph, as_inputs(inputs, graph.model_shape)


def _arrays(model: nn.Module | FloatGraph) -> dict[str, Tensor]:
    """Return what a model has learnt, by name, as NumPy can hold it: a float graph's weights and biases by layer."""
    if isinstance(model, FloatGraph):
        found = {f"{layer.name}.bias": layer.bias for layer in model.layers}
        for layer in model.layers:
            found |= {f"{layer.name} <- {edge.source}": edge.map.weight for edge in layer.edges}
        return found
    state = {name: value.detach().cpu() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in state.items()}
