"""Counts how often engines were compared spike for spike, and says so at the end of the run."""

from __future__ import annotations

import functools
import importlib.util
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import typer.main

# The suite runs in as many processes as there are cores; more threads would only wait for each other, also those of the
# processes that tests start. Another number sums floats in another order.
THREADS = os.environ.get("ANN2LOIHI_TEST_THREADS", "1")
torch.set_num_threads(int(THREADS))
os.environ.setdefault("OMP_NUM_THREADS", THREADS)

# Typer builds all commands at every call, which takes longer than most of what the tests then run. Here, before
# typer.testing takes the function.
typer.main.get_command = functools.cache(typer.main.get_command)

EQUALITY = "engine equality"


#: Folders and files that compare what float32 sums decide: they run once more as on other processors. Imports are in
#: float64, and their tests bound rounding; engines are compared in integers; what is chosen of several conversions is
#: held to what each of them is, whichever wins.
NUMBERS = {"assessment", "calibration", "graph", "scales"}
NUMBERS |= {"test_convert", "test_inputs"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what compares numbers, and skip what needs Lava where Lava cannot be installed."""
    items[:] = lava_first(items, getattr(config, "workerinput", {}).get("workercount", 1))
    for item in items:
        if NUMBERS & {*item.path.relative_to(Path(__file__).parent).with_suffix("").parts}:
            item.add_marker("numbers")
    if importlib.util.find_spec("lava") is None:
        for item in items:
            if item.get_closest_marker("lava"):
                item.add_marker(pytest.mark.skip(reason="Lava is not installed: it exists for Python 3.10 only"))


def lava_first(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """In each worker's part, which are equal and follow each other, put what runs on Lava before the others.

    Lava forks a dozen processes a run, and what that takes grows with all that a test process has come to hold.
    """
    groups = [[item for item in items if bool(item.get_closest_marker("lava")) is marked] for marked in (True, False)]
    cuts = [[len(group) * part // workers for part in range(workers + 1)] for group in groups]
    return [
        item
        for part in range(workers)
        for group, cut in zip(groups, cuts, strict=True)
        for item in group[cut[part] : cut[part + 1]]
    ]


@pytest.fixture
def compared(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Call it with the names of two engines after they agreed on one network."""
    return lambda engines: record_property(EQUALITY, engines)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Sum the comparisons over all tests (and workers: the properties travel with the reports)."""
    cases = Counter(
        engines
        for report in terminalreporter.getreports("passed")
        if report.when == "call"
        for name, engines in report.user_properties
        if name == EQUALITY
    )
    if cases:
        terminalreporter.section("engine-equality cases")
        for engines, count in sorted(cases.items()):
            terminalreporter.line(f"{engines}: {count} networks, 0 differences")
        terminalreporter.line(f"{sum(cases.values())} engine-equality cases")
