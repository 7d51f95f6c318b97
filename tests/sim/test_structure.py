"""A network that means nothing is refused when it is made, with every finding at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network


def layers(**changes: Any) -> tuple[Layer, Layer]:
    hidden = Layer("a", (2,), (Edge(INPUT, Dense(np.ones((2, 3), int))),), 8, [0, 0], np.zeros((4, 2), int))
    out = Layer("out", (1,), (Edge("a", Dense(np.ones((1, 2), int))),), 0, [0], np.zeros((4, 1), int), "readout")
    return replace(hidden, **changes), out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"threshold": 64.5},
            "a: threshold 64.5 is no integer, or far too large; give a whole number, 2147483648 at most",
        ),
        ({"threshold": float("nan")}, "a: threshold nan is no integer"),
        ({"threshold": True}, "a: threshold True is no integer"),
        ({"threshold": 1 << 40}, "a: threshold 1099511627776 is no integer, or far"),
        ({"holdoff": 1.0}, "a: holdoff 1.0 is no integer"),
        ({"shape": (2.0,)}, "a: shape 2.0 is no integer"),
        (
            {"edges": (Edge(INPUT, Dense(np.ones((2, 3), int)), 100),)},
            "a <- input: exponent 100 is no integer, or far",
        ),
        ({"edges": (Edge(INPUT, Dense(np.ones((2, 3), int)), 0.5),)}, "a <- input: exponent 0.5 is no integer"),
    ],
)
def test_scalars_that_are_no_integers_are_findings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        Network(Input((3,)), layers(**changes), 4)


def test_a_size_beyond_all_computers_is_refused_where_it_stands() -> None:
    conv = Edge(INPUT, Conv2d(np.ones((1, 1, 1, 1), int), Geometry(stride=(1 << 31, 1))))
    hidden = Layer("a", (1, 512, 1), (conv,), 8, [0], np.zeros((4, 1), int))
    out = Layer("out", (1,), (Edge("a", Dense(np.ones((1, 512), int))),), 0, [0], np.zeros((4, 1), int), "readout")
    with pytest.raises(Refused, match="input: shape 1099511627777 is no integer, or far too large"):
        Network(Input((1, (1 << 40) + 1, 1)), (hidden, out), 4)


@pytest.mark.parametrize("timesteps", ["4", 4.0, None, 1 << 20])
def test_a_window_is_an_integer_number_of_steps(timesteps: Any) -> None:
    with pytest.raises(Refused, match=r"timesteps: T .* is no integer, or far too large"):
        Network(Input((3,)), layers(), timesteps)


@pytest.mark.parametrize("groups", [-1, 0, 2.0])
def test_groups_are_counted(groups: Any) -> None:
    conv = Conv2d(np.ones((2, 1, 1, 1), int), Geometry(groups=groups))
    hidden = Layer("a", (2, 2, 2), (Edge(INPUT, conv),), 8, [0, 0], np.zeros((4, 2), int))
    with pytest.raises(Refused, match=r"a <- input: (groups 2.0 is no integer|weight .* -?[01] groups, does not fit)"):
        Network(Input((1, 2, 2)), (hidden, layers()[1]), 4)


def test_a_readout_has_no_holdoff() -> None:
    hidden, out = layers()
    with pytest.raises(Refused, match="out: holdoff 3; leave it out: a readout never spikes"):
        Network(Input((3,)), (hidden, replace(out, holdoff=3)), 4)


def test_numpys_integers_are_integers() -> None:
    network = Network(Input((3,)), layers(threshold=np.int64(8), holdoff=np.int8(1)), np.int32(4))
    assert network == Network(Input((3,)), layers(holdoff=1), 4)
