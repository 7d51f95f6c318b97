"""Whatever is linear is followed exactly, in whatever spelling torch and NumPy have for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from importing import agree, conv, generator, mapped_error, names, randomise, refusals
from networks import Forward
from torch import Tensor, nn
from torch.nn import functional

from toolchain.frontends import import_model
from toolchain.graph import FloatConv2d


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(sum(shape)))


def weights(x: Tensor, *, out: int = 5) -> Tensor:
    """A matrix for the last dimension of a value."""
    return drawn(x.shape[-1], out)


def square(x: Tensor) -> Tensor:
    """A matrix for its last dimension but one."""
    return drawn(3, x.shape[-2])


Function = Callable[[Tensor], Tensor]

#: Of (C, H, W) with C divisible by 4.
IMAGES: dict[str, Function] = {
    "x @ W": lambda x: x @ weights(x),
    "W @ x": lambda x: square(x) @ x,
    "matmul with a vector": lambda x: torch.matmul(x, drawn(x.shape[-1])),
    "matmul with a matrix for every channel": lambda x: torch.matmul(drawn(x.shape[1], 3, x.shape[2]), x),
    "matmul with a matrix for every sample, all alike": lambda x: (
        square(x).expand(x.size(0), x.size(1), -1, -1).matmul(x)
    ),
    "bmm": lambda x: torch.bmm(x.flatten(2), drawn(x.shape[2] * x.shape[3], 2).expand(len(x), -1, -1)),
    "bmm from the left": lambda x: drawn(2, x.shape[1]).repeat(len(x), 1, 1).bmm(x.flatten(2)),
    "baddbmm": lambda x: torch.baddbmm(
        drawn(1, 1, 3), x.flatten(2), drawn(x.shape[2] * x.shape[3], 3).expand(len(x), -1, -1), beta=2, alpha=0.5
    ),
    "einsum over channels": lambda x: torch.einsum("bchw,co->bohw", x, drawn(x.shape[1], 3)),
    "einsum, ellipsis": lambda x: torch.einsum("...w,wo->...o", x, weights(x)),
    "einsum, two constants": lambda x: torch.einsum("hi,bchw,wj->bcij", square(x).t(), x, weights(x)),
    "einsum, operands in a list": lambda x: torch.einsum("bchw,cw->bh", [x, drawn(x.shape[1], x.shape[3])]),
    "tensordot": lambda x: torch.tensordot(x, drawn(x.shape[2], x.shape[3], 5), dims=2),
    "inner": lambda x: torch.inner(x, weights(x).t()),
    "linear over the last dimension": lambda x: functional.linear(x, weights(x).t(), drawn(5)),
    "bilinear with a constant": lambda x: functional.bilinear(
        x, drawn(2).expand(*x.shape[:-1], 2), drawn(3, x.shape[-1], 2), drawn(3)
    ),
    "bilinear with a constant before": lambda x: functional.bilinear(
        torch.ones(*x.shape[:-1], 2), x, drawn(3, 2, x.shape[-1])
    ),
    "interpolate, nearest": lambda x: functional.interpolate(x, scale_factor=2),
    "interpolate, nearest, to a size": lambda x: functional.interpolate(x, (5, 11)),
    "interpolate, nearest-exact": lambda x: functional.interpolate(x, scale_factor=1.5, mode="nearest-exact"),
    "interpolate, bilinear": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "interpolate, corners": lambda x: functional.interpolate(x, (9, 3), mode="bilinear", align_corners=True),
    "interpolate, bicubic": lambda x: functional.interpolate(x, (9, 7), mode="bicubic"),
    "interpolate, area": lambda x: functional.interpolate(x, (3, 2), mode="area"),
    "interpolate, antialias": lambda x: functional.interpolate(x, (3, 2), mode="bilinear", antialias=True),
    "sampling at constant places": lambda x: functional.grid_sample(
        x, torch.linspace(-1, 1, 24).reshape(1, 3, 4, 2).expand(len(x), -1, -1, -1), align_corners=False
    ),
    "pixel_shuffle": lambda x: functional.pixel_shuffle(x, 2),
    "pixel_unshuffle": lambda x: functional.pixel_unshuffle(x.repeat(1, 1, 2, 4), downscale_factor=2),
    "channel_shuffle": lambda x: torch.channel_shuffle(x, 2),
    "unfold": lambda x: functional.unfold(x, (2, 3), padding=1, stride=2),
    "fold": lambda x: functional.fold(functional.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    "unfold along a dimension": lambda x: x.unfold(2, 3, 1),
    "pad, reflect": lambda x: functional.pad(x, (1, 2, 2, 1), mode="reflect"),
    "pad, replicate": lambda x: functional.pad(x, (3, 0, 1, 2), "replicate"),
    "pad, circular": lambda x: functional.pad(x, (1, 2, 0, 3), "circular"),
    "pad, constant": lambda x: functional.pad(x, (1, 0), value=-0.75),
    "constant_pad_nd": lambda x: torch.constant_pad_nd(x, (0, 1, 2, 0), 1.5),
    "uneven adaptive pooling": lambda x: functional.adaptive_avg_pool2d(x, (3, 2)),
    "conv_transpose2d": lambda x: functional.conv_transpose2d(x, drawn(x.shape[1], 3, 3, 2), drawn(3), (2, 3), 1),
    "conv_transpose2d of one step": lambda x: functional.conv_transpose2d(x, drawn(x.shape[1], 2, 3, 3), padding=1),
    "stack": lambda x: torch.stack((x, 2 * x, torch.ones_like(x)), 1),
    "hstack": lambda x: torch.hstack([x, x[:, :1]]),
    "dstack": lambda x: torch.dstack([x, x.flip(2)]),
    "concatenate": lambda x: torch.concatenate((x, x), axis=-1),
    "repeat": lambda x: x.repeat(1, 2, 1, 3),
    "tile": lambda x: x.tile(2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1),
    "repeat_interleave by tensors": lambda x: torch.repeat_interleave(x, torch.arange(x.shape[2]), 2),
    "flip": lambda x: x.flip(2, 3) + torch.fliplr(x),
    "roll": lambda x: x.roll((1, -2), (1, 3)) - torch.roll(x, 1, 2),
    "rot90": lambda x: torch.rot90(x, 3, (2, 3)),
    "narrow and select": lambda x: x.narrow(1, 1, 2) * 2 + x.select(1, -1).unsqueeze(1),
    "index_select": lambda x: torch.index_select(x, 1, torch.tensor([2, 0, 2])),
    "gather": lambda x: x.gather(3, torch.zeros(len(x), 2, 3, 4, dtype=torch.long)),
    "take_along_dim": lambda x: torch.take_along_dim(x, torch.tensor([1, 0]).reshape(1, 1, 1, 2), 3),
    "moves of dimensions": lambda x: (
        x.movedim(1, -1).moveaxis(-1, 2).swapaxes(2, 3).swapdims(1, 2).mT.adjoint().transpose(-1, 1)
    ),
    "T of a permuted value": lambda x: torch.permute(x, dims=(0, 3, 1, 2)).mT,
    "diagonals": lambda x: x.diagonal(dim1=2, dim2=3),
    "triangles": lambda x: torch.tril(x) + x.triu(1) * 2,
    "unflatten": lambda x: x.unflatten(1, (2, -1)).flatten(2),
    "ravel of samples": lambda x: torch.unflatten(x, 1, (-1, 2))[:, :, 0],
    "tensor_split": lambda x: x.tensor_split(3, dim=1)[0][:, :1] - x.hsplit(2)[1][:, :1],
    "where a mask is": lambda x: torch.where(drawn(x.shape[-1]) > 0, x, 0.1),
    "masked_fill": lambda x: x.masked_fill(drawn(x.shape[-1]) > 0, 0.3),
    "cumsum": lambda x: x.cumsum(1) + torch.cumsum(x, axis=-1),
    "diff": lambda x: x.diff(dim=2, prepend=torch.ones(len(x), x.shape[1], 1, x.shape[3])),
    "mean and sum of NumPy": lambda x: x.mean(axis=(2, 3), keepdims=True) + x.sum(axis=1, keepdims=True, dtype=x.dtype),
    "x1 and x2": lambda x: torch.add(input=x, other=1) + torch.multiply(x, torch.tensor([0.1])),
    "differences": lambda x: torch.rsub(x, 3, alpha=2) - torch.subtract(1, x).negative() + +x,
    "quotients": lambda x: x.divide(3) + torch.true_divide(x, drawn(x.shape[-1]) + 4),
    "addcmul": lambda x: torch.addcmul(drawn(1), x, drawn(x.shape[-1]), value=0.3),
    "addcdiv": lambda x: x.addcdiv(x, drawn(x.shape[-1]) + 4),
    "lerp": lambda x: torch.lerp(x, 2 * x + 1, 0.3),
    "stacked and averaged": lambda x: torch.stack([x, 2 * x, x.flip(1)]).mean(0) - torch.stack((x, x))[1] / 3,
    "matrices with the samples in the second dimension": lambda x: (
        (drawn(3, x.shape[3]) @ x[:, 0, 0].t() + drawn(3, 1)).T @ drawn(3, 4)
        + (drawn(4, x.shape[3]) @ x[:, 1, 0].T).t()
    ),
    "channels before samples": lambda x: torch.sum(x.transpose(0, 1) * 2, 3).permute(1, 0, 2),
    "one dimension more in front": lambda x: (x.unsqueeze(0) * 2 + 1).sum(4).squeeze(0),
    "expand_as and view_as": lambda x: x.mean(1, True).expand_as(x).reshape_as(x).view_as(x),
    "casts": lambda x: x.double().to(x.dtype).type_as(x).type(torch.float64).to("cpu").to(x.device).cpu(),
    "new constants": lambda x: torch.cat((x.new_zeros(len(x), 1, *x.shape[2:]), torch.zeros_like(x) + x), 1),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", IMAGES)
@settings(max_examples=4, derandomize=True, deadline=None)
@given(st.tuples(st.sampled_from([4, 8]), st.integers(3, 7), st.integers(3, 7)))
def test_a_linear_operation_is_followed_exactly(name: str, shape: tuple[int, int, int]) -> None:
    model = Forward(lambda self, x: IMAGES[name](self.shift(x)), shift=nn.BatchNorm2d(shape[0]))
    nn.init.normal_(model.shift.bias)  # a constant of the value's own
    assert mapped_error(model.eval(), shape) < 1e-9


#: Of (C, L), and of (N,).
FLAT: dict[str, tuple[Function, tuple[int, ...]]] = {
    "mm": (lambda x: x.mm(weights(x)), (6,)),
    "addmm": (lambda x: torch.addmm(drawn(5), x, weights(x), beta=0.5, alpha=2), (6,)),
    "addmm of a residual": (lambda x: torch.addmm(x, x, weights(x, out=6)), (6,)),
    "multi_dot": (lambda x: torch.linalg.multi_dot([x, weights(x), drawn(5, 3)]), (6,)),
    "a dot product for each sample": (lambda x: (x @ drawn(6)).unsqueeze(1), (6,)),
    "vstack": (lambda x: torch.column_stack([x, x]), (6,)),
    "interpolate, linear": (lambda x: functional.interpolate(x, scale_factor=2, mode="linear"), (2, 5)),
    "interpolate, nearest": (lambda x: functional.interpolate(x, 7), (2, 5)),
    "conv_transpose1d": (
        lambda x: functional.conv_transpose1d(x, drawn(4, 2, 3), drawn(4), 3, 1, output_padding=1, groups=2), (4, 5),
    ),
    "pad, circular": (lambda x: functional.pad(x, (2, 1), "circular"), (2, 5)),
    "uneven adaptive pooling": (lambda x: functional.adaptive_avg_pool1d(x, 3), (2, 5)),
    "sum into one number": (lambda x: x.sum(1).reshape(-1, 1), (6,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FLAT)
def test_a_linear_operation_on_sequences_and_vectors_is_followed_exactly(name: str) -> None:
    function, shape = FLAT[name]
    assert mapped_error(Forward(lambda self, x: function(x * 2 + 1)), shape) < 1e-9


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_every_transposed_convolution_is_zeros_between_the_values_and_a_convolution(data: Any) -> None:
    def draw(low: int, high: int) -> int:
        return data.draw(st.integers(low, high))

    groups, stride, dilation = draw(1, 2), (draw(1, 3), draw(1, 3)), (draw(1, 2), draw(1, 2))
    kernel = (draw(1, 4), draw(1, 4))
    padding = tuple(draw(0, d * (k - 1)) for d, k in zip(dilation, kernel, strict=True))
    extra = tuple(draw(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True))
    module = nn.ConvTranspose2d(4, 6, kernel, stride, padding, extra, groups, dilation=dilation)  # type: ignore[arg-type]
    shape = (4, draw(2, 5), draw(2, 5))
    try:
        module(torch.zeros(1, *shape))
    except RuntimeError:  # nothing is left of it
        return
    assert mapped_error(nn.Sequential(nn.BatchNorm2d(4, affine=False), module).eval(), shape) < 1e-9


MODULES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Upsample": (nn.Upsample(scale_factor=3), (4, 5, 6)),
    "UpsamplingBilinear2d": (nn.UpsamplingBilinear2d(size=(7, 9)), (4, 5, 6)),
    "UpsamplingNearest2d": (nn.UpsamplingNearest2d(scale_factor=2), (4, 5, 6)),
    "Upsample over sequences": (nn.Upsample(scale_factor=2, mode="linear", align_corners=True), (3, 5)),
    "ConvTranspose1d": (nn.ConvTranspose1d(3, 4, 4, 2, 1), (3, 5)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 2, 3, 2, 1, output_padding=1, groups=2), (4, 5, 6)),
    "PixelShuffle": (nn.PixelShuffle(2), (4, 5, 6)),
    "PixelUnshuffle": (nn.PixelUnshuffle(2), (3, 4, 6)),
    "ChannelShuffle": (nn.ChannelShuffle(2), (4, 5, 6)),
    "ReflectionPad1d": (nn.ReflectionPad1d((2, 1)), (3, 5)),
    "ReflectionPad2d": (nn.ReflectionPad2d((2, 1, 0, 3)), (4, 5, 6)),
    "ReplicationPad2d": (nn.ReplicationPad2d(2), (4, 5, 6)),
    "CircularPad1d": (nn.CircularPad1d(2), (3, 5)),
    "CircularPad2d": (nn.CircularPad2d(2), (4, 5, 6)),
    "ConstantPad2d": (nn.ConstantPad2d((1, 2, 0, 1), -0.5), (4, 5, 6)),
    "ZeroPad3d": (nn.ZeroPad3d((1, 2, 0, 1, 1, 0)), (4, 5, 6)),
    "Unflatten": (nn.Unflatten(1, (2, 3)), (6,)),
    "Unfold": (nn.Unfold(3, padding=1), (4, 5, 6)),
    "Fold": (nn.Fold((3, 4), 2), (8, 6)),
    "AdaptiveAvgPool1d": (nn.AdaptiveAvgPool1d(3), (3, 7)),
    "SyncBatchNorm": (nn.SyncBatchNorm(4), (4, 5, 6)),
    "InstanceNorm2d with running statistics": (
        nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (4, 5, 6),
    ),
    "AlphaDropout": (nn.AlphaDropout(), (6,)),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout(), (4, 5, 6)),
    "Dropout3d": (nn.Dropout3d(), (4, 5, 6)),
    **{
        f"Conv2d, {mode}": (nn.Conv2d(4, 3, (3, 5), padding=(1, 2), stride=2, padding_mode=mode), (4, 5, 6))
        for mode in ("reflect", "replicate", "circular")
    },
    "Conv2d, circular, same": (nn.Conv2d(4, 3, (3, 5), padding="same", padding_mode="circular"), (4, 5, 6)),
    "Conv1d, reflect": (nn.Conv1d(3, 4, 4, padding=2, dilation=2, padding_mode="reflect"), (3, 9)),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_a_linear_module_is_followed_exactly(name: str) -> None:
    module, shape = MODULES[name]
    for statistic in module.buffers():
        statistic.data = torch.rand(statistic.shape) + 0.5
    shift = Forward(lambda self, x: x * 2 + 1)
    assert mapped_error(nn.Sequential(shift, module).eval(), shape) < 1e-9


def test_linear_modules_between_layers_fold_into_them() -> None:
    graph = agree(
        nn.Sequential(
            nn.Linear(6, 16),
            nn.ReLU(),
            nn.Unflatten(1, (4, 2, 2)),
            nn.ConvTranspose2d(4, 4, 2, 2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Upsample(scale_factor=2, mode="bilinear"),
            nn.ReflectionPad2d(1),
            nn.Conv2d(4, 2, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * 64, 3),
        ),
        (6,),
    )
    assert names(graph) == ["0", "3", "8", "11"]
    assert [layer.shape for layer in graph.layers] == [(16,), (4, 4, 4), (2, 8, 8), (3,)]


def test_a_transposed_convolution_of_one_step_and_a_shuffle_of_channels_are_convolutions() -> None:
    graph = agree(
        nn.Sequential(conv(2, 4), nn.ReLU(), nn.ConvTranspose2d(4, 4, 3), nn.ReLU(), nn.ChannelShuffle(2), conv(4, 2)),
        (2, 6, 6),
    )
    assert all(isinstance(edge.map, FloatConv2d) for layer in graph.layers for edge in layer.edges)


def test_a_size_that_a_transposed_convolution_is_asked_for_is_kept() -> None:
    for asked in (lambda up, x: up(x, [10, 9]), lambda up, x: up(x, output_size=(10, 9))):
        model = Forward(lambda self, x, asked=asked: asked(self.up, x), up=nn.ConvTranspose2d(2, 3, 3, 2))
        assert mapped_error(model, (2, 4, 4)) < 1e-9


def test_products_with_constants_give_named_layers_with_the_constants_as_weights() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = (x @ self.first.weight.t() + self.first.bias).relu()
        return torch.addmm(self.last.bias, x, self.last.weight.t())

    model = Forward(forward, first=nn.Linear(6, 5), last=nn.Linear(5, 3))
    graph = agree(model, (6,))
    assert names(graph) == ["matmul", "addmm"]
    assert torch.equal(graph.layers[0].edges[0].map.weight, model.first.weight)


def test_new_tensors_have_the_type_that_is_asked_for() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x @ x.new_ones(x.shape[-1], 3, dtype=torch.float32)
        return self.last(x[:, x.new_tensor([2, 0], dtype=torch.long)].flatten(1))

    model, x = Forward(forward, last=nn.Linear(30, 3)), torch.randn(5, 4, 5, 6, generator=generator())
    with torch.no_grad():
        torch.testing.assert_close(import_model(model, (4, 5, 6)).logits(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "product",
    [
        lambda x: x @ x.mT,
        lambda x: torch.einsum("bchw,bchv->bcwv", x, x),
        lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT),
        lambda x: functional.bilinear(x, x, torch.ones(2, 4, 4)),
        lambda x: torch.addcmul(x, x, x),
        lambda x: torch.lerp(x, 2 * x, x),
    ],
)
def test_a_product_of_activations_is_refused_as_what_it_is(product: Function) -> None:
    (found,) = refusals(Forward(lambda self, x: self.a(product(self.b(x))), a=nn.Flatten(), b=conv(2, 2)), (2, 6, 6))
    assert "it multiplies activations by each other; leave the gate or the attention out" in found


@pytest.mark.parametrize(
    "mixing",
    [
        lambda x: drawn(2, 2).expand(len(x), -1)[: len(x)] @ x.flatten(1),
        lambda x: x.cumsum(0),
        lambda x: torch.baddbmm(torch.zeros(1), x.flatten(2), torch.arange(96.0).reshape(2, 16, 3)),
        lambda x: x.flip(0),
        lambda x: x.roll(1, 0),
        lambda x: torch.vstack([x, x]),
        lambda x: x.flatten(1).t(),
        lambda x: torch.stack([x, x]).relu().sum(0),
        lambda x: (torch.stack([x, x]) * torch.arange(2.0).reshape(1, 2, 1, 1, 1)).sum(0),
        lambda x: torch.stack([x, x]).sum((0, 1)).unsqueeze(0).expand(2, -1, -1, -1),
        lambda x: torch.stack([x, x]).chunk(2)[0][0],
    ],
)
def test_what_mixes_the_samples_of_a_batch_is_refused(mixing: Function) -> None:
    found = refusals(Forward(lambda self, x: mixing(self.first(x)).flatten(1), first=conv(2, 2)), (2, 6, 6))
    assert any("mixes the samples of a batch; keep the batch as the first dimension" in line for line in found)


# ---- kernels that are no parameters ---------------------------------------------------------------------------------

SOBEL = [[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]


class Kernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(4 * 4, 3)
        self.blur = torch.ones(4, 1, 3, 3) / 9  # no buffer
        self.register_buffer("gain", torch.rand(4, 1, 1, 1) + 0.5)
        self.parts = [torch.full((4, 1, 1), 0.1), torch.full((1,), 2.0)]

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.conv.weight.float() / self.conv.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
        x = functional.conv2d(x.to(self.conv.weight.dtype), kernel.to(x.device), self.conv.bias.float()).relu()
        sobel = torch.tensor(SOBEL, dtype=torch.float32, device=x.device).repeat(4, 1, 1, 1)
        kernel = self.blur * self.gain + torch.ones(1, dtype=torch.float16) * sobel + self.blur.mul(self.gain)
        x = functional.conv2d(x, kernel, groups=4, padding=1) * self.parts[1] + self.parts[0]
        matrix = torch.eye(6, dtype=torch.bfloat16)[:, ::2] + torch.zeros(6, 3).type("torch.FloatTensor")
        x = x.relu() @ torch.hann_window(6).reshape(6, 1).expand(6, 4)
        x = torch.einsum("bchw,hk->bckw", x, matrix[:, :1])
        return self.fc(x.relu().flatten(1).type(torch.float32))


def test_kernels_may_be_plain_tensors_made_in_the_forward_and_cast() -> None:
    model, x = randomise(Kernels()), torch.randn(3, 2, 8, 8, generator=generator())
    graph = import_model(model, (2, 8, 8))
    assert len(graph.layers) == 4
    with torch.no_grad():
        assert torch.allclose(graph.logits(x), model(x), atol=1e-5)
    assert model.blur.dtype == torch.float32


def test_a_cast_to_integers_is_refused() -> None:
    casts: tuple[Function, ...] = (
        lambda x: x.to(torch.int32),
        lambda x: x.type("torch.LongTensor"),
        lambda x: x.sum(1, dtype=torch.int64),
        lambda x: x.type_as(torch.zeros(1, dtype=torch.int8)),
    )
    for cast in casts:
        (found,) = refusals(Forward(lambda self, x, cast=cast: cast(self.a(x)) * 1.0, a=nn.Linear(3, 3)), (3,))
        assert "it rounds to torch.int" in found


# ---- known modules under another name -------------------------------------------------------------------------------


class Named(nn.Conv2d):
    """A subclass that adds to its base and changes nothing of it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.seen = 0

    def macs(self) -> int:
        return self.weight.numel()


class Halved(nn.Linear):
    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self._parameters["weight"] / 2


class Standardised(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Any) -> Tensor:
        return super()._conv_forward(x, weight / 3, bias)


def test_a_subclass_that_computes_the_same_is_its_base() -> None:
    model = nn.Sequential(Named(2, 4, 3), nn.ReLU(), Standardised(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    graph = agree(model, (2, 6, 6))
    assert names(graph) == ["0", "conv2d", "5"]


def test_a_subclass_that_changes_its_base_is_traced_into() -> None:
    class Half(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / 2

    agree(nn.Sequential(nn.Linear(4, 5), Half(), nn.Linear(5, 3)), (4,))


def test_an_argument_that_the_importer_does_not_know_is_named() -> None:
    model = Forward(lambda self, x: torch.mean(self.a(x), (2, 3), out=torch.empty(0)), a=conv())
    (found,) = refusals(model, (2, 6, 6))
    assert found == (
        "mean in Forward: it is called as the importer does not know it: got an unexpected keyword argument 'out'; "
        "leave that argument out"
    )


def test_import_leaves_plain_tensors_as_they_are() -> None:
    model = Kernels()
    before = model.blur.clone()
    import_model(model, (2, 8, 8))
    assert torch.equal(model.blur, before)
