"""The importer learns modules that torch.fx cannot trace, or gets wrong, from a function of torch operations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from importing import agree, names, randomise, refusals, relative_error
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from toolchain.frontends import LayerReport, import_model, inspect_model, operation
from toolchain.frontends.registry import TAUGHT


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Forget what a test has taught."""
    before = dict(TAUGHT)
    yield
    TAUGHT.clear()
    TAUGHT.update(before)


class Clip(torch.autograd.Function):
    """Clips at a learnt bound, with a gradient of its own for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: Tensor) -> Tensor:
        ctx.save_for_backward(x, bound)
        return torch.where(x > bound, bound, x.clamp_min(0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, bound = ctx.saved_tensors
        return gradient * ((x > 0) & (x < bound)), (gradient * (x >= bound)).sum()


class ClippedReLU(nn.Module):
    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = nn.Parameter(torch.tensor(bound))

    def forward(self, x: Tensor) -> Tensor:
        return Clip.apply(x, self.bound)


def clipped_relu(module: ClippedReLU, x: Tensor) -> Tensor:
    return torch.clamp(x, 0, float(module.bound))


def clipped() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), ClippedReLU(0.5), nn.Linear(8, 8), ClippedReLU(0.25), nn.Linear(8, 3))


def test_an_autograd_function_is_refused_until_it_is_taught() -> None:
    model = randomise(clipped())
    model[1].bound.data.fill_(0.5), model[3].bound.data.fill_(0.25)
    places = ["gt in 1", "where in 1"]
    assert [line.partition(": ")[0] for line in refusals(model, (4,))] == places
    assert operation(ClippedReLU)(clipped_relu) is clipped_relu
    graph = import_model(model, (4,))
    assert [(layer.name, layer.upper) for layer in graph.layers] == [("0", 0.5), ("2", 0.25), ("4", None)]
    assert relative_error(graph, model, (4,)) < 1e-6


def test_the_function_runs_on_tensors_and_can_be_held_to_forward() -> None:
    module, x = ClippedReLU(0.5), torch.linspace(-1, 1, 9)
    assert torch.equal(clipped_relu(module, x), module(x))


class Gated(nn.Module):
    """A residual block that leaves its branch out for samples of zeros, as values tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gain = nn.Conv2d(4, 4, 3, padding=1), nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("mask", torch.tensor([1.0, 0.0, 1.0, 1.0]).reshape(4, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().sum() > 0:
            return functional.relu(x * self.gain + functional.relu(self.masked(x)))
        return functional.relu(functional.relu(self.conv.bias.reshape(4, 1, 1)).expand_as(x))

    def masked(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.conv.weight * self.mask, self.conv.bias, padding=1)


def gated(module: Gated, x: Tensor) -> Tensor:
    return functional.relu(x * module.gain + functional.relu(module.masked(x)))


def gates() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), Gated(), nn.Flatten(), nn.Linear(4 * 25, 3))


def test_a_forward_that_branches_on_values_is_taught_with_several_layers_of_its_own() -> None:
    assert "2 (Gated): torch.fx cannot trace it" in refusals(gates(), (2, 5, 5))[0]
    operation(Gated)(gated)
    graph = agree(gates(), (2, 5, 5))
    assert names(graph) == ["0", "2", "2_2", "4"]  # layers have the path of the module
    assert [edge.source for edge in graph.layers[2].edges] == ["0", "2"]
    rows = inspect_model(gates(), (2, 5, 5))
    assert [(row.path, row.kind) for row in rows][2:6] == [("2", "mul"), ("2", "conv2d"), ("2", "relu"), ("2", "add")]
    assert rows[3] == LayerReport("2", "conv2d", (4, 5, 5), "spiking layer 2")


def test_a_whole_model_and_a_module_of_torch_can_be_taught() -> None:
    operation(Gated)(gated)
    head = nn.Sequential(Gated(), nn.Flatten(), nn.RReLU(0.0, 0.0), nn.Linear(100, 3))
    assert "2 (RReLU): integrate-and-fire" in refusals(head, (4, 5, 5))[0]
    operation(nn.RReLU)(lambda module, x: functional.relu(x))
    assert len(import_model(head, (4, 5, 5)).layers) == 3  # the ReLU of a ReLU adds none

    class Whole(Gated):
        def forward(self, x: Tensor, extra: int = 2) -> Tensor:
            return self.masked(x) * (extra if x.sum() > 0 else 1)

    assert "Whole: torch.fx cannot trace it" in refusals(Whole(), (4, 5, 5))[0]
    operation(Whole)(lambda module, x, extra=2: module.masked(x) * extra)
    model = Whole()
    (layer,) = import_model(model, (4, 5, 5)).layers
    assert torch.equal(layer.edges[0].map.weight, 2 * model.conv.weight * model.mask)


def test_children_are_called_by_their_own_paths() -> None:
    class Twice(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x).relu()) if x.sum() > 0 else x

    operation(Twice)(lambda module, x: module.conv(module.conv(x).relu()))
    graph = import_model(nn.Sequential(Twice(), nn.ReLU(), nn.Conv2d(4, 2, 1)), (4, 5, 5))
    assert names(graph) == ["0.conv", "0.conv_2", "2"]


def test_what_the_function_may_not_do_is_refused_with_the_module_and_its_line() -> None:
    operation(ClippedReLU)(lambda module, x: functional.gelu(x))
    assert refusals(clipped(), (4,))[0].startswith("gelu in 1: integrate-and-fire neurons compute a ReLU and nothing")
    operation(ClippedReLU, replace=True)(lambda module, x: x if x.sum() > 0 else -x)
    found = refusals(clipped(), (4,))
    assert found[0].startswith("1 (ClippedReLU): torch.fx cannot trace it: symbolically traced variables cannot be")
    assert "(test_operation.py, line " in found[0]


def test_a_derived_class_is_not_taught_with_its_base() -> None:
    class Derived(ClippedReLU):
        pass

    operation(ClippedReLU)(clipped_relu)
    found = refusals(nn.Sequential(nn.Linear(4, 8), Derived(0.5), nn.Linear(8, 3)), (4,))
    assert found[0].startswith("gt in 1: ")


def test_a_class_that_is_known_is_taught_anew_only_where_that_is_meant() -> None:
    operation(ClippedReLU)(clipped_relu)
    for known in (ClippedReLU, nn.ReLU6):
        message = f"^operation: {known.__name__} is known already; pass replace=True where that is meant$"
        with pytest.raises(Refused, match=message):
            operation(known)
    operation(nn.ReLU6, replace=True)(lambda module, x: torch.clamp(x, 0, 2) + functional.relu(x - 2).clamp(0, 4))
    assert len(import_model(nn.Sequential(nn.Linear(4, 8), nn.ReLU6(), nn.Linear(8, 3)), (4,)).layers) == 4


def test_a_function_that_computes_something_else_than_forward_is_refused() -> None:
    operation(nn.ReLU6, replace=True)(lambda module, x: torch.clamp(x, 0, 3))
    (found,) = refusals(nn.Sequential(nn.Linear(4, 8), nn.ReLU6(), nn.Linear(8, 3)), (4,))
    assert re.fullmatch(
        r"1 \(ReLU6\): the function that stands for it computes something else than its forward: the network would be "
        r"off by [\d.]+ % of the largest logit; let the function given to ann2loihi.operation compute what forward "
        r"does in eval mode",
        found,
    )


@pytest.mark.parametrize("no_class", [nn.ReLU(), functional.relu, int, "ReLU"])
def test_what_is_no_class_of_modules_is_refused(no_class: Any) -> None:
    with pytest.raises(Refused, match=r"^module: .* given; give a class derived from torch Module"):
        operation(no_class)
