"""The documentation: what pages say of commands, names, files and messages holds in the code; and the site builds."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main

import ann2loihi as a2l
from toolchain.app import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
CODE = [path for name in ("ann2loihi", "exporters", "sim", "toolchain") for path in sorted((ROOT / name).rglob("*.py"))]
BLOCK = re.compile(r"(?m)^```(\w+)\n(.*?)^```", re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())


def texts(tree: ast.AST) -> Iterator[str]:
    """Every string in code; what is filled in is written as …."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_every_message_that_is_explained_is_one_of_the_code() -> None:
    said = [text for path in CODE for text in texts(ast.parse(path.read_text()))]
    messages = re.findall(r"(?m)^### `(.*)`$", (ROOT / "docs" / "troubleshooting.md").read_text())
    assert len(messages) > 50
    assert [message for message in messages if not any(message in text for text in said)] == []


def commands(page: Path) -> list[list[str]]:
    """The words after ``ann2loihi`` of every command that a page shows, in a block or in the text."""
    text = page.read_text()
    lines = [line.removeprefix("$ ") for kind, body in BLOCK.findall(text) if kind == "console"
             for line in body.splitlines() if line.startswith("$ ")]  # fmt: skip
    lines += [line.strip() for line in text.splitlines() if line.startswith("    ")]
    lines += [" ".join(found.split()) for found in re.findall(r"(?<!`)`(ann2loihi [^`]+)`", text)]
    found = [shlex.split(line, comments=True) for line in lines if re.match(r"ann2loihi [a-z]", line)]
    return [words[1:] for words in found if "..." not in words]


def parse(command: Any, words: list[str]) -> None:
    """Hold words against a command's options, without running it; raises click's errors."""
    context = type(command).context_class(command, info_name=command.name)
    if hasattr(command, "commands"):
        command.parse_args(context, list(words))
        name, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert inner is not None, name
        parse(inner, rest)
    else:
        command.make_parser(context).parse_args(list(words))


@each_page
def test_commands_on_pages_have_the_options_that_they_are_shown_with(page: Path) -> None:
    for words in commands(page):
        try:
            parse(typer.main.get_command(cli.app), words)
        except cli.UsageError as error:
            pytest.fail(f"ann2loihi {' '.join(words)}: {error.format_message()}")


def test_a_command_with_an_option_that_there_is_not_is_found() -> None:
    with pytest.raises(cli.UsageError):
        parse(typer.main.get_command(cli.app), ["convert", "--stepps", "8"])
    with pytest.raises(cli.UsageError):
        parse(typer.main.get_command(cli.app), ["fly"])


@each_page
def test_names_behind_the_door_on_pages_are_there(page: Path) -> None:
    for name in set(re.findall(r"\ba2l((?:\.\w+)+)", page.read_text())):
        value: Any = a2l
        for part in name[1:].split("."):
            assert hasattr(value, part), f"a2l{name}"
            value = getattr(value, part)


@each_page
def test_python_on_pages_is_python(page: Path) -> None:
    for kind, body in BLOCK.findall(page.read_text()):
        if kind == "python":
            ast.parse(body)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder and the names that the pages by task take for granted: a user's model and data, and a conversion."""
    folder = tmp_path_factory.mktemp("how-to")
    digits, model = a2l.demo.data.load(), a2l.demo.load_model()
    (folder / "model.py").write_text("from ann2loihi import demo\n\nbuild = demo.digits_cnn\n")
    torch.save(model.state_dict(), folder / "model.pt")
    x, y = digits.test_x[:64], digits.test_y[:64]
    conversion = a2l.convert(model, digits.calibration_x, timesteps=2)
    conversion.save(folder / "build" / "mine")
    payload = conversion.network.input.encode(x[:2])
    names = {"model": model, "x": digits.calibration_x, "x_calibration": digits.calibration_x, "x_test": x, "y_test": y}
    return folder, names | {"payload": payload}


@pytest.mark.parametrize("name", ["accuracy", "check", "convert", pytest.param("export", marks=pytest.mark.lava)])
def test_python_of_the_pages_by_task_runs(
    name: str, workplace: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, names = workplace
    monkeypatch.chdir(folder)
    scope = dict(names)
    for kind, body in BLOCK.findall((ROOT / "docs" / "howto" / f"{name}.md").read_text()):
        if kind == "python":
            exec(compile(body, f"{name}.md", "exec"), scope)


@each_page
def test_paths_of_the_repository_on_pages_exist(page: Path) -> None:
    named = re.findall(r"`((?:benchmarks|docs|examples|exporters|sim|tests|toolchain)/[\w./]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def plain(line: str) -> str:
    """A line of output without what a conversion decides, and without the width of columns."""
    return " ".join(re.sub(r"-?\d[\d.]*", "#", line).split())


@pytest.mark.slow
@pytest.mark.lava
def test_the_tutorial_does_what_it_shows(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "110"}
    programs = {"ann2loihi": [sys.executable, "-m", "ann2loihi"], "python": [sys.executable]}
    printed, ran = "", 0

    def run(*words: str) -> None:
        nonlocal printed, ran
        done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == ("refused" in done.stdout), (words, done.stdout, done.stderr)
        printed, ran = done.stdout, ran + 1

    for kind, body in BLOCK.findall((ROOT / "docs" / "tutorial.md").read_text()):
        if kind == "python" and (name := re.match(r"# (\w+\.py)\n", body)):
            (tmp_path / name[1]).write_text(body)
        elif kind == "python":
            run(sys.executable, "-c", body)
        for line in body.splitlines() if kind == "console" else ():
            if line.startswith("$ "):
                program, *rest = shlex.split(line)[1:]
                if program in programs:
                    run(*programs[program], *rest)
            elif line != "..." and not line.startswith("Nothing is lost"):  # how many more are right, nobody promises
                assert plain(line) in map(plain, printed.splitlines()), line
    assert ran > 8


def sphinx(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", ROOT / "docs", source, target]
    paths = os.pathsep.join(map(str, {ROOT, source}))
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths})


needs_sphinx = pytest.mark.skipif(
    find_spec("sphinx") is None or find_spec("furo") is None or find_spec("myst_parser") is None,
    reason="what builds the site is not installed: pip install 'ann2loihi[docs]'",
)


@needs_sphinx
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    done = sphinx(ROOT, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        # Links lead elsewhere; what a browser loads by itself does not.
        loads = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)|<link[^>]* href="([^"]+)', page.read_text())
        assert not [url for pair in loads for url in pair if re.match(r"(https?:)?//", url)], page
    assert "<math" in (tmp_path / "docs" / "methods.html").read_text()
    api = (tmp_path / "docs" / "reference" / "api.html").read_text()
    assert all(f'id="ann2loihi.{name}"' in api for name in ("convert", "Conversion", "Recipe", "QCFS"))
    assert "T, the length of every firing window." in api
    assert "--latency-budget" in (tmp_path / "docs" / "reference" / "commands.html").read_text()


FAULTY = """\
# A page

## A heading

[good](#a-heading), [anchor](#no-heading), [page](nothing.md), [its anchor](other.md#no-heading), [file](nothing.py)

![picture](nothing.svg)

$\\nothing$

{py:func}`ann2loihi.nothing`

```{eval-rst}
.. autofunction:: faulty.naked

.. autofunction:: faulty.dressed
```

```{toctree}
other
```
"""


@needs_sphinx
def test_what_is_broken_fails_the_build_and_is_named(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(FAULTY)
    (tmp_path / "docs" / "other.md").write_text("# Other\n")
    (tmp_path / "docs" / "orphan.md").write_text("# On no list\n")
    dressed = 'def dressed():\n    """See :func:`toolchain.nothing` and :func:`sim.fast.run`."""\n'
    (tmp_path / "faulty.py").write_text(f"def naked():\n    pass\n\n\n{dressed}")
    done = sphinx(tmp_path, tmp_path / "site")
    assert done.returncode == 1
    for sentence in (
        "target not found: 'no-heading'",
        "target not found: 'nothing.md'",
        "not found in doc 'docs/other': 'no-heading'",
        "target not found: 'nothing.py'",
        "not readable: docs/nothing.svg",
        'Unknown LaTeX command "\\nothing"',
        "target not found: ann2loihi.nothing",
        "function faulty.naked has no docstring",
        "target not found: toolchain.nothing",
        "orphan.md: WARNING: document isn't included",
        "ann2loihi.convert is on no page",
    ):
        assert sentence in done.stderr, (sentence, done.stderr)
    assert "sim.fast.run" not in done.stderr
