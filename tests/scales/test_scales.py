"""Thresholds and integer weights, against numbers computed by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sim import chip, fast
from sim.chip import LOIHI2, WIDE
from sim.findings import Refused
from sim.network import INPUT, Geometry, Network
from toolchain.graph import FloatConv2d, FloatDense, FloatEdge, FloatGraph, FloatLayer
from toolchain.graph.channels import positions, sampled
from toolchain.recipe import Recipe
from toolchain.scales import integers, plan, thresholds
from toolchain.scales.plan import Scales


def test_the_maximum_and_the_percentile_are_taken_per_channel() -> None:
    a = torch.stack([torch.arange(1000.0), torch.arange(1000.0) * 2], dim=1)  # (samples, channels)
    assert thresholds.choose("max", a, 8).tolist() == [999, 1998]
    assert thresholds.choose("percentile", a, 8).tolist() == [998, 1996]


def test_the_mse_rule_clips_an_outlier_that_the_maximum_follows() -> None:
    a = torch.cat([torch.linspace(0, 1, 999), torch.tensor([10.0])])[:, None]
    assert thresholds.choose("max", a, 4).item() == 10
    theta = thresholds.choose("mse", a, 4)
    assert theta.item() < 5
    errors = [thresholds.quantisation_error(a.T, torch.tensor([k / 10]), 4).item() for k in range(1, 101)]
    assert thresholds.quantisation_error(a.T, theta, 4).item() <= min(errors) * (1 + 1e-6)


def test_the_staircase_rounds_to_the_nearest_number_of_spikes() -> None:
    # theta 8, T 4: steps of 2. 3 rounds up to 4, 2.9 to 2, 20 is clipped to 8, -1 to 0.
    a = torch.tensor([[3.0, 2.9, 20.0, -1.0]])
    assert thresholds.quantisation_error(a, torch.tensor([8.0]), 4).item() == pytest.approx((1 + 0.81 + 144 + 1) / 4)


def test_a_silent_channel_gets_the_largest_threshold_and_a_silent_layer_one() -> None:
    assert thresholds.choose("max", torch.tensor([[0.0, 3.0]]), 8).tolist() == [3, 3]
    assert thresholds.choose("mse", torch.zeros(4, 2), 8).tolist() == [1, 1]


def rare(place: int, value: float) -> torch.Tensor:
    """Two channels of 200 maps of 20 x 20, of which the first is positive at one place of one map only."""
    a = torch.rand(200, 2, 400, generator=torch.Generator().manual_seed(0))
    a[:, 0] = 0
    a[77, 0, place] = value
    return a.reshape(200, 2, 20, 20)


@pytest.mark.parametrize("place", range(10))  # about every fifth value is sampled
@pytest.mark.parametrize("rule", ["mse", "percentile", "max"])
def test_a_channel_that_fires_once_has_the_threshold_that_draws_it_whether_it_is_sampled_or_not(
    place: int, rule: str
) -> None:
    theta = thresholds.choose(rule, rare(place, 10.0), 4)
    # All that one spike a step can say, without an error and as finely as possible; 10 / 100 would clip it to 0.1.
    assert theta[0].item() == pytest.approx(10)
    assert theta[1].item() == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("rule", ["mse", "percentile"])
def test_zeros_between_the_values_of_a_rare_channel_do_not_change_its_threshold(rule: str) -> None:
    values = torch.linspace(0.5, 1, 40)
    a = torch.zeros(80_000)
    a[torch.randperm(80_000, generator=torch.Generator().manual_seed(1))[:40]] = values
    theta = thresholds.choose(rule, a.reshape(200, 1, 20, 20), 4)
    assert theta.tolist() == thresholds.choose(rule, values[:, None], 4).tolist()


def test_an_unknown_threshold_rule_is_refused() -> None:
    with pytest.raises(Refused, match="unknown rule 'median'; use one of max, percentile, mse"):
        thresholds.choose("median", torch.ones(1, 1), 8)


@pytest.mark.parametrize(
    ("shape", "most", "spacing"),
    [
        ((600, 3, 32, 32), 19200, 33),  # 614400 // 19200 = 32, an image's width: one column would be looked at
        ((3000, 2, 7, 7), 21000, 8),  # 7 is odd, and a width too
        ((500, 1, 15, 12), 1000, 91),  # 90 passes over every sixth column only
        ((40, 1, 33, 33), 18000, 2),
        ((9, 1, 210, 1), 1000, 1),
    ],
)
def test_thinned_images_are_looked_at_in_every_row_and_column_and_evenly_over_the_samples(
    shape: tuple[int, ...], most: int, spacing: int
) -> None:
    samples, places = positions(shape, most)
    assert len(samples) == -(-shape[0] * shape[2] * shape[3] // spacing)
    assert len(torch.unique(places // shape[3])) == shape[2]
    assert len(torch.unique(places % shape[3])) == shape[3]
    counts = torch.bincount(samples, minlength=shape[0])
    assert counts.max() - counts.min() <= 1


def test_nothing_is_left_out_where_there_is_little() -> None:
    samples, places = positions((5, 3, 4, 6), most=120)
    assert (samples * 24 + places).tolist() == list(range(120))
    samples, places = positions((7, 3))
    assert (samples.tolist(), places.tolist()) == (list(range(7)), [0] * 7)
    x = torch.arange(5.0 * 3 * 4 * 6).reshape(5, 3, 4, 6)
    assert torch.equal(sampled(x), x.transpose(0, 1).reshape(3, -1))


def test_source_thresholds_multiply_the_weights_of_their_channel() -> None:
    unit = torch.tensor([2.0, 3.0])
    dense = FloatDense(torch.ones(1, 8))  # a (2, 2, 2) source: four neurons of channel 0, then four of channel 1
    assert plan.scaled(dense, unit, (2, 2, 2)).tolist() == [[2, 2, 2, 2, 3, 3, 3, 3]]
    full = FloatConv2d(torch.ones(3, 2, 1, 1))
    assert plan.scaled(full, unit, (2, 4, 4))[:, :, 0, 0].tolist() == [[2, 3]] * 3
    # Outputs 0 and 1 read channel 0, outputs 2 and 3 channel 1.
    grouped = FloatConv2d(torch.ones(4, 1, 1, 1), Geometry(groups=2))
    assert plan.scaled(grouped, unit, (2, 4, 4))[:, 0, 0, 0].tolist() == [2, 2, 3, 3]


def test_integer_weights_are_scaled_rounded_and_clipped() -> None:
    edge = FloatEdge("a", FloatDense(torch.tensor([[0.26, -0.5], [1.0, 100.0]])))
    made = integers.integer_edge(edge, torch.tensor([1.0, 2.0]), torch.tensor([10.0, 1.0]), (2,), LOIHI2, (2,))
    # Row 0: 0.26*1*10 = 2.6, -0.5*2*10 = -10. Row 1: 1, and 200 clipped to 127.
    assert made.synapse.weight.tolist() == [[3, -10], [1, 127]]


@pytest.mark.parametrize("beta", [0.4, -2.7, 3.0])
def test_the_trained_bias_is_spread_over_the_steps_without_drift(beta: float) -> None:
    schedule = integers.bias_schedule(torch.tensor([beta]), 8)
    assert schedule.shape == (8, 1)
    assert np.array_equal(np.cumsum(schedule), np.rint(beta * np.arange(1, 9)))


def test_every_threshold_on_offer_is_a_legal_recurrent_weight() -> None:
    offered = plan.legal_thresholds(LOIHI2, LOIHI2.threshold_limit)
    assert len(offered) > 40
    assert min(offered) == 8
    assert max(offered) > 27000  # the next quarter octave is 255.5 * 2**7
    assert all(LOIHI2.recurrent(theta) for theta in offered)


def graph(weight: torch.Tensor, bias: torch.Tensor, readout: torch.Tensor) -> FloatGraph:
    hidden = FloatLayer("a", (len(weight),), (FloatEdge(INPUT, FloatDense(weight)),), bias)
    out = FloatLayer(
        "out", (len(readout),), (FloatEdge("a", FloatDense(readout)),), torch.zeros(len(readout)), "readout"
    )
    return FloatGraph((weight.shape[1],), (hidden, out))


def quantised(
    net: FloatGraph,
    x: torch.Tensor,
    limits: chip.Chip,
    **options: Any,
) -> tuple[Network, Scales]:
    recipe = Recipe(chip="wide" if limits is WIDE else "loihi2", **options)
    scales = plan.choose_scales(net, x, recipe)
    return integers.build(net, scales, recipe), scales


def test_no_weight_is_clipped_because_thresholds_give_way() -> None:
    # Channel 1 has a weight a thousand times its activations: its threshold must rise, not its weight be cut.
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 4, generator=generator)
    weight = torch.rand(3, 4, generator=generator) - 0.3
    readout = torch.tensor([[1.0, 1000.0, 1.0]])
    hidden = FloatLayer(
        "b",
        (2,),
        (FloatEdge("a", FloatDense(torch.tensor([[0.5, 900.0, 0.5], [1.0, 1.0, 1.0]]))),),
        torch.tensor([-300.0, 0.0]),
    )
    base = graph(weight, torch.zeros(3), readout)
    out = FloatLayer("out", (1,), (FloatEdge("b", FloatDense(torch.ones(1, 2))),), torch.zeros(1), "readout")
    net = FloatGraph(base.input_shape, (base.layers[0], hidden, out))
    network, scales = quantised(net, x, LOIHI2)
    for made, source in ((network["b"], "a"), (network["a"], INPUT), (network["out"], "b")):
        unit = torch.tensor(1 / network.input.scale) if source == INPUT else scales[source].theta
        float_layer = next(layer for layer in net.layers if layer.name == made.name)
        ideal = plan.scaled(float_layer.edges[0].map, unit, net.shapes[source]) * scales[made.name].su[:, None]
        assert np.abs(made.edges[0].synapse.weight - ideal.numpy()).max() <= 0.5 + 1e-4
    assert not chip.check(network)


def test_one_large_bias_costs_its_own_channel_resolution_and_no_other() -> None:
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    one = graph(torch.eye(4), torch.tensor([-0.5, 0, 0, 0]), torch.eye(4))
    network, scales = quantised(one, x, LOIHI2, timesteps=64)
    # Over 64 steps, with half as much again to spare, a bias of 0.5 and the half threshold stay in +-4095.
    most = 4095 / (0.5 * 64 * 1.5)
    assert scales["a"].su[0] < most
    assert scales["a"].su[1:].min() > 2 * most
    assert not chip.check(network)


@pytest.mark.parametrize("form", ["payload", "currents"])
@pytest.mark.parametrize("factor", [0.0, 1.0, 30.0, 1e5])
def test_a_channel_that_never_fires_costs_the_others_nothing_whatever_its_weights_are(factor: float, form: str) -> None:
    """As batch normalisation makes them that divides a dead channel by next to nothing."""
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.rand(64, 6, generator=generator), torch.rand(5, 6, generator=generator) - 0.3

    def scales(factor: float) -> tuple[Network, Scales]:
        dead, bias = weight.clone(), torch.zeros(5)
        dead[2] *= factor
        bias[2] = -10 * factor
        base = graph(dead, bias, torch.rand(3, 4, generator=torch.Generator().manual_seed(1)) - 0.5)
        readers = FloatDense(torch.rand(4, 5, generator=torch.Generator().manual_seed(2)) - 0.4)
        hidden = FloatLayer("b", (4,), (FloatEdge("a", readers),), torch.zeros(4))
        out = replace(base.layers[1], edges=(replace(base.layers[1].edges[0], source="b"),))
        return quantised(FloatGraph(base.input_shape, (base.layers[0], hidden, out)), x, LOIHI2, input_form=form)

    (network, found), (_, plain) = scales(factor), scales(0.0)
    alive = [0, 1, 3, 4]
    assert found.unit == plain.unit
    assert found["a"].threshold == plain["a"].threshold
    assert torch.equal(found["a"].su[alive], plain["a"].su[alive])
    for name in ("b", "out"):
        assert torch.equal(found[name].su, plain[name].su)
    assert not chip.check(network)
    trace = fast.run(network, network.input.encode(x.numpy()), chip=LOIHI2, overflow="strict")
    assert trace.spikes["a"][..., 2].sum() == 0


def test_wide_registers_get_finer_weights_than_the_chip() -> None:
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    net = graph(torch.eye(4), torch.zeros(4), torch.eye(4))
    narrow, wide = (quantised(net, x, limits)[0] for limits in (LOIHI2, WIDE))
    assert np.abs(narrow["a"].edges[0].synapse.weight).max() <= 127
    assert np.abs(wide["a"].edges[0].synapse.weight).max() > 1000
    assert not chip.check(wide, WIDE)


def test_a_layer_that_fits_no_register_is_refused_by_name() -> None:
    # A bias a million times the activation that survives it: T of them leave any bias register.
    net = graph(torch.eye(1) * 1e6, torch.tensor([-999_999.0]), torch.eye(1))
    with pytest.raises(Refused, match="a: no integer threshold keeps potentials and biases inside Loihi 2's registers"):
        quantised(net, torch.ones(4, 1), LOIHI2)


def test_the_threshold_of_a_bounded_activation_is_what_the_rule_finds_inside_the_bound() -> None:
    # ReLU6 on inputs up to 1: to spread T steps over 0..6 would waste most of them.
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    net = graph(torch.eye(4), torch.zeros(4), torch.eye(4))
    free = quantised(net, x, WIDE)[1]["a"].theta
    assert free.max() < 1.1

    def bounded(upper: float, **options: Any) -> list[float]:
        ends = FloatGraph(net.input_shape, (replace(net.layers[0], upper=upper, **options), net.layers[1]))
        return quantised(ends, x, WIDE)[1]["a"].theta.tolist()

    assert bounded(6.0) == free.tolist()
    # Half of what comes is cut off at 0.5, and a threshold below it would cut off more.
    assert bounded(0.5) == [0.5] * 4
    # The steps of a quantised activation are where its network was trained to have them.
    assert bounded(6.0, levels=4) == [6.0] * 4


def test_a_given_threshold_of_a_bounded_activation_is_taken_where_the_recipe_asks_for_it() -> None:
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    net = graph(torch.eye(4), torch.zeros(4), torch.eye(4))
    bounded = FloatGraph(net.input_shape, (replace(net.layers[0], upper=6.0), net.layers[1]))
    assert quantised(bounded, x, WIDE, threshold="given")[1]["a"].theta.tolist() == [6.0] * 4


def test_thresholds_of_channels_are_taken_as_they_are() -> None:
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    net, own = graph(torch.eye(4), torch.zeros(4), torch.eye(4)), torch.tensor([1.0, 2.0, 0.5, 1.5])
    bounded = FloatGraph(net.input_shape, (replace(net.layers[0], upper=own), net.layers[1]))
    assert quantised(bounded, x, WIDE, threshold="given")[1]["a"].theta.tolist() == own.tolist()
    assert torch.equal(bounded.run(x)["a"], torch.minimum(x, own))


# ---- registers -------------------------------------------------------------------------------------------------------


def planned(current: Any, theta: list[float], beta: list[float], **options: Any) -> plan.Plan:
    """Plan a layer for 8 steps on Loihi 2 that currents (B, C) reach whatever its weights are."""
    n = len(theta)
    net = graph(torch.full((n, 1), 1e-3), torch.tensor(beta), torch.eye(n))
    return plan.plan_layer(
        *(net, net.layers[0], torch.tensor(theta)),
        units={INPUT: torch.tensor(1.0)},
        values={INPUT: torch.ones(1, 1)},
        current=torch.tensor(current),
        recipe=Recipe(timesteps=8, threshold="max", **options),
    )


@pytest.mark.parametrize(
    ("current", "beta", "threshold"),
    [
        # 1.5 * 8 * su * 1000 + THETA < 131072: 120,010 at 10 su, 132,011 at 11.
        ([[1.0], [-1000.0]], 0.0, 10),
        # Above its threshold a neuron loses one a step: 999 stay, 119,890 at 10 su, 131,879 at 11.
        ([[1.0], [1000.0]], 0.0, 10),
        ([[1.0], [-992.4]], 0.0, 11),  # 131,007.8
        # u lacks the bias, 1.5 * 8 * 11 * 1 more: 131,139.8.
        ([[1.0], [-992.4]], 1.0, 10),
    ],
)
def test_the_threshold_is_the_finest_whose_potentials_stay_in_the_state_register(
    current: list[list[float]], beta: float, threshold: int
) -> None:
    assert planned(current, [1.0], [beta]).threshold == threshold


def test_the_threshold_itself_counts_among_what_the_state_register_holds() -> None:
    # 1.5 * 8 * 11 * 992.9 = 131,062.8 fits the register's 131,072, and 11 more do not.
    assert planned([[1.0], [-992.9]], [1.0], [0.0]).threshold == 10


def test_currents_that_the_host_brings_fit_the_bias_register_with_the_margin_to_spare() -> None:
    # 1.5 * 8 * su * 10 + THETA <= 4095: 3,872 at 32 su; the next legal threshold is 38.
    assert planned([[1.0], [-10.0]], [1.0], [0.0], input_form="currents").threshold == 32


@pytest.mark.parametrize("form", ["payload", "currents"])
def test_currents_of_a_channel_that_never_fires_raise_its_own_threshold_only(form: str) -> None:
    alone = planned([[1.0], [0.5]], [1.0], [0.0], input_form=form)
    beside = planned([[1.0, -1e6], [0.5, -1e5]], [1.0, 1.0], [0.0, 0.0], input_form=form)
    assert beside.threshold == alone.threshold
    assert beside.su[0] == alone.su[0]
    limit = 4095 if form == "currents" else 131072
    assert beside.su[1].item() == pytest.approx((limit - beside.threshold) / (1.5 * 8 * 1e6))
    assert beside.theta.tolist() == [1, 1]


def test_a_layer_that_never_fires_keeps_fine_weights() -> None:
    assert planned([[-1.0], [-0.5]], [1.0], [0.0]).threshold > 1000


@pytest.mark.parametrize(("shift", "unit"), [(False, 1.0), (True, 2**-6)])
def test_the_expected_error_of_a_weight_is_that_of_rounding_in_its_own_unit(shift: bool, unit: float) -> None:
    # The current is the threshold, which T spikes say exactly, and the payload is 1: what is left is one weight, of
    # which rounding to multiples of 2**-6 su takes a twelfth of the unit squared.
    made = planned([[1.0]], [1.0], [0.0], shift_input=shift)
    assert made.exponent == (-6 if shift else 0)
    assert made.cost == pytest.approx((unit / made.threshold) ** 2 / 12)


@pytest.mark.parametrize("beta", [10.0, -10.0])
def test_a_bias_fills_the_bias_register_beside_the_initial_potential_with_the_margin_to_spare(beta: float) -> None:
    # The second channel asks for a fine threshold, so the first has to give way.
    made = planned([[0.5, 100.0], [1.0, 50.0]], [1.0, 100.0], [beta, 0.0])
    assert made.threshold > 30
    assert made.su[0].item() == pytest.approx((4095 - made.threshold) / (1.5 * 8 * 10))
    assert made.theta[0].item() == pytest.approx(made.threshold / made.su[0].item())
    assert made.su[1].item() == pytest.approx(made.threshold / 100)


@pytest.mark.parametrize(
    ("task", "weight", "beta", "current", "su"),
    [
        ("classes", 0.127, 0.0, 1.0, 127 / 0.127),
        ("classes", 0.001, 1.0, 1.0, 4095 / (1.5 * 8)),
        ("classes", 0.001, 0.0, -100.0, 131072 / (1.5 * 8 * 100)),
        ("classes", 0.001, 10.0, 1000.0, 131072 / (1.5 * 8 * 1010)),
        ("regression", 0.127, 5.0, 6.0, 127 / 0.127),
        # Only what moves around the constant is held, beside a bias that may fill its register.
        ("regression", 0.001, 10.0, 1010.0, (131072 - 4095) / (1.5 * 8 * 1000)),
    ],
)
def test_a_readout_is_as_fine_as_weights_biases_and_potentials_allow(
    task: Any, weight: float, beta: float, current: float, su: float
) -> None:
    layer = FloatLayer("out", (1,), (FloatEdge("a", FloatDense(torch.full((1, 1), weight))),), torch.tensor([beta]))
    hidden = FloatLayer("a", (1,), (FloatEdge(INPUT, FloatDense(torch.eye(1))),), torch.zeros(1))
    net = FloatGraph((1,), (hidden, replace(layer, kind="readout")))
    made = plan.plan_readout(
        *(net, net.layers[1], {"a": torch.ones(1)}, torch.tensor([[current]])), Recipe(timesteps=8, task=task)
    )
    assert made.su.tolist() == pytest.approx([su])


# ---- the graded input ------------------------------------------------------------------------------------------------


def coarse() -> tuple[FloatGraph, torch.Tensor]:
    """A first layer whose bias fills the bias register at a small THETA already."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator)
    return graph(weight, torch.full((6,), 8.0), torch.eye(6)), torch.randn(256, 8, generator=generator)


def test_a_shift_to_the_right_gives_input_and_weights_all_their_bits() -> None:
    net, x = coarse()
    found = {}
    for shift in (False, True):
        network, scales = quantised(net, x, LOIHI2, shift_input=shift)
        assert chip.check(network) == []
        edge, unit = network["a"].edges[0], 1 / network.input.scale
        assert network["out"].edges[0].exponent == 0
        # What a payload unit adds on average, in the layer's own unit, is the trained weight.
        value = torch.from_numpy(edge.synapse.weight.copy()) * 2.0**edge.exponent / unit / scales["a"].su[:, None]
        assert scales["a"].exponent == edge.exponent
        found[shift] = (
            edge.exponent,
            int(np.abs(edge.synapse.weight).max()),
            float(x.abs().max()) / unit,
            float((value - net.layers[0].edges[0].map.weight).square().mean()),
        )
    (none, small, payload, error), (exponent, large, finer, smaller) = found[False], found[True]
    assert (none, exponent < 0) == (0, True)
    assert small < 64 <= large <= 127
    assert finer > payload
    assert smaller < error / 4


def test_what_a_shift_rounds_down_is_made_up_for_in_the_bias() -> None:
    net, x = coarse()
    network, scales = quantised(net, x, LOIHI2, shift_input=True)
    layer, edge = network["a"], network["a"].edges[0]
    payload = torch.from_numpy(network.input.encode(x.numpy())).double()
    sums = payload @ torch.from_numpy(edge.synapse.weight.copy()).double().T
    lost = (sums * 2.0**edge.exponent - (sums * 2.0**edge.exponent).floor()).mean(0)
    made_up = layer.bias.sum(0) / 8 - (net.layers[0].bias.double() * scales["a"].su).numpy()
    assert np.abs(lost.numpy() - made_up).max() < 0.2


def test_every_edge_from_the_input_has_its_own_loss_made_up_for() -> None:
    # Two matrices read the input, and each of their currents is rounded down on its own.
    net, x = coarse()
    first = net.layers[0]
    halves = tuple(FloatEdge(INPUT, FloatDense(first.edges[0].map.weight / 2)) for _ in range(2))
    net = FloatGraph(net.input_shape, (replace(first, edges=halves), net.layers[1]))
    network, scales = quantised(net, x, LOIHI2, shift_input=True)
    layer = network["a"]
    payload = torch.from_numpy(network.input.encode(x.numpy())).double()
    lost = torch.zeros(6, dtype=torch.float64)
    for edge in layer.edges:
        assert edge.exponent < 0
        sums = payload @ torch.from_numpy(edge.synapse.weight.copy()).double().T * 2.0**edge.exponent
        lost += (sums - sums.floor()).mean(0)
    assert lost.min() > 0.7
    made_up = layer.bias.sum(0) / 8 - (net.layers[0].bias.double() * scales["a"].su).numpy()
    assert np.abs(lost.numpy() - made_up).max() < 0.25


@pytest.mark.parametrize(
    ("largest", "exponent"), [(500.0, 0), (127.0, 0), (64.0, 0), (63.0, -1), (20.0, -2), (0.1, -6), (0.0, -6)]
)
def test_the_shift_is_the_largest_that_the_weights_have_room_for(largest: float, exponent: int) -> None:
    assert plan._exponent(largest, LOIHI2) == exponent


# ---- initial potentials ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("initial", "v0", "shift"), [("zero", 0.0, 0.0), ("half", 0.5, 0.0), ("shift", 0.0, 0.5), ("auto", 0.5, 0.0)]
)
def test_half_a_threshold_comes_at_once_or_bit_by_bit_or_not_at_all(initial: str, v0: float, shift: float) -> None:
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    net = graph(torch.eye(4), torch.tensor([0.0, 0.1, -0.1, 0.0]), torch.eye(4))
    network, scales = quantised(net, x, WIDE, initial=initial)
    layer = network["a"]
    assert layer.v0.tolist() == [round(layer.threshold * v0)] * 4
    trained = net.layers[0].bias.double() * scales["a"].su * 8
    assert np.abs(layer.bias.sum(0) - trained.numpy() - layer.threshold * shift).max() <= 0.5
    assert np.ptp(layer.bias, axis=0).max() <= 1
    assert (network["out"].v0.tolist(), network["out"].bias.any()) == ([0] * 4, False)


@pytest.mark.parametrize(("trained_for", "like"), [(None, "half"), ("half", "half"), ("shift", "shift")])
def test_auto_takes_the_initial_potential_that_the_activation_was_trained_for(trained_for: Any, like: str) -> None:
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    net = graph(torch.eye(4), torch.zeros(4), torch.eye(4))
    net = FloatGraph(net.input_shape, (replace(net.layers[0], upper=1.0, initial=trained_for), net.layers[1]))
    assert quantised(net, x, WIDE)[0] == quantised(net, x, WIDE, initial=like)[0]
    assert quantised(net, x, WIDE)[0] != quantised(net, x, WIDE, initial="zero")[0]


def test_a_given_threshold_is_refused_where_the_activation_gives_none() -> None:
    x = torch.rand(64, 4, generator=torch.Generator().manual_seed(0))
    net = graph(torch.eye(4), torch.zeros(4), torch.eye(4))
    with pytest.raises(Refused, match=r"^a: its ReLU has no threshold of its own; choose another threshold rule$"):
        quantised(net, x, LOIHI2, threshold="given")
    bounded = FloatGraph(net.input_shape, (replace(net.layers[0], upper=0.75), net.layers[1]))
    assert quantised(bounded, x, LOIHI2, threshold="given")[1]["a"].theta.tolist() == [0.75] * 4
