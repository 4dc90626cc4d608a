"""How the figures change with size: more workers, more steps, wider fan-outs, a longer past.

Owns: the series. Does not own: the workloads they repeat (``workloads``).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import history
from bench.cluster import Cluster, cluster
from bench.figures import Figures, repeated
from bench.workloads import lone, parallel, sequence, throughput, warm_up

Say = Callable[[str], None]


def workers(made: Cluster, counts: Sequence[int], instances: int, repeat: int) -> dict[str, Figures]:
    """W1 on so many worker processes."""
    figures = {}
    for count in counts:
        made.staff(count)
        warm_up(made, 10 * count)
        figures[f"W1, {count} worker{'s' * (count > 1)}"] = repeated(
            partial(throughput, made, instances), repeat, "steps_per_s"
        ) | {"series": "workers", "x": count}
    return figures


def lengths(made: Cluster, sizes: Sequence[int], repeat: int) -> dict[str, Figures]:
    """W2 with so many steps per instance; ``flatness`` is ms/step beside that of the first size of at least 100."""
    figures: dict[str, Figures] = {}
    for size in sizes:
        figures[f"W2, {size:,} steps"] = repeated(partial(sequence, made, size), repeat, "steps_per_s")
    return _flatness(figures, sizes, "steps")


def widths(made: Cluster, sizes: Sequence[int], repeat: int) -> dict[str, Figures]:
    """W3 with so many steps at once."""
    figures: dict[str, Figures] = {}
    for size in sizes:
        figures[f"W3, {size:,} parallel"] = repeated(partial(parallel, made, size), repeat, "steps_per_s")
    return _flatness(figures, sizes, "parallel")


def _flatness(figures: dict[str, Figures], sizes: Sequence[int], series: str) -> dict[str, Figures]:
    per_step = [one["wall_s"] / one["steps"] for one in figures.values()]
    measure = next((ms for ms, size in zip(per_step, sizes, strict=True) if size >= 100), per_step[0])
    return {
        name: one | {"series": series, "x": size, "flatness": ms / measure}
        for (name, one), size, ms in zip(figures.items(), sizes, per_step, strict=True)
    }


def past(sizes: Sequence[int], instances: int, runs: int, say: Say) -> dict[str, Figures]:
    """W1 beside so many finished instances, and in an empty database, by turns: A B A B; the ratio of the medians."""
    figures: dict[str, Figures] = {}
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as other,
        cluster(Path(one)) as empty,
        cluster(Path(other)) as full,
    ):
        for made in (empty, full):
            made.staff(1)
            warm_up(made, 20)
        held = 0
        for size in sizes:
            took = history.fill(full, size - held)
            held = size
            say(f"{size:,} finished instances in the tables ({took:.0f} s) …")
            figures[f"W1, {size:,} finished"] = _beside(empty, full, instances, runs) | {
                "series": "past",
                "x": size,
            }
    return figures


def _beside(empty: Cluster, full: Cluster, instances: int, runs: int) -> Figures:
    """Figures of ``full``; ``ratio`` is its throughput beside that of ``empty``."""
    with_past: list[Figures] = []
    without: list[Figures] = []
    for _ in range(runs):
        without.append(throughput(empty, instances) | {"lone_p50_ms": lone(empty, 20)["p50_ms"]})
        with_past.append(throughput(full, instances) | {"lone_p50_ms": lone(full, 20)["p50_ms"]})

    def median(all_figures: list[Figures], key: str) -> Any:
        return statistics.median(one[key] for one in all_figures)

    middle = sorted(with_past, key=lambda one: float(one["steps_per_s"]))[runs // 2]
    return middle | {
        "ratio": median(with_past, "steps_per_s") / median(without, "steps_per_s"),
        "lone_ratio": median(with_past, "lone_p50_ms") / median(without, "lone_p50_ms"),
        "all_steps_per_s": [one["steps_per_s"] for one in with_past],
        "empty_steps_per_s": [one["steps_per_s"] for one in without],
        "empty_cpu_us_per_step": [one["cpu_us_per_step"] for one in without],
    }
