"""Reports, layers and verifications as tables on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from toolchain.app.console import out, say, table, text

LAYERS = {
    "name": "layer",
    "shape": "shape",
    "weights": "weights",
    "theta": "theta",
    "phase": "phase",
    "bias": "bias (su)",
    "neurons": "neurons",
}
SCORE = {"accuracy": "accuracy %", "low": "95 % low", "high": "high", "n": "samples"}
ENGINES = {
    "engine": "engine",
    "differences": "differences",
    "neuron_steps": "neuron-steps compared",
    "seconds": "seconds",
}
STEPS = {"step": "step", **SCORE}
TRIALS = {"T": "T", "K": "K", "method": "bias rule", "steps": "steps", "agreement": "agrees %", "refused": "refused"}


def layers(title: str, rows: list[dict[str, Any]]) -> Table:
    """Lay out a layer table so that it fits 80 columns."""
    shown = [
        {
            **row,
            "weights": " + ".join(text(edge["weight_shape"]) for edge in row["edges"]),
            "theta": row["theta"] or None,
            "bias": f"{row['bias_min']}..{row['bias_max']}",
        }
        for row in rows
    ]
    return table(title, shown, LAYERS)


def show_report(report: dict[str, Any]) -> None:
    """Print a report's layers, accuracies, and what they come from."""
    from exporters.report import RUNGS

    recipe = f"T = {report['timesteps']}, K = {report['holdoff']}, {report['method']}, {report['weights']} weights"
    out.print(layers(f"{report['model']}, {recipe}", report["layers"]))
    accuracy, agreement = report.get("accuracy", {}), report["agreement"]
    # The interval is that of the accuracy, where there are labels.
    rows = [
        {"what": label, **agreement.get(rung, {}), **accuracy.get(rung, {})}
        for rung, label in RUNGS.items()
        if rung in agreement or rung in accuracy
    ]
    columns = {"what": "network", **(SCORE if accuracy else {}), "agreement": "agrees %"}
    columns |= {key: heading for key, heading in SCORE.items() if not accuracy and key != "accuracy"}
    out.print(
        table(
            f"{'accuracy and ' if accuracy else ''}agreement with the trained network on {report['data']}",
            rows,
            columns,
        )
    )
    if "accuracy_by_timesteps" in report:
        rows = [{"T": t, **score} for t, score in report["accuracy_by_timesteps"].items()]
        out.print(table("converted for other T", rows, {"T": "T", **SCORE}))
    if "choice" in report:
        rows = [{"T": trial["timesteps"], "K": trial["holdoff"], **trial} for trial in report["choice"]["trials"]]
        out.print(table("tried on held-out calibration inputs", rows, TRIALS))
        say(report["choice"]["reason"])
    say(report["attribution"]["verdict"])
    for finding in report["findings"]:
        say(finding, "yellow")


def show_verification(verification: dict[str, Any], what: str) -> None:
    """Print what every engine did and the outcome in a sentence."""
    out.print(table(f"{what}: {verification['samples']} samples on every engine", verification["engines"], ENGINES))
    say(verification["summary"], "green" if verification["difference"] is None else "red")
