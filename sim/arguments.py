"""What callers hand over, held to the annotations of the function that takes it, before anything is done with it."""

from __future__ import annotations

import errno
import inspect
import operator
import os
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from sim.findings import Finding, Refused, refuse

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class AtLeast:
    """The smallest value of an annotated integer."""

    low: int


ANYTHING = "biufcSUOMmV"  #: every kind of NumPy's types
Count = Annotated[int, AtLeast(1)]


def checked(function: F) -> F:
    """Refuse arguments whose type is not that of the annotation, all findings at once.

    NumPy's integers become Python's. Lists are taken for tuples, and whatever NumPy makes an array of for arrays. What
    is annotated as Any is the function's own to check. What does not fit the signature is Python's TypeError.
    """
    signature = inspect.signature(function)
    hints = cache(lambda: get_type_hints(function, include_extras=True))  # names may be defined later in the module
    single = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)
        findings: list[Finding] = []
        for name, value in bound.arguments.items():
            if name in hints() and signature.parameters[name].kind not in single:
                try:
                    bound.arguments[name] = fitting(name, value, hints()[name])
                except Refused as error:
                    findings += error.findings
        if findings:
            raise Refused(findings)
        return function(*bound.args, **bound.kwargs)

    return call  # type: ignore[return-value]


def fitting(where: str, value: Any, hint: Any) -> Any:
    """Return a value as its annotation has it; :class:`Refused` where it is of another type."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        number, low = fitting(where, value, parts[0]), parts[1].low
        if number < low:
            raise refuse(where, f"{number} is out of range", f"give {low} or more")
        return number
    if origin in (Union, UnionType):
        return _alternative(where, value, parts)
    if origin is Literal:
        return _instance(where, value, str, f"one of {', '.join(map(repr, parts))}")
    if origin in (tuple, list, Sequence):
        _instance(where, value, Sequence, "a list or tuple", not isinstance(value, str | bytes))
        entries = [fitting(f"{where}[{index}]", entry, parts[0]) for index, entry in enumerate(value)]
        return entries if origin is list else tuple(entries)
    if origin in (dict, Mapping):
        return _instance(where, value, Mapping, "a dict")
    if origin is type:
        fits = isinstance(value, type) and issubclass(value, parts[0])
        return _instance(where, value, type, f"a class derived from {_named(parts[0])}", fits)
    if origin is Callable:
        return _instance(where, value, object, "a function", callable(value))
    return _SIMPLE[hint](where, value) if hint in _SIMPLE else _instance(where, value, hint, f"a {_named(hint)}")


def array(where: str, value: Any, kinds: str, what: str) -> np.ndarray:
    """Return what NumPy makes of a value as it is; :class:`Refused` unless the kind of its numbers is in ``kinds``."""
    try:
        found = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    except Exception as error:  # whatever a foreign type's conversion raises
        raise refuse(where, f"no array can be made of it: {' '.join(str(error).split())}", f"give {what}") from error
    if found.dtype.kind not in kinds:
        given = found.dtype if hasattr(value, "dtype") else type(value).__name__
        raise refuse(where, f"{given} of shape {found.shape}", f"give {what}")
    return found


def shown(value: Any) -> str:
    """Write a value in a few words and one line, whatever its own repr does."""
    if getattr(value, "shape", ()):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    return " ".join(reprlib.repr(value).split())


def whole(where: str, value: Any) -> int:
    """Return an integer of any library as Python's; :class:`Refused` for all else, truth values too."""
    try:
        if not isinstance(value, bool) and "bool" not in str(getattr(value, "dtype", "")):
            return operator.index(value)
    except (TypeError, RuntimeError):
        pass
    raise refuse(where, f"{shown(value)} is no integer", "give a whole number")


def _alternative(where: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    if value is None and NoneType in kinds:
        return None
    found = []
    for kind in kinds:
        if kind is not NoneType and not (kind is str and Path in kinds):  # a text is a path, if any may be
            try:
                return fitting(where, value, kind)
            except Refused as error:
                found.append(error.findings[0])
    ways = " or ".join(finding.remedy.removeprefix("give ") for finding in found)
    raise refuse(where, found[0].problem, f"give {ways}")


def _instance(where: str, value: Any, kind: Any, what: str, fits: bool = True) -> Any:
    if fits and isinstance(value, kind):
        return value
    given = f"the class {value.__name__}" if isinstance(value, type) else shown(value)
    raise refuse(where, f"{given} given", f"give {what}")


def _named(kind: type) -> str:
    package = kind.__module__.partition(".")[0]
    ours = package in ("ann2loihi", "exporters", "sim", "toolchain", "builtins")
    return kind.__name__ if ours else f"{package} {kind.__name__}"


def _real(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise refuse(where, f"{shown(value)} is no number", "give a real number")
    return float(value)


def _truth(where: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise refuse(where, f"{shown(value)} is neither True nor False", "give one of them")
    return bool(value)


def _path(where: str, value: Any) -> Any:
    _instance(where, value, str | os.PathLike, "a path")
    try:
        os.stat(value)
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP):
            return value  # whoever opens it knows whether it has to be there
        reason = getattr(error, "strerror", None) or str(error)
        raise refuse(where, f"{shown(value)} is no path ({reason.lower()})", "give the path of a file") from error
    return value


_SIMPLE: dict[Any, Callable[[str, Any], Any]] = {
    Any: lambda _, value: value,
    int: whole,
    float: _real,
    bool: _truth,
    Path: _path,
    np.ndarray: lambda where, value: array(where, value, ANYTHING, "an array"),
}
