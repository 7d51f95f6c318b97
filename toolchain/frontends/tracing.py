"""From a model to the graph of its operations, with ``torch.fx``."""

from __future__ import annotations

import builtins
import contextlib
import inspect
import operator
import sys
import traceback
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from sim.network import Shape
from toolchain.frontends.affine import BATCH
from toolchain.frontends.log import Log
from toolchain.frontends.plain import PLAIN_WEIGHTS
from toolchain.frontends.precision import InFloat64, in_float64, named_type
from toolchain.frontends.program import OF_WEIGHTS, Program
from toolchain.frontends.registry import TAUGHT, known_class
from toolchain.frontends.unchanged import unchanged, version

_TORCH = str(Path(torch.__file__).parent)

TRACEABLE = "write its forward without Python control flow on values, and its modules as attributes"


@dataclass(frozen=True)
class Place:
    """Where in a model an operation stands."""

    path: str  #: of the module whose forward calls it, "" for the whole model
    whole: bool  #: whether the module stands for a single operation, so that the path names it


@dataclass(frozen=True)
class Event:
    """A module is entered or left while the model is traced."""

    path: str
    leaves: bool
    values: Any  #: its arguments or what it returns, with nodes for what depends on the model's input or weights
    last: fx.Node  #: the last node before the event


@dataclass(frozen=True, eq=False)
class Traced:
    """A model and the graph of its operations."""

    model: nn.Module
    graph: fx.Graph
    places: dict[fx.Node, Place]
    untraceable: dict[str, str]  #: why, by the path of a module that the graph calls as a whole
    constants: dict[str, Tensor]  #: tensors that no module holds, by the name that the graph gives them
    events: tuple[Event, ...]

    def attribute(self, name: str) -> Any:
        """Return what a ``get_attr`` node gets; floating-point tensors as float64."""
        value = self.constants[name] if name in self.constants else operator.attrgetter(name)(self.model)
        return map_aggregate(value.detach() if isinstance(value, Tensor) else value, in_float64)


def evaluate(root: nn.Module, node: fx.Node, args: Any, kwargs: Any) -> Any:
    """Let torch compute a node that calls something, in float64."""
    with InFloat64():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        function: Any = root.get_submodule(str(node.target)) if node.op == "call_module" else node.target
        return function(*args, **kwargs)


def writes(node: fx.Node) -> bool:
    """Whether a node changes its first argument in place, by its name."""
    if node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator":
        return node.target in IN_PLACE.values() or node.target is operator.setitem
    name = str(getattr(node.target, "__name__", node.target))
    if name.startswith("__"):
        return name in IN_PLACE or name == "__setitem__"
    return node.op in ("call_function", "call_method") and name.endswith("_")


#: Augmented assignments: torch's tensors take them in place.
IN_PLACE = {
    f"__{name}__": getattr(operator, name)
    for name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")
}


VALUES, GROWTH = 1 << 22, 1 << 8  #: of a sample, and relative to the input's; what is larger than both is not kept


def one_line(error: BaseException) -> str:
    """Write what an exception says, or its class, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def trace(model: nn.Module, input_shape: Shape, log: Log, dtype: torch.dtype = torch.float32) -> Traced | None:
    """Trace; a module that cannot be traced is kept whole, to be refused, and the rest is traced again.

    ``dtype`` is what the forward is told that floating-point tensors are. Returns None, with a finding in ``log``,
    where the model's own forward cannot be traced.
    """
    untraceable: dict[str, str] = {}
    while True:
        sample = torch.zeros(BATCH, *input_shape, dtype=torch.float64)
        tracer = _Tracer(model, untraceable.keys(), sample, dtype)
        try:
            with contextlib.ExitStack() as stack:
                stack.enter_context(InFloat64())
                if type(model) is not Program:  # the readers of files look at the values of their constants
                    stack.enter_context(unchanged(model))
                    stack.enter_context(_Creations(tracer))
                    stack.enter_context(_as_tensors())
                graph = tracer.trace(model, _defaults(model))
            return Traced(model, graph, tracer.places, untraceable, tracer.constants, tuple(tracer.events))
        except (Exception, SystemExit) as error:  # whatever the model's own Python does when it meets symbolic values
            path, reason, line = tracer.path[-1], one_line(error), _user_line(error)
        if type(model) is Program:
            first = f"{PLAIN_WEIGHTS}, and" if OF_WEIGHTS in reason else "check input_shape, or"
            log.refuse_part("operation", f"it fails: {reason}", f"{first} export it again", model.place)
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


class _Proxy(fx.Proxy):
    """A symbolic value that knows its size, so that a forward may compute with sizes and branch on them."""

    tracer: _Tracer
    sample: Any = None  #: the value for an input of zeros; None where torch could not compute it
    known = False  #: whether the value does not depend on the input, so that the sample is what it is

    def __getattribute__(self, name: str) -> Any:
        if name in _ASKED:
            sample = object.__getattribute__(self, "sample")
            if isinstance(sample, Tensor):
                if name == "dtype" and sample.is_floating_point():
                    return object.__getattribute__(self, "tracer").dtype
                return getattr(sample, name)
        if name in _READ and object.__getattribute__(self, "known"):
            return getattr(object.__getattribute__(self, "sample"), name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        if isinstance(self.sample, Tensor) and not hasattr(self.sample, name):
            raise AttributeError(f"'Tensor' object has no attribute {name!r}")
        return super().__getattr__(name)

    def __len__(self) -> int:
        return len(self.sample) if isinstance(self.sample, Tensor) else super().__len__()

    def value(self) -> Any:
        """Return the value; raises ``TraceError`` where it depends on the input."""
        if not self.known or self.sample is None:
            raise fx.proxy.TraceError("symbolically traced variables cannot be used as inputs to control flow")
        return self.sample

    def __int__(self) -> int:
        return int(self.value())

    def __float__(self) -> float:
        return float(self.value())

    def __index__(self) -> int:
        return operator.index(self.value())

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})


#: What a symbolic value answers as its sample does, and what it does only where it does not depend on the input.
_ASKED = frozenset(
    [
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "shape",
        "ndim",
        "dtype",
        "device",
        "layout",
        "stride",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "is_cuda",
        "is_sparse",
        "is_quantized",
        "get_device",
        "requires_grad",
    ]
)
_READ = frozenset(("item", "tolist", "numpy", "__array__"))


def _in_place(operation: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operation, (self, other), {})

    return method


for _name, _operation in IN_PLACE.items():  # without them Python takes a += b for a = a + b
    setattr(_Proxy, _name, _in_place(_operation))


@contextlib.contextmanager
def _as_tensors() -> Iterator[None]:
    """Let a forward's ``isinstance`` and ``torch.is_tensor`` take symbolic values for what their samples are.

    Torch's own code is told the truth: it goes on to the memory of what it takes for a tensor. But modules let a
    symbolic value be a buffer.
    """
    true_isinstance, true_is_tensor, true_setattr = builtins.isinstance, torch.is_tensor, nn.Module.__setattr__

    def answer(value: Any, kinds: Any) -> bool:
        if not true_isinstance(value, _Proxy) or sys._getframe(1).f_code.co_filename.startswith((_TORCH, __file__)):
            return true_isinstance(value, kinds)
        return true_isinstance(value.sample, kinds)

    def assign(module: nn.Module, name: str, value: Any) -> None:
        if true_isinstance(value, _Proxy) and name in vars(module).get("_buffers", ()):
            module._buffers[name] = value
        else:
            true_setattr(module, name, value)

    builtins.isinstance = answer
    nn.Module.__setattr__ = assign  # type: ignore[method-assign, assignment]
    torch.is_tensor = lambda obj: true_isinstance(obj.sample if true_isinstance(obj, _Proxy) else obj, Tensor)
    try:
        yield
    finally:
        builtins.isinstance, torch.is_tensor = true_isinstance, true_is_tensor
        nn.Module.__setattr__ = true_setattr  # type: ignore[method-assign]


class _Tracer(fx.Tracer):
    """Traces into everything but torch's own modules, knows every size and whose forward it is in."""

    def __init__(self, root: nn.Module, opaque: Container[str], sample: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.proxy_buffer_attributes = type(root) is not Program
        self.opaque = opaque
        self.dtype = dtype
        self.input: Tensor | None = sample  #: consumed by the first placeholder
        self.limit = max(VALUES, GROWTH * sample.numel())
        self.path = [""]
        self.taught: set[str] = set()  # paths of modules that users have taught
        self.evaluating = False  # fx catches what modules call and read while it traces, also when a sample is computed
        self.places: dict[fx.Node, Place] = {}
        self.events: list[Event] = []
        self.alive: WeakValueDictionary[fx.Node, _Proxy] = WeakValueDictionary()  # a sample lives as long as its proxy
        self.kept: list[_Proxy] = []  # an attribute of a value, as x.T: fx keeps its node alone
        self.constants: dict[str, Tensor] = {}
        #: By the identity of a tensor: its name, the tensor, and its version, which counts changes in place.
        self.names = {
            id(t): (name, t, version(t))
            for name, t in (*root.named_buffers(), *root.named_parameters())
            if isinstance(t, Tensor)
        }
        self.samples: dict[str, Any] = {}  #: of parameters, buffers and constants, which a forward may change in place

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        """Trace what stands for the forward of the whole model."""
        own = vars(self.root).get("forward")
        if type(self.root) in TAUGHT:
            self.taught.add("")
            root_fn = TAUGHT[type(self.root)]
        elif isinstance(own, MethodType) and own.__self__ is self.root:
            root_fn = own.__func__
        return super().create_args_for_root(root_fn, is_module, concrete_args)

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
        self._note(path, False, (args, kwargs))
        self.path.append(path)
        if type(m) in TAUGHT:
            self.taught.add(path)
            forward = partial(TAUGHT[type(m)], m)
        result = super().call_module(m, forward, args, kwargs)
        self.path.pop()  # not in a finally: after an exception the path says where it was
        self._note(path, True, result)
        return result

    def _note(self, path: str, leaves: bool, values: Any) -> None:
        nodes = map_aggregate(values, lambda v: v.node if isinstance(v, fx.Proxy) else v)
        self.events.append(Event(path, leaves, nodes, next(iter(reversed(self.graph.nodes)))))

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Give users' own operations tensors, whose values they may read, and all others symbols."""
        if self.evaluating or self.path[-1] in self.taught or isinstance(attr_val, fx.Proxy):
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_arg(self, a: Any) -> Any:
        """Name every tensor that is not symbolic; one that is changed in place outside the graph gets another name.

        NumPy's numbers and arrays and torch's older names of types are taken as torch takes them.
        """
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, np.generic):
            a = a.item()
        elif isinstance(a, np.ndarray):
            a = torch.from_numpy(a)
        elif isinstance(a, type(torch.FloatTensor)):
            a = named_type(a)
        if not isinstance(a, Tensor):
            return super().create_arg(a)
        return self.create_node("get_attr", self._named(a), (), {})

    def created(self, constant: Tensor) -> fx.Proxy:
        """Return a symbol for a tensor that the forward creates, so that all that happens to it is recorded."""
        return self.create_proxy("get_attr", self._named(constant), (), {})

    def _named(self, tensor: Tensor) -> str:
        name, _, seen = self.names.get(id(tensor), ("", tensor, -1))
        if version(tensor) != seen:
            name = f"constant {len(self.constants)}"
            self.constants[name] = tensor.detach().clone()
            self.names[id(tensor)] = name, tensor, version(tensor)
        return name

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
            elif node.op == "get_attr":
                proxy.sample = self._sample(node)
            else:
                sample = evaluate(self.root, node, *map_aggregate((node.args, node.kwargs), self._sample))
                if not (isinstance(sample, Tensor) and sample.numel() > self.limit):
                    proxy.sample = sample
        self.evaluating = False
        proxy.known = node.op != "placeholder" and all(map(self._known, node.all_input_nodes))
        if node.op == "call_function" and node.target is getattr:
            self.kept.append(proxy)
        if writes(node) and not proxy.known:
            self._forget(node.args[0])
        return proxy

    def _sample(self, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        if value.op != "get_attr":
            proxy = self.alive.get(value)  # an attribute of a symbolic value has no proxy
            return None if proxy is None else proxy.sample
        name = str(value.target)
        if name not in self.samples:
            found = self.constants[name] if name in self.constants else operator.attrgetter(name)(self.root)
            self.samples[name] = map_aggregate(
                found.detach().clone() if isinstance(found, Tensor) else found, in_float64
            )
        return self.samples[name]

    def _known(self, node: fx.Node) -> bool:
        proxy = self.alive.get(node)
        return node.op == "get_attr" or (proxy is not None and proxy.known)

    def _forget(self, changed: Any) -> None:
        """Let nothing that shares memory with a value that is changed in place pass for known."""
        sample = self._sample(changed)
        if isinstance(sample, Tensor):
            place = sample.untyped_storage().data_ptr()
            for other in self.alive.values():
                if isinstance(other.sample, Tensor) and other.sample.untyped_storage().data_ptr() == place:
                    other.known = False

    def to_bool(self, obj: Any) -> bool:
        """Answer for what does not depend on the input."""
        return bool(obj.value()) if isinstance(obj, _Proxy) else super().to_bool(obj)

    def iter(self, obj: Any) -> Iterator[Any]:
        """Iterate over what is known, and over the parts of what is several tensors."""
        several = isinstance(obj, _Proxy) and (isinstance(obj.sample, (tuple, list)) or obj.known)
        return iter([obj[i] for i in range(len(obj.sample))]) if several else super().iter(obj)


class _Creations(TorchFunctionMode):
    """Makes symbols of the tensors that a forward creates."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.tracer.evaluating:
            return func(*args, **(kwargs or {}))
        if func in (torch.is_floating_point, torch.is_complex, torch.numel) and isinstance(args[0], _Proxy):
            return getattr(args[0], func.__name__)()
        result = func(*args, **(kwargs or {}))
        if isinstance(result, fx.Proxy) or not isinstance(result, Tensor):
            return result
        tensors: list[Any] = []
        map_aggregate((args, kwargs or {}), lambda v: tensors.append(v) if isinstance(v, Tensor) else None)
        return result if tensors else self.tracer.created(result)


def _user_line(error: BaseException) -> str:
    """Name the last line of the user's own code in a traceback."""
    own = (_TORCH, str(Path(__file__).parent))
    lines = [
        f" ({Path(f.filename).name}, line {f.lineno})"
        for f in traceback.extract_tb(error.__traceback__)
        if not f.filename.startswith(own)
    ]
    return lines[-1] if lines else ""
