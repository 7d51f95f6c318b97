"""Saves in processes that are killed, in a process of its own that starts them; prints what is found as JSON.

``python killed.py between FOLDER directory|first|file exchange|renames``: one save for every file operation, killed
before that one.
``python killed.py moments FOLDER SEED COUNT``: saves one after the other, killed at random moments.
``python killed.py race FOLDER``: two processes that save at the same place.
``python killed.py nobody FOLDER``: what is said to a user without permissions.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bundles import contents, network, save
from processes import forked

from exporters import bundle, files, netx
from sim.findings import Refused

NETWORKS = {version: network(weight=version) for version in (1, 2, 3)}
#: What they are in files, laid out once: these tests are about what comes after that.
IMAGES = {id(made): netx.dump(made) for made in NETWORKS.values()}
netx.dump = lambda made: IMAGES[id(made)]
#: What Python tells of file operations before it does them; the others are wrapped.
OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "os.listdir"}


def killed_before(operation: int, action: Callable[[], object]) -> bool:
    """Do it in a process that is killed before so many file operations; False where it has fewer."""

    def counted() -> None:
        seen = 0

        def happens(event: str, _: object = None) -> None:
            nonlocal seen
            if event in OPERATIONS:
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                happens("open")
                result = function(*arguments)
                happens("open")
                return result

            return call

        os.fsync, files._exchanged = wrapped(os.fsync), wrapped(files._exchanged)
        sys.addaudithook(happens)
        action()

    _, status = os.waitpid(forked(counted), 0)
    if not os.WIFSIGNALED(status):
        assert status == 0
        return False
    return True


def made(place: Path, version: int) -> None:
    """Save a bundle whose network says which one it is."""
    save(place, network=NETWORKS[version], config={"version": version})


def reference(action: Callable[[Path], object], place: Path) -> dict[str, bytes]:
    """What a save leaves where nothing disturbs it; what loading refuses ends this process."""
    action(place)
    if place.is_dir():
        bundle.load(place)
    found = contents(place.parent)
    clear(place.parent)
    return found


def clear(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def old_directory(place: Path) -> None:
    """A bundle with more files than the new one."""
    made(place, 1)
    (place / "report.md").write_bytes(b"# tiny")
    (place / "accuracy.png").write_bytes(b"\x89PNG\r\n\x1a\n")


def between(folder: Path, kind: str, way: str) -> dict[str, int]:
    """Count what is found after a kill before every single operation: the state, and how it shows."""
    if way == "renames":
        files._exchanged = lambda *_: False
    place, found = folder / "out", Counter[str]()
    first: Callable[[Path], object] = old_directory
    write: Callable[[Path, int], object] = made
    if kind == "file":
        write = lambda path, version: files.replace_file(path, IMAGES[id(NETWORKS[version])])  # noqa: E731 - short
        first = lambda path: write(path, 1)  # noqa: E731 - short
    if kind == "first":
        first = lambda path: None  # noqa: E731 - short
    old = reference(first, place)
    new, third = (reference(lambda path, version=version: write(path, version), place) for version in (2, 3))
    for operation in range(1000):
        first(place)
        if not killed_before(operation, lambda: write(place, 2)):
            return found
        if old and not place.exists():
            found["without its name"] += 1
            bundle.load(place)
        state = {name: data for name, data in contents(folder).items() if not name.startswith(".")}
        found["old" if state == old else "new" if state == new else "neither"] += 1
        found["leftovers"] += any(name.startswith(".") for name in os.listdir(folder))
        write(place, 3)
        found["not cleaned"] += contents(folder) != third or os.listdir(folder) != ["out"]
        clear(folder)
    raise AssertionError("no end of operations")


def moments(folder: Path, seed: int, count: int) -> dict[str, int]:
    """Count what is found after kills at random moments of one save after the other."""
    place, found, when = folder / "out", Counter[str](), random.Random(seed)
    versions = {version: reference(lambda path, v=version: made(path, v), place) for version in (1, 2)}
    made(place, 1)
    start = time.perf_counter()
    for _ in range(5):
        made(place, 1)
    long = (time.perf_counter() - start) / 5

    def forever() -> None:
        while True:
            for version in versions:
                made(place, version)

    for _ in range(count):
        pid = forked(forever)
        time.sleep(when.uniform(0, 3 * long))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if not place.exists():
            bundle.load(place)
        state = {name: data for name, data in contents(folder).items() if not name.startswith(".")}
        found["whole" if state in versions.values() else "broken"] += 1
        found["leftovers"] += (left := len(os.listdir(folder)) - 1) > 0
        found["more than two left"] += left > 2
    made(place, 1)
    found["not cleaned"] += os.listdir(folder) != ["out"]
    return found


def race(folder: Path) -> dict[str, int]:
    """Count how two processes end that replace the same bundle, and whether it is one of theirs."""
    place, found = folder / "out", Counter[str]()
    versions = {version: reference(lambda path, v=version: made(path, v), place) for version in (1, 2)}
    made(place, 1)
    pids = [forked(lambda v=version: [made(place, v) for _ in range(25)]) for version in versions]
    found.update("done" if os.waitpid(pid, 0)[1] == 0 else "failed" for pid in pids)
    found["whole" if contents(folder) in versions.values() else "broken"] += 1
    found["not cleaned"] += os.listdir(folder) != ["out"]
    return found


def nobody(_: Path) -> dict[str, int]:
    """What is said of a read-only bundle, and of a place beside it, to a user who is bound by permissions."""
    if not os.getuid():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    import tempfile

    said = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place, beside = Path(folder, "bundle"), Path(folder, "beside", "out")
        made(place, 1)
        for closed, asked in ((place, place), (Path(folder), beside)):
            closed.chmod(0o555)
            for action in (bundle.check_place, lambda path: made(path, 2)):
                try:
                    action(asked)
                except Refused as error:
                    said[str(error).replace(folder, "FOLDER")] += 1
            closed.chmod(0o755)
    return said


if __name__ == "__main__":
    mode, folder, *rest = sys.argv[1:]
    arguments = [int(word) if word.isdigit() else word for word in rest]
    print(
        json.dumps(
            {"between": between, "moments": moments, "race": race, "nobody": nobody}[mode](Path(folder), *arguments)
        )
    )
