"""What a network's layers are, and how close their firing rates come to the activations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from exporters.report import LEVELS, WANTED, EdgeRow, LayerRow, Rates
from sim.arguments import checked
from sim.fixedpoint import worst_case
from sim.network import Network
from toolchain.convert import Conversion
from toolchain.graph.channels import spatial, spread
from toolchain.inputs import as_inputs

RATE_BATCH = 32  #: inputs traced at a time


@checked
def rates(conversion: Conversion, x: Any) -> Rates:
    """Wanted rates, ``clip(activation / theta, 0, 1)``, and measured ones of each spiking layer; float32 (n,) both.

    On some of the model inputs (see :func:`toolchain.graph.channels.spread`), enough for a stable picture.
    """
    x = as_inputs(x, conversion.network.input.model_shape)
    x = x[spread(len(x))]
    found: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    for part in x.split(RATE_BATCH):
        trace = conversion.run(part, overflow="count")
        for layer, _, activation in conversion.graph.walk(part):
            if layer.kind == "spiking":
                theta = spatial(conversion.scales[layer.name].theta, layer.shape).float()
                wanted = (activation / theta).clamp(0, 1).flatten().numpy()
                found.setdefault(layer.name, []).append((wanted, trace.rates(layer.name).ravel()))
    return {
        name: (np.concatenate(w), np.concatenate(r))
        for name, (w, r) in ((n, zip(*p, strict=True)) for n, p in found.items())
    }


@checked
def layer_table(network: Network) -> tuple[LayerRow, ...]:
    """One row per layer."""
    return tuple(
        LayerRow(
            name=layer.name,
            shape=layer.shape,
            kind=layer.kind,
            edges=tuple(
                EdgeRow(
                    source=edge.source,
                    synapse=type(edge.synapse).__name__,
                    weight_shape=edge.synapse.weight.shape,
                )
                for edge in layer.edges
            ),
            weights=sum(edge.synapse.weight.size for edge in layer.edges),
            theta=layer.threshold,
            phase=network.phase[layer.name],
            bias_min=int(layer.bias.min()),
            bias_max=int(layer.bias.max()),
            neurons=layer.size,
            worst_case=worst_case(network, layer),
        )
        for layer in network.layers
    )


def measured_layers(conversion: Conversion, measured: Rates) -> tuple[LayerRow, ...]:
    """Build the layer table with what the run showed: register peaks, spikes, and rates against activations."""
    limit = conversion.recipe.limits.state_limit
    copies = {layer.name: layer.copies for layer in conversion.source.layers}
    table = []
    for row in layer_table(conversion.network):
        outside = conversion.outside.get(row.name)
        row = replace(row, copies=copies[row.name], peak=conversion.peak[row.name], outside=outside, state_limit=limit)
        if row.name in measured:
            wanted, rate = measured[row.name]
            row = replace(
                row,
                spikes_per_neuron=float(rate.mean()) * conversion.network.timesteps,
                rate_error=float(np.abs(rate - wanted).mean()),
                histogram=_histogram(wanted, rate, min(conversion.network.timesteps, LEVELS)),
            )
            if wanted.std() > 0 and rate.std() > 0:  # a silent layer has no correlation
                row = replace(row, correlation=float(np.corrcoef(wanted, rate)[0, 1]))
        table.append(row)
    return tuple(table)


def _histogram(wanted: np.ndarray, rate: np.ndarray, levels: int) -> tuple[tuple[int, ...], ...]:
    """Count by rate, 0/levels .. levels/levels, and by wanted rate; both (n,) of 0..1."""
    column = np.minimum((wanted * WANTED).astype(int), WANTED - 1)
    row = np.rint(rate * levels).astype(int)
    counts = np.bincount(row * WANTED + column, minlength=(levels + 1) * WANTED).reshape(levels + 1, WANTED)
    return tuple(map(tuple, counts.tolist()))
