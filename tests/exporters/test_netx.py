"""The `.net` file: what goes in comes back, what stock netx would corrupt never goes in, bad files are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from random_networks import networks

from exporters import netx
from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Output

CASES = settings(max_examples=60, derandomize=True, deadline=None)
T = 3


def layer(
    name: str,
    shape: tuple[int, ...],
    source: str,
    synapse: Dense | Conv2d,
    threshold: int = 64,
    exponent: int = 0,
    **fields: Any,
) -> Layer:
    """One layer with a schedule that differs in every row and channel."""
    bias = np.arange(T * shape[0]).reshape(T, shape[0]) - 5
    return Layer(name, shape, (Edge(source, synapse, exponent),), threshold, np.arange(shape[0]) - 1, bias, **fields)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-127, 128, shape)


def network(**fields: Any) -> Network:
    """conv -> strided grouped conv with a bias per neuron -> dense -> readout: every field of the format."""
    second = Conv2d(weights(4, 2, 2, 3), Geometry(stride=(2, 3), padding=(0, 1), dilation=(1, 2), groups=2))
    layers = (
        layer("features.0", (4, 6, 6), INPUT, Conv2d(weights(4, 2, 3, 3), Geometry(padding=(1, 1)))),
        replace(
            layer("features.3", (4, 3, 2), "features.0", second, 280, holdoff=2),
            bias=np.random.default_rng(1).integers(-9, 10, (T, 4, 3, 2)),
        ),
        layer("fläche", (5,), "features.3", Dense(weights(5, 24)), 9),
        layer("readout", (3,), "fläche", Dense(weights(3, 5)), 0, kind="readout"),
    )
    return replace(Network(Input((2, 6, 6), bits=6, signed=False, scale=3.7), layers, T, 1), **fields)


def chain(source: tuple[int, ...], *layers: Layer) -> Network:
    return Network(Input(source), layers, T)


def dense(weight: Any, source: tuple[int, ...] = (2,), exponent: int = 0) -> Network:
    """A readout alone, fed by the input through ``weight``."""
    synapse = Dense(np.asarray(weight))
    return chain(source, layer("readout", synapse.weight.shape[:1], INPUT, synapse, 0, exponent, kind="readout"))


def residual() -> Network:
    """A network that only the graph form can hold: a skip edge with an exponent."""
    first = layer("first", (3,), INPUT, Dense(weights(3, 2)))
    second = layer("second", (3,), "first", Dense(weights(3, 3)))
    joined = replace(second, edges=(*second.edges, Edge(INPUT, Dense(weights(3, 2)), -2)))
    return chain((2,), first, joined, layer("readout", (2,), "second", Dense(weights(2, 3)), 0, kind="readout"))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(Refused) as caught:
        action()
    lines = str(caught.value).split("\n")
    assert len(lines) == len(caught.value.findings), "one line per finding"
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "network.net"
    netx.write(network(), path)
    return path


# Round trip ----------------------------------------------------------------------------------------------------------


@CASES
@given(networks(sequential=True))
def test_random_sequential_networks_survive_the_net_file(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Network, np.ndarray]
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.net"
    netx.write(case[0], path)
    assert netx.read(path) == case[0]


@CASES
@given(networks())
def test_random_graphs_survive_the_graph_file(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Network, np.ndarray]
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.h5"
    netx.write_graph(case[0], path)
    assert netx.read(path) == case[0]


def test_every_field_comes_back_with_its_type(path: Path) -> None:
    wanted, got = network(), netx.read(path)
    assert got == wanted
    assert repr(got) == repr(wanted)  # int and not numpy.int64, tuple and not list, None and not 0


@pytest.mark.parametrize(
    "changed",
    [
        network(timesteps=T, holdoff=0),
        network(input=replace(network().input, scale=3.8)),
        network(input=replace(network().input, scale=np.array([3.7, 0.25]))),
        network(input=replace(network().input, order=np.arange(72).reshape(2, 6, 6)[:, ::-1], given=(6, 12))),
        network(output=Output(np.array(12.5), np.array([0.5, -1e300, 0.0]))),
        network(layers=(*network().layers[:-1], replace(network().layers[-1], v0=np.zeros(3, int)))),
    ],
)
def test_networks_that_differ_in_one_field_read_back_different(changed: Network, tmp_path: Path) -> None:
    netx.write(changed, tmp_path / "network.net")
    assert netx.read(tmp_path / "network.net") == changed != network()


def test_equal_networks_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    netx.write(network(), tmp_path / "again.net")
    assert (tmp_path / "again.net").read_bytes() == path.read_bytes()


def test_a_path_can_be_written_again_even_while_the_old_file_is_open(path: Path) -> None:
    with h5py.File(path, "r") as open_file:  # stock netx never closes its file
        netx.write(network(holdoff=3), path)
        assert open_file.attrs["holdoff"] == 1
    assert netx.read(path) == network(holdoff=3)


def test_the_neuron_is_the_stock_integrator_suppressed_until_its_window(path: Path) -> None:
    with h5py.File(path, "r") as file:
        assert [file[f"layer/{i}/type"][0].decode() for i in range(len(file["layer"]))] == [
            "input",
            "conv",
            "conv",
            "flatten",
            "dense",
            "dense",
        ]
        neurons = [
            {key: file[f"layer/{i}/neuron/{key}"][()] for key in ("iDecay", "vDecay", "vThMant")} for i in (1, 5)
        ]
        assert neurons == [
            # Offsets reach 2 - 2 + 2 + 6 = 8: the bias of 13 bits has 4087 left, which the threshold is lifted by.
            {"iDecay": 0, "vDecay": 4096, "vThMant": 63 + 4087},
            {"iDecay": 0, "vDecay": 4096, "vThMant": 131071},
        ]
        assert file["layer/1/bias"][()].tolist() == [-4096] * 4
        assert file["layer/5/bias"][()].tolist() == [-1, 0, 1]
        assert {d.dtype for d in (file["layer/2/weight"], file["layer/0/shape"], file["layer/4/bias_schedule"])} == {
            np.dtype(np.int64)
        }


# Refused at write time -----------------------------------------------------------------------------------------------


def two(
    synapse: Dense | Conv2d, source: tuple[int, ...], shape: tuple[int, ...], reads: str = "first", threshold: int = 64
) -> Network:
    """A layer fed by the input through ``synapse``, and a readout."""
    read = Dense(weights(2, int(np.prod(source if reads == INPUT else shape))))
    return chain(
        source, layer("first", shape, INPUT, synapse, threshold), layer("readout", (2,), reads, read, 0, kind="readout")
    )


def readout(**fields: Any) -> Network:
    """A network of one readout with other fields."""
    only = dense([[3, 4]])
    return replace(only, layers=(replace(only.readout, **fields),))


REFUSED = {
    "several edges": (
        residual(),
        "second: 2 edges feed it, netx builds one synapse a layer; write it in the form 'graph'",
    ),
    "exponent": (dense([[3, 4]], exponent=1), "readout <- input: weight exponent 1, netx reads none"),
    "another source": (
        two(Dense(weights(3, 2)), (2,), (3,), INPUT),
        "readout <- input: netx feeds each layer from the one before it, here 'first'",
    ),
    "dense into (C, H, W)": (
        two(Dense(weights(3, 2)), (2,), (3, 1, 1)),
        r"first <- input: a dense layer of shape "
        r"\(3, 1, 1\), netx builds them flat; give it the shape \(3,\)",
    ),
    "all weights zero": (dense([[0, 0]]), "readout <- input: every weight is 0, on which netx fails"),
    "no positive weight": (
        dense([[-64, -3]]),
        "no weight is positive and the lowest is -64, .*make one weight positive",
    ),
    "no positive weight beside a zero": (
        dense([[-64, 0]]),
        "no weight is positive and the lowest is -64, .*make one weight positive",
    ),
    "groups": (
        two(Conv2d(weights(128, 1, 1, 1), Geometry(groups=128)), (128, 1, 1), (128, 1, 1)),
        "first <- input: groups 128 is above 127, the int8 of lava-nc's Conv",
    ),
    "padding": (
        two(Conv2d(weights(1, 1, 1, 1), Geometry(padding=(0, 128))), (1, 1, 1), (1, 1, 257)),
        "first <- input: padding 128 is above 127",
    ),
    "weights beyond the chip": (dense([[128, 1]]), r"weight 128 is outside -127..127 \(Loihi 2\)"),
    "threshold beyond the chip": (
        two(Dense(weights(3, 2)), (2,), (3,), threshold=1 << 18),
        "first: threshold 262144 is outside 1..131072",
    ),
    "bias beyond the chip": (readout(v0=np.array([40000])), r"v0 \+ cumulative bias 40000 is outside -4095..4095"),
    "name": (readout(name="a\nb"), r"layer 'a\\nb': the name is empty, unprintable or above 255 bytes"),
    "threshold of a readout": (readout(threshold=-1), "readout: threshold -1 of a readout; give 0"),
    "steps": (network(holdoff=1 << 16), "timesteps: 131.* steps until the answer, above 65536"),
    "neurons": (
        chain(
            (1, 40000, 40000),
            layer("readout", (1, 40000, 40000), INPUT, Conv2d(weights(1, 1, 1, 1)), 0, kind="readout"),
        ),
        "layers: 3200000000 neurons, above 1150000000",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_stock_netx_cannot_hold_is_refused_before_anything_is_written(what: str, tmp_path: Path) -> None:
    refused, text = REFUSED[what]
    with pytest.raises(Refused, match=text):
        netx.write(refused, tmp_path / "network.net")
    assert list(tmp_path.iterdir()) == []


def test_all_findings_are_reported_at_once(tmp_path: Path) -> None:
    broken = residual()
    broken = replace(broken, layers=(replace(broken.layers[0], threshold=257), *broken.layers[1:]))
    assert [f.where for f in netx.check(broken)] == ["first", "second", "second <- input", "second <- input"]
    text = refusal(lambda: netx.write(broken, tmp_path / "network.net"))
    assert all(word in text for word in ("threshold 257", "2 edges", "here 'first'", "exponent -2"))


def test_a_subclass_of_a_synapse_is_refused_because_it_may_mean_something_else(tmp_path: Path) -> None:
    class Delayed(Dense):
        pass

    network = dense([[3, 4]])
    network = replace(network, layers=(replace(network.readout, edges=(Edge(INPUT, Delayed(np.array([[3, 4]]))),)),))
    for write in (netx.write, netx.write_graph):
        with pytest.raises(
            Refused, match="readout <- input: Delayed is not a synapse of the format; known: Dense, Conv2d"
        ):
            write(network, tmp_path / "network.net")


def test_a_file_that_reads_back_as_another_network_is_never_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.netx.file._load", lambda data: network(timesteps=T, holdoff=0))
    with pytest.raises(Refused, match="network: it does not survive the file"):
        netx.write(network(), tmp_path / "network.net")
    assert list(tmp_path.iterdir()) == []


def test_the_graph_form_holds_what_netx_cannot_but_nothing_that_the_chip_cannot(tmp_path: Path) -> None:
    netx.write_graph(residual(), tmp_path / "network.h5")
    assert netx.read(tmp_path / "network.h5") == residual()
    with pytest.raises(Refused, match="weight 128 is outside"):
        netx.write_graph(dense([[128, 1]]), tmp_path / "network.h5")


# Nothing half-written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError])
def test_a_failure_in_the_middle_leaves_the_old_file_and_nothing_else(
    failure: type[BaseException], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, store = path.read_bytes(), netx.hdf5._store

    def fail_late(file: h5py.File, name: str, value: np.ndarray) -> None:
        if name == "layer/4/weight":
            raise failure
        store(file, name, value)

    monkeypatch.setattr(netx.hdf5, "_store", fail_late)
    with pytest.raises(failure):
        netx.write(network(holdoff=3), path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_reported_in_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert refusal(lambda: netx.write(network(holdoff=3), path)) == (
        f"{path}: it cannot be written (No space left on device); make room, or choose another place"
    )
    assert netx.read(path) == network()
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for place, text in (
        (tmp_path, "it exists and is no file"),
        (pipe, "it exists and is no file"),
        (tmp_path / "nowhere" / "network.net", "it lies in no directory"),
    ):
        assert text in refusal(lambda place=place: netx.write(network(), place))
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_link_keeps_leading_to_the_file_that_is_written(path: Path) -> None:
    link = path.with_name("link.net")
    link.symlink_to(path)
    path.chmod(0o640)
    netx.write(network(holdoff=3), link)
    assert link.is_symlink()
    assert netx.read(path) == network(holdoff=3)
    assert path.stat().st_mode & 0o777 == 0o640


# Files that are not what they should be ------------------------------------------------------------------------------


def test_every_truncation_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in [0, 1, 7, 8, 95, *range(512, len(whole), 1499), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert refusal(lambda: netx.read(path)).startswith(f"{path}: it cannot be read as HDF5")


def test_two_hundred_damaged_files_are_refused_or_still_hold_the_network(path: Path) -> None:
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for position in rng.integers(len(whole), size=rng.integers(1, 9)):
            damaged[position] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            assert netx.read(path) == network()  # the byte was padding
        except Refused:
            refused += 1
    assert 100 < refused < 200


def test_files_that_are_not_ours_are_told_apart(tmp_path: Path, path: Path) -> None:
    text = tmp_path / "text.net"
    text.write_text("not HDF5")
    with h5py.File(tmp_path / "slayer.net", "w") as file:
        file.create_dataset("layer/0/type", data=np.array([b"dense"], "S10"))
    with h5py.File(tmp_path / "other.net", "w") as file:
        file.attrs["tool"] = "another"
    for name, problem in (
        ("text.net", "cannot be read as HDF5"),
        ("slayer.net", "@tool: the file was written by another tool"),
        ("other.net", "@tool: the file was written by another tool"),
        ("none.net", "there is no such file"),
        ("", "there is no such file"),
    ):
        message = refusal(lambda name=name: netx.read(tmp_path / name))
        assert message.startswith(str(tmp_path / name))
        assert problem in message


def tampered(path: Path, change: Callable[[h5py.File], object]) -> str:
    """What is said about the file after a change by hand."""
    with h5py.File(path, "a") as file:
        change(file)
    return refusal(lambda: netx.read(path))


def rewrite(name: str, value: Any, **storage: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        if "@" in name:
            group, _, attribute = name.rpartition("@")
            file[group or "/"].attrs[attribute] = value
        else:
            if name in file:
                del file[name]
            file.create_dataset(name, data=value, **storage)

    return change


def remove(name: str) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        group, _, attribute = name.rpartition("@")
        if "@" in name:
            del file[group or "/"].attrs[attribute]
        else:
            del file[name]

    return change


def link(name: str, target: Any) -> Callable[[h5py.File], object]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = target(file) if callable(target) else target

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4,), np.int64)
    layout[:] = h5py.VirtualSource("elsewhere.h5", "data", shape=(4,))
    del file["layer/1/v0"]
    file.create_virtual_dataset("layer/1/v0", layout)


HUGE = np.int64(1 << 40)
TAMPERED = {
    "newer format": (
        rewrite("@format_version", np.int64(6)),
        "@format_version: the file has format 6, this .* reads formats 1 to 5; use a newer",
    ),
    "older format": (
        rewrite("@format_version", np.int64(1)),
        "layer/1/neuron/vThMant: it contradicts the rest of the file",
    ),
    "no format": (remove("@format_version"), "@format_version: it is missing or no integer"),
    "format is text": (rewrite("@format_version", "1"), "@format_version: .* is neither int64"),
    "no layers": (remove("layer"), "layer/0/shape: it is missing"),
    "missing weight": (remove("layer/2/weight"), "layer/2/weight: it is missing"),
    "missing neuron": (remove("layer/2/neuron/vThMant"), "layer/2/neuron/vThMant: it is missing"),
    "missing name": (remove("layer/2/@name"), "layer/2/@name: it is missing"),
    "missing timesteps": (remove("@timesteps"), "@timesteps: it is missing"),
    "a layer is missing": (remove("layer/4"), "layers: 0 readouts; give exactly one"),
    "float weights": (
        rewrite("layer/2/weight", np.zeros((4, 2, 2, 3))),
        "layer/2/weight: float64 of shape .* does not belong here",
    ),
    "narrow weights": (
        rewrite("layer/2/weight", np.zeros((4, 2, 2, 3), np.int8)),
        "layer/2/weight: int8 is neither int64",
    ),
    "text of varying length": (rewrite("layer/2/type", "conv"), "layer/2/type: object is neither int64"),
    "weights of another shape": (
        rewrite("layer/2/weight", np.ones((4, 1, 2, 3), int)),
        "features.3 <- features.0: weight",
    ),
    "stride 0": (
        rewrite("layer/2/stride", np.array([0, 1])),
        r"layer/2: stride \(0, 1\), dilation .*; both start at 1",
    ),
    "three strides": (rewrite("layer/2/stride", np.array([1, 1, 1])), "layer/2/stride: 3 numbers instead of 2"),
    "groups as a list": (
        rewrite("layer/2/groups", np.array([2])),
        r"layer/2/groups: int64 of shape \(1,\) does not belong",
    ),
    "unknown synapse": (
        rewrite("layer/2/type", np.array([b"pool"], "S10")),
        "layer/2/type: 'pool' is not a synapse; known: conv, dense",
    ),
    "unknown kind": (rewrite("layer/1/@kind", np.bytes_(b"lazy")), "features.0: kind 'lazy'"),
    "newline in a name": (rewrite("layer/1/@name", np.bytes_(b"a\nb")), r"layer/1/@name: 'a\\nb' is not printable"),
    "weights beyond the chip": (
        rewrite("layer/5/weight", np.full((3, 5), 300)),
        "readout <- fläche: weight 300 is outside",
    ),
    "weights beyond 32 bit": (rewrite("layer/5/weight", np.full((3, 5), HUGE)), "a value leaves 32 bit"),
    "one weight": (
        lambda file: file["layer/5/weight"].write_direct(np.full((3, 5), 7)),
        "@sha256: it contradicts the rest",
    ),
    "another threshold": (
        rewrite("layer/1/neuron/vThMant", np.int64(70)),
        "layer/1/neuron/vThMant: it contradicts the rest",
    ),
    "another bias": (rewrite("layer/1/bias", np.zeros(4, int)), "layer/1/bias: it contradicts the rest of the file"),
    "another decay": (rewrite("layer/1/neuron/iDecay", np.int64(1)), "layer/1/neuron/iDecay: it contradicts"),
    "a delay": (rewrite("layer/4/delay", np.int64(3)), "layer/4/delay: it is not part of the format; remove it"),
    "message bits": (
        rewrite("layer/4/neuron/messageBits", np.int64(8)),
        "layer/4/neuron/messageBits: it is not part of",
    ),
    "an attribute": (rewrite("layer/4@delay", np.int64(3)), "layer/4/@delay: it is not part of the format"),
    "an attribute of a dataset": (
        rewrite("layer/4/weight@unit", np.int64(3)),
        "layer/4/weight: it is empty or has attributes",
    ),
    "one layer more": (
        lambda file: file.create_group("layer/6"),
        "layer/6: it is neither a dataset nor a group of them",
    ),
    "an unprintable member": (rewrite("layer/a\nb", np.int64(0)), r"layer/'a\\nb': it is not part of the format"),
    "compressed": (
        rewrite("layer/1/v0", np.zeros(4, int), compression="gzip"),
        "layer/1/v0: it is not stored in one plain piece",
    ),
    "chunked": (rewrite("layer/1/v0", np.arange(4) - 1, chunks=(4,)), "layer/1/v0: it is not stored in one"),
    "another byte order": (rewrite("layer/1/v0", (np.arange(4) - 1).astype(">i8")), "layer/1/v0: it contradicts"),
    "a little more than the file": (
        lambda file: file.create_dataset("layer/1/hollow", (1 << 17,), np.int64),
        r"layer/1/hollow: shape \(131072,\) is more than the file can hold",
    ),
    "a bomb": (
        lambda file: file.create_dataset("layer/1/bomb", (1 << 50,), np.int64, chunks=(1 << 10,), compression="gzip"),
        r"layer/1/bomb: shape \(1125899906842624,\) is more than the file can hold",
    ),
    "never written": (
        lambda file: file.create_dataset("layer/1/bomb", (100,), np.int64),
        "layer/1/bomb: it is not stored in one",
    ),
    "no value": (lambda file: file.create_dataset("layer/1/none", data=h5py.Empty("i8")), "layer/1/none: it is empty"),
    "external data": (
        lambda file: file.create_dataset("layer/1/outside", (4,), np.int64, external="/etc/hostname"),
        "layer/1/outside: it is not stored in one plain piece",
    ),
    "virtual data": (virtual, "layer/1/v0: it is not stored in one plain piece"),
    "soft link": (link("layer/1/v0", h5py.SoftLink("/layer/2/v0")), "layer/1/v0: it is a link to somewhere else"),
    "external link": (
        link("layer/1/v0", h5py.ExternalLink("other.h5", "/v0")),
        "layer/1/v0: it is a link to somewhere else",
    ),
    "hard link": (link("layer/1/v0", lambda file: file["layer/2/v0"]), "layer/.*/v0: it is reached twice"),
    "a group within itself": (link("layer/1/loop", lambda file: file["layer"]), "layer/1/loop: it is reached twice"),
    "a named type": (link("layer/1/named", np.dtype(np.int64)), "layer/1/named: it is neither a dataset nor a group"),
    "too many neurons": (
        rewrite("layer/0/shape", np.array([2, HUGE, HUGE])),
        "features.0 <- input: the synapse gives shape",
    ),
    "too many steps": (rewrite("@holdoff", np.int64(60000)), "steps until the answer, above 65536"),
    "no timesteps": (rewrite("@timesteps", np.int64(0)), "timesteps: T = 0"),
    "input of no shape": (rewrite("layer/0/shape", np.zeros(0, np.int64)), r"input: 6 bits, shape \(\)"),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_file_changed_by_hand_is_refused_with_the_place_and_the_way_out(what: str, path: Path) -> None:
    change, text = TAMPERED[what]
    message = tampered(path, change)
    assert all(line.startswith(f"{path}: ") and "; " in line for line in message.split("\n"))
    with pytest.raises(Refused, match=text):
        netx.read(path)


# What stock netx makes of the file -----------------------------------------------------------------------------------

#: Opens files in lava-dl's own loader, runs two steps and prints what the processes then hold. None of our packages.
STOCK = """
import json, sys, warnings
warnings.simplefilter("ignore")
from lava.lib.dl.netx.hdf5 import Network
from lava.magma.core.run_conditions import RunSteps
from lava.magma.core.run_configs import Loihi2SimCfg

def look(path, bits):
    net = Network(path, input_message_bits=bits)
    net.run(condition=RunSteps(2), run_cfg=Loihi2SimCfg(select_tag="fixed_pt"))
    try:
        held = []
        for block in net.layers:
            dense = type(block).__name__ == "Dense"
            weight = (block.synapse.weights if dense else block.synapse.weight).get()
            held.append({
                "shape": [int(n) for n in block.shape], "weight": weight.astype(int).tolist(),
                "exponent": block.synapse.proc_params["weight_exp"] if dense else 0,
                "geometry": [] if dense else [[int(n) for n in getattr(block.synapse, name).get()]
                                              for name in ("stride", "padding", "dilation", "groups")],
                "bias": block.neuron.bias_mant.get().astype(int).tolist(), "threshold": int(block.neuron.vth.init),
                "decays": [int(block.neuron.du.init), int(block.neuron.dv.init)]})
        return held
    finally:
        net.stop()

result = []
for path in sys.argv[2:]:
    try:
        result.append(look(path, int(sys.argv[1])))
    except Exception as error:
        result.append(f"{type(error).__name__}: {error}")
print(json.dumps(result))
"""


def stock(tmp_path: Path, bits: int, *paths: Path) -> list[Any]:
    """What stock netx holds after opening each file, or the error it raises."""
    script = tmp_path / "open_in_stock_netx.py"  # Lava imports the file of every process: none of the repository's
    script.write_text(STOCK)
    done = subprocess.run(
        [sys.executable, str(script), str(bits), *map(str, paths)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.strip().split("\n")[-1]))


def effective(block: dict[str, Any], synapse: Dense | Conv2d) -> np.ndarray:
    """A stock synapse's weights in su and in our layout; float, since what was cut off may be a fraction."""
    weight = np.array(block["weight"]) * 2.0 ** block["exponent"]
    return weight if type(synapse) is Dense else weight.transpose(0, 3, 2, 1)[:, :, ::-1, ::-1]


def accepted() -> list[Network]:
    """Every combination of blocks that ``write`` lets through, and dense matrices at the edges of what it does."""

    def conv(weight: np.ndarray) -> Network:
        return chain((1, 3, 3), layer("readout", (2, 2, 2), INPUT, Conv2d(weight), 0, kind="readout"))

    matrices = (
        [[127, -127]],
        [[1, 0]],
        [[127, 126]],
        [[64, -1], [0, 0]],
        [[-65, -3]],
        [[-127]],
        [[0, -7]],
        [[-3, -5]],
        [[-64, 1]],
        [[2, 4], [-8, 16]],
    )
    return [
        network(),
        two(Dense(weights(4, 12)), (3, 2, 2), (4,)),
        conv(weights(2, 1, 2, 2)),
        conv(np.zeros((2, 1, 2, 2), int)),
        *(dense(matrix, (len(matrix[0]),)) for matrix in matrices),
    ]


@pytest.mark.lava
def test_stock_netx_opens_every_accepted_form_and_holds_exactly_our_numbers(tmp_path: Path) -> None:
    networks = accepted()
    paths = [tmp_path / f"{index}.net" for index in range(len(networks))]
    for network, path in zip(networks, paths, strict=True):
        netx.write(network, path)
    for network, blocks in zip(networks, stock(tmp_path, 8, *paths), strict=True):
        assert not isinstance(blocks, str), blocks
        assert len(blocks) == len(network.layers)
        for layer, block in zip(network.layers, blocks, strict=True):
            synapse = layer.edges[0].synapse
            readout = layer.kind == "readout"
            assert np.array_equal(effective(block, synapse), synapse.weight)
            assert tuple(block["shape"]) == layer.shape[::-1]
            assert block["decays"] == [-1, 4096]
            lift = 4095 - int(layer.offsets.max())
            assert block["threshold"] == (131071 if readout else layer.threshold - 1 + lift)
            held = np.moveaxis(np.array(block["bias"]), -1, 0).reshape(layer.shape[0], -1)
            assert (held == (layer.v0[:, None] if readout else -4096)).all()
            if type(synapse) is Conv2d:
                *pairs, groups = synapse.geometry
                assert block["geometry"] == [*(list(pair[::-1]) for pair in pairs), [groups]]


@pytest.mark.lava
def test_stock_netx_really_corrupts_or_rejects_what_is_refused(tmp_path: Path) -> None:
    matrices = [[[-(1 << k), -(1 << k) // 2]] for k in range(1, 7)] + [[[-64, 0]], [[-1]]]
    refused = (
        [dense(m, (len(m[0]),)) for m in matrices]
        + [dense([[0, 0]])]
        + [REFUSED[what][0] for what in ("exponent", "dense into (C, H, W)", "groups", "padding")]
    )
    paths = [tmp_path / f"{index}.net" for index in range(len(refused))]
    for network, path in zip(refused, paths, strict=True):
        assert netx.check(network)
        path.write_bytes(netx.hdf5.dump(netx.content.netx_content(network)))
    netx.write_graph(residual(), tmp_path / "network.h5")
    outcomes = stock(tmp_path, 8, *paths, tmp_path / "network.h5")
    for network, blocks in zip(refused[: len(matrices)], outcomes, strict=False):
        assert not np.array_equal(
            effective(blocks[0], Dense(np.eye(1, dtype=int))), network.layers[0].edges[0].synapse.weight
        )
    zero, exponent, spatial, groups, padding, graph = outcomes[len(matrices) :]
    assert zero.startswith("OverflowError")
    assert np.array_equal(effective(exponent[0], Dense(np.eye(1, dtype=int))), [[3, 4]])  # and not [[6, 8]]
    assert spatial.startswith("TransposeShapeError")
    assert groups[0]["geometry"][3] == [-128]
    assert padding.startswith(("RuntimeError", "ValueError"))
    assert graph.startswith("KeyError")  # rather than half of it
