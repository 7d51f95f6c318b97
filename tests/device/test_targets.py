"""The targets that are real: Lava's CPU models, run and killed, and Loihi 2, which is not there."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from jobs import NETWORK, PAYLOAD
from refusing import refusal

from exporters import device
from exporters.device import Request, Unavailable
from exporters.device.target import Job, Stamp, doubts, unconfirmed
from exporters.device.visit import Visit
from sim import reference
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from sim.on_lava import runtime, stepped
from sim.on_lava.stepped import Placed
from sim.trace import Trace


@pytest.mark.lava
@pytest.mark.parametrize("holdoff", [0, 2])
def test_lava_on_the_cpu_agrees_and_says_that_it_is_a_cpu(holdoff: int, tmp_path: Path) -> None:
    network = dataclasses.replace(NETWORK, holdoff=holdoff)
    with device.run(network, PAYLOAD[:2], "lava-cpu", tmp_path / "run.h5") as record:
        comparison = device.replay(record)
        assert comparison.difference is None, comparison.summary
        (visit,) = record.visits
    assert visit["ran_on"]["models"]["PyLifModelBitAcc on CPU, HeadNode"] == 3
    assert visit["ran_on"]["nodes"] == ["HeadNode"]


def equals_the_reference(network: Network, payload: np.ndarray) -> Trace:
    trace = reference.run(network, payload)
    with runtime.silenced():
        running = stepped.Stepped(network, payload, list(trace.spikes))
        running.start()
        found = list(running.samples(lambda sample, step: None))
        running.stop()
    for sample, (spikes, potentials) in enumerate(found):
        for name, fired in spikes.items():
            assert np.array_equal(fired, trace.spikes[name][sample])
            assert np.array_equal(potentials[name], trace.potentials[name][sample])
    return trace


@pytest.mark.lava
def test_the_silence_that_13_bits_hold_is_enough_where_potentials_are_small() -> None:
    trace = equals_the_reference(dataclasses.replace(NETWORK, holdoff=2), PAYLOAD[:2])
    assert max(trace.peak.values()) < 4096


@pytest.mark.lava
def test_of_a_potential_far_below_zero_nothing_is_left_over() -> None:
    first = Layer("first", (1,), (Edge(INPUT, Dense([[1]])),), 100, [0], [[-3000], [3100], [0]])
    last = Layer("last", (1,), (Edge("first", Dense([[1]])),), 0, [0], [[0]] * 3, "readout")
    trace = equals_the_reference(Network(Input((1,)), (first, last), 3), np.array([[0]]))
    assert trace.spikes["first"].tolist() == [[[0], [1], [0]]]  # at the threshold, no su above it


@pytest.mark.lava
def test_lavas_processes_are_killed_when_a_visit_is_broken_off() -> None:
    def alive() -> list[str]:
        command = ["pgrep", "-g", str(group), "-r", "R,S,D"]
        return subprocess.run(command, capture_output=True, text=True).stdout.split()

    with Visit("lava-cpu", Job(NETWORK, PAYLOAD, ("out",))) as visit:
        group = visit._process.pid
        next(visit.answers())
        assert len(alive()) > 1  # the process that asks Lava, and those of Lava, which come and go
    deadline = time.monotonic() + 120  # what is killed ends when the system has time for it
    while alive() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive()


@pytest.mark.lava
def test_without_lavas_extension_loihi_2_is_not_there_and_one_line_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        device.run(NETWORK, PAYLOAD, "loihi2", tmp_path / "run.h5")
    assert str(caught.value) == (
        "loihi2: Lava's extension for Loihi (lava-loihi) is not installed here, which alone reaches a chip; members of "
        "Intel's Neuromorphic Research Community get it from Intel: ask inrc_interest@intel.com"
    )
    assert caught.value.exit_code == 3
    assert not list(tmp_path.iterdir())


def test_a_request_that_cannot_be_is_refused(tmp_path: Path) -> None:
    def asked(**wanted: str) -> str:
        return refusal(lambda: device.run(NETWORK, PAYLOAD, "loihi2", tmp_path / "r.h5", request=Request(**wanted)))

    assert "use one of N3B2, N3B3, N3C1, N3D1" in asked(generation="N1")
    assert "give one or the other" in asked(host="10.0.0.1", partition="kp")


def test_what_the_runtime_does_not_tell_is_no_proof() -> None:
    stamp = Stamp((Placed("first", "LIF", "NcL2ModelLif", ("Loihi2NeuroCore",), "OheoGulch"),), ("OheoGulch",))
    assert [finding.where for finding in doubts("loihi2", Request(), NETWORK, stamp)] == ["second", "out"]
    assert unconfirmed(Request(partition="kp", board="b"), stamp) == ["partition", "board"]
