"""Turns at the gate: who is asked for, what queues, what is given back, and in how many calls."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from orchestrator import Orchestrator, Retries
from orchestrator.control.gatekeeping.gatekeeper import Gatekeeper
from orchestrator.engine.turning.results import Results
from orchestrator.ports import FOREVER, Holder
from orchestrator.store import alarms
from orchestrator.store.control import queue
from orchestrator.workflow.execution import Wake
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import START, Bench, Created, Site

pytestmark = pytest.mark.integration

ONCE_MORE = Retries(limit=1, delay=30, backoff="constant")


async def body(*args: Any) -> Any:
    return list(args)


async def gate_sleeper(event: Any, step: Any) -> Any:
    await step.do("a", body)
    await step.sleep("nap", 60)
    await step.do("b", body)


async def gate_listener(event: Any, step: Any) -> Any:
    received = await step.wait_for_event("w", type="go", timeout=600)
    return await step.do("a", body, received.payload)


class Door:
    """A gate with so many slots. ``asked``, ``released`` and ``insisted`` have an entry for each call."""

    def __init__(self, slots: int = 100) -> None:
        self.slots = slots
        self.held: set[UUID] = set()
        self.asked: list[list[UUID]] = []
        self.insisted: list[list[UUID]] = []
        self.released: list[list[UUID]] = []

    def acquire(self, wanted: Iterable[Holder]) -> set[UUID]:
        ids = [holder.instance for holder in wanted]
        self.asked.append(ids)
        granted: set[UUID] = set()
        for instance in ids:
            if instance in self.held or len(self.held) < self.slots:
                self.held.add(instance)
                granted.add(instance)
        return granted

    def insist(self, holders: Iterable[Holder]) -> None:
        ids = [holder.instance for holder in holders]
        self.insisted.append(ids)
        self.held.update(ids)

    def release(self, holders: Iterable[Holder]) -> None:
        ids = [holder.instance for holder in holders]
        self.released.append(ids)
        self.held.difference_update(ids)

    @property
    def calls(self) -> tuple[int, int, int]:
        return len(self.asked), len(self.insisted), len(self.released)


def started(bench: Bench, flow: Created, count: int = 1) -> list[UUID]:
    """So many instances that run, each with its first step done if it has one, as of the bench's time."""
    ids = [flow.plant(now=bench.clock.at) for _ in range(count)]
    for handout in bench.wake(*ids).handouts:
        bench.finish(handout)
    return ids


def transitions(site: Site, instance: UUID) -> list[str]:
    query = "SELECT status FROM orchestrator_transitions WHERE instance_id = :id ORDER BY seq"
    return [row[0] for row in site.sql(query, id=instance)]


def queued(site: Site, instance: UUID) -> tuple[str, bool, float | None, float]:
    """Status, awoken, queued at, alarm."""
    (row,) = site.sql(
        "SELECT status, awoken, extract(epoch FROM queued_at)::float8, extract(epoch FROM alarm_at)::float8 "
        "FROM orchestrator_instances WHERE id = :id",
        id=instance,
    )
    return row[0], row[1], row[2], row[3]


# -- asking ------------------------------------------------------------------------------------------------


def test_one_call_asks_for_all_that_wait_and_one_gives_back(site: Site) -> None:
    """protocols §8: a flush asks in one call for every instance in it that waits; after its commit those that no longer
    run give back, in one call."""
    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_sleeper)
    ids = [flow.plant() for _ in range(4)]
    handouts = bench.wake(*ids).handouts
    assert door.calls == (0, 0, 0), "running instances have their slots"
    claimed = bench.claim(*handouts)
    door.held = set(ids)
    outcomes = [bench.outcome(ready) for ready in claimed]
    bench.run({instance: [outcome] for instance, outcome in zip(ids, outcomes, strict=True)})
    assert door.asked == []
    assert [set(call) for call in door.released] == [set(ids)], "a sleep holds no slot"
    bench.clock.at += 60
    handouts = bench.wake(*ids).handouts
    assert len(handouts) == 4
    assert [set(call) for call in door.asked] == [set(ids)]
    assert {site.row(instance).status for instance in ids} == {"running"}
    assert door.held == set(ids)


def test_what_is_granted_no_slot_queues_as_awoken(site: Site) -> None:
    """protocols §8: nothing is fed, timers stay due, the queue index is its alarm; with a slot it goes on."""
    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_sleeper)
    first, second = started(bench, flow, 2)
    door.slots = 1
    bench.clock.at += 60
    results = bench.wake(first, second)
    assert [handout.instance for handout in results.handouts] == [first]
    assert queued(site, second) == ("queued", True, bench.clock.at, FOREVER)
    assert transitions(site, second) == ["waiting", "queued"]
    assert second in results.changed
    assert site.step(second, "sleep:nap:1").status == "waiting", "nothing was fed"
    assert not bench.wake(second).handouts
    assert transitions(site, second) == ["waiting", "queued"], "it keeps its place"
    bench.clock.at += 7
    assert queued(site, second)[2] == bench.clock.at - 7
    door.held.clear()
    with bench.engine.begin() as connection:
        assert queue.start(connection, [second], bench.clock.at + 5) == [second]
    door.held.add(second)
    (handout,) = bench.wake(second).handouts
    assert handout.key == "do:b:1"
    assert transitions(site, second) == ["waiting", "queued", "running"]
    bench.finish(handout)
    assert site.row(second).status == "complete"
    assert door.held == set()


def test_events_stay_in_the_inbox_of_one_that_queues(site: Site) -> None:
    """protocols §8, semantics §3.2: events are not taken before there is a slot, and the first one in time counts."""
    door = Door(0)
    bench, flow = site.bench(gate=door), site.workflow(gate_listener)
    (instance,) = started(bench, flow)
    assert site.row(instance).status == "waiting"
    created = flow.get(str(instance))
    for payload in (1, 2):
        created.send_event("go", payload)
        bench.wake(instance)
    assert queued(site, instance)[0] == "queued"
    assert len(site.sql("SELECT 1 FROM orchestrator_inbox WHERE instance_id = :id", id=instance)) == 2
    door.slots = 1
    (handout,) = bench.wake(instance).handouts
    bench.finish(handout, 1)
    assert created.status().output == 1


def test_where_nothing_is_due_nothing_is_asked_for(site: Site) -> None:
    """protocols §8: a slot is for what is fed: a waiter that is woken for nothing neither asks for one nor queues."""
    door = Door(0)
    bench, flow = site.bench(gate=door), site.workflow(gate_listener)
    (instance,) = started(bench, flow)
    before = door.calls
    bench.clock.at += 5
    flow.get(str(instance)).send_event("other")
    bench.replays.drop(instance)
    for _ in range(2):
        assert not bench.wake(instance).handouts
    assert site.row(instance).status == "waiting"
    assert door.calls == before


def test_a_gate_that_is_away_stops_nothing_that_runs(site: Site) -> None:
    """protocols §8, semantics §6: without the gate nothing is granted, and what runs goes on to its end."""
    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_sleeper)
    (waiting,) = started(bench, flow)
    bench.clock.at += 60
    running = flow.plant(now=bench.clock.at)
    (handout,) = bench.wake(running).handouts
    door.slots = 0
    bench.wake(waiting)
    assert site.row(waiting).status == "queued"
    bench.finish(handout)
    assert site.row(running).status == "waiting"
    door.slots = 1
    bench.clock.at += 60
    (handout,) = bench.wake(running).handouts
    door.slots = 0
    bench.finish(handout)
    assert site.row(running).status == "complete"


def test_nobody_is_asked_while_a_row_is_locked(site: Site) -> None:
    """protocols §1, §8: what comes to need a slot under the lock is done in the next flush; one that was granted before
    goes on."""
    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_sleeper)
    first, second = started(bench, flow, 2)
    bench.clock.at += 60
    for instance in (first, second):
        bench.replays.lost_race(instance, bench.clock.at)
    door.slots = 1
    results = bench.wake(first, second)
    assert [handout.instance for handout in results.handouts] == [first]
    assert second not in results.repeat
    assert [len(call) for call in door.asked] == [2]
    assert queued(site, second)[0] == "queued"


# -- giving back --------------------------------------------------------------------------------------------


def test_a_retry_waits_without_a_slot(site: Site) -> None:
    """semantics §2.2, protocols §8: a waiting retry holds none, and asks for one when it is due."""

    async def gate_retry(event: Any, step: Any) -> Any:
        await step.do("a", body, retries=ONCE_MORE)

    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_retry)
    instance = flow.plant()
    (handout,) = bench.wake(instance).handouts
    door.held.add(instance)
    bench.finish(handout, error='{"name":"ValueError","message":"no"}')
    assert (site.row(instance).status, door.held) == ("waiting", set())
    door.slots = 0
    bench.clock.at += 30
    bench.wake(instance)
    assert site.row(instance).status == "queued"
    assert site.step(instance, "do:a:1").status == "pending"
    door.slots = 1
    (handout,) = bench.wake(instance).handouts
    assert site.step(instance, handout.key).attempt == 2


def test_what_is_granted_and_comes_to_nothing_is_given_back(site: Site) -> None:
    """protocols §8: a turn that leaves its instance waiting gives back what it was granted for it."""

    async def gate_naps(event: Any, step: Any) -> Any:
        await step.sleep("one", 10)
        await step.sleep("two", 10)

    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_naps)
    (instance,) = started(bench, flow)
    bench.clock.at += 10
    bench.wake(instance)
    assert site.step(instance, "sleep:two:1") is not None
    assert (door.asked[-1], door.released[-1], door.held) == ([instance], [instance], set())


def test_who_is_blocked_gives_its_slot_back(site: Site) -> None:
    """protocols §12: an instance that is held holds no slot, and asks for one before it is tried again."""

    async def gate_other(event: Any, step: Any) -> Any:
        await step.sleep("else", 60)

    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_sleeper)
    (instance,) = started(bench, flow)
    code = Registry()
    site.workflow(gate_other, code, name="gate_sleeper")
    stale = site.bench(code, bench.clock, door)
    bench.clock.at += 60
    stale.wake(instance)
    assert site.row(instance).blocked is not None
    assert (door.asked[-1], door.held) == ([instance], set())
    door.slots = 0
    stale.wake(instance)
    assert queued(site, instance)[0] == "queued"
    door.slots = 1
    assert [handout.key for handout in bench.wake(instance).handouts] == ["do:b:1"]


@pytest.mark.parametrize("verb", ["pause", "terminate", "delete"])
def test_what_a_verb_ends_is_given_back_by_the_next_turn(site: Site, verb: str) -> None:
    """protocols §8: who paused, ended or deleted an instance from outside has no slots to give; a worker has."""
    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_sleeper)
    instance = flow.plant()
    bench.wake(instance)
    door.held.add(instance)
    getattr(flow.get(str(instance)), verb)()
    bench.wake(instance)
    assert door.held == set()


def test_a_pending_pause_holds_its_slot(site: Site) -> None:
    """semantics §4, protocols §8: until the last body has ended, it counts; then it is given back."""
    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_sleeper)
    instance = flow.plant()
    (handout,) = bench.wake(instance).handouts
    (ready,) = bench.claim(handout)
    door.held.add(instance)
    flow.get(str(instance)).pause()
    bench.wake(instance)
    assert (site.row(instance).status, door.held) == ("waiting_for_pause", {instance})
    bench.run({instance: [bench.outcome(ready)]})
    assert (site.row(instance).status, door.held) == ("paused", set())


# -- verbs on what queues --------------------------------------------------------------------------------------


def denied(site: Site, flow: Created) -> tuple[Bench, Door, UUID]:
    """An instance that awoke and was granted nothing."""
    door = Door()
    bench = site.bench(gate=door)
    (instance,) = started(bench, flow)
    door.slots = 0
    bench.clock.at += 60
    bench.wake(instance)
    assert queued(site, instance)[0] == "queued"
    return bench, door, instance


def test_one_that_queues_is_paused_and_resumed(site: Site) -> None:
    """semantics §4, protocols §8: out of the queue at once, and back into it as awoken; its timers are as late as the
    pause was long."""
    flow = site.workflow(gate_sleeper)
    bench, door, instance = denied(site, flow)
    created = flow.get(str(instance))
    created.pause()
    assert queued(site, instance) == ("paused", False, None, FOREVER)
    door.slots = 1
    assert not bench.wake(instance).handouts
    created.resume()
    assert queued(site, instance)[:2] == ("queued", True)
    bench.clock.at += 60
    (handout,) = bench.wake(instance).handouts
    assert handout.key == "do:b:1"


@pytest.mark.parametrize("rollback", [False, True])
def test_one_that_queues_is_terminated(site: Site, rollback: bool) -> None:
    """semantics §4: from the queue, with a rollback or without; the rollback asks nobody."""
    undone: list[str] = []

    async def gate_undone(event: Any, step: Any) -> Any:
        await step.do("a", body, rollback=lambda r: undone.append("a"))
        await step.sleep("nap", 60)

    flow = site.workflow(gate_undone)
    bench, door, instance = denied(site, flow)
    flow.get(str(instance)).terminate(rollback=rollback)
    if rollback:
        (handout,) = bench.wake(instance).handouts
        assert (handout.key, door.held) == ("do:a:1:rollback", {instance})
        bench.finish(handout)
    bench.wake(instance)
    assert (site.row(instance).status, door.held) == ("terminated", set())


def test_one_that_queues_is_restarted(site: Site) -> None:
    """semantics §4: a restart keeps it in the queue, as awoken."""
    flow = site.workflow(gate_sleeper)
    bench, door, instance = denied(site, flow)
    flow.get(str(instance)).restart()
    assert queued(site, instance)[:2] == ("queued", True)
    assert not bench.wake(instance).handouts
    door.slots = 1
    (handout,) = bench.wake(instance).handouts
    assert (handout.key, site.row(instance).run) == ("do:a:1", 1)


def test_a_running_one_keeps_its_slot_through_a_restart(site: Site) -> None:
    """semantics §4, protocols §8: it neither asks nor gives back."""
    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_sleeper)
    instance = flow.plant()
    bench.wake(instance)
    door.held.add(instance)
    flow.get(str(instance)).restart()
    bench.replays.drop(instance)
    (handout,) = bench.wake(instance).handouts
    assert (handout.key, door.calls, door.held) == ("do:a:1", (0, 0, 0), {instance})


# -- rollbacks --------------------------------------------------------------------------------------------


def test_a_rollback_has_a_slot_whatever_the_limit(site: Site) -> None:
    """protocols §8: a rollback is granted its slot even over the limit, and keeps it between retries of a handler."""

    async def gate_fails(event: Any, step: Any) -> Any:
        await step.do("a", body, rollback=body, rollback_retries=ONCE_MORE)
        await step.do("b", body, retries=Retries(limit=0))

    door = Door(0)
    bench, flow = site.bench(gate=door), site.workflow(gate_fails)
    instance = flow.plant()
    (handout,) = bench.wake(instance).handouts
    (handout,) = bench.finish(handout).handouts
    error = '{"name":"ValueError","message":"no"}'
    (handout,) = bench.finish(handout, error=error).handouts
    assert site.row(instance).status == "rolling_back"
    assert (door.asked, door.insisted, door.held) == ([], [[instance]], {instance})
    bench.finish(handout, error=error)
    assert door.held == {instance}, "it waits for the retry of a handler"
    bench.clock.at += 30
    (handout,) = bench.wake(instance).handouts
    assert door.insisted == [[instance]], "once is enough"
    bench.finish(handout)
    assert (site.row(instance).status, door.held) == ("errored", set())


@pytest.mark.parametrize("where", ["waiting", "paused", "queued"])
def test_a_rollback_from_outside_has_a_slot_too(site: Site, where: str) -> None:
    """protocols §8, semantics §5.6: whoever finds an instance rolling back insists on its slot."""

    async def gate_told(event: Any, step: Any) -> Any:
        await step.do("a", body, rollback=body)
        await step.sleep("nap", 60)

    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_told)
    (instance,) = started(bench, flow)
    door.slots = 0
    created = flow.get(str(instance))
    if where == "queued":
        bench.clock.at += 60
        bench.wake(instance)
    elif where == "paused":
        created.pause()
    assert site.row(instance).status == where
    created.terminate(rollback=True)
    (handout,) = bench.wake(instance).handouts
    assert (door.insisted[-1], door.held) == ([instance], {instance})
    bench.finish(handout)
    assert (site.row(instance).status, door.held) == ("terminated", set())


def test_a_child_that_undoes_itself_has_a_slot_too(site: Site) -> None:
    """protocols §8, §15: a complete child that rolls back at its parent's word, over the limit."""

    async def gate_child(event: Any, step: Any) -> Any:
        await step.do("a", body, rollback=body)

    door = Door()
    bench, children = site.bench(gate=door), site.workflow(gate_child)

    async def gate_parent(event: Any, step: Any) -> Any:
        await step.invoke("c", children)
        await step.do("b", body, retries=Retries(limit=0))

    parent = site.workflow(gate_parent).plant()
    (child,) = [hint for hint in bench.wake(parent).hints if hint != parent]
    (handout,) = bench.wake(child).handouts
    results = bench.finish(handout)
    bench.wake(child)
    assert site.row(child).status == "complete"
    assert parent in results.hints
    (handout,) = bench.wake(parent).handouts
    door.slots, error = 0, '{"name":"ValueError","message":"no"}'
    results = bench.finish(handout, error=error)
    for _ in range(4):
        results = bench.run({i: [Wake()] for i in {parent, child}})
        if results.handouts:
            break
    assert site.row(child).status == "rolling_back"
    assert {parent, child} <= door.held
    bench.finish(results.handouts[0])
    for _ in range(4):
        bench.wake(child, parent)
    assert (site.row(child).status, site.row(parent).status) == ("terminated", "errored")
    assert door.held == set()


def test_a_held_rollback_keeps_its_slot(site: Site) -> None:
    """protocols §8, §12: what is blocked while it rolls back is rolling back all the same."""

    async def gate_stuck(event: Any, step: Any) -> Any:
        await step.do("a", body, rollback=body)
        await step.sleep("nap", 60)

    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_stuck)
    (instance,) = started(bench, flow)
    flow.get(str(instance)).terminate(rollback=True)
    bench.wake(instance)
    results = Results()
    bench.coordinator.block([(instance, RuntimeError("no"))], results)
    bench.coordinator.settle(results)
    row = site.row(instance)
    assert (row.status, row.blocked is not None, door.held) == ("rolling_back", True, {instance})


# -- the whole ----------------------------------------------------------------------------------------------


def test_a_fast_path_asks_nobody(site: Site) -> None:
    """design §5, protocols §1: between its first step and its last a running instance costs the gate nothing."""

    async def gate_chain(event: Any, step: Any) -> Any:
        for _ in range(5):
            await asyncio.gather(step.do("a", body), step.do("b", body))

    door = Door()
    bench, flow = site.bench(gate=door), site.workflow(gate_chain)
    instance = flow.plant()
    handouts = bench.wake(instance).handouts
    while handouts:
        handouts = [h for handout in handouts for h in bench.finish(handout).handouts]
    assert site.row(instance).status == "complete"
    assert (door.asked, door.insisted, door.released) == ([], [], [[instance]])


def test_alarms_of_what_queues_ring_nowhere(site: Site) -> None:
    """protocols §7, §8: one that queues is in no alarm's way: the queue index brings it back."""
    flow = site.workflow(gate_sleeper)
    bench, _, instance = denied(site, flow)
    with bench.engine.begin() as connection:
        assert not alarms.take(
            connection, site.settings.account, ["gate_sleeper@1"], START, START + 1e9, 1.0, 9
        ).due
    assert site.row(instance).status == "queued"


# -- the real gate --------------------------------------------------------------------------------------------


def keeper(site: Site, slots: int) -> Gatekeeper:
    """A Gatekeeper that grants so many."""
    gate = Gatekeeper(replace(site.settings, max_concurrency=slots), uuid4().hex, lambda workflow: None)
    server = gate.clear(())
    assert server is not None
    assert gate.open(server)
    return gate


@pytest.mark.parametrize("way", ["one", "several"])
def test_the_slot_of_a_deleted_instance_is_free_at_once(site: Site, way: str) -> None:
    """semantics §4, protocols §8: nobody can tell any more whose slot it was, so whoever deletes gives it back."""
    gate = keeper(site, 1)
    bench, flow = site.bench(gate=gate), site.workflow(gate_sleeper)
    first, second = flow.plant(), flow.plant(queued=True)
    assert gate.acquire([Holder(first, flow.name)]) == {first}
    assert not bench.wake(second).handouts
    with Orchestrator(site.settings) as client:
        if way == "one":
            flow.get(str(first), orchestrator=client).delete()
        else:
            flow.delete_batch([str(first)], orchestrator=client)
    assert len(bench.wake(second).handouts) == 1
    gate.close()


def test_a_silent_gate_costs_one_time_out_a_second(site: Site) -> None:
    """protocols §8, semantics §6: Redis is stopped: what waits queues, what runs goes on, and nobody waits for long."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        gate = Gatekeeper(replace(site.settings, redis_url=url), uuid4().hex, lambda workflow: None)
        bench, flow = site.bench(gate=gate), site.workflow(gate_sleeper)
        ids = [flow.plant() for _ in range(6)]
        claimed = bench.claim(*bench.wake(*ids).handouts)
        began = time.monotonic()
        for ready in claimed:
            assert ready is not None
            bench.run({ready.claimed.claim.instance: [bench.outcome(ready)]})
        bench.clock.at += 60
        for instance in ids:
            bench.wake(instance)
        took = time.monotonic() - began
        gate.close()
    assert {site.row(instance).status for instance in ids} == {"queued"}
    assert took < 6, "twelve calls of a second each would take twice as long"
