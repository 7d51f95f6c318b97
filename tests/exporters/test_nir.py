"""Networks in NIR: other tools accept and execute them, and reading restores them bit for bit; nothing else is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import nir
import norse.torch as norse
import numpy as np
import pytest
import torch
from executed import agrees
from hypothesis import HealthCheck, given, settings
from random_networks import networks as random_networks
from torch.nn import functional

from exporters import nir as ours
from exporters.nir.graph import Form, depths, obstacles
from sim import fast, reference
from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Output
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


def test_biases_of_every_neuron_execute_elsewhere(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    edges = (Edge(INPUT, Conv2d(rng.integers(-9, 10, (4, 1, 3, 1)), Geometry((2, 1), (1, 0), (1, 2), 2))),)
    bias = rng.integers(-20, 21, (3, 4, 2, 4))
    layer = Layer("a", (4, 2, 4), edges, 13, rng.integers(-5, 6, 4), bias, holdoff=2)
    head = Layer(
        "b", (2,), (Edge("a", Dense(rng.integers(-9, 10, (2, 32)))),), 0, [1, 2], np.ones((3, 2), int), "readout"
    )
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


def test_norse_executes_the_portable_form_and_every_difference_has_a_reason(demo: Any, tmp_path: Path) -> None:
    """T = 4, so that the means are exact in binary, and so is every sum."""
    network, payload, labels = demo
    with pytest.warns(DeprecationWarning, match="nirtorch.load"):
        module = norse.from_nir(nir.read(saved(network, tmp_path / "network.nir", "portable")))
    theirs = {layer.name: 0 for layer in network.layers}
    names = {name: layer.name for layer in network.layers for name, _ in module.named_modules() if layer.name in name}
    for name, part in module.named_modules():
        if name.endswith("_spikes"):

            def count(_: Any, given: Any, result: Any, name: str = names[name]) -> None:
                theirs[name] += int(result[0].detach().sum())

            part.register_forward_hook(count)
    outputs = []
    for image in payload:
        state, total = None, torch.zeros(10)
        with torch.no_grad():
            for _ in range(network.timesteps):
                output, state = module(torch.from_numpy(image.astype(np.float32)), state)
                total = total + output
        outputs.append(total.numpy())
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
