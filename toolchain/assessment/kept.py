"""Finished shards of an evaluation in a file, so that a killed one goes on: JSON, a line each, the first what they are.

A line is added when a shard is done, and is on the disk before the next one is counted. What a kill has left of a line
is cut off; any other damage is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

from exporters.files import replace_file
from exporters.report.record import Record
from sim.findings import Refused, refuse
from toolchain.assessment.tally import Tally
from toolchain.inputs import existing

FORMAT = "ann2loihi evaluation 1"
ANOTHER = "give another file, or what it was begun with"
DAMAGED = "give an undamaged file, or a new one"
LONGEST = 1 << 12  #: bytes of the first line
MEANING = {"network": "another network", "data": "other data"}


@dataclass(frozen=True, kw_only=True)
class Described(Record):
    """What shards are of."""

    format: str = FORMAT
    network: str  #: SHA-256 of its file
    samples: int
    data: str  #: :meth:`toolchain.data.Source.identity`
    shard: int  #: samples of a shard; the last may have fewer
    task: str
    engine: str
    overflow: str


Keep = Callable[[int, Tally], None]  #: takes a finished shard and its number
Fits = Callable[[int, int, Tally], bool]  #: (samples of a shard, its number, what was counted)


@contextmanager
def kept(
    path: Path | None, wanted: Described, shard: int | None, fits: Fits
) -> Iterator[tuple[int, dict[int, Tally], Keep]]:
    """Give the size of shards, those that a file holds, by number, and what adds one to it.

    A file that is there has to be of the ``wanted`` evaluation, in shards of ``shard`` samples or, where that is None,
    any; a new one is made. Without a path nothing is kept. Raises :class:`Refused` for a file of something else,
    damaged, or in use.
    """
    if path is None:
        yield wanted.shard, {}, lambda number, tally: None
        return
    if not os.path.lexists(path):
        replace_file(path, _line({"format": FORMAT} | wanted.as_dict()))
    with _writing(path):
        opened = existing(path).open("r+b")
    with opened as file:
        _lock(path, file)
        found = _described(path, file.readline(LONGEST))
        wanted = wanted if shard is not None else replace(wanted, shard=found.shard)
        _same(path, found, wanted)
        done: dict[int, Tally] = {}
        end = file.tell()
        for line in file:
            if not line.endswith(b"\n"):  # a kill in the middle of it
                break
            number, tally = _shard(path, line)
            if number in done or not fits(wanted.shard, number, tally):
                raise refuse(str(path), f"shard {number} cannot be one of this evaluation", DAMAGED)
            done[number] = tally
            end += len(line)

        def keep(number: int, tally: Tally) -> None:
            with _writing(path):
                file.write(_signed(number, tally))
                file.flush()
                os.fsync(file.fileno())

        with _writing(path):
            file.truncate(end)
            file.seek(end)
        yield wanted.shard, done, keep


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = (error.strerror or str(error)).lower()
        raise refuse(str(path), problem, "check the disk and the permissions") from error


def _line(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode() + b"\n"


def _signed(number: int, tally: Tally) -> bytes:
    content = {"shard": number, "tally": tally.as_dict()}
    return _line(content | {"sha256": sha256(_line(content)).hexdigest()})


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        content = None
    return content if isinstance(content, dict) else {}


def _described(path: Path, line: bytes) -> Described:
    content = _parsed(line)
    if content.get("format") != FORMAT or not line.endswith(b"\n"):
        raise refuse(str(path), "holds no shards of an evaluation", "give a new file")
    return Described.from_dict(content, str(path))


def _same(path: Path, found: Described, wanted: Described) -> None:
    for field in fields(Described):
        stored, asked = getattr(found, field.name), getattr(wanted, field.name)
        if stored != asked:
            problem = MEANING.get(field.name, f"{field.name} {stored}, not {asked}")
            raise refuse(str(path), f"holds shards of {problem}", ANOTHER)


def _shard(path: Path, line: bytes) -> tuple[int, Tally]:
    content = _parsed(line)
    signature = content.pop("sha256", None)
    number = content.get("shard")
    if signature != sha256(_line(content)).hexdigest() or type(number) is not int:
        raise refuse(str(path), "a shard in it is damaged", DAMAGED)
    try:
        return number, Tally.from_dict(content.get("tally"), "tally")
    except Refused as error:
        raise refuse(str(path), f"shard {number} in it is of another version ({error.findings[0]})", DAMAGED) from error


def _lock(path: Path, file: IO[bytes]) -> None:
    """Keep others from adding to a file, where the system knows how to."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise refuse(str(path), "is in use by another evaluation", "wait for it, or give another file") from error
        except OSError:  # a file system without locks
            pass
