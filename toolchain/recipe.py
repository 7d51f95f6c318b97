"""Recipes: a conversion is a point in a small space, and published systems are points that have a name.

Nothing here computes: the steps of the pipeline take a :class:`Recipe` whole, and the command line's options are made
from its fields. A new option is written here, in one line, and read by the step that it is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from typing import Any, Literal, get_args, get_type_hints

from exporters.report import TaskName
from sim import chip as chips
from sim.arguments import shown, whole
from sim.findings import Finding, Refused, refuse
from sim.network import InputForm

Method = Literal["none", "static", "potential", "once", "ftbc", "exact", "mse"]
WeightRule = Literal["nearest", "fitted", "tuned"]
ThresholdRule = Literal["given", "max", "percentile", "mse"]
Initial = Literal["auto", "zero", "half", "shift"]
ChipName = Literal["loihi2", "netx", "wide"]
ResetInterval = Literal["shortest", "power-of-two"]
TaskChoice = Literal["auto", TaskName]


def _about(text: str, *, limits: tuple[int, int] | None = None, option: str | None = "") -> dict[str, Any]:
    """Describe a field: its help, what its integers may be, and its option if that has another name, or none."""
    return {"help": text, "limits": limits, "option": option}


@dataclass(frozen=True)
class Recipe:
    """How to convert: everything that decides the result beside the model and the calibration inputs.

    Raises :class:`Refused`, all findings at once, for a value of another type or outside its limits.
    """

    timesteps: int = field(default=8, metadata=_about("T, the length of every firing window.", limits=(1, 4096)))
    holdoff: int = field(
        default=1, metadata=_about("K, steps that a layer integrates before it may fire.", limits=(0, 4096))
    )
    method: Method = field(default="mse", metadata=_about("Bias rule."))
    weights: WeightRule = field(
        default="fitted",
        metadata=_about(
            "Integer weights: nearest, fitted to the spikes that arrive, or tuned by gradients.", option="weight-rule"
        ),
    )
    updates: int = field(default=2000, metadata=_about("Gradient steps that tune weights.", limits=(1, 10_000_000)))
    mirrored: bool = field(
        default=False,
        metadata=_about("Whether inputs mean the same mirrored left to right; weights are then tuned on both."),
    )
    copies: int = field(
        default=1, metadata=_about("Neurons that draw each activation together, each T levels of it.", limits=(1, 64))
    )
    layer_copies: str = field(
        default="",
        metadata=_about("The same of single layers, or of all that a module holds: layer1.0.conv1=2,layer3=4."),
    )
    neuron_budget: float = field(
        default=1.0,
        metadata=_about("Neurons, in multiples of the network's own: copies where they pay most.", limits=(1, 64)),
    )
    core_budget: int = field(
        default=0,
        metadata=_about(
            "Cores of Loihi 2 that a network and its copies may take; 0 leaves it to the neurons.",
            limits=(0, 1_000_000),
        ),
    )
    per_neuron: bool = field(
        default=False, metadata=_about("Whether every neuron gets biases of its own; else a channel shares them.")
    )
    threshold: ThresholdRule = field(
        default="mse", metadata=_about("Threshold rule; given is what the activation brings along.")
    )
    initial: Initial = field(
        default="auto", metadata=_about("Initial potential; auto is what the activation was trained for, else half.")
    )
    task: TaskChoice = field(
        default="auto", metadata=_about("What the outputs mean; auto tells by their shape and the labels.")
    )
    chip: ChipName = field(default="loihi2", metadata=_about("Registers to respect.", option=None))
    input_bits: int = field(default=8, metadata=_about("Bits of the graded input's signed payload.", limits=(2, 24)))
    input_form: InputForm = field(
        default="payload",
        metadata=_about("How inputs get in: graded payloads, bias currents, or spikes of neurons that these drive."),
    )
    shift_input: bool = field(
        default=False,
        metadata=_about(
            "Whether input weights may be finer than a su, which netx does not read; bias currents always are."
        ),
    )
    reset_interval: ResetInterval = field(
        default="shortest", metadata=_about("Steps between samples: the fewest, or what silicon's resets take.")
    )

    def __post_init__(self) -> None:
        found = []
        for name, (kind, limits) in _KINDS.items():
            value = getattr(self, name)
            if kind is int:
                try:
                    number = whole(name, value)  # NumPy's become Python's, which JSON knows
                except Refused as error:
                    found.append(replace(error.findings[0], remedy=f"give {limits[0]} to {limits[1]}"))
                    continue
                if not limits[0] <= number <= limits[1]:
                    found.append(Finding(name, f"{number} is out of range", f"give {limits[0]} to {limits[1]}"))
                else:
                    object.__setattr__(self, name, number)
            elif kind is float:
                if isinstance(value, bool) or not isinstance(value, Real) or not limits[0] <= value <= limits[1]:
                    found.append(Finding(name, f"{shown(value)} given", f"give {limits[0]} to {limits[1]}"))
                else:
                    object.__setattr__(self, name, float(value))
            elif kind is bool:
                if not isinstance(value, bool):
                    found.append(Finding(name, f"{shown(value)} is neither True nor False", "give one of them"))
            elif kind is str:
                found += _unreadable(name, value)
            elif not (isinstance(value, str) and value in get_args(kind)):
                found.append(Finding(name, f"unknown value {shown(value)}", f"use one of {', '.join(get_args(kind))}"))
        if found:
            raise Refused(found)

    @property
    def by_layer(self) -> dict[str, int]:
        """The copies that ``layer_copies`` gives to layers and modules, by name."""
        return dict(_assigned(self.layer_copies))

    @property
    def limits(self) -> chips.Chip:
        """The registers that ``chip`` names."""
        return chips.CHIPS[self.chip]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types, as they are echoed into every artefact."""
        return asdict(self)


def _assigned(text: str) -> Iterator[tuple[str, int]]:
    """Read "name=2,other=4"; ``ValueError`` for what is no such list."""
    for part in text.split(",") if text else ():
        name, number = part.rsplit("=", 1)
        yield name.strip(), int(number)


def _unreadable(name: str, value: Any) -> list[Finding]:
    """Find what is wrong with copies of single layers."""
    low, high = _KINDS["copies"][1]
    try:
        given = list(_assigned(value)) if isinstance(value, str) else [("", 0)]
    except ValueError:
        given = [("", 0)]
    if all(layer and low <= number <= high for layer, number in given) and len(dict(given)) == len(given):
        return []
    return [
        Finding(name, f"{shown(value)} given", f"give LAYER=G,LAYER=G with each layer once and G of {low} to {high}")
    ]


_HINTS = get_type_hints(Recipe)
_KINDS: dict[str, tuple[Any, Any]] = {f.name: (_HINTS[f.name], f.metadata["limits"]) for f in fields(Recipe)}


_BASELINE = Recipe(holdoff=0, weights="nearest", method="none")
_MODIFIED = replace(_BASELINE, threshold="given")  # for networks trained with an activation that ends somewhere

#: By name: ours, without and with gradients, ours for dense networks whose file lava-dl's loader builds all by itself
#: (the form "stock" of :func:`exporters.netx.save`), and the systems of the papers' tables as baselines, for the
#: integers of the chip. Those with a given threshold are for networks trained with the activation that they are about
#: (:mod:`toolchain.graph.activations`); NQ differs from QCFS in training only. TSC (Han & Roy, ECCV 2020) is missing:
#: it weights a spike by the time at which it comes, and a synapse here weighs all spikes alike. So is SNM (Wang et al.,
#: IJCAI 2022): its neurons send negative spikes too, and remember what they have sent. SNN Calibration's
#: advanced pipeline moves weights by gradients too; "snnc-ap" is what it does to the initial potential.
RECIPES: dict[str, Recipe] = {
    "ann2loihi": Recipe(),
    "tuned": Recipe(method="exact", weights="tuned"),
    "stock": Recipe(holdoff=0, chip="netx"),
    "rmp": replace(_BASELINE, threshold="max", initial="zero"),  # Han et al., CVPR 2020
    "opi": replace(_BASELINE, threshold="max", initial="half"),  # Bu et al., AAAI 2022
    "rts": replace(_MODIFIED, initial="shift"),  # Deng & Gu, ICLR 2021; TReLU
    "snnc-lp": replace(_BASELINE, method="static", initial="half"),  # Li et al., ICML 2021
    "snnc-ap": replace(_BASELINE, method="potential", initial="half"),
    "qcfs": replace(_MODIFIED, initial="half"),  # Bu et al., ICLR 2022; QCFS
    "nq": replace(_MODIFIED, initial="half"),  # Huang et al.; QCFS with noise
    "tcl": replace(_MODIFIED, initial="zero"),  # Ho & Chang, DAC 2021; TCL
    "rnl": replace(_MODIFIED, initial="zero"),  # Ding et al., IJCAI 2021; RNL
    "sliprelu": replace(_MODIFIED, initial="half"),  # Jiang et al., ICML 2023; SlipReLU
    "ftbc": replace(_BASELINE, method="ftbc", initial="half"),  # Wu et al., ECCV 2024
    "ftbc+rts": replace(_MODIFIED, method="ftbc", initial="shift"),
    "ftbc+qcfs": replace(_MODIFIED, method="ftbc", initial="half"),
    "ftbc+nq": replace(_MODIFIED, method="ftbc", initial="half"),
}


def named(recipe: str | Recipe = "ann2loihi", **changes: Any) -> Recipe:
    """Return a recipe, or the one of that name, with some fields changed; :class:`Refused` for what is unknown."""
    if not isinstance(recipe, Recipe):
        if not (isinstance(recipe, str) and recipe in RECIPES):
            raise refuse("recipe", f"unknown recipe {recipe!r}", f"use one of {', '.join(RECIPES)}")
        recipe = RECIPES[recipe]
    if unknown := [name for name in changes if name not in _KINDS]:
        raise refuse("recipe", f"no field {', '.join(map(repr, unknown))}", f"use {', '.join(_KINDS)}")
    return replace(recipe, **changes)
