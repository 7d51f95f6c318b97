"""What a network's layers are, and how close their firing rates come to the activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from exporters.report import EdgeRow, LayerRow
from sim.arguments import checked
from sim.fixedpoint import worst_case
from sim.network import Network
from toolchain.assessment.attribution import Firing
from toolchain.convert import Conversion


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


def measured_layers(conversion: Conversion, firing: Mapping[str, Firing]) -> tuple[LayerRow, ...]:
    """Build the layer table with what the run showed: register peaks, spikes, and rates against activations."""
    limit = conversion.recipe.limits.state_limit
    copies = {layer.name: layer.copies for layer in conversion.source.layers}
    table = []
    for row in layer_table(conversion.network):
        outside = conversion.outside.get(row.name)
        row = replace(row, copies=copies[row.name], peak=conversion.peak[row.name], outside=outside, state_limit=limit)
        if row.name in firing:
            found = firing[row.name]
            row = replace(
                row,
                spikes_per_neuron=found.per_neuron,
                rate_error=found.error,
                correlation=found.correlation,
                histogram=found.histogram,
            )
        table.append(row)
    return tuple(table)
