"""What users hand over on the command line: a model, its weights, and arrays. All read without running pickles.

A factory's file is the user's own Python and is executed; exported programs, weights and arrays are data and never are.
"""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sim.findings import Finding, Refused, refuse
from sim.network import Shape
from toolchain.convert import as_inputs
from toolchain.frontends import exported, onnx_file

ARRAY_LIMIT = 16 << 30  #: bytes that the arrays of one .npz may take uncompressed


def existing(path: Path) -> Path:
    """Return ``path`` if it is a readable file; raises :class:`Refused` otherwise."""
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise refuse(str(path), (error.strerror or str(error)).lower(), "check the path and its permissions") from error


#: By the ending of a file that holds a whole model.
READERS: dict[str, Callable[[Path], nn.Module]] = {".pt2": exported.load, ".onnx": onnx_file.load}


def load_model(spec: str, weights: Path | None = None) -> nn.Module:
    """Build ``FILE.py:FACTORY()`` and load its weights, or read a ``.pt2`` or ``.onnx`` file; in eval mode.

    Weights are a state_dict saved by ``torch.save``, read with ``weights_only=True``, or safetensors. Raises
    :class:`Refused` for a missing file or factory, for anything that is not an ``nn.Module``, for a pickle that holds
    more than tensors, and for every key and shape that does not fit.
    """
    if read := READERS.get(Path(spec).suffix):
        if weights is not None:
            raise refuse(spec, "holds its own weights", "leave --weights out")
        return read(existing(Path(spec))).eval()
    name, separator, factory = spec.rpartition(":")
    if not separator or not name:
        raise refuse(
            spec, "no factory named", "give FILE.py:FACTORY, for example model.py:build, or a .pt2 or .onnx file"
        )
    try:
        build = getattr(_load_module(existing(Path(name))), factory, None)
        if not callable(build):
            raise refuse(name, f"has no callable {factory!r}", "name a function or class that builds the model")
        model = build()
    except Refused:
        raise
    except Exception as error:  # the user's code may raise anything; the place and the text are what helps
        raise refuse(spec, f"{type(error).__name__}: {error}", "make file and factory run on their own") from error
    if not isinstance(model, nn.Module):
        raise refuse(spec, f"returns {type(model).__name__}, not an nn.Module", "return the model")
    if weights is not None:
        _load_weights(model, existing(weights))
    return model.eval()


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_user_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise refuse(str(path), "is not a Python file", "give FILE.py:FACTORY")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _load_weights(model: nn.Module, path: Path) -> None:
    state = _read_state(path)
    wanted = model.state_dict()
    problems = [f"lacks {key!r}" for key in wanted.keys() - state]
    problems += [f"holds {key!r}, which the model does not have" for key in state.keys() - wanted]
    problems += [
        f"{key!r} has shape {tuple(state[key].shape)}, the model's has {tuple(wanted[key].shape)}"
        for key in wanted.keys() & state
        if state[key].shape != wanted[key].shape
    ]
    if problems:
        raise Refused(
            Finding(str(path), problem, "save the state_dict of this very model") for problem in sorted(problems)
        )
    model.load_state_dict(state)


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise refuse(str(path), f"is not a safetensors file ({error})", "save it again") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise refuse(
            str(path),
            "is no state_dict: it holds objects or code beside tensors, which are never executed",
            "save model.state_dict() with torch.save, or use safetensors",
        ) from error
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... for a damaged file
        raise refuse(str(path), "cannot be read as a torch file", "save model.state_dict() with torch.save") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise refuse(
            str(path), f"holds {_describe(state)}, not a state_dict of tensors", "save model.state_dict() itself"
        )
    return state


def _describe(value: object) -> str:
    if isinstance(value, dict):
        return "a dict with keys " + ", ".join(repr(key) for key in list(value)[:4])
    return f"a {type(value).__name__}"


def load_arrays(path: Path, shape: Shape | None = None, labels: bool = True) -> tuple[Tensor, Tensor | None]:
    """Read model inputs ``x`` (see :func:`toolchain.convert.as_inputs`) and labels ``y`` (N,) from an ``.npz``.

    ``y`` may be missing where ``labels`` is False. Sizes are checked before anything is allocated. Raises
    :class:`Refused`.
    """
    try:
        with zipfile.ZipFile(existing(path)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > ARRAY_LIMIT:
            raise refuse(str(path), f"holds {size} bytes, more than {ARRAY_LIMIT}", "split the data")
        with np.load(path, allow_pickle=False) as arrays:
            found = {key: _read(path, arrays, key) for key in ("x", "y") if key in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, Refused):
            raise
        raise refuse(
            str(path), "is not a readable .npz file", "save it with numpy.savez(path, x=..., y=...)"
        ) from error
    if "x" not in found:
        raise refuse(str(path), "has no array 'x'", "save it with numpy.savez(path, x=..., y=...)")
    x = as_inputs(found["x"], shape, f"{path}: x")
    y = found.get("y")
    if y is None:
        if labels:
            raise refuse(str(path), "has no array 'y'", "add the labels: numpy.savez(path, x=..., y=...)")
        return x, None
    if y.shape != (len(x),) or y.dtype.kind not in "iu" or (len(y) and y.min() < 0):
        raise refuse(f"{path}: y", f"{y.dtype} of shape {y.shape}", f"it needs {len(x)} class numbers from 0")
    return x, torch.from_numpy(y.astype(np.int64))


def _read(path: Path, arrays: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return arrays[key]
    except MemoryError as error:  # a header that promises more than the archive holds
        raise refuse(f"{path}: {key}", "declares more data than fits into memory", "save it again") from error


def selected(x: Tensor, y: Tensor | None, samples: int | None) -> tuple[Tensor, Tensor | None]:
    """Take the first ``samples`` (all where None); raises :class:`Refused` if there are fewer or none is asked for."""
    if samples is None:
        return x, y
    if not 1 <= samples <= len(x):
        raise refuse("samples", f"{samples} asked for", f"the data holds 1 to {len(x)}")
    return x[:samples], None if y is None else y[:samples]


Track = Callable[[int], object]  #: progress: the number of samples just finished
