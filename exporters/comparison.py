"""Conversions beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from exporters import bundle as bundles
from exporters.placement import fit
from exporters.placement.cost import interval
from exporters.report import MEASURES, Compared, Cost, Score, TaskName
from sim.network import Network


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
