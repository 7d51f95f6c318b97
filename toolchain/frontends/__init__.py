"""Import: a trained torch model becomes a :class:`~toolchain.graph.FloatGraph`, or says everything that hinders it.

The model is traced with ``torch.fx`` (:mod:`~toolchain.frontends.tracing`) and interpreted symbolically
(:mod:`~toolchain.frontends.interpreter`). A value is an affine function of the spiking layers found so far
(:mod:`~toolchain.frontends.affine`): per source a chain of linear maps (:mod:`~toolchain.frontends.linear`), plus a
constant. The constant is what torch itself computes from the constant before, so that a bias ahead of a padded
convolution comes out right at the borders too. A ReLU, bounded or not, closes the region
(:mod:`~toolchain.frontends.regions`): the affine value becomes a layer and the rectified value a new source. At last
the graph is held to the model's own forward (:mod:`~toolchain.frontends.proof`): what differs is refused. Wrappers as
DataParallel are taken off first (:mod:`~toolchain.frontends.plain`).

What the importer knows stands in :mod:`~toolchain.frontends.operations`; :func:`operation` teaches it a module of
one's own. Files are read by :mod:`~toolchain.frontends.exported` and :mod:`~toolchain.frontends.onnx_file`, which
write them as a :class:`~toolchain.frontends.program.Program`, a module like any other.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from sim.arguments import checked
from sim.findings import Refused, refuse
from sim.network import Shape
from toolchain.frontends.checks import prepared
from toolchain.frontends.interpreter import Interpreter
from toolchain.frontends.log import LayerReport, Log
from toolchain.frontends.plain import unwrapped
from toolchain.frontends.proof import double_by_default, own_dtype, prove
from toolchain.frontends.regions import Regions
from toolchain.frontends.registry import operation
from toolchain.frontends.tracing import trace
from toolchain.frontends.unchanged import unchanged
from toolchain.graph import FloatGraph, FloatLayer

__all__ = ["DENSE_LIMIT", "LayerReport", "import_model", "inspect_model", "operation"]

DENSE_LIMIT = 1 << 25  #: weights of the largest matrix that folding may create: 1,000 classes after 7x7 maps of 512


@checked
def import_model(
    model: nn.Module,
    input_shape: Shape,
    *,
    samples: Tensor | None = None,
    dense_limit: int = DENSE_LIMIT,
    leave_off_last: bool = False,
) -> FloatGraph:
    """Reduce a trained model to spiking layers and the linear maps between them, in float64, stored as float32.

    ``input_shape`` is (C, H, W), (C, L) or (N,), without the batch dimension; the graph's input writes (C, L) as
    (C, L, 1). Where a model rearranges its input before a convolution, the graph does so before all layers, and takes
    inputs of any ``input_shape`` of one to three dimensions. The model is not changed; that the graph equals it in eval
    mode is proven (:mod:`~toolchain.frontends.proof`) on drawn inputs and, where they are given, on a few of
    ``samples``, model inputs float32 (B, *input_shape). ``dense_limit`` bounds the weights of a matrix or kernel that
    folding creates. ``leave_off_last`` leaves off a softmax or sigmoid at the very end, so that the graph gives the
    logits before it. Raises :class:`sim.findings.Refused` with every finding at once.
    """
    log, regions, error = _run(model, input_shape, dense_limit, leave_off_last, samples)
    if log.findings:
        raise Refused(dict.fromkeys(log.findings))
    graph = regions.graph()
    layers = tuple(map(_stored, graph.layers))
    return replace(graph, layers=layers, import_error=error, left_off=regions.left_off is not None)


@checked
def inspect_model(
    model: nn.Module,
    input_shape: Shape,
    *,
    samples: Tensor | None = None,
    dense_limit: int = DENSE_LIMIT,
    leave_off_last: bool = False,
) -> list[LayerReport]:
    """Report on every module and operation in the order of execution, without stopping at an unsupported one.

    Where nothing is refused, what :func:`import_model` proves is proven too; the options are the same. Raises
    :class:`sim.findings.Refused` only for an ``input_shape`` that is not (C, H, W), (C, L) or (N,), and for a
    ``dense_limit`` that is no positive integer.
    """
    log, *_ = _run(model, input_shape, dense_limit, leave_off_last, samples)
    return [row.report() for row in log.rows]


@torch.no_grad()
def _run(
    model: nn.Module, input_shape: Shape, dense_limit: int, leave_off_last: bool, samples: Tensor | None
) -> tuple[Log, Regions, float | None]:
    if len(input_shape) not in (1, 2, 3) or min(input_shape) < 1:
        raise refuse(
            "input_shape", f"{tuple(input_shape)}", "give (C, H, W), (C, L) or (N,), without the batch dimension"
        )
    if not isinstance(dense_limit, int) or dense_limit < 1:
        raise refuse("dense_limit", f"{dense_limit!r} is no number of weights", "give a positive integer")
    shape = tuple(input_shape)
    if samples is not None and (tuple(samples.shape[1:]) != shape or not len(samples)):
        wanted = f"(N, {', '.join(map(str, shape))})"
        raise refuse("samples", f"shape {tuple(samples.shape)}", f"give model inputs of shape {wanted}")
    if samples is not None and not samples.isfinite().all():
        raise refuse("samples", "they hold NaN or infinity", "clean the data")
    model = unwrapped(model)
    log = Log(type(model).__name__)
    regions = Regions(shape, log, dense_limit)
    with unchanged(model), double_by_default():
        copied = prepared(model, log)
        traced = trace(copied, shape, log, own_dtype(model)) if copied is not None else None
        if traced is not None:
            Interpreter(traced, log, regions, leave_off_last).run()
    if traced is None or log.findings:
        return log, regions, None
    return log, regions, prove(model, traced, regions, log, samples)


def _stored(layer: FloatLayer) -> FloatLayer:
    edges = tuple(replace(edge, map=replace(edge.map, weight=edge.map.weight.float())) for edge in layer.edges)
    upper = layer.upper.float() if isinstance(layer.upper, Tensor) else layer.upper
    return replace(layer, edges=edges, bias=layer.bias.float(), upper=upper)
