"""Lifecycle verbs against the real thing: pause, resume, terminate, delete."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest

from orchestrator import InstanceNotFound
from orchestrator.store.records import deletion
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration

TABLES = ("instances", "payloads", "steps", "attempts", "transitions", "inbox")


async def body(*args: Any) -> Any:
    return list(args)


def left(site: Site, *ids: Any) -> dict[str, int]:
    """Rows of these instances, by table, where there are any."""
    counts = {}
    for table in TABLES:
        column = "id" if table == "instances" else "instance_id"
        query = f"SELECT count(*) FROM orchestrator_{table} WHERE {column} = ANY(:ids)"
        counts[table] = site.sql(query, ids=list(ids))[0][0]
    return {table: count for table, count in counts.items() if count}


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
