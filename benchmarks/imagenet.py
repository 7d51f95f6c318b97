"""Networks of ImageNet's size: what converting and simulating them take, in seconds and in memory.

torchvision's networks with their max pooling replaced and batch normalisation set on the images, which are smooth noise
of 224 x 224 pixels: sizes count here, not what was learnt. Conversion and simulation have a process each, so that each
peak memory is its own, and the simulation stands beside the trained network's own pass in the same process::

    python -m benchmarks.imagenet --networks resnet34,vgg16_bn --calibration 64 --samples 64 --timesteps 4
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.calibration_time import fastest_batch, forward, peak, seconds
from benchmarks.workload import JsonFile, alone, integers, names, write_json
from exporters import bundle
from sim import fast
from sim.findings import refuse
from sim.progress import track
from toolchain.app.console import bars, guarded, out
from toolchain.convert import convert
from toolchain.recipe import Recipe
from toolchain.surgery import replace_max_pooling

NETWORKS = ("resnet18", "resnet34", "resnet50", "vgg11_bn", "vgg16_bn", "mobilenet_v2")

app = typer.Typer(add_completion=False, help=__doc__, rich_markup_mode="markdown")


def images(count: int, size: int, seed: int) -> Tensor:
    """Smooth noise of several scales, float32 (count, 3, size, size), reaching as far as normalised photographs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(count, 3, size, size)
    for scale in (8, 32, size):
        noise = torch.randn(count, 3, scale, scale, generator=generator)
        x += functional.interpolate(noise, size, mode="bilinear", align_corners=False)
    return ((x - x.mean()) / x.std()).clamp(-2.1, 2.6)


def network(name: str, size: int) -> nn.Module:
    """Build one of torchvision's networks as a chip can run it, in eval mode."""
    from torchvision import models

    torch.manual_seed(0)
    model: nn.Module = models.get_model(name, weights=None)
    model = replace_max_pooling(model)
    model.train()
    with torch.no_grad():
        model(images(16, size, 2))
    return model.eval()


def conversion(name: str, recipe: Recipe, calibration: int, size: int, folder: Path) -> dict[str, Any]:
    """Convert and save; the time is that of ``convert`` alone."""
    model, x = network(name, size), images(calibration, size, 0)
    made = []
    wall, cores = seconds(lambda: made.append(convert(model, x, recipe=recipe)))
    made[0].save(folder)
    neurons = sum(layer.size for layer in made[0].network.layers)
    return {"seconds": wall, "cpu_seconds": cores, "peak": peak(), "neurons": neurons}


def simulation(name: str, samples: int, size: int, folder: Path) -> dict[str, Any]:
    """Run the saved network beside the trained one on other images."""
    model, x = network(name, size).to(memory_format=torch.channels_last), images(samples, size, 1)
    converted = bundle.read_network(folder / "network.net")
    payload = converted.input.encode(x.numpy())
    batch = fastest_batch(model, x[:16])
    fast.run(converted, payload[:1], record=False, overflow="count")
    traces = []
    ann, _ = seconds(lambda: forward(model, x, batch))
    snn, _ = seconds(lambda: traces.append(fast.run(converted, payload, record=False, overflow="count")))
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in x.split(batch)]).numpy()
    found = converted.decode(traces[0].logits[:, -1])
    return {
        "seconds": snn,
        "ann_seconds": ann,
        "ratio": snn / ann,
        "peak": peak(),
        "agree": float((found.argmax(1) == logits.argmax(1)).mean()),
        "correlation": float(np.corrcoef(found.flatten(), logits.flatten())[0, 1]),
    }


def _alone(work: str, common: dict[str, Any], **options: Any) -> dict[str, Any]:
    return alone("imagenet", "--only", json.dumps([work, common | options]))


def table(rows: list[dict[str, Any]]) -> Table:
    """Lay out the rows."""
    first = rows[0]
    result = Table(
        title=f"{first['size']} x {first['size']} pixels, T = {first['timesteps']}, {first['calibration']} images to "
        f"calibrate on, {first['samples']} simulated, {first['threads']} threads",
        title_justify="left",
        caption="by ANN: simulating, in passes of the trained network over the same images",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for column in ("network", "neurons", "convert", "simulate", "by ANN", "agree"):
        result.add_column(column, justify="left" if column == "network" else "right", no_wrap=True)
    for row in rows:
        made, ran = row["convert"], row["simulate"]
        taken = [f"{one['seconds']:.0f} s\n{one['peak'] / 2**20:,.0f} MiB" for one in (made, ran)]
        result.add_row(row["network"], f"{made['neurons']:,}", *taken, f"{ran['ratio']:.1f}", f"{ran['agree']:.0%}")
    return result


@app.command(help=__doc__)
@guarded
def main(
    networks: Annotated[str, typer.Option(help=f"Of {', '.join(NETWORKS)}.")] = "resnet34",
    timesteps: Annotated[str, typer.Option(help="T, the length of every firing window; several one by one.")] = "4",
    calibration: Annotated[int, typer.Option(help="Images to calibrate on.")] = 64,
    samples: Annotated[int, typer.Option(help="Images to simulate.")] = 64,
    size: Annotated[int, typer.Option(help="Pixels of a side.")] = 224,
    json_file: JsonFile = None,
    only: Annotated[str | None, typer.Option(hidden=True)] = None,
) -> None:
    """Measure networks one after the other."""
    if only is not None:
        work, options = json.loads(only)
        options["folder"] = Path(options["folder"])
        if work == "convert":
            options["recipe"] = Recipe(timesteps=options.pop("timesteps"))
        print(json.dumps({"convert": conversion, "simulate": simulation}[work](**options)))
        return
    if min(calibration, samples, size) < 1:
        raise refuse("--calibration, --samples, --size", f"{calibration}, {samples}, {size}", "give at least 1")
    wanted = [(name, steps) for name in names(networks) for steps in integers("--timesteps", timesteps)]
    for name in names(networks):
        if name not in NETWORKS:
            raise refuse("--networks", f"unknown network {name!r}", f"use one of {', '.join(NETWORKS)}")
    rows = []
    with bars():
        for name, steps in track("measuring", wanted):
            row: dict[str, Any] = {"network": name, "timesteps": steps, "calibration": calibration, "samples": samples}
            row |= {"size": size, "threads": torch.get_num_threads()}
            with tempfile.TemporaryDirectory() as folder:
                common = {"name": name, "size": size, "folder": f"{folder}/bundle"}
                row["convert"] = _alone("convert", common, calibration=calibration, timesteps=steps)
                row["simulate"] = _alone("simulate", common, samples=samples)
            rows.append(row)
            if json_file is not None:
                write_json(json_file, rows)
    out.print(table(rows))


if __name__ == "__main__":
    app()
