"""Conversions made by hand, of neurons few enough to follow with a pencil."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sim.network import Dense, Edge, Input, Layer, Network, Output
from toolchain.convert import Conversion
from toolchain.graph import FloatDense, FloatEdge, FloatGraph, FloatLayer
from toolchain.recipe import Recipe
from toolchain.scales.plan import Plan, Scales


class Spiking:
    """One layer of a hand-made conversion: float weights, and integers for them."""

    def __init__(
        self,
        source: str,
        weight: Any,
        integers: Any,
        threshold: int,
        theta: Any,
        bias: Any = None,
        v0: Any = None,
        holdoff: int | None = None,
    ) -> None:
        self.source, self.weight, self.integers, self.threshold = source, weight, integers, threshold
        self.theta, self.bias, self.v0, self.holdoff = torch.tensor(theta), bias, v0, holdoff


def conversion(timesteps: int, inputs: int, recipe: Recipe | None = None, **layers: Spiking) -> Conversion:
    """Chain layers of dense neurons whose payload is the input itself; the readout passes the last one on."""
    floating, integer, plans = [], [], {}
    for name, made in layers.items():
        n = len(made.weight)
        bias = np.zeros((timesteps, n), int) if made.bias is None else np.array(made.bias)
        v0 = np.full(n, made.threshold // 2) if made.v0 is None else np.array(made.v0)
        edge = FloatEdge(made.source, FloatDense(torch.tensor(made.weight)))
        floating.append(FloatLayer(name, (n,), (edge,), torch.zeros(n)))
        edges = (Edge(made.source, Dense(np.array(made.integers))),)
        integer.append(Layer(name, (n,), edges, made.threshold, v0, bias, holdoff=made.holdoff))
        plans[name] = Plan(made.threshold, made.theta, made.threshold / made.theta.double())
    out, zeros = FloatEdge(name, FloatDense(torch.eye(n))), np.zeros((timesteps, n), int)
    floating.append(FloatLayer("out", (n,), (out,), torch.zeros(n), "readout"))
    integer.append(Layer("out", (n,), (Edge(name, Dense(np.eye(n, dtype=int) * 100)),), 0, zeros[0], zeros, "readout"))
    # One spike per step stands for theta, and adds 100: all channels have the same theta here.
    plans["out"] = Plan(0, torch.ones(n), torch.full((n,), 100 / float(made.theta[0]), dtype=torch.float64))
    output = Output(np.array(100 / float(made.theta[0]) * timesteps), np.array(0.0))
    network = Network(Input((inputs,), bits=12), tuple(integer), timesteps, output=output)
    graph = FloatGraph((inputs,), tuple(floating))
    scales = Scales(torch.tensor(1.0), plans)
    return Conversion(network, graph, graph, recipe or Recipe(timesteps=timesteps, holdoff=0), scales, {}, {})
