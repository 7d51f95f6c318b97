"""`ann2loihi report`: the page of a directory, and two conversions beside each other."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from bundles import CONFIG, save
from reports import REPORT
from typer.testing import CliRunner, Result

from toolchain.app import cli


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(a) for a in arguments], catch_exceptions=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(tmp_path / "out", report=REPORT)
    return tmp_path / "out"


def test_a_directory_alone_gives_its_page(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: shown.append(url) or True)
    (saved / "report.html").unlink()
    result = run("report", saved)
    assert (result.exit_code, result.stdout.strip()) == (0, str(saved / "report.html"))
    assert (saved / "report.html").read_text().startswith("<!doctype html>")
    assert shown == []
    assert run("report", saved, "--open").exit_code == 0
    assert shown == [(saved / "report.html").resolve().as_uri()]
    assert json.loads(run("report", "page", saved, "--json").stdout) == {"page": str(saved / "report.html")}


def test_without_a_browser_it_says_what_to_do(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda url: False)
    result = run("report", saved, "--open")
    assert result.exit_code == 0
    assert "no browser was found; open the file in one" in result.stdout


def test_what_has_no_report_is_refused_in_one_line(saved: Path) -> None:
    (saved / "report.json").unlink()
    for arguments, says in (
        (("report", saved), "it holds no report.json: nothing was measured"),
        (("report", saved / "nowhere"), "there is no such directory"),
        (("report", "diff", saved, saved / "nowhere"), "nowhere: it is missing"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        (line,) = result.stderr.strip().splitlines()
        assert line.startswith("error: ")
        assert says in line


def test_two_conversions_are_printed_beside_each_other(saved: Path, tmp_path: Path) -> None:
    save(tmp_path / "other", config=CONFIG | {"method": "mse"})
    result = run("report", "diff", saved, tmp_path / "other")
    assert result.exit_code == 0
    cells = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert "accuracy, % 97.25 - -" in cells
    assert "T 2 2 -" in cells
    assert "method exact mse -" in cells
    assert "hidden 3 64 1 - -" in cells
    found = json.loads(run("report", "diff", saved, tmp_path / "other", "--json").stdout)
    assert found["config"] == [{"what": "method", "a": "exact", "b": "mse"}]


def test_errors_of_layers_are_printed_as_changes(tmp_path: Path) -> None:
    document = REPORT.as_dict()
    (tmp_path / "a.json").write_text(json.dumps(document))
    document["attribution"]["layers"][0] |= {"error": 0.2, "clipping": 0.15}
    (tmp_path / "b.json").write_text(json.dumps(document))
    cells = [
        " ".join(line.split())
        for line in run("report", "diff", tmp_path / "a.json", tmp_path / "b.json").stdout.splitlines()
    ]
    assert "conv|1 -0.050 +0.000 +0.000 -0.050 +0.000 +0.000 +0.000" in cells
    assert "fc +0.000 +0.000 +0.000 +0.000 +0.000 +0.000 +0.000" in cells


@pytest.mark.parametrize("command", ["report", "report page", "report diff"])
def test_help_has_an_example(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.exit_code == 0
    assert ("Example: ann2loihi report" in " ".join(result.output.split())) == (command != "report")
