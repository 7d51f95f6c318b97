"""Recipes by name, and choosing T, K and the rule on held-out inputs."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from functools import partial
from typing import Any, get_args

import pytest
import torch
import typer
from torch import Tensor, nn

from exporters.placement import fit
from exporters.report import Trial
from sim.findings import Finding, Refused
from toolchain import auto
from toolchain.app import cli
from toolchain.auto import choose
from toolchain.calibration.rules import RULES
from toolchain.convert import convert
from toolchain.demo import data, load_model
from toolchain.graph.activations import NQ, QCFS, RNL, TCL, SlipReLU, TReLU
from toolchain.recipe import RECIPES, Method, Recipe, named


@pytest.fixture(scope="module")
def calibration() -> Tensor:
    return data.load().calibration_x[:128]


#: By part of a recipe's name: the activation that it is for, with a threshold.
TRAINED = {
    "qcfs": partial(QCFS, 4),
    "nq": partial(NQ, 4),
    "sliprelu": partial(SlipReLU, 4),
    "rts": TReLU,
    "tcl": TCL,
    "rnl": RNL,
}


def test_every_recipe_converts_the_kind_of_network_that_it_is_for() -> None:
    torch.manual_seed(0)
    x = torch.rand(40, 6)
    for name, meant in RECIPES.items():
        activation = next((trained(1.0) for part, trained in TRAINED.items() if part in name), nn.ReLU())
        model = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3))
        conversion = convert(model, x, 4, recipe=name, updates=2)
        assert conversion.recipe == replace(meant, timesteps=4, task="classes", updates=2)
        assert conversion.network.holdoff == (1 if name in ("ann2loihi", "tuned") else 0)
        if meant.threshold == "given":
            spiking = convert(model, x, 4, recipe=name, input_form="spikes")
            off = (torch.from_numpy(spiking.decode(spiking.run(x))) - model(x)).norm() / model(x).norm()
            assert off < 0.5, name
            with pytest.raises(Refused, match="0: its ReLU has no threshold of its own; choose another threshold rule"):
                convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), x, 4, recipe=name)


def test_a_recipe_can_be_named_given_and_changed(calibration: Tensor) -> None:
    assert named("rmp", timesteps=2).timesteps == 2
    assert named() == Recipe()
    model = load_model()
    given = Recipe(timesteps=2, weights="nearest")
    assert convert(model, calibration, recipe=given, holdoff=0).recipe == replace(given, holdoff=0, task="classes")


def test_unknown_recipes_and_fields_are_refused_with_the_known_ones() -> None:
    with pytest.raises(Refused, match="recipe: unknown recipe 'tsc'; use one of ann2loihi, tuned, stock, rmp"):
        named("tsc")
    with pytest.raises(Refused, match="recipe: no field 'steps'; use timesteps, holdoff, method, weights, updates"):
        named(steps=3)


def test_every_bias_rule_that_a_recipe_may_name_exists() -> None:
    assert tuple(RULES) == get_args(Method)


def test_the_command_line_has_an_option_for_every_field_of_a_recipe() -> None:
    group: Any = typer.main.get_command(cli.app)
    options = {parameter.name: parameter for parameter in group.commands["convert"].params}
    for field in fields(Recipe):
        option = field.metadata["option"]
        if option is not None:
            parameter = options[(option or field.name).replace("-", "_")]
            assert field.metadata["help"] in str(parameter.help)
            assert parameter.default is None  # what is not given is the recipe's
    assert options["method"].metavar == "|".join(RULES)
    assert all(name in str(options["recipe"].help) for name in RECIPES)


def test_without_a_budget_the_fastest_within_a_standard_error_is_taken(calibration: Tensor) -> None:
    choice = choose(load_model(), calibration)
    tried = {(t.timesteps, t.holdoff, t.method): t for t in choice.trials}
    assert {(1, 0, "mse"), (1, 1, "mse"), (1, 2, "mse"), (2, 0, "mse")} <= tried.keys()
    assert any(t.method == "exact" for t in choice.trials)
    chosen = choice.conversion.recipe
    taken = tried[chosen.timesteps, chosen.holdoff, chosen.method]
    best = max(choice.trials, key=lambda t: (t.agreement, -t.steps))
    enough = [t for t in choice.trials if t.agreement >= best.agreement - best.error]
    assert taken.steps == min(t.steps for t in enough)
    assert taken.steps == choice.conversion.network.steps  # the estimate before converting was right
    assert f"T = {taken.timesteps}, K = {taken.holdoff}, {taken.method}" in choice.reason


def test_a_budget_is_kept_and_used(calibration: Tensor) -> None:
    choice = choose(load_model(), calibration, latency_budget=8)
    assert all(t.steps <= 8 for t in choice.trials)
    assert choice.conversion.network.steps <= 8
    chosen = choice.conversion.recipe
    agreement = next(
        t.agreement
        for t in choice.trials
        if (t.timesteps, t.holdoff, t.method) == (chosen.timesteps, chosen.holdoff, chosen.method)
    )
    assert agreement == max(t.agreement for t in choice.trials)
    assert choice.reason.endswith(f"of what takes at most 8 steps; it takes {choice.conversion.network.steps}.")
    assert choice.conversion.origin == convert(load_model(), calibration, recipe=chosen).origin


def test_what_is_chosen_for_a_tuned_recipe_is_tuned(calibration: Tensor) -> None:
    base = named("tuned", updates=2, method="ftbc")
    choice = choose(load_model(), calibration, base, latency_budget=6)
    chosen = choice.conversion.recipe
    assert (chosen.weights, chosen.method, chosen.updates) == ("tuned", "ftbc", 2)
    assert {trial.method for trial in choice.trials} == {"mse", "exact"}
    assert (
        choice.conversion.network
        != convert(load_model(), calibration, recipe=replace(chosen, weights="fitted")).network
    )
    assert choice.reason.endswith("Its weights were then tuned, with ftbc.")


def test_a_budget_of_neurons_is_tried_beside_what_goes_without_and_the_chosen_trial_is_marked(
    calibration: Tensor,
) -> None:
    choice = choose(load_model(), calibration, Recipe(neuron_budget=2.0), latency_budget=8)
    by_budget = {budget: [t for t in choice.trials if t.neuron_budget == budget] for budget in (1.0, 2.0)}
    assert len(by_budget[2.0]) == len({t.timesteps for t in choice.trials})
    (neurons,) = {t.neurons for t in by_budget[1.0]}
    assert neurons is not None
    assert all(neurons < (t.neurons or 0) <= 2 * neurons for t in by_budget[2.0])
    (chosen,) = [trial for trial in choice.trials if trial.chosen]
    network, recipe = choice.conversion.network, choice.conversion.recipe
    assert (chosen.steps, chosen.period) == (network.steps, network.period)
    assert (chosen.timesteps, chosen.neuron_budget) == (recipe.timesteps, recipe.neuron_budget)
    assert chosen.neurons == sum(layer.size for layer in network.layers)


def test_a_budget_of_cores_is_kept_and_its_neurons_are_told(calibration: Tensor) -> None:
    with pytest.raises(Refused, match=r"core_budget: 1 cores; this network takes up to") as caught:
        choose(load_model(), calibration, Recipe(core_budget=1), latency_budget=5)
    budget = int(re.findall(r"up to (\d+)", str(caught.value))[0]) + 1
    with pytest.raises(Refused, match=rf"core_budget: {budget} cores; this network takes up to"):
        choose(load_model(), calibration, Recipe(core_budget=budget, copies=8), latency_budget=5)
    choice = choose(load_model(), calibration, Recipe(core_budget=budget, weights="nearest"), latency_budget=5)
    assert (fit(choice.conversion.network).cores or 0) <= budget
    assert {t.neuron_budget > 1 for t in choice.trials} == {False, True}
    (neurons,) = {t.neurons for t in choice.trials if t.neuron_budget == 1}
    assert all(round((t.neurons or 0) / (neurons or 1), 2) == t.neuron_budget for t in choice.trials)


def test_a_period_is_kept_too(calibration: Tensor) -> None:
    choice = choose(load_model(), calibration, period_budget=3)
    assert choice.conversion.network.period <= 3
    assert all((trial.period or 99) <= 3 for trial in choice.trials)
    taken = choice.conversion.network.period
    assert choice.reason.endswith(f"of what takes at most 3 steps between samples; it takes {taken}.")


def test_the_period_counts_what_the_reset_interval_takes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(64, 6)
    for budget in (2, 3, 4):
        choice = choose(model, x, Recipe(reset_interval="power-of-two"), period_budget=budget)
        network = choice.conversion.network
        assert network.reset_interval <= budget
        assert choice.reason.endswith(f"at most {budget} steps between samples; it takes {network.reset_interval}.")
    with pytest.raises(Refused, match="period budget: 1 steps; this network takes at least 2"):
        choose(model, x, Recipe(reset_interval="power-of-two"), period_budget=1)


def test_for_files_that_netx_resets_only_what_has_no_hold_off_is_tried(calibration: Tensor) -> None:
    choice = choose(load_model(), calibration, named("stock"), latency_budget=6)
    assert {trial.holdoff for trial in choice.trials} == {0}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), QCFS(4, 1.0), nn.Linear(8, 3))
    trials = choose(model, torch.rand(64, 6), named("stock", threshold="given"), latency_budget=8).trials
    assert {(trial.holdoff, trial.method) for trial in trials} == {(0, "mse"), (0, "exact")}


def test_a_budget_below_the_networks_depth_is_refused(calibration: Tensor) -> None:
    with pytest.raises(Refused, match="latency budget: 3 steps; this network takes at least 5"):
        choose(load_model(), calibration, latency_budget=3)


def test_too_few_inputs_to_hold_some_out_are_refused() -> None:
    with pytest.raises(Refused, match="calibration: 31 inputs; give at least 32 to choose on"):
        choose(load_model(), torch.rand(31, 1, 8, 8))


def test_a_recipe_that_cannot_be_converted_is_a_trial_with_its_reason(
    calibration: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = auto.convert

    def refusing(graph: Any, x: Any, **options: Any) -> Any:
        if options["recipe"].timesteps == 2:
            raise Refused([Finding("conv1", "too much", "use less"), Finding("conv2", "as well", "use less")])
        return original(graph, x, **options)

    monkeypatch.setattr(auto, "convert", refusing)
    choice = choose(load_model(), calibration, latency_budget=9)
    refused = [trial for trial in choice.trials if trial.timesteps == 2]
    assert {(trial.agreement, trial.error, trial.refused) for trial in refused} == {
        (0.0, 0.0, "conv1: too much; use less")
    }
    assert all(trial.refused is None for trial in choice.trials if trial.timesteps != 2)
    assert choice.conversion.recipe.timesteps != 2


def test_held_out_inputs_are_never_calibrated_on(calibration: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = auto.convert

    def spy(model: object, x: Tensor, *args: object, **options: object) -> object:
        seen.append(len(x))
        return original(model, x, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(auto, "convert", spy)
    choose(load_model(), calibration[:64], latency_budget=6)
    assert seen[:-1] == [48] * (len(seen) - 1)
    assert seen[-1] == 64


def test_choosing_ends_where_more_steps_no_longer_help() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    nn.init.constant_(model[2].bias, 5.0)  # always above 0: agreement is always full
    choice = choose(model, torch.rand(64, 4))
    assert max(t.timesteps for t in choice.trials) == 2
    assert all(t.agreement == 100 and t.error > 0 for t in choice.trials if t.refused is None)
    assert choice.conversion.recipe.timesteps == 1


def test_of_equals_the_one_with_fewer_steps_is_the_best() -> None:
    tried = [
        (
            Trial(timesteps=8, holdoff=1, method="mse", steps=steps, agreement=90.0, error=1.0, refused=None),
            Recipe(timesteps=steps),
        )
        for steps in (9, 5, 7)
    ]
    assert auto._best(tried) == tried[1]


def test_the_choice_is_made_of_json_types(calibration: Tensor) -> None:
    choice = choose(load_model(), calibration[:64], latency_budget=6)
    document = choice.search.as_dict()
    assert document["reason"] == choice.reason
    assert [Trial.from_dict(trial, "trial") for trial in document["trials"]] == list(choice.trials)
