"""How to train: one record, whose fields are the options of ``ann2loihi train``. Nothing here computes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from sim.arguments import AtLeast, Count, fitting, shown
from sim.findings import Finding, Refused
from toolchain.recipe import Method, Recipe

Activation = Literal["relu", "nq", "qcfs", "sliprelu", "tcl", "rnl", "trelu"]
Noise = Literal["layerwise", "fixed"]
Augment = Literal["none", "crop", "crop+flip"]
Precision = Literal["float32", "bfloat16"]
Whole = Annotated[int, AtLeast(0)]


def _about(text: str) -> dict[str, Any]:
    return {"help": text, "option": ""}


@dataclass(frozen=True)
class Settings:
    """How a network is trained: everything that decides the result beside the model and the data.

    Raises :class:`Refused`, all findings at once, for a value of another type or outside its limits.
    """

    activation: Activation = field(default="nq", metadata=_about("What takes the place of every ReLU; relu keeps it."))
    levels: Count = field(default=4, metadata=_about("L, the steps that a quantised activation takes."))
    per_channel: bool = field(default=False, metadata=_about("A threshold for each channel; else one for a layer."))
    noise: Noise = field(default="layerwise", metadata=_about("Of nq: measured after each epoch, or fixed to delta."))
    delta: float = field(default=0.0, metadata=_about("Of nq: noise of the first epoch; with fixed, of all."))
    tau: Whole = field(default=0, metadata=_about("Of nq: steps after which noise is measured; 0 for the levels."))
    epochs: Count = field(default=15, metadata=_about("Passes over the training part."))
    batch: Count = field(default=128, metadata=_about("Samples of an update, over all processes."))
    learning_rate: float = field(default=0.05, metadata=_about("At the start; it falls to 0 along half a cosine."))
    momentum: float = field(default=0.9, metadata=_about("Of stochastic gradient descent."))
    weight_decay: float = field(default=5e-4, metadata=_about("Of weights; biases, norms and thresholds have none."))
    augment: Augment = field(default="none", metadata=_about("Random crops of the padded image, and mirror images."))
    padding: Whole = field(default=4, metadata=_about("Pixels of 0 on each side, from which crops are taken."))
    distill: float = field(default=0.0, metadata=_about("Share of the loss that compares with the ReLU network, 0..1."))
    temperature: float = field(default=2.0, metadata=_about("That divides the logits which are compared."))
    validation: Whole = field(
        default=0,
        metadata=_about("Samples held out, to choose the epoch and measure noise; 0 for a tenth, at most 1000."),
    )
    calibration: Count = field(
        default=64, metadata=_about("Training inputs by which each epoch's network is converted.")
    )
    every: Count = field(default=1, metadata=_about("Epochs between two validations; the last is always validated."))
    timesteps: Whole = field(default=0, metadata=_about("T of the network that is validated; 0 for the levels."))
    holdoff: Whole = field(default=0, metadata=_about("K of the network that is validated."))
    method: Method = field(default="none", metadata=_about("Bias rule of the network that is validated."))
    precision: Precision = field(default="float32", metadata=_about("bfloat16 multiplies in 16 bits (autocast)."))
    seed: Whole = field(default=0, metadata=_about("Of the split, the order, augmentation and noise."))

    def __post_init__(self) -> None:
        found: list[Finding] = []
        for name, hint in _HINTS.items():
            try:
                object.__setattr__(self, name, value := fitting(name, getattr(self, name), hint))
            except Refused as error:
                found += error.findings
                continue
            if get_origin(hint) is Literal and value not in get_args(hint):
                found.append(Finding(name, f"unknown value {shown(value)}", f"use one of {', '.join(get_args(hint))}"))
        if not found:
            found = [
                Finding(name, f"{getattr(self, name):g} is out of range", f"give {low:g} to {high:g}")
                for name, (low, high) in _RANGES.items()
                if not low <= getattr(self, name) <= high
            ]
        if found:
            raise Refused(found)

    @property
    def steps(self) -> int:
        """T of the network that is validated."""
        return self.timesteps or self.levels

    @property
    def measured(self) -> int:
        """Steps after which noise is measured."""
        return self.tau or self.levels

    def recipe(self, timesteps: int) -> Recipe:
        """Return how each epoch's network is converted, for so many steps."""
        rule: Any = "mse" if self.activation == "relu" else "given"
        return Recipe(timesteps=timesteps, holdoff=self.holdoff, method=self.method, weights="nearest", threshold=rule)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)


_HINTS = get_type_hints(Settings, include_extras=True)
_RANGES: dict[str, tuple[float, float]] = {
    "delta": (0, 1e6),
    "learning_rate": (0, 1e3),
    "momentum": (0, 1),
    "weight_decay": (0, 1e3),
    "distill": (0, 1),
    "temperature": (1e-3, 1e3),
    "timesteps": (0, 4096),
    "holdoff": (0, 4096),
    "tau": (0, 4096),
    "seed": (0, (1 << 63) - 1),
}
