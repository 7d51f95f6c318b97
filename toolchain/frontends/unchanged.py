"""Running a user's model without leaving a trace in it."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Give back all attributes of all modules, and the states of the random generators, as they were.

    Lists, dicts and sets get back what they held, plain tensors their values. Parameters and buffers get back their
    tensors, not their values: who lets a model change those hands it copies.
    """
    kept = [(module, dict(vars(module)), list(map(_content, vars(module).values()))) for module in model.modules()]
    python, array = random.getstate(), np.random.get_state()  # noqa: NPY002 - what the model may draw from
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)  # noqa: NPY002
        for module, attributes, contents in kept:
            vars(module).clear()
            vars(module).update(attributes)
            for value, content in zip(attributes.values(), contents, strict=True):
                _restore(value, content)


def _content(value: Any) -> Any:
    if isinstance(value, list | dict | set):
        return value.copy()
    return (version(value), value.detach().clone()) if type(value) is Tensor else None


def _restore(value: Any, content: Any) -> None:
    if isinstance(value, list):
        value[:] = content
    elif isinstance(value, dict | set):
        value.clear()
        value.update(content)
    elif content is not None and version(value) != content[0]:
        value.detach().copy_(content[1])


def version(tensor: Tensor) -> int:
    """Return the number that grows with every change in place, where torch counts them."""
    return 0 if nn.parameter.is_lazy(tensor) or tensor.is_inference() else tensor._version
