"""What outputs mean: told by their shape and the labels, and which labels fit."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from exporters.report import MEASURES, TaskName
from sim.findings import Refused
from toolchain.recipe import TaskChoice
from toolchain.task import Task, resolve

MAP = (3, 2, 2)  #: shape of outputs per pixel


def test_whatever_a_recipe_may_ask_for_has_a_measure() -> None:
    assert get_args(TaskChoice) == ("auto", *get_args(TaskName))
    assert tuple(MEASURES) == get_args(TaskName)


# ---- what the outputs mean -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "y", "name"),
    [
        ((3,), [0, 2, 1], "classes"),
        ((3,), [[0.0], [2.0], [1.0]], "classes"),
        ((3,), [[1, 0, 0], [0, 0, 1]], "classes"),
        ((3, 1, 1), [0, 2], "classes"),
        ((2,), [[0.0, 1.0], [1.0, 0.0]], "classes"),
        ((1,), [0, 1, 1], "binary"),
        ((1,), [[0.0], [1.0]], "binary"),
        ((1,), [False, True], "binary"),
        ((1,), [0.5, 1.0], "regression"),
        ((1,), [151.0, 75.0, 141.0], "regression"),
        ((3,), [[1, 0, 1], [0, 0, 1]], "labels"),
        ((3,), [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]], "labels"),
        ((3,), [[0.1, 0.2, 0.3], [1.0, 0.0, 0.0]], "regression"),
        ((2,), [[640, 1], [320, 0]], "regression"),
        (MAP, [[[0, 2], [1, 0]]], "pixels"),
        (MAP, np.eye(3)[[[[0, 2], [1, 0]]]].transpose(0, 3, 1, 2), "pixels"),
        (MAP, np.ones((1, *MAP), int), "labels"),
        (MAP, np.full((1, *MAP), 0.5), "regression"),
        ((1, 2, 2), [[[0, 1], [1, 0]]], "pixels"),
        ((1, 2, 2), [[[0.0, 0.25], [1.0, 0.0]]], "regression"),
    ],
)
def test_shape_and_labels_tell_what_outputs_mean(shape: tuple[int, ...], y: Any, name: str) -> None:
    for labels in (y, np.asarray(y), torch.tensor(np.asarray(y))):
        task, assumed = resolve("auto", shape, labels)
        assert (task.name, assumed) == (name, None)
        task.labels(labels, len(y))


@pytest.mark.parametrize(
    ("shape", "name", "assumed"),
    [
        ((3,), "classes", None),
        (MAP, "pixels", None),
        (
            (1,),
            "binary",
            "The one output was taken for a decision at 0, without labels; where it is a number",
        ),
        ((1, 2, 2), "pixels", "One output a pixel was taken for a decision at 0, without labels; where it is a number"),
    ],
)
def test_without_labels_the_likely_is_taken_and_said(shape: tuple[int, ...], name: str, assumed: str | None) -> None:
    task, said = resolve("auto", shape)
    assert task.name == name
    assert said is assumed is None or str(said).startswith(str(assumed))


def spreading(*spreads: float, samples: int = 40) -> Tensor:
    return torch.linspace(-1, 1, samples)[:, None] * torch.tensor(spreads) + 3


def test_outputs_of_which_one_would_never_be_the_largest_are_taken_for_numbers() -> None:
    task, said = resolve("auto", (2,), None, lambda: spreading(1, 640))
    assert task.name == "regression"
    assert "one spreads 640 times as wide as another" in str(said)
    assert str(said).endswith('where they are classes all the same, give task="classes".')
    assert resolve("auto", (2,), [0, 1], lambda: spreading(1, 640))[0].name == "classes"
    assert resolve("classes", (2,), None, lambda: spreading(1, 640)) == (Task("classes", (2,)), None)
    for outputs in (spreading(1, 20), spreading(0, 1, 2), spreading(1, 640, samples=8)):
        assert resolve("auto", (outputs.shape[1],), None, lambda outputs=outputs: outputs)[0].name == "classes"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("binary", (2,), 'task: "binary" for outputs of shape \\(2,\\); it decides by one output: give "labels"'),
        ("classes", (1,), 'task: "classes" for outputs of shape \\(1,\\); one output has no rival: give "binary"'),
        ("classes", MAP, 'task: "classes" for outputs of shape \\(3, 2, 2\\); give "pixels", or pool over space'),
        ("pixels", (4,), 'task: "pixels" for outputs of shape \\(4,\\); give "classes", or a model with maps'),
        ("votes", (4,), "task: unknown value 'votes'; use one of auto, classes, binary, labels, pixels, regression"),
    ],
)
def test_a_task_that_outputs_cannot_have_is_refused(name: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(Refused, match=message):
        resolve(name, shape)


# ---- what they say ---------------------------------------------------------------------------------------------------


def test_decisions_are_taken_at_zero_or_by_the_largest() -> None:
    outputs = np.array([[0, -2, 1], [5, 0, -1]])
    assert Task("classes", (3,)).decide(outputs).tolist() == [2, 0]
    assert Task("labels", (3,)).decide(outputs).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert Task("binary", (1,)).decide([[0.0], [0.1], [-3.0]]).tolist() == [0, 1, 0]
    assert Task("binary", (1,)).decide(torch.tensor([[1.0], [-1.0]])).tolist() == [1, 0]
    assert Task("regression", (3,)).decide(outputs).tolist() == outputs.tolist()
    maps = np.array([[[[1, 2]], [[3, 0]]]])  # 2 channels of 1 x 2 pixels
    assert Task("pixels", (2, 1, 2)).decide(maps).tolist() == [[[1, 0]]]
    assert Task("pixels", (1, 1, 2)).decide([[[[-1, 4]]]]).tolist() == [[[0, 1]]]


# ---- which labels fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.uint16, np.uint32, np.int64, np.uint64, np.float32])
def test_labels_of_any_type_and_form_are_the_same_labels(kind: Any) -> None:
    y = np.array([3, 0, 2], kind)
    task = Task("classes", (4,))
    for form in (y, y[:, None], np.eye(4)[[3, 0, 2]], np.eye(4, dtype=kind)[[3, 0, 2]], y.tolist()):
        assert task.labels(form, 3).tolist() == [3, 0, 2]
    assert Task("binary", (1,)).labels(np.array([[1], [0]], kind), 2).tolist() == [1, 0]


def test_pixels_may_be_numbered_with_a_channel_or_one_hot() -> None:
    y = np.array([[[0, 2], [1, 0]]])
    for form in (y, y[:, None], np.eye(3)[y].transpose(0, 3, 1, 2)):
        assert Task("pixels", MAP).labels(form, 1).tolist() == y.tolist()
    assert Task("pixels", (3, 4, 1)).labels([[0, 1, 2, 0]], 1).tolist() == [[[0], [1], [2], [0]]]


TEN, ONE, MANY = ("classes", (10,)), ("binary", (1,)), ("labels", (3,))


@pytest.mark.parametrize(
    ("task", "y", "message"),
    [
        (TEN, range(1, 11), "labels: 1..10, but the network has 10 outputs, for classes 0..9; subtract 1"),
        (TEN, [4, 10], "labels: 4..10, but the network has 10 outputs, for classes 0..9; subtract 1"),
        (TEN, [-1, 0, 3, -1], "classes 0..9; leave out what is labelled -1 (2 times), or give it a class"),
        (TEN, range(5, 15), "labels: 5..14, but the network has 10 outputs, for classes 0..9; subtract 5"),
        (TEN, range(11), "classes 0..9; give class numbers 0..9, or a network with an output for each"),
        (TEN, [0.5, 1.0], "labels: of shape (2,), with fractions; give a class number 0..9 for every sample"),
        (TEN, np.ones((2, 10)), '(2, 10); give a class number 0..9 for every sample, or task="labels"'),
        (TEN, np.zeros((2, 3)), "labels: of shape (2, 3); give a class number 0..9 for every sample"),
        (TEN, ["a", "b"], "labels: list of shape (2,); give numbers, one label for every sample"),
        (TEN, [0.0, np.nan], "labels: sample 1 holds NaN or infinity; clean the data"),
        (TEN, [], "labels: float64 of shape (0,)"),
        (TEN, 3, "labels: int64 of shape ()"),
        (ONE, [-1, 1, -1], "labels: -1..1, but the network has 1 output, for classes 0..1; give (y + 1) / 2"),
        (ONE, [1, 2], "labels: 1..2, but the network has 1 output, for classes 0..1; subtract 1"),
        (ONE, [25, 346, 90], 'for classes 0..1; give 0 and 1, or floats or task="regression" for numbers'),
        (ONE, [0.2, 1.0], 'with fractions; give 0 or 1 for every sample, or task="regression" for numbers'),
        (MANY, [[-1, 1, 1]], "the network has outputs (3,), for classes 0..1; give (y + 1) / 2"),
        (MANY, [1, 0], "labels: of shape (2,); give 0 or 1 for each of the outputs (3,)"),
        (("pixels", MAP), [[[0, 255], [1, 0]]], "3 outputs a pixel, for classes 0..2; leave out what is labelled 255"),
        (("pixels", MAP), [0, 1], "labels: of shape (2,); give a class number for each of 2 x 2 pixels"),
        (("regression", (2,)), [1.5, 2.0], "labels: of shape (2,), with fractions; give numbers of shape (2, 2)"),
    ],
)  # fmt: skip
def test_labels_that_no_output_stands_for_are_refused_with_the_way_out(
    task: tuple[Any, tuple[int, ...]], y: Any, message: str
) -> None:
    with pytest.raises(Refused) as caught:
        Task(*task).labels(y, np.asarray(y).shape[0] if np.ndim(y) else 1)
    assert message in str(caught.value)


def test_there_is_one_label_for_every_sample() -> None:
    with pytest.raises(Refused, match="labels: 2 for 3 samples; give one for every sample"):
        Task("classes", (4,)).labels([0, 1], 3)
