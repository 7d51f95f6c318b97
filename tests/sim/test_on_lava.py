"""The two Lava engines: worked by hand, against the reference, and wherever Lava would be wrong in silence."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from sim import on_lava, reference
from sim.chip import LOIHI2, WIDE
from sim.findings import Refused
from sim.fixedpoint import RegisterOverflow
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Shape
from sim.on_lava import graph
from sim.on_lava.runtime import Population
from sim.progress import reporting
from sim.stock import Form, legal_period
from sim.trace import Trace, first_difference

pytestmark = [
    pytest.mark.lava,
    # networkx, on which Lava builds its graphs, looks for pandas.
    pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning"),
]
both_forms = pytest.mark.parametrize("form", get_args(Form))


def layer(
    name: str, shape: Shape, *edges: Edge, theta: int = 0, seed: int = 0, timesteps: int = 4, **more: Any
) -> Layer:
    """Make a layer with drawn initial potentials and biases, a readout where no threshold is given."""
    rng = np.random.default_rng(seed)
    more.setdefault("v0", rng.integers(-3, theta // 2 + 4, shape[:1]))
    more.setdefault("bias", rng.integers(-9, 30, (timesteps, *shape[:1])))
    return Layer(name, shape, edges, theta, kind="spiking" if theta else "readout", **more)


def drawn(seed: int, *shape: int, low: int = -127, high: int = 127) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def worked_example(holdoff: int) -> tuple[Network, np.ndarray]:
    first = Layer("first", (1,), (Edge(INPUT, Dense(np.array([[3]]))),), 10, np.array([5]), np.array([[0], [0], [1]]))
    last = Layer(
        "last", (1,), (Edge("first", Dense(np.array([[4]]))),), 0, np.array([-1]), np.array([[1], [0], [0]]), "readout"
    )
    return Network(Input((1,)), (first, last), timesteps=3, holdoff=holdoff), np.array([[2]])


def assert_equal(network: Network, payload: np.ndarray, **options: Any) -> Trace:
    trace = on_lava.run(network, payload, **options)
    expected = reference.run(network, payload)
    assert first_difference(expected, trace) is None
    assert trace.peak == expected.peak
    assert trace.spikes.keys() == trace.potentials.keys() == expected.spikes.keys()
    return trace


# The dynamics ---------------------------------------------------------------------------------------------------------


@both_forms
def test_a_neuron_worked_by_hand_spikes_and_resets_by_subtraction(form: Form) -> None:
    # The current 2 * 3 = 6 arrives at t = 1, 2, 3: 5+6 = 11 fires, 1+6 = 7, 7+6+1 = 14 fires.
    network, payload = worked_example(holdoff=0)
    trace = on_lava.run(network, payload, form=form)
    assert trace.spikes["first"].tolist() == [[[1], [0], [1]]]
    assert trace.potentials["first"].tolist() == [[[1], [7], [4]]]
    assert trace.logits.tolist() == [[[4], [4], [8]]]
    assert trace.engine == {"native": "lava", "stock": "lava-stock"}[form]


@both_forms
def test_a_neuron_worked_by_hand_holds_off(form: Form) -> None:
    # The window opens at t = 2 instead: 11 stays silent, 17 fires, 7+6 = 13 fires, 3+1 = 4 after the input has ended.
    network, payload = worked_example(holdoff=1)
    trace = on_lava.run(network, payload, form=form)
    assert trace.spikes["first"].tolist() == [[[0], [1], [1], [0]]]
    assert trace.potentials["first"].tolist() == [[[11], [7], [3], [4]]]
    assert trace.logits.tolist() == [[[4], [8], [8]]]


def chain(timesteps: int, holdoff: int) -> Network:
    """Two convolutions of awkward geometry and a readout."""
    first = Conv2d(drawn(1, 4, 2, 3, 2), Geometry(stride=(2, 1), padding=(1, 2), dilation=(1, 2)))
    second = Conv2d(drawn(2, 6, 2, 2, 3), Geometry(padding=(0, 1), groups=2))
    return Network(
        Input((2, 5, 4), bits=4),
        (
            layer("first", (4, 3, 6), Edge(INPUT, first), theta=1020, seed=3, timesteps=timesteps),
            layer(
                "second",
                (6, 2, 6),
                Edge("first", second),
                theta=150,
                seed=4,
                timesteps=timesteps,
                holdoff=1,
                bias=drawn(5, timesteps, 6, 2, 6, low=-20, high=60),
            ),
            layer("last", (3,), Edge("second", Dense(drawn(6, 3, 72))), seed=7, timesteps=timesteps),
        ),
        timesteps,
        holdoff,
    )


def skips() -> Network:
    """Several edges into each layer, early arrivals, Dense from and into (C, H, W), exponents, one-sided weights."""
    image, hidden = (2, 3, 4), (3, 3, 4)
    same = Geometry(padding=(1, 1))
    return Network(
        Input(image, bits=3),
        (
            layer("a", hidden, Edge(INPUT, Conv2d(drawn(1, 3, 2, 3, 3), same)), theta=302, seed=2),
            layer(
                "b",
                hidden,
                Edge("a", Conv2d(drawn(3, 3, 3, 3, 3), same), -1),
                Edge("a", Dense(drawn(4, 36, 36)), -2),
                theta=90,
                seed=5,
            ),
            layer(
                "c",
                hidden,
                Edge("b", Conv2d(drawn(6, 3, 1, 1, 1, low=0), Geometry(groups=3)), 1),
                Edge("a", Conv2d(drawn(7, 3, 3, 1, 1, low=-128, high=-1))),
                Edge(INPUT, Dense(drawn(8, 36, 24))),
                theta=200,
                seed=9,
            ),
            layer(
                "d",
                (5,),
                Edge("c", Dense(drawn(10, 5, 36, low=0, high=255))),
                Edge("b", Dense(drawn(11, 5, 36, low=-255, high=0))),
                theta=508,
                seed=12,
            ),
            layer("last", (2,), Edge("d", Dense(drawn(13, 2, 5)), 1), Edge("a", Dense(drawn(14, 2, 36))), seed=15),
        ),
        timesteps=4,
        holdoff=1,
    )


def depthwise() -> Network:
    """More channels than the 8 bits in which Lava's Conv keeps its groups."""
    kernel = Conv2d(drawn(1, 130, 1, 2, 1), Geometry(groups=130))
    return Network(
        Input((130, 2, 2), bits=3),
        (
            layer("wide", (130, 1, 2), Edge(INPUT, kernel), theta=300, seed=2),
            layer("last", (2,), Edge("wide", Dense(drawn(3, 2, 260))), seed=4),
        ),
        timesteps=4,
    )


@both_forms
@pytest.mark.parametrize(
    "network",
    [chain(1, 0), chain(3, 1), chain(8, 2), skips(), depthwise()],
    ids=["T1-K0", "T3-K1", "T8-K2", "skips", "depthwise"],
)
def test_lava_equals_the_reference(form: Form, network: Network, compared: Callable[[str], None]) -> None:
    low, high = network.input.limits
    trace = assert_equal(network, drawn(20, 2, *network.input.shape, low=low, high=high), form=form)
    assert all(trace.spikes[layer.name].any() for layer in network.layers if layer.kind == "spiking")
    compared(f"reference = {trace.engine}")


@both_forms
@pytest.mark.parametrize("slack", [0, 3])
def test_samples_back_to_back_equal_samples_one_by_one(form: Form, slack: int) -> None:
    # Deeper than a period is long, so that samples overlap in the network, and eager to fire without any input.
    always = {"v0": np.array([7, 9]), "bias": np.full((2, 2), 9)}
    names = [f"layer{i}" for i in range(5)]
    layers = [
        layer(name, (2,), Edge(source, Dense(drawn(i, 2, 2, low=-9, high=9))), theta=10, **always)
        for i, (name, source) in enumerate(zip(names, [INPUT, *names], strict=False))
    ]
    last = layer("last", (2,), Edge(names[-1], Dense(drawn(9, 2, 2))), timesteps=2)
    network = Network(Input((2,)), (*layers, last), timesteps=2)
    assert network.steps > network.period + 1
    # The reference runs every sample on its own.
    assert_equal(network, drawn(1, 4, 2), form=form, period=legal_period(network, form) + slack)


@both_forms
def test_an_empty_payload_gives_an_empty_trace(form: Form) -> None:
    network = chain(3, 1)
    trace = assert_equal(network, np.zeros((0, 2, 5, 4), np.int64), form=form)
    assert trace.logits.shape == (0, 3, 3)


# What must not happen in silence --------------------------------------------------------------------------------------


def integrator(timesteps: int) -> Network:
    quiet = {"v0": np.zeros(1, int), "bias": np.zeros((timesteps, 1), int)}
    return Network(Input((1,)), (layer("last", (1,), Edge(INPUT, Dense(np.array([[127]]))), **quiet),), timesteps)


@both_forms
@pytest.mark.parametrize("sign", [1, -1])
def test_leaving_the_register_raises_with_layer_channel_step_and_value(form: Form, sign: int) -> None:
    # 127 * 127 a step passes 2**17 at t = 9.
    with pytest.raises(RegisterOverflow, match=rf"layer last, channel 0, step 9: v = {sign * 9 * 127**2} leaves"):
        on_lava.run(integrator(16), np.array([[3], [sign * 127]]), form=form)
    assert_equal(integrator(8), np.array([[3], [sign * 127]]), form=form)


@both_forms
def test_a_narrower_chip_is_obeyed(form: Form) -> None:
    narrow = dataclasses.replace(LOIHI2, state_bits=20)
    with pytest.raises(RegisterOverflow, match=r"step 1: v = 16129 leaves the register of Loihi 2 \(\|v\| < 8192\)"):
        on_lava.run(integrator(1), np.array([[127]]), form=form, chip=narrow)


def test_a_potential_too_high_for_the_suppression_raises_in_the_stock_form_only() -> None:
    # 3 * 127 * 127 - 3 * 10 su are left when the window closes.
    eager = layer("eager", (1,), Edge(INPUT, Dense(np.array([[127]]))), theta=10, timesteps=3)
    network = Network(Input((1,)), (eager, layer("last", (1,), Edge("eager", Dense(np.array([[1]]))), timesteps=3)), 3)
    assert_equal(network, np.array([[127]]), form="native")
    with pytest.raises(RegisterOverflow, match=r"layer eager, channel 0, step 4 .*: u >= 8\d{3} broke the suppression"):
        on_lava.run(network, np.array([[127]]), form="stock")


def test_the_schedule_is_in_force_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = graph.attach

    def eager(network: Network, population: Layer, neuron: Any, *rest: Any) -> Population:
        neuron.bias_mant.init = 1000
        return attach(network, population, neuron, *rest)

    monkeypatch.setattr(graph, "attach", eager)
    assert_equal(*worked_example(holdoff=0), form="stock")


def test_a_register_that_is_not_the_sum_of_its_currents_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = graph.attach

    def leaky(network: Network, population: Layer, neuron: Any, *rest: Any) -> Population:
        neuron.du.init = 99
        return attach(network, population, neuron, *rest)

    monkeypatch.setattr(graph, "attach", leaky)
    network, payload = worked_example(holdoff=0)
    with pytest.raises(RegisterOverflow, match=r"layer first, channel 0, step 2 .* sum of its currents"):
        on_lava.run(network, payload, form="stock")


@pytest.mark.parametrize(("form", "smallest"), [("native", 4), ("stock", 5)])
def test_a_period_in_which_samples_would_meet_is_refused(form: Form, smallest: int) -> None:
    network, payload = worked_example(holdoff=1)
    with pytest.raises(Refused, match=rf"period: {smallest - 1} steps are too few .*give at least {smallest}"):
        on_lava.run(network, payload, form=form, period=smallest - 1)


def narrow(weight: int = 1, theta: int = 10, v0: int = 0, bits: int = 8, exponent: int = 0, fan_in: int = 1) -> Network:
    shape = (1, 1, fan_in)
    edge = Edge(INPUT, Conv2d(np.full((1, 1, 1, fan_in), weight)), exponent)
    flat = layer("flat", (2,), Edge("image", Dense(np.array([[weight], [-1]]))), theta=theta, timesteps=1)
    return Network(
        Input(shape, bits),
        (
            layer("image", (1, 1, 1), edge, theta=10, v0=np.array([v0]), timesteps=1),
            flat,
            layer("last", (1,), Edge("flat", Dense(np.ones((1, 2), int))), timesteps=1),
        ),
        1,
    )


@pytest.mark.parametrize(
    ("network", "problem"),
    [
        (narrow(weight=131), r"flat <- image: weights -1..131 lose bits in Lava's Dense and Sparse"),
        (narrow(weight=-300, exponent=1), r"image <- input: weights -300..-300 lose bits"),
        (narrow(theta=257), r"flat: threshold 257 is not a recurrent weight"),
        (narrow(v0=40000), r"image: v0 \+ cumulative bias of 4\d+..4\d+ leaves the 13 bits of Loihi 2"),
        (narrow(weight=127, bits=20), r"image <- input: a sum of up to \d+ leaves the 24 bits of Lava's Conv"),
        (narrow(weight=127, bits=20, exponent=3), r"image: currents of up to \d+ leave the 26 bits"),
    ],
)
def test_what_lava_would_compute_wrongly_is_refused(network: Network, problem: str) -> None:
    payload = np.full((1, *network.input.shape), network.input.limits[1])
    with pytest.raises(Refused, match=problem):
        on_lava.run(network, payload, form="stock")


def test_a_chip_without_lavas_registers_is_refused_in_the_stock_form() -> None:
    network, payload = worked_example(holdoff=0)
    with pytest.raises(Refused, match=r"chip: Lava's LIF lacks the registers of wide registers; use form='native'"):
        on_lava.run(network, payload, form="stock", chip=WIDE)
    assert_equal(network, payload, form="native", chip=WIDE)


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(Refused, match=r"form: 'bare' is unknown; use 'native' or 'stock'"):
        on_lava.run(*worked_example(holdoff=0), form="bare")  # type: ignore[arg-type]


# The house around it --------------------------------------------------------------------------------------------------


def test_the_terminal_and_the_root_logger_stay_clean(capfd: pytest.CaptureFixture[str]) -> None:
    handlers = list(logging.getLogger().handlers)
    on_lava.run(*worked_example(holdoff=0), form="stock")
    assert capfd.readouterr() == ("", "")
    assert logging.getLogger().handlers == handlers


@pytest.mark.parametrize("finished", [0, 1, 2])
def test_samples_are_reported_and_an_exception_there_leaves_no_process_behind(finished: int) -> None:
    network, _ = worked_example(holdoff=0)
    others = multiprocessing.active_children()  # whatever another test has left to work on (a compiler's workers)
    told: list[tuple[str, int, int]] = []

    def interrupt(*report: Any) -> None:
        told.append(report)
        if report[1] == finished:
            raise KeyboardInterrupt

    with reporting(interrupt), pytest.raises(KeyboardInterrupt):
        on_lava.run(network, np.full((2, 1), 2))
    assert told == [("running on lava", done, 2) for done in range(finished + 1)]
    assert set(multiprocessing.active_children()) <= set(others)


def test_a_dead_lava_process_raises_instead_of_hanging() -> None:
    network, _ = worked_example(holdoff=0)
    others = multiprocessing.active_children()

    def murder(what: str, done: int, total: int) -> None:
        next(child for child in multiprocessing.active_children() if type(child).__name__ == "SystemProcess").kill()

    with reporting(murder), pytest.raises(RuntimeError, match="a Lava process has died"):
        on_lava.run(network, np.full((3, 1), 2))
    assert set(multiprocessing.active_children()) <= set(others)


def in_a_new_python(prologue: str) -> subprocess.CompletedProcess[str]:
    code = f"""
{prologue}
import numpy as np
from sim import on_lava
from sim.findings import Refused
from sim.network import *
network = Network(Input((1,)), (Layer("last", (1,), (Edge(INPUT, Dense(np.array([[3]]))),), 0, np.array([0]),
                                      np.array([[0]]), "readout"),), 1)
try:
    print(on_lava.run(network, np.array([[5]])).logits.item())
except Refused as error:
    print(error)
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_without_lava_the_module_loads_and_a_run_is_refused_with_the_way_out() -> None:
    answer = in_a_new_python("import sys; sys.modules['lava'] = None").stdout
    assert answer == (
        "sim.on_lava: Lava is not installed: it exists for Python 3.10 only; "
        "way out: `pip install 'ann2loihi[lava]'` there\n"
    )


def test_lava_runs_after_multiprocessing_has_been_used() -> None:
    # Importing Lava then raises "context has already been set" on its own.
    answer = in_a_new_python("import multiprocessing; multiprocessing.Queue()")
    assert (answer.stdout, answer.stderr) == ("15\n", "")
