"""Which few of many samples statistics look at."""

from __future__ import annotations

import pytest
import torch

from toolchain.graph.channels import SAMPLES, spread


@pytest.mark.parametrize("samples", [1, 7, SAMPLES])
def test_nothing_is_left_out_of_a_small_calibration_set(samples: int) -> None:
    assert spread(samples).tolist() == list(range(samples))


@pytest.mark.parametrize("samples", [257, 300, 511, 512, 2560, 50_000])
def test_one_sample_is_taken_from_each_of_256_equal_parts(samples: int) -> None:
    taken = spread(samples)
    parts = torch.bucketize(taken, torch.arange(1, 257) * samples // 256, right=True)
    assert parts.tolist() == list(range(256))


@pytest.mark.parametrize("period", [2, 3, 5, 8, 10, 16])
def test_data_that_come_in_turns_are_looked_at_evenly(period: int) -> None:
    # Every 40th of 10,240 would show one of ten classes that come in turns, for ever.
    counts = torch.bincount(spread(10_240) % period, minlength=period)
    assert counts.min() >= 0.6 * 256 / period
    assert counts.max() <= 1.5 * 256 / period + 1
