"""Arrays in ``.npz`` and ``.npy`` files that are larger than memory: mapped where they lie in the open, else streamed.

Nothing is unpickled, and no header is believed beyond what its file holds.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import IO, Any

import numpy as np

from sim.findings import Refused, refuse
from sim.network import Shape
from toolchain.data.source import Read, Source
from toolchain.inputs import REAL, UNLABELLED, as_inputs, as_labels, existing, fits_labels, sample_shape

NPZ, NPY = "save it with numpy.savez(path, x=..., y=...)", "save it with numpy.save(path, x)"
SKIPPED = 1 << 22  #: bytes that are read at a time where samples are left out
LOCAL_HEADER = struct.Struct("<26xHH")  #: of a member of a zip archive: how long its name and its extra field are


@dataclass(frozen=True)
class Member:
    """An array in a file."""

    path: Path
    key: str  #: its name in an archive, "" for a file that is one array
    dtype: np.dtype[Any]
    shape: Shape
    fortran: bool
    offset: int | None  #: of its values in the file; None where they are compressed
    checksum: str  #: that the archive has of it

    def read(self, samples: Sequence[int], name: str) -> np.ndarray:
        """Read the entries of these rising numbers; messages call the file by its ``name``."""
        with _whole(name):
            if self.offset is None:
                return _stream(self, self.path.stat().st_mtime_ns).read(samples)
            order: Any = "F" if self.fortran else "C"
            mapped = np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
            return np.array(mapped[samples.start : samples.stop] if isinstance(samples, range) else mapped[samples])


class Npy(Source):
    """Inputs, and labels, in members of a file."""

    def __init__(self, path: Path, x: Member, y: Member | None, shape: Shape | None) -> None:
        """Take what :func:`open_npz` or :func:`open_npy` has found; see them."""
        self.name, self._x, self._y = str(path), x, y
        where = f"{path}: x"
        if x.dtype.kind not in "fiub":
            raise refuse(where, f"type {x.dtype}", REAL)
        self.shape = sample_shape(x.shape, shape, where)
        self._wanted, self.labelled = shape, y is not None
        if y is not None:
            fits_labels(y, len(self), f"{path}: y")

    def __len__(self) -> int:
        return self._x.shape[0]

    def read(self, samples: Sequence[int]) -> Read:
        """Read them from the file."""
        x = as_inputs(self._x.read(samples, self.name), self._wanted, f"{self.name}: x", samples[0])
        return x, self.labels(samples)

    def labels(self, samples: Sequence[int]) -> np.ndarray | None:
        """Read them alone."""
        return None if self._y is None else as_labels(self._y.read(samples, self.name))

    def described(self) -> str:
        """Name checksums, as far as the file has any."""
        return " ".join(member.checksum for member in (self._x, self._y) if member is not None)


def unpacked(path: Path) -> int:
    """Count the bytes that the arrays of an archive take, by its own word; 0 for a file that is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except Exception:  # whatever is wrong with it is said where it is read
        return 0


def open_npz(path: Path, shape: Shape | None = None, labels: bool = True) -> Npy:
    """Open an archive with inputs ``x`` (N, *shape) and labels ``y`` (N, ...), which are read when they are asked for.

    Arrays that :func:`numpy.savez` has written are mapped; compressed ones are read from the beginning to where the
    samples are. Raises :class:`Refused` as :func:`toolchain.inputs.load_arrays` does, and for a compressed array in
    Fortran's order, no part of which can be read alone.
    """
    with _whole(path), zipfile.ZipFile(existing(path)) as archive:
        found = {key: _member(path, archive, key) for key in ("x", "y") if f"{key}.npy" in archive.namelist()}
    if "x" not in found:
        raise refuse(str(path), "has no array 'x'", NPZ)
    if labels and "y" not in found:
        raise refuse(str(path), "has no array 'y'", UNLABELLED)
    return Npy(path, found["x"], found.get("y"), shape)


def open_npy(path: Path, shape: Shape | None = None, labels: bool = True) -> Npy:
    """Open a file of one array, the inputs (N, *shape), which is mapped; :class:`Refused` where ``labels`` are needed.

    Else as :func:`open_npz`.
    """
    with _whole(path, NPY), existing(path).open("rb") as file:
        header = _header(file)
        offset, size = file.tell(), path.stat().st_size
        if size < offset + _bytes(header):
            raise refuse(f"{path}: x", "declares more data than the file holds", NPY)
    if labels:
        raise refuse(str(path), "holds inputs alone", f"give labels too: {NPZ}")
    return Npy(path, Member(path.absolute(), "", *header, offset, str(size)), None, shape)


Header = tuple[np.dtype[Any], Shape, bool]


def _member(path: Path, archive: zipfile.ZipFile, key: str) -> Member:
    entry = archive.getinfo(f"{key}.npy")
    with archive.open(entry) as stream:
        header = _header(stream)
        before = stream.tell()
    dtype, shape, fortran = header
    short = entry.file_size < before + _bytes(header)
    offset = None
    if entry.compress_type == zipfile.ZIP_STORED and not short:
        with path.open("rb") as file:
            file.seek(entry.header_offset)
            offset = entry.header_offset + LOCAL_HEADER.size + sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size)))
        offset += before
        short = path.stat().st_size < offset + _bytes(header)
    if short:
        raise refuse(f"{path}: {key}", "declares more data than the file holds", NPZ)
    if offset is None and fortran and len(shape) > 1:
        problem = "is compressed and in Fortran's order: no part of it can be read alone"
        raise refuse(f"{path}: {key}", problem, "save numpy.ascontiguousarray of it")
    return Member(path.absolute(), f"{key}.npy", dtype, shape, fortran, offset, f"{entry.CRC:08x}")


def _header(stream: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
    shape, fortran, dtype = read(stream)
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError("objects would have to be unpickled, and nothing has a negative size")
    return dtype, tuple(shape), fortran


def _bytes(header: Header) -> int:
    dtype, shape, _ = header
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    return size


@contextmanager
def _whole(name: str | Path, remedy: str = NPZ) -> Iterator[None]:
    """Refuse a file that is damaged; a damaged archive, or the text of a header, raises almost any error."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        raise refuse(str(name), f"is not a readable {Path(name).suffix or '.npz'} file", remedy) from error


class _Stream:
    """A compressed member, read on from where it was left; who goes back starts again."""

    def __init__(self, member: Member) -> None:
        self._member, self._lock = member, Lock()
        self._stream: IO[bytes] | None = None
        self._next = 0  #: number of the entry that comes next
        self._size = _bytes((member.dtype, member.shape[1:], False))

    def read(self, samples: Sequence[int]) -> np.ndarray:
        with self._lock:
            stream = self._stream
            if stream is None or samples[0] < self._next:
                self.close()
                with zipfile.ZipFile(self._member.path) as archive:  # its file stays open as long as the member
                    stream = self._stream = archive.open(self._member.key)
                _header(stream)
            found = []
            try:
                for sample in samples:
                    left = (sample - self._next) * self._size
                    while left:
                        left -= len(_exactly(stream, min(left, SKIPPED)))
                    found.append(_exactly(stream, self._size))
                    self._next = sample + 1
            except BaseException:  # nobody reads on from where this leaves it
                self.close()
                raise
        entries = np.frombuffer(b"".join(found), self._member.dtype)
        return entries.reshape(len(samples), *self._member.shape[1:])

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._next = None, 0

    def __del__(self) -> None:  # when the cache has no room for it any more
        self.close()


def _exactly(stream: IO[bytes], size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ValueError("less data than declared")
    return data


@lru_cache(maxsize=4)
def _stream(member: Member, changed: int) -> _Stream:
    """Keep a stream for who reads on; a file that has ``changed`` gets a new one."""
    return _Stream(member)
