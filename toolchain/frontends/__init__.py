"""Import: a trained torch model becomes a :class:`~toolchain.graph.FloatGraph`, or says everything that hinders it.

The model is traced with ``torch.fx`` (:mod:`~toolchain.frontends.tracing`) and interpreted symbolically
(:mod:`~toolchain.frontends.interpreter`). A value is an affine function of the spiking layers found so far
(:mod:`~toolchain.frontends.affine`): per source a chain of linear maps (:mod:`~toolchain.frontends.linear`), plus a
constant. The constant is what torch itself computes from the constant before, so that a bias ahead of a padded
convolution comes out right at the borders too. A ReLU, bounded or not, closes the region
(:mod:`~toolchain.frontends.regions`): the affine value becomes a layer and the rectified value a new source.

What the importer knows stands in :mod:`~toolchain.frontends.operations`; :func:`operation` teaches it a module of
one's own. Files are read by :mod:`~toolchain.frontends.exported` and :mod:`~toolchain.frontends.onnx_file`, which
write them as a :class:`~toolchain.frontends.program.Program`, a module like any other.
"""

from __future__ import annotations

import torch
from torch import nn

from sim.findings import Refused, refuse
from sim.network import INPUT, Shape
from toolchain.frontends.checks import prepared
from toolchain.frontends.interpreter import Interpreter
from toolchain.frontends.log import LayerReport, Log
from toolchain.frontends.regions import Regions
from toolchain.frontends.registry import operation
from toolchain.frontends.tracing import trace
from toolchain.graph import FloatGraph

__all__ = ["DENSE_LIMIT", "LayerReport", "import_model", "inspect_model", "operation"]

DENSE_LIMIT = 1 << 25  #: weights of the largest matrix that folding may create: 1,000 classes after 7x7 maps of 512


def import_model(model: nn.Module, input_shape: Shape, *, dense_limit: int = DENSE_LIMIT) -> FloatGraph:
    """Reduce a trained model to spiking layers and the linear maps between them, in float64, stored as float32.

    ``input_shape`` is (C, H, W), (C, L) or (N,), without the batch dimension; the graph's input writes (C, L) as
    (C, L, 1). Where a model rearranges its input before a convolution, the graph does so before all layers, and takes
    inputs of any ``input_shape`` of one to three dimensions. The model is not changed; the graph equals it in eval
    mode. ``dense_limit`` bounds the weights of a matrix or kernel that folding creates. Raises
    :class:`sim.findings.Refused` with every finding at once.
    """
    log, regions = _run(model, input_shape, dense_limit)
    if log.findings:
        raise Refused(dict.fromkeys(log.findings))
    if regions.arrangement is None:
        return FloatGraph(regions.shapes[INPUT], tuple(regions.layers))
    return FloatGraph(regions.shapes[INPUT], tuple(regions.layers), regions.arrangement.index, tuple(input_shape))


def inspect_model(model: nn.Module, input_shape: Shape, *, dense_limit: int = DENSE_LIMIT) -> list[LayerReport]:
    """Report on every module and operation in the order of execution, without stopping at an unsupported one.

    Raises :class:`sim.findings.Refused` only for an ``input_shape`` that is not (C, H, W), (C, L) or (N,).
    """
    log, _ = _run(model, input_shape, dense_limit)
    return [row.report() for row in log.rows]


def _run(model: nn.Module, input_shape: Shape, dense_limit: int) -> tuple[Log, Regions]:
    if len(input_shape) not in (1, 2, 3) or min(input_shape) < 1:
        raise refuse(
            "input_shape", f"{tuple(input_shape)}", "give (C, H, W), (C, L) or (N,), without the batch dimension"
        )
    shape = tuple(input_shape)
    log = Log(type(model).__name__)
    regions = Regions(shape, log, dense_limit)
    with torch.no_grad():
        copied = prepared(model, log)
        traced = trace(copied, shape, log) if copied is not None else None
        if traced is not None:
            Interpreter(traced, log, regions).run()
    return log, regions
