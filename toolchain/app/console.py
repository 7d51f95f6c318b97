"""How commands meet the terminal: refusals as lines and exit codes, progress as bars, rows as tables, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import wraps
from typing import Any, TypeVar

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from sim.findings import Refused
from sim.fixedpoint import RegisterOverflow
from sim.progress import reporting

WIDTH = 160  #: letters in a line where no terminal says how many there are; COLUMNS may

out, err = Console(emoji=False), Console(stderr=True, emoji=False)
for _console in (out, err):
    if not _console.is_terminal and "COLUMNS" not in os.environ:
        _console.width = WIDTH

SHOWN = 8  #: numbers of a list

F = TypeVar("F", bound=Callable[..., Any])


def guarded(function: F) -> F:
    """Print what a command refuses, line by line, and end with exit code 2, or 3 where a target is not there."""

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (Refused, RegisterOverflow) as error:
            for line in str(error).splitlines():
                err.print(f"[red]error:[/red] {escape(line)}", soft_wrap=True, highlight=False)
            raise typer.Exit(getattr(error, "exit_code", 2)) from None
        except OSError as error:
            if error.filename is None:  # as of a pipe that nobody reads any more
                raise
            problem = (error.strerror or str(error)).lower()
            line = f"{error.filename}: {problem}; check the path, its permissions and its disk"
            err.print(f"[red]error:[/red] {escape(line)}", soft_wrap=True, highlight=False)
            raise typer.Exit(2) from None

    return run  # type: ignore[return-value]


@contextmanager
def bars() -> Iterator[Progress]:
    """Show a bar with an estimate for every kind of work that is reported inside the block; all of it on stderr.

    So is what a model prints while it runs.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # Parts may take minutes: an estimate that looks back 30 s, as rich's does, would never see two of them.
    # Where nobody watches, rich would leave an empty line of a bar that goes away.
    watched = err.is_terminal
    with Progress(*columns, console=err, transient=True, speed_estimate_period=36000, disable=not watched) as bar:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            elif not done:
                bar.reset(tasks[what], total=total)
            bar.update(tasks[what], completed=done)

        with reporting(show), redirect_stdout(sys.stderr):
            yield bar


def say(text: str, style: str | None = None) -> None:
    """Print a sentence as it is, wrapped by the terminal alone."""
    out.print(escape(text), style=style, highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print one JSON document."""
    typer.echo(json_text(document), nl=False)


def json_text(document: Any) -> str:
    """Write one JSON document, with the end of its last line."""
    return json.dumps(document, indent=2) + "\n"


def table(title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    """Lay out the ``columns`` (key to heading) of rows; what was not measured is a dash."""
    result = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD)
    for key, heading in columns.items():
        numeric = all(isinstance(row.get(key, 0), int | float) for row in rows)
        result.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        result.add_row(*(escape(text(row[key])) if row.get(key) is not None else "-" for key in columns))
    return result


def numbers(values: np.ndarray) -> str:
    """Write one number, or the few that stand for as many channels."""
    shown = [f"{value:.6g}" for value in values.ravel()[:SHOWN]]
    more = ", ..." if values.size > SHOWN else ""
    return f"({', '.join(shown)}{more})" if values.ndim else shown[0]


def text(value: Any) -> str:
    """Write a cell: two decimals, shapes as 3x32x32."""
    if isinstance(value, float):
        return f"{value:.2f}"
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return str(value)
