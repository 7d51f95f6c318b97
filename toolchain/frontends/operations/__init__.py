"""Every operation that the importer knows of torch: to support one is to add a handler.

A handler has the signature of the torch function that it stands for, with :class:`~toolchain.frontends.affine.Affine`
where that takes activations, and says on the spot which modules, functions and methods it handles.
"""

from toolchain.frontends.operations import (
    activations,
    arithmetic,
    convolutions,
    memory,
    neutral,
    padding,
    pooling,
    products,
    rearrangements,
)
from toolchain.frontends.registry import FUNCTIONS, METHODS, MODULES

__all__ = [
    "FUNCTIONS",
    "METHODS",
    "MODULES",
    "activations",
    "arithmetic",
    "convolutions",
    "memory",
    "neutral",
    "padding",
    "pooling",
    "products",
    "rearrangements",
]
