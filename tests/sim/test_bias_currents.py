"""The input as bias currents gives what graded payloads give, on every engine, with no synapse left that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from random_networks import networks

from sim import fast, inputs, reference
from sim.findings import Finding
from sim.fixedpoint import RegisterOverflow
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from sim.stock import inexact
from sim.trace import first_difference


def one_neuron(holdoff: int, timesteps: int = 3) -> Network:
    bias = np.array([[1], [2], [3]])[:timesteps]
    first = Layer("first", (1,), (Edge(INPUT, Dense(np.array([[2, -1]]))),), 50, np.array([4]), bias)
    zeros = np.zeros((timesteps, 1), int)
    out = Layer("out", (1,), (Edge("first", Dense(np.array([[1]]))),), 0, zeros[0], zeros, "readout")
    return Network(Input((2,)), (first, out), timesteps, holdoff)


@pytest.mark.parametrize(
    ("holdoff", "schedule"), [(0, [11, 12, 13]), (1, [21, 12, 3]), (2, [31, 2, 3]), (5, [31, 2, 3])]
)
def test_the_current_arrives_with_the_schedule_and_what_came_before_when_the_window_opens(
    holdoff: int, schedule: list[int]
) -> None:
    """2 * 7 - 4 = 10 su arrive at t = 1, 2, 3; the window opens at 1 + K."""
    (driven,) = inputs.by_bias(one_neuron(holdoff), np.array([[7, 4]]))
    assert driven["first"].bias.ravel().tolist() == schedule
    assert not driven["first"].edges[0].synapse.weight.any()
    assert driven.phase == one_neuron(holdoff).phase


@settings(max_examples=60, derandomize=True, deadline=None)
@given(networks())
def test_reference_and_fast_give_the_same_spikes_and_potentials_by_currents(drawn: tuple[Network, Any]) -> None:
    network, payload = drawn
    expected = reference.run(network, payload, overflow="count")
    for engine in (partial(reference.run, overflow="count"), partial(fast.run, overflow="count")):
        assert first_difference(expected, inputs.run(network, payload, engine)) is None


def test_an_engine_that_fails_names_the_sample_and_not_its_only_one() -> None:
    def engine(network: Network, payload: np.ndarray) -> Any:
        if network["first"].bias[0, 0] > 5:
            where = "layer first, channel 0, step 1 of sample 0"
            raise RegisterOverflow(Finding(where, "it broke", "lower it"))
        return reference.run(network, payload)

    with pytest.raises(RegisterOverflow, match="layer first, channel 0, step 1 of sample 2: it broke; lower it"):
        inputs.run(one_neuron(0), np.array([[0, 0], [1, 1], [7, 4]]), engine)


def test_no_layer_reads_the_input_any_more_where_another_one_feeds_it() -> None:
    network = one_neuron(0)
    out = replace(network.readout, edges=(*network.readout.edges, Edge(INPUT, Dense(np.array([[5, 5]])))))
    (driven,) = inputs.by_bias(replace(network, layers=(network.layers[0], out)), np.array([[1, 1]]))
    assert [edge.source for edge in driven.readout.edges] == ["first"]
    assert driven.readout.bias.ravel().tolist() == [20, 10, 0]


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize("form", ["native", "stock"])
@pytest.mark.parametrize("name", ["dense, held", "convolutions", "residual"])
def test_lava_gives_the_same_by_currents(name: str, form: Any, compared: Callable[[str], None]) -> None:
    from test_clock import NETWORKS, drawn

    from sim import on_lava

    network = NETWORKS[name]
    payload = drawn(7, 1, *network.input.shape, low=-3, high=7)
    for driven in inputs.by_bias(network, payload):
        assert not inexact(driven, np.zeros((1, 1), int), form)
    trace = inputs.run(network, payload, partial(on_lava.run, form=form))
    assert first_difference(reference.run(network, payload), trace) is None
    compared(f"reference = currents on Lava, {form}")
