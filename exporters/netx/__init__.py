"""Networks in netx ``.net`` files: written and read with h5py alone, loaded into Lava through lava-dl's own netx."""

from exporters.netx.checks import check, inexact
from exporters.netx.content import NETX, OURS
from exporters.netx.file import Form, dump, form_of, loaded_by, loader_of, read, save, undump, write, write_graph
from exporters.netx.foreign import block_table
from exporters.netx.hdf5 import is_ours
from exporters.netx.legality import RULES, Issue, Measured, Rule, legality
from exporters.netx.loader import LoadedNetwork, load

__all__ = [
    "NETX",
    "OURS",
    "RULES",
    "Form",
    "Issue",
    "LoadedNetwork",
    "Measured",
    "Rule",
    "block_table",
    "check",
    "dump",
    "form_of",
    "inexact",
    "is_ours",
    "legality",
    "load",
    "loaded_by",
    "loader_of",
    "read",
    "save",
    "undump",
    "write",
    "write_graph",
]
