"""Children that operators restart, and orphans that nobody here knows: what is told apart in SQL."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import StepTimeout, WorkflowTerminated
from orchestrator.engine.turning.results import Results
from orchestrator.ports import HandOut
from orchestrator.store.records import children
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration


async def waits(event, step):
    await step.wait_for_event("w", type="go")


def rung(site: Site, now: float) -> list[Any]:
    with site.engine.begin() as connection:
        return children.orphans(connection, site.settings.account, now)[0]


def test_a_failed_child_is_restarted_whatever_it_failed_with(site: Site) -> None:
    """semantics §4, protocols §15: a failed child stays its parent's as long as that goes on, also if its error has a
    character that Postgres' JSON refuses; nobody rings it meanwhile, and paused it stays as it is."""

    async def fails(event, step):
        if not await step.do("ask", lambda: broken):
            return await step.wait_for_event("w", type="go")
        raise ValueError("a\x00b")

    broken = [1]
    child = site.workflow(fails, name="families_failing")

    async def flow(event, step):
        try:
            await step.invoke("c", child, id="families_c")
        except ValueError as error:
            await step.do("seen", lambda: None)
            await step.wait_for_event("w", type="go")
            return str(error)

    site.worker()
    parent = site.workflow(flow, name="families_parent").create()
    eventually(lambda: any(step.name == "seen" and step.status == "done" for step in parent.steps()))
    broken.clear()
    child.get("families_c").restart()
    instance = site.id_of("families_c")
    eventually(lambda: site.row(instance).status == "waiting")
    (owner,) = site.sql("SELECT parent_id FROM orchestrator_instances WHERE id = :id", id=instance)
    assert owner[0] == site.id_of(parent.id)
    child.get("families_c").pause()
    assert rung(site, site.client.now()) == []
    assert site.row(instance).alarm == float("inf")
    parent.send_event("go")
    assert parent.result(10) == "a\x00b"
    assert rung(site, site.client.now()) == [instance]
    site.client.hint([instance])
    with pytest.raises(WorkflowTerminated):
        child.get("families_c").result(10)


def test_an_orphan_that_nobody_knows_is_rung_until_it_has_ended(site: Site) -> None:
    """protocols §15: an alarm of a workflow that no worker knows rings nowhere; so one that was rung, by a process that
    died before it woke it, is rung again in a later search, and not by every worker at once."""
    child = site.workflow(waits, name="families_orphan")

    async def short(event, step):
        step.invoke("orphan", child, id="families_lost")
        await step.sleep("n", 0.2)

    bench = site.bench()
    parents = site.workflow(short, name="families_short")
    parent = parents.create()
    now = bench.clock.at = site.client.now()
    bench.wake(site.id_of(parent.id))
    orphan = site.id_of("families_lost")
    bench.wake(orphan)
    bench.clock.at += 1
    bench.wake(site.id_of(parent.id))
    assert rung(site, now + 1) == [orphan]
    assert rung(site, now + 2) == []
    assert rung(site, now + 11) == [orphan]
    known = Registry()
    known.register(parents.definition)
    site.bench(known).wake(orphan)
    assert site.row(orphan).status == "terminated"


def test_a_rollback_that_an_operator_asked_for_needs_no_parent(site: Site) -> None:
    """semantics §5.6: ``terminate(rollback=True)`` on a child undoes what it did, also if its parent gives it up, and
    returns, before the last body has ended."""

    async def reserves(event, step):
        await step.do("reserve", lambda: "r", rollback=lambda context: None)
        await step.do("long", lambda: None)

    child = site.workflow(reserves, name="families_reserving")

    async def impatient(event, step):
        try:
            await step.invoke("c", child, id="families_r", timeout=2)
        except StepTimeout:
            return "without it"

    bench = site.bench()
    parent = site.workflow(impatient, name="families_impatient").create()

    def turned(results: Results) -> list[HandOut]:
        handouts = results.handouts
        while results.repeat:
            results = bench.run(results.repeat)
            handouts = [*handouts, *results.handouts]
        return handouts

    bench.clock.at = site.client.now()
    bench.wake(site.id_of(parent.id))
    instance = site.id_of("families_r")
    (reserve,) = turned(bench.wake(instance))
    (long,) = bench.finish(reserve, "r").handouts
    (ready,) = bench.claim(long)
    child.get("families_r").terminate(rollback=True)
    bench.clock.at += 3
    bench.wake(site.id_of(parent.id))
    assert parent.result(5) == "without it"
    (undo,) = turned(bench.run({instance: [bench.outcome(ready)]}))
    assert undo.key == "do:reserve:1:rollback"
    turned(bench.finish(undo))
    with pytest.raises(WorkflowTerminated) as raised:
        child.get("families_r").result(5)
    assert raised.value.rollback is not None and raised.value.rollback.outcome == "complete"
