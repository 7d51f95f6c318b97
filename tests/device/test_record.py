"""A record is whole at every moment, goes on where it was killed, and is not trusted when it is read."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from jobs import NETWORK, PAYLOAD, apart, on_board
from processes import forked
from refusing import refusal

from exporters import device
from exporters.device.record import Contents, Record, Writer
from exporters.device.target import Answer
from sim import reference
from sim.findings import Refused

JOB = {
    "target": "loihi2", "schedule": "written", "read": ["first", "second", "out"], "request": {},
    "task": None, "data": None,
}  # fmt: skip
VISIT = {"ran_on": {"models": {}}, "unconfirmed": []}
TRACE = reference.run(NETWORK, PAYLOAD)


def answer(sample: int) -> Answer:
    return Answer(
        {name: spikes[sample] for name, spikes in TRACE.spikes.items()},
        {name: potentials[sample] for name, potentials in TRACE.potentials.items()},
    )


def create(path: Path, room: int = 5) -> Writer:
    return Writer.create(path, Contents(NETWORK, PAYLOAD[:room], np.arange(room), JOB))


def written(path: Path, samples: int = 5, room: int = 5) -> Path:
    with create(path, room) as writer:
        visit = writer.visit(VISIT)
        for sample in range(samples):
            writer.append(answer(sample), visit, 0.5)
    return path


def data(path: Path) -> dict[str, Any]:
    """Everything in a record but what depends on when and where it ran."""
    found: dict[str, Any] = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith(("visit/", "sample/visit", "sample/seconds")):
            found[name] = item[()].tobytes()

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def test_a_record_holds_what_was_put_into_it(tmp_path: Path) -> None:
    with Record(written(tmp_path / "run.h5")) as record:
        assert (record.network, record.done, len(record)) == (NETWORK, 5, 5)
        assert np.array_equal(record.payload, PAYLOAD)
        assert record.labels is not None
        assert record.labels.tolist() == [0, 1, 2, 3, 4]
        for sample in range(5):
            trace = record.trace(sample)
            for name in JOB["read"]:
                assert np.array_equal(trace.spikes[name][0], TRACE.spikes[name][sample])
                assert np.array_equal(trace.potentials[name][0], TRACE.potentials[name][sample])
        assert record.seconds.tolist() == [0.5] * 5


def test_any_hdf5_program_can_read_it(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "run.h5")) as file:
        assert file["done"][0] == 5
        assert np.array_equal(file["potentials/2"][:], TRACE.potentials["out"])


def test_a_kill_before_any_operation_costs_at_most_the_sample_in_flight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every write and flush, a process that is killed just before it; then another one goes on."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill loses nothing that a flush would save
    path, whole = tmp_path / "run.h5", data(written(tmp_path / "whole.h5", 2, 2))
    empty = written(tmp_path / "empty.h5", 0, 2)
    for operation in range(1000):
        shutil.copy(empty, path)
        killed, committed = killed_at(operation, path, tmp_path / "told")
        with Record(path) as record:
            assert record.done in (committed, committed + 1)  # the second where it was killed before it could say so
            for sample in range(record.done):
                assert np.array_equal(record.trace(sample).logits, TRACE.logits[sample : sample + 1])
        append_rest(path)
        assert data(path) == whole
        if not killed:
            assert operation > 20
            return
    raise AssertionError("no end of operations")


def append_rest(path: Path, told: Callable[[int], object] = lambda done: None) -> None:
    with Writer(path) as writer:
        visit = writer.visit(VISIT)
        for sample in range(writer.done, 2):
            writer.append(answer(sample), visit, 0.5)
            told(writer.done)


def killed_at(operation: int, path: Path, told: Path) -> tuple[bool, int]:
    """Append in a process that is killed before so many operations; whether it was, and what it had said was there."""
    told.write_text("0")

    def action() -> None:
        seen = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                nonlocal seen
                if seen == operation:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
                return function(*arguments)

            return call

        os.pwrite, os.fsync = counted(os.pwrite), counted(os.fsync)
        append_rest(path, lambda done: told.write_text(str(done)))

    _, status = os.waitpid(forked(action), 0)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status), int(told.read_text())


def count(path: Path) -> int:
    """Samples that are there, all readable."""
    if not path.exists():
        return 0
    with Record(path) as record:
        assert all(record.trace(sample).spikes for sample in range(record.done))
        return record.done


@pytest.mark.slow
def test_kills_at_random_moments_and_going_on_give_the_record_of_an_undisturbed_run(
    board: Callable[[str], None], tmp_path: Path
) -> None:
    board("none")
    on_board(tmp_path / "whole.h5")
    path, moments, done = tmp_path / "run.h5", random.Random(3), []
    while not done or done[-1] < 5:
        process = apart(path, pace=0.1)
        while count(path) == (done[-1] if done else 0) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.8))
        process.kill()
        process.wait()
        done.append(count(path))
    assert len(done) > 1
    assert data(path) == data(tmp_path / "whole.h5")


def test_going_on_with_a_whole_record_visits_nobody(board: Callable[[str], None], tmp_path: Path) -> None:
    board("none")
    on_board(tmp_path / "run.h5")
    before = (tmp_path / "run.h5").read_bytes()
    board("dies")
    assert on_board(tmp_path / "run.h5", resume=True).done == 5
    assert (tmp_path / "run.h5").read_bytes() == before


def test_a_record_is_not_overwritten_and_not_continued_by_another_run(
    board: Callable[[str], None], tmp_path: Path
) -> None:
    board("none")
    path = written(tmp_path / "run.h5", 2)
    assert refusal(on_board, path).endswith("it exists; go on with it by --resume, or give another path")
    with Writer(path):
        assert "another run is writing it" in refusal(Writer, path)
    for options, differs in (({"read": ["out"]}, "read"), ({"schedule": "clock"}, "schedule")):
        said = refusal(lambda options=options: on_board(path, resume=True, labels=np.arange(5), **options))
        assert f"it is of another run: {differs} differ" in said
    labelled = tmp_path / "labelled.h5"
    labels = np.arange(len(PAYLOAD)) % 2
    on_board(labelled, labels=labels, task="classes")
    for options in ({"labels": 1 - labels, "task": "classes"}, {"task": "classes"}):
        said = refusal(lambda options=options: on_board(labelled, resume=True, **options))
        assert "it is of another run: labels differ" in said
    said = refusal(lambda: on_board(labelled, resume=True, labels=labels, task="binary"))
    assert "it is of another run: task differ" in said


def test_what_cannot_be_recorded_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["exporters.device.run"], "Visit", lambda *_: pytest.fail("it ran"))
    labels = np.zeros(len(PAYLOAD) - 1, int)
    for options, message in (
        ({"labels": labels}, f"labels: shape {labels.shape} for {len(PAYLOAD)} samples; give one for every sample"),
        ({"schedule": "foo"}, "schedule: unknown value 'foo'; use one of written, clock"),
        ({"data": 3}, "data: 3 given"),
    ):
        assert message in refusal(lambda options=options: on_board(tmp_path / "run.h5", **options))
    assert "it lies in no directory" in refusal(on_board, tmp_path / "none" / "run.h5")
    for board in ({"partition": "oheogulch"}, {"board": "ncl"}, {"host": "10.0.0.1"}):
        said = refusal(
            lambda board=board: device.run(
                NETWORK, PAYLOAD, "lava-cpu", tmp_path / "a.h5", request=device.Request(**board)
            )
        )
        assert f"--{next(iter(board))}: it is of a board, and lava-cpu is this computer" in said
    assert not list(tmp_path.iterdir())


def test_records_are_compared_with_each_other_and_only_where_they_can_be(
    board: Callable[[str], None], tmp_path: Path
) -> None:
    board("none")
    one = on_board(tmp_path / "one.h5")
    board("flips one weight")
    other = on_board(tmp_path / "other.h5")
    with Record(written(tmp_path / "few.h5", 2)) as few:
        same = device.diff(one, few)
        assert (same.difference, same.samples) == (None, 2)
    found = device.diff(one, other)
    assert found.difference is not None
    assert found.difference.layer == "first"
    assert found.difference.engines == ("loihi2 (one.h5)", "loihi2 (other.h5)")
    third = device.run(NETWORK, PAYLOAD + 1, "loihi2", tmp_path / "third.h5")
    assert "it is of another input than" in refusal(device.diff, one, third)


def test_an_empty_record_is_no_agreement(tmp_path: Path) -> None:
    with Record(written(tmp_path / "run.h5", 0)) as record:
        assert "no sample is in it" in refusal(device.replay, record)


# What is read is not trusted --------------------------------------------------------------------------------------


def changed(path: Path, change: Callable[[h5py.File], object]) -> str:
    """What is said of a record after a change."""
    with h5py.File(written(path), "r+") as file:
        change(file)

    def read() -> None:
        with Record(path) as record:
            for sample in range(record.done):
                record.trace(sample)

    said = refusal(read)
    assert all(line.startswith(str(path)) for line in said.splitlines())
    return said.replace(str(path), "RUN")


def replaced(name: str, value: Any, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=value, **options)

    return change


def stored(name: str, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][...] = value

    return change


def linked(file: h5py.File) -> None:
    del file["done"]
    file["done"] = h5py.ExternalLink("/etc/passwd", "/")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (stored("spikes/0", 1), "RUN: sample 0: its checksum does not fit its data"),
        (stored("sample/crc32", 0), "RUN: sample 0: its checksum does not fit its data"),
        (stored("done", 6), "RUN: done: 6 is outside 0..5"),
        (stored("done", -1), "RUN: done: -1 is outside 0..5"),
        (stored("visit/count", 33), "RUN: visit/count: 33 is outside 0..32"),
        (stored("visit/text", 0), "RUN: it cannot be read as a record (JSONDecodeError"),
        (stored("format", 2), "RUN: format: the record has format 2, this program reads 1"),
        (stored("input", 1), "RUN: job: network or input are not those that its digests say"),
        (stored("network", 1), "RUN: network: it cannot be read as HDF5"),
        (stored("job", 0), "RUN: it cannot be read as a record (JSONDecodeError"),
        (replaced("job", np.frombuffer(b"[1]", "u1")), "RUN: job: target, request, schedule, read, sha256, samples"),
        (replaced("job", np.zeros(2 << 20, "u1")), "RUN: job: it has 2097152 bytes, more than 1048576"),
        (replaced("format", [[1]]), "RUN: format: it is int64 (1, 1) instead of int64 (1,)"),
        (replaced("spikes/1", np.zeros((5, 4, 3), "f4")), "RUN: spikes/1: it is float32 (5, 4, 3) instead of uint8"),
        (replaced("spikes/1", np.zeros((5, 4, 9), "u1")), "RUN: spikes/1: it is uint8 (5, 4, 9) instead of uint8"),
        (
            replaced("spikes/1", np.zeros((5, 4, 3), "u1"), compression="gzip"),
            "RUN: spikes/1: it is not stored in one plain piece of the file",
        ),
        (replaced("label", np.zeros((4,), int)), "RUN: label: it is int64 (4,) instead of int64 (5,)"),
        (replaced("done", np.array(["x"], "S")), "RUN: done: it is |S1 (1,) instead of int64"),
        (linked, "RUN: done: it is missing, or a link"),
        (lambda file: file.__delitem__("potentials"), "RUN: potentials/0: it is missing, or a link"),
        (lambda file: file.__delitem__("format"), "RUN: format: it is missing"),
    ],
)
def test_a_record_that_nobody_would_have_written_is_refused(
    change: Callable[[h5py.File], object], said: str, tmp_path: Path
) -> None:
    assert changed(tmp_path / "run.h5", change).startswith(said)


def test_a_cut_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "run.h5")
    image = path.read_bytes()
    for size in range(0, len(image), len(image) // 23):
        path.write_bytes(image[:size])
        assert refusal(Record, path).startswith(str(path))
    assert "there is no such file" in refusal(Record, tmp_path / "none.h5")


def test_a_changed_byte_is_refused_or_changes_nothing_that_counts(tmp_path: Path) -> None:
    path, where = written(tmp_path / "run.h5"), random.Random(1)
    image = path.read_bytes()
    refused = 0
    for _ in range(60):
        damaged = bytearray(image)
        damaged[where.randrange(len(image))] ^= 1 << where.randrange(8)
        path.write_bytes(damaged)
        try:
            with Record(path) as record:
                traces = [record.trace(sample) for sample in range(record.done)]
        except Refused:
            refused += 1
            continue
        assert all(np.array_equal(trace.logits[0], TRACE.logits[i]) for i, trace in enumerate(traces))
    assert refused


def test_a_full_disk_is_told_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert "there is no room for" in refusal(create, tmp_path / "run.h5")
    assert not list(tmp_path.iterdir())


def test_a_sample_too_large_to_be_held_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("exporters.device.record.SAMPLE_LIMIT", 100)
    assert "more than 100; read the readout alone" in refusal(create, tmp_path / "run.h5")
