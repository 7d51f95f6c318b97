"""What a layer's error is attributed to, on neurons small enough to follow by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import Spiking, conversion

from exporters.report import CAUSES, Share
from sim.network import INPUT
from toolchain.assessment import attribution
from toolchain.assessment.verdict import verdict
from toolchain.convert import Conversion, convert
from toolchain.demo import data, load_model
from toolchain.recipe import Recipe

NONE = dict.fromkeys(CAUSES, 0)


def attributed(made: Conversion, *x: list[float]) -> dict[str, Share]:
    return {share.name: share for share in attribution.attribute(made, torch.tensor(x))}


def shares(row: Share) -> dict[str, float]:
    return {cause: row.of(cause) for cause in CAUSES}


def decided(row: Share, recipe: Recipe | None = None) -> str:
    """The verdict on a single layer if half of 100 decisions are lost."""
    return verdict([row], recipe or Recipe(), torch.zeros(100), torch.arange(100) % 2).text


def test_what_lies_above_the_threshold_is_lost_to_clipping() -> None:
    # 12 arrives at theta = 8: all four spikes are fired, and a third of the activation is missing.
    made = conversion(4, 1, a=Spiking(INPUT, [[1.0]], [[100]], 800, [8.0]))
    row = attributed(made, [12.0])["a"]
    assert row.error == pytest.approx(1 / 3)
    assert shares(row) == pytest.approx(NONE | {"clipping": 1 / 3})
    assert (row.inherited, row.saturated, row.residual_outside, row.dead_channels) == (0, 1, 0, 0)
    assert "It goes wrong first in a: activations above the threshold are cut off (clipping is 0.33" in decided(row)
    assert 'Try threshold="max", which' in decided(row)
    assert 'threshold="max"' not in decided(row, Recipe(threshold="max"))


def test_what_lies_between_the_steps_is_lost_to_the_staircase() -> None:
    # One step of 8: 3 is drawn as 0, 5 as 8.
    made = conversion(1, 1, a=Spiking(INPUT, [[1.0]], [[100]], 800, [8.0]))
    row = attributed(made, [3.0], [5.0])["a"]
    assert row.error == pytest.approx((18 / 34) ** 0.5)
    assert shares(row) == pytest.approx(NONE | {"staircase": (18 / 34) ** 0.5})
    text = decided(row, Recipe(timesteps=1))
    assert "No layer stands out, a adds most: T = 1 draws its activations in too coarse steps" in text
    assert text.endswith('Try timesteps=2 or recipe="tuned", which takes minutes.')
    assert 'Try timesteps=2, initial="half" or recipe' in decided(row, Recipe(timesteps=1, initial="zero"))


def test_integers_that_are_not_the_weights_are_to_blame_for_the_currents_that_they_change() -> None:
    # 1.4 * 4 = 5.6 is wanted; the weight 1 makes 4 of it, exactly two of four steps of 2.
    made = conversion(4, 1, a=Spiking(INPUT, [[1.4]], [[1]], 8, [8.0]))
    row = attributed(made, [4.0])["a"]
    assert shares(row) == pytest.approx(NONE | {"weights": 1.6 / 5.6})
    assert row.error == pytest.approx(1.6 / 5.6)
    assert "too coarse as integers (weights is 0.29" in decided(row, Recipe(weights="nearest"))
    assert 'Try weights="fitted"' in decided(row, Recipe(weights="nearest"))
    assert "Try more calibration data" in decided(row, Recipe(weights="fitted"))


def uneven(holdoff: int) -> Conversion:
    """``b = 2 * a0 - a1`` where both are 1/2, but a0 fires at steps 1 and 2, a1 at 3 and 4."""
    first = Spiking(
        INPUT, [[0.5], [0.5]], [[50], [50]], 100, [1.0, 1.0], [[50, -50], [0, -50], [0, 50], [-50, 50]], holdoff=0
    )
    return conversion(4, 1, a=first, b=Spiking("a", [[2.0, -1.0]], [[200, -100]], 100, [1.0], holdoff=holdoff))


def test_spikes_that_are_fired_before_all_has_arrived_are_lost_to_timing() -> None:
    # v before the reset: 250, 350, 150, -50: three spikes, though the charge of 250 is good for two.
    rows = attributed(uneven(0), [1.0])
    assert rows["a"].error == 0
    row = rows["b"]
    assert shares(row) == pytest.approx(NONE | {"timing": 0.5})
    assert (row.error, row.inherited, row.residual_outside) == (0.5, 0, 1)
    text = decided(row, Recipe(holdoff=0, method="none"))
    assert "spikes arrive unevenly, and it fires too early or too late (timing is 0.50" in text
    assert text.endswith('Try holdoff=1 or method="mse".')
    assert decided(row, Recipe(holdoff=2, method="mse")).endswith("Try holdoff=3.")


def test_a_hold_off_takes_the_error_of_timing_away() -> None:
    row = attributed(uneven(2), [1.0])["b"]
    assert (row.error, row.timing, row.residual_outside) == (0, 0, 0)


def test_a_potential_left_below_zero_is_fine_where_no_spike_was_fired() -> None:
    # Two neurons get -5 and 20 of 8: neither can do better.
    made = conversion(4, 1, a=Spiking(INPUT, [[-1.0], [4.0]], [[-100], [400]], 800, [8.0, 8.0]))
    row = attributed(made, [5.0])["a"]
    assert (row.residual_outside, row.saturated, row.timing) == (0, 0.5, 0)


def test_channels_that_never_fire_though_they_should_are_called_dead() -> None:
    # 0.3 rounds to 0: the second channel keeps silent at an activation of 6, more than half of 8.
    made = conversion(4, 2, a=Spiking(INPUT, [[1.0, 0.0], [0.0, 0.3]], [[1, 0], [0, 0]], 8, [8.0, 8.0]))
    row = attributed(made, [4.0, 20.0])["a"]
    assert shares(row) == pytest.approx(NONE | {"dead": 6 / 52**0.5})
    assert row.dead_channels == 1
    assert "channels that the trained network uses never fire (dead is 0.83" in decided(row)
    # At 3, less than half of 8, it is right to keep silent, and weights are what is missing.
    row = attributed(made, [4.0, 10.0])["a"]
    assert (row.dead_channels, row.dead) == (0, 0)
    assert row.weights > 0


def test_a_channel_that_fires_once_is_not_dead() -> None:
    made = conversion(4, 1, a=Spiking(INPUT, [[1.0]], [[100]], 800, [8.0], [[-2000]] * 4))
    assert attributed(made, [6.0])["a"].dead_channels == 1
    assert attributed(made, [6.0], [100.0])["a"].dead_channels == 0


def test_errors_of_the_layers_below_are_inherited_and_not_its_own() -> None:
    first = Spiking(INPUT, [[1.4]], [[1]], 8, [8.0])
    made = conversion(4, 1, a=first, b=Spiking("a", [[1.0]], [[100]], 100, [8.0], holdoff=0))
    rows = attributed(made, [4.0])
    for name in ("b", "out"):
        assert rows[name].inherited == pytest.approx(1.6 / 5.6)
        assert rows[name].own == pytest.approx(0)
    assert "wrong first in a" in verdict([*rows.values()], Recipe(), torch.zeros(9), torch.ones(9)).text


def test_rounding_of_the_payload_is_inherited_by_the_first_layer() -> None:
    made = conversion(4, 1, a=Spiking(INPUT, [[1.0]], [[100]], 800, [8.0]))
    row = attributed(made, [4.25])["a"]
    assert (row.error, row.inherited) == pytest.approx((1 / 17, 1 / 17))


@pytest.mark.parametrize(
    ("initial", "v0", "bias", "drawn"), [("half", 400, 0, 4), ("shift", 0, 100, 4), ("zero", 0, 0, 2)]
)
def test_how_a_neuron_rounds_belongs_to_the_staircase(initial: str, v0: int, bias: int, drawn: int) -> None:
    """3 lies half way between the steps 2 and 4; the half threshold that rounds it up is no error of the biases."""
    layer = Spiking(INPUT, [[0.5]], [[50]], 800, [8.0], [[bias]] * 4, [v0])
    made = conversion(4, 1, Recipe(timesteps=4, holdoff=0, initial=initial), a=layer)
    for x, a in ((6.0, 3.0), (7.0, 3.5)):
        row = attributed(made, [x])["a"]
        assert row.error == pytest.approx(abs(drawn - a) / a)
        assert shares(row) == pytest.approx(NONE | {"staircase": row.error})


def test_a_layer_that_is_silent_in_both_networks_has_no_error() -> None:
    made = conversion(4, 1, a=Spiking(INPUT, [[-1.0]], [[-100]], 800, [8.0]))
    row = attributed(made, [4.0])["a"]
    assert (row.error, row.own, row.dead_channels) == (0, 0, 0)


# ---- a real network -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load()


@pytest.fixture(scope="module")
def converted(digits: data.Digits) -> Conversion:
    return convert(load_model(), digits.calibration_x, 2, holdoff=0)


def test_shares_add_up_to_the_error_that_spikes_and_activations_have(
    converted: Conversion, digits: data.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "NEURON_STEPS", 1 << 17)  # fewer inputs at a time than there are
    x = digits.test_x[:40]
    trace, wanted = converted.run(x), converted.graph.run(x)
    for row in attribution.attribute(converted, x):
        a = wanted[row.name].numpy().astype(np.float64)
        if row.name == "fc":
            s = trace.logits[:, -1] / (float(converted.scales["fc"].su[0]) * 2)
        else:
            s = trace.rates(row.name) * converted.scales[row.name].theta.numpy()[:, None, None]
        error = np.sqrt(((s - a) ** 2).mean() / (a**2).mean())
        assert row.error == pytest.approx(error, rel=1e-5)
        assert row.inherited + row.own == pytest.approx(row.error, abs=1e-9)
        assert sum(shares(row).values()) == pytest.approx(row.own, abs=1e-9)


def test_every_share_counts_in_a_network_with_two_steps_and_no_hold_off(
    converted: Conversion, digits: data.Digits
) -> None:
    rows = attributed(converted, *digits.test_x[:40].tolist())
    assert rows["conv1"].timing == pytest.approx(0, abs=1e-6)  # its current is the same at every step
    assert rows["conv2"].timing > 0.01
    assert min(rows[name].staircase for name in ("conv1", "conv2", "conv3")) > 0.05
    assert rows["fc"].inherited == pytest.approx(rows["fc"].error, rel=0.2)
    assert (rows["fc"].saturated, rows["fc"].residual_outside, rows["fc"].dead_channels) == (None, None, None)
