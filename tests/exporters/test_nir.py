"""Networks in NIR: other tools accept and execute them, and reading restores them bit for bit; nothing else is read."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import networks
import nir
import numpy as np
import pytest
import torch
from executed import agrees
from hypothesis import HealthCheck, given, settings
from random_networks import networks as random_networks
from refusing import refusal
from torch.nn import functional
from typer.testing import CliRunner

from benchmarks.portable import by_norse
from exporters import engines, netx
from exporters import nir as ours
from exporters.nir.graph import Form, depths, obstacles
from sim import fast, reference
from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Output, Shape
from toolchain.app import cli
from toolchain.convert import convert
from toolchain.demo import data, load_model

FORMS: tuple[Form, ...] = ("exact", "portable")


def saved(network: Network, path: Path, form: Form | None = None) -> Path:
    """Write it, let NIR read and check it, and compare what is read here."""
    ours.save(network, path, form=form)
    assert nir.read(path, type_check=True).check_types()
    assert ours.read(path) == network
    return path


@pytest.fixture(scope="module")
def demo() -> tuple[Network, np.ndarray, np.ndarray]:
    """The demo's network at T = 4, payloads of test digits, and their labels."""
    digits = data.load()
    network = convert(load_model(), digits.calibration_x, 4).network
    return network, network.input.encode(digits.test_x.numpy()[:40]), digits.test_y.numpy()[:40]


def converted(model: torch.nn.Module, *shape: int, samples: int = 16) -> tuple[Network, np.ndarray]:
    torch.manual_seed(0)
    x = torch.randn(samples, *shape)
    network = convert(model.eval(), x, 2).network
    return network, network.input.encode(x.numpy())


# ---- there and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=random_networks(shortcuts=True))
def test_a_network_comes_back_bit_for_bit(form: Form, drawn: Any, tmp_path: Path) -> None:
    network, _ = drawn
    if obstacles(network, form):
        with pytest.raises(Refused):
            ours.save(network, tmp_path / "network.nir", form=form)
        assert not (tmp_path / "network.nir").exists()
    else:
        saved(network, tmp_path / "network.nir", form)
        (tmp_path / "network.nir").unlink()


@pytest.mark.parametrize("form", FORMS)
def test_so_does_the_demo(form: Form, demo: Any, tmp_path: Path) -> None:
    saved(demo[0], tmp_path / "network.nir", form)


def everything() -> Network:
    """What a network can say beside its layers."""
    layer = Layer("a.b/c d", (2,), (Edge(INPUT, Dense([[3, -4], [5, 6]]), 2),), 9, [1, -2], [[1, 2], [3, 4]], holdoff=3)
    edges = (Edge("a.b/c d", Dense([[7, 8]])), Edge(INPUT, Dense([[1, 0]])))
    last = Layer("l0_ä", (1,), edges, 0, [5], [[0], [-7]], "readout")
    order, scale = np.array([3, 0]), np.array([0.1, 1e-30])
    source = Input((2,), 7, False, scale, order, (2, 2), "payload")
    return Network(source, (layer, last), 2, 1, Output(np.array([1 / 3]), np.array(-0.7)), 64)


@pytest.mark.parametrize("form", FORMS)
def test_so_does_everything_that_a_network_says(form: Form, tmp_path: Path) -> None:
    saved(everything(), tmp_path / "network.nir", form)


@pytest.mark.parametrize("form", FORMS)
def test_what_nir_reads_and_writes_again_is_the_same_network(form: Form, demo: Any, tmp_path: Path) -> None:
    path = saved(demo[0], tmp_path / "network.nir", form)
    nir.write(tmp_path / "again.nir", nir.read(path))
    assert ours.read(tmp_path / "again.nir") == demo[0]


def test_equal_networks_give_equal_bytes(demo: Any) -> None:
    assert ours.dump(demo[0]) == ours.dump(replace(demo[0]))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_resnet20_comes_back_bit_for_bit(form: Form, tmp_path: Path) -> None:
    network, _ = converted(networks.resnet20(), 3, 32, 32, samples=4)
    saved(network, tmp_path / "network.nir", form)


# ---- executed by other tools ----------------------------------------------------------------------------------------


def test_the_demo_executes_elsewhere_spike_for_spike(demo: Any, tmp_path: Path) -> None:
    network, payload, _ = demo
    path = saved(network, tmp_path / "network.nir", "exact")
    assert agrees(path, reference.run(network, payload[:3]), payload[:3]) > 1000


def test_a_residual_network_executes_elsewhere_with_delays_where_paths_differ(tmp_path: Path) -> None:
    network, payload = converted(networks.residual(), 2, 8, 8)
    path = saved(network, tmp_path / "network.nir", "exact")
    assert sum(node["type"] == "Delay" for node in ours.read_graph(path)["nodes"].values()) == 1
    assert agrees(path, reference.run(network, payload[:2]), payload[:2]) > 50


@pytest.mark.parametrize(
    ("kernel", "geometry", "size", "apart"),
    [
        ((4, 1, 3, 1), Geometry((2, 1), (1, 0), (1, 2), 2), (2, 4), (2, 4)),
        ((4, 2, 2, 2), Geometry(padding=(1, 1)), (5, 5), ()),  # one more than the input has
    ],
    ids=["of every neuron", "on a larger map"],
)
def test_biases_execute_elsewhere(kernel: Shape, geometry: Geometry, size: Shape, apart: Shape, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    edges = (Edge(INPUT, Conv2d(rng.integers(-9, 10, kernel), geometry)),)
    bias = rng.integers(-20, 21, (3, 4, *apart))
    layer = Layer("a", (4, *size), edges, 13, rng.integers(-5, 6, 4), bias, holdoff=2)
    dense = Edge("a", Dense(rng.integers(-9, 10, (2, layer.size))))
    head = Layer("b", (2,), (dense,), 0, [1, 2], np.ones((3, 2), int), "readout")
    network = Network(Input((2, 4, 4)), (layer, head), 3)
    payload = rng.integers(-9, 10, (4, 2, 4, 4))
    path = saved(network, tmp_path / "network.nir", "exact")
    assert agrees(path, reference.run(network, payload), payload) > 30


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=random_networks(shortcuts=True, longest=5))
def test_random_networks_execute_elsewhere_spike_for_spike(drawn: Any, tmp_path: Path) -> None:
    network, payload = drawn
    trace = reference.run(network, payload[:1], overflow="count")
    if not trace.overflows and not obstacles(network, "exact"):
        agrees(saved(network, tmp_path / "network.nir", "exact"), trace, payload[:1])


def stepped(
    network: Network, payload: np.ndarray, subtracts: bool, schedule: bool
) -> tuple[dict[str, int], np.ndarray]:
    """Step through a chain of layers whose connections take no time: spikes by layer, and the last potentials.

    ``subtracts`` is the reset. With ``schedule`` a layer has v0, its window and what is added there; otherwise the mean
    of it all in each of T steps.
    """
    train = torch.zeros(ours.steps(network) if schedule else network.timesteps, *payload.shape)
    train[: network.timesteps] = torch.tensor(payload, dtype=torch.float32)
    counts = {}
    for layer in network.layers:
        (edge,) = layer.edges
        weight = torch.tensor(edge.synapse.weight, dtype=torch.float32)
        first = network.phase[layer.name] - depths(network)[layer.name] if schedule else 0
        added = layer.bias if schedule else np.tile(layer.offsets[-1] / network.timesteps, (network.timesteps, 1))
        channels = (len(layer.v0), *(1,) * (len(layer.shape) - 1))
        v = torch.zeros(len(payload), *layer.shape)
        v += torch.tensor(layer.v0 * schedule).reshape(channels)
        fired = torch.zeros(len(train), *v.shape)
        for step, spikes in enumerate(train):
            if isinstance(edge.synapse, Dense):
                v = v + functional.linear(spikes.flatten(1), weight)
            else:
                v = v + functional.conv2d(spikes, weight, None, *edge.synapse.geometry)
            if first <= step < first + network.timesteps:
                v = v + torch.tensor(added[step - first], dtype=torch.float32).reshape(channels)
                if layer.kind == "spiking":
                    fired[step] = v > layer.threshold - 0.5
                    v = v - layer.threshold * fired[step] if subtracts else v * (1 - fired[step])
        counts[layer.name], train = int(fired.sum()), fired
    return counts, v.numpy()


def test_norse_executes_the_portable_form_and_every_difference_has_a_reason(demo: Any) -> None:
    """T = 4, so that the means are exact in binary, and so is every sum."""
    network, payload, labels = demo
    outputs, spikes = by_norse(network, payload)
    theirs = {layer.name: count for layer, count in zip(network.layers, [*spikes.values(), 0], strict=True)}
    trace = fast.run(network, payload)
    own = {name: int(spikes.sum()) for name, spikes in trace.spikes.items()}
    # What norse does is the hard reset, with the mean in the place of the schedule, and no windows: nothing else.
    expected, potentials = stepped(network, payload, subtracts=False, schedule=False)
    assert theirs == expected
    np.testing.assert_array_equal(outputs, potentials)
    # The reset, then the schedule with its windows, are all that lies between it and ours.
    soft, _ = stepped(network, payload, subtracts=True, schedule=False)
    again, logits = stepped(network, payload, subtracts=True, schedule=True)
    assert again == own
    np.testing.assert_array_equal(logits, trace.logits[:, -1])
    # A reset to zero loses what is above the threshold; in the first layer nothing else can differ.
    assert theirs["conv1"] < soft["conv1"]
    assert sum(theirs.values()) < sum(own.values())
    right = [float((np.argmax(values, 1) == labels).mean()) for values in (outputs, trace.logits[:, -1])]
    assert right[1] >= right[0] > 0.8


# ---- what is refused ------------------------------------------------------------------------------------------------


def small(*edges: Edge, shape: tuple[int, ...] = (2,), steps: int = 1, channels: int = 2) -> Network:
    layer = Layer("a", shape, edges, 3, np.zeros(shape[0], int), np.zeros((steps, channels), int))
    last = Layer(
        "b", (1,), (Edge("a", Dense(np.ones((1, layer.size), int))),), 0, [0], np.zeros((steps, 1), int), "readout"
    )
    return Network(Input((2, 4, 4)), (layer, last), steps)


SHIFTED = small(Edge(INPUT, Dense(np.ones((2, 32), int)), -1))


def test_a_network_that_nodes_cannot_say_is_exported_in_the_portable_form(tmp_path: Path) -> None:
    ours.save(SHIFTED, tmp_path / "network.nir")
    assert ours.form_of(ours.read_graph(tmp_path / "network.nir")) == "portable"
    assert ours.read(tmp_path / "network.nir") == SHIFTED


ROW = np.ones((2, 2, 1, 3), int)
EVERY = np.arange(48).reshape(1, 2, 4, 6) % 5 - 2  #: T = 1, of every neuron


@pytest.mark.parametrize(
    ("network", "form", "text"),
    [
        (SHIFTED, "exact", "a <- input: weight exponent -1 rounds, which no node of NIR does; use the form 'portable'"),
        (
            small(Edge(INPUT, Dense(np.ones((32, 32), int))), shape=(2, 4, 4)),
            "portable",
            "a <- input: dense synapses into",
        ),
        (
            small(Edge(INPUT, Conv2d(ROW[..., :2])), shape=(2, 4, 3)),
            "portable",
            r"a <- input: kernel \(1, 2\): NIR knows",
        ),
        (small(Edge(INPUT, Conv2d(ROW * 200)), shape=(2, 4, 2)), "portable", "a <- input: weight 200 is outside"),
        (SHIFTED, "nested", "form: 'nested' is unknown; use exact, portable"),
    ],
    ids=["a shift", "unfolding", "a kernel", "the chip", "a form"],
)
def test_what_a_form_cannot_hold_is_named(network: Network, form: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=text):
        ours.save(network, tmp_path / "network.nir", form=form)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(("side", "width"), [(4, 4), (2, 6), (3, 5), (3, 4)])
def test_biases_of_every_neuron_take_sides_that_are_both_even_or_both_odd(
    side: int, width: int, tmp_path: Path
) -> None:
    layer = Layer(
        "a", (2, side, width), (Edge(INPUT, Conv2d(np.ones((2, 1, 1, 1), int))),), 3, [0, 1], EVERY[:, :, :side, :width]
    )
    head = Dense(np.ones((1, layer.size), int))
    last = Layer("b", (1,), (Edge("a", head),), 0, [0], [[0]], "readout")
    network = Network(Input((1, side, width)), (layer, last), 1)
    if (side, width) == (3, 4):
        with pytest.raises(Refused, match=r"a: biases of every neuron of a map of \(3, 4\): NIR knows square kernels"):
            ours.save(network, tmp_path / "network.nir", form="exact")
    else:
        path = saved(network, tmp_path / "network.nir", "exact")
        payload = np.full((1, 1, side, width), 1)
        payload[0, 0, 1] = 2
        assert agrees(path, reference.run(network, payload), payload) > 3


def test_a_graph_beyond_reason_is_refused_before_it_is_made(tmp_path: Path) -> None:
    long = replace(small(Edge(INPUT, Conv2d(np.ones((2, 2, 1, 1), int))), shape=(2, 4, 4)), holdoff=60_000)
    wide = Layer("a", (2, 400, 400), long.layers[0].edges, 3, [0, 0], np.zeros((1, 2), int))
    last = replace(long.layers[1], edges=(Edge("a", Conv2d(np.ones((1, 2, 400, 400), int))),), shape=(1, 1, 1))
    network = replace(long, input=Input((2, 400, 400)), layers=(wide, last))
    with pytest.raises(
        Refused, match=r"network: [0-9]+ numbers in the form 'exact', above 67108864; use the form 'portable'"
    ):
        ours.save(network, tmp_path / "network.nir", form="exact")


def test_without_the_package_nir_a_line_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, demo: Any) -> None:
    path = saved(demo[0], tmp_path / "network.nir")
    monkeypatch.setitem(sys.modules, "nir", None)
    assert refusal(ours.save, demo[0], tmp_path / "other.nir") == (
        "nir: writing NIR takes the package nir; pip install 'ann2loihi[nir]'"
    )
    assert ours.read(path) == demo[0]


N = np.ones(3, np.float32)
FOREIGN: dict[str, tuple[list[Any], str]] = {
    "IF": (
        [nir.IF(N, N)],
        r"its neurons \(IF\) reset to a fixed potential, a network's here by subtraction; convert it",
    ),
    "LIF": ([nir.LIF(N, N, N, N), nir.IF(N, N)], r"its neurons \(IF, LIF\) reset to a fixed potential"),
    "none": ([nir.Linear(np.eye(3))], "it holds no spiking neurons; convert it as a trained model"),
    "a soft reset": ([nir.I(N), nir.Threshold(N)], "it resets as a network of ours, but says no firing windows"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_graph_of_another_tool_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    nodes, text = FOREIGN[name]
    chain = nir.NIRGraph.from_list(*nodes)
    for graph in (chain, nir.NIRGraph.from_list(nir.Input(N), chain, nir.Output(N), type_check=False)):
        nir.write(tmp_path / "theirs.nir", graph)
        with pytest.raises(Refused, match=text) as caught:
            ours.read(tmp_path / "theirs.nir")
        assert len(caught.value.findings) == 1


def test_a_text_is_as_long_as_names_get(tmp_path: Path) -> None:
    path = saved(everything(), tmp_path / "network.nir")
    for length, refused in ((4096, False), (4097, True)):
        with h5py.File(path, "a") as file:
            file.pop("node/metadata/note", None)
            file["node/metadata/note"] = "x" * length
        with pytest.raises(Refused, match="a text is longer than any name") if refused else nullcontext():
            assert ours.read_graph(path)["metadata"]["note"] == "x" * length


@pytest.mark.parametrize("digest", [np.arange(2), 3.5])
def test_a_digest_that_is_no_text_is_noticed(digest: Any, tmp_path: Path, demo: Any) -> None:
    path, names = saved(demo[0], tmp_path / "network.nir"), []
    with h5py.File(path, "a") as file:
        file.visit(lambda name: names.append(name) if name.endswith("sha256") else None)
        (at,) = names
        del file[at]
        file[at] = digest
    assert "sha256" in refusal(ours.read, path)


def test_a_changed_weight_is_noticed(tmp_path: Path, demo: Any) -> None:
    path = saved(demo[0], tmp_path / "network.nir")
    graph = nir.read(path)
    graph.nodes["l0_conv1_synapse0"].weight[0, 0, 0, 0] += 1
    nir.write(path, graph)
    assert refusal(ours.read, path).endswith(
        "sha256: the graph has changed since it was written; write it again with `ann2loihi export nir`"
    )


@pytest.mark.parametrize("form", FORMS)
def test_a_node_that_contradicts_the_metadata_is_noticed(form: Form, tmp_path: Path, demo: Any) -> None:
    path = saved(demo[0], tmp_path / "network.nir", form)
    graph = nir.read(path)
    node = graph.nodes["l0_conv1_spikes"]
    (node.threshold if form == "exact" else node.v_threshold)[0, 0, 0] += 1
    nir.write(path, graph)
    assert "nodes/l0_conv1_spikes/" in (text := refusal(ours.read, path))
    assert "it contradicts the rest of the graph" in text


# ---- on the command line --------------------------------------------------------------------------------------------


@pytest.fixture
def place(demo: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    digits = data.load()
    np.savez(tmp_path / "test.npz", x=digits.test_x.numpy()[:4], y=digits.test_y.numpy()[:4])
    netx.save(demo[0], tmp_path / "network.net")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(*arguments: str) -> str:
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("form", FORMS)
def test_every_command_takes_what_export_has_written(form: Form, place: Path, demo: Any) -> None:
    written = command("export", "nir", "network.net", "network.nir", "--form", form)
    assert written.startswith(f"written to network.nir, in the form {form}")
    shown = [json.loads(command("inspect", name, "--json")) for name in ("network.nir", "network.net")]
    assert [one.pop("loader") for one in shown] == [f"NIR, form {form}", "lava-dl netx"]
    assert shown[0] == shown[1]
    assert f"loads with NIR, form {form}" in command("inspect", "network.nir").replace("\n", " ")
    said = [
        json.loads(command("evaluate", name, "--data", "test.npz", "--json")) for name in ("network.nir", "network.net")
    ]
    assert said[0] == said[1]
    command("export", "network.nir", "-o", "again.net")
    assert Path("again.net").read_bytes() == Path("network.net").read_bytes()
    command("fit", "network.nir")
    command("cost", "network.nir", "--data", "test.npz")


def test_verify_runs_the_network_of_a_graph(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "ENGINES", {name: engines.ENGINES[name] for name in ("reference", "fast")})
    command("export", "nir", "network.net", "network.nir")
    found = json.loads(command("verify", "network.nir", "--data", "test.npz", "--json"))
    assert (found["difference"], found["samples"], found["spikes"] > 1000) == (None, 4, True)


def test_the_chip_is_checked_on_a_net(place: Path) -> None:
    command("export", "nir", "network.net", "network.nir")
    done = CliRunner().invoke(cli.app, ["check", "network.nir", "--chip", "loihi2"])
    assert (done.exit_code, done.output) == (
        2,
        "error: network.nir: it is in NIR, and what is checked is a .net; write one: `ann2loihi export network.nir -o "
        "network.net`\n",
    )


def test_how_to_execute_a_graph_is_said(place: Path) -> None:
    assert "run 7 steps, the payload in the first 4 and 0 after them: the output after step 7 holds the logits" in (
        command("export", "nir", "network.net", "network.nir")
    )


def test_inspect_shows_the_nodes_of_any_graph(place: Path) -> None:
    nir.write("theirs.nir", nir.NIRGraph.from_list(nir.Linear(np.eye(3)), nir.IF(N, N)))
    rows = json.loads(command("inspect", "theirs.nir", "--json"))
    assert {row["node"]: row["type"] for row in rows} == {
        "input": "Input",
        "linear": "Linear",
        "if": "IF",
        "output": "Output",
    }
    assert "linear" in command("inspect", "theirs.nir")


def test_a_directory_called_nir_is_exported_by_its_path(place: Path) -> None:
    (place / "network.net").rename(place / "nir")
    assert command("export", "./nir", "-o", "again.net").startswith("written to again.net")
