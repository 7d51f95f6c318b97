"""Models are changed in a copy, and what the change cannot express is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from importing import agree, conv
from torch import nn

from sim.findings import Refused
from toolchain.frontends import import_model
from toolchain.surgery import replace_max_pooling


def test_maximum_pooling_is_replaced_in_a_copy() -> None:
    shared = nn.MaxPool2d(2, 1, 1, ceil_mode=True)
    model = nn.Sequential(conv(), shared, nn.Sequential(shared, nn.ReLU()))
    copied: Any = replace_max_pooling(model)
    pool = copied[1]
    assert [type(m) for m in pool] == [nn.AvgPool2d, nn.ReLU]  # it pads: see the next test
    pool = pool[0]
    assert (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) == (2, 1, 1, True)
    assert copied[2][0] is copied[1]
    assert model[1] is shared
    assert copied[0].weight is not model[0].weight
    assert type(replace_max_pooling(nn.MaxPool2d(3))) is nn.AvgPool2d


def test_a_replaced_pooling_that_pads_becomes_a_layer_of_its_own_and_needs_no_matrix() -> None:
    model = nn.Sequential(conv(padding=1), nn.ReLU(), nn.MaxPool2d(3, 2, 1), conv(4, 3, padding=1))
    replaced = replace_max_pooling(model)
    graph = agree(replaced, (2, 8, 8), dense_limit=1)
    assert [layer.name for layer in graph.layers] == ["0", "2.1", "3"]
    without = nn.Sequential(*(replaced[0], replaced[1], replaced[2][0], replaced[3]))
    x = torch.randn(4, 2, 8, 8)
    assert torch.equal(replaced(x), without(x))  # what it averages is not negative
    with pytest.raises(Refused, match=r"or put nn\.ReLU behind the pooling, which makes it a layer of its own"):
        import_model(without, (2, 8, 8), dense_limit=1)


def test_maximum_pooling_that_is_no_average_pooling_is_refused() -> None:
    model = nn.Sequential(nn.MaxPool2d(2, dilation=2), nn.MaxPool2d(2, return_indices=True))
    with pytest.raises(Refused) as caught:
        replace_max_pooling(model)
    assert str(caught.value).splitlines() == [
        "0: has dilation 2, average pooling has none; use a convolution with a stride, and fine-tune",
        "1: returns indices, average pooling has none; use a convolution with a stride, and fine-tune",
    ]


def test_every_kind_of_maximum_pooling_is_replaced_by_its_average() -> None:
    sequences = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2, 2, 1, ceil_mode=True), nn.AdaptiveMaxPool1d(3)
    )
    replaced: Any = replace_max_pooling(nn.Sequential(sequences, nn.Flatten(), nn.Linear(12, 3)))
    assert [type(m) for m in replaced[0][2]] == [nn.AvgPool1d, nn.ReLU]
    assert type(replaced[0][3]) is nn.AdaptiveAvgPool1d
    agree(replaced, (2, 13))
    images: Any = replace_max_pooling(nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveMaxPool2d((2, None)), conv(4, 2, 1)))
    assert images[2].output_size == (2, None)
    agree(images, (2, 6, 6))
    with pytest.raises(Refused, match="returns indices, average pooling has none"):
        replace_max_pooling(nn.AdaptiveMaxPool2d(2, return_indices=True))
