"""Pages to look at: a report with everything in it, and one whose names come from a hostile file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from reports import REPORT, agreement

from exporters.report import Activity, Report, Search, Sensitivity, Trial
from sim.network import INPUT, Dense, Edge, Input, Layer, Network

CONFIG = {"timesteps": 4, "method": "exact"}
PROVENANCE = {"created": "2026-01-01T00:00:00+00:00", "packages": {"numpy": "1.26", "torch": "2.3"}, "seed": None}
HOSTILE = (
    "<script>document.title='taken'</script>",
    '"><img src=x onerror="document.title=\'taken\'">',
    "</pre></details></svg><script>document.title='taken'</script>$\\frac$ {{ 7 * 7 }} ]]>",
)


def full(report: Report = REPORT) -> Report:
    trials = [
        Trial(timesteps=t, holdoff=0, method="mse", steps=t + 4, agreement=90.0 + t, error=0.5, refused=None)
        for t in (1, 2, 4)
    ]
    refused = replace(trials[0], agreement=0.0, error=0.0, refused="fc: too large")
    priced = replace(trials[2], neurons=70, period=2, spikes=12.4, chosen=True)
    rows = tuple(
        Sensitivity(name=row.name, only=agreement(99.0), others=agreement(97.5))
        for row in report.layers
        if row.kind == "spiking"
    )
    activity = tuple(
        Activity(
            name=row.name, neurons=row.neurons, spikes=12.5, rate=0.125 if row.theta else None, dense=4321,
            effective_macs=7.0, effective_acs=98.25, peak=None,
        )
        for row in report.layers
    )  # fmt: skip
    choice = Search(reason="It agrees best.", trials=(*trials[:2], priced, refused))
    return replace(report, choice=choice, sensitivity=rows, activity=activity)


def renamed(report: Report) -> Report:
    """Call the layers, the model, the data and findings what somebody's file may call them."""
    names = dict(zip((row.name for row in report.layers), HOSTILE, strict=True))

    def name(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: name(entry) for key, entry in value.items()}
        if isinstance(value, list):
            return [name(entry) for entry in value]
        return names.get(value, value) if isinstance(value, str) else value

    changed = name(report.as_dict()) | {"model": HOSTILE[0], "data": HOSTILE[1], "findings": list(HOSTILE)}
    return Report.from_dict(changed, "report.json")


def network(report: Report = REPORT) -> Network:
    """A network whose layers have the report's names and a bias that differs by channel and step."""
    layers: list[Layer] = []
    for row in report.layers:
        source, size = (layers[-1].name, layers[-1].size) if layers else (INPUT, 2)
        edge = Edge(source, Dense(np.ones((3, size), int)))
        bias = np.arange(report.timesteps * 3).reshape(report.timesteps, 3) - 4
        kind: Any = row.kind
        layers.append(Layer(row.name, (3,), (edge,), row.theta, np.zeros(3, int), bias, kind))
    return Network(Input((2,)), tuple(layers), report.timesteps)
