"""``FILE.py:NAME``: the user's own Python, run as Python would run it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from sim.findings import Refused, refuse
from toolchain.inputs import existing
from toolchain.loading.words import described, one_line

_MISSING = object()
_OURS = {"ann2loihi", "exporters", "sim", "toolchain"}
_loads = itertools.count()
#: Modules that the last file imported from beside it. The next file may have neighbours of the same names.
_neighbours: set[str] = set()


def build(spec: str) -> nn.Module:
    """Build the model that ``FILE.py:NAME`` names: a function, a class, a model, or one of these inside a class.

    Raises as :func:`made` does, and for a result that is no ``nn.Module``.
    """
    if not all(spec.rpartition(":")[::2]):
        raise refuse(
            spec, "no factory named", "give FILE.py:FACTORY, for example model.py:build, or a .pt2, .onnx or .nir file"
        )
    model = made(spec, nn.Module, "model")
    if not isinstance(model, nn.Module):
        raise refuse(spec, f"returns {described(model)}, not an nn.Module", "return the model alone")
    return model


def made(spec: str, kind: type[Any], what: str) -> Any:
    """Return what ``FILE.py:NAME`` names if it is of a ``kind``, else what that returns when it is called.

    The file is imported under a name of its own that stays, inside its package if it lies in one, and may import what
    lies beside it. It sees its own path alone in ``sys.argv``; what it prints goes to stderr. In the place of FILE.py
    may stand the dotted name of a module that Python finds. ``what`` is to be made, in messages. Raises
    :class:`sim.findings.Refused` for a missing file or name, a factory that needs arguments, and whatever the user's
    code raises, ``SystemExit`` too, with file and line.
    """
    file, _, name = spec.rpartition(":")
    path = located(file)
    package, root = _package(path)
    try:
        with _as_a_script(path, root):
            value = _named(_imported(path, package, root), file, name, kind, what)
            return value if isinstance(value, kind) else value()
    except (Refused, KeyboardInterrupt):
        raise
    except BaseException as error:  # the user's code may raise anything: its place and text are what helps
        raise refuse(spec, *failure(error, root)) from error


def located(file: str) -> Path:
    """Return the path of the file, or of the module of that dotted name, which may lie in the current folder."""
    if not os.path.exists(file) and all(part.isidentifier() for part in file.split(".")):
        search = sys.path
        sys.path = [os.getcwd(), *search]
        try:
            found = importlib.util.find_spec(file)  # which runs the packages that it lies in
        except Exception:  # there is none, or whatever those raise
            found = None
        finally:
            sys.path = search
        if found is not None and found.origin is not None:
            return existing(Path(found.origin)).resolve()
    return existing(Path(file)).resolve()


def _package(path: Path) -> tuple[list[str], Path]:
    """Return the names of the packages that a file lies in, outermost first, and the folder that they lie in."""
    names: list[str] = []
    folder = path.parent
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    return names, folder


@contextmanager
def _as_a_script(path: Path, root: Path) -> Iterator[None]:
    """Let a file see what it would see as a script, and undo what it changes for the whole process."""
    argv, search, place = sys.argv, sys.path, os.getcwd()
    dtype, gradients = torch.get_default_dtype(), torch.is_grad_enabled()
    folders = list(dict.fromkeys(map(str, (root, path.parent, Path(place)))))
    for name in _neighbours:
        sys.modules.pop(name, None)
    known = set(sys.modules)
    importlib.invalidate_caches()
    sys.argv, sys.path = [str(path)], [*folders, *search]
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _neighbours.clear()
        _neighbours.update(name for name in sys.modules.keys() - known if _beside(name, folders))
        sys.argv, sys.path = argv, search
        os.chdir(place)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(gradients)


def _beside(name: str, folders: list[str]) -> bool:
    """Whether a module, or the package that it is part of, was found in one of the folders and is none of ours."""
    top = name.partition(".")[0]
    spec = getattr(sys.modules.get(top), "__spec__", None)
    if spec is None or top in _OURS:
        return False
    places = spec.submodule_search_locations or [spec.origin or ""]
    return any(str(Path(place).parent) in folders for place in places)


def _imported(path: Path, package: list[str], root: Path) -> ModuleType:
    # A name of its own: what else is called "model" stays what it is, and two files of one name live side by side.
    top = ModuleType(f"_user{next(_loads)}")
    top.__path__ = [str(root)]
    sys.modules[top.__name__] = top
    parent = ".".join([top.__name__, *package])
    with suppress(Exception):  # a script would not run it either; a relative import meets the same error again
        importlib.import_module(parent)
    name = f"{parent}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise refuse(str(path), "is not a Python file", "give FILE.py:FACTORY")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses, pickle and typing look their module up by its name
    spec.loader.exec_module(module)
    return module


def _named(module: ModuleType, file: str, name: str, kind: type[Any], what: str) -> Any:
    """Return what is of a ``kind``, or what builds it without arguments."""
    value: Any = module
    for part in name.split("."):
        if (value := getattr(value, part, _MISSING)) is _MISSING:
            has = ", ".join(_builders(module, kind)) or f"nothing that builds a {what}"
            raise refuse(file, f"has no {name!r}", f"name a function or class that builds the {what}; it has {has}")
    if isinstance(value, kind):
        return value
    if not callable(value):
        raise refuse(file, f"{name!r} is {described(value)}", f"name a {what}, or a function or class that builds one")
    if needed := _needed(value):
        remedy = f"write a function without arguments that returns {name}({', '.join(f'{n}=...' for n in needed)})"
        raise refuse(file, f"{name!r} needs arguments: {', '.join(needed)}", remedy)
    return value


def _builders(module: ModuleType, kind: type[Any]) -> list[str]:
    """Return the names of what is of a ``kind``, and of functions and classes that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if isinstance(value, kind)
        or (callable(value) and getattr(value, "__module__", None) == module.__name__ and not name.startswith("_"))
    ]


def _needed(function: Any) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # written in C
        return []
    rest = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in rest]


def failure(error: BaseException, root: Path) -> tuple[str, str]:
    """Say what the user's code raised, where, and what to do."""
    frames = [
        f" ({Path(frame.filename).relative_to(root)}, line {frame.lineno})"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(root) and "site-packages" not in frame.filename
    ]
    place = frames[-1] if frames else ""
    if isinstance(error, SystemExit):
        return f"ends the program, sys.exit({error.code!r}){place}", "put that under if __name__ == '__main__':"
    problem = f"{type(error).__name__}: {one_line(error)}{place}"
    if isinstance(error, ModuleNotFoundError):
        return problem, f"install {error.name} into this environment, or put it beside the file"
    return problem, "make file and factory run on their own"
