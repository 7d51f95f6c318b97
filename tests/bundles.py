"""Small bundles, and what is in them."""

from __future__ import annotations

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from reports import REPORT

from exporters import bundle
from sim.network import INPUT, Dense, Edge, Input, Layer, Network

CONFIG = {"timesteps": 2, "method": "exact", "chip": "loihi2"}
PROVENANCE = {"seed": 1, "packages": {"numpy": "1.26"}, "created": "2026-01-01T00:00:00+00:00"}


def network(skip: bool = False, weight: int = 5) -> Network:
    """Input 2 -> 3 -> readout 2; with ``skip`` the input also feeds the readout, which netx cannot build."""

    def layer(name: str, size: int, kind: Any, *edges: Edge) -> Layer:
        return Layer(name, (size,), edges, 64 * (kind == "spiking"), np.zeros(size, int), np.ones((2, size), int), kind)

    hidden = layer("hidden", 3, "spiking", Edge(INPUT, Dense(np.full((3, 2), weight))))
    skipped = (Edge(INPUT, Dense(np.full((2, 2), 7))),) if skip else ()
    readout = layer("readout", 2, "readout", Edge("hidden", Dense(np.full((2, 3), 4))), *skipped)
    return Network(Input((2,)), (hidden, readout), 2)


def save(directory: Path, **changed: Any) -> None:
    bundle.save(**{"directory": directory, "network": network(), "config": CONFIG, "provenance": PROVENANCE} | changed)


@functools.cache
def _reported() -> dict[str, bytes]:
    with TemporaryDirectory() as folder:
        save(Path(folder, "out"), report=REPORT)
        return contents(Path(folder, "out"))


def save_reported(directory: Path) -> Path:
    """What ``save`` writes with a report, drawn once: pictures take half a second."""
    directory.mkdir()
    for name, data in _reported().items():
        (directory / name).write_bytes(data)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}
