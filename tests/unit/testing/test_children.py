"""Children run in the environment of their parents, by the same decisions as in production."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator import (
    InstanceExists,
    InstanceNotFound,
    Retries,
    RollbackContext,
    Status,
    StepTimeout,
    WorkflowEvent,
    WorkflowFailed,
    WorkflowStep,
    WorkflowTerminated,
    workflow,
)
from orchestrator.testing import WorkflowEnvironment

undone: list[str] = []


def undo(r: RollbackContext) -> None:
    undone.append(r.step.name)


def give(value: Any) -> Any:
    return value


def boom() -> None:
    raise ValueError("boom")


@workflow(name="kit-child")
async def child(event: WorkflowEvent[dict[str, Any]], step: WorkflowStep) -> int:
    n: int = await step.do("child's", give, event.payload.get("n", 1), rollback=undo)
    if event.payload.get("waits"):
        n += (await step.wait_for_event("more", type="more", timeout="1 day")).payload
    if event.payload.get("fails"):
        await step.do("fail", boom, retries=Retries(limit=0))
    return n


@workflow(name="kit-parent")
async def parent(event: WorkflowEvent[dict[str, Any]], step: WorkflowStep) -> Any:
    await step.do("parent's", give, 1, rollback=undo)
    options = event.payload
    try:
        got = await step.invoke("child", child, options, id=options.get("id"), timeout=options.get("timeout"))
    except Exception as error:
        got = type(error).__name__
    await step.do("after", give, 1, rollback=undo)
    if options.get("ends badly"):
        raise ValueError("after all")
    return got


@workflow(name="kit-grandparent")
async def grandparent(event: WorkflowEvent[None], step: WorkflowStep) -> list[Any]:
    return list(await asyncio.gather(*[step.invoke("parent", parent, {"n": n}) for n in range(3)]))


def test_a_child_runs_and_its_output_is_the_step() -> None:
    """protocols §15: invoked children run in the environment, at any depth and beside each other."""
    with WorkflowEnvironment() as env:
        instance = env.create(parent, {"n": 5, "id": "c-1"})
        assert instance.result() == 5
        assert instance.wait_for_step_result("child") == 5
        assert env.get(child, "c-1").status().output == 5
        assert env.create(grandparent).result() == [0, 1, 2]


def test_a_child_is_an_instance_like_any_other() -> None:
    """protocols §15: it takes events by its id; its parent waits meanwhile; fakes of all are its fakes too."""
    with WorkflowEnvironment() as env:
        env.mock_step_result("child's", 30)
        instance = env.create(parent, {"waits": True, "id": "c-2"})
        env.run_until_idle()
        assert instance.status().status is Status.WAITING
        env.get(child, "c-2").send_event("more", 12)
        assert instance.result() == 42


def test_a_child_that_fails_fails_the_step() -> None:
    """semantics §2.7: its error is the step's, revived by class."""
    with WorkflowEnvironment() as env:
        assert env.create(parent, {"fails": True}).result() == "ValueError"


def test_an_id_that_is_taken_fails_the_step() -> None:
    """protocols §15: at once, whether or not anything else is due; the instance that has the id is left alone."""
    with WorkflowEnvironment() as env:
        assert env.create(parent, {"n": 5, "id": "c-5"}).result() == 5
        assert env.create(parent, {"n": 6, "id": "c-5"}).result() == InstanceExists.__name__
        assert env.get(child, "c-5").status().output == 5


def test_a_child_that_takes_too_long_is_terminated() -> None:
    """protocols §15: timeout → StepTimeout, and the child is terminated."""
    with WorkflowEnvironment() as env:
        instance = env.create(parent, {"waits": True, "timeout": "1 hour", "id": "c-3"})
        env.advance("1 hour")
        assert instance.result() == StepTimeout.__name__
        env.run_until_idle()
        assert env.get(child, "c-3").status().status is Status.TERMINATED


def test_what_an_operator_does_to_a_child_reaches_its_parent() -> None:
    """protocols §15: terminated → WorkflowTerminated; deleted → InstanceNotFound."""
    with WorkflowEnvironment() as env:
        for verb, error in (("terminate", WorkflowTerminated), ("delete", InstanceNotFound)):
            instance = env.create(parent, {"waits": True, "id": f"c-{verb}"})
            env.run_until_idle()
            getattr(env.get(child, f"c-{verb}"), verb)()
            assert instance.result() == error.__name__


def test_children_are_undone_in_their_place_in_the_chain() -> None:
    """semantics §5.8: a complete child is rolled back by its parent's chain, in reverse start order."""
    undone.clear()
    with WorkflowEnvironment() as env:
        instance = env.create(parent, {"ends badly": True, "id": "c-4"})
        with pytest.raises(WorkflowFailed, match="after all") as failed:
            instance.result()
        assert failed.value.rollback is not None and failed.value.rollback.outcome == "complete"
        assert undone == ["after", "child's", "parent's"]
        assert env.get(child, "c-4").status().status is Status.TERMINATED


def test_no_child_outlives_its_parent() -> None:
    """protocols §15: a parent that is terminated, or deleted, leaves no running child."""
    with WorkflowEnvironment() as env:
        for verb in ("terminate", "delete", "restart"):
            instance = env.create(parent, {"waits": True})
            env.run_until_idle()
            (started,) = [record for record in env.storage if record.parent_id == instance._uuid]
            getattr(instance, verb)()
            env.run_until_idle()
            assert started.status is Status.TERMINATED
        undone.clear()
        instance = env.create(parent, {"waits": True})
        env.run_until_idle()
        instance.terminate(rollback=True)
        instance.wait_for_status("terminated")
        assert undone == ["child's", "parent's"]
