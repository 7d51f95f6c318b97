"""How good a conversion is: the accuracy ladder, accuracy at every step, and each layer against its activations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from exporters.report import wilson
from sim.fixedpoint import worst_case
from sim.network import Network
from sim.progress import track
from toolchain import attribution
from toolchain.convert import Conversion
from toolchain.graph import FloatGraph
from toolchain.graph.channels import spatial
from toolchain.inputs import as_inputs

Rates = dict[str, tuple[np.ndarray, np.ndarray]]  #: by spiking layer: wanted and measured rates, float32 (n,) both

#: Inputs whose rates are compared with their activations; enough for a stable picture, few enough to be quick.
RATE_SAMPLES = 256
RATE_BATCH = 32  #: of them traced at a time


@torch.no_grad()
def model_logits(model: nn.Module, x: Tensor, batch: int = 256) -> Tensor:
    """Logits of the torch model, float32 (B, N), in eval mode; the model's mode is restored."""
    training = model.training
    model.eval()
    try:
        return torch.cat([model(chunk).flatten(1) for chunk in x.split(batch)])
    finally:
        model.train(training)


@torch.no_grad()
def staircase_logits(conversion: Conversion, x: Tensor, batch: int = 256) -> Tensor:
    """Logits of the float graph whose activations take the steps that T spikes can draw, float32 (B, N).

    With every channel's threshold (:func:`toolchain.graph.activations.staircase`): what is left of a network if spikes
    arrive evenly and integers cost nothing.
    """
    scales, timesteps = conversion.scales, conversion.recipe.timesteps
    stairs = tuple(
        replace(layer, upper=scales[layer.name].theta, levels=timesteps) for layer in conversion.source.layers
    )
    return FloatGraph(conversion.source.input_shape, stairs).logits(x, batch)


def classes(logits: Any) -> Tensor:
    """Predicted classes, int64 (B,), of logits (B, ...)."""
    return torch.from_numpy(np.asarray(logits).reshape(len(logits), -1).argmax(1))


def _share(what: str, hits: Tensor) -> dict[str, Any]:
    """Percentage ``what`` of hits, bool (B,), with its sample count and 95 % interval."""
    count, n = int(hits.sum()), len(hits)
    low, high = wilson(count, n)
    return {what: 100 * count / n, "n": n, "low": low, "high": high}


def score(logits: Any, y: Tensor) -> dict[str, Any]:
    """Accuracy of logits (B, ...) against labels (B,) with its sample count and 95 % interval, in per cent."""
    return _share("accuracy", classes(logits) == y)


def agreement(logits: Any, trained: Any) -> dict[str, Any]:
    """How often logits (B, ...) decide like the trained network's (B, ...): as :func:`score`, but without labels."""
    return _share("agreement", classes(logits) == classes(trained))


def by_step(logits: np.ndarray, y: Tensor) -> list[dict[str, Any]]:
    """Accuracy read at every window step: one row per step 1..T of logits (B, T, ...)."""
    return [{"step": step + 1, **score(logits[:, step], y)} for step in range(logits.shape[1])]


def rates(conversion: Conversion, x: Tensor) -> Rates:
    """Wanted rates, ``clip(activation / theta, 0, 1)``, and measured ones of each spiking layer; float32 (n,) both."""
    x = as_inputs(x[:RATE_SAMPLES], conversion.network.input.shape)
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for part in x.split(RATE_BATCH):
        trace = conversion.run(part, overflow="count")
        for layer, _, activation in conversion.graph.walk(part):
            if layer.kind == "spiking":
                theta = spatial(conversion.scales[layer.name].theta, layer.shape).float()
                wanted = (activation / theta).clamp(0, 1).flatten().numpy()
                found.setdefault(layer.name, []).append((wanted, trace.rates(layer.name).ravel()))
    return {
        name: (np.concatenate(w), np.concatenate(r))
        for name, (w, r) in ((n, zip(*p, strict=True)) for n, p in found.items())
    }


def layer_table(network: Network) -> list[dict[str, Any]]:
    """One row per layer: what ``inspect`` prints."""
    return [
        {
            "name": layer.name,
            "shape": list(layer.shape),
            "kind": layer.kind,
            "edges": [
                {
                    "source": edge.source,
                    "synapse": type(edge.synapse).__name__,
                    "weight_shape": list(edge.synapse.weight.shape),
                }
                for edge in layer.edges
            ],
            "weights": sum(edge.synapse.weight.size for edge in layer.edges),
            "theta": layer.threshold,
            "phase": network.phase[layer.name],
            "bias_min": int(layer.bias.min()),
            "bias_max": int(layer.bias.max()),
            "neurons": layer.size,
            "worst_case": worst_case(network, layer),
        }
        for layer in network.layers
    ]


def measured_layers(conversion: Conversion, measured: Rates) -> list[dict[str, Any]]:
    """Build the layer table with what the run showed: register peaks, spikes, and rates against activations."""
    limit = conversion.recipe.limits.state_limit
    table = []
    for row in layer_table(conversion.network):
        row |= {"peak": conversion.peak[row["name"]], "state_limit": limit}
        if row["name"] in measured:
            wanted, rate = measured[row["name"]]
            row["spikes_per_neuron"] = float(rate.mean()) * conversion.network.timesteps
            row["rate_error"] = float(np.abs(rate - wanted).mean())
            if wanted.std() > 0 and rate.std() > 0:  # a silent layer has no correlation
                row["correlation"] = float(np.corrcoef(wanted, rate)[0, 1])
        table.append(row)
    return table


def report(
    conversion: Conversion,
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    measured: Rates,
    *,
    wide: Conversion | None = None,
    others: Mapping[int, Conversion] | None = None,
) -> dict[str, Any]:
    """Measure a conversion on ``x`` (B, ...) and labels ``y`` (B,), where there are any; JSON types throughout.

    ``measured`` comes from :func:`rates`. ``wide`` is the same conversion for wide registers, ``others`` the
    conversions for other T. What is not measured is absent; ``agreement`` with the trained network needs no labels.
    ``attribution`` holds ``samples``, up to ``RATE_SAMPLES``, every one of the ``layers`` as
    :func:`toolchain.attribution.attribute` has it, and the ``verdict`` in words.
    """
    recipe = conversion.recipe
    findings: list[str] = []

    def spiking(which: Conversion) -> np.ndarray:
        trace = which.run(x, record=False, overflow="count")
        if trace.overflows:
            findings.append(f"T = {which.recipe.timesteps}: {trace.overflows} potentials left the registers")
        return trace.logits

    inputs = as_inputs(x, conversion.network.input.shape)
    rungs: dict[str, Callable[[], Any]] = {
        "ann": lambda: model_logits(model, x),
        "folded": lambda: conversion.graph.logits(inputs),
        "thresholds": lambda: staircase_logits(conversion, inputs),
    }
    if wide is not None:
        rungs["wide"] = lambda: spiking(wide)[:, -1]
    logits = {}
    for rung, run in track("measuring accuracy", rungs.items()):
        logits[rung] = run()
    steps = spiking(conversion)
    logits["int8"] = steps[:, -1]

    explained = x[:RATE_SAMPLES]
    shares = attribution.attribute(conversion, explained)
    result: dict[str, Any] = {
        "timesteps": recipe.timesteps,
        "holdoff": recipe.holdoff,
        "method": recipe.method,
        "weights": recipe.weights,
        "samples": len(x),
        "layers": measured_layers(conversion, measured),
        "agreement": {rung: agreement(of, logits["ann"]) for rung, of in logits.items() if rung != "ann"},
        "attribution": {
            "samples": len(explained),
            "layers": shares,
            "verdict": attribution.verdict(shares, recipe, classes(logits["ann"]), classes(logits["int8"]), y),
        },
        "findings": findings,
    }
    if y is None:
        return result
    result["accuracy"] = {rung: score(of, y) for rung, of in logits.items()}
    result["accuracy_by_step"] = by_step(steps, y)
    if others:
        scores = {t: score(spiking(other)[:, -1], y) for t, other in others.items()}
        scores[recipe.timesteps] = result["accuracy"]["int8"]
        result["accuracy_by_timesteps"] = {str(t): scores[t] for t in sorted(scores)}
    return result
