"""Workers that are stopped, cut off, told the wrong time, given a message twice, or asked to go.

What is common to all: whoever was taken for dead records nothing afterwards and comes back under another name.
"""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.dev import servers as embedded
from tests.chaos import flows, harness
from tests.chaos.harness import LEASE_S, SOAK, Cluster, Worker
from tests.chaos.proxy import Proxy

pytestmark = pytest.mark.timeout(240)
INSTANCES = 40 if SOAK else 20


@pytest.fixture(scope="module")
def pair() -> Iterator[embedded.Servers]:
    with harness.pair(fsync=SOAK) as found:
        yield found


def fails(n: int) -> bool:
    return n % 4 == 3


def dead_at(cluster: Cluster, worker: Any) -> Any:
    return cluster.rows("SELECT dead_at FROM orchestrator_workers WHERE id = %s", worker)[0][0]


def rescued(cluster: Cluster, names: list[str], dead: Any) -> bool:
    """Whether every step that ``dead`` ran has been taken from it."""
    query = (
        "SELECT count(*) FROM orchestrator_steps WHERE instance_id = ANY(%s) AND worker = %s "
        "AND status IN ('running', 'cancelling')"
    )
    return bool(cluster.rows(query, [cluster.ids[name] for name in names], dead)[0][0] == 0)


def no_ghosts(cluster: Cluster, names: list[str], dead: Any, moment: float) -> None:
    """``dead`` has recorded nothing since ``moment`` (epoch seconds, the database's)."""
    query = (
        "SELECT key, finished_at FROM orchestrator_steps WHERE instance_id = ANY(%s) AND worker = %s "
        "AND finished_at > to_timestamp(%s)"
    )
    assert cluster.rows(query, [cluster.ids[name] for name in names], dead, moment) == []


def now(cluster: Cluster) -> float:
    return float(cluster.rows("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0])


def reborn(worker: Worker, old: Any) -> bool:
    """Whether ``worker``, the same process, lives under another name than ``old``."""
    latest = worker.incarnations()[-1]
    return bool(latest[0] != old and latest[1] is None)


def test_stopped_for_two_leases_and_continued(pair: embedded.Servers, tmp_path: Path) -> None:
    """Its bodies end when it goes on, on the loop and in threads; others have done their work meanwhile."""
    with Cluster(pair, tmp_path) as cluster:
        stopped = cluster.worker("stopped")
        names = [f"stopped-{n}" for n in range(4)]
        cluster.create(flows.marathon, [{"id": name, "params": {"seconds": 1.5}} for name in names])
        orders = [f"order-{n}" for n in range(INSTANCES)]
        cluster.orders(orders, fails=fails)
        harness.until("all long bodies run", lambda: len(cluster.bodies("do:thread:1")) == len(names))
        harness.until("all long bodies run", lambda: len(cluster.bodies("do:loop:1")) == len(names))
        old = stopped.incarnations()[-1][0]
        stopped.signal(signal.SIGSTOP)
        other = cluster.worker("other")
        harness.until("it is declared dead", lambda: dead_at(cluster, old))
        harness.until("all is taken from it", lambda: rescued(cluster, [*names, *orders], old))
        cluster.settle([*names, *orders])
        moment = now(cluster)
        stopped.signal(signal.SIGCONT)
        harness.until("it comes back under another name", lambda: reborn(stopped, old))
        more = [f"more-{n}" for n in range(INSTANCES)]
        cluster.orders(more, fails=fails)
        cluster.settle(more)
        cluster.judge_orders(orders, fails=fails)
        cluster.judge_orders(more, fails=fails)
        cluster.judge(names)
        no_ghosts(cluster, [*names, *orders], old, moment)
        assert cluster.attempts(names, "WorkerLost") >= 2 * len(names)
        assert (stopped.deaths, other.deaths) == ([], [])


def test_cut_off_from_postgres_for_longer_than_its_lease(pair: embedded.Servers, tmp_path: Path) -> None:
    """What it sent into the hole arrives when it heals, and must not count."""
    with Proxy(("127.0.0.1", pair.postgres.port)) as proxy, Cluster(pair, tmp_path) as cluster:
        url = pair.database_url.replace(f":{pair.postgres.port}/", f":{proxy.port}/")
        alone = cluster.worker("alone", ORCHESTRATOR_DATABASE_URL=url)
        names = [f"long-{n}" for n in range(4)]
        cluster.create(flows.marathon, [{"id": name, "params": {"seconds": 2.0}} for name in names])
        orders = [f"order-{n}" for n in range(INSTANCES)]
        cluster.orders(orders, fails=fails)
        harness.until("all long bodies run", lambda: len(cluster.bodies("do:loop:1")) == len(names))
        old = alone.incarnations()[-1][0]
        proxy.blackhole()
        cluster.worker("other")
        harness.until("it is declared dead", lambda: dead_at(cluster, old))
        harness.until("all is taken from it", lambda: rescued(cluster, [*names, *orders], old))
        cluster.settle([*names, *orders])
        moment = now(cluster)
        proxy.heal()
        harness.until("it comes back under another name", lambda: reborn(alone, old))
        more = [f"more-{n}" for n in range(INSTANCES)]
        cluster.orders(more, fails=fails)
        cluster.settle(more)
        cluster.judge_orders(orders, fails=fails)
        cluster.judge_orders(more, fails=fails)
        cluster.judge(names)
        no_ghosts(cluster, [*names, *orders], old, moment)
        assert alone.deaths == []


def test_a_worker_in_the_dark_cancels_its_bodies(pair: embedded.Servers, tmp_path: Path) -> None:
    """Cut off for a lease, it stops what runs on its loop, though no answer and no error ever comes."""
    with Proxy(("127.0.0.1", pair.postgres.port)) as proxy, Cluster(pair, tmp_path) as cluster:
        url = pair.database_url.replace(f":{pair.postgres.port}/", f":{proxy.port}/")
        alone = cluster.worker("alone", ORCHESTRATOR_DATABASE_URL=url)
        told = tmp_path / "told"
        cluster.create(flows.told, [{"id": "dark", "params": {"file": str(told)}}])
        harness.until("the body runs", lambda: cluster.bodies("do:told:1"))
        proxy.blackhole()
        harness.until("the body is told", told.exists, 8 * LEASE_S)
        proxy.heal()
        proxy.cut()
        harness.until("it is tried again", lambda: len(cluster.bodies("do:told:1")) > 1)
        cluster.settle(["dark"])
        cluster.judge(["dark"])
        assert alone.deaths == []


def test_every_message_twice_on_two_workers(pair: embedded.Servers, tmp_path: Path) -> None:
    with Cluster(pair, tmp_path) as cluster:
        workers = [cluster.worker(f"w{n}", wait=False, CHAOS_COPIES="3") for n in range(2)]
        harness.until("both are up", lambda: all(w.registered() for w in workers))
        names = [f"twice-{n}" for n in range(2 * INSTANCES)]
        cluster.orders(names, fails=fails)
        cluster.settle(names)
        cluster.judge_orders(names, fails=fails)
        pids = {pid for _, pid, _, _ in cluster.bodies("do:charge:1")}
        assert len(pids) == 2, "both took part"
        assert cluster.attempts(names, "WorkerLost") == 0


def test_shut_down_in_order_under_load(pair: embedded.Servers, tmp_path: Path) -> None:
    """What cannot end within the grace is handed back: recorded as that, and not counted (``limit=0``)."""
    with Cluster(pair, tmp_path) as cluster:
        grace = 1.0
        going = cluster.worker("going", ORCHESTRATOR_SHUTDOWN_GRACE=str(grace))
        lone = [f"lone-{n}" for n in range(5)]
        cluster.create(flows.lone, [{"id": name, "params": {"seconds": 4.0}} for name in lone])
        harness.until("all long bodies run", lambda: len(cluster.bodies("do:loop:1")) == len(lone))
        orders = [f"order-{n}" for n in range(2 * INSTANCES)]
        cluster.orders(orders, fails=fails)
        harness.until("orders are under way", lambda: cluster.bodies("do:reserve:1"))
        began = time.monotonic()
        assert going.stop() == 0
        assert time.monotonic() - began < grace + 5
        cluster.worker("staying")
        cluster.settle([*lone, *orders])
        cluster.judge_orders(orders, fails=fails)
        cluster.judge(lone)
        assert cluster.attempts(lone, "WorkerShutdown") == len(lone)
        assert cluster.attempts([*lone, *orders], "WorkerLost") == 0
        assert {flows.lone.get(name, orchestrator=cluster.client).result(1) for name in lone} == {"awake"}


@pytest.mark.parametrize("skew_s", [3600.0, -3600.0])
def test_a_wall_clock_that_is_wrong_by_an_hour(skew_s: float, pair: embedded.Servers, tmp_path: Path) -> None:
    """No timer rings early or late, nobody is taken for dead, whichever worker sets and rings it."""
    with Cluster(pair, tmp_path) as cluster:
        right = cluster.worker("right")
        asleep = [f"asleep-{n}" for n in range(5)]
        cluster.create(flows.nap, [{"id": name, "params": {"seconds": 1800}} for name in asleep])
        harness.until("they sleep", lambda: len(cluster.bodies("do:before:1")) == len(asleep))
        folder = str(Path(__file__).parent / "skew")
        wrong = cluster.worker("wrong", PYTHONPATH=folder, CHAOS_SKEW_S=str(skew_s))
        query = (
            "SELECT max(extract(epoch FROM i.alarm_at - s.due_at)) FROM orchestrator_instances i "
            "JOIN orchestrator_steps s ON s.instance_id = i.id WHERE s.key = 'sleep:nap:1' AND i.id = ANY(%s)"
        )
        late = cluster.rows(query, [cluster.ids[name] for name in asleep])[0][0]
        assert late <= 1, "an alarm was put off by a worker that did not know the time yet"
        names = [f"nap-{n}" for n in range(INSTANCES)]
        cluster.create(flows.nap, [{"id": name, "params": {"seconds": 2.0}} for name in names])
        orders = [f"order-{n}" for n in range(INSTANCES)]
        cluster.orders(orders, fails=fails)
        cluster.settle([*names, *orders])
        cluster.judge_orders(orders, fails=fails)
        cluster.judge(names)
        ends = {instance: ended for instance, _, _, ended in cluster.bodies("do:before:1")}
        slept = [began - ends[instance] for instance, _, began, _ in cluster.bodies("do:behind:1")]
        assert len(slept) == len(names), "only those whose time had come woke up"
        assert min(slept) >= 1.95, sorted(slept)
        assert max(slept) < 2.0 + 5.0, sorted(slept)
        for worker in (right, wrong):
            assert [dead for _, dead in worker.incarnations()] == [None]
