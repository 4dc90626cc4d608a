"""Counts that are kept: who counts, how often, who may rely on them, and that nobody scans for want of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis
from sqlalchemy import event

from orchestrator.client import listing as lists
from orchestrator.control.counts import EVERY_S, LOOK_S, Counting
from orchestrator.control.gatekeeping.board import Board
from orchestrator.store.control import counts
from orchestrator.workflow.status import Status
from tests.integration.harness import START, Created, Site, eventually

pytestmark = pytest.mark.integration


async def counts_flow(event, step):
    """Nothing."""


@pytest.fixture
def flow(site: Site) -> Created:
    return site.workflow(counts_flow)


@pytest.fixture
def duty(site: Site) -> Counting:
    return Counting(site.engine, site.settings.account, Board(site.settings))


def kept(site: Site) -> counts.Kept | None:
    with site.engine.begin() as connection:
        return counts.read_one(connection, site.settings.account, "counts_flow")


def age(site: Site, seconds: float) -> None:
    """Let what is kept be so much older."""
    site.sql(
        "UPDATE orchestrator_counts SET counted_at = counted_at - make_interval(secs => :age) WHERE account = :account",
        age=seconds,
        account=site.settings.account,
    )


def test_a_worker_counts_and_puts_it_where_creation_looks(site: Site, flow: Created, duty: Counting) -> None:
    """protocols §20: counts per status are kept by workers; ``TooManyQueued`` is checked against them."""
    for number in range(5):
        flow.plant(number, queued=number < 3)
    duty.cycle(START, ["counts_flow@1"])
    found = eventually(lambda: kept(site), "a count")
    assert found.counts == {"queued": 3, "running": 2}
    with redis.Redis.from_url(site.settings.redis_url, decode_responses=True) as client:
        backlog = f"{site.settings.hash_tag}:backlog"
        assert eventually(lambda: client.hgetall(backlog), "the backlog") == {"counts_flow": "3"}
        assert client.ttl(backlog) > 0


def test_nothing_is_counted_again_before_its_time(site: Site, flow: Created, duty: Counting) -> None:
    """protocols §20: every ten seconds, or fifty times as long as counting took."""
    flow.plant(queued=True)
    duty.count("counts_flow")
    first = kept(site)
    assert first is not None
    flow.plant(queued=True)
    duty.count("counts_flow")
    assert kept(site) == first
    site.sql(
        "UPDATE orchestrator_counts SET took_s = 2 WHERE account = :account", account=site.settings.account
    )
    age(site, EVERY_S + 1)
    duty.count("counts_flow")
    assert kept(site).counts == {"queued": 1}, "it took two seconds: a hundred have to pass"  # type: ignore[union-attr]
    age(site, 100)
    duty.count("counts_flow")
    assert kept(site).counts == {"queued": 2}  # type: ignore[union-attr]


def test_one_of_many_workers_counts(site: Site, flow: Created, duty: Counting) -> None:
    """protocols §20: however many look after a workflow, one counts at a time, and the others leave it at that."""
    flow.plant(queued=True)
    with site.engine.begin() as connection:
        assert counts.may_count(connection, site.settings.account, "counts_flow")
        duty.count("counts_flow")
        assert kept(site) is None
        with site.engine.begin() as other:
            assert counts.may_count(other, site.settings.account, "counts_other"), "each workflow by itself"
    duty.count("counts_flow")
    assert kept(site) is not None


def test_no_cycle_waits_for_a_count(site: Site, flow: Created, duty: Counting) -> None:
    """protocols §7: alarms ring in their time, however long counting takes; what fails there is told in a round."""
    begun, go_on = threading.Event(), threading.Event()

    def slow(workflow: str) -> None:
        begun.set()
        assert go_on.wait(20)
        raise RuntimeError("no such luck")

    duty.count = slow  # type: ignore[method-assign]
    duty.cycle(START, ["counts_flow@1", "counts_flow@2"])
    assert begun.wait(20)
    duty.cycle(START + LOOK_S, ["counts_flow@1"])  # comes back while the other thread is at it
    go_on.set()
    eventually(lambda: not duty._thread.is_alive(), "the end of the count")  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="no such luck"):
        duty.cycle(START + 2 * LOOK_S, ["counts_flow@1"])
    duty.cycle(START + 2 * LOOK_S, ["counts_flow@1"])


@contextmanager
def statements(site: Site) -> Iterator[list[str]]:
    """What the client asks Postgres for through SQLAlchemy's own cursors and ours."""
    seen: list[str] = []
    from orchestrator.store import session

    asked = session.rows

    def rows(connection: Any, statement: str, parameters: Any) -> Any:
        seen.append(statement)
        return asked(connection, statement, parameters)

    def executed(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        seen.append(statement)

    session.rows = rows
    event.listen(site.client.engine, "before_cursor_execute", executed)
    try:
        yield seen
    finally:
        session.rows = asked
        event.remove(site.client.engine, "before_cursor_execute", executed)


def scans(seen: list[str]) -> bool:
    return any("count(*)" in statement for statement in seen)


def test_few_are_counted_exactly_and_many_are_not_counted_at_all(site: Site, flow: Created) -> None:
    """api §3: ``count()`` says what is kept of many instances, and counts few; ``exact=True`` counts them all."""
    account = site.settings.account
    flow.plant(queued=True)
    assert flow.count()[Status.QUEUED] == 1, "nothing is kept yet"
    with site.engine.begin() as connection:
        counts.keep(connection, account, "counts_flow", {"queued": lists.CHEAP - 1}, 0.001)
    assert flow.count()[Status.QUEUED] == 1, "so few are counted"
    with site.engine.begin() as connection:
        counts.keep(connection, account, "counts_flow", {"queued": lists.CHEAP, "errored": 2}, 0.001)
    with statements(site) as seen:
        told = flow.count()
    assert (told[Status.QUEUED], told[Status.ERRORED], told[Status.COMPLETE]) == (lists.CHEAP, 2, 0)
    assert not scans(seen)
    with statements(site) as seen:
        assert flow.count(exact=True)[Status.QUEUED] == 1
    assert scans(seen)


def test_counts_that_nobody_looks_after_are_not_believed(
    site: Site, flow: Created, monkeypatch: pytest.MonkeyPatch
) -> None:
    """api §3: where no worker has counted for a minute, who asks counts, and keeps it for those who ask next."""
    monkeypatch.setattr(lists, "CHEAP", 2)
    with site.engine.begin() as connection:
        counts.keep(connection, site.settings.account, "counts_flow", {"queued": 5_000_000}, 0.5)
    for number in range(2):
        flow.plant(number, queued=True)
    age(site, 100)
    assert flow.count()[Status.QUEUED] == 5_000_000, "half a second's work: it is good for 110 seconds"
    age(site, 15)
    assert flow.count()[Status.QUEUED] == 2
    flow.plant(queued=True)
    assert flow.count()[Status.QUEUED] == 2, "what was counted is kept"


def test_what_is_kept_goes_with_the_workflow(site: Site, flow: Created, duty: Counting) -> None:
    """semantics §4: everything is gone; nothing is told of instances that no longer are."""
    flow.plant(queued=True)
    duty.count("counts_flow")
    flow.delete_all()
    assert kept(site) is None
    assert set(flow.count().values()) == {0}


def test_a_running_worker_keeps_counts(site: Site, flow: Created) -> None:
    """protocols §20: the duty is one of every worker's."""
    flow.plant(queued=True)
    site.worker(chef=True)
    eventually(lambda: kept(site), "a count by the worker")
