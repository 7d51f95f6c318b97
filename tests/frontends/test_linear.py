from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from sim.network import Geometry, Shape
from toolchain.frontends.linear import (
    Chain,
    Convolution,
    OtherMap,
    Reshape,
    Selection,
    as_maps,
    channelwise,
    matrix,
    reduce,
)
from toolchain.graph import FloatConv2d, FloatDense

ANY = 1 << 30
property_test = settings(max_examples=100, derandomize=True, deadline=None)


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Small integers as float64: every sum below is exact, so that equality can be."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).double()


def apply(chain: Chain, x: Tensor) -> Tensor:
    for step in chain:
        x = step(x)
    return x


@st.composite
def convolutions(draw: Any, source: Shape | None = None, shape: Shape | None = None) -> Convolution:
    """Any zero-extended convolution, also such that torch's own conv2d has no parameters for."""
    source = source or (draw(st.sampled_from([2, 4, 6])), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    c_out = shape[0] if shape else draw(st.sampled_from([2, 4, 6]))
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4, 6) if source[0] % g == c_out % g == 0]))
    size = shape[1:] if shape else (draw(st.integers(1, 4)), draw(st.integers(1, 4)))

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    weight = integers(c_out, source[0] // groups, *pair(1, 3), seed=draw(st.integers(0, 9)))
    offset = (draw(st.integers(-3, source[1] - 1)), draw(st.integers(-3, source[2] - 1)))
    return Convolution(weight, source, (c_out, *size), pair(1, 3), offset, pair(1, 3), groups)


def by_definition(m: Convolution, x: Tensor) -> Tensor:
    out, weight, source = np.zeros((len(x), *m.shape)), m.weight.numpy(), x.numpy()
    c_out, c_in, *kernel = weight.shape
    for z, i, j, k, n in np.ndindex(c_out, *m.shape[1:], *kernel):
        row = i * m.stride[0] + k * m.dilation[0] + m.offset[0]
        column = j * m.stride[1] + n * m.dilation[1] + m.offset[1]
        if 0 <= row < m.source[1] and 0 <= column < m.source[2]:
            first = z // (c_out // m.groups) * c_in
            out[:, z, i, j] += source[:, first : first + c_in, row, column] @ weight[z, :, k, n]
    return torch.from_numpy(out)


def test_a_dilated_kernel_stays_dilated_before_a_kernel_of_one() -> None:
    dilated = Convolution(integers(2, 2, 3, 3), (2, 9, 9), (2, 2, 2), (2, 2), (0, 0), (3, 3), 1)
    made = dilated.then(Convolution(integers(3, 2, 1, 1), (2, 2, 2), (3, 2, 2), (1, 1), (0, 0), (1, 1), 1), ANY)
    assert made is not None
    assert (made.weight.shape[2:], made.dilation) == ((3, 3), (3, 3))


@property_test
@given(convolutions())
def test_a_convolution_and_its_padded_form_follow_the_definition(m: Convolution) -> None:
    x = integers(1, *m.source, seed=1)
    expected = by_definition(m, x)
    assert torch.equal(m(x), expected)
    assert torch.equal(m.symmetric()(x), expected)


@property_test
@given(st.data())
def test_composing_two_convolutions_changes_no_value(data: st.DataObject) -> None:
    first = data.draw(convolutions())
    second = data.draw(convolutions(source=first.shape))
    composed = first.then(second, ANY)
    x = integers(2, *first.source, seed=1)
    if composed is not None:
        assert torch.equal(composed(x), second(first(x)))
        assert torch.equal(composed.symmetric()(x), second(first(x)))


@property_test
@given(st.data())
def test_adding_two_convolutions_changes_no_value_and_adds_no_weight(data: st.DataObject) -> None:
    a = data.draw(convolutions())
    b = replace(data.draw(convolutions(source=a.source, shape=a.shape)), stride=a.stride)
    total = a.plus(b)
    x = integers(2, *a.source, seed=1)
    if total is not None:
        assert torch.equal(total(x), a(x) + b(x))
        assert total.weight.numel() <= a.weight.numel() + b.weight.numel()


@property_test
@given(st.data())
def test_parallel_chains_become_maps_with_the_same_sum(data: st.DataObject) -> None:
    a = data.draw(convolutions())
    b, c = data.draw(convolutions(source=a.source)), data.draw(convolutions(source=a.source, shape=a.shape))
    d = data.draw(convolutions(source=b.shape, shape=a.shape))
    x = integers(2, *a.source, seed=1)
    for shape in (a.shape, (a.shape[0] * a.shape[1] * a.shape[2],)):
        maps = as_maps([reduce(chain, ANY) for chain in ((a,), (b, d), (c,))], a.source, shape, ANY)
        assert torch.equal(sum(m(x).reshape(2, *a.shape) for m in maps), a(x) + d(b(x)) + c(x))
        assert sum(type(m) is FloatDense for m in maps) <= 1


@pytest.mark.parametrize(("rows", "exact"), [(8, True), (7, False)])
def test_pooling_and_a_padded_convolution_compose_where_the_padding_sees_no_value(rows: int, exact: bool) -> None:
    pool = Convolution(torch.ones(2, 1, 2, 2).double(), (2, rows, 8), (2, rows // 2, 4), (2, 2), groups=2)
    conv = Convolution(integers(4, 2, 3, 3), pool.shape, (4, *pool.shape[1:]), offset=(-1, -1))
    composed = pool.then(conv, ANY)
    assert (composed is not None) == exact
    if composed is not None:
        form = composed.symmetric()
        assert (tuple(form.weight.shape), form.geometry) == ((4, 2, 6, 6), Geometry((2, 2), (2, 2)))


def test_overlapping_windows_before_a_padded_convolution_do_not_compose() -> None:
    pool = Convolution(torch.ones(1, 1, 3, 3).double(), (1, 9, 9), (1, 7, 7))
    assert pool.then(Convolution(integers(1, 1, 3, 3), pool.shape, (1, 7, 7), offset=(-1, -1)), ANY) is None
    assert pool.then(Convolution(integers(1, 1, 3, 3), pool.shape, (1, 5, 5)), ANY) is not None


def test_a_depthwise_kernel_never_mixes_channels() -> None:
    depthwise = Convolution(integers(4, 1, 3, 3), (4, 6, 6), (4, 6, 6), offset=(-1, -1), groups=4)
    composed = depthwise.then(channelwise(integers(4), depthwise.shape), ANY)
    assert composed is not None
    assert (composed.groups, tuple(composed.weight.shape)) == (4, (4, 1, 3, 3))


def test_a_fully_connected_layer_swallows_the_flattening_and_the_pooling_before_it() -> None:
    pool = Convolution(torch.ones(2, 1, 2, 2).double(), (2, 4, 4), (2, 2, 2), (2, 2), groups=2)
    full = Convolution(integers(3, 8, 1, 1), (8, 1, 1), (3, 1, 1))
    scale = channelwise(integers(8, seed=1), (8, 1, 1))
    chain = (pool, Reshape((2, 2, 2), (8, 1, 1)), scale, full)
    (only,) = reduce(chain, ANY)
    assert type(only) is Convolution
    (dense,) = as_maps([(only,)], (2, 4, 4), (3,), ANY)
    x = integers(2, 2, 4, 4, seed=2)
    assert type(dense) is FloatDense
    assert torch.equal(dense(x), apply(chain, x).flatten(1))


@pytest.mark.parametrize(
    ("shape", "options", "merges"),
    [
        ((3, 2, 2), {"weight": (6, 3, 2, 2), "out": (6, 1, 1)}, True),
        ((3, 2, 2), {"weight": (6, 1, 2, 2), "out": (6, 1, 1), "groups": 3}, False),
        ((2, 6, 1), {"weight": (4, 1, 6, 1), "out": (4, 1, 1), "groups": 2}, True),
        ((3, 2, 2), {"weight": (6, 3, 2, 2), "out": (6, 2, 1)}, False),
        ((3, 2, 2), {"weight": (6, 3, 2, 1), "out": (6, 1, 1)}, False),
        ((3, 2, 2), {"weight": (6, 3, 2, 2), "out": (6, 1, 1), "offset": (-1, 0)}, False),
        ((3, 2, 2), {"weight": (6, 3, 2, 2), "out": (6, 1, 1), "dilation": (2, 1)}, False),
    ],
)
def test_a_kernel_swallows_a_reshaping_only_if_it_covers_the_whole_map(
    shape: Shape, options: dict[str, Any], merges: bool
) -> None:
    weight, out = integers(*options.pop("weight")), options.pop("out")
    chain = (Reshape((2, 2, 3), shape), Convolution(weight, shape, out, **options))
    reduced = reduce(chain, ANY)
    x = integers(2, 2, 2, 3, seed=1)
    assert len(reduced) == (1 if merges else 2)
    assert torch.equal(apply(reduced, x), apply(chain, x))


def test_convolutions_compose_whose_groups_do_not_divide_each_other() -> None:
    first = Convolution(integers(12, 3, 1, 2), (12, 3, 4), (12, 3, 3), groups=4)
    second = Convolution(integers(6, 2, 2, 1, seed=1), first.shape, (6, 2, 3), groups=6)
    composed = first.then(second, ANY)
    assert composed is not None
    assert composed.groups == 2
    x = integers(2, 12, 3, 4, seed=2)
    assert torch.equal(composed(x), second(first(x)))


@st.composite
def selections(draw: Any) -> tuple[Selection, bool]:
    """A crop, padding and striding of a map, or any choice of its values, with whether it is surely a convolution."""
    source = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    n = source[0] * source[1] * source[2]
    positions = torch.arange(1, n + 1).reshape(source)
    regular = draw(st.booleans())
    if regular:
        borders = [draw(st.integers(0, 3)) for _ in range(6)]
        steps = [slice(draw(st.integers(0, 2)), None, draw(st.integers(1, 3))) for _ in range(2)]
        index = functional.pad(positions, borders)[:, steps[0], steps[1]] - 1
        index = index[draw(st.permutations(range(len(index))))]
    else:
        values = draw(st.lists(st.integers(-1, n - 1), min_size=8, max_size=8))
        index = torch.tensor(values).reshape(draw(st.sampled_from([(2, 2, 2), (8, 1, 1), (1, 2, 4)])))
    return Selection(index, source), regular and index.numel() > 0


@property_test
@given(selections())
def test_a_selection_that_is_a_convolution_selects_the_same_values(drawn: tuple[Selection, bool]) -> None:
    selection, regular = drawn
    x = integers(2, *selection.source) + 10
    convolution = selection.convolution(ANY) if selection.index.numel() else None
    assert convolution is not None or not regular
    if convolution is not None:
        assert torch.equal(convolution(x), selection(x))


def test_a_selection_of_channels_respects_the_limit() -> None:
    selection = Selection(torch.tensor([3, 1, -1]).reshape(3, 1, 1), (4, 1, 1))
    assert selection.convolution(11) is None
    assert selection.convolution(12) is not None
    assert Selection(torch.arange(4).reshape(4, 1, 1), (4, 1, 1)).convolution(0) is not None


@pytest.mark.parametrize("groups", [1, 3])
def test_a_kernel_over_everything_swallows_a_selection_also_with_repeated_and_missing_values(groups: int) -> None:
    selection = Selection(torch.tensor([5, 0, 5, -1, 2, 7]).reshape(3, 2, 1), (2, 2, 2))
    full = Convolution(integers(3, 3 // groups, 2, 1), (3, 2, 1), (3, 1, 1), groups=groups)
    reduced = reduce((selection, full), ANY)
    x = integers(2, 2, 2, 2, seed=1)
    assert len(reduced) == (1 if groups == 1 else 2)
    assert torch.equal(apply(reduced, x), full(selection(x)))
    assert len(reduce((selection, full), 17)) == 2


def test_selections_and_reshapings_compose() -> None:
    shuffle = torch.arange(24).reshape(2, 2, 3, 2).transpose(0, 1)
    chain = (
        Reshape((4, 3, 2), (2, 2, 3, 2)),
        Selection(shuffle, (2, 2, 3, 2)),
        Reshape((2, 2, 3, 2), (4, 3, 2)),
        Selection(torch.arange(24).reshape(4, 3, 2)[1:, :, :1], (4, 3, 2)),
    )
    (only,) = reduce(chain, ANY)
    x = integers(2, 4, 3, 2)
    assert type(only) is Convolution
    assert torch.equal(only(x), apply(chain, x))


def test_reshapings_that_undo_each_other_vanish() -> None:
    assert reduce((Reshape((2, 3, 4), (24, 1, 1)), Reshape((24, 1, 1), (2, 3, 4))), ANY) == ()


def test_a_matrix_is_the_same_pushed_and_pulled() -> None:
    wide = OtherMap(lambda x: functional.interpolate(x, scale_factor=2.0), (2, 3, 3), (2, 6, 6))
    narrow = OtherMap(lambda x: x[:, :, ::2, 1:], (2, 3, 3), (2, 2, 2))
    for step in (wide, narrow):
        x = integers(2, 2, 3, 3)
        assert torch.equal(x.flatten(1) @ matrix((step,), step.source, step.shape).T, step(x).flatten(1))


def test_a_matrix_beyond_the_limit_is_refused_with_its_size() -> None:
    step = OtherMap(lambda x: x.flip(2), (2, 3, 3), (2, 3, 3))
    with pytest.raises(ValueError, match=r"dense matrix of 18 x 18 = 324 weights, more than 300"):
        as_maps([(step,)], (2, 3, 3), (2, 3, 3), 300)
    assert type(as_maps([(step,)], (2, 3, 3), (2, 3, 3), 324)[0]) is FloatDense


def test_a_matrix_of_the_models_own_is_never_refused() -> None:
    full = Convolution(integers(3, 8, 1, 1), (8, 1, 1), (3, 1, 1))
    assert type(as_maps([(full,)], (8,), (3,), 1)[0]) is FloatDense


def test_the_identity_becomes_a_depthwise_convolution_or_a_unit_matrix() -> None:
    (image,) = as_maps([()], (2, 3, 3), (2, 3, 3), ANY)
    (flat,) = as_maps([()], (5,), (5,), ANY)
    assert type(image) is FloatConv2d
    assert image.geometry.groups == 2
    assert torch.equal(image(integers(1, 2, 3, 3)), integers(1, 2, 3, 3))
    assert torch.equal(flat.weight, torch.eye(5).double())
