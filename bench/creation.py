"""How long ``create`` takes, and how many instances ``create_batch`` makes in a second.

Owns: one client without any load beside it: no worker runs until everything is created. Does not own: limits on
creation (none is set here).
"""

from __future__ import annotations

import time

from bench.cluster import Cluster
from bench.completion import Crowd
from bench.figures import Figures, Meter, percentiles
from bench.flows import no_step

BATCH = 1000


def singly(cluster: Cluster, runs: int) -> Figures:
    """``create()``, one after the other; steps are instances."""
    no_step.create(orchestrator=cluster.orchestrator)  # opens the connections
    taken = []
    meter = Meter(cluster)
    for _ in range(runs):
        began = time.perf_counter()
        no_step.create(orchestrator=cluster.orchestrator)
        taken.append(time.perf_counter() - began)
    return meter.read(runs) | percentiles(taken)


def batches(cluster: Cluster, instances: int) -> Figures:
    """``create_batch()`` of up to 1,000 at a time; steps are instances, latencies those of a batch."""
    taken = []
    meter = Meter(cluster)
    for start in range(0, instances, BATCH):
        began = time.perf_counter()
        no_step.create_batch(count=min(BATCH, instances - start), orchestrator=cluster.orchestrator)
        taken.append(time.perf_counter() - began)
    return meter.read(instances) | percentiles(taken, "batch_")


def creation(cluster: Cluster, runs: int, instances: int) -> dict[str, Figures]:
    """Both, on a cluster whose workers are stopped for it; then a worker runs what was created."""
    cluster.staff(0)
    crowd = Crowd(cluster, no_step)
    figures = {"create": singly(cluster, runs), "create_batch": batches(cluster, instances)}
    cluster.staff(1)
    crowd.wait()
    crowd.check(1 + runs + instances)
    return figures
