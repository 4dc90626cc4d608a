"""The verbs of an instance under test mean what they mean in production."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from orchestrator import (
    InvalidConfig,
    InvalidTransition,
    NonRetryableError,
    Status,
    WorkflowEvent,
    WorkflowStep,
)
from orchestrator.testing import WorkflowEnvironment
from orchestrator.workflow.language.definition import define
from tests.unit.testing import flows
from tests.unit.testing.flows import Order, log

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Once:
    """A workflow that no registry knows."""

    def __init__(self, fn: Any, name: str) -> None:
        self.definition = define(fn, name=name)


def test_a_pause_stops_timers_and_keeps_events() -> None:
    """semantics §4: paused; timers shift by the pause; events that come meanwhile are taken at the resume."""
    with WorkflowEnvironment(start=START) as env:
        instance = env.create(flows.order, Order(1, []))
        env.run_until_idle()
        env.advance("50 minutes")
        instance.pause()
        assert instance.status().status is Status.PAUSED
        env.advance("1 day")
        instance.send_event("approval", "late, but in time")
        env.run_until_idle()
        assert instance.status().status is Status.PAUSED
        instance.resume()
        env.run_until_idle()
        assert [s.status for s in instance.steps()] == ["done", "done", "waiting"]
        other = env.create(flows.order, Order(2, []))
        env.run_until_idle()
        env.advance("50 minutes")
        other.pause()
        env.advance("1 day")
        other.resume()
        env.advance("9 minutes")
        assert other.status().status is Status.WAITING
        env.advance("1 minute")
        assert other.wait_for_status("errored").error.name == "EventTimeout"  # type: ignore[union-attr]


def test_a_pause_waits_for_the_steps_in_flight() -> None:
    """semantics §4: bodies in flight finish and are recorded; no new step starts; then paused."""

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> list[int]:
        first = await step.do("first", pausing)
        return [first, await step.do("second", lambda: 2)]

    seen: list[Status] = []

    def pausing() -> int:
        instance.pause()
        seen.append(instance.status().status)
        return 1

    with WorkflowEnvironment() as env:
        instance = env.create(Once(code, "kit-pausing"))  # type: ignore[arg-type]
        instance.wait_for_status("paused")
        assert seen == [Status.WAITING_FOR_PAUSE]
        assert [(s.name, s.status) for s in instance.steps()] == [("first", "done")]
        instance.resume()
        assert instance.result() == [1, 2]


def test_a_pending_pause_waits_for_an_async_body_though_timers_are_due() -> None:
    """semantics §4: what comes due meanwhile stays due, and does not keep the body from ending."""
    ended: list[str] = []

    async def slow() -> None:
        await asyncio.sleep(0.01)
        ended.append("slow")

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await asyncio.gather(step.do("slow", slow), step.sleep("nap", 5))

    with WorkflowEnvironment() as env:
        instance = env.create(Once(code, "kit-pausing-async"))  # type: ignore[arg-type]
        for _ in range(2):
            env.driver.act()
        instance.pause()
        assert instance.status().status is Status.WAITING_FOR_PAUSE
        env.move(env.now.timestamp() + 10)  # the nap is over while the pause is pending
        env.run_until_idle()
        assert ended == ["slow"]
        assert instance.status().status is Status.PAUSED
        instance.resume()
        env.advance("15 seconds")
        assert instance.status().status is Status.COMPLETE


def test_a_restart_begins_anew() -> None:
    """semantics §4: same id and params, another run: another idempotency key."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.told, id="t")
        before = instance.result()
        instance.restart()
        assert instance.status().status is Status.QUEUED and instance.steps() == []
        after = instance.result()
        assert before["key"] != after["key"] and after["instance"] == "t"


def test_a_restart_from_a_step_keeps_what_was_before() -> None:
    """protocols §10: earlier results stay; that step and all later ones are done anew."""
    log.clear()
    with WorkflowEnvironment() as env:
        env.disable_sleeps()
        env.disable_retry_delays("ship")
        instance = env.create(flows.order, Order(1, []))
        instance.send_event("approval", "no")
        instance.wait_for_status("errored")
        with pytest.raises(InvalidTransition, match="shop"):
            instance.restart(from_step="shop")
        with pytest.raises(InvalidConfig, match="kind"):
            instance.restart(from_step="ship", kind="ship")
        instance.restart(from_step="approval", kind="wait")
        env.run_until_idle()
        assert [(s.name, s.status) for s in instance.steps()] == [("charge", "done"), ("approval", "waiting")]
        instance.send_event("approval", "yes")
        assert instance.result().by == "yes"
        assert [entry[0] for entry in log] == ["charge", "refund"]


def test_lifecycle_events_are_told_in_order() -> None:
    """semantics §7: strictly increasing, from queued to the terminal event; a cursor is exclusive."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.told)
        told = list(instance.subscribe())
        assert [e.type for e in told] == [
            "workflow_queued",
            "workflow_started",
            "step_started",
            "attempt_started",
            "workflow_running",
            "attempt_completed",
            "step_completed",
            "workflow_completed",
        ]
        ids = [e.event_id for e in told]
        assert ids == sorted(set(ids))
        assert list(instance.subscribe(cursor=ids[2])) == told[3:]
        assert [e.type for e in instance.subscribe(types=["step_completed"])] == ["step_completed"]
        with pytest.raises(InvalidConfig, match="nonsense"):
            instance.subscribe(types=["nonsense"])
        assert [e.type for e in instance.subscribe(types="step_completed")] == ["step_completed"]
        with pytest.raises(InvalidConfig, match="cursor"):
            instance.subscribe(cursor="first")

        async def follow() -> list[Any]:
            return [event async for event in instance.asubscribe()]

        assert asyncio.run(follow()) == told


def test_a_subscription_ends_where_nothing_more_happens_by_itself() -> None:
    """api §6: the kit drives the instance while it is listened to; a test that waits for time does not hang."""
    with WorkflowEnvironment(start=START) as env:
        instance = env.create(flows.retries)
        told = list(instance.subscribe())
        assert [e.type for e in told][-2:] == ["attempt_errored", "workflow_waiting"]
        assert told[-2].retry_delay == 10.0
        env.advance(timedelta(minutes=1))
        assert [e.type for e in instance.subscribe(cursor=told[-1].event_id)][-1] == "workflow_completed"


def test_a_failed_rollback_is_finished_by_an_operator() -> None:
    """semantics §5.8: retry_rollback runs what failed once more, skip_rollback leaves it out; the error stays."""
    fails = [True, True]
    undone: list[str] = []

    def undo(r: Any) -> None:
        if r.step.name == "first" and fails and fails.pop():
            raise NonRetryableError("not now")
        undone.append(r.step.name)

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("first", lambda: 1, rollback=undo)
        await step.do("second", lambda: 2, rollback=undo)
        raise ValueError("no")

    with WorkflowEnvironment() as env:
        one = env.create(Once(code, "kit-undoing"))  # type: ignore[arg-type]
        with pytest.raises(InvalidTransition, match="retry_rollback"):
            one.retry_rollback()
        one.wait_for_status("errored")
        assert undone == ["second"] and one.status().rollback.outcome == "failed"  # type: ignore[union-attr]
        one.retry_rollback()
        one.wait_for_status("errored")
        one.skip_rollback("first")
        status = one.wait_for_status("errored")
        assert undone == ["second"] and status.rollback is not None and status.rollback.outcome == "complete"
        assert status.error is not None and status.error.name == "ValueError"
        other = env.create(Once(code, "kit-undoing"))  # type: ignore[arg-type]
        assert other.wait_for_status("errored").rollback.outcome == "complete"  # type: ignore[union-attr]
