"""Valkey wiped, restarted, away; Postgres restarted and killed, in the middle of everything.

With fsync: what Postgres said is committed must survive its kill.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import redis

from orchestrator.dev import servers as embedded
from tests.chaos import flows, harness
from tests.chaos.harness import FIGURES, SOAK, Cluster

INSTANCES = 60 if SOAK else 30
ROUNDS = 5 if SOAK else 1

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def pair() -> Iterator[embedded.Servers]:
    with harness.pair(fsync=True) as found:
        yield found


def fails(n: int) -> bool:
    return n % 4 == 3


def in_the_middle(cluster: Cluster, names: list[str], key: str, share: float = 0.3) -> None:
    """Wait until a share of the instances has seen the end of ``key``, and not all of them."""
    ids = [cluster.ids[name] for name in names]
    query = (
        "SELECT count(*) FROM orchestrator_steps WHERE instance_id = ANY(%s) AND key = %s AND status = 'done'"
    )

    def some() -> bool:
        cluster.feed_waiting(names)
        return bool(cluster.rows(query, ids, key)[0][0] >= share * len(names))

    harness.until(f"{share:.0%} have done {key}", some)


def wipe(pair: embedded.Servers) -> None:
    with redis.Redis.from_url(pair.redis_url) as client:
        client.flushall()


def restart_valkey(pair: embedded.Servers) -> None:
    wipe(pair)
    pair.valkey.restart()


def kill_valkey(pair: embedded.Servers) -> None:
    pair.valkey.kill()
    pair.valkey.start()


def restart_postgres(pair: embedded.Servers) -> None:
    pair.postgres.restart()


def kill_postgres(pair: embedded.Servers) -> None:
    pair.postgres.kill()
    pair.postgres.start()


Blow = Callable[[embedded.Servers], None]
BLOWS: list[tuple[Blow, Blow, Blow]] = [
    (wipe, restart_valkey, kill_valkey),
    (restart_postgres, kill_postgres, restart_postgres),
]
if SOAK:
    BLOWS += [(kill_postgres, wipe, kill_postgres), (kill_valkey, restart_postgres, wipe)]


@pytest.mark.parametrize("blows", BLOWS, ids=lambda blows: "-".join(blow.__name__ for blow in blows))
def test_servers_struck_in_the_middle_cost_time_only(
    blows: tuple[Blow, Blow, Blow], pair: embedded.Servers, tmp_path: Path
) -> None:
    with Cluster(pair, tmp_path) as cluster:
        workers = [
            cluster.worker(f"w{n}", wait=False, ORCHESTRATOR_DELIVERY=way)
            for n, way in enumerate(("in_place", "broker"))
        ]
        harness.until("both are up", lambda: all(w.registered() for w in workers))
        for round_ in range(ROUNDS):
            names = [f"{round_}-{n}" for n in range(INSTANCES)]
            cluster.orders(names, fails=fails)
            for key, blow in zip(("do:reserve:1", "do:left:1", "do:charge:1"), blows, strict=True):
                in_the_middle(cluster, names, key)
                blow(pair)
            cluster.settle(names)
            cluster.judge_orders(names, fails=fails)
            FIGURES.runs += 1
            FIGURES.lost += cluster.attempts(names, "WorkerLost")
        assert [w.deaths for w in workers] == [[], []], "workers outlive their servers"


def test_valkey_away_for_longer_than_a_lease(pair: embedded.Servers, tmp_path: Path) -> None:
    with Cluster(pair, tmp_path) as cluster:
        worker = cluster.worker("w")
        names = [f"away-{n}" for n in range(INSTANCES)]
        cluster.orders(names, fails=fails)
        in_the_middle(cluster, names, "do:reserve:1")
        pair.valkey.kill()
        before = cluster.rows("SELECT clock_timestamp()")[0][0]
        query = "SELECT clock_timestamp() - %s > make_interval(secs => %s)"
        harness.until(
            "it was away for a while", lambda: cluster.rows(query, before, 1.5 * harness.LEASE_S)[0][0]
        )
        pair.valkey.start()
        cluster.settle(names)
        cluster.judge_orders(names, fails=fails)
        assert worker.deaths == []
        assert worker.incarnations()[-1][1] is None, "Redis has no say in who is alive"


def test_postgres_away_while_bodies_run_keeps_their_outcomes(pair: embedded.Servers, tmp_path: Path) -> None:
    """Bodies end while Postgres is away, for less than a lease: each is recorded, none runs again."""
    ends = tmp_path / "ends"
    ends.mkdir()
    with Cluster(pair, tmp_path) as cluster:
        worker = cluster.worker("w")
        names = [f"kept-{n}" for n in range(10)]
        cluster.create(
            flows.unseen, [{"id": name, "params": {"seconds": 0.5, "folder": str(ends)}} for name in names]
        )
        harness.until(
            "all bodies are past the witness",
            lambda: len([1 for *_, ended in cluster.bodies("do:unseen:1") if ended]) == len(names),
        )
        pair.postgres.kill()
        try:
            harness.until("all bodies have ended", lambda: len(list(ends.iterdir())) == len(names))
        finally:
            pair.postgres.start()
        cluster.settle(names)
        cluster.judge(names)
        assert len(cluster.bodies("do:unseen:1")) == len(names)
        assert {flows.unseen.get(name, orchestrator=cluster.client).result(1) for name in names} == {"ended"}
        assert cluster.attempts(names, "WorkerLost") == 0
        assert worker.deaths == []


def test_a_flush_whose_commit_is_never_confirmed_is_not_repeated_blindly(
    pair: embedded.Servers, tmp_path: Path
) -> None:
    """Postgres ends every connection of the workers, over and over, wherever their transactions are."""
    with Cluster(pair, tmp_path) as cluster:
        for n in range(2):
            cluster.worker(f"w{n}")
        names = [f"cut-{n}" for n in range(INSTANCES)]
        cluster.orders(names, fails=fails)

        def cut_and_look() -> bool:
            with psycopg.connect(harness.witness.libpq(pair.database_url), autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'orchestrator' "
                    "AND pid <> pg_backend_pid() AND random() < 0.5"
                )
            cluster.feed_waiting(names)
            return cluster.finished(names)

        deadline = harness.time.monotonic() + (20 if SOAK else 4)
        harness.until("a while has passed", lambda: cut_and_look() or harness.time.monotonic() > deadline)
        cluster.settle(names)
        cluster.judge_orders(names, fails=fails)
