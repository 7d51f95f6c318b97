"""Records as JSON types and back: keys are fields, and what equals its default was not measured and is absent."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from sim.findings import Finding, Refused

R = TypeVar("R", bound="Record")

REMEDY = "read it with the version that wrote it, or convert again"


@dataclass(frozen=True, kw_only=True)
class Record:
    """What has :meth:`as_dict` and :meth:`from_dict`.

    Fields hold records, str, int, float, literals, tuples of one kind, mappings from str or int, or None.
    """

    KEYS: ClassVar[Mapping[str, str]] = {}  #: of the fields whose key is not their name

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types, in the order of the fields."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {self._key(field): _plain(value) for field, value in values if value != _default(field)}

    @classmethod
    def from_dict(cls: type[R], value: Any, where: str) -> R:
        """Read what :meth:`as_dict` gives; :class:`Refused` names, below ``where``, every key that is wrong."""
        findings: list[Finding] = []
        record = cls._record(value, where, findings)
        if findings:
            raise Refused(findings)
        return record

    @classmethod
    def _key(cls, field: Field[Any]) -> str:
        return cls.KEYS.get(field.name, field.name)

    @classmethod
    def _record(cls, value: Any, where: str, findings: list[Finding]) -> Any:
        if not isinstance(value, dict):
            return _wrong(value, "an object", where, findings)
        known = {cls._key(field): field for field in fields(cls)}
        missing = [key for key, field in known.items() if key not in value and _default(field) is MISSING]
        findings += (Finding(where, f"{key!r} is missing", REMEDY) for key in missing)
        findings += (Finding(where, f"unknown key {key!r:.40}", REMEDY) for key in value if key not in known)
        hints = get_type_hints(cls)
        found = {
            field.name: _read(hints[field.name], value[key], f"{where}: {key}", findings)
            for key, field in known.items()
            if key in value
        }
        return None if missing else cls(**found)


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _read(kind: Any, value: Any, where: str, findings: list[Finding]) -> Any:
    """Return ``value`` as the type ``kind``; what it is not joins ``findings``."""
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind._record(value, where, findings)
    return _READERS[get_origin(kind) or kind](get_args(kind), value, where, findings)


def _tuple(kinds: tuple[Any, ...], value: Any, where: str, findings: list[Finding]) -> Any:
    if not isinstance(value, list):
        return _wrong(value, "a list", where, findings)
    return tuple(_read(kinds[0], entry, f"{where}[{index}]", findings) for index, entry in enumerate(value))


def _mapping(kinds: tuple[Any, ...], value: Any, where: str, findings: list[Finding]) -> Any:
    if not isinstance(value, dict):
        return _wrong(value, "an object", where, findings)
    key_kind, kind = kinds
    found = {}
    for key, entry in value.items():
        name = _read(key_kind, _number(key) if key_kind is int else key, f"{where}: key {key!r:.40}", findings)
        found[name] = _read(kind, entry, f"{where}: {key:.40}", findings)
    return found


def _number(key: str) -> int | str:
    """Return the integer that is written so, else the string as it is."""
    try:
        return int(key) if str(int(key)) == key else key
    except ValueError:
        return key


def _optional(kinds: tuple[Any, ...], value: Any, where: str, findings: list[Finding]) -> Any:
    kind, none = kinds
    assert none is NoneType, "the only union that a field may be"
    return None if value is None else _read(kind, value, where, findings)


def _literal(known: tuple[Any, ...], value: Any, where: str, findings: list[Finding]) -> Any:
    return value if value in known else _wrong(value, f"one of {', '.join(known)}", where, findings)


def _scalar(what: str, *kinds: type, most: float | None = None) -> Callable[..., Any]:
    def read(_: tuple[Any, ...], value: Any, where: str, findings: list[Finding]) -> Any:
        # JSON has numbers that are read as infinity, and integers that no float is as large as.
        fits = type(value) in kinds and (most is None or -most <= value <= most)
        return value if fits else _wrong(value, what, where, findings)

    return read


def _wrong(value: Any, wanted: str, where: str, findings: list[Finding]) -> None:
    shown = f"a {type(value).__name__}" if isinstance(value, (dict, list)) else f"{value!r:.40}"
    findings.append(Finding(where, f"{shown} is not {wanted}", REMEDY))


_READERS: dict[Any, Callable[[tuple[Any, ...], Any, str, list[Finding]], Any]] = {
    tuple: _tuple,
    get_origin(Mapping[str, str]): _mapping,
    UnionType: _optional,
    Union: _optional,  # what a literal and None make
    Literal: _literal,
    bool: _scalar("true or false", bool),
    str: _scalar("a string", str),
    int: _scalar("an integer", int, most=2**63 - 1),
    float: _scalar("a number", float, int, most=sys.float_info.max),
}
