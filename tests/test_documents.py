"""What documents show must run: the README's example."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from toolchain.assessment.score import wilson

ROOT = Path(__file__).parents[1]


def test_the_readme_example_runs_in_ten_lines(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 11  # one of them is blank
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    trained = json.loads((ROOT / "toolchain" / "demo" / "digits_cnn.json").read_text())["test"]
    (accuracy,) = re.findall(r"^(\d+\.\d)% of 541 test digits after 8 steps$", done.stdout, re.MULTILINE)
    assert float(accuracy) >= wilson(trained["correct"], trained["n"])[0]  # of the trained network's 95 % interval
    assert "0 differences" in done.stdout
    assert (tmp_path / "build" / "digits" / "network.net").stat().st_size > 10_000
