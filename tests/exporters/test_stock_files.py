"""Files of dense networks that lava-dl's loader builds whole: with nothing attached but schedule and input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from exporters import netx
from exporters.netx.checks import holds_reset
from sim import reference
from sim.chip import NETX
from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Input, Layer, Network
from sim.trace import first_difference


def drawn(seed: int, *shape: int, low: int = -127, high: int = 127) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def perceptron(*thetas: int, timesteps: int = 6, even: bool = False) -> Network:
    """Five neurons a layer; each threshold makes a spiking one."""
    layers: list[Layer] = []
    for seed, theta in enumerate((*thetas, 0)):
        weight = 2 * drawn(seed, 5, 5, low=-63, high=63) if even else drawn(seed, 5, 5)
        bias = drawn(seed, timesteps, 5, low=-9, high=30)
        edge = Edge(layers[-1].name if layers else INPUT, Dense(weight))
        v0 = np.full(5, theta // 2)
        layers.append(Layer(f"part.{seed}", (5,), (edge,), theta, v0, bias, "spiking" if theta else "readout"))
    return Network(Input((5,), bits=3), tuple(layers), timesteps)


@pytest.mark.parametrize(
    ("largest", "theta", "held"),
    [
        *((127, theta, True) for theta in (1, 2, 63, 64, 100, 127)),
        *((31, theta, theta.bit_count() > 1) for theta in (32, 33, 64, 100, 127)),
        *((theta - less, theta, not less) for theta in (16, 32, 64) for less in (0, 1)),
        *((127, theta, False) for theta in (128, 129, 200, 255, 256, 300)),
        *((126, theta, theta % 2 == 0 and 128 < theta < 256) for theta in (128, 129, 130, 200, 254, 255, 256)),
    ],
)
def test_which_thetas_netx_keeps(largest: int, theta: int, held: bool) -> None:
    """126 stands for even weights: up to 127 all is kept but a power of two that is the largest."""
    weight = np.array([[largest, -2 * (largest // 4)], [2, 0]])
    assert holds_reset(weight, theta) == held


def test_a_chip_for_such_files_has_only_thetas_that_netx_keeps_beside_any_weights() -> None:
    legal = [theta for theta in range(1, 400) if NETX.recurrent(theta)]
    assert legal == [theta for theta in range(1, 128) if theta.bit_count() > 1]
    for theta in legal:
        assert all(holds_reset(np.array([[most, -least]]), theta) for most in (1, 64, 127) for least in (0, 64, 127))


def test_what_the_form_cannot_hold_is_named_with_layer_and_theta(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        netx.save(perceptron(99, 128, 201), tmp_path / "a.net", form="stock")
    assert [f.where for f in caught.value.findings] == ["part.1", "part.2"]
    assert "would change theta = 128" in caught.value.findings[0].problem
    with pytest.raises(Refused, match=r"part.1: it has a hold-off.*; convert with hold-off 0"):
        netx.save(replace(perceptron(99, 99), holdoff=1), tmp_path / "a.net", form="stock")
    conv = Layer(
        "conv", (1, 2, 2), (Edge(INPUT, Conv2d(drawn(0, 1, 1, 2, 2))),), 9, np.zeros(1, int), np.zeros((2, 1), int)
    )
    out = Layer(
        "out", (1,), (Edge("conv", Dense(drawn(1, 1, 4))),), 0, np.zeros(1, int), np.zeros((2, 1), int), "readout"
    )
    with pytest.raises(Refused, match="conv <- input: Conv2d, netx has recurrent synapses in dense layers alone"):
        netx.save(Network(Input((1, 3, 3)), (conv, out), 2), tmp_path / "a.net", form="stock")
    assert not list(tmp_path.iterdir())


def test_what_goes_in_comes_back_and_is_checked_like_every_file(tmp_path: Path) -> None:
    network = perceptron(99, 101)
    netx.save(network, tmp_path / "a.net", form="stock")
    assert (netx.read(tmp_path / "a.net"), netx.form_of(tmp_path / "a.net")) == (network, "stock")
    assert not [issue for issue in netx.legality(tmp_path / "a.net") if issue.severity == "error"]
    with h5py.File(tmp_path / "a.net", "r+") as file:
        blocks = [file[f"layer/{index}"] for index in (1, 2, 3)]
        assert [block["type"][0] for block in blocks] == [b"dense_rec", b"dense_rec", b"dense"]
        assert (blocks[0]["weight_rec"][()] == -99 * np.eye(5)).all()
        blocks[0]["weight_rec"][0, 0] = -98
    with pytest.raises(Refused, match="layer/1/weight_rec: it contradicts the rest of the file"):
        netx.read(tmp_path / "a.net")


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize(
    "network",
    [perceptron(99, 101), perceptron(200, 130, even=True), perceptron(*(97,) * 8, timesteps=3)],
    ids=["odd", "even", "deeper than T"],
)
def test_lava_dl_builds_all_but_the_schedule(network: Network, tmp_path: Path, compared: Callable[[str], None]) -> None:
    netx.save(network, tmp_path / "a.net", form="stock")
    trace = netx.load(tmp_path / "a.net").run(payload := drawn(9, 3, 5, low=-3, high=3))
    assert first_difference(reference.run(network, payload), trace) is None
    assert all(trace.spikes[layer.name].any() for layer in network.layers if layer.kind == "spiking")
    compared("reference = stock file")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A perceptron of the digits, converted for files that lava-dl builds whole, and its test inputs."""
    import torch
    from torch import nn

    from toolchain.convert import convert
    from toolchain.demo import data

    loaded = data.load()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 10))
    x, y = loaded.calibration_x, loaded.calibration_y
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    conversion = convert(model.eval(), x, recipe="stock")
    return conversion.network, loaded


def test_the_recipe_stock_plans_thetas_that_the_form_holds(digits: Any, tmp_path: Path) -> None:
    from sim import fast

    network, loaded = digits
    netx.save(network, tmp_path / "digits.net", form="stock")
    right = fast.run(network, network.input.encode(loaded.test_x.numpy()), record=False).logits[:, -1].argmax(1)
    assert (right == loaded.test_y.numpy()).mean() > 0.85


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize("form", ["stock", "clock"])
def test_digits_as_a_stock_file_give_the_spikes_of_the_reference(
    digits: Any, form: Any, tmp_path: Path, compared: Callable[[str], None]
) -> None:
    network, loaded = digits
    netx.save(network, tmp_path / "digits.net", form=form)
    assert netx.loader_of(tmp_path / "digits.net") == netx.NETX
    payload = network.input.encode(loaded.test_x[:4].numpy())
    trace = netx.load(tmp_path / "digits.net").run(payload)
    assert first_difference(reference.run(network, payload), trace) is None
    assert trace.spikes[network.layers[0].name].any()
    compared(f"reference = {form} file")
