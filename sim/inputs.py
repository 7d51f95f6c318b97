"""The input as bias currents: the host computes what the payload causes in every layer that reads it.

The payload is the same at every step of its window, and so is the current that it causes. The host adds it to the
layer's schedule, and no input synapses are left. That is exact: inside its firing window a layer holds and does what it
would with them. Before the window it lacks what the host brings when that opens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from sim.fast import Currents
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from sim.trace import Trace

#: What is left of the input: nothing that is ever sent. A layer needs an edge, which says when it starts.
NOTHING = Input((1,), bits=1, signed=False)


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


def _driven(network: Network, layer: Layer, current: np.ndarray) -> Layer:
    steps = np.arange(network.timesteps)
    phase = network.phase[layer.name]
    arrivals = (phase + steps <= network.timesteps).astype(np.int64)  # the payload arrives at t = 1..T
    arrivals[0] = min(phase, network.timesteps)
    added = arrivals.reshape(-1, *(1,) * len(layer.shape)) * current
    others = tuple(edge for edge in layer.edges if edge.source != INPUT)
    silent = Edge(INPUT, Dense(np.zeros((layer.size, 1), int)))
    return replace(layer, edges=others or (silent,), bias=layer.per_neuron(layer.bias) + added)


def run(network: Network, payload: np.ndarray, engine: Callable[[Network, np.ndarray], Trace]) -> Trace:
    """Run payloads (B, *input.shape) as bias currents, one sample after the other, on ``engine``.

    The trace is one of ``network``: what a layer lacks before its window, which the host knows, is added to its
    potentials there. Raises as :func:`by_bias` and the engine do.
    """
    arriving, traces = currents(network, payload), []
    spikes, potentials = (
        {n.name: np.zeros((len(payload), len(network.busy(n)), *n.shape), kind) for n in network.layers}
        for kind in (np.uint8, np.int64)
    )
    for sample, driven in enumerate(by_bias(network, payload)):
        traces.append(trace := engine(driven, np.zeros((1, 1), np.int32)))
        for layer in network.layers:
            name, busy = layer.name, network.busy(layer)
            late = len(busy) - len(driven.busy(driven[name]))
            spikes[name][sample, late:] = trace.spikes[name][0]
            potentials[name][sample, :late] = layer.per_neuron(layer.v0)
            potentials[name][sample, late:] = trace.potentials[name][0]
            for index, t in enumerate(busy):
                if name in arriving and t < network.phase[name]:
                    potentials[name][sample, index] += min(t, network.timesteps) * arriving[name][sample]
    return Trace(traces[0].engine if traces else "", network, spikes, potentials)
