from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from sim.network import INPUT, Shape
from toolchain.activations import QCFS, TReLU
from toolchain.graph import FloatConv2d, FloatDense, FloatGraph, FloatLayer
from toolchain.importer import DENSE_LIMIT, LayerReport, import_model, inspect_model, replace_max_pooling

pytestmark = [
    pytest.mark.numbers,
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning"),
]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and statistic a value of its own: no bias of zero and no scale of one hides a mistake."""
    g = generator(seed)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point():
            spread = 1 / math.sqrt(max(1, tensor[0].numel())) if tensor.dim() > 1 else 1.0
            positive = name.endswith(("running_var", "threshold"))
            tensor.data.copy_(
                torch.rand(tensor.shape, generator=g) + 0.5
                if positive
                else torch.randn(tensor.shape, generator=g) * spread
            )
    return model


def relative_error(graph: FloatGraph, model: nn.Module, shape: Shape) -> float:
    x = torch.randn(3, *shape, generator=generator(1), dtype=torch.float64)
    with torch.no_grad():
        expected = copy.deepcopy(model).double().eval()(x)
        actual = graph.precise().logits(x.reshape(3, *graph.input_shape))
    assert actual.shape == expected.shape
    assert float(expected.abs().max()) > 1e-3
    return float((actual - expected).abs().max() / expected.abs().max())


def agree(model: nn.Module, shape: Shape, **options: Any) -> FloatGraph:
    """Import a randomised model and compare it with torch."""
    randomise(model)
    graph = import_model(model, shape, **options)
    assert relative_error(graph, model, shape) < 1e-6
    assert all(
        t.dtype == torch.float32
        for layer in graph.layers
        for t in (layer.bias, *(edge.map.weight for edge in layer.edges))
    )
    return graph


def names(graph: FloatGraph) -> list[str]:
    return [layer.name for layer in graph.layers]


def only_map(layer: FloatLayer) -> FloatDense | FloatConv2d:
    (edge,) = layer.edges
    return edge.map


def conv(c_in: int = 2, c_out: int = 4, kernel: Any = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, **options)


# ---- it equals the torch model --------------------------------------------------------------------------------------


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
    assert (tuple(second.weight.shape), second.stride, second.padding) == ((16, 6, 10, 10), (2, 2), (0, 0))
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
    assert [m.groups for m in map(only_map, graph.layers) if isinstance(m, FloatConv2d)] == [1, 8, 1]


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
    assert (m.stride, m.padding, m.dilation, m.groups) == (module.stride, padding, module.dilation, module.groups)
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


def test_a_matrix_beyond_the_limit_is_refused_with_its_size_and_the_way_out() -> None:
    model = nn.Sequential(conv(padding=1), nn.ReLU(), nn.AvgPool2d(2), conv(4, 3, padding=1))
    with pytest.raises(
        Refused,
        match=r"^3 \(Conv2d\): with what is folded into it, it takes a dense matrix of 27 x 196 = 5,292 "
        r"weights, more than 5,000; raise dense_limit, let pooling windows divide",
    ):
        import_model(model, (2, 7, 7), dense_limit=5000)
    assert len(import_model(model, (2, 7, 7), dense_limit=5292).layers) == 2


def test_the_limit_spares_the_models_own_matrices_and_counts_unpooled_ones() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))
    agree(model, (2, 4, 4), dense_limit=1)
    pooled = nn.Sequential(conv(padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(Refused, match=r"^4 \(Linear\): .*2 x 64 = 128 weights, more than 100"):
        import_model(pooled, (2, 4, 4), dense_limit=100)


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


def test_a_flattened_convolution_keeps_its_shape_as_a_layer() -> None:
    graph = agree(nn.Sequential(conv(), nn.Flatten(), nn.ReLU(), nn.Linear(64, 3)), (2, 6, 6))
    assert (graph.layers[0].shape, type(only_map(graph.layers[0]))) == ((4, 4, 4), FloatConv2d)


# ---- several sources and several uses -------------------------------------------------------------------------------


def test_a_residual_addition_feeds_a_layer_over_two_edges() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.shortcut(x)
        out = functional.relu(out)
        out = functional.relu(out + self.conv3(out))
        return self.fc(out.mean((2, 3)))

    model = Forward(
        forward,
        stem=conv(2, 4),
        conv1=conv(4, 6, stride=2, padding=1),
        bn1=nn.BatchNorm2d(6),
        conv2=conv(6, 6, padding=1),
        bn2=nn.BatchNorm2d(6),
        shortcut=nn.Sequential(conv(4, 6, 1, stride=2), nn.BatchNorm2d(6)),
        conv3=conv(6, 6, padding=1),
        fc=nn.Linear(6, 3),
    )
    graph = agree(model, (2, 8, 8))
    assert names(graph) == ["stem", "conv1", "conv2", "conv3", "fc"]
    assert [edge.source for edge in graph.layers[2].edges] == ["stem", "conv1"]
    assert [edge.source for edge in graph.layers[3].edges] == ["conv2"]  # identity and convolution are one kernel


def test_an_identity_skip_is_a_depthwise_edge() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.second(self.first(x).relu())).relu())

    graph = agree(
        Forward(forward, stem=conv(), first=conv(4, 4, padding=1), second=conv(4, 4, padding=1), head=conv(4, 2)),
        (2, 8, 8),
    )
    skip = graph.layers[2].edges[0]
    assert (skip.source, skip.map.groups) == ("stem", 4)
    assert torch.equal(skip.map.weight, torch.ones(4, 1, 1, 1))


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


def test_residuals_between_vectors() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.c((x + self.b(x).relu()).relu())

    graph = agree(Forward(forward, a=nn.Linear(4, 5), b=nn.Linear(5, 5), c=nn.Linear(5, 2)), (4,))
    assert [edge.source for edge in graph.layers[2].edges] == ["a", "b"]
    assert torch.equal(graph.layers[2].edges[0].map.weight, torch.eye(5))


def test_parallel_branches_from_one_source_become_one_kernel() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.bn3(self.three(x)) + self.bn1(self.one(x)) + self.bn0(x)
        return self.head(x.relu())

    graph = agree(
        Forward(
            forward,
            stem=conv(),
            three=conv(4, 4, padding=1),
            bn3=nn.BatchNorm2d(4),
            one=conv(4, 4, 1),
            bn1=nn.BatchNorm2d(4),
            bn0=nn.BatchNorm2d(4),
            head=conv(4, 2),
        ),
        (2, 8, 8),
    )
    assert names(graph) == ["stem", "three", "head"]
    assert tuple(only_map(graph.layers[1]).weight.shape) == (4, 4, 3, 3)


def test_a_module_used_twice_gives_two_layers_with_names_of_their_own() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(self.act(self.same(self.act(self.same(x)))).flatten(1))

    graph = agree(Forward(forward, same=conv(2, 2, padding=1), act=nn.ReLU(), fc=nn.Linear(50, 3)), (2, 5, 5))
    assert names(graph) == ["same", "same_2", "fc"]
    assert torch.equal(only_map(graph.layers[0]).weight, only_map(graph.layers[1]).weight)


def test_a_current_that_is_used_twice() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        current = self.conv(x)
        return self.head(self.other(current).relu() + self.third(current.relu()))

    graph = agree(
        Forward(forward, conv=conv(padding=1), other=conv(4, 4, 1), third=conv(4, 4, 1), head=conv(4, 2)), (2, 5, 5)
    )
    assert names(graph) == ["conv", "conv_2", "third"]


@pytest.mark.parametrize(
    "change",
    [
        lambda self, x: functional.relu(x, inplace=True),
        lambda self, x: x.relu_(),
        lambda self, x: torch.relu_(x),
        lambda self, x: self.act(x),
        lambda self, x: x.add_(1.5).relu(),
        lambda self, x: functional.relu(x, True),
    ],
)
def test_a_change_in_place_is_seen_by_every_later_use(change: Callable[[Any, Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        alias = self.dropout(x)
        y = change(self, x)
        return self.head(self.second(y) + alias)

    agree(
        Forward(
            forward,
            first=conv(padding=1),
            dropout=nn.Dropout(),
            second=conv(4, 4, padding=1),
            head=conv(4, 2),
            act=nn.ReLU(inplace=True),
        ),
        (2, 5, 5),
    )


def test_a_change_in_place_of_a_clone_leaves_the_original() -> None:
    def changed(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x.clone().relu_() + x)

    agree(Forward(changed, first=conv(padding=1), head=conv(4, 2)), (2, 5, 5))

    def forward(self: Any, x: Tensor) -> Tensor:
        spikes = self.first(x).relu()
        again = spikes.relu()
        again += 1.0
        return self.head(spikes - again.clone())

    agree(Forward(forward, first=conv(padding=1), head=conv(4, 2)), (2, 5, 5))


def test_a_change_in_place_that_is_seen_under_another_shape_is_refused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        flat = x.flatten(1)
        functional.relu(x, inplace=True)
        return self.head(flat)

    with pytest.raises(Refused, match="relu in Forward: it changes a value in place that is used again in an"):
        import_model(Forward(forward, first=conv(padding=1), head=nn.Linear(100, 2)), (2, 5, 5))


def test_a_relu_of_the_input_becomes_a_layer_of_identities() -> None:
    model = Forward(lambda self, x: self.fc(self.act(x).flatten(1)), act=nn.ReLU(), fc=nn.Linear(18, 3))
    graph = agree(model, (2, 3, 3))
    assert names(graph) == ["act", "fc"]
    assert torch.equal(only_map(graph.layers[0]).weight, torch.ones(2, 1, 1, 1))


def test_a_relu_after_a_relu_adds_nothing() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.Flatten(), nn.ReLU(), nn.Linear(64, 3))
    assert names(agree(model, (2, 6, 6))) == ["0", "4"]


def test_a_relu_of_shifted_spikes_is_a_layer_of_its_own() -> None:
    model = Forward(lambda self, x: self.head((self.first(x).relu() - 1).relu()), first=conv(), head=conv(4, 2))
    assert len(agree(model, (2, 6, 6)).layers) == 3


def test_a_readout_fed_by_the_input_alone() -> None:
    (layer,) = agree(nn.Sequential(nn.Flatten(), nn.Linear(18, 3)), (2, 3, 3)).layers
    assert (layer.kind, layer.edges[0].source, layer.name) == ("readout", INPUT, "1")


def test_spatial_logits_keep_their_shape() -> None:
    assert agree(nn.Sequential(conv(), nn.ReLU(), conv(4, 3, 1)), (2, 6, 6)).layers[-1].shape == (3, 4, 4)
    assert agree(nn.Sequential(conv(), nn.ReLU(), conv(4, 3, 1), nn.AdaptiveAvgPool2d(1)), (2, 6, 6)).layers[
        -1
    ].shape == (3, 1, 1)
    assert agree(
        nn.Sequential(conv(), nn.ReLU(), conv(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()), (2, 6, 6)
    ).layers[-1].shape == (3,)


def test_a_branch_that_the_output_does_not_need_is_left_out() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        self.spare(x).relu()
        return self.head(x)

    model = Forward(forward, first=conv(), spare=conv(4, 4), head=conv(4, 2))
    assert names(agree(model, (2, 6, 6))) == ["first", "head"]
    assert [row.fate for row in inspect_model(model, (2, 6, 6)) if row.path == "spare"] == ["unused"]


def test_layer_names_are_never_the_inputs_and_hold_no_slash() -> None:
    model = nn.Sequential()
    model.add_module("input", nn.Linear(3, 3))
    model.add_module("act", nn.ReLU())
    model.add_module("a/b", nn.Linear(3, 3))
    assert names(agree(model, (3,))) == ["input_2", "a_b"]


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + super().forward(x)


def test_a_subclass_is_traced_into_instead_of_taken_for_its_base() -> None:
    agree(nn.Sequential(Doubled(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), (2, 6, 6))


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


@pytest.mark.parametrize(
    ("activation", "upper"),
    [
        (nn.ReLU6(), 6.0),
        (nn.Hardtanh(0.0, 0.4), 0.4),
        (nn.Hardtanh(0, math.inf), None),
        (functional.relu6, 6.0),
        (lambda x: functional.hardtanh(x, 0.0, 0.5, inplace=True), 0.5),
        (lambda x: functional.hardtanh_(x, 0.0, 0.5), 0.5),
        (lambda x: torch.clamp(x, min=0, max=0.3), 0.3),
        (lambda x: x.clamp(0), None),
        (lambda x: x.clamp_(0.0, 0.7).relu(), 0.7),
        (lambda x: functional.relu6(functional.hardtanh(x, 0.0, 0.5)), 0.5),
    ],
)
def test_a_bounded_activation_gives_its_bound_to_the_layer(activation: Any, upper: float | None) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head((self.module if isinstance(activation, nn.Module) else activation)(self.first(x)))

    module = activation if isinstance(activation, nn.Module) else nn.Identity()
    graph = agree(Forward(forward, first=conv(), module=module, head=conv(4, 2)), (2, 6, 6))
    assert [layer.upper for layer in graph.layers] == [upper, None]


def test_a_lower_bound_after_a_bounded_activation_is_a_layer_of_its_own() -> None:
    graph = agree(nn.Sequential(conv(), nn.ReLU6(), nn.Hardtanh(0, 0.5), conv(4, 2)), (2, 6, 6))
    assert [layer.upper for layer in graph.layers] == [6.0, 0.5, None]


def kept(layer: FloatLayer) -> tuple[float | None, int | None, str | None]:
    return layer.upper, layer.levels, layer.initial


def test_the_activations_of_the_papers_are_layers_with_threshold_levels_and_initial_potential() -> None:
    model = nn.Sequential(conv(), QCFS(4), conv(4, 4), nn.BatchNorm2d(4), TReLU(1.0), nn.Flatten(), nn.Linear(16, 3))
    graph = agree(model, (2, 6, 6))
    lambda_, theta = float(model[1].threshold.detach()), float(model[4].threshold)
    assert [kept(layer) for layer in graph.layers] == [
        (lambda_, 4, "half"), (theta, None, "shift"), (None, None, None),
    ]  # fmt: skip
    rows = {row.path: row.fate for row in inspect_model(model, (2, 6, 6))}
    assert (rows["1"], rows["4"]) == ("folded into 0", "folded into 2")


@pytest.mark.parametrize(
    ("modules", "layers"),
    [
        ((QCFS(4, 1.0), QCFS(4, 1.0)), [(1.0, 4, "half")]),
        ((QCFS(4, 1.0), nn.ReLU()), [(1.0, 4, "half")]),
        ((QCFS(4, 1.0), nn.Flatten(), TReLU(1.5)), [(1.0, 4, "half")]),
        ((TReLU(1.0), nn.ReLU6()), [(1.0, None, "shift")]),
        ((nn.ReLU(), QCFS(4, 1.0)), [(None, None, None), (1.0, 4, "half")]),
        ((TReLU(1.0), QCFS(4, 1.0)), [(1.0, None, "shift"), (1.0, 4, "half")]),
        ((QCFS(4, 1.0), QCFS(3, 1.0)), [(1.0, 4, "half"), (1.0, 3, "half")]),
        ((QCFS(4, 1.0), QCFS(4, 2.0)), [(1.0, 4, "half"), (2.0, 4, "half")]),
        ((QCFS(4, 1.0), TReLU(0.8)), [(1.0, 4, "half"), (0.800000011920929, None, "shift")]),
    ],
)
def test_an_activation_of_an_activation_folds_only_where_it_changes_nothing(
    modules: tuple[nn.Module, ...], layers: list[Any]
) -> None:
    first, head = nn.Conv2d(2, 4, 3), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    randomise(first), randomise(head)
    model = nn.Sequential(first, *modules, head)
    graph = import_model(model, (2, 6, 6))
    assert [kept(layer) for layer in graph.layers[:-1]] == layers
    assert relative_error(graph, model, (2, 6, 6)) < 1e-6


def test_a_threshold_that_training_has_driven_below_zero_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 4), QCFS(4), nn.Linear(4, 2))
    model[1].threshold.data.fill_(-0.5)
    assert refusals(model, (3,)) == ["1 (QCFS): its upper bound -0.5 leaves no value but 0; give a positive one"]


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


def test_a_change_in_place_leaves_the_parts_of_a_value_that_it_does_not_touch() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        return self.head(torch.cat([a.relu_(), b], 1))

    agree(Forward(forward, first=conv(), head=conv(4, 2)), (2, 6, 6))

    def transposed(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x.transpose(2, 3)
        return self.head(x.relu_() + y)

    with pytest.raises(Refused, match="relu_ in Forward: it changes a value in place that is used again in another"):
        import_model(Forward(transposed, first=conv(), head=conv(4, 2)), (2, 6, 6))


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


# ---- it leaves the model alone --------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was() -> None:
    model = randomise(
        nn.Sequential(
            conv(),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(16, 3),
        )
    )
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    inspect_model(model, (2, 6, 6))
    with pytest.raises(Refused):
        import_model(model, (2, 6, 6))
    assert [m.training for m in model.modules()] == modes
    assert all(
        torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype
        for name, tensor in model.state_dict().items()
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_graph_shares_no_memory_with_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    graph = import_model(model, (3,))
    kept = only_map(graph.layers[0]).weight.clone()
    model[0].weight.data.zero_()
    assert torch.equal(only_map(graph.layers[0]).weight, kept)
    assert not only_map(graph.layers[0]).weight.requires_grad


# ---- it refuses what it cannot convert ------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 4, padding=1)
        self.activation = nn.LeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.activation(self.conv(x)))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def refusals(model: nn.Module, shape: Shape) -> list[str]:
    with pytest.raises(Refused) as caught:
        import_model(model, shape)
    return str(caught.value).splitlines()


def test_all_findings_come_at_once_with_place_reason_and_way_out() -> None:
    model = nn.Sequential(
        conv(padding_mode="reflect", padding=1),
        nn.SiLU(),
        nn.MaxPool2d(2),
        Block(),
        Branching(),
        nn.Flatten(),
        nn.Linear(64, 3),
        nn.Softmax(dim=1),
    )
    model[6].bias.data[1] = math.nan
    found = refusals(model, (2, 8, 8))
    rates = "integrate-and-fire neurons compute a ReLU and nothing else; replace it by nn.ReLU and fine-tune"
    assert found[:6] == [
        "6.bias: 1 of 3 values are NaN or infinite; train again from the last good checkpoint",
        "0 (Conv2d): has padding_mode 'reflect'; pad with zeros and fine-tune",
        f"1 (SiLU): {rates}",
        "2 (MaxPool2d): a maximum over spike trains is not linear; use nn.AvgPool2d "
        "(toolchain.importer.replace_max_pooling) and fine-tune, or a convolution with a stride",
        f"3.activation (LeakyReLU): {rates}",
        f"gelu in 3: {rates}",
    ]
    assert found[6].startswith(
        "4 (Branching): torch.fx cannot trace it: symbolically traced variables cannot be used as inputs to "
        "control flow (test_importer.py, line "
    )
    assert found[7].startswith(
        "7 (Softmax): it normalises over all classes; at the output leave it out, the largest logit stays"
    )
    assert len(found) == 8


@pytest.mark.parametrize(
    ("module", "finding"),
    [
        (nn.MaxPool2d(2), "a maximum over spike trains is not linear; use nn.AvgPool2d"),
        (nn.AdaptiveMaxPool2d(2), "a maximum over spike trains"),
        (nn.SELU(), "integrate-and-fire neurons compute a ReLU and nothing else; replace it by nn.ReLU and fine-tune"),
        (nn.Hardtanh(), "its lower bound is -1.0, that of integrate-and-fire neurons is 0; clamp at 0, or use nn.ReLU"),
        (nn.ConstantPad2d(1, 2.0), "it is not known; use one of"),
        (nn.PReLU(), "integrate-and-fire neurons"),
        (nn.Hardswish(), "integrate-and-fire neurons"),
        (nn.Tanh(), "integrate-and-fire neurons"),
        (nn.ELU(), "integrate-and-fire neurons"),
        (nn.LogSoftmax(1), "it normalises over all classes; at the output leave it out"),
        (nn.GroupNorm(2, 4), "it does not normalise by constants; use nn.BatchNorm2d"),
        (nn.InstanceNorm2d(4), "it does not normalise by constants"),
        (nn.BatchNorm2d(4, track_running_stats=False), "normalises by the statistics of the batch"),
        (nn.ConvTranspose2d(4, 4, 2), "it is not known; use one of AdaptiveAvgPool1d, AdaptiveAvgPool2d, AvgPool1d"),
    ],
)
def test_every_unsupported_module_is_named_with_its_way_out(module: nn.Module, finding: str) -> None:
    (found,) = refusals(nn.Sequential(conv(), module, nn.ReLU(), conv(4, 2, 1)), (2, 6, 6))
    assert found.startswith(f"1 ({type(module).__name__}): ")
    assert finding in found


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_layer_without_weights_is_refused() -> None:
    assert refusals(nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 2)), (4,)) == [
        "0.weight: it has no shape yet; run the model once before importing it",
        "0.bias: it has no shape yet; run the model once before importing it",
    ]


@pytest.mark.parametrize(
    ("function", "finding"),
    [
        (lambda x: functional.max_pool2d(x, 2), "max_pool2d in Forward: a maximum over spike trains is not linear"),
        (lambda x: torch.sigmoid(x), "sigmoid in Forward: integrate-and-fire neurons"),
        (lambda x: x.clamp(-1, 1), "clamp in Forward: its lower bound is -1, that of integrate-and-fire neurons is 0;"),
        (lambda x: x.clamp(max=1), "clamp in Forward: its lower bound is None"),
        (lambda x: x.clamp(0, 0), "clamp in Forward: its upper bound 0 leaves no value but 0; give a positive one"),
        (lambda x: torch.clamp(x, torch.zeros(4, 1, 1)), "clamp in Forward: its bounds are tensors; give numbers"),
        (lambda x: functional.hardtanh(x), "hardtanh in Forward: its lower bound is -1.0"),
        (lambda x: x * x, "mul in Forward: it multiplies activations by each other; use layers that are linear"),
        (lambda x: x * torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1), "mul in Forward: scales every sample by a fac"),
        (lambda x: x * torch.ones(1, 1, 1, 1, 1), "mul in Forward: mixes the samples of a batch"),
        (lambda x: 1 / x, "truediv in Forward: it divides by an activation; use layers that are linear"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "div in Forward: rounds, with rounding_mode 'floor'"),
        (lambda x: x[:1], "getitem in Forward: mixes the samples of a batch"),
        (lambda x: x[[1, 0]], "getitem in Forward: mixes the samples of a batch; keep the batch as the first"),
        (lambda x: x[x], "getitem in Forward: an activation stands where a parameter belongs"),
        (lambda x: torch.cat([x, x]), "cat in Forward: mixes the samples of a batch"),
        (lambda x: torch.cat([x, x.flatten(2)], 1), "cat in Forward: torch refuses it: "),
        (lambda x: functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)), "pad in Forward: mixes the samples of a batch"),
        (lambda x: functional.pad(x, (-9, 0)), "pad in Forward: torch refuses it: "),
        (lambda x: x.chunk(2)[0], "chunk in Forward: mixes the samples of a batch"),
        (lambda x: x.permute(1, 0, 2, 3), "permute in Forward: mixes the samples of a batch"),
        (lambda x: x.sum(), "sum in Forward: averages over the batch; name the dimensions"),
        (
            lambda x: functional.avg_pool1d(x.flatten(1), 1).view(-1, 4, 4, 4),
            "avg_pool1d in Forward: gets shape (64,) where it needs (C, L)",
        ),
        (lambda x: functional.dropout(x, 0.5), "dropout in Forward: is active in eval mode too; pass training="),
        (
            lambda x: functional.batch_norm(x, None, None, training=True),
            "batch_norm in Forward: normalises by the statist",
        ),
        (lambda x: x.mean(), "mean in Forward: averages over the batch; name the dimensions"),
        (
            lambda x: x.reshape(-1, 4, 1, 1),
            "reshape in Forward: mixes the samples of a batch; keep the batch as the first",
        ),
        (lambda x: x.flatten(1).mean((0, 1)), "mean in Forward: averages over the batch"),
        (lambda x: functional.avg_pool2d(x, 9), "avg_pool2d in Forward: torch refuses it: "),
        (lambda x: functional.avg_pool2d(x.flatten(1), 2), "avg_pool2d in Forward: gets shape (64,) where it needs (C"),
    ],
)
def test_every_unsupported_function_is_named_with_the_module_that_calls_it(
    function: Callable[[Tensor], Tensor], finding: str
) -> None:
    found = refusals(
        Forward(lambda self, x: self.head(function(self.conv(x)).relu()), conv=conv(), head=conv(4, 2, 1)), (2, 6, 6)
    )
    assert len(found) == 1
    assert found[0].startswith(finding)


def test_a_recurrent_layer_is_refused_and_what_follows_is_still_examined() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.flatten(2))
        return self.fc(self.act(out.flatten(1)))

    model = Forward(forward, lstm=nn.LSTM(9, 4, batch_first=True), act=nn.Tanh(), fc=nn.Linear(8, 3))
    found = refusals(model, (2, 3, 3))
    assert [line.split(":")[0] for line in found] == ["lstm (LSTM)", "act (Tanh)"]
    assert "a recurrent layer carries state from step to step; use a feed-forward network" in found[0]


def test_data_dependent_control_flow_is_reported_in_one_line_with_its_place() -> None:
    (found,) = refusals(Branching(), (2, 3, 3))
    assert found.startswith("Branching: torch.fx cannot trace it: symbolically traced variables cannot be used")
    assert found.endswith("; write its forward without Python control flow on values, and its modules as attributes")
    assert "(test_importer.py, line " in found


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        (
            nn.Sequential(conv(), nn.ReLU()),
            "output of Sequential: the network ends in the ReLU of 0, and a readout has none; leave the last ReLU out",
        ),
        (Forward(lambda self, x: (self.a(x), x), a=conv()), "output of Forward: it is a tuple and not one tensor"),
        (
            Forward(lambda self, x: self.a.weight.clone(), a=conv()),
            "output of Forward: it is a Tensor and not one tensor ",
        ),
        (
            nn.Sequential(conv(), nn.Flatten(2)),
            "output of Sequential: it has the shape (4, 16); return logits of shape",
        ),
        (
            nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)),
            "0 (Conv2d): torch refuses it: Given groups=1, weight of size [4, 3",
        ),
        (
            Forward(lambda self, x: self.a(x) + torch.arange(2.0).reshape(2, 1, 1, 1), a=conv()),
            "a (Conv2d): its constant differs from sample to sample",
        ),
        (Forward(lambda self, x: functional.conv2d(x, x)), "conv2d in Forward: an activation stands where a param"),
        (
            Forward(lambda self, x: (x.mean((2, 3)) + x.mean(3).mean(2, keepdim=True)).flatten(1)),
            "add in Forward: mixes the samples of a batch",
        ),
        (
            Forward(lambda self, x: self.a.weight @ torch.zeros(5) + x, a=conv()),
            "matmul in Forward: it fails: size mism",
        ),
    ],
)
def test_outputs_and_shapes_that_make_no_network(model: nn.Module, finding: str) -> None:
    found = refusals(model, (2, 6, 6))
    assert len(found) == 1
    assert found[0].startswith(finding)


def test_a_second_argument_without_a_default_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    assert refusals(Two(), (2, 3, 3)) == [
        "y of Two: forward needs a second argument; give it a default or wrap the model"
    ]


@pytest.mark.parametrize("shape", [(), (2, 0), (0,), (1, 2, 3, 4)])
def test_an_input_shape_that_is_neither_a_vector_nor_an_image_is_refused(shape: Shape) -> None:
    for function in (import_model, inspect_model):
        with pytest.raises(Refused, match=r"^input_shape: .*; give \(C, H, W\), \(C, L\) or \(N,\), without"):
            function(nn.Linear(3, 3), shape)


def test_weights_that_leave_float32_when_folded_are_refused() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(), conv(4, 2))
    model[1].running_var.zero_()
    assert refusals(model, (2, 6, 6))[0].startswith(
        "0 (Conv2d): its weights or bias leave float32 once batch normalisation is"
    )


def test_hooks_and_parametrisations_that_compute_weights_anew_are_refused() -> None:
    hooked = nn.Sequential(conv(), nn.Flatten(), nn.Linear(64, 3))
    hooked[0].register_forward_hook(lambda module, args, output: output * 2)
    assert refusals(hooked, (2, 6, 6)) == [
        "0: a forward hook may change what it computes; remove its hooks (torch.nn.utils.remove_weight_norm, "
        "prune.remove, handle.remove)"
    ]
    parametrised = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    assert refusals(parametrised, (4,)) == [
        "0 (ParametrizedLinear): its weights are computed anew at every call; call "
        "torch.nn.utils.parametrize.remove_parametrizations first"
    ]


# ---- the pre-flight -------------------------------------------------------------------------------------------------


def test_the_report_has_one_row_for_every_module_and_operation() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.norm(self.conv(x))))
        return self.fc(torch.flatten(x, 1))

    model = Forward(forward, conv=conv(), norm=nn.BatchNorm2d(4), pool=nn.AvgPool2d(2), fc=nn.Linear(16, 3))
    assert inspect_model(model, (2, 6, 6)) == [
        LayerReport("conv", "Conv2d", (4, 4, 4), "spiking layer conv"),
        LayerReport("norm", "BatchNorm2d", (4, 4, 4), "folded into conv"),
        LayerReport("Forward", "relu", (4, 4, 4), "folded into conv"),
        LayerReport("pool", "AvgPool2d", (4, 2, 2), "folded into fc"),
        LayerReport("Forward", "flatten", (16,), "folded into fc"),
        LayerReport("fc", "Linear", (3,), "readout"),
    ]


def test_the_report_goes_on_after_a_refusal() -> None:
    model = nn.Sequential(
        conv(padding=1), nn.ReLU(), conv(4, 4), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    rows = inspect_model(model, (2, 6, 6))
    assert [(row.path, row.kind, row.shape, row.fate) for row in rows] == [
        ("0", "Conv2d", (4, 6, 6), "spiking layer 0"),
        ("1", "ReLU", (4, 6, 6), "folded into 0"),
        ("2", "Conv2d", (4, 4, 4), "blocked by 3 (MaxPool2d)"),
        (
            "3",
            "MaxPool2d",
            (4, 2, 2),
            "refused: a maximum over spike trains is not linear; use nn.AvgPool2d "
            "(toolchain.importer.replace_max_pooling) and fine-tune, or a convolution with a stride",
        ),
        ("4", "ReLU", (4, 2, 2), "spiking layer 4"),
        ("5", "Flatten", (16,), "folded into 6"),
        ("6", "Linear", (3,), "readout"),
    ]


def test_the_report_names_what_is_not_an_operation_and_what_was_not_reached() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data[0, 0] = math.inf
    rows = inspect_model(model, (4,))
    assert rows[0] == LayerReport(
        "0.weight",
        "parameter",
        (3, 4),
        "refused: 1 of 12 values are NaN or infinite; train again from the last good checkpoint",
    )
    assert [row.fate for row in rows[1:3]] == ["spiking layer 0", "folded into 0"]
    assert re.search("^refused: torch refuses it: .*mat1 and mat2 shapes cannot be multiplied", rows[3].fate)
    assert inspect_model(nn.Sequential(conv(3, 4), nn.ReLU()), (2, 6, 6))[1] == LayerReport(
        "1", "ReLU", None, "not reached: what it needs is refused"
    )


def test_the_default_limit_is_the_documented_one() -> None:
    assert DENSE_LIMIT == 2**25


def test_a_layer_behind_many_refusals_names_the_first_and_counts_the_rest() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x.tanh() + x.sigmoid() + functional.gelu(x))

    rows = inspect_model(Forward(forward, first=conv(), head=conv(4, 2)), (2, 5, 5))
    assert rows[0].fate == "blocked by tanh in Forward and 2 more"
