"""How long work is reported: who reports neither knows nor cares whether a bar is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

Progress = Callable[[str, int, int], object]  #: (what is being done, done, in all)


def counted(progress: Progress, label: str, total: int) -> Callable[[str, int], None]:
    """Turn "n more on this engine" into "k in all": for engines, which report samples as they finish them."""
    finished: Counter[str] = Counter()

    def more(engine: str, samples: int) -> None:
        finished[engine] += samples
        progress(label.format(engine), finished[engine], total)

    return more
