"""Every engine that runs a network, as a record, and the proof that they agree spike for spike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np

from exporters import netx
from exporters.netx.content import NETX
from sim import inputs as input_forms
from sim.arguments import checked
from sim.chip import LOIHI2, Chip
from sim.findings import Finding, Refused, refuse
from sim.fixedpoint import Policy, RegisterOverflow
from sim.network import InputForm, Network
from sim.stock import Form
from sim.trace import Difference, Trace, first_difference


@dataclass(frozen=True)
class Engine:
    """One way to run a network."""

    name: str
    needs: str | None  #: distribution that must be installed
    #: (network, payload, chip) -> what it could not compute exactly, as far as that shows before it runs
    obstacles: Callable[[Network, np.ndarray, Chip], list[Finding]]
    #: (network, payload (B, *input.shape), *, chip, overflow, record) -> trace, with the readout at least. Raises
    #: :class:`Refused` for an overflow policy that it cannot honour too.
    run: Callable[..., Trace]
    counts: bool = True  #: whether it goes on, in wider integers, where a potential has left the registers
    #: Whether ``run`` also takes ``count``, for spikes without a trace, and ``device``, where torch computes
    batched: bool = False

    @property
    def installed(self) -> bool:
        """Whether the packages are there."""
        return self.needs is None or any(True for _ in metadata.distributions(name=self.needs))

    def prevented(self, network: Network, payload: np.ndarray, chip: Chip) -> list[Finding]:
        """List what is known to stop the engine here: a missing package, or its obstacles."""
        if self.installed:
            return self.obstacles(network, payload, chip)
        remedy = "it exists for Python 3.10 only: `pip install 'ann2loihi[lava]'` there"
        return [Finding(self.name, f"{self.needs} is not installed", remedy)]


def _nothing(network: Network, payload: np.ndarray, chip: Chip) -> list[Finding]:
    return []


def _reference(network: Network, payload: np.ndarray, *, chip: Chip, overflow: Policy, record: bool) -> Trace:
    from sim import reference

    return reference.run(network, payload, chip=chip, overflow=overflow)


def _fast(network: Network, payload: np.ndarray, **options: Any) -> Trace:
    from sim import fast

    return fast.run(network, payload, **options)


def _on_lava(name: str, form: Form) -> Engine:
    def run(network: Network, payload: np.ndarray, *, chip: Chip, overflow: Policy, record: bool) -> Trace:
        from sim import on_lava

        return input_forms.deployed(network, payload, partial(on_lava.run, form=form, chip=chip, overflow=overflow))

    def obstacles(network: Network, payload: np.ndarray, chip: Chip) -> list[Finding]:
        return input_forms.inexact(network, payload, form, chip)

    return Engine(name, "lava-nc", obstacles, run, counts=form == "native")


def _netx(path: str | Path | None = None) -> Engine:
    """Make the engine that loads a ``.net`` through lava-dl's own loader: ``path``, or what it writes itself."""

    def obstacles(network: Network, payload: np.ndarray, chip: Chip) -> list[Finding]:
        reasons = netx.check(network)
        if not reasons and path is not None and netx.loader_of(path) != NETX:
            return [Finding("netx", f"{path} is of a form that lava-dl does not open", "export it in the form netx")]
        if not reasons:
            return netx.inexact(network, payload, chip)
        more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
        problem = f"stock netx cannot build this network ({reasons[0].where}: {reasons[0].problem}{more})"
        return [Finding("netx", problem, "its file loads with exporters.netx.load, from stock processes")]

    def run(network: Network, payload: np.ndarray, *, chip: Chip, overflow: Policy, record: bool) -> Trace:
        if path is not None:
            return netx.load(path).run(payload, chip=chip, overflow=overflow)
        with TemporaryDirectory() as directory:
            file = Path(directory, "network.net")
            netx.write(network, file)
            return netx.load(file).run(payload, chip=chip, overflow=overflow)

    return Engine("netx", "lava-dl", obstacles, run, counts=False)


ENGINES: Mapping[str, Engine] = MappingProxyType(
    {
        engine.name: engine
        for engine in (
            Engine("reference", None, _nothing, _reference),
            Engine("fast", None, _nothing, _fast, batched=True),
            _on_lava("lava", "native"),
            _on_lava("lava-stock", "stock"),
            _netx(),
        )
    }
)


@dataclass(frozen=True)
class EngineRun:
    """One engine's part in a verification."""

    engine: str
    differences: int  #: spikes and potentials that disagree with the first engine
    neuron_steps: int  #: (sample, step, neuron) whose spikes were compared; of the first engine: recorded
    seconds: float  #: wall time, building and loading included
    logits: np.ndarray = field(repr=False)  #: readout potentials at each window step, (B, T, N)


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
    return tuple(engine.name for engine in ENGINES.values() if engine.installed)


@checked
def run(
    engine: str,
    network: Network,
    payload: np.ndarray,
    *,
    chip: Chip = LOIHI2,
    overflow: Policy | None = "strict",
    record: bool = True,
    count: bool = False,
    device: str = "cpu",
) -> Trace:
    """Run integer payloads ``(B, *input.shape)`` on the engine of that name; :class:`Refused` lists the known ones.

    ``record=False`` gives the readout alone; only ``fast`` then saves the memory that all other layers would take.
    ``count`` also counts spikes, into ``Trace.fired``. ``device`` is where torch computes, which only ``fast`` does.
    Engines on Lava get the input in the form that the network's has. Raises
    :class:`sim.fixedpoint.RegisterOverflow` for a potential outside ``chip``'s registers unless ``overflow`` is
    "count", and :class:`Refused` where the engine cannot run the network or honour an argument. ``overflow`` None is
    "count" on engines that can, and "strict" on those whose registers wrap as Lava's do.
    """
    overflow = policy(engine, overflow)
    asked: dict[str, Any] = {"chip": chip, "overflow": overflow, "record": record}
    if ENGINES[engine].batched:
        return ENGINES[engine].run(network, payload, **asked, count=count, device=device)
    _require_cpu(engine, device)
    trace = ENGINES[engine].run(network, payload, **asked)
    if count:
        fired = {name: spikes.sum((0, 1), dtype=np.int64) for name, spikes in trace.spikes.items()}
        trace = replace(trace, fired=fired)
    return trace if record else trace.of_readout()


@checked
def policy(engine: str, overflow: Policy | None = None) -> Policy:
    """Return what the engine of that name does about overflows where nothing is asked for, as for :func:`run`."""
    _require_known([engine])
    default: Policy = "count" if ENGINES[engine].counts else "strict"
    return default if overflow is None else overflow


@checked
def verify(
    network: Network,
    payload: np.ndarray,
    engines: Sequence[str] | None = None,
    *,
    chip: Chip = LOIHI2,
    net_path: str | Path | None = None,
    inputs: InputForm | None = None,
    device: str = "cpu",
) -> Verification:
    """Run integer payloads ``(B, *input.shape)`` on several engines and compare each with the first one, bit for bit.

    ``engines`` are all, unless named; then those that cannot run this network here are ``skipped``, also where that
    shows only while they run. ``net_path`` makes the netx engine load that file, which must hold ``network``, instead
    of a temporary one. ``inputs`` is the form in which engines on Lava get them, that of the network's input by
    default (:mod:`sim.inputs`); the others compute from the payload, ``fast`` on ``device``. A disagreement is the
    result's ``difference``. Raises :class:`Refused` for an unknown name, a named engine that cannot run, fewer than two
    engines that can, no samples, and a device that is not there.
    """
    names = list(ENGINES) if engines is None else engines
    _require_known(names)
    if len(set(names)) < max(2, len(names)):
        raise refuse("engines", f"{', '.join(names) or 'none'} given", "give at least two different ones to compare")
    payload = network.payload(payload)
    if not len(payload):
        raise refuse("payload", "no samples", "agreement on nothing proves nothing: give at least one")
    if net_path is not None and netx.read(net_path) != network:
        raise refuse(str(net_path), "it holds another network", "give the file that was written from this one")
    if inputs is not None and inputs != network.input.form:
        network, net_path = replace(network, input=replace(network.input, form=inputs)), None
    known = ENGINES if net_path is None else {**ENGINES, "netx": _netx(net_path)}
    if device != "cpu":
        from sim import fast

        fast.place(device)
        if not any(known[name].batched for name in names):
            _require_cpu(names[0], device)
    stopped = {name: known[name].prevented(network, payload, chip) for name in names}
    if engines is not None:
        _require_all(stopped)
    runs: list[EngineRun] = []
    difference: Difference | None = None
    for name in names:
        if stopped[name]:
            continue
        start = time.perf_counter()
        try:
            where = {"device": device} if known[name].batched else {}
            trace = known[name].run(network, payload, chip=chip, overflow="strict", record=True, **where)
        except (Refused, RegisterOverflow) as error:
            stopped[name] = list(error.findings)
            if engines is not None:
                _require_all(stopped)
            continue
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
    skipped = tuple(_reason(name, findings) for name, findings in stopped.items() if findings)
    if len(runs) < 2:
        problem = f"only {runs[0].engine} could run" if runs else "none could run"
        raise Refused([Finding("engines", problem, "agreement takes two: remove what stops the others"), *skipped])
    spikes = sum(int(s.sum(dtype=np.int64)) for s in first.spikes.values())
    return Verification(len(payload), tuple(runs), spikes, difference, skipped)


def _require_known(engines: Sequence[str]) -> None:
    unknown = [name for name in engines if name not in ENGINES]
    if unknown:
        raise refuse("engines", f"{', '.join(map(repr, unknown))} not known", f"use {', '.join(ENGINES)}")


def _require_cpu(engine: str, device: str) -> None:
    if device != "cpu":
        batched = ", ".join(name for name, known in ENGINES.items() if known.batched)
        raise refuse("device", f"{engine} computes on the CPU, not on {device!r}", f"leave it out, or use {batched}")


def _require_all(stopped: Mapping[str, list[Finding]]) -> None:
    """Raise whatever stopped engines that were asked for by name."""
    if any(stopped.values()):
        raise Refused(
            finding if finding.where == name else Finding(f"{name}: {finding.where}", finding.problem, finding.remedy)
            for name, findings in stopped.items()
            for finding in findings
        )


def _reason(engine: str, findings: Sequence[Finding]) -> Finding:
    """Say in one finding why an engine was left out."""
    first, *others = findings
    place = "" if first.where == engine else f"{first.where}: "
    more = f" and {len(others)} more" if others else ""
    return Finding(engine, f"{place}{first.problem}{more}", first.remedy)


def _count(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> int:
    return sum(int(np.count_nonzero(left[name] != right[name])) for name in left.keys() & right.keys())
