"""Bias schedules found in forward passes over the integer network that will be deployed.

Layers are calibrated in topological order, each on the spikes of the already calibrated layers below it, which are
kept: no layer is ever computed from the input again. Within a layer the steps follow one another, because b[t]
moves the potentials that step t + 1 starts from. All in integers, su.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sim import fast
from sim.chip import Chip
from sim.findings import refuse
from sim.fixedpoint import RegisterOverflow, Registers
from sim.network import INPUT, Layer, Network
from toolchain.thresholds import by_channel

#: Table 6 of the FTBC paper (Wu et al., ECCV 2024), ResNet-20 and VGG-16 on CIFAR-10.
FTBC_ALPHA, FTBC_ITERATIONS, FTBC_BATCH = 0.2, 10, 128

Rule = Callable[[Network, Layer, Tensor, Tensor, int], np.ndarray]


def _spread(per_channel: Tensor, row: Tensor) -> Tensor:
    """Reshape (C,) so that it adds to a schedule's row, (C,) or (C, H, W)."""
    return per_channel.reshape(-1, *(1,) * (row.ndim - 1))


class _Schedule:
    """A schedule being built row by row, with ``v0 + cumulative bias`` held inside the chip's bias register."""

    def __init__(self, layer: Layer, limit: int) -> None:
        self._limit = limit
        self.rows: list[Tensor] = []
        self.trained = torch.from_numpy(layer.bias.astype(np.int64))
        v0 = torch.from_numpy(layer.v0.astype(np.int64))
        self._offset = _spread(v0, self.trained[0]).expand(self.trained[0].shape)

    def add(self, row: Tensor, v: Tensor) -> Tensor:
        """Clip and keep the next row; return it in the shape and type that adds to ``v`` (B, *shape)."""
        before = self._offset
        self._offset = (before + row.to(torch.int64)).clamp(-self._limit, self._limit)
        self.rows.append(self._offset - before)
        return self.broadcast(self.rows[-1], v)

    def broadcast(self, row: Tensor, v: Tensor) -> Tensor:
        return row.to(v.dtype).reshape(*row.shape, *(1,) * (v.ndim - 1 - row.ndim))

    def array(self) -> np.ndarray:
        return torch.stack(self.rows).numpy()


def nominal(network: Network, layer: Layer, current: Tensor, target: Tensor, limit: int) -> np.ndarray:
    """Leave the schedule as it is: the trained bias, the same at every step."""
    return layer.bias


def ftbc(network: Network, layer: Layer, current: Tensor, target: Tensor, limit: int) -> np.ndarray:
    """FTBC's heuristic: ``b[t, c] -= alpha * mean(theta * s[t] - a)``, the mean over batch and space.

    Algorithm 1 of Wu et al. with the sign of its section 4.2 (target minus estimate), batch after batch, for
    ``FTBC_ITERATIONS`` rounds. The schedule moves in fractions of a su and is rounded where it is applied.
    """
    rows = torch.from_numpy(layer.bias.astype(np.float64))
    for _ in range(FTBC_ITERATIONS):
        for part, a in zip(current.split(FTBC_BATCH, dim=1), target.split(FTBC_BATCH), strict=True):
            schedule, rho = _Schedule(layer, limit), _rates(a)

            def update(tau: int, v: Tensor, schedule: _Schedule = schedule, rho: Tensor = rho) -> Tensor:
                fires = v + schedule.broadcast(rows[tau].round(), v) >= layer.threshold
                error = layer.threshold * (_rates(fires) - rho)
                rows[tau] -= FTBC_ALPHA * _spread(error, rows[tau])
                return schedule.add(rows[tau].round(), v)

            fast.fire(network, layer, part, bias=update)
    return schedule.array()


def exact(network: Network, layer: Layer, current: Tensor, target: Tensor, limit: int) -> np.ndarray:
    """Proposition 1 of the FTBC paper, solved: ``E[H(v + b - theta)] = rho`` makes b a quantile of v.

    Of all integers b the one whose number of spikes is nearest to ``rho * samples``; where several are equally near,
    the one nearest to the trained bias, so that a silent channel keeps it.
    """
    schedule, rho = _Schedule(layer, limit), _rates(target)

    def solve(tau: int, v: Tensor) -> Tensor:
        trained = schedule.trained[tau]
        correction = quantile_bias(by_channel(v + schedule.broadcast(trained, v)), rho, layer.threshold)
        return schedule.add(trained + _spread(correction, trained), v)

    fast.fire(network, layer, current, bias=solve)
    return schedule.array()


def _rates(spikes: Tensor) -> Tensor:
    """Mean spikes per step of each channel, or the mean wanted ones, float64 (C,) in 0..1."""
    return by_channel(spikes).double().mean(1).clamp(0, 1)


def quantile_bias(v: Tensor, rho: Tensor, theta: int) -> Tensor:
    """Integer biases (C,) with which the fraction of ``v`` (C, n) that reaches ``theta`` is nearest to ``rho`` (C,).

    Of several such biases the one nearest to 0.
    """
    n = v.shape[1]
    found = []
    # numpy sorts integers several times faster than torch.
    for row, wanted in zip(np.sort(v.numpy(), axis=1), rho.numpy() * n, strict=True):
        # Equal potentials fire together: what can fire are those above the wanted-th largest, or it and its equals too.
        turn = row[n - 1 - min(int(wanted), n - 1)]
        candidates = []
        for count in (n - np.searchsorted(row, turn, "right"), n - np.searchsorted(row, turn, "left")):
            lowest = theta - int(row[n - count]) if count else -math.inf  # the least bias that lets `count` fire
            highest = theta - int(row[n - count - 1]) - 1 if count < n else math.inf  # the most that lets no other
            bias = min(max(0, lowest), highest)
            candidates.append((abs(count - wanted), abs(bias), bias))
        found.append(min(candidates)[2])
    return torch.tensor(found, dtype=torch.int64)


RULES: dict[str, Rule] = {"none": nominal, "ftbc": ftbc, "exact": exact}


def readout_bias(layer: Layer, current: Tensor, target: Tensor, limit: int) -> np.ndarray:
    """Make the readout's mean potential after each window step the mean logit times the number of steps.

    The readout has no threshold, so the bias that Proposition 1 asks for is the mean missing current itself;
    ``current`` (busy steps, B, *shape) and ``target`` (B, *shape), both su per step.
    """
    timesteps = len(layer.bias)
    arrived = torch.stack([by_channel(c).double().mean(1) for c in current]).cumsum(0)[-timesteps:]
    steps = torch.arange(1, timesteps + 1, dtype=torch.float64)[:, None]
    offset = (steps * by_channel(target).double().mean(1) - arrived).round().clamp(-limit, limit)
    return np.diff(offset.numpy(), axis=0, prepend=layer.v0[None]).astype(np.int64)


def calibrate(
    network: Network,
    rule: str,
    payload: np.ndarray,
    target_of: Callable[[Layer], Tensor],
    chip: Chip,
    progress: Callable[[int, int], object],
) -> tuple[Network, dict[str, int]]:
    """Choose every layer's schedule; returns the network with them and each layer's largest register magnitude.

    ``payload`` (B, *input.shape) integers; ``target_of`` gives a layer's (B, *shape): the wanted spikes per step of a
    spiking layer, the wanted current per step of the readout in su. ``progress`` gets (layers done, layers in all).
    Raises :class:`Refused` for an unknown rule and where a potential leaves the registers.
    """
    if rule not in RULES:
        raise refuse("method", f"unknown bias rule {rule!r}", f"use one of {', '.join(RULES)}")
    registers = Registers(network, chip, "strict")
    outputs = {INPUT: torch.from_numpy(network.payload(payload))}
    layers = []
    for done, layer in enumerate(network.layers):
        progress(done, len(network.layers))
        current, target = fast.currents(network, layer, outputs), target_of(layer)
        if layer.kind == "readout" and rule != "none":
            bias = readout_bias(layer, current, target, chip.bias_limit)
        else:
            bias = RULES[rule](network, layer, current, target, chip.bias_limit)
        layers.append(replace(layer, bias=bias))
        try:
            spikes, _ = fast.fire(network, layers[-1], current, registers)
        except RegisterOverflow as error:
            raise refuse("calibration", str(error), "or give calibration data without outliers") from error
        outputs[layer.name] = spikes[-network.timesteps :]
    progress(len(layers), len(layers))
    return replace(network, layers=tuple(layers)), registers.peak
