"""A written ``.net`` through lava-dl's own loader: the same spikes as the network that was written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from exporters import netx
from sim import reference
from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Shape, Synapse
from sim.progress import reporting
from sim.trace import first_difference

FLAT = np.zeros((2, 2), int)

pytestmark = [
    pytest.mark.lava,
    # networkx, on which Lava builds its graphs, looks for pandas.
    pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning"),
]


def drawn(seed: int, *shape: int, low: int = -127, high: int = 127) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def chain(source: Input, timesteps: int, holdoff: int, *parts: tuple[Shape, Synapse, int]) -> Network:
    """Chain layers of (shape, synapse, threshold); one without a threshold is the readout."""
    layers: list[Layer] = []
    for seed, (shape, synapse, theta) in enumerate(parts):
        v0, bias = drawn(seed, shape[0], low=0, high=theta // 2 + 4), drawn(seed, timesteps, shape[0], low=-9, high=30)
        edge = Edge(layers[-1].name if layers else INPUT, synapse)
        layers.append(Layer(f"part.{seed}", shape, (edge,), theta, v0, bias, "spiking" if theta else "readout"))
    return Network(source, tuple(layers), timesteps, holdoff)


def convolutions(timesteps: int = 4, holdoff: int = 1) -> Network:
    return chain(
        Input((2, 5, 4), bits=4),
        timesteps,
        holdoff,
        ((4, 3, 6), Conv2d(drawn(1, 4, 2, 3, 2), Geometry(stride=(2, 1), padding=(1, 2), dilation=(1, 2))), 1020),
        ((6, 2, 6), Conv2d(drawn(2, 6, 2, 2, 3), Geometry(padding=(0, 1), groups=2)), 151),
        ((7,), Dense(drawn(3, 7, 72)), 254),
        ((3,), Dense(drawn(4, 3, 7)), 0),
    )


def flattened() -> Network:
    return chain(Input((2, 3, 2), bits=3), 3, 0, ((5,), Dense(drawn(1, 5, 12)), 508), ((2,), Dense(drawn(2, 2, 5)), 0))


def perceptron() -> Network:
    return chain(
        Input((6,), bits=3, signed=False),
        8,
        2,
        ((5,), Dense(drawn(1, 5, 6)), 508),
        ((4,), Dense(drawn(2, 4, 5)), 99),
        ((2,), Dense(drawn(3, 2, 4)), 0),
    )


@pytest.mark.parametrize(
    "network",
    [convolutions(), convolutions(1, 0), flattened(), perceptron()],
    ids=["convolutions", "T1-K0", "flattened", "perceptron"],
)
def test_a_loaded_file_equals_the_reference(network: Network, tmp_path: Path, compared: Callable[[str], None]) -> None:
    netx.write(network, tmp_path / "a.net")
    payload = drawn(9, 3, *network.input.shape, low=network.input.limits[0], high=network.input.limits[1])
    told: list[tuple[str, int, int]] = []
    with reporting(lambda *report: told.append(report)):
        trace = netx.load(tmp_path / "a.net").run(payload)
    assert first_difference(reference.run(network, payload), trace) is None
    assert all(trace.spikes[layer.name].any() for layer in network.layers if layer.kind == "spiking")
    assert (trace.engine, told[-1]) == ("netx", ("running on netx", 3, 3))
    compared("reference = netx")


def test_a_loaded_network_runs_twice_and_at_a_longer_period(tmp_path: Path) -> None:
    network = flattened()
    netx.write(network, tmp_path / "a.net")
    loaded = netx.load(tmp_path / "a.net", period=16)
    assert (loaded.network, loaded.period, len(loaded.process)) == (network, 16, 2)
    for seed in (1, 2):
        payload = drawn(seed, 2, 2, 3, 2, low=-3, high=3)
        assert first_difference(reference.run(network, payload), loaded.run(payload)) is None


def test_a_period_in_which_samples_would_meet_is_refused(tmp_path: Path) -> None:
    netx.write(flattened(), tmp_path / "a.net")
    with pytest.raises(Refused, match=r"period: 3 steps are too few .*give at least 4"):
        netx.load(tmp_path / "a.net", period=3)


def test_a_file_can_be_written_again_after_loading_and_is_then_refused(tmp_path: Path) -> None:
    netx.write(flattened(), tmp_path / "a.net")
    loaded = netx.load(tmp_path / "a.net")
    assert not loaded.process.net_config.f
    netx.write(perceptron(), tmp_path / "a.net")
    with pytest.raises(Refused, match="the file has changed since it was loaded; load it again"):
        loaded.run(np.zeros((1, 2, 3, 2), int))


def test_sums_beyond_what_netx_can_hold_are_refused(tmp_path: Path) -> None:
    network = chain(Input((600,), bits=16), 1, 0, ((2,), Dense(np.tile([1, -1], (2, 300))), 0))
    netx.write(network, tmp_path / "a.net")
    with pytest.raises(Refused, match=r"part.0: sums of up to 5033011200 leave 32 bits in netx"):
        netx.load(tmp_path / "a.net").run(np.full((1, 600), 32767))


def test_a_file_that_netx_cannot_build_runs_from_stock_processes(tmp_path: Path) -> None:
    hidden = Layer("hidden", (2,), (Edge(INPUT, Dense(np.array([[5, 1], [2, 7]]))),), 8, np.zeros(2, int), FLAT)
    edges = (Edge("hidden", Dense(np.array([[3, 4]]))), Edge(INPUT, Dense(np.array([[1, -1]])), 1))
    readout = Layer("last", (1,), edges, 0, np.zeros(1, int), FLAT[:, :1], "readout")
    network, payload = Network(Input((2,)), (hidden, readout), 2, 1), np.array([[3, 1], [2, 5]])
    netx.save(network, tmp_path / "a.net")
    assert netx.loaded_by(network) == "ann2loihi"
    with h5py.File(tmp_path / "a.net") as file:
        assert file.attrs["loader"] == b"ann2loihi"
    loaded = netx.load(tmp_path / "a.net")
    assert loaded.process is None
    assert first_difference(reference.run(network, payload), loaded.run(payload)) is None


@pytest.mark.parametrize(("missing", "name"), [("lava", "Lava"), ("lava.lib.dl.netx", "lava-dl")])
def test_without_lava_the_module_loads_and_a_file_is_refused_with_the_way_out(
    missing: str, name: str, tmp_path: Path
) -> None:
    netx.write(flattened(), tmp_path / "a.net")
    code = f"""
import sys
sys.modules[{missing!r}] = None
from exporters import netx
try:
    netx.load({str(tmp_path / "a.net")!r})
except ValueError as error:
    print(error)
"""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    way_out = "way out: `pip install 'ann2loihi[lava]'` there"
    assert f"{name} is not installed: it exists for Python 3.10 only; {way_out}" in answer.stdout
    assert answer.stderr == ""
