"""The documentation site: what its pages say of commands, names, files and messages holds in the code; and it builds."""

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
        name, inner, rest = command.resolve_command(context, words)
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


@each_page
def test_paths_of_the_repository_on_pages_exist(page: Path) -> None:
    named = re.findall(r"`((?:benchmarks|docs|examples|exporters|notebooks|sim|tests|toolchain)/[\w./]+)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


def sphinx(target: Path, *options: str, source: Path = ROOT) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", source / "docs", *options, source, target]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})


@pytest.mark.skipif(find_spec("sphinx") is None, reason="Sphinx is not installed: pip install 'ann2loihi[docs]'")
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    done = sphinx(tmp_path / "site")
    assert (done.returncode, done.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        # Links lead elsewhere; what a browser loads by itself does not.
        loads = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)|<link[^>]* href="([^"]+)', page.read_text())
        assert not [url for pair in loads for url in pair if re.match(r"(https?:)?//", url)], page
    assert "<math" in (tmp_path / "site" / "docs" / "methods.html").read_text()
    api = (tmp_path / "site" / "docs" / "reference" / "api.html").read_text()
    assert all(f'id="ann2loihi.{name}"' in api for name in ("convert", "Conversion", "Recipe", "QCFS"))
    assert "--latency-budget" in (tmp_path / "site" / "docs" / "reference" / "commands.html").read_text()
