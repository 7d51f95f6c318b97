"""Every engine implements the semantics on its own; here they meet, spike for spike and potential for potential."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, given, settings
from random_networks import networks

from sim import fast, reference
from sim.network import Network
from sim.trace import first_difference

CASES = settings(
    max_examples=250, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@CASES
@given(networks())
def test_fast_equals_the_reference_on_random_networks(
    compared: Callable[[str], None], case: tuple[Network, np.ndarray]
) -> None:
    network, payload = case
    slow = reference.run(network, payload, overflow="count")
    quick = fast.run(network, payload, overflow="count", batch=2)
    assert first_difference(slow, quick) is None
    assert (slow.overflows, slow.peak) == (quick.overflows, quick.peak)
    compared("reference = fast")


@settings(CASES, max_examples=60)
@given(networks())
def test_potentials_never_exceed_the_worst_case(case: tuple[Network, np.ndarray]) -> None:
    from sim.fixedpoint import worst_case

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
