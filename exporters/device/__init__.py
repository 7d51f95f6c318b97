"""Networks on hardware: samples run on a target, everything is recorded, and compared with the simulation."""

from exporters.device.compare import Comparison, diff, replay
from exporters.device.record import Record
from exporters.device.run import run
from exporters.device.target import Request, Target, Unavailable
from exporters.device.visit import TARGETS

__all__ = ["TARGETS", "Comparison", "Record", "Request", "Target", "Unavailable", "diff", "replay", "run"]
