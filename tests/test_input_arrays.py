"""Inputs come as people have them: any real numbers in any layout are taken, all else is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from networks import Forward
from torch import nn

from sim.findings import Refused
from toolchain import assessment, inputs
from toolchain.convert import convert
from toolchain.demo import data, load_model
from toolchain.inputs import as_inputs

#: Small integers, which every type of number holds: samples of 2 x 3 x 4 values.
VALUES = np.random.default_rng(0).integers(0, 99, (5, 2, 3, 4))
WANTED = torch.from_numpy(VALUES.astype(np.float32))


def padded(array: np.ndarray) -> np.ndarray:
    """Return the same values as every other one of a larger array."""
    large = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    large[..., ::2] = array
    return large[..., ::2]


def read_only(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array


TYPES = ("i1", "i2", ">i2", "i4", ">i4", "i8", ">i8", "u2", ">u2", "u4", "u8", ">u8", "f2", ">f2", "f4", ">f4")


@pytest.mark.parametrize("dtype", [*TYPES, "f8", ">f8", np.longdouble])
def test_numbers_of_every_type_and_byte_order_are_values_as_they_are(dtype: Any) -> None:
    found = as_inputs(VALUES.astype(dtype))
    assert found.dtype == torch.float32
    assert torch.equal(found, WANTED)


def test_bytes_are_grey_values_and_truth_values_are_0_and_1() -> None:
    for x in (VALUES.astype(np.uint8), torch.from_numpy(VALUES).to(torch.uint8), list(VALUES.astype(np.uint8))):
        assert torch.equal(as_inputs(x), WANTED / 255)
    for x in (VALUES > 50, torch.from_numpy(VALUES > 50)):
        assert torch.equal(as_inputs(x), (WANTED > 50).float())


@pytest.mark.parametrize(
    "x",
    [
        np.asfortranarray(VALUES.astype(np.float32)),
        padded(VALUES.astype(np.float32)),
        np.flip(np.flip(VALUES.astype(np.float64)).copy()),
        read_only(VALUES.astype(np.float32)),
        np.broadcast_to(VALUES[:, :1, :1, :1].astype(np.float32), (5, 1, 1, 1)),
        WANTED.to(memory_format=torch.channels_last),
        WANTED.flip(0).transpose(1, 3).contiguous().transpose(1, 3).flip(0),
        WANTED.clone().requires_grad_(),
        nn.Parameter(WANTED.clone()),
        WANTED.double(),
        WANTED.half(),
        WANTED.bfloat16(),
        WANTED.short(),
        WANTED.long(),
        torch.complex(-WANTED, -WANTED).conj().imag,  # whose sign is only noted
        list(WANTED),
        tuple(WANTED.bfloat16()),
        list(VALUES),
        VALUES.tolist(),
        [*VALUES[:4], torch.from_numpy(VALUES[4])],
    ],
    ids=lambda x: type(x).__name__,
)
def test_numbers_in_every_layout_are_taken(x: Any) -> None:
    found = as_inputs(x)
    assert found.is_contiguous()
    assert not found.requires_grad
    assert torch.equal(found, WANTED[:, : found.shape[1], : found.shape[2], : found.shape[3]])


@pytest.mark.parametrize("x", [VALUES.astype(np.float32), WANTED, WANTED.numpy(), VALUES.astype(np.uint8)])
def test_what_is_taken_shares_no_memory_with_what_was_given(x: Any) -> None:
    before = x.copy() if isinstance(x, np.ndarray) else x.clone()
    as_inputs(x).fill_(-1)
    assert (x == before).all()


def masked() -> np.ma.MaskedArray:
    return np.ma.masked_less(VALUES.astype(np.float32), 3)


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def changed(value: Any, dtype: Any = np.float64) -> np.ndarray:
    x = VALUES.astype(dtype)
    x[3, 1, 2, 0] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (VALUES.astype(complex), "type complex128; give floating-point numbers or integers"),
        (torch.zeros(2, 3, dtype=torch.complex64), "type torch.complex64; give floating-point"),
        ([*VALUES.tolist(), VALUES[0].astype(complex).tolist()], "type list of complex128; give floating-point"),
        (VALUES.astype(object), "type object; give floating-point"),
        (np.array([["1", "2"]]), "type <U1; give floating-point"),
        (np.zeros((2, 3), "M8[s]"), "type datetime64[s]; give floating-point"),
        (np.zeros(2, [("a", "f4"), ("b", "f4")]), "type [('a', '<f4'), ('b', '<f4')]; give floating-point"),
        (None, "type NoneType; give floating-point"),
        ({"x": VALUES}, "type dict; give floating-point"),
        (masked(), "a masked array; fill in what is masked"),
        (list(masked()), "a masked array; fill in what is masked"),
        (torch.zeros(2, 3).to_sparse(), "a tensor that is sparse_coo; give a dense tensor"),
        (torch.quantize_per_tensor(torch.zeros(2, 3), 1.0, 0, torch.qint8), "a tensor that is quantised; give a dense"),
        (torch.zeros(2, 3, device="meta"), "a tensor that is meta; give a dense tensor"),
        ([VALUES[0], VALUES[1, :1]], "no array can be made of it"),
        ([WANTED[0], WANTED[1, :1]], "samples of different shapes; give all samples one shape"),
        (changed(np.nan), "sample 3 holds NaN or infinity; clean the data"),
        (changed(-np.inf, np.longdouble), "sample 3 holds NaN or infinity; clean the data"),
        (changed(-1e39), "sample 3 holds 1e+39, beyond float32; scale the data"),
        (torch.from_numpy(changed(1e300)), "sample 3 holds 1e+300, beyond float32; scale the data"),
        (
            changed(np.finfo(np.longdouble).max, np.longdouble),
            "sample 3 holds 1.8e+308, beyond float32; scale the data",
        ),
        (np.zeros((2, 1, 3, 4, 5)), "shape (2, 1, 3, 4, 5); it needs (N, C, H, W)"),
        (np.zeros((0, 3)), "empty: shape (0, 3); give at least one sample"),
    ],
    ids=lambda x: x[:30] if isinstance(x, str) else type(x).__name__,
)
def test_all_else_is_refused_in_one_line(x: Any, message: str) -> None:
    with pytest.raises(Refused) as caught:
        as_inputs(x, where="images")
    assert str(caught.value).startswith(f"images: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_ragged_tensor_is_refused() -> None:
    with pytest.warns(UserWarning, match="nested tensors"):
        x = nested()
    with pytest.raises(Refused, match="calibration: a tensor that is nested; give a dense tensor"):
        as_inputs(x)


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble, ">i2"])
def test_files_hold_numbers_of_every_type_too(tmp_path: Path, dtype: Any) -> None:
    np.savez(tmp_path / "data.npz", x=VALUES.astype(dtype), y=np.arange(5).astype(">i8"))
    x, y = inputs.load_arrays(tmp_path / "data.npz")
    assert torch.equal(x, WANTED)
    assert y is not None
    assert y.tolist() == list(range(5))


def test_a_model_that_writes_into_its_input_changes_nobodys_data() -> None:
    digits, trained = data.load(), load_model()
    model = Forward(lambda self, x: self.trained(x.mul_(2).sub_(0.5).add_(0.5).div_(2)), trained=trained)
    x, y = digits.test_x[:40].clone(), digits.test_y[:40]
    conversion = convert(model, x, 4)
    report = assessment.report(conversion, model, x, y)
    assert torch.equal(x, digits.test_x[:40])
    assert report.agreement["folded"].value == 100


def test_a_report_takes_what_the_conversion_takes() -> None:
    digits, model = data.load(), load_model()
    grey = (digits.test_x[:40] * 16).round() * 15  # 0..240, which bytes hold
    conversion = convert(model, digits.calibration_x[:64], 4)
    found = [
        assessment.report(conversion, model, x, digits.test_y[:40]).as_dict()
        for x in (grey / 255, grey.to(torch.uint8), grey.to(torch.uint8).numpy())
    ]
    assert found[0] == found[1] == found[2]
