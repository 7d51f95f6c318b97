"""Verification: every engine is compared, a difference is found and placed, and nothing is claimed that was not run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from exporters import engines, netx
from exporters.engines import Engine, available_engines, verify
from sim import reference
from sim.chip import LOIHI2, WIDE, Chip
from sim.findings import Finding, Refused
from sim.fixedpoint import Policy, RegisterOverflow
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from sim.progress import reporting
from sim.trace import Trace

PAYLOAD = np.array([[3, 1], [0, 5], [7, 7]])


def network(skip: bool = False, holdoff: int = 0) -> Network:
    """2 inputs -> 2 neurons -> readout of 1, T = 2; with ``skip`` the input feeds the readout too."""
    hidden = Layer("hidden", (2,), (Edge(INPUT, Dense([[4, 0], [0, 4]])),), 8, np.zeros(2, int), np.zeros((2, 2), int))
    skipped = (Edge(INPUT, Dense([[1, 1]])),) if skip else ()
    edges = (Edge("hidden", Dense([[2, 3]])), *skipped)
    readout = Layer("readout", (1,), edges, 0, np.zeros(1, int), np.zeros((2, 1), int), "readout")
    return Network(Input((2,)), (hidden, readout), 2, holdoff)


def falsified(change: Callable[[Trace], object], name: str = "false", needs: str | None = None) -> Engine:
    """The reference under another name, whose traces ``change`` may change or refuse."""

    def run(network: Network, payload: np.ndarray, *, chip: Chip, overflow: Policy, record: bool) -> Trace:
        trace = replace(reference.run(network, payload, chip=chip, overflow=overflow), engine=name)
        change(trace)
        return trace

    return Engine(name, needs, lambda network, payload, chip: [], run)


def raising(error: Exception) -> Callable[[Trace], object]:
    def change(trace: Trace) -> None:
        raise error

    return change


def eager() -> tuple[Network, np.ndarray]:
    """One neuron that keeps 3 * 127 * 127 - 3 * 10 su when its window closes: too much for the stock form."""
    steps = np.zeros((3, 1), int)
    neuron = Layer("eager", (1,), (Edge(INPUT, Dense([[127]])),), 10, [0], steps)
    last = Layer("last", (1,), (Edge("eager", Dense([[1]])),), 0, [0], steps, "readout")
    return Network(Input((1,)), (neuron, last), 3), np.array([[127]])


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    return lambda *added: monkeypatch.setattr(engines, "ENGINES", {**engines.ENGINES, **{e.name: e for e in added}})


def test_agreeing_engines_are_reported_with_what_was_compared() -> None:
    found = verify(network(), PAYLOAD, ["reference", "fast"])
    assert found.difference is None
    # 3 samples, 3 neurons, 2 busy steps each; a neuron gets 4 * payload at each step and fires from 8 on.
    assert [(run.engine, run.differences, run.neuron_steps) for run in found.runs] == [
        ("reference", 0, 18),
        ("fast", 0, 18),
    ]
    assert (found.samples, found.spikes) == (3, (2 + 1) + (0 + 2) + (2 + 2))
    assert all(run.seconds > 0 for run in found.runs)
    assert found.summary == "reference, fast agree: 3 samples, 9 spikes, 18 neuron-steps compared, 0 differences"


def test_the_first_difference_is_placed_and_all_are_counted(install: Callable[..., None]) -> None:
    def change(trace: Trace) -> None:
        trace.spikes["hidden"][1, 0, 1] ^= 1
        trace.potentials["readout"][2, :, 0] += 5

    install(falsified(change))
    found = verify(network(), PAYLOAD, ["reference", "false", "fast"])
    assert [run.differences for run in found.runs] == [0, 3, 0]
    assert str(found.difference) == ("layer hidden, step 1, sample 1, neuron (1,): spike 1 on reference, 0 on false")
    assert found.summary == f"reference, false, fast differ: {found.difference}"


def test_an_engine_that_did_not_record_a_layer_agrees_with_nothing(install: Callable[..., None]) -> None:
    install(falsified(lambda trace: trace.spikes.pop("hidden")))
    with pytest.raises(RuntimeError, match="engine false recorded no spikes of hidden"):
        verify(network(), PAYLOAD, ["reference", "false"])


def test_the_result_is_json_with_the_rows_of_the_report() -> None:
    found = json.loads(json.dumps(verify(network(), PAYLOAD, ["fast", "reference"]).as_dict()))
    assert found.keys() == {"samples", "engines", "spikes", "difference", "skipped", "summary"}
    assert [row.keys() for row in found["engines"]] == [{"engine", "differences", "neuron_steps", "seconds"}] * 2
    assert (found["engines"][0]["engine"], found["difference"], found["skipped"]) == ("fast", None, [])


def test_every_sample_of_every_engine_is_reported() -> None:
    told: list[tuple[str, int, int]] = []
    with reporting(lambda *report: told.append(report)):
        verify(network(), PAYLOAD, ["reference", "fast"])
    reference = [("running on reference", done, 3) for done in range(4)]
    assert told == [*reference, ("running on fast", 0, 3), ("running on fast", 3, 3)]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["fast", "loihi"], "engines: 'loihi' not known; use reference, fast, lava, lava-stock, netx"),
        ([], "engines: none given; give at least two different ones to compare"),
        (["fast"], "engines: fast given; give at least two"),
        (["fast", "fast"], "engines: fast, fast given; give at least two different"),
    ],
)
def test_what_would_compare_nothing_is_refused(given: list[str], text: str) -> None:
    with pytest.raises(Refused, match=text):
        verify(network(), PAYLOAD, given)


def test_no_samples_and_payloads_out_of_range_are_refused() -> None:
    with pytest.raises(Refused, match="no samples; agreement on nothing proves nothing"):
        verify(network(), PAYLOAD[:0], ["reference", "fast"])
    with pytest.raises(Refused, match=r"payload: values 300..300 leave -127..127"):
        verify(network(), np.full((1, 2), 300), ["reference", "fast"])


def test_one_engine_runs_by_its_name_and_an_unknown_one_is_refused() -> None:
    assert engines.run("fast", network(), PAYLOAD).engine == "fast"
    with pytest.raises(Refused, match="'loihi' not known; use reference, fast"):
        engines.run("loihi", network(), PAYLOAD)


def test_engines_that_cannot_run_are_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter(()))
    assert available_engines() == ("reference", "fast")
    found = verify(network(), PAYLOAD)
    assert [run.engine for run in found.runs] == ["reference", "fast"]
    assert found.summary.split("\n")[1:] == [
        f"not run: {engine}: {package} is not installed; it exists for Python 3.10 only: "
        "`pip install 'ann2loihi[lava]'` there"
        for engine, package in (("lava", "lava-nc"), ("lava-stock", "lava-nc"), ("netx", "lava-dl"))
    ]


def test_netx_is_left_out_where_it_cannot_build_the_network(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter((name,)))
    for name in ("lava", "lava-stock", "netx"):
        known = engines.ENGINES[name]
        install(replace(known, run=falsified(lambda trace: None, name).run))
    assert available_engines() == ("reference", "fast", "lava", "lava-stock", "netx")
    assert len(verify(network(), PAYLOAD).runs) == 5
    found = verify(network(skip=True), PAYLOAD)
    assert [run.engine for run in found.runs] == ["reference", "fast", "lava", "lava-stock"]
    assert "(readout: 2 edges feed it, netx builds one synapse a layer and 1 more)" in found.as_dict()["skipped"][0]


@pytest.mark.parametrize(
    "error",
    [Refused(Finding("place", "problem", "remedy")), RegisterOverflow(Finding("place", "problem", "remedy"))],
    ids=["refused", "overflow"],
)
def test_an_engine_that_fails_while_it_runs_costs_no_other_result(
    error: Exception, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter(()))
    install(falsified(raising(error)))
    found = verify(network(), PAYLOAD)
    assert [run.engine for run in found.runs] == ["reference", "fast"]
    assert found.skipped[-1] == Finding("false", "place: problem", "remedy")
    with pytest.raises(Refused, match=r"^false: place: problem; remedy$"):
        verify(network(), PAYLOAD, ["reference", "false", "fast"])


def test_the_first_engine_that_runs_is_what_others_are_compared_with(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter(()))
    install(falsified(raising(Refused(Finding("place", "problem", "remedy"))), "reference"), falsified(lambda _: None))
    found = verify(network(), PAYLOAD)
    assert [(run.engine, run.differences) for run in found.runs] == [("fast", 0), ("false", 0)]


def test_what_is_asked_for_by_name_and_cannot_run_is_refused_before_anything_runs(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter(()))
    install(falsified(raising(AssertionError("it runs"))))
    with pytest.raises(Refused, match=r"^lava: lava-nc is not installed; .*\nnetx: lava-dl is not installed; "):
        verify(network(), PAYLOAD, ["false", "lava", "netx"])


def test_fewer_than_two_engines_that_can_run_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter(()))
    narrow = replace(LOIHI2, state_bits=9)
    with pytest.raises(Refused, match="engines: none could run; agreement takes two") as caught:
        verify(network(), PAYLOAD, chip=narrow)
    assert [f.where for f in caught.value.findings] == ["engines", *engines.ENGINES]
    assert "reference: layer hidden, channel 0, step 1: v = 12 leaves the register" in str(caught.value)


@pytest.mark.lava
def test_what_the_stock_form_cannot_suppress_leaves_the_other_engines_compared() -> None:
    found = verify(*eager())
    assert found.difference is None
    assert [(run.engine, run.differences) for run in found.runs] == [("reference", 0), ("fast", 0), ("lava", 0)]
    assert [finding.where for finding in found.skipped] == ["lava-stock", "netx"]
    for line in found.summary.split("\n")[1:]:
        assert re.search(r"layer eager, channel 0, step 4 of sample 0: u >= 8\d{3} broke the suppression", line)
    with pytest.raises(Refused, match=r"^lava-stock: layer eager, channel 0, step 4 .* broke the suppression"):
        verify(*eager(), ["reference", "lava-stock"])


@pytest.mark.lava
def test_a_chip_that_only_some_engines_have_is_verified_on_those() -> None:
    found = verify(network(), PAYLOAD, chip=WIDE)
    assert [run.engine for run in found.runs] == ["reference", "fast", "lava"]
    assert [finding.where for finding in found.skipped] == ["lava-stock", "netx"]
    assert all("Lava's LIF lacks the registers of wide registers" in finding.problem for finding in found.skipped)


def test_the_netx_engine_loads_the_given_file_which_must_hold_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines.metadata, "distributions", lambda name: iter((name,)))
    loaded: list[Any] = []

    def load(path: Path) -> Any:
        loaded.append((path, netx.read(path)))
        return SimpleNamespace(run=partial(reference.run, netx.read(path)))

    monkeypatch.setattr(netx, "load", load)
    netx.write(network(), tmp_path / "network.net")
    verify(network(), PAYLOAD, ["fast", "netx"], net_path=tmp_path / "network.net")
    verify(network(), PAYLOAD, ["fast", "netx"])
    assert loaded[0] == (tmp_path / "network.net", network())
    assert loaded[1][1] == network()
    assert not loaded[1][0].exists()
    with pytest.raises(Refused, match="it holds another network; give the file that was written from this one"):
        verify(network(holdoff=1), PAYLOAD, ["fast", "netx"], net_path=tmp_path / "network.net")
    netx.save(network(skip=True), tmp_path / "skip.net")
    with pytest.raises(Refused, match="stock netx cannot build this network"):
        verify(network(skip=True), PAYLOAD, ["fast", "netx"], net_path=tmp_path / "skip.net")
    netx.save(network(), tmp_path / "graph.net", form="graph")
    with pytest.raises(Refused, match=r"netx: .*graph\.net is of a form that lava-dl does not open"):
        verify(network(), PAYLOAD, ["fast", "netx"], net_path=tmp_path / "graph.net")


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")  # of networkx, which Lava uses
def test_lava_agrees_in_both_forms() -> None:
    found = verify(network(skip=True, holdoff=1), PAYLOAD, ["reference", "lava", "lava-stock"])
    assert found.difference is None
    assert [run.differences for run in found.runs] == [0, 0, 0]
    assert found.spikes > 0


ALL = [pytest.param(name, marks=[pytest.mark.lava] if engine.needs else []) for name, engine in engines.ENGINES.items()]


@pytest.mark.parametrize("name", ALL)
def test_asking_for_the_readout_alone_gives_nothing_else(name: str) -> None:
    trace = engines.run(name, network(), PAYLOAD, record=False)
    assert list(trace.potentials) == list(trace.spikes) == ["readout"]
    assert np.array_equal(trace.logits, reference.run(network(), PAYLOAD).logits)


@pytest.mark.parametrize("name", ALL)
def test_every_engine_obeys_the_chip(name: str) -> None:
    narrow = replace(LOIHI2, name="narrow", state_bits=9)  # |v| < 4, and 4 * 3 arrives
    with pytest.raises(
        RegisterOverflow, match=r"layer hidden, channel 0, step 1: v = 12 leaves .* narrow \(\|v\| < 4\)"
    ):
        engines.run(name, network(), PAYLOAD, chip=narrow)


@pytest.mark.parametrize("name", ALL)
def test_overflows_are_counted_by_every_engine_that_can_and_refused_by_the_others(name: str) -> None:
    narrow = replace(LOIHI2, name="narrow", state_bits=9)
    if name in ("lava-stock", "netx"):
        with pytest.raises(Refused, match="overflow: 'count', but Lava's LIF wraps beyond its registers"):
            engines.run(name, network(), PAYLOAD, chip=narrow, overflow="count")
        return
    trace = engines.run(name, network(), PAYLOAD[:1], chip=narrow, overflow="count")
    # Before the reset, v and u of hidden are 12, 4 + 12 = 16 and 4, 4 + 4 = 8; those of the readout 2 and 2 + 5 = 7.
    assert (trace.overflows, trace.peak) == (2 * 5, {"hidden": 16, "readout": 7})


def test_engines_on_lava_get_the_input_in_the_form_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import on_lava

    seen: list[Network] = []

    def watched(network: Network, payload: np.ndarray, **options: Any) -> Trace:
        seen.append(network)
        return reference.run(network, payload, chip=options["chip"], overflow=options["overflow"])

    monkeypatch.setattr(on_lava, "run", watched)
    engine = replace(engines._on_lava("watched", "native"), needs=None)
    monkeypatch.setattr(engines, "ENGINES", {**engines.ENGINES, "watched": engine})
    given = network(skip=True, holdoff=1)
    brought = replace(given, input=replace(given.input, form="currents"))
    for found in (
        verify(given, PAYLOAD, ["reference", "watched"], inputs="currents"),
        verify(brought, PAYLOAD, ["reference", "watched"]),
    ):
        assert (found.difference, [run.differences for run in found.runs]) == (None, [0, 0])
    assert len(seen) == 2 * len(PAYLOAD)
    assert not any(edge.synapse.weight.any() for one in seen for edge in one["hidden"].edges)
    verify(brought, PAYLOAD, ["reference", "watched"], inputs="payload")
    assert seen[-1]["hidden"] == given["hidden"]


def test_a_form_that_is_unknown_or_not_the_networks_is_refused() -> None:
    with pytest.raises(Refused, match="input: form 'graded'; use payload, currents, spikes"):
        verify(network(), PAYLOAD, ["reference", "fast"], inputs="graded")  # type: ignore[arg-type]
    with pytest.raises(Refused, match="readout: it reads the input, whose form is spikes; let spiking layers read it"):
        verify(network(skip=True), PAYLOAD, ["reference", "fast"], inputs="spikes")


def test_a_schedule_with_the_currents_that_leaves_the_chips_bits_is_the_engines_obstacle() -> None:
    """4 su times 600, twice, and all of it within the bias."""
    far = replace(network(), input=Input((2,), bits=12, form="currents"))
    found = engines.ENGINES["lava-stock"].obstacles(far, np.array([[1, 600]]), LOIHI2)
    assert [finding.where for finding in found] == ["hidden"]
    assert "v0 + cumulative bias of 0..4800 leaves the 13 bits" in found[0].problem
