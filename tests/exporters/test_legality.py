"""Any netx file on its way to the chip: every rule finds the one defect that is planted for it, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from importlib import metadata, util
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from goldens import networks

import ann2loihi
from exporters import netx
from exporters.netx.checks import held_by_netx
from sim.chip import LOIHI2
from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Input, Layer, Network

Change = Callable[[h5py.File], None]


def even(*shape: int, most: int = 120) -> np.ndarray:
    """Even weights of mixed signs, as lava-dl slayer's exporter writes them: float32."""
    return ((np.arange(np.prod(shape)).reshape(shape) * 34 + 10) % (2 * most) - most).astype(np.float32)


def neurons(group: h5py.Group) -> None:
    group.create_dataset("neuron/type", data=b"CUBA", dtype=h5py.string_dtype("ascii"))
    for name, value in {"iDecay": 1024, "vDecay": 128, "vThMant": 80, "refDelay": 1}.items():
        group[f"neuron/{name}"] = value
    group["neuron/gradedSpike"] = False


def clean(path: Path) -> Path:
    """Lay out a network as lava-dl slayer's exporter does, with every type of block that netx builds."""
    with h5py.File(path, "w") as file:

        def block(index: int, kind: bytes, **fields: Any) -> h5py.Group:
            group = file.create_group(f"layer/{index}")
            group.create_dataset("type", (1,), "S10", data=np.array([kind], "S10"))
            for name, value in fields.items():
                group[name] = value
            if kind not in (b"input", b"flatten"):
                neurons(group)
            return group

        geometry = {"stride": np.array([1, 1]), "padding": np.array([0, 0]), "dilation": np.array([1, 1]), "groups": 1}
        block(0, b"input", shape=np.array([2, 6, 6]))
        block(1, b"conv", shape=np.array([4, 4, 4]), weight=even(4, 2, 3, 3, 1), bias=np.arange(4.0), **geometry)
        block(2, b"conv", shape=np.array([4, 2, 2]), weight=even(4, 4, 3, 3), **geometry)
        block(3, b"flatten", shape=np.array([16, 1, 1]))
        block(4, b"dense", shape=np.array([6, 1, 1]), weight=even(6, 16), bias=np.arange(6.0), delay=np.arange(6.0))
        block(5, b"dense_rec", shape=np.array([6]), weight=even(6, 6), weight_rec=-100.0 * np.eye(6))
        block(6, b"dense", shape=np.array([3]), weight=even(18))
        file["simulation/Ts"] = 1
    return path


def put(name: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = value

    return change


def drop(name: str) -> Change:
    return lambda file: file.__delitem__(name)


def each(*changes: Change) -> Change:
    return lambda file: [change(file) for change in changes] and None


def kind(index: int, name: bytes) -> Change:
    return put(f"layer/{index}/type", np.array([name], "S10"))


def odd(weight: np.ndarray) -> np.ndarray:
    """Weights of mixed signs, one of them 201."""
    changed = weight.copy()
    changed.flat[0] = 201
    return changed


def attribute_instead(file: h5py.File) -> None:
    del file["layer/4/type"]
    file["layer/4"].attrs["type"] = b"dense"


def renumbered(file: h5py.File) -> None:
    file.move("layer/6", "layer/7")


def without_flatten(file: h5py.File) -> None:
    del file["layer/3"]
    for index in (4, 5, 6):
        file.move(f"layer/{index}", f"layer/{index - 1}")


def soft_link(file: h5py.File) -> None:
    del file["layer/4/bias"]
    file["layer/4/bias"] = h5py.SoftLink("/layer/1/bias")


def external_link(file: h5py.File) -> None:
    del file["layer/4/bias"]
    file["layer/4/bias"] = h5py.ExternalLink("/etc/hostname", "bias")


def external_storage(file: h5py.File) -> None:
    del file["layer/4/bias"]
    file["layer/4"].create_dataset("bias", (6,), "f8", external=[("/etc/hostname", 0, 48)])


def cycle(file: h5py.File) -> None:
    file["layer/4/again"] = file["layer/4"]


def bomb(file: h5py.File) -> None:
    """A dataset of 8 TB in a file of a few kilobytes."""
    file["layer/4"].create_dataset("theta", (1 << 40,), "f8", chunks=(1 << 16,), compression="gzip")


def lying_piece(file: h5py.File) -> None:
    """A compressed piece that unpacks to a thousand times what it says."""
    import zlib

    held = file["layer/4"].create_dataset("theta", (512,), "f8", chunks=(512,), compression="gzip")
    held.id.write_direct_chunk((0,), zlib.compress(bytes(64_000)))


def skipping_piece(file: h5py.File) -> None:
    """The same, of which another filter was skipped."""
    import zlib

    held = file["layer/4"].create_dataset("theta", (512,), "f8", chunks=(512,), shuffle=True, compression="gzip")
    held.id.write_direct_chunk((0,), zlib.compress(bytes(64_000)), filter_mask=1)


def compressed_twice(file: h5py.File) -> None:
    """The outer piece holds as much as it says, and another one."""
    import zlib

    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_chunk((512,))
    made.set_deflate(9)
    made.set_deflate(9)
    space = h5py.h5s.create_simple((512,))
    held = h5py.h5d.create(file["layer/4"].id, b"theta", h5py.h5t.NATIVE_DOUBLE, space, made)
    held.write_direct_chunk((0,), zlib.compress(zlib.compress(bytes(1 << 20))))


#: rule, block (or what the finding names), what is done to the clean file
PLANTED: dict[str, tuple[str, str, Change]] = {
    "no layers": ("layers", "layer", drop("layer")),
    "a gap in the numbers": ("children", "layer", renumbered),
    "something else below /layer": ("children", "layer", put("layer/note", 1)),
    "a number with a leading zero": ("children", "layer", lambda file: file.move("layer/6", "layer/06")),
    "a soft link": ("unreadable", "layer/4/bias", soft_link),
    "an external link": ("unreadable", "layer/4/bias", external_link),
    "external storage": ("unreadable", "layer/4/bias", external_storage),
    "a group inside itself": ("unreadable", "layer/4/again", cycle),
    "terabytes of nothing": ("unreadable", "layer/4/theta", bomb),
    "a compressed piece that lies": ("unreadable", "layer/4/theta", lying_piece),
    "one that skips another filter": ("unreadable", "layer/4/theta", skipping_piece),
    "one in another": ("unreadable", "layer/4/theta", compressed_twice),
    "complex numbers": ("unreadable", "layer/4/bias", put("layer/4/bias", np.ones(6, complex))),
    "type as an attribute": ("type-missing", "layer/4", attribute_instead),
    "type as a number": ("type-missing", "layer/4", put("layer/4/type", 3)),
    "batchnorm at the end": (
        "type-unknown", "layer/7", each(put("layer/7/shape", [3]), kind(7, b"batchnorm")),
    ),
    "average at the end": ("type-unsupported", "layer/7", each(put("layer/7/shape", [3]), kind(7, b"average"))),
    "a complex dense at the end": (
        "type-unsupported", "layer/7", each(put("layer/7/shape", [3]), kind(7, b"dense_comp")),
    ),
    "no stride": ("field-missing", "layer/1", drop("layer/1/stride")),
    "no recurrent weight": ("field-missing", "layer/5", drop("layer/5/weight_rec")),
    "no threshold": ("field-missing", "layer/4", drop("layer/4/neuron/vThMant")),
    "no neurons of a convolution": ("field-missing", "layer/2", drop("layer/2/neuron")),
    "a text for a bias": ("field-form", "layer/4", put("layer/4/bias", b"zero")),
    "an empty weight": ("field-form", "layer/6", put("layer/6/weight", np.zeros((0, 6)))),
    "a shape of 0": ("field-form", "layer/6", put("layer/6/shape", [0])),
    "groups of shape (1,)": ("groups-form", "layer/1", put("layer/1/groups", [1])),
    "a stride of 0": ("geometry", "layer/1", put("layer/1/stride", [1, 0])),
    "three paddings": ("geometry", "layer/1", put("layer/1/padding", [0, 0, 0])),
    "a weight of 2.5": ("fraction", "layer/4", put("layer/4/weight", even(6, 16) + 0.5)),
    "a bias that is no number": ("fraction", "layer/4", put("layer/4/bias", np.full(6, np.nan))),
    "no input": ("input-missing", "layer/1", drop("layer/0/shape")),
    "no flatten": ("flatten-missing", "layer/3", without_flatten),
    "a dense weight too wide": ("weight-shape", "layer/4", put("layer/4/weight", even(6, 17))),
    "a kernel for other channels": ("weight-shape", "layer/2", put("layer/2/weight", even(4, 3, 3, 3))),
    "a shape that the kernel does not give": ("weight-shape", "layer/2", put("layer/2/shape", [4, 2, 3])),
    "a bias of shape (C, H, W)": ("bias-shape", "layer/1", put("layer/1/bias", np.zeros((4, 4, 3)))),
    "a bias too short": ("bias-shape", "layer/4", put("layer/4/bias", np.zeros(5))),
    "a dense block without neurons": ("neuron-missing", "layer/4", drop("layer/4/neuron")),
    "an unknown neuron": ("neuron-type", "layer/4", put("layer/4/neuron/type", np.array([b"ALIF"], "S10"))),
    "a float threshold": ("neuron-float", "layer/4", put("layer/4/neuron/vThMant", 80.0)),
    "a threshold of 18 bits": ("threshold", "layer/6", put("layer/6/neuron/vThMant", (1 << 18) - 1)),
    "a threshold a neuron": ("threshold-per-neuron", "layer/4", put("layer/4/neuron/vThMant", [80] * 6)),
    "a decay above 4096": ("decay", "layer/4", put("layer/4/neuron/vDecay", 4097)),
    "a negative decay": ("decay", "layer/4", put("layer/4/neuron/iDecay", -1)),
    "messageBits": ("message-bits", "layer/4", put("layer/4/neuron/messageBits", 8)),
    "a bias that wraps": ("bias-wrap", "layer/4", put("layer/4/bias", np.full(6, 40_000.0))),
    "a bias of 14 bits": ("bias-register", "layer/4", put("layer/4/bias", np.full(6, 4096.0))),
    "a weight exponent": ("field-ignored", "layer/4", put("layer/4/neuron/wgtExp", 2)),
    "a refractory delay": ("field-ignored", "layer/4", put("layer/4/neuron/refDelay", 3)),
    "decays of 0 and 4096": (
        "decay-sharing", "layer", each(put("layer/4/neuron/iDecay", 0), put("layer/6/neuron/iDecay", 4096)),
    ),
    "all weights 0": ("dense-zero", "layer/6", put("layer/6/weight", np.zeros((3, 6)))),
    "mixed weights above 254": ("dense-range", "layer/4", put("layer/4/weight", even(6, 16) * 4)),
    "positive weights above 255": ("dense-range", "layer/4", put("layer/4/weight", np.full((6, 16), 256))),
    "negative weights below -256": ("dense-range", "layer/4", put("layer/4/weight", np.full((6, 16), -300))),
    "negative weights of a power of two": ("dense-negative", "layer/4", put("layer/4/weight", np.full((6, 16), -128))),
    "no positive weight": (
        "dense-negative", "layer/6", put("layer/6/weight", np.array([[0, -129, -201, 0, 0, 0]] * 3)),
    ),
    "odd weights above 127": ("dense-odd", "layer/4", put("layer/4/weight", odd(even(6, 16)))),
    "a recurrent weight of -128": ("recurrent-weight", "layer/5", put("layer/5/weight_rec", -128.0 * np.eye(6))),
    "a recurrent weight of -255": ("recurrent-weight", "layer/5", put("layer/5/weight_rec", -255.0 * np.eye(6))),
    "recurrent weights of 9 bits": (
        "recurrent-weight", "layer/5", put("layer/5/weight_rec", np.where(np.eye(6) > 0, -169.0, 137.0)),
    ),
    "a kernel beyond 8 bits": ("conv-range", "layer/2", put("layer/2/weight", even(4, 4, 3, 3) * 4)),
    "odd kernels above 127": ("conv-odd", "layer/2", put("layer/2/weight", odd(even(4, 4, 3, 3)))),
    "delay of a convolution": ("delay-conv", "layer/2", put("layer/2/delay", np.zeros(4))),
    "a delay of 63": ("delay-range", "layer/4", put("layer/4/delay", np.full(6, 63.0))),
    "a negative delay": ("delay-range", "layer/4", put("layer/4/delay", np.full(6, -1.0))),
    "delays of another shape": ("delay-shape", "layer/4", put("layer/4/delay", np.zeros(7))),
    "groups": (
        "grouped", "layer/2", each(put("layer/2/groups", 2), put("layer/2/weight", even(4, 2, 3, 3))),
    ),
}  # fmt: skip


def test_there_are_more_than_40_planted_defects() -> None:
    assert len(PLANTED) >= 40


def test_a_clean_file_has_no_issue(tmp_path: Path) -> None:
    assert netx.legality(clean(tmp_path / "a.net")) == []


@pytest.mark.parametrize("defect", PLANTED)
def test_the_planted_defect_is_found_and_nothing_else(defect: str, tmp_path: Path) -> None:
    rule, where, change = PLANTED[defect]
    with h5py.File(clean(tmp_path / "a.net"), "r+") as file:
        change(file)
    found = netx.legality(tmp_path / "a.net")
    assert {issue.rule for issue in found} == {rule}, found
    assert {issue.where.split(" ")[0] for issue in found} == {where}
    assert all(issue.severity == netx.RULES[rule].severity and issue.value and issue.remedy for issue in found)
    assert netx.block_table(tmp_path / "a.net") is not None


def test_every_rule_about_blocks_that_is_an_error_has_its_planted_defect() -> None:
    ours = {"damaged", "deployable", "silence-broken", "register-broken"}
    assert {rule.id for rule in netx.RULES.values() if rule.severity == "error"} - ours <= {
        rule for rule, _, _ in PLANTED.values()
    }


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x89HDF\r\n\x1a\n" + bytes(60)])
def test_what_is_no_hdf5_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.net").write_bytes(content)
    with pytest.raises(Refused, match=r"a.net: it cannot be read as HDF5"):
        netx.legality(tmp_path / "a.net")


def test_a_file_cut_anywhere_is_refused_or_judged(tmp_path: Path) -> None:
    whole = clean(tmp_path / "a.net").read_bytes()
    for size in range(0, len(whole), len(whole) // 40):
        (tmp_path / "b.net").write_bytes(whole[:size])
        with pytest.raises(Refused):
            netx.legality(tmp_path / "b.net")


STRANGE = (
    np.zeros(0), np.float64(np.nan), np.full(3, np.inf), -1, 1 << 62, [0], [1, 2, 3, 4, 5], np.zeros((2, 2, 2)),
    b"", b"\xff\xfe", np.array([b"a", b"b"], "S3"), True, 0.5, np.ones(2, complex), h5py.Empty("f8"),
)  # fmt: skip


def test_no_field_whatever_it_holds_ends_in_a_traceback(tmp_path: Path) -> None:
    names: list[str] = []
    whole = clean(tmp_path / "a.net").read_bytes()
    with h5py.File(tmp_path / "a.net") as file:
        file["layer"].visit(names.append)
    for index, name in enumerate(names):
        (tmp_path / "b.net").write_bytes(whole)
        with h5py.File(tmp_path / "b.net", "r+") as file:
            put(f"layer/{name}", STRANGE[index % len(STRANGE)])(file)
        netx.legality(tmp_path / "b.net")
        netx.block_table(tmp_path / "b.net")


def test_compressed_files_are_read(tmp_path: Path) -> None:
    clean(tmp_path / "a.net")
    with h5py.File(tmp_path / "a.net", "r+") as file:
        weight = file["layer/4/weight"][()]
        del file["layer/4/weight"]
        file["layer/4"].create_dataset("weight", data=weight, compression="gzip", shuffle=True, fletcher32=True)
    assert netx.legality(tmp_path / "a.net") == []


# What stock netx makes of dense weights -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "held", "bits"),
    [
        ([[127, -127]], [[127, -127]], 8),  # doubled: even
        ([[201, -3]], [[201, -3]], 9),  # the CPU model holds it, 8 bits do not
        ([[-128, -128]], [[-127, -128]], None),
        ([[0, -129, -201]], [[0, 0, 0]], 9),
        ([[300, 5]], [[0, 0]], None),
    ],
)
def test_what_lava_holds_of_dense_weights(weights: list[list[int]], held: Any, bits: int | None) -> None:
    found = held_by_netx(np.array(weights))
    assert found is not None
    if weights == [[-128, -128]]:
        assert found[0][0].tolist() != weights  # which of the two is cut is Lava's
    else:
        assert found[0][0].tolist() == held
    assert bits is None or found[1] == bits


@pytest.mark.lava
def test_what_lava_holds_of_drawn_weights_is_what_its_own_functions_say() -> None:
    from lava.lib.dl.netx.utils import optimize_weight_bits
    from lava.utils.weightutils import clip_weights, determine_sign_mode, truncate_weights

    rng, checked = np.random.default_rng(0), 0
    for case in range(400):
        low, high = sorted(int(n) for n in rng.integers(-300, 301, 2))
        step = int(rng.choice([1, 2, 4]))
        weight = rng.integers(low, high + 1, (3, 4)) // step * step
        ours = held_by_netx(weight)
        if ours is None:
            assert not weight.any()
            continue
        shifted, bits, exponent, _ = optimize_weight_bits(weight)
        sign = determine_sign_mode(shifted)
        held = truncate_weights(clip_weights(shifted, sign, num_bits=8), sign, bits) * 2.0**exponent
        assert ours[1] == bits, case
        assert np.array_equal(ours[0][0], held), (case, weight)
        checked += 1
    assert checked > 350


# Files of this tool ---------------------------------------------------------------------------------------------------


def rules(path: Path, measured: netx.Measured | None = None) -> dict[str, set[str]]:
    """Who breaks which rule."""
    found: dict[str, set[str]] = {}
    for issue in netx.legality(path, measured):
        found.setdefault(issue.rule, set()).add(issue.where)
    return found


def eager(weight: int) -> Network:
    """One neuron that gets up to 127 * weight a step for two steps, with theta = 50 and no bias: limit 8241."""
    first = Layer("first", (1,), (Edge(INPUT, Dense([[weight]])),), 50, [0], [[0], [0]])
    end = Layer("end", (1,), (Edge("first", Dense([[1]])),), 0, [0], [[0], [0]], "readout")
    return Network(Input((1,)), (first, end), 2)


def test_a_layer_that_no_input_can_wake_is_proven_silent(tmp_path: Path) -> None:
    netx.save(eager(32), tmp_path / "a.net")  # 2 * 127 * 32 - 100 = 8028
    found = rules(tmp_path / "a.net")
    assert found["silence-proven"] == {"first"}
    assert not [issue for issue in netx.legality(tmp_path / "a.net") if issue.severity == "error"]


@pytest.mark.parametrize(
    ("measured", "rule"),
    [
        (None, "silence-unproven"),
        (netx.Measured("7 inputs", {"first": 8240}), "silence-measured"),
        (netx.Measured("7 inputs", {"first": 8241}), "silence-unproven"),  # perhaps inside the window
        (netx.Measured("7 inputs", {"first": 9000}, {"first": 8240}), "silence-measured"),
        (netx.Measured("7 inputs", {"first": 9000}, {"first": 8241}), "silence-broken"),
    ],
)
def test_where_no_bound_proves_silence_a_measurement_does_or_refutes_it(
    measured: netx.Measured | None, rule: str, tmp_path: Path
) -> None:
    netx.save(eager(33), tmp_path / "a.net")  # 2 * 127 * 33 - 100 = 8282
    assert {name for name in rules(tmp_path / "a.net", measured) if name.startswith("silence")} == {rule}


def test_currents_that_the_host_brings_leave_no_lift_and_lack_before_the_window(tmp_path: Path) -> None:
    """The payload's form would be silent for all inputs: its lift is larger, and its currents take part in u."""
    first = Layer("first", (4,), (Edge(INPUT, Dense(np.full((4, 1), 9))),), 9, [4] * 4, [[0] * 4] * 8)
    second = Layer(
        "second", (1,), (Edge("first", Dense([[127] * 4])), Edge(INPUT, Dense([[-100]]))), 99, [4], [[0]] * 8
    )
    third = Layer("third", (1,), (Edge("second", Dense([[9]])), Edge(INPUT, Dense([[-100]]))), 99, [4], [[0]] * 8)
    end = Layer("end", (1,), (Edge("third", Dense([[1]])),), 0, [0], [[0]] * 8, "readout")
    found, network = {}, eager(33)
    for form in ("payload", "currents"):
        network = Network(Input((1,), bits=3, signed=False, form=form), (first, second, third, end), 8)
        netx.save(network, tmp_path / f"{form}.net")
        found[form] = rules(tmp_path / f"{form}.net")
    assert found["payload"]["silence-proven"] == {"first", "second", "third"}
    # 8 * 4 * 127 = 4064 < 99 + 4096.
    assert found["currents"]["silence-proven"] == {"first", "second", "third"}
    wide = replace(second, edges=(Edge("first", Dense([[127] * 4]), 1), second.edges[1]))
    netx.save(replace(network, layers=(first, wide, third, end)), tmp_path / "wide.net")
    assert rules(tmp_path / "wide.net")["silence-unproven"] == {"second"}
    measured = netx.Measured("7 inputs", dict.fromkeys(("first", "second", "third", "end"), 9), {"second": 9})
    assert rules(tmp_path / "wide.net", measured)["silence-unproven"] == {"second"}  # with what the host brings in u


def test_no_inputs_measure_nothing(tmp_path: Path) -> None:
    netx.save(eager(33), tmp_path / "a.net")
    with pytest.raises(Refused, match="x: no samples; give at least one, or none at all"):
        ann2loihi.legality(tmp_path / "a.net", np.zeros((0, 1)))


def test_inputs_measure_it(tmp_path: Path) -> None:
    netx.save(eager(33), tmp_path / "a.net")
    for x, severity in ((126, "silence-measured"), (127, "silence-broken")):  # 8216 and 8282
        issues = ann2loihi.legality(tmp_path / "a.net", np.array([[3.0], [x]]))
        (issue,) = (issue for issue in issues if issue.rule.startswith("silence"))
        assert issue.rule == severity
        assert "2 inputs" in issue.value


@pytest.mark.parametrize(("peak", "rule"), [(None, "register-unproven"), (131_071, "register-measured"),
                                            (131_072, "register-broken")])  # fmt: skip
def test_the_registers_are_proven_measured_or_broken(peak: int | None, rule: str, tmp_path: Path) -> None:
    first, end = eager(127).layers
    wide = Network(Input((1,), bits=12), (first, end), 2)
    netx.save(wide, tmp_path / "a.net")
    measured = None if peak is None else netx.Measured("an input", {"first": peak, "end": 2})
    found = rules(tmp_path / "a.net", measured)
    assert {name for name in found if name.startswith("register")} == {rule}
    assert found[rule] == {"first"}


@pytest.mark.parametrize(("width", "found"), [(256, set()), (257, {"layer/0 input", "layer/1 first"})])
def test_a_map_may_be_as_wide_as_addresses_reach(width: int, found: set[str], tmp_path: Path) -> None:
    first = Layer("first", (1, 1, width), (Edge(INPUT, Conv2d(np.ones((1, 1, 1, 1), int))),), 9, [4], [[0]] * 2)
    end = Layer("end", (1,), (Edge("first", Dense(np.ones((1, width), int))),), 0, [0], [[0]] * 2, "readout")
    netx.save(Network(Input((1, 1, width)), (first, end), 2), tmp_path / "a.net")
    assert rules(tmp_path / "a.net").get("conv-width", set()) == found


def test_the_price_of_a_power_of_two_is_shown(tmp_path: Path) -> None:
    netx.save(networks.sequence(), tmp_path / "a.net")
    (issue,) = (i for i in netx.legality(tmp_path / "a.net") if i.rule == "period")
    # The second layer holds off for two steps and fires for three; one more lets the last -theta arrive.
    assert issue.value == "6 suffice, 8 on silicon: 2 steps more a sample"


def test_a_file_of_format_1_is_told_to_be_written_again() -> None:
    found = rules(Path(networks.__file__).parent / "sequence.net")
    assert found["bias-register"] == {"layer/1 first", "layer/2 second", "layer/4 body.third"}


def test_a_graph_is_judged_as_a_network(tmp_path: Path) -> None:
    netx.save(networks.residual(), tmp_path / "a.net")
    issues = netx.legality(tmp_path / "a.net")
    assert "graph-form" in {issue.rule for issue in issues}
    # Its shortcut is depthwise.
    assert [(i.where, i.value) for i in issues if i.rule == "grouped"] == [("layer/1 sum", "3")]
    assert not [issue for issue in issues if issue.severity == "error"]


def test_a_damaged_file_of_this_tool_is_named(tmp_path: Path) -> None:
    netx.save(networks.sequence(), tmp_path / "a.net")
    with h5py.File(tmp_path / "a.net", "r+") as file:
        file["layer/1/weight"][0, 0, 0, 0] += 1
    found = rules(tmp_path / "a.net")
    assert "damaged" in found


# lava-dl's own networks -----------------------------------------------------------------------------------------------

#: By file: every issue of its kind that is no note, and the notes, by rule.
SHIPPED: dict[str, tuple[dict[str, set[str]], set[str]]] = {
    "tiny.net": ({}, {"input-transform"}),
    "mnist.net": ({}, {"input-transform", "readout-default", "core-memory"}),
    "gts/ntidigits/ntidigits.net": ({"type-unsupported": {"layer/5 average"}}, {"core-memory"}),
    "gts/pilotnet_lif/network.net": ({}, {"input-transform", "core-neurons", "core-memory"}),
    "gts/pilotnet_sdnn/network.net": ({}, {"core-neurons", "core-memory"}),
    "gts/pilotnet_sdnn/square_network.net": ({}, {"core-neurons"}),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_lava_dls_own_networks_are_judged_rightly(name: str) -> None:
    if util.find_spec("lava") is None:
        pytest.skip("lava-dl is not installed: it exists for Python 3.10 only")
    (path,) = (found for found in metadata.files("lava-dl") or () if str(found).endswith(f"netx/{name}"))
    issues = netx.legality(Path(str(path.locate())))
    wrong, notes = SHIPPED[name]
    found: dict[str, set[str]] = {}
    for issue in issues:
        if issue.severity != "note":
            found.setdefault(issue.rule, set()).add(issue.where)
    assert found == wrong
    assert {issue.rule for issue in issues if issue.severity == "note"} == notes
    assert LOIHI2.bias_limit == 4095  # what the rules about biases stand on
