"""What blocks an instance without a word in its row: code that no live worker knows, a queue that nobody serves."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from orchestrator.client.asking import blocked
from orchestrator.errors import ErrorInfo
from orchestrator.ports import new_id
from orchestrator.settings import Incarnation
from orchestrator.store import workers
from orchestrator.store.records import serving
from orchestrator.workflow.language.definition import Registry
from orchestrator.workflow.status import Status
from tests.integration.harness import Created, ManualClock, Site, eventually

pytestmark = pytest.mark.integration


async def waits(event, step):
    await step.wait_for_event("go", type="go")


async def renders(event, step):
    await step.do("render", lambda: 1, queue="cpu")


def live(site: Site, *known: str, queues: tuple[str, ...] = ()) -> UUID:
    """A worker that has just renewed its lease."""
    worker = Incarnation(new_id(site.client.now()), "here", 1, queues)
    with site.engine.begin() as connection:
        workers.register(connection, site.settings.account, worker, known)
    return worker.id


def aged(site: Site, instance: Any, seconds: float = 60) -> Any:
    """The instance, as if created, and its steps handed out, so long before."""
    uuid = site.id_of(instance.id)
    site.sql(
        "UPDATE orchestrator_instances SET created_at = created_at - make_interval(secs => :s) WHERE id = :id",
        s=seconds, id=uuid,
    )  # fmt: skip
    site.sql(
        "UPDATE orchestrator_steps SET handed_at = handed_at - make_interval(secs => :s) WHERE instance_id = :id",
        s=seconds, id=uuid,
    )  # fmt: skip
    return instance


def why(instance: Any) -> ErrorInfo | None:
    return instance.status().blocked


def test_a_version_that_no_live_worker_knows(site: Site) -> None:
    """Semantics §1.6, protocols §12: the instance is left for a worker that knows its version; until then its status
    says which versions the live ones know. The recorded status stays."""
    flow = site.workflow(waits, name="blocked_versions", version="3")
    instance = aged(site, flow.create())
    live(site, "blocked_versions@1", "blocked_versions@2", "blocked_versions_too@3")
    live(site, "blocked_versions@2")
    found = instance.status()
    assert found.status is Status.RUNNING
    assert found.blocked is not None and found.blocked.name == "UnknownWorkflow"
    assert "version '3'; what they know of it is '1', '2'." in found.blocked.message
    live(site, "blocked_versions@3")
    assert why(instance) is None


def test_without_any_worker_or_with_none_that_knows_the_workflow(site: Site) -> None:
    """Protocols §12: the texts tell a missing worker from one without the code."""
    flow = site.workflow(waits, name="blocked_alone")
    instance = aged(site, flow.create())
    assert "no worker of the account" in str(why(instance))
    live(site, "another@1")
    assert "nor any other version" in str(why(instance))


def test_the_dead_know_nothing(site: Site) -> None:
    """Protocols §6: who was declared dead, or has been silent for a minute, does not count."""
    flow = site.workflow(waits, name="blocked_dead")
    instance = aged(site, flow.create())
    first, second = live(site, "blocked_dead@1"), live(site, "blocked_dead@1")
    assert why(instance) is None
    site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=first)
    site.sql(
        "UPDATE orchestrator_workers SET heartbeat_at = now() - interval '61 s' WHERE id = :id", id=second
    )
    assert "no worker of the account" in str(why(instance))


def test_a_step_in_a_queue_that_nobody_serves(site: Site) -> None:
    """Protocols §20: it shows as blocked after 60 s, with the queue; not before, and not once somebody serves it."""
    flow = site.workflow(renders, name="blocked_queue")
    site.worker()
    site.post.loses = lambda handout: handout.queue == "cpu"
    instance = flow.create()
    eventually(lambda: [step.status for step in instance.steps()] == ["handed"])
    assert why(aged(site, instance, 50)) is None
    found = aged(site, instance, 20).status()
    assert found.status is Status.RUNNING
    assert found.blocked is not None and found.blocked.name == "QueueNotServed"
    assert "step 'do:render:1' was handed out 7" in found.blocked.message
    assert "queue 'cpu', which no live worker serves" in found.blocked.message
    live(site, "blocked_queue@1", queues=("cpu", "gpu"))
    assert why(instance) is None


def test_a_backlog_is_no_block(site: Site) -> None:
    """Protocols §20: a queue that is served, however long, is not said to be blocked."""

    async def flow(event, step):
        await step.do("s", lambda: 1)

    instance = site.workflow(flow, name="blocked_backlog").create()
    uuid = site.id_of(instance.id)
    site.bench(clock=ManualClock(site.client.now())).wake(uuid)
    assert site.step(uuid, "do:s:1").status == "handed"
    aged(site, instance, 600)
    live(site, "blocked_backlog@1")
    assert "QueueNotServed" in str(why(instance)), "not even the account's own queue is served"
    live(site, "blocked_backlog@1", queues=(site.settings.queue,))
    assert why(instance) is None


def test_what_is_finished_paused_or_young_is_not_asked_about(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ADR 10: ``status()`` is one statement for an instance that is on its way, finished or paused."""
    flow = site.workflow(waits, name="blocked_never")
    young, paused, finished = flow.create(), flow.create(), flow.create()
    paused.pause()
    finished.terminate()
    asked = []
    monkeypatch.setattr(serving, "of", lambda *args, **options: asked.append(args))
    for instance in (young, aged(site, paused), aged(site, finished)):
        assert why(instance) is None
    assert asked == []
    assert blocked.YOUNG_S == 5.0


def test_what_is_recorded_goes_first(site: Site) -> None:
    """Protocols §12: an instance that is blocked in the open says why; nothing else is looked for."""

    async def other(event, step):
        await step.do("b", lambda: 1)

    old = Registry()
    flow = site.workflow(waits, old, name="blocked_open")
    worker = site.worker(old)
    instance = flow.create()
    eventually(lambda: instance.steps())
    worker.crash()
    site.workflow(other, name="blocked_open")
    new = site.worker()
    new.runtime.coordinate([site.id_of(instance.id)])
    found = eventually(lambda: (now := instance.status()).blocked and now)
    assert found.status is Status.WAITING and found.blocked.name == "NonDeterminismError"
    aged(site, instance)
    new.crash()
    site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE account = :a", a=site.settings.account)
    assert why(instance) == found.blocked


def test_the_handle_of_another_version_asks_for_the_version_of_the_row(site: Site, settings: Any) -> None:
    """API §1: an instance keeps its version, whatever version is asked through."""
    one, two = (site.workflow(waits, name="blocked_asked", version=version) for version in ("1", "2"))
    aged(site, two.create(id="two"))
    live(site, "blocked_asked@1")
    assert isinstance(one, Created)
    assert "version '2'" in str(why(one.get("two")))
