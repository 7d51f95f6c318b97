"""Bias rules: schedules found in forward passes over the integer network that will be deployed.

A rule sees a :class:`Batch`, one layer with everything that arrives at it, and returns the layer with its schedule
and the spikes that it then emits. Within a layer the steps follow one another, because b[t] moves the potentials that
step t + 1 starts from. All in integers, su.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sim import fast
from sim.network import Layer
from toolchain.calibration.batch import Batch, Schedule, broadcast
from toolchain.graph.channels import spread
from toolchain.recipe import Method
from toolchain.scales.integers import bias_schedule

#: Table 6 of the FTBC paper (Wu et al., ECCV 2024), ResNet-20 and VGG-16 on CIFAR-10.
FTBC_ALPHA, FTBC_ITERATIONS, FTBC_BATCH, FTBC_BATCHES = 0.2, 10, 128, 2

FAR = 1 << 40  #: beyond every bias, su

Rule = Callable[[Batch], tuple[Layer, Tensor]]
#: (tau, how often each neuron has fired, sums over the highest potentials) -> cost of these firing; see :func:`_solve`
Cost = Callable[[int, Tensor, Callable[[Tensor], Tensor]], Tensor]


def none(batch: Batch) -> tuple[Layer, Tensor]:
    """Leave the schedule as it is: the trained bias, the same at every step."""
    return batch.finish(batch.layer)


def once(batch: Batch) -> tuple[Layer, Tensor]:
    """Add the trained bias of the whole window at its first step.

    With a hold-off of T - 1 steps or more everything has arrived by then, so that a neuron with v0 = theta/2 emits the
    staircase of T levels (QCFS) of its whole input, exactly: spread over the window, a bias comes too late or is taken
    back after spikes that it should have kept back.
    """
    whole = batch.layer.bias.sum(0, keepdims=True)
    return batch.finish(_clipped(batch, np.concatenate([whole, np.zeros_like(batch.layer.bias[1:])])))


def _shortfall(batch: Batch) -> Tensor:
    """Mean spikes per step that are missing with the trained bias, per channel or neuron."""
    # Before the run that deploys it, so that nothing watches registers: the deployed network may reach less.
    few = batch.part(spread(len(batch.target)))
    fired = few.fire(batch.layer).sum(0, dtype=torch.float32) / batch.network.timesteps
    return batch.mean(few.rates) - batch.mean(fired)


def static(batch: Batch) -> tuple[Layer, Tensor]:
    """Bias correction of SNN Calibration, light pipeline: ``b[c] += theta * mean(a - s)``, the mean over all T too.

    Li et al., ICML 2021: the same correction at every step.
    """
    layer, timesteps = batch.layer, batch.network.timesteps
    constant = bias_schedule(batch.row(_shortfall(batch)) * layer.threshold, timesteps)
    return batch.finish(_clipped(batch, layer.bias + constant))


def potential(batch: Batch) -> tuple[Layer, Tensor]:
    """Correct the initial potential as SNN Calibration's advanced pipeline does: ``v0[c] += T * theta * mean(a - s)``.

    Li et al., ICML 2021. Written into the first row of the schedule, which nothing tells from v0.
    """
    layer = batch.layer
    schedule = torch.from_numpy(layer.bias.astype(np.int64))
    schedule[0] += (batch.row(_shortfall(batch)) * layer.threshold * batch.network.timesteps).round().long()
    return batch.finish(_clipped(batch, schedule.numpy()))


def _clipped(batch: Batch, bias: np.ndarray) -> Layer:
    schedule = Schedule(batch.layer, batch.limit)
    for row in torch.from_numpy(bias.astype(np.int64)):
        schedule.add(row, row[None])
    return replace(batch.layer, bias=schedule.array())


def ftbc(batch: Batch) -> tuple[Layer, Tensor]:
    """FTBC's heuristic: ``b[t, c] -= alpha * mean(theta * s[t] - a)``, the mean over batch and space.

    Algorithm 1 of Wu et al. with the sign of its section 4.2 (target minus estimate), over ``FTBC_BATCHES`` batches,
    for ``FTBC_ITERATIONS`` rounds. The schedule moves in fractions of a su and is rounded where it is applied.
    """
    layer, rows = batch.layer, torch.from_numpy(batch.layer.bias.astype(np.float64))
    parts = [batch.part(few) for few in spread(len(batch.target), FTBC_BATCH * FTBC_BATCHES).split(FTBC_BATCH)]
    arrived = [[list(pieces) for pieces in part.currents()] for part in parts]
    for _ in range(FTBC_ITERATIONS):
        for part, currents in zip(parts, arrived, strict=True):
            schedule, rho = Schedule(layer, batch.limit), part.mean(part.rates)

            def update(tau: int, v: Tensor, schedule: Schedule = schedule, rho: Tensor = rho) -> Tensor:
                fires = v + broadcast(rows[tau].round(), v) >= layer.threshold
                rows[tau] -= FTBC_ALPHA * layer.threshold * batch.row(batch.mean(fires.float()) - rho)
                return schedule.add(rows[tau].round(), v)

            fast.fire(batch.network, layer, currents, bias=update, record=False)
    return batch.finish(_clipped(batch, rows.round().numpy()))


def exact(batch: Batch) -> tuple[Layer, Tensor]:
    """Proposition 1 of the FTBC paper, solved: ``E[H(v + b - theta)] = rho`` makes b a quantile of v.

    Of all integers b the one whose number of spikes is nearest to ``rho * samples``; where several are equally near,
    the one nearest to the trained bias, so that a silent channel keeps it.
    """
    rates = batch.grouped(batch.rates).double()
    one, wanted = torch.ones_like(rates), rates.mean(1, keepdim=True) * rates.shape[1]
    return _solve(batch, lambda tau, fired, highest: (highest(one) - wanted).abs())


def mse(batch: Batch) -> tuple[Layer, Tensor]:
    """Minimise ``E (S[t-1] + s[t] - (t+1) * a)^2``, the squared error of the running sum of spikes, at every step.

    To fire costs ``1 + 2 * (S[t-1] - (t+1) * a)``, of which half is summed here; the neurons with the highest
    potentials fire first, so prefix sums over them tell how many should. In thresholds, a clipped to 0..1. Copies of a
    neuron each have a target of their own, ``(t+1) * a + (g + 1/2) / G - 1/2`` of copy g of G, or all would learn to
    fire together.
    """
    a = batch.grouped(batch.target).double().clamp(0, 1)
    half = 0.5 - batch.grouped(batch.beside.expand(batch.target.shape)).double()
    return _solve(batch, lambda tau, fired, highest: highest(torch.add(fired, a, alpha=-(tau + 1)).add_(half)))


def _solve(batch: Batch, cost: Cost) -> tuple[Layer, Tensor]:
    """Choose every b[tau] where ``cost`` is least: of the highest potentials firing, from none to all of them.

    It gets tau, how often each neuron has fired, (groups, n), and a function that sums such values over the neurons
    with the highest potentials: (groups, L + 1), of the L levels that potentials may have (:func:`_levels`).
    """
    layer, schedule = batch.layer, Schedule(batch.layer, batch.limit)
    trained = torch.from_numpy(layer.bias.astype(np.int64))
    fired = torch.zeros_like(batch.grouped(batch.target), dtype=torch.float64)

    def sampled(row: Tensor, v: Tensor) -> Tensor:
        # A bias that differs over space is no reason to look at other neurons than those that are sampled.
        return row.reshape(-1, 1) if row.numel() == len(row) else batch.grouped(row.expand(v.shape))

    def solve(tau: int, v: Tensor) -> Tensor:
        potentials = batch.grouped(v).long()
        levels, level = _levels(potentials + sampled(broadcast(trained[tau], v), v).long())

        def highest(values: Tensor) -> Tensor:
            # One after the other in the order of the samples: the same sums on every processor.
            found = np.bincount(level, values.T.reshape(-1).numpy(), minlength=levels.numel())
            return functional.pad(torch.from_numpy(found).view(levels.shape).cumsum(1), (1, 0))

        correction = cheapest_bias(levels, cost(tau, fired, highest), layer.threshold)
        before = schedule.add(trained[tau] + batch.row(correction), v)
        fired.add_(potentials + sampled(before, v) >= layer.threshold)
        return before

    spikes = batch.fire(layer, solve)
    return replace(layer, bias=schedule.array()), spikes


def _levels(potentials: Tensor) -> tuple[Tensor, np.ndarray]:
    """Levels (groups, L), falling along each row, that potentials (groups, n) may have, and each one's place there.

    Both int64; places, in the order of ``potentials.T``, count through all rows of the levels.
    """
    groups, n = potentials.shape
    highest = potentials.amax(1, keepdim=True)
    if n >= (span := int((highest - potentials.amin(1, keepdim=True)).amax()) + 1):  # every integer is a level
        levels, place = highest - torch.arange(span), highest - potentials
    else:
        # Potentials and places sorted as one integer each, which NumPy does several times faster than any argsort.
        bits = n.bit_length()
        keys = torch.from_numpy(np.sort((-potentials.numpy() << bits) | np.arange(n), axis=1))
        levels = -(keys >> bits)
        place = torch.empty_like(keys).scatter_(1, keys & ((1 << bits) - 1), torch.arange(n).expand(groups, n))
    place = place + torch.arange(groups)[:, None] * levels.shape[1]
    return levels, place.T.reshape(-1).numpy()


def cheapest_bias(v: Tensor, cost: Tensor, theta: int) -> Tensor:
    """Integer biases, int64 (groups,), with which the number of ``v + b >= theta`` has the least cost.

    ``v`` int64 (groups, n) falls along each row; ``cost`` (groups, n + 1) is that of 0..n of them firing. Equal
    potentials fire together. Of several such biases the one nearest to 0.
    """
    n = v.shape[1]
    splits = functional.pad(v[:, :-1] == v[:, 1:], (1, 1)) if n else torch.zeros_like(cost, dtype=torch.bool)
    cost = cost.masked_fill(splits, torch.inf)
    groups, counts = (cost == cost.amin(1, keepdim=True)).nonzero().T
    bounded = functional.pad(v, (1, 1))
    # The least bias that lets so many fire, and the most that lets no other.
    lowest = torch.where(counts > 0, theta - bounded[groups, counts], -FAR)
    highest = torch.where(counts < n, theta - 1 - bounded[groups, counts + 1], FAR)
    bias = torch.zeros_like(lowest).clamp(lowest, highest)
    order = np.lexsort((bias.abs().numpy(), groups.numpy()))
    first = np.unique(groups.numpy()[order], return_index=True)[1]
    return bias[torch.from_numpy(order[first])]


def readout(batch: Batch) -> tuple[Layer, Tensor]:
    """Make the readout's mean potential after each window step the mean logit times the number of steps.

    The readout has no threshold, so the bias that Proposition 1 asks for is the mean missing current itself. A bias
    that differs over space keeps its differences.
    """
    schedule, mean, bias = Schedule(batch.layer, batch.limit), batch.mean(batch.target), batch.layer.bias
    own = torch.from_numpy(bias.astype(np.int64)) if bias.ndim > 2 else [0] * len(bias)

    def correct(tau: int, v: Tensor) -> Tensor:
        missing = (tau + 1) * mean - batch.mean(v + own[tau])
        return schedule.add(batch.row(missing.round()) + own[tau], v)

    spikes = batch.fire(batch.layer, correct)
    return replace(batch.layer, bias=schedule.array()), spikes


def arrived(batch: Batch) -> Tensor:
    """Mean potential of a readout after the whole window, per channel: float64 (C,), su."""
    _, potentials = fast.fire(batch.network, batch.layer, batch.currents(), record=False)
    return batch.mean(potentials[0])


RULES: dict[Method, Rule] = {
    "none": none,
    "static": static,
    "potential": potential,
    "once": once,
    "ftbc": ftbc,
    "exact": exact,
    "mse": mse,
}
