"""Small jobs whose answers are known: what no public source says of Loihi 2, settled in one visit to a board.

Each asks one question more than those before it, so that the first one that fails names what the chip does otherwise.
``golden.json`` beside this file holds the answers, by job, quantity and layer, as :class:`sim.trace.Trace` has them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from exporters.device.compare import Comparison, compare, replay
from exporters.device.run import run
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network, Synapse
from sim.on_lava.stepped import Schedule
from sim.trace import Trace


@dataclass(frozen=True, eq=False)
class Check:
    """One job of the self-test."""

    name: str
    question: str
    network: Network
    payload: np.ndarray  #: int32 (B, *input.shape)
    schedule: Schedule = "written"


def _numbers(low: int, high: int, *shape: int) -> np.ndarray:
    """Fill an array with numbers of low..high that look drawn and are the same everywhere."""
    count = np.arange(math.prod(shape))
    return (low + (count * 7919 + count**2 * 104729) % (high - low + 1)).reshape(shape)


def _layer(name: str, source: str, synapse: Synapse, source_shape: tuple[int, ...], theta: int, bias: Any) -> Layer:
    shape = synapse.output_shape(source_shape)
    kind: Any = "spiking" if theta else "readout"
    return Layer(name, shape, (Edge(source, synapse),), theta, np.full(shape[0], theta // 2), bias, kind)


def _integrator() -> Network:
    """Two readouts alone: LIF that never fires, whose u must keep 20 steps and whose v must be u + 5."""
    weight = Dense(np.array([[3, -2], [-5, 7]]))
    zeros = np.zeros((20, 2), int)
    return Network(
        Input((2,)), (Layer("out", (2,), (Edge(INPUT, weight),), 0, np.full(2, 5), zeros, "readout"),), timesteps=20
    )


def _dense(schedule: bool) -> Network:
    """Four neurons that are reset by a recurrent synapse of -theta, with biases that change every step or none."""
    bias = [_numbers(-60, 90, 8, n) * schedule for n in (4, 2)]
    return Network(
        Input((3,)),
        (
            _layer("hidden", INPUT, Dense(_numbers(-20, 60, 4, 3)), (3,), 250, bias[0]),
            _layer("out", "hidden", Dense(_numbers(-90, 90, 2, 4)), (4,), 0, bias[1]),
        ),
        timesteps=8,
    )


def _conv() -> Network:
    """Four maps of a convolution of two groups, whose reset is a depthwise one."""
    kernel = Conv2d(_numbers(-30, 60, 4, 1, 3, 3), Geometry(padding=(1, 1), groups=2))
    return Network(
        Input((2, 4, 4)),
        (
            _layer("conv", INPUT, kernel, (2, 4, 4), 400, np.zeros((6, 4), int)),
            _layer("out", "conv", Dense(_numbers(-90, 90, 2, 64)), (4, 4, 4), 0, np.zeros((6, 2), int)),
        ),
        timesteps=6,
    )


def checks() -> tuple[Check, ...]:
    """Return the jobs, in the order in which they build on each other."""
    few = _numbers(0, 9, 2, 3).astype(np.int32)
    written = "are biases in force in the step after the host has written them?"
    return (
        Check(
            "integrator",
            "does u keep its value with du = -1, and is v = u + bias with dv = 4096?",
            _integrator(),
            np.array([[1, 2], [4, -3]], np.int32),
        ),
        Check("reset", "does a recurrent dense synapse of -theta subtract before the next step?", _dense(False), few),
        Check("bias-written", written, _dense(True), few),
        Check("bias-clock", "does a chain of neurons bring biases at the same steps?", _dense(True), few, "clock"),
        Check(
            "convolution",
            "do grouped and recurrent (depthwise) convolutions work?",
            _conv(),
            _numbers(0, 9, 1, 2, 4, 4).astype(np.int32),
        ),
    )


def golden() -> Mapping[str, Any]:
    """Return the known answers: by job, "spikes" or "potentials", and layer, nested lists."""
    found: Mapping[str, Any] = json.loads(files(__package__).joinpath("golden.json").read_text())
    return found


def settle(check: Check, target: str, record: Path, answers: Mapping[str, Any] | None, **options: Any) -> Comparison:
    """Run one job and compare it with its known answer, or with the reference where there is none.

    ``options`` are those of :func:`exporters.device.run`.
    """
    with run(check.network, check.payload, target, record, schedule=check.schedule, **options) as found:
        if answers is None:
            return replay(found)
        layers = [layer.name for layer in check.network.layers]
        spikes, potentials = ({n: np.array(answers[kind][n]) for n in layers} for kind in ("spikes", "potentials"))

        def expected(sample: int) -> Trace:
            one = slice(sample, sample + 1)
            known = [{name: values[one] for name, values in quantity.items()} for quantity in (spikes, potentials)]
            return Trace("golden", check.network, known[0], known[1])

        return compare(check.network, expected, found.trace, found.done, str(record))
