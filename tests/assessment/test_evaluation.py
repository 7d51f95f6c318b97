"""Evaluation goes on where single samples leave the registers, and says how many did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import CONFIG, PROVENANCE
from typer.testing import CliRunner, Result

from exporters import bundle
from exporters.engines import ENGINES, run
from sim.findings import Refused
from sim.fixedpoint import RegisterOverflow
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from toolchain import assessment
from toolchain.app import cli

#: A neuron that gets 100 su for each unit of the payload: beyond 131,072 su from 1311 units on.
X = np.array([[3.0], [2000.0], [-3.0], [1400.0], [1300.0]], np.float32)
Y = np.array([0, 0, 1, 1, 0])  # the readout says 0 where the neuron fires, and 1 where it is silent


def network() -> Network:
    bias = np.zeros((1, 1), int)
    layer = Layer("a", (1,), (Edge(INPUT, Dense([[100]])),), 200, [0], bias)
    readout = Layer("out", (2,), (Edge("a", Dense([[5], [0]])),), 0, [0, 1], np.zeros((1, 2), int), "readout")
    return Network(Input((1,), 12), (layer, readout), 1)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    bundle.save(tmp_path / "out", network(), config=CONFIG, provenance=PROVENANCE)
    np.savez(tmp_path / "test.npz", x=X, y=Y)
    return tmp_path


def evaluate(place: Path, *options: str) -> Result:
    arguments = ["evaluate", str(place / "out"), "--data", str(place / "test.npz"), *options]
    return CliRunner().invoke(cli.app, arguments, catch_exceptions=False)


@pytest.mark.parametrize("engine", ["fast", "reference"])
@pytest.mark.parametrize("options", [[], ["--overflow", "count"]])
def test_samples_that_leave_the_registers_are_counted(saved: Path, engine: str, options: list[str]) -> None:
    result = evaluate(saved, "--engine", engine, "--json", *options)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    (step,), (finding,) = document.pop("accuracy_by_step"), document.pop("findings")
    assert finding.startswith("2 of 5 samples leave the registers")
    assert document.pop("layers")[0]["peak"] == 200_000
    # A synapse from the input and two from the neuron, one of which weighs 0; four of the five samples make it fire.
    assert document == {
        "engine": engine, "task": "classes", "samples": 5, "overflowed": 2, "spikes": 0.8, "rate": 0.8,
        "dense": 3, "effective_macs": 1.0, "effective_acs": 0.8, "state_limit": 131_072,
    }  # fmt: skip
    assert (step["accuracy"], step["n"]) == (80.0, 5)  # all but the fourth


def test_they_are_named_below_the_table_and_only_where_there_are_some(saved: Path) -> None:
    text = "2 of 5 samples leave the registers: on the chip these may end otherwise"
    assert text in " ".join(evaluate(saved).stdout.split())
    assert "registers" not in evaluate(saved, "--samples", "1").stdout


def test_strict_ends_at_the_first_and_other_policies_are_refused(saved: Path) -> None:
    strict = evaluate(saved, "--overflow", "strict")
    assert strict.exit_code == 2
    assert "error: layer a, channel 0, step 1: v = 200000 leaves the register" in strict.stderr
    other = evaluate(saved, "--overflow", "wrap")
    assert other.exit_code == 2
    assert other.stderr == "error: overflow: policy 'wrap'; use 'strict' or 'count'\n"


def test_in_python_the_choice_is_the_same() -> None:
    found = assessment.evaluate(network(), X, Y)
    assert (found.samples, found.overflowed, found.accuracy_by_step[0].value) == (5, 2, 80.0)
    with pytest.raises(RegisterOverflow):
        assessment.evaluate(network(), X, Y, overflow="strict")
    assert assessment.evaluate(network(), X[:1], Y[:1], overflow="strict").overflowed == 0
    with pytest.raises(Refused, match="network: does not say what its potentials stand for; convert again"):
        assessment.evaluate(network(), X, np.zeros((5, 2)), task="regression")


def test_engines_whose_registers_wrap_are_strict_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class RanError(Exception):
        pass

    for name, engine in ENGINES.items():

        def ran(*_: Any, name: str = name, **options: Any) -> None:
            asked[name] = options["overflow"]
            raise RanError

        monkeypatch.setitem(vars(engine), "run", ran)
        with pytest.raises(RanError):
            run(name, network(), X.astype(int), overflow=None)
    wraps = {"lava-stock", "netx"}
    assert asked == {name: "strict" if name in wraps else "count" for name in ENGINES}
