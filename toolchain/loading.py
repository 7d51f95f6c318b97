"""A model that comes as a file, with its weights. All read without running pickles.

A factory's file is the user's own Python and is executed; exported programs, weights and arrays are data and never are.
"""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sim.findings import Finding, Refused, refuse
from toolchain.frontends import exported, onnx_file
from toolchain.inputs import existing

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
    findings = [Finding(str(path), problem, "save the state_dict of this very model") for problem in sorted(problems)]
    findings += [
        Finding(
            str(path),
            f"{key!r} is {str(state[key].dtype).removeprefix('torch.')}, the model's is "
            f"{str(wanted[key].dtype).removeprefix('torch.')}",
            "save real floating-point numbers; of integer levels the levels times their scale",
        )
        for key in sorted(wanted.keys() & state)
        if wanted[key].is_floating_point() and not state[key].is_floating_point()
    ]
    if findings:
        raise Refused(findings)
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
