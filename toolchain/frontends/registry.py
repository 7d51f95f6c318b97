"""What the importer knows: torch's modules, functions and methods, and the modules that users teach it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from sim.arguments import checked, shown
from sim.findings import refuse

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)


@dataclass(frozen=True)
class Handler:
    """What stands for a torch function: it has the same signature and takes and returns ``affine.Affine``."""

    function: Function
    several: bool  #: whether operands beyond the first may be activations; the function says what it can't do with them
    names: bool  #: whether a layer is named after it


#: By type (see :func:`known_class`): the handler, and the arguments that the module holds.
MODULES: dict[type[nn.Module], tuple[Handler, Callable[[Any], tuple[Any, ...]]]] = {}

FUNCTIONS: dict[Any, Handler] = {}

METHODS: dict[str, Handler] = {}  #: of ``torch.Tensor``

#: By exact type, since a subclass may compute anything: a function of the module and of what its ``forward`` gets,
#: traced in the place of ``forward``.
TAUGHT: dict[type[nn.Module], Function] = {}


#: What a subclass may define anew without computing anything else.
_HARMLESS = {"__init__", "__repr__", "extra_repr", "reset_parameters", "_check_input_dim", "__setstate__"}


def known_class(module: nn.Module) -> type[nn.Module] | None:
    """Return the class in ``MODULES`` that says what a module computes.

    That is its own, or the one that it is derived from without defining anew what that one defines: only then it
    computes the same.
    """
    kind, *bases = type(module).__mro__
    if kind in MODULES:
        return kind
    if parametrize.is_parametrized(module):
        return None
    own = set(vars(module)) | set(vars(kind))
    for base in bases:
        if base in MODULES:
            inherited = {name for part in base.__mro__[:-1] for name, v in vars(part).items() if callable(v)}
            return None if own & inherited - _HARMLESS else base
        own |= set(vars(base))
    return None


def handles(
    *,
    modules: Mapping[type[nn.Module], Callable[[Any], tuple[Any, ...]]] | None = None,
    functions: Iterable[Any] = (),
    methods: Iterable[str] = (),
    several: bool = False,
    names: bool = False,
) -> Callable[[F], F]:
    """Enter the decorated function as the handler of torch's modules, functions and methods.

    ``modules`` gives, by type, the arguments that follow the value. ``several`` and ``names`` are those of
    :class:`Handler`.
    """

    def enter(function: F) -> F:
        handler = Handler(function, several, names)
        MODULES.update({module: (handler, arguments) for module, arguments in (modules or {}).items()})
        FUNCTIONS.update(dict.fromkeys(functions, handler))
        METHODS.update(dict.fromkeys(methods, handler))
        return function

    return enter


@checked
def operation(module: type[nn.Module], *, replace: bool = False) -> Callable[[F], F]:
    """Teach the importer a module that it cannot trace, by a function that computes the same in eval mode::

        @operation(ClippedReLU)  # its forward applies a torch.autograd.Function
        def clipped_relu(module: ClippedReLU, x: Tensor) -> Tensor:
            return torch.clamp(x, 0, float(module.bound))

    The function gets the module and the arguments of its ``forward``, and is traced in the place of it. It may apply
    to ``x`` whatever the importer knows, any number of torch functions and the module's own children. ``x`` knows its
    size but no values; the module's parameters and buffers are tensors, float64. The function runs on tensors too, so
    that a test can hold it to ``forward``, as every import does.

    It holds for this class and not for those derived from it. Raises :class:`sim.findings.Refused` for what is no class
    of modules, and for a class that is known already where ``replace`` is False.
    """
    if not replace and (module in MODULES or module in TAUGHT):
        raise refuse("operation", f"{module.__name__} is known already", "pass replace=True where that is meant")

    def enter(function: F) -> F:
        if not callable(function):
            raise refuse("operation", f"{shown(function)} given", "give a function of the module and its input")
        TAUGHT[module] = function
        return function

    return enter
