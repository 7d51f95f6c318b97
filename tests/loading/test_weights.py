"""Checkpoints as people have them: what fits is found, what does not is summed up, and nothing in them is executed."""

from __future__ import annotations

import argparse
import collections
import pickle
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import networks
import numpy as np
import pytest
import torch
from refusing import refusal
from safetensors.torch import save_file, save_model
from torch import Tensor, nn
from typer.testing import CliRunner

from toolchain.app import cli
from toolchain.loading import load_model

# What torch deprecates people still have.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*quantized tensor creation:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]

State = dict[str, Tensor]

#: Torch's reader of weights can be told of harmless classes.
TOLD = hasattr(torch.serialization, "safe_globals")
SAVE = "save the state_dict of this very model"
DEQUANTISED = "save the weights as floating-point numbers, with their scale multiplied in"


def net(classes: int = 3, width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        collections.OrderedDict(
            conv=nn.Conv2d(1, width, 3), bn=nn.BatchNorm2d(width), relu=nn.ReLU(), flat=nn.Flatten(),
            head=nn.Linear(16 * width, classes),
        )
    )  # fmt: skip


def drawn(model: nn.Module | None = None, seed: int = 5) -> State:
    """A state_dict of values that no fresh model has."""
    generator = torch.Generator().manual_seed(seed)
    state = (model or net()).state_dict()
    return {
        key: torch.rand(value.shape, generator=generator) if value.is_floating_point() else torch.tensor(77)
        for key, value in state.items()
    }


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def uncounted(state: State) -> State:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def holds(model: nn.Module, state: State) -> bool:
    return all(torch.equal(model.state_dict()[key], value) for key, value in state.items())


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Save a checkpoint and return how loading it is refused, without the folder's name."""

    def load(content: Any, model: nn.Module | None = None, name: str = "w.pt") -> str:
        torch.save(content, tmp_path / name)
        return refusal(load_model, model or net(), tmp_path / name).replace(f"{tmp_path}/", "")

    return load


# ---- what loads -----------------------------------------------------------------------------------------------------

STATE = drawn()
CHECKPOINTS: dict[str, Any] = {
    "bare": STATE,
    "state_dict": {"state_dict": STATE, "epoch": 3, "best_acc": torch.tensor(91.2)},
    "model": {"model": STATE, "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}}, "lr": [0.1, 0.01]},
    "net": {"net": under("module.", STATE), "acc": 93.1, "epoch": 199},
    "model_state_dict": {"model_state_dict": STATE, "loss": 0.3, "note": "last"},
    "ema of weights that do not fit": {"model": drawn(net(classes=7)), "ema": {"module": STATE, "updates": 4}},
    "the same twice": {"model": STATE, "best": {key: value.clone() for key, value in STATE.items()}},
    "in a tuple": (STATE, {"lr": 0.1}),
    "in a list in a dict": {"models": [under("module.", STATE)]},
    "module.": under("module.", STATE),
    "_orig_mod.": under("_orig_mod.", STATE),
    "module._orig_mod.": {"state_dict": under("module._orig_mod.", STATE)},
    "a name of their own": under("backbone.body.", STATE),
    "inside": {key.replace("bn.", "bn.module."): value for key, value in STATE.items()},
    "inside and outside": {f"model._orig_mod.{key}".replace("conv.", "conv.module."): v for key, v in STATE.items()},
    "averaged": {"n_averaged": torch.tensor(5), **under("module.", STATE)},
    "uncounted": uncounted(STATE),
    "nested, parallel and uncounted": {"state_dict": under("module.", uncounted(STATE)), "best_prec1": 91.25},
    "a counter that is a mean": STATE | {"bn.num_batches_tracked": torch.tensor(77.0)},
    "a counter as a vector": STATE | {"bn.num_batches_tracked": torch.tensor([77])},
    "numbers beside weights": {**STATE, "epoch": 3, "arch": "net"},
}


@pytest.mark.parametrize("name", CHECKPOINTS)
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_the_state_dict_in_a_checkpoint_is_found(name: str, old: bool, tmp_path: Path) -> None:
    torch.save(CHECKPOINTS[name], tmp_path / "w.ckpt", _use_new_zipfile_serialization=not old)
    assert holds(load_model(net(), tmp_path / "w.ckpt"), uncounted(STATE) if "uncounted" in name else STATE)


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.th", "w.ckpt", "w.bin", "w", "w.pth.tar"])
def test_the_ending_does_not_matter(name: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / name)
    assert holds(load_model(net(), str(tmp_path / name)), STATE)


def test_what_lightning_saves(tmp_path: Path) -> None:
    checkpoint = {
        "epoch": 9, "global_step": 4000, "pytorch-lightning_version": "2.2.1", "loops": {"fit": {"state_dict": {}}},
        "state_dict": under("model._orig_mod.", STATE) | {"loss.weight": torch.ones(3), "train_acc.tp": torch.ones(1)},
        "callbacks": {"ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.3), "dirpath": "x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": STATE["conv.weight"]}}, "param_groups": [{"lr": 0.1}]}],
        "lr_schedulers": [{"base_lrs": [0.1], "last_epoch": 9}], "hparams_name": "kwargs",
        "hyper_parameters": {"width": 4},
    }  # fmt: skip
    torch.save(checkpoint, tmp_path / "last.ckpt")
    assert holds(load_model(net(), tmp_path / "last.ckpt"), STATE)


@pytest.mark.parametrize("old", [False, True])
def test_the_form_of_public_cifar_checkpoints_on_the_command_line(old: bool, tmp_path: Path) -> None:
    """Nested, trained in parallel, from before counters, epoch and accuracy beside: .th files of ResNets for CIFAR."""
    state = {key: 0.1 * value for key, value in uncounted(drawn(load_model(networks.RESNET20))).items()}
    checkpoint = {"epoch": 182, "state_dict": collections.OrderedDict(under("module.", state)), "best_prec1": 91.73}
    torch.save(checkpoint, tmp_path / "resnet20.th", _use_new_zipfile_serialization=not old)
    arguments = ["--model", networks.RESNET20, "--weights", f"{tmp_path}/resnet20.th", "--input-shape", "3,32,32"]
    done = CliRunner().invoke(cli.app, ["check", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert holds(load_model(networks.RESNET20, tmp_path / "resnet20.th"), state)


def test_safetensors_give_the_same_model_as_torch(tmp_path: Path) -> None:
    for prefix in ("", "model.", "module."):
        save_file(under(prefix, STATE), tmp_path / "w.safetensors")
        assert holds(load_model(net(), tmp_path / "w.safetensors"), STATE)


class Tied(nn.Module):
    """Two layers with one weight between them, and a third that is the second."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up, self.again = nn.Linear(3, 3), nn.Linear(3, 3, bias=False), nn.Identity()
        self.up.weight = self.down.weight
        self.again = self.up


def test_of_shared_weights_one_is_enough(tmp_path: Path) -> None:
    trained = Tied()
    save_model(trained, str(tmp_path / "w.safetensors"))
    torch.save({"up.weight": trained.up.weight, "down.bias": trained.down.bias}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        model = load_model(Tied(), tmp_path / name)
        assert holds(model, trained.state_dict())
        assert model.up.weight is model.down.weight is model.again.weight


def test_shared_weights_that_are_all_missing_are_missing(refused: Callable[..., str]) -> None:
    assert refused({"down.bias": torch.ones(3)}, Tied()) == (
        f"w.pt: lacks 'down.weight', 'up.weight', 'again.weight'; {SAVE}"
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_weights_are_cast_to_the_models_precision(dtype: torch.dtype, name: str, tmp_path: Path) -> None:
    cast = {key: value.to(dtype) if value.is_floating_point() else value for key, value in STATE.items()}
    (save_file if name.endswith("s") else torch.save)(cast, tmp_path / name)
    for target in (torch.float32, torch.float64, torch.float16):
        model = load_model(net().to(target), tmp_path / name)
        assert model.conv.weight.dtype == target
        assert torch.equal(model.conv.weight, cast["conv.weight"].to(target))


def test_what_torch_renames_while_it_loads_is_loaded(tmp_path: Path) -> None:
    """The parametrisation of weight normalisation takes the names that its predecessor saved."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), nn.BatchNorm1d(3))
    g, v = torch.rand(3, 1), torch.rand(3, 2)
    state = drawn(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))
    old = {"0.weight_g": g, "0.weight_v": v, **{key: value for key, value in state.items() if key != "0.weight"}}
    torch.save(under("module.", old), tmp_path / "w.pt")
    loaded = load_model(model, tmp_path / "w.pt")
    assert torch.allclose(loaded[0].weight, v * g / v.norm(dim=1, keepdim=True))
    torch.save(old | {"0.weight_v": (v * 9).to(torch.int8)}, tmp_path / "w.pt")
    assert "lacks" in refusal(load_model, model, tmp_path / "w.pt")


def test_what_is_no_dense_tensor_of_the_models_stays(tmp_path: Path) -> None:
    class Noted(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"version": 3}

        def set_extra_state(self, state: dict[str, int]) -> None:
            assert state == {"version": 3}

    model = Noted(2, 3)
    model.register_buffer("graph", torch.eye(3).to_sparse())
    state = {"weight": torch.ones(3, 2), "bias": torch.zeros(3), "graph": torch.eye(3).to_sparse(), "_extra_state": {}}
    torch.save(state, tmp_path / "w.pt")
    assert torch.equal(load_model(model, tmp_path / "w.pt").weight, state["weight"])


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_layers_without_a_shape_take_that_of_the_weights(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3, 5), "bias": torch.ones(3)}, tmp_path / "w.pt")
    assert load_model(nn.LazyLinear(3), tmp_path / "w.pt").weight.shape == (3, 5)


# ---- what does not fit ----------------------------------------------------------------------------------------------


def test_few_misfits_are_named(refused: Callable[..., str]) -> None:
    state = {key: value for key, value in STATE.items() if key != "conv.bias"}
    state |= {"extra": torch.ones(2), "head.weight": torch.ones(3, 65)}
    assert refused({"state_dict": under("module.", state)}).splitlines() == [
        f"w.pt['state_dict'] under 'module.': lacks 'conv.bias'; {SAVE}",
        f"w.pt['state_dict'] under 'module.': holds 'extra', which the model does not have; {SAVE}",
        f"w.pt['state_dict'] under 'module.': 'head.weight' has shape (3, 65), the model's has (3, 64); {SAVE}",
    ]


def test_many_misfits_are_summed_up(refused: Callable[..., str]) -> None:
    """ResNet-20 has 19 convolutions, each with the five tensors of its normalisation, and a classifier."""
    model = load_model(networks.RESNET20)
    state = {key: value for key, value in drawn(model).items() if not key.endswith("running_mean")}
    state |= {f"layer4.{i}.weight": torch.ones(1) for i in range(9)}
    total = len(model.state_dict())
    assert total == 19 * (1 + 5) + 2
    assert refused(state, model).splitlines() == [
        f"w.pt: lacks 19 of {total} keys, for example 'bn1.running_mean', 'layer1.0.bn1.running_mean', "
        f"'layer1.0.bn2.running_mean'; {SAVE}",
        f"w.pt: holds 9 of {total - 19 + 9} keys, for example 'layer4.0.weight', 'layer4.1.weight', "
        f"'layer4.2.weight', which the model does not have; {SAVE}",
    ]


def test_a_wider_network_is_one_line(refused: Callable[..., str]) -> None:
    assert refused(drawn(net(width=8))) == (
        f"w.pt: 'conv.weight' has shape (8, 1, 3, 3), the model's has (4, 1, 3, 3), and 6 more differ; {SAVE}"
    )


def test_a_checkpoint_of_another_model_is_said_to_be_one(refused: Callable[..., str]) -> None:
    other = nn.Sequential(collections.OrderedDict(stem=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    model = load_model(networks.RESNET20)
    assert refused({"state_dict": drawn(other)}, model) == (
        "w.pt['state_dict']: looks like a checkpoint of another model: 0 of 116 keys fit; it has 'stem.weight', "
        "'stem.bias', 'head.weight', the model 'conv1.weight', 'bn1.weight', 'bn1.bias'; "
        "build the model that was trained"
    )
    assert "w.pt: looks like a checkpoint of another model: 1 of 9 keys fit; " in refused({"conv.bias": torch.ones(4)})


def test_a_classifier_for_other_classes_is_said_to_be_one(refused: Callable[..., str]) -> None:
    assert refused({"weight": torch.ones(5, 2)}, nn.Linear(2, 3, bias=False)) == (
        "w.pt: the classifier 'weight' has 5 outputs, the model's 3; build the model with 5 outputs"
    )
    heads = {classes: nn.ModuleDict({name: nn.Linear(2, classes) for name in ("head", "early")}) for classes in (3, 7)}
    assert refused(drawn(heads[7]), heads[3]) == (
        "w.pt: the classifiers 'head', 'early' have 7 outputs, the model's 3; build the model with 7 outputs"
    )
    # No classifier: there would be nothing with as many outputs in the model.
    assert refused({"weight": torch.ones(64)}, nn.PReLU()) == (
        f"w.pt: 'weight' has shape (64,), the model's has (1,); {SAVE}"
    )
    single = nn.Module()
    single.register_buffer("scale", torch.tensor(1.0))
    assert "'scale' has shape (2,), the model's has ()" in refused({"scale": torch.ones(2)}, single)
    assert refused(drawn(net(classes=100))) == (
        "w.pt: the classifier 'head' has 100 outputs, the model's 3; build the model with 100 outputs"
    )


def test_all_kinds_of_misfits_together_are_five_lines(refused: Callable[..., str]) -> None:
    state = {key: value for key, value in STATE.items() if key != "conv.bias"}
    state |= {"extra": torch.ones(2), "head.weight": torch.ones(3, 65), "head.bias": torch.ones(3) > 0}
    state |= {"conv.weight": STATE["conv.weight"].to(torch.int8), "bn.weight": STATE["bn.weight"].to(torch.complex64)}
    assert len(refused(state).splitlines()) == 5


LEVELS = "levels of a quantised layer, whose scale is kept elsewhere"


@pytest.mark.parametrize(
    ("dtype", "words"),
    [
        (torch.int8, f"is int8: {LEVELS}; {DEQUANTISED}"),
        (torch.uint8, f"is uint8: {LEVELS}; {DEQUANTISED}"),
        (torch.int32, f"is int32: {LEVELS}; {DEQUANTISED}"),
        (torch.bool, f"is bool: signs or a mask, no weights; {DEQUANTISED}"),
        (torch.complex64, "is complex64: its imaginary part would be lost; give a network of real numbers"),
        (torch.float8_e4m3fn, f"is float8_e4m3fn: floats of 8 bits, whose scale is kept elsewhere; {DEQUANTISED}"),
        (torch.float8_e5m2, f"is float8_e5m2: floats of 8 bits, whose scale is kept elsewhere; {DEQUANTISED}"),
    ],
)
@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_numbers_that_are_no_weights_are_refused_by_their_type(
    dtype: torch.dtype, words: str, name: str, tmp_path: Path
) -> None:
    (save_file if name.endswith("s") else torch.save)(
        STATE | {"conv.weight": STATE["conv.weight"].to(dtype)}, tmp_path / name
    )
    assert refusal(load_model, net(), tmp_path / name) == f"{tmp_path}/{name}: 'conv.weight' {words}"


def test_types_are_summed_up_as_well(refused: Callable[..., str]) -> None:
    state = {key: (value * 100).to(torch.int8) if value.ndim > 1 else value for key, value in STATE.items()}
    assert refused(under("module.", state)) == (
        f"w.pt under 'module.': 'conv.weight' is int8 (and so is 1 more): {LEVELS}; {DEQUANTISED}"
    )


def test_quantised_and_sparse_tensors_are_refused(refused: Callable[..., str]) -> None:
    quantised = torch.quantize_per_tensor(STATE["head.weight"], 0.1, 0, torch.qint8)
    message = refused(STATE | {"head.weight": quantised})
    if TOLD:
        assert message == "w.pt: 'head.weight' is qint8: the tensor is quantised; save it as dequantize() gives it"
    else:
        assert message == f"w.pt: holds quantised tensors; {DEQUANTISED}"
    assert refused(STATE | {"head.weight": STATE["head.weight"].to_sparse()}) == (
        "w.pt: 'head.weight' is float32: the tensor is sparse; save it as to_dense() gives it"
    )


def test_integers_of_the_model_take_whole_numbers_only(refused: Callable[..., str], tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    model.register_buffer("order", torch.tensor([0, 1]))
    torch.save(model.state_dict() | {"order": torch.tensor([1.0, 0.0])}, tmp_path / "w.pt")
    assert load_model(model, tmp_path / "w.pt").order.tolist() == [1, 0]
    assert refused(model.state_dict() | {"order": torch.tensor([0.5, 0.0])}, model) == (
        f"w.pt: 'order' is float32: the model holds int64 there; {SAVE}"
    )


def test_several_state_dicts_that_fit_are_a_choice_for_the_user(refused: Callable[..., str]) -> None:
    other = drawn(seed=6)
    way_out = "save the one that you mean in a file of its own"
    assert refused({"state_dict": STATE, "state_dict_ema": under("module.", other), "epoch": 3}) == (
        "w.pt: holds 2 different state_dicts that fit: ['state_dict'], ['state_dict_ema'] under 'module.'; " + way_out
    )
    assert refused(under("student.", STATE) | under("teacher.", other)) == (
        f"w.pt: holds 2 different state_dicts that fit: under 'student.', under 'teacher.'; {way_out}"
    )
    # Beside weights that are there without a prefix, those under one are somebody else's.
    assert "which the model does not have" in refused(STATE | under("teacher.", other))


def test_a_model_that_refuses_its_weights_is_quoted(refused: Callable[..., str]) -> None:
    class Strict(nn.Linear):
        def load_state_dict(self, state: Any) -> None:  # type: ignore[override]
            raise ValueError("not\nlike this")

    assert refused(drawn(nn.Linear(2, 2)), Strict(2, 2)) == (
        f"w.pt: the model cannot load it: ValueError: not like this; {SAVE}"
    )


def test_a_file_without_a_state_dict_is_refused_with_what_it_holds(refused: Callable[..., str]) -> None:
    words = "not a state_dict of tensors; save model.state_dict() itself"
    assert refused({"epoch": 3, "model": {}}) == f"w.pt: holds a dict with keys 'epoch', 'model', {words}"
    assert refused(torch.ones(3)) == f"w.pt: holds a Tensor, {words}"
    assert refused([]) == f"w.pt: holds an empty list, {words}"
    endless: dict[str, Any] = {}
    endless["itself"] = endless
    assert refused(endless) == f"w.pt: holds a dict with keys 'itself', {words}"


# ---- what cannot be read --------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


OBJECTS = "holds objects or code beside tensors, which are never executed: "
ALONE = "where you trust it, read it with torch.load(..., weights_only=False), and torch.save its state_dict alone"


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    contents = {"weight": Payload(trap)}, {"state_dict": STATE, "args": Payload(trap)}
    for content in contents:
        for old in (False, True):
            torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
            message = refusal(load_model, net(), tmp_path / "w.pt")
            assert message.startswith(f"{tmp_path}/w.pt: {OBJECTS}")
            assert message.endswith(f"; {ALONE}")
        (tmp_path / "plain.pt").write_bytes(pickle.dumps(content))
        # Recent torch does not open a bare pickle at all.
        message = refusal(load_model, net(), tmp_path / "plain.pt")
        assert OBJECTS in message or "cannot be read as a torch file" in message
    assert not trap.exists()


def test_a_whole_model_is_refused_by_its_class(refused: Callable[..., str]) -> None:
    assert refused(net()) == f"w.pt: {OBJECTS}torch.nn.modules.container.Sequential; {ALONE}"


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (argparse.Namespace(lr=0.1, arch="net"), "argparse.Namespace"),
        (np.float64(91.2), "numpy.core.multiarray.scalar"),
        (np.float32(91.2), "numpy.core.multiarray.scalar"),
        (np.int64(3), "numpy.core.multiarray.scalar"),
        (np.bool_(True), "numpy.core.multiarray.scalar"),
        (Path("runs") / "1", "pathlib.PosixPath"),
        (Fraction(1, 3), "fractions.Fraction"),
        pytest.param(
            np.str_("adam"), "numpy.core.multiarray.scalar" if not TOLD else "numpy.dtypes.StrDType", id="text"
        ),
    ],
)
def test_what_training_scripts_save_beside_the_weights(beside: Any, name: str, tmp_path: Path) -> None:
    """Loaded where torch can be told that it is harmless, and named where it cannot or where we do not know it."""
    torch.save({"state_dict": STATE, "epoch": 3, "beside": beside}, tmp_path / "w.pt")
    if TOLD and not isinstance(beside, Fraction | np.str_):
        assert holds(load_model(net(), tmp_path / "w.pt"), STATE)
    else:
        assert refusal(load_model, net(), tmp_path / "w.pt") == f"{tmp_path}/w.pt: {OBJECTS}{name}; {ALONE}"


def test_torchscript_is_refused_with_a_way_to_its_weights(tmp_path: Path) -> None:
    torch.jit.script(net()).save(str(tmp_path / "w.pt"))
    message = refusal(load_model, net(), tmp_path / "w.pt")
    assert message == (
        f"{tmp_path}/w.pt: is TorchScript, a program; torch.save(torch.jit.load(...).state_dict(), ...) first"
    )


def test_every_damaged_byte_is_noticed_or_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"weight": torch.rand(3, 2), "bias": torch.rand(3)}, path)
    whole, state = path.read_bytes(), load_model(nn.Linear(2, 3), path).state_dict()
    noticed = 0
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x10]) + whole[position + 1 :])
        try:
            loaded = load_model(nn.Linear(2, 3), path)
        except ValueError as error:
            noticed += "damaged" in str(error)
        else:
            assert holds(loaded, state), position
    assert noticed > len(whole) / 3 / 4


def test_a_flipped_bit_in_the_numbers_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    content[content.index(STATE["conv.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith("/data/0"))
    assert refusal(load_model, net(), path) == (
        f"{path}: is damaged: {name} has another checksum; copy or download it again"
    )


def test_files_that_are_cut_or_something_else_are_refused(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "whole.pt")
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    whole, old = ((tmp_path / name).read_bytes() for name in ("whole.pt", "old.pt"))
    damaged = "is damaged or cut short (File is not a zip file); copy or download it again"
    unreadable = "cannot be read as a torch file; save model.state_dict() with torch.save"
    for content, words in (
        (whole[: len(whole) // 2], damaged),
        (b"PK", damaged),
        (old[: len(old) // 2], unreadable),
        (b"", unreadable),
        (b"\x80\x02noise", unreadable),
        (b"<html>404</html>", unreadable),
        (b"version https://git-lfs.github.com/spec/v1\n", unreadable),
    ):
        (tmp_path / "w.pt").write_bytes(content)
        assert refusal(load_model, net(), tmp_path / "w.pt") == f"{tmp_path}/w.pt: {words}"
    (tmp_path / "bad.safetensors").write_bytes(b"\0" * 40)
    assert "is not a safetensors file" in refusal(load_model, net(), tmp_path / "bad.safetensors")
    assert "no such file or directory" in refusal(load_model, net(), tmp_path / "none.pt")
    assert "is a directory" in refusal(load_model, net(), tmp_path)
