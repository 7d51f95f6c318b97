"""Arrays of inputs and labels: read as data, one clear line for each that cannot be used, and nothing executed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from refusing import refusal

from toolchain import inputs
from toolchain.inputs import as_inputs


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_code_in_an_array_of_objects_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    np.savez(tmp_path / "data.npz", x=np.array([Payload(trap)], dtype=object))
    assert "is not a readable .npz file" in refusal(inputs.load_arrays, tmp_path / "data.npz")
    assert not trap.exists()


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
        ({"x": GOOD.astype(str), "y": np.zeros(2, int)}, "give floating-point numbers or integers"),
        ({"x": GOOD, "y": np.zeros(3, int)}, "y: int64 of shape (3,); it needs numbers for 2 samples"),
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
