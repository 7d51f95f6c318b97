"""Conversions beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters import bundle as bundles
from exporters.placement import fit
from exporters.placement.cost import interval
from exporters.report import MEASURES, PARTS, Compared, Cost, Report, Score, TaskName
from sim.arguments import checked
from sim.network import Network


@checked
def compare(directories: Sequence[str | Path], chip: str = "loihi2") -> tuple[Compared, ...]:
    """Read what ``convert`` has written, in the given order; raises :class:`Refused` for what is no such directory."""
    return tuple(_read(Path(directory), chip) for directory in directories)


def _read(directory: Path, chip: str) -> Compared:
    bundle = bundles.load(directory)
    network, report = bundle.network, bundle.report
    accuracy = agreement = cost = None
    task: TaskName = "classes"
    if report is not None:
        accuracy, agreement, cost = report.accuracy.get("int8"), report.agreement.get("int8"), report.cost
        task = report.task
    return row(str(directory), network, chip, task, accuracy, agreement, cost)


def row(
    name: str,
    network: Network,
    chip: str,
    task: TaskName,
    accuracy: Score | None,
    agreement: Score | None,
    cost: Cost | None,
) -> Compared:
    """Put together what is known of one conversion."""
    return Compared(
        name=name,
        input=network.input.form,
        timesteps=network.timesteps,
        holdoff=network.holdoff,
        steps=network.steps,
        period=interval(network),
        cores=fit(network, chip).cores,
        measure=MEASURES[task],
        accuracy=None if accuracy is None else accuracy.value,
        agreement=None if agreement is None else agreement.value,
        spikes=None if cost is None else cost.spikes,
        synaptic_events=None if cost is None else cost.synaptic_events,
        host=None if cost is None else cost.payloads,
    )


@dataclass(frozen=True)
class Pair:
    """What one value is on either side, a JSON type each; None where it was not measured."""

    what: str
    a: Any
    b: Any

    @property
    def change(self) -> float | None:
        """Return b - a of two numbers."""
        numbers = all(isinstance(side, (int, float)) and not isinstance(side, bool) for side in (self.a, self.b))
        return self.b - self.a if numbers else None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        return vars(self) | ({} if self.change is None else {"change": self.change})


@dataclass(frozen=True)
class Differences:
    """Two conversions beside each other."""

    a: str  #: what was compared
    b: str
    figures: tuple[Pair, ...]  #: equal ones too
    layers: Mapping[str, tuple[Pair, ...]]  #: by layer of either: neurons, theta, cores, spikes, error and its shares
    config: tuple[Pair, ...]  #: fields of the recipe that differ; both sides have to be directories
    provenance: tuple[Pair, ...]  #: of that what differs, but for the time

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        listed = {name: [pair.as_dict() for pair in getattr(self, name)] for name in ("config", "provenance")}
        layers = {name: [pair.as_dict() for pair in pairs] for name, pairs in self.layers.items()}
        figures = [pair.as_dict() for pair in self.figures]
        return {"a": self.a, "b": self.b, "figures": figures, "layers": layers, **listed}


@checked
def differences(a: str | Path, b: str | Path) -> Differences:
    """Compare two directories that ``convert`` has written, or two ``report.json``, or one of each.

    Raises :class:`Refused` for what is neither.
    """
    sides = [_side(Path(path)) for path in (a, b)]
    names = dict.fromkeys(name for side in sides for name in side.layers)
    return Differences(
        str(a),
        str(b),
        _pairs(*(side.figures for side in sides)),
        {name: _pairs(*(side.layers.get(name, {}) for side in sides)) for name in names},
        *(_changed(*(getattr(side, kind) for side in sides)) for kind in ("config", "provenance")),
    )


@dataclass(frozen=True)
class _Side:
    figures: dict[str, Any]
    layers: dict[str, dict[str, Any]]
    config: Mapping[str, Any] | None
    provenance: Mapping[str, Any] | None


def _side(path: Path) -> _Side:
    if not path.is_dir():
        report = bundles.read_report(path)
        return _Side(_figures(report), _layers(report), None, None)
    bundle = bundles.load(path)
    network, report_or_none = bundle.network, bundle.report
    flat = {
        f"{key} {inner}" if inner else key: entry
        for key, value in bundle.provenance.items()
        for inner, entry in (value.items() if isinstance(value, dict) else [("", value)])
        if key != "created"
    }
    placed = fit(network, "loihi2")
    figures = {
        "T": network.timesteps,
        "K": network.holdoff,
        "neurons": placed.neurons,
        "cores": placed.cores,
        "chips": placed.chips,
        "steps": network.steps,
        "period": interval(network),
    }
    cores = {row.name: row.cores for row in placed.layers}
    layers = {
        layer.name: {"neurons": layer.size, "theta": layer.threshold, "cores": cores[layer.name]}
        for layer in network.layers
    }
    if report_or_none is not None:
        figures = _figures(report_or_none) | figures
        measured = _layers(report_or_none)
        layers = {name: measured.get(name, {}) | known for name, known in layers.items()}
    return _Side(figures, layers, bundle.config, flat)


def _figures(report: Report) -> dict[str, Any]:
    ann, int8, agrees = report.accuracy.get("ann"), report.accuracy.get("int8"), report.agreement.get("int8")
    measure = MEASURES[report.task]
    fit, cost, found = report.fit, report.cost, report.attribution
    return {
        "model": report.model,
        "data": report.data,
        "samples": report.samples,
        f"{measure} of the trained network, %": None if ann is None else ann.value,
        f"{measure}, %": None if int8 is None else int8.value,
        "lower end of its 95 % interval": None if int8 is None else int8.low,
        "upper end": None if int8 is None else int8.high,
        "agreement, %": None if agrees is None else agrees.value,
        "T": report.timesteps,
        "K": report.holdoff,
        "bias rule": report.method,
        "weights": report.weights,
        "neurons": sum(row.neurons for row in report.layers),
        "cores": None if fit is None else fit.cores,
        "chips": None if fit is None else fit.chips,
        "steps": None if cost is None else cost.steps,
        "period": None if cost is None else cost.period,
        "spikes per sample": None if cost is None else cost.spikes,
        "synaptic events per sample": None if cost is None else cost.synaptic_events,
        "goes wrong first": None if found is None else found.fault,
        "because of": None if found is None else found.cause,
    }


def _layers(report: Report) -> dict[str, dict[str, Any]]:
    known = {
        row.name: {"neurons": row.neurons, "theta": row.theta, "spikes per neuron": row.spikes_per_neuron}
        for row in report.layers
    }
    for row in () if report.fit is None else report.fit.layers:
        known.setdefault(row.name, {})["cores"] = row.cores
    for share in () if report.attribution is None else report.attribution.layers:
        parts = {part: share.of(part) for part in PARTS}
        known.setdefault(share.name, {}).update({"error": share.error, "own": share.own} | parts)
    return known


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Pair, ...]:
    return tuple(Pair(what, a.get(what), b.get(what)) for what in dict.fromkeys([*a, *b]))


def _changed(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> tuple[Pair, ...]:
    return () if a is None or b is None else tuple(pair for pair in _pairs(a, b) if pair.a != pair.b)
