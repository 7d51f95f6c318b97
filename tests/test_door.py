"""``import ann2loihi``: quick, whole, typed, and not to be confused with anybody else's files."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from pathlib import Path

import pytest

import ann2loihi as a2l

ROOT = Path(__file__).parents[1]
DIGITS = """
import ann2loihi as a2l, numpy as np, pathlib, sys
digits = a2l.demo.data.load()
conversion = a2l.convert(a2l.demo.load_model(), digits.calibration_x, timesteps=4)
right = (conversion.predict(digits.test_x) == digits.test_y.numpy()).mean()
a2l.write(conversion.network, "digits.net")
assert a2l.read("digits.net") == conversion.network and right > 0.95, right
print(pathlib.Path(a2l.__file__).parent, a2l.__version__)
"""


def python(code: str, folder: Path, *, executable: str | Path = sys.executable, path: str = "") -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} if path else {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [executable, "-c", code], capture_output=True, text=True, cwd=folder, env=environment, timeout=600
    )
    return done.stdout if done.returncode == 0 else done.stderr


def test_every_public_name_leads_to_something() -> None:
    assert {
        "convert",
        "Conversion",
        "Recipe",
        "RECIPES",
        "choose",
        "import_model",
        "check",
        "replace_max_pooling",
    } <= set(a2l.__all__)
    assert {"QCFS", "TReLU", "verify", "run", "write", "read", "load", "Refused", "__version__"} <= set(a2l.__all__)
    for name in a2l.__all__:
        assert getattr(a2l, name) is getattr(a2l, name)
    assert dir(a2l) == sorted(a2l.__all__)
    with pytest.raises(AttributeError, match=r"has no attribute 'convrt'; it has .*convert"):
        _ = a2l.convrt  # type: ignore[attr-defined]


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((ROOT / "ann2loihi" / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert seen | {"__version__"} == set(a2l.__all__)


def test_importing_it_loads_neither_torch_nor_numpy(tmp_path: Path) -> None:
    code = "import sys, ann2loihi; ann2loihi.__all__; print({'torch', 'numpy', 'toolchain'} & set(sys.modules))"
    assert python(code, tmp_path, path=str(ROOT)).strip() == "set()"


@pytest.mark.parametrize("name", ["sim", "exporters", "toolchain"])
def test_a_file_of_the_users_with_the_name_of_our_package_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / f"{name}.py").write_text("")
    said = python("import ann2loihi", tmp_path, path=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert said.strip().splitlines()[-1] == (
        f"ImportError: the package {name!r} of ann2loihi is taken by {tmp_path / name}.py; rename that"
    )


def test_no_file_is_loaded_twice() -> None:
    code = (
        "import sys, collections, ann2loihi as a2l; [getattr(a2l, name) for name in a2l.__all__];"
        "ours = {'ann2loihi', 'exporters', 'sim', 'toolchain'};"
        "files = [m.__file__ for name, m in sys.modules.items() if name.split('.')[0] in ours and m.__file__];"
        "print(len(files) > 30, len(files) - len(set(files)))"
    )
    assert python(code, ROOT, path=str(ROOT)).split() == ["True", "0"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([uv(), "build", "--wheel", "--quiet", "-o", folder, ROOT], check=True)
    (path,) = folder.glob("*.whl")
    return path


def uv() -> str:
    """The program that made this environment; it says itself where it is."""
    return os.environ.get("UV", "uv")


def test_the_wheel_holds_the_packages_their_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        *("ann2loihi", "exporters", "sim", "toolchain"),
        f"ann2loihi-{a2l.__version__}.dist-info",
    }
    assert "toolchain/demo/digits_cnn.pt" in names
    assert {f"{name}/py.typed" for name in ("ann2loihi", "exporters", "sim", "toolchain")} <= set(names)
    page = {f"exporters/report/page/{name}" for name in ("page.html.j2", "page.js", "style.css")}
    assert page <= set(names)
    others = [name for name in names if "dist-info" not in name and name not in page]
    assert all(Path(name).suffix in (".py", ".pt", ".json", ".typed") for name in others)


#: What is imported under another name than its distribution's.
MODULES = {"pillow": "PIL", "scikit-learn": "sklearn"}
#: Imported late, by who needs it; the extra that brings it.
OPTIONAL = {"distributed": "cluster", "lava": "lava", "nir": "nir", "numba": "speed", "onnx": "onnx"}


def test_it_depends_on_what_it_imports_and_on_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        required = message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    needed: dict[str, set[str]] = {}  # by extra; "" is what everybody gets
    for line in required:
        distribution = re.split(r"[^\w-]", line)[0]
        extra = re.search(r"extra == '(\w+)'", line)
        needed.setdefault(extra[1] if extra else "", set()).add(MODULES.get(distribution, distribution))
    ours = ("ann2loihi", "exporters", "sim", "toolchain")
    found = {
        name.split(".")[0] for package in ours for path in (ROOT / package).rglob("*.py") for name in imported(path)
    }
    assert found - set(sys.stdlib_module_names) - set(ours) == needed[""] | OPTIONAL.keys()
    assert set(OPTIONAL.values()) <= needed.keys()
    assert needed["lava"] == {"lava-nc", "lava-dl", "setuptools"}  # the last is imported by lava-dl


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_whoever_cites_it_cites_the_papers_and_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text()
    assert f"version: {a2l.__version__}\n" in text
    assert "authors:\n  - name: The ann2loihi authors\n" in text
    assert "Forward Temporal Bias Correction" in text
    assert "Explicit Modelling of Residual Error" in text


def test_it_tells_its_version() -> None:
    done = subprocess.run([sys.executable, "-m", "ann2loihi", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr, done.returncode) == (f"ann2loihi {a2l.__version__}\n", "", 0)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("con", {"convert"}), ("convert --latency", {"--latency-budget"}), ("device s", {"selftest"})],
)
def test_shells_can_complete_commands_and_options(typed: str, offered: set[str]) -> None:
    words = f"ann2loihi {typed}"
    asked = {"_ANN2LOIHI_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    done = subprocess.run(
        [sys.executable, "-m", "ann2loihi"], capture_output=True, text=True, cwd=ROOT, env=os.environ | asked
    )
    assert set(done.stdout.split()) == offered, done.stderr


def test_without_a_command_there_is_help_and_no_error() -> None:
    done = subprocess.run([sys.executable, "-m", "ann2loihi"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "Usage: ann2loihi" in done.stdout + done.stderr
    assert "error" not in done.stderr


def test_the_wheel_converts_the_digits_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Its packages come from the wheel alone; what it depends on is lent by this environment."""
    executable = environment(tmp_path, sys.executable)
    subprocess.run([uv(), "pip", "install", "--quiet", "--no-deps", "--python", executable, wheel], check=True)
    (packages,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    (packages / "lent.pth").write_text(str(Path(pytest.__file__).parents[1]))
    assert python(DIGITS, tmp_path, executable=executable).strip() == f"{packages / 'ann2loihi'} {a2l.__version__}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("version", "extras", "engines"),
    [
        ("3.10", "", "reference fast"),
        ("3.10", "[lava]", "reference fast lava lava-stock netx"),
        ("3.12", "[lava]", "reference fast"),
    ],
)
def test_the_wheel_installs_with_all_it_needs(
    version: str, extras: str, engines: str, wheel: Path, tmp_path: Path
) -> None:
    executable = environment(tmp_path, version)
    subprocess.run([uv(), "pip", "install", "--quiet", "--python", executable, f"{wheel}{extras}"], check=True)
    there = "import ann2loihi as a2l; print(*a2l.available_engines())"
    assert python(there, tmp_path, executable=executable).strip() == engines
    code = (
        "import time; start = time.perf_counter(); import ann2loihi as a2l, sys; names = a2l.__all__;"
        "print(time.perf_counter() - start < 1, 'torch' in sys.modules, 'convert' in names)"
    )
    answers = [python(code, tmp_path, executable=executable).split() for _ in range(3)]  # the first compiles
    assert ["True", "False", "True"] in answers, answers
    assert "site-packages" in python(DIGITS, tmp_path, executable=executable)


def environment(folder: Path, version: str) -> Path:
    subprocess.run([uv(), "venv", "--quiet", "--python", version, folder / "environment"], check=True)
    return folder / "environment" / "bin" / "python"
