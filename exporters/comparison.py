"""Conversions beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exporters import bundle as bundles
from exporters.placement import fit
from exporters.placement.cost import interval
from exporters.report.record import Record
from exporters.report.schema import MEASURES, TaskName
from sim.network import InputForm


@dataclass(frozen=True, kw_only=True)
class Compared(Record):
    """One conversion: what it gets right and what that takes. What was not measured is None."""

    name: str
    input: InputForm  #: how it gets in
    timesteps: int  #: T
    holdoff: int  #: K
    steps: int  #: until the logits are there
    period: int  #: steps between samples that follow each other
    cores: int | None  #: None where it does not fit
    measure: str = MEASURES["classes"]  #: what tells how good it is
    accuracy: float | None = None  #: per cent
    agreement: float | None = None  #: with the trained network, per cent
    spikes: float | None = None  #: per sample
    synaptic_events: float | None = None  #: per sample
    host: float | None = None  #: values that the host sends, per sample

    @property
    def score(self) -> float | None:
        """The accuracy, or the agreement where there were no labels."""
        return self.agreement if self.accuracy is None else self.accuracy


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
    return Compared(
        name=str(directory),
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
