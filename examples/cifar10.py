"""Prepare the CIFAR-10 images for ``ann2loihi``: decoded and normalised, as arrays ``x`` and ``y``.

``DATA_FOLDER`` holds ``cifar10_train.npz`` and ``cifar10_test.npz``, each with the concatenated JPEG files ``jpeg``
(uint8), where they begin and end ``offsets`` (int64, n + 1), and ``labels`` (uint8).
"""

from __future__ import annotations

import argparse
import io
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

MEAN = np.array((0.485, 0.456, 0.406), np.float32)  #: red, green, blue
STD = np.array((0.229, 0.224, 0.225), np.float32)


def decode(path: Path, samples: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the first ``samples`` images (all where None) and their labels.

    Returns float32 (n, 3, H, W), RGB in [0, 1] normalised by ``MEAN`` and ``STD``, and int64 (n,). Raises
    ``ValueError`` where the file holds fewer.
    """
    with np.load(path, allow_pickle=False) as arrays:
        jpeg, offsets, labels = arrays["jpeg"], arrays["offsets"], arrays["labels"]
    count = len(labels) if samples is None else samples
    if not 1 <= count <= len(labels):
        raise ValueError(f"{path}: {count} images asked for, the file holds 1 to {len(labels)}")
    images = [
        np.asarray(Image.open(io.BytesIO(jpeg[start:stop])).convert("RGB"))
        for start, stop in track(pairwise(offsets[: count + 1]), f"decoding {path.name}", total=count)
    ]
    x = (np.stack(images).astype(np.float32) / 255 - MEAN) / STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)), labels[:count].astype(np.int64)


def prepare(data: Path, out: Path, calibration: int = 512) -> None:
    """Write ``calibration.npz``, the first images of the training set, and ``test.npz``, the whole test set."""
    out.mkdir(parents=True, exist_ok=True)
    for source, target, samples in (("cifar10_train", "calibration", calibration), ("cifar10_test", "test", None)):
        x, y = decode(data / f"{source}.npz", samples)
        np.savez(out / f"{target}.npz", x=x, y=y)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA_FOLDER")
    parser.add_argument("out", type=Path, metavar="OUT_FOLDER")
    parser.add_argument("--calibration", type=int, default=512, metavar="N", help="training images (512)")
    arguments = parser.parse_args()
    prepare(arguments.data, arguments.out, arguments.calibration)
