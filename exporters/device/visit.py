"""A target in a process of its own, which is asked with patience and never trusted to end by itself."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from tempfile import TemporaryFile
from types import TracebackType
from typing import Any

from exporters.device.target import Answer, Job, Target, Unavailable
from sim.findings import Finding, Refused, refuse

#: By name: module and class of the targets.
TARGETS = {"lava-cpu": "exporters.device.lava:LavaCpu", "loihi2": "exporters.device.lava:Loihi2"}
PATIENCE = 600.0  #: seconds for every step
LOADING = 3600.0  #: seconds until a network is loaded, with waiting for a board in SLURM's queue
TICK = 0.1  #: seconds between looks at whether the process lives
# Not run as a script: Lava would take it for one that defines processes, and import it once more.
COMMAND = "import sys; from exporters.device import visit; visit.serve(int(sys.argv[1]))"


class Visit:
    """One stay at a target, from loading a network to letting go. Use as a context manager: leaving it kills all."""

    def __init__(self, target: str, job: Job, patience: float = PATIENCE, loading: float = LOADING) -> None:
        """Load ``job`` on the target of that name, in ``loading`` seconds; no step may take more than ``patience``.

        Raises :class:`Unavailable` where it cannot run here, hangs or dies, and :class:`Refused` for an unknown name
        and a network that the target cannot run.
        """
        if target not in TARGETS:
            raise refuse("--target", f"{target!r} is not known", f"use {' or '.join(TARGETS)}")
        if os.name == "nt":
            raise Unavailable(Finding(target, "processes cannot be watched on Windows", "use Linux"))
        self._target, self._patience, self._where = target, patience, "loading the network"
        ours, theirs = socket.socketpair()
        self._output = TemporaryFile("w+", errors="replace")  # noqa: SIM115 - it lives as long as the visit
        with ours, theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
                start_new_session=True,
            )
            self._connection = Connection(ours.detach())
        self.probed: Mapping[str, float] = {}  #: what the target has probed, after the last answer
        try:
            self._connection.send((TARGETS[target], job))
            kind, self.stamp = self._receive(loading)
            if kind != "stamp":
                raise self._failed(f"it sent {kind!r} and never said where it runs")
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Visit:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def answers(self, first: int = 0) -> Iterator[Answer]:
        """Yield the answers; failures call the job's samples by number, from ``first``. Raises as the visit does."""
        while True:
            kind, value = self._receive(self._patience, first)
            if kind == "answer":
                yield value
            elif kind == "probed":
                self.probed = value
                return
            else:
                raise self._failed(f"it sent {kind!r} instead of an answer")

    def _receive(self, patience: float, first: int = 0) -> tuple[str, Any]:
        """Wait for the next message that is more than a sign of life."""
        while True:
            until = time.monotonic() + patience
            while not self._connection.poll(TICK):
                if self._process.poll() is not None and not self._connection.poll(0):
                    raise self._failed(f"its process died ({_death(self._process.returncode)})")
                if time.monotonic() > until:
                    raise self._failed(f"no answer within {patience:g} s")
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(10 * TICK)
                raise self._failed(f"its process died ({_death(self._process.returncode)})") from None
            kind, value = message
            if kind == "at":
                self._where = f"sample {first + value[0]}, step {value[1]}"
            elif kind == "refused":
                absent, findings = value
                raise (Unavailable if absent else Refused)(findings)
            elif kind == "failed":
                raise self._failed(value)
            else:
                if kind == "answer":
                    self._where = "between samples"
                return kind, value

    def _failed(self, problem: str) -> Unavailable:
        """Say what went wrong and where, with the last line that the process has printed."""
        self._output.seek(0)
        said = [line.strip() for line in self._output if line.strip()]
        last = f"; it printed last: {said[-1][:200]!r}" if said else ""
        remedy = "see that the target runs at all with `ann2loihi device selftest`"
        return Unavailable(Finding(f"{self._target}, {self._where}", problem + last, remedy))

    def _end(self) -> None:
        """Kill the process and whatever it has started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._connection.close()
        self._output.close()


def _death(code: int | None) -> str:
    if code is None:
        return "its line was cut"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def serve(descriptor: int) -> None:
    """Run one job in this process and send what happens, for :class:`Visit`."""
    connection = Connection(descriptor)
    name, job = connection.recv()
    threading.Thread(target=_follow, args=(connection,), daemon=True).start()
    try:
        module, _, maker = name.partition(":")
        target: Target = getattr(importlib.import_module(module), maker)()
        connection.send(("stamp", target.open(job)))
        for answer in target.answers(lambda sample, step: connection.send(("at", (sample, step)))):
            connection.send(("answer", answer))
        connection.send(("probed", dict(target.close())))
    except Refused as error:
        connection.send(("refused", (isinstance(error, Unavailable), error.findings)))
    except Exception as error:  # whatever Lava and its extension raise
        connection.send(("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"))


def _follow(connection: Connection) -> None:
    """Die with the process that asks: nothing more ever comes from it but the end of its line."""
    with suppress(EOFError, OSError):
        connection.recv()
    os.killpg(0, signal.SIGKILL)
