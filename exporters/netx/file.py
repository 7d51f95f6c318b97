"""Networks in HDF5: written for lava-dl's own netx loader, and read back exactly. Needs neither lava nor lava-dl.

:func:`write` makes a netx ``.net``; :func:`write_graph` keeps what netx cannot build. :mod:`exporters.netx.content`
describes both forms.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from exporters.files import replace_file
from exporters.netx import hdf5
from exporters.netx.checks import check, check_recurrent, check_storable
from exporters.netx.clocked import check_clock, clock_content
from exporters.netx.content import (
    NETX,
    OURS,
    STOCK_FORMAT,
    Content,
    differences,
    graph_content,
    network_of,
    netx_content,
    stock_content,
)
from sim.arguments import checked
from sim.findings import Finding, Refused, refuse
from sim.network import Network

#: For stock netx, for it with the reset in the file, with a clock that brings the schedule, for this tool alone.
Form = Literal["netx", "stock", "clock", "graph"]

#: By form, what stands in its way, and its content.
FORMS: dict[Form, tuple[Callable[[Network], list[Finding]], Callable[[Network], Content]]] = {
    "netx": (check, netx_content),
    "stock": (check_recurrent, stock_content),
    "clock": (check_clock, clock_content),
    "graph": (check_storable, graph_content),
}


@checked
def write(network: Network, path: str | Path) -> None:
    """Write ``network`` as a netx ``.net``; ``path`` is replaced at once when all is written, or left as it was.

    Raises :class:`Refused` with all findings of :func:`check`, or if the file cannot be written.
    """
    replace_file(Path(path), _dump(network, "netx"))


@checked
def loaded_by(network: Network) -> str:
    """Say who can load ``network``'s file: ``NETX`` where stock netx can build it, else ``OURS``."""
    return OURS if check(network) else NETX


@checked
def save(network: Network, path: str | Path, *, form: Form | None = None) -> None:
    """Write any deployable network: for stock netx where it can build it, else in the form of :func:`write_graph`.

    Or in the ``form`` that is given: "stock" holds, beside what "netx" does, the recurrent synapses that reset a dense
    layer, so that lava-dl's loader builds all but the schedule; "clock" neurons that bring the schedule, too
    (:mod:`exporters.netx.clocked`). Raises as :func:`write` does.
    """
    replace_file(Path(path), dump(network) if form is None else _dump(network, form))


@checked
def dump(network: Network) -> bytes:
    """Return what :func:`save` writes; equal networks give equal bytes."""
    return _dump(network, "graph" if check(network) else "netx")


@checked
def write_graph(network: Network, path: str | Path) -> None:
    """Write any deployable network, in the form that only :func:`read` understands; otherwise as :func:`write`."""
    replace_file(Path(path), _dump(network, "graph"))


@checked
def read(path: str | Path) -> Network:
    """Read back what :func:`write` or :func:`write_graph` wrote: an equal network.

    The file is not trusted. Nothing is read from outside it or beyond its own size, and whatever the two functions
    would not have written is :class:`Refused`, one line per finding.
    """
    path = Path(path)
    if not path.is_file():
        raise refuse(str(path), "there is no such file", "give the path of a network file")
    return _read(path, str(path))


def undump(data: bytes, where: str) -> Network:
    """Read back what :func:`dump` returned, as :func:`read` does; findings call the place ``where``."""
    return _read(data, where)


def _read(source: Path | bytes, where: str) -> Network:
    try:
        return _load(source)
    except Refused as error:
        raise Refused(Finding(f"{where}: {f.where}", f.problem, f.remedy) for f in error.findings) from None
    except Exception as error:  # damage raises almost any built-in one
        reason = " ".join(str(error).split())
        raise refuse(
            where, f"it cannot be read as HDF5 ({type(error).__name__}: {reason})", "give an undamaged network file"
        ) from error


def _load(source: Path | bytes) -> Network:
    content = hdf5.load(source)
    network = network_of(content)
    version = int(content["@format_version"])
    form = _form(content)
    expected = netx_content(network, version) if form == "netx" else FORMS[form][1](network)
    if findings := differences(content, expected) + FORMS[form][0](network):
        raise Refused(findings)
    return network


def form_of(path: str | Path) -> Form:
    """Tell the form of a file that :func:`read` accepts."""
    return _form(hdf5.load(Path(path)))


def loader_of(path: str | Path) -> str:
    """Say who can load a file that :func:`read` accepts: ``NETX`` or ``OURS``."""
    return hdf5.load(Path(path))["@loader"].tobytes().decode()


def _form(content: Content) -> Form:
    if "@form" in content:
        said = content["@form"].tobytes()
        for name in FORMS:
            if name.encode() == said:
                return name
        raise refuse("@form", f"{said!a:.40} is unknown", "write the file again")
    if "graph/input/shape" in content:
        return "graph"
    return "stock" if content["@format_version"] == STOCK_FORMAT else "netx"


def _dump(network: Network, name: Form) -> bytes:
    if name not in FORMS:
        raise refuse("form", f"{name!r} is unknown", f"use {', '.join(FORMS)}")
    checks, form = FORMS[name]
    if findings := checks(network):
        raise Refused(findings)
    try:
        data = hdf5.dump(form(network))
    except OverflowError:
        raise refuse("network", "it holds a number beyond 64 bit", "check strides and paddings") from None
    if _load(data) != network:
        raise refuse("network", "it does not survive the file", "report it with the network")
    return data
