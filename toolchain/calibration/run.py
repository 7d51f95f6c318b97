"""Layer after layer: weights and biases for the spikes that really arrive.

Layers are calibrated in topological order, each on the spikes of the already calibrated layers below it, which are
kept: no layer is ever computed from the input again.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sim.findings import refuse
from sim.fixedpoint import RegisterOverflow, Registers
from sim.network import INPUT, Network, Output
from sim.progress import track
from toolchain.calibration import fit
from toolchain.calibration.batch import Batch
from toolchain.calibration.rules import RULES, arrived, readout
from toolchain.graph import FloatGraph, FloatLayer
from toolchain.graph.channels import spatial
from toolchain.recipe import Method, Recipe
from toolchain.scales.integers import bias_schedule, su_weights
from toolchain.scales.plan import MARGIN, Scales


def calibrate(
    network: Network, graph: FloatGraph, scales: Scales, x: Tensor, recipe: Recipe
) -> tuple[Network, Registers]:
    """Choose every layer's weights and schedule; returns the network with them and what its registers held, su.

    ``network`` is what ``graph`` has become by ``scales`` (:func:`toolchain.scales.integers.build`), ``x`` are model
    inputs (B, *model_shape). Raises :class:`Refused` where a potential leaves the registers.
    """
    chip = recipe.limits
    registers = Registers(network, chip, "strict")
    payload = torch.from_numpy(network.payload(network.input.encode(x.numpy())))
    if graph.limit is not None:  # a coarse payload reaches beyond it, where the graph does not follow
        bound = spatial((graph.limit * network.input.scale).round().int(), graph.input_shape)
        payload = payload.clamp(-bound, bound)
    outputs = {INPUT: payload}
    units = {name: plan.theta for name, plan in scales.plans.items()}
    units[INPUT] = torch.as_tensor(1 / network.input.scale, dtype=torch.float32)
    layers, output = [], network.output
    walked = zip(network.layers, graph.precise().currents(x), strict=True)
    for layer, (floating, _, current, activation) in track("calibrating", walked, len(network.layers)):
        plan = scales[layer.name]
        if recipe.weights != "nearest":
            nominal = [
                su_weights(edge, units[edge.source], plan.su, graph.shapes[edge.source], layer.shape)
                for edge in floating.edges
            ]
            # Its bias is in the schedule already, and with it the shift that an initial potential may ask for.
            wanted = (current - floating.spread).mul_(spatial(plan.su, layer.shape).float())
            layer = fit.fit(network, layer, nominal, outputs, wanted, chip, keep=recipe.weights == "tuned")
            del wanted
        target = activation * (spatial(plan.su, layer.shape) / (plan.threshold or 1)).float()
        apart = recipe.per_neuron and layer.kind == "spiking"
        if apart:
            layer = replace(layer, bias=layer.per_neuron(layer.bias))
        rule = readout if layer.kind == "readout" and recipe.method != "none" else RULES[_method(recipe, floating)]
        turn = (torch.arange(layer.shape[0]) % floating.copies + 0.5) / floating.copies - 0.5
        beside = spatial(turn, layer.shape).float()
        batch = Batch(network, layer, outputs, target, chip.bias_limit, apart, registers, beside)
        if layer.kind == "readout" and recipe.task == "regression":
            batch, output = _without_constant(batch, recipe.method)
        try:
            layer, outputs[layer.name] = rule(batch)
        except RegisterOverflow as error:
            raise refuse("calibration", str(error), "or give calibration data without outliers") from error
        layers.append(layer)
        for edge in layer.edges:
            if network.last_reader[edge.source] == layer.name:
                outputs.pop(edge.source, None)
    return replace(network, layers=tuple(layers), output=output), registers


def _method(recipe: Recipe, layer: FloatLayer) -> Method:
    """Return the bias rule of a layer.

    A neuron with one step and no copies cannot make up for a spike later. There the least squared error lets those
    fire that are likelier above half a threshold than below, which hardly any neuron is, and so next to nothing is
    said: to fire as often as it should says more.
    """
    return "exact" if recipe.method == "mse" and recipe.timesteps * layer.copies == 1 else recipe.method


def _without_constant(batch: Batch, method: Method) -> tuple[Batch, Output]:
    """Leave to the host what is constant in a regression's outputs, where the bias register cannot hold it.

    It would else take scale from what the weights add, and the more the longer the window. What is constant is the
    bias that makes the mean right, or without calibration the trained one with what fitted weights ask for.
    """
    network, layer, timesteps = batch.network, batch.layer, batch.network.timesteps
    assert network.output is not None
    scale, offset = (torch.from_numpy(values.copy()) for values in (network.output.scale, network.output.offset))
    total = torch.from_numpy(layer.bias.sum(0, dtype=np.int64)).double()
    by_channel = total.reshape(len(scale), -1)
    fitted = by_channel.mean(1)
    own = (by_channel - fitted[:, None]).reshape(total.shape)  # differences over space
    batch = replace(batch, layer=replace(layer, bias=bias_schedule(own / timesteps, timesteps)))
    lacking = offset * scale + fitted if method == "none" else timesteps * batch.mean(batch.target) - arrived(batch)
    # Nor is there a scale for what nothing moves.
    zero = [torch.from_numpy(edge.synapse.weight == 0).reshape(len(scale), -1).all(1) for edge in layer.edges]
    still = torch.stack(zero).all(0)
    left = lacking.where((lacking.abs() > batch.limit / MARGIN) | still, torch.zeros_like(lacking))
    bias = (own.reshape(by_channel.shape) + (lacking - left)[:, None]).reshape(total.shape)
    layer = replace(layer, bias=bias_schedule(bias / timesteps, timesteps))
    target = batch.target - (spatial(left, layer.shape) / timesteps).float()
    return replace(batch, layer=layer, target=target), Output(network.output.scale, (left / scale).numpy())
