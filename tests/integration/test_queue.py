"""The queue: places, what is read of it, who starts what, and that none of it grows with the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest

from orchestrator.control import queues
from orchestrator.control.queues import Queues
from orchestrator.control.shards import Share
from orchestrator.ports import FOREVER, Holder
from orchestrator.store import session
from orchestrator.store.control import queue
from orchestrator.store.control.queue import Part
from tests.integration.harness import START, Created, Site

pytestmark = pytest.mark.integration


async def queue_flow(event, step):
    """Only its queue is of interest."""


async def queue_other(event, step):
    """Another one."""


async def queue_third(event, step):
    """A third."""


class Tray:
    """Slots of a test's own: so many of each workflow, and what was asked."""

    def __init__(self, free: int = 10**9, **of: int) -> None:
        self.free = free
        self.of = of
        self.asked: list[tuple[list[Holder], dict[str, int], set[str]]] = []
        self.released: list[UUID] = []

    def ask(self, wanted: Sequence[Holder], weights: Mapping[str, int], more: Collection[str]) -> set[UUID]:
        self.asked.append((list(wanted), dict(weights), set(more)))
        granted = set()
        for holder in wanted:
            if self.free > 0 and self.of.get(holder.workflow, 1) > 0:
                self.free -= 1
                self.of[holder.workflow] = self.of.get(holder.workflow, 10**9) - 1
                granted.add(holder.instance)
        return granted

    def release(self, holders: Sequence[Holder]) -> None:
        self.released += [holder.instance for holder in holders]


def share_of(*names: str, shards: Sequence[int] = (0,), versions: Collection[str] = ("1",)) -> Share:
    every = frozenset((name, shard) for name in names for shard in shards)
    return Share(every, frozenset(), {}, {name: frozenset(versions) for name in names})


def known(*names: str, version: str = "1") -> set[str]:
    return {f"{name}@{version}" for name in names}


def fill(site: Site, flow: Created, count: int, shard: int = 0, now: float = START) -> None:
    """Queue ``count`` instances at once: rows as ``create`` makes them."""
    site.sql(
        "INSERT INTO orchestrator_instances (id, account, workflow, name_id, version, status, alarm_at, queued_at, "
        "created_at, state_bytes, success_retention_s, error_retention_s, shard) "
        "SELECT gen_random_uuid(), :account, :workflow, gen_random_uuid()::text, :version, 'queued', 'infinity', "
        "to_timestamp(:now + n * 0.001), to_timestamp(:now), 4, 60, 60, :shard FROM generate_series(1, :count) AS n",
        account=site.settings.account,
        workflow=flow.name,
        version=flow.version,
        now=now,
        count=count,
        shard=shard,
    )


def statuses(site: Site, flow: Created) -> Counter[str]:
    rows = site.sql(
        "SELECT status FROM orchestrator_instances WHERE account = :account AND workflow = :workflow",
        account=site.settings.account,
        workflow=flow.name,
    )
    return Counter(row[0] for row in rows)


def test_the_first_of_a_part_are_awoken_ones_then_by_age(site: Site) -> None:
    """protocols §8: awoken before new, older before newer; a start is a fact, and happens once."""
    flow = site.workflow(queue_flow)
    young, old = flow.plant(now=START + 1, queued=True), flow.plant(now=START, queued=True)
    woken = flow.plant(now=START + 2, queued=True)
    site.sql("UPDATE orchestrator_instances SET awoken = true WHERE id = :id", id=woken)
    account, part = site.settings.account, Part("queue_flow", 0, "1")

    def first(limit: int) -> list[UUID]:
        return [each.id for each in queue.first(connection, account, {part: limit})]

    with site.engine.begin() as connection, site.engine.begin() as other:
        assert queue.filled(
            connection, account, [part, Part("queue_flow", 0, "2"), Part("queue_flow", 1, "1")]
        ) == [part]
        assert first(10) == [woken, old, young]
        assert first(2) == [woken, old]
        assert set(queue.start(connection, [woken, old], START + 5)) == {woken, old}
        assert queue.start(other, [woken, old, young], START + 5) == [young]
    row = site.row(old)
    assert (row.status, row.seq, row.alarm) == ("running", 1, START + 5)
    with site.engine.begin() as connection:
        assert queue.start(connection, [old], START + 9) == []


def test_one_call_asks_for_all(site: Site) -> None:
    """semantics §6: all needed slots are asked for in one call; weights are the shards that have something queued, and
    creators are told of what more there is."""
    flow, other = site.workflow(queue_flow), site.workflow(queue_other)
    for shard in (0, 1, 2):
        fill(site, flow, 50, shard)
    fill(site, other, 5)
    slots = Tray(queue_flow=7)
    kitchen = Queues(site.engine, site.settings.account, slots)
    share = share_of("queue_flow", "queue_other", shards=range(4))
    served = kitchen.serve(share, known("queue_flow", "queue_other"), START, 60)
    ((wanted, weights, more),) = slots.asked
    assert Counter(holder.workflow for holder in wanted) == {"queue_flow": 55, "queue_other": 5}
    assert weights == {"queue_flow": 3, "queue_other": 1}
    assert more == {"queue_flow"}
    assert len(served.started) == 12
    assert (served.is_short, served.is_more) == (True, False)
    assert statuses(site, flow)["running"] == 7
    assert statuses(site, other) == {"running": 5}


def test_whoever_wants_little_has_all_of_it(site: Site) -> None:
    """semantics §6: max-min between workflows: a flood has what the others leave of a cycle, and a flood in one shard
    what other shards leave; what little ones do not want is read from the flood."""
    flood, few, some = (site.workflow(each) for each in (queue_flow, queue_other, queue_third))
    fill(site, flood, 5000, 2)
    fill(site, flood, 3, 0)
    fill(site, few, 20)
    fill(site, some, 400)
    slots = Tray()
    kitchen = Queues(site.engine, site.settings.account, slots)
    names = ("queue_flow", "queue_other", "queue_third")
    served = kitchen.serve(share_of(*names, shards=range(4)), known(*names), START, 1000)
    assert (served.is_short, served.is_more) == (False, True)
    assert statuses(site, few) == {"running": 20}
    assert statuses(site, some)["running"] == 400
    assert statuses(site, flood)["running"] == pytest.approx(580, abs=100)
    assert len(served.started) <= 1000


def test_what_asks_in_vain_asks_with_fewer(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """design §5: a thousand that ask in vain five times a second would be work for nothing; what is granted all it asks
    for asks for all there is again."""
    monkeypatch.setattr(queues, "AT_LEAST", 10)
    flood, other = site.workflow(queue_flow), site.workflow(queue_other)
    fill(site, flood, 1000)
    slots = Tray()
    kitchen = Queues(site.engine, site.settings.account, slots)
    share, code = share_of("queue_flow", "queue_other"), known("queue_flow", "queue_other")
    for free in (8, 4, 0):
        slots.of["queue_flow"] = free
        kitchen.serve(share, code, START, 500)
    assert [len(wanted) for wanted, _, _ in slots.asked] == [500, 16, 10]
    fill(site, other, 300)
    kitchen.serve(share, code, START, 500)
    assert Counter(holder.workflow for holder in slots.asked[-1][0]) == {"queue_flow": 10, "queue_other": 300}
    slots.of["queue_flow"] = 1000
    kitchen.serve(share, code, START, 500)
    kitchen.serve(share, code, START, 500)
    assert len(slots.asked[-1][0]) == 500


def test_versions_that_nobody_knows_wait_and_are_in_nobodys_way(site: Site) -> None:
    """protocols §12: an instance of a version that no living worker knows stays queued; thousands of them at the head
    of the queue hold up nobody. One of a version that others know is started for them: its alarm rings at once."""
    flow = site.workflow(queue_flow)
    fill(site, flow, 2000)
    site.sql("UPDATE orchestrator_instances SET version = 'gone' WHERE account = :a", a=site.settings.account)
    fill(site, flow, 3, now=START + 60)
    site.sql(
        "UPDATE orchestrator_instances SET version = '2' WHERE id IN (SELECT id FROM orchestrator_instances "
        "WHERE account = :a AND version = '1' ORDER BY queued_at LIMIT 1)",
        a=site.settings.account,
    )
    kitchen = Queues(site.engine, site.settings.account, Tray())
    served = kitchen.serve(share_of("queue_flow", versions=("1", "2")), known("queue_flow"), START + 99, 100)
    rows = site.sql(
        "SELECT version, extract(epoch FROM alarm_at)::float8 FROM orchestrator_instances "
        "WHERE account = :a AND status = 'running' ORDER BY version DESC",
        a=site.settings.account,
    )
    assert [tuple(row) for row in rows] == [("2", START + 99), ("1", START + 104), ("1", START + 104)]
    assert len(served.started) == 2, "what is not known here is not woken here"
    assert statuses(site, flow)["queued"] == 2000


def test_a_slot_for_what_needs_none_is_given_back(site: Site) -> None:
    """semantics §4, §6: paused or deleted between the look and the start: the slot is not kept. One whose row somebody
    holds keeps it: it is asked for again."""
    flow = site.workflow(queue_flow)
    fill(site, flow, 3)
    ids = [
        row[0]
        for row in site.sql(
            "SELECT id FROM orchestrator_instances WHERE account = :a ORDER BY queued_at",
            a=site.settings.account,
        )
    ]

    class Meanwhile(Tray):
        def ask(self, *args: Any) -> set[UUID]:
            site.sql("UPDATE orchestrator_instances SET status = 'paused' WHERE id = :id", id=ids[0])
            site.sql("DELETE FROM orchestrator_instances WHERE id = :id", id=ids[1])
            return super().ask(*args)

    slots = Meanwhile()
    with site.engine.connect() as holder:
        kitchen = Queues(site.engine, site.settings.account, slots)
        holder.exec_driver_sql("SELECT 1 FROM orchestrator_instances WHERE id = %s FOR UPDATE", (ids[2],))
        served = kitchen.serve(share_of("queue_flow"), known("queue_flow"), START, 10)
        holder.rollback()
    assert served.started == []
    assert set(slots.released) == {ids[0], ids[1]}
    assert site.row(ids[2]).status == "queued"
    assert site.row(ids[2]).alarm == FOREVER


# -- flat --------------------------------------------------------------------------------------------------


def read_rows(connection: Any, statement: str, parameters: Mapping[str, Any]) -> tuple[int, set[str]]:
    """How many rows of instances a statement reads, at most, in any part of its plan; and the kinds of its nodes."""
    plan = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}", parameters).scalar_one()
    most, nodes = 0, set()
    todo = [plan[0]["Plan"]]
    while todo:
        node = todo.pop()
        todo += node.get("Plans", [])
        nodes.add(node["Node Type"])
        if node.get("Relation Name") == "orchestrator_instances":
            removed = node.get("Rows Removed by Filter", 0)
            most = max(most, round((node["Actual Rows"] + removed) * node["Actual Loops"]))
            assert node.get("Index Name") == "orchestrator_instances_queue", node
    return most, nodes


@pytest.mark.parametrize("turns", [True, False])
def test_reading_costs_what_is_read(own_site: Site, turns: bool) -> None:
    """semantics §6: granting is as fast at two million queued as at two thousand: the queue is read by its index, in
    order, and nothing is sorted or read that is not returned; before the table is analyzed, and after."""
    flow = own_site.workflow(queue_flow)
    for shard in range(4):
        fill(own_site, flow, 20_000, shard)
    account = own_site.settings.account
    parts = [Part("queue_flow", shard, "1") for shard in range(4)]
    engine = session.connect(own_site.settings.database_url, pool_size=1, turns=turns)
    for analyze in (False, True):
        if analyze:
            own_site.sql("ANALYZE orchestrator_instances")
        with engine.begin() as connection:
            given = {"account": account, **queue._columns(parts)}
            most, nodes = read_rows(connection, queue._FILLED, given)
            assert (most, "Sort" in nodes) == (4, False)
            most, nodes = read_rows(connection, queue._FIRST, {**given, "limits": "{25,25,25,25}"})
            assert (most, "Sort" in nodes) == (100, False)
            gaps = {"workflows": "{queue_flow}", "lows": "{0}", "highs": "{32767}", "limit": 64}
            most, nodes = read_rows(connection, queue._STRAYS, {"account": account, **gaps})
            assert most <= 4
            assert len(queue.strays(connection, account, {"queue_flow": [(0, 1), (3, 99)]}, 64)) == 3
    engine.dispose()
