"""How many instances run at once, while workers are killed and Redis is wiped: never more than the limit, but for what
one cycle granted before a wipe was seen; and in the end no slot is left behind.

What runs is counted twice: rows of Postgres that hold a slot, each tenth of a second; and bodies, by what they noted.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
import redis

from bench.cluster import Cluster
from bench.completion import Crowd
from bench.control import notes
from bench.control.flows import FOLDER, brief
from bench.control.verdicts import Findings, Stage
from orchestrator.client.control.limits import set_limits
from orchestrator.workflow.status import HOLDS_SLOT

LOOK_S = 0.1
STAY_S = 2.0
LEASE_S = 30.0
"""Of a slot."""
_HOLDING = """
SELECT count(*) FROM orchestrator_instances WHERE account = %s AND workflow = %s AND status = ANY(%s)
  AND created_at > '-infinity'
"""
_GRANTED = """
SELECT max(count) FROM (SELECT count(*) FROM orchestrator_transitions WHERE status = 'running'
  GROUP BY date_trunc('second', at)) AS grants
"""


@dataclass
class Watch:
    """How many rows held a slot, as (monotonic instant, count)."""

    seen: list[tuple[float, int]] = field(default_factory=list)

    def most(self, after: float = 0.0, before: float = float("inf")) -> int:
        return max((count for at, count in self.seen if after <= at <= before), default=0)

    def over(self, limit: int) -> float:
        """Seconds in all in which more than ``limit`` were seen."""
        pairs = zip(self.seen, self.seen[1:], strict=False)
        return sum(later - at for (at, count), (later, _) in pairs if count > limit)


@contextmanager
def watching(cluster: Cluster, workflow: str) -> Iterator[Watch]:
    """Count on a connection and in a thread of its own."""
    watch, end = Watch(), threading.Event()
    url = cluster.pair.database_url.replace("postgresql+psycopg://", "postgresql://", 1)
    account, holding = cluster.orchestrator.settings.account, [str(status) for status in HOLDS_SLOT]

    def look() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SET enable_seqscan = off")
            while not end.wait(LOOK_S):
                at = time.monotonic()
                row = connection.execute(_HOLDING, (account, workflow, holding)).fetchone()
                watch.seen.append((at, row[0] if row else 0))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        end.set()
        thread.join(10)


def slots(stage: Stage) -> Findings:
    """Limit 1,000, 20,000 instances (``--quick``: 40 and 600); a kill, a wipe, a kill."""
    limit, instances = stage.size(1000, 40), stage.size(20_000, 600)
    cluster, environment = stage.cluster, _environment(stage, limit)
    set_limits(cluster.orchestrator, concurrency=limit)
    cluster.staff(2, environment)
    cluster.ready()
    crowd, deaths = Crowd(cluster, brief), {}
    findings = Findings()
    with watching(cluster, brief.name) as watch:
        for start in range(0, instances, 1000):
            many = min(1000, instances - start)
            brief.create_batch(count=many, params=STAY_S, orchestrator=cluster.orchestrator)
        crowd.wait(instances * 3 // 4)
        deaths[cluster.kill_worker(0)] = time.monotonic()
        cluster.start_worker(environment)
        crowd.wait(instances // 2)
        with redis.Redis.from_url(cluster.pair.redis_url) as client:
            client.flushall()
        wiped_at = time.monotonic()
        crowd.wait(instances // 4)
        deaths[cluster.kill_worker(0)] = time.monotonic()
        cluster.start_worker(environment)
        crowd.wait(0)
    crowd.check(instances)
    granted = cluster.sql(_GRANTED)[0][0]
    noted = notes.read(stage.folder)
    findings.most("rows that held a slot, before the wipe", watch.most(before=wiped_at), limit)
    findings.most("rows that held a slot, ever", watch.most(), limit + granted)
    findings.most("seconds above the limit", watch.over(limit), 5.0, "s")
    findings.most("bodies at once, ever", notes.most_at_once(noted, deaths), limit + granted)
    findings.most("slots that are left at the end", _left(stage), 0)
    findings.figures |= {
        "limit": limit,
        "most granted in a second": granted,
        "rows that held a slot, after the wipe": watch.most(after=wiped_at),
        "bodies that ran": sum(note.word == "began" for note in noted),
    }
    return findings


def _environment(stage: Stage, limit: int) -> dict[str, str]:
    return {
        "ORCHESTRATOR_WORKFLOWS": "bench.control.flows",
        "ORCHESTRATOR_CONCURRENCY": str(2 * limit),
        FOLDER: str(stage.folder),
    }


def _left(stage: Stage) -> int:
    """Leases that are there after those of the dead have ended."""
    tag = stage.cluster.orchestrator.settings.hash_tag
    with redis.Redis.from_url(stage.cluster.pair.redis_url) as client:
        deadline = time.monotonic() + LEASE_S + 5
        while True:
            milliseconds = int(client.time()[0]) * 1000
            held = sum(
                client.zcount(key, milliseconds, "+inf")
                for key in client.scan_iter(f"{tag}:slots*")
                if client.type(key) == b"zset"
            )
            if not held or time.monotonic() > deadline:
                return int(held)
            time.sleep(0.2)
