"""Helpers of the tests that import models: models with drawn weights, and graphs held to torch."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from sim.network import Shape
from toolchain.frontends import exported, import_model, onnx_file
from toolchain.frontends.program import Program
from toolchain.graph import FloatConv2d, FloatDense, FloatGraph, FloatLayer

ONNX_OPTIONS: dict[str, Any] = {} if torch.__version__ < "2.5" else {"dynamo": False}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value of its own: no bias of zero and no scale of one hides a mistake."""
    g = generator(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            spread = 1 / math.sqrt(max(1, tensor[0].numel())) if tensor.dim() > 1 else 1.0
            positive = name.endswith(("running_var", "threshold"))
            tensor.data.copy_(
                torch.rand(tensor.shape, generator=g) + 0.5
                if positive
                else torch.randn(tensor.shape, generator=g) * spread
            )
    return model


def in_double(graph: FloatGraph) -> FloatGraph:
    """Compute with the graph's float32 values in float64, so that nothing but their rounding is left to see."""

    def layer(one: FloatLayer) -> FloatLayer:
        edges = tuple(replace_weight(edge) for edge in one.edges)
        return replace(one, edges=edges, bias=one.bias.double())

    def replace_weight(edge: Any) -> Any:
        edge = copy.deepcopy(edge)
        object.__setattr__(edge.map, "weight", edge.map.weight.double())
        return edge

    return replace(graph, layers=tuple(map(layer, graph.layers)))


def relative_error(graph: FloatGraph, model: nn.Module, shape: Shape) -> float:
    x = torch.randn(3, *shape, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        expected = copy.deepcopy(model).double().eval()(x)
        actual = in_double(graph).logits(x.reshape(3, *graph.model_shape))
    assert actual.shape == expected.shape
    assert float(expected.abs().max()) > 1e-3
    return float((actual - expected).abs().max() / expected.abs().max())


def agree(model: nn.Module, shape: Shape, **options: Any) -> FloatGraph:
    """Import a randomised model and compare it with torch."""
    randomise(model)
    graph = import_model(model, shape, **options)
    assert relative_error(graph, model, shape) < 1e-6
    assert all(
        t.dtype == torch.float32
        for layer in graph.layers
        for t in (layer.bias, *(edge.map.weight for edge in layer.edges))
    )
    return graph


def names(graph: FloatGraph) -> list[str]:
    return [layer.name for layer in graph.layers]


def only_map(layer: FloatLayer) -> FloatDense | FloatConv2d:
    (edge,) = layer.edges
    return edge.map


def conv(c_in: int = 2, c_out: int = 4, kernel: Any = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, **options)


def refusals(model: nn.Module, shape: Shape) -> list[str]:
    with pytest.raises(Refused) as caught:
        import_model(model, shape)
    return str(caught.value).splitlines()


def through_export(model: nn.Module, shape: Shape, folder: Path, batch: int = 1, **options: Any) -> Program:
    """Write a .pt2 file and read it."""
    program = torch.export.export(model, (torch.randn(batch, *shape),), **options)
    torch.export.save(program, folder / "model.pt2")
    return exported.load(folder / "model.pt2")


def through_onnx(model: nn.Module, shape: Shape, folder: Path, **options: Any) -> Program:
    """Write an ONNX file, with the exporter that traces, and read it."""
    file, average = folder / "model.onnx", functional.avg_pool2d

    def pool(x: Tensor, size: Any, *others: Any) -> Tensor:
        return average(x, size if isinstance(size, tuple | list) else int(size), *others)

    with pytest.MonkeyPatch.context() as patch:
        # The exporter takes the kernel in examples/resnet20.py, a size of its input, for a tensor.
        patch.setattr(functional, "avg_pool2d", pool)
        torch.onnx.export(model.eval(), torch.randn(1, *shape), file, input_names=["x"], **ONNX_OPTIONS, **options)
    return onnx_file.load(file)
