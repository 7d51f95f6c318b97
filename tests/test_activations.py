"""The papers' activations compute their equations, and a converted neuron can express what they compute."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from sim.findings import Refused
from toolchain.activations import QCFS, TReLU

pytestmark = pytest.mark.numbers


def spike_rate(x: Tensor, threshold: float, steps: int, v0: float = 0.0, shift: float = 0.0) -> Tensor:
    """Average output of integrate-and-fire neurons with reset by subtraction under a constant current."""
    v, total = torch.full_like(x, v0), torch.zeros_like(x)
    for _ in range(steps):
        v = v + x + shift
        spikes = (v >= threshold).to(x.dtype)
        v, total = v - threshold * spikes, total + threshold * spikes
    return total / steps


def test_qcfs_is_the_staircase_of_its_equation() -> None:
    # lambda = 2, L = 4: steps of 1/2 at 1/4, 3/4, 5/4 and 7/4, each step belonging to the tread above it.
    x = torch.tensor([-9.0, -0.1, 0.2, 0.25, 0.7, 0.75, 1.2, 1.25, 1.7, 1.75, 9.0])
    assert QCFS(4, 2.0)(x).tolist() == [0, 0, 0, 0.5, 0.5, 1.0, 1.0, 1.5, 1.5, 2.0, 2.0]


def test_qcfs_is_the_rate_of_a_neuron_that_starts_at_half_its_threshold() -> None:
    x = torch.linspace(-1, 3, 641, dtype=torch.float64) + 1 / 1000  # no tie between two steps
    activation = QCFS(8, 2.0).double()
    assert torch.equal(activation(x), spike_rate(x, 2.0, 8, v0=1.0))


def test_trelu_is_approached_by_a_neuron_whose_current_is_shifted() -> None:
    x, steps = torch.linspace(-1, 3, 401, dtype=torch.float64), 16
    expected = TReLU(1.5).double()(x)
    assert torch.equal(expected, x.clamp(0, 1.5))
    error = spike_rate(x, 1.5, steps, shift=1.5 / (2 * steps)) - expected
    assert float(error.abs().max()) <= 1.5 / (2 * steps) + 1e-9
    assert float(spike_rate(x, 1.5, steps).sub(expected).abs().max()) > 1.5 / (2 * steps) + 0.01


def test_the_gradient_of_qcfs_goes_straight_through_the_floor() -> None:
    activation = QCFS(4, 2.0)
    x = torch.tensor([-0.5, 0.1, 0.6, 1.9, 2.5], requires_grad=True)
    activation(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    # (output - x) / lambda inside, 0 below and 1 above; the outputs are 0, 0.5 and 2.
    expected = (0 - 0.1) / 2 + (0.5 - 0.6) / 2 + (2 - 1.9) / 2 + 1
    assert activation.threshold.grad is not None
    assert float(activation.threshold.grad) == pytest.approx(expected)


def test_lambda_is_learnt() -> None:
    torch.manual_seed(0)
    x, activation = torch.rand(4096) * 3, QCFS(8)
    optimiser = torch.optim.Adam(activation.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        nn.functional.mse_loss(activation(x), x.clamp(0, 1.5)).backward()
        optimiser.step()
    assert float(activation.threshold.detach()) == pytest.approx(1.5, abs=0.15)


def test_the_gradient_of_trelu_ends_at_its_threshold() -> None:
    x = torch.tensor([-0.5, 0.5, 1.4, 1.6], requires_grad=True)
    TReLU(1.5)(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_noise_is_added_in_training_only() -> None:
    torch.manual_seed(0)
    activation, x = QCFS(4, 1.0), torch.full((20000,), 0.5)
    activation.noise.fill_(0.25)
    noisy = activation(x).detach()
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(noisy.std()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(activation.eval()(x), x)


def test_thresholds_and_noise_are_saved_with_the_weights() -> None:
    assert {key: float(value) for key, value in nn.Sequential(QCFS(4, 3.0), TReLU(2.0)).state_dict().items()} == {
        "0.threshold": 3.0,
        "0.noise": 0.0,
        "1.threshold": 2.0,
    }


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_a_threshold_that_is_not_positive_is_refused(threshold: float) -> None:
    with pytest.raises(Refused, match=rf"QCFS: threshold {threshold}; give a positive number\nQCFS: 0 levels"):
        QCFS(0, threshold)
    with pytest.raises(Refused, match=rf"TReLU: threshold {threshold}; give a positive number"):
        TReLU(threshold)
