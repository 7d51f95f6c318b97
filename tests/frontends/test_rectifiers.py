"""Bounded and quantised activations give their bounds, levels and initial potentials to the layers."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from importing import agree, conv, randomise, refusals, relative_error
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends import import_model, inspect_model
from toolchain.graph import FloatLayer
from toolchain.graph.activations import QCFS, TReLU


@pytest.mark.parametrize(
    ("activation", "upper"),
    [
        (nn.ReLU6(), 6.0),
        (nn.Hardtanh(0.0, 0.4), 0.4),
        (nn.Hardtanh(0, math.inf), None),
        (functional.relu6, 6.0),
        (lambda x: functional.hardtanh(x, 0.0, 0.5, inplace=True), 0.5),
        (lambda x: functional.hardtanh_(x, 0.0, 0.5), 0.5),
        (lambda x: torch.clamp(x, min=0, max=0.3), 0.3),
        (lambda x: x.clamp(0), None),
        (lambda x: x.clamp_(0.0, 0.7).relu(), 0.7),
        (lambda x: torch.clip(x, 0, 0.3), 0.3),
        (lambda x: x.clip_(min=0), None),
        (lambda x: x.clamp_min(0), None),
        (lambda x: torch.maximum(x, torch.zeros(4, 1, 1)), None),
        (lambda x: torch.max(torch.tensor(0.0), x), None),
        (lambda x: torch.clamp(x, torch.zeros(4, 1, 1), torch.full((4, 1, 1), 0.25)), 0.25),
        (lambda x: functional.threshold(x, 0, 0), None),
        (lambda x: functional.leaky_relu(x, 0.0), None),
        (lambda x: functional.leaky_relu(x.relu().flatten(2), 0.1).view(-1, 4, 4, 4), None),
        (lambda x: functional.hardsigmoid(x), 1.0),
        (nn.Threshold(0, 0), None),
        (nn.LeakyReLU(0.0), None),
        (nn.Hardsigmoid(), 1.0),
        (lambda x: functional.relu6(functional.hardtanh(x, 0.0, 0.5)), 0.5),
    ],
)
def test_a_bounded_activation_gives_its_bound_to_the_layer(activation: Any, upper: float | None) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head((self.module if isinstance(activation, nn.Module) else activation)(self.first(x)))

    module = activation if isinstance(activation, nn.Module) else nn.Identity()
    graph = agree(Forward(forward, first=conv(), module=module, head=conv(4, 2)), (2, 6, 6))
    assert [layer.upper for layer in graph.layers] == [upper, None]


@pytest.mark.parametrize(
    "bounded",
    [
        lambda x: torch.clamp_min(x, torch.zeros(1)).clamp_max(0.5),
        lambda x: torch.minimum(torch.fmax(x, x.new_zeros(1)), torch.tensor(0.5)),
        lambda x: functional.hardtanh(x.relu(), -1.0, 0.5),
        lambda x: x.relu().flatten(1).clamp(max=0.5).view(-1, 4, 4, 4),
    ],
)
def test_what_a_relu_emits_needs_no_lower_bound_of_zero(bounded: Any) -> None:
    graph = agree(Forward(lambda self, x: self.head(bounded(self.first(x))), first=conv(), head=conv(4, 2)), (2, 6, 6))
    assert [layer.upper for layer in graph.layers] == [None, 0.5, None]


def test_a_lower_bound_after_a_bounded_activation_is_a_layer_of_its_own() -> None:
    graph = agree(nn.Sequential(conv(), nn.ReLU6(), nn.Hardtanh(0, 0.5), conv(4, 2)), (2, 6, 6))
    assert [layer.upper for layer in graph.layers] == [6.0, 0.5, None]


def kept(layer: FloatLayer) -> tuple[float | None, int | None, str | None]:
    return layer.upper, layer.levels, layer.initial


def test_the_activations_of_the_papers_are_layers_with_threshold_levels_and_initial_potential() -> None:
    model = nn.Sequential(conv(), QCFS(4), conv(4, 4), nn.BatchNorm2d(4), TReLU(1.0), nn.Flatten(), nn.Linear(16, 3))
    graph = agree(model, (2, 6, 6))
    lambda_, theta = float(model[1].threshold.detach()), float(model[4].threshold)
    assert [kept(layer) for layer in graph.layers] == [
        (lambda_, 4, "half"), (theta, None, "shift"), (None, None, None),
    ]  # fmt: skip
    rows = {row.path: row.fate for row in inspect_model(model, (2, 6, 6))}
    assert (rows["1"], rows["4"]) == ("folded into 0", "folded into 2")


@pytest.mark.parametrize(
    ("modules", "layers"),
    [
        ((QCFS(4, 1.0), QCFS(4, 1.0)), [(1.0, 4, "half")]),
        ((QCFS(4, 1.0), nn.ReLU()), [(1.0, 4, "half")]),
        ((QCFS(4, 1.0), nn.Flatten(), TReLU(1.5)), [(1.0, 4, "half")]),
        ((TReLU(1.0), nn.ReLU6()), [(1.0, None, "shift")]),
        ((nn.ReLU(), QCFS(4, 1.0)), [(None, None, None), (1.0, 4, "half")]),
        ((TReLU(1.0), QCFS(4, 1.0)), [(1.0, None, "shift"), (1.0, 4, "half")]),
        ((QCFS(4, 1.0), QCFS(3, 1.0)), [(1.0, 4, "half"), (1.0, 3, "half")]),
        ((QCFS(4, 1.0), QCFS(4, 2.0)), [(1.0, 4, "half"), (2.0, 4, "half")]),
        ((QCFS(4, 1.0), TReLU(0.8)), [(1.0, 4, "half"), (0.800000011920929, None, "shift")]),
    ],
)
def test_an_activation_of_an_activation_folds_only_where_it_changes_nothing(
    modules: tuple[nn.Module, ...], layers: list[Any]
) -> None:
    first, head = nn.Conv2d(2, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    randomise(first), randomise(head)
    model = nn.Sequential(first, *modules, head)
    graph = import_model(model, (2, 6, 6))
    assert [kept(layer) for layer in graph.layers[:-1]] == layers
    assert relative_error(graph, model, (2, 6, 6)) < 1e-6


def test_a_threshold_that_training_has_driven_below_zero_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), QCFS(4), nn.Linear(4, 2))
    model[1].threshold.data.fill_(-0.5)
    assert refusals(model, (3,)) == ["1 (QCFS): its upper bound -0.5 leaves no value but 0; give a positive one"]
