"""Every engine that runs a network, by name, and the proof that they agree spike for spike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np

from exporters import netx
from sim.findings import Finding, refuse
from sim.network import Network
from sim.trace import Difference, Trace, first_difference

Engine = Callable[[Network, np.ndarray], Trace]


def _reference(network: Network, payload: np.ndarray) -> Trace:
    from sim import reference

    return reference.run(network, payload)


def _fast(network: Network, payload: np.ndarray, record: bool = True) -> Trace:
    from sim import fast

    return fast.run(network, payload, record=record)


def _lava(network: Network, payload: np.ndarray) -> Trace:
    from sim import on_lava

    return on_lava.run(network, payload, form="native")


def _lava_stock(network: Network, payload: np.ndarray) -> Trace:
    from sim import on_lava

    return on_lava.run(network, payload, form="stock")


def _netx(network: Network, payload: np.ndarray) -> Trace:
    with TemporaryDirectory() as directory:
        path = Path(directory, "network.net")
        netx.write(network, path)
        return _netx_file(path, payload)


def _netx_file(path: str | Path, payload: np.ndarray) -> Trace:
    return netx.load(path).run(payload)


#: (network, payload (B, *input.shape)) -> trace. "netx" goes through a ``.net`` and lava-dl's own loader.
ENGINES: Mapping[str, Engine] = MappingProxyType(
    {"reference": _reference, "fast": _fast, "lava": _lava, "lava-stock": _lava_stock, "netx": _netx}
)
_NEEDS = {"lava": "lava-nc", "lava-stock": "lava-nc", "netx": "lava-dl"}  # the distributions, by engine


@dataclass(frozen=True)
class EngineRun:
    """One engine's part in a verification."""

    engine: str
    differences: int  #: spikes and potentials that disagree with the first engine
    neuron_steps: int  #: (sample, step, neuron) whose spikes were compared; of the first engine: recorded
    seconds: float  #: wall time, building and loading included
    logits: np.ndarray  #: readout potentials at each window step, (B, T, N)


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` compared and found."""

    samples: int
    runs: tuple[EngineRun, ...]  #: the first engine is what the others are compared with
    spikes: int  #: of the first engine, over all layers and samples: agreement in silence would prove little
    difference: Difference | None  #: the earliest one of the first engine that disagrees
    skipped: tuple[Finding, ...] = ()  #: engines that were not asked for by name and cannot run, each with the reason

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the logits as JSON types, as the report and the command line show it."""
        return {
            "samples": self.samples,
            "engines": [{k: v for k, v in vars(run).items() if k != "logits"} for run in self.runs],
            "spikes": self.spikes,
            "difference": None if self.difference is None else str(self.difference),
            "skipped": [str(finding) for finding in self.skipped],
            "summary": self.summary,
        }

    @property
    def summary(self) -> str:
        """The outcome in a sentence, then one line per engine that was left out."""
        names = ", ".join(run.engine for run in self.runs)
        outcome = (
            f"{names} agree: {self.samples} samples, {self.spikes} spikes, "
            f"{sum(run.neuron_steps for run in self.runs[1:])} neuron-steps compared, 0 differences"
            if self.difference is None
            else f"{names} differ: {self.difference}"
        )
        return "\n".join([outcome, *(f"not run: {finding}" for finding in self.skipped)])


def available_engines() -> tuple[str, ...]:
    """Name the engines whose packages are installed here, in the order of ``ENGINES``."""
    installed = {name for name in set(_NEEDS.values()) if any(True for _ in metadata.distributions(name=name))}
    return tuple(engine for engine in ENGINES if engine not in _NEEDS or _NEEDS[engine] in installed)


def run(engine: str, network: Network, payload: np.ndarray, *, record: bool = True) -> Trace:
    """Run integer payloads ``(B, *input.shape)`` on the engine of that name; :class:`Refused` lists the known ones.

    ``record=False`` asks for the readout alone. Only ``fast`` then saves the memory that all other layers would take.
    """
    _require_known([engine])
    if engine == "fast":
        return _fast(network, payload, record)
    return ENGINES[engine](network, payload)


def verify(
    network: Network,
    payload: np.ndarray,
    engines: Sequence[str] | None = None,
    *,
    net_path: str | Path | None = None,
) -> Verification:
    """Run integer payloads ``(B, *input.shape)`` on several engines and compare each with the first one, bit for bit.

    ``engines`` are all that can run this network here, unless named. ``net_path`` makes the netx engine load that
    file, which must hold ``network``, instead of a temporary one. A disagreement is the result's ``difference``.
    Raises :class:`Refused` for an unknown name, fewer than two engines, no samples or a named engine that cannot run,
    and :class:`sim.fixedpoint.RegisterOverflow` for a potential outside the registers.
    """
    skipped: list[Finding] = []
    if engines is None:
        skipped = _obstacles(network)
        engines = [name for name in ENGINES if name not in {finding.where for finding in skipped}]
    _require_known(engines)
    if len(set(engines)) < max(2, len(engines)):
        raise refuse("engines", f"{', '.join(engines) or 'none'} given", "give at least two different ones to compare")
    payload = network.payload(payload)
    if not len(payload):
        raise refuse("payload", "no samples", "agreement on nothing proves nothing: give at least one")
    if net_path is not None and netx.read(net_path) != network:
        raise refuse(str(net_path), "it holds another network", "give the file that was written from this one")
    runs: list[EngineRun] = []
    difference: Difference | None = None
    for name in engines:
        start = time.perf_counter()
        if name == "netx" and net_path is not None:
            trace = _netx_file(net_path, payload)
        else:
            trace = ENGINES[name](network, payload)
        seconds = time.perf_counter() - start
        missing = [layer.name for layer in network.layers if layer.name not in trace.spikes]
        if missing:
            raise RuntimeError(f"engine {name} recorded no spikes of {', '.join(missing)}")
        if not runs:
            first = trace
        difference = difference or first_difference(first, trace)
        runs.append(
            EngineRun(
                name,
                _count(first.spikes, trace.spikes) + _count(first.potentials, trace.potentials),
                sum(spikes.size for spikes in trace.spikes.values()),
                seconds,
                trace.logits,
            )
        )
    spikes = sum(int(s.sum(dtype=np.int64)) for s in first.spikes.values())
    return Verification(len(payload), tuple(runs), spikes, difference, tuple(skipped))


def _require_known(engines: Sequence[str]) -> None:
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise refuse("engines", f"{', '.join(map(repr, unknown))} not known", f"use {', '.join(ENGINES)}")


def _obstacles(network: Network) -> list[Finding]:
    """Say which engines cannot run this network here, and why."""
    found = [
        Finding(name, f"{need} is not installed", "it exists for Python 3.10 only: `uv sync --python 3.10`")
        for name, need in _NEEDS.items()
        if name not in available_engines()
    ]
    reasons = netx.check(network)
    if reasons and all(finding.where != "netx" for finding in found):
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        problem = f"stock netx cannot build this network ({reasons[0].where}: {reasons[0].problem}{more})"
        found.append(Finding("netx", problem, "its file loads with exporters.netx.load, from stock processes"))
    return found


def _count(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> int:
    return sum(int(np.count_nonzero(left[name] != right[name])) for name in left.keys() & right.keys())
