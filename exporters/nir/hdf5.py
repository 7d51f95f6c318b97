"""NIR graphs as HDF5: written by the package ``nir`` (the extra ``ann2loihi[nir]``), read with h5py alone.

``nir.read`` allocates whatever a file asks for. A file that is read here is not trusted: only hard links are followed,
each object is read once, and sizes are checked before anything is allocated.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from exporters.nir.graph import Node
from exporters.storage import Budget, cannot
from sim.findings import Finding, Refused, refuse

UNPACKED_LIMIT = 1 << 30  #: bytes that compressed values of a file may take
DEPTH_LIMIT = 32  #: of groups in groups
TEXT_LIMIT = 4096  #: characters of a text
TEXTS_LIMIT = 1 << 16  #: texts of a dataset, two for every edge
MAGIC = b"\x89HDF\r\n\x1a\n"


def dump(graph: Node) -> bytes:
    """Lay out a file in memory, after NIR's own check that all nodes fit each other.

    Raises :class:`Refused` where the package is missing, and for a graph that NIR does not accept.
    """
    try:
        import nir
    except ImportError as error:
        raise refuse("nir", "writing NIR takes the package nir", "pip install 'ann2loihi[nir]'") from error
    try:
        checked = nir.dict2NIRNode({**graph, "type_check": True})
    except ValueError as error:
        raise refuse("network", f"NIR does not accept it ({error})", "report it with the network") from error
    file = io.BytesIO()
    nir.write(file, checked)
    return file.getvalue()


def load(source: Path | bytes, where: str) -> Node:
    """Read the graph of a file, as nested dictionaries like ``nir.NIRNode.to_dict``; edges are pairs of names.

    Raises :class:`Refused` with one finding for everything that is no NIR graph, and for damage.
    """
    within, size = (io.BytesIO(source), len(source)) if isinstance(source, bytes) else (source, source.stat().st_size)
    try:
        with h5py.File(within, "r") as file:
            if "node" not in file or "version" not in file:
                raise refuse("node", "it is missing: another tool has written the file", "give a NIR graph")
            return _graph(_Reader(size).read(file, "node"), "node")
    except Refused as error:
        raise Refused(Finding(f"{where}: {f.where}", f.problem, f.remedy) for f in error.findings) from None
    except Exception as error:  # damage raises almost any built-in one
        reason = " ".join(str(error).split())[:200]
        raise refuse(
            where, f"it cannot be read as NIR ({type(error).__name__}: {reason})", "give an undamaged file"
        ) from error


def is_nir(path: Path) -> bool:
    """Whether a file, as far as it can be read, is a NIR graph."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return False
        with h5py.File(path, "r") as file:
            return "node" in file and "version" in file
    except Exception:  # damage raises almost any built-in one
        return False


class _Reader:
    """Reads one file within its budget."""

    def __init__(self, size: int) -> None:
        self._budget, self._texts, self._seen = Budget(size, UNPACKED_LIMIT), size, set[int]()

    def read(self, group: h5py.Group, name: str, path: str = "", depth: int = 0) -> Any:
        path = f"{path}/{ascii(name)[1:-1]:.80}" if path else name
        if type(group.get(name, getlink=True)) is not h5py.HardLink:
            raise refuse(path, "it is a link to somewhere else", "write the file again")
        item = group[name]
        address = h5py.h5o.get_info(item.id).addr
        if address in self._seen or depth > DEPTH_LIMIT:
            raise refuse(path, "it is reached twice, or lies too deep", "write the file again")
        self._seen.add(address)
        if isinstance(item, h5py.Group):
            return {key: self.read(item, key, path, depth + 1) for key in item}
        try:
            return self._values(item)
        except Refused as error:
            raise refuse(path, error.findings[0].problem, error.findings[0].remedy) from None

    def _values(self, dataset: Any) -> Any:
        """Numbers as an array, or one alone; texts as nested lists, or one alone."""
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None:
            raise cannot("it is neither a group nor values")
        text = h5py.check_string_dtype(dataset.dtype)
        if text is None and dataset.dtype.kind not in "iufb":
            raise cannot(f"{dataset.dtype} is neither numbers nor text")
        self._budget.spend(dataset)
        if text is None:
            values = np.asarray(dataset[()])
            return values if values.ndim else values.item()
        if dataset.ndim > 2 or dataset.size > TEXTS_LIMIT:
            raise cannot(f"texts of shape {dataset.shape}, above {TEXTS_LIMIT}")
        # One after the other: a file may keep one long text and refer to it as often as it likes.
        found = np.empty(dataset.shape, object)
        for index in np.ndindex(dataset.shape):
            found[index] = self._text(dataset[index])
        return found.tolist() if found.ndim else found.item()

    def _text(self, value: Any) -> str:
        if isinstance(value, bytes):
            value = value.decode()
        self._texts -= len(value)
        if len(value) > TEXT_LIMIT or self._texts < 0:
            raise cannot("a text is longer than any name")
        return str(value)


def _graph(node: Any, path: str) -> Node:
    """Check that a group is a graph, and every graph within: nodes of some type, and edges between them."""
    nodes, edges = (node.get(name) if isinstance(node, dict) and _typed(node) else None for name in ("nodes", "edges"))
    if not isinstance(nodes, dict) or not all(isinstance(one, dict) and _typed(one) for one in nodes.values()):
        raise refuse(path, "it holds no nodes", "give a NIR graph")
    pairs = [] if isinstance(edges, np.ndarray) and not edges.size else edges
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise refuse(path, "it holds no edges", "give a NIR graph")
    for name in sorted({end for pair in pairs for end in pair} - nodes.keys()):
        raise refuse(f"{path}/edges", f"{name!a:.80} is no node", "write the file again")
    if len({tuple(pair) for pair in pairs}) < len(pairs):
        raise refuse(f"{path}/edges", "one stands there twice", "write the file again")
    for name, inner in nodes.items():
        if inner["type"] == "NIRGraph":
            nodes[name] = _graph(inner, f"{path}/nodes/{name}")
    return {**node, "edges": [tuple(pair) for pair in pairs]}


def _typed(node: Node) -> bool:
    return isinstance(node.get("type"), str) and isinstance(node.get("metadata", {}), dict)
