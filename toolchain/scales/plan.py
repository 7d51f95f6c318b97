"""The scale of every layer: one integer threshold THETA, and per channel the activation that a spike stands for.

A spike of source channel i stands for theta_i, so the current into channel c in units of its own threshold is
``sum w[c,i] * theta_i / theta_c * spike``. Times THETA and rounded, that is the integer weight. THETA, the
thresholds' lower bounds and, for the graded input, the payload's scale are chosen together (see :func:`plan_layer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from sim.chip import Chip
from sim.findings import Refused, refuse
from sim.network import INPUT, Shape
from sim.progress import track
from toolchain.graph import FloatDense, FloatGraph, FloatLayer, FloatMap
from toolchain.graph.channels import by_channel, sampled, spatial, spread
from toolchain.recipe import Recipe
from toolchain.scales import thresholds
from toolchain.scales.thresholds import quantisation_error
from toolchain.task import shares_scale

MARGIN = 1.5  #: registers keep this factor above the largest potential that the calibration data can cause
HALVINGS = 6  #: payload scales that are tried, each half as fine as the one before
ALIKE = 4.0  #: largest range of a channel of the input over the smallest, up to which one payload scale does for all
CLEARLY = 0.8  #: share of the expected error with one payload scale that is left where channels get their own


@dataclass(frozen=True, eq=False)
class Plan:
    """The integer scale of one layer."""

    threshold: int  #: THETA, su; for the readout 0
    theta: Tensor = field(repr=False)  #: float32 (C,): the activation that one spike per step stands for
    #: float64 (C,): synaptic units per unit of activation, THETA / theta, or less of a channel that never fires; the
    #: readout has its scales here
    su: Tensor = field(repr=False)
    cost: float = 0.0  #: expected squared error of the activations, summed over channels
    exponent: int = 0  #: of the weights of the graded input, which a shift to the right makes finer than a su


@dataclass(frozen=True, eq=False)
class Scales:
    """The scales of a whole network."""

    unit: Tensor  #: float64 () or, where channels differ, (C,): what one unit of the graded input's payload stands for
    plans: Mapping[str, Plan]  #: by layer

    def __getitem__(self, layer: str) -> Plan:
        return self.plans[layer]

    @property
    def thetas(self) -> dict[str, Tensor]:
        """Thresholds (C,) of the spiking layers, by name."""
        return {name: plan.theta for name, plan in self.plans.items() if plan.threshold}


def scaled(map_: FloatMap, unit: Tensor, source: Shape) -> Tensor:
    """Multiply a map's weights by the value of one source spike (or payload unit) ``unit``, (C,) or scalar; float64."""
    weight, unit = map_.weight.double(), unit.double().expand(source[0])
    if isinstance(map_, FloatDense):
        return weight * spatial(unit, source).expand(source).flatten()
    groups = map_.geometry.groups
    per_output = unit.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return weight * per_output[:, :, None, None]


def legal_thresholds(chip: Chip, limit: int) -> list[int]:
    """Integer thresholds up to ``limit`` to choose from, quarter octaves, each a legal recurrent weight."""
    found = set()
    for quarter in range(4 * 3, 4 * int(math.log2(max(limit, 8))) + 1):
        wanted = 2 ** (quarter / 4)
        exponent = max(0, math.ceil(math.log2(wanted / chip.recurrent_weight)))
        theta = round(wanted / 2**exponent) << exponent
        if theta <= limit and chip.recurrent(theta) is not None:
            found.add(theta)
    return sorted(found)


def largest_weights(graph: FloatGraph, layer: FloatLayer, units: Mapping[str, Tensor]) -> Tensor:
    """Largest ``|w * unit|`` into each channel of ``layer``, float64 (C,)."""
    return torch.stack(
        [
            scaled(edge.map, units[edge.source], graph.shapes[edge.source]).abs().reshape(layer.shape[0], -1).amax(1)
            for edge in layer.edges
        ]
    ).amax(0)


def rounding_noise(
    graph: FloatGraph, layer: FloatLayer, units: Mapping[str, Tensor], values: Mapping[str, Tensor]
) -> tuple[float, float, Tensor]:
    """Estimate the squares of what rounding adds to the current into each channel of ``layer``.

    By rounding weights, of edges from the input and of the others, in su^2: a uniform error of 1/12 su^2 per synapse,
    times the square of what its source sends. By rounding the payload, in the current's own unit, float64 (C,): as
    measured on each channel of the input.
    """
    graded, others = 0.0, 0.0
    rounding = torch.zeros(layer.shape[0], dtype=torch.float64)
    for edge in layer.edges:
        sent = values[edge.source].double() / spatial(units[edge.source], graph.shapes[edge.source])
        uniform = float((sent**2).mean()) * edge.map.weight[0].numel() / 12
        if edge.source != INPUT:
            others += uniform
        else:
            graded += uniform
            lost = by_channel((sent.round() - sent) ** 2).mean(1).sqrt()
            weights = scaled(edge.map, lost * units[INPUT], graph.shapes[INPUT])
            neurons = weights.square().reshape(layer.shape[0], len(weights) // layer.shape[0], -1).sum(2)
            rounding += neurons.mean(1)
    return graded, others, rounding


def plan_readout(
    graph: FloatGraph,
    layer: FloatLayer,
    units: Mapping[str, Tensor],
    current: Tensor,
    recipe: Recipe,
) -> Plan:
    """Choose the readout's scales, as fine as weights, biases and potentials allow.

    One for all outputs where they are compared with each other, else one for each. What is constant in a regression's
    outputs need not fit: what the bias register cannot hold is left to the host.
    """
    chip, window = recipe.limits, MARGIN * recipe.timesteps
    current, beta = (by_channel(v).double() for v in (current, layer.bias[None]))
    brought = [(chip.bias_limit, window * current.abs().amax(1))] if _by_bias(layer, recipe) else []
    if recipe.task == "regression":
        moving = (current - constant(layer)[:, None]).abs().amax(1)
        held = [(chip.weight_limit, largest_weights(graph, layer, units))]
        held += [(chip.state_limit - chip.bias_limit, window * moving)]
    else:
        reach = [largest_weights(graph, layer, units), beta.abs().amax(1), current.abs().amax(1)]
        if shares_scale(recipe.task):
            reach = [values.max().expand(layer.shape[0]) for values in reach]
        largest, beta, logits = reach
        held = [(chip.weight_limit, largest), (chip.bias_limit, window * beta)]
        held += [(chip.state_limit, window * (logits + beta))]
    su = torch.stack([limit / value for limit, value in held + brought]).amin(0)
    # An output that nothing moves fits any scale.
    return Plan(0, torch.ones(layer.shape[0]), su.where(su.isfinite(), torch.ones_like(su)))


def _by_bias(layer: FloatLayer, recipe: Recipe) -> bool:
    """Whether the host brings what a layer reads of the input, as biases (:mod:`sim.inputs`)."""
    return recipe.input_form != "payload" and any(edge.source == INPUT for edge in layer.edges)


def constant(layer: FloatLayer) -> Tensor:
    """Return what is constant in a layer's current, on average over a channel's neurons: float64 (C,)."""
    return layer.bias.double().reshape(layer.shape[0], -1).mean(1)


def plan_layer(
    graph: FloatGraph,
    layer: FloatLayer,
    theta: Tensor,
    units: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    current: Tensor,
    recipe: Recipe,
) -> Plan:
    """Choose THETA and final thresholds of one spiking layer.

    ``theta`` (C,) are the thresholds that the rule wants, ``units`` the value of one spike of each source channel,
    ``values`` the float activations of its sources on calibration samples, ``current`` (B, *shape) what they cause.
    For each legal THETA a channel's threshold is raised until its weights fit 8 bits,
    ``theta_c >= max|w_c * unit| * THETA / 127``, and its bias the register over the window, but not so far that most
    of the activations would not fire once. The THETA taken minimises the expected squared error of the
    activations: staircase, weight rounding (a uniform error of 1/12 su^2 per synapse and source unit) and, from the
    graded input, the payload's own rounding as measured. With the recipe's ``shift_input`` the weights of the graded
    input get the exponent at which they use all bits; so do those that only the host knows, because it brings their
    currents as biases, which have to fit the bias register over the window. Potentials and biases must stay inside the
    registers, with ``MARGIN`` to spare. Raises :class:`Refused` where no THETA satisfies them.

    A channel that never fires costs the others nothing: it has no error, its threshold is raised until it fits the
    registers, and those who read it take its spike for ``theta`` still, or what it sends would make all that they
    read coarse.
    """
    chip, timesteps = recipe.limits, recipe.timesteps
    largest = largest_weights(graph, layer, units)
    graded, noise, rounding = rounding_noise(graph, layer, units, values)
    a = sampled(layer.activate(current))
    energy = (a.double() ** 2).sum(1)
    low, high = by_channel(current).amin(1).double(), by_channel(current).amax(1).double()
    beta = layer.bias.reshape(len(theta), -1).double().abs().amax(1)
    fires = high > 0
    fires |= ~fires.any()  # in a layer that is all silent, there is nothing else to go by

    by_bias = _by_bias(layer, recipe)
    brought = torch.maximum(-low, high) if by_bias else torch.zeros_like(low)
    window = MARGIN * timesteps

    best: Plan | None = None
    for threshold in legal_thresholds(chip, min(chip.threshold_limit, 1 << 24)):
        bias_room, room = ((limit - threshold) / (window * threshold) for limit in (chip.bias_limit, chip.state_limit))
        if min(bias_room, room) <= 0:
            break
        held = beta / bias_room
        if float(energy[held > theta * timesteps].sum()) > float(energy.sum()) / 2:
            break
        # Below zero a potential only sinks; above theta one spike a step takes theta off; u also lacks the bias.
        reach = torch.stack([(beta - low) / room, (beta + high) / (room + 1), brought / bias_room]).amax(0)
        raised = torch.stack([theta.double(), largest * threshold / chip.weight_limit, held]).amax(0)
        raised = raised.where(high > 0, torch.maximum(raised, reach))
        if bool((reach > raised).any()):
            break
        su = threshold / raised
        shifted = (recipe.shift_input or by_bias) and graded
        exponent = _exponent(float((largest * su).max()), chip) if shifted else 0
        rounded = (noise + graded * 4.0**exponent) * su**-2 + rounding
        cost = float((quantisation_error(a, raised.float(), timesteps * layer.copies) + rounded * fires).sum())
        if best is None or cost < best.cost:
            best = Plan(threshold, raised.where(fires, theta).float(), su, cost, exponent)
    if best is None:
        raise refuse(
            layer.name,
            f"no integer threshold keeps potentials and biases inside {chip.name}'s registers",
            "check the layer's weights and biases for outliers, or use fewer timesteps",
        )
    return best


def _exponent(largest: float, chip: Chip) -> int:
    """Exponent, 0 or less, at which weights of up to ``largest`` su use all the bits that they have."""
    # One is left for Lava, which doubles weights of mixed sign and takes one off.
    lowest = chip.weight_exponents[0] + 1
    return max(lowest, min(0, math.ceil(math.log2(max(largest, 2.0**lowest) / chip.weight_limit))))


def extremes_of(x: Tensor) -> Tensor:
    """Return the smallest and the largest value at each place of model inputs ``x`` (B, *shape): (2, *shape)."""
    return torch.stack([x.amin(0), x.amax(0)])


def choose_scales(graph: FloatGraph, x: Tensor, recipe: Recipe, extremes: Tensor | None = None) -> Scales:
    """Choose the scales of ``graph`` on some of the model inputs ``x`` (B, *model_shape).

    ``extremes`` (2, *model_shape) are the smallest and the largest value that any input has at each place, those of
    ``x`` by default.
    The steps of a quantised activation say themselves where a rate of one is. For others the recipe's threshold rule
    does, inside what a bounded one as ReLU6 allows; "given" takes the bound. Raises :class:`Refused` where no scale
    keeps a layer inside the registers, or a ReLU has no threshold of its own and the rule is "given".
    """
    units: dict[str, Tensor] = {}
    plans: dict[str, Plan] = {}
    ranges = by_channel(graph.arrange(extremes_of(x) if extremes is None else extremes)).abs().amax(1)
    walked = graph.precise().currents(x[spread(len(x))])
    for layer, values, current, activation in track("choosing scales", walked, len(graph.layers)):
        if layer.kind == "spiking":
            theta = threshold_of(layer, activation, recipe)
            plan_with = partial(plan_layer, graph, layer, theta, values=values, current=current, recipe=recipe)
        else:
            plan_with = partial(plan_readout, graph, layer, current=current, recipe=recipe)
        if INPUT not in units and INPUT in values:
            units[INPUT] = _payload_unit(graph, layer, values, ranges, recipe.input_bits, plan_with)
        plans[layer.name] = plan_with(units=units)
        units[layer.name] = plans[layer.name].theta
    return Scales(units[INPUT], plans)


def threshold_of(layer: FloatLayer, activation: Tensor, recipe: Recipe) -> Tensor:
    """Thresholds (C,) that the layer's activation has, or that the recipe's rule finds."""
    if layer.upper is None and recipe.threshold == "given":
        raise refuse(layer.name, "its ReLU has no threshold of its own", "choose another threshold rule")
    if layer.upper is None:
        return thresholds.choose(recipe.threshold, activation, recipe.timesteps * layer.copies)
    upper = torch.as_tensor(layer.upper).expand(layer.shape[0])
    if recipe.threshold == "given" or layer.levels is not None:
        return upper
    # A ReLU6 whose activations hardly reach 6 would waste its few steps on what never comes.
    return torch.minimum(upper, thresholds.choose(recipe.threshold, activation, recipe.timesteps * layer.copies))


def _payload_unit(
    graph: FloatGraph,
    layer: FloatLayer,
    values: Mapping[str, Tensor],
    ranges: Tensor,
    bits: int,
    plan_with: Callable[..., Plan],
) -> Tensor:
    """Choose what one payload unit is worth: a finer payload leaves fewer su for the first weights, and vice versa.

    ``layer`` is the first, which reads nothing but the input; ``ranges`` (C,) are the largest magnitudes of each
    channel. Where they differ, as those of features in units of their own, channels may get units of their own.
    """
    limit = (1 << (bits - 1)) - 1
    finest = float(ranges.max()) / limit or 1.0
    common = [torch.tensor(finest * 2**halving, dtype=torch.float64) for halving in range(min(HALVINGS, bits - 1))]
    costs: dict[Tensor, float] = {}
    refusals = []

    def cheapest(candidates: Sequence[Tensor]) -> Tensor | None:
        for unit in candidates:
            try:
                plan = plan_with(units={INPUT: unit})
            except Refused as error:
                refusals.append(error)
                continue
            graded, _, rounding = rounding_noise(graph, layer, {INPUT: unit}, values)
            costs[unit] = plan.cost if plan.threshold else float((graded * plan.su**-2 + rounding).sum())
        return min((unit for unit in candidates if unit in costs), key=costs.__getitem__, default=None)

    one = cheapest(common)
    # Images have one unit: what channels of about the same range would gain is less than the grid of scales.
    if float(ranges.max()) <= ALIKE * float(ranges.min()):
        own = None
    else:
        own = cheapest(_own_units(graph, layer, values, ranges / limit))
    if own is not None and (one is None or costs[own] < CLEARLY * costs[one]):
        return own
    if one is None:
        raise refusals[-1]
    return one


def _own_units(graph: FloatGraph, layer: FloatLayer, values: Mapping[str, Tensor], finest: Tensor) -> list[Tensor]:
    """Units (C,) to choose from where channels of the input differ; ``finest`` (C,) are those that their ranges fill.

    Rounding the payload of a channel costs ``|w|^2 u^2``, rounding its weights ``|x|^2 / u^2``. The sum is least where
    u is the root of ``|x| / |w|``, times what the two errors weigh, which is tried. What that would cut off is kept.
    """
    weights = torch.stack([by_source(edge.map, graph.input_shape) for edge in layer.edges])
    rms, largest = weights.square().mean((0, 2)).sqrt(), weights.abs().amax((0, 2))
    finest = finest.double()
    sent, read = finest > 0, largest > 0
    balance = (by_channel(values[INPUT]).double().square().mean(1).sqrt() / rms).sqrt()
    balance = torch.where(sent & read, balance, 0)
    if not balance.any():
        return []
    middle = float((finest / balance)[balance > 0].median())
    candidates = []
    for factor in (0.0, *(2.0**k for k in range(-3, HALVINGS))):
        unit = torch.maximum(finest, middle * factor * balance)
        # A channel that was never sent may be one day; until then its weights shall not be the largest.
        typical = (unit * largest)[sent & read].median()
        candidates.append(torch.where(sent, unit, torch.where(read, typical / largest, unit.max())))
    return candidates


def by_source(map_: FloatMap, source: Shape) -> Tensor:
    """Line up the weights from each channel of a source of shape ``source``: float64 (C, n)."""
    weight = map_.weight.double()
    if isinstance(map_, FloatDense):
        return weight.reshape(len(weight), source[0], -1).transpose(0, 1).flatten(1)
    groups = map_.geometry.groups
    return weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).reshape(source[0], -1)
