"""Files and directories that take their new content at once, or stay as they were.

New content is written and flushed to the disk beside its place, as ``.NAME.PID.RANDOM.partial``, and then takes the
name in one step. What a killed process leaves behind is named after it: the next write to the same place removes it.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from sim.findings import Finding, Refused, refuse

SHOWN = 3  #: entries of a directory that a finding names
NAME_LIMIT = 200  #: bytes of a directory's name: the names beside it are longer, and file systems end at 255
AT_FDCWD, RENAME_EXCHANGE = -100, 2  #: of Linux: fcntl.h, linux/fs.h

_held: set[Path] = set()  #: temporary names that this process is using


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` to a file, new or in the place of an old one; a link keeps leading to it.

    Raises :class:`Refused` where it cannot be written, or something else than a file has the name.
    """
    with _refusing(path):
        target = path.resolve()
        if not target.parent.is_dir():
            raise refuse(str(path), "it lies in no directory", "create that first, or choose another place")
        if target.exists() and not target.is_file():
            raise refuse(str(path), "it exists and is no file", "choose another place")
        _clear(target, None)
        with _beside(target, None) as new:
            _write(new, data)
            _copy_mode(target, new)
            os.replace(new, target)
            _flush(target.parent)


@contextmanager
def made_beside(path: Path) -> Iterator[Path]:
    """Give a name to make a large file under, for a new ``path``: it takes that when the block ends without an error.

    Raises as :func:`replace_file`, and where the name is taken.
    """
    with _refusing(path):
        target = path.resolve()
        if not target.parent.is_dir():
            raise refuse(str(path), "it lies in no directory", "create that first, or choose another place")
        if os.path.lexists(target):
            raise refuse(str(path), "it exists", "choose another place")
        _clear(target, None)
        with _beside(target, None) as new:
            yield new
            os.rename(new, target)
            _flush(target.parent)


def replace_directory(
    path: Path, contents: Mapping[str, bytes], names: Collection[str], foreign: Callable[[Path], list[str]]
) -> None:
    """Make a directory of files, new or in the place of an old one, all of whose files are then gone.

    ``names`` are those that files of such a directory may have, and ``foreign`` tells which entries of an old one are
    somebody's own. Raises :class:`Refused` where there are any, for :func:`obstacles`, or where it cannot be written.
    """
    recover(path)
    if findings := obstacles(path, foreign):
        raise Refused(findings)
    with _refusing(path):
        target = path.resolve()
        os.makedirs(target.parent, exist_ok=True)
        _clear(target, names)
        with _beside(target, names) as new:
            os.mkdir(new)
            for name, data in contents.items():
                _write(new / name, data)
            _copy_mode(target, new)
            _flush(new)
            if not target.exists():
                os.rename(new, target)
            else:
                _exchange(new, target, names)
                # Only now can nobody put anything more into the old one by its name.
                if new.is_symlink() or not new.is_dir() or foreign(new):
                    _exchange(new, target, names)
                    raise refuse(str(path), "something else was put there in the meantime", "choose another place")
            _flush(target.parent)


def recover(path: Path) -> None:
    """Give a directory its name back if the process that was replacing it has been killed while it had none."""
    if not path.exists():
        for left in _left(path):
            if left.suffix == ".old":
                with suppress(OSError):  # another process was faster
                    os.rename(left, path)


def obstacles(path: Path, foreign: Callable[[Path], list[str]]) -> list[Finding]:
    """Say what keeps a directory from being made or replaced, as far as that shows before anything is written.

    ``foreign`` as for :func:`replace_directory`.
    """
    remedy = "choose another place"
    try:
        if path.is_symlink():
            return [Finding(str(path), "it is a link", "give the directory that it leads to")]
        target = path.resolve()
        above = next(parent for parent in (*target.parents, target) if parent.exists())
        if len(os.fsencode(target.name)) > NAME_LIMIT:
            problem = f"its name has more than {NAME_LIMIT} bytes"
        elif not above.is_dir():
            problem = f"{above} is no directory"
        elif target.exists() and not target.is_dir():
            problem = "it exists and is no directory"
        elif target.exists() and os.path.ismount(target):
            problem = "it is a mount point, which cannot be replaced"
        elif target.exists() and os.path.samefile(target, os.curdir):
            problem = "it is the working directory, which cannot be replaced"
        elif target.exists() and not os.access(target, os.R_OK | os.W_OK | os.X_OK):
            problem = "it is read-only"
        elif not os.access(above, os.W_OK | os.X_OK):
            problem = f"nothing can be written in {above}"
        elif target.exists() and (theirs := foreign(target)):
            more = f" and {len(theirs) - SHOWN} more" if len(theirs) > SHOWN else ""
            listed = ", ".join(map(ascii, theirs[:SHOWN])) + more
            problem = f"it holds what is not of a conversion and would be lost: {listed}"
            remedy = "give a new or empty directory, or move that away"
        else:
            return []
    except (OSError, RuntimeError) as error:  # the latter for links in a circle, before Python 3.13
        problem = _reason(error)
    return [Finding(str(path), problem, remedy)]


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:
        problem = f"it cannot be written ({_reason(error)})"
        raise refuse(str(path), problem, "make room, or choose another place") from error


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())


@contextmanager
def _beside(path: Path, names: Collection[str] | None) -> Iterator[Path]:
    """Give a name beside ``path`` to write under; what still has it when the block ends is removed."""
    new = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex[:8]}.partial")
    _held.add(new)
    try:
        yield new
    finally:
        _remove(new, names)
        _held.discard(new)


def _exchange(new: Path, path: Path, names: Collection[str]) -> None:
    """Exchange the names of two directories: in one step where the system can, else in three that can be recovered."""
    if _exchanged(new, path):
        return
    old = new.with_suffix(".old")
    _held.add(old)
    try:
        os.rename(path, old)
        os.rename(new, path)
        os.rename(old, new)
    finally:
        if old.exists() and not path.exists():
            os.rename(old, path)
        _remove(old, names)
        _held.discard(old)


def _exchanged(one: Path, other: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):  # another system
        return False
    # A failure has no need of a reason: what else stands in the way, the slow way meets as well.
    return renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE) == 0


def _clear(path: Path, names: Collection[str] | None) -> None:
    """Remove what killed processes have left beside ``path``."""
    for left in _left(path):
        # Under a name of ours, nobody who may be alive after all can put it in place while it is taken apart.
        with suppress(OSError), _beside(path, names) as mine:
            if left.suffix != ".old" or path.exists():
                os.rename(left, mine)


def _left(path: Path) -> list[Path]:
    """Find what processes that no longer run have left beside ``path``."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.([0-9]+)\.[0-9a-f]{{8}}\.(partial|old)")
    try:
        found = [(path.with_name(name), pattern.fullmatch(name)) for name in os.listdir(path.parent)]
    except OSError:
        return []
    return [left for left, match in found if match and not _in_use(left, int(match[1]))]


def _in_use(left: Path, pid: int) -> bool:
    if pid == os.getpid():  # in containers, every process may have the same number
        return left in _held
    if os.name == "nt":  # there, to ask is to kill
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _remove(path: Path, names: Collection[str] | None) -> None:
    """Remove a file, or where there are ``names`` a directory, unless it holds anything but files of these names."""
    with suppress(OSError):  # it stays for the next one to remove
        if names is None:
            os.unlink(path)
        elif not path.is_symlink() and all(
            name in names and stat.S_ISREG(os.lstat(path / name).st_mode) for name in os.listdir(path)
        ):
            for name in os.listdir(path):
                os.unlink(path / name)
            os.rmdir(path)


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _copy_mode(old: Path, new: Path) -> None:
    """Keep who may read and write what is replaced."""
    with suppress(OSError):  # it is new, or the file system knows no modes
        shutil.copymode(old, new)


def _flush(directory: Path) -> None:
    """Bring the names in a directory to the disk."""
    with suppress(OSError):  # not every system and file system can, and what has been written is in place by now
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
