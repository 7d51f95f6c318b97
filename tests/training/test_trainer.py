"""Training keeps what spikes do best, gives the same again, and goes on where it was killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from sim.findings import Refused
from toolchain.app import cli
from toolchain.convert import convert
from toolchain.demo import data, load_model
from toolchain.graph.activations import NQ
from toolchain.loading import load_model as load
from toolchain.recipe import Recipe
from toolchain.task import Task
from toolchain.training.data import batches, cropped, one_by_one
from toolchain.training.noise import induce, measure
from toolchain.training.settings import Settings
from toolchain.training.trainer import Trained, distillation, train

ROOT = Path(__file__).parents[2]
SMALL = Settings(epochs=3, batch=50, learning_rate=0.02, validation=80, calibration=32)
DIGITS = data.load()
X, Y = DIGITS.train_x[:330], DIGITS.train_y[:330]


def same(one: Trained, other: Trained) -> bool:
    states = one.model.state_dict(), other.model.state_dict()
    equal = all(torch.equal(states[0][key], states[1][key]) for key in states[0].keys() | states[1].keys())
    histories = [[replace(epoch, seconds=0.0) for epoch in trained.history] for trained in (one, other)]
    return equal and histories[0] == histories[1] and one.best == other.best


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    folder = tmp_path_factory.mktemp("training") / "run"
    return train(load_model(), X, Y, SMALL, directory=folder), folder


def test_the_kept_epoch_is_the_one_whose_spikes_are_right_most_often(trained: tuple[Trained, Path]) -> None:
    found, _ = trained
    scores = [(epoch.snn, epoch.ann) for epoch in found.history]
    assert scores[found.best - 1] == max(scores)  # type: ignore[type-var]
    assert [epoch.epoch for epoch in found.history] == [1, 2, 3]
    assert {type(m) for m in found.model.modules()} >= {NQ}
    assert not found.model.training


def test_noise_is_what_was_measured_after_the_epoch(trained: tuple[Trained, Path]) -> None:
    last = trained[0].history[-1]
    by_activation = {residual.activation: residual.std for residual in last.residuals}
    assert last.noise == by_activation
    assert set(last.noise) == {path for path, m in trained[0].model.named_modules() if type(m) is NQ}
    assert all(value > 0 for value in last.noise.values())


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(trained: tuple[Trained, Path]) -> None:
    assert same(trained[0], train(load_model(), X, Y, SMALL))
    assert not same(trained[0], train(load_model(), X, Y, replace(SMALL, seed=1)))


def die(epoch: Any) -> None:
    if epoch.epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def train_until_killed(folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    train(load_model(), X, Y, SMALL, directory=folder, callbacks=[die])


def test_what_was_killed_goes_on_and_ends_the_same(trained: tuple[Trained, Path], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    # Spawned, not forked: torch's threads would be missing in a copy of this process.
    process = multiprocessing.get_context("spawn").Process(
        target=train_until_killed, args=(folder, torch.get_num_threads())
    )
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    assert (folder / "checkpoint.pt").exists()
    assert not (folder / "trained.pt").exists()
    epochs: list[int] = []
    again = train(
        load_model(), X, Y, SMALL, directory=folder, resume=True, callbacks=[lambda e: epochs.append(e.epoch)]
    )
    assert epochs == [3]
    assert same(again, trained[0])
    stored = json.loads((folder / "history.json").read_text())
    assert [epoch["snn"] for epoch in stored["history"]] == [epoch.snn for epoch in trained[0].history]
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_of_another_training_is_not_gone_on_with(trained: tuple[Trained, Path]) -> None:
    _, folder = trained
    with pytest.raises(Refused, match=r"checkpoint\.pt: exists; go on with --resume"):
        train(load_model(), X, Y, SMALL, directory=folder)
    with pytest.raises(Refused, match="is of another settings: epochs was 3 and is 4; choose another place"):
        train(load_model(), X, Y, replace(SMALL, epochs=4), directory=folder, resume=True)
    with pytest.raises(Refused, match="is of another origin; choose another place"):
        train(load_model(), X.flip(0), Y.flip(0), SMALL, directory=folder, resume=True)


def test_what_is_kept_loads_into_the_untouched_model_and_converts(trained: tuple[Trained, Path]) -> None:
    found, folder = trained
    model = load(str(ROOT / "toolchain" / "demo" / "model.py") + ":digits_cnn", folder / "trained.pt")
    assert torch.equal(model(X), found.model(X))
    conversion = convert(model, DIGITS.calibration_x[:64], 4, recipe="nq")
    assert [layer.levels for layer in conversion.graph.layers] == [4, 4, 4, None]
    assert conversion.verify(X[:2], ["reference", "fast"]).difference is None


def test_the_papers_recipe_for_one_loop_of_ones_own() -> None:
    model = train(load_model(), X, Y, replace(SMALL, epochs=1, activation="nq", noise="fixed", delta=0.2)).model
    assert all(float(m.noise) == pytest.approx(0.2) for m in model.modules() if type(m) is NQ)
    recipe = Recipe(timesteps=4, holdoff=0, method="none", weights="nearest", threshold="given")
    noise = induce(model, measure(model, X[:64], Y[:64], X[:32], recipe))
    conversion = convert(model, X[:32], recipe=recipe)
    trace = conversion.run(X[:64])
    for layer, _, activation in conversion.graph.walk(X[:64]):
        if layer.kind == "spiking":
            theta = conversion.scales[layer.name].theta.reshape(-1, *(1,) * (len(layer.shape) - 1))
            average = torch.from_numpy(trace.rates(layer.name)) * theta
            assert noise[layer.activation] == pytest.approx(float((activation - average).std(correction=0)), rel=1e-3)


def test_relu_may_stay_and_is_trained_all_the_same() -> None:
    found = train(load_model(), X, Y, replace(SMALL, epochs=1, activation="relu"))
    assert "ann2loihi" not in found.weights()
    assert found.model.state_dict().keys() == load_model().state_dict().keys()


def test_a_teacher_is_followed() -> None:
    settings = replace(SMALL, distill=1.0, activation="qcfs", levels=8)
    wrong = (Y + 1) % 10  # with all of the loss the teacher's, labels do not count
    found = train(load_model(), X, wrong, replace(settings, epochs=2))
    assert float((found.model(X).argmax(1) == Y).float().mean()) > 0.9


def test_distillation_is_the_divergence_of_softened_classes() -> None:
    task, outputs, wanted = Task("classes", (3,)), torch.randn(5, 3), torch.randn(5, 3)
    p, q = (torch.softmax(v / 2, 1) for v in (wanted, outputs))
    expected = 4 * (p * (p / q).log()).sum(1).mean()
    assert float(distillation(outputs, wanted, 2.0, task)) == pytest.approx(float(expected), rel=1e-5)


def test_every_sample_is_cropped_and_mirrored_on_its_own() -> None:
    x = torch.arange(2000 * 12, dtype=torch.float32).reshape(2000, 1, 3, 4) + 1
    changed = cropped(x, 1, torch.Generator().manual_seed(0), flip=True)
    padded = nn.functional.pad(x, [1] * 4)
    ways = [
        way
        for top in range(3)
        for left in range(3)
        for view in (padded[:, :, top : top + 3, left : left + 4],)
        for way in (view, view.flip(3))
    ]
    hits = torch.stack([(changed == way).flatten(1).all(1) for way in ways])
    assert (hits.sum(0) >= 1).all()
    shares = hits.float().mean(1)
    assert float(shares.min()) > 0.5 / 18
    sequences = cropped(torch.rand(4, 2, 7), 2, torch.Generator())
    assert sequences.shape == (4, 2, 7)


def test_batches_hold_every_sample_once_over_all_processes() -> None:
    parts = [list(batches(103, 20, 5, rank, 2)) for rank in (0, 1)]
    assert [len(part) for part in parts] == [5, 5]
    taken = torch.cat([index for part in parts for index in part])
    assert len(taken) == len(taken.unique()) == 100
    assert len(next(iter(batches(7, 20, 0)))) == 7


def test_transforms_of_single_samples_are_drawn_anew_for_each() -> None:
    calls: list[Tensor] = []
    settings = replace(SMALL, epochs=1)
    train(load_model(), X, Y, settings, transform=one_by_one(lambda x: (calls.append(x), x)[1]))
    assert len(calls) == 250
    assert calls[0].shape == (1, 8, 8)


@pytest.mark.parametrize(("samples", "held"), [(12_000, 1000), (330, 33), (9, 1), (3, 1)])
def test_a_tenth_is_held_out_by_itself(samples: int, held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class SplitError(Exception):
        pass

    def split(*arguments: int) -> None:
        raise SplitError(*arguments[:2])

    monkeypatch.setattr("toolchain.training.data.split", split)
    with pytest.raises(SplitError) as caught:
        train(load_model(), X.repeat(40, 1, 1, 1)[:samples], Y.repeat(40)[:samples], replace(SMALL, validation=0))
    assert caught.value.args == (samples, held)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is out of range; give 1 or more"),
        ({"distill": 1.5}, "distill: 1.5 is out of range; give 0 to 1"),
        ({"activation": "gelu"}, "activation: .*gelu"),
        ({"validation": 330}, "validation: 330 samples of 330; hold out fewer"),
        ({"validation": -1}, "validation: -1 is out of range; give 0 or more"),
        ({"learning_rate": 1e9}, "learning_rate: 1e\\+09 is out of range"),
        ({"seed": 10**20}, "seed: 1e\\+20 is out of range; give 0 to 9.22337e\\+18"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        train(load_model(), X, Y, replace(SMALL, **changes))


def test_a_loss_that_is_no_number_ends_the_training_in_a_line() -> None:
    with pytest.raises(Refused, match="training: the loss is nan in epoch 1; give a lower learning rate"):
        train(load_model(), X, Y, SMALL, transform=lambda x: x * torch.nan)


def test_an_epoch_that_does_not_convert_is_not_kept() -> None:
    found: list[Any] = []
    settings = replace(SMALL, learning_rate=1e3, epochs=1, activation="tcl")
    with pytest.raises(Refused, match=r"training: no epoch could be converted: .*registers"):
        train(load_model(), X, Y, settings, callbacks=[found.append])
    assert found[0].snn is None
    assert "not converted" in str(found[0])


def test_labels_and_models_that_cannot_be_used_are_refused() -> None:
    with pytest.raises(Refused, match=r"labels: 0\.\.10, but the network has 10 outputs"):
        train(load_model(), X, Y + (Y == 9), SMALL)
    with pytest.raises(Refused, match="DigitsCNN: it fails on inputs of shape"):
        train(load_model(), X[:, :, :5, :5], Y, SMALL)
    normalised = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10))
    with pytest.raises(Refused, match=r"training: the model fails on a batch of shape .*; give other batches"):
        train(normalised, X, Y, replace(SMALL, activation="relu", batch=1))
    ended = torch.nn.Sequential(load_model(), torch.nn.Softmax(1))
    with pytest.raises(Refused, match=r"it normalises over all classes; take it out$"):
        train(ended, X, Y, SMALL)
    with pytest.raises(Refused, match="device: 'tpu' is not there"):
        train(load_model(), X, Y, SMALL, device="tpu")


def save(folder: Path, name: str, x: Tensor, y: Tensor) -> Path:
    np.savez(folder / name, x=x.numpy(), y=y.numpy())
    return folder / name


def test_the_command_trains_and_its_weights_convert_and_verify(tmp_path: Path) -> None:
    train_data = save(tmp_path, "train.npz", X, Y)
    model = ("--model", str(ROOT / "toolchain" / "demo" / "model.py") + ":digits_cnn")
    weights = ("--weights", str(ROOT / "toolchain" / "demo" / "digits_cnn.pt"))
    options = ("--epochs", "1", "--validation", "80", "--learning-rate", "0.02", "--levels", "4")
    run = CliRunner().invoke

    def command(*arguments: object) -> Any:
        return run(cli.app, [str(a) for a in arguments], catch_exceptions=False)

    done = command("train", *model, *weights, "--data", train_data, *options, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["activation"] == "nq"
    assert "epoch 1: loss" in done.stderr
    trained = ("--weights", tmp_path / "out" / "trained.pt", "--calibration", train_data)
    done = command("convert", *model, *trained, "--timesteps", "4", "-o", tmp_path / "bundle")
    assert done.exit_code == 0, done.stderr
    done = command("verify", tmp_path / "bundle", "--data", train_data, "--samples", "1")
    assert done.exit_code == 0, done.output
    for place, label in enumerate((0, 1, 1, 0)):
        (tmp_path / "images" / str(label)).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((X[place, 0].numpy() * 255).astype("uint8"))
        image.save(tmp_path / "images" / str(label) / f"{place}.png")
    short = ("--epochs", "1", "--validation", "1", "--calibration", "2", "--batch", "2", "--activation", "relu")
    done = command("train", *model, *weights, "--data", tmp_path / "images", *short, "-o", tmp_path / "seen", "--json")
    assert done.exit_code == 0, done.stderr
    again = command("train", *model, *weights, "--data", train_data, *options, "-o", tmp_path / "out")
    assert again.exit_code == 2
    assert "exists; go on with --resume, or choose another place" in again.stderr


WORKER = """
import sys, torch
torch.set_num_threads(1)
from toolchain.demo import data, load_model
from toolchain.training.settings import Settings
from toolchain.training.trainer import train
digits = data.load()
settings = Settings(epochs=2, batch=50, learning_rate=0.02, validation=80, calibration=32)
found = train(load_model(), digits.train_x[:330], digits.train_y[:330], settings, directory=sys.argv[1], resume=True)
state = {k: v for k, v in found.model.state_dict().items()}
import os
torch.save(state, f"{sys.argv[1]}/rank{os.environ['RANK']}.pt")
print(found.history[-1].loss)
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, script, tmp_path], capture_output=True, text=True, env=environment, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    losses = done.stdout.split()
    assert len(losses) == 2
    assert losses[0] == losses[1]  # the mean over both
    history = json.loads((tmp_path / "history.json").read_text())["history"]
    assert history[-1]["snn"] > 80
    first = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["model"]
    other = torch.load(tmp_path / "rank1.pt", weights_only=True)
    learnt = [key for key in first if not any(part in key for part in ("running", "tracked", "noise"))]
    assert len(learnt) > 10
    assert all(torch.equal(first[key], other[key]) for key in learnt)
