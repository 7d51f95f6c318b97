"""Networks in HDF5: written for lava-dl's own netx loader, and read back exactly. Needs neither lava nor lava-dl.

:func:`write` makes a netx ``.net``; :func:`write_graph` keeps what netx cannot build. :mod:`exporters.netx.content`
describes both forms.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from exporters.files import replace_file
from exporters.netx import hdf5
from exporters.netx.checks import check, check_storable
from exporters.netx.content import NETX, OURS, Content, differences, graph_content, network_of, netx_content
from sim.arguments import checked
from sim.findings import Finding, Refused, refuse
from sim.network import Network

#: By who can load it, what stands in the way of a form, and its content.
FORMS: dict[str, tuple[Callable[[Network], list[Finding]], Callable[[Network], Content]]] = {
    NETX: (check, netx_content),
    OURS: (check_storable, graph_content),
}


@checked
def write(network: Network, path: str | Path) -> None:
    """Write ``network`` as a netx ``.net``; ``path`` is replaced at once when all is written, or left as it was.

    Raises :class:`Refused` with all findings of :func:`check`, or if the file cannot be written.
    """
    replace_file(Path(path), _dump(network, NETX))


@checked
def loaded_by(network: Network) -> str:
    """Say who can load ``network``'s file: ``NETX`` where stock netx can build it, else ``OURS``."""
    return OURS if check(network) else NETX


@checked
def save(network: Network, path: str | Path) -> None:
    """Write any deployable network: for stock netx where it can build it, else in the form of :func:`write_graph`."""
    replace_file(Path(path), dump(network))


@checked
def dump(network: Network) -> bytes:
    """Return what :func:`save` writes; equal networks give equal bytes."""
    return _dump(network, loaded_by(network))


@checked
def write_graph(network: Network, path: str | Path) -> None:
    """Write any deployable network, in the form that only :func:`read` understands; otherwise as :func:`write`."""
    replace_file(Path(path), _dump(network, OURS))


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
    loader = OURS if "graph/input/shape" in content else NETX
    expected = graph_content(network) if loader == OURS else netx_content(network, int(content["@format_version"]))
    if findings := differences(content, expected) + FORMS[loader][0](network):
        raise Refused(findings)
    return network


def _dump(network: Network, loader: str) -> bytes:
    checks, form = FORMS[loader]
    if findings := checks(network):
        raise Refused(findings)
    try:
        data = hdf5.dump(form(network))
    except OverflowError:
        raise refuse("network", "it holds a number beyond 64 bit", "check strides and paddings") from None
    if _load(data) != network:
        raise refuse("network", "it does not survive the file", "report it with the network")
    return data
