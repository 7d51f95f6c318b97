"""Reports, layers and verifications as tables on the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.table import Table

from exporters.comparison import Differences, Pair
from exporters.netx import RULES, Issue
from exporters.report import (
    MEASURES,
    PARTS,
    RUNGS,
    Compared,
    Cost,
    Evaluation,
    Fit,
    LayerRow,
    Report,
    TaskName,
    Verification,
    summed,
)
from exporters.report.markdown import estimated
from toolchain.app.console import out, say, table, text

LAYERS = {
    "name": "layer",
    "shape": "shape",
    "weights": "weights",
    "theta": "theta",
    "phase": "phase",
    "bias": "bias (su)",
    "neurons": "neurons",
}
ENGINES = {
    "engine": "engine",
    "differences": "differences",
    "neuron_steps": "neuron-steps compared",
    "seconds": "seconds",
}
TRIALS = {
    "T": "T",
    "K": "K",
    "method": "bias rule",
    "neurons": "neurons",
    "steps": "steps",
    "period": "period",
    "spikes": "spikes",
    "agreement": "agrees %",
    "refused": "refused",
}
FIT = {
    "name": "layer",
    "tile": "tile",
    "cores": "cores",
    "neurons": "neurons",
    "synapses": "synapses",
    "axons": "axons",
    "total": "total",
    "fullest": "fullest",
}
COUNTS = {
    "name": "layer",
    "spikes": "spikes",
    "synaptic_events": "synaptic events",
    "neuron_updates": "updates",
    "messages": "messages",
    "hops": "hops",
}
ESTIMATES = {"quantity": "of one inference", "range": "range", "chip": "figures of", "source": "source"}
ACTIVITY = {
    "name": "layer",
    "neurons": "neurons",
    "spikes": "spikes",
    "rate": "rate %",
    "dense": "dense ops",
    "effective_macs": "MACs",
    "effective_acs": "ACs",
    "peak": "largest u, v",
}
COMPARED = {
    "name": "directory",
    "input": "input",
    "accuracy": "right %",
    "agreement": "agrees %",
    "timesteps": "T",
    "holdoff": "K",
    "steps": "steps",
    "period": "period",
    "spikes": "spikes",
    "synaptic_events": "events",
    "host": "from host",
    "cores": "cores",
}


FORMS = {key: heading for key, heading in COMPARED.items() if key not in ("name", "timesteps", "holdoff", "period")}
SENSITIVITY = {"name": "layer", "only": "this layer alone", "others": "all but this layer"}
LAYERS_BESIDE = ("neurons", "theta", "cores", "spikes per neuron", "error")
SHARES = ("error", *PARTS)
COLOURS = {"error": "red", "warning": "yellow", "note": None}
BLOCKS = {
    "block": "block",
    "type": "type",
    "shape": "shape",
    "weight": "weights",
    "range": "values",
    "neuron": "neurons",
    "parameters": "parameters",
}
NODES = {"node": "node", "type": "type", "shape": "shape", "range": "values", "after": "after"}


def blocks(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out the blocks of a netx file."""
    return table(title, rows, BLOCKS)


def nodes(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Lay out the nodes of a NIR graph."""
    return table(title, rows, NODES)


def score_columns(task: TaskName) -> dict[str, str]:
    """Head the columns of an accuracy with what it is of such a task."""
    return {"accuracy": f"{MEASURES[task]} %", "low": "95 % low", "high": "high", "n": "samples"}


def layers(title: str, rows: Sequence[LayerRow]) -> Table:
    """Lay out a layer table so that it fits 80 columns."""
    shown = [
        {
            **row.as_dict(),
            "weights": " + ".join(text(edge.weight_shape) for edge in row.edges),
            "theta": row.theta or None,
            "bias": f"{row.bias_min}..{row.bias_max}",
        }
        for row in rows
    ]
    return table(title, shown, LAYERS)


def show_issues(found: Sequence[Issue]) -> None:
    """Print rule by rule what a check has found, and how much of each kind."""
    for (severity, rule), group in groupby(found, lambda issue: (issue.severity, issue.rule)):
        first, *_ = same = list(group)
        say(f"{severity} {rule}, {RULES[rule].about}: {first.limit}; {first.remedy}", COLOURS[severity])
        for issue in same:
            say(f"    {issue.where}: {issue.value}")
    counted = Counter[str](issue.severity for issue in found)
    say(", ".join(f"{counted[kind]} {kind}{'s' * (counted[kind] != 1)}" for kind in COLOURS))


def show_report(report: Report) -> None:
    """Print a report's layers, accuracies, and what they come from."""
    recipe = f"T = {report.timesteps}, K = {report.holdoff}, {report.method}, {report.weights} weights"
    out.print(layers(f"{report.model}, {recipe}", report.layers))
    score = score_columns(report.task)
    # The interval is that of the accuracy, where there are labels.
    ladder = []
    for rung, label in RUNGS.items():
        scores = [score for score in (report.agreement.get(rung), report.accuracy.get(rung)) if score is not None]
        if scores:
            ladder.append({"what": label} | {key: value for score in scores for key, value in score.as_dict().items()})
    columns = {"what": "network", **(score if report.accuracy else {}), "agreement": "agrees %"}
    columns |= {key: heading for key, heading in score.items() if not report.accuracy and key != "accuracy"}
    both = f"{MEASURES[report.task]} and " if report.accuracy else ""
    what = f"{both}{'R² against' if report.task == 'regression' else 'agreement with'} the trained network"
    out.print(table(f"{what} on {report.data}" if report.data else what, ladder, columns))
    if report.sensitivity:
        alone = [{"name": r.name, "only": r.only.value, "others": r.others.value} for r in report.sensitivity]
        out.print(table("agreement in % with the steps of", alone, SENSITIVITY))
    if report.accuracy_by_timesteps:
        rows = [{"T": t, **score.as_dict()} for t, score in report.accuracy_by_timesteps.items()]
        out.print(table("converted for other T", rows, {"T": "T", **score}))
    if report.forms:
        out.print(table("converted for other forms of the input", _rounded(report.forms), FORMS))
    if report.choice is not None:
        rows = [{"T": trial.timesteps, "K": trial.holdoff, **trial.as_dict()} for trial in report.choice.trials]
        out.print(table("tried on held-out calibration inputs", rows, TRIALS))
        say(report.choice.reason)
    if report.attribution is not None:
        say(report.attribution.verdict)
    for sentence in report.input:
        say(sentence)
    for finding in report.findings:
        say(finding, "yellow")


def show_evaluation(found: Evaluation, title: str) -> None:
    """Print the accuracy at every step, and what the layers did for it."""
    steps = [row.as_dict() for row in found.accuracy_by_step]
    out.print(table(title, steps, {"step": "step"} | score_columns(found.task)))
    rows = []
    for row in (*found.layers, summed(found.layers)):
        rounded = {name: round(getattr(row, name)) for name in ("effective_macs", "effective_acs")}
        rows.append(row.as_dict() | rounded | {"rate": None if row.rate is None else 100 * row.rate})
    out.print(table(f"per sample, the mean of {found.samples}", rows, ACTIVITY))
    for finding in found.findings:
        say(finding, "yellow")


def show_verification(verification: Verification, what: str) -> None:
    """Print what every engine did and the outcome in a sentence."""
    rows = [row.as_dict() for row in verification.engines]
    out.print(table(f"{what}: {verification.samples} samples on every engine", rows, ENGINES))
    say(verification.summary, "green" if verification.difference is None else "red")


def show_fit(fit: Fit, what: str) -> None:
    """Print what each layer takes and what would take less."""
    rows = [
        {
            **row.as_dict(),
            "tile": row.tile,
            "axons": row.axon_in + row.axon_map + row.axon_mem,
            "fullest": f"{row.bottleneck} {row.share:.0f} %",
        }
        for row in fit.layers
    ]
    out.print(table(f"{what}: words of 64 bit in the fullest core of each layer, {fit.chip}", rows, FIT))
    for row in fit.layers:
        if row.cores is None:
            say(f"{row.name}: no tile is within the limits of a core; {row.remedy}", "red")
    for remedy in dict.fromkeys(row.remedy for row in fit.layers if row.cores is not None and row.remedy):
        say(f"{', '.join(row.name for row in fit.layers if row.remedy == remedy)}: {remedy}")
    if fit.cores is None:
        say("It does not fit.", "red")
    else:
        chips = f"{fit.chips} chip{'s' * (fit.chips != 1)}"
        say(f"{fit.cores} cores, {chips}, {fit.neurons} neurons, in the stock form, its input coming from the host")


def show_cost(cost: Cost, what: str) -> None:
    """Print counts, and the ranges that published figures make of them."""
    rows = [row.as_dict() for row in cost.layers]
    rows.append({"name": "sum", **{key: getattr(cost, key) for key in COUNTS if key != "name"}})
    shown = [{key: f"{value:.0f}" if isinstance(value, float) else value for key, value in row.items()} for row in rows]
    out.print(table(f"{what}: per sample, the mean of {cost.samples}", shown, COUNTS))
    estimates = [{**e.as_dict(), "range": estimated(e)} for e in cost.estimates]
    out.print(table("by published figures", estimates, ESTIMATES))
    say(
        f"logits after {cost.steps} steps, samples every {cost.period}; the host sends {cost.payloads:.0f} values; "
        f"{cost.between_chips:.0f} messages leave a chip"
    )


def _rounded(found: Sequence[Compared]) -> list[dict[str, Any]]:
    counts = ("spikes", "synaptic_events", "host")
    return [{key: round(value) if key in counts else value for key, value in row.as_dict().items()} for row in found]


def show_compared(found: Sequence[Compared]) -> None:
    """Print conversions beside each other."""
    out.print(table("conversions beside each other", _rounded(found), COMPARED))
    say("spikes, synaptic events and what the host sends are per sample; accuracy (or R²) and agreement in per cent")


def show_differences(found: Differences) -> None:
    """Print two conversions beside each other: all figures, the layers, and what else differs."""
    out.print(_beside("measured", found.figures))
    values = {name: {pair.what: pair for pair in pairs} for name, pairs in found.layers.items()}
    rows = [
        {"name": name} | {what: _arrow(pairs[what]) for what in LAYERS_BESIDE if what in pairs}
        for name, pairs in values.items()
    ]
    out.print(
        table("layers, A → B where they differ", rows, {"name": "layer"} | {what: what for what in LAYERS_BESIDE})
    )
    moved = [
        {"name": name, **{part: f"{change:+.3f}" for part in SHARES if (change := pairs[part].change) is not None}}
        for name, pairs in values.items()
        if set(SHARES) <= set(pairs)
    ]
    if moved:
        out.print(table("errors and their shares, B - A", moved, {"name": "layer"} | {part: part for part in SHARES}))
    for title in ("config", "provenance"):
        if pairs := getattr(found, title):
            out.print(_beside(title, pairs))
    say(f"A: {found.a}")
    say(f"B: {found.b}")


def _beside(title: str, pairs: Sequence[Pair]) -> Table:
    rows = [
        {
            "what": pair.what,
            "A": _side(pair.a),
            "B": _side(pair.b),
            "B - A": f"{pair.change:+.6g}" if pair.change else None,
        }
        for pair in pairs
        if pair.a is not None or pair.b is not None
    ]
    return table("", rows, {"what": title, "A": "A", "B": "B", "B - A": "B - A"})


def _arrow(pair: Pair) -> str:
    a, b = _side(pair.a), _side(pair.b)
    return a if a == b else f"{a} → {b}"


def _side(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else text(value)
