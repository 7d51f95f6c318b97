"""What an evaluation counts on a shard of the samples: sums of integers, so that it does not matter how many there are.

Per cents, intervals and rates follow from the sums of all shards. A regression's are not integers: of each of its
samples the few numbers are kept from which R² follows (:func:`toolchain.assessment.score.explained`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters import engines
from exporters.report import Accuracy, Activity, Evaluation, StepAccuracy, outside, summed
from exporters.report.record import Record
from sim import operations
from sim.chip import LOIHI2
from sim.fixedpoint import Policy
from sim.inputs import beyond
from sim.network import Layer, Network
from sim.trace import Trace
from toolchain.assessment.payload import count_clipped, told_clipped
from toolchain.assessment.score import Hits, explained, hits, missed, moments, regression_score
from toolchain.data import Source
from toolchain.task import Task


@dataclass(frozen=True)
class Job:
    """What is measured of every shard."""

    network: Network
    task: Task
    engine: str
    overflow: Policy
    device: str


@dataclass(frozen=True, kw_only=True)
class LayerTally(Record):
    """What a layer did, over all samples."""

    spikes: int
    macs: int  #: effective operations
    acs: int
    peak: int | None  #: largest magnitude in its registers, su; None where the engine does not say


@dataclass(frozen=True, kw_only=True)
class StepTally(Record):
    """How many decisions are right after a window step."""

    right: int
    squares: int  #: as :class:`toolchain.assessment.score.Hits` has them


@dataclass(frozen=True, kw_only=True)
class Spread(Record):
    """Numbers of every sample of a regression; float64, by sample, by channel."""

    missed: tuple[tuple[tuple[float, ...], ...], ...]  #: squared errors, by step
    mean: tuple[tuple[float, ...], ...]  #: of the labels
    around: tuple[tuple[float, ...], ...]  #: squares around it
    places: int  #: of a channel


@dataclass(frozen=True, kw_only=True)
class Tally(Record):
    """What was counted on some samples."""

    samples: int
    overflowed: int  #: samples in which a potential left the registers
    clipped: tuple[int, ...]  #: values that left the payload, by channel of the input
    layers: Mapping[str, LayerTally]
    decisions: int  #: of a sample
    steps: tuple[StepTally, ...] = ()  #: of the window; empty for a regression
    spread: Spread | None = None

    def fits(self, job: Job, samples: int) -> bool:
        """Whether it can be what :func:`measure` returns of so many samples."""
        network, (channels, *_) = job.network, job.network.readout.shape
        regression = job.task.name == "regression"
        spread = self.spread
        return (
            self.samples == samples
            and len(self.clipped) == network.input.shape[0]
            and self.layers.keys() == {layer.name for layer in network.layers}
            and len(self.steps) == (0 if regression else network.timesteps)
            and (spread is not None) == regression
            and (
                spread is None
                or (
                    _is(spread.missed, (network.timesteps, samples, channels))
                    and _is(spread.mean, (samples, channels))
                    and _is(spread.around, (samples, channels))
                )
            )
        )


def measure(job: Job, source: Source) -> Tally:
    """Run the samples of a data set and count; raises what reading them and running them raises."""
    network, task = job.network, job.task
    x, y = source.read(range(len(source)))
    wanted = task.labels(y, len(x))
    payload = network.input.encode(x)
    trace = engines.run(
        job.engine, network, payload, overflow=job.overflow, record=False, count=True, device=job.device
    )
    steps = np.moveaxis(network.decode(trace.logits), 1, 0)
    counted = [] if task.name == "regression" else [Hits.of(hits(task.decide(step), wanted)) for step in steps]
    return Tally(
        samples=len(x),
        overflowed=len(trace.overflowed | beyond(network, payload)),
        clipped=tuple(count_clipped(network.input, x).tolist()),
        layers=layers_of(trace, payload),
        decisions=counted[0].each if counted else 0,
        steps=tuple(StepTally(right=step.right, squares=step.squares) for step in counted),
        spread=None if counted else _spread(task, steps, wanted),
    )


def layers_of(trace: Trace, payload: np.ndarray) -> dict[str, LayerTally]:
    """Count what layers did, by a trace that counts spikes (``Trace.fired``), and its payloads (B, *input.shape)."""
    caused = operations.caused(trace.network, trace.fired, payload)
    return {
        name: LayerTally(spikes=int(trace.fired[name].sum()), macs=found.macs, acs=found.acs, peak=trace.peak.get(name))
        for name, found in caused.items()
    }


def _spread(task: Task, steps: np.ndarray, wanted: np.ndarray) -> Spread:
    mean, around, places = moments(wanted)
    by_step = np.stack([missed(task.decide(step), wanted) for step in steps])
    return Spread(missed=_tuples(by_step), mean=_tuples(mean), around=_tuples(around), places=places)


def _tuples(values: np.ndarray) -> Any:
    """Return an array as tuples of tuples, as deep as it is."""
    return tuple(map(_tuples, values)) if values.ndim > 1 else tuple(values.tolist())


def _is(values: Any, shape: tuple[int, ...]) -> bool:
    """Whether tuples of tuples are an array of this shape."""
    return len(values) == shape[0] and (len(shape) == 1 or all(_is(row, shape[1:]) for row in values))


def evaluation(job: Job, tallies: Sequence[Tally]) -> Evaluation:
    """Sum up the shards of a data set, in their order."""
    network, samples = job.network, sum(tally.samples for tally in tallies)
    overflowed = sum(tally.overflowed for tally in tallies)
    clipped = np.sum([tally.clipped for tally in tallies], axis=0, dtype=np.int64)
    layers = activity(network, [tally.layers for tally in tallies], samples)
    total = summed(layers)
    return Evaluation(
        engine=job.engine,
        task=job.task.name,
        samples=samples,
        overflowed=overflowed,
        accuracy_by_step=_accuracies(job, tallies, samples),
        spikes=total.spikes,
        rate=total.rate,
        dense=total.dense,
        effective_macs=total.effective_macs,
        effective_acs=total.effective_acs,
        state_limit=LOIHI2.state_limit,
        layers=layers,
        findings=(
            *((outside(overflowed, samples),) if overflowed else ()),
            *told_clipped(network.input, clipped, samples),
        ),
    )


def _accuracies(job: Job, tallies: Sequence[Tally], samples: int) -> tuple[StepAccuracy, ...]:
    if job.task.name == "regression":
        spreads = [tally.spread for tally in tallies if tally.spread is not None]
        mean, around = (np.concatenate([getattr(part, name) for part in spreads]) for name in ("mean", "around"))
        by_step = np.concatenate([np.array(part.missed) for part in spreads], axis=1)
        scores = [
            regression_score(Accuracy, explained(step, mean, around, spreads[0].places), samples) for step in by_step
        ]
    else:
        scores = []
        for step in range(job.network.timesteps):
            at = [tally.steps[step] for tally in tallies]
            right, squares = sum(tally.right for tally in at), sum(tally.squares for tally in at)
            scores.append(Hits(samples, tallies[0].decisions, right, squares).score(Accuracy))
    return tuple(StepAccuracy(step=step + 1, **vars(score)) for step, score in enumerate(scores))


def activity(network: Network, tallies: Sequence[Mapping[str, LayerTally]], samples: int) -> tuple[Activity, ...]:
    """Say what each layer does per sample, by what was counted on parts of so many samples."""
    dense = operations.dense(network)
    return tuple(_activity(network, layer, dense[layer.name], [tally[layer.name] for tally in tallies], samples)
                 for layer in network.layers)  # fmt: skip


def _activity(network: Network, layer: Layer, dense: int, tallies: Sequence[LayerTally], samples: int) -> Activity:
    spikes = sum(tally.spikes for tally in tallies)
    peaks = [tally.peak for tally in tallies if tally.peak is not None]
    return Activity(
        name=layer.name,
        neurons=layer.size,
        spikes=spikes / samples,
        rate=None if layer.kind == "readout" else spikes / (samples * layer.size * network.timesteps),
        dense=dense,
        effective_macs=sum(tally.macs for tally in tallies) / samples,
        effective_acs=sum(tally.acs for tally in tallies) / samples,
        peak=max(peaks, default=None),
    )
