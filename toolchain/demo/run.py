"""The whole path on real data: what ``ann2loihi demo`` does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from exporters.bundle import check_place
from exporters.report import Report, Verification
from sim.progress import track
from toolchain import assessment
from toolchain.convert import convert, in_every_form
from toolchain.demo import data, load_model
from toolchain.inputs import selected

TIMESTEPS = 8  #: T of the network that the demo leaves behind
OTHERS = (1, 2, 4)  #: shorter windows that its accuracy is compared with


def run(directory: Path, samples: int) -> Report:
    """Convert, measure, verify on the first ``samples`` test digits, write the directory; returns the report.

    Raises :class:`Refused` before anything else if there are fewer digits or the directory cannot be written.
    """
    check_place(directory)
    digits, model = data.load(), load_model()
    x, y = digits.test_x, digits.test_y
    few_x, few_y = selected(x, y, samples)
    assert few_y is not None  # the digits have labels
    recipes = [{"timesteps": t} for t in (*OTHERS, TIMESTEPS)] + [{"timesteps": TIMESTEPS, "chip": "wide"}]
    conversions = [convert(model, digits.calibration_x, **recipe) for recipe in track("converting", recipes)]
    *others, conversion, wide = conversions

    report = assessment.report(
        conversion,
        model,
        x,
        y,
        name="digits_cnn",
        data="scikit-learn's handwritten digits, test part",
        wide=wide,
        others=dict(zip(OTHERS, others, strict=True)),
        forms=in_every_form(conversion, model, digits.calibration_x),
        sensitive=True,
    )
    verification = conversion.verify(few_x)
    for engine in verification.runs:
        if engine.engine == "lava":
            logits, trained = engine.logits[:, -1], assessment.model_logits(model, few_x)
            report = replace(
                report,
                accuracy={**report.accuracy, "lava": assessment.accuracy(logits, few_y)},
                agreement={**report.agreement, "lava": assessment.agreement(logits, trained)},
            )
    report = replace(report, verification=Verification.from_dict(verification.as_dict(), "verification"))
    conversion.save(directory, report)
    return report
