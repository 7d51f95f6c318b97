"""Samples in chunks, each through the whole network, on as many threads as torch may use."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from sim.arguments import Count, checked
from sim.chip import LOIHI2, Chip
from sim.fast.convolution import shaped
from sim.fast.population import Population, compiler
from sim.findings import refuse
from sim.fixedpoint import Policy, Registers
from sim.network import INPUT, Layer, Network
from sim.progress import counting
from sim.trace import Trace

CACHED = 1 << 22  #: bytes of a layer's currents, over all steps, that a thread writes before it reads them
ON_GPU = 1 << 28  #: the same where memory, not a cache, is the limit
MOST = 1024  #: samples of a chunk


@checked
def run(
    network: Network,
    payload: np.ndarray,
    *,
    chip: Chip = LOIHI2,
    overflow: Policy = "strict",
    record: bool = True,
    count: bool = False,
    batch: Count | None = None,
    device: str = "cpu",
) -> Trace:
    """Run integer payloads ``(B, *input.shape)``; the result equals :func:`sim.reference.run` bit for bit.

    ``record=False`` keeps only the readout's potentials; ``count`` also counts spikes, into ``Trace.fired``. ``batch``
    samples are computed at a time, by default as many as the processor's cache holds; they are counted as progress.
    ``device`` is where torch computes: "cpu" or a GPU as "cuda", which is as exact. Raises as the reference does, and
    :class:`Refused` where sums beyond 2**53 could not be exact, and for a device that is not there.
    """
    payload = network.payload(payload)
    registers = Registers(network, chip, overflow)
    where = place(device)
    populations = [Population(network, layer, where) for layer in network.layers]
    kept = network.layers if record else (network.readout,)
    spikes = {layer.name: np.zeros(_extent(network, layer, len(payload)), np.uint8) for layer in kept}
    potentials: dict[str, np.ndarray] = {
        one.layer.name: np.zeros(_extent(network, one.layer, len(payload)), _numpy(one.integer))
        for one in populations
        if one.layer in kept
    }
    fired = {layer.name: np.zeros(layer.shape, np.int64) for layer in network.layers if count}
    busy = sum(one.layer.size * len(one.busy) for one in populations)
    on_cpu = where.type == "cpu"
    compiled = on_cpu and compiler(busy * len(payload))
    cached = (CACHED if on_cpu else ON_GPU) // (4 * max(one.size for one in populations) * network.timesteps)
    size = batch or max(1, min(MOST, cached))
    starts = range(0, len(payload), size)

    def chunk(start: int) -> tuple[Registers, dict[str, np.ndarray]]:
        part = slice(start, start + size)
        watch, counts = Registers(network, chip, overflow, start), {}
        outputs: dict[str, Tensor] = {INPUT: torch.from_numpy(payload[part]).to(where)}
        for one in populations:
            layer, seen = one.layer, one.layer.name in spikes
            done = one.run(outputs, watch, record=seen, count=count, compiled=compiled)
            outputs[layer.name] = done.spikes
            if seen:
                spikes[layer.name][part, one.phase :] = shaped(done.spikes, layer.shape).cpu().numpy()
                potentials[layer.name][part] = shaped(done.potentials, layer.shape).cpu().numpy()
            if count:
                counts[layer.name] = shaped(done.counts.sum(0), layer.shape).cpu().numpy()
            for source in {edge.source for edge in layer.edges}:
                if network.last_reader[source] == layer.name:
                    del outputs[source]
        watch.settle()
        return watch, counts

    with counting("running on fast", len(payload)) as advance, _threads(len(starts) if on_cpu else 1) as workers:
        watched = map(chunk, starts) if workers is None else workers.map(chunk, starts)
        for start, (watch, counts) in zip(starts, watched, strict=True):
            registers.add(watch)
            for name, spiked in counts.items():
                fired[name] += spiked
            advance(min(size, len(payload) - start))
    overflowed = frozenset(registers.overflowed)
    return Trace("fast", network, spikes, potentials, registers.overflows, registers.peak, overflowed, fired)


@checked
def paths(network: Network) -> list[dict[str, str]]:
    """Say of every edge how it is computed here, and why: ``layer``, ``source``, ``path`` and ``why``."""
    return [path for layer in network.layers for path in Population(network, layer, torch.device("cpu")).paths]


@checked
def place(name: str) -> torch.device:
    """Return the device of that name, "cpu" or a GPU as "cuda" or "cuda:1"; :class:`Refused` if it is not there."""
    kind = name.partition(":")[0]
    if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
        try:
            return torch.empty(0, device=name).device
        except RuntimeError:
            pass
    raise refuse("device", f"{name!r} is not there", "give 'cpu', or 'cuda' on a machine with a GPU that torch can use")


def _extent(network: Network, layer: Layer, samples: int) -> tuple[int, ...]:
    return (samples, len(network.busy(layer)), *layer.shape)


def _numpy(kind: torch.dtype) -> type:
    return {torch.int32: np.int32, torch.int64: np.int64}[kind]


@contextmanager
def _threads(tasks: int) -> Iterator[ThreadPoolExecutor | None]:
    """Give a pool of as many threads as torch uses, each of which then uses one; None where one is enough."""
    threads = torch.get_num_threads()
    if min(threads, tasks) < 2:
        yield None
        return
    pool = ThreadPoolExecutor(min(threads, tasks), initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
