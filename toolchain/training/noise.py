"""How far the spikes of a converted network are from the activations that they stand for, layer by layer.

It is the noise of noisy quantised activation: Huang et al., "Converting high-performance and low-latency SNNs through
explicit modelling of residual error in ANNs", section 5.2. What is compared is the integer network that would be
deployed, on the engine that users run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sim import fast
from sim.arguments import checked
from sim.fixedpoint import Registers
from sim.network import INPUT
from sim.progress import counting, reporting
from toolchain.assessment.score import accuracy
from toolchain.convert import Conversion, convert
from toolchain.frontends.plain import copied, unwrapped
from toolchain.graph.activations import NQ
from toolchain.graph.channels import spatial
from toolchain.inputs import as_inputs
from toolchain.recipe import Recipe

BATCH = 32  #: samples whose spikes are kept at a time


@dataclass(frozen=True)
class Residual:
    """What is left between the activations of a layer and the average output of its neurons, over samples and space."""

    layer: str
    activation: str  #: qualified name of the module that applies the activation
    mean: float
    std: float


@dataclass(frozen=True)
class Spiking:
    """A network, and what its conversion does, on the same samples."""

    ann: float  #: accuracy in %, or R² of a regression
    snn: float  #: the same, of the converted network after its window
    samples: int
    residuals: tuple[Residual, ...]  #: of the spiking layers, in the order of the network


@checked
def measure(model: nn.Module, x: Any, y: Any, calibration: Any, recipe: Recipe) -> Spiking:
    """Convert a model by a recipe, and compare it with its conversion on inputs ``x`` (B, ...) with labels ``y``.

    The model is left as it is. Samples that leave the registers count as they come. Raises
    :class:`sim.findings.Refused` where the model cannot be converted.
    """
    with reporting(None):
        conversion = convert(as_cpu(model), calibration, recipe=recipe, labels=None)
    return compare(conversion, as_inputs(x, conversion.network.input.model_shape, "x"), y)


@torch.no_grad()
def compare(conversion: Conversion, x: Tensor, y: Any) -> Spiking:
    """Compare the activations of a conversion's graph with the spikes of its network; see :func:`measure`."""
    network, graph = conversion.network, conversion.graph
    registers = Registers(network, conversion.recipe.limits, "count")
    arriving = {layer.name: fast.Currents(network, layer) for layer in network.layers}
    sums = {layer.name: torch.zeros(3, dtype=torch.float64) for layer in graph.layers if layer.kind == "spiking"}
    spiking, trained = [], []
    with counting("comparing with spikes", len(x)) as advance:
        for part in x.split(BATCH):
            outputs = {INPUT: torch.from_numpy(network.input.encode(part.numpy()))}
            for layer, (floating, _, activation) in zip(network.layers, graph.walk(part), strict=True):
                current = ([step] for step in arriving[layer.name](outputs))
                spikes, v = fast.fire(network, layer, current, registers, record=False)
                if layer.kind == "readout":
                    spiking.append(v[-1])
                    trained.append(activation)
                    continue
                outputs[layer.name] = spikes[-network.timesteps :]
                unit = spatial(conversion.scales[layer.name].theta, layer.shape).float() / network.timesteps
                error = (activation - outputs[layer.name].sum(0, dtype=torch.float32) * unit).double()
                sums[floating.name] += torch.stack([torch.tensor(error.numel()), error.sum(), error.square().sum()])
            advance(len(part))
    decoded = network.decode(torch.cat(spiking).numpy())
    ann, snn = (accuracy(values, y, conversion.task).value for values in (torch.cat(trained), decoded))
    return Spiking(ann, snn, len(x), tuple(_residual(layer, sums[layer.name]) for layer in graph.layers[:-1]))


def _residual(layer: Any, sums: Tensor) -> Residual:
    n, total, square = sums.tolist()
    mean = total / n
    return Residual(layer.name, layer.activation, mean, max(0.0, square / n - mean**2) ** 0.5)


@checked
def induce(model: nn.Module, found: Spiking) -> dict[str, float]:
    """Set the noise of every NQ module to the standard deviation measured there; returns it by path.

    To be called after each epoch, in a training loop of one's own as well::

        found = training.measure(model, x, y, calibration, Recipe(timesteps=4, ...))
        training.induce(model, found)

    Where a module stands for several layers, its noise is that of all of them together.
    """
    noise = {}
    for path, module in unwrapped(model).named_modules():
        squares = [residual.std**2 for residual in found.residuals if residual.activation == path]
        if type(module) is NQ and squares:
            noise[path] = (sum(squares) / len(squares)) ** 0.5
            module.noise.fill_(noise[path])
    return noise


def as_cpu(model: nn.Module) -> nn.Module:
    """Copy a model, without wrappers, to where conversion computes, in eval mode."""
    here: Any = copied(unwrapped(model))
    here.to("cpu", memory_format=torch.contiguous_format).eval()
    return here
