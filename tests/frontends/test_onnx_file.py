"""ONNX files become the graph of the model they were exported from; every operation is held to ONNX's own reference."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from importing import through_onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional

from sim.findings import Refused
from toolchain.frontends import import_model, inspect_model, onnx_file


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_layers_and_findings_have_the_names_of_the_nodes(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Sigmoid())
    program = through_onnx(nn.Sequential(inner, nn.Flatten(), nn.Linear(16, 3)), (2, 6, 6), tmp_path)
    fates = {row.path: row.fate for row in inspect_model(program, (2, 6, 6))}
    assert fates["0.0.Conv"].startswith("spiking layer 0.0.Conv")
    assert fates["0.2.MaxPool"].startswith("refused: a maximum over spike trains is not linear")
    assert fates["0.3.Sigmoid"].startswith("refused: integrate-and-fire neurons compute a ReLU and nothing else")
    assert fates["2.Gemm"] == "readout"


# ---- every operation, against ONNX's own reference ------------------------------------------------------------------

RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 4, 6, 7)).astype(np.float32)


def drawn(*shape: int) -> np.ndarray:
    return (RANDOM.random(shape) + 0.5).astype(np.float32)


def integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, np.ndarray],
    opset: int = 13,
    batch: Any = 2,
    outputs: Any = ("y",),
) -> onnx.ModelProto:
    """A graph from x (batch, 4, 6, 7) to y."""
    source = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 4, 6, 7])
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "net", [source], results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    for result in model.graph.output:
        result.type.tensor_type.shape.SetInParent()  # where it could not be inferred
    return model


def one(operation: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[onnx.NodeProto]:
    names = ["y", *(f"y{i}" for i in range(1, outputs))]
    return [helper.make_node(operation, list(inputs), names, **attributes)]


W, B4, FLAT = drawn(6, 4, 3, 3), drawn(4), drawn(5, 4)
BOUNDS = {"low": np.float32(0), "high": np.float32(0.5)}
NORM = {key: drawn(4) for key in ("scale", "bias", "mean", "var")}
HALVED = {"two": np.float32(2)}

OPERATIONS: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], int]] = {
    "Conv": (one("Conv", "x", "w", "b", strides=[2, 1], pads=[1, 0, 1, 0]), {"w": W, "b": drawn(6)}, 13),
    "Conv, uneven padding": (one("Conv", "x", "w", pads=[0, 1, 2, 3]), {"w": W}, 13),
    "Conv, groups and dilation": (one("Conv", "x", "w", group=2, dilations=[2, 1]), {"w": drawn(6, 2, 2, 2)}, 13),
    "Conv, SAME_UPPER": (one("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2]), {"w": W}, 13),
    "Conv, SAME_LOWER": (one("Conv", "x", "w", auto_pad="SAME_LOWER"), {"w": drawn(6, 4, 2, 4)}, 13),
    "BatchNormalization": (one("BatchNormalization", "x", *NORM, epsilon=0.25), NORM, 15),
    "Relu": (one("Relu", "x"), {}, 13),
    "Clip": (one("Clip", "x", "low", "high"), BOUNDS, 13),
    "Clip, upper bound only": (one("Clip", "x", "", "high"), BOUNDS, 13),
    "Clip, attributes": (one("Clip", "x", min=-0.25, max=0.5), {}, 6),
    "AveragePool": (one("AveragePool", "x", kernel_shape=[2, 3], strides=[2, 2], pads=[1, 1, 1, 1]), {}, 13),
    "AveragePool, counting": (
        one("AveragePool", "x", kernel_shape=[3, 3], pads=[0, 1, 2, 1], count_include_pad=1), {}, 13,
    ),
    "GlobalAveragePool": (one("GlobalAveragePool", "x"), {}, 13),
    "ReduceMean": (one("ReduceMean", "x", axes=[2, -1], keepdims=0), {}, 13),
    "ReduceMean, axes as input": (one("ReduceMean", "x", "axes"), {"axes": integers(2, 3)}, 18),
    "ReduceSum": (one("ReduceSum", "x", "axes", keepdims=0), {"axes": integers(3)}, 13),
    "Add": (one("Add", "x", "b"), {"b": drawn(4, 1, 1)}, 13),
    "Sub": (one("Sub", "b", "x"), {"b": drawn(4, 1, 1)}, 13),
    "Mul": (one("Mul", "x", "two"), HALVED, 13),
    "Div": (one("Div", "x", "two"), HALVED, 13),
    "Neg": (one("Neg", "x"), {}, 13),
    "Sum": (one("Sum", "x", "b", "x"), {"b": drawn(4, 1, 1)}, 13),
    "Concat": (one("Concat", "x", "b", "x", axis=1), {"b": drawn(2, 3, 6, 7)}, 13),
    "Slice": (
        one("Slice", "x", "from", "to", "axes", "steps"),
        {"from": integers(1, -1), "to": integers(9, -(2**63) + 1), "axes": integers(2, -1), "steps": integers(2, -2)},
        13,
    ),
    "Slice, back on two axes": (
        one("Slice", "x", "from", "to", "axes", "steps"),
        {"from": integers(-1, 4, 3), "to": integers(-(2**63) + 1, 0, 0), "axes": integers(3, 2, 1),
         "steps": integers(-1, -2, -1)},
        13,
    ),
    "Sigmoid": (one("Sigmoid", "x"), {}, 13),
    "Softmax": (one("Softmax", "x"), {}, 13),
    "Softmax of maps": (one("Softmax", "x", axis=1), {}, 13),
    "LogSoftmax": (one("LogSoftmax", "x", axis=1), {}, 13),
    "Slice, attributes": (one("Slice", "x", starts=[1], ends=[3], axes=[1]), {}, 9),
    "Split": (one("Split", "x", "sizes", axis=1, outputs=2), {"sizes": integers(1, 3)}, 13),
    "Split, equal": (one("Split", "x", axis=1, outputs=2), {}, 13),
    "Split, attributes": (one("Split", "x", axis=3, split=[3, 4], outputs=2), {}, 11),
    "Split, number": (one("Split", "x", axis=3, num_outputs=2, outputs=2), {}, 18),
    "Pad": (one("Pad", "x", "pads", "value"), {"pads": integers(0, 1, 2, 0, 0, 0, 1, 3), "value": np.float32(0.5)}, 13),
    "Pad, axes": (one("Pad", "x", "pads", "", "axes"), {"pads": integers(1, 2), "axes": integers(-1)}, 18),
    "Pad, edge": (one("Pad", "x", "pads", mode="edge"), {"pads": integers(0, 0, 1, 0, 0, 0, 0, 2)}, 13),
    "Pad, attributes": (one("Pad", "x", pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.5), {}, 2),
    "Reshape": (one("Reshape", "x", "shape"), {"shape": integers(0, 2, -1)}, 13),
    "Expand": (one("Expand", "x", "shape"), {"shape": integers(2, 4, 6, 7)}, 13),
    "Flatten": (one("Flatten", "x"), {}, 13),
    "Transpose": (one("Transpose", "x", perm=[0, 3, 1, 2]), {}, 13),
    "Identity": (one("Identity", "x"), {}, 13),
    "Dropout": (one("Dropout", "x"), {}, 13),
    "Cast": (one("Cast", "x", to=TensorProto.FLOAT), {}, 13),
    "Gather": (one("Gather", "x", "at", axis=1), {"at": integers(3, 0)}, 13),
    "Gather, one": (one("Gather", "x", "at", axis=-1), {"at": np.int64(2)}, 13),
    "Unsqueeze": (one("Unsqueeze", "x", "axes"), {"axes": integers(-1, 1)}, 13),
    "Unsqueeze, attributes": (one("Unsqueeze", "x", axes=[1]), {}, 11),
    "Squeeze": (
        [*one("Slice", "x", starts=[0], ends=[1], axes=[2]), helper.make_node("Squeeze", ["y"], ["z"], axes=[2]),
         helper.make_node("Identity", ["z"], ["out"])],
        {}, 9,
    ),
    "MatMul": (one("MatMul", "x", "w"), {"w": drawn(7, 5)}, 13),
    "MatMul from the left": (one("MatMul", "w", "x"), {"w": drawn(4, 5, 6)}, 13),
    "Einsum": (one("Einsum", "x", "w", equation="bchw,co->bohw"), {"w": drawn(4, 3)}, 13),
    "Relu, version 1": (one("Relu", "x", consumed_inputs=[0]), {}, 1),
    "AveragePool, SAME_UPPER": (
        one("AveragePool", "x", kernel_shape=[2, 4], strides=[2, 3], auto_pad="SAME_UPPER"), {}, 13,
    ),
    "AveragePool, uneven padding that does not count": (
        one("AveragePool", "x", kernel_shape=[3, 2], strides=[2, 1], pads=[0, 1, 1, 0]), {}, 13,
    ),
    "AveragePool, ceil_mode": (one("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1), {}, 13),
    "ConvTranspose": (
        one("ConvTranspose", "x", "w", "b", strides=[2, 3], pads=[1, 0, 0, 2], output_padding=[1, 1]),
        {"w": drawn(4, 3, 3, 3), "b": drawn(3)}, 11,
    ),
    "Max with zero": (one("Max", "x", "zero"), {"zero": np.float32(0)}, 13),
    "Min of several": (one("Min", "x", "two", "b"), {**HALVED, "b": drawn(4, 1, 1)}, 13),
    "HardSigmoid": (one("HardSigmoid", "x", alpha=0.25), {}, 6),
    "LeakyRelu": (one("LeakyRelu", "x", alpha=0.25), {}, 6),
    "Mean": (one("Mean", "x", "b", "x"), {"b": drawn(4, 1, 1)}, 13),
    "CumSum": (one("CumSum", "x", "axis", reverse=1), {"axis": np.int64(2)}, 14),
    "CumSum, exclusive": (one("CumSum", "x", "axis", exclusive=1), {"axis": np.int64(-1)}, 14),
    "Where": (one("Where", "mask", "x", "two"), {"mask": drawn(4, 1, 1) > 1, **HALVED}, 13),
    "Tile": (one("Tile", "x", "repeats"), {"repeats": integers(1, 2, 1, 3)}, 13),
    "GatherElements": (
        one("GatherElements", "x", "at", axis=3),
        {"at": integers(*range(-7, 1)).repeat(6).reshape(2, 4, 6, 1)}, 13,
    ),
    "Pad, reflect along one axis": (
        one("Pad", "x", "pads", mode="reflect"),
        {"pads": integers(0, 0, 0, 2, 0, 0, 0, 1)}, 13,
    ),
    "Pad, wrap": (one("Pad", "x", "pads", mode="wrap"), {"pads": integers(0, 0, 1, 2, 0, 0, 2, 0)}, 19),
    "Squeeze, input": (
        [*one("Slice", "x", "zero", "one", "two"), helper.make_node("Squeeze", ["y", "two"], ["z"])],
        {"zero": integers(0), "one": integers(1), "two": integers(2)}, 13,
    ),
    "ReduceSum, attributes": (one("ReduceSum", "x", axes=[1], keepdims=1), {}, 11),
    "DepthToSpace": (one("DepthToSpace", "x", blocksize=2), {}, 13),
    "DepthToSpace, columns first": (one("DepthToSpace", "x", blocksize=2, mode="CRD"), {}, 13),
    "SpaceToDepth": (
        [helper.make_node("Concat", ["x", "x"], ["two"], axis=3), *one("SpaceToDepth", "two", blocksize=2)], {}, 13,
    ),
    "Upsample": (one("Upsample", "x", "scales"), {"scales": np.float32([1, 1, 2, 3])}, 9),
    **{
        f"Resize, {mode}, {coordinates}, {further}": (
            one("Resize", "x", "", "", "sizes", mode=mode, coordinate_transformation_mode=coordinates, **further),
            {"sizes": integers(2, 4, 9, 5)}, 19,
        )
        for coordinates in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")
        for mode, further in (
            ("nearest", {}), ("nearest", {"nearest_mode": "floor"}), ("nearest", {"nearest_mode": "ceil"}),
            ("nearest", {"nearest_mode": "round_prefer_ceil"}), ("linear", {}), ("cubic", {}),
            ("cubic", {"cubic_coeff_a": -0.5, "exclude_outside": 1}),
        )
    },
    "Resize by scales": (one("Resize", "x", "", "scales", mode="linear"), {"scales": np.float32([1, 1, 1.3, 0.6])}, 13),
    "Resize of some axes": (
        one("Resize", "x", "", "", "sizes", mode="linear", axes=[3]), {"sizes": integers(9)}, 18,
    ),
    "weights behind Cast, Transpose, Reshape and Unsqueeze": (
        [
            helper.make_node("Cast", ["w"], ["w1"], to=TensorProto.FLOAT),
            helper.make_node("Transpose", ["w1"], ["w2"], perm=[1, 0]),
            helper.make_node("Unsqueeze", ["w2", "axes"], ["w3"]),
            helper.make_node("Identity", ["w3"], ["w4"]),
            helper.make_node("Conv", ["x", "w4"], ["h"]),
            helper.make_node("Reshape", ["b", "shape"], ["b1"]),
            *one("Add", "h", "b1"),
        ],
        {"w": drawn(4, 3).astype(np.float64), "axes": integers(2, 3), "b": drawn(3), "shape": integers(1, 3, 1, 1)}, 13,
    ),
    "weights behind DequantizeLinear": (
        [helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["d"], axis=0), *one("Conv", "x", "d")],
        {
            "w": RANDOM.integers(-9, 9, (3, 4, 2, 2)).astype(np.int8), "scale": drawn(3),
            "zero": np.array([0, 1, -2], np.int8),
        }, 19,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_that_of_the_standard(name: str, tmp_path: Path) -> None:
    nodes, constants, opset = OPERATIONS[name]
    output = nodes[-1].output[0]
    model = model_of(nodes, constants, opset, outputs=(output,))
    onnx.save(model, tmp_path / "model.onnx")
    (expected,) = ReferenceEvaluator(model).run([output], {"x": X})
    actual = onnx_file.load(tmp_path / "model.onnx")(torch.from_numpy(X.copy()))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)


WT = torch.from_numpy(drawn(4, 3, 3, 3))

#: What ONNX's reference does not run, against torch: the nodes, their constants, the opset, and the same in torch.
IN_TORCH: dict[str, tuple[list[onnx.NodeProto], dict[str, np.ndarray], int, Any]] = {
    "ConvTranspose, groups": (
        one("ConvTranspose", "x", "w", group=2, dilations=[2, 1]), {"w": WT.numpy()}, 11,
        lambda x: functional.conv_transpose2d(x, WT, groups=2, dilation=(2, 1)),
    ),
    "ConvTranspose, shape of the output": (  # 13 x 15 in full, of which the last row goes first
        one("ConvTranspose", "x", "w", strides=[2, 2], output_shape=[12, 14], auto_pad="SAME_UPPER"),
        {"w": WT.numpy()}, 11, lambda x: functional.conv_transpose2d(x, WT, stride=2)[:, :, :-1, :-1],
    ),
    "ConvTranspose, SAME_LOWER": (
        one("ConvTranspose", "x", "w", strides=[2, 2], auto_pad="SAME_LOWER"), {"w": WT.numpy()}, 11,
        lambda x: functional.conv_transpose2d(x, WT, stride=2)[:, :, 1:, 1:],
    ),
    "ConvTranspose over sequences": (
        [helper.make_node("Flatten", ["x"], ["f"], axis=1), helper.make_node("Reshape", ["f", "s"], ["r"]),
         *one("ConvTranspose", "r", "w", strides=[3])],
        {"w": WT.numpy()[:, :, 0], "s": integers(0, 4, 42)}, 11,
        lambda x: functional.conv_transpose1d(x.flatten(2), WT[:, :, 0], stride=3),
    ),
    "BatchNormalization, version 7": (
        one("BatchNormalization", "x", *NORM, spatial=1, momentum=0.5), NORM, 7,
        lambda x: functional.batch_norm(x, *(torch.from_numpy(NORM[k]) for k in ("mean", "var", "scale", "bias"))),
    ),
    "BatchNormalization, version 6": (
        one("BatchNormalization", "x", *NORM, is_test=1), NORM, 6,
        lambda x: functional.batch_norm(x, *(torch.from_numpy(NORM[k]) for k in ("mean", "var", "scale", "bias"))),
    ),
    "Dropout, version 6": (one("Dropout", "x", ratio=0.25, is_test=1), {}, 6, lambda x: x),
    "Add, version 6": (
        one("Add", "x", "b", broadcast=1, axis=1), {"b": drawn(4, 6)}, 6, None,
    ),
    "Mul, version 6": (one("Mul", "x", "b", broadcast=1), {"b": drawn(7)}, 6, None),
    "Upsample, version 7": (
        one("Upsample", "x", scales=[1.0, 1.0, 2.0, 3.0], mode="nearest"), {}, 7,
        lambda x: functional.interpolate(x, scale_factor=(2, 3)),
    ),
    "Resize, version 10": (
        one("Resize", "x", "scales"), {"scales": np.float32([1, 1, 2, 0.5])}, 10,
        lambda x: x.repeat_interleave(2, 2)[..., [0, 2, 4]],
    ),
    "Unsqueeze and Squeeze, version 1": (
        [helper.make_node("Unsqueeze", ["x"], ["u"], axes=[2]), *one("Squeeze", "u", axes=[2])], {}, 1, lambda x: x,
    ),
    "Concat, version 1": (one("Concat", "x", "x"), {}, 1, lambda x: torch.cat((x, x), 1)),
    "Cast, version 1": (one("Cast", "x", to="FLOAT"), {}, 1, lambda x: x),
    "Reshape, version 1": (one("Reshape", "x", shape=[2, -1], consumed_inputs=[0]), {}, 1, lambda x: x.flatten(1)),
    "Pad, version 1": (
        one("Pad", "x", paddings=[0, 0, 0, 1, 0, 0, 2, 0], mode="edge"), {}, 1,
        lambda x: functional.pad(x, (1, 0, 0, 2), "replicate"),
    ),
    "Slice, version 1": (one("Slice", "x", starts=[0, 1], ends=[2**31 - 1, 3]), {}, 1, lambda x: x[:, 1:3]),
}  # fmt: skip


@pytest.mark.parametrize("name", IN_TORCH)
def test_what_older_versions_write_is_what_torch_computes(name: str, tmp_path: Path) -> None:
    nodes, constants, opset, function = IN_TORCH[name]
    onnx.save(model_of(nodes, constants, opset), tmp_path / "model.onnx")
    program, x = onnx_file.load(tmp_path / "model.onnx"), torch.from_numpy(X.copy())
    if function is None:
        b = constants["b"].reshape(4, 6, 1) if constants["b"].ndim == 2 else constants["b"]
        expected = x + torch.from_numpy(b) if "Add" in name else x * torch.from_numpy(b)
    else:
        expected = function(x)
    torch.testing.assert_close(program(x), expected)
    rows = inspect_model(program, (4, 6, 7))
    assert not any(row.fate.startswith("refused") for row in rows if row.kind != "output")


@pytest.mark.parametrize(
    ("nodes", "constants", "opset", "finding"),
    [
        (one("BatchNormalization", "x", *NORM, spatial=0), NORM, 7, "BatchNormalization with statistics for every"),
        (one("BatchNormalization", "x", *NORM, is_test=0), NORM, 6, "batch_norm in BatchNormalization_0: normalis"),
        (one("Dropout", "x", is_test=0), {}, 6, "dropout in Dropout_0: is active in eval mode too"),
        (one("Pad", "x", pads=[0] * 8, mode="mirror"), {}, 2, "pad in Pad_0: torch refuses it: "),
        (one("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2]), {}, 19, "AveragePool with dilation in"),
        (
            one("Resize", "x", "", "scales", antialias=1, mode="linear"), {"scales": np.float32([1, 1, 0.5, 0.5])}, 18,
            "Resize with antialias, of a part, with its aspect ratio kept, or of the batch in Resize_0: it is not",
        ),
        (one("Where", "m", "x", "b"), {"m": drawn(2, 1, 1, 1) > 1, "b": drawn(1)}, 13, "where in Where_0: mixes the"),
        (one("MatMul", "x", "t"), {}, 13, "matmul in MatMul_0: it multiplies activations by each other"),
        (one("MaxPool", "x", kernel_shape=[2, 2]), {}, 13, "MaxPool in MaxPool_0: a maximum over spike"),
        (one("ReduceMax", "x", axes=[1]), {}, 13, "ReduceMax in ReduceMax_0: a maximum over spike trains is"),
        (one("InstanceNormalization", "x", "s", "s"), {"s": B4}, 13, "InstanceNormalization in InstanceNormalization"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_refused_for_what_it_is(
    nodes: Any, constants: dict[str, np.ndarray], opset: int, finding: str, tmp_path: Path
) -> None:
    if "t" in nodes[0].input:
        nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[0, 1, 3, 2]), *nodes]
        finding = finding.replace("_0", "_1")
    model = model_of(nodes, constants, opset)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    found = [row for row in inspect_model(onnx_file.load(tmp_path / "model.onnx"), (4, 6, 7)) if "refused" in row.fate]
    assert f"{found[0].kind} in {found[0].path}: {found[0].fate.removeprefix('refused: ')}".startswith(finding)


def test_an_attribute_that_is_not_known_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = model_of(one("Gemm", "f", "w", tiles=4), {"w": drawn(168, 5)})
    model.graph.node.insert(0, helper.make_node("Flatten", ["x"], ["f"]))
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    assert "Unrecognized attribute: tiles for operator Gemm" in refusal(tmp_path / "model.onnx")
    monkeypatch.setattr(onnx.checker, "check_model", lambda model: None)
    with pytest.raises(Refused, match=r"^Gemm with tiles in Gemm_1: it is not known; "):
        import_model(onnx_file.load(tmp_path / "model.onnx"), (4, 6, 7))


def test_a_batch_of_one_that_is_flattened_away_is_any_batch(tmp_path: Path) -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"], axis=0), *one("Gemm", "f", "w", "b", broadcast=1)]
    constants = {"w": drawn(168, 5), "b": drawn(5)}
    onnx.save(model_of(nodes, constants, 6, batch=1), tmp_path / "model.onnx")
    (layer,) = import_model(onnx_file.load(tmp_path / "model.onnx"), (4, 6, 7)).layers
    np.testing.assert_array_equal(layer.edges[0].map.weight.numpy(), constants["w"].T)
    onnx.save(model_of(nodes[:1] + one("Identity", "f"), {}, 13, batch=2), tmp_path / "model.onnx")
    with pytest.raises(Refused, match="mixes the samples of a batch"):
        import_model(onnx_file.load(tmp_path / "model.onnx"), (4, 6, 7))


@pytest.mark.parametrize(
    ("attributes", "bias"),
    [({"transB": 1}, drawn(5)), ({"alpha": 0.5, "beta": 2.0}, drawn(5)), ({}, drawn(1, 5)), ({}, None)],
)
def test_a_general_matrix_product_is_a_linear_layer(attributes: Any, bias: Any, tmp_path: Path) -> None:
    weight = drawn(5, 168) if attributes.get("transB") else drawn(168, 5)
    constants = {"w": weight} | ({} if bias is None else {"b": bias})
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), *one("Gemm", "f", *constants, **attributes)]
    model = model_of(nodes, constants)
    onnx.save(model, tmp_path / "model.onnx")
    (expected,) = ReferenceEvaluator(model).run(["y"], {"x": X})
    program = onnx_file.load(tmp_path / "model.onnx")
    np.testing.assert_allclose(program(torch.from_numpy(X)).numpy(), expected, rtol=1e-4)
    assert len(import_model(program, (4, 6, 7)).layers) == 1


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_general_matrix_product_of_two_constants_is_a_weight(transposed: int, tmp_path: Path) -> None:
    a, b = (drawn(3, 168), drawn(5, 3)) if transposed else (drawn(168, 3), drawn(3, 5))
    product = helper.make_node(
        "Gemm", ["a", "b", "c"], ["w"], alpha=0.5, beta=2.0, transA=transposed, transB=transposed
    )
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), product, *one("MatMul", "f", "w")]
    model = model_of(nodes, {"a": a, "b": b, "c": drawn(1, 5)})
    onnx.save(model, tmp_path / "model.onnx")
    (expected,) = ReferenceEvaluator(model).run(["y"], {"x": X})
    program = onnx_file.load(tmp_path / "model.onnx")
    np.testing.assert_allclose(program(torch.from_numpy(X)).numpy(), expected, rtol=1e-4)
    np.testing.assert_allclose(import_model(program, (4, 6, 7)).logits(torch.from_numpy(X)), expected, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 5, "batch"])
def test_shapes_computed_in_the_file_fit_every_batch(batch: Any, tmp_path: Path) -> None:
    """What exporters write for x.view(x.size(0), 4, -1)."""
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Constant", [], ["zero"], value_int=0),
        helper.make_node("Gather", ["sizes", "zero"], ["n"]),
        helper.make_node("Unsqueeze", ["n", "axis"], ["n1"]),
        helper.make_node("Concat", ["n1", "rest"], ["shape"], axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["r"]),
        helper.make_node("Reshape", ["r", "fixed"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    fixed = integers(batch if isinstance(batch, int) else 0, 168)
    constants = {"axis": integers(0), "rest": integers(4, -1), "fixed": fixed, "w": drawn(168, 3)}
    onnx.save(model_of(nodes, constants, batch=batch), tmp_path / "model.onnx")
    program = onnx_file.load(tmp_path / "model.onnx")
    np.testing.assert_allclose(
        program(torch.from_numpy(X)).numpy(), X.reshape(2, -1) @ constants["w"], rtol=1e-4, atol=1e-4
    )
    assert len(import_model(program, (4, 6, 7)).layers) == 1


# ---- what cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["Round", "Abs", "Erf"])
def test_what_is_not_known_of_weights_is_refused_and_no_zeros(operation: str, tmp_path: Path) -> None:
    nodes = [helper.make_node(operation, ["w"], ["v"]), helper.make_node("Conv", ["x", "v"], ["y"])]
    onnx.save(model_of(nodes, {"w": W * 4}), tmp_path / "model.onnx")
    with pytest.raises(Refused, match=f"{operation} of weights is not known; make every weight a plain parameter"):
        import_model(onnx_file.load(tmp_path / "model.onnx"), (4, 6, 7))


@pytest.mark.parametrize(("opset", "kept"), [(13, True), (11, False)])
def test_a_softmax_over_the_classes_of_maps_may_be_left_off_where_it_is_one(
    opset: int, kept: bool, tmp_path: Path
) -> None:
    """Before version 13 it is one over classes and places together."""
    nodes = [helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"], axis=1)]
    model = model_of(nodes, {"w": W}, opset)
    onnx.save(model, tmp_path / "model.onnx")
    program = onnx_file.load(tmp_path / "model.onnx")
    if not kept:
        with pytest.raises(Refused, match="softmax of a version before 13, of maps in Softmax_1: it normalises"):
            import_model(program, (4, 6, 7), leave_off_last=True)
        return
    graph = import_model(program, (4, 6, 7), leave_off_last=True)
    x = torch.from_numpy(X.copy())
    assert graph.left_off
    torch.testing.assert_close(graph.logits(x).softmax(1), program(x), rtol=1e-5, atol=1e-6)
    assert float(program(x).std()) > 0.01


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        onnx_file.load(path)
    (finding,) = caught.value.findings
    assert "\n" not in str(finding)
    return str(finding)


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    message = "net.onnx: reading it takes the package onnx; pip install 'ann2loihi[onnx]'"
    assert refusal(Path("net.onnx")) == message


def test_files_that_are_no_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(model_of(one("Relu", "x"), {}), path)
    whole = path.read_bytes()
    for content in (b"", b"noise", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "is not a readable ONNX model (" in refusal(path)
    two = model_of(one("Add", "x", "x2"), {})
    two.graph.input.append(helper.make_tensor_value_info("x2", TensorProto.FLOAT, [2, 4, 6, 7]))
    onnx.save(two, path)
    assert "takes 2 inputs; export a model of one input" in refusal(path)


def test_weights_outside_the_files_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(6 * 4 * 9 * 4))
    (tmp_path / "inner").mkdir()
    model = model_of(one("Conv", "x", "w"), {"w": W})
    (weight,) = model.graph.initializer
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../secret")
    (tmp_path / "inner" / "model.onnx").write_bytes(model.SerializeToString())
    assert "is not a readable ONNX model (" in refusal(tmp_path / "inner" / "model.onnx")


def test_weights_in_a_file_beside_it_are_read(tmp_path: Path) -> None:
    model = model_of(one("Conv", "x", "w"), {"w": W})
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    program = onnx_file.load(tmp_path / "model.onnx")
    assert torch.equal(program.get_buffer("w"), torch.from_numpy(W))


def test_a_constant_of_any_size_is_not_created(tmp_path: Path) -> None:
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["c"]), *one("Add", "x", "c")]
    onnx.save(model_of(nodes, {"shape": integers(1 << 40)}), tmp_path / "model.onnx")
    with pytest.raises(Refused, match=r"ConstantOfShape_0: it fails: a constant of shape \(1099511627776,\) has more"):
        import_model(onnx_file.load(tmp_path / "model.onnx"), (4, 6, 7))


@pytest.mark.parametrize(("opset", "options"), [(13, {}), (15, {"training_mode": 1})])
def test_normalisation_by_the_statistics_of_the_batch_is_refused(opset: int, options: Any, tmp_path: Path) -> None:
    outputs = 5 if opset == 13 else 3
    onnx.save(
        model_of(one("BatchNormalization", "x", *NORM, outputs=outputs, **options), NORM, opset), tmp_path / "n.onnx"
    )
    with pytest.raises(Refused, match="batch_norm in BatchNormalization_0: normalises by the statistics of the batch"):
        import_model(onnx_file.load(tmp_path / "n.onnx"), (4, 6, 7))


def test_dropout_in_training_mode_is_refused(tmp_path: Path) -> None:
    constants = {"ratio": np.float32(0.5), "training": np.bool_(True)}
    onnx.save(model_of(one("Dropout", "x", *constants), constants), tmp_path / "model.onnx")
    with pytest.raises(Refused, match="dropout in Dropout_0: is active in eval mode too"):
        import_model(onnx_file.load(tmp_path / "model.onnx"), (4, 6, 7))


def test_operations_of_other_domains_are_refused_by_name(tmp_path: Path) -> None:
    model = model_of(one("Relu", "x"), {})
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(Refused, match=r"Relu in Relu_0: "):
        import_model(onnx_file.load(tmp_path / "model.onnx"), (4, 6, 7))
