"""What an engine did: recorded spikes and potentials, and the first place where two engines differ."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from sim.network import Network


@dataclass(frozen=True, eq=False)
class Trace:
    """Spikes and potentials of some or all layers over their busy steps (``network.busy(layer)``)."""

    engine: str
    network: Network = field(repr=False)
    spikes: dict[str, np.ndarray] = field(repr=False)  #: by layer, uint8 (B, busy steps, *shape)
    #: By layer, su after the reset, integer (B, busy steps, *shape)
    potentials: dict[str, np.ndarray] = field(repr=False)
    overflows: int = 0  #: neuron-steps outside the registers; always 0 under the strict policy
    peak: dict[str, int] = field(default_factory=dict)  #: by layer, largest register magnitude met, su
    overflowed: frozenset[int] = frozenset()  #: samples in which there were overflows
    #: By layer, how often each neuron fired, over all samples, int64 (*shape); empty where it was not counted
    fired: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    @property
    def logits(self) -> np.ndarray:
        """Readout potentials at each window step, su, (B, T, N): row T-1 is the network's answer."""
        return self.potentials[self.network.readout.name][:, -self.network.timesteps :]

    def of_readout(self) -> Trace:
        """Return the trace without what other layers did."""
        name = self.network.readout.name
        return replace(self, spikes={name: self.spikes[name]}, potentials={name: self.potentials[name]})

    def rates(self, layer: str) -> np.ndarray:
        """Spikes per window step of every neuron, float32 (B, *shape), in 0..1."""
        return self.spikes[layer].sum(axis=1, dtype=np.float32) / np.float32(self.network.timesteps)


@dataclass(frozen=True)
class Difference:
    """The earliest disagreement of two traces: layers in topological order, then steps, then samples and neurons."""

    layer: str
    quantity: str  #: "spike" or "potential"
    step: int  #: global step t
    sample: int
    neuron: tuple[int, ...]
    engines: tuple[str, str]
    values: tuple[int, int]

    def __str__(self) -> str:
        return (
            f"layer {self.layer}, step {self.step}, sample {self.sample}, neuron {self.neuron}: {self.quantity} "
            f"{self.values[0]} on {self.engines[0]}, {self.values[1]} on {self.engines[1]}"
        )


def first_difference(a: Trace, b: Trace) -> Difference | None:
    """Find where two traces of the same network first differ, or None.

    Compares every layer that both recorded, which must be at least the readout; raises ValueError otherwise, so
    that agreement can never mean that nothing was compared.
    """
    network = a.network
    if network != b.network or network.readout.name not in a.potentials.keys() & b.potentials.keys():
        raise ValueError(f"{a.engine} and {b.engine} did not record the same network's readout")
    for layer in network.layers:
        candidates = []
        for order, (quantity, left, right) in enumerate(
            (("spike", a.spikes, b.spikes), ("potential", a.potentials, b.potentials))
        ):
            if layer.name not in left or layer.name not in right:
                continue
            x, y = left[layer.name], right[layer.name]
            if x.shape != y.shape:
                raise ValueError(f"{layer.name}: {quantity}s of shape {x.shape} and {y.shape} cannot be compared")
            if np.array_equal(x, y):
                continue
            places = np.argwhere(x != y)
            place = tuple(map(int, places[np.lexsort((*places.T[:1:-1], places[:, 0], places[:, 1]))[0]]))
            step = network.busy(layer)[place[1]]
            candidates.append(
                (
                    step,
                    order,
                    Difference(
                        layer.name,
                        quantity,
                        step,
                        place[0],
                        place[2:],
                        (a.engine, b.engine),
                        (int(x[place]), int(y[place])),
                    ),
                )
            )
        if candidates:
            return min(candidates, key=lambda c: c[:2])[2]
    return None
