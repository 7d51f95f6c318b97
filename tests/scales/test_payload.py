"""What of the input its few bits carry: scales by channel, constants, outliers; and digits as recordings are."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from sim.network import INPUT, Geometry, Input, InputForm
from sim.stock import peak_outside
from toolchain import assessment
from toolchain.assessment.payload import clipped, prepared
from toolchain.convert import Conversion, convert
from toolchain.demo import data, load_model
from toolchain.frontends import import_model
from toolchain.graph import FloatConv2d, FloatDense, FloatEdge, FloatGraph, FloatLayer
from toolchain.recipe import Recipe
from toolchain.scales import plan
from toolchain.scales.integers import build
from toolchain.scales.payload import carried
from toolchain.scales.plan import choose_scales

#: Points that a conversion may lose against its clean twin: 1, and the noise of 541 test digits. Where both decide
#: differently on 2 % of them, the difference of the two has a standard error of sqrt(541 * 0.02) / 541 = 0.6 points.
MOST = 1 + 0.6


@pytest.fixture(scope="module")
def digits() -> data.Digits:
    return data.load()


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def right(conversion: Conversion, x: Tensor, y: Tensor) -> float:
    """Per cent."""
    return 100 * float((torch.from_numpy(conversion.predict(x)) == y).double().mean())


def two_layers(
    first: FloatDense | FloatConv2d, source: tuple[int, ...], shape: tuple[int, ...], bias: Tensor
) -> FloatGraph:
    hidden = FloatLayer("a", shape, (FloatEdge(INPUT, first),), bias)
    end = FloatDense(torch.ones(2, int(np.prod(shape))))
    return FloatGraph(source, (hidden, FloatLayer("out", (2,), (FloatEdge("a", end),), torch.zeros(2), "readout")))


# ---- scales by channel -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_channels_of_about_the_same_range_have_one_scale(share: float) -> None:
    x = drawn(64, 3, 4, 4) * torch.tensor([1.0, share, 0.8])[:, None, None]
    net = two_layers(FloatConv2d(drawn(4, 3, 3, 3) - 0.5), (3, 4, 4), (4, 2, 2), torch.zeros(4))
    assert choose_scales(net, x, Recipe()).unit.shape == ()
    assert isinstance(build(net, choose_scales(net, x, Recipe()), Recipe()).input.scale, float)


def test_features_in_units_of_their_own_have_payloads_of_about_the_same_size() -> None:
    size = torch.tensor([1.0, 1000.0, 0.05, 30.0])
    x = drawn(200, 4) * size
    net = two_layers(FloatDense((drawn(8, 4, seed=1) - 0.4) / size), (4,), (8,), torch.zeros(8))
    scales = choose_scales(net, x, Recipe(timesteps=4))
    network = build(net, scales, Recipe(timesteps=4))
    assert network.input.scale.shape == scales.unit.shape == (4,)
    assert np.allclose(network.input.scale * scales.unit.numpy(), 1)
    largest = np.abs(network.input.encode(x)).max(0)
    assert largest.max() <= 127
    assert largest.min() > 30
    # The payload times its integer weight is the trained current, feature by feature.
    current = network["a"].edges[0].synapse.weight * network.input.scale / scales["a"].su.numpy()[:, None]
    error = np.abs(current - net.layers[0].edges[0].map.weight.numpy()) * size.numpy()
    assert error.max() < 0.02


def test_the_noise_of_a_payload_is_that_of_each_channel_and_its_weights() -> None:
    # Unit 2 and 0.5: 3.2 is 1.6 units and loses 0.4, 0.1 is 0.2 units and loses 0.2.
    net = two_layers(FloatDense(torch.tensor([[1.0, 10.0]])), (2,), (1,), torch.zeros(1))
    values = {INPUT: torch.tensor([[3.2, 0.1]], dtype=torch.float64)}
    unit = torch.tensor([2.0, 0.5], dtype=torch.float64)
    graded, others, rounding = plan.rounding_noise(net, net.layers[0], {INPUT: unit}, values)
    assert rounding.tolist() == pytest.approx([(1 * 2 * 0.4) ** 2 + (10 * 0.5 * 0.2) ** 2])
    assert graded == pytest.approx((1.6**2 + 0.2**2) / 2 * 2 / 12)
    assert others == 0


def test_a_dense_layer_with_space_has_the_noise_of_the_convolution_that_it_is() -> None:
    kernel, x = drawn(3, 2, 3, 3) - 0.5, drawn(5, 2, 6, 6, seed=1)
    matrix = functional.conv2d(torch.eye(72).reshape(72, 2, 6, 6), kernel).flatten(1).T
    noise = []
    for first in (FloatConv2d(kernel), FloatDense(matrix)):
        net = two_layers(first, (2, 6, 6), (3, 4, 4), torch.zeros(3))
        unit = {INPUT: torch.tensor(0.01, dtype=torch.float64)}
        noise.append(plan.rounding_noise(net, net.layers[0], unit, {INPUT: x})[2])
    torch.testing.assert_close(*noise, rtol=0.3, atol=0)  # places are hit by the input's noise unequally


def test_weights_are_lined_up_by_the_channel_that_they_read() -> None:
    dense = FloatDense(torch.arange(16.0).reshape(2, 8))  # of two channels with four neurons each
    assert plan.by_source(dense, (2, 2, 2)).tolist() == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]
    assert plan.by_source(FloatConv2d(torch.arange(6.0).reshape(3, 2, 1, 1)), (2, 4, 4)).tolist() == [
        [0, 2, 4],
        [1, 3, 5],
    ]
    # Two groups: outputs 0 and 1 read channels 0 and 1, outputs 2 and 3 channels 2 and 3.
    grouped = FloatConv2d(torch.arange(8.0).reshape(4, 2, 1, 1), Geometry(groups=2))
    assert plan.by_source(grouped, (4, 4, 4)).tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]


class Flat(nn.Sequential):
    def __init__(self, *first: nn.Module) -> None:
        super().__init__(*first, nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def trained(model: nn.Module, x: Tensor, y: Tensor, epochs: int = 15) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(epochs):
            for some in torch.randperm(len(x)).split(50):
                optimiser.zero_grad()
                functional.cross_entropy(model(x[some]), y[some]).backward()
                optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def normalised(digits: data.Digits) -> nn.Module:
    return trained(Flat(nn.BatchNorm1d(64)), digits.train_x.flatten(1), digits.train_y)


def test_features_of_scale_1_to_1000_cost_no_more_than_features_of_one_scale(
    digits: data.Digits, normalised: nn.Module
) -> None:
    size = torch.logspace(0, 3, 64)[torch.randperm(64, generator=torch.Generator().manual_seed(1))]
    other = copy.deepcopy(normalised)  # the same network for features in other units
    other[0].running_mean.mul_(size)  # type: ignore[index, operator, union-attr]
    other[0].running_var.add_(other[0].eps).mul_(size**2)  # type: ignore[index, operator, union-attr]
    other[0].eps = 0.0  # type: ignore[index, union-attr]
    x, test = digits.calibration_x.flatten(1), digits.test_x.flatten(1)
    clean, dirty = convert(normalised, x, 4), convert(other, x * size, 4)
    assert np.ndim(dirty.network.input.scale) == 1
    assert right(dirty, test * size, digits.test_y) >= right(clean, test, digits.test_y) - MOST


def test_two_sensors_of_different_scale_are_two_channels_with_scales_of_their_own() -> None:
    x = drawn(64, 2, 6, 6)
    size = torch.tensor([1.0, 4000.0])[:, None, None]
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3)).requires_grad_(False)
    for i, weight in enumerate((model[0].weight, model[3].weight)):
        weight.copy_((drawn(*weight.shape, seed=i) - 0.5) / 2)  # type: ignore[operator]
    other = copy.deepcopy(model)
    other[0].weight /= size  # type: ignore[operator]
    conversion, clean = convert(other, x * size, 8), convert(model, x, 8)
    low, high = sorted(conversion.network.input.scale)  # type: ignore[type-var, arg-type]
    assert 1000 < high / low < 16_000
    assert np.ndim(clean.network.input.scale) == 0
    # The decoded payload is what the first layer is compared on: it inherits its rounding.
    for share in (assessment.attribute(conversion, x * size)[0], assessment.attribute(clean, x)[0]):
        assert abs(share.inherited) < 0.1


@pytest.mark.parametrize("never", [False, True])
def test_one_hot_features_beside_large_ones_are_sent(never: bool) -> None:
    """Six measurements up to 5000 and eight categories, of which the last may be missing in the calibration data."""
    size = torch.tensor([1.0, 5000.0, 20.0, 0.01, 300.0, 7.0])
    weight = drawn(16, 14, seed=3) - 0.5
    weight[:, 6:] *= 2
    net = two_layers(FloatDense(weight), (14,), (16,), torch.zeros(16))
    end = FloatEdge("a", FloatDense(drawn(4, 16, seed=4) - 0.5))
    net = replace(net, layers=(net.layers[0], FloatLayer("out", (4,), (end,), torch.zeros(4), "readout")))
    measured, kinds = drawn(1200, 6, seed=5), torch.arange(1200) % 8
    x = torch.cat([measured, functional.one_hot(kinds, 8).float()], 1)
    first = FloatEdge(INPUT, FloatDense(weight / torch.cat([size, torch.ones(8)])))
    other = replace(net, layers=(replace(net.layers[0], edges=(first,)), net.layers[1]))
    seen = torch.arange(1200) < 400
    if never:
        seen &= kinds < 7
    small, large = x.clone(), x * torch.cat([size, torch.ones(8)])
    clean, conversion = convert(net, small[torch.arange(1200) < 400], 8), convert(other, large[seen], 8)
    assert np.ndim(conversion.network.input.scale) == 1
    assert (conversion.network.input.encode(large)[:, 6:].max(0) > 10).all()
    assert clipped(conversion.network.input, large[seen]) == ()
    wanted = net.logits(x[400:]).argmax(1)
    # 800 decisions; where 5 % differ, they differ by chance by sqrt(0.05 / 800) = 0.8 points.
    assert right(conversion, large[400:], wanted) >= right(clean, x[400:], wanted) - 2


def test_channels_of_a_sequence_have_scales_of_their_own() -> None:
    x, size = drawn(96, 3, 24), torch.tensor([1.0, 1000.0, 0.02])[:, None]
    model = nn.Sequential(nn.Conv1d(3, 8, 5), nn.ReLU(), nn.Flatten(), nn.Linear(160, 3)).requires_grad_(False)
    for i, weight in enumerate((model[0].weight, model[3].weight)):
        weight.copy_((drawn(*weight.shape, seed=i) - 0.5) / 2)  # type: ignore[operator]
    other = copy.deepcopy(model)
    other[0].weight /= size  # type: ignore[operator]
    conversion = convert(other, x * size, 8)
    assert conversion.network.input.shape == (3, 24, 1)
    scale = np.asarray(conversion.network.input.scale)
    assert scale.shape == (3,)
    largest = np.abs(conversion.network.input.encode((x * size)[..., None])).max((0, 2, 3))
    assert 8 <= largest.min() <= largest.max() <= 2 * largest.min()
    assert prepared(conversion) == (
        f"Each of the 3 channels of the input has a payload scale of its own, from {scale[1]:.3g} for channel 1 to "
        f"{scale[2]:.3g} for channel 2.",
    )


# ---- constants -------------------------------------------------------------------------------------------------------


def constant(x: Tensor) -> Tensor:
    """Four features that say nothing."""
    x = x.clone()
    x[:, [20, 30]] = 0
    x[:, 21], x[:, 28] = 5, -300
    return x


def test_features_that_never_change_set_no_scale(digits: data.Digits, normalised: nn.Module) -> None:
    """Batch normalisation divides by their standard deviation of 0: their weights are 300 times the others'."""
    x, test = (constant(part.flatten(1)) for part in (digits.calibration_x, digits.test_x))
    model = trained(Flat(nn.BatchNorm1d(64)), constant(digits.train_x.flatten(1)), digits.train_y)
    conversion = convert(model, x, 4)
    clean = convert(normalised, digits.calibration_x.flatten(1), 4)
    with torch.no_grad():
        lost = 100 * float((model(test).argmax(1) == digits.test_y).double().mean())
        lost -= 100 * float((normalised(digits.test_x.flatten(1)).argmax(1) == digits.test_y).double().mean())
    # What the trained network itself loses by four features that are gone is not the conversion's.
    assert right(conversion, test, digits.test_y) >= right(clean, digits.test_x.flatten(1), digits.test_y) + lost - MOST
    assert np.isfinite(conversion.network.input.scale).all()
    assert conversion.network["1"].threshold >= clean.network["1"].threshold / 2
    assert prepared(conversion)[-1].startswith("Channels of the input that never changed became biases")
    assert prepared(conversion)[-1].endswith(": 21, 28.")
    # What was folded away is a network that equals the trained one where it is constant, and nothing else.
    assert torch.allclose(conversion.source.logits(test), conversion.graph.logits(test), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("padding", [0, 1])
def test_a_constant_channel_becomes_a_bias_with_all_that_borders_do_to_it(padding: int) -> None:
    x = torch.cat([drawn(16, 1, 5, 5), torch.full((16, 1, 5, 5), 7.0)], 1)
    weight = torch.stack([drawn(3, 3, 3) - 0.5, 100 * drawn(3, 3, 3, seed=1)], 1)
    size = 3 + 2 * padding
    first = FloatConv2d(weight, Geometry(padding=(padding, padding)))
    net = two_layers(first, (2, 5, 5), (3, size, size), -torch.tensor([3000.0, 3100.0, 2900.0]))
    made = carried(net, x, Recipe())
    assert made.layers[0].bias.shape == ((3,) if padding == 0 else (3, size, size))
    assert not made.layers[0].edges[0].map.weight[:, 1].any()
    assert torch.equal(made.layers[0].edges[0].map.weight[:, 0], weight[:, 0])
    found, wanted = (graph.current(graph.layers[0], {INPUT: x}) for graph in (made, net))
    assert torch.allclose(found, wanted, atol=1e-2)


def test_what_a_constant_became_is_no_error_of_the_payload() -> None:
    # 0.403 is no multiple of the unit that all features share: times 300 it would be all that a layer inherits.
    x = torch.cat([drawn(64, 4), torch.full((64, 1), 0.403)], 1)
    weight = torch.cat([drawn(8, 4, seed=1) - 0.4, torch.full((8, 1), 300.0)], 1)
    conversion = convert(two_layers(FloatDense(weight), (5,), (8,), torch.full((8,), -0.403 * 300)), x, 8)
    assert np.ndim(conversion.network.input.scale) == 0
    assert prepared(conversion) == (
        "Channels of the input that never changed became biases, and are not read any more: 4.",
    )
    assert abs(assessment.attribute(conversion, x)[0].inherited) < 0.02


def test_an_ordinary_constant_is_a_payload_like_any_other() -> None:
    x = torch.cat([drawn(16, 3), torch.full((16, 1), 0.1)], 1)
    net = two_layers(FloatDense(drawn(4, 4, seed=1) - 0.5), (4,), (4,), torch.zeros(4))
    assert carried(net, x, Recipe()) is net


@pytest.mark.parametrize("value", [(0.0, 0, 0, 0), (2.0, 2, 2, 2), (0.0, 1, 2, 3)])
def test_calibration_data_that_never_change_at_all_are_converted(value: tuple[float, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    conversion = convert(model, torch.tensor(value).expand(8, 4), 4)
    assert np.isfinite(conversion.network.input.scale).all()
    assert len(conversion.predict(drawn(5, 4))) == 5
    assert conversion.source is conversion.graph  # it reads all features still


# ---- outliers --------------------------------------------------------------------------------------------------------


def hot(x: Tensor, share: float, factor: float) -> Tensor:
    """Multiply three pixels of some images."""
    x, generator = x.clone(), torch.Generator().manual_seed(0)
    for image in x:
        if torch.rand((), generator=generator) < share:
            row, column = torch.randint(1, 7, (2, 3), generator=generator)
            image[0, row, column] *= factor
    return x


@pytest.fixture(scope="module")
def clean(digits: data.Digits) -> Conversion:
    return convert(load_model(), digits.calibration_x, 4)


@pytest.mark.parametrize(
    ("share", "factor"),
    [(0.1, 10_000), *(pytest.param(*few, marks=pytest.mark.slow) for few in ((0.02, 100), (0.25, 100), (0.1, 20)))],
)
def test_hot_pixels_in_some_calibration_images_cost_at_most_a_point(
    share: float, factor: float, digits: data.Digits, clean: Conversion
) -> None:
    x = hot(digits.calibration_x, share, factor)
    conversion = convert(load_model(), x, 4)
    assert conversion.source.limit is not None
    assert conversion.source.limit.item() >= 1
    lost = right(clean, digits.test_x, digits.test_y) - right(conversion, digits.test_x, digits.test_y)
    assert lost <= MOST


def test_a_report_says_what_has_become_of_hot_pixels(digits: data.Digits) -> None:
    x = hot(digits.calibration_x, 0.1, 100)[:128]
    conversion = convert(load_model(), x, 4)
    report = assessment.report(conversion, load_model(), x, digits.calibration_y[:128])
    bound = 127 / conversion.network.input.scale
    count = 100 * float((x * conversion.network.input.scale > 127.5).double().mean())
    assert f"{count:.2g} % of the input values are clipped, at a magnitude of {bound:.3g}" in report.findings
    assert report.input == ()
    assert not assessment.report(conversion, load_model(), digits.test_x[:128], None).findings


def test_clean_images_are_not_looked_at_twice(digits: data.Digits, clean: Conversion) -> None:
    assert clean.source is clean.graph
    assert clipped(clean.network.input, digits.test_x) == ()


def test_relu6_costs_no_more_than_relu(digits: data.Digits, clean: Conversion) -> None:
    graph = clean.graph
    layers = (replace(layer, upper=6.0) if layer.kind == "spiking" else layer for layer in graph.layers)
    bounded = replace(graph, layers=tuple(layers))
    lost = right(clean, digits.test_x, digits.test_y)
    lost -= right(convert(bounded, digits.calibration_x, 4), digits.test_x, digits.test_y)
    # What is trained without a bound and then gets one loses by itself, and that is not the conversion's.
    decided = [one.logits(digits.test_x).argmax(1) == digits.test_y for one in (graph, bounded)]
    assert lost <= MOST + 100 * float(decided[0].double().mean() - decided[1].double().mean())


def test_outliers_stay_where_nothing_is_gained_without_them() -> None:
    # One feature is 50 times as large in a tenth of the samples, and all that the network looks at.
    x = drawn(200, 4)
    x[::10, 2] *= 50
    net = two_layers(
        FloatDense(torch.tensor([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, -1.0, 0.0]])), (4,), (2,), torch.tensor([-20.0, 21.0])
    )
    end = FloatEdge("a", FloatDense(torch.eye(2)))
    net = replace(net, layers=(net.layers[0], replace(net.layers[1], edges=(end,))))
    assert carried(net, x, Recipe(timesteps=8)) is net


def test_outliers_are_cut_off_in_calibration_where_a_coarse_payload_reaches_beyond_the_limit() -> None:
    """One feature in units of its own is a hundred times too large in every fortieth sample."""
    size = torch.logspace(0, 3, 10)
    first, end = FloatDense((drawn(32, 10, seed=1) - 0.5) / size), FloatDense(drawn(5, 32, seed=2) - 0.5)
    net = two_layers(first, (10,), (32,), torch.zeros(32))
    readout = FloatLayer("out", (5,), (FloatEdge("a", end),), torch.zeros(5), "readout")
    net = replace(net, layers=(net.layers[0], readout))
    x, test = drawn(400, 10, seed=3) * size, drawn(2000, 10, seed=4) * size
    dirty = x.clone()
    dirty[::40, 2] *= 100
    conversion, clean = (convert(net, some, 8, task="classes") for some in (dirty, x))
    assert conversion.source.limit is not None
    assert 127 / conversion.network.input.scale[2] > 1.5 * conversion.source.limit[2]  # type: ignore[index]
    wanted = net.logits(test).argmax(1)
    # 2000 decisions; where 5 % differ, they differ by chance by sqrt(0.05 / 2000) = 0.5 points.
    assert right(conversion, test, wanted) >= right(clean, test, wanted) - 1.5


def test_peaks_are_those_of_all_calibration_inputs_whatever_calibration_saw_of_them() -> None:
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(33, 5)
    x[0] *= 100
    conversion = convert(model, x, 8)
    assert conversion.source.limit is not None
    trace = conversion.run(x, overflow="count")
    assert trace.peak == conversion.peak
    assert trace.overflows > 0
    assert conversion.outside["0"] == peak_outside(conversion.network, conversion.network["0"], trace.potentials["0"])


@pytest.mark.parametrize("form", ["payload", "currents", "spikes"])
def test_where_no_scale_fits_without_a_limit_there_is_one(form: InputForm) -> None:
    """A code for what is missing, in every fortieth sample: with it, no bias register holds what the host brings."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(200, 6)
    x[::40, 0] = -999
    conversion = convert(model, x, 64, input_form=form)
    assert conversion.source.limit is not None
    assert conversion.source.limit[0] < 20
    with pytest.raises(Refused, match="0: its ReLU has no threshold of its own"):  # the cause, and not what it causes
        convert(model, x, 64, input_form=form, recipe="qcfs")


def test_a_silent_layer_has_thresholds_that_hold_what_the_host_brings() -> None:
    net = two_layers(FloatDense(-100 * drawn(4, 3)), (3,), (4,), torch.zeros(4))
    conversion = convert(net, drawn(64, 3, seed=1), 16, input_form="currents")
    assert not conversion.run(drawn(8, 3, seed=2)).spikes["a"].any()


def test_dark_calibration_images_are_no_reason_to_cut_off_bright_ones(digits: data.Digits) -> None:
    x = torch.cat([digits.calibration_x * 1e-3, digits.calibration_x[:100]])
    graph = import_model(load_model(), (1, 8, 8))
    assert carried(graph, x, Recipe(timesteps=4)) is graph


def test_the_limit_is_kept_by_all_that_runs_on_the_graph_that_is_quantised() -> None:
    net = two_layers(FloatDense(torch.eye(2)), (2,), (2,), torch.zeros(2))
    bounded = replace(net, limit=torch.tensor([1.0, 10.0]))
    x = torch.tensor([[5.0, 5.0], [-3.0, 20.0]])
    assert bounded.run(x)["a"].tolist() == [[1, 5], [0, 10]]
    turned = replace(bounded, order=torch.tensor([1, 0]), given=(2,))
    assert turned.run(x)["a"].tolist() == [[1, 5], [1, 0]]
    assert turned.stairs({"a": torch.tensor([1.0, 10.0])}, 2).run(x)["a"].tolist() == [[1, 5], [1, 0]]


def test_a_report_counts_what_leaves_the_payload() -> None:
    x = torch.tensor([[1.0, 100.0], [1.2, 130.0], [-0.4, 300.0], [0.0, 128.0]])
    assert clipped(Input((2,), scale=np.array([100.0, 1.0])), x[:1]) == ()
    # 130 and 300, and 128, but not 120 of the first channel.
    assert clipped(Input((2,), scale=np.array([100.0, 1.0])), x) == (
        "38 % of the input values are clipped, most of them in channel 1, at a magnitude of 127",
    )
    assert clipped(Input((1,), scale=127.0), x[:2, :1]) == (
        "50 % of the input values are clipped, at a magnitude of 1",
    )


# ---- the order of the data -------------------------------------------------------------------------------------------


ORDERS = ("dark first", "in turns", "sorted by class", "getting brighter")


@pytest.mark.parametrize(
    ("recipe", "how"),
    [
        *(("ann2loihi", how) for how in ORDERS[:2]),
        ("ftbc", ORDERS[0]),
        *(pytest.param("ann2loihi", how, marks=pytest.mark.slow) for how in ORDERS[2:]),
        *(pytest.param("ftbc", how, marks=pytest.mark.slow) for how in ORDERS[1:]),
    ],
)
def test_the_order_of_the_calibration_data_does_not_matter(how: str, recipe: str, digits: data.Digits) -> None:
    x, y = (
        torch.cat([digits.train_x[:256], digits.calibration_x]),
        torch.cat([digits.train_y[:256], digits.calibration_y]),
    )
    if how == "dark first":
        x = torch.cat([x[:256] * 1e-3, x])
    elif how == "sorted by class":
        x = x[y.argsort(stable=True)]
    elif how == "getting brighter":
        x = x * torch.linspace(0.05, 1, len(x))[:, None, None, None]
    else:  # every fifth is bright, as of a lamp that flickers
        x = x * torch.where(torch.arange(len(x)) % 5 == 0, 1.0, 0.05)[:, None, None, None]
    shuffled = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    found, wanted = (
        right(convert(load_model(), some, 4, recipe=recipe), digits.test_x, digits.test_y) for some in (x, shuffled)
    )
    assert found >= wanted - MOST
