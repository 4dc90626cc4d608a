"""The engine of a prefork child, in this process: what it tells, and when it looks."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from orchestrator.engine.forking.child import ChildRuntime
from orchestrator.engine.forking.notices import Notice, Wire
from orchestrator.ports import OpenGate
from orchestrator.store import workers
from tests.integration.harness import Created, Site, eventually

pytestmark = pytest.mark.integration


class Scene:
    """A child and its workflow."""

    def __init__(self, site: Site, workflow: Created) -> None:
        self.workflow = workflow
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.wire = Wire()
        self.notices: list[Notice] = []
        settings = replace(site.settings, heartbeat=5.0)
        self.runtime = ChildRuntime(self.wire, ("cpu",), settings, site.registry, site.post, OpenGate())
        self.call(self._start())
        self.says("up")

    async def _start(self) -> None:
        self.runtime.start(asyncio.get_running_loop())

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    def says(self, *words: str) -> list[Notice]:
        """Wait until it has said these, and no others."""
        eventually(lambda: self.notices.extend(self.wire.heard()) or len(self.notices) >= len(words))
        found, self.notices = self.notices, []
        assert [notice.word for notice in found] == list(words)
        return found


@pytest.fixture
def child(site: Site) -> Iterator[Scene]:
    async def flow(event, step):
        return "done"

    scene = Scene(site, site.workflow(flow))
    yield scene
    scene.call(scene.runtime.drain())
    scene.loop.call_soon_threadsafe(scene.loop.stop)


def test_a_message_is_told_before_anything_that_may_take_long(child: Scene) -> None:
    """A shutdown looks for who has one: also for a child that waits for Postgres."""
    with child.runtime._own._looking:  # as long as that takes
        coming = child.runtime.step(uuid4(), "do:a:1", 2)
        running = asyncio.run_coroutine_threadsafe(coming, child.loop)
        (got,) = child.says("got")
        assert not running.done()
    assert running.result(30) == "dropped"
    took, *_ = child.says("took", "over", "over")
    assert took.alive_at > got.alive_at > 0, "it looked in between"


def test_who_was_idle_asks_for_the_time_before_a_turn(site: Site, child: Scene) -> None:
    """protocols §6: a child does not beat; its clock stands still with the machine it sleeps on."""
    child.runtime.clock._offset -= 3600
    child.runtime._own.looked_at -= 60
    instance = child.workflow.create()
    (row,) = site.sql("SELECT id FROM orchestrator_instances WHERE account = :a", a=site.settings.account)
    child.runtime.coordinate([row.id])
    assert instance.result(30) == "done"
    with site.engine.begin() as connection:
        assert abs(workers.clock(connection) - child.runtime.clock.now()) < 60
    (ended,) = site.sql(
        "SELECT extract(epoch FROM now() - max(at))::float8 AS ago FROM orchestrator_transitions "
        "WHERE instance_id = :id",
        id=row.id,
    )
    assert ended.ago < 60
