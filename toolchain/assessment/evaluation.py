"""How good a network is on labelled data, on any engine, whatever single samples do to its registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from exporters import engines, netx
from exporters.report import Evaluation
from sim import fast
from sim.arguments import Count, checked
from sim.findings import refuse
from sim.fixedpoint import Policy
from sim.network import Network
from sim.progress import counting, reporting
from toolchain.assessment.kept import Described, kept
from toolchain.assessment.tally import Job, Tally, evaluation
from toolchain.assessment.workers import measured, remote
from toolchain.data import Arrays, Source
from toolchain.inputs import as_inputs
from toolchain.recipe import TaskChoice
from toolchain.task import Task, numbers, resolve

SHARD = 256  #: samples that are run, kept and lost together
TOLD_BY = 1024  #: samples whose labels tell the task of data that is read in parts


@checked
def evaluate(
    network: Network,
    x: Any,
    y: Any = None,
    *,
    engine: str = "fast",
    task: TaskChoice = "auto",
    overflow: Policy | None = None,
    device: str = "cpu",
    workers: int | str | None = None,
    shard: Count | None = None,
    resume: str | Path | None = None,
) -> Evaluation:
    """Measure a network after every window step on model inputs ``x`` (B, *model_shape) and labels ``y`` (B, ...).

    For ``x`` see :func:`toolchain.inputs.as_inputs`; or it is a data set with labels
    (:func:`toolchain.data.open_data`), which is read in parts. Spikes, synaptic operations and the largest values of
    registers are counted in the same pass. A sample in which a potential leaves the registers is counted, or ends in
    :class:`sim.fixedpoint.RegisterOverflow` where ``overflow`` is "strict", as it does by default on engines that
    cannot go on (:func:`exporters.engines.run`). ``device`` is where the fast engine computes.

    Samples go through in shards of ``shard``, by default ``SHARD``. ``workers`` is how many processes share them, or
    the address of a Dask scheduler whose workers do. Finished shards are kept in the file ``resume``, and taken from it
    where it is there already. The result is the same whatever the shards are and whoever runs them.

    Raises :class:`Refused` for labels that are not of the task, a regression whose potentials stand for nothing known,
    a ``resume`` of another network, data or settings, and workers that cannot be reached.
    """
    if isinstance(x, Source):
        source = x
        if y is not None or not x.labelled:
            problem = "given beside a data set" if x.labelled else f"{x.name} has none"
            raise refuse("labels", problem, "give a data set with labels")
    else:
        source = Arrays(as_inputs(x, network.input.model_shape, "x"), numbers(y))
    if not remote(workers):
        fast.place(device)
    resolved = _told(task, network, source)
    if resolved.name == "regression" and network.output is None:
        raise refuse("network", "does not say what its potentials stand for", "convert again")
    job = Job(network, resolved, engine, engines.policy(engine, overflow), device)
    described = Described(
        network=sha256(netx.dump(network)).hexdigest() if resume else "",
        data=source.identity() if resume else "",
        samples=len(source),
        shard=shard or SHARD,
        task=resolved.name,
        engine=engine,
        overflow=job.overflow,
    )

    def samples_of(number: int, size: int) -> range:
        return range(len(source))[number * size : (number + 1) * size]

    def fits(size: int, number: int, tally: Tally) -> bool:
        samples = samples_of(number, size)
        return number >= 0 and len(samples) > 0 and tally.fits(job, len(samples))

    with (
        kept(None if resume is None else Path(resume), described, shard, fits) as (size, done, keep),
        counting("evaluating", len(source)) as advance,
    ):
        left = [number for number in range(-(-len(source) // size)) if number not in done]
        shards = ((number, source.part(samples_of(number, size))) for number in left)
        advance(sum(tally.samples for tally in done.values()))
        sizes = [len(samples_of(number, size)) for number in left]
        with _inside(advance, sizes if workers in (None, 1) else []) as finished:
            for number, tally in measured(job, shards, workers):
                keep(number, tally)
                done[number] = tally
                finished(tally.samples)
    return evaluation(job, [done[number] for number in sorted(done)])


def _told(asked: TaskChoice, network: Network, source: Source) -> Task:
    """Find the task of labelled data, and refuse labels of another at once, as far as they come without the inputs."""
    first = range(len(source) if isinstance(source, Arrays) else min(TOLD_BY, len(source)))
    y = source.labels(first)
    if y is None and asked == "auto":
        y = source.read(first)[1]
    task, _ = resolve(asked, network.readout.shape, y)
    for start in range(0, len(source), len(first)):
        samples = range(len(source))[start : start + len(first)]
        if (y := source.labels(samples)) is None:
            break
        task.labels(y, len(samples))
    return task


@contextmanager
def _inside(advance: Callable[[int], None], sizes: Sequence[int]) -> Iterator[Callable[[int], None]]:
    """Give what counts finished samples; of shards of these ``sizes``, which run here one by one, also parts."""
    running, seen = iter(sizes), 0
    size = next(running, 0)

    def inside(_: str, done: int, total: int) -> None:
        nonlocal seen
        if (more := size * done // max(total, 1) - seen) > 0:
            seen += more
            advance(more)

    def finished(samples: int) -> None:
        nonlocal seen, size
        advance(samples - seen)
        seen, size = 0, next(running, 0)

    with reporting(inside if sizes else None):
        yield finished
