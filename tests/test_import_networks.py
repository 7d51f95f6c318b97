"""Whole networks as their authors wrote them: the float graph equals the torch model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from test_importer import Forward, agree, randomise, relative_error
from torch import Tensor, nn
from torch.nn import functional

from sim.network import Shape
from toolchain.graph import FloatConv2d, FloatGraph
from toolchain.importer import import_model, inspect_model, replace_max_pooling
from toolchain.loading import load_model

models: Any = pytest.importorskip("torchvision.models")

ROOT = Path(__file__).parents[1]
RESNET20 = f"{ROOT / 'examples' / 'resnet20.py'}:resnet20"
CHECKPOINT = ROOT.parent / "shared" / "models" / "resnet20_cifar10.pt"


def edges(graph: FloatGraph) -> int:
    return sum(len(layer.edges) for layer in graph.layers)


def test_lenet() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    assert len(agree(replace_max_pooling(model), (1, 28, 28)).layers) == 5


@pytest.mark.parametrize(("name", "layers"), [("vgg11_bn", 11), ("vgg16_bn", 16)])
def test_vgg_with_batch_normalisation_and_average_pooling(name: str, layers: int) -> None:
    model = models.get_model(name, weights=None)
    model.classifier[0], model.classifier[3], model.classifier[6] = (
        nn.Linear(512 * 7 * 7, 32),
        nn.Linear(32, 32),
        nn.Linear(32, 10),
    )
    graph = agree(replace_max_pooling(model), (3, 32, 32))
    assert (len(graph.layers), edges(graph)) == (layers, layers)
    assert tuple(graph.layers[-3].edges[0].map.weight.shape) == (32, 512 * 2 * 2)


def check_resnet20(graph: FloatGraph) -> None:
    assert (len(graph.layers), edges(graph)) == (20, 29)
    shortcuts = [edge.map for layer in graph.layers for edge in layer.edges[:1] if len(layer.edges) == 2]
    assert all(isinstance(m, FloatConv2d) and m.weight.shape[2:] == (1, 1) for m in shortcuts)
    assert all(set(m.weight.unique().tolist()) <= {0.0, 1.0} for m in shortcuts)


def test_resnet20_with_option_a_shortcuts() -> None:
    check_resnet20(agree(load_model(RESNET20), (3, 32, 32)))


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the trained ResNet-20 is not at hand")
def test_the_trained_resnet20() -> None:
    model = load_model(RESNET20, CHECKPOINT)
    graph = import_model(model, (3, 32, 32))
    check_resnet20(graph)
    assert relative_error(graph, model, (3, 32, 32)) < 1e-6


@pytest.mark.parametrize(("name", "layers", "count"), [("resnet18", 18, 26), ("resnet34", 34, 50)])
def test_residual_networks_of_torchvision(name: str, layers: int, count: int) -> None:
    model = models.get_model(name, weights=None, num_classes=10)
    model.maxpool = nn.AvgPool2d(2)
    graph = agree(model, (3, 32, 32))
    assert (len(graph.layers), edges(graph)) == (layers, count)


def test_the_linear_bottlenecks_of_mobilenet_run_across_blocks() -> None:
    graph = agree(models.mobilenet_v2(weights=None, num_classes=10, width_mult=0.25), (3, 32, 32))
    assert [layer.upper for layer in graph.layers] == [6.0] * 35 + [None]
    expansion = next(layer for layer in graph.layers if layer.name == "features.6.conv.2")
    assert [edge.source for edge in expansion.edges] == [f"features.{i}.conv.1.0" for i in (4, 5, 6)]


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(functional.relu(self.norm(x)))], 1)


def test_a_densely_connected_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *(DenseBlock(8 + 4 * i, 4) for i in range(3)),
        *(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2), DenseBlock(10, 4), nn.BatchNorm2d(14)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(14, 5)),
    )
    graph = agree(model, (3, 8, 8))
    assert len(graph.layers) == 7
    assert all(isinstance(edge.map, FloatConv2d) for layer in graph.layers[:-1] for edge in layer.edges)


def test_a_depthwise_separable_network() -> None:
    def block(c_in: int, c_out: int, stride: int) -> tuple[nn.Module, ...]:
        depthwise = nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False), nn.BatchNorm2d(c_in), nn.ReLU()
        return *depthwise, nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()

    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    graph = agree(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *block(8, 12, 2), *block(12, 16, 1), *head), (3, 12, 12))
    groups = [edge.map.groups for layer in graph.layers for edge in layer.edges if isinstance(edge.map, FloatConv2d)]
    assert groups == [1, 8, 1, 12, 1]


def test_a_residual_network_over_sequences() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.norm1(self.first(x))))
        x = functional.relu(self.norm2(self.second(x)) + self.shortcut(x))
        return self.fc(functional.adaptive_avg_pool1d(x, 1).squeeze(-1))

    first, second = nn.Conv1d(2, 8, 7, stride=2, padding=3), nn.Conv1d(8, 8, 3, padding=2, dilation=2)
    norms = {"norm1": nn.BatchNorm1d(8), "norm2": nn.BatchNorm1d(8)}
    rest = {"pool": nn.AvgPool1d(2), "shortcut": nn.Conv1d(8, 8, 1), "fc": nn.Linear(8, 4)}
    graph = agree(Forward(forward, first=first, second=second, **norms, **rest), (2, 64))
    assert [layer.shape for layer in graph.layers] == [(8, 32, 1), (8, 16, 1), (4,)]


@pytest.mark.parametrize(
    ("name", "options", "shape", "obstacles"),
    [
        (
            "vit_b_16",
            {"image_size": 32},
            (3, 32, 32),
            {"ln_1": "LayerNorm", "self_attention": "MultiheadAttention", "ln_2": "LayerNorm", "mlp.1": "GELU"},
        ),
        ("googlenet", {"init_weights": False}, (3, 64, 64), {"branch4.0": "MaxPool2d"}),
    ],
)
def test_every_obstacle_is_listed_in_one_run(
    name: str, options: dict[str, Any], shape: Shape, obstacles: dict[str, str]
) -> None:
    model = randomise(models.get_model(name, weights=None, **options))
    refused = {row.path: row.kind for row in inspect_model(model, shape) if row.fate.startswith("refused: ")}
    for end, kind in obstacles.items():
        paths = [path for path, module in model.named_modules() if path.endswith(f".{end}")]
        assert len(paths) >= 9
        assert {refused.get(path) for path in paths} == {kind}
