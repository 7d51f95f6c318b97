"""From float maps to integer synapses: one integer threshold THETA a layer, per-channel thresholds folded in.

A spike of source channel i stands for theta_i, so the current into channel c in units of its own threshold is
``sum w[c,i] * theta_i / theta_c * spike``. Times THETA and rounded, that is the integer weight. THETA, the
thresholds' lower bounds and, for the graded input, the payload's scale are chosen together (see :func:`plan_layer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sim.chip import Chip
from sim.findings import Refused, refuse
from sim.network import INPUT, Conv2d, Dense, Edge, Input, Layer, Network, Shape
from toolchain import thresholds
from toolchain.graph import FloatConv2d, FloatDense, FloatEdge, FloatGraph, FloatLayer, FloatMap
from toolchain.thresholds import by_channel, quantisation_error, sampled

MARGIN = 1.5  #: registers keep this factor above the largest potential that the calibration data can cause
HALVINGS = 6  #: payload scales that are tried, each half as fine as the one before
SAMPLES = 256  #: inputs that the scales are chosen on; more would change thresholds by less than their grid

#: Initial potentials: what v0 is, and what is added over the window's T steps, in thresholds. Half a threshold rounds
#: rates instead of flooring them (OPI, Bu et al., AAAI 2022; QCFS, ICLR 2022), all at once or, as the shift of
#: theta / (2T) a step of RTS (Deng & Gu, ICLR 2021), bit by bit. "auto" is what the activation was trained for, else
#: half.
INITIAL = {"zero": (0.0, 0.0), "half": (0.5, 0.0), "shift": (0.0, 0.5)}


def initial_potential(initial: str, layer: FloatLayer) -> tuple[float, float]:
    """Say what v0 of a layer is, and what is added over the window beside its bias, in thresholds."""
    return INITIAL[(layer.initial or "half") if initial == "auto" else initial]


@dataclass(frozen=True, eq=False)
class Plan:
    """The integer scale of one layer."""

    threshold: int  #: THETA, su; for the readout 0
    theta: Tensor  #: float32 (C,): the activation that one spike per step stands for
    su: Tensor  #: float64 (C,): synaptic units per unit of activation, THETA / theta, or the readout's one scale
    cost: float = 0.0  #: expected squared error of the activations, summed over channels
    exponent: int = 0  #: of the weights of the graded input, which a shift to the right makes finer than a su


def scaled(map_: FloatMap, unit: Tensor, source: Shape) -> Tensor:
    """Multiply a map's weights by the value of one source spike (or payload unit) ``unit``, (C,) or scalar; float64."""
    weight, unit = map_.weight.double(), unit.double().expand(source[0])
    if isinstance(map_, FloatDense):
        return weight * spatial(unit, source).expand(source).flatten()
    groups = map_.groups
    per_output = unit.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
    return weight * per_output[:, :, None, None]


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
    m = edge.map
    synapse = Conv2d(array, m.stride, m.padding, m.dilation, m.groups) if isinstance(m, FloatConv2d) else Dense(array)
    return Edge(edge.source, synapse, exponent)


def bias_schedule(beta: Tensor, timesteps: int) -> np.ndarray:
    """Spread a constant bias ``beta``, su per step, over T integer steps without drift: int64 (T, *beta.shape)."""
    cumulative = np.rint(np.arange(timesteps + 1).reshape(-1, *(1,) * beta.ndim) * beta.double().numpy())
    return np.diff(cumulative, axis=0).astype(np.int64)


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


def spatial(unit: Tensor, shape: Shape) -> Tensor:
    """Reshape a value per channel (C,) so that it multiplies (B, *shape); float64."""
    return unit.double().reshape(-1, *(1,) * (len(shape) - 1))


def largest_weights(graph: FloatGraph, layer: FloatLayer, units: Mapping[str, Tensor]) -> Tensor:
    """Largest ``|w * unit|`` into each channel of ``layer``, float64 (C,)."""
    return torch.stack(
        [
            scaled(edge.map, units[edge.source], graph.shapes[edge.source]).abs().reshape(layer.shape[0], -1).amax(1)
            for edge in layer.edges
        ]
    ).amax(0)


def plan_readout(
    graph: FloatGraph,
    layer: FloatLayer,
    *,
    units: Mapping[str, Tensor],
    current: Tensor,
    timesteps: int,
    chip: Chip,
) -> Plan:
    """Choose the readout's one scale: as fine as weights, biases and potentials allow (argmax needs one for all)."""
    largest = float(largest_weights(graph, layer, units).max())
    logits, beta = float(current.abs().max()), float(layer.bias.abs().max())
    su = min(
        chip.weight_limit / max(largest, 1e-30),
        chip.bias_limit / (MARGIN * timesteps * max(beta, 1e-30)),
        chip.state_limit / (MARGIN * timesteps * max(logits + beta, 1e-30)),
    )
    return Plan(0, torch.ones(layer.shape[0]), torch.full((layer.shape[0],), su, dtype=torch.float64))


def plan_layer(
    graph: FloatGraph,
    layer: FloatLayer,
    theta: Tensor,
    *,
    units: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    current: Tensor,
    timesteps: int,
    chip: Chip,
    shift: bool = False,
) -> Plan:
    """Choose THETA and final thresholds of one spiking layer.

    ``theta`` (C,) are the thresholds that the rule wants, ``units`` the value of one spike of each source channel,
    ``values`` the float activations of its sources on calibration samples, ``current`` (B, *shape) what they cause.
    For each legal THETA a channel's threshold is raised until its weights fit 8 bits,
    ``theta_c >= max|w_c * unit| * THETA / 127``. The THETA taken minimises the expected squared error of the
    activations: staircase, weight rounding (a uniform error of 1/12 su^2 per synapse and source unit) and, from the
    graded input, the payload's own rounding as measured. With ``shift`` the weights of the graded input get the
    exponent at which they use all bits. Potentials and biases must stay inside the registers, with ``MARGIN`` to spare.
    Raises :class:`Refused` where no THETA satisfies them.
    """
    shape = graph.shapes
    largest, noise, graded = largest_weights(graph, layer, units), 0.0, 0.0
    rounding = torch.zeros(len(theta), dtype=torch.float64)
    for edge in layer.edges:
        fan_in = edge.map.weight[0].numel()
        energy = (values[edge.source].double() / spatial(units[edge.source], shape[edge.source])) ** 2
        uniform = float(energy.mean()) * fan_in / 12
        if edge.source != INPUT:
            noise += uniform
        else:
            graded += uniform
            exact = values[INPUT].double() / units[INPUT]
            squares = (edge.map.weight.double() ** 2).reshape(len(theta), -1).sum(1) * units[INPUT] ** 2
            rounding += squares * ((exact.round() - exact) ** 2).mean()
    a = sampled(layer.activate(current))
    low, high = (by_channel(c).double() for c in (current.amin(0)[None], current.amax(0)[None]))
    low, high, beta = low.amin(1), high.amax(1), layer.bias.reshape(len(theta), -1).double().abs().amax(1)

    best: Plan | None = None
    for threshold in legal_thresholds(chip, min(chip.threshold_limit, 1 << 24)):
        raised = torch.maximum(theta.double(), largest * threshold / chip.weight_limit)
        su = threshold / raised
        # Below zero a potential only sinks; above theta one spike a step takes theta off; u also lacks the bias.
        reach = timesteps * su * (torch.maximum(-low, high - raised).clamp_min(0) + beta)
        if float(reach.max()) * MARGIN + threshold >= chip.state_limit:
            break
        if float((timesteps * su * beta).max()) * MARGIN + threshold > chip.bias_limit:
            break
        exponent = _exponent(float((largest * su).max()), chip) if shift and graded else 0
        rounded = (noise + graded * 4.0**exponent) * su**-2 + rounding
        cost = float((quantisation_error(a, raised.float(), timesteps) + rounded).sum())
        if best is None or cost < best.cost:
            best = Plan(threshold, raised.float(), su, cost, exponent)
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


def quantise(
    graph: FloatGraph,
    x: Tensor,
    timesteps: int,
    holdoff: int,
    rule: str,
    initial: str,
    input_bits: int,
    shift_input: bool,
    chip: Chip,
    progress: Callable[[int, int], object],
) -> tuple[Network, dict[str, Plan]]:
    """Build the integer network with the trained biases as its schedule, and each layer's scale.

    Scales look at the first ``SAMPLES`` of the inputs ``x`` (B, *input_shape). ``rule`` names the threshold rule; an
    activation that ends somewhere, as ReLU6 does, says itself where a rate of one is. ``initial`` is one of
    ``INITIAL``. ``shift_input`` lets the weights of the graded input have a negative exponent. ``progress`` gets
    (layers done, layers in all).
    """
    units: dict[str, Tensor] = {}
    plans: dict[str, Plan] = {}
    layers = []
    for done, (layer, values, current, activation) in enumerate(graph.precise().currents(x[:SAMPLES])):
        progress(done, len(graph.layers))
        if layer.kind == "spiking":
            if layer.upper is not None:
                theta = torch.as_tensor(layer.upper).expand(layer.shape[0])
            elif rule == "given":
                raise refuse(layer.name, "its ReLU has no threshold of its own", "choose another threshold rule")
            else:
                theta = thresholds.choose(rule, activation, timesteps)
            plan_with = partial(
                *(plan_layer, graph, layer, theta),
                values=values,
                current=current,
                timesteps=timesteps,
                chip=chip,
                shift=shift_input,
            )
        else:
            plan_with = partial(plan_readout, graph, layer, current=current, timesteps=timesteps, chip=chip)
        if INPUT not in units and INPUT in values:
            units[INPUT] = _payload_unit(values[INPUT], input_bits, units, plan_with)
        plan = plans[layer.name] = plan_with(units=units)
        units[layer.name] = plan.theta
        edges = tuple(
            integer_edge(
                *(e, units[e.source], plan.su, graph.shapes[e.source], chip, layer.shape),
                exponent=plan.exponent if e.source == INPUT else 0,
            )
            for e in layer.edges
        )
        start, shift = initial_potential(initial, layer)
        beta = layer.bias.double() * (spatial(plan.su, layer.shape) if layer.bias.shape == layer.shape else plan.su)
        lost = (1 - 2.0**plan.exponent) / 2  # by rounding towards minus infinity, on average
        bias = bias_schedule(beta + shift * plan.threshold / timesteps + lost, timesteps)
        v0 = np.full(layer.shape[0], round(plan.threshold * start))
        layers.append(Layer(layer.name, layer.shape, edges, plan.threshold, v0, bias, layer.kind))
    progress(len(layers), len(layers))
    encoder = Input(graph.input_shape, input_bits, True, 1 / float(units[INPUT]))
    return Network(encoder, tuple(layers), timesteps, holdoff), plans


def _payload_unit(x: Tensor, bits: int, units: Mapping[str, Tensor], plan_with: Callable[..., Plan]) -> Tensor:
    """Choose what one payload unit is worth: a finer payload leaves fewer su for the first weights, and vice versa."""
    finest = float(x.abs().max()) / ((1 << (bits - 1)) - 1) or 1.0
    candidates = [torch.tensor(finest * 2**halving, dtype=torch.float64) for halving in range(min(HALVINGS, bits - 1))]
    costs, refusals = {}, []
    for unit in candidates:
        try:
            costs[unit] = plan_with(units={**units, INPUT: unit}).cost
        except Refused as error:
            refusals.append(error)
    if not costs:
        raise refusals[-1]
    return min(costs, key=costs.__getitem__)
