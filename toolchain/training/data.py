"""Batches: an order for every epoch, and random crops and mirror images, on the device that the samples are on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional

from sim.arguments import checked
from toolchain.training.settings import Augment

Transform = Callable[[Tensor], Tensor]


def split(samples: int, validation: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw the indices of the training and the validation part, int64, both rising."""
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    return order[validation:].sort().values, order[:validation].sort().values


def batches(samples: int, batch: int, seed: int, rank: int = 0, processes: int = 1) -> Iterator[Tensor]:
    """Yield the indices of one process' share of each batch, int64; what does not fill a batch is left out.

    An epoch has at least one batch, so that fewer samples than one are all taken.
    """
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    share = max(1, min(batch, samples) // processes)
    for start in range(0, max(1, samples - share * processes + 1), share * processes):
        yield order[start + rank * share : start + (rank + 1) * share]


def updates(samples: int, batch: int, processes: int = 1) -> int:
    """Count what :func:`batches` yields."""
    whole = max(1, min(batch, samples) // processes) * processes
    return max(1, samples // whole)


def augmentation(kind: Augment, padding: int) -> Callable[[Tensor, torch.Generator], Tensor]:
    """Return what changes a batch (B, C, H, W) or (B, C, L) at random, each sample on its own."""
    if kind == "none":
        return lambda x, _: x
    return lambda x, generator: cropped(x, padding, generator, kind == "crop+flip")


def cropped(x: Tensor, padding: int, generator: torch.Generator, flip: bool = False) -> Tensor:
    """Shift every sample of (B, C, ...) by up to ``padding`` each way, zeros following; with ``flip`` mirror half.

    What torchvision's RandomCrop and RandomHorizontalFlip do to one image, on a whole batch at once; ``generator``
    is on the device of ``x``.
    """

    def drawn(most: int) -> Tensor:
        return torch.randint(most, (len(x),), generator=generator, device=x.device)

    size, padded = x.shape[2:], functional.pad(x, [padding] * 2 * (x.ndim - 2))
    places = [torch.arange(n, device=x.device) + drawn(2 * padding + 1)[:, None] for n in size]
    if flip:
        places[-1] = torch.where(drawn(2)[:, None] == 1, places[-1].flip(1), places[-1])
    sample = torch.arange(len(x), device=x.device)
    if len(size) == 1:
        return padded[sample[:, None], :, places[0]].transpose(1, 2)
    # (B, H, W, C) in memory: channels last, as convolutions like it.
    found = padded.permute(0, 2, 3, 1)[sample[:, None, None], places[0][:, :, None], places[1][:, None]]
    return found.permute(0, 3, 1, 2)


@checked
def one_by_one(transform: Callable[..., Tensor]) -> Transform:
    """Apply a transform of torchvision to every sample of a batch, as each is to be drawn anew."""
    return lambda x: torch.stack([transform(sample) for sample in x])
