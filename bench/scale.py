"""How the figures change with size: more workers, more steps, wider fan-outs, a longer past.

Owns: the series. Does not own: the workloads they repeat (``workloads``).
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench import history
from bench.cluster import Cluster, cluster
from bench.figures import Figures, repeated
from bench.workloads import lone, parallel, sequence, throughput, warm_up

Say = Callable[[str], None]
Measured = Iterator[tuple[str, Figures]]

LONG = 100
"""From so many steps on, what an instance costs as such no longer counts."""


def crew(count: int) -> str:
    return f"{count} worker" + "s" * (count > 1)


def workers(made: Cluster, counts: Sequence[int], instances: int, repeat: int) -> Measured:
    """W1 on so many worker processes."""
    for count in counts:
        if made.staff(count):
            warm_up(made, 10 * count)
        run = partial(throughput, made, instances)
        yield f"W1, {crew(count)}", repeated(run, repeat, "steps_per_s") | {"series": "workers", "x": count}


def lengths(made: Cluster, sizes: Sequence[int], repeat: int) -> Measured:
    """W2 with so many steps per instance."""
    named = ((f"W2, {size:,} steps", size) for size in sizes)
    return _sized(named, partial(sequence, made), "steps", repeat)


def widths(made: Cluster, sizes: Sequence[int], repeat: int) -> Measured:
    """W3 with so many steps at once."""
    named = ((f"W3, {size:,} parallel", size) for size in sizes)
    return _sized(named, partial(parallel, made), "parallel", repeat)


def _sized(
    named: Iterable[tuple[str, int]], workload: Callable[[int], Figures], series: str, repeat: int
) -> Measured:
    """``flatness`` is ms/step beside that of the first size of at least 100: 1 if cost does not grow with size."""
    measure = None
    for name, size in named:
        one = repeated(partial(workload, size), repeat, "steps_per_s") | {"series": series, "x": size}
        if size >= LONG:
            per_step = one["wall_s"] / one["steps"]
            measure = measure or per_step
            one["flatness"] = per_step / measure
        yield name, one


def past(sizes: Sequence[int], instances: int, runs: int, say: Say) -> Measured:
    """W1 beside so many finished instances, and in an empty database, by turns: A B A B; the ratio of the medians."""
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
            yield (
                f"W1, {size:,} finished",
                _beside(empty, full, instances, runs) | {"series": "past", "x": size},
            )


def _beside(empty: Cluster, full: Cluster, instances: int, runs: int) -> Figures:
    """Figures of ``full``; ``ratio`` is its throughput beside that of ``empty``, ``cpu_ratio`` its CPU per step."""
    with_past: list[Figures] = []
    without: list[Figures] = []
    for _ in range(runs):
        without.append(throughput(empty, instances) | {"lone_p50_ms": lone(empty, 20)["p50_ms"]})
        with_past.append(throughput(full, instances) | {"lone_p50_ms": lone(full, 20)["p50_ms"]})

    def median(all_figures: list[Figures], key: str) -> Any:
        return statistics.median(one[key] for one in all_figures)

    def cpu(all_figures: list[Figures]) -> Any:
        return statistics.median(sum(one["cpu_us_per_step"].values()) for one in all_figures)

    middle = sorted(with_past, key=lambda one: float(one["steps_per_s"]))[runs // 2]
    return middle | {
        "ratio": median(with_past, "steps_per_s") / median(without, "steps_per_s"),
        "cpu_ratio": cpu(with_past) / cpu(without),
        "lone_ratio": median(with_past, "lone_p50_ms") / median(without, "lone_p50_ms"),
        "all_steps_per_s": [one["steps_per_s"] for one in with_past],
        "empty_steps_per_s": [one["steps_per_s"] for one in without],
        "empty_cpu_us_per_step": [one["cpu_us_per_step"] for one in without],
    }
