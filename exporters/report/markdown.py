"""What was measured, as Markdown. What was not is printed as such, never as 0."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exporters.report.schema import (
    MEASURES,
    PARTS,
    RUNGS,
    Activity,
    Attribution,
    Compared,
    Cost,
    Estimate,
    Evaluation,
    Fit,
    LayerRow,
    OutputError,
    Report,
    Score,
    Search,
    Sensitivity,
    TaskName,
    Trial,
    Verification,
    summed,
)

MISSING = "not measured"
AGREEMENT = "Agreement is how often a network decides like the trained one"
AGREEMENTS: dict[TaskName, str] = {"regression": "Agreement is R² against the outputs of the trained network"}
UNKNOWN = "n/a"
#: What a core holds, as the compiler's tables call it.
WORDS = {
    "neurons": "neurons",
    "synapses": "synapses",
    "axon_in": "AxonIn",
    "axon_map": "AxonMap",
    "axon_mem": "AxonMem",
    "total": "total",
}
WORST = 12  #: outputs whose errors are listed
#: What is said of a layer's activity, by field.
ACTIVITY = {
    "name": "layer",
    "neurons": "neurons",
    "spikes": "spikes",
    "rate": "rate in %",
    "dense": "dense operations",
    "effective_macs": "effective MACs",
    "effective_acs": "effective ACs",
    "peak": "largest u, v",
}
PICTURES = {
    "accuracy.png": "Accuracy against T",
    "front.png": "What was tried: agreement against latency, period and spikes",
    "attribution.png": "What each layer's error consists of",
    "sensitivity.png": "What the steps of each layer cost alone",
    "rates.png": "Firing rates against activations",
    "bias_schedule.png": "Bias schedule",
}


def render(report: Report, pictures: Sequence[str] = ()) -> str:
    """Write the report as Markdown; ``pictures`` are the file names, of ``PICTURES``, that lie beside it."""
    sections = [
        f"# {report.model} as a spiking network",
        f"T = {report.timesteps} steps per firing window, hold-off K = {report.holdoff}, bias rule `{report.method}`, "
        f"weights `{report.weights}`, {report.samples} samples" + (f" ({report.data})." if report.data else "."),
        *([] if report.import_error is None else [_imported(report.import_error)]),
        *([" ".join(report.input)] if report.input else []),
        *(["## How T and K were chosen", _choice(report.choice)] if report.choice else []),
        f"## {_headed(MEASURES[report.task])}",
        _accuracy(report),
        f"## Why the {MEASURES[report.task]} is what it is",
        _attribution(report.attribution),
        *([_sensitivity(report.sensitivity)] if report.sensitivity else []),
        "## Layers",
        _layers(report.layers),
        *(["## Activity", _activities(report.activity, report.samples)] if report.activity else []),
        "## Verification",
        _verification(report.verification),
    ]
    if report.fit is not None:
        sections += [f"## On {report.fit.chip}", _fit(report.fit)]
    if report.cost is not None:
        sections += ["## What an inference takes", _cost(report.cost)]
    if report.findings:
        sections += ["## Findings", "\n".join(f"- {finding}" for finding in report.findings)]
    if pictures:
        sections += ["## Pictures", *(f"![{PICTURES[name]}]({name})" for name in pictures)]
    return "\n\n".join(sections) + "\n"


def render_evaluation(found: Evaluation, title: str) -> str:
    """Write an evaluation as Markdown."""
    measure = MEASURES[found.task]
    header = (f"{measure} in %", "95 % interval", "n")
    sections = [
        f"# {title}",
        f"## {_headed(measure)}",
        _table(("step", *header), [(row.step, *_score(row)) for row in found.accuracy_by_step]),
        "## Activity",
        _activities(found.layers, found.samples),
        f"u and v have to stay below {found.state_limit} su.",
    ]
    if found.findings:
        sections += ["## Findings", "\n".join(f"- {finding}" for finding in found.findings)]
    return "\n\n".join(sections) + "\n"


def _activities(layers: Sequence[Activity], samples: int) -> str:
    """Write what layers do, and what they do together."""
    return (
        f"Per sample, the mean of {samples}. Operations are those of NeuroBench: dense ones of all synapses at all T "
        "steps; effective ones where neither the weight nor what arrives is 0, as multiplications (MACs) of the graded "
        "input and accumulations (ACs) of spikes.\n\n"
        + _table(tuple(ACTIVITY.values()), [_activity(row) for row in (*layers, summed(layers))])
    )


def _activity(row: Activity) -> tuple[Any, ...]:
    """Write what a layer does as cells, in the order of ``ACTIVITY``."""
    values = row.as_dict() | {
        name: f"{getattr(row, name):.1f}" for name in ("spikes", "effective_macs", "effective_acs")
    }
    values["rate"] = None if row.rate is None else f"{100 * row.rate:.2f}"
    return tuple("" if values[key] is None else values[key] for key in ACTIVITY)


def _imported(error: float) -> str:
    return f"The imported network equals the trained one: largest difference {error:.0e} of the largest logit."


def _choice(choice: Search) -> str:
    header: tuple[str, ...] = ("T", "K", "bias rule", "steps to the logits")
    header += ("agreement with the ANN, %, and standard error",)
    rows: list[tuple[Any, ...]] = [
        (
            trial.timesteps,
            trial.holdoff,
            trial.method,
            trial.steps,
            trial.refused or f"{trial.agreement:.1f} +- {trial.error:.1f}",
        )
        for trial in choice.trials
    ]
    if any(trial.neurons is not None for trial in choice.trials):
        header += ("period", "neurons", "spikes per sample", "")
        rows = [(*row, *_price(trial)) for row, trial in zip(rows, choice.trials, strict=True)]
    return f"{choice.reason}\n\n" + _table(header, rows)


def _price(trial: Trial) -> tuple[Any, ...]:
    spikes = MISSING if trial.spikes is None else f"{trial.spikes:.0f}"
    measured = (MISSING if value is None else value for value in (trial.period, trial.neurons))
    return *measured, spikes, "chosen" if trial.chosen else ""


def _accuracy(report: Report) -> str:
    header = (f"{MEASURES[report.task]} in %", "95 % interval", "n")
    ladder = []
    for rung, label in RUNGS.items():
        value, interval, n = _score(report.accuracy.get(rung))
        # The trained network agrees with itself.
        agrees = ("", "", "") if rung == "ann" else _score(report.agreement.get(rung))
        ladder.append((label, value, interval, *agrees[:2], n or agrees[2]))
    parts = [
        _table(("network", *header[:2], "agreement in %", *header[1:]), ladder),
        f"{AGREEMENTS.get(report.task, AGREEMENT)}; it needs no labels. In T steps are the float "
        "network's activations, cut off at θ and rounded to what T spikes can draw: what is left if spikes arrive "
        "evenly and integers cost nothing. Fitted weights and bias schedules can win some of it back.",
    ]
    if report.errors:
        parts.append(_errors(report.errors))
    if report.accuracy_by_step:
        parts += [
            f"Read after each step of the network converted for T = {report.timesteps}:",
            _table(("step", *header), [(row.step, *_score(row)) for row in report.accuracy_by_step]),
        ]
    if by_timesteps := report.accuracy_by_timesteps:
        rows = [(t, *_score(by_timesteps[t])) for t in sorted(by_timesteps)]
        parts += ["Converted anew for each T:", _table(("T", *header), rows)]
    if report.forms:
        parts += ["Converted anew for each way of getting inputs in:", _forms(report.forms)]
    return "\n\n".join(parts)


def _forms(forms: Sequence[Compared]) -> str:
    counts = ("spikes", "synaptic_events", "host")
    rows = [
        (
            row.input,
            *(MISSING if value is None else f"{value:.2f}" for value in (row.accuracy, row.agreement)),
            row.steps,
            *(MISSING if getattr(row, name) is None else f"{getattr(row, name):.0f}" for name in counts),
            row.cores,
        )
        for row in forms
    ]
    header = (
        f"{forms[0].measure} in %",
        "agreement in %",
        "steps",
        "spikes",
        "synaptic events",
        "values from the host",
    )
    return _table(("input", *header, "cores"), rows) + (
        "\n\nThe host sends graded payloads at each step; or writes the biases of the layers that read the input; or "
        "those of input neurons, whose spikes the other layers read. Counts are per sample."
    )


def _headed(text: str) -> str:
    return text[0].upper() + text[1:]


def _errors(errors: Sequence[OutputError]) -> str:
    rows = sorted(enumerate(errors), key=lambda entry: -(entry[1].relative or 0))[:WORST]
    cells = [
        (output, f"{row.mean:.4g}", f"{row.largest:.4g}", "" if row.relative is None else f"{100 * row.relative:.2f} %")
        for output, row in rows
    ]
    most = f" of the {WORST} outputs with the largest" if len(errors) > WORST else ""
    return (
        f"Differences from the trained network's outputs{most}, in the model's unit, and their root mean square "
        "relative to the standard deviation of the output:\n\n"
        + _table(("output", "mean magnitude", "largest", "relative"), cells)
    )


def _score(score: Score | None) -> tuple[str, str, str]:
    if score is None:
        return MISSING, "", ""
    return f"{score.value:.2f}", f"{score.low:.2f} to {score.high:.2f}", str(score.n)


def _attribution(attribution: Attribution | None) -> str:
    if attribution is None:
        return f"{MISSING.capitalize()}."
    rows = [
        (
            row.name,
            *(f"{round(share, 3) + 0:.3f}" for share in (row.error, *map(row.of, PARTS))),  # + 0: no -0.000
            *("" if share is None else f"{100 * share:.2f} %" for share in (row.saturated, row.residual_outside)),
            "" if row.dead_channels is None else row.dead_channels,
        )
        for row in attribution.layers
    ]
    header = ("layer", "error", *PARTS, "saturated", "residual outside", "dead channels")
    return "\n\n".join(
        [
            attribution.verdict,
            _table(header, rows),
            f"Measured on {attribution.samples} samples, on the spikes that every layer really got. The error is "
            "the root mean square of decoded spikes - activation relative to that of the activation, and the sum of "
            "the columns up to dead; what is negative takes error away. Inherited is what the trained layer would make "
            "of the spikes that arrive; weights what integer weights and the bias schedule change in that; clipping "
            "what lies above θ; staircase the rounding to whole spikes; timing the spikes that were fired too often or "
            "are missing because currents arrive unevenly; dead all of this but the inherited in channels that never "
            "fire although an activation exceeds θ / 2. Saturated neurons fire at every step while their activation is "
            "above θ. A residual is outside if a neuron ends below 0 having fired, or at θ or above having paused.",
        ]
    )


def _sensitivity(rows: Sequence[Sensitivity]) -> str:
    cells = [(row.name, *_score(row.only)[:2], *_score(row.others)[:2]) for row in rows]
    header = ("layer", "this layer alone", "95 % interval", "all but this layer", "95 % interval")
    return (
        "Agreement in % of float networks with the trained one, where the activations of one layer, or of all but one, "
        f"take the steps of T spikes, on {rows[0].only.n} samples:\n\n{_table(header, cells)}"
    )


def _layers(layers: Sequence[LayerRow]) -> str:
    rows = []
    for row in layers:
        missing = MISSING if row.theta else ""  # a readout has no rates to measure
        measured = (row.spikes_per_neuron, row.rate_error, row.correlation)
        rows.append(
            (
                row.name,
                "x".join(map(str, row.shape)),
                row.neurons if row.copies == 1 else f"{row.neurons} ({row.copies} copies)",
                row.weights,
                row.theta or "",
                row.phase,
                f"{row.bias_min} to {row.bias_max}",
                *(missing if value is None else f"{value:.3f}" for value in measured),
                MISSING if row.peak is None else row.peak,
                row.worst_case,
                register(row),
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


def register(row: LayerRow) -> str:
    """Say how far a layer's potentials stay from what the register holds."""
    if row.state_limit is None:
        return MISSING
    limit = f"limit {row.state_limit}"
    if row.worst_case < row.state_limit:
        return f"{limit}, proven"
    return f"{limit}, margin x{row.state_limit / row.peak:.1f}" if row.peak else f"{limit}, {MISSING}"


def _verification(verification: Verification | None) -> str:
    if verification is None:
        return f"{MISSING.capitalize()}."
    rows = [(row.engine, row.differences, row.neuron_steps, f"{row.seconds:.2f}") for row in verification.engines]
    difference = verification.difference
    outcome = "No difference." if difference is None else f"First difference: {difference}."
    parts = [
        f"{verification.samples} samples, {verification.spikes} spikes. "
        f"Every engine was compared with {rows[0][0]}, bit for bit. {outcome}",
        _table(("engine", "differences", "neuron-steps", "seconds"), rows),
    ]
    if verification.skipped:
        parts.append("\n".join(f"- not run: {finding}" for finding in verification.skipped))
    return "\n\n".join(parts)


def _fit(fit: Fit) -> str:
    rows = [
        (
            row.name,
            "x".join(map(str, row.tile)),
            UNKNOWN if row.cores is None else row.cores,
            *(getattr(row, name) for name in WORDS),
            f"{WORDS[row.bottleneck]}, {row.share:.0f} %",
            row.remedy or "",
        )
        for row in fit.layers
    ]
    header = ("layer", "tile", "cores", *WORDS.values(), "fullest", "for fewer cores")
    outcome = (
        "It does not fit" if fit.cores is None else f"{fit.cores} cores, {fit.chips} chip" + "s" * (fit.chips != 1)
    )
    return "\n\n".join(
        [
            f"{outcome}, {fit.neurons} neurons.",
            _table(header, rows),
            "By a model of cores fitted to what the compiler printed of public networks. A tile is what a core holds "
            "of the layer's shape; the numbers are words of 64 bit in the fullest core. The network is counted in its "
            "stock form, with a synapse for each neuron's reset; its input comes from the host.",
        ]
    )


def _cost(cost: Cost) -> str:
    kinds = ("spikes", "synaptic_events", "neuron_updates", "messages", "hops")
    counts = [
        (name, *(f"{getattr(row, kind):.1f}" for kind in kinds))
        for name, row in (*((row.name, row) for row in cost.layers), ("sum", cost))
    ]
    header = ("layer", "spikes", "synaptic events", "neuron updates", "messages", "hops")
    estimates = [(e.quantity, estimated(e), e.chip, e.source) for e in cost.estimates]
    return "\n\n".join(
        [
            f"The logits are there after {cost.steps} steps; samples may follow each other every {cost.period} steps.",
            _table(header, counts),
            f"Per sample, the mean of {cost.samples}. The host sends {cost.payloads:.1f} values. A "
            "synaptic event is a spike or payload that goes through one synapse, zeros included; a message is a spike "
            f"on its way to one core, and {cost.between_chips:.1f} of them leave a chip.",
            _table(("of one inference", "range", "by figures of", "source"), estimates),
        ]
    )


def estimated(estimate: Estimate) -> str:
    """Write a range with its unit, or that it is not available."""
    if estimate.low is None or estimate.high is None:
        return UNKNOWN
    low, high = (f"{value:.3g}" if value < 100 else f"{value:.0f}" for value in (estimate.low, estimate.high))
    return f"{low} to {high} {estimate.unit}"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lay out a Markdown table: the first column to the left, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
