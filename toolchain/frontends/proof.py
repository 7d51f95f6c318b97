"""The proof of an import: the float graph against the model's own forward, on inputs that the importer never saw.

The model runs in its own type, as it is, and where it can in float64, where nothing hides behind rounding. A logit may
differ by ``SAFETY`` standard deviations of the rounding error that it collects on its way through the graph: every sum
of n products adds a variance of ``n * u**2 * sum((w * x)**2)`` for a unit roundoff u, maps pass variances on by their
squared weights and activations no more than they amplify (a staircase all of a step that lies that near). This follows
from the weights and the inputs, not from the order in which a processor adds.

In single precision some neuron of a large quantised network always falls off its step, and what reads it may follow.
There float64 decides, and in its own type the model has to be near the graph on half of the samples.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode

from sim.network import INPUT, Shape
from toolchain.frontends.affine import BATCH, MIXES, Affine
from toolchain.frontends.interpreter import Interpreter
from toolchain.frontends.linear import Chain
from toolchain.frontends.log import Log, Row
from toolchain.frontends.regions import Regions
from toolchain.frontends.registry import TAUGHT
from toolchain.frontends.tracing import Event, Traced, one_line
from toolchain.frontends.unchanged import unchanged
from toolchain.graph import FloatGraph

BATCHES = (5, 3)  #: samples that the model gets at a time: not what the importer computes with
MOST = 24  #: calibration inputs that are looked at
VALUES = 1 << 17  #: numbers in them, beyond the second batch
SAFETY = 16  #: standard deviations of the rounding error that two results may lie apart
FLOOR = 2.0**-20  #: share of the largest logit that never counts as a difference
CEILING = 2.0**-3  #: share of the largest logit that always does, also where the bound says nothing
SINGLE, NEARLY_DOUBLE = 2.0**-24, 2.0**-45  #: unit roundoffs; the second leaves float64 room for a few casts

PLAIN = "compute with torch operations on tensors alone: nothing by type(x), nothing kept from call to call"


@dataclass(frozen=True, eq=False)
class _Seen:
    """A module is entered or left while the user's model runs."""

    path: str
    leaves: bool
    tensors: tuple[Tensor, ...]  #: its arguments, or what it returns, (B, ...)


@dataclass(frozen=True, eq=False)
class _Run:
    """What the model makes of every batch, and of the first one again; or why it fails."""

    dtype: torch.dtype
    logits: tuple[Tensor, ...] = ()  #: float64 (B, ...)
    again: Tensor | None = None
    error: str | None = None


@contextlib.contextmanager
def double_by_default() -> Iterator[None]:
    """Let torch create float64 where no type is named."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True, eq=False)
class _Compared:
    """A batch on the model and on the graph."""

    x: Tensor  #: (B, *model_shape)
    error: float  #: largest difference of a logit, relative to the largest logit
    beyond: Tensor  #: by how much a logit of every sample differs more than it may, float64 (B,)
    half: bool = False  #: whether it is one network as long as half of the samples do not

    @property
    def differs(self) -> bool:
        return bool((self.beyond.median() if self.half else self.beyond.max()) > 0)

    def __lt__(self, other: _Compared) -> bool:
        return (self.differs, self.error) < (other.differs, other.error)


def own_dtype(model: nn.Module) -> torch.dtype:
    """Return the floating-point type of the model's weights."""
    tensors = itertools.chain(model.parameters(), model.buffers())
    return next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)


def prove(model: nn.Module, traced: Traced, regions: Regions, log: Log, samples: Tensor | None) -> float:
    """Compare the layers found with the model; what differs becomes a finding in ``log``.

    ``samples`` are model inputs (B, *model_shape), or None to draw some. Returns the largest difference of a logit,
    relative to the largest logit.
    """
    graph, shape = regions.graph(), tuple(regions.input.shape)
    batches = _batches(shape, samples)
    with unchanged(model):
        for module in model.modules():
            module.training = False
        double, own = _run(model, batches[:2], torch.float64), _run(model, batches, own_dtype(model))
        narrow = torch.finfo(own.dtype).eps > torch.finfo(torch.float32).eps
        if own.error is not None and (double.error is not None or not narrow):  # processors lack operations of 16 bits
            problem = f"it fails on batches of {' and '.join(map(str, BATCHES))} samples: {own.error}"
            log.refuse_part("forward", problem, "let it take any number of samples")
            return math.inf
        # In single precision the model itself decides, be it that it asks for its type. Staircases and narrower types
        # round too coarsely to decide alone.
        coarse = own.error is not None or narrow or _stairs(graph)
        for run in [double, own] if coarse else [own]:
            if run.error is None and (moved := _moved(run)) > FLOOR:
                problem = f"it gives another result at every call, by {_percent(moved)} of the largest logit"
                log.refuse_part("forward", problem, "take out what is random, or what it remembers from call to call")
                return math.inf
        bounds = functools.cache(functools.partial(_expected, regions))
        errors = []
        for run in (own, double):
            if run.error is None:
                roundoff = _roundoff(run.dtype, graph)
                results = zip(batches, run.logits, strict=False)  # float64 takes time: it gets the first two
                falls = _falls(run.dtype, graph) and double.error is None  # else there is nothing that decides
                worst = max(_compared(x, result, *bounds(x, roundoff), falls) for x, result in results)
                if not worst.differs:
                    errors.append(worst.error)
                elif run is own or coarse:
                    _blame(model, traced, regions, log, run, worst)
                    return worst.error
    return errors[-1]


def _batches(shape: Shape, samples: Tensor | None) -> list[Tensor]:
    """Choose inputs, float32 (B, *shape): drawn ones, half of them large, or drawn ones and a spread of the samples."""
    first, second = BATCHES
    drawn = torch.randn(first + second, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    if samples is None:
        return [drawn[:first], 8 * drawn[first:]]
    count = min(len(samples), max(second, min(MOST, VALUES // math.prod(shape))))
    chosen = samples[torch.arange(count) * len(samples) // count].reshape(count, *shape)
    return [part for part in (drawn[:first], chosen[:second], chosen[second:]) if len(part)]


# ---- running the model ----------------------------------------------------------------------------------------------


class _InDouble(TorchFunctionMode):
    """Lets float64 meet the tensors of other types that a forward brings along."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError:
            found: set[torch.dtype] = set()

            def double(value: Any) -> Any:
                if not (isinstance(value, Tensor) and value.is_floating_point()):
                    return value
                found.add(value.dtype)
                return value.double()

            args, kwargs = map_aggregate((args, kwargs or {}), double)
            if len(found) < 2:
                raise
            return func(*args, **kwargs)


class _Caller:
    """Calls a model on copies of its parameters and buffers, which it may change."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype
        self.device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))

        def copied(tensor: Tensor) -> Tensor:
            twin = dtype == torch.float64 and tensor.is_floating_point()
            return tensor.detach().to(torch.float64 if twin else tensor.dtype, copy=True)

        self.tensors: dict[str, Tensor] = {
            name: nn.Parameter(copied(p), requires_grad=p.requires_grad) for name, p in model.named_parameters()
        }
        self.tensors |= {name: copied(buffer) for name, buffer in model.named_buffers()}

    def __call__(self, x: Tensor) -> Tensor:
        """Return the logits of model inputs (B, *model_shape), float64."""
        x = x.to(self.device, self.dtype, copy=True)
        with contextlib.ExitStack() as stack:
            if self.dtype == torch.float64:
                stack.enter_context(double_by_default())
                stack.enter_context(_InDouble())
            result = functional_call(self.model, self.tensors, (x,))
        if not isinstance(result, Tensor):
            raise TypeError(f"it returns a {type(result).__name__}")
        return result.detach().cpu().double()


def _run(model: nn.Module, batches: Sequence[Tensor], dtype: torch.dtype) -> _Run:
    try:
        call = _Caller(model, dtype)
        return _Run(dtype, tuple(map(call, batches)), call(batches[0]))
    except Exception as error:  # whatever the model's own code may raise
        return _Run(dtype, error=one_line(error))


def _expected(regions: Regions, x: Tensor, roundoff: float) -> tuple[Tensor, Tensor]:
    """Return the model's outputs as the graph has them, and how far rounding may move each."""
    logits, tolerance = _bounds(regions.graph(), x, roundoff)
    if regions.left_off is None:
        return logits, tolerance
    # A softmax or sigmoid moves no output by more than twice what a logit moves.
    logits = regions.left_off(logits)
    widest = 2 * tolerance.flatten(1).amax(1)
    return logits, widest.reshape(-1, *(1,) * (logits.dim() - 1)).expand(logits.shape)


def _moved(run: _Run) -> float:
    """How far a second call lies from the first, relative to the largest logit."""
    assert run.again is not None
    return _relative(_difference(run.again, run.logits[0]), run.logits[0])


def _compared(x: Tensor, result: Tensor, logits: Tensor, tolerance: Tensor, falls: bool) -> _Compared:
    difference = _difference(result, logits)
    allowed = CEILING * logits.abs().max() if falls else tolerance
    return _Compared(x, _relative(difference, logits), (difference - allowed).flatten(1).amax(1), falls)


def _percent(error: float) -> str:
    return f"{100 * error:.2g} %" if math.isfinite(error) else "all"


def _relative(difference: Tensor, logits: Tensor) -> float:
    return float(difference.max() / logits.abs().max().clamp_min(torch.finfo(torch.float64).tiny))


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Magnitudes of differences, infinite where there is none to take."""
    if a.shape != b.shape:
        return torch.full_like(b, math.inf)
    return (a - b).abs().nan_to_num(math.inf, math.inf)


# ---- what rounding may do -------------------------------------------------------------------------------------------


def _stairs(graph: FloatGraph) -> bool:
    return any(layer.levels for layer in graph.layers)


def _falls(dtype: torch.dtype, graph: FloatGraph) -> bool:
    """Whether rounding makes neurons fall off the steps of their activations."""
    return dtype != torch.float64 and _stairs(graph)


def _roundoff(dtype: torch.dtype, graph: FloatGraph) -> float:
    if dtype == torch.float64:  # a forward may cast to float32; a staircase turns its rounding into steps
        return NEARLY_DOUBLE if _stairs(graph) else SINGLE
    return max(torch.finfo(dtype).eps / 2, SINGLE)


@double_by_default()
def _bounds(graph: FloatGraph, x: Tensor, roundoff: float) -> tuple[Tensor, Tensor]:
    """Logits, float64 (B, ...), and how far rounding may move each (see the module's docstring)."""
    values = {INPUT: graph.arrange(x.double()).reshape(-1, *graph.input_shape)}
    deviations = {INPUT: torch.zeros_like(values[INPUT])}
    last = {edge.source: layer.name for layer in graph.layers for edge in layer.edges}
    for layer in graph.layers:
        current = graph.current(layer, values)
        count = 1 + sum(edge.map.weight[0].numel() for edge in layer.edges)
        bias = replace(layer, edges=())
        variance = count * (roundoff * graph.current(bias, {})) ** 2
        for edge in layer.edges:
            terms = deviations[edge.source] ** 2 + count * (roundoff * values[edge.source]) ** 2
            squared = replace(edge.map, weight=edge.map.weight**2)
            variance = variance + squared(terms).reshape(-1, *layer.shape)
        spread = SAFETY * variance.sqrt()
        value = layer.activate(current)
        sides = [(layer.activate(current + sign * spread) - value).abs() for sign in (1, -1)]
        values[layer.name], deviations[layer.name] = value, torch.maximum(*sides) / SAFETY
        for source in {edge.source for edge in layer.edges if last[edge.source] == layer.name}:
            del values[source], deviations[source]
    logits, largest = value, value.abs().max()
    return logits, (SAFETY * deviations[layer.name]).clamp(FLOOR * largest, CEILING * largest)


# ---- where they part ------------------------------------------------------------------------------------------------


def _blame(model: nn.Module, traced: Traced, regions: Regions, log: Log, run: _Run, worst: _Compared) -> None:
    """Add the finding: the first module where the model and its graph part, and the reason if one can be told."""
    in_double = _differs(model, regions, worst.x, torch.float64)
    dtype = torch.float64 if in_double else run.dtype  # where it differs in both, rounding hides less in float64
    path, what = _parting(model, traced, regions, log, worst.x, dtype)
    pair = worst.x[worst.beyond.topk(min(BATCH, len(worst.x))).indices]
    if _differs(model, regions, pair, dtype) is False:
        reason, remedy = "its result depends on the number of samples", MIXES[1]
    elif path and type(model.get_submodule(path)) in TAUGHT:
        reason = "the function that stands for it computes something else than its forward"
        remedy = "let the function given to ann2loihi.operation compute what forward does in eval mode"
    elif in_double is False:
        reason = f"in {str(dtype).removeprefix('torch.')} it computes something else than in float64"
        remedy = "let nothing depend on the type of the numbers"
    else:
        reason, remedy = "it computes something else than the importer sees", PLAIN
    where = f"{path} ({type(model.get_submodule(path)).__name__})" if path else log.model
    problem = f"{reason}{what}: the network would be off by {_percent(worst.error)} of the largest logit"
    row = next((row for row in log.rows if row.where == where), None)
    log.refuse(row or Row(path or log.model, "forward", where, where), problem, remedy)


def _differs(model: nn.Module, regions: Regions, x: Tensor, dtype: torch.dtype) -> bool | None:
    """Whether the graph differs from what the model makes of one batch; None where its forward fails."""
    run, graph = _run(model, [x], dtype), regions.graph()
    if run.error is not None:
        return None
    expected = _expected(regions, x, _roundoff(dtype, graph))
    return _compared(x, run.logits[0], *expected, _falls(dtype, graph)).differs


def _watched(model: nn.Module, x: Tensor, dtype: torch.dtype) -> list[_Seen]:
    """Run the model and note what every module gets and returns; :func:`unchanged` takes the hooks away."""
    seen: list[_Seen] = []

    def note(path: str, leaves: bool, values: Any) -> None:
        tensors = tuple(v.detach().cpu().to(torch.float64, copy=True) for v in _leaves(values, Tensor))
        seen.append(_Seen(path, leaves, tensors))

    def hooked(module: nn.Module, path: str) -> None:
        module.register_forward_pre_hook(lambda m, args, kwargs: note(path, False, (args, kwargs)), with_kwargs=True)
        module.register_forward_hook(lambda m, args, result: note(path, True, result))

    for path, module in model.named_modules():
        if path:
            hooked(module, path)
    with contextlib.suppress(Exception):  # a forward that fails now and then
        _Caller(model, dtype)(x)
    return seen


def _leaves(values: Any, *kinds: type) -> list[Any]:
    found: list[Any] = []
    map_aggregate(values, lambda value: found.append(value) if isinstance(value, kinds) else None)
    return found


def _parting(
    model: nn.Module, traced: Traced, regions: Regions, log: Log, x: Tensor, dtype: torch.dtype
) -> tuple[str, str]:
    """Find the module where they part, "" for the whole model, and say between which calls of others."""
    paths = {event.path for event in traced.events}
    theirs = iter([event for event in _watched(model, x, dtype) if event.path in paths])
    tolerance = 2.0**-20 if dtype == torch.float64 else 2.0**-12
    inside: list[str] = [""]
    found: list[tuple[str, str]] = []

    def compare(event: Event, values: Sequence[Any]) -> None:
        other = next(theirs, None)
        if found:
            return
        if other is None or (other.path, other.leaves) != (event.path, event.leaves):
            found.append((inside[-1], f", and does not call {event.path} at the same time"))
        elif len(values) == len(other.tensors) and all(map(close, values, other.tensors)):
            if event.leaves:
                inside.pop()
            else:
                inside.append(event.path)
        else:
            found.append((event.path, "") if event.leaves else (inside[-1], f", before it calls {event.path}"))

    def close(mine: Any, their: Tensor) -> bool:
        if mine is None:  # not in use any more
            return True
        return bool((_difference(mine, their) <= tolerance * their.abs().max()).all())

    _replay(traced, regions, log, x.double(), compare)
    return found[0] if found else ("", "")


@double_by_default()
def _replay(
    traced: Traced, regions: Regions, log: Log, x: Tensor, compare: Callable[[Event, Sequence[Any]], None]
) -> None:
    """Interpret the model anew, and compare at every event what its values are for model inputs."""
    new = Regions(regions.input.shape, Log(log.model), regions.limit)
    interpreter = Interpreter(traced, new.log, new)
    pending: dict[fx.Node, list[Event]] = defaultdict(list)
    for event in traced.events:
        pending[event.last].append(event)
    activations = {INPUT: x.reshape(-1, *new.shapes[INPUT])}

    def computed(node: fx.Node) -> Any:
        def at(value: Any) -> Any:
            if not isinstance(value, Affine):
                return value
            whole = value.constant[:1].expand(len(x), *value.shape)
            for term in value.terms:
                whole = whole + _through(term.chain, activations[term.source]).reshape(whole.shape)
            return whole

        return map_aggregate(interpreter.values.get(node), at)

    def watch(node: fx.Node) -> None:
        graph = new.graph()
        for layer in graph.layers:
            if layer.kind == "spiking" and layer.name not in activations:
                current = graph.current(layer, activations)
                for chain in new.reads[layer.name].chains if layer.name in new.reads else ():
                    current = current + _through(chain, activations[INPUT]).reshape(-1, *layer.shape)
                activations[layer.name] = layer.activate(current)
        for event in pending[node]:
            values = map_aggregate(event.values, lambda v: computed(v) if isinstance(v, fx.Node) else v)
            compare(event, _leaves(values, Tensor))

    interpreter.run(watch)


def _through(chain: Chain, x: Tensor) -> Tensor:
    x = x.reshape(len(x), *x.shape[1:], *(1,) * (4 - x.dim()))
    for step in chain:
        x = step(x)
    return x
