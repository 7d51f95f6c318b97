"""What was measured, for people: ``report.md`` and pictures beside it.

The report is a plain dict of JSON types. What it lacks was not measured and is printed as such, never as 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import binomtest

from sim.findings import refuse
from sim.network import Layer, Network

Report = Mapping[str, Any]
Rates = Mapping[str, tuple[np.ndarray, np.ndarray]]

MISSING = "not measured"
RUNGS = {
    "ann": "trained network, float",
    "folded": "batch normalisation folded, float",
    "thresholds": "activations in T steps, float",
    "wide": "spiking, wide integers",
    "int8": "spiking, 8-bit weights",
    "lava": "spiking, 8-bit weights, on Lava",
}
PICTURES = {
    "accuracy.png": "Accuracy against T",
    "attribution.png": "What each layer's error consists of",
    "rates.png": "Firing rates against activations",
    "bias_schedule.png": "Bias schedule",
}

#: Okabe and Ito's colours, told apart by readers with any common colour vision deficiency.
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#595959"
#: What a layer's error consists of (see :mod:`toolchain.attribution`), and its colour.
PARTS = {
    "inherited": "#C8C8C8",
    "weights": BLUE,
    "clipping": VERMILION,
    "staircase": "#56B4E9",
    "timing": "#009E73",
    "dead": "#000000",
}
COLUMNS, PANEL = 4, 2.6  #: panels in a row of small multiples, and the side of one in inches
DPI = 150
LONGEST = 26  #: letters that fit above a panel
FINEST = 64  #: bins of a rate axis at most; beyond it the single rates k / T cannot be seen anyway


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of ``correct`` out of ``n``, in per cent; :class:`Refused` for impossible counts."""
    if not 0 <= correct <= n or n < 1:  # scipy raises or returns NaN, depending on its version
        raise refuse("wilson", f"{correct} of {n} correct", "give 0 <= correct <= n and n of at least 1")
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def write(directory: Path, report: Report, *, rates: Rates, network: Network) -> list[Path]:
    """Write ``report.md`` and the pictures that there is data for into an existing directory; returns their paths."""
    figures: dict[str, Figure] = {}
    if "accuracy_by_step" in report or "accuracy_by_timesteps" in report:
        figures["accuracy.png"] = accuracy_figure(report)
    if "attribution" in report:
        figures["attribution.png"] = attribution_figure(report)
    if rates:
        figures["rates.png"] = rates_figure(rates)
    if len(network.layers) > 1:
        figures["bias_schedule.png"] = schedule_figure(network)
    directory = Path(directory)
    text = directory / "report.md"
    text.write_text(markdown(report, tuple(figures)), encoding="utf-8")
    for name, figure in figures.items():
        figure.savefig(directory / name, dpi=DPI)
    return [text, *(directory / name for name in figures)]


def markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """Write the report as Markdown; ``pictures`` are the file names, of ``PICTURES``, that lie beside it."""
    t, k = report["timesteps"], report["holdoff"]
    sections = [
        f"# {report['model']} as a spiking network",
        f"T = {t} steps per firing window, hold-off K = {k}, bias rule `{report['method']}`, "
        f"weights `{report['weights']}`, {report['samples']} samples"
        + (f" ({report['data']})." if "data" in report else "."),
        *(["## How T and K were chosen", _choice(report["choice"])] if "choice" in report else []),
        "## Accuracy",
        _accuracy(report),
        "## Why the accuracy is what it is",
        _attribution(report),
        "## Layers",
        _layers(report),
        "## Verification",
        _verification(report.get("verification")),
    ]
    if report["findings"]:
        sections += ["## Findings", "\n".join(f"- {finding}" for finding in report["findings"])]
    if pictures:
        sections += ["## Pictures", *(f"![{PICTURES[name]}]({name})" for name in pictures)]
    return "\n\n".join(sections) + "\n"


def _choice(choice: Report) -> str:
    rows = [
        (
            trial["timesteps"],
            trial["holdoff"],
            trial["method"],
            trial["steps"],
            trial["refused"] or f"{trial['agreement']:.1f} +- {trial['error']:.1f}",
        )
        for trial in choice["trials"]
    ]
    header = ("T", "K", "bias rule", "steps to the logits", "agreement with the ANN, %, and standard error")
    return f"{choice['reason']}\n\n" + _table(header, rows)


def _accuracy(report: Report) -> str:
    header = ("accuracy in %", "95 % interval", "n")
    accuracy, agreement = report.get("accuracy", {}), report.get("agreement", {})
    ladder = []
    for rung, label in RUNGS.items():
        value, interval, n = _score(accuracy.get(rung))
        # The trained network agrees with itself.
        agrees = ("", "", "") if rung == "ann" else _score(agreement.get(rung), "agreement")
        ladder.append((label, value, interval, *agrees[:2], n or agrees[2]))
    parts = [
        _table(("network", *header[:2], "agreement in %", *header[1:]), ladder),
        "Agreement is how often a network decides like the trained one; it needs no labels. In T steps are the float "
        "network's activations, cut off at θ and rounded to what T spikes can draw: what is left if spikes arrive "
        "evenly and integers cost nothing. Fitted weights and bias schedules can win some of it back.",
    ]
    if "accuracy_by_step" in report:
        parts += [
            f"Read after each step of the network converted for T = {report['timesteps']}:",
            _table(("step", *header), [(row["step"], *_score(row)) for row in report["accuracy_by_step"]]),
        ]
    if "accuracy_by_timesteps" in report:
        rows = sorted(report["accuracy_by_timesteps"].items(), key=lambda row: int(row[0]))
        parts += ["Converted anew for each T:", _table(("T", *header), [(t, *_score(row)) for t, row in rows])]
    return "\n\n".join(parts)


def _score(row: Report | None, what: str = "accuracy") -> tuple[str, str, str]:
    if row is None:
        return MISSING, "", ""
    return f"{row[what]:.2f}", f"{row['low']:.2f} to {row['high']:.2f}", str(row["n"])


def _attribution(report: Report) -> str:
    if "attribution" not in report:
        return f"{MISSING.capitalize()}."
    attribution = report["attribution"]
    rows = [
        (
            row["name"],
            *(f"{round(row[part], 3) + 0:.3f}" for part in ("error", *PARTS)),  # + 0: no -0.000
            *(f"{100 * row[key]:.2f} %" if key in row else "" for key in ("saturated", "residual_outside")),
            row.get("dead_channels", ""),
        )
        for row in attribution["layers"]
    ]
    header = ("layer", "error", *PARTS, "saturated", "residual outside", "dead channels")
    return "\n\n".join(
        [
            attribution["verdict"],
            _table(header, rows),
            f"Measured on {attribution['samples']} samples, on the spikes that every layer really got. The error is "
            "the root mean square of decoded spikes - activation relative to that of the activation, and the sum of "
            "the columns up to dead; what is negative takes error away. Inherited is what the trained layer would make "
            "of the spikes that arrive; weights what integer weights and the bias schedule change in that; clipping "
            "what lies above θ; staircase the rounding to whole spikes; timing the spikes that were fired too often or "
            "are missing because currents arrive unevenly; dead all of this but the inherited in channels that never "
            "fire although an activation exceeds θ / 2. Saturated neurons fire at every step while their activation is "
            "above θ. A residual is outside if a neuron ends below 0 having fired, or at θ or above having paused.",
        ]
    )


def _layers(report: Report) -> str:
    rows = []
    for row in report["layers"]:
        missing = MISSING if row["theta"] else ""  # a readout has no rates to measure
        measured = (
            f"{row[key]:.3f}" if key in row else missing for key in ("spikes_per_neuron", "rate_error", "correlation")
        )
        rows.append(
            (
                row["name"],
                "x".join(map(str, row["shape"])),
                row["neurons"],
                row["weights"],
                row["theta"] or "",
                row["phase"],
                f"{row['bias_min']} to {row['bias_max']}",
                *measured,
                row.get("peak", MISSING),
                row["worst_case"],
                _register(row),
            )
        )
    header = (
        "layer",
        "shape",
        "neurons",
        "weights",
        "θ",
        "phase",
        "bias",
        "spikes per neuron",
        "rate error",
        "correlation",
        "peak",
        "worst case",
        "register",
    )
    return "\n\n".join(
        [
            _table(header, rows),
            "θ, bias and potentials are in synaptic units: a weight w adds w of them per spike. The phase is the first "
            "step of the firing window. Spikes are counted per sample. Rate error is the mean of "
            "|spikes / T - clip(activation / θ, 0, 1)| over neurons and samples, correlation that between the two. "
            "Peak is the largest magnitude in a register on the calibration inputs, worst case a bound over all "
            "possible inputs: where it is below the register's limit, no input can overflow the layer.",
        ]
    )


def _register(row: Report) -> str:
    if "state_limit" not in row:
        return MISSING
    limit = f"limit {row['state_limit']}"
    if row["worst_case"] < row["state_limit"]:
        return f"{limit}, proven"
    return f"{limit}, margin x{row['state_limit'] / row['peak']:.1f}" if row.get("peak") else f"{limit}, {MISSING}"


def _verification(verification: Report | None) -> str:
    if verification is None:
        return f"{MISSING.capitalize()}."
    rows = [
        (run["engine"], run["differences"], run["neuron_steps"], f"{run['seconds']:.2f}")
        for run in verification["engines"]
    ]
    difference = verification["difference"]
    outcome = "No difference." if difference is None else f"First difference: {difference}."
    parts = [
        f"{verification['samples']} samples, {verification['spikes']} spikes. "
        f"Every engine was compared with {rows[0][0]}, bit for bit. {outcome}",
        _table(("engine", "differences", "neuron-steps", "seconds"), rows),
    ]
    if verification.get("skipped"):
        parts.append("\n".join(f"- not run: {finding}" for finding in verification["skipped"]))
    return "\n\n".join(parts)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a Markdown table: the first column to the left, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def accuracy_figure(report: Report) -> Figure:
    """Draw accuracy in per cent against T, with 95 % intervals: read at each step, converted for each T, the ANN."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    ann = report.get("accuracy", {}).get("ann")
    if ann is not None:
        axes.axhspan(ann["low"], ann["high"], color=GREY, alpha=0.12, linewidth=0)
        axes.axhline(ann["accuracy"], color=GREY, linestyle="--", label=f"trained network, {ann['accuracy']:.1f} %")
    ideal = report.get("accuracy", {}).get("thresholds")
    if ideal is not None:
        label = f"activations in T = {report['timesteps']} steps, {ideal['accuracy']:.1f} %"
        axes.axhline(ideal["accuracy"], color=GREY, linestyle=":", label=label)
    steps = report.get("accuracy_by_step", [])
    if steps:
        x = [row["step"] for row in steps]
        axes.fill_between(
            x, [row["low"] for row in steps], [row["high"] for row in steps], color=BLUE, alpha=0.18, linewidth=0
        )
        axes.plot(
            x,
            [row["accuracy"] for row in steps],
            color=BLUE,
            marker="o",
            markersize=4,
            label=f"read at step t of the T = {report['timesteps']} network",
        )
    converted = sorted((int(t), row) for t, row in report.get("accuracy_by_timesteps", {}).items())
    if converted:
        y = [row["accuracy"] for _, row in converted]
        below, above = ([abs(row["accuracy"] - row[end]) for _, row in converted] for end in ("low", "high"))
        axes.errorbar(
            [t for t, _ in converted],
            y,
            (below, above),
            color=VERMILION,
            linestyle="none",
            marker="D",
            markersize=6,
            capsize=3,
            label="converted for T",
        )
    axes.set_title(f"{report['model']}: accuracy with 95 % intervals, n = {report['samples']}", loc="left", fontsize=11)
    axes.set_xlabel("time steps")
    axes.set_ylabel("accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(top=100.5)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


def attribution_figure(report: Report) -> Figure:
    """Draw each layer's error as a bar of its parts, negative ones to the left of 0, and a mark at their sum."""
    rows = report["attribution"]["layers"]
    figure = Figure(figsize=(7.6, 1.5 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    left, right = np.zeros(len(rows)), np.zeros(len(rows))
    for part, colour in PARTS.items():
        width = np.array([row[part] for row in rows])
        axes.barh(places, width, 0.72, np.where(width < 0, left, right), color=colour, label=part)
        left += np.minimum(width, 0)
        right += np.maximum(width, 0)
    total = [row["error"] for row in rows]
    axes.plot(
        total, places, color="black", linestyle="none", marker="D", markersize=4, markerfacecolor="white", label="sum"
    )
    axes.use_sticky_edges = False  # else bars end at the frame, and the mark on the longest is cut in half
    axes.margins(x=0.03)
    axes.axvline(0, color=GREY, linewidth=0.8)
    axes.set_yticks(places, [_short(row["name"]) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("error relative to the activations (root mean squares)")
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.suptitle(f"{report['model']}: what each layer's error consists of", fontsize=11)
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


def rates_figure(rates: Rates) -> Figure:
    """Draw per layer how often each pair of wanted and measured rate occurs, with the identity and the correlation.

    ``rates`` holds, by layer, ``clip(activation / theta, 0, 1)`` and the spikes per window step, both (n,) in 0..1.
    """
    figure, panels = _panels(len(rates))
    wanted_edges, rate_edges = np.linspace(0, 1, 41), _rate_edges(rates)
    counts = {name: np.histogramdd(pair, (wanted_edges, rate_edges))[0] for name, pair in rates.items()}
    norm = LogNorm(1, max(2, *(count.max() for count in counts.values())))
    for axes, (name, count) in zip(panels, counts.items(), strict=True):
        image = axes.pcolormesh(wanted_edges, rate_edges, np.ma.masked_equal(count.T, 0), norm=norm, cmap="YlGnBu")
        axes.plot([0, 1], [0, 1], color=VERMILION, linewidth=1.2)
        wanted, rate = rates[name]
        known = wanted.std() > 0 and rate.std() > 0
        _title(axes, name, f"r = {np.corrcoef(wanted, rate)[0, 1]:.3f}" if known else "r undefined")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    figure.supxlabel(r"clip(activation / $\theta$, 0, 1)")
    figure.supylabel("spikes per step")
    _bar(figure, image, panels, "neurons x samples")
    return figure


def _rate_edges(rates: Rates) -> np.ndarray:
    """Bin edges half way between the rates k / T, T being the smallest that explains every rate that occurs."""
    levels = np.unique(np.concatenate([rate for _, rate in rates.values()]))
    misses = ((np.abs(levels * t - np.rint(levels * t)).max(), t) for t in range(1, FINEST))
    timesteps = next((t for miss, t in misses if miss < 1e-3), FINEST)
    return (np.arange(timesteps + 2) - 0.5) / timesteps


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
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    figure.supxlabel("window step")
    figure.supylabel("channel")
    _bar(figure, image, panels, r"bias in units of $\theta$")
    return figure


def _in_thresholds(layer: Layer) -> np.ndarray:
    """Bias per window step and channel in units of theta, float64 (T, C)."""
    return layer.bias.reshape(*layer.bias.shape[:2], -1).mean(axis=2) / layer.threshold


def _panels(number: int) -> tuple[Figure, list[Axes]]:
    """Lay out so many small multiples, up to ``COLUMNS`` in a row."""
    columns = min(number, COLUMNS)
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(PANEL * columns + 1.2, (PANEL + 0.1) * rows + 0.5), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, index + 1) for index in range(number)]


def _bar(figure: Figure, image: ScalarMappable, panels: list[Axes], label: str) -> None:
    """Add the one colour bar that all panels share, of the same thickness however many rows there are."""
    rows = math.ceil(len(panels) / COLUMNS)
    figure.colorbar(image, ax=panels, label=label, aspect=20 * rows, fraction=0.04, pad=0.01)


def _title(axes: Axes, name: str, value: str) -> None:
    """Head a panel with the layer's name, of which the end tells most, and one value."""
    axes.set_title(f"{_short(name)}\n{value}", fontsize=10)


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]
