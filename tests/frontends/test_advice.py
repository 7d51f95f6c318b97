"""Every way out that a refusal names leads out."""

from __future__ import annotations

import ast
import inspect
import operator
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from importing import agree, conv, randomise, refusals
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

import ann2loihi
from toolchain import frontends
from toolchain.app.cli import app
from toolchain.frontends import import_model, inspect_model
from toolchain.frontends.plain import WRAPPERS

PACKAGE = Path(frontends.__file__).parent


def texts() -> Iterator[str]:
    """Every string in the package that is no documentation."""
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text())
        documentation = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
                yield node.value


def named(pattern: str) -> set[str]:
    return {name for text in texts() for name in re.findall(pattern, text)}


def test_every_option_that_a_message_names_is_one_of_the_command_line_and_of_python() -> None:
    found = named(r"(?<![\w-])--([a-z][a-z-]+)")
    commands: Any = typer.main.get_command(app)
    assert {"dense-limit", "leave-off-last"} <= found
    for option in found:
        assert any(f"--{option}" in p.opts for command in commands.commands.values() for p in command.params), option
    for option in ("dense_limit", "leave_off_last"):
        for function in (ann2loihi.import_model, ann2loihi.check, ann2loihi.convert):
            assert option in inspect.signature(function).parameters


def test_every_name_that_a_message_names_exists() -> None:
    for name in named(r"\bann2loihi\.(\w+)"):
        assert hasattr(ann2loihi, name), name
    for prefix, home in (("nn", nn), ("functional", functional), ("torch", torch)):
        found = named(rf"(?<![\w./]){prefix}\.((?:[a-z_]+\.)*\w+)(?![\w.]*[\\|*+])")
        assert found
        classes = {kind.removeprefix("torch.") for kind in WRAPPERS}  # as they name themselves, not to be typed
        for name in found - {"ops.aten"} - classes:
            operator.attrgetter(name)(home)


def test_module_that_pools_by_the_maximum_names_a_function_that_replaces_it_and_a_call_does_not() -> None:
    modules = (nn.MaxPool2d(2), nn.AdaptiveMaxPool2d(2), nn.FractionalMaxPool2d(2, output_size=2))
    for module in modules:
        (found,) = refusals(nn.Sequential(conv(), module, nn.Flatten(), nn.Linear(16, 3)), (2, 6, 6))
        model = ann2loihi.replace_max_pooling(nn.Sequential(conv(), module, nn.Flatten(), nn.Linear(16, 3)))
        assert ("replace_max_pooling" in found) == (type(model[1]) is not type(module))
        if "replace_max_pooling" in found:
            agree(model, (2, 6, 6))
    calls = (lambda x: functional.max_pool2d(x, 2), lambda x: functional.adaptive_max_pool2d(x, 2))
    for call in calls:
        head = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        model = Forward(lambda self, x, call=call: self.head(call(self.conv(x))), conv=conv(), head=head)
        (found,) = refusals(model, (2, 6, 6))
        assert "use average pooling in its place (nn.AvgPool2d, functional.avg_pool2d) and fine-tune" in found
        assert "replace_max_pooling" not in found


ENDS: dict[str, tuple[Any, str]] = {
    "Softmax": (nn.Softmax(dim=1), "the largest logit stays the largest"),
    "LogSoftmax": (nn.LogSoftmax(-1), "the largest logit stays the largest"),
    "Sigmoid": (nn.Sigmoid(), "a probability above 0.5 is a logit above 0"),
    "LogSigmoid": (nn.LogSigmoid(), "a probability above 0.5 is a logit above 0"),
    "log_softmax": (lambda x: functional.log_softmax(x, dim=1), "the largest logit stays the largest"),
    "softmax": (lambda x: x.softmax(-1), "the largest logit stays the largest"),
    "special": (lambda x: torch.special.expit(x).flatten(1), "a probability above 0.5 is a logit above 0"),
    "sigmoid": (lambda x: torch.sigmoid(x).view(-1, 3), "a probability above 0.5 is a logit above 0"),
}


def ending(end: Any) -> nn.Module:
    return Forward(
        lambda self, x: (self.end if isinstance(end, nn.Module) else end)(self.fc(self.first(x).relu())),
        first=nn.Linear(4, 5),
        fc=nn.Linear(5, 3),
        end=end if isinstance(end, nn.Module) else nn.Identity(),
    )


@pytest.mark.parametrize("name", ENDS)
def test_what_only_rewrites_the_answer_is_offered_to_be_left_off_and_is(name: str) -> None:
    end, kept = ENDS[name]
    model = randomise(ending(end))
    (found,) = refusals(model, (4,))
    assert found.endswith(f"; leave it off: pass leave_off_last=True (--leave-off-last), {kept}")
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    graph = import_model(model, (4,), leave_off_last=True)
    with torch.no_grad():
        assert torch.allclose(graph.logits(x), model.fc(model.first(x).relu()), atol=1e-5)  # type: ignore[operator]
        assert torch.equal(graph.logits(x).argmax(1), model(x).argmax(1))
    fates = [row.fate for row in inspect_model(model, (4,), leave_off_last=True)]
    assert f"left off: {kept}" in fates


def test_what_is_not_at_the_end_or_not_over_the_classes_is_never_left_off() -> None:
    def two(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x).softmax(1)) + self.a(x)

    models: tuple[tuple[nn.Module, tuple[int, ...]], ...] = (
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)), (4,)),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(1), nn.ReLU()), (4,)),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmin(1)), (4,)),
        (nn.Sequential(nn.Linear(4, 4), nn.Tanh()), (4,)),
        (nn.Sequential(conv(), nn.Softmax(-1)), (2, 6, 6)),
        (Forward(lambda self, x: torch.softmax(self.a(x), 0), a=nn.Linear(4, 4)), (4,)),
        (Forward(two, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), (4,)),
    )
    for model, shape in models:
        rows = inspect_model(model, shape, leave_off_last=True)
        assert sum(row.fate.startswith("refused: ") for row in rows) >= 1
        assert not any("leave it off" in row.fate or "left off" in row.fate for row in rows)


class Excited(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, gate: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc, self.gate = conv(), nn.Linear(4, 4), gate

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        return (x * self.gate(self.fc(x.mean((2, 3)))).view(-1, 4, 1, 1)).flatten(1)


@pytest.mark.parametrize("gate", [nn.Sigmoid(), nn.SiLU(), nn.Tanh()])
def test_a_gate_is_to_be_left_out_with_its_product(gate: nn.Module) -> None:
    sigmoid, product = refusals(Excited(gate), (2, 6, 6))
    assert "leave it out with its product" in sigmoid
    assert "a ReLU in its place would leave a product of activations" in sigmoid
    assert product.startswith("mul in Excited: it multiplies activations by each other; leave the gate")
    (found,) = refusals(Excited(nn.ReLU()), (2, 6, 6))
    assert found == product
    (found,) = refusals(Excited(nn.Hardsigmoid()), (2, 6, 6))
    assert found == product
