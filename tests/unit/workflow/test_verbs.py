"""Terminate, restart and restart from a step, purely: what goes, what stays, what is taken up again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.errors import InvalidConfig, InvalidTransition, NonDeterminismError
from orchestrator.ports import FOREVER
from orchestrator.workflow.deciding.restarting import restart, restart_from, step_key
from orchestrator.workflow.execution import Outcome, Wake
from orchestrator.workflow.language.config import Retries
from orchestrator.workflow.language.definition import define
from orchestrator.workflow.status import FINISHED, Status
from tests.laws import shown
from tests.laws.world import START, World

SOON = Retries(limit=1, delay=1, backoff="constant")


def give(value: Any = None) -> Any:
    return value


def undo(ctx: Any) -> str:
    return "undone"


def world_of(fn: Any, **options: Any) -> World:
    world = World(define(fn, **options))
    world.turn()
    return world


def statuses(world: World) -> dict[str, str]:
    return {row.key: row.status for row in sorted(world.rows.values(), key=lambda row: row.started_seq)}


async def three(event, step):
    a = await step.do("a", give, 1, retries=SOON, rollback=undo)
    b = await step.do("b", give, 2)
    await step.sleep("nap", 5)
    got = await step.wait_for_event("w", type="go", timeout=600)
    return [a, b, got.payload]


def at_the_wait() -> World:
    world = world_of(three)
    world.end()
    world.end()
    world.advance()
    assert statuses(world)["wait:w:1"] == "waiting"
    return world


# -- terminate -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [Status.QUEUED, Status.PAUSED])
def test_what_has_not_begun_is_terminated(status: Status) -> None:
    """Semantics §4: from queued and paused, with and without a rollback: there is nothing to undo."""
    for rollback in (False, True):
        world = World(define(three), status=status, alarm_at=FOREVER)
        world.terminate(rollback=rollback)
        assert (world.status, world.rows, world.rollback) == (Status.TERMINATED, {}, None)
        assert world.alarm_at == FOREVER


def test_a_pending_pause_is_terminated() -> None:
    """Semantics §4: running bodies are told, nothing they return is recorded."""
    world = world_of(three)
    world.claim()
    late = Outcome("do:a:1", world.rows["do:a:1"].fence, output="1")
    world.pause()
    world.terminate(rollback=False)
    assert (world.status, statuses(world)) == (Status.TERMINATED, {"do:a:1": "cancelled"})
    assert ("do:a:1", late.fence) in world.told
    seq = world.seq
    world.turn(late)
    assert (world.seq, world.rows["do:a:1"].output) == (seq, None)


def test_what_is_over_or_on_its_way_is_refused() -> None:
    """Semantics §4, §5.7: terminate on a finished instance raises, and so does a second one."""
    world = at_the_wait()
    world.terminate(rollback=True)
    assert world.status is Status.ROLLING_BACK
    for rollback in (False, True):
        with pytest.raises(InvalidTransition, match="rolling back"):
            world.terminate(rollback=rollback)
    world.end()
    with pytest.raises(InvalidTransition, match="terminated already"):
        world.terminate(rollback=False)


@pytest.mark.parametrize("rollback", [False, True])
def test_what_is_blocked_is_so_no_more(rollback: bool) -> None:
    """Protocols §12: ``blocked`` says why an unfinished instance cannot go on."""
    world = at_the_wait()
    world.hold(error=NonDeterminismError("other code"))
    assert world.blocked is not None
    world.terminate(rollback=rollback)
    assert world.blocked is None


# -- restart ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ended", [False, True])
def test_a_restart_leaves_nothing_but_the_params(ended: bool) -> None:
    """Semantics §4, protocols §3: rows, attempts, transitions, events, output are gone; run and seq go up."""
    world = world_of(three)
    world.fail("do:a:1")
    world.advance(1)
    world.end()
    world.end()
    world.advance()
    world.send("other")
    if ended:
        world.send("go", 3)
        world.turn(Wake())
        assert world.status is Status.COMPLETE
    seq, run = world.seq, world.run
    world.now += 1
    world.restart()
    assert (statuses(world), world.run, world.seed) == ({"do:a:1": "handed"}, run + 1, run + 1)
    assert (world.output, world.error, world.ended_seq, world.ended_at) == (None, None, None, None)
    assert (world.inbox, world.attempts, world.started_at) == ([], [], world.now)
    assert [(each.status, each.seq) for each in world.transitions] == [
        ("queued", seq + 1),
        ("running", world.seq),
    ]
    assert world.rows["do:a:1"].run == run + 1
    assert world.rows["do:a:1"].fence > seq


def test_who_has_a_slot_keeps_it() -> None:
    """Semantics §4: running goes on running, at once; that is recorded although the status is the same."""
    world = world_of(three)
    decided = restart(world.held(), list(world.rows.values()), world.now)
    assert (decided.writes.status, decided.writes.alarm_at) == (Status.RUNNING, START)
    assert decided.writes.queued_at == START, "a turn has to follow"
    assert [each.status for each in decided.writes.transitions] == ["running"]
    waiting = at_the_wait()
    decided = restart(waiting.held(), list(waiting.rows.values()), waiting.now)
    assert (decided.writes.status, decided.writes.alarm_at) == (Status.QUEUED, FOREVER)
    assert decided.writes.queued_at == waiting.now


@pytest.mark.parametrize("status", list(Status))
def test_any_status_can_be_restarted(status: Status) -> None:
    """Semantics §4: the table allows it, from wherever."""
    world = at_the_wait()
    world.status, world.ending = status, "errored" if status is Status.ROLLING_BACK else None
    world.ended_seq = world.seq if status in FINISHED else None
    world.restart()
    assert (world.status, world.ending, statuses(world)) == (Status.RUNNING, None, {"do:a:1": "handed"})


def test_the_result_of_an_old_body_is_stale() -> None:
    """Protocols §3: fences never come again, so no outcome of an earlier run is taken for one of this."""
    world = world_of(three)
    world.claim()
    old = world.outcome("do:a:1", output="7")
    world.restart()
    writes = world.turn(old)
    assert (writes.stale, statuses(world)) == ([old], {"do:a:1": "handed"})


# -- restart from a step ---------------------------------------------------------------------------------------------


def test_what_started_at_the_step_or_later_goes() -> None:
    """Protocols §10: what came before stays as it is, with its run; state is counted anew."""
    world = at_the_wait()
    kept, state = world.rows["do:a:1"], len(world.rows["do:a:1"].output or "")
    world.now += 1
    world.restart("do:b:1")
    assert statuses(world) == {"do:a:1": "done", "do:b:1": "handed"}
    assert world.rows["do:a:1"] == kept
    assert (kept.run, world.rows["do:b:1"].run, world.seed) == (1, 2, 1)
    assert world.state_bytes == len("null") + state
    assert world.started_at == START
    world.end()
    world.advance()
    world.send("go", 9)
    world.turn(Wake())
    assert world.output == "[1,2,9]"


def test_an_event_that_was_consumed_stays_consumed() -> None:
    """Protocols §10: the outcome of a kept wait is kept; what nobody consumed is dropped."""

    async def flow(event, step):
        got = await step.wait_for_event("w", type="go", timeout=600)
        return await step.do("a", give, got.payload)

    world = world_of(flow)
    world.send("go", 1)
    world.turn(Wake())
    world.send("go", 2)
    world.restart("do:a:1")
    assert (statuses(world), world.inbox) == ({"wait:w:1": "done", "do:a:1": "handed"}, [])
    world.end()
    assert world.output == "1"


def late_ends() -> World:
    async def flow(event, step):
        slow = [step.do(name, give, name) for name in ("x", "y")]
        t = step.do("t", give, "t")
        order = [await each for each in asyncio.as_completed([*slow, t])]
        return [order, str(step.now().timestamp())]

    world = world_of(flow)
    for key in ("do:t:1", "do:y:1", "do:x:1"):
        world.now += 1
        world.end(key)
    assert world.status is Status.COMPLETE
    return world


def test_later_ends_of_earlier_steps_are_fed_again_in_their_order() -> None:
    """Protocols §10: they are taken out of history and come after the restart, as facts of their own."""
    world = late_ends()
    seq, ended = world.seq, [world.rows[key].finished_at for key in ("do:x:1", "do:y:1")]
    world.restart("do:t:1")
    x, y = world.rows["do:x:1"], world.rows["do:y:1"]
    assert seq < (y.finished_seq or 0) < (x.finished_seq or 0) < world.rows["do:t:1"].started_seq
    assert [x.finished_at, y.finished_at] == ended
    assert (x.status, x.output, x.run, world.status) == ("done", '"x"', 1, Status.RUNNING)
    cold = world.cold()
    assert shown.execution(cold.execution) == shown.execution(world.current().execution)
    world.now += 1
    world.end()
    assert (world.output or "").startswith('[["y","x","t"]')


def test_what_the_end_cut_short_goes_on() -> None:
    """Protocols §10: a body anew under a new fence, a sleep to its moment, a wait to its timeout, in the same run."""

    async def flow(event, step):
        body, nap = step.do("body", give, "b", retries=SOON), step.sleep("nap", 50)
        got = step.wait_for_event("w", type="go", timeout=600)
        await step.do("check", give, retries=Retries(limit=0))
        await nap
        return [await body, (await got).payload]

    world = world_of(flow)
    world.claim("do:body:1")
    fence = world.rows["do:body:1"].fence
    world.fail("do:check:1")
    assert world.status is Status.ERRORED
    assert {row.due_at for row in world.rows.values()} == {None, START + 50, START + 600}
    world.restart("do:check:1")
    body = world.rows["do:body:1"]
    assert statuses(world) == {
        "do:body:1": "handed",
        "sleep:nap:1": "waiting",
        "wait:w:1": "waiting",
        "do:check:1": "handed",
    }
    assert (body.attempt, body.uncounted, body.run, world.run) == (2, 1, 1, 2)
    assert body.fence > fence
    assert all(row.finished_seq is row.finished_at is row.output is None for row in world.rows.values())
    assert [world.rows[key].due_at for key in ("sleep:nap:1", "wait:w:1")] == [START + 50, START + 600]
    world.fail("do:body:1")
    assert world.rows["do:body:1"].status == "pending", "the attempt that was cut short does not count"
    world.send("go", 1)
    world.advance(1)
    world.end()
    world.advance()
    assert world.output == '["b",1]'


@pytest.mark.parametrize(
    ("claims", "fails", "attempt", "uncounted"),
    [
        (False, False, 1, 0),  # offered, never taken: no attempt
        (True, False, 2, 1),  # cut in the middle
        (False, True, 2, 0),  # cut while it waited for its retry: the failure counts
    ],
)
def test_attempts_of_what_is_taken_up(claims: bool, fails: bool, attempt: int, uncounted: int) -> None:
    """Semantics §2.2: only what failed counts against the limit."""

    async def flow(event, step):
        body = step.do("body", give, retries=SOON, rollback=undo)
        await step.do("check", give, retries=Retries(limit=0))
        return await body

    world = world_of(flow)
    if claims:
        world.claim("do:body:1")
    if fails:
        world.fail("do:body:1")
    world.terminate(rollback=False)
    world.restart("do:check:1")
    row = world.rows["do:body:1"]
    assert (row.status, row.attempt, row.uncounted) == ("handed", attempt, uncounted)


def test_a_retry_that_was_cut_short_does_not_count() -> None:
    """Semantics §2.2: it is on record, but as one that was cut short."""

    async def flow(event, step):
        body = step.do("body", give, retries=SOON)
        await step.do("check", give)
        return await body

    world = world_of(flow)
    world.fail("do:body:1")
    world.advance(1)
    world.claim("do:body:1")
    world.terminate(rollback=False)
    world.restart("do:check:1")
    row = world.rows["do:body:1"]
    assert (row.attempt, row.uncounted) == (3, 1)
    world.fail("do:body:1")
    assert world.rows["do:body:1"].status == "failed", "the limit of one retry is used up by two failures"


def test_a_compensated_instance_goes_on() -> None:
    """Semantics §4: the compensations go with all that follows the step; earlier results stay, undone or not."""

    async def flow(event, step):
        a = await step.do("a", give, 1, rollback=undo)
        await step.do("check", give, retries=Retries(limit=0))
        return a

    world = world_of(flow)
    world.end()
    world.fail("do:check:1")
    world.end("do:a:1:rollback")
    assert (world.status, world.rollback is None) == (Status.ERRORED, False)
    world.restart("do:check:1")
    assert (world.rollback, world.error, world.ending) == (None, None, None)
    assert statuses(world) == {"do:a:1": "done", "do:check:1": "handed"}
    world.end()
    assert world.output == "1"


def test_a_cancel_before_the_step_stays_one() -> None:
    """Protocols §10: what the code cancelled before the step's start is history; what it cancelled after is not."""

    async def flow(event, step):
        early, late = step.sleep("early", 100), step.sleep("late", 100)
        await step.do("a", give)
        early.cancel()
        await step.do("t", give)
        late.cancel()
        await step.do("z", give)

    world = world_of(flow)
    world.end()
    world.end()
    world.restart("do:t:1")
    assert statuses(world) == {
        "sleep:early:1": "cancelled",
        "sleep:late:1": "waiting",
        "do:a:1": "done",
        "do:t:1": "handed",
    }
    world.end()
    assert statuses(world)["sleep:late:1"] == "cancelled"
    world.end()
    assert world.status is Status.COMPLETE


def test_a_paused_instance_is_restarted_from_a_step() -> None:
    """Semantics §4: it runs; the timers of what is kept shift as by a resume."""

    async def flow(event, step):
        nap = step.sleep("nap", 50)
        await step.do("t", give)
        await nap

    world = world_of(flow)
    world.pause()
    world.now += 1000
    world.restart("do:t:1")
    assert (world.status, world.rows["sleep:nap:1"].due_at) == (Status.RUNNING, START + 1050)


def test_a_held_command_goes_with_the_pause() -> None:
    """Protocols §10: what a pending pause held was never started; the restart has it asked for again."""

    async def flow(event, step):
        a, t = step.do("a", give), step.do("t", give)
        await a
        await step.do("b", give)
        await t

    world = world_of(flow)
    world.claim()
    world.pause()
    world.end("do:a:1")
    world.restart("do:t:1")
    assert statuses(world) == {"do:a:1": "done", "do:t:1": "handed", "do:b:1": "handed"}


# -- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["do:z:1", "do:a:2", "sleep:a:1", "do:a:1:rollback"])
def test_an_unknown_step_is_named(key: str) -> None:
    """Semantics §4: ``InvalidTransition`` naming it; a compensation is no step to begin from."""
    world = at_the_wait()
    world.terminate(rollback=True)
    assert "do:a:1:rollback" in world.rows
    with pytest.raises(InvalidTransition, match=key):
        restart_from(world.held(), list(world.rows.values()), [], key, world.now)


@pytest.mark.parametrize(
    ("name", "count", "kind", "says"),
    [("a", 1, "rollback", "do, sleep, wait, invoke"), ("a", 0, "do", "1 on"), ("a", True, "do", "1 on")],
)
def test_nonsense_is_refused(name: str, count: Any, kind: str, says: str) -> None:
    """Semantics §1.2: kind, name and a count from 1 on."""
    with pytest.raises(InvalidConfig, match=says):
        step_key(name, count, kind)
    assert step_key("a", 2, "wait") == "wait:a:2"
