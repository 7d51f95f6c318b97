"""Two conversions beside each other."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bundles import CONFIG, network, save
from reports import REPORT, accuracy

from exporters.comparison import Pair, differences
from exporters.report import PARTS, Report
from sim.findings import Refused


def written(path: Path, report: Report) -> Path:
    path.write_text(json.dumps(report.as_dict()))
    return path


def test_reports_are_compared_figure_by_figure(tmp_path: Path) -> None:
    other = replace(
        REPORT, timesteps=8, accuracy={**REPORT.accuracy, "int8": accuracy(98.0)}, attribution=None,
        fit=replace(REPORT.fit, cores=7),
    )  # fmt: skip
    found = differences(written(tmp_path / "a.json", REPORT), written(tmp_path / "b.json", other))
    figures = {pair.what: pair for pair in found.figures}
    assert figures["accuracy, %"] == Pair("accuracy, %", 97.25, 98.0)
    assert figures["accuracy, %"].change == 0.75
    assert figures["agreement, %"] == Pair("agreement, %", 96.5, 96.5)
    assert (figures["T"].a, figures["T"].b, figures["T"].change) == (4, 8, 4)
    assert (figures["cores"].a, figures["cores"].b) == (5, 7)
    assert figures["neurons"].a == figures["neurons"].b == 1037
    assert figures["goes wrong first"] == Pair("goes wrong first", "conv|1", None)
    assert figures["goes wrong first"].change is None
    assert (found.config, found.provenance) == ((), ())


def test_layers_are_matched_by_name_and_those_of_one_side_have_nothing_on_the_other(tmp_path: Path) -> None:
    share = replace(REPORT.attribution.layers[0], error=0.2, clipping=0.15)
    renamed = replace(
        REPORT,
        layers=(*REPORT.layers[:2], replace(REPORT.layers[2], name="head")),
        attribution=replace(REPORT.attribution, layers=(share,)),
    )
    found = differences(written(tmp_path / "a.json", REPORT), written(tmp_path / "b.json", renamed))
    assert list(found.layers) == ["conv|1", "silent", "fc", "head"]
    first = {pair.what: pair for pair in found.layers["conv|1"]}
    assert set(first) == {"neurons", "theta", "cores", "spikes per neuron", "error", "own", *PARTS}
    assert (first["error"].a, first["error"].b) == (0.25, 0.2)
    assert first["clipping"].change == pytest.approx(-0.05)
    assert first["timing"].change == 0
    only = {pair.what: (pair.a, pair.b) for pair in found.layers["head"]}
    assert only["neurons"] == (None, 10)


def test_directories_also_say_how_recipe_and_origin_differ(tmp_path: Path) -> None:
    save(tmp_path / "a", report=REPORT)
    later = {"created": "2027-01-01", "packages": {"numpy": "2.0"}, "seed": 1}
    save(tmp_path / "b", network=network(weight=6), config=CONFIG | {"method": "mse"}, provenance=later)
    found = differences(tmp_path / "a", str(tmp_path / "b"))
    assert found.config == (Pair("method", "exact", "mse"),)
    assert found.provenance == (Pair("packages numpy", "1.26", "2.0"),)
    figures = {pair.what: (pair.a, pair.b) for pair in found.figures}
    assert figures["T"] == (2, 2)  # of the network, whatever a report says
    assert figures["neurons"] == (5, 5)
    assert figures["cores"] == (2, 2)
    assert figures["accuracy, %"] == (97.25, None)
    assert list(found.layers) == ["hidden", "readout"]
    assert json.loads(json.dumps(found.as_dict()))["config"] == [{"what": "method", "a": "exact", "b": "mse"}]


def test_a_directory_and_a_report_are_compared_without_a_recipe(tmp_path: Path) -> None:
    save(tmp_path / "a", report=REPORT)
    found = differences(tmp_path / "a", tmp_path / "a" / "report.json")
    assert (found.config, found.provenance) == ((), ())
    assert {pair.what: pair.change for pair in found.figures}["accuracy, %"] == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "b.json: it is missing"), ("[]", "it holds a list, not an object"), ("{}", "'model' is missing")],
)
def test_what_is_no_report_is_refused(text: str | None, says: str, tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.json", REPORT), tmp_path / "b.json"
    if text is not None:
        b.write_text(text)
    with pytest.raises(Refused, match=says):
        differences(a, b)
