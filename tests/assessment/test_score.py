"""Shares of samples, and how certain they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from exporters.report import Accuracy, Agreement
from sim.findings import Refused
from toolchain.assessment.score import (
    Hits,
    accuracy,
    agreement,
    by_step,
    certainty,
    determination,
    interval,
    standard_error,
    wilson,
)
from toolchain.task import Task


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


def test_r2_is_that_of_scikit_learn_and_its_error_that_of_samples_drawn_again() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.normal(size=(400, 3)) * [1, 640, 0.01] + 5
    found = wanted + rng.normal(size=wanted.shape) * [0.3, 100, 0.004]
    value, error = determination(found, wanted)
    assert value == pytest.approx(r2_score(wanted, found))
    again = [rng.integers(0, 400, 400) for _ in range(300)]
    assert error == pytest.approx(np.std([r2_score(wanted[i], found[i]) for i in again]), rel=0.2)
    task = Task("regression", (3,))
    assert certainty(found, wanted, task) == (100 * value, 100 * error)
    score = accuracy(found, wanted, task)
    assert (score.value, score.n) == (100 * value, 400)
    assert (score.high - score.value, score.value - score.low) == pytest.approx((196 * error, 196 * error), rel=1e-4)


def test_an_output_that_is_always_the_same_explains_nothing_and_costs_nothing() -> None:
    wanted = np.array([[0.0, 3.0], [2.0, 3.0]])
    assert determination(wanted + np.array([0.5, 7]), wanted)[0] == pytest.approx(1 - 0.5 / 2)
    assert determination(wanted[:, 1:], wanted[:, 1:]) == (1, 0)
    assert determination(wanted[:, 1:] + 1, wanted[:, 1:]) == (0, 0)


def test_maps_have_one_r2_for_every_channel() -> None:
    wanted = np.arange(12.0).reshape(3, 2, 2, 1)
    found = wanted + np.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    # Each channel's six values spread by 0, 1, 4, 5, 8, 9 around their mean 4.5: a sum of squares of 65.5.
    assert determination(found, wanted)[0] == pytest.approx(1 - 6 / 65.5 / 2)


def test_decisions_that_hang_together_count_as_fewer() -> None:
    together = np.repeat(np.arange(100) % 4 > 0, 8).reshape(100, 8)
    assert Hits.of(together).independent == 100
    assert interval(together) == wilson(75, 100)
    assert Hits.of((np.arange(800) % 8 < 6).reshape(100, 8)).independent == 800  # six of eight in every sample
    assert Hits.of(np.ones((100, 8), bool)).independent == 100  # nothing is known about how they hang together
    drawn = np.random.default_rng(0).random((400, 8)) < 0.75
    assert Hits.of(drawn).independent == pytest.approx(3200, rel=0.2)
    assert Hits.of(drawn[:, :1]).independent == 400
