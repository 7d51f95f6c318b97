"""Converted networks of every shape that people write run the same on every engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exporters import engines, netx
from toolchain import assess
from toolchain.convert import as_inputs, convert
from toolchain.loading import load_model

ROOT = Path(__file__).parents[1]


class Forward(nn.Module):
    """Modules, and a function of them and the input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.compute = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


def conv(c_in: int, c_out: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False, **options), nn.BatchNorm2d(c_out))


def residual() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        out = self.second(functional.relu(self.first(x)))
        out += functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.head(functional.relu(out).mean((2, 3)))

    return Forward(forward, stem=conv(2, 4), first=conv(4, 6, stride=2), second=conv(6, 6), head=nn.Linear(6, 3))


def concatenated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = torch.cat([x, functional.relu(self.first(x))], 1)
        x = torch.cat([x, functional.relu(self.second(x))], 1)
        return self.head(functional.avg_pool2d(x, 4).flatten(1))

    return Forward(forward, stem=conv(2, 4), first=conv(4, 3), second=conv(7, 3), head=nn.Linear(10, 3))


def depthwise() -> nn.Module:
    return nn.Sequential(
        conv(2, 6), nn.ReLU6(), conv(6, 6, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 1), nn.ReLU6(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


NETWORKS = {
    "residual": (residual, (2, 4, 4), "ann2loihi"),
    "concatenation": (concatenated, (2, 4, 4), "ann2loihi"),
    "depthwise": (depthwise, (2, 4, 4), "lava-dl netx"),
    "sequence": (sequence, (2, 8), "lava-dl netx"),
}


def trained(build: Callable[[], nn.Module]) -> nn.Module:
    """Build with drawn weights and batch statistics."""
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features) / 4
            module.running_var = torch.rand(module.num_features) + 0.5
            module.bias.data = torch.randn(module.num_features) / 2
    return model.eval()


@pytest.mark.parametrize("holdoff", [0, 1])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_runs_the_same_on_every_engine(
    name: str, holdoff: int, compared: Callable[[str], None]
) -> None:
    build, shape, loader = NETWORKS[name]
    model, x = trained(build), torch.randn(64, *shape, generator=torch.Generator().manual_seed(1))
    conversion = convert(model, x, 4, holdoff=holdoff)
    assert netx.loaded_by(conversion.network) == loader
    network = conversion.network
    result = engines.verify(network, network.input.encode(as_inputs(x[:3], network.input.shape)))
    assert result.difference is None
    assert result.spikes > 50
    for run in result.runs[1:]:
        compared(f"reference = {run.engine}")


@pytest.mark.parametrize("name", NETWORKS)
def test_sixteen_steps_make_a_converted_network_follow_the_model(name: str) -> None:
    build, shape, _ = NETWORKS[name]
    model, x = trained(build), torch.randn(256, *shape, generator=torch.Generator().manual_seed(1))
    conversion = convert(model, x, 16, holdoff=2)
    expected = assess.model_logits(model, x).argmax(1).numpy()
    assert (conversion.predict(x) == expected).mean() > 0.9


@pytest.mark.slow
def test_resnet20_agrees_on_every_engine_at_full_size(compared: Callable[[str], None]) -> None:
    model = trained(lambda: load_model(f"{ROOT}/examples/resnet20.py:resnet20"))
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    network = convert(model, x, 4).network
    result = engines.verify(network, network.input.encode(x[:1]))
    assert result.difference is None
    assert result.spikes > 10_000
    for run in result.runs[1:]:
        compared(f"reference = {run.engine}")
