"""What was measured, as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from exporters.report.schema import MEASURES, PARTS, WANTED, Report, Sensitivity, Share, Trial
from sim.network import Layer, Network

if TYPE_CHECKING:
    from exporters.comparison import Compared

#: Okabe and Ito's colours, told apart by readers with any common colour vision deficiency.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#595959"
COLOURS = dict(zip(PARTS, ("#C8C8C8", BLUE, VERMILION, "#56B4E9", "#009E73", "#000000"), strict=True))
#: Panels in a row of small multiples; in inches, the side of one, what lies between two beside and below each other,
#: and around all: left, below, right with the colour bar, above.
COLUMNS, PANEL, BESIDE, BELOW, AROUND, BAR = 4, 1.95, 0.45, 0.68, (0.75, 0.62, 1.0, 0.5), 0.13
DPI = 150
LONGEST = 26  #: letters that fit above a panel


def drawn(report: Report, network: Network) -> dict[str, Figure]:
    """Draw what there is data for: figures by the file names of :data:`exporters.report.markdown.PICTURES`."""
    figures: dict[str, Figure] = {}
    if report.accuracy_by_step or report.accuracy_by_timesteps:
        figures["accuracy.png"] = accuracy_figure(report)
    if report.choice is not None and any(trial.refused is None for trial in report.choice.trials):
        figures["front.png"] = front_figure(report.model, report.choice.trials)
    if report.attribution is not None:
        figures["attribution.png"] = attribution_figure(report.model, report.attribution.layers)
    if report.sensitivity:
        figures["sensitivity.png"] = sensitivity_figure(report.model, report.sensitivity)
    if any(row.histogram for row in report.layers):
        figures["rates.png"] = rates_figure(report)
    if len(network.layers) > 1:
        figures["bias_schedule.png"] = schedule_figure(network)
    return figures


def accuracy_figure(report: Report) -> Figure:
    """Draw accuracy (R² of a regression) in per cent against T: read at each step, converted for each T, the ANN."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    ann = report.accuracy.get("ann")
    if ann is not None:
        axes.axhspan(ann.low, ann.high, color=GREY, alpha=0.12, linewidth=0)
        axes.axhline(ann.value, color=GREY, linestyle="--", label=f"trained network, {ann.value:.1f} %")
    ideal = report.accuracy.get("thresholds")
    if ideal is not None:
        label = f"activations in T = {report.timesteps} steps, {ideal.value:.1f} %"
        axes.axhline(ideal.value, color=GREY, linestyle=":", label=label)
    steps = report.accuracy_by_step
    if steps:
        x = [row.step for row in steps]
        axes.fill_between(
            x, [row.low for row in steps], [row.high for row in steps], color=BLUE, alpha=0.18, linewidth=0
        )
        axes.plot(
            x,
            [row.value for row in steps],
            color=BLUE,
            marker="o",
            markersize=4,
            label=f"read at step t of the T = {report.timesteps} network",
        )
    converted = sorted(report.accuracy_by_timesteps.items(), key=itemgetter(0))
    if converted:
        below, above = ([abs(row.value - getattr(row, end)) for _, row in converted] for end in ("low", "high"))
        axes.errorbar(
            [t for t, _ in converted],
            [row.value for _, row in converted],
            (below, above),
            color=VERMILION,
            linestyle="none",
            marker="D",
            markersize=6,
            capsize=3,
            label="converted for T",
        )
    measure = MEASURES[report.task]
    axes.set_title(
        f"{_plain(report.model)}: {measure} with 95 % intervals, n = {report.samples}", loc="left", fontsize=11
    )
    axes.set_xlabel("time steps")
    axes.set_ylabel(f"{measure} (%)")
    axes.xaxis.set_major_locator(whole_numbers())
    # R² has no lower end, and early steps may be far below 0.
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]) if report.task == "regression" else None, top=100.5)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def front_figure(model: str, trials: Sequence[Trial]) -> Figure:
    """Draw what was tried, agreement against what it costs; a line joins those that nothing cheaper is as good as."""
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    labels = ("steps to the logits", "period, steps", "spikes per sample")
    budgets = sorted({trial.neuron_budget for trial in trials})
    for axes, field, label in zip(panels, ("steps", "period", "spikes"), labels, strict=True):
        points = [t for t in trials if t.refused is None and getattr(t, field) is not None]
        for budget, colour in zip(budgets, cycle((BLUE, "#009E73", GREY)), strict=False):
            some = [trial for trial in points if trial.neuron_budget == budget]
            x, y = [getattr(trial, field) for trial in some], [trial.agreement for trial in some]
            below = [trial.error for trial in some]
            above = [min(trial.error, 100 - trial.agreement) for trial in some]
            axes.errorbar(x, y, (below, above), color=colour, linestyle="none", marker="o", alpha=0.8)
            axes.plot([], [], color=colour, linestyle="none", marker="o", label=f"{budget:g} x the neurons")
        front: list[Trial] = []
        for trial in sorted(points, key=lambda t: (getattr(t, field), -t.agreement)):
            if not front or trial.agreement > front[-1].agreement:
                front.append(trial)
        axes.plot([getattr(t, field) for t in front], [t.agreement for t in front], color=GREY, linewidth=1, zorder=0)
        for trial in front:
            axes.annotate(
                f"T={trial.timesteps}, K={trial.holdoff}",
                (getattr(trial, field), trial.agreement),
                (4, -12),
                textcoords="offset points",
                fontsize=7,
            )
        for trial in points:
            if trial.chosen:
                at = getattr(trial, field), trial.agreement
                axes.plot(*at, color=VERMILION, marker="D", markersize=10, fillstyle="none", linestyle="none")
        axes.plot([], [], color=VERMILION, marker="D", fillstyle="none", linestyle="none", label="chosen")
        axes.set_xlabel(label)
        axes.margins(x=0.12, y=0.1)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:2]:
        axes.xaxis.set_major_locator(whole_numbers())
    panels[0].set_ylim(top=100.5)
    panels[0].set_ylabel("agreement with the trained network (%)")
    panels[0].set_title(f"{_plain(model)}: what was tried on held-out inputs", loc="left", fontsize=11)
    panels[-1].legend(frameon=False, loc="lower right", fontsize=8)
    return figure


def compared_figure(rows: Sequence[Compared]) -> Figure:
    """Draw what conversions get right against synaptic events and against steps, or how often they agree.

    The latter if any had no labels. At least one of them must have been measured.
    """
    labelled = all(row.accuracy is not None for row in rows)

    def score(row: Compared) -> float | None:
        return row.accuracy if labelled else row.agreement

    figure = Figure(figsize=(9.2, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, field, what in zip(
        panels, ("synaptic_events", "steps"), ("synaptic events per sample", "steps to the answer"), strict=True
    ):
        points = [row for row in rows if score(row) is not None and getattr(row, field) is not None]
        kinds = sorted({(row.input, row.holdoff) for row in points})
        for (form, holdoff), colour in zip(kinds, cycle((BLUE, VERMILION, GREY)), strict=False):
            line = sorted(
                (getattr(row, field), score(row), row.timesteps)
                for row in points
                if (row.input, row.holdoff) == (form, holdoff)
            )
            label = f"K = {holdoff}" if len({row.input for row in rows}) == 1 else f"{form}, K = {holdoff}"
            axes.plot(*list(zip(*line, strict=True))[:2], color=colour, marker="o", label=label)
            for x, y, timesteps in line:
                axes.annotate(f"T = {timesteps}", (x, y), (4, -12), textcoords="offset points", fontsize=8)
        axes.set_xlabel(what)
        axes.margins(x=0.12, y=0.12)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    measured = " or ".join(dict.fromkeys(row.measure for row in rows))
    panels[0].set_ylabel(f"{measured if labelled else 'agreement with the trained network'} (%)")
    panels[1].xaxis.set_major_locator(whole_numbers())
    panels[1].legend(frameon=False)
    return figure


def attribution_figure(model: str, rows: Sequence[Share]) -> Figure:
    """Draw each layer's error as a bar of its parts, negative ones to the left of 0, and a mark at their sum."""
    figure = Figure(figsize=(7.6, 1.5 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    left, right = np.zeros(len(rows)), np.zeros(len(rows))
    for part, colour in COLOURS.items():
        width = np.array([row.of(part) for row in rows])
        axes.barh(places, width, 0.72, np.where(width < 0, left, right), color=colour, label=part)
        left += np.minimum(width, 0)
        right += np.maximum(width, 0)
    total = [row.error for row in rows]
    axes.plot(
        total, places, color="black", linestyle="none", marker="D", markersize=4, markerfacecolor="white", label="sum"
    )
    axes.use_sticky_edges = False  # else bars end at the frame, and the mark on the longest is cut in half
    axes.margins(x=0.03)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(places, [_short(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("error relative to the activations (root mean squares)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(f"{_plain(model)}: what each layer's error consists of", fontsize=11)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=len(PARTS) + 1,
        frameon=False,
        fontsize=9,
        handlelength=1,
        columnspacing=1.2,
    )
    return figure


def sensitivity_figure(model: str, rows: Sequence[Sensitivity]) -> Figure:
    """Draw agreement with the trained network, one layer in T steps and all but it, a line per layer."""
    figure = Figure(figsize=(7.6, 1.5 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    series = (("only", "this layer alone in T steps", BLUE, "o"), ("others", "all but this layer", VERMILION, "D"))
    for (kind, label, colour, marker), offset in zip(series, (-0.14, 0.14), strict=True):
        scores = [getattr(row, kind) for row in rows]
        values = np.array([score.value for score in scores])
        ends = np.abs([[score.low for score in scores], [score.high for score in scores]] - values)
        axes.errorbar(
            values, places + offset, xerr=ends, color=colour, linestyle="none", marker=marker, markersize=5, label=label
        )
    axes.set_yticks(places, [_short(row.name) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(right=100.5)
    axes.set_xlabel("agreement with the trained network (%)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(f"{_plain(model)}: what the steps of each layer cost", fontsize=11)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def rates_figure(report: Report) -> Figure:
    """Draw per spiking layer how often each pair of wanted and measured rate occurs, with the identity.

    The wanted one is ``clip(activation / theta, 0, 1)``, the measured one spikes per window step.
    """
    rows = [row for row in report.layers if row.histogram]
    figure, panels = _panels(len(rows))
    counts = [np.array(row.histogram) for row in rows]
    norm = LogNorm(1, max(2, *(count.max() for count in counts)))
    wanted_edges = np.linspace(0, 1, WANTED + 1)
    for axes, row, count in zip(panels, rows, counts, strict=True):
        # Bin edges half way between the rates k / n.
        rate_edges = (np.arange(len(count) + 1) - 0.5) / (len(count) - 1)
        image = axes.pcolormesh(wanted_edges, rate_edges, np.ma.masked_equal(count, 0), norm=norm, cmap="YlGnBu")
        axes.plot([0, 1], [0, 1], color=VERMILION, linewidth=1.2)
        _title(axes, row.name, "r undefined" if row.correlation is None else f"r = {row.correlation:.3f}")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    _labels(figure, image, r"clip(activation / $\theta$, 0, 1)", "spikes per step", "neurons x samples")
    return figure


def schedule_figure(network: Network) -> Figure:
    """Draw each spiking layer's bias schedule, channels by window steps, in units of its threshold.

    Where the biases differ over space, a channel's mean is drawn. The readout has no threshold and is left out.
    """
    layers = [layer for layer in network.layers if layer.kind == "spiking"]
    schedules = [_in_thresholds(layer) for layer in layers]
    figure, panels = _panels(len(layers))
    largest = max(float(np.abs(schedule).max()) for schedule in schedules) or 1.0
    for axes, layer, schedule in zip(panels, layers, schedules, strict=True):
        image = axes.imshow(
            schedule.T,
            cmap="RdBu_r",
            vmin=-largest,
            vmax=largest,
            aspect="auto",
            interpolation="nearest",
            extent=(0.5, len(schedule) + 0.5, schedule.shape[1] - 0.5, -0.5),
        )
        _title(axes, layer.name, rf"$\theta$ = {layer.threshold}")
        axes.xaxis.set_major_locator(whole_numbers(4))
        axes.yaxis.set_major_locator(whole_numbers(4))
    _labels(figure, image, "window step", "channel", r"bias in units of $\theta$")
    return figure


def _in_thresholds(layer: Layer) -> np.ndarray:
    """Bias per window step and channel in units of theta, float64 (T, C)."""
    return layer.bias.reshape(*layer.bias.shape[:2], -1).mean(axis=2) / layer.threshold


def whole_numbers(most: int = 10) -> MaxNLocator:
    """Put ticks at whole numbers only, even where that leaves a single one."""
    return MaxNLocator(most, integer=True, min_n_ticks=1)


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    """Lay out so many small multiples, up to ``COLUMNS`` in a row: by hand, which is far quicker than to find out."""
    columns = min(number, COLUMNS)
    rows = math.ceil(number / columns)
    left, below, right, above = AROUND
    width = left + columns * (PANEL + BESIDE) - BESIDE + right
    height = below + rows * (PANEL + BELOW) - BELOW + above
    figure = Figure(figsize=(width, height))
    figure.subplots_adjust(
        left / width, below / height, 1 - right / width, 1 - above / height, BESIDE / PANEL, BELOW / PANEL
    )
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(number)]


def _labels(figure: Figure, image: ScalarMappable, across: str, up: str, colours: str) -> None:
    """Say what all panels share: axes, and a colour bar of the same thickness however many rows there are."""
    (width, height), (_, below, right, above) = figure.get_size_inches(), AROUND
    figure.supxlabel(across, y=BAR / height)
    figure.supylabel(up, x=BAR / width)
    place = (1 - (right - BAR) / width, below / height, BAR / width, 1 - (below + above) / height)
    figure.colorbar(image, cax=figure.add_axes(place, label="<colorbar>"), label=colours)


def _title(axes: Axes, name: str, value: str) -> None:
    """Head a panel with the layer's name, of which the end tells most, and one value."""
    axes.set_title(f"{_short(name)}\n{value}", fontsize=10)


def _short(name: str) -> str:
    return _plain(name if len(name) <= LONGEST else "…" + name[1 - LONGEST :])


def _plain(name: str) -> str:
    """Keep a name from being read as TeX, and characters from it that no picture shows."""
    return "".join(letter if letter.isprintable() else "�" for letter in name).replace("$", r"\$")
