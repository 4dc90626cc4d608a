"""What the rounds gave: a table, JSON, and Markdown for the documentation.

Owns: medians, ratios and how they look. A ratio is taken within each round, then the median of them: what the machine
does to both in a round does not count. Above 1: ours was that many times as fast.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.peers.rounds import Record
from bench.peers.system import Figures, System
from bench.report import machine

ROLES = ("client", "worker", "server", "postgres", "redis")
OURS = "ours"
CAPTION = (
    "CPU in µs per step; ×: median of the ratios per round; others: processors that something else kept busy"
)


@dataclass(frozen=True)
class Row:
    """One system on one workload; ``value`` is the median over ``rounds`` in the workload's unit."""

    workload: str
    system: str
    unit: str
    value: float
    lowest: float
    highest: float
    rounds: int
    ratio: float | None
    """Of ours to it; None for ours itself, and where the two shared no round."""
    ratios: list[float]
    cpu_us_per_step: dict[str, float]
    peak_mib: dict[str, float]
    other_cpus: float
    """How many processors everything else kept busy meanwhile: with much of that, the row says little."""


def rows(record: Record) -> Iterator[Row]:
    for workload, runs in record.runs.items():
        ours = runs.get(OURS, [])
        for name, figures in runs.items():
            done = [one for one in figures if one is not None]
            if not done:
                continue
            values = [workload.value(one) for one in done]
            pairs = zip(ours, figures, strict=False) if name != OURS else ()
            ratios = [workload.times_as_fast(a, b) for a, b in pairs if a is not None and b is not None]
            yield Row(
                workload.title, name, workload.unit, statistics.median(values), min(values), max(values), len(done),
                statistics.median(ratios) if ratios else None, ratios,
                _medians(done, "cpu_us_per_step"), _medians(done, "peak_mib"),
                statistics.median(one["other_cpus"] for one in done),
            )  # fmt: skip


def show(record: Record, console: Console) -> None:
    table = Table(title="ours and its peers", caption=CAPTION)
    for heading in ("workload", "system"):
        table.add_column(heading, no_wrap=True)
    for heading in (
        "median",
        "lowest",
        "highest",
        "unit",
        "ours ×",
        *(f"{r} µs" for r in ROLES),
        "all µs",
        "MiB",
        "others",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    before = ""
    for row in rows(record):
        if before and row.workload != before:
            table.add_section()
        table.add_row(row.workload if row.workload != before else "", *_cells(row))
        before = row.workload
    console.print(table)
    for workload, reasons in record.unfit.items():
        for name, reason in reasons.items():
            console.print(f"{workload.title}: not {name}: {reason}", markup=False)
    for name, reason in record.absent.items():
        console.print(f"{name}: {reason}", markup=False)


def write(
    folder: Path, options: Mapping[str, Any], systems: Sequence[System], record: Record, console: Console
) -> None:
    """Write ``peers-<time>.json`` and ``.md`` into ``folder``, and say where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / time.strftime("peers-%Y%m%d-%H%M%S.json", time.gmtime())
    told = {s.name: {"configuration": s.configuration, "guarantees": s.guarantees} for s in systems}
    everything = {
        "options": dict(options),
        "machine": machine(),
        "systems": told,
        "absent": record.absent,
        "unfit": {workload.title: reasons for workload, reasons in record.unfit.items()},
        "rows": [asdict(row) for row in rows(record)],
        "runs": {workload.title: runs for workload, runs in record.runs.items()},
    }
    path.write_text(json.dumps(everything, indent=2))
    page = path.with_suffix(".md")
    page.write_text(markdown(systems, record))
    console.print(f"written to {path} and {page}", soft_wrap=True)


def markdown(systems: Sequence[System], record: Record) -> str:
    """Tables for a page of documentation."""
    absent = record.absent
    lines = ["| system | configuration | what is durable |", "|---|---|---|"]
    lines += [f"| {s.name} | {s.configuration} | {s.guarantees} |" for s in systems if s.name not in absent]
    lines += ["", "| workload | system | median | lowest – highest | ours × | CPU µs per step | peak MiB |"]
    lines += ["|---|---|---:|---:|---:|---|---|"]
    for row in rows(record):
        ratio = "" if row.ratio is None else f"**{row.ratio:.2f}**"
        spread = f"{_number(row.lowest)} – {_number(row.highest)}"
        lines.append(
            f"| {row.workload} | {row.system} | {_number(row.value)} {row.unit} | {spread} | {ratio}"
            f" | {_by_role(row.cpu_us_per_step)} | {_by_role(row.peak_mib)} |"
        )
    return "\n".join([*lines, ""])


def _cells(row: Row) -> list[str]:
    cpu = row.cpu_us_per_step
    values = [row.value, row.lowest, row.highest]
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    used = [*(cpu.get(role) for role in ROLES), sum(cpu.values())]
    return [
        row.system, *map(_number, values), row.unit, ratio, *map(_number, used), _number(sum(row.peak_mib.values())),
        _number(row.other_cpus),
    ]  # fmt: skip


def _medians(done: Sequence[Figures], key: str) -> dict[str, float]:
    return {role: statistics.median(one[key].get(role, 0.0) for one in done) for role in done[0][key]}


def _by_role(values: Mapping[str, float]) -> str:
    return ", ".join(f"{role} {_number(values[role])}" for role in ROLES if values.get(role, 0.0) >= 0.5)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
