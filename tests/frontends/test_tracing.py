"""Forwards as people write them are traced: subclasses, sizes, branches on them, default arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from importing import agree, conv, names, refusals
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends import import_model


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x)


def test_a_subclass_is_traced_into_instead_of_taken_for_its_base() -> None:
    agree(nn.Sequential(Doubled(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (2, 6, 6))


class CheckedNorm(nn.BatchNorm2d):
    """Its inherited forward branches on the number of dimensions."""


def test_a_forward_may_compute_with_sizes_and_branch_on_them() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        if channels != 2 or x.dim() != 4 or len(x) != x.size(0):
            raise ValueError("never")
        x = self.norm(self.conv(x)).relu()
        x = functional.avg_pool2d(x, x.size()[3])
        return self.fc(x.reshape(batch, x.numel() // batch))

    agree(Forward(forward, conv=conv(), norm=CheckedNorm(4), fc=nn.Linear(4, 3)), (2, 6, 6))


class Optional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.extra = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None, deep: bool = True) -> Tensor:
        x = self.fc(x)
        if mask is not None:
            x = x * mask
        return self.extra(x.relu()) if deep else x


def test_further_arguments_take_their_defaults() -> None:
    assert names(agree(Optional(), (4,))) == ["fc", "extra"]


def test_a_second_argument_without_a_default_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    assert refusals(Two(), (2, 3, 3)) == [
        "y of Two: forward needs a second argument; give it a default or wrap the model"
    ]


def test_an_error_in_what_a_forward_computes_by_itself_is_reported_with_its_line() -> None:
    model = Forward(lambda self, x: x + torch.from_numpy(np.zeros((2, 3)) @ np.zeros((2, 3))))
    (found,) = refusals(model, (3,))
    assert "mismatch in its core dimension" in found
    assert "(test_tracing.py, line " in found


def test_numbers_arrays_and_types_of_numpy_and_older_torch_are_taken() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x) * np.float32(0.5) + np.arange(5, dtype=np.float32)
        return self.last(x.type(torch.FloatTensor).relu() if x.is_floating_point() and not x.is_cuda else x)

    model, x = Forward(forward, first=nn.Linear(4, 5), last=nn.Linear(5, 3)), torch.linspace(-1, 1, 8).reshape(2, 4)
    with torch.no_grad():
        assert torch.allclose(import_model(model, (4,)).logits(x), model(x), atol=1e-5)
