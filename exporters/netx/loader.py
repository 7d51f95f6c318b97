"""The road from a ``.net`` through lava-dl's own, unmodified loader into Lava, recorded like every other engine.

Blocks, synapses and neurons come from the file as ``lava.lib.dl.netx.hdf5.Network`` builds them. Attached from outside
is what netx has no word for: the spike source, the writers of the bias schedule, and the recurrent synapses unless the
file holds them, as the stock form does: then netx's own resets are left as they are, too. To the blocks of a clock form
nothing is attached but the source, and what records.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from exporters.netx import clocked, file
from exporters.netx.checks import inexact
from exporters.netx.content import NETX, SYNAPSES
from sim import on_lava, stock
from sim.arguments import checked
from sim.chip import LOIHI2, Chip
from sim.findings import Finding, Refused, refuse
from sim.fixedpoint import Policy, RegisterOverflow
from sim.network import Layer, Network
from sim.on_lava import graph, runtime
from sim.on_lava.runtime import Population
from sim.stock import UNLIFTED, Silence, legal_period
from sim.trace import Trace


@dataclass(frozen=True, eq=False)
class LoadedNetwork:
    """A ``.net`` as both sides read it."""

    path: Path
    network: Network  #: as :func:`exporters.netx.read` reads it
    process: Any  #: as netx built it, None where it cannot; ``run`` builds another, since one process runs one payload
    period: int  #: steps between samples
    form: file.Form = "netx"

    @checked
    def run(self, payload: np.ndarray, *, chip: Chip = LOIHI2, overflow: Policy = "strict") -> Trace:
        """Run integer payloads ``(B, *input.shape)`` on the file's network; as :func:`sim.on_lava.run` otherwise.

        Raises :class:`sim.findings.Refused` also if the file has changed since it was loaded.
        """
        from sim import fast, inputs  # torch loads where something runs

        payload = self.network.payload(payload)
        if self.form == "clock" and overflow == "strict":
            exact = fast.run(self.network, payload, chip=chip)
            if not len(payload):
                return replace(exact, engine="clock" if self.process is None else "netx")
            # A register that has wrapped looks like any other, and holds what others hold as schedules.
            if error := clocked.overflow(self.network, exact, chip):
                raise error
        if self.process is None and self.form == "clock":
            return _stepped(self.network, payload, chip, overflow)
        if self.process is None:
            run = partial(on_lava.run, form="stock", chip=chip, overflow=overflow, period=self.period)
            return inputs.deployed(self.network, payload, run)
        findings = inexact(self.network, payload, chip, overflow)
        if file.read(self.path) != self.network:
            findings.append(Finding(str(self.path), "the file has changed since it was loaded", "load it again"))
        if findings:
            raise Refused(findings)
        if self.form == "clock":
            return self._ticking(payload, chip)
        return inputs.deployed(self.network, payload, partial(self._stream, chip=chip))

    def _ticking(self, payload: np.ndarray, chip: Chip) -> Trace:
        """Run blocks that bring their own schedule: what is written into ``bias_mant`` is what stands there anyway."""
        network, period, lead = self.network, self.period, len(self.network.layers) + 1
        sent = payload.reshape(len(payload), -1)
        data = np.zeros((sent.shape[1] + 1, len(payload), period), np.int32)
        data[:-1, :, 1 : 1 + network.timesteps] = sent.T[:, :, None]
        data[-1, :, 0] = 1
        data = np.pad(data.reshape(len(data), -1), ((0, 0), (0, lead)))
        with runtime.silenced():
            process = _build(self.path, network, period)
            source = graph.steady(data)
            source.s_out.connect(process.inp)
            populations = [
                graph.watched(layer, block.neuron) for layer, block in zip(network.layers, process.layers, strict=True)
            ]
        return runtime.ticked("netx", network, payload, source, populations, period, chip)

    def _stream(self, network: Network, payload: np.ndarray, chip: Chip) -> Trace:
        """Run the file's blocks as ``network``, which may be the file's, or what it is for one input."""
        with runtime.silenced():
            process = _build(self.path, network, self.period)
            entry = process.layers[0].neuron
            if network is self.network:
                entry = graph.stimulus(network, payload, self.period)
                first = SYNAPSES[type(network.layers[0].edges[0].synapse)]
                (graph.flat(entry.s_out) if first.flat else entry.s_out).connect(process.inp)
            populations = [
                _population(network, layer, block, self.period, chip)
                for layer, block in zip(network.layers, process.layers, strict=True)
            ]
        return runtime.drive("netx", network, payload, entry, populations, self.period, chip)


@checked
def load(path: str | Path, *, period: int | Literal["power of two"] | None = None) -> LoadedNetwork:
    """Load a ``.net`` that :func:`exporters.netx.write` wrote, through lava-dl, or else build it from stock processes.

    What :func:`exporters.netx.write_graph` wrote, netx cannot build: its ``run`` is the stock form of
    :func:`sim.on_lava.run`. ``period`` is the distance between samples in steps, the smallest legal one by default;
    "power of two" is the smallest that silicon's reset takes (see :func:`sim.stock.legal_period`). Raises
    :class:`Refused` for any other file, a period too small, and where Lava or lava-dl is missing.
    """
    network, form = file.read(path), file.form_of(path)
    period = legal_period(network, "clock" if form == "clock" else "stock", period)
    with runtime.silenced():
        process = _build(Path(path), network, period) if file.loader_of(path) == NETX else None
    return LoadedNetwork(Path(path), network, process, period, form)


def _stepped(network: Network, payload: np.ndarray, chip: Chip, overflow: Policy) -> Trace:
    """Run the stock form with a clock, which no host and no netx builds, step by step."""
    from sim.on_lava.stepped import Stepped

    if findings := stock.inexact(network, payload, "stock", chip, overflow):
        raise Refused(findings)
    names = [layer.name for layer in network.layers]
    with runtime.silenced():
        running = Stepped(network, payload, names, schedule="clock", chip=chip)
        running.start()
    try:
        found = list(running.samples(lambda sample, step: None))
    finally:
        running.stop()
    spikes, potentials = ({name: np.stack([one[part][name] for one in found]) for name in names} for part in (0, 1))
    for name, limit in clocked.silent_below(network).items():
        held = stock.peak_outside(network, network[name], potentials[name])
        if held >= limit:
            problem = f"u = {held} outside its window, where the clock holds what is below {limit}"
            raise RegisterOverflow(Finding(f"layer {name}", problem, "lower the layer's integer threshold"))
    return Trace("clock", network, spikes, potentials)


def _population(network: Network, layer: Layer, block: Any, period: int, chip: Chip) -> Population:
    currents = [block.synapse.a_out] if hasattr(block, "synapse") else []
    silent = _silence(layer, block)
    if not hasattr(block, "synapse_rec"):
        return graph.attach(network, layer, block.neuron, currents, period, silent, chip)
    return graph.play(network, layer, block.neuron, [*currents, block.synapse_rec.a_out], period, silent)


def _silence(layer: Layer, block: Any) -> Silence:
    """Tell by what netx has built how the file silences a layer; formats have differed in it."""
    held = int(block.neuron.bias_mant.init.max()) if hasattr(block, "synapse") else UNLIFTED.offset
    return Silence(held, int(block.neuron.vth.init) - layer.threshold + 1)


def _build(path: Path, network: Network, period: int) -> Any:
    runtime.require_lava()
    try:
        from lava.lib.dl.netx import hdf5
    except ImportError as error:
        raise refuse(
            "exporters.netx",
            "lava-dl is not installed: it exists for Python 3.10 only",
            "way out: `pip install 'ann2loihi[lava]'` there",
        ) from error
    # netx starts a layer one step after the one before it, but takes the first for one that the input does not reach
    # before it starts.
    process = hdf5.Network(str(path), input_message_bits=network.input.bits, reset_interval=period, reset_offset=1)
    process.net_config.f.close()  # netx never does, and an open file could not be written again
    return process
