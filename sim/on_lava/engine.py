"""Runs a network on Lava, in one of two forms.

``native``: stock synapses and :class:`sim.lava.integrate_fire.IntegrateFire`, which resets by subtraction, holds off
and clears itself. ``stock``: nothing but Lava's own processes, as :mod:`sim.stock` says.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from sim.arguments import checked
from sim.chip import LOIHI2, Chip
from sim.findings import Refused, refuse
from sim.fixedpoint import Policy
from sim.network import INPUT, Network
from sim.on_lava import graph, runtime
from sim.stock import Form, inexact, legal_period
from sim.trace import Trace


@checked
def run(
    network: Network,
    payload: np.ndarray,
    *,
    form: Form = "native",
    chip: Chip = LOIHI2,
    overflow: Policy = "strict",
    period: int | Literal["power of two"] | None = None,
) -> Trace:
    """Run integer payloads ``(B, *input.shape)`` back to back on Lava and record every layer.

    ``period`` is the distance between samples in steps; the smallest legal one is the default, and "power of two" the
    smallest that silicon's reset takes. Raises
    :class:`sim.fixedpoint.RegisterOverflow` when a potential leaves ``chip``'s registers, unless ``overflow`` is
    "count", or breaks the stock form's suppression, :class:`sim.findings.Refused` where Lava is missing or could not
    compute exactly, as the stock form cannot beyond its registers, and RuntimeError, with what Lava printed, where Lava
    itself fails.
    """
    if form not in ("native", "stock"):
        raise refuse("form", f"{form!r} is unknown", "use 'native' or 'stock'")
    payload = network.payload(payload)
    period = legal_period(network, form, period)
    findings = inexact(network, payload, form, chip, overflow)
    if findings:
        raise Refused(findings)
    with runtime.silenced():
        source = graph.stimulus(network, payload, period)
        ports = {INPUT: source.s_out}
        build = graph.native if form == "native" else graph.stock
        populations = [build(network, layer, ports, period, chip) for layer in network.layers]
    engine = "lava" if form == "native" else "lava-stock"
    return runtime.drive(engine, network, payload, source, populations, period, chip, overflow)
