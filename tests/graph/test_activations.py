"""The papers' activations compute their equations, and a converted neuron can express what they compute."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn

from sim.findings import Refused
from toolchain.graph.activations import NQ, QCFS, RNL, TCL, SlipReLU, TReLU, clipped, staircase


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


@pytest.mark.parametrize("theta", [torch.tensor(1.3), torch.tensor([[[0.7]], [[1.9]]])], ids=["layer", "channels"])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16])
def test_learning_takes_fewer_passes_to_the_same_values_and_gradients(theta: Tensor, kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(8, 2, 5, 5, generator=generator).to(kind)
    towards, results = torch.randn(8, 2, 5, 5, generator=generator), []
    for learning in (False, True):
        x, threshold = drawn.clone().requires_grad_(), theta.clone().requires_grad_()
        y = staircase(x, threshold, 4, learning)
        (y * towards).sum().backward()
        results.append((y.detach(), x.grad, threshold.grad))
    (plain, _, expected), (quick, through, found) = results
    assert torch.equal(plain, quick)
    assert plain.dtype == quick.dtype
    scaled = drawn / theta
    assert torch.equal(through, torch.where((scaled >= 0) & (scaled <= 1), towards, 0).to(kind))  # straight through
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert torch.allclose(expected, found, rtol=0.05 if kind == torch.bfloat16 else 1e-4, atol=1e-4)


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
    activation, x = NQ(4, 1.0), torch.full((20000,), 0.5)
    activation.noise.fill_(0.25)
    noisy = activation(x).detach()
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(noisy.std()) == pytest.approx(0.25, abs=0.01)
    assert torch.equal(activation.eval()(x), x)


def test_thresholds_and_noise_are_saved_with_the_weights() -> None:
    assert {key: float(value) for key, value in nn.Sequential(NQ(4, 3.0), TReLU(2.0)).state_dict().items()} == {
        "0.threshold": 3.0,
        "0.noise": 0.0,
        "1.threshold": 2.0,
    }


EVERY = {
    "nq": lambda theta: NQ(3, theta),
    "qcfs": lambda theta: QCFS(3, theta),
    "sliprelu": lambda theta: SlipReLU(3, theta, 0.3),
    "tcl": TCL,
    "rnl": RNL,
    "trelu": TReLU,
}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("theta", [1.5, torch.tensor([[[1.0]], [[2.0]]])], ids=["layer", "channels"])
def test_scripted_traced_and_reloaded_they_compute_the_same(name: str, theta: float | Tensor) -> None:
    x = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0)) * 2
    activation = EVERY[name](theta).eval()
    expected = activation(x)
    twin = EVERY[name](torch.ones_like(torch.as_tensor(theta))).eval()
    twin.load_state_dict(activation.state_dict())
    assert torch.equal(twin(x), expected)
    assert torch.equal(fx.symbolic_trace(activation)(x), expected)
    assert torch.equal(torch.jit.script(activation)(x), expected)
    top = torch.as_tensor(theta).reshape(-1, *(1,) * 2).expand(2, 1, 1)
    assert torch.equal(activation(100 + x), top.expand(8, 2, 3, 3))
    assert not activation(x - 100).any()


def test_noisy_quantisation_without_noise_is_qcfs_exactly_its_gradients_too() -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 2
    results = []
    for kind in (NQ, QCFS):
        activation, given = kind(4, 1.3).train(), x.clone().requires_grad_()
        y = activation(given)
        (y * torch.arange(20).reshape(4, 5)).sum().backward()
        results.append((y.detach(), given.grad, activation.threshold.grad))
    for noisy, plain in zip(*results, strict=True):
        assert torch.equal(noisy, plain)


def test_noise_is_drawn_anew_for_every_element_and_moves_no_gradient() -> None:
    torch.manual_seed(0)
    activation, x = NQ(4, 1.0).train(), torch.full((2, 4, 5000), 0.5, requires_grad=True)
    activation.noise.fill_(0.3)
    first, second = activation(x), activation(x)
    noise = torch.stack([first, second]).detach() - 0.5
    assert float(noise.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float(noise.mean())) < 0.01
    rows = noise.reshape(16, -1)
    assert float((torch.corrcoef(rows) - torch.eye(16)).abs().max()) < 0.08  # 5 standard errors
    first.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("name", ["tcl", "rnl", "sliprelu"])
def test_gradients_of_the_smooth_parts_are_those_of_finite_differences(name: str) -> None:
    activation = (SlipReLU(4, 1.5, slope=1.0) if name == "sliprelu" else EVERY[name](1.5)).double().eval()
    x = torch.tensor([[-1.0, 0.3, 0.7, 1.2, 1.8, 4.0]], dtype=torch.float64, requires_grad=True)
    (parameter,) = activation.parameters()

    def function(x: Tensor, value: Tensor) -> Tensor:
        return torch.func.functional_call(activation, {next(iter(dict(activation.named_parameters()))): value}, (x,))

    assert torch.autograd.gradcheck(function, (x, parameter.detach().clone().requires_grad_()))


def test_slip_relu_is_the_weighted_sum_of_a_ramp_and_a_staircase() -> None:
    x, theta = torch.linspace(-1, 3, 101), torch.tensor(2.0)
    expected = 0.25 * clipped(x, theta) + 0.75 * staircase(x, theta, 4)
    assert torch.equal(SlipReLU(4, 2.0, 0.25)(x), expected)
    assert torch.equal(SlipReLU(4, 2.0, 0.0)(x), QCFS(4, 2.0)(x))
    assert torch.equal(SlipReLU(4, 2.0, 1.0)(x), TCL(2.0)(x))


def test_a_rate_norm_layer_follows_the_largest_currents_in_training_only() -> None:
    activation, x = RNL(1.0).train(), torch.tensor([[0.5, 6.0], [-3.0, 2.0]])
    activation(x)
    assert float(activation.maximum) == pytest.approx(0.9 * 1.0 + 0.1 * 6.0)
    activation.eval()(2 * x)
    assert float(activation.maximum) == pytest.approx(1.5)
    activation.train()(-x.abs())  # silent
    assert float(activation.maximum) == pytest.approx(1.5)
    channels = RNL(torch.tensor([1.0, 1.0])).train()
    channels(x)
    assert channels.maximum.tolist() == pytest.approx([0.95, 1.5])
    maps = RNL(torch.ones(2, 1, 1)).train()
    maps(x.reshape(2, 2, 1, 1).expand(2, 2, 3, 4))
    assert maps.maximum.flatten().tolist() == pytest.approx([0.95, 1.5])
    activation.share.data.fill_(0.5)
    assert activation.eval()(torch.tensor([9.0])).tolist() == pytest.approx([0.75])


@pytest.mark.parametrize("threshold", [0.0, -1.0, math.nan, math.inf])
def test_a_threshold_that_is_not_positive_is_refused(threshold: float) -> None:
    with pytest.raises(Refused, match=rf"QCFS: threshold {threshold}; give a positive number\nQCFS: 0 levels"):
        QCFS(0, threshold)
    with pytest.raises(Refused, match=rf"TReLU: threshold {threshold}; give a positive number"):
        TReLU(threshold)
