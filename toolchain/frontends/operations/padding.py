"""Padding, scaling up and down, and taking images apart: every value is one of the input's, or a mean of some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from toolchain.frontends.affine import Affine
from toolchain.frontends.operations.rearrangements import selecting
from toolchain.frontends.registry import handles


def _by(mode: str) -> Any:
    return lambda m: (m.padding, mode, getattr(m, "value", None))


@handles(
    modules={
        **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), _by("constant")),
        **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), _by("constant")),
        **dict.fromkeys((nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d), _by("reflect")),
        **dict.fromkeys((nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d), _by("replicate")),
        **dict.fromkeys((nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d), _by("circular")),
    },
    functions=(functional.pad, torch.constant_pad_nd),
)
def pad(input: Affine, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Affine:
    """Pad as torch does."""
    if not isinstance(mode, str):  # torch.constant_pad_nd takes the value there
        mode, value = "constant", float(mode)
    constant = functional.pad(input.constant, pad, mode, value if mode == "constant" else None)
    return input.selected(functional.pad(input.positions(), pad, mode), constant)


@handles(
    modules={
        kind: lambda m: (
            m.size, m.scale_factor, m.mode, m.align_corners, getattr(m, "recompute_scale_factor", None),
        )
        for kind in (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
    },
    functions=(functional.interpolate,),
)  # fmt: skip
def _interpolate(
    input: Affine,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Affine:
    def resized(x: Any) -> Any:
        return functional.interpolate(x, size, scale_factor, mode, align_corners, recompute_scale_factor, antialias)

    if mode.startswith("nearest"):
        return input.selected(resized(input.positions()), resized(input.constant))
    return input.mapped(resized)


handles(modules={nn.PixelShuffle: lambda m: (m.upscale_factor,)}, functions=(functional.pixel_shuffle,))(
    selecting(functional.pixel_shuffle)
)
handles(modules={nn.PixelUnshuffle: lambda m: (m.downscale_factor,)}, functions=(functional.pixel_unshuffle,))(
    selecting(functional.pixel_unshuffle)
)
handles(
    modules={nn.ChannelShuffle: lambda m: (m.groups,)},
    functions=(functional.channel_shuffle, functional.native_channel_shuffle),
)(selecting(functional.channel_shuffle))
handles(
    modules={nn.Unfold: lambda m: (m.kernel_size, m.dilation, m.padding, m.stride)},
    functions=(functional.unfold,),
)(selecting(functional.unfold))


@handles(
    modules={nn.Fold: lambda m: (m.output_size, m.kernel_size, m.dilation, m.padding, m.stride)},
    functions=(functional.fold,),
)
def _fold(input: Affine, *args: Any, **kwargs: Any) -> Affine:
    return input.mapped(lambda x: functional.fold(x, *args, **kwargs))


@handles(functions=(functional.grid_sample,))
def _grid_sample(input: Affine, grid: Any, *args: Any, **kwargs: Any) -> Affine:
    return input.mapped(lambda x: functional.grid_sample(x, grid, *args, **kwargs))
