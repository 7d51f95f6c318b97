"""Training: the source network learns with the error that the conversion will bring.

Names are loaded when they are first used, so that the command line's options cost no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolchain.training.data import one_by_one
    from toolchain.training.noise import Residual, Spiking, induce, measure
    from toolchain.training.settings import Settings
    from toolchain.training.trainer import Epoch, Trained, train

__all__ = ["Epoch", "Residual", "Settings", "Spiking", "Trained", "induce", "measure", "one_by_one", "train"]

_HOMES = {
    "data": ("one_by_one",),
    "noise": ("Residual", "Spiking", "induce", "measure"),
    "settings": ("Settings",),
    "trainer": ("Epoch", "Trained", "train"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
