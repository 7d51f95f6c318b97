"""What lies between two activations becomes one layer, whatever paths lead there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from importing import agree, conv, names, only_map, refusals
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from sim.network import INPUT, Shape
from toolchain.frontends import DENSE_LIMIT, import_model, inspect_model
from toolchain.frontends.affine import BATCH, Affine, Current, Term, Unreached
from toolchain.frontends.linear import Convolution
from toolchain.frontends.log import Log, Row
from toolchain.frontends.regions import Regions
from toolchain.graph import FloatConv2d


def test_a_matrix_beyond_the_limit_is_refused_with_its_size_and_the_way_out() -> None:
    model = nn.Sequential(conv(padding=1), nn.ReLU(), nn.AvgPool2d(2), conv(4, 3, padding=1))
    with pytest.raises(
        Refused,
        match=r"^3 \(Conv2d\): with what is folded into it, it takes a dense matrix of 27 x 196 = 5,292 "
        r"weights, more than 5,000; raise dense_limit \(--dense-limit\), let pooling windows divide .* or put nn",
    ):
        import_model(model, (2, 7, 7), dense_limit=5000)
    assert len(import_model(model, (2, 7, 7), dense_limit=5292).layers) == 2


def test_the_limit_spares_the_models_own_matrices_and_counts_unpooled_ones() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))
    agree(model, (2, 4, 4), dense_limit=1)
    pooled = nn.Sequential(conv(padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(Refused, match=r"^4 \(Linear\): .*2 x 64 = 128 weights, more than 100"):
        import_model(pooled, (2, 4, 4), dense_limit=100)


def test_a_matrix_as_large_as_one_of_the_models_own_may_be_created() -> None:
    model = nn.Sequential(conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Linear(36, 3))
    agree(model, (2, 4, 4), dense_limit=1)  # four values in a channel, 3 x 16 weights
    with pytest.raises(
        Refused, match=r"^4 \(Linear\): .*3 x 256 = 768 weights, more than 1; raise .* and leave to conv"
    ):
        import_model(model, (2, 10, 10), dense_limit=1)


def test_the_default_limit_is_the_documented_one() -> None:
    assert DENSE_LIMIT == 2**25


def test_a_flattened_convolution_keeps_its_shape_as_a_layer() -> None:
    graph = agree(nn.Sequential(conv(), nn.Flatten(), nn.ReLU(), nn.Linear(64, 3)), (2, 6, 6))
    assert (graph.layers[0].shape, type(only_map(graph.layers[0]))) == ((4, 4, 4), FloatConv2d)


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
    assert (skip.source, skip.map.geometry.groups) == ("stem", 4)
    assert torch.equal(skip.map.weight, torch.ones(4, 1, 1, 1))


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


def test_weights_that_leave_float32_when_folded_are_refused() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4, eps=0.0), nn.ReLU(), conv(4, 2))
    model[1].running_var.zero_()
    assert refusals(model, (2, 6, 6))[0].startswith(
        "0 (Conv2d): its weights or bias leave float32 once batch normalisation is"
    )


# ---- by hand, without a model ---------------------------------------------------------------------------------------


def opened(shape: Shape = (2,)) -> tuple[Log, Regions]:
    log = Log("Model")
    return log, Regions(shape, log, dense_limit=100)


def through(value: Affine, weight: list[list[float]], bias: list[float], origin: int) -> Affine:
    """Follow a linear layer, the operation in row ``origin``."""
    matrix = torch.tensor(weight, dtype=torch.float64)
    constant = value.constant @ matrix.T + torch.tensor(bias, dtype=torch.float64)
    n_out, n_in = matrix.shape
    after = value.then(Convolution(matrix[..., None, None], (n_in, 1, 1), (n_out, 1, 1)), constant)
    return replace(after, terms=tuple(replace(t, origin=origin) for t in after.terms), rows=value.rows | {origin})


def rectified(value: Affine, upper: float | None = None) -> Current:
    return Current(value.constant, value.terms, value.rows, upper)


def row(log: Log, name: str) -> Row:
    log.rows.append(Row(name, "Linear", name, f"{name} (Linear)"))
    return log.rows[-1]


def test_two_linear_maps_and_their_biases_become_one_layer() -> None:
    log, regions = opened()
    row(log, "a"), row(log, "b")
    value = through(through(regions.input, [[1, 2], [0, 1]], [1, -1], 0), [[2, 0], [1, 1]], [0, 3], 1)
    # b(a(x)) = [[2, 0], [1, 1]] ([[1, 2], [0, 1]] x + [1, -1]) + [0, 3]
    regions.read_out(value)
    (layer,) = regions.layers
    assert (layer.name, layer.kind, layer.bias.tolist()) == ("b", "readout", [2.0, 3.0])
    assert layer.edges[0].map.weight.tolist() == [[2.0, 4.0], [1.0, 3.0]]
    assert [r.report().fate for r in log.rows] == ["folded into b", "readout"]


def test_what_a_layer_emits_is_a_source_without_a_constant() -> None:
    log, regions = opened()
    emitted = regions.spike(rectified(through(regions.input, [[1, 1]], [5], 0), 4.0), row(log, "a"))
    assert [term.source for term in emitted.terms] == ["a"]
    assert not emitted.constant.any()
    assert regions.spike(rectified(emitted), row(log, "again")).terms == emitted.terms
    assert regions.spike(rectified(emitted, 3.0), row(log, "less")).terms[0].source == "less"
    assert [(layer.name, layer.upper) for layer in regions.layers] == [("a", 4.0), ("less", 3.0)]


def test_layers_that_the_readout_does_not_need_are_dropped_unless_something_is_refused() -> None:
    for refused in (False, True):
        log, regions = opened()
        regions.spike(rectified(through(regions.input, [[1, 1]], [0], 0)), row(log, "a"))
        if refused:
            log.refuse_part("hook", "a problem", "a way out")
        row(log, "b")
        regions.read_out(through(regions.input, [[1, 0]], [0], len(log.rows) - 1))
        assert [layer.name for layer in regions.layers] == (["a", "b"] if refused else ["b"])


@pytest.mark.parametrize(
    ("value", "finding"),
    [
        (Unreached(), None),
        ((1, 2), "output of Model: it is a tuple and not one tensor computed from the input; return the logits and"),
        (
            Affine(torch.zeros(BATCH, 4, 4), (Term(INPUT),)),
            "output of Model: it has the shape (4, 4); return logits of",
        ),
    ],
)
def test_an_output_that_is_no_logits_is_a_finding(value: object, finding: str | None) -> None:
    log, regions = opened()
    regions.read_out(value)
    assert not regions.layers
    assert [str(f).startswith(finding or "") for f in log.findings] == [True] * (finding is not None)
