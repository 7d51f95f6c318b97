"""Random small integer networks for property tests: structure drawn by hypothesis, numbers from a drawn seed."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Shape, Synapse


@st.composite
def networks(
    draw: st.DrawFn,
    sequential: bool = False,
    max_layers: int = 4,
    extreme: bool = False,
    shortcuts: bool = False,
    longest: int = 16,
) -> tuple[Network, np.ndarray]:
    """Draw a network and payloads for it.

    Covers dense and convolutional edges, strides, padding, dilation, groups, several edges into one layer and binary
    exponents, over up to ``longest`` steps; ``shortcuts`` also has relays and convolutions beside the main path;
    ``extreme`` has payloads of up to 24 bits and exponents from -7 to 7, and sums that leave 32 bits;
    ``sequential`` keeps to what a stock-loadable `.net` holds: one edge from the layer before, no exponents.
    """
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    timesteps, holdoff = draw(st.integers(1, longest)), draw(st.integers(0, 3))
    spatial = draw(st.booleans())
    shape: Shape = (draw(st.sampled_from([1, 2, 4])), draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    source = Input(
        shape if spatial else (draw(st.integers(1, 8)),),
        bits=draw(st.sampled_from([12, 16, 23, 24] if extreme else [2, 4, 8])),
        signed=draw(st.booleans()),
    )
    exponents = [-7, -4, -2, 0, 0, 3, 7] if extreme else [0, 0, 1, -1]
    shapes: dict[str, Shape] = {INPUT: source.shape}
    layers: list[Layer] = []
    for index in range(draw(st.integers(1, max_layers))):
        name = f"layer{index}"
        main = list(shapes)[-1]
        if shortcuts and len(shapes[main]) == 3 and draw(st.booleans()):
            channels = shapes[main][0]
            synapse: Synapse = Conv2d(rng.integers(-127, 128, (channels, channels, 3, 3)), Geometry(padding=(1, 1)))
        else:
            synapse = draw(synapses(shapes[main], rng))
        size = synapse.output_shape(shapes[main])
        edges = [Edge(main, synapse, 0 if sequential else draw(st.sampled_from(exponents)))]
        if not sequential:
            others = draw(st.lists(st.sampled_from(list(shapes)), max_size=2))
            edges += [
                Edge(
                    other,
                    weights(rng, (math.prod(size), math.prod(shapes[other]))),
                    draw(st.sampled_from(exponents)) if extreme else 0,
                )
                for other in others
            ]
            if shortcuts and len(size) == 3:
                edges += draw(beside(rng, shapes, size, exponents))
        layers.append(_layer(draw, rng, name, size, tuple(edges), timesteps, "spiking", source))
        shapes[name] = size
    main = list(shapes)[-1]
    readout = _layer(draw, rng, "readout", (draw(st.integers(1, 5)),), (), timesteps, "readout", source)
    edge = Edge(main, weights(rng, (readout.size, math.prod(shapes[main]))))
    layers.append(Layer(readout.name, readout.shape, (edge,), 0, readout.v0, readout.bias, "readout"))
    network = Network(source, tuple(layers), timesteps, holdoff)
    low, high = source.limits
    return network, rng.integers(low, high + 1, (draw(st.integers(1, 3)), *source.shape))


def weights(rng: np.random.Generator, shape: tuple[int, ...]) -> Dense:
    """Draw a dense synapse; one positive entry keeps it loadable by stock netx."""
    weight = rng.integers(-127, 128, shape)
    weight.flat[rng.integers(weight.size)] = 127
    return Dense(weight)


@st.composite
def beside(
    draw: st.DrawFn, rng: np.random.Generator, shapes: dict[str, Shape], size: Shape, exponents: list[int]
) -> list[Edge]:
    """Draw edges over which residual blocks are closed: one synapse a neuron, or a convolution of 1 x 1."""
    found = []
    for name, shape in shapes.items():
        if len(shape) == 3 and shape[1:] == size[1:] and draw(st.booleans()):
            alone = shape == size and draw(st.booleans())
            weight = rng.integers(-127, 128, (size[0], 1 if alone else shape[0], 1, 1))
            synapse = Conv2d(weight, Geometry(groups=size[0] if alone else 1))
            found.append(Edge(name, synapse, draw(st.sampled_from(exponents))))
    return found


@st.composite
def synapses(draw: st.DrawFn, source: Shape, rng: np.random.Generator) -> Synapse:
    """Draw a synapse that fits a source of shape ``source``."""
    if len(source) == 1 or draw(st.integers(0, 3)) == 0:
        return weights(rng, (draw(st.integers(1, 8)), math.prod(source)))
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if source[0] % g == 0]))
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    kernel, stride, dilation = draw(st.tuples(st.integers(1, 3), st.integers(1, 3))), draw(pair), draw(pair)
    padding = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
    weight = rng.integers(-127, 128, (groups * draw(st.integers(1, 2)), source[0] // groups, *kernel))
    synapse = Conv2d(weight, Geometry(stride, padding, dilation, groups))
    try:
        synapse.output_shape(source)
    except Refused:  # the dilated kernel is larger than the padded source
        return Conv2d(weight, Geometry(stride, (2, 2), groups=groups))
    return synapse


def _layer(
    draw: st.DrawFn,
    rng: np.random.Generator,
    name: str,
    shape: Shape,
    edges: tuple[Edge, ...],
    timesteps: int,
    kind: str,
    source: Input,
) -> Layer:
    """Draw threshold, initial potential and schedule, as large as keeps about half of the neurons busy."""
    fan_in = max((math.prod(e.synapse.weight.shape[1:]) for e in edges), default=1)
    from_input = any(edge.source == INPUT for edge in edges)
    drive = 60 * math.sqrt(fan_in) * (source.limits[1] if from_input else 1)
    theta = (
        int(rng.integers(1, 255))
        if drive < 255
        else int(rng.integers(1, 255)) << min(7, max(0, round(math.log2(drive / 255))))
    )
    spread = max(2, min(theta, 4000 // (timesteps + 1)))
    per_neuron = draw(st.booleans()) and len(shape) == 3
    bias = rng.integers(-spread // 2, spread // 2 + 1, (timesteps, *(shape if per_neuron else shape[:1])))
    v0 = rng.integers(-spread // 2, spread // 2 + 1, shape[:1])
    holdoff = draw(st.sampled_from([None, None, 0, 2])) if kind == "spiking" else None
    return Layer(name, shape, edges, 0 if kind == "readout" else theta, v0, bias, kind, holdoff)  # type: ignore[arg-type]
