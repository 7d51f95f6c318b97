"""What a measurement means in words: where a conversion goes wrong first, why, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from exporters.report import CAUSES, Cause, Share
from toolchain.assessment.score import Z, determination, errors, interval
from toolchain.recipe import Recipe, TaskChoice

AVOIDABLE: tuple[Cause, ...] = tuple(
    cause for cause in CAUSES if cause != "staircase"
)  #: which T spikes alone do not explain

#: A layer that adds less than this share of the worst layer's own error is not where things go wrong.
WORTH_NAMING = 0.5
CLOSE = 0.1  #: root mean square of a regression's errors in standard deviations that costs 0.01 of R²

#: What to try, with the recipe's fields, and for which recipes.
Advice = tuple[str, Callable[[Recipe], bool]]


def _always(recipe: Recipe) -> bool:
    return True


def _clips_by_rule(recipe: Recipe) -> bool:
    return recipe.threshold != "max" and recipe.weights != "tuned"  # which learns where to clip


#: By cause: what happens, and what may help.
ADVICE: dict[Cause, tuple[str, tuple[Advice, ...]]] = {
    "weights": (
        "its weights are too coarse as integers",
        (
            ('weights="fitted"', lambda r: r.weights == "nearest"),
            ("more calibration data to fit the weights to", lambda r: r.weights != "nearest"),
            ("a model without channels whose weights dwarf the others'", _always),
        ),
    ),
    "clipping": (
        "activations above the threshold are cut off",
        (
            ('threshold="max", which cuts off less at the price of larger steps', _clips_by_rule),
            ("more calibration data, as similar as possible to what the network will see", _always),
        ),
    ),
    "staircase": (
        "T = {timesteps} draws its activations in too coarse steps",
        (
            ("timesteps={more}", _always),
            ('input_form="payload", which is drawn in finer steps', lambda r: r.input_form == "spikes"),
            ('initial="half"', lambda r: r.initial == "zero"),
            ('recipe="tuned", which takes minutes', lambda r: r.weights != "tuned"),
        ),
    ),
    "timing": (
        "spikes arrive unevenly, and it fires too early or too late",
        (
            ("holdoff={later}", _always),
            ('method="mse"', lambda r: r.method != "mse" and r.weights != "tuned"),
        ),
    ),
    "dead": (
        "channels that the trained network uses never fire",
        (
            ('threshold="mse", since outliers raise their thresholds', lambda r: r.threshold != "mse"),
            ("timesteps={more}", _always),
            ("a model without weights so uneven that whole channels round to 0", _always),
        ),
    ),
}


class Verdict(NamedTuple):
    """What is concluded: one or two sentences, and the layer and the cause that they name, where anything is lost."""

    text: str
    layer: str | None = None
    cause: Cause | None = None


def verdict(shares: Sequence[Share], recipe: Recipe, trained: Any, spiking: Any, y: Any = None) -> Verdict:
    """Say in one or two sentences where a conversion goes wrong first, why, and what to try; or that it does not.

    ``shares`` are every layer's; ``trained`` and ``spiking`` are the two networks' decisions, integers (B, ...), or the
    outputs of a regression (B, C, ...), ``y`` labels of the same shape. Nothing is wrong where no fewer decisions are
    right, or where the networks differ on fewer than half the 95 % interval of the trained network's accuracy holds:
    as many samples, drawn again, would change more. Without labels the interval is that of the agreement. Of a
    regression little is lost where R² against the labels falls by no more than half its interval, or without labels
    where every output is within ``CLOSE`` of its standard deviation.

    A layer goes wrong where all that could be better costs more than the staircase, which any T spikes would draw;
    the first one is named whose own error is at least ``WORTH_NAMING`` of the largest. If there is none, T is at
    fault, and the layer with the largest own error is named.
    """
    measured = _numbers if recipe.task == "regression" else _decisions
    lost, said = measured(np.asarray(trained), np.asarray(spiking), None if y is None else np.asarray(y), recipe.task)
    if not lost:
        return Verdict(said)
    largest = max(share.own for share in shares)
    candidates = [share for share in shares if share.own >= min(WORTH_NAMING * largest, largest)]
    wrong = next((share for share in candidates if share.own > 2 * share.staircase), None)
    named = wrong or max(candidates, key=lambda share: share.own)
    cause: Cause = max(AVOIDABLE, key=named.of) if wrong else "staircase"
    place = f"It goes wrong first in {named.name}" if wrong else f"No layer stands out, {named.name} adds most"
    values = {"timesteps": recipe.timesteps, "more": 2 * recipe.timesteps, "later": recipe.holdoff + 1}
    what, advice = ADVICE[cause]
    *first, last = (text.format(**values) for text, helps in advice if helps(recipe))
    return Verdict(
        f"{said} {place}: {what.format(**values)} "
        f"({cause} is {named.of(cause):.2f} of its relative error of {named.error:.2f}). "
        f"Try {', '.join(first)}{' or ' if first else ''}{last}.",
        named.name,
        cause,
    )


def _decisions(trained: np.ndarray, spiking: np.ndarray, y: np.ndarray | None, task: TaskChoice) -> tuple[bool, str]:
    """Say whether measurable decisions are lost, and how many are the same."""
    same = (trained == spiking).reshape(len(trained), -1)
    n = same.size
    what = f"{task} of {len(same)} samples" if task in ("labels", "pixels") else "samples"
    certain, lost = same, n - int(same.sum())
    decides = f"decides like the trained one on {n - lost} of {n} {what}"
    if y is not None:
        certain = (trained == y).reshape(same.shape)
        lost = int(certain.sum()) - int((spiking == y).sum())
        difference = f"{abs(lost)} {'fewer' if lost > 0 else 'more'}" if lost else "as many"
        decides += f" and gets {difference} right"
    if lost <= 0:
        return False, f"Nothing is lost: the spiking network {decides}."
    low, high = interval(certain)
    if 100 * (n - int(same.sum())) / n <= (high - low) / 2:
        noise = f"another {len(same)} samples might change more than that"
        return False, f"Nothing measurable is lost: the spiking network {decides}; {noise}."
    return True, f"The spiking network {decides}."


def _numbers(trained: np.ndarray, spiking: np.ndarray, y: np.ndarray | None, task: TaskChoice) -> tuple[bool, str]:
    """Say whether a regression has lost anything measurable, and how far its outputs are from the trained one's."""
    found = {index: row.relative for index, row in enumerate(errors(spiking, trained)) if row.relative is not None}
    if not found:
        return bool((trained != spiking).any()), "The trained network's outputs are always the same."
    worst = max(found, key=found.__getitem__)
    differs = f"outputs differ from the trained one's by {100 * found[worst]:.2g} % of their standard deviation"
    differs += f" (root mean square; the largest of {len(found)}, of output {worst})" if len(found) > 1 else ""
    if y is None:
        lost = found[worst] > CLOSE
    else:
        (before, error), (after, _) = determination(trained, y), determination(spiking, y)
        differs += f"; R² against the labels is {after:.3f} instead of {before:.3f}"
        lost = before - after > Z * error
    return lost, f"{'The' if lost else 'Little is lost: the'} spiking network's {differs}."
