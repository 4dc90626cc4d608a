"""Alarms: when they are set, who rings them, and what they bring back."""

import asyncio
import time
from typing import Any
from uuid import UUID

import pytest

from orchestrator.control import souschef
from orchestrator.control.souschef import SousChef
from orchestrator.ports import FOREVER
from orchestrator.store import alarms, session
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import START, Site, eventually

pytestmark = pytest.mark.integration


async def body(*args: Any) -> Any:
    return list(args)


async def one(event, step):
    await step.do("s", body)
    await step.sleep("nap", 3600)
    await step.wait_for_event("w", type="go", timeout=60)


def due(site: Site, instance: UUID, now: float) -> float:
    return float(site.row(instance).alarm) - now


def test_every_status_has_its_alarm(site: Site) -> None:
    """protocols §7: the table: +5 s while a hand-out is unclaimed, +60 s while something runs, the exact due time of
    what is waited for, none when it is over."""
    bench, flow = site.bench(), site.workflow(one)
    queued, instance = flow.plant(queued=True), flow.plant()
    assert site.row(queued).alarm == FOREVER
    assert due(site, instance, START) == 5
    bench.clock.at += 5
    (handout,) = bench.wake(instance).handouts
    assert due(site, instance, bench.clock.at) == 5
    (ready,) = bench.claim(handout)
    bench.clock.at += 5
    bench.wake(instance)
    assert due(site, instance, bench.clock.at) == 60
    bench.clock.at += 1
    bench.run({instance: [bench.outcome(ready)]})
    row = site.row(instance)
    assert (row.status, row.alarm) in (("waiting", bench.clock.at + 59), ("waiting", bench.clock.at + 3600))
    bench.clock.at = row.alarm
    bench.wake(instance)
    assert site.row(instance).alarm == START + 11 + 3600
    bench.clock.at = START + 11 + 3600
    bench.wake(instance)
    assert due(site, instance, bench.clock.at) == 60
    bench.clock.at += 60
    bench.wake(instance)
    row = site.row(instance)
    assert (row.status, row.alarm) == ("errored", FOREVER)


def test_a_turn_only_moves_the_alarm_earlier(site: Site) -> None:
    """protocols §7: short instances never touch the index; it moves later only when it fires."""

    async def quick(event, step):
        for _ in range(3):
            await step.do("s", body)
        await step.sleep("nap", 2)

    bench, instance = site.bench(), site.workflow(quick).plant()
    (handout,) = bench.wake(instance).handouts
    seen = []
    for _ in range(3):
        seen.append(site.row(instance).alarm)
        bench.clock.at += 0.5
        results = bench.finish(handout)
        handout = results.handouts[0] if results.handouts else handout
    assert seen == [START + 5] * 3
    assert site.row(instance).alarm == START + 1.5 + 2


# -- lost hand-outs ----------------------------------------------------------------------------------------


def test_a_lost_hand_out_is_run_when_its_queue_is_empty(site: Site) -> None:
    """protocols §7: a hand-out that nobody claimed for five seconds, while nothing waits in its queue, was lost."""
    lost: list[Any] = []
    site.post.loses = lambda handout: not lost and not lost.append(handout)  # type: ignore[func-returns-value]

    async def flow(event, step):
        return await step.do("s", body, 1)

    site.worker(chef=True)
    created = site.workflow(flow).create()
    assert created.result(12) == [1]
    (record,) = created.steps()
    assert len(record.attempts) == 1
    assert len(lost) == 1
    assert (record.finished_at - record.started_at).total_seconds() >= 5  # type: ignore[operator]


def test_a_backlog_is_no_loss(site: Site) -> None:
    """protocols §7: while messages wait in the queue nothing is published again: the alarm moves on, ever further."""
    bench, instance = site.bench(), site.workflow(one).plant()
    bench.wake(instance)
    site.post.waiting = 7
    waits = []
    for _ in range(9):
        bench.clock.at = site.row(instance).alarm
        results = bench.wake(instance)
        assert (results.handouts, results.local) == ([], [])
        waits.append(round(due(site, instance, bench.clock.at), 3))
    assert waits == sorted(waits)
    assert waits[0] <= 10
    assert waits[-2:] == [60, 60]  # a running instance is looked at once a minute anyway
    site.post.waiting = 0
    bench.clock.at = site.row(instance).alarm
    (again,) = bench.wake(instance).local
    assert again.fence == site.step(instance, "do:s:1").fence


def test_after_a_loss_of_redis_no_hand_out_waits_for_its_backlog(site: Site) -> None:
    """protocols §7, §8: what was handed out and not claimed is looked at now, however long a backlog put that off;
    what runs, waits or is queued is left alone."""
    bench, flow = site.bench(), site.workflow(one)
    instance, claimed, queued = flow.plant(), flow.plant(), flow.plant(queued=True)
    bench.claim(*bench.wake(claimed).handouts)
    bench.wake(instance)
    site.post.waiting = 7
    for _ in range(6):
        bench.clock.at = site.row(instance).alarm
        bench.wake(instance, claimed)
    later, now = site.row(claimed).alarm, bench.clock.at
    assert due(site, instance, now) >= 60
    souschef.offer_again(bench.engine, site.settings.account, now + 1)
    assert due(site, instance, now) == 1
    assert (site.row(claimed).alarm, site.row(queued).alarm) == (later, FOREVER)
    site.post.waiting = 0
    bench.clock.at = now + 1
    assert [handout.instance for handout in bench.wake(instance).local] == [instance]


def test_a_hand_out_that_was_overtaken_is_lost(site: Site) -> None:
    """protocols §7: hand-outs at least 10 s younger were claimed from the queue, though there is a backlog."""
    bench, flow = site.bench(), site.workflow(one)
    old, young = flow.plant(), flow.plant()
    site.post.waiting = 7
    bench.wake(old)
    bench.clock.at += 9
    (h,) = bench.wake(young).handouts
    bench.claim(h)
    assert not bench.wake(old).local
    bench.clock.at += 2
    younger = flow.plant()
    (h,) = bench.wake(younger).handouts
    bench.claim(h)
    assert [handout.instance for handout in bench.wake(old).local] == [old]


def test_without_a_word_from_the_broker_a_minute_decides(site: Site) -> None:
    """protocols §7: a broker that cannot say what waits: a hand-out counts as lost after a minute."""
    bench, instance = site.bench(), site.workflow(one).plant()
    bench.wake(instance)
    site.post.waiting = None
    bench.clock.at += 59
    assert not bench.wake(instance).local
    bench.clock.at += 2
    assert len(bench.wake(instance).local) == 1


# -- ringing -----------------------------------------------------------------------------------------------


def test_a_wake_up_is_never_early_and_hardly_late(site: Site) -> None:
    """protocols §7: alarms of the cycle to come are read ahead and rung each at its moment."""
    naps = [0.05, 0.3, 0.9, 1.4, 2.2, 2.6, 3.1]

    async def flow(event, step):
        await asyncio.gather(*[step.sleep(f"nap-{nap}", nap) for nap in naps])

    flows = site.workflow(flow)
    for _ in range(2):
        site.worker(chef=True)
    created = flows.create_batch(count=10).created
    late = []
    for each in created:
        each.result(10)
        for record in each.steps():
            nap = float(record.name.removeprefix("nap-"))
            assert record.finished_at is not None
            late.append((record.finished_at - record.started_at).total_seconds() - nap)
    late.sort()
    assert late[0] >= 0, "a wake-up was early"
    assert late[len(late) // 2] < 0.1
    assert late[-1] < 0.5


def test_the_death_of_the_holder_costs_a_second_and_a_half(site: Site) -> None:
    """protocols §7: an alarm that was taken by a process that died rings elsewhere, a second past its moment."""

    async def flow(event, step):
        await step.sleep("nap", 2.3)

    flows = site.workflow(flow)
    site.worker()
    created = flows.create()
    eventually(created.steps)
    now = site.client.now()
    with site.engine.begin() as connection:  # whoever does this rings nothing
        taken = alarms.take(connection, site.settings.account, ["flow@1"], now, now + 3, 1.0, 10).due
    assert len(taken) == 1
    site.worker(chef=True)
    created.result(10)
    (record,) = created.steps()
    assert record.finished_at is not None
    late = (record.finished_at - record.started_at).total_seconds() - 2.3
    assert 0.5 < late < 1.5


def test_a_lost_start_is_made_up_for(site: Site) -> None:
    """protocols §7: an instance whose first hint got lost is started by its alarm, after five seconds."""

    async def flow(event, step):
        return "ran"

    flows = site.workflow(flow)
    site.worker(chef=True, deliver=False)
    began = time.monotonic()
    assert flows.create().result(10) == "ran"
    assert 4.5 < time.monotonic() - began < 7.5


# -- the cycle ---------------------------------------------------------------------------------------------


class Narrow:
    """A gate that grants so many."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.asked: list[int] = []

    def ask(self, instances: Any, weights: Any = None, more: Any = ()) -> set[UUID]:
        self.asked.append(len(instances))
        return {holder.instance for holder in instances[: self.slots]}

    def insist(self, instances: Any) -> None: ...

    def release(self, instances: Any) -> None: ...


def test_a_cycle_starts_what_is_granted_and_takes_what_is_due(site: Site) -> None:
    """protocols §7, §8: queued instances are asked for in one call; due alarms come with their own moments."""
    flow, gate = site.workflow(one), Narrow(2)
    queued = [flow.plant(now=START - 9 + n, queued=True) for n in range(4)]
    soon, later = flow.plant(now=START - 5 + 0.4), flow.plant(now=START)
    bench = site.bench()
    chef = SousChef(
        bench.engine, site.settings.account, site.registry.known, bench.clock, gate, list, bench.shards()
    )
    cycle = chef.cycle(START)
    assert gate.asked == [4]
    assert dict(cycle.wakes) == {queued[0]: START, queued[1]: START, soon: START + 0.4}
    assert not cycle.is_full
    assert site.row(queued[0]).status == "running"
    assert site.row(queued[2]).status == "queued"
    assert dict(chef.cycle(START + 1).wakes).keys() == {queued[2], queued[3], soon}
    assert later in dict(chef.cycle(START + 4.5).wakes)


def test_a_worker_takes_no_more_than_it_can_see_to(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §7: a backlog does not feed itself: what a worker has no room for is left to others, unmoved. A few are
    taken each second all the same, the oldest first: a flood must not keep sleepers from waking."""
    monkeypatch.setattr(souschef, "AT_LEAST", 2)
    flow, bench, waiting = site.workflow(one), site.bench(), souschef.PER_CYCLE
    planted = [flow.plant(now=START - 10 + n) for n in range(6)]
    chef = SousChef(
        bench.engine,
        site.settings.account,
        site.registry.known,
        bench.clock,
        Narrow(9),
        list,
        bench.shards(),
        lambda: waiting,
    )
    cycle = chef.cycle(START)
    assert (dict(cycle.wakes).keys(), cycle.is_full) == (set(planted[:2]), False)
    assert [site.row(instance).alarm for instance in planted[2:]] == [START - 3, START - 2, START - 1, START]
    waiting -= 3
    cycle = chef.cycle(START)
    assert (dict(cycle.wakes).keys(), cycle.is_full) == (set(planted[2:5]), True)
    waiting = 0
    assert planted[5] in dict(chef.cycle(START).wakes)


def test_the_alarm_index_serves_a_young_table(site: Site) -> None:
    """design §3: due alarms are found by their index, also before the first ANALYZE."""
    flow, bench = site.workflow(one), site.bench()
    for n in range(20):
        flow.plant(now=START + n)
    numbered, _ = session._numbered(alarms._TAKE)
    with bench.engine.begin() as connection:
        plan = "\n".join(
            row[0] for row in connection.exec_driver_sql(f"EXPLAIN (GENERIC_PLAN) {numbered.decode()}")
        )
    assert "orchestrator_instances_alarm" in plan, plan


def test_a_souschef_leaves_what_it_does_not_know(site: Site) -> None:
    """protocols §12: the SousChef of a workflow runs only where it is registered."""
    flow, bench = site.workflow(one), site.bench()
    instance, queued = flow.plant(), flow.plant(queued=True)
    for registry in (Registry(), Registry()):
        site.workflow(body_flow, registry)
        chef = SousChef(
            bench.engine,
            site.settings.account,
            registry.known,
            bench.clock,
            Narrow(9),
            list,
            bench.shards(registry),
        )
        assert chef.cycle(START + 100).wakes == []
    assert site.row(instance).alarm == START + 5
    assert site.row(queued).status == "queued"


async def body_flow(event, step):
    """Another workflow."""
