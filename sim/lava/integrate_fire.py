"""Integrate-and-fire with reset by subtraction as Lava processes, carrying their own schedule.

Registers hold synaptic units * 2**fraction_bits, as Lava's LIF does. They are as wide as Lava's channels (64 bit), so
that whoever records ``v_out`` sees the true value of a potential that leaves the chip's registers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyInPort, PyOutPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import InPort, OutPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class Integrate(AbstractProcess):
    """Perfect integrators: the readout.

    Every ``period`` steps, first in the step ``start`` (counted from 0), the potential returns to ``v0`` before the
    current of that step is added. ``holdoff`` steps later the firing window opens: ``bias[tau]`` is added in its
    step tau. Before ``start`` runs the end of a cycle, as if a sample without input had gone before.

    Ports: ``a_in`` int32 ``shape``, su; ``v_out`` int64 ``shape``, the potential after the step, registers.
    """

    def __init__(
        self,
        *,
        shape: tuple[int, ...],
        v0: np.ndarray,
        bias: np.ndarray,
        start: int,
        holdoff: int,
        period: int,
        fraction_bits: int = 6,
        **kwargs: Any,
    ) -> None:
        """Build from ``v0`` (broadcasts to ``shape``), su, and ``bias`` (T, ...; each row broadcasts), su."""
        super().__init__(start=start, holdoff=holdoff, period=period, fraction_bits=fraction_bits, **kwargs)
        initial = np.broadcast_to(v0, shape).astype(np.int64)
        self.a_in = InPort(shape=shape)
        self.v_out = OutPort(shape=shape)
        self.v = Var(shape=shape, init=initial << fraction_bits)
        self.v0 = Var(shape=shape, init=initial)
        self.bias = Var(shape=bias.shape, init=bias)


class IntegrateFire(Integrate):
    """:class:`Integrate` that spikes, inside the firing window only, where its potential exceeds ``vth``.

    The comparison is strict, as everywhere in Lava: a threshold theta is ``vth = theta - 1``, and a spike subtracts
    ``vth + 1``. Port ``s_out``: int32 ``shape``, 0 or 1.
    """

    def __init__(self, *, shape: tuple[int, ...], vth: int, **kwargs: Any) -> None:
        """Build from ``vth``, su, and the parameters of :class:`Integrate`."""
        super().__init__(shape=shape, **kwargs)
        self.s_out = OutPort(shape=shape)
        self.vth = Var(shape=(1,), init=vth)


class AbstractPyIntegrateModel(PyLoihiProcessModel):
    """Clear, integrate, add the bias."""

    a_in: PyInPort = LavaPyType(PyInPort.VEC_DENSE, np.int32)
    v_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int64)
    v: np.ndarray = LavaPyType(np.ndarray, np.int64)
    v0: np.ndarray = LavaPyType(np.ndarray, np.int64)
    bias: np.ndarray = LavaPyType(np.ndarray, np.int64)

    def integrate(self) -> bool:
        """Advance the potentials by one step and tell whether the firing window is open."""
        current = self.a_in.recv().astype(np.int64)
        shift = self.proc_params["fraction_bits"]
        cycle = (self.time_step - 1 - self.proc_params["start"]) % self.proc_params["period"]
        if cycle == 0:
            self.v[:] = self.v0 << shift
        self.v += current << shift
        tau = cycle - self.proc_params["holdoff"]
        window = 0 <= tau < len(self.bias)
        if window:
            self.v += self.bias[tau] << shift
        return window


@implements(proc=Integrate, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyIntegrateModel(AbstractPyIntegrateModel):
    """The readout on a CPU."""

    def run_spk(self) -> None:
        """Run one step."""
        self.integrate()
        self.v_out.send(self.v)


@implements(proc=IntegrateFire, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyIntegrateFireModel(AbstractPyIntegrateModel):
    """The spiking population on a CPU."""

    s_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)
    vth: np.ndarray = LavaPyType(np.ndarray, np.int64)

    def run_spk(self) -> None:
        """Run one step."""
        window = self.integrate()
        shift = self.proc_params["fraction_bits"]
        spikes = (self.v > self.vth << shift) & window
        self.v -= spikes * ((self.vth + 1) << shift)
        self.s_out.send(spikes.astype(np.int32))
        self.v_out.send(self.v)
