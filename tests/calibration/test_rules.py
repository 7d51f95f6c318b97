"""Bias rules, against numbers computed by hand and against brute force over every integer bias."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sim.chip import LOIHI2, WIDE
from sim.findings import Refused
from sim.fixedpoint import Registers
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from toolchain.calibration import batch as batches
from toolchain.calibration import rules
from toolchain.calibration.batch import Batch
from toolchain.calibration.rules import RULES, cheapest_bias
from toolchain.convert import convert
from toolchain.graph.channels import positions
from toolchain.scales import outliers

BITS = 13  #: of the two's complement numbers that a test's currents are written in
CORRECTING = [rule for rule in RULES if rule not in ("none", "once")]  #: the others keep what has been trained


def arriving(
    currents: Any,
    target: Any,
    theta: int = 1000,
    *,
    v0: Any = 0,
    bias: Any = None,
    shape: tuple[int, ...] = (1,),
    limit: int = 1 << 20,
    per_neuron: bool = False,
    readout: bool = False,
) -> Batch:
    """A layer at which given currents arrive, (T, B, *shape) or (T, B) for one neuron; ``target`` is (B, *shape).

    The currents are sent as real spikes: every neuron hears BITS others, one for each binary digit.
    """
    flat = np.array(currents).reshape(len(currents), len(currents[0]), -1)
    timesteps, samples, neurons = flat.shape
    assert flat.min() >= -(1 << (BITS - 1))
    assert flat.max() < 1 << (BITS - 1)
    digits = (flat[..., None] >> np.arange(BITS)) & 1
    weight = np.kron(np.eye(neurons, dtype=int), np.append(1 << np.arange(BITS - 1), -(1 << (BITS - 1))))
    source = Layer(
        *("source", (neurons * BITS,), (Edge(INPUT, Dense(np.zeros((neurons * BITS, 1), int))),), 1),
        *(np.zeros(neurons * BITS, int), np.zeros((timesteps, neurons * BITS), int)),
    )
    schedule = np.zeros((timesteps, *(shape if per_neuron else shape[:1])), int) if bias is None else np.array(bias)
    layer = Layer(
        *("layer", shape, (Edge("source", Dense(weight)),), 0 if readout else theta),
        *(np.broadcast_to(v0, shape[:1]), schedule, "readout" if readout else "spiking"),
    )
    edge = Edge("layer", Dense(np.ones((1, neurons), int)))
    end = Layer("end", (1,), (edge,), 0, [0], np.zeros((timesteps, 1), int), "readout")
    network = Network(Input((1,)), (source, layer) if readout else (source, layer, end), timesteps)
    spikes = torch.from_numpy(digits.reshape(timesteps, samples, -1).astype(np.uint8))
    wanted = torch.tensor(target, dtype=torch.float32).reshape(samples, *shape)
    return Batch(network, layer, {"source": spikes}, wanted, limit, per_neuron)


def distinct_currents(seed: int, timesteps: int, samples: int, neurons: int) -> np.ndarray:
    """Currents that no two neurons share, the same at every step; up to 200 also differ in what 1000s leave of sums."""
    currents = np.random.default_rng(seed).permutation(samples * neurons) * 7 - 400
    return np.tile(currents.reshape(1, samples, neurons), (timesteps, 1, 1))


# ---- the bias that makes the cheapest number fire --------------------------------------------------------------------


def wanting(rho: float, n: int) -> Tensor:
    """The cost of k = 0..n spikes where ``rho * n`` are wanted, (1, n + 1)."""
    return (torch.arange(n + 1) - rho * n).abs()[None]


@pytest.mark.parametrize(
    ("rho", "bias"),
    [
        (0.5, 3),  # two of four: 7 + b >= 10 and 4 + b < 10, so b in 3..5
        (0.25, 1),  # one: 1..2
        (0.75, 6),  # three: 6..8
        (0.0, 0),  # none: any b <= 0
        (1.0, 9),  # all: b >= 9
        (0.4, 3),  # 1.6 wanted, and 2 is nearer than 1
        (0.375, 1),  # 1.5 wanted: 1 and 2 are equally near, and 1 is nearer to 0 than 3
    ],
)
def test_the_bias_is_the_smallest_that_lets_the_wanted_number_fire(rho: float, bias: int) -> None:
    assert cheapest_bias(torch.tensor([[9, 7, 4, 1]]), wanting(rho, 4), 10).tolist() == [bias]


@pytest.mark.parametrize(("rho", "bias"), [(0.0, -6), (0.5, -3), (1.0, 0)])
def test_a_bias_is_negative_where_too_many_would_fire(rho: float, bias: int) -> None:
    # None of 15 and 12 may reach 10: b <= -6. Only the first: -5..-3. Both: b >= -2, and 0 is nearest.
    assert cheapest_bias(torch.tensor([[15, 12]]), wanting(rho, 2), 10).tolist() == [bias]


def test_equal_potentials_fire_together_and_the_nearer_count_wins() -> None:
    # 5, 5, 5, 0: only 0, 3 or 4 can fire. Two wanted: 3 is nearer than 0, so b >= 5 and 0 + b < 10.
    v = torch.tensor([[5, 5, 5, 0]])
    assert cheapest_bias(v, wanting(0.5, 4), 10).tolist() == [5]
    assert cheapest_bias(v, wanting(0.3, 4), 10).tolist() == [0]  # 1.2 is nearer to 0 than to 3
    # However little it costs, no bias lets exactly two of three equal ones fire.
    assert cheapest_bias(v, torch.tensor([[0.0, -9, -9, -1, 0]]), 10).tolist() == [5]


def test_every_channel_gets_a_bias_of_its_own() -> None:
    v = torch.tensor([[9, 1], [9, 1], [30, 20]])
    assert cheapest_bias(v, torch.cat([wanting(0.5, 2), wanting(1.0, 2), wanting(0.0, 2)]), 10).tolist() == [1, 9, -21]


@settings(max_examples=200, derandomize=True, deadline=None)
@given(st.lists(st.integers(-30, 30), min_size=1, max_size=12), st.integers(1, 20), st.randoms(use_true_random=False))
def test_no_integer_bias_is_cheaper_and_none_as_cheap_is_nearer_to_0(
    values: list[int], theta: int, random: Any
) -> None:
    v, costs = np.sort(values)[::-1].copy(), [random.randint(-3, 3) for _ in range(len(values) + 1)]
    chosen = int(cheapest_bias(torch.from_numpy(v)[None], torch.tensor([costs]).double(), theta)[0])
    cost = {b: costs[np.count_nonzero(v + b >= theta)] for b in range(-80, 81)}
    assert cost[chosen] == min(cost.values())
    assert abs(chosen) == min(abs(b) for b, c in cost.items() if c == cost[chosen])


@pytest.mark.parametrize("reach", [3, 1000])  # levels are counted, or sorted
def test_every_potential_stands_at_a_level_of_its_value_in_its_group(reach: int) -> None:
    potentials = torch.from_numpy(np.random.default_rng(0).integers(-reach, reach, (5, 40)))
    levels, places = rules._levels(potentials)
    assert (levels.diff(dim=1) <= 0).all()
    assert torch.equal(levels.flatten()[torch.from_numpy(places)].reshape(40, 5).T, potentials)
    assert (levels.shape[1] == 2 * reach) == (reach == 3)
    assert torch.equal(torch.from_numpy(places).reshape(40, 5) // levels.shape[1], torch.arange(5).expand(40, 5))


# ---- rules, by hand --------------------------------------------------------------------------------------------------


def test_none_keeps_the_trained_bias() -> None:
    # v = 400 + 100 at each step: 500, then 1000, which fires.
    batch = arriving([[400], [400], [400]], [[0.4]], bias=[[100]] * 3)
    layer, spikes = rules.none(batch)
    assert layer == batch.layer
    assert spikes.flatten().tolist() == [0, 1, 0]


def test_static_adds_the_mean_shortfall_times_theta_at_every_step() -> None:
    # Channel 0: nothing fires, 1/2 and 1/4 are wanted: 3/8 spikes of theta = 1000 a step. Channel 1: 1000 arrive at
    # every step and fire, 1/2 is wanted of both samples: 500 less.
    currents = [[[0, 1000], [0, 1000]]] * 4
    layer, spikes = rules.static(arriving(currents, [[0.5, 0.5], [0.25, 0.5]], shape=(2,), bias=[[8, 0]] * 4))
    assert layer.bias.tolist() == [[383, -500]] * 4
    # 383, 766, 1149, 532; 500, then 1000, which fires.
    assert spikes[:, 0].tolist() == [[0, 0], [0, 1], [1, 0], [0, 1]]


def test_static_spreads_fractions_of_a_synaptic_unit_over_the_steps() -> None:
    # A quarter of theta = 10 is missing: 2.5, 5, 7.5 and 10 in all, halves to even.
    layer, _ = rules.static(arriving([[0]] * 4, [[0.25]], theta=10))
    assert layer.bias.tolist() == [[2], [3], [3], [2]]


def test_potential_adds_what_the_whole_window_lacks_to_the_first_row() -> None:
    # 3/8 of 4 spikes of theta = 1000 are missing: 1500 at once.
    batch = arriving([[0, 0]] * 4, [[0.5], [0.25]], bias=[[1], [2], [3], [4]])
    layer, spikes = rules.potential(batch)
    assert layer.bias.tolist() == [[1501], [2], [3], [4]]
    assert spikes.flatten(1).tolist() == [[1, 1], [0, 0], [0, 0], [0, 0]]
    assert torch.equal(spikes, batch.fire(replace(batch.layer, v0=[1500])))


def test_a_rule_counts_no_target_beyond_one_spike_a_step() -> None:
    for rule in (rules.static, rules.potential, rules.ftbc):
        batch = arriving([[1000]] * 3, [[7.0]])
        assert rule(batch)[0] == batch.layer  # fires at every step, and more than that it cannot


def test_ftbc_moves_the_bias_from_the_estimate_towards_the_target() -> None:
    # Nobody fires, all should: one update adds alpha * theta = 0.2 * 1000. v = 500 - 600, so that the updates stop
    # once b reaches 1100, at the sixth of ten.
    layer, _ = rules.ftbc(arriving([[-600] * 4], [[1.0]] * 4, v0=500))
    assert layer.bias.tolist() == [[1200]]
    # All fire, nobody should: -200 each, until 1500 + b < 1000.
    layer, _ = rules.ftbc(arriving([[1500] * 4], [[0.0]] * 4))
    assert layer.bias.tolist() == [[-600]]


def test_ftbc_corrects_a_step_on_potentials_that_the_steps_before_have_already_corrected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One round. Step 0: silent, wanted: b = +200, applied at once. Step 1: 800 + 200 = 1000 fires, as wanted.
    monkeypatch.setattr(rules, "FTBC_ITERATIONS", 1)
    layer, spikes = rules.ftbc(arriving([[0], [800]], [[1.0]]))
    assert layer.bias.tolist() == [[200], [0]]
    assert spikes.flatten().tolist() == [0, 1]


def test_ftbc_looks_at_so_many_batches_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "FTBC_ITERATIONS", 1)
    monkeypatch.setattr(rules, "FTBC_BATCH", 2)
    # Batch 0 lacks two spikes of two: +200. Batch 1 lacks one of two: +100. Of the last two of five samples for two
    # batches of two, the first is left out.
    layer, _ = rules.ftbc(arriving([[0] * 5], [[1.0], [1.0], [1.0], [1.0], [0.0]]))
    assert layer.bias.tolist() == [[300]]


def test_exact_lets_as_many_fire_as_are_wanted_on_average() -> None:
    # Step 0: 9, 7, 4, 1 and two of four wanted: b = 3. Left: 2, 0, 7, 4. Step 1 brings 0, 5, 0, 0: 2, 5, 7, 4, and
    # b = 5 lifts 5 and 7 to theta, not 4.
    layer, spikes = rules.exact(arriving([[9, 7, 4, 1], [0, 5, 0, 0]], [[1.0], [0.0], [0.9], [0.1]], theta=10))
    assert layer.bias.tolist() == [[3], [5]]
    assert spikes.flatten(1).tolist() == [[1, 1, 0, 0], [0, 1, 1, 0]]


def test_mse_lets_those_fire_whose_running_sum_gains_by_it() -> None:
    # Step 0: to fire costs 1 - 2 * 0.75 = -0.5 and 1 - 2 * 0.5 = 0. The first alone: 8 + b >= 10 > 3 + b, so 2.
    # Step 1: the sums shall be 1.5 and 1. Potentials 0 + 8 and 5 + 4; to fire again costs 1 + 2 * (1 - 1.5) = 0, for
    # the first time 1 - 2 * 1 = -1. The second alone: 9 + b >= 10 > 8 + b.
    layer, spikes = rules.mse(arriving([[8, 3], [8, 4]], [[0.75], [0.5]], theta=10))
    assert layer.bias.tolist() == [[2], [1]]
    assert spikes.flatten(1).tolist() == [[1, 0], [0, 1]]


def test_a_potential_equal_to_theta_counts_as_fired() -> None:
    # 10 fires as it is, as wanted: b = 0. Its sum of 1 is what 2 steps of 1/2 ask for, so it shall not fire again.
    layer, spikes = rules.mse(arriving([[10], [10]], [[0.5]], theta=10))
    assert spikes.flatten().tolist() == [1, 0]
    assert layer.bias.tolist() == [[0], [-1]]


def test_an_activation_beyond_the_threshold_asks_for_one_spike_a_step_and_no_more() -> None:
    # 3 is wanted of the neuron at 1, none of the one at 3. One spike on average: 3 + b >= 10 > 1 + b.
    batch = arriving([[1, 3]], [[3.0], [0.0]], theta=10)
    assert rules.exact(batch)[0].bias.tolist() == [[7]]
    # Both firing costs -1 and +1, which is as much as neither does.
    assert rules.mse(batch)[0].bias.tolist() == [[0]]


@pytest.mark.parametrize("rule", [rules.exact, rules.mse])
def test_a_silent_channel_keeps_its_trained_bias(rule: rules.Rule) -> None:
    batch = arriving([[0, 0]] * 3, [[0.0]] * 2, bias=[[-5], [3], [-7]])
    assert rule(batch)[0] == batch.layer


def test_the_readout_is_corrected_to_the_mean_logit_at_every_step() -> None:
    # Two samples with currents of 4 on average at each step; the mean logit is 10 a step.
    batch = arriving([[2, 6], [4, 4], [0, 8]], [[5.0], [15.0]], v0=3, readout=True)
    layer, _ = rules.readout(batch)
    # Offsets 6, 12, 18 make the means 10, 20, 30; v0 = 3 is part of the first.
    assert layer.bias.tolist() == [[3], [6], [6]]
    assert rules.arrived(batch).tolist() == [3 + 4 + 4 + 4]


def test_a_readouts_bias_that_differs_over_space_keeps_its_differences() -> None:
    # Currents of 4 on average; biases of 1 and 3 at the two places, and 10 wanted at each step.
    batch = arriving(
        [[[2, 6], [4, 4]]] * 2,
        [[[[10.0, 10.0]]], [[[10.0, 10.0]]]],
        bias=[[[[1, 3]]]] * 2,
        shape=(1, 1, 2),
        readout=True,
    )
    layer, _ = rules.readout(batch)
    assert layer.bias.tolist() == [[[[5, 7]]], [[[5, 7]]]]


# ---- rules, by brute force -------------------------------------------------------------------------------------------


def cost_of_mean(fired: np.ndarray, sums: np.ndarray, a: np.ndarray, tau: int) -> Any:
    return np.abs(fired.sum() - a.sum())


def cost_of_running_sum(fired: np.ndarray, sums: np.ndarray, a: np.ndarray, tau: int) -> Any:
    return ((sums + fired - (tau + 1) * a) ** 2).sum()


@pytest.mark.parametrize(
    ("rule", "cost"), [(rules.exact, cost_of_mean), (rules.mse, cost_of_running_sum)], ids=["exact", "mse"]
)
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data(), per_neuron=st.booleans())
def test_at_every_step_no_bias_costs_less_from_the_same_state(
    rule: rules.Rule, cost: Any, data: st.DataObject, per_neuron: bool
) -> None:
    """Two channels of two neurons; targets in eighths, so that every cost is exact."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    timesteps, samples = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    theta, shape = int(rng.integers(1, 30)), (2, 1, 2)
    currents = rng.integers(-40, 41, (timesteps, samples, *shape))
    a = rng.integers(0, 9, (samples, *shape)) / 8
    v0 = rng.integers(-20, 20, 2)
    trained = rng.integers(-10, 10, (timesteps, *(shape if per_neuron else shape[:1])))
    layer, spikes = rule(arriving(currents, a, theta, v0=v0, bias=trained, shape=shape, per_neuron=per_neuron))
    v, sums = np.broadcast_to(v0[:, None, None], (samples, *shape)), np.zeros((samples, *shape))
    for tau in range(timesteps):
        v = v + currents[tau]
        rows, others = (layer.per_neuron(np.asarray(b[tau])) for b in (layer.bias, trained))
        for place in np.ndindex(shape) if per_neuron else ((0,), (1,)):
            here = (slice(None), *place)
            before, chosen = others[place].flat[0], rows[place].flat[0]
            costs = {
                b: cost((v[here] + b >= theta).astype(int), sums[here], a[here], tau)
                for b in range(before - 300, before + 301)
            }
            assert costs[chosen] == min(costs.values())
            assert abs(chosen - before) == min(abs(b - before) for b, c in costs.items() if c == costs[chosen])
        v = v + rows
        fired = (v >= theta).astype(int)
        assert np.array_equal(fired, spikes[tau])
        v, sums = v - theta * fired, sums + fired


@pytest.mark.parametrize("seed", range(5))
def test_exact_meets_the_mean_activation_to_within_one_sample_at_every_step(seed: int) -> None:
    currents = distinct_currents(seed, 6, 50, 4)
    target = np.clip(currents[0] / 1000, 0, 1)
    _, spikes = rules.exact(arriving(currents, target, v0=500, shape=(1, 2, 2)))
    assert ((spikes.flatten(1).sum(1) - target.sum()).abs() <= 1).all()


def unevenly() -> Batch:
    """Evidence that comes late at first, then too much of it."""
    currents = distinct_currents(1, 6, 300, 1)
    currents[0] //= 4
    currents[3] *= 2
    return arriving(currents, np.clip(currents.mean(0) / 1000 + 0.1, 0, 1), v0=500)


@pytest.mark.parametrize("rule", ["ftbc", "exact"])
def test_the_mean_output_of_every_step_comes_nearer_to_the_activations(rule: str) -> None:
    batch = unevenly()
    before, after = ((r(batch)[1].double().mean((1, 2)) - batch.target.mean()).abs() for r in (rules.none, RULES[rule]))
    assert after.mean() < before.mean() / 5
    assert rule == "ftbc" or after.max() * 300 <= 0.5 + 1e-6  # 300 neurons: to half a spike


@pytest.mark.parametrize("rule", ["static", "potential", "mse"])
def test_the_spikes_of_the_whole_window_come_nearer_to_the_activations(rule: str) -> None:
    batch = unevenly()
    before, after = (r(batch)[1].float().mean(0) - batch.target for r in (rules.none, RULES[rule]))
    assert after.mean().abs() < before.mean().abs() / 1.5
    assert after.square().mean() < before.square().mean() / 1.2


# ---- schedules -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [0, 300])
def test_the_schedule_stays_inside_the_bias_register(trained: int) -> None:
    # What the trained bias was does not count: the schedule takes its place.
    batch = arriving([[-3000] * 4] * 3, [[1.0]] * 4, v0=500, limit=4095, bias=[[trained]] * 3)
    layer, _ = rules.exact(batch)
    assert layer.offsets.flatten().tolist() == [4000, 4095, 4095]


def test_a_bias_that_comes_at_once_is_all_of_it_and_stays_inside_the_register() -> None:
    bias = np.arange(24).reshape(3, 2, 2, 2)
    layer, _ = rules.once(arriving([[[[[0, 0], [0, 0]]] * 2]] * 3, np.zeros((1, 2, 2, 2)), bias=bias, shape=(2, 2, 2)))
    assert np.array_equal(layer.bias[0], bias.sum(0))
    assert not layer.bias[1:].any()
    layer, _ = rules.once(arriving([[0]] * 3, [[0.0]], v0=500, limit=900, bias=[[300]] * 3))
    assert layer.offsets.flatten().tolist() == [900] * 3


@pytest.mark.parametrize("rule", CORRECTING)
@pytest.mark.parametrize("per_neuron", [False, True])
def test_no_rule_leaves_the_bias_register_and_all_return_the_spikes_of_their_schedule(
    rule: str, per_neuron: bool
) -> None:
    currents = distinct_currents(2, 5, 20, 4).reshape(5, 20, 1, 2, 2) - 2000
    batch = arriving(currents, np.full((20, 1, 2, 2), 0.7), shape=(1, 2, 2), limit=900, per_neuron=per_neuron, v0=300)
    layer, spikes = RULES[rule](batch)
    assert np.abs(layer.offsets).max() == 900
    assert layer.bias.shape == ((5, 1, 2, 2) if per_neuron else (5, 1))
    assert torch.equal(spikes, batch.fire(layer))


@pytest.mark.parametrize(("rule", "peak"), [("none", 12000), ("static", 8000), ("potential", 9000)])
def test_only_the_schedule_that_is_kept_counts_as_reached(rule: str, peak: int) -> None:
    # -3000 a step, and a spike of 1000 is wanted at each: 1000 more a step, or 4000 at once, of which one spike comes.
    batch = arriving([[0]] * 4, [[1.0]], bias=[[-3000]] * 4)
    registers = Registers(batch.network, LOIHI2, "strict")
    RULES[rule](replace(batch, registers=registers))
    assert registers.peak["layer"] == peak


@pytest.mark.parametrize("rule", CORRECTING)
def test_a_bias_that_differs_over_space_keeps_its_pattern(rule: str) -> None:
    bias = np.arange(8).reshape(2, 1, 2, 2)
    # 25 samples of 4 neurons: FTBC's updates of 0.2 * 1000 * k / 100 leave no half to be rounded this way or that.
    batch = arriving(distinct_currents(0, 2, 25, 4), np.full((25, 4), 0.75), v0=500, bias=bias, shape=(1, 2, 2))
    moved = RULES[rule](batch)[0].bias - bias
    assert (moved == moved[:, :, :1, :1]).all()
    assert moved.any()


@settings(max_examples=40, derandomize=True, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_bias_for_every_neuron_costs_no_more_than_one_for_the_channel(seed: int) -> None:
    """In one step, where the state before it is the same."""
    rng = np.random.default_rng(seed)
    shape, samples = (2, 2, 1), int(rng.integers(1, 8))
    currents, a = rng.integers(-20, 40, (1, samples, *shape)), rng.random((samples, *shape))
    error = []
    for per_neuron in (True, False):
        _, spikes = rules.mse(arriving(currents, a, 16, shape=shape, per_neuron=per_neuron))
        error.append(float(((spikes[0] - a) ** 2).sum()))
    assert error[0] <= error[1] + 1e-9


@pytest.mark.parametrize("rule", [rules.exact, rules.mse])
def test_statistics_of_large_layers_come_from_the_sampled_places_alone(
    rule: rules.Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    currents = np.random.default_rng(0).integers(-500, 1500, (3, 40, 1, 5, 5))
    target = np.clip(currents.mean(0) / 1000, 0, 1)
    monkeypatch.setattr(batches, "positions", lambda shape: positions(shape, most=100))
    batch = arriving(currents, target, shape=(1, 5, 5), bias=np.arange(75).reshape(3, 1, 5, 5))
    samples, places = positions((40, 1, 5, 5), most=100)
    assert len(samples) < 120
    bias = np.arange(75).reshape(3, 25)
    # The same neurons as samples of a population of one, what they have of the pattern in their currents.
    chosen = (currents.reshape(3, 40, 25) + bias[:, None])[:, samples, places]
    alone = arriving(chosen, target.reshape(40, 25)[samples, places])
    assert np.array_equal(rule(alone)[0].bias[:, :, None, None] + bias.reshape(3, 1, 5, 5), rule(batch)[0].bias)


# ---- the whole network -----------------------------------------------------------------------------------------------


def outlier() -> tuple[nn.Module, Tensor]:
    """A model whose scales are chosen on harmless inputs, and inputs of which one is not: the last but one of 257."""
    model = nn.Sequential(nn.Linear(16, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))  # type: ignore[operator, union-attr]
    x = torch.eye(16).repeat(16, 1)
    return model, torch.cat([x[:-1], torch.ones(1, 16), x[-1:]])


@pytest.mark.parametrize("method", RULES)
def test_calibration_data_that_overflows_is_refused_with_the_place_whatever_the_rule(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = outlier()
    said = "1 of 257 calibration inputs (255)"
    assert convert(model, x, method=method, weights="nearest").assumed[-1].startswith(said)
    monkeypatch.setattr(outliers, "FEWEST", len(x) + 1)  # as if it were one of few
    with pytest.raises(Refused, match=r"calibration: layer 0, channel 0, step \d+: v = -\d+ leaves the register of"):
        convert(model, x, method=method, weights="nearest")
    convert(model, torch.cat([x[:-2], x[-1:]]), method=method, weights="nearest")


def test_potentials_of_more_than_32_bit_are_not_wrapped_where_a_bias_takes_them_there() -> None:
    # Two steps of 2**30 - 1 are 2**31 - 2, and the bias that the other neuron needs takes them beyond 2**31.
    weight = np.array([[(1 << 30) - 1], [0]])
    hidden = Layer("layer", (1, 2, 1), (Edge(INPUT, Dense(weight)),), 1 << 29, [0], np.zeros((2, 1), int), holdoff=1)
    end = Layer("end", (1,), (Edge("layer", Dense([[1, 1]])),), 0, [0], np.zeros((2, 1), int), "readout")
    network = Network(Input((1,), bits=2), (hidden, end), 2)
    outputs = {INPUT: torch.ones(1, 1, dtype=torch.int32)}
    _, spikes = rules.exact(Batch(network, hidden, outputs, torch.ones(1, 1, 2, 1), WIDE.bias_limit))
    assert spikes[0].flatten().tolist() == [1, 1]
