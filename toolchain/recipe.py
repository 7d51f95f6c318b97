"""Recipes: a conversion is a point in a small space, and published systems are points that have a name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from sim import chip as chips
from sim.findings import Finding, Refused, refuse
from toolchain import calibrate, quantize, thresholds


@dataclass(frozen=True)
class Recipe:
    """How to convert: everything that decides the result beside the model and the calibration inputs."""

    timesteps: int = 8  #: T, the length of every firing window
    holdoff: int = 1  #: K, steps by which a layer integrates before it may fire
    method: str = "mse"  #: bias rule: none, static, potential, ftbc, exact, mse
    weights: str = "fitted"  #: integer weights: nearest, fitted to the spikes that arrive, or tuned by gradients first
    updates: int = 2000  #: gradient steps that tune weights
    per_neuron: bool = False  #: whether every neuron gets a bias schedule of its own; else a channel shares one
    threshold: str = "mse"  #: threshold rule: given (by the activation), max, percentile, mse
    initial: str = "auto"  #: initial potential: zero, half, shift, or auto: what the activation was trained for
    chip: str = "loihi2"  #: limits to respect: loihi2, wide
    input_bits: int = 8  #: payload of the graded input, signed
    shift_input: bool = False  #: whether its weights may be finer than a su, by an exponent that netx does not read

    def __post_init__(self) -> None:
        found = []

        def one_of(field: str, known: Iterable[str]) -> None:
            value = getattr(self, field)
            if value not in known:
                found.append(Finding(field, f"unknown value {value!r}", f"use one of {', '.join(known)}"))

        if self.timesteps < 1:
            found.append(Finding("timesteps", f"T = {self.timesteps}", "give at least 1 step"))
        if self.holdoff < 0:
            found.append(Finding("holdoff", f"K = {self.holdoff}", "give 0 or more steps"))
        if self.updates < 1:
            found.append(Finding("updates", f"{self.updates} gradient steps", "give at least 1"))
        if not 2 <= self.input_bits <= 24:
            found.append(Finding("input_bits", f"{self.input_bits} bits", "give 2 to 24"))
        one_of("method", calibrate.RULES)
        one_of("weights", calibrate.WEIGHTS)
        one_of("threshold", ["given", *thresholds.RULES])
        one_of("initial", ["auto", *quantize.INITIAL])
        one_of("chip", chips.CHIPS)
        if found:
            raise Refused(found)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, as they are echoed into every artefact."""
        return asdict(self)


_BASELINE = Recipe(holdoff=0, weights="nearest", method="none")
_MODIFIED = replace(_BASELINE, threshold="given")  # for networks trained with an activation that ends somewhere

#: By name: ours, without and with gradients, and the systems of the papers' tables as baselines, for the integers of
#: the chip. Those with a given threshold are for networks trained with the activation that they are about
#: (:mod:`toolchain.activations`); NQ differs from QCFS in training only. TSC (Han & Roy, ECCV 2020) is missing: it
#: weights a spike by the time at which it comes, and a synapse here weighs all spikes alike. SNN Calibration's advanced
#: pipeline moves weights by gradients too; "snnc-ap" is what it does to the initial potential.
RECIPES: dict[str, Recipe] = {
    "ann2loihi": Recipe(),
    "tuned": Recipe(method="exact", weights="tuned"),
    "rmp": replace(_BASELINE, threshold="max", initial="zero"),  # Han et al., CVPR 2020
    "opi": replace(_BASELINE, threshold="max", initial="half"),  # Bu et al., AAAI 2022
    "rts": replace(_MODIFIED, initial="shift"),  # Deng & Gu, ICLR 2021; TReLU
    "snnc-lp": replace(_BASELINE, method="static", initial="half"),  # Li et al., ICML 2021
    "snnc-ap": replace(_BASELINE, method="potential", initial="half"),
    "qcfs": replace(_MODIFIED, initial="half"),  # Bu et al., ICLR 2022; QCFS
    "nq": replace(_MODIFIED, initial="half"),  # Huang et al.; QCFS with noise
    "ftbc": replace(_BASELINE, method="ftbc", initial="half"),  # Wu et al., ECCV 2024
    "ftbc+rts": replace(_MODIFIED, method="ftbc", initial="shift"),
    "ftbc+qcfs": replace(_MODIFIED, method="ftbc", initial="half"),
}


def recipe(name: str = "ann2loihi", **changes: Any) -> Recipe:
    """Return the recipe of that name with some fields changed; raises :class:`Refused` for what is unknown."""
    if name not in RECIPES:
        raise refuse("recipe", f"unknown recipe {name!r}", f"use one of {', '.join(RECIPES)}")
    known = [field.name for field in fields(Recipe)]
    unknown = [key for key in changes if key not in known]
    if unknown:
        raise refuse("recipe", f"no field {', '.join(map(repr, unknown))}", f"use {', '.join(known)}")
    return replace(RECIPES[name], **changes)
