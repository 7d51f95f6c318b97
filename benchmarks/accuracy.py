"""How accurate converted networks are: bias rules x T x K x integer weights, 8-bit and wide registers.

Every accuracy is that of the network converted for its T, read at step T, on the same test images as the trained
network's. The whole matrix on ResNet-20 takes hours::

    python -m benchmarks.accuracy --data DIR --weights FILE.pt --timesteps 1,2,4,8,16,32 -o build/accuracy --resume

Results are written after each configuration, and ``--resume`` goes on where an interrupted run has ended: it keeps
every row of ``results.json`` that has the same recipe, trained weights and numbers of images. It does not know that
the toolchain has changed since: start in a new directory then.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, get_args

import numpy as np
import typer
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from rich import box
from rich.table import Table

from benchmarks import workload
from benchmarks.workload import Calibration, Data, JsonFile, Weights, integers, names
from exporters.report.figures import BLUE, DPI, GREY, VERMILION
from sim.findings import Finding, Refused, refuse
from sim.progress import counting
from toolchain import assessment
from toolchain.app.console import bars, guarded, out, say
from toolchain.convert import convert
from toolchain.frontends import import_model
from toolchain.graph import FloatGraph
from toolchain.recipe import Method, Recipe

Row = dict[str, Any]

RESULTS, TABLE, PLOT = "results.json", "accuracy.md", "accuracy.png"
TRAINED = "trained network"
REGISTERS = {"loihi2": "8 bits (loihi2)", "wide": "wide registers"}
#: By rule: a colour of Okabe and Ito's, and a marker for readers who cannot tell it.
STYLES = {
    "none": ("#000000", "x"),
    "static": ("#E69F00", "s"),
    "potential": ("#CC79A7", "^"),
    "once": ("#009E73", "P"),
    "ftbc": (VERMILION, "v"),
    "exact": ("#56B4E9", "D"),
    "mse": (BLUE, "o"),
}
ASIDE = 0.05  #: between the points of two rules, in doublings of T

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Matrix:
    """The configurations, as the axes of tables and plot."""

    rules: list[str]
    timesteps: list[int]
    holdoffs: list[int]
    weights: list[str]
    chips: list[str]

    def recipes(self) -> list[Recipe]:
        """List the recipes, short windows first; :class:`Refused` for values that no recipe has."""
        empty = [field for field, values in vars(self).items() if not values]
        if empty:
            raise refuse(", ".join(empty), "nothing to measure", "name at least one")
        recipes: list[Recipe] = []
        findings: list[Finding] = []
        for t, k, chip, weights, rule in product(self.timesteps, self.holdoffs, self.chips, self.weights, self.rules):
            try:
                recipes.append(Recipe(timesteps=t, holdoff=k, method=rule, weights=weights, chip=chip))
            except Refused as error:
                findings += error.findings
        if findings:
            raise Refused(dict.fromkeys(findings))
        return recipes

    def groups(self) -> Iterator[tuple[str, str]]:
        """Yield what has a table, and a row of panels, of its own: weights and chip."""
        yield from product(self.weights, self.chips)


class Results:
    """Measured rows by configuration, in a file that is complete after each of them."""

    def __init__(self, path: Path, work: workload.Workload, resume: bool) -> None:
        self._path = path
        #: What decides a row beside the recipe.
        self.setting: Row = {
            "network": work.name,
            "checksum": work.checksum,
            "calibration": len(work.calibration_x),
            "n": len(work.test_x),
        }
        self._rows: dict[str, Row] = {}
        if not path.exists():
            return
        if not resume:
            raise refuse(str(path), "exists", "go on with --resume, or give another --output")
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
            self._rows = {self._key(row, row["recipe"]): row for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise refuse(str(path), f"does not hold results: {error!r}", "give another --output") from error

    def _key(self, setting: Row, recipe: Row | None) -> str:
        return json.dumps([[setting[field] for field in self.setting], recipe], sort_keys=True)

    def get(self, recipe: Recipe | None) -> Row | None:
        """Look a recipe up; None is the trained network."""
        return self._rows.get(self._key(self.setting, recipe.as_dict() if recipe else None))

    def put(self, recipe: Recipe | None, measured: Row) -> None:
        """Keep a row and write the file."""
        row = {**self.setting, "recipe": recipe.as_dict() if recipe else None, **measured}
        self._rows[self._key(row, row["recipe"])] = row
        workload.write_json(self._path, {"rows": list(self._rows.values())})


def measure(work: workload.Workload, graph: FloatGraph, recipe: Recipe) -> Row:
    """Convert and count the right answers; a refused conversion is a row with its reason.

    Potentials that leave the registers on test images are counted, ``overflows``.
    """
    start = time.perf_counter()
    try:
        conversion = convert(graph, work.calibration_x, recipe=recipe)
    except Refused as error:
        return {"refused": [str(finding) for finding in error.findings]}
    converted = time.perf_counter()
    trace = conversion.run(work.test_x, record=False, overflow="count")
    return {
        **assessment.accuracy(trace.logits[:, -1], work.test_y).as_dict(),
        "overflows": trace.overflows,
        "convert_seconds": converted - start,
        "run_seconds": time.perf_counter() - converted,
    }


def run(work: workload.Workload, recipes: Iterable[Recipe], results: Results) -> None:
    """Measure the trained network and every recipe that the results lack."""
    if results.get(None) is None:
        trained = assessment.model_logits(work.model, work.test_x)
        results.put(None, assessment.accuracy(trained, work.test_y).as_dict())
    missing = [recipe for recipe in recipes if results.get(recipe) is None]
    graph = import_model(work.model, tuple(work.calibration_x.shape[1:]))
    costs = [1 + recipe.timesteps for recipe in missing]
    with bars(), counting(f"{len(missing)} configurations, in steps", sum(costs)) as advance:
        for recipe, cost in zip(missing, costs, strict=True):
            results.put(recipe, measure(work, graph, recipe))
            advance(cost)


def label(recipe: Recipe) -> str:
    """Name a configuration in a line."""
    return f"{recipe.method}, T = {recipe.timesteps}, K = {recipe.holdoff}, {recipe.weights}, {recipe.chip}"


def cell(row: Row) -> tuple[str, str]:
    """Write what was measured: the accuracy, and its interval with what else is to be known."""
    if "refused" in row:
        return "refused", ""
    overflows = f", {row['overflows']} overflows" if row.get("overflows") else ""
    return f"{row['accuracy']:.2f}", f"{row['low']:.2f} to {row['high']:.2f}{overflows}"


class Outcome:
    """The rows of one matrix, for people."""

    def __init__(self, matrix: Matrix, results: Results) -> None:
        self._matrix, self._setting = matrix, results.setting
        ann = results.get(None)
        assert ann is not None  # it is measured first
        self.ann = ann
        self._rows = {recipe: row for recipe in matrix.recipes() if (row := results.get(recipe))}

    def rows(self) -> list[Row]:
        """List them, the trained network first."""
        return [self.ann, *self._rows.values()]

    def _lines(self, weights: str, chip: str) -> Iterator[tuple[str, str, list[Row]]]:
        """Yield K, rule and a row per T: those of the trained network first."""
        yield "", TRAINED, [self.ann] * len(self._matrix.timesteps)
        by = {
            (r.holdoff, r.method, r.timesteps): row
            for r, row in self._rows.items()
            if (r.weights, r.chip) == (weights, chip)
        }
        for k, rule in product(self._matrix.holdoffs, self._matrix.rules):
            yield str(k), rule, [by[k, rule, t] for t in self._matrix.timesteps]

    def _heading(self, weights: str, chip: str) -> str:
        n, calibration = self._setting["n"], self._setting["calibration"]
        return (
            f"{self._setting['network']}, {weights} weights, {REGISTERS.get(chip, chip)}: accuracy in % with "
            f"95 % interval, n = {n} test images, {calibration} calibration images"
        )

    def refusals(self) -> list[str]:
        """Say why, once for each configuration that was refused."""
        return [
            f"{label(recipe)}: refused: {finding}"
            for recipe, row in self._rows.items()
            for finding in row.get("refused", ())
        ]

    def tables(self) -> Iterator[Table]:
        """Lay out a table for each kind of weights and registers."""
        for group in self._matrix.groups():
            table = Table(title=self._heading(*group), title_justify="left", box=box.SIMPLE_HEAD)
            table.add_column("K", justify="right")
            table.add_column("bias rule")
            for t in self._matrix.timesteps:
                table.add_column(f"T = {t}", justify="right")
            for k, rule, rows in self._lines(*group):
                table.add_row(k, rule, *("\n".join(filter(None, cell(row))) for row in rows))
            yield table

    def markdown(self) -> str:
        """Write the same tables as Markdown, with the reasons for refusals."""
        sections = [f"# Accuracy of {self._setting['network']} as a spiking network"]
        for group in self._matrix.groups():
            header = ["K", "bias rule", *(f"T = {t}" for t in self._matrix.timesteps)]
            lines = [header, ["---:", "---", *["---:"] * len(self._matrix.timesteps)]]
            for k, rule, rows in self._lines(*group):
                cells = (cell(row) for row in rows)
                lines.append([k, rule, *(f"{value} ({rest})" if rest else value for value, rest in cells)])
            sections += [f"{self._heading(*group)}.", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
        if refusals := self.refusals():
            sections += ["Refused:", "\n".join(f"- {line}" for line in refusals)]
        return "\n\n".join([*sections, f"![Accuracy against T]({PLOT})"]) + "\n"

    def figure(self) -> Figure:
        """Draw accuracy against T: a panel per K, a row of panels per kind of weights and registers."""
        matrix, groups = self._matrix, list(self._matrix.groups())
        wide, high = len(matrix.holdoffs), len(groups)
        figure = Figure(figsize=(max(6.4, 1.2 + 3.0 * wide), 1.3 + 2.7 * high), layout="constrained")
        panels = figure.subplots(high, wide, sharex=True, sharey=True, squeeze=False)
        for (weights, chip), line in zip(groups, panels, strict=True):
            rows = list(self._lines(weights, chip))[1:]
            for k, axes in zip(matrix.holdoffs, line, strict=True):
                axes.axhspan(self.ann["low"], self.ann["high"], color=GREY, alpha=0.12, linewidth=0)
                trained = f"{TRAINED}, {self.ann['accuracy']:.1f} %"
                axes.axhline(self.ann["accuracy"], color=GREY, linestyle="--", label=trained)
                for place, (rule, values) in enumerate((rule, values) for of, rule, values in rows if of == str(k)):
                    colour, marker = STYLES.get(rule, (GREY, "*"))
                    y, least, most = (
                        np.array([row.get(key, math.nan) for row in values]) for key in ("accuracy", "low", "high")
                    )
                    # Beside each other, as rules are often equally good.
                    aside = 2 ** (ASIDE * (place - (len(matrix.rules) - 1) / 2))
                    axes.errorbar(
                        [t * aside for t in matrix.timesteps],
                        y,
                        ((y - least).tolist(), (most - y).tolist()),  # as arrays, matplotlib warns of a single T
                        color=colour,
                        marker=marker,
                        markersize=5,
                        markerfacecolor="white" if marker != "x" else colour,
                        linewidth=1.3,
                        elinewidth=0.8,
                        label=rule,
                    )
                axes.set_title(f"K = {k}, {weights} weights, {chip}", loc="left", fontsize=10)
                axes.set_xscale("log", base=2)
                axes.set_xlim(matrix.timesteps[0] / 1.3, matrix.timesteps[-1] * 1.3)
                axes.xaxis.set_major_locator(FixedLocator(matrix.timesteps))
                axes.xaxis.set_minor_locator(NullLocator())
                axes.xaxis.set_major_formatter(lambda t, _: f"{t:g}")
                axes.grid(axis="y", alpha=0.3)
                axes.spines[["top", "right"]].set_visible(False)
            line[0].set_ylabel("accuracy (%)")
        for axes in panels[-1]:
            axes.set_xlabel("time steps T")
        figure.suptitle(
            f"{self._setting['network']}: accuracy after T steps with 95 % intervals, "
            f"n = {self._setting['n']} test images",
            fontsize=11,
        )
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=4 if wide < 3 else 1 + len(matrix.rules),
            frameon=False,
            fontsize=9,
        )
        return figure


@app.command(help=__doc__)
@guarded
def main(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help=f"Directory for {RESULTS}, {TABLE} and {PLOT}.")
    ],
    data: Data = None,
    weights: Weights = None,
    timesteps: Annotated[str, typer.Option(help="T, separated by commas.")] = "1,2,4,8",
    holdoffs: Annotated[str, typer.Option(help="K, separated by commas.")] = "0,1,2",
    rules: Annotated[str, typer.Option(help="Bias rules.")] = ",".join(get_args(Method)),
    weights_rules: Annotated[
        str, typer.Option(help="How weights become integers; tuned adds minutes to every configuration.")
    ] = "nearest,fitted",
    chips: Annotated[str, typer.Option(help="Registers: loihi2 is 8-bit weights, wide nearly float.")] = "loihi2,wide",
    samples: Annotated[int | None, typer.Option(metavar="N", help="Test images; all by default.")] = None,
    calibration: Calibration = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep what the directory's results already hold.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Measure the matrix."""
    matrix = Matrix(
        names(rules),
        integers("--timesteps", timesteps),
        integers("--holdoffs", holdoffs),
        names(weights_rules),
        names(chips),
    )
    recipes = matrix.recipes()
    work = workload.load(data, weights, calibration, samples)
    results = Results(output / RESULTS, work, resume)
    run(work, recipes, results)
    outcome = Outcome(matrix, results)
    workload.write(output / TABLE, outcome.markdown())
    outcome.figure().savefig(output / PLOT, dpi=DPI)
    if json_file is not None:
        workload.write_json(json_file, {"rows": outcome.rows()})
    for table in outcome.tables():
        out.print(table)
    for line in outcome.refusals():
        say(line, "yellow")
    say(f"written to {output}")


if __name__ == "__main__":
    app()
