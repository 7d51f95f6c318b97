"""Bias rules, against numbers computed by hand and against brute force over every integer bias."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sim import chip, fast
from sim.findings import Refused
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from toolchain import calibrate
from toolchain.calibrate import quantile_bias


def test_the_quantile_is_the_smallest_move_that_meets_the_target() -> None:
    # Potentials 9, 7, 4, 1 with theta 10. Two of four shall fire: 7 + b >= 10 and 4 + b < 10, so b in 3..5.
    v = torch.tensor([[9, 7, 4, 1]])
    assert quantile_bias(v, torch.tensor([0.5]), 10).tolist() == [3]
    # None shall fire: any b <= 0 does it, and 0 is nearest. All shall fire: b >= 9.
    assert quantile_bias(v, torch.tensor([0.0]), 10).tolist() == [0]
    assert quantile_bias(v, torch.tensor([1.0]), 10).tolist() == [9]
    # A target between two counts goes to the nearer one: 0.4 * 4 = 1.6 is nearer to 2 than to 1.
    assert quantile_bias(v, torch.tensor([0.4]), 10).tolist() == [3]


def test_equal_potentials_fire_together_and_the_nearer_count_wins() -> None:
    # 5, 5, 5, 0: only 0, 3 or 4 can fire. Two wanted: 3 is nearer than 0, so b >= 5 and 0 + b < 10.
    v = torch.tensor([[5, 5, 5, 0]])
    assert quantile_bias(v, torch.tensor([0.5]), 10).tolist() == [5]
    assert quantile_bias(v, torch.tensor([0.3]), 10).tolist() == [0]  # 1.2 is nearer to 0 than to 3


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=1, max_size=12), st.floats(0, 1), st.integers(1, 20))
def test_no_other_integer_bias_comes_nearer(values: list[int], rho: float, theta: int) -> None:
    v = np.array(values)
    chosen = int(quantile_bias(torch.from_numpy(v)[None], torch.tensor([rho], dtype=torch.float64), theta)[0])
    miss = {b: abs(np.count_nonzero(v + b >= theta) - rho * len(v)) for b in range(-80, 81)}
    assert miss[chosen] == min(miss.values())
    assert abs(chosen) == min(abs(b) for b, m in miss.items() if m == miss[chosen])


def layer(bias: np.ndarray, theta: int = 1000, weight: int = 1) -> tuple[Network, Layer]:
    made = Layer("a", (1, 2, 2), (Edge(INPUT, Dense(np.eye(4, dtype=int) * weight)),), theta, [theta // 2], bias)
    out = Layer("out", (1,), (Edge("a", Dense([[1, 1, 1, 1]])),), 0, [0], np.zeros((len(bias), 1), int), "readout")
    return Network(Input((1, 2, 2), bits=12), (made, out), len(bias)), made


def distinct_currents(seed: int, samples: int, timesteps: int) -> Tensor:
    """Currents that no two neurons share, so that every count of spikes can be met."""
    values = torch.randperm(4 * samples, generator=torch.Generator().manual_seed(seed)) * 3 - 100
    return values.reshape(1, samples, 1, 2, 2).repeat(timesteps, 1, 1, 1, 1).int()


@pytest.mark.parametrize("seed", range(5))
def test_exact_meets_the_mean_activation_to_within_one_sample_at_every_step(seed: int) -> None:
    timesteps, samples = 6, 50
    network, made = layer(np.zeros((timesteps, 1), int))
    current = distinct_currents(seed, samples, timesteps)
    target = (current[0].double() / made.threshold).clamp(0, 1)
    schedule = calibrate.exact(network, made, current, target, chip.LOIHI2.bias_limit)
    calibrated = Layer(made.name, made.shape, made.edges, made.threshold, made.v0, schedule)
    spikes, _ = fast.fire(network, calibrated, current)
    fired = spikes.flatten(1).sum(1).double()
    assert ((fired - target.sum()).abs() <= 1).all()


@pytest.mark.parametrize("rule", ["ftbc", "exact"])
def test_calibration_brings_the_mean_output_of_every_step_nearer_to_the_activations(rule: str) -> None:
    timesteps = 6
    network, made = layer(np.zeros((timesteps, 1), int))
    current = distinct_currents(1, 300, timesteps)
    current[0] //= 4  # evidence arrives unevenly: late at first, then too much
    current[3] *= 2
    target = (current.double().mean(0) / made.threshold).clamp(0, 1)
    schedule = calibrate.RULES[rule](network, made, current, target, chip.LOIHI2.bias_limit)
    error = {}
    for name, bias in (("before", made.bias), ("after", schedule)):
        spikes, _ = fast.fire(network, Layer("a", made.shape, made.edges, made.threshold, made.v0, bias), current)
        error[name] = (spikes.flatten(1).double().mean(1) - target.mean()).abs()
    assert (error["after"] < error["before"]).all()


def test_ftbc_moves_the_bias_from_the_estimate_towards_the_target() -> None:
    # One neuron-step a sample, nobody fires, all should: one update adds alpha * theta = 0.2 * 1000.
    network, made = layer(np.zeros((1, 1), int))
    current = torch.full((1, 4, 1, 2, 2), -600, dtype=torch.int32)
    schedule = calibrate.ftbc(network, made, current, torch.ones(4, 1, 2, 2), chip.LOIHI2.bias_limit)
    # v = 500 - 600: the updates stop once b reaches 1100, at the sixth of ten.
    assert schedule.tolist() == [[1200]]


def test_the_schedule_stays_inside_the_bias_register() -> None:
    network, made = layer(np.zeros((3, 1), int))
    current = torch.full((3, 4, 1, 2, 2), -3000, dtype=torch.int32)
    schedule = calibrate.exact(network, made, current, torch.ones(4, 1, 2, 2), 4095)
    assert (made.v0[0] + schedule.cumsum()).tolist() == [4000, 4095, 4095]


def test_a_per_neuron_bias_keeps_its_pattern() -> None:
    bias = np.arange(8).reshape(2, 1, 2, 2)
    network, made = layer(bias)
    current = distinct_currents(0, 20, 2)
    schedule = calibrate.exact(network, made, current, torch.full((20, 1, 2, 2), 0.25), 4095)
    difference = schedule - bias
    assert schedule.shape == bias.shape
    assert (difference == difference[:, :, :1, :1]).all()


def test_the_readout_is_corrected_to_the_mean_logit_at_every_step() -> None:
    # Two samples with currents summing to 4, 4, 4 on average per step; the mean logit is 10 a step.
    out = Layer("out", (1,), (Edge(INPUT, Dense([[1]])),), 0, [3], np.zeros((3, 1), int), "readout")
    current = torch.tensor([[[2.0], [6.0]], [[4.0], [4.0]], [[0.0], [8.0]]]).int()
    schedule = calibrate.readout_bias(out, current, torch.tensor([[5.0], [15.0]]), 4095)
    # Offsets 6, 12, 18 make the means 10, 20, 30; v0 = 3 is part of the first.
    assert schedule.tolist() == [[3], [6], [6]]


def test_an_unknown_rule_is_refused() -> None:
    network, _ = layer(np.zeros((1, 1), int))
    with pytest.raises(Refused, match="method: unknown bias rule 'magic'; use one of none, ftbc, exact"):
        calibrate.calibrate(network, "magic", np.zeros((1, 1, 2, 2), int), torch.zeros, chip.LOIHI2, lambda *_: None)


def test_calibrating_data_that_overflows_is_refused_with_the_place() -> None:
    network, _ = layer(np.zeros((8, 1), int), theta=1 << 17, weight=127)
    payload = np.full((1, 1, 2, 2), 2047)
    targets = {"a": torch.zeros(1, 1, 2, 2), "out": torch.zeros(1, 1)}
    with pytest.raises(Refused, match=r"calibration: layer a, channel 0, step 1: v = \d+ leaves the register"):
        calibrate.calibrate(network, "none", payload, lambda layer: targets[layer.name], chip.LOIHI2, lambda *_: None)
