"""The pipeline from a torch model to an integer network."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import networks
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from exporters import netx
from sim import chip, fast, reference
from sim.findings import Finding, Refused
from sim.network import INPUT
from sim.stock import peak_outside
from sim.trace import first_difference
from toolchain.calibration import batch, fit
from toolchain.calibration.rules import RULES
from toolchain.convert import Conversion, convert
from toolchain.demo import data, load_model
from toolchain.demo.data import Digits
from toolchain.frontends import import_model
from toolchain.graph.activations import QCFS, TReLU
from toolchain.recipe import Method, WeightRule


@pytest.fixture(scope="module")
def digits() -> Digits:
    return data.load()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return load_model()


@pytest.fixture(scope="module")
def conversion(digits: Digits, trained: nn.Module) -> Conversion:
    return convert(trained, digits.calibration_x, 8)


def test_a_converted_network_is_deployable_and_agrees_with_the_model(
    conversion: Conversion, digits: Digits, trained: nn.Module
) -> None:
    assert chip.check(conversion.network) == []
    with torch.no_grad():
        expected = trained(digits.test_x).argmax(1).numpy()
    assert (conversion.predict(digits.test_x) == expected).mean() > 0.98
    assert [layer.kind for layer in conversion.network.layers] == ["spiking", "spiking", "spiking", "readout"]


def test_the_converted_network_runs_the_same_on_the_reference(conversion: Conversion, digits: Digits) -> None:
    payload = conversion.network.input.encode(digits.test_x[:2])
    assert first_difference(reference.run(conversion.network, payload), conversion.run(digits.test_x[:2])) is None


def test_converting_twice_gives_equal_networks_and_leaves_the_model_alone(digits: Digits, trained: nn.Module) -> None:
    before, mode = copy.deepcopy(trained.state_dict()), trained.training
    first, second = (convert(trained, digits.calibration_x[:64], 4, method="ftbc") for _ in range(2))
    assert first.network == second.network
    assert trained.training == mode
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())


def test_wide_registers_follow_the_float_graph_where_one_layer_spikes(digits: Digits) -> None:
    # One spiking layer and many steps: what remains is quantised rates, finer with every step.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    x = digits.calibration_x[:64]
    errors = []
    for timesteps in (8, 64):
        wide = convert(model, x, timesteps, chip="wide", method="none", threshold="max")
        logits = wide.run(x).logits[:, -1] / float(wide.scales["3"].su[0]) / timesteps
        errors.append(np.abs(logits - wide.graph.logits(x).numpy()).mean())
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("method", ["ftbc", "exact"])
def test_calibration_brings_every_layers_mean_output_nearer_to_the_ann(
    method: str, digits: Digits, trained: nn.Module
) -> None:
    """Per channel and step, on the calibration data and on the spikes that the calibrated layers below really send."""
    x = digits.calibration_x
    conversion = convert(trained, x, 8, method=method)
    plain = convert(trained, x, 8, method="none").network
    network, values = conversion.network, conversion.graph.run(x)
    trace = conversion.run(x)
    outputs = {INPUT: torch.from_numpy(network.input.encode(x))} | {
        name: torch.from_numpy(spikes[:, -8:]).transpose(0, 1) for name, spikes in trace.spikes.items()
    }
    for layer in network.layers[:-1]:
        rho = (values[layer.name] / conversion.scales[layer.name].theta.reshape(-1, 1, 1)).transpose(0, 1)
        rho = rho.flatten(1).double().clamp(0, 1).mean(1)
        current = [[step] for step in fast.Currents(network, layer)(outputs)]
        miss = []
        for schedule in (plain[layer.name], layer):
            spikes, _ = fast.fire(network, schedule, current)
            mean = spikes[-8:].transpose(1, 2).flatten(2).double().mean(2)  # (T, C)
            miss.append((mean - rho).abs())
        before, after = miss
        assert after.mean() < before.mean() / (2 if method == "exact" else 1.2)
        if method == "exact":  # nine in ten at least: where potentials are equal, no bias may meet the count
            assert (after <= before + 1e-12).float().mean() > 0.9


def test_exact_meets_the_mean_to_within_one_sample_where_no_two_potentials_are_equal(
    digits: Digits, trained: nn.Module
) -> None:
    """Wide registers make ties of potentials rare: silent background pixels are the only ones left."""
    x = digits.calibration_x
    conversion = convert(trained, x, 4, chip="wide", method="exact")
    network, values = conversion.network, conversion.graph.run(x)
    trace = conversion.run(x)
    met = []
    for layer in network.layers[1:-1]:
        wanted = (values[layer.name] / conversion.scales[layer.name].theta.reshape(-1, 1, 1)).transpose(0, 1)
        wanted = wanted.flatten(1).double().clamp(0, 1).mean(1) * (len(x) * layer.size // layer.shape[0])
        fired = torch.from_numpy(trace.spikes[layer.name][:, -4:]).transpose(0, 2).flatten(2).double().sum(2).T
        met.append(((fired - wanted).abs() <= 1).double().mean().item())
    assert min(met) > 0.9


def test_with_one_step_and_no_copies_the_default_keeps_every_rate(digits: Digits, trained: nn.Module) -> None:
    x = digits.calibration_x

    def schedules(method: Method, copies: str = "") -> list[list[list[int]]]:
        network = convert(trained, x, 1, method=method, layer_copies=copies).network
        return [layer.bias.tolist() for layer in network.layers]

    assert schedules("mse") == schedules("exact")
    # Two copies draw two levels, and each has a target of its own.
    assert schedules("mse", "conv1=2")[0] != schedules("exact", "conv1=2")[0]


def test_what_python_shows_of_the_results_is_no_wall_of_numbers(digits: Digits, trained: nn.Module) -> None:
    x = digits.calibration_x[:32]
    conversion = convert(trained, x, 2)
    verification = conversion.verify(x[:2], ["reference", "fast"])
    for shown in (conversion, conversion.graph, conversion.scales, conversion.run(x), verification):
        assert len(repr(shown)) < 2500
    assert "threshold=" in repr(conversion)


@pytest.mark.parametrize("method", RULES)
def test_peaks_are_what_the_calibration_data_reached(method: str, digits: Digits, trained: nn.Module) -> None:
    x = digits.calibration_x[:96]
    conversion = convert(trained, x, 4, method=method)
    trace = conversion.run(x)
    assert trace.peak == conversion.peak
    assert trace.overflows == 0
    spiking = [layer for layer in conversion.network.layers if layer.kind == "spiking"]
    outside = {n.name: peak_outside(conversion.network, n, trace.potentials[n.name]) for n in spiking}
    assert outside == conversion.outside
    assert max(outside.values()) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps: 0 is out of range; give 1 to 4096"),
        ({"holdoff": -1}, "holdoff: -1 is out of range; give 0 to 4096"),
        (
            {"method": "magic"},
            "method: unknown value 'magic'; use one of none, static, potential, once",
        ),
        ({"threshold": "median"}, "threshold: unknown value 'median'; use one of given, max, percentile, mse"),
        ({"initial": "full"}, "initial: unknown value 'full'; use one of auto, zero, half, shift"),
        ({"weights": "float"}, "weights: unknown value 'float'; use one of nearest, fitted, tuned"),
        ({"updates": 0}, "updates: 0 is out of range; give 1 to 10000000"),
        ({"chip": "loihi3"}, "chip: unknown value 'loihi3'; use one of loihi2, netx, wide"),
        ({"timesteps": "8"}, "timesteps: '8' is no integer; give a whole number"),
        ({"timesteps": 2.5}, "timesteps: 2.5 is no integer; give a whole number"),
        ({"holdoff": True}, "holdoff: True is no integer; give 0 to 4096"),
        ({"per_neuron": "no"}, "per_neuron: 'no' is neither True nor False; give one of them"),
        ({"method": None}, "method: unknown value None; use one of none, static, potential, once"),
        ({"recipe": ["ftbc"]}, r"recipe: \['ftbc'\] given; give a str or a Recipe"),
        ({"layer_copies": "a"}, "layer_copies: 'a' given; give LAYER=G,LAYER=G"),
        (
            {"layer_copies": "a=0"},
            "layer_copies: 'a=0' given; give LAYER=G,LAYER=G with each layer once and G of 1 to 64",
        ),
        ({"layer_copies": "a=2,b=1.5"}, "layer_copies: 'a=2,b=1.5' given"),
        ({"layer_copies": "a=2,a=3"}, "layer_copies: 'a=2,a=3' given"),
        ({"layer_copies": "=2"}, "layer_copies: '=2' given"),
        ({"layer_copies": {"a": 2}}, "layer_copies: {'a': 2} given"),
        ({"layer_copies": None}, "layer_copies: None given"),
        ({"input_bits": 1}, "input_bits: 1 is out of range; give 2 to 24"),
    ],
)
def test_recipes_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        convert(nn.Linear(2, 2), torch.zeros(1, 2), **options)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(Refused) as caught:
        convert(nn.Linear(2, 2), torch.zeros(1, 2), timesteps=0, holdoff=-1, method="magic")
    assert len(caught.value.findings) == 3


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.zeros(4, 3, 8, 8), r"shape"),
        (torch.zeros(0, 1, 8, 8), r"calibration: empty"),
        (torch.full((4, 1, 8, 8), float("nan")), r"calibration: sample 0 holds NaN or infinity"),
        (torch.zeros(8, 8), r"shape"),
    ],
)
def test_calibration_data_that_does_not_fit_is_refused(
    trained: nn.Module, calibration: torch.Tensor, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        convert(trained, calibration)


def test_what_the_chip_cannot_hold_is_refused_after_all(
    small: tuple[nn.Module, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        chip, "check", lambda network, limits: [Finding("a", f"{limits.name} is too small", "take another")]
    )
    with pytest.raises(Refused, match="a: Loihi 2 is too small"):
        convert(*small, 2, weights="nearest")


def test_weights_that_are_not_finite_are_refused_by_name(trained: nn.Module, digits: Digits) -> None:
    broken = copy.deepcopy(trained)
    with torch.no_grad():
        broken.conv2.weight[0, 0, 0, 0] = float("inf")  # type: ignore[union-attr, index]
    with pytest.raises(Refused, match=r"conv2\.weight"):
        convert(broken, digits.calibration_x)


def test_an_mlp_on_flat_inputs_converts() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.randn(200, 6)
    conversion = convert(model, x, 32)
    with torch.no_grad():
        agreement = (conversion.predict(x) == model(x).argmax(1).numpy()).mean()
    assert agreement > 0.85


# ---- results that may not depend on how they are computed ------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[nn.Module, torch.Tensor]:
    x = torch.randn(48, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    return networks.trained(networks.residual, (2, 4, 4)), x


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("chunk", [1, 300])
def test_how_many_potentials_are_computed_at_a_time_changes_nothing(
    method: str, chunk: int, small: tuple[nn.Module, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = small
    expected = convert(model, x, 3, method=method)
    monkeypatch.setattr(batch, "CHUNK", chunk)
    monkeypatch.setattr(fit, "CHUNK", chunk)
    found = convert(model, x, 3, method=method)
    assert (found.network, found.peak) == (expected.network, expected.peak)


def test_a_processor_that_adds_in_another_order_makes_the_same_network(
    digits: Digits, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where float32 sums decided, a quarter of these weights came out different."""
    graph, x = import_model(trained, (1, 8, 8)), digits.calibration_x[:128]
    expected = convert(graph, x, 4).network
    linear, conv2d = functional.linear, functional.conv2d

    def in_halves(f: Any, x: torch.Tensor, weight: torch.Tensor, *options: Any) -> torch.Tensor:
        half = weight.shape[1] // 2
        return f(x[:, half:], weight[:, half:], *options) + f(x[:, :half], weight[:, :half], *options)

    monkeypatch.setattr(functional, "linear", lambda *a: in_halves(linear, *a))
    monkeypatch.setattr(functional, "conv2d", lambda *a: (in_halves if a[1].shape[1] > 1 else call)(conv2d, *a))
    assert not torch.equal(graph.logits(x), graph.precise().logits(x))
    assert convert(graph, x, 4).network == expected


def call(f: Any, *arguments: Any) -> Any:
    return f(*arguments)


@pytest.mark.parametrize("batch", [1, 7, 48])
def test_a_network_runs_the_same_in_batches_of_any_size(batch: int, small: tuple[nn.Module, torch.Tensor]) -> None:
    model, x = small
    network = convert(model, x, 3).network
    payload = network.input.encode(x)
    expected, found = fast.run(network, payload), fast.run(network, payload, batch=batch)
    assert first_difference(expected, found) is None
    assert found.peak == expected.peak


@pytest.mark.parametrize("method", RULES)
def test_whatever_the_rule_the_readout_is_right_on_average_after_every_step(
    method: str, small: tuple[nn.Module, torch.Tensor]
) -> None:
    model, x = small
    conversion = convert(model, x, 4, method=method, weights="nearest")
    su = next(reversed(conversion.plans.values())).su.numpy()
    steps = np.arange(1, 5)[:, None]
    wanted = steps * conversion.graph.logits(x).double().mean(0).numpy() * su
    apart = np.abs(conversion.run(x).logits.mean(0) - wanted)
    # Each row of the schedule is the nearest integer. Without a rule the trained bias stays.
    assert (apart.max() < 0.51) == (method != "none")


# ---- options ---------------------------------------------------------------------------------------------------------


def test_the_defaults_are_fitted_weights_and_mse(small: tuple[nn.Module, torch.Tensor]) -> None:
    model, x = small
    spelt_out = {"method": "mse", "weights": "fitted", "per_neuron": False, "threshold": "mse", "initial": "auto"}
    assert convert(model, x, 3).network == convert(model, x, 3, holdoff=1, chip="loihi2", **spelt_out).network


def running_error(conversion: Conversion, x: torch.Tensor, name: str) -> float:
    """Mean over steps and neurons of ``(S[t] - (t + 1) * a)^2`` in thresholds: what the rule mse makes small."""
    layer = conversion.network[name]
    theta = conversion.scales[name].theta.reshape(-1, *(1,) * (len(layer.shape) - 1))
    a = (conversion.graph.run(x)[name] / theta).clamp(0, 1).numpy()[:, None]
    timesteps = conversion.network.timesteps
    sums = conversion.run(x).spikes[name][:, -timesteps:].cumsum(1)
    steps = np.arange(1, timesteps + 1).reshape(1, -1, *(1,) * len(layer.shape))
    return float(((sums - steps * a) ** 2).mean())


def test_a_bias_for_every_neuron_brings_every_layer_nearer_to_its_activations(
    small: tuple[nn.Module, torch.Tensor], tmp_path: Path
) -> None:
    model, x = small
    shared, own = (convert(model, x, 4, per_neuron=per_neuron, weights="nearest") for per_neuron in (False, True))
    for layer in own.network.layers:
        if layer.kind == "spiking":
            assert layer.bias.shape == (4, *layer.shape)
            assert running_error(own, x, layer.name) < running_error(shared, x, layer.name)
        else:  # the logits of all classes must stay comparable
            assert layer.bias.shape == (4, *layer.shape[:1])
    assert chip.check(own.network) == []
    payload = own.network.input.encode(x[:3])
    assert first_difference(reference.run(own.network, payload), fast.run(own.network, payload)) is None
    netx.write_graph(own.network, tmp_path / "own.net")
    assert netx.read(tmp_path / "own.net") == own.network


def test_fitted_weights_bring_the_logits_nearer_to_the_models(digits: Digits, trained: nn.Module) -> None:
    x = digits.calibration_x
    with torch.no_grad():
        expected = trained(digits.test_x).numpy()
    error = []
    for weights in ("nearest", "fitted"):
        conversion = convert(trained, x, 4, weights=weights)
        assert chip.check(conversion.network) == []
        logits = conversion.run(digits.test_x, record=False).logits[:, -1]
        error.append(float(((logits / float(conversion.scales["fc"].su[0]) / 4 - expected) ** 2).mean()))
    assert error[1] < error[0]


@pytest.mark.parametrize("weights", get_args(WeightRule))
def test_the_shift_of_rts_survives_the_fitting_of_weights(weights: str, small: tuple[nn.Module, torch.Tensor]) -> None:
    """Half a threshold over the window, beside the bias that the weights ask for."""
    model, x = small
    rules = {"method": "none", "weights": weights, "updates": 4}
    zero, shift = (convert(model, x, 8, initial=initial, **rules) for initial in ("zero", "shift"))
    stem = shift.network.layers[0]
    # Both hear the same payload and have the same weights: what differs is the shift.
    assert stem.edges == zero.network.layers[0].edges
    difference = stem.bias.sum(0) - zero.network.layers[0].bias.sum(0)
    assert np.abs(difference - stem.threshold / 2).max() <= 1


# ---- activations with a threshold of their own -----------------------------------------------------------------------


def test_a_given_threshold_is_refused_for_a_relu_in_one_line(small: tuple[nn.Module, torch.Tensor]) -> None:
    model, x = small
    with pytest.raises(Refused) as caught:
        convert(model, x, threshold="given")
    assert str(caught.value) == "stem.0: its ReLU has no threshold of its own; choose another threshold rule"


@pytest.mark.parametrize(
    ("activation", "theta", "v0"), [(nn.ReLU6(), 6.0, 0.5), (QCFS(4, 2.5), 2.5, 0.5), (TReLU(1.5), 1.5, 0.0)]
)
def test_a_given_threshold_is_that_of_the_activation(activation: nn.Module, theta: float, v0: float) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3)).eval(), torch.randn(64, 6)
    conversion = convert(model, x, 4, threshold="given", chip="wide")
    assert conversion.scales["0"].theta.tolist() == [theta] * 8
    layer = conversion.network.layers[0]
    assert layer.v0.tolist() == [round(layer.threshold * v0)] * 8


@pytest.mark.parametrize("bias", [False, True])
def test_qcfs_at_as_many_steps_as_levels_is_computed_without_any_error(bias: bool) -> None:
    """The theorem of QCFS: from half a threshold, and with all of the input there, T = L steps are the activation.

    Hold-off T - 1 makes the whole input wait for the first step. A bias comes bit by bit all the same, and may then
    let a neuron fire too early.
    """
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(2, 6, 3, padding=1, bias=bias), QCFS(4, 0.8), nn.Conv2d(6, 6, 3, bias=bias), QCFS(4, 0.4)),
        *(nn.Flatten(), nn.Linear(24, 12, bias=bias), QCFS(4, 0.2), nn.Linear(12, 3, bias=bias)),
    )
    x = torch.randint(-127, 128, (200, 2, 4, 4)) / 127  # what a payload of 8 bits holds
    options = {"holdoff": 3, "weights": "nearest", "method": "none", "chip": "wide", "threshold": "given"}
    conversion = convert(model.eval(), x, 4, **options)
    trace, values = conversion.run(x), conversion.graph.run(x)
    for name in ("0", "2", "5"):
        counts = trace.spikes[name][:, -4:].sum(1, dtype=np.int64)
        wanted = (values[name] / conversion.scales[name].theta[0] * 4).round().long().numpy()
        assert len(np.unique(wanted)) == 5
        if bias:
            assert (counts == wanted).mean() > 0.8
        else:
            assert np.array_equal(counts, wanted)
