"""A value of the model while it is imported: an affine function of the spiking layers found so far."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sim.network import Shape
from toolchain.frontends.linear import Chain, OtherMap, Reshape, Selection, Step
from toolchain.graph import FloatLayer

BATCH = 2  #: samples in every constant: enough to notice an operation that mixes samples

TERMS = 1 << 10  #: of a value; branches that are joined again and again without an activation double them each time

MIXES = "mixes the samples of a batch", "keep the batch as the first dimension and treat every sample alike"

#: A product of two values, and the way out.
PRODUCT = (
    "it multiplies activations by each other",
    "leave the gate or the attention out, or add instead of multiplying, and fine-tune",
)


class Unsupported(Exception):  # noqa: N818 - it becomes a finding as soon as the place is known
    """What an operation cannot do, and the way out."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy


class Unreached:
    """The value of everything that follows an operation without a usable result."""


UNREACHED = Unreached()


@dataclass(frozen=True)
class Term:
    """A chain of linear maps from one source."""

    source: str
    chain: Chain = ()
    origin: int | None = None  #: row of the first convolution or linear layer of the chain


@dataclass(frozen=True, eq=False)
class Affine:
    """A value of the model as the sum of terms plus a constant."""

    constant: Tensor  #: float64 (BATCH, *shape)
    terms: tuple[Term, ...]
    rows: frozenset[int] = frozenset()  #: operations since the sources

    @property
    def shape(self) -> Shape:
        """Shape without the batch dimension."""
        return tuple(self.constant.shape[1:])

    def then(self, step: Step, constant: Tensor) -> Affine:
        """Append a step to every chain; ``constant`` is what the step makes of the constant."""
        terms = tuple(replace(term, chain=(*term.chain, step)) for term in self.terms)
        return replace(self, terms=terms, constant=constant)

    def then_other(self, function: Callable[[Tensor], Tensor], constant: Tensor) -> Affine:
        """Append a linear function without a structure of its own."""
        source, shape = image(self.shape), image(tuple(constant.shape[1:]))

        def on_images(x: Tensor) -> Tensor:
            return function(x.reshape(-1, *self.shape)).reshape(-1, *shape)

        return self.then(OtherMap(on_images, source, shape), constant)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Affine:
        """Append a torch function, linear but for a constant, that may do anything within a sample.

        Raises :class:`Unsupported` where it does not treat all samples alike and apart.
        """
        constant = function(self.constant)
        keep_samples(constant)
        drawn = torch.randn(self.constant.shape, generator=_drawn(), dtype=torch.float64)
        together, *alone = function(drawn), *(function(drawn[[i, i]]) for i in range(BATCH))
        tolerance = 1e-9 * float(together.abs().max()) if together.numel() else 0.0
        for i, one in enumerate(alone):
            if not torch.allclose(one, together[i].expand_as(one), rtol=0, atol=tolerance):
                raise Unsupported(*MIXES)
        offset = function(torch.zeros_like(drawn))

        def linear(x: Tensor) -> Tensor:
            # A forward may have written the number of samples into what it passes, so there are always as many.
            pairs = (torch.cat([x, x[:1]]) if len(x) % BATCH else x).split(BATCH)
            return torch.cat([function(pair) - offset for pair in pairs])[: len(x)]

        return self.then_other(linear, constant)

    def reshaped(self, constant: Tensor) -> Affine:
        """Keep the values in their order, under the shape of ``constant``."""
        if len(constant) != BATCH:
            return self.selected(self.positions().reshape(constant.shape), constant)
        return self.then(Reshape(image(self.shape), image(tuple(constant.shape[1:]))), constant)

    def positions(self) -> Tensor:
        """Return the number of every value of the batch, from 1, as float64 like the values themselves."""
        return torch.arange(1, self.constant.numel() + 1, dtype=torch.float64).reshape(self.constant.shape)

    def selected(self, positions: Tensor, constant: Tensor) -> Affine:
        """Select the values that a rearrangement of :meth:`positions` names, 0 for a zero."""
        for axis, samples in enumerate(positions.shape):
            if samples != BATCH:
                continue
            index, second = positions.movedim(axis, 0).long() - 1
            if torch.equal(torch.where(index < 0, index, index + self.constant[0].numel()), second):
                selection = Selection(index.reshape(image(tuple(index.shape))), image(self.shape))
                return turned(self.then(selection, constant), axis)
        raise Unsupported(*MIXES)


@dataclass(frozen=True, eq=False)
class Turned(Affine):
    """A value whose samples lie along another dimension than the first, until a linear operation turns it back."""

    axis: int = 0  #: of the constant, along which the samples lie

    @property
    def shape(self) -> Shape:
        """Shape without the batch dimension."""
        return tuple(self.constant.movedim(self.axis, 0).shape[1:])

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Affine:
        """Append a torch function of the turned value, and find out where the samples lie after it."""
        first = Affine(self.constant.movedim(self.axis, 0), self.terms, self.rows)
        a, b, zero = (torch.randn(self.constant.shape, generator=_drawn(), dtype=torch.float64) * k for k in (1, 2, 0))
        b = b.flip(tuple(range(b.dim())))
        parts = [function(x) for x in (a + b, a, b, zero)]
        if not all(isinstance(part, Tensor) for part in parts):
            raise Unsupported(*MIXES)
        whole, one, two, offset = parts
        if torch.allclose(whole - offset, one + two - 2 * offset, rtol=1e-9, atol=1e-9):  # linear
            for axis, samples in enumerate(whole.shape):
                if samples == BATCH:
                    with contextlib.suppress(Unsupported):
                        value = first.mapped(partial(self._turning, function, axis))
                        return turned(replace(value, constant=function(self.constant)), axis)
        raise Unsupported(*MIXES)

    def _turning(self, function: Callable[[Tensor], Tensor], axis: int, x: Tensor) -> Tensor:
        """Compute with the samples along the first dimension; the result has them along ``axis``."""
        return function(x.movedim(0, self.axis)).movedim(axis, 0)


def turned(value: Affine, axis: int) -> Affine:
    """Note along which dimension of the constant the samples lie."""
    return value if axis == 0 else Turned(value.constant, value.terms, value.rows, axis)


def _drawn() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def assembled(constant: Tensor, *parts: tuple[Affine, Tensor]) -> Affine:
    """Put parts together: of every value those of its positions that are named where its part belongs, 0 elsewhere."""
    terms = [value.selected(positions, constant).terms for value, positions in parts if positions.any()]
    return Affine(constant, tuple(term for part in terms for term in part))


@dataclass(frozen=True, eq=False)
class Current(Affine):
    """A value on its way into an activation that closes the region; the fields are those of ``FloatLayer``."""

    upper: float | Tensor | None = None
    levels: int | None = None
    slope: float = 0.0
    initial: Literal["half", "shift"] | None = None

    def keeps(self, layer: FloatLayer) -> bool:
        """Whether the activation leaves what ``layer`` emits as it is."""
        if self.levels is None:
            ends = torch.as_tensor(math.inf if layer.upper is None else layer.upper)
            return self.upper is None or bool((torch.as_tensor(self.upper) >= ends).all())
        if (self.levels, 0.0) != (layer.levels, layer.slope) or self.upper is None or layer.upper is None:
            return False  # also what takes steps only in part changes under the same steps
        return bool((torch.as_tensor(self.upper) == torch.as_tensor(layer.upper)).all())


def image(shape: Shape) -> Shape:
    """Write (N,) and (C, L) with three dimensions."""
    return shape + (1,) * (3 - len(shape))


def keep_samples(constant: Tensor) -> None:
    """Raise :class:`Unsupported` for a result that is not (BATCH, ...)."""
    if constant.dim() < 1 or len(constant) != BATCH:
        raise Unsupported(*MIXES)
