"""Planted bugs are single changed lines of what computes, and what a test notices is told from what none does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from benchmarks import mutants
from benchmarks.mutants import Mutant

HALF = """\
def half(x):
    if x < 0:
        return 0
    return x // 2


def unused(x):
    return x + 1
"""
TEST = """\
from sim import half


def test_halves():
    assert [half.half(x) for x in (-4, 0, 1, 2, 8)] == [0, 0, 0, 1, 4]
"""


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("a < b", {("comparison", "a <= b")}),
        ("a is not b", {("comparison", "a is b")}),
        ("inner in b", {("comparison", "inner not in b")}),
        ("(a) == (b)", {("comparison", "(a) != (b)")}),
        ("a + b", {("arithmetic", "a - b")}),
        ("a ** b", {("arithmetic", "a * b")}),
        ("-a", {("arithmetic", "a")}),
        ("'é' in a or b", {("boolean", "'é' in a and b"), ("comparison", "'é' not in a or b")}),
        ("not a", {("boolean", "a")}),
        ("a if b else c", {("boolean", "a if (not (b)) else c")}),
        ("True", {("constant", "False")}),
        ("7", {("constant", "14"), ("off by one", "8"), ("off by one", "6")}),
        ("0", {("constant", "1"), ("off by one", "1"), ("off by one", "(-1)")}),
        ("1.5", {("constant", "3.0")}),
        ("f(a)", {("deleted statement", "pass")}),
        ("a[b] = c", {("deleted statement", "pass")}),
        ("a += b", {("deleted statement", "pass")}),
        ("raise a", {("deleted statement", "pass")}),
    ],
)
def test_a_line_is_changed_in_every_way_that_there_is_for_it(line: str, expected: set[tuple[str, str]]) -> None:
    source = f'"""1 + 1"""\n\n{line}\n'
    assert {(made.kind, made.new) for made in mutants.mutants("sim/a.py", source)} == expected
    assert {(made.file, made.line, made.old) for made in mutants.mutants("sim/a.py", source)} == {("sim/a.py", 3, line)}


@pytest.mark.parametrize(
    "line",
    [
        "'a text of 3 < 4'",
        "b = f'{a + 1}'",
        "b = 'a' + c",
        "b = refuse(a, c + d, 'e')",
        "assert a < 3",
        "b: Literal[1] = c",
        "def f(a: Literal[1]) -> Literal[2]: ...",
        "b = zip(a, c, strict=True)",
        "b = (\n    a\n    + c\n)",
    ],
)
def test_texts_annotations_assertions_and_what_spans_lines_stay(line: str) -> None:
    assert mutants.mutants("sim/a.py", line + "\n") == []


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A package whose only test holds one of its functions."""
    root = tmp_path / "tree"
    for path, text in {"sim/half.py": HALF, "sim/__init__.py": "", "tests/sim/test_half.py": TEST}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def test_the_same_seed_draws_the_same_and_more_of_them_begin_with_the_fewer(tree: Path) -> None:
    drawn = mutants.drawn(tree, 4, seed=3)
    assert len({(mutant.file, mutant.line) for mutant in drawn}) == 4  # all lines that can be changed, once
    assert mutants.drawn(tree, 100, seed=3) == drawn
    assert mutants.drawn(tree, 2, seed=3) == drawn[:2]
    assert any(mutants.drawn(tree, 4, seed) != drawn for seed in range(4))


def test_the_nearest_tests_are_those_of_the_name_then_those_that_import_then_the_folder(tree: Path) -> None:
    for name, text in {"app/test_a.py": "import sim.half", "sim/test_z.py": "from sim.half import half"}.items():
        (tree / "tests" / name).parent.mkdir(exist_ok=True)
        (tree / "tests" / name).write_text(text)
    (tree / "tests/sim/test_b.py").touch()
    assert mutants.nearest(tree, "sim/half.py") == [
        ["tests/sim/test_half.py"],
        ["tests/sim/test_z.py", "tests/app/test_a.py"],
        ["tests/sim/test_b.py"],
    ]
    assert mutants.nearest(tree, "exporters/x/y.py") == [["tests"]]


LESS = Mutant("sim/half.py", 2, "comparison", "    if x < 0:", "    if x <= 0:")
HALVED = Mutant("sim/half.py", 4, "arithmetic", "    return x // 2", "    return x * 2")
ENDLESS = Mutant("sim/half.py", 4, "arithmetic", "    return x // 2", "    while True: pass")


def test_mutants_that_do_what_the_original_does_are_told_with_the_reason() -> None:
    for file, _, why in mutants.ALIKE:
        assert why in {mutants.alike(mutant) for mutant in mutants.mutants(file, (mutants.ROOT / file).read_text())}
    assert mutants.alike(HALVED) is None


@pytest.mark.slow
def test_a_mutant_is_killed_by_the_first_test_that_fails_and_taken_out_again(tree: Path) -> None:
    killed = mutants.judge(tree, HALVED, "not slow", 60)
    assert (killed.state, killed.by) == ("killed", "tests/sim/test_half.py::test_halves")
    assert mutants.judge(tree, LESS, "not slow", 60).state == "survived"  # half of 0 is 0 either way
    assert mutants.judge(tree, ENDLESS, "not slow", 5).state == "out of time"
    assert (tree / "sim/half.py").read_text() == HALF


@pytest.mark.slow
def test_the_tests_that_run_a_line_come_first_the_quickest_before_the_others(tree: Path) -> None:
    sleepy = "import time\nfrom sim.half import half\ndef test_late():\n    time.sleep(1)\n    half(1)\n"
    (tree / "tests/sim/test_a.py").write_text(sleepy)
    measured = mutants.covered(tree, "not slow", 1)
    late, halves = "tests/sim/test_a.py::test_late", "tests/sim/test_half.py::test_halves"
    assert measured.tests_of(tree, HALVED) == [halves, late, "tests/sim/test_half.py"]
    assert mutants.judge(tree, HALVED, "not slow", 60, measured).by == halves
    (tree / "tests/sim/test_a.py").write_text(sleepy + "# changed\n")
    assert measured.tests_of(tree, HALVED) == [halves, "tests/sim/test_half.py", "tests/sim/test_a.py"]
    (tree / "sim/half.py").write_text(HALF + "\n")
    assert measured.tests_of(tree, HALVED) == ["tests/sim/test_half.py", "tests/sim/test_a.py"]


def run(tree: Path, *arguments: object) -> Result:
    given = ["--root", tree, "--seed", 3, *arguments]
    return CliRunner().invoke(mutants.app, [str(a) for a in given], catch_exceptions=False)


def test_all_are_tried_and_what_is_known_is_not_tried_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, asked = tree.parent / "results.json", []
    judge = mutants.judge

    def watched(at: Path, mutant: Mutant, *limits: Any) -> mutants.Outcome:
        assert tree not in (at, *at.parents)
        asked.append(mutant)
        return judge(at, mutant, *limits)

    monkeypatch.setattr(mutants, "judge", watched)
    assert run(tree, "--count", 2, "--json", results).exit_code == 0
    done = run(tree, "--jobs", 2, "--json", results, "--resume")
    assert len(asked) == len(set(asked)) == 4
    rows = json.loads(results.read_text())
    survivors = [row["mutant"] for row in rows if row["outcome"]["state"] == "survived"]
    assert 8 in [survivor["line"] for survivor in survivors]  # what no test calls
    assert f"{4 - len(survivors)} of 4 killed, {len(survivors)} survived, 0 out of time (seed 3)" in done.output
    for survivor in survivors:
        assert f"survived: sim/half.py:{survivor['line']} ({survivor['kind']})" in done.output
        assert f"- {survivor['old'].strip()}\n  + {survivor['new'].strip()}" in done.output
    run(tree, "--json", results, "--resume", "--again")
    assert len(asked) == 4 + len(survivors)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--count", 0), "give more than 0"),
        (("--resume",), "name the results with --json"),
        (("--resume", "--json", __file__), "it holds no results"),
        (("--coverage", __file__), "it says not which tests run what"),
    ],
)
def test_options_that_make_no_sense_are_refused(tree: Path, arguments: tuple[object, ...], message: str) -> None:
    done = run(tree, *arguments)
    assert done.exit_code == 2
    assert message in done.output
