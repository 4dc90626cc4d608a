"""Placed attempts as Celery sees them: a request among the active ones, whatever the consumer does with those."""

import asyncio
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from celery.events import EventDispatcher
from celery.worker import state
from kombu import Connection

from orchestrator.dispatch.celery_app import create_app
from orchestrator.dispatch.placed import PlacedInCelery, PlacedRequest
from orchestrator.dispatch.pool import TaskPool
from orchestrator.dispatch.publisher import STEP_TASK
from orchestrator.engine.running.placement import Ready
from orchestrator.settings import Settings
from orchestrator.store.steps import Claim, Claimed
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.definition import Registry, define


async def flow(event, step):
    return None


@pytest.fixture
def parent() -> Any:
    """A worker controller, as far as placed attempts look at it."""
    settings = Settings(database_url="postgresql://nowhere/db", redis_url="redis://nowhere")
    return SimpleNamespace(
        hostname="w@here", app=create_app(settings, Registry()), consumer=None, pool=TaskPool(1)
    )


def ready() -> Ready:
    row = StepRow("do:a:1", "do", "running", 1, 1.0, attempt=1, fence=7)
    claimed = Claimed(Claim(uuid4(), row.key, 7), 7, 0, "n", None, None, row, None, None)
    return Ready(claimed, None, define(flow), "flow.a")


def test_a_placed_attempt_is_an_active_request_until_it_ends(parent: Any) -> None:
    """protocols §19: in-place tasks have a task id and an entry in ``active_requests`` of their own; what the consumer
    does with requests after it has reconnected, and at a shutdown, works on them too."""
    seen: list[Any] = []

    async def start(one: Ready) -> str:
        seen.extend(state.active_requests)
        (request,) = seen
        request.eventer = object()
        assert (request.task.name, request.task.acks_late, request.acknowledged) == (STEP_TASK, False, True)
        assert request in state.reserved_requests
        assert state.requests[request.id] is request
        assert request.info(safe=True)["args"] == f"('{one.claimed.claim.instance}', 'do:a:1', 7)"
        return "done"

    assert asyncio.run(PlacedInCelery(parent, parent.pool).run(ready(), start)) == "done"
    assert seen and seen[0] not in state.active_requests and seen[0].id not in state.requests


def test_its_task_events_are_sent(parent: Any) -> None:
    """protocols §19: in-place tasks send the events of any task; Celery adds host and process to each by itself."""

    async def start(_: Ready) -> str:
        return "done"

    with Connection("memory://") as connection:
        events = EventDispatcher(connection, "w@here", app=parent.app, buffer_group=["task"])
        sent: list[Any] = []
        queue = parent.app.events.Receiver(connection).queue
        with connection.Consumer([queue], callbacks=[lambda body, _: sent.extend(body)], no_ack=True):
            parent.consumer = SimpleNamespace(event_dispatcher=events)
            # Events are sent by Celery's thread; here at once, so that an error is this test's.
            posting = SimpleNamespace(post=lambda fn, *args: fn(*args), vacated=lambda: None)
            assert asyncio.run(PlacedInCelery(parent, posting).run(ready(), start)) == "done"
            events.flush()
            connection.drain_events(timeout=5)
    assert [event["type"] for event in sent] == ["task-received", "task-started", "task-succeeded"]
    assert {(event["hostname"], event["pid"]) for event in sent} == {("w@here", events.pid)}
    assert len({event["uuid"] for event in sent}) == 1


def test_at_a_cold_shutdown_it_is_put_back(parent: Any) -> None:
    """protocols §18: Celery cancels its active requests then; the attempt must not fail for it."""
    told: list[str] = []

    async def start(_: Ready) -> str:
        (request,) = state.active_requests
        pool.loop = asyncio.get_running_loop()
        # Celery gives the pool of the worker, which may be another than the one that the attempt is in.
        request.cancel(SimpleNamespace(), signal="TERM")
        await asyncio.sleep(0.01)
        return "not cancelled"

    pool = SimpleNamespace(loop=None, cut=lambda: told.append("cut"), vacated=lambda: None)
    assert asyncio.run(PlacedInCelery(parent, pool).run(ready(), start)) == "not cancelled"
    assert told == ["cut"]


def test_requests_may_come_and_go_while_celery_goes_through_them(parent: Any) -> None:
    """Celery's thread iterates over both sets after a reconnect: "changed size during iteration" would end it."""
    PlacedInCelery(parent, parent.pool)
    for requests in (state.active_requests, state.reserved_requests):
        kept = [PlacedRequest(ready(), str(n), "h", None, None, parent.pool) for n in range(3)]
        for request in kept[:2]:
            requests.add(request)
        seen = 0
        for request in requests:
            requests.add(kept[2])
            requests.discard(request)
            seen += 1
        assert seen == 2
        requests.clear()


@pytest.mark.parametrize("verb", ["terminate", "cancel"])
def test_terminating_it_cancels_its_body(parent: Any, verb: str) -> None:
    """protocols §19: Flower's Terminate cancels the body."""

    async def start(_: Ready) -> str:
        (request,) = state.active_requests
        getattr(request, verb)(None, signal="TERM")
        await asyncio.Event().wait()
        return "never"

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(PlacedInCelery(parent, parent.pool).run(ready(), start))
    assert not state.active_requests
