"""``ann2loihi device`` as a user meets it: what it prints, and exit codes 0, 1, 2 and 3."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import bundles
import numpy as np
import pytest
from jobs import NETWORK, PAYLOAD
from typer.testing import CliRunner, Result

from exporters.device import selftest
from sim import reference
from toolchain.app import cli
from toolchain.app import device as commands

Fault = Callable[[str], None]
DECIDED = reference.run(NETWORK, PAYLOAD).logits[:, -1].argmax(1)


class Place:
    """A converted network and labelled data: all labels right but the first."""

    def __init__(self, folder: Path) -> None:
        self.bundle, self.data, self.record = folder / "bundle", folder / "test.npz", folder / "run.h5"
        bundles.save(self.bundle, network=NETWORK, config={"task": "classes"})
        y = DECIDED.copy()
        y[0] = 1 - y[0]
        np.savez(self.data, x=PAYLOAD.astype(np.float32), y=y)

    def run(self, *options: object) -> Result:
        return device("run", self.bundle, "--data", self.data, "--target", "loihi2", *options)


def device(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, ["device", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_run_that_agrees_ends_with_0_and_shows_both_accuracies(place: Place, board: Fault) -> None:
    board("none")
    done = place.run("--record", place.record, "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["engines"] == ["reference", "loihi2"]
    assert found["difference"] is None
    assert found["differing"] == {"samples": 0, "decisions": 0, "logits": 0}
    # Wilson's interval of 4 of 5, by hand: (0.8 + z²/10 ± z sqrt(0.032 + z²/100)) / (1 + z²/5).
    for engine in ("reference", "loihi2"):
        score = found["accuracy"][engine]
        assert (score["accuracy"], score["n"]) == (80.0, 5)
        assert (score["low"], score["high"]) == pytest.approx((37.55, 96.38), abs=0.01)
    again = device("replay", place.record, "--json")
    assert (again.exit_code, json.loads(again.stdout)) == (0, found)
    printed = device("replay", place.record).stdout
    assert "ran on 3 NcL2ModelLif on Loihi2NeuroCore, OheoGulch" in printed
    assert "total_power: 0.5 W" in printed


def test_inputs_that_the_host_puts_in_order_run_as_the_model_takes_them(place: Place, board: Fault) -> None:
    board("none")
    backwards = replace(NETWORK.input, order=np.arange(3)[::-1], given=(3, 1))
    bundles.save(
        place.bundle.with_name("turned"), network=replace(NETWORK, input=backwards), config={"task": "classes"}
    )
    np.savez(place.data, x=PAYLOAD[:, ::-1, None].astype(np.float32), y=DECIDED)
    done = device("run", place.bundle.with_name("turned"), "--data", place.data, "--target", "loihi2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["accuracy"]["loihi2"]["accuracy"] == 100


def test_a_run_that_differs_ends_with_1_and_names_the_place(place: Place, board: Fault) -> None:
    board("none")
    place.run("--record", place.record)
    board("flips one weight")
    other = place.record.with_name("other.h5")
    done = place.run("--record", other)
    assert done.exit_code == 1
    assert "first: layer first, step 1, sample" in done.stdout
    assert device("replay", other).exit_code == 1
    assert device("diff", place.record, other).exit_code == 1
    assert device("diff", place.record, place.record).exit_code == 0


def test_the_readout_alone_is_compared_where_only_it_was_read(place: Place, board: Fault) -> None:
    board("none")
    found = json.loads(place.run("--readout-only", "--samples", 2, "--json").stdout)
    assert (found["samples"], found["difference"]) == (2, None)
    assert found["neuron_steps"] == 2 * 4 * 2


def test_a_target_that_fails_ends_with_3_and_its_record_goes_on(place: Place, board: Fault) -> None:
    board("dies")
    done = place.run("--record", place.record)
    assert done.exit_code == 3
    assert "error: loihi2, sample 1, step 3: its process died" in done.stderr
    assert "1 of 5 samples are in it; go on with --resume" in done.stderr
    board("none")
    assert place.run("--record", place.record).exit_code == 2
    assert place.run("--record", place.record, "--resume").exit_code == 0
    assert len(json.loads(device("replay", place.record, "--json").stdout)["visits"]) == 2


def test_what_cannot_be_used_ends_with_2(place: Place, tmp_path: Path) -> None:
    for arguments in (
        ["replay", tmp_path / "none.h5"],
        ["replay", place.data],
        ["diff", place.data, place.data],
        ["run", place.bundle, "--data", place.data, "--target", "spinnaker"],
        ["run", place.bundle, "--data", place.data, "--target", "lava-cpu", "--resume"],
        ["run", place.bundle, "--data", place.data, "--target", "loihi2", "--generation", "N1"],
    ):
        done = device(*arguments)
        assert done.exit_code == 2, done.output
        assert done.stderr.strip().startswith("error: ")


def test_what_the_comparison_would_refuse_is_refused_before_the_target_runs(
    place: Place, board: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    board("none")
    monkeypatch.setattr("exporters.device.run", lambda *_, **__: pytest.fail("it ran"))
    for against in ("foo", "lava-stock"):
        done = place.run("--against", against)
        assert (done.exit_code, done.stderr.startswith("error: ")) == (2, True), done.output
    np.savez(place.data, x=PAYLOAD.astype(np.float32), y=DECIDED + 1)
    done = place.run()
    assert (done.exit_code, "subtract 1" in done.stderr) == (2, True), done.output


def test_the_self_test_prints_a_line_for_every_job(board: Fault, tmp_path: Path) -> None:
    board("none")
    done = device("selftest", "--target", "loihi2", "--record", tmp_path, "--json")
    assert done.exit_code == 0, done.output
    jobs = json.loads(done.stdout)["jobs"]
    assert [job["job"] for job in jobs] == [
        "integrator", "reset", "bias-written", "bias-clock", "convolution", "demo",
    ]  # fmt: skip
    assert {job["answer"] for job in jobs} == {"yes"}
    assert len(list(tmp_path.glob("*.h5"))) == 6


def test_a_self_test_goes_on_after_a_job_that_was_not_answered(
    board: Fault, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checks = {check.name: check for check in selftest.checks()}
    monkeypatch.setattr(
        commands, "_checks", lambda: iter([checks["convolution"], checks["reset"], checks["convolution"]])
    )
    board("dies")  # in the second sample, which the convolution does not have
    done = device("selftest", "--target", "loihi2", "--resume", "--record", tmp_path, "--json")
    assert done.exit_code == 3
    assert [job["answer"] for job in json.loads(done.stdout)["jobs"]] == ["yes", "unanswered", "yes"]
