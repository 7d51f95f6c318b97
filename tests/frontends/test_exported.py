"""Programs of torch.export become the same graph as the model they were exported from, and nothing in them is run."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import networks
import pytest
import torch
from importing import randomise, relative_error, through_export
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from sim.network import Shape
from toolchain.frontends import exported, import_model, inspect_model
from toolchain.frontends.program import Program


@pytest.mark.parametrize("batch", [1, 4])
def test_the_batch_that_was_exported_does_not_matter(batch: int, tmp_path: Path) -> None:
    model = randomise(networks.zero_channels()).eval()
    assert (
        relative_error(import_model(through_export(model, (2, 4, 4), tmp_path, batch), (2, 4, 4)), model, (2, 4, 4))
        < 1e-6
    )


def test_a_program_of_any_batch(tmp_path: Path) -> None:
    model = randomise(networks.zero_channels()).eval()
    program = through_export(model, (2, 4, 4), tmp_path, batch=3, dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert relative_error(import_model(program, (2, 4, 4)), model, (2, 4, 4)) < 1e-6


def test_layers_and_findings_have_the_names_of_the_modules(tmp_path: Path) -> None:
    inner = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.GELU())
    model = nn.Sequential(inner, nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3)).eval()
    rows = inspect_model(through_export(model, (2, 6, 6), tmp_path), (2, 6, 6))
    fates = {row.path: row.fate for row in rows}
    assert fates["0.0"].startswith("spiking layer 0.0")
    assert fates["0.2"].startswith("refused: a maximum over spike trains is not linear")
    assert fates["0.3"].startswith("refused: integrate-and-fire neurons compute a ReLU and nothing else")
    assert fates["2"].startswith("refused: it does not normalise by constants")
    assert any(row.path == "3" and row.fate == "readout" for row in rows)


def test_a_model_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)).train()
    with pytest.raises(Refused, match=r"batch_norm in 1: normalises by the statistics of the batch"):
        import_model(through_export(model, (2, 4, 4), tmp_path, batch=2), (2, 4, 4))


# ---- written by hand: what any version of torch may write, and what none would --------------------------------------


def argument(value: Any) -> dict[str, Any]:
    """Write an argument as torch's schema does; strings name tensors."""
    if isinstance(value, str):
        return {"as_tensor": {"name": value}}
    if value is None:
        return {"as_none": True}
    if isinstance(value, list):
        return {"as_tensors": [{"name": v} for v in value]} if isinstance(value[0], str) else {"as_ints": value}
    kind = {bool: "as_bool", int: "as_int", float: "as_float"}[type(value)]
    return {kind: value}


def node(target: str, output: str, **arguments: Any) -> dict[str, Any]:
    inputs = [
        {"name": name, "arg": value if isinstance(value, dict) else argument(value)}
        for name, value in arguments.items()
    ]
    return {
        "target": target if "." in target.split("aten")[0] else f"torch.ops.aten.{target}",
        "inputs": inputs,
        "outputs": [{"as_tensor": {"name": output}}],
        "metadata": {"nn_module_stack": f"x,,Net;x,block.{output},torch.nn.Module"},
    }


def document(shape: Shape, nodes: list[dict[str, Any]], weights: dict[str, Tensor], **changes: Any) -> dict[str, Any]:
    """One graph from the value x to the output of the last node; weights are named as in the model."""
    sizes = [{"as_int": n} for n in (1, *shape)]
    inputs = [{"parameter": {"arg": {"name": name}, "parameter_name": f"block.{name}"}} for name in weights]
    last = nodes[-1]["outputs"][0]
    return {
        "schema_version": {"major": 8, "minor": 0},
        "graph_module": {
            "graph": {"nodes": nodes, "tensor_values": {"x": {"sizes": sizes}, **changes.pop("tensor_values", {})}},
            "signature": {
                "input_specs": [*inputs, {"user_input": {"arg": {"as_tensor": {"name": "x"}}}}],
                "output_specs": [{"user_output": {"arg": last}}],
            },
        },
        **changes,
    }


def written(path: Path, content: dict[str, Any], weights: dict[str, Tensor], old: bool = False) -> Path:
    """Write an archive in the layout of torch 2.3, or in that of current torch."""
    with zipfile.ZipFile(path, "w") as archive:
        if old:
            buffer = io.BytesIO()
            torch.save({f"block.{name}": tensor for name, tensor in weights.items()}, buffer)
            archive.writestr("serialized_exported_program.json", json.dumps(content))
            archive.writestr("serialized_state_dict.pt", buffer.getvalue())
            archive.writestr("serialized_constants.pt", b"")
            archive.writestr("version", "5.1")
            return path
        config = {}
        for i, (name, tensor) in enumerate(weights.items()):
            meta = {
                "dtype": {torch.float32: 7, torch.float64: 8, torch.int64: 5}[tensor.dtype],
                "sizes": [{"as_int": n} for n in tensor.shape],
                "strides": [{"as_int": n} for n in tensor.stride()],
                "storage_offset": {"as_int": tensor.storage_offset()},
            }
            config[f"block.{name}"] = {"path_name": f"weight_{i}", "use_pickle": False, "tensor_meta": meta}
            storage = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
            archive.writestr(f"net/data/weights/weight_{i}", storage.numpy().tobytes())
        archive.writestr("net/data/weights/model_weights_config.json", json.dumps({"config": config}))
        archive.writestr("net/models/model.json", json.dumps(content))
        archive.writestr("net/archive_format", "pt2")
    return path


def by_hand(
    path: Path, shape: Shape, nodes: list[dict[str, Any]], weights: dict[str, Tensor], old: bool = False
) -> Program:
    return exported.load(written(path / "model.pt2", document(shape, nodes, weights), weights, old))


def drawn(**shapes: Shape) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=generator) + 0.5 for name, shape in shapes.items()}


@pytest.mark.parametrize("old", [True, False])
def test_both_layouts_hold_the_same_weights(old: bool, tmp_path: Path) -> None:
    weights = drawn(w=(3, 4), b=(3,))
    weights["w"] = weights["w"].t().contiguous().t()  # strides of its own
    program = by_hand(tmp_path, (4,), [node("linear.default", "y", input="x", weight="w", bias="b")], weights, old)
    x = torch.randn(2, 4)
    assert torch.equal(program(x), functional.linear(x, weights["w"], weights["b"]))
    assert {name: tuple(buffer.shape) for name, buffer in program.named_buffers()} == {
        "block.w": (3, 4),
        "block.b": (3,),
    }


X = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(1))
NORM = {"weight": "a", "bias": "b", "running_mean": "m", "running_var": "v"}


@pytest.mark.parametrize(
    ("call", "function"),
    [
        (
            {"target": "batch_norm.default", "input": "x", **NORM, "training": False, "momentum": 0.1, "eps": 0.5},
            lambda x, a, b, m, v, w, *_: (x - m.view(4, 1, 1)) / (v.view(4, 1, 1) + 0.5).sqrt() * a.view(4, 1, 1)
            + b.view(4, 1, 1),
        ),
        (
            {"target": "convolution.default", "input": "x", "weight": "w", "bias": "b", "stride": [2, 1],
             "padding": [1, 0], "dilation": [1, 2], "transposed": False, "output_padding": [0, 0], "groups": 2},
            lambda x, a, b, m, v, w, *_: functional.conv2d(x, w, b, (2, 1), (1, 0), (1, 2), 2),
        ),
        ({"target": "slice.Tensor", "self": "x", "dim": 3, "start": 1, "end": 9223372036854775807, "step": 2},
         lambda x, *_: x[:, :, :, 1::2]),
        ({"target": "slice.Tensor", "self": "x", "dim": -2, "end": -1}, lambda x, *_: x[:, :, :-1]),
        ({"target": "select.int", "self": "x", "dim": 1, "index": 2}, lambda x, *_: x[:, 2]),
        ({"target": "constant_pad_nd.default", "self": "x", "pad": [1, 0, 2, 3], "value": 0.25},
         lambda x, *_: functional.pad(x, (1, 0, 2, 3), value=0.25)),
        ({"target": "hardtanh.default", "self": "x", "max_val": 0.5}, lambda x, *_: x.clamp(-1, 0.5)),
        ({"target": "clamp.default", "self": "x", "min": None, "max": 0.5}, lambda x, *_: x.clamp(max=0.5)),
        ({"target": "add.Tensor", "self": "x", "other": "x", "alpha": 3}, lambda x, *_: 4 * x),
        ({"target": "sub_.Tensor", "self": "x", "other": "x", "alpha": 3}, lambda x, *_: -2 * x),
        ({"target": "view.default", "self": "x", "size": [1, -1]}, lambda x, *_: x.flatten(1)),
        ({"target": "reshape.default", "self": "x", "shape": [1, 2, 2, 36]}, lambda x, *_: x.reshape(2, 2, 2, 36)),
        ({"target": "permute.default", "self": "x", "dims": [0, 2, 3, 1]}, lambda x, *_: x.movedim(1, 3)),
        ({"target": "mean.dim", "self": "x", "dim": [-1, 2], "keepdim": True}, lambda x, *_: x.mean((2, 3), True)),
        ({"target": "avg_pool2d.default", "self": "x", "kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1],
          "ceil_mode": True, "count_include_pad": False},
         lambda x, *_: functional.avg_pool2d(x, 3, 2, 1, True, False)),
        (
            {"target": "convolution.default", "input": "x", "weight": "t", "bias": None, "stride": [2, 1],
             "padding": [1, 0], "dilation": [1, 2], "transposed": True, "output_padding": [1, 0], "groups": 2},
            lambda x, a, b, m, v, w, t, *_: functional.conv_transpose2d(x, t, None, (2, 1), (1, 0), (1, 0), 2, (1, 2)),
        ),
        ({"target": "repeat.default", "self": "x", "repeats": [1, 2, 1, 1]}, lambda x, *_: x.repeat(1, 2, 1, 1)),
        ({"target": "slice_scatter.default", "self": "x", "src": "x", "dim": 3}, lambda x, *_: x),
        ({"target": "copy.default", "self": "x", "src": "x"}, lambda x, *_: x),
        ({"target": "unfold.default", "self": "x", "dimension": 2, "size": 3, "step": 2},
         lambda x, *_: x.unfold(2, 3, 2)),
        ({"target": "upsample_bilinear2d.vec", "input": "x", "output_size": None, "align_corners": False,
          "scale_factors": {"as_floats": [2.0, 1.5]}},
         lambda x, *_: functional.interpolate(x, scale_factor=(2.0, 1.5), mode="bilinear")),
        ({"target": "upsample_nearest2d.default", "self": "x", "output_size": [9, 4]},
         lambda x, *_: functional.interpolate(x, (9, 4))),
        ({"target": "reflection_pad2d.default", "self": "x", "padding": [1, 2, 0, 3]},
         lambda x, *_: functional.pad(x, (1, 2, 0, 3), "reflect")),
        ({"target": "rsub.Scalar", "self": "x", "other": 3, "alpha": 2}, lambda x, *_: 3 - 2 * x),
        ({"target": "_unsafe_index.Tensor", "self": "x",
          "indices": {"as_optional_tensors": [{"as_none": True}, {"as_tensor": "i"}]}}, lambda x, *_: x[:, [3, 0]]),
        ({"target": "_to_copy.default", "self": "x", "dtype": {"as_scalar_type": 8}}, lambda x, *_: x),
        ({"target": "dropout.default", "input": "x", "p": 0.5, "train": False}, lambda x, *_: x),
        ({"target": "_to_copy.default", "self": "x", "dtype": {"as_scalar_type": 7}}, lambda x, *_: x),
    ],
)  # fmt: skip
def test_arguments_arrive_where_aten_has_them(call: dict[str, Any], function: Any, tmp_path: Path) -> None:
    weights = drawn(a=(4,), b=(4,), m=(4,), v=(4,), w=(4, 2, 3, 2), t=(4, 3, 3, 2)) | {"i": torch.tensor([3, 0])}
    target = call.pop("target")
    program = by_hand(tmp_path, (4, 6, 6), [node(target, "y", **call)], weights)
    assert torch.allclose(program(X.clone()), function(X, *weights.values()), atol=1e-6)


def test_a_product_and_a_sum_are_a_linear_layer(tmp_path: Path) -> None:
    weights = drawn(w=(3, 4), b=(3,))
    nodes = [
        node("t.default", "wt", self="w"),
        node("addmm.default", "y", self="b", mat1="x", mat2="wt", beta=2, alpha=3),
    ]
    program, x = by_hand(tmp_path, (4,), nodes, weights), torch.randn(2, 4)
    assert torch.allclose(program(x), 3 * x @ weights["w"].t() + 2 * weights["b"], atol=1e-6)
    (layer,) = import_model(program, (4,)).layers
    assert layer.name == "block.y"
    assert torch.allclose(layer.edges[0].map.weight, 3 * weights["w"])


def test_a_normalisation_with_statistics_beside_its_output(tmp_path: Path) -> None:
    normalisation = node("_native_batch_norm_legit_no_training.default", "y", input="x", **NORM, momentum=0.1, eps=1e-5)
    normalisation["outputs"] += [{"as_tensor": {"name": "mean"}}, {"as_tensor": {"name": "deviation"}}]
    weights = drawn(a=(4,), b=(4,), m=(4,), v=(4,))
    program = by_hand(tmp_path, (4, 6, 6), [normalisation, node("relu.default", "z", self="y")], weights)
    assert torch.allclose(program(X), functional.batch_norm(X, *(weights[k] for k in "mvab")).relu(), atol=1e-6)


def test_a_change_in_place_is_seen_by_every_later_use(tmp_path: Path) -> None:
    nodes = [
        node("sub.Tensor", "y", self="x", other="b"),
        node("relu_.default", "z", self="y"),
        node("linear.default", "r", input="y", weight="w"),
    ]
    weights = drawn(b=(3,), w=(2, 3))
    program, x = by_hand(tmp_path, (3,), nodes, weights), torch.randn(8, 3)
    expected = (x - weights["b"]).relu() @ weights["w"].t()
    assert torch.allclose(program(x.clone()), expected, atol=1e-6)
    assert torch.allclose(import_model(program, (3,)).logits(x), expected, atol=1e-6)


def test_an_unknown_operation_is_refused_and_what_follows_is_still_examined(tmp_path: Path) -> None:
    sizes = {"y": {"sizes": [{"as_int": 1}, {"as_int": 3}]}}
    nodes = [node("erf.default", "y", self="x"), node("gelu.default", "z", self="y", approximate={"as_string": "none"})]
    content = document((3,), nodes, {}, tensor_values=sizes)
    rows = inspect_model(exported.load(written(tmp_path / "model.pt2", content, {})), (3,))
    assert [(row.kind, row.fate.partition(";")[0]) for row in rows[:2]] == [
        ("erf", "refused: it is not known"),
        ("gelu", "refused: integrate-and-fire neurons compute a ReLU and nothing else"),
    ]


def test_what_is_not_known_of_weights_is_refused_and_no_zeros(tmp_path: Path) -> None:
    sizes = {"v": {"sizes": [{"as_int": 2}, {"as_int": 3}]}}
    nodes = [node("sign.default", "v", self="w"), node("linear.default", "r", input="x", weight="v")]
    weights = drawn(w=(2, 3))
    content = document((3,), nodes, weights)
    content["graph_module"]["graph"]["tensor_values"] |= sizes
    with pytest.raises(Refused, match="sign of weights is not known; make every weight a plain parameter"):
        import_model(exported.load(written(tmp_path / "model.pt2", content, weights)), (3,))


def test_a_softmax_that_is_not_known_is_not_left_off(tmp_path: Path) -> None:
    """Of another type: what the program makes of it, nobody can compare with."""
    end = node("softmax.int", "z", self="y", dim={"as_int": 1}, dtype={"as_scalar_type": 6})
    nodes, weights = [node("linear.default", "y", input="x", weight="w"), end], drawn(w=(2, 3))
    content = document((3,), nodes, weights, tensor_values={"z": {"sizes": [{"as_int": 1}, {"as_int": 2}]}})
    with pytest.raises(Refused, match="softmax"):
        import_model(exported.load(written(tmp_path / "model.pt2", content, weights)), (3,), leave_off_last=True)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid(), nn.LogSigmoid()])
def test_what_is_left_off_at_the_end_is_still_what_the_program_computes(end: nn.Module, tmp_path: Path) -> None:
    model = randomise(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), end)).eval()
    program, x = through_export(model, (4,), tmp_path), torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(program(x), model(x))
        torch.testing.assert_close(end(import_model(program, (4,), leave_off_last=True).logits(x)), model(x))
    with pytest.raises(Refused, match="leave it off: pass leave_off_last=True"):
        import_model(program, (4,))


@pytest.mark.parametrize(
    "change",
    [
        {"target": "conv_transpose3d.input"},
        {"target": "relu.out"},
        {"self": {"as_operator": "torch.hub.load"}},
        {"dtype": {"as_scalar_type": 6}},
    ],
)
def test_a_known_name_with_anything_unknown_about_it_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    call = {"target": "relu.default", "self": "x", "other": "x", **change}
    program = by_hand(tmp_path, (3,), [node(call.pop("target"), "y", **call)], {})
    with pytest.raises(Refused, match=r"in block\.y: "):
        import_model(program, (3,))


# ---- hostile files --------------------------------------------------------------------------------------------------


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


LINEAR = [node("linear.default", "y", input="x", weight="w")]


def refusal(path: Path) -> str:
    with pytest.raises(Refused) as caught:
        exported.load(path)
    (finding,) = caught.value.findings
    assert "\n" not in str(finding)
    return str(finding)


@pytest.mark.parametrize("old", [True, False])
def test_a_pickle_of_code_among_the_weights_is_refused_and_not_run(old: bool, tmp_path: Path) -> None:
    trap, weights = tmp_path / "trap", drawn(w=(3, 4))
    path = written(tmp_path / "model.pt2", document((4,), LINEAR, weights), weights, old)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    hostile = io.BytesIO()
    torch.save({"block.w": Trap(trap)}, hostile)
    for content in (hostile.getvalue(), pickle.dumps(Trap(trap), protocol=2)):
        members["serialized_state_dict.pt" if old else "net/data/weights/weight_0"] = content
        if not old:
            members["net/data/weights/model_weights_config.json"] = json.dumps(
                {"config": {"block.w": {"path_name": "weight_0", "use_pickle": True}}}
            ).encode()
        with zipfile.ZipFile(path, "w") as archive:
            for name, member in members.items():
                archive.writestr(name, member)
        assert "holds objects or code beside tensors, which are never executed" in refusal(path)
    assert not trap.exists()


def test_sizes_and_guards_written_as_code_are_not_run(tmp_path: Path) -> None:
    trap, weights = tmp_path / "trap", drawn(w=(3, 4))
    code = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    content = document((4,), LINEAR, weights, guards_code=[code])
    values = content["graph_module"]["graph"]["tensor_values"]
    values["x"]["sizes"][0] = {"as_expr": {"expr_str": code, "hint": {"as_int": 2}}}
    content["range_constraints"] = {code: {"min_val": 0, "max_val": 9}}
    program = exported.load(written(tmp_path / "model.pt2", content, weights))
    assert len(import_model(program, (4,)).layers) == 1
    assert not trap.exists()


@pytest.mark.parametrize("target", ["torch.hub.load", "_operator.call", "torch.ops.aten.from_file.default", "eval"])
def test_functions_outside_the_table_are_never_called(target: str, tmp_path: Path) -> None:
    call = node("relu.default", "y", self="x") | {"target": target}
    with pytest.raises(Refused, match="it is not known"):
        import_model(by_hand(tmp_path, (3,), [call], {}), (3,))


def test_a_tensor_or_a_constant_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(1 << 40)
    weights = {"w": huge}
    for old in (True, False):
        message = refusal(written(tmp_path / "model.pt2", document((4,), LINEAR, weights), weights, old))
        assert f"block.w: has shape ({1 << 40},), more than the file holds" in message
    nodes = [node("full.default", "y", size=[1 << 40], fill_value=0.5), node("add.Tensor", "z", self="x", other="y")]
    with pytest.raises(Refused, match=r"block\.y: it fails: a constant of shape \(1099511627776,\) has more than"):
        import_model(by_hand(tmp_path, (3,), nodes, {}), (3,))


def test_files_that_are_no_program_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, weights = tmp_path / "model.pt2", drawn(w=(3, 4))
    good = document((4,), LINEAR, weights)
    whole = written(path, good, weights).read_bytes()
    for content in (b"", b"noise", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "is not a readable torch.export program; save it with torch.export.save" in refusal(path)
    torch.save({"w": torch.zeros(3)}, path)
    assert "holds 0 exported programs, not one" in refusal(path)
    written(path, good | {"schema_version": {"major": 9}}, weights)
    assert "is written in version 9 of torch's schema; 5 to 8 are known" in refusal(path)
    for part in ("graph_module", "schema_version"):
        written(path, {key: value for key, value in good.items() if key != part}, weights)
        assert "is not a readable torch.export program" in refusal(path)
    good["graph_module"]["signature"]["input_specs"].append({"user_input": {"arg": {"as_tensor": {"name": "x2"}}}})
    assert "takes 2 inputs; export a model of one input" in refusal(written(path, good, weights))
    monkeypatch.setattr(exported, "LIMIT", 100)
    assert re.search(r"takes \d+ bytes, more than 100", refusal(path))
