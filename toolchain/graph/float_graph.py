"""The float graph: the trained network reduced to spiking layers and the linear maps between them.

Between two activations everything is linear, so the current into a layer is a sum over its source layers of one
linear map each, plus a constant. The graph is still float and still an ANN: it equals the torch model, and it is what
thresholds, quantisation and calibration start from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from sim.fast.convolution import convolved
from sim.network import INPUT, Geometry, Shape
from toolchain.graph import precise
from toolchain.graph.activations import clipped, slipped


@dataclass(frozen=True, eq=False)
class FloatDense:
    """``weight @ flatten(x)``, computed in the weight's type and returned in that of x."""

    weight: Tensor = field(repr=False)  #: float32 (N_out, N_in), N_in in C, H, W order

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, *source shape) to (B, N_out)."""
        return functional.linear(x.flatten(1).to(self.weight.dtype), self.weight).to(x.dtype)


@dataclass(frozen=True, eq=False)
class FloatConv2d:
    """``torch.nn.functional.conv2d`` with zero padding and without a bias, in the types of :class:`FloatDense`."""

    weight: Tensor = field(repr=False)  #: float32 (C_out, C_in / groups, kH, kW)
    geometry: Geometry = field(default_factory=Geometry)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        weight, (stride, padding, _, _) = self.weight, self.geometry
        if weight.shape[1:] == (1, 1, 1) and len(weight) == x.shape[1] and padding == (0, 0):  # as a shortcut
            return (x[:, :, :: stride[0], :: stride[1]] * weight[:, 0]).to(x.dtype)
        if weight.dtype == torch.float64:
            return precise.conv2d(x, weight, self.geometry)
        return convolved(x.to(weight.dtype), weight, self.geometry).to(x.dtype)


FloatMap = FloatDense | FloatConv2d


def _widened(map_: FloatMap, source: Shape, target: Shape, read: int, copies: int) -> FloatMap:
    """Repeat a map's weights for so many copies of what it reads, of shape ``source``, and of its ``target``."""
    # A channel's copies follow it as a whole: of a dense map into space, all its rows.
    rows = map_.weight.reshape(target[0], -1, *map_.weight.shape[1:])
    weight = rows.repeat_interleave(copies, 0).flatten(0, 1) / read
    if isinstance(map_, FloatDense):
        by_channel = weight.reshape(len(weight), source[0], -1)
        return FloatDense(by_channel.repeat_interleave(read, 1).flatten(1))
    return replace(map_, weight=weight.repeat_interleave(read, 1))


@dataclass(frozen=True, eq=False)
class FloatEdge:
    """The linear map from one source into the layer that holds the edge."""

    source: str  #: ``sim.network.INPUT`` or an earlier layer
    map: FloatMap


@dataclass(frozen=True, eq=False)
class FloatLayer:
    """``clamp(sum of edges + bias, 0, upper)``, or the same without the activation for the readout.

    Where ``levels`` is given, the activation rounds to the nearest of its steps, halves up (see
    :class:`toolchain.graph.activations.QCFS`).
    """

    name: str  #: qualified name of the torch module that the layer's current comes from
    shape: Shape
    edges: tuple[FloatEdge, ...]
    bias: Tensor = field(repr=False)  #: float32 (C,), or (*shape) where it differs over space
    kind: Literal["spiking", "readout"] = "spiking"
    #: Where the activation ends, in its own unit, for all channels or float32 (C,); None for a ReLU, which does not.
    upper: float | Tensor | None = None
    levels: int | None = None  #: steps from 0 to ``upper`` that a quantised activation takes; None for a continuous one
    slope: float = 0.0  #: share of the activation that takes no steps, where the rest does
    #: Initial potential that the activation was trained for: "half" a threshold, or that half as a "shift", 1/T of it
    #: at every step; None leaves it to the recipe.
    initial: Literal["half", "shift"] | None = None
    holdoff: int | None = None  #: K of this layer; None takes the network's
    activation: str = ""  #: qualified name of the torch module that applies the activation
    #: Neurons that draw each activation together, and whose readers take their mean; once the graph is
    #: :meth:`FloatGraph.widened`, channel c's are the channels c * copies .. c * copies + copies - 1.
    copies: int = 1

    @property
    def spread(self) -> Tensor:
        """The bias in a shape that adds to (B, *shape)."""
        return self.bias if self.bias.shape == self.shape else self.bias.reshape(-1, *(1,) * (len(self.shape) - 1))

    def activate(self, current: Tensor) -> Tensor:
        """Apply the activation to (B, *shape)."""
        if self.kind == "readout":
            return current
        if self.upper is None:
            return current.clamp_min(0)
        upper = torch.as_tensor(self.upper).reshape(-1, *(1,) * (len(self.shape) - 1))
        if self.levels is None:
            return clipped(current, upper)
        return slipped(current, upper, self.levels, self.slope, current.requires_grad)


@dataclass(frozen=True, eq=False)
class FloatGraph:
    """Layers in topological order, the readout last."""

    input_shape: Shape
    layers: tuple[FloatLayer, ...]
    #: Which value of the flattened model input each one that layers read is, int64 (*input_shape); None: as given
    order: Tensor | None = None
    given: Shape | None = None  #: shape of the model's input, without the batch; None where it is ``input_shape``
    limit: Tensor | None = None  #: magnitude by channel, float32 (C,), beyond which inputs are cut off; None: nowhere
    #: Largest difference of a logit from the imported model's, relative to the largest, before weights were rounded to
    #: float32; None where no model was imported.
    import_error: float | None = None
    left_off: bool = False  #: whether the imported model ends in a softmax or sigmoid, and the graph before it

    @property
    def model_shape(self) -> Shape:
        """Shape of the model's input, without the batch."""
        return self.input_shape if self.given is None else self.given

    def arrange(self, x: Tensor) -> Tensor:
        """Bring model inputs (B, *model_shape) into order and range in which layers read them, (B, *input_shape)."""
        x = x if self.order is None else x.flatten(1)[:, self.order]
        if self.limit is None:
            return x
        limit = self.limit.reshape(-1, *(1,) * (len(self.input_shape) - 1))
        return x.clamp(-limit, limit)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape of the input and of every layer, by name."""
        return {INPUT: self.input_shape} | {layer.name: layer.shape for layer in self.layers}

    def stairs(self, thetas: Mapping[str, Tensor], timesteps: int) -> FloatGraph:
        """Return the graph with activations that take the steps which T spikes draw up to ``thetas`` (C,), by layer.

        It is what is left of the network if spikes arrive evenly and integers cost nothing.
        """
        layers = (
            replace(layer, upper=thetas[layer.name], levels=timesteps * layer.copies, slope=0.0)
            if layer.kind == "spiking"
            else layer
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))

    def widened(self) -> FloatGraph:
        """Return the same function with every layer's ``copies`` as channels of their own, one behind the other.

        Each gets the weights and the bias of its channel, and whoever reads it divides by their number.
        """
        copies = {INPUT: 1} | {layer.name: layer.copies for layer in self.layers}
        if set(copies.values()) == {1}:
            return self
        layers = []
        for layer in self.layers:
            edges = tuple(
                FloatEdge(
                    edge.source,
                    _widened(edge.map, self.shapes[edge.source], layer.shape, copies[edge.source], layer.copies),
                )
                for edge in layer.edges
            )
            bias, upper = layer.bias.repeat_interleave(layer.copies, 0), layer.upper
            if isinstance(upper, Tensor):
                upper = upper.repeat_interleave(layer.copies, 0)
            shape = (layer.shape[0] * layer.copies, *layer.shape[1:])
            layers.append(replace(layer, shape=shape, edges=edges, bias=bias, upper=upper))
        return replace(self, layers=tuple(layers))

    def steps(self, timesteps: int, holdoff: int) -> tuple[int, int]:
        """Count the steps until the logits are there, and those between samples at least.

        As ``Network.steps`` and ``Network.period`` of the network that the graph becomes.
        """
        phase, waited = {INPUT: 0}, 0
        for layer in self.layers:
            arrivals = [phase[edge.source] + 1 for edge in layer.edges]
            later = 0 if layer.kind == "readout" else holdoff if layer.holdoff is None else layer.holdoff
            phase[layer.name] = max(arrivals) + later
            waited = max(waited, phase[layer.name] - min(arrivals))
        return max(phase.values()) + timesteps, waited + timesteps

    def precise(self) -> FloatGraph:
        """Return the same graph with maps that sum in float64 and round once.

        Sums of float32 differ in their last digits from processor to processor, and a network of rounded weights has
        no small differences: rounded from float64 to float32 they hardly ever do.
        """
        layers = [
            replace(
                layer,
                edges=tuple(
                    replace(edge, map=replace(edge.map, weight=edge.map.weight.double())) for edge in layer.edges
                ),
            )
            for layer in self.layers
        ]
        return replace(self, layers=tuple(layers))

    def run(self, x: Tensor) -> dict[str, Tensor]:
        """Activations of every layer (the readout's are the logits) for model inputs float32 (B, *model_shape)."""
        return {layer.name: activation for layer, _, activation in self.walk(x)}

    def walk(self, x: Tensor) -> Iterator[tuple[FloatLayer, dict[str, Tensor], Tensor]]:
        """Go through the layers in order: each with its sources' values and its activation, (B, *shape).

        ``x`` are model inputs (B, *model_shape). A value is forgotten after the last layer that reads it.
        """
        for layer, sources, _, activation in self.currents(x):
            yield layer, sources, activation

    def currents(self, x: Tensor) -> Iterator[tuple[FloatLayer, dict[str, Tensor], Tensor, Tensor]]:
        """Go through the layers as :meth:`walk` does, with the current that the activation is applied to before it."""
        last_reader = {edge.source: layer.name for layer in self.layers for edge in layer.edges}
        values = {INPUT: self.arrange(x)}
        for layer in self.layers:
            sources = {edge.source: values[edge.source] for edge in layer.edges}
            current = self.current(layer, sources)
            values[layer.name] = layer.activate(current)
            yield layer, sources, current, values[layer.name]
            for source in sources:
                if last_reader[source] == layer.name:
                    del values[source]

    def forward(self, layer: FloatLayer, values: Mapping[str, Tensor]) -> Tensor:
        """Compute one layer's activation from its sources' (B, *shape)."""
        return layer.activate(self.current(layer, values))

    def current(self, layer: FloatLayer, values: Mapping[str, Tensor]) -> Tensor:
        """Compute what one layer's activation is applied to from its sources' (B, *shape)."""
        return sum(
            (edge.map(values[edge.source]).reshape(-1, *layer.shape) for edge in layer.edges), start=layer.spread[None]
        )

    def logits(self, x: Tensor, batch: int = 512) -> Tensor:
        """Logits of the readout, float32 (B, N), computed in batches."""
        return torch.cat([self.run(chunk)[self.layers[-1].name] for chunk in x.split(batch)])
