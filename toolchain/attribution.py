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
theta / 2 somewhere it is counted as ``dead``. The readout has no spikes: its ``s`` is g, its ``a`` the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exporters.report import wilson
from sim.network import INPUT, Layer
from sim.progress import track
from sim.trace import Trace
from toolchain.convert import Conversion
from toolchain.graph import FloatLayer
from toolchain.graph.channels import spatial
from toolchain.inputs import as_inputs
from toolchain.recipe import Recipe
from toolchain.scales.integers import initial_potential

PARTS = ("inherited", "weights", "clipping", "staircase", "timing")  #: in the order of the module's docstring
CAUSES = (*PARTS[1:], "dead")  #: of which a layer's own error consists
AVOIDABLE = tuple(cause for cause in CAUSES if cause != "staircase")  #: which T spikes alone do not explain
NEURON_STEPS = 1 << 26  #: whose trace is held at a time, at about five bytes each

#: A layer that adds less than this share of the worst layer's own error is not where things go wrong.
WORTH_NAMING = 0.5

#: What to try, with the recipe's fields, and for which recipes.
Advice = tuple[str, Callable[[Recipe], bool]]


def _always(recipe: Recipe) -> bool:
    return True


def _clips_by_rule(recipe: Recipe) -> bool:
    return recipe.threshold != "max" and recipe.weights != "tuned"  # which learns where to clip


#: By cause: what happens, and what may help.
ADVICE: dict[str, tuple[str, tuple[Advice, ...]]] = {
    "weights": (
        "its weights are too coarse as integers",
        (
            ('weights="fitted"', lambda r: r.weights == "nearest"),
            ("more calibration data to fit the weights to", lambda r: r.weights != "nearest"),
            ("a model without channels whose weights dwarf the others'", _always),
        ),
    ),
    "clipping": (
        "activations above the threshold are cut off",
        (
            ('threshold="max", which cuts off less at the price of larger steps', _clips_by_rule),
            ("more calibration data, as similar as possible to what the network will see", _always),
        ),
    ),
    "staircase": (
        "T = {timesteps} draws its activations in too coarse steps",
        (
            ("timesteps={more}", _always),
            ('initial="half"', lambda r: r.initial == "zero"),
            ('recipe="tuned", which takes minutes', lambda r: r.weights != "tuned"),
        ),
    ),
    "timing": (
        "spikes arrive unevenly, and it fires too early or too late",
        (
            ("holdoff={later}", _always),
            ('method="mse"', lambda r: r.method != "mse" and r.weights != "tuned"),
        ),
    ),
    "dead": (
        "channels that the trained network uses never fire",
        (
            ('threshold="mse", since outliers raise their thresholds', lambda r: r.threshold != "mse"),
            ("timesteps={more}", _always),
            ("a model without weights so uneven that whole channels round to 0", _always),
        ),
    ),
}


@dataclass(eq=False)
class _Sums:
    """What is added up over the inputs, by channel where it has one; float64."""

    shares: Tensor  #: (parts, C): sum of part * (s - a)
    error: Tensor  #: (C,): sum of (s - a) ** 2
    activation: Tensor  #: (C,): sum of a ** 2
    spikes: Tensor  #: (C,)
    wanted: Tensor  #: (C,): how often a > theta / 2
    saturated: Tensor  #: (C,): how often a neuron fires at every step and a > theta
    uneven: Tensor  #: (C,): how often the spikes are not those that the charge is good for
    neurons: Tensor  #: (C,): neurons times inputs

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(mine + getattr(other, name) for name, mine in vars(self).items()))


@torch.no_grad()
def attribute(conversion: Conversion, x: Any) -> list[dict[str, Any]]:
    """Split every layer's error on model inputs ``x`` (B, *input_shape) by cause; rows of JSON types.

    A row holds ``name``; ``error`` and its shares ``inherited``, ``own`` and each of ``CAUSES`` (see the module's
    docstring); and for a spiking layer ``saturated``, the share of neurons that fire at every step while the ANN's
    activation is above theta; ``residual_outside``, the share whose last potential is outside 0..THETA although there
    was a step left to fire at, or a spike not to fire; ``dead_channels``, how many.
    """
    network = conversion.network
    x = as_inputs(x, network.input.shape)
    batch = max(1, NEURON_STEPS // sum(layer.size * len(network.busy(layer)) for layer in network.layers))
    sums: dict[str, _Sums] = {}
    for part in track("finding what costs accuracy", x.split(batch)):
        for name, more in _measure(conversion, part).items():
            sums[name] = sums[name] + more if name in sums else more
    return [_row(layer, sums[layer.name]) for layer in network.layers]


def _measure(conversion: Conversion, x: Tensor) -> dict[str, _Sums]:
    network, graph = conversion.network, conversion.graph
    trace = conversion.run(x, overflow="count")
    decoded = {INPUT: torch.from_numpy(network.input.encode(x)) / torch.tensor(network.input.scale).float()}
    sums = {}
    for layer, (floating, _, a) in zip(network.layers, graph.walk(x), strict=True):
        f = graph.forward(floating, decoded)
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
    g = floating.activate((charge - _half(conversion.recipe, layer, floating)) / (su * timesteps))
    if layer.kind == "readout":
        c = q = s = g
        good = fired
    else:
        c = torch.minimum(g, theta)
        good = (charge / layer.threshold).floor().clamp(0, timesteps)
        q, s = good * theta / timesteps, fired * theta / timesteps

    def by_channel(values: Tensor) -> Tensor:
        return values.double().transpose(0, 1).flatten(1).sum(1)

    error = s - a
    return _Sums(
        torch.stack([by_channel(part * error) for part in (f - a, g - f, c - g, q - c, s - q)]),
        by_channel(error**2),
        by_channel(a**2),
        by_channel(fired),
        by_channel(a > theta / 2),
        by_channel((fired == timesteps) & (a > theta)),
        by_channel(fired != good),
        by_channel(torch.ones_like(a)),
    ), s.float()


def _half(recipe: Recipe, layer: Layer, floating: FloatLayer) -> Tensor:
    """Sum up what a neuron gets beside its activation so that it rounds: v0 and the whole window's shift, su."""
    _, shift = initial_potential(recipe.initial, floating)
    return spatial(torch.from_numpy(layer.v0.copy()), layer.shape) + shift * layer.threshold


def _row(layer: Layer, sums: _Sums) -> dict[str, Any]:
    dead = (sums.spikes == 0) & (sums.wanted > 0)
    if layer.kind == "readout":
        dead = torch.zeros_like(dead)
    # rms(s - a) * rms(a), of sums instead of means; 0 without an error, and where the ANN's silence gives no measure.
    norm = float((sums.error.sum() * sums.activation.sum()).sqrt()) or torch.inf
    shares = {part: float(share) / norm for part, share in zip(PARTS, (sums.shares * ~dead).sum(1), strict=True)}
    inherited = float(sums.shares[0].sum()) / norm
    shares |= {"inherited": inherited, "dead": float(sums.shares[1:, dead].sum()) / norm}
    row = {
        "name": layer.name,
        "error": float(sums.error.sum()) / norm,
        "inherited": inherited,
        "own": sum(shares[cause] for cause in CAUSES),
        **{cause: shares[cause] for cause in CAUSES},
    }
    if layer.kind == "spiking":
        neurons = float(sums.neurons.sum())
        row |= {
            "saturated": float(sums.saturated.sum()) / neurons,
            "residual_outside": float(sums.uneven.sum()) / neurons,
            "dead_channels": int(dead.sum()),
        }
    return row


def verdict(
    rows: Sequence[Mapping[str, Any]], recipe: Recipe, trained: Tensor, spiking: Tensor, y: Tensor | None = None
) -> str:
    """Say in one or two sentences where a conversion goes wrong first, why, and what to try; or that it does not.

    ``rows`` come from :func:`attribute`; ``trained`` and ``spiking`` are the two networks' classes, int64 (B,), ``y``
    the labels. Nothing is wrong where no fewer samples are right, or where the networks differ on fewer samples than
    half the 95 % interval of the trained network's accuracy holds: as many samples, drawn again, would change more.
    Without labels the interval is that of the agreement.

    A layer goes wrong where all that could be better costs more than the staircase, which any T spikes would draw;
    the first one is named whose own error is at least ``WORTH_NAMING`` of the largest. If there is none, T is at
    fault, and the layer with the largest own error is named.
    """
    n, agreeing = len(trained), int((trained == spiking).sum())
    certain, lost = agreeing, n - agreeing
    decides = f"decides like the trained one on {agreeing} of {n} samples"
    if y is not None:
        certain = int((trained == y).sum())
        lost = certain - int((spiking == y).sum())
        difference = f"{abs(lost)} {'fewer' if lost > 0 else 'more'}" if lost else "as many"
        decides += f" and gets {difference} right"
    if lost <= 0:
        return f"Nothing is lost: the spiking network {decides}."
    low, high = wilson(certain, n)
    if 100 * (n - agreeing) / n <= (high - low) / 2:
        noise = f"another {n} samples might change more than that"
        return f"Nothing measurable is lost: the spiking network {decides}; {noise}."

    largest = max(row["own"] for row in rows)
    candidates = [row for row in rows if row["own"] >= min(WORTH_NAMING * largest, largest)]
    wrong = next((row for row in candidates if row["own"] > 2 * row["staircase"]), None)
    row = wrong or max(candidates, key=lambda row: row["own"])
    cause = max(AVOIDABLE, key=row.__getitem__) if wrong else "staircase"
    place = f"It goes wrong first in {row['name']}" if wrong else f"No layer stands out, {row['name']} adds most"
    values = {"timesteps": recipe.timesteps, "more": 2 * recipe.timesteps, "later": recipe.holdoff + 1}
    what, advice = ADVICE[cause]
    *first, last = (text.format(**values) for text, helps in advice if helps(recipe))
    return (
        f"The spiking network {decides}. {place}: {what.format(**values)} "
        f"({cause} is {row[cause]:.2f} of its relative error of {row['error']:.2f}). "
        f"Try {', '.join(first)}{' or ' if first else ''}{last}."
    )
