"""Queues cut anew, and an account moved from one coordinator to many, while instances come, run, sleep and wake."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import Orchestrator
from orchestrator.client.control import layout
from orchestrator.dev import servers as embedded
from tests.chaos import brief, harness
from tests.chaos.harness import FIGURES, SOAK, Cluster, until

INSTANCES = 1500 if SOAK else 300
AT_ONCE = 10
EVERY_S = 0.25
LATE_S = 5.0

pytestmark = pytest.mark.timeout(300)

Change = Callable[[Orchestrator], object]


@pytest.fixture(scope="module")
def pair() -> Iterator[embedded.Servers]:
    with harness.pair(fsync=False) as found:
        yield found


def to_sixty_four(client: Orchestrator) -> object:
    return layout.reshard(client, 64, "chaos-brief")


def to_many(client: Orchestrator) -> object:
    return layout.coordinate(client, "many", 8)


def to_one(client: Orchestrator) -> object:
    return layout.coordinate(client, "one")


def queue_up(cluster: Cluster, numbers: range) -> None:
    """Create these in the queue, without a slot: in a transaction of the client's own."""
    with cluster.client.engine.begin() as connection:
        for n in numbers:
            brief.brief.create(n, id=f"brief-{n}", orchestrator=cluster.client, connection=connection)
    FIGURES.instances += len(numbers)


# How long each instance stood in the queue, every time.
STOOD = """
WITH moves AS (
  SELECT instance_id, 0 AS seq, 'queued' AS status, created_at AS at FROM unnest(%s::uuid[]) AS w(instance_id)
    JOIN orchestrator_instances ON id = w.instance_id
  UNION ALL SELECT instance_id, seq, status, at FROM orchestrator_transitions WHERE instance_id = ANY(%s)),
pairs AS (SELECT status, at, lead(at) OVER (PARTITION BY instance_id ORDER BY seq) AS until FROM moves)
SELECT extract(epoch FROM until - at)::float8 FROM pairs WHERE status = 'queued' ORDER BY 1 DESC
"""


def owned_by_all(cluster: Cluster, shards: int) -> bool:
    """Whether so many shards have a living owner, and none other is without."""
    (found,) = cluster.rows(
        "SELECT count(*), count(*) FILTER (WHERE w.shards_until > clock_timestamp()) FROM orchestrator_shards s "
        "LEFT JOIN orchestrator_workers w ON w.id = s.owner WHERE s.account = %s AND s.workflow = 'chaos-brief'",
        cluster.account,
    )
    return bool(found == (shards, shards))


@pytest.mark.parametrize(
    ("before", "shards", "change", "cut"),
    [(None, 4, to_sixty_four, 64), (to_one, 1, to_many, 8), (None, 4, to_one, 1)],
    ids=["4-64", "one-many", "many-one"],
)
def test_a_queue_is_cut_anew_under_load(
    pair: embedded.Servers, tmp_path: Path, before: Change | None, shards: int, change: Change, cut: int
) -> None:
    """semantics §6: changing the number of shards, or moving an account from one coordinator (V1) to many (V2) and
    back, happens live: nothing is lost, run twice, or stands in the queue for more than five seconds while slots are
    free; the old shards drain and are gone."""
    with Cluster(pair, tmp_path) as cluster:
        FIGURES.runs += 1
        if before is not None:
            before(cluster.client)
        for n in range(2):
            cluster.worker(
                f"worker{n}", restart=False, wait=False, ORCHESTRATOR_WORKFLOWS="tests.chaos.brief"
            )
        until("the first shards have owners", lambda: owned_by_all(cluster, shards))
        pause = threading.Event()
        for first in range(0, INSTANCES, AT_ONCE):
            queue_up(cluster, range(first, first + AT_ONCE))
            if first == INSTANCES // 3 // AT_ONCE * AT_ONCE:
                change(cluster.client)
            pause.wait(EVERY_S)
        cluster.ids.update(
            cluster.rows("SELECT name_id, id FROM orchestrator_instances WHERE account = %s", cluster.account)
        )
        names = list(cluster.ids)
        assert len(names) == INSTANCES
        until("all are finished", lambda: cluster.finished(names))
        cluster.judge(names)
        for n in range(INSTANCES):
            assert brief.brief.get(f"brief-{n}", orchestrator=cluster.client).status().output == n + 2
        ids = list(cluster.ids.values())
        bodies = cluster.rows("SELECT count(*) FROM chaos_bodies WHERE instance_id = ANY(%s)", ids)
        assert bodies == [(2 * INSTANCES,)], "some body was run twice"
        stood = [row[0] for row in cluster.rows(STOOD, ids, ids)]
        assert len(stood) >= INSTANCES
        assert stood[0] < LATE_S, stood[:20]
        used = dict(
            cluster.rows(
                "SELECT shard, count(*) FROM orchestrator_instances WHERE account = %s GROUP BY 1",
                cluster.account,
            )
        )
        assert min(used) < shards <= max(used) < shards + cut
        until("the old shards have drained", lambda: owned_by_all(cluster, cut))
