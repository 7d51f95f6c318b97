"""Converted networks of every shape that people write run the same on every engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import networks
import pytest
import torch
from networks import trained
from torch import nn

from exporters import engines, netx
from sim.network import INPUT, Shape
from sim.trace import first_difference
from toolchain import assessment
from toolchain.convert import convert
from toolchain.inputs import as_inputs

NETWORKS = {
    "residual": (networks.residual, (2, 4, 4), "ann2loihi"),
    "concatenation": (networks.concatenated, (2, 4, 4), "ann2loihi"),
    "depthwise": (networks.depthwise, (2, 4, 4), "lava-dl netx"),
    "sequence": (networks.sequence, (2, 8), "lava-dl netx"),
}


#: Each network once, half of them holding off; the other halves take as long again.
HELD = {"residual", "depthwise"}


@pytest.mark.lava
@pytest.mark.parametrize(
    ("name", "holdoff"),
    [
        pytest.param(name, holdoff, marks=[pytest.mark.slow] * (holdoff != (name in HELD)))
        for name in NETWORKS
        for holdoff in (0, 1)
    ],
)
def test_a_converted_network_runs_the_same_on_every_engine(
    name: str, holdoff: int, compared: Callable[[str], None]
) -> None:
    build, shape, loader = NETWORKS[name]
    model, x = trained(build, shape), torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    conversion = convert(model, x, 4, holdoff=holdoff)
    assert netx.loaded_by(conversion.network) == loader
    network = conversion.network
    result = engines.verify(network, network.input.encode(as_inputs(x[:3], network.input.shape)))
    assert result.difference is None
    assert result.spikes > 50
    for run in result.runs[1:]:
        compared(f"reference = {run.engine}")


@pytest.mark.lava
def test_a_shifted_input_runs_the_same_on_every_engine(compared: Callable[[str], None]) -> None:
    model = trained(networks.residual, (2, 4, 4))
    stem = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    stem.bias = nn.Parameter(torch.full((stem.out_channels,), 3.0))  # so large that only a small THETA has room for it
    x = torch.randn(64, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    network = convert(model, x, 4, shift_input=True).network
    assert min(edge.exponent for layer in network.layers for edge in layer.edges if edge.source == INPUT) < 0
    result = engines.verify(network, network.input.encode(as_inputs(x[:3])))
    assert result.difference is None
    assert result.spikes > 50
    assert len(result.runs) > 2
    for run in result.runs[1:]:
        compared(f"reference = {run.engine}, shifted input")


@pytest.mark.parametrize("name", NETWORKS)
def test_sixteen_steps_make_a_converted_network_follow_the_model(name: str) -> None:
    build, shape, _ = NETWORKS[name]
    model, x = trained(build, shape), torch.randn(256, *shape, generator=torch.Generator().manual_seed(1))
    conversion = convert(model, x, 16, holdoff=2)
    expected = assessment.model_logits(model, x).argmax(1).numpy()
    assert (conversion.predict(x) == expected).mean() > 0.9


#: What people convert, small enough for the reference: with T, the timesteps.
MODELS: dict[str, tuple[Callable[[], nn.Module], Shape, int]] = {
    "MLP": (networks.mlp, (12,), 4),
    "LeNet": (networks.lenet, (1, 28, 28), 4),
    "VGG-11": (partial(networks.vgg, 11, narrower=8), (3, 32, 32), 3),
    "VGG-16": (partial(networks.vgg, 16, narrower=8), (3, 32, 32), 2),
    "ResNet-20": (networks.resnet20, (3, 16, 16), 2),
    "ResNet-18": (partial(networks.torchvision_resnet, "resnet18"), (3, 16, 16), 2),
    "ResNet-34": (partial(networks.torchvision_resnet, "resnet34"), (3, 16, 16), 2),
    "MobileNetV2": (networks.mobilenet, (3, 32, 32), 2),
    "densely connected": (networks.densely_connected, (3, 8, 8), 4),
    "depthwise separable": (networks.depthwise_separable, (3, 12, 12), 4),
    "residual over sequences": (networks.residual_sequence, (2, 64), 4),
}


#: The reference takes minutes for these.
LARGE = {"VGG-16", "ResNet-20", "ResNet-18", "ResNet-34", "MobileNetV2"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LARGE)) for n in MODELS])
def test_the_fast_engine_runs_a_converted_network_as_the_reference_does(
    name: str, compared: Callable[[str], None]
) -> None:
    build, shape, timesteps = MODELS[name]
    x = torch.randn(8, *shape, generator=torch.Generator().manual_seed(1))
    # Fitting the 4608 weights a neuron of ResNet-34 takes minutes, and no engine cares where its weights come from.
    weights = "nearest" if name == "ResNet-34" else "fitted"
    network = convert(trained(build, shape), x, timesteps, weights=weights).network
    payload = network.input.encode(as_inputs(x[:1], network.input.shape))
    expected, actual = (engines.run(engine, network, payload) for engine in ("reference", "fast"))
    assert first_difference(expected, actual) is None
    assert all(expected.spikes[layer.name].any() for layer in network.layers[:-1])
    compared("reference = fast")


@pytest.mark.lava
@pytest.mark.slow
def test_resnet20_agrees_on_every_engine_at_full_size(compared: Callable[[str], None]) -> None:
    model = trained(networks.resnet20, (3, 32, 32))
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = convert(model, x, 4).network
    result = engines.verify(network, network.input.encode(x[:1]))
    assert result.difference is None
    assert result.spikes > 10_000
    for run in result.runs[1:]:
        compared(f"reference = {run.engine}")
