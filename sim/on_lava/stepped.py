"""Runs the stock form step by step with a host between the steps: on Lava's CPU models, or on a board.

The neurons are those of :mod:`sim.stock`, and every process is Lava's own. All that is asked of the target is to run
one step and to read and write variables. Before a step the host writes ``bias_mant`` where the schedule changes it, and
where the input comes as bias currents (:mod:`sim.inputs`), unless a clock (:mod:`sim.clock`) brings the schedule: then
it writes nothing at all. After it, u and v are read, and the spikes with them: v is u + bias, or 0 where the neuron has
fired. One more step empties the synapses when all windows are closed; then u is cleared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.clock import Clock, clock
from sim.network import INPUT, Layer, Network
from sim.on_lava import graph, runtime
from sim.stock import Silence, by_conv, encoded, silence, vth
from sim.trace import Trace

Schedule = Literal["written", "clock"]  #: who brings the biases: the host, or a chain of neurons on the chip
Recording = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]  #: spikes and potentials of a sample, as in Trace


@dataclass(frozen=True)
class Host:
    """What differs between targets."""

    config: Callable[[], Any]  #: () -> Lava's run configuration
    #: (OutPort of a process on the host, whether a Conv reads it, bits of a message) -> OutPort that the chip can read
    inward: Callable[[Any, bool, int], Any]


@dataclass(frozen=True)
class Placed:
    """Where one process runs, as the runtime has it."""

    name: str  #: the layer's, for its neurons; what Lava calls the process otherwise
    process: str  #: type of the process
    model: str  #: type of the model that was compiled for it
    resources: tuple[str, ...]  #: that the model needs
    node: str  #: type of the node that it was mapped to


def _simulated() -> Any:
    from lava.magma.core.run_configs import Loihi2SimCfg

    return Loihi2SimCfg(select_tag="fixed_pt")


CPU = Host(_simulated, lambda port, conv, bits: port)


class Stepped:
    """A network on Lava with payloads (B, *input.shape) in it, one sample after the other."""

    def __init__(
        self,
        network: Network,
        payload: np.ndarray,
        read: Sequence[str],
        host: Host = CPU,
        schedule: Schedule = "written",
        chip: Chip = LOIHI2,
    ) -> None:
        """Build the processes; ``read`` names the layers whose registers are read.

        What :func:`sim.stock.inexact` lists must be ruled out. Raises :class:`sim.findings.Refused` where Lava is
        missing.
        """
        runtime.require_lava()
        from lava.proc.io.source import RingBuffer
        from lava.proc.lif.process import LIF

        self._whole, self._payload, self._read, self._host, self._chip = network, payload, set(read), host, chip
        #: Of each sample; they differ in nothing but biases.
        self._networks = [network] * len(payload)
        if network.input.form != "payload":
            from sim import inputs  # torch loads where it is needed

            self._networks = inputs.by_bias(network, payload)
            network, payload = self._networks[0], np.zeros((len(payload), 1), np.int32)
        self._network = network
        self._clock = clock(network, chip) if schedule == "clock" else None
        self._lead = int(self._clock is not None)  # the clock starts one step before the input
        self._period = self._lead + network.steps + 1
        data = np.zeros((*network.input.shape[::-1], len(payload), self._period), np.int32)
        for sample, image in enumerate(payload):
            data[..., sample, self._lead : self._lead + network.timesteps] = image.T[..., None]
        self._source = RingBuffer(data=data.reshape(*data.shape[:-2], -1))
        readers = [edge for layer in network.layers for edge in layer.edges if edge.source == INPUT]
        conv = any(by_conv(edge) for edge in readers)
        port = self._source.s_out if conv else graph.flat(self._source.s_out)
        ports = {INPUT: host.inward(port, conv, network.input.bits)}
        self._neurons: dict[str, Any] = {}
        self._written: dict[str, np.ndarray] = {}
        self._silent: dict[str, Silence] = {}
        relays = self._relays(self._clock) if self._clock is not None and self._clock.relays else None
        for layer in network.layers:
            held = (silence(one[layer.name], chip) for one in self._networks)
            silent = Silence(0, 0) if self._clock else min(held, key=lambda silent: silent.lift)
            self._silent[layer.name] = silent
            neuron = LIF(name=layer.name, shape=layer.shape[::-1], du=-1, dv=4096, vth=vth(layer, silent), bias_exp=6)
            for edge in layer.edges:
                graph.connect(network, layer, edge, ports[edge.source], neuron.a_in)
            if layer.kind == "spiking":
                graph.recur(layer, neuron, chip)
            if relays is not None:
                self._tick(layer, relays, neuron)
            ports[layer.name] = neuron.s_out
            self._neurons[layer.name] = neuron
            row = self._row(layer, 0)
            neuron.bias_mant.init, self._written[layer.name] = graph.swap(row).astype(np.int32), row

    def start(self) -> tuple[list[Placed], list[str]]:
        """Compile and load; returns where every process runs, and the types of the nodes, as the runtime has them."""
        self._source.create_runtime(self._host.config())
        executable = self._source.runtime._executable
        of = {neuron: name for name, neuron in self._neurons.items()}
        placed, nodes = [], []
        for config in executable.node_configs:
            nodes += [node.node_type.__name__ for node in config.nodes]
            for process, node in config.node_map.items():
                model = executable.proc_builders[process].proc_model
                needs = tuple(resource.__name__ for resource in model.required_resources)
                name = of.get(process, process.name)
                placed.append(Placed(name, type(process).__name__, model.__name__, needs, node.node_type.__name__))
        return placed, nodes

    def samples(self, at: Callable[[int, int], None]) -> Iterator[Recording]:
        """Run sample after sample; ``at(sample, step)`` is called before every step."""
        from lava.magma.core.run_conditions import RunSteps

        for sample, network in enumerate(self._networks):
            self._network = network
            spikes, potentials = self._empty(), self._empty()
            for step in range(self._period):
                at(sample, step - self._lead)
                if sample or step:
                    self._write(step)
                self._source.run(RunSteps(1))
                for name in self._read:
                    busy = network.busy(network[name])
                    if (t := step - self._lead) in busy:
                        fired, v = self._registers(network[name], step)
                        spikes[name][t - busy.start], potentials[name][t - busy.start] = fired, v
            for neuron in self._neurons.values():
                neuron.u.set(np.zeros(neuron.u.shape, np.int32))
            found = {name: fired.astype(np.uint8) for name, fired in spikes.items()}, potentials
            yield found if network is self._whole else self._restored(sample, found)

    def _restored(self, sample: int, recorded: Recording) -> Recording:
        """Add what the host knows and never sends: how a layer fares before its window."""
        from sim import inputs

        fired, left = ({name: values[None] for name, values in part.items()} for part in recorded)
        trace = Trace("", self._network, fired, left)
        found = inputs.restored(self._whole, self._payload[sample : sample + 1], [trace])
        spikes, potentials = (
            {name: values[0] for name, values in part.items()} for part in (found.spikes, found.potentials)
        )
        return spikes, {name: values.astype(np.int32) for name, values in potentials.items()}

    def stop(self) -> None:
        """End Lava's processes."""
        self._source.stop()

    def _relays(self, clock: Clock) -> Any:
        """Build the chain, and the host's pulse that starts it."""
        from lava.proc.dense.process import Dense as LavaDense
        from lava.proc.io.source import RingBuffer
        from lava.proc.lif.process import LIF

        length = clock.relays
        pulse = RingBuffer(data=(np.arange(self._period) == 0).astype(np.int32)[None])
        start, chain = np.zeros((length, 1), int), np.eye(length, k=-1, dtype=int)
        start[0] = 1
        relays = LIF(name="clock", shape=(length,), du=4095, dv=4096, vth=0, bias_mant=0, bias_exp=6)
        source = self._host.inward(pulse.s_out, False, 0)
        for port, weights in ((source, start), (relays.s_out, chain)):
            synapse = LavaDense(weights=weights)
            port.connect(synapse.s_in)
            synapse.a_out.connect(relays.a_in)
        return relays

    def _tick(self, layer: Layer, relays: Any, neuron: Any) -> None:
        """Lead the relays to one layer."""
        from lava.proc.dense.process import Dense as LavaDense

        assert self._clock is not None
        for ticks in self._clock.ticks[layer.name]:
            weight = np.zeros((layer.size, self._clock.relays), np.int64)
            weight[:, ticks.first : ticks.first + ticks.relays] = ticks.weight
            weight, exponent = encoded(weight, ticks.exponent) or (weight, 0)  # the clock's always are
            synapse = LavaDense(weights=weight, weight_exp=exponent)
            relays.s_out.connect(synapse.s_in)
            graph.unflat(synapse.a_out, layer.shape).connect(neuron.a_in)

    def _row(self, layer: Layer, step: int) -> np.ndarray:
        """Return what bias_mant holds in a step of the sample's cycle, su (*shape)."""
        if self._clock is not None:
            return self._clock.bias[layer.name]
        opens = self._network.phase[layer.name]
        if step not in range(opens, opens + self._network.timesteps) and layer.kind == "spiking":
            return np.full(layer.shape, self._silent[layer.name].offset)
        return self._offset(layer, step) + (self._silent[layer.name].lift if layer.kind == "spiking" else 0)

    def _offset(self, layer: Layer, step: int) -> np.ndarray:
        """Return v0 and what the schedule has added by a step of the sample's cycle, su (*shape)."""
        tau = min(step - self._network.phase[layer.name], self._network.timesteps - 1)
        return layer.per_neuron(layer.v0 if tau < 0 else layer.offsets[tau])

    def _write(self, step: int) -> None:
        for layer in self._network.layers:
            row = self._row(layer, step)
            if not np.array_equal(row, self._written[layer.name]):
                self._neurons[layer.name].bias_mant.set(graph.swap(row).astype(np.int32))
                self._written[layer.name] = row

    def _registers(self, layer: Layer, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Spikes and potentials after the reset, su (*shape), of the step that has just run."""
        neuron, bias = self._neurons[layer.name], self._written[layer.name]
        v = self._get(neuron.v, layer)
        if layer.kind == "readout":
            return np.zeros_like(v), v
        u = self._get(neuron.u, layer)
        fired = (v == 0) & (u + bias != 0)
        v = np.where(fired, u + bias - layer.threshold, v)
        # What silences a neuron, or lifts it, is no part of its potential.
        if self._clock is None:
            return fired, v - bias + self._offset(layer, step)
        held = step - self._lead < self._network.phase[layer.name]
        return fired, v + self._clock.hold[layer.name] * held

    def _get(self, var: Any, layer: Layer) -> np.ndarray:
        values: np.ndarray = graph.swap(var.get().astype(np.int64).reshape(layer.shape[::-1]))
        return values >> self._chip.fraction_bits

    def _empty(self) -> dict[str, np.ndarray]:
        network = self._network
        return {
            layer.name: np.zeros((len(network.busy(layer)), *layer.shape), np.int32)
            for layer in network.layers
            if layer.name in self._read
        }
