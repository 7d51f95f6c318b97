"""The accuracy ladder: the same samples on the trained network, on what becomes of it, and on the spiking one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporters.report import Activity, Rung, outside
from sim.arguments import Count, checked
from sim.findings import refuse
from sim.inputs import beyond
from sim.progress import track
from sim.trace import Trace
from toolchain.assessment.payload import clipped
from toolchain.assessment.tally import activity, layers_of
from toolchain.convert import Conversion
from toolchain.frontends.plain import as_float32, unwrapped
from toolchain.inputs import as_inputs

LEFT_OFF = "The trained network counts without the softmax or sigmoid at its end, which was left off."


@dataclass(frozen=True, eq=False)
class Ladder:
    """What the rungs make of the inputs, in the model's unit."""

    outputs: dict[Rung, Any]  #: after the whole window, tensors or arrays (B, ...)
    steps: np.ndarray  #: of the deployed network after every window step, float64 (B, T, ...)
    activity: tuple[Activity, ...]  #: what its layers did for that
    findings: tuple[str, ...]


def climb(conversion: Conversion, model: nn.Module, x: Tensor, wide: Conversion | None = None) -> Ladder:
    """Run every rung on model inputs (B, *model_shape); ``wide`` is the conversion for wide registers."""
    inputs = as_inputs(x, conversion.network.input.model_shape)
    findings = [LEFT_OFF] if conversion.graph.left_off else []

    def spiking(which: Conversion) -> Spiking:
        found = run_spiking(which, x)
        findings.extend(found.findings)
        return found

    rungs: dict[Rung, Callable[[], Any]] = {
        "ann": lambda: conversion.graph.logits(inputs) if conversion.graph.left_off else model_logits(model, x),
        "folded": lambda: conversion.graph.logits(inputs),
        "thresholds": lambda: staircase_logits(conversion, inputs),
    }
    if wide is not None:
        rungs["wide"] = lambda: spiking(wide).outputs[:, -1]
    outputs = {}
    for rung, run in track("measuring accuracy", rungs.items()):
        outputs[rung] = run()
    deployed = spiking(conversion)
    findings.extend(clipped(conversion.network.input, inputs))
    outputs["int8"] = deployed.outputs[:, -1]
    counted = layers_of(deployed.trace, conversion.network.input.encode(inputs))
    return Ladder(outputs, deployed.outputs, activity(conversion.network, [counted], len(x)), tuple(findings))


@checked
@torch.no_grad()
def model_logits(model: nn.Module, x: Any, batch: Count = 256) -> Tensor:
    """Logits of the torch model, float32 (B, N), in eval mode; every module gets back the mode that it was in.

    A model of another precision runs as a copy in float32.

    ``x`` are model inputs (see :func:`toolchain.inputs.as_inputs`). The model gets a copy: it may write into it.
    """
    x, model = as_inputs(x, where="x"), as_float32(unwrapped(model))
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return torch.cat([model(chunk.clone()).reshape(len(chunk), -1) for chunk in x.split(batch)])
    except Exception as error:  # whatever a forward raises
        problem = f"cannot run on inputs of shape {tuple(x.shape[1:])}: {' '.join(str(error).split())}"
        raise refuse(type(model).__name__, problem, "give what the model was trained on") from error
    finally:
        for module, training in modes.items():
            module.training = training


@checked
@torch.no_grad()
def staircase_logits(conversion: Conversion, x: Tensor, batch: Count = 256) -> Tensor:
    """Logits of the float graph whose activations take the steps that T spikes can draw, float32 (B, N).

    See :meth:`toolchain.graph.FloatGraph.stairs`.
    """
    return conversion.source.stairs(conversion.scales.thetas, conversion.recipe.timesteps).logits(x, batch)


@dataclass(frozen=True, eq=False)
class Spiking:
    """What a spiking network makes of the inputs."""

    outputs: np.ndarray  #: after every window step, float64 (B, T, ...)
    trace: Trace  #: of the readout, with the spikes of all layers counted
    findings: tuple[str, ...]  #: samples that left the registers


def run_spiking(conversion: Conversion, x: Tensor) -> Spiking:
    """Run a conversion on model inputs (B, *model_shape)."""
    trace = conversion.run(x, record=False, count=True, overflow="count")
    network = conversion.network
    overflowed = trace.overflowed | beyond(network, network.input.encode(x), conversion.recipe.limits)
    found = f"T = {conversion.recipe.timesteps}: {outside(len(overflowed), len(x))}"
    return Spiking(conversion.decode(trace.logits), trace, (found,) if overflowed else ())
