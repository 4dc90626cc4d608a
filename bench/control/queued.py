"""Two million queued instances of one workflow beside a thousand of another: what is started each second, how long a
page of a list takes, and when the few get their turn, beside the same with twenty thousand queued.

The account may run 200 at once, so that all else queues. Instances end in their first turn: granting is what is
measured.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from bench.cluster import Cluster
from bench.control.filling import Filled, fill
from bench.control.flows import flood, trickle
from bench.control.verdicts import Findings, Stage, percentile
from orchestrator.client.control.limits import set_limits
from orchestrator.client.orchestrator import Orchestrator

LIMIT = 200
WORKERS = 2
CYCLES_S = 2.0
"""Two cycles."""
PATIENCE_S = 300.0
_ENDED = """
SELECT count(*) FROM orchestrator_instances WHERE account = %s AND workflow = %s AND status = 'complete'
  AND created_at > '-infinity'
"""
_STARTED = """
SELECT extract(epoch FROM started_at - created_at)::float8 FROM orchestrator_instances
WHERE account = %s AND workflow = %s
"""


@dataclass
class Lists:
    """Pages of a list, one after the other, in a thread of its own, and how long each took (seconds)."""

    where: Orchestrator
    took: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Lists:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)

    def _run(self) -> None:
        """From the newest on, by cursor, then from the oldest on; all statuses, then the queued alone."""
        turn, cursor = 0, None
        while not self._end.wait(0.01):
            began = time.perf_counter()
            page = flood.list(
                None if turn % 2 else "queued", 100, cursor, turn % 4 < 2, orchestrator=self.where
            )
            self.took.append(time.perf_counter() - began)
            cursor = page.cursor
            if len(self.took) % 25 == 0 or cursor is None:
                turn, cursor = turn + 1, None


@dataclass
class Seen:
    """What one size came to."""

    filled: Filled
    grants_per_s: float
    list_p99_s: float
    few: list[float]
    """How long the instances of the other workflow waited."""


def queued(stage: Stage) -> Findings:
    """20,000 and 2,000,000 (``--quick``: 2,000 and 10,000), and 1,000 (50) of another workflow."""
    sizes = stage.size(20_000, 2000), stage.size(2_000_000, 10_000)
    few, grants = stage.size(1000, 50), stage.size(10_000, 1000)
    seen = []
    for place, size in enumerate(sizes):
        cluster = stage.cluster if place == 0 else stage.connect()
        stage.say(f"      {size:,} are being queued …")
        seen.append(_measured(cluster, size, min(size, sizes[0]), few, grants))
        cluster.stop_workers()
    small, large = seen
    findings = Findings()
    findings.least("grants a second, beside those with few", large.grants_per_s / small.grants_per_s, 1 / 1.5)
    findings.most("page of a list, 99th percentile, beside that", large.list_p99_s / small.list_p99_s, 1.5)
    findings.most("seconds until the other workflow's first starts", min(large.few), CYCLES_S, "s")
    due_s = CYCLES_S + few / (
        large.grants_per_s / 2
    )  # of two that queue, half of what is started is each one's
    findings.most("seconds until its last starts", max(large.few), due_s, "s")
    for size, one in zip(sizes, seen, strict=True):
        findings.figures[f"{size:,} queued"] = {
            "created per s": round(one.filled.created_per_s),
            "copied per s": round(one.filled.copied_per_s),
            "MB of the database": one.filled.bytes // 1_000_000,
            "grants per s": round(one.grants_per_s),
            "list p99 ms": round(one.list_p99_s * 1000, 1),
            "the other's waits, s: first, median, last": [
                round(value, 2) for value in (min(one.few), percentile(one.few, 0.5), max(one.few))
            ],
        }
    return findings


def _measured(cluster: Cluster, size: int, created: int, few: int, grants: int) -> Seen:
    set_limits(cluster.orchestrator, concurrency=LIMIT)
    filled = fill(cluster, size, created)
    cluster.staff(WORKERS, {"ORCHESTRATOR_WORKFLOWS": "bench.control.flows"})
    cluster.ready()
    _wait(cluster, flood.name, grants // 5)
    with Lists(cluster.orchestrator) as lists:
        before, began = _ended(cluster, flood.name), time.monotonic()
        _wait(cluster, flood.name, before + grants)
        grants_per_s = (_ended(cluster, flood.name) - before) / (time.monotonic() - began)
        trickle.create_batch(count=few, orchestrator=cluster.orchestrator)
        _wait(cluster, trickle.name, few)
    account = cluster.orchestrator.settings.account
    waits = [row[0] for row in cluster.sql(_STARTED, (account, trickle.name))]
    return Seen(filled, grants_per_s, percentile(lists.took, 0.99), waits)


def _ended(cluster: Cluster, workflow: str) -> int:
    return int(cluster.sql(_ENDED, (cluster.orchestrator.settings.account, workflow))[0][0])


def _wait(cluster: Cluster, workflow: str, ended: int) -> None:
    """Until so many have ended."""
    deadline = time.monotonic() + PATIENCE_S
    while _ended(cluster, workflow) < ended:
        if cluster.lost_workers() or time.monotonic() > deadline:
            raise TimeoutError(
                f"{ended:,} of {workflow!r} should have ended; {_ended(cluster, workflow):,} have\n"
                f"{cluster.worker_log()}"
            )
        time.sleep(0.02)
