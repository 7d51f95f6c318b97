"""What simulating costs: the fast engine against the trained network's own pass and other ways, in one run.

The same samples go through all of them in turn, round after round; a ratio is that of one round, and its median is
shown. Beside the ANN (channels last) stand a loop over layers and steps in floats, as textbooks have it, and Lava's
CPU models on one sample; this processor's int8 convolutions at their best say what there is to reach. Then the engine
alone: as T, the number of samples and the network grow. Figures for ResNet-20::

    python -m benchmarks.simulation --data DIR --weights FILE.pt --timesteps 8 -o build/simulation
"""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from torch import Tensor
from torch.nn import functional

from benchmarks import workload
from benchmarks.calibration_time import fastest_batch, forward, seconds, spread
from benchmarks.workload import Calibration, Data, JsonFile, Weights
from exporters.engines import available_engines
from sim import fast, on_lava
from sim.fast import convolution
from sim.findings import refuse
from sim.network import INPUT, Conv2d, Dense, Edge, Geometry, Input, Layer, Network
from sim.operations import operations
from sim.progress import track
from toolchain.app.console import bars, guarded, out, say
from toolchain.convert import convert

STEPS = (1, 2, 4, 8, 16, 32, 64)
PLOT = "simulation.png"

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode="markdown")


def textbook(network: Network, payload: np.ndarray, batch: int = 64) -> None:
    """Run layers within steps in float32, each layer on what those below fire in the same step."""
    weights = [
        [torch.from_numpy(edge.synapse.weight.astype(np.float32)) for edge in layer.edges] for layer in network.layers
    ]
    biases = [torch.from_numpy(layer.per_neuron(layer.bias).astype(np.float32)) for layer in network.layers]
    for start in range(0, len(payload), batch):
        sent = {INPUT: torch.from_numpy(payload[start : start + batch]).float()}
        potentials: dict[str, Tensor] = {}
        for t in range(network.timesteps):
            for layer, weight, bias in zip(network.layers, weights, biases, strict=True):
                v = potentials.get(layer.name, torch.zeros(1)) + bias[t]
                for edge, w in zip(layer.edges, weight, strict=True):
                    source = sent[edge.source]
                    geometry = getattr(edge.synapse, "geometry", None)
                    current = (
                        functional.linear(source.flatten(1), w)
                        if geometry is None
                        else functional.conv2d(source, w, None, *geometry)
                    )
                    v = v + current.reshape(-1, *layer.shape) * 2.0**edge.exponent
                if layer.kind == "spiking":
                    sent[layer.name] = (v >= layer.threshold).float()
                    v = v - layer.threshold * sent[layer.name]
                potentials[layer.name] = v


def peak() -> float | None:
    """Int8 operations a second of one large convolution here, in 10**9, on one thread; None where there are none."""
    if convolution.lacking():
        return None
    shape = (256, 32, 32)
    layer = Layer(
        "out", shape, (Edge(INPUT, _conv(256, 256)),), 0, np.zeros(256, int), np.zeros((1, 256), int), "readout"
    )
    network = Network(Input(shape, signed=False), (layer,), 1)
    synapse = convolution.Convolution(network, layer, layer.edges[0], 1, torch.device("cpu"))
    frames = torch.ones((8, *shape), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        best = min(seconds(lambda: synapse(frames))[0] for _ in range(8))
    finally:
        torch.set_num_threads(threads)
    return 2 * 8 * 256 * 256 * 9 * 32 * 32 / best / 1e9


def _conv(inputs: int, outputs: int) -> Conv2d:
    weight = np.random.default_rng(0).integers(-20, 21, (outputs, inputs, 3, 3))
    return Conv2d(weight, Geometry(padding=(1, 1)))


def with_steps(network: Network, timesteps: int) -> Network:
    """Give a network another T: its schedule repeats, or ends early."""
    layers = tuple(
        replace(layer, bias=np.resize(layer.bias, (timesteps, *layer.bias.shape[1:]))) for layer in network.layers
    )
    return replace(network, layers=layers, timesteps=timesteps)


def wide(channels: int, timesteps: int) -> tuple[Network, int]:
    """Four convolutions of so many channels on 32 x 32, with random weights; also returns their MACs in a step."""
    bias = np.zeros((timesteps, channels), int)
    layers, source, macs = [], INPUT, 0
    for index, inputs in enumerate((3, channels, channels, channels)):
        name = f"conv{index}"
        layers.append(Layer(name, (channels, 32, 32), (Edge(source, _conv(inputs, channels)),), 300, bias[0], bias))
        source, macs = name, macs + 9 * inputs * channels * 32 * 32
    dense = Dense(np.random.default_rng(1).integers(-20, 21, (10, channels * 32 * 32)))
    last = Layer("out", (10,), (Edge(source, dense),), 0, [0] * 10, np.zeros((timesteps, 10), int), "readout")
    return Network(Input((3, 32, 32)), (*layers, last), timesteps, 1), macs


def compare(work: workload.Workload, network: Network, samples: int, repeats: int) -> dict[str, Any]:
    """Time every contender on the same samples, in turn."""
    x = work.test_x[:samples]
    payload = network.input.encode(x.numpy())
    model = work.model.eval().to(memory_format=torch.channels_last)
    images = x.contiguous(memory_format=torch.channels_last)
    batch = fastest_batch(model, images)
    contenders: dict[str, Callable[[], object]] = {
        "ANN, float32": lambda: forward(model, images, batch),
        "fast": lambda: fast.run(network, payload, overflow="count", record=False),
        "textbook loop": lambda: textbook(network, payload),
    }
    if torch.cuda.is_available():
        on_gpu = partial(fast.run, network, payload, overflow="count", record=False, device="cuda")
        contenders["fast on a GPU"] = on_gpu
        if not np.array_equal(on_gpu().logits, fast.run(network, payload, overflow="count", record=False).logits):
            raise RuntimeError("the GPU computes something else")
    for run in contenders.values():
        run()
    rounds = [{name: seconds(run) for name, run in contenders.items()} for _ in track("measuring", range(repeats))]
    rows = [
        {
            "name": name,
            "samples": samples,
            "ms": 1e3 * statistics.median(one[name][0] for one in rounds) / samples,
            "ratio": spread([one[name][0] / one["ANN, float32"][0] for one in rounds]),
            "cpu_ratio": spread([one[name][1] / one["ANN, float32"][1] for one in rounds]),
        }
        for name in contenders
    ]
    trace = fast.run(network, payload, overflow="count", record=False, count=True)
    counted = operations(network, trace.fired, payload).values()
    dense = sum(one.dense for one in counted)
    found: dict[str, Any] = {
        "network": work.name,
        "timesteps": network.timesteps,
        "holdoff": network.holdoff,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "numba": "sim.fast.compiled" in sys.modules,
        "paths": dict(Counter(path["path"] for path in fast.paths(network))),
        "rows": rows,
        "operations": {"dense": dense, "effective": sum(one.macs + one.acs for one in counted)},
        "peak": peak(),
    }
    if "lava" in available_engines():
        taken = seconds(lambda: on_lava.run(network, payload[:1]))[0]
        ratio = taken / statistics.median(one["ANN, float32"][0] for one in rounds) * samples
        rows.append({"name": "Lava CPU, by 1 sample", "samples": 1, "ms": 1e3 * taken, "ratio": spread([ratio])})
    return found


def growth(network: Network, payload: np.ndarray, repeats: int) -> dict[str, list[dict[str, float]]]:
    """Time the engine alone as one thing grows."""

    def quickest(of: Network, inputs: np.ndarray) -> float:
        fast.run(of, inputs[:8], overflow="count", record=False)
        return min(seconds(lambda: fast.run(of, inputs, overflow="count", record=False))[1] for _ in range(repeats))

    some = payload[: max(8, len(payload) // 8)]
    found: dict[str, list[dict[str, float]]] = {"timesteps": [], "samples": [], "channels": []}
    for steps in track("as T grows", STEPS):
        found["timesteps"].append({"n": steps, "ms": 1e3 * quickest(with_steps(network, steps), some) / len(some)})
    counts = sorted({len(payload) >> shift for shift in range(6)} - {0})
    for count in track("as the samples grow", counts):
        found["samples"].append({"n": count, "ms": 1e3 * quickest(network, payload[:count])})
    for channels in track("as the network grows", (8, 16, 32, 64, 128)):
        of, macs = wide(channels, network.timesteps)
        inputs = np.random.default_rng(0).integers(-127, 128, (8, 3, 32, 32))
        ms = 1e3 * quickest(of, inputs) / len(inputs)
        found["channels"].append({"n": channels, "ms": ms, "gops": 2e-6 * macs * network.timesteps / ms})
    return found


def table(found: dict[str, Any]) -> Table:
    """Lay out the contenders."""
    where = f"T = {found['timesteps']}, K = {found['holdoff']}, {found['threads']} threads, torch {found['torch']}"
    paths = ", ".join(f"{count} edges {path}" for path, count in found["paths"].items())
    scan = "neurons compiled by numba" if found["numba"] else "neurons in torch, step by step"
    result = Table(
        title=f"{found['network']}: {where}\n{paths}; {scan}",
        caption="ratio: to the ANN's pass in the same round, median; by CPU: in the cores' seconds",
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    result.add_column("way", no_wrap=True)
    for column in ("samples", "ms each", "ratio", "min..max", "by CPU"):
        result.add_column(column, justify="right", no_wrap=True)
    for row in found["rows"]:
        ratio, cpu = row["ratio"], row.get("cpu_ratio")
        result.add_row(
            row["name"],
            str(row["samples"]),
            f"{row['ms']:.3g}",
            f"{ratio['median']:.3g}",
            f"{ratio['min']:.3g}..{ratio['max']:.3g}",
            "" if cpu is None else f"{cpu['median']:.2f}",
        )
    return result


def figure(found: dict[str, Any]) -> Figure:
    """Draw how the engine's CPU time grows."""
    result = Figure(figsize=(9.6, 3.2), layout="constrained")
    titles = {"timesteps": "time steps T", "samples": "samples", "channels": "channels of four convolutions"}
    for axes, (key, rows) in zip(result.subplots(1, 3), found["growth"].items(), strict=True):
        n, ms = (np.array([row[name] for row in rows]) for name in ("n", "ms"))
        axes.loglog(n, ms, "o-", label="measured")
        power = 2 if key == "channels" else 1
        axes.loglog(n, ms[-1] * (n / n[-1]) ** power, ":", color="grey", label="quadratic" if power == 2 else "linear")
        axes.set_xticks(n, [str(value) for value in n])
        axes.minorticks_off()
        axes.set_xlabel(titles[key])
        axes.set_ylabel("CPU ms" if key == "samples" else "CPU ms a sample")
        axes.legend(frameon=False)
    result.suptitle(f"fast on {found['network']}", x=0.01, ha="left")
    return result


@app.command(help=__doc__)
@guarded
def main(
    data: Data = None,
    weights: Weights = None,
    calibration: Calibration = None,
    samples: Annotated[int, typer.Option(help="Test images.")] = 256,
    timesteps: Annotated[int, typer.Option(help="T, the length of every firing window.")] = 8,
    holdoff: Annotated[int, typer.Option(help="K, steps that a layer integrates before it may fire.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds.")] = 5,
    threads: Annotated[int | None, typer.Option(help="Threads of torch, for all; its own choice by default.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the plot goes.")] = Path("build/simulation"),
    json_file: JsonFile = None,
) -> None:
    """Measure, print one table, and draw."""
    if repeats < 1 or samples < 8 or (threads is not None and threads < 1):
        raise refuse("--repeats, --samples, --threads", f"{repeats}, {samples}, {threads}", "give at least 1, 8, 1")
    if threads is not None:
        torch.set_num_threads(threads)
    work = workload.load(data, weights, calibration, samples)
    with bars():
        network = convert(work.model, work.calibration_x, timesteps=timesteps, holdoff=holdoff).network
        found = compare(work, network, len(work.test_x), repeats)
        found["growth"] = growth(network, network.input.encode(work.test_x.numpy()), repeats)
    out.print(table(found))
    counted, best = found["operations"], found["peak"]
    say(f"synaptic operations a sample: {counted['dense']:.3g} dense, {counted['effective']:.3g} effective")
    if best is not None:
        reached = 2e-6 * counted["dense"] / found["rows"][1]["ms"] / found["threads"]
        say(f"int8 peak of a thread here: {best:.0f} GOP/s; the engine reaches {reached:.0f}, neurons included")
    output.mkdir(parents=True, exist_ok=True)
    figure(found).savefig(output / PLOT, dpi=120)
    say(f"plot: {output / PLOT}")
    if json_file is not None:
        workload.write_json(json_file, found)


if __name__ == "__main__":
    app()
