"""Whole networks as their authors wrote them: the float graph equals the torch model."""

from __future__ import annotations

from typing import Any

import networks
import pytest
from importing import agree, randomise, relative_error

from sim.network import Shape
from toolchain.frontends import import_model, inspect_model
from toolchain.graph import FloatConv2d, FloatGraph
from toolchain.loading import load_model

CHECKPOINT = networks.ROOT.parent / "shared" / "models" / "resnet20_cifar10.pt"


def edges(graph: FloatGraph) -> int:
    return sum(len(layer.edges) for layer in graph.layers)


def test_a_multilayer_perceptron() -> None:
    assert [layer.shape for layer in agree(networks.mlp(), (12,)).layers] == [(10,), (8,), (4,)]


def test_lenet() -> None:
    assert len(agree(networks.lenet(), (1, 28, 28)).layers) == 5


@pytest.mark.parametrize("layers", [11, 16])
def test_vgg_with_batch_normalisation_and_average_pooling(layers: int) -> None:
    graph = agree(networks.vgg(layers, narrower=4), (3, 32, 32))
    assert (len(graph.layers), edges(graph)) == (layers, layers)
    assert tuple(graph.layers[-3].edges[0].map.weight.shape) == (32, 512 // 4 * 2 * 2)


def check_resnet20(graph: FloatGraph) -> None:
    assert (len(graph.layers), edges(graph)) == (20, 29)
    shortcuts = [edge.map for layer in graph.layers for edge in layer.edges[:1] if len(layer.edges) == 2]
    assert all(isinstance(m, FloatConv2d) and m.weight.shape[2:] == (1, 1) for m in shortcuts)
    assert all(set(m.weight.unique().tolist()) <= {0.0, 1.0} for m in shortcuts)


def test_resnet20_with_option_a_shortcuts() -> None:
    check_resnet20(agree(networks.resnet20(), (3, 32, 32)))


@pytest.mark.skipif(not CHECKPOINT.exists(), reason="the trained ResNet-20 is not at hand")
def test_the_trained_resnet20() -> None:
    model = load_model(networks.RESNET20, CHECKPOINT)
    graph = import_model(model, (3, 32, 32))
    check_resnet20(graph)
    assert relative_error(graph, model, (3, 32, 32)) < 1e-6


@pytest.mark.parametrize(("name", "layers", "count"), [("resnet18", 18, 26), ("resnet34", 34, 50)])
def test_residual_networks_of_torchvision(name: str, layers: int, count: int) -> None:
    graph = agree(networks.torchvision_resnet(name), (3, 32, 32))
    assert (len(graph.layers), edges(graph)) == (layers, count)


def test_the_linear_bottlenecks_of_mobilenet_run_across_blocks() -> None:
    graph = agree(networks.mobilenet(), (3, 32, 32))
    assert [layer.upper for layer in graph.layers] == [6.0] * 35 + [None]
    expansion = next(layer for layer in graph.layers if layer.name == "features.6.conv.2")
    assert [edge.source for edge in expansion.edges] == [f"features.{i}.conv.1.0" for i in (4, 5, 6)]


def test_a_densely_connected_network() -> None:
    graph = agree(networks.densely_connected(), (3, 8, 8))
    assert len(graph.layers) == 7
    assert all(isinstance(edge.map, FloatConv2d) for layer in graph.layers[:-1] for edge in layer.edges)


def test_a_depthwise_separable_network() -> None:
    graph = agree(networks.depthwise_separable(), (3, 12, 12))
    maps = [edge.map for layer in graph.layers for edge in layer.edges]
    groups = [m.geometry.groups for m in maps if isinstance(m, FloatConv2d)]
    assert groups == [1, 8, 1, 12, 1]


def test_a_residual_network_over_sequences() -> None:
    graph = agree(networks.residual_sequence(), (2, 64))
    assert [layer.shape for layer in graph.layers] == [(8, 32, 1), (8, 16, 1), (4,)]


@pytest.mark.parametrize(
    ("name", "options", "shape", "obstacles"),
    [
        (
            "VisionTransformer",
            {"image_size": 32, "patch_size": 16, "num_layers": 9, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32},
            (3, 32, 32),
            {"ln_1": "LayerNorm", "self_attention": "MultiheadAttention", "ln_2": "LayerNorm", "mlp.1": "GELU"},
        ),
        ("googlenet", {"init_weights": False}, (3, 64, 64), {"branch4.0": "MaxPool2d"}),
    ],
)
def test_every_obstacle_is_listed_in_one_run(
    name: str, options: dict[str, Any], shape: Shape, obstacles: dict[str, str]
) -> None:
    model = randomise(networks.torchvision(name, **options))
    refused = {row.path: row.kind for row in inspect_model(model, shape) if row.fate.startswith("refused: ")}
    for end, kind in obstacles.items():
        paths = [path for path, module in model.named_modules() if path.endswith(f".{end}")]
        assert len(paths) >= 9
        assert {refused.get(path) for path in paths} == {kind}
