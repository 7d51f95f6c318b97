"""``torch.export`` programs, ``.pt2`` files, read as data.

``torch.export.load`` runs what a file says: pickles, sizes and guards as source code; and that of torch 2.3 fails on
every ``nn.Sequential``. This reader takes the graph from the JSON and the weights from the archive, in both layouts:
one ``torch.save`` file of all weights (torch 2.3), and one raw file for each (current torch).
"""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sim.findings import Refused, refuse
from sim.network import Shape
from toolchain.frontends.aten import ATEN, CASTING, CREATING
from toolchain.frontends.program import SAMPLES, Operation, Program, Ref, Unknown, refs

LIMIT = 16 << 30  #: bytes that an archive may take uncompressed
SCHEMAS = range(5, 9)  #: major versions of torch's export schema: 5 is that of torch 2.3, 8 that of torch 2.15

#: Element types by torch's own numbers, the ScalarType of torch/_export/serde/schema.py.
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64,
    6: torch.float16, 7: torch.float32, 8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip

_GRAPH = re.compile(r"models/[^/]+\.json|serialized_exported_program\.json")
_OLD_TENSORS = ("serialized_state_dict.pt", "serialized_constants.pt")


def load(path: Path) -> Program:
    """Read the program of a ``.pt2`` file.

    Raises :class:`sim.findings.Refused` for a file that is none, that takes more than ``LIMIT`` bytes or holds objects
    beside tensors, and for a program of several inputs. Operations that are not known are the importer's to refuse.
    """
    again = "save it with torch.export.save(torch.export.export(model.eval(), (x,)), path)"
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            if size > LIMIT:
                raise refuse(str(path), f"takes {size} bytes, more than {LIMIT}", "use a smaller model")
            files = _Files(path, archive, size)
            graphs = [name for name in files.names if _GRAPH.fullmatch(name)]
            if len(graphs) != 1:
                raise refuse(str(path), f"holds {len(graphs)} exported programs, not one", again)
            document = json.loads(files.read(graphs[0]))
            if (major := document["schema_version"]["major"]) not in SCHEMAS:
                known = f"{SCHEMAS[0]} to {SCHEMAS[-1]} are known"
                raise refuse(
                    str(path), f"is written in version {major} of torch's schema; {known}", "save a state_dict"
                )
            return _Reader(path, document["graph_module"], files.tensors()).program()
    except Refused:
        raise
    except pickle.UnpicklingError as error:
        raise refuse(
            str(path),
            "holds objects or code beside tensors, which are never executed",
            "export a model of tensors only",
        ) from error
    except Exception as error:  # a damaged file may be damaged anywhere
        raise refuse(str(path), "is not a readable torch.export program", again) from error


class _Files:
    """The members of an archive, without the folder that newer archives keep them in."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, size: int) -> None:
        self.path, self.archive, self.size = path, archive, size
        top = {name.split("/", 1)[0] for name in archive.namelist()}
        prefix = f"{top.pop()}/" if len(top) == 1 else ""
        self.names = {name.removeprefix(prefix): name for name in archive.namelist()}

    def read(self, name: str) -> bytes:
        return self.archive.read(self.names[name])

    def tensors(self) -> dict[str, Tensor]:
        """All weights, buffers and constants by their names in the model."""
        found: dict[str, Tensor] = {}
        for name in _OLD_TENSORS:
            if self.names.get(name) and (content := self.read(name)):
                found |= self._unpickled(content)
        for name in self.names:
            if re.fullmatch(r"data/(weights|constants)/[^/]+_config\.json", name):
                folder = name.rpartition("/")[0]
                for key, entry in json.loads(self.read(name))["config"].items():
                    found[key] = self._tensor(self.read(f"{folder}/{entry['path_name']}"), entry)
        for key, tensor in found.items():
            # A stride of 0 can make a few bytes any number of values.
            if tensor.layout != torch.strided or tensor.numel() * tensor.element_size() > self.size:
                raise refuse(
                    f"{self.path}: {key}", f"has shape {tuple(tensor.shape)}, more than the file holds", "save it again"
                )
        return found

    def _unpickled(self, content: bytes) -> Any:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)

    def _tensor(self, content: bytes, entry: Mapping[str, Any]) -> Tensor:
        if entry["use_pickle"]:
            return self._unpickled(content)
        meta = entry["tensor_meta"]
        shape, strides = ([size["as_int"] for size in meta[key]] for key in ("sizes", "strides"))
        dtype = DTYPES[meta["dtype"]]
        flat = torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype)
        return flat.as_strided(shape, strides, meta["storage_offset"]["as_int"])


class _Reader:
    """Turns one graph of the JSON into a program."""

    def __init__(self, path: Path, document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.graph, self.signature = document["graph"], document["signature"]
        self.constants: dict[str, tuple[str, Tensor]] = {}
        inputs: list[str] = []
        for spec in self.signature["input_specs"]:
            ((kind, entry),) = spec.items()
            if kind in ("parameter", "buffer", "tensor_constant"):
                key = entry[f"{kind}_name"]
                self.constants[entry["arg"]["name"]] = key, tensors[key]
            elif kind == "user_input" and "as_tensor" in entry["arg"]:
                inputs.append(entry["arg"]["as_tensor"]["name"])
            elif kind != "user_input":
                raise refuse(str(path), f"takes a {kind} beside tensors", "export a model of tensors only")
        if len(inputs) != 1:
            raise refuse(str(path), f"takes {len(inputs)} inputs", "export a model of one input")
        (self.source,) = inputs
        self.samples = self._sizes(self.source)[0].get("as_int")  # None where the batch was exported as dynamic
        self.from_input = {self.source}  # names of the values that depend on the input

    def program(self) -> Program:
        operations = [self._operation(node) for node in self.graph["nodes"] if not _ASSERTION.match(node["target"])]
        returned = [spec["user_output"]["arg"] for spec in self.signature["output_specs"] if "user_output" in spec]
        return Program(
            self.source, self.constants, operations, [argument["as_tensor"]["name"] for argument in returned]
        )

    def _operation(self, node: Mapping[str, Any]) -> Operation:
        name = node["target"].removeprefix("torch.ops.aten.")
        given = {entry["name"]: next(iter(entry["arg"].items())) for entry in node["inputs"]}
        values = {key: _ARGUMENTS[kind](value) for key, (kind, value) in given.items() if kind in _ARGUMENTS}
        outputs: list[str] = []
        for output in node["outputs"]:
            ((kind, value),) = output.items()
            named = [part if isinstance(part, dict) else {} for part in (value if kind == "as_tensors" else [value])]
            outputs += [str(part.get("name", part.get("as_name", ""))) for part in named]
        several = len(node["outputs"]) > 1 or any("as_tensors" in output for output in node["outputs"])
        if depends := bool(refs(values) & self.from_input):
            self.from_input.update(outputs)
        known = name in ATEN and len(values) == len(given)
        if (dtype := values.get("dtype")) not in (None, torch.float32):
            known &= name in CREATING or (name in CASTING and (dtype.is_floating_point or not depends))
        if not known:
            tensors = tuple(value for value in values.values() if isinstance(value, Ref))
            shapes = [self._shape(output) for output in outputs] if depends else None
            function: Callable[..., Any] = Unknown(name.partition(".")[0], shapes)
            return Operation(_module(node["metadata"]), function, tuple(outputs), several, tensors)
        for key in ("size", "shape"):
            size, sized = values.get(key), depends or name in (*CREATING, "expand.default")
            if sized and isinstance(size, list) and size and size[0] == self.samples:
                values[key] = [SAMPLES, *size[1:]]
        ignored = [key for key in _IGNORED if key != "dtype" or name not in (*CREATING, *CASTING)]
        first, *others = ((key, value) for key, value in values.items() if key not in ignored)
        return Operation(_module(node["metadata"]), ATEN[name], tuple(outputs), several, (first[1],), dict(others))

    def _sizes(self, name: str) -> list[Mapping[str, Any]]:
        return self.graph["tensor_values"][name]["sizes"]

    def _shape(self, name: str) -> Shape | None:
        sizes = self._sizes(name)[1:] if name in self.graph["tensor_values"] else [{}]
        return tuple(size["as_int"] for size in sizes) if all("as_int" in size for size in sizes) else None


def _module(metadata: Mapping[str, str]) -> str:
    """Path of the innermost module that an operation belongs to.

    The stack's entries are "key,path,type"; torch 2.3 writes paths below an ``nn.Sequential`` at the top as Python:
    ``getattr(L['fn'], '0').conv``.
    """
    path = metadata.get("nn_module_stack", "").rpartition(";")[2].partition(",")[2].rpartition(",")[0]
    path = re.sub(r"L\['\w+'\]", "", path)
    while path != (shorter := re.sub(r"getattr\(([\w.]*), '(\w+)'\)", r"\1.\2", path)):
        path = shorter
    return re.sub(r"[^\w.]+", "_", re.sub(r"@\d+", "", path)).strip(".")


def _ref(value: Mapping[str, Any]) -> Any:
    """Read a named value, or a number where either may stand."""
    name = value.get("name", value.get("as_name"))
    return value["as_int"] if name is None else Ref(name)


def _refs(values: list[Mapping[str, Any]]) -> list[Any]:
    return list(map(_ref, values))


def _optional_refs(values: list[Mapping[str, Any]]) -> list[Any]:
    """Read names and nothings; torch 2.3 writes the name of a tensor here without more."""
    found = [value.get("as_tensor") for value in values]
    return [name if name is None else Ref(name["name"] if isinstance(name, dict) else name) for name in found]


def _as_it_is(value: Any) -> Any:
    return value


def _nothing(value: Any) -> None:
    return None


#: By the kind of an argument in the JSON. Any other makes its operation unknown.
_ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "as_tensor": _ref,
    "as_tensors": _refs,
    "as_sym_int": _ref,
    "as_sym_ints": _refs,
    "as_int": _as_it_is,
    "as_ints": _as_it_is,
    "as_bool": _as_it_is,
    "as_string": _as_it_is,
    "as_float": float,
    "as_floats": _as_it_is,
    "as_none": _nothing,
    "as_scalar_type": DTYPES.get,
    "as_memory_format": _nothing,
    "as_layout": _nothing,
    "as_device": _nothing,
    "as_optional_tensors": _optional_refs,
}

_ASSERTION = re.compile(r"torch\.ops\.aten\.(_assert|sym_constrain)")

#: Arguments that say where and how a tensor is kept.
_IGNORED = (
    "dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking", "copy", "implicit", "cudnn_enabled",
)  # fmt: skip
