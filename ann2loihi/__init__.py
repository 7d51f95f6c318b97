"""Turn a trained PyTorch network into a verified spiking network for Intel Loihi 2.

Everything that a user needs stands here, and is loaded when it is first used::

    import ann2loihi as a2l

    a2l.convert(model, calibration_inputs).save("build/mine")

The code behind this door lives in the packages ``toolchain``, ``exporters`` and ``sim``.
"""

from __future__ import annotations

from importlib import import_module, metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names again, for type checkers: as themselves, which makes them public
    from exporters import device as device
    from exporters import nir as nir
    from exporters.bundle import Bundle as Bundle
    from exporters.bundle import keep_report as keep_report
    from exporters.bundle import legality as legality
    from exporters.bundle import load as load_bundle  # noqa: F401
    from exporters.bundle import write_page as write_page
    from exporters.comparison import compare as compare
    from exporters.comparison import differences as differences
    from exporters.engines import available_engines as available_engines
    from exporters.engines import run as run
    from exporters.engines import verify as verify
    from exporters.netx import load as load
    from exporters.netx import read as read
    from exporters.netx import save as write  # noqa: F401
    from exporters.placement import cost as cost
    from exporters.placement import fit as fit
    from exporters.reduction import reduce as reduce
    from exporters.report import Report as Report
    from exporters.report import figures as figures
    from sim.findings import Finding as Finding
    from sim.findings import Refused as Refused
    from sim.network import Network as Network
    from sim.progress import reporting as reporting
    from toolchain import assessment as assessment
    from toolchain import demo as demo
    from toolchain import training as training
    from toolchain.auto import choose as choose
    from toolchain.convert import Conversion as Conversion
    from toolchain.convert import convert as convert
    from toolchain.data import open_data as open_data
    from toolchain.frontends import import_model as import_model
    from toolchain.frontends import inspect_model as check  # noqa: F401
    from toolchain.frontends import operation as operation
    from toolchain.graph.activations import NQ as NQ
    from toolchain.graph.activations import QCFS as QCFS
    from toolchain.graph.activations import RNL as RNL
    from toolchain.graph.activations import TCL as TCL
    from toolchain.graph.activations import SlipReLU as SlipReLU
    from toolchain.graph.activations import TReLU as TReLU
    from toolchain.loading import load_model as load_model
    from toolchain.recipe import RECIPES as RECIPES
    from toolchain.recipe import Recipe as Recipe
    from toolchain.surgery import replace_activations as replace_activations
    from toolchain.surgery import replace_max_pooling as replace_max_pooling

    __version__: str

#: By public name: the module that it is in, and its name there; "" for the module itself.
_HOMES: dict[str, tuple[str, str]] = {
    name: (module, name)
    for module, names in {
        "exporters.bundle": ("Bundle", "keep_report", "legality", "write_page"),
        "exporters.comparison": ("compare", "differences"),
        "exporters.engines": ("available_engines", "run", "verify"),
        "exporters.netx": ("load", "read"),
        "exporters.placement": ("cost", "fit"),
        "exporters.reduction": ("reduce",),
        "exporters.report": ("Report",),
        "sim.findings": ("Finding", "Refused"),
        "sim.network": ("Network",),
        "sim.progress": ("reporting",),
        "toolchain.auto": ("choose",),
        "toolchain.convert": ("Conversion", "convert"),
        "toolchain.data": ("open_data",),
        "toolchain.graph.activations": ("NQ", "QCFS", "RNL", "SlipReLU", "TCL", "TReLU"),
        "toolchain.frontends": ("import_model", "operation"),
        "toolchain.loading": ("load_model",),
        "toolchain.recipe": ("RECIPES", "Recipe"),
        "toolchain.surgery": ("replace_activations", "replace_max_pooling"),
    }.items()
    for name in names
} | {
    "assessment": ("toolchain.assessment", ""),
    "check": ("toolchain.frontends", "inspect_model"),
    "demo": ("toolchain.demo", ""),
    "device": ("exporters.device", ""),
    "figures": ("exporters.report.figures", ""),
    "load_bundle": ("exporters.bundle", "load"),
    "nir": ("exporters.nir", ""),
    "training": ("toolchain.training", ""),
    "write": ("exporters.netx", "save"),
}

__all__ = [
    *sorted(_HOMES),
    "__version__",
]


def _require_own_packages() -> None:
    """Refuse to start where somebody else's file has the name of one of our packages: its errors would be riddles."""
    root = Path(__file__).resolve().parents[1]
    for name in ("sim", "exporters", "toolchain"):
        spec = util.find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or ()), *filter(None, [spec.origin])]
        if not any(Path(place).resolve().is_relative_to(root / name) for place in places):
            problem = f"is taken by {places[0]}; rename that" if places else "is missing; install ann2loihi again"
            raise ImportError(f"the package {name!r} of ann2loihi {problem}")


_require_own_packages()


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = metadata.version("ann2loihi")
    elif name in _HOMES:
        module, attribute = _HOMES[name]
        value = import_module(module)
        value = getattr(value, attribute) if attribute else value
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value  # asked for once
    return value


def __dir__() -> list[str]:
    return __all__
