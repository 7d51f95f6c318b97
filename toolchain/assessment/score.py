"""How often a network is right, or decides like another, with the certainty that so many samples give."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from exporters.report import Accuracy, Agreement, Score, StepAccuracy
from sim.findings import refuse

S = TypeVar("S", bound=Score)


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of ``correct`` out of ``n``, in per cent; :class:`Refused` for impossible counts."""
    from scipy.stats import binomtest  # loading it takes half a second

    if not 0 <= correct <= n or n < 1:  # scipy raises or returns NaN, depending on its version
        raise refuse("wilson", f"{correct} of {n} correct", "give 0 <= correct <= n and n of at least 1")
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def standard_error(share: float, n: int) -> float:
    """Give the standard error of a share, 0..1, of ``n`` samples, in per cent.

    Taken at Wilson's centre instead of the bare share: full agreement on few samples is not certain agreement.
    """
    centre = (share * n + 2) / (n + 4)
    return 100 * math.sqrt(centre * (1 - centre) / n)


def classes(logits: Any) -> Tensor:
    """Predicted classes, int64 (B,), of logits (B, ...)."""
    return torch.from_numpy(np.asarray(logits).reshape(len(logits), -1).argmax(1))


def accuracy(logits: Any, y: Tensor) -> Accuracy:
    """How often logits (B, ...) are right about labels (B,)."""
    return _score(Accuracy, classes(logits) == y)


def agreement(logits: Any, trained: Any) -> Agreement:
    """How often logits (B, ...) decide like the trained network's (B, ...)."""
    return _score(Agreement, classes(logits) == classes(trained))


def by_step(logits: np.ndarray, y: Tensor) -> tuple[StepAccuracy, ...]:
    """Accuracy of logits (B, T, ...) read at every window step 1..T."""
    return tuple(StepAccuracy(step=step + 1, **vars(accuracy(logits[:, step], y))) for step in range(logits.shape[1]))


def _score(kind: type[S], hits: Tensor) -> S:
    """Score hits, bool (B,)."""
    count, n = int(hits.sum()), len(hits)
    low, high = wilson(count, n)
    return kind(value=100 * count / n, n=n, low=low, high=high)
