"""Events: the inbox, waiters in line, time-outs, and the order of arrivals in one turn."""

import asyncio
import threading
from typing import Any

import pytest

from orchestrator import EventTimeout
from orchestrator.errors import InstanceNotFound, InvalidName, InvalidTransition, PayloadTooLarge
from orchestrator.store import events
from tests.integration.harness import START, Site, eventually

pytestmark = pytest.mark.integration


async def body(*args: Any) -> Any:
    return list(args)


def inbox(site: Site, name_id: str) -> list[Any]:
    return site.sql(
        "SELECT number, type FROM orchestrator_inbox WHERE instance_id = :id ORDER BY number",
        id=site.id_of(name_id),
    )


def received(site: Site, created: Any, instance: Any, type: str, payload: str, at: float) -> None:
    with site.engine.begin() as connection:
        events.append(connection, site.settings.account, created.name, str(instance), type, payload, at)


def test_events_are_buffered_from_the_first_moment(site: Site) -> None:
    """protocols §9: sent before anybody waits, even before the instance began, first in first out per type; each is
    consumed by one waiter, in the transaction that resolves it."""

    async def flow(event, step):
        got = [(await step.wait_for_event("w", type="a")).payload for _ in range(2)]
        await step.do("between", body)
        got.append((await step.wait_for_event("w", type="b")).payload)
        got.append((await step.wait_for_event("w", type="a")).payload)
        return got

    created = site.workflow(flow).create(id="early")
    for sent in (("a", 1), ("b", {"x": [2]}), ("a", 3), ("other", 0)):
        created.send_event(*sent)
    assert len(inbox(site, "early")) == 4
    worker = site.worker()
    worker.runtime.coordinate([site.id_of("early")])
    eventually(lambda: len(inbox(site, "early")) == 1)
    created.send_event("a", None)
    assert created.result(10) == [1, 3, {"x": [2]}, None]
    assert [row.type for row in inbox(site, "early")] == ["other"]


def test_waiters_are_served_in_line(site: Site) -> None:
    """protocols §9: first come, first served; one event resolves one waiter; the received event says type and time."""

    async def flow(event, step):
        first, second = step.wait_for_event("x", type="go"), step.wait_for_event("y", type="go")
        b = await second
        a = await first
        return [a.payload, b.payload, a.type, a.timestamp <= b.timestamp]

    site.worker()
    created = site.workflow(flow).create()
    created.send_event("go", "first")
    eventually(lambda: [step.status for step in created.steps()] == ["done", "waiting"])
    created.send_event("go", "second")
    assert created.result(10) == ["first", "second", "go", True]


def test_an_event_received_in_time_counts_however_late_the_turn(site: Site) -> None:
    """protocols §9: a waiter gets the first event received before its due time; what came later is for the next."""

    async def flow(event, step):
        first = await step.wait_for_event("w", type="go", timeout=10)
        try:
            await step.wait_for_event("w", type="go", timeout=10)
        except EventTimeout as error:
            late = await step.wait_for_event("w", type="go", timeout=10)
            return [first.payload, type(error).__name__, late.payload]

    flows, bench = site.workflow(flow), site.bench()
    instance = flows.plant()
    bench.wake(instance)
    received(site, flows, instance, "go", '"in time"', START + 9.9)
    bench.clock.at = START + 100
    bench.wake(instance)
    received(site, flows, instance, "go", '"too late"', START + 110.1)
    bench.clock.at = START + 130
    bench.wake(instance)
    output = site.sql("SELECT output FROM orchestrator_payloads WHERE instance_id = :id", id=instance)
    assert output == [('["in time","EventTimeout","too late"]',)]


def test_arrivals_of_one_turn_have_an_order(site: Site) -> None:
    """protocols §9: outcomes as they came, then due timers and time-outs by due time, then events by number."""
    order: list[str] = []

    async def flow(event, step):
        async def told(name, awaitable):
            try:
                await awaitable
            except EventTimeout:
                name += " timed out"
            order.append(name)

        await asyncio.gather(
            told("event 2", step.wait_for_event("b", type="two")),
            told("event 1", step.wait_for_event("a", type="one")),
            told("late nap", step.sleep("l", 9)),
            told("wait", step.wait_for_event("t", type="never", timeout=7)),
            told("early nap", step.sleep("e", 5)),
            told("do 1", step.do("x", body)),
            told("do 2", step.do("y", body)),
        )

    flows, bench = site.workflow(flow), site.bench()
    instance = flows.plant()
    x, y = bench.wake(instance).handouts
    received(site, flows, instance, "one", "1", START + 1)
    received(site, flows, instance, "two", "1", START + 2)
    ready = bench.claim(y, x)
    bench.clock.at = START + 10
    order.clear()
    bench.replays.clear()
    bench.run({instance: [bench.outcome(r) for r in ready]})
    assert order == ["do 2", "do 1", "early nap", "wait timed out", "late nap", "event 1", "event 2"]
    order.clear()
    replayed = site.row(instance)
    assert replayed.status == "complete"


def test_what_is_started_meanwhile_is_settled_in_the_same_turn(site: Site) -> None:
    """protocols §9: a wait with a buffered event and a sleep of 0 need no turn of their own."""

    async def flow(event, step):
        for _ in range(20):
            await step.sleep("s", 0)
            await step.wait_for_event("w", type="go")

    flows, bench = site.workflow(flow), site.bench()
    instance = flows.plant()
    for _ in range(20):
        received(site, flows, instance, "go", "1", START)
    assert not bench.wake(instance).repeat
    assert site.row(instance).status == "complete"


def test_many_senders_and_one_instance(site: Site) -> None:
    """protocols §9: the sender locks the row: every event has its own number, none is lost beside running turns."""

    async def flow(event, step):
        got = []
        for _ in range(120):
            got.append((await step.wait_for_event("w", type="go")).payload)
            if len(got) % 10 == 0:
                await step.do("s", body)
        return got

    flows = site.workflow(flow)
    for _ in range(2):
        site.worker()
    created = flows.create()

    def send(sender: int) -> None:
        for number in range(20):
            created.send_event("go", [sender, number])

    senders = [threading.Thread(target=send, args=(n,)) for n in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    got = created.result(30)
    assert sorted(got) == [[s, n] for s in range(6) for n in range(20)]
    for s in range(6):
        assert [n for sender, n in got if sender == s] == list(range(20)), "a sender's events changed places"


def test_who_takes_no_events_says_so(site: Site) -> None:
    """protocols §9: a finished instance refuses, an unknown one does not exist; bad types and payloads are refused
    before anything is stored."""

    async def flow(event, step):
        await step.wait_for_event("w", type="go")

    flows = site.workflow(flow)
    site.worker()
    created = flows.create(id="one")
    with pytest.raises(InvalidName):
        created.send_event("not a type")
    with pytest.raises(PayloadTooLarge):
        created.send_event("go", "x" * 1_100_000)
    created.send_event("go")
    created.result(10)
    with pytest.raises(InvalidTransition, match="complete"):
        created.send_event("go")
    created.id = "nobody"
    with pytest.raises(InstanceNotFound):
        created.send_event("go")
    assert inbox(site, "one") == []


@pytest.mark.parametrize("meanwhile", ["begins a wait", "ends", "goes"])
def test_an_event_that_waited_for_the_row_sees_what_became_of_it(site: Site, meanwhile: str) -> None:
    """protocols §9: the event comes as a turn is writing. A wait that the turn began wakes at once; an instance that
    it ended takes no event; one that was deleted is not found."""

    async def flow(event, step): ...

    created = site.workflow(flow).create(id="one")
    instance = site.id_of("one")
    before = site.row(instance).alarm
    outcome: list[Any] = []

    def send() -> None:
        try:
            outcome.append(created.send_event("go", 1))
        except (InstanceNotFound, InvalidTransition) as error:
            outcome.append(error)

    thread = threading.Thread(target=send)
    with site.locked(instance) as turn:
        held_by = turn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        site.post.turns.clear()
        thread.start()
        waiting = "SELECT 1 FROM pg_stat_activity WHERE :held_by = ANY(pg_blocking_pids(pid))"
        eventually(lambda: site.sql(waiting, held_by=held_by), "waiting for the row")
        if meanwhile == "begins a wait":
            turn.exec_driver_sql("UPDATE orchestrator_instances SET seq = seq + 1 WHERE id = %s", (instance,))
            turn.exec_driver_sql(
                "INSERT INTO orchestrator_steps (instance_id, key, kind, status, started_seq, started_at, config) "
                "VALUES (%s, 'wait:w:1', 'wait', 'waiting', 1, now(), '{\"type\": \"go\"}')",
                (instance,),
            )
        elif meanwhile == "ends":
            turn.exec_driver_sql(
                "UPDATE orchestrator_instances SET seq = seq + 1, status = 'complete' WHERE id = %s",
                (instance,),
            )
        else:
            turn.exec_driver_sql("DELETE FROM orchestrator_instances WHERE id = %s", (instance,))
            turn.exec_driver_sql("DELETE FROM orchestrator_payloads WHERE instance_id = %s", (instance,))
    thread.join(10)
    if meanwhile == "begins a wait":
        assert outcome == [None]
        assert inbox(site, "one") == [(2, "go")]
        assert site.row(instance).alarm < before
        assert site.post.turns == [instance]
    else:
        assert type(outcome[0]) is (InvalidTransition if meanwhile == "ends" else InstanceNotFound)
        assert site.sql("SELECT 1 FROM orchestrator_inbox WHERE instance_id = :id", id=instance) == []
