"""Calibration inputs on which the trained network explodes do not set the thresholds of all others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolchain import assessment
from toolchain.convert import convert
from toolchain.frontends import import_model
from toolchain.recipe import Recipe
from toolchain.scales.outliers import FEWEST, _error, without_outliers

T = 8
FEW = [3, 50, 120]  #: of 200 inputs


def exploding(gain: float) -> nn.Module:
    """Two hidden layers: the second adds to the first two inputs ``gain`` times what the sum of all is beyond 2.5."""
    first, second, last = nn.Linear(3, 3), nn.Linear(3, 2, bias=False), nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 1.0, 1.0]]))
        first.bias.copy_(torch.tensor([0.0, 0.0, -2.5]))
        second.weight.copy_(torch.tensor([[1.0, 0.0, gain], [0.0, 1.0, gain]]))
        last.weight.copy_(torch.eye(2))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def inputs(samples: int = 200) -> Tensor:
    """Each in 0..0.85, but for a few that are 1."""
    x = torch.rand(samples, 3, generator=torch.Generator().manual_seed(0)) * 0.85
    x[[i for i in FEW if i < samples]] = 1
    return x


@pytest.mark.numbers
def test_inputs_that_explode_are_left_out_and_named() -> None:
    model, x = exploding(100), inputs()
    usual = torch.ones(200, dtype=torch.bool)
    usual[FEW] = False
    made = convert(model, x, T, task="classes")
    (said,) = made.assumed
    assert said.startswith("3 of 200 calibration inputs (3, 50, 120) drive the trained network up to ")
    assert said.endswith(" times as far as nine in ten do, most of them in 2; they were left out.")
    assert said in assessment.report(made, model, x, None).findings
    assert made.source.limit is None
    assert made.run(x, overflow="count").peak == made.peak
    graph, recipe = import_model(model, (3,)), Recipe(timesteps=T)
    kept, _ = without_outliers(graph, x, recipe)
    assert torch.equal(kept, x[usual])
    # What thresholds for a few make of all the others is one output for all.
    assert _error(graph, x, kept, recipe) < 0.1 < 0.8 < _error(graph, x, x, recipe)


@pytest.mark.parametrize(
    ("gain", "samples"),
    [
        (1.0, 200),  # no further than others
        (100.0, FEWEST - 1),
    ],
)
def test_nothing_is_left_out_without_need(gain: float, samples: int) -> None:
    x = inputs(samples)
    kept, said = without_outliers(import_model(exploding(gain), (3,)), x, Recipe(timesteps=T))
    assert kept is x
    assert said is None


def test_what_goes_far_and_costs_others_nothing_stays() -> None:
    """With channels of their own, thresholds for the few are nobody else's."""
    model = exploding(100)
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 100.0]]))
    x = inputs()
    kept, said = without_outliers(import_model(model, (3,)), x, Recipe(timesteps=T))
    assert kept is x
    assert said is None


def test_where_nothing_spikes_all_inputs_stay() -> None:
    x = inputs()
    assert without_outliers(import_model(nn.Linear(3, 2), (3,)), x, Recipe(timesteps=T))[0] is x
