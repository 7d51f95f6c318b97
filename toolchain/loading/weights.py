"""A checkpoint, read as data, and the one state_dict in it that fits a model."""

from __future__ import annotations

import argparse
import copy
import pathlib
import re
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sim.findings import Finding, Refused, refuse
from toolchain.loading.fit import DEQUANTISED, SAVE, State, fitting, memory, misfits, missing, unfit
from toolchain.loading.words import described, one_line

DEPTH = 4  #: how far down a checkpoint its state_dicts are looked for

#: Parts of keys that come from wrappers, not from the model.
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def load_weights(model: nn.Module, path: Path, content: Any) -> None:
    """Load what :func:`read_weights` has found in a file into a model, in the model's own precision.

    The file, by ``torch.save`` or safetensors, holds a state_dict, or a checkpoint with one inside. A prefix that all
    its keys share, as DataParallel, ``torch.compile`` and Lightning add one, is removed where the keys then fit.
    ``num_batches_tracked`` may be missing, and so may weights that the model shares with one that is there. Raises
    :class:`sim.findings.Refused` for several state_dicts that fit, and for keys, shapes and element types that do not.
    """
    wanted = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
    found = {
        place + under: state
        for place, tensors in _states(content)
        for under, state in _renamed(tensors, wanted).items()
    }
    if not found:
        raise refuse(
            str(path), f"holds {described(content)}, not a state_dict of tensors", "save model.state_dict() itself"
        )
    fits = {place: state for place, state in found.items() if not misfits(state, wanted)}
    if len(fits) > 1 and not _equal(*fits.values()):
        raise refuse(
            str(path),
            f"holds {len(fits)} different state_dicts that fit: {', '.join(place.strip() for place in fits)}",
            "save the one that you mean in a file of its own",
        )
    if fits:
        # What the model keeps beside tensors stays what it is.
        state = model.state_dict() | _completed(next(iter(fits.values())), wanted)
    else:
        place, state = max(found.items(), key=lambda entry: fitting(entry[1], wanted))
        if not _torch_takes(model, state, wanted):
            raise Refused(Finding(f"{path}{place}", *misfit) for misfit in misfits(state, wanted))
    try:
        model.load_state_dict(state)
    except Exception as error:  # a load_state_dict of the user's own may raise anything
        raise refuse(str(path), f"the model cannot load it: {type(error).__name__}: {one_line(error)}", SAVE) from error


def _torch_takes(model: nn.Module, state: State, wanted: State) -> bool:
    """Whether a copy of the model loads what does not fit by name: hooks may rename what older versions have saved."""
    if fitting(state, wanted) < len(state.keys() & wanted) or any(unfit(state[key], wanted.get(key)) for key in state):
        return False
    try:
        copy.deepcopy(model).load_state_dict(state)
    except Exception:  # whatever it raises, the finding is ours
        return False
    return True


# ---- reading --------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> Any:
    """Read what a file holds, as data; :class:`Refused` where it is damaged or holds objects."""
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # SafetensorError, or KeyError for a type that this torch does not have
            raise refuse(str(path), f"is not a safetensors file ({one_line(error)})", "save it again") from error
    _check_archive(path)
    try:
        with _harmless():
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ... for a damaged file
        if found := re.search(r"(?:Unsupported class |GLOBAL |got <class ')([\w.]+)", str(error)):
            raise refuse(str(path), *_object(found[1])) from error
        raise refuse(str(path), "cannot be read as a torch file", "save model.state_dict() with torch.save") from error


def _object(name: str) -> tuple[str, str]:
    if name.endswith("_rebuild_qtensor"):
        return "holds quantised tensors", DEQUANTISED
    return (
        f"holds objects or code beside tensors, which are never executed: {name}",
        "where you trust it, read it with torch.load(..., weights_only=False), and torch.save its state_dict alone",
    )


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that is damaged, which torch would not notice, or that holds TorchScript."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":  # torch before 1.6 wrote no archives
            return
    try:
        with zipfile.ZipFile(path) as archive:
            damaged, names = archive.testzip(), archive.namelist()
    except Exception as error:  # a damaged directory can say anything
        raise refuse(str(path), f"is damaged or cut short ({one_line(error)})", "copy or download it again") from error
    if damaged is not None:
        raise refuse(str(path), f"is damaged: {damaged} has another checksum", "copy or download it again")
    if any(name.endswith("/constants.pkl") for name in names):
        raise refuse(str(path), "is TorchScript, a program", "torch.save(torch.jit.load(...).state_dict(), ...) first")


def _harmless() -> AbstractContextManager[None]:
    """Let torch's reader of weights build values that training scripts save beside them; it can from torch 2.6 on."""
    allowed = getattr(torch.serialization, "safe_globals", None)
    if allowed is None:
        return nullcontext()
    scalar = np.float64().__reduce__()[0]  # under its name in NumPy 1 and 2
    return allowed(
        [
            argparse.Namespace,
            pathlib.PosixPath,
            (scalar, "numpy.core.multiarray.scalar"),
            (scalar, "numpy._core.multiarray.scalar"),
            np.dtype,
            *(type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"),
        ]
    )


# ---- finding the state_dict -----------------------------------------------------------------------------------------


def _states(value: Any, place: str = "", depth: int = DEPTH) -> Iterator[tuple[str, State]]:
    """Yield everything in a checkpoint that holds tensors by name, and where it is; optimizers' states do not count."""
    if not depth:
        return
    items = [*value.items()] if isinstance(value, dict) else [*enumerate(value)] if type(value) in (list, tuple) else []
    if tensors := {key: part for key, part in items if isinstance(key, str) and isinstance(part, Tensor)}:
        yield place, tensors
    for key, part in items:
        if not str(key).startswith("optim"):
            yield from _states(part, f"{place}[{key!r}]", depth - 1)


def _renamed(tensors: State, wanted: State) -> dict[str, State]:
    """Return the tensors under the names that the model may have for them, by what was taken from their keys."""
    bare = {".".join(part for part in key.split(".") if part not in _WRAPPERS): part for key, part in tensors.items()}
    found: dict[str, State] = {}
    for place, state in (("", tensors), (" without wrappers", bare)):
        if len(state) < len(tensors):  # two keys have become one
            break
        found[place] = state
        if not missing(state, wanted):  # what has a prefix beside it belongs to somebody else
            break
        ends = ((key, key[dot.end() :]) for key in state for dot in re.finditer(r"\.", key))
        for prefix in dict.fromkeys(key[: -len(end)] for key, end in ends if end in wanted):
            under = {key[len(prefix) :]: part for key, part in state.items() if key.startswith(prefix)}
            found[f"{place} under {prefix!r}"] = under
        if any(not missing(state, wanted) for state in found.values()):
            break
    return found


def _equal(first: State, *others: State) -> bool:
    return all(first[key] is other[key] or torch.equal(first[key], other[key]) for other in others for key in other)


def _completed(state: State, wanted: State) -> State:
    """Add what may be missing: a weight from the one that it is shared with, counters from the model."""
    shared = {memory(wanted[key]): value for key, value in state.items()}
    return {key: state.get(key, shared.get(memory(value), value)) for key, value in wanted.items()}
