"""From what a user names to a module in eval mode with its weights. Of all files, only a factory's is executed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from exporters.nir import read_graph
from sim.arguments import checked
from sim.findings import refuse
from toolchain.frontends import exported, nir_file, onnx_file
from toolchain.frontends.plain import unwrapped
from toolchain.inputs import existing
from toolchain.loading.factory import build
from toolchain.loading.weights import load_weights, read_weights
from toolchain.surgery import RECORD, is_activation, repeated

#: By the ending of a file that holds a whole model.
READERS: dict[str, Callable[[Path], nn.Module]] = {
    ".pt2": exported.load,
    ".onnx": onnx_file.load,
    ".nir": lambda path: nir_file.program(read_graph(path), str(path)),
}
#: Endings of files that hold weights, which some try to give as models.
_WEIGHTS = {".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"}


@checked
def load_model(model: str | Path | nn.Module, weights: str | Path | None = None) -> nn.Module:
    """Return a model without its wrappers, with the weights of a file if one is given, in eval mode.

    ``model`` is ``FILE.py:NAME``, where NAME is a function or class that builds the model, or the model itself (see
    :func:`toolchain.loading.factory.build`); a ``.pt2``, ``.onnx`` or ``.nir`` file, which holds its own weights; or an
    ``nn.Module``, into which the weights are loaded. For what ``weights`` may be, see
    :func:`toolchain.loading.weights.load_weights`; where ``ann2loihi train`` has written them, the model's ReLUs are
    replaced as they were in training (:func:`toolchain.surgery.replace_activations`). Raises
    :class:`sim.findings.Refused` where nothing can be read or built, and where the weights do not fit.
    """
    ending = "" if isinstance(model, nn.Module) or ":" in Path(model).name else Path(model).suffix.lower()
    if isinstance(model, nn.Module):
        loaded = model
    elif read := READERS.get(ending):
        if weights is not None:
            raise refuse(str(model), "holds its own weights", "leave --weights out")
        loaded = read(existing(Path(model)))
    elif ending in _WEIGHTS:
        raise refuse(
            str(model), "holds weights, not the code of a model", f"give --model FILE.py:FACTORY --weights {model}"
        )
    else:
        loaded = build(str(model))
    loaded = unwrapped(loaded)
    if weights is not None:
        content = read_weights(path := existing(Path(weights)))
        recorded = content.get(RECORD) if isinstance(content, dict) else None
        if recorded is not None and not any(map(is_activation, loaded.modules())):
            loaded = repeated(loaded, recorded, content.get("state_dict", {}))
        load_weights(loaded, path, content)
    loaded.eval()  # not in one expression: a train() of the user's own may return None
    return loaded
