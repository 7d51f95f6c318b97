"""The networks that the golden files hold, written out: small, and with everything that the format can say."""

from __future__ import annotations

import numpy as np

from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network


def numbers(*shape: int, most: int = 127) -> np.ndarray:
    """Integers -most..most in no order."""
    return (np.arange(np.prod(shape)).reshape(shape) * 37 + 11) % (2 * most + 1) - most


def sequence() -> Network:
    """Stock netx can build it: a strided convolution, a grouped one, a dense layer on (C, H, W), a flat one."""
    first = Edge(INPUT, Conv2d(numbers(4, 2, 3, 3), Geometry(stride=(2, 1), padding=(1, 1))))
    second = Edge("first", Conv2d(numbers(4, 2, 2, 2, most=90), Geometry(dilation=(1, 2), groups=2)))
    return Network(
        Input((2, 6, 5), bits=8, scale=0.375),
        (
            Layer("first", (4, 3, 5), (first,), 304, numbers(4), numbers(3, 4, most=40)),
            Layer("second", (4, 2, 3), (second,), 181, numbers(4), numbers(3, 4, 2, 3, most=20), holdoff=2),
            Layer("body.third", (5,), (Edge("second", Dense(numbers(5, 24))),), 510, numbers(5), numbers(3, 5)),
            Layer("out", (3,), (Edge("body.third", Dense(numbers(3, 5))),), 0, numbers(3), numbers(3, 3), "readout"),
        ),
        timesteps=3,
        holdoff=1,
    )


def residual() -> Network:
    """Only our own loader can: two edges into a layer, exponents, unsigned payloads of 12 bits."""
    stem = Edge(INPUT, Conv2d(numbers(3, 1, 3, 3), Geometry(padding=(1, 1))), exponent=-3)
    branch = Edge("stem", Conv2d(numbers(3, 3, 3, 3, most=60), Geometry(padding=(1, 1))))
    shortcut = Edge("stem", Conv2d(numbers(3, 1, 1, 1), Geometry(groups=3)), exponent=2)
    flat = Edge("sum", Dense(numbers(4, 48)))
    return Network(
        Input((1, 4, 4), bits=12, signed=False, scale=12.5),
        (
            Layer("stem", (3, 4, 4), (stem,), 255, numbers(3), numbers(2, 3)),
            Layer("sum", (3, 4, 4), (branch, shortcut), 128, numbers(3), numbers(2, 3)),
            Layer("head", (4,), (flat,), 0, numbers(4), numbers(2, 4), "readout"),
        ),
        timesteps=2,
    )
