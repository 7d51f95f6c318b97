"""What the host does to inputs before they are a payload, in words: what users have to know to feed a chip."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from sim.network import INPUT, Input
from sim.stock import AFTER
from toolchain.convert import Conversion
from toolchain.graph import FloatGraph
from toolchain.scales.plan import by_source

LISTED = 8  #: channels


def prepared(conversion: Conversion) -> tuple[str, ...]:
    """Say how inputs are rearranged, which channels have scales of their own, and which are not looked at any more."""
    source = conversion.network.input
    found = []
    if source.order is not None:
        found.append(f"The host puts inputs of {_size(source.model_shape)} in order as {_size(source.shape)}.")
    if source.form != "payload":
        readers = [n for n in conversion.network.layers if len(conversion.network.on_chip(n)) < len(n.edges)]
        what = "input neurons, whose spikes all other layers read" if source.form == "spikes" else "what reads them"
        found.append(
            f"Inputs come in as biases, which the host writes, of {what}: {', '.join(n.name for n in readers)}."
        )
    if interval := conversion.network.reset_interval:
        least = conversion.network.period + AFTER["stock"]
        found.append(f"Samples follow each other every {interval} steps, which silicon's resets take; {least} suffice.")
    if np.ndim(source.scale):
        scale = np.asarray(source.scale)
        least, most = int(scale.argmin()), int(scale.argmax())
        found.append(
            f"Each of the {len(scale)} channels of the input has a payload scale of its own, from {scale[least]:.3g} "
            f"for channel {least} to {scale[most]:.3g} for channel {most}."
        )
    still = (_read(conversion.graph) & ~_read(conversion.source)).nonzero().flatten().tolist()
    if still:
        listed = ", ".join(map(str, still[:LISTED])) + (", ..." if len(still) > LISTED else "")
        found.append(f"Channels of the input that never changed became biases, and are not read any more: {listed}.")
    return tuple(found)


def clipped(source: Input, x: Tensor) -> tuple[str, ...]:
    """Say which share of model inputs (B, *model_shape) leaves the payload, and where most of it does; () for none."""
    return told_clipped(source, count_clipped(source, x), len(x))


def count_clipped(source: Input, x: Tensor) -> np.ndarray:
    """Count the values of model inputs (B, *model_shape) that leave the payload, by channel: int64 (C,)."""
    wide = replace(source, bits=31)  # beyond which float32 has no use for a payload
    beyond = source.encode(x) != wide.encode(x)
    return np.moveaxis(beyond, 1, 0).reshape(source.shape[0], -1).sum(1, dtype=np.int64)


def told_clipped(source: Input, counts: np.ndarray, samples: int) -> tuple[str, ...]:
    """Say what :func:`count_clipped` has found in so many samples."""
    if not counts.any():
        return ()
    bounds = np.broadcast_to(source.limits[1] / np.asarray(source.scale), counts.shape)
    most = int(counts.argmax())
    place = f", most of them in channel {most}" if len(counts) > 1 else ""
    share = 100 * int(counts.sum()) / (samples * math.prod(source.shape))
    return (f"{share:.2g} % of the input values are clipped{place}, at a magnitude of {bounds[most]:.3g}",)


def _read(graph: FloatGraph) -> Tensor:
    """Which channels of the input any weight reads, bool (C,)."""
    edges = [edge for layer in graph.layers for edge in layer.edges if edge.source == INPUT]
    return torch.stack([by_source(edge.map, graph.input_shape).ne(0).any(1) for edge in edges]).any(0)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
