"""How good a network is, or how much like another, with the certainty that so many samples give."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from exporters.report import Accuracy, Agreement, OutputError, Score, StepAccuracy
from sim.arguments import array, checked
from sim.findings import refuse
from toolchain.task import Task

S = TypeVar("S", bound=Score)

Z = 1.959964  #: standard errors each way that hold 95 %


@checked
def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of ``correct`` out of ``n``, in per cent; :class:`Refused` for impossible counts."""
    from scipy.stats import binomtest  # loading it takes half a second

    if not 0 <= correct <= n or n < 1:  # scipy raises or returns NaN, depending on its version
        raise refuse("wilson", f"{correct} of {n} correct", "give 0 <= correct <= n and n of at least 1")
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


@checked
def standard_error(share: float, n: int) -> float:
    """Give the standard error of a share, 0..1, of ``n`` samples, in per cent.

    Taken at Wilson's centre instead of the bare share: full agreement on few samples is not certain agreement.
    """
    centre = (share * n + 2) / (n + 4)
    return 100 * math.sqrt(centre * (1 - centre) / n)


@checked
def accuracy(outputs: Any, y: Any, task: Task | None = None) -> Accuracy:
    """How good outputs (B, ...) are about labels (B, ...): of classes, unless there is another ``task``.

    The share of right decisions, or R² of a regression. Raises :class:`Refused` for labels that are not of the task.
    """
    outputs = array("outputs", outputs, "iuf", "numbers for every sample")
    task = task or Task("classes", outputs.shape[1:])
    return _score(Accuracy, task.decide(outputs), task.labels(y, len(outputs)), task)


@checked
def agreement(outputs: Any, trained: Any, task: Task | None = None) -> Agreement:
    """How often outputs (B, ...) decide like the trained network's (B, ...), or R² against them."""
    outputs = array("outputs", outputs, "iuf", "numbers for every sample")
    task = task or Task("classes", outputs.shape[1:])
    wanted = task.decide(trained)
    if len(wanted) != len(outputs):
        raise refuse("trained", f"{len(wanted)} for {len(outputs)} samples", "give the same samples' outputs")
    return _score(Agreement, task.decide(outputs), wanted, task)


@checked
def by_step(outputs: Any, y: Any, task: Task | None = None) -> tuple[StepAccuracy, ...]:
    """Accuracy of outputs (B, T, ...) read at every window step 1..T."""
    outputs = array("outputs", outputs, "iuf", "numbers for every sample and step")
    if outputs.ndim < 3:
        raise refuse("outputs", f"shape {outputs.shape}", "give outputs (samples, T, ...) of every step")
    steps = range(outputs.shape[1])
    return tuple(StepAccuracy(step=step + 1, **vars(accuracy(outputs[:, step], y, task))) for step in steps)


def certainty(found: np.ndarray, wanted: np.ndarray, task: Task) -> tuple[float, float]:
    """Agreement of decisions, or of a regression's outputs, (B, ...), and its standard error, in per cent."""
    if task.name == "regression":
        value, error = determination(found, wanted)
        return 100 * value, 100 * error
    counted = Hits.of(hits(found, wanted))
    return 100 * counted.share, standard_error(counted.share, counted.independent)


def determination(found: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """R² of outputs (B, C, ...), the mean over channels, and its standard error.

    ``1 - sum (found - wanted)^2 / sum (wanted - mean)^2``. A channel that is always the same has no variance to
    explain and does not count; where all are, R² is 1 for exact outputs, else 0. The error is that of a ratio of means
    over samples, linearised.
    """
    return explained(missed(found, wanted), *moments(wanted))


def missed(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Squared errors of outputs (B, C, ...), by sample and channel, float64 (B, C)."""
    found, wanted = _by_channel(found), _by_channel(wanted)
    return ((found - wanted) ** 2).sum(2)


def moments(wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean of each sample and channel of outputs (B, C, ...), squares around it, (B, C) both; places of a channel."""
    wanted = _by_channel(wanted)
    mean = wanted.mean(2)
    return mean, ((wanted - mean[:, :, None]) ** 2).sum(2), wanted.shape[2]


def explained(missed: np.ndarray, mean: np.ndarray, around: np.ndarray, places: int) -> tuple[float, float]:
    """R² and its standard error, as :func:`determination`, from what :func:`missed` and :func:`moments` say of samples.

    These are of single samples, so that it does not matter in which parts they have been taken.
    """
    n = len(mean)
    total = around + places * (mean - mean.mean(0)) ** 2
    counts = (mean != mean[0]).any(0) | around.any(0)
    if not counts.any():
        return float(not missed.any()), 0.0
    missed, total = missed[:, counts], total[:, counts]
    ratio = missed.sum(0) / total.sum(0)
    deviation = ((missed - ratio * total) / total.mean(0)).mean(1)
    return 1 - float(ratio.mean()), float(deviation.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0


def _by_channel(values: np.ndarray) -> np.ndarray:
    return values.reshape(*values.shape[:2], -1).astype(np.float64)


@dataclass(frozen=True)
class Hits:
    """How many decisions were right: integers, which add up over samples."""

    samples: int
    each: int  #: decisions of a sample
    right: int
    squares: int  #: sum over samples of the square of how many of theirs were right

    @classmethod
    def of(cls, hits: np.ndarray) -> Hits:
        """Count hits, bool (B, k)."""
        by_sample = hits.sum(1, dtype=np.int64)
        return cls(len(hits), hits.shape[1], int(by_sample.sum()), int((by_sample**2).sum()))

    def __add__(self, other: Hits) -> Hits:
        return Hits(self.samples + other.samples, self.each, self.right + other.right, self.squares + other.squares)

    @property
    def share(self) -> float:
        """How much was right, 0..1."""
        return self.right / (self.samples * self.each)

    @property
    def independent(self) -> int:
        """How many independent decisions tell as much: those of a sample hang together.

        ``p (1 - p) / var(p)``, from how the samples' shares differ (Korn and Graubard, Survey Methodology, 1998):
        between one and all k of each sample.
        """
        n, decisions = self.samples, self.samples * self.each
        spread = self.right * (decisions - self.right) * (n - 1)
        variance = n * self.squares - self.right**2
        counted = spread // variance if variance else decisions if spread else n
        return min(max(counted, n), decisions)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval of the share, in per cent."""
        n = self.independent
        return wilson(round(self.right * n / (self.samples * self.each)), n)

    def score(self, kind: type[S]) -> S:
        """Make a score of it."""
        low, high = self.interval
        return kind(value=100 * self.right / (self.samples * self.each), n=self.samples, low=low, high=high)


def interval(hits: np.ndarray) -> tuple[float, float]:
    """95 % Wilson interval of the share of hits (B, k), in per cent."""
    return Hits.of(hits).interval


def errors(found: np.ndarray, wanted: np.ndarray) -> tuple[OutputError, ...]:
    """How far a regression's outputs (B, C, ...) are from what is wanted, by channel."""
    rows = []
    for channel in range(wanted.shape[1]):
        miss, spread = np.abs(found[:, channel] - wanted[:, channel]), float(wanted[:, channel].std())
        relative = float(np.sqrt((miss**2).mean())) / spread if spread else None
        rows.append(OutputError(mean=float(miss.mean()), largest=float(miss.max()), relative=relative))
    return tuple(rows)


def hits(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Compare decisions (B, ...): bool (B, k)."""
    return (found == wanted).reshape(len(found), -1)


def regression_score(kind: type[S], explained: tuple[float, float], samples: int) -> S:
    """Make a score of R² and its standard error."""
    value, error = explained
    low, high = value - Z * error, min(1.0, value + Z * error)
    return kind(value=100 * value, n=samples, low=100 * low, high=100 * high)


def _score(kind: type[S], found: np.ndarray, wanted: np.ndarray, task: Task) -> S:
    if task.name == "regression":
        return regression_score(kind, determination(found, wanted), len(found))
    return Hits.of(hits(found, wanted)).score(kind)
