"""Sums, slices, padding, concatenation and every change of shape fold into the maps around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from importing import agree, conv, only_map
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from toolchain.frontends import import_model
from toolchain.graph import FloatConv2d


@pytest.mark.parametrize(
    "combine",
    [
        lambda a, b: a - b,
        lambda a, b: torch.sub(a, b, alpha=2),
        lambda a, b: torch.add(a, b, alpha=-0.5),
        lambda a, b: a.add(b),
        lambda a, b: 3 - a + b,
        lambda a, b: a.sub_(b),
        lambda a, b: a + b + a - 1,
        lambda a, b: a + torch.arange(4.0).reshape(4, 1, 1) - b,
        lambda a, b: b + a.mean((2, 3), keepdim=True),
    ],
)
def test_additions_and_subtractions_with_every_sign(combine: Callable[[Tensor, Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(combine(self.left(x), self.right(self.middle(x).relu())).relu())

    agree(
        Forward(
            forward,
            stem=conv(),
            left=conv(4, 4, padding=1),
            middle=conv(4, 4, padding=1),
            right=conv(4, 4, padding=1),
            head=conv(4, 2),
        ),
        (2, 8, 8),
    )


REARRANGED: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x[:, :, ::2, ::2],
    lambda x: x[:, 1:3],
    lambda x: x[:, [2, 0, 2]],
    lambda x: x[..., 1:-2, 3:],
    lambda x: x[:, 1::2, :, 2:3],
    lambda x: functional.pad(x, (0, 0, 1, 2, 2, 1)),
    lambda x: functional.pad(x, (-1, 2, 1, -2)),
    lambda x: functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0),
    lambda x: functional.pad(x, (1, 1), value=3.0),
    lambda x: torch.cat([x, x[:, :1] * 2, functional.relu(x)], dim=1),
    lambda x: torch.cat((torch.ones(len(x), 1, 6, 6), x), 1),
    lambda x: x.chunk(2, dim=1)[1],
    lambda x: torch.split(x, [1, 3], dim=1)[1] - torch.chunk(x, 4, 1)[0],
    lambda x: x.unbind(1)[2].unsqueeze(1),
    lambda x: x.view(-1, 2, 2, 6, 6).transpose(1, 2).reshape(-1, 4, 6, 6),
    lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    lambda x: x * 3 - x / 4,
    lambda x: -x,
    lambda x: 2 * x + torch.arange(4.0).reshape(4, 1, 1) * x,
    lambda x: (x + 1).div_(2).mul(torch.tensor([1.0, -2.0, 3.0, 0.5])[:, None, None]),
    lambda x: sum([x, 2 * x, x[:, [1, 0, 3, 2]]]),  # type: ignore[return-value]
)


@pytest.mark.parametrize("change", REARRANGED)
@pytest.mark.parametrize("rectified", [True, False])
def test_slices_padding_concatenation_and_scaling_are_convolutions(
    change: Callable[[Tensor], Tensor], rectified: bool
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x).relu() if rectified else self.first(x)
        return self.head(self.second(change(x)).relu())

    channels = change(torch.zeros(2, 4, 6, 6)).shape[1]
    model = Forward(forward, first=conv(2, 4, 1), second=conv(channels, 3, 1), head=conv(3, 2, 1))
    graph = agree(model, (2, 6, 6))
    assert all(isinstance(edge.map, FloatConv2d) for layer in graph.layers for edge in layer.edges)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.transpose(2, 3),
        lambda x: functional.pad(x, (1, 1, 1, 1), "reflect"),
        lambda x: x * torch.arange(36.0).reshape(6, 6),
        lambda x: x.flatten(1)[:, 5:30],
        lambda x: torch.cat([x.flatten(1), x.mean((2, 3))], 1),
        lambda x: x.mean((2, 3), keepdim=True).expand(-1, -1, 2, 3),
        lambda x: functional.adaptive_avg_pool2d(x, 12),
        lambda x: x.sum(1, keepdim=True) + x.sum((2, 3), keepdim=True),
        lambda x: x[:, 0],
        lambda x: x[:, :, None, 2],
    ],
)
def test_every_rearrangement_before_a_linear_layer_is_folded_into_its_matrix(
    change: Callable[[Tensor], Tensor],
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(change(self.first(x).relu()).flatten(1))

    size = change(torch.zeros(2, 4, 6, 6))[0].numel()
    graph = agree(Forward(forward, first=conv(padding=1), fc=nn.Linear(size, 3)), (2, 6, 6), dense_limit=3 * 144)
    assert tuple(only_map(graph.layers[1]).weight.shape) == (3, 144)


def test_zero_padding_as_a_module() -> None:
    graph = agree(nn.Sequential(conv(), nn.ZeroPad2d((1, 0, 2, -1)), nn.ReLU(), conv(4, 3, 1)), (2, 6, 6))
    assert graph.layers[0].shape == (4, 5, 5)


def test_a_rearrangement_that_takes_too_large_a_matrix_is_refused_with_its_size() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu().transpose(2, 3))

    with pytest.raises(Refused, match=r"^second \(Conv2d\): .* dense matrix of 108 x 144 = 15,552 weights, more than"):
        import_model(Forward(forward, first=conv(padding=1), second=conv(4, 3, 1)), (2, 6, 6), dense_limit=99)
