"""``import ann2loihi``: quick, whole, typed, and not to be confused with anybody else's files."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import zipfile
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


def test_the_wheel_converts_the_digits_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """Its packages come from the wheel alone; what it depends on is lent by this environment."""
    executable = environment(tmp_path, sys.executable)
    subprocess.run([uv(), "pip", "install", "--quiet", "--no-deps", "--python", executable, wheel], check=True)
    (packages,) = (tmp_path / "environment" / "lib").glob("python*/site-packages")
    (packages / "lent.pth").write_text(str(Path(pytest.__file__).parents[1]))
    assert python(DIGITS, tmp_path, executable=executable).strip() == f"{packages / 'ann2loihi'} {a2l.__version__}"


@pytest.mark.slow
@pytest.mark.parametrize("version", ["3.10", "3.12"])
def test_the_wheel_installs_with_all_it_needs(version: str, wheel: Path, tmp_path: Path) -> None:
    executable = environment(tmp_path, version)
    subprocess.run([uv(), "pip", "install", "--quiet", "--python", executable, wheel], check=True)
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
