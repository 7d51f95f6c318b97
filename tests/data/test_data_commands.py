"""Commands take data sets of every kind, and say the same of the same samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from toolchain.app.cli import app
from toolchain.graph.channels import spread

MODEL = """
import numpy as np, torch
from torch import nn
from torch.utils.data import TensorDataset

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).eval()

def data():
    arrays = np.load("data.npz")
    return TensorDataset(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]))
"""


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def shown(*arguments: object) -> Any:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same samples as images, as arrays and as a Dataset."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8), np.uint8)
    y = np.arange(40) // 10
    np.savez("data.npz", x=x, y=y)
    np.save("data.npy", x)
    Path("model.py").write_text(MODEL)
    for sample, (image, label) in enumerate(zip(x, y, strict=True)):
        (place := Path("images", f"class{label}")).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(place / f"{sample:02}.png")


def converted(calibration: str, *options: object) -> Any:
    asked = ["--model", "model.py:build", "--calibration", calibration, "--timesteps", 2, "-o", "out"]
    return shown("convert", *asked, *options)


def test_a_conversion_is_the_same_by_every_kind_of_data() -> None:
    plain, origin = converted("data.npz"), Path("out", "provenance.json").read_text()
    for data in ("images", "model.py:data"):
        assert converted(data) == plain | {"data": f"calibration data, {Path(data).name}"}
        assert json.loads(Path("out", "provenance.json").read_text())["sha256"] == json.loads(origin)["sha256"]
    without = converted("data.npy")
    assert "accuracy" not in without
    assert without["agreement"] == plain["agreement"]


def test_a_conversion_on_some_samples_is_one_on_these_alone() -> None:
    few = converted("images", "--calibration-samples", 24)
    assert (few["data"], few["samples"]) == ("calibration data, images, 24 of 40", 24)
    arrays, chosen = np.load("data.npz"), spread(40, 24).numpy()
    np.savez("few.npz", x=arrays["x"][chosen], y=arrays["y"][chosen])
    assert converted("few.npz") == few | {"data": "calibration data, few.npz"}
    refused = run("convert", "--model", "model.py:build", "--calibration", "images", "--calibration-samples", 0,
                  "-o", "never")  # fmt: skip
    assert (refused.exit_code, refused.stderr) == (2, "error: samples: 0 asked for; give at least 1\n")
    assert not Path("never").exists()


def test_commands_say_the_same_by_every_kind_of_data() -> None:
    converted("data.npz")
    checked = ("check", "--model", "model.py:build", "--input-shape", "1,8,8", "--calibration")
    for command in (("evaluate", "out", "--data"), ("cost", "out", "--samples", 7, "--data"), checked):
        plain = shown(*command, "data.npz")
        for data in ("images", "model.py:data"):
            assert shown(*command, data) == plain
    first = shown("evaluate", "out", "--data", "images", "--samples", 15)
    assert (first["samples"], first) == (15, shown("evaluate", "out", "--data", "model.py:data", "--samples", 15))
    alone = run("evaluate", "out", "--data", "data.npy")
    assert alone.exit_code == 2
    assert "data.npy: holds inputs alone; give labels too" in " ".join(alone.stderr.split())
