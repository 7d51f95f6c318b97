"""What a measurement means in words: where a conversion goes wrong first, why, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from exporters.report import CAUSES, Share
from toolchain.assessment.score import wilson
from toolchain.recipe import Recipe

AVOIDABLE = tuple(cause for cause in CAUSES if cause != "staircase")  #: which T spikes alone do not explain

#: A layer that adds less than this share of the worst layer's own error is not where things go wrong.
WORTH_NAMING = 0.5

#: What to try, with the recipe's fields, and for which recipes.
Advice = tuple[str, Callable[[Recipe], bool]]


def _always(recipe: Recipe) -> bool:
    return True


def _clips_by_rule(recipe: Recipe) -> bool:
    return recipe.threshold != "max" and recipe.weights != "tuned"  # which learns where to clip


#: By cause: what happens, and what may help.
ADVICE: dict[str, tuple[str, tuple[Advice, ...]]] = {
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


def verdict(shares: Sequence[Share], recipe: Recipe, trained: Tensor, spiking: Tensor, y: Tensor | None = None) -> str:
    """Say in one or two sentences where a conversion goes wrong first, why, and what to try; or that it does not.

    ``shares`` are every layer's; ``trained`` and ``spiking`` are the two networks' classes, int64 (B,), ``y``
    the labels. Nothing is wrong where no fewer samples are right, or where the networks differ on fewer samples than
    half the 95 % interval of the trained network's accuracy holds: as many samples, drawn again, would change more.
    Without labels the interval is that of the agreement.

    A layer goes wrong where all that could be better costs more than the staircase, which any T spikes would draw;
    the first one is named whose own error is at least ``WORTH_NAMING`` of the largest. If there is none, T is at
    fault, and the layer with the largest own error is named.
    """
    n, agreeing = len(trained), int((trained == spiking).sum())
    certain, lost = agreeing, n - agreeing
    decides = f"decides like the trained one on {agreeing} of {n} samples"
    if y is not None:
        certain = int((trained == y).sum())
        lost = certain - int((spiking == y).sum())
        difference = f"{abs(lost)} {'fewer' if lost > 0 else 'more'}" if lost else "as many"
        decides += f" and gets {difference} right"
    if lost <= 0:
        return f"Nothing is lost: the spiking network {decides}."
    low, high = wilson(certain, n)
    if 100 * (n - agreeing) / n <= (high - low) / 2:
        noise = f"another {n} samples might change more than that"
        return f"Nothing measurable is lost: the spiking network {decides}; {noise}."

    largest = max(share.own for share in shares)
    candidates = [share for share in shares if share.own >= min(WORTH_NAMING * largest, largest)]
    wrong = next((share for share in candidates if share.own > 2 * share.staircase), None)
    named = wrong or max(candidates, key=lambda share: share.own)
    cause = max(AVOIDABLE, key=named.of) if wrong else "staircase"
    place = f"It goes wrong first in {named.name}" if wrong else f"No layer stands out, {named.name} adds most"
    values = {"timesteps": recipe.timesteps, "more": 2 * recipe.timesteps, "later": recipe.holdoff + 1}
    what, advice = ADVICE[cause]
    *first, last = (text.format(**values) for text, helps in advice if helps(recipe))
    return (
        f"The spiking network {decides}. {place}: {what.format(**values)} "
        f"({cause} is {named.of(cause):.2f} of its relative error of {named.error:.2f}). "
        f"Try {', '.join(first)}{' or ' if first else ''}{last}."
    )
