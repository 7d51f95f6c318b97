"""A model's own Python file: it runs as Python would run it, changes nothing else, and its faults are named."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from refusing import refusal
from torch import nn
from typer.testing import CliRunner

from toolchain import loading
from toolchain.app import cli

HEAD = "import torch\nfrom torch import nn\n"
NET = "nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))"
BUILD = f"def build():\n    return {NET}\n"

Write = Callable[[Mapping[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def files(content: Mapping[str, str]) -> Path:
        for name, text in content.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return files


def refused(write: Write, text: str, name: str = "build") -> str:
    """Refusal of a file with this text, without the folder's name."""
    folder = write({"model.py": text})
    return refusal(loading.load_model, f"{folder}/model.py:{name}").replace(f"{folder}/", "")


# ---- what may be named ----------------------------------------------------------------------------------------------

NAMES = f"""{HEAD}
{BUILD}
class Net(nn.Sequential):
    def __init__(self, width=2):
        super().__init__(nn.Conv2d(1, width, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * width, 3))

net = Net(3)

class Nets:
    trained = net

    @staticmethod
    def small():
        return Net(1)

    @classmethod
    def large(cls):
        return Net(4)

    class Inner:
        onnx = staticmethod(lambda: Net(5))
"""


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("build", 2),
        ("Net", 2),
        ("net", 3),
        ("Nets.trained", 3),
        ("Nets.small", 1),
        ("Nets.large", 4),
        ("Nets.Inner.onnx", 5),
    ],
)
def test_a_function_a_class_a_model_or_a_dotted_name_of_one(write: Write, name: str, width: int) -> None:
    model = loading.load_model(f"{write({'model.py': NAMES})}/model.py:{name}")
    assert model[0].weight.shape == (width, 1, 3, 3)
    assert not model.training


def test_a_model_may_be_given_in_the_place_of_its_file(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    torch.save({"weight": torch.ones(3, 2), "bias": torch.zeros(3)}, tmp_path / "ones.pt")
    assert loading.load_model(model, str(tmp_path / "ones.pt")) is model
    assert torch.equal(model.weight, torch.ones(3, 2))
    assert not model.training


def test_a_train_that_returns_nothing_does_no_harm(write: Write) -> None:
    text = f"{HEAD}class Net(nn.Linear):\n    def train(self, mode=True):\n        super().train(mode)\n"
    assert not loading.load_model(f"{write({'m.py': text + 'build = lambda: Net(2, 3)'})}/m.py:build").training


def test_a_name_that_leads_nowhere_is_refused_with_what_there_is(write: Write) -> None:
    assert refused(write, NAMES, "make") == (
        "model.py: has no 'make'; name a function or class that builds the model; it has build, Net, net, Nets"
    )
    assert refused(write, NAMES, "Nets.middle").startswith("model.py: has no 'Nets.middle'; ")
    assert refused(write, "width = 3").endswith("; it has nothing that builds a model")
    assert refused(write, f"{HEAD}build = {{'width': 3}}") == (
        "model.py: 'build' is a dict with keys 'width'; name a model, or a function or class that builds one"
    )


def test_a_factory_that_needs_arguments_is_told_which(write: Write) -> None:
    text = f"{HEAD}def build(width, depth=3, *, classes, **rest):\n    return None\n"
    assert refused(write, text) == (
        "model.py: 'build' needs arguments: width, classes; "
        "write a function without arguments that returns build(width=..., classes=...)"
    )
    text = f"{HEAD}class Net(nn.Module):\n    def __init__(self, *layers, width):\n        super().__init__()\n"
    assert "model.py: 'Net' needs arguments: width; " in refused(write, text, "Net")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("3", "an int"),
        ("None", "None"),
        ("(nn.ReLU(), 0.93)", "a tuple of ReLU, float"),
        ("[nn.ReLU()]", "a list of ReLU"),
        ("{'model': nn.ReLU(), 'epoch': 3}", "a dict with keys 'model', 'epoch'"),
        ("nn.ReLU().state_dict()", "an empty OrderedDict"),
        ("nn.ReLU", "the class ReLU"),
        ("nn.Linear(1, 1).state_dict()", "an OrderedDict with keys 'weight', 'bias'"),
        ("torch.relu", "a builtin_function_or_method"),
    ],
)
def test_what_is_no_model_is_refused_by_name(write: Write, value: str, words: str) -> None:
    assert refused(write, f"{HEAD}def build():\n    return {value}\n") == (
        f"model.py:build: returns {words}, not an nn.Module; return the model alone"
    )


def test_what_names_no_factory_is_refused(tmp_path: Path) -> None:
    assert refusal(loading.load_model, "model.py") == (
        "model.py: no factory named; give FILE.py:FACTORY, for example model.py:build, or a .pt2, .onnx or .nir file"
    )
    assert refusal(loading.load_model, "run/best.pth") == (
        "run/best.pth: holds weights, not the code of a model; give --model FILE.py:FACTORY --weights run/best.pth"
    )
    assert "no such file or directory" in refusal(loading.load_model, f"{tmp_path}/none.py:build")
    (tmp_path / "model.txt").write_text(BUILD)
    assert "is not a Python file; give FILE.py:FACTORY" in refusal(loading.load_model, f"{tmp_path}/model.txt:build")


def test_a_file_that_holds_its_weights_takes_no_others(tmp_path: Path) -> None:
    for name in ("model.pt2", "model.onnx", "MODEL.ONNX"):
        message = refusal(loading.load_model, tmp_path / name, tmp_path / "weights.pt")
        assert message == f"{tmp_path}/{name}: holds its own weights; leave --weights out"
        assert "no such file or directory" in refusal(loading.load_model, f"{tmp_path}/{name}")


# ---- what the file may do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "from __future__ import annotations\nfrom dataclasses import dataclass, field\n"
        f"{HEAD}@dataclass\nclass Config:\n    widths: list[int] = field(default_factory=lambda: [2])\n"
        f"def build(config: Config | None = None):\n    assert Config().widths == [2]\n    return {NET}\n",
        "from __future__ import annotations\nfrom typing import NamedTuple, get_type_hints\n"
        f"{HEAD}class Config(NamedTuple):\n    width: int = 2\n"
        f"assert get_type_hints(Config) == {{'width': int}}\n{BUILD}",
        f"import copy, enum, pickle\n{HEAD}class Kind(enum.Enum):\n    SMALL = 1\n"
        f"class Net(nn.Sequential):\n    kind = Kind.SMALL\n"
        f"def build():\n    net = pickle.loads(pickle.dumps(Net(*{NET})))\n"
        "    assert pickle.loads(pickle.dumps(net.kind)) is Kind.SMALL\n    return net\n",
        f"import inspect\n{HEAD}{BUILD}assert 'nn.Sequential' in inspect.getsource(build)\n",
        f"import sys\n{HEAD}assert sys.modules[__name__].HERE is None\n{BUILD}".replace(
            "import sys", "HERE = None\nimport sys"
        ),
    ],
    ids=["dataclass", "NamedTuple", "pickle", "source", "itself"],
)
def test_it_finds_itself_as_an_imported_module_does(write: Write, text: str) -> None:
    assert isinstance(loading.load_model(f"{write({'my-model.v2.py': text})}/my-model.v2.py:build"), nn.Sequential)


def test_its_classes_can_be_pickled_afterwards_beside_those_of_another_file_of_its_name(write: Write) -> None:
    text = f"{HEAD}class Net(nn.Linear):\n    pass\n"
    folder = write(
        {"a/model.py": f"{text}def build(): return Net(2, 3)", "b/model.py": f"{text}def build(): return Net(4, 5)"}
    )
    models = [loading.load_model(f"{folder}/{name}/model.py:build") for name in "ab"]
    copies = [pickle.loads(pickle.dumps(model)) for model in models]
    assert [type(copied) is type(model) for copied, model in zip(copies, models, strict=True)] == [True, True]
    assert type(models[0]) is not type(models[1])
    assert "model" not in sys.modules


def test_it_imports_what_lies_beside_it_also_when_the_factory_runs(write: Write) -> None:
    folder = write(
        {
            "model.py": "import widths_of_mine\ndef build():\n    from parts_of_mine.blocks import block\n"
            "    return block(widths_of_mine.WIDTH)\n",
            "widths_of_mine.py": "WIDTH = 7\n",
            "parts_of_mine/blocks.py": f"{HEAD}block = lambda width: nn.Linear(width, 1)\n",
        }
    )
    path = list(sys.path)
    assert loading.load_model(f"{folder}/model.py:build").in_features == 7
    assert sys.path == path


def test_neighbours_of_the_same_name_belong_to_their_own_file(write: Write) -> None:
    text = "from sizes_of_mine import SIZE\nfrom torch import nn\ndef build(): return nn.Linear(SIZE, 1)\n"
    folder = write({f"{name}/model.py": text for name in "ab"})
    for name, size in (("a", 2), ("b", 3), ("a", 4)):
        write({f"{name}/sizes_of_mine.py": f"SIZE = {size}\n" + "#" * size})
        assert loading.load_model(f"{folder}/{name}/model.py:build").in_features == size


PACKAGE = {
    "nets/__init__.py": "from .nets.small import build\n",
    "nets/shared.py": "WIDTH = 6\n",
    "nets/nets/__init__.py": "",
    "nets/nets/small.py": "from ..shared import WIDTH\nfrom . import parts\nfrom nets.shared import WIDTH as SAME\n"
    "assert SAME == WIDTH\nclass Net(parts.Base): pass\ndef build(): return Net(WIDTH, 1)\n",
    "nets/nets/parts.py": "from torch import nn\nclass Base(nn.Linear): pass\n",
}


def test_a_file_in_a_package_imports_relatively(write: Write) -> None:
    folder = write(PACKAGE)
    model = loading.load_model(f"{folder}/nets/nets/small.py:build")
    assert model.in_features == 6
    assert type(pickle.loads(pickle.dumps(model))) is type(model)
    assert loading.load_model(f"{folder}/nets/__init__.py:build").in_features == 6


def test_a_package_that_cannot_be_imported_matters_only_to_relative_imports(write: Write) -> None:
    folder = write({"nets/__init__.py": "import a_package_nobody_has\n", "nets/model.py": HEAD + BUILD})
    assert isinstance(loading.load_model(f"{folder}/nets/model.py:build"), nn.Sequential)
    write({"nets/model.py": "from . import parts\n"})
    assert refusal(loading.load_model, f"{folder}/nets/model.py:build") == (
        f"{folder}/nets/model.py:build: ModuleNotFoundError: No module named 'a_package_nobody_has' "
        "(nets/__init__.py, line 1); install a_package_nobody_has into this environment, or put it beside the file"
    )


def test_the_working_directory_is_searched_as_well(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(
        {
            "nets/model.py": "from tools_of_mine import nn, width\ndef build(): return nn.Linear(width, 1)\n",
            "tools_of_mine.py": "from torch import nn\nwidth = 9\n",
        }
    )
    monkeypatch.chdir(folder)
    assert loading.load_model("nets/model.py:build").in_features == 9


def test_what_it_changes_for_the_whole_process_is_undone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(
        {
            "model.py": f"import os, sys\n{HEAD}assert sys.argv == [__file__]\nos.chdir('/')\nsys.path.append('gone')\n"
            "torch.set_default_dtype(torch.float64)\ntorch.set_grad_enabled(False)\nsys.argv.append('-v')\n" + BUILD
        }
    )
    monkeypatch.setattr(sys, "argv", ["ann2loihi", "--model", "x"])
    argv, path, place = list(sys.argv), list(sys.path), os.getcwd()
    assert loading.load_model(f"{folder}/model.py:build")[0].weight.dtype == torch.float64
    assert (sys.argv, sys.path, os.getcwd()) == (argv, path, place)
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


def test_a_parser_in_it_does_not_see_our_options(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"import argparse\n{HEAD}parser = argparse.ArgumentParser()\nparser.parse_args()\n{BUILD}"
    monkeypatch.setattr(sys, "argv", ["ann2loihi", "check", "--model", "x"])
    assert isinstance(loading.load_model(f"{write({'model.py': text})}/model.py:build"), nn.Sequential)


# ---- what it raises -------------------------------------------------------------------------------------------------


def test_what_the_code_raises_is_named_with_its_own_line(write: Write) -> None:
    own = "make file and factory run on their own"
    assert refused(write, "def build():\n    config = {}\n    return config['width']\n") == (
        f"model.py:build: KeyError: 'width' (model.py, line 3); {own}"
    )
    # The deepest line of the user's own: here torch raises, and in several lines.
    assert refused(write, f"{HEAD}def build():\n    nn.Linear(2, 2).load_state_dict({{}})\n") == (
        "model.py:build: RuntimeError: Error(s) in loading state_dict for Linear: "
        f'Missing key(s) in state_dict: "weight", "bias". (model.py, line 4); {own}'
    )
    assert "SyntaxError: " in refused(write, "def build(:")
    assert "(model.py, line 1)" in refused(write, "def build(:")
    assert "RecursionError: " in refused(write, "def build():\n    return build()\n")
    write({"broken_neighbour_of_mine.py": "\nraise OSError('no licence')\n"})
    assert refused(write, "import broken_neighbour_of_mine") == (
        f"model.py:build: OSError: no licence (broken_neighbour_of_mine.py, line 2); {own}"
    )
    assert refused(write, "\nimport nobody_has_this.at_all") == (
        "model.py:build: ModuleNotFoundError: No module named 'nobody_has_this' (model.py, line 2); "
        "install nobody_has_this into this environment, or put it beside the file"
    )


@pytest.mark.parametrize("code", ["sys.exit()", "sys.exit(0)", "sys.exit('usage: ...')", "raise SystemExit(3)"])
def test_a_program_that_ends_itself_does_not_end_ours(write: Write, code: str) -> None:
    remedy = "put that under if __name__ == '__main__':"
    for text, line in ((f"import sys\n{BUILD}{code}\n", 4), (f"import sys\ndef build():\n    {code}\n", 3)):
        message = refused(write, text)
        assert message.startswith("model.py:build: ends the program, sys.exit(")
        assert message.endswith(f" (model.py, line {line}); {remedy}")


def test_an_interruption_stays_one(write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        loading.load_model(f"{write({'model.py': 'raise KeyboardInterrupt'})}/model.py:build")


# ---- on the command line --------------------------------------------------------------------------------------------


def test_what_file_factory_and_model_print_does_not_spoil_json(write: Write) -> None:
    folder = write(
        {
            "model.py": f"{HEAD}print('importing')\nclass Net(nn.Module):\n"
            f"    def __init__(self):\n        super().__init__()\n        self.net = {NET}\n"
            "    def forward(self, x):\n        print('running')\n        return self.net(x)\n"
            "def build():\n    print('building')\n    return Net()\n"
        }
    )
    np.savez(folder / "x.npz", x=np.random.default_rng(0).random((32, 1, 4, 4), np.float32))
    model = ["--model", f"{folder}/model.py:build"]
    for command in (
        ["check", *model, "--input-shape", "1,4,4"],
        ["convert", *model, "--calibration", f"{folder}/x.npz", "--timesteps", "2", "-o", f"{folder}/out"],
    ):
        done = CliRunner().invoke(cli.app, [*command, "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)
        assert {"importing", "building", "running"} <= set(done.stderr.splitlines())


def test_a_factory_that_ends_the_program_is_exit_code_2_in_a_process_of_its_own(write: Write) -> None:
    folder = write({"model.py": "import sys\ndef build():\n    sys.exit(0)\n"})
    code = "from toolchain.app.cli import main; main()"
    command = [sys.executable, "-c", code, "check", "--model", "model.py:build", "--input-shape", "1,4,4"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: model.py:build: ends the program, sys.exit(0) (model.py, line 3); "
        "put that under if __name__ == '__main__':\n"
    )
