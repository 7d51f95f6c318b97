"""The pipeline: a trained torch model and calibration inputs become an integer Network::

import -> choose scales (-> tune -> choose scales) -> build integers -> calibrate, layer by layer
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from exporters import bundle, engines
from exporters.report import Report, TaskName
from sim import chip as chips
from sim import fast
from sim.arguments import checked
from sim.findings import Refused
from sim.fixedpoint import Policy
from sim.network import InputForm, Network
from sim.stock import reset_interval
from sim.trace import Trace
from toolchain.calibration.run import calibrate
from toolchain.calibration.tune import tune
from toolchain.data import gather
from toolchain.frontends import DENSE_LIMIT, import_model
from toolchain.frontends.plain import unwrapped
from toolchain.graph import FloatGraph
from toolchain.graph.channels import spread
from toolchain.inputs import as_inputs, sample_shape
from toolchain.recipe import Recipe, named
from toolchain.scales.copies import with_copies, within_cores
from toolchain.scales.input_neurons import with_input_neurons
from toolchain.scales.integers import build
from toolchain.scales.outliers import without_outliers
from toolchain.scales.payload import carried
from toolchain.scales.plan import Plan, Scales, choose_scales
from toolchain.task import Task, resolve

#: Environment variables that make torch, oneDNN and MKL compute as on a processor that can do less.
SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


def processor() -> dict[str, str | int]:
    """Say what decides the order in which torch sums floats here, beside its version."""
    found = {name: os.environ[name] for name in SETTINGS if name in os.environ}
    return {"capability": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads(), **found}


@dataclass(frozen=True, eq=False)
class Conversion:
    """The result: the deployable network, and the float graph and scales that it came from."""

    network: Network
    #: Equals the torch model, up to its ``import_error``; with input neurons, where it has some
    graph: FloatGraph = field(repr=False)
    #: What was quantised: the same graph, as far as a payload carries its input, or a tuned copy
    source: FloatGraph = field(repr=False)
    recipe: Recipe
    scales: Scales = field(repr=False)  #: by layer: THETA and the activation that one spike per step stands for
    peak: dict[str, int]  #: by layer: largest register magnitude on the calibration inputs, su
    origin: dict[str, str]  #: SHA-256 of the trained ``weights`` and of the ``calibration`` inputs
    #: In sentences: what was assumed about the outputs' meaning, for want of labels, and which inputs were left out
    assumed: tuple[str, ...] = ()
    processor: dict[str, str | int] = field(default_factory=processor)  #: what decided the order of float sums
    #: By spiking layer: largest u on the calibration inputs where it has to be silent, su
    outside: dict[str, int] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What the outputs mean."""
        return resolve(self.recipe.task, self.network.readout.shape)[0]

    @property
    def plans(self) -> Mapping[str, Plan]:
        """The integer scale of every layer, by name."""
        return self.scales.plans

    @checked
    def run(self, x: Any, *, record: bool = True, count: bool = False, overflow: Policy = "strict") -> Trace:
        """Simulate model inputs ``(B, *model_shape)`` (see :func:`toolchain.inputs.as_inputs`) on the fast engine."""
        payload = self.network.input.encode(as_inputs(x, self.network.input.model_shape))
        return fast.run(self.network, payload, chip=self.recipe.limits, overflow=overflow, record=record, count=count)

    def decode(self, potentials: Trace | Any) -> np.ndarray:
        """Return the model's outputs in its own unit, float64 (B, *shape), for a trace, or the readout's potentials.

        Potentials of every window step (B, T, *shape), as ``Trace.logits`` has them, give the outputs at every step.
        """
        return self.network.decode(potentials.logits[:, -1] if isinstance(potentials, Trace) else potentials)

    def predict(self, x: Any, *, overflow: Policy = "strict") -> np.ndarray:
        """Return what the network says after the whole window, as its task has it (see :meth:`Task.decide`).

        Classes int64 (B,), 0 or 1 of one logit (B,) or of every label (B, N), classes of pixels (B, H, W), or the
        outputs of a regression, float64 (B, *shape). ``overflow`` "count" lets samples leave the registers.
        """
        return self.task.decide(self.decode(self.run(x, record=False, overflow=overflow)))

    @checked
    def verify(self, x: Any, names: Sequence[str] | None = None) -> engines.Verification:
        """Compare the engines of these names, or all that can run the network, on model inputs, spike for spike.

        See :func:`exporters.engines.verify`.
        """
        return engines.verify(
            self.network, self.network.input.encode(as_inputs(x, self.network.input.model_shape)), names
        )

    @checked
    def save(self, directory: str | Path, report: Report | None = None) -> None:
        """Write ``network.net``, ``config.json``, ``provenance.json``, and what was measured, if it was.

        ``report`` comes from :func:`toolchain.assessment.report`. Raises :class:`Refused` where the directory
        holds something else or cannot be written (see :func:`exporters.bundle.save`).
        """
        bundle.save(
            directory,
            self.network,
            config=self.recipe.as_dict(),
            provenance=bundle.provenance(seed=None, sha256=self.origin, processor=self.processor),
            report=report,
        )


@checked
@torch.no_grad()
def convert(
    model: nn.Module | FloatGraph,
    calibration: Any,
    timesteps: int | None = None,
    *,
    recipe: str | Recipe = "ann2loihi",
    labels: Any = None,
    dense_limit: int = DENSE_LIMIT,
    leave_off_last: bool = False,
    **options: Any,
) -> Conversion:
    """Convert a trained model, which is left as it is, with a few hundred calibration inputs.

    ``calibration`` is ``(N, C, H, W)``, ``(N, C, L)``, ``(N, features)`` or what else the model takes, as numbers (see
    :func:`toolchain.inputs.as_inputs`), or a data set (:func:`toolchain.data.open_data`). That is read once, in parts,
    and as many of its inputs are used as :func:`toolchain.data.gather` keeps. ``recipe`` is one of
    ``toolchain.recipe.RECIPES`` by name, or a :class:`Recipe`; ``timesteps`` and ``options``, its fields, override it.
    ``labels``, one for every calibration input that is used, are never needed and never learnt from: they tell what the
    outputs mean where ``task`` is "auto" (see :mod:`toolchain.task`). ``dense_limit`` and ``leave_off_last`` are those
    of :func:`toolchain.frontends.import_model`. Deterministic: the same arguments give an equal network on the same
    machine, and elsewhere one as good (docs/semantics.md, "Same result where?"). Raises :class:`Refused` with every
    finding at once when something cannot be converted or does not fit the chip, and for labels that no output stands
    for.
    """
    recipe = named(recipe, **options if timesteps is None else options | {"timesteps": timesteps})
    gathered = gather(calibration)
    graph, x = imported(model, gathered, dense_limit=dense_limit, leave_off_last=leave_off_last)
    extremes = torch.stack([gathered.lowest, gathered.highest]).reshape(2, *graph.model_shape)
    task, assumed = resolved(graph, x, recipe, labels)
    recipe = replace(recipe, task=task)
    x, left_out = without_outliers(carried(graph, x, recipe, extremes), x, recipe)
    graph = with_copies(graph, x, recipe)
    source = carried(graph, x, recipe, extremes)
    if recipe.input_form == "spikes":
        signed = bool((graph.arrange(extremes) < 0).any())
        own = extremes if recipe.threshold == "given" else None
        source = with_input_neurons(source, signed, recipe.copies, own)
        graph = with_input_neurons(graph, signed, recipe.copies)
    if recipe.weights == "tuned":
        source = tune(source, x, choose_scales(source, x, recipe, extremes).thetas, recipe)
    graph, source = graph.widened(), source.widened()
    scales = choose_scales(source, x, recipe, extremes)
    network, registers = calibrate(build(source, scales, recipe), source, scales, x, recipe)
    if recipe.reset_interval == "power-of-two":
        network = replace(network, reset_interval=reset_interval(network.period))
    if findings := chips.check(network, recipe.limits):
        raise Refused(findings)
    within_cores(network, recipe)  # it was planned on a stand-in
    peak, outside = registers.peak, registers.outside
    if left_out or source.limit is not None:  # which the network may be given all the same
        reached = bundle.measured(network, network.input.encode(as_inputs(gathered.x, network.input.model_shape)))
        peak, outside = dict(reached.peak), dict(reached.outside)
    origin = {
        "weights": bundle.digest(_arrays(model if isinstance(model, FloatGraph) else unwrapped(model))),
        "calibration": gathered.sha256,
    }
    return Conversion(
        network,
        graph,
        source,
        recipe,
        scales,
        peak,
        origin,
        tuple(filter(None, (assumed, left_out))),
        outside=outside,
    )


@checked
def in_every_form(
    conversion: Conversion, model: nn.Module | FloatGraph, calibration: Any, **importing: Any
) -> tuple[Conversion, ...]:
    """Return a conversion, and what it is for the other forms of the input, in the order of ``InputForm``.

    ``model``, ``calibration`` and ``importing`` are those that it was made from. Raises as :func:`convert` does.
    """
    own, gathered = conversion.recipe.input_form, gather(calibration)
    return tuple(
        conversion
        if form == own
        else convert(model, gathered, recipe=replace(conversion.recipe, input_form=form), **importing)
        for form in get_args(InputForm)
    )


def resolved(graph: FloatGraph, x: Tensor, recipe: Recipe, labels: Any = None) -> tuple[TaskName, str | None]:
    """Find what the outputs of a graph mean, with labels of ``x`` (B, *model_shape) or without; what was assumed."""
    readout = graph.layers[-1]
    task, assumed = resolve(recipe.task, readout.shape, labels, lambda: graph.logits(x[spread(len(x))]))
    if labels is not None:
        task.labels(labels, len(x))
    return task.name, assumed


def imported(model: nn.Module | FloatGraph, calibration: Any, **importing: Any) -> tuple[FloatGraph, Tensor]:
    """Return the model's float graph and the inputs that are used as it takes them, float32 (B, *model_shape).

    The graph is proven on a few of them. ``importing`` are the other options of
    :func:`toolchain.frontends.import_model`.
    """
    x = gather(calibration).x
    graph = model
    if not isinstance(graph, FloatGraph):
        graph = import_model(graph, tuple(x.shape[1:]), samples=x, **importing)
    return graph, x.reshape(-1, *sample_shape(tuple(x.shape), graph.model_shape, "calibration"))


def _arrays(model: nn.Module | FloatGraph) -> dict[str, Tensor]:
    """Return what a model has learnt, by name, as NumPy can hold it: a float graph's weights and biases by layer."""
    if isinstance(model, FloatGraph):
        found = {f"{layer.name}.bias": layer.bias for layer in model.layers}
        for layer in model.layers:
            found |= {f"{layer.name} <- {edge.source}": edge.map.weight for edge in layer.edges}
        return found
    state = {name: value.detach().cpu() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    return {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in state.items()}
