"""Networks in NIR, the neuromorphic intermediate representation (https://neuroir.org), and back.

:func:`save` writes a graph that other tools execute; :func:`read` restores the network from it, bit for bit.
:mod:`exporters.nir.graph` describes both forms.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np

from exporters.files import replace_file
from exporters.nir import hdf5
from exporters.nir.graph import OURS, Form, Node, answer, described, obstacles, steps
from exporters.nir.hdf5 import is_nir
from exporters.nir.restored import form_of, restored, sealed
from sim.arguments import checked
from sim.findings import Refused, refuse
from sim.network import Network

__all__ = [
    "Form",
    "answer",
    "dump",
    "form_of",
    "is_nir",
    "is_ours",
    "node_table",
    "read",
    "read_graph",
    "save",
    "steps",
]


@checked
def save(network: Network, path: str | Path, *, form: Form | None = None) -> None:
    """Write ``network`` as a NIR graph; ``path`` is replaced at once when all is written, or left as it was.

    In the form "exact", which gives the same spikes wherever it is executed, where that can hold the network, else in
    the form "portable", an ``IF`` for every layer; or in the one that is named. Raises :class:`Refused` for what the
    form cannot hold, where the package ``nir`` is missing, and where the file cannot be written.
    """
    replace_file(Path(path), dump(network, form=form))


@checked
def dump(network: Network, *, form: Form | None = None) -> bytes:
    """Return what :func:`save` writes."""
    if form is not None and form not in get_args(Form):
        raise refuse("form", f"{form!r} is unknown", f"use {', '.join(get_args(Form))}")
    form = form or ("portable" if obstacles(network, "exact") else "exact")
    if findings := obstacles(network, form):
        raise Refused(findings)
    data = hdf5.dump(sealed(described(network, form)))
    if restored(hdf5.load(data, "network")) != network:
        raise refuse("network", "it does not survive the file", "report it with the network")
    return data


@checked
def read(path: str | Path) -> Network:
    """Read back what :func:`save` wrote: an equal network. The package ``nir`` is not needed.

    The file is not trusted: its metadata say what the network is, and its nodes have to be exactly those that the
    network would have been written as. Everything else is :class:`Refused`, with one finding.
    """
    graph = read_graph(path)
    try:
        return restored(graph)
    except Refused as error:
        first = error.findings[0]
        raise refuse(f"{path}: {first.where}", first.problem, first.remedy) from None


@checked
def read_graph(path: str | Path) -> Node:
    """Read any NIR graph, whoever wrote it, as nested dictionaries; raises :class:`Refused` with one finding."""
    if not Path(path).is_file():
        raise refuse(str(path), "there is no such file", "give the path of a NIR file")
    return hdf5.load(Path(path), str(path))


def is_ours(graph: Node) -> bool:
    """Whether a graph says that this tool wrote it, in whatever version."""
    return OURS in graph.get("metadata", {})


def node_table(graph: Node) -> list[dict[str, Any]]:
    """Describe the nodes of any graph, in JSON types."""
    rows, sources = [], dict[str, list[str]]()
    for source, target in graph["edges"]:
        sources.setdefault(target, []).append(source)
    for name, node in graph["nodes"].items():
        arrays = {key: value for key, value in node.items() if isinstance(value, np.ndarray) and value.size}
        main = next(
            (arrays[key] for key in ("weight", "v_threshold", "threshold", "scale", "r") if key in arrays), None
        )
        rows.append(
            {
                "node": name,
                "type": node["type"],
                "shape": None if main is None else main.shape,
                "range": None if main is None else f"{main.min():g}..{main.max():g}",
                "after": ", ".join(sources.get(name, ())) or None,
            }
        )
    return rows
