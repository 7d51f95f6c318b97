"""The stock form within silicon's registers: what silences a layer, up to where, and how samples follow each other."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sim import on_lava, reference
from sim.chip import LOIHI2
from sim.findings import Refused
from sim.fixedpoint import RegisterOverflow, bounds
from sim.network import INPUT, Conv2d, Dense, Edge, Input, Layer, Network
from sim.stock import Silence, cycle, inexact, legal_period, peak_outside, silence, vth
from sim.trace import first_difference


def network(weight: int = 100, theta: int = 50, v0: int = 10, last: int = -30) -> Network:
    """One neuron with a step of hold-off and a bias of 20 and ``last``, and a readout."""
    first = Layer("first", (1,), (Edge(INPUT, Dense([[weight]])),), theta, [v0], [[20], [last]], holdoff=1)
    end = Layer("end", (1,), (Edge("first", Dense([[1]])),), 0, [0], [[0], [0]], "readout")
    return Network(Input((1,)), (first, end), 2)


def test_the_whole_bias_register_silences_a_layer() -> None:
    # Offsets 30 and 0: 4065 su are left above. The lowest 13 bits are -4096, and theta = 50.
    layer = network()["first"]
    silent = silence(layer)
    assert silent == Silence(-4096, 4065)
    assert silent.limit(layer) == 50 + 4065 + 4096
    assert vth(layer, silent) == 49 + 4065
    assert cycle(network(), layer, 5, silent).ravel().tolist() == [-4096, 4095, 4065, -4096, -4096]
    assert cycle(network(), layer, 5).ravel().tolist() == [10, 30, 0, 10, 10]


def test_the_threshold_register_ends_the_lift() -> None:
    assert silence(network(theta=(1 << 17) - 7)["first"]) == Silence(-4096, 7)
    assert silence(network(v0=4095, last=0)["first"]).lift == 0  # 4115: leaves the register anyway


def test_a_narrower_bias_register_is_used() -> None:
    narrow = dataclasses.replace(LOIHI2, bias_bits=8)
    assert silence(network()["first"], narrow) == Silence(-128, 97)


def test_other_words_than_a_power_of_two_are_no_period() -> None:
    with pytest.raises(Refused, match="period: 'power-of-two' given; give a number of steps, or 'power of two'"):
        legal_period(network(), "stock", "power-of-two")  # type: ignore[arg-type]


def test_the_peak_outside_the_window_worked_by_hand() -> None:
    # 2 * 100 arrive at t = 1, before the window, and at t = 2; v0 = 10, bias 20 and -30. v: 210, 430 -> 380 and
    # 350 -> 300 at t = 3. u = 200 before the window, and 300 - 0 after it. A readout needs no silence.
    net = network()
    trace = reference.run(net, np.array([[2]]))
    assert trace.potentials["first"].tolist() == [[[210], [380], [300]]]
    assert peak_outside(net, net["first"], trace.potentials["first"]) == 300
    # What only falls never rises above the 0 with which it starts.
    assert peak_outside(net, net["first"], reference.run(net, np.array([[-2]])).potentials["first"]) == 0


def test_the_bound_outside_the_window_holds_for_all_inputs() -> None:
    # Payloads up to 127 add 12,700 at t = 1 and at t = 2; two spikes subtract 100.
    net = network()
    assert bounds(net, net["first"]).outside == 2 * 12_700 - 100
    trace = reference.run(net, np.array([[127]]))
    assert peak_outside(net, net["first"], trace.potentials["first"]) == 2 * 12_700 - 100


@pytest.mark.parametrize(("timesteps", "shortest", "silicon"), [(2, 4, 4), (3, 5, 8), (6, 8, 8), (7, 9, 16)])
def test_silicon_takes_periods_of_a_power_of_two(timesteps: int, shortest: int, silicon: int) -> None:
    # The hold-off makes the layer busy for T + 1 steps; one more lets the last -theta arrive.
    net = dataclasses.replace(
        network(),
        timesteps=timesteps,
        layers=tuple(dataclasses.replace(layer, bias=np.zeros((timesteps, 1), int)) for layer in network().layers),
    )
    assert legal_period(net, "stock") == shortest
    assert legal_period(net, "stock", "power of two") == silicon


@pytest.mark.parametrize("payload", [41, 42])
def test_the_lift_silences_to_the_last_su(payload: int) -> None:
    net = edge_case()
    limit = silence(net["first"]).limit(net["first"])
    left = peak_outside(net, net["first"], reference.run(net, np.array([[payload]])).potentials["first"])
    assert (left < limit) == (payload == 41)
    assert left >= net["first"].threshold + 4096  # beyond what -4096 alone silences


def edge_case() -> Network:
    """One neuron that 2 * 100 * payload - 2 * theta are left of: 8,100 for 41, 8,300 for 42; the limit is 8,241."""
    first = Layer("first", (1,), (Edge(INPUT, Dense([[100]])),), 50, [0], [[0], [0]])
    end = Layer("end", (1,), (Edge("first", Dense([[1]])),), 0, [0], [[0], [0]], "readout")
    return Network(Input((1,)), (first, end), 2)


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
def test_lava_agrees_on_both_sides_of_the_limit() -> None:
    net = edge_case()
    trace = on_lava.run(net, np.array([[41]]), form="stock")
    assert first_difference(reference.run(net, np.array([[41]])), trace) is None
    with pytest.raises(RegisterOverflow, match=r"layer first, channel 0, step 3 of sample 0: u >= 8241 broke"):
        on_lava.run(net, np.array([[42]]), form="stock")


def refused(net: Network, payload: int) -> list[str]:
    return [finding.problem for finding in inexact(net, np.full((1, *net.input.shape), payload), "stock")]


def test_a_sum_of_lavas_conv_stays_below_its_24_bits() -> None:
    # 64 * 2**17 = 2**23, the first that a signed 24 bit number does not hold.
    end = Layer("end", (1, 1, 1), (Edge(INPUT, Conv2d([[[[64]]]])),), 0, [0], [[0]], "readout")
    net = Network(Input((1, 1, 1), bits=24), (end,), 1)
    assert refused(net, 2**17) == refused(net, -(2**17)) == ["a sum of up to 8388608 leaves the 24 bits of Lava's Conv"]
    assert refused(net, 2**17 - 1) == []


def test_what_lavas_lif_adds_stays_below_its_26_bits_and_the_threshold_is_taken_off_there_too() -> None:
    # 64 * (2**19 - 1) + 64 = 2**25.
    found = "currents of up to 33554432 leave the 26 bits that Lava's LIF adds"
    for theta, expected in ((64, [found]), (63, [])):
        net = dataclasses.replace(network(weight=64, theta=theta), input=Input((1,), bits=24))
        assert refused(net, 2**19 - 1) == expected


@pytest.mark.parametrize(("last", "ends"), [(4095, True), (4096, False), (-4096, True), (-4097, False)])
def test_a_schedule_ends_at_the_13_bits_of_a_bias(last: int, ends: bool) -> None:
    assert (refused(network(last=last - 30), 1) == []) == ends  # after v0 and a bias of 10 and 20
