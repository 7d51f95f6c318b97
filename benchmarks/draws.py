"""How accurate conversions are over several draws of calibration images: mean and spread, and what each one costs.

Draw d of N images are the training images d N .. (d + 1) N - 1. All are measured on the same test images, at the last
step; choices are not made here, so each configuration looks at the labels once for each draw::

    python -m benchmarks.draws --data DIR --weights FILE.pt --timesteps 2,4,8 --draws 3 -o build/draws.json --resume
    python -m benchmarks.draws --data DIR --weights FILE.pt --timesteps 4 --budgets 2 -o build/draws.json --resume
    python -m benchmarks.draws --data DIR --weights FILE.pt --recipes tuned --calibration 2048 --mirrored -o FILE.json
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from benchmarks import workload
from benchmarks.workload import Data, Weights, integers, names
from exporters.placement import fit
from exporters.placement.cost import interval
from sim import fast
from sim.findings import Refused, refuse
from sim.operations import operations
from sim.progress import track
from toolchain import assessment
from toolchain.app.console import bars, guarded, out
from toolchain.convert import Conversion, convert
from toolchain.frontends import import_model
from toolchain.graph import FloatGraph
from toolchain.recipe import Recipe, named

Row = dict[str, Any]

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Wanted:
    """One conversion to measure."""

    name: str  #: of the recipe that it started from
    recipe: Recipe
    calibration: int
    draw: int

    def key(self, setting: Row) -> str:
        """Say what decides its row; equal keys give equal rows."""
        return json.dumps([setting, self.recipe.as_dict(), self.calibration, self.draw], sort_keys=True)


def measure(work: workload.Workload, graph: FloatGraph, wanted: Wanted) -> Row:
    """Convert on a draw, and measure that."""
    drawn = work.calibration_x[wanted.draw * wanted.calibration :][: wanted.calibration]
    start = time.perf_counter()
    conversion = convert(graph, drawn, recipe=wanted.recipe)
    return {"convert_seconds": time.perf_counter() - start, **measured(work, conversion)}


def measured(work: workload.Workload, conversion: Conversion) -> Row:
    """Run the test images once, and count."""
    network, payload = conversion.network, conversion.network.input.encode(work.test_x.numpy())
    trace = fast.run(network, payload, chip=conversion.recipe.limits, overflow="count", record=False, count=True)
    score = assessment.accuracy(conversion.decode(trace), work.test_y)
    done = operations(network, trace.fired, payload).values()
    return {
        **score.as_dict(),
        "overflows": trace.overflows,
        "steps": network.steps,
        "period": interval(network),
        "neurons": sum(layer.size for layer in network.layers),
        "cores": fit(network).cores,
        "spikes": sum(int(fired.sum()) for fired in trace.fired.values()) / len(payload),
        "operations": sum(layer.macs + layer.acs for layer in done),
    }


def table(rows: list[Row], ann: Row) -> Table:
    """Lay out a line for each configuration, over its draws."""
    result = Table(
        title=f"trained network {ann['accuracy']:.2f} % of n = {ann['n']} test images "
        f"(95 %: {ann['low']:.2f} to {ann['high']:.2f})",
        title_justify="left",
        caption="draws x calibration images; accuracy: mean, standard deviation and extremes over them; steps "
        "to the answer, and between samples; cores of Loihi 2, none where a layer fits on none; events: spikes and "
        "effective synaptic operations of a sample; seconds of converting, the median",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    result.add_column("recipe", min_width=15)
    for column in ("T, K", "accuracy, %", "steps", "neurons", "events", "s"):
        result.add_column(column, justify="right", no_wrap=True)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row["name"], row["recipe"], row["calibration"]], sort_keys=True), []).append(row)
    for group in groups.values():
        first, found = group[0], [row["accuracy"] for row in group]
        recipe, of = first["recipe"], len(found)
        spread = f" +- {statistics.stdev(found):.2f}\n{min(found):.2f} to {max(found):.2f}" if of > 1 else ""
        more = f"\n{recipe['neuron_budget']:g} x neurons" if recipe["neuron_budget"] > 1 else ""
        result.add_row(
            f"{first['name']}{more}\n{of} x {first['calibration']} images",
            f"{recipe['timesteps']}, {recipe['holdoff']}",
            f"{statistics.mean(found):.2f}{spread}",
            f"{first['steps']}\n{first['period']}",
            f"{first['neurons']:,}\n{'no' if first['cores'] is None else first['cores']} cores",
            f"{statistics.mean(row['spikes'] for row in group):,.0f}\n"
            f"{statistics.mean(row['operations'] for row in group) / 1e6:.3g} M",
            f"{statistics.median(row['convert_seconds'] for row in group):.0f}",
        )
    return result


def known(path: Path, resume: bool) -> dict[str, Row]:
    """Read what an earlier run has measured, by key."""
    if not path.exists():
        return {}
    if not resume:
        raise refuse(str(path), "exists", "go on with --resume, or give another --output")
    try:
        found: dict[str, Row] = json.loads(path.read_text(encoding="utf-8"))
        assert all({"accuracy", "draw", "recipe"} <= row.keys() for row in found.values())
    except (ValueError, AttributeError, AssertionError) as error:
        raise refuse(str(path), f"does not hold results: {error!r}", "give another --output") from error
    return found


@app.command(help=__doc__)
@guarded
def main(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.json", help="Holds the rows.")],
    data: Data = None,
    weights: Weights = None,
    recipes: Annotated[str, typer.Option(help="Recipes by name.")] = "ann2loihi",
    timesteps: Annotated[str, typer.Option(help="T, separated by commas.")] = "2,4,8",
    holdoffs: Annotated[str, typer.Option(help="K, separated by commas.")] = "1",
    budgets: Annotated[str, typer.Option(help="Budgets of neurons, in multiples of the network's own.")] = "1",
    updates: Annotated[int | None, typer.Option(help="Gradient steps of recipes that tune weights.")] = None,
    mirrored: Annotated[bool, typer.Option("--mirrored", help="Tune weights on mirrored images too.")] = False,
    calibration: Annotated[int, typer.Option(help="Images of a draw.")] = 512,
    draws: Annotated[int, typer.Option(help="Draws of calibration images.")] = 3,
    samples: Annotated[int | None, typer.Option(metavar="N", help="Test images; all by default.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what the file already holds.")] = False,
) -> None:
    """Measure every configuration on every draw, and print all that the file holds of this network and data."""
    if min(draws, calibration) < 1:
        raise refuse("--draws, --calibration", f"{draws}, {calibration}", "give at least 1")
    try:
        multiples = [float(budget) for budget in names(budgets)]
    except ValueError:
        raise refuse("--budgets", repr(budgets), "give numbers separated by commas") from None
    changes: Row = {"mirrored": mirrored} | ({} if updates is None else {"updates": updates})
    wanted = [
        Wanted(name, named(name, timesteps=t, holdoff=k, neuron_budget=budget, **changes), calibration, draw)
        for name, budget, k, t, draw in product(
            names(recipes),
            multiples,
            integers("--holdoffs", holdoffs),
            integers("--timesteps", timesteps),
            range(draws),
        )
    ]
    if not wanted:
        raise refuse("--recipes, --timesteps, --holdoffs, --budgets", "nothing to measure", "name one of each")
    rows = known(output, resume)
    work = workload.load(data, weights, draws * calibration, samples)
    setting: Row = {"network": work.name, "checksum": work.checksum, "n": len(work.test_x)}
    trained = assessment.accuracy(assessment.model_logits(work.model, work.test_x), work.test_y)
    graph = import_model(work.model, tuple(work.calibration_x.shape[1:]))
    with bars():
        for one in track("converting and measuring", [one for one in wanted if one.key(setting) not in rows]):
            try:
                found = measure(work, graph, one)
            except Refused as error:
                where = f"{one.name}, T = {one.recipe.timesteps}"
                raise refuse(where, str(error.findings[0]), "leave it out") from error
            row = {"name": one.name, "recipe": one.recipe.as_dict(), "draw": one.draw, **setting, **found}
            rows[one.key(setting)] = row | {"calibration": one.calibration}
            workload.write_json(output, rows)
    mine = [row for row in rows.values() if all(row[key] == value for key, value in setting.items())]
    order = ("timesteps", "neuron_budget", "holdoff", "updates")
    mine.sort(key=lambda row: [row["name"], *(row["recipe"][key] for key in order), row["calibration"], row["draw"]])
    out.print(table(mine, trained.as_dict()))


if __name__ == "__main__":
    app()
