"""What users hand over beside the model: arrays of inputs and labels, in memory or in a file, read without pickles."""

from __future__ import annotations

import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim.arguments import ANYTHING, array, checked
from sim.findings import Refused, refuse
from sim.network import Shape

REAL = "give floating-point numbers or integers"
UNLABELLED = "add the labels: numpy.savez(path, x=..., y=...)"
ARRAY_LIMIT = 16 << 30  #: bytes that the arrays of one .npz may take uncompressed


def as_inputs(x: Any, shape: Shape | None = None, where: str = "calibration", first: int = 0) -> Tensor:
    """Turn user data into the model's inputs, float32 (B, *shape), in memory of their own.

    ``x`` is a tensor, an array or a list of them, of real numbers of any type, byte order, memory layout or device.
    uint8 is scaled by 1/255, as torchvision's ToTensor does; other numbers are taken as they are, bool as 0 and 1.
    Sequences (B, C, L) fit a ``shape`` of (C, L, 1), as the float graph has it. ``first`` is the number of the first
    sample in messages. Raises :class:`Refused` for an empty array, a wrong shape, another type, a mask, NaN, infinity
    and what leaves float32.
    """
    tensor = _numbers(x, where)
    tensor = tensor.reshape(-1, *sample_shape(tuple(tensor.shape), shape, where))
    single = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor.float()
    if not single.isfinite().all():
        bad = int(single.flatten(1).isfinite().logical_not().any(1).nonzero()[0])
        values = tensor[bad].double()
        if values.isfinite().all():
            largest = float(values.abs().max())
            raise refuse(where, f"sample {first + bad} holds {largest:.3g}, beyond float32", "scale the data")
        raise refuse(where, f"sample {first + bad} holds NaN or infinity", "clean the data")
    return single


def sample_shape(given: Shape, wanted: Shape | None, where: str) -> Shape:
    """Return the shape that one sample of an array of shape ``given`` has as input; :class:`Refused` if not ``wanted``.

    See :func:`as_inputs`; None wants any that a model takes.
    """
    shape = (*given[1:], 1) if len(given) == 3 and wanted == (*given[1:], 1) else given[1:]
    if len(given) not in (2, 3, 4) or (wanted is not None and shape != wanted):
        needs = "(N, C, H, W), (N, C, L) or (N, features)" if wanted is None else f"(N, {', '.join(map(str, wanted))})"
        raise refuse(where, f"shape {given}", f"it needs {needs}")
    if 0 in given:
        raise refuse(where, f"empty: shape {given}", "give at least one sample")
    return shape


def _numbers(x: Any, where: str) -> Tensor:
    """Copy real numbers, however they are kept, into a dense tensor in the computer's memory."""
    if isinstance(x, list | tuple) and x and all(isinstance(part, Tensor) for part in x):
        parts = [_numbers(part, where) for part in x]
        if len({part.shape for part in parts}) > 1:
            raise refuse(where, "samples of different shapes", "give all samples one shape")
        return torch.stack(parts)
    if isinstance(x, Tensor):
        kind = "quantised" if x.is_quantized else "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        if kind != "strided" or x.is_meta:
            kind = "meta" if kind == "strided" else kind
            raise refuse(where, f"a tensor that is {kind}", "give a dense tensor of real numbers")
        if x.is_complex():
            raise refuse(where, f"type {x.dtype}", REAL)
        return torch.empty(x.shape, dtype=x.dtype).copy_(x.detach())
    if any(isinstance(part, np.ma.MaskedArray) for part in (x if isinstance(x, list | tuple) else (x,))):
        raise refuse(where, "a masked array", "fill in what is masked, as x.filled(0) does, or leave those samples out")
    values = array(where, x, ANYTHING, "one array, and all samples one shape")
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind not in "fiub":
        given = str(values.dtype) if isinstance(x, np.ndarray) else type(x).__name__
        inside = "" if isinstance(x, np.ndarray) or kind == "O" else f" of {values.dtype}"
        raise refuse(where, f"type {given}{inside}", REAL)
    if kind == "f" and size > 8:  # beyond float64 is beyond float32, and not infinity
        largest = np.finfo(np.float64).max
        values = np.where(np.isfinite(values), values.clip(-largest, largest), values)
    # torch knows the computer's own byte order only, and no unsigned integers but bytes.
    known = {"f": f"f{min(size, 8)}", "u": "u1" if size == 1 else "f8"}.get(kind, f"{kind}{size}")
    return torch.from_numpy(np.array(values, known, order="C"))


def existing(path: Path) -> Path:
    """Return ``path`` if it is a readable file; raises :class:`Refused` otherwise."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # to open a pipe may take for ever, and a device may have no end
            kind = "a directory" if path.is_dir() else "no file"
            raise refuse(str(path), f"is {kind}", "give a file")
        with path.open("rb"):
            return path
    except OSError as error:
        raise refuse(str(path), (error.strerror or str(error)).lower(), "check the path and its permissions") from error


@checked
def load_arrays(path: str | Path, shape: Shape | None = None, labels: bool = True) -> tuple[Tensor, Tensor | None]:
    """Read model inputs ``x`` (see :func:`as_inputs`) and labels ``y`` (N, ...) from an ``.npz``.

    Labels become int64 or float64; which of them fit is the task's to say (:mod:`toolchain.task`). They may be missing
    where ``labels`` is False. Sizes are checked before anything is allocated. Raises
    :class:`Refused`.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(existing(path)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > ARRAY_LIMIT:
            raise refuse(str(path), f"holds {size} bytes, more than {ARRAY_LIMIT}", "split the data")
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: _read(path, arrays, key) for key in ("x", "y") if key in arrays.files}
    except Refused:
        raise
    except Exception as error:  # a damaged archive, or the text of a header, raises almost any
        raise refuse(
            str(path), "is not a readable .npz file", "save it with numpy.savez(path, x=..., y=...)"
        ) from error
    if "x" not in found:
        raise refuse(str(path), "has no array 'x'", "save it with numpy.savez(path, x=..., y=...)")
    x = as_inputs(found["x"], shape, f"{path}: x")
    y = found.get("y")
    if y is None:
        if labels:
            raise refuse(str(path), "has no array 'y'", UNLABELLED)
        return x, None
    fits_labels(y, len(x), f"{path}: y")
    return x, torch.from_numpy(as_labels(y))


def fits_labels(y: Any, samples: int, where: str) -> None:
    """Refuse what has no number for each of so many samples, by the shape and the dtype of ``y`` alone."""
    if tuple(y.shape[:1]) != (samples,) or y.dtype.kind not in "iubf":
        raise refuse(where, f"{y.dtype} of shape {tuple(y.shape)}", f"it needs numbers for {samples} samples")


def as_labels(y: np.ndarray) -> np.ndarray:
    """Make int64 or float64 of labels, which keep their shape."""
    return y.astype(np.float64 if y.dtype.kind == "f" else np.int64)


def _read(path: Path, arrays: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return arrays[key]
    except MemoryError as error:  # a header that promises more than the archive holds
        raise refuse(f"{path}: {key}", "declares more data than fits into memory", "save it again") from error


@checked
def selected(x: Tensor, y: Tensor | None, samples: int | None) -> tuple[Tensor, Tensor | None]:
    """Take the first ``samples`` (all where None); raises :class:`Refused` if there are fewer or none is asked for."""
    if samples is None:
        return x, y
    if not 1 <= samples <= len(x):
        raise refuse("samples", f"{samples} asked for", f"the data holds 1 to {len(x)}")
    return x[:samples], None if y is None else y[:samples]
