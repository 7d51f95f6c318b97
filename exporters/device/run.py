"""Samples on a target, and everything that comes back in a record."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, get_args

import numpy as np

from exporters.bundle import PACKAGES, packages
from exporters.device.record import Contents, Record, Writer
from exporters.device.target import GENERATIONS, Answer, Job, Request, Unavailable, doubts, unconfirmed
from exporters.device.visit import LOADING, PATIENCE, Visit
from sim.arguments import checked
from sim.findings import Finding, refuse
from sim.network import Network
from sim.on_lava.stepped import Schedule
from sim.progress import counting


@checked
def run(
    network: Network,
    payload: np.ndarray,
    target: str,
    record: str | Path,
    *,
    resume: bool = False,
    labels: np.ndarray | None = None,
    task: str | None = None,
    data: str | None = None,
    request: Request | None = None,
    read: Sequence[str] | None = None,
    schedule: Schedule = "written",
    patience: float = PATIENCE,
    loading: float = LOADING,
) -> Record:
    """Run integer payloads ``(B, *input.shape)`` on the target of that name and return the record of it, open.

    ``resume`` goes on with a record of the same run, where there is one. ``read`` names layers whose spikes and
    potentials come back beside the readout's, all unless given; ``task`` and ``data`` say what ``labels`` (B, ...) and
    payloads are. Raises :class:`exporters.device.Unavailable` for a target that is absent or not what was asked for,
    has not loaded in ``loading`` seconds, hangs for ``patience`` seconds or dies; what has been answered stays in the
    record. Raises :class:`sim.findings.Refused` for what the target would compute wrongly and a record that cannot be
    written.
    """
    path, request, payload = Path(record), request or Request(), network.payload(payload)
    if not len(payload):
        raise refuse("payload", "no samples", "give at least one")
    if schedule not in get_args(Schedule):
        raise refuse("schedule", f"unknown value {schedule!r}", f"use one of {', '.join(get_args(Schedule))}")
    if labels is not None and labels.shape[:1] != (len(payload),):
        raise refuse("labels", f"shape {labels.shape} for {len(payload)} samples", "give one for every sample")
    if not path.absolute().parent.is_dir():
        raise refuse(str(path), "it lies in no directory", "create that first, or choose another place")
    if schedule == "clock" and network.input.form != "payload":
        problem = f"inputs come as {network.input.form}, whose biases the host writes anyway"
        raise refuse("schedule", problem, "use 'written', or convert with --input-form payload")
    if request.generation not in GENERATIONS:
        raise refuse("--generation", f"{request.generation!r}", f"use one of {', '.join(GENERATIONS)}")
    if target == "lava-cpu" and (request.partition or request.board or request.host):
        asked = next(name for name in ("partition", "board", "host") if getattr(request, name))
        raise refuse(f"--{asked}", "it is of a board, and lava-cpu is this computer", "leave it out, or ask for loihi2")
    if request.host is not None and (request.partition or request.board):
        raise refuse("--host", f"{request.host} beside a partition or board of SLURM", "give one or the other")
    wanted = {network.readout.name, *(network._by_name if read is None else read)}
    if unknown := wanted - network._by_name.keys():
        raise refuse("read", f"no layers {', '.join(sorted(unknown))}", f"use {', '.join(network._by_name)}")
    names = tuple(layer.name for layer in network.layers if layer.name in wanted)
    job: dict[str, Any] = {"target": target, "schedule": schedule, "read": list(names)}
    done = 0
    if path.exists():
        done = _resumable(path, resume, network, payload, labels, job | {"task": task})
        if done == len(payload):
            return Record(path)
    with Visit(target, Job(network, payload[done:], names, request, schedule), patience, loading) as visit:
        if found := doubts(target, request, network, visit.stamp):
            raise Unavailable(found)
        if not path.exists():
            job |= {"request": vars(request), "task": task, "data": data}
            Writer.create(path, Contents(network, payload, labels, job)).__exit__(None, None, None)
        with Writer(path) as writer:
            try:
                _collect(visit, writer, network, names, request, len(payload))
            except Unavailable as error:
                kept = Finding(str(path), f"{writer.done} of {len(payload)} samples are in it", "go on with --resume")
                raise Unavailable([*error.findings, kept]) from None
    return Record(path)


def _resumable(
    path: Path, resume: bool, network: Network, payload: np.ndarray, labels: np.ndarray | None, job: dict[str, Any]
) -> int:
    """Count the samples of a record that this run would have written too."""
    if not resume:
        raise refuse(str(path), "it exists", "go on with it by --resume, or give another path")
    with Record(path) as old:
        other = [key for key, value in job.items() if old.job.get(key) != value]
        other += old.differs(network, payload, labels)
        if other:
            raise refuse(str(path), f"it is of another run: {', '.join(other)} differ", "give another path")
        return old.done


def _collect(
    visit: Visit, writer: Writer, network: Network, names: Sequence[str], request: Request, samples: int
) -> None:
    """Write what comes back, sample by sample."""
    number = writer.visit(
        {
            "ran_on": visit.stamp.as_dict(),
            "unconfirmed": unconfirmed(request, visit.stamp),
            "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "packages": packages((*PACKAGES, "lava-loihi", "nxcore")),
        }
    )
    start = time.perf_counter()
    with counting(f"running on {writer.record.job['target']}", samples - writer.done) as advance:
        for answer in visit.answers(writer.done):
            if writer.done == samples:
                raise Unavailable(Finding("target", f"it answers more than {samples} samples", "report it"))
            _check(answer, network, names, writer.done)
            now = time.perf_counter()
            writer.append(answer, number, now - start)
            start = now
            advance(1)
    if writer.done < samples:
        raise Unavailable(Finding("target", f"it ended before sample {writer.done} of {samples}", "run it again"))
    writer.probed(number, visit.probed)


def _check(answer: Answer, network: Network, names: Sequence[str], sample: int) -> None:
    """Refuse an answer that is not of the form that was asked for."""
    for kind, arrays, limits in (("spikes", answer.spikes, (0, 1)), ("potentials", answer.potentials, _INT32)):
        for name in names:
            wanted = (len(network.busy(network[name])), *network[name].shape)
            array = arrays.get(name)
            if array is None or array.shape != wanted or array.dtype.kind not in "iub":
                given = "none" if array is None else f"{array.dtype} {array.shape}"
                problem = f"{kind} of layer {name} are {given} instead of {wanted}"
            elif array.min() < limits[0] or array.max() > limits[1]:
                problem = f"{kind} of layer {name} reach {array.min()}..{array.max()}"
            else:
                continue
            raise Unavailable(Finding(f"target, sample {sample}", problem, "see what it lost on the way"))


_INT32 = (-(1 << 31), (1 << 31) - 1)
