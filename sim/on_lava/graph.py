"""Builds a network out of Lava's processes, layer by layer; its populations are laid out (W, H, C)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sim.chip import LOIHI2, Chip
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Layer, Network, Shape, SynapseTable
from sim.on_lava.runtime import Population, require_lava
from sim.stock import Silence, by_conv, cycle, encoded, lead, recurs_by_conv, silence, vth


def stimulus(network: Network, payload: np.ndarray, period: int) -> Any:
    """Build the RingBuffer that presents each payload for T steps out of ``period``.

    Raises :class:`Refused` where Lava is not installed: whatever runs on Lava starts here.
    """
    data = np.zeros((*network.input.shape[::-1], lead(network) + len(payload) * period), np.int32)
    for sample, image in enumerate(payload):
        data[..., sample * period : sample * period + network.timesteps] = image.T[..., None]
    return steady(data)


def steady(data: np.ndarray) -> Any:
    """Build the RingBuffer that sends ``data`` (..., steps). Raises as :func:`stimulus` does."""
    require_lava()
    from lava.proc.io.source import RingBuffer

    return RingBuffer(data=data)


def native(network: Network, layer: Layer, ports: dict[str, Any], period: int, chip: Chip) -> Population:
    """Build one layer from our own neurons; its OutPort joins ``ports``."""
    from sim.lava.integrate_fire import Integrate, IntegrateFire

    start = network.first_arrival(layer)
    common: dict[str, Any] = {
        "name": layer.name,
        "shape": layer.shape[::-1],
        "v0": swap(layer.per_neuron(layer.v0)),
        "bias": swap(layer.per_neuron(layer.bias)),
        "start": start,
        "period": period,
        "holdoff": network.phase[layer.name] - start,
        "fraction_bits": chip.fraction_bits,
    }
    if layer.kind == "readout":
        neuron = Integrate(**common)
    else:
        neuron = IntegrateFire(vth=layer.threshold - 1, **common)
        ports[layer.name] = neuron.s_out
    for edge in layer.edges:
        connect(network, layer, edge, ports[edge.source], neuron.a_in)
    return Population(layer, neuron.v_out, ports.get(layer.name))


def stock(network: Network, layer: Layer, ports: dict[str, Any], period: int, chip: Chip) -> Population:
    """Build one layer from Lava's own processes; its OutPort joins ``ports``."""
    from lava.proc.lif.process import LIFReset

    silent = silence(layer, chip)
    neuron = LIFReset(name=layer.name, shape=layer.shape[::-1], du=-1, dv=4096, vth=vth(layer, silent), bias_exp=6)
    currents = [connect(network, layer, edge, ports[edge.source], neuron.a_in) for edge in layer.edges]
    ports[layer.name] = neuron.s_out
    return attach(network, layer, neuron, currents, period, silent, chip)


def attach(
    network: Network,
    layer: Layer,
    neuron: Any,
    currents: Sequence[Any],
    period: int,
    silent: Silence,
    chip: Chip = LOIHI2,
) -> Population:
    """Turn a LIFReset with u as integrator (du = -1, dv = 4096, bias_exp = 6) into the layer's neurons.

    Adds the recurrent synapse, plays the offsets into ``bias_mant`` and lets LIFReset clear u in the step of the first
    possible arrival. ``currents`` are the OutPorts that already feed the neuron, whose threshold is that of ``silent``.
    """
    neuron.proc_params.overwrite("reset_interval", period)
    # LIFReset counts its steps from 1.
    neuron.proc_params.overwrite("reset_offset", (network.first_arrival(layer) + 1) % period)
    if layer.kind == "spiking":
        currents = [*currents, recur(layer, neuron, chip)]
    return play(network, layer, neuron, currents, period, silent)


def play(
    network: Network, layer: Layer, neuron: Any, currents: Sequence[Any], period: int, silent: Silence
) -> Population:
    """Play the offsets into the ``bias_mant`` of neurons that lack nothing else, and record them.

    ``currents`` are all that feed them, the recurrent synapse included.
    """
    from sim.lava.bias_writer import BiasWriter

    spiking = layer.kind == "spiking"
    writer = BiasWriter(
        rows=swap(cycle(network, layer, period, silent if spiking else None)).astype(np.int16),
        start=network.first_arrival(layer),
        bias_mant=neuron.bias_mant,
        register=neuron.u if spiking else neuron.v,
    )
    if not spiking:
        return Population(layer, writer.register_out, None, tuple(currents))
    return Population(layer, writer.register_out, neuron.s_out, tuple(currents), silent.limit(layer))


def watched(layer: Layer, neuron: Any) -> Population:
    """Record neurons that lack nothing; ``bias_mant`` is written with what it holds."""
    from sim.lava.bias_writer import BiasWriter

    spiking = layer.kind == "spiking"
    rows = np.broadcast_to(neuron.bias_mant.init, neuron.bias_mant.shape)[None].astype(np.int16)
    writer = BiasWriter(rows=rows, start=0, bias_mant=neuron.bias_mant, register=neuron.u if spiking else neuron.v)
    return Population(layer, writer.register_out, neuron.s_out if spiking else None)


def recur(layer: Layer, neuron: Any, chip: Chip = LOIHI2) -> Any:
    """Lead a neuron's spikes back to it with weight -theta; returns the synapse's OutPort."""
    from lava.proc.conv.process import Conv
    from lava.proc.sparse.process import Sparse

    if recurs_by_conv(layer):
        recurrence = Conv(
            weight=np.full((layer.shape[0], 1, 1, 1), -layer.threshold),
            groups=layer.shape[0],
            input_shape=neuron.s_out.shape,
        )
        neuron.s_out.connect(recurrence.s_in)
        recurrence.a_out.connect(neuron.a_in)
    else:
        every = np.arange(layer.size)
        weight, exponent = chip.recurrent(layer.threshold) or (0, 0)  # `inexact` has refused None
        recurrence = Sparse(
            weights=_sparse(np.full(layer.size, -weight), every, every, (layer.size, layer.size)), weight_exp=exponent
        )
        flat(neuron.s_out).connect(recurrence.s_in)
        unflat(recurrence.a_out, layer.shape).connect(neuron.a_in)
    return recurrence.a_out


def connect(network: Network, layer: Layer, edge: Edge, source: Any, target: Any) -> Any:
    """Put the edge's stock synapse between an OutPort and an InPort; returns the synapse's OutPort."""
    bits = network.input.bits if edge.source == INPUT else 0
    process = SYNAPSES[type(edge.synapse)](edge.synapse, edge, network.shape_of(edge.source), layer.shape, bits)
    if by_conv(edge):
        source.connect(process.s_in)
        process.a_out.connect(target)
    else:
        flat(source).connect(process.s_in)
        unflat(process.a_out, layer.shape).connect(target)
    return process.a_out


def _dense(synapse: Dense, edge: Edge, source: Shape, shape: Shape, bits: int) -> Any:
    from lava.proc.dense.process import Dense as LavaDense

    weight, exponent = encoded(synapse.weight, edge.exponent) or (synapse.weight, 0)  # `inexact` has refused None
    return LavaDense(weights=weight, weight_exp=exponent, num_message_bits=bits)


def _conv2d(synapse: Conv2d, edge: Edge, source: Shape, shape: Shape, bits: int) -> Any:
    from lava.proc.conv.process import Conv
    from lava.proc.conv.utils import conv_to_sparse
    from lava.proc.sparse.process import Sparse

    # Lava convolves where torch correlates, and orders a kernel (C_out, W, H, C_in).
    kernel = synapse.weight[:, :, ::-1, ::-1].transpose(0, 3, 2, 1).copy()
    stride, padding, dilation, groups = synapse.geometry
    geometry = Geometry(stride[::-1], padding[::-1], dilation[::-1], groups)
    if by_conv(edge):
        return Conv(weight=kernel, input_shape=source[::-1], num_message_bits=bits, **geometry._asdict())
    kernel, exponent = encoded(kernel, edge.exponent) or (kernel, 0)
    to, of, weight = conv_to_sparse(source[::-1], shape[::-1], kernel, *geometry)
    to, of = (np.arange(math.prod(s)).reshape(s).T.ravel()[i] for s, i in ((shape, to), (source, of)))
    matrix = _sparse(weight, to, of, (math.prod(shape), math.prod(source)))
    return Sparse(weights=matrix, weight_exp=exponent, num_message_bits=bits)


#: (synapse, its edge, shape of its source, shape of its layer, bits of a graded message) -> Lava's process
SYNAPSES = SynapseTable[Callable[[Any, Edge, Shape, Shape, int], Any]]({Dense: _dense, Conv2d: _conv2d})


def _sparse(weight: np.ndarray, to: np.ndarray, of: np.ndarray, shape: Shape) -> Any:
    from scipy.sparse import csr_matrix

    return csr_matrix((weight.astype(np.int32), (to, of)), shape)


def flat(port: Any) -> Any:
    """Read a (W, H, C) OutPort in C, H, W order."""
    return port.transpose([2, 1, 0]).flatten() if len(port.shape) == 3 else port


def unflat(port: Any, shape: Shape) -> Any:
    """Read an (N,) OutPort, in C, H, W order, as (W, H, C)."""
    return port.reshape(shape).transpose([2, 1, 0]) if len(shape) == 3 else port


def swap(values: np.ndarray) -> np.ndarray:
    """Exchange (..., C, H, W) and (..., W, H, C); a trailing (N,) stays."""
    return np.swapaxes(values, -1, -3) if values.ndim >= 3 else values
