"""The benchmarks measure what they say: on the digits, in seconds, against conversions made here."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch.nn import functional
from typer.testing import CliRunner, Result

from benchmarks import accuracy, calibration_time, depth, imagenet, portable, simulation, workload
from benchmarks import compared as comparison
from benchmarks import draws as drawing
from examples.resnet20 import ResNet
from exporters import placement
from exporters.bundle import load
from sim import fast
from sim.findings import refuse
from toolchain.convert import convert
from toolchain.demo import data, load_model
from toolchain.recipe import Method, Recipe, named

N = 60  #: test digits
SMALL = ("--rules", "none,exact", "--timesteps", "1,2", "--holdoffs", "0,1", "--samples", str(N), "--calibration", "64")
ONE = ("--weights-rules", "nearest", "--chips", "loihi2")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(accuracy.app, [str(a) for a in arguments], catch_exceptions=False)


def rows(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())["rows"]
    return found


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("benchmarks") / "accuracy"
    result = run(*SMALL, *ONE, "-o", folder, "--json", folder.parent / "copy.json")
    assert result.exit_code == 0, result.output
    return folder, result


def test_there_is_a_row_for_every_configuration_after_the_trained_network(measured: tuple[Path, Result]) -> None:
    first, *converted = rows(measured[0])
    assert first["recipe"] is None
    assert {(r["recipe"]["method"], r["recipe"]["timesteps"], r["recipe"]["holdoff"]) for r in converted} == {
        (rule, t, k) for rule in ("none", "exact") for t in (1, 2) for k in (0, 1)
    }
    assert len(converted) == 2 * 2 * 2
    assert {row["n"] for row in (first, *converted)} == {N}
    assert {row["calibration"] for row in (first, *converted)} == {64}
    assert json.loads((measured[0].parent / "copy.json").read_text())["rows"] == [first, *converted]


def test_an_accuracy_is_that_of_the_conversion_with_the_same_recipe(measured: tuple[Path, Result]) -> None:
    digits, model = data.load(), load_model()
    first, *converted = rows(measured[0])
    y = digits.test_y[:N].numpy()
    assert first["accuracy"] == 100 * np.mean(model(digits.test_x[:N]).argmax(1).numpy() == y)
    for row in (converted[0], converted[-1]):
        predicted = convert(model, digits.calibration_x[:64], **row["recipe"]).predict(digits.test_x[:N])
        assert row["accuracy"] == 100 * np.mean(predicted == y)
        assert row["low"] < row["accuracy"] <= row["high"] <= 100
        assert row["overflows"] == 0


def test_tables_name_n_and_give_every_accuracy(measured: tuple[Path, Result]) -> None:
    folder, result = measured
    markdown = (folder / "accuracy.md").read_text()
    assert f"n = {N} test images" in markdown
    assert re.search(rf"n = {N}\s+test\s+images", result.output)
    lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    assert lines[2].startswith("|  | trained network | ")
    assert len(lines) == 2 + 1 + 2 * 2  # heads, the trained network, K x rules
    for row in rows(folder):
        text = f"{row['accuracy']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        assert text in markdown
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_shows_the_accuracies_with_their_intervals(measured: tuple[Path, Result]) -> None:
    matrix = accuracy.Matrix(["none", "exact"], [1, 2], [0, 1], ["nearest"], ["loihi2"])
    work = accuracy.workload.load(None, None, 64, N)
    results = accuracy.Results(measured[0] / "results.json", work, resume=True)
    figure = accuracy.Outcome(matrix, results).figure()
    assert f"n = {N} test images" in figure.get_suptitle()
    ann = results.get(None)
    assert ann is not None
    for k, axes in zip(matrix.holdoffs, figure.axes, strict=True):
        assert f"K = {k}" in axes.get_title(loc="left")
        (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
        assert list(np.asarray(dashed.get_ydata())) == [ann["accuracy"]] * 2
        for rule, container in zip(matrix.rules, axes.containers, strict=True):
            wanted = [results.get(Recipe(t, k, rule, "nearest")) for t in matrix.timesteps]
            assert container.get_label() == rule
            line, _, (bars,) = container
            assert list(line.get_ydata()) == [row["accuracy"] for row in wanted if row]
            ends = [[y for _, y in segment] for segment in bars.get_segments()]
            assert np.allclose(ends, [[row["low"], row["high"]] for row in wanted if row])


def test_resuming_measures_only_what_is_missing(
    measured: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = rows(measured[0])
    accuracy.workload.write_json(tmp_path / "results.json", {"rows": kept[:-2]})
    asked: list[Recipe] = []
    measure = accuracy.measure

    def watched(work: Any, graph: Any, recipe: Recipe) -> Any:
        asked.append(recipe)
        return measure(work, graph, recipe)

    monkeypatch.setattr(accuracy, "measure", watched)
    assert run(*SMALL, *ONE, "-o", tmp_path, "--resume").exit_code == 0
    assert [recipe.as_dict() for recipe in asked] == [row["recipe"] for row in kept[-2:]]
    assert [without_times(row) for row in rows(tmp_path)] == [without_times(row) for row in kept]
    # Another number of images is another measurement.
    changed = [str(N - 1) if part == str(N) else part for part in SMALL]
    assert run(*changed, *ONE, "--rules", "none", "--timesteps", "1", "-o", tmp_path, "--resume").exit_code == 0
    assert len(asked) == 2 + 2
    assert len(rows(tmp_path)) == len(kept) + 1 + 2


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if not key.endswith("_seconds")}


def test_results_are_not_overwritten_unasked(measured: tuple[Path, Result]) -> None:
    before = rows(measured[0])
    result = run(*SMALL, *ONE, "-o", measured[0])
    assert result.exit_code == 2
    assert re.search(r"results\.json: exists; go on with --resume, or give another --output", result.stderr)
    assert rows(measured[0]) == before


def test_a_refused_conversion_is_a_row_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def picky(*arguments: Any, **options: Any) -> Any:
        if options["recipe"].timesteps == 2:
            raise refuse("conv1", "no integer threshold [here]", "use fewer timesteps")
        return convert(*arguments, **options)

    monkeypatch.setattr(accuracy, "convert", picky)
    result = run(*SMALL, *ONE, "--rules", "none", "--holdoffs", "1", "-o", tmp_path)
    assert result.exit_code == 0, result.output
    reason = "conv1: no integer threshold [here]; use fewer timesteps"
    assert [row.get("refused") for row in rows(tmp_path)] == [None, None, [reason]]
    assert f"none, T = 2, K = 1, nearest, loihi2: refused: {reason}" in result.output
    assert "| refused |" in (tmp_path / "accuracy.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rules", "best"), "method: unknown value 'best'"),
        (("--timesteps", "0,2"), "timesteps: 0 is out of range; give 1 to 4096"),
        (("--timesteps", "two"), "--timesteps: 'two'; give integers separated by commas"),
        (("--rules", ","), "rules: nothing to measure; name at least one"),
        (("--samples", "542"), "--samples: 542 images asked for; there are 1 to 541"),
        (("--data", "."), "--data, --weights: one without the other"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_line(arguments: tuple[str, str], message: str, tmp_path: Path) -> None:
    result = run(*arguments, "-o", tmp_path / "none")
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert message in result.stderr
    assert not (tmp_path / "none").exists()


def test_every_rule_has_a_marker_and_a_colour_of_its_own() -> None:
    assert set(accuracy.STYLES) == set(get_args(Method))
    assert all(len(set(styles)) == len(styles) for styles in zip(*accuracy.STYLES.values(), strict=True))


def test_the_matrix_has_no_configuration_twice() -> None:
    matrix = accuracy.Matrix(["none", "mse"], [1, 4], [0, 2], ["nearest", "fitted"], ["loihi2", "wide"])
    assert len(matrix.recipes()) == len(set(matrix.recipes())) == 32
    assert replace(Recipe(), timesteps=4, holdoff=2, chip="wide") in matrix.recipes()


def test_calibration_is_timed_against_forward_passes(tmp_path: Path) -> None:
    file = tmp_path / "times.json"
    options = ("--timesteps", "2", "--holdoff", "0", "--calibration", "64", "--repeats", "2", "--threads", "1")
    chosen = ("--rules", ",", "--fitted", "mse", "--json", str(file))
    done = CliRunner().invoke(calibration_time.app, [*options, *chosen], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert [(row["rule"], row["weights"]) for row in found] == [("mse", "fitted")]
    for row in found:
        assert (row["timesteps"], row["holdoff"], row["n"], row["threads"]) == (2, 0, 64, 1)
        ratios = [c / f for c, f in zip(row["seconds"], row["forward_seconds"], strict=True)]
        assert len(ratios) == 2
        assert row["ratio"] == pytest.approx({"median": sum(ratios) / 2, "min": min(ratios), "max": max(ratios)})
        assert 100 << 20 < row["peak_before"] <= row["peak"] < 2 << 30  # bytes: torch alone takes more than 100 MiB
        assert 0 < row["cpu_ratio"]["min"] <= row["cpu_ratio"]["median"] <= row["cpu_ratio"]["max"]
    assert re.search(r"T = 2, K = 0,\s+n = 64", done.stdout)


def test_conversions_are_compared_on_test_images_and_kept(tmp_path: Path) -> None:
    def run(*options: object) -> Result:
        arguments = ["--samples", N, "--calibration", 64, "--timesteps", "1,2", "--holdoffs", "0", *options]
        return CliRunner().invoke(comparison.app, [str(a) for a in arguments], catch_exceptions=False)

    where = ("-o", tmp_path / "all", "--json", tmp_path / "rows.json")
    done = run("--forms", "payload,spikes", *where)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["input"], row["timesteps"]) for row in found] == [
        (f, t) for f in ("payload", "spikes") for t in (1, 2)
    ]
    digits = data.load()
    network = load(tmp_path / "all" / "spikes-t2-k0").network
    decided = network.decode(fast.run(network, network.input.encode(digits.test_x[:N])).logits[:, -1]).argmax(1)
    assert found[-1]["accuracy"] == 100 * np.mean(decided == digits.test_y[:N].numpy())
    assert f"right and agrees on {N} test images" in done.stdout
    assert "it exists; go on with --resume" in run("--forms", "payload", *where).stderr
    assert run("--forms", "spikes", "--resume", *where).exit_code == 0
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == found[2:]
    assert "nothing to measure" in run("--forms", ",", "-o", tmp_path / "none").stderr


def test_conversions_are_measured_on_several_draws_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*options: object) -> Result:
        arguments = [
            "--samples",
            N,
            "--calibration",
            64,
            "--timesteps",
            "1",
            "--draws",
            2,
            "-o",
            tmp_path / "rows.json",
        ]
        return CliRunner().invoke(drawing.app, [str(a) for a in [*arguments, *options]], catch_exceptions=False)

    assert run("--recipes", "ann2loihi,opi").exit_code == 0
    rows = list(json.loads((tmp_path / "rows.json").read_text()).values())
    assert [(row["name"], row["draw"]) for row in rows] == [(n, d) for n in ("ann2loihi", "opi") for d in (0, 1)]
    digits, model = data.load(), load_model()
    for row in rows:
        drawn = digits.calibration_x[64 * row["draw"] :][:64]
        conversion = convert(model, drawn, recipe=Recipe(**row["recipe"]))
        decided = conversion.predict(digits.test_x[:N])
        assert row["accuracy"] == 100 * np.mean(decided == digits.test_y[:N].numpy())
        trace = conversion.run(digits.test_x[:N])
        assert row["spikes"] == sum(int(fired.sum()) for fired in trace.spikes.values()) / N
        assert (row["steps"], row["cores"]) == (conversion.network.steps, placement.fit(conversion.network).cores)
    assert "exists; go on with --resume" in run().stderr
    monkeypatch.setattr(drawing, "convert", None)  # nothing is converted again
    done = run("--recipes", "opi", "--resume")
    assert done.exit_code == 0
    mean = np.mean([row["accuracy"] for row in rows if row["name"] == "opi"])
    assert f"{mean:.2f} +- " in done.stdout
    assert "nothing to measure" in run("--recipes", ",", "--resume").stderr
    (tmp_path / "rows.json").write_text("[]")
    assert "does not hold results" in run("--resume").stderr


def test_depths_are_trained_converted_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 3, 16, 16, generator=generator), torch.arange(40) % 10
    monkeypatch.setattr(workload, "decode", lambda path, count: (x, y))

    def run(*options: str) -> Result:
        arguments = ["--data", ".", "--blocks", "1", "--timesteps", "2", "--epochs", "1", "-o", str(tmp_path), *options]
        return CliRunner().invoke(depth.app, arguments, catch_exceptions=False)

    done = run("--recipes", "default,1.5 x neurons")
    assert done.exit_code == 0, done.stderr
    plain, wider = (
        json.loads((tmp_path / "resnet8" / f"T2-{name}.json").read_text()) for name in ("default", "1.5-x-neurons")
    )
    assert plain["recipe"] == named(timesteps=2).as_dict()
    assert 1.2 < wider["neurons"] / plain["neurons"] <= 1.5
    for row in (plain, wider):
        assert sum(row["own"].values()) == pytest.approx(1)
        model, images = ResNet(1), functional.avg_pool2d(x, 2)
        model.load_state_dict(torch.load(tmp_path / "resnet8" / "trained.pt", weights_only=True)["state_dict"])
        conversion = convert(model, images, recipe=Recipe(**row["recipe"]))
        assert row["accuracy"] == 100 * np.mean(conversion.predict(images) == y.numpy())
    assert f"{plain['trained'] - plain['accuracy']:.2f}" in done.stdout
    monkeypatch.setattr(depth, "convert", None)  # nothing is converted again
    assert run("--recipes", "default").exit_code == 0
    assert "--recipes: unknown 'deep'; use some of default, 1.5 x neurons, tuned" in run("--recipes", "deep").stderr
    for option in ("--recipes", "--blocks", "--timesteps"):
        assert "nothing to measure; name at least one of each" in run(option, ",").stderr


@pytest.mark.slow
def test_networks_of_imagenet_are_converted_and_simulated(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    sizes = ("--calibration", "4", "--samples", "4", "--size", "64", "--timesteps", "2")
    done = CliRunner().invoke(imagenet.app, ["--networks", "resnet18", *sizes, "--json", str(file)])
    assert done.exit_code == 0, done.output
    (row,) = json.loads(file.read_text())
    assert row["convert"]["neurons"] > 50_000
    assert row["simulate"]["correlation"] > 0.5
    assert row["simulate"]["ratio"] == row["simulate"]["seconds"] / row["simulate"]["ann_seconds"]
    assert "unknown network 'lenet'" in CliRunner().invoke(imagenet.app, ["--networks", "lenet"]).stderr


def test_the_portable_form_of_nir_is_measured_where_it_is_executed(tmp_path: Path) -> None:
    file = tmp_path / "portable.json"
    done = CliRunner().invoke(portable.app, ["--timesteps", "4", "--samples", "20", "--json", str(file)])
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    (row,) = found["rows"]
    assert (found["samples"], row["T"]) == (20, 4)
    assert row["exact"] >= row["portable"] > 50
    assert 0 < row["theirs"] < row["spikes"]  # a reset to zero loses what is above the threshold


def test_simulation_is_timed_against_the_trained_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "available_engines", lambda: ("reference", "fast"))
    monkeypatch.setattr(simulation, "STEPS", (1, 2))
    file = tmp_path / "simulation.json"
    options = ("--timesteps", "2", "--samples", "16", "--calibration", "64", "--repeats", "2", "--threads", "1")
    done = CliRunner().invoke(
        simulation.app, [*options, "--json", str(file), "-o", str(tmp_path)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    found = json.loads(file.read_text())
    assert [row["name"] for row in found["rows"]] == ["ANN, float32", "fast", "textbook loop"]
    assert found["rows"][0]["ratio"] == {"median": 1, "min": 1, "max": 1}
    assert 0 < found["operations"]["effective"] < found["operations"]["dense"]
    assert [row["n"] for row in found["growth"]["timesteps"]] == [1, 2]
    assert {"float32", "int8"} & found["paths"].keys()
    assert (tmp_path / simulation.PLOT).read_bytes().startswith(b"\x89PNG")


def test_a_network_with_other_steps_repeats_its_schedule() -> None:
    digits, model = data.load(), load_model()
    network = convert(model, digits.calibration_x[:64], 3, method="none", weights="nearest").network
    longer, shorter = (simulation.with_steps(network, steps) for steps in (7, 2))
    for layer in network.layers:
        assert np.array_equal(longer[layer.name].bias, layer.bias[[0, 1, 2, 0, 1, 2, 0]])
        assert np.array_equal(shorter[layer.name].bias, layer.bias[:2])
