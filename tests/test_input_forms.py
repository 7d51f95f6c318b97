"""Inputs as payloads, as bias currents, and as spikes of input neurons: the same network on every engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporters import bundle, engines, netx
from exporters.placement import cost, fit
from sim import fast, inputs, reference
from sim.findings import Refused
from sim.network import INPUT, Dense, Edge, Geometry, Input, InputForm, Layer, Network
from sim.stock import legal_period
from sim.trace import first_difference
from toolchain import assessment
from toolchain.convert import Conversion, convert, in_every_form
from toolchain.graph import FloatConv2d, FloatDense, FloatEdge, FloatGraph, FloatLayer
from toolchain.graph.channels import spatial, spread
from toolchain.recipe import Recipe
from toolchain.scales.input_neurons import NAME, with_input_neurons

FORMS: tuple[InputForm, ...] = get_args(InputForm)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))
        self.out = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.out(torch.relu(self.second(torch.relu(self.first(x))) + x).flatten(1))  # type: ignore[no-any-return]


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dense": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), (6,)),
    "convolutional": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, groups=1), nn.ReLU(), nn.Flatten(), nn.Linear(27, 3)),
        (2, 3, 3),
    ),
    "residual": (Residual, (2, 3, 3)),
}


@lru_cache
def converted(name: str, form: InputForm, signed: bool = True) -> tuple[Conversion, Tensor]:
    build, shape = MODELS[name]
    torch.manual_seed(0)
    x = torch.randn(64, *shape) if signed else torch.rand(64, *shape)
    return convert(build().eval(), x, 4, input_form=form), x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_reference_and_fast_agree_and_biases_bring_what_payloads_do(
    name: str, form: InputForm, compared: Callable[[str], None]
) -> None:
    conversion, x = converted(name, form)
    network, payload = conversion.network, conversion.network.input.encode(x[:3].numpy())
    assert network.input.form == form
    expected = reference.run(network, payload)
    assert all(expected.spikes[layer.name].any() for layer in network.layers if layer.kind == "spiking")
    assert first_difference(expected, fast.run(network, payload)) is None
    for engine in (reference.run, fast.run):
        assert first_difference(expected, inputs.deployed(network, payload, engine)) is None
    compared(f"reference = {form} on fast")


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize(
    ("name", "form"),
    [
        # The residual network begins with a convolution, too.
        pytest.param(name, form, marks=[pytest.mark.slow] * (name == "convolutional" and form == "currents"))
        for name in MODELS
        for form in FORMS
    ],
)
def test_every_engine_agrees(name: str, form: InputForm, tmp_path: Path, compared: Callable[[str], None]) -> None:
    """From a directory, as `ann2loihi verify` does."""
    conversion, x = converted(name, form)
    conversion.save(tmp_path / "a")
    loaded = bundle.load(tmp_path / "a")
    assert loaded.network == conversion.network
    # What biases bring is a network, and so a run of Lava, for every sample: two of them in one case are enough.
    samples = 2 if form == "payload" or name == "dense" else 1
    payload = loaded.network.input.encode(x[:samples].numpy())
    found = engines.verify(loaded.network, payload, net_path=loaded.net_path)
    assert found.difference is None
    builds = name != "residual" and form != "currents"
    assert [run.engine for run in found.runs] == [e for e in engines.ENGINES if e != "netx" or builds]
    if not builds:  # our loader, where netx builds nothing
        trace = netx.load(loaded.net_path).run(payload)
        assert first_difference(reference.run(loaded.network, payload), trace) is None
    compared(f"reference = {form} on Lava")


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
@pytest.mark.parametrize("form", ["currents", "spikes"])
def test_a_host_between_the_steps_writes_what_inputs_cause(form: InputForm, tmp_path: Path) -> None:
    from exporters import device

    conversion, x = converted("residual", form)
    payload = conversion.network.input.encode(x[:2].numpy())
    with device.run(conversion.network, payload, "lava-cpu", tmp_path / "run.h5") as record:
        assert device.replay(record).difference is None
    with pytest.raises(Refused, match=f"schedule: inputs come as {form}, whose biases the host writes anyway"):
        device.run(conversion.network, payload, "lava-cpu", tmp_path / "no.h5", schedule="clock")


# Conversion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_input_neurons_are_a_layer_that_all_others_read(name: str, signed: bool) -> None:
    conversion, x = converted(name, "spikes", signed)
    network, plain = conversion.network, converted(name, "payload", signed)[0].network
    first, *others = network.layers
    assert first.name == NAME
    assert first.shape == (network.input.shape[0] * (1 + signed), *network.input.shape[1:])
    assert [layer.name for layer in others] == [layer.name for layer in plain.layers]
    assert not any(edge.source == INPUT for layer in others for edge in layer.edges)
    assert network.phase[first.name] == 1  # no hold-off: the input comes evenly
    assert network.steps == plain.steps + 1
    torch.testing.assert_close(conversion.graph.logits(x), converted(name, "payload", signed)[0].graph.logits(x))
    # Rates are the staircase of T levels that the activations are cut to: x / theta, from above or from below.
    activation = next(a for layer, _, a in conversion.graph.walk(x) if layer.name == NAME)
    wanted = (activation / spatial(conversion.scales[NAME].theta, first.shape)).clamp(0, 1).numpy()
    assert np.abs(conversion.run(x).rates(NAME) - wanted).max() < 0.5 / network.timesteps + 0.03


def test_copies_draw_the_input_in_more_levels() -> None:
    build, shape = MODELS["dense"]
    x = torch.randn(64, *shape)
    one, two = (
        convert(build().eval(), x, 4, input_form="spikes", copies=copies, weights="nearest", method="none")
        for copies in (1, 2)
    )
    assert (one.network[NAME].shape, two.network[NAME].shape) == ((12,), (24,))
    levels = [np.unique(made.run(x).spikes[NAME].sum(1).reshape(64, 12, -1).sum(2)).tolist() for made in (one, two)]
    assert levels == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5, 6, 7, 8]]


def test_what_is_brought_as_biases_fits_thirteen_bits_where_payloads_do_not() -> None:
    for name in MODELS:
        for form in ("currents", "spikes"):
            conversion, x = converted(name, form)  # type: ignore[arg-type]
            assert not inputs.beyond(conversion.network, conversion.network.input.encode(x.numpy()))
    conversion, x = converted("dense", "payload")
    brought = replace(conversion.network, input=replace(conversion.network.input, form="currents"))
    assert inputs.beyond(brought, brought.input.encode(x.numpy()))
    assert not inputs.beyond(conversion.network, conversion.network.input.encode(x.numpy()))


def test_samples_beyond_the_bias_register_are_counted_by_number() -> None:
    """2 su times 600 in each of 3 steps, on 400: 4000 after all of them. 614 would be 4084, 616 4096."""
    zeros = np.zeros((3, 1), int)
    first = Layer("first", (1,), (Edge(INPUT, Dense([[2]])),), 4000, np.array([400]), zeros)
    out = Layer("out", (1,), (Edge("first", Dense([[1]])),), 0, zeros[0], zeros, "readout")
    network = Network(Input((1,), bits=12, form="currents"), (first, out), 3)
    assert inputs.beyond(network, np.array([[600], [616], [614], [-749], [-750]])) == {1, 4}
    evaluated = assessment.evaluate(
        network, np.array([[600.0], [616.0], [614.0]]), np.array([0, 1, 0]), task="binary", overflow="count"
    )
    assert evaluated.overflowed == 1
    assert "1 of 3 samples leave the registers" in evaluated.findings[0]


def test_a_float_graph_with_input_neurons_is_the_same_function() -> None:
    """Groups, a dense layer on space, a shortcut, and a channel that nothing reads."""
    torch.manual_seed(1)
    weight = torch.randn(4, 2, 2, 2)
    weight[2:, 1] = 0  # of channel 3
    dense = torch.randn(3, 36).reshape(3, 4, 9)
    dense[:, 3] = 0
    conv = FloatLayer("c", (4, 2, 2), (FloatEdge(INPUT, FloatConv2d(weight, Geometry(groups=2))),), torch.randn(4))
    edges = (FloatEdge("c", FloatDense(torch.randn(3, 16))), FloatEdge(INPUT, FloatDense(dense.flatten(1))))
    graph = FloatGraph((4, 3, 3), (conv, FloatLayer("out", (3,), edges, torch.randn(3), "readout")))
    x = torch.randn(5, 4, 3, 3)
    for signed, values in ((True, x), (False, x.abs())):
        made = with_input_neurons(graph, signed)
        torch.testing.assert_close(made.logits(values), graph.logits(values))
        fires = made.run(values)[NAME].flatten(2).sum((0, 2)) > 0
        assert fires.tolist() == [True] * (3 * (1 + signed)) + [False] * (1 + signed)
        assert made.steps(4, 2)[0] == graph.steps(4, 2)[0] + 1


def test_a_layer_of_the_same_name_is_left_alone() -> None:
    layer = FloatLayer(NAME, (1,), (FloatEdge(INPUT, FloatDense(torch.ones(1, 1))),), torch.zeros(1), "readout")
    assert [n.name for n in with_input_neurons(FloatGraph((1,), (layer,)), False).layers] == [NAME + "_", NAME]


def test_spikes_are_only_what_spiking_layers_read_alone() -> None:
    conversion, _ = converted("residual", "spikes")
    network = conversion.network
    skip = Edge(INPUT, Dense(np.ones((3, 18), int)))
    readout = replace(network.readout, edges=(*network.readout.edges, skip))
    with pytest.raises(Refused, match="it reads the input, whose form is spikes"):
        replace(network, layers=(*network.layers[:-1], readout))


# What it costs --------------------------------------------------------------------------------------------------------


def test_a_chip_has_no_synapses_for_what_the_host_brings() -> None:
    conversion, x = converted("convolutional", "currents")
    network = conversion.network
    sent = replace(network, input=replace(network.input, form="payload"))
    payload = network.input.encode(x[:4].numpy())
    brought, plain = cost(network, payload), cost(sent, payload)
    assert brought.layers[0].synaptic_events == 0 < plain.layers[0].synaptic_events
    assert brought.layers[1:] == plain.layers[1:]
    assert brought.payloads == 4 * 27  # T biases of each neuron
    assert plain.payloads == 4 * np.count_nonzero(payload) / len(payload)
    assert fit(network).layers[0].synapses < fit(sent).layers[0].synapses


def test_a_report_puts_the_forms_beside_each_other() -> None:
    conversion, x = converted("dense", "currents")
    build, _ = MODELS["dense"]
    torch.manual_seed(0)
    torch.randn(64, 6)
    model = build().eval()
    forms = in_every_form(conversion, conversion.graph, x)
    assert [made.recipe.input_form for made in forms] == list(FORMS)
    assert forms[1] is conversion
    report = assessment.report(conversion, model, x, None, forms=forms)
    assert [row.input for row in report.forms] == list(FORMS)
    assert [row.steps for row in report.forms] == [made.network.steps for made in forms]
    assert report.forms[1].agreement == report.agreement["int8"].value
    assert report.cost is not None
    assert report.forms[1].spikes == report.cost.spikes
    assert len(x[spread(len(x))]) == report.cost.samples
    assert "Inputs come in as biases, which the host writes, of what reads them: 0." in report.input


# Samples at an interval -----------------------------------------------------------------------------------------------


def test_the_recipe_plans_for_a_power_of_two(tmp_path: Path) -> None:
    build, shape = MODELS["residual"]
    x = torch.randn(32, *shape)
    conversion = convert(build().eval(), x, 5, reset_interval="power-of-two")
    network = conversion.network
    # Where paths join, the longer takes two steps more and holds off in both layers; then the last -theta arrives.
    assert (network.period, network.reset_interval) == (5 + 3, 16)
    assert legal_period(network, "stock") == 16
    assert legal_period(network, "native") == 8
    assert legal_period(network, "stock", 9) == 9
    report = assessment.report(conversion, build().eval(), x, None)
    assert "Samples follow each other every 16 steps, which silicon's resets take; 9 suffice." in report.input
    conversion.save(tmp_path / "a")
    assert bundle.load(tmp_path / "a").network == network
    assert cost(network, network.input.encode(x[:2].numpy())).period == 16
    assert "period" not in {issue.rule for issue in bundle.legality(tmp_path / "a")}
    with pytest.raises(Refused, match="reset_interval: 8 steps; give at least 9"):
        replace(network, reset_interval=8)


@pytest.mark.lava
@pytest.mark.filterwarnings("ignore:pandas not found:ImportWarning")
def test_lava_streams_samples_at_the_networks_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    from sim import on_lava
    from sim.on_lava import runtime

    network = replace(converted("dense", "payload")[0].network, reset_interval=16)
    payload = np.array([[9, -9, 3, 4, 5, 6], [1, 2, 3, 4, -5, 6]])
    seen: list[int] = []
    record = runtime._record

    def watched(engine: str, process: Any, ports: Any, lead: int, period: int, samples: int) -> Any:
        seen.append(period)
        return record(engine, process, ports, lead, period, samples)

    monkeypatch.setattr(runtime, "_record", watched)
    assert first_difference(reference.run(network, payload), on_lava.run(network, payload, form="stock")) is None
    assert seen == [16]


def test_recipes_know_the_fields() -> None:
    assert Recipe().as_dict().items() >= {"input_form": "payload", "reset_interval": "shortest"}.items()
    with pytest.raises(Refused, match="input_form: unknown value 'graded'; use one of payload, currents, spikes"):
        Recipe(input_form="graded")  # type: ignore[arg-type]
