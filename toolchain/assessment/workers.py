"""Shards on several processes of this machine, or by Dask on those of several; whoever has time takes the next one."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import metadata
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sim.findings import Refused, refuse
from sim.fixedpoint import RegisterOverflow
from toolchain.assessment.tally import Job, Tally, measure
from toolchain.data import Source

MOST = 1024  #: processes here
AHEAD = 2  #: shards for each worker that are on their way
PATIENCE = 15  #: seconds until a scheduler has answered, and has a worker
SAME = "give scheduler and workers the same version of ann2loihi, and the data under the same path"
ADDRESS = ("tcp://", "tls://")

Workers = int | str | None  #: processes here, or the address of a scheduler, tcp://HOST:PORT; None is this process


@dataclass(frozen=True)
class _Pool:
    submit: Callable[[Source], Future[Tally]]
    size: Callable[[], int]  #: workers that there are now


def remote(workers: Workers) -> bool:
    """Whether shards are measured on other machines. Raises :class:`Refused` for what is no number and no address."""
    if isinstance(workers, str) and workers.startswith(ADDRESS):
        return True
    if isinstance(workers, str) or (workers is not None and not 1 <= workers <= MOST):
        remedy = f"give 1 to {MOST} processes, or a scheduler as tcp://HOST:PORT"
        raise refuse("workers", f"{workers!r} asked for", remedy)
    return False


def measured(job: Job, shards: Iterable[tuple[int, Source]], workers: Workers) -> Iterator[tuple[int, Tally]]:
    """Measure shards, and yield each when it is done, with its number.

    Raises what :func:`toolchain.assessment.tally.measure` raises of the first shard that fails, when those that have
    been begun are done; :class:`Refused` where workers cannot be reached or end.
    """
    if not remote(workers) and workers in (None, 1):
        for number, source in shards:
            yield number, measure(job, source)
        return
    left, waiting = iter(shards), dict[Future[Tally], int]()
    failed: dict[int, BaseException] = {}
    with _on_a_cluster(str(workers), job) if remote(workers) else _here(int(workers or 1), job) as pool:
        while True:
            room = 0 if failed else max(0, AHEAD * pool.size() - len(waiting))
            for number, source in islice(left, room):
                waiting[pool.submit(source)] = number
            if not waiting:
                break
            for done in wait(waiting, return_when=FIRST_COMPLETED).done:
                number, error = waiting.pop(done), done.exception()
                if error is None:
                    yield number, done.result()
                else:
                    failed[number] = error
        if failed:
            raise failed[min(failed)]


@contextmanager
def _here(processes: int, job: Job) -> Iterator[_Pool]:
    threads = max(1, torch.get_num_threads() // processes)
    numbers = count()
    with TemporaryDirectory(prefix="ann2loihi-", ignore_cleanup_errors=True) as folder:
        # Tasks are names of files: a pool whose processes have died waits for ever for a pipe that is full (CPython
        # gh-94777, until 3.12). A process of its own for each: what torch and numba have running survives no fork.
        whole = _left_at(Path(folder, "job"), job)
        spawning = multiprocessing.get_context("spawn")
        executor = ProcessPoolExecutor(processes, spawning, _begin, (threads, folder))

        def submit(source: Source) -> Future[Tally]:
            return executor.submit(_measure_left, whole, _left_at(Path(folder, str(next(numbers))), source))

        try:
            yield _Pool(submit, lambda: processes)
        except BrokenProcessPool as error:
            remedy = "give fewer workers, or smaller shards; a script needs its if __name__ == '__main__':"
            raise refuse("workers", "a process has ended, for want of memory or by a signal", remedy) from error
        finally:
            executor.shutdown(cancel_futures=True)


def _left_at(path: Path, value: Any) -> Path:
    """Leave something for another process."""
    try:
        with path.open("wb") as file:
            pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)
    except OSError as error:
        raise refuse(str(path), (error.strerror or str(error)).lower(), "make room, or set TMPDIR") from error
    return path


@lru_cache(maxsize=1)
def _job(path: Path) -> Job:
    job: Job = pickle.loads(path.read_bytes())
    return job


def _measure_left(job: Path, source: Path) -> Tally:
    found = pickle.loads(source.read_bytes())
    source.unlink()
    return measure(_job(job), found)


def _begin(threads: int, folder: str) -> None:
    """Prepare a process: it shares the cores, and ends with its parent, also where that is killed."""
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _on_a_cluster(address: str, job: Job) -> Iterator[_Pool]:
    try:
        from distributed import Client
    except ImportError as error:
        raise refuse("workers", "Dask's distributed is not installed", "install ann2loihi[cluster]") from error
    try:
        client = Client(address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise refuse("workers", f"no scheduler answers at {address}", "start one with: dask scheduler") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except Exception as error:  # of a type that depends on the version
            remedy = f"start some with: dask worker {address} --nthreads 1"
            raise refuse("workers", f"{address} has no workers", remedy) from error
        try:
            others = {found for found in client.run(_version).values() if found != _version()}
            if others:
                raise refuse("workers", f"they have ann2loihi {', '.join(sorted(others))}, not {_version()}", SAME)
            shared = client.scatter(job, broadcast=True, hash=False)
            executor = client.get_executor(pure=False)
            yield _Pool(partial(executor.submit, measure, shared), lambda: max(1, sum(client.nthreads().values())))
        except (Refused, RegisterOverflow, GeneratorExit):
            raise
        except Exception as error:  # whatever another machine lacks, or a worker that is lost again and again
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise refuse("workers", said, SAME) from error


def _version() -> str:
    return metadata.version("ann2loihi")
