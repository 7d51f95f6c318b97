"""The commands about hardware. Exit codes: 0 equal, 1 different, 2 unusable input, 3 a target that is not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from toolchain.app.console import bars, guarded, out, print_json, say, table
from toolchain.app.options import Bundle, Data, Json, Samples
from toolchain.app.show import score_columns

app = typer.Typer(no_args_is_help=True, help="Run a converted network on hardware and compare it with the simulation.")

Target = Annotated[str, typer.Option("--target", help="lava-cpu, or loihi2 through Lava's private extension.")]
Partition = Annotated[str | None, typer.Option(help="Of SLURM, where the board is to be.")]
Board = Annotated[str | None, typer.Option(help="Node of SLURM.")]
Host = Annotated[str | None, typer.Option(metavar="ADDRESS", help="A system on the network, without SLURM.")]
Generation = Annotated[str, typer.Option(help="Of the chip: N3B2, N3B3, N3C1 or N3D1.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with a record of the same run.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="That one step may take.")]
LoadTimeout = Annotated[float, typer.Option(metavar="SECONDS", help="Until the network is loaded, queueing included.")]
Against = Annotated[str, typer.Option(help="The engine to compare with: reference or fast.")]
Run = Annotated[Path, typer.Argument(metavar="RUN.h5", help="What `device run --record` has written.")]

STATES = {"job": "job", "question": "question", "outcome": "outcome"}


@app.command()
@guarded
def run(
    bundle: Bundle,
    data: Data,
    target: Target,
    partition: Partition = None,
    board: Board = None,
    host: Host = None,
    generation: Generation = "N3B3",
    record: Annotated[
        Path | None, typer.Option(metavar="RUN.h5", help="Keep everything here, sample by sample.")
    ] = None,
    resume: Resume = False,
    samples: Samples = None,
    readout_only: Annotated[bool, typer.Option("--readout-only", help="Read no other layer back: faster.")] = False,
    against: Against = "reference",
    timeout: Timeout = 600.0,
    load_timeout: LoadTimeout = 3600.0,
    as_json: Json = False,
) -> None:
    """Run samples on a target, record everything and compare it with the simulation; exit code 1 if anything differs.

    Example: `ann2loihi device run build/out --data test.npz --samples 16 --target lava-cpu --record run.h5`
    """
    from exporters import bundle as bundles
    from exporters import device
    from sim.findings import refuse
    from toolchain.assessment.device import ready
    from toolchain.data import load_for

    if resume and record is None:
        raise refuse("--resume", "there is no record to go on with", "add --record RUN.h5")
    loaded = bundles.load(bundle)
    x, y = load_for(loaded.network, data, samples)
    payload, labels, task = loaded.network.input.encode(x), None if y is None else y.numpy(), loaded.config.get("task")
    ready(loaded.network, payload, labels, task, against)
    with ExitStack() as stack:
        if record is None:
            record = Path(stack.enter_context(TemporaryDirectory()), "run.h5")
        stack.enter_context(bars())
        found = stack.enter_context(
            device.run(
                loaded.network,
                payload,
                target,
                record,
                resume=resume,
                labels=labels,
                task=task,
                data=data.name,
                request=device.Request(partition, board, host, generation),
                read=() if readout_only else None,
                patience=timeout,
                loading=load_timeout,
            )
        )
        shown = _replayed(found, against)
    _show(*shown, as_json)


@app.command()
@guarded
def replay(path: Run, against: Against = "reference", as_json: Json = False) -> None:
    """Compare a record with the simulation again, without the target; exit code 1 if anything differs.

    Example: `ann2loihi device replay run.h5`
    """
    from exporters import device

    with bars(), device.Record(path) as found:
        shown = _replayed(found, against)
    _show(*shown, as_json)


@app.command()
@guarded
def diff(one: Run, other: Run, as_json: Json = False) -> None:
    """Compare two records of the same network and inputs; exit code 1 if anything differs.

    Example: `ann2loihi device diff cpu.h5 board.h5`
    """
    from exporters import device
    from toolchain.assessment.device import outcome

    with bars(), device.Record(one) as first, device.Record(other) as second:
        result = outcome(device.diff(first, second), first.labels, first.job.get("task"))
        visits = [*first.visits, *second.visits]
    _show(result, {"visits": visits}, as_json)


@app.command()
@guarded
def selftest(
    target: Target = "lava-cpu",
    partition: Partition = None,
    board: Board = None,
    host: Host = None,
    generation: Generation = "N3B3",
    record: Annotated[Path | None, typer.Option(metavar="DIR", help="Keep a record of every job here.")] = None,
    resume: Resume = False,
    timeout: Timeout = 600.0,
    load_timeout: LoadTimeout = 3600.0,
    as_json: Json = False,
) -> None:
    """Run small jobs whose answers are known; exit code 1 if any is answered otherwise, 3 if any is not.

    Example: `ann2loihi device selftest --target loihi2 --partition oheogulch --record selftest`
    """
    from exporters.device import Request, Unavailable, selftest

    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        place = Path(stack.enter_context(TemporaryDirectory())) if record is None else record
        place.mkdir(parents=True, exist_ok=True)
        stack.enter_context(bars())
        golden, asked = selftest.golden(), Request(partition, board, host, generation)
        for check in _checks():
            try:
                found = selftest.settle(
                    check,
                    target,
                    place / f"{check.name}.h5",
                    golden.get(check.name),
                    resume=resume,
                    request=asked,
                    patience=timeout,
                    loading=load_timeout,
                )
            except Unavailable as error:
                if not rows:  # nothing will run there
                    raise
                state, said = "unanswered", str(error)
            else:
                state = "yes" if found.difference is None else "no"
                said = "" if found.difference is None else f"{found.difference}; {found.diagnosis}"
            rows.append(
                {
                    "job": check.name,
                    "question": check.question,
                    "answer": state,
                    "outcome": f"{state}: {said}" if said else state,
                }
            )
    if as_json:
        print_json({"target": target, "jobs": rows})
    else:
        out.print(table(f"self-test on {target}", rows, STATES))
        if record is not None:
            say(f"records in {record}")
    answers = {row["answer"] for row in rows}
    if answers != {"yes"}:
        raise typer.Exit(3 if "unanswered" in answers else 1)


def _checks() -> Iterator[Any]:
    """Give the jobs of the self-test, the demo's network the last."""
    from exporters.device import selftest
    from toolchain.convert import convert
    from toolchain.demo import data, load_model

    yield from selftest.checks()
    digits = data.load()
    network = convert(load_model(), digits.calibration_x, timesteps=8).network
    question = "does the whole demo network give the simulation's spikes?"
    yield selftest.Check("demo", question, network, network.input.encode(digits.test_x[:2]))


def _replayed(found: Any, against: str) -> tuple[Any, dict[str, Any]]:
    """Compare a record with an engine; returns the outcome and what else a user wants to know of the record."""
    from exporters import device
    from toolchain.assessment.device import outcome

    result = outcome(device.replay(found, against), found.labels, found.job.get("task"))
    about = {
        "data": found.job.get("data"),
        "of_samples": found.job["samples"],
        "seconds_per_sample": float(found.seconds.mean()),
        "visits": found.visits,
    }
    return result, about


def _show(result: Any, about: dict[str, Any], as_json: bool) -> None:
    """Print an outcome and end with its exit code."""
    comparison = result.comparison
    if as_json:
        print_json(result.as_dict() | about)
    else:
        scores = [{"engine": engine, **score.as_dict()} for engine, score in result.accuracy.items()]
        if scores:
            out.print(
                table("on the target and in simulation", scores, {"engine": "engine"} | score_columns(result.task))
            )
        for visit in about["visits"]:
            ran = visit["ran_on"]
            models = ", ".join(f"{n} {model}" for model, n in ran["models"].items())
            places = ", ".join(f"{k} {ran[k]}" for k in ("partition", "board", "host") if ran.get(k) is not None)
            say(f"ran on {models}{'; ' + places if places else ''}, {visit.get('started')}")
            for name in visit.get("unconfirmed", ()):
                say(f"the {name} is what was asked for: the runtime does not tell", "yellow")
            for name, value in visit["probed"].items():
                say(f"{name}: {value:g} W")
        if result.decisions or result.logits:
            say(f"{result.decisions} samples are decided otherwise, {result.logits} have other logits")
        say(comparison.summary, "green" if comparison.difference is None else "red")
    if comparison.difference is not None:
        raise typer.Exit(1)
