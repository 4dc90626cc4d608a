"""As many bodies at once as there are slots, never more: on real workers, with a wipe or a death in the middle."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from orchestrator.client.control.limits import set_limits
from orchestrator.control.gatekeeping.keys import Keys
from orchestrator.dev import servers as embedded
from tests.chaos import harness
from tests.chaos.crowd import crowd
from tests.chaos.harness import FIGURES, SOAK, Cluster, Worker, until

LIMIT = 20
INSTANCES = 2000 if SOAK else 400

pytestmark = pytest.mark.timeout(300)

# How many bodies ran at once, at most: of those that began by a moment, and of all. Whoever was killed ended then.
AT_ONCE = """
WITH bodies AS (
  SELECT started_at AS began, coalesce(ended_at, to_timestamp(%(killed)s)) AS ended FROM chaos_bodies
  WHERE instance_id IN (SELECT id FROM orchestrator_instances WHERE account = %(account)s)),
moves AS (SELECT began AS at, 1 AS change FROM bodies UNION ALL SELECT ended, -1 FROM bodies),
counted AS (SELECT at, sum(change) OVER (ORDER BY at, change) AS count FROM moves)
SELECT max(count) FILTER (WHERE at < to_timestamp(%(struck)s)), max(count) FROM counted
"""

Blow = Callable[[Cluster, Worker], None]


@pytest.fixture(scope="module")
def pair() -> Iterator[embedded.Servers]:
    with harness.pair(fsync=False) as found:
        yield found


def nothing(cluster: Cluster, worker: Worker) -> None:
    return None


def wipe(cluster: Cluster, worker: Worker) -> None:
    with redis.Redis.from_url(cluster.pair.redis_url) as client:
        client.flushall()


def kill(cluster: Cluster, worker: Worker) -> None:
    worker.process.kill()


def now(cluster: Cluster) -> float:
    return float(cluster.rows("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0])


def done(cluster: Cluster) -> int:
    query = "SELECT count(*) FROM orchestrator_instances WHERE account = %s AND status = 'complete'"
    return int(cluster.rows(query, cluster.account)[0][0])


def at_once(cluster: Cluster, struck: float) -> tuple[int, int]:
    parameters: Any = {"account": cluster.account, "killed": struck, "struck": struck}
    before, ever = cluster._connected().execute(AT_ONCE, parameters).fetchone() or (0, 0)
    return int(before), int(ever)


@pytest.mark.parametrize("blow", [nothing, wipe, kill])
def test_never_more_at_once_than_there_are_slots(pair: embedded.Servers, tmp_path: Path, blow: Blow) -> None:
    """protocols §8: two workers never run more bodies at once than the limit, after a wipe of Redis at most what one
    cycle granted before it was seen; all complete, and in the end no slot is held."""
    with Cluster(pair, tmp_path) as cluster:
        FIGURES.runs += 1
        set_limits(cluster.client, concurrency=LIMIT)
        workers = [cluster.worker(f"worker{n}", ORCHESTRATOR_WORKFLOWS="tests.chaos.crowd") for n in range(2)]
        batch = [{"id": f"c{n}", "params": n} for n in range(INSTANCES)]
        for first in range(0, INSTANCES, 1000):
            cluster.create(crowd, batch[first : first + 1000])
        until("a third is done", lambda: done(cluster) >= INSTANCES // 3)
        struck = now(cluster)
        blow(cluster, workers[0])
        until("all are done", lambda: done(cluster) == INSTANCES)
        cluster.judge(list(cluster.ids))
        before, ever = at_once(cluster, struck)
        print(
            f"{blow.__name__}: {before} at once before, {ever} ever, {now(cluster) - struck:.1f} s for the rest"
        )
        assert LIMIT // 2 <= before <= LIMIT, "slots are used, and no more than there are"
        assert ever <= (2 * LIMIT if blow is wipe else LIMIT)
        keys = Keys.of(cluster.settings)
        with redis.Redis.from_url(pair.redis_url) as client:
            until(
                "no slot is held",
                lambda: not client.zcard(keys.slots()) and not client.zcard(keys.slots(crowd.name)),
            )
