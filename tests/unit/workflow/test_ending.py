"""How instances end: completion, abandoned steps, cut bodies, the chain of compensations, termination."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.errors import InvalidTransition, NonDeterminismError
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.execution import Wake
from orchestrator.workflow.language.config import Retries, RollbackPolicy
from orchestrator.workflow.language.definition import define
from orchestrator.workflow.status import Status
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


async def three_steps_then_fail(event, step):
    await step.do("a", give, "a", rollback=undo, rollback_retries=SOON)
    await step.do("b", give, "b", rollback=undo, rollback_retries=SOON)
    await step.do("c", give, "c", rollback=undo, rollback_retries=SOON)
    raise LookupError("no")


async def fail_in_flight(event, step):
    step.do("slow", give, "slow", rollback=undo)
    await step.sleep("nap", 5)
    raise LookupError("no")


def failed_after_three(**options: Any) -> World:
    world = world_of(three_steps_then_fail, **options)
    for name in "abc":
        world.end(f"do:{name}:1")
    assert world.status is Status.ROLLING_BACK
    return world


def rollback_of(world: World) -> Any:
    return None if world.rollback is None else codec.decode(world.rollback)


# -- completion --------------------------------------------------------------------------------------------------


def test_steps_never_awaited_are_abandoned() -> None:
    """Semantics §4: they are cancelled and recorded as abandoned, their bodies told, and the instance completes."""

    async def flow(event, step):
        step.do("claimed", give)
        step.do("handed", give)
        step.sleep("nap", 100)
        step.wait_for_event("w", type="go")
        return await step.do("main", give, "done")

    world = world_of(flow)
    world.claim("do:claimed:1")
    fence = world.rows["do:claimed:1"].fence
    writes = world.end("do:main:1")
    assert world.status is Status.COMPLETE
    assert writes.abandoned == ["do:claimed:1", "do:handed:1", "sleep:nap:1", "wait:w:1"]
    assert {row.status for key, row in world.rows.items() if key != "do:main:1"} == {"abandoned"}
    assert ("do:claimed:1", fence) in writes.cancelled
    assert all(row.fence > fence for key, row in world.rows.items() if key != "do:main:1")
    assert world.alarm_at == FOREVER


def test_a_hand_out_that_is_abandoned_at_once_is_never_offered() -> None:
    """Semantics §4: what starts and ends in one turn leaves no message."""

    async def flow(event, step):
        step.do("never", give)
        return "done"

    world = world_of(flow)
    assert (world.status, world.offered, world.rows["do:never:1"].status) == (
        Status.COMPLETE,
        [],
        "abandoned",
    )


def test_completion_runs_no_compensation() -> None:
    """Semantics §5.1: rollback runs only when the workflow fails for good, or on terminate."""

    async def flow(event, step):
        try:
            await step.do("a", give, rollback=undo)
            await step.do("b", give, rollback=undo, retries=Retries(limit=0))
        except LookupError:
            return "caught"

    world = world_of(flow)
    world.end("do:a:1")
    world.fail("do:b:1", LookupError("no"))
    assert (world.status, world.output, world.rollback) == (Status.COMPLETE, '"caught"', None)


# -- cancelled steps ---------------------------------------------------------------------------------------------


async def cancels(event, step):
    doomed = step.do("doomed", give, "half", rollback=undo)
    await step.sleep("nap", 5)
    doomed.cancel()
    await step.sleep("more", 50)
    raise LookupError("no")


def test_a_cancelled_step_that_nobody_claimed_is_gone_at_once() -> None:
    """Protocols §4, §13: its fence is raised, so no claim matches; the instance no longer runs."""
    world = world_of(cancels)
    fence = world.rows["do:doomed:1"].fence
    world.advance()
    row = world.rows["do:doomed:1"]
    assert row.status == "cancelled"
    assert row.fence == row.finished_seq
    assert row.fence is not None
    assert row.fence > fence
    assert world.status is Status.WAITING


def test_a_cancelled_step_whose_body_runs_is_told_and_awaited() -> None:
    """Protocols §4, §13: it keeps its fence until the body ends; the instance runs until then."""
    world = world_of(cancels)
    world.claim()
    fence = world.rows["do:doomed:1"].fence
    world.advance()
    row = world.rows["do:doomed:1"]
    assert (row.status, row.fence) == ("cancelling", fence)
    assert ("do:doomed:1", fence) in world.told
    assert world.status is Status.RUNNING
    world.end("do:doomed:1")
    assert (row.key, world.rows["do:doomed:1"].status) == ("do:doomed:1", "cancelled")
    assert world.status is Status.WAITING


def test_what_a_cancelled_body_returns_is_for_its_handler_only() -> None:
    """Protocols §14: it is recorded as its output; the code has seen a cancellation."""
    world = world_of(cancels)
    world.claim()
    world.advance()
    world.end("do:doomed:1")
    assert world.rows["do:doomed:1"].output == '"half"'
    world.advance()
    assert world.handed() == ["do:doomed:1:rollback"]


def test_a_cancelled_body_that_ends_in_the_same_turn() -> None:
    """Protocols §4: nothing is left for storage to decide."""

    async def flow(event, step):
        doomed = step.do("doomed", give, "half", rollback=undo)
        await step.do("other", give)
        doomed.cancel()
        await step.sleep("nap", 50)

    world = world_of(flow)
    world.claim()
    world.turn(world.outcome("do:other:1"), world.outcome("do:doomed:1"))
    row = world.rows["do:doomed:1"]
    assert (row.status, row.output) == ("cancelled", '"half"')
    assert world.status is Status.WAITING


def test_a_cancelled_body_is_not_retried() -> None:
    """Protocols §13: whatever becomes of it, an error or a loss ends the waiting for it."""
    for end in ("error", "handed_back", "lost", "gone"):
        world = world_of(cancels)
        world.claim()
        world.advance()
        if end == "gone":
            world.turn(Wake(lost=("do:doomed:1",)))
        elif end == "error":
            world.fail("do:doomed:1")
        else:
            world.turn(world.outcome("do:doomed:1", loss=end))
        assert (world.rows["do:doomed:1"].status, world.rows["do:doomed:1"].output) == ("cancelled", None)
        assert world.status is Status.WAITING


# -- failing with work in flight ---------------------------------------------------------------------------------


def test_the_chain_waits_until_each_body_has_ended() -> None:
    """Semantics §5.0, protocols §14: else a body could do its work after it was undone."""
    world = world_of(fail_in_flight)
    world.claim()
    world.advance()
    assert world.rows["do:slow:1"].status == "cancelling"
    assert world.handed() == []
    assert world.ended_at is None
    world.end("do:slow:1")
    assert world.rows["do:slow:1"].output == '"slow"'
    assert world.handed() == ["do:slow:1:rollback"]
    world.end()
    assert world.status is Status.ERRORED
    assert codec.error_info(world.error or "").name == "LookupError"


def test_a_body_that_is_lost_does_not_hold_up_the_chain() -> None:
    """Protocols §14: lost ones end with their lease."""
    world = world_of(fail_in_flight)
    world.claim()
    world.advance()
    world.turn(Wake(lost=("do:slow:1",)))
    assert world.handed() == ["do:slow:1:rollback"]


def test_what_nobody_claimed_is_not_compensated() -> None:
    """Semantics §5.2: eligible is what has started; without it there is no rollback at all."""
    world = world_of(fail_in_flight)
    world.advance()
    assert world.rows["do:slow:1"].status == "cancelled"
    assert (world.status, world.rollback) == (Status.ERRORED, None)
    assert "do:slow:1:rollback" not in world.rows


def test_a_step_between_two_attempts_is_compensated() -> None:
    """Semantics §5.2: its body has run, though it failed; cut short, it is undone."""

    async def flow(event, step):
        step.do("slow", give, rollback=undo, retries=Retries(delay=60))
        await step.sleep("nap", 5)
        raise LookupError("no")

    for evicted in (False, True):
        world = world_of(flow)
        world.fail("do:slow:1")
        if evicted:
            world.evict()
        world.advance()
        assert world.handed() == ["do:slow:1:rollback"]


def test_without_handlers_failure_does_not_wait() -> None:
    """Semantics §4: bodies in flight are told, and their results no longer count."""

    async def flow(event, step):
        step.do("slow", give)
        await step.sleep("nap", 5)
        raise LookupError("no")

    world = world_of(flow)
    world.claim()
    world.advance()
    assert (world.status, world.rollback) == (Status.ERRORED, None)
    assert world.rows["do:slow:1"].status == "cancelled"
    assert "do:slow:1" in {key for key, _ in world.told}


# -- the chain ---------------------------------------------------------------------------------------------------


def test_handlers_run_one_at_a_time_in_reverse_start_order() -> None:
    """Semantics §5.3: each is a step of its own, and starts when the one before has ended."""
    world = failed_after_three()
    for name in "cba":
        assert world.handed() == [f"do:{name}:1:rollback"]
        assert world.offered[-1].label == f"three_steps_then_fail.{name}.rollback"
        world.end()
    assert world.status is Status.ERRORED
    assert rollback_of(world) == {"outcome": "complete", "error": None, "errors": []}
    assert codec.error_info(world.error or "").message == "no"
    assert [transition.status for transition in world.transitions] == ["rolling_back", "errored"]


def test_a_caught_step_is_undone_when_the_workflow_fails_later() -> None:
    """Semantics §5.1: also the step whose error the code caught."""

    async def flow(event, step):
        try:
            await step.do("caught", give, rollback=undo, retries=Retries(limit=0))
        except LookupError:
            await step.sleep("nap", 1)
        raise RuntimeError("later")

    world = world_of(flow)
    world.fail("do:caught:1", LookupError("first"))
    world.advance()
    assert world.handed() == ["do:caught:1:rollback"]


def test_a_handler_is_retried_and_keeps_the_slot() -> None:
    """Semantics §5.3, §4: ordinary step machinery; rolling back keeps its slot between retries."""
    world = failed_after_three()
    world.fail("do:c:1:rollback")
    assert world.status is Status.ROLLING_BACK
    assert world.rows["do:c:1:rollback"].status == "pending"
    world.advance()
    world.end("do:c:1:rollback")
    assert world.handed() == ["do:b:1:rollback"]


def test_the_first_handler_that_fails_stops_the_chain() -> None:
    """Semantics §5.4: outcome ``failed`` beside the original error."""
    world = failed_after_three()
    world.end("do:c:1:rollback")
    world.fail("do:b:1:rollback", ValueError("stuck"), final=True)
    assert world.status is Status.ERRORED
    assert "do:a:1:rollback" not in world.rows
    stuck = {"name": "ValueError", "message": "stuck"}
    assert rollback_of(world) == {"outcome": "failed", "error": stuck, "errors": [stuck]}
    assert codec.error_info(world.error or "").name == "LookupError"


def test_on_error_continue_goes_on_and_reports_all() -> None:
    """Semantics §5.4: the policy ``continue``."""
    world = failed_after_three(rollback=RollbackPolicy(on_error="continue"))
    world.fail("do:c:1:rollback", ValueError("c"), final=True)
    world.fail("do:b:1:rollback", ValueError("b"), final=True)
    world.end("do:a:1:rollback")
    assert world.status is Status.ERRORED
    assert [error["message"] for error in rollback_of(world)["errors"]] == ["c", "b"]


def test_parallel_handlers_run_at_once() -> None:
    """Semantics §5.8: ``order="parallel"``; with ``stop``, those that run still finish (protocols §20)."""
    world = failed_after_three(rollback=RollbackPolicy(order="parallel"))
    assert world.handed() == [f"do:{name}:1:rollback" for name in "cba"]
    world.claim()
    world.fail("do:c:1:rollback", ValueError("c"), final=True)
    assert world.status is Status.ROLLING_BACK
    world.end()
    assert world.status is Status.ERRORED
    assert rollback_of(world)["outcome"] == "failed"


def test_code_that_no_longer_reaches_a_step_to_undo() -> None:
    """Semantics §5.5: ``RollbackMissing``, and the rollback fails."""
    world = failed_after_three()
    world.end("do:c:1:rollback")
    driven = world.current()
    del driven.execution.replay.calls["do:a:1"]
    world.end("do:b:1:rollback")
    assert world.status is Status.ERRORED
    assert rollback_of(world)["error"]["name"] == "RollbackMissing"
    assert world.rows["do:a:1:rollback"].status == "failed"


def test_the_chain_goes_on_after_an_eviction_at_any_point() -> None:
    """Semantics §5.3: handlers are rebuilt by a replay that runs no bodies."""
    world = world_of(three_steps_then_fail)
    for name in "abc":
        world.evict()
        world.end(f"do:{name}:1")
    for _ in "cba":
        world.evict()
        world.end()
    assert world.status is Status.ERRORED
    assert rollback_of(world)["outcome"] == "complete"


def test_a_wait_with_a_handler_is_undone() -> None:
    """Semantics §5.2: ``wait_for_event`` with a handler that has started."""

    async def flow(event, step):
        await step.wait_for_event("w", type="go", timeout=5, rollback=undo)

    world = world_of(flow)
    world.advance()
    assert world.handed() == ["wait:w:1:rollback"]


# -- termination -------------------------------------------------------------------------------------------------


async def long(event, step):
    await step.do("a", give, "a", rollback=undo)
    await asyncio.gather(step.do("b", give, "b", rollback=undo), step.sleep("nap", 500))


def test_terminate_without_rollback_ends_at_once() -> None:
    """Semantics §4: bodies are told, nothing they return is recorded."""
    world = world_of(long)
    world.end("do:a:1")
    world.claim()
    late = world.outcome("do:b:1")
    world.terminate(rollback=False)
    assert (world.status, world.rollback, world.alarm_at) == (Status.TERMINATED, None, FOREVER)
    assert {row.key: row.status for row in world.rows.values()} == {
        "do:a:1": "done",
        "do:b:1": "cancelled",
        "sleep:nap:1": "cancelled",
    }
    assert "do:b:1" in {key for key, _ in world.told}
    assert world.turn(late).stale == [late]


def test_terminate_with_rollback_runs_the_chain() -> None:
    """Semantics §5.6: running bodies are cancelled and awaited, the chain runs, the end is ``terminated``."""
    world = world_of(long)
    world.end("do:a:1")
    world.claim()
    world.terminate(rollback=True)
    assert world.status is Status.ROLLING_BACK
    assert world.handed() == []
    world.end("do:b:1")
    world.end("do:b:1:rollback")
    world.fail("do:a:1:rollback", ValueError("stuck"), final=True)
    assert world.status is Status.TERMINATED
    assert rollback_of(world)["outcome"] == "failed"
    assert world.error is None


def test_terminate_with_rollback_from_waiting() -> None:
    """Semantics §5.6: from any unfinished status."""
    world = world_of(long)
    world.end("do:a:1")
    world.end("do:b:1")
    assert world.status is Status.WAITING
    world.terminate(rollback=True)
    world.end("do:b:1:rollback")
    world.end("do:a:1:rollback")
    assert (world.status, rollback_of(world)["outcome"]) == (Status.TERMINATED, "complete")


def test_terminate_with_rollback_and_nothing_to_undo() -> None:
    """Semantics §5.4: no eligible step: no rollback events, ``rollback is None``."""
    world = world_of(long)
    world.terminate(rollback=True)
    assert world.rows["do:a:1"].status == "cancelled"
    assert (world.status, world.rollback) == (Status.TERMINATED, None)


def test_terminate_before_the_first_turn() -> None:
    """Semantics §4: the code never runs."""
    for rollback in (False, True):
        world = World(define(long), status=Status.QUEUED)
        world.terminate(rollback=rollback)
        assert (world.status, world.started_at, world.rows) == (Status.TERMINATED, None, {})


def test_terminate_is_refused_on_what_ends_or_has_ended() -> None:
    """Semantics §4, §5.7: a finished instance, and a second terminate during rollback, raise."""
    world = world_of(long)
    world.terminate(rollback=False)
    with pytest.raises(InvalidTransition, match="terminated already"):
        world.terminate(rollback=False)
    world = failed_after_three()
    with pytest.raises(InvalidTransition, match="rolling back"):
        world.terminate(rollback=True)


def test_the_code_runs_no_further_after_terminate() -> None:
    """Semantics §5.6: what its steps still return is for their handlers only."""
    world = world_of(long)
    world.claim()
    world.terminate(rollback=True)
    world.end("do:a:1")
    assert "do:b:1" not in world.rows
    world.now = START + 1000
    world.end("do:a:1:rollback")
    assert world.status is Status.TERMINATED


# -- the limit of the state --------------------------------------------------------------------------------------


async def two_values(event, step):
    step.sleep("beside", 100)
    await step.do("a", give, "x" * 8, rollback=undo)  # 10 bytes of text
    try:
        await step.do("b", give, "y" * 8, rollback=undo)
    except Exception:
        return "caught"
    return await step.do("c", give)


def error_of(world: World) -> str:
    return str(codec.error_info(world.error or ""))


@pytest.mark.parametrize("evicted", [False, True])
def test_state_over_the_limit_fails_the_workflow(evicted: bool) -> None:
    """Semantics §6: the sizes are named, rollbacks run, and the code is asked nothing more."""
    world = World(define(two_values), max_state_bytes=19)
    world.turn()
    world.end("do:a:1")
    world.end("do:b:1")
    assert world.status is Status.ROLLING_BACK
    assert "do:c:1" not in world.rows
    assert world.rows["do:b:1"].status == "done"
    assert world.rows["sleep:beside:1"].status == "cancelled"
    cold, live = world.cold(), world.live
    assert live is not None
    assert shown.replay(cold.execution.replay) == shown.replay(live.execution.replay)
    cold.discard()
    if evicted:
        world.evict()
    world.end("do:b:1:rollback")
    world.end("do:a:1:rollback")
    assert world.status is Status.ERRORED
    assert error_of(world) == (
        "PayloadTooLarge: the state of the instance has 20 bytes; at most 19 are allowed"
    )
    assert rollback_of(world)["outcome"] == "complete"


def test_state_at_the_limit_is_fine() -> None:
    """Semantics §6: at most."""
    world = World(define(two_values), max_state_bytes=20 + 2 * len("null"))
    world.turn()
    for name in "abc":
        world.end(f"do:{name}:1")
    assert (world.status, world.output) == (Status.COMPLETE, "null")


def test_an_event_may_be_what_is_too_much() -> None:
    """Semantics §6: events count when they are delivered."""

    async def flow(event, step):
        return (await step.wait_for_event("w", type="go")).payload

    world = World(define(flow), max_state_bytes=100)
    world.turn()
    world.send("go", "x" * 100)
    world.turn()
    assert (world.status, world.output, world.inbox) == (Status.ERRORED, None, [])
    assert error_of(world).startswith("PayloadTooLarge: the state of the instance has ")


def test_the_result_may_be_what_is_too_much() -> None:
    """Semantics §6: the workflow's result counts too, and rollbacks run."""

    async def flow(event, step):
        await step.do("a", give, 1, rollback=undo)
        return "12345678"

    world = World(define(flow), max_state_bytes=10)
    world.turn()
    world.end()
    assert (world.status, world.output) == (Status.ROLLING_BACK, None)
    world.evict()
    world.end()
    assert error_of(world) == (
        "PayloadTooLarge: the state of the instance has 11 bytes; at most 10 are allowed"
    )


def test_state_that_grew_over_the_limit_while_blocked_fails_the_workflow_later() -> None:
    """Protocols §12: a hold records what ended and decides nothing."""
    world = World(define(two_values), max_state_bytes=9)
    world.turn()
    world.claim()
    world.hold(world.outcome("do:a:1"), error=NonDeterminismError("other code"))
    assert (world.status, world.error, world.state_bytes) == (Status.WAITING, None, 10)
    world.now = world.alarm_at
    world.turn(Wake())
    assert world.status is Status.ROLLING_BACK
    world.end("do:a:1:rollback")
    assert error_of(world).startswith("PayloadTooLarge")


def test_what_compensations_give_may_go_over_the_limit() -> None:
    """Semantics §5: nothing stands in the way of a rollback."""

    async def flow(event, step):
        await step.do("a", give, 1, rollback=lambda ctx: "x" * 100)
        raise LookupError("no")

    world = World(define(flow), max_state_bytes=50)
    world.turn()
    world.end()
    world.end()
    assert (world.status, error_of(world)) == (Status.ERRORED, "LookupError: no")
    assert rollback_of(world)["outcome"] == "complete"
