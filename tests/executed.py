"""NIR graphs executed by nirtorch: its graph and synapses, and neurons as NIR's equations say them, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import nirtorch
import numpy as np
import torch
from torch import Tensor, nn

from exporters.nir import answer, steps
from exporters.nir.graph import depths
from sim.network import Network
from sim.trace import Trace


class Integrator(nn.Module):
    """``dv/dt = r I``, with r = 1 and a step of 1."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        v = x if state is None else state + x
        return v, v


class Delay(nn.Module):
    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        first, *others = state or [torch.zeros_like(x)] * self.steps
        return first, [*others, x]


class Constant(nn.Module):
    """``v > threshold``, or ``scale * x``."""

    def __init__(self, values: np.ndarray, compares: bool) -> None:
        super().__init__()
        self.compares = compares
        self.register_buffer("values", torch.from_numpy(values))

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.values).to(x) if self.compares else x * self.values


def affine(node: Any) -> nn.Module:
    """nirtorch 2.6 has a map for this node, which loses the bias."""
    module = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    module.weight.data, module.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return module


NODES = {
    nir.I: lambda node: Integrator(),
    nir.Threshold: lambda node: Constant(node.threshold, True),
    nir.Scale: lambda node: Constant(node.scale, False),
    nir.Delay: lambda node: Delay(int(node.delay.flat[0])),
    nir.Affine: affine,
}


@torch.no_grad()
def executed(path: Path, network: Network, payload: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Run one payload (*input.shape): spikes (P, *shape) by the name of their node, and the logits."""
    module = nirtorch.nir_to_torch(nir.read(path), NODES)
    spikes: dict[str, list[np.ndarray]] = {}
    for name, part in module.named_modules():
        if name.startswith("l") and name.endswith("_spikes"):
            spikes[name] = []
            part.register_forward_hook(lambda _, given, result, kept=spikes[name]: kept.append(result.numpy()))
    outputs, state, shown = [], None, torch.from_numpy(payload.astype(np.float32))
    for step in range(steps(network)):
        output, state = module(shown * (step < network.timesteps), state)
        outputs.append(output)
    return {name: np.stack(rows) for name, rows in sorted(spikes.items())}, outputs[answer(network)].numpy()


def agrees(path: Path, trace: Trace, payload: np.ndarray) -> int:
    """Compare every sample's spikes, at every step and outside the windows too, and logits; returns the spikes."""
    network, depth, total = trace.network, depths(trace.network), 0
    spiking = [layer for layer in network.layers if layer.kind == "spiking"]
    for sample, image in enumerate(payload):
        spikes, logits = executed(path, network, image)
        assert len(spikes) == len(spiking)
        for layer, found in zip(spiking, spikes.values(), strict=True):
            first = network.first_arrival(layer) - depth[layer.name]
            expected = np.zeros_like(found)
            busy = trace.spikes[layer.name][sample]
            expected[first : first + len(busy)] = busy
            np.testing.assert_array_equal(found, expected)
            total += int(found.sum())
        np.testing.assert_array_equal(logits, trace.logits[sample, -1])
    return total
