"""The algebra of linear maps: chains of steps between two activations become one convolution or one matrix.

A step maps float64 (B, *source) to (B, *shape), both of three dimensions; (N,) is written (N, 1, 1) here, so that a
fully connected layer is a 1x1 convolution. What can be composed exactly is composed exactly; nothing is approximated.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from sim.network import Geometry, Pair, Shape
from toolchain.graph import FloatConv2d, FloatDense, FloatMap

CHUNK = 1 << 22  #: values that :func:`matrix` pushes through a chain at a time


@dataclass(frozen=True, eq=False)
class Convolution:
    """``out[z, i] = sum over c, k of weight[z, c, k] * x[c, i * stride + k * dilation + offset]`` along both axes.

    ``x`` is zero outside its borders and ``shape`` says how many positions there are, so that any padding, equal on
    both sides or not, any crop and any strided selection is a convolution.
    """

    weight: Tensor  #: float64 (C_out, C_in / groups, kH, kW)
    source: Shape
    shape: Shape
    stride: Pair = (1, 1)
    offset: Pair = (0, 0)  #: minus the padding before the first row and column
    dilation: Pair = (1, 1)
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, *source) to (B, *shape)."""
        borders: list[int] = []
        for axis in (1, 0):
            last = (self.shape[axis + 1] - 1) * self.stride[axis] + self._span(axis) + self.offset[axis]
            borders += [-self.offset[axis], last - self.source[axis + 1]]
        # Padding before cropping: a border may crop more than there is.
        x = functional.pad(functional.pad(x, [max(b, 0) for b in borders]), [min(b, 0) for b in borders])
        return functional.conv2d(x, self.weight, None, self.stride, 0, self.dilation, self.groups)

    def _span(self, axis: int) -> int:
        return self.dilation[axis] * (self.weight.shape[axis + 2] - 1) + 1

    def _covers(self) -> bool:
        """Whether the kernel is laid once over the whole source."""
        whole = self.shape[1:] == (1, 1) and self.weight.shape[2:] == self.source[1:]
        return whole and self.offset == (0, 0) and self.dilation == (1, 1)

    def _taps(self, axis: int) -> Tensor:
        return torch.arange(self.weight.shape[axis + 2]) * self.dilation[axis] + self.offset[axis]

    def _reads(self, axis: int) -> Tensor:
        """Every position that is read along ``axis``, also outside the source."""
        outputs = torch.arange(self.shape[axis + 1]) * self.stride[axis]
        return (outputs[:, None] + self._taps(axis)).unique()

    def _spread(self, unit: Pair, groups: int) -> Tensor:
        """Write the weight with ``groups`` (a divisor of its own) and ``unit`` (divides the dilation) as dilation."""
        c_out, c_in, *kernel = self.weight.shape
        steps = [d // u if k > 1 else 1 for d, u, k in zip(self.dilation, unit, kernel, strict=True)]
        size = [(k - 1) * s + 1 for k, s in zip(kernel, steps, strict=True)]
        ratio = self.groups // groups
        member = torch.arange(c_out) // (c_out // self.groups) % ratio
        spread = self.weight.new_zeros(c_out, ratio, c_in, *size)
        spread[torch.arange(c_out), member, :, :: steps[0], :: steps[1]] = self.weight
        return spread.flatten(1, 2)

    def then(self, second: Convolution, limit: int) -> Convolution | None:
        """Compose into one convolution; None where that is not exact or takes more than ``limit`` weights.

        ``second`` sees zeros beyond the borders of its source. The composition sees whatever this map would compute
        there, so it is exact if and only if those positions read nothing but zeros themselves.
        """
        for axis in (0, 1):
            reads = second._reads(axis)
            beyond = reads[(reads < 0) | (reads >= self.shape[axis + 1])]
            below = beyond[:, None] * self.stride[axis] + self._taps(axis)
            if ((below >= 0) & (below < self.source[axis + 1])).any():
                return None
        outer = [d * s for d, s in zip(second.dilation, self.stride, strict=True)]
        steps = zip(outer, second.weight.shape[2:], self.dilation, self.weight.shape[2:], strict=True)
        unit = [math.gcd(o if k > 1 else 0, i if n > 1 else 0) or 1 for o, k, i, n in steps]
        kernel = [((second.weight.shape[a + 2] - 1) * outer[a] + self._span(a) - 1) // unit[a] + 1 for a in (0, 1)]
        groups = math.gcd(self.groups, second.groups)
        count = second.shape[0] * (self.source[0] // groups) * math.prod(kernel)
        if count > max(limit, self.weight.numel(), second.weight.numel()):
            return None
        spacing = _pair(o // u for o, u in zip(outer, unit, strict=True))
        weight = _convolve_kernels(self._spread(_pair(unit), self.groups), self.groups, second, spacing, _pair(kernel))
        stride = _pair(a * b for a, b in zip(self.stride, second.stride, strict=True))
        offset = _pair(o * s + p for o, s, p in zip(second.offset, self.stride, self.offset, strict=True))
        return Convolution(weight, self.source, second.shape, stride, offset, _pair(unit), groups)

    def plus(self, other: Convolution) -> Convolution | None:
        """Add into one convolution; None where strides differ or the sum has more weights than its two parts."""
        if (self.source, self.shape, self.stride) != (other.source, other.shape, other.stride):
            return None
        unit, start, size = [1, 1], [0, 0], [1, 1]
        for a in (0, 1):
            steps = [m.dilation[a] for m in (self, other) if m.weight.shape[a + 2] > 1]
            unit[a] = math.gcd(*steps, self.offset[a] - other.offset[a]) or 1
            start[a] = min(self.offset[a], other.offset[a])
            size[a] = (max(m.offset[a] + m._span(a) for m in (self, other)) - start[a] - 1) // unit[a] + 1
        groups = math.gcd(self.groups, other.groups)
        kernel = (self.shape[0], self.source[0] // groups, *size)
        if math.prod(kernel) > self.weight.numel() + other.weight.numel():
            return None
        weight = self.weight.new_zeros(kernel)
        for m in (self, other):
            part = m._spread(_pair(unit), groups)
            y, x = ((m.offset[a] - start[a]) // unit[a] for a in (0, 1))
            weight[:, :, y : y + part.shape[2], x : x + part.shape[3]] += part
        return replace(self, weight=weight, offset=_pair(start), dilation=_pair(unit), groups=groups)

    def symmetric(self) -> FloatConv2d:
        """Write the map with the padding of ``torch.nn.functional.conv2d``, equal on both sides.

        The kernel grows by as few rows and columns of zeros as that takes; in most cases by none.
        """
        (dilation_y, front_y, back_y), (dilation_x, front_x, back_x) = self._fit(0), self._fit(1)
        dilation = (dilation_y, dilation_x)
        padding = (front_y * dilation_y - self.offset[0], front_x * dilation_x - self.offset[1])
        weight = functional.pad(self._spread(dilation, self.groups), (front_x, back_x, front_y, back_y))
        return FloatConv2d(weight, Geometry(self.stride, padding, dilation, self.groups))

    def _fit(self, axis: int) -> tuple[int, int, int]:
        """Dilation, and zeros before and behind the kernel, so that the padding is equal on both sides and >= 0."""
        n, n_out, stride, offset = self.source[axis + 1], self.shape[axis + 1], self.stride[axis], self.offset[axis]
        slack = n - 2 * offset - self._span(axis)
        for dilation in (self.dilation[axis], 1):
            # conv2d has (slack + dilation * (front - back)) // stride + 1 positions, and n_out are wanted. There may
            # be no such difference of front and back; with dilation 1 there always is.
            low, high = -((slack - (n_out - 1) * stride) // dilation), (n_out * stride - 1 - slack) // dilation
            if low <= high:
                break
        front = max(0, -(-offset // dilation), low)
        return dilation, front, max(front - high, 0)

    def dense(self) -> FloatDense:
        """Write a map onto a single position as a matrix over the whole source."""
        full = self.weight.new_zeros(self.shape[0], *self.source)
        rows, columns = (self._taps(a) for a in (0, 1))
        y, x = ((taps >= 0) & (taps < n) for taps, n in zip((rows, columns), self.source[1:], strict=True))
        full[:, :, rows[y][:, None], columns[x]] = self._spread(self.dilation, 1)[:, :, y][..., x]
        return FloatDense(full.flatten(1))


@dataclass(frozen=True, eq=False)
class Reshape:
    """The same values in the same C, H, W order under another shape."""

    source: Shape
    shape: Shape

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, *source) to (B, *shape)."""
        return x.reshape(-1, *self.shape)


@dataclass(frozen=True, eq=False)
class Selection:
    """Every value is one of the source's or zero: slicing, permuting, padding and concatenating are nothing else."""

    index: Tensor  #: int64 (*shape), positions in the flattened source; -1 for zero
    source: Shape

    @property
    def shape(self) -> Shape:
        """Shape of the selected values."""
        return tuple(self.index.shape)

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, *source) to (B, *shape)."""
        return functional.pad(x.flatten(1), (0, 1))[:, self.index]  # the last value, at -1, is zero

    def convolution(self, limit: int) -> Convolution | None:
        """Write a selection of whole channels and of evenly spaced rows and columns as a convolution of one tap.

        None where it is none, or where mixing the channels takes more than ``limit`` weights.
        """
        if len(self.source) != 3 or len(self.shape) != 3:
            return None
        (c_in, height, width), c_out, used = self.source, self.shape[0], self.index >= 0
        channel = torch.where(used, self.index // (height * width), -1).amax((1, 2))
        row = torch.where(used, self.index // width % height, -1).amax((0, 2))
        column = torch.where(used, self.index % width, -1).amax((0, 1))
        depthwise = c_in == c_out and bool(((channel < 0) | (channel == torch.arange(c_in))).all())
        if not depthwise and c_in * c_out > limit:
            return None
        taps = (channel >= 0)[:, None] if depthwise else functional.one_hot(channel + 1, c_in + 1)[:, 1:]
        (stride_y, offset_y), (stride_x, offset_x) = _spacing(row, height), _spacing(column, width)
        convolution = Convolution(
            taps.double()[..., None, None],
            self.source,
            self.shape,
            (stride_y, stride_x),
            (offset_y, offset_x),
            groups=c_in if depthwise else 1,
        )
        positions = torch.arange(1, math.prod(self.source) + 1, dtype=torch.float64).reshape(1, *self.source)
        return convolution if torch.equal(convolution(positions)[0], (self.index + 1).double()) else None


@dataclass(frozen=True, eq=False)
class Scaling:
    """Every value times a factor of its own."""

    factor: Tensor  #: float64 (*shape)

    @property
    def source(self) -> Shape:
        """Shape of the values."""
        return tuple(self.factor.shape)

    shape = source

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, *source) to (B, *shape)."""
        return x * self.factor


@dataclass(frozen=True, eq=False)
class OtherMap:
    """Any other linear map, known only by what it does."""

    function: Callable[[Tensor], Tensor]
    source: Shape
    shape: Shape

    def __call__(self, x: Tensor) -> Tensor:
        """Map (B, *source) to (B, *shape)."""
        return self.function(x)


Step = Convolution | Reshape | Selection | Scaling | OtherMap
Chain = tuple[Step, ...]  #: applied from left to right; empty for the identity


def _spacing(taken: Tensor, size: int) -> Pair:
    """Stride and offset with which the positions ``taken``, int64 (n,), -1 for none, pass over a source of ``size``."""
    at = (taken >= 0).nonzero().flatten().tolist()
    if not at:
        return 1, 0
    first, last = at[0], at[-1]
    # A single hit in a longer output: every other position has to fall outside the source.
    stride = int(taken[last] - taken[first]) // (last - first) if last > first else size if len(taken) > 1 else 1
    stride = max(1, stride)
    return stride, int(taken[first]) - first * stride


def channelwise(factor: Tensor, shape: Shape) -> Convolution:
    """Multiply every channel of a (C, H, W) map by its factor, float64 (C,)."""
    return Convolution(factor.reshape(-1, 1, 1, 1), shape, shape, groups=shape[0])


def scaling(factor: Tensor) -> Step:
    """Multiply a (C, H, W) map by factors, float64 (C, H, W): channel by channel where those of a channel are equal."""
    if torch.equal(factor, factor[:, :1, :1].expand(factor.shape)):
        return channelwise(factor[:, 0, 0], tuple(factor.shape))
    return Scaling(factor)


def rearrangements(chain: Chain) -> list[tuple[Selection, Chain]]:
    """Every way to write a chain as a rearrangement of its source and the rest, the shortest rearrangement first.

    A rearrangement takes every value once or leaves it out, and adds no zeros. Factors that come before it go behind.
    """
    found: list[tuple[Selection, Chain]] = []
    moved: Selection | None = None
    factor: Tensor | None = None
    for i, step in enumerate(chain):
        if (own := _factors(step)) is not None:
            factor = own if factor is None else factor * own
            continue
        if type(step) is Reshape:
            index = torch.arange(math.prod(step.source)).reshape(step.shape)
        elif type(step) is Selection and int(step.index.min()) >= 0 and len(step.index.unique()) == step.index.numel():
            index = step.index
        else:
            break
        factor = None if factor is None else factor.flatten()[index]
        moved = Selection(
            index if moved is None else moved.index.flatten()[index], moved.source if moved else step.source
        )
        found.append((moved, (*(() if factor is None else (scaling(factor),)), *chain[i + 1 :])))
    return found


def _factors(step: Step) -> Tensor | None:
    """Factors (*shape) of a step that only multiplies each value by one; None for any other."""
    if type(step) is Scaling:
        return step.factor
    if type(step) is not Convolution or step.source != step.shape or step.weight.shape != (step.source[0], 1, 1, 1):
        return None
    apart = step.groups == step.source[0] and (step.stride, step.offset) == ((1, 1), (0, 0))
    return step.weight[:, 0].expand(step.shape) if apart else None


def reduce(chain: Chain, limit: int) -> Chain:
    """Compose all neighbours that can be composed exactly within ``limit`` weights."""
    done: list[Step] = []
    for step in chain:
        while True:
            if done and (merged := _merge(done[-1], step, limit)) is not None:
                done.pop()
                step = merged
            elif type(step) is Selection and (convolution := step.convolution(limit)) is not None:
                step = convolution
            else:
                break
        if not (type(step) is Reshape and step.source == step.shape):
            done.append(step)
    return tuple(done)


def _merge(first: Step, second: Step, limit: int) -> Step | None:
    if type(first) is Convolution and type(second) is Convolution:
        return first.then(second, limit)
    if type(first) is Reshape and type(second) is Reshape:
        return Reshape(first.source, second.shape)
    if type(first) is Reshape and type(second) is Selection:
        return replace(second, source=first.source)
    if type(first) is Selection and type(second) is Reshape:
        return replace(first, index=first.index.reshape(second.shape))
    if type(first) is Selection and type(second) is Selection:
        index = functional.pad(first.index.flatten(), (0, 1), value=-1)[second.index]
        return Selection(index, first.source)
    if type(second) is Convolution and second._covers() and len(first.source) == 3:
        # A kernel over the whole of a rearranged map is one over the whole map before it.
        if type(first) is Reshape and (second.groups == 1 or first.source[0] == second.source[0]):
            kernel = second.weight.reshape(second.shape[0], -1, *first.source[1:])
            return Convolution(kernel, first.source, second.shape, groups=second.groups)
        n_out, n_in = second.shape[0], math.prod(first.source)
        if type(first) is Selection and second.groups == 1 and n_out * n_in <= max(limit, second.weight.numel()):
            weight = second.weight.new_zeros(n_out, n_in + 1)
            weight.index_add_(1, first.index.flatten() % (n_in + 1), second.weight.flatten(1))
            return Convolution(weight[:, :-1].reshape(n_out, *first.source), first.source, second.shape)
    return None


def _convolve_kernels(first: Tensor, first_groups: int, second: Convolution, spacing: Pair, size: Pair) -> Tensor:
    """Weights of ``second`` after ``first``: a copy of ``first`` for every tap of ``second``, ``spacing`` apart.

    Sums over the channels y between the two, only over those that the finer of the two groupings leaves connected.
    """
    channels, finest = len(first), max(first_groups, second.groups)
    if finest % first_groups or finest % second.groups:
        finest = first_groups
        coarse = math.gcd(first_groups, second.groups)
        second = replace(second, weight=second._spread(second.dilation, coarse), groups=coarse)
    share = (second.groups, finest // second.groups, channels // finest)  # g coarse groups, r of the finest in each, y
    inner = first.reshape(*share, -1, *first.shape[2:])
    outer = second.weight.reshape(share[0], -1, *share[1:], *second.weight.shape[2:])
    (height, width), c_out = first.shape[2:], second.shape[0]
    weight = first.new_zeros(c_out, inner.shape[3] * share[1], *size)
    for i, j in itertools.product(*map(range, second.weight.shape[2:])):
        copies = torch.einsum("gzry,gryxhw->gzrxhw", outer[..., i, j], inner).reshape(c_out, -1, height, width)
        top, left = i * spacing[0], j * spacing[1]
        weight[:, :, top : top + height, left : left + width] += copies
    return weight


def matrix(chain: Chain, source: Shape, shape: Shape) -> Tensor:
    """Matrix of a chain, float64 (N_out, N_in): the smaller of the two identities is pushed, or pulled, through it."""
    n_in, n_out = math.prod(source), math.prod(shape)
    out = torch.empty(n_out, n_in, dtype=torch.float64)
    widest = max([n_in, n_out, *(math.prod(step.shape) for step in chain)])
    for part in torch.arange(min(n_in, n_out)).split(max(1, CHUNK // widest)):
        basis = functional.one_hot(part, min(n_in, n_out)).double()
        if n_in <= n_out:
            out[:, part] = _apply(chain, basis.reshape(-1, *source)).flatten(1).T
        else:
            with torch.enable_grad():
                x = torch.zeros(len(part), *source, dtype=torch.float64, requires_grad=True)
                y = _apply(chain, x).flatten(1)
            out[part] = torch.autograd.grad(y, x, basis)[0].flatten(1)
    return out


def _apply(chain: Chain, x: Tensor) -> Tensor:
    for step in chain:
        x = step(x)
    return x


def as_maps(chains: Iterable[Chain], source: Shape, shape: Shape, limit: int) -> list[FloatMap]:
    """Turn the sum of reduced chains from a source of ``source`` into a layer of ``shape`` into parallel maps.

    Shapes are (C, H, W) or (N,). There are as few maps as possible without adding weights, mostly one; their weights
    stay float64. Raises ``ValueError`` when a map takes a matrix of more than ``limit`` weights, unless it is no larger
    than a matrix of the model's own.
    """
    kept: list[Chain] = []
    for chain in chains:
        if not chain and source == shape and len(shape) == 3:
            chain = (channelwise(torch.ones(shape[0], dtype=torch.float64), shape),)
        for i, other in enumerate(kept):
            if (total := _sum(other, chain)) is not None:
                kept[i] = (total,)
                break
        else:
            kept.append(chain)
    maps = [_as_map(chain, source, shape, limit) for chain in kept]
    matrices = [m.weight for m in maps if type(m) is FloatDense]
    if len(matrices) > 1:
        maps = [m for m in maps if type(m) is FloatConv2d] + [FloatDense(torch.stack(matrices).sum(0))]
    return maps


def _sum(a: Chain, b: Chain) -> Convolution | None:
    if len(a) == len(b) == 1 and type(a[0]) is Convolution and type(b[0]) is Convolution:
        return a[0].plus(b[0])
    return None


def _as_map(chain: Chain, source: Shape, shape: Shape, limit: int) -> FloatMap:
    only = chain[0] if len(chain) == 1 and type(chain[0]) is Convolution else None
    if only and (only.source, only.shape) == (source, shape):
        return only.symmetric()
    n_out, n_in = math.prod(shape), math.prod(source)
    own = max((step.weight.numel() for step in chain if type(step) is Convolution), default=0)
    if n_out * n_in > max(limit, own):
        raise ValueError(f"a dense matrix of {n_out:,} x {n_in:,} = {n_out * n_in:,} weights, more than {limit:,}")
    if only and only.shape[1:] == (1, 1):
        return only.dense()
    return FloatDense(matrix(chain, chain[0].source if chain else source, shape))


def _pair(values: Iterable[int]) -> Pair:
    first, second = values
    return first, second
