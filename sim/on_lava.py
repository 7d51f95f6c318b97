"""Runs a network on Lava's own CPU runtime, in two forms that share no step of the dynamics with the other engines.

``native``: stock synapses and :class:`sim.lava.integrate_fire.IntegrateFire`, which resets by subtraction, holds off
and clears itself. ``stock``: nothing but Lava's LIFReset and synapses. There ``LIF(du=-1, dv=4096)`` makes u a perfect
integrator and v = u + bias; a recurrent synapse of weight -theta subtracts the threshold one step after the spike,
before the next comparison; and ``bias_mant`` plays ``v0 + cumulative bias`` inside the firing window and a suppressing
offset outside.

Samples stream through one run, ``period`` steps apart. Everything is recorded through Lava's external pipes, whole
vectors in shared memory, because ``Var.get`` moves one element at a time. Lava's step ``time_step = 1`` is t = 0; its
populations are laid out (W, H, C).
"""

from __future__ import annotations

import functools
import logging
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from tempfile import TemporaryFile
from typing import IO, Any, Literal
from unittest.mock import patch

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.findings import Finding, Refused, refuse
from sim.fixedpoint import RegisterOverflow, Registers
from sim.network import INPUT, Conv2d, Dense, Edge, Layer, Network, Shape
from sim.progress import track
from sim.trace import Trace

Form = Literal["native", "stock"]

SUPPRESSED = -(1 << 15)  #: su; the lowest bias_mant: Lava's LIF stores 16 bits of it and wraps silently beyond
_CONV_BITS = 24  #: Lava's Conv wraps its sums to 24 bits (lava/proc/conv/models.py)
_CONV_LIMIT = 127  #: and stores kernel size, stride, padding, dilation and groups in 8 bits
_CURRENT_BITS = 26  #: LIF shifts the int32 sum of its currents left by 6 (lava/proc/lif/models.py)
_STATE_BITS, _FRACTION_BITS = 24, 6  #: registers of LIF; u wraps beyond, v saturates
_PATIENCE = 600.0  #: seconds that one step may take; a large CIFAR network takes some


@dataclass(frozen=True)
class Population:
    """The OutPorts of one layer's neurons, to be recorded while Lava runs."""

    layer: Layer
    register: Any  #: native: v after the reset; stock: u (v of a readout); su << fraction bits
    spikes: Any | None  #: None for a readout
    currents: tuple[Any, ...] = ()  #: stock: everything that feeds the neurons, the recurrent synapse included

    @property
    def ports(self) -> list[Any]:
        """Everything to record, in this order."""
        return [self.register, *([] if self.spikes is None else [self.spikes]), *self.currents]


def run(
    network: Network,
    payload: np.ndarray,
    *,
    form: Form = "native",
    chip: Chip = LOIHI2,
    period: int | None = None,
) -> Trace:
    """Run integer payloads ``(B, *input.shape)`` back to back on Lava and record every layer.

    ``period`` is the distance between samples in steps; the smallest legal one is the default. Raises
    :class:`sim.fixedpoint.RegisterOverflow` when a potential leaves ``chip``'s registers or breaks the stock form's
    suppression, :class:`sim.findings.Refused` where Lava is missing or could not compute exactly, and RuntimeError,
    with what Lava printed, where Lava itself fails.
    """
    if form not in ("native", "stock"):
        raise refuse("form", f"{form!r} is unknown", "use 'native' or 'stock'")
    payload = network.payload(payload)
    period = legal_period(network, form, period)
    findings = inexact(network, payload, form, chip)
    if findings:
        raise Refused(findings)
    with silenced():
        source = stimulus(network, payload, period)
        ports = {INPUT: source.s_out}
        build = _native if form == "native" else _stock
        populations = [build(network, layer, ports, period, chip) for layer in network.layers]
    engine = "lava" if form == "native" else "lava-stock"
    return drive(engine, network, payload, source, populations, period, chip)


def legal_period(network: Network, form: Form, period: int | None = None) -> int:
    """Return ``period``, or the smallest legal one if it is None; raises :class:`Refused` for a smaller one.

    The stock form needs one step more: in it the last -theta arrives, which LIFReset then clears.
    """
    smallest = network.period + (form == "stock")
    if period is not None and period < smallest:
        raise refuse(
            "period",
            f"{period} steps are too few for the {form} form: samples would meet in a layer",
            f"give at least {smallest}",
        )
    return smallest if period is None else period


def inexact(network: Network, payload: np.ndarray, form: Form, chip: Chip = LOIHI2) -> list[Finding]:
    """List everything about ``network`` and ``payload`` that Lava's processes would compute wrongly."""
    found: list[Finding] = []
    if form == "stock" and (chip.state_bits > _STATE_BITS or chip.fraction_bits != _FRACTION_BITS):
        found.append(Finding("chip", f"Lava's LIF lacks the registers of {chip.name}", "use form='native'"))
    for layer in network.layers:
        total = layer.threshold
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            magnitude = np.abs(edge.synapse.weight.astype(np.int64)).reshape(len(edge.synapse.weight), -1).sum(axis=1)
            largest = int(magnitude.max()) * (int(np.abs(payload).max(initial=0)) if edge.source == INPUT else 1)
            total += largest << max(edge.exponent, 0)
            if _is_conv(edge) and largest >= 1 << (_CONV_BITS - 1):
                found.append(
                    Finding(
                        where,
                        f"a sum of up to {largest} leaves the {_CONV_BITS} bits of Lava's Conv",
                        "use fewer weight or payload bits",
                    )
                )
            if not _is_conv(edge) and _encode(edge.synapse.weight, edge.exponent) is None:
                found.append(
                    Finding(
                        where,
                        f"weights {edge.synapse.weight.min()}..{edge.synapse.weight.max()} lose bits in Lava's Dense "
                        "and Sparse, which hold -127..127, or up to 255 of one sign",
                        "convert again with at most 8 weight bits",
                    )
                )
        if total >= 1 << (_CURRENT_BITS - 1):
            found.append(
                Finding(
                    layer.name,
                    f"currents of up to {total} leave the {_CURRENT_BITS} bits that Lava's LIF adds",
                    "use fewer weight or payload bits",
                )
            )
        if form == "stock":
            played = np.append(layer.offsets, layer.v0)
            if played.min() < SUPPRESSED or played.max() >= -SUPPRESSED:
                found.append(
                    Finding(
                        layer.name,
                        f"v0 + cumulative bias of {played.min()}..{played.max()} leaves the 16 "
                        "bits of Lava's bias_mant",
                        "lower the layer's integer threshold",
                    )
                )
            if layer.kind == "spiking" and not _recurs_by_conv(layer) and chip.recurrent(layer.threshold) is None:
                found.append(
                    Finding(
                        layer.name,
                        f"threshold {layer.threshold} is not a recurrent weight (w * 2**e, "
                        f"w <= {chip.recurrent_weight})",
                        "round it to a multiple of a power of two",
                    )
                )
    return found


def stimulus(network: Network, payload: np.ndarray, period: int) -> Any:
    """Build the RingBuffer that presents each payload for T steps out of ``period``.

    Raises :class:`Refused` where Lava is not installed: whatever runs on Lava starts here.
    """
    require_lava()
    from lava.proc.io.source import RingBuffer

    data = np.zeros((*network.input.shape[::-1], _lead(network) + len(payload) * period), np.int32)
    for sample, image in enumerate(payload):
        data[..., sample * period : sample * period + network.timesteps] = image.T[..., None]
    return RingBuffer(data=data)


def attach(
    network: Network, layer: Layer, neuron: Any, currents: Sequence[Any], period: int, chip: Chip = LOIHI2
) -> Population:
    """Turn a LIFReset with u as integrator (du = -1, dv = 4096, bias_exp = 6) into the layer's neurons.

    Adds the recurrent synapse, plays the offsets into ``bias_mant`` and lets LIFReset clear u in the step of the first
    possible arrival. ``currents`` are the OutPorts that already feed the neuron.
    """
    from lava.proc.conv.process import Conv
    from lava.proc.sparse.process import Sparse

    from sim.lava.bias_writer import BiasWriter

    spiking, start = layer.kind == "spiking", network.first_arrival(layer)
    neuron.proc_params.overwrite("reset_interval", period)
    neuron.proc_params.overwrite("reset_offset", (start + 1) % period)  # LIFReset counts its steps from 1
    rows = _cycle(network, layer, period, SUPPRESSED if spiking else None)
    writer = BiasWriter(
        rows=_swap(rows).astype(np.int16),
        start=start,
        bias_mant=neuron.bias_mant,
        register=neuron.u if spiking else neuron.v,
    )
    if not spiking:
        return Population(layer, writer.register_out, None, tuple(currents))
    if _recurs_by_conv(layer):
        recurrence = Conv(
            weight=np.full((layer.shape[0], 1, 1, 1), -layer.threshold),
            groups=layer.shape[0],
            input_shape=neuron.s_out.shape,
        )
        neuron.s_out.connect(recurrence.s_in)
        recurrence.a_out.connect(neuron.a_in)
    else:
        every = np.arange(layer.size)
        weight, exponent = chip.recurrent(layer.threshold) or (0, 0)  # `inexact` has refused None
        recurrence = Sparse(
            weights=_sparse(np.full(layer.size, -weight), every, every, (layer.size, layer.size)), weight_exp=exponent
        )
        flat(neuron.s_out).connect(recurrence.s_in)
        _unflat(recurrence.a_out, layer.shape).connect(neuron.a_in)
    return Population(layer, writer.register_out, neuron.s_out, (*currents, recurrence.a_out))


def drive(
    engine: str,
    network: Network,
    payload: np.ndarray,
    process: Any,
    populations: Sequence[Population],
    period: int,
    chip: Chip = LOIHI2,
) -> Trace:
    """Run the graph that ``process`` belongs to, with ``payload`` already in it, and record ``populations``.

    Samples are counted as progress on ``engine``. Raises as :func:`run` does.
    """
    registers = Registers(network, chip, "strict")
    spikes: dict[str, np.ndarray] = {}
    potentials: dict[str, np.ndarray] = {}
    ports = [port for population in populations for port in population.ports]
    records = iter(_record(engine, process, ports, _lead(network), period, len(payload)))
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
        offset = _cycle(network, layer, period)
        v, holds = register + layer.threshold * fired, register
        if population.currents:
            # What has arrived tells what u must hold; where Lava's register holds something else, it has wrapped.
            u = np.cumsum(sum(cycles), axis=1)
            v = u + offset
            holds = v if layer.kind == "readout" else u
        for index, t in enumerate(busy):
            if len(payload):
                registers.watch(layer, t, v[:, index], offset[index])
        _require(register == holds, layer, start, "Lava's register does not hold the sum of its currents")
        stray = fired.copy()
        stray[:, begin : begin + network.timesteps] = 0
        _require(
            stray == 0, layer, start, f"u >= theta + {-SUPPRESSED} broke the suppression outside the firing window"
        )
        spikes[layer.name] = fired[:, : len(busy)].astype(np.uint8)
        potentials[layer.name] = (v - layer.threshold * fired)[:, : len(busy)]
    return Trace(engine, network, spikes, potentials, registers.overflows, registers.peak)


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
    # Lava calls set_start_method on import, which raises where multiprocessing is in use already (a DataLoader).
    force = functools.partial(multiprocessing.set_start_method, force=True)
    with patch.object(multiprocessing, "set_start_method", force):
        try:
            import lava.magma.runtime.message_infrastructure.multiprocessing  # noqa: F401
        except ImportError as error:
            raise refuse(
                "sim.on_lava",
                "Lava is not installed: it exists for Python 3.10 only",
                "way out: `uv sync --python 3.10`",
            ) from error


def _lead(network: Network) -> int:
    """Count the steps before the last layer starts its first cycle."""
    return max(network.first_arrival(layer) for layer in network.layers)


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
        raise RegisterOverflow(
            f"layer {layer.name}, channel {channel}, step {start + index} of sample {sample}: {problem}; "
            "lower the layer's integer threshold"
        )


def _cycle(network: Network, layer: Layer, period: int, outside: int | None = None) -> np.ndarray:
    """Offset at every step of the layer's cycle, su (period, *shape): ``outside`` (v0 if None) around the window."""
    begin = network.phase[layer.name] - network.first_arrival(layer)
    rows = np.empty((period, *layer.shape), np.int64)
    rows[:] = layer.per_neuron(layer.v0) if outside is None else outside
    rows[begin : begin + network.timesteps] = layer.per_neuron(layer.offsets)
    return rows


def _native(network: Network, layer: Layer, ports: dict[str, Any], period: int, chip: Chip) -> Population:
    """Build one layer from our own neurons; its OutPort joins ``ports``."""
    from sim.lava.integrate_fire import Integrate, IntegrateFire

    start = network.first_arrival(layer)
    common: dict[str, Any] = {
        "name": layer.name,
        "shape": layer.shape[::-1],
        "v0": _swap(layer.per_neuron(layer.v0)),
        "bias": _swap(layer.per_neuron(layer.bias)),
        "start": start,
        "period": period,
        "holdoff": network.phase[layer.name] - start,
        "fraction_bits": chip.fraction_bits,
    }
    if layer.kind == "readout":
        neuron = Integrate(**common)
    else:
        neuron = IntegrateFire(vth=layer.threshold - 1, **common)
        ports[layer.name] = neuron.s_out
    for edge in layer.edges:
        _connect(network, layer, edge, ports[edge.source], neuron.a_in)
    return Population(layer, neuron.v_out, ports.get(layer.name))


def _stock(network: Network, layer: Layer, ports: dict[str, Any], period: int, chip: Chip) -> Population:
    """Build one layer from Lava's own processes; its OutPort joins ``ports``."""
    from lava.proc.lif.process import LIFReset

    # A readout's vth is the largest, which no potential inside the register exceeds.
    vth = (1 << 17) - 1 if layer.kind == "readout" else layer.threshold - 1
    neuron = LIFReset(name=layer.name, shape=layer.shape[::-1], du=-1, dv=4096, vth=vth, bias_exp=6)
    currents = [_connect(network, layer, edge, ports[edge.source], neuron.a_in) for edge in layer.edges]
    ports[layer.name] = neuron.s_out
    return attach(network, layer, neuron, currents, period, chip)


def _connect(network: Network, layer: Layer, edge: Edge, source: Any, target: Any) -> Any:
    """Put the edge's stock synapse between an OutPort and an InPort; returns the synapse's OutPort."""
    from lava.proc.conv.process import Conv as LavaConv
    from lava.proc.conv.utils import conv_to_sparse
    from lava.proc.dense.process import Dense as LavaDense
    from lava.proc.sparse.process import Sparse as LavaSparse

    bits = network.input.bits if edge.source == INPUT else 0
    synapse, shape = edge.synapse, network.shape_of(edge.source)
    if type(synapse) is Conv2d:
        # Lava convolves where torch correlates, and orders a kernel (C_out, W, H, C_in).
        kernel = synapse.weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1).copy()
        stride, padding, dilation = synapse.stride[::-1], synapse.padding[::-1], synapse.dilation[::-1]
        if _is_conv(edge):
            conv = LavaConv(
                weight=kernel,
                input_shape=shape[::-1],
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=synapse.groups,
                num_message_bits=bits,
            )
            source.connect(conv.s_in)
            conv.a_out.connect(target)
            return conv.a_out
        kernel, exponent = _encode(kernel, edge.exponent) or (kernel, 0)  # `inexact` has refused None
        to, of, weight = conv_to_sparse(
            shape[::-1], layer.shape[::-1], kernel, stride, padding, dilation, synapse.groups
        )
        to, of = (np.arange(math.prod(s)).reshape(s).T.ravel()[i] for s, i in ((layer.shape, to), (shape, of)))
        matrix = LavaSparse(
            weights=_sparse(weight, to, of, (layer.size, math.prod(shape))),
            weight_exp=exponent,
            num_message_bits=bits,
        )
    elif type(synapse) is Dense:
        weight, exponent = _encode(synapse.weight, edge.exponent) or (synapse.weight, 0)
        matrix = LavaDense(weights=weight, weight_exp=exponent, num_message_bits=bits)
    else:
        raise TypeError(f"{type(synapse).__name__} is not a synapse; known: Dense, Conv2d")
    flat(source).connect(matrix.s_in)
    _unflat(matrix.a_out, layer.shape).connect(target)
    return matrix.a_out


def _is_conv(edge: Edge) -> bool:
    """Tell whether Lava's Conv computes the edge; it ignores weight exponents. Sparse computes the others."""
    conv = edge.synapse
    return (
        type(conv) is Conv2d
        and edge.exponent == 0
        and max(*conv.weight.shape[2:], *conv.stride, *conv.padding, *conv.dilation, conv.groups) <= _CONV_LIMIT
    )


def _recurs_by_conv(layer: Layer) -> bool:
    return len(layer.shape) == 3 and layer.shape[0] <= _CONV_LIMIT


def _encode(weight: np.ndarray, exponent: int) -> tuple[np.ndarray, int] | None:
    """Weights and exponent with which Lava's Dense and Sparse compute ``sum(weight) << exponent`` exactly, or None.

    They drop the lowest of 9 bits where signs are mixed (lava/utils/weightutils.py): those weights are doubled.
    """
    low, high = int(weight.min()), int(weight.max())
    if (low >= 0 and high <= 255) or (high <= 0 and low >= -255):
        return weight, exponent
    return (weight * 2, exponent - 1) if max(-low, high) <= 127 else None


def _sparse(weight: np.ndarray, to: np.ndarray, of: np.ndarray, shape: Shape) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix((weight.astype(np.int32), (to, of)), shape)


def flat(port: Any) -> Any:
    """Read a (W, H, C) OutPort in C, H, W order."""
    return port.transpose([2, 1, 0]).flatten() if len(port.shape) == 3 else port


def _unflat(port: Any, shape: Shape) -> Any:
    """Read an (N,) OutPort, in C, H, W order, as (W, H, C)."""
    return port.reshape(shape).transpose([2, 1, 0]) if len(shape) == 3 else port


def _swap(values: np.ndarray) -> np.ndarray:
    """Exchange (..., C, H, W) and (..., W, H, C); a trailing (N,) stays."""
    return np.swapaxes(values, -1, -3) if values.ndim >= 3 else values


def _unswap(record: np.ndarray, shape: Shape) -> np.ndarray:
    """Bring a recording (steps, W, H, C) or (steps, N) to (steps, *shape)."""
    return np.swapaxes(record, 1, 3) if record.ndim == 4 else record.reshape(-1, *shape)
