"""The training benchmark trains what it says, in time, and shows what was measured."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from benchmarks import papers, training
from benchmarks.training import Cell, Job, cells, chosen, farm, spread_of, table, variants
from sim.findings import Refused
from toolchain.loading import load_model
from toolchain.recipe import RECIPES
from toolchain.surgery import record


def test_variants_differ_in_what_they_are_about_alone() -> None:
    groups = variants()
    for seed in training.SEEDS:
        qcfs, nq, fixed = (groups["table"][f"{kind}-{seed}"] for kind in ("qcfs", "nq", "nq-fixed"))
        same = {"activation": "nq", "noise": "layerwise", "delta": 0.0}
        assert qcfs.as_dict() | same == nq.as_dict() == fixed.as_dict() | same
        assert nq.seed == seed
    names = [name for group in groups.values() for name in group]
    assert len(names) == len(set(names))
    assert chosen("table,relu", 3, 9)["qcfs-1"].epochs == 3
    assert chosen("best", 3, 9)["best-L4"].epochs == 9
    with pytest.raises(Refused, match="--only: unknown 'vgg'; use some of best, table"):
        chosen("vgg", 1, 1)


def test_no_conversion_is_measured_twice_and_the_targets_come_first() -> None:
    found = list(cells())
    assert len(found) == len(set(found)) == len({cell.key for cell in found})
    assert {(c.timesteps, c.holdoff) for c in found[:9]} == {(8, 1), (4, 1), (2, 1)}
    for cell in found:
        assert cell.recipe.timesteps == cell.timesteps
    assert Cell("relu", 4, 1, "mse, fitted").recipe.threshold == "mse"


def job(name: str, code: str, folder: Path, seconds: float = 0.0) -> Job:
    (folder / f"{name}_job.py").write_text(code)
    return Job(name, [str(folder / f"{name}_job.py")], folder / f"{name}.log", lambda: seconds)


def test_jobs_run_several_at_a_time_and_what_would_end_too_late_is_not_begun(tmp_path: Path) -> None:
    seen = "import pathlib, time\nwhile not pathlib.Path(__file__).with_name('{}').exists(): time.sleep(0.01)"
    jobs = [
        job("one", f"print('done'); open(__file__[:-7], 'w')\n{seen.format('two')}", tmp_path),
        job("two", f"open(__file__[:-7], 'w')\n{seen.format('one')}\nraise SystemExit(3)", tmp_path),
        job("long", "print('never')", tmp_path, 1e6),
    ]
    # each of the two ends once it sees the other's file
    assert sorted(farm(jobs, 2, 1e5, "testing")) == ["long: not begun", "two: ended with 3"]
    assert (tmp_path / "one.log").read_text() == "done\n"
    assert not (tmp_path / "long.log").exists()


def test_jobs_are_stopped_when_time_is_over(tmp_path: Path) -> None:
    """Without that this test would not end."""
    assert farm([job("slow", "import time; time.sleep(1e6)", tmp_path)], 1, 1.0, "testing") == ["slow: stopped"]


def trained(folder: Path, name: str, state: dict[str, torch.Tensor] | None = None) -> None:
    (folder / name).mkdir(parents=True)
    known = {"ann2loihi": record("nq", 4, (3, 32, 32))} if state is None else {}
    torch.save(known | {"state_dict": state or {"w": torch.zeros(250_000)}}, folder / name / "trained.pt")
    (folder / name / "history.json").write_text(json.dumps({"history": [{"seconds": 1.0}]}))


def test_what_was_trained_travels_in_few_files(tmp_path: Path) -> None:
    names = [name for group in variants().values() for name in group][:20]
    for name in names:
        trained(tmp_path / "out", name)
    training.packed(tmp_path / "out", tmp_path / "packs")
    packs = list((tmp_path / "packs").iterdir())
    assert len(packs) == 2
    assert max(pack.stat().st_size for pack in packs) <= 16 << 20
    done = CliRunner().invoke(training.app, ["unpack", str(tmp_path / "packs"), "-o", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    for name in names:
        for file in ("trained.pt", "history.json"):
            assert (tmp_path / "new" / name / file).read_bytes() == (tmp_path / "out" / name / file).read_bytes()


def measured(name: str, t: int, k: int, rule: str, value: float) -> dict[str, Any]:
    return {"name": name, "timesteps": t, "holdoff": k, "rule": rule, "ann": 88.0, "accuracy": value, "n": 5000}


def test_the_table_gives_means_and_ranges_over_seeds() -> None:
    rows = [measured(f"nq-{seed}", 4, 0, "none", 80.0 + seed) for seed in range(3)]
    rows += [measured("qcfs-0", 4, 0, "ftbc", 70.0), measured("best-L2", 2, 1, "mse", 84.5)]
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table(rows))
    text = console.export_text()
    assert "n = 5000 test images" in text
    lines = [line.split() for line in text.splitlines()]
    assert [
        "nq",
        "88.00",
        "(88.00",
        "to",
        "88.00)",
        "0",
        "none",
        "-",
        "-",
        "81.00",
        "(80.00",
        "to",
        "82.00)",
        "-",
    ] in lines
    assert ["qcfs", "88.00", "0", "ftbc", "-", "-", "70.00", "-"] in lines
    assert spread_of([]) == "-"


def test_what_was_trained_is_measured_by_the_commands_that_processes_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").mkdir()
    for part in ("train", "test"):
        rng = np.random.default_rng(0)
        np.save(tmp_path / "images" / f"{part}_x.npy", rng.random((8, 3, 32, 32), dtype=np.float32))
        np.save(tmp_path / "images" / f"{part}_y.npy", rng.integers(0, 10, 8))
    trained(tmp_path, "relu", state=load_model(training.RESNET20).state_dict())
    monkeypatch.setattr(training, "cells", lambda: iter([Cell("relu", 1, 0, "none")]))

    def here(jobs: Sequence[Job], at_once: int, seconds: float, what: str) -> list[str]:
        for job in jobs:
            assert job.arguments[:2] == ["-m", "benchmarks.training"]
            done = CliRunner().invoke(training.app, job.arguments[2:])
            assert done.exit_code == 0, done.output
        return []

    monkeypatch.setattr(training, "farm", here)
    command = ["evaluate", "-o", str(tmp_path), "--data", str(tmp_path), "--calibration", "4"]
    done = CliRunner().invoke(training.app, [*command, "--json", str(tmp_path / "rows.json")])
    assert done.exit_code == 0, done.output
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (row["name"], row["calibration"], row["n"], row["timesteps"]) == ("relu", 4, 8, 1)


def test_figures_are_drawn_from_what_there_is(tmp_path: Path) -> None:
    residual = {"layer": "conv1", "activation": "relu", "mean": 0.01, "std": 0.2}
    history = [
        {"epoch": e, "ann": 80.0 + e, "snn": 60.0 + e, "residuals": [residual], "seconds": 1.0} for e in (1, 2, 3)
    ]
    for name in ("qcfs-0", "nq-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "history.json").write_text(json.dumps({"history": history, "best": 3}))
    (tmp_path / "rows").mkdir()
    for t in (1, 2, 4, 8):
        row = measured("nq-0", t, 0, "none", 50.0 + t)
        (tmp_path / "rows" / f"{t}.json").write_text(json.dumps(row))
    done = CliRunner().invoke(training.app, ["show", "-o", str(tmp_path), "--json", str(tmp_path / "copy.json")])
    assert done.exit_code == 0, done.output
    for name in ("residuals", "epochs", "delta", "tau"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads((tmp_path / "copy.json").read_text())["rows"]) == 4
    figure = training.sweep_figure([measured("nq-0", 4, 0, "none", 54.0)], {"nq-0": "tau = 4"}, "step")
    (line,) = figure.axes[0].lines
    assert (line.get_label(), list(line.get_ydata())) == ("tau = 4", [54.0])


def test_every_system_of_the_tables_is_a_recipe() -> None:
    for system in papers.SYSTEMS.values():
        assert system.recipe in RECIPES
        assert system.at(8).timesteps == 8
    assert papers.SYSTEMS["NQ+ours"].at(4).holdoff == 1
    assert papers.SYSTEMS["QCFS"].at(4).holdoff == 0
    files = [file for _, _, file in papers.cells([1, 32])]
    assert len(files) == len(set(files)) == 2 * len(papers.SYSTEMS)
    names = {name for group in variants().values() for name in group}
    assert {system.training for system in papers.SYSTEMS.values()} - {None} <= names


@pytest.mark.slow
@pytest.mark.parametrize("classes", [10, 100])
def test_the_papers_full_settings_build_step_validate_and_convert(classes: int) -> None:
    done = CliRunner().invoke(training.app, ["paper", "--dry-run", "--classes", str(classes)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"{name}, {classes} classes" for name in training.LEVELS]
    assert all("SNN" in line for line in lines)
