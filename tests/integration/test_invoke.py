"""Children: ``step.invoke`` on real Postgres, with engines of the test's own."""

import asyncio
from typing import Any

import pytest

from orchestrator import NonRetryableError
from orchestrator.errors import (
    InstanceExists,
    InstanceNotFound,
    InvalidParams,
    WorkflowTerminated,
)
from orchestrator.workflow.kin import child_id
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration


async def double(value: int) -> int:
    return value * 2


def children_of(site: Site, parent: Any) -> list[Any]:
    return site.sql(
        "SELECT id, name_id, workflow, version, status, rollback FROM orchestrator_instances WHERE parent_id = :id "
        "ORDER BY created_at, id",
        id=site.id_of(parent.id),
    )


def test_a_child_is_started_and_awaited(site: Site) -> None:
    """protocols §15: a child starts with its parent's turn, under an id that is the same on every replay; its output is
    the step's, typed by its return annotation."""

    async def invoked_child(event, step) -> set[int]:
        return {await step.do("double", double, event.payload)}

    child = site.workflow(invoked_child)

    async def invoking_parent(event, step):
        got = await step.invoke("run it", child, 21)
        return [type(got).__name__, sorted(got)]

    site.worker()
    parent = site.workflow(invoking_parent).create()
    assert parent.result(15) == ["set", [42]]
    (row,) = children_of(site, parent)
    assert row.id == child_id(site.id_of(parent.id), 0, "invoke:run it:1")
    assert row.name_id == str(row.id)
    assert [(s.key, s.status) for s in parent.steps()] == [("invoke:run it:1", "done")]


def test_many_children_at_once_and_two_levels(site: Site) -> None:
    """protocols §15: parallel children, the same name in a loop, and children of children."""

    async def leaf(event, step) -> int:
        return await step.do("double", double, event.payload)

    leaves = site.workflow(leaf, name="invoke_leaf")

    async def middle(event, step) -> int:
        return sum(await asyncio.gather(*[step.invoke("leaf", leaves, n) for n in range(event.payload)]))

    middles = site.workflow(middle, name="invoke_middle")

    async def top(event, step):
        sums = []
        for n in (1, 2, 3):
            sums.append(await step.invoke("middle", middles, n))
        wide = await step.invoke("wide", middles, 50, id="wide-one")
        return [*sums, wide]

    site.worker()
    site.worker()
    parent = site.workflow(top, name="invoke_top").create()
    assert parent.result(40) == [0, 2, 6, 2450]
    assert middles.get("wide-one").status().output == 2450
    steps = parent.steps()
    assert [s.key for s in steps] == [
        "invoke:middle:1",
        "invoke:middle:2",
        "invoke:middle:3",
        "invoke:wide:1",
    ]


def test_how_a_child_may_end(site: Site) -> None:
    """semantics §1.4, protocols §15: failed, terminated, deleted, its id taken, its parameters refused: each is an
    error that the code may catch, and that is the same on every replay."""
    seen: list[list[str]] = []

    async def ending_child(event, step: Any) -> None:
        if event.payload == "builtin":
            raise ValueError("of its own")
        if event.payload == "ours":
            raise NonRetryableError("never")
        await step.wait_for_event("go", type="go")

    child = site.workflow(ending_child, name="invoke_ending")

    async def typed(event, step) -> None:
        return None

    typed.__annotations__["event"] = "WorkflowEvent[int]"
    strict = site.workflow(typed, name="invoke_strict")

    async def catching(event, step):
        names = []
        for name, workflow, params, name_id in [
            ("builtin", child, "builtin", None),
            ("ours", child, "ours", None),
            ("terminated", child, None, "to-terminate"),
            ("deleted", child, None, "to-delete"),
            ("taken", child, None, "there-before"),
            ("refused", strict, "no number", None),
        ]:
            try:
                await step.invoke(name, workflow, params, id=name_id)
            except Exception as error:
                names.append(f"{name}: {type(error).__name__}")
        seen.append(names)
        return names

    child.create(id="there-before")
    worker = site.worker()
    parent = site.workflow(catching, name="invoke_catching").create()
    eventually(lambda: site.sql("SELECT 1 FROM orchestrator_instances WHERE name_id = 'to-terminate'"))
    child.get("to-terminate").terminate()
    eventually(lambda: site.sql("SELECT 1 FROM orchestrator_instances WHERE name_id = 'to-delete'"))
    child.get("to-delete").delete()
    assert parent.result(15) == [
        "builtin: ValueError",
        "ours: NonRetryableError",
        f"terminated: {WorkflowTerminated.__name__}",
        f"deleted: {InstanceNotFound.__name__}",
        f"taken: {InstanceExists.__name__}",
        f"refused: {InvalidParams.__name__}",
    ]
    assert worker.is_open
