"""What is known about a conversion: one record, which ``report.json``, Markdown, pictures and the console show.

What was not measured is None or empty, absent in JSON, and never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from exporters.report.record import Record
from sim.network import InputForm

TaskName = Literal["classes", "binary", "labels", "pixels", "regression"]
#: What the outputs may mean, and what tells how good they are.
MEASURES: dict[TaskName, str] = {
    "classes": "accuracy",
    "binary": "accuracy",
    "labels": "accuracy of labels",
    "pixels": "accuracy of pixels",
    "regression": "R²",
}

Rung = Literal["ann", "folded", "thresholds", "wide", "int8", "lava"]
#: The ladder from the trained network to the chip, and what its rungs are called.
RUNGS: dict[Rung, str] = {
    "ann": "trained network, float",
    "folded": "batch normalisation folded, float",
    "thresholds": "activations in T steps, float",
    "wide": "spiking, wide integers",
    "int8": "spiking, 8-bit weights",
    "lava": "spiking, 8-bit weights, on Lava",
}

Cause = Literal["weights", "clipping", "staircase", "timing", "dead"]
CAUSES: tuple[Cause, ...] = get_args(Cause)  #: of which a layer's own error consists
LEVELS, WANTED = 32, 24  #: rates, beside 0, and wanted rates that a histogram tells apart at most
PARTS = ("inherited", *CAUSES)  #: of which its whole error does (see :mod:`toolchain.assessment.attribution`)


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """A share of decisions with its 95 % Wilson interval, or R² of a regression with its 95 % interval, in per cent."""

    value: float
    n: int  #: samples
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Accuracy(Score):
    """How often a network is right, or how much of the variance of the labels its outputs explain."""

    KEYS: ClassVar[Mapping[str, str]] = {"value": "accuracy"}


@dataclass(frozen=True, kw_only=True)
class StepAccuracy(Accuracy):
    """How often it is right when it is read after a step of the window."""

    step: int  #: 1..T

    def as_dict(self) -> dict[str, object]:
        """Return JSON types, the step first."""
        return {"step": self.step, **super().as_dict()}


@dataclass(frozen=True, kw_only=True)
class Agreement(Score):
    """How often a network decides like the trained one, or R² against its outputs, which needs no labels."""

    KEYS: ClassVar[Mapping[str, str]] = {"value": "agreement"}


@dataclass(frozen=True, kw_only=True)
class OutputError(Record):
    """How far an output of the spiking network is from the trained one's, in the model's unit."""

    mean: float  #: of the magnitude
    largest: float
    relative: float | None  #: root mean square relative to the output's standard deviation; None where it has none


@dataclass(frozen=True, kw_only=True)
class Trial(Record):
    """One recipe and how it did on held-out inputs."""

    timesteps: int  #: T
    holdoff: int  #: K
    method: str  #: bias rule
    steps: int  #: until the logits are there: what an inference takes
    agreement: float  #: with the ANN, in per cent: of decisions, or R²
    error: float  #: standard error of the agreement, in per cent
    refused: str | None  #: why it could not be converted; its agreement is 0 then
    neuron_budget: float = 1.0  #: neurons, in multiples of the network's own
    neurons: int | None = None
    period: int | None = None  #: steps between samples at least
    spikes: float | None = None  #: per sample
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class Search(Record):
    """How T, K, the bias rule and copies of neurons were chosen."""

    reason: str
    trials: tuple[Trial, ...]


@dataclass(frozen=True, kw_only=True)
class EdgeRow(Record):
    """What feeds a layer."""

    source: str
    synapse: str  #: its type
    weight_shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class LayerRow(Record):
    """A layer, and what a run showed of it. Thresholds, biases and potentials are in synaptic units."""

    name: str
    shape: tuple[int, ...]
    kind: str  #: spiking or readout
    edges: tuple[EdgeRow, ...]
    weights: int  #: how many
    theta: int  #: 0 for a readout
    phase: int  #: first step of the firing window
    bias_min: int
    bias_max: int
    neurons: int
    worst_case: int  #: bound of the register's magnitude over all possible inputs
    copies: int = 1  #: neurons that draw an activation together, among ``neurons``
    peak: int | None = None  #: its largest magnitude on the calibration inputs
    outside: int | None = None  #: u at most on these, where a spiking layer has to be silent
    state_limit: int | None = None  #: what it may hold
    spikes_per_neuron: float | None = None  #: per sample
    rate_error: float | None = None  #: mean of ``|spikes / T - clip(activation / theta, 0, 1)|``
    correlation: float | None = None  #: between the two; None for a layer that is silent or always the same
    #: Neurons times samples by their rate (rows: 0/n .. n/n spikes per step, n = T up to ``LEVELS``) and by the rate
    #: that is wanted (columns: ``WANTED`` equal parts of 0..1).
    histogram: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Share(Record):
    """A layer's relative error and the shares that it consists of, each what ``PARTS`` names; they add up."""

    name: str
    error: float
    inherited: float
    own: float  #: the sum of ``CAUSES``
    weights: float
    clipping: float
    staircase: float
    timing: float
    dead: float
    saturated: float | None = None  #: share of neurons that fire at every step, their activation above theta
    residual_outside: float | None = None  #: share whose last potential says that a spike is missing or too many
    dead_channels: int | None = None

    def of(self, part: str) -> float:
        """Return the share of one of ``PARTS``."""
        share: float = getattr(self, part)
        return share


@dataclass(frozen=True, kw_only=True)
class Attribution(Record):
    """What the layers' errors consist of, and what follows from it."""

    samples: int
    layers: tuple[Share, ...]
    verdict: str
    fault: str | None = None  #: the layer that the verdict names; None where nothing measurable is lost
    cause: Cause | None = None  #: what it names of that layer


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Record):
    """What the steps of one layer cost: agreement of float networks with the trained one."""

    name: str
    only: Agreement  #: where the activations of this layer alone take the steps of T spikes
    others: Agreement  #: where those of all other layers do, and this one's stay as they are


@dataclass(frozen=True, kw_only=True)
class EngineRow(Record):
    """One engine's part in a verification."""

    engine: str
    differences: int  #: spikes and potentials that disagree with the first engine
    neuron_steps: int  #: whose spikes were compared; of the first engine: recorded
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Verification(Record):
    """What :func:`exporters.engines.verify` found, in words where it has more."""

    samples: int
    engines: tuple[EngineRow, ...]  #: the first is what the others are compared with
    spikes: int
    difference: str | None  #: the first one; None where there is none
    skipped: tuple[str, ...]  #: engines that cannot run, each with the reason
    summary: str


@dataclass(frozen=True, kw_only=True)
class FitRow(Record):
    """What a layer takes on a chip; words, of 64 bit, are those in its fullest core."""

    name: str
    shape: tuple[int, ...]
    tile: tuple[int, ...]  #: of the shape, in a core
    cores: int | None  #: None where no tile is within the limits; the words are then the smallest tile's
    neurons: int
    synapses: int
    axon_in: int
    axon_map: int
    axon_mem: int
    total: int
    bottleneck: str  #: what is fullest: neurons, synapses, axon_in, axon_map or total
    share: float  #: how full that is, in per cent
    remedy: str | None  #: what would take fewer cores; None for a layer that takes one


@dataclass(frozen=True, kw_only=True)
class Fit(Record):
    """What a network takes on a chip by the core model of :mod:`exporters.placement`."""

    chip: str
    cores: int | None  #: None where a layer cannot be placed
    chips: int | None
    neurons: int
    layers: tuple[FitRow, ...]


@dataclass(frozen=True, kw_only=True)
class CostRow(Record):
    """What a layer did, per sample."""

    name: str
    spikes: float
    synaptic_events: float  #: that arrived at it: one for each synapse that a spike, or a payload but 0, goes through
    neuron_updates: int  #: over its busy steps
    messages: float  #: its spikes times the cores that each is sent to
    hops: float  #: of these messages, between tiles of a chip


@dataclass(frozen=True, kw_only=True)
class Estimate(Record):
    """What one inference takes by published figures, a range; None where nothing is published."""

    quantity: str
    unit: str
    low: float | None
    high: float | None
    chip: str  #: whose figures they are
    source: str


@dataclass(frozen=True, kw_only=True)
class Cost(Record):
    """What an inference takes: counts, the mean over samples, and what follows from published figures."""

    samples: int
    steps: int  #: until the logits are there
    period: int  #: steps between samples that follow each other
    spikes: float  #: of neurons
    payloads: float  #: that the host sends, but those that are 0; or biases of layers that read the input so
    synaptic_events: float
    neuron_updates: int
    messages: float
    hops: float
    between_chips: float  #: messages that leave a chip
    layers: tuple[CostRow, ...]
    estimates: tuple[Estimate, ...]


@dataclass(frozen=True, kw_only=True)
class Compared(Record):
    """One conversion: what it gets right and what that takes. What was not measured is None."""

    name: str
    input: InputForm  #: how it gets in
    timesteps: int  #: T
    holdoff: int  #: K
    steps: int  #: until the logits are there
    period: int  #: steps between samples that follow each other
    cores: int | None  #: None where it does not fit
    measure: str = MEASURES["classes"]  #: what tells how good it is
    accuracy: float | None = None  #: per cent
    agreement: float | None = None  #: with the trained network, per cent
    spikes: float | None = None  #: per sample
    synaptic_events: float | None = None  #: per sample
    host: float | None = None  #: values that the host sends, per sample


@dataclass(frozen=True, kw_only=True)
class Activity(Record):
    """What a layer does, per sample. Operations are named and counted as by NeuroBench (:mod:`sim.operations`)."""

    name: str
    neurons: int
    spikes: float
    rate: float | None  #: spikes of a neuron and step of the window, 0..1; None for a readout
    dense: int  #: synaptic operations of all synapses at all steps
    effective_macs: float  #: those where neither the weight nor the graded input is 0
    effective_acs: float  #: those where neither the weight nor the spike is 0
    peak: int | None  #: largest magnitude of u and v over all samples, su; None where the engine does not say


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """How good a network is on labelled data, and what it does for that."""

    engine: str
    task: TaskName
    samples: int
    overflowed: int  #: samples in which a potential left the registers; they count with what wider ones would say
    accuracy_by_step: tuple[StepAccuracy, ...]
    spikes: float  #: per sample
    rate: float | None  #: spikes of a neuron and step of its window, 0..1; None without neurons that spike
    dense: int  #: as of an :class:`Activity`, of all layers
    effective_macs: float
    effective_acs: float
    state_limit: int  #: what u and v have to stay below, su
    layers: tuple[Activity, ...]
    findings: tuple[str, ...]  #: what casts doubt on it, in sentences


def summed(layers: Sequence[Activity]) -> Activity:
    """Return what layers do together, at least one."""
    spiking = [(row.rate, row.neurons) for row in layers if row.rate is not None]
    neurons = sum(number for _, number in spiking)
    return Activity(
        name="sum",
        neurons=sum(row.neurons for row in layers),
        spikes=sum(row.spikes for row in layers),
        rate=sum(rate * number for rate, number in spiking) / neurons if neurons else None,
        dense=sum(row.dense for row in layers),
        effective_macs=sum(row.effective_macs for row in layers),
        effective_acs=sum(row.effective_acs for row in layers),
        peak=max((row.peak for row in layers if row.peak is not None), default=None),
    )


def outside(overflowed: int, samples: int) -> str:
    """Say how many samples left the registers, and what follows."""
    return f"{overflowed} of {samples} samples leave the registers: on the chip these may end otherwise"


@dataclass(frozen=True, kw_only=True)
class Report(Record):
    """Everything that was measured on a conversion."""

    model: str  #: what it is called
    data: str | None = None  #: what the samples are
    choice: Search | None = None
    timesteps: int  #: T
    holdoff: int  #: K
    method: str  #: bias rule
    weights: str  #: weight rule
    task: TaskName = "classes"  #: what the outputs mean
    samples: int
    #: Largest difference of a logit of the imported float graph from the trained network's, relative to the largest.
    import_error: float | None = None
    input: tuple[str, ...] = ()  #: what the host does to inputs beside scaling all alike, in sentences
    layers: tuple[LayerRow, ...]
    agreement: Mapping[Rung, Agreement] = field(default_factory=dict)
    attribution: Attribution | None = None
    sensitivity: tuple[Sensitivity, ...] = ()  #: of the spiking layers
    findings: tuple[str, ...]
    accuracy: Mapping[Rung, Accuracy] = field(default_factory=dict)
    accuracy_by_step: tuple[StepAccuracy, ...] = ()
    accuracy_by_timesteps: Mapping[int, Accuracy] = field(default_factory=dict)  #: of networks converted for each T
    forms: tuple[Compared, ...] = ()  #: of networks converted for each form of the input
    errors: tuple[OutputError, ...] = ()  #: of a regression, by output (or channel)
    activity: tuple[Activity, ...] = ()  #: of each layer, on all samples
    verification: Verification | None = None
    fit: Fit | None = None
    cost: Cost | None = None

    def __getitem__(self, key: str) -> Any:
        """Read it as its JSON form, which is what scripts and notebooks have when they come from ``report.json``."""
        return self.as_dict()[key]

    def get(self, key: str, default: Any = None) -> Any:
        """Read it as its JSON form; ``default`` where that was not measured."""
        return self.as_dict().get(key, default)
