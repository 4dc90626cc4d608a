"""Databases of earlier releases that hold instances: what becomes of those when this release migrates them."""

from __future__ import annotations

from typing import Any

import pytest
from alembic import command

from orchestrator import Status
from orchestrator.store import migrate
from tests.integration.harness import Bench, Site

pytestmark = pytest.mark.integration


def ran(site: Site, bench: Bench, results: Any) -> None:
    """Run what a flush hands out, and what follows from it, until nothing is left."""
    while results.handouts or results.repeat:
        if results.repeat:
            results = bench.run(results.repeat)
        else:
            results = bench.finish(results.handouts[0], "done")


def test_instances_of_the_first_schema_go_on(own_site: Site) -> None:
    """design §3: the rows of an instance that the first schema holds are taken over as they are: it goes on from where
    it was, its story can be told, and it can be restarted; so it is the other way round."""
    site = own_site

    async def flow(event, step):
        first = await step.do("first", lambda: None, rollback=lambda context: None)
        await step.sleep("s", 60)
        got = await step.wait_for_event("w", type="go")
        return [event.payload, first, got.payload, await step.do("last", lambda: None)]

    flows = site.workflow(flow, name="migrated_flow")
    configuration = migrate.configuration(site.settings.database_url)
    before = site.bench()
    before.clock.at = site.client.now()
    sleeping, ended, unborn = flows.create("sleeping"), flows.create("ended"), flows.create("unborn")
    for each in (sleeping, ended):
        ran(site, before, before.wake(site.id_of(each.id)))
    ended.terminate(rollback=True)
    ran(site, before, before.wake(site.id_of(ended.id)))
    sleeping.send_event("go", "event")
    before.close()

    command.downgrade(configuration, "0001")
    site.sql(
        "UPDATE orchestrator_steps SET config = NULL WHERE kind = 'sleep'"
    )  # the first release wrote none
    assert migrate.revision(site.engine) == "0001"
    assert migrate.upgrade(site.settings.database_url) == ("0001", migrate.head())
    command.check(configuration)

    after = site.bench()
    after.clock.at = site.client.now()
    assert [each.status().status for each in (sleeping, ended, unborn)] == [
        "waiting",
        "terminated",
        "running",
    ]
    rollback = ended.status().rollback
    assert rollback is not None and rollback.outcome == "complete"
    assert [event.type for event in ended.subscribe()][-2:] == ["rollback_completed", "workflow_terminated"]
    after.clock.at += 61
    ran(site, after, after.wake(site.id_of(sleeping.id)))
    assert sleeping.result(5) == ["sleeping", "done", "event", "done"]
    told = [event.type for event in sleeping.subscribe()]
    assert told[:2] == ["workflow_queued", "workflow_started"] and told[-1] == "workflow_completed"
    sleeping.restart(from_step="w", kind="wait")
    ended.restart()
    for each in (sleeping, ended, unborn):
        each.send_event("go", "again")
        ran(site, after, after.wake(site.id_of(each.id)))
    after.clock.at += 61
    for each in (ended, unborn):
        ran(site, after, after.wake(site.id_of(each.id)))
        assert each.status().status is Status.COMPLETE
    assert sleeping.result(5) == ["sleeping", "done", "again", "done"]
