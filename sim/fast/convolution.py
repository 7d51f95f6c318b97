"""What arrives over an edge, as a convolution: on the processor's int8 units, or in floating point.

Every synapse is a convolution; all-to-all synapses are one of 1 x 1 over the source's neurons, read in the order in
which they lie in memory. That order is channels last, in and out, so nothing is rearranged between layers.

Sums of integers are exact in floating point as long as every partial sum is representable: float32 below 2**24, float64
below 2**53. The int8 units sum in 32 bits and hand over float32, so they are exact below 2**24 too. Of oneDNN's
convolutions some shapes are wrong, or crash. Only those are used that were not, in thousands of random ones: of bytes
with each torch from 2.3 to 2.13, with AMX and with AVX512-VNNI; of float32 with torch 2.3, AVX2 and AVX512-VNNI.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Layer, Network, Shape, SynapseTable

EXACT = {torch.float32: 1 << 24, torch.float64: 1 << 53}  #: below which floats hold every integer
ZERO_POINT = 128  #: what a payload of 0 is in the unsigned bytes that the int8 units take


class Form(NamedTuple):
    """A synapse as a convolution."""

    weight: np.ndarray  #: su, (C_out, C_in / groups, kH, kW)
    geometry: Geometry
    flat: bool = False  #: whether the source is read as (size, 1, 1), in the order in which it lies in memory


def all_to_all(weight: np.ndarray, source: Shape, target: Shape) -> Form:
    """Write weights (size of ``target``, size of ``source``), in C, H, W order on both sides, as a convolution."""
    rows, columns = in_memory(target), in_memory(source)
    return Form(weight[rows][:, columns][:, :, None, None], Geometry(), flat=True)


def in_memory(shape: Shape) -> np.ndarray:
    """Neurons of a layer, numbered in C, H, W order, as they lie in memory: channels last."""
    numbers = np.arange(math.prod(shape)).reshape(shape)
    return (numbers if len(shape) == 1 else np.moveaxis(numbers, 0, -1)).ravel()


def lined_up(values: Tensor) -> Tensor:
    """View (n, *shape) as (n, neurons in memory); copies what lies otherwise."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1) if values.ndim == 4 else values


def shaped(values: Tensor, shape: Shape) -> Tensor:
    """View (..., neurons in memory) as (..., *shape)."""
    if len(shape) == 1:
        return values
    channels, height, width = shape
    return values.reshape(*values.shape[:-1], height, width, channels).movedim(-1, -3)


#: (synapse, shape of its source, shape of its layer) -> the convolution that it is
CURRENT = SynapseTable[Callable[[Any, Shape, Shape], Form]](
    {
        Dense: lambda synapse, source, target: all_to_all(synapse.weight, source, target),
        Conv2d: lambda synapse, *_: Form(synapse.weight, synapse.geometry),
    }
)


class Convolution:
    """The synapses of one edge, prepared once."""

    def __init__(self, network: Network, layer: Layer, edge: Edge, bound: int, device: torch.device) -> None:
        """Choose how to compute; ``bound`` is that of any partial sum, below 2**53."""
        self._source = network.shape_of(edge.source)
        self._form = CURRENT[type(edge.synapse)](edge.synapse, self._source, layer.shape)
        signed = edge.source == INPUT and network.input.signed
        bits = network.input.bits if edge.source == INPUT else 1
        self.path, self.why = self._chosen(bits, signed, bound, device)
        weight = torch.from_numpy(np.array(self._form.weight))
        self._compute: Callable[[Tensor], Tensor]
        if device.type != "cpu":
            exact = weight.to(device, torch.int8 if self.path == "int8" else getattr(torch, self.path))
            self._compute = by_products(exact, self._form.geometry)
        elif self.path == "int8":
            self._compute = _on_int8_units(weight, self._form.geometry, ZERO_POINT * signed)
        else:
            exact = weight.to(device, getattr(torch, self.path))
            self._compute = _in_floats(exact.contiguous(memory_format=torch.channels_last), self._form.geometry)

    def __call__(self, frames: Tensor) -> Tensor:
        """Currents (n, neurons in memory) that ``frames`` (n, *source) cause, float; integers, exactly."""
        if self._form.flat:
            frames = lined_up(frames)[:, :, None, None]
        return lined_up(self._compute(frames))

    @property
    def elementwise(self) -> np.ndarray | None:
        """Weights by channel, where each neuron reads the one spike in its own place; else None."""
        weight, (stride, padding, _, groups) = self._form.weight, self._form.geometry
        single = weight.shape[1:] == (1, 1, 1) and len(weight) == groups == self._source[0]
        if not single or (stride, padding) != ((1, 1), (0, 0)) or self._form.flat:
            return None
        return weight.reshape(-1)

    def _chosen(self, bits: int, signed: bool, bound: int, device: torch.device) -> tuple[str, str]:
        if bound >= EXACT[torch.float32]:
            return "float64", f"sums of up to {bound} are beyond 24 bits"
        if bits > 8:
            return "float32", f"a payload of {bits} bits"
        if self._form.weight.min() < -128 or self._form.weight.max() > 127:
            return "float32", "weights beyond 8 bits"
        if device.type != "cpu":
            small = bits + (not signed) <= 8
            if self._form.geometry.groups > 1 or not small:
                return "float32", "groups" if small else "unsigned bytes"
            return "int8", "spikes, weights and payload are signed bytes"
        if reason := lacking() or self._untrusted():
            return "float32", reason
        return "int8", "spikes, weights and payload are bytes"

    def _untrusted(self) -> str | None:
        """Say why the int8 units are not trusted with this shape: they were found wrong on others, or to crash."""
        (out, inputs, *_), (_, _, dilation, groups) = self._form.weight.shape, self._form.geometry
        if groups > 1 and not (inputs == 1 and out == groups):
            return "groups of several channels"
        if dilation != (1, 1):
            return "a dilated kernel"
        return None if self._form.flat else _doubtful(self._form.weight.shape, self._form.geometry, self._source[1:])


def _doubtful(weight: Shape, geometry: Geometry, maps: Shape) -> str | None:
    """Say why oneDNN is doubted with weights (C_out, C_in / groups, kH, kW) on maps (H, W), whatever the type.

    A kernel that fits into the padding crashes it on narrow maps. Where currents are one column wide, it takes maps of
    one channel, which lie channels last and first at once, for something else. Floats only where columns are left out.
    """
    (stride, padding, dilation, _), kernel = geometry, weight[2:]
    if padding[0] >= kernel[0] or padding[1] >= kernel[1]:
        return "a kernel that fits into the padding"
    height, width = ((maps[i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2))
    return "currents one column wide" if width == 1 < height else None


def convolved(frames: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """Convolve (n, C_in, H, W) in floats, as ``functional.conv2d`` is meant to."""
    if geometry.stride[1] > 1 and _doubtful(weight.shape, geometry, frames.shape[2:]):
        return by_products(weight, geometry)(frames)
    return functional.conv2d(frames, weight, None, *geometry)


def _in_floats(weight: Tensor, geometry: Geometry) -> Callable[[Tensor], Tensor]:
    def compute(frames: Tensor) -> Tensor:
        frames = frames.to(weight.dtype)
        if frames.shape[2:] == weight.shape[2:] == (1, 1) and geometry == Geometry():
            return functional.linear(frames[:, :, 0, 0], weight[:, :, 0, 0])[:, :, None, None]
        return convolved(frames, weight, geometry)

    return compute


def by_products(weight: Tensor, geometry: Geometry) -> Callable[[Tensor], Tensor]:
    """Convolve by matrix products, in the weight's type; int8 is summed in 32 bits, where there are no groups.

    For GPUs, where cuDNN may transform images and kernels (Winograd, FFT) or round to TF32, and for shapes with which
    nothing else is trusted.
    """
    stride, padding, dilation, groups = geometry
    out, kernel = len(weight), weight.shape[2:]
    whole = weight.dtype == torch.int8
    matrix = weight.permute(2, 3, 1, 0).flatten(0, 2) if whole else weight.reshape(groups, out // groups, -1)
    if whole:  # cuBLAS asks for multiples of 8
        matrix = functional.pad(matrix, (0, -matrix.shape[1] % 8, 0, -matrix.shape[0] % 8))
        matrix = matrix.T.contiguous().T

    def compute(frames: Tensor) -> Tensor:
        sizes = zip(frames.shape[2:], kernel, stride, padding, dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sizes)
        frames = frames.to(weight.dtype)
        if not whole:
            rows = functional.unfold(frames, kernel, dilation, padding, stride).unflatten(1, (groups, -1))
            with _all_digits():
                return (matrix @ rows).reshape(len(frames), out, height, width)
        images = (
            functional.pad(frames, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1).contiguous()
        )
        n, y, x, c = images.stride()
        steps = (n, y * stride[0], x * stride[1], y * dilation[0], x * dilation[1], c)
        patches = images.as_strided((len(frames), height, width, *kernel, frames.shape[1]), steps)
        rows = patches.reshape(len(frames) * height * width, -1)
        number = len(rows)
        rows = functional.pad(rows, (0, matrix.shape[0] - rows.shape[1], 0, max(0, 17 - number)))
        found = torch._int_mm(rows, matrix)[:number, :out]
        return found.reshape(len(frames), height, width, out).permute(0, 3, 1, 2)

    return compute


@contextmanager
def _all_digits() -> Iterator[None]:
    """Have GPUs multiply float32 as such, whatever was asked for."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _on_int8_units(weight: Tensor, geometry: Geometry, zero: int) -> Callable[[Tensor], Tensor]:
    """Convolve unsigned by signed bytes with oneDNN, as torch's quantised inference calls it.

    Spikes are taken as they lie, channels last.
    """
    stride, padding, dilation = map(list, geometry[:3])
    groups, ones, zeros = geometry.groups, torch.ones(len(weight)), torch.zeros(len(weight), dtype=torch.int32)
    packed = torch.ops.onednn.qconv_prepack(
        weight.to(torch.int8), ones, 1.0, zero, stride, padding, dilation, groups, None
    )
    call = torch.ops.onednn.qconv2d_pointwise
    after: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")  # scale, zero point, type, nothing fused

    def compute(frames: Tensor) -> Tensor:
        if frames.dtype != torch.uint8:
            frames = (frames + zero).to(torch.uint8).contiguous(memory_format=torch.channels_last)
        found: Tensor = call(frames, 1.0, zero, packed, ones, zeros, None, stride, padding, dilation, groups, *after)
        return found

    return compute


@cache
def lacking() -> str | None:
    """Say why the int8 units cannot be used here, or None: tried on small convolutions, against 64-bit integers."""
    rng = np.random.default_rng(0)
    for channels, groups, zero, most in ((32, 1, 0, 1), (16, 16, 0, 255), (3, 1, ZERO_POINT, 255)):
        weight = torch.from_numpy(rng.choice([-128, 127, 3], (16, channels // groups, 3, 3)))
        frames = torch.from_numpy(rng.choice([0, most], (2, channels, 5, 6)))
        geometry = Geometry((2, 1), (1, 1), (1, 1), groups)
        expected = functional.conv2d((frames - zero).double(), weight.double(), None, *geometry)
        try:
            bytes_ = frames.to(torch.uint8).contiguous(memory_format=torch.channels_last)
            found = _on_int8_units(weight, geometry, zero)(bytes_)
        except Exception as error:  # whatever an operator of another version, or on another processor, raises
            return f"torch {torch.__version__} has no int8 convolution here ({type(error).__name__})"
        if not torch.equal(found.double(), expected):
            return "this processor's int8 convolutions are not exact"
    return None
