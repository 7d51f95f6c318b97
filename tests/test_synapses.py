"""Whoever interprets a network says in a table what it does with each type of synapse, and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from exporters import netx
from exporters.netx import checks, content
from exporters.nir.graph import NODES
from exporters.placement import load
from exporters.placement.cost import REACH
from exporters.reduction import LEFT
from sim import fast, fixedpoint, reference, stock
from sim.fast import convolution
from sim.network import INPUT, Dense, Edge, Input, Layer, Network, Shape, Synapse, SynapseTable
from sim.on_lava import graph
from toolchain.calibration import fit

ROOT = Path(__file__).parents[1]
#: Every interpreter. A new type of synapse is a dataclass in sim/network.py and an entry in each of these.
TABLES: dict[str, SynapseTable[Any]] = {
    "sim/reference.py": reference.CURRENT,
    "sim/fast/convolution.py": convolution.CURRENT,
    "sim/fixedpoint.py": fixedpoint.EXTREMES,
    "sim/stock.py": stock.CONV_HOLDS,
    "sim/on_lava/graph.py": graph.SYNAPSES,
    "exporters/netx/checks.py": checks.CHECKS,
    "exporters/netx/content.py": content.SYNAPSES,
    "exporters/nir/graph.py": NODES,
    "exporters/reduction.py": LEFT,
    "exporters/placement/cost.py": REACH,
    "exporters/placement/load.py": load.LOADS,
    "toolchain/calibration/fit.py": fit.SYNAPSES,
}
FILES = [path for package in ("sim", "exporters", "toolchain") for path in sorted((ROOT / package).rglob("*.py"))]


@dataclass(frozen=True, eq=False)
class Diagonal:
    """A third type of synapse: each neuron reads the one in its place."""

    weight: np.ndarray

    def output_shape(self, source: Shape) -> Shape:
        return source


def lacking(types: Iterable[type]) -> list[str]:
    return [name for name, table in TABLES.items() for kind in types if kind not in table]


def test_every_table_has_every_type_of_synapse() -> None:
    assert lacking(get_args(Synapse)) == []


def test_a_third_type_is_missed_in_each_table_by_name() -> None:
    assert lacking((*get_args(Synapse), Diagonal)) == list(TABLES)


def test_every_table_of_the_packages_is_listed() -> None:
    assert {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if "SynapseTable[" in path.read_text() and path.name != "network.py"
    } == TABLES.keys()


@pytest.mark.parametrize("name", TABLES)
def test_a_type_that_a_table_lacks_is_refused_with_those_it_knows(name: str) -> None:
    with pytest.raises(TypeError, match="Diagonal is not a synapse; known: Dense, Conv2d"):
        TABLES[name][Diagonal]


def test_a_third_type_takes_no_more_than_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reference.CURRENT, Diagonal, lambda synapse, x: synapse.weight * x)
    monkeypatch.setitem(
        convolution.CURRENT,
        Diagonal,
        lambda synapse, *shapes: convolution.all_to_all(np.diag(synapse.weight.ravel()), *shapes),
    )
    monkeypatch.setitem(
        fixedpoint.EXTREMES,
        Diagonal,
        lambda synapse, layer, low, high: np.sort([synapse.weight * low, synapse.weight * high], axis=0),
    )
    weight = np.array([[[3, -2]]])
    layer = Layer("a", (1, 1, 2), (Edge(INPUT, Diagonal(weight)),), 100, [0], np.zeros((1, 1), int))  # type: ignore[arg-type]
    last = Layer("last", (1,), (Edge("a", Dense([[1, 1]])),), 0, [0], np.zeros((1, 1), int), "readout")
    network = Network(Input((1, 1, 2)), (layer, last), 1)
    for run in (reference.run, fast.run):
        assert run(network, [[[[5, 7]]]]).potentials["a"].tolist() == [[[[[15, -14]]]]]
    assert fixedpoint.worst_case(network, layer) == 3 * 127
    assert [str(f) for f in netx.check(network)] == [
        "a <- input: Diagonal is not a synapse of the format; known: Dense, Conv2d"
    ]


def compared(path: Path) -> set[str]:
    """Names that a file compares types with: ``type(x) is Dense``, ``isinstance(x, Dense)``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Compare):
            names |= {part.id for part in node.comparators if isinstance(part, ast.Name)}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
            names |= {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)}
    return names


def test_no_file_tells_synapses_apart_outside_its_table() -> None:
    kinds = {kind.__name__ for kind in get_args(Synapse)}
    assert {path.name: compared(path) & kinds for path in FILES if compared(path) & kinds} == {}
    assert "FloatDense" in compared(ROOT / "toolchain" / "scales" / "plan.py"), "the walk sees comparisons"
