"""``ann2loihi export``: a network in a file of another form."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from toolchain.app.console import guarded, print_json, say
from toolchain.app.options import Json


class _NetByDefault(TyperGroup):
    """Commands of which ``net`` need not be named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the name in front of arguments that begin with none."""
        named = args[:1] and args[0] in (*self.commands, "--help")
        return super().parse_args(ctx, args if named else ["net", *args])


app = typer.Typer(cls=_NetByDefault)

Network = Annotated[
    Path, typer.Argument(metavar="DIR|FILE.net|FILE.nir", help="A converted directory or a single file.")
]


@app.callback()
def _export() -> None:
    """Write a network in a form of its own choice: a `.net`, or a graph in NIR.

    `ann2loihi export DIR -o FILE.net` is short for `ann2loihi export net DIR -o FILE.net`.
    """


@app.command()
@guarded
def net(
    path: Network,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE.net", help="File to write.")],
    form: Annotated[
        str | None,
        typer.Option(
            metavar="netx|stock|clock|graph",
            help="For stock netx; with the resets in the file (dense networks); with neurons that bring the schedule, "
            "too; for us.  [netx, else graph]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a `.net` in a form of its own choice; every layer that the form cannot hold is named.

    Example: `ann2loihi export build/out --form stock -o network.net`
    """
    from exporters import bundle as bundles
    from exporters import netx

    network = bundles.read_network(path)
    kind: Any = form  # which there are is the exporter's to say
    bundles.apart(output)
    netx.save(network, output, form=kind)
    written, loader = netx.form_of(output), netx.loader_of(output)
    if as_json:
        print_json({"file": str(output), "form": written, "loader": loader})
    else:
        say(f"written to {output}, in the form {written}; loads with {loader}")


@app.command()
@guarded
def nir(
    path: Network,
    output: Annotated[Path, typer.Argument(metavar="FILE.nir", help="File to write.")],
    form: Annotated[
        str | None,
        typer.Option(
            metavar="exact|portable",
            help="The same spikes wherever it is executed; or an IF for every layer, as most tools read it.  "
            "[exact, else portable]",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a graph in NIR, which other tools execute, and which is read back as the same network.

    Example: `ann2loihi export nir build/out network.nir`
    """
    from exporters import bundle as bundles
    from exporters import nir as exporter

    network = bundles.read_network(path)
    kind: Any = form  # which there are is the exporter's to say
    bundles.apart(output)
    exporter.save(network, output, form=kind)
    written = exporter.form_of(exporter.read_graph(output))
    exact = written == "exact"
    steps = exporter.steps(network) if exact else network.timesteps
    if as_json:
        answer = exporter.answer(network) + 1 if exact else None
        print_json({"file": str(output), "form": written, "steps": steps, "answer": answer})
        return
    say(f"written to {output}, in the form {written}")
    if exact:
        say(
            f"run {steps} steps, the payload in the first {network.timesteps} and 0 after them: the "
            f"output after step {exporter.answer(network) + 1} holds the logits"
        )
    else:
        say(
            f"run {steps} steps and sum the output up: tools that reset to zero lose what is above the "
            "threshold; read here, it is the same network"
        )
