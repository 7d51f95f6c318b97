"""Data sets: whatever holds inputs and labels, read in parts, so that memory does not grow with what there is."""

from toolchain.data.calibration import Calibration, gather
from toolchain.data.opening import load_for, open_data
from toolchain.data.source import Arrays, Source

__all__ = ["Arrays", "Calibration", "Source", "gather", "load_for", "open_data"]
