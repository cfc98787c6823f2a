"""Load report: the fate of every tensor of an official file and of the network, as text and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nnunet_fm.io.atomic_write import write_text

REPORT_NAME = "weights_report"


@dataclass(frozen=True)
class PartReport:
    """Account of one part of a network and the file that it was loaded from.

    Attributes:
        part: name of the part.
        file: name of the file; None for a state dict.
        sha256: hash of the file.
        matched: names in the network.
        adapted: name in the network -> what was changed.
        dropped: name in the file -> why it was left out.
        missing: name in the network -> why the file lacks it.
    """

    part: str
    file: str | None = None
    sha256: str | None = None
    matched: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> dict[str, int]:
        """Number of tensors of each kind."""
        return {kind: len(getattr(self, kind)) for kind in ("matched", "adapted", "dropped", "missing")}

    def __str__(self) -> str:
        title = f"{self.part}: {self.file or 'a state dict'}" + (f", SHA-256 {self.sha256}" if self.sha256 else "")
        lines = [title, f"  matched {len(self.matched)} tensors"]
        for what, names in (("adapted", self.adapted), ("dropped", self.dropped), ("missing", self.missing)):
            lines += [f"  {what} {len(names)}", *_listed(names)] if names else [f"  {what} none"]
        return "\n".join(lines)


@dataclass(frozen=True)
class LoadReport:
    """Reports of all loaded parts; reports can be added."""

    sections: tuple[PartReport, ...] = ()

    def __add__(self, other: LoadReport) -> LoadReport:
        return LoadReport(self.sections + other.sections)

    def __str__(self) -> str:
        return "\n\n".join(str(section) for section in self.sections)

    def to_json(self) -> str:
        """A list of sections, with counts beside the names."""
        sections = [{**asdict(section), "counts": section.counts} for section in self.sections]
        return json.dumps(sections, indent=1)

    def write(self, folder: Path) -> None:
        """Write ``weights_report.json`` and ``weights_report.txt`` into a folder."""
        write_text(folder / f"{REPORT_NAME}.json", self.to_json() + "\n")
        write_text(folder / f"{REPORT_NAME}.txt", str(self) + "\n")


def _listed(names: Mapping[str, str]) -> list[str]:
    return [f"    {name}: {what}" for name, what in names.items()]
