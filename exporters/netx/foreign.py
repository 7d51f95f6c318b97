"""Any netx ``.net``, whoever wrote it: what stands below ``/layer``, block by block. The file is not trusted.

Only hard links are followed, sizes are checked before anything is allocated, and compressed pieces are unpacked no
further than they say. What cannot be read so is named, and the rest is read all the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from exporters.netx.content import SYNAPSES, Content
from exporters.storage import Budget, cannot
from sim.findings import Finding, Refused, refuse
from sim.network import Conv2d, Geometry, Network, Shape

UNPACKED_LIMIT = 1 << 28  #: bytes that compressed or unwritten values of a file may take
DEPTH_LIMIT = 8  #: of groups in groups; netx reads three


@dataclass(frozen=True, eq=False)
class Block:
    """One group below ``/layer``; its fields are named by their path in it, such as ``neuron/vThMant``."""

    index: int
    fields: Mapping[str, np.ndarray]  #: what could be read
    names: frozenset[str]  #: everything that is there, groups included

    @cached_property
    def type(self) -> str | None:
        """Netx's word for the block; None where it holds none that netx would find."""
        return self.text("type")

    @property
    def where(self) -> str:
        """What a finding calls it."""
        name = self.text("@name")
        return f"layer/{self.index} {name if name is not None else self.type or '?'}"

    def text(self, field: str) -> str | None:
        """Read a text, alone or in an array of one."""
        value = self.fields.get(field)
        if value is None or value.dtype.kind != "S" or value.size != 1:
            return None
        return ascii(value.item().decode(errors="replace"))[1:-1]

    def numbers(self, field: str) -> np.ndarray | None:
        """Read numbers of any type; None where they are missing, no numbers, or none at all."""
        value = self.fields.get(field)
        return None if value is None or value.dtype.kind not in "iufb" or not value.size else value

    def integers(self, field: str) -> np.ndarray | None:
        """Read numbers as netx does, int64: what follows the point is lost."""
        value = self.numbers(field)
        if value is None:
            return None
        return np.clip(np.nan_to_num(np.trunc(value.astype(np.float64))), -(2.0**62), 2.0**62).astype(np.int64)

    def pair(self, field: str) -> tuple[int, int] | None:
        """Read (vertical, horizontal), or one number for both."""
        value = self.integers(field)
        if value is None or value.shape not in ((), (2,)):
            return None
        first, second = np.broadcast_to(value, 2).tolist()
        return first, second

    @cached_property
    def shape(self) -> Shape | None:
        """Sizes as they stand, (C, H, W) or others; None where they are none."""
        value = self.integers("shape")
        if value is None or value.ndim != 1 or not 1 <= value.size <= 4 or value.min() < 1 or value.max() > 1 << 40:
            return None
        return tuple(value.tolist())

    @cached_property
    def neuron(self) -> str | None:
        """The type of its neurons; None where there are none, or of no type."""
        return self.text("neuron/type")


@dataclass(frozen=True, eq=False)
class Step:
    """A block in the chain that netx builds."""

    block: Block
    source: Shape | None  #: of what feeds it; None where that cannot be told
    built: bool  #: whether a process stands before it, to which netx connects it
    flattened: bool  #: whether a flatten stands between
    out: Shape | None  #: of its own neurons


@dataclass(frozen=True, eq=False)
class NetFile:
    """What could be read of a file."""

    blocks: tuple[Block, ...]  #: those with a number, in its order
    children: tuple[str, ...]  #: of ``/layer``, as they are called; none where there is no such group
    unreadable: tuple[Finding, ...]

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Follow the chain as netx builds it, with the shapes of which the blocks speak."""
        return tuple(_steps(self.blocks))


def read(path: str | Path) -> NetFile:
    """Read a file; raises :class:`Refused` for what is no HDF5 at all."""
    path = Path(path)
    if not os.path.isfile(path):
        raise refuse(str(path), "there is no such file", "give the path of a network file")
    try:
        with h5py.File(path, "r") as file:
            return _Reader(path.stat().st_size).file(file)
    except Exception as error:  # damage raises almost any built-in one
        reason = " ".join(str(error).split())
        raise refuse(
            str(path), f"it cannot be read as HDF5 ({type(error).__name__}: {reason})", "give an undamaged network file"
        ) from error


class _Reader:
    """Reads one file within its budget."""

    def __init__(self, size: int) -> None:
        self._budget = Budget(size, UNPACKED_LIMIT)
        self._unreadable: list[Finding] = []

    def file(self, file: h5py.File) -> NetFile:
        layer = self._item(file, "layer", "layer") if "layer" in file else None
        if not isinstance(layer, h5py.Group):
            return NetFile((), (), tuple(self._unreadable))
        children = tuple(layer)
        numbered = sorted((c for c in children if c.isascii() and c.isdigit() and str(int(c)) == c), key=int)
        blocks = [self._block(layer, name) for name in numbered]
        return NetFile(tuple(filter(None, blocks)), tuple(map(shown, children)), tuple(self._unreadable))

    def _block(self, layer: h5py.Group, name: str) -> Block | None:
        group = self._item(layer, name, f"layer/{name}")
        if group is None:
            return None
        fields: Content = {}
        names: set[str] = set()
        if isinstance(group, h5py.Group):
            self._collect(group, f"layer/{name}", "", fields, names, (h5py.h5o.get_info(group.id).addr,))
            if "name" in group.attrs and group.attrs.get_id("name").dtype.kind == "S":
                fields["@name"] = np.array(
                    bytes(group.attrs["name"]) if group.attrs.get_id("name").shape == () else b""
                )
        else:
            self._note(f"layer/{name}", "it is no group")
        return Block(int(name), fields, frozenset(names))

    def _collect(
        self, group: h5py.Group, at: str, prefix: str, fields: Content, names: set[str], above: tuple[int, ...]
    ) -> None:
        for name in group:
            path, field = f"{at}/{shown(name)}", prefix + name
            names.add(field)
            item = self._item(group, name, path)
            if isinstance(item, h5py.Group):
                address = h5py.h5o.get_info(item.id).addr
                if address in above or len(above) > DEPTH_LIMIT:
                    self._note(path, "it leads back to where it stands, or too deep")
                else:
                    self._collect(item, path, f"{field}/", fields, names, (*above, address))
            elif isinstance(item, h5py.Dataset):
                try:
                    fields[field] = self._values(item)
                except Refused as refused:
                    self._note(path, refused.findings[0].problem)
                except Exception as error:  # damage raises almost any built-in one
                    self._note(path, f"{type(error).__name__}: {' '.join(str(error).split())}")

    def _item(self, group: h5py.Group, name: str, path: str) -> Any:
        """Open what a hard link leads to; None, and noted, for all else."""
        try:
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                self._note(path, "it is a link to somewhere else")
                return None
            return group[name]
        except Exception as error:  # damage raises almost any built-in one
            self._note(path, f"{type(error).__name__}: {' '.join(str(error).split())}")
            return None

    def _note(self, where: str, problem: str) -> None:
        self._unreadable.append(Finding(where, problem, "write the file again"))

    def _values(self, dataset: h5py.Dataset) -> np.ndarray:
        if dataset.shape is None:
            raise cannot("it is empty")
        text = h5py.check_string_dtype(dataset.dtype)
        if text is not None and text.length is None:
            if dataset.size != 1:
                raise cannot(f"{dataset.size} texts of any length")
            value = dataset[()]
            return np.array(value if isinstance(value, bytes) else value[0])
        if dataset.dtype.kind not in "iufbS":
            raise cannot(f"{dataset.dtype} is neither numbers nor text")
        self._budget.spend(dataset)
        return np.asarray(dataset[()])


def shown(name: str) -> str:
    """Write a name from a file so that any terminal can show it."""
    return ascii(name)[1:-1]


def _steps(blocks: tuple[Block, ...]) -> Iterator[Step]:
    source: Shape | None = None
    built = flattened = False
    for block in blocks:
        out: Shape | None = block.shape
        if block.type == "input":
            yield Step(block, None, False, False, out)
            built = "neuron" in block.names
            source = out
        elif block.type == "flatten":
            flattened = True
        elif block.type in ("conv", "dense", "dense_rec"):
            if block.type == "conv":
                out = conv_shape(block, source) or out
            elif out is not None:
                out = (math.prod(out),)
            yield Step(block, source, built, flattened, out)
            source, built = out, True
            flattened = flattened and block.type == "conv"
        elif block.type is None:
            source, built = None, True  # whatever it is


def edge_steps(network: Network) -> Iterator[Step]:
    """Describe the edges of a network in the words of netx, each as a block of its own."""
    for index, layer in enumerate(network.layers):
        for edge in network.on_chip(layer):
            form = SYNAPSES[type(edge.synapse)]
            fields = {
                "@name": layer.name.encode(),
                "type": form.type,
                "shape": layer.shape,
                "weight": edge.synapse.weight,
                **form.numbers(edge.synapse),
            }
            block = Block(index, {name: np.asarray(value) for name, value in fields.items()}, frozenset(fields))
            source = network.shape_of(edge.source)
            yield Step(block, source, True, True, edge.synapse.output_shape(source))


def conv_shape(block: Block, source: Shape | None) -> Shape | None:
    """Return (C, H, W) of what a convolution gives; None where that cannot be told, or it does not fit."""
    weight, groups = kernel(block), block.integers("groups")
    stride, padding, dilation = block.pair("stride"), block.pair("padding"), block.pair("dilation")
    if weight is None or groups is None or groups.size != 1 or not (stride and padding and dilation) or source is None:
        return None
    try:
        return Conv2d(weight.astype(np.int32), Geometry(stride, padding, dilation, int(groups.item()))).output_shape(
            source
        )
    except (Refused, ValueError):
        return None


def kernel(block: Block) -> np.ndarray | None:
    """Weights of a convolution, int64 (C_out, C_in / groups, kH, kW); None where they are of another shape."""
    weight = block.integers("weight")
    if weight is None or weight.ndim not in (4, 5) or math.prod(weight.shape[4:]) != 1:
        return None
    return weight.reshape(weight.shape[:4])


def block_table(path: str | Path) -> list[dict[str, Any]]:
    """Describe the blocks of any netx file, in JSON types; raises :class:`Refused` for what is no HDF5."""
    rows = []
    for block in read(path).blocks:
        weight = block.numbers("weight")
        neuron = {name: block.numbers(f"neuron/{name}") for name in ("iDecay", "vDecay", "vThMant")}
        rows.append(
            {
                "block": block.index,
                "type": block.type,
                "shape": block.shape,
                "weight": None if weight is None else weight.shape,
                "range": None if weight is None else f"{weight.min():g}..{weight.max():g}",
                "neuron": block.neuron,
                "parameters": ", ".join(f"{k} {v.ravel()[0]:g}" for k, v in neuron.items() if v is not None) or None,
            }
        )
    return rows
