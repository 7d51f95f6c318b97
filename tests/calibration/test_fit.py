"""Weights fitted to the spikes that arrive: what is recovered, what is kept, and how little rounding costs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sim.chip import LOIHI2
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Synapse
from toolchain.calibration import fit
from toolchain.graph import FloatConv2d

T = 4


def test_shapes_that_torch_gets_wrong_are_fitted_and_followed_by_what_they_are() -> None:
    """Maps of one channel, channels last, whose currents are one column wide: oneDNN's convolution is wrong there."""
    drawn = torch.Generator().manual_seed(0)
    maps = torch.randint(2, (8, 8, 3, 1), generator=drawn).permute(0, 3, 1, 2)
    weight = torch.randint(-9, 10, (8, 1, 3, 3), generator=drawn)
    synapse = Conv2d(weight.numpy(), Geometry(stride=(1, 2)))
    expected = functional.conv2d(maps.double().contiguous(), weight.double(), None, (1, 2))
    for compute in (fit.SYNAPSES[Conv2d].map, lambda *_: FloatConv2d(weight.float(), synapse.geometry)(maps.float())):
        assert torch.equal(compute(synapse, weight.float(), maps.float()).double(), expected)


@dataclass
class Problem:
    """A layer with wrong weights, and the current that the right ones would have made of the spikes it hears."""

    network: Network
    nominal: list[Tensor]
    outputs: dict[str, Tensor]
    wanted: Tensor

    def fitted(self, keep: bool = False) -> Layer:
        layer = self.network["layer"]
        return fit.fit(self.network, layer, self.nominal, self.outputs, self.wanted, LOIHI2, keep=keep)

    @property
    def weight(self) -> np.ndarray:
        """The fitted integers of the edge from "source", which comes last."""
        return self.fitted().edges[-1].synapse.weight


def current(synapse: Synapse, spikes: Tensor) -> Tensor:
    """What a synapse makes of spikes (T, B, *source) over the whole window, float64 (B, ...)."""
    w, x = torch.tensor(synapse.weight, dtype=torch.float64), spikes.sum(0).double()
    if isinstance(synapse, Dense):
        return functional.linear(x.flatten(1), w)
    return functional.conv2d(x, w, None, *synapse.geometry)


def sent(samples: int, shape: tuple[int, ...], seed: int = 7) -> Tensor:
    """Spikes (T, B, *shape) of neurons with different rates."""
    rng = np.random.default_rng(seed)
    rates = rng.random((samples, *shape)) * 0.9
    return torch.from_numpy((rng.random((T, samples, *shape)) < rates).astype(np.uint8))


def problem(
    source: tuple[int, ...],
    right: Synapse,
    beta: Any,
    *,
    trained: Any = None,
    shape: tuple[int, ...] | None = None,
    second: tuple[Tensor, Synapse, Synapse] | None = None,
    samples: int = 3000,
    wrong: float = 8.0,
) -> Problem:
    """``right`` weights explain what is wanted, and ``beta`` more of a bias in a whole window, (C,) or (*shape).

    The layer has ``trained`` as its schedule and weights that are ``wrong`` by so much. ``second`` is another edge that
    comes first: the spikes that it carries, the synapse as it is deployed and as it should be.
    """
    shape = right.output_shape(source) if shape is None else shape
    outputs = {"source": sent(samples, source)}
    nominal = right.weight + np.random.default_rng(3).normal(0, wrong, right.weight.shape)
    edges = [Edge("source", replace(right, weight=np.rint(nominal).astype(int)))]
    weights = [torch.from_numpy(nominal)]
    total = current(right, outputs["source"]).reshape(samples, *shape)
    if second is not None:
        outputs["second"], deployed, should = second
        edges.insert(0, Edge("second", deployed))
        weights.insert(0, torch.from_numpy(should.weight.astype(float)))
        total = total + current(should, outputs["second"]).reshape(samples, *shape)
    beta = torch.as_tensor(beta).double()
    total = total + (beta.reshape(-1, *(1,) * (len(shape) - 1)) if beta.ndim == 1 else beta)
    layers = [
        Layer(
            *(name, spikes.shape[2:], (Edge(INPUT, Dense(np.zeros((spikes[0, 0].numel(), 1), int))),), 1),
            *(np.zeros(spikes.shape[2], int), np.zeros((T, spikes.shape[2]), int)),
        )
        for name, spikes in outputs.items()
    ]
    bias = np.zeros((T, shape[0]), int) if trained is None else np.array(trained)
    layers.append(Layer("layer", shape, tuple(edges), 100, np.zeros(shape[0], int), bias))
    end = Edge("layer", Dense(np.ones((1, math.prod(shape)), int)))
    layers.append(Layer("end", (1,), (end,), 0, [0], np.zeros((T, 1), int), "readout"))
    return Problem(Network(Input((1,)), tuple(layers), T), weights, outputs, total.float() / T)


def integers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-100, 101, shape)


SYNAPSES: dict[str, tuple[tuple[int, ...], Synapse, int]] = {
    "Dense": ((6,), Dense(integers(5, 6)), 3000),
    "Dense from an image": ((2, 2, 3), Dense(integers(3, 12)), 3000),
    "Conv2d": ((3, 5, 6), Conv2d(integers(4, 3, 3, 2), Geometry(padding=(1, 0))), 300),
    "Conv2d with stride and dilation": ((2, 9, 8), Conv2d(integers(3, 2, 2, 3), Geometry((2, 1), (0, 2), (1, 2))), 300),
    "grouped Conv2d": ((4, 5, 5), Conv2d(integers(6, 2, 3, 3), Geometry(padding=(1, 1), groups=2)), 300),
    "depthwise Conv2d": ((4, 6, 6), Conv2d(integers(4, 1, 3, 3), Geometry(padding=(1, 1), groups=4)), 300),
}


@pytest.mark.parametrize("name", SYNAPSES)
def test_weights_and_bias_that_explain_the_currents_are_found_exactly(name: str) -> None:
    """Beside a second edge, one to one, whose current is not theirs to explain."""
    source, right, samples = SYNAPSES[name]
    shape = right.output_shape(source)
    skip: Synapse = Dense(np.eye(shape[0], dtype=int) * 50)
    if len(shape) == 3:
        skip = Conv2d(np.full((shape[0], 1, 1, 1), 50), Geometry(groups=shape[0]))
    beta, trained = np.arange(shape[0]) * 13 - 20, integers(T, shape[0])
    given = problem(
        *(source, right, beta),
        samples=samples,
        trained=trained,
        second=(sent(samples, shape, 8), skip, skip),
    )
    made = given.fitted()
    assert made.edges == (Edge("second", skip), Edge("source", right))
    assert made.bias.sum(0).tolist() == (trained.sum(0) + beta).tolist()
    assert np.ptp(made.bias, axis=0).max() <= 1  # the same at every step, up to rounding


def test_a_wrong_second_edge_is_fitted_after_the_largest_to_what_that_leaves() -> None:
    # Of two edges from unrelated sources both find their weights, and the bias counts once.
    right, other = Dense(integers(5, 6)), Dense(integers(5, 3, seed=1))
    second = (sent(3000, (3,), 8), replace(other, weight=other.weight + integers(5, 3, seed=2) // 20), other)
    made = problem((6,), right, 40, second=second).fitted()
    assert made.edges == (Edge("second", other), Edge("source", right))
    assert made.bias.sum(0).tolist() == [40] * 5


def test_the_largest_edge_takes_up_what_another_one_does_wrong() -> None:
    # The second edge hears copies of neurons 0 and 1 with weights that are 7 too small.
    right = Dense(integers(5, 6))
    copies = sent(3000, (6,))[:, :, :2]
    should = integers(5, 2, seed=1)
    given = problem((6,), right, 5, second=(copies, Dense(should - 7), Dense(should)))
    assert (given.weight - right.weight).tolist() == [[7, 7, 0, 0, 0, 0]] * 5
    # A 1x1 convolution that hears channel 0 with a weight 7 too large: the centre of the 3x3 kernels makes up for it.
    kernels = Conv2d(integers(4, 3, 3, 3), Geometry(padding=(1, 1)))
    copies, pointwise = sent(300, (3, 5, 6))[:, :, :1], integers(4, 1, 1, 1, seed=1)
    second = (copies, Conv2d(pointwise + 7), Conv2d(pointwise))
    difference = problem((3, 5, 6), kernels, 5, samples=300, second=second).weight - kernels.weight
    assert difference[:, 0, 1, 1].tolist() == [-7] * 4
    assert np.count_nonzero(difference) == 4


def test_a_dense_edge_into_an_image_is_fitted_with_a_bias_for_every_neuron() -> None:
    right, beta = Dense(integers(12, 6)), np.arange(12).reshape(2, 2, 3) * 5 - 20
    made = problem((6,), right, beta, shape=(2, 2, 3)).fitted()
    assert np.array_equal(made.edges[0].synapse.weight, right.weight)
    assert made.bias.sum(0).tolist() == beta.tolist()


def test_a_bias_that_differs_over_space_keeps_its_pattern() -> None:
    right, pattern = Conv2d(integers(2, 3, 3, 3), Geometry(padding=(1, 1))), integers(T, 2, 4, 4, seed=1)
    # 30 more are wanted of channel 0, 10 less of channel 1, than the trained bias gives.
    made = problem((3, 4, 4), right, [30, -10], trained=pattern, samples=400).fitted()
    assert np.array_equal(made.edges[0].synapse.weight, right.weight)
    assert (made.bias - pattern).sum(0).tolist() == [[[30] * 4] * 4, [[-10] * 4] * 4]


def test_weights_beyond_the_chips_limit_are_clipped_and_the_others_make_up_for_it() -> None:
    # Neurons 0 and 1 nearly always send the same: of 200 and 20 wanted, 127 and 93 make the same current.
    given = problem((3,), Dense([[110, 20, -40]]), 0)
    spikes = given.outputs["source"]
    spikes[:, :, 1] = spikes[:, :, 0]
    spikes[0, ::50, 1] ^= 1
    given.wanted = (current(Dense([[200, 20, -40]]), spikes) / T).float()
    weight = given.weight[0].tolist()
    assert weight[0] == 127
    assert 85 <= weight[1] <= 95
    assert weight[2] == -40


# ---- few samples -----------------------------------------------------------------------------------------------------


def test_the_trained_weights_win_where_there_are_fewer_samples_than_synapses() -> None:
    """Wanted is what twice the trained weights would give: many samples say so, a few do not overrule training."""
    trained = Dense(integers(8, 64) // 2)
    followed = []
    for samples in (4, 8000):
        given = problem((64,), trained, 0, samples=samples, wrong=0.0)
        given.wanted *= 2
        moved = given.weight - trained.weight
        followed.append(np.abs(moved).sum() / np.abs(trained.weight).sum())
    assert followed[0] < 0.15  # three directions of 64, half of each
    assert followed[1] > 0.94


def test_a_source_that_never_spikes_leaves_the_trained_weights_and_only_moves_the_bias() -> None:
    trained = Dense(integers(5, 6))
    given = problem((6,), trained, 40, wrong=0.0)
    given.outputs["source"].zero_()
    given.wanted[:] = 10.0
    made = given.fitted()
    assert np.array_equal(made.edges[0].synapse.weight, trained.weight)
    assert made.bias.tolist() == [[10] * 5] * T


# ---- rounding --------------------------------------------------------------------------------------------------------


def correlated(seed: int, synapses: int = 40, samples: int = 400) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (1, F, 16), counts (F, n) of which a tenth of the variance is a synapse's own, and :func:`factor`."""
    generator = torch.Generator().manual_seed(seed)
    common = (
        torch.randn(synapses, 8, generator=generator).double() @ torch.randn(8, samples, generator=generator).double()
    )
    n = common + torch.randn(synapses, samples, generator=generator).double()
    square = n @ n.T / samples + 0.1 * torch.eye(synapses)
    return torch.randn(1, synapses, 16, generator=generator).double() * 3, n, factor(square)


def factor(square: Tensor) -> Tensor:
    """The upper triangular R (1, F, F) of ``square = R R^T``."""
    return torch.linalg.cholesky(square.flip(0, 1)).flip(0, 1)[None]


def error(weights: Tensor, rounded: Tensor, n: Tensor) -> float:
    """``E |(W - W_rounded) n|^2``."""
    return float(((weights - rounded)[0].T @ n).square().mean())


def test_rounding_costs_a_fraction_of_what_rounding_to_nearest_costs() -> None:
    factors = []
    for seed in range(30):
        weights, n, triangular = correlated(seed)
        rounded = fit._round(weights, triangular, 127)
        assert torch.equal(rounded, rounded.round())
        factors.append(error(weights, rounded, n) / error(weights, weights.round(), n))
    assert max(factors) < 1
    assert sum(factors) / len(factors) < 0.35  # measured: 0.29


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_rounding_never_leaves_the_limit_and_still_costs_less_than_clipping(limit: int) -> None:
    factors = []
    for seed in range(10):
        weights, n, triangular = correlated(seed)
        rounded = fit._round(weights, triangular, limit)
        assert rounded.abs().max() <= limit
        factors.append(error(weights, rounded, n) / error(weights, weights.round().clamp(-limit, limit), n))
    assert sum(factors) / len(factors) < 1


def test_synapses_that_hear_unrelated_spikes_are_rounded_to_the_nearest() -> None:
    weights = torch.tensor([[[0.4], [1.6], [-2.7], [200.0]]]).double()
    rounded = fit._round(weights, factor(torch.diag(torch.tensor([1.0, 2, 3, 4])).double()), 127)
    assert rounded.flatten().tolist() == [0, 2, -3, 127]


def test_two_synapses_that_hear_the_same_share_their_rounding_error() -> None:
    # 0.4 and 0.3 of nearly the same spikes are 0.7: the first is rounded to 0, the second takes up its 0.4.
    same = torch.tensor([[1.0, 1.0], [1.0, 1.0]]).double() + 1e-3 * torch.eye(2)
    rounded = fit._round(torch.tensor([[[0.4], [0.3]]]).double(), factor(same), 127)
    assert rounded.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("block", [1, 3, 128])
def test_blocks_of_synapses_only_change_how_fast_it_is(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, _, triangular = correlated(0, synapses=150, samples=600)
    expected = fit._round(weights, triangular, 127)
    monkeypatch.setattr(fit, "BLOCK", block)
    assert torch.equal(fit._round(weights, triangular, 127), expected)


def test_weights_that_are_kept_are_only_rounded_and_the_bias_makes_the_mean_right() -> None:
    given = problem((3, 5, 6), Conv2d(integers(4, 3, 3, 3)), 5, samples=300)
    # Channels that fire alike share their errors.
    given.outputs["source"][:, :, 1:] = given.outputs["source"][:, :, :1]
    nominal = given.nominal[0].numpy()
    made = given.fitted(keep=True)
    kept, nearest = made.edges[0].synapse.weight, np.rint(nominal)
    assert np.abs(kept - nominal).max() < 4  # not 8 on average, as far as the right ones are
    assert (kept != nearest).any()
    got = current(made.edges[0].synapse, given.outputs["source"]) + made.bias.sum(0)[:, None, None]
    assert (got.mean((0, 2, 3)) - T * given.wanted.double().mean((0, 2, 3))).abs().max() <= 1

    def costs(weight: np.ndarray) -> float:
        synapse = replace(made.edges[0].synapse, weight=weight)
        error = current(synapse, given.outputs["source"]) - functional.conv2d(
            given.outputs["source"].sum(0).double(), given.nominal[0]
        )
        return float((error - error.mean((0, 2, 3), keepdim=True)).square().mean())

    assert costs(kept) < 0.8 * costs(nearest.astype(int))


# ---- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
def test_weights_finer_than_a_synaptic_unit_are_integers_of_their_own_unit(keep: bool) -> None:
    # With exponent -2 an integer is a quarter of a su.
    right = np.array([[40, -80, 13], [7, 90, -21]])
    first = Layer("a", (2,), (Edge(INPUT, Dense(right * 0 + 1), -2),), 100, [0, 0], np.zeros((T, 2), int))
    out = Layer("out", (1,), (Edge("a", Dense([[1, 1]])),), 0, [0], np.zeros((T, 1), int), "readout")
    payload = torch.from_numpy(np.random.default_rng(0).integers(-100, 101, (400, 3)))
    nominal = torch.from_numpy(right / 4)
    wanted = (payload.double() @ nominal.T).float()
    network = Network(Input((3,)), (first, out), T)
    made = fit.fit(network, first, [nominal], {INPUT: payload}, wanted, LOIHI2, keep=keep)
    assert made.edges[0].synapse.weight.tolist() == right.tolist()
    assert not made.bias.any()


@pytest.mark.parametrize("name", ["Dense from an image", "Conv2d", "grouped Conv2d"])
def test_many_synapses_are_fitted_in_parts_each_to_what_the_others_leave(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, right, samples = SYNAPSES[name]
    given = problem(source, right, 20, samples=samples)
    count = right.weight[0].size
    monkeypatch.setattr(fit, "LARGEST", count)
    assert (given.weight == right.weight).all()
    monkeypatch.setattr(fit, "LARGEST", count // 2)
    made = given.fitted()
    # 6 on average before; the first half is fitted beside a second that is still wrong.
    assert np.abs(made.edges[-1].synapse.weight - right.weight).mean() < 2
    got = current(made.edges[-1].synapse, given.outputs["source"]).reshape(samples, len(right.weight), -1)
    missing = got + torch.from_numpy(made.bias.sum(0))[:, None] - T * given.wanted.double().reshape(got.shape)
    assert float(missing.mean((0, 2)).abs().max()) <= 1


def test_a_selecting_edge_gets_no_synapses_that_it_did_not_have() -> None:
    selecting = np.zeros((4, 3, 1, 1), int)
    selecting[[0, 1, 2], [0, 1, 2]] = 50
    given = problem((3, 5, 6), Conv2d(selecting), 0, samples=200, wrong=0.0)
    given.wanted += torch.randn(given.wanted.shape, generator=torch.Generator().manual_seed(0)) * 9
    assert given.fitted() == given.network["layer"]


@pytest.mark.parametrize("chunk", [1, 5000])
def test_how_many_sources_are_unfolded_at_a_time_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem((3, 5, 6), Conv2d(integers(4, 3, 3, 3)), 3, samples=60)
    given.wanted += torch.randn(given.wanted.shape, generator=torch.Generator().manual_seed(0)) * 9
    expected = given.fitted()
    monkeypatch.setattr(fit, "CHUNK", chunk)
    assert given.fitted() == expected


@pytest.mark.parametrize("exponent", [0, -3])
def test_on_the_grid_sums_are_exact_in_any_order(exponent: int) -> None:
    rng = np.random.default_rng(0)
    counts = torch.from_numpy(rng.integers(-1016, 1017, 5000) * 2.0**exponent)
    missing = torch.from_numpy(rng.normal(0, 3000, (5000, 1)))
    step = fit.grid(counts, exponent, missing)
    rounded = (missing[:, 0] / step).round() * step
    assert math.log2(step).is_integer()
    assert 0 < float((rounded - missing[:, 0]).abs().max()) <= step / 2 < 1e-5

    def sums(z: Tensor) -> set[float]:
        orders = [torch.from_numpy(rng.permutation(5000)) for _ in range(20)]
        return {float(counts[order] @ z[order]) for order in orders}

    assert sums(rounded) == {math.fsum((counts * rounded).tolist())}
    assert len(sums(missing[:, 0])) > 1


@pytest.mark.parametrize("largest", [fit.LARGEST, 5])
@pytest.mark.parametrize("name", SYNAPSES)
def test_what_is_rounded_is_the_same_to_the_last_bit_in_any_order_of_the_samples(
    name: str, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "LARGEST", largest)
    source, right, samples = SYNAPSES[name]
    given = problem(source, right, 3, samples=samples)
    given.wanted += torch.randn(given.wanted.shape, generator=torch.Generator().manual_seed(0)) * 9
    fitted: list[Tensor] = []
    original = fit._round

    def watched(weights: Tensor, triangular: Tensor, limit: int) -> Tensor:
        fitted.append(weights)
        return original(weights, triangular, limit)

    monkeypatch.setattr(fit, "_round", watched)
    first = given.fitted()
    order = torch.from_numpy(np.random.default_rng(1).permutation(samples))
    given.wanted = given.wanted[order]
    given.outputs["source"] = given.outputs["source"][:, order]
    assert given.fitted() == first
    parts = len(fitted) // 2
    assert all(map(torch.equal, fitted[:parts], fitted[parts:]))


def test_few_of_many_places_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Conv2d(integers(4, 3, 3, 3), Geometry(padding=(1, 1)))
    given = problem((3, 6, 7), right, 0, samples=300, wrong=2.0)
    looked: list[int] = []
    original = fit.SYNAPSES[Conv2d]

    def pairs(*arguments: Any) -> Any:
        for x, z in original.pairs(*arguments):
            looked.append(x.shape[2])
            yield x, z

    monkeypatch.setitem(fit.SYNAPSES, Conv2d, replace(original, pairs=pairs))
    monkeypatch.setattr(fit, "SAMPLES", 32 * 27)
    assert np.array_equal(given.weight, right.weight)
    assert 32 * 27 * 0.8 < sum(looked) < 32 * 27 * 1.2
