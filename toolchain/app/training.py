"""The command that trains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from toolchain.app.console import bars, err, guarded, print_json, say
from toolchain.app.options import Data, Json, Model, Output, Weights, with_options
from toolchain.training.settings import Settings

if TYPE_CHECKING:
    from toolchain.training.trainer import Epoch


@guarded
@with_options(Settings)
def train(
    model: Model,
    data: Data,
    output: Output,
    weights: Weights = None,
    device: Annotated[str, typer.Option(help="Where it computes: cpu or cuda.")] = "cpu",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last epoch that is in the directory.")
    ] = False,
    as_json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Train a model, or train it on, with activations that few spikes can express, and keep what spikes do best.

    Writes `trained.pt`, which `convert --model ... --weights trained.pt` takes, the curves, and after each epoch a file
    from which `--resume` goes on. Several GPUs or machines: `torchrun --nproc-per-node 4 -m ann2loihi train ...`.

    Example: `ann2loihi train --model model.py:build --weights relu.pt --data train.npz --levels 4 -o build/trained`
    """
    from toolchain.data import open_data
    from toolchain.loading import load_model
    from toolchain.training import checkpoint
    from toolchain.training.trainer import train as run

    settings = Settings(**options)
    first = os.environ.get("RANK", "0") == "0"
    if first:
        checkpoint.prepare(output, resume)
    source = open_data(data)
    x, y = source.read(range(len(source)))
    net = load_model(model, weights)
    with bars() as bar:

        def told(epoch: Epoch) -> None:
            (bar.console if err.is_terminal else err).print(str(epoch), highlight=False, soft_wrap=True)

        trained = run(net, x, y, settings, directory=output, resume=resume, device=device, callbacks=(told,))
    if not first:
        return
    if as_json:
        print_json(trained.as_dict())
    else:
        best = trained.history[trained.best - 1]
        say(f"kept {best}")
        say(f"written to {output / checkpoint.WEIGHTS}: give it to convert as --weights, with the same --model")
