"""What the importer made of every module and operation, and everything that hinders it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sim.findings import Finding
from sim.network import Shape


@dataclass(frozen=True)
class LayerReport:
    """What the importer makes of one module or operation of the model."""

    path: str  #: qualified module path; of a function, the module whose forward calls it
    kind: str  #: class of the module or name of the function
    shape: Shape | None  #: of its output without the batch dimension; None where it was not reached or is no tensor
    fate: str  #: "spiking layer NAME", "readout", "folded into NAME", "unused", "refused: REASON; WAY OUT", ...


@dataclass(eq=False)
class Row:
    """One operation, while its fate is still open."""

    path: str
    kind: str
    name: str  #: of a layer that is named after it
    where: str  #: its place in a finding
    shape: Shape | None = None
    fates: dict[str, str] = field(default_factory=dict)  #: by the layer, or the refusal, that it came to
    refused: Finding | None = None

    def report(self) -> LayerReport:
        """Summarise."""
        blocked = [fate for fate in self.fates.values() if fate.startswith("blocked by")]
        others = [fate for fate in self.fates.values() if fate not in blocked]
        if len(blocked) > 1:
            blocked = [f"{blocked[0]} and {len(blocked) - 1} more"]
        fate = ", ".join(others + blocked) or "unused"
        if self.refused is not None:
            fate = f"refused: {self.refused.problem}; {self.refused.remedy}"
        return LayerReport(self.path, self.kind, self.shape, fate)


class Log:
    """The rows of one model, in the order of execution, and the findings about it."""

    def __init__(self, model: str) -> None:
        self.model = model  #: name of its class
        self.rows: list[Row] = []
        self.findings: list[Finding] = []

    def refuse(self, row: Row, problem: str, remedy: str) -> None:
        """Note a finding about a row."""
        if row not in self.rows:
            self.rows.append(row)
        finding = Finding(row.where, problem, remedy)
        row.refused = row.refused or finding
        self.findings.append(finding)

    def refuse_part(self, kind: str, problem: str, remedy: str, place: str = "", shape: Shape | None = None) -> None:
        """Note a finding about something that is no operation, in a row of its own; ``place`` "" is the model."""
        place = place or self.model
        self.refuse(Row(place, kind, place, place, shape), problem, remedy)
