"""The integer network: frozen data, its checks, and when each layer is active.

Semantics (every engine implements this text on its own and is tested to agree spike for spike)
------------------------------------------------------------------------------------------------
A network is a directed acyclic graph of layers; each layer is fed by one or more edges. One *synaptic unit* (su)
is what an integer weight adds when one binary spike arrives; thresholds, potentials and biases are integers in su.

One clock t = 0, 1, 2, ... The input payload is presented at t = 0 .. T-1; a synapse takes exactly one step.
A layer's *phase* p opens its *firing window* p <= t < p + T::

    p(input) = 0        p(layer) = max over edges of (p(source) + 1) + K(layer)         K(readout) = 0

and one step of one layer is, in this order::

    a[t] = sum over edges of synapse(output of the source at t-1)
    v[t] = v[t-1] + a[t] + (b[t-p] if p <= t < p+T else 0)                              v[-1] = v0
    s[t] = 1 if p <= t < p+T and v[t] >= theta else 0
    v[t] = v[t] - theta * s[t]                                                          reset by subtraction

The readout never spikes: its potential at t = p + T - 1 is the vector of logits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np

from sim.arguments import ANYTHING, array, fitting, shown
from sim.findings import Finding, Refused, refuse

EXPONENT_LIMIT = 31  #: of the magnitude of an edge's exponent; chips allow less
INPUT = "input"  #: the name by which an edge refers to the network's input
Shape = tuple[int, ...]  #: (C, H, W) or (N,)
#: How the input gets into a chip: as a graded payload at each step; as bias currents of the layers that read it
#: (:mod:`sim.inputs`); or as such currents of input neurons, whose spikes are all that other layers read. What a
#: network does is the same: engines compute it from the payload.
InputForm = Literal["payload", "currents", "spikes"]
Pair = tuple[int, int]  #: (vertical, horizontal), as torch orders them
Entry = TypeVar("Entry")


class Geometry(NamedTuple):
    """Where a convolution's kernel is laid, in the order in which ``torch.nn.functional.conv2d`` takes it."""

    stride: Pair = (1, 1)
    padding: Pair = (0, 0)  #: rows and columns of zeros, on both sides
    dilation: Pair = (1, 1)
    groups: int = 1


class _Record:
    """Equality field by field, arrays included, for the frozen dataclasses below."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))  # type: ignore[arg-type]

    __hash__ = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        for name, kind in _KINDS.get(type(self), {}).items():
            value = fitting(f"{type(self).__name__}.{name}", getattr(self, name), kind)
            object.__setattr__(self, name, value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return bool(a == b)


def _freeze(record: Any, field: str) -> None:
    """Replace an array field by a read-only int32 copy, refusing anything that is not integral."""
    where = f"{type(record).__name__}.{field}"
    values = array(where, getattr(record, field), "biuf", "an array of integers")
    if values.size and values.dtype.kind not in "iu":
        raise refuse(where, f"dtype {values.dtype} is not an integer", "quantise it first")
    limits = np.iinfo(np.int32)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        raise refuse(where, "a value leaves 32 bit", "scale the network down")
    values = values.astype(np.int32)
    values.flags.writeable = False
    object.__setattr__(record, field, values)


def _freeze_real(record: Any, field: str) -> None:
    """Replace an array field by a read-only float64 copy."""
    values = array(f"{type(record).__name__}.{field}", getattr(record, field), "iuf", "real numbers").astype(np.float64)
    values.flags.writeable = False
    object.__setattr__(record, field, values)


@dataclass(frozen=True, eq=False)
class Dense(_Record):
    """All-to-all synapses; a (C, H, W) source is read in C, H, W order, as ``torch.flatten`` does."""

    weight: np.ndarray = field(repr=False)  #: su, (N_out, N_in)

    def __post_init__(self) -> None:
        _freeze(self, "weight")

    def output_shape(self, source: Shape) -> Shape:
        """Shape of the current that a source of shape ``source`` causes; raises :class:`Refused` on a misfit."""
        if self.weight.ndim != 2 or self.weight.shape[1] != math.prod(source):
            raise refuse(
                "Dense",
                f"weight {self.weight.shape} does not fit a source of shape {source}",
                f"its second dimension must be {math.prod(source)}",
            )
        return (self.weight.shape[0],)


@dataclass(frozen=True, eq=False)
class Conv2d(_Record):
    """Cross-correlation with zero padding, exactly as ``torch.nn.functional.conv2d``."""

    weight: np.ndarray = field(repr=False)  #: su, (C_out, C_in / groups, kH, kW)
    geometry: Geometry = field(default_factory=Geometry)

    def __post_init__(self) -> None:
        _freeze(self, "weight")
        if not isinstance(self.geometry, Geometry):
            raise refuse("Conv2d.geometry", f"{shown(self.geometry)} given", "give a Geometry")
        for name, pair in zip(Geometry._fields, self.geometry[:3], strict=False):
            if not (isinstance(pair, tuple) and len(pair) == 2):
                raise refuse(f"Conv2d.{name}", f"{shown(pair)} given", "give a tuple of two integers")

    def output_shape(self, source: Shape) -> Shape:
        """Shape of the current that a source of shape ``source`` causes; raises :class:`Refused` on a misfit."""
        w, (stride, padding, dilation, groups) = self.weight, self.geometry
        fits = w.ndim == 4 and len(source) == 3 and min(groups, *w.shape) >= 1
        if not fits or w.shape[1] * groups != source[0] or w.shape[0] % groups:
            raise refuse(
                "Conv2d",
                f"weight {w.shape}, {groups} groups, does not fit a source of shape {source}",
                "it needs (C_out, C_in / groups, kH, kW) and a (C, H, W) source",
            )
        size: Shape = (0, 0)
        if min(stride) >= 1 and min(dilation) >= 1 and min(padding) >= 0:
            size = tuple(
                (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, p, d, k, s in zip(source[1:], padding, dilation, w.shape[2:], stride, strict=True)
            )
        if min(size) < 1:
            raise refuse(
                "Conv2d",
                f"kernel {w.shape[2:]} leaves no output on a source of shape {source}",
                "check kernel, stride, padding and dilation",
            )
        return (w.shape[0], size[0], size[1])


Synapse = Dense | Conv2d


class SynapseTable(dict[type, Entry]):
    """What an interpreter of networks does with each exact type of synapse. Another type raises TypeError."""

    def __missing__(self, synapse: type) -> Entry:
        known = ", ".join(kind.__name__ for kind in self)
        raise TypeError(f"{synapse.__name__} is not a synapse; known: {known}")


@dataclass(frozen=True, eq=False)
class Edge(_Record):
    """A group of synapses from one source into the layer that holds the edge."""

    source: str  #: ``INPUT`` or the name of an earlier layer
    synapse: Synapse
    exponent: int = 0  #: the accumulated sum is shifted left by it; right (towards minus infinity) if negative

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.synapse, type) or not isinstance(getattr(self.synapse, "weight", None), np.ndarray):
            raise refuse("Edge.synapse", f"{shown(self.synapse)} given", "give synapses, as Dense and Conv2d are")


@dataclass(frozen=True, eq=False)
class Layer(_Record):
    """A population of integrate-and-fire neurons, or the readout."""

    name: str  #: the torch module's qualified name
    shape: Shape  #: (C, H, W) or (N,)
    edges: tuple[Edge, ...]
    threshold: int  #: theta, su, one per population; unused by a readout (0 there)
    v0: np.ndarray = field(repr=False)  #: initial potential, su, (C,)
    bias: np.ndarray = field(repr=False)  #: schedule b[tau], su, (T, C) or (T, *shape)
    kind: Literal["spiking", "readout"] = "spiking"
    holdoff: int | None = None  #: K of this layer; None takes the network's

    def __post_init__(self) -> None:
        super().__post_init__()
        _freeze(self, "v0")
        _freeze(self, "bias")

    @property
    def size(self) -> int:
        """Number of neurons."""
        return math.prod(self.shape)

    def per_neuron(self, values: np.ndarray) -> np.ndarray:
        """Broadcast ``(..., C)`` or ``(..., *shape)`` against the layer's shape: a view of ``(..., *shape)``."""
        if len(self.shape) == 3 and values.shape[-3:] != self.shape:
            values = values[..., None, None]
        return np.broadcast_to(values, values.shape[: -len(self.shape)] + self.shape)

    @cached_property
    def offsets(self) -> np.ndarray:
        """``v0 + cumulative sum of b``, which the stock form adds at step tau; int64 (T, C) or (T, *shape), su."""
        v0 = self.v0 if self.bias.ndim == 2 else self.v0.reshape(-1, *(1,) * (len(self.shape) - 1))
        return v0 + np.cumsum(self.bias, axis=0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Input(_Record):
    """The graded input: an integer payload per neuron, the same at each of its T steps.

    Scale and order are the host's: :meth:`encode` applies them, no engine reads them.
    """

    shape: Shape
    bits: int = 8
    signed: bool = True
    #: Payload units per unit of the model's input; float64 (C,) where channels or features differ
    scale: float | np.ndarray = 1.0
    #: Which value of the model's flattened input each neuron gets, int32 (*shape); None where it is given in order
    order: np.ndarray | None = field(default=None, repr=False)
    given: Shape | None = None  #: shape of the model's input, without the batch; None where it is ``shape``
    form: InputForm = "payload"

    def __post_init__(self) -> None:
        super().__post_init__()
        if array("Input.scale", self.scale, "iuf", "real numbers").ndim:
            _freeze_real(self, "scale")
        if self.order is not None:
            _freeze(self, "order")

    @property
    def model_shape(self) -> Shape:
        """Shape of what :meth:`encode` takes, without the batch dimension."""
        return self.shape if self.given is None else self.given

    @property
    def limits(self) -> Pair:
        """Smallest and largest payload, both inclusive. Signed payloads are symmetric."""
        largest = (1 << (self.bits - self.signed)) - 1
        return (-largest if self.signed else 0, largest)

    def arrange(self, x: Any) -> np.ndarray:
        """Bring model inputs ``(B, *model_shape)`` into the order of the neurons, float64 ``(B, *shape)``."""
        values = array("x", x, "biuf", "real numbers").astype(np.float64)
        if values.shape[1:] != self.model_shape:
            wanted = ", ".join(map(str, self.model_shape))
            raise refuse("x", f"shape {values.shape}", f"give model inputs of shape (samples, {wanted})")
        return values if self.order is None else values.reshape(len(values), -1)[:, self.order]

    def encode(self, x: Any) -> np.ndarray:
        """Quantise model inputs ``(B, *model_shape)`` to the payload, int32: ``clip(round(x * scale))``."""
        scaled = self.arrange(x) * _spatial(self.scale, len(self.shape))
        if np.isnan(scaled).any():
            raise refuse("x", "it holds NaN", "clean the data")
        return np.clip(np.rint(scaled), *self.limits).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Output(_Record):
    """What the readout's potentials stand for. The host decodes with it, no engine reads it."""

    scale: np.ndarray  #: su after the whole window per unit of the model's output, float64 () or (C,)
    offset: np.ndarray  #: what is added in that unit because the network leaves it out, float64 () or (C,)

    def __post_init__(self) -> None:
        _freeze_real(self, "scale")
        _freeze_real(self, "offset")

    def decode(self, potentials: Any, share: float = 1.0) -> np.ndarray:
        """Return the model's outputs, float64 (B, *shape), for potentials after a ``share`` of the window."""
        potentials = array("potentials", potentials, "iuf", "numbers").astype(np.float64)
        scale, offset = (_spatial(values, potentials.ndim - 1) for values in (self.scale, self.offset))
        return potentials / (scale * share) + offset


def _spatial(values: float | np.ndarray, dimensions: int) -> np.ndarray:
    """Shape () or (C,) so that it broadcasts to (B, *shape) of so many dimensions beside the batch."""
    values = np.asarray(values, np.float64)
    return values.reshape(-1, *(1,) * (dimensions - 1)) if values.ndim else values


@dataclass(frozen=True, eq=False)
class Network(_Record):
    """A deployable network; ``layers`` are in topological order and the one readout is among them."""

    input: Input
    layers: tuple[Layer, ...]
    timesteps: int  #: T, the length of every firing window
    holdoff: int = 0  #: K, the default of every spiking layer
    output: Output | None = None  #: what the readout's potentials stand for; None where nobody has said so
    #: Steps between samples in the stock form, which silicon wants a power of two; None takes the fewest
    reset_interval: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        findings = _structure(self)
        if findings:
            raise Refused(findings)

    def __getitem__(self, name: str) -> Layer:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def readout(self) -> Layer:
        """The layer whose final potentials are the logits."""
        return next(layer for layer in self.layers if layer.kind == "readout")

    @cached_property
    def last_reader(self) -> dict[str, str]:
        """The last layer that an edge leads to, by the name of its source: there its output may be forgotten."""
        return {edge.source: layer.name for layer in self.layers for edge in layer.edges}

    @cached_property
    def phase(self) -> dict[str, int]:
        """First step of every firing window, by layer name; the input's is 0."""
        phase = {INPUT: 0}
        for layer in self.layers:
            holdoff = 0 if layer.kind == "readout" else self.holdoff if layer.holdoff is None else layer.holdoff
            phase[layer.name] = max(phase[edge.source] + 1 for edge in layer.edges) + holdoff
        return phase

    def first_arrival(self, layer: Layer) -> int:
        """First step at which a current can reach the layer. It is *busy* from here to ``phase + T - 1``."""
        return min(self.phase[edge.source] + 1 for edge in layer.edges)

    def busy(self, layer: Layer) -> range:
        """Return the steps at which the layer integrates or may fire."""
        return range(self.first_arrival(layer), self.phase[layer.name] + self.timesteps)

    @cached_property
    def steps(self) -> int:
        """Number of steps until every layer has closed its window."""
        return max(self.busy(layer).stop for layer in self.layers)

    @cached_property
    def period(self) -> int:
        """Smallest distance in steps at which samples may follow each other: the longest busy time of a layer."""
        return max(len(self.busy(layer)) for layer in self.layers)

    def on_chip(self, layer: Layer) -> tuple[Edge, ...]:
        """Return the edges of a layer for which a chip has synapses: all, unless the host brings its biases."""
        return tuple(edge for edge in layer.edges if edge.source != INPUT or self.input.form == "payload")

    def shape_of(self, source: str) -> Shape:
        """Shape of the input or of a layer, by name."""
        return self.input.shape if source == INPUT else self[source].shape

    def decode(self, potentials: Any) -> np.ndarray:
        """Return the model's outputs, float64, for the readout's potentials (B, *shape) after the whole window.

        Or (B, T, *shape) after every window step, as traces have them. In su where nobody has said what they stand for.
        """
        output = self.output or Output(np.array(1.0), np.array(0.0))
        potentials, shape = array("potentials", potentials, "iuf", "numbers"), self.readout.shape
        if potentials.shape[1:] not in (shape, (self.timesteps, *shape)):
            wanted = f"(samples, {', '.join(map(str, shape))})"
            raise refuse("potentials", f"shape {potentials.shape}", f"give {wanted}, or that of all T steps")
        if potentials.ndim == len(shape) + 1:
            return output.decode(potentials)
        steps = range(potentials.shape[1])
        return np.stack([output.decode(potentials[:, t], (t + 1) / self.timesteps) for t in steps], 1)

    def payload(self, payload: Any) -> np.ndarray:
        """Check an integer payload ``(B, *input.shape)`` against the input's shape and range and return it as int32."""
        payload = array("payload", payload, ANYTHING, "an array of integers")
        low, high = self.input.limits
        if payload.shape[1:] != self.input.shape or payload.dtype.kind not in "iu":
            raise refuse(
                "payload",
                f"{payload.dtype} of shape {payload.shape}",
                f"it needs integers of shape (samples, {', '.join(map(str, self.input.shape))})",
            )
        if payload.size and (payload.min() < low or payload.max() > high):
            raise refuse(
                "payload",
                f"values {payload.min()}..{payload.max()} leave {low}..{high}",
                "encode with network.input.encode",
            )
        return payload.astype(np.int32)


#: Of every record, what is neither an array nor a number: those are held to account where they are frozen or used.
_KINDS: dict[type, dict[str, Any]] = {
    Edge: {"source": str},
    Layer: {"name": str, "shape": tuple, "edges": tuple[Edge, ...], "kind": str},
    Input: {"shape": tuple, "signed": bool, "given": tuple | None, "form": str},
    Network: {"input": Input, "layers": tuple[Layer, ...], "output": Output | None},
}


def _structure(network: Network) -> list[Finding]:
    """Everything about the graph, the shapes and the scalars that makes a network meaningless."""
    found = _scalars(network)
    if found:  # nothing can be computed with them
        return found

    def note(where: str, problem: str, remedy: str) -> None:
        found.append(Finding(where, problem, remedy))

    if network.timesteps < 1:
        note("timesteps", f"T = {network.timesteps}", "give at least 1 step")
    if network.holdoff < 0:
        note("holdoff", f"K = {network.holdoff}", "give 0 or more steps")
    if not 1 <= network.input.bits <= 24 or len(network.input.shape) not in (1, 3) or min(network.input.shape) < 1:
        note(
            INPUT,
            f"{network.input.bits} bits, shape {network.input.shape}",
            "give 1..24 bits and a shape (C, H, W) or (N,)",
        )
    else:
        found += _input_findings(network.input)
    if network.input.form == "spikes":
        found += [
            Finding(
                layer.name, "it reads the input, whose form is spikes", "let spiking layers read it, and nothing else"
            )
            for layer in network.layers
            if INPUT in (sources := {edge.source for edge in layer.edges})
            and (len(sources) > 1 or layer.kind != "spiking")
        ]
    shapes: dict[str, Shape] = {INPUT: network.input.shape}
    spiking = {INPUT}
    for layer in network.layers:
        name = layer.name
        if name in shapes:
            note(name, "the name occurs twice", "give every layer its own name")
        if len(layer.shape) not in (1, 3) or min(layer.shape) < 1:
            note(name, f"shape {layer.shape}", "give (C, H, W) or (N,)")
            continue
        if layer.kind not in ("spiking", "readout"):
            note(name, f"kind {layer.kind!r}", "use 'spiking' or 'readout'")
        if layer.kind == "spiking" and layer.threshold < 1:
            note(name, f"threshold {layer.threshold}", "give a positive integer")
        if layer.holdoff is not None and (layer.holdoff < 0 or layer.kind == "readout"):
            remedy = "leave it out: a readout never spikes" if layer.kind == "readout" else "give 0 or more steps"
            note(name, f"holdoff {layer.holdoff}", remedy)
        if not layer.edges:
            note(name, "no edge feeds it", "remove the layer or connect it")
        if layer.v0.shape != layer.shape[:1]:
            note(name, f"v0 of shape {layer.v0.shape}", f"give {layer.shape[:1]}")
        if layer.bias.shape not in ((network.timesteps, *layer.shape[:1]), (network.timesteps, *layer.shape)):
            note(
                name,
                f"bias schedule of shape {layer.bias.shape}",
                f"give T = {network.timesteps} rows of {layer.shape[:1]} or {layer.shape}",
            )
        for edge in layer.edges:
            if edge.source not in shapes:
                note(name, f"edge from {edge.source!r}, which is no earlier layer", "order the layers topologically")
            elif edge.source not in spiking:
                note(name, f"edge from the readout {edge.source!r}", "a readout never spikes: make it the last layer")
            else:
                try:
                    shape = edge.synapse.output_shape(shapes[edge.source])
                except Refused as error:
                    found.extend(Finding(f"{name} <- {edge.source}", f.problem, f.remedy) for f in error.findings)
                    continue
                if shape != layer.shape and (len(shape) == 3 or shape != (layer.size,)):
                    note(
                        f"{name} <- {edge.source}",
                        f"the synapse gives shape {shape}, the layer has {layer.shape}",
                        "make them equal",
                    )
        shapes[name] = layer.shape
        if layer.kind == "spiking":
            spiking.add(name)
    if sum(layer.kind == "readout" for layer in network.layers) != 1:
        note("layers", f"{sum(layer.kind == 'readout' for layer in network.layers)} readouts", "give exactly one")
    elif network.output is not None:
        channels = network.readout.shape[:1]
        for field in ("scale", "offset"):
            values, positive = getattr(network.output, field), field == "scale"
            fits = values.shape in ((), channels) and np.isfinite(values).all()
            if not fits or (positive and values.min() <= 0):
                wanted = "positive finite numbers" if positive else "finite numbers"
                note("output", f"{field} {shown(values)}", f"give {wanted} of shape () or {channels}")
    if not found and network.reset_interval is not None and network.reset_interval <= network.period:
        note("reset_interval", f"{network.reset_interval} steps", f"give at least {network.period + 1}")
    return found


def _scalars(network: Network) -> list[Finding]:
    """Everything that should be an integer in a range that any computer can hold, and is not."""
    values: list[tuple[str, str, Any, int]] = [
        ("timesteps", "T", network.timesteps, 1 << 16),
        ("holdoff", "K", network.holdoff, 1 << 16),
        (INPUT, "bits", network.input.bits, 1 << 16),
        *((INPUT, "shape", size, 1 << 40) for size in network.input.shape),
    ]
    if network.reset_interval is not None:
        values.append(("reset_interval", "steps", network.reset_interval, 1 << 24))
    for layer in network.layers:
        values += [(layer.name, "threshold", layer.threshold, 1 << 31)]
        values += [(layer.name, "shape", size, 1 << 40) for size in layer.shape]
        values += [] if layer.holdoff is None else [(layer.name, "holdoff", layer.holdoff, 1 << 16)]
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            values.append((where, "exponent", edge.exponent, EXPONENT_LIMIT))
            *pairs, groups = getattr(edge.synapse, "geometry", (1,))
            values += [(where, "geometry", n, 1 << 40) for pair in pairs for n in pair]
            values += [(where, "groups", groups, 1 << 40)]
    return [
        Finding(where, f"{what} {shown(value)} is no integer, or far too large", f"give a whole number, {most} at most")
        for where, what, value, most in values
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or abs(int(value)) > most
    ]


def _input_findings(source: Input) -> list[Finding]:
    """Everything that makes scale and order of an input meaningless."""
    found, scale, order = [], np.asarray(source.scale, np.float64), source.order
    if source.form not in get_args(InputForm):
        found.append(Finding(INPUT, f"form {source.form!r}", f"use {', '.join(get_args(InputForm))}"))
    if scale.shape not in ((), source.shape[:1]) or not np.isfinite(scale).all() or scale.min() <= 0:
        remedy = f"give positive finite numbers of shape () or {source.shape[:1]}"
        found.append(Finding(INPUT, f"scale {shown(source.scale)}", remedy))
    if (order is None) != (source.given is None):
        found.append(Finding(INPUT, "an order without the shape that is given, or the reverse", "give both or neither"))
    elif order is not None and source.given is not None:
        values = math.prod(source.given)
        if order.shape != source.shape or min(source.given) < 1 or order.min() < 0 or order.max() >= values:
            found.append(
                Finding(INPUT, f"order of shape {order.shape}", f"give positions 0..{values - 1} of {source.shape}")
            )
    return found
