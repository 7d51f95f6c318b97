"""A clock on the chip brings what a host would write: spike for spike, with hold-off, and nothing written meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from random_networks import networks

from sim import reference
from sim.chip import WIDE, check
from sim.clock import Clock, clock
from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Synapse

T = 4


def drawn(seed: int, *shape: int, low: int = -60, high: int = 60) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def layer(name: str, sources: dict[str, tuple[int, ...]], synapses: list[Synapse], theta: int, spread: int) -> Layer:
    edges = tuple(Edge(source, synapse) for source, synapse in zip(sources, synapses, strict=True))
    shape = synapses[0].output_shape(next(iter(sources.values())))
    bias = drawn(len(name), T, *shape, low=-spread, high=spread)
    v0 = drawn(theta, shape[0], low=0, high=theta // 2 + 4)
    return Layer(name, shape, edges, theta, v0, bias, "spiking" if theta else "readout")


def dense(spread: int = 50) -> Network:
    hidden = layer("hidden", {INPUT: (3,)}, [Dense(drawn(1, 5, 3))], 150, spread)
    deeper = layer("deeper", {"hidden": (5,)}, [Dense(drawn(2, 4, 5))], 90, spread)
    return Network(
        Input((3,), bits=4), (hidden, deeper, layer("out", {"deeper": (4,)}, [Dense(drawn(3, 2, 4))], 0, 50)), T
    )


def convolutions() -> Network:
    """With biases of single neurons."""
    shape = (2, 4, 3)
    first = layer("first", {INPUT: shape}, [Conv2d(drawn(1, 4, 1, 3, 3), Geometry(padding=(1, 1), groups=2))], 300, 40)
    second = layer("second", {"first": (4, 4, 3)}, [Conv2d(drawn(2, 2, 4, 2, 2))], 140, 40)
    return Network(
        Input(shape, bits=4), (first, second, layer("out", {"second": (2, 3, 2)}, [Dense(drawn(3, 2, 12))], 0, 40)), T
    )


def residual() -> Network:
    """Two paths of different length meet, so that currents arrive before the window opens."""
    shape, same = (2, 3, 3), Geometry(padding=(1, 1))
    stem = layer("stem", {INPUT: shape}, [Conv2d(drawn(1, 2, 2, 3, 3), same)], 250, 40)
    block = layer("block", {"stem": shape}, [Conv2d(drawn(2, 2, 2, 3, 3), same)], 120, 40)
    joined = layer(
        "joined", {"block": shape, "stem": shape}, [Conv2d(drawn(k, 2, 2, 3, 3), same) for k in (3, 4)], 130, 40
    )
    return Network(
        Input(shape, bits=4), (stem, block, joined, layer("out", {"joined": shape}, [Dense(drawn(5, 3, 18))], 0, 40)), T
    )


NETWORKS = {
    "dense": dense(),
    "dense, held": replace(dense(), holdoff=2),
    "dense, steps of two digits": dense(900),
    "convolutions": convolutions(),
    "convolutions, held": replace(convolutions(), holdoff=1),
    "residual": residual(),
    "residual, held": replace(residual(), holdoff=1),
}


def brought(found: Clock, name: str, steps: int) -> np.ndarray:
    """What has come into u of a layer's neurons by each step, (steps, N): relay r brings at r + 1."""
    added = np.zeros((steps, found.bias[name].size), np.int64)
    for ticks in found.ticks[name]:
        for relay in range(ticks.relays):
            added[ticks.first + relay + 1] += ticks.weight[:, relay] << ticks.exponent
    return np.cumsum(added, axis=0)


def obeys(network: Network) -> None:
    """In the window u + bias_mant is higher by v0 and the schedule; outside it is lower by the hold."""
    found = clock(network)
    for layer in network.layers:
        offset = brought(found, layer.name, network.steps + 1) + found.bias[layer.name].reshape(-1)
        opens = network.phase[layer.name]
        window = layer.per_neuron(layer.offsets).reshape(network.timesteps, -1)
        np.testing.assert_array_equal(offset[opens : opens + network.timesteps], window)
        if layer.kind == "spiking":
            start, hold = layer.per_neuron(layer.v0).reshape(-1), found.hold[layer.name]
            np.testing.assert_array_equal(offset[:opens], np.broadcast_to(start - hold, (opens, layer.size)))
            assert (offset[opens + network.timesteps :] == window[-1] - hold).all()
            assert found.bias[layer.name].min() >= -4096
            assert start.min() - hold < -4096 + 128


@pytest.mark.parametrize("name", NETWORKS)
def test_a_clock_brings_the_schedule_and_holds_outside_the_window(name: str) -> None:
    obeys(NETWORKS[name])


@settings(max_examples=40, derandomize=True, deadline=None)
@given(networks())
def test_a_clock_brings_any_schedule_that_the_chip_holds(drawn: tuple[Network, Any]) -> None:
    if not check(drawn[0]):
        obeys(drawn[0])


def test_what_two_synapses_of_8_bits_cannot_hold_is_refused() -> None:
    far = replace(dense().layers[0], bias=np.full((T, 5), 99_999))
    with pytest.raises(Refused, match=r"hidden: biases 99999..99999 leave two synapses of 8 bits"):
        clock(replace(dense(), layers=(far, *dense().layers[1:])), WIDE)


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_lava_gives_the_spikes_of_the_reference_with_nothing_written(
    name: str, monkeypatch: pytest.MonkeyPatch, compared: Callable[[str], None]
) -> None:
    from sim.on_lava import runtime
    from sim.on_lava.stepped import Stepped

    network = NETWORKS[name]
    payload = drawn(7, 2, *network.input.shape, low=-3, high=7)
    every = [layer.name for layer in network.layers]
    with runtime.silenced():
        running = Stepped(network, payload, every, schedule="clock")
        running.start()
    written: list[int] = []
    for neuron in running._neurons.values():
        monkeypatch.setattr(neuron.bias_mant, "set", written.append)
    found = list(running.samples(lambda sample, step: None))
    running.stop()
    expected = reference.run(network, payload)
    for sample, (spikes, potentials) in enumerate(found):
        for layer in network.layers:
            np.testing.assert_array_equal(spikes[layer.name], expected.spikes[layer.name][sample])
            np.testing.assert_array_equal(potentials[layer.name], expected.potentials[layer.name][sample])
    assert not written
    assert all(expected.spikes[layer.name].any() for layer in network.layers if layer.kind == "spiking")
    compared("reference = clock")
