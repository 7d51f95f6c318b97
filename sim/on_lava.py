"""Runs a network on Lava's own CPU runtime, in two forms that share no step of the dynamics with the other engines.

``native``: stock synapses and :class:`sim.lava.integrate_fire.IntegrateFire`, which resets by subtraction, holds off and
clears itself. ``stock``: nothing but Lava's LIFReset and synapses. There ``LIF(du=-1, dv=4096)`` makes u a perfect
integrator and v = u + bias; a recurrent synapse of weight -theta subtracts the threshold one step after the spike,
before the next comparison; and ``bias_mant`` plays ``v0 + cumulative bias`` inside the firing window and a suppressing
offset outside.

Samples stream through one run, ``period`` steps apart. Everything is recorded through Lava's external pipes, whole
vectors in shared memory, because ``Var.get`` moves one element at a time. Lava's step ``time_step = 1`` is t = 0, and its
populations are laid out (W, H, C).
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import IO, Any, Literal
from unittest import mock

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.findings import Finding, Refused, refuse
from sim.fixedpoint import RegisterOverflow, Registers, largest_sum
from sim.network import INPUT, Conv2d, Dense, Edge, Layer, Network
from sim.trace import Trace

Form = Literal["native", "stock"]

SUPPRESSED = -(1 << 15)  #: su; the lowest bias_mant: Lava's LIF stores it in 16 bit (PyLifModelBitAcc), wrapping beyond
_CONV_BITS = 24  #: PyConvModelFixed wraps its sums to 24 bit signed
_CONV_GROUPS = 127  #: PyConvModelFixed stores groups in 8 bit signed
_CURRENT_BITS = 26  #: LIF shifts the int32 sum of its currents left by 6
_FRACTION_BITS = 6  #: of the registers of Lava's LIF
_STATE_BITS = 24  #: registers of Lava's LIF; u wraps beyond, v saturates


@dataclass(frozen=True)
class Population:
    """The ports of one layer's neurons, to be recorded while Lava runs."""

    layer: Layer
    register: Any  #: OutPort; native: v after the reset, stock: u (v of a readout); su << fraction bits
    spikes: Any | None  #: OutPort; None for a readout
    currents: tuple[Any, ...] = ()  #: OutPorts that feed the neurons, the recurrent one included; stock form only


def run(network: Network, payload: np.ndarray, *, form: Form = "native", chip: Chip = LOIHI2,
        period: int | None = None, progress: Callable[[int], object] | None = None) -> Trace:
    """Run integer payloads ``(B, *input.shape)`` back to back on Lava and record every layer.

    ``period`` is the distance between samples in steps; the smallest legal one is the default. ``progress`` is called
    with the number of samples just finished. Raises :class:`sim.fixedpoint.RegisterOverflow` when a potential leaves
    ``chip``'s registers, :class:`sim.findings.Refused` for what Lava is missing for or could not compute exactly, and
    RuntimeError, with Lava's own output, when Lava fails.
    """
    if form not in ("native", "stock"):
        raise refuse("form", repr(form), "use 'native' or 'stock'")
    payload = network.payload(payload)
    period = legal_period(network, form, period)
    findings = inexact(network, payload, form, chip)
    if findings:
        raise Refused(findings)
    with silenced():
        source = stimulus(network, payload, period)
        populations = _build(network, source, form, chip, period)
    return drive("lava" if form == "native" else "lava-stock", network, payload, source, populations, chip, period,
                 progress)


def legal_period(network: Network, form: Form, period: int | None = None) -> int:
    """Return ``period``, or the smallest legal one; raises :class:`Refused` for a smaller one.

    The stock form needs one step more: in it the last -theta arrives, which LIFReset then clears.
    """
    smallest = network.period + (form == "stock")
    if period is not None and period < smallest:
        raise refuse("period", f"{period} steps are too few for the {form} form: a sample would meet its predecessor",
                     f"give at least {smallest}")
    return smallest if period is None else period


def inexact(network: Network, payload: np.ndarray, form: Form, chip: Chip = LOIHI2) -> list[Finding]:
    """List everything about ``network`` and ``payload`` that Lava's processes would compute wrongly."""
    found: list[Finding] = []
    if form == "stock" and (chip.state_bits > _STATE_BITS or chip.fraction_bits != _FRACTION_BITS):
        found.append(Finding("chip", f"{chip.name} has registers that Lava's LIF lacks", "use form='native'"))
    for layer in network.layers:
        total = layer.threshold
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            if not _as_conv(edge) and _encode(edge.synapse.weight, edge.exponent) is None:
                found.append(Finding(where, "odd weights beyond -128..127 lose a bit in Lava's Dense and Sparse",
                                     "convert again with 8 weight bits"))
            # The bound is for the largest payload of the input; the presented one may be smaller.
            largest = max(network.input.limits)
            bound = largest_sum(network, layer) if edge.source != INPUT else -(-largest_sum(
                network, layer) * max(1, int(np.abs(payload).max(initial=0))) // largest)
            if _as_conv(edge) and bound >= 1 << (_CONV_BITS - 1):
                found.append(Finding(where, f"a sum of up to {bound} leaves the {_CONV_BITS} bits of Lava's Conv",
                                     "use fewer weight or payload bits"))
            total += bound << max(edge.exponent, 0)
        if total >= 1 << (_CURRENT_BITS - 1):
            found.append(Finding(layer.name, f"currents of up to {total} leave the {_CURRENT_BITS} bits of Lava's LIF",
                                 "use fewer weight or payload bits"))
        if form == "stock":
            played = np.append(layer.offsets, layer.v0)
            if played.min() < SUPPRESSED or played.max() >= -SUPPRESSED:
                found.append(Finding(layer.name, f"v0 + cumulative bias {played.min()}..{played.max()} leaves the 16 bits "
                                     "of Lava's bias_mant", "lower the layer's integer threshold or use form='native'"))
            if layer.kind == "spiking" and not _conv_recurs(layer) and chip.recurrent(layer.threshold) is None:
                found.append(Finding(layer.name, f"threshold {layer.threshold} is not a recurrent weight (w * 2**e, w <= "
                                     f"{chip.recurrent_weight})", "round it to a multiple of a power of two"))
    return found


def stimulus(network: Network, payload: np.ndarray, period: int) -> Any:
    """Build the RingBuffer that presents each payload at T steps out of ``period``."""
    from lava.proc.io.source import RingBuffer

    data = np.zeros((*_lava_shape(network.input.shape), _steps(network, len(payload), period)), np.int32)
    for sample, image in enumerate(payload):
        begin = sample * period
        data[..., begin:begin + network.timesteps] = image.T[..., None]
    return RingBuffer(data=data)


def attach(network: Network, layer: Layer, neuron: Any, currents: Sequence[Any], period: int,
           chip: Chip = LOIHI2) -> Population:
    """Turn a stock LIFReset with u as integrator (du = -1, dv = 4096, bias_exp = 6) into the layer's neurons.

    Adds the recurrent synapse, plays the offsets into ``bias_mant`` and sets the phase of the reset, so that u is
    cleared in the step of the first possible arrival. ``currents`` are the OutPorts already connected to the neuron.
    """
    from lava.proc.conv.process import Conv
    from lava.proc.sparse.process import Sparse
    from scipy.sparse import identity

    from sim.lava.bias_writer import BiasWriter

    spiking, start = layer.kind == "spiking", network.first_arrival(layer)
    neuron.proc_params.overwrite("reset_interval", period)
    neuron.proc_params.overwrite("reset_offset", (start + 1) % period)
    outside = np.full_like(layer.v0, SUPPRESSED) if spiking else layer.v0
    rows = np.broadcast_to(_lava_layout(layer, outside), (period, *neuron.bias_mant.shape)).astype(np.int16)
    begin = network.phase[layer.name] - start
    rows[begin:begin + network.timesteps] = _lava_layout(layer, layer.offsets)
    writer = BiasWriter(rows=rows, start=start, bias_mant=neuron.bias_mant,
                        register=neuron.u if spiking else neuron.v)
    if not spiking:
        return Population(layer, writer.register_out, None, tuple(currents))
    if _conv_recurs(layer):
        channels = layer.shape[0]
        recurrence = Conv(weight=np.full((channels, 1, 1, 1), -layer.threshold), groups=channels,
                          input_shape=neuron.s_out.shape)
        neuron.s_out.connect(recurrence.s_in)
        recurrence.a_out.connect(neuron.a_in)
    else:
        weight, exponent = chip.recurrent(layer.threshold) or (0, 0)  # None has been refused by `inexact`
        recurrence = Sparse(weights=-weight * identity(layer.size, np.int32, "csr"), weight_exp=exponent)
        _flat(neuron.s_out, layer.shape).connect(recurrence.s_in)
        _unflat(recurrence.a_out, layer.shape).connect(neuron.a_in)
    return Population(layer, writer.register_out, neuron.s_out, (*currents, recurrence.a_out))


def drive(engine: str, network: Network, payload: np.ndarray, process: Any, populations: Sequence[Population],
          chip: Chip, period: int, progress: Callable[[int], object] | None = None) -> Trace:
    """Run the graph that ``process`` belongs to, record ``populations`` and cut the recording into samples.

    The payload must already be in the graph (:func:`stimulus`). Raises as :func:`run` does.
    """
    ports = [port for p in populations for port in (p.register, p.spikes, *p.currents) if port is not None]
    steps = _steps(network, len(payload), period)
    if not len(payload):
        records = [np.zeros((steps, *port.shape), np.int64) for port in ports]
    else:
        def finished(done: int) -> int:
            return max(0, (done - network.steps) // period + 1)

        records = _record(process, ports, steps, period, None if progress is None else
                          lambda before, now: progress(finished(now) - finished(before)))
    recorded = dict(zip(map(id, ports), records, strict=True))
    registers = Registers(network, chip, "strict")
    spikes: dict[str, np.ndarray] = {}
    potentials: dict[str, np.ndarray] = {}
    for population in populations:
        layer = population.layer
        fired = np.zeros((steps, *layer.shape), np.uint8) if population.spikes is None else _chw(
            layer, recorded[id(population.spikes)]).astype(np.uint8)
        register = _chw(layer, recorded[id(population.register)]) >> chip.fraction_bits
        start, timesteps, busy = network.first_arrival(layer), network.timesteps, network.busy(layer)
        holdoff = network.phase[layer.name] - start
        elapsed = np.arange(steps) - start
        cycle = elapsed % period
        tau = np.where(elapsed < 0, -1, cycle - holdoff)
        window = (tau >= 0) & (tau < timesteps)
        offset = np.where(window.reshape(-1, *(1,) * len(layer.shape)),
                          layer.per_neuron(layer.offsets)[np.where(window, tau, 0)], layer.per_neuron(layer.v0))
        if population.currents:
            arrived = sum(_chw(layer, recorded[id(port)]).astype(np.int64) for port in population.currents)
            # u restarts from nothing at the start of every cycle, before the step's current is added.
            total = np.concatenate([np.zeros((1, *layer.shape), np.int64), np.cumsum(arrived, axis=0)])
            u = total[1:] - total[np.where(elapsed < 0, 0, np.arange(steps) - cycle)]
            v = u + offset
            wrong = register != (v if layer.kind == "readout" else u)
        else:
            v = register + layer.threshold * fired.astype(np.int64)
            wrong = np.zeros((), bool)
        index = start + period * np.arange(len(payload))[:, None] + np.arange(len(busy))
        for column, t in enumerate(busy):
            registers.watch(layer, t, v[index[:, column]], offset[t]) if len(payload) else None
        stray = (fired != 0) & ~window.reshape(-1, *(1,) * len(layer.shape))
        for failed, reason in ((wrong, "Lava's register no longer holds the sum of its currents"),
                               (stray, f"a spike outside the firing window: u >= theta + {-SUPPRESSED} broke the "
                                       "suppression")):
            if failed.any():
                step, channel = map(int, np.argwhere(failed)[0][:2])
                raise RegisterOverflow(f"layer {layer.name}, channel {channel}, step {step % period if period else step}: "
                                       f"{reason}; lower the layer's integer threshold")
        spikes[layer.name] = fired[index]
        potentials[layer.name] = v[index] - layer.threshold * spikes[layer.name].astype(np.int64)
    return Trace(engine, network, spikes, potentials, registers.overflows, registers.peak)
