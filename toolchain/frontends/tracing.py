"""From a model to the graph of its operations, with ``torch.fx``."""

from __future__ import annotations

import contextlib
import inspect
import operator
import traceback
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from sim.network import Shape
from toolchain.frontends.affine import BATCH
from toolchain.frontends.log import Log
from toolchain.frontends.precision import InFloat64, in_float64, named_type
from toolchain.frontends.program import Program
from toolchain.frontends.registry import TAUGHT, known_class

TRACEABLE = "write its forward without Python control flow on values, and its modules as attributes"


@dataclass(frozen=True)
class Place:
    """Where in a model an operation stands."""

    path: str  #: of the module whose forward calls it, "" for the whole model
    whole: bool  #: whether the module stands for a single operation, so that the path names it


@dataclass(frozen=True, eq=False)
class Traced:
    """A model and the graph of its operations."""

    model: nn.Module
    graph: fx.Graph
    places: dict[fx.Node, Place]
    untraceable: dict[str, str]  #: why, by the path of a module that the graph calls as a whole


def evaluate(root: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Let torch compute a node, in float64."""
    if node.op == "get_attr":
        return in_float64(operator.attrgetter(str(node.target))(root))
    with InFloat64():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        return function(*args, **kwargs)


def one_line(error: Exception) -> str:
    """Write what an exception says, or its class, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def trace(model: nn.Module, input_shape: Shape, log: Log) -> Traced | None:
    """Trace; a module that cannot be traced is kept whole, to be refused, and the rest is traced again.

    Returns None, with a finding in ``log``, where the model's own forward cannot be traced.
    """
    untraceable: dict[str, str] = {}
    while True:
        tracer = _Tracer(untraceable.keys(), torch.zeros(BATCH, *input_shape, dtype=torch.float64))
        try:
            with InFloat64():
                return Traced(model, tracer.trace(model, _defaults(model)), tracer.places, untraceable)
        except Exception as error:  # whatever the model's own Python code does when it meets symbolic values
            path, reason, line = tracer.path[-1], one_line(error), _user_line(error)
        if type(model) is Program:
            log.refuse_part("operation", f"it fails: {reason}", "check input_shape, or export it again", model.place)
            return None
        problem = f"torch.fx cannot trace it: {reason}{line}"
        if path in ("", *untraceable):
            log.refuse_part("forward", problem, TRACEABLE, path)
            return None
        untraceable[path] = problem


def _defaults(model: nn.Module) -> dict[str, Any] | None:
    """Values of all arguments but the input, where the model gives any."""
    forward = partial(TAUGHT[type(model)], model) if type(model) in TAUGHT else model.forward
    others = list(inspect.signature(forward).parameters.values())[1:]
    return {argument.name: argument.default for argument in others if argument.default != argument.empty} or None


_TELLING = (
    "size", "dim", "ndimension", "numel", "shape", "ndim", "dtype", "device", "is_cuda", "get_device",
    "is_floating_point", "requires_grad",
)  # fmt: skip


class _Proxy(fx.Proxy):
    """A symbolic value that knows its size, so that a forward may compute with sizes and branch on them."""

    sample: Any = None  #: the value for an input of zeros; None where torch could not compute it

    def __getattribute__(self, name: str) -> Any:
        if name in _TELLING:
            sample = object.__getattribute__(self, "sample")
            if isinstance(sample, Tensor):
                return getattr(sample, name)
        return super().__getattribute__(name)

    def __len__(self) -> int:
        return len(self.sample) if isinstance(self.sample, Tensor) else super().__len__()


class _Tracer(fx.Tracer):
    """Traces into everything but torch's own modules, knows every size and whose forward it is in."""

    def __init__(self, opaque: Container[str], sample: Tensor) -> None:
        super().__init__()
        self.opaque = opaque
        self.input: Tensor | None = sample  #: consumed by the first placeholder
        self.path = [""]
        self.taught: set[str] = set()  # paths of modules that users have taught
        self.evaluating = False  # fx catches what modules call and read while it traces, also when a sample is computed
        self.places: dict[fx.Node, Place] = {}
        self.alive: WeakValueDictionary[fx.Node, _Proxy] = WeakValueDictionary()  # a sample lives as long as its proxy

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Trace what stands for the forward of the whole model."""
        if type(self.root) in TAUGHT:
            self.taught.add("")
        return super().create_args_for_root(TAUGHT.get(type(self.root), root_fn), is_module, concrete_args)

    def create_arg(self, a: Any) -> Any:
        """Take what torch takes of NumPy and of its own older types."""
        if isinstance(a, np.generic):
            a = a.item()
        elif isinstance(a, np.ndarray):
            a = torch.from_numpy(a)
        elif isinstance(a, type(torch.FloatTensor)):
            a = named_type(a)
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Keep modules of torch and those that cannot be traced."""
        if module_qualified_name in self.opaque:
            return True
        return type(m) not in TAUGHT and (
            known_class(m) is not None or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Follow the path."""
        if self.evaluating:
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        self.path.append(path)
        if type(m) in TAUGHT:
            self.taught.add(path)
            forward = partial(TAUGHT[type(m)], m)
        result = super().call_module(m, forward, args, kwargs)
        self.path.pop()  # not in a finally: after an exception the path says where it was
        return result

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Give users' own operations tensors, whose values they may read, and all others symbols."""
        if self.evaluating or self.path[-1] in self.taught:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Compute the sample."""
        if type(self.root) is Program:
            self.places[node] = Place(self.root.place, bool(self.root.place))
        else:
            self.places[node] = Place(self.path[-1], self.path[-1] in self.taught)
        proxy = self.alive[node] = _Proxy(node, self)
        self.evaluating = True
        # What cannot be computed has no sizes; the interpreter comes to it again and says why.
        with contextlib.suppress(Exception):
            if node.op == "placeholder":
                proxy.sample, self.input = node.args[0] if self.input is None else self.input, None
            else:
                proxy.sample = evaluate(self.root, node, *map_aggregate((node.args, node.kwargs), self._sample))
        self.evaluating = False
        return proxy

    def _sample(self, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        return evaluate(self.root, value, (), {}) if value.op == "get_attr" else self.alive[value].sample


def _user_line(error: Exception) -> str:
    """Name the last line of the user's own code in a traceback."""
    own = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    lines = [
        f" ({Path(f.filename).name}, line {f.lineno})"
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(own)
    ]
    return lines[-1] if lines else ""
