"""How every part of the toolchain says no: all findings at once, each with place, problem and way out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way."""

    where: str  #: the user's own name for the place: a module path, a file, a layer's field
    problem: str  #: what is wrong, with the value and the limit
    remedy: str  #: what to do about it

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}; {self.remedy}"


class Refused(ValueError):  # noqa: N818 - it states an outcome, not a defect
    """Input that cannot be used. ``str()`` gives one line per finding."""

    exit_code = 2  #: of the command line

    def __init__(self, findings: Finding | Iterable[Finding]) -> None:
        self.findings: tuple[Finding, ...] = (findings,) if isinstance(findings, Finding) else tuple(findings)
        super().__init__("\n".join(map(str, self.findings)))

    def __reduce__(self) -> tuple[type[Refused], tuple[tuple[Finding, ...]]]:
        return type(self), (self.findings,)  # from process to process


def refuse(where: str, problem: str, remedy: str) -> Refused:
    """Build the exception for a single finding, to be raised by the caller."""
    return Refused(Finding(where, problem, remedy))
