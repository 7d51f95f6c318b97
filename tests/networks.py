"""Networks as people write them, for every test that needs one: each builds an untrained model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sim.network import Shape
from toolchain.loading import load_model
from toolchain.surgery import replace_max_pooling

ROOT = Path(__file__).parents[1]
RESNET20 = f"{ROOT / 'examples' / 'resnet20.py'}:resnet20"


class Forward(nn.Module):
    """Modules by name, and a function of them and the input."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(c_in: int, c_out: int, **options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False, **options), nn.BatchNorm2d(c_out))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)
    )


def lenet() -> nn.Module:
    model = nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)),
    )
    return replace_max_pooling(model)


def vgg(layers: int, narrower: int = 1) -> nn.Module:
    """VGG-11 or VGG-16 of torchvision with batch normalisation, average pooling and a small classifier."""
    from torchvision.models import vgg

    plan = [n if isinstance(n, str) else n // narrower for n in vgg.cfgs[{11: "A", 16: "D"}[layers]]]
    model = vgg.VGG(vgg.make_layers(plan, batch_norm=True))
    model.classifier[0], model.classifier[3], model.classifier[6] = (
        nn.Linear(512 // narrower * 7 * 7, 32),
        nn.Linear(32, 32),
        nn.Linear(32, 10),
    )
    return replace_max_pooling(model)


def resnet20() -> nn.Module:
    return load_model(RESNET20)


def torchvision_resnet(name: str) -> nn.Module:
    model = torchvision(name, num_classes=10)
    model.maxpool = nn.AvgPool2d(2)
    return model


def mobilenet() -> nn.Module:
    return torchvision("mobilenet_v2", num_classes=10, width_mult=0.25)


def torchvision(name: str, **options: Any) -> Any:
    from torchvision import models

    known = models.list_models()
    return models.get_model(name, weights=None, **options) if name in known else getattr(models, name)(**options)


class DenseBlock(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(functional.relu(self.norm(x)))], 1)


def densely_connected() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *(DenseBlock(8 + 4 * i, 4) for i in range(3)),
        *(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2), DenseBlock(10, 4), nn.BatchNorm2d(14)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(14, 5)),
    )


def depthwise_separable() -> nn.Module:
    def block(c_in: int, c_out: int, stride: int) -> tuple[nn.Module, ...]:
        depthwise = nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False), nn.BatchNorm2d(c_in), nn.ReLU()
        return *depthwise, nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()

    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), *block(8, 12, 2), *block(12, 16, 1), *head)


def residual_sequence() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.pool(functional.relu(self.norm1(self.first(x))))
        x = functional.relu(self.norm2(self.second(x)) + self.shortcut(x))
        return self.fc(functional.adaptive_avg_pool1d(x, 1).squeeze(-1))

    first, second = nn.Conv1d(2, 8, 7, stride=2, padding=3), nn.Conv1d(8, 8, 3, padding=2, dilation=2)
    norms = {"norm1": nn.BatchNorm1d(8), "norm2": nn.BatchNorm1d(8)}
    rest = {"pool": nn.AvgPool1d(2), "shortcut": nn.Conv1d(8, 8, 1), "fc": nn.Linear(8, 4)}
    return Forward(forward, first=first, second=second, **norms, **rest)


def residual() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        out = self.second(functional.relu(self.first(x)))
        out += functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.head(functional.relu(out).mean((2, 3)))

    return Forward(forward, stem=conv(2, 4), first=conv(4, 6, stride=2), second=conv(6, 6), head=nn.Linear(6, 3))


def concatenated() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = functional.relu(self.stem(x))
        x = torch.cat([x, functional.relu(self.first(x))], 1)
        x = torch.cat([x, functional.relu(self.second(x))], 1)
        return self.head(functional.avg_pool2d(x, 4).flatten(1))

    return Forward(forward, stem=conv(2, 4), first=conv(4, 3), second=conv(7, 3), head=nn.Linear(10, 3))


def depthwise() -> nn.Module:
    return nn.Sequential(
        conv(2, 6), nn.ReLU6(), conv(6, 6, groups=6), nn.ReLU6(), nn.Conv2d(6, 4, 1), nn.ReLU6(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.Conv1d(4, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(8, 3),
    )  # fmt: skip


def zero_channels() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = torch.cat([x, torch.zeros(x.size(0), 2, x.size(2), x.size(3))], 1)
        return self.head(x.view(x.size(0), -1))

    return Forward(forward, first=nn.Conv2d(2, 4, 3), head=nn.Linear(24, 3))


def in_place() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = self.first(x)
        y = functional.relu_(x)
        y *= 0.5
        return self.head((x + self.second(y).clamp_(0, 1)).flatten(1))

    return Forward(forward, first=nn.Conv2d(2, 4, 3), second=nn.Conv2d(4, 4, 3, padding="same"), head=nn.Linear(16, 3))


class Products(nn.Module):
    """Layers that are products with constant matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.shift, self.last = (
            nn.Parameter(torch.randn(shape) / 3) for shape in ((12, 10), (10, 8), (8,), (8, 4))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(x @ self.first)
        x = functional.relu(torch.addmm(self.shift, x, self.second))
        return torch.matmul(x, self.last)


def resampled() -> nn.Module:
    """Scaled up in three ways, and padded with other values than zeros."""
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.Upsample(scale_factor=2)),
        *(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 8, 2, 2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.PixelShuffle(2), nn.ReplicationPad2d(1), nn.Conv2d(2, 4, 3, stride=2), nn.ReLU()),
        *(nn.Upsample(size=(9, 5), mode="bilinear", align_corners=True), nn.ConstantPad2d(1, 0.5), nn.Conv2d(4, 4, 3)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )


def rearranged() -> nn.Module:
    """Repeated, turned, summed up and picked from between its layers."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x))
        x = torch.cat([x.flip(2), x.repeat(1, 3, 1, 1)], dim=1)
        x = functional.relu(self.second(x.narrow(1, 2, 8)))
        x = torch.stack([x.cumsum(3), x - 1], dim=1).flatten(1, 2)
        return self.last(functional.relu(self.third(x)).index_select(1, torch.tensor([2, 0])).flatten(1))

    first, second, third = nn.Conv2d(2, 4, 3), nn.Conv2d(8, 3, 1), nn.Conv2d(6, 3, 3)
    return Forward(forward, first=first, second=second, third=third, last=nn.Linear(2 * 16, 3))


def trained(build: Callable[[], nn.Module], shape: Shape) -> nn.Module:
    """Build with drawn weights and shifts, and with batch statistics as measured on noise."""
    torch.manual_seed(0)
    model = build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.bias.data = torch.randn(module.num_features) / 2
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(16, *shape))
    return model.eval()
