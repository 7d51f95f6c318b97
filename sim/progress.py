"""How long work is reported: who works neither knows nor cares whether a bar is drawn.

Work is counted with :func:`track` or :func:`counting`; whoever wants to see it says so once, with :func:`reporting`.
Nobody is asked by default, and a thread that was started meanwhile reports to nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from sim.findings import refuse

Sink = Callable[[str, int, int], object]  #: (what is being done, done, in all)
T = TypeVar("T")

_sink: ContextVar[Sink | None] = ContextVar("progress", default=None)


@contextmanager
def reporting(sink: Sink | None) -> Iterator[None]:
    """Report all work inside the block to ``sink``; to nobody if it is None."""
    if not (sink is None or callable(sink)):
        raise refuse("sink", f"{type(sink).__name__} given", "give a function of what, done and total, or None")
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)


@contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Report work of ``total`` parts, which may come several at a time: call the result with how many more are done."""
    done, sink = 0, _sink.get() or _nobody

    def advance(more: int) -> None:
        nonlocal done
        done += more
        sink(what, done, total)

    sink(what, 0, total)
    yield advance


def track(what: str, items: Iterable[T], total: int | None = None) -> Iterator[T]:
    """Yield ``items`` and report each as done when the next one is asked for; ``total`` where they have no length."""
    if total is None:
        assert isinstance(items, Sized), "give the total of what has no length"
        total = len(items)
    with counting(what, total) as advance:
        for item in items:
            yield item
            advance(1)


def _nobody(what: str, done: int, total: int) -> None:
    pass
