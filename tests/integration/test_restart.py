"""Restarts against the real thing: from the top and from a step."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator import InvalidTransition, Retries, WorkflowFailed, WorkflowTerminated
from orchestrator.errors import InvalidConfig
from orchestrator.workflow.status import Status
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration

ONCE = Retries(limit=0)


class Journal:
    """What bodies did, in order; a body told to ``wait`` does so until it is let go."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.names: list[str] = []
        self.go = asyncio.Event()

    async def do(self, ctx: Any, value: Any = None) -> Any:
        self.names.append(ctx.name)
        self.keys.append(ctx.idempotency_key)
        return value


def statuses(created: Any) -> dict[str, str]:
    return {step.key: step.status for step in created.steps()}


def waits(created: Any) -> None:
    eventually(lambda: created.status().status == "waiting")


# -- from the top ----------------------------------------------------------------------------------------------------


def test_restart_runs_it_all_again(site: Site) -> None:
    """semantics §4: same id and params; step state and output gone; the retention clock stops."""
    journal = Journal()

    async def restart_all(event, step):
        first = await step.do("a", journal.do, event.payload)
        return [first, str(step.uuid())]

    site.worker()
    created = site.workflow(restart_all).create({"n": 1}, id="again")
    before = created.result(10)
    row = site.row(site.id_of("again"))
    created.restart()
    after = eventually(lambda: created.status().output)
    assert after[0] == before[0] == {"n": 1}
    assert after[1] != before[1]  # chance is of the run
    assert journal.names == ["a", "a"]
    assert journal.keys[0] != journal.keys[1], "the key of a new run is a new one"
    again = site.row(row.id)
    assert (again.run, again.status) == (row.run + 1, "complete")
    assert again.seq > row.seq, "protocols §3: seq never goes back"


@pytest.mark.parametrize("ended", ["complete", "errored", "terminated"])
def test_a_finished_instance_is_restarted(site: Site, ended: str) -> None:
    """semantics §4: from any status; error, output, rollback and expiry are gone at once."""

    async def restart_ended(event, step):
        await step.do("a", lambda: 1, rollback=lambda r: None)
        got = await step.wait_for_event("w", type="go")
        if got.payload == "fail":
            raise ValueError("told to")
        return got.payload

    site.worker()
    created = site.workflow(restart_ended).create(id="ended")
    waits(created)
    if ended == "terminated":
        created.terminate(rollback=True)
        with pytest.raises(WorkflowTerminated):
            created.result(10)
    elif ended == "errored":
        created.send_event("go", "fail")
        with pytest.raises(WorkflowFailed):
            created.result(10)
    else:
        created.send_event("go", "fine")
        created.result(10)
    created.restart()
    waits(created)
    status = created.status()
    assert (status.output, status.error, status.rollback) == (None, None, None)
    (expires,) = site.sql(
        "SELECT expires_at, ended_at, ended_seq, ending FROM orchestrator_instances WHERE id = :id",
        id=site.id_of("ended"),
    )
    assert tuple(expires) == (None, None, None, None)
    assert list(statuses(created)) == ["do:a:1", "wait:w:1"]
    created.send_event("go", 7)
    assert created.result(10) == 7


def test_buffered_events_and_timers_go(site: Site) -> None:
    """semantics §4: all step state, timers and buffered events gone."""

    async def restart_events(event, step):
        await step.sleep("s", 3600)
        return (await step.wait_for_event("w", type="go")).payload

    site.worker()
    created = site.workflow(restart_events).create(id="it")
    waits(created)
    created.send_event("go", "old")
    created.restart()
    waits(created)
    assert site.sql("SELECT 1 FROM orchestrator_inbox WHERE instance_id = :id", id=site.id_of("it")) == []


def test_a_running_instance_keeps_its_slot(site: Site) -> None:
    """semantics §4: it runs on, its body is cancelled and what that returns is not recorded."""
    told: list[str] = []

    async def first(ctx: Any) -> str:
        told.append("started")
        try:
            await asyncio.sleep(0 if len(told) > 1 else 600)
        except asyncio.CancelledError:
            told.append("cancelled")
            return "late"
        return "second"

    async def restart_running(event, step):
        return await step.do("a", first)

    site.worker()
    created = site.workflow(restart_running).create()
    eventually(lambda: told == ["started"])
    instance = site.id_of(created.id)
    created.restart()
    assert site.row(instance).status == "running"
    assert created.result(10) == "second"
    eventually(lambda: "cancelled" in told)
    assert [step.output for step in created.steps()] == ["second"]


def test_a_queued_and_a_paused_instance_are_restarted(site: Site) -> None:
    """semantics §4: from any status."""

    async def restart_resting(event, step):
        return "done"

    flow = site.workflow(restart_resting)
    queued = flow.plant(queued=True)
    created = flow.get(str(queued))
    created.pause()
    assert created.status().status is Status.PAUSED
    created.restart()
    assert created.status().status is Status.QUEUED
    created.restart()
    site.worker().runtime.coordinate([queued])
    assert created.result(10) == "done"
    assert site.row(queued).run == 2


def test_a_rollback_is_broken_off(site: Site) -> None:
    """semantics §4: rolling_back is a status like any other; its handlers are cancelled and forgotten."""

    async def endless(r: Any) -> None:
        await asyncio.sleep(600)

    async def restart_undoing(event, step):
        await step.do("a", lambda: 1, rollback=endless)
        got = await step.wait_for_event("w", type="go", timeout=600)
        if got.payload == "fail":
            raise ValueError("told to")
        return got.payload

    worker = site.worker()
    created = site.workflow(restart_undoing).create()
    created.send_event("go", "fail")
    eventually(lambda: statuses(created).get("do:a:1:rollback") == "running")
    created.restart()
    created.send_event("go", "fine")
    assert created.result(10) == "fine"
    assert list(statuses(created)) == ["do:a:1", "wait:w:1"]
    eventually(lambda: worker.runtime.attempts.active == 0)


# -- from a step -----------------------------------------------------------------------------------------------------


def test_restart_from_a_step_keeps_what_came_before(site: Site) -> None:
    """semantics §4: it wipes that step and every step that started after it; earlier results stay, with their chance
    and their idempotency keys."""
    journal = Journal()

    async def restart_later(event, step):
        chance = step.random()
        first = await step.do("a", journal.do, 1)
        second = await step.do("b", journal.do, 2)
        again = await step.do("b", journal.do, 3)
        return [chance, first, second, again]

    site.worker()
    created = site.workflow(restart_later).create()
    before = created.result(10)
    created.restart(from_step="b", count=2)
    eventually(lambda: len(journal.names) == 4)
    assert created.result(10) == before
    created.restart("b")
    eventually(lambda: len(journal.names) == 6)
    assert created.result(10) == before
    assert journal.names == ["a", "b", "b", "b", "b", "b"]
    assert len(set(journal.keys)) == 6, "each run has keys of its own"
    assert site.row(site.id_of(created.id)).run == 2


def test_the_key_of_a_kept_step_stays(site: Site) -> None:
    """protocols §3: a step kept by a restart from a later one keeps its key, so its compensation has that too."""
    forward, back = [], []

    async def charge(ctx: Any) -> None:
        forward.append(ctx.idempotency_key)

    async def refund(r: Any) -> None:
        back.append((r.step.idempotency_key, r.idempotency_key))

    async def restart_keys(event, step):
        await step.do("charge", charge, rollback=refund)
        await step.do("check", lambda: None)
        await step.wait_for_event("w", type="go", timeout=600)
        raise ValueError("no")

    site.worker()
    created = site.workflow(restart_keys).create()
    waits(created)
    created.restart(from_step="check")
    waits(created)
    created.send_event("go")
    with pytest.raises(WorkflowFailed):
        created.result(10)
    assert len(forward) == 1
    assert back == [(forward[0], f"{forward[0]}:rollback")]


@pytest.mark.parametrize(
    ("wanted", "error"),
    [
        ({"from_step": "nothing"}, InvalidTransition),
        ({"from_step": "a", "count": 2}, InvalidTransition),
        ({"from_step": "a", "kind": "sleep"}, InvalidTransition),
        ({"from_step": "a", "kind": "rollback"}, InvalidConfig),
        ({"from_step": "a", "count": 0}, InvalidConfig),
    ],
)
def test_an_unknown_step_is_refused_by_name(site: Site, wanted: dict[str, Any], error: Any) -> None:
    """semantics §4: unknown step → ``InvalidTransition`` naming it; nothing is changed."""

    async def restart_unknown(event, step):
        await step.do("a", lambda: 1)

    site.worker()
    created = site.workflow(restart_unknown).create()
    created.result(10)
    row = site.row(site.id_of(created.id))
    with pytest.raises(
        error, match=wanted["from_step"] if error is InvalidTransition else "one of|from 1 on"
    ):
        created.restart(**wanted)
    assert site.row(row.id) == row


def test_sleeps_and_waits_can_be_chosen(site: Site) -> None:
    """semantics §4: kind says what the step is; events received before are dropped, as by any restart."""
    journal = Journal()

    async def restart_kinds(event, step):
        await step.do("x", journal.do)
        await step.sleep("x", 0.01)
        await step.do("y", journal.do)
        got = await step.wait_for_event("x", type="go", timeout=600)
        return got.payload

    site.worker()
    created = site.workflow(restart_kinds).create()
    created.send_event("go", 1)
    assert created.result(10) == 1
    created.restart(from_step="x", kind="wait")
    created.send_event("go", 2)
    assert created.result(10) == 2
    created.restart(from_step="x", kind="sleep")
    created.send_event("go", 3)
    assert created.result(10) == 3
    assert journal.names == ["x", "y", "y"]


def test_what_ended_after_the_step_is_fed_again(site: Site) -> None:
    """protocols §10: outcomes after the step's start, of steps that started before it, are kept and fed again in
    their old order."""
    journal = Journal()
    order: list[list[str]] = []

    async def late(ctx: Any, name: str, until: asyncio.Event) -> str:
        await until.wait()
        return name

    async def restart_order(event, step):
        a = step.do("a", late, "a", gates["a"])
        b = step.do("b", late, "b", gates["b"])
        c = step.do("c", journal.do, "c")
        seen = [(await each) for each in asyncio.as_completed([a, b, c])]
        order.append(seen)
        return seen

    worker = site.worker()
    gates = {name: worker.call(_event()) for name in "ab"}
    created = site.workflow(restart_order).create()
    eventually(lambda: statuses(created).get("do:c:1") == "done")
    for name in "ba":
        worker.loop.call_soon_threadsafe(gates[name].set)
        eventually(lambda name=name: statuses(created).get(f"do:{name}:1") == "done")
    assert created.result(10) == ["c", "b", "a"]
    created.restart(from_step="c")
    assert eventually(lambda: created.status().output) == ["b", "a", "c"]
    assert journal.names == ["c", "c"]


async def _event() -> asyncio.Event:
    return asyncio.Event()


def test_earlier_steps_that_run_go_on(site: Site) -> None:
    """protocols §10: they keep their fence and run once; the instance keeps its slot."""
    journal = Journal()

    async def long(ctx: Any) -> str:
        journal.names.append("long")
        await gate.wait()
        return "long"

    async def restart_beside(event, step):
        slow = step.do("slow", long)
        quick = await step.do("quick", journal.do, 1)
        return [await slow, quick]

    worker = site.worker()
    gate = worker.call(_event())
    created = site.workflow(restart_beside).create()
    eventually(lambda: statuses(created).get("do:quick:1") == "done" and "long" in journal.names)
    created.restart(from_step="quick")
    assert created.status().status is Status.RUNNING
    eventually(lambda: journal.names.count("quick") == 2)
    worker.loop.call_soon_threadsafe(gate.set)
    assert created.result(10) == ["long", 1]
    assert journal.names.count("long") == 1


def test_what_the_end_cut_short_is_taken_up(site: Site) -> None:
    """protocols §10: steps that started before and were cancelled after, here by a failure, start anew under a new
    fence; a sleep goes on to its moment, a wait takes events again."""
    attempts: list[int] = []

    async def slow(ctx: Any) -> str:
        attempts.append(ctx.attempt)
        await asyncio.sleep(600 if len(attempts) == 1 else 0)
        return "slow"

    checked: list[str] = []

    def check() -> None:
        checked.append("once")
        if len(checked) == 1:
            raise ValueError("not yet")

    async def restart_cut(event, step):
        a = step.do("slow", slow, retries=ONCE)
        s = step.sleep("nap", 0.5)
        w = step.wait_for_event("w", type="go", timeout=600)
        await step.do("check", check, retries=ONCE)
        await s
        return [await a, (await w).payload]

    site.worker()
    created = site.workflow(restart_cut).create()
    with pytest.raises(WorkflowFailed):
        created.result(10)
    assert set(statuses(created).values()) == {"cancelled", "failed"}
    created.restart(from_step="check")
    created.send_event("go", 5)
    assert created.result(10) == ["slow", 5]
    assert attempts == [1, 2]
