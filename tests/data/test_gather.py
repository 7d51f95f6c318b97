"""Calibration data is read once and in parts; what fits is used as if it had been there as a whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ann2loihi as a2l
from sim.progress import reporting
from toolchain.convert import in_every_form
from toolchain.data import Arrays, Source, calibration, gather, opening, source
from toolchain.data.source import Read
from toolchain.graph.channels import spread

ROOT = Path(__file__).parents[2]
X = torch.rand(50, 2, 6, 6, generator=torch.Generator().manual_seed(0)) - 0.3
Y = np.arange(50) % 3


class Watched(Arrays):
    """Samples in memory that know how often they were read, and how many at a time."""

    def __init__(self, x: torch.Tensor, y: np.ndarray | None = None) -> None:
        super().__init__(x, y)
        self.seen: list[Sequence[int]] = []

    def read(self, samples: Sequence[int]) -> Read:
        self.seen.append(samples)
        return super().read(samples)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


def test_parts_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PART", 7 * 4 * 72)
    watched = Watched(X, Y)
    found, whole = gather(watched), gather(X)
    assert [list(part) for part in watched.seen] == [list(range(i, min(i + 7, 50))) for i in range(0, 50, 7)]
    assert torch.equal(found.x, whole.x)
    assert torch.equal(found.lowest, X.amin(0))
    assert torch.equal(found.highest, whole.highest)
    assert (found.samples, found.sha256) == (50, whole.sha256)
    assert found.y is not None
    assert found.y.tolist() == Y.tolist()
    assert gather(found) is found


def test_of_more_than_fits_samples_from_all_over_are_kept_with_their_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PART", 7 * 4 * 72)
    monkeypatch.setattr(calibration, "KEPT", 20 * 4 * 72)
    found, chosen = gather(Watched(X, Y)), spread(50, 20)
    assert torch.equal(found.x, X[chosen])
    assert found.y is not None
    assert found.y.tolist() == Y[chosen.numpy()].tolist()
    assert torch.equal(found.lowest, X.amin(0))
    assert (len(found), found.samples, found.sha256) == (20, 50, gather(X).sha256)
    assert len(gather(X)) == 50  # an array is in memory already


def test_reading_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "PART", 25 * 4 * 72)
    seen: list[tuple[str, int, int]] = []
    with reporting(lambda *step: seen.append(step)):
        gather(Watched(X))
    assert seen == [("reading calibration data", done, 50) for done in (0, 25, 50)]


@pytest.mark.parametrize("kind", ["stored", "compressed", "npy", "images"])
def test_a_network_is_the_same_whatever_its_calibration_data_is_kept_in(
    kind: str, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "WHOLE", 0)
    monkeypatch.setattr(source, "PART", 1 << 12)
    pixels = (X * 255).clamp(0, 255).byte().numpy()
    if kind == "images":
        from PIL import Image

        model[0] = nn.Conv2d(3, 4, 3)
        pixels = np.concatenate([pixels, pixels[:, :1]], 1)
        (tmp_path / "data" / "a").mkdir(parents=True)
        for index, image in enumerate(pixels):
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "data" / "a" / f"{index:02}.png")
        path = tmp_path / "data"
    elif kind == "npy":
        np.save(path := tmp_path / "x.npy", pixels)
    else:
        (np.savez if kind == "stored" else np.savez_compressed)(path := tmp_path / "x.npz", x=pixels)
    data = a2l.open_data(path, labels=False)
    plain, made = a2l.convert(model, pixels, 4), a2l.convert(model, data, 4)
    assert made.network == plain.network
    assert made.origin == plain.origin


def test_one_reading_does_for_the_choice_of_a_recipe_and_for_every_form(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "PART", 16 * 4 * 72)
    watched = Watched(X)
    choice = a2l.choose(model, watched, latency_budget=4)
    assert [list(part) for part in watched.seen] == [list(range(i, min(i + 16, 50))) for i in range(0, 50, 16)]
    assert choice.conversion.network == a2l.choose(model, X, latency_budget=4).conversion.network
    watched.seen.clear()
    forms = in_every_form(a2l.convert(model, X, 2), model, watched)
    assert len(watched.seen) == 4
    assert [form.network.input.form for form in forms] == ["payload", "currents", "spikes"]


def test_values_of_samples_that_are_not_kept_set_the_payloads_range(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "KEPT", 20 * 4 * 72)
    left_out = next(i for i in range(50) if i not in spread(50, 20).tolist())
    x = X.clone()
    x[left_out] *= 1.7
    made = a2l.convert(model, Watched(x), 4).network
    reach = 127 / float(np.max(made.input.scale)) / float(x.abs().max())
    assert np.log2(reach) == pytest.approx(round(np.log2(reach)))  # what is tried are halvings of the whole range


def test_memory_does_not_grow_with_the_calibration_set(tmp_path: Path) -> None:
    code = """
import resource, sys
import numpy as np
from toolchain.data import calibration, gather, open_data, source
calibration.KEPT, source.PART = 1 << 24, 1 << 22
gather(open_data(sys.argv[1], labels=False))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    peaks = []
    for name, samples in (("small", 1 << 14), ("large", 1 << 17)):  # of 1 KiB, in a file with holes
        np.lib.format.open_memmap(tmp_path / name, "w+", np.float32, (samples, 256)).flush()
        (tmp_path / name).rename(path := tmp_path / f"{name}.npy")
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) << 10)
    assert peaks[1] - peaks[0] < 1 << 25  # of 112 MiB that the large one has more


def test_a_source_is_what_users_may_write_themselves(model: nn.Module) -> None:
    class Drawn(Source):
        name, shape, labelled = "drawn", (2, 6, 6), False

        def __len__(self) -> int:
            return 40

        def read(self, samples: Sequence[int]) -> Read:
            return torch.stack([torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(i)) for i in samples]), None

    made = a2l.convert(model, Drawn(), 2)
    assert made.network == a2l.convert(model, Drawn().read(range(40))[0], 2).network
