"""A process that plays a bias schedule into a stock neuron and reports the neuron's register."""

from __future__ import annotations

from typing import Any

import numpy as np
from lava.magma.core.decorator import implements, requires, tag
from lava.magma.core.model.py.model import PyLoihiProcessModel
from lava.magma.core.model.py.ports import PyOutPort, PyRefPort
from lava.magma.core.model.py.type import LavaPyType
from lava.magma.core.process.ports.ports import OutPort, RefPort
from lava.magma.core.process.process import AbstractProcess
from lava.magma.core.process.variable import Var
from lava.magma.core.resources import CPU
from lava.magma.core.sync.protocols.loihi_protocol import LoihiProtocol


class BiasWriter(AbstractProcess):
    """Rewrites ``bias_mant`` before every step: ``rows[0]`` is in force in step ``start`` (from 0), then on and around.

    The first step's row goes into ``bias_mant.init``, because a RefPort acts after a step. What ``register`` then holds
    is sent.

    Port ``register_out``: int32, the shape of ``register``.
    """

    def __init__(self, *, rows: np.ndarray, start: int, bias_mant: Var, register: Var, **kwargs: Any) -> None:
        """Build from ``rows`` int16 (P, *shape) and two Vars of one neuron process."""
        super().__init__(start=start, **kwargs)
        bias_mant.init = rows[-start % len(rows)]
        self.rows = Var(shape=rows.shape, init=rows)
        self.bias_mant = RefPort(bias_mant.shape)
        self.bias_mant.connect_var(bias_mant)
        self.register = RefPort(register.shape)
        self.register.connect_var(register)
        self.register_out = OutPort(register.shape)


@implements(proc=BiasWriter, protocol=LoihiProtocol)
@requires(CPU)
@tag("fixed_pt")
class PyBiasWriterModel(PyLoihiProcessModel):
    """The writer on a CPU."""

    rows: np.ndarray = LavaPyType(np.ndarray, np.int32)
    bias_mant: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32)
    register: PyRefPort = LavaPyType(PyRefPort.VEC_DENSE, np.int32)
    register_out: PyOutPort = LavaPyType(PyOutPort.VEC_DENSE, np.int32)

    def post_guard(self) -> bool:
        """Ask for the management phase after every step."""
        return True

    def run_post_mgmt(self) -> None:
        """Read what the step left, then set what the next one adds; ``wait`` until it is in force."""
        self.register_out.send(self.register.read())
        self.bias_mant.write(self.rows[(self.time_step - self.proc_params["start"]) % len(self.rows)])
        self.bias_mant.wait()
