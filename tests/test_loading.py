"""Everything a user can hand over wrongly gets one clear line per finding, and nothing in it is executed."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sim.findings import Refused
from toolchain import inputs, loading
from toolchain.inputs import as_inputs

FACTORY = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))

def broken():
    raise KeyError("no such config")

def number():
    return 3
"""


@pytest.fixture
def factory(tmp_path: Path) -> str:
    path = tmp_path / "model.py"
    path.write_text(FACTORY)
    return f"{path}:build"


def refusal(call: Any, *arguments: Any) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments)
    assert len(str(caught.value).splitlines()) == len(caught.value.findings)
    return str(caught.value)


def test_a_state_dict_and_safetensors_give_the_same_model(factory: str, tmp_path: Path) -> None:
    state = {key: torch.randn_like(value) for key, value in loading.load_model(factory).state_dict().items()}
    torch.save(state, tmp_path / "model.pt")
    save_file(state, tmp_path / "model.safetensors")
    for name in ("model.pt", "model.safetensors"):
        model = loading.load_model(factory, tmp_path / name)
        assert not model.training
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_model_that_cannot_be_built_is_refused(factory: str, tmp_path: Path) -> None:
    assert "no factory named; give FILE.py:FACTORY" in refusal(loading.load_model, "model.py")
    assert "no such file or directory" in refusal(loading.load_model, f"{tmp_path}/none.py:build")
    assert "has no callable 'make'" in refusal(loading.load_model, factory.replace(":build", ":make"))
    assert "KeyError: 'no such config'" in refusal(loading.load_model, factory.replace(":build", ":broken"))
    assert "returns int, not an nn.Module" in refusal(loading.load_model, factory.replace(":build", ":number"))
    (tmp_path / "bad.py").write_text("def build(:")
    assert "SyntaxError" in refusal(loading.load_model, f"{tmp_path}/bad.py:build")


def test_a_file_that_holds_its_weights_takes_no_others(tmp_path: Path) -> None:
    for name in ("model.pt2", "model.onnx"):
        message = refusal(loading.load_model, f"{tmp_path}/{name}", tmp_path / "weights.pt")
        assert message == f"{tmp_path}/{name}: holds its own weights; leave --weights out"
        assert "no such file or directory" in refusal(loading.load_model, f"{tmp_path}/{name}")


def test_every_key_and_shape_that_does_not_fit_is_listed(factory: str, tmp_path: Path) -> None:
    state = loading.load_model(factory).state_dict()
    state["extra"] = state.pop("0.bias")
    state["3.weight"] = torch.zeros(3, 9)
    torch.save(state, tmp_path / "model.pt")
    lines = refusal(loading.load_model, factory, tmp_path / "model.pt").splitlines()
    assert [re.sub(r".*model\.pt: (.*);.*", r"\1", line) for line in lines] == [
        "'3.weight' has shape (3, 9), the model's has (3, 8)",
        "holds 'extra', which the model does not have",
        "lacks '0.bias'",
    ]


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_code_in_a_pickle_is_refused_and_not_run(factory: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    torch.save({"0.weight": Payload(trap)}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Payload(trap)))
    code = "holds objects or code beside tensors, which are never executed"
    assert code in refusal(loading.load_model, factory, tmp_path / "zip.pt")
    # Recent torch does not open a bare pickle at all.
    assert re.search(
        f"{code}|cannot be read as a torch file", refusal(loading.load_model, factory, tmp_path / "plain.pt")
    )
    np.savez(tmp_path / "data.npz", x=np.array([Payload(trap)], dtype=object))
    assert "is not a readable .npz file" in refusal(inputs.load_arrays, tmp_path / "data.npz")
    assert not trap.exists()


def test_weights_of_another_kind_are_refused(factory: str, tmp_path: Path) -> None:
    torch.save({"epoch": 3, "model": {}}, tmp_path / "checkpoint.pt")
    assert "holds a dict with keys 'epoch', 'model', not a state_dict of tensors; save model.state_dict() itself" in (
        refusal(loading.load_model, factory, tmp_path / "checkpoint.pt")
    )
    torch.save(loading.load_model(factory).state_dict(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    for name, content in (("cut.pt", whole[: len(whole) // 2]), ("empty.pt", b""), ("noise.pt", b"\x80\x02noise")):
        (tmp_path / name).write_bytes(content)
        assert re.search(
            "cannot be read as a torch file|holds objects", refusal(loading.load_model, factory, tmp_path / name)
        )
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 40)
    assert "is not a safetensors file" in refusal(loading.load_model, factory, tmp_path / "bad.safetensors")
    assert "no such file or directory" in refusal(loading.load_model, factory, tmp_path / "none.pt")


def test_arrays_come_back_as_model_inputs(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=np.full((2, 1, 3, 3), 51, np.uint8), y=np.array([1, 0], np.int32))
    x, y = inputs.load_arrays(tmp_path / "data.npz", (1, 3, 3))
    assert torch.equal(x, torch.full((2, 1, 3, 3), 51 / 255))
    assert y is not None
    assert y.tolist() == [1, 0]
    with_first = inputs.selected(x, y, 1)
    assert with_first[0].shape == (1, 1, 3, 3)


GOOD = np.zeros((2, 1, 3, 3), np.float32)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(2, int)}, "has no array 'x'"),
        ({"x": GOOD}, "has no array 'y'; add the labels"),
        ({"x": GOOD[:, :, :2], "y": np.zeros(2, int)}, r"x: shape (2, 1, 2, 3); it needs (N, 1, 3, 3)"),
        ({"x": GOOD[:0], "y": np.zeros(0, int)}, "x: empty: shape (0, 1, 3, 3); give at least one sample"),
        ({"x": GOOD * np.nan, "y": np.zeros(2, int)}, "x: sample 0 holds NaN or infinity; clean the data"),
        ({"x": GOOD.astype(np.int64), "y": np.zeros(2, int)}, "give uint8 or floating-point numbers"),
        ({"x": GOOD.astype(str), "y": np.zeros(2, int)}, "give uint8 or floating-point numbers"),
        ({"x": GOOD, "y": np.zeros(3, int)}, "y: int64 of shape (3,); it needs numbers for 2 samples"),
        ({"x": GOOD, "y": np.array(["cat", "dog"])}, "y: <U3 of shape (2,); it needs numbers for 2 samples"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    assert message in refusal(inputs.load_arrays, tmp_path / "data.npz", (1, 3, 3))


def test_files_that_are_no_archives_or_promise_too_much_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "data.npz", x=GOOD, y=np.zeros(2, int))
    whole = (tmp_path / "data.npz").read_bytes()
    for name, content in (("cut.npz", whole[:200]), ("empty.npz", b""), ("text.npz", b"x,y\n1,2\n")):
        (tmp_path / name).write_bytes(content)
        assert "is not a readable .npz file" in refusal(inputs.load_arrays, tmp_path / name)
    assert "no such file or directory" in refusal(inputs.load_arrays, tmp_path / "none.npz")
    monkeypatch.setattr(inputs, "ARRAY_LIMIT", 100)
    assert "bytes, more than 100; split the data" in refusal(inputs.load_arrays, tmp_path / "data.npz")


def test_asking_for_samples_that_are_not_there_is_refused() -> None:
    x = torch.zeros(3, 2)
    for samples in (0, -1, 4):
        assert f"samples: {samples} asked for; the data holds 1 to 3" in refusal(inputs.selected, x, None, samples)


def test_inputs_of_wrong_rank_are_refused() -> None:
    assert "shape (3,); it needs (N, C, H, W), (N, C, L) or (N, features)" in refusal(as_inputs, np.zeros(3))
    assert "calibration: type list" in refusal(as_inputs, [["a"]])
