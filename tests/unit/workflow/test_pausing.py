"""Pause and resume, purely: what a pending pause holds, what it lets pass, and how it ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.errors import InvalidTransition, NonDeterminismError
from orchestrator.ports import FOREVER
from orchestrator.workflow.deciding.turn import decide
from orchestrator.workflow.deciding.verbs import resume
from orchestrator.workflow.execution import Outcome, Wake
from orchestrator.workflow.language.config import Retries
from orchestrator.workflow.language.definition import define
from orchestrator.workflow.status import Status
from tests.laws import shown
from tests.laws.world import START, World

SOON = Retries(limit=2, delay=1, backoff="constant")


def give(value: Any = None) -> Any:
    return value


def undo(ctx: Any) -> str:
    return "undone"


def world_of(fn: Any, **options: Any) -> World:
    world = World(define(fn, **options))
    world.turn()
    return world


def statuses(world: World) -> dict[str, str]:
    return {key: row.status for key, row in world.rows.items()}


async def in_sequence(event, step):
    a = await step.do("a", give, 1, retries=SOON)
    return [a, await step.do("b", give, 2)]


async def beside_a_sleep(event, step):
    nap = step.sleep("nap", 10)
    await step.do("a", give, retries=SOON)
    await nap
    return "rested"


# -- what is taken back --------------------------------------------------------------------------------------------


def test_an_offer_nobody_took_is_taken_back() -> None:
    """Protocols §4: the fence is raised, so a message that is under way claims nothing; the step has not started."""
    world = world_of(in_sequence)
    fence = world.rows["do:a:1"].fence
    writes = world.pause()
    row = world.rows["do:a:1"]
    assert (world.status, world.alarm_at) == (Status.PAUSED, FOREVER)
    assert (row.status, row.attempt, row.due_at) == ("pending", 0, START)
    assert row.fence > fence
    assert writes.handouts == []
    world.resume()
    assert (statuses(world), world.rows["do:a:1"].attempt) == ({"do:a:1": "handed"}, 1)
    world.end()
    world.end()
    assert (world.output, world.attempts) == ("[1,2]", [])


def test_a_retry_that_is_taken_back_is_still_undone() -> None:
    """Semantics §5.2: an earlier attempt has run, whatever became of the offer of the next one."""

    async def flow(event, step):
        await step.do("a", give, retries=SOON, rollback=undo)

    world = world_of(flow)
    world.fail("do:a:1")
    world.advance()
    assert world.rows["do:a:1"].attempt == 2
    world.pause()
    assert world.rows["do:a:1"].attempt == 1
    world.terminate(rollback=True)
    assert statuses(world) == {"do:a:1": "cancelled", "do:a:1:rollback": "handed"}


def test_an_offer_nobody_took_is_not_undone() -> None:
    """Semantics §5.2: only what has started; there is nothing to roll back then, and the end comes at once."""

    async def flow(event, step):
        await step.do("a", give, rollback=undo)

    world = world_of(flow)
    world.pause()
    world.terminate(rollback=True)
    assert (world.status, world.rollback, statuses(world)) == (
        Status.TERMINATED,
        None,
        {"do:a:1": "cancelled"},
    )


# -- waiting for the steps in flight -------------------------------------------------------------------------------


def test_what_runs_is_recorded_and_nothing_starts() -> None:
    """Semantics §4, protocols §10: outcomes are fed, the commands they bring are held; with the last body it is
    paused. ``resume`` releases them in order."""

    async def flow(event, step):
        both = [step.do("a", give, 1), step.do("b", give, 2)]
        for each in asyncio.as_completed(both):
            await step.do("after", give, await each)
        return "done"

    world = world_of(flow)
    world.claim()
    world.pause()
    assert (world.status, world.alarm_at) == (Status.WAITING_FOR_PAUSE, START)
    world.end("do:b:1")
    assert world.status is Status.WAITING_FOR_PAUSE
    assert statuses(world) == {"do:a:1": "running", "do:b:1": "done"}
    world.end("do:a:1")
    assert (world.status, world.alarm_at) == (Status.PAUSED, FOREVER)
    assert [each.status for each in world.transitions] == ["waiting_for_pause", "paused"]
    world.resume()
    assert list(statuses(world)) == ["do:a:1", "do:b:1", "do:after:1"]
    world.end()
    world.end()
    assert world.output == '"done"'


@pytest.mark.parametrize("is_evicted", [False, True])
def test_a_rebuild_holds_what_the_live_replay_held(is_evicted: bool) -> None:
    """Protocols §10: a rebuild sees the same facts and holds the same commands, and goes on alike."""

    async def flow(event, step):
        a, b = step.do("a", give), step.do("b", give)
        await a
        c = step.do("c", give)
        nap = step.sleep("nap", 5)
        await b
        nap.cancel()
        d = step.do("d", give)
        return [await c, await d]

    world = world_of(flow)
    world.claim()
    world.pause()
    world.end("do:a:1")
    if is_evicted:
        world.evict()
    live = world.current()
    cold = world.cold()
    assert shown.execution(cold.execution) == shown.execution(live.execution)
    assert len(live.execution.replay.pending) == 2
    world.end("do:b:1")
    assert len(world.current().execution.replay.pending) == 4
    world.resume()
    rows = list(world.rows.values())
    assert [(row.key, row.status) for row in rows[2:]] == [
        ("do:c:1", "handed"),
        ("sleep:nap:1", "cancelled"),
        ("do:d:1", "handed"),
    ]
    world.end()
    assert world.status is Status.COMPLETE


def test_no_timer_rings_and_no_event_is_delivered() -> None:
    """Semantics §4: waits and sleeps are new progress, and wait for the resume."""

    async def flow(event, step):
        nap, got = step.sleep("nap", 1), step.wait_for_event("w", type="go", timeout=600)
        await step.do("a", give)
        await nap
        return (await got).payload

    world = world_of(flow)
    world.claim()
    world.pause()
    world.send("go", 7)
    world.now += 5
    world.turn(Wake())
    assert statuses(world) == {"sleep:nap:1": "waiting", "wait:w:1": "waiting", "do:a:1": "running"}
    assert world.alarm_at > world.now, "an alarm for what may not ring would ring for ever"
    world.end()
    assert (world.status, len(world.inbox)) == (Status.PAUSED, 1)
    world.resume()
    assert world.status is Status.COMPLETE
    assert (world.output, world.inbox) == ("7", [])


def test_no_retry_is_handed_out() -> None:
    """Semantics §4: an attempt that fails is recorded, its retry waits; so do attempts lost or handed back."""

    async def flow(event, step):
        return [await each for each in [step.do(name, give, name, retries=SOON) for name in ("a", "b", "c")]]

    world = world_of(flow)
    world.claim()
    world.pause()
    world.fail("do:a:1")
    world.turn(world.outcome("do:b:1", loss="handed_back"))
    del world.bodies["do:c:1"]
    world.turn(Wake(lost=("do:c:1",)))
    assert world.status is Status.PAUSED
    assert set(statuses(world).values()) == {"pending"}
    assert [attempt.key for attempt in world.attempts] == ["do:a:1", "do:b:1", "do:c:1"]
    assert len(world.offered) == 3
    world.resume()
    assert statuses(world) == {"do:a:1": "pending", "do:b:1": "handed", "do:c:1": "handed"}
    world.advance(1)
    world.end()
    assert world.output == '["a","b","c"]'


def test_a_cancelled_body_is_waited_for() -> None:
    """Semantics §4: it is in flight like any other."""

    async def flow(event, step):
        doomed = step.do("doomed", give)
        await step.sleep("nap", 5)
        doomed.cancel()
        await step.sleep("more", 50)

    world = world_of(flow)
    world.claim()
    world.advance()
    world.pause()
    assert world.status is Status.WAITING_FOR_PAUSE
    world.end("do:doomed:1")
    assert world.status is Status.PAUSED


def test_a_cancel_that_comes_too_late_is_forgotten() -> None:
    """Protocols §10, §13: the held command cancels a step that ends before it is released."""

    async def flow(event, step):
        a, doomed = step.do("a", give), step.do("doomed", give)
        await a
        doomed.cancel()
        return await step.do("b", give, 1)

    world = world_of(flow)
    world.claim()
    world.pause()
    world.end("do:a:1")
    world.end("do:doomed:1")
    world.evict()
    world.resume()
    assert statuses(world) == {"do:a:1": "done", "do:doomed:1": "done", "do:b:1": "handed"}
    world.end()
    assert world.output == "1"


# -- ends ----------------------------------------------------------------------------------------------------------


def test_a_workflow_that_ends_meanwhile_ends() -> None:
    """Protocols §10: all it asked for on the way is taken, too."""

    async def flow(event, step):
        await step.do("a", give)
        step.do("never", give)
        return "done"

    world = world_of(flow)
    world.claim()
    world.pause()
    writes = world.end()
    assert (world.status, world.output) == (Status.COMPLETE, '"done"')
    assert (statuses(world)["do:never:1"], writes.handouts) == ("abandoned", [])


def test_a_failure_is_compensated_meanwhile() -> None:
    """Semantics §5.7: a pause does not hold a rollback up, begun before it or after."""

    async def flow(event, step):
        await step.do("a", give, rollback=undo)
        raise LookupError("no")

    world = world_of(flow)
    world.claim()
    world.pause()
    world.end()
    assert world.status is Status.ROLLING_BACK
    world.pause()
    assert world.status is Status.ROLLING_BACK
    assert statuses(world)["do:a:1:rollback"] == "handed"
    world.end()
    assert world.status is Status.ERRORED


def test_a_termination_is_not_held_up() -> None:
    """Semantics §5.6: with a rollback from a pending pause: bodies are cancelled and waited for, then undone."""

    async def flow(event, step):
        await step.do("a", give, rollback=undo)

    world = world_of(flow)
    world.claim()
    world.pause()
    world.terminate(rollback=True)
    assert world.status is Status.ROLLING_BACK
    world.pause()
    world.end("do:a:1")
    world.end()
    assert world.status is Status.TERMINATED


def test_the_state_overflows_meanwhile() -> None:
    """Protocols §20: a result too large for the instance fails it, also while a pause is pending."""
    world = World(define(in_sequence), max_state_bytes=0)
    world.turn()
    world.claim()
    world.pause()
    world.end()
    assert (world.status, "PayloadTooLarge" in (world.error or "")) == (Status.ERRORED, True)


# -- resume --------------------------------------------------------------------------------------------------------


def test_a_pending_pause_is_taken_back() -> None:
    """Semantics §4: from ``waiting_for_pause`` the instance runs on, with its timers as they were."""
    world = world_of(beside_a_sleep)
    world.claim()
    due = world.rows["sleep:nap:1"].due_at
    world.pause()
    world.now += 4
    world.resume()
    assert (world.status, world.rows["sleep:nap:1"].due_at) == (Status.RUNNING, due)
    assert [each.status for each in world.transitions] == ["waiting_for_pause", "running"]


def test_timers_shift_by_the_pause() -> None:
    """Semantics §4: sleeps, waits and retries alike; from the moment it was paused, not from when that was asked."""
    world = world_of(beside_a_sleep)
    world.claim()
    world.pause()
    world.now += 2
    world.fail("do:a:1")
    assert world.status is Status.PAUSED
    world.now += 100
    world.resume()
    assert world.rows["sleep:nap:1"].due_at == START + 10 + 100
    assert world.rows["do:a:1"].due_at == START + 2 + 1 + 100
    assert world.status is Status.WAITING


def test_a_resumed_instance_queues_as_awoken() -> None:
    """Semantics §4, protocols §7: the queue index is its alarm; nothing is fed before it has a slot."""
    world = world_of(beside_a_sleep)
    world.pause()
    world.now += 1
    writes = resume(world.held(), world.now, START)
    assert (writes.status, writes.queued_at, writes.alarm_at) == (Status.QUEUED, world.now, FOREVER)
    assert writes.again


def test_code_that_never_ran_does_not_begin() -> None:
    """Semantics §4: paused while queued; a hint that comes then starts nothing."""
    world = World(define(in_sequence), status=Status.QUEUED, alarm_at=FOREVER)
    world.pause()
    assert world.status is Status.PAUSED
    world.turn(Wake())
    assert (world.started_at, world.rows, world.status) == (None, {}, Status.PAUSED)
    world.now += 3
    world.resume()
    assert (world.started_at, list(world.rows)) == (START + 3, ["do:a:1"])


def test_a_moment_that_passed_in_a_pause_is_not_refused() -> None:
    """Semantics §3.1: what code called in time is not in the past because a pause held it."""

    async def flow(event, step):
        await step.do("a", give)
        await step.sleep_until("soon", step.now().timestamp() + 5)
        return "rang"

    world = world_of(flow)
    world.claim()
    world.pause()
    world.end()
    world.now += 60
    world.resume()
    assert (world.status, world.output) == (Status.COMPLETE, '"rang"')


# -- nothing to do, or refused ---------------------------------------------------------------------------------------


def test_both_verbs_do_nothing_on_who_is_there_already() -> None:
    """Semantics §4: no fact, no transition, no change."""
    world = world_of(beside_a_sleep)
    world.resume()
    world.claim()
    world.pause()
    seq, transitions = world.seq, list(world.transitions)
    world.pause()
    assert (world.seq, world.transitions) == (seq, transitions)
    world.end()
    seq = world.seq
    world.pause()
    assert (world.seq, world.status) == (seq, Status.PAUSED)


def test_on_a_finished_instance_they_raise() -> None:
    """Semantics §4: and say what it is."""
    world = world_of(in_sequence)
    world.end()
    world.end()
    for verb in (world.pause, world.resume):
        with pytest.raises(InvalidTransition, match="complete already"):
            verb()


def test_what_arrives_at_a_paused_instance_is_stale() -> None:
    """Protocols §4: whatever was handed out was taken back; its outcome matches nothing and changes nothing."""
    world = world_of(in_sequence)
    old = Outcome("do:a:1", world.rows["do:a:1"].fence, output="1")
    world.pause()
    writes = decide(world.current().execution, [old, Wake()], world.now)
    assert (writes.seq, writes.stale, writes.steps, writes.alarm_at) == (world.seq, [old], {}, FOREVER)


# -- blocked ---------------------------------------------------------------------------------------------------------


def test_a_blocked_instance_is_paused() -> None:
    """Protocols §12: it stays blocked, and rings no alarm; the resume has it tried anew."""
    world = world_of(in_sequence)
    world.claim()
    world.hold(error=NonDeterminismError("other code"))
    assert world.status is Status.WAITING
    world.pause()
    assert world.status is Status.WAITING_FOR_PAUSE, "its body runs"
    world.hold(world.outcome("do:a:1"), error=NonDeterminismError("other code"))
    assert (world.status, world.alarm_at) == (Status.PAUSED, FOREVER)
    assert world.blocked is not None
    world.resume()
    assert (world.blocked, statuses(world)) == (None, {"do:a:1": "done", "do:b:1": "handed"})


def test_a_pending_pause_is_kept_while_blocked() -> None:
    """Protocols §12: with bodies in flight the pause goes on waiting for them."""

    async def flow(event, step):
        a, b = step.do("a", give), step.do("b", give)
        return [await a, await b]

    world = world_of(flow)
    world.claim()
    world.pause()
    world.hold(world.outcome("do:a:1"), error=NonDeterminismError("other code"))
    assert world.status is Status.WAITING_FOR_PAUSE
    world.end("do:b:1")
    assert world.status is Status.COMPLETE
