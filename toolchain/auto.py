"""Choosing T, K and the bias rule for the user, on a part of the calibration data that calibration has not seen.

What is compared is the agreement with the ANN, of decisions or as R² of a regression, so no labels are needed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exporters.report import Search, Trial
from sim import fast
from sim.arguments import Count, checked
from sim.findings import Refused, refuse
from sim.progress import counting, reporting
from sim.stock import reset_interval
from toolchain.assessment.score import certainty
from toolchain.convert import Conversion, convert, imported, resolved
from toolchain.data import gather
from toolchain.graph import FloatGraph
from toolchain.recipe import Method, Recipe
from toolchain.scales.copies import stand_in, with_copies, within_cores, within_neurons

TIMESTEPS = (1, 2, 4, 8, 16, 32)
HOLDOFFS = (0, 1, 2)
METHODS: tuple[Method, ...] = ("mse", "exact")  #: the first is tried with every T and K, the others where it did best
HELD_OUT = 4  #: one in so many calibration inputs is held out
FEWEST = 32  #: calibration inputs; with fewer held out, agreement says nothing


@dataclass(frozen=True, eq=False)
class Choice:
    """The recipe that was chosen, its conversion on all calibration inputs, and why."""

    conversion: Conversion
    trials: tuple[Trial, ...]
    reason: str

    @property
    def search(self) -> Search:
        """Trials and reason, as the report shows them."""
        return Search(reason=self.reason, trials=self.trials)


@checked
def choose(
    model: nn.Module | FloatGraph,
    calibration: Any,
    base: Recipe | None = None,
    *,
    latency_budget: Count | None = None,
    period_budget: Count | None = None,
    labels: Any = None,
    **importing: Any,
) -> Choice:
    """Try T, K and bias rules, and convert with what does best on held-out calibration inputs.

    ``base`` says everything else. T doubles until agreement with the ANN grows by less than its standard error. Where
    ``base`` has a budget of neurons or of cores, the best of every T is tried with it too, and networks of trained
    staircases with K = T - 1 and their biases at once. With a ``latency_budget``, in steps until the logits, or a
    ``period_budget``, in steps between samples, the recipe of the highest agreement inside them is taken; without one
    the fastest whose agreement lies within one standard error of the best (Breiman et al.'s one-standard-error rule).
    Where ``base`` tunes weights, which takes minutes, they are fitted in the trials, and what is chosen is tuned, with
    the bias rule of ``base``. ``labels`` only tell what the outputs mean, as for :func:`toolchain.convert.convert`;
    ``importing`` are the options of :func:`toolchain.frontends.import_model`. Raises :class:`Refused` where nothing
    fits the budget or the chip, and for fewer than ``FEWEST`` inputs.
    """
    asked = base or Recipe()
    tunes = asked.weights == "tuned"
    base = replace(asked, weights="fitted") if tunes else asked
    gathered = gather(calibration)
    graph, x = imported(model, gathered, **importing)
    if len(x) < FEWEST:
        raise refuse("calibration", f"{len(x)} inputs", f"give at least {FEWEST} to choose on, or choose T yourself")
    # Every fourth, not the last quarter: data may be sorted.
    held = torch.arange(len(x)) % HELD_OUT == HELD_OUT - 1
    base = replace(base, task=resolved(graph, x, base, labels)[0])
    wanted = graph.logits(x[held])

    wide, base = base, replace(base, neuron_budget=1.0, core_budget=0)
    widens = wide != base
    copied = with_copies(graph, x, base)  # as the trials without the budget
    within_neurons(copied, wide)
    within_cores(stand_in(copied, base), wide)
    budgets = (latency_budget or math.inf, period_budget or math.inf)

    def inside(recipe: Recipe) -> bool:
        return all(steps <= most for steps, most in zip(_steps(graph, recipe), budgets, strict=True))

    trials: list[tuple[Trial, Recipe]] = []
    stairs = any(layer.levels for layer in graph.layers)
    holdoffs = HOLDOFFS[:1] if base.chip == "netx" else HOLDOFFS  # its own resets know of none
    most, previous = len(TIMESTEPS) * (len(holdoffs) + len(METHODS) - 1 + widens + stairs), -math.inf
    with counting("choosing T and K", most) as advance:

        def attempt(recipe: Recipe) -> None:
            with reporting(None):
                trials.append((_trial(graph, x[~held], x[held], wanted, recipe), recipe))
            advance(1)

        for timesteps in TIMESTEPS:
            candidates = [replace(base, timesteps=timesteps, holdoff=k, method=METHODS[0]) for k in holdoffs]
            if stairs and max(holdoffs):  # without unevenness, spikes draw them exactly
                candidates.append(replace(base, timesteps=timesteps, holdoff=timesteps - 1, method="once"))
            candidates = [recipe for recipe in candidates if inside(recipe)]
            if not candidates:
                break
            for recipe in candidates:
                attempt(recipe)
            best, recipe = _best(trials[-len(candidates) :])
            for method in METHODS[1:]:
                attempt(replace(recipe, method=method))
            if widens:
                _, recipe = _best(trials[-len(candidates) - len(METHODS) + 1 :])
                attempt(replace(recipe, neuron_budget=wide.neuron_budget, core_budget=wide.core_budget))
            best, _ = _best(trials)
            if best.agreement - previous < best.error:
                break
            previous = best.agreement
        advance(most - len(trials))
    if not trials:
        fastest = _steps(graph, replace(base, timesteps=TIMESTEPS[0], holdoff=HOLDOFFS[0]))
        for name, limit, least in zip(("latency", "period"), budgets, fastest, strict=True):
            if limit < least:
                raise refuse(f"{name} budget", f"{limit} steps", f"this network takes at least {least}")
    if all(trial.refused for trial, _ in trials):
        raise refuse("choosing T and K", "no recipe could be converted", str(trials[0][0].refused))

    chosen, reason = _decide(trials, latency_budget, period_budget)
    recipe = next(recipe for trial, recipe in trials if trial is chosen)
    if tunes:
        recipe = replace(recipe, weights=asked.weights, method=asked.method)
        reason += f" Its weights were then tuned, with {asked.method}."
    recipe = replace(recipe, task=asked.task)  # told again, with what had to be assumed
    conversion = convert(model, gathered, recipe=recipe, labels=labels, **importing)
    return Choice(conversion, tuple(replace(t, chosen=t is chosen) for t, _ in trials), reason)


def _steps(graph: FloatGraph, recipe: Recipe) -> tuple[int, int]:
    """Count the steps until the logits, and between samples; input neurons take one more to the logits."""
    steps, period = graph.steps(recipe.timesteps, recipe.holdoff)
    if recipe.reset_interval == "power-of-two":
        period = reset_interval(period)
    return steps + (recipe.input_form == "spikes"), period


def _trial(graph: FloatGraph, x: Tensor, held: Tensor, wanted: Tensor, recipe: Recipe) -> Trial:
    steps, period = _steps(graph, recipe)
    tried = partial(
        Trial,
        timesteps=recipe.timesteps,
        holdoff=recipe.holdoff,
        method=recipe.method,
        steps=steps,
        period=period,
        neuron_budget=recipe.neuron_budget,
    )
    try:
        made = convert(graph, x, recipe=recipe)
        payload = made.network.input.encode(held)
        trace = fast.run(made.network, payload, chip=recipe.limits, record=False, count=True)
    except (Refused, ArithmeticError) as problem:  # or a potential of the held-out inputs leaves the registers
        return tried(agreement=0.0, error=0.0, refused=str(problem).splitlines()[0])
    agreement, error = certainty(made.task.decide(made.decode(trace)), made.task.decide(wanted), made.task)
    spikes = sum(int(fired.sum()) for fired in trace.fired.values()) / len(held)
    neurons = sum(layer.size for layer in made.network.layers)
    if recipe.core_budget:  # which says nothing about neurons
        own = sum(math.prod(layer.shape) // layer.copies for layer in made.graph.layers)
        tried = partial(tried, neuron_budget=round(neurons / own, 2))
    return tried(agreement=agreement, error=error, refused=None, neurons=neurons, spikes=spikes)


def _best(trials: Iterable[tuple[Trial, Recipe]]) -> tuple[Trial, Recipe]:
    # R² may be negative, and is no reason to prefer what could not be converted.
    return max(trials, key=lambda entry: (entry[0].refused is None, entry[0].agreement, -entry[0].steps))


def _decide(
    trials: list[tuple[Trial, Recipe]], latency_budget: int | None, period_budget: int | None
) -> tuple[Trial, str]:
    best, recipe = _best(trials)
    measure = "R² " if recipe.task == "regression" else ""
    found = f"{_named(best)} agrees best with the ANN, {measure}{best.agreement:.1f} %"
    budgets = ((latency_budget, best.steps, ""), (period_budget, best.period, " between samples"))
    if given := [(most, taken, what) for most, taken, what in budgets if most is not None]:
        limits = " and ".join(f"at most {most} steps{what}" for most, _, what in given)
        return best, f"{found}, of what takes {limits}; it takes {' and '.join(str(taken) for _, taken, _ in given)}."
    enough = best.agreement - best.error
    faster = min(
        (trial for trial, _ in trials if not trial.refused and trial.agreement >= enough),
        key=lambda trial: (trial.steps, trial.neurons or 0, -trial.agreement),
    )
    if faster is best:
        return best, f"{found}, and nothing faster comes within a standard error of it."
    return faster, (
        f"{found} in {best.steps} steps; {_named(faster)} is within a standard error of that with "
        f"{faster.agreement:.1f} % in {faster.steps} steps, and was taken."
    )


def _named(trial: Trial) -> str:
    more = f" with {trial.neuron_budget:g} x the neurons" if trial.neuron_budget > 1 else ""
    return f"T = {trial.timesteps}, K = {trial.holdoff}, {trial.method}{more}"
