"""A torch ``Dataset`` of the user's own, made by a function in a file, as a model is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from sim.findings import Refused, refuse
from sim.network import Shape
from toolchain.data.source import Read, Source
from toolchain.inputs import as_inputs, as_labels, sample_shape
from toolchain.loading.factory import failure, located, made
from toolchain.loading.words import described

WANTED = "return a torch Dataset with __len__ and __getitem__, whose items are an input, or (input, label)"


class Items(Source):
    """The items of a ``Dataset``, taken one by one: an input each, or a tuple of an input and a label."""

    def __init__(self, spec: str, shape: Shape | None = None, labels: bool = True) -> None:
        """Take what ``FILE.py:FACTORY`` makes (:func:`toolchain.loading.factory.made`).

        Inputs are tensors, arrays or images of Pillow (uint8, as its pixels), all of the shape of the first. Raises
        :class:`Refused` for what cannot be made, has no length or no first item, and where ``labels`` are needed and
        items have none.
        """
        file, _, name = spec.rpartition(":")
        self.name, self._wanted = spec, shape
        self._spec = f"{located(file)}:{name}"  # the same from any folder
        items: Any = _dataset(spec)
        self._made: Any = items
        with self._refusing("its length"):
            self._length = len(items)
        if self._length < 1:
            raise refuse(spec, "is empty", "give at least one sample")
        x, y = self._item(0)
        self.shape, self.labelled = sample_shape((1, *x.shape), shape, spec), y is not None
        if labels and y is None:
            raise refuse(spec, "has no labels", "return (input, label) from __getitem__")

    def __len__(self) -> int:
        return self._length

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_made": None}  # another process makes its own

    def read(self, samples: Sequence[int]) -> Read:
        """Take the items; :class:`Refused` for whatever one raises."""
        items = [self._item(sample) for sample in samples]
        x = as_inputs([x for x, _ in items], self._wanted or self.shape, self.name, samples[0])
        if not self.labelled:
            return x, None
        try:
            y = np.stack([np.asarray(label) for _, label in items])
            if y.dtype.kind not in "iubf":
                raise ValueError("no numbers")
        except ValueError as error:
            problem = f"the labels of samples {samples[0]}..{samples[-1]} are no numbers of one shape"
            raise refuse(self.name, problem, "return a number, or an array of one shape, with every input") from error
        return x, as_labels(y)

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        """Run the user's code, which prints to stderr and may raise anything."""
        try:
            with redirect_stdout(sys.stderr):
                yield
        except (Refused, KeyboardInterrupt):
            raise
        except BaseException as error:
            problem, remedy = failure(error, Path(self._spec.rpartition(":")[0]).parent)
            raise refuse(self.name, f"{what}: {problem}", remedy) from error

    def _item(self, sample: int) -> tuple[Any, Any]:
        with self._refusing(f"sample {sample}"):
            if self._made is None:
                self._made = _once(self._spec)
            item = self._made[sample]
        x, y = (*item, None)[:2] if isinstance(item, tuple | list) and item else (item, None)
        if isinstance(x, Tensor):
            return x, y
        if hasattr(x, "getbands"):  # an image of Pillow, which needs not be imported for that
            x = np.asarray(x)
            x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
        if not isinstance(x, np.ndarray):
            raise refuse(self.name, f"sample {sample} is {described(item)}", WANTED)
        return x, y


def _dataset(spec: str) -> Dataset[Any]:
    found = made(spec, Dataset, "data set")
    if isinstance(found, type) or not hasattr(found, "__getitem__"):
        raise refuse(spec, f"returns {described(found)}, not a data set", WANTED)
    return found


#: Makes the data set once in a process, for all its shards.
_once = lru_cache(maxsize=4)(_dataset)
