"""How much of the product the tests hold: single lines are changed for the worse, and some test has to fail.

A copy of the tree gets one change at a time, drawn by ``--seed`` from all comparisons, arithmetic, constants, booleans,
conditions and statements of sim, exporters and toolchain, messages left out. The tests that run the changed line come
first, the quickest before the others, then those named after the file; which ones run it is measured once::

    python -m benchmarks.mutants --count 100 --json build/mutants.json --resume --coverage build/mutants-coverage.json

Without ``--coverage``, and for lines that only processes of their own or compiled code run, the nearest tests are those
of the same name, those that import the file and those of its package. The first that fails ends a mutant's run. What is
out of time is not counted as killed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated, Any, Literal

import typer
from coverage import CoverageData

from benchmarks.workload import ROOT, JsonFile, write, write_json
from sim.findings import refuse
from sim.progress import track
from toolchain.app.console import bars, guarded, say

PACKAGES = ("sim", "exporters", "toolchain")
#: Not copied: what is no part of the tree, and what another tree has made.
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "build", "shared")
#: Calls whose arguments are for people to read.
MESSAGES = {"Finding", "refuse", "Refused", "say", "track", "counting"}

COMPARISONS = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
COMPARISONS |= {"is not": "is", "is": "is not", "not in": "in", "in": "not in"}
ARITHMETIC = {"+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "+", "**": "*", "<<": ">>", ">>": "<<"}
ARITHMETIC |= {"&": "|", "|": "&", "^": "|", "@": "*"}
LOGIC = {"and": "or", "or": "and"}

#: Mutants that do what the original does: file, what their line holds, and why.
ALIKE = (
    ("exporters/report/figures.py", "markersize=3, markerfacecolor", "it changes how large a mark is"),
    ("exporters/report/figures.py", "whole_numbers(3)", "it changes how many ticks there are"),
    ("toolchain/calibration/batch.py", "values.ndim > 3", "a layer's values have 2 or 4 dimensions"),
    ("toolchain/assessment/workers.py", "AHEAD = 3", "no result knows how far ahead work is given out"),
    ("toolchain/frontends/operations/arithmetic.py", "factors[(-1)]", "the factors of all samples are equal there"),
    ("toolchain/frontends/affine.py", "for k in (1, 3, 0))", "any two scales that differ tell values apart"),
)

Kind = Literal["comparison", "arithmetic", "constant", "boolean", "off by one", "deleted statement"]
State = Literal["killed", "survived", "out of time"]


@dataclass(frozen=True)
class Mutant:
    """One changed line."""

    file: str  #: from the root of the tree
    line: int  #: from 1
    kind: Kind
    old: str  #: the line as it is
    new: str  #: and as it is planted


@dataclass(frozen=True)
class Outcome:
    """What the tests said to a mutant."""

    state: State
    by: str | None = None  #: the test that failed first


# ---- changes ---------------------------------------------------------------------------------------------------------


def mutants(file: str, source: str) -> list[Mutant]:
    """List all changes of one Python file, in the order of its lines; at most a few do not parse."""
    lines = source.splitlines()
    found = [
        Mutant(file, line, kind, lines[line - 1], new)
        for node in _computing(ast.parse(source))
        for kind, line, new in _changes(node, lines)
    ]
    return sorted(dict.fromkeys(found), key=lambda mutant: mutant.line)


def _computing(node: ast.AST) -> Iterator[ast.AST]:
    """Walk what computes: no annotations, decorators, assertions (a strict ``zip`` is one) or texts."""
    if isinstance(node, ast.JoinedStr | ast.Assert) or (isinstance(node, ast.Call) and _name(node.func) in MESSAGES):
        return
    yield node
    if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    for field, value in ast.iter_fields(node):
        if field not in ("annotation", "returns", "decorator_list", "bases"):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _computing(child)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _changes(node: ast.AST, lines: list[str]) -> Iterator[tuple[Kind, int, str]]:
    """Yield every change of one node, as kind, line and the line that is planted."""
    if not hasattr(node, "lineno") or node.lineno != node.end_lineno:
        return
    line, text = node.lineno, lines[node.lineno - 1]

    def between(left: ast.expr, right: ast.expr, table: dict[str, str]) -> Iterator[str]:
        """Change the operator between two operands."""
        start, end = _column(text, left.end_col_offset), _column(text, right.col_offset)
        for operator in sorted(table, key=len, reverse=True):
            at = re.search(
                rf"(?<!\w){re.escape(operator)}(?!\w)" if operator.isalpha() else re.escape(operator), text[start:end]
            )
            if at:
                yield text[: start + at.start()] + table[operator] + text[start + at.end() :]
                return

    def instead(of: ast.expr | ast.stmt, new: str) -> str:
        return text[: _column(text, of.col_offset)] + new + text[_column(text, of.end_col_offset) :]

    def same(of: ast.expr | ast.stmt) -> str:
        return text[_column(text, of.col_offset) : _column(text, of.end_col_offset)]

    match node:
        case ast.Compare(left=left, comparators=[right]):
            yield from (("comparison", line, new) for new in between(left, right, COMPARISONS))
        case ast.BinOp(left=left, right=right) if not {type(left), type(right)} & {ast.JoinedStr} and not _strings(
            node
        ):
            yield from (("arithmetic", line, new) for new in between(left, right, ARITHMETIC))
        case ast.BoolOp(values=[left, right]):
            yield from (("boolean", line, new) for new in between(left, right, LOGIC))
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "boolean", line, instead(node, same(operand))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            yield "arithmetic", line, instead(node, same(operand))
        case ast.IfExp(test=test):
            yield "boolean", line, instead(test, f"(not ({same(test)}))")
        case ast.Constant(value=bool() as value):
            yield "constant", line, instead(node, str(not value))
        case ast.Constant(value=int() as value):
            yield "constant", line, instead(node, str(2 * value or 1))
            yield "off by one", line, instead(node, str(value + 1))
            yield "off by one", line, instead(node, f"({value - 1})" if value < 1 else str(value - 1))
        case ast.Constant(value=float() as value):
            yield "constant", line, instead(node, repr(2 * value or 1.0))
        case ast.Raise() | ast.Break() | ast.Continue() | ast.AugAssign() | ast.Expr(value=ast.Call()):
            yield "deleted statement", line, instead(node, "pass")
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
            yield "deleted statement", line, instead(node, "pass")


def _strings(node: ast.BinOp) -> bool:
    return any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in (node.left, node.right))


def _column(text: str, offset: int | None) -> int:
    """Find a character of a line, which ``ast`` counts in bytes."""
    return len(text.encode()[:offset].decode())


def planted(mutant: Mutant, source: str) -> str:
    """Put a mutant's line into the file's text; :class:`Refused` where the file has another line there."""
    lines = source.splitlines(keepends=True)
    if lines[mutant.line - 1].rstrip("\n") != mutant.old:
        raise refuse(f"{mutant.file}:{mutant.line}", "the line is another one", "draw again")
    lines[mutant.line - 1] = mutant.new + "\n"
    return "".join(lines)


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def drawn(root: Path, count: int, seed: int) -> list[Mutant]:
    """Draw so many mutants, at most one a line; fewer are the first of more with the same seed."""
    sources = {
        path.relative_to(root).as_posix(): path.read_text()
        for package in PACKAGES
        for path in sorted((root / package).rglob("*.py"))
    }
    found = [mutant for file, source in sources.items() for mutant in mutants(file, source)]
    random.Random(seed).shuffle(found)
    first: dict[tuple[str, int], Mutant] = {}
    for mutant in found:
        if len(first) == count:
            break
        if (mutant.file, mutant.line) not in first and _parses(planted(mutant, sources[mutant.file])):
            first[mutant.file, mutant.line] = mutant
    return list(first.values())


# ---- tests -----------------------------------------------------------------------------------------------------------


def nearest(root: Path, file: str) -> list[list[str]]:
    """Find the tests of a file, the nearest first: of the same name, that import it, of its package's folder."""
    module = Path(file).with_suffix("")
    dotted = ".".join(module.parts).removesuffix(".__init__")
    tests = sorted((root / "tests").rglob("test_*.py"))
    words = {part.replace("-", "_") for part in module.parts[1:]} or {module.parts[0]}
    named = [test for test in tests if any(re.fullmatch(rf"test_{word}s?", test.stem) for word in words)]
    folders = [root / "tests" / part for part in module.parts[:2]]
    importing = [test for test in tests if dotted in _imported(test)]
    importing.sort(key=lambda test: test.parent not in folders)
    beside = [test for folder in reversed(folders) for test in sorted(folder.glob("test_*.py"))]
    stages, seen = [], set()
    for stage in (named, importing, beside):
        fresh = [test.relative_to(root).as_posix() for test in dict.fromkeys(stage) if test not in seen]
        seen.update(stage)
        if fresh:
            stages.append(fresh)
    return stages or [["tests"]]


def _imported(test: Path) -> set[str]:
    """Dotted names that a test imports, and those that they are part of by one."""
    found = set()
    for node in ast.walk(ast.parse(test.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@dataclass(frozen=True)
class Coverage:
    """Which tests run which lines, measured on one state of the tree."""

    tests: list[str]  #: as pytest names them, the quickest first
    lines: dict[str, dict[str, list[int]]]  #: of each file, by line: places in ``tests``
    checksums: dict[str, str]  #: of all these files and of the tests'

    def tests_of(self, tree: Path, mutant: Mutant) -> list[str]:
        """List the tests of a mutant's line, the quickest first, then what has its file's name or is new by now."""
        stages = nearest(tree, mutant.file)
        if _checksum(tree / mutant.file) != self.checksums.get(mutant.file):
            return [test for stage in stages for test in stage]
        of, statement = self.lines.get(mutant.file, {}), _statement((tree / mutant.file).read_text(), mutant.line)
        running = [
            self.tests[at] for at in sorted({at for line in {mutant.line, statement} for at in of.get(str(line), ())})
        ]
        fresh = {
            test
            for test in {name for stage in stages for name in stage} | {name.partition("::")[0] for name in running}
            if not (tree / test).is_file() or _checksum(tree / test) != self.checksums.get(test)
        }
        running = [test for test in running if test.partition("::")[0] not in fresh]
        others = [test for stage in stages[: 1 if running else None] for test in stage]
        return list(dict.fromkeys([*running, *others, *(test for stage in stages for test in stage if test in fresh)]))


def measured(path: Path, root: Path, marks: str, jobs: int) -> Coverage:
    """Read which tests run which lines; measure it where the file is missing."""
    if not path.exists():
        say("running all tests once, to see which lines each of them runs")
        write(path, json.dumps(asdict(covered(root, marks, jobs))))
    try:
        return Coverage(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise refuse(str(path), f"it says not which tests run what ({error})", "name another file") from error


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _statement(source: str, line: int) -> int:
    """Find the first line of the innermost statement that a line is part of."""
    return max(
        (
            node.lineno
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.stmt) and node.lineno <= line <= (node.end_lineno or 0)
        ),
        default=line,
    )


def covered(root: Path, marks: str, jobs: int) -> Coverage:
    """Run all tests once in a copy of the tree, and note which lines each of them runs."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        tree = shutil.copytree(root, Path(folder) / "tree", ignore=LEFT_OUT)
        # No report, no threshold: only the data; what processes of their own run belongs to no test.
        sources = [f"--cov={package}" for package in PACKAGES]
        measuring = [*sources, "--cov-context=test", "--cov-report=", "--junit-xml=times.xml", "-n", str(jobs)]
        done = _pytest(tree, ["-q", "-m", marks, *measuring], None)
        data = CoverageData(str(tree / ".coverage"))
        data.read()
        if done.returncode not in (0, 1) or not data.measured_files():
            raise refuse(
                "--coverage", f"pytest ended with {done.returncode}: {done.stdout[-200:]}", "run the tests first"
            )
        cases = ElementTree.parse(tree / "times.xml").iter("testcase")
        seconds = {(case.get("classname"), case.get("name")): float(case.get("time", 0)) for case in cases}

        def taken(test: str) -> float:
            file, _, name = test.partition("::")
            return seconds.get((file.removesuffix(".py").replace("/", "."), name), 0.0)

        found = {
            Path(file).relative_to(tree).as_posix(): {
                line: {context.rpartition("|")[0] for context in contexts if context}
                for line, contexts in data.contexts_by_lineno(file).items()
            }
            for file in sorted(data.measured_files())
        }
        names = sorted({test for of in found.values() for tests in of.values() for test in tests}, key=taken)
        places = {test: at for at, test in enumerate(names)}
        files = {*found, *(path.relative_to(tree).as_posix() for path in (tree / "tests").rglob("*.py"))}
        return Coverage(
            names,
            {
                file: {str(line): sorted(places[test] for test in tests) for line, tests in of.items() if tests}
                for file, of in found.items()
            },
            {file: _checksum(tree / file) for file in sorted(files)},
        )


def _pytest(tree: Path, arguments: list[str], seconds: float | None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "--no-header", "--tb=no", "-p", "no:cacheprovider", *arguments],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )


def judge(tree: Path, mutant: Mutant, marks: str, seconds: float, coverage: Coverage | None = None) -> Outcome:
    """Plant a mutant in a copy of the tree, run its tests for at most so long, and take it out again."""
    path = tree / mutant.file
    if coverage is None:
        tests = [test for stage in nearest(tree, mutant.file) for test in stage]
    else:
        tests = coverage.tests_of(tree, mutant)
    source = path.read_text()
    path.write_text(planted(mutant, source))
    try:
        done = _pytest(tree, ["-x", "-q", "-m", marks, *tests], seconds)
    except subprocess.TimeoutExpired:
        return Outcome("out of time")
    finally:
        path.write_text(source)
    if done.returncode in (0, 5):  # 5: there is no test at all
        return Outcome("survived")
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    return Outcome("killed", failed[1] if failed else None)


def judged(
    root: Path, wanted: Iterable[Mutant], marks: str, seconds: float, jobs: int, coverage: Coverage | None = None
) -> Iterator[tuple[Mutant, Outcome]]:
    """Judge mutants in ``jobs`` copies of the tree, and yield them as they are done."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder, ThreadPoolExecutor(jobs) as pool:
        trees: SimpleQueue[Path] = SimpleQueue()
        for job in range(jobs):
            trees.put(shutil.copytree(root, Path(folder) / str(job), ignore=LEFT_OUT))

        def one(mutant: Mutant) -> Outcome:
            tree = trees.get()
            try:
                return judge(tree, mutant, marks, seconds, coverage)
            finally:
                trees.put(tree)

        futures = {pool.submit(one, mutant): mutant for mutant in wanted}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)


# ---- command ---------------------------------------------------------------------------------------------------------

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode="markdown")


def known(path: Path | None) -> dict[Mutant, Outcome]:
    """Read what an earlier run has found."""
    if path is None or not path.exists():
        return {}
    try:
        rows: list[dict[str, Any]] = json.loads(path.read_text())
        return {Mutant(**row["mutant"]): Outcome(**row["outcome"]) for row in rows}
    except (ValueError, TypeError, KeyError) as error:
        raise refuse(
            str(path), f"it holds no results ({error})", "name another file, or leave --resume away"
        ) from error


def alike(mutant: Mutant) -> str | None:
    """Say why a mutant does what the original does, where that is known."""
    return next((why for file, text, why in ALIKE if mutant.file == file and text in mutant.new), None)


def show(mutant: Mutant, outcome: Outcome) -> None:
    """Print one mutant: what became of it, where, and both lines."""
    by = f" by {outcome.by}" if outcome.by else ""
    by += f", for {reason}" if outcome.state == "survived" and (reason := alike(mutant)) else ""
    say(f"{outcome.state}{by}: {mutant.file}:{mutant.line} ({mutant.kind})")
    say(f"  - {mutant.old.strip()}\n  + {mutant.new.strip()}")


@app.command(help=__doc__)
@guarded
def main(
    count: Annotated[int, typer.Option(help="Mutants to try.")] = 100,
    seed: Annotated[int, typer.Option(help="Which ones are drawn.")] = 0,
    jobs: Annotated[int, typer.Option(help="Mutants that are tried at a time, each in a copy of the tree.")] = 1,
    seconds: Annotated[float, typer.Option(help="Time limit of a mutant's tests.")] = 600,
    marks: Annotated[str, typer.Option(help="Tests that run, as pytest's -m has it.")] = "not slow",
    json_file: JsonFile = None,
    resume: Annotated[bool, typer.Option(help="Keep what the JSON file holds already.")] = False,
    again: Annotated[bool, typer.Option(help="With --resume: try again what was not killed.")] = False,
    coverage: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Which tests run which lines; measured where it is missing."),
    ] = None,
    root: Annotated[Path, typer.Option(hidden=True)] = ROOT,
) -> None:
    """Try mutants and print what became of each."""
    if min(count, jobs) < 1 or seconds <= 0:
        raise refuse("--count, --jobs, --seconds", f"{count}, {jobs}, {seconds:g}", "give more than 0")
    if resume and json_file is None:
        raise refuse("--resume", "nothing to go on from", "name the results with --json")
    wanted = drawn(root, count, seed)
    found = known(json_file) if resume else {}
    missing = [mutant for mutant in wanted if mutant not in found or (again and found[mutant].state != "killed")]
    runs = None if coverage is None else measured(coverage, root, marks, jobs)
    with bars():
        trials = judged(root, missing, marks, seconds, jobs, runs)
        for mutant, outcome in track("trying mutants", trials, len(missing)):
            found[mutant] = outcome
            show(mutant, outcome)
            if json_file is not None:
                write_json(json_file, [{"mutant": asdict(m), "outcome": asdict(o)} for m, o in found.items()])
    states = Counter(found[mutant].state for mutant in wanted)
    for mutant in wanted:
        if mutant not in missing and found[mutant].state != "killed":
            show(mutant, found[mutant])
    same = sum(found[mutant].state == "survived" and alike(mutant) is not None for mutant in wanted)
    say(
        f"{states['killed']} of {len(wanted)} killed, {states['survived']} survived"
        + f", {same} of them for doing what the original does" * bool(same)
        + f", {states['out of time']} out of time (seed {seed})"
    )


if __name__ == "__main__":
    app()
