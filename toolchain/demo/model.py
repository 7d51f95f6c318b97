"""A small CNN for 8x8 digits, written as a user would write one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class DigitsCNN(nn.Module):
    """Three convolutions with batch normalisation and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.pool = nn.AvgPool2d(2)
        self.conv3 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(32 * 2 * 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map digits, float32 (B, 1, 8, 8) in 0..1, to logits (B, 10)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.pool(functional.relu(self.bn2(self.conv2(x))))
        x = self.pool(functional.relu(self.bn3(self.conv3(x))))
        return self.fc(self.dropout(torch.flatten(x, 1)))


def digits_cnn() -> nn.Module:
    """Build the untrained network; :func:`toolchain.demo.load_model` returns the trained one."""
    return DigitsCNN()
