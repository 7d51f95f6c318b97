"""ONNX files, read with the package ``onnx`` (the extra ``ann2loihi[onnx]``)."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sim.findings import Refused, refuse
from sim.network import Shape
from toolchain.frontends.onnx_operations import OPERATIONS
from toolchain.frontends.program import SAMPLES, Operation, Program, Ref, Unknown


def load(path: Path) -> Program:
    """Read the network of an ``.onnx`` file, with weights inside or in a file beside it.

    Raises :class:`sim.findings.Refused` where the package is missing, for a file that is no ONNX model and for one of
    several inputs. Operations that are not known are the importer's to refuse.
    """
    try:
        import onnx
    except ImportError as error:
        raise refuse(str(path), "reading it takes the package onnx", "pip install 'ann2loihi[onnx]'") from error
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        return _Reader(path, model, _shapes(model)).program()
    except Refused:
        raise
    except Exception as error:  # a damaged file may be damaged anywhere
        raise refuse(str(path), f"is not a readable ONNX model ({_short(error)})", "export it again") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _shapes(model: Any) -> dict[str, list[int | None]]:
    """Sizes of every value as far as the file tells them."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: [
            size.dim_value if size.HasField("dim_value") else None for size in value.type.tensor_type.shape.dim
        ]
        for value in (*graph.input, *graph.value_info, *graph.output)
    }


class _Reader:
    def __init__(self, path: Path, model: Any, shapes: dict[str, list[int | None]]) -> None:
        self.graph, self.shapes = model.graph, shapes
        self.version = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 1)
        self.constants: dict[str, tuple[str, Tensor]] = {}
        for initializer in self.graph.initializer:
            self._constant(initializer.name, initializer)
        inputs = [value.name for value in self.graph.input if value.name not in self.constants]
        if len(inputs) != 1:
            raise refuse(str(path), f"takes {len(inputs)} inputs", "export a model of one input")
        (self.source,) = inputs
        self.samples = (shapes[self.source] or [None])[0]  # None where the batch was exported as dynamic
        self.from_input = {self.source}  # names of the values that depend on the input's

    def _constant(self, name: str, tensor: Any) -> None:
        from onnx import numpy_helper

        self.constants[name] = name, torch.from_numpy(numpy_helper.to_array(tensor).copy())

    def program(self) -> Program:
        operations = [self._operation(i, node) for i, node in enumerate(self.graph.node) if not self._is_constant(node)]
        return Program(self.source, self.constants, operations, [value.name for value in self.graph.output])

    def _is_constant(self, node: Any) -> bool:
        """Keep the tensor of a Constant; its other forms are operations."""
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            self._constant(node.output[0], node.attribute[0].t)
            return True
        return False

    def _operation(self, index: int, node: Any) -> Operation:
        from onnx import helper

        path, outputs = _path(node.name or f"{node.op_type}_{index}"), tuple(node.output)
        arguments = tuple(Ref(name) if name else None for name in node.input)
        attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        attributes = {key: value.decode() if isinstance(value, bytes) else value for key, value in attributes.items()}
        depends = not self.from_input.isdisjoint(node.input)
        if depends and node.op_type != "Shape":
            self.from_input.update(outputs)
        if node.op_type == "BatchNormalization" and len(outputs) > 1:  # older versions tell training by its outputs
            outputs, attributes["training_mode"] = outputs[:1], 1
        several = node.op_type in ("Split", "Dropout")
        name, known = node.op_type, node.domain in ("", "ai.onnx") and node.op_type in OPERATIONS
        if known and (foreign := _foreign(node.op_type, attributes)):
            name, known = f"{name} with {' and '.join(foreign)}", False
        if not known or (len(outputs) > 1 and not several):
            shapes = [self._shape(output) for output in outputs] if depends else None
            return Operation(path, Unknown(name, shapes), outputs, len(outputs) > 1, arguments)
        if node.op_type == "Split":
            attributes["num_outputs"] = len(outputs)
        if node.op_type in ("Softmax", "LogSoftmax"):
            attributes["flattens"] = self.version < 13
        if node.op_type in ("Reshape", "Expand", "Flatten") and depends and self.samples is not None:
            attributes["samples"] = self.samples, SAMPLES
        return Operation(path, OPERATIONS[node.op_type], outputs, several, arguments, attributes)

    def _shape(self, name: str) -> Shape | None:
        sizes = self.shapes.get(name, [])[1:]
        return tuple(size for size in sizes if size is not None) if sizes and None not in sizes else None


def _foreign(operation: str, attributes: dict[str, Any]) -> list[str]:
    """Return the names of attributes that the function standing for an operation does not take."""
    taken = inspect.signature(OPERATIONS[operation]).parameters
    return sorted(attributes.keys() - {name for name, p in taken.items() if p.kind is p.KEYWORD_ONLY})


def _path(name: str) -> str:
    """Write ``/layer1/layer1.0/conv1/Conv``, as torch's exporter does, as ``layer1.0.conv1.Conv``."""
    parts: list[str] = []
    for part in re.sub(r"[^\w./]+", "_", name).strip("/").split("/"):
        while parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)
