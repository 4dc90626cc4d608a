"""Exported histories, run against the code of today."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from orchestrator import InvalidConfig, NonDeterminismError, SerializationError, WorkflowEvent, WorkflowStep
from orchestrator.testing import WorkflowEnvironment, replay_history
from orchestrator.workflow.language.definition import define
from tests.unit.testing import flows
from tests.unit.testing.flows import Order, Receipt

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Once:
    """A workflow that no registry knows."""

    def __init__(self, fn: Any, name: str = "kit-order") -> None:
        self.definition = define(fn, name=name)


def replay(fn: Any, history: Any) -> None:
    replay_history(Once(fn), history)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def waiting() -> dict[str, Any]:
    """An order that has been charged and waits for its approval."""
    with WorkflowEnvironment(start=START) as env:
        instance = env.create(flows.order, Order(7, ["tea"]), id="o-7")
        env.run_until_idle()
        return instance.export_history()


@pytest.fixture(scope="module")
def complete() -> dict[str, Any]:
    with WorkflowEnvironment(start=START) as env:
        instance = env.create(flows.order, Order(7, ["tea"]), id="o-7")
        instance.send_event("approval", "yes")
        env.advance("2 days")
        instance.result()
        return instance.export_history()


def test_the_code_that_made_a_history_fits_it(waiting: dict[str, Any], complete: dict[str, Any]) -> None:
    """api §6: replay_history passes code that does what is recorded; a document survives JSON."""
    for history in (waiting, complete, json.dumps(complete), json.loads(json.dumps(waiting))):
        replay_history(flows.order, history)


def test_what_a_document_holds(waiting: dict[str, Any]) -> None:
    """The format, version 1."""
    assert waiting["format"] == "orchestrator.history" and waiting["version"] == 1
    assert (waiting["workflow"], waiting["workflow_version"], waiting["instance_id"]) == (
        "kit-order",
        "1",
        "o-7",
    )
    assert (waiting["status"], waiting["created_at"]) == ("waiting", START.timestamp())
    assert json.loads(waiting["params"]) == {"id": 7, "lines": ["tea"]}
    charge, approval = waiting["steps"]
    assert (charge["key"], charge["status"]) == ("do:charge:1", "done")
    assert json.loads(charge["output"]) == {"id": 7, "lines": ["tea", "charged"]}
    assert charge["started_seq"] < charge["finished_seq"] < approval["started_seq"]
    assert approval["finished_seq"] is None


def test_other_steps_are_a_difference(waiting: dict[str, Any]) -> None:
    """semantics §1.6: names what was expected and what came."""

    async def renamed(event: WorkflowEvent[Order], step: WorkflowStep) -> None:
        await step.do("bill", flows.charge, event.payload)

    async def swapped(event: WorkflowEvent[Order], step: WorkflowStep) -> None:
        waits = step.wait_for_event("approval", type="approval")
        await step.do("charge", flows.charge, event.payload)
        await waits

    async def shorter(event: WorkflowEvent[Order], step: WorkflowStep) -> None:
        await step.do("charge", flows.charge, event.payload)

    for fn, came in ((renamed, "do:bill:1"), (swapped, "wait:approval:1"), (shorter, "end of the workflow")):
        with pytest.raises(NonDeterminismError, match=came):
            replay(fn, waiting)


def test_code_may_go_on_after_what_is_recorded(waiting: dict[str, Any]) -> None:
    """semantics §1.3: what was not started yet may change."""

    async def longer(event: WorkflowEvent[Order], step: WorkflowStep) -> str:
        await step.do("charge", flows.charge, event.payload)
        await asyncio.gather(
            step.wait_for_event("approval", type="approval"), step.sleep("a new one", "1 hour")
        )
        return "another type of result"

    replay(longer, waiting)


def test_another_end_is_a_difference(complete: dict[str, Any]) -> None:
    """semantics §1.6: a finished history holds everything: no further step, and the same kind of end."""

    async def longer(event: WorkflowEvent[Order], step: WorkflowStep) -> Receipt:
        receipt = await same(event, step)
        await step.sleep("one more", 1)
        return receipt

    async def failing(event: WorkflowEvent[Order], step: WorkflowStep) -> Receipt:
        await same(event, step)
        raise ValueError("no")

    async def same(event: WorkflowEvent[Order], step: WorkflowStep) -> Receipt:
        await step.do("charge", flows.charge, event.payload)
        approval = await step.wait_for_event("approval", type="approval")
        await step.sleep("cool-off", "another duration is no difference" and "2 days")
        return Receipt(event.payload, f"{approval.payload}, said differently")

    replay(same, complete)
    with pytest.raises(NonDeterminismError, match=r"end of the workflow.*sleep:one more:1"):
        replay(longer, complete)
    with pytest.raises(NonDeterminismError, match=r"end of the workflow.*failure.*ValueError: no"):
        replay(failing, complete)


def test_values_must_fit_todays_annotations(waiting: dict[str, Any]) -> None:
    """protocols §17: a recorded value that no longer fits blocks instances; here it is told before."""

    def charge(order: Order) -> list[int]:
        return [order.id]

    async def other_type(event: WorkflowEvent[Order], step: WorkflowStep) -> None:
        await step.do("charge", charge, event.payload)

    with pytest.raises(SerializationError, match="do:charge:1"):
        replay(other_type, waiting)


def test_failed_and_terminated_histories_replay() -> None:
    """semantics §5: the end of the code is what counts; handlers are none of it."""
    with WorkflowEnvironment() as env:
        env.disable_sleeps()
        env.disable_retry_delays("ship")
        failed = env.create(flows.order, Order(1, []))
        failed.send_event("approval", "no")
        failed.wait_for_status("errored")
        stopped = env.create(flows.order, Order(2, []))
        env.run_until_idle()
        stopped.terminate(rollback=True)
        stopped.wait_for_status("terminated")
        queued = env.create(flows.order, Order(3, []))
        for instance in (failed, stopped, queued):
            replay_history(flows.order, instance.export_history())
        exported = failed.export_history()

    async def forgiving(event: WorkflowEvent[Order], step: WorkflowStep) -> str:
        await step.do("charge", flows.charge, event.payload)
        await step.wait_for_event("approval", type="approval")
        await step.sleep("cool-off", "1 day")
        try:
            await step.do("ship", flows.decline, event.payload)
        except Exception:
            return "never mind"
        return "?"

    with pytest.raises(NonDeterminismError, match=r"failure of the workflow.*end of the workflow"):
        replay(forgiving, exported)


def test_sensitive_values_stay_where_they_are_unless_asked_for() -> None:
    """semantics §2.8: an export shows [REDACTED], and then cannot be replayed."""

    async def secret(event: WorkflowEvent[None], step: WorkflowStep) -> int:
        token = await step.do("token", lambda: "s3cret", sensitive=True)
        return len(token)

    workflow: Any = Once(secret, "kit-secret")
    with WorkflowEnvironment() as env:
        instance = env.create(workflow)
        assert instance.result() == 6
        redacted = instance.export_history()
        assert "s3cret" not in json.dumps(redacted)
        with pytest.raises(InvalidConfig, match=r"do:token:1.*include_sensitive"):
            replay_history(workflow, redacted)
        replay_history(workflow, instance.export_history(include_sensitive=True))


def test_what_is_no_history_is_refused(waiting: dict[str, Any]) -> None:
    """Bad input gets a clear error."""
    for wrong, text in (
        ("{", "no JSON"),
        ([], "no exported history"),
        ({"steps": []}, "no exported history"),
        ({**waiting, "version": 2}, "version 2"),
        ({**waiting, "workflow": "other"}, "of workflow 'other'"),
    ):
        with pytest.raises(InvalidConfig, match=text):
            replay_history(flows.order, wrong)  # type: ignore[arg-type]


def test_histories_replay_inside_a_running_loop(complete: dict[str, Any]) -> None:
    """protocols §1: replays never run inside a running task."""

    async def test() -> None:
        replay_history(flows.order, complete)

    asyncio.run(test())
