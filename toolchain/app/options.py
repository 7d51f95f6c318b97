"""Options of the command line: those that several commands share, and one for every field of a recipe."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Optional, get_args, get_type_hints

import typer

from toolchain.recipe import RECIPES, Recipe

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
_model = typer.Option(
    "--model",
    metavar="FILE.py:FACTORY|FILE.pt2|FILE.onnx|FILE.nir",
    help="Function or class that builds the model, or the model itself; or a file that holds it.",
)
Model = Annotated[str, _model]
AnyModel = Annotated[str | None, _model]
Weights = Annotated[
    Path | None,
    typer.Option(
        "--weights", metavar="FILE", help="Its state_dict or a checkpoint with it, by torch.save or .safetensors."
    ),
]
#: What a data set may be.
DATA = "FILE.npz|FILE.npy|FOLDER|FILE.py:FACTORY"
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        metavar=DATA,
        help="Arrays x (N,C,H,W; bytes or numbers) and labels y; a folder of images for each class; a torch Dataset.",
    ),
]
Samples = Annotated[int | None, typer.Option("--samples", metavar="N", help="Use the first N samples; all by default.")]
Device = Annotated[
    str, typer.Option("--device", metavar="cpu|cuda", help="Where the fast engine computes; the result is the same.")
]
Output = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.")]
Bundle = Annotated[Path, typer.Argument(metavar="DIR", help="What `convert` has written.")]
AnyNetwork = Annotated[
    Path, typer.Argument(metavar="DIR|FILE.net|FILE.nir", help="What `convert` or `export` has written.")
]
DenseLimit = Annotated[
    int | None,
    typer.Option("--dense-limit", metavar="N", help="Weights of the largest matrix that folding may create.  [2^25]"),
]
LeaveOffLast = Annotated[
    bool, typer.Option("--leave-off-last", help="Leave off a softmax or sigmoid at the very end of the model.")
]
Start = Annotated[str, typer.Option("--recipe", help=f"Where to start from: {', '.join(RECIPES)}.")]


def importing(dense_limit: int | None, leave_off_last: bool) -> dict[str, Any]:
    """Return the options of ``import_model`` that are given."""
    return {"leave_off_last": leave_off_last} | ({} if dense_limit is None else {"dense_limit": dense_limit})


def with_options(record: type[Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command an option for every field of a record; it gets the given ones as keyword arguments.

    The command takes them as ``options``. What is not given is left to what it starts from.
    """
    hints = get_type_hints(record)
    by_parameter = {name.replace("-", "_"): (name, field) for field in fields(record) if (name := _option(field))}
    added = {}
    for parameter, (name, field) in by_parameter.items():
        kind, choices = hints[field.name], get_args(hints[field.name])
        described = typer.Option(
            f"--{name}/--no-{name}" if kind is bool else f"--{name}",
            metavar="|".join(choices) or None,
            help=f"{field.metadata['help']}  [{_shown(field.default)}]",
        )
        # Which choices there are is the record's to say, in one line.
        added[parameter] = Annotated[Optional[str if choices else kind], described]  # noqa: UP045 - values here

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(**arguments: Any) -> Any:
            values = {field.name: arguments.pop(parameter) for parameter, (_, field) in by_parameter.items()}
            return function(**arguments, options={name: value for name, value in values.items() if value is not None})

        own = [p for p in inspect.signature(function, eval_str=True).parameters.values() if p.name != "options"]
        more = [
            inspect.Parameter(parameter, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
            for parameter, kind in added.items()
        ]
        signature = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own] + more)
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return command

    return decorated


def _option(field: Field[Any]) -> str | None:
    """Return the option of a field without its dashes, None if it has none."""
    option = field.metadata["option"]
    return field.name.replace("_", "-") if option == "" else option


def _shown(default: Any) -> str:
    return ("no", "yes")[default] if isinstance(default, bool) else str(default) or "none"


with_recipe = with_options(Recipe)
