"""The command line: a thin shell over the Python API. Exit codes: 0 done, 1 a check failed, 2 unusable input."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sim.findings import Refused, refuse
from sim.fixedpoint import RegisterOverflow
from toolchain.progress import counted

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Turn a trained PyTorch network into a verified spiking network for Intel Loihi 2.",
)
out, err = Console(), Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="FILE.py:FACTORY|FILE.pt2|FILE.onnx",
        help="Function that builds the model, or a file that holds it.",
    ),
]
Weights = Annotated[Path | None, typer.Option("--weights", metavar="FILE", help="Its state_dict, .pt or .safetensors.")]
Data = Annotated[Path, typer.Option("--data", metavar="FILE.npz", help="Arrays x (N,C,H,W; uint8 or float) and y (N).")]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", help="Use the first N samples; all by default.")]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.")]
Bundle = Annotated[Path, typer.Argument(metavar="DIR", help="What `convert` has written.")]

# Written out, since naming the recipes by importing them would make `--help` wait for torch.
RECIPES_HELP = (
    "Where to start from: ann2loihi; tuned, which takes minutes; or a published baseline: rmp, opi, rts, snnc-lp, "
    "snnc-ap, qcfs, nq, ftbc, ftbc+rts, ftbc+qcfs."
)

F = TypeVar("F", bound=Callable[..., Any])


def command(function: F) -> F:
    """Register a command; what it refuses is printed line by line and ends with exit code 2."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (Refused, RegisterOverflow) as error:
            for line in str(error).splitlines():
                err.print(f"[red]error:[/red] {_plain(line)}", soft_wrap=True, highlight=False)
            raise typer.Exit(2) from None

    app.command()(guarded)
    return function


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar with an estimate for every kind of work that is reported as (what, done, in all)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


def _print_json(document: Any) -> None:
    typer.echo(json.dumps(document, indent=2))


def _table(title: str, rows: list[dict[str, Any]], columns: dict[str, str]) -> Table:
    """Lay out the ``columns`` (key to heading) of rows; what was not measured is a dash."""
    table = Table(title=_plain(title), title_justify="left", box=box.SIMPLE_HEAD)
    for key, heading in columns.items():
        numeric = all(isinstance(row.get(key, 0), int | float) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_plain(_text(row[key])) if row.get(key) is not None else "-" for key in columns))
    return table


def _layers(title: str, rows: list[dict[str, Any]]) -> Table:
    """Lay out a layer table so that it fits 80 columns."""
    shown = [
        {
            **row,
            "weights": " + ".join(_text(edge["weight_shape"]) for edge in row["edges"]),
            "theta": row["theta"] or None,
            "bias": f"{row['bias_min']}..{row['bias_max']}",
        }
        for row in rows
    ]
    return _table(title, shown, LAYERS)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return str(value)


LAYERS = {
    "name": "layer",
    "shape": "shape",
    "weights": "weights",
    "theta": "theta",
    "phase": "phase",
    "bias": "bias (su)",
    "neurons": "neurons",
}
SCORE = {"accuracy": "accuracy %", "low": "95 % low", "high": "high", "n": "samples"}
ENGINES = {
    "engine": "engine",
    "differences": "differences",
    "neuron_steps": "neuron-steps compared",
    "seconds": "seconds",
}
STEPS = {"step": "step", **SCORE}
TRIALS = {"T": "T", "K": "K", "method": "bias rule", "steps": "steps", "agreement": "agrees %", "refused": "refused"}


@command
def check(
    model: Model,
    input_shape: Annotated[str, typer.Option(metavar="C,H,W", help="Shape of one input, for example 3,32,32.")],
    weights: Weights = None,
    as_json: Json = False,
) -> None:
    """List every layer of a model and what becomes of it; exit code 1 if anything is refused.

    Example: `ann2loihi check --model model.py:build --input-shape 1,8,8`
    """
    from toolchain.importer import inspect_model
    from toolchain.loading import load_model

    try:
        shape = tuple(int(part) for part in input_shape.split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (1, 2, 3) or min(shape) < 1:
        raise refuse("--input-shape", repr(input_shape), "give C,H,W, or C,L, or one number of features")
    rows = [asdict(row) for row in inspect_model(load_model(model, weights), shape)]
    if as_json:
        _print_json(rows)
    else:
        out.print(_table(f"{model}, input {input_shape}", rows, {key: key for key in rows[0]} if rows else {}))
    if any(str(row["fate"]).startswith("refused") for row in rows):
        raise typer.Exit(1)


@command
def convert(
    model: Model,
    calibration: Annotated[
        Path, typer.Option(metavar="FILE.npz", help="A few hundred inputs x (N,C,H,W); y is only reported on.")
    ],
    output: Output,
    weights: Weights = None,
    recipe: Annotated[str, typer.Option(help=RECIPES_HELP)] = "ann2loihi",
    timesteps: Annotated[int | None, typer.Option(help="T, the length of every firing window.  [8]")] = None,
    holdoff: Annotated[
        int | None, typer.Option(help="K, steps that a layer integrates before it may fire.  [1]")
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Bias rule: none, static, potential, ftbc, exact, mse.  [mse]")
    ] = None,
    weight_rule: Annotated[
        str | None, typer.Option(help="Integer weights: nearest, fitted, or tuned by gradients.  [fitted]")
    ] = None,
    updates: Annotated[int | None, typer.Option(help="Gradient steps that tune weights.  [2000]")] = None,
    per_neuron: Annotated[bool | None, typer.Option(help="Whether every neuron gets its own biases.  [no]")] = None,
    threshold: Annotated[str | None, typer.Option(help="Threshold rule: given, max, percentile, mse.  [mse]")] = None,
    initial: Annotated[str | None, typer.Option(help="Initial potential: auto, zero, half, shift.  [auto]")] = None,
    shift_input: Annotated[
        bool | None, typer.Option(help="Input weights finer than a synaptic unit, which netx does not read.  [no]")
    ] = None,
    auto: Annotated[bool, typer.Option("--auto", help="Choose T, K and the bias rule on held-out inputs.")] = False,
    latency_budget: Annotated[
        int | None, typer.Option(metavar="STEPS", help="With --auto: steps until the logits, at most.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Convert a trained model and write network, `.net`, report and pictures to a directory.

    What is not given is the recipe's; in brackets that of ann2loihi.

    Example: `ann2loihi convert --model model.py:build --weights model.pt --calibration calibration.npz -o build/out`
    """
    from toolchain import artefact, assess
    from toolchain.auto import choose
    from toolchain.convert import convert as run
    from toolchain.loading import load_arrays, load_model
    from toolchain.recipe import recipe as named

    fields = {
        "timesteps": timesteps,
        "holdoff": holdoff,
        "method": method,
        "weights": weight_rule,
        "updates": updates,
        "per_neuron": per_neuron,
        "threshold": threshold,
        "initial": initial,
        "shift_input": shift_input,
    }
    if latency_budget is not None and not auto:
        raise refuse("--latency-budget", f"{latency_budget} steps without --auto", "add --auto, or give --timesteps")
    if auto and (given := [f"--{name}" for name in ("timesteps", "holdoff", "method") if fields[name] is not None]):
        raise refuse("--auto", f"{', '.join(given)} given too", "leave the choice to --auto, or leave --auto out")
    chosen = named(recipe, **{name: value for name, value in fields.items() if value is not None})
    x, y = load_arrays(calibration, labels=False)
    net = load_model(model, weights)
    with _progress() as tell:
        if auto:
            choice = choose(net, x, chosen, latency_budget=latency_budget, progress=tell)
            conversion, choosing = choice.conversion, {"choice": choice.as_dict()}
        else:
            conversion, choosing = run(net, x, recipe=chosen, progress=tell), {}
        rates = assess.rates(conversion, x)
        report = {
            "model": model.rpartition("/")[2],
            "data": f"calibration data, {calibration.name}",
            **choosing,
            **assess.report(conversion, net, x, y, rates, progress=tell),
        }
        artefact.write(output, conversion, net, x, report, rates)
    if as_json:
        _print_json(report)
    else:
        _show(report)
        out.print(f"written to {output}", highlight=False, soft_wrap=True)


def _show(report: dict[str, Any]) -> None:
    """Print a report's layers, accuracies, and what they come from."""
    from exporters.report import RUNGS

    recipe = f"T = {report['timesteps']}, K = {report['holdoff']}, {report['method']}, {report['weights']} weights"
    out.print(_layers(f"{report['model']}, {recipe}", report["layers"]))
    accuracy, agreement = report.get("accuracy", {}), report["agreement"]
    # The interval is that of the accuracy, where there are labels.
    rows = [
        {"what": label, **agreement.get(rung, {}), **accuracy.get(rung, {})}
        for rung, label in RUNGS.items()
        if rung in agreement or rung in accuracy
    ]
    columns = {"what": "network", **(SCORE if accuracy else {}), "agreement": "agrees %"}
    columns |= {key: heading for key, heading in SCORE.items() if not accuracy and key != "accuracy"}
    out.print(
        _table(
            f"{'accuracy and ' if accuracy else ''}agreement with the trained network on {report['data']}",
            rows,
            columns,
        )
    )
    if "accuracy_by_timesteps" in report:
        rows = [{"T": t, **score} for t, score in report["accuracy_by_timesteps"].items()]
        out.print(_table("converted for other T", rows, {"T": "T", **SCORE}))
    if "choice" in report:
        rows = [{"T": trial["timesteps"], "K": trial["holdoff"], **trial} for trial in report["choice"]["trials"]]
        out.print(_table("tried on held-out calibration inputs", rows, TRIALS))
        out.print(_plain(report["choice"]["reason"]), highlight=False, soft_wrap=True)
    out.print(_plain(report["attribution"]["verdict"]), highlight=False, soft_wrap=True)
    for finding in report["findings"]:
        out.print(_plain(finding), style="yellow")


def _show_verification(verification: dict[str, Any], what: str) -> None:
    """Print what every engine did and the outcome in a sentence."""
    out.print(_table(f"{what}: {verification['samples']} samples on every engine", verification["engines"], ENGINES))
    style = "green" if verification["difference"] is None else "red"
    out.print(_plain(verification["summary"]), style=style, highlight=False, soft_wrap=True)


@command
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
    from toolchain.assess import by_step
    from toolchain.loading import load_arrays, selected

    network = bundles.load(bundle).network
    x, y = selected(*load_arrays(data, network.input.shape), samples)
    assert y is not None  # load_arrays has refused data without labels
    with _progress() as tell:
        progress = partial(counted(tell, "running on {}", len(x)), engine)
        trace = run(engine, network, network.input.encode(x), record=False, progress=progress)
    rows = by_step(trace.logits, y)
    if as_json:
        _print_json({"engine": engine, "samples": len(x), "accuracy_by_step": rows})
    else:
        out.print(_table(f"{bundle} on {data}, engine {engine}", rows, STEPS))


@command
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
    from toolchain.loading import load_arrays, selected

    loaded = bundles.load(bundle)
    x, _ = selected(*load_arrays(data, loaded.network.input.shape, labels=False), samples)
    with _progress() as tell:
        payload, progress = loaded.network.input.encode(x), counted(tell, "verifying on {}", len(x))
        result = run(loaded.network, payload, net_path=loaded.net_path, progress=progress)
    if as_json:
        _print_json(result.as_dict())
    else:
        _show_verification(result.as_dict(), str(bundle))
    if result.difference is not None:
        raise typer.Exit(1)


@command
def inspect(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE.net", help="A converted directory or a single file.")],
    as_json: Json = False,
) -> None:
    """Print a table of layers: shape, weights, theta, phase, bias range, neurons; and where a directory came from.

    Example: `ann2loihi inspect build/out`
    """
    from exporters import bundle as bundles
    from exporters import netx
    from toolchain.assess import layer_table

    bundle = bundles.load(path) if path.is_dir() else None
    network = netx.read(path) if bundle is None else bundle.network
    rows = layer_table(network)
    if as_json:
        _print_json(
            {
                "timesteps": network.timesteps,
                "holdoff": network.holdoff,
                "steps": network.steps,
                "loader": netx.loaded_by(network),
                "input": {"shape": network.input.shape, "bits": network.input.bits, "scale": network.input.scale},
                "layers": rows,
                "provenance": None if bundle is None else bundle.provenance,
            }
        )
        return
    out.print(_layers(str(path), rows))
    out.print(
        f"T = {network.timesteps}, K = {network.holdoff}: logits after {network.steps} steps; input "
        f"{' x '.join(map(str, network.input.shape))}, {network.input.bits} bits, payload = x * "
        f"{network.input.scale:.6g}; loads with {netx.loaded_by(network)}",
        soft_wrap=True,
        highlight=False,
    )
    if bundle is not None:
        for key, value in bundle.provenance.items():
            out.print(_plain(f"{key}: {_listed(value)}"), soft_wrap=True, highlight=False)


def _listed(value: Any) -> str:
    return ", ".join(f"{key} {entry}" for key, entry in value.items()) if isinstance(value, dict) else str(value)


@command
def demo(
    output: Output = Path("build/demo"),
    samples: Annotated[int, typer.Option(help="Test digits that every engine runs.")] = 16,
    as_json: Json = False,
) -> None:
    """Convert a small CNN trained on handwritten digits, verify it on every engine and write `.net`, report, pictures.

    Example: `ann2loihi demo`
    """
    from toolchain.demo import run as demo_run

    with _progress() as tell:
        report = demo_run.run(output, samples, tell)
    if as_json:
        _print_json(report)
    else:
        _show(report)
        _show_verification(report["verification"], "digits_cnn")
        out.print(f"written to {output}", highlight=False, soft_wrap=True)
    if report["verification"]["difference"] is not None:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()
