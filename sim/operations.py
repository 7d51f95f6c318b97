"""Synaptic operations of an inference, counted as NeuroBench does (Yik et al., Nature Communications 2025).

Dense operations are those of all synapses at all T steps, zeros included. Effective ones are those where neither the
weight nor what arrives is 0: multiplications (MACs) over edges from the graded input, accumulations (ACs) of spikes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import grad

from sim.arguments import checked
from sim.fast.convolution import CURRENT, in_memory
from sim.network import INPUT, Edge, Layer, Network


@dataclass(frozen=True)
class Operations:
    """Operations of a layer, per sample."""

    dense: int
    macs: float
    acs: float


@dataclass(frozen=True)
class Caused:
    """Effective operations of a layer, over all samples."""

    macs: int
    acs: int


@checked
def operations(network: Network, fired: Mapping[str, np.ndarray], payload: np.ndarray) -> dict[str, Operations]:
    """Count by layer what payloads (B, *input.shape), at least one, caused; ``fired`` is that of their trace."""
    every, samples = dense(network), len(network.payload(payload))
    return {
        name: Operations(every[name], found.macs / samples, found.acs / samples)
        for name, found in caused(network, fired, payload).items()
    }


@checked
def caused(network: Network, fired: Mapping[str, np.ndarray], payload: np.ndarray) -> dict[str, Caused]:
    """Count effective operations by layer: integers, which add up over parts of the samples; as :func:`operations`."""
    payload = network.payload(payload)
    sent = {INPUT: network.timesteps * (payload != 0).sum(axis=0, dtype=np.int64), **fired}
    found = {}
    for layer in network.layers:
        effective = {True: 0, False: 0}
        for edge in layer.edges:
            reached = fan_out(network, layer, edge, nonzero=True) * sent[edge.source]
            effective[edge.source == INPUT] += int(reached.sum())
        found[layer.name] = Caused(effective[True], effective[False])
    return found


@checked
def dense(network: Network) -> dict[str, int]:
    """Count dense operations of a sample by layer."""
    return {
        layer.name: network.timesteps
        * sum(int(fan_out(network, layer, edge, nonzero=False).sum()) for edge in layer.edges)
        for layer in network.layers
    }


def fan_out(network: Network, layer: Layer, edge: Edge, nonzero: bool) -> np.ndarray:
    """Synapses, or those whose weight is not 0, that each neuron of an edge's source has: int64 (*shape)."""
    shape = network.shape_of(edge.source)
    form = CURRENT[type(edge.synapse)](edge.synapse, shape, layer.shape)
    counted = torch.from_numpy((form.weight != 0) if nonzero else np.ones(form.weight.shape, bool)).double()
    size = (1, len(in_memory(shape)), 1, 1) if form.flat else (1, *shape)
    reached = torch.ones((1, *layer.shape) if not form.flat else (1, layer.size, 1, 1), dtype=torch.float64)
    found = grad.conv2d_input(torch.Size(size), counted, reached, *form.geometry).numpy().astype(np.int64)[0]
    if not form.flat:
        return found
    ordered = np.empty(found.size, np.int64)
    ordered[in_memory(shape)] = found.ravel()
    return ordered.reshape(shape)
