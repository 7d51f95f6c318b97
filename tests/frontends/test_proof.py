"""Every import proves itself: what converts equals the model, and all else is refused where the two part."""

from __future__ import annotations

import copy
import random
import types
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from importing import agree, conv, randomise, refusals
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from sim.findings import Refused
from toolchain.frontends import import_model, inspect_model
from toolchain.frontends.affine import Affine
from toolchain.frontends.registry import FUNCTIONS, MODULES, Handler
from toolchain.graph.activations import QCFS

SHAPE = (2, 4, 4)

# ---- random models --------------------------------------------------------------------------------------------------

Step = Callable[["Drawn", list[Tensor], int, int], None]


class Drawn(nn.Module):
    """Runs drawn steps on a list of feature maps (B, 4, 4, 4), in which several names may stand for one."""

    def __init__(self, g: random.Random, steps: list[Step]) -> None:
        super().__init__()
        self.steps = [(step, g.randrange(100), g.randrange(100)) for step in steps]
        self.first, self.maps = nn.Conv2d(2, 4, 1), nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.act, self.head = nn.ReLU(inplace=True), nn.Linear(4, 3)
        self.shift = nn.Parameter(torch.zeros(4))
        self.register_buffer("prior", torch.zeros(1, 4, 4, 4))
        self.calls = 0
        randomise(self, g.randrange(1 << 30))

    def forward(self, x: Tensor) -> Tensor:
        h = functional.relu(self.first(x))
        values = [h, h, self.maps[0](h)]
        for step, i, k in self.steps:
            step(self, values, i % len(values), k % len(values))
        total = values[0] * 1.0
        for value in values[1:]:
            total = total + value
        return self.head(total.mean((2, 3)))


def stepped(change: Callable[[Drawn, Tensor, Tensor], Tensor | None]) -> Step:
    """Make a step of a function of two values that may change the first, and may return another."""

    def step(self: Drawn, values: list[Tensor], i: int, k: int) -> None:
        result = change(self, values[i], values[k])
        if result is not None:
            values.append(result)

    return step


def augmented(self: Drawn, values: list[Tensor], i: int, k: int) -> None:
    values[i] += values[k]


def halved(self: Drawn, values: list[Tensor], i: int, k: int) -> None:
    y = values[i]
    y *= 0.5
    y -= 0.1


def divided(self: Drawn, values: list[Tensor], i: int, k: int) -> None:
    values[i] /= 3
    values.append(values[i].detach())


def channels_last(self: Drawn, x: Tensor, y: Tensor) -> None:
    view = x.permute(0, 2, 3, 1)
    view += self.shift


def part(self: Drawn, x: Tensor, y: Tensor) -> None:
    x[:, 1:3] += y[:, :2] * 0.5


def assigned(self: Drawn, x: Tensor, y: Tensor) -> None:
    x[:, 2:, ::2] = y[:, :2, ::2] + 1.0


def half_rectified(self: Drawn, x: Tensor, y: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    a.relu_()
    return torch.cat([b, a], 1)


def accumulated(self: Drawn, x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros(x.size(0), 4, 4, 4)
    same = total
    for value in (x, y):
        total += value
    same[:, 0] = 0.5
    return total


def accumulated_like(self: Drawn, x: Tensor, y: Tensor) -> Tensor:
    total = x.new_zeros(x.shape)
    total.add_(y)
    total[:, :2].sub_(x[:, 2:])
    return total


def prior(self: Drawn, x: Tensor, y: Tensor) -> Tensor:
    total = self.prior.repeat(len(x), 1, 1, 1)
    total += x
    total += self.shift.view(4, 1, 1)
    return total


def typed(self: Drawn, x: Tensor, y: Tensor) -> Tensor:
    x = x - 0.25 if isinstance(x, Tensor) else x
    x = x * 2 if torch.is_tensor(x) and x.is_floating_point() else x
    return x / 3 if x.dtype == torch.float32 or x.dtype == torch.float64 else x


def constant_branch(self: Drawn, x: Tensor, y: Tensor) -> Tensor:
    weight = torch.arange(4.0)
    weight += 1
    return x * weight.view(1, 4, 1, 1) if weight.sum() > 3 else y


#: What the importer takes.
MENDED: list[Step] = [
    augmented,
    halved,
    divided,
    *map(
        stepped,
        (
            lambda self, x, y: self.maps[0](x),
            lambda self, x, y: functional.relu(self.maps[1](x)),
            lambda self, x, y: self.act(self.maps[1](x) + y),
            lambda self, x, y: x,
            lambda self, x, y: x.clone().add_(y, alpha=0.5),
            lambda self, x, y: x.transpose(2, 3),
            channels_last,
            part,
            assigned,
            half_rectified,
            accumulated,
            accumulated_like,
            prior,
            typed,
            constant_branch,
        ),
    ),
]


def counted(self: Drawn, x: Tensor, y: Tensor) -> Tensor:
    self.calls += 1
    return x * (1 + 0.1 * self.calls)


#: What it cannot see, or cannot take.
TRAPS: list[Step] = [
    stepped(trap)
    for trap in (
        lambda self, x, y: x / x.shape[0],
        lambda self, x, y: x * len(x) - y.mean((2, 3), keepdim=True),
        lambda self, x, y: x * 2 if type(x) is Tensor else x,
        lambda self, x, y: x * 2 if type(x).__name__ == "Tensor" else y,
        lambda self, x, y: x + 0.1 * torch.rand(1),
        lambda self, x, y: x - x.mean(0, keepdim=True),
        lambda self, x, y: x if x.sum() > 0 else y,
        lambda self, x, y: x + x.data.numpy().sum() if not isinstance(x, torch.fx.Proxy) else x,
        lambda self, x, y: x * (x > 0),
        lambda self, x, y: torch.add(x, y, out=x),
        lambda self, x, y: x[torch.arange(len(x)).flip(0)],
        counted,
    )
]


def leaky(self: nn.Module, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, 0.1)


def doubled(self: nn.Conv2d, x: Tensor) -> Tensor:
    return 2 * functional.conv2d(x, self.weight, self.bias)


def drawn(seed: int, traps: bool) -> Drawn:
    g = random.Random(seed)
    steps = [g.choice(MENDED) for _ in range(g.randint(1, 5))]
    if traps:
        steps.insert(g.randint(0, len(steps)), g.choice(TRAPS))
    model = Drawn(g, steps)
    if traps and g.random() < 0.2:
        layer: Any = g.choice([model.maps[0], model.act])
        layer.forward = types.MethodType(doubled if layer is model.maps[0] else leaky, layer)
    return model.train(g.random() < 0.5)


def outcome(model: Drawn) -> str | float:
    """Import; returns how far the graph lies from the model, or why it was refused."""
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    try:
        graph = import_model(model, SHAPE)
    except Refused as refused:
        return str(refused)
    finally:
        assert model.calls == 0
        assert [m.training for m in model.modules()] == modes
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    x = torch.randn(7, *SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(x.clone()).double()
    return float((graph.precise().logits(x.double()) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("chunk", range(8))
def test_random_models_that_change_values_in_place_and_branch_on_types_are_imported_exactly(chunk: int) -> None:
    results = {seed: outcome(drawn(seed, traps=False)) for seed in range(20 * chunk, 20 * chunk + 20)}
    assert {seed: result for seed, result in results.items() if isinstance(result, str) or result > 1e-5} == {}


@pytest.mark.parametrize("chunk", range(8))
def test_random_models_that_the_importer_cannot_see_through_are_refused_and_never_wrong(chunk: int) -> None:
    results = {seed: outcome(drawn(seed, traps=True)) for seed in range(20 * chunk, 20 * chunk + 20)}
    assert {seed: result for seed, result in results.items() if not isinstance(result, str) and result > 1e-5} == {}
    assert sum(isinstance(result, str) for result in results.values()) > 8


# ---- the comparison itself ------------------------------------------------------------------------------------------


def network() -> nn.Module:
    return randomise(
        nn.Sequential(
            conv(), nn.BatchNorm2d(4), nn.ReLU6(), conv(4, 4, 2), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten(),
            nn.Linear(4, 3)
        )
    )  # fmt: skip


WRONG = {
    "0 (Conv2d)": (nn.Conv2d, lambda value, m: replace(value, constant=value.constant * 1.01)),
    "1 (BatchNorm2d)": (nn.BatchNorm2d, lambda value, m: replace(value, constant=value.constant + 1e-4)),
    "2 (ReLU6)": (nn.ReLU6, lambda value, m: replace(value, upper=5.0)),
    "4 (AvgPool2d)": (nn.AvgPool2d, lambda value, m: replace(value, terms=value.terms + value.terms)),
    "6 (Flatten)": (nn.Flatten, lambda value, m: value.selected(value.positions().flip(1), value.constant)),
    "7 (Linear)": (nn.Linear, lambda value, m: replace(value, constant=torch.zeros_like(value.constant))),
}


@pytest.mark.parametrize("where", WRONG)
def test_an_importer_that_gets_one_module_wrong_is_caught_with_the_module_named(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, spoil = WRONG[where]
    import_model(network(), (2, 6, 6))
    handler, arguments = MODULES[kind]

    def wrong(input: Affine, *args: Any) -> Any:
        return spoil(handler.function(input, *args), args)

    monkeypatch.setitem(MODULES, kind, (Handler(wrong, handler.several, handler.names), arguments))
    (found,) = refusals(network(), (2, 6, 6))
    assert found.startswith(f"{where}: it computes something else than the importer sees: the network would be off by ")
    row = next(row for row in inspect_model(network(), (2, 6, 6)) if f"{row.path} ({row.kind})" == where)
    assert row.fate.startswith("refused: it computes something else than the importer sees")


def test_a_wrong_function_is_caught_with_the_module_that_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = FUNCTIONS[torch.add]
    monkeypatch.setitem(FUNCTIONS, torch.add, replace(handler, function=lambda a, b: handler.function(a, b, alpha=2)))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.add(self.a(x), x).relu())

    (found,) = refusals(randomise(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Block())), (4,))
    assert found.startswith("2 (Block): it computes something else than the importer sees, before it calls 2.b: the n")


def head(function: Callable[[Any, Tensor], Tensor], **modules: nn.Module) -> nn.Module:
    return randomise(Forward(function, fc=nn.Linear(4, 4), out=nn.Linear(4, 3), **modules))


def test_what_depends_on_the_number_of_samples_is_refused_as_such() -> None:
    (found,) = refusals(head(lambda self, x: self.out(self.fc(x).relu() / x.shape[0])), (4,))
    assert found.startswith(
        "Forward: its result depends on the number of samples, before it calls out: the network wou"
    )
    assert found.endswith("; keep the batch as the first dimension and treat every sample alike")
    (found,) = refusals(head(lambda self, x: self.out(self.fc(x.view(2, 4)))), (4,))
    assert found.startswith(
        "Forward: it fails on batches of 5 and 3 samples: shape '[2, 4]' is invalid for input of siz"
    )


@pytest.mark.parametrize(
    "noise",
    [lambda x: torch.rand(1), lambda x: random.random(), lambda x: float(np.random.rand())],  # noqa: NPY002
)
def test_a_forward_that_is_random_in_eval_mode_is_refused_as_such(noise: Callable[[Tensor], Any]) -> None:
    model = head(lambda self, x: self.out(self.fc(x).relu() + noise(x)))
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    (found,) = refusals(model, (4,))
    assert found.startswith("Forward: it gives another result at every call, by ")
    assert found.endswith("; take out what is random, or what it remembers from call to call")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002


class Remembering(nn.Module):
    """Keeps what it has seen in a buffer, a tensor, a number and a list."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.fc, self.weight = nn.Linear(4, 3), weight
        self.register_buffer("mean", torch.zeros(4))
        self.plain, self.count, self.seen = torch.zeros(4), 0, [0]

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.seen.append(self.count)
        self.plain += 1
        self.mean += 1
        return self.fc(x + self.weight * self.mean)


def test_what_a_forward_remembers_is_refused_where_it_matters_and_never_kept() -> None:
    for weight in (0.0, 1.0):
        model = Remembering(weight)
        if weight:
            assert refusals(model, (4,))[0].startswith("Remembering: it gives another result at every call")
        else:
            import_model(model, (4,))
        assert (model.count, model.seen) == (0, [0])
        assert not model.plain.any()
        assert not model.mean.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_forward_is_told_the_type_of_the_models_weights(dtype: torch.dtype) -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    twice = head(lambda self, x: self.out(self.fc(x * 2 if x.dtype == torch.float32 else x).relu())).to(dtype)
    with torch.no_grad():
        assert torch.allclose(import_model(twice, (4,)).logits(x).to(dtype), twice(x.to(dtype)), atol=1e-5)


def test_a_forward_that_computes_something_else_in_its_own_type_is_refused_as_such() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        h = self.fc(x)
        return self.out((h.mul(2) if type(h) is Tensor and h.dtype == torch.float32 else h).relu())

    (found,) = refusals(head(forward), (4,))
    assert found.startswith("Forward: in float32 it computes something else than in float64, before it calls out: the ")
    assert found.endswith("; let nothing depend on the type of the numbers")


def test_layers_whose_forward_was_replaced_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    subclass = "derive a class with a forward of its own, which is traced"
    model = network()
    model[3].forward = types.MethodType(doubled, model[3])
    model[5].forward = lambda x: functional.leaky_relu(x, 0.1)
    model[0]._conv_forward = lambda x, weight, bias: functional.conv2d(x, weight, bias, dilation=2)
    assert refusals(model, (2, 6, 6)) == [
        f"0: its _conv_forward was replaced on the instance; {subclass}",
        f"3: its forward was replaced on the instance; {subclass}",
        f"5: its forward was replaced on the instance; {subclass}",
    ]
    whole = nn.Sequential(nn.Linear(4, 3))
    whole.forward = lambda x: whole[0](2 * x)
    assert refusals(whole, (4,)) == [f"Sequential: it was replaced on the instance; {subclass}"]
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: functional.linear(x, 2 * self.weight, self.bias))
    assert refusals(nn.Sequential(nn.Linear(4, 3)), (4,)) == [f"0: the forward of Linear was replaced; {subclass}"]


def test_a_module_with_a_method_of_its_own_as_forward_is_traced_into() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 3)))
    model[1].forward = types.MethodType(lambda self, x: self[0](x * 2), model[1])
    model.forward = types.MethodType(lambda self, x: self[1](self[0](x).relu()), model)
    agree(model, (4,))


def test_weights_that_are_no_real_floating_point_numbers_are_refused_by_name_and_type() -> None:
    remedy = "give real floating-point numbers; of integer levels the levels times their scale"
    for weight in (torch.ones(3, 4, dtype=torch.int8), torch.ones(3, 4) > 0, torch.ones(3, 4, dtype=torch.complex64)):
        model = nn.Sequential(nn.Linear(4, 3))
        model[0].weight = nn.Parameter(weight, requires_grad=False)
        kind = str(weight.dtype).removeprefix("torch.")
        assert refusals(model, (4,)) == [f"0.weight: its type is {kind}; {remedy}"]
    model.register_buffer("levels", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
    assert f"levels: its type is qint8; {remedy}" in refusals(model, (4,))


def test_the_error_of_an_import_is_that_of_float64_and_a_graph_made_by_hand_has_none() -> None:
    graph = import_model(network(), (2, 6, 6))
    assert graph.import_error is not None
    assert 0 < graph.import_error < 1e-12
    assert replace(graph, import_error=None).import_error is None


def test_calibration_inputs_are_compared_too() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.out(self.fc(x / 2 if type(x) is Tensor and x.max() > 1e6 else x).relu())

    model, samples = head(forward), torch.ones(200, 4)
    import_model(model, (4,), samples=samples)
    with pytest.raises(Refused, match=r"^Forward: it computes something else than the importer sees, before it calls"):
        import_model(model, (4,), samples=1e7 * samples)
    with pytest.raises(Refused, match=r"^samples: shape \(200, 4\); give model inputs of shape \(N, 5\)$"):
        import_model(head(forward), (5,), samples=samples)


def test_a_module_that_is_called_in_another_ones_place_is_named() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        again = type(x) is Tensor and x.max() > 1e6
        x = self.fc(x).relu()
        return self.out(self.fc(x) if again else x)

    with pytest.raises(Refused, match=r"than the importer sees, and does not call out at the same time: the network"):
        import_model(head(forward), (4,), samples=torch.full((200, 4), 1e7))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_models_of_other_types_prove_themselves_in_theirs(dtype: torch.dtype) -> None:
    import_model(network().to(dtype), (2, 6, 6))


def test_a_forward_that_brings_tensors_of_its_own_type_is_compared_in_float64_too() -> None:
    kernel = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    model = Forward(lambda self, x: self.head(functional.conv2d(x.float(), kernel).relu()), head=conv(4, 2))
    assert (import_model(model, (2, 7, 7)).import_error or 1) < 1e-6


def test_a_staircase_is_compared_where_rounding_may_take_another_step() -> None:
    model = randomise(nn.Sequential(nn.Linear(4, 64), QCFS(4), nn.Linear(64, 64), QCFS(4), nn.Linear(64, 3)))
    with torch.no_grad():  # every current of the first layer lies on an edge of a step for inputs of zero
        model[0].bias.fill_(float(model[1].threshold) / 8)
    import_model(model, (4,), samples=torch.zeros(8, 4))


@pytest.mark.numbers
@pytest.mark.parametrize("seed", [2, 9])
def test_neurons_that_fall_off_their_step_in_single_precision_refuse_no_network(seed: int) -> None:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for channels in (3, *[16] * 7):
        layers += [nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), QCFS(4, 2.0)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 256, 10))
    with torch.no_grad():
        for _ in range(30):  # batch normalisation learns what there is
            model(torch.randn(32, 3, 16, 16))
    # About one in ten falls so far that its outputs are off by a tenth; torch's sums decide which.
    import_model(model.eval(), (3, 16, 16), samples=torch.randn(64, 3, 16, 16))
