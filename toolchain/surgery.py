"""Changes to a model that make it convertible and call for fine-tuning."""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn import functional

from sim.arguments import Count, checked, shown
from sim.findings import Finding, Refused, refuse
from sim.network import Shape
from toolchain.frontends.plain import copied, unwrapped
from toolchain.graph.activations import NQ, QCFS, RNL, TCL, SlipReLU, TReLU
from toolchain.scales import thresholds

#: By exact type: what averages where the module takes the maximum.
_AVERAGES: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    nn.MaxPool1d: lambda m: nn.AvgPool1d(m.kernel_size, m.stride, m.padding, m.ceil_mode),
    nn.MaxPool2d: lambda m: nn.AvgPool2d(m.kernel_size, m.stride, m.padding, m.ceil_mode),
    nn.AdaptiveMaxPool1d: lambda m: nn.AdaptiveAvgPool1d(m.output_size),
    nn.AdaptiveMaxPool2d: lambda m: nn.AdaptiveAvgPool2d(m.output_size),
}


@checked
def replace_max_pooling(model: nn.Module) -> nn.Module:
    """Return a copy in which every module that pools by the maximum averages, with the same kernel, stride and padding.

    These are ``nn.MaxPool1d`` and ``2d``, and their adaptive forms; what a forward calls as a function is its author's
    to change. The copy computes something else than the model: fine-tune it before converting. A ReLU follows a pooling
    that pads, since with a padded convolution behind it, it would be no convolution but an enormous matrix: it becomes
    a spiking layer of its own. Raises :class:`sim.findings.Refused` for every pooling that is dilated or returns
    indices, which no average pooling is.
    """
    found = {path: module for path, module in model.named_modules() if type(module) in _AVERAGES}
    findings = [
        Finding(path or type(model).__name__, problem, "use a convolution with a stride, and fine-tune")
        for path, m in found.items()
        for dilation in (getattr(m, "dilation", 1),)
        for refused, problem in (
            (np.any(np.not_equal(dilation, 1)), f"has dilation {dilation}, average pooling has none"),
            (m.return_indices, "returns indices, average pooling has none"),
        )
        if refused
    ]
    if findings:
        raise Refused(findings)

    def average(m: Any) -> nn.Module:
        pooling = _AVERAGES[type(m)](m)
        return (nn.Sequential(pooling, nn.ReLU()) if np.any(getattr(m, "padding", 0)) else pooling).train(m.training)

    return copied(model, {id(m): average(m) for m in found.values()})


ActivationName = Literal["nq", "qcfs", "sliprelu", "tcl", "rnl", "trelu"]

#: By name: the activation made of levels and a threshold.
ACTIVATIONS: dict[ActivationName, Callable[[int, Any], nn.Module]] = {
    "nq": NQ,
    "qcfs": QCFS,
    "sliprelu": SlipReLU,
    "tcl": lambda _, threshold: TCL(threshold),
    "rnl": lambda _, threshold: RNL(threshold),
    "trelu": lambda _, threshold: TReLU(threshold),
}
#: Those whose neurons take a given number of steps.
QUANTISED = ("nq", "qcfs", "sliprelu")

RECORD = "ann2loihi"  #: key of what a checkpoint says about replaced activations

_UNTOUCHED = 8.0  #: threshold until weights are loaded
_MODULES = (nn.ReLU, nn.ReLU6)
_FUNCTIONS = (functional.relu, functional.relu_, functional.relu6, torch.relu, torch.relu_)
_METHODS = ("relu", "relu_")
_DROPOUTS: dict[Any, type[nn.Module]] = {
    functional.dropout: nn.Dropout,
    functional.dropout1d: nn.Dropout1d,
    functional.dropout2d: nn.Dropout2d,
    functional.dropout3d: nn.Dropout3d,
    functional.alpha_dropout: nn.AlphaDropout,
    functional.feature_alpha_dropout: nn.FeatureAlphaDropout,
    torch.dropout: nn.Dropout,
    torch.alpha_dropout: nn.AlphaDropout,
    torch.feature_alpha_dropout: nn.FeatureAlphaDropout,
}


@checked
def replace_activations(
    model: nn.Module,
    activation: ActivationName,
    *,
    levels: Count = 4,
    sample: Tensor,
    per_channel: bool = False,
) -> fx.GraphModule:
    """Return a copy in which an activation of the conversion papers stands for every ReLU, whatever calls it.

    That is every call of ``nn.ReLU``, ``nn.ReLU6``, ``torch.nn.functional.relu`` and its like: a module that is called
    several times becomes as many, each with a threshold of its own. The copy is a ``torch.fx.GraphModule`` with the
    model's modules and parameters under their names, in the mode that the model is in, for inputs of the sample's
    size. ``sample`` are model inputs (B, ...), on which each threshold is set: for activations that take steps to
    where ``levels`` of them err least (:func:`toolchain.scales.thresholds.choose`), for others to the largest value;
    one for the layer, or with ``per_channel`` one for each channel. Raises :class:`sim.findings.Refused` for a model
    that torch.fx cannot trace, or that has no ReLU.
    """
    if activation not in ACTIVATIONS:
        raise refuse("activation", f"unknown value {activation!r}", f"use one of {', '.join(ACTIVATIONS)}")
    if sample.ndim < 2 or not sample.numel() or not sample.is_floating_point() or not sample.isfinite().all():
        raise refuse("sample", shown(sample), "give model inputs (B, ...), finite floating-point numbers")
    replaced, found = _traced(model, tuple(sample.shape[1:]))
    rule = "mse" if activation in QUANTISED else "max"
    for (node, path), theta in zip(
        found.items(), _chosen(replaced, list(found), sample, rule, levels, per_channel), strict=True
    ):
        _put(replaced, node, path, ACTIVATIONS[activation](levels, theta))
    return _finished(replaced)


def _traced(model: nn.Module, shape: Shape) -> tuple[fx.GraphModule, dict[fx.Node, str]]:
    """Copy and trace a model for inputs (B, *shape): its calls of a ReLU, and a path for what takes their place."""
    model = unwrapped(model)
    name = type(model).__name__
    try:
        graph = _Tracer(shape).trace(model)
    except Refused:
        raise
    except Exception as error:  # whatever the user's own forward does with symbolic values
        problem = f"torch.fx cannot trace its forward: {' '.join(str(error).split())}"
        raise refuse(name, problem, "write it without control flow on values") from error
    traced = fx.GraphModule(copied(model), graph, name)
    traced.train(model.training)
    found = [node for node in graph.nodes if _rectifies(traced, node)]
    if not found:
        raise refuse(name, "has no ReLU", "nothing is to be replaced; train it as it is")
    return traced, dict(zip(found, _paths(traced, found), strict=True))


def _finished(replaced: fx.GraphModule) -> fx.GraphModule:
    _keep_dropout(replaced)
    for node in replaced.graph.nodes:
        node.type = None  # TorchScript knows no names of the file that the forward came from
    replaced.graph.lint()
    replaced.delete_all_unused_submodules()
    replaced.recompile()
    return replaced


def is_activation(module: nn.Module) -> bool:
    """Whether a module is one of the papers' activations."""
    return type(module) in (NQ, QCFS, SlipReLU, TCL, RNL, TReLU)


@checked
def record(activation: ActivationName, levels: Count, shape: Shape) -> dict[str, Any]:
    """Describe activations that were replaced for inputs (B, *shape), as checkpoints hold it under :data:`RECORD`."""
    return {"activation": activation, "levels": levels, "input_shape": list(shape)}


def repeated(model: nn.Module, recorded: Any, state: Mapping[str, Any]) -> fx.GraphModule:
    """Replace a model's activations as a checkpoint's :func:`record` says, with thresholds as in its ``state``.

    Raises :class:`Refused` for a record that says something else.
    """
    try:
        kind, levels = ACTIVATIONS[recorded["activation"]], int(recorded["levels"])
        replaced, found = _traced(model, tuple(int(size) for size in recorded["input_shape"]))
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, Refused):
            raise
        raise refuse(RECORD, "says nothing known of activations", "train again, or take the key out") from error
    for node, path in found.items():
        theta = state.get(f"{path}.threshold", state.get(f"{path}.maximum"))
        _put(replaced, node, path, kind(levels, theta if isinstance(theta, Tensor) else _UNTOUCHED))
    return _finished(replaced)


class _Sized(fx.Proxy):
    """A symbolic value that knows its size, but for the number of samples, as a forward may compute with sizes."""

    known: Any = None  #: of the same shape, on no device; None where torch could not tell

    @property
    def shape(self) -> Any:
        """Sizes: the first symbolic, the others numbers."""
        return self.size()

    @property
    def ndim(self) -> Any:
        """Number of dimensions."""
        return self.dim()

    def dim(self) -> Any:
        """Return the number of dimensions."""
        return self.known.dim() if isinstance(self.known, Tensor) else super().__getattr__("dim")()

    def size(self, dim: int | None = None) -> Any:
        """Return the sizes, or one of them."""
        ask = super().__getattr__("size")
        if not isinstance(self.known, Tensor):
            return ask() if dim is None else ask(dim)
        sizes = (ask(0), *self.known.shape[1:])
        return sizes if dim is None else sizes[dim]

    def __len__(self) -> int:
        return len(self.known) if isinstance(self.known, tuple | list) else super().__len__()


class _Tracer(fx.Tracer):
    """Traces for inputs (B, *shape) with proxies that know their size."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.sample: Tensor | None = torch.empty(2, *shape, device="meta")  # of the first placeholder

    def trace(self, root: Any, concrete_args: Any = None) -> fx.Graph:
        """Trace a module."""
        self.shadow = copied(root).to("meta").eval()
        return super().trace(root, concrete_args)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node."""
        return _Sized(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Create a node and find out the size of its value."""
        made = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if isinstance(made, _Sized):
            try:
                made.known = self._shaped(kind, target, args, kwargs)
            except Exception:  # whatever torch cannot compute without values: no size is known
                made.known = None
        return made

    def _shaped(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            found, self.sample = self.sample, None
            return found
        if kind == "get_attr":
            return operator.attrgetter(target)(self.shadow)
        args, kwargs = map_aggregate((args, kwargs), lambda v: v.known if isinstance(v, _Sized) else v)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        # What calls modules is replaced while the model is traced.
        return (self.shadow.get_submodule(target).forward if kind == "call_module" else target)(*args, **kwargs)


def _rectifies(model: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls a ReLU."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))) in _MODULES
    return node.target in {"call_function": _FUNCTIONS, "call_method": _METHODS}.get(node.op, ())


def _paths(model: fx.GraphModule, nodes: Sequence[fx.Node]) -> list[str]:
    """Name the new modules: as the module that is called once, or "relu" in the module whose forward calls."""
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    taken = {path for path, _ in model.named_modules()}
    paths = []
    for node in nodes:
        path = str(node.target)
        if node.op != "call_module" or calls[path] > 1:
            # A module's own call is the last in the stack of its node; what a forward calls stands in that forward.
            stack = [str(place[0]) for place in (node.meta.get("nn_module_stack") or {}).values()]
            owner = path.rpartition(".")[0] if node.op == "call_module" else stack[-1] if stack else ""
            base = f"{owner}.relu" if owner else "relu"
            path = next(name for n in count() if (name := base + (f"_{n}" if n else "")) not in taken)
        taken.add(path)
        paths.append(path)
    return paths


def _chosen(
    model: fx.GraphModule, nodes: Sequence[fx.Node], sample: Tensor, rule: str, levels: int, per_channel: bool
) -> list[Tensor]:
    """Thresholds of a rule, () or (C, 1, ...), for what every node emits on model inputs (B, ...), in eval mode."""
    found: dict[fx.Node, Tensor] = {}
    wanted = set(nodes)

    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted:
                values = value.detach().float().cpu()
                values = values if per_channel else values.reshape(-1, 1)
                theta = thresholds.choose(rule, values, levels)
                found[n] = theta.reshape(-1, *(1,) * (value.ndim - 2)) if per_channel else theta[0]
            return value

    place = next(model.parameters(), sample).device
    with torch.no_grad():
        watched = copy.deepcopy(model).eval()
        for module in watched.modules():
            if getattr(module, "num_batches_tracked", None) == 0:
                module.train()  # a norm that has no statistics yet: those of the sample
        try:
            Watch(watched, graph=model.graph).run(sample.to(place))
        except Exception as error:  # whatever the model's own operations raise
            problem = f"the model fails on inputs of shape {tuple(sample.shape[1:])}: {' '.join(str(error).split())}"
            raise refuse("sample", problem[:300], "give inputs as the model takes them") from error
    return [found[node] for node in nodes]


def _put(model: fx.GraphModule, node: fx.Node, path: str, module: nn.Module) -> None:
    """Call a new module in the place of a node."""
    value = node.args[0] if node.args else node.kwargs["input"]
    assert isinstance(value, fx.Node)
    inplace = _inplace(model, node)
    place = next(model.parameters(), None)
    model.add_submodule(path, module.to(place.device if place is not None else "cpu").train(model.training))
    with model.graph.inserting_after(node):
        new = model.graph.call_module(path, (value,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    if inplace:  # what is called by the old name later has been rectified, too
        order = {n: i for i, n in enumerate(model.graph.nodes)}
        value.replace_all_uses_with(new, lambda user: order[user] > order[new])
    model.graph.erase_node(node)


def _inplace(model: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(model.get_submodule(str(node.target)).inplace)
    name = str(getattr(node.target, "__name__", node.target))
    given = node.kwargs.get("inplace", node.args[1] if len(node.args) > 1 else False)
    return name.endswith("_") or bool(given)


def _keep_dropout(model: fx.GraphModule) -> None:
    """Let functional dropout, of which a trace knows one mode only, follow the mode of the model."""
    for node in list(model.graph.nodes):
        if node.op == "call_function" and node.target in _DROPOUTS:
            given = dict(zip(("input", "p", "training"), node.args, strict=False)) | node.kwargs
            path = f"{node.name}_module"
            model.add_submodule(path, _DROPOUTS[node.target](given.get("p", 0.5)).train(model.training))
            with model.graph.inserting_after(node):
                new = model.graph.call_module(path, (given["input"],))
            node.replace_all_uses_with(new)
            model.graph.erase_node(node)
