"""What a layer's error is attributed to, on neurons small enough to follow by hand, and what is concluded from it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from exporters import report as reports
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from toolchain import assess, attribution
from toolchain.convert import Conversion, Recipe, convert
from toolchain.demo import data, load_model
from toolchain.graph import FloatDense, FloatEdge, FloatGraph, FloatLayer
from toolchain.quantize import Plan

pytestmark = pytest.mark.numbers

NONE = dict.fromkeys(attribution.CAUSES, 0)


class Spiking:
    """One layer of a hand-made conversion: float weights, and integers for them."""

    def __init__(
        self,
        source: str,
        weight: Any,
        integers: Any,
        threshold: int,
        theta: Any,
        bias: Any = None,
        v0: Any = None,
        holdoff: int | None = None,
    ) -> None:
        self.source, self.weight, self.integers, self.threshold = source, weight, integers, threshold
        self.theta, self.bias, self.v0, self.holdoff = torch.tensor(theta), bias, v0, holdoff


def conversion(timesteps: int, inputs: int, recipe: Recipe | None = None, **layers: Spiking) -> Conversion:
    """Chain layers of dense neurons whose payload is the input itself; the readout passes the last one on."""
    floating, integer, plans = [], [], {}
    for name, made in layers.items():
        n = len(made.weight)
        bias = np.zeros((timesteps, n), int) if made.bias is None else np.array(made.bias)
        v0 = np.full(n, made.threshold // 2) if made.v0 is None else np.array(made.v0)
        edge = FloatEdge(made.source, FloatDense(torch.tensor(made.weight)))
        floating.append(FloatLayer(name, (n,), (edge,), torch.zeros(n)))
        edges = (Edge(made.source, Dense(np.array(made.integers))),)
        integer.append(Layer(name, (n,), edges, made.threshold, v0, bias, holdoff=made.holdoff))
        plans[name] = Plan(made.threshold, made.theta, made.threshold / made.theta.double())
    out, zeros = FloatEdge(name, FloatDense(torch.eye(n))), np.zeros((timesteps, n), int)
    floating.append(FloatLayer("out", (n,), (out,), torch.zeros(n), "readout"))
    integer.append(Layer("out", (n,), (Edge(name, Dense(np.eye(n, dtype=int) * 100)),), 0, zeros[0], zeros, "readout"))
    # One spike per step stands for theta, and adds 100: all channels have the same theta here.
    plans["out"] = Plan(0, torch.ones(n), torch.full((n,), 100 / float(made.theta[0]), dtype=torch.float64))
    network = Network(Input((inputs,), bits=12), tuple(integer), timesteps)
    graph = FloatGraph((inputs,), tuple(floating))
    return Conversion(network, graph, graph, recipe or Recipe(timesteps=timesteps, holdoff=0), plans, {})


def attributed(made: Conversion, *x: list[float]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in attribution.attribute(made, torch.tensor(x))}


def shares(row: dict[str, Any]) -> dict[str, float]:
    return {cause: row[cause] for cause in attribution.CAUSES}


def decided(row: dict[str, Any], recipe: Recipe | None = None) -> str:
    """The verdict on a single layer if half of 100 decisions are lost."""
    return attribution.verdict([row], recipe or Recipe(), torch.zeros(100), torch.arange(100) % 2)


def test_what_lies_above_the_threshold_is_lost_to_clipping() -> None:
    # 12 arrives at theta = 8: all four spikes are fired, and a third of the activation is missing.
    made = conversion(4, 1, a=Spiking(INPUT, [[1.0]], [[100]], 800, [8.0]))
    row = attributed(made, [12.0])["a"]
    assert row["error"] == pytest.approx(1 / 3)
    assert shares(row) == pytest.approx(NONE | {"clipping": 1 / 3})
    assert (row["inherited"], row["saturated"], row["residual_outside"], row["dead_channels"]) == (0, 1, 0, 0)
    assert "It goes wrong first in a: activations above the threshold are cut off (clipping is 0.33" in decided(row)
    assert 'Try threshold="max", which' in decided(row)
    assert 'threshold="max"' not in decided(row, Recipe(threshold="max"))


def test_what_lies_between_the_steps_is_lost_to_the_staircase() -> None:
    # One step of 8: 3 is drawn as 0, 5 as 8.
    made = conversion(1, 1, a=Spiking(INPUT, [[1.0]], [[100]], 800, [8.0]))
    row = attributed(made, [3.0], [5.0])["a"]
    assert row["error"] == pytest.approx((18 / 34) ** 0.5)
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
    assert row["error"] == pytest.approx(1.6 / 5.6)
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
    assert rows["a"]["error"] == 0
    row = rows["b"]
    assert shares(row) == pytest.approx(NONE | {"timing": 0.5})
    assert (row["error"], row["inherited"], row["residual_outside"]) == (0.5, 0, 1)
    text = decided(row, Recipe(holdoff=0, method="none"))
    assert "spikes arrive unevenly, and it fires too early or too late (timing is 0.50" in text
    assert text.endswith('Try holdoff=1 or method="mse".')
    assert decided(row, Recipe(holdoff=2, method="mse")).endswith("Try holdoff=3.")


def test_a_hold_off_takes_the_error_of_timing_away() -> None:
    row = attributed(uneven(2), [1.0])["b"]
    assert (row["error"], row["timing"], row["residual_outside"]) == (0, 0, 0)


def test_a_potential_left_below_zero_is_fine_where_no_spike_was_fired() -> None:
    # Two neurons get -5 and 20 of 8: neither can do better.
    made = conversion(4, 1, a=Spiking(INPUT, [[-1.0], [4.0]], [[-100], [400]], 800, [8.0, 8.0]))
    row = attributed(made, [5.0])["a"]
    assert (row["residual_outside"], row["saturated"], row["timing"]) == (0, 0.5, 0)


def test_channels_that_never_fire_though_they_should_are_called_dead() -> None:
    # 0.3 rounds to 0: the second channel keeps silent at an activation of 6, more than half of 8.
    made = conversion(4, 2, a=Spiking(INPUT, [[1.0, 0.0], [0.0, 0.3]], [[1, 0], [0, 0]], 8, [8.0, 8.0]))
    row = attributed(made, [4.0, 20.0])["a"]
    assert shares(row) == pytest.approx(NONE | {"dead": 6 / 52**0.5})
    assert row["dead_channels"] == 1
    assert "channels that the trained network uses never fire (dead is 0.83" in decided(row)
    # At 3, less than half of 8, it is right to keep silent, and weights are what is missing.
    row = attributed(made, [4.0, 10.0])["a"]
    assert (row["dead_channels"], row["dead"]) == (0, 0)
    assert row["weights"] > 0


def test_a_channel_that_fires_once_is_not_dead() -> None:
    made = conversion(4, 1, a=Spiking(INPUT, [[1.0]], [[100]], 800, [8.0], [[-2000]] * 4))
    assert attributed(made, [6.0])["a"]["dead_channels"] == 1
    assert attributed(made, [6.0], [100.0])["a"]["dead_channels"] == 0


def test_errors_of_the_layers_below_are_inherited_and_not_its_own() -> None:
    first = Spiking(INPUT, [[1.4]], [[1]], 8, [8.0])
    made = conversion(4, 1, a=first, b=Spiking("a", [[1.0]], [[100]], 100, [8.0], holdoff=0))
    rows = attributed(made, [4.0])
    for name in ("b", "out"):
        assert rows[name]["inherited"] == pytest.approx(1.6 / 5.6)
        assert rows[name]["own"] == pytest.approx(0)
    assert "wrong first in a" in attribution.verdict([*rows.values()], Recipe(), torch.zeros(9), torch.ones(9))


def test_rounding_of_the_payload_is_inherited_by_the_first_layer() -> None:
    made = conversion(4, 1, a=Spiking(INPUT, [[1.0]], [[100]], 800, [8.0]))
    row = attributed(made, [4.25])["a"]
    assert (row["error"], row["inherited"]) == pytest.approx((1 / 17, 1 / 17))


@pytest.mark.parametrize(
    ("initial", "v0", "bias", "drawn"), [("half", 400, 0, 4), ("shift", 0, 100, 4), ("zero", 0, 0, 2)]
)
def test_how_a_neuron_rounds_belongs_to_the_staircase(initial: str, v0: int, bias: int, drawn: int) -> None:
    """3 lies half way between the steps 2 and 4; the half threshold that rounds it up is no error of the biases."""
    layer = Spiking(INPUT, [[0.5]], [[50]], 800, [8.0], [[bias]] * 4, [v0])
    made = conversion(4, 1, Recipe(timesteps=4, holdoff=0, initial=initial), a=layer)
    for x, a in ((6.0, 3.0), (7.0, 3.5)):
        row = attributed(made, [x])["a"]
        assert row["error"] == pytest.approx(abs(drawn - a) / a)
        assert shares(row) == pytest.approx(NONE | {"staircase": row["error"]})


def test_a_layer_that_is_silent_in_both_networks_has_no_error() -> None:
    made = conversion(4, 1, a=Spiking(INPUT, [[-1.0]], [[-100]], 800, [8.0]))
    row = attributed(made, [4.0])["a"]
    assert (row["error"], row["own"], row["dead_channels"]) == (0, 0, 0)


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
        a = wanted[row["name"]].numpy().astype(np.float64)
        if row["name"] == "fc":
            s = trace.logits[:, -1] / (float(converted.plans["fc"].su[0]) * 2)
        else:
            s = trace.rates(row["name"]) * converted.plans[row["name"]].theta.numpy()[:, None, None]
        error = np.sqrt(((s - a) ** 2).mean() / (a**2).mean())
        assert row["error"] == pytest.approx(error, rel=1e-5)
        assert row["inherited"] + row["own"] == pytest.approx(row["error"], abs=1e-9)
        assert sum(shares(row).values()) == pytest.approx(row["own"], abs=1e-9)


def test_every_share_counts_in_a_network_with_two_steps_and_no_hold_off(
    converted: Conversion, digits: data.Digits
) -> None:
    rows = attributed(converted, *digits.test_x[:40].tolist())
    assert rows["conv1"]["timing"] == pytest.approx(0, abs=1e-6)  # its current is the same at every step
    assert rows["conv2"]["timing"] > 0.01
    assert min(rows[name]["staircase"] for name in ("conv1", "conv2", "conv3")) > 0.05
    assert rows["fc"]["inherited"] == pytest.approx(rows["fc"]["error"], rel=0.2)
    assert list(shares(rows["fc"])) == list(attribution.CAUSES)
    assert {"saturated", "residual_outside", "dead_channels"}.isdisjoint(rows["fc"])


def test_the_report_holds_agreement_and_attribution_without_labels_as_json(
    converted: Conversion, digits: data.Digits
) -> None:
    x, model = digits.test_x[:40], load_model()
    report = assess.report(converted, model, x, None, assess.rates(converted, x))
    assert json.loads(json.dumps(report)) == report
    assert "accuracy" not in report
    assert list(report["agreement"]) == ["folded", "thresholds", "int8"]
    same = (converted.predict(x) == assess.model_logits(model, x).argmax(1).numpy()).sum()
    low, high = reports.wilson(int(same), 40)
    assert report["agreement"]["int8"] == {"agreement": 100 * same / 40, "n": 40, "low": low, "high": high}
    assert report["attribution"]["samples"] == 40
    assert [row["name"] for row in report["attribution"]["layers"]] == ["conv1", "conv2", "conv3", "fc"]
    assert f"like the trained one on {same} of 40 samples" in report["attribution"]["verdict"]


def test_attribution_looks_at_no_more_inputs_than_rates_do(
    converted: Conversion, digits: data.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assess, "RATE_SAMPLES", 7)
    x = digits.test_x[:20]
    report = assess.report(converted, load_model(), x, digits.test_y[:20], assess.rates(converted, x))
    assert report["attribution"]["samples"] == 7
    assert report["attribution"]["layers"] == attribution.attribute(converted, x[:7])
    assert report["accuracy"]["thresholds"]["n"] == report["agreement"]["thresholds"]["n"] == 20


def test_reports_draw_exactly_the_parts_that_are_measured() -> None:
    assert list(reports.PARTS) == ["inherited", *attribution.CAUSES]
    assert set(attribution.ADVICE) == set(attribution.CAUSES)


def test_advice_names_fields_of_the_recipe_that_exist() -> None:
    fields = Recipe().as_dict()
    for _, advice in attribution.ADVICE.values():
        assert any(helps(Recipe()) for _, helps in advice)
        for text, _ in advice:
            name, equals, _ = text.partition("=")
            assert not equals or name in fields or text.startswith('recipe="tuned"')


# ---- the rung of the ladder -----------------------------------------------------------------------------------------


def test_the_staircase_of_the_float_graph_is_that_of_t_spikes_up_to_every_channels_threshold() -> None:
    """Against a formula that counts spikes one by one; all numbers are exact in binary."""
    first = Spiking(INPUT, [[1.0, 0.5], [-0.25, 2.0]], [[1, 1], [1, 1]], 8, [8.0, 4.0])
    second = Spiking("a", [[1.0, -0.5], [0.5, 1.0]], [[1, 1], [1, 1]], 8, [4.0, 4.0])
    made = conversion(4, 2, a=first, b=second)

    def drawn(current: float, theta: float) -> float:
        return sum(current >= (k - 0.5) * theta / 4 for k in (1, 2, 3, 4)) * theta / 4

    x = torch.tensor([[3.0, 1.0], [7.0, -6.0], [9.0, 9.0], [0.5, 0.25], [-4.0, 2.0], [1.0, 0.0]])
    for sample, logits in zip(x.tolist(), assess.staircase_logits(made, x, batch=4), strict=True):
        for layer in (first, second):
            currents = [sum(w * v for w, v in zip(row, sample, strict=True)) for row in layer.weight]
            sample = [drawn(c, float(t)) for c, t in zip(currents, layer.theta, strict=True)]
        assert logits.tolist() == sample


def test_a_skip_edge_reads_the_same_staircase() -> None:
    made = conversion(1, 1, a=Spiking(INPUT, [[1.0]], [[1]], 8, [8.0]), b=Spiking("a", [[1.0]], [[1]], 8, [8.0]))
    layers = list(made.graph.layers)
    layers[-1] = replace(layers[-1], edges=(*layers[-1].edges, FloatEdge("a", FloatDense(torch.eye(1)))))
    out = made.network.layers[-1]
    network = replace(
        made.network, layers=(*made.network.layers[:-1], replace(out, edges=(*out.edges, Edge("a", Dense([[1]])))))
    )
    made = replace(made, source=FloatGraph((1,), tuple(layers)), network=network)
    assert assess.staircase_logits(made, torch.tensor([[3.0], [5.0]])).tolist() == [[0], [16]]


# ---- the verdict ----------------------------------------------------------------------------------------------------


def row(name: str, inherited: float = 0.0, **causes: float) -> dict[str, Any]:
    filled = dict.fromkeys(attribution.CAUSES, 0.0) | causes
    own = sum(filled.values())
    return {"name": name, "error": inherited + own, "inherited": inherited, "own": own, **filled}


def classes(wrong: int, n: int = 100) -> Tensor:
    return (torch.arange(n) < wrong).long()


def test_the_first_layer_that_costs_more_than_its_staircase_is_named_with_its_dominant_cause() -> None:
    rows = [
        row("fine", staircase=0.2),
        row("minor", weights=0.05),
        row("first", 0.2, staircase=0.1, timing=0.04, clipping=0.08),
        row("larger", 0.4, staircase=0.02, timing=0.21),
    ]
    text = attribution.verdict(rows, Recipe(), classes(0), classes(50))
    assert "It goes wrong first in first: activations above the threshold are cut off (clipping is 0.08" in text
    assert "of its relative error of 0.42)" in text


def test_the_layer_that_adds_most_is_named_where_none_costs_more_than_its_staircase() -> None:
    rows = [row("a", staircase=0.2), row("b", 0.5, staircase=0.2, timing=0.1), row("c", 0.9, staircase=0.1)]
    text = attribution.verdict(rows, Recipe(timesteps=4), classes(0), classes(50))
    assert "No layer stands out, b adds most: T = 4 draws" in text
    assert text.endswith('Try timesteps=8 or recipe="tuned", which takes minutes.')
    tuned = attribution.verdict(rows, Recipe(timesteps=4, weights="tuned"), classes(0), classes(50))
    assert tuned.endswith("Try timesteps=8.")


def test_a_loss_within_the_noise_of_its_samples_is_no_loss() -> None:
    # The trained network is right on 90 of 100: the interval is 82.6 to 94.5, so that 5 samples are chance, 6 are not.
    rows, y = [row("a", timing=1)], classes(10)
    spiking = {wrong: classes(0) for wrong in (5, 6)}
    for wrong, predicted in spiking.items():
        predicted[-wrong:] = 1
    assert attribution.verdict(rows, Recipe(), classes(0), spiking[5], y) == (
        "Nothing measurable is lost: the spiking network decides like the trained one on 95 of 100 samples and gets 5 "
        "fewer right; another 100 samples might change more than that."
    )
    assert "It goes wrong first in a" in attribution.verdict(rows, Recipe(), classes(0), spiking[6], y)


def test_a_network_that_is_right_as_often_or_more_often_has_lost_nothing() -> None:
    rows = [row("a", timing=1)]
    assert attribution.verdict(rows, Recipe(), classes(0), classes(30), classes(30)) == (
        "Nothing is lost: the spiking network decides like the trained one on 70 of 100 samples and gets 30 more right."
    )
    assert attribution.verdict(rows, Recipe(), classes(0), classes(0), classes(30)).endswith("gets as many right.")
    assert attribution.verdict(rows, Recipe(), classes(0), classes(0)).endswith("on 100 of 100 samples.")


def test_without_labels_every_other_decision_counts_as_lost() -> None:
    rows = [row("a", timing=1)]
    # Agreement on 96 of 100 has an interval of 90.2 to 98.4: 4 samples are chance, 5 (88.8 to 97.8) are not.
    assert attribution.verdict(rows, Recipe(), classes(0), classes(4)).startswith("Nothing measurable is lost: the")
    assert "It goes wrong first in a" in attribution.verdict(rows, Recipe(), classes(0), classes(5))
