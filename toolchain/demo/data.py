"""The 1,797 handwritten digits that come with scikit-learn, split once and for all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

TRAIN, CALIBRATION = 1000, 256  #: digits of each part; the remaining 541 are the test digits
SEED = 1797


@dataclass(frozen=True, eq=False)
class Digits:
    """Three disjoint, stratified parts: ``x`` float32 (N, 1, 8, 8) in 0..1, ``y`` int64 (N,) in 0..9."""

    train_x: Tensor
    train_y: Tensor
    calibration_x: Tensor
    calibration_y: Tensor
    test_x: Tensor
    test_y: Tensor


def load() -> Digits:
    """Read the digits (grey values 0..16, divided by 16) and split them; no digit is in two parts."""
    digits = load_digits()
    order = _stratified(digits.target)
    x = torch.from_numpy((digits.images[order, None] / 16).astype(np.float32))
    y = torch.from_numpy(digits.target[order].astype(np.int64))
    sizes = [TRAIN, CALIBRATION, len(y) - TRAIN - CALIBRATION]
    return Digits(*(part for pair in zip(x.split(sizes), y.split(sizes), strict=True) for part in pair))


def _stratified(labels: np.ndarray) -> np.ndarray:
    """Shuffle indices so that every prefix holds every class in proportion."""
    # RandomState's stream is frozen by NumPy's compatibility policy (NEP 19). A Generator's, or scikit-learn's split,
    # may change with a release, and digits that the stored checkpoint was trained on would move into the test part.
    order = np.random.RandomState(SEED).permutation(len(labels))
    labels = labels[order]
    quantile = np.empty(len(labels))
    for label in np.unique(labels):
        members = labels == label
        quantile[members] = (np.arange(members.sum()) + 0.5) / members.sum()
    return order[np.argsort(quantile, kind="stable")]
