"""What is concluded from the layers' shares: where it goes wrong first, why, and what to try."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporters.report import CAUSES, Share
from toolchain.assessment.verdict import ADVICE, verdict
from toolchain.recipe import Recipe


def said(*arguments: Any) -> str:
    return verdict(*arguments).text


def test_there_is_advice_for_every_cause() -> None:
    assert set(ADVICE) == set(CAUSES)


def test_advice_names_fields_of_the_recipe_that_exist() -> None:
    fields = Recipe().as_dict()
    for _, advice in ADVICE.values():
        assert any(helps(Recipe()) for _, helps in advice)
        for text, _ in advice:
            name, equals, _ = text.partition("=")
            assert not equals or name in fields or text.startswith('recipe="tuned"')


def row(name: str, inherited: float = 0.0, **causes: float) -> Share:
    filled = dict.fromkeys(CAUSES, 0.0) | causes
    own = sum(filled.values())
    return Share(name=name, error=inherited + own, inherited=inherited, own=own, **filled)


def classes(wrong: int, n: int = 100) -> Tensor:
    return (torch.arange(n) < wrong).long()


def test_the_first_layer_that_costs_more_than_its_staircase_is_named_with_its_dominant_cause() -> None:
    rows = [
        row("fine", staircase=0.2),
        row("minor", weights=0.05),
        row("first", 0.2, staircase=0.1, timing=0.04, clipping=0.08),
        row("larger", 0.4, staircase=0.02, timing=0.21),
    ]
    text = said(rows, Recipe(), classes(0), classes(50))
    assert "It goes wrong first in first: activations above the threshold are cut off (clipping is 0.08" in text
    assert "of its relative error of 0.42)" in text


def test_the_layer_that_adds_most_is_named_where_none_costs_more_than_its_staircase() -> None:
    rows = [row("a", staircase=0.2), row("b", 0.5, staircase=0.2, timing=0.1), row("c", 0.9, staircase=0.1)]
    text = said(rows, Recipe(timesteps=4), classes(0), classes(50))
    assert "No layer stands out, b adds most: T = 4 draws" in text
    assert text.endswith('Try timesteps=8 or recipe="tuned", which takes minutes.')
    tuned = said(rows, Recipe(timesteps=4, weights="tuned"), classes(0), classes(50))
    assert tuned.endswith("Try timesteps=8.")


def test_the_layer_and_the_cause_are_named_apart_where_something_is_lost() -> None:
    rows = [row("fine", staircase=0.2), row("wrong", staircase=0.02, timing=0.3, clipping=0.1)]
    assert verdict(rows, Recipe(), classes(0), classes(50))[1:] == ("wrong", "timing")
    assert verdict(rows[:1], Recipe(), classes(0), classes(50))[1:] == ("fine", "staircase")
    assert verdict(rows, Recipe(), classes(0), classes(0))[1:] == (None, None)


def test_a_loss_within_the_noise_of_its_samples_is_no_loss() -> None:
    # The trained network is right on 90 of 100: the interval is 82.6 to 94.5, so that 5 samples are chance, 6 are not.
    rows, y = [row("a", timing=1)], classes(10)
    spiking = {wrong: classes(0) for wrong in (5, 6)}
    for wrong, predicted in spiking.items():
        predicted[-wrong:] = 1
    assert said(rows, Recipe(), classes(0), spiking[5], y) == (
        "Nothing measurable is lost: the spiking network decides like the trained one on 95 of 100 samples and gets 5 "
        "fewer right; another 100 samples might change more than that."
    )
    assert "It goes wrong first in a" in said(rows, Recipe(), classes(0), spiking[6], y)


def test_a_network_that_is_right_as_often_or_more_often_has_lost_nothing() -> None:
    rows = [row("a", timing=1)]
    assert said(rows, Recipe(), classes(0), classes(30), classes(30)) == (
        "Nothing is lost: the spiking network decides like the trained one on 70 of 100 samples and gets 30 more right."
    )
    assert said(rows, Recipe(), classes(0), classes(0), classes(30)).endswith("gets as many right.")
    assert said(rows, Recipe(), classes(0), classes(0)).endswith("on 100 of 100 samples.")


def test_without_labels_every_other_decision_counts_as_lost() -> None:
    rows = [row("a", timing=1)]
    # Agreement on 96 of 100 has an interval of 90.2 to 98.4: 4 samples are chance, 5 (88.8 to 97.8) are not.
    assert said(rows, Recipe(), classes(0), classes(4)).startswith("Nothing measurable is lost: the")
    assert "It goes wrong first in a" in said(rows, Recipe(), classes(0), classes(5))


def test_decisions_of_one_sample_are_counted_one_by_one() -> None:
    rows = [row("a", timing=1)]
    trained, spiking = torch.zeros(50, 4).long(), torch.zeros(50, 4).long()
    spiking[:30] = torch.tensor([1, 1, 0, 0])
    text = said(rows, Recipe(task="labels"), trained, spiking)
    assert text.startswith(
        "The spiking network decides like the trained one on 140 of 200 labels of 50 samples. It goes"
    )
    spiking[:] = 0
    spiking[0, 0] = 1
    assert "another 50 samples might change more" in said(rows, Recipe(task="pixels"), trained, spiking)


def numbers(error: float) -> tuple[Tensor, Tensor]:
    """Two outputs, 1 and 100 wide; the second one's error is so many of its standard deviations."""
    trained = torch.tensor([[-1.0, -100.0], [1.0, 100.0]] * 50)
    away = torch.tensor([1.0, 1.0, -1.0, -1.0] * 25)[:, None] * torch.tensor([0.01, 100 * error])
    return trained, trained + away


def test_a_regression_loses_little_where_every_output_is_close() -> None:
    rows, recipe = [row("a", timing=1)], Recipe(task="regression")
    assert said(rows, recipe, *numbers(0.05)) == (
        "Little is lost: the spiking network's outputs differ from the trained one's by 5 % of their standard "
        "deviation (root mean square; the largest of 2, of output 1)."
    )
    text = said(rows, recipe, *numbers(0.2))
    assert text.startswith("The spiking network's outputs differ from the trained one's by 20 % of their standard")
    assert "It goes wrong first in a" in text


def test_a_regression_with_labels_loses_what_its_r2_does() -> None:
    rows, recipe = [row("a", timing=1)], Recipe(task="regression")
    trained, spiking = numbers(0.2)
    # The trained network is exact: R2 falls from 1 by the mean of 0.01^2 and 0.2^2, and nothing is uncertain about it.
    text = said(rows, recipe, trained, spiking, trained)
    assert "; R² against the labels is 0.980 instead of 1.000. It goes wrong first in a" in text
    # Labels in which the networks explain next to nothing.
    noise = torch.tensor(np.random.default_rng(0).normal(size=(100, 2))) * torch.tensor([10, 1000])
    assert said(rows, recipe, trained, spiking, trained + noise).startswith("Little is lost")


def test_outputs_that_never_change_have_no_spread_to_be_measured_by() -> None:
    rows, recipe, same = [row("a", timing=1)], Recipe(task="regression"), torch.ones(9, 1)
    assert "are always the same" in said(rows, recipe, same, same)
    assert "It goes wrong first in a" in said(rows, recipe, same, same + 1)
