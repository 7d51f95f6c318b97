"""What stands in a network file, and the network that it says; no bytes yet.

The netx form is a ``.net``: one group per block below ``/layer`` holding what stock
``lava.lib.dl.netx.hdf5.Network`` (lava-dl 0.6.0) reads, and beside it, where that loader does not look, what it has no
word for: v0, the bias schedule, the hold-off, names. Open it there with ``input_message_bits`` equal to the input's
bits. On its own it stays silent: its neurons hold the stock form of the integrate-and-fire neuron, u + bias >= theta,
whose bias is an offset (:mod:`sim.stock`); ``v0 + cumulative bias`` inside the firing window has to be written step by
step, and the offset in force when the clock starts, before every window, suppresses all spikes. How far the threshold
is lifted above theta - 1, inside the window the bias is too. The recurrent synapse of weight -theta that resets by
subtraction is attached by the loader as well.

The graph form keeps, in the same fields below ``/graph``, the networks that netx cannot build (residual connections,
weight exponents). netx finds no ``/layer`` in such a file and stops, rather than building half a network.

Formats 1 to 5, with ``@`` marking an attribute; integers are int64, and nothing else may stand in the file::

    @tool @format_version @loader @timesteps @holdoff @sha256                   the digest covers everything else
    layer/0          type=input shape @bits @signed @scale              (graph/input, without type)
      from format 2  [scale, instead of @scale] [order given]
    layer/<i>        type=flatten                                       only where a Dense reads a (C, H, W) source
    layer/<i>        shape v0 bias_schedule @name @kind @threshold [@holdoff]           (graph/layer/<i>)
      from format 2  [output_scale output_offset], of the readout
      edge           type=conv|dense weight [stride padding dilation groups] @source @exponent
                                                 in the layer's own group (graph/layer/<i>/edge/<k>)
      format 4 only  weight_rec                      (N, N), of spiking layers, whose type is dense_rec
      netx only      bias neuron/{type iDecay vDecay vThMant refDelay gradedSpike}      (not below graph)

Format 3 is the netx form with what silicon holds: a suppressing bias of 13 bits and a lifted threshold, where the netx
form of 1 and 2 has -32768 and theta - 1. Format 4 is the stock form: format 3 of a chain of dense layers without
hold-off that holds the recurrent synapses, too, so that nothing but the schedule and the input is attached; netx clears
its layers where it is opened with ``reset_interval`` T + 1, or more, and ``reset_offset`` 1. The graph form says none
of this: it is of format 1, or 2 where it needs that.

Format 5 is that of networks whose inputs are no graded payloads, or whose samples come at an interval of their own, and
of the clock form. It holds the whole network below ``/graph``, @form (netx, graph or clock), [@reset_interval], and
[graph/input/@form]. What netx builds of it stands below ``/layer`` once more, without anything of ours. Input neurons
are an ``input`` block with neurons there, whose bias the host writes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from sim.findings import Finding, refuse
from sim.network import Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Output, Synapse, SynapseTable
from sim.stock import UNLIFTED, Silence, silence, vth

TOOL = "ann2loihi"
NETX, OURS = "lava-dl netx", "ann2loihi"  #: who can load a file: stock netx, or only :func:`exporters.netx.load`
FORMATS = (1, 2, 3, 4, 5)  #: that are read; a form is written in the first that can hold it
NETX_FORMAT, STOCK_FORMAT = 3, 4  #: of files for stock netx: without and with the recurrent synapses
WHOLE_FORMAT = 5  #: of files that hold the whole network below ``/graph``, whoever builds what of it
FIRST_SILENCE = Silence(-(1 << 15), 0)  #: of the netx form until format 2: 16 bits of bias_mant, as Lava's LIF stores

Content = dict[str, np.ndarray]  #: what a file holds: "group/dataset" or "group/@attribute" to its value


def under(prefix: str, content: Content) -> Content:
    """Move content into a group."""
    return {f"{prefix}/{name}": value for name, value in content.items()}


def integer(values: Any) -> np.ndarray:
    """Return values as files hold integers."""
    return np.asarray(values, np.int64)


def netx_type(name: bytes) -> np.ndarray:
    """Return a word of netx as its files hold it."""
    return np.array([name], "S10")  # the form in which lava-dl's own exporter writes it


def _header(network: Network, loader: str, version: int) -> Content:
    header = {
        "@tool": np.array(TOOL.encode()),
        "@format_version": integer(version),
        "@loader": np.array(loader.encode()),
        "@timesteps": integer(network.timesteps),
        "@holdoff": integer(network.holdoff),
    }
    if network.reset_interval is not None:
        header["@reset_interval"] = integer(network.reset_interval)
    return header


def _format(network: Network) -> int:
    """Tell the first format that can hold what both forms say."""
    if network.input.form != "payload" or network.reset_interval is not None:
        return WHOLE_FORMAT
    plain = network.output is None and network.input.order is None and np.ndim(network.input.scale) == 0
    return FORMATS[0] if plain else FORMATS[1]


def _input_content(source: Input) -> Content:
    scale = np.asarray(source.scale, np.float64)
    content = {
        "shape": integer(source.shape),
        "@bits": integer(source.bits),
        "@signed": integer(source.signed),
        "scale" if scale.ndim else "@scale": scale,
    }
    if source.form != "payload":
        content["@form"] = np.array(source.form.encode())
    if source.order is not None:
        content |= {"order": integer(source.order), "given": integer(source.given)}
    return content


def _output_content(output: Output | None) -> Content:
    return {} if output is None else {"output_scale": output.scale, "output_offset": output.offset}


def _layer_content(layer: Layer) -> Content:
    content = {
        "shape": integer(layer.shape),
        "v0": integer(layer.v0),
        "bias_schedule": integer(layer.bias),
        "@name": np.array(layer.name.encode()),
        "@kind": np.array(layer.kind.encode()),
        "@threshold": integer(layer.threshold),
    }
    return content if layer.holdoff is None else content | {"@holdoff": integer(layer.holdoff)}


def _synapse_content(edge: Edge) -> Content:
    form = SYNAPSES[type(edge.synapse)]
    return {
        "type": netx_type(form.type),
        "weight": integer(edge.synapse.weight),
        **{name: integer(value) for name, value in form.numbers(edge.synapse).items()},
    }


def _edge_content(edge: Edge) -> Content:
    own = {"@source": np.array(edge.source.encode()), "@exponent": integer(edge.exponent)}
    return _synapse_content(edge) | own


def neuron_content(layer: Layer, silent: Silence) -> Content:
    """Describe the stock neuron: netx makes du = iDecay - 1 of it (u never decays), dv = 4096 (v forgets at once)."""
    readout = layer.kind == "readout"
    return {
        "bias": integer(layer.v0 if readout else np.full(layer.shape[0], silent.offset)),
        "neuron/type": netx_type(b"CUBA"),
        "neuron/iDecay": integer(0),
        "neuron/vDecay": integer(4096),
        "neuron/vThMant": integer(vth(layer, silent)),
        "neuron/refDelay": integer(1),
        "neuron/gradedSpike": integer(0),
    }


def netx_content(network: Network, version: int = NETX_FORMAT) -> Content:
    """Describe a chain of layers, which :func:`exporters.netx.check` has passed, for stock netx.

    Below ``NETX_FORMAT``, as it was described before that: to compare with what has been read.
    """
    if _format(network) == WHOLE_FORMAT and version != STOCK_FORMAT:
        return sealed(whole(network, NETX, "netx") | in_order(_blocks(network)))
    latest = version >= NETX_FORMAT
    blocks: list[Content] = [{"type": netx_type(b"input"), **_input_content(network.input)}]
    for layer in network.layers:
        (edge,) = layer.edges
        if SYNAPSES[type(edge.synapse)].flat and len(network.shape_of(edge.source)) == 3:
            blocks.append({"type": netx_type(b"flatten")})
        silent = silence(layer) if latest else FIRST_SILENCE
        blocks.append(_layer_content(layer) | _edge_content(edge) | neuron_content(layer, silent))
        if layer.kind == "readout":
            blocks[-1] |= _output_content(network.output)
        elif version == STOCK_FORMAT:
            word = SYNAPSES[type(edge.synapse)].recurrent or b""  # `check_recurrent` has refused None
            blocks[-1] |= {"type": netx_type(word), "weight_rec": recurrent(layer.threshold, layer.size)}
    content = _header(network, NETX, version if latest else _format(network))
    return sealed(content | in_order(blocks))


def in_order(blocks: list[Content]) -> Content:
    """Put the blocks of netx where it looks for them."""
    content: Content = {}
    for index, block in enumerate(blocks):
        content |= under(f"layer/{index}", block)
    return content


def _blocks(network: Network) -> list[Content]:
    """Describe what netx builds of a chain of layers, and nothing else."""
    first, *others = network.layers
    if network.on_chip(first):
        blocks, others = [{"type": netx_type(b"input"), "shape": integer(network.input.shape)}], list(network.layers)
    else:
        neurons = neuron_content(first, UNLIFTED)
        del neurons["bias"]  # netx takes it for a number that it never applies; until it is written, it is 0
        blocks = [{"type": netx_type(b"input"), "shape": integer(first.shape), **neurons}]
    for layer in others:
        (edge,) = layer.edges
        form = SYNAPSES[type(edge.synapse)]
        if form.flat and len(network.shape_of(edge.source)) == 3:
            blocks.append({"type": netx_type(b"flatten")})
        blocks.append({"shape": integer(layer.shape)} | _synapse_content(edge) | neuron_content(layer, silence(layer)))
    return blocks


def stock_content(network: Network) -> Content:
    """Describe a chain of dense layers, which has passed :func:`exporters.netx.checks.check_recurrent`."""
    return netx_content(network, STOCK_FORMAT)


def recurrent(theta: int, neurons: int) -> np.ndarray:
    """Weights, int64 (N, N), by which spikes subtract ``theta`` from the neuron that has fired."""
    return -theta * np.eye(neurons, dtype=np.int64)


def graph_content(network: Network) -> Content:
    """Describe any network for :func:`network_of` alone."""
    if _format(network) == WHOLE_FORMAT:
        return sealed(whole(network, OURS, "graph"))
    return sealed(_header(network, OURS, _format(network)) | _graph(network))


def whole(network: Network, loader: str, form: str) -> Content:
    """Describe a network as format 5 does."""
    return _header(network, loader, WHOLE_FORMAT) | {"@form": np.array(form.encode())} | _graph(network)


def _graph(network: Network) -> Content:
    content = under("graph/input", _input_content(network.input))
    for index, layer in enumerate(network.layers):
        content |= under(f"graph/layer/{index}", _layer_content(layer))
        if layer.kind == "readout":
            content |= under(f"graph/layer/{index}", _output_content(network.output))
        for number, edge in enumerate(layer.edges):
            content |= under(f"graph/layer/{index}/edge/{number}", _edge_content(edge))
    return content


def sealed(content: Content) -> Content:
    """Add the digest by which a weight that has changed in the file, and is still a legal weight, is noticed."""
    digest = hashlib.sha256()
    for path in sorted(content):
        value = content[path]
        digest.update(f"{path} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return content | {"@sha256": np.array(digest.hexdigest().encode())}


class _Fields:
    """Access to a file's content that says which field is missing or of the wrong type."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def __contains__(self, path: str) -> bool:
        return path in self._content

    def _get(self, path: str, kind: str, dimensions: int | None) -> np.ndarray:
        if path not in self._content:
            raise refuse(path, "it is missing", "write the file again")
        value = self._content[path]
        if value.dtype.kind != kind or dimensions not in (None, value.ndim):
            raise refuse(path, f"{value.dtype} of shape {value.shape} does not belong here", "write the file again")
        return value

    def array(self, path: str) -> np.ndarray:
        return self._get(path, "i", None)

    def numbers(self, path: str) -> tuple[int, ...]:
        return tuple(self._get(path, "i", 1).tolist())

    def pair(self, path: str) -> tuple[int, int]:
        if len(numbers := self.numbers(path)) != 2:
            raise refuse(path, f"{len(numbers)} numbers instead of 2", "write the file again")
        return (numbers[0], numbers[1])

    def number(self, path: str) -> int:
        return int(self._get(path, "i", 0))

    def reals(self, path: str) -> np.ndarray:
        return self._get(path, "f", None)

    def real(self, path: str) -> float:
        return float(self._get(path, "f", 0))

    def text(self, path: str) -> str:
        text = bytes(self._get(path, "S", 0).item()).decode()
        if not text.isprintable():
            raise refuse(path, f"{text!a} is not printable", "write the file again")
        return text

    def type(self, path: str) -> bytes:
        return bytes(self._get(path, "S", 1)[0])


def _read_conv2d(fields: _Fields, at: str, weight: np.ndarray) -> Conv2d:
    stride, padding, dilation = (fields.pair(f"{at}/{name}") for name in Geometry._fields[:3])
    if min(*stride, *dilation) < 1:
        raise refuse(at, f"stride {stride}, dilation {dilation}", "both start at 1")
    return Conv2d(weight, Geometry(stride, padding, dilation, fields.number(f"{at}/groups")))


@dataclass(frozen=True)
class SynapseForm:
    """How one type of synapse stands in a file."""

    type: bytes  #: netx's word for it
    flat: bool  #: whether netx flattens a (C, H, W) source before it
    numbers: Callable[[Any], dict[str, Any]]  #: (synapse) -> integers beside the weight, by field
    read: Callable[[_Fields, str, np.ndarray], Synapse]  #: (fields, where the synapse stands, weight) -> synapse
    recurrent: bytes | None = None  #: netx's word where the layer also feeds itself; None where there is none


SYNAPSES = SynapseTable[SynapseForm](
    {
        Dense: SynapseForm(b"dense", True, lambda _: {}, lambda fields, at, weight: Dense(weight), b"dense_rec"),
        Conv2d: SynapseForm(b"conv", False, lambda synapse: synapse.geometry._asdict(), _read_conv2d),
    }
)


def network_of(content: Content) -> Network:
    """Build the network of either form; raises :class:`Refused` for a field that is missing or makes no sense."""
    fields = _Fields(content)
    reading = {word: form.read for form in SYNAPSES.values() for word in (form.type, form.recurrent) if word}

    def layer(at: str, edges: list[str]) -> Layer:
        return Layer(
            fields.text(f"{at}/@name"),
            fields.numbers(f"{at}/shape"),
            tuple(map(edge, edges)),
            fields.number(f"{at}/@threshold"),
            fields.array(f"{at}/v0"),
            fields.array(f"{at}/bias_schedule"),
            fields.text(f"{at}/@kind"),  # type: ignore[arg-type] # Network checks it
            fields.number(f"{at}/@holdoff") if f"{at}/@holdoff" in fields else None,
        )

    def edge(at: str) -> Edge:
        kind, weight = fields.type(f"{at}/type"), fields.array(f"{at}/weight")
        if kind not in reading:
            raise refuse(
                f"{at}/type",
                f"{kind.decode(errors='replace')!a} is not a synapse; known: {b', '.join(sorted(reading)).decode()}",
                "write the file again",
            )
        synapse = reading[kind](fields, at, weight)
        return Edge(fields.text(f"{at}/@source"), synapse, fields.number(f"{at}/@exponent"))

    def numbered(at: str, field: str) -> Iterator[str]:
        index = 0
        while f"{at}/{index}/{field}" in fields:
            yield f"{at}/{index}"
            index += 1

    if "graph/input/shape" in fields:
        at = "graph/input"
        layers = [layer(group, list(numbered(f"{group}/edge", "type"))) for group in numbered("graph/layer", "shape")]
    else:
        at = "layer/0"
        layers = [
            layer(group, [group])
            for group in list(numbered("layer", "type"))[1:]
            if fields.type(f"{group}/type") != b"flatten"
        ]
    ordered = f"{at}/order" in fields
    source = Input(
        fields.numbers(f"{at}/shape"),
        fields.number(f"{at}/@bits"),
        bool(fields.number(f"{at}/@signed")),
        fields.reals(f"{at}/scale") if f"{at}/scale" in fields else fields.real(f"{at}/@scale"),
        fields.array(f"{at}/order") if ordered else None,
        fields.numbers(f"{at}/given") if ordered else None,
        fields.text(f"{at}/@form") if f"{at}/@form" in fields else "payload",  # type: ignore[arg-type] # Network checks it
    )
    scales = (path for path in content if path.endswith("/output_scale"))
    output = next((Output(fields.reals(p), fields.reals(p.replace("_scale", "_offset"))) for p in scales), None)
    interval = fields.number("@reset_interval") if "@reset_interval" in fields else None
    return Network(source, tuple(layers), fields.number("@timesteps"), fields.number("@holdoff"), output, interval)


def differences(content: Content, expected: Content) -> list[Finding]:
    """Compare a file with the one that its network would have been written as."""
    found = []
    for path in sorted(content.keys() | expected.keys()):
        if path not in expected:
            found.append(Finding(path, "it is not part of the format", "remove it"))
        elif path not in content:
            found.append(Finding(path, "it is missing", "write the file again"))
        elif content[path].dtype != expected[path].dtype or not np.array_equal(content[path], expected[path]):
            found.append(Finding(path, "it contradicts the rest of the file", "write the file again"))
    return found
