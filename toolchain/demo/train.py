"""Train the demo network: ``python -m toolchain.demo.train`` rewrites ``digits_cnn.pt`` and ``digits_cnn.json``.

Nothing is selected on the test digits: the settings below were chosen by accuracy on the calibration digits, and the
test digits are classified once, by the weights of the last epoch.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import torch
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional

from toolchain.demo.data import Digits, load
from toolchain.demo.model import digits_cnn

SEED = 0
EPOCHS = 100
BATCH = 25
LEARNING_RATE = 1e-2  #: peak of the one-cycle schedule
WEIGHT_DECAY = 0.1
SHIFT = 1.0  #: largest shift in pixels, each way
ROTATION = 10.0  #: largest rotation in degrees, each way


def augment(x: Tensor) -> Tensor:
    """Shift and rotate every digit of (B, 1, H, W) by its own random amount."""
    angle = (2 * torch.rand(len(x)) - 1) * math.radians(ROTATION)
    # affine_grid measures in half images: a pixel is 2 / W.
    shift = (2 * torch.rand(len(x), 2) - 1) * SHIFT * 2 / torch.tensor([x.shape[3], x.shape[2]])
    cos, sin = angle.cos(), angle.sin()
    affine = torch.stack([torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1)
    grid = functional.affine_grid(affine, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def train(digits: Digits, epochs: int = EPOCHS, seed: int = SEED) -> nn.Module:
    """Train on the training digits for a fixed number of epochs and return the last weights, in eval mode."""
    # On more threads these small layers train slower, and float sums that depend on the number of threads would give
    # other weights on another machine.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(digits, epochs, seed)
    finally:
        torch.set_num_threads(threads)


def _train(digits: Digits, epochs: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = digits_cnn().train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY)
    batches = math.ceil(len(digits.train_x) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    for _ in track(range(epochs), description=f"Training on {len(digits.train_x)} digits"):
        for chosen in torch.randperm(len(digits.train_x)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(model(augment(digits.train_x[chosen])), digits.train_y[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """Count the digits that ``model`` classifies correctly."""
    return int((model(x).argmax(1) == y).sum())


def main(directory: Path = Path(__file__).parent, epochs: int = EPOCHS) -> None:
    """Train, and write the checkpoint and its provenance to ``directory``."""
    digits = load()
    model = train(digits, epochs)
    checkpoint = directory / "digits_cnn.pt"
    torch.save(model.state_dict(), checkpoint)
    right, n = correct(model, digits.test_x, digits.test_y), len(digits.test_y)
    provenance = {
        "model": "toolchain.demo.model:digits_cnn",
        "seed": SEED,
        "epochs": epochs,
        "torch": torch.__version__,
        "test": {"accuracy": round(100 * right / n, 2), "correct": right, "n": n},
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
    }
    (directory / "digits_cnn.json").write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"{right} of {n} test digits correct ({100 * right / n:.2f} %)")


if __name__ == "__main__":
    main()
