"""Whether a network file can run on Loihi 2, and what stock netx makes of it: one table of rules, and who breaks them.

Rules about blocks look at any netx ``.net`` (:mod:`exporters.netx.foreign`), whoever wrote it; rules about a network at
what this tool wrote. Sources are lava-dl 0.6.0 (``netx``), lava-nc 0.10.0 (``lava``), and what has run on boards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from exporters.netx import clocked, file, foreign, hdf5
from exporters.netx.checks import held_by_netx
from exporters.netx.file import Form
from exporters.netx.foreign import Block, NetFile, Step, edge_steps
from exporters.placement import published as cores
from exporters.placement.load import ConvLoad, DenseLoad, Tile
from sim import stock
from sim.chip import LOIHI2
from sim.chip import check as check_chip
from sim.findings import Finding, Refused
from sim.fixedpoint import Bounds, bounds, largest_current
from sim.network import Layer, Network
from sim.stock import Silence

Severity = Literal["error", "warning", "note"]
Found = Iterator[tuple[str, str]]  #: where, and the value that stands there

BUILT = ("conv", "dense", "dense_rec")  #: blocks that netx makes a synapse and neurons of
UNSUPPORTED = {
    **dict.fromkeys(("pool", "convT", "unpool", "average", "concat"), "NotImplementedError"),
    "dense_comp": "AttributeError",
}
KNOWN = {"input", "flatten", *BUILT, *UNSUPPORTED}
CUBA = ("CUBA", "LOIHI")  #: what netx makes a LIF of
DECAYS = ("neuron/iDecay", "neuron/vDecay")
DELAY_LIMIT = 62  #: steps; netx clamps there
BIAS = (-LOIHI2.bias_limit - 1, LOIHI2.bias_limit)
NEVER = stock.NEVER
CONV_WIDTH = 256  #: neurons in x; lava-dl's YOLO-KP tutorial warns of dropped spikes beyond


@dataclass(frozen=True, kw_only=True)
class Issue:
    """A rule that something in a file breaks, or that has something to say about it."""

    rule: str  #: its identifier in :data:`RULES`
    severity: Severity
    where: str  #: the block or layer
    value: str  #: what stands there
    limit: str
    remedy: str

    def as_dict(self) -> dict[str, str]:
        """Return JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """What a run of the network has shown."""

    inputs: str  #: which inputs
    peak: Mapping[str, int]  #: |v| and |u| at most, by layer, su
    outside: Mapping[str, int] = field(default_factory=dict)  #: u where the layer has to be silent, where known


@dataclass(frozen=True)
class Subject:
    """What the rules look at."""

    file: NetFile
    network: Network | None = None  #: what the file says, where this tool wrote it
    damage: tuple[Finding, ...] = ()  #: why it does not, though this tool's name is on it
    measured: Measured | None = None
    bounds: Mapping[str, Bounds] = field(default_factory=dict)  #: by layer of the network
    form: Form = "netx"  #: of the network's file

    @cached_property
    def synapses(self) -> tuple[Step, ...]:
        """What a chip has to hold: blocks, or the edges of a network that has none."""
        if self.network is None or self.file.children:
            return self.file.steps
        return tuple(edge_steps(self.network))


@dataclass(frozen=True)
class Rule:
    """One rule: data, and who finds where it applies."""

    id: str
    severity: Severity
    about: str  #: what it looks at
    limit: str
    remedy: str
    source: str
    find: Callable[[Subject], Found]


RULES: dict[str, Rule] = {}


def legality(path: str | Path, measured: Measured | None = None) -> list[Issue]:
    """List everything that ``path``, any netx ``.net``, meets on its way to Loihi 2; errors first.

    Raises :class:`Refused` for what is no HDF5.
    """
    path = Path(path)
    contents, network = foreign.read(path), None
    damage: tuple[Finding, ...] = ()
    if hdf5.is_ours(path):
        try:
            network = file.read(path)
        except Refused as refused:
            damage = refused.findings
    if network is None:
        return _judge(Subject(contents, None, damage, measured))
    found = {layer.name: bounds(network, layer) for layer in network.layers}
    return _judge(Subject(contents, network, damage, measured, found, file.form_of(path)))


def _judge(subject: Subject) -> list[Issue]:
    issues = [
        Issue(rule=rule.id, severity=rule.severity, where=where, value=value, limit=rule.limit, remedy=rule.remedy)
        for rule in RULES.values()
        for where, value in dict.fromkeys(rule.find(subject))
    ]
    return sorted(issues, key=lambda issue: ("error", "warning", "note").index(issue.severity))


def _rule(
    id: str, severity: Severity, about: str, limit: str, remedy: str, source: str
) -> Callable[[Callable[[Subject], Found]], Callable[[Subject], Found]]:
    """Enter a rule about a whole file."""

    def enter(find: Callable[[Subject], Found]) -> Callable[[Subject], Found]:
        assert id not in RULES
        RULES[id] = Rule(id, severity, about, limit, remedy, source, find)
        return find

    return enter


def _each(
    id: str,
    severity: Severity,
    about: str,
    limit: str,
    remedy: str,
    source: str,
    *,
    of: tuple[str, ...] = BUILT,
    of_chip: bool = False,
) -> Callable[[Callable[[Step], Iterable[str]]], Callable[[Step], Iterable[str]]]:
    """Enter a rule about every block of the types ``of``: it gives the values that break it.

    A rule ``of_chip`` looks at the edges of networks that netx cannot build, too.
    """

    def enter(find: Callable[[Step], Iterable[str]]) -> Callable[[Step], Iterable[str]]:
        def everywhere(subject: Subject) -> Found:
            for step in subject.synapses if of_chip else subject.file.steps:
                if step.block.type in of:
                    yield from ((step.block.where, value) for value in find(step))

        _rule(id, severity, about, limit, remedy, source)(everywhere)
        return find

    return enter


def _span(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low:g}" if low == high else f"{low:g}..{high:g}"


# The file -------------------------------------------------------------------------------------------------------------

_NETX = "lava-dl netx/hdf5.py"
_AGAIN = "write the file again"


@_rule("layers", "error", "/layer", "a group with one child a block", "give a netx file", f"{_NETX}, Network._create")
def _(subject: Subject) -> Found:
    if not subject.file.children and subject.network is None and not subject.damage:
        yield "layer", "no group, or an empty one"


@_rule(
    "children",
    "error",
    "names of the groups below /layer",
    "0, 1, ... n - 1 and nothing else: netx counts the children and asks for these numbers",
    "number them without a gap and move everything else elsewhere",
    f"{_NETX}, Network._create",
)
def _(subject: Subject) -> Found:
    children = subject.file.children
    others = sorted(set(children) - set(map(str, range(len(children)))))
    if others:
        yield "layer", f"{', '.join(others[:5])} among {len(children)} children"


@_rule(
    "unreadable",
    "error",
    "every dataset and group below /layer",
    "hard links to plain or deflated numbers and text inside the file",
    _AGAIN,
    "this tool's reader; a link or an external file may be anybody's",
)
def _(subject: Subject) -> Found:
    yield from ((finding.where, finding.problem) for finding in subject.file.unreadable)


@_rule(
    "damaged",
    "error",
    "files of this tool",
    "what it would have written",
    "convert again",
    "exporters.netx.read",
)
def _(subject: Subject) -> Found:
    yield from ((finding.where, finding.problem) for finding in subject.damage)


@_rule(
    "type-missing",
    "error",
    "dataset type",
    "a dataset of one text: netx finds no attribute",
    "write a dataset `type`",
    f"{_NETX}; netx/utils.py, NetDict",
)
def _(subject: Subject) -> Found:
    unreadable = {finding.where for finding in subject.file.unreadable}
    for block in subject.file.blocks:
        if block.type is None and f"layer/{block.index}/type" not in unreadable:
            yield block.where, "no text" if "type" in block.names else "missing"


@_rule(
    "type-unknown",
    "error",
    "dataset type",
    f"{', '.join(('input', 'flatten', *BUILT))}: stock netx leaves out every other block in silence",
    "fold it into its neighbours, as `ann2loihi convert` does",
    f"{_NETX}, Network._create: a chain of elif without an else",
)
def _(subject: Subject) -> Found:
    for block in subject.file.blocks:
        if block.type is not None and block.type not in KNOWN:
            yield block.where, repr(block.type)


@_rule(
    "type-unsupported",
    "error",
    "dataset type",
    f"{', '.join(('input', 'flatten', *BUILT))}: netx knows the name and cannot build it",
    "replace it by a strided convolution or a dense block; at the end, open the file with Network(num_layers=...)",
    f"{_NETX}, Network._create",
)
def _(subject: Subject) -> Found:
    for block in subject.file.blocks:
        if block.type in UNSUPPORTED:
            yield block.where, f"{block.type!r} raises {UNSUPPORTED[block.type]}"


# Fields ---------------------------------------------------------------------------------------------------------------

_NUMBERS = ("stride", "padding", "dilation")
_FIELDS = {
    "input": (),
    "conv": ("shape", "weight", *_NUMBERS, "groups", "neuron"),
    "dense": ("shape",),
    "dense_rec": ("shape", "weight_rec"),
}


@_rule(
    "field-missing",
    "error",
    "the fields that netx reads",
    "all of them: netx ends with a KeyError",
    "write it",
    f"{_NETX}, Network.create_*",
)
def _(subject: Subject) -> Found:
    for block in subject.file.blocks:
        wanted = list(_FIELDS.get(block.type or "", ()))
        if block.type in ("dense", "dense_rec") and not {"weight/real", "weight/imag"} <= block.names:
            wanted.append("weight")
        if "neuron" in block.names and block.type in _FIELDS:
            wanted.append("neuron/type")
            if block.neuron in CUBA:
                wanted += [*DECAYS, "neuron/vThMant"]
            elif block.neuron is not None and "neuron/sigma_output" not in block.names:
                wanted.append("neuron/vThMant")
            if block.type == "input":
                wanted.append("shape")
        yield from ((block.where, name) for name in wanted if name not in block.names)


@_rule(
    "field-form",
    "error",
    "fields of numbers",
    "numbers; a shape of 1 to 4 positive ones",
    _AGAIN,
    f"{_NETX}, Network.create_*",
)
def _(subject: Subject) -> Found:
    names = ("shape", "weight", "weight_rec", "bias", "delay", *_NUMBERS, "groups", *DECAYS, "neuron/vThMant")
    for block in subject.file.blocks:
        for name in names:
            if name in block.fields and block.numbers(name) is None:
                yield block.where, f"{name} holds {'nothing' if not block.fields[name].size else 'text'}"
        if block.type in _FIELDS and block.numbers("shape") is not None and block.shape is None:
            yield block.where, f"shape {_listed(block.fields['shape'])}"


def _listed(values: np.ndarray) -> str:
    return "x".join(f"{value:g}" for value in values.ravel()[:5]) + ("..." if values.size > 5 else "")


@_each(
    "groups-form",
    "error",
    "groups",
    "one number alone: netx fails on an array of one (IndexError)",
    "write a scalar dataset",
    f"{_NETX}, Network._table_str",
    of=("conv",),
)
def _(step: Step) -> Iterator[str]:
    groups = step.block.numbers("groups")
    if groups is not None and groups.shape:
        yield f"shape {groups.shape}"


@_each(
    "geometry",
    "error",
    "stride, padding, dilation, groups and kernel size",
    f"one number or two; stride, dilation and groups 1..{stock.CONV_LIMIT}, padding 0..{stock.CONV_LIMIT}",
    "split the layer",
    "lava lava/proc/conv/process.py: kept as int8",
    of=("conv",),
)
def _geometry(step: Step) -> Iterator[str]:
    block = step.block
    for name, least in (("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)):
        values, pair = block.numbers(name), block.pair(name)
        if values is None or (name == "groups" and values.shape):
            continue  # rules of their own
        if pair is None or not least <= min(pair) <= max(pair) <= stock.CONV_LIMIT:
            yield f"{name} {_listed(values)}"
    weight = foreign.kernel(block)
    if weight is not None and max(weight.shape[2:]) > stock.CONV_LIMIT:
        yield f"kernel {weight.shape[2]}x{weight.shape[3]}"


@_each(
    "fraction",
    "error",
    "weights, biases and delays",
    "whole, finite numbers: netx cuts off what follows the point, in silence",
    "quantise first, as lava-dl slayer's exporter does",
    "lava-dl netx/utils.py, NetDict: astype(int)",
)
def _(step: Step) -> Iterator[str]:
    for name in ("weight", "weight/real", "weight/imag", "weight_rec", "bias", "delay"):
        values = step.block.numbers(name)
        if values is not None and values.dtype.kind == "f":
            broken = ~np.isfinite(values) | (values != np.trunc(values))
            if broken.any():
                yield f"{name} {values[broken].ravel()[0]:g} and {int(broken.sum()) - 1} more"


# The chain ------------------------------------------------------------------------------------------------------------


@_each(
    "input-missing",
    "error",
    "what feeds the first convolution",
    "an input block with a shape before it, or netx cannot tell (RuntimeError)",
    "write an input block, or open the file with Network(input_shape=(W, H, C))",
    f"{_NETX}, Network._create",
    of=("conv",),
)
def _(step: Step) -> Iterator[str]:
    if step.source is None and not step.built:
        yield "no shape is known"


@_each(
    "flatten-missing",
    "error",
    "a dense block behind (C, H, W) neurons",
    "a flatten block between: netx cannot connect the two",
    "write a block of type flatten before it",
    f"{_NETX}, Network._create",
    of=("dense", "dense_rec"),
)
def _(step: Step) -> Iterator[str]:
    if step.built and not step.flattened and step.source is not None and len(step.source) > 1:
        yield f"{'x'.join(map(str, step.source))} neurons before it"


@_each(
    "weight-shape",
    "error",
    "weights against what feeds the block and its own shape",
    "dense (out, in) or flat, recurrent (out, out), conv (C_out, C_in / groups, kH, kW[, 1])",
    "check shape, weight and geometry",
    f"{_NETX}, Network.create_dense, create_conv; netx/blocks/process.py",
)
def _(step: Step) -> Iterator[str]:
    block, source = step.block, step.source
    if block.type == "conv":
        weight, given, computed = foreign.kernel(block), block.shape, foreign.conv_shape(block, source)
        incomplete = any(block.numbers(name) is None for name in (*_NUMBERS, "groups")) or any(_geometry(step))
        if weight is None:
            yield from (f"weight {w.shape}" for w in [block.numbers("weight")] if w is not None)
        elif source is not None and computed is None and not incomplete:
            yield f"weight {weight.shape} on a source of {'x'.join(map(str, source))}"
        elif computed is not None and given is not None and computed != given:
            yield f"shape {'x'.join(map(str, given))}, the synapse gives {'x'.join(map(str, computed))}"
        return
    if step.out is None:
        return
    size = step.out[0]
    for name, sources in (("weight", source), ("weight/real", source), ("weight_rec", step.out)):
        weight = block.numbers(name)
        if weight is None:
            continue
        columns = weight.shape[1] if weight.ndim == 2 else weight.size / size
        rows = weight.shape[0] if weight.ndim == 2 else size
        fits = weight.ndim in (1, 2) and rows == size and columns == int(columns)
        if not fits or (sources is not None and columns != math.prod(sources)):
            yield f"{name} {weight.shape} for {size} neurons" + (
                "" if sources is None else f" and a source of {math.prod(sources)}"
            )


@_each(
    "bias-shape",
    "error",
    "bias",
    "one number a channel, or one a neuron (of a convolution as (W, H, C))",
    "write (C,) or, for a dense block, (N,)",
    "lava-dl netx/blocks/process.py, AbstractBlock._neuron",
)
def _(step: Step) -> Iterator[str]:
    bias, shape = step.block.numbers("bias"), step.out
    if bias is None or shape is None:
        return
    legal = {"conv": ((shape[0],), shape[::-1])}.get(step.block.type or "", ((), (1,), shape))
    if bias.shape not in legal:
        yield f"shape {bias.shape} for {'x'.join(map(str, shape))} neurons"


# Neurons --------------------------------------------------------------------------------------------------------------

_LIF = "lava lava/proc/lif/models.py, PyLifModelBitAcc"
_NEURONS = ("input", *BUILT)


def _without_neurons(subject: Subject) -> Iterator[tuple[Block, bool]]:
    """Name dense blocks without neurons, and whether each is the last block."""
    for step in subject.file.steps:
        if step.block.type in ("dense", "dense_rec") and "neuron" not in step.block.names:
            yield step.block, step.block is subject.file.blocks[-1]


@_rule(
    "neuron-missing",
    "error",
    "a dense block without neurons, before the last",
    "a group `neuron`: netx's own default has the threshold 131072, which no neuron reaches",
    "write one",
    f"{_NETX}, Network.create_dense: 1 << 18 - 1",
)
def _(subject: Subject) -> Found:
    yield from ((block.where, "it never spikes") for block, last in _without_neurons(subject) if not last)


@_rule(
    "readout-default",
    "note",
    "a dense block without neurons, at the end",
    "netx gives it iDecay 0, vDecay 4096 and the threshold 131072: it never spikes",
    "read its potentials, not its spikes",
    f"{_NETX}, Network.create_dense: 1 << 18 - 1",
)
def _(subject: Subject) -> Found:
    yield from ((block.where, "it never spikes") for block, last in _without_neurons(subject) if last)


@_each(
    "neuron-type",
    "error",
    "neuron/type",
    "CUBA, LOIHI, SDNN or a name with RF: netx ends with an AttributeError",
    "write one of them",
    f"{_NETX}, Network.get_neuron_params",
    of=_NEURONS,
)
def _(step: Step) -> Iterator[str]:
    kind = step.block.neuron
    if kind is not None and kind not in (*CUBA, "SDNN") and "RF" not in kind:
        yield repr(kind)


@_each(
    "neuron-float",
    "error",
    "vThMant, iDecay and vDecay",
    "integers: a float shifts nothing (TypeError in the first step)",
    "write an integer type",
    f"{_LIF}: left_shift",
    of=_NEURONS,
)
def _(step: Step) -> Iterator[str]:
    for name in ("neuron/vThMant", *DECAYS):
        values = step.block.numbers(name)
        if values is not None and values.dtype.kind == "f" and step.block.neuron in CUBA:
            yield f"{name} is {values.dtype}"


@_each(
    "threshold",
    "error",
    "vThMant",
    f"0..{NEVER}, 17 bits: the CPU model never spikes beyond, silicon cannot hold it",
    "scale weights, biases and threshold down",
    _LIF,
    of=_NEURONS,
)
def _(step: Step) -> Iterator[str]:
    values = step.block.integers("neuron/vThMant")
    if values is not None and step.block.neuron in CUBA and not 0 <= values.min() <= values.max() <= NEVER:
        yield _span(values)


@_each(
    "threshold-per-neuron",
    "warning",
    "vThMant",
    "one for the population: Lava's CPU model takes one each, a LIF on silicon holds one",
    "fold the differences into the weights",
    "lava lava/proc/lif/process.py: shape (1,)",
    of=_NEURONS,
)
def _(step: Step) -> Iterator[str]:
    values = step.block.numbers("neuron/vThMant")
    if values is not None and values.size > 1:
        yield f"{values.size} of them"


@_each(
    "decay",
    "error",
    "iDecay and vDecay",
    "0..4096, one for the population",
    "write the decay in 1/4096 a step",
    f"{_LIF}: du, dv",
    of=_NEURONS,
)
def _(step: Step) -> Iterator[str]:
    for name in DECAYS:
        values = step.block.integers(name)
        if values is None or step.block.neuron not in CUBA:
            continue
        if values.size > 1 or not 0 <= values.min() <= values.max() <= 4096:
            yield f"{name} {_span(values)}" + (f", {values.size} of them" if values.size > 1 else "")


@_each(
    "message-bits",
    "error",
    "neuron/messageBits",
    "absent: netx reads it as a group and fails when it runs (TypeError)",
    "leave it out; binary spikes are the default",
    "lava-dl netx/utils.py, NetDict: not among array_keys",
    of=_NEURONS,
)
def _(step: Step) -> Iterator[str]:
    if "neuron/messageBits" in step.block.names:
        yield "it is there"


@_each(
    "bias-wrap",
    "error",
    "bias",
    "-32768..32767: Lava's CPU model stores 16 bits and wraps in silence",
    "scale the layer down",
    f"{_LIF}: bias_mant",
)
def _(step: Step) -> Iterator[str]:
    bias = step.block.integers("bias")
    if bias is not None and (bias.min() < -(1 << 15) or bias.max() >= 1 << 15):
        yield _span(bias)


@_each(
    "bias-register",
    "error",
    "bias",
    f"{BIAS[0]}..{BIAS[1]}, 13 bits: the CPU model holds more, silicon does not",
    "scale the layer down; a file of this tool: read it and write it again",
    f"{_LIF}: bias_mant",
)
def _(step: Step) -> Iterator[str]:
    bias = step.block.integers("bias")
    if bias is None or bias.min() < -(1 << 15) or bias.max() >= 1 << 15:
        return  # a rule of its own
    if bias.min() < BIAS[0] or bias.max() > BIAS[1]:
        yield _span(bias)


@_each(
    "field-ignored",
    "warning",
    "wgtExp, weight_exp, refDelay, gradedSpike, activation",
    "0, 0, 1, false, relu: netx never reads them",
    "scale the weights; leave out what netx does not read",
    f"{_NETX}, Network.get_neuron_params",
    of=_NEURONS,
)
def _(step: Step) -> Iterator[str]:
    defaults = {"neuron/wgtExp": 0, "neuron/weight_exp": 0, "neuron/refDelay": 1, "neuron/gradedSpike": 0}
    for name, default in defaults.items():
        values = step.block.numbers(name)
        # Sigma-delta neurons send graded spikes anyway.
        if values is not None and (values != default).any() and not (name.endswith("Spike") and _graded(step.block)):
            yield f"{name} {_listed(values)}"
    activation = step.block.text("neuron/activation")
    if activation is not None and "relu" not in activation.lower():
        yield f"neuron/activation {activation!r}"


def _graded(block: Block) -> bool:
    return block.neuron == "SDNN" or "RF" in (block.neuron or "")


@_each(
    "input-transform",
    "note",
    "weight and bias of an input block",
    "netx only keeps them in `in_layer.transform`",
    "apply them on the host: bias_mant of the input neurons = weight * x + bias",
    f"{_NETX}, Network.create_input",
    of=("input",),
)
def _(step: Step) -> Iterator[str]:
    held = [f"{name} {_listed(v)}" for name in ("weight", "bias") if (v := step.block.numbers(name)) is not None]
    if held and "neuron" in step.block.names:
        yield ", ".join(held)


@_rule(
    "decay-sharing",
    "warning",
    "iDecay and vDecay of all blocks",
    "not 0 in one and 4096 in another: on Loihi 1 the two exclude each other on a core; Loihi 2 is not known",
    "place such layers on cores of their own",
    "Fugu backends/loihi_backend.py",
)
def _(subject: Subject) -> Found:
    for name in DECAYS:
        values = {
            int(v.ravel()[0])
            for step in subject.file.steps
            if step.block.neuron in CUBA and (v := step.block.integers(name)) is not None
        }
        if {0, 4096} <= values:
            yield "layer", f"{name} 0 and 4096"


@_rule(
    "forgets-at-once",
    "note",
    "vDecay of all blocks",
    "4096 is beyond the 12 bits of dv; exact on Lava's CPU models, not known of silicon",
    "try it on a board with one neuron first",
    f"{_LIF}: dv",
)
def _(subject: Subject) -> Found:
    held = [
        step.block.where
        for step in subject.file.steps
        if step.block.neuron in CUBA
        and (v := step.block.integers("neuron/vDecay")) is not None
        and int(v.ravel()[0]) == 4096
    ]
    if held:
        yield "layer", f"4096 in {len(held)} blocks"


# Weights --------------------------------------------------------------------------------------------------------------

_BITS = "lava-dl netx/utils.py, optimize_weight_bits; lava lava/utils/weightutils.py"


def _dense(step: Step) -> np.ndarray | None:
    """Weights of a block that netx shifts by themselves, where they are small enough to be shifted at all."""
    weight = step.block.integers("weight")
    return None if weight is None or np.abs(weight).max() > 1 << 20 else weight


@_each(
    "dense-zero",
    "error",
    "dense weights",
    "one that is not 0: netx ends with an OverflowError",
    "remove the layer, or scale its weights up",
    _BITS,
    of=("dense", "dense_rec"),
)
def _(step: Step) -> Iterator[str]:
    matrices = [w for name in ("weight", "weight_rec") if (w := step.block.integers(name)) is not None]
    if matrices and not any(matrix.any() for matrix in matrices):
        yield f"all {sum(matrix.size for matrix in matrices)} are 0"


@_each(
    "dense-range",
    "error",
    "dense weights",
    "-256..254 of mixed signs, 0..255 of one: netx clips the one kind and makes 0 of all of the other, in silence",
    "quantise to 8 bits",
    _BITS,
    of=("dense",),
)
def _(step: Step) -> Iterator[str]:
    weight = step.block.integers("weight")
    if weight is not None:
        low, high = weight.min(), weight.max()
        if (low < 0 < high and (low < -256 or high > 254)) or (low >= 0 and high > 255) or (high <= 0 and low < -256):
            yield _span(weight)


@_each(
    "dense-negative",
    "error",
    "dense weights without a positive one",
    "what Lava holds after netx has shifted them: it clips and truncates them, in silence",
    "make one weight positive, or the lowest no power of two",
    _BITS,
    of=("dense",),
)
def _(step: Step) -> Iterator[str]:
    weight = _dense(step)
    if weight is not None and weight.max() <= 0 and weight.any() and weight.min() >= -256:
        yield from _changed([weight])


@_each(
    "dense-odd",
    "error",
    "dense weights of mixed signs",
    "even where any is above 127 in magnitude: else they take 9 bits, which the CPU model holds and silicon does not",
    "make the weights even",
    _BITS,
    of=("dense",),
)
def _(step: Step) -> Iterator[str]:
    yield from _odd(step.block.integers("weight"))


@_each(
    "recurrent-weight",
    "error",
    "weights and recurrent weights of a dense_rec block, which netx shifts together",
    "what Lava holds after that; 8 bits a weight",
    "keep both within -127..127 and the lowest no power of two, or make all of them even",
    _BITS,
    of=("dense_rec",),
)
def _(step: Step) -> Iterator[str]:
    weight, recurrent = _dense(step), step.block.integers("weight_rec")
    if weight is not None and recurrent is not None and np.abs(recurrent).max() <= 1 << 20:
        yield from _changed([weight, recurrent])


def _changed(matrices: list[np.ndarray]) -> Iterator[str]:
    """Name the first weight that Lava would not hold, or that they take more bits than there are."""
    held = held_by_netx(*matrices)
    if held is None:
        return
    kept, bits = held
    for matrix, computed in zip(matrices, kept, strict=True):
        if (matrix != computed).any():
            place = tuple(int(n) for n in np.argwhere(matrix != computed)[0])
            yield f"{matrix[place]} becomes {computed[place]:g}"
            return
    if bits > 8:
        yield f"{bits} bits a weight"


@_each(
    "conv-range",
    "error",
    "weights of a convolution",
    "-256..254 of mixed signs, 0..255 or -255..0 of one: Lava's CPU model takes any, silicon 8 bits and a sign",
    "quantise to 8 bits",
    "lava lava/proc/conv/models.py; lava/utils/weightutils.py",
    of=("conv",),
)
def _(step: Step) -> Iterator[str]:
    weight = step.block.integers("weight")
    if weight is not None:
        low, high = weight.min(), weight.max()
        least, most = (-256, 254) if low < 0 < high else (-255, 255)
        if low < least or high > most:
            yield _span(weight)


@_each(
    "conv-odd",
    "error",
    "weights of a convolution of mixed signs",
    "even where any is above 127 in magnitude: else they take 9 bits, which the CPU model holds and silicon does not",
    "make the weights even",
    "lava lava/utils/weightutils.py",
    of=("conv",),
)
def _(step: Step) -> Iterator[str]:
    yield from _odd(step.block.integers("weight"))


def _odd(weight: np.ndarray | None) -> Iterator[str]:
    """Count odd weights where signs are mixed and 8 bits, doubled, do not hold the largest."""
    if weight is None or not (-256 <= weight.min() < 0 < weight.max() <= 254):
        return
    if (weight.max() > 127 or weight.min() < -128) and (weight % 2).any():
        yield f"{int((weight % 2 != 0).sum())} odd weights among {_span(weight)}"


@_each(
    "current",
    "warning",
    "weights of one neuron",
    f"below {LOIHI2.state_limit} together: u has 24 bits and wraps",
    "scale the layer down",
    f"{_LIF}: u",
    of_chip=True,
)
def _(step: Step) -> Iterator[str]:
    weight = step.block.integers("weight")
    if weight is not None and step.out is not None and weight.size % step.out[0] == 0:
        rows = np.abs(np.clip(weight, -(1 << 31), 1 << 31)).reshape(step.out[0], -1).sum(axis=1)
        if rows.max() >= LOIHI2.state_limit:
            yield f"{rows.max()} su if every source spikes"


# Delays ---------------------------------------------------------------------------------------------------------------


@_each(
    "delay-conv",
    "error",
    "delay of a convolution",
    "absent: netx prints it and ignores it",
    "use a dense block, or train without",
    f"{_NETX}, Network.create_conv",
    of=("conv",),
)
def _(step: Step) -> Iterator[str]:
    if "delay" in step.block.names:
        yield "it is there"


@_each(
    "delay-range",
    "error",
    "delay",
    f"0..{DELAY_LIMIT} steps: netx clamps longer ones, in silence on a chip",
    "train with a smaller largest delay",
    f"{_NETX}, Network.create_dense",
    of=("dense", "dense_rec"),
)
def _(step: Step) -> Iterator[str]:
    delay = step.block.integers("delay")
    if delay is not None and not 0 <= delay.min() <= delay.max() <= DELAY_LIMIT:
        yield _span(delay)


@_each(
    "delay-shape",
    "error",
    "delay",
    "one number, one a neuron, one a source, or (out, in)",
    _AGAIN,
    f"{_NETX}, Network.create_dense",
    of=("dense", "dense_rec"),
)
def _(step: Step) -> Iterator[str]:
    delay, weight = step.block.numbers("delay"), step.block.numbers("weight")
    if delay is None or weight is None or step.out is None:
        return
    sources = weight.size // step.out[0]
    if delay.shape not in ((), step.out, (sources,), (step.out[0], sources)):
        yield f"shape {delay.shape} for {step.out[0]} neurons and {sources} sources"


# Cores ----------------------------------------------------------------------------------------------------------------

_TUTORIALS = "compiler reports in lava-dl's tutorials (tutorials/lava/lib/dl/netx)"


@_each(
    "grouped",
    "warning",
    "groups",
    "1: no public record of a grouped convolution on Loihi 2; one report of a partitioning that did not converge",
    "try it on a board alone, or write it as a dense kernel with zeros",
    "sdnn_loihi2_compiler_test",
    of=("conv",),
    of_chip=True,
)
def _(step: Step) -> Iterator[str]:
    groups = step.block.integers("groups")
    if groups is not None and groups.max() > 1:
        yield str(groups.max())


@_each(
    "conv-width",
    "warning",
    "width of what a convolution reads or makes",
    f"{CONV_WIDTH} neurons: spikes from further right may be dropped",
    "scale the input down, or cut it into strips",
    "lava-dl tutorials yolo_kp",
    of=("input", "conv"),
    of_chip=True,
)
def _(step: Step) -> Iterator[str]:
    if step.out is not None and len(step.out) == 3 and step.out[2] > CONV_WIDTH:
        yield str(step.out[2])


@_each(
    "core-neurons",
    "note",
    "neurons of a block",
    f"{cores.LOIHI2.neurons} a core: it is split over several",
    "nothing; or use fewer channels or a larger stride",
    _TUTORIALS,
    of_chip=True,
)
def _(step: Step) -> Iterator[str]:
    neurons = math.prod(step.out or (0,))
    if neurons > cores.LOIHI2.neurons:
        yield f"{neurons}: {-(-neurons // cores.LOIHI2.neurons)} cores at least"


@_each(
    "core-memory",
    "note",
    "synapse memory of a block, as 8-bit weights",
    f"{cores.LOIHI2.total} words of 64 bits a core: it is split over several",
    "nothing; or use fewer weights",
    _TUTORIALS,
    of_chip=True,
)
def _(step: Step) -> Iterator[str]:
    weight = step.block.numbers("weight")
    if weight is None or step.out is None or weight.size % step.out[0]:
        return
    outputs, bits = step.out[0], LOIHI2.weight_bits
    inputs = weight.size // outputs  # of each output, places in a kernel included
    load = ConvLoad("", inputs, outputs, (1, 1), bits) if step.block.type == "conv" else DenseLoad("", inputs, bits)
    words = load.words(Tile(outputs), cores.LOIHI2)
    if words > cores.LOIHI2.total:
        yield f"about {words}: {-(-words // cores.LOIHI2.total)} cores at least"


# Networks of this tool ------------------------------------------------------------------------------------------------


@_rule(
    "deployable",
    "error",
    "thresholds, weights and biases of a network",
    "what Loihi 2 holds",
    "convert again",
    "sim.chip",
)
def _(subject: Subject) -> Found:
    if subject.network is not None:
        yield from ((finding.where, finding.problem) for finding in check_chip(subject.network))


def _silent(subject: Subject) -> Iterator[tuple[str, int, int, int | None, bool]]:
    """Tell of every spiking layer its limit, bound and peak of u outside the window, and whether the peak is exact.

    The peak of the whole register bounds it, where nothing else was measured.
    """
    network, measured = subject.network, subject.measured
    if network is None:
        return
    limits = _silent_below(network, subject.form)
    for layer in network.layers:
        if layer.kind == "spiking":
            name = layer.name
            exact = measured is not None and name in measured.outside
            peak = None if measured is None else measured.outside.get(name, measured.peak.get(name))
            bound = subject.bounds[name].outside
            if (without := _without_input(network, layer)) is not None:
                # What the host brings is in neither u, and in what was measured it is.
                bound, peak, exact = without, None, False
            yield name, limits[name], bound, peak, exact


def _silent_below(network: Network, form: Form) -> dict[str, int]:
    """Return the u, su, at which a spiking layer would fire outside its window, by name."""
    if form == "clock":
        return clocked.silent_below(network)
    return {n.name: _silence(network, n).limit(n) for n in network.layers if n.kind == "spiking"}


def _silence(network: Network, layer: Layer) -> Silence:
    """Say how a layer is silenced; where the host brings currents, no lift is sure to be left beside them."""
    return stock.silence(layer) if len(network.on_chip(layer)) == len(layer.edges) else stock.UNLIFTED


def _without_input(network: Network, layer: Layer) -> int | None:
    """Bound u of a layer whose input the host brings as biases, su: what other layers send; None of all others."""
    others = network.on_chip(layer)
    if len(others) == len(layer.edges):
        return None
    return network.timesteps * largest_current(network, replace(layer, edges=tuple(others))) if others else 0


_SILENCE = "u outside the firing window"
_BELOW = "theta and what holds the layer there, in the stock form lift + 4096: from there it fires outside its window"
_SEMANTICS = "the semantics page, Silence"


@_rule(
    "silence-proven",
    "note",
    _SILENCE,
    _BELOW,
    "nothing: it holds for all inputs",
    _SEMANTICS,
)
def _(subject: Subject) -> Found:
    for name, limit, bound, _peak, _exact in _silent(subject):
        if bound < limit:
            yield name, f"{bound} at most, below {limit}, for all inputs"


@_rule(
    "silence-measured",
    "note",
    _SILENCE,
    _BELOW,
    "nothing, for such inputs",
    _SEMANTICS,
)
def _(subject: Subject) -> Found:
    for name, limit, bound, peak, _exact in _silent(subject):
        if bound >= limit and peak is not None and peak < limit:
            assert subject.measured is not None
            yield name, f"{peak} at most, below {limit}, on {subject.measured.inputs}; bound {bound}"


@_rule(
    "silence-unproven",
    "warning",
    _SILENCE,
    _BELOW,
    "measure it: `ann2loihi check DIR --calibration FILE.npz`",
    _SEMANTICS,
)
def _(subject: Subject) -> Found:
    for name, limit, bound, peak, exact in _silent(subject):
        if bound >= limit and (peak is None or (peak >= limit and not exact)):
            yield (
                name,
                f"{bound} at most for all inputs, {limit} is too much"
                + ("" if peak is None else f"; the register reached {peak}, perhaps inside the window"),
            )


@_rule(
    "silence-broken",
    "error",
    _SILENCE,
    _BELOW,
    "convert with fewer timesteps, or lower the layer's integer threshold",
    _SEMANTICS,
)
def _(subject: Subject) -> Found:
    for name, limit, bound, peak, exact in _silent(subject):
        if bound >= limit and exact and peak is not None and peak >= limit:
            assert subject.measured is not None
            yield name, f"{peak} reaches {limit} on {subject.measured.inputs}"


def _registers(subject: Subject) -> Iterator[tuple[str, int, int | None]]:
    if subject.network is None:
        return
    _, hold = clocked.held(subject.network) if subject.form == "clock" else (False, {})
    for layer in subject.network.layers:
        peak = None if subject.measured is None else subject.measured.peak.get(layer.name)
        beside = hold.get(layer.name, 0)  # u may carry it beside all else
        if peak is not None and peak < LOIHI2.state_limit <= peak + beside:
            peak = None
        if (bound := subject.bounds[layer.name].register + beside) >= LOIHI2.state_limit:
            yield layer.name, bound, None if peak is None else peak + beside


_REGISTER, _STATE = "u and v of every layer", f"below {LOIHI2.state_limit} in magnitude: u wraps beyond 24 bits"


@_rule("register-measured", "note", _REGISTER, _STATE, "nothing, for such inputs", _LIF)
def _(subject: Subject) -> Found:
    for name, bound, peak in _registers(subject):
        if peak is not None and peak < LOIHI2.state_limit:
            assert subject.measured is not None
            yield name, f"{peak} at most on {subject.measured.inputs}; bound {bound}"


@_rule(
    "register-unproven",
    "warning",
    _REGISTER,
    _STATE,
    "measure it: `ann2loihi check DIR --calibration FILE.npz`",
    _LIF,
)
def _(subject: Subject) -> Found:
    for name, bound, peak in _registers(subject):
        if peak is None:
            yield name, f"{bound} at most for all inputs"


@_rule("register-broken", "error", _REGISTER, _STATE, "lower the layer's integer threshold", _LIF)
def _(subject: Subject) -> Found:
    for name, _bound, peak in _registers(subject):
        if peak is not None and peak >= LOIHI2.state_limit:
            assert subject.measured is not None
            yield name, f"{peak} on {subject.measured.inputs}"


@_rule(
    "period",
    "note",
    "steps between samples",
    "a power of two: silicon resets at no other interval",
    'convert with --reset-interval power-of-two, or load with period="power of two"',
    "lava-dl tutorials mnist",
)
def _(subject: Subject) -> Found:
    if subject.network is not None:
        form: Literal["stock", "clock"] = "clock" if subject.form == "clock" else "stock"
        shortest = subject.network.period + stock.AFTER[form]
        planned, wanted = (stock.legal_period(subject.network, form, period) for period in (None, "power of two"))
        if planned & (planned - 1):
            yield "network", f"{shortest} suffice, {wanted} on silicon: {wanted - shortest} steps more a sample"


@_rule(
    "schedule",
    "warning",
    "bias_mant of every layer",
    "constant, for a chip without its host: here something has to write it between steps",
    "run it where a process beside the chip may write, or `ann2loihi export --form clock`",
    _SEMANTICS,
)
def _(subject: Subject) -> Found:
    if subject.network is not None and subject.form != "clock":
        yield "network", f"{len(subject.network.layers)} layers, {subject.network.timesteps} steps a window"


@_rule(
    "graph-form",
    "note",
    "who can load the file",
    "stock netx builds chains only",
    "load it with ann2loihi.load, which builds it from stock processes",
    f"{_NETX}, Network._create",
)
def _(subject: Subject) -> Found:
    if subject.network is not None and not subject.file.children:
        yield "network", "a graph of layers"
