"""The commands about cores, counts and costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.findings import refuse
from toolchain.app.console import bars, guarded, print_json
from toolchain.app.options import AnyNetwork, Data, Device, Json, Samples
from toolchain.app.show import show_compared, show_cost, show_fit

Chip = Annotated[str, typer.Option("--chip", metavar="NAME", help="Whose cores: loihi2.")]


@guarded
def fit(
    path: Annotated[Path, typer.Argument(metavar="DIR|FILE.net", help="A converted directory or a single file.")],
    chip: Chip = "loihi2",
    schedule: Annotated[
        str, typer.Option(metavar="written|clock", help="Who brings the biases: the host, or neurons on the chip.")
    ] = "written",
    as_json: Json = False,
) -> None:
    """Say which cores a network takes, what fills them and what to change; exit code 1 if a layer cannot be placed.

    Example: `ann2loihi fit build/out`
    """
    from exporters import bundle as bundles
    from exporters.placement import fit as run

    found = run(bundles.read_network(path), chip, schedule=schedule)
    if as_json:
        print_json(found.as_dict())
    else:
        show_fit(found, str(path))
    if found.cores is None:
        raise typer.Exit(1)


@guarded
def cost(
    bundle: AnyNetwork,
    data: Data,
    chip: Chip = "loihi2",
    samples: Samples = None,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """Count spikes, synaptic events, messages and hops on data, and say what published figures make of them.

    Example: `ann2loihi cost build/out --data test.npz --samples 64`
    """
    from exporters import bundle as bundles
    from exporters.placement import cost as run
    from toolchain.data import load_for

    network = bundles.read_network(bundle)
    x, _ = load_for(network, data, samples)
    with bars():
        found = run(network, network.input.encode(x), chip, device=device)
    if as_json:
        print_json(found.as_dict())
    else:
        show_cost(found, str(bundle))


@guarded
def compare(
    directories: Annotated[list[Path], typer.Argument(metavar="DIR ...", help="What `convert` has written.")],
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw what is right against synaptic events and steps.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Put conversions beside each other: what they get right, steps, spikes, synaptic events, cores.

    Example: `ann2loihi compare build/t4 build/t8 --plot build/compared.png`
    """
    from exporters import bundle as bundles
    from exporters.comparison import compare as run

    found = run(directories)
    if plot is not None:
        bundles.apart(plot)
        if all(row.agreement is None for row in found):
            raise refuse("--plot", "nothing was measured", "convert again, or leave --plot out")
        from io import BytesIO

        from exporters.files import replace_file
        from exporters.report.figures import DPI, compared_figure

        picture = BytesIO()
        compared_figure(found).savefig(picture, dpi=DPI, format="png")
        replace_file(plot, picture.getvalue())
    if as_json:
        print_json([row.as_dict() for row in found])
        return
    show_compared(found)
