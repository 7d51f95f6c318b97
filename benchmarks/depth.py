"""What depth costs: a shallow and a deep residual network, trained alike, converted alike, and where errors come from.

He et al.'s CIFAR networks with 3 and 9 blocks in a stage, ResNet-20 and ResNet-56, on images of half the size, which a
processor trains in half an hour. Each learns from labels, and is converted from training images without them::

    python -m benchmarks.depth --data DIR -o build/depth

What the directory holds of an earlier run is not done again.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from benchmarks import workload
from benchmarks.draws import Row, measured
from benchmarks.workload import Workload, integers, names
from examples.resnet20 import ResNet
from exporters.report import CAUSES
from sim.findings import refuse
from toolchain import assessment
from toolchain.app.console import bars, guarded, out
from toolchain.convert import convert
from toolchain.graph.channels import spread
from toolchain.recipe import Recipe, named
from toolchain.training import Settings, train

SETTINGS = Settings(
    activation="relu",
    epochs=8,
    learning_rate=0.03,
    augment="crop+flip",
    padding=2,
    precision="bfloat16",
    timesteps=8,
    holdoff=1,
)
TUNED = 2048  #: calibration images of what is tuned
#: By name, for any T.
RECIPES = {
    "default": named(),
    "1.5 x neurons": named(neuron_budget=1.5),
    "tuned": named("tuned", mirrored=True),
}

app = typer.Typer(add_completion=False)


def halved(data: Path, part: str) -> tuple[Tensor, Tensor]:
    """Decode a part of CIFAR-10, (n, 3, 16, 16) and (n,)."""
    x, y = workload.decode(data / f"cifar10_{part}.npz", None)
    return functional.avg_pool2d(x, 2), y


def row(work: Workload, model: nn.Module, recipe: Recipe) -> Row:
    """Convert, measure, and find what the error of all layers, and of the outputs, consists of."""
    x = work.calibration_x[: TUNED if recipe.weights == "tuned" else workload.CALIBRATION]
    conversion = convert(model, x, recipe=recipe)
    shares = assessment.attribute(conversion, work.test_x[spread(len(work.test_x))])
    own = {cause: sum(share.of(cause) for share in shares[:-1]) for cause in CAUSES}
    return {
        **measured(work, conversion),
        "recipe": recipe.as_dict(),
        "error": shares[-1].error,
        "own": {cause: value / sum(own.values()) for cause, value in own.items()},
    }


def table(rows: list[Row]) -> Table:
    """Lay out a line for each conversion."""
    result = Table(
        title=f"n = {rows[0]['n']} test images",
        title_justify="left",
        caption="lost: accuracy of the trained network less that of the spiking one; error: of the outputs, relative; "
        "own: what the layers' own errors consist of, in all",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("network", "recipe", "T, K"):
        result.add_column(column)
    for column in ("trained, %", "spiking, %", "lost", "error", *(f"{cause}, %" for cause in CAUSES), "neurons"):
        result.add_column(column, justify="right")
    for entry in rows:
        result.add_row(
            entry["network"],
            entry["name"],
            f"{entry['recipe']['timesteps']}, {entry['recipe']['holdoff']}",
            f"{entry['trained']:.2f}",
            f"{entry['accuracy']:.2f}",
            f"{entry['trained'] - entry['accuracy']:.2f}",
            f"{entry['error']:.3f}",
            *(f"{100 * entry['own'][cause]:.0f}" for cause in CAUSES),
            f"{entry['neurons']:,}",
        )
    return result


@app.command(help=__doc__)
@guarded
def main(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Holds trainings and rows.")],
    data: Annotated[Path, typer.Option("--data", metavar="DIR", help="Holds cifar10_train.npz and cifar10_test.npz.")],
    blocks: Annotated[str, typer.Option(help="Blocks in each of three stages, separated by commas.")] = "3,9",
    timesteps: Annotated[str, typer.Option(help="T, separated by commas.")] = "8",
    recipes: Annotated[str, typer.Option(help="Some of them, separated by commas.")] = ",".join(RECIPES),
    epochs: Annotated[int, typer.Option(help="Passes over the training images.")] = SETTINGS.epochs,
) -> None:
    """Train, convert and measure, and print all of it."""
    wanted, depths, windows = names(recipes), integers("--blocks", blocks), integers("--timesteps", timesteps)
    if not (wanted and depths and windows):
        raise refuse("--recipes, --blocks, --timesteps", "nothing to measure", "name at least one of each")
    if unknown := [name for name in wanted if name not in RECIPES]:
        raise refuse("--recipes", f"unknown {unknown[0]!r}", f"use some of {', '.join(RECIPES)}")
    settings = replace(SETTINGS, epochs=epochs, every=epochs)  # the last epoch is the one that counts
    found = []
    with bars():
        train_x, train_y = halved(data, "train")
        test_x, test_y = halved(data, "test")
        for depth in depths:
            name = f"resnet{6 * depth + 2}"
            torch.manual_seed(0)
            trained = train(ResNet(depth), train_x, train_y, settings, directory=output / name, resume=True)
            model = trained.model
            ann = assessment.accuracy(assessment.model_logits(model, test_x), test_y).value
            work = Workload(name, model, train_x[:TUNED], test_x, test_y)
            for t in windows:
                for way in wanted:
                    recipe = replace(RECIPES[way], timesteps=t)
                    path = output / name / f"T{t}-{way.replace(' ', '-')}.json"
                    if not path.exists():
                        made = row(work, model, recipe)
                        workload.write_json(path, {"network": name, "name": way, "trained": ann, **made})
                    found.append(json.loads(path.read_text(encoding="utf-8")))
    out.print(table(found))


if __name__ == "__main__":
    app()
