"""Convolutions in float64 are torch's, in parts of any size."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from sim.network import Geometry
from toolchain.graph import FloatConv2d, precise

GEOMETRIES = {
    "plain": ((5, 3, 3, 2), Geometry()),
    "padded": ((5, 3, 3, 3), Geometry(padding=(1, 1))),
    "strided": ((4, 3, 3, 2), Geometry((2, 3), (2, 0))),
    "dilated": ((4, 3, 2, 3), Geometry((1, 2), (0, 3), (3, 2))),
    "points": ((6, 3, 1, 1), Geometry((2, 2))),
    "the whole": ((6, 3, 9, 8), Geometry()),
    "grouped": ((6, 1, 3, 3), Geometry(padding=(1, 1), groups=3)),
    "selecting": ((3, 1, 1, 1), Geometry((2, 3), groups=3)),
    "selecting, padded": ((3, 1, 1, 1), Geometry((2, 3), (1, 1), groups=3)),
}


@pytest.mark.parametrize("cached", [1, 500, 2000, 1 << 18])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_it_is_torch_s_convolution(name: str, cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precise, "CACHED", cached)
    shape, geometry = GEOMETRIES[name]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-100, 101, shape, generator=generator).double()  # sums of integers are exact
    for samples in (0, 1, 5):
        x = torch.randint(-100, 101, (samples, 3, 9, 8), generator=generator).float()
        wanted = functional.conv2d(x.double(), weight, None, *geometry).float()
        for kind in (torch.float32, torch.float64):
            made = FloatConv2d(weight.to(kind), geometry)(x)
            assert made.dtype == torch.float32
            assert torch.equal(made, wanted)


def test_sums_are_float64_and_rounded_once() -> None:
    x = torch.tensor([2.0**24, 1, 1, -(2.0**24)]).reshape(1, 1, 2, 2)
    assert precise.conv2d(x, torch.ones(1, 1, 2, 2, dtype=torch.float64), Geometry()).item() == 2
