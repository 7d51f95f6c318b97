"""Files with a clock: neurons bring the schedule, and nobody writes. Dense chains are blocks that stock netx builds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from exporters import bundle, netx
from exporters.netx import clocked
from sim import fast, reference, stock
from sim.chip import LOIHI2
from sim.findings import Refused
from sim.fixedpoint import RegisterOverflow
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Synapse
from sim.trace import first_difference


def drawn(seed: int, *shape: int, low: int = -127, high: int = 127) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def layer(
    name: str,
    sources: dict[str, tuple[int, ...]],
    synapses: list[Synapse],
    theta: int,
    timesteps: int,
    spread: int = 40,
) -> Layer:
    edges = tuple(Edge(source, synapse) for source, synapse in zip(sources, synapses, strict=True))
    shape = synapses[0].output_shape(next(iter(sources.values())))
    bias = drawn(len(name), timesteps, *shape, low=-spread, high=spread)
    return Layer(name, shape, edges, theta, np.full(shape[0], theta // 2), bias, "spiking" if theta else "readout")


def perceptron(*thetas: int, timesteps: int = 6, spread: int = 40) -> Network:
    """Five neurons a layer; each threshold makes a spiking one."""
    layers: list[Layer] = []
    for seed, theta in enumerate((*thetas, 0)):
        source = layers[-1].name if layers else INPUT
        layers.append(layer(f"part.{seed}", {source: (5,)}, [Dense(drawn(seed, 5, 5))], theta, timesteps, spread))
    return Network(Input((5,), bits=3), tuple(layers), timesteps)


def convolutions(holdoff: int = 0) -> Network:
    shape = (2, 4, 3)
    first = layer("first", {INPUT: shape}, [Conv2d(drawn(1, 4, 1, 3, 3), Geometry(padding=(1, 1), groups=2))], 300, 4)
    out = layer("out", {"first": (4, 4, 3)}, [Dense(drawn(3, 2, 48))], 0, 4)
    return Network(Input(shape, bits=3), (first, out), 4, holdoff)


def residual() -> Network:
    shape, same = (2, 3, 3), Geometry(padding=(1, 1))
    stem = layer("stem", {INPUT: shape}, [Conv2d(drawn(1, 2, 2, 3, 3), same)], 250, 4)
    block = layer("block", {"stem": shape}, [Conv2d(drawn(2, 2, 2, 3, 3), same)], 120, 4)
    joined = layer(
        "joined", {"block": shape, "stem": shape}, [Conv2d(drawn(k, 2, 2, 3, 3), same) for k in (3, 4)], 130, 4
    )
    out = layer("out", {"joined": shape}, [Dense(drawn(5, 3, 18))], 0, 4)
    return Network(Input(shape, bits=3), (stem, block, joined, out), 4, 1)


DENSE = {
    "dense": perceptron(99, 101),
    "deeper than T": perceptron(*(97,) * 5, timesteps=3),
    "increments of several relays": perceptron(99, 101, spread=300),
    "one layer": perceptron(99),
}
OURS = {"convolutions": convolutions(), "convolutions, held": convolutions(2), "residual": residual()}
NETWORKS = DENSE | OURS


@pytest.mark.parametrize("name", NETWORKS)
def test_what_goes_in_comes_back_and_the_file_says_who_loads_it(name: str, tmp_path: Path) -> None:
    path, network = tmp_path / "a.net", NETWORKS[name]
    netx.save(network, path, form="clock")
    assert (netx.read(path), netx.form_of(path)) == (network, "clock")
    assert netx.loader_of(path) == (netx.NETX if name in DENSE else netx.OURS)
    found = netx.legality(path)
    assert not [issue for issue in found if issue.severity == "error"]
    assert not [issue for issue in found if issue.rule == "schedule"]


@pytest.mark.parametrize("name", DENSE)
def test_relays_bring_the_schedule_and_are_started_by_the_layer_before(name: str) -> None:
    """Followed by hand, relay by relay: what has come into u of a layer's neurons by each step of its window."""
    network = DENSE[name]
    fired_before = np.ones((1, 1), bool)  # steps, relays: the pulse
    for layer, (weight, recurrent) in zip(network.layers, clocked.matrices(network), strict=True):
        size = layer.size
        assert np.abs(weight).max() <= 127
        relayed = weight[:, layer.edges[0].synapse.weight.shape[1] :]
        if recurrent is None:
            # The first position of the layer before starts its chain; those behind it bring the readout's schedule.
            for tau, row in enumerate(layer.bias):
                np.testing.assert_array_equal(relayed[:, fired_before[tau + 1]].sum(1), row)
            continue
        (started,) = np.nonzero(relayed[size:, fired_before[0]].sum(1) >= layer.threshold)
        chain = clocked.chains(network)[layer.name]
        rows = [np.isin(np.arange(chain.size), started)]
        while rows[-1].any():
            rows.append(recurrent[size:, size:][:, rows[-1]].clip(0).sum(1) >= layer.threshold)
        assert len(rows) == network.timesteps + 2
        assert np.array(rows).sum(0).tolist() == [1] * chain.size  # each fires once
        brought = [recurrent[:size, size:][:, row].sum(1) for row in rows[:-1]]
        np.testing.assert_array_equal(brought[:-1], layer.bias)
        assert (brought[-1] == -chain.hold).all()
        assert np.diag(recurrent).tolist() == [-layer.threshold] * (size + chain.size)
        fired_before = np.array(rows[:-1])


def test_the_hold_is_no_more_than_it_takes_and_no_more_than_13_bits() -> None:
    """Two weights of 100 and one of -50, 3 steps, theta 99, v0 49: at most 649, of which 3 thetas are fired."""
    bias = np.zeros((3, 1), int)
    one = Layer("one", (1,), (Edge(INPUT, Dense([[100, 100, -50]])),), 99, np.array([49]), bias)
    two = Layer("two", (1,), (Edge("one", Dense([[60]])),), 99, np.array([49]), bias)
    out = Layer("out", (1,), (Edge("two", Dense([[1]])),), 0, bias[0], bias, "readout")
    chains = clocked.chains(Network(Input((3,), bits=1, signed=False), (one, two, out), 3))
    assert chains["one"].hold == 49 + 3 * (200 - 99) - 99 + 1
    assert chains["one"].counts == (1, 1, 1, math.ceil(254 / 127))
    assert chains["two"].hold == 0  # 60 a step never reach 99 twice
    wide = clocked.chains(Network(Input((3,), bits=8), (one, two, out), 3))
    assert (wide["one"].hold, wide["one"].counts[-1]) == (4064, 32)


def test_what_a_clock_cannot_do_is_refused(tmp_path: Path) -> None:
    network = perceptron(99)
    brought = replace(network, input=replace(network.input, form="currents"))
    with pytest.raises(Refused, match="input: inputs come as currents, whose biases the host writes anyway"):
        netx.save(brought, tmp_path / "a.net", form="clock")
    with pytest.raises(Refused, match=r"reset_interval: 7 steps between samples; give at least 8"):
        netx.save(replace(network, reset_interval=7), tmp_path / "a.net", form="clock")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda n: replace(n, holdoff=1), "it has a hold-off"),
        (lambda n: replace(n, layers=(replace(n.layers[0], threshold=128), n.layers[1])), "change theta = 128"),
        (lambda n: replace(n, layers=(replace(n.layers[0], v0=np.full(5, 99)), n.layers[1])), "v0 reaches theta"),
    ],
)
def test_dense_networks_that_netx_cannot_clock_are_for_our_loader(
    change: Callable[[Network], Network], problem: str, tmp_path: Path
) -> None:
    network = change(perceptron(99))
    assert problem in str(Refused(clocked.obstacles(network)))
    netx.save(network, tmp_path / "a.net", form="clock")
    assert (netx.read(tmp_path / "a.net"), netx.loader_of(tmp_path / "a.net")) == (network, netx.OURS)


@pytest.mark.parametrize("place", ["layer/1/weight_rec", "graph/layer/0/bias_schedule"])
def test_a_clock_that_contradicts_the_network_is_refused(place: str, tmp_path: Path) -> None:
    netx.save(perceptron(99), tmp_path / "a.net", form="clock")
    with h5py.File(tmp_path / "a.net", "r+") as file:
        file[place][0, 0] += 1
    with pytest.raises(Refused, match="contradicts the rest of the file"):
        netx.read(tmp_path / "a.net")
    netx.save(residual(), tmp_path / "b.net", form="clock")
    with h5py.File(tmp_path / "b.net", "r+") as file:
        file["graph/layer/0/clock/0/weight"][0, 0] += 1
    with pytest.raises(Refused, match="graph/layer/0/clock/0/weight: it contradicts the rest of the file"):
        netx.read(tmp_path / "b.net")


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_clock_gives_the_spikes_of_the_reference(
    name: str, tmp_path: Path, compared: Callable[[str], None]
) -> None:
    network = NETWORKS[name]
    netx.save(network, tmp_path / "a.net", form="clock")
    loaded = netx.load(tmp_path / "a.net")
    assert (loaded.process is not None) == (name in DENSE)
    payload = drawn(9, 3, *network.input.shape, low=-1, high=1)
    trace, expected = loaded.run(payload), reference.run(network, payload)
    assert first_difference(expected, trace) is None
    assert all(expected.spikes[layer.name].any() for layer in network.layers if layer.kind == "spiking")
    compared("reference = clock file")


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize("name", ["increments of several relays", "residual"])
def test_what_the_clock_cannot_hold_is_said(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    netx.save(network, tmp_path / "a.net", form="clock")
    payload = drawn(9, 3, *network.input.shape, low=-3, high=3)
    peak = stock.peak_outside(
        network, network.layers[0], reference.run(network, payload).potentials[network.layers[0].name]
    )
    assert peak >= clocked.silent_below(network)[network.layers[0].name]
    with pytest.raises(RegisterOverflow, match=f"layer {network.layers[0].name}.* outside its window"):
        netx.load(tmp_path / "a.net").run(payload)


def dense(name: str, source: str, weight: list[list[int]], theta: int, exponent: int = 0, v0: int = 0) -> Layer:
    edges = (Edge(source, Dense(np.array(weight)), exponent),)
    bias = np.zeros((5, len(weight)), int)
    return Layer(name, (len(weight),), edges, theta, np.full(len(weight), v0), bias, "spiking" if theta else "readout")


def near_the_register() -> Network:
    """u of layer b goes up to 129,792 su, and its clock puts 4,096 on top."""
    c = dense("c", INPUT, [[10]] * 4, 10)
    a = dense("a", INPUT, [[10]] * 4, 10, v0=-30)
    b = dense("b", "c", [[127] * 4], 32640, 7)
    b = replace(b, edges=(*b.edges, Edge("a", Dense(np.full((1, 4), -127)), 7)))
    return Network(Input((1,), bits=2), (c, a, b, dense("out", "b", [[5]], 0)), 5)


def test_what_a_clock_holds_counts_in_its_registers(tmp_path: Path) -> None:
    """They wrap in silence, so that nothing is run that would leave them."""
    network, payload = near_the_register(), np.array([[1]])
    assert reference.run(network, payload).peak["b"] < LOIHI2.state_limit
    netx.save(network, tmp_path / "a.net", form="clock")
    hold = clocked.held(network)[1]["b"]
    assert reference.run(network, payload).peak["b"] + hold >= LOIHI2.state_limit
    error = clocked.overflow(network, fast.run(network, payload), LOIHI2)
    assert re.match(r"layer b, channel 0, step 4: u = \d+ leaves the register", str(error))
    found = bundle.legality(tmp_path / "a.net", np.ones((1, 1), np.float32))
    assert {issue.rule for issue in found if issue.where == "b" and issue.rule.startswith("register")} == {
        "register-unproven"  # of which sign the peak was nobody knows
    }
    plain = {issue.rule for issue in bundle.legality(tmp_path / "a.net") if issue.where == "b"}
    assert "register-unproven" in plain
    # Blocks of netx hold it after their window alone.
    chain, drawn_payload = DENSE["dense"], drawn(9, 3, 5, low=-3, high=3)
    exact = fast.run(chain, drawn_payload)
    assert clocked.overflow(chain, exact, LOIHI2) is None
    after = min(
        int((exact.potentials[n.name][:, -1] - n.v0).min()) - clocked.held(chain)[1][n.name] for n in chain.layers
    )
    narrow = replace(LOIHI2, state_bits=(-after).bit_length() + LOIHI2.fraction_bits)
    assert "u = " in str(clocked.overflow(chain, exact, narrow))


def test_what_is_left_when_the_clock_lets_go_counts_too() -> None:
    """v and the definition's u end at -129,032; where the schedule is in u, that is 4,000 less."""
    bias = np.zeros((8, 1), int)
    first = Layer("a", (1,), (Edge(INPUT, Dense([[-127]])),), 99, np.array([4000]), np.array([[-4000], *bias[1:]]))
    out = Layer("out", (1,), (Edge("a", Dense([[1]])),), 0, bias[0], bias, "readout")
    network, payload = Network(Input((1,)), (first, out), 8, 1), np.array([[127]])
    error = clocked.overflow(network, fast.run(network, payload), LOIHI2)
    assert str(error).startswith("layer a, channel 0, step 10: u = -133032 leaves the register")


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
def test_what_leaves_the_registers_of_a_clock_is_not_run(tmp_path: Path) -> None:
    netx.save(near_the_register(), tmp_path / "a.net", form="clock")
    with pytest.raises(RegisterOverflow, match="layer b, channel 0, step 4: u = "):
        netx.load(tmp_path / "a.net").run(np.array([[1]]))


def test_the_step_of_an_overflow_is_that_of_the_definition() -> None:
    zeros = np.zeros((1, 1), int)
    first = Layer("a", (1,), (Edge(INPUT, Dense([[100]])),), 9, zeros[0], zeros)
    network = Network(
        Input((1,)), (first, Layer("out", (1,), (Edge("a", Dense([[1]])),), 0, zeros[0], zeros, "readout")), 1
    )
    narrow = replace(LOIHI2, state_bits=LOIHI2.fraction_bits + 10)
    payload = np.array([[50]])
    error = clocked.overflow(network, fast.run(network, payload), narrow)
    with pytest.raises(RegisterOverflow) as expected:
        reference.run(network, payload, chip=narrow)
    assert str(error) == str(expected.value)


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize("name", ["dense", "residual"])
def test_without_samples_there_is_nothing_to_run(name: str, tmp_path: Path) -> None:
    network = NETWORKS[name]
    netx.save(network, tmp_path / "a.net", form="clock")
    trace = netx.load(tmp_path / "a.net").run(np.zeros((0, *network.input.shape), int))
    assert trace.logits.shape == (0, network.timesteps, *network.readout.shape)


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
def test_lava_dl_alone_runs_it_and_only_inputs_are_attached(tmp_path: Path, compared: Callable[[str], None]) -> None:
    """As docs/on_the_chip.md says it: not a line of ours between the file and the spikes."""
    network = perceptron(99, 101)
    netx.save(network, tmp_path / "a.net", form="clock")
    payload = drawn(9, 3, 5, low=-3, high=3)
    spikes = _by_lava_dl(str(tmp_path / "a.net"), payload, network.timesteps)
    expected = reference.run(network, payload)
    for index, layer in enumerate(network.layers[:-1]):
        fired = spikes[index][:, : layer.size]
        wanted = np.zeros_like(fired)
        for sample in range(len(payload)):
            start = sample * (network.timesteps + 2) + network.phase[layer.name] + 1
            wanted[start : start + network.timesteps] = expected.spikes[layer.name][sample]
        np.testing.assert_array_equal(fired, wanted)
        assert fired.any()
    compared("reference = clock file by lava-dl alone")


def _by_lava_dl(path: str, payload: np.ndarray, timesteps: int) -> list[Any]:
    """Spikes of every block, (steps, neurons)."""
    from sim.on_lava import runtime

    runtime.require_lava()
    from lava.lib.dl.netx import hdf5
    from lava.magma.core.run_conditions import RunSteps
    from lava.magma.core.run_configs import Loihi2SimCfg
    from lava.proc.io.sink import RingBuffer as Sink
    from lava.proc.io.source import RingBuffer

    period = timesteps + 2
    data = np.zeros((payload.shape[1] + 1, len(payload), period), np.int32)
    data[-1, :, 0] = 1  # the pulse
    data[:-1, :, 1 : 1 + timesteps] = payload.T[:, :, None]
    steps = len(payload) * period + 8
    with runtime.silenced():
        net = hdf5.Network(path, input_message_bits=3, reset_interval=period, reset_offset=1)
        source = RingBuffer(data=np.pad(data.reshape(len(data), -1), ((0, 0), (0, 8))))
        source.s_out.connect(net.inp)
        sinks = []
        for block in net.layers:
            sinks.append(Sink(shape=block.neuron.s_out.shape, buffer=steps))
            block.neuron.s_out.connect(sinks[-1].a_in)
        net.run(condition=RunSteps(num_steps=steps), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
        found = [sink.data.get().T for sink in sinks]
        net.stop()
        net.net_config.f.close()
    return found
