"""What NIR's portable form loses where it is executed by a tool that resets to zero: Norse, on the same test images.

python -m benchmarks.portable --timesteps 2,4,8
"""

from __future__ import annotations

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import torch
import typer

from benchmarks import workload
from benchmarks.workload import Calibration, Data, JsonFile, Weights, integers
from exporters import nir
from sim import fast
from sim.findings import refuse
from sim.network import Network
from sim.progress import track
from toolchain.app.console import bars, guarded, out, say, table
from toolchain.convert import convert

app = typer.Typer(add_completion=False)
COLUMNS = {"T": "T", "exact": "right here %", "portable": "by norse %", "spikes": "spikes here", "theirs": "by norse"}


@app.command(help=__doc__)
@guarded
def main(
    data: Data = None,
    weights: Weights = None,
    timesteps: Annotated[str, typer.Option(help="T, separated by commas.")] = "2,4,8",
    samples: Annotated[int | None, typer.Option(metavar="N", help="Test images; all by default.")] = None,
    calibration: Calibration = None,
    json_file: JsonFile = None,
) -> None:
    """Convert, execute on the test images, and print the table."""
    steps = integers("--timesteps", timesteps)
    work = workload.load(data, weights, calibration, samples)
    labels, rows = work.test_y.numpy(), []
    with bars():
        for length in steps:
            network = convert(work.model, work.calibration_x, length).network
            payload = network.input.encode(work.test_x.numpy())
            trace = fast.run(network, payload)
            outputs, spikes = by_norse(network, payload)
            right = [100 * float((np.argmax(found, 1) == labels).mean()) for found in (trace.logits[:, -1], outputs)]
            counts = sum(int(fired.sum(dtype=np.int64)) for fired in trace.spikes.values()), sum(spikes.values())
            rows.append(dict(zip(COLUMNS, (length, *right, *counts), strict=True)))
    if json_file is not None:
        workload.write_json(json_file, {"model": work.name, "samples": len(labels), "rows": rows})
    out.print(table(f"{work.name}: the portable form of NIR", rows, COLUMNS))
    say(f"{len(labels)} test images; norse sums the output of T steps up, without hold-off and schedule")


@torch.no_grad()
def by_norse(network: Network, payload: np.ndarray) -> tuple[np.ndarray, dict[str, int]]:
    """Execute the portable form on payloads (B, *input.shape): outputs (B, *readout.shape), and spikes by node.

    Raises :class:`Refused` where Norse is missing.
    """
    try:
        import nir as package
        import norse.torch as norse
    except ImportError as error:
        raise refuse("norse", "executing NIR takes the package norse", "pip install norse 'ann2loihi[nir]'") from error
    with TemporaryDirectory() as directory:
        path = Path(directory, "network.nir")
        nir.save(network, path, form="portable")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="nirtorch.load", category=DeprecationWarning)
            module = norse.from_nir(package.read(path))
    spikes: dict[str, int] = {}

    def counting(name: str) -> Any:
        def count(_: Any, given: Any, result: Any) -> None:
            spikes[name] += int(result[0].sum())

        return count

    for name, part in module.named_modules():
        if name.endswith("_spikes"):
            spikes[name] = 0
            part.register_forward_hook(counting(name))
    outputs = []
    for image in track("executing", payload):  # NIR knows no batch
        state, total = None, 0
        for _ in range(network.timesteps):
            output, state = module(torch.from_numpy(image.astype(np.float32)), state)
            total = total + output
        outputs.append(total.numpy())
    return np.stack(outputs), spikes


if __name__ == "__main__":
    app()
