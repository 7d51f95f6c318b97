"""Trained networks in NIR files: what they compute is imported, whatever tool has written them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from refusing import refusal
from torch import nn

from sim.findings import Refused
from toolchain.convert import convert
from toolchain.frontends import import_model, inspect_model
from toolchain.loading import load_model

RNG = np.random.default_rng(5)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32) / np.sqrt(max(1, np.prod(shape[1:])))


def fired(*shape: int, threshold: float = 1, reset: float = 0, r: float = 1) -> nir.IF:
    return nir.IF(*(np.full(shape, value, np.float32) for value in (r, threshold, reset)))


def written(path: Path, *nodes: Any) -> Path:
    """A chain of nodes, whose types NIR infers and checks."""
    nir.write(path, nir.NIRGraph.from_list(*nodes))
    return path


def conv(out: int, inside: int, side: int, size: Any, **geometry: Any) -> nir.Conv2d:
    pairs = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1} | geometry
    return nir.Conv2d(size, drawn(out, inside, side, side), bias=drawn(out), **pairs)


def in_torch(node: nir.Conv2d) -> nn.Conv2d:
    module = nn.Conv2d(node.weight.shape[1], len(node.weight), node.weight.shape[2:], node.stride, node.padding)
    module.weight.data, module.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return module


def linear(node: Any) -> nn.Linear:
    module = nn.Linear(node.weight.shape[1], len(node.weight))
    module.weight.data, module.bias.data = torch.from_numpy(node.weight), torch.from_numpy(node.bias)
    return module


@pytest.fixture
def network(tmp_path: Path) -> tuple[Path, nn.Module]:
    """Every node that a trained network has, and the same in torch."""
    first, second = conv(4, 2, 3, (8, 8), padding="same"), conv(6, 4, 3, (4, 4), stride=(2, 2), padding=1)
    head = nir.Affine(drawn(3, 24), drawn(3))
    pairs = (np.array([2, 2]),) * 2
    path = written(
        tmp_path / "model.nir",
        *(nir.Input(np.array([2, 8, 8])), first, fired(4, 8, 8), nir.SumPool2d(*pairs, np.array([0, 0]))),
        *(second, fired(6, 2, 2, threshold=0.5, reset=0.25, r=2), nir.Scale(np.full((6, 2, 2), 0.5, np.float32))),
        *(nir.Flatten({"input": np.array([6, 2, 2])}, 0, -1), head),
    )

    # A neuron of r = 2 climbs from 0.25 to 0.5 in 1 / (8 x) of time; halved, that is 4 relu(x).
    class Same(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = in_torch(first), in_torch(second), linear(head)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = 4 * nn.functional.avg_pool2d(self.first(x).relu(), 2)
            return self.head(4 * self.second(x).relu().flatten(1))

    return path, Same().eval()


def test_every_node_computes_what_torch_does(network: tuple[Path, nn.Module]) -> None:
    path, model = network
    x = torch.randn(5, 2, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(load_model(path)(x), model(x))


def test_the_float_graph_is_that_of_the_model(network: tuple[Path, nn.Module]) -> None:
    path, model = network
    graph = import_model(load_model(path), (2, 8, 8))
    assert [layer.kind for layer in graph.layers] == ["spiking", "spiking", "readout"]
    x = torch.randn(5, 2, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(graph.logits(x), model(x), rtol=1e-4, atol=1e-4)


def test_it_converts(network: tuple[Path, nn.Module]) -> None:
    path, model = network
    x = torch.randn(64, 2, 8, 8)
    conversion = convert(load_model(path), x, 16)
    with torch.no_grad():
        expected = model(x).argmax(1).numpy()
    assert (conversion.predict(x) == expected).mean() > 0.8


def test_integers_of_other_tools_are_weights_too(tmp_path: Path) -> None:
    layers = nir.Linear(np.array([[1, -2], [3, 4], [5, -6]], np.int8)), fired(3), nir.Linear(np.eye(3, dtype=np.int16))
    graph = import_model(load_model(written(tmp_path / "model.nir", *layers)), (2,))
    np.testing.assert_array_equal(graph.layers[0].edges[0].map.weight, layers[0].weight)


def test_a_residual_graph_in_a_graph_is_read(tmp_path: Path) -> None:
    """y = c(relu(a x) + relu(b relu(a x))), the branch a graph of its own."""
    a, b, c = drawn(4, 3), drawn(4, 4), drawn(2, 4)
    ends = {"in": nir.Input(np.array([4])), "out": nir.Output(np.array([4]))}
    inner = nir.NIRGraph({**ends, "b": nir.Linear(b), "relu": fired(4)}, [("in", "b"), ("b", "relu"), ("relu", "out")])
    nodes = {
        "input": nir.Input(np.array([3])),
        "a": nir.Linear(a),
        "relu": fired(4),
        "branch": inner,
        "c": nir.Linear(c),
        "output": nir.Output(np.array([2])),
    }
    edges = [("input", "a"), ("a", "relu"), ("relu", "branch"), ("branch", "c"), ("relu", "c"), ("c", "output")]
    nir.write(tmp_path / "model.nir", nir.NIRGraph(nodes, edges, type_check=False))
    x = torch.randn(5, 3)
    hidden = (x @ torch.from_numpy(a).T).relu()
    expected = (hidden + (hidden @ torch.from_numpy(b).T).relu()) @ torch.from_numpy(c).T
    graph = import_model(load_model(tmp_path / "model.nir"), (3,))
    torch.testing.assert_close(graph.logits(x), expected, rtol=1e-4, atol=1e-5)


def test_a_node_may_be_called_as_one_within_a_graph(tmp_path: Path) -> None:
    a, b = drawn(3, 3), drawn(2, 3)
    inner = nir.NIRGraph.from_list(nir.Input(np.array([3])), nir.Linear(a), nir.Output(np.array([3])))
    nodes = {
        "input": nir.Input(np.array([3])),
        "g": inner,
        "g.linear": nir.Linear(b),
        "output": nir.Output(np.array([2])),
    }
    graph = nir.NIRGraph(nodes, [("input", "g"), ("g", "g.linear"), ("g.linear", "output")], type_check=False)
    nir.write(tmp_path / "model.nir", graph)
    x = torch.randn(4, 3)
    expected = x @ torch.from_numpy(a).T @ torch.from_numpy(b).T
    torch.testing.assert_close(load_model(tmp_path / "model.nir")(x), expected)


def test_all_neurons_that_have_a_time_are_refused_at_once(tmp_path: Path) -> None:
    ones = np.ones(4, np.float32)
    path = written(tmp_path / "model.nir", nir.Linear(drawn(4, 4)), nir.LIF(*[ones] * 4), nir.CubaLIF(*[ones] * 5))
    rows = inspect_model(load_model(path), (4,))
    assert [row.fate for row in rows if row.fate.startswith("refused")] == [
        "refused: it has a time constant, or a memory of its own, and a trained network has none; give the network of "
        "rates, whose neurons are IF"
    ] * 2
    with pytest.raises(Refused) as caught:
        import_model(load_model(path), (4,))
    assert len(caught.value.findings) == 2


def test_a_loop_is_refused_by_the_name_of_a_node(tmp_path: Path) -> None:
    nodes = {"input": nir.Input(np.array([3])), "a": nir.Linear(drawn(3, 3)), "output": nir.Output(np.array([3]))}
    graph = nir.NIRGraph(nodes, [("input", "a"), ("a", "a"), ("a", "output")], type_check=False)
    nir.write(tmp_path / "model.nir", graph)
    assert refusal(load_model, tmp_path / "model.nir") == (
        f"{tmp_path / 'model.nir'}: a: it lies on a loop, or after one; give a feed-forward network"
    )


def test_weights_beside_it_are_refused(network: tuple[Path, nn.Module], tmp_path: Path) -> None:
    assert "holds its own weights; leave --weights out" in refusal(load_model, network[0], tmp_path / "w.pt")
