"""What the host does: bring inputs into order and scale, and turn potentials into the model's outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.findings import Refused
from sim.network import INPUT, Dense, Edge, Input, Layer, Network, Output


def network(source: Input, output: Output | None = None) -> Network:
    edge = Edge(INPUT, Dense(np.ones((2, int(np.prod(source.shape))), int)))
    return Network(source, (Layer("out", (2,), (edge,), 0, [0, 0], np.zeros((4, 2), int), "readout"),), 4, 0, output)


def test_every_channel_has_its_own_scale_and_is_clipped_at_its_own_end() -> None:
    source = Input((2, 1, 2), bits=4, scale=np.array([2.0, 100.0]))
    assert source.encode([[[[1.2, 9.0]], [[0.011, -1.0]]]]).tolist() == [[[[2, 7]], [[1, -7]]]]
    features = Input((3,), scale=np.array([1.0, 10.0, 0.1]))
    assert features.encode([[3.0, 3.0, 30.0]]).tolist() == [[3, 30, 3]]


def test_inputs_are_given_in_the_models_order() -> None:
    # Channels last, as (H, W, C) = (1, 2, 3): neuron (c, h, w) gets value w * 3 + c.
    source = Input((3, 1, 2), order=np.arange(6).reshape(1, 2, 3).transpose(2, 0, 1), given=(1, 2, 3))
    assert source.model_shape == (1, 2, 3)
    assert source.encode([[[[1, 2, 3], [4, 5, 6]]]]).tolist() == [[[[1, 4]], [[2, 5]], [[3, 6]]]]


def test_potentials_become_the_models_outputs_at_every_step() -> None:
    output = Output(np.array([8.0, 2.0]), np.array([0.5, -1.0]))
    assert output.decode([[16, 3]]).tolist() == [[2.5, 0.5]]
    assert output.decode([[16, 3]], share=0.5).tolist() == [[4.5, 2.0]]
    assert Output(np.array(4.0), np.array(0.0)).decode(np.full((1, 2, 2, 2), 8)).tolist() == [[[[2.0] * 2] * 2] * 2]
    plain = network(Input((3,)))  # nobody has said what they stand for
    assert plain.decode([[16, 3]]).tolist() == [[16, 3]]
    assert plain.decode([[[4, 1], [8, 1], [12, 3], [16, 3]]]).tolist() == [[[16, 4], [16, 2], [16, 4], [16, 3]]]


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        (Input((2,), scale=0.0), None, "input: scale 0.0; give positive finite numbers of shape \\(\\) or \\(2,\\)"),
        (Input((2,), scale=float("nan")), None, "input: scale nan; give positive finite numbers"),
        (Input((2,), scale=np.ones(3)), None, "input: scale .* give positive finite numbers of shape"),
        (Input((2,), order=np.array([0, 4]), given=(2, 2)), None, "input: order of shape .* give positions 0..3"),
        (Input((2,), order=np.array([0]), given=(2, 2)), None, "input: order of shape .* give positions 0..3"),
        (Input((2,), order=np.array([0, 1])), None, "input: an order without the shape that is given"),
        (Input((2,)), Output(np.array([1.0, 0.0]), np.array(0.0)), "output: scale .* give positive finite numbers"),
        (Input((2,)), Output(np.array(1.0), np.zeros(3)), "output: offset .* give finite numbers of shape"),
    ],
)
def test_scales_and_orders_that_make_no_sense_are_refused(source: Input, output: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        network(source, output)
