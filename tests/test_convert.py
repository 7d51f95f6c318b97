"""The pipeline from a torch model to an integer network."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sim import chip, fast, reference
from sim.findings import Refused
from sim.network import INPUT
from sim.trace import first_difference
from toolchain.convert import Conversion, convert
from toolchain.demo import data, load_model
from toolchain.demo.data import Digits


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
        logits = wide.run(x).logits[:, -1] / float(wide.plans["3"].su[0]) / timesteps
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
        rho = (values[layer.name] / conversion.plans[layer.name].theta.reshape(-1, 1, 1)).transpose(0, 1)
        rho = rho.flatten(1).double().mean(1).clamp(0, 1)
        current = fast.Currents(network, layer)(outputs)
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
    conversion = convert(trained, x, 4, chip="wide")
    network, values = conversion.network, conversion.graph.run(x)
    trace = conversion.run(x)
    met = []
    for layer in network.layers[1:-1]:
        wanted = (values[layer.name] / conversion.plans[layer.name].theta.reshape(-1, 1, 1)).transpose(0, 1)
        wanted = wanted.flatten(1).double().mean(1).clamp(0, 1) * (len(x) * layer.size // layer.shape[0])
        fired = torch.from_numpy(trace.spikes[layer.name][:, -4:]).transpose(0, 2).flatten(2).double().sum(2).T
        met.append(((fired - wanted).abs() <= 1).double().mean().item())
    assert min(met) > 0.9


def test_peaks_are_what_the_calibration_data_reached(conversion: Conversion, digits: Digits) -> None:
    trace = conversion.run(digits.calibration_x)
    assert trace.peak == conversion.peak
    assert trace.overflows == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"timesteps": 0}, "timesteps: T = 0; give at least 1 step"),
        ({"holdoff": -1}, "holdoff: K = -1; give 0 or more steps"),
        ({"method": "magic"}, "method: unknown value 'magic'; use one of none, ftbc, exact"),
        ({"threshold": "median"}, "threshold: unknown value 'median'; use one of max, percentile, mse"),
        ({"initial": "full"}, "initial: unknown value 'full'; use one of zero, half"),
        ({"chip": "loihi3"}, "chip: unknown value 'loihi3'; use one of loihi2, wide"),
        ({"input_bits": 1}, "input_bits: 1 bits; give 2 to 24"),
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
