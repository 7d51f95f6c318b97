"""Helpers of the tests that import models: models with drawn weights, and graphs held to torch."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from sim.network import Shape
from toolchain.frontends import DENSE_LIMIT, exported, import_model, onnx_file
from toolchain.frontends.affine import image
from toolchain.frontends.checks import prepared
from toolchain.frontends.interpreter import Interpreter
from toolchain.frontends.linear import reduce
from toolchain.frontends.log import Log
from toolchain.frontends.program import Program
from toolchain.frontends.regions import Regions
from toolchain.frontends.tracing import trace
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


def relative_error(graph: FloatGraph, model: nn.Module, shape: Shape) -> float:
    x = torch.randn(3, *shape, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        expected = copy.deepcopy(model).double().eval()(x)
        actual = graph.precise().logits(x.reshape(3, *graph.model_shape))
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


class _Kept(Regions):
    """Keeps what the model returns as the affine value that it is."""

    returned: Any = None

    def read_out(self, value: object) -> None:
        self.returned = value


def mapped_error(model: nn.Module, shape: Shape) -> float:
    """Follow a model without activations and compare the chains of maps, reduced, with torch: in float64 throughout."""
    torch.set_default_dtype(torch.float64)  # also of the constants that a forward makes
    try:
        log = Log("Model")
        regions, copied = _Kept(shape, log, DENSE_LIMIT), prepared(model, log)
        assert copied is not None
        with torch.no_grad():
            traced = trace(copied, shape, log)
            assert traced is not None, log.findings
            Interpreter(traced, log, regions).run()
            assert not log.findings, log.findings
            value = regions.returned
            x = torch.randn(3, *shape, generator=generator(2))
            expected = copied(x)
            actual = value.constant[:1].expand_as(expected)
            for term in value.terms:
                part = x.reshape(3, *image(shape))
                for step in reduce(term.chain, DENSE_LIMIT):
                    part = step(part)
                actual = actual + part.reshape(expected.shape)
            assert float(expected.abs().max()) > 1e-3
            return float((actual - expected).abs().max() / expected.abs().max())
    finally:
        torch.set_default_dtype(torch.float32)
