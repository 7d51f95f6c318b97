"""A network is the same network as a module, as a torch.export program and as an ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import networks
import pytest
import torch
from importing import randomise, relative_error, through_export, through_onnx
from torch import nn
from torch.onnx import TrainingMode

from sim.network import Shape
from toolchain.frontends import import_model
from toolchain.graph import FloatGraph

ANY_BATCH = {"x": {0: "batch"}}
KEPT = TrainingMode.PRESERVE  # normalisation stays an operation of its own; else the exporter folds it
folded = partial(through_onnx, opset_version=13)

#: Each writes a model into a folder and reads it again: with the error that the rounding of its weights may make.
FRONT_ENDS: dict[str, tuple[Callable[[nn.Module, Shape, Path], nn.Module], float]] = {
    "module": (lambda model, shape, folder: model, 1e-6),
    "torch.export": (through_export, 1e-6),
    "ONNX": (folded, 1e-5),
    "ONNX of any batch": (partial(folded, dynamic_axes=ANY_BATCH), 1e-5),
    "ONNX with normalisation": (partial(folded, training=KEPT), 1e-5),
    "ONNX with normalisation, of any batch": (partial(folded, training=KEPT, dynamic_axes=ANY_BATCH), 1e-5),
}

#: With the number of layers.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape, int]] = {
    "MLP": (networks.mlp, (12,), 3),
    "LeNet": (networks.lenet, (1, 28, 28), 5),
    "VGG-11": (partial(networks.vgg, 11, narrower=8), (3, 32, 32), 11),
    "ResNet-20": (networks.resnet20, (3, 16, 16), 20),
    "MobileNetV2": (networks.mobilenet, (3, 32, 32), 36),
    "densely connected": (networks.densely_connected, (3, 8, 8), 7),
    "depthwise": (networks.depthwise, (2, 4, 4), 4),
    "residual over sequences": (networks.residual_sequence, (2, 64), 3),
    "zero channels": (networks.zero_channels, (2, 4, 4), 2),
    "products with constants": (networks.Products, (12,), 3),
    "resampled": (networks.resampled, (3, 8, 8), 6),
    "rearranged": (networks.rearranged, (2, 8, 8), 4),
    "in place": (networks.in_place, (2, 4, 4), 3),
}


#: Torch's exporter fails on the one and writes the number of samples into the constants of the other.
NOT_AS_ONNX = ("VGG-11", "zero channels")

CASES = [
    (front_end, name)
    for front_end in FRONT_ENDS
    for name in NETWORKS
    if not (front_end.startswith("ONNX") and name in NOT_AS_ONNX)
]


@cache
def imported(name: str) -> FloatGraph:
    """The graph of the module itself."""
    build, shape, _ = NETWORKS[name]
    return import_model(randomise(build()).eval(), shape)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(("front_end", "name"), CASES)
def test_a_network_is_the_same_through_every_front_end(front_end: str, name: str, tmp_path: Path) -> None:
    (through, error), (build, shape, layers) = FRONT_ENDS[front_end], NETWORKS[name]
    model = randomise(build()).eval()
    program = through(model, shape, tmp_path)
    x = torch.randn(3, *shape)
    with torch.no_grad():
        expected = model(x.clone())
        assert torch.allclose(program(x.clone()), expected, rtol=1e-4, atol=10 * error * float(expected.abs().max()))
    graph, own = import_model(program, shape), imported(name)
    assert relative_error(graph, model, shape) < error
    assert len(graph.layers) == layers
    assert [layer.shape for layer in graph.layers] == [layer.shape for layer in own.layers]
    assert [len(layer.edges) for layer in graph.layers] == [len(layer.edges) for layer in own.layers]
