"""The artefact directory: what is in it, and what is said where it is not as it should be."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bundles import CONFIG, PROVENANCE, contents, network, save, save_reported
from reports import REPORT

from exporters import bundle
from exporters.report.markdown import render
from sim.findings import Refused
from sim.network import INPUT, Dense, Edge, Input, Network


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_reported(tmp_path / "out")


def test_a_bundle_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    saved = tmp_path / "out"
    save(saved, report=REPORT)
    assert bundle.load(saved) == bundle.Bundle(network(), CONFIG, PROVENANCE, REPORT, saved / "network.net")
    assert sorted(contents(saved)) == [
        "accuracy.png", "attribution.png", "bias_schedule.png", "config.json", "network.net", "provenance.json",
        "rates.png", "report.html", "report.json", "report.md",
    ]  # fmt: skip


def test_a_network_that_netx_cannot_build_is_kept_as_a_graph(tmp_path: Path) -> None:
    save(tmp_path / "out", network=network(skip=True))
    assert bundle.load(tmp_path / "out") == bundle.Bundle(
        network(skip=True), CONFIG, PROVENANCE, None, tmp_path / "out" / "network.net"
    )
    assert sorted(contents(tmp_path / "out")) == ["config.json", "network.net", "provenance.json"]


def test_a_network_that_no_chip_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="hidden <- input: weight 128 is outside"):
        save(tmp_path / "out", network=network(weight=128))
    assert list(tmp_path.iterdir()) == []


def test_directories_above_are_made(tmp_path: Path) -> None:
    save(tmp_path / "a" / "b")
    assert bundle.load(tmp_path / "a" / "b").network == network()


def test_a_report_is_written_as_json_and_as_text_with_the_pictures_that_it_refers_to(tmp_path: Path) -> None:
    save(tmp_path / "out", report=REPORT)
    pictures = ["accuracy.png", "attribution.png", "rates.png", "bias_schedule.png"]
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "network.net", "config.json", "provenance.json", "report.html", "report.json", "report.md", *pictures
    }  # fmt: skip
    assert (tmp_path / "out" / "report.md").read_text(encoding="utf-8") == render(REPORT, pictures)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == REPORT.as_dict()
    for picture in pictures:
        assert (tmp_path / "out" / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_pictures_without_data_are_not_written(tmp_path: Path) -> None:
    bare = replace(REPORT, accuracy_by_step=(), accuracy_by_timesteps={}, attribution=None, layers=())
    (readout,) = (layer for layer in network().layers if layer.kind == "readout")
    alone = replace(readout, edges=(Edge(INPUT, Dense(np.full((2, 2), 7))),))
    save(tmp_path / "out", network=Network(Input((2,)), (alone,), 2), report=bare)
    assert sorted(contents(tmp_path / "out")) == [
        "config.json", "network.net", "provenance.json", "report.html", "report.json", "report.md",
    ]  # fmt: skip
    assert "Pictures" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


def test_saving_again_replaces_the_whole_bundle(saved: Path) -> None:
    save(saved, network=network(skip=True), config={"timesteps": 3})
    assert sorted(contents(saved)) == ["config.json", "network.net", "provenance.json"]
    assert bundle.load(saved).config == {"timesteps": 3}
    assert [path.name for path in saved.parent.iterdir()] == ["out"]


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    save(tmp_path / "out")
    assert bundle.load(tmp_path / "out").network == network()


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("config", {"x": float("nan")}, "config.json: it is not JSON"),
        ("config", {"x": {1, 2}}, "config.json: it is not JSON .*set is not JSON serializable"),
        ("config", {"x": "\ud800"}, "config.json: it is not JSON .*surrogates"),
        ("config", {"x": (1, 2)}, "config.json: it would read back as something else"),
        ("config", {8: 99.0}, "config.json: it would read back as something else"),
        ("report", replace(REPORT, samples=float("nan")), "report.json: it is not JSON"),
        ("provenance", {"model": ["/home/ada/model.py"]}, "provenance.json: '/home/ada/model.py' is an absolute path"),
        ("provenance", {"C:\\Users\\ada": 1}, "provenance.json: .* is an absolute path"),
    ],
)
def test_what_json_cannot_hold_or_others_should_not_see_is_refused(
    field: str, value: Any, text: str, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=text):
        save(tmp_path / "out", **{field: value})
    assert list(tmp_path.iterdir()) == []


def test_all_findings_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(Refused) as caught:
        save(tmp_path, config={"x": {1}}, provenance={"x": "/tmp"}, report=replace(REPORT, samples=float("inf")))
    assert [f.where for f in caught.value.findings] == ["config.json", "report.json", "provenance.json", str(tmp_path)]


def write(name: str, text: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(text)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda d: (d / "network.net").unlink(), "no network.net found"),
        (write("network.net", b"x"), "network.net: it cannot be read as HDF5"),
        (lambda d: (d / "config.json").unlink(), "config.json: it is missing"),
        (lambda d: (d / "provenance.json").unlink(), "provenance.json: it is missing"),
        (write("config.json", b"{"), "config.json: it is not valid JSON"),
        (write("config.json", b"[1]"), "config.json: it holds a list, not an object"),
        (write("config.json", b'{"x": NaN}'), "config.json: it is not valid JSON .*NaN is not a JSON number"),
        (write("config.json", b"\xff"), "config.json: it is not valid JSON"),
        (write("config.json", b"[" * 200_000), "config.json: it is not valid JSON"),
        (write("report.json", b""), "report.json: it is not valid JSON"),
        (write("report.json", b" " * (1 << 24) + b"{}"), "report.json: it has 16777218 bytes, above 16777216"),
    ],
)
def test_a_damaged_bundle_is_refused_in_one_line(damage: Callable[[Path], object], text: str, saved: Path) -> None:
    damage(saved)
    with pytest.raises(Refused, match=text) as caught:
        bundle.load(saved)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(saved))


def test_a_report_of_other_keys_is_refused_with_every_one(saved: Path) -> None:
    (saved / "report.json").write_text('{"loss": 3}')
    with pytest.raises(Refused, match=r"report\.json: 'model' is missing") as caught:
        bundle.load(saved)
    assert f"{saved / 'report.json'}: unknown key 'loss'; read it with" in str(caught.value)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="there is no such directory; give one that `ann2loihi convert` has written"):
        bundle.load(tmp_path / "nowhere")


def test_provenance_names_versions_and_digests_but_neither_user_nor_host(tmp_path: Path) -> None:
    weights = torch.nn.Linear(2, 3).state_dict()
    digests = {"weights": bundle.digest(weights), "calibration": bundle.digest({"x": np.zeros((4, 2), np.float32)})}
    found = bundle.provenance(seed=7, sha256=digests, processor={"threads": 2})
    assert found["processor"] == {"threads": 2}
    assert found["seed"] == 7
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == torch.__version__.split("+")[0]
    assert found["packages"].keys() >= {"numpy", "h5py", "scikit-learn"}
    assert found["created"].endswith("+00:00")
    assert found["sha256"] == digests
    assert all(len(digest) == 64 for digest in digests.values())
    assert found["platform"] == f"{platform.system()} {platform.machine()}"
    assert found.keys() == {"created", "python", "platform", "packages", "processor", "seed", "sha256"}
    save(tmp_path / "out", provenance=found)
    assert bundle.load(tmp_path / "out").provenance == found


def test_digests_follow_every_value_name_shape_and_type_and_nothing_else() -> None:
    base = {"a": np.arange(6, dtype=np.int32), "b": np.ones(2)}
    same = {"b": torch.ones(2, dtype=torch.float64), "a": torch.arange(6, dtype=torch.int32)}
    others = [
        base | {"a": np.arange(1, 7, dtype=np.int32)},
        {"c": base["a"], "b": base["b"]},
        {"b": base["b"]},
        base | {"a": base["a"].reshape(2, 3)},
        base | {"a": base["a"].astype(np.uint32)},
    ]
    assert bundle.digest(same) == bundle.digest(base)
    assert len({bundle.digest(arrays) for arrays in [base, *others]}) == len(others) + 1
