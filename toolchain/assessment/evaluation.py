"""How good a network is on labelled data, on any engine, whatever single samples do to its registers."""

from __future__ import annotations

from typing import Any

from exporters import engines
from exporters.report import Evaluation, outside
from sim.arguments import checked
from sim.findings import refuse
from sim.fixedpoint import Policy
from sim.inputs import beyond
from sim.network import Network
from toolchain.assessment.payload import clipped
from toolchain.assessment.score import by_step
from toolchain.inputs import as_inputs
from toolchain.recipe import TaskChoice
from toolchain.task import resolve


@checked
def evaluate(
    network: Network,
    x: Any,
    y: Any,
    *,
    engine: str = "fast",
    task: TaskChoice = "auto",
    overflow: Policy | None = None,
) -> Evaluation:
    """Measure a network after every window step on model inputs ``x`` (B, *model_shape) and labels ``y`` (B, ...).

    For ``x`` see :func:`toolchain.inputs.as_inputs`. A sample in which a potential leaves the registers is counted, or
    ends in :class:`sim.fixedpoint.RegisterOverflow` where ``overflow`` is "strict", as it does by default on engines
    that cannot go on (:func:`exporters.engines.run`). Raises :class:`Refused` for labels that are not of the task, and
    a regression whose potentials stand for nothing known.
    """
    x = as_inputs(x, network.input.model_shape, "x")
    resolved, _ = resolve(task, network.readout.shape, y)
    resolved.labels(y, len(x))
    if resolved.name == "regression" and network.output is None:
        raise refuse("network", "does not say what its potentials stand for", "convert again")
    payload = network.input.encode(x)
    trace = engines.run(engine, network, payload, overflow=overflow, record=False)
    overflowed = len(trace.overflowed | beyond(network, payload))
    steps = by_step(network.decode(trace.logits), y, resolved)
    return Evaluation(
        engine=engine,
        task=resolved.name,
        samples=len(x),
        overflowed=overflowed,
        accuracy_by_step=steps,
        findings=(*((outside(overflowed, len(x)),) if overflowed else ()), *clipped(network.input, x)),
    )
