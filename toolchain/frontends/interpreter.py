"""Interpretation: one pass over a traced model, operation by operation, on affine values."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from toolchain.frontends.advice import LEAVE_OFF, advice, advice_for_gate, kept_without
from toolchain.frontends.affine import (
    BATCH,
    MIXES,
    TERMS,
    UNREACHED,
    Affine,
    Current,
    Turned,
    Unreached,
    Unsupported,
    assembled,
    keep_samples,
)
from toolchain.frontends.log import Log, Row
from toolchain.frontends.operations import FUNCTIONS, METHODS, MODULES
from toolchain.frontends.program import Unknown
from toolchain.frontends.regions import Regions
from toolchain.frontends.registry import Handler, known_class
from toolchain.frontends.tracing import TRACEABLE, Traced, evaluate, one_line, writes


class Interpreter:
    """Carries the values that are still in use from operation to operation."""

    def __init__(self, traced: Traced, log: Log, regions: Regions, leave_off_last: bool = False) -> None:
        self.traced, self.log, self.regions, self.leave_off_last = traced, log, regions, leave_off_last
        self.values: dict[fx.Node, Any] = {}
        self.attributes: dict[str, Any] = {}  #: parameters, buffers and constants, once they are used
        self.reads = Counter(str(node.target) for node in traced.graph.nodes if node.op == "get_attr")  # that follow
        self.last_use = {used: node for node in traced.graph.nodes for used in node.all_input_nodes}

    def run(self, watch: Callable[[fx.Node], None] | None = None) -> None:
        """Interpret every node; what comes of it is in the log and in the regions.

        ``watch`` is called after every node with the values that are still in use.
        """
        for node in self.traced.graph.nodes:
            if node.op == "output":
                self.regions.read_out(map_aggregate(node.args[0], self._lookup))
            else:
                self.values[node] = self._execute(node)
            if watch is not None:
                watch(node)
            for used in node.all_input_nodes:
                if self.last_use[used] is node:
                    del self.values[used]

    def _lookup(self, value: Any) -> Any:
        return self.values[value] if isinstance(value, fx.Node) else value

    def _execute(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            name = str(node.target)
            self.reads[name] -= 1
            if name not in self.attributes:
                self.attributes[name] = self.traced.attribute(name)
            return self.attributes[name]
        args, kwargs = map_aggregate((node.args, node.kwargs), self._lookup)
        operands, unreached = _collect(Affine, args, kwargs), _collect(Unreached, args, kwargs)
        if node.target is operator.getitem and isinstance(args[0], (tuple, list, dict)):
            return args[0][args[1]]
        if not operands and not unreached:
            return self._compute(node, args, kwargs)
        row = self._new_row(node)
        if unreached:
            row.fates[""] = "not reached: what it needs is refused"
            return UNREACHED
        if (terms := sum(len(operand.terms) for operand in operands)) > TERMS:
            self.log.refuse(row, f"it joins {terms} branches since the last activation", f"join {TERMS} at the most")
            return UNREACHED
        try:
            return self._apply(node, row, args, kwargs, operands)
        except Unsupported as error:
            self.log.refuse(row, error.problem, error.remedy)
        for operand in operands:
            for index in operand.rows:
                self.log.rows[index].fates[row.where] = f"blocked by {row.where}"
        return self._after_refusal(node, row, args, kwargs)

    def _placeholder(self, node: fx.Node) -> Any:
        if node.prev.op == "root":
            return self.regions.input
        star = str(node.target).count("*")
        if not node.args and not star:
            self.log.refuse_part(
                "argument",
                "forward needs a second argument",
                "give it a default or wrap the model",
                f"{node.target} of {self.log.model}",
            )
            return UNREACHED
        return node.args[0] if node.args else ((), {})[star - 1]

    def _compute(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        """Let torch compute what does not depend on the input's values."""
        try:
            if writes(node) and isinstance(args[0], Tensor):
                args = (self._moved(args[0]), *args[1:])
            return evaluate(self.traced.model, node, args, kwargs)
        except Exception as error:  # whatever the operation may raise
            self.log.refuse(self._new_row(node), f"it fails: {one_line(error)}", "check that the model runs")
            return UNREACHED

    def _new_row(self, node: fx.Node) -> Row:
        place = self.traced.places[node]
        if node.op == "call_module":
            kind = type(self.traced.model.get_submodule(str(node.target))).__name__
            row = Row(place.path, kind, place.path, f"{place.path} ({kind})")
        else:
            kind, path = _name(node), place.path or self.log.model
            row = Row(path, kind, path if place.whole else node.name, f"{kind} in {path}")
        self.log.rows.append(row)
        return row

    def _apply(self, node: fx.Node, row: Row, args: Any, kwargs: Any, operands: list[Affine]) -> Any:
        if self.leave_off_last and (kept := self._spared(node, args, kwargs)) is not None:
            row.shape, row.fates[""] = operands[0].shape, f"left off: {kept}"

            def answer(logits: Tensor) -> Tensor:
                given = map_aggregate((args, kwargs), lambda v: logits if isinstance(v, Affine) else v)
                return evaluate(self.traced.model, node, *given)

            self.regions.left_off = answer
            return operands[0]
        given = args, kwargs
        handler, args = self._resolve(node, args, kwargs)
        kwargs = {_NUMPY.get(name, name): v for name, v in kwargs.items() if (name, v) != ("out", None)}
        index = len(self.log.rows) - 1
        try:
            arguments = inspect.signature(handler.function).bind(*args, **kwargs).arguments
        except TypeError as error:
            raise Unsupported(
                f"it is called as the importer does not know it: {one_line(error)}", "leave that argument out"
            ) from error
        try:
            if not handler.several and _collect(Affine, tuple(arguments.values())[1:]):
                raise Unsupported("an activation stands where a parameter belongs", "use layers that are linear")
            if any(isinstance(operand, Turned) for operand in operands):
                value = self._follow(node, given, operands)
            else:
                value = handler.function(*args, **kwargs)
            for part in _collect(Affine, value):
                if not isinstance(part, Turned):
                    keep_samples(part.constant)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise Unsupported(
                f"torch refuses it: {one_line(error)}", "check input_shape and the sizes before it"
            ) from error
        rows = frozenset({index}).union(*(operand.rows for operand in operands))

        def traced(part: Affine) -> Affine:
            terms = (replace(t, origin=index) if handler.names and t.origin is None else t for t in part.terms)
            return replace(part, rows=rows, terms=tuple(terms))

        value = map_aggregate(value, lambda part: traced(part) if isinstance(part, Affine) else part)
        row.shape = value.shape if isinstance(value, Affine) else None
        if isinstance(value, Current):
            value = self.regions.spike(value, row)
        if arguments.get("inplace") or writes(node):
            return self._overwrite(node, args[0], value)
        return value

    def _resolve(self, node: fx.Node, args: tuple[Any, ...], kwargs: Any) -> tuple[Handler, tuple[Any, ...]]:
        if node.op == "call_module":
            path = str(node.target)
            module = self.traced.model.get_submodule(path)
            if path in self.traced.untraceable:
                raise Unsupported(self.traced.untraceable[path], TRACEABLE)
            if (kind := known_class(module)) is None:
                raise self._unknown(node, args, kwargs)
            handler, own = MODULES[kind]
            return handler, (*args, *own(module))
        known: Any = FUNCTIONS if node.op == "call_function" else METHODS
        if node.target not in known:
            raise self._unknown(node, args, kwargs)
        return known[node.target], args

    def _follow(self, node: fx.Node, given: Any, operands: list[Affine]) -> Affine:
        """Let torch say what an operation makes of a value whose samples do not lie along the first dimension."""
        if len(operands) != 1 or writes(node):
            raise Unsupported(*MIXES)

        def function(x: Tensor) -> Any:
            args, kwargs = map_aggregate(given, lambda value: x if isinstance(value, Affine) else value)
            return evaluate(self.traced.model, node, args, kwargs)

        return operands[0].mapped(function)

    def _unknown(self, node: fx.Node, args: tuple[Any, ...], kwargs: Any) -> Unsupported:
        name = self._kind(node)
        if (kept := self._spared(node, args, kwargs)) is not None:
            return Unsupported(advice(name)[0], f"{LEAVE_OFF}, {kept}")
        return Unsupported(*(advice_for_gate if any(map(_multiplies, self._users(node))) else advice)(name))

    def _kind(self, node: fx.Node) -> str:
        """Name of a function, or "nn." and the class of a module."""
        if node.op == "call_module":
            return f"nn.{type(self.traced.model.get_submodule(str(node.target))).__name__}"
        return _name(node)

    def _users(self, node: fx.Node) -> list[fx.Node]:
        """Return what a value comes to, at most under another shape."""
        found = []
        for user in node.users:
            shape_only = user.op != "output" and self._kind(user).removeprefix("nn.").lower() in _SHAPES
            found += self._users(user) if shape_only else [user]
        return found

    def _spared(self, node: fx.Node, args: tuple[Any, ...], kwargs: Any) -> str | None:
        """Return what stays the same without an operation that only rewrites the network's answer; None for others."""
        users, kept = self._users(node), kept_without(self._kind(node))
        if kept is None or not users or any(user.op != "output" for user in users) or isinstance(node.target, Unknown):
            return None
        if "softmax" in self._kind(node).lower():
            rank = args[0].constant.dim() if args and isinstance(args[0], Affine) else 0
            if node.op == "call_module":
                dim = getattr(self.traced.model.get_submodule(str(node.target)), "dim", None)
            else:
                dim = kwargs.get("dim", next(iter(args[1:]), None))
            if rank not in (2, 4) or dim not in (None, 1, 1 - rank):
                return None
        return kept

    def _overwrite(self, node: fx.Node, old: Any, new: Affine) -> Affine:
        """Let every name of the memory that is changed in place, also in part, stand for what it holds now."""
        constant = old.constant if isinstance(old, Affine) else old
        if constant.shape != new.constant.shape or not constant.is_floating_point():
            raise Unsupported(
                f"torch refuses it: {tuple(new.constant.shape)} does not fit into {tuple(constant.shape)} of "
                f"{str(constant.dtype).removeprefix('torch.')} in place",
                "write it without inplace",
            )
        try:
            changed = replace(new, constant=self._moved(constant).copy_(new.constant))
        except RuntimeError as error:  # of memory that several values of a tensor share
            raise Unsupported(f"torch refuses it: {one_line(error)}", "write it without inplace") from error

        def renewed(value: Any) -> Any:
            if not isinstance(value, Affine | Tensor):
                return value
            constant = value.constant if isinstance(value, Affine) else value
            if not _shared(constant, changed.constant):
                return value
            if _view(constant) == _view(changed.constant):
                return changed
            places = torch.zeros(_size(constant), dtype=torch.float64)
            places.as_strided(*_view(changed.constant)).copy_(changed.positions())
            taken = places.as_strided(*_view(constant))
            if not taken.any():
                return value
            if isinstance(value, Tensor):
                return replace(assembled(constant, (changed, taken)), rows=changed.rows)
            whole = assembled(constant, (value, value.positions() * (taken == 0)), (changed, taken))
            return replace(whole, rows=value.rows | changed.rows)

        for name, kept in self.attributes.items():
            if self.reads[name]:
                self.attributes[name] = map_aggregate(kept, renewed)
        for other, kept in self.values.items():
            if self.last_use.get(other, node) is not node:
                self.values[other] = map_aggregate(kept, renewed)
        return changed

    def _moved(self, changed: Tensor) -> Tensor:
        """Move all that shares memory with a tensor, and return it: maps made from it keep what it was."""
        memory = changed.untyped_storage().clone()

        def moved(value: Any) -> Any:
            if isinstance(value, Affine):
                return replace(value, constant=moved(value.constant))
            if not isinstance(value, Tensor) or not _shared(value, changed):
                return value
            return value.new_empty(0).set_(memory, value.storage_offset(), value.shape, value.stride())

        self.values = {node: map_aggregate(value, moved) for node, value in self.values.items()}
        self.attributes = {name: map_aggregate(value, moved) for name, value in self.attributes.items()}
        return moved(changed)

    def _after_refusal(self, node: fx.Node, row: Row, args: Any, kwargs: Any) -> Any:
        """Go on with a source of the right shape, so that what follows is examined too."""

        def pretend(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            if value.dim() < 2 or len(value) != BATCH or value.dim() > 4:
                return UNREACHED
            return self.regions.pretend(row.where, tuple(value.shape[1:]))

        try:
            args, kwargs = map_aggregate((args, kwargs), lambda v: v.constant if isinstance(v, Affine) else v)
            result = map_aggregate(evaluate(self.traced.model, node, args, kwargs), pretend)
        except Exception:  # it is refused already; only its shape was wanted
            return UNREACHED
        if isinstance(result, Affine):
            row.shape = result.shape
        return result


#: Operations that change no value, by their names in lower case.
_SHAPES = ("flatten", "squeeze", "unsqueeze", "view", "reshape", "identity")

#: NumPy's names of arguments, which torch's functions take beside their own.
_NUMPY = {"axis": "dim", "keepdims": "keepdim", "x": "input", "a": "input", "x1": "input", "x2": "other"}

_T = TypeVar("_T")


def _collect(kind: type[_T], *containers: Any) -> list[_T]:
    """Find all values of one kind in nested tuples, lists and dicts."""
    found: list[_T] = []
    map_aggregate(containers, lambda value: found.append(value) if isinstance(value, kind) else None)
    return found


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _multiplies(node: fx.Node) -> bool:
    return node.op != "call_module" and _name(node).strip("_") in ("mul", "multiply", "imul", "Mul")


def _view(constant: Tensor) -> tuple[Any, ...]:
    return constant.shape, constant.stride(), constant.storage_offset()


def _size(constant: Tensor) -> int:
    """Count the numbers that the memory of a constant holds."""
    return constant.untyped_storage().nbytes() // constant.element_size()


def _shared(a: Tensor, b: Tensor) -> bool:
    """Whether two constants share memory: torch's own views tell which values of the model do."""
    return a.numel() > 0 and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
