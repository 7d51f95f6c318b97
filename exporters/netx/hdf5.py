"""File content as HDF5 bytes, and back. A file that is read is not trusted."""

from __future__ import annotations

import io
import math
from pathlib import Path

import h5py
import numpy as np

from exporters.netx.content import FORMATS, TOOL, Content
from sim.findings import refuse


def dump(content: Content) -> bytes:
    """Lay out a file in memory, where HDF5 cannot run out of disk: it would end the process.

    Equal contents, in the same order, give equal bytes.
    """
    with h5py.File("network.net", "w", driver="core", backing_store=False) as file:
        for name, value in content.items():
            _store(file, name, value)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def load(source: Path | bytes) -> Content:
    """Read a file that :func:`dump` may have laid out: nothing from outside it, and no more than its own size.

    Raises :class:`Refused` for other tools' files, later versions and whatever ``dump`` does not write, and for damage
    almost any built-in exception.
    """
    within, size = (io.BytesIO(source), len(source)) if isinstance(source, bytes) else (source, source.stat().st_size)
    with h5py.File(within, "r") as file:
        _check_origin(file)
        return _load(file, size)


def is_ours(path: Path) -> bool:
    """Whether the file at ``path`` says that this tool wrote it, in whatever version; False for damaged ones."""
    try:
        with h5py.File(path, "r") as file:
            return _names_this_tool(file)
    except Exception:  # damage raises almost any built-in one
        return False


def _store(file: h5py.File, path: str, value: np.ndarray) -> None:
    group, _, attribute = path.rpartition("@")
    if not attribute or "@" not in path:
        file.create_dataset(path, data=value)
    elif value.dtype.kind == "S":
        file.require_group(group or "/").attrs.create(
            attribute, value, dtype=h5py.string_dtype("utf-8", value.dtype.itemsize)
        )
    else:
        file.require_group(group or "/").attrs.create(attribute, value)


def _check_origin(file: h5py.File) -> None:
    """Tell files of other tools and of later versions from damaged ones before anything else is looked at."""
    if not _names_this_tool(file):
        raise refuse("@tool", "the file was written by another tool", f"give a file written by {TOOL}")
    version = _attribute(file, "format_version", _Budget(64)) if "format_version" in file.attrs else np.array("")
    if version.dtype.kind != "i" or version.ndim:
        raise refuse("@format_version", "it is missing or no integer", "write the file again")
    if int(version) not in FORMATS:
        raise refuse(
            "@format_version",
            f"the file has format {version}, this {TOOL} reads formats {FORMATS[0]} to {FORMATS[-1]}",
            f"use a newer {TOOL}" if version > FORMATS[-1] else "write the file again",
        )


def _names_this_tool(file: h5py.File) -> bool:
    return (
        "tool" in file.attrs
        and file.attrs.get_id("tool").dtype == f"S{len(TOOL)}"
        and _attribute(file, "tool", _Budget(64)).tobytes() == TOOL.encode()
    )


class _Budget:
    """Bytes that may still be read: a file cannot honestly hold more than its own size."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, path: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if not (dtype.kind == "S" or (dtype.kind in "if" and dtype.itemsize == 8)):
            raise refuse(path, f"{dtype} is neither int64, float64 nor a fixed-length string", "write the file again")
        self._left -= math.prod(shape) * dtype.itemsize
        if self._left < 0:
            raise refuse(path, f"shape {shape} is more than the file can hold", "give an undamaged network file")


def _load(file: h5py.File, size: int) -> Content:
    """Read all of a file: hard links only, each object once, plain contiguous datasets, no more than ``size`` bytes."""
    content: Content = {}
    budget, seen, pending = _Budget(size), {h5py.h5o.get_info(file.id).addr}, [("", file)]
    while pending:
        at, group = pending.pop()
        content |= {f"{at}@{name}": _attribute(group, name, budget) for name in group.attrs}
        for name in group:
            if not (name.isascii() and name.isprintable() and len(name) < 256):
                raise refuse(f"{at}{name!a:.80}", "it is not part of the format", "remove it")
            path = at + name
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                raise refuse(path, "it is a link to somewhere else", "write the file again")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise refuse(path, "it is reached twice", "write the file again")
            seen.add(address)
            if isinstance(item, h5py.Group) and len(item):
                pending.append((f"{path}/", item))
            elif isinstance(item, h5py.Dataset):
                content[path] = _dataset(item, path, budget)
            else:
                raise refuse(path, "it is neither a dataset nor a group of them", "remove it")
    return content


def _attribute(holder: h5py.Group, name: str, budget: _Budget) -> np.ndarray:
    attribute = holder.attrs.get_id(name)
    path = f"{(holder.name or '/').lstrip('/')}@{ascii(name)[1:-1]}"
    budget.spend(path, attribute.shape, attribute.dtype)
    value = np.zeros(attribute.shape, attribute.dtype)
    attribute.read(value)
    return value


def _dataset(dataset: h5py.Dataset, path: str, budget: _Budget) -> np.ndarray:
    if dataset.shape is None or dataset.attrs:
        raise refuse(path, "it is empty or has attributes", "write the file again")
    budget.spend(path, dataset.shape, dataset.dtype)
    if not plain(dataset):
        raise refuse(path, "it is not stored in one plain piece", "write the file again")
    return np.asarray(dataset[()])


def plain(dataset: h5py.Dataset) -> bool:
    """Whether the bytes stand in the file as they are: no filter to unpack, no other file, no fill value."""
    layout = dataset.id.get_create_plist()
    return (
        layout.get_layout() == h5py.h5d.CONTIGUOUS
        and not layout.get_external_count()
        and dataset.id.get_storage_size() == math.prod(dataset.shape) * dataset.dtype.itemsize
    )
