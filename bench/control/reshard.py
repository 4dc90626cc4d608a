"""Queues are cut anew, and an account moves from one coordinator to many, while instances are created all the time:
none is lost, none is late, none runs twice.

Instances come in bursts, half of them with a sleep; the limit is so low that they queue, and so high that the queue
does not grow. Late is what waits in the queue by five seconds more than what came before the change did at most, or
oversleeps by five seconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from bench.completion import Crowd
from bench.control import notes
from bench.control.flows import FOLDER, brief, napping
from bench.control.verdicts import Findings, Stage, percentile
from orchestrator.client.control.layout import coordinate, reshard
from orchestrator.client.control.limits import set_limits

PER_SECOND = 60
APART_S = 0.5
"""So much of a second's instances come at once, and queue for a moment."""
STAY_S = 0.5
NAP_S = 2.0
LATE_S = 5.0
WORKERS = 2
_WAITED = """
SELECT extract(epoch FROM created_at)::float8, extract(epoch FROM started_at - created_at)::float8
FROM orchestrator_instances WHERE id > %s AND started_at IS NOT NULL
"""
_OVERSLEPT = """
SELECT extract(epoch FROM finished_at - started_at)::float8 - %s FROM orchestrator_steps
WHERE instance_id > %s AND kind = 'sleep' AND finished_at IS NOT NULL
"""
_AWOKEN = """
SELECT extract(epoch FROM n.at - t.at)::float8 FROM orchestrator_transitions t
CROSS JOIN LATERAL (SELECT at FROM orchestrator_transitions n WHERE n.instance_id = t.instance_id AND n.seq > t.seq
  ORDER BY n.seq LIMIT 1) n
WHERE t.instance_id > %s AND t.status = 'queued'
"""
_DRAINING = "SELECT count(*) FROM orchestrator_layouts WHERE account = %s AND workflow = %s"
_NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


def resharding(stage: Stage) -> Findings:
    """Phases of 15 s (``--quick``: 4 s) each: one coordinator; many with 4 shards; 64 shards; one coordinator again."""
    cluster, phase_s = stage.cluster, float(stage.size(15, 4))
    cluster.staff(
        WORKERS,
        {
            "ORCHESTRATOR_WORKFLOWS": "bench.control.flows",
            FOLDER: str(stage.folder),
        },
    )
    cluster.ready()
    set_limits(cluster.orchestrator, concurrency=stage.size(24, 8))
    coordinate(cluster.orchestrator, "one")
    brief.create(0.0, orchestrator=cluster.orchestrator).result(60)
    first, second = Crowd(cluster, brief), Crowd(cluster, napping)
    changes: list[tuple[str, Callable[[], object]]] = [
        ("V1 to V2, 4 shards", lambda: coordinate(cluster.orchestrator, "many", 4)),
        ("4 to 64 shards", lambda: reshard(cluster.orchestrator, 64)),
        ("V2 to V1", lambda: coordinate(cluster.orchestrator, "one")),
    ]
    began_at = float(cluster.sql(_NOW)[0][0])
    load = Load(stage, phase_s * (len(changes) + 1))
    load.thread.start()
    for _, change in changes:
        time.sleep(phase_s)
        change()
    load.thread.join()
    changed_at = began_at + phase_s
    first.wait(0)
    second.wait(0)
    first.check(load.created[0])
    second.check(load.created[1])

    waited = cluster.sql(_WAITED, (first.mark,))
    before = max((wait for at, wait in waited if at < changed_at), default=0.0)
    after = [wait for at, wait in waited if at >= changed_at]
    awoken = [row[0] for row in cluster.sql(_AWOKEN, (second.mark,))]
    overslept = [row[0] for row in cluster.sql(_OVERSLEPT, (NAP_S, second.mark))]
    findings = Findings()
    findings.most("lost", sum(load.created) - len(waited), 0)
    findings.most("longest in the queue, beyond what it was before", max(after) - before, LATE_S, "s")
    findings.most("latest wake-up", max(overslept), LATE_S, "s")
    findings.most("longest that an awoken one queued", max(awoken, default=0.0), LATE_S, "s")
    findings.most("bodies that ran twice", notes.again(notes.read(stage.folder)), 0)
    findings.most("generations that have not drained", _left(stage), 0)
    findings.figures |= {
        "created": sum(load.created),
        "changes": ", ".join(name for name, _ in changes),
        "longest in the queue before the first": before,
        "awoken ones that queued": len(awoken),
        "in the queue, median after it": percentile(after, 0.5),
        "in the queue, 99th percentile after it": percentile(after, 0.99),
        "wake-ups late by, 99th percentile": percentile(overslept, 0.99),
    }
    return findings


class Load:
    """Creates so many a second, for a while, in a thread of its own."""

    def __init__(self, stage: Stage, seconds: float) -> None:
        self.created = [0, 0]
        """Of those without a sleep, and of those with one."""
        self._where = stage.cluster.orchestrator
        self._until = time.monotonic() + seconds
        self._half = round(stage.size(PER_SECOND, PER_SECOND // 3) * APART_S / 2)
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        due = time.monotonic()
        while due < self._until:
            made = brief.create_batch(count=self._half, params=STAY_S, orchestrator=self._where)
            self.created[0] += len(made.created)
            made = napping.create_batch(count=self._half, params=NAP_S, orchestrator=self._where)
            self.created[1] += len(made.created)
            due += APART_S
            time.sleep(max(0.0, due - time.monotonic()))


def _left(stage: Stage, patience_s: float = 60.0) -> int:
    """Generations beyond the last of each workflow, once those that drained had time to go."""
    cluster, deadline = stage.cluster, time.monotonic() + patience_s
    account = cluster.orchestrator.settings.account
    while True:
        left = sum(cluster.sql(_DRAINING, (account, each.name))[0][0] - 1 for each in (brief, napping))
        if not left or time.monotonic() > deadline:
            return int(left)
        time.sleep(0.5)
