"""A process that does one thing, for tests that kill it."""

from __future__ import annotations

import os
from collections.abc import Callable


def forked(action: Callable[[], object]) -> int:
    """Fork, and give the process's number; whatever happens there, it ends before it could go on with the tests.

    For what computes without threads only: those that another test has started do not exist in the new process.
    """
    if pid := os.fork():
        return pid
    status = 1
    try:
        action()
        status = 0
    finally:
        os._exit(status)
