"""The workloads: what is run, and what is read off it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from bench.cluster import Cluster
from bench.flows import five_steps, many_steps

Figures = dict[str, Any]
STEPS = 5
OUTSTANDING = 1000
RESULT_S = 300.0


def warm_up(cluster: Cluster) -> None:
    """Wait for the workers, and let Postgres prepare its statements."""
    for _ in range(10):
        five_steps.create().result(60)


def lone(cluster: Cluster, runs: int) -> Figures:
    """One instance at a time: its latency in milliseconds."""
    taken = []
    for _ in range(runs):
        began = time.perf_counter()
        five_steps.create().result(60)
        taken.append((time.perf_counter() - began) * 1000)
    taken.sort()
    return {"runs": runs, "p50_ms": statistics.median(taken), "p99_ms": taken[int(runs * 0.99) - 1]}


def throughput(cluster: Cluster, instances: int) -> Figures:
    """W1: ``instances`` of five steps, at most 1,000 outstanding."""
    before = cluster.cpu()
    began = time.perf_counter()
    waiting = []
    for start in range(0, instances, OUTSTANDING):
        waiting += five_steps.create_batch(count=min(OUTSTANDING, instances - start)).created
        if start + OUTSTANDING < instances:
            for instance in waiting[: OUTSTANDING // 2]:
                instance.result(RESULT_S)
            del waiting[: OUTSTANDING // 2]
    for instance in waiting:
        instance.result(RESULT_S)
    wall = time.perf_counter() - began
    return _figures(instances * STEPS, wall, before, cluster.cpu())


def sequence(cluster: Cluster, steps: int) -> Figures:
    """W2: one instance of ``steps`` sequential steps; time per step at its beginning and at its end."""
    before = cluster.cpu()
    began = time.perf_counter()
    instance = many_steps.create(steps)
    instance.result(steps * 0.1 + 60)
    wall = time.perf_counter() - began
    ended = [s.finished_at.timestamp() for s in instance.steps() if s.finished_at is not None]
    tenth = max(1, steps // 10)
    first = (ended[tenth] - ended[0]) / tenth * 1000
    last = (ended[-1] - ended[-1 - tenth]) / tenth * 1000
    figures = _figures(steps, wall, before, cluster.cpu())
    return figures | {"first_tenth_ms": first, "last_tenth_ms": last, "growth": last / first}


def repeated(run: Callable[[], Figures], times: int, key: str) -> Figures:
    """The run whose ``key`` is the median, with all values beside it."""
    all_figures = sorted((run() for _ in range(times)), key=lambda figures: figures[key])
    return all_figures[len(all_figures) // 2] | {f"all_{key}": [figures[key] for figures in all_figures]}


def _figures(steps: int, wall: float, before: dict[str, float], after: dict[str, float]) -> Figures:
    cpu = {role: (after[role] - before[role]) / steps * 1e6 for role in before}
    return {"steps": steps, "wall_s": wall, "steps_per_s": steps / wall, "cpu_us_per_step": cpu}
