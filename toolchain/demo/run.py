"""The whole path on real data: what ``ann2loihi demo`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exporters import engines
from sim.progress import reporting
from toolchain import artefact, assess
from toolchain.convert import Conversion, convert
from toolchain.demo import data, load_model
from toolchain.progress import Progress

TIMESTEPS = 8  #: T of the network that the demo leaves behind
OTHERS = (1, 2, 4)  #: shorter windows that its accuracy is compared with


def run(directory: Path, samples: int, progress: Progress) -> dict[str, Any]:
    """Convert, measure, verify on the first ``samples`` test digits, write the directory; returns the report."""
    digits, model = data.load(), load_model()
    x, y = digits.test_x, digits.test_y
    recipes = [{"timesteps": t} for t in (*OTHERS, TIMESTEPS)] + [{"timesteps": TIMESTEPS, "chip": "wide"}]
    conversions: list[Conversion] = []
    for recipe in recipes:
        progress("converting", len(conversions), len(recipes))
        conversions.append(convert(model, digits.calibration_x, **recipe))
    progress("converting", len(recipes), len(recipes))
    *others, conversion, wide = conversions

    rates = assess.rates(conversion, x)
    report = {
        "model": "digits_cnn",
        "data": "scikit-learn's handwritten digits, test part",
        **assess.report(
            conversion, model, x, y, rates, wide=wide, others=dict(zip(OTHERS, others, strict=True)), progress=progress
        ),
    }
    payload = conversion.network.input.encode(x[:samples])
    with reporting(progress):
        verification = engines.verify(conversion.network, payload)
    for engine in verification.runs:
        if engine.engine == "lava":
            logits = engine.logits[:, -1]
            report["accuracy"]["lava"] = assess.score(logits, y[:samples])
            report["agreement"]["lava"] = assess.agreement(logits, assess.model_logits(model, x[:samples]))
    report["verification"] = verification.as_dict()
    artefact.write(directory, conversion, model, digits.calibration_x, report, rates)
    return report
