"""What a network's outputs mean: which decision or number they stand for, which labels fit, what has to share a scale.

Told by the outputs' shape and the labels, or given (:class:`toolchain.recipe.Recipe`). Labels are checked here and
nowhere else: what no output stands for would count as a mistake of every network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from torch import Tensor

from exporters.report import TaskName
from sim.arguments import array
from sim.findings import Refused, refuse
from sim.network import Shape
from toolchain.recipe import TaskChoice

#: Outputs of which one spreads so many times as wide as another are no logits that compete: the small one would
#: never decide, and with one scale for all it would keep no more than two bits of its weights.
SPREAD = 30
FEWEST = 32  #: inputs; with fewer, spreads differ by chance
NUMBERS = "numbers, one label for every sample"


@dataclass(frozen=True)
class Task:
    """What the outputs of one network mean."""

    name: TaskName
    shape: Shape  #: of one sample's outputs: (N,), or (C, H, W)

    def decide(self, outputs: Any) -> np.ndarray:
        """Return what outputs (B, *shape), of any unit but with 0 in place, say.

        Classes int64 (B,); 0 or 1 int64 (B,) of one logit, (B, *shape) of labels; classes of pixels int64 (B, H, W);
        of a regression the outputs as they are, float64.
        """
        return _DECISIONS[self.name](self._arranged(outputs))

    def labels(self, y: Any, samples: int) -> np.ndarray:
        """Return labels ``y`` as :meth:`decide` returns decisions; :class:`Refused` where they are not of this task.

        Integers of any type, whole floats, a column (samples, 1), and one-hot (samples, C, ...) for classes.
        """
        values = numbers(y)
        if len(values) != samples:
            raise refuse("labels", f"{len(values)} for {samples} samples", "give one for every sample")
        return _LABELS[self.name](values, self.shape)

    def _arranged(self, outputs: Any) -> np.ndarray:
        values = array("outputs", outputs, "iuf", "numbers for every sample")
        if not values.ndim or not values.size or values[0].size != math.prod(self.shape) or np.isnan(values).any():
            problem = "NaN" if values.dtype.kind == "f" and np.isnan(values).any() else f"shape {values.shape}"
            raise refuse("outputs", problem, f"give numbers of shape (samples, {', '.join(map(str, self.shape))})")
        return values.reshape(len(values), *self.shape)


def shares_scale(task: TaskChoice) -> bool:
    """Whether the outputs are compared with each other, so that one unit of each has to be worth the same."""
    return task not in ("binary", "labels", "regression")


def resolve(
    asked: TaskChoice, shape: Shape, y: Any = None, outputs: Callable[[], Tensor] | None = None
) -> tuple[Task, str | None]:
    """Find the task of outputs of this shape, and what had to be assumed, in a sentence.

    ``y`` are labels, where there are any; ``outputs`` computes those of the trained network, (B, *shape). Raises
    :class:`Refused` for a task that such outputs cannot have.
    """
    if asked not in get_args(TaskChoice):
        raise refuse("task", f"unknown value {asked!r}", f"use one of {', '.join(get_args(TaskChoice))}")
    name, assumed = _told(shape, y, outputs) if asked == "auto" else (asked, None)
    task = Task(name, shape)
    if problem := _misfit(task):
        raise refuse("task", f'"{name}" for outputs of shape {shape}', problem)
    return task, assumed


def _misfit(task: Task) -> str | None:
    """Say what to give instead where outputs of this shape cannot have the task."""
    outputs, places = math.prod(task.shape), math.prod(task.shape[1:])
    if task.name == "binary" and outputs != 1:
        return 'it decides by one output: give "labels" for several decisions, "classes" for one among several'
    if task.name == "classes" and (places > 1 or outputs == 1):
        return 'give "pixels", or pool over space' if places > 1 else 'one output has no rival: give "binary"'
    return None if task.name != "pixels" or len(task.shape) == 3 else 'give "classes", or a model with maps (C, H, W)'


def _told(shape: Shape, y: Any, outputs: Callable[[], Tensor] | None) -> tuple[TaskName, str | None]:
    """Tell the task by shape and labels, or what is likely without labels."""
    single, spatial = math.prod(shape) == 1, math.prod(shape[1:]) > 1
    if y is not None:
        return _by_labels(numbers(y), shape), None
    number = 'where it is a number, give task="regression"'
    if spatial:
        assumed = f"One output a pixel was taken for a decision at 0, without labels; {number}."
        return "pixels", assumed if shape[0] == 1 else None
    if single:
        return "binary", f"The one output was taken for a decision at 0, without labels; {number}."
    if outputs is not None and (spread := _spread(outputs().flatten(1))) > SPREAD:
        return "regression", (
            f"The outputs were taken for numbers, without labels: one spreads {spread:.0f} times as wide as another, "
            'which would never be the largest; where they are classes all the same, give task="classes".'
        )
    return "classes", None


def _by_labels(y: np.ndarray, shape: Shape) -> TaskName:
    single, spatial = math.prod(shape) == 1, math.prod(shape[1:]) > 1
    if _plain(y.shape[1:]) != _plain(shape):
        return "pixels" if spatial else "classes"
    if _fractions(y):
        return "regression"
    if single:
        # Whole numbers of a floating-point type are numbers, unless there are only two of them.
        return "regression" if y.dtype.kind == "f" and len(np.unique(y)) > 2 else "binary"
    values = set(np.unique(y).tolist())
    if not (values <= {0, 1} or values == {-1, 1}):
        return "pixels" if spatial and shape[0] == 1 else "regression"
    if spatial and (shape[0] == 1 or _one_hot(y)):
        return "pixels"
    return "classes" if not spatial and _one_hot(y) else "labels"


def _spread(outputs: Tensor) -> float:
    """How many times as wide as the narrowest output (B, N) the widest spreads; constant ones have no spread."""
    if len(outputs) < FEWEST:
        return 1.0
    spreads = outputs.double().std(0)
    spreads = spreads[spreads > 1e-5 * outputs.abs().amax(0)]
    return float(spreads.max() / spreads.min()) if len(spreads) else 1.0


def _plain(shape: Shape) -> Shape:
    """Leave out what is 1 in a shape."""
    return tuple(size for size in shape if size != 1)


def numbers(y: Any) -> np.ndarray:
    """Labels as an array of int64 or float64; :class:`Refused` for anything else and for what is not finite."""
    values = array("labels", y, "iubf", NUMBERS)
    if not values.ndim or not values.size:
        raise refuse("labels", f"{values.dtype} of shape {values.shape}", f"give {NUMBERS}")
    if values.dtype.kind == "f":
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            sample = int(np.argwhere(~np.isfinite(values))[0, 0])
            raise refuse("labels", f"sample {sample} holds NaN or infinity", "clean the data")
        return values
    return values.astype(np.int64)


def _fractions(y: np.ndarray) -> bool:
    return y.dtype.kind == "f" and bool((y != np.rint(y)).any())


def _one_hot(y: np.ndarray) -> bool:
    """Whether each sample (or pixel) of 0s and 1s (N, C, ...) has exactly one 1."""
    return bool(np.isin(y, (0, 1)).all() and (y.sum(1) == 1).all())


def _mismatch(y: np.ndarray, wanted: str) -> Refused:
    return refuse("labels", f"of shape {y.shape}{', with fractions' if _fractions(y) else ''}", f"give {wanted}")


def _within(y: np.ndarray, classes: int, outputs: str) -> np.ndarray:
    """Return whole numbers 0..classes-1 as int64; anything else is refused with the way out that it suggests."""
    y, low, high = y.astype(np.int64), int(y.min()), int(y.max())
    if low >= 0 and high < classes:
        return y
    values = np.unique(y)
    outside = values[(values < 0) | (values >= classes)]
    if high == classes and low > 0:
        remedy = "subtract 1"
    elif values.tolist() == [-1, 1] and classes == 2:
        remedy = "give (y + 1) / 2"
    elif len(outside) == 1 and len(values) > 1 and outside[0] != classes:
        remedy = f"leave out what is labelled {outside[0]} ({int((y == outside[0]).sum())} times), or give it a class"
    elif low > 0 and high - low < classes:
        remedy = f"subtract {low}"
    elif outputs == "1 output":
        remedy = 'give 0 and 1, or floats or task="regression" for numbers'
    else:
        remedy = f"give class numbers 0..{classes - 1}, or a network with an output for each"
    raise refuse("labels", f"{low}..{high}, but the network has {outputs}, for classes 0..{classes - 1}", remedy)


def _class_labels(y: np.ndarray, shape: Shape) -> np.ndarray:
    classes = math.prod(shape)
    if y.shape[1:] == (1,):
        y = y[:, 0]
    if _plain(y.shape[1:]) == (classes,) and _one_hot(y):
        return y.reshape(len(y), -1).argmax(1)
    if y.ndim != 1 or _fractions(y):
        many = 'task="labels" for several 0s and 1s, task="regression" for numbers'
        raise _mismatch(y, f"a class number 0..{classes - 1} for every sample, or {many}")
    return _within(y, classes, f"{classes} outputs")


def _binary_labels(y: np.ndarray, shape: Shape) -> np.ndarray:
    if _plain(y.shape[1:]) or _fractions(y):
        raise _mismatch(y, '0 or 1 for every sample, or task="regression" for numbers')
    return _within(y.reshape(-1), 2, "1 output")


def _multi_labels(y: np.ndarray, shape: Shape) -> np.ndarray:
    if _plain(y.shape[1:]) != _plain(shape) or _fractions(y):
        raise _mismatch(y, f"0 or 1 for each of the outputs {shape}")
    return _within(y.reshape(len(y), *shape), 2, f"outputs {shape}")


def _pixel_labels(y: np.ndarray, shape: Shape) -> np.ndarray:
    channels, *size = shape
    if y.ndim == len(shape) + 1 and _plain(y.shape[1:]) == _plain(shape) and channels > 1 and _one_hot(y):
        return y.reshape(len(y), *shape).argmax(1)
    if _plain(y.shape[1:]) != _plain(tuple(size)) or _fractions(y):
        raise _mismatch(y, f'a class number for each of {" x ".join(map(str, size))} pixels, or task="regression"')
    outputs = f"{channels} output{'s' * (channels > 1)} a pixel"
    return _within(y.reshape(len(y), *size), max(channels, 2), outputs)


def _regression_labels(y: np.ndarray, shape: Shape) -> np.ndarray:
    if _plain(y.shape[1:]) != _plain(shape):
        raise _mismatch(y, f"numbers of shape ({len(y)}, {', '.join(map(str, shape))})")
    return y.reshape(len(y), *shape).astype(np.float64)


def _largest(outputs: np.ndarray) -> np.ndarray:
    return outputs.reshape(len(outputs), -1).argmax(1)


def _positive(outputs: np.ndarray) -> np.ndarray:
    return (outputs > 0).astype(np.int64)


_LABELS: dict[TaskName, Callable[[np.ndarray, Shape], np.ndarray]] = {
    "classes": _class_labels,
    "binary": _binary_labels,
    "labels": _multi_labels,
    "pixels": _pixel_labels,
    "regression": _regression_labels,
}
_DECISIONS: dict[TaskName, Callable[[np.ndarray], np.ndarray]] = {
    "classes": _largest,
    "binary": lambda outputs: _positive(outputs.reshape(len(outputs))),
    "labels": _positive,
    "pixels": lambda outputs: outputs.argmax(1) if outputs.shape[1] > 1 else _positive(outputs[:, 0]),
    "regression": lambda outputs: outputs.astype(np.float64),
}
