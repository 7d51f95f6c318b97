"""A board that is none: it answers as the reference does, and fails as boards do, in the way that it is told to.

``FAKE_BOARD`` in the environment names the fault; ``FAKE_BOARD_PACE`` the seconds that a step takes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from exporters.device.target import Answer, Job, Stamp
from sim import reference
from sim.network import Layer, Network
from sim.on_lava.stepped import Placed

CORE = ("NcL2ModelLif", ("Loihi2NeuroCore",), "OheoGulch")
SIMULATED = ("PyLifModelBitAcc", ("CPU",), "HeadNode")


class Board:
    """One chip in partition "oheogulch"."""

    def __init__(self) -> None:
        self.fault = os.environ.get("FAKE_BOARD", "none")
        self.pace = float(os.environ.get("FAKE_BOARD_PACE", "0"))

    def open(self, job: Job) -> Stamp:
        if self.fault == "hangs while it loads":
            time.sleep(1e6)
        self.job, self.network = job, job.network
        if self.fault == "flips one weight":
            self.network = flipped(self.network)
        model, needs, node = SIMULATED if self.fault == "answers from the CPU" else CORE
        placed = tuple(Placed(layer.name, "LIF", model, needs, node) for layer in job.network.layers)
        partition = "kp" if self.fault == "wrong partition" else job.request.partition or "oheogulch"
        return Stamp(placed, (node,), partition, "ncl-og-01")

    def answers(self, at: Callable[[int, int], None]) -> Iterator[Answer]:
        for sample, image in enumerate(self.job.payload):
            trace = reference.run(self.network, image[None])
            for step in range(self.network.steps):
                at(sample, step)
                time.sleep(self.pace)
                if (sample, step) == (1, 3):
                    self.fail()
            answer = Answer(
                {name: trace.spikes[name][0].copy() for name in self.job.read},
                {name: trace.potentials[name][0].astype(np.int32) for name in self.job.read},
            )
            if self.fault == "drops the last spikes":
                for spikes in answer.spikes.values():
                    spikes[-2:] = 0
            if self.fault == "forgets a step":
                answer = replace(answer, spikes={name: spikes[:-1] for name, spikes in answer.spikes.items()})
            if self.fault == "ends early" and sample == 2:
                return
            yield answer

    def fail(self) -> None:
        if self.fault == "hangs":
            # With a child that would outlive it, as Lava's processes would.
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1e6)", os.environ["FAKE_BOARD_MARK"]])
            time.sleep(1e6)
        if self.fault == "dies":
            print("nxcore: lost connection to the board")
            sys.stdout.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "raises":
            raise RuntimeError("Partitioning could not converge")

    def close(self) -> Mapping[str, float]:
        return {"total_power": 0.5, "static_power": 0.25}


def flipped(network: Network) -> Network:
    """The network with one bit of one weight of its first layer turned over: neuron 1, from input 0."""
    first, *others = network.layers
    edge = first.edges[0]
    weight = edge.synapse.weight.copy()
    weight.reshape(len(weight), -1)[1, 0] ^= 1 << 5
    layer: Layer = replace(first, edges=(replace(edge, synapse=replace(edge.synapse, weight=weight)), *first.edges[1:]))
    return replace(network, layers=(layer, *others))
