"""How good a network is on a target, beside how good it is in simulation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from exporters.device import Comparison
from exporters.engines import run
from exporters.report import Accuracy, TaskName
from sim.network import Network
from toolchain.assessment.score import accuracy
from toolchain.task import resolve


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a comparison says to a user."""

    comparison: Comparison
    decisions: int  #: samples that are decided otherwise on the target
    logits: int  #: samples with any other final potential
    accuracy: Mapping[str, Accuracy]  #: by engine; empty without labels
    task: TaskName

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types."""
        found = self.comparison
        return {
            "engines": list(found.engines),
            "samples": found.samples,
            "spikes": found.spikes,
            "neuron_steps": found.neuron_steps,
            "differing": {"samples": len(found.differing), "decisions": self.decisions, "logits": self.logits},
            "difference": None if found.difference is None else asdict(found.difference),
            "diagnosis": found.diagnosis,
            "accuracy": {engine: score.as_dict() for engine, score in self.accuracy.items()},
            "summary": found.summary,
        }


def ready(network: Network, payload: np.ndarray, labels: Any, task: Any, against: str) -> None:
    """Refuse, before a target runs payloads (n, *shape), what :func:`outcome` and the engine would refuse after it."""
    if labels is not None:
        resolve(task or "auto", network.readout.shape, labels)[0].labels(labels, len(payload))
    run(against, network, payload[:1], overflow="count")


def outcome(comparison: Comparison, labels: Any = None, task: Any = None) -> Outcome:
    """Decide as the ``task`` of that name does ("auto": as labels (n or more, ...) suggest) on both sides, and count.

    Raises :class:`sim.findings.Refused` for labels that are not of the task.
    """
    network, samples = comparison.network, comparison.samples
    y = None if labels is None else labels[:samples]
    kind, _ = resolve(task or "auto", network.readout.shape, y)
    outputs = [network.decode(potentials) for potentials in comparison.outputs]
    decided = [kind.decide(values).reshape(samples, -1) for values in outputs]
    scores = {} if y is None else dict(zip(comparison.engines, [accuracy(o, y, kind) for o in outputs], strict=True))
    final = [potentials.reshape(samples, -1) for potentials in comparison.outputs]
    decisions, logits = (int(np.count_nonzero((a != b).any(axis=1))) for a, b in (decided, final))
    return Outcome(comparison, decisions, logits, scores, kind.name)
