"""The report as a page: whole in one file, readable without JavaScript, and harmless whatever names it shows."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread
from pages import CONFIG, HOSTILE, PROVENANCE, full, network, renamed
from reports import REPORT

from exporters import bundle
from exporters.report import CAUSES, LEVELS, PARTS, WANTED, Report, Share, figures
from exporters.report.page import PICTURED, drawing, render, status
from sim.findings import Refused
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network

LIMIT = 3 << 20
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
BARE = replace(
    REPORT, accuracy={}, agreement={}, accuracy_by_step=(), accuracy_by_timesteps={}, attribution=None,
    verification=None, fit=None, cost=None, findings=(),
)  # fmt: skip


class Page(HTMLParser):
    """What is in a page; everything that is opened has to be closed, and no attribute may come twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), (tag, attrs)
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self.open[-1] if self.open else "", []).append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def readable(self) -> str:
        """What is read where no script runs."""
        hidden = ("script", "style")
        return " ".join(" ".join(text) for tag, text in self.text.items() if tag not in hidden)


def rendered(report: Report) -> str:
    return render(report, network(report), CONFIG, PROVENANCE)


@pytest.fixture(scope="module")
def text() -> str:
    return rendered(full())


@pytest.mark.parametrize("report", [full(), BARE, renamed(full())], ids=["full", "bare", "hostile"])
def test_it_is_well_formed_and_its_links_lead_somewhere(report: Report) -> None:
    page = Page(rendered(report))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [a["href"] for a in page.named("a") if "href" in a] + [u["href"] for u in page.named("use")]
    assert {link[1:] for link in links} <= set(ids)
    assert all(link[0] == "#" for link in links)
    used = {
        reference for _, a in page.elements for value in a.values() for reference in re.findall(r"url\(#(.*?)\)", value)
    }
    assert used <= set(ids)


def test_nothing_in_it_is_fetched_from_anywhere(text: str) -> None:
    page = Page(text)
    for tag, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert attributes.get(key, "#")[:1] == "#" or attributes[key].startswith("data:"), (tag, attributes)
    style = "".join(page.text["style"]) + " ".join(a.get("style", "") for _, a in page.elements)
    assert "@import" not in style
    assert set(re.findall(r"url\((.)", style)) <= {"#"}
    assert not re.search(r"(https?:)?//\w", text.replace("\n//", "\n"))
    (policy,) = (a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; ")


def test_only_our_own_script_may_run(text: str) -> None:
    page = Page(text)
    (script,) = page.text["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]


def test_everything_can_be_read_without_a_script(text: str) -> None:
    page = Page(text)
    for shown in (
        "The engines disagree: the network is not proven", "It goes wrong first in conv|1: because.", "97.2 %",
        "95 % interval 95.8 to 98.0, n = 200", "98.50", "97.00 to 99.25", "It agrees best.", "fc: too large",
        "limit 131072, margin x131.1", "synapses, 106 %", "use fewer channels", "0.103 to 1.22 ms", "a notebook",
        "nothing is published", "layer fc, step 3", "conv1: something stands out; look at it", "numpy 1.26, torch 2.3",
        "exact", "88,000", "dense operations", "12.50", "12,963", "goes wrong first",
        "inherited -0.100, weights 0.000, clipping 0.200",
    ):  # fmt: skip
        assert shown in " ".join(page.readable.split()), shown
    assert [a for tag, a in page.elements if tag == "details"]
    assert "display: none" not in text
    assert not [a for _, a in page.elements if "hidden" in a]


def test_the_raw_report_is_in_it(text: str) -> None:
    (document,) = ("".join(part) for tag, part in Page(text).text.items() if tag == "pre")
    assert Report.from_dict(json.loads(document), "page") == full()


def test_names_from_a_file_are_only_ever_text() -> None:
    hostile = renamed(full())
    text = rendered(hostile)
    page, plain = Page(text), Page(rendered(full()))
    assert page.named("img") == []
    assert len(page.named("script")) == 1
    assert {tag for tag, _ in page.elements} == {tag for tag, _ in plain.elements}
    assert not [a for _, a in page.elements if any(key.startswith("on") for key in a)]
    assert all(name in page.readable for name in HOSTILE)
    assert "49" not in page.readable.partition("{{ 7 * 7 }}")[0][-9:]
    (document,) = ("".join(part) for tag, part in page.text.items() if tag == "pre")
    assert json.loads(document) == hostile.as_dict()


def test_what_was_not_measured_is_said_with_the_command_that_measures_it() -> None:
    text = " ".join(Page(rendered(BARE)).readable.split())
    assert status(BARE).text == "Not measured"
    for command in ("ann2loihi verify DIR --data test.npz --samples 16 --keep", "ann2loihi convert --sensitivity"):
        assert command in text
    assert text.count("not measured") + text.count("Not measured") >= 6
    assert "nan" not in text.lower().split()


QUIET = replace(REPORT.attribution, fault=None, cause=None, verdict="Nothing measurable is lost: the network decides.")
GOOD = replace(REPORT, verification=None, findings=(), fit=None, attribution=QUIET)


@pytest.mark.parametrize(
    ("change", "mood", "says"),
    [
        ({}, "good", "Nothing measurable is lost"),
        ({"findings": ("clipped",)}, "warn", "Nothing measurable is lost, but there are findings"),
        ({"attribution": replace(QUIET, verdict="Little is lost: its outputs differ.")}, "good", "Little is lost"),
        ({"attribution": replace(QUIET, verdict="It goes wrong: because.")}, "warn", "Read the verdict"),
        ({"attribution": REPORT.attribution}, "warn", "It loses 1.2 points of accuracy, first in conv|1"),
        ({"attribution": REPORT.attribution, "accuracy": {}}, "warn", "It loses 3.5 % of agreement, first in conv|1"),
        ({"fit": replace(REPORT.fit, cores=None)}, "bad", "It does not fit on Loihi 2"),
        ({"verification": REPORT.verification}, "bad", "The engines disagree: the network is not proven"),
        ({"verification": replace(REPORT.verification, difference=None)}, "good", "Nothing measurable is lost"),
    ],
)
def test_the_first_line_says_whether_it_works(change: dict[str, Any], mood: str, says: str) -> None:
    assert status(replace(GOOD, **change)) == (mood, says)
    assert f'<h1 class="{mood}">{says}</h1>' in rendered(replace(GOOD, **change))


def deep(layers: int, timesteps: int, channels: int) -> tuple[Report, Network]:
    """As many layers as large networks have, in all of which everything was measured."""
    rng = np.random.default_rng(0)
    rows, shares, fits, costs, made = [], [], [], [], []
    shape, one = (channels, 1, 1), np.ones((channels, 1, 1, 1), int)
    for index in range(layers):
        name, source = f"backbone.stage{index}.block.relu", made[-1].name if made else INPUT
        counts = tuple(map(tuple, rng.integers(0, 99_999, (min(timesteps, LEVELS) + 1, WANTED)).tolist()))
        rows.append(replace(REPORT.layers[0], name=name, shape=shape, histogram=counts))
        shares.append(replace(REPORT.attribution.layers[0], name=name))
        fits.append(replace(REPORT.fit.layers[0], name=name))
        costs.append(replace(REPORT.cost.layers[0], name=name))
        edge = Edge(source, Conv2d(one, Geometry(groups=channels)))
        bias = rng.integers(-500, 500, (timesteps, channels, 1, 1))
        made.append(Layer(name, shape, (edge,), 99, np.zeros(channels, int), bias))
    end = Edge(made[-1].name, Dense(np.ones((10, channels), int)))
    made.append(Layer("fc", (10,), (end,), 0, np.zeros(10, int), np.ones((timesteps, 10), int), "readout"))
    report = replace(
        REPORT,
        timesteps=timesteps,
        layers=(*rows, REPORT.layers[-1]),
        attribution=replace(REPORT.attribution, layers=tuple(shares)),
        fit=replace(REPORT.fit, layers=tuple(fits)),
        cost=replace(REPORT.cost, layers=tuple(costs)),
    )
    return full(report), Network(Input(shape), tuple(made), timesteps)


def test_deep_networks_stay_below_the_limit() -> None:
    text = render(*deep(layers=160, timesteps=32, channels=256), CONFIG, PROVENANCE)
    assert text.count('aria-label="Bias schedule"') == PICTURED
    assert 1 << 20 < len(text.encode()) < LIMIT


def branched(**sources: tuple[str, ...]) -> Network:
    """Layers of one neuron, by what each reads; the last is the readout."""
    last = list(sources)[-1]
    layers = [
        Layer(
            name, (1,), tuple(Edge(source, Dense([[1]])) for source in read), 9, np.zeros(1, int), np.zeros((2, 1), int)
        )
        for name, read in sources.items()
        if name != last
    ]
    edges = tuple(Edge(source, Dense([[1]])) for source in sources[last])
    layers.append(Layer(last, (1,), edges, 0, np.zeros(1, int), np.zeros((2, 1), int), "readout"))
    return Network(Input((1,)), tuple(layers), 2, holdoff=1)


def test_hold_offs_are_what_phases_say() -> None:
    assert drawing.holdoffs(branched(a=(INPUT,), b=("a", INPUT), fc=("b", "a"))) == {"a": 1, "b": 1, "fc": 0}


def test_layers_stand_in_rows_and_edges_that_skip_one_go_beside_them() -> None:
    network = branched(
        a=(INPUT,), b=("a",), c=("b", "a"), left=("c",), right=("c",), end=("left", "right", "c", "a")
    )  # fmt: skip
    graph = drawing.Graph.of(BARE, network)
    at = {node.name: node for node in graph.nodes}
    height, width = drawing.HEIGHT + drawing.BETWEEN, drawing.WIDTH
    assert [round((at[name].y - at[INPUT].y) / height) for name in at] == [0, 1, 2, 3, 4, 4, 5]
    assert at["right"].x == at["left"].x + width + drawing.BESIDE
    assert at["a"].x == at["end"].x == (at["left"].x + at["right"].x) / 2
    assert len(graph.paths) == 10
    lanes = {float(match[1]) for path in graph.paths if (match := re.search(r"H([\d.]+)V", path))}
    assert len(lanes) == 2  # a to c and c to end follow each other, a to end passes both
    assert all(at["right"].x + width < lane < graph.width for lane in lanes)
    assert graph.height > at["end"].y + drawing.HEIGHT
    assert at["a"].lines == ("1, θ 9, K 1", "")
    assert {node.index for node in graph.nodes} == {None}  # the report is that of another network


def test_the_graph_marks_the_layer_at_fault_and_shades_by_own_errors() -> None:
    graph = drawing.Graph.of(REPORT, network())
    heat = {node.name: (node.fault, round(node.heat, 3)) for node in graph.nodes}
    assert heat == {INPUT: (False, 0), "conv|1": (True, 1), "silent": (False, 0), "fc": (False, round(0.1 / 0.35, 3))}
    (first,) = (node for node in graph.nodes if node.name == "conv|1")
    assert first.lines == ("3, θ 181, K 0", "0.96 spikes per neuron, 2 cores")
    (last,) = (node for node in graph.nodes if node.name == "fc")
    assert last.lines == ("3, readout", "no core holds it")


def share(**parts: float) -> Share:
    filled = dict.fromkeys(PARTS, 0.0) | parts
    return Share(name="a", error=sum(filled.values()), own=sum(filled[part] for part in CAUSES), **filled)


def test_bars_have_one_scale_and_what_takes_away_lies_left_of_zero() -> None:
    rows = share(inherited=-0.1, clipping=0.3), share(timing=0.2, inherited=0.1)
    bars = drawing.Bars.of(rows)
    assert bars.zero == pytest.approx(25)
    first, second = map(bars.parts, rows)
    assert [(bar.part, *map(round, bar[2:])) for bar in first] == [("inherited", 0, 25), ("clipping", 25, 75)]
    assert [(bar.part, *map(round, bar[2:])) for bar in second] == [("inherited", 25, 25), ("timing", 50, 50)]
    assert drawing.Bars.of([share()]).parts(share()) == []


def pixels(uri: str) -> np.ndarray:
    return imread(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"))), format="png")


def test_a_map_of_counts_has_a_pixel_for_each_and_none_where_nothing_occurs() -> None:
    picture = pixels(drawing.heat([[0, 9], [99, 0], [999, 0]]))
    assert picture.shape == (3, 2, 4)
    assert (picture[..., 3] > 0).tolist() == [[True, False], [True, False], [False, True]]  # the last row is on top
    assert picture[0, 0, 3] == 1
    assert picture[0, 0, 3] > picture[1, 0, 3] > picture[2, 1, 3]


def test_a_map_of_biases_has_channel_0_above_and_the_first_step_to_the_left() -> None:
    layer = network().layers[0]
    uri, limit = drawing.schedule(layer)
    picture = pixels(uri)
    assert limit == pytest.approx(7 / 181)
    assert picture.shape == (3, 4, 4)
    blue = picture[..., 2] > picture[..., 0]
    values = np.arange(12).reshape(4, 3).T - 4
    assert ((values < 0) == (blue & (picture[..., 3] > 0))).all()
    assert np.unravel_index(picture[..., 3].argmax(), (3, 4)) == (2, 3)


def test_maps_of_many_channels_are_averaged() -> None:
    class Wide:
        bias, threshold = np.repeat(np.arange(128), 2)[None, :, None] * np.ones((200, 1, 1)), 1

    uri, limit = drawing.schedule(Wide())  # type: ignore[arg-type]
    assert pixels(uri).shape == (48, 48, 4)
    assert limit == pytest.approx(126.2)


def test_figures_take_the_colours_of_the_page_and_have_ids_of_their_own() -> None:
    drawn = drawing.inline(figures.accuracy_figure(REPORT), "accuracy")
    assert "var(--blue)" in drawn
    assert "var(--vermilion)" in drawn
    assert not re.search("#[0-9a-f]{6}", drawn)
    assert "<metadata" not in drawn
    assert all(name.startswith("accuracy-") for name in re.findall(r' id="(.*?)"', drawn))
    assert all(name.startswith("accuracy-") for name in re.findall(r'(?:url\(|href=")#(.*?)[)"]', drawn))
    assert "tiny: accuracy with 95 % intervals, n = 200" in drawn
    assert drawn == drawing.inline(figures.accuracy_figure(REPORT), "accuracy")


@pytest.mark.parametrize("name", ["$x$", "$\\frac$", "a$b", "cost: 5$ <b>", "层"])
def test_names_in_figures_are_shown_as_they_are(name: str) -> None:
    row = replace(REPORT.attribution.layers[0], name=name)
    drawn = drawing.inline(figures.attribution_figure(name, [row]), "a")
    assert name.replace("<", "&lt;").replace(">", "&gt;") in drawn
    assert "�" in drawing.inline(figures.attribution_figure("\x00\x1b", [row]), "a")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("saved") / "out"
    bundle.save(out, network(), config=CONFIG, provenance=PROVENANCE, report=full())
    return out


@pytest.fixture
def saved(directory: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(directory, tmp_path / "out"))


def test_it_is_written_beside_the_report_and_begins_so_that_it_is_known_as_ours(directory: Path, text: str) -> None:
    written = (directory / "report.html").read_bytes()
    assert written == bundle.BEGINNINGS["report.html"] + text.encode()
    assert len(written) < LIMIT / 10


def test_it_is_made_again_from_what_is_in_the_directory(saved: Path) -> None:
    before = (saved / "report.html").read_bytes()
    (saved / "report.html").unlink()
    assert bundle.write_page(saved) == saved / "report.html"
    assert (saved / "report.html").read_bytes() == before
    report = saved / "report.json"
    report.write_text(report.read_text().replace('"model": "tiny"', '"model": "another"'))
    bundle.write_page(str(saved))
    assert b"another as a spiking network" in (saved / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: (d / "report.json").unlink(), "it holds no report.json: nothing was measured"),
        (lambda d: (d / "report.html").write_text("<!doctype html>\n<p>thesis"), "report.html: it is no page of ours"),
        (lambda d: ((d / "report.html").unlink(), (d / "report.html").mkdir()), "report.html: it is no page of ours"),
    ],
)
def test_it_is_refused_where_there_is_nothing_to_show_or_something_else_in_its_place(
    change: Callable[[Path], object], says: str, saved: Path
) -> None:
    change(saved)
    with pytest.raises(Refused, match=says):
        bundle.write_page(saved)


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(document: Any) -> None:
        *outer, last = path
        for key in outer:
            document = document[key]
        document[last] = value

    return change


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of matplotlib, before it gives up
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (put("layers", 0, "histogram", value=[[1], [2, 3]]), "its histogram is no table of counts with 24 columns"),
        (put("layers", 0, "histogram", value=[[0] * 24]), "its histogram is no table of counts with 24 columns"),
        (put("layers", 0, "histogram", value=[[-1] * 24] * 2), "its histogram is no table of counts with 24 columns"),
        (put("accuracy", "ann", "accuracy", value=10**400), "accuracy: ann: accuracy: 10+ is not a number"),
        (put("samples", value=10**30), "samples: 10+ is not an integer"),
        (put("attribution", "cause", value="__init__"), "cause: '__init__' is not one of weights, clipping"),
        (put("accuracy_by_step", 0, "low", value=-1.7e308), "report.json: it cannot be drawn"),
    ],
)
def test_a_report_that_nothing_can_be_drawn_of_is_refused(
    change: Callable[[Any], None], says: str, saved: Path
) -> None:
    before = rewritten(saved, change)
    with pytest.raises(Refused, match=says) as caught:
        bundle.write_page(saved)
    assert "\n" not in str(caught.value)
    assert (saved / "report.html").read_bytes() == before


def test_a_report_of_anything_else_is_shown_as_it_is(saved: Path) -> None:
    changes = [
        put("fit", "layers", 0, "bottleneck", value="<b>"),
        put("layers", 0, "edges", value=[]),
        put("layers", 0, "shape", value=[]),
        put("layers", 1, "name", value="input"),
        put("verification", "engines", value=[]),
        put("attribution", "layers", value=[]),
        put("cost", "spikes", value=-1e300),
        put("agreement", "int8", "low", value=-1e300),
    ]
    rewritten(saved, lambda document: [change(document) for change in changes])
    assert "&lt;b&gt;, 12 %" in bundle.write_page(saved).read_text()


def rewritten(directory: Path, change: Callable[[Any], object]) -> bytes:
    """Change the report of a directory; returns the page as it is now."""
    document = full().as_dict()
    change(document)
    (directory / "report.json").write_text(json.dumps(document))
    return (directory / "report.html").read_bytes()


def test_another_report_takes_the_place_of_the_one_before_in_every_form(saved: Path) -> None:
    pictures = {path.name: path.read_bytes() for path in saved.glob("*.png")}
    agreed = replace(full(), verification=replace(REPORT.verification, difference=None, summary="all agree"))
    bundle.keep_report(saved, agreed)
    assert bundle.load(saved).report == agreed
    assert "2 engines agree" in (saved / "report.html").read_text()
    text = (saved / "report.md").read_text()
    assert "No difference." in text
    assert all(f"]({name})" in text for name in pictures)
    assert {path.name: path.read_bytes() for path in saved.glob("*.png")} == pictures
    (saved / "report.md").write_text("my notes")
    with pytest.raises(Refused, match=r"report\.md: it is no file of ours; move it away"):
        bundle.keep_report(saved, full())
    assert bundle.load(saved).report == agreed
