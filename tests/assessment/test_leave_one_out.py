"""One layer in steps, or all but one, against formulas; and how often each rate occurs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import Spiking, conversion

from exporters.report import LEVELS, WANTED
from sim.network import INPUT
from toolchain import assessment
from toolchain.assessment.attribution import _compared
from toolchain.assessment.layers import measured_layers
from toolchain.convert import Conversion


def test_a_layer_takes_its_steps_alone_or_all_others_do() -> None:
    """Steps of 8 make both logits of a sample 0, steps of 1 do not: one of two decisions is left, the first class."""
    a = Spiking(INPUT, [[1.0, 0.0], [0.0, 1.0]], [[1, 0], [0, 1]], 4, [16.0, 16.0])
    b = Spiking("a", [[1.0, 0.0], [0.0, 1.0]], [[1, 0], [0, 1]], 8, [2.0, 2.0])
    x = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    first, second = assessment.sensitivity(conversion(2, 2, a=a, b=b), x)
    assert (first.only.value, first.others.value) == (50, 100)
    assert (second.only.value, second.others.value) == (100, 50)
    assert [row.name for row in (first, second)] == ["a", "b"]
    assert first.only.n == 2


def one(timesteps: int) -> Conversion:
    made = conversion(timesteps, 1, a=Spiking(INPUT, [[1.0]], [[1]], 8, [8.0]))
    return replace(made, peak={"a": 0, "out": 0})


@pytest.mark.parametrize(("timesteps", "rows"), [(1, 2), (4, 5), (LEVELS, LEVELS + 1), (2 * LEVELS, LEVELS + 1)])
def test_every_neuron_is_counted_once_at_its_rate_and_its_wanted_rate(timesteps: int, rows: int) -> None:
    wanted, rate = torch.tensor([[0.0, 0.49, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    pairs, _ = _compared(rate, wanted, min(timesteps, LEVELS))
    counts = pairs.numpy()
    assert counts.shape == (rows, WANTED)
    assert {tuple(place): int(counts[tuple(place)]) for place in np.argwhere(counts)} == {
        (0, 0): 1,
        (rows - 1, int(0.49 * WANTED)): 1,
        (rows - 1, WANTED - 1): 2,
    }


def test_a_layer_without_rates_has_no_histogram() -> None:
    assert [row.histogram for row in measured_layers(one(2), {})] == [(), ()]
