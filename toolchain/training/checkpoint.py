"""What training leaves on the disk: a file to go on from after each epoch, and at the end the weights and the curves.

Files are replaced as a whole (:mod:`exporters.files`), so that a kill at any moment costs one epoch at most.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from exporters.files import replace_file
from sim.findings import Refused, refuse
from toolchain.loading.weights import read_weights

CHECKPOINT, WEIGHTS, HISTORY, CURVES = "checkpoint.pt", "trained.pt", "history.json", "curves.png"


def prepare(directory: Path, resume: bool) -> None:
    """Make the directory; :class:`Refused` where it cannot be, or where a training is that is not to be resumed."""
    try:
        os.makedirs(directory, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise refuse(str(directory), "nothing can be written in it", "choose another place")
    except OSError as error:
        raise refuse(str(directory), f"it cannot be made ({error.strerror})", "choose another place") from error
    if not resume and (there := [name for name in (CHECKPOINT, WEIGHTS) if (directory / name).exists()]):
        raise refuse(str(directory / there[0]), "exists", "go on with --resume, or choose another place")


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors and plain values as ``torch.save`` does."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    replace_file(path, buffer.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document."""
    replace_file(path, (json.dumps(content, indent=2) + "\n").encode())


def load(directory: Path, expected: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the file to go on from; None where there is none, :class:`Refused` where it is of another training.

    ``expected`` are the entries that make it the same.
    """
    path = directory / CHECKPOINT
    if not path.exists():
        return None
    content = read_weights(path)
    if (
        not isinstance(content, dict)
        or not {"epoch", "model", "optimizer", "best", "history", *expected} <= content.keys()
    ):
        raise refuse(str(path), "is no training to go on from", "choose another place")
    found = []
    for key, value in expected.items():
        if content[key] != value:
            both = content[key], value
            fields = [name for name in value if both[0].get(name) != value[name]] if isinstance(value, dict) else []
            problem = ", ".join(f"{name} was {both[0].get(name)!r} and is {value[name]!r}" for name in fields)
            found.append(
                refuse(str(path), f"is of another {key}{': ' if problem else ''}{problem}", "choose another place")
            )
    if found:
        raise Refused([finding for error in found for finding in error.findings])
    return content
