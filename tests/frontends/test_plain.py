"""Models as training leaves them: wrapped, and in other precisions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from refusing import refusal
from torch import nn
from typer.testing import CliRunner

from toolchain import assessment, loading
from toolchain.app import cli
from toolchain.convert import convert, imported
from toolchain.frontends import import_model, inspect_model
from toolchain.frontends.plain import as_float32, unwrapped

# What torch deprecates people still have.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")


def net() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def distributed(model: nn.Module) -> nn.Module:
    """The wrapper without the process group that its constructor asks for."""
    wrapper = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapper)
    wrapper.module = model
    return wrapper


WRAPPINGS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": distributed,
    "compiled": torch.compile,
    "compiled in parallel": lambda model: nn.DataParallel(torch.compile(model)),
    "averaged": torch.optim.swa_utils.AveragedModel,
}
X = np.random.default_rng(1).random((32, 1, 6, 6), np.float32)


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=WRAPPINGS.keys())
def test_a_wrapped_model_converts_as_the_model_in_it(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = net()
    wrapped = wrap(model)
    inner = unwrapped(wrapped)
    assert type(inner) is nn.Sequential
    assert inner is model or isinstance(wrapped, torch.optim.swa_utils.AveragedModel)  # which keeps a copy
    conversion, plain = (convert(m, X, timesteps=2) for m in (wrapped, model))
    assert conversion.network == plain.network
    assert conversion.origin == plain.origin
    assert assessment.report(conversion, wrapped, X, None) == assessment.report(conversion, model, X, None)
    assert inspect_model(wrapped, (1, 6, 6)) == inspect_model(model, (1, 6, 6))
    assert import_model(wrapped, (1, 6, 6)).import_error == import_model(model, (1, 6, 6)).import_error


def test_a_module_inside_may_be_wrapped_too_and_stays_wrapped_in_the_model() -> None:
    """As AlexNet and VGG were trained on several GPUs, with the features alone in parallel."""
    plain = nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()), nn.Flatten(), nn.Linear(64, 3))
    model = copy.deepcopy(plain)
    model[0] = nn.DataParallel(nn.Sequential(torch.compile(model[0][0]), model[0][1]))
    model.register_parameter("shared", model[2].weight)
    inner = unwrapped(model)
    assert type(model[0]) is nn.DataParallel
    assert list(inner.state_dict()) == ["shared", *plain.state_dict()]
    assert inner.shared is inner[2].weight
    assert inner[2].weight is not model[2].weight
    assert imported(model, X)[0].logits(torch.from_numpy(X)).equal(imported(plain, X)[0].logits(torch.from_numpy(X)))


def test_a_model_that_nothing_wraps_is_returned_itself() -> None:
    model = net()
    assert unwrapped(model) is model
    assert as_float32(model) is model


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m, torch.zeros(1, 1, 6, 6))])
def test_torchscript_is_refused_with_a_way_out(compiled: Callable[[nn.Module], nn.Module]) -> None:
    for model in (compiled(net()), nn.DataParallel(compiled(net()))):
        message = refusal(convert, model, X)
        assert message.split(": ", 1)[1] == (
            "is TorchScript, which is compiled and cannot be traced; "
            "give the module that was scripted or traced, or a .pt2 file that torch.export has written"
        )


def test_weights_go_into_the_model_that_the_factorys_wrapper_holds(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "from torch import nn\ndef build(): return nn.DataParallel(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))\n"
    )
    state = {"1.weight": torch.ones(2, 4), "1.bias": torch.zeros(2)}
    for keys in ("", "module."):
        torch.save({keys + key: value for key, value in state.items()}, tmp_path / "w.pt")
        model = loading.load_model(f"{tmp_path}/m.py:build", tmp_path / "w.pt")
        assert type(model) is nn.Sequential
        assert torch.equal(model[1].weight, state["1.weight"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_another_precision_is_copied_to_float32(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)).to(dtype)
    copied = as_float32(model)
    assert {value.dtype for value in copied.state_dict().values()} == {torch.float32, torch.int64}
    assert {value.dtype for value in model.state_dict().values()} == {dtype, torch.int64}
    assert torch.equal(copied[0].weight, model[0].weight.float())


def test_one_parameter_of_another_precision_is_enough_for_a_copy() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).bfloat16())
    assert as_float32(model)[1].weight.dtype == torch.float32


@pytest.mark.parametrize("cast", ["double", "half", "bfloat16"])
def test_a_model_of_another_precision_goes_through_the_whole_command(cast: str, tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "import torch\nfrom torch import nn\ndef build():\n    torch.manual_seed(3)\n"
        f"    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).{cast}()\n"
    )
    np.savez(tmp_path / "x.npz", x=X)
    command = ["convert", "--model", f"{tmp_path}/m.py:build", "--calibration", f"{tmp_path}/x.npz"]
    done = CliRunner().invoke(cli.app, [*command, "-o", f"{tmp_path}/out", "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    # Folding is exact: what is imported decides like the network that runs in float32, on every input.
    assert json.loads(done.stdout)["agreement"]["folded"]["agreement"] == 100
