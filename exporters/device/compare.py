"""Records against a simulation and against each other: the first difference, and what kind it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from exporters.device.record import Record
from sim.arguments import checked
from sim.findings import refuse
from sim.network import Layer, Network
from sim.progress import track
from sim.trace import Difference, Trace, first_difference


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was compared, and what differs."""

    network: Network
    engines: tuple[str, str]
    spikes: int  #: that the first one fired: agreement in silence would prove little
    neuron_steps: int  #: (sample, step, neuron) whose spikes were compared
    differing: tuple[int, ...]  #: samples in which anything differs
    difference: Difference | None  #: the first, in the order of layers, then steps, then samples
    diagnosis: str | None  #: what the differences look like
    outputs: tuple[np.ndarray, np.ndarray]  #: final potentials of the readout on both, su, (n, *shape)

    @property
    def samples(self) -> int:
        """How many samples were compared."""
        return len(self.outputs[0])

    @property
    def summary(self) -> str:
        """The outcome in a sentence."""
        what = f"{self.samples} samples, {self.spikes} spikes, {self.neuron_steps} neuron-steps compared"
        names = " and ".join(self.engines)
        if self.difference is None:
            return f"{names} agree: {what}, 0 differences"
        return f"{names} differ in {len(self.differing)} of {what}; first: {self.difference}; {self.diagnosis}"


@checked
def replay(record: Record, against: str = "reference") -> Comparison:
    """Compare a record with an engine, which runs the record's own network and inputs; no target is needed.

    Registers wrap silently on a chip, so overflows of the engine are not refused: they show as differences.
    """
    from exporters.engines import run  # torch loads where it is needed: a target's process is there seconds earlier

    def expected(sample: int) -> Trace:
        return run(against, record.network, record.payload[sample : sample + 1], overflow="count")

    return compare(record.network, expected, record.trace, record.done, str(record.path))


@checked
def diff(one: Record, other: Record) -> Comparison:
    """Compare two records of the same network and inputs, as far as both go; raises :class:`Refused` for others."""
    if one.job["sha256"] != other.job["sha256"]:
        parts = " and ".join(
            name for name, value in one.job["sha256"].items() if other.job["sha256"].get(name) != value
        )
        raise refuse(str(other.path), f"it is of another {parts} than {one.path}", "give records of the same run")
    names = [f"{record.job['target']} ({record.path.name})" for record in (one, other)]

    def named(record: Record, name: str) -> Callable[[int], Trace]:
        return lambda sample: replace(record.trace(sample), engine=name)

    traces = [named(record, name) for record, name in zip((one, other), names, strict=True)]
    return compare(one.network, traces[0], traces[1], min(one.done, other.done), str(other.path))


def compare(
    network: Network, expected: Callable[[int], Trace], found: Callable[[int], Trace], samples: int, where: str
) -> Comparison:
    """Compare traces of single samples, by number; raises :class:`Refused`, about ``where``, if there are none."""
    if not samples:
        raise refuse(where, "no sample is in it", "run it again")
    order = {layer.name: index for index, layer in enumerate(network.layers)}
    spikes = steps = 0
    differences: list[Difference] = []
    symptoms = _Symptoms(network)
    outputs: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for sample in track("comparing", range(samples)):
        a, b = expected(sample), found(sample)
        for values, trace in zip(outputs, (a, b), strict=True):
            values.append(trace.logits[0, -1])
        spikes += sum(int(fired.sum(dtype=np.int64)) for fired in a.spikes.values())
        steps += sum(b.spikes[name].size for name in a.spikes.keys() & b.spikes.keys())
        if difference := first_difference(a, b):
            differences.append(replace(difference, sample=sample))
            symptoms.note(a, b)
    first = min(differences, key=lambda d: (order[d.layer], d.step, d.quantity != "spike", d.sample), default=None)
    return Comparison(
        network,
        (a.engine, b.engine),
        spikes,
        steps,
        tuple(difference.sample for difference in differences),
        first,
        None if first is None else symptoms.diagnosis(network[first.layer]),
        (np.stack(outputs[0]), np.stack(outputs[1])),
    )


class _Symptoms:
    """Tells by all differences what kind of fault they are of."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._channels: dict[str, set[int]] = {}  #: by layer: in which anything differs
        self._only_lost = True  #: whether nothing differs but spikes that are missing
        self._lost = network.timesteps  #: first window step with a missing spike
        self._last = -1  #: last window step with any spike that was found

    def note(self, expected: Trace, found: Trace) -> None:
        for layer in self._network.layers:
            a, b = (trace.spikes.get(layer.name) for trace in (expected, found))
            potentials = [trace.potentials.get(layer.name) for trace in (expected, found)]
            if a is None or b is None:
                continue
            wrong = a != b
            if potentials[0] is not None and potentials[1] is not None:
                moved = potentials[0] != potentials[1]
                self._only_lost &= not moved.any()
                wrong = wrong | moved
            self._only_lost &= bool((b <= a).all())
            self._channels.setdefault(layer.name, set()).update(np.argwhere(wrong)[:, 2].tolist())
            opens = self._network.phase[layer.name] - self._network.first_arrival(layer)
            missing, fired = (np.argwhere(where)[:, 1] - opens for where in (a > b, b > 0))
            self._lost = min(self._lost, int(missing.min(initial=self._lost)))
            self._last = max(self._last, int(fired.max(initial=self._last)))

    def diagnosis(self, layer: Layer) -> str:
        if self._only_lost and self._last < self._lost:
            lost = self._network.timesteps - self._lost
            return f"all potentials agree, and no spike of the last {lost} steps came back: they were lost on the way"
        channels = sorted(self._channels[layer.name])
        if len(channels) == 1:
            return f"of layer {layer.name} only channel {channels[0]} differs: see its weights, biases and threshold"
        return f"{len(channels)} of {layer.shape[0]} channels of layer {layer.name} differ"
