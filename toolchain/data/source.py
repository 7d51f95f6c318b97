"""What every data set is: samples with numbers, which are read when they are asked for."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from exporters.bundle import digest
from sim.findings import refuse
from sim.network import Shape
from toolchain.graph.channels import spread

PART = 1 << 26  #: bytes that the inputs of a part take
LOOKED_AT = 16  #: samples, from all over the data, whose content tells two data sets apart

Read = tuple[Tensor, np.ndarray | None]  #: inputs float32 (n, *shape), and labels (n, ...), int64 or float64


class Source(ABC):
    """Inputs as the model takes them, and labels where there are any. Pickles are small: they read for themselves."""

    name: str  #: what messages call it
    shape: Shape  #: of one input
    labelled: bool

    @abstractmethod
    def __len__(self) -> int:
        """Count the samples."""

    @abstractmethod
    def read(self, samples: Sequence[int]) -> Read:
        """Read the samples of these rising numbers; :class:`sim.findings.Refused` where one cannot be used."""

    def labels(self, samples: Sequence[int]) -> np.ndarray | None:
        """Return the labels of these samples where they can be had without the inputs, else None."""
        return None

    def part(self, samples: Sequence[int]) -> Source:
        """Return a data set of only these samples, of rising numbers."""
        return Part(self, samples)

    def first(self, samples: int | None) -> Source:
        """Take the first ``samples`` (all where None); :class:`Refused` if there are fewer or none is asked for."""
        if samples is None:
            return self
        if not 1 <= samples <= len(self):
            raise refuse("samples", f"{samples} asked for", f"the data holds 1 to {len(self)}")
        return self.part(range(samples))

    def drawn(self, samples: int | None) -> Source:
        """Take so many samples from all over the data (:func:`toolchain.graph.channels.spread`), or all it has."""
        if samples is not None and samples < 1:
            raise refuse("samples", f"{samples} asked for", "give at least 1")
        if samples is None or samples >= len(self):
            return self
        return self.part(spread(len(self), samples).tolist())

    def parts(self) -> Iterator[range]:
        """Yield the numbers of all samples in runs that take about ``PART`` bytes each."""
        size = rows(self.shape)
        return (range(start, min(start + size, len(self))) for start in range(0, len(self), size))

    def identity(self) -> str:
        """SHA-256 that tells this data set from others: what :meth:`described` says, and the content of a few."""
        x, y = self.read(spread(len(self), LOOKED_AT).tolist())
        few = digest({"x": x.numpy()} | ({} if y is None else {"y": y}))
        return hashlib.sha256(f"{len(self)} {self.shape} {self.described()} {few}".encode()).hexdigest()

    def described(self) -> str:
        """Say what is known of all samples without reading them: checksums, names, sizes; no place."""
        return ""


def rows(shape: Shape) -> int:
    """Count the inputs of a shape that a part holds."""
    return max(1, PART // (4 * int(np.prod(shape))))


@dataclass(frozen=True, eq=False)
class Part(Source):
    """Some samples of a data set."""

    whole: Source
    samples: Sequence[int]  #: their numbers there, rising

    def __post_init__(self) -> None:
        for field in ("name", "shape", "labelled"):
            object.__setattr__(self, field, getattr(self.whole, field))

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, samples: Sequence[int]) -> Read:
        """Read them from the whole."""
        return self.whole.read(_chosen(self.samples, samples))

    def labels(self, samples: Sequence[int]) -> np.ndarray | None:
        """Take those of the whole."""
        return self.whole.labels(_chosen(self.samples, samples))

    def part(self, samples: Sequence[int]) -> Source:
        """Take some of the whole."""
        return Part(self.whole, _chosen(self.samples, samples))

    def described(self) -> str:
        """Say which of what."""
        numbers = digest({"samples": np.fromiter(self.samples, np.int64, len(self.samples))})
        return f"{self.whole.described()} {numbers}"


def _chosen(numbers: Sequence[int], samples: Sequence[int]) -> Sequence[int]:
    if isinstance(samples, range) and samples.step == 1:
        return numbers[samples.start : samples.stop]
    return [numbers[sample] for sample in samples]


class Arrays(Source):
    """Samples in memory."""

    def __init__(self, x: Tensor, y: Any = None, name: str = "x") -> None:
        """Take inputs float32 (N, *shape), as :func:`toolchain.inputs.as_inputs` returns them, and labels (N, ...)."""
        self.x, self.y, self.name = x, None if y is None else np.asarray(y), name
        self.shape, self.labelled = tuple(x.shape[1:]), self.y is not None

    def __len__(self) -> int:
        return len(self.x)

    def read(self, samples: Sequence[int]) -> Read:
        """Take them."""
        chosen: Any = slice(samples.start, samples.stop) if isinstance(samples, range) else list(samples)
        return self.x[chosen], None if self.y is None else self.y[chosen]

    def labels(self, samples: Sequence[int]) -> np.ndarray | None:
        """Take them."""
        return self.read(samples)[1]

    def part(self, samples: Sequence[int]) -> Source:
        """Take some, so that a process gets only these."""
        x, y = self.read(samples)
        return Arrays(x.clone(), y, self.name)

    def identity(self) -> str:
        """SHA-256 of all that it holds."""
        return digest({"x": self.x.numpy()} | ({} if self.y is None else {"y": self.y}))
