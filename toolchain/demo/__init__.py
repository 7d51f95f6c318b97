"""A trained network and its data, small enough to convert and verify in a minute, without a download."""

from __future__ import annotations

from importlib.resources import files

import torch
from torch import nn

from toolchain.demo import data
from toolchain.demo.model import digits_cnn

__all__ = ["data", "digits_cnn", "load_model"]


def load_model() -> nn.Module:
    """Return the trained digits CNN in eval mode; ``digits_cnn.json`` beside it says how it was trained."""
    model = digits_cnn()
    with (files(__name__) / "digits_cnn.pt").open("rb") as file:
        model.load_state_dict(torch.load(file, weights_only=True))
    return model.eval()
