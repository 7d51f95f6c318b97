"""Networks tuned to few steps: what they gain, what they learn, and what stays as it was."""

from __future__ import annotations

import math
from dataclasses import replace

import networks
import pytest
import torch
from torch import Tensor, nn

from sim import chip
from sim.findings import Refused
from sim.network import INPUT
from sim.progress import reporting
from toolchain import assessment
from toolchain.calibration.tune import RATE, tune
from toolchain.convert import convert
from toolchain.demo import data, load_model
from toolchain.frontends import import_model
from toolchain.graph import FloatDense, FloatEdge, FloatGraph, FloatLayer
from toolchain.graph.activations import SlipReLU, staircase
from toolchain.recipe import Recipe

T = 2


def recipe(updates: int) -> Recipe:
    return Recipe(timesteps=T, updates=updates)


def inputs(samples: int, seed: int = 0) -> Tensor:
    return torch.randn(samples, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def residual() -> FloatGraph:
    return import_model(networks.trained(networks.residual, (2, 4, 4)), (2, 4, 4))


def stairs(graph: FloatGraph, thetas: dict[str, Tensor]) -> FloatGraph:
    """The graph with activations of T steps and nothing else changed."""
    return FloatGraph(
        graph.input_shape,
        tuple(replace(layer, upper=thetas.get(layer.name), levels=T) for layer in graph.layers),
    )


def starts(graph: FloatGraph, x: Tensor) -> dict[str, Tensor]:
    return {
        layer.name: a.amax([0, *range(2, a.ndim)]) * 0.9 + 0.1
        for layer, _, a in graph.walk(x)
        if layer.kind == "spiking"
    }


def test_the_tuned_staircase_is_nearer_to_the_network_on_inputs_it_has_not_seen(residual: FloatGraph) -> None:
    x, unseen = inputs(256), inputs(512, seed=1)
    thetas, wanted = starts(residual, x), residual.logits(unseen)
    made = tune(residual, x, thetas, recipe(300))
    before = (stairs(residual, thetas).logits(unseen) - wanted).square().mean()
    assert (made.logits(unseen) - wanted).square().mean() < before / 2


def test_everything_but_selecting_edges_is_learnt_and_the_given_network_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 4, generator=generator)
    selecting = torch.eye(4)
    hidden = FloatLayer(
        "a", (4,), (FloatEdge(INPUT, FloatDense(torch.rand(4, 4, generator=generator))),), torch.rand(4) - 0.5
    )
    shortcut = FloatLayer(
        "b",
        (4,),
        (FloatEdge("a", FloatDense(torch.rand(4, 4, generator=generator))), FloatEdge(INPUT, FloatDense(selecting))),
        torch.rand(4) - 0.5,
    )
    out = FloatLayer("out", (3,), (FloatEdge("b", FloatDense(torch.rand(3, 4))),), torch.zeros(3), "readout")
    graph = FloatGraph((4,), (hidden, shortcut, out))
    thetas = starts(graph, x)
    before = graph.logits(x)
    made = tune(graph, x, thetas, recipe(5))
    assert torch.equal(graph.logits(x), before)
    assert torch.equal(made.layers[1].edges[1].map.weight, selecting)
    for old, new in zip(graph.layers, made.layers, strict=True):
        assert not torch.equal(old.edges[0].map.weight, new.edges[0].map.weight)
        assert not torch.equal(old.bias, new.bias)
        if new.kind == "spiking":
            upper = torch.as_tensor(new.upper)
            assert (upper.shape, new.levels) == ((4,), T)
            assert not torch.equal(upper, thetas[new.name])
            # Nothing moves by more than its rate an update.
            assert (upper / thetas[new.name]).log().abs().max() <= 5 * RATE * 1.01
        assert not any(edge.map.weight.requires_grad for edge in new.edges)
    assert (made.layers[2].upper, made.layers[2].levels) == (None, None)


def test_weights_behind_a_mean_over_space_stay_one_for_each_map() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2)
    )
    graph, x = import_model(model, (2, 4, 4)), inputs(32)
    made = tune(graph, x, starts(graph, x), recipe(5))
    before, after = (g.layers[1].edges[0].map.weight.reshape(2, 3, 16) for g in (graph, made))
    assert not torch.equal(before, after)
    assert torch.equal(after, after[:, :, :1].expand_as(after))


def test_a_threshold_far_too_high_is_brought_down() -> None:
    x = torch.rand(256, 1, generator=torch.Generator().manual_seed(0))
    one = FloatLayer("a", (1,), (FloatEdge(INPUT, FloatDense(torch.ones(1, 1))),), torch.zeros(1))
    out = FloatLayer("out", (1,), (FloatEdge("a", FloatDense(torch.ones(1, 1))),), torch.zeros(1), "readout")
    graph = FloatGraph((1,), (one, out))
    made = tune(graph, x, {"a": torch.tensor([2.0])}, recipe(800))
    # Steps of 0, theta / 2 and theta serve values in 0..1 best at a theta of 0.8.
    assert 0.6 < float(torch.as_tensor(made.layers[0].upper)) < 1.1
    unit = staircase(x, 2.0, T)
    assert (made.logits(x) - x).square().mean() < (unit - x).square().mean() / 4


def test_the_same_inputs_give_the_same_network(residual: FloatGraph) -> None:
    x = inputs(40)
    one, two = (tune(residual, x, starts(residual, x), recipe(10)) for _ in range(2))
    for a, b in zip(one.layers, two.layers, strict=True):
        assert torch.equal(a.bias, b.bias)
        assert all(torch.equal(e.map.weight, f.map.weight) for e, f in zip(a.edges, b.edges, strict=True))


def test_mirrored_inputs_teach_both_sides_alike() -> None:
    """One half of every input is 0, so that only what is mirrored says anything of that half's weights."""
    x = torch.rand(64, 1, 1, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 1, 0, 0])
    hidden = FloatLayer("a", (1,), (FloatEdge(INPUT, FloatDense(torch.tensor([[1.0, 2, 3, 4]]))),), torch.zeros(1))
    out = FloatLayer("out", (1,), (FloatEdge("a", FloatDense(torch.ones(1, 1))),), torch.zeros(1), "readout")
    graph = FloatGraph((1, 1, 4), (hidden, out))
    for mirrored in (False, True):
        made = tune(graph, x, {"a": torch.tensor([3.0])}, replace(recipe(50), mirrored=mirrored))
        moved = made.layers[0].edges[0].map.weight != graph.layers[0].edges[0].map.weight
        assert moved.tolist() == [[True, True, mirrored, mirrored]]


@pytest.mark.parametrize(("model", "shape"), [(nn.Linear(4, 3), (4,)), (nn.Conv1d(2, 3, 4), (2, 4))])
def test_what_has_no_width_is_not_mirrored(model: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(Refused, match=r"mirrored: inputs of shape \S+ have no width; leave it out"):
        convert(nn.Sequential(model, nn.Flatten()), torch.randn(8, *shape), 2, recipe="tuned", mirrored=True, updates=1)


def test_what_slips_between_steps_is_taught_the_steps_alone() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), SlipReLU(4, 1.5, 0.8), nn.Linear(6, 3)), torch.rand(64, 4)
    made = convert(model, x, T, recipe="tuned", updates=2).source
    assert len(made.run(x)["0"][:, 0].unique()) <= T + 1


@pytest.mark.parametrize("samples", [1, 5])
def test_few_inputs_are_mixed_too(samples: int, residual: FloatGraph) -> None:
    x = inputs(samples)
    made = tune(residual, x, starts(residual, x), recipe(3))
    assert made.logits(x).isfinite().all()


def test_where_nothing_spikes_nothing_is_learnt() -> None:
    graph = import_model(nn.Linear(4, 3), (4,))
    made = tune(graph, torch.randn(64, 4), {}, recipe(3))
    assert torch.equal(made.layers[0].edges[0].map.weight, graph.layers[0].edges[0].map.weight)


def test_progress_counts_the_updates(residual: FloatGraph) -> None:
    told: list[tuple[str, int, int]] = []
    x = inputs(8)
    with reporting(lambda *report: told.append(report)):
        tune(residual, x, starts(residual, x), recipe(3))
    assert told == [("tuning", done, 3) for done in range(4)]


def test_tuned_weights_bring_few_steps_nearer_to_the_model_than_fitted_ones() -> None:
    digits, model = data.load(), load_model()
    with torch.no_grad():
        wanted = model(digits.test_x)
    error = {}
    for weights in ("fitted", "tuned"):
        conversion = convert(model, digits.calibration_x, T, weights=weights, method="exact", updates=600)
        assert chip.check(conversion.network) == []
        logits = torch.from_numpy(conversion.run(digits.test_x, record=False).logits[:, -1])
        error[weights] = float((logits / conversion.scales["fc"].su[0] / T - wanted).square().mean())
    assert error["tuned"] < 0.9 * error["fitted"]


def test_the_ladder_shows_the_tuned_staircase(residual: FloatGraph) -> None:
    x = inputs(128)
    conversion = convert(residual, x, T, recipe="tuned", updates=100)
    assert conversion.graph is residual
    assert torch.equal(conversion.graph.logits(x), residual.logits(x))
    wanted, plain = residual.logits(x), convert(residual, x, T)
    distance = [(assessment.staircase_logits(c, x) - wanted).square().mean() for c in (plain, conversion)]
    assert distance[1] < distance[0]


def test_tuning_starts_from_the_thresholds_that_the_recipe_asks_for(residual: FloatGraph) -> None:
    x = inputs(64)
    uppers = {}
    for rule in ("max", "mse"):
        made = convert(residual, x, T, weights="tuned", threshold=rule, updates=1).source
        uppers[rule] = torch.as_tensor(made.layers[0].upper)
    assert not torch.allclose(uppers["max"], uppers["mse"], rtol=0.05)
    assert math.isfinite(float(uppers["max"].sum()))
