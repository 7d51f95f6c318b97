"""Networks in HDF5: written for lava-dl's own netx loader, and read back exactly. Needs neither lava nor lava-dl.

:func:`write` makes a netx ``.net``: one group per block below ``/layer`` holding what stock
``lava.lib.dl.netx.hdf5.Network`` (lava-dl 0.6.0) reads, and beside it, where that loader does not look, what it has no
word for: v0, the bias schedule, the hold-off, names. Open it there with ``input_message_bits`` equal to the input's
bits. On its own it stays silent: its neurons hold the stock form of the integrate-and-fire neuron, u + bias >= theta,
whose bias is an offset; ``v0 + cumulative bias`` inside the firing window has to be written step by step, and the
offset in force when the clock starts, before every window, suppresses all spikes. The recurrent synapse of weight
-theta that resets by subtraction is attached by the loader too.

:func:`write_graph` keeps, in the same fields below ``/graph``, the networks that netx cannot build (residual
connections, weight exponents). netx finds no ``/layer`` in such a file and stops, rather than building half a network.

Format 1, with ``@`` marking an attribute; integers are int64, and nothing else may stand in the file::

    @tool @format_version @loader @timesteps @holdoff @sha256                   the digest covers everything else
    layer/0          type=input shape @bits @signed @scale              (graph/input, without type)
    layer/<i>        type=flatten                                       only where a Dense reads a (C, H, W) source
    layer/<i>        shape v0 bias_schedule @name @kind @threshold [@holdoff]           (graph/layer/<i>)
      edge           type=conv|dense weight [stride padding dilation groups] @source @exponent
                                                 in the layer's own group (graph/layer/<i>/edge/<k>)
      netx only      bias neuron/{type iDecay vDecay vThMant refDelay gradedSpike}      (not below graph)
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import h5py
import numpy as np

from sim.chip import LOIHI2
from sim.chip import check as check_chip
from sim.findings import Finding, Refused, refuse
from sim.network import INPUT, Conv2d, Dense, Edge, Input, Layer, Network
from sim.on_lava import SUPPRESSED

TOOL = "ann2loihi"
NETX, OURS = "lava-dl netx", "ann2loihi"  #: who can load a file: stock netx, or only :func:`exporters.netx.load`
FORMAT_VERSION = 1
NEURON_LIMIT = 1_150_000_000  #: neurons of a network; Intel's largest Loihi 2 system, Hala Point, holds as many
STEP_LIMIT = 1 << 16  #: steps from the input to the answer, so that no file can ask an engine for days
CONV_LIMIT = 127  #: lava-nc's Conv keeps kernel, stride, padding, dilation and groups as int8 and wraps beyond
NEVER = (1 << LOIHI2.threshold_bits) - 1  #: vth of a readout: no potential inside the register exceeds it

Content = dict[str, np.ndarray]  #: what a file holds: "group/dataset" or "group/@attribute" to its value

_GEOMETRY = ("stride", "padding", "dilation")
_TYPES = {b"conv": Conv2d, b"dense": Dense}


def check(network: Network) -> list[Finding]:
    """List everything that stops :func:`write`: what no file may hold, and what stock netx would lose or corrupt."""
    found = _check_storable(network)
    previous = INPUT
    for layer in network.layers:
        if len(layer.edges) > 1:
            found.append(
                Finding(
                    layer.name,
                    f"{len(layer.edges)} edges feed it, netx builds one synapse a layer",
                    "keep it with write_graph and run it with sim.on_lava",
                )
            )
        for edge in layer.edges:
            where = f"{layer.name} <- {edge.source}"
            if edge.source != previous:
                found.append(
                    Finding(
                        where,
                        f"netx feeds each layer from the one before it, here {previous!r}",
                        "keep it with write_graph and run it with sim.on_lava",
                    )
                )
            if edge.exponent:
                found.append(
                    Finding(
                        where,
                        f"weight exponent {edge.exponent}, netx reads none",
                        "rescale the layer so that it is 0, or keep it with write_graph",
                    )
                )
            found.extend(_check_synapse(where, layer, edge.synapse))
        previous = layer.name
    return found


def _check_synapse(where: str, layer: Layer, synapse: Dense | Conv2d) -> list[Finding]:
    found = []
    if type(synapse) is Dense:
        largest, smallest = int(synapse.weight.max()), int(synapse.weight.min())
        if len(layer.shape) == 3:
            found.append(
                Finding(
                    where,
                    f"a dense layer of shape {layer.shape}, netx builds them flat",
                    f"give it the shape ({layer.size},)",
                )
            )
        if largest == smallest == 0:
            found.append(
                Finding(
                    where,
                    "every weight is 0, on which netx fails (OverflowError)",
                    "remove the layer or give it a larger threshold, which scales its weights up",
                )
            )
        # netx shifts such a matrix to -256, where lava-nc clips all-negative weights at -255 and truncates the rest.
        elif largest <= 0 and (-smallest).bit_count() == 1:
            found.append(
                Finding(
                    where,
                    f"no weight is positive and the lowest is {smallest}, minus a power of two: "
                    "netx would change the weights",
                    "make one weight positive, or the lowest no power of two",
                )
            )
    elif type(synapse) is Conv2d:
        numbers = {
            "kernel": synapse.weight.shape[2:],
            **{name: getattr(synapse, name) for name in _GEOMETRY},
            "groups": (synapse.groups,),
        }
        found.extend(
            Finding(
                where,
                f"{name} {max(values)} is above {CONV_LIMIT}, the int8 of lava-nc's Conv",
                "split the layer, or keep it with write_graph",
            )
            for name, values in numbers.items()
            if max(values) > CONV_LIMIT
        )
    return found


def _check_storable(network: Network) -> list[Finding]:
    """List what neither form of file may hold. ``read`` checks it too: it accepts what was accepted for writing."""
    found = check_chip(network)
    found.extend(
        Finding(f"layer {layer.name!a}", "the name is empty, unprintable or above 255 bytes", "rename it")
        for layer in network.layers
        if not (layer.name.isprintable() and 0 < len(layer.name.encode(errors="replace")) < 256)
    )
    found.extend(
        Finding(
            f"{layer.name} <- {edge.source}",
            f"{type(edge.synapse).__name__} is not a synapse of the format",
            "known: Dense, Conv2d",
        )
        for layer in network.layers
        for edge in layer.edges
        if type(edge.synapse) not in _TYPES.values()
    )
    if not (math.isfinite(network.input.scale) and network.input.scale > 0):
        found.append(Finding(INPUT, f"scale {network.input.scale}", "give a positive finite number"))
    if not 0 <= network.readout.threshold <= LOIHI2.threshold_limit:
        found.append(Finding(network.readout.name, f"threshold {network.readout.threshold} of a readout", "give 0"))
    neurons = math.prod(network.input.shape) + sum(layer.size for layer in network.layers)
    if neurons > NEURON_LIMIT:
        found.append(Finding("layers", f"{neurons} neurons, above {NEURON_LIMIT}", "use a smaller network"))
    if network.steps > STEP_LIMIT:
        found.append(
            Finding(
                "timesteps",
                f"{network.steps} steps until the answer, above {STEP_LIMIT}",
                "use fewer timesteps or a smaller hold-off",
            )
        )
    return found


def write(network: Network, path: str | Path) -> None:
    """Write ``network`` as a netx ``.net``; ``path`` is replaced at once when all is written, or left as it was.

    Raises :class:`Refused` with all findings of :func:`check`, or if the file cannot be written.
    """
    _write(network, Path(path), check, _netx_content)


def loaded_by(network: Network) -> str:
    """Say who can load ``network``'s file: ``NETX`` where stock netx can build it, else ``OURS``."""
    return OURS if check(network) else NETX


def save(network: Network, path: str | Path) -> None:
    """Write any deployable network: for stock netx where it can build it, else in the form of :func:`write_graph`."""
    (write if loaded_by(network) == NETX else write_graph)(network, path)


def write_graph(network: Network, path: str | Path) -> None:
    """Write any deployable network, in the form that only :func:`read` understands; otherwise as :func:`write`."""
    _write(network, Path(path), _check_storable, _graph_content)


def read(path: str | Path) -> Network:
    """Read back what :func:`write` or :func:`write_graph` wrote: an equal network.

    The file is not trusted. Nothing is read from outside it or beyond its own size, and whatever the two functions
    would not have written is :class:`Refused`, one line per finding.
    """
    path = Path(path)
    if not path.is_file():
        raise refuse(str(path), "there is no such file", "give the path of a network file")
    try:
        with h5py.File(path, "r") as file:
            _check_origin(file)
            content = _load(file, path.stat().st_size)
        network = _network(content)
        graph = "graph/input/shape" in content
        findings = _differences(content, _graph_content(network) if graph else _netx_content(network))
        findings += _check_storable(network) if graph else check(network)
        if findings:
            raise Refused(findings)
    except Refused as error:
        raise Refused(Finding(f"{path}: {f.where}", f.problem, f.remedy) for f in error.findings) from None
    except Exception as error:  # HDF5 answers damage with almost any built-in exception
        reason = " ".join(str(error).split())
        raise refuse(
            str(path), f"it cannot be read as HDF5 ({type(error).__name__}: {reason})", "give an undamaged network file"
        ) from error
    return network


# A network as file content, and back ---------------------------------------------------------------------------------


def _under(prefix: str, content: Content) -> Content:
    return {f"{prefix}/{name}": value for name, value in content.items()}


def _integer(values: Any) -> np.ndarray:
    return np.asarray(values, np.int64)


def _netx_type(name: bytes) -> np.ndarray:
    return np.array([name], "S10")  # the form in which lava-dl's own exporter writes it


def _header(network: Network, loader: str) -> Content:
    return {
        "@tool": np.array(TOOL.encode()),
        "@format_version": _integer(FORMAT_VERSION),
        "@loader": np.array(loader.encode()),
        "@timesteps": _integer(network.timesteps),
        "@holdoff": _integer(network.holdoff),
    }


def _input_content(source: Input) -> Content:
    return {
        "shape": _integer(source.shape),
        "@bits": _integer(source.bits),
        "@signed": _integer(source.signed),
        "@scale": np.asarray(source.scale, np.float64),
    }


def _layer_content(layer: Layer) -> Content:
    content = {
        "shape": _integer(layer.shape),
        "v0": _integer(layer.v0),
        "bias_schedule": _integer(layer.bias),
        "@name": np.array(layer.name.encode()),
        "@kind": np.array(layer.kind.encode()),
        "@threshold": _integer(layer.threshold),
    }
    return content if layer.holdoff is None else content | {"@holdoff": _integer(layer.holdoff)}


def _edge_content(edge: Edge) -> Content:
    kind = {synapse: name for name, synapse in _TYPES.items()}[type(edge.synapse)]
    content = {
        "type": _netx_type(kind),
        "weight": _integer(edge.synapse.weight),
        "@source": np.array(edge.source.encode()),
        "@exponent": _integer(edge.exponent),
    }
    if type(edge.synapse) is Conv2d:
        content |= {name: _integer(getattr(edge.synapse, name)) for name in (*_GEOMETRY, "groups")}
    return content


def _neuron_content(layer: Layer) -> Content:
    """Describe the stock neuron: netx makes du = iDecay - 1 of it (u never decays), dv = 4096 (v forgets at once)."""
    readout = layer.kind == "readout"
    return {
        "bias": _integer(layer.v0 if readout else np.full(layer.shape[0], SUPPRESSED)),
        "neuron/type": _netx_type(b"CUBA"),
        "neuron/iDecay": _integer(0),
        "neuron/vDecay": _integer(4096),
        "neuron/vThMant": _integer(NEVER if readout else layer.threshold - 1),
        "neuron/refDelay": _integer(1),
        "neuron/gradedSpike": _integer(0),
    }


def _netx_content(network: Network) -> Content:
    blocks: list[Content] = [{"type": _netx_type(b"input"), **_input_content(network.input)}]
    for layer in network.layers:
        (edge,) = layer.edges
        if type(edge.synapse) is Dense and len(network.shape_of(edge.source)) == 3:
            blocks.append({"type": _netx_type(b"flatten")})
        blocks.append(_layer_content(layer) | _edge_content(edge) | _neuron_content(layer))
    content = _header(network, NETX)
    for index, block in enumerate(blocks):
        content |= _under(f"layer/{index}", block)
    return _sealed(content)


def _graph_content(network: Network) -> Content:
    content = _header(network, OURS) | _under("graph/input", _input_content(network.input))
    for index, layer in enumerate(network.layers):
        content |= _under(f"graph/layer/{index}", _layer_content(layer))
        for number, edge in enumerate(layer.edges):
            content |= _under(f"graph/layer/{index}/edge/{number}", _edge_content(edge))
    return _sealed(content)


def _sealed(content: Content) -> Content:
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

    def real(self, path: str) -> float:
        return float(self._get(path, "f", 0))

    def text(self, path: str) -> str:
        text = bytes(self._get(path, "S", 0).item()).decode()
        if not text.isprintable():
            raise refuse(path, f"{text!a} is not printable", "write the file again")
        return text

    def type(self, path: str) -> bytes:
        return bytes(self._get(path, "S", 1)[0])


def _network(content: Content) -> Network:
    fields = _Fields(content)

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
        if kind not in _TYPES:
            raise refuse(
                f"{at}/type",
                f"{kind.decode(errors='replace')!a} is not a synapse; known: conv, dense",
                "write the file again",
            )
        synapse: Dense | Conv2d = Dense(weight)
        if kind == b"conv":
            geometry = {name: fields.pair(f"{at}/{name}") for name in _GEOMETRY}
            if min(*geometry["stride"], *geometry["dilation"]) < 1:
                raise refuse(at, f"stride {geometry['stride']}, dilation {geometry['dilation']}", "both start at 1")
            synapse = Conv2d(weight, **geometry, groups=fields.number(f"{at}/groups"))
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
    source = Input(
        fields.numbers(f"{at}/shape"),
        fields.number(f"{at}/@bits"),
        bool(fields.number(f"{at}/@signed")),
        fields.real(f"{at}/@scale"),
    )
    return Network(source, tuple(layers), fields.number("@timesteps"), fields.number("@holdoff"))


def _differences(content: Content, expected: Content) -> list[Finding]:
    """Compare a file with the one that its network would have been written as."""
    found = []
    for path in sorted(content.keys() | expected.keys()):
        if path not in expected:
            found.append(Finding(path, f"it is not part of format {FORMAT_VERSION}", "remove it"))
        elif path not in content:
            found.append(Finding(path, "it is missing", "write the file again"))
        elif content[path].dtype != expected[path].dtype or not np.array_equal(content[path], expected[path]):
            found.append(Finding(path, "it contradicts the rest of the file", "write the file again"))
    return found


# File content as HDF5, and back --------------------------------------------------------------------------------------


def _write(
    network: Network, path: Path, checks: Callable[[Network], list[Finding]], form: Callable[[Network], Content]
) -> None:
    if findings := checks(network):
        raise Refused(findings)
    try:
        content = form(network)
    except OverflowError:
        raise refuse(str(path), "the network holds a number beyond 64 bit", "check strides and paddings") from None
    try:
        with _replacing(path) as beside:
            with h5py.File(beside, "w") as file:
                for name, value in content.items():
                    _store(file, name, value)
            if read(beside) != network:
                raise refuse(str(path), "the network does not survive the file", "use integers in every integer field")
    except OSError as error:
        reason = " ".join(str(error).split())
        raise refuse(str(path), f"it cannot be written ({reason})", "choose another place") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Give a new file beside ``path`` that takes its place when the block ends well, and vanishes when it does not."""
    if path.is_dir() or not path.parent.is_dir():
        raise refuse(str(path), "it is a directory or lies in none", "give a file name in an existing directory")
    beside = path.with_name(f".{uuid4().hex}.partial")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _store(file: h5py.File, path: str, value: np.ndarray) -> None:
    group, _, attribute = path.rpartition("@")
    if not attribute or "@" not in path:
        file.create_dataset(path, data=value)
    elif value.dtype.kind == "S":
        file.require_group(group or "/").attrs.create(
            attribute, value, dtype=h5py.string_dtype("utf-8", value.dtype.itemsize)
        )
    else:
        file.require_group(group or "/").attrs.create(attribute, value)


def _check_origin(file: h5py.File) -> None:
    """Tell files of other tools and of later versions from damaged ones before anything else is looked at."""
    budget = _Budget(64)
    if (
        "tool" not in file.attrs
        or file.attrs.get_id("tool").dtype != f"S{len(TOOL)}"
        or _attribute(file, "tool", budget).tobytes() != TOOL.encode()
    ):
        raise refuse("@tool", "the file was written by another tool", f"give a file written by {TOOL}")
    version = _attribute(file, "format_version", budget) if "format_version" in file.attrs else np.array("")
    if version.dtype.kind != "i" or version.ndim:
        raise refuse("@format_version", "it is missing or no integer", "write the file again")
    if version != FORMAT_VERSION:
        raise refuse(
            "@format_version",
            f"the file has format {version}, this {TOOL} reads format {FORMAT_VERSION}",
            f"use a newer {TOOL}" if version > FORMAT_VERSION else "write the file again",
        )


class _Budget:
    """Bytes that may still be read: a file cannot honestly hold more than its own size."""

    def __init__(self, size: int) -> None:
        self._left = size

    def spend(self, path: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        if not (dtype.kind == "S" or (dtype.kind in "if" and dtype.itemsize == 8)):
            raise refuse(path, f"{dtype} is neither int64, float64 nor a fixed-length string", "write the file again")
        self._left -= math.prod(shape) * dtype.itemsize
        if self._left < 0:
            raise refuse(path, f"shape {shape} is more than the file can hold", "give an undamaged network file")


def _load(file: h5py.File, size: int) -> Content:
    """Read all of a file: hard links only, each object once, plain contiguous datasets, no more than ``size`` bytes."""
    content: Content = {}
    budget, seen, pending = _Budget(size), {h5py.h5o.get_info(file.id).addr}, [("", file)]
    while pending:
        at, group = pending.pop()
        content |= {f"{at}@{name}": _attribute(group, name, budget) for name in group.attrs}
        for name in group:
            if not (name.isascii() and name.isprintable()):
                raise refuse(f"{at}{name!a}", "it is not part of the format", "remove it")
            path = at + name
            if type(group.get(name, getlink=True)) is not h5py.HardLink:
                raise refuse(path, "it is a link to somewhere else", "write the file again")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise refuse(path, "it is reached twice", "write the file again")
            seen.add(address)
            if isinstance(item, h5py.Group) and len(item):
                pending.append((f"{path}/", item))
            elif isinstance(item, h5py.Dataset):
                content[path] = _dataset(item, path, budget)
            else:
                raise refuse(path, "it is neither a dataset nor a group of them", "remove it")
    return content


def _attribute(holder: h5py.Group, name: str, budget: _Budget) -> np.ndarray:
    attribute = holder.attrs.get_id(name)
    path = f"{(holder.name or '/').lstrip('/')}@{ascii(name)[1:-1]}"
    budget.spend(path, attribute.shape, attribute.dtype)
    value = np.zeros(attribute.shape, attribute.dtype)
    attribute.read(value)
    return value


def _dataset(dataset: h5py.Dataset, path: str, budget: _Budget) -> np.ndarray:
    if dataset.shape is None or dataset.attrs:
        raise refuse(path, "it is empty or has attributes", "write the file again")
    budget.spend(path, dataset.shape, dataset.dtype)
    layout = dataset.id.get_create_plist()
    # Only here do the bytes stand in the file as they are: no filter to unpack, no other file, no fill value.
    if (
        layout.get_layout() != h5py.h5d.CONTIGUOUS
        or layout.get_external_count()
        or dataset.id.get_storage_size() != math.prod(dataset.shape) * dataset.dtype.itemsize
    ):
        raise refuse(path, "it is not stored in one plain piece", "write the file again")
    return np.asarray(dataset[()])
