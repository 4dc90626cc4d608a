"""What a run gives: wall time, CPU by process, memory, percentiles.

Owns: the meter and the arithmetic. Does not own: what is run, nor how figures are shown (``report``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import psutil

from bench.cluster import Cluster

Figures = dict[str, Any]
"""Names end in their units: ``wall_s``, ``p50_ms``, ``worker_peak_mib``, ``cpu_us_per_step``."""

MIB = 1024 * 1024


class Meter:
    """Runs from its making to ``read``."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        cluster.forget_peak()
        self._machine = _busy()
        self._cpu = cluster.cpu()
        self._began = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._began

    def read(self, steps: int, wall: float | None = None) -> Figures:
        """The figures of ``steps`` steps that took ``wall`` seconds (until now, if not given).

        The system counts CPU in ticks of 10 ms, so that short runs say little. ``other_cpus``: how many processors
        everything else on this machine kept busy meanwhile; with much of that, figures say little too.
        """
        if wall is None:
            wall = self.elapsed()
        after = self._cluster.cpu()
        measured, machine = self.elapsed(), _busy() - self._machine
        others = machine - sum(after[role] - self._cpu[role] for role in after)
        return {
            "steps": steps,
            "wall_s": wall,
            "steps_per_s": steps / wall,
            "cpu_us_per_step": {role: (after[role] - self._cpu[role]) / steps * 1e6 for role in after},
            "worker_peak_mib": self._cluster.peak() / MIB,
            "other_cpus": max(0.0, others / measured),
        }


def _busy() -> float:
    """Seconds that the processors of this machine worked, since it started."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, kind, 0.0) for kind in ("user", "nice", "system", "irq", "softirq")))


def percentiles(seconds: Iterable[float], prefix: str = "") -> Figures:
    """Median, 99th percentile and maximum, in milliseconds; each is a value that was measured."""
    values = sorted(seconds)
    if not values:
        raise ValueError("there is nothing to take percentiles of: the workload measured no value")
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        f"{prefix}{name}_ms": values[max(0, math.ceil(part * len(values)) - 1)] * 1000
        for name, part in at.items()
    } | {f"{prefix}runs": len(values)}


def repeated(run: Callable[[], Figures], times: int, key: str) -> Figures:
    """The run whose ``key`` is the median, with all values beside it."""
    all_figures = sorted((run() for _ in range(times)), key=lambda figures: float(figures[key]))
    return all_figures[len(all_figures) // 2] | {f"all_{key}": [figures[key] for figures in all_figures]}
