"""The fake board in the place of Loihi 2."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from jobs import MARK

from exporters.device import visit


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Call it with a fault: then ``loihi2`` is the fake board, with that."""
    monkeypatch.setitem(visit.TARGETS, "loihi2", "fake_board:Board")
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("FAKE_BOARD_MARK", MARK)
    return lambda fault: monkeypatch.setenv("FAKE_BOARD", fault)
