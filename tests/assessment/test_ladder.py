"""The rungs between the trained network and the spiking one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from handmade import Spiking, conversion
from torch import nn

from sim.findings import Refused
from sim.network import INPUT, Dense, Edge
from toolchain import assessment
from toolchain.graph import FloatDense, FloatEdge, FloatGraph


def test_the_staircase_of_the_float_graph_is_that_of_t_spikes_up_to_every_channels_threshold() -> None:
    """Against a formula that counts spikes one by one; all numbers are exact in binary."""
    first = Spiking(INPUT, [[1.0, 0.5], [-0.25, 2.0]], [[1, 1], [1, 1]], 8, [8.0, 4.0])
    second = Spiking("a", [[1.0, -0.5], [0.5, 1.0]], [[1, 1], [1, 1]], 8, [4.0, 4.0])
    made = conversion(4, 2, a=first, b=second)

    def drawn(current: float, theta: float) -> float:
        return sum(current >= (k - 0.5) * theta / 4 for k in (1, 2, 3, 4)) * theta / 4

    x = torch.tensor([[3.0, 1.0], [7.0, -6.0], [9.0, 9.0], [0.5, 0.25], [-4.0, 2.0], [1.0, 0.0]])
    for sample, logits in zip(x.tolist(), assessment.staircase_logits(made, x, batch=4), strict=True):
        for layer in (first, second):
            currents = [sum(w * v for w, v in zip(row, sample, strict=True)) for row in layer.weight]
            sample = [drawn(c, float(t)) for c, t in zip(currents, layer.theta, strict=True)]
        assert logits.tolist() == sample


def test_a_skip_edge_reads_the_same_staircase() -> None:
    made = conversion(1, 1, a=Spiking(INPUT, [[1.0]], [[1]], 8, [8.0]), b=Spiking("a", [[1.0]], [[1]], 8, [8.0]))
    layers = list(made.graph.layers)
    layers[-1] = replace(layers[-1], edges=(*layers[-1].edges, FloatEdge("a", FloatDense(torch.eye(1)))))
    out = made.network.layers[-1]
    network = replace(
        made.network, layers=(*made.network.layers[:-1], replace(out, edges=(*out.edges, Edge("a", Dense([[1]])))))
    )
    made = replace(made, source=FloatGraph((1,), tuple(layers)), network=network)
    assert assessment.staircase_logits(made, torch.tensor([[3.0], [5.0]])).tolist() == [[0], [16]]


def test_the_trained_network_runs_in_eval_mode_and_every_module_gets_its_own_mode_back() -> None:
    """A frozen batch normalisation in a model that is being trained stays frozen."""
    frozen, dropout = nn.BatchNorm1d(2), nn.Dropout(0.5)
    model = nn.Sequential(nn.Linear(2, 2), frozen, dropout)
    model.train()
    frozen.eval()
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    logits = assessment.model_logits(model, x)
    assert [module.training for module in (model, frozen, dropout)] == [True, False, True]
    assert torch.equal(logits, frozen(model[0](x)).detach())  # nothing is dropped


def test_a_model_that_changes_its_input_in_place_leaves_the_users_data() -> None:
    class Shifting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sub_(1)

    x = torch.ones(3, 2)
    assert not assessment.model_logits(Shifting(), x).any()
    assert torch.equal(x, torch.ones(3, 2))


def test_every_module_gets_its_mode_back_when_the_model_fails() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(3))
    model[1].eval()
    with pytest.raises(Refused, match="running_mean should contain 2 elements not 3"):
        assessment.model_logits(model, torch.zeros(2, 2))
    assert [module.training for module in model.modules()] == [True, True, False]
