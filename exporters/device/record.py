"""The record of a run on a target: one HDF5 file that is whole at every moment, whatever happens to who writes it.

The file is laid out for all samples before the first one runs, in plain contiguous datasets, and HDF5 is done with it.
What comes later is written over what lies there: a sample's data, then, when that is on the disk, the number in
``done`` that says so. A killed process leaves all samples but the one in flight. Format 1:

====================  =========================  =======================================================================
``format``            int64 (1,)                 1
``job``               uint8 (bytes,)             JSON: target, request, schedule, layers read, task, data, digests
``network``           uint8 (bytes,)             the network's file (:mod:`exporters.netx`)
``input``             int32 (N, *input.shape)    payloads
``label``             int64 or float64 (N, ...)  what the outputs should be, optional
``done``              int64 (1,)                 samples that are there; nothing beyond is read
``spikes/L``          uint8 (N, busy, *shape)    of layer number L, if read: over its busy steps
``potentials/L``      int32 (N, busy, *shape)    su after the reset
``sample/crc32``      int64 (N,)                 of the sample's spikes and potentials, in the order of the layers
``sample/visit``      int64 (N,)                 in which visit to the target it ran
``sample/seconds``    float64 (N,)               between its answer and the one before, or the end of loading
``visit/count``       int64 (1,)                 visits so far
``visit/text``        uint8 (VISITS, TEXT)       JSON, padded with zeros: where it ran by the runtime's word, versions
``visit/probed``      float64 (VISITS, 2)        total and static power, W; NaN where not probed
====================  =========================  =======================================================================
"""

from __future__ import annotations

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from exporters import files, netx
from exporters.device.target import Answer
from exporters.netx.hdf5 import plain
from sim.findings import Refused, refuse
from sim.network import Network
from sim.trace import Trace

FORMAT = 1
VISITS, TEXT = 32, 8192  #: visits that a record has room for, and bytes for what is known of each
JOB_LIMIT = 1 << 20  #: bytes of the job's JSON
SAMPLE_LIMIT = 1 << 31  #: bytes of one sample
PROBES = ("total_power", "static_power")  #: W
UNDAMAGED = "give an undamaged record"
#: What the job's JSON must hold, by the type.
JOB: dict[str, type] = {"target": str, "request": dict, "schedule": str, "read": list, "sha256": dict, "samples": int}

Layout = dict[str, tuple[tuple[int, ...], str]]  #: by dataset: shape and type


@dataclass(frozen=True, eq=False)
class Contents:
    """What is known before the first sample runs."""

    network: Network
    payload: np.ndarray  #: int32 (N, *input.shape)
    labels: np.ndarray | None  #: int64 or float64 (N, ...)
    job: Mapping[str, Any]  #: of JSON types, as ``JOB`` says, and ``task`` and ``data``, which may be None


def digests(image: bytes, payload: np.ndarray) -> dict[str, str]:
    """SHA-256, hexadecimal, of the network's file and of the payloads as they stand in a record."""
    return {
        "network": sha256(image).hexdigest(),
        "input": sha256(np.ascontiguousarray(payload, "<i4").tobytes()).hexdigest(),
    }


def _layers(network: Network, read: list[str] | tuple[str, ...]) -> Iterator[tuple[int, str, tuple[int, ...]]]:
    """Give number, name and (busy steps, *shape) of every layer that is read."""
    for index, layer in enumerate(network.layers):
        if layer.name in read:
            yield index, layer.name, (len(network.busy(layer)), *layer.shape)


def _layout(network: Network, read: list[str] | tuple[str, ...], samples: int) -> Layout:
    """Return what is written while samples run."""
    layout: Layout = {
        "done": ((1,), "<i8"),
        "sample/crc32": ((samples,), "<i8"),
        "sample/visit": ((samples,), "<i8"),
        "sample/seconds": ((samples,), "<f8"),
        "visit/count": ((1,), "<i8"),
        "visit/text": ((VISITS, TEXT), "u1"),
        "visit/probed": ((VISITS, len(PROBES)), "<f8"),
    }
    for index, _, shape in _layers(network, read):
        layout[f"spikes/{index}"] = ((samples, *shape), "u1")
        layout[f"potentials/{index}"] = ((samples, *shape), "<i4")
    size = sum(_size((1, *shape[1:]), kind) for name, (shape, kind) in layout.items() if name[:1] in "sp")
    if size > SAMPLE_LIMIT:
        problem = f"one sample takes {size} bytes, more than {SAMPLE_LIMIT}"
        raise refuse("record", problem, "read the readout alone")
    return layout


def _size(shape: tuple[int, ...], kind: str) -> int:
    return math.prod(shape) * np.dtype(kind).itemsize


def _crc(answer: Mapping[str, np.ndarray], layout: Layout) -> int:
    """Sum up a sample's arrays, by dataset, in the order of the layers."""
    total = 0
    for name in layout:
        if name in answer:
            total = zlib.crc32(answer[name].tobytes(), total)
    return total


class Record:
    """A record that is read, and not trusted: what :class:`Writer` would not have written is :class:`Refused`."""

    def __init__(self, path: str | Path) -> None:
        """Open the record and check everything but the samples' own data."""
        self.path = Path(path)
        if not self.path.is_file():
            raise refuse(str(path), "there is no such file", "give the path of a record")
        try:
            self._file = h5py.File(self.path, "r", locking=False)
            self._open()
        except Refused as error:
            raise Refused(type(f)(f"{path}: {f.where}", f.problem, f.remedy) for f in error.findings) from None
        except Exception as error:  # damage raises almost any built-in one
            raise _damaged(path, error) from error

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        """Count the samples that are there."""
        return self.done

    def _open(self) -> None:
        if not isinstance(self._file.get("format"), h5py.Dataset):
            raise refuse("format", "it is missing", "give a file that `ann2loihi device run` has written")
        if (version := int(self._dataset("format", (1,), "<i8")[0])) != FORMAT:
            raise refuse("format", f"the record has format {version}, this program reads {FORMAT}", "use a newer one")
        self.job = self._read_job()
        samples, read = self.job["samples"], self.job["read"]
        image = bytes(self._dataset("network", (None,), "u1")[()])
        self.network = netx.undump(image, "network")
        names = {layer.name for layer in self.network.layers}
        if not set(read) <= names or self.network.readout.name not in read:
            raise refuse("job", f"layers {read} were read, the network has {sorted(names)}", UNDAMAGED)
        self._layout = _layout(self.network, read, samples)
        self._arrays = {name: self._dataset(name, *form) for name, form in self._layout.items()}
        self.payload = self._dataset("input", (samples, *self.network.input.shape), "<i4")[()]
        self.network.payload(self.payload)
        if digests(image, self.payload) != self.job["sha256"]:
            raise refuse("job", "network or input are not those that its digests say", UNDAMAGED)
        self.labels = self._read_labels(samples)
        self.done = self._number("done", samples)
        self.visits = [self._read_visit(index) for index in range(self._number("visit/count", VISITS))]

    def _dataset(self, name: str, shape: tuple[int | None, ...], kind: str) -> h5py.Dataset:
        """Return a dataset whose form is checked before anything of it is read; None fits any size."""
        at: Any = self._file
        for part in name.split("/"):
            if not isinstance(at, h5py.Group) or type(at.get(part, getlink=True)) is not h5py.HardLink:
                raise refuse(name, "it is missing, or a link", UNDAMAGED)
            at = at[part]
        given: tuple[int, ...] = (isinstance(at, h5py.Dataset) and at.shape) or ()
        fits = len(given) == len(shape) and all(w in (None, size) for w, size in zip(shape, given, strict=True))
        if not fits or at.dtype != np.dtype(kind):
            wanted = f"{np.dtype(kind)} {tuple('any' if size is None else size for size in shape)}"
            raise refuse(name, f"it is {getattr(at, 'dtype', 'no array')} {given} instead of {wanted}", UNDAMAGED)
        end = (at.id.get_offset() or 0) + _size(at.shape, kind)
        if _size(at.shape, kind) and (not plain(at) or end > self.path.stat().st_size):
            raise refuse(name, "it is not stored in one plain piece of the file", UNDAMAGED)
        return at

    def _number(self, name: str, most: int) -> int:
        value = int(self._arrays[name][0])
        if not 0 <= value <= most:
            raise refuse(name, f"{value} is outside 0..{most}", UNDAMAGED)
        return value

    def _read_job(self) -> dict[str, Any]:
        data = self._dataset("job", (None,), "u1")
        if data.shape[0] > JOB_LIMIT:
            raise refuse("job", f"it has {data.shape[0]} bytes, more than {JOB_LIMIT}", UNDAMAGED)
        job: Any = json.loads(bytes(data[()]))
        job = job if isinstance(job, dict) else {}
        wrong = [key for key, kind in JOB.items() if type(job.get(key)) is not kind]
        wrong += [key for key in ("task", "data") if not isinstance(job.get(key), str | None)]
        if wrong or not all(isinstance(name, str) for name in job["read"]) or job["samples"] < 1:
            raise refuse("job", f"{', '.join(wrong) or 'read or samples'} is missing or of the wrong type", UNDAMAGED)
        return job

    def _read_labels(self, samples: int) -> np.ndarray | None:
        label = self._file.get("label")
        if label is None:
            return None
        shape = label.shape if isinstance(label, h5py.Dataset) else ()
        kind = "<f8" if isinstance(label, h5py.Dataset) and label.dtype.kind == "f" else "<i8"
        return np.asarray(self._dataset("label", (samples, *shape[1:]), kind)[()])

    def _read_visit(self, index: int) -> dict[str, Any]:
        text: Any = json.loads(bytes(self._arrays["visit/text"][index]).rstrip(b"\0"))
        text = text if isinstance(text, dict) else {}
        ran, unsure = text.get("ran_on"), text.get("unconfirmed")
        if not isinstance(ran, dict) or not isinstance(ran.get("models"), dict) or not isinstance(unsure, list):
            raise refuse(f"visit/text {index}", "it does not say where it ran", UNDAMAGED)
        power = zip(PROBES, map(float, self._arrays["visit/probed"][index]), strict=True)
        return text | {"probed": {name: value for name, value in power if not math.isnan(value)}}

    def differs(self, network: Network, payload: np.ndarray, labels: np.ndarray | None) -> list[str]:
        """Name what another run of ``network`` on payloads (N, *input.shape) does not have in common with this one."""
        same = {
            "network": self.network == network,
            "input": np.array_equal(self.payload, payload),
            "labels": np.array_equal(np.asarray(labels), np.asarray(self.labels)),
        }
        return [name for name, equal in same.items() if not equal]

    def trace(self, sample: int) -> Trace:
        """Return what one sample did, as a batch of one; raises :class:`Refused` where its data is damaged."""
        try:
            found = {name: self._arrays[name][sample] for name in self._layout if name.split("/")[0] in _TRACED}
            crc = int(self._arrays["sample/crc32"][sample])
        except Exception as error:
            raise _damaged(self.path, error) from error
        if _crc(found, self._layout) != crc:
            raise refuse(f"{self.path}: sample {sample}", "its checksum does not fit its data", UNDAMAGED)
        spikes, potentials = (
            {name: found[f"{kind}/{index}"][None] for index, name, _ in _layers(self.network, self.job["read"])}
            for kind in _TRACED
        )
        return Trace(self.job["target"], self.network, spikes, potentials)

    @property
    def seconds(self) -> np.ndarray:
        """Wall time of every sample that is there, s, float64 (done,)."""
        return np.asarray(self._arrays["sample/seconds"][: self.done])


_TRACED = ("spikes", "potentials")


class Writer:
    """Adds samples to a record. Use as a context manager; only one may write at a time."""

    def __init__(self, path: str | Path) -> None:
        """Go on with an existing record; raises :class:`Refused` as :class:`Record`, and where another run writes."""
        import fcntl  # not on Windows, where only reading is possible

        with Record(path) as record:
            self.record = record
            self._offsets = {name: array.id.get_offset() for name, array in record._arrays.items()}
            self._layout = record._layout
        self.path, self.done, self._visits = Path(path), record.done, len(record.visits)
        try:
            self._descriptor = os.open(path, os.O_RDWR)
        except OSError as error:
            raise refuse(str(path), f"it cannot be written ({error.strerror})", "check its permissions") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._descriptor)
            raise refuse(str(path), "another run is writing it", "wait, or give another path") from error

    @classmethod
    def create(cls, path: str | Path, contents: Contents) -> Writer:
        """Lay out a new record; raises :class:`Refused` where it cannot be written."""
        path, network, payload = Path(path), contents.network, np.ascontiguousarray(contents.payload, "<i4")
        image = netx.dump(network)
        job = json.dumps({**contents.job, "samples": len(payload), "sha256": digests(image, payload)}).encode()
        given: dict[str, np.ndarray] = {
            "format": np.array([FORMAT], "<i8"),
            "job": np.frombuffer(job, "u1"),
            "network": np.frombuffer(image, "u1"),
            "input": payload,
        }
        if contents.labels is not None:
            kind = "<f8" if contents.labels.dtype.kind == "f" else "<i8"
            given["label"] = np.ascontiguousarray(contents.labels, kind)
        layout = _layout(network, contents.job["read"], len(payload))
        needed = sum(array.nbytes for array in given.values()) + sum(_size(*form) for form in layout.values())
        with files.made_beside(path) as new:
            if needed > shutil.disk_usage(new.parent).free:
                raise refuse(str(path), f"there is no room for {needed} bytes", "choose another place, or read less")
            with h5py.File(new, "w") as file:
                for name, array in given.items():
                    file.create_dataset(name, data=array)
                early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
                early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # so that what is not written yet takes no room
                for name, (shape, kind) in layout.items():
                    group = file.require_group(os.path.dirname(name) or "/")
                    space, leaf = h5py.h5s.create_simple(shape), os.path.basename(name).encode()
                    h5py.h5d.create(group.id, leaf, h5py.h5t.py_create(np.dtype(kind)), space, early)
                file["visit/probed"][...] = np.nan
            with new.open("rb") as file:
                os.fsync(file.fileno())
        return cls(path)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._flush()
        finally:
            os.close(self._descriptor)

    def visit(self, text: Mapping[str, Any]) -> int:
        """Begin a visit to the target and write what is known of it; returns its number."""
        data, number = json.dumps(text).encode(), self._visits
        if number >= VISITS or len(data) > TEXT:
            problem = f"it has room for {VISITS} visits of {TEXT} bytes each"
            raise refuse(str(self.path), problem, "begin a new record")
        self._write("visit/text", number, np.frombuffer(data.ljust(TEXT, b"\0"), "u1"))
        self._write("visit/probed", number, np.full(len(PROBES), np.nan))
        self._commit("visit/count", number + 1)
        self._visits += 1
        return number

    def probed(self, visit: int, values: Mapping[str, float]) -> None:
        """Write what a visit has probed."""
        self._write("visit/probed", visit, np.array([values.get(name, math.nan) for name in PROBES]))

    def append(self, answer: Answer, visit: int, seconds: float) -> None:
        """Add the next sample; when this returns, no end of this process can lose it."""
        names = {name: index for index, name, _ in _layers(self.record.network, self.record.job["read"])}
        arrays = {f"spikes/{names[name]}": np.ascontiguousarray(s, "u1") for name, s in answer.spikes.items()}
        arrays |= {f"potentials/{names[name]}": np.ascontiguousarray(p, "<i4") for name, p in answer.potentials.items()}
        for name, array in arrays.items():
            self._write(name, self.done, array)
        self._write("sample/crc32", self.done, np.array(_crc(arrays, self._layout)))
        self._write("sample/visit", self.done, np.array(visit))
        self._write("sample/seconds", self.done, np.array(seconds))
        self._commit("done", self.done + 1)
        self.done += 1

    def _write(self, name: str, index: int, values: np.ndarray) -> None:
        """Write row ``index`` of a dataset."""
        (_, *shape), kind = self._layout[name]
        data = np.ascontiguousarray(values, kind).tobytes()
        assert len(data) == _size(tuple(shape), kind)  # the next row begins there
        at = self._offsets[name] + index * len(data)
        try:
            while data:
                written = os.pwrite(self._descriptor, data, at)
                data, at = data[written:], at + written
        except OSError as error:
            raise refuse(str(self.path), f"it cannot be written ({error.strerror})", "make room") from error

    def _commit(self, name: str, count: int) -> None:
        """Say that what has been written is there, once it is on the disk."""
        self._flush()
        self._write(name, 0, np.array(count))

    def _flush(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise refuse(str(self.path), f"it cannot be written ({error.strerror})", "make room") from error


def _damaged(path: str | Path, error: Exception) -> Refused:
    reason = " ".join(str(error).split())
    return refuse(str(path), f"it cannot be read as a record ({type(error).__name__}: {reason})", UNDAMAGED)
