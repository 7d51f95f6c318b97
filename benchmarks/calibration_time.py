"""What calibration costs: seconds of every bias rule as multiples of one forward pass of the trained network.

Both go over the same calibration inputs, in turn, in one process; every rule has a process of its own, so that the
peak memory is the rule's. Figures for ResNet-20::

    python -m benchmarks.calibration_time --data DIR --weights FILE.pt --timesteps 8 --calibration 512

Fitted weights are measured without a bias rule, which is what the fit alone costs, and with the default one.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any, get_args

import torch
import typer
from rich import box
from rich.table import Table
from torch import Tensor, nn

from benchmarks import workload
from benchmarks.workload import Calibration, Data, JsonFile, Weights, names
from sim.findings import Refused, refuse
from sim.progress import track
from toolchain.app.console import bars, guarded, out, say
from toolchain.calibration.run import calibrate
from toolchain.frontends import import_model
from toolchain.recipe import Method, Recipe
from toolchain.scales.integers import build
from toolchain.scales.plan import choose_scales

BATCHES = (64, 128, 256)  #: the forward pass is given the fastest of them
UNIT = 1 if sys.platform == "darwin" else 1024  #: bytes of ru_maxrss

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode="markdown")


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Time one call: seconds on the wall, and of all cores, which other programs disturb less."""
    start = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def spread(values: list[float]) -> dict[str, float]:
    """Sum up repeats: their median and extremes."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


@torch.inference_mode()
def forward(model: nn.Module, x: Tensor, batch: int) -> None:
    """Run the trained network over all inputs."""
    for chunk in x.split(batch):
        model(chunk.clone())


def fastest_batch(model: nn.Module, x: Tensor) -> int:
    """Choose the batch with which a forward pass takes least, after one to warm up."""
    forward(model, x, BATCHES[0])
    return min(BATCHES, key=lambda batch: min(seconds(lambda: forward(model, x, batch)) for _ in range(2)))


def peak() -> int:
    """Bytes that this process has held at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def measure(work: workload.Workload, recipe: Recipe, repeats: int) -> dict[str, Any]:
    """Time calibration and forward pass in turn; the importer and the choice of thresholds are not timed.

    ``seconds`` and ``forward_seconds`` hold one number per repeat, ``ratio`` their ratios' median and extremes, and
    ``cpu_ratio`` those of the cores' seconds.
    ``peak_before`` is the process's peak memory, in bytes, when calibration begins, ``peak`` that at the end.
    """
    x = work.calibration_x
    batch = fastest_batch(work.model, x)
    graph = import_model(work.model, tuple(x.shape[1:]))
    with torch.no_grad():
        scales = choose_scales(graph, x, recipe)
        network = build(graph, scales, recipe)

    @torch.no_grad()
    def calibration() -> None:
        calibrate(network, graph, scales, x, recipe)

    before = peak()
    times = [(seconds(lambda: forward(work.model, x, batch)), seconds(calibration)) for _ in range(repeats)]
    return {
        "rule": recipe.method,
        "weights": recipe.weights,
        "timesteps": recipe.timesteps,
        "holdoff": recipe.holdoff,
        "n": len(x),
        "network": work.name,
        "threads": torch.get_num_threads(),
        "forward_batch": batch,
        "forward_seconds": [passing[0] for passing, _ in times],
        "seconds": [calibrating[0] for _, calibrating in times],
        "ratio": spread([calibrating[0] / passing[0] for passing, calibrating in times]),
        "cpu_ratio": spread([calibrating[1] / passing[1] for passing, calibrating in times]),
        "peak_before": before,
        "peak": peak(),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    """Lay out the rows; what was refused has its reason below."""
    first = rows[0]
    result = Table(
        title=f"{first['network']}: calibration for T = {first['timesteps']}, K = {first['holdoff']}, "
        f"n = {first['n']}, {first['threads']} threads",
        caption="passes: runs of the trained network over the same inputs, by CPU: in the cores' seconds",
        caption_justify="left",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("rule", "weights"):
        result.add_column(column, no_wrap=True)
    for column in ("passes", "min..max", "by CPU", "seconds", "a pass", "MiB"):
        result.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if "refused" in row:
            result.add_row(row["rule"], row["weights"], "refused")
            continue
        ratio = row["ratio"]
        result.add_row(
            row["rule"],
            row["weights"],
            f"{ratio['median']:.1f}",
            f"{ratio['min']:.1f}..{ratio['max']:.1f}",
            f"{row['cpu_ratio']['median']:.1f}",
            f"{statistics.median(row['seconds']):.3g}",
            f"{statistics.median(row['forward_seconds']):.3g}",
            f"{row['peak'] / 2**20:.0f}",
        )
    return result


@app.command(help=__doc__)
@guarded
def main(
    data: Data = None,
    weights: Weights = None,
    calibration: Calibration = None,
    timesteps: Annotated[int, typer.Option(help="T, the length of every firing window.")] = 8,
    holdoff: Annotated[int, typer.Option(help="K, steps that a layer integrates before it may fire.")] = 1,
    rules: Annotated[str, typer.Option(help="Bias rules, with nearest weights.")] = ",".join(get_args(Method)),
    fitted: Annotated[str, typer.Option(help="Bias rules with fitted weights.")] = f"none,{Recipe().method}",
    repeats: Annotated[int, typer.Option(help="Forward passes and calibrations, in turn.")] = 3,
    threads: Annotated[int | None, typer.Option(help="Threads of torch, for both; its own choice by default.")] = None,
    json_file: JsonFile = None,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure every rule in a process of its own."""
    if repeats < 1 or (threads is not None and threads < 1):
        raise refuse("--repeats, --threads", f"{repeats}, {threads}", "give at least 1")
    if threads is not None:
        torch.set_num_threads(threads)
    if only is not None:
        rule, _, how = only.partition(":")
        recipe = Recipe(timesteps=timesteps, holdoff=holdoff, method=rule, weights=how)
        images = workload.load(data, weights, calibration, samples=1)
        try:
            row = measure(images, recipe, repeats)
        except Refused as error:
            row = {"rule": rule, "weights": how, "refused": str(error)}
            row |= {"timesteps": timesteps, "holdoff": holdoff, "n": len(images.calibration_x)}
            row |= {"network": images.name, "threads": torch.get_num_threads()}
        print(json.dumps(row))
        return

    pairs = [(rule, "nearest") for rule in names(rules)] + [(rule, "fitted") for rule in names(fitted)]
    for rule, how in pairs:
        Recipe(timesteps=timesteps, holdoff=holdoff, method=rule, weights=how)  # refuses what there is not
    if not pairs:
        raise refuse("--rules, --fitted", "nothing to measure", "name a rule")
    given: dict[str, object] = {
        "--calibration": calibration,
        "--timesteps": timesteps,
        "--holdoff": holdoff,
        "--repeats": repeats,
    }
    given |= {"--threads": threads, "--data": data and data.resolve(), "--weights": weights and weights.resolve()}
    options = [str(part) for key, value in given.items() if value is not None for part in (key, value)]
    rows = []
    with bars():
        for rule, how in track("measuring", pairs):
            rows.append(workload.alone("calibration_time", *options, "--only", f"{rule}:{how}"))
            if json_file is not None:
                workload.write_json(json_file, rows)
    out.print(table(rows))
    for row in rows:
        if "refused" in row:
            say(f"{row['rule']}, {row['weights']}: {row['refused']}")
    if hasattr(os, "getloadavg"):
        say(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    app()
