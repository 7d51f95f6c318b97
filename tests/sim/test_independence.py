"""The definition and the engine that users run meet in data only, or comparing them would prove little."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
from collections.abc import Iterable
from types import ModuleType
from typing import Any, get_origin

import numpy as np
import pytest

from sim import fast, fixedpoint, reference
from sim.fast import population
from sim.network import INPUT, Dense, Edge, Input, Layer, Network
from sim.trace import first_difference

#: Functions that decide nothing: they say no, and how far the work is.
TELLING = {
    ("sim.arguments", "checked"),
    ("sim.findings", "refuse"),
    ("sim.progress", "counting"),
    ("sim.progress", "track"),
}


def imports(module: ModuleType) -> set[tuple[str, str]]:
    """Every name that a module imports from our packages, with the module that it comes from."""
    return {
        (node.module or "", alias.name)
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("sim")
        for alias in node.names
    }


def is_data(thing: Any) -> bool:
    """Whether it is a constant, a type's other name, a data class, a table or an exception: nothing that computes."""
    if isinstance(thing, type) and get_origin(thing) is None:
        return dataclasses.is_dataclass(thing) or issubclass(thing, Exception | dict)
    return not inspect.ismodule(thing) and not inspect.isfunction(thing)


def computing(names: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    return {
        (module, name)
        for module, name in names
        if (module, name) not in TELLING and not is_data(getattr(importlib.import_module(module), name))
    }


def test_the_reference_takes_nothing_that_computes_from_anywhere() -> None:
    assert computing(imports(reference)) == set()


def test_the_walk_sees_what_computes() -> None:
    assert {("sim.fixedpoint", "Registers"), ("sim.fixedpoint", "shift")} <= computing(imports(population))
    assert computing({("sim", "fast"), ("sim.fixedpoint", "RegisterOverflow")}) == {("sim", "fast")}


def overflowing() -> tuple[Network, np.ndarray]:
    """One neuron that gets -127 * 127 shifted right by one, -8065, a step: beyond -2**17 after 17 steps."""
    steps = np.zeros((20, 1), int)
    layer = Layer("a", (1,), (Edge(INPUT, Dense([[127]]), -1),), 5, [0], steps)
    last = Layer("last", (1,), (Edge("a", Dense([[1]])),), 0, [0], steps, "readout")
    return Network(Input((1,)), (layer, last), 20), np.array([[-127]])


def test_both_count_and_remember_the_same_overflows() -> None:
    network, payload = overflowing()
    for run in (reference.run, fast.run):
        trace = run(network, payload, overflow="count")
        assert trace.overflows == 2 * (20 - 16)  # v and u, which are equal here: 16 * 8065 = 129,040 still fits
        assert trace.peak == {"a": 20 * 8065, "last": 0}


@pytest.mark.parametrize("options", [{}, {"batch": 2}])
def test_both_name_the_samples_that_leave_the_registers(options: dict[str, int]) -> None:
    network, _ = overflowing()
    payload = np.array([[0], [-127], [5], [-102], [-104], [0], [-127]])  # -104: 20 * (-104 * 127 >> 1) = -132,080
    traces = reference.run(network, payload, overflow="count"), fast.run(network, payload, overflow="count", **options)
    for trace in traces:
        assert trace.overflowed == {1, 4, 6}


def test_a_fault_in_the_watch_or_the_shift_of_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    network, payload = overflowing()
    expected = reference.run(network, payload, overflow="count")
    monkeypatch.setattr(fast.engine, "compiler", lambda _: False)
    with monkeypatch.context() as patch:
        patch.setattr(fixedpoint.Registers, "beyond", lambda *_: None)
        assert fast.run(network, payload, overflow="count").overflows != expected.overflows
    with monkeypatch.context() as patch:
        patch.setattr(population, "shift", lambda current, exponent: (current / 2**-exponent).to(current.dtype))
        assert first_difference(expected, fast.run(network, payload, overflow="count")) is not None
