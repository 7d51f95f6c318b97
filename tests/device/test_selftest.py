"""The jobs of the self-test: their known answers by hand or by the reference, and all of them on Lava's CPU models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exporters.device import selftest
from sim import reference

CHECKS = {check.name: check for check in selftest.checks()}
GOLDEN = selftest.golden()


@pytest.mark.parametrize("name", CHECKS)
def test_the_known_answers_are_those_of_the_semantics(name: str) -> None:
    trace = reference.run(CHECKS[name].network, CHECKS[name].payload)
    for kind, found in (("spikes", trace.spikes), ("potentials", trace.potentials)):
        assert {layer: values.tolist() for layer, values in found.items()} == GOLDEN[name][kind]


def test_the_integrator_by_hand() -> None:
    # 3 * 1 - 2 * 2 = -1 and -5 * 1 + 7 * 2 = 9 a step, from 5 on; the other sample gives 18 and -41.
    steps = np.arange(1, 21)[:, None]
    assert GOLDEN["integrator"]["potentials"]["out"] == [
        (5 + steps * [-1, 9]).tolist(),
        (5 + steps * [18, -41]).tolist(),
    ]


def test_every_job_tells_right_from_wrong() -> None:
    for name, check in CHECKS.items():
        for layer in check.network.layers:
            fired = np.array(GOLDEN[name]["spikes"][layer.name])
            assert layer.kind == "readout" or 0.2 < fired.mean() < 0.9
    assert GOLDEN["bias-written"] == GOLDEN["bias-clock"] != GOLDEN["reset"]


def test_a_board_that_answers_otherwise_is_told_by_the_job_and_the_place(
    board: Callable[[str], None], tmp_path: Path
) -> None:
    board("flips one weight")
    found = selftest.settle(CHECKS["reset"], "loihi2", tmp_path / "run.h5", GOLDEN["reset"])
    assert found.difference is not None
    assert (found.engines, found.difference.layer, found.difference.neuron) == (("golden", "loihi2"), "hidden", (1,))
    board("none")
    assert selftest.settle(CHECKS["reset"], "loihi2", tmp_path / "other.h5", None).difference is None


@pytest.mark.lava
@pytest.mark.parametrize("name", CHECKS)
def test_lavas_cpu_models_give_the_known_answers(name: str, tmp_path: Path) -> None:
    found = selftest.settle(CHECKS[name], "lava-cpu", tmp_path / "run.h5", GOLDEN[name])
    assert found.difference is None, found.summary
