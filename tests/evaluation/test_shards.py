"""An evaluation says the same in whatever shards, whoever runs them, and however often it was killed on the way."""

from __future__ import annotations

import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusing import refusal
from torch import nn

import ann2loihi as a2l
from exporters import engines
from exporters.report import Evaluation, summed
from exporters.report.markdown import render, render_evaluation
from sim.findings import Refused, refuse
from sim.fixedpoint import RegisterOverflow
from sim.operations import operations
from sim.progress import reporting
from toolchain.app.cli import app
from toolchain.assessment import evaluate, workers
from toolchain.data import Arrays
from toolchain.data.source import LOOKED_AT
from toolchain.graph.channels import spread

ROOT = Path(__file__).parents[2]
X = torch.rand(23, 2, 6, 6, generator=torch.Generator().manual_seed(0))
DRAWN = np.random.default_rng(0)
LABELS: dict[str, np.ndarray] = {
    "classes": DRAWN.integers(0, 3, 23),
    "labels": DRAWN.integers(0, 2, (23, 3)),
    "pixels": DRAWN.integers(0, 3, (23, 4, 4)),
    "regression": DRAWN.normal(size=(23, 3, 4, 4)) * 1000 + 7,
}


def model(task: str = "classes") -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1)]
    if task in ("classes", "labels"):
        layers += [nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)]
    return nn.Sequential(*layers).eval()


@functools.cache
def converted(task: str = "classes") -> a2l.Conversion:
    return a2l.convert(model(task), X, 4, task=task)


def evaluated(task: str = "classes", **options: Any) -> Evaluation:
    return evaluate(converted(task).network, X, LABELS[task], task=task, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", LABELS)
def test_the_size_of_shards_changes_nothing(task: str) -> None:
    plain = evaluated(task)
    assert (plain.task, plain.samples, len(plain.accuracy_by_step)) == (task, 23, 4)
    for shard in (1, 7, 23, 1000):
        assert evaluated(task, shard=shard) == plain
    outputs = converted(task).decode(converted(task).run(X, overflow="count").logits)
    wanted = a2l.assessment.by_step(outputs, LABELS[task], converted(task).task)
    assert plain.accuracy_by_step == wanted


def test_processes_share_the_shards() -> None:
    assert evaluated(workers=2, shard=5) == evaluated()


def test_what_is_counted_is_what_the_trace_shows() -> None:
    network = converted().network
    payload = network.input.encode(X)
    trace = engines.run("reference", network, payload, count=True)
    found = evaluated()
    caused = operations(network, trace.fired, payload)
    for row in found.layers:
        spikes, layer = trace.spikes[row.name], network[row.name]
        assert row.spikes == int(spikes.sum(dtype=np.int64)) / 23
        assert row.rate == (None if layer.kind == "readout" else pytest.approx(spikes.sum() / (23 * layer.size * 4)))
        assert row.peak == trace.peak[row.name]
        assert (row.dense, row.effective_macs, row.effective_acs) == (
            caused[row.name].dense, caused[row.name].macs, caused[row.name].acs,
        )  # fmt: skip
    assert found.spikes == pytest.approx(sum(row.spikes for row in found.layers))
    assert found.dense == sum(row.dense for row in found.layers)
    assert found.effective_acs == pytest.approx(sum(row.effective_acs for row in found.layers))
    assert summed(found.layers).peak == max(trace.peak.values())
    assert evaluated(engine="reference", shard=6).as_dict() == found.as_dict() | {"engine": "reference"}
    assert Evaluation.from_dict(json.loads(json.dumps(found.as_dict())), "evaluation") == found


def test_the_report_of_a_conversion_says_the_same_of_its_layers() -> None:
    conversion, y = converted(), LABELS["classes"]
    measured = a2l.assessment.report(conversion, model(), X, y)
    assert measured.activity == evaluated().layers
    assert measured.accuracy_by_step == evaluated().accuracy_by_step
    (table,) = (part for part in render(measured).split("## ") if part.startswith("Activity"))
    assert table.rstrip() in render_evaluation(evaluated(), "title")


def test_markdown_shows_every_step_and_layer() -> None:
    found = evaluated()
    text = render_evaluation(found, "title")
    assert text.startswith("# title\n\n## Accuracy\n\n| step | accuracy in % |")
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")][-4:] == [
        *(f"| {row.name}" for row in found.layers), "| sum",
    ]  # fmt: skip
    assert f"| {summed(found.layers).peak} |\n\nu and v have to stay below 131072 su.\n" in text


def test_one_bar_counts_samples_through_all_shards(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    with reporting(lambda *step: seen.append(step)):
        evaluated(shard=10, resume=tmp_path / "r")
    assert {(what, total) for what, _, total in seen} == {("evaluating", 23)}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert {0, 10, 20, 23} <= {done for _, done, _ in seen}
    seen.clear()
    with reporting(lambda *step: seen.append(step)):
        evaluated(shard=10, resume=tmp_path / "r")
    assert seen[-1] == ("evaluating", 23, 23)


def test_finished_shards_are_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    original = engines.run

    def counting(engine: str, network: Any, payload: Any, **options: Any) -> Any:
        ran.append(len(payload))
        return original(engine, network, payload, **options)

    for task in LABELS:
        plain, path = evaluated(task), tmp_path / task
        assert evaluated(task, shard=7, resume=path) == plain
        lines = path.read_bytes().splitlines(keepends=True)
        assert len(lines) == 5
        path.write_bytes(b"".join([*lines[:2], lines[3], lines[2][:30]]))  # killed in the middle of a line
        ran.clear()
        with monkeypatch.context() as patch:
            patch.setattr(engines, "run", counting)
            assert evaluated(task, resume=path) == plain  # in the size of shards that the file has
        assert ran == [7, 2]
        assert sorted(path.read_bytes().splitlines()) == sorted(b"".join(lines).splitlines())


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    evaluated(shard=7, resume=tmp_path / "begun")
    return tmp_path / "begun"


def other_network() -> Any:
    return a2l.convert(converted().graph, X, 4, method="none", task="classes").network


def test_shards_of_something_else_are_refused_in_one_line(begun: Path, tmp_path: Path) -> None:
    def said(network: Any = None, x: Any = X, y: Any = LABELS["classes"], **options: Any) -> str:
        network = network or converted().network
        return refusal(lambda: evaluate(network, x, y, resume=begun, **({"task": "classes"} | options)))

    whole = begun.read_bytes()
    end = "; give another file, or what it was begun with"
    assert said(other_network()) == f"{begun}: holds shards of another network{end}"
    assert said(x=X.flip(0)) == f"{begun}: holds shards of other data{end}"
    assert said(y=(LABELS["classes"] + 1) % 3) == f"{begun}: holds shards of other data{end}"
    assert said(x=X[:9], y=LABELS["classes"][:9]) == f"{begun}: holds shards of samples 23, not 9{end}"
    assert said(shard=8) == f"{begun}: holds shards of shard 7, not 8{end}"
    assert said(engine="reference") == f"{begun}: holds shards of engine fast, not reference{end}"
    assert said(overflow="strict") == f"{begun}: holds shards of overflow count, not strict{end}"
    assert begun.read_bytes() == whole
    (tmp_path / "notes.txt").write_text("mine")
    begun = tmp_path / "notes.txt"
    assert said() == f"{begun}: holds no shards of an evaluation; give a new file"
    assert begun.read_text() == "mine"
    begun = tmp_path
    assert said() == f"{begun}: is a directory; give a file"
    begun = Path("/proc/version")  # which nobody may write
    assert said().startswith(f"{begun}: ")
    begun = tmp_path / "nowhere" / "r"
    assert "it lies in no directory" in said()


def test_damaged_shards_are_refused_in_one_line(begun: Path) -> None:
    whole = begun.read_bytes()
    lines = whole.splitlines(keepends=True)

    def resigned(**changes: Any) -> bytes:
        from toolchain.assessment import kept

        content = json.loads(lines[1])
        content.pop("sha256")
        content = {key: content[key] | changes if key == "tally" else content[key] for key in content}
        return kept._line(content | {"sha256": kept.sha256(kept._line(content)).hexdigest()})

    for line, said in (
        (lines[1].replace(b'"samples": 7', b'"samples": 6'), "a shard in it is damaged"),
        (b"\xff\n", "a shard in it is damaged"),
        (b"[" * 100_000 + b"\n", "a shard in it is damaged"),
        (b"[]\n", "a shard in it is damaged"),
        (lines[2], "shard 1 cannot be one of this evaluation"),  # twice
        (resigned(samples=6), "shard 0 cannot be one of this evaluation"),
        (resigned(steps=[]), "shard 0 cannot be one of this evaluation"),
        (resigned(samples="x"), "shard 0 in it is of another version (tally: samples: 'x' is not an integer"),
    ):
        begun.write_bytes(b"".join([lines[0], line, *lines[2:]]))
        damaged = begun.read_bytes()
        assert refusal(lambda: evaluated(resume=begun)).startswith(f"{begun}: {said}")
        assert begun.read_bytes() == damaged


def test_a_file_is_one_evaluations_at_a_time(begun: Path) -> None:
    import fcntl

    with begun.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "is in use by another evaluation" in refusal(lambda: evaluated(resume=begun))
    assert evaluated(resume=begun) == evaluated()


def test_the_first_shard_that_fails_says_why_and_others_are_kept(tmp_path: Path) -> None:
    x = X.clone()
    x[9], x[20] = 1e30, -1e30

    class Source(Arrays):
        def part(self, samples: Any) -> Arrays:
            return Bad(self.x[samples.start : samples.stop], self.y[samples.start : samples.stop], samples.start)

    source = Source(x, LABELS["classes"])
    message = refusal(lambda: evaluate(converted().network, source, task="classes", shard=7, workers=2))
    assert message == "sample 9: too large; scale the data"


class Bad(Arrays):
    """Samples that are read in another process, which refuses large ones."""

    def __init__(self, x: torch.Tensor, y: Any, first: int) -> None:
        super().__init__(x, y)
        self.start = first

    def read(self, samples: Any) -> Any:
        large = (self.x.abs().flatten(1).amax(1) > 1e20).nonzero().flatten().tolist()
        if large:
            raise refuse(f"sample {self.start + large[0]}", "too large", "scale the data")
        return super().read(samples)


class Deadly(Arrays):
    """Samples at which a process ends."""

    def part(self, samples: Any) -> Arrays:
        x, y = super().read(samples)
        return Deadly(x, y)

    def read(self, samples: Any) -> Any:
        import multiprocessing

        if multiprocessing.parent_process() is not None:
            os._exit(9)
        return super().read(samples)


def test_a_process_that_ends_is_one_line() -> None:
    source = Deadly(X, LABELS["classes"])
    layers = nn.Flatten(), nn.Linear(72, 2000), nn.ReLU(), nn.Linear(2000, 3)  # more than a pipe holds
    large = a2l.convert(nn.Sequential(*layers).eval(), X, 2, method="none", weights="nearest").network
    message = refusal(lambda: evaluate(large, source, task="classes", workers=2, shard=1))
    assert message.startswith("workers: a process has ended, for want of memory or by a signal; give fewer workers")


def test_refusals_and_overflows_travel_between_processes() -> None:
    findings = refuse("here", "a problem", "do this").findings * 2
    again = pickle.loads(pickle.dumps(Refused(findings)))
    assert (str(again), again.findings) == (str(Refused(findings)), findings)
    overflow = RegisterOverflow(findings[0])
    assert str(pickle.loads(pickle.dumps(overflow))) == str(overflow)
    network = converted().network
    assert pickle.loads(pickle.dumps(network)) == network


@pytest.mark.parametrize("asked", [0, -1, 10**11, "many", "http://host:1", "host:8786"])
def test_workers_that_are_neither_a_number_nor_a_scheduler_are_refused(asked: Any) -> None:
    message = f"workers: {asked!r} asked for; give 1 to 1024 processes, or a scheduler as tcp://HOST:PORT"
    assert refusal(lambda: evaluated(workers=asked)) == message


def test_a_cluster_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    message = "workers: Dask's distributed is not installed; install ann2loihi[cluster]"
    assert refusal(lambda: evaluated(workers="tcp://127.0.0.1:1")) == message


def test_a_device_that_is_not_there_is_refused_before_anything_runs(tmp_path: Path) -> None:
    message = "device: 'cuda:77' is not there; give 'cpu', or 'cuda' on a machine with a GPU that torch can use"
    for options in ({}, {"workers": 2}, {"resume": tmp_path / "r"}):
        assert refusal(lambda options=options: evaluated(device="cuda:77", **options)) == message
    assert not (tmp_path / "r").exists()
    payload = converted().network.input.encode(X[:2])
    assert refusal(lambda: a2l.verify(converted().network, payload, device="cuda:77")) == message
    message = "device: reference computes on the CPU, not on 'cuda'; leave it out, or use fast"
    assert refusal(lambda: a2l.run("reference", converted().network, payload, device="cuda")) == message


@pytest.mark.cuda
def test_a_gpu_says_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU that torch can use")
    network = converted().network
    assert evaluated(device="cuda", shard=7) == evaluated(device="cuda", workers=2, shard=5) == evaluated()
    assert a2l.verify(network, network.input.encode(X[:4]), ["reference", "fast"], device="cuda").difference is None
    assert a2l.cost(network, network.input.encode(X), device="cuda") == a2l.cost(network, network.input.encode(X))


def test_labels_come_with_a_data_set_or_beside_an_array() -> None:
    network = converted().network
    assert refusal(lambda: evaluate(network, Arrays(X))) == "labels: x has none; give a data set with labels"
    both = refusal(lambda: evaluate(network, Arrays(X, LABELS["classes"]), LABELS["classes"]))
    assert both == "labels: given beside a data set; give a data set with labels"


SLOW = """
import os, time
import numpy as np, torch
from torch.utils.data import Dataset

class Slow(Dataset):
    def __init__(self):
        arrays = np.load("test.npz")
        self.x, self.y = torch.from_numpy(arrays["x"]), arrays["y"]
    def __len__(self):
        return len(self.x)
    def __getitem__(self, i):
        with open("seen", "a") as file:
            file.write(f"{os.getpid()} {i}\\n")
        time.sleep(float(os.environ["PAUSE"]))
        return self.x[i], int(self.y[i])
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    converted().save(tmp_path / "out")
    samples = np.arange(60) % 23
    np.savez(tmp_path / "test.npz", x=X.numpy()[samples], y=LABELS["classes"][samples])
    (tmp_path / "slow.py").write_text(SLOW)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def command(place: Path, *options: str, pause: str = "0") -> subprocess.Popen[str]:
    arguments = [sys.executable, "-m", "ann2loihi", "evaluate", "out", "--data", "slow.py:Slow", "--json", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PAUSE": pause, "OMP_NUM_THREADS": "1", "TMPDIR": "tmp"}
    return subprocess.Popen(
        arguments,
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_evaluation_goes_on_and_prints_what_a_plain_one_does(place: Path) -> None:
    options = ["--shard-size", "2", "--resume", "kept.jsonl"]
    running = command(place, "--workers", "2", *options, pause="0.05")
    kept = place / "kept.jsonl"
    until = time.monotonic() + 120
    while not kept.exists() or kept.read_bytes().count(b"\n") < 4:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    done = [json.loads(line)["shard"] for line in kept.read_bytes().split(b"\n")[1:-1]]
    assert 3 <= len(done) < 30
    pids = {int(line.split()[0]) for line in (place / "seen").read_text().splitlines()}
    until = time.monotonic() + 120
    while any(map(alive, pids)):  # its workers end with it
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not list((place / "tmp").glob("ann2loihi-*"))

    (place / "seen").unlink()
    resumed = command(place, *options)
    out, err = resumed.communicate()
    assert resumed.returncode == 0, err
    plain = evaluate(converted().network, *(np.load(place / "test.npz")[name] for name in "xy"), task="classes")
    assert json.loads(out) == plain.as_dict()
    seen = {int(line.split()[1]) for line in (place / "seen").read_text().splitlines()}
    left = set(range(60)) - {sample for shard in done for sample in (2 * shard, 2 * shard + 1)}
    assert left <= seen <= left | {0, *spread(60, LOOKED_AT).tolist()}


@pytest.mark.slow
def test_an_interrupt_ends_all_processes_in_silence(place: Path) -> None:
    running = command(place, "--workers", "2", "--shard-size", "2", "--resume", "kept.jsonl", pause="0.05")
    kept = place / "kept.jsonl"
    while not kept.exists() or kept.read_bytes().count(b"\n") < 4:
        assert running.poll() is None, running.communicate()
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGINT)
    assert running.communicate(timeout=120) == ("", "")
    assert running.returncode == 130
    pids = {int(line.split()[0]) for line in (place / "seen").read_text().splitlines()}
    assert not any(map(alive, pids))


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    pytest.importorskip("distributed")
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of distributed and tornado
def test_machines_of_a_cluster_share_the_shards(scheduler: str, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    assert evaluated(workers=scheduler, shard=3, resume=path) == evaluated()
    assert len(path.read_bytes().splitlines()) == 9
    x = X.clone()
    x[9] = float("nan")
    np.savez(tmp_path / "x.npz", x=x, y=LABELS["classes"])
    message = refusal(lambda: evaluate(converted().network, Arrays(x, LABELS["classes"]), workers=scheduler))
    assert message == "x: it holds NaN; clean the data"


def test_a_scheduler_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr(workers, "PATIENCE", 1)
    message = refusal(lambda: evaluated(workers="tcp://127.0.0.1:9"))
    assert message == "workers: no scheduler answers at tcp://127.0.0.1:9; start one with: dask scheduler"


def test_options_of_the_command_line_reach_the_evaluation(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    monkeypatch.chdir(place)
    asked = ["evaluate", "out", "--data", "test.npz"]
    done = CliRunner().invoke(app, [*asked, "--shard-size", "4", "--resume", "r", "--report", "r.md", "--json"])
    assert done.exit_code == 0
    plain = evaluate(converted().network, *(np.load("test.npz")[name] for name in "xy"), task="classes")
    assert json.loads(done.stdout) == plain.as_dict()
    assert (place / "r.md").read_text() == render_evaluation(plain, "out on test.npz, engine fast")
    assert len((place / "r").read_bytes().splitlines()) == 16
    assert CliRunner().invoke(app, [*asked, "--report", "r.json"]).exit_code == 0
    assert (place / "r.json").read_text() == done.stdout
    for options, said in (
        (["--report", "r.pdf"], "error: --report: r.pdf is of neither kind; give a FILE.md or a FILE.json\n"),
        (["--device", "cuda:77"], "error: device: 'cuda:77' is not there;"),
        (["--workers", "x"], "error: workers: 'x' asked for;"),
        (["--shard-size", "0"], "error: shard: 0 is out of range; give 1 or more\n"),
        (["--resume", "test.npz"], "error: test.npz: holds no shards of an evaluation; give a new file\n"),
    ):
        refused = CliRunner().invoke(app, [*asked, *options])
        assert refused.exit_code == 2
        assert " ".join(refused.stderr.split()).startswith(said.strip())
