"""The commands. Exit codes: 0 done, 1 a check failed, 2 unusable input."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from sim.findings import refuse
from toolchain.app.console import bars, guarded, out, print_json, say, table
from toolchain.app.options import Bundle, Data, Json, Model, Output, Samples, Start, Weights, with_recipe
from toolchain.app.show import STEPS, layers, show_report, show_verification

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Turn a trained PyTorch network into a verified spiking network for Intel Loihi 2.",
)


@app.command()
@guarded
def check(
    model: Model,
    input_shape: Annotated[str, typer.Option(metavar="C,H,W", help="Shape of one input, for example 3,32,32.")],
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """List every layer of a model and what becomes of it; exit code 1 if anything is refused.

    Example: `ann2loihi check --model model.py:build --input-shape 1,8,8`
    """
    from toolchain.frontends import inspect_model
    from toolchain.loading import load_model

    try:
        shape = tuple(int(part) for part in input_shape.split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (1, 2, 3) or min(shape) < 1:
        raise refuse("--input-shape", repr(input_shape), "give C,H,W, or C,L, or one number of features")
    rows = [asdict(row) for row in inspect_model(load_model(model, weights), shape)]
    if as_json:
        print_json(rows)
    else:
        out.print(table(f"{model}, input {input_shape}", rows, {key: key for key in rows[0]} if rows else {}))
    if any(str(row["fate"]).startswith("refused") for row in rows):
        raise typer.Exit(1)


@app.command()
@guarded
@with_recipe
def convert(
    model: Model,
    calibration: Annotated[
        Path, typer.Option(metavar="FILE.npz", help="A few hundred inputs x (N,C,H,W); y is only reported on.")
    ],
    output: Output,
    weights: Weights = None,
    recipe: Start = "ann2loihi",
    auto: Annotated[bool, typer.Option("--auto", help="Choose T, K and the bias rule on held-out inputs.")] = False,
    latency_budget: Annotated[
        int | None, typer.Option(metavar="STEPS", help="With --auto: steps until the logits, at most.")
    ] = None,
    as_json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Convert a trained model and write network, `.net`, report and pictures to a directory.

    What is not given is the recipe's; in brackets that of ann2loihi.

    Example: `ann2loihi convert --model model.py:build --weights model.pt --calibration calibration.npz -o build/out`
    """
    from toolchain import assessment
    from toolchain.auto import choose
    from toolchain.convert import convert as run
    from toolchain.inputs import load_arrays
    from toolchain.loading import load_model
    from toolchain.recipe import named

    if latency_budget is not None and not auto:
        raise refuse("--latency-budget", f"{latency_budget} steps without --auto", "add --auto, or give --timesteps")
    if auto and (given := [f"--{name}" for name in ("timesteps", "holdoff", "method") if name in options]):
        raise refuse("--auto", f"{', '.join(given)} given too", "leave the choice to --auto, or leave --auto out")
    chosen = named(recipe, **options)
    x, y = load_arrays(calibration, labels=False)
    net = load_model(model, weights)
    with bars():
        if auto:
            choice = choose(net, x, chosen, latency_budget=latency_budget)
            conversion, search = choice.conversion, choice.search
        else:
            conversion, search = run(net, x, recipe=chosen), None
        rates = assessment.rates(conversion, x)
        name, data = model.rpartition("/")[2], f"calibration data, {calibration.name}"
        report = assessment.report(conversion, net, x, y, rates, name=name, data=data, choice=search)
        conversion.save(output, report, rates)
    if as_json:
        print_json(report.as_dict())
    else:
        show_report(report)
        say(f"written to {output}")


@app.command()
@guarded
def evaluate(
    bundle: Bundle,
    data: Data,
    engine: Annotated[str, typer.Option(help="fast, reference, lava, lava-stock or netx.")] = "fast",
    samples: Samples = None,
    as_json: Json = False,
) -> None:
    """Print the accuracy at every step 1..T on labelled data.

    Example: `ann2loihi evaluate build/out --data test.npz`
    """
    from exporters import bundle as bundles
    from exporters.engines import run
    from toolchain.assessment import by_step
    from toolchain.inputs import load_arrays, selected

    network = bundles.load(bundle).network
    x, y = selected(*load_arrays(data, network.input.model_shape), samples)
    assert y is not None  # load_arrays has refused data without labels
    with bars():
        trace = run(engine, network, network.input.encode(x), record=False)
    rows = [row.as_dict() for row in by_step(trace.logits, y)]
    if as_json:
        print_json({"engine": engine, "samples": len(x), "accuracy_by_step": rows})
    else:
        out.print(table(f"{bundle} on {data}, engine {engine}", rows, STEPS))


@app.command()
@guarded
def verify(
    bundle: Bundle,
    data: Data,
    samples: Samples = None,
    as_json: Json = False,
) -> None:
    """Run every engine on the same samples and compare spike for spike; exit code 1 and the first difference if any.

    Example: `ann2loihi verify build/out --data test.npz --samples 16`
    """
    from exporters import bundle as bundles
    from exporters.engines import verify as run
    from exporters.report import Verification
    from toolchain.inputs import load_arrays, selected

    loaded = bundles.load(bundle)
    x, _ = selected(*load_arrays(data, loaded.network.input.model_shape, labels=False), samples)
    with bars():
        result = run(loaded.network, loaded.network.input.encode(x), net_path=loaded.net_path)
    if as_json:
        print_json(result.as_dict())
    else:
        show_verification(Verification.from_dict(result.as_dict(), "verification"), str(bundle))
    if result.difference is not None:
        raise typer.Exit(1)


@app.command()
@guarded
def inspect(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE.net", help="A converted directory or a single file.")],
    as_json: Json = False,
) -> None:
    """Print a table of layers: shape, weights, theta, phase, bias range, neurons.

    Example: `ann2loihi inspect build/out/network.net`
    """
    from exporters import bundle as bundles
    from exporters import netx
    from toolchain.assessment import layer_table

    network = bundles.load(path).network if path.is_dir() else netx.read(path)
    rows, source = layer_table(network), network.input
    scale = np.asarray(source.scale)
    if as_json:
        print_json(
            {
                "timesteps": network.timesteps,
                "holdoff": network.holdoff,
                "steps": network.steps,
                "loader": netx.loaded_by(network),
                "input": {
                    "shape": source.shape,
                    "given": source.model_shape,
                    "bits": source.bits,
                    "scale": scale.tolist(),
                },
                "layers": [row.as_dict() for row in rows],
            }
        )
        return
    out.print(layers(str(path), rows))
    given = "" if source.order is None else f", taken from {' x '.join(map(str, source.model_shape))}"
    apart = f"..{scale.max():.6g} by channel" if scale.ndim else ""
    out.print(
        f"T = {network.timesteps}, K = {network.holdoff}: logits after {network.steps} steps; input "
        f"{' x '.join(map(str, source.shape))}{given}, {source.bits} bits, payload = x * {scale.min():.6g}{apart}; "
        f"loads with {netx.loaded_by(network)}",
        soft_wrap=True,
        highlight=False,
    )


@app.command()
@guarded
def demo(
    output: Output = Path("build/demo"),
    samples: Annotated[int, typer.Option(help="Test digits that every engine runs.")] = 16,
    as_json: Json = False,
) -> None:
    """Convert a small CNN trained on handwritten digits, verify it on every engine and write `.net`, report, pictures.

    Example: `ann2loihi demo`
    """
    from toolchain.demo import run as demo_run

    with bars():
        report = demo_run.run(output, samples)
    assert report.verification is not None  # it is what the demo is for
    if as_json:
        print_json(report.as_dict())
    else:
        show_report(report)
        show_verification(report.verification, report.model)
        say(f"written to {output}")
    if report.verification.difference is not None:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()
