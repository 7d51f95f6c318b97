"""Worked examples of the semantics: every expected number was computed by hand from the text, not by an engine."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from sim import chip, fast, reference
from sim.findings import Refused
from sim.fixedpoint import RegisterOverflow, worst_case
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network
from sim.trace import Trace, first_difference

ENGINES = pytest.mark.parametrize("run", [reference.run, fast.run], ids=["reference", "fast"])
Run = Callable[..., Trace]


def neuron(
    name: str,
    *edges: tuple[str, int],
    theta: int = 5,
    v0: int = 0,
    bias: tuple[int, ...] = (0, 0, 0),
    holdoff: int | None = None,
) -> Layer:
    return Layer(
        name,
        (1,),
        tuple(Edge(source, Dense([[w]])) for source, w in edges),
        theta,
        [v0],
        np.reshape(bias, (-1, 1)),
        holdoff=holdoff,
    )


def readout(source: str, weight: int = 2, bias: tuple[int, ...] = (0, 0, 0)) -> Layer:
    return Layer("out", (1,), (Edge(source, Dense([[weight]])),), 0, [0], np.reshape(bias, (-1, 1)), "readout")


def build(*layers: Layer, holdoff: int = 0, timesteps: int = 3) -> Network:
    return Network(Input((1,)), layers, timesteps, holdoff)


def series(trace: Trace, name: str) -> tuple[list[int], list[int]]:
    return trace.spikes[name][0].flatten().tolist(), trace.potentials[name][0].flatten().tolist()


@ENGINES
def test_a_neuron_integrates_fires_at_threshold_and_subtracts_it(run: Run) -> None:
    # Arrivals of 3 at t = 1, 2, 3; theta 5. v: 3 | 6 fires, 1 left | 4.
    trace = run(build(neuron("a", (INPUT, 3)), readout("a", bias=(1, 0, -1))), [[1]])
    assert series(trace, "a") == ([0, 1, 0], [3, 1, 4])
    # The readout opens at t = 2; the spike of t = 2 arrives at t = 3: 0+1, 1+2+0, 3+0-1.
    assert series(trace, "out") == ([0, 0, 0], [1, 3, 2])
    assert trace.logits.tolist() == [[[1], [3], [2]]]


@ENGINES
def test_reaching_the_threshold_exactly_is_enough(run: Run) -> None:
    trace = run(build(neuron("a", (INPUT, 3), theta=6), readout("a")), [[1]])
    assert series(trace, "a") == ([0, 1, 0], [3, 0, 3])


@ENGINES
def test_initial_potential_and_schedule_are_added_inside_the_window(run: Run) -> None:
    # v: 2+3+1 = 6 fires, 1 | 1+3-2 = 2 | 2+3+0 = 5 fires, 0.
    trace = run(build(neuron("a", (INPUT, 3), v0=2, bias=(1, -2, 0)), readout("a")), [[1]])
    assert series(trace, "a") == ([1, 0, 1], [1, 2, 0])


@ENGINES
def test_holdoff_integrates_silently_and_delays_window_and_schedule(run: Run) -> None:
    network = build(neuron("a", (INPUT, 3), bias=(10, 0, 0), holdoff=1), readout("a"))
    assert network.phase == {INPUT: 0, "a": 2, "out": 3}
    assert list(network.busy(network["a"])) == [1, 2, 3, 4]
    # t=1: 3, silent | t=2: 6+10 = 16 fires, 11 | t=3: 14 fires, 9 | t=4: nothing arrives, 9 fires, 4.
    assert series(run(network, [[1]]), "a") == ([0, 1, 1, 1], [3, 11, 9, 4])


@ENGINES
def test_spikes_over_a_skip_edge_arrive_early_and_wait(run: Run) -> None:
    network = build(
        neuron("a", (INPUT, 5)), neuron("b", ("a", 5)), neuron("c", ("b", 1), ("a", 4), theta=20), readout("c")
    )
    assert network.phase == {INPUT: 0, "a": 1, "b": 2, "c": 3, "out": 4}
    # a fires at 1, 2, 3 and b at 2, 3, 4. c takes 4 from a at t = 2, 3, 4 and 1 from b at t = 3, 4, 5:
    # t=2: 4, before the window | t=3: 9 | t=4: 14 | t=5: 15, below 20.
    assert series(run(network, [[1]]), "c") == ([0, 0, 0, 0], [4, 9, 14, 15])


@ENGINES
def test_negative_payloads_and_exponents_shift_towards_minus_infinity(run: Run) -> None:
    # 3 * -1 = -3, shifted right by one: -2 at each of the three steps; 3 * 1 = 3 gives 1.
    layer = Layer("a", (1,), (Edge(INPUT, Dense([[3]]), -1),), 100, [0], np.zeros((3, 1), int))
    trace = run(build(layer, readout("a")), [[-1], [1]])
    assert trace.potentials["a"][:, :, 0].tolist() == [[-2, -4, -6], [1, 2, 3]]


@ENGINES
def test_convolution_is_a_cross_correlation_in_torch_order(run: Run) -> None:
    # Kernel [[1, 2], [3, 4]] on [[1, 0], [0, 1]] without padding: 1*1 + 4*1 = 5; flipped it would be 5 too,
    # so the image [[1, 2], [0, 0]] tells them apart: 1*1 + 2*2 = 5 against 4*1 + 3*2 = 10.
    layer = Layer("a", (1, 1, 1), (Edge(INPUT, Conv2d([[[[1, 2], [3, 4]]]])),), 100, [0], np.zeros((1, 1), int))
    out = Layer("out", (1,), (Edge("a", Dense([[1]])),), 0, [0], np.zeros((1, 1), int), "readout")
    trace = run(Network(Input((1, 2, 2)), (layer, out), 1), [[[[1, 2], [0, 0]]]])
    assert trace.potentials["a"].item() == 5


@ENGINES
def test_leaving_the_register_is_never_silent(run: Run) -> None:
    # 127 * 127 su a step and no spike: step 8 would hold 129,032 (below 2**17 = 131,072), step 9 holds 145,161.
    network = build(neuron("a", (INPUT, 127), theta=131072, bias=(0,) * 9), readout("a", bias=(0,) * 9), timesteps=9)
    with pytest.raises(RegisterOverflow, match=r"layer a, channel 0, step 9: v = 145161 leaves the register"):
        run(network, [[127]])
    trace = run(network, [[127]], overflow="count")
    assert trace.overflows == 2  # v and u
    assert trace.peak["a"] == 145161
    assert worst_case(network, network["a"]) == 145161


def test_a_bound_on_potentials_accounts_for_the_reset() -> None:
    # At most 3 arrives per step and 5 is taken off from 5 on: v before the reset never exceeds 4 + 3.
    # u carries no bias here, so it is the same; downwards nothing can arrive.
    network = build(neuron("a", (INPUT, 3), bias=(0,) * 9), readout("a", bias=(0,) * 9), timesteps=9)
    binary = Network(Input((1,), bits=1, signed=False), network.layers, 9)
    assert worst_case(binary, binary["a"]) == 7


def test_a_bound_on_potentials_reaches_from_just_below_the_threshold() -> None:
    # 3, 6, and of what stays below 6 the highest is 5, to which 3 more come.
    network = build(neuron("a", (INPUT, 3), theta=6, bias=(0,) * 9), readout("a", bias=(0,) * 9), timesteps=9)
    binary = Network(Input((1,), bits=1, signed=False), network.layers, 9)
    assert worst_case(binary, binary["a"]) == 8


def test_a_bound_on_currents_reaches_from_the_lowest_reset() -> None:
    # 4 or 5 come in a step. A neuron that fires may be left with 0 each time, then v is 4 after nine biases, 36 in all,
    # and u = 4 - 36.
    network = build(neuron("a", (INPUT, 1), bias=(4,) * 9), readout("a", bias=(0,) * 9), timesteps=9)
    binary = Network(Input((1,), bits=1, signed=False), network.layers, 9)
    assert worst_case(binary, binary["a"]) == 32


@ENGINES
@pytest.mark.parametrize("payload", [64, -64])
def test_the_register_ends_before_its_limit(run: Run, payload: int) -> None:
    # 64 * 64 su a step make 2**17 = 131072 in step 32.
    network = build(readout(INPUT, 64, bias=(0,) * 32), timesteps=32)
    with pytest.raises(RegisterOverflow, match=rf"layer out, channel 0, step 32: v = {payload * 2048} leaves"):
        run(network, [[payload]])


@ENGINES
def test_an_odd_sum_beyond_24_bits_is_exact(run: Run) -> None:
    # 3 * (2**23 - 1) is odd, and above 2**24 float32 holds even numbers only.
    out = Layer("out", (1,), (Edge(INPUT, Dense([[1, 1, 1]])),), 0, [0], [[0]], "readout")
    network = Network(Input((3,), bits=24), (out,), 1)
    assert run(network, [[2**23 - 1] * 3], chip=chip.WIDE).logits.tolist() == [[[25165821]]]


def test_sums_that_no_float_holds_exactly_are_refused() -> None:
    # (2**31 - 1) * (2**23 - 1) is nearly 2**54.
    out = Layer("out", (1,), (Edge(INPUT, Dense([[2**31 - 1]])),), 0, [0], [[0]], "readout")
    network = Network(Input((1,), bits=24), (out,), 1)
    with pytest.raises(Refused, match="out: currents of up to 18014396353609729 cannot be summed exactly"):
        fast.run(network, [[1]])


def test_encoding_rounds_scales_and_clips_to_the_payload() -> None:
    assert Input((3,), bits=8, scale=10.0).encode([[0.26, -1.0, 99.0]]).tolist() == [[3, -10, 127]]
    assert Input((2,), bits=4, signed=False).limits == (0, 15)


@ENGINES
@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ([[200]], r"values 200..200 leave -127..127"),
        ([[0.5]], r"it needs integers of shape \(samples, 1\)"),
        ([[1, 2]], r"it needs integers of shape \(samples, 1\)"),
    ],
)
def test_payloads_of_wrong_shape_type_or_range_are_refused(run: Run, payload: list, message: str) -> None:
    with pytest.raises(Refused, match=message):
        run(build(neuron("a", (INPUT, 3)), readout("a")), payload)


def test_a_meaningless_network_is_refused_with_every_finding() -> None:
    bad = Layer("b", (2,), (Edge("nowhere", Dense([[1]])), Edge("a", Dense([[1], [2], [3]]))), 0, [0], [[0]])
    with pytest.raises(Refused) as caught:
        Network(Input((1,)), (neuron("a", (INPUT, 1)), bad), 3, -1)
    text = str(caught.value)
    for part in (
        "holdoff: K = -1",
        "b: threshold 0",
        "b: v0 of shape (1,)",
        "b: bias schedule of shape (1, 1)",
        "edge from 'nowhere', which is no earlier layer",
        "the synapse gives shape (3,), the layer has (2,)",
        "layers: 0 readouts",
    ):
        assert part in text
    assert len(caught.value.findings) == 7


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("timesteps", 0, "timesteps: T = 0; give at least 1 step"),
        ("input", Input((1,), bits=0), "input: 0 bits"),
    ],
)
def test_scalars_out_of_range_are_refused(field: str, value: object, message: str) -> None:
    fields = {"input": Input((1,)), "layers": (), "timesteps": 3, field: value}
    with pytest.raises(Refused, match=message):
        Network(**fields)  # type: ignore[arg-type]


def test_float_arrays_and_32_bit_overflows_never_become_weights() -> None:
    with pytest.raises(Refused, match="float64 is not an integer; quantise it first"):
        Dense(np.ones((1, 1)))
    with pytest.raises(Refused, match="a value leaves 32 bit"):
        Dense([[1 << 40]])


def test_arrays_are_frozen_and_equality_is_by_value() -> None:
    a, b = (build(neuron("a", (INPUT, 3)), readout("a")) for _ in range(2))
    assert a == b
    assert a != build(neuron("a", (INPUT, 4)), readout("a"))
    with pytest.raises(ValueError, match="read-only"):
        a["a"].bias[0] = 1


def test_the_first_difference_names_layer_step_neuron_and_both_values() -> None:
    network = build(neuron("a", (INPUT, 3)), readout("a"))
    trace = reference.run(network, [[1], [2]])
    spikes = {name: array.copy() for name, array in trace.spikes.items()}
    potentials = {name: array.copy() for name, array in trace.potentials.items()}
    potentials["out"][0, 0, 0] = 7  # a later layer does not hide an earlier one
    spikes["a"][1, 2, 0] = 9
    potentials["a"][0, 1, 0] = 8  # step 2, before the spike of step 3
    other = Trace("other", network, spikes, potentials)
    assert str(first_difference(trace, other)) == (
        "layer a, step 2, sample 0, neuron (0,): potential 1 on reference, 8 on other"
    )
    assert first_difference(trace, trace) is None


def test_traces_that_share_nothing_are_not_called_equal() -> None:
    trace = reference.run(build(neuron("a", (INPUT, 3)), readout("a")), [[1]])
    with pytest.raises(ValueError, match="did not record the same network's readout"):
        first_difference(trace, Trace("empty", trace.network, {}, {}))


def test_the_chip_check_lists_every_value_out_of_range() -> None:
    wide = Layer("a", (1,), (Edge(INPUT, Dense([[200]]), 9),), 131073, [0], [[5000]] * 3)
    odd = neuron("b", ("a", 1), theta=257)
    findings = [str(f) for f in chip.check(build(wide, odd, readout("b")))]
    for part in (
        "a <- input: weight 200 is outside -127..127 (Loihi 2)",
        "a <- input: weight exponent 9 is outside -7..7",
        "a: v0 + cumulative bias 15000 is outside -4095..4095",
        "a: threshold 131073 is outside 1..131072",
        "b: threshold 257 is not a recurrent weight",
    ):
        assert any(part in finding for finding in findings)
    assert len(findings) == 5


def test_the_chip_check_names_what_is_too_low() -> None:
    low = Layer("a", (1,), (Edge(INPUT, Dense([[-128]]), -8),), 5, [0], [[-5000]] * 3)
    assert [str(finding).split(" (")[0] for finding in chip.check(build(low, readout("a")))] == [
        "a <- input: weight -128 is outside -127..127",
        "a <- input: weight exponent -8 is outside -7..7",
        "a: v0 + cumulative bias -15000 is outside -4095..4095",
    ]


@pytest.mark.parametrize(
    ("theta", "expected"),
    [(255, (255, 0)), (256, (128, 1)), (257, None), (510, (255, 1)), (255 << 7, (255, 7)), (255 << 8, None)],
)
def test_thresholds_are_written_as_recurrent_weights(theta: int, expected: tuple[int, int] | None) -> None:
    assert chip.LOIHI2.recurrent(theta) == expected


@pytest.mark.parametrize(
    "geometry",
    [{"stride": (0, 1)}, {"dilation": (1, 0)}, {"padding": (-1, 0)}, {"dilation": (3, 3)}],
    ids=["stride", "dilation", "padding", "kernel too large"],
)
def test_a_convolution_without_output_is_refused(geometry: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(Refused, match=r"kernel \(2, 2\) leaves no output on a source of shape \(1, 3, 3\)"):
        Conv2d(np.ones((1, 1, 2, 2), int), Geometry(**geometry)).output_shape((1, 3, 3))
