"""Nothing is lost when something is saved: not what others have put there, not the old, and never half of the new."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import h5py
import numpy as np
import pytest
from bundles import contents, network, save, save_reported
from matplotlib.figure import Figure
from reports import REPORT

from exporters import bundle, files, netx
from sim.findings import Refused

KILLED = Path(bundles.__file__).with_name("killed.py")
WAYS = ["exchange", "renames"]  #: in one step, and where the system cannot do that


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_reported(tmp_path / "out")


def refusal(directory: Path) -> str:
    """What is said, in one line, before the work and when saving."""
    with pytest.raises(Refused) as before:
        bundle.check_place(directory)
    with pytest.raises(Refused) as caught:
        save(directory, config={"timesteps": 9})
    assert str(before.value) == str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def everything(folder: Path) -> dict[str, Any]:
    """Every entry below a folder, with what it is and holds."""
    return {
        str(path.relative_to(folder)): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else path.lstat().st_mode
        )
        for path in folder.rglob("*")
    }


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(directory: Path) -> None:
        (directory / name).unlink(missing_ok=True)
        make(directory / name)

    return change


def other_tool(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["layer/0/weight"] = np.eye(2)


FOREIGN: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a text": ("'notes.txt'", replaced("notes.txt", lambda path: path.write_text("mine"))),
    "a hidden file": ("'.env'", replaced(".env", lambda path: path.write_text("mine"))),
    "a folder": ("'src'", lambda directory: (directory / "src").mkdir()),
    "a folder of our name": ("'report.md'", replaced("report.md", Path.mkdir)),
    "a link of our name": ("'report.md'", replaced("report.md", lambda path: path.symlink_to("/etc/hostname"))),
    "a link to nowhere": ("'rates.png'", replaced("rates.png", lambda path: path.symlink_to("nowhere"))),
    "a pipe": ("'rates.png'", replaced("rates.png", os.mkfifo)),
    "no picture": ("'accuracy.png'", replaced("accuracy.png", lambda path: path.write_bytes(b"GIF89a"))),
    "no page of ours": (
        "'report.html'",
        replaced("report.html", lambda path: path.write_text("<!doctype html><p>mine")),
    ),
    "no JSON": ("'config.json'", replaced("config.json", lambda path: path.write_text("[1]"))),
    "no HDF5": ("'network.net'", replaced("network.net", lambda path: path.write_text("netlist"))),
    "another tool's network": ("'network.net'", replaced("network.net", other_tool)),
    "a name that is no text": (r"'\udcff'", lambda directory: Path(os.fsdecode(bytes(directory) + b"/\xff")).touch()),
    "many": ("'a', 'b', 'c' and 2 more", lambda directory: [(directory / name).touch() for name in "edcba"]),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_directory_with_anything_that_save_does_not_write_is_left_alone(what: str, saved: Path) -> None:
    named, put = FOREIGN[what]
    put(saved)
    before = everything(saved.parent)
    assert refusal(saved) == (
        f"{saved}: it holds what is not of a conversion and would be lost: {named}; give a new or empty directory, or "
        "move that away"
    )
    assert everything(saved.parent) == before


@pytest.mark.parametrize("names", [["config.json"], ["network.net"], ["config.json", "provenance.json"]], ids=str)
def test_files_of_our_names_alone_make_no_bundle(names: list[str], saved: Path) -> None:
    for path in saved.iterdir():
        if path.name not in names:
            path.unlink()
    before = everything(saved)
    assert ", ".join(map(repr, names)) in refusal(saved)
    assert everything(saved) == before


def test_a_place_that_is_no_directory_or_cannot_be_replaced_is_left_alone(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saved.parent
    (folder / "link").symlink_to(saved)
    (folder / "nowhere").symlink_to(folder / "none")
    (folder / "circle").symlink_to(folder / "circle")
    (folder / "file").write_text("mine")
    (folder / "empty").mkdir()
    before = everything(folder)
    for name in ("link", "nowhere", "circle"):
        assert refusal(folder / name) == f"{folder / name}: it is a link; give the directory that it leads to"
    assert "it exists and is no directory; choose another place" in refusal(folder / "file")
    assert f"{folder / 'file'} is no directory" in refusal(folder / "file" / "a" / "b")
    assert "its name has more than 200 bytes" in refusal(folder / ("x" * 201))
    assert refusal(folder / "circle" / "out").startswith(f"{folder / 'circle' / 'out'}: ")
    assert refusal(Path("/")) == "/: it is a mount point, which cannot be replaced; choose another place"
    for name in ("out", "empty"):
        monkeypatch.chdir(folder / name)
        assert refusal(Path()) == ".: it is the working directory, which cannot be replaced; choose another place"
    assert everything(folder) == before


def test_a_place_is_checked_without_being_touched(tmp_path: Path) -> None:
    bundle.check_place(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_user_without_permission_is_told_before_and_when_saving(tmp_path: Path) -> None:
    assert run("nobody", tmp_path) == {
        "FOLDER/bundle: it is read-only; choose another place": 2,
        "FOLDER/beside/out: nothing can be written in FOLDER; choose another place": 2,
    }


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "renames":
        monkeypatch.setattr(files, "_exchanged", lambda *_: False)
    return str(request.param)


@pytest.mark.usefixtures("way")
def test_what_others_put_there_while_it_is_replaced_is_not_lost(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files._write

    def meanwhile(path: Path, data: bytes) -> None:
        (saved / "notes.txt").write_text("mine")
        write(path, data)

    monkeypatch.setattr(files, "_write", meanwhile)
    before = everything(saved.parent)
    with pytest.raises(Refused, match="something else was put there in the meantime; choose another place"):
        save(saved, config={"timesteps": 9})
    assert everything(saved.parent) == {**before, "out/notes.txt": b"mine"}


def test_who_may_read_a_bundle_stays_as_it_was(saved: Path) -> None:
    saved.chmod(0o750)
    save(saved)
    assert saved.stat().st_mode & 0o7777 == 0o750


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_a_failure_while_drawing_leaves_the_old_bundle_and_nothing_else(
    failure: type[BaseException], saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(Figure, "savefig", fail)
    before = everything(saved.parent)
    for place in (saved, saved.parent / "new"):
        with pytest.raises(failure):
            save(place, config={"timesteps": 9}, report=REPORT)
    assert everything(saved.parent) == before


@pytest.mark.parametrize("operation", range(1, 5))
@pytest.mark.parametrize("done", [False, True], ids=["instead", "after"])
@pytest.mark.usefixtures("way")
def test_an_interrupt_at_any_rename_leaves_the_old_bundle_or_the_new_and_nothing_else(
    operation: int, done: bool, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            calls.append(step)
            if len(calls) == operation and not done:
                raise KeyboardInterrupt
            result = step(*arguments)
            if len(calls) == operation:
                raise KeyboardInterrupt
            return result

        return call

    save(saved.parent / "new", config={"timesteps": 9})
    old, new = contents(saved), contents(saved.parent / "new")
    monkeypatch.setattr(os, "rename", interrupted(os.rename))
    monkeypatch.setattr(files, "_exchanged", interrupted(files._exchanged))
    try:
        save(saved, config={"timesteps": 9})
    except KeyboardInterrupt:
        assert contents(saved) in (old, new)
    else:
        assert len(calls) < operation
        assert contents(saved) == new
    assert sorted(path.name for path in saved.parent.iterdir()) == ["new", "out"]


FULL = """
import resource, sys
from pathlib import Path
from bundles import network, save
from exporters import netx
from reports import REPORT
from sim.findings import Refused
folder = Path(sys.argv[1])
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    for action in (
        lambda: save(folder / "out", config={"timesteps": 9}, report=REPORT),
        lambda: save(folder / "new", network=network(weight=6)),
        lambda: netx.write(network(weight=6), folder / "a.net"),
    ):
        try:
            action()
            print("written")
        except Refused as error:
            print(error)
"""


def test_a_full_disk_is_one_line_wherever_it_fills_up_and_leaves_what_was_there(tmp_path: Path) -> None:
    place, file = tmp_path / "out", tmp_path / "a.net"
    save(place, report=REPORT)
    netx.write(network(), file)
    before, enough = everything(tmp_path), file.stat().st_size
    largest = max(place.iterdir(), key=lambda path: path.stat().st_size)
    assert largest.name == "report.html"
    # A limit on a file's size stands for a disk that is full: at once, in the network, in the page.
    limits = [0, enough - 1, largest.stat().st_size * 9 // 10]  # another recipe makes a page a little shorter
    assert limits[-1] > enough
    done = python("-c", FULL, tmp_path, *limits)
    said = iter(done.splitlines())
    full = "it cannot be written (File too large); make room, or choose another place"
    for limit in limits:
        assert next(said) == f"{place}: {full}"
        for smaller in (tmp_path / "new", file):
            assert next(said) == ("written" if limit >= enough else f"{smaller}: {full}")
    assert contents(place) == {name[4:]: data for name, data in before.items() if name.startswith("out/")}
    assert netx.read(file) == bundle.load(tmp_path / "new").network == network(weight=6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.net", "new", "out"]


def python(*arguments: object) -> str:
    """Run Python in a process of its own and return what it prints."""
    where = os.pathsep.join(map(str, KILLED.parents[:2]))
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": where},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def run(*arguments: object) -> Any:
    return json.loads(python(KILLED, *arguments))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["directory", "first", "file"])
def test_a_kill_between_any_two_operations_leaves_the_old_or_the_new_one_and_the_next_save_cleans_up(
    kind: str, way: str, tmp_path: Path
) -> None:
    found = run("between", tmp_path, kind, way)
    assert found["not cleaned"] == 0
    assert "neither" not in found
    assert found["old"] > 4  # operations until the names change
    assert found["new"] > 1
    assert found["leftovers"] > 3
    # Only renames leave a moment without a name, and loading gives it back.
    assert ("without its name" in found) == (kind == "directory" and way == "renames")


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_leaves_a_whole_bundle_and_the_next_save_cleans_up(count: int, tmp_path: Path) -> None:
    found = run("moments", tmp_path, 0, count)
    assert found["leftovers"] > 0
    assert found == {"whole": count, "leftovers": found["leftovers"], "more than two left": 0, "not cleaned": 0}


def test_two_that_save_at_the_same_place_leave_one_of_theirs(tmp_path: Path) -> None:
    assert run("race", tmp_path) == {"done": 2, "whole": 1, "not cleaned": 0}


def test_leftovers_are_removed_once_their_process_is_dead_and_hold_nothing_else(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    save(tmp_path / "out")
    names = {
        "dead": f".out.{dead.pid}.00000001.partial",
        "dead, replaced": f".out.{dead.pid}.00000001.old",
        "ours, from before": f".out.{os.getpid()}.00000002.partial",
        "alive": f".out.{os.getppid()}.00000003.partial",
        "of another place": f".output.{dead.pid}.00000004.partial",
        "with a file of somebody's": f".out.{dead.pid}.00000005.partial",
    }
    for name in names.values():
        (tmp_path / name).mkdir()
        (tmp_path / name / "network.net").write_bytes(b"half")
    (tmp_path / names["with a file of somebody's"] / "notes.txt").write_text("mine")
    save(tmp_path / "out", config={"timesteps": 3})
    assert bundle.load(tmp_path / "out").config == {"timesteps": 3}
    kept = {path for path in everything(tmp_path) if path.endswith(".partial")}
    assert {names["alive"], names["of another place"]} < kept
    assert len(kept) == 3
    assert [path.read_text() for path in tmp_path.glob(".out.*/notes.txt")] == ["mine"]
    assert not list(tmp_path.glob(".*.old"))


def test_an_old_bundle_without_its_name_is_kept_until_there_is_another(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    old = contents(saved)
    saved.rename(saved.with_name(f".out.{dead.pid}.00000001.old"))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(files, "recover", lambda path: None)  # its process was still alive when that was looked at
        patched.setattr(os, "fsync", full)
        with pytest.raises(Refused, match="No space left"):
            save(saved)
    assert bundle.load(saved).report == REPORT
    assert contents(saved) == old
