"""What cannot be converted is refused, all at once, each with its place, the reason and the way out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from importing import conv, refusals
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from sim.network import Shape
from toolchain.frontends import import_model, inspect_model


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(4, 4, padding=1)
        self.activation = nn.LeakyReLU()

    def forward(self, x: Tensor) -> Tensor:
        return functional.gelu(self.activation(self.conv(x)))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_all_findings_come_at_once_with_place_reason_and_way_out() -> None:
    model = nn.Sequential(
        nn.Sequential(conv(padding=1), nn.InstanceNorm2d(4)),
        nn.SiLU(),
        nn.MaxPool2d(2),
        Block(),
        Branching(),
        nn.Flatten(),
        nn.Linear(64, 3),
        nn.Softmax(dim=1),
    )
    model[6].bias.data[1] = math.nan
    found = refusals(model, (2, 8, 8))
    rates = "integrate-and-fire neurons compute a ReLU and nothing else; replace it by nn.ReLU and fine-tune"
    assert found[:6] == [
        "6.bias: 1 of 3 values are NaN or infinite; train again from the last good checkpoint",
        "0.1 (InstanceNorm2d): it does not normalise by constants; use nn.BatchNorm2d or nn.BatchNorm1d and fine-tune",
        f"1 (SiLU): {rates}",
        "2 (MaxPool2d): a maximum over spike trains is not linear; use nn.AvgPool2d "
        "(ann2loihi.replace_max_pooling) and fine-tune, or a convolution with a stride",
        f"3.activation (LeakyReLU): {rates}, or write relu(x) - slope * relu(-x)",
        f"gelu in 3: {rates}",
    ]
    assert found[6].startswith(
        "4 (Branching): torch.fx cannot trace it: symbolically traced variables cannot be used as inputs to "
        "control flow (test_refusals.py, line "
    )
    assert found[7] == (
        "7 (Softmax): it normalises over all classes; leave it off: pass leave_off_last=True (--leave-off-last), the "
        "largest logit stays the largest"
    )
    assert len(found) == 8


@pytest.mark.parametrize(
    ("module", "finding"),
    [
        (nn.MaxPool2d(2), "a maximum over spike trains is not linear; use nn.AvgPool2d"),
        (nn.AdaptiveMaxPool2d(2), "a maximum over spike trains"),
        (nn.SELU(), "integrate-and-fire neurons compute a ReLU and nothing else; replace it by nn.ReLU and fine-tune"),
        (nn.Hardtanh(), "its lower bound is -1.0, that of integrate-and-fire neurons is 0; clamp at 0, or use nn.ReLU"),
        (nn.PReLU(), "integrate-and-fire neurons"),
        (nn.Hardswish(), "integrate-and-fire neurons"),
        (nn.Tanh(), "integrate-and-fire neurons"),
        (nn.ELU(), "integrate-and-fire neurons"),
        (nn.LogSoftmax(1), "it normalises over all classes; at the output leave it out"),
        (nn.GroupNorm(2, 4), "it does not normalise by constants; use nn.BatchNorm2d"),
        (nn.InstanceNorm2d(4), "it does not normalise by constants"),
        (nn.BatchNorm2d(4, track_running_stats=False), "normalises by the statistics of the batch"),
        (nn.LPPool2d(2, 2), "it takes powers and roots; use average pooling in its place"),
        (nn.MaxPool3d(2), "a maximum over spike trains is not linear; use average pooling in its place"),
        (nn.Conv3d(1, 1, 1), "a network has at most two dimensions of space; use its form for two"),
        (nn.Bilinear(4, 4, 3), "torch refuses it: "),
        (nn.GLU(1), "it multiplies activations by each other; put nn.ReLU in its place, with half as many channels"),
        (
            nn.Threshold(0.5, 0),
            "it replaces what is at most 0.5 by 0: integrate-and-fire neurons compute a ReLU; use nn",
        ),
        (nn.LeakyReLU(), "integrate-and-fire neurons compute a ReLU and nothing else; replace it by nn.ReLU and fine"),
        (
            nn.PairwiseDistance(),
            "it is not known; write it in operations that are known, in its module's forward or by",
        ),
    ],
)
def test_every_unsupported_module_is_named_with_its_way_out(module: nn.Module, finding: str) -> None:
    found, *_ = refusals(nn.Sequential(conv(), module, nn.ReLU(), conv(4, 2, 1)), (2, 6, 6))
    assert found.startswith(f"1 ({type(module).__name__}): ")
    assert finding in found


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_layer_without_weights_is_refused() -> None:
    assert refusals(nn.Sequential(nn.LazyLinear(3), nn.ReLU(), nn.Linear(3, 2)), (4,)) == [
        "0.weight: it has no shape yet; run the model once before importing it",
        "0.bias: it has no shape yet; run the model once before importing it",
    ]


@pytest.mark.parametrize(
    ("function", "finding"),
    [
        (lambda x: functional.max_pool2d(x, 2), "max_pool2d in Forward: a maximum over spike trains is not linear"),
        (lambda x: torch.sigmoid(x), "sigmoid in Forward: integrate-and-fire neurons"),
        (lambda x: x.clamp(-1, 1), "clamp in Forward: its lower bound is -1, that of integrate-and-fire neurons is 0;"),
        (lambda x: x.clamp(max=1), "clamp in Forward: its lower bound is None"),
        (lambda x: x.clamp(0, 0), "clamp in Forward: its upper bound 0 leaves no value but 0; give a positive one"),
        (lambda x: torch.clamp(x, torch.arange(4.0).reshape(4, 1, 1)), "clamp in Forward: its bounds are tensors of s"),
        (lambda x: functional.hardtanh(x), "hardtanh in Forward: its lower bound is -1.0"),
        (lambda x: x * x, "mul in Forward: it multiplies activations by each other; leave the gate or the attent"),
        (lambda x: x * torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1), "mul in Forward: scales every sample by a fac"),
        (lambda x: x * torch.ones(1, 1, 1, 1, 1), "mul in Forward: mixes the samples of a batch"),
        (lambda x: 1 / x, "truediv in Forward: it divides by an activation; leave the division out, or divide by a"),
        (lambda x: torch.div(x, 2, rounding_mode="floor"), "div in Forward: rounds, with rounding_mode 'floor'"),
        (lambda x: x[:1], "getitem in Forward: mixes the samples of a batch"),
        (lambda x: x[[1, 0]], "getitem in Forward: mixes the samples of a batch; keep the batch as the first"),
        (lambda x: x[x], "getitem in Forward: an activation stands where a parameter belongs"),
        (lambda x: torch.cat([x, x]), "cat in Forward: mixes the samples of a batch"),
        (lambda x: torch.cat([x, x.flatten(2)], 1), "cat in Forward: torch refuses it: "),
        (lambda x: functional.pad(x, (0, 0, 0, 0, 0, 0, 1, 0)), "pad in Forward: mixes the samples of a batch"),
        (lambda x: functional.pad(x, (-9, 0)), "pad in Forward: torch refuses it: "),
        (lambda x: x.chunk(2)[0], "chunk in Forward: mixes the samples of a batch"),
        (lambda x: x.permute(1, 0, 2, 3), "relu in Forward: mixes the samples of a batch"),
        (lambda x: x.sum(), "sum in Forward: averages over the batch; name the dimensions"),
        (
            lambda x: functional.avg_pool1d(x.flatten(1), 1).view(-1, 4, 4, 4),
            "avg_pool1d in Forward: gets shape (64,) where it needs (C, L)",
        ),
        (lambda x: functional.dropout(x, 0.5), "dropout in Forward: is active in eval mode too; pass training="),
        (
            lambda x: functional.batch_norm(x, None, None, training=True),
            "batch_norm in Forward: normalises by the statist",
        ),
        (lambda x: torch.maximum(x, -x), "maximum in Forward: it compares activations with each other; compare with 0"),
        (lambda x: torch.minimum(x, torch.ones(1)), "minimum in Forward: its lower bound is None, that of integrate-"),
        (
            lambda x: x.max(1, keepdim=True)[0].expand(-1, 4, -1, -1),
            "max in Forward: a maximum over spike trains is not",
        ),
        (
            lambda x: x.min(1, True)[0].expand(-1, 4, -1, -1),
            "min in Forward: a minimum over spike trains is not linear",
        ),
        (
            lambda x: x.abs(),
            "abs in Forward: integrate-and-fire neurons compute a ReLU and nothing else; write it as relu",
        ),
        (
            lambda x: functional.leaky_relu(x, 0.1),
            "leaky_relu in Forward: integrate-and-fire neurons compute a ReLU and",
        ),
        (lambda x: torch.where(torch.arange(2).reshape(2, 1, 1, 1) > 0, x, 0.0), "where in Forward: mixes the samples"),
        (lambda x: x.mean(), "mean in Forward: averages over the batch; name the dimensions"),
        (
            lambda x: x.reshape(-1, 4, 1, 1),
            "reshape in Forward: mixes the samples of a batch; keep the batch as the first",
        ),
        (lambda x: x.flatten(1).mean((0, 1)), "mean in Forward: averages over the batch"),
        (lambda x: functional.avg_pool2d(x, 9), "avg_pool2d in Forward: torch refuses it: "),
        (lambda x: functional.avg_pool2d(x.flatten(1), 2), "avg_pool2d in Forward: gets shape (64,) where it needs (C"),
        (
            lambda x: functional.adaptive_avg_pool2d(x.flatten(1), 2),
            "adaptive_avg_pool2d in Forward: gets shape (64,) where it needs (C, H, W); check input_shape",
        ),
    ],
)
def test_every_unsupported_function_is_named_with_the_module_that_calls_it(
    function: Callable[[Tensor], Tensor], finding: str
) -> None:
    found = refusals(
        Forward(lambda self, x: self.head(function(self.conv(x)).relu()), conv=conv(), head=conv(4, 2, 1)), (2, 6, 6)
    )
    assert len(found) == 1
    assert found[0].startswith(finding)


def test_a_recurrent_layer_is_refused_and_what_follows_is_still_examined() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        out, _ = self.lstm(x.flatten(2))
        return self.fc(self.act(out.flatten(1)))

    model = Forward(forward, lstm=nn.LSTM(9, 4, batch_first=True), act=nn.Tanh(), fc=nn.Linear(8, 3))
    found = refusals(model, (2, 3, 3))
    assert [line.split(":")[0] for line in found] == ["lstm (LSTM)", "act (Tanh)"]
    assert "a recurrent layer carries state from step to step; use a feed-forward network" in found[0]


def test_data_dependent_control_flow_is_reported_in_one_line_with_its_place() -> None:
    (found,) = refusals(Branching(), (2, 3, 3))
    assert found.startswith("Branching: torch.fx cannot trace it: symbolically traced variables cannot be used")
    assert found.endswith("; write its forward without Python control flow on values, and its modules as attributes")
    assert "(test_refusals.py, line " in found


@pytest.mark.parametrize(
    ("model", "finding"),
    [
        (
            nn.Sequential(conv(), nn.ReLU()),
            "output of Sequential: the network ends in the ReLU of 0, and a readout has none; leave the last ReLU out",
        ),
        (Forward(lambda self, x: (self.a(x), x), a=conv()), "output of Forward: it is a tuple and not one tensor"),
        (
            Forward(lambda self, x: self.a.weight.clone(), a=conv()),
            "output of Forward: it is a Tensor and not one tensor ",
        ),
        (
            nn.Sequential(conv(), nn.Flatten(2)),
            "output of Sequential: it has the shape (4, 16); return logits of shape",
        ),
        (
            nn.Sequential(conv(3, 4), nn.ReLU(), conv(4, 2)),
            "0 (Conv2d): torch refuses it: Given groups=1, weight of size [4, 3",
        ),
        (
            Forward(lambda self, x: self.a(x) + torch.arange(2.0).reshape(2, 1, 1, 1), a=conv()),
            "a (Conv2d): its constant differs from sample to sample",
        ),
        (Forward(lambda self, x: functional.conv2d(x, x)), "conv2d in Forward: an activation stands where a param"),
        (
            Forward(lambda self, x: (x.mean((2, 3)) + x.mean(3).mean(2, keepdim=True)).flatten(1)),
            "add in Forward: mixes the samples of a batch",
        ),
        (
            Forward(lambda self, x: self.a.weight @ torch.zeros(5) + x, a=conv()),
            "matmul in Forward: it fails: size mism",
        ),
    ],
)
def test_outputs_and_shapes_that_make_no_network(model: nn.Module, finding: str) -> None:
    found = refusals(model, (2, 6, 6))
    assert len(found) == 1
    assert found[0].startswith(finding)


@pytest.mark.parametrize("limit", [0, -1, 2.5, "many"])
def test_a_limit_that_is_no_number_of_weights_is_refused(limit: Any) -> None:
    for function in (import_model, inspect_model):
        with pytest.raises(
            Refused,
            match=r"^dense_limit: .* is no (number of weights; give a positive integer|integer; give a whole number)$",
        ):
            function(nn.Linear(3, 3), (3,), dense_limit=limit)


@pytest.mark.parametrize("shape", [(), (2, 0), (0,), (1, 2, 3, 4)])
def test_an_input_shape_that_is_neither_a_vector_nor_an_image_is_refused(shape: Shape) -> None:
    for function in (import_model, inspect_model):
        with pytest.raises(Refused, match=r"^input_shape: .*; give \(C, H, W\), \(C, L\) or \(N,\), without"):
            function(nn.Linear(3, 3), shape)


def test_hooks_and_parametrisations_that_compute_weights_anew_are_refused() -> None:
    hooked = nn.Sequential(conv(), nn.Flatten(), nn.Linear(64, 3))
    hooked[0].register_forward_hook(lambda module, args, output: output * 2)
    assert refusals(hooked, (2, 6, 6)) == [
        "0: a forward hook may change what it computes; remove its hooks (torch.nn.utils.remove_weight_norm, "
        "prune.remove, handle.remove)"
    ]
    parametrised = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)))
    assert refusals(parametrised, (4,)) == [
        "0 (ParametrizedLinear): its weights are computed anew at every call; call "
        "torch.nn.utils.parametrize.remove_parametrizations first"
    ]
