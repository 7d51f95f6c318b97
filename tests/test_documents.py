"""What documents show must run: the README's example, and the notebook with the outputs that it carries."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from exporters.engines import available_engines

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_the_readme_example_runs_in_ten_lines(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 11  # one of them is blank
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^99\.\d% of 541 test digits after 8 steps$", done.stdout, re.MULTILINE)
    assert "0 differences" in done.stdout
    assert (tmp_path / "build" / "digits" / "network.net").stat().st_size > 10_000


def text(cell: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::RuntimeWarning")  # of jupyter_client and tornado
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
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
            assert text(before) == text(after)
