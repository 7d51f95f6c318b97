"""Runs a graph of Lava's processes and records what every layer did.

Samples stream through one run, ``period`` steps apart. Everything is recorded through Lava's external pipes, whole
vectors in shared memory, because ``Var.get`` moves one element at a time. Lava's step ``time_step = 1`` is t = 0.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.findings import Finding, refuse
from sim.fixedpoint import Policy, RegisterOverflow, Registers
from sim.network import Layer, Network, Shape
from sim.progress import track
from sim.stock import cycle, lead
from sim.trace import Trace

_PATIENCE = 600.0  #: seconds that one step may take; a large CIFAR network takes some


@dataclass(frozen=True)
class Population:
    """The OutPorts of one layer's neurons, to be recorded while Lava runs."""

    layer: Layer
    register: Any  #: native: v after the reset; stock: u (v of a readout); su << fraction bits
    spikes: Any | None  #: None for a readout
    currents: tuple[Any, ...] = ()  #: stock: everything that feeds the neurons, the recurrent synapse included
    silent_below: int | None = None  #: stock: u, su, from which the layer would fire outside its window

    @property
    def ports(self) -> list[Any]:
        """Everything to record, in this order."""
        return [self.register, *([] if self.spikes is None else [self.spikes]), *self.currents]


def drive(
    engine: str,
    network: Network,
    payload: np.ndarray,
    process: Any,
    populations: Sequence[Population],
    period: int,
    chip: Chip = LOIHI2,
    overflow: Policy = "strict",
) -> Trace:
    """Run the graph that ``process`` belongs to, with ``payload`` already in it, and record ``populations``.

    Samples are counted as progress on ``engine``. Raises as :func:`sim.on_lava.run` does.
    """
    registers = Registers(network, chip, overflow)
    spikes: dict[str, np.ndarray] = {}
    potentials: dict[str, np.ndarray] = {}
    ports = [port for population in populations for port in population.ports]
    records = iter(_record(engine, process, ports, lead(network), period, len(payload)))
    for population in populations:
        layer = population.layer
        start, busy = network.first_arrival(layer), network.busy(layer)
        begin = network.phase[layer.name] - start
        cut = slice(start, start + len(payload) * period)
        # Each layer's own cycles, (B, period, *shape): a sample's busy steps, then a gap.
        cycles = [
            _unswap(next(records)[cut], layer.shape).reshape(len(payload), period, *layer.shape)
            for _ in population.ports
        ]
        register = cycles.pop(0) >> chip.fraction_bits
        fired = cycles.pop(0) if population.spikes is not None else np.zeros_like(register)
        offset = cycle(network, layer, period)
        v, holds = register + layer.threshold * fired, register
        if population.currents:
            # What has arrived tells what u must hold; where Lava's register holds something else, it has wrapped.
            u = np.cumsum(sum(cycles), axis=1)
            v = u + offset
            holds = v if layer.kind == "readout" else u
        for index, t in enumerate(busy):
            if len(payload):
                registers.watch(layer, t, v[:, index], offset[index])
        registers.settle()
        _require(register == holds, layer, start, "Lava's register does not hold the sum of its currents")
        stray = fired.copy()
        stray[:, begin : begin + network.timesteps] = 0
        _require(
            stray == 0, layer, start, f"u >= {population.silent_below} broke the suppression outside the firing window"
        )
        spikes[layer.name] = fired[:, : len(busy)].astype(np.uint8)
        potentials[layer.name] = (v - layer.threshold * fired)[:, : len(busy)]
    overflowed = frozenset(registers.overflowed)
    return Trace(engine, network, spikes, potentials, registers.overflows, registers.peak, overflowed)


def ticked(
    engine: str,
    network: Network,
    payload: np.ndarray,
    process: Any,
    populations: Sequence[Population],
    period: int,
    chip: Chip = LOIHI2,
) -> Trace:
    """Run a chain of flat layers that bring their own schedule, and record ``populations``.

    A layer's neurons stand first in its population. Everything is one step later than in the semantics, after the pulse
    that starts a sample. Raises as :func:`drive` does.
    """
    registers = Registers(network, chip, "strict")
    spikes, potentials = {}, {}
    ports = [port for population in populations for port in population.ports]
    # The last layer's cycle starts latest.
    records = iter(_record(engine, process, ports, len(populations) + 1, period, len(payload)))
    for population in populations:
        layer = population.layer
        start = network.phase[layer.name] + 1

        cycles = [
            next(records)[start : start + len(payload) * period, : layer.size].reshape(len(payload), period, layer.size)
            for _ in population.ports
        ]
        register = cycles[0] >> chip.fraction_bits
        fired = cycles[1] if population.spikes is not None else np.zeros_like(register)
        offsets = layer.per_neuron(layer.offsets)
        v = register if layer.kind == "readout" else register + layer.per_neuron(layer.v0)
        window = slice(0, network.timesteps)
        for tau, offset in enumerate(offsets if len(payload) else ()):
            registers.watch(layer, network.phase[layer.name] + tau, v[:, tau], offset)
        stray = fired.copy()
        stray[:, window] = 0
        _require(stray == 0, layer, start, "it fires outside its window, where the clock holds it")
        spikes[layer.name] = fired[:, window].astype(np.uint8)
        potentials[layer.name] = (v - layer.threshold * fired)[:, window]
    return Trace(engine, network, spikes, potentials, 0, registers.peak)


@contextmanager
def silenced(output: IO[str] | None = None) -> Iterator[None]:
    """Collect in ``output`` what Lava and the processes it forks print, and undo what it does to the root logger."""
    root = logging.getLogger()
    handlers = root.handlers[:]
    output = StringIO() if output is None else output
    with redirect_stdout(output), redirect_stderr(output):
        try:
            yield
        finally:
            root.handlers[:] = handlers  # every Lava process adds one


def require_lava() -> None:
    """Import Lava's runtime; raises :class:`Refused` where it is not installed."""
    # Here, since whoever only loads this module needs neither.
    import multiprocessing
    from unittest.mock import patch

    # Lava calls set_start_method on import, which raises where multiprocessing is in use already (a DataLoader).
    force = functools.partial(multiprocessing.set_start_method, force=True)
    with patch.object(multiprocessing, "set_start_method", force):
        try:
            import lava.magma.runtime.message_infrastructure.multiprocessing  # noqa: F401
        except ImportError as error:
            raise refuse(
                "sim.on_lava",
                "Lava is not installed: it exists for Python 3.10 only",
                "way out: `pip install 'ann2loihi[lava]'` there",
            ) from error


def _record(engine: str, process: Any, ports: Sequence[Any], lead: int, period: int, samples: int) -> list[np.ndarray]:
    """Run ``lead + samples * period`` steps and return what every port sent, each (steps, *port.shape)."""
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg

    records: list[np.ndarray] = [np.zeros((lead + samples * period, *port.shape), np.int64) for port in ports]
    if not samples:
        return records
    for port in ports:
        port.flag_external_pipe(buffer_size=lead + period)
    with TemporaryFile("w+") as output:
        try:
            with silenced(output):
                process.create_runtime(Loihi2SimCfg(select_tag="fixed_pt"))
            actors = process.runtime._messaging_infrastructure.actors
            pipes = [port.external_pipe_csp_recv_port for port in ports]
            done = 0
            for sample in track(f"running on {engine}", range(samples)):
                until = lead + (sample + 1) * period
                process.run(RunSteps(until - done, blocking=False))
                for step in range(done, until):
                    for record, pipe in zip(records, pipes, strict=True):
                        patience = time.monotonic() + _PATIENCE
                        while not pipe.probe():
                            _require_alive(actors, patience, output)
                            time.sleep(1e-3)
                        record[step] = pipe.recv()
                process.wait()
                done = until
            process.stop()
        except BaseException:
            _kill(process)
            raise
        finally:
            for port in ports:
                if hasattr(port, "external_pipe_csp_recv_port"):
                    port.external_pipe_csp_recv_port.join()  # ends its thread, which Lava forgets
    return records


def _require_alive(actors: Sequence[Any], patience: float, output: IO[str]) -> None:
    """Raise, with what the processes have left, where Lava itself would wait for them forever."""
    if all(actor.is_alive() for actor in actors) and time.monotonic() < patience:
        return
    output.seek(0)
    causes = [actor.exception[1] for actor in actors if actor.exception] + [output.read()]
    raise RuntimeError("a Lava process has died or stalled\n" + "\n".join(filter(None, causes)))


def _kill(process: Any) -> None:
    """End every process of a runtime that may be in any state; its own ``stop`` waits for answers."""
    runtime = process.runtime
    if runtime is None or runtime._messaging_infrastructure is None:
        return
    for actor in runtime._messaging_infrastructure.actors:
        actor.kill()
    runtime._is_started = False
    runtime.stop()


def _require(holds: np.ndarray, layer: Layer, start: int, problem: str) -> None:
    """Raise at the first of (B, period, *shape) that does not hold."""
    if not holds.all():
        sample, index, channel = map(int, np.argwhere(~holds)[0][:3])
        where = f"layer {layer.name}, channel {channel}, step {start + index} of sample {sample}"
        raise RegisterOverflow(Finding(where, problem, "lower the layer's integer threshold"))


def _unswap(record: np.ndarray, shape: Shape) -> np.ndarray:
    """Bring a recording (steps, W, H, C) or (steps, N) to (steps, *shape)."""
    return np.swapaxes(record, 1, 3) if record.ndim == 4 else record.reshape(-1, *shape)
