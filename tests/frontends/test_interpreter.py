"""Changes in place, what is left alone, and the report on every operation."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from importing import agree, conv, only_map, randomise
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from toolchain.frontends import LayerReport, import_model, inspect_model


@pytest.mark.parametrize(
    "change",
    [
        lambda self, x: functional.relu(x, inplace=True),
        lambda self, x: x.relu_(),
        lambda self, x: torch.relu_(x),
        lambda self, x: self.act(x),
        lambda self, x: x.add_(1.5).relu(),
        lambda self, x: functional.relu(x, True),
    ],
)
def test_a_change_in_place_is_seen_by_every_later_use(change: Callable[[Any, Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        alias = self.dropout(x)
        y = change(self, x)
        return self.head(self.second(y) + alias)

    agree(
        Forward(
            forward,
            first=conv(padding=1),
            dropout=nn.Dropout(),
            second=conv(4, 4, padding=1),
            head=conv(4, 2),
            act=nn.ReLU(inplace=True),
        ),
        (2, 5, 5),
    )


def test_a_change_in_place_of_a_clone_leaves_the_original() -> None:
    def changed(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x.clone().relu_() + x)

    agree(Forward(changed, first=conv(padding=1), head=conv(4, 2)), (2, 5, 5))

    def forward(self: Any, x: Tensor) -> Tensor:
        spikes = self.first(x).relu()
        again = spikes.relu()
        again += 1.0
        return self.head(spikes - again.clone())

    agree(Forward(forward, first=conv(padding=1), head=conv(4, 2)), (2, 5, 5))


def test_a_change_in_place_is_seen_under_another_shape() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        flat = x.flatten(1)
        functional.relu(x, inplace=True)
        return self.head(flat)

    agree(Forward(forward, first=conv(padding=1), head=nn.Linear(100, 2)), (2, 5, 5))


def test_a_change_in_place_leaves_the_parts_of_a_value_that_it_does_not_touch() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        a, b = self.first(x).chunk(2, dim=1)
        return self.head(torch.cat([a.relu_(), b], 1))

    agree(Forward(forward, first=conv(), head=conv(4, 2)), (2, 6, 6))

    def transposed(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        y = x.transpose(2, 3)
        return self.head(x.relu_() + y)

    agree(Forward(transposed, first=conv(), head=conv(4, 2)), (2, 6, 6))


def accumulated(self: Any, x: Tensor) -> Tensor:
    total = torch.zeros(x.size(0), 4, 5, 5)
    same, h = total, self.first(x).relu()
    for scale in (1.0, 0.5):
        total += h * scale
    return self.head(same + h)


def copied(self: Any, x: Tensor) -> Tensor:
    h = self.first(x).relu()
    total = self.prior.repeat(len(x), 1, 1, 1)
    total.add_(h)
    other = torch.empty_like(h).copy_(total)
    other[:, :2].zero_()
    return self.head(total - other)


def put_together(self: Any, x: Tensor) -> Tensor:
    h = self.first(x)
    whole = h.new_zeros(len(h), 4, 5, 5)
    whole[:, :3] = h[:, 1:]
    whole[:, 3, 1:4] = 0.5
    whole[:, :, ::2] -= self.shift.view(4, 1, 1)
    return self.head(whole.relu())


def through_views(self: Any, x: Tensor) -> Tensor:
    h = self.first(x)
    last = h.permute(0, 2, 3, 1)
    last += self.shift
    first, _ = h.chunk(2, 1)
    functional.relu(first, inplace=True)
    return self.head(h + last.permute(0, 3, 1, 2).detach())


@pytest.mark.parametrize("forward", [accumulated, copied, put_together, through_views])
def test_memory_that_a_forward_writes_to_holds_what_torch_would_hold(forward: Callable[[Any, Tensor], Tensor]) -> None:
    model = Forward(forward, first=conv(padding=1), head=conv(4, 2))
    model.shift = nn.Parameter(torch.zeros(4))
    model.register_buffer("prior", torch.zeros(1, 4, 5, 5))
    agree(model, (2, 5, 5))


def test_a_weight_that_is_changed_after_its_use_was_another_before() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        scale = torch.ones(4) * 0.5
        y = self.first(x) * scale
        scale += 2
        return self.last(y * scale)

    agree(Forward(forward, first=nn.Linear(4, 4), last=nn.Linear(4, 2)), (4,))


def test_memory_that_torch_would_not_write_to_is_refused() -> None:
    def spread(self: Any, x: Tensor) -> Tensor:
        total = torch.ones(4).expand(len(x), 4)
        total += x
        return self.fc(total)

    def whole_numbers(self: Any, x: Tensor) -> Tensor:
        total = torch.ones(len(x), 4, dtype=torch.int64)
        total += self.fc(x)
        return total

    for forward, problem in ((spread, "more than one element of the written-to tensor"), (whole_numbers, r"\(2, 4\)")):
        with pytest.raises(Refused, match=f"iadd in Forward: torch refuses it: .*{problem}"):
            import_model(Forward(forward, fc=nn.Linear(4, 4)), (4,))


def test_the_model_is_left_as_it_was() -> None:
    model = randomise(
        nn.Sequential(
            conv(),
            nn.BatchNorm2d(4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(16, 3),
        )
    )
    model[1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    inspect_model(model, (2, 6, 6))
    with pytest.raises(Refused):
        import_model(model, (2, 6, 6))
    assert [m.training for m in model.modules()] == modes
    assert all(
        torch.equal(tensor, before[name]) and tensor.dtype == before[name].dtype
        for name, tensor in model.state_dict().items()
    )
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_graph_shares_no_memory_with_the_model() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    graph = import_model(model, (3,))
    kept = only_map(graph.layers[0]).weight.clone()
    model[0].weight.data.zero_()
    assert torch.equal(only_map(graph.layers[0]).weight, kept)
    assert not only_map(graph.layers[0]).weight.requires_grad


def test_the_report_has_one_row_for_every_module_and_operation() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.norm(self.conv(x))))
        return self.fc(torch.flatten(x, 1))

    model = Forward(forward, conv=conv(), norm=nn.BatchNorm2d(4), pool=nn.AvgPool2d(2), fc=nn.Linear(16, 3))
    assert inspect_model(model, (2, 6, 6)) == [
        LayerReport("conv", "Conv2d", (4, 4, 4), "spiking layer conv"),
        LayerReport("norm", "BatchNorm2d", (4, 4, 4), "folded into conv"),
        LayerReport("Forward", "relu", (4, 4, 4), "folded into conv"),
        LayerReport("pool", "AvgPool2d", (4, 2, 2), "folded into fc"),
        LayerReport("Forward", "flatten", (16,), "folded into fc"),
        LayerReport("fc", "Linear", (3,), "readout"),
    ]


def test_the_report_leaves_the_samples_out_of_a_shape_wherever_they_lie() -> None:
    model = Forward(lambda self, x: self.fc(x.movedim(0, 1).flatten(2).movedim(1, 0).flatten(1)), fc=nn.Linear(72, 3))
    shapes = [row.shape for row in inspect_model(model, (2, 6, 6))]
    assert shapes == [(2, 6, 6), (2, 36), (2, 36), (72,), (3,)]


def test_the_report_goes_on_after_a_refusal() -> None:
    model = nn.Sequential(
        conv(padding=1), nn.ReLU(), conv(4, 4), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    )
    rows = inspect_model(model, (2, 6, 6))
    assert [(row.path, row.kind, row.shape, row.fate) for row in rows] == [
        ("0", "Conv2d", (4, 6, 6), "spiking layer 0"),
        ("1", "ReLU", (4, 6, 6), "folded into 0"),
        ("2", "Conv2d", (4, 4, 4), "blocked by 3 (MaxPool2d)"),
        (
            "3",
            "MaxPool2d",
            (4, 2, 2),
            "refused: a maximum over spike trains is not linear; use nn.AvgPool2d "
            "(ann2loihi.replace_max_pooling) and fine-tune, or a convolution with a stride",
        ),
        ("4", "ReLU", (4, 2, 2), "spiking layer 4"),
        ("5", "Flatten", (16,), "folded into 6"),
        ("6", "Linear", (3,), "readout"),
    ]


def test_the_report_names_what_is_not_an_operation_and_what_was_not_reached() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(4, 2))
    model[0].weight.data[0, 0] = math.inf
    rows = inspect_model(model, (4,))
    assert rows[0] == LayerReport(
        "0.weight",
        "parameter",
        (3, 4),
        "refused: 1 of 12 values are NaN or infinite; train again from the last good checkpoint",
    )
    assert [row.fate for row in rows[1:3]] == ["spiking layer 0", "folded into 0"]
    assert re.search("^refused: torch refuses it: .*mat1 and mat2 shapes cannot be multiplied", rows[3].fate)
    assert inspect_model(nn.Sequential(conv(3, 4), nn.ReLU()), (2, 6, 6))[1] == LayerReport(
        "1", "ReLU", None, "not reached: what it needs is refused"
    )


def test_a_layer_behind_many_refusals_names_the_first_and_counts_the_rest() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x.tanh() + x.sigmoid() + functional.gelu(x))

    rows = inspect_model(Forward(forward, first=conv(), head=conv(4, 2)), (2, 5, 5))
    assert rows[0].fate == "blocked by tanh in Forward and 2 more"
