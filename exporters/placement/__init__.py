"""A network on the cores of a chip, by what has been published: whether it fits, and what an inference takes."""

from exporters.placement.cost import cost, counted
from exporters.placement.fit import fit

__all__ = ["cost", "counted", "fit"]
