"""Every task from a trained model to its report: decisions of one output, several labels, pixels, and numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.metrics import r2_score
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from exporters import bundle
from exporters.report.markdown import render
from sim import fast
from sim.findings import Refused
from toolchain import assessment
from toolchain.app import cli
from toolchain.auto import choose
from toolchain.convert import Conversion, convert
from toolchain.demo import data, load_model


@dataclass(frozen=True)
class Trained:
    """A model with what it was calibrated and is tested on."""

    model: nn.Module
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def outputs(self) -> np.ndarray:
        """What the trained network says about the test inputs."""
        with torch.no_grad():
            return self.model(self.test_x).double().numpy()


def trained(model: nn.Module, x: Tensor, y: Tensor, n: int, loss: Callable[..., Tensor], updates: int = 150) -> Trained:
    """Train on the first n samples, all at once, and test on the others."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(updates):
        optimizer.zero_grad()
        loss(model.train()(x[:n]), y[:n]).backward()
        optimizer.step()
    return Trained(model.eval(), x[:n], y[:n], x[n:], y[n:])


def shuffled(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    order = np.random.default_rng(0).permutation(len(x))
    return torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)[order], torch.tensor(y)[order]


def mlp(*sizes: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def report(made: Conversion, it: Trained, y: Any = None) -> Any:
    return assessment.report(made, it.model, it.test_x, y)


# ---- one output that decides -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tumours() -> Trained:
    x, y = shuffled(*load_breast_cancer(return_X_y=True))

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits[:, 0], y.float())

    return trained(mlp(30, 16, 1), x, y, 400, loss)


def test_one_output_decides_at_zero(tumours: Trained, tmp_path: Path) -> None:
    made = convert(tumours.model, tumours.x, 8, labels=tumours.y)
    assert (made.recipe.task, made.assumed) == ("binary", ())
    y, found, wanted = tumours.test_y.numpy(), made.predict(tumours.test_x), tumours.outputs[:, 0] > 0
    assert (found == wanted).mean() > 0.95
    written = report(made, tumours, y)
    assert written.task == "binary"
    assert written.accuracy["ann"].value == pytest.approx(100 * (wanted == y).mean())
    assert written.accuracy["ann"].value > 90
    assert written.accuracy["int8"].value == pytest.approx(100 * (found == y).mean())
    assert written.agreement["int8"].value == pytest.approx(100 * (found == wanted).mean())
    assert written.accuracy_by_step[-1].value == written.accuracy["int8"].value

    made.save(tmp_path / "out", written)
    np.savez(tmp_path / "test.npz", x=tumours.test_x.numpy(), y=y[:, None].astype(np.float32))
    document = evaluated(tmp_path)
    assert document["task"] == "binary"
    assert document["accuracy_by_step"] == [row.as_dict() for row in written.accuracy_by_step]


def evaluated(folder: Path) -> Any:
    arguments = ["evaluate", str(folder / "out"), "--data", str(folder / "test.npz"), "--json"]
    return json.loads(CliRunner().invoke(cli.app, arguments, catch_exceptions=False).stdout)


def test_what_was_assumed_without_labels_is_a_finding(tumours: Trained) -> None:
    made = convert(tumours.model, tumours.x, 8)
    assert made.recipe.task == "binary"
    assert made.network == convert(tumours.model, tumours.x, 8, labels=tumours.y).network
    (finding,) = report(made, tumours).findings
    assert finding.startswith("The one output was taken for a decision at 0, without labels")
    assert made.assumed == (finding,)


def test_a_decision_that_is_nowhere_the_same_is_a_loss(tumours: Trained) -> None:
    """With argmax over one output both networks would agree on everything."""
    made = convert(tumours.model, tumours.x, 8)
    readout = made.network.readout
    edges = tuple(replace(e, synapse=replace(e.synapse, weight=-e.synapse.weight)) for e in readout.edges)
    wrong = replace(readout, edges=edges, bias=-readout.bias)
    network = replace(made.network, layers=(*made.network.layers[:-1], wrong))
    text = report(replace(made, network=network), tumours).attribution.verdict
    agreeing = int((made.predict(tumours.test_x) != (tumours.outputs[:, 0] > 0)).sum())
    assert text.startswith(f"The spiking network decides like the trained one on {agreeing} of 169 samples.")


# ---- several labels --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def properties() -> Trained:
    """Digits: odd, above 4, with a hole."""
    digits = data.load()
    y = torch.stack([digits.train_y % 2, digits.train_y > 4, torch.isin(digits.train_y, torch.tensor([0, 6, 8, 9]))], 1)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return functional.binary_cross_entropy_with_logits(logits, y.float())

    return trained(mlp(64, 32, 3), digits.train_x.flatten(1), y, 600, loss)


def test_labels_are_decided_each_at_zero(properties: Trained) -> None:
    made = convert(properties.model, properties.x, 8, labels=properties.y)
    y, wanted = properties.test_y.numpy(), properties.outputs > 0
    found = made.predict(properties.test_x)
    assert (made.recipe.task, found.shape) == ("labels", (400, 3))
    assert (found == wanted).mean() > 0.97
    written = report(made, properties, y)
    assert written.accuracy["ann"].value == pytest.approx(100 * (wanted == y).mean())
    assert written.accuracy["int8"].value == pytest.approx(100 * (found == y).mean())
    assert written.accuracy["int8"].n == 400
    assert f"on {(found == wanted).sum()} of 1200 labels of 400 samples" in written.attribution.verdict
    assert "accuracy of labels in %" in render(written)


def test_the_unit_of_one_label_costs_the_others_nothing(properties: Trained) -> None:
    x, model = properties.x, mlp(64, 32, 3)
    model.load_state_dict(properties.model.state_dict())
    with torch.no_grad():
        for values in model[2].parameters():  # a power of two: exact in floating point
            values[1] /= 1024
    made, unlike = (convert(m, x, 8, task="labels") for m in (properties.model, model))
    assert np.array_equal(made.predict(x), unlike.predict(x))
    for before, after in zip(made.network.layers, unlike.network.layers, strict=True):
        assert before == after
    assert (unlike.plans["2"].su / made.plans["2"].su).tolist() == [1, 1024, 1]


# ---- pixels ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def segments() -> Trained:
    """Digits: background, grey and ink. The shift of the normalisation makes a bias that differs at the border."""
    digits = data.load()
    y = (digits.train_x[:, 0] > 0.2).long() + (digits.train_x[:, 0] > 0.7)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 3, 3, padding=1)),
    )
    return trained(model, digits.train_x, y, 300, functional.cross_entropy, 100)


@pytest.mark.parametrize("method", ["mse", "none"])
def test_every_pixel_gets_a_class(segments: Trained, method: str) -> None:
    made = convert(segments.model, segments.x, 8, labels=segments.y, method=method)
    assert made.graph.layers[-1].bias.shape == (3, 8, 8)
    y, wanted = segments.test_y.numpy(), segments.outputs.argmax(1)
    found = made.predict(segments.test_x)
    assert (made.recipe.task, found.shape) == ("pixels", y.shape)
    assert (found == wanted).mean() > 0.95
    written = report(made, segments, y)
    assert written.accuracy["ann"].value == pytest.approx(100 * (wanted == y).mean())
    assert written.accuracy["int8"].value == pytest.approx(100 * (found == y).mean())
    assert f"on {(found == wanted).sum()} of {y.size} pixels of {len(y)} samples" in written.attribution.verdict


# ---- numbers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diabetes() -> Trained:
    """Two numbers, of which one spreads 640 times as wide as the other, both far from 0."""
    features, progress = load_diabetes(return_X_y=True)
    progress = progress / progress.std()
    x, y = shuffled(features, np.stack([640 * progress, progress + 20 * features[:, 2]], 1))
    y, unit, model = y.float(), torch.tensor([640.0, 1.0]), mlp(10, 24, 2)
    mean = y[:300].mean(0)
    made = trained(model, x, (y - mean) / unit, 300, functional.mse_loss, 60)
    with torch.no_grad():
        model[2].weight.mul_(unit[:, None])
        model[2].bias.mul_(unit).add_(mean)
    return replace(made, y=y[:300], test_y=y[300:])


def test_numbers_of_any_unit_come_out_at_every_t(diabetes: Trained) -> None:
    y, ann = diabetes.test_y.numpy(), diabetes.outputs
    means = []
    for timesteps in (8, 16, 32, 64, 128):
        made = convert(diabetes.model, diabetes.x, timesteps, labels=diabetes.y)
        assert made.recipe.task == "regression"
        found = made.predict(diabetes.test_x)
        against_ann = r2_score(ann, found, multioutput="raw_values")
        assert min(against_ann) > (0.98 if timesteps == 8 else 0.99)
        means.append(r2_score(y, found))
    assert min(means[1:]) > r2_score(y, ann) - 0.01


def test_a_constant_that_the_bias_register_cannot_hold_is_the_hosts(diabetes: Trained) -> None:
    for timesteps, method in ((4, "mse"), (64, "mse"), (64, "none")):
        made = convert(diabetes.model, diabetes.x, timesteps, task="regression", method=method)
        output, readout = made.network.output, made.network.readout
        assert output is not None
        lacking = np.abs(readout.offsets[-1] + output.offset * output.scale)
        for out in range(2):
            # What the register can hold with a margin of a half stays in the network, of more not even a part.
            assert (output.offset[out] == 0) == (lacking[out] < 4095 / 1.5)
        if timesteps == 64:
            assert output.offset[0] != 0
            assert np.abs(readout.offsets).max() < 500
        with torch.no_grad():
            wanted = diabetes.model(diabetes.x).numpy()
        assert np.abs((made.predict(diabetes.x).mean(0) - wanted.mean(0)) / wanted.std(0)).max() < 0.1


def test_a_regression_reports_r2_and_errors_in_the_models_unit(diabetes: Trained, tmp_path: Path) -> None:
    made = convert(diabetes.model, diabetes.x, 16, labels=diabetes.y)
    y, ann = diabetes.test_y.numpy(), diabetes.outputs
    found = made.predict(diabetes.test_x)
    written = report(made, diabetes, y)
    assert written.task == "regression"
    assert written.accuracy["ann"].value == pytest.approx(100 * r2_score(y, ann), rel=1e-6)
    assert written.accuracy["int8"].value == pytest.approx(100 * r2_score(y, found), rel=1e-6)
    assert written.agreement["int8"].value == pytest.approx(100 * r2_score(ann, found), rel=1e-6)
    low, value, high = (getattr(written.accuracy["ann"], key) for key in ("low", "value", "high"))
    assert low < value < high
    for out, row in enumerate(written.errors):
        miss = np.abs(found[:, out] - ann[:, out])
        assert (row.mean, row.largest) == pytest.approx((miss.mean(), miss.max()), rel=1e-4)
        assert row.relative == pytest.approx((miss**2).mean() ** 0.5 / ann[:, out].std(), rel=1e-4)
    assert written.attribution.verdict.startswith(
        "Little is lost: the spiking network's outputs differ from the trained"
    )
    text = render(written)
    assert "R² in %" in text
    assert "Differences from the trained network's outputs, in the model's unit" in text

    made.save(tmp_path / "out", written)
    np.savez(tmp_path / "test.npz", x=diabetes.test_x.numpy(), y=y)
    assert evaluated(tmp_path)["accuracy_by_step"] == [row.as_dict() for row in written.accuracy_by_step]
    assert made.decode(made.run(diabetes.test_x)).tolist() == found.tolist()
    network = bundle.load(tmp_path / "out").network
    logits = fast.run(network, network.input.encode(diabetes.test_x.numpy())).logits
    assert np.array_equal(network.decode(logits)[:, -1], found)
    assert np.array_equal(made.decode(logits[:, -1]), found)
    shown = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "out"), "--json"]).stdout
    assert network.output is not None
    assert json.loads(shown)["output"] == {
        "scale": network.output.scale.tolist(), "offset": network.output.offset.tolist()
    }  # fmt: skip
    table = CliRunner().invoke(cli.app, ["inspect", str(tmp_path / "out")]).stdout
    assert "output = potential / (" in table
    assert "after the whole window" in table


def test_the_readouts_error_counts_outputs_alike(diabetes: Trained) -> None:
    made = convert(diabetes.model, diabetes.x, 16, task="regression")
    share = assessment.attribute(made, diabetes.test_x)[-1]
    found, ann = made.predict(diabetes.test_x), diabetes.outputs
    relative = ((found - ann) ** 2).mean(0) / ann.var(0)
    assert share.error == pytest.approx(relative.mean() ** 0.5, rel=1e-3)
    assert share.inherited + share.own == pytest.approx(share.error)


def test_outputs_of_unlike_spread_are_taken_for_numbers_and_said_to_be(diabetes: Trained) -> None:
    made = convert(diabetes.model, diabetes.x, 8)
    assert made.recipe.task == "regression"
    assert made.assumed[0].startswith("The outputs were taken for numbers, without labels: one spreads ")
    assert convert(diabetes.model, diabetes.x, 8, task="classes").assumed == ()


def test_steps_are_chosen_by_r2_where_outputs_are_numbers(diabetes: Trained) -> None:
    choice = choose(diabetes.model, diabetes.x, latency_budget=12, labels=diabetes.y)
    assert choice.conversion.recipe.task == "regression"
    values = {trial.timesteps: trial.agreement for trial in choice.trials if trial.method == "mse"}
    assert values[8] > values[2] > values[1]
    assert "agrees best with the ANN, R² " in choice.reason
    assert all(0 < trial.error < 100 for trial in choice.trials)


def test_tuning_counts_outputs_alike(diabetes: Trained) -> None:
    made = convert(diabetes.model, diabetes.x, 4, recipe="tuned", task="regression", updates=60)
    assert min(r2_score(diabetes.outputs, made.predict(diabetes.test_x), multioutput="raw_values")) > 0.9


# ---- labels that do not fit ------------------------------------------------------------------------------------------


def test_labels_that_no_output_stands_for_are_refused_everywhere(tmp_path: Path) -> None:
    digits = data.load()
    made = convert(load_model(), digits.calibration_x[:64], 2)
    x, wrong = digits.calibration_x[:64], digits.calibration_y[:64] + 1
    message = "labels: 1..10, but the network has 10 outputs, for classes 0..9; subtract 1"
    with pytest.raises(Refused, match=message):
        convert(load_model(), x, 2, labels=wrong)
    with pytest.raises(Refused, match=message):
        assessment.report(made, load_model(), x, wrong)
    with pytest.raises(Refused, match=message):
        assessment.accuracy(made.run(x).logits[:, -1], wrong)
    made.save(tmp_path / "out")
    np.savez(tmp_path / "test.npz", x=x.numpy(), y=wrong.numpy())
    result = CliRunner().invoke(cli.app, ["evaluate", str(tmp_path / "out"), "--data", str(tmp_path / "test.npz")])
    assert (result.exit_code, result.stderr) == (2, f"error: {message}\n")


def test_a_bundle_of_before_tasks_is_evaluated_by_its_labels(tmp_path: Path) -> None:
    digits = data.load()
    made = convert(load_model(), digits.calibration_x[:64], 2)
    made.save(tmp_path / "out")
    config = {key: value for key, value in made.recipe.as_dict().items() if key != "task"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    np.savez(tmp_path / "test.npz", x=digits.test_x[:50].numpy(), y=digits.test_y[:50].numpy())
    document = evaluated(tmp_path)
    found = made.predict(digits.test_x[:50])
    assert document["task"] == "classes"
    assert document["accuracy_by_step"][-1]["accuracy"] == 100 * (found == digits.test_y[:50].numpy()).mean()


def test_what_nothing_moves_of_a_regression_is_left_to_the_host() -> None:
    """Its scale would be 1, and a constant of 0.012 nothing; over maps that a convolution and a matrix feed, too."""

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.f, self.g = (
                nn.Conv2d(1, 2, 3, padding=1),
                nn.Conv2d(2, 2, 1),
                nn.Linear(16, 4),
                nn.Linear(4, 32),
            )
            with torch.no_grad():
                self.c.weight[1] = 0
                self.g.weight[16:] = 0
                self.g.bias.zero_()
                self.c.bias[1] = 0.012

        def forward(self, x: Tensor) -> Tensor:
            added = self.g(torch.relu(self.f(x.flatten(1)))).reshape(-1, 2, 4, 4)
            return self.c(torch.relu(self.a(x))) + added  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, x = Maps().eval(), torch.rand(32, 1, 4, 4)
    made = convert(model, x, 4, task="regression")
    found = made.decode(made.run(x))
    assert found[:, 1] == pytest.approx(0.012, rel=1e-6)
    with torch.no_grad():
        assert np.abs(found[:, 0] - model(x)[:, 0].numpy()).max() < 0.5
