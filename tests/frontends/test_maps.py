"""Convolutions, linear layers, normalisation and pooling: the float graph equals the torch model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from importing import agree, conv, names, only_map
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from sim.network import Geometry, Shape
from toolchain.graph import FloatConv2d, FloatDense, FloatGraph

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")


def test_a_multilayer_perceptron_keeps_its_own_weights() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3))
    graph = agree(model, (6,))
    assert names(graph) == ["0", "2", "4"]
    assert [layer.kind for layer in graph.layers] == ["spiking", "spiking", "readout"]
    for layer in graph.layers:
        module = model.get_submodule(layer.name)
        assert isinstance(module, nn.Linear)
        assert torch.equal(only_map(layer).weight, module.weight)
        assert torch.equal(layer.bias, torch.zeros(4) if module.bias is None else module.bias)


def test_lenet_with_average_pooling() -> None:
    model = nn.Sequential(
        conv(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        conv(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 5 * 5, 120),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(120, 84),
        nn.ReLU(),
        nn.Linear(84, 10),
    )
    graph = agree(model, (1, 28, 28))
    assert [layer.shape for layer in graph.layers] == [(6, 28, 28), (16, 10, 10), (120,), (84,), (10,)]
    second = only_map(graph.layers[1])
    assert isinstance(second, FloatConv2d)
    assert (tuple(second.weight.shape), second.geometry) == ((16, 6, 10, 10), Geometry(stride=(2, 2)))
    assert tuple(only_map(graph.layers[2]).weight.shape) == (120, 16 * 10 * 10)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_normalisation_after_convolutions_and_linear_layers(affine: bool) -> None:
    graph = agree(
        nn.Sequential(
            conv(padding=1, bias=False),
            nn.BatchNorm2d(4, affine=affine),
            nn.ReLU(),
            conv(4, 4, padding=1),
            nn.BatchNorm2d(4, affine=affine),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 36, 8),
            nn.BatchNorm1d(8, affine=affine),
            nn.ReLU(),
            nn.Linear(8, 3),
        ),
        (2, 6, 6),
    )
    assert names(graph) == ["0", "3", "7", "10"]
    assert [tuple(layer.bias.shape) for layer in graph.layers] == [(4,), (4,), (8,), (3,)]


def test_batch_normalisation_before_a_padded_convolution_gives_a_bias_that_varies_over_space() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), conv(padding=1), nn.ReLU(), nn.BatchNorm2d(4), conv(4, 3))
    graph = agree(model, (2, 5, 5))
    assert [tuple(layer.bias.shape) for layer in graph.layers] == [(4, 5, 5), (3,)]


def test_batch_normalisation_between_flattening_and_a_linear_layer() -> None:
    graph = agree(
        nn.Sequential(conv(), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 3)), (2, 6, 6)
    )
    assert tuple(only_map(graph.layers[1]).weight.shape) == (3, 4 * 16)


def test_depthwise_separable_convolutions_compose_without_a_layer_between() -> None:
    graph = agree(
        nn.Sequential(
            conv(4, 4, padding=1, groups=4),
            conv(4, 8, 1),
            nn.ReLU(),
            conv(8, 16, 3, stride=2, groups=8, padding=1),
            nn.ReLU(),
            conv(16, 3, 1),
        ),
        (4, 6, 6),
    )
    assert names(graph) == ["0", "3", "5"]
    assert [m.geometry.groups for m in map(only_map, graph.layers) if isinstance(m, FloatConv2d)] == [1, 8, 1]


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 2), "padding": (2, 0), "dilation": (1, 2)},
        {"groups": 2, "dilation": 2},
        {"padding": "valid", "stride": 3},
    ],
)
def test_a_single_convolution_is_taken_over_as_it_is(options: dict[str, Any]) -> None:
    module = conv(2, 4, (3, 2), **options)
    m = only_map(agree(nn.Sequential(module), (2, 9, 8)).layers[0])
    assert isinstance(m, FloatConv2d)
    padding = (0, 0) if module.padding == "valid" else module.padding
    assert m.geometry == (module.stride, padding, module.dilation, module.groups)
    assert torch.equal(m.weight, module.weight)


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (2, 1), (4, 1), (2, 2), (4, 3), ((2, 5), 1)])
def test_padding_same_also_where_it_is_uneven(kernel: Any, dilation: int) -> None:
    model = nn.Sequential(conv(kernel=kernel, dilation=dilation, padding="same"), nn.ReLU(), conv(4, 3))
    graph = agree(model, (2, 7, 7))
    assert all(isinstance(only_map(layer), FloatConv2d) for layer in graph.layers)


def test_a_model_written_with_functions() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = functional.relu(functional.conv2d(x, self.first.weight, self.first.bias, padding=1))
        x = functional.avg_pool2d(x, 2, stride=2)
        x = torch.relu(self.norm(self.second(x)))
        x = functional.dropout(x, 0.5, training=self.training)
        x = x.view(x.size(0), -1)
        x = functional.linear(x, self.fc.weight, bias=self.fc.bias).relu()
        x = functional.batch_norm(x, self.norm1.running_mean, self.norm1.running_var, self.norm1.weight, eps=1e-3)
        return self.head(torch.flatten(x, start_dim=1))

    graph = agree(
        Forward(
            forward,
            first=conv(),
            second=conv(4, 4, padding=1),
            norm=nn.BatchNorm2d(4),
            fc=nn.Linear(36, 5),
            norm1=nn.BatchNorm1d(5),
            head=nn.Linear(5, 3),
        ),
        (2, 6, 6),
    )
    assert names(graph) == ["conv2d", "second", "linear", "head"]


def pools(pool: nn.Module, size: int, **options: Any) -> FloatGraph:
    """Import a pooling between a ReLU and a padded convolution."""
    return agree(
        nn.Sequential(conv(padding=1), nn.ReLU(), pool, conv(4, 3, padding=1), nn.ReLU(), conv(3, 2, 1)),
        (2, size, size),
        **options,
    )


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.AvgPool2d(2), 8),
        (nn.AvgPool2d((2, 3), (2, 3)), 6),
        (nn.AvgPool2d(2, divisor_override=3), 6),
        (nn.AvgPool2d(1), 5),
        (nn.AvgPool2d(3, 2, 1), 7),
        (nn.AvgPool2d(2, ceil_mode=True), 6),
        (nn.AdaptiveAvgPool2d(2), 6),
        (nn.AdaptiveAvgPool2d((None, 3)), 6),
    ],
)
def test_pooling_that_divides_its_input_folds_into_the_next_kernel(pool: nn.Module, size: int) -> None:
    assert all(isinstance(only_map(layer), FloatConv2d) for layer in pools(pool, size).layers)


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        (nn.AvgPool2d(2), 7),
        (nn.AvgPool2d(3, 2), 7),
        (nn.AvgPool2d(3, 2, 1), 8),
        (nn.AvgPool2d(2, ceil_mode=True), 7),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), 8),
        (nn.AvgPool2d(3, 2, 1, ceil_mode=True), 8),
        (nn.AvgPool2d(3, 1), 5),
        (nn.AdaptiveAvgPool2d(3), 7),
        (nn.AdaptiveAvgPool2d(7), 5),
    ],
)
def test_pooling_whose_border_no_convolution_reproduces_becomes_a_matrix(pool: nn.Module, size: int) -> None:
    graph = pools(pool, size)
    assert [type(only_map(layer)) for layer in graph.layers] == [FloatConv2d, FloatDense, FloatConv2d]
    assert graph.layers[1].shape[0] == 3


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 2, 1), nn.AvgPool2d(3, 2), nn.AvgPool2d(2), nn.AvgPool2d(3, 1)])
def test_overlapping_or_truncated_pooling_folds_where_nothing_pads_after_it(pool: nn.Module) -> None:
    model = nn.Sequential(conv(), nn.ReLU(), pool, conv(4, 3, 2), nn.ReLU(), conv(3, 2, 1))
    assert isinstance(only_map(agree(model, (2, 9, 9)).layers[1]), FloatConv2d)


@pytest.mark.parametrize("norm", [nn.Identity(), nn.BatchNorm2d(4)])
def test_pooling_between_a_convolution_and_its_relu_composes(norm: nn.Module) -> None:
    graph = agree(nn.Sequential(conv(padding=1), norm, nn.AvgPool2d(2), nn.ReLU(), conv(4, 3)), (2, 8, 8))
    m = only_map(graph.layers[0])
    assert isinstance(m, FloatConv2d)
    assert (names(graph)[0], graph.layers[0].shape, tuple(m.weight.shape)) == ("0", (4, 4, 4), (4, 2, 4, 4))


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(3).mean(2),
        lambda x: torch.mean(x, dim=(-1, -2), keepdim=True).flatten(1),
        lambda x: functional.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
        lambda x: x.flatten(2).mean(-1),
        lambda x: functional.adaptive_avg_pool2d(x, (1, 1)).reshape(-1, 4),
    ],
)
def test_global_average_pooling_in_every_spelling(pool: Callable[[Tensor], Tensor]) -> None:
    model = Forward(lambda self, x: self.fc(pool(self.conv(x).relu())), conv=conv(), fc=nn.Linear(4, 3))
    graph = agree(model, (2, 6, 5))
    assert [layer.shape for layer in graph.layers] == [(4, 4, 3), (3,)]
    assert tuple(only_map(graph.layers[1]).weight.shape) == (3, 4 * 4 * 3)


def test_a_mean_over_rows_only_and_one_over_channels() -> None:
    agree(
        Forward(lambda self, x: self.fc(self.conv(x).relu().mean(2).flatten(1)), conv=conv(), fc=nn.Linear(12, 3)),
        (2, 6, 5),
    )
    agree(
        Forward(lambda self, x: self.fc(self.conv(x).relu().mean(1).flatten(1)), conv=conv(), fc=nn.Linear(12, 3)),
        (2, 6, 5),
    )


def test_a_linear_layer_over_the_last_dimension_only() -> None:
    agree(nn.Sequential(conv(), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)), (2, 6, 6))


def test_networks_over_sequences_are_networks_over_images_of_width_one() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.first(x)))
        x = self.pool(functional.relu(functional.conv1d(x, self.second.weight, None, 1, "same", 2)))
        x = functional.avg_pool1d(functional.pad(x, (1, 1)), 2).relu() + functional.adaptive_avg_pool1d(x, 1)
        return self.fc(x.mean(-1))

    first, second = nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.Conv1d(4, 6, 3)
    model = Forward(
        forward, first=first, norm=nn.BatchNorm1d(4), second=second, pool=nn.AvgPool1d(2), fc=nn.Linear(6, 2)
    )
    graph = agree(model, (3, 16))
    assert graph.input_shape == (3, 16, 1)
    assert [layer.shape for layer in graph.layers[:2]] == [(4, 8, 1), (6, 8, 1)]
    assert isinstance(only_map(graph.layers[0]), FloatConv2d)


@st.composite
def stacks(draw: Any) -> tuple[list[nn.Module], Shape]:
    """Random feed-forward stacks of everything that folds."""
    shape: Shape = (draw(st.sampled_from([2, 4])), draw(st.integers(4, 9)), draw(st.integers(4, 9)))
    start, modules = shape, []
    torch.manual_seed(draw(st.integers(0, 99)))
    for _ in range(draw(st.integers(1, 6))):
        c, small = shape[0], min(shape[1:])
        kernel, even = draw(st.integers(1, min(3, small))), c % 2 == 0
        modules.append(
            draw(
                st.sampled_from(
                    [
                        nn.Conv2d(c, 4, kernel, draw(st.integers(1, 2)), draw(st.integers(0, 2)), groups=1 + even),
                        nn.Conv2d(c, 2 * c if c < 8 else c, kernel, padding="same", groups=c),
                        nn.BatchNorm2d(c),
                        nn.ReLU(),
                        nn.AvgPool2d(
                            kernel,
                            draw(st.integers(1, 3)),
                            draw(st.integers(0, kernel // 2)),
                            draw(st.booleans()),
                            draw(st.booleans()),
                        ),
                        nn.AdaptiveAvgPool2d(draw(st.integers(1, 4))),
                        nn.Dropout(0.3),
                    ]
                )
            )
        )
        shape = tuple(modules[-1].eval()(torch.zeros(1, *shape)).shape[1:])
    head = nn.Flatten(), nn.Linear(math.prod(shape), 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    return [*modules, *head], start


@settings(max_examples=60, derandomize=True, deadline=None)
@given(stacks())
def test_random_stacks_equal_the_torch_model(stack: tuple[list[nn.Module], Shape]) -> None:
    modules, shape = stack
    agree(nn.Sequential(*modules), shape)
