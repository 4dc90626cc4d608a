"""Instances that wait: for events and for moments. How late they go on.

Owns: events at a steady rate, sleeps that end at a steady rate. Lateness is taken from recorded instants, which are all
the database's time as each process keeps it; a step's ``finished_at`` is the moment the turn that ended it began to
decide, a few milliseconds before its commit.
"""

from __future__ import annotations

import random
import time
from concurrent.futures import ThreadPoolExecutor

from bench.cluster import Cluster
from bench.completion import Crowd
from bench.figures import Figures, Meter, percentiles
from bench.flows import naps, one_event
from orchestrator import Status, WorkflowInstance

SENDERS = 16
SHORTEST_S, LONGEST_S = 1.0, 5.0
SEED = 7

_RECEIVED = """
SELECT i.name_id, (s.output::json ->> 'timestamp')::float8, extract(epoch FROM s.finished_at)::float8,
  extract(epoch FROM i.ended_at)::float8
FROM orchestrator_steps s JOIN orchestrator_instances i ON i.id = s.instance_id
WHERE s.instance_id > %s AND s.kind = 'wait'
"""
# A finished sleep keeps no due time; it was due its duration after its start. Keys are sleep:nap:<count>.
_LATE = """
SELECT extract(epoch FROM s.finished_at)::float8, extract(epoch FROM s.finished_at - s.started_at)::float8
  - (p.params::json ->> (split_part(s.key, ':', 3)::int - 1))::float8
FROM orchestrator_steps s JOIN orchestrator_payloads p ON p.instance_id = s.instance_id
WHERE s.instance_id > %s AND s.kind = 'sleep'
"""


def events(cluster: Cluster, instances: int, rate: float) -> Figures:
    """``send_event`` at ``rate`` per second, each to an instance of its own that waits for it.

    ``p50_ms`` …: from the event's ``received_at`` to the wait's ``finished_at``. ``sent_…``: from the call of
    ``send_event`` to the same. ``call_…``: what the call takes. ``behind_…``: how late calls were made.
    """
    crowd = Crowd(cluster, one_event)
    waiting: list[WorkflowInstance] = []
    for start in range(0, instances, 1000):
        many = min(1000, instances - start)
        waiting += one_event.create_batch(count=many, orchestrator=cluster.orchestrator).created
    crowd.wait(status=(Status.QUEUED, Status.RUNNING))
    meter = Meter(cluster)
    sent = _send(cluster, waiting, rate)
    sending_s = meter.elapsed()
    crowd.wait()
    figures = meter.read(instances)
    crowd.check(instances)
    rows = cluster.sql(_RECEIVED, (crowd.mark,))
    return (
        figures
        | percentiles(finished - received for _, received, finished, _ in rows)
        | percentiles((ended - received for _, received, _, ended in rows), "ended_")
        | percentiles((finished - sent[name][0] for name, _, finished, _ in rows), "sent_")
        | percentiles((took for _, took, _ in sent.values()), "call_")
        | percentiles((behind for _, _, behind in sent.values()), "behind_")
        | {"wanted_per_s": rate, "events_per_s": instances / sending_s}
    )


def _send(
    cluster: Cluster, instances: list[WorkflowInstance], rate: float
) -> dict[str, tuple[float, float, float]]:
    """Per instance: the database's time at the call, the call's duration, and by how much it was made too late."""
    cluster.orchestrator.now()
    began = time.perf_counter() + 0.05

    def send(number: int) -> tuple[float, float, float]:
        planned = began + number / rate
        time.sleep(max(0.0, planned - time.perf_counter()))
        at, called = cluster.orchestrator.now(), time.perf_counter()
        instances[number].send_event("go", number)
        return at, time.perf_counter() - called, called - planned

    with ThreadPoolExecutor(SENDERS) as senders:
        made = list(senders.map(send, range(len(instances))))
    return {instance.id: one for instance, one in zip(instances, made, strict=True)}


def sleeps(cluster: Cluster, rate: float, rounds: int) -> Figures:
    """Instances that sleep ``rounds`` times; so many, and so long, that ``rate`` wake up in every second.

    The first sleep takes 1 to 5 s, each further one 4 s, so that they stay evenly spread. ``p50_ms`` … is lateness.
    """
    chance = random.Random(SEED)
    again = LONGEST_S - SHORTEST_S
    instances = round(rate * again)
    entries = [
        {"params": [round(chance.uniform(SHORTEST_S, LONGEST_S), 3), *[again] * (rounds - 1)]}
        for _ in range(instances)
    ]
    crowd = Crowd(cluster, naps)
    meter = Meter(cluster)
    for start in range(0, instances, 1000):
        naps.create_batch(entries[start : start + 1000], orchestrator=cluster.orchestrator)
    crowd.wait()
    figures = meter.read(instances * rounds)
    crowd.check(instances)
    rows = cluster.sql(_LATE, (crowd.mark,))
    if len(rows) != instances * rounds:
        raise AssertionError(f"{len(rows)} of {instances * rounds} sleeps are recorded")
    ends = [finished for finished, _ in rows]
    rates = {"wanted_per_s": rate, "wakeups_per_s": len(rows) / (max(ends) - min(ends))}
    return figures | percentiles(late for _, late in rows) | rates
