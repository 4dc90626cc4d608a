"""W1 to W4 and the lone instance, which peers are compared on; and W1's steps undone again.

Owns: what is run, and what is read off it. Does not own: the workers (whoever calls has started them).
"""

from __future__ import annotations

import time
from typing import Any

from bench.cluster import Cluster
from bench.completion import PATIENCE_S, Crowd
from bench.figures import Figures, Meter, percentiles, repeated
from bench.flows import five_steps, five_undone, many_steps, one_await, parallel_steps, three_steps, undone
from orchestrator import Status, Workflow

__all__ = [
    "Figures",
    "awaiting",
    "lone",
    "parallel",
    "repeated",
    "rollback",
    "saga",
    "sequence",
    "throughput",
    "warm_up",
]

STEPS = 5
OUTSTANDING = 1000
AWAIT_S = 2.0

_RUNNING = """
SELECT extract(epoch FROM claimed_at)::float8, extract(epoch FROM finished_at)::float8
FROM orchestrator_steps WHERE instance_id > %s AND kind = 'do'
"""

_UNDONE = """
SELECT count(*) FROM orchestrator_instances i WHERE i.id > %s AND i.rollback::json ->> 'outcome' = 'complete'
AND 3 = (SELECT count(*) FROM orchestrator_steps s WHERE s.instance_id = i.id AND s.kind = 'rollback'
  AND s.status = 'done')
"""

_SAGA = """
SELECT extract(epoch FROM min(started_at))::float8,
  extract(epoch FROM max(finished_at) FILTER (WHERE kind = 'do'))::float8,
  (SELECT extract(epoch FROM max(began))::float8 FROM (SELECT min(started_at) AS began FROM orchestrator_steps
    WHERE instance_id > %s AND kind = 'rollback' GROUP BY instance_id) chains),
  extract(epoch FROM max(finished_at) FILTER (WHERE kind = 'rollback'))::float8,
  count(*) FILTER (WHERE kind = 'rollback' AND status = 'done')
FROM orchestrator_steps WHERE instance_id > %s
"""


def warm_up(cluster: Cluster, instances: int = 10) -> None:
    """Wait for the workers, and let Postgres prepare its statements."""
    cluster.ready()
    for _ in range(instances):
        five_steps.create(orchestrator=cluster.orchestrator).result(60)


def lone(cluster: Cluster, runs: int) -> Figures:
    """One instance at a time, from ``create`` to ``result``."""
    taken = []
    meter = Meter(cluster)
    for _ in range(runs):
        began = time.perf_counter()
        five_steps.create(orchestrator=cluster.orchestrator).result(60)
        taken.append(time.perf_counter() - began)
    return meter.read(runs * STEPS) | percentiles(taken)


def throughput(
    cluster: Cluster,
    instances: int,
    *,
    workflow: Workflow = five_steps,
    params: Any = None,
    steps: int = STEPS,
    outstanding: int = OUTSTANDING,
    patience_s: float = PATIENCE_S,
    end: Status = Status.COMPLETE,
) -> Figures:
    """W1: ``instances`` of five steps, at most 1,000 outstanding, created in batches of half as many.

    Raises ``Incomplete`` unless all of them reach ``end``.
    """
    crowd = Crowd(cluster, workflow)
    batch = max(1, outstanding // 2)
    meter = Meter(cluster)
    for start in range(0, instances, batch):
        if start >= outstanding:
            crowd.wait(outstanding - batch, patience_s)
        many = min(batch, instances - start)
        workflow.create_batch(count=many, params=params, orchestrator=cluster.orchestrator)
    crowd.wait(0, patience_s)
    figures = meter.read(instances * steps)
    crowd.check(instances, end)
    return figures


def sequence(cluster: Cluster, steps: int) -> Figures:
    """W2: one instance of ``steps`` sequential steps; time per step at its beginning and at its end."""
    meter = Meter(cluster)
    instance = many_steps.create(steps, orchestrator=cluster.orchestrator)
    instance.result(steps * 0.1 + 60)
    figures = meter.read(steps)
    if steps < 2:
        return figures
    ended = [s.finished_at.timestamp() for s in instance.steps() if s.finished_at is not None]
    tenth = max(1, steps // 10)
    first = (ended[tenth] - ended[0]) / tenth * 1000
    last = (ended[-1] - ended[-1 - tenth]) / tenth * 1000
    return figures | {"first_tenth_ms": first, "last_tenth_ms": last, "growth": last / first}


def parallel(cluster: Cluster, steps: int) -> Figures:
    """W3: one instance of ``steps`` steps at once, from ``create`` to ``result``."""
    meter = Meter(cluster)
    instance = parallel_steps.create(steps, orchestrator=cluster.orchestrator)
    done = instance.result(steps * 0.1 + 60)
    figures = meter.read(steps)
    if done != steps:
        raise AssertionError(f"the instance of {steps} parallel steps says that it ran {done}")
    return figures


def awaiting(cluster: Cluster, instances: int, seconds: float = AWAIT_S) -> Figures:
    """W4: ``instances`` at once, one step each that awaits ``seconds``: makespan, and memory of the workers.

    Needs workers whose ``ORCHESTRATOR_CONCURRENCY`` and ``ORCHESTRATOR_CACHED_REPLAYS`` allow for so many.
    """
    crowd = Crowd(cluster, one_await)
    idle = cluster.resident()
    meter = Meter(cluster)
    for start in range(0, instances, 1000):
        many = min(1000, instances - start)
        one_await.create_batch(count=many, params=seconds, orchestrator=cluster.orchestrator)
    created = meter.elapsed()
    crowd.wait(0, PATIENCE_S + instances / 50)
    figures = meter.read(instances)
    crowd.check(instances)
    return figures | {
        "created_s": created,
        "most_at_once": _most_at_once(cluster.sql(_RUNNING, (crowd.mark,))),
        "kb_per_instance": (cluster.peak() - idle) / instances / 1024,
    }


def rollback(cluster: Cluster, instances: int) -> Figures:
    """Instances that fail after three steps and run three handlers, beside such that do not fail.

    ``steps`` counts steps and handlers; ``handler_cpu_us`` is what a handler adds, by process.
    """
    well = throughput(cluster, instances, workflow=three_steps, steps=3)
    mark = Crowd(cluster, undone).mark
    failed = throughput(cluster, instances, workflow=undone, steps=6, end=Status.ERRORED)
    undone_well = cluster.sql(_UNDONE, (mark,))[0][0]
    if undone_well != instances:
        raise AssertionError(f"{undone_well} of {instances} instances were rolled back completely")
    cost, less = failed["cpu_us_per_step"], well["cpu_us_per_step"]
    return failed | {
        "without_failure_steps_per_s": well["steps_per_s"],
        "handler_cpu_us": {role: 2 * cost[role] - less[role] for role in cost},
    }


def saga(cluster: Cluster, instances: int) -> Figures:
    """Instances of five steps that then fail, all at one moment, and run five handlers each.

    ``all_begun_s``: when the last chain began after that moment; ``undo_s``: when the last had ended. ``wall_s`` leaves
    out what was waited for the moment. Raises ``AssertionError`` if it came before the last step.
    """
    crowd = Crowd(cluster, five_undone)
    moment = time.time() + 5 + instances / 40
    meter = Meter(cluster)
    for start in range(0, instances, 500):
        many = min(500, instances - start)
        five_undone.create_batch(count=many, params=moment, orchestrator=cluster.orchestrator)
    crowd.wait(0, PATIENCE_S + moment - time.time())
    began, done, all_began, undone_at, handlers = cluster.sql(_SAGA, (crowd.mark, crowd.mark))[0]
    if done > moment or handlers != STEPS * instances:
        raise AssertionError(
            f"{handlers} handlers ran; the last step ended {moment - done:.1f} s before the failures"
        )
    forward_s, undo_s = done - began, undone_at - moment
    figures = meter.read(2 * STEPS * instances, forward_s + undo_s)
    crowd.check(instances, Status.ERRORED)
    return figures | {
        "forward_per_s": STEPS * instances / forward_s,
        "handlers_per_s": STEPS * instances / undo_s,
        "all_begun_s": all_began - moment,
        "undo_s": undo_s,
    }


def _most_at_once(spans: list[tuple[Any, ...]]) -> int:
    """How many spans of (begin, end) overlapped at most."""
    edges = sorted([(begin, 1) for begin, _ in spans] + [(end, -1) for _, end in spans])
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most
