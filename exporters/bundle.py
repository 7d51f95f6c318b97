"""The artefact directory: a network with the recipe that made it, where it came from and how good it is.

====================  =============================================================================================
``network.net``       the network; the file says who can load it (:func:`exporters.netx.loaded_by`)
``config.json``       the conversion's recipe
``provenance.json``   what :func:`provenance` collects
``report.json``       measurements, optional; ``report.md`` and pictures beside it are for people and never read
====================  =============================================================================================
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from uuid import uuid4

import numpy as np

from exporters import netx
from sim.findings import Finding, Refused, refuse
from sim.network import Network

NET = "network.net"
CONFIG, PROVENANCE, REPORT = "config.json", "provenance.json", "report.json"
JSON_LIMIT = 1 << 24  #: bytes of a JSON file that is read; a report holds thousands of numbers, not millions

#: Distributions whose version may change a result; those that are not installed are left out.
PACKAGES = ("ann2loihi", "h5py", "lava-dl", "lava-nc", "matplotlib", "numpy", "scikit-learn", "torch", "torchvision")


@dataclass(frozen=True)
class Bundle:
    """What :func:`load` found."""

    network: Network
    config: dict[str, Any]
    provenance: dict[str, Any]
    report: dict[str, Any] | None  #: None where nothing was measured
    net_path: Path  #: the file that the network was read from


def provenance(
    *, seed: int | None, weights: Mapping[str, Any], calibration: Any, processor: Mapping[str, str | int]
) -> dict[str, Any]:
    """Collect what it takes to convert again: versions, platform, seed, time and digests; no user, host or path names.

    ``weights`` maps parameter names to arrays (a ``state_dict``), ``calibration`` is the array of model inputs; CPU
    tensors and arrays of any shape and dtype that NumPy has. ``processor`` is what decides the order in which the
    converter's library sums floats.
    """
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": dict(processor),
        "packages": {name: found.version for name in PACKAGES for found in metadata.distributions(name=name)},
        "seed": seed,
        "sha256": {"weights": digest(weights), "calibration": digest({"calibration": calibration})},
    }


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, over names, dtypes, shapes and values, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name])
        total.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        total.update(value.tobytes())
    return total.hexdigest()


def save(
    directory: str | Path,
    network: Network,
    *,
    config: dict[str, Any],
    provenance: dict[str, Any],
    report: dict[str, Any] | None = None,
    add: Callable[[Path], object] | None = None,
) -> None:
    """Write a bundle; ``directory`` takes its new content at once when all is written, or stays as it was.

    An existing directory is replaced if it is empty or a bundle itself. ``add`` is called with the unfinished
    directory and may put files there, ``report.md`` and pictures. Raises :class:`Refused` with all findings: another
    non-empty directory, values that JSON cannot hold, absolute paths in ``provenance``, a network that is not
    deployable.
    """
    directory, texts = Path(directory), {}
    findings: list[Finding] = []
    for name, value in ((CONFIG, config), (PROVENANCE, provenance), (REPORT, report)):
        if value is not None:
            try:
                texts[name] = _dump(name, value)
            except Refused as error:
                findings.extend(error.findings)
    if PROVENANCE in texts:
        findings.extend(
            Finding(PROVENANCE, f"{text!r} is an absolute path", "leave out where things lay")
            for text in _strings(provenance)
            if PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
        )
    try:
        findings.extend(_occupied(directory))
        if findings:
            raise Refused(findings)
        with _replacing(directory) as beside:
            netx.save(network, beside / NET)
            for name, text in texts.items():
                (beside / name).write_bytes(text)
            if add is not None:
                add(beside)
    except OSError as error:
        raise refuse(str(directory), f"it cannot be written ({error})", "choose another place") from error


def load(directory: str | Path) -> Bundle:
    """Read a bundle back; raises :class:`Refused` for anything missing or invalid. Its files are not trusted."""
    directory = Path(directory)
    if not directory.is_dir():
        raise refuse(str(directory), "there is no such directory", "give one that `ann2loihi convert` has written")
    if not (directory / NET).is_file():
        raise refuse(str(directory), f"no {NET} found", "give a directory that `ann2loihi convert` has written")
    return Bundle(
        netx.read(directory / NET),
        _read(directory / CONFIG),
        _read(directory / PROVENANCE),
        _read(directory / REPORT) if (directory / REPORT).exists() else None,
        directory / NET,
    )


def _is_bundle(directory: Path) -> bool:
    return (directory / CONFIG).is_file() and (directory / NET).is_file()


def _occupied(directory: Path) -> list[Finding]:
    if directory.is_dir() and (_is_bundle(directory) or not any(directory.iterdir())):
        return []
    if directory.exists() or directory.is_symlink():
        return [
            Finding(
                str(directory),
                "it exists and is no bundle: replacing it would destroy other files",
                "give a new or empty directory",
            )
        ]
    return []


@contextmanager
def _replacing(directory: Path) -> Iterator[Path]:
    """Give a new directory beside ``directory`` that takes its place when the block ends well; else it vanishes."""
    directory = directory.resolve()
    directory.parent.mkdir(parents=True, exist_ok=True)
    beside, old = (directory.with_name(f".{uuid4().hex}.{role}") for role in ("partial", "old"))
    beside.mkdir()
    try:
        yield beside
        if directory.exists():
            directory.rename(old)
        beside.rename(directory)
    finally:
        if old.exists() and not directory.exists():
            old.rename(directory)
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _dump(name: str, value: dict[str, Any]) -> bytes:
    remedy = "use dict with string keys, list, str, int, float, bool and None"
    try:
        text = (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise refuse(name, f"it is not JSON ({error})", remedy) from error
    if json.loads(text) != value:
        raise refuse(name, "it would read back as something else (a tuple, or a key that is no string)", remedy)
    return text


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > JSON_LIMIT:
            raise refuse(str(path), f"it has {path.stat().st_size} bytes, above {JSON_LIMIT}", "convert again")
        value = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise refuse(str(path), "it is missing", "convert again") from None
    except Refused:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise refuse(str(path), f"it is not valid JSON ({error})", "convert again") from error
    if not isinstance(value, dict):
        raise refuse(str(path), f"it holds a {type(value).__name__}, not an object", "convert again")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _strings(key)
            yield from _strings(entry)
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _strings(entry)
