"""Every system of the two papers' tables on the same trained networks, in 8 bits on the chip's integers, T = 1..32.

Those for ReLU networks convert the given weights; those that train their source take what ``benchmarks.training fit``
has left in the directory (its groups table and papers). It can be interrupted, and goes on where it was::

    python -m benchmarks.papers --data DIR --weights FILE.pt -o build/training --jobs 2

Ours stands beside them with the hold-off that the systems lack, and is given as many calibration images.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.table import Table

from benchmarks import workload
from benchmarks.training import Folder, Job, Jobs, Seconds, farm, images, measured
from benchmarks.workload import Calibration, Data, JsonFile, Weights, integers, write_json
from sim.findings import refuse
from toolchain.app.console import guarded, out, say
from toolchain.recipe import Recipe, named
from toolchain.training import checkpoint

ROWS = "papers"  #: folder of the measured rows
app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class System:
    """A row of the table."""

    label: str
    recipe: str  #: by name
    training: str | None = None  #: that its network comes from; None for the given ReLU weights
    method: str | None = None  #: bias rule, where it is not the recipe's
    holdoff: int | None = None  #: K, where it is not the recipe's

    def at(self, timesteps: int) -> Recipe:
        """How it converts for so many steps."""
        changes = {"method": self.method, "holdoff": self.holdoff}
        return named(self.recipe, timesteps=timesteps, **{name: v for name, v in changes.items() if v is not None})


SYSTEMS = {
    system.label: system
    for system in (
        System("RMP", "rmp"),
        System("OPI", "opi"),
        System("SNNC-LP", "snnc-lp"),
        System("SNNC-AP", "snnc-ap"),
        System("FTBC", "ftbc"),
        System("ours", "ann2loihi"),
        System("RTS", "rts", "trelu"),
        System("FTBC+RTS", "ftbc+rts", "trelu"),
        System("TCL", "tcl", "tcl"),
        System("RNL", "rnl", "rnl"),
        System("SlipReLU", "sliprelu", "sliprelu"),
        System("QCFS", "qcfs", "qcfs-0"),
        System("FTBC+QCFS", "ftbc+qcfs", "qcfs-0"),
        System("NQ", "nq", "nq-0"),
        System("FTBC+NQ", "ftbc+nq", "nq-0"),
        System("NQ+ours", "nq", "nq-0", "mse", 1),
    )
}


def cells(timesteps: list[int]) -> Iterator[tuple[System, int, Path]]:
    """List systems and T, short windows first, each with the file of its row."""
    for t in timesteps:
        for system in SYSTEMS.values():
            yield system, t, Path(f"{system.label.lower().replace('+', '-')}-T{t}.json")


@app.command(help=__doc__)
@guarded
def main(
    output: Folder,
    data: Data = None,
    weights: Weights = None,
    timesteps: Annotated[str, typer.Option(help="T, separated by commas.")] = "1,2,4,8,16,32",
    jobs: Jobs = 1,
    seconds: Seconds = math.inf,
    samples: Annotated[int | None, typer.Option(metavar="N", help="Test images; all by default.")] = None,
    calibration: Calibration = None,
    json_file: JsonFile = None,
    one: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure the systems."""
    start = time.monotonic()
    if weights is None:
        raise refuse("--weights", "missing", "give the ReLU network's state_dict")
    place, rows = images(data, output), output / ROWS
    wanted = list(cells(integers("--timesteps", timesteps)))
    if one is not None:
        for system, t, file in wanted:
            if file.name == one:
                source = weights if system.training is None else output / system.training / checkpoint.WEIGHTS
                recipe = system.at(t)
                found = measured(source, place, recipe, calibration or workload.CALIBRATION, samples)
                row = {"system": system.label, "timesteps": t, "recipe": recipe.as_dict()} | found
                write_json(rows / file, row)
        return
    common = ["-m", "benchmarks.papers", "--data", str(data), "--weights", str(weights), "-o", str(output)]
    common += ["--timesteps", timesteps, *([] if samples is None else ["--samples", str(samples)])]
    common += ["--calibration", str(calibration or workload.CALIBRATION)]
    todo = [
        Job(file.stem, [*common, "--one", file.name], (rows / file).with_suffix(".log"), lambda: 0.0)
        for system, _, file in wanted
        if not (rows / file).exists()
        and (system.training is None or (output / system.training / checkpoint.WEIGHTS).exists())
    ]
    for line in farm(todo, jobs, seconds - (time.monotonic() - start), "converting and measuring"):
        say(line, "yellow")
    found = [json.loads((rows / file).read_text()) for _, _, file in wanted if (rows / file).exists()]
    if not found:
        raise refuse(str(output), "nothing was measured", "see the logs in its folder papers")
    write_json(output / "papers.json", {"rows": found})
    if json_file is not None:
        write_json(json_file, {"rows": found})
    out.print(table(found))


def table(rows: list[dict[str, Any]]) -> Table:
    """Lay out accuracy in % by system and T."""
    steps = sorted({row["timesteps"] for row in rows})
    n = ", ".join(sorted({str(row["n"]) for row in rows if "n" in row}))
    made = Table(
        title=f"ResNet-20, CIFAR-10, 8-bit weights: accuracy in %, n = {n} test images",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    made.add_column("system")
    for heading in ("source", "K", *(f"T = {t}" for t in steps)):
        made.add_column(heading, justify="right")
    by = {(row["system"], row["timesteps"]): row for row in rows}
    for label in SYSTEMS:
        own = [by.get((label, t)) for t in steps]
        if known := [row for row in own if row is not None]:
            cells = [
                "-" if row is None else f"{row['accuracy']:.2f}" if "accuracy" in row else "refused" for row in own
            ]
            made.add_row(label, f"{known[0]['ann']:.2f}", str(known[0]["recipe"]["holdoff"]), *cells)
    return made


if __name__ == "__main__":
    app()
