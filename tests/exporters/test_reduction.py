"""Where engines differ, a case as small as the difference is found, saved, and still shows it when it is read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from random_networks import networks as random_networks
from refusing import refusal
from typer.testing import CliRunner

from exporters import bundle, engines, netx, reduction
from exporters.engines import Engine, verify
from exporters.reduction import reduce
from sim import reference
from sim.chip import Chip
from sim.fixedpoint import Policy
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network
from sim.trace import Trace
from toolchain.app import cli
from toolchain.convert import convert

PAIR = ["reference", "false"]


def planted(change: Callable[[Layer], Layer]) -> Engine:
    """The reference, but for the layers that are changed, which it computes otherwise."""

    def run(network: Network, payload: np.ndarray, *, chip: Chip, overflow: Policy, record: bool) -> Trace:
        wrong = replace(network, layers=tuple(map(change, network.layers)))
        return replace(reference.run(wrong, payload, chip=chip, overflow=overflow), engine="false", network=network)

    return Engine("false", None, lambda network, payload, chip: [], run)


def off_by_one(kind: type, spiking: str = "spiking") -> Callable[[Layer], Layer]:
    """Every layer of this kind of synapse starts one unit too high."""

    def change(layer: Layer) -> Layer:
        wrong = layer.kind == spiking and any(type(edge.synapse) is kind for edge in layer.edges)
        return replace(layer, v0=layer.v0 + 1) if wrong else layer

    return change


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Layer], Layer]], None]:
    def put(change: Callable[[Layer], Layer]) -> None:
        known = {name: engines.ENGINES[name] for name in ("reference", "fast")}
        monkeypatch.setattr(engines, "ENGINES", {**known, "false": planted(change)})

    return put


@pytest.fixture(scope="module")
def residual() -> tuple[Network, np.ndarray]:
    torch.manual_seed(0)
    x = torch.randn(16, 2, 8, 8)
    network = convert(networks.residual().eval(), x, 4).network
    return network, network.input.encode(x.numpy()[:6])


def size(found: reduction.Reduction) -> tuple[int, int, int, int]:
    network = found.network
    return len(network.layers), sum(layer.size for layer in network.layers), network.timesteps, len(found.payload)


def test_a_layer_kind_that_is_off_by_one_is_left_with_one_neuron(plant: Any, residual: Any, tmp_path: Path) -> None:
    plant(off_by_one(Conv2d))
    network, payload = residual
    assert len(network.layers) == 4
    found = reduce(network, payload, PAIR)
    assert size(found) == (2, 2, 1, 1)  # a neuron, and what reads it
    assert type(found.network.layers[0].edges[0].synapse) is Conv2d
    assert not found.network.holdoff
    assert not any(layer.v0.any() or layer.bias.any() for layer in found.network.layers)
    found.save(tmp_path / "repro")
    again = bundle.load(tmp_path / "repro")
    assert again.network == found.network
    assert again.config["difference"] == str(found.difference)
    assert verify(again.network, found.payload, PAIR).difference == found.difference


def test_a_readout_that_is_off_by_one_is_left_alone(plant: Any, residual: Any) -> None:
    plant(off_by_one(Dense, "readout"))
    found = reduce(*residual, PAIR)
    assert size(found) == (1, 1, 1, 1)
    assert found.network.layers[0].kind == "readout"


def test_layers_bias_channels_and_steps_that_matter_stay(plant: Any) -> None:
    """A difference in channel 5 of 8, in the third step, where two edges meet."""

    def change(layer: Layer) -> Layer:
        if len(layer.edges) < 2 or layer.bias.shape[0] < 3 or 77 not in layer.bias[0]:
            return layer
        bias = layer.bias.copy()
        bias[2, layer.bias[0] == 77] += 1
        return replace(layer, bias=bias)

    plant(change)
    rng = np.random.default_rng(1)

    def layer(name: str, *sources: str) -> Layer:
        edges = tuple(Edge(source, Dense(rng.integers(-9, 10, (8, 8)))) for source in sources)
        bias = np.tile(np.arange(72, 80), (6, 1))
        return Layer(name, (8,), edges, 20, rng.integers(0, 9, 8), bias)

    middle = (layer("a", INPUT), layer("b", "a"), layer("c", "a", "b"), layer("d", "c"))
    last = Layer("e", (3,), (Edge("d", Dense(np.ones((3, 8), int))),), 0, [0] * 3, np.zeros((6, 3), int), "readout")
    network = Network(Input((8,)), (*middle, last), 6, 2)
    found = reduce(network, rng.integers(-9, 10, (5, 8)), PAIR)
    wrong = found.network[found.difference.layer]
    assert (wrong.name, len(wrong.edges), wrong.bias.tolist()) == ("c", 2, [[77]] * 3)
    assert (found.network.timesteps, found.network.holdoff, len(found.payload)) == (3, 0, 1)
    assert len(found.network.layers) == 3  # both sources of c became one, or one of them the input
    assert all(layer.size == 1 for layer in found.network.layers)


def test_groups_stay_whole(plant: Any) -> None:
    plant(
        lambda layer: (
            off_by_one(Conv2d)(layer) if any(edge.synapse.weight.shape[1:2] == (2,) for edge in layer.edges) else layer
        )
    )
    rng = np.random.default_rng(1)
    edges = (Edge(INPUT, Conv2d(rng.integers(-9, 10, (12, 2, 3, 3)), Geometry(padding=(1, 1), groups=4))),)
    first = Layer("a", (12, 6, 6), edges, 9, np.zeros(12, int), np.ones((2, 12), int))
    head = Layer(
        "b", (3,), (Edge("a", Dense(rng.integers(-9, 10, (3, 432)))),), 0, [0] * 3, np.ones((2, 3), int), "readout"
    )
    network = Network(Input((8, 6, 6)), (first, head), 2)
    found = reduce(network, rng.integers(-9, 10, (3, 8, 6, 6)), PAIR)
    (edge,) = found.network.layers[0].edges
    assert (edge.synapse.weight.shape, edge.synapse.geometry.groups) == ((1, 2, 3, 3), 1)
    assert size(found) == (2, 2, 1, 1)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=random_networks(shortcuts=True, longest=4))
def test_whatever_the_network_a_case_is_found_and_is_no_larger(plant: Any, drawn: Any) -> None:
    plant(off_by_one(Dense, "readout"))
    network, payload = drawn
    assume(not reference.run(network, payload, overflow="count").overflows)
    found = reduce(network, payload, PAIR)
    assert size(found) == (1, 1, 1, 1)
    assert verify(found.network, found.payload, PAIR).difference is not None


def test_an_interval_stays_only_where_it_matters(monkeypatch: pytest.MonkeyPatch, residual: Any) -> None:
    network, payload = replace(residual[0], reset_interval=64), residual[1]
    for needed, left in ((64, 64), (None, None)):

        def run(given: Network, payload: np.ndarray, *, needed: int | None = needed, **more: Any) -> Trace:
            trace = replace(reference.run(given, payload, chip=more["chip"], overflow="strict"), engine="false")
            if needed in (None, given.reset_interval):
                trace.potentials[given.readout.name][0, -1] += 1
            return trace

        false = Engine("false", None, lambda network, payload, chip: [], run)
        monkeypatch.setattr(engines, "ENGINES", {**engines.ENGINES, "false": false})
        found = reduce(network, payload, PAIR)
        assert found.network.reset_interval == left
        assert size(found) == (1, 1, 1, 1)


def test_tries_are_bounded(plant: Any, residual: Any) -> None:
    plant(off_by_one(Conv2d))
    assert reduce(*residual, PAIR, tries=3).tries == 3
    assert refusal(lambda: reduce(*residual, PAIR, tries=0)) == "tries: 0; give at least 1"


def test_engines_that_agree_leave_nothing_to_reduce(residual: Any) -> None:
    assert refusal(lambda: reduce(*residual, ["reference", "fast"])) == (
        "engines: they agree on these inputs; there is nothing to reduce"
    )


def test_verify_writes_a_case_and_says_how_to_run_it(
    plant: Any, residual: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(off_by_one(Conv2d))
    network, payload = residual
    netx.write_graph(replace(network, input=Input(network.input.shape)), tmp_path / "network.net")
    np.savez(tmp_path / "x.npz", x=payload.astype(np.float32))
    monkeypatch.chdir(tmp_path)
    arguments = ["verify", "network.net", "--data", "x.npz", "--reduce", "repro"]
    shown = CliRunner().invoke(cli.app, arguments)
    assert shown.exit_code == 1
    assert "reference and false differ on 2 layers, 2 neurons, T = 1, 1 samples: layer " in shown.output
    assert shown.output.endswith("written to repro; run it again: ann2loihi verify repro\n")
    again = CliRunner().invoke(cli.app, ["verify", "repro"])
    assert (again.exit_code, "reference, fast, false differ: layer" in again.output) == (1, True)
    said = json.loads(CliRunner().invoke(cli.app, [*arguments, "--json"]).output)  # in the place of the old one
    assert said["repro"]["directory"] == "repro"
    assert CliRunner().invoke(cli.app, ["inspect", "repro"]).exit_code == 0


def test_verify_without_inputs_is_refused(residual: Any, tmp_path: Path) -> None:
    netx.write_graph(residual[0], tmp_path / "network.net")
    done = CliRunner().invoke(cli.app, ["verify", str(tmp_path / "network.net")])
    assert (done.exit_code, done.output) == (2, "error: --data: no inputs are given; give --data FILE.npz\n")
