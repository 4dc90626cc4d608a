"""Lifecycle verbs against the real thing: pause, resume, terminate, delete."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from orchestrator import (
    InstanceNotFound,
    InvalidTransition,
    Retries,
    WorkflowFailed,
    WorkflowTerminated,
)
from orchestrator.errors import NotDurable, ServiceUnavailable
from orchestrator.store import session
from orchestrator.store.records import deletion
from orchestrator.workflow.execution import Wake
from orchestrator.workflow.language.definition import Registry
from orchestrator.workflow.status import Status
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration

TABLES = ("instances", "payloads", "steps", "attempts", "transitions", "inbox")


async def body(*args: Any) -> Any:
    return list(args)


class Gates:
    """Bodies that end when they are let go; ``began`` says which have begun."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self._open: dict[str, threading.Event] = {}

    def hold(self, name: str, value: Any = None) -> Callable[[], Any]:
        def body() -> Any:
            self.began.append(name)
            assert self._open.setdefault(name, threading.Event()).wait(15)
            return value

        return body

    def let_go(self, name: str) -> None:
        self._open.setdefault(name, threading.Event()).set()


def statuses(created: Any) -> dict[str, str]:
    return {step.key: step.status for step in created.steps()}


def is_status(created: Any, status: str) -> None:
    eventually(lambda: created.status().status == status, status)


def alarm(site: Site, created: Any) -> float:
    return float(site.row(site.id_of(created.id)).alarm)


def left(site: Site, *ids: Any) -> dict[str, int]:
    """Rows of these instances, by table, where there are any."""
    counts = {}
    for table in TABLES:
        column = "id" if table == "instances" else "instance_id"
        query = f"SELECT count(*) FROM orchestrator_{table} WHERE {column} = ANY(:ids)"
        counts[table] = site.sql(query, ids=list(ids))[0][0]
    return {table: count for table, count in counts.items() if count}


# -- pause and resume ------------------------------------------------------------------------------------------------


def test_steps_in_flight_finish_and_nothing_new_starts(site: Site) -> None:
    """semantics §4, protocols §10: ``waiting_for_pause`` until the last body has ended and is recorded, then
    ``paused`` without an alarm; ``resume`` goes on where it stopped."""
    gates = Gates()

    async def lifecycle_pausing(event, step):
        first, second = await asyncio.gather(
            step.do("a", gates.hold("a", 1)), step.do("b", gates.hold("b", 2))
        )
        return [first, second, await step.do("c", lambda: 3)]

    site.worker()
    created = site.workflow(lifecycle_pausing).create()
    eventually(lambda: sorted(gates.began) == ["a", "b"])
    created.pause()
    assert created.status().status is Status.WAITING_FOR_PAUSE
    gates.let_go("a")
    eventually(lambda: statuses(created)["do:a:1"] == "done")
    assert created.status().status is Status.WAITING_FOR_PAUSE
    gates.let_go("b")
    is_status(created, "paused")
    assert statuses(created) == {"do:a:1": "done", "do:b:1": "done"}
    assert alarm(site, created) == float("inf")
    created.resume()
    assert created.result(10) == [1, 2, 3]
    kinds = site.sql(
        "SELECT status FROM orchestrator_transitions WHERE instance_id = :id ORDER BY seq",
        id=site.id_of(created.id),
    )
    assert [row.status for row in kinds][:3] == ["waiting_for_pause", "paused", "queued"]


def test_a_pending_pause_is_taken_back(site: Site) -> None:
    """semantics §4: ``resume`` from ``waiting_for_pause`` cancels the pause; what it held is released."""
    gates = Gates()

    async def lifecycle_taken_back(event, step):
        a, b = step.do("a", gates.hold("a")), step.do("b", gates.hold("b"))
        await a
        await step.do("held", body)
        await b

    site.worker()
    created = site.workflow(lifecycle_taken_back).create()
    eventually(lambda: sorted(gates.began) == ["a", "b"])
    created.pause()
    gates.let_go("a")
    eventually(lambda: statuses(created)["do:a:1"] == "done")
    assert "do:held:1" not in statuses(created)
    created.resume()
    eventually(lambda: statuses(created).get("do:held:1") == "done")
    assert created.status().status is Status.RUNNING
    gates.let_go("b")
    created.result(10)


def test_a_message_under_way_claims_nothing(site: Site) -> None:
    """protocols §4: pause takes back what is handed out and not claimed; the old message is dropped, the step is
    handed out again by the resume."""

    async def lifecycle_offered(event, step):
        return await step.do("a", lambda: 1)

    bench, flow = site.bench(), site.workflow(lifecycle_offered)
    instance = flow.plant()
    (old,) = bench.wake(instance).handouts
    created = flow.get(str(instance))
    created.pause()
    assert created.status().status is Status.PAUSED
    assert bench.claim(old) == [None]
    assert bench.wake(instance).handouts == []
    created.resume()
    (new,) = bench.wake(instance).handouts
    assert new.fence > old.fence
    assert bench.claim(old) == [None]
    bench.finish(new, 1)
    assert (created.result(1), [len(step.attempts) for step in created.steps()]) == (1, [1])


def test_a_late_claim_wins_or_the_pause_does(site: Site) -> None:
    """protocols §4: a claim in flight is waited for: then its body is in flight, and the pause waits for it."""

    async def lifecycle_claimed(event, step):
        return await step.do("a", lambda: 1)

    bench, flow = site.bench(), site.workflow(lifecycle_claimed)
    instance = flow.plant()
    (handout,) = bench.wake(instance).handouts
    created = flow.get(str(instance))
    with site.engine.begin() as claiming:
        claiming.execute(
            text("UPDATE orchestrator_steps SET status = 'running', worker = :w WHERE instance_id = :i"),
            {"w": bench.id, "i": instance},
        )
        pausing = threading.Thread(target=created.pause)
        pausing.start()
        eventually(lambda: _waits_for_a_lock(site))
    pausing.join(10)
    assert created.status().status is Status.WAITING_FOR_PAUSE
    bench.finish(handout, 1)
    assert created.result(1) == 1


def _waits_for_a_lock(site: Site) -> bool:
    query = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%orchestrator_steps%'"
    )
    return bool(site.sql(query))


def test_timers_shift_by_the_pause(site: Site) -> None:
    """semantics §4: from ``paused``, by the time since it was; nothing rings meanwhile."""

    async def lifecycle_timers(event, step):
        await asyncio.gather(
            step.sleep("nap", 500), step.wait_for_event("w", type="go", timeout=900), return_exceptions=True
        )

    site.worker()
    created = site.workflow(lifecycle_timers).create()
    is_status(created, "waiting")
    instance = site.id_of(created.id)
    query = "SELECT key, extract(epoch FROM due_at)::float8 FROM orchestrator_steps WHERE instance_id = :id"
    before = dict(map(tuple, site.sql(query, id=instance)))
    created.pause()
    site.sql(
        "UPDATE orchestrator_transitions SET at = at - interval '1000 s' WHERE instance_id = :i", i=instance
    )
    created.resume()
    is_status(created, "waiting")
    after = dict(map(tuple, site.sql(query, id=instance)))
    shifts = {key: after[key] - before[key] for key in before}
    assert all(1000 <= shift < 1010 for shift in shifts.values())
    assert len(set(map(round, shifts.values()))) == 1
    assert alarm(site, created) == pytest.approx(after["sleep:nap:1"])


def test_events_while_paused_are_kept(site: Site) -> None:
    """semantics §3.2: events are buffered also while paused, and delivered after the resume."""

    async def lifecycle_events(event, step):
        return [(await step.wait_for_event("w", type="go", timeout=600)).payload for _ in range(2)]

    site.worker()
    created = site.workflow(lifecycle_events).create()
    is_status(created, "waiting")
    created.pause()
    created.send_event("go", 1)
    created.send_event("go", 2)
    assert statuses(created) == {"wait:w:1": "waiting"}
    created.resume()
    assert created.result(10) == [1, 2]


def test_what_was_never_started_does_not_begin(site: Site) -> None:
    """semantics §4: ``pause()`` from queued; neither a hint nor the queue starts it, ``resume`` does."""
    began: list[str] = []

    async def lifecycle_queued(event, step):
        began.append("code")

    worker = site.worker(chef=True)
    flow = site.workflow(lifecycle_queued)
    instance = flow.plant(queued=True)
    created = flow.get(str(instance))
    created.pause()
    worker.runtime.coordinate([instance])
    other = flow.create()
    other.result(10)
    assert (created.status().status, began) == (Status.PAUSED, ["code"])
    created.resume()
    assert created.result(10) is None
    assert began == ["code", "code"]


def test_a_finished_instance_is_neither_paused_nor_resumed(site: Site) -> None:
    """semantics §4: both raise, and say so."""

    async def lifecycle_over(event, step):
        return None

    site.worker()
    created = site.workflow(lifecycle_over).create()
    created.result(10)
    for verb in (created.pause, created.resume):
        with pytest.raises(InvalidTransition, match="complete already"):
            verb()


def test_nothing_happens_twice(site: Site) -> None:
    """semantics §4: on an instance that already is there both do nothing: no fact, no transition."""

    async def lifecycle_twice(event, step):
        await step.wait_for_event("w", type="go", timeout=600)

    site.worker()
    created = site.workflow(lifecycle_twice).create()
    is_status(created, "waiting")
    row = site.row(site.id_of(created.id))
    created.resume()
    assert site.row(row.id) == row
    created.pause()
    paused = site.row(row.id)
    created.pause()
    assert site.row(row.id) == paused


def test_a_rollback_is_not_held_up(site: Site) -> None:
    """semantics §5.7: a pause while the chain runs is accepted and changes nothing."""
    gates = Gates()

    async def lifecycle_undoing(event, step):
        await step.do("a", lambda: 1, rollback=lambda r: gates.hold("undo")())
        raise ValueError("no")

    site.worker()
    created = site.workflow(lifecycle_undoing).create()
    eventually(lambda: gates.began == ["undo"])
    created.pause()
    created.resume()
    assert created.status().status is Status.ROLLING_BACK
    gates.let_go("undo")
    with pytest.raises(WorkflowFailed) as caught:
        created.result(10)
    assert caught.value.rollback is not None
    assert caught.value.rollback.outcome == "complete"


def test_a_retry_waits_for_the_resume(site: Site) -> None:
    """semantics §4: an attempt that fails while a pause is pending is recorded; no new one starts."""
    gates = Gates()

    def flaky(ctx: Any) -> int:
        gates.hold(f"attempt {ctx.attempt}")()
        if ctx.attempt == 1:
            raise ConnectionError("away")
        return int(ctx.attempt)

    async def lifecycle_retries(event, step):
        return await step.do("a", flaky, retries=Retries(limit=1, delay=0.01))

    site.worker()
    created = site.workflow(lifecycle_retries).create()
    eventually(lambda: gates.began == ["attempt 1"])
    created.pause()
    gates.let_go("attempt 1")
    is_status(created, "paused")
    assert statuses(created) == {"do:a:1": "pending"}
    gates.let_go("attempt 2")
    created.resume()
    assert created.result(10) == 2


def test_a_lost_worker_does_not_hold_a_pause(site: Site) -> None:
    """semantics §2.5, §4: a body that is gone with its worker is recorded as lost, and the instance is paused."""

    async def endless() -> None:
        await asyncio.sleep(600)

    async def lifecycle_lost(event, step):
        await step.do("a", endless, retries=Retries(limit=3))

    doomed = site.worker(lease=0.6)
    created = site.workflow(lifecycle_lost).create()
    eventually(lambda: statuses(created) == {"do:a:1": "running"})
    created.pause()
    doomed.crash()
    site.worker(lease=0.6, chef=True)
    is_status(created, "paused")
    (step,) = created.steps()
    assert (step.status, [attempt.error.name for attempt in step.attempts]) == ("pending", ["WorkerLost"])


def test_the_slot_of_a_paused_instance_is_given_back(site: Site) -> None:
    """protocols §8: paused at once from outside, a worker gives it back; paused by its last body, the turn does."""
    gates = Gates()

    async def lifecycle_slots(event, step):
        if event.payload:
            await step.do("a", gates.hold("a"))
        await step.wait_for_event("w", type="go", timeout=600)

    worker = site.worker()
    released: list[UUID] = []
    worker.runtime._coordinator._slots._gate = _Counting(released)  # type: ignore[assignment]
    idle, busy = (site.workflow(lifecycle_slots).create(params) for params in (False, True))
    is_status(idle, "waiting")
    eventually(lambda: gates.began == ["a"])
    released.clear()
    idle.pause()
    eventually(lambda: site.id_of(idle.id) in released)
    busy.pause()
    assert site.id_of(busy.id) not in released
    gates.let_go("a")
    eventually(lambda: site.id_of(busy.id) in released)


class _Counting:
    """A gate that grants all and notes what is given back."""

    def __init__(self, released: list[UUID]) -> None:
        self.released = released

    def acquire(self, instances: Any) -> set[UUID]:
        return {holder.instance for holder in instances}

    def insist(self, instances: Any) -> None: ...

    def release(self, instances: Any) -> None:
        self.released.extend(holder.instance for holder in instances)


def test_a_blocked_instance_is_paused_and_resumed(site: Site) -> None:
    """protocols §12: it stays blocked and rings no more; after a resume code that fits goes on."""

    async def lifecycle_blocked(event, step):
        await step.do("a", lambda: 1)
        await step.wait_for_event("w", type="go", timeout=600)

    async def other_code(event, step):
        await step.do("b", lambda: 2)
        await step.wait_for_event("w", type="go", timeout=600)

    fits, other = site.bench(), Registry()
    flow = site.workflow(lifecycle_blocked)
    instance = flow.plant()
    fits.finish(*fits.wake(instance).handouts, 1)
    site.workflow(other_code, other, name=flow.name)
    site.bench(other).wake(instance)
    created = flow.get(str(instance))
    assert created.status().blocked is not None
    created.pause()
    assert (created.status().status, alarm(site, created)) == (Status.PAUSED, float("inf"))
    assert created.status().blocked is not None
    created.resume()
    created.send_event("go")
    fits.run({instance: [Wake()]})
    assert created.result(1) is None


# -- terminate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rollback", [False, True])
@pytest.mark.parametrize("where", ["queued", "waiting", "waiting_for_pause", "paused"])
def test_terminate_from_wherever(site: Site, where: str, rollback: bool) -> None:
    """semantics §4, §5.6: from every unfinished status, with and without a rollback."""
    gates, undone = Gates(), []

    async def lifecycle_terminated(event, step):
        await step.do("a", lambda: 1, rollback=lambda r: undone.append(r.error.name))
        if event.payload == "waiting_for_pause":
            await step.do("b", gates.hold("b"))
        await step.wait_for_event("w", type="go", timeout=600)

    flow = site.workflow(lifecycle_terminated)
    created = flow.get(str(flow.plant(where, queued=True)))
    if where != "queued":
        worker = site.worker(chef=True)
        if where == "waiting_for_pause":
            eventually(lambda: gates.began == ["b"])
        else:
            is_status(created, "waiting")
        if where != "waiting":
            created.pause()
    assert created.status().status == where
    created.terminate(rollback=rollback)
    gates.let_go("b")
    if where == "queued":
        worker = site.worker(chef=True)
    with pytest.raises(WorkflowTerminated) as caught:
        created.result(10)
    is_undone = rollback and where != "queued"
    assert undone == (["Terminated"] if is_undone else [])
    assert (caught.value.rollback is not None) is is_undone
    with pytest.raises(InvalidTransition, match="terminated already"):
        created.terminate(rollback=rollback)
    eventually(lambda: worker.runtime.attempts.active == 0)
    assert set(statuses(created).values()) <= {"done", "cancelled"}


def test_code_nobody_knows_is_terminated_paused_and_deleted(site: Site) -> None:
    """semantics §4, protocols §12: verbs need rows only: neither the version of the instance nor its code."""

    async def lifecycle_gone(event, step):
        await step.wait_for_event("w", type="go", timeout=600)

    async def other(event, step): ...

    site.worker()
    old = site.workflow(lifecycle_gone, version="1")
    one, two = old.create(), old.create()
    is_status(one, "waiting")
    is_status(two, "waiting")
    today = site.workflow(other, Registry(), name=old.name, version="9")
    today.get(one.id).pause()
    today.get(one.id).terminate(rollback=True)
    assert one.status().status is Status.TERMINATED
    today.get(two.id).delete()
    with pytest.raises(InstanceNotFound):
        two.status()


# -- all of them -----------------------------------------------------------------------------------------------------


def test_verbs_called_from_workflow_code_name_the_way_out(site: Site) -> None:
    """protocols §2: each would be done again on every replay."""
    seen: list[str] = []

    async def lifecycle_within(event, step):
        for verb in ("pause", "resume", "restart", "delete", "terminate"):
            try:
                getattr(target, verb)()
            except NotDurable as error:
                seen.append(verb)
                assert "inside step.do" in error.message
            try:
                await getattr(target, f"a{verb}")()
            except NotDurable as error:
                seen.append(f"a{verb}")
                assert "inside step.do" in error.message

    flow = site.workflow(lifecycle_within)
    target = flow.get(str(flow.plant()))
    site.worker()
    flow.create().result(10)
    assert len(seen) == 10


def test_unknown_instances_are_named(site: Site) -> None:
    """semantics §4: each verb raises ``InstanceNotFound`` with the id."""

    async def lifecycle_unknown(event, step): ...

    flow = site.workflow(lifecycle_unknown)
    created = flow.get(str(flow.plant()))
    created.delete()
    for verb in (created.pause, created.resume, created.restart, created.delete, created.terminate):
        with pytest.raises(InstanceNotFound, match=created.id):
            verb()


def test_the_async_twins(site: Site) -> None:
    """The same verbs with the prefix ``a``, for asyncio."""

    async def lifecycle_twins(event, step):
        return (await step.wait_for_event("w", type="go", timeout=600)).payload

    site.worker()

    async def use() -> None:
        created = await site.workflow(lifecycle_twins).acreate(orchestrator=site.client)
        await created.apause()
        assert (await created.astatus()).status in (Status.PAUSED, Status.WAITING_FOR_PAUSE)
        await created.aresume()
        await created.arestart()
        await created.asend_event("go", 1)
        assert await created.aresult(10) == 1
        await created.arestart(from_step="w", kind="wait")
        await created.aterminate()
        await created.adelete()
        with pytest.raises(InstanceNotFound):
            await created.astatus()

    asyncio.run(use())


def test_a_verb_that_gets_no_lock_says_what_became_of_the_instance(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """semantics §4: whoever holds the row is waited for, but not for ever, and nothing was changed."""

    async def lifecycle_locked(event, step): ...

    flow = site.workflow(lifecycle_locked)
    instance = flow.plant()
    created = flow.get(str(instance))
    row = site.row(instance)
    site.client.close()
    monkeypatch.setattr(session, "_CLIENT", "-c lock_timeout=100ms")
    with site.locked(instance), pytest.raises(ServiceUnavailable, match="was not paused"):
        created.pause()
    assert site.row(instance) == row


# -- delete ----------------------------------------------------------------------------------------------------------


def test_delete_leaves_no_row_and_frees_the_id(site: Site) -> None:
    """semantics §4: everything gone, no rollback, id free at once; who waits for its result is told."""
    undone: list[str] = []

    async def lifecycle_deleted(event, step):
        await step.do("a", body, rollback=lambda r: undone.append("a"))
        await step.wait_for_event("w", type="go")

    site.worker()
    flow = site.workflow(lifecycle_deleted)
    created = flow.create(id="it")
    created.send_event("other")
    eventually(lambda: created.status().status == "waiting")
    old = site.id_of("it")
    created.delete()
    assert left(site, old) == {}
    with pytest.raises(InstanceNotFound):
        created.result(10)
    for verb in (created.status, created.delete, created.terminate):
        with pytest.raises(InstanceNotFound, match="'it'"):
            verb()
    again = flow.create(id="it")
    again.send_event("go")
    assert again.result(10) is None
    assert undone == []


def test_who_waits_for_a_deleted_instance_is_told(site: Site) -> None:
    """semantics §4: ``result()`` raises ``InstanceNotFound`` as soon as the instance is gone."""

    async def lifecycle_awaited(event, step):
        await step.wait_for_event("w", type="go")

    created = site.workflow(lifecycle_awaited).create()

    async def both() -> None:
        waiting = asyncio.ensure_future(created.aresult(10))
        await asyncio.sleep(0)
        await created.adelete()
        with pytest.raises(InstanceNotFound):
            await waiting

    asyncio.run(both())


def test_a_running_body_of_a_deleted_instance_is_cancelled(site: Site) -> None:
    """semantics §4: nothing it returns is recorded, and no row comes back."""
    ended: list[str] = []

    async def endless() -> None:
        try:
            await asyncio.sleep(600)
        finally:
            ended.append("cancelled")

    async def lifecycle_endless(event, step):
        await step.do("endless", endless)

    worker = site.worker()
    created = site.workflow(lifecycle_endless).create()
    eventually(lambda: [step.status for step in created.steps()] == ["running"])
    instance = site.id_of(created.id)
    created.delete()
    eventually(lambda: ended == ["cancelled"])
    eventually(lambda: worker.runtime.attempts.active == 0)
    assert left(site, instance) == {}


def test_an_instance_may_delete_itself(site: Site) -> None:
    """semantics §4: a step body deletes its own instance; its result has nowhere to go, and that is all."""

    async def lifecycle_suicide(event, step):
        await step.do("bye", lambda: flow.get(event.instance_id).delete())

    worker = site.worker()
    flow = site.workflow(lifecycle_suicide)
    created = flow.create()
    with pytest.raises(InstanceNotFound):
        created.result(10)
    eventually(lambda: worker.runtime.attempts.active == 0)
    assert site.sql("SELECT count(*) FROM orchestrator_steps WHERE key = 'do:bye:1'")[0][0] == 0


def test_many_are_deleted_at_once(site: Site) -> None:
    """semantics §4: the verb behind ``delete_batch`` and retention: unknown ids do not matter, others are spared."""

    async def lifecycle_many(event, step):
        await step.do("a", body)

    flow = site.workflow(lifecycle_many)
    planted = [flow.plant() for _ in range(5)]
    with site.engine.begin() as connection:
        assert deletion.delete(connection, []) == set()
        gone = deletion.delete(connection, [*planted[:3], planted[0], UUID(int=7)])
    assert gone == set(planted[:3])
    assert left(site, *planted) == {"instances": 2, "payloads": 2}
