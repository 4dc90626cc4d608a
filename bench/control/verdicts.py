"""What was promised, what was seen, and whether that is kept.

Owns: these records and how they are printed and written. Does not own: what is measured.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from bench.cluster import Cluster
from bench.report import machine


class Verdict(NamedTuple):
    """One promise: ``value`` may be ``bound`` at most, or must be so much at least."""

    what: str
    value: float
    bound: float
    unit: str = ""
    is_floor: bool = False

    @property
    def is_kept(self) -> bool:
        return self.value >= self.bound if self.is_floor else self.value <= self.bound


@dataclass
class Findings:
    """What one measurement came to: promises, and figures that nothing was promised about."""

    verdicts: list[Verdict] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def most(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """Promised: not more than ``bound``."""
        self.verdicts.append(Verdict(what, value, bound, unit))

    def least(self, what: str, value: float, bound: float, unit: str = "") -> None:
        """Promised: not less than ``bound``."""
        self.verdicts.append(Verdict(what, value, bound, unit, is_floor=True))

    @property
    def are_kept(self) -> bool:
        return all(verdict.is_kept for verdict in self.verdicts)


@dataclass
class Stage:
    """Where a measurement runs: servers of its own, and a folder; ``is_quick``: in a small size."""

    cluster: Cluster
    folder: Path
    is_quick: bool
    say: Callable[[str], None]
    connect: Callable[[], Cluster]
    """Makes further servers, of their own; they are stopped with the others."""

    def size(self, full: int, quick: int) -> int:
        return quick if self.is_quick else full


def show(name: str, findings: Findings, console: Console) -> None:
    """A line for each promise, then the figures."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("", name, "seen", "promised"):
        table.add_column(heading)
    for each in findings.verdicts:
        bound = f"{'at least' if each.is_floor else 'at most'} {_number(each.bound)} {each.unit}".strip()
        table.add_row(
            "PASS" if each.is_kept else "FAIL", each.what, f"{_number(each.value)} {each.unit}".strip(), bound
        )
    console.print(table)
    for what, value in findings.figures.items():
        console.print(f"      {what}: {_number(value)}", markup=False)


def write(folder: Path, options: Mapping[str, Any], found: Mapping[str, Findings], console: Console) -> None:
    """One JSON document of everything."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / time.strftime("control-%Y%m%d-%H%M%S.json", time.gmtime())
    document = {
        "options": dict(options),
        "machine": machine(),
        "found": {name: _document(findings) for name, findings in found.items()},
    }
    path.write_text(json.dumps(document, indent=2, default=str))
    console.print(f"written to {path}", soft_wrap=True)


def _document(findings: Findings) -> dict[str, Any]:
    verdicts = [{**each._asdict(), "is_kept": each.is_kept} for each in findings.verdicts]
    return {"verdicts": verdicts, "figures": findings.figures}


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def percentile(values: Iterable[float], part: float) -> float:
    """The value that so many of ``values`` do not exceed; 0 of none."""
    found = sorted(values)
    return found[min(len(found) - 1, int(part * len(found)))] if found else 0.0
