"""Files, arrays, programs, models and arguments that are damaged, hostile or beyond reason, on the command line.

Every case ends with exit code 2 and one line for each finding, within two seconds and a gibibyte; nothing is written,
and no code of a data file runs.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import json
import os
import pickle
import resource
import socket
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import nir
import numpy as np
import onnx
import pytest
import torch
from numpy.lib import format as npy
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from exporters.netx import content as contents
from exporters.netx import hdf5
from exporters.nir import save as save_nir
from toolchain.app import cli
from toolchain.convert import convert

pytestmark = pytest.mark.filterwarnings("ignore")

SECONDS, MEMORY = 2.0, 1 << 30
HEADER = "import sys, os, torch\nfrom torch import nn\n"
GOOD = "def build():\n    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))\n"


class Trap:
    """What a pickle must not do."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


class Place:
    """A folder with good inputs of every kind; a case spoils one of them and says what to run."""

    def __init__(self, folder: Path, good: dict[str, bytes]) -> None:
        self.folder, self.trap = folder, folder / "trap"
        for name, data in good.items():
            self.write(name, data)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def write(self, name: str, data: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    def model(self, source: str, name: str = "build") -> list[Any]:
        self.write("theirs.py", HEADER + source)
        return self.convert(model=f"theirs.py:{name}")

    def arrays(self, **arrays: Any) -> str:
        np.savez(self.folder / "given.npz", **arrays)
        return "given.npz"

    def convert(self, *more: Any, **changes: Any) -> list[Any]:
        options = {"model": "model.py:build", "calibration": "cal.npz", "timesteps": 2} | changes
        return [
            "convert",
            *(part for key, value in options.items() for part in (f"--{key}", value)),
            "-o",
            "out",
            *more,
        ]

    def check(self, *more: Any, **changes: Any) -> list[Any]:
        options = {"model": "model.py:build", "input-shape": "4"} | changes
        return ["check", *(part for key, value in options.items() for part in (f"--{key}", value)), *more]


def graph_of_layers(check: bool = True, **changed: Any) -> nir.NIRGraph:
    """The good model in NIR, with nodes changed or added; ``edges`` are more of them."""
    weights = {"a": np.ones((6, 4), np.float32), "c": np.ones((3, 6), np.float32)}
    edges = [("input", "a"), ("a", "b"), ("b", "c"), ("c", "output"), *changed.pop("edges", ())]
    nodes = {
        "input": nir.Input(np.array([4])),
        "a": nir.Affine(weights["a"], np.zeros(6, np.float32)),
        "b": nir.IF(np.ones(6, np.float32), np.ones(6, np.float32)),
        "c": nir.Affine(weights["c"], np.zeros(3, np.float32)),
        "output": nir.Output(np.array([3])),
    }
    return nir.NIRGraph({**nodes, **changed}, edges, type_check=check)


Case = Callable[[Place], list[Any]]  #: prepares a place and returns the command line


@functools.cache
def good() -> dict[str, bytes]:
    """The content of every good file, made once."""
    import tempfile

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x, y = np.random.default_rng(0).random((40, 4), np.float32), np.arange(40) % 3
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        (folder / "model.py").write_text(HEADER + GOOD)
        torch.save(model.state_dict(), folder / "w.pt")
        save_file(model.state_dict(), folder / "w.safetensors")
        np.savez(folder / "cal.npz", x=x, y=y)
        torch.export.save(torch.export.export(model, (torch.zeros(1, 4),)), folder / "m.pt2")
        options = {} if torch.__version__ < "2.5" else {"dynamo": False}
        torch.onnx.export(model, torch.zeros(1, 4), folder / "m.onnx", **options)
        converted = convert(model, x, 2)
        converted.save(folder / "bundle")
        save_nir(converted.network, folder / "network.nir")
        nir.write(folder / "m.nir", graph_of_layers())
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


#: Every place where a path stands on a command line, and what to run with it.
READS: dict[str, Callable[[Place, str], list[Any]]] = {
    "m.pt2": lambda place, path: place.convert(model=path),
    "m.onnx": lambda place, path: place.convert(model=path),
    "m.nir": lambda place, path: place.convert(model=path),
    "network.nir": lambda place, path: ["evaluate", path, "--data", "cal.npz"],
    "w.pt": lambda place, path: place.convert(weights=path),
    "w.safetensors": lambda place, path: place.convert(weights=path),
    "cal.npz": lambda place, path: place.convert(calibration=path),
    "model.py": lambda place, path: place.convert(model=f"{path}:build"),
}
CHECKS: dict[str, Callable[[Place, str], list[Any]]] = {
    "weights": lambda place, path: place.check(weights=path),
    "calibration": lambda place, path: place.check(calibration=path),
    "data": lambda place, path: ["evaluate", "bundle", "--data", path],
    "verified": lambda place, path: ["verify", "bundle", "--data", path],
    "inspected": lambda place, path: ["inspect", path],
    "evaluated": lambda place, path: ["evaluate", path, "--data", "cal.npz"],
}


# ---- damage ---------------------------------------------------------------------------------------------------------

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "one byte": lambda data: data[:1],
    "a quarter": lambda data: data[: len(data) // 4],
    "a half": lambda data: data[: len(data) // 2],
    "all but a tenth": lambda data: data[: len(data) * 9 // 10],
    "zeros": lambda data: b"\0" * len(data),
    "noise": lambda data: np.random.default_rng(1).bytes(len(data)),
    "a web page": lambda data: b"<!DOCTYPE html><html>404</html>",
    "a pointer": lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "its end only": lambda data: data[len(data) // 2 :],
}


def damaged() -> Iterator[tuple[str, Case]]:
    for (name, read), (damage, spoil) in itertools.product(READS.items(), DAMAGES.items()):
        if name == "model.py" and damage in ("a half", "all but a tenth", "its end only"):
            continue  # may still be Python
        yield f"{damage} of {name}", lambda p, n=name, r=read, s=spoil: r(p, p.write(f"bad-{n}", s(good()[n])).name)
    for name, spoil in ((n, d) for n in ("network.net", "config.json", "provenance.json") for d in DAMAGES):

        def run(place: Place, name: str = name, spoil: str = spoil) -> list[Any]:
            place.write(f"bundle/{name}", DAMAGES[spoil](good()[f"bundle/{name}"]))
            return ["evaluate", "bundle", "--data", "cal.npz"]

        yield f"{spoil} of {name} in a bundle", run
    for name, other in itertools.permutations(READS, 2):
        if name != "model.py":
            yield (
                f"{other} in the place of {name}",
                lambda p, n=name, o=other: READS[n](p, p.write(f"bad-{n}", good()[o]).name),
            )


# ---- what is no file ------------------------------------------------------------------------------------------------


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as found:
        found.bind(path.name)


NO_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "an empty device": lambda path: path.symlink_to("/dev/null"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a directory": os.mkdir,
    "a socket": _socket,
    "nothing": lambda path: None,
}


def no_files() -> Iterator[tuple[str, Case]]:
    endings = {"weights": ".pt", "calibration": ".npz", "data": ".npz", "verified": ".npz", "inspected": ".net"}
    reads = {f"bad-{name}": read for name, read in READS.items()}
    reads |= {f"bad-{name}{endings.get(name, '')}": read for name, read in CHECKS.items()}
    for (name, read), (kind, make) in itertools.product(reads.items(), NO_FILES.items()):
        yield f"{kind} as {name}", lambda p, n=name, r=read, m=make: (m(p.folder / n), r(p, n))[1]
    for name in ("network.net", "config.json", "provenance.json", "report.json"):
        for kind, make in NO_FILES.items():
            if name == "report.json" and kind in ("nothing", "a link to nowhere"):
                continue  # there need not be one

            def run(place: Place, name: str = name, make: Callable[[Path], object] = make) -> list[Any]:
                path = place.folder / "bundle" / name
                path.unlink(missing_ok=True)
                with contextlib.chdir(path.parent) if sys.version_info >= (3, 11) else _inside(path.parent):
                    make(path)
                return ["evaluate", "bundle", "--data", "cal.npz"]

            yield f"{kind} as {name} in a bundle", run
    for name, path in {"empty": "", "too long": "x" * 300, "below a file": "cal.npz/x"}.items():
        for place, read in CHECKS.items():
            yield f"a path that is {name} as {place}", lambda p, r=read, path=path: r(p, path)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


# ---- arrays ---------------------------------------------------------------------------------------------------------


def header(text: str) -> bytes:
    """An array's file that consists of a header alone."""
    padded = text.encode() + b"\n"
    return npy.magic(1, 0) + len(padded).to_bytes(2, "little") + padded


def archive(**members: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, member in members.items():
            file.writestr(f"{name}.npy", member)
    return data.getvalue()


def described(descr: str = "'<f4'", shape: str = "(40, 4)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}"


X, Y = np.zeros((40, 4), np.float32), np.zeros(40, int)
WRONG_X: dict[str, Any] = {
    "texts": np.array([["a"] * 4] * 40),
    "bytes": np.array([[b"a"] * 4] * 40),
    "complex numbers": X.astype(complex),
    "dates": X.astype("M8[s]"),
    "durations": X.astype("m8[s]"),
    "records": np.zeros(40, [("a", "f4"), ("b", "f4")]),
    "no samples": X[:0],
    "no features": X[:, :0],
    "one number": np.array(1.0),
    "one sample": X[0],
    "six dimensions": X.reshape(40, 1, 1, 1, 2, 2),
    "NaN": X * np.nan,
    "infinity": X + np.inf,
    "beyond float32": X.astype(float) + 1e300,
    "five features": np.zeros((40, 5), np.float32),
    "images": np.zeros((40, 3, 8, 8), np.float32),
}
WRONG_Y: dict[str, Any] = {
    "too few": Y[:7],
    "too many": np.zeros(41, int),
    "one number": np.array(0),
    "texts": np.array(["a"] * 40),
    "complex numbers": Y.astype(complex),
    "NaN": Y * np.nan,
    "negative classes": Y - 1,
    "a class too many": Y + 3,
    "huge classes": Y + (1 << 60),
    "fractions": Y + 0.5,
    "dates": Y.astype("M8[s]"),
    "none": Y[:0],
}
#: Numbers that no output stands for: ``convert`` writes the network all the same, unmeasured by them.
MEASURED = ("NaN", "negative classes", "a class too many", "huge classes", "fractions")
HEADERS = {
    "a shape beyond memory": described(shape="(1 << 70, 4)".replace("1 << 70", str(1 << 70))),
    "a shape of terabytes": described(shape="(1099511627776, 4)"),
    "a negative shape": described(shape="(-1, 4)"),
    "a shape of fractions": described(shape="(1.5, 4)"),
    "a shape of text": described(shape="'many'"),
    "a thousand dimensions": described(shape=str((1,) * 1000)),
    "objects": described("'|O'"),
    "an unknown type": described("'<z9'"),
    "a call": described("__import__('os').mkdir('trap')"),
    "a call in the shape": described(shape="__import__('os').mkdir('trap')"),
    "a bracket too few": described()[:-1],
    "deep brackets": described(shape="(" * 200 + ")" * 200),
    "nothing": "",
}


DATASETS = {
    "ends the program": "import sys\ndef make():\n    sys.exit(0)\n",
    "ends the program in an item": "class make(list):\n    __len__ = lambda s: 3\n    def __getitem__(s, i): exit()\n",
    "is a list": "def make():\n    return [1, 2]\n",
    "never ends": "import itertools\ndef make():\n    return itertools.count()\n",
    "has items of objects": "import numpy as np\ndef make():\n    return [np.array([None])]\n",
    "has a length below none": "class make:\n    __len__ = lambda s: -1\n    def __getitem__(s, i): return 0\n",
}
IMAGES = {
    "is empty": b"",
    "is text": b"%!PS-Adobe-3.0 EPSF-3.0",
    "is cut": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\4\0\0\0\1\x08\0\0\0\0",
    "says that it is huge": b"P5 60000 60000 255\n" + bytes(16),
}


def arrays() -> Iterator[tuple[str, Case]]:
    for name, x in WRONG_X.items():
        yield f"x of {name} to convert with", lambda p, x=x: p.convert(calibration=p.arrays(x=x))
        yield f"x of {name} to verify with", lambda p, x=x: ["verify", "bundle", "--data", p.arrays(x=x)]
    for name, y in WRONG_Y.items():
        if name not in MEASURED:
            yield f"y of {name} to convert with", lambda p, y=y: p.convert(calibration=p.arrays(x=X, y=y))
        yield f"y of {name} to evaluate on", lambda p, y=y: ["evaluate", "bundle", "--data", p.arrays(x=X, y=y)]
    for name, text in HEADERS.items():
        yield (
            f"an array whose header holds {name}",
            lambda p, t=text: p.convert(calibration=p.write("given.npz", archive(x=header(t))).name),
        )
        yield (
            f"an array alone whose header holds {name}",
            lambda p, t=text: p.convert(calibration=p.write("given.npy", header(t)).name),
        )
    for name, source in DATASETS.items():
        yield (
            f"a data set that {name}",
            lambda p, s=source: (p.write("theirs.py", HEADER + s), p.convert(calibration="theirs.py:make"))[1],
        )
    for name, data in IMAGES.items():
        yield (
            f"an image that {name}",
            lambda p, d=data: (p.write("images/1.png", d), p.convert(calibration="images"))[1],
        )
    yield "no y", lambda p: ["evaluate", "bundle", "--data", p.arrays(x=X)]
    yield "no x", lambda p: p.convert(calibration=p.arrays(y=Y))
    yield "a member that is no array", lambda p: p.convert(calibration=p.write("g.npz", archive(x=b"text")).name)
    yield "an array alone", lambda p: (np.save(p.folder / "x.npy", X), ["evaluate", "bundle", "--data", "x.npy"])[1]
    yield "objects with code", lambda p: p.convert(calibration=p.arrays(x=np.array([Trap("trap")], object)))
    yield "a pickle", lambda p: p.convert(calibration=p.write("p.npz", pickle.dumps(Trap("trap"))).name)
    yield "sizes that are forged", lambda p: p.convert(calibration=p.write("f.npz", forged(1 << 36)).name)
    yield "a name twice", lambda p: p.convert(calibration=p.write("t.npz", archive(x=b"") + archive(x=b"x")).name)


def forged(size: int) -> bytes:
    """An archive whose directory promises so many bytes (in its 64-bit field)."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("x.npy", b"x")
        file.infolist()[0].file_size = size
        file._didModify = True  # type: ignore[attr-defined]
    return data.getvalue()


# ---- weights --------------------------------------------------------------------------------------------------------

STATE = {
    "0.weight": torch.zeros(6, 4),
    "0.bias": torch.zeros(6),
    "2.weight": torch.zeros(3, 6),
    "2.bias": torch.zeros(3),
}
WEIGHTS: dict[str, Any] = {
    "code": Trap("trap"),
    "code beside tensors": STATE | {"more": Trap("trap")},
    "code for a tensor": STATE | {"0.weight": Trap("trap")},
    "a module": nn.Linear(4, 6),
    "one tensor": torch.zeros(3),
    "numbers": {"0.weight": 1, "0.bias": 2},
    "nothing": {},
    "a name too few": {key: value for key, value in STATE.items() if key != "2.bias"},
    "a name too many": STATE | {"3.weight": torch.zeros(3)},
    "a shape that does not fit": STATE | {"0.weight": torch.zeros(6, 5)},
    "integers": STATE | {"0.weight": torch.zeros(6, 4, dtype=torch.int8)},
    "complex numbers": STATE | {"0.weight": torch.zeros(6, 4, dtype=torch.complex64)},
    "NaN": STATE | {"0.weight": torch.full((6, 4), torch.nan)},
    "infinity": STATE | {"2.bias": torch.full((3,), torch.inf)},
    "a sparse tensor": STATE | {"0.weight": torch.zeros(6, 4).to_sparse()},
    "quantised numbers": STATE | {"0.weight": torch.quantize_per_tensor(torch.zeros(6, 4), 1.0, 0, torch.qint8)},
    "terabytes that are one number": STATE | {"0.weight": torch.zeros(1).expand(1 << 20, 1 << 20)},
    "two that fit": {"a": STATE, "b": {key: value + 1 for key, value in STATE.items()}},
}


def weights() -> Iterator[tuple[str, Case]]:
    for name, content in WEIGHTS.items():

        def run(place: Place, content: Any = content, old: bool = False) -> list[Any]:
            torch.save(content, place.folder / "given.pt", _use_new_zipfile_serialization=not old)
            return place.convert(weights="given.pt")

        yield f"weights of {name}", run
        if name not in ("quantised numbers",):
            yield f"weights of {name} in the old form", functools.partial(run, old=True)
    yield "weights of a bare pickle", lambda p: p.convert(weights=p.write("w2.pt", pickle.dumps(Trap("trap"))).name)
    length = (1 << 40).to_bytes(8, "little")
    yield "a header of terabytes", lambda p: p.convert(weights=p.write("h.safetensors", length + b"{}").name)
    entry = {"0.weight": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 4]}}
    text = json.dumps(entry).encode()
    yield (
        "a shape beyond its bytes",
        lambda p: p.convert(weights=p.write("s.safetensors", len(text).to_bytes(8, "little") + text + b"\0" * 4).name),
    )


# ---- programs -------------------------------------------------------------------------------------------------------


def program(nodes: list[Any], size: int = 4, inputs: int = 1, **constants: Any) -> bytes:
    values = [helper.make_tensor_value_info(f"x{i or ''}", TensorProto.FLOAT, [1, size]) for i in range(inputs)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    held = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", values, [output], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)]).SerializeToString()


def chain(kind: str, times: int, *, width: int = 2, **attributes: Any) -> bytes:
    """The value of each node, ``width`` times, is what the next one gets."""
    names = ["x", *(f"v{i}" for i in range(1, times)), "y"]
    steps = itertools.pairwise(names)
    return program([helper.make_node(kind, [before] * width, [after], **attributes) for before, after in steps])


def outside() -> bytes:
    """Weights that lie in somebody else's file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 3], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    model = onnx.load_from_string(program([helper.make_node("MatMul", ["x", "w"], ["y"])]))
    model.graph.initializer.append(tensor)
    return model.SerializeToString()


N = helper.make_node
PROGRAMS: dict[str, Callable[[], bytes]] = {
    "concatenates itself 40 times": lambda: chain("Concat", 40, axis=1),
    "concatenates itself 200 times": lambda: chain("Concat", 200, axis=1),
    "multiplies itself 40 times": lambda: chain("Mul", 40),
    "has an unknown operation": lambda: program([N("Frobnicate", ["x"], ["y"])]),
    "has an operation of another domain": lambda: program([N("Run", ["x"], ["y"], domain="com.evil")]),
    "has two inputs": lambda: program([N("Add", ["x", "x1"], ["y"])], inputs=2),
    "has no input": lambda: program([N("Identity", ["c"], ["y"])], inputs=0, c=np.zeros((1, 4), np.float32)),
    "has no nodes": lambda: program([]),
    "reads what is nowhere": lambda: program([N("Add", ["x", "nowhere"], ["y"])]),
    "goes round in a circle": lambda: program([N("Add", ["x", "z"], ["y"]), N("Relu", ["y"], ["z"])]),
    "assigns twice": lambda: program([N("Relu", ["x"], ["y"]), N("Neg", ["x"], ["y"])]),
    "fills terabytes": lambda: program([N("ConstantOfShape", ["s"], ["c"]), N("Add", ["x", "c"], ["y"])], s=[1 << 40]),
    "expands to terabytes": lambda: program([N("Expand", ["x", "s"], ["y"])], s=[1 << 20, 1 << 18, 4]),
    "tiles to terabytes": lambda: program([N("Tile", ["x", "s"], ["y"])], s=[1, 1 << 38]),
    "pads to terabytes": lambda: program([N("Pad", ["x", "s"], ["y"])], s=[0, 0, 0, 1 << 38]),
    "reshapes wrongly": lambda: program([N("Reshape", ["x", "s"], ["y"])], s=[1, 5]),
    "reshapes to a negative size": lambda: program([N("Reshape", ["x", "s"], ["y"])], s=[-7, 4]),
    "weighs with another shape": lambda: program([N("MatMul", ["x", "w"], ["y"])], w=np.zeros((5, 3), np.float32)),
    "weighs with integers": lambda: program([N("MatMul", ["x", "w"], ["y"])], w=np.zeros((4, 3), np.int64)),
    "weighs with texts": lambda: program([N("MatMul", ["x", "w"], ["y"])], w=np.array([["a"]], object)),
    "weighs with NaN": lambda: program([N("MatMul", ["x", "w"], ["y"])], w=np.full((4, 3), np.nan, np.float32)),
    "keeps weights elsewhere": outside,
    "loops": lambda: program(
        [N("Loop", ["n", "", "x"], ["y"], body=onnx.load_from_string(program([])).graph)], n=1 << 40
    ),
    "computes a sigmoid": lambda: program([N("Sigmoid", ["x"], ["y"])]),
    "draws lots": lambda: program([N("RandomNormalLike", ["x"], ["y"])]),
    "clips to nothing": lambda: program([N("Clip", ["x", "a", "b"], ["y"])], a=np.float32(3), b=np.float32(-3)),
    "splits unevenly": lambda: program([N("Split", ["x", "s"], ["y", "z"])], s=[3, 3]),
    "slices with step 0": lambda: program([N("Slice", ["x", "a", "b", "c", "d"], ["y"])], a=[0], b=[4], c=[1], d=[0]),
    "gathers beyond its end": lambda: program([N("Gather", ["x", "i"], ["y"], axis=1)], i=np.array([9])),
    "transposes to nowhere": lambda: program([N("Transpose", ["x"], ["y"], perm=[0, 7])]),
}


def repacked(change: Callable[[str, bytes], bytes]) -> bytes:
    """The good program with every member of its archive changed."""
    data = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good()["m.pt2"])) as old, zipfile.ZipFile(data, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return data.getvalue()


def in_graph(old: str, new: str) -> Callable[[str, bytes], bytes]:
    return lambda name, data: data.replace(old.encode(), new.encode()) if name.endswith(".json") else data


EXPORTED: dict[str, Callable[[str, bytes], bytes]] = {
    "calls eval": in_graph("torch.ops.aten.relu.default", "builtins.eval"),
    "loads from a hub": in_graph("torch.ops.aten.relu.default", "torch.hub.load"),
    "reads a file": in_graph("torch.ops.aten.relu.default", "torch.ops.aten.from_file.default"),
    "is of another version": in_graph('"schema_version"', '"schema_version_"'),
    "is JSON of something else": lambda name, data: b"[]" if name.endswith(".json") else data,
    "is no JSON": lambda name, data: b"{" if name.endswith(".json") else data,
    "is nested without end": lambda name, data: b"[" * 100_000 if name.endswith(".json") else data,
    "holds code for weights": lambda name, data: data if name.endswith(".json") else pickle.dumps(Trap("trap")),
    "holds nothing": lambda name, data: b"",
}


def programs() -> Iterator[tuple[str, Case]]:
    for name, make in PROGRAMS.items():
        yield f"an ONNX program that {name}", lambda p, m=make: p.convert(model=p.write("given.onnx", m()).name)
    for name, change in EXPORTED.items():
        yield (
            f"an exported program that {name}",
            lambda p, c=change: p.convert(model=p.write("given.pt2", repacked(c)).name),
        )


# ---- networks -------------------------------------------------------------------------------------------------------

VALUES: dict[str, Callable[[np.ndarray], np.ndarray | None]] = {
    "left out": lambda value: None,
    "a text": lambda value: np.array(b"text"),
    "the largest number": lambda value: (
        np.full_like(value, np.iinfo(np.int64).max) if value.dtype.kind == "i" else value
    ),
    "a negative number": lambda value: np.full_like(value, -(1 << 40)) if value.dtype.kind == "i" else value,
    "a list": lambda value: np.zeros((3, 3), np.int64),
    "not a number": lambda value: np.array(np.nan),
}


def networks() -> Iterator[tuple[str, Case]]:
    fields = ("@timesteps", "@holdoff", "@format_version", "@loader", "layer/0/shape", "layer/0/@bits", "layer/1/shape")
    fields += ("layer/1/v0", "layer/1/bias_schedule", "layer/1/@threshold", "layer/1/weight", "layer/1/@exponent")
    fields += ("layer/1/neuron/vThMant", "layer/1/type", "layer/2/@kind", "layer/1/@source")
    for field, (name, change) in itertools.product(fields, VALUES.items()):
        if name in ("the largest number", "a negative number") and field in (
            *("@loader", "layer/1/type", "layer/2/@kind", "layer/1/@source"),
        ):
            continue  # no number

        def run(place: Place, field: str = field, change: Callable[[np.ndarray], Any] = change) -> list[Any]:
            content = dict(hdf5.load(good()["bundle/network.net"]))
            content.pop("@sha256")
            value = change(content.pop(field))
            content |= {} if value is None else {field: value}
            place.write("given.net", hdf5.dump(contents.sealed(content)))
            return ["inspect", "given.net"]

        yield f"a network whose {field} is {name}", run
    for name, spoil in LINKS.items():

        def spoilt(place: Place, spoil: Callable[[h5py.File], object] = spoil) -> list[Any]:
            with h5py.File(place.write("given.net", good()["bundle/network.net"]), "r+") as file:
                spoil(file)
            return ["inspect", "given.net"]

        yield f"a network with {name}", spoilt


LINKS: dict[str, Callable[[h5py.File], object]] = {
    "a link to another file": lambda f: f.__setitem__("layer/9", h5py.ExternalLink("/etc/passwd", "/")),
    "a link to itself": lambda f: f.__setitem__("layer/9", f["layer"]),
    "a soft link": lambda f: f.__setitem__("layer/9", h5py.SoftLink("/layer/1")),
    "data in another file": lambda f: f.create_dataset("w", (8,), "i8", external=[("/etc/passwd", 0, 64)]),
    "compressed terabytes": lambda f: f.create_dataset("w", (1 << 40,), "i8", chunks=(1 << 20,), compression="gzip"),
    "terabytes that are nowhere": lambda f: f.create_dataset("w", (1 << 40,), "i8"),
    "objects": lambda f: f.create_dataset("w", data=["text"], dtype=h5py.string_dtype()),
    "references": lambda f: f.create_dataset("w", data=[f["layer"].ref], dtype=h5py.ref_dtype),
    "a field more": lambda f: f.create_dataset("layer/1/more", data=np.zeros(3, np.int64)),
    "a long name": lambda f: f.create_dataset("x" * 5000, data=np.zeros(3, np.int64)),
    "another digest": lambda f: f.attrs.__setitem__("sha256", np.array(b"0" * 64)),
}
JSONS: dict[str, str] = {
    "a list": "[]",
    "a number": "1",
    "NaN": '{"task": NaN}',
    "nested without end": "[" * 100_000,
    "a key twice that is cut": '{"a": 1, "a"',
    "another task": '{"task": "magic"}',
    "a task of a list": '{"task": ["classes"]}',
    "a task of nothing": '{"task": null}',
    "a task that does not fit": '{"task": "binary"}',
}


def bundles() -> Iterator[tuple[str, Case]]:
    for name, text in JSONS.items():

        def run(place: Place, text: str = text) -> list[Any]:
            place.write("bundle/config.json", text)
            return ["evaluate", "bundle", "--data", "cal.npz"]

        yield f"a recipe that holds {name}", run
    for name, text in {
        "a list": "[]",
        "an unknown key": '{"magic": 1}',
        "nothing": "{}",
        "numbers": '{"layers": 3}',
    }.items():

        def reported(place: Place, text: str = text) -> list[Any]:
            place.write("bundle/report.json", text)
            return ["inspect", "bundle"]

        yield f"a report that holds {name}", reported


SPOILT: dict[str, Callable[[h5py.Group], object]] = {
    "a link to another file": lambda g: g["nodes"].__setitem__("x", h5py.ExternalLink("/etc/passwd", "/")),
    "a link to itself": lambda g: g["nodes"].__setitem__("x", g),
    "a soft link": lambda g: g["nodes"].__setitem__("x", h5py.SoftLink("/node/nodes/input")),
    "data in another file": lambda g: g.create_dataset("w", (8,), "i8", external=[("/etc/passwd", 0, 64)]),
    "compressed terabytes": lambda g: g.create_dataset("w", (1 << 40,), "i8", chunks=(1 << 20,), compression="gzip"),
    "terabytes that are nowhere": lambda g: g.create_dataset("w", (1 << 40,), "i8"),
    "terabytes of texts": lambda g: g.create_dataset("w", (1 << 40,), h5py.string_dtype()),
    "another filter": lambda g: g.create_dataset("w", (1 << 10,), "i8", compression="lzf"),
    "a bomb": lambda g: g.create_dataset("w", (1 << 31,), "i1", chunks=(1 << 20,), compression="gzip").write_direct(
        np.zeros(1 << 24, "i1"), dest_sel=np.s_[: 1 << 24]
    ),
    "references": lambda g: g.create_dataset("w", data=[g["nodes"].ref], dtype=h5py.ref_dtype),
    "a long text": lambda g: g.create_dataset("w", data="x" * 5000, dtype=h5py.string_dtype()),
    "a text that is none": lambda g: g.create_dataset("w", data=b"\xff", dtype=h5py.string_dtype()),
    "a thousand groups": lambda g: g.create_group("/".join(["x"] * 1000)),
    "an edge more": lambda g: replaced(g, "edges", [[b"input", b"output"]]),
    "an edge to nowhere": lambda g: replaced(g, "edges", [[b"input", b"x"]]),
    "edges of three": lambda g: replaced(g, "edges", [[b"input", b"output", b"input"]]),
    "edges of numbers": lambda g: replaced(g, "edges", [[1, 2]]),
    "a node more": lambda g: g["nodes"].copy("input", "x"),
    "a field more": lambda g: g["nodes/input"].create_dataset("more", data=1),
    "no nodes": lambda g: g.pop("nodes"),
    "no input": lambda g: g["nodes"].pop("input"),
    "a type of numbers": lambda g: replaced(g["nodes/input"], "type", 1),
    "a digest of something else": lambda g: replaced(g["metadata/ann2loihi"], "sha256", "0" * 64),
    "metadata of a number": lambda g: replaced(g, "metadata", 1),
}


def replaced(group: h5py.Group, name: str, value: Any) -> None:
    group.pop(name)
    group[name] = value


def graphs() -> Iterator[tuple[str, Case]]:
    for name, spoil in SPOILT.items():

        def spoilt(place: Place, spoil: Callable[[h5py.Group], object] = spoil) -> list[Any]:
            with h5py.File(place.write("given.nir", good()["network.nir"]), "r+") as file:
                spoil(file["node"])
            return ["evaluate", "given.nir", "--data", "cal.npz"]

        yield f"a graph with {name}", spoilt
    said, layer = "metadata/ann2loihi", "nodes/l0_0_potential/metadata/ann2loihi"
    fields = [f"{said}/{name}" for name in ("version", "form", "timesteps", "holdoff", "steps", "input", "input/bits")]
    fields += [f"{said}/input/{name}" for name in ("scale", "form")] + ["nodes/input/shape", "nodes/output/shape"]
    fields += [f"{layer}/{name}" for name in ("layer", "name", "kind", "shape", "theta", "v0", "schedule")]
    fields += ["nodes/l0_0_synapse0/weight", *(f"nodes/l0_0_synapse0/{said}/{name}" for name in ("edge", "exponent"))]
    values: dict[str, Any] = {"a text": "text", "the largest number": (1 << 63) - 1, "a negative number": -5}
    values |= {"a list": np.zeros((3, 3), np.int64), "not a number": np.nan, "left out": None, "a group": {}}
    for field, (name, value) in itertools.product(fields, values.items()):

        def changed(place: Place, field: str = field, value: Any = value) -> list[Any]:
            with h5py.File(place.write("given.nir", good()["network.nir"]), "r+") as file:
                file["node"].pop(field)
                if isinstance(value, dict):
                    file["node"].create_group(field)
                elif value is not None:
                    file["node"][field] = value
            return ["evaluate", "given.nir", "--data", "cal.npz"]

        yield f"a graph whose {field} is {name}", changed
    for name, make in GRAPHS.items():

        def modelled(place: Place, make: Callable[[], nir.NIRGraph] = make) -> list[Any]:
            nir.write(place.folder / "given.nir", make())
            return place.convert(model="given.nir")

        yield f"a graph of layers that {name}", modelled


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def conv(**changed: Any) -> nir.Conv2d:
    found = nir.Conv2d((2, 2), ones(3, 1, 1, 1), (1, 1), (0, 0), (1, 1), 1, np.zeros(3, np.float32))
    for name, value in changed.items():  # NIR computes with them where it makes a node
        setattr(found, name, value)
    return found


def layered(**changed: Any) -> Callable[[], nir.NIRGraph]:
    return lambda: graph_of_layers(False, **changed)


GRAPHS: dict[str, Callable[[], nir.NIRGraph]] = {
    "leaks": layered(b=nir.LIF(ones(6), ones(6), ones(6), ones(6))),
    "only integrates": layered(b=nir.I(ones(6))),
    "compares": layered(b=nir.Threshold(ones(6))),
    "waits": layered(b=nir.Delay(ones(6))),
    "fires by itself": layered(b=nir.IF(ones(6), -ones(6))),
    "fires at nothing": layered(b=nir.IF(ones(6), 0 * ones(6))),
    "divides by NaN": layered(b=nir.IF(ones(6), np.nan * ones(6))),
    "resists by texts": layered(b=nir.IF(ones(6), ones(6), metadata={"r": "x"}), a=nir.Scale(ones(5))),
    "goes round in a circle": layered(edges=[("c", "d"), ("d", "a")], d=nir.Linear(ones(4, 3))),
    "feeds itself": layered(edges=[("b", "b")]),
    "has two inputs": layered(edges=[("more", "a")], more=nir.Input(np.array([4]))),
    "has two outputs": layered(edges=[("c", "more")], more=nir.Output(np.array([3]))),
    "has a loose end": layered(edges=[("more", "a")], more=nir.Linear(ones(4, 3))),
    "weighs with another shape": layered(a=nir.Linear(ones(6, 5))),
    "weighs with three dimensions": layered(a=nir.Linear(ones(2, 6, 4))),
    "weighs with NaN": layered(a=nir.Linear(np.nan * ones(6, 4))),
    "weighs with complex numbers": layered(a=nir.Linear(1j * ones(6, 4))),
    "scales by another shape": layered(b=nir.Scale(ones(7))),
    "convolves what is flat": layered(a=conv()),
    "strides by nothing": layered(a=conv(stride=(0, 0))),
    "pads with terabytes": layered(a=conv(padding=(1 << 40, 1 << 40))),
    "pads by a word": layered(a=conv(padding="same", stride=(2, 2))),
    "groups by nothing": layered(a=conv(groups=0)),
    "pools nothing": layered(b=nir.SumPool2d(np.zeros(2, int), np.zeros(2, int), np.zeros(2, int))),
    "flattens what is not there": layered(b=nir.Flatten({"input": np.array([6])}, 7, 9)),
    "holds a graph without an end": layered(b=nir.NIRGraph({"input": nir.Input(np.array([6]))}, [], type_check=False)),
}


# ---- models ---------------------------------------------------------------------------------------------------------

RETURNED = ("None", "3", "'text'", "nn.Linear", "[nn.Linear(4, 3)]", "torch.zeros(3)", "{'a': 1}", "nn.Linear(4, 3), 1")
RAISED = (
    *(
        "ValueError('no')",
        "RuntimeError('two\\nlines')",
        "KeyError()",
        "SystemExit(0)",
        "SystemExit(3)",
        "MemoryError()",
    ),
    *("RecursionError()", "OSError(2, 'no')", "StopIteration()", "UnicodeError()", "ImportError('x')", "Warning()"),
    *("AssertionError()", "ModuleNotFoundError(name='theirs')", "Exception('x' * 10)", "GeneratorExit()"),
)
SOURCES: dict[str, str] = {
    "no Python": "def build(:",
    "brackets without end": "x = " + "(" * 500,
    "a byte that is no text": "x = '\udcff'",
    "nothing": "",
    "a name that is no function": "build = 3",
    "arguments that are needed": "def build(a, b): return nn.Linear(4, 3)",
    "itself, imported": "import theirs\nfrom theirs import nothing_of_that_name\n" + GOOD,
    "what is not installed": "import nothing_of_that_name\n" + GOOD,
    "a function that calls itself": "def build(): return build()",
    "a generator": "def build():\n    yield nn.Linear(4, 3)",
    "a coroutine": "async def build(): return nn.Linear(4, 3)",
    "sys.exit() after the model": GOOD + "sys.exit()",
    "os.abort kept for later": "def build():\n    raise KeyError(os.abort)",
    "a directory that is gone": "import tempfile\nd = tempfile.mkdtemp()\nos.chdir(d)\nos.rmdir(d)\nraise OSError",
}
FORWARDS: dict[str, str] = {
    "raises": "raise ValueError('no')",
    "raises in two lines": "raise ValueError('no\\nno')",
    "exits": "sys.exit(0)",
    "returns nothing": "return None",
    "returns text": "return 'x'",
    "returns a number": "return 3",
    "returns two": "return self.a(x), self.a(x)",
    "returns a dict": "return {'y': self.a(x)}",
    "never ends by itself": "return self(x)",
    "asks for values": "return self.a(x) if x.sum() > 0 else -self.a(x)",
    "counts values": "return self.a(x[x > 0])",
    "draws lots": "return self.a(x) + torch.rand(3)",
    "goes to NumPy": "return torch.from_numpy(x.detach().numpy())",
    "is quadratic": "return self.a(x * x)",
    "divides": "return self.a(1 / x)",
    "sorts": "return self.a(x.sort(1).values)",
    "mixes samples": "return self.a(x - x.mean(0))",
    "doubles by concatenation": "for _ in range(40): x = torch.cat([x, x], 1)\n        return self.a(x)",
    "fills terabytes": "return self.a(x) + torch.zeros(1 << 42).sum()",
    "expands to terabytes": "return self.a(x.expand(1 << 40, 2, 4)[0])",
    "opens what is nowhere": "open('nowhere')",
    "has no parameters": "return x.flatten(1)[:, :0]",
}


def models() -> Iterator[tuple[str, Case]]:
    for value in RETURNED:
        yield f"a factory that returns {value}", lambda p, v=value: p.model(f"def build(): return {v}")
    for error in RAISED:
        yield f"a model file that raises {error}", lambda p, e=error: p.model(f"raise {e}\n{GOOD}")
        yield f"a factory that raises {error}", lambda p, e=error: p.model(f"def build(): raise {e}")
    for name, source in SOURCES.items():
        yield (
            f"a model file that holds {name}",
            lambda p, s=source: (
                p.write("theirs.py", (HEADER + s).encode("utf-8", "surrogateescape")),
                p.convert(model="theirs.py:build"),
            )[1],
        )
    for name, body in FORWARDS.items():
        source = (
            "class Build(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.a = nn.Linear(4, 3)\n"
            f"    def forward(self, x):\n        {body}\n"
        )
        yield f"a forward that {name}", lambda p, s=source: p.model(s, "Build")
    for name in ("", "nothing", "build.nothing", "nn", "sys", "__name__", "1", "bu ild"):
        yield f"a model called {name!r}", lambda p, n=name: p.convert(model=f"model.py:{n}")
    for spec in ("", ":", ":build", "model.py", "model", "w.pt", "m.pt3", "http://host/model.py:build", "cal.npz:x"):
        yield f"a model given as {spec!r}", lambda p, s=spec: p.convert(model=s)
    printing = "for i in range(20_000): print('x' * 50, i)\n"
    yield "a model file that prints and fails", lambda p: p.model(printing + "raise ValueError")


# ---- arguments ------------------------------------------------------------------------------------------------------

NUMBERS = ("-1", "1.5", "many", "nan", "", "1e3", str(1 << 70), "0x10")
OPTIONS: dict[str, tuple[str, ...]] = {
    "timesteps": ("0", "5000", *NUMBERS),
    "holdoff": ("100000", *NUMBERS),
    "updates": ("0", *NUMBERS),
    "input-bits": ("1", "25", *NUMBERS),
    "dense-limit": ("0", *NUMBERS[:-2]),
    "method": ("", "magic", "MSE", "mse,exact"),
    "weight-rule": ("", "magic"),
    "layer-copies": ("a", "conv1=", "conv1=0", "nothing=2", "conv1=2,conv1=2", "=2", ",", "∞=2"),
    "threshold": ("", "magic", "0.5"),
    "initial": ("", "magic"),
    "task": ("", "magic", "binary", "pixels"),
    "recipe": ("", "magic", "Recipe()"),
    "latency-budget": ("5", *NUMBERS),
}
SHAPES = ("", "0", "-1", "a", "1,2,3,4", "1,,2", "1e3", "4.0", "(4,)", "4;4", "1,0,1", "∞", "4,", "[4]", "None")
COMMANDS: dict[str, list[str]] = {
    "no such command": ["fly"],
    "no such option": ["inspect", "bundle", "--fast"],
    "an argument too few": ["inspect"],
    "an argument too many": ["inspect", "bundle", "bundle"],
    "an option without its value": ["convert", "--model"],
    "required options left out": ["convert", "-o", "out"],
    "no samples": ["verify", "bundle", "--data", "cal.npz", "--samples", "0"],
    "no inputs to verify on": ["verify", "bundle"],
    "a case in the place of a file": ["verify", "bundle", "--data", "cal.npz", "--reduce", "cal.npz"],
    "samples below none": ["verify", "bundle", "--data", "cal.npz", "--samples", "-1"],
    "more samples than there are": ["evaluate", "bundle", "--data", "cal.npz", "--samples", "41"],
    "samples that are no number": ["evaluate", "bundle", "--data", "cal.npz", "--samples", "all"],
    "an unknown engine": ["evaluate", "bundle", "--data", "cal.npz", "--engine", "magic"],
    "an engine without a name": ["evaluate", "bundle", "--data", "cal.npz", "--engine", ""],
    "an unknown policy": ["evaluate", "bundle", "--data", "cal.npz", "--overflow", "wrap"],
    "a demo of no samples": ["demo", "-o", "out", "--samples", "0"],
    "a demo of more samples than there are": ["demo", "-o", "out", "--samples", "99999"],
    "a demo in the place of a file": ["demo", "-o", "cal.npz"],
    "a network that is none": ["evaluate", "bundle/config.json", "--data", "cal.npz"],
}
PLACES = ("cal.npz", "cal.npz/below", "/", ".", "", "x" * 300, "/dev/null", "bundle/..", "loop")


def arguments() -> Iterator[tuple[str, Case]]:
    for option, values in OPTIONS.items():
        for value in values:
            yield f"--{option} {value!r}", lambda p, o=option, v=value: p.convert(f"--{o}", v)
    for shape in SHAPES:
        yield f"--input-shape {shape!r}", lambda p, s=shape: p.check(**{"input-shape": s})
    for name, command in COMMANDS.items():
        yield name, lambda p, c=command: c
    for path in PLACES:

        def run(place: Place, path: str = path) -> list[Any]:
            (place.folder / "loop").symlink_to("loop")
            (place.folder / "bundle" / "thesis.tex").touch()
            return [*place.convert()[:-1], path]

        yield f"-o {path[:20]!r}", run


# ---- all of them ----------------------------------------------------------------------------------------------------

FAMILIES = (damaged, no_files, arrays, weights, programs, networks, bundles, graphs, models, arguments)
CASES: dict[str, Case] = {name: case for family in FAMILIES for name, case in family()}


def run(arguments: list[Any]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["ann2loihi", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
            cli.main()
    finally:
        sys.argv = argv
    return ended.value.code, out.getvalue(), err.getvalue()  # type: ignore[return-value]


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Let the process grow by no more than ``MEMORY``."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def listing(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture(scope="module", autouse=True)
def warm(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is loaded once is not what a case takes."""
    place = Place(tmp_path_factory.mktemp("warm"), good())
    with _inside(place.folder):
        for command in (place.convert(), *(place.convert(model=name) for name in ("m.pt2", "m.onnx", "m.nir"))):
            assert run(command)[0] == 0
        assert run(["evaluate", "bundle", "--data", "cal.npz"])[0] == run(["inspect", "bundle"])[0] == 0
        assert run(["evaluate", "network.nir", "--data", "cal.npz"])[0] == 0


def test_there_are_enough() -> None:
    assert len(CASES) == sum(1 for family in FAMILIES for _ in family()) >= 300


@pytest.mark.parametrize("name", CASES)
def test_it_ends_with_2_and_a_line_for_each_finding(name: str, tmp_path: Path) -> None:
    place = Place(tmp_path, good())
    with _inside(tmp_path):
        arguments = CASES[name](place)
        before, start = listing(tmp_path), time.process_time()
        with limited():
            code, out, err = run(arguments)
        seconds, after = time.process_time() - start, listing(tmp_path)
    lines = [line for line in err.splitlines() if not line.startswith("xxxxx")]  # what a model prints
    assert (code, out) == (2, ""), err
    assert lines
    assert all(line.startswith("error: ") for line in lines), err
    assert max(map(len, lines)) < 1000
    after = {path: changed for path, changed in after.items() if "__pycache__" not in path}
    assert after == before
    assert not place.trap.exists()
    assert seconds < SECONDS
