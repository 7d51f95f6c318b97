"""The house has floors and its imports only point down; Lava is a guest that the rest does without."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {"sim": set(), "exporters": {"sim"}, "toolchain": {"sim", "exporters"}}
FILES = [path for package in FLOORS for path in sorted((ROOT / package).rglob("*.py"))]
#: The rooms of toolchain, from the ground up: a room knows what lies below it.
ROOMS = (
    {"graph", "recipe", "inputs"},
    {"frontends", "task"},
    {"scales"},
    {"surgery"},
    {"loading", "calibration"},
    {"data"},
    {"convert"},
    {"assessment"},
    {"auto", "demo", "training"},
    {"app"},
)
RANK = {name: rank for rank, floor in enumerate(ROOMS) for name in floor}
TOOLCHAIN = sorted((ROOT / "toolchain").rglob("*.py"))
FRONT_ENDS = sorted((ROOT / "toolchain" / "frontends").rglob("*.py"))
#: The only files that may import Lava at all; only process files in sim/lava may do so when they are imported.
LAVA = {f"sim/on_lava/{name}.py" for name in ("graph", "loihi2", "runtime", "stepped")} | {"exporters/netx/loader.py"}


@functools.cache
def imports(path: Path) -> list[tuple[str, bool]]:
    """Dotted names of what is imported, each with whether the import runs when the file is imported."""
    tree = ast.parse(path.read_text())
    lazy = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)}
    lazy |= {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and getattr(branch.test, "id", "") == "TYPE_CHECKING"
        for node in ast.walk(branch)
    }
    found = []
    for node in ast.walk(tree):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else ([f"{node.module}.{a.name}" for a in node.names] if isinstance(node, ast.ImportFrom) else [])
        )
        found += [(name, node not in lazy) for name in names]
    return found


def package(name: str) -> str:
    return name.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_only_point_down(path: Path) -> None:
    own = path.relative_to(ROOT).parts[0]
    ours = {package(name) for name, _ in imports(path)} & FLOORS.keys()
    assert ours <= FLOORS[own] | {own}


@pytest.mark.parametrize("path", TOOLCHAIN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_inside_toolchain_imports_point_down_too(path: Path) -> None:
    own = room(path.relative_to(ROOT).with_suffix("").parts)
    below = {name for name, rank in RANK.items() if own and rank < RANK[own]}
    used = {room(tuple(name.split("."))) for name, _ in imports(path) if package(name) == "toolchain"} - {own, ""}
    assert used <= below


def room(parts: tuple[str, ...]) -> str:
    """The file or folder of toolchain that a dotted name leads into."""
    return parts[1] if parts[1:] and parts[1] != "__init__" else ""


def test_the_floors_of_toolchain_are_its_rooms() -> None:
    found = {path.stem for path in (ROOT / "toolchain").iterdir() if path.suffix == ".py" and path.stem != "__init__"}
    found |= {path.parent.name for path in (ROOT / "toolchain").glob("*/__init__.py")}
    assert found == RANK.keys()


@pytest.mark.parametrize("path", FRONT_ENDS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_front_ends_know_the_float_graph_and_nothing_of_the_pipeline(path: Path) -> None:
    ours = {name for name, _ in imports(path) if package(name) in FLOORS}
    known = ("sim.", "toolchain.frontends.", "toolchain.graph.")
    assert not {name for name in ours if not name.startswith(known)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_lava_is_imported_by_the_files_that_are_about_it(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("sim/lava/"):
        return
    uses = [eager for imported, eager in imports(path) if package(imported) == "lava"]
    assert not uses or name in LAVA
    assert not any(uses), "Lava must be imported inside functions here"


def test_the_walk_sees_imports() -> None:
    assert ("numpy", True) in imports(ROOT / "sim" / "network.py")
    assert any(package(name) == "lava" for path in (ROOT / "sim" / "lava").glob("*.py") for name, _ in imports(path))


def test_everything_loads_without_lava_nir_and_onnx() -> None:
    modules = [
        ".".join(p.relative_to(ROOT).with_suffix("").parts)
        for p in FILES
        if p.name != "__init__.py" and "sim/lava/" not in p.as_posix()
    ]
    without = "import sys; sys.modules |= dict.fromkeys(('lava', 'nir', 'onnx'))"
    code = f"{without}\nfor m in {modules}: __import__(m)\nprint(len({modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(modules)


def test_files_and_limits_cost_neither_lava_nor_torch_nor_processes() -> None:
    code = "import sys, exporters.netx; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    packages = {name.split(".")[0] for name in loaded.stdout.split()}
    assert {"h5py", "sim"} <= packages
    assert not packages & {"lava", "torch", "scipy", "multiprocessing", "unittest"}


def test_the_process_of_a_target_does_not_wait_for_torch() -> None:
    code = "import sys, exporters.device.visit, exporters.device.lava; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("module", ["toolchain.convert", "toolchain.assessment"])
def test_who_converts_and_measures_does_not_wait_for_what_draws(module: str) -> None:
    code = f"import sys, {module}; print({{'matplotlib', 'scipy.stats'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "set()\n", done.stderr
