"""Every ReLU of a user's network becomes an activation of the papers, with nothing else changed."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from networks import RESNET20, Forward
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from toolchain.frontends import import_model
from toolchain.graph.activations import NQ, QCFS, RNL, TCL, SlipReLU, TReLU
from toolchain.loading import load_model
from toolchain.surgery import ACTIVATIONS, replace_activations, replace_max_pooling
from toolchain.training.noise import as_cpu

KINDS = {"nq": NQ, "qcfs": QCFS, "sliprelu": SlipReLU, "tcl": TCL, "rnl": RNL, "trelu": TReLU}


def build(forward: Any, **modules: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    modules = modules or {"a": nn.Linear(6, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 3)}
    return Forward(forward, **modules).eval()


def functions(self: Any, x: Tensor) -> Tensor:
    x = functional.relu(self.a(x))
    x = torch.relu(self.b(x)) + x
    return self.c(x.relu())


X = torch.rand(32, 6, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_every_call_gets_an_activation_of_its_own(kind: Any) -> None:
    replaced = replace_activations(build(functions), kind, levels=3, sample=X)
    found = {path: m for path, m in replaced.named_modules() if type(m) is KINDS[kind]}
    assert list(found) == ["relu", "relu_1", "relu_2"]
    assert all(m.levels == 3 for m in found.values() if isinstance(m, QCFS))
    assert len(import_model(replaced, (6,)).layers) == 4


def test_a_module_keeps_its_name_and_one_that_is_called_twice_becomes_two() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(self.twice(self.b(self.twice(self.once(self.a(x))))))

    parts = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 8), "c": nn.Linear(8, 3)}
    model = build(forward, **parts, once=nn.ReLU(), twice=nn.ReLU(inplace=True))
    replaced = replace_activations(model, "qcfs", sample=X)
    paths = [path for path, m in replaced.named_modules() if type(m) is QCFS]
    assert sorted(paths) == ["once", "relu", "relu_1"]
    assert not any(type(m) is nn.ReLU for m in replaced.modules())
    assert type(model.once) is nn.ReLU  # the user's own model is as it was


def test_many_levels_compute_what_the_relus_did() -> None:
    model = load_model(RESNET20)
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    replaced = replace_activations(model, "qcfs", levels=1 << 16, sample=x)
    assert torch.allclose(replaced(x), model(x), atol=1e-3)
    assert set(model.state_dict()) < set(replaced.state_dict())
    assert "layer1.0.relu_1.threshold" in replaced.state_dict()
    assert replaced(x[:3]).shape == (3, 10)  # of any number of samples, though its forward asks for sizes


def test_what_is_rectified_in_place_is_rectified_for_all_who_read_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(functional.relu_(x))
        return self.c(x + y)

    model = build(forward)
    replaced = replace_activations(model, "qcfs", levels=1 << 16, sample=X)
    assert torch.allclose(replaced(X), model(X), atol=1e-3)


@pytest.mark.parametrize(
    "dropout",
    [
        functional.dropout,
        functional.dropout1d,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
        torch.dropout,
        torch.alpha_dropout,
        torch.feature_alpha_dropout,
    ],
)
def test_functional_dropout_follows_the_mode(dropout: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = dropout(functional.relu(self.a(x)), 0.5, self.training)
        return self.c(functional.relu(self.b(x)))

    model = build(forward).train()
    replaced = replace_activations(model, "qcfs", sample=X)
    assert replaced.training
    assert not torch.equal(replaced(X), replaced(X))
    replaced.eval()
    assert torch.equal(replaced(X), replaced(X))


def test_thresholds_are_where_the_levels_err_least_by_layer_or_channel() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)).eval()
    model[0].weight.data = torch.tensor([1.0, 10.0]).reshape(2, 1, 1, 1)
    x = torch.rand(64, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    channels = replace_activations(model, "qcfs", levels=4, sample=x, per_channel=True).get_submodule("1").threshold
    assert channels.shape == (2, 1, 1)
    assert float((channels[1] / channels[0]).detach()) == pytest.approx(10, rel=0.02)
    assert 0.85 < float(channels[0].detach()) <= 1.0
    layer = replace_activations(model, "tcl", sample=x).get_submodule("1").threshold
    assert float(layer.detach()) == pytest.approx(10 * float(x.max()))
    graph = import_model(replace_activations(model, "nq", levels=4, sample=x, per_channel=True), (1, 3, 3))
    assert torch.equal(torch.as_tensor(graph.layers[0].upper), channels.detach().flatten())


def test_a_norm_without_statistics_uses_those_of_the_sample() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)).eval()
    threshold = replace_activations(model, "tcl", sample=X / 100).get_submodule("2").threshold
    assert 1 < float(threshold.detach()) < 5  # of normalised values, not of hundredths


@pytest.mark.filterwarnings("ignore:torch.nn.utils.weight_norm is deprecated:UserWarning")
def test_what_cannot_be_replaced_is_refused() -> None:
    computed = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 2)), nn.ReLU(), nn.Linear(2, 2))
    computed(X)
    for change in (partial(replace_activations, activation="nq", sample=X), replace_max_pooling, as_cpu):
        with pytest.raises(Refused, match=r"^Sequential: it cannot be copied: .*; make every weight a plain parameter"):
            change(computed)
    with pytest.raises(Refused, match="Linear: has no ReLU; nothing is to be replaced"):
        replace_activations(nn.Linear(6, 2), "nq", sample=X)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.c(functional.relu(x if x.sum() > 0 else -x))

    with pytest.raises(Refused, match=r"Forward: torch\.fx cannot trace its forward: .*control flow"):
        replace_activations(build(forward), "nq", sample=X)
    with pytest.raises(Refused, match="activation: unknown value 'gelu'; use one of nq, qcfs, sliprelu"):
        replace_activations(build(functions), "gelu", sample=X)  # type: ignore[arg-type]
