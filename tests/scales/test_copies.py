"""Copies of neurons: the same function, G T + 1 levels, and where they go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from importing import randomise
from networks import Forward, conv, lenet, mlp, resampled
from torch import nn

from exporters.placement import fit
from sim.findings import Refused
from sim.network import INPUT, InputForm
from toolchain.assessment.attribution import attribute
from toolchain.auto import choose
from toolchain.convert import Conversion, convert
from toolchain.frontends import import_model
from toolchain.graph import FloatDense, FloatEdge, FloatGraph, FloatLayer
from toolchain.recipe import Recipe
from toolchain.scales import copies


def residual() -> nn.Module:
    return Forward(
        lambda self, x: self.head((self.second(torch.relu(self.first(x))) + self.skip(x)).relu().flatten(1)),
        first=conv(2, 8),
        second=conv(8, 4, groups=2),
        skip=nn.Conv2d(2, 4, 1),
        head=nn.Linear(4 * 36, 3),
    )


def each(graph: FloatGraph, copies: Callable[[int], int]) -> FloatGraph:
    """Give the spiking layers so many copies, by their place."""
    layers = (
        replace(layer, copies=copies(i) if layer.kind == "spiking" else 1) for i, layer in enumerate(graph.layers)
    )
    return replace(graph, layers=tuple(layers))


@pytest.mark.parametrize(
    ("build", "shape"), [(mlp, (12,)), (lenet, (1, 28, 28)), (residual, (2, 6, 6)), (resampled, (3, 8, 8))]
)
def test_a_widened_graph_is_the_same_function_with_all_copies_as_neurons(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    graph = each(import_model(randomise(build()), shape), lambda place: 1 + place % 3)
    wide = graph.widened()
    x = torch.randn(5, *shape, generator=torch.Generator().manual_seed(0))
    assert [layer.shape[0] for layer in wide.layers] == [layer.shape[0] * layer.copies for layer in graph.layers]
    torch.testing.assert_close(wide.logits(x), graph.logits(x), rtol=1e-4, atol=1e-5)
    for before, after in zip(graph.run(x).values(), wide.run(x).items(), strict=True):
        copies = next(layer.copies for layer in wide.layers if layer.name == after[0])
        torch.testing.assert_close(after[1], before.repeat_interleave(copies, 1), rtol=1e-4, atol=1e-5)


def ramp(copies: int, timesteps: int, lowest: float = -0.2, **options: object) -> tuple[Conversion, np.ndarray]:
    """One neuron in so many copies that reads one value, on which nothing but levels limits it; and inputs to it."""
    one = FloatDense(torch.ones(1, 1))
    layers = (
        FloatLayer("a", (1,), (FloatEdge(INPUT, one),), torch.zeros(1), upper=1.0, copies=copies),
        FloatLayer("out", (1,), (FloatEdge("a", one),), torch.zeros(1), "readout"),
    )
    x = np.linspace(lowest, 1.2, 1400, dtype=np.float32)[:, None]
    recipe = Recipe(
        timesteps=timesteps, weights="nearest", input_bits=12, threshold="given", task="regression", **options
    )
    return convert(FloatGraph((1,), layers), x, recipe=recipe), x


@pytest.mark.parametrize("copies", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("timesteps", [1, 2, 5])
def test_copies_that_wait_for_their_whole_current_draw_all_levels_and_round_to_the_nearest(
    copies: int, timesteps: int
) -> None:
    made, x = ramp(copies, timesteps, holdoff=timesteps, method="none")
    network = made.network
    assert made.verify(x[::70], ["reference", "fast"]).difference is None
    layer, trace = network["a"], made.run(x)
    charge = timesteps * network.input.encode(x)[:, 0] * int(layer.edges[0].synapse.weight[0, 0])
    fired = trace.spikes["a"].sum((1, 2), dtype=np.int64)
    # Hermite: sum over g of floor(y + (g + 1/2) / G) = floor(G y + 1/2). Initial potentials are rounded to a su.
    levels = copies * charge / layer.threshold + 0.5
    sure = np.abs(levels - np.rint(levels)) > copies / layer.threshold
    assert sure.mean() > 0.8
    assert (fired == np.clip(np.floor(levels), 0, copies * timesteps))[sure].all()
    assert set(fired) == set(range(copies * timesteps + 1))


@pytest.mark.lava
def test_all_engines_draw_the_levels_of_copies() -> None:
    made, x = ramp(3, 2, holdoff=2, method="none")
    result = made.verify(x[::350])
    assert result.difference is None
    assert {"lava", "lava-stock"} <= {run.engine for run in result.runs}


@pytest.mark.numbers
@pytest.mark.parametrize("lowest", [-0.2, -3.0])
@pytest.mark.parametrize("method", ["mse", "exact", "ftbc", "static"])
def test_bias_rules_leave_copies_their_turns(method: str, lowest: float) -> None:
    """A copy that fires at less than others does not fire at nothing, which most neurons are sent."""

    def error(copies: int) -> float:
        made, x = ramp(copies, 2, lowest, holdoff=1, method=method)
        return float(np.sqrt(((made.predict(x) - np.clip(x, 0, 1)) ** 2).mean()))

    # A staircase of n levels is wrong by about 1 / (n sqrt 12).
    assert error(4) < 0.4 * error(1)


def test_without_a_budget_or_copies_nothing_changes_and_a_layer_may_bring_its_own() -> None:
    model, x = randomise(mlp()), torch.rand(64, 12, generator=torch.Generator().manual_seed(1))
    plain = convert(model, x, 4)
    assert convert(model, x, 4, neuron_budget=1.0).network == plain.network
    graph = import_model(model, (12,))
    made = convert(each(graph, lambda place: 2 - place), x, 4)
    assert [layer.size for layer in made.network.layers] == [20, 8, 4]


def test_copies_of_single_layers_and_of_modules() -> None:
    block = nn.Sequential(nn.Linear(12, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU())
    model = randomise(nn.Sequential(block, nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    graph, x = import_model(model, (12,)), torch.rand(8, 12, generator=torch.Generator().manual_seed(1))
    assert [layer.name for layer in graph.layers] == ["0.0", "0.2", "1", "3"]

    def sizes(**options: Any) -> list[int]:
        return [layer.size for layer in convert(graph, x, 1, weights="nearest", **options).network.layers]

    assert sizes(layer_copies="0=2") == [6, 8, 5, 2]
    assert sizes(layer_copies="0.2=1, 0=2", copies=3) == [6, 4, 15, 2]
    first, second, third, _ = sizes(layer_copies="1=3", neuron_budget=2.2)
    assert third == 15
    assert 7 < first + second <= 11
    with pytest.raises(
        Refused, match=r"layer_copies: no spiking layer '0.1', '3'; give some of 0.0, 0.2, 1, or modules"
    ):
        sizes(layer_copies="3=2,0.1=2")


@pytest.mark.numbers
def test_a_budget_is_kept_and_goes_where_rounding_moves_the_outputs() -> None:
    model, x = randomise(mlp()), torch.rand(64, 12, generator=torch.Generator().manual_seed(1))

    def sizes(budget: float) -> list[int]:
        return [layer.size for layer in convert(model, x, 2, neuron_budget=budget).network.layers]

    for budget in (1.6, 3.0):
        first, second, outputs = sizes(budget)
        assert 18 < first + second <= 18 * budget
        assert outputs == 4
    with torch.no_grad():
        model[2].weight *= 0.1  # now the first layer moves less
    assert sizes(1.6) == [10, 16, 4]


def test_a_budget_is_no_hair_too_small_for_what_just_fits() -> None:
    first, second = FloatDense(torch.ones(85, 2)), FloatDense(torch.ones(15, 85))
    layers = (
        FloatLayer("a", (85,), (FloatEdge(INPUT, first),), torch.zeros(85)),
        FloatLayer("b", (15,), (FloatEdge("a", second),), torch.zeros(15)),
        FloatLayer("out", (2,), (FloatEdge("b", FloatDense(torch.ones(2, 15))),), torch.zeros(2), "readout"),
    )
    graph, x = FloatGraph((2,), layers), torch.rand(64, 2, generator=torch.Generator().manual_seed(1))
    assert 1.15 * 100 < 115  # floats
    made = copies.with_copies(graph, x, Recipe(neuron_budget=1.15, task="classes"))
    assert [layer.copies for layer in made.layers] == [1, 2, 1]


@pytest.mark.parametrize(("given", "taken"), [({"copies": 3}, 54), ({"layer_copies": "0=4"}, 48)])
def test_copies_that_take_more_than_the_budget_are_refused(given: dict[str, Any], taken: int) -> None:
    model, x = randomise(mlp()), torch.rand(64, 12, generator=torch.Generator().manual_seed(1))
    wanted = rf"neuron_budget: 1.5 times the network's neurons are 27, and its copies take {taken}; give more, or fewer"
    with pytest.raises(Refused, match=wanted):
        convert(model, x, 2, neuron_budget=1.5, **given)
    with pytest.raises(Refused, match=wanted):
        choose(model, x, Recipe(neuron_budget=1.5, **given), latency_budget=6)


@pytest.mark.parametrize("form", ["payload", "spikes"])
def test_a_budget_of_cores_is_kept_and_filled(form: InputForm) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 1024, 2))
    graph = import_model(randomise(model), (1, 32, 32))
    x = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))

    def made(budget: int, **options: Any) -> tuple[int, int]:
        network = convert(graph, x, 1, weights="nearest", input_form=form, core_budget=budget, **options).network
        return fit(network).cores or 0, next(layer for layer in network.layers if layer.name == "0").shape[0] // 2

    plain, _ = made(0)
    assert made(plain)[0] == plain
    taken, copies = made(plain + 3)
    assert plain < taken <= plain + 3
    assert copies > 2
    assert made(plain + 3, neuron_budget=2)[1] == 2
    with pytest.raises(Refused, match=rf"core_budget: {plain - 1} cores; this network takes up to {plain}; "):
        made(plain - 1)


def test_what_was_planned_is_compared_with_what_came_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 1024, 100))
    x, filled = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1)), copies._filled
    graph = import_model(randomise(model), (1, 32, 32))
    taken = fit(convert(graph, x, 1, weights="nearest").network).cores or 0
    monkeypatch.setattr(copies, "_filled", lambda map_, most: filled(map_, 1))  # as if weights took fewer bits
    with pytest.raises(Refused, match=rf"core_budget: {taken - 1} cores; this network takes up to {taken}; "):
        convert(graph, x, 1, weights="nearest", core_budget=taken - 1)


def test_a_network_that_fits_on_no_core_has_no_budget_of_them() -> None:
    model, x = randomise(nn.Sequential(nn.Linear(40_000, 2), nn.ReLU(), nn.Linear(2, 2))), torch.rand(4, 40_000)
    with pytest.raises(Refused, match=r"core_budget: 100 cores; this network fits on none; "):
        convert(model, x, 2, core_budget=100)


def test_shares_of_an_error_add_up_where_neurons_have_copies() -> None:
    model, x = randomise(mlp()), torch.rand(64, 12, generator=torch.Generator().manual_seed(1))
    for share in attribute(convert(model, x, 4, copies=3), x):
        assert share.error == pytest.approx(share.inherited + share.own, abs=1e-6)


@pytest.mark.parametrize("budget", [0.5, float("nan"), float("inf"), True, "2", None])
def test_a_budget_that_is_none_is_refused(budget: object) -> None:
    with pytest.raises(Refused, match=r"neuron_budget.*give 1 to 64"):
        Recipe(neuron_budget=budget)
