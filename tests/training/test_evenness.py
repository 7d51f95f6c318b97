"""With enough hold-off nothing is left of unevenness: spikes draw the trained staircases exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sim import reference
from sim.network import INPUT, Network
from toolchain.convert import Conversion, convert
from toolchain.graph.activations import NQ, QCFS


class Residual(nn.Module):
    """Convolutions with a shortcut, biases and a dense layer, all drawn."""

    def __init__(self, levels: int, seed: int, kind: type[QCFS]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.c, self.d = nn.Linear(6 * 36, 12), nn.Linear(12, 4)
        self.activations = nn.ModuleList(kind(levels, float(theta)) for theta in torch.rand(3) / 5 + 0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activations[0](self.a(x))
        y = self.activations[1](self.b(y) + y)
        return self.d(self.activations[2](self.c(y.flatten(1))))


X = torch.rand(24, 2, 6, 6, generator=torch.Generator().manual_seed(9))


def converted(levels: int, holdoff: int, method: Any, **options: Any) -> Conversion:
    model = Residual(levels, levels, NQ).eval()
    given: dict[str, Any] = {"weights": "nearest", "threshold": "given", "initial": "half"} | options
    return convert(model, X, levels, holdoff=holdoff, method=method, **given)


def staircases(network: Network, payload: np.ndarray) -> dict[str, np.ndarray]:
    """By layer: spikes of the whole window, each layer fed at once with all that the layers below it have sent.

    ``clip(floor((v0 + all currents + all biases) / theta), 0, T)``, in integers, with no steps at all.
    """
    sent = {INPUT: payload * network.timesteps}
    for layer in network.layers:
        total = np.zeros((len(payload), *layer.shape), np.int64) + layer.per_neuron(layer.v0 + layer.bias.sum(0))
        for edge in layer.edges:
            source = torch.from_numpy(sent[edge.source]).double()
            weight = torch.from_numpy(edge.synapse.weight.copy()).double()
            if weight.ndim == 4:
                current = nn.functional.conv2d(source, weight, None, *edge.synapse.geometry)
            else:
                current = source.flatten(1) @ weight.T
            total += current.long().numpy().reshape(total.shape)
        if layer.kind == "spiking":
            total = np.clip(total // layer.threshold, 0, network.timesteps)
        sent[layer.name] = total
    return sent


@pytest.mark.parametrize("levels", [1, 2, 4, 8])
@pytest.mark.parametrize("more", [-1, 0])
def test_a_hold_off_of_t_less_one_makes_every_spike_count_the_staircase_of_the_whole_input(
    levels: int, more: int
) -> None:
    network = converted(levels, levels + more, "once").network
    payload = network.input.encode(X[:8])
    trace, wanted = reference.run(network, payload), staircases(network, payload)
    for layer in network.layers[:-1]:
        counts = trace.spikes[layer.name].astype(np.int64).sum(1)
        assert np.array_equal(counts, wanted[layer.name])
        assert len(np.unique(counts)) > levels / 2  # of many heights
    last = trace.logits[:, -1].astype(np.int64).reshape(8, -1)
    own = network.readout
    assert np.array_equal(last, wanted[own.name].reshape(8, -1))


@pytest.mark.parametrize(("holdoff", "method"), [(0, "once"), (3, "none")])
def test_less_hold_off_or_a_bias_spread_over_the_window_leaves_unevenness(holdoff: int, method: str) -> None:
    network = converted(4, holdoff, method).network
    payload = network.input.encode(X[:8])
    trace, wanted = reference.run(network, payload), staircases(network, payload)
    layers = network.layers[:-1]
    assert any(not np.array_equal(trace.spikes[la.name].astype(np.int64).sum(1), wanted[la.name]) for la in layers)


@pytest.mark.parametrize("levels", [2, 4])
def test_in_wide_registers_that_is_what_qcfs_computes_in_eval_mode(levels: int) -> None:
    conversion = converted(levels, levels, "once", chip="wide", input_bits=20)
    trace, exact, values = conversion.run(X), 0, 0
    for layer, _, activation in conversion.graph.walk(X):
        if layer.kind == "spiking":
            assert torch.allclose(conversion.scales[layer.name].theta, torch.as_tensor(layer.upper))  # as trained
            counts = torch.from_numpy(trace.spikes[layer.name].astype(np.int64).sum(1))
            steps = (activation * levels / torch.as_tensor(layer.upper)).round()
            exact, values = exact + int((counts == steps).sum()), values + counts.numel()
    # The rest lies so near a step that what is left of rounding decides.
    assert exact / values > 0.99
    assert (conversion.predict(X) == conversion.graph.logits(X).argmax(1).numpy()).mean() > 0.9
