"""Calibration inputs on which the trained network explodes do not set the thresholds of all others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from toolchain import assessment
from toolchain.convert import convert
from toolchain.frontends import import_model
from toolchain.recipe import Recipe
from toolchain.scales.outliers import FEWEST, without_outliers

T = 8
FEW = [3, 50, 120]  #: of 200 inputs


def exploding(gain: float) -> nn.Module:
    """Two hidden layers: the second adds ``gain`` times the last input to each of the others."""
    first, second, last = (nn.Linear(n, m, bias=False) for n, m in ((3, 3), (3, 2), (2, 2)))
    with torch.no_grad():
        first.weight.copy_(torch.eye(3))
        second.weight.copy_(torch.tensor([[1.0, 0.0, gain], [0.0, 1.0, gain]]))
        last.weight.copy_(torch.eye(2))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)


def inputs(samples: int = 200) -> Tensor:
    x = torch.rand(samples, 3, generator=torch.Generator().manual_seed(0))
    x[:, 2] *= 0.05
    x[[i for i in FEW if i < samples], 2] = 1
    return x


@pytest.mark.numbers
def test_inputs_that_explode_are_left_out_and_named() -> None:
    model, x = exploding(20), inputs()
    usual = torch.ones(200, dtype=torch.bool)
    usual[FEW] = False
    made = convert(model, x, T, task="classes")
    (said,) = made.assumed
    assert said.startswith("3 of 200 calibration inputs (3, 50, 120) drive the trained network up to ")
    assert said.endswith(" times as far as nine in ten do, most of them in 2; they were left out.")
    assert said in assessment.report(made, model, x, None).findings
    agreed = made.predict(x[usual]) == x[usual, :2].argmax(1).numpy()
    assert agreed.mean() > 0.85  # T steps up to 20 would make all outputs alike
    kept, _ = without_outliers(import_model(model, (3,)), x, Recipe(timesteps=T))
    assert torch.equal(kept, x[usual])


@pytest.mark.parametrize(
    ("gain", "samples"),
    [
        (2.0, 200),  # no further than others
        (20.0, FEWEST - 1),
    ],
)
def test_nothing_is_left_out_without_need(gain: float, samples: int) -> None:
    x = inputs(samples)
    kept, said = without_outliers(import_model(exploding(gain), (3,)), x, Recipe(timesteps=T))
    assert kept is x
    assert said is None


def test_what_goes_far_and_costs_others_nothing_stays() -> None:
    """With channels of their own, thresholds for the few are nobody else's."""
    model = exploding(20)
    with torch.no_grad():
        model[2].weight.copy_(torch.tensor([[1.0, -1.0, 0.0], [0.0, 0.0, 20.0]]))
    x = inputs()
    x[:, 2] = x[:, 2].round()  # the others know nothing of that channel
    kept, said = without_outliers(import_model(model, (3,)), x, Recipe(timesteps=T))
    assert kept is x
    assert said is None


def test_where_nothing_spikes_all_inputs_stay() -> None:
    x = inputs()
    assert without_outliers(import_model(nn.Linear(3, 2), (3,)), x, Recipe(timesteps=T))[0] is x
