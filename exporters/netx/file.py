"""Networks in HDF5: written for lava-dl's own netx loader, and read back exactly. Needs neither lava nor lava-dl.

:func:`write` makes a netx ``.net``; :func:`write_graph` keeps what netx cannot build. :mod:`exporters.netx.content`
describes both forms.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from exporters.netx import hdf5
from exporters.netx.checks import check, check_storable
from exporters.netx.content import NETX, OURS, Content, differences, graph_content, network_of, netx_content
from sim.findings import Finding, Refused, refuse
from sim.network import Network


def write(network: Network, path: str | Path) -> None:
    """Write ``network`` as a netx ``.net``; ``path`` is replaced at once when all is written, or left as it was.

    Raises :class:`Refused` with all findings of :func:`check`, or if the file cannot be written.
    """
    _write(network, Path(path), check, netx_content)


def loaded_by(network: Network) -> str:
    """Say who can load ``network``'s file: ``NETX`` where stock netx can build it, else ``OURS``."""
    return OURS if check(network) else NETX


def save(network: Network, path: str | Path) -> None:
    """Write any deployable network: for stock netx where it can build it, else in the form of :func:`write_graph`."""
    (write if loaded_by(network) == NETX else write_graph)(network, path)


def write_graph(network: Network, path: str | Path) -> None:
    """Write any deployable network, in the form that only :func:`read` understands; otherwise as :func:`write`."""
    _write(network, Path(path), check_storable, graph_content)


def read(path: str | Path) -> Network:
    """Read back what :func:`write` or :func:`write_graph` wrote: an equal network.

    The file is not trusted. Nothing is read from outside it or beyond its own size, and whatever the two functions
    would not have written is :class:`Refused`, one line per finding.
    """
    path = Path(path)
    if not path.is_file():
        raise refuse(str(path), "there is no such file", "give the path of a network file")
    try:
        content = hdf5.load(path)
        network = network_of(content)
        graph = "graph/input/shape" in content
        findings = differences(content, graph_content(network) if graph else netx_content(network))
        findings += check_storable(network) if graph else check(network)
        if findings:
            raise Refused(findings)
    except Refused as error:
        raise Refused(Finding(f"{path}: {f.where}", f.problem, f.remedy) for f in error.findings) from None
    except Exception as error:  # damage raises almost any built-in one
        reason = " ".join(str(error).split())
        raise refuse(
            str(path), f"it cannot be read as HDF5 ({type(error).__name__}: {reason})", "give an undamaged network file"
        ) from error
    return network


def _write(
    network: Network, path: Path, checks: Callable[[Network], list[Finding]], form: Callable[[Network], Content]
) -> None:
    if findings := checks(network):
        raise Refused(findings)
    try:
        content = form(network)
    except OverflowError:
        raise refuse(str(path), "the network holds a number beyond 64 bit", "check strides and paddings") from None
    try:
        with _replacing(path) as beside:
            hdf5.save(content, beside)
            if read(beside) != network:
                raise refuse(str(path), "the network does not survive the file", "report it with the network")
    except OSError as error:
        reason = " ".join(str(error).split())
        raise refuse(str(path), f"it cannot be written ({reason})", "choose another place") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a new file beside ``path`` that takes its place when the block ends well, and vanishes when it does not."""
    if path.is_dir() or not path.parent.is_dir():
        raise refuse(str(path), "it is a directory or lies in none", "give a file name in an existing directory")
    beside = path.with_name(f".{uuid4().hex}.partial")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
