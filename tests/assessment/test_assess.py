"""The whole report of a conversion, and what a conversion writes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import Spiking, conversion
from torch import nn

from exporters import bundle, placement
from exporters.report import WANTED, Agreement, Report
from sim.findings import Refused
from sim.network import INPUT
from toolchain import assessment
from toolchain.assessment import attribution, ladder
from toolchain.assessment.score import wilson
from toolchain.convert import Conversion, convert
from toolchain.demo import data, load_model
from toolchain.frontends import import_model
from toolchain.graph.channels import spatial, spread


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load()


@pytest.fixture(scope="module")
def converted(digits: data.Digits) -> Conversion:
    return convert(load_model(), digits.calibration_x, 2, holdoff=0)


def test_the_report_holds_agreement_and_attribution_without_labels_as_json(
    converted: Conversion, digits: data.Digits
) -> None:
    x, model = digits.test_x[:40], load_model()
    report = assessment.report(converted, model, x, None)
    assert Report.from_dict(json.loads(json.dumps(report.as_dict())), "report") == report
    assert "accuracy" not in report.as_dict()
    assert list(report.agreement) == ["folded", "thresholds", "int8"]
    same = int((converted.predict(x) == assessment.model_logits(model, x).argmax(1).numpy()).sum())
    low, high = wilson(same, 40)
    assert report.agreement["int8"] == Agreement(value=100 * same / 40, n=40, low=low, high=high)
    assert report.attribution is not None
    assert report.attribution.samples == 40
    assert [share.name for share in report.attribution.layers] == ["conv1", "conv2", "conv3", "fc"]
    assert f"like the trained one on {same} of 40 samples" in report.attribution.verdict
    assert (report.model, report.data) == ("DigitsCNN", None)


@pytest.mark.parametrize(("outputs", "end"), [(1, nn.Sigmoid()), (3, nn.Sigmoid()), (4, nn.Softmax(1))])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_trained_network_is_measured_before_what_is_left_off(outputs: int, end: nn.Module, labelled: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, outputs), end).eval()
    x = torch.randn(64, 6)
    with torch.no_grad():
        y = model(x).argmax(1) if outputs == 4 else (model(x) > 0.5).long()
    task = {1: "binary", 3: "labels", 4: "classes"}[outputs]
    made = convert(model, x, 32, task=task, leave_off_last=True)
    report = assessment.report(made, model, x, y if labelled else None)
    assert report.agreement["folded"].value == 100
    assert report.agreement["int8"].value > 85
    assert not labelled or report.accuracy["ann"].value == 100
    assert ladder.LEFT_OFF in report.findings


def test_a_report_reads_like_its_json_form(converted: Conversion, digits: data.Digits) -> None:
    report = assessment.report(converted, load_model(), digits.test_x[:8], None)
    assert report["attribution"]["verdict"] == report.attribution.verdict
    assert report["agreement"]["folded"] == report.agreement["folded"].as_dict()
    assert report.get("accuracy") is None
    with pytest.raises(KeyError):
        report["accuracy"]


def test_attribution_looks_at_a_few_inputs_from_all_over_the_data(converted: Conversion, digits: data.Digits) -> None:
    x, few = digits.test_x[:300], digits.test_x[spread(300)]
    report = assessment.report(converted, load_model(), x, digits.test_y[:300])
    assert report.attribution is not None
    assert report.attribution.samples == len(few) == 256
    assert report.attribution.layers == assessment.attribute(converted, few)
    assert report.layers == assessment.report(converted, load_model(), few, None).layers
    assert report.accuracy["thresholds"].n == report.agreement["thresholds"].n == 300


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("neuron_steps", [1, attribution.NEURON_STEPS])  # the one takes one input at a time
def test_rates_are_those_of_every_neuron_on_every_input(
    neuron_steps: int, copies: int, digits: data.Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attribution, "NEURON_STEPS", neuron_steps)
    made = convert(load_model(), digits.calibration_x, 2, copies=copies, weights="nearest")
    x = digits.test_x[:20]
    trace = made.run(x)
    report = assessment.report(made, load_model(), x, None)
    assert report.cost == placement.cost(made.network, made.network.input.encode(x))
    rows = {row.name: row for row in report.layers}
    for layer, _, activation in made.graph.walk(x):
        row = rows[layer.name]
        if layer.kind == "readout":
            assert (row.histogram, row.rate_error, row.correlation) == ((), None, None)
            continue
        wanted = (activation / spatial(made.scales[layer.name].theta, layer.shape)).clamp(0, 1).double().numpy()
        rate = trace.rates(layer.name).astype(float)
        assert row.spikes_per_neuron == pytest.approx(2 * rate.mean())
        assert row.rate_error == pytest.approx(abs(rate - wanted).mean())
        assert row.correlation == pytest.approx(np.corrcoef(rate.ravel(), wanted.ravel())[0, 1])
        counts = np.array(row.histogram)
        assert counts.shape == (3, WANTED)
        assert counts.sum(1).tolist() == [int((rate == k / 2).sum()) for k in range(3)]
        edges = np.histogram(wanted, WANTED, (0, 1))[0]
        assert abs(counts.sum(0) - edges).sum() <= 4  # activations on an edge


def test_what_never_changes_has_no_correlation() -> None:
    rate, wanted = torch.full((3, 4), 0.1, dtype=torch.float64), torch.rand(3, 4, dtype=torch.float64)
    for one, other in ((rate, wanted), (wanted, rate), (rate, rate)):
        pairs, moments = attribution._compared(one, other, 10)
        assert int(pairs.sum()) == 12
        zeros = torch.zeros(1)
        sums = attribution._Sums(*[zeros] * 10, pairs, moments)
        assert attribution._firing(sums).correlation is None


def test_conversions_for_other_t_are_listed_with_the_one_that_is_reported(
    converted: Conversion, digits: data.Digits
) -> None:
    x, y = digits.test_x[:20], digits.test_y[:20]
    others = {4: convert(load_model(), digits.calibration_x, 4), 1: convert(load_model(), digits.calibration_x, 1)}
    report = assessment.report(converted, load_model(), x, y, wide=converted, others=others)
    right = {t: int((other.predict(x) == y.numpy()).sum()) for t, other in (others | {2: converted}).items()}
    found = [(t, score.value) for t, score in report.accuracy_by_timesteps.items()]
    assert found == [(t, 100 * right[t] / 20) for t in (1, 2, 4)]
    assert list(report.accuracy) == ["ann", "folded", "thresholds", "wide", "int8"]
    assert report.accuracy["wide"] == report.accuracy["int8"] == report.accuracy_by_timesteps[2]
    assert [score.step for score in report.accuracy_by_step] == [1, 2]
    assert report.accuracy_by_step[-1].value == report.accuracy["int8"].value


def test_samples_that_leave_the_registers_are_counted_in_a_finding() -> None:
    # u and v are 200,000 and 400,000 su of less than 131,072 at the two steps: the threshold is never reached.
    made = conversion(2, 1, a=Spiking(INPUT, [[1.0]], [[100]], 1 << 20, [8.0], v0=[0]))
    made = replace(made, peak={"a": 0, "out": 0})
    report = assessment.report(made, nn.Identity(), torch.tensor([[2000.0]]), None)
    assert report.findings == ("T = 2: 1 of 1 samples leave the registers: on the chip these may end otherwise",)


def test_a_conversion_saves_itself_with_and_without_a_report(
    converted: Conversion, digits: data.Digits, tmp_path: Path
) -> None:
    converted.save(tmp_path / "bare")
    loaded = bundle.load(tmp_path / "bare")
    assert (loaded.network, loaded.config, loaded.report) == (converted.network, converted.recipe.as_dict(), None)
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [
        "config.json", "network.net", "provenance.json",
    ]  # fmt: skip
    x = digits.test_x[:20]
    report = assessment.report(converted, load_model(), x, None, name="digits", data="test")
    converted.save(str(tmp_path / "bare"), report)
    assert bundle.load(tmp_path / "bare").report == report
    assert sorted(path.name for path in (tmp_path / "bare").iterdir()) == [
        "attribution.png", "bias_schedule.png", "config.json", "network.net", "provenance.json", "rates.png",
        "report.html", "report.json", "report.md",
    ]  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match="would be lost: 'thesis\\.tex'"):
        converted.save(tmp_path / "mine")


def test_provenance_digests_the_trained_weights_and_the_calibration_inputs(
    converted: Conversion, digits: data.Digits, tmp_path: Path
) -> None:
    converted.save(tmp_path / "out")
    assert bundle.load(tmp_path / "out").provenance["sha256"] == {
        "weights": bundle.digest(load_model().state_dict()),
        "calibration": bundle.digest({"calibration": digits.calibration_x}),
    }


def test_a_float_graph_has_digests_of_its_own() -> None:
    torch.manual_seed(0)
    x = np.random.default_rng(0).random((9, 3), np.float32)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    graph = import_model(model, (3,))
    origins = [convert(graph, x, 2).origin]
    with torch.no_grad():
        model[2].bias[1] += 1
    origins.append(convert(import_model(model, (3,)), x, 2).origin)
    assert origins[0]["calibration"] == origins[1]["calibration"] == bundle.digest({"calibration": x})
    assert origins[0]["weights"] != origins[1]["weights"]
    assert convert(graph, x, 2).origin == origins[0]


def test_weights_of_a_type_that_numpy_lacks_have_a_digest_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    origin = convert(model, torch.rand(9, 3), 2).origin
    assert origin["weights"] == bundle.digest({name: value.float() for name, value in model.state_dict().items()})


def test_a_conversion_verifies_itself_on_model_inputs(converted: Conversion, digits: data.Digits) -> None:
    x = digits.test_x[:2]
    found = converted.verify(x.numpy(), ["fast", "reference"])
    assert [run.engine for run in found.runs] == ["fast", "reference"]
    assert (found.samples, found.difference) == (2, None)
    assert np.array_equal(found.runs[0].logits, converted.run(x).logits)
    with pytest.raises(Refused, match=r"shape \(2, 8, 8\); it needs \(N, 1, 8, 8\)"):
        converted.verify(x[:, 0])
