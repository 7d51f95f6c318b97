"""Networks in netx ``.net`` files: written and read with h5py alone, loaded into Lava through lava-dl's own netx."""

from exporters.netx.checks import check, inexact
from exporters.netx.content import NETX, OURS
from exporters.netx.file import dump, loaded_by, read, save, undump, write, write_graph
from exporters.netx.hdf5 import is_ours
from exporters.netx.loader import LoadedNetwork, load

__all__ = [
    "NETX",
    "OURS",
    "LoadedNetwork",
    "check",
    "dump",
    "inexact",
    "is_ours",
    "load",
    "loaded_by",
    "read",
    "save",
    "undump",
    "write",
    "write_graph",
]
