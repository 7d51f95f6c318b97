from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import toolchain.demo
from toolchain.demo import load_model, train
from toolchain.demo.data import Digits, load
from toolchain.demo.model import digits_cnn

HERE = Path(toolchain.demo.__file__).parent


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load()


def parts(digits: Digits) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (digits.train_x, digits.train_y),
        (digits.calibration_x, digits.calibration_y),
        (digits.test_x, digits.test_y),
    ]


def test_the_three_parts_are_disjoint_and_together_all_digits(digits: Digits) -> None:
    images = [{image.tobytes() for image in x.numpy()} for x, _ in parts(digits)]
    assert [len(part) for part in images] == [1000, 256, 541]
    everything = {(image[None] / 16).astype(np.float32).tobytes() for image in load_digits().images}
    assert len(everything) == 1797
    assert images[0] | images[1] | images[2] == everything


def test_every_image_keeps_its_label(digits: Digits) -> None:
    source = load_digits()
    label = {
        (image[None] / 16).astype(np.float32).tobytes(): int(y)
        for image, y in zip(source.images, source.target, strict=True)
    }
    for x, y in parts(digits):
        assert [label[image.tobytes()] for image in x.numpy()] == y.tolist()


def test_digits_are_float32_between_0_and_1_with_int64_labels(digits: Digits) -> None:
    for x, y in parts(digits):
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert x.shape == (len(y), 1, 8, 8)
        assert (x.min(), x.max()) == (0, 1)


def test_every_part_holds_every_class_in_proportion(digits: Digits) -> None:
    of_all = np.bincount(load_digits().target) / 1797
    for _, y in parts(digits):
        assert np.abs(np.bincount(y.numpy()) - of_all * len(y)).max() < 2


def test_the_split_is_the_one_that_the_checkpoint_was_trained_on(digits: Digits) -> None:
    order = hashlib.sha256(b"".join(x.numpy().tobytes() for x, _ in parts(digits))).hexdigest()
    assert order == "5b481e244aa2d7f958db35478d7cbbb9ab55dbcfa3aa69fed77cf0e6ce4c0751"


def test_the_checkpoint_is_the_one_that_its_provenance_describes(digits: Digits) -> None:
    provenance = json.loads((HERE / "digits_cnn.json").read_text())
    checkpoint = (HERE / "digits_cnn.pt").read_bytes()
    assert hashlib.sha256(checkpoint).hexdigest() == provenance["sha256"]
    assert len(checkpoint) < 300_000
    assert (provenance["seed"], provenance["epochs"]) == (train.SEED, train.EPOCHS)
    right = train.correct(load_model(), digits.test_x, digits.test_y)
    stored = provenance["test"]
    assert stored == {"accuracy": round(100 * stored["correct"] / 541, 2), "correct": stored["correct"], "n": 541}
    with torch.no_grad():
        first, second = load_model()(digits.test_x).topk(2).values.T
    # Logits are sums of floats, which another order changes in the last digits: only a draw may be decided otherwise.
    assert abs(stored["correct"] - right) <= int((first - second < 1e-4).sum()) < 5
    assert right / 541 >= 0.985


def test_the_loaded_model_is_in_eval_mode_and_the_built_one_ready_to_train() -> None:
    assert not any(module.training for module in load_model().modules())
    assert all(module.training for module in digits_cnn().modules())


def test_training_writes_a_checkpoint_that_loads_without_pickled_code(
    tmp_path: Path, digits: Digits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = Digits(*(part[:100] for pair in parts(digits) for part in pair))
    monkeypatch.setattr(train, "load", lambda: small)
    train.main(tmp_path, epochs=1)
    state = torch.load(tmp_path / "digits_cnn.pt", weights_only=True)
    assert {key: value.shape for key, value in state.items()} == {
        key: value.shape for key, value in load_model().state_dict().items()
    }
    model = digits_cnn().eval()
    model.load_state_dict(state)
    provenance = json.loads((tmp_path / "digits_cnn.json").read_text())
    assert provenance["test"]["correct"] == train.correct(model, small.test_x, small.test_y)
    assert provenance["sha256"] == hashlib.sha256((tmp_path / "digits_cnn.pt").read_bytes()).hexdigest()
    assert provenance["epochs"] == 1
    assert f"{provenance['test']['correct']} of 100 test digits correct" in capsys.readouterr().out


def test_training_is_reproducible_whatever_the_number_of_threads_and_blind_to_other_parts(digits: Digits) -> None:
    few, threads = digits.train_x[:100], torch.get_num_threads()
    blind = Digits(few, digits.train_y[:100], *(torch.empty(0) for _ in range(4)))
    model = train.train(blind, epochs=1)
    assert not model.training
    first = model.state_dict()
    try:
        torch.set_num_threads(2)
        second = train.train(blind, epochs=1).state_dict()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    other = train.train(blind, epochs=1, seed=1).state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])


def test_augmentation_shifts_by_up_to_a_pixel_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(train, "ROTATION", 0.0)
    places = _centres(train.augment(_spot(4, 4)))
    assert 0.95 < places.max() <= 1 + 1e-5
    assert -0.95 > places.min() >= -1 - 1e-5
    assert places.std(0).min() > 0.5


def test_augmentation_rotates_by_up_to_ten_degrees_in_both_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(train, "SHIFT", 0.0)
    rows = _centres(train.augment(_spot(4, 7)))[:, 0]  # three pixels right of the centre: ten degrees are half a pixel
    assert 0.4 < rows.max() < 0.6
    assert -0.4 > rows.min() > -0.6


def test_augmentation_turns_a_digit_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SHIFT", 0.0)
    turned = []
    for place in ((4, 7), (7, 4)):
        torch.manual_seed(0)
        turned.append(_centres(train.augment(_spot(*place))))
    right, below = turned
    assert (right[:, 0] + below[:, 1]).abs().max() < 1e-4  # the right goes down as far as the bottom goes left


def _spot(row: int, column: int) -> torch.Tensor:
    images = torch.zeros(500, 1, 9, 9)
    images[:, 0, row, column] = 1
    return images


def _centres(images: torch.Tensor) -> torch.Tensor:
    """Row and column of the brightness' centre, (B, 2), relative to the image's."""
    grid = torch.arange(9.0) - 4
    return torch.stack([(images.sum(dim) * grid).sum((1, 2)) for dim in (3, 2)], 1)


def test_shift_and_rotation_of_zero_leave_digits_alone(digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "SHIFT", 0.0)
    monkeypatch.setattr(train, "ROTATION", 0.0)
    x = digits.train_x[:16]
    assert (train.augment(x) - x).abs().max() < 1e-5
