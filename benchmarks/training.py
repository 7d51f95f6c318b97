"""Training for few steps: QCFS against noisy quantised activation, from the same ReLU weights and with the same budget.

Phase 1 trains every variant, several at a time; phase 2 converts what phase 1 has left with several bias rules, T and
K, and measures it on the test images. Both can be interrupted and go on where they were; both begin with what matters
most, and stop in time::

    python -m benchmarks.training fit      --data DIR --weights FILE.pt -o build/training --device cuda --jobs 16
    python -m benchmarks.training evaluate --data DIR --weights FILE.pt -o build/training --jobs 2
    python -m benchmarks.training show -o build/training
    python -m benchmarks.training paper --dry-run

``fit --pack DIR`` also writes the trained networks into few files, which ``unpack`` takes apart on another machine.
``paper`` is the papers' full setting, for who has the data and a GPU.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import nn

from benchmarks import accuracy, workload
from benchmarks.workload import Calibration, Data, JsonFile, Weights, names, write_json
from exporters.report.figures import BLUE, DPI, GREY, VERMILION, whole_numbers
from sim.findings import refuse
from sim.progress import counting
from toolchain.app.console import bars, guarded, out, say
from toolchain.frontends import import_model
from toolchain.loading import load_model
from toolchain.recipe import Recipe
from toolchain.surgery import RECORD, record, replace_max_pooling
from toolchain.training import checkpoint
from toolchain.training.settings import Settings
from toolchain.training.trainer import Trained, train

RESNET20 = f"{workload.ROOT / 'examples' / 'resnet20.py'}:resnet20"
RESULTS = "results.json"
PACKED = 15 << 20  #: bytes of one packed file, at most
TIMESTEPS, HOLDOFFS = (1, 2, 4, 8), (0, 1)
SEEDS = (0, 1, 2)
DELTA = 0.1  #: of the variant with fixed noise
DELTAS = (0.05, 0.2, 0.4)  #: of the other fixed ones
TAUS = (1, 2, 8)  #: of the other layer-wise ones

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Holds a directory for every training.")]
Jobs = Annotated[int, typer.Option(help="Processes at a time, each with one thread.")]
Seconds = Annotated[float, typer.Option(help="Stop then; a training that would not end in time is not begun.")]
Only = Annotated[str | None, typer.Option(help="Groups or names of trainings, separated by commas; all by default.")]

# ---- what is trained ------------------------------------------------------------------------------------------------

#: What all variants of the comparison share; noise is measured, and the epoch chosen, at T = L and K = 0.
BASE = Settings(
    epochs=12,
    batch=256,
    learning_rate=0.05,
    augment="crop+flip",
    validation=640,
    calibration=64,
    precision="bfloat16",
)
#: The best that is found here: longer, with thresholds for each channel and the ReLU network as a teacher, and chosen
#: for the network with hold-off and biases.
LONG = replace(BASE, epochs=26, every=3, per_channel=True, distill=0.5, holdoff=1, method="mse")


def variants(epochs: int = BASE.epochs, long: int = LONG.epochs) -> dict[str, dict[str, Settings]]:
    """List the trainings by group and name, what matters most first."""
    base, best = replace(BASE, epochs=epochs), replace(LONG, epochs=long)
    kinds = {
        "qcfs": replace(base, activation="qcfs"),
        "nq-fixed": replace(base, noise="fixed", delta=DELTA),
        "nq": base,
    }
    return {
        "best": {f"best-L{levels}": replace(best, levels=levels, activation="qcfs") for levels in (8, 4, 2)}
        | {f"best-L{levels}-nq": replace(best, levels=levels) for levels in (8, 4, 2)},
        "table": {f"{name}-{seed}": replace(kind, seed=seed) for seed in SEEDS for name, kind in kinds.items()},
        "control": {"relu": replace(base, activation="relu", method="mse")},
        "effects": {f"nq-fixed-{delta:g}": replace(base, noise="fixed", delta=delta) for delta in DELTAS}
        | {f"nq-tau{tau}": replace(base, tau=tau) for tau in TAUS},
        "papers": {name: replace(base, activation=name) for name in ("tcl", "rnl", "sliprelu", "trelu")},  # type: ignore[arg-type]
    }


def chosen(only: str | None, epochs: int, long: int) -> dict[str, Settings]:
    """Return the trainings of some groups, or of some names; :class:`Refused` for others."""
    groups = variants(epochs, long)
    every = {name: settings for group in groups.values() for name, settings in group.items()}
    if only is None:
        return every
    found: dict[str, Settings] = {}
    for part in names(only):
        if part not in groups and part not in every:
            raise refuse("--only", f"unknown {part!r}", f"use some of {', '.join([*groups, *every])}")
        found |= groups.get(part) or {part: every[part]}
    return found


# ---- several processes ----------------------------------------------------------------------------------------------


@dataclass
class Job:
    """One process to be run."""

    name: str
    arguments: list[str]  #: of python
    log: Path
    expected: Callable[[], float]  #: seconds that it will take; 0 where that is not known yet


def farm(jobs: Sequence[Job], at_once: int, seconds: float, what: str) -> list[str]:
    """Run jobs in order, so many at a time, until ``seconds`` are over; return those that did not end well."""
    end, waiting, running, bad = time.monotonic() + seconds, list(jobs), {}, []  # type: ignore[var-annotated]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(workload.ROOT)}
    with bars(), counting(what, len(jobs)) as advance:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
                if time.monotonic() + job.expected() > end:
                    bad.append(f"{job.name}: not begun")
                    advance(1)
                    continue
                job.log.parent.mkdir(parents=True, exist_ok=True)
                command = [sys.executable, *job.arguments]
                with job.log.open("ab") as log:
                    running[job.name] = subprocess.Popen(
                        command, stdout=log, stderr=log, cwd=workload.ROOT, env=environment
                    )
            for name, process in list(running.items()):
                if process.poll() is not None:
                    bad += [f"{name}: ended with {process.returncode}"] if process.returncode else []
                    del running[name]
                    advance(1)
            time.sleep(0.2)
        for name, process in running.items():
            process.kill()
            process.wait()
            bad.append(f"{name}: stopped")
    return bad + [f"{job.name}: not begun" for job in waiting]


def images(data: Path | None, folder: Path) -> Path:
    """Decode the images once, into files that every process maps into memory; return where they are."""
    if data is None:
        raise refuse("--data", "missing", "give the directory with cifar10_train.npz and cifar10_test.npz")
    place = folder / "images"
    place.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        if not (place / f"{part}_y.npy").exists():
            x, y = workload.decode(data / f"cifar10_{part}.npz", None)
            np.save(place / f"{part}_x.npy", x.numpy())
            np.save(place / f"{part}_y.npy", y.numpy())
    return place


def mapped(place: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Map decoded images (n, 3, 32, 32) and labels (n,) into memory."""
    return np.load(place / f"{part}_x.npy", mmap_mode="r"), np.load(place / f"{part}_y.npy")


# ---- phase 1 --------------------------------------------------------------------------------------------------------


@app.command()
@guarded
def fit(
    output: Folder,
    data: Data = None,
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    jobs: Jobs = 1,
    seconds: Seconds = math.inf,
    only: Only = None,
    epochs: Annotated[int, typer.Option(help="Of the comparison.")] = BASE.epochs,
    long: Annotated[int, typer.Option(help="Epochs of the best.")] = LONG.epochs,
    pack: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also write what was trained into few files.")
    ] = None,
) -> None:
    """Train the variants that the directory lacks."""
    start = time.monotonic()
    wanted = chosen(only, epochs, long)
    if weights is None:
        raise refuse("--weights", "missing", "give the ReLU network's state_dict")
    place = images(data, output)
    rates: dict[str, float] = {}

    def expected(settings: Settings) -> float:
        for path in output.glob(f"*/{checkpoint.HISTORY}"):
            if path.parent.name not in rates:
                history = json.loads(path.read_text())["history"]
                rates[path.parent.name] = sum(epoch["seconds"] for epoch in history) / len(history)
        return settings.epochs * 1.1 * float(np.median(list(rates.values()))) if rates else 0.0

    todo = [
        Job(
            name,
            [
                "-m",
                "benchmarks.training",
                "one",
                name,
                "--images",
                str(place),
                "--weights",
                str(weights),
                "-o",
                str(output),
                "--device",
                device,
                "--epochs",
                str(epochs),
                "--long",
                str(long),
            ],
            output / name / "log.txt",
            lambda settings=settings: expected(settings),  # type: ignore[misc]
        )
        for name, settings in wanted.items()
        if not (output / name / checkpoint.WEIGHTS).exists()
    ]
    for line in farm(todo, jobs, seconds - (time.monotonic() - start), "training"):
        say(line, "yellow")
    if math.isfinite(seconds):
        for name in wanted:
            salvaged(output / name)
    if pack is not None:
        packed(output, pack)
    for name in wanted:
        path = output / name / checkpoint.HISTORY
        if path.exists():
            found = json.loads(path.read_text())
            best = found["history"][found["best"] - 1]
            took = sum(epoch["seconds"] for epoch in found["history"])
            say(f"{name}: epoch {best['epoch']}, ANN {best['ann']:.2f} %, SNN {best['snn']:.2f} %, {took:.0f} s")


@app.command(hidden=True)
@guarded
def one(
    name: str,
    output: Folder,
    place: Annotated[Path, typer.Option("--images")],
    weights: Annotated[Path, typer.Option()],
    device: Annotated[str, typer.Option()] = "cpu",
    epochs: Annotated[int, typer.Option()] = BASE.epochs,
    long: Annotated[int, typer.Option()] = LONG.epochs,
) -> None:
    """Train one variant, or go on with it."""
    settings = chosen(name, epochs, long)[name]
    x, y = mapped(place, "train")
    train(
        load_model(RESNET20, weights),
        x,
        y,
        settings,
        directory=output / name,
        resume=True,
        device=device,
        callbacks=(lambda epoch: print(epoch, f"{epoch.seconds:.1f} s", flush=True),),
    )


def salvaged(folder: Path) -> None:
    """Take the best epoch of a training that was stopped for what it would have left."""
    content = checkpoint.load(folder, {}) if not (folder / checkpoint.WEIGHTS).exists() else None
    if content is None or not content["best"][3]:
        return
    *_, best, state = content["best"]
    settings = Settings(**content["settings"])
    known = {} if settings.activation == "relu" else {RECORD: record(settings.activation, settings.levels, (3, 32, 32))}
    checkpoint.write(folder / checkpoint.WEIGHTS, known | {"state_dict": state})
    history = {"settings": content["settings"], "best": best, "history": content["history"], "stopped": True}
    checkpoint.write_json(folder / checkpoint.HISTORY, history)


def packed(output: Path, target: Path) -> None:
    """Write weights and history of every finished training into tar files of at most :data:`PACKED` bytes."""
    target.mkdir(parents=True, exist_ok=True)
    parts: list[list[Path]] = [[]]
    size = 0
    for weights in sorted(output.glob(f"*/{checkpoint.WEIGHTS}")):
        files = [weights, weights.with_name(checkpoint.HISTORY)]
        more = sum(file.stat().st_size + 1024 for file in files)
        if size + more > PACKED and parts[-1]:
            parts.append([])
            size = 0
        parts[-1] += files
        size += more
    for number, files in enumerate(parts):
        with tarfile.open(target / f"trained-{number}.tar", "w") as tar:
            for file in files:
                tar.add(file, file.relative_to(output).as_posix())


@app.command()
@guarded
def unpack(
    packs: Annotated[Path, typer.Argument(metavar="DIR", help="Holds what `fit --pack` has written.")], output: Folder
) -> None:
    """Take packed trainings apart into a directory."""
    known = {name for group in variants().values() for name in group}
    for path in sorted(packs.glob("trained-*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                folder, _, name = member.name.partition("/")
                content = tar.extractfile(member)
                if folder in known and name in (checkpoint.WEIGHTS, checkpoint.HISTORY) and content is not None:
                    (output / folder).mkdir(parents=True, exist_ok=True)
                    checkpoint.replace_file(output / folder / name, content.read())


# ---- phase 2 --------------------------------------------------------------------------------------------------------

#: By name: bias rule and integer weights.
RULES = {
    "none": ("none", "nearest"),
    "ftbc": ("ftbc", "nearest"),
    "mse": ("mse", "nearest"),
    "mse, fitted": ("mse", "fitted"),
    "once": ("once", "nearest"),
}


@dataclass(frozen=True)
class Cell:
    """One converted network."""

    name: str  #: of the training
    timesteps: int
    holdoff: int
    rule: str

    @property
    def recipe(self) -> Recipe:
        """How it is converted: trained activations bring their thresholds along, a ReLU has none."""
        method, weights = RULES[self.rule]
        threshold = "mse" if self.name == "relu" else "given"
        chosen: Any = {"method": method, "weights": weights, "threshold": threshold}
        return Recipe(timesteps=self.timesteps, holdoff=self.holdoff, **chosen)

    @property
    def key(self) -> str:
        """A name for files and results."""
        return f"{self.name} T{self.timesteps} K{self.holdoff} {self.rule}".replace(", ", "-").replace(" ", "_")


def cells() -> Iterator[Cell]:
    """List the conversions, what matters most first, each once."""
    groups = variants()
    seen = set()

    def fresh(*cell: Any) -> Iterator[Cell]:
        if (made := Cell(*cell)) not in seen:
            seen.add(made)
            yield made

    for name, settings in groups["best"].items():
        for rule in ("mse", "once", "mse, fitted"):
            yield from fresh(name, settings.levels, 1, rule)
    for name in groups["table"]:
        yield from fresh(name, 4, 0, "none")
    for seed in SEEDS:
        for t in (1, 2, 4):
            for rule in ("none", "ftbc"):
                yield from fresh(f"qcfs-{seed}", t, 0, rule)
    for seed in SEEDS:
        for k in HOLDOFFS:
            for rule in ("none", "ftbc", "mse", "once"):
                for t in TIMESTEPS:
                    for kind in ("qcfs", "nq-fixed", "nq"):
                        yield from fresh(f"{kind}-{seed}", t, k, rule)
    for name in groups["effects"]:
        for t in TIMESTEPS:
            yield from fresh(name, t, 0, "none")
    for t in TIMESTEPS:
        yield from fresh("relu", t, 1, "mse, fitted")


@app.command()
@guarded
def evaluate(
    output: Folder,
    data: Data = None,
    weights: Weights = None,
    jobs: Jobs = 1,
    seconds: Seconds = math.inf,
    only: Only = None,
    samples: Annotated[int | None, typer.Option(metavar="N", help="Test images; all by default.")] = None,
    calibration: Calibration = None,
    json_file: JsonFile = None,
) -> None:
    """Convert what was trained, measure it on the test images, and write table and pictures."""
    start = time.monotonic()
    place = images(data, output)
    wanted = None if only is None else chosen(only, BASE.epochs, LONG.epochs)
    rows = output / "rows"
    todo = [
        Job(
            cell.key,
            [
                "-m",
                "benchmarks.training",
                "row",
                cell.name,
                str(cell.timesteps),
                str(cell.holdoff),
                cell.rule,
                "--images",
                str(place),
            ]
            + ["-o", str(output), "--calibration", str(calibration or workload.CALIBRATION)]
            + ([] if samples is None else ["--samples", str(samples)]),
            rows / f"{cell.key}.log",
            lambda: 0.0,
        )
        for cell in cells()
        if (wanted is None or cell.name in wanted)
        and (output / cell.name / checkpoint.WEIGHTS).exists()
        and not (rows / f"{cell.key}.json").exists()
    ]
    for line in farm(todo, jobs, seconds - (time.monotonic() - start), "converting and measuring"):
        say(line, "yellow")
    shown(output, json_file)


@app.command(hidden=True)
@guarded
def row(
    name: str,
    timesteps: int,
    holdoff: int,
    rule: str,
    output: Folder,
    place: Annotated[Path, typer.Option("--images")],
    calibration: Annotated[int, typer.Option()] = workload.CALIBRATION,
    samples: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Convert and measure one network."""
    cell = Cell(name, timesteps, holdoff, rule)
    found = measured(output / name / checkpoint.WEIGHTS, place, cell.recipe, calibration, samples)
    write_json(output / "rows" / f"{cell.key}.json", vars(cell) | {"recipe": cell.recipe.as_dict()} | found)


def measured(weights: Path, place: Path, recipe: Recipe, calibration: int, samples: int | None) -> dict[str, Any]:
    """Convert a ResNet-20 by a recipe and measure it and its source on the first test images."""
    x, (test_x, test_y) = mapped(place, "train")[0], mapped(place, "test")
    chosen = (torch.from_numpy(np.array(values)) for values in (x[:calibration], test_x[:samples], test_y[:samples]))
    work = workload.Workload(weights.parent.name, load_model(RESNET20, weights), *chosen)
    graph = import_model(work.model, tuple(test_x.shape[1:]))
    ann = float((graph.logits(work.test_x).argmax(1) == work.test_y).float().mean() * 100)
    return {"ann": ann, "calibration": calibration} | accuracy.measure(work, graph, recipe)


# ---- what is shown --------------------------------------------------------------------------------------------------


@app.command()
@guarded
def show(output: Folder, json_file: JsonFile = None) -> None:
    """Write table and pictures of what was measured so far."""
    shown(output, json_file)


def shown(output: Path, json_file: Path | None) -> None:
    """Print and write the table, and draw the figures."""
    rows = [json.loads(path.read_text()) for path in sorted((output / "rows").glob("*.json"))]
    if not rows:
        raise refuse(str(output), "nothing has been measured", "run evaluate")
    histories = {
        path.parent.name: json.loads(path.read_text()) for path in sorted(output.glob(f"*/{checkpoint.HISTORY}"))
    }
    write_json(output / RESULTS, {"rows": rows})
    if json_file is not None:
        write_json(json_file, {"rows": rows})
    out.print(table(rows))
    figures = {
        "residuals.png": residual_figure(histories),
        "epochs.png": epoch_figure(histories),
        "delta.png": sweep_figure(
            rows,
            {f"nq-fixed-{d:g}": f"delta = {d:g}" for d in DELTAS[:1]}
            | {"nq-fixed-0": f"delta = {DELTA:g}"}
            | {f"nq-fixed-{d:g}": f"delta = {d:g}" for d in DELTAS[1:]},
            "noise intensity",
        ),
        "tau.png": sweep_figure(
            rows,
            {f"nq-tau{tau}": f"tau = {tau}" for tau in TAUS[:2]}
            | {"nq-0": "tau = 4"}
            | {f"nq-tau{tau}": f"tau = {tau}" for tau in TAUS[2:]},
            "noise-induction step",
        ),
    }
    for name, figure in figures.items():
        figure.savefig(output / name, dpi=DPI)


def kind(name: str) -> str:
    """Name a variant without its seed."""
    return name.rpartition("-")[0] if name in variants()["table"] else name


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Lay out accuracy by T: means over seeds, with the smallest and the largest where there are several."""
    n = {row["n"] for row in rows if "n" in row}
    title = f"ResNet-20, CIFAR-10: accuracy in %, n = {', '.join(map(str, sorted(n)))} test images"
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("training", "ANN", "K", "bias rule", *(f"T = {t}" for t in TIMESTEPS)):
        made.add_column(heading, justify="left" if heading in ("training", "bias rule") else "right")
    found: dict[tuple[str, int, str], dict[int, list[dict[str, Any]]]] = {}
    for entry in rows:
        group = found.setdefault((kind(entry["name"]), entry["holdoff"], entry["rule"]), {})
        group.setdefault(entry["timesteps"], []).append(entry)
    order = list(dict.fromkeys(kind(name) for group in variants().values() for name in group))
    for (name, holdoff, rule), by in sorted(
        found.items(), key=lambda item: (order.index(item[0][0]), item[0][1], list(RULES).index(item[0][2]))
    ):
        anns = {entry["name"]: entry["ann"] for entries in by.values() for entry in entries}
        cells = [spread_of([e["accuracy"] for e in by.get(t, []) if "accuracy" in e]) for t in TIMESTEPS]
        made.add_row(name, spread_of(list(anns.values())), str(holdoff), rule, *cells)
    return made


def spread_of(values: Sequence[float]) -> str:
    """Write a mean, and the range of several."""
    if not values:
        return "-"
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f} to {max(values):.2f})"


def _axes(columns: int, size: tuple[float, float]) -> tuple[Figure, Any]:
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, columns, squeeze=False, sharey=True)[0]
    for axes in panels:
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def residual_figure(histories: dict[str, Any]) -> Figure:
    """Draw mean and deviation of the residual error of every layer after training, as the NQ paper's Fig. 2."""
    figure, (axes,) = _axes(1, (7.6, 4.2))
    for name, colour, marker, aside in (("qcfs-0", VERMILION, "s", -0.15), ("nq-0", BLUE, "o", 0.15)):
        if name in histories and (found := histories[name]["history"][-1]["residuals"]):
            places = range(len(found))
            label = kind(name)
            axes.errorbar(
                [place + aside for place in places],
                [r["mean"] for r in found],
                [r["std"] for r in found],
                color=colour,
                marker=marker,
                linestyle="none",
                capsize=3,
                label=f"{label}: mean and standard deviation",
            )
            axes.set_xticks(places, [r["layer"] for r in found], rotation=90, fontsize=8)
    axes.set_ylabel("activation - average output, T = 4")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return figure


def epoch_figure(histories: dict[str, Any]) -> Figure:
    """Draw the accuracies per epoch of the trained and the spiking network, as the NQ paper's Fig. 5."""
    figure, panels = _axes(3, (10.5, 3.6))
    for axes, name in zip(panels, ("qcfs-0", "nq-fixed-0", "nq-0"), strict=True):
        history = [e for e in histories.get(name, {"history": []})["history"] if e["snn"] is not None]
        at = [e["epoch"] for e in history]
        axes.plot(at, [e["ann"] for e in history], color=BLUE, marker="o", markersize=4, label="trained network")
        axes.plot(at, [e["snn"] for e in history], color=VERMILION, marker="s", markersize=4, label="SNN, T = 4, K = 0")
        axes.set_title(kind(name), loc="left", fontsize=10)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(whole_numbers())
    panels[0].set_ylabel("accuracy on the validation part (%)")
    panels[-1].legend(frameon=False, fontsize=8)
    return figure


def sweep_figure(rows: Sequence[dict[str, Any]], wanted: dict[str, str], what: str) -> Figure:
    """Draw accuracy against T at K = 0, without a bias rule, for values of one parameter (Figs. 4 and 7)."""
    figure, (axes,) = _axes(1, (6.4, 4.2))
    for number, (name, label) in enumerate(({"qcfs-0": "QCFS"} | wanted).items()):
        found = sorted(
            (r["timesteps"], r["accuracy"])
            for r in rows
            if (r["name"], r["holdoff"], r["rule"]) == (name, 0, "none") and "accuracy" in r
        )
        if found:
            style = {"color": GREY, "linestyle": "--"} if not number else {}
            axes.plot(*zip(*found, strict=True), marker="o", label=label, **style)
    axes.set_xscale("log", base=2)
    axes.set_xticks(TIMESTEPS, list(map(str, TIMESTEPS)))
    axes.set_xlabel("time steps T")
    axes.set_ylabel("accuracy (%)")
    axes.set_title(f"Effect of the {what}, K = 0, no bias rule", loc="left", fontsize=11)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)
    return figure


# ---- the papers' own setting ----------------------------------------------------------------------------------------

#: By network: the levels of CIFAR-10 and of CIFAR-100 (NQ paper, section 6.1).
LEVELS = {"vgg16": (4, 4), "resnet18": (4, 4), "resnet20": (4, 8)}
#: By classes: the learning rate (the same).
RATES = {10: 0.1, 100: 0.05}


def network(name: str, classes: int) -> nn.Module:
    """Build a network of the papers for images (3, 32, 32), untrained."""
    from torchvision import models

    if name == "resnet20":
        model = load_model(RESNET20)
        model.linear = nn.Linear(64, classes)
        return model
    if name == "vgg16":
        vgg = models.vgg16_bn(num_classes=classes)
        vgg.avgpool = nn.AdaptiveAvgPool2d(1)
        vgg.classifier = nn.Sequential(
            nn.Linear(512, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(),
            nn.Linear(4096, classes),
        )  # fmt: skip
        return replace_max_pooling(vgg)
    resnet = models.resnet18(num_classes=classes)
    resnet.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    resnet.maxpool = nn.Identity()
    return resnet


def paper_settings(name: str, classes: int) -> Settings:
    """Return the NQ paper's setting: 300 epochs of SGD from scratch, layer-wise noise at tau = L."""
    return Settings(
        levels=LEVELS[name][classes == 100],
        epochs=300,
        batch=128,
        learning_rate=RATES[classes],
        augment="crop+flip",
        precision="bfloat16",
    )


@app.command()
@guarded
def paper(
    output: Folder = Path("build/paper"),
    networks: Annotated[str, typer.Option(help="Which, separated by commas.")] = ",".join(LEVELS),
    classes: Annotated[int, typer.Option(help="10 or 100.")] = 10,
    data: Annotated[Path | None, typer.Option(metavar="FILE.npz", help="Training images x and labels y.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cuda",
    resume: Annotated[bool, typer.Option("--resume")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="One small step of each on drawn images.")] = False,
) -> None:
    """Train the papers' networks in their full setting."""
    from toolchain.inputs import load_arrays

    if classes not in RATES or not set(names(networks)) <= LEVELS.keys():
        raise refuse("--networks, --classes", f"{networks}, {classes}", f"use {', '.join(LEVELS)}, and 10 or 100")
    for name in names(networks):
        torch.manual_seed(0)
        model, settings = network(name, classes), paper_settings(name, classes)
        if dry_run:
            say(f"{name}, {classes} classes: {stepped(model, settings, classes).history[-1]}")
            continue
        if data is None:
            raise refuse("--data", "missing", "give the training images, or --dry-run")
        train(model, *load_arrays(data), settings, directory=output / f"{name}-{classes}", resume=resume,
              device=device, callbacks=(print,))  # fmt: skip


def stepped(model: nn.Module, settings: Settings, classes: int) -> Trained:
    """Train for one step on drawn images, validate and convert, as the full setting does in each epoch."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(14, 3, 32, 32, generator=generator)
    y = torch.arange(14) % classes
    small = replace(settings, epochs=1, batch=8, validation=6, calibration=4, precision="float32", timesteps=1, tau=1)
    return train(model, x, y, small)


if __name__ == "__main__":
    app()
