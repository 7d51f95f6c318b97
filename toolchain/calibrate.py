"""Bias schedules found in forward passes over the integer network that will be deployed.

Layers are calibrated in topological order, each on the spikes of the already calibrated layers below it, which are
kept: no layer is ever computed from the input again. Within a layer the steps follow one another, because b[t]
moves the potentials that step t + 1 starts from. All in integers, su.

A rule sees a :class:`Batch`, one layer with everything that arrives at it, and returns the layer with its schedule
and the spikes that it then emits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sim import fast
from sim.chip import Chip
from sim.findings import refuse
from sim.fixedpoint import RegisterOverflow, Registers
from sim.network import INPUT, Layer, Network
from toolchain import fit
from toolchain.graph import FloatGraph
from toolchain.quantize import Plan, bias_schedule, spatial, su_weights
from toolchain.thresholds import positions

#: Table 6 of the FTBC paper (Wu et al., ECCV 2024), ResNet-20 and VGG-16 on CIFAR-10.
FTBC_ALPHA, FTBC_ITERATIONS, FTBC_BATCH, FTBC_BATCHES = 0.2, 10, 128, 2

CHUNK = 1 << 20  #: neuron potentials whose currents are computed at a time
MEAN_SAMPLES = 256  #: on which the mean that static and potential correct is measured, before the run that deploys it
FAR = 1 << 40  #: beyond every bias, su

Cost = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Batch:
    """One layer on the calibration data."""

    network: Network
    layer: Layer  #: with the trained bias as its schedule
    outputs: Mapping[str, Tensor]  #: by source: spikes uint8 (T, B, *shape), and the payload (B, *shape)
    target: Tensor  #: what the ANN wants, float32 (B, *shape): spikes per step in 0..1, or su per step of a readout
    limit: int  #: of v0 + cumulative bias, su
    per_neuron: bool = False  #: whether every neuron gets a bias of its own; else the channel's neurons share one
    registers: Registers | None = None  #: watches the final run

    @cached_property
    def arriving(self) -> fast.Currents:
        """The layer's synapses, with room for any schedule inside the bias register."""
        # Another schedule may not fire where the trained one does: nothing is taken off for sure, as in a readout.
        return fast.Currents(self.network, replace(self.layer, kind="readout"), 2 * self.limit)

    def part(self, samples: slice) -> Batch:
        """Take some of the samples; nothing watches their registers."""
        outputs = {
            source: spikes[samples] if source == INPUT else spikes[:, samples]
            for source, spikes in self.outputs.items()
        }
        return replace(self, outputs=outputs, target=self.target[samples], registers=None)

    def currents(self) -> Iterator[Tensor]:
        """Yield what arrives at each busy step, (B, *shape), computed in chunks of samples; the tensor is reused."""
        step = max(1, CHUNK // self.layer.size)
        parts = [self.part(slice(start, start + step)).outputs for start in range(0, len(self.target), step)]
        # Fresh tensors of this size cost more to map into memory than to fill.
        whole = torch.empty(self.target.shape, dtype=self.arriving.dtype)
        for t in self.network.busy(self.layer):
            for piece, part in zip(whole.split(step), parts, strict=True):
                piece.copy_(self.arriving(part, range(t, t + 1))[0])
            yield whole

    def fire(self, layer: Layer, bias: fast.Bias | None = None) -> Tensor:
        """Run the layer with another schedule: its spikes in the firing window, uint8 (T, B, *shape)."""
        spikes, _ = fast.fire(self.network, layer, self.currents(), self.registers, bias, record=False)
        return spikes[-self.network.timesteps :]

    def finish(self, layer: Layer) -> tuple[Layer, Tensor]:
        """Return the layer and its spikes, as a rule does."""
        return layer, self.fire(layer)

    def mean(self, values: Tensor) -> Tensor:
        """Average (B, *shape) over the neurons that share a bias: float64 (C,), or (*shape) for one each."""
        return values.mean([0] if self.per_neuron else [0, *range(2, values.ndim)], dtype=torch.float64)

    @cached_property
    def _places(self) -> tuple[Tensor, Tensor]:
        return positions(self.target.shape)

    def grouped(self, values: Tensor) -> Tensor:
        """Line up (B, *shape) by who shares a bias: (channels or neurons, n), thinned out where n would be large."""
        if self.per_neuron:
            return values.flatten(1).T
        samples, places = self._places
        return values.flatten(2)[samples, :, places].T if values.ndim > 2 else values[samples].T

    def row(self, correction: Tensor) -> Tensor:
        """Shape a correction per channel or neuron so that it adds to a row of the schedule."""
        shape = self.layer.bias.shape[1:]
        return correction.reshape(shape if self.per_neuron else (-1, *(1,) * (len(shape) - 1)))


class _Schedule:
    """A schedule being built row by row, with ``v0 + cumulative bias`` held inside the chip's bias register."""

    def __init__(self, layer: Layer, limit: int) -> None:
        self._limit = limit
        self._rows: list[Tensor] = []
        self._offset = torch.from_numpy(layer.offsets[0] - layer.bias[0])

    def add(self, row: Tensor, v: Tensor) -> Tensor:
        """Clip and keep the next row; return it in the shape and type that adds to ``v`` (B, *shape)."""
        before = self._offset
        self._offset = (before + row.to(torch.int64)).clamp(-self._limit, self._limit)
        self._rows.append(self._offset - before)
        return broadcast(self._rows[-1], v)

    def array(self) -> np.ndarray:
        return torch.stack(self._rows).numpy()


def broadcast(row: Tensor, v: Tensor) -> Tensor:
    """Shape a row of a schedule, (C,) or (*shape), so that it adds to potentials (B, *shape)."""
    return row.to(v.dtype).reshape(*row.shape, *(1,) * (v.ndim - 1 - row.ndim))


# ---- rules ----------------------------------------------------------------------------------------------------------


def none(batch: Batch) -> tuple[Layer, Tensor]:
    """Leave the schedule as it is: the trained bias, the same at every step."""
    return batch.finish(batch.layer)


def _shortfall(batch: Batch) -> Tensor:
    """Mean spikes per step that are missing with the trained bias, per channel or neuron."""
    few = batch.part(slice(MEAN_SAMPLES))  # whose registers nothing watches: the deployed network may reach less
    fired = few.fire(batch.layer).sum(0, dtype=torch.float32) / batch.network.timesteps
    return batch.mean(few.target.clamp(0, 1)) - batch.mean(fired)


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
    schedule = _Schedule(batch.layer, batch.limit)
    for row in torch.from_numpy(bias.astype(np.int64)):
        schedule.add(row, row[None])
    return replace(batch.layer, bias=schedule.array())


def ftbc(batch: Batch) -> tuple[Layer, Tensor]:
    """FTBC's heuristic: ``b[t, c] -= alpha * mean(theta * s[t] - a)``, the mean over batch and space.

    Algorithm 1 of Wu et al. with the sign of its section 4.2 (target minus estimate), over ``FTBC_BATCHES`` batches,
    for ``FTBC_ITERATIONS`` rounds. The schedule moves in fractions of a su and is rounded where it is applied.
    """
    layer, rows = batch.layer, torch.from_numpy(batch.layer.bias.astype(np.float64))
    starts = range(0, min(len(batch.target), FTBC_BATCH * FTBC_BATCHES), FTBC_BATCH)
    parts = [batch.part(slice(start, start + FTBC_BATCH)) for start in starts]
    arrived = [[current.clone() for current in part.currents()] for part in parts]
    for _ in range(FTBC_ITERATIONS):
        for part, currents in zip(parts, arrived, strict=True):
            schedule, rho = _Schedule(layer, batch.limit), part.mean(part.target.clamp(0, 1))

            def update(tau: int, v: Tensor, schedule: _Schedule = schedule, rho: Tensor = rho) -> Tensor:
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
    rho = batch.grouped(batch.target).double().clamp(0, 1).mean(1, keepdim=True)

    def cost(tau: int, fired: Tensor, order: Tensor) -> Tensor:
        n = fired.shape[1]
        return (torch.arange(n + 1) - rho * n).abs()

    return _solve(batch, cost)


def mse(batch: Batch) -> tuple[Layer, Tensor]:
    """Minimise ``E (S[t-1] + s[t] - (t+1) * a)^2``, the squared error of the running sum of spikes, at every step.

    To fire costs ``1 + 2 * (S[t-1] - (t+1) * a)``; the neurons with the highest potentials fire first, so prefix sums
    over them tell how many should. In thresholds, a clipped to 0..1.
    """
    a = batch.grouped(batch.target).double().clamp(0, 1)

    def cost(tau: int, fired: Tensor, order: Tensor) -> Tensor:
        firing = (1 + 2 * (fired - (tau + 1) * a)).gather(1, order)
        return torch.cat([firing.new_zeros(len(firing), 1), firing.cumsum(1)], 1)

    return _solve(batch, cost)


def _solve(batch: Batch, cost: Cost) -> tuple[Layer, Tensor]:
    """Choose every b[tau] where ``cost`` is least, (groups, n + 1): of the k highest potentials firing, k = 0..n.

    It gets tau, how often each neuron has fired, (groups, n), and the neurons in the order of falling potentials.
    """
    layer, schedule = batch.layer, _Schedule(batch.layer, batch.limit)
    trained = torch.from_numpy(layer.bias.astype(np.int64))
    fired = torch.zeros(batch.grouped(batch.target).shape, dtype=torch.float64)

    def solve(tau: int, v: Tensor) -> Tensor:
        # A bias that differs over space is no reason to look at other neurons than those that are sampled.
        row = batch.grouped(broadcast(trained[tau], v).expand(v.shape)).long()
        potentials = batch.grouped(v).long() + row
        falling, order = _sorted(potentials)
        correction = cheapest_bias(falling, cost(tau, fired, order), layer.threshold)
        before = schedule.add(trained[tau] + batch.row(correction), v)
        fired.add_(batch.grouped(v) + batch.grouped(before.expand(v.shape)) >= layer.threshold)
        return before

    spikes = batch.fire(layer, solve)
    return replace(layer, bias=schedule.array()), spikes


def _sorted(potentials: Tensor) -> tuple[Tensor, Tensor]:
    """Potentials (groups, n) in falling order, and where they stood, both int64; equal ones stay in their order."""
    # Potentials and places sorted as one integer each, which NumPy does several times faster than any argsort.
    bits = potentials.shape[1].bit_length()
    keys = np.sort((-potentials.numpy() << bits) | np.arange(potentials.shape[1]), axis=1)
    return torch.from_numpy(-(keys >> bits)), torch.from_numpy(keys & ((1 << bits) - 1))


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

    The readout has no threshold, so the bias that Proposition 1 asks for is the mean missing current itself.
    """
    schedule, mean = _Schedule(batch.layer, batch.limit), batch.mean(batch.target)

    def correct(tau: int, v: Tensor) -> Tensor:
        return schedule.add(((tau + 1) * mean - batch.mean(v)).round(), v)

    spikes = batch.fire(batch.layer, correct)
    return replace(batch.layer, bias=schedule.array()), spikes


Rule = Callable[[Batch], tuple[Layer, Tensor]]

RULES: dict[str, Rule] = {
    "none": none,
    "static": static,
    "potential": potential,
    "ftbc": ftbc,
    "exact": exact,
    "mse": mse,
}
#: How weights become integers: each the nearest one, fitted to the spikes that arrive (see :mod:`toolchain.fit`), or
#: tuned as floats (see :mod:`toolchain.tune`) and then rounded as those that are fitted.
WEIGHTS = ("nearest", "fitted", "tuned")


def calibrate(
    network: Network,
    graph: FloatGraph,
    plans: Mapping[str, Plan],
    x: Tensor,
    *,
    rule: str,
    weights: str = "nearest",
    per_neuron: bool = False,
    chip: Chip,
    progress: Callable[[int, int], object],
) -> tuple[Network, dict[str, int]]:
    """Choose every layer's schedule; returns the network with them and each layer's largest register magnitude.

    ``network`` and ``plans`` come from :func:`toolchain.quantize.quantise` of ``graph``, ``x`` are model inputs
    (B, *input_shape). ``weights`` is one of ``WEIGHTS``. ``progress`` gets (layers done, layers in all). Raises
    :class:`Refused` where a potential leaves the registers.
    """
    registers = Registers(network, chip, "strict")
    outputs = {INPUT: torch.from_numpy(network.payload(network.input.encode(x.numpy())))}
    units = {name: plan.theta for name, plan in plans.items()} | {INPUT: torch.tensor(1 / network.input.scale)}
    layers = []
    for done, (floating, _, current, activation) in enumerate(graph.precise().currents(x)):
        progress(done, len(network.layers))
        layer, plan = network.layers[done], plans[floating.name]
        if weights != "nearest":
            nominal = [
                su_weights(edge, units[edge.source], plan.su, graph.shapes[edge.source], layer.shape)
                for edge in floating.edges
            ]
            # Its bias is in the schedule already, and with it the shift that an initial potential may ask for.
            wanted = (current - floating.spread) * spatial(plan.su, layer.shape).float()
            layer = fit.fit(network, layer, nominal, outputs, wanted, chip, keep=weights == "tuned")
            del wanted
        target = activation * (spatial(plan.su, layer.shape) / (plan.threshold or 1)).float()
        apart = per_neuron and layer.kind == "spiking"
        if apart:
            layer = replace(layer, bias=layer.per_neuron(layer.bias))
        choose = readout if layer.kind == "readout" and rule != "none" else RULES[rule]
        batch = Batch(network, layer, outputs, target, chip.bias_limit, apart, registers)
        try:
            layer, outputs[layer.name] = choose(batch)
        except RegisterOverflow as error:
            raise refuse("calibration", str(error), "or give calibration data without outliers") from error
        layers.append(layer)
        for edge in layer.edges:
            if network.last_reader[edge.source] == layer.name:
                outputs.pop(edge.source, None)
    progress(len(layers), len(layers))
    return replace(network, layers=tuple(layers)), registers.peak
