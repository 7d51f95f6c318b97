"""Networks on Lava's own CPU runtime, in two forms that share no step of the dynamics with the other engines."""

from sim.on_lava.engine import run
from sim.stock import Form

__all__ = ["Form", "run"]
