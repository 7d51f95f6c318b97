"""Every engine implements the semantics on its own; here they meet, spike for spike and potential for potential."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from random_networks import networks

from exporters import engines, netx
from sim import chip, fast, on_lava, reference
from sim.findings import Refused
from sim.fixedpoint import Policy, largest_sums, worst_case
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from sim.stock import inexact, peak_outside, silence
from sim.trace import first_difference

CASES = settings(
    max_examples=400, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@CASES
@given(st.one_of(networks(), networks(extreme=True)))
def test_fast_equals_the_reference_on_random_networks(
    compared: Callable[[str], None], case: tuple[Network, np.ndarray]
) -> None:
    network, payload = case
    slow = reference.run(network, payload, overflow="count")
    quick = fast.run(network, payload, overflow="count", batch=2)
    assert first_difference(slow, quick) is None
    assert (slow.overflows, slow.peak, slow.overflowed) == (quick.overflows, quick.peak, quick.overflowed)
    compared("reference = fast")


def test_random_networks_have_sums_beyond_32_bits_before_a_shift_to_the_right() -> None:
    @settings(CASES, max_examples=60, phases=[Phase.generate])
    @given(networks(extreme=True))
    def count(case: tuple[Network, np.ndarray]) -> None:
        network, _ = case
        for layer in network.layers:
            bounds = zip(largest_sums(network, layer), layer.edges, strict=True)
            found.append(any(bound >= 1 << 31 and edge.exponent < 0 for bound, edge in bounds))

    found: list[bool] = []
    count()
    assert sum(found) > 20


@pytest.mark.parametrize("overflow", ["strict", "count"])
def test_a_sum_that_leaves_32_bits_comes_back_inside_by_a_shift_to_the_right(overflow: Policy) -> None:
    # 5 * 127 * (2**23 - 1) = 5326765445 > 2**32; shifted right by 7: 41615355.04.
    edge = Edge(INPUT, Dense(np.full((1, 5), 127)), -7)
    network = Network(Input((5,), 24), (Layer("out", (1,), (edge,), 0, [0], np.zeros((1, 1), int), "readout"),), 1)
    chips = chip.WIDE if overflow == "strict" else chip.LOIHI2
    for engine in (reference, fast):
        trace = engine.run(network, np.full((1, 5), (1 << 23) - 1), chip=chips, overflow=overflow)
        assert trace.logits.tolist() == [[[41615355]]]
        assert trace.overflows == (2 if overflow == "count" else 0)


def test_what_64_bits_just_hold_is_run_by_the_reference() -> None:
    most = (1 << 31) - 1
    hidden = Layer("a", (2,), (Edge(INPUT, Dense([[1], [1]])),), 1, [0, 0], np.zeros((1, 2), int))
    out = Layer("out", (1,), (Edge("a", Dense([[most, most]]), 31),), 0, [0], np.zeros((1, 1), int), "readout")
    network = Network(Input((1,)), (hidden, out), 1)
    trace = reference.run(network, np.ones((1, 1), int), chip=chip.WIDE, overflow="count")
    assert trace.logits.tolist() == [[[2 * most << 31]]]


def test_what_64_bits_cannot_hold_is_refused_by_both() -> None:
    edges = (Edge(INPUT, Dense(np.full((1, 5), 127)), 31),) * 2
    layer = Layer("out", (1,), edges, 0, [0], np.zeros((9, 1), int), "readout")
    network = Network(Input((5,), 24), (layer,), 9)
    for engine in (reference, fast):
        with pytest.raises(
            Refused, match=r"out: potentials of up to \d+ leave 64 bits; use smaller weights or exponents"
        ):
            engine.run(network, np.full((1, 5), 1), chip=chip.WIDE)
    assert worst_case(network, layer) == 9 * 2 * 5 * 127 * ((1 << 23) - 1) << 31


@settings(CASES, max_examples=60)
@given(st.one_of(networks(), networks(extreme=True)))
def test_potentials_never_exceed_the_worst_case(case: tuple[Network, np.ndarray]) -> None:
    network, payload = case
    trace = fast.run(network, payload, overflow="count")
    assert all(trace.peak[layer.name] <= worst_case(network, layer) for layer in network.layers)


@settings(CASES, max_examples=30)
@given(networks())
def test_only_the_readout_is_kept_when_nothing_else_is_recorded(case: tuple[Network, np.ndarray]) -> None:
    network, payload = case
    everything, readout = (fast.run(network, payload, overflow="count", record=r) for r in (True, False))
    assert list(readout.spikes) == [network.readout.name]
    assert np.array_equal(readout.logits, everything.logits)


def quiet(network: Network, payload: np.ndarray) -> bool:
    """Whether silicon's registers hold the potentials and silence the layers, and Lava computes the network exactly."""
    if chip.check(network) or inexact(network, payload, "stock"):
        return False
    trace = reference.run(network, payload, overflow="count")
    spiking = (layer for layer in network.layers if layer.kind == "spiking")
    silent = all(
        peak_outside(network, layer, trace.potentials[layer.name]) < silence(layer).limit(layer) for layer in spiking
    )
    return silent and not trace.overflows


# A run on Lava takes about a second, more with every step and layer, each a process that is forked: networks of few
# steps, and no shrinking, which would rerun a failing case hundreds of times.
LAVA_CASES = settings(CASES, max_examples=7, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


@pytest.mark.lava
@LAVA_CASES
@given(networks(max_layers=3, longest=6))
def test_both_lava_forms_equal_the_reference_on_random_networks(
    compared: Callable[[str], None], case: tuple[Network, np.ndarray]
) -> None:
    network, payload = case
    assume(quiet(network, payload))
    slow = reference.run(network, payload)
    for form in ("native", "stock"):
        assert first_difference(slow, on_lava.run(network, payload, form=form)) is None
        compared(f"reference = Lava {form}")


def within_silicons_registers(compared: Callable[[str], None], case: tuple[Network, np.ndarray]) -> None:
    """Compare the stock form with the reference, where silicon can hold the network."""
    network, payload = case
    assume(quiet(network, payload))
    trace = on_lava.run(network, payload, form="stock", period="power of two")
    assert first_difference(reference.run(network, payload), trace) is None
    compared("reference = Lava stock at a period of a power of two")


@pytest.mark.lava
@settings(LAVA_CASES, max_examples=8)
@given(networks(max_layers=1, longest=6))
def test_the_stock_form_equals_the_reference_within_silicons_registers(
    compared: Callable[[str], None], case: tuple[Network, np.ndarray]
) -> None:
    within_silicons_registers(compared, case)


@pytest.mark.lava
@pytest.mark.slow
@settings(LAVA_CASES, max_examples=48)
@given(networks(max_layers=1))
def test_the_stock_form_equals_the_reference_within_silicons_registers_on_many_networks(
    compared: Callable[[str], None], case: tuple[Network, np.ndarray]
) -> None:
    within_silicons_registers(compared, case)


@pytest.mark.lava
@LAVA_CASES
@given(networks(sequential=True, max_layers=3, longest=6))
def test_a_net_file_through_stock_netx_equals_the_reference_on_random_networks(
    compared: Callable[[str], None], case: tuple[Network, np.ndarray]
) -> None:
    network, payload = case
    assume(quiet(network, payload) and not netx.check(network))
    assert engines.verify(network, payload, ("reference", "netx")).difference is None
    compared("reference = netx")
