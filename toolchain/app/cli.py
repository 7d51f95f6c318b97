"""The commands. Exit codes: 0 done, 1 a check failed, 2 unusable input, 3 no such hardware."""

from __future__ import annotations

import os
import shlex
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from sim.findings import Refused, refuse
from toolchain.app import chip, device, export, report, training
from toolchain.app.console import bars, err, guarded, json_text, numbers, out, print_json, say, table
from toolchain.app.options import (
    DATA,
    AnyModel,
    AnyNetwork,
    Data,
    DenseLimit,
    Device,
    Json,
    LeaveOffLast,
    Model,
    Output,
    Samples,
    Start,
    Weights,
    importing,
    with_recipe,
)
from toolchain.app.show import blocks, layers, nodes, show_evaluation, show_issues, show_report, show_verification

if TYPE_CHECKING:  # torch takes seconds, which no command's help should
    from exporters.report import Search
    from toolchain.convert import Conversion

#: Of the click that typer depends on, or brings along: only typer's own names are stable.
UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Turn a trained PyTorch network into a verified spiking network for Intel Loihi 2.",
)
app.add_typer(device.app, name="device")
app.add_typer(report.app, name="report")


def _version(wanted: bool) -> None:
    if wanted:
        say(f"ann2loihi {metadata.version('ann2loihi')}")
        raise typer.Exit


@app.callback()
def about(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take what stands before a command."""


@app.command()
@guarded
def check(
    path: Annotated[
        Path | None, typer.Argument(metavar="DIR|FILE.net", help="A network for --chip: converted, or any netx file.")
    ] = None,
    chip: Annotated[str | None, typer.Option(metavar="loihi2", help="What the network is to run on.")] = None,
    model: AnyModel = None,
    input_shape: Annotated[
        str | None, typer.Option(metavar="C,H,W", help="Shape of one input of the model, for example 3,32,32.")
    ] = None,
    weights: Weights = None,
    calibration: Annotated[
        Path | None,
        typer.Option(metavar=DATA, help="Inputs x (N,C,H,W) to compare on, beside drawn ones, or to measure on."),
    ] = None,
    dense_limit: DenseLimit = None,
    leave_off_last: LeaveOffLast = False,
    as_json: Json = False,
) -> None:
    """List what becomes of a model's layers, or what a network meets on its chip; exit code 1 if there is an error.

    What is not refused of a model is compared with the model itself. A network is checked against every limit of the
    chip, and for what stock netx would leave out or corrupt.

    Example: `ann2loihi check --model model.py:build --input-shape 1,8,8`, or `ann2loihi check build/out --chip loihi2`
    """
    if path is not None:
        if model is not None or chip != "loihi2":
            raise refuse(str(path), f"with --chip {chip} and --model {model}", "give --chip loihi2 and no model")
        _check_network(path, calibration, as_json)
    elif chip is not None or model is None or input_shape is None:
        missing = "a network" if chip is not None else "--model" if model is None else "--input-shape"
        raise refuse("check", f"{missing} is missing", "give DIR --chip loihi2, or --model and --input-shape")
    else:
        limits = importing(dense_limit, leave_off_last)
        _check_model(model, input_shape, weights, calibration, limits, as_json)


def _check_model(
    model: str,
    input_shape: str,
    weights: Path | None,
    calibration: Path | None,
    limits: dict[str, Any],
    as_json: bool,
) -> None:
    from toolchain.data import gather, open_data
    from toolchain.frontends import inspect_model
    from toolchain.loading import load_model

    try:
        shape = tuple(int(part) for part in input_shape.split(","))
    except ValueError:
        shape = ()
    if len(shape) not in (1, 2, 3) or min(shape) < 1:
        raise refuse("--input-shape", repr(input_shape), "give C,H,W, or C,L, or one number of features")
    samples = None if calibration is None else gather(open_data(calibration, shape, labels=False)).x
    with redirect_stdout(sys.stderr):  # what the model prints while it is traced
        found = inspect_model(load_model(model, weights), shape, samples=samples, **limits)
        rows = [asdict(row) for row in found]
    if as_json:
        print_json(rows)
    else:
        out.print(table(f"{model}, input {input_shape}", rows, {key: key for key in rows[0]} if rows else {}))
    if any(str(row["fate"]).startswith("refused") for row in rows):
        raise typer.Exit(1)


def _check_network(path: Path, calibration: Path | None, as_json: bool) -> None:
    from exporters import bundle
    from toolchain.data import gather, open_data

    x = None
    if calibration is not None:
        x = gather(open_data(calibration, bundle.read_network(path).input.model_shape, labels=False)).x
    found = bundle.legality(path, x)
    if as_json:
        print_json([issue.as_dict() for issue in found])
    else:
        show_issues(found)
    if any(issue.severity == "error" for issue in found):
        raise typer.Exit(1)


@app.command()
@guarded
@with_recipe
def convert(
    model: Model,
    calibration: Annotated[
        Path,
        typer.Option(metavar=DATA, help="A few hundred inputs x (N,C,H,W), or more; labels are never learnt from."),
    ],
    output: Output,
    weights: Weights = None,
    calibration_samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="Read only N inputs, from all over the data.  [all, 1 GiB of which are used]"),
    ] = None,
    recipe: Start = "ann2loihi",
    auto: Annotated[bool, typer.Option("--auto", help="Choose T, K and the bias rule on held-out inputs.")] = False,
    latency_budget: Annotated[
        int | None, typer.Option(metavar="STEPS", help="With --auto: steps until the logits, at most.")
    ] = None,
    period_budget: Annotated[
        int | None, typer.Option(metavar="STEPS", help="With --auto: steps between samples, at most.")
    ] = None,
    compare_forms: Annotated[
        bool, typer.Option("--compare-forms", help="Convert for every form of the input, and compare them.")
    ] = False,
    sensitivity: Annotated[
        bool,
        typer.Option("--sensitivity", help="Measure what the steps of each layer cost alone: two runs for each."),
    ] = False,
    dense_limit: DenseLimit = None,
    leave_off_last: LeaveOffLast = False,
    as_json: Json = False,
    *,
    options: dict[str, Any],
) -> None:
    """Convert a trained model and write `.net`, report, page and pictures to a directory.

    What is not given is the recipe's; in brackets that of ann2loihi.

    Example: `ann2loihi convert --model model.py:build --weights model.pt --calibration calibration.npz -o build/out`
    """
    from exporters.bundle import PAGE, check_place
    from toolchain import assessment
    from toolchain.auto import choose
    from toolchain.convert import convert as run
    from toolchain.convert import in_every_form
    from toolchain.data import gather, open_data
    from toolchain.loading import load_model
    from toolchain.recipe import named

    budgets = {"latency_budget": latency_budget, "period_budget": period_budget}
    for name, steps in budgets.items():
        if steps is not None and not auto:
            option = f"--{name.replace('_', '-')}"
            raise refuse(option, f"{steps} steps without --auto", "add --auto, or give --timesteps")
    if auto and (given := [f"--{name}" for name in ("timesteps", "holdoff", "method") if name in options]):
        raise refuse("--auto", f"{', '.join(given)} given too", "leave the choice to --auto, or leave --auto out")
    chosen = named(recipe, **options)
    check_place(output)
    whole = open_data(calibration, labels=False)
    net, limits = load_model(model, weights), importing(dense_limit, leave_off_last)

    def converted(labels: Any) -> tuple[Conversion, Search | None]:
        if not auto:
            return run(net, gathered, recipe=chosen, labels=labels, **limits), None
        choice = choose(net, gathered, chosen, **budgets, labels=labels, **limits)
        return choice.conversion, choice.search

    unusable: Refused | None = None
    with bars():
        gathered = gather(whole.drawn(calibration_samples))
        x, y = gathered.x, gathered.y
        try:
            conversion, search = converted(y)
        except Refused as refused:
            if y is None or any(finding.where != "labels" for finding in refused.findings):
                raise
            # Labels only measure: the network is the same without them, and takes long enough to be kept.
            unusable, y = refused, None
            conversion, search = converted(None)
        name, data = model.rpartition("/")[2], f"calibration data, {calibration.name}"
        data += f", {len(x)} of {len(whole)}" if len(x) < len(whole) else ""
        forms = in_every_form(conversion, net, gathered, **limits) if compare_forms else ()
        measured = assessment.report(
            conversion, net, x, y, name=name, data=data, choice=search, forms=forms, sensitive=sensitivity
        )
        conversion.save(output, measured)
    if as_json:
        print_json(measured.as_dict())
    else:
        show_report(measured)
        say(f"written to {output}; the report as a page: {output / PAGE}")
    if unusable is not None:
        raise unusable


@app.command()
@guarded
def evaluate(
    bundle: AnyNetwork,
    data: Data,
    engine: Annotated[str, typer.Option(help="fast, reference, lava, lava-stock or netx.")] = "fast",
    overflow: Annotated[
        str | None,
        typer.Option(
            metavar="count|strict",
            help="Count samples that leave the registers, or end at the first.  [count; strict where Lava's wrap]",
        ),
    ] = None,
    samples: Samples = None,
    workers: Annotated[
        str | None,
        typer.Option(metavar="N|tcp://HOST:PORT", help="Processes here, or the Dask scheduler of a cluster.  [none]"),
    ] = None,
    shard: Annotated[
        int | None, typer.Option("--shard-size", metavar="N", help="Samples that a worker takes at a time.  [256]")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what is done here, and go on with it after a kill.")
    ] = None,
    device: Device = "cpu",
    report: Annotated[
        Path | None, typer.Option(metavar="FILE.md|FILE.json", help="Write what was measured to a file, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the accuracy, or R² of a regression, at every step 1..T on labelled data, and what each layer does for it.

    Example: `ann2loihi evaluate build/out --data test.npz --workers 8 --resume build/test.jsonl`
    """
    from exporters import bundle as bundles
    from exporters.files import replace_file
    from exporters.report.markdown import render_evaluation
    from toolchain import assessment
    from toolchain.data import open_data

    if report is not None and report.suffix not in (".md", ".json"):
        raise refuse("--report", f"{report} is of neither kind", "give a FILE.md or a FILE.json")
    for written in filter(None, (report, resume)):
        bundles.apart(written)
    loaded = bundles.read(bundle)
    source = open_data(data, loaded.network.input.model_shape).first(samples)
    # Single files do not name theirs, nor do bundles of before tasks were known.
    task = loaded.config.get("task", "auto")
    policy: Any = overflow  # which there are is the registers' to say
    with bars():
        found = assessment.evaluate(
            loaded.network,
            source,
            engine=engine,
            task=task,
            overflow=policy,
            device=device,
            workers=int(workers) if workers is not None and workers.isdecimal() else workers,
            shard=shard,
            resume=resume,
        )
    title = f"{bundle} on {data}, engine {engine}"
    if report is not None:
        text = json_text(found.as_dict()) if report.suffix == ".json" else render_evaluation(found, title)
        replace_file(report, text.encode())
    if as_json:
        print_json(found.as_dict())
        return
    show_evaluation(found, title)


@app.command()
@guarded
def verify(
    bundle: AnyNetwork,
    data: Annotated[
        Path | None, typer.Option("--data", metavar=DATA, help="Inputs x.  [those that --reduce has kept]")
    ] = None,
    samples: Samples = None,
    inputs: Annotated[
        str | None,
        typer.Option(
            metavar="payload|currents|spikes",
            help="How engines on Lava get the input.  [as the network was converted for]",
        ),
    ] = None,
    device: Device = "cpu",
    keep: Annotated[bool, typer.Option("--keep", help="Keep the outcome in the directory's report.")] = False,
    reduce: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Where engines differ, write the smallest case that still shows it."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run every engine on the same samples and compare spike for spike; exit code 1 and the first difference if any.

    With --reduce, layers, channels, steps and samples are left off as long as the engines differ.

    Example: `ann2loihi verify build/out --data test.npz --samples 16`
    """
    from exporters import bundle as bundles
    from exporters import reduction
    from exporters.engines import verify as run
    from exporters.report import Verification
    from toolchain.data import load_for

    loaded, beside = bundles.read(bundle), bundle / bundles.INPUTS
    if keep and loaded.report is None:
        raise refuse("--keep", f"{bundle} holds no {bundles.REPORT}", "convert again, or leave --keep out")
    if data is None and not os.path.isfile(beside):
        raise refuse("--data", "no inputs are given", "give --data FILE.npz")
    if reduce is not None:
        bundles.check_place(reduce)
    x, _ = load_for(loaded.network, data or beside, samples)
    payload = loaded.network.input.encode(x)
    form: Any = inputs  # which there are is the network's to say
    repro = None
    with bars():
        result = run(loaded.network, payload, net_path=loaded.net_path, inputs=form, device=device)
        if reduce is not None and result.difference is not None:
            repro = reduction.reduce(loaded.network, payload, result.difference.engines, inputs=form, device=device)
            repro.save(reduce)
    found = Verification.from_dict(result.as_dict(), "verification")
    if keep and loaded.report is not None:
        bundles.keep_report(bundle, replace(loaded.report, verification=found))
    if as_json:
        shown = {} if repro is None else {"repro": {"directory": str(reduce), "summary": repro.summary}}
        print_json(result.as_dict() | shown)
    else:
        show_verification(found, str(bundle))
        if repro is not None:
            say(f"{repro.summary}\nwritten to {reduce}; run it again: ann2loihi verify {shlex.quote(str(reduce))}")
    if result.difference is not None:
        raise typer.Exit(1)


@app.command()
@guarded
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="DIR|FILE.net|FILE.nir", help="A converted directory or a single file.")
    ],
    as_json: Json = False,
) -> None:
    """Print a table of layers: shape, weights, theta, phase, bias range, neurons; and where a directory came from.

    Of any other netx or NIR file: what its blocks or nodes hold.

    Example: `ann2loihi inspect build/out`
    """
    import numpy as np

    from exporters import bundle as bundles
    from exporters import netx, nir
    from sim.stock import legal_period
    from toolchain.assessment import layer_table

    graph = nir.read_graph(path) if nir.is_nir(path) else None
    if os.path.isfile(path) and not (netx.is_ours(path) if graph is None else nir.is_ours(graph)):
        described = netx.block_table(path) if graph is None else nir.node_table(graph)
        if as_json:
            print_json(described)
        else:
            out.print((blocks if graph is None else nodes)(str(path), described))
        return
    bundle = bundles.read(path)
    network = bundle.network
    rows, output, source = layer_table(network), network.output, network.input
    scale = np.asarray(source.scale)
    loader = netx.loader_of(bundle.net_path or path) if graph is None else f"NIR, form {nir.form_of(graph)}"
    shortest, silicon = network.period + 1, legal_period(network, "stock", "power of two")
    planned = legal_period(network, "stock")
    if as_json:
        print_json(
            {
                "timesteps": network.timesteps,
                "holdoff": network.holdoff,
                "steps": network.steps,
                "period": planned,
                "reset_interval": silicon,
                "loader": loader,
                "input": {
                    "shape": source.shape,
                    "given": source.model_shape,
                    "form": source.form,
                    "bits": source.bits,
                    "scale": scale.tolist(),
                },
                "output": None if output is None else {k: v.tolist() for k, v in vars(output).items()},
                "layers": [row.as_dict() for row in rows],
                "provenance": bundle.provenance or None,
            }
        )
        return
    out.print(layers(str(path), rows))
    given = "" if source.order is None else f", taken from {' x '.join(map(str, source.model_shape))}"
    out.print(
        f"T = {network.timesteps}, K = {network.holdoff}: logits after {network.steps} steps; input "
        f"{' x '.join(map(str, source.shape))}{given}, {source.bits} bits, payload = x * "
        f"{numbers(scale)}, brought in as {source.form}; loads with {loader}",
        soft_wrap=True,
        highlight=False,
    )
    more = f", {silicon} where resets come at powers of two (+{silicon - shortest})" if silicon > planned else ""
    price = f" ({shortest} suffice)" if planned > shortest else ""
    say(f"in the stock form, samples follow each other every {planned} steps{price}{more}")
    if output is not None:
        say(f"output = potential / {numbers(output.scale)} + {numbers(output.offset)}, after the whole window")
    for key, value in bundle.provenance.items():
        listed = ", ".join(f"{name} {entry}" for name, entry in value.items()) if isinstance(value, dict) else value
        say(f"{key}: {listed}")


for command in (training.train, chip.fit, chip.cost, chip.compare):
    app.command()(command)


app.add_typer(export.app, name="export")


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
    from exporters.bundle import PAGE
    from toolchain.demo import run as demo_run

    with bars():
        measured = demo_run.run(output, samples)
    assert measured.verification is not None  # it is what the demo is for
    if as_json:
        print_json(measured.as_dict())
    else:
        show_report(measured)
        show_verification(measured.verification, measured.model)
        say(f"written to {output}; the report as a page: {output / PAGE}")
    if measured.verification.difference is not None:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script: a command line that cannot be read gets one line and exit code 2, too."""
    try:
        code = app(prog_name="ann2loihi", standalone_mode=False)
    except UsageError as error:
        message = error.format_message()
        if "\n" in message:  # no command was given: its help, which some typers have printed themselves
            out.print(message, markup=False, highlight=False)
        elif message:
            err.print(f"[red]error:[/red] {escape(message)} (see --help)", soft_wrap=True, highlight=False)
        code = 2
    except (typer.Abort, KeyboardInterrupt):
        code = 130  # as shells count an interrupt
    sys.exit(code if isinstance(code, int) else 0)
