"""How long work is reported: who reports neither knows nor cares whether a bar is drawn."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int], object]  #: (what is being done, done, in all)
