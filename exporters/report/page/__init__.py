"""What was measured, as one HTML file that needs nothing else: no network, no script to be read, light and dark."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from exporters.report import figures
from exporters.report.markdown import ACTIVITY, AGREEMENT, AGREEMENTS, WORDS, WORST, estimated, register
from exporters.report.page import drawing
from exporters.report.record import REMEDY
from exporters.report.schema import MEASURES, PARTS, RUNGS, WANTED, CostRow, FitRow, LayerRow, Report, Share, summed
from sim.findings import refuse
from sim.network import Network

PICTURED = 150  #: layers whose activations and biases are drawn: of more, those with the largest errors


class Status(NamedTuple):
    """The first line: does it work?"""

    mood: Literal["good", "warn", "bad"]
    text: str


class Row(NamedTuple):
    """All that is known of a layer; None where it was not measured."""

    layer: LayerRow
    holdoff: int | None  #: K
    share: Share | None
    fit: FitRow | None
    cost: CostRow | None
    fault: bool
    rates: str | None  #: picture of activations against spikes, as a data URI
    levels: tuple[float, ...]  #: share of neurons and samples by rate
    schedule: str  #: picture of the biases by step and channel
    bias_limit: float  #: what its strongest colour stands for


def render(report: Report, network: Network, config: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Write the page of a conversion, all but its doctype: what was measured, its network, the recipe, its origin.

    Everything in a report may come from somebody's file, names above all: the template escapes it.
    """
    environment = _environment()
    script, style = (_source(environment, name) for name in ("page.js", "style.css"))
    return environment.get_template("page.html.j2").render(
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup(style),
        report=report,
        status=status(report),
        measure=MEASURES[report.task],
        agreement=AGREEMENTS.get(report.task, AGREEMENT),
        rungs=RUNGS,
        parts=PARTS,
        headings=ACTIVITY,
        total=summed(report.activity) if report.activity else None,
        words=WORDS,
        worst=sorted(enumerate(report.errors), key=lambda entry: -(entry[1].relative or 0))[:WORST],
        floor=_floor(report),
        rows=_rows(report, network),
        bars=drawing.Bars.of(() if report.attribution is None else report.attribution.layers),
        graph=drawing.Graph.of(report, network),
        plots=_plots(report),
        steps=network.timesteps,
        config=config,
        provenance=provenance,
        document=_document(report),
    )


@cache
def _environment() -> Environment:
    loader = PackageLoader(__name__, "")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"dims": _dims, "count": _count, "fixed": _fixed, "plain": _plain}
    made.filters |= {"estimated": estimated, "register": register}
    return made


def status(report: Report) -> Status:
    """Say what stands in the way, the worst first; or that nothing does."""
    if report.verification is not None and report.verification.difference is not None:
        return Status("bad", "The engines disagree: the network is not proven")
    if report.fit is not None and report.fit.cores is None:
        return Status("bad", f"It does not fit on {report.fit.chip}")
    if report.attribution is None:
        return Status("warn", "Not measured")
    if report.attribution.fault is not None:
        return Status("warn", f"It loses {_lost(report)}, first in {report.attribution.fault}")
    said = report.attribution.verdict.partition(":")[0]
    if not said.endswith(" is lost"):  # reports of before faults were named apart
        return Status("warn", "Read the verdict")
    return Status("warn", f"{said}, but there are findings") if report.findings else Status("good", said)


def _lost(report: Report) -> str:
    """Say how much lies between the trained network and the spiking one."""
    ann, spiking, agrees = report.accuracy.get("ann"), report.accuracy.get("int8"), report.agreement.get("int8")
    measure = MEASURES[report.task]
    if ann is not None and spiking is not None:
        return f"{ann.value - spiking.value:.1f} points of {measure}"
    return measure if agrees is None else f"{100 - agrees.value:.1f} % of agreement"


def _floor(report: Report) -> float:
    """Where the scale begins that intervals are drawn on, in per cent."""
    scores = [*report.accuracy.values(), *report.agreement.values()]
    lowest = min((score.low for score in scores), default=0.0)
    return max(-100.0, 10 * (lowest // 10)) if lowest < 90 else 90.0


def _rows(report: Report, network: Network) -> list[Row]:
    shares = {} if report.attribution is None else {share.name: share for share in report.attribution.layers}
    fits = {} if report.fit is None else {row.name: row for row in report.fit.layers}
    costs = {} if report.cost is None else {row.name: row for row in report.cost.layers}
    held = drawing.holdoffs(network)
    worst = sorted(report.layers, key=lambda row: -shares[row.name].error if row.name in shares else 0)[:PICTURED]
    pictured = {row.name for row in worst}
    biases = {layer.name: layer for layer in network.layers if layer.name in pictured}
    rows = []
    for layer in report.layers:
        counts = _counts(layer) if layer.name in pictured else ()
        total = sum(map(sum, counts)) or 1
        schedule, limit = drawing.schedule(biases[layer.name]) if layer.name in biases else ("", 0.0)
        rows.append(
            Row(
                layer=layer,
                holdoff=held.get(layer.name),
                share=shares.get(layer.name),
                fit=fits.get(layer.name),
                cost=costs.get(layer.name),
                fault=report.attribution is not None and report.attribution.fault == layer.name,
                rates=drawing.heat(counts) if counts else None,
                levels=tuple(sum(row) / total for row in counts),
                schedule=schedule,
                bias_limit=limit,
            )
        )
    return rows


def _counts(layer: LayerRow) -> tuple[tuple[int, ...], ...]:
    counts = layer.histogram
    if counts and (len(counts) < 2 or any(len(row) != WANTED or min(row) < 0 for row in counts)):
        raise refuse(f"layer {layer.name}", f"its histogram is no table of counts with {WANTED} columns", REMEDY)
    return counts


def _plots(report: Report) -> dict[str, Markup]:
    drawn = {}
    if report.accuracy_by_step or report.accuracy_by_timesteps:
        drawn["accuracy"] = figures.accuracy_figure(report)
    if report.choice is not None and any(trial.refused is None for trial in report.choice.trials):
        drawn["front"] = figures.front_figure(report.model, report.choice.trials)
    if report.sensitivity:
        drawn["sensitivity"] = figures.sensitivity_figure(report.model, report.sensitivity)
    return {name: drawing.inline(figure, name) for name, figure in drawn.items()}


def _document(report: Report) -> str:
    """Write ``report.json`` with a line for each of its keys."""
    lines = (f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in report.as_dict().items())
    return "{\n" + ",\n".join(lines) + "\n}"


def _source(environment: Environment, name: str) -> str:
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _dims(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _count(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.0f}" if value >= 10 or float(value).is_integer() else f"{value:.2f}"


def _fixed(value: float | None, digits: int = 2) -> str:
    return "not measured" if value is None else f"{round(value, digits) + 0:.{digits}f}"  # + 0: no -0.00


def _plain(value: Any) -> str:
    """Write what JSON holds in a line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
