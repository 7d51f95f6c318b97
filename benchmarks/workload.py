"""What the benchmarks share: the networks and images that they measure on, and how they read their options."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn

from exporters.files import replace_file
from sim.findings import refuse

ROOT = Path(__file__).parents[1]
CALIBRATION = 512  #: CIFAR-10 images to calibrate on, unless another number is asked for

Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Holds cifar10_train.npz and cifar10_test.npz; digits without it."),
]
Weights = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="State_dict of the CIFAR ResNet-20; goes with --data.")
]
Calibration = Annotated[
    int | None, typer.Option("--calibration", metavar="N", help="Calibration images: 512, or all 256 digits.")
]
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the measured rows here.")]


@dataclass(frozen=True, eq=False)
class Workload:
    """A trained network with its images."""

    name: str
    model: nn.Module  #: in eval mode
    calibration_x: Tensor  #: float32 (N, C, H, W)
    test_x: Tensor  #: float32 (n, C, H, W)
    test_y: Tensor  #: int64 (n,)

    @property
    def checksum(self) -> str:
        """Tell trained weights apart: 12 hexadecimal digits."""
        digest = hashlib.sha256()
        for key, value in self.model.state_dict().items():
            digest.update(key.encode() + value.numpy().tobytes())
        return digest.hexdigest()[:12]


def load(data: Path | None, weights: Path | None, calibration: int | None, samples: int | None = None) -> Workload:
    """Load ResNet-20 with CIFAR-10, or the digits where neither is given: the first images of either part.

    Raises :class:`Refused` where only one is given, a file cannot be used, or there are fewer images.
    """
    if (data is None) != (weights is None):
        raise refuse("--data, --weights", "one without the other", "give both, or neither for the digits")
    if data is None:
        from toolchain import demo
        from toolchain.demo import data as digits

        parts = digits.load()
        x = _first("--calibration", parts.calibration_x, calibration)
        test_x, test_y = (_first("--samples", part, samples) for part in (parts.test_x, parts.test_y))
        return Workload("digits_cnn", demo.load_model(), x, test_x, test_y)

    from toolchain.inputs import existing
    from toolchain.loading import load_model

    model = load_model(f"{ROOT / 'examples' / 'resnet20.py'}:resnet20", weights)
    train, test = (existing(data / f"cifar10_{part}.npz") for part in ("train", "test"))
    x, _ = decode(train, CALIBRATION if calibration is None else calibration)
    return Workload("resnet20", model, x, *decode(test, samples))


def _first(option: str, values: Tensor, count: int | None) -> Tensor:
    if count is not None and not 1 <= count <= len(values):
        raise refuse(option, f"{count} images asked for", f"there are 1 to {len(values)}")
    return values[:count]


def decode(path: Path, count: int | None) -> tuple[Tensor, Tensor]:
    """Decode the first images of a file, float32 (n, 3, 32, 32) normalised, and labels; :class:`Refused` for others."""
    from examples import cifar10

    try:
        x, y = cifar10.decode(path, count)
    except (ValueError, KeyError, OSError) as error:
        raise refuse(str(path), str(error), "see examples/cifar10.py for what it holds") from error
    return torch.from_numpy(x), torch.from_numpy(y)


def alone(module: str, *options: str) -> dict[str, Any]:
    """Run a benchmark in a fresh process, and return the JSON of its last line.

    The caller should hold no data: a child's peak memory begins with its parent's.
    """
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}", *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])  # what is above it are progress bars
    return row


def names(text: str) -> list[str]:
    """Split ``a,b``; each once, in the order given."""
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def integers(option: str, text: str) -> list[int]:
    """Split ``1,2``; :class:`Refused` where a part is no integer."""
    try:
        return sorted({int(part) for part in names(text)})
    except ValueError:
        raise refuse(option, repr(text), "give integers separated by commas") from None


def write(path: Path, text: str) -> None:
    """Write a file at once, so that an interrupted run leaves a whole one; :class:`Refused` where it cannot be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, text.encode())


def write_json(path: Path, document: Any) -> None:
    """Write JSON, as :func:`write` does."""
    write(path, json.dumps(document, indent=2) + "\n")
