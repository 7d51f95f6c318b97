"""How refusals put what is not ours into words."""

from __future__ import annotations

from typing import Any


def described(value: Any) -> str:
    """Name a value that is no model, by its kind and by what it holds."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value).__name__
    if isinstance(value, dict | tuple | list) and not value:
        return f"an empty {kind}"
    kind = f"{'an' if kind[0] in 'aeiouAEIOU' else 'a'} {kind}"
    if isinstance(value, dict):
        return f"{kind} with keys " + ", ".join(repr(key) for key in list(value)[:4])
    if isinstance(value, tuple | list):
        return f"{kind} of " + ", ".join(type(part).__name__ for part in value[:4])
    return kind


def one_line(error: BaseException) -> str:
    """Return what an error says, without line breaks."""
    return " ".join(str(error).split())
