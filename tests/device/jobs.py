"""A network that every fault shows in, payloads for it, and runs of them on what is called loihi2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from exporters import device
from sim.network import INPUT, Dense, Edge, Input, Layer, Network

T = 4
MARK = f"fake board of {os.getpid()}"  #: tells the processes of this test run from others


def network() -> Network:
    """3 inputs -> 4 neurons -> 3 neurons -> 2 potentials."""
    rng = np.random.default_rng(7)

    def layer(name: str, size: int, source: str, fan_in: int, theta: int) -> Layer:
        weight = rng.integers(10, 60, (size, fan_in))
        bias = rng.integers(-9, 10, (T, size))
        kind: Any = "spiking" if theta else "readout"
        return Layer(name, (size,), (Edge(source, Dense(weight)),), theta, np.full(size, theta // 2), bias, kind)

    return Network(
        Input((3,)),
        (layer("first", 4, INPUT, 3, 600), layer("second", 3, "first", 4, 100), layer("out", 2, "second", 3, 0)),
        T,
    )


NETWORK = network()
PAYLOAD = np.random.default_rng(8).integers(0, 9, (5, 3)).astype(np.int32)


def on_board(record: Path, **options: Any) -> device.Record:
    return device.run(NETWORK, PAYLOAD, "loihi2", record, **options)


def left() -> set[str]:
    """Processes that the fake board has started, and that are still there."""
    return set(subprocess.run(["pgrep", "-f", MARK], capture_output=True, text=True).stdout.split())


def apart(record: Path, *, pace: float = 0.0) -> subprocess.Popen[bytes]:
    """The same run as :func:`on_board`, going on with a record, in a process of its own that may be killed."""
    code = (
        "import sys; from pathlib import Path; from exporters.device import visit; from jobs import on_board;"
        "visit.TARGETS['loihi2'] = 'fake_board:Board'; on_board(Path(sys.argv[1]), resume=True)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "FAKE_BOARD_PACE": str(pace)}
    return subprocess.Popen([sys.executable, "-c", code, record], env=environment)
