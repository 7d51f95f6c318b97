"""What conversions cost for what they get right: T x K x forms of the input, one network, the same test images.

Each conversion is kept in a directory of its own with its report; ``ann2loihi compare`` shows the same table of them::

    python -m benchmarks.compared --data DIR --weights FILE.pt --timesteps 4,8,16 --holdoffs 0,1 -o build/compared
    python -m benchmarks.compared --forms payload,currents,spikes -o build/forms
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import workload
from benchmarks.workload import Calibration, Data, JsonFile, Weights, integers, names
from exporters import bundle
from exporters.comparison import compare
from sim.findings import refuse
from sim.progress import track
from toolchain import assessment
from toolchain.app.console import bars, guarded, say
from toolchain.app.show import show_compared
from toolchain.convert import convert
from toolchain.recipe import named

app = typer.Typer(add_completion=False)


@app.command(help=__doc__)
@guarded
def main(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Holds a directory for each.")],
    data: Data = None,
    weights: Weights = None,
    timesteps: Annotated[str, typer.Option(help="T, separated by commas.")] = "8",
    holdoffs: Annotated[str, typer.Option(help="K, separated by commas.")] = "1",
    forms: Annotated[str, typer.Option(help="Forms of the input.")] = "payload",
    recipe: Annotated[str, typer.Option(help="Where to start from.")] = "ann2loihi",
    samples: Annotated[int | None, typer.Option(metavar="N", help="Test images; all by default.")] = None,
    calibration: Calibration = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the conversions that are there.")] = False,
    json_file: JsonFile = None,
) -> None:
    """Convert, measure on the test images, and print the table."""
    recipes = {
        output / f"{form}-t{t}-k{k}": named(recipe, timesteps=t, holdoff=k, input_form=form)
        for form, k, t in product(names(forms), integers("--holdoffs", holdoffs), integers("--timesteps", timesteps))
    }
    if not recipes:
        raise refuse("--forms, --timesteps, --holdoffs", "nothing to measure", "name at least one of each")
    for place in recipes:
        if place.exists() and not resume:
            raise refuse(str(place), "it exists", "go on with --resume, or give another --output")
        bundle.check_place(place)
    missing = {place: recipe for place, recipe in recipes.items() if not place.exists()}
    if missing:
        work = workload.load(data, weights, calibration, samples)
        about = f"the first {len(work.test_x)} test images"
        with bars():
            for place in track("converting and measuring", missing):
                conversion = convert(work.model, work.calibration_x, recipe=missing[place])
                report = assessment.report(conversion, work.model, work.test_x, work.test_y, name=work.name, data=about)
                place.parent.mkdir(parents=True, exist_ok=True)
                conversion.save(place, report)
    found = compare(list(recipes))
    if json_file is not None:
        workload.write_json(json_file, {"rows": [row.as_dict() for row in found]})
    show_compared(found)
    reports = [bundle.load(place).report for place in recipes]
    counted = {report.samples for report in reports if report is not None}
    say(f"right and agrees on {', '.join(map(str, sorted(counted)))} test images; directories are in {output}")


if __name__ == "__main__":
    app()
