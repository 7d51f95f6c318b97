"""A network as the fit sees it: neurons and lists of synapses, without a single weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from exporters.placement.published import Cores
from sim.clock import Clock
from sim.network import Conv2d, Dense, Layer, Network, Pair, Shape, SynapseTable

CLOCK = "(clock)"  #: the name of its layer, which no module has
RESET_BITS = 8  #: of -theta, the weight of the synapse by which a neuron of the stock form resets itself


@dataclass(frozen=True)
class Tile:
    """What one core holds of a layer: a block of (C, H, W), counted in full where it reaches beyond the layer."""

    channels: int
    rows: int = 1
    columns: int = 1

    @property
    def sites(self) -> int:
        """Number of places in space."""
        return self.rows * self.columns

    @property
    def neurons(self) -> int:
        """Number of neurons."""
        return self.channels * self.sites


@dataclass(frozen=True)
class DenseLoad:
    """Synapses from every neuron of a source to every neuron of a layer."""

    source: str
    inputs: int  #: neurons of the source
    bits: int  #: of a weight

    def words(self, tile: Tile, cores: Cores) -> int:
        """Return the words of synapses in a core: a list for each input, zeros included."""
        return self.inputs * math.ceil((tile.neurons * (self.bits + cores.dense_bits) + cores.dense_header) / 64)

    def axons_in(self, tile: Tile, cores: Cores) -> int:
        """Return the words of AxonIn in a core."""
        return self.inputs

    def axons_out(self, source: Tile, splits: int, cores: Cores) -> tuple[int, int]:
        """Return the words of AxonMap and AxonMem in a core of the source; ``splits`` is of the layer's channels."""
        return source.neurons, 0


@dataclass(frozen=True)
class ConvLoad:
    """A convolution; its kernel is in a core once for all places."""

    source: str
    inputs: int  #: channels of the source
    outputs: int  #: channels of the layer
    kernel: Pair
    bits: int
    groups: int = 1

    def words(self, tile: Tile, cores: Cores) -> int:
        """Return the words of synapses in a core: a list for each input channel and place in the kernel."""
        group = self.outputs // self.groups
        if tile.channels % group == 0 or group % tile.channels == 0:
            touched = math.ceil(tile.channels / group)
        else:
            touched = min(self.groups, math.ceil(tile.channels / group) + 1)
        lists = touched * (self.inputs // self.groups) * math.prod(self.kernel)
        return lists * (math.ceil(min(tile.channels, group) * self.bits / 64) + cores.conv_header)

    def axons_in(self, tile: Tile, cores: Cores) -> int:
        """Return the words of AxonIn in a core."""
        return cores.conv_axons_in

    def axons_out(self, source: Tile, splits: int, cores: Cores) -> tuple[int, int]:
        """Return the words of AxonMap and AxonMem in a core of the source: the most that the tables have."""
        return cores.conv_sites * source.sites, source.sites * splits


@dataclass(frozen=True)
class OwnLoad:
    """A synapse from every neuron of a layer without space to itself."""

    source: str
    bits: int

    def words(self, tile: Tile, cores: Cores) -> int:
        """Return the words of synapses in a core: a list of one for each neuron."""
        return tile.neurons * math.ceil((self.bits + cores.dense_bits + cores.dense_header) / 64)

    def axons_in(self, tile: Tile, cores: Cores) -> int:
        """Return the words of AxonIn in a core."""
        return tile.neurons

    def axons_out(self, source: Tile, splits: int, cores: Cores) -> tuple[int, int]:
        """Return the words of AxonMap and AxonMem in a core."""
        return source.neurons, 0


SynapseLoad = DenseLoad | ConvLoad | OwnLoad


@dataclass(frozen=True)
class LayerLoad:
    """A layer as the fit sees it. One without synapses is driven by the host, or by its biases."""

    name: str
    shape: Shape
    synapses: tuple[SynapseLoad, ...] = ()

    @property
    def size(self) -> int:
        """Number of neurons."""
        return math.prod(self.shape)

    @property
    def extent(self) -> tuple[int, int, int]:
        """The shape as (C, H, W)."""
        return (self.shape[0], 1, 1) if len(self.shape) == 1 else (self.shape[0], self.shape[1], self.shape[2])


def loads(network: Network, cores: Cores, clock: Clock | None = None) -> tuple[LayerLoad, ...]:
    """State a network in its stock form: its synapses, and one from each spiking neuron to itself for the reset.

    The input comes from the host and takes no core. A ``clock`` is one more layer, and more synapses for all others.
    """
    ticks = {} if clock is None else clock.ticks
    chain = LayerLoad(CLOCK, (clock.relays,), (OwnLoad(CLOCK, bits=1),)) if clock and clock.relays else None
    return (() if chain is None else (chain,)) + tuple(
        LayerLoad(
            layer.name,
            layer.shape,
            tuple(
                LOADS[type(edge.synapse)](edge.source, edge.synapse, weight_bits(edge.synapse.weight, cores))
                for edge in network.on_chip(layer)
            )
            + (() if layer.kind == "readout" else (_reset(layer),))
            + tuple(DenseLoad(CLOCK, t.relays, weight_bits(t.weight, cores)) for t in ticks.get(layer.name, ())),
        )
        for layer in network.layers
    )


def _reset(layer: Layer) -> SynapseLoad:
    if len(layer.shape) == 1:
        return OwnLoad(layer.name, RESET_BITS)
    channels = layer.shape[0]
    return ConvLoad(layer.name, channels, channels, (1, 1), RESET_BITS, groups=channels)


def _conv(source: str, synapse: Conv2d, bits: int) -> SynapseLoad:
    outputs, inputs, *kernel = synapse.weight.shape
    groups = synapse.geometry.groups
    return ConvLoad(source, inputs * groups, outputs, (kernel[0], kernel[1]), bits, groups)


#: (source, synapse, bits of its weights) -> its load
LOADS = SynapseTable[Callable[[str, Any, int], SynapseLoad]](
    {
        Dense: lambda source, synapse, bits: DenseLoad(source, synapse.weight.shape[1], bits),
        Conv2d: _conv,
    }
)


def weight_bits(weight: np.ndarray, cores: Cores) -> int:
    """Return the bits that weights need on ``cores``: without the zeros that all end with, without a sign if none has.

    Weights beyond the widest that a chip has are counted as wide as they are.
    """
    low, high = int(weight.min(initial=0)), int(weight.max(initial=0))
    common = int(np.bitwise_or.reduce(np.abs(weight), axis=None)) or 1
    step = common & -common
    low, high = low // step, high // step
    needed = max(high.bit_length(), (-low - 1).bit_length()) + 1 if low < 0 < high else max(high, -low).bit_length()
    return next((bits for bits in cores.weight_bits if bits >= needed), needed)
