"""Whether a state_dict fits a model, and if not, why not, in few lines."""

from __future__ import annotations

import torch
from torch import Tensor, nn

State = dict[str, Tensor]

SAVE = "save the state_dict of this very model"
DEQUANTISED = "save the weights as floating-point numbers, with their scale multiplied in"

EXAMPLES = 3  #: keys that one line names
ANOTHER = 5  #: where fewer than one in so many of the model's keys are there, the file belongs to another model
TYPES = 2  #: element types that do not fit, one line each; three lines more say what else does not

#: Only training uses these counts; files from before torch 0.4.1 lack them.
_COUNTER = "num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def misfits(state: State, wanted: State) -> list[tuple[str, str]]:
    """Return why a state_dict does not fit the model's, ``wanted``: at most five problems with their ways out."""
    lacks, both = missing(state, wanted), [key for key in state if key in wanted]
    if lacks and len(both) * ANOTHER < len(wanted):
        has = f"it has {_quoted([key for key in state if key not in wanted] or both)}, the model {_quoted(lacks)}"
        return [
            (
                f"looks like a checkpoint of another model: {len(both)} of {len(wanted)} keys fit; {has}",
                "build the model that was trained",
            )
        ]
    found = []
    if lacks:
        found.append((f"lacks {_counted(lacks, len(wanted))}", SAVE))
    if surplus := [key for key in state if key not in wanted]:
        found.append((f"holds {_counted(surplus, len(state))}, which the model does not have", SAVE))
    if other := [key for key in both if not _same_shape(state[key], wanted[key])]:
        found.append(_shapes(other, state, wanted))
    types: dict[tuple[str, str, str], list[str]] = {}
    for key in both:
        if problem := unfit(state[key], wanted[key]):
            types.setdefault((_name(state[key]), *problem), []).append(key)
    for (kind, why, remedy), keys in list(types.items())[:TYPES]:
        more = {1: "", 2: " (and so is 1 more)"}.get(len(keys), f" (and so are {len(keys) - 1} more)")
        found.append((f"{keys[0]!r} is {kind}{more}: {why}", remedy))
    return found


def missing(state: State, wanted: State) -> list[str]:
    """Return the model's keys that a state_dict has to have and does not.

    It need not have counters, nor what shares its memory with a weight that is there: safetensors keeps one of these.
    """
    there = {memory(value) for key, value in wanted.items() if key in state}
    return [
        key
        for key, value in wanted.items()
        if key not in state and key.rpartition(".")[2] != _COUNTER and memory(value) not in there
    ]


def fitting(state: State, wanted: State) -> int:
    """Count the keys whose tensors have the shape that the model's have."""
    return sum(_same_shape(value, wanted[key]) for key, value in state.items() if key in wanted)


def memory(value: Tensor) -> tuple[object, ...]:
    """Return what is equal for two tensors that are views of the same numbers."""
    if nn.parameter.is_lazy(value) or value.layout != torch.strided or not value.data_ptr():
        return (id(value),)
    return value.data_ptr(), value.shape, value.stride(), value.dtype


def unfit(value: Tensor, wanted: Tensor | None) -> tuple[str, str] | None:
    """Say why numbers of this type would not be the same in the model, and what to do; None where rounding is all.

    Where nobody knows what the model wants, it is a weight, or a counter if it is a single number.
    """
    if wanted is not None and (value.dtype, value.layout) == (wanted.dtype, wanted.layout):
        return None
    if value.is_quantized:
        return "the tensor is quantised", "save it as dequantize() gives it"
    if value.layout != torch.strided:
        return "the tensor is sparse", "save it as to_dense() gives it"
    if value.is_complex():
        return "its imaginary part would be lost", "give a network of real numbers"
    if wanted is None and not value.ndim:
        return None
    if wanted is not None and not wanted.is_floating_point():
        # A mean of checkpoints has fractions of counters, which do no harm.
        if not value.is_floating_point() or not wanted.ndim or bool((value == value.round()).all()):
            return None
        return f"the model holds {_name(wanted)} there", SAVE
    if value.dtype == torch.bool:
        return "signs or a mask, no weights", DEQUANTISED
    if not value.is_floating_point():
        return "levels of a quantised layer, whose scale is kept elsewhere", DEQUANTISED
    if value.dtype not in _FLOATS:
        return "floats of 8 bits, whose scale is kept elsewhere", DEQUANTISED
    return None


def _shapes(keys: list[str], state: State, wanted: State) -> tuple[str, str]:
    first, rest = keys[0], len(keys) - 1
    outputs = {(*state[key].shape[:1], *wanted[key].shape[:1]) for key in keys}
    # Were it not a last layer, the next one would not fit either.
    inner = all(state[key].shape[1:] == wanted[key].shape[1:] for key in keys)
    if inner and len(outputs) == 1 and any(wanted[key].ndim > 1 for key in keys):
        has, needs = outputs.pop()
        layers = list(dict.fromkeys(key.rpartition(".")[0] or key for key in keys))
        which = f"the classifier {layers[0]!r} has" if len(layers) == 1 else f"the classifiers {_quoted(layers)} have"
        return f"{which} {has} outputs, the model's {needs}", f"build the model with {has} outputs"
    shapes = f"{first!r} has shape {tuple(state[first].shape)}, the model's has {tuple(wanted[first].shape)}"
    return shapes + (f", and {rest} more differ" if rest else ""), SAVE


def _same_shape(value: Tensor, wanted: Tensor) -> bool:
    # torch takes a scalar that torch 0.3 has saved as a vector of one.
    return nn.parameter.is_lazy(wanted) or value.shape == wanted.shape or (value.shape == (1,) and not wanted.ndim)


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _quoted(keys: list[str]) -> str:
    return ", ".join(map(repr, keys[:EXAMPLES]))


def _counted(keys: list[str], total: int) -> str:
    if len(keys) <= EXAMPLES:
        return _quoted(keys)
    return f"{len(keys)} of {total} keys, for example {_quoted(keys)}"
