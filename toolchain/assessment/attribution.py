"""Why a spiking network decides otherwise than the trained one: every layer's error, split by cause.

A neuron's whole window is summed up by its charge G: its initial potential, all currents and all biases, which is its
last potential plus THETA for every spike. From the ANN's activation ``a`` to the decoded spikes ``s`` there are then
five steps, each measured on the neurons' real inputs::

    x = spikes / T * theta of the sources (payload / scale of the input)      s = spikes / T * theta
    f = act(W x + b)                           the trained layer on what it is really sent
    g = act((G - half) / (su * T))             the same with the integer weights and the whole bias schedule
    c = min(g, theta)                          what a neuron that fires at every step stands for
    q = clip(floor(G / THETA), 0, T) / T * theta        the spikes that this charge is good for

    s - a  =  (f - a)  +  (g - f)  +  (c - g)  +  (q - c)  +  (s - q)
              inherited   weights     clipping    staircase   timing

``half`` is the half threshold (as v0 or, step by step, as a shift) that turns the floor into rounding. Timing is what
remains where a charge arrives unevenly: too early, and spikes are fired that cannot be taken back; too late, and more
is left than the last steps can fire.

Each part's *share* is ``mean(part * (s - a)) / (rms(s - a) * rms(a))``. Shares add up exactly to the layer's relative
error ``rms(s - a) / rms(a)``. A negative one takes error away: fitted weights and bias rules are there to undo what
was inherited or what timing will do, and are not to blame for moving currents. The first layer inherits the rounding of
the payload. ``own`` is all but the inherited part; in channels that never fire although the ANN's activation exceeds
theta / 2 somewhere it is counted as ``dead``. The readout has no spikes: its ``s`` is g, its ``a`` the outputs. Where
outputs have units of their own, each is measured by its root mean square, and a regression's by its standard deviation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from exporters.report import CAUSES, LEVELS, PARTS, WANTED, Share
from sim.arguments import checked
from sim.network import INPUT, Layer
from sim.progress import track
from sim.trace import Trace
from toolchain.convert import Conversion
from toolchain.graph import FloatLayer
from toolchain.graph.channels import spatial
from toolchain.inputs import as_inputs
from toolchain.recipe import Recipe
from toolchain.scales.integers import initial_potential
from toolchain.task import shares_scale

STEPS = tuple(part for part in PARTS if part != "dead")  #: in the order of the module's docstring
NEURON_STEPS = 1 << 26  #: whose trace is held at a time, at about five bytes each


@dataclass(eq=False)
class _Sums:
    """What is added up over the inputs, by channel where it has one; float64."""

    shares: Tensor  #: (len(STEPS), C): sum of part * (s - a)
    error: Tensor  #: (C,): sum of (s - a) ** 2
    activation: Tensor  #: (C,): sum of a ** 2
    spikes: Tensor  #: (C,)
    mean: Tensor  #: (C,): sum of a
    wanted: Tensor  #: (C,): how often a > theta / 2
    saturated: Tensor  #: (C,): how often a neuron fires at every step and a > theta
    uneven: Tensor  #: (C,): how often the spikes are not those that the charge is good for
    neurons: Tensor  #: (C,): neurons times inputs
    fired: Tensor  #: (*shape): spikes of every neuron
    pairs: Tensor  #: (n + 1, WANTED): how often a rate, in n-ths, meets a wanted one, clip(a / theta, 0, 1)
    moments: Tensor  #: (6,): of rates r and wanted ones w the sums of |r - w|, w, r, w ** 2, r ** 2, w r

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(mine + getattr(other, name) for name, mine in vars(self).items()))


@dataclass(frozen=True, eq=False)
class Firing:
    """How a spiking layer fires, and how near that comes to the rates that are wanted, clip(a / theta, 0, 1)."""

    spikes: np.ndarray  #: of every neuron, int64 (*shape)
    per_neuron: float  #: spikes of a neuron on an input
    error: float  #: mean of the difference between wanted and measured rate
    correlation: float | None  #: between them; None where one of them is always the same
    histogram: tuple[tuple[int, ...], ...]  #: see :class:`exporters.report.LayerRow`


@checked
def attribute(conversion: Conversion, x: Any) -> tuple[Share, ...]:
    """Split every layer's error on model inputs ``x`` (B, *model_shape) by cause (see the module's docstring).

    Of a spiking layer also ``saturated``, the share of neurons that fire at every step while the ANN's activation is
    above theta; ``residual_outside``, the share whose last potential is outside 0..THETA although there was a step left
    to fire at, or a spike not to fire; ``dead_channels``, how many.
    """
    return explain(conversion, x)[0]


@torch.no_grad()
def explain(conversion: Conversion, x: Any) -> tuple[tuple[Share, ...], dict[str, Firing]]:
    """Return what :func:`attribute` does, and how every spiking layer fires on the same inputs."""
    network = conversion.network
    x = as_inputs(x, network.input.model_shape)
    batch = max(1, NEURON_STEPS // sum(layer.size * len(network.busy(layer)) for layer in network.layers))
    sums: dict[str, _Sums] = {}
    for part in track("finding what costs accuracy", x.split(batch)):
        for name, more in _measure(conversion, part).items():
            sums[name] = sums[name] + more if name in sums else more
    readout, task = network.readout.name, conversion.recipe.task
    if not shares_scale(task):
        sums[readout] = _in_own_units(sums[readout], centred=task == "regression")
    firing = {layer.name: _firing(sums[layer.name]) for layer in network.layers if layer.kind == "spiking"}
    return tuple(_share(layer, sums[layer.name]) for layer in network.layers), firing


def _in_own_units(sums: _Sums, centred: bool) -> _Sums:
    """Measure each output by its root mean square, or by its standard deviation; one without counts nothing."""
    energy = sums.activation - (sums.mean**2 / sums.neurons if centred else 0)
    unit = torch.where(energy > 1e-9 * sums.activation, 1 / energy, torch.zeros_like(energy))
    shares, error, activation = sums.shares * unit, sums.error * unit, energy * unit
    return replace(sums, shares=shares, error=error, activation=activation)


def _measure(conversion: Conversion, x: Tensor) -> dict[str, _Sums]:
    network, graph = conversion.network, conversion.graph
    # What is constant in the input is a bias of the graph that was quantised, and rounded nowhere.
    reached = graph if conversion.recipe.weights == "tuned" else conversion.source
    trace = conversion.run(x, overflow="count")
    scale = spatial(torch.tensor(network.input.scale), network.input.shape).float()
    decoded = {INPUT: torch.from_numpy(network.input.encode(x)) / scale}
    sums = {}
    for layer, same, (floating, _, a) in zip(network.layers, reached.layers, graph.walk(x), strict=True):
        f = reached.forward(same, decoded)
        sums[layer.name], decoded[layer.name] = _layer(conversion, layer, floating, a.double(), f.double(), trace)
    return sums


def _layer(
    conversion: Conversion, layer: Layer, floating: FloatLayer, a: Tensor, f: Tensor, trace: Trace
) -> tuple[_Sums, Tensor]:
    """Add up one layer's parts; also returns its decoded output, float32 (B, *shape)."""
    plan, timesteps = conversion.scales[layer.name], conversion.network.timesteps
    theta, su = spatial(plan.theta, layer.shape), spatial(plan.su, layer.shape)
    left = torch.from_numpy(trace.potentials[layer.name][:, -1]).double()
    fired = torch.from_numpy(trace.spikes[layer.name]).sum(1, dtype=torch.float64)
    charge = left + layer.threshold * fired
    if layer.kind == "readout":
        c = q = s = g = torch.from_numpy(conversion.decode(trace))
        good = fired
    else:
        g = floating.activate((charge - _half(conversion.recipe, layer, floating)) / (su * timesteps))
        c = torch.minimum(g, theta)
        good = (charge / layer.threshold).floor().clamp(0, timesteps)
        q, s = good * theta / timesteps, fired * theta / timesteps

    def merged(values: Tensor) -> Tensor:
        """Take the mean of copies: what they draw together."""
        values = values.double()
        return values if floating.copies == 1 else values.unflatten(1, (-1, floating.copies)).mean(2)

    def by_channel(values: Tensor) -> Tensor:
        return merged(values).sum([0, *range(2, values.ndim)])

    def product(values: Tensor, other: Tensor) -> Tensor:
        return (values * other).sum([0, *range(2, values.ndim)])

    error, mean = merged(s - a), merged(a)
    return _Sums(
        torch.stack([product(merged(part), error) for part in (f - a, g - f, c - g, q - c, s - q)]),
        product(error, error),
        product(mean, mean),
        by_channel(fired),
        by_channel(a),
        by_channel(a > theta / 2),
        by_channel((fired == timesteps) & (a > theta)),
        by_channel(fired != good),
        by_channel(torch.ones_like(a)),
        fired.sum(0),
        *_compared(fired / timesteps, (a / theta).clamp(0, 1), min(timesteps, LEVELS)),
    ), s.float()


def _compared(rate: Tensor, wanted: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Count pairs of a rate and the rate that is wanted, float64 (B, *shape) both, and sum up their moments."""
    r, w = rate.flatten(), wanted.flatten()
    place = (r * levels).round().int() * WANTED + (w * WANTED).int().clamp(max=WANTED - 1)
    pairs = torch.bincount(place, minlength=(levels + 1) * WANTED).reshape(-1, WANTED)
    return pairs, torch.stack([(r - w).abs().sum(), w.sum(), r.sum(), w @ w, r @ r, w @ r])


def _firing(sums: _Sums) -> Firing:
    n = int(sums.pairs.sum())  # each copy by itself
    error, wanted, rate, wanted_square, rate_square, product = (sums.moments / n).tolist()
    variances = wanted_square - wanted**2, rate_square - rate**2
    known = min(variances) > 1e-13  # less is rounding: of what is always the same
    return Firing(
        sums.fired.long().numpy(),
        float(sums.fired.sum()) / n,
        error,
        (product - wanted * rate) / math.sqrt(math.prod(variances)) if known else None,
        tuple(map(tuple, sums.pairs.tolist())),
    )


def _half(recipe: Recipe, layer: Layer, floating: FloatLayer) -> Tensor:
    """Sum up what a neuron gets beside its activation so that it rounds: v0 and the whole window's shift, su."""
    _, shift = initial_potential(recipe.initial, floating)
    return spatial(torch.from_numpy(layer.v0.copy()), layer.shape) + shift * layer.threshold


def _share(layer: Layer, sums: _Sums) -> Share:
    dead = (sums.spikes == 0) & (sums.wanted > 0)
    if layer.kind == "readout":
        dead = torch.zeros_like(dead)
    # rms(s - a) * rms(a), of sums instead of means; 0 without an error, and where the ANN's silence gives no measure.
    norm = float((sums.error.sum() * sums.activation.sum()).sqrt()) or torch.inf
    parts = {part: float(share) / norm for part, share in zip(STEPS, (sums.shares * ~dead).sum(1), strict=True)}
    parts |= {"inherited": float(sums.shares[0].sum()) / norm, "dead": float(sums.shares[1:, dead].sum()) / norm}
    measured: dict[str, Any] = parts | {"own": sum(parts[cause] for cause in CAUSES)}
    if layer.kind == "spiking":
        neurons = float(sums.neurons.sum())
        measured |= {
            "saturated": float(sums.saturated.sum()) / neurons,
            "residual_outside": float(sums.uneven.sum()) / neurons,
            "dead_channels": int(dead.sum()),
        }
    return Share(name=layer.name, error=float(sums.error.sum()) / norm, **measured)
