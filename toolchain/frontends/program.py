"""A network that comes as a file: operations that torch functions run one after the other.

The readers of such files (:mod:`toolchain.frontends.exported`, :mod:`toolchain.frontends.onnx_file`) write every
operation that they know in torch functions, and all others as :class:`Unknown`. The importer then traces a program like
any other module. A file chooses among the functions of the readers' tables; nothing else in it is ever executed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from sim.network import Shape


@dataclass(frozen=True)
class Ref:
    """A value of the program, by its name, among the arguments of an operation."""

    name: str


OF_WEIGHTS = " of weights is not known"  #: as no zeros may stand for them
CONSTANT_LIMIT = 1 << 28  #: values of a constant that a program may create

#: The number of samples of the batch that the program runs on. Files hold it as a number where their author fixed it.
SAMPLES = Ref("number of samples")


@dataclass(frozen=True, eq=False)
class Operation:
    """One call of a function."""

    path: str  #: the module that it belongs to, "" for the whole model
    function: Callable[..., Any]
    outputs: tuple[str, ...]  #: names of its values
    several: bool = False  #: whether the function returns a sequence, one value for every name
    args: tuple[Any, ...] = ()  #: may hold :class:`Ref`, also within lists and tuples
    kwargs: Mapping[str, Any] = field(default_factory=dict)


class Unknown:
    """An operation that no table knows: the importer refuses it by its name, and goes on with zeros of its shapes."""

    def __init__(self, name: str, shapes: Sequence[Shape | None] | None = ()) -> None:
        self.__name__ = name
        #: Of its outputs, without the batch, None where a file does not tell; None of what reads weights alone.
        self.shapes = shapes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros."""
        tensors = tuple(_flat((args, kwargs)))
        if has_torch_function(tensors):
            return handle_torch_function(self, tensors, *args, **kwargs)
        if not self.shapes or self.shapes[0] is None:
            raise RuntimeError(f"{self.__name__}{OF_WEIGHTS if self.shapes is None else ' is not known'}")
        zeros = [None if s is None else tensors[0].new_zeros(len(tensors[0]), *s) for s in self.shapes]
        return zeros[0] if len(zeros) == 1 else zeros


class Program(nn.Module):
    """Operations from one input to the outputs; its buffers are the constants, under the names that the file gives.

    ``forward`` takes and returns tensors with the batch as their first dimension, of any size.
    """

    def __init__(
        self,
        source: str,
        constants: Mapping[str, tuple[str, Tensor]],
        operations: Iterable[Operation],
        outputs: Sequence[str],
    ) -> None:
        """``constants`` gives by a value's name its qualified name in the model and the tensor."""
        super().__init__()
        self.source, self.operations, self.outputs = source, tuple(operations), tuple(outputs)
        self.literals: dict[str, Tensor] = {}
        self.weights: dict[str, str] = {}
        for name, (path, tensor) in constants.items():
            if tensor.dim() and tensor.is_floating_point():
                self.weights[name] = self._register(path, tensor.float())
            else:
                self.literals[name] = tensor
        self.last_use = {ref: i for i, step in enumerate(self.operations) for ref in refs((step.args, step.kwargs))}
        self.needed = self.last_use.keys() | set(self.outputs)
        self.place = ""  #: path of the operation that runs; the importer reads it while it traces

    def _register(self, path: str, tensor: Tensor) -> str:
        *parents, name = (part or "_" for part in re.sub(r"[^\w.]+", "_", path).split("."))
        module: nn.Module = self
        taken = []
        for parent in parents:
            while parent not in module._modules and hasattr(module, parent):
                parent += "_"
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module.get_submodule(parent)
            taken.append(parent)
        while hasattr(module, name):
            name += "_"
        module.register_buffer(name, tensor)
        return ".".join((*taken, name))

    def forward(self, x: Tensor) -> Any:
        """Run every operation; a value is kept until its last use."""
        values = {self.source: x, SAMPLES.name: x.shape[0], **self.literals}
        values |= {name: self.get_buffer(path) for name, path in self.weights.items()}
        for i, step in enumerate(self.operations):
            self.place = step.path
            args, kwargs = _replaced((step.args, step.kwargs), values)
            result = step.function(*args, **kwargs)
            if step.several:  # what nobody needs is not even looked at
                values |= {name: result[k] for k, name in enumerate(step.outputs) if name in self.needed}
            else:
                values |= dict.fromkeys(step.outputs, result)
            for name in refs((step.args, step.kwargs)):
                if self.last_use[name] == i and name not in self.outputs:
                    values.pop(name, None)
        found = tuple(values[name] for name in self.outputs)
        return found[0] if len(found) == 1 else found


def filled(shape: Sequence[int], value: float) -> Tensor:
    """Create a constant; a file may ask for any size."""
    if math.prod(shape) > CONSTANT_LIMIT:
        raise RuntimeError(f"a constant of shape {tuple(shape)} has more than {CONSTANT_LIMIT:,} values")
    return torch.full(tuple(shape), value)


def refs(value: Any) -> set[str]:
    """Names of all values that nested arguments refer to."""
    return {leaf.name for leaf in _leaves(value) if isinstance(leaf, Ref)}


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, list | tuple):
        return (value,)
    return (leaf for part in value for leaf in _leaves(part))


def _flat(value: Any) -> Iterable[Any]:
    """All tensors, or what stands for them, in nested arguments."""
    return (leaf for leaf in _leaves(value) if hasattr(leaf, "__torch_function__"))


def _replaced(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, Ref):
        return values[value.name]
    if isinstance(value, Mapping):
        return {key: _replaced(part, values) for key, part in value.items()}
    return type(value)(_replaced(part, values) for part in value) if isinstance(value, list | tuple) else value
