"""Everything that is measured on a conversion, in one record."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from exporters.report import Attribution, Rates, Report, Search
from toolchain.assessment import layers
from toolchain.assessment.attribution import attribute
from toolchain.assessment.ladder import climb, spiking_logits
from toolchain.assessment.score import accuracy, agreement, by_step, classes
from toolchain.assessment.verdict import verdict
from toolchain.convert import Conversion


def report(
    conversion: Conversion,
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    rates: Rates,
    *,
    name: str | None = None,
    data: str | None = None,
    choice: Search | None = None,
    wide: Conversion | None = None,
    others: Mapping[int, Conversion] | None = None,
) -> Report:
    """Measure a conversion on ``x`` (B, *input_shape) and labels ``y`` (B,), where there are any.

    ``rates`` comes from :func:`toolchain.assessment.layers.rates`. The report calls the model ``name``, or by its type,
    and the samples ``data``; ``choice`` is how the recipe was found. ``wide`` is the same conversion for wide
    registers, ``others`` the conversions for other T. Errors are attributed on the first
    ``toolchain.assessment.layers.RATE_SAMPLES`` samples.
    """
    recipe = conversion.recipe
    ladder = climb(conversion, model, x, wide)
    trained, spiking = classes(ladder.logits["ann"]), classes(ladder.logits["int8"])
    explained = x[: layers.RATE_SAMPLES]
    shares = attribute(conversion, explained)
    findings = ladder.findings
    scores = {} if y is None else {rung: accuracy(logits, y) for rung, logits in ladder.logits.items()}
    by_timesteps = {}
    if y is not None and others:
        for timesteps, other in others.items():
            steps, found = spiking_logits(other, x)
            by_timesteps[timesteps] = accuracy(steps[:, -1], y)
            findings += found
        by_timesteps[recipe.timesteps] = scores["int8"]
    return Report(
        model=name or type(model).__name__,
        data=data,
        choice=choice,
        timesteps=recipe.timesteps,
        holdoff=recipe.holdoff,
        method=recipe.method,
        weights=recipe.weights,
        samples=len(x),
        import_error=conversion.graph.import_error,
        layers=layers.measured_layers(conversion, rates),
        agreement={
            rung: agreement(logits, ladder.logits["ann"]) for rung, logits in ladder.logits.items() if rung != "ann"
        },
        attribution=Attribution(
            samples=len(explained), layers=shares, verdict=verdict(shares, recipe, trained, spiking, y)
        ),
        findings=findings,
        accuracy=scores,
        accuracy_by_step=() if y is None else by_step(ladder.steps, y),
        accuracy_by_timesteps={t: by_timesteps[t] for t in sorted(by_timesteps)},
    )
