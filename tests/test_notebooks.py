"""Notebooks run, and print what they carry.

What they print of a conversion may differ a little where floats are summed in another order, on another processor: such
numbers are compared as measurements, and everything around them letter by letter. What would differ more, as what
training has found, notebooks display as Markdown, of which only the kind is compared.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from exporters.engines import available_engines

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

#: Numbers that a conversion decides: ranges of weights, thresholds, per cents, spikes, the size of a compressed file.
MEASURED = re.compile(r" *-?\d+\.\. *-?\d+|(?<=theta) +\d+| +\d+\.\d\d\b|\b\d+(?= spikes| KiB)")
NEAR = 0.25  #: how far they may differ; the next integer threshold is a factor of 2**0.25 away


def text(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def difference(stored: str, fresh: str) -> str | None:
    """What tells two outputs apart beyond the last digits of what was measured; None where nothing does."""
    if MEASURED.sub("#", stored) != MEASURED.sub("#", fresh):
        return "text"
    numbers = [[float(n) for m in MEASURED.findall(side) for n in re.findall(r"-?\d+(?:\.\d\d)?", m)]
               for side in (stored, fresh)]  # fmt: skip
    return None if numbers[1] == pytest.approx(numbers[0], rel=NEAR) else "numbers"


LINES = """\
conv1  (16, 8, 8)   weights  -40.. 45, theta 608
fc     (10,)        weights -127.. 64, theta   0
step 1  98.89 %   (95 %: 97.60 to 99.49, n = 541)
reference, fast agree: 4 samples, 6742 spikes, 369920 neuron-steps compared, 0 differences
digits.net: 242 KiB
"""


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("-40.. 45, theta 608", "-39..102, theta 608", "numbers"),
        ("-40.. 45, theta 608", " -39.. 46, theta 512", None),
        ("theta   0", "theta   1", "numbers"),
        ("98.89 %   (95 %: 97.60 to 99.49", "99.26 %   (95 %: 98.11 to 99.71", None),
        ("98.89", "9.89", "numbers"),
        ("6742 spikes", "6751 spikes", None),
        ("242", "24", "numbers"),
        ("conv1", "conv2", "text"),
        ("(16, 8, 8)", "(16, 8, 9)", "text"),
        ("step 1", "step 2", "text"),
        ("95 %", "90 %", "text"),
        ("n = 541", "n = 540", "text"),
        ("4 samples", "3 samples", "text"),
        ("369920", "369921", "text"),
        ("0 differences", "1 differences", "text"),
        ("98.89 %", "nan %", "text"),
        ("digits.net: 242 KiB\n", "", "text"),
    ],
)
def test_only_measured_numbers_may_differ_and_only_a_little(old: str, new: str, found: str | None) -> None:
    assert difference(LINES, LINES) is None
    assert difference(LINES, LINES.replace(old, new, 1)) == found


#: The one trains a network first, the other converts forty times.
SLOW = ("02_your_own_network.ipynb", "03_few_steps.ipynb")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of jupyter_client and tornado
@pytest.mark.parametrize(
    "path", [pytest.param(p, marks=[pytest.mark.slow] * (p.name in SLOW)) for p in NOTEBOOKS], ids=lambda p: p.name
)
def test_a_notebook_runs_and_prints_what_it_carries(path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    NotebookClient(fresh, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    for before, after in zip(stored.cells, fresh.cells, strict=True):
        if before.cell_type != "code":
            continue
        assert before.outputs or "import" in before.source, "stored without outputs"
        assert {key for output in before.outputs for key in output.get("data", {})} == {
            key for output in after.outputs for key in output.get("data", {})
        }
        if "netx" in available_engines():  # other Pythons run fewer engines on other versions of torch
            assert difference(text(before), text(after)) is None, text(after)
