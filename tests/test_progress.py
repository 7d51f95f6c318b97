"""How long work is reported."""

from __future__ import annotations

import pytest

from sim.progress import counting, reporting, track


def test_every_item_is_reported_when_it_is_done() -> None:
    told: list[tuple[str, int, int]] = []
    with reporting(lambda *report: told.append(report)):
        assert [item for item in track("squaring", [3, 5])] == [3, 5]  # noqa: C416 - a generator is asked item by item
    assert told == [("squaring", 0, 2), ("squaring", 1, 2), ("squaring", 2, 2)]


def test_parts_come_several_at_a_time() -> None:
    told: list[tuple[str, int, int]] = []
    with reporting(lambda *report: told.append(report)), counting("samples", 40) as advance:
        advance(32)
        advance(8)
    assert [done for _, done, _ in told] == [0, 32, 40]


def test_what_has_no_length_needs_a_total() -> None:
    with pytest.raises(AssertionError, match="give the total"):
        next(track("walking", iter("abc")))
    assert "".join(track("walking", iter("abc"), 3)) == "abc"


def test_nobody_hears_of_work_outside_the_block_or_inside_a_silent_one() -> None:
    told: list[tuple[str, int, int]] = []
    with reporting(lambda *report: told.append(report)), reporting(None):
        list(track("silent", "ab"))
    list(track("later", "ab"))
    assert not told


def test_a_sink_that_raises_stops_the_work() -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with reporting(interrupt):
        work = track("working", "ab")
        assert next(work) == "a"
        with pytest.raises(KeyboardInterrupt):
            next(work)
