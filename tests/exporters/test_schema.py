"""The record of a report: what it writes it reads again, and nothing else."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from reports import REPORT

from exporters.report import CAUSES, PARTS, RUNGS, Report, Search, Share, Trial
from exporters.report.markdown import PICTURES, render
from sim.findings import Refused

GOLDENS = sorted((Path(__file__).parents[1] / "goldens").glob("*/report.json"))
CHOICE = Search(
    reason="It agrees best.",
    trials=(
        Trial(timesteps=1, holdoff=0, method="mse", steps=5, agreement=99.5, error=0.25, refused=None),
        Trial(timesteps=2, holdoff=0, method="mse", steps=6, agreement=0.0, error=0.0, refused="fc: too large"),
    ),
)


@pytest.mark.parametrize("path", GOLDENS, ids=lambda path: path.parent.name)
def test_a_stored_report_comes_back_to_the_byte_and_renders_as_it_did(path: Path) -> None:
    stored, text = path.read_text(encoding="utf-8"), (path.parent / "report.md").read_text(encoding="utf-8")
    report = Report.from_dict(json.loads(stored), "report.json")
    assert json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n" == stored
    pictures = tuple(name for name in PICTURES if f"]({name})" in text)
    assert pictures
    assert render(report, pictures) == text


def test_together_the_stored_reports_hold_everything_that_a_report_can_hold() -> None:
    stored = {key for path in GOLDENS for key in json.loads(path.read_text())}
    assert stored == {field.name for field in fields(Report)}


def test_a_report_survives_json() -> None:
    report = replace(REPORT, choice=CHOICE, data="test digits")
    document = json.loads(json.dumps(report.as_dict()))
    assert document == report.as_dict()
    assert Report.from_dict(document, "report.json") == report
    assert document["accuracy"]["ann"] == {"accuracy": 98.5, "n": 200, "low": 97.0, "high": 99.25}
    assert document["agreement"]["folded"] == {"agreement": 100.0, "n": 200, "low": 98.0, "high": 100.0}
    assert list(document["accuracy_by_step"][2].items())[:2] == [("step", 3), ("accuracy", 93)]
    assert list(document["accuracy_by_timesteps"]) == ["10", "2", "4"]
    assert document["choice"]["trials"][1]["refused"] == "fc: too large"
    assert document["choice"]["trials"][0]["refused"] is None


def test_what_was_not_measured_is_absent_and_zero_is_not() -> None:
    document = replace(REPORT, attribution=None, accuracy={}, accuracy_by_step=(), verification=None).as_dict()
    assert {"attribution", "accuracy", "accuracy_by_step", "verification", "data", "choice"}.isdisjoint(document)
    assert {"peak", "state_limit", "rate_error"}.isdisjoint(document["layers"][1])
    assert REPORT.layers[0].as_dict().keys() == {field.name for field in fields(REPORT.layers[0])}
    assert REPORT.attribution is not None
    quiet = replace(REPORT.attribution.layers[0], saturated=0.0, dead_channels=0)
    assert (quiet.as_dict()["saturated"], quiet.as_dict()["dead_channels"]) == (0.0, 0)
    assert replace(REPORT, findings=()).as_dict()["findings"] == []


def put(*path: str | int, value: Any = None) -> Callable[[dict[str, Any]], None]:
    """Set a value, deep inside a document."""

    def change(document: Any) -> None:
        *outer, last = path
        for key in outer:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda d: d.pop("samples"), "report.json: 'samples' is missing"),
        (lambda d: d["layers"][1].pop("theta"), r"report.json: layers\[1\]: 'theta' is missing"),
        (lambda d: d["accuracy"]["ann"].pop("accuracy"), "report.json: accuracy: ann: 'accuracy' is missing"),
        (lambda d: d["agreement"]["int8"].pop("n"), "report.json: agreement: int8: 'n' is missing"),
        (put("loss", value=1), "report.json: unknown key 'loss'"),
        (put("verification", "engines", 1, "cores", value=2), r"verification: engines\[1\]: unknown key 'cores'"),
        (put("accuracy", "ann", "value", value=1), "accuracy: ann: unknown key 'value'"),
        (put("accuracy", "loihi", value={}), "accuracy: key 'loihi': 'loihi' is not one of ann, folded, thresholds"),
        (put("accuracy_by_timesteps", "04", value={}), "accuracy_by_timesteps: key '04': '04' is not an integer"),
        (put("accuracy_by_timesteps", "9" * 5000, value={}), "accuracy_by_timesteps: key '9{39}: '9{39} is not an int"),
        (put("samples", value="3"), "report.json: samples: '3' is not an integer"),
        (put("samples", value=2**63), "report.json: samples: 9223372036854775808 is not an integer"),
        (put("layers", 0, "rate_error", value=float("inf")), r"layers\[0\]: rate_error: inf is not a number"),
        (put("samples", value=True), "report.json: samples: True is not an integer"),
        (put("model", value=None), "report.json: model: None is not a string"),
        (put("layers", 0, "rate_error", value=[0.5]), r"layers\[0\]: rate_error: a list is not a number"),
        (put("layers", 0, "shape", 1, value=2.5), r"layers\[0\]: shape\[1\]: 2.5 is not an integer"),
        (put("findings", value="none"), "report.json: findings: 'none' is not a list"),
        (put("accuracy", value=[]), "report.json: accuracy: a list is not an object"),
        (put("attribution", value=7), "report.json: attribution: 7 is not an object"),
    ],
)
def test_a_document_that_is_no_report_is_refused_with_the_key(
    change: Callable[[dict[str, Any]], object], text: str
) -> None:
    document = copy.deepcopy(REPORT.as_dict())
    change(document)
    with pytest.raises(Refused, match=f"{text}.*; read it with the version that wrote it, or convert again"):
        Report.from_dict(document, "report.json")


def test_all_wrong_keys_are_reported_at_once() -> None:
    document = copy.deepcopy(REPORT.as_dict()) | {"timesteps": "4", "loss": 1}
    del document["attribution"]["layers"][0]["name"]
    with pytest.raises(Refused) as caught:
        Report.from_dict(document, "report.json")
    assert [finding.where for finding in caught.value.findings] == [
        "report.json", "report.json: timesteps", "report.json: attribution: layers[0]",
    ]  # fmt: skip
    with pytest.raises(Refused, match=r"report\.json: a list is not an object"):
        Report.from_dict([], "report.json")


def test_every_part_is_a_share_and_parts_are_causes_and_what_is_inherited() -> None:
    assert ("inherited", *CAUSES) == PARTS
    assert set(PARTS) <= {field.name for field in fields(Share)}
    share = Share(name="a", error=1, own=2, inherited=3, weights=4, clipping=5, staircase=6, timing=7, dead=8)
    assert [share.of(part) for part in PARTS] == [3, 4, 5, 6, 7, 8]


def test_rungs_lead_from_the_trained_network_to_lava() -> None:
    assert list(RUNGS) == ["ann", "folded", "thresholds", "wide", "int8", "lava"]


def test_the_choice_shows_every_trial_and_why_one_was_refused() -> None:
    text = render(replace(REPORT, choice=CHOICE))
    assert "## How T and K were chosen\n\nIt agrees best." in text
    assert "| 1 | 0 | mse | 5 | 99.5 +- 0.2 |" in text
    assert "| 2 | 0 | mse | 6 | fc: too large |" in text
    first, second = CHOICE.trials
    priced = replace(first, neurons=70, period=2, spikes=12.4, neuron_budget=2.0, chosen=True)
    text = render(replace(REPORT, choice=replace(CHOICE, trials=(priced, second))))
    assert "| 1 | 0 | mse | 5 | 99.5 +- 0.2 | 2 | 70 | 12 | chosen |" in text
    assert "| 2 | 0 | mse | 6 | fc: too large | not measured | not measured | not measured |  |" in text
