"""The report as Markdown and pictures, on a record made by hand."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pages
import pytest
from matplotlib.collections import QuadMesh
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from reports import REPORT, accuracy

from exporters.comparison import Compared
from exporters.report import MEASURES, PARTS, RUNGS, WANTED, Report, Trial, figures
from exporters.report.markdown import PICTURES, render
from sim.network import INPUT, Dense, Edge, Input, Layer, Network

#: The same where neither labels nor the rest were there to measure with.
BARE = replace(REPORT, accuracy={}, accuracy_by_step=(), accuracy_by_timesteps={}, attribution=None, verification=None)


def rated(**histograms: np.ndarray) -> Report:
    """A report with layers of these histograms, (n + 1, WANTED), and a readout."""
    conv, *_, readout = REPORT.layers
    rows = [
        replace(conv, name=name, histogram=tuple(map(tuple, counts.tolist())), correlation=r)
        for (name, counts), r in zip(histograms.items(), (0.98765, None), strict=False)
    ]
    return replace(REPORT, layers=(*rows, readout))


def counted(rows: int, *places: tuple[int, int]) -> np.ndarray:
    counts = np.zeros((rows, WANTED), int)
    for place in places:
        counts[place] += 1
    return counts


def tiny() -> Network:
    dense = Dense(np.ones((2, 3), int))
    per_channel = np.array([[8, -4], [0, 2], [4, 0], [1, 1]])
    spatial = np.arange(4).reshape(4, 1, 1, 1) + np.array([[[-3, 3]], [[0, 10]]])
    return Network(
        Input((3,)),
        (
            Layer("first", (2,), (Edge(INPUT, dense),), 4, np.zeros(2, int), per_channel),
            Layer("wide", (2, 1, 2), (Edge("first", Dense(np.ones((4, 2), int))),), 10, np.zeros(2, int), spatial),
            Layer(
                "out",
                (2,),
                (Edge("wide", Dense(np.ones((2, 4), int))),),
                0,
                np.zeros(2, int),
                np.full((4, 2), 1000),
                "readout",
            ),
        ),
        4,
    )


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines() if line[:1] == "|"]


def test_the_accuracy_ladder_prints_every_number_and_what_is_missing() -> None:
    table = rows(render(REPORT))
    missing = ["not measured", ""]
    assert ["trained network, float", "98.50", "97.00 to 99.25", "", "", "200"] in table
    assert ["batch normalisation folded, float", *missing, "100.00", "98.00 to 100.00", "200"] in table
    assert ["activations in T steps, float", *missing, *missing, ""] in table
    assert ["spiking, wide integers", *missing, *missing, ""] in table
    assert ["spiking, 8-bit weights", "97.25", "95.75 to 98.00", "96.50", "94.50 to 96.50", "200"] in table
    assert ["spiking, 8-bit weights, on Lava", "93.75", "92.25 to 94.50", "87.50", "85.50 to 87.50", "16"] in table


def test_the_report_says_why_the_accuracy_is_what_it_is() -> None:
    text = render(REPORT)
    section = text.partition("## Why the accuracy is what it is\n\n")[2].partition("\n\n## ")[0]
    assert section.startswith("It goes wrong first in conv|1: because.\n\n")
    assert rows(section)[0][:8] == ["layer", "error", *PARTS]
    assert rows(section)[2:] == [
        ["conv\\|1", "0.250", "-0.100", "0.000", "0.200", "0.150", "0.020", "0.030", "12.50 %", "0.12 %", "3"],
        ["fc", "0.500", "0.400", "0.100", "0.000", "0.000", "0.000", "0.000", "", "", ""],
    ]
    assert "Measured on 99 samples" in section


def test_the_attribution_figure_stacks_what_adds_to_an_error_and_what_takes_away_apart() -> None:
    (axes,) = figures.attribution_figure("tiny", REPORT.attribution.layers).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv|1", "fc"]
    bars = {bar.get_label(): [(patch.get_x(), patch.get_width()) for patch in bar] for bar in axes.containers}
    assert list(bars) == list(PARTS)
    first = {part: place for part, (place, _) in bars.items()}
    assert np.allclose([first["inherited"], first["weights"]], [(0, -0.1), (-0.1, -0.0001)])
    assert np.allclose([first[part] for part in ("clipping", "staircase", "timing", "dead")],
                       [(0, 0.2), (0.2, 0.15), (0.35, 0.02), (0.37, 0.03)])  # fmt: skip
    (total,) = (line for line in axes.lines if line.get_label() == "sum")
    assert total.get_xydata().tolist() == [[0.25, 0], [0.5, 1]]
    assert axes.yaxis_inverted()  # the first layer is on top


def test_accuracy_by_step_and_by_timesteps_is_printed_in_numeric_order() -> None:
    table = rows(render(REPORT))
    steps, timesteps = (next(i for i, row in enumerate(table) if row[0] == head) for head in ("step", "T"))
    assert [row[:2] for row in table[steps + 2 : steps + 6]] == [[str(t), f"{90 + t}.00"] for t in (1, 2, 3, 4)]
    assert [row[:2] for row in table[timesteps + 2 : timesteps + 5]] == [
        ["2", "95.00"],
        ["4", "94.00"],
        ["10", "98.00"],
    ]


def test_the_layer_table_prints_every_number_and_how_safe_the_register_is() -> None:
    table = rows(render(REPORT))
    assert [
        "conv\\|1",
        "16x8x8",
        "1024 (2 copies)",
        "144",
        "181",
        "2",
        "-12 to 34",
        "0.957",
        "0.011",
        "0.994",
        "1000",
        "200000",
        "limit 131072, margin x131.1",
    ] in table
    assert ["silent", "3", "3", "9", "7", "4", "0 to 0", *["not measured"] * 4, "99", "not measured"] in table
    assert [
        "fc",
        "10",
        "10",
        "5120",
        "",
        "5",
        "-5 to 6",
        "",
        "",
        "",
        "26236",
        "101170",
        "limit 131072, proven",
    ] in table


def test_a_register_without_proof_or_peak_is_not_called_safe() -> None:
    layer = replace(REPORT.layers[0], peak=None)
    assert "limit 131072, not measured" in render(replace(REPORT, layers=(layer,)))
    layer = replace(layer, peak=5, worst_case=131_072)
    assert "limit 131072, margin x26214.4" in render(replace(REPORT, layers=(layer,)))


def test_the_verification_says_who_was_compared_and_what_differed() -> None:
    text = render(REPORT)
    assert "16 samples, 777 spikes. Every engine was compared with reference, bit for bit." in text
    assert "First difference: layer fc, step 3." in text
    assert ["fast", "3", "4999", "0.50"] in rows(text)
    agreed = replace(REPORT, verification=replace(REPORT.verification, difference=None, skipped=("lava: missing",)))
    assert "No difference." in render(agreed)
    assert "- not run: lava: missing" in render(agreed)


def test_the_error_of_the_import_is_printed_where_there_was_one() -> None:
    line = "The imported network equals the trained one: largest difference 3e-07 of the largest logit."
    assert line in render(replace(REPORT, import_error=3.2e-7))
    assert "imported network" not in render(replace(REPORT, import_error=None))


def test_findings_and_the_name_of_the_data_are_printed() -> None:
    assert "- conv1: something stands out; look at it" in render(REPORT)
    assert "## Findings" not in render(replace(REPORT, findings=()))
    assert "200 samples (test digits)." in render(replace(REPORT, data="test digits"))


def test_a_report_without_labels_or_verification_says_so() -> None:
    text = render(replace(BARE, agreement={}))
    assert sum(row[1:2] == ["not measured"] for row in rows(text)) == len(RUNGS)
    assert "## Why the accuracy is what it is\n\nNot measured." in text
    assert "## Verification\n\nNot measured." in text
    assert "Converted anew" not in text
    assert "Read after" not in text


def test_every_table_row_has_as_many_cells_as_its_header() -> None:
    lines = [line.replace("\\|", "") for line in render(REPORT).splitlines()]
    tables = "\n".join(line if line[:1] == "|" else "" for line in lines).split("\n\n")
    widths = [{line.count("|") for line in table.splitlines() if line} for table in tables if table.strip()]
    assert len(widths) == 9
    assert all(len(width) == 1 for width in widths)


def test_the_accuracy_figure_draws_both_series_the_ann_and_their_intervals() -> None:
    (axes,) = figures.accuracy_figure(REPORT).axes
    lines = {line.get_label(): line for line in axes.lines}
    read = lines["read at step t of the T = 4 network"]
    assert [*read.get_xdata()] == [1, 2, 3, 4]
    assert [*read.get_ydata()] == [91, 92, 93, 94]
    assert set(lines["trained network, 98.5 %"].get_ydata()) == {98.5}
    (bars,) = (c for c in axes.containers if isinstance(c, ErrorbarContainer))
    assert bars.get_label() == "converted for T"
    assert [*map(tuple, np.array(bars[0].get_data()).T)] == [(2, 95), (4, 94), (10, 98)]
    assert bars[2][0].get_segments()[0].tolist() == [[2, 93.5], [2, 95.75]]
    band = axes.collections[0].get_paths()[0].vertices
    assert {tuple(v) for v in band} >= {(t, 90 + t + d) for t in (1, 2, 3, 4) for d in (-1.5, 0.75)}
    assert axes.get_xlabel() == "time steps"
    assert axes.get_ylabel() == "accuracy (%)"
    assert axes.get_title("left") == "tiny: accuracy with 95 % intervals, n = 200"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == sorted(
        ["trained network, 98.5 %", "read at step t of the T = 4 network", "converted for T"]
    )


def test_the_accuracy_figure_shows_what_t_steps_alone_would_reach() -> None:
    (axes,) = figures.accuracy_figure(replace(REPORT, accuracy={**REPORT.accuracy, "thresholds": accuracy(97.5)})).axes
    (line,) = (line for line in axes.lines if line.get_label() == "activations in T = 4 steps, 97.5 %")
    assert set(line.get_ydata()) == {97.5}


@pytest.mark.parametrize("missing", ["accuracy", "accuracy_by_step", "accuracy_by_timesteps"])
def test_the_accuracy_figure_leaves_out_what_was_not_measured(missing: str) -> None:
    label = {"accuracy": "trained", "accuracy_by_step": "read", "accuracy_by_timesteps": "converted"}
    (axes,) = figures.accuracy_figure(replace(REPORT, **{missing: getattr(BARE, missing)})).axes
    drawn = {text.get_text().split()[0].rstrip(",") for text in axes.get_legend().get_texts()}
    assert drawn == set(label.values()) - {label[missing]}


def meshes(figure: Figure) -> list[QuadMesh]:
    return [
        mesh
        for axes in figure.axes
        for mesh in axes.collections
        if isinstance(mesh, QuadMesh) and axes.get_label() != "<colorbar>"
    ]


def test_the_rates_figure_shows_every_count_at_its_own_rate() -> None:
    many = counted(5, (0, 0), (1, 7), (3, 12), (4, 23))
    first, second = meshes(figures.rates_figure(rated(a=many, silent=counted(3, (0, 2), (0, 4)))))
    assert np.ma.filled(first.get_array(), 0).reshape(5, WANTED).tolist() == many.tolist()
    assert second.get_array().sum() == 2
    assert np.allclose(np.unique(first.get_coordinates()[..., 1]), np.arange(-0.125, 1.2, 0.25))
    assert np.allclose(np.unique(second.get_coordinates()[..., 1]), np.arange(-0.25, 1.3, 0.5))
    assert np.allclose(np.unique(first.get_coordinates()[..., 0]), np.linspace(0, 1, WANTED + 1))


def test_the_rates_figure_names_layers_correlations_and_units() -> None:
    figure = figures.rates_figure(rated(a=counted(5, (1, 1)), silent=counted(5, (0, 1))))
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    assert [axes.get_title() for axes in panels] == ["a\nr = 0.988", "silent\nr undefined"]
    assert all(axes.lines[0].get_xydata().tolist() == [[0, 0], [1, 1]] for axes in panels)
    assert figure.get_supxlabel() == r"clip(activation / $\theta$, 0, 1)"
    assert figure.get_supylabel() == "spikes per step"


def test_the_rates_figure_shares_one_colour_scale() -> None:
    report = rated(few=counted(5, (1, 1)), many=1000 * counted(5, (2, 12)))
    assert {mesh.get_clim() for mesh in meshes(figures.rates_figure(report))} == {(1, 1000)}


def test_the_schedule_figure_draws_biases_in_thresholds_with_one_scale_around_zero() -> None:
    figure = figures.schedule_figure(tiny())
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == ["first\n$\\theta$ = 4", "wide\n$\\theta$ = 10"]
    first, wide = (axes.images[0] for axes in panels)
    assert first.get_array().tolist() == [[2, 0, 1, 0.25], [-1, 0.5, 0, 0.25]]
    assert np.allclose(wide.get_array(), [[0, 0.1, 0.2, 0.3], [0.5, 0.6, 0.7, 0.8]])
    assert first.get_clim() == wide.get_clim() == (-2, 2)
    assert first.get_extent() == [0.5, 4.5, 1.5, -0.5]
    assert figure.get_supxlabel() == "window step"
    assert figure.get_supylabel() == "channel"
    (bar,) = (axes for axes in figure.axes if axes.get_label() == "<colorbar>")
    assert bar.get_ylabel() == r"bias in units of $\theta$"


def test_the_front_is_drawn_with_standard_errors_that_end_at_all_agreed() -> None:
    best = Trial(timesteps=1, holdoff=0, method="mse", steps=5, agreement=99.5, error=2.0, refused=None)
    figure = figures.front_figure("tiny", [best, replace(best, timesteps=2, steps=6, agreement=97.0)])
    (bars,) = (c for c in figure.axes[0].containers if isinstance(c, ErrorbarContainer))
    assert [segment.tolist() for segment in bars[2][0].get_segments()] == [[[5, 97.5], [5, 100]], [[6, 95], [6, 99]]]


@pytest.mark.parametrize("timesteps", [1, 2, 4])
def test_steps_are_whole_numbers_however_few_there_are(timesteps: int) -> None:
    network = tiny()
    layers = tuple(replace(layer, bias=layer.bias[:timesteps]) for layer in network.layers)
    figure = figures.schedule_figure(replace(network, layers=layers, timesteps=timesteps))
    for axes in (axes for axes in figure.axes if axes.images):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert set(ticks) <= set(range(1, timesteps + 1))
        assert ticks


def test_long_names_keep_their_end_and_fit_above_their_panel() -> None:
    name = "backbone.features.denseblock1.denselayer1.conv2"
    (axes, _) = figures.rates_figure(rated(**{name: counted(5, (1, 1))})).axes
    shown = axes.get_title().splitlines()[0]
    assert shown[0] == "…"
    assert name.endswith(shown[1:])
    assert len(shown) == figures.LONGEST


def test_pictures_are_drawn_of_what_was_measured() -> None:
    drawn = figures.drawn(REPORT, tiny())
    assert list(drawn) == ["accuracy.png", "attribution.png", "rates.png", "bias_schedule.png"]
    drawn = figures.drawn(pages.full(), tiny())
    assert list(drawn) == list(PICTURES)
    text = render(REPORT, tuple(drawn))
    assert all(f"]({name})" in text for name in drawn)


def test_pictures_without_data_are_left_out() -> None:
    network = tiny()
    readout = Layer(
        "out", (2,), (Edge(INPUT, Dense(np.ones((2, 3), int))),), 0, np.zeros(2, int), np.zeros((4, 2), int), "readout"
    )
    bare = replace(BARE, layers=())
    assert figures.drawn(bare, Network(network.input, (readout,), 4)) == {}
    assert "Pictures" not in render(BARE)


def test_figures_are_drawn_without_pyplot() -> None:
    code = (
        "import sys, exporters.report.figures; print(*('matplotlib.' + m in sys.modules for m in ('figure', 'pyplot')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == "True False\n", done.stderr


def test_cores_and_cost_are_printed_and_what_is_not_known_is_no_zero() -> None:
    text = render(REPORT)
    table = rows(text)
    assert [
        "conv\\|1",
        "16x4x8",
        "2",
        "512",
        "59",
        "4",
        "128",
        "32",
        "735",
        "neurons, 12 %",
        "use fewer channels",
    ] in table
    assert ["fc", "10", "n/a", "10", "17000", "512", "10", "0", "17532", "synapses, 106 %", ""] in table
    assert "5 cores, 1 chip, 1037 neurons." in text
    assert ["sum", "979.8", "88000.2", "5000.0", "1200.0", "0.5"] in table
    assert ["time to the answer", "0.103 to 1.22 ms", "Loihi 2", "a notebook"] in table
    assert ["dynamic energy", "n/a", "Loihi 2", "nothing is published"] in table
    assert "It does not fit, 1037 neurons." in render(replace(REPORT, fit=replace(REPORT.fit, cores=None, chips=None)))
    without = render(replace(REPORT, fit=None, cost=None))
    assert "## On" not in without
    assert "## What an inference takes" not in without


def test_conversions_are_drawn_by_hold_off_and_only_where_they_were_measured() -> None:
    row = Compared(
        name="a",
        input="payload",
        timesteps=4,
        holdoff=0,
        steps=6,
        period=5,
        cores=3,
        accuracy=90.0,
        agreement=70.0,
        synaptic_events=1e6,
    )
    found = (
        row,
        replace(row, name="b", timesteps=2, steps=4, accuracy=80.0, agreement=60.0, synaptic_events=5e5),
        replace(row, name="c", holdoff=1, accuracy=95.0, agreement=75.0),
        replace(row, name="old", accuracy=None, agreement=None, synaptic_events=None),
    )
    events, steps = figures.compared_figure(found[:3]).axes
    assert [line.get_xydata().tolist() for line in steps.lines] == [[[4, 80], [6, 90]], [[6, 95]]]
    assert [line.get_xydata().tolist() for line in events.lines] == [[[5e5, 80], [1e6, 90]], [[1e6, 95]]]
    assert events.get_ylabel() == "accuracy (%)"
    events, steps = figures.compared_figure(found).axes
    assert [line.get_xydata().tolist() for line in steps.lines] == [[[4, 60], [6, 70]], [[6, 75]]]
    assert events.get_ylabel() == "agreement with the trained network (%)"
    numbers = replace(row, measure=MEASURES["regression"])
    assert figures.compared_figure((row, numbers)).axes[0].get_ylabel() == f"accuracy or {numbers.measure} (%)"
    mixed = figures.compared_figure((row, replace(row, input="spikes", steps=7))).axes[1].get_legend()
    assert [text.get_text() for text in mixed.get_texts()] == ["payload, K = 0", "spikes, K = 0"]
