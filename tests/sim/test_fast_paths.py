"""Every way in which the fast engine computes gives what the definition gives: spikes, potentials and the watch."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_networks import networks

from sim import chip, fast, reference
from sim.fast import convolution, population
from sim.findings import Refused
from sim.fixedpoint import RegisterOverflow
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network
from sim.operations import operations
from sim.trace import first_difference

INT8, FLOATS, COMPILED, STEPWISE = "int8", "floats", "compiled", "stepwise"
PATHS = [(units, scan) for units in (INT8, FLOATS) for scan in (COMPILED, STEPWISE)]
CASES = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.fixture(params=PATHS, ids="-".join)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Make the engine compute in one way, whatever the size of the network."""
    units, scan = request.param
    if units == INT8 and convolution.lacking():
        pytest.skip(str(convolution.lacking()))
    if scan == COMPILED and find_spec("numba") is None:
        pytest.skip("numba is not installed")
    if units == FLOATS:
        monkeypatch.setattr(convolution, "lacking", lambda: "switched off")
    monkeypatch.setattr(population, "compiler", lambda _: scan == COMPILED)
    monkeypatch.setattr(fast.engine, "compiler", lambda _: scan == COMPILED)
    return units, scan


def same(network: Network, payload: np.ndarray, chips: chip.Chip, device: str = "cpu") -> None:
    """Compare with the definition everything that a run tells, and what it raises."""
    slow = reference.run(network, payload, chip=chips, overflow="count")
    quick = fast.run(network, payload, chip=chips, overflow="count", batch=2, count=True, device=device)
    for name, spikes in slow.spikes.items():
        assert np.array_equal(quick.fired[name], spikes.sum((0, 1), dtype=np.int64))
    assert first_difference(slow, quick) is None
    assert (slow.overflows, slow.peak, slow.overflowed) == (quick.overflows, quick.peak, quick.overflowed)
    if slow.overflows:
        with pytest.raises(RegisterOverflow) as expected:
            reference.run(network, payload, chip=chips)
        with pytest.raises(RegisterOverflow) as found:
            fast.run(network, payload, chip=chips, device=device)
        assert str(found.value) == str(expected.value)


def prove(examples: int, device: str = "cpu") -> Counter[str]:
    """Compare so many random networks of each kind; count edges by how they were computed."""
    kinds = [
        networks(shortcuts=True),
        networks(shortcuts=True, longest=64, max_layers=2),
        networks(shortcuts=True, extreme=True),
    ]
    used: Counter[str] = Counter()
    for kind in kinds:

        @settings(CASES, max_examples=examples)
        @given(kind, st.sampled_from([chip.LOIHI2, chip.WIDE, NARROW]))
        def compare(case: tuple[Network, np.ndarray], chips: chip.Chip) -> None:
            network, payload = case
            same(network, payload, chips, device)
            used.update(entry["path"] for entry in fast.paths(network))

        compare()
    return used


#: Registers that random networks leave all the time.
NARROW = chip.Chip("a narrow chip", 8, 16, 6, 17, 13, 255, (-7, 7))


def test_every_path_equals_the_definition(path: tuple[str, str]) -> None:
    used = prove(25)
    assert min(used["relayed"], used["float32"], used["float64"]) > 0
    assert (used["int8"] > 0) == (path[0] == INT8)


@pytest.mark.slow
def test_every_path_equals_the_definition_on_many_networks(path: tuple[str, str]) -> None:
    prove(500)


def conv(weight: np.ndarray, **geometry: Any) -> Conv2d:
    return Conv2d(weight, Geometry(**geometry))


def reasons(synapse: Conv2d | Dense, source: Input, shape: tuple[int, ...]) -> list[tuple[str, str]]:
    bias = np.zeros((2, shape[0]), int)
    last = Layer("out", shape, (Edge(INPUT, synapse),), 0, bias[0], bias, "readout")
    return [(entry["path"], entry["why"]) for entry in fast.paths(Network(source, (last,), 2))]


def test_a_path_is_chosen_for_a_reason() -> None:
    most = np.full((2, 3, 3, 3), 127)
    eight = Input((3, 5, 5))
    if convolution.lacking() is None:
        assert reasons(conv(most), eight, (2, 3, 3)) == [("int8", "spikes, weights and payload are bytes")]
    assert reasons(conv(most * 2), eight, (2, 3, 3)) == [("float32", "weights beyond 8 bits")]
    assert reasons(conv(most), Input((3, 5, 5), bits=9), (2, 3, 3)) == [("float32", "a payload of 9 bits")]
    assert reasons(conv(most), Input((3, 5, 5), bits=16), (2, 3, 3)) == [
        ("float64", f"sums of up to {27 * 127 * 32767} are beyond 24 bits")
    ]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))])
def test_the_int8_units_are_exact_on_every_shape_that_they_are_trusted_with(seed: int) -> None:
    if convolution.lacking():
        pytest.skip(str(convolution.lacking()))
    rng, tried = np.random.default_rng(seed), 0
    while tried < 300:
        channels, out = (int(rng.choice([rng.integers(1, 40), 3, 16, 32, 64])) for _ in range(2))
        groups = channels if rng.integers(4) == 0 else 1
        out = channels if groups > 1 else out
        kernel, stride, padding = (tuple(rng.integers(low, 5, 2).tolist()) for low in (1, 1, 0))
        signed = bool(rng.integers(2))
        source = Input((channels, *rng.integers(1, 14, 2).tolist()), bits=8, signed=signed)
        synapse = conv(
            rng.choice([-128, 127, 5], (out, channels // groups, *kernel)),
            stride=stride,
            padding=padding,
            groups=groups,
        )
        try:
            shape = synapse.output_shape(source.shape)
        except Refused:
            continue
        bias = np.zeros((1, out), int)
        layer = Layer("out", shape, (Edge(INPUT, synapse),), 0, bias[0], bias, "readout")
        network = Network(source, (layer,), 1)
        if fast.paths(network)[0]["path"] != "int8":
            continue
        tried += 1
        low, high = source.limits
        payload = rng.choice([low, high, 3], (int(rng.integers(1, 20)), *source.shape))
        found = fast.run(network, payload, chip=chip.WIDE).potentials["out"][:, 0]
        images, weight = torch.from_numpy(payload).double(), torch.from_numpy(synapse.weight.copy()).double()
        assert np.array_equal(found, torch.nn.functional.conv2d(images, weight, None, *synapse.geometry).numpy())


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 9))])
def test_float32_is_exact_on_narrow_maps_and_wherever_a_kernel_fits_into_the_padding(seed: int, memory: Any) -> None:
    """oneDNN's own convolutions are wrong on some of these, and crash on others."""
    rng, tried = np.random.default_rng(seed), 0
    while tried < 3000:
        groups = int(rng.choice([1, 1, 2]))
        channels, out = groups * int(rng.choice([1, 1, 2, 8])), groups * int(rng.choice([1, 2, 8]))
        height, width = rng.choice([1, 2, 4, 5], 2).tolist()
        kernel, stride, padding, dilation = (
            tuple(rng.choice(values, 2).tolist()) for values in ([1, 2, 3], [1, 2, 3], [0, 0, 1, 2, 3], [1, 1, 2])
        )
        if min(height + 2 * padding[0] - dilation[0] * (kernel[0] - 1), 9) < 1:
            continue
        if min(width + 2 * padding[1] - dilation[1] * (kernel[1] - 1), 9) < 1:
            continue
        tried += 1
        images = torch.from_numpy(rng.integers(0, 2, (int(rng.choice([1, 2, 8])), height, width, channels)))
        images = images.permute(0, 3, 1, 2)
        weight = torch.from_numpy(rng.integers(-9, 10, (out, channels // groups, *kernel)))
        geometry = Geometry(stride, padding, dilation, groups)
        expected = torch.nn.functional.conv2d(images.double().contiguous(), weight.double(), None, *geometry)
        found = convolution.convolved(images.float(), weight.float().contiguous(memory_format=memory), geometry)
        assert torch.equal(found.double(), expected), (images.shape, weight.shape, geometry)


@pytest.mark.parametrize("bits", [1, 7, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_extreme_bytes_are_summed_exactly(path: tuple[str, str], bits: int, signed: bool) -> None:
    source = Input((32, 6, 5), bits, signed)
    low, high = source.limits
    rng = np.random.default_rng(bits)
    weight = rng.choice([-128, 127], (16, 32, 3, 3))
    bias = np.zeros((2, 16), int)
    layer = Layer("a", (16, 3, 5), (Edge(INPUT, conv(weight, stride=(2, 1), padding=(1, 1))),), 900, bias[0], bias)
    last = Layer(
        "out", (3,), (Edge("a", Dense(rng.choice([-128, 127], (3, 240)))),), 0, [0] * 3, bias[:, :3], "readout"
    )
    payload = rng.choice([low, high], (3, 32, 6, 5))
    payload[0], payload[1] = low, high
    same(Network(source, (layer, last), 2), payload, chip.LOIHI2)


@settings(CASES, max_examples=25)
@given(networks(shortcuts=True))
def test_operations_are_those_of_nonzero_weights_and_spikes(case: tuple[Network, np.ndarray]) -> None:
    network, payload = case
    trace = fast.run(network, payload, overflow="count", count=True)
    counted = operations(network, trace.fired, payload)
    for layer in network.layers:
        # The number of ones that arrive where every weight that is not 0, or every weight, is 1.
        sums = {"dense": 0, "macs": 0, "acs": 0}
        for edge in layer.edges:
            weight = edge.synapse.weight
            graded = edge.source == INPUT
            sent = (payload != 0) * network.timesteps if graded else trace.spikes[edge.source].sum(1)
            for kind, ones, arriving in (
                ("dense", np.ones_like(weight), np.full((len(payload), *sent.shape[1:]), network.timesteps)),
                ("macs" if graded else "acs", (weight != 0).astype(int), sent),
            ):
                for values in arriving:
                    synapse = replace(edge.synapse, weight=ones)
                    sums[kind] += int(reference.CURRENT[type(synapse)](synapse, values.astype(np.int64)).sum())
        found = counted[layer.name]
        assert (found.dense * len(payload), found.macs * len(payload), found.acs * len(payload)) == pytest.approx(
            (sums["dense"], sums["macs"], sums["acs"])
        )


@pytest.mark.parametrize("channels", [population.NEAR + 3, population.NEAR // 3])
def test_constants_of_many_channels_repeat_where_they_should(path: tuple[str, str], channels: int) -> None:
    rng = np.random.default_rng(0)
    bias = rng.integers(-9, 9, (2, channels))
    edge = Edge(INPUT, conv(rng.integers(-9, 9, (channels, 1, 1, 1))))
    first = Layer("a", (channels, 2, 7), (edge,), 20, bias[0], bias)
    last = Layer(
        "out", (1,), (Edge("a", Dense(rng.integers(-9, 9, (1, 14 * channels)))),), 0, [0], [[0], [1]], "readout"
    )
    same(Network(Input((1, 2, 7)), (first, last), 2), rng.integers(-127, 128, (2, 1, 2, 7)), chip.LOIHI2)


def draw_convolution(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, Geometry]:
    """Draw images and weights as 64-bit integers that fit, and a geometry."""
    groups, out, inputs = (int(n) for n in rng.integers(1, 4, 3))
    kernel, stride, dilation, padding = (tuple(rng.integers(low, 4, 2).tolist()) for low in (1, 1, 1, 0))
    images = torch.from_numpy(rng.integers(-128, 128, (2, groups * inputs, *rng.integers(7, 12, 2).tolist())))
    weight = torch.from_numpy(rng.integers(-128, 128, (groups * out, inputs, *kernel)))
    return images, weight, Geometry(stride, padding, dilation, groups)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_convolutions_by_matrix_products_are_exact(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if device == "cpu":
        monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.long() @ b.long()).int())
    rng, tried = np.random.default_rng(0), Counter[torch.dtype]()
    for _ in range(200):
        images, weight, geometry = draw_convolution(rng)
        expected = torch.nn.functional.conv2d(images.double(), weight.double(), None, *geometry).long()
        for kind in (torch.int8, torch.float32, torch.float64):
            if kind != torch.int8 or geometry.groups == 1:
                found = convolution.by_products(weight.to(device, kind), geometry)(images.to(device)).cpu()
                assert torch.equal(found.long(), expected)
                tried[kind] += 1
    assert min(tried.values()) > 30


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("tf32", [False, True])
def test_a_gpu_equals_the_definition(tf32: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    prove(100, "cuda")


def test_a_device_that_is_not_there_is_refused() -> None:
    layer = Layer("out", (1,), (Edge(INPUT, Dense([[1]])),), 0, [0], [[0]], "readout")
    for device in ("tpu", "cuda:99", "", "mps"):
        with pytest.raises(Refused, match=r"device: .* is not there; give 'cpu', or 'cuda' on a machine with a GPU"):
            fast.run(Network(Input((1,)), (layer,), 1), [[1]], device=device)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_chunks_change_nothing(path: tuple[str, str], threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rng = np.random.default_rng(0)
        bias = rng.integers(-9, 9, (5, 4))
        shape = (4, 6, 6)
        first = Layer(
            "a", shape, (Edge(INPUT, conv(rng.integers(-99, 99, (4, 2, 3, 3)), padding=(1, 1))),), 900, bias[0], bias
        )
        last = Layer(
            "out", (3,), (Edge("a", Dense(rng.integers(-99, 99, (3, 144)))),), 0, [0] * 3, bias[:, :3], "readout"
        )
        network, payload = Network(Input((2, 6, 6)), (first, last), 5, 1), rng.integers(-127, 128, (11, 2, 6, 6))
        expected = reference.run(network, payload, overflow="count")
        for batch in (None, 1, 4, 11, 100):
            assert first_difference(expected, fast.run(network, payload, overflow="count", batch=batch)) is None
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("broken", [False, True])
def test_without_numba_or_with_a_broken_one_torch_is_left(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "sim.fast.compiled", raising=False)
    if broken:
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.setattr(population, "find_spec", lambda name: object())
    else:
        monkeypatch.setattr(population, "find_spec", lambda name: None)
    assert not population.compiler(1 << 40)


def test_a_short_run_loads_no_compiler() -> None:
    if "sim.fast.compiled" not in sys.modules:
        assert not population.compiler(1000)
    assert population.compiler(1 << 40) == (find_spec("numba") is not None)
