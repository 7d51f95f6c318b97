"""Networks in netx ``.net`` files: written and read with h5py alone, loaded into Lava through lava-dl's own netx."""

from exporters.netx.checks import check, inexact
from exporters.netx.content import NETX, OURS
from exporters.netx.file import loaded_by, read, save, write, write_graph
from exporters.netx.loader import LoadedNetwork, load

__all__ = [
    "NETX",
    "OURS",
    "LoadedNetwork",
    "check",
    "inexact",
    "load",
    "loaded_by",
    "read",
    "save",
    "write",
    "write_graph",
]
