"""Shares of samples, and how certain they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from exporters.report import Accuracy, Agreement
from sim.findings import Refused
from toolchain.assessment.score import accuracy, agreement, by_step, standard_error, wilson


def test_wilson_intervals_equal_those_computed_by_hand() -> None:
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.959964
    assert wilson(8, 10) == pytest.approx((49.0162, 94.3318), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 27.7533), abs=1e-4)
    assert wilson(541, 541) == pytest.approx((99.2949, 100), abs=1e-4)


@pytest.mark.parametrize(("correct", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_wilson_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(Refused, match=f"wilson: {correct} of {n} correct; give 0 <= correct <= n and n of at least 1"):
        wilson(correct, n)


def test_the_standard_error_is_taken_at_the_centre_of_wilsons_interval() -> None:
    # (8 + 2) / (10 + 4) = 5 / 7: sqrt(5/7 * 2/7 / 10) = 0.142857; all of 60: sqrt(62/64 * 2/64 / 60) = 0.022463
    assert standard_error(0.8, 10) == pytest.approx(100 / 7)
    assert standard_error(1.0, 60) == pytest.approx(2.2463, abs=1e-4)


def test_scores_count_the_largest_logit_of_every_sample() -> None:
    logits = np.array([[[[1, 5, 2]], [[9, 0, 0]]], [[[0, 1, 7]], [[0, 1, 7]]]])  # 2 samples, 2 steps
    y = torch.tensor([0, 2])
    low, high = wilson(1, 2)
    half = Accuracy(value=50.0, n=2, low=low, high=high)
    assert accuracy(logits[:, 0], y) == half
    assert [row.as_dict() for row in by_step(logits, y)] == [
        {"step": 1, **half.as_dict()},
        {"step": 2, "accuracy": 100.0, "n": 2, "low": wilson(2, 2)[0], "high": wilson(2, 2)[1]},
    ]
    trained = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    assert agreement(logits[:, 0], trained) == Agreement(value=50.0, n=2, low=low, high=high)
