"""Everything that is measured on a conversion, in one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from exporters import placement
from exporters.comparison import row
from exporters.placement.published import CORES
from exporters.report import Attribution, Compared, Cost, Report, Search
from sim.arguments import checked
from toolchain.assessment import layers
from toolchain.assessment.attribution import Firing, explain
from toolchain.assessment.ladder import climb, run_spiking
from toolchain.assessment.leave_one_out import sensitivity
from toolchain.assessment.payload import prepared
from toolchain.assessment.score import accuracy, agreement, by_step, errors
from toolchain.assessment.verdict import verdict
from toolchain.convert import Conversion
from toolchain.frontends.plain import unwrapped
from toolchain.graph.channels import spread
from toolchain.inputs import as_inputs


@checked
def report(
    conversion: Conversion,
    model: nn.Module,
    x: Any,
    y: Any,
    *,
    name: str | None = None,
    data: str | None = None,
    choice: Search | None = None,
    wide: Conversion | None = None,
    others: Mapping[int, Conversion] | None = None,
    forms: Sequence[Conversion] = (),
    sensitive: bool = False,
) -> Report:
    """Measure a conversion on model inputs ``x`` and labels ``y``, where there are any, of its task.

    For ``x`` see :func:`toolchain.inputs.as_inputs`. The report calls the model ``name``, or by its type, and the
    samples ``data``; ``choice`` is how the recipe was found. ``wide`` is the same conversion for wide registers,
    ``others`` the conversions for other T, ``forms`` those to compare by the form of their input. Errors are
    attributed, rates compared, and spikes counted, on as many samples as :func:`toolchain.graph.channels.spread` takes;
    so is, where ``sensitive``, each layer's :func:`sensitivity`. Raises :class:`Refused` for labels that are not of the
    task.
    """
    recipe, task, x = conversion.recipe, conversion.task, as_inputs(x)
    labels = None if y is None else task.labels(y, len(x))
    ladder = climb(conversion, model, x, wide)
    ann = ladder.outputs["ann"]
    trained, spiking = (task.decide(ladder.outputs[rung]) for rung in ("ann", "int8"))
    explained = x[spread(len(x))]
    shares, firing = explain(conversion, explained)
    said = verdict(shares, recipe, trained, spiking, labels)
    findings = (*conversion.assumed, *ladder.findings)
    scores = {} if y is None else {rung: accuracy(outputs, y, task) for rung, outputs in ladder.outputs.items()}
    by_timesteps = {}
    if y is not None and others:
        for timesteps, other in others.items():
            ran = run_spiking(other, x)
            by_timesteps[timesteps] = accuracy(ran.outputs[:, -1], y, task)
            findings += ran.findings
        by_timesteps[recipe.timesteps] = scores["int8"]
    return Report(
        model=name or type(unwrapped(model)).__name__,
        data=data,
        choice=choice,
        timesteps=recipe.timesteps,
        holdoff=recipe.holdoff,
        method=recipe.method,
        weights=recipe.weights,
        task=task.name,
        samples=len(x),
        import_error=conversion.graph.import_error,
        input=prepared(conversion),
        layers=layers.measured_layers(conversion, firing),
        agreement={rung: agreement(outputs, ann, task) for rung, outputs in ladder.outputs.items() if rung != "ann"},
        errors=errors(spiking, trained) if task.name == "regression" else (),
        attribution=Attribution(
            samples=len(explained), layers=shares, verdict=said.text, fault=said.layer, cause=said.cause
        ),
        sensitivity=sensitivity(conversion, explained) if sensitive else (),
        findings=findings,
        accuracy=scores,
        accuracy_by_step=() if y is None else by_step(ladder.steps, y, task),
        activity=ladder.activity,
        forms=tuple(_compared(form, x, y, ann, explained) for form in forms),
        accuracy_by_timesteps={t: by_timesteps[t] for t in sorted(by_timesteps)},
        fit=placement.fit(conversion.network, recipe.chip) if recipe.chip in CORES else None,
        cost=_cost(conversion, explained, firing),
    )


def _compared(conversion: Conversion, x: Tensor, y: Any, ann: Any, explained: Tensor) -> Compared:
    """Measure what :func:`report` does of a conversion that it only compares; ``ann`` are the trained outputs."""
    task, network = conversion.task, conversion.network
    outputs = run_spiking(conversion, x).outputs[:, -1]
    return row(
        network.input.form,
        network,
        "loihi2",
        task.name,
        None if y is None else accuracy(outputs, y, task),
        agreement(outputs, ann, task),
        placement.cost(network, network.input.encode(explained)),
    )


def _cost(conversion: Conversion, x: Tensor, firing: Mapping[str, Firing]) -> Cost | None:
    """Count what spikes on ``x`` cause; None where the cores of the chip are not known."""
    network, chip = conversion.network, conversion.recipe.chip
    if chip not in CORES:
        return None
    return placement.counted(
        network, {name: found.spikes[None] for name, found in firing.items()}, network.input.encode(x), chip
    )
