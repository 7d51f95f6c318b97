"""What an inference takes: counts, exact for the samples, and what published figures make of them.

A synaptic event is a spike, or a payload other than 0, that goes through one synapse; weights that are 0 count, because
the chip keeps them. A message is a spike on its way to one core. Neurons of the stock form also send each of their
spikes to themselves, for the reset: energies and times contain these messages and events, the counts do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from exporters.placement.fit import Placed, known, place
from exporters.placement.load import loads
from exporters.placement.published import LOIHI1_EVENTS, LOIHI2, STATIC, STEP, Cores, Events
from exporters.report import Cost, CostRow, Estimate
from sim.arguments import checked
from sim.findings import refuse
from sim.network import INPUT, Conv2d, Dense, Layer, Network, Shape, SynapseTable
from sim.stock import legal_period

EventKind = Literal["conv", "dense"]  #: of a synaptic event, for which figures are published
#: Along channels, rows, columns: how many neurons of each reader's tile one of the source reaches, int64 (n, tiles)
Reach = Sequence[np.ndarray]


@checked
def cost(network: Network, payload: Any, chip: str = "loihi2", *, device: str = "cpu") -> Cost:
    """Run payloads (B, *input.shape), at least one, on the fast engine and count; see :func:`counted`.

    ``device`` is where it computes. Raises :class:`Refused` as the engine does, and for no samples or an unknown chip.
    """
    from sim import fast  # it needs torch, which nothing else here does

    known(chip)
    payload = network.payload(payload)
    if not len(payload):
        raise refuse("payload", "no samples", "give at least one")
    fired = fast.run(network, payload, overflow="count", record=False, count=True, device=device).fired
    return counted(network, {name: spikes[None] for name, spikes in fired.items()}, payload, chip)


def counted(network: Network, spikes: Mapping[str, np.ndarray], payload: np.ndarray, chip: str = "loihi2") -> Cost:
    """Count what ``spikes``, by spiking layer (B, *shape), or (1, *shape) for all, and payloads (B, ...) cause."""
    cores, samples = known(chip), len(payload)
    placed = place(loads(network, cores), cores)
    sent = {INPUT: (payload != 0).sum(axis=0, dtype=np.int64) * network.timesteps}
    sent |= {layer.name: _sent(layer, spikes) for layer in network.layers}
    work = {layer.name: _Work.of(placed[layer.name]) for layer in network.layers}
    for layer in network.layers:
        for edge in network.on_chip(layer):
            kind, reached = REACH[type(edge.synapse)]
            reach = reached(edge.synapse, network.shape_of(edge.source), placed[layer.name])
            arrived = work[layer.name]
            arrived.events[kind] += _through(sent[edge.source], reach)
            touched = tuple((axis > 0).astype(np.int64) for axis in reach)
            arrived.received += _through(sent[edge.source], touched)
            if edge.source != INPUT:
                work[edge.source].send(placed[edge.source], placed[layer.name], sent[edge.source], touched, cores)
        work[layer.name].fired += _by_core(sent[layer.name], placed[layer.name])
    rows = tuple(_row(network, layer, work[layer.name], samples) for layer in network.layers)
    chips = -(-sum(place.cores for place in placed.values()) // cores.per_chip)
    between = sum(done.between_chips for done in work.values())
    return Cost(
        samples=samples,
        steps=network.steps,
        period=interval(network),
        spikes=sum(row.spikes for row in rows),
        payloads=_brought(network, payload),
        synaptic_events=sum(row.synaptic_events for row in rows),
        neuron_updates=sum(row.neuron_updates for row in rows),
        messages=sum(row.messages for row in rows),
        hops=sum(row.hops for row in rows),
        between_chips=between / samples,
        layers=rows,
        estimates=_estimates(network, list(work.values()), samples, chips, between, LOIHI1_EVENTS),
    )


@dataclass(eq=False)
class _Work:
    """What the cores of a layer do, summed over the samples; by core int64 (channels, rows, columns)."""

    neurons: int  #: in its fullest core
    events: dict[EventKind, np.ndarray]  #: synaptic ones
    received: np.ndarray  #: messages
    fired: np.ndarray  #: spikes
    sent: np.ndarray  #: messages
    east_west: int = 0  #: hops
    north_south: int = 0
    between_chips: int = 0  #: messages

    @classmethod
    def of(cls, placed: Placed) -> _Work:
        conv, dense, *others = np.zeros((5, *placed.grid), np.int64)
        return cls(placed.tile.neurons, {"conv": conv, "dense": dense}, *others)

    def send(self, source: Placed, reader: Placed, sent: np.ndarray, touched: Reach, cores: Cores) -> None:
        """Add the messages from every core to every core of a reader, and their hops by the shortest way."""
        theirs = _places(reader, cores)
        for core, mine in zip(np.ndindex(source.grid), _places(source, cores), strict=True):
            block = _block(source, core)
            extents = source.load.extent
            messages = _through(
                sent.reshape(extents)[block], tuple(axis[part] for axis, part in zip(touched, block, strict=True))
            ).ravel()
            here = theirs[:, 0] == mine[0]
            self.sent[core] += messages.sum()
            self.between_chips += int(messages[~here].sum())
            self.east_west += int((messages * abs(theirs[:, 1] - mine[1]))[here].sum())
            self.north_south += int((messages * abs(theirs[:, 2] - mine[2]))[here].sum())


def interval(network: Network) -> int:
    """Return the steps between samples that follow each other: those that were asked for, or the fewest."""
    return network.period if network.reset_interval is None else network.reset_interval


def _brought(network: Network, payload: np.ndarray) -> float:
    """Count what the host sends a sample: payloads other than 0, or biases at every step of the window."""
    readers = [layer for layer in network.layers if len(network.on_chip(layer)) < len(layer.edges)]
    if readers:
        return float(network.timesteps * sum(layer.size for layer in readers))
    return network.timesteps * int(np.count_nonzero(payload)) / len(payload)


def _sent(layer: Layer, spikes: Mapping[str, np.ndarray]) -> np.ndarray:
    if layer.kind == "readout":
        return np.zeros(layer.shape, np.int64)
    return np.asarray(spikes[layer.name]).sum(axis=0, dtype=np.int64)


def _extent(shape: Shape) -> tuple[int, int, int]:
    return (shape[0], 1, 1) if len(shape) == 1 else (shape[0], shape[1], shape[2])


def _through(sent: np.ndarray, reach: Reach) -> np.ndarray:
    """Sum (C, H, W) or (N,) along a reach: int64 by tile of the reader."""
    channels, rows, columns = reach
    total = sent.reshape(len(channels), len(rows), len(columns)) @ columns
    total = np.einsum("crx,ry->cyx", total, rows)
    return np.einsum("cyx,cd->dyx", total, channels)


def _block(placed: Placed, core: tuple[int, ...]) -> tuple[slice, slice, slice]:
    channels, rows, columns = (
        slice(index * size, (index + 1) * size)
        for index, size in zip(core, (placed.tile.channels, placed.tile.rows, placed.tile.columns), strict=True)
    )
    return channels, rows, columns


def _by_core(values: np.ndarray, placed: Placed) -> np.ndarray:
    values = values.reshape(placed.load.extent)
    found = [values[_block(placed, core)].sum() for core in np.ndindex(placed.grid)]
    return np.array(found, np.int64).reshape(placed.grid)


def _places(placed: Placed, cores: Cores) -> np.ndarray:
    """Chip, and place from west to east and from south to north, of every core of a layer: int64 (cores, 3).

    Cores are filled in the order of their numbers, tile after tile, from south to north.
    """
    number = np.arange(placed.first, placed.first + placed.cores)
    chip, core = np.divmod(number, cores.per_chip)
    _, north, tile = cores.mesh
    east, up = np.divmod(core // tile, north)
    return np.stack([chip, east, up], axis=1)


def _dense_reach(synapse: Dense, source: Shape, placed: Placed) -> Reach:
    sizes = (placed.tile.channels, placed.tile.rows, placed.tile.columns)
    parts = [
        np.diff(np.minimum(np.arange(tiles + 1) * size, whole))
        for whole, size, tiles in zip(placed.load.extent, sizes, placed.grid, strict=True)
    ]
    channels, rows, columns = (
        np.broadcast_to(part, (length, len(part))) for length, part in zip(_extent(source), parts, strict=True)
    )
    return channels, rows, columns


def _conv_reach(synapse: Conv2d, source: Shape, placed: Placed) -> Reach:
    stride, padding, dilation, groups = synapse.geometry
    inputs, *sizes = _extent(source)
    outputs, *targets = placed.load.extent
    each, group = inputs // groups, outputs // groups
    channels = np.arange(inputs)[:, None] // each == np.arange(outputs)[None, :] // group
    axes = [channels]
    for axis, (size, target) in enumerate(zip(sizes, targets, strict=True)):
        reached = np.zeros((size, target), bool)
        for tap in range(synapse.weight.shape[2 + axis]):
            place = np.arange(target) * stride[axis] - padding[axis] + tap * dilation[axis]
            inside = (place >= 0) & (place < size)
            reached[place[inside], np.flatnonzero(inside)] = True
        axes.append(reached)
    sides = (placed.tile.channels, placed.tile.rows, placed.tile.columns)
    channels, rows, columns = (
        np.add.reduceat(reached.astype(np.int64), np.arange(0, reached.shape[1], side), axis=1)
        for reached, side in zip(axes, sides, strict=True)
    )
    return channels, rows, columns


#: The kind of its events, and (synapse, shape of its source, its reader) -> what each neuron of the source reaches.
REACH = SynapseTable[tuple[EventKind, Callable[[Any, Shape, Placed], Reach]]](
    {Dense: ("dense", _dense_reach), Conv2d: ("conv", _conv_reach)}
)


def _row(network: Network, layer: Layer, work: _Work, samples: int) -> CostRow:
    return CostRow(
        name=layer.name,
        spikes=int(work.fired.sum()) / samples,
        synaptic_events=int(sum(part.sum() for part in work.events.values())) / samples,
        neuron_updates=layer.size * len(network.busy(layer)),
        messages=int(work.sent.sum()) / samples,
        hops=(work.east_west + work.north_south) / samples,
    )


def _estimates(
    network: Network, work: list[_Work], samples: int, chips: int, between: int, events: Events
) -> tuple[Estimate, ...]:
    """Say what an inference takes in the units of published figures, from what ``samples`` inferences did."""
    seconds = [1e-6 * network.steps * step for step in (STEP.low, STEP.high)]
    low, high = _energy(network, work, samples, events)
    quickest, slowest = _time(network, work, samples, events)
    without = ", without what passes between chips" if between else ""
    between_samples = legal_period(network, "stock")  # which is what runs on a chip

    def rate(step: float) -> float:
        return 1e6 / (between_samples * step)

    return (
        Estimate(
            quantity="time to the answer",
            unit="ms",
            low=1e3 * seconds[0],
            high=1e3 * seconds[1],
            chip=STEP.chip,
            source=f"{network.steps} steps as measured of other networks: {STEP.source}",
        ),
        Estimate(
            quantity="samples a second, in a stream",
            unit="1/s",
            low=rate(STEP.high),
            high=rate(STEP.low),
            chip=STEP.chip,
            source=f"{between_samples} steps each as measured of other networks: {STEP.source}",
        ),
        Estimate(
            quantity="time to the answer, by events",
            unit="ms",
            low=quickest,
            high=slowest,
            chip=events.chip,
            source=f"{events.source}; on cores of {LOIHI2.name}{without}",
        ),
        Estimate(
            quantity="dynamic energy, by events",
            unit="uJ",
            low=low,
            high=high,
            chip=events.chip,
            source=f"{events.source}; on cores of {LOIHI2.name}{without}",
        ),
        Estimate(
            quantity="dynamic energy", unit="uJ", low=None, high=None, chip=LOIHI2.name, source="nothing is published"
        ),
        Estimate(
            quantity=f"static energy of {chips} chip{'s' * (chips > 1)}",
            unit="uJ",
            low=1e6 * chips * STATIC.low * seconds[0],
            high=1e6 * chips * STATIC.high * seconds[1],
            chip=STATIC.chip,
            source=f"power: {STATIC.source}; time as above",
        ),
    )


def _energy(network: Network, work: list[_Work], samples: int, events: Events) -> tuple[float, float]:
    """Return uJ per sample. Low: neurons are looked at while busy; high: all are updated at every step."""
    updates = sum(layer.size * len(network.busy(layer)) for layer in network.layers)
    active = network.steps * sum(layer.size for layer in network.layers)
    spent = sum(
        float(done.fired.sum()) * (events.spike + events.message + events.sparse)  # the last two for its reset
        + float(done.events["conv"].sum()) * events.conv
        + float(done.events["dense"].sum()) * events.dense
        + float(done.sent.sum()) * events.message
        + done.east_west * events.hop_east_west
        + done.north_south * events.hop_north_south
        for done in work
    )
    share = spent / samples
    return 1e-6 * (updates * events.access + share), 1e-6 * (active * (events.access + events.update) + share)


def _time(network: Network, work: list[_Work], samples: int, events: Events) -> tuple[float, float]:
    """Return ms per sample. Low: the busiest core is busiest at every step; high: every layer's is in turn."""
    busy = []
    for done in work:
        by_core = (
            done.fired * (events.spike_time + events.send_time + events.receive_time + events.sparse_time)
            + done.events["conv"] * events.conv_time
            + done.events["dense"] * events.dense_time
            + done.sent * events.send_time
            + done.received * events.receive_time
        )
        busy.append(float(by_core.max()) / samples)
    fullest = max(done.neurons for done in work) * events.neuron_time
    steps, (least, most) = network.steps, events.barrier
    low = steps * least + max(
        time + steps * done.neurons * events.neuron_time for time, done in zip(busy, work, strict=True)
    )
    return 1e-6 * low, 1e-6 * (steps * (fullest + most) + sum(busy))
