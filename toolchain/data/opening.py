"""From what a user names to a data set."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from sim.arguments import checked
from sim.network import Network, Shape
from toolchain.data.dataset import Items
from toolchain.data.files import open_npy, open_npz, unpacked
from toolchain.data.images import open_images
from toolchain.data.source import Arrays, Source
from toolchain.inputs import load_arrays

WHOLE = 1 << 28  #: bytes of the arrays in an .npz up to which it is read at once, its checksums with it


@checked
def open_data(data: str | Path, shape: Shape | None = None, labels: bool = True) -> Source:
    """Open a data set of inputs (N, *shape), with labels where they are needed or there are any.

    ``data`` is an ``.npz`` with arrays ``x`` and ``y``; an ``.npy`` of inputs alone; a folder of images
    (:func:`toolchain.data.images.open_images`); or ``FILE.py:FACTORY``, which makes a torch ``Dataset``
    (:class:`toolchain.data.dataset.Items`). Of all of these, only a factory is executed. An ``.npz`` of arrays of
    more than ``WHOLE`` bytes is read in parts, and so is everything else. Raises :class:`sim.findings.Refused`.
    """
    path = Path(data)
    if not os.path.lexists(path) and all(str(data).rpartition(":")[::2]):
        return Items(str(data), shape, labels)
    if path.is_dir():
        return open_images(path, shape, labels)
    if path.suffix.lower() == ".npy":
        return open_npy(path, shape, labels)
    if path.is_file() and unpacked(path) > WHOLE:
        return open_npz(path, shape, labels)
    x, y = load_arrays(path, shape, labels)
    return Arrays(x, y, str(data))


def load_for(
    network: Network, data: str | Path, samples: int | None = None, *, labels: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Read the first ``samples`` inputs of the model that ``network`` stands for, before the host puts them in order.

    Of what :func:`open_data` opens; ``network.input.encode`` makes payloads of them.
    """
    source = open_data(data, network.input.model_shape, labels).first(samples)
    x, y = source.read(range(len(source)))
    return x, None if y is None else torch.from_numpy(y)
