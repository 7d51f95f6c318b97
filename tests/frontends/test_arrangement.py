"""A model that rearranges its input is a graph with its input in that order: convolutions stay convolutions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from importing import agree, conv, generator, refusals, through_export, through_onnx
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from exporters import netx
from sim import fast, reference
from sim.network import Shape
from sim.trace import first_difference
from toolchain import assessment
from toolchain.convert import convert
from toolchain.frontends import import_model, linear
from toolchain.graph import FloatConv2d, FloatDense, FloatGraph

Change = Callable[[Tensor], Tensor]


def kinds(graph: FloatGraph, layer: int = 0) -> list[type]:
    return [type(edge.map) for edge in graph.layers[layer].edges]


def first(change: Change, channels: int, **modules: nn.Module) -> nn.Module:
    """A convolution behind a change of the input, and a readout."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(self.conv(change(x)).relu().mean((2, 3)))

    return Forward(forward, conv=conv(channels, 5, padding=1), fc=nn.Linear(5, 3), **modules)


#: What is done to the input, its shape, and the shape of what the convolution gets.
CHANGES: tuple[tuple[Change, Shape, Shape], ...] = (
    (lambda x: x.view(-1, 1, 6, 5), (30,), (1, 6, 5)),
    (lambda x: x.reshape(len(x), 2, 5, 3), (30,), (2, 5, 3)),
    (lambda x: x.unsqueeze(1), (6, 5), (1, 6, 5)),
    (lambda x: x[:, None], (6, 5), (1, 6, 5)),
    (lambda x: x.permute(0, 3, 1, 2), (6, 5, 3), (3, 6, 5)),
    (lambda x: x.transpose(1, 3).contiguous(), (6, 5, 3), (3, 5, 6)),
    (lambda x: x.transpose(2, 3), (2, 6, 5), (2, 5, 6)),
    (lambda x: x.flatten(1).view(-1, 6, 5, 2).permute(0, 3, 1, 2), (60,), (2, 6, 5)),
    (lambda x: x.view(-1, 4, 6, 5)[:, :2], (120,), (4, 6, 5)),
    (lambda x: x.permute(0, 3, 1, 2)[:, [2, 0]], (6, 5, 3), (3, 6, 5)),
    (lambda x: x[:, 10:40].view(-1, 1, 6, 5), (50,), (1, 6, 5)),
    (lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1), (6, 5), (1, 6, 5)),
    (lambda x: functional.pad(x.permute(0, 3, 1, 2), (1, 0, 2, 1)), (6, 5, 3), (3, 6, 5)),
    (lambda x: functional.avg_pool2d(x.view(-1, 1, 6, 6), 2), (36,), (1, 6, 6)),
    (lambda x: (x / 255).permute(0, 3, 1, 2), (6, 5, 3), (3, 6, 5)),
    (lambda x: (x * 2 - 1).view(-1, 1, 6, 5) + 3, (30,), (1, 6, 5)),
    (lambda x: ((x - torch.tensor([0.4, 0.5, 0.6])) / torch.arange(1.0, 4)).permute(0, 3, 1, 2), (6, 5, 3), (3, 6, 5)),
    (lambda x: (x * torch.arange(1.0, 7)[:, None, None]).permute(0, 1, 3, 2), (6, 5, 3), (6, 3, 5)),
)


@pytest.mark.parametrize(("change", "given", "shape"), CHANGES)
def test_a_convolution_behind_a_rearrangement_stays_one(change: Change, given: Shape, shape: Shape) -> None:
    channels = change(torch.zeros(2, *given)).shape[1]
    graph = agree(first(change, channels), given)
    assert kinds(graph) == [FloatConv2d]
    assert (graph.input_shape, graph.model_shape) == (shape, given)
    # 3 x 3, and what pooling before it adds.
    assert graph.layers[0].edges[0].map.weight.numel() <= 5 * channels * 36


@pytest.mark.parametrize("given", [(40, 3), (120,)])
def test_sequences_are_rearranged_too(given: Shape) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(self.conv(x.view(-1, 40, 3).transpose(1, 2)).relu().mean(2))

    graph = agree(Forward(forward, conv=nn.Conv1d(3, 4, 5), fc=nn.Linear(4, 2)), given)
    assert kinds(graph) == [FloatConv2d]
    assert (graph.input_shape, graph.model_shape) == ((3, 40, 1), given)


def test_layers_that_agree_share_one_arrangement() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.permute(0, 3, 1, 2)
        return self.fc((self.left(x).relu() + self.right(x)).relu().mean((2, 3)))

    graph = agree(
        Forward(forward, left=conv(3, 4, padding=1), right=conv(3, 4, 1), fc=nn.Linear(4, 2)),
        (6, 5, 3),
    )
    assert kinds(graph, 0) == kinds(graph, 1)[:1] == [FloatConv2d]
    assert graph.input_shape == (3, 6, 5)


def test_a_linear_layer_reads_the_values_where_they_have_gone() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        images = self.conv(x.permute(0, 3, 1, 2)).relu().mean((2, 3))
        return self.fc(images) + self.direct(x.flatten(1))

    graph = agree(Forward(forward, conv=conv(3, 4), fc=nn.Linear(4, 2), direct=nn.Linear(90, 2)), (6, 5, 3))
    assert kinds(graph) == [FloatConv2d]
    assert kinds(graph, 1) == [FloatDense, FloatDense]


def test_what_is_read_but_not_used_is_no_obstacle() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.fc(self.conv(x.permute(0, 3, 2, 1)).relu().mean((2, 3)))
        return self.fc(self.conv(x.permute(0, 3, 1, 2)).relu().mean((2, 3)))

    graph = agree(Forward(forward, conv=conv(3, 4), fc=nn.Linear(4, 2)), (6, 6, 3))
    assert kinds(graph) == [FloatConv2d]


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda x: x, (1, 6, 5)),
        (lambda x: functional.pad(x, (1, 1, 1, 1)), (1, 6, 5)),
        (lambda x: x / 2, (1, 6, 5)),
    ],
)
def test_an_input_that_convolutions_read_as_it_is_stays_as_it_is(change: Change, given: Shape) -> None:
    graph = agree(first(change, 1), given)
    assert graph.order is None
    assert graph.input_shape == graph.model_shape == given


def test_a_crop_is_left_to_the_convolution_unless_that_pads_what_is_left() -> None:
    for padding, shape in ((0, (1, 6, 5)), (1, (1, 4, 3))):
        model = Forward(
            lambda self, x: self.fc(self.conv(x[:, :, 1:-1, ::2]).relu().mean((2, 3))),
            conv=conv(1, 4, padding=padding),
            fc=nn.Linear(4, 2),
        )
        graph = agree(model, (1, 6, 5))
        assert (kinds(graph), graph.input_shape) == ([FloatConv2d], shape)


def test_flattening_before_a_linear_layer_is_no_rearrangement() -> None:
    graph = agree(nn.Sequential(nn.Flatten(), nn.Linear(30, 4), nn.ReLU(), nn.Linear(4, 2)), (2, 3, 5))
    assert (graph.order, graph.input_shape) == (None, (2, 3, 5))


def test_two_arrangements_at_odds_keep_what_one_of_them_saves() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc((self.conv(x.unsqueeze(1)).relu() + self.conv(x.transpose(1, 2)[:, None]).relu()).mean((2, 3)))

    graph = agree(Forward(forward, conv=conv(1, 4), fc=nn.Linear(4, 2)), (6, 6))
    assert [kinds(graph, 0), kinds(graph, 1)] == [[FloatConv2d], [FloatDense]]
    assert graph.input_shape == (1, 6, 6)


def test_what_is_too_large_without_an_arrangement_is_not_refused_and_what_still_is_names_its_size() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.fc(self.conv(functional.pad(x.unsqueeze(1), (1, 1, 1, 1), "reflect")).relu().mean((2, 3)))

    large = first(lambda x: x.view(-1, 3, 64, 64), 3)
    assert kinds(import_model(large, (3 * 64 * 64,), dense_limit=100_000)) == [FloatConv2d]
    lines = refusals(Forward(forward, conv=conv(1, 64), fc=nn.Linear(64, 2)), (64, 64))
    assert len(lines) == 1
    assert lines[0].startswith("conv (Conv2d): with what is folded into it, it takes a dense matrix of 262,144 x 4,096")


def test_files_are_rearranged_as_modules_are(tmp_path: Path) -> None:
    model = first(lambda x: x.permute(0, 3, 1, 2), 3).eval()
    for program in (through_export(model, (6, 5, 3), tmp_path), through_onnx(model, (6, 5, 3), tmp_path)):
        graph = import_model(program, (6, 5, 3))
        assert (kinds(graph), graph.input_shape) == ([FloatConv2d], (3, 6, 5))
        x = torch.rand(4, 6, 5, 3, generator=generator())
        assert torch.allclose(graph.logits(x), model(x), atol=1e-5)


def test_rearrangements_are_told_from_what_adds_zeros_or_repeats() -> None:
    down = linear.Reshape((12, 1, 1), (1, 3, 4))
    turned = linear.Selection(torch.arange(12).reshape(1, 3, 4).transpose(1, 2), (1, 3, 4))
    chain = (down, turned)
    assert [arrangement.shape for arrangement, _ in linear.rearrangements(chain)] == [(1, 3, 4), (1, 4, 3)]
    (_, (rest,)), (both, nothing) = linear.rearrangements(chain)
    assert rest is turned
    assert nothing == ()
    assert both.index[0, 1].tolist() == [1, 5, 9]
    zero, twice = (linear.Selection(torch.tensor([[[0, i]]]), (1, 3, 4)) for i in (-1, 0))
    assert len(linear.rearrangements((down, zero))) == len(linear.rearrangements((down, twice))) == 1


def test_factors_before_a_rearrangement_go_behind_it() -> None:
    # Twice the second row, then transposed: twice the second column.
    rows = linear.Scaling(torch.tensor([[[1.0, 1, 1], [2, 2, 2]]], dtype=torch.float64))
    turned = linear.Selection(torch.arange(6).reshape(1, 2, 3).transpose(1, 2), (1, 2, 3))
    ((arrangement, (factor,)),) = linear.rearrangements((rows, turned))
    assert arrangement.index.tolist() == turned.index.tolist()
    assert isinstance(factor, linear.Scaling)
    assert factor.factor.tolist() == [[[1, 2], [1, 2], [1, 2]]]


# ---- from the model to the chip --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("change", "given"), [(lambda x: x.view(-1, 1, 8, 8), (64,)), (lambda x: x[:, None], (8, 8))])
def test_a_converted_network_takes_inputs_as_the_model_does(change: Change, given: Shape, tmp_path: Path) -> None:
    """The same weights without a change of shape, on images, are another path to the same integers."""
    plain, turned = first(lambda x: x, 1), first(change, 1)
    turned.load_state_dict(plain.state_dict())
    images = torch.rand(64, 1, 8, 8, generator=generator())
    x = images.reshape(64, *given)
    conversion, other = convert(turned, x, 4), convert(plain, images, 4)
    assert conversion.network.layers == other.network.layers
    assert conversion.network.input.model_shape == given
    payload = conversion.network.input.encode(x)
    assert np.array_equal(payload, other.network.input.encode(images))
    assert np.array_equal(conversion.predict(x), other.predict(images))
    report = assessment.report(conversion, turned, x, None)
    assert report.agreement["folded"].value == 100
    netx.write(conversion.network, tmp_path / "network.net")
    read = netx.read(tmp_path / "network.net")
    assert read == conversion.network
    runs = [fast.run(read, payload), reference.run(read, payload[:2])]
    assert first_difference(runs[1], fast.run(read, payload[:2])) is None
    assert np.array_equal(runs[0].logits, conversion.run(x).logits)


def test_channels_last_images_come_to_the_neurons_channel_by_channel() -> None:
    model = first(lambda x: x.permute(0, 3, 1, 2), 3)
    x = torch.rand(32, 6, 5, 3, generator=generator())
    network = convert(model, x, 4).network
    assert network.input.shape == (3, 6, 5)
    encoded = np.rint(x.permute(0, 3, 1, 2).double().numpy() * network.input.scale)
    assert np.array_equal(network.input.encode(x), encoded)


def test_tuned_weights_are_of_the_rearranged_network_too() -> None:
    model = first(lambda x: x.permute(0, 3, 1, 2), 3)
    x = torch.rand(32, 6, 5, 3, generator=generator())
    conversion = convert(model, x, 4, recipe="tuned", updates=3)
    assert conversion.source.model_shape == conversion.network.input.model_shape == (6, 5, 3)
    assert len(conversion.predict(x)) == 32
