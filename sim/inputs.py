"""The input as bias currents: the host computes what the payload causes in every layer that reads it.

The payload is the same at every step of its window, and so is the current that it causes. The host adds it to the
layer's schedule, and no input synapses are left. That is exact: inside its firing window a layer holds and does what it
would with them. Before the window it lacks what the host brings when that opens. Where the form of the input is
"spikes", those layers are input neurons, which do nothing but fire by their biases, as the ``input`` blocks of netx do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from sim import stock
from sim.chip import LOIHI2, Chip
from sim.fast import Currents
from sim.findings import Finding, refuse
from sim.fixedpoint import Policy, RegisterOverflow
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from sim.stock import Form
from sim.trace import Trace

#: What is left of the input: nothing that is ever sent. A layer needs an edge, which says when it starts.
NOTHING = Input((1,), bits=1, signed=False, form="currents")


def currents(network: Network, payload: np.ndarray) -> dict[str, np.ndarray]:
    """Return what payloads (B, *input.shape) cause at each step, by layer that reads them: int64 (B, *shape), su."""
    sent = {INPUT: torch.from_numpy(network.payload(payload))}
    found = {}
    for layer in network.layers:
        reading = tuple(edge for edge in layer.edges if edge.source == INPUT)
        if reading:
            arriving = Currents(network, replace(layer, edges=reading))(sent, range(1, 2))
            found[layer.name] = arriving[0].numpy().astype(np.int64)
    return found


def by_bias(network: Network, payload: np.ndarray) -> list[Network]:
    """Return, for each of payloads (B, *input.shape), the network without input synapses that does the same.

    Spikes inside all windows, and potentials there, are those of ``network``; its payload is 0 of shape (1,). Raises
    :class:`sim.findings.Refused` for schedules that leave 32 bits.
    """
    arriving = currents(network, payload)
    return [
        replace(
            network,
            input=NOTHING,
            layers=tuple(
                _driven(network, layer, arriving[layer.name][sample]) if layer.name in arriving else layer
                for layer in network.layers
            ),
        )
        for sample in range(len(payload))
    ]


def beyond(network: Network, payload: np.ndarray, chip: Chip = LOIHI2) -> frozenset[int]:
    """List, by number, the samples whose currents, on top of v0 and the schedule, leave the bias register of ``chip``.

    None do where the form of the input is "payload". The stock form holds no others.
    """
    found: set[int] = set()
    if network.input.form == "payload":
        return frozenset()
    for name, current in currents(network, payload).items():
        arrived = np.cumsum(_arrivals(network, network[name]))
        offsets = network[name].per_neuron(network[name].offsets)
        for count, offset in zip(arrived, offsets, strict=True):
            held = (offset + count * current).reshape(len(current), -1)
            outside = (held.max(1) > chip.bias_limit) | (held.min(1) < -chip.bias_limit - 1)
            found.update(np.flatnonzero(outside).tolist())
    return frozenset(found)


def inexact(
    network: Network, payload: np.ndarray, form: Form, chip: Chip = LOIHI2, overflow: Policy = "strict"
) -> list[Finding]:
    """List what :func:`sim.stock.inexact` does, of payloads (B, *input.shape) in the form that the input has."""
    if network.input.form == "payload":
        return stock.inexact(network, payload, form, chip, overflow)
    nothing = np.zeros((1, 1), np.int32)
    found = (stock.inexact(driven, nothing, form, chip, overflow) for driven in by_bias(network, payload))
    return next(filter(None, found), [])


def _arrivals(network: Network, layer: Layer) -> np.ndarray:
    """Count the payloads that arrive with each step of the window, int64 (T,), those before it with the first."""
    phase = network.phase[layer.name]
    arrivals = (phase + np.arange(network.timesteps) <= network.timesteps).astype(np.int64)  # they come at t = 1..T
    arrivals[0] = min(phase, network.timesteps)
    return arrivals


def _driven(network: Network, layer: Layer, current: np.ndarray) -> Layer:
    arrivals = _arrivals(network, layer)
    added = arrivals.reshape(-1, *(1,) * len(layer.shape)) * current
    others = tuple(edge for edge in layer.edges if edge.source != INPUT)
    silent = Edge(INPUT, Dense(np.zeros((layer.size, 1), int)))
    return replace(layer, edges=others or (silent,), bias=layer.per_neuron(layer.bias) + added)


def deployed(network: Network, payload: np.ndarray, engine: Callable[[Network, np.ndarray], Trace]) -> Trace:
    """Run payloads (B, *input.shape) on ``engine`` in the form that the network's input has; raises as :func:`run`."""
    return engine(network, payload) if network.input.form == "payload" else run(network, payload, engine)


def run(network: Network, payload: np.ndarray, engine: Callable[[Network, np.ndarray], Trace]) -> Trace:
    """Run payloads (B, *input.shape) as bias currents, one sample after the other, on ``engine``.

    The trace is one of ``network``: what a layer lacks before its window, which the host knows, is added to its
    potentials there. Raises as :func:`by_bias` and the engine do.
    """
    traces = []
    for sample, driven in enumerate(by_bias(network, payload)):
        try:
            traces.append(engine(driven, np.zeros((1, 1), np.int32)))
        except RegisterOverflow as error:
            (found,) = error.findings  # on an engine every sample is its first
            where = found.where.replace("of sample 0", f"of sample {sample}")
            raise RegisterOverflow(replace(found, where=where)) from error
    return restored(network, payload, traces)


def restored(network: Network, payload: np.ndarray, traces: Sequence[Trace]) -> Trace:
    """Return the trace of ``network`` that follows from those of :func:`by_bias`, each of one sample.

    It has the layers that they have. Raises :class:`sim.findings.Refused` where there are no samples.
    """
    if not traces:
        raise refuse("payload", "no samples", "give at least one")
    arriving = currents(network, payload)
    spikes, potentials = {}, {}
    for layer in (layer for layer in network.layers if layer.name in traces[0].spikes):
        name, busy = layer.name, network.busy(layer)
        late = len(busy) - traces[0].spikes[name].shape[1]
        spikes[name], potentials[name] = (
            np.concatenate(
                [np.zeros((len(traces), late, *layer.shape), values[0].dtype), np.concatenate(values)], axis=1
            )
            for values in ([t.spikes[name] for t in traces], [t.potentials[name] for t in traces])
        )
        potentials[name][:, :late] = layer.per_neuron(layer.v0)
        for index, t in enumerate(busy):
            if name in arriving and t < network.phase[name]:
                potentials[name][:, index] += min(t, network.timesteps) * arriving[name]
    overflows = [trace.overflows for trace in traces]
    peak = {name: max(trace.peak.get(name, 0) for trace in traces) for name in spikes}
    overflowed = frozenset(sample for sample, count in enumerate(overflows) if count)
    return Trace(traces[0].engine, network, spikes, potentials, sum(overflows), peak, overflowed)
