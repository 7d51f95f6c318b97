"""Every way in which a board fails is detected, and called what it is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jobs import NETWORK, PAYLOAD, apart, left, on_board

from exporters import device
from exporters.device import Request, Unavailable
from sim.findings import Refused

Fault = Callable[[str], None]


def unavailable(record: Path, **options: Any) -> str:
    with pytest.raises(Unavailable) as caught:
        on_board(record, **options)
    return str(caught.value)


def test_a_board_without_a_fault_agrees_and_says_where_it_was(board: Fault, tmp_path: Path) -> None:
    board("none")
    with on_board(tmp_path / "run.h5", request=Request(partition="oheogulch")) as record:
        comparison = device.replay(record)
        assert comparison.difference is None
        assert comparison.summary.startswith("reference and loihi2 agree: 5 samples, ")
        assert comparison.spikes > 50
        (visit,) = record.visits
    assert visit["ran_on"]["models"] == {"NcL2ModelLif on Loihi2NeuroCore, OheoGulch": 3}
    assert (visit["ran_on"]["partition"], visit["ran_on"]["board"]) == ("oheogulch", "ncl-og-01")
    assert visit["probed"] == {"total_power": 0.5, "static_power": 0.25}


def test_a_hanging_board_is_killed_and_its_step_named(board: Fault, tmp_path: Path) -> None:
    board("hangs")
    said = unavailable(tmp_path / "run.h5", patience=4.0)
    assert said.splitlines() == [
        "loihi2, sample 1, step 3: no answer within 4 s; see that the target runs at all with "
        "`ann2loihi device selftest`",
        f"{tmp_path / 'run.h5'}: 1 of 5 samples are in it; go on with --resume",
    ]
    assert not left()
    with device.Record(tmp_path / "run.h5") as kept:
        assert kept.done == 1
        assert device.replay(kept).difference is None


def test_a_board_that_hangs_while_it_loads_is_killed_too(board: Fault, tmp_path: Path) -> None:
    board("hangs while it loads")
    assert "loihi2, loading the network: no answer within 1 s" in unavailable(tmp_path / "run.h5", loading=1.0)
    assert not (tmp_path / "run.h5").exists()


def test_a_board_that_dies_is_named_with_its_last_words(board: Fault, tmp_path: Path) -> None:
    board("dies")
    said = unavailable(tmp_path / "run.h5")
    assert "loihi2, sample 1, step 3: its process died (signal SIGKILL)" in said
    assert "it printed last: 'nxcore: lost connection to the board'" in said


def test_what_the_runtime_raises_is_named(board: Fault, tmp_path: Path) -> None:
    board("raises")
    assert "sample 1, step 3: RuntimeError: Partitioning could not converge" in unavailable(tmp_path / "run.h5")


def test_dropped_spikes_are_told_from_wrong_ones(board: Fault, tmp_path: Path) -> None:
    board("drops the last spikes")
    with on_board(tmp_path / "run.h5") as record:
        comparison = device.replay(record)
    difference = comparison.difference
    assert difference is not None
    assert (difference.layer, difference.quantity, difference.step) == ("first", "spike", 3)
    assert comparison.diagnosis == (
        "all potentials agree, and no spike of the last 2 steps came back: they were lost on the way"
    )


def test_another_partition_than_asked_for_is_no_target(board: Fault, tmp_path: Path) -> None:
    board("wrong partition")
    said = unavailable(tmp_path / "run.h5", request=Request(partition="oheogulch"))
    assert said.startswith("--partition: asked for oheogulch, but it runs on kp; ")
    assert not (tmp_path / "run.h5").exists()


def test_a_flipped_weight_is_found_in_its_layer_and_channel(board: Fault, tmp_path: Path) -> None:
    board("flips one weight")
    with on_board(tmp_path / "run.h5") as record:
        comparison = device.replay(record)
    difference = comparison.difference
    assert difference is not None
    assert (difference.layer, difference.neuron, difference.step) == ("first", (1,), 1)
    assert comparison.diagnosis == ("of layer first only channel 1 differs: see its weights, biases and threshold")


def test_a_cpu_that_claims_to_be_the_board_is_not_believed(board: Fault, tmp_path: Path) -> None:
    board("answers from the CPU")
    said = unavailable(tmp_path / "run.h5")
    assert said.splitlines()[0] == (
        "first: it runs as PyLifModelBitAcc on CPU, not on loihi2; repair what Lava is told, or ask for lava-cpu"
    )


def test_an_answer_that_lacks_a_step_is_refused(board: Fault, tmp_path: Path) -> None:
    board("forgets a step")
    assert "sample 0: spikes of layer first are uint8 (3, 4) instead of (4, 4)" in unavailable(tmp_path / "run.h5")


def test_a_board_that_ends_early_is_not_taken_for_done(board: Fault, tmp_path: Path) -> None:
    board("ends early")
    assert "it ended before sample 2 of 5" in unavailable(tmp_path / "run.h5")


def test_an_unknown_target_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="'spinnaker' is not known; use lava-cpu or loihi2"):
        device.run(NETWORK, PAYLOAD, "spinnaker", tmp_path / "run.h5")


def test_the_target_dies_with_who_asks(board: Fault, tmp_path: Path) -> None:
    board("hangs")
    asking = apart(tmp_path / "run.h5")
    while not left():
        assert asking.poll() is None
        time.sleep(0.05)
    asking.kill()
    asking.wait()
    until = time.monotonic() + 120
    while left():
        assert time.monotonic() < until
        time.sleep(0.05)
