"""The artefact directory: a network with the recipe that made it, where it came from and how good it is.

====================  =============================================================================================
``network.net``       the network; the file says who can load it (:func:`exporters.netx.loaded_by`)
``config.json``       the conversion's recipe
``provenance.json``   what :func:`provenance` collects
``report.json``       an :class:`exporters.report.Report`, optional
``report.html``       the same as a page that needs nothing else, never read; :func:`write_page` makes it again
``report.md``         the same as text, never read; the pictures that it shows lie beside it
``inputs.npz``        payloads ``x`` on which engines differ, of a bundle that shows that (:mod:`exporters.reduction`)
====================  =============================================================================================
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from exporters import files, netx, nir
from exporters.report import Report
from exporters.report.markdown import PICTURES
from sim.arguments import checked
from sim.findings import Finding, Refused, refuse
from sim.network import Network
from sim.stock import peak_outside

NET = "network.net"
CONFIG, PROVENANCE, REPORT, TEXT = "config.json", "provenance.json", "report.json", "report.md"
INPUTS = "inputs.npz"
PAGE = "report.html"
PAGE_BEGINNING = b"<!doctype html>\n<!-- ann2loihi report -->\n"
#: How every file begins that :func:`save` can write.
BEGINNINGS = {
    NET: b"\x89HDF\r\n\x1a\n",
    **dict.fromkeys((CONFIG, PROVENANCE, REPORT), b"{"),
    TEXT: b"# ",
    INPUTS: b"PK\x03\x04",
    PAGE: PAGE_BEGINNING,
    **dict.fromkeys(PICTURES, b"\x89PNG\r\n\x1a\n"),
}
MEASURED_AT_ONCE = 8  #: inputs; all potentials of so many are held
JSON_LIMIT = 1 << 24  #: bytes of a JSON file that is read; a report holds thousands of numbers, not millions

#: Distributions whose version may change a result; those that are not installed are left out.
PACKAGES = ("ann2loihi", "h5py", "lava-dl", "lava-nc", "matplotlib", "numpy", "scikit-learn", "torch", "torchvision")


@dataclass(frozen=True)
class Bundle:
    """What :func:`load` found."""

    network: Network
    config: dict[str, Any]
    provenance: dict[str, Any]
    report: Report | None  #: None where nothing was measured
    net_path: Path | None  #: the ``.net`` that the network was read from; None where it is in NIR


def provenance(*, seed: int | None, sha256: Mapping[str, str], processor: Mapping[str, str | int]) -> dict[str, Any]:
    """Collect what it takes to convert again: versions, platform, seed, time and digests; no user, host or path names.

    ``sha256`` holds the digests, by name, of what the conversion was made from (see :func:`digest`), ``processor`` what
    decides the order in which the converter's library sums floats.
    """
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": dict(processor),
        "packages": packages(PACKAGES),
        "seed": seed,
        "sha256": dict(sha256),
    }


def packages(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those distributions that are installed."""
    return {name: found.version for name in names for found in metadata.distributions(name=name)}


def digest(arrays: Mapping[str, Any]) -> str:
    """SHA-256, hexadecimal, over names, dtypes, shapes and values, in the order of the names.

    Arrays and CPU tensors of any shape and of every dtype that NumPy has.
    """
    total = hashlib.sha256()
    for name in sorted(arrays):
        value = np.asarray(arrays[name])
        total.update(digest_header(name, value.dtype, value.shape))
        total.update(value.tobytes())
    return total.hexdigest()


def digest_header(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Return what :func:`digest` puts before the bytes of an array, for who adds these in parts."""
    return f"{name} {dtype.str} {shape}\n".encode()


@checked
def save(
    directory: str | Path,
    network: Network,
    *,
    config: dict[str, Any],
    provenance: dict[str, Any],
    report: Report | None = None,
    inputs: np.ndarray | None = None,
) -> None:
    """Write a bundle; ``directory`` takes its new content at once when all is written, or stays as it was.

    An existing directory is replaced if it is empty or a bundle itself, with nothing else in it. A ``report`` is
    written as JSON and as Markdown with the pictures that there is data for. ``inputs`` (B, *input's model_shape) are
    kept for whoever runs the network again. Raises :class:`Refused` with all findings: a place that
    :func:`check_place` refuses, a full disk, values that JSON cannot hold, absolute paths in ``provenance``, a network
    that is not deployable.
    """
    directory, texts = Path(directory), {}
    findings: list[Finding] = []
    values = {CONFIG: config, PROVENANCE: provenance} | ({} if report is None else {REPORT: report.as_dict()})
    for name, value in values.items():
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
    findings.extend(files.obstacles(directory, _foreign))
    if findings:
        raise Refused(findings)
    contents = {NET: netx.dump(network)} | texts
    if report is not None:
        contents |= _illustrated(report, network)
        contents[PAGE] = _page(network, config, provenance, report)
    if inputs is not None:
        archive = io.BytesIO()
        np.savez_compressed(archive, x=inputs.astype(np.float32))  # bytes would be taken for images
        contents |= {INPUTS: archive.getvalue()}
    files.replace_directory(directory, contents, BEGINNINGS, _foreign)


@checked
def check_place(directory: str | Path) -> None:
    """Raise :class:`Refused` if :func:`save` could not write a bundle there; to be called before long work.

    That is for a link, a file, a mount point, a place without permission, and a directory with anybody else's files.
    """
    if findings := files.obstacles(Path(directory), _foreign):
        raise Refused(findings)


def apart(path: str | Path) -> None:
    """Refuse a path at which a file of a conversion lies: another one in its place would make the directory none."""
    path = Path(path)
    if path.name in BEGINNINGS and all((path.parent / name).is_file() for name in (NET, CONFIG)):
        raise refuse(str(path), "belongs to the conversion in its directory", "give another name")


def _illustrated(report: Report, network: Network) -> dict[str, bytes]:
    """Render ``report.md`` and the pictures that there is data for, by file name."""
    from exporters.report import figures, markdown  # matplotlib loads where something is drawn

    pictures = {}
    for name, figure in figures.drawn(report, network).items():
        picture = io.BytesIO()
        figure.savefig(picture, dpi=figures.DPI, format="png")
        pictures[name] = picture.getvalue()
    return {TEXT: markdown.render(report, tuple(pictures)).encode(), **pictures}


@checked
def write_page(directory: str | Path) -> Path:
    """Write ``report.html`` again, from what else is in a bundle; returns its path.

    Raises :class:`Refused` for what :func:`load` refuses, a bundle without a report, and a file of that name that is
    no such page.
    """
    bundle, path = load(directory), Path(directory) / PAGE
    if bundle.report is None:
        raise refuse(str(directory), f"it holds no {REPORT}: nothing was measured", "convert again, with `convert`")
    if os.path.lexists(path) and not _is_ours(path):
        raise refuse(str(path), "it is no page of ours", "move it away")
    try:
        page = _page(bundle.network, bundle.config, bundle.provenance, bundle.report)
    except (ArithmeticError, ValueError) as error:  # the file's own numbers may be too large for any axis
        problem = f"it cannot be drawn ({' '.join(str(error).split())})"
        raise refuse(str(Path(directory) / REPORT), problem, "convert again") from error
    files.replace_file(path, page)
    return path


@checked
def keep_report(directory: str | Path, report: Report) -> None:
    """Replace the report of a bundle in all its forms but pictures, which stay those of the report before.

    Raises :class:`Refused` for what :func:`load` refuses, what is no file of ours, and what cannot be written.
    """
    bundle, directory = load(directory), Path(directory)
    from exporters.report import markdown

    pictures = tuple(name for name in PICTURES if (directory / name).is_file())
    contents = {
        REPORT: _dump(REPORT, report.as_dict()),
        TEXT: markdown.render(report, pictures).encode(),
        PAGE: _page(bundle.network, bundle.config, bundle.provenance, report),
    }
    if foreign := [name for name in contents if os.path.lexists(directory / name) and not _is_ours(directory / name)]:
        raise refuse(str(directory / foreign[0]), "it is no file of ours", "move it away")
    for name, data in contents.items():
        files.replace_file(directory / name, data)


def _page(network: Network, config: Mapping[str, Any], provenance: Mapping[str, Any], report: Report) -> bytes:
    from exporters.report import page

    return (PAGE_BEGINNING.decode() + page.render(report, network, config, provenance)).encode()


@checked
def load(directory: str | Path) -> Bundle:
    """Read a bundle back; raises :class:`Refused` for anything missing or invalid. Its files are not trusted."""
    directory = Path(directory)
    files.recover(directory)
    if not directory.is_dir():
        raise refuse(str(directory), "there is no such directory", "give one that `ann2loihi convert` has written")
    if not (directory / NET).is_file():
        raise refuse(str(directory), f"no {NET} found", "give a directory that `ann2loihi convert` has written")
    return Bundle(
        netx.read(directory / NET),
        _read(directory / CONFIG),
        _read(directory / PROVENANCE),
        read_report(report) if os.path.lexists(report := directory / REPORT) else None,
        directory / NET,
    )


def read(path: str | Path) -> Bundle:
    """Read a bundle, or a single ``.net`` or NIR file as one of which nothing but the network is known.

    Raises :class:`Refused` for anything else.
    """
    if not os.path.exists(path):
        raise refuse(
            str(path), "there is no such directory, and no such file", "give what `ann2loihi convert` has written"
        )
    if os.path.isdir(path):
        return load(path)
    if nir.is_nir(Path(path)):
        return Bundle(nir.read(path), {}, {}, None, None)
    return Bundle(netx.read(path), {}, {}, None, Path(path))


def read_report(path: str | Path) -> Report:
    """Read a ``report.json``, which is not trusted; raises :class:`Refused` for anything else."""
    return Report.from_dict(_read(Path(path)), str(path))


def read_network(path: str | Path) -> Network:
    """Read the network of a bundle, of a single ``.net``, or of a NIR file, as :func:`read` does."""
    return read(path).network


@checked
def legality(path: str | Path, x: Any = None) -> list[netx.Issue]:
    """List what stands in the way of Loihi 2, or is to be known there, of a bundle or of any netx ``.net``.

    What no bound proves is measured on model inputs ``x`` (B, *input's model_shape), where given, or taken from the
    bundle's report. Raises :class:`Refused` for what cannot be read.
    """
    path, found = Path(path), None
    if nir.is_nir(path):
        remedy = f"write one: `ann2loihi export {path} -o network.net`"
        raise refuse(str(path), "it is in NIR, and what is checked is a .net", remedy)
    if os.path.isdir(path):
        bundle = load(path)
        network, path = bundle.network, path / NET
        rows = () if bundle.report is None else bundle.report.layers
        if known := {row.name: row.peak for row in rows if row.peak is not None}:
            outside = {row.name: row.outside for row in rows if row.outside is not None}
            found = netx.Measured("the calibration inputs", known, outside)
    elif x is not None:
        network = netx.read(path)
    if x is not None:
        found = measured(network, network.input.encode(x))
    return netx.legality(path, found)


def measured(network: Network, payload: np.ndarray) -> netx.Measured:
    """Run a network on an encoded payload, and return what its registers reach, whether they hold it or not."""
    from exporters.engines import run  # torch loads where something runs

    if not len(payload):
        raise refuse("x", "no samples", "give at least one, or none at all")
    peak = dict.fromkeys((layer.name for layer in network.layers), 0)
    outside = {layer.name: 0 for layer in network.layers if layer.kind == "spiking"}
    for start in range(0, len(payload), MEASURED_AT_ONCE):
        trace = run("fast", network, payload[start : start + MEASURED_AT_ONCE], overflow="count")
        for layer in network.layers:
            peak[layer.name] = max(peak[layer.name], trace.peak[layer.name])
            if layer.name in outside:
                held = peak_outside(network, layer, trace.potentials[layer.name])
                outside[layer.name] = max(outside[layer.name], held)
    return netx.Measured(f"{len(payload)} inputs", peak, outside)


def _foreign(directory: Path) -> list[str]:
    """Name what is in a directory and not of a bundle; everything, where it holds none."""
    found = sorted(path.name for path in directory.iterdir())
    foreign = [name for name in found if not _is_ours(directory / name)]
    return foreign or ([] if {NET, CONFIG} <= set(found) else found)


def _is_ours(path: Path) -> bool:
    beginning = BEGINNINGS.get(path.name)
    try:
        if beginning is None or not stat.S_ISREG(path.lstat().st_mode):
            return False
        with path.open("rb") as file:
            return file.read(len(beginning)) == beginning and (path.name != NET or netx.is_ours(path))
    except OSError:
        return False


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
        if not stat.S_ISREG(path.stat().st_mode):
            raise refuse(str(path), "it is no file", "convert again")
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
