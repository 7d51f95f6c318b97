"""The commands about reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from toolchain.app.console import guarded, print_json, say
from toolchain.app.options import Bundle, Json
from toolchain.app.show import show_differences


class _PageUnlessNamed(TyperGroup):
    """`report DIR` is short for `report page DIR`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, "--help"):
            args = ["page", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_PageUnlessNamed,
    no_args_is_help=True,
    help="Show what was measured: `report DIR` as a page, `report diff A B` two conversions beside each other.",
)


@app.command()
@guarded
def page(
    bundle: Bundle,
    show: Annotated[bool, typer.Option("--open", help="Show it in the browser.")] = False,
    as_json: Json = False,
) -> None:
    """Write `report.html` again from what is in a directory, and print its path: one file that needs no network.

    Example: `ann2loihi report build/out --open`
    """
    from exporters.bundle import write_page

    path = write_page(bundle)
    if as_json:
        print_json({"page": str(path)})
    else:
        say(str(path))
    if show:
        import webbrowser

        if not webbrowser.open(path.resolve().as_uri()):
            say("no browser was found; open the file in one", "yellow")


@app.command()
@guarded
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="What `convert` has written: the directory, or report.json.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: Json = False,
) -> None:
    """Put two conversions beside each other: accuracy, steps, neurons, cores, each layer's error, recipe, provenance.

    Example: `ann2loihi report diff build/t4 build/t8`
    """
    from exporters.comparison import differences

    found = differences(a, b)
    if as_json:
        print_json(found.as_dict())
    else:
        show_differences(found)
