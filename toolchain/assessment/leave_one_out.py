"""What the steps of each layer cost alone: one layer in T steps, and all layers but one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from exporters.report import Agreement, Sensitivity
from sim.arguments import checked
from sim.progress import track
from toolchain.assessment.score import agreement
from toolchain.convert import Conversion
from toolchain.graph import FloatGraph
from toolchain.inputs import as_inputs


@checked
@torch.no_grad()
def sensitivity(conversion: Conversion, x: Any) -> tuple[Sensitivity, ...]:
    """Agree with the trained network on model inputs ``x`` (B, *model_shape), with one layer's steps on or off.

    Networks are float: their activations take the steps of :meth:`toolchain.graph.FloatGraph.stairs` in one spiking
    layer, or in all but that. It takes two runs of the network for each layer.
    """
    x = as_inputs(x, conversion.network.input.model_shape)
    plain = conversion.source
    stairs = plain.stairs(conversion.scales.thetas, conversion.recipe.timesteps)
    trained = conversion.graph.logits(x)

    def agrees(base: FloatGraph, other: FloatGraph, index: int) -> Agreement:
        layers = (*base.layers[:index], other.layers[index], *base.layers[index + 1 :])
        return agreement(replace(base, layers=layers).logits(x), trained, conversion.task)

    spiking = [index for index, layer in enumerate(plain.layers) if layer.kind == "spiking"]
    return tuple(
        Sensitivity(
            name=plain.layers[index].name, only=agrees(plain, stairs, index), others=agrees(stairs, plain, index)
        )
        for index in track("taking layers out", spiking)
    )
