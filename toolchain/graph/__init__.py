"""The float graph: what a trained network is once everything linear is folded, and what its activations may be."""

from toolchain.graph.float_graph import FloatConv2d, FloatDense, FloatEdge, FloatGraph, FloatLayer, FloatMap

__all__ = ["FloatConv2d", "FloatDense", "FloatEdge", "FloatGraph", "FloatLayer", "FloatMap"]
