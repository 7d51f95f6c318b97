"""The command line as a user meets it: results, exit codes, and one clear line where the input cannot be used."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from exporters import bundle, netx
from exporters.engines import available_engines
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from toolchain import convert as converting
from toolchain.app import cli
from toolchain.app.console import guarded
from toolchain.demo import data, load_model
from toolchain.graph.channels import spread

MODEL = f"{Path(load_model.__code__.co_filename).parent / 'model.py'}:digits_cnn"


class Workplace:
    """A folder with everything that a user would bring, and the one conversion that most tests look at."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        digits, model = data.load(), load_model()
        self.weights, self.calibration, self.test = (folder / name for name in ("digits.pt", "cal.npz", "test.npz"))
        torch.save(model.state_dict(), self.weights)
        np.savez(self.calibration, x=digits.calibration_x.numpy(), y=digits.calibration_y.numpy())
        np.savez(self.test, x=digits.test_x.numpy(), y=digits.test_y.numpy())
        self.bundle = folder / "bundle"
        self.converted = run("convert", *self.arguments(), "-o", self.bundle, "--json")

    def arguments(self, **changes: Any) -> list[Any]:
        options = {"model": MODEL, "weights": self.weights, "calibration": self.calibration, **changes}
        return [part for key, value in options.items() for part in (f"--{key}", value)]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("place"))


def refused(result: Result) -> str:
    """The one line of a refusal, with exit code 2 and without a traceback."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines), result.stderr
    return "\n".join(lines)


def test_convert_writes_a_bundle_and_reports_it(place: Workplace) -> None:
    assert place.converted.exit_code == 0
    report = json.loads(place.converted.stdout)
    assert report["accuracy"]["int8"]["n"] == 256
    assert report == json.loads((place.bundle / "report.json").read_text())
    assert {p.name for p in place.bundle.iterdir()} == {
        "network.net", "config.json", "provenance.json", "report.html", "report.json", "report.md",
        "accuracy.png", "attribution.png", "rates.png", "bias_schedule.png",
    }  # fmt: skip
    config = json.loads((place.bundle / "config.json").read_text())
    assert (config["method"], config["weights"]) == ("mse", "fitted")


def test_labels_that_no_output_stands_for_are_refused_and_cost_no_network(place: Workplace, tmp_path: Path) -> None:
    arrays = dict(np.load(place.calibration))
    np.savez(tmp_path / "c.npz", x=arrays["x"], y=arrays["y"] + 1)
    model = place.arguments(calibration=tmp_path / "c.npz")
    for command in (
        ("convert", *model, "--timesteps", 2, "-o", tmp_path / "out"),
        ("evaluate", tmp_path / "out", "--data", tmp_path / "c.npz"),
    ):
        assert "labels: 1..10, but the network has 10 outputs, for classes 0..9; subtract 1" in refused(run(*command))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "accuracy" not in report
    assert report["agreement"]["int8"]["n"] == len(arrays["x"])


def test_convert_says_why_the_accuracy_is_what_it_is_with_and_without_labels(place: Workplace) -> None:
    unlabelled = place.folder / "x.npz"
    np.savez(unlabelled, x=np.load(place.calibration)["x"])
    for calibration, headings in ((unlabelled, ["agrees %"]), (place.calibration, ["accuracy %", "agrees %"])):
        out = place.folder / "why"
        model = place.arguments(calibration=calibration)
        printed = run("convert", *model, "--timesteps", 4, "--sensitivity", "-o", out).stdout
        assert printed.splitlines()[-1].endswith(f"the report as a page: {out / 'report.html'}")
        report = json.loads((out / "report.json").read_text())
        assert [row["name"] for row in report["sensitivity"]] == ["conv1", "conv2", "conv3"]
        assert report["attribution"]["verdict"] in printed
        assert report["attribution"]["verdict"] in (out / "report.md").read_text()
        assert list(report["agreement"]) == ["folded", "thresholds", "int8"]
        assert [h for h in ("accuracy %", "agrees %") if h in printed] == headings
        assert ("accuracy" in report) == (len(headings) == 2)
        ladder = printed[printed.index("agreement with the trained network") :]
        assert f"{report['agreement']['int8']['agreement']:.2f}" in ladder


def test_options_reach_the_recipe(place: Workplace) -> None:
    out = place.folder / "options"
    options = ["--timesteps", 4, "--holdoff", 0, "--method", "ftbc", "--threshold", "max", "--initial", "zero"]
    options += ["--layer-copies", "conv1=2"]
    assert run("convert", *place.arguments(), *options, "-o", out).exit_code == 0
    config = json.loads((out / "config.json").read_text())
    wanted = {"timesteps": 4, "holdoff": 0, "method": "ftbc", "threshold": "max", "initial": "zero"}
    assert config.items() >= (wanted | {"layer_copies": "conv1=2"}).items()
    copied, plain = (netx.read(folder / "network.net").layers for folder in (out, place.bundle))
    assert [a.size // b.size for a, b in zip(copied, plain, strict=True)] == [2, 1, 1, 1]


@pytest.mark.parametrize(("columns", "width"), [({}, "160\n"), ({"COLUMNS": "90"}, "90\n")])
def test_a_pipe_is_wide_unless_told(columns: dict[str, str], width: str) -> None:
    code = "from toolchain.app.console import out; print(out.width)"
    known = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=known | columns)
    assert done.stdout == width, done.stderr


def test_a_recipe_is_a_baseline_that_options_change(place: Workplace) -> None:
    out = place.folder / "baseline"
    assert run("convert", *place.arguments(), "--recipe", "ftbc", "--timesteps", 2, "-o", out).exit_code == 0
    config = json.loads((out / "config.json").read_text())
    wanted = {"timesteps": 2, "holdoff": 0, "method": "ftbc", "weights": "nearest", "threshold": "mse"}
    assert {key: config[key] for key in wanted} == wanted


def test_a_tuned_network_with_a_shifted_input_is_written_and_evaluated(place: Workplace) -> None:
    out = place.folder / "tuned"
    options = ["--recipe", "tuned", "--updates", 3, "--shift-input", "--timesteps", 2]
    assert run("convert", *place.arguments(), *options, "-o", out).exit_code == 0
    config = json.loads((out / "config.json").read_text())
    wanted = {"method": "exact", "weights": "tuned", "updates": 3, "shift_input": True}
    assert {key: config[key] for key in wanted} == wanted
    assert run("evaluate", out, "--data", place.calibration).exit_code == 0


def test_auto_keeps_the_budget_and_explains_its_choice(place: Workplace) -> None:
    out = place.folder / "auto"
    result = run("convert", *place.arguments(), "--auto", "--latency-budget", 7, "-o", out)
    assert result.exit_code == 0
    report = json.loads((out / "report.json").read_text())
    assert all(trial["steps"] <= 7 for trial in report["choice"]["trials"])
    assert report["choice"]["reason"] in result.stdout.replace("\n", " ")
    assert report["choice"]["reason"] in (out / "report.md").read_text()
    assert json.loads(run("inspect", out, "--json").stdout)["steps"] <= 7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--latency-budget", 9], "--latency-budget: 9 steps without --auto; add --auto, or give --timesteps"),
        (["--auto", "--timesteps", 4, "--method", "exact"], "--auto: --timesteps, --method given too"),
        (["--auto", "--latency-budget", 2], "latency budget: 2 steps; this network takes at least 5"),
        (["--recipe", "tsc"], "recipe: unknown recipe 'tsc'; use one of ann2loihi, tuned, stock, rmp"),
    ],
)
def test_options_that_contradict_each_other_are_refused(place: Workplace, options: list[Any], message: str) -> None:
    out = place.folder / "refused"
    result = run("convert", *place.arguments(), *options, "-o", out)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not out.exists()


def test_evaluate_gives_accuracy_interval_and_count_at_every_step(place: Workplace) -> None:
    result = json.loads(run("evaluate", place.bundle, "--data", place.test, "--json").stdout)
    rows = result["accuracy_by_step"]
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(row["n"] == 541 and row["low"] < row["accuracy"] < row["high"] for row in rows)
    assert rows[-1]["accuracy"] > 98
    table = run("evaluate", place.bundle, "--data", place.test, "--samples", 8, "--engine", "reference").stdout
    assert re.search(r"engine reference[\s\S]*samples", table)
    assert len(re.findall(r"^ +[1-8] .* 8 +$", table, re.MULTILINE)) == 8


@pytest.mark.lava
def test_verify_agrees_on_every_engine_that_can_run_here(place: Workplace) -> None:
    result = run("verify", place.bundle, "--data", place.test, "--samples", 2, "--json")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["difference"] is None
    assert [engine["engine"] for engine in document["engines"]] == list(available_engines())
    assert document["summary"].splitlines()[0].endswith("0 differences")


def test_verify_keeps_its_outcome_where_it_is_asked_to(
    place: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from exporters import engines

    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter(()))  # two engines are enough
    out = Path(shutil.copytree(place.bundle, tmp_path / "out"))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    arguments = ("verify", out, "--data", place.test, "--samples", 1)
    assert run(*arguments).exit_code == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    found = json.loads(run(*arguments, "--keep", "--json").stdout)
    kept = json.loads((out / "report.json").read_text())
    assert {engine["engine"] for engine in kept["verification"]["engines"]} >= {"reference", "fast"}
    assert kept["verification"]["summary"] == found["summary"]
    assert kept | {"verification": None} == json.loads(before["report.json"]) | {"verification": None}
    assert f"{len(found['engines'])} engines agree" in (out / "report.html").read_text()
    (out / "report.json").unlink()
    assert "--keep: " in refused(run(*arguments, "--keep"))


def test_verify_ends_with_1_and_names_the_first_difference(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from exporters import engines
    from sim.fast.population import Population

    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter(()))  # two engines are enough
    original = Population.run

    def wrong(*arguments: Any, **options: Any) -> Any:
        fired = original(*arguments, **options)
        fired.potentials[0, 0, 0] += 1
        return fired

    monkeypatch.setattr(Population, "run", wrong)
    result = run("verify", place.bundle, "--data", place.test, "--samples", 1)
    assert result.exit_code == 1
    assert re.search(
        r"differ: layer conv1, step 1, sample 0, neuron \(0, 0, 0\): potential \S+ on reference, \S+ on fast",
        " ".join(result.stdout.split()),
    )


def test_check_judges_a_conversion_for_the_chip_and_measures_what_no_bound_proves(place: Workplace) -> None:
    checking = ("check", place.bundle, "--chip", "loihi2")
    found = json.loads(run(*checking, "--json").stdout)
    assert {"rule", "severity", "where", "value", "limit", "remedy"} == found[0].keys()
    assert not [issue for issue in found if issue["severity"] == "error"]
    assert "silence-unproven" not in {issue["rule"] for issue in found}  # the report knows u outside the windows
    (first,) = (issue for issue in found if issue["rule"] == "silence-measured" and issue["where"] == "conv1")
    assert "on the calibration inputs" in first["value"]
    measured = run(*checking, "--calibration", place.calibration)
    assert measured.exit_code == 0
    assert re.search(
        r"^note silence-measured, .*\n    conv1: \d+ at most, below \d+, on 256 inputs", measured.stdout, re.M
    )
    assert measured.stdout.splitlines()[-1].startswith("0 errors, ")


def foreign(path: Path) -> Path:
    """A file of another tool, with one layer whose weights are all 0."""
    with h5py.File(path, "w") as file:
        file["layer/0/type"], file["layer/0/shape"] = np.array([b"input"], "S10"), [3]
        file["layer/1/type"], file["layer/1/shape"] = np.array([b"dense"], "S10"), [2]
        file["layer/1/weight"] = np.zeros((2, 3))
    return path


def test_check_and_inspect_take_files_of_other_tools(tmp_path: Path) -> None:
    path = foreign(tmp_path / "other.net")
    result = run("check", path, "--chip", "loihi2")
    assert result.exit_code == 1
    assert re.search(r"^error dense-zero, dense weights: .*\n    layer/1 dense: all 6 are 0$", result.stdout, re.M)
    (first, second) = json.loads(run("inspect", path, "--json").stdout)
    assert (first["type"], second["type"], second["weight"], second["range"]) == ("input", "dense", [2, 3], "0..0")
    assert "dense" in run("inspect", path).stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "error: check: --model is missing; give DIR --chip loihi2, or --model and --input-shape"),
        (["--chip", "loihi2"], "error: check: a network is missing; "),
        (["--model", MODEL], "error: check: --input-shape is missing; "),
        (["a.net"], "error: a.net: with --chip None and --model None; give --chip loihi2 and no model"),
        (["a.net", "--chip", "tpu"], "error: a.net: with --chip tpu and --model None; "),
        (["nowhere.net", "--chip", "loihi2"], "error: nowhere.net: there is no such file; "),
    ],
)
def test_check_says_what_is_missing(arguments: list[str], line: str) -> None:
    assert refused(run("check", *arguments)).startswith(line)


def test_inspect_shows_what_a_power_of_two_costs(place: Workplace) -> None:
    text = run("inspect", place.bundle).stdout
    # T = 8 and K = 1: a layer is busy for 9 steps, and one more clears it.
    assert "samples follow each other every 10 steps, 16 where resets come at powers of two (+6)" in text


def test_inspect_shows_the_same_for_directory_and_file(place: Workplace) -> None:
    documents = [
        json.loads(run("inspect", path, "--json").stdout) for path in (place.bundle, place.bundle / "network.net")
    ]
    provenance = documents[0].pop("provenance")
    assert provenance == json.loads((place.bundle / "provenance.json").read_text())
    assert documents[1].pop("provenance") is None
    assert documents[0] == documents[1]
    assert documents[0]["timesteps"] == 8
    assert [layer["name"] for layer in documents[0]["layers"]] == ["conv1", "conv2", "conv3", "fc"]
    table = run("inspect", place.bundle).stdout
    for word in ("conv1", "16x8x8", "theta", "phase", "bias", "neurons", "1024"):
        assert word in table
    assert f"created: {provenance['created']}" in table
    assert f"torch {torch.__version__.partition('+')[0]}" in table
    capability, threads = torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()
    assert f"processor: capability {capability}, threads {threads}" in table
    assert "processor" not in run("inspect", place.bundle / "network.net").stdout


@pytest.mark.parametrize("set_here", [{}, {"ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}])
def test_settings_that_make_a_processor_do_less_are_kept(
    set_here: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in converting.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in set_here.items():
        monkeypatch.setenv(name, value)
    found = converting.processor()
    assert (found.pop("capability"), found.pop("threads")) == (
        torch.backends.cpu.get_cpu_capability(),
        torch.get_num_threads(),
    )
    assert found == set_here


def test_check_lists_layers_and_ends_with_1_when_something_is_refused(place: Workplace) -> None:
    good = run("check", "--model", MODEL, "--input-shape", "1,8,8", "--json")
    assert good.exit_code == 0
    assert {"path": "conv1", "kind": "Conv2d", "shape": [16, 8, 8], "fate": "spiking layer conv1"} in json.loads(
        good.stdout
    )
    bad = place.folder / "bad.py"
    bad.write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(),"
        " nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2))\n"
    )
    result = run("check", "--model", f"{bad}:build", "--input-shape", "1,8,8", "--json")
    assert result.exit_code == 1
    fates = {row["kind"]: row["fate"] for row in json.loads(result.stdout)}
    assert fates["GELU"].startswith("refused")
    assert fates["MaxPool2d"].startswith("refused")


def test_check_compares_with_the_model_itself_on_the_calibration_inputs_too(place: Workplace) -> None:
    late = place.folder / "late.py"
    late.write_text(
        "import torch\nfrom torch import nn\nclass Late(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.fc = nn.Linear(4, 3)\n"
        "    def forward(self, x):\n"
        "        return self.fc(2 * x if type(x) is torch.Tensor and x.max() > 100 else x)\n"
    )
    asked = ("check", "--model", f"{late}:Late", "--input-shape", "4", "--json")
    assert run(*asked).exit_code == 0
    np.savez(place.folder / "large.npz", x=np.full((8, 4), 1000, np.float32))
    result = run(*asked, "--calibration", place.folder / "large.npz")
    assert result.exit_code == 1
    assert "refused: it computes something else than the importer sees" in result.stdout


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_file_that_holds_the_model_converts_like_the_model(place: Workplace, ending: str) -> None:
    path, x = place.folder / f"digits.{ending}", torch.zeros(1, 1, 8, 8)
    if ending == "pt2":
        torch.export.save(torch.export.export(load_model(), (x,)), path)
    else:
        torch.onnx.export(load_model(), x, path, **({} if torch.__version__ < "2.5" else {"dynamo": False}))
    rows = json.loads(run("check", "--model", path, "--input-shape", "1,8,8", "--json").stdout)
    assert [row["fate"] for row in rows if row["kind"] == "linear"] == ["readout"]
    converted = run(
        "convert", "--model", path, "--calibration", place.calibration, "-o", place.folder / ending, "--json"
    )
    accuracy, expected = (json.loads(result.stdout)["accuracy"] for result in (converted, place.converted))
    assert accuracy.keys() == expected.keys()
    for rung, score in expected.items():  # a file may hold the same weights folded in another order
        assert accuracy[rung]["n"] == score["n"]
        assert score["low"] <= accuracy[rung]["accuracy"] <= score["high"]


def test_an_unsupported_model_is_refused_with_every_finding(place: Workplace) -> None:
    bad = place.folder / "unsupported.py"
    bad.write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU(),"
        " nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2))\n"
    )
    out = place.folder / "never"
    lines = refused(run("convert", "--model", f"{bad}:build", "--calibration", place.calibration, "-o", out))
    assert len(lines.splitlines()) == 2
    assert re.search(
        r"error: 1 \(GELU\): integrate-and-fire neurons compute a ReLU and nothing else; replace it", lines
    )
    assert re.search(r"error: 2 \(MaxPool2d\): .*; use nn.AvgPool2d", lines)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({"weights": "none.pt"}, [], "none.pt: no such file or directory"),
        ({"calibration": "none.npz"}, [], "none.npz: no such file or directory"),
        ({"model": "none.py:build"}, [], "none.py: no such file or directory"),
        ({}, ["--timesteps", 0], "timesteps: 0 is out of range; give 1 to 4096"),
        ({}, ["--holdoff", -1], "holdoff: -1 is out of range; give 0 to 4096"),
        ({}, ["--method", "magic"], "method: unknown value 'magic'"),
    ],
)
def test_bad_arguments_get_one_line_and_leave_nothing_behind(
    place: Workplace, changes: dict[str, Any], options: list[Any], message: str
) -> None:
    out = place.folder / "never"
    assert message in refused(run("convert", *place.arguments(**changes), *options, "-o", out))
    assert not out.exists()
    assert not [path for path in place.folder.iterdir() if path.name.startswith(".")]


def test_calibration_data_of_another_shape_is_refused(place: Workplace) -> None:
    np.savez(place.folder / "rgb.npz", x=np.zeros((4, 3, 8, 8), np.float32))
    message = refused(
        run("convert", *place.arguments(calibration=place.folder / "rgb.npz"), "-o", place.folder / "never")
    )
    assert re.search(r"error: conv1 \(Conv2d\): .* have 1 channels, but got 3 channels instead", message)


def test_weights_that_are_not_finite_are_refused_by_name(place: Workplace) -> None:
    state = load_model().state_dict()
    state["conv2.weight"][0] = float("nan")
    torch.save(state, place.folder / "nan.pt")
    message = refused(run("convert", *place.arguments(weights=place.folder / "nan.pt"), "-o", place.folder / "never"))
    assert "conv2.weight" in message


def test_an_output_directory_with_other_files_is_left_alone(place: Workplace) -> None:
    taken = place.folder / "taken"
    taken.mkdir()
    (taken / "thesis.tex").write_text("years of work")
    missing = place.folder / "missing.npz"
    for command in (["convert", *place.arguments(calibration=missing)], ["demo"]):  # looked at before anything is read
        assert refused(run(*command, "-o", taken)) == (
            f"error: {taken}: it holds what is not of a conversion and would be lost: 'thesis.tex'; give a new or "
            "empty directory, or move that away"
        )
    assert (taken / "thesis.tex").read_text() == "years of work"


def test_a_full_disk_is_one_line_and_leaves_the_old_directory(place: Workplace) -> None:
    out = place.folder / "full"
    shutil.copytree(place.bundle, out)
    before, (soft, hard) = {p.name: p.read_bytes() for p in out.iterdir()}, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        result = run("convert", *place.arguments(), "--timesteps", 2, "-o", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused(result) == (
        f"error: {out}: it cannot be written (File too large); make room, or choose another place"
    )
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert not [p.name for p in place.folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("samples", [-1, 0, 999])
def test_the_demo_refuses_samples_that_there_are_not_before_it_converts(
    samples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolchain.demo.run.convert", None)
    message = f"error: samples: {samples} asked for; the data holds 1 to 541"
    assert refused(run("demo", "--samples", samples, "-o", tmp_path / "demo")) == message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cut", "cannot be read as HDF5"),
        ("newer", "format"),
    ],
)
def test_a_net_file_that_is_not_whole_or_of_a_later_version_is_refused(
    place: Workplace, content: str, message: str
) -> None:
    path = place.folder / f"{content}.net"
    whole = (place.bundle / "network.net").read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "cut" else whole)
    if content == "newer":
        with h5py.File(path, "r+") as file:
            file.attrs["format_version"] = 99
    assert message in refused(run("inspect", path))


def test_data_that_does_not_fit_a_bundle_is_refused(place: Workplace) -> None:
    np.savez(place.folder / "unlabelled.npz", x=np.zeros((2, 1, 8, 8), np.float32))
    assert "has no array 'y'" in refused(run("evaluate", place.bundle, "--data", place.folder / "unlabelled.npz"))
    assert "samples: 999 asked for" in refused(run("verify", place.bundle, "--data", place.test, "--samples", 999))
    assert "'magic' not known; use reference, fast, lava, lava-stock, netx" in refused(
        run("evaluate", place.bundle, "--data", place.test, "--engine", "magic")
    )
    assert "no such directory" in refused(run("evaluate", place.folder / "none", "--data", place.test))


def test_lava_commands_say_which_environment_to_create_where_lava_is_absent(place: Workplace) -> None:
    code = (
        "import sys; sys.modules['lava'] = None; from toolchain.app.cli import main; "
        f"sys.argv = ['ann2loihi', 'evaluate', {str(place.bundle)!r}, '--data', {str(place.test)!r}, "
        "'--samples', '1', '--engine', 'lava']; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Lava is not installed: it exists for Python 3.10 only" in done.stderr
    assert "pip install 'ann2loihi[lava]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_fit_shows_cores_and_says_with_1_that_a_layer_cannot_be_placed(place: Workplace, tmp_path: Path) -> None:
    found = json.loads(run("fit", place.bundle, "--json").stdout)
    assert found["cores"] == sum(row["cores"] for row in found["layers"])
    assert json.loads(run("fit", place.bundle / "network.net", "--json").stdout) == found
    assert json.loads((place.bundle / "report.json").read_text())["fit"] == found
    assert f"{found['cores']} cores, 1 chip, {found['neurons']} neurons" in run("fit", place.bundle).stdout
    edge = Edge(INPUT, Dense(np.ones((2, 20_000), int)))
    readout = Layer("fc", (2,), (edge,), 0, np.zeros(2, int), np.zeros((1, 2), int), "readout")
    netx.save(Network(Input((20_000,)), (readout,), 1), tmp_path / "wide.net")
    result = run("fit", tmp_path / "wide.net")
    assert result.exit_code == 1
    assert "fc: no tile is within the limits of a core; use fewer inputs" in result.stdout
    for arguments in (("fit", place.bundle), ("cost", place.bundle, "--data", place.test)):
        assert "'wide' are not known; use loihi2" in refused(run(*arguments, "--chip", "wide"))


def test_cost_counts_on_data_and_shows_ranges_with_their_sources(place: Workplace) -> None:
    arguments = ("cost", place.bundle, "--data", place.test, "--samples", 5)
    found = json.loads(run(*arguments, "--json").stdout)
    assert found["samples"] == 5
    assert found["spikes"] == pytest.approx(sum(row["spikes"] for row in found["layers"]))
    shown = run(*arguments).stdout
    assert "n/a" in shown
    assert "Loihi 1" in shown
    assert f"logits after {found['steps']} steps, samples every {found['period']}" in shown


def test_compare_puts_directories_beside_each_other_and_draws_them(place: Workplace, tmp_path: Path) -> None:
    found = json.loads(run("compare", place.bundle, place.bundle, "--json").stdout)
    report = json.loads((place.bundle / "report.json").read_text())
    assert len(found) == 2
    assert found[0]["accuracy"] == report["accuracy"]["int8"]["accuracy"]
    assert found[0]["synaptic_events"] == report["cost"]["synaptic_events"]
    assert found[0]["cores"] == report["fit"]["cores"]
    assert "conversions beside each other" in run("compare", place.bundle, "--plot", tmp_path / "a.png").stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    bare = shutil.copytree(place.bundle, tmp_path / "bare")
    (bare / "report.json").unlink()
    assert json.loads(run("compare", bare, "--json").stdout)[0].keys().isdisjoint({"accuracy", "spikes"})
    assert "nothing was measured" in refused(run("compare", bare, "--plot", tmp_path / "b.png"))


def test_the_report_counts_what_the_command_counts_on_the_same_inputs(place: Workplace, tmp_path: Path) -> None:
    with np.load(place.calibration) as arrays:
        x = arrays["x"]
    np.savez(tmp_path / "same.npz", x=x[spread(len(x)).numpy()])
    found = json.loads(run("cost", place.bundle, "--data", tmp_path / "same.npz", "--json").stdout)
    assert json.loads((place.bundle / "report.json").read_text())["cost"] == found


@pytest.mark.parametrize(
    "command", ["check", "convert", "evaluate", "verify", "inspect", "fit", "cost", "compare", "demo"]
)
def test_every_command_has_an_example_in_its_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: ann2loihi {command}" in " ".join(result.output.split())


@pytest.mark.lava
def test_the_demo_meets_its_promises(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    result = run("demo", "-o", out)
    assert result.exit_code == 0
    assert "16 samples" in result.stdout
    assert "0 differences" in result.stdout
    report = json.loads((out / "report.json").read_text())
    ann, int8 = (report["accuracy"][rung] for rung in ("ann", "int8"))
    assert ann["n"] == int8["n"] >= 360
    assert ann["accuracy"] >= 98
    assert int8["accuracy"] >= ann["accuracy"] - 1
    assert report["accuracy_by_timesteps"]["4"]["accuracy"] >= ann["accuracy"] - 3
    assert report["accuracy"]["lava"]["n"] == 16
    assert [e["differences"] for e in report["verification"]["engines"]] == [0] * 5
    assert report["agreement"]["lava"]["n"] == 16
    assert report["attribution"]["verdict"] in result.stdout
    pictures = {"accuracy.png", "attribution.png", "rates.png", "bias_schedule.png"}
    assert {"network.net", "report.html", "report.json", "report.md", *pictures} <= {p.name for p in out.iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert", "--timesteps", "many"], r"error: Invalid value for '--timesteps': .*integer.* \(see --help\)"),
        (["inspect"], r"error: Missing argument 'DIR\|FILE.net\|FILE.nir'.* \(see --help\)"),
        (["fly"], r"error: No such command 'fly'.* \(see --help\)"),
        (["inspect", "--fast", "x"], r"error: No such option: --fast.* \(see --help\)"),
    ],
)
def test_a_command_line_that_cannot_be_read_gets_one_line(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ann2loihi", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(message + "\n", said.err), said.err


def test_what_a_command_refuses_keeps_its_exit_code_through_the_entry_point(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["ann2loihi", "inspect", "nowhere.net"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


NETWORKS = """
from torch import nn

def wide():
    pool = nn.AvgPool2d(3, 2, ceil_mode=True), nn.Conv2d(4, 2, 2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), *pool, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))

def scored():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(dim=1))
"""


def test_the_limit_of_a_matrix_and_what_is_left_off_are_options_of_check_and_convert(tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text(NETWORKS)
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).random((64, 1, 8, 8), np.float32))
    cases = (
        (
            "wide",
            ["--dense-limit", 100],
            [],
            "dense matrix of 8 x 144 = 1,152 weights, more than 100; raise dense_limit",
        ),
        ("scored", [], ["--leave-off-last"], "it normalises over all classes; leave it off: pass leave_off_last=True"),
    )
    for name, refusing, accepting, message in cases:
        model = f"{tmp_path / 'networks.py'}:{name}"
        checking = ["check", "--model", model, "--input-shape", "1,8,8", "--json"]
        result = run(*checking, *refusing)
        assert (result.exit_code, message in result.stdout) == (1, True)
        assert run(*checking, *accepting).exit_code == 0
        converting = ["convert", "--model", model, "--calibration", tmp_path / "x.npz", "-o", tmp_path / "out"]
        assert message in refused(run(*converting, *refusing))
        assert run(*converting, *accepting, "--timesteps", 2).exit_code == 0
    assert run(*converting, *accepting, "--auto", "--latency-budget", 4).exit_code == 0
    assert "dense_limit: 0 is no number of weights; give a positive integer" in refused(
        run(*checking, "--dense-limit", 0)
    )


TIME_FIRST = """
import torch
from torch import nn

class Recording(nn.Module):
    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.conv, self.fc = nn.Conv1d(3, 6, 5), nn.Linear(120, 3)
        for parameter in self.parameters():
            parameter.data.copy_((torch.rand(parameter.shape, generator=g) - 0.4) / 3)
        self.conv.weight.data /= torch.tensor([1.0, 2000.0, 0.1])[:, None]

    def forward(self, x):
        return self.fc(self.conv(x.transpose(1, 2)).relu().flatten(1))
"""


def test_recordings_with_time_first_and_units_of_their_own_go_through_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compared: Callable[[str], None]
) -> None:
    from exporters import bundle, engines

    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter(()))  # two engines are enough
    (tmp_path / "recording.py").write_text(TIME_FIRST)
    model, units = f"{tmp_path / 'recording.py'}:Recording", np.array([1, 2000, 0.1])
    x = np.random.default_rng(0).random((96, 24, 3)) * units
    x[7, 3, 1] = 2000.0  # one value sets the range
    np.savez(tmp_path / "x.npz", x=x, y=np.arange(96) % 3)
    np.savez(tmp_path / "loud.npz", x=np.concatenate([x[:3], x[:1] * 1000]), y=np.arange(4) % 3)
    checked = run("check", "--model", model, "--input-shape", "24,3", "--json")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)[0] == {
        "path": "input", "kind": "rearrangement", "shape": [3, 24, 1], "fate": "put in order by the host, from 24 x 3",
    }  # fmt: skip
    out = tmp_path / "out"
    converted = run("convert", "--model", model, "--calibration", tmp_path / "x.npz", "-o", out, "--timesteps", 8)
    assert converted.exit_code == 0, converted.output
    said = (
        "The host puts inputs of 24 x 3 in order as 3 x 24 x 1.",
        "Each of the 3 channels of the input has a payload scale of its own, from",
    )
    for text in (converted.output, (out / "report.md").read_text()):
        assert all(sentence in " ".join(text.split()) for sentence in said)
    stored = bundle.load(out)
    assert stored.report is not None
    assert len(stored.report.input) == 2
    network = stored.network
    assert (network.input.shape, network.input.model_shape) == ((3, 24, 1), (24, 3))
    turned = x.astype(np.float32).astype(float).transpose(0, 2, 1)[..., None]
    payload = np.rint(turned * np.asarray(network.input.scale)[:, None, None]).clip(-127, 127)
    assert np.array_equal(network.input.encode(x.astype(np.float32)), payload)
    shown = json.loads(run("inspect", out, "--json").stdout)["input"]
    assert (shown["shape"], shown["given"], shown["scale"]) == ([3, 24, 1], [24, 3], network.input.scale.tolist())
    assert "input 3 x 24 x 1, taken from 24 x 3, 8 bits" in " ".join(run("inspect", out).output.split())
    verified = json.loads(run("verify", out, "--data", tmp_path / "x.npz", "--samples", 4, "--json").stdout)
    assert [engine["engine"] for engine in verified["engines"]] == ["reference", "fast"]
    assert verified["difference"] is None
    compared("reference = fast")
    evaluated = run("evaluate", out, "--data", tmp_path / "x.npz", "--json")
    assert (json.loads(evaluated.stdout)["samples"], json.loads(evaluated.stdout)["findings"]) == (96, [])
    counted = json.loads(run("cost", out, "--data", tmp_path / "x.npz", "--samples", 4, "--json").stdout)
    assert counted["samples"] == 4
    # All of one sample in four, but for what is still inside at a thousand times its value.
    loud = run("evaluate", out, "--data", tmp_path / "loud.npz").output
    assert re.search(r"2[0-9] % of the input values are clipped, most of them in channel", " ".join(loud.split()))


def test_no_command_puts_a_file_in_the_place_of_a_conversions_own(place: Workplace) -> None:
    before = {path.name: path.read_bytes() for path in place.bundle.iterdir()}
    for arguments in (
        ("evaluate", place.bundle, "--data", place.test, "--report", place.bundle / "report.json"),
        ("evaluate", place.bundle, "--data", place.test, "--resume", place.bundle / "config.json"),
        ("compare", place.bundle, "--plot", place.bundle / "attribution.png"),
        ("export", place.bundle, "--form", "graph", "-o", place.bundle / "network.net"),
        ("export", "nir", place.bundle, place.bundle / "report.md"),
    ):
        assert refused(run(*arguments)).endswith(": belongs to the conversion in its directory; give another name")
    assert {path.name: path.read_bytes() for path in place.bundle.iterdir()} == before


def test_a_conversions_directory_takes_files_of_other_names(place: Workplace, tmp_path: Path) -> None:
    bundle.apart(place.bundle / "mine.json")
    bundle.apart(tmp_path / "report.json")


def test_a_pipe_that_nobody_reads_is_not_the_users_mistake() -> None:
    with pytest.raises(BrokenPipeError):
        guarded(lambda: (_ for _ in ()).throw(BrokenPipeError(errno.EPIPE, "Broken pipe")))()


def test_what_the_file_system_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    message = refused(run("device", "selftest", "--record", tmp_path / "taken"))
    assert message == f"error: {tmp_path / 'taken'}: file exists; check the path, its permissions and its disk"


def test_names_are_no_emoji(tmp_path: Path) -> None:
    (tmp_path / "networks.py").write_text("def two():\n    return 1, 2\n")
    assert "networks.py:two" in refused(run("check", "--model", f"{tmp_path / 'networks.py'}:two", "--input-shape", 4))


def test_export_writes_a_form_or_names_what_it_cannot_hold(place: Workplace, tmp_path: Path) -> None:
    first = (place.bundle / "network.net").read_bytes()
    shown = run("export", place.bundle, "-o", tmp_path / "same.net")
    assert (shown.exit_code, (tmp_path / "same.net").read_bytes() == first) == (0, True)
    assert "in the form netx" in " ".join(shown.output.split())
    said = json.loads(run("export", place.bundle, "-o", tmp_path / "same.net", "--json").stdout)
    assert said == {"file": str(tmp_path / "same.net"), "form": "netx", "loader": "lava-dl netx"}
    assert "recurrent synapses in dense layers alone" in refused(
        run("export", place.bundle, "--form", "stock", "-o", tmp_path / "stock.net")
    )
    assert "'other'" in refused(run("export", place.bundle, "--form", "other", "-o", tmp_path / "other.net"))
    again = run("export", tmp_path / "same.net", "--form", "graph", "-o", tmp_path / "graph.net")
    assert again.exit_code == 0
    assert netx.read(tmp_path / "graph.net") == netx.read(tmp_path / "same.net")


def test_fit_prices_a_clock_and_verify_takes_the_input_as_currents(place: Workplace) -> None:
    written, clocked = (
        json.loads(run("fit", place.bundle, "--schedule", who, "--json").stdout) for who in ("written", "clock")
    )
    assert [row["name"] for row in clocked["layers"]] == ["(clock)", *(row["name"] for row in written["layers"])]
    assert clocked["neurons"] - written["neurons"] == clocked["layers"][0]["neurons"]
    shown = run("verify", place.bundle, "--data", place.test, "--samples", 1, "--inputs", "currents")
    assert shown.exit_code == 0, shown.output
    assert "form 'graded'; use payload, currents, spikes" in refused(
        run("verify", place.bundle, "--data", place.test, "--samples", 1, "--inputs", "graded")
    )


def test_forms_of_the_input_are_converted_compared_and_go_with_the_directory(place: Workplace, tmp_path: Path) -> None:
    options = ("--input-form", "spikes", "--reset-interval", "power-of-two", "--compare-forms", "--timesteps", 2)
    shown = run("convert", *place.arguments(), *options, "-o", tmp_path / "a")
    assert "converted for other forms of the input" in shown.stdout
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert [row["input"] for row in report["forms"]] == ["payload", "currents", "spikes"]
    assert "input.neurons" in report["input"][0]
    found = json.loads(run("inspect", tmp_path / "a", "--json").stdout)
    assert (found["input"]["form"], found["period"]) == ("spikes", found["reset_interval"])
    assert "brought in as spikes; loads with lava-dl netx" in " ".join(run("inspect", tmp_path / "a").stdout.split())
    (row,) = json.loads(run("compare", tmp_path / "a", "--json").stdout)
    assert (row["input"], row["period"]) == ("spikes", found["reset_interval"])
    right = json.loads(run("evaluate", tmp_path / "a", "--data", place.test, "--json").stdout)
    assert right["overflowed"] == 0
    assert "reset themselves" in refused(run("export", tmp_path / "a", "--form", "stock", "-o", tmp_path / "b.net"))
    assert "writes anyway" in refused(run("export", tmp_path / "a", "--form", "clock", "-o", tmp_path / "b.net"))
    clocked = run("export", place.bundle, "--form", "clock", "-o", tmp_path / "c.net")
    assert "in the form clock; loads with ann2loihi" in " ".join(clocked.output.split())
    assert json.loads(run("inspect", tmp_path / "c.net", "--json").stdout)["loader"] == "ann2loihi"
