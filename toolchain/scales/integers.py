"""Integers from scales: the network as it is before the first spike, with the trained biases as its schedule."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sim.chip import Chip
from sim.network import INPUT, Conv2d, Dense, Edge, Input, Layer, Network, Output, Shape
from toolchain.graph import FloatConv2d, FloatEdge, FloatGraph, FloatLayer
from toolchain.graph.channels import spatial
from toolchain.recipe import Initial, Recipe
from toolchain.scales.plan import Scales, constant, scaled
from toolchain.task import shares_scale

#: Initial potentials: what v0 is, and what is added over the window's T steps, in thresholds. Half a threshold rounds
#: rates instead of flooring them (OPI, Bu et al., AAAI 2022; QCFS, ICLR 2022), all at once or, as the shift of
#: theta / (2T) a step of RTS (Deng & Gu, ICLR 2021), bit by bit. "auto" is what the activation was trained for, else
#: half.
INITIAL = {"zero": (0.0, 0.0), "half": (0.5, 0.0), "shift": (0.0, 0.5)}


def initial_potential(initial: Initial, layer: FloatLayer) -> tuple[Tensor, float]:
    """Say what v0 of a widened layer is, float64 (C,), and what is added over the window beside its bias.

    In thresholds. Copies start one behind the other, so that G of them draw G T + 1 levels of the charge y:
    ``sum over g of floor(y + (g + 1/2) / G) = floor(G y + 1/2)``, Hermite's identity.
    """
    start, shift = INITIAL[(layer.initial or "half") if initial == "auto" else initial]
    turn = torch.arange(layer.shape[0], dtype=torch.float64) % layer.copies
    return (start + turn) / layer.copies, shift / layer.copies


def su_weights(edge: FloatEdge, unit: Tensor, su: Tensor, source: Shape, neurons: Shape) -> Tensor:
    """Weights of one edge in su, ``w * unit * su`` before rounding: float64 in the shape of the map's weight."""
    weight = scaled(edge.map, unit, source)
    per_row = su if len(su) == len(weight) else spatial(su, neurons).expand(neurons).flatten()
    return weight * per_row.reshape(-1, *(1,) * (weight.ndim - 1))


def integer_edge(
    edge: FloatEdge, unit: Tensor, su: Tensor, source: Shape, chip: Chip, neurons: Shape, exponent: int = 0
) -> Edge:
    """Quantise one edge: ``round(w * unit * su / 2**exponent)``, clipped to the chip's weights."""
    integers = (su_weights(edge, unit, su, source, neurons) / 2.0**exponent).round()
    array = integers.clamp(-chip.weight_limit, chip.weight_limit).to(torch.int32).numpy()
    synapse = Conv2d(array, edge.map.geometry) if isinstance(edge.map, FloatConv2d) else Dense(array)
    return Edge(edge.source, synapse, exponent)


def bias_schedule(beta: Tensor, timesteps: int) -> np.ndarray:
    """Spread a constant bias ``beta``, su per step, over T integer steps without drift: int64 (T, *beta.shape)."""
    cumulative = np.rint(np.arange(timesteps + 1).reshape(-1, *(1,) * beta.ndim) * beta.double().numpy())
    return np.diff(cumulative, axis=0).astype(np.int64)


def build(graph: FloatGraph, scales: Scales, recipe: Recipe) -> Network:
    """Build the integer network of ``graph``: weights rounded to the nearest, constant biases, initial potentials.

    What is constant in a regression's outputs is left to the host.
    """
    units = {INPUT: scales.unit} | {name: plan.theta for name, plan in scales.plans.items()}
    layers = []
    for layer in graph.layers:
        plan = scales[layer.name]
        edges = tuple(
            integer_edge(
                edge,
                units[edge.source],
                plan.su,
                graph.shapes[edge.source],
                recipe.limits,
                layer.shape,
                plan.exponent if edge.source == INPUT else 0,
            )
            for edge in layer.edges
        )
        start, shift = initial_potential(recipe.initial, layer)
        trained = layer.bias.double()
        if layer.kind == "readout" and recipe.task == "regression":
            trained = (trained.reshape(layer.shape[0], -1) - constant(layer)[:, None]).reshape(trained.shape)
        beta = trained * (spatial(plan.su, layer.shape) if layer.bias.shape == layer.shape else plan.su)
        # By rounding the current of every edge from the input towards minus infinity, on average.
        lost = sum(edge.source == INPUT for edge in layer.edges) * (1 - 2.0**plan.exponent) / 2
        bias = bias_schedule(beta + shift * plan.threshold / recipe.timesteps + lost, recipe.timesteps)
        v0 = (plan.threshold * start).round().long().numpy()
        layers.append(Layer(layer.name, layer.shape, edges, plan.threshold, v0, bias, layer.kind, layer.holdoff))
    scale = (1 / scales.unit).numpy() if scales.unit.ndim else 1 / float(scales.unit)
    order = None if graph.order is None else graph.order.numpy()
    encoder = Input(graph.input_shape, recipe.input_bits, True, scale, order, graph.given, recipe.input_form)
    return Network(encoder, tuple(layers), recipe.timesteps, recipe.holdoff, _output(graph.layers[-1], scales, recipe))


def _output(readout: FloatLayer, scales: Scales, recipe: Recipe) -> Output:
    """Say what the readout's potentials stand for."""
    su = scales[readout.name].su * recipe.timesteps
    offset = constant(readout) if recipe.task == "regression" else torch.zeros((), dtype=torch.float64)
    return Output((su[0] if shares_scale(recipe.task) else su).numpy(), offset.numpy())
