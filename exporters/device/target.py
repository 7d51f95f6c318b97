"""What runs networks for :mod:`exporters.device`: the interface, what goes through it, and what to believe of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from sim.findings import Finding, Refused
from sim.network import Network
from sim.on_lava.stepped import Placed, Schedule

GENERATIONS = ("N3B2", "N3B3", "N3C1", "N3D1")  #: of Loihi 2; most systems of Intel's research cloud are N3B3
NEUROCORES = "NeuroCore"  #: how the resources of Lava's models end that need a neuromorphic chip


class Unavailable(Refused):
    """A target that is absent, is not what was asked for, or stopped answering."""

    exit_code = 3


@dataclass(frozen=True)
class Request:
    """Which system somebody wants; None where any will do."""

    partition: str | None = None  #: of SLURM
    board: str | None = None  #: node of SLURM
    host: str | None = None  #: address of a system on the network, without SLURM
    generation: str = "N3B3"


@dataclass(frozen=True, eq=False)
class Job:
    """What a target has to run."""

    network: Network
    payload: np.ndarray  #: int32 (B, *input.shape)
    read: tuple[str, ...]  #: layers whose spikes and potentials come back, the readout among them
    request: Request = field(default_factory=Request)
    schedule: Schedule = "written"


@dataclass(frozen=True)
class Stamp:
    """Where a network runs, by what the runtime says of itself and never by what was asked for."""

    placed: tuple[Placed, ...]
    nodes: tuple[str, ...]  #: types of the systems that processes were mapped to
    partition: str | None = None  #: None where nobody but the user says so
    board: str | None = None
    host: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON types; what is alike is said once, with how often it occurs."""
        models: dict[str, int] = {}
        for process in self.placed:
            key = f"{process.model} on {'+'.join(process.resources) or 'nothing'}, {process.node}"
            models[key] = models.get(key, 0) + 1
        return {
            "models": dict(sorted(models.items())),
            "nodes": list(self.nodes),
            **{name: getattr(self, name) for name in ("partition", "board", "host")},
        }


@dataclass(frozen=True, eq=False)
class Answer:
    """What one sample did on a target, as :class:`sim.trace.Trace` has it, without the batch dimension."""

    spikes: dict[str, np.ndarray]  #: by layer, uint8 (busy steps, *shape)
    potentials: dict[str, np.ndarray]  #: by layer, su after the reset, int32 (busy steps, *shape)


class Target(Protocol):
    """Something that runs networks. It lives in a process of its own, which may hang, die and be killed."""

    def open(self, job: Job) -> Stamp:
        """Build and load the network; raises :class:`sim.findings.Refused` where that cannot be."""
        ...

    def answers(self, at: Callable[[int, int], None]) -> Iterator[Answer]:
        """Run the samples one by one; ``at(sample, step)`` is called before every step."""
        ...

    def close(self) -> Mapping[str, float]:
        """Let go of the system; returns what was probed on it: ``total_power`` and ``static_power``, W."""
        ...


def doubts(target: str, request: Request, network: Network, stamp: Stamp) -> list[Finding]:
    """List what a stamp has against the claim that ``network`` runs on what was asked for."""
    found = []
    silicon = target == "loihi2"
    by_name = {process.name: process for process in stamp.placed}
    for layer in network.layers:
        process = by_name.get(layer.name)
        if process is None:
            found.append(
                Finding(layer.name, "the runtime knows no neurons of this layer", "report it with the network")
            )
        elif any(needed.endswith(NEUROCORES) for needed in process.resources) != silicon:
            where = f"{process.model} on {', '.join(process.resources)}"
            remedy = f"repair what Lava is told, or ask for {'lava-cpu' if silicon else 'loihi2'}"
            found.append(Finding(layer.name, f"it runs as {where}, not on {target}", remedy))
    for name in ("partition", "board", "host"):
        asked, given = getattr(request, name), getattr(stamp, name)
        if asked is not None and given is not None and asked != given:
            remedy = "ask for that, or see why the scheduler chose it"
            found.append(Finding(f"--{name}", f"asked for {asked}, but it runs on {given}", remedy))
    return found


def unconfirmed(request: Request, stamp: Stamp) -> list[str]:
    """Name what was asked for and what the runtime does not tell."""
    return [
        name
        for name in ("partition", "board", "host")
        if getattr(request, name) is not None and getattr(stamp, name) is None
    ]
