"""Layer after layer: weights and biases for the spikes that really arrive.

Layers are calibrated in topological order, each on the spikes of the already calibrated layers below it, which are
kept: no layer is ever computed from the input again.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from sim.findings import refuse
from sim.fixedpoint import RegisterOverflow, Registers
from sim.network import INPUT, Network
from sim.progress import track
from toolchain.calibration import fit
from toolchain.calibration.batch import Batch
from toolchain.calibration.rules import RULES, readout
from toolchain.graph import FloatGraph
from toolchain.graph.channels import spatial
from toolchain.recipe import Recipe
from toolchain.scales.integers import su_weights
from toolchain.scales.plan import Scales


def calibrate(
    network: Network, graph: FloatGraph, scales: Scales, x: Tensor, recipe: Recipe
) -> tuple[Network, dict[str, int]]:
    """Choose every layer's weights and schedule; returns the network with them and each layer's peak magnitude, su.

    ``network`` is what ``graph`` has become by ``scales`` (:func:`toolchain.scales.integers.build`), ``x`` are model
    inputs (B, *model_shape). Raises :class:`Refused` where a potential leaves the registers.
    """
    chip = recipe.limits
    registers = Registers(network, chip, "strict")
    outputs = {INPUT: torch.from_numpy(network.payload(network.input.encode(x.numpy())))}
    units = {name: plan.theta for name, plan in scales.plans.items()}
    units[INPUT] = torch.as_tensor(1 / network.input.scale, dtype=torch.float32)
    layers = []
    walked = zip(network.layers, graph.walk(x), strict=True)
    for layer, (floating, values, activation) in track("calibrating", walked, len(network.layers)):
        plan = scales[layer.name]
        if recipe.weights != "nearest":
            nominal = [
                su_weights(edge, units[edge.source], plan.su, graph.shapes[edge.source], layer.shape)
                for edge in floating.edges
            ]
            # Its bias is in the schedule already, and with it the shift that an initial potential may ask for.
            unbiased = replace(floating, bias=torch.zeros_like(floating.bias))
            wanted = graph.current(unbiased, values) * spatial(plan.su, layer.shape).float()
            layer = fit.fit(network, layer, nominal, outputs, wanted, chip, keep=recipe.weights == "tuned")
            del wanted
        target = activation * (spatial(plan.su, layer.shape) / (plan.threshold or 1)).float()
        apart = recipe.per_neuron and layer.kind == "spiking"
        if apart:
            layer = replace(layer, bias=layer.per_neuron(layer.bias))
        rule = readout if layer.kind == "readout" and recipe.method != "none" else RULES[recipe.method]
        batch = Batch(network, layer, outputs, target, chip.bias_limit, apart, registers)
        try:
            layer, outputs[layer.name] = rule(batch)
        except RegisterOverflow as error:
            raise refuse("calibration", str(error), "or give calibration data without outliers") from error
        layers.append(layer)
        for edge in layer.edges:
            if network.last_reader[edge.source] == layer.name:
                outputs.pop(edge.source, None)
    return replace(network, layers=tuple(layers)), registers.peak
