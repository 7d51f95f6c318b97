"""ONNX's Resize and Upsample: along every axis a selection of values, or a matrix that interpolates."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from toolchain.frontends.program import Unknown

#: By ``coordinate_transformation_mode``: where the outputs i lie, for n values in, m out and the scale s.
_COORDINATES: dict[str, Callable[[Tensor, int, int, float], Tensor]] = {
    "half_pixel": lambda i, n, m, s: (i + 0.5) / s - 0.5,
    "pytorch_half_pixel": lambda i, n, m, s: (i + 0.5) / s - 0.5 if m > 1 else torch.zeros_like(i),
    "half_pixel_symmetric": lambda i, n, m, s: n / 2 * (1 - m / (n * s)) + (i + 0.5) / s - 0.5,
    "tf_half_pixel_for_nn": lambda i, n, m, s: (i + 0.5) / s,
    "align_corners": lambda i, n, m, s: i * ((n - 1) / (m - 1)) if m > 1 else torch.zeros_like(i),
    "asymmetric": lambda i, n, m, s: i / s,
}

_ROUNDINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "round_prefer_floor": lambda x: (x - 0.5).ceil(),
    "round_prefer_ceil": lambda x: (x + 0.5).floor(),
    "floor": torch.floor,
    "ceil": torch.ceil,
}


def _taps(mode: str, at: Tensor, a: float) -> tuple[Tensor, Tensor]:
    """Positions and weights, (M, K), of the values that every output at ``at``, (M,), is made of."""
    first = at.floor()
    t = (at - first)[:, None]
    if mode == "linear":
        return first[:, None] + torch.arange(2), torch.cat([1 - t, t], 1)
    # Keys, IEEE Trans. ASSP 1981: cubic convolution with the free parameter a.
    near, far = torch.cat([t, 1 - t], 1), torch.cat([1 + t, 2 - t], 1)
    inner = ((a + 2) * near - (a + 3)) * near**2 + 1
    outer = ((a * far - 5 * a) * far + 8 * a) * far - 4 * a
    return first[:, None] + torch.arange(-1, 3), torch.cat([outer[:, :1], inner, outer[:, 1:]], 1)


def _matrix(mode: str, at: Tensor, size: int, a: float, exclude_outside: bool) -> Tensor:
    """Weights, (M, size); beyond the borders the last value goes on, or counts for nothing."""
    positions, weights = _taps(mode, at, a)
    if exclude_outside:
        weights = weights * ((positions >= 0) & (positions < size))
        weights = weights / weights.sum(1, keepdim=True)
    rows = torch.zeros(len(at), size, dtype=torch.float64)
    return rows.scatter_add(1, positions.clamp(0, size - 1).long(), weights)


def resize(
    x: Any,
    *inputs: Any,
    mode: str = "nearest",
    coordinate_transformation_mode: str | None = None,
    nearest_mode: str = "round_prefer_floor",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    antialias: int = 0,
    axes: Any = None,
    keep_aspect_ratio_policy: str = "stretch",
) -> Any:
    """Resize by ``scales``, or by ``roi``, ``scales`` and ``sizes``; ``x`` is (B, ...)."""
    scales, sizes = (inputs[0], None) if len(inputs) == 1 else (*inputs, None, None)[1:3]
    older = len(inputs) == 1  # opset 10, as Upsample
    coordinates = coordinate_transformation_mode or ("asymmetric" if older else "half_pixel")
    along = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    given = [] if scales is None else scales.flatten().tolist()
    wanted = [] if sizes is None else [int(n) for n in sizes.flatten().tolist()]
    unknown = antialias or coordinates not in _COORDINATES or keep_aspect_ratio_policy != "stretch"
    if unknown or any(axis == 0 and scale != 1 for axis, scale in zip(along, given, strict=False)):
        return Unknown("Resize with antialias, of a part, with its aspect ratio kept, or of the batch")(x)
    for k, axis in enumerate(along):
        size = x.shape[axis]
        if axis == 0 or (given and given[k] == 1) or (wanted and wanted[k] == size):
            continue
        n = wanted[k] if wanted else math.floor(size * given[k])
        scale = n / size if wanted else given[k]
        at = _COORDINATES[coordinates](torch.arange(n, dtype=torch.float64), size, n, scale)
        if mode == "nearest":
            rounding = _ROUNDINGS["floor" if older else nearest_mode]
            x = torch.index_select(x, axis, rounding(at).clamp(0, size - 1).long())
        else:
            rows = _matrix(mode, at, size, cubic_coeff_a, bool(exclude_outside)).to(x.dtype)
            x = torch.movedim(torch.matmul(torch.movedim(x, axis, -1), rows.t()), -1, axis)
    return x


def upsample(
    x: Any,
    scales_input: Any = None,
    *,
    mode: str = "nearest",
    scales: Any = None,
    height_scale: float = 1.0,
    width_scale: float = 1.0,
) -> Any:
    """Scale up; older versions have the scales as attributes."""
    if scales_input is None:
        scales_input = torch.tensor([1.0, 1.0, height_scale, width_scale] if scales is None else scales)
    return resize(x, scales_input, mode="linear" if mode in ("linear", "bilinear") else mode)
