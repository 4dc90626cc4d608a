"""Heartbeats, deaths, coming back, standing still, and the database's clock."""

import asyncio
import os
import threading
import time
from typing import Any

import psycopg
import pytest
from sqlalchemy.exc import OperationalError

from orchestrator import Retries, StepFailed
from orchestrator.errors import WorkerLost
from orchestrator.store import workers
from tests.integration.harness import Site, Worker, eventually

pytestmark = pytest.mark.integration

LEASE = 1.2


def row_of(site: Site, worker: Worker | Any) -> Any:
    incarnation = worker.runtime.liveness.id if isinstance(worker, Worker) else worker
    rows = site.sql(
        "SELECT *, extract(epoch FROM now() - heartbeat_at)::float8 AS age, "
        "extract(epoch FROM dead_at - started_at)::float8 AS lived FROM orchestrator_workers WHERE id = :id",
        id=incarnation,
    )
    return rows[0] if rows else None


def test_a_worker_is_registered_and_beats(site: Site) -> None:
    """protocols §6: the worker's row says who it is and what it knows; its heartbeat is renewed by a thread."""

    async def flow(event, step):
        pass

    site.workflow(flow)
    worker = site.worker(lease=LEASE)
    row = eventually(lambda: row_of(site, worker))
    assert (row.pid, row.known, row.queues) == (os.getpid(), ["flow@1"], [site.settings.queue])
    eventually(lambda: row_of(site, worker).heartbeat_at > row.heartbeat_at)
    assert row_of(site, worker).dead_at is None


def test_only_who_has_beaten_for_a_lease_may_declare_another_dead(site: Site) -> None:
    """protocols §6: whoever was cut off itself does not judge; after a whole lease of its own it does."""
    ghost = site.bench()
    site.sql(
        "UPDATE orchestrator_workers SET heartbeat_at = now() - interval '1 h' WHERE id = :id", id=ghost.id
    )
    worker = site.worker(lease=LEASE)
    dead = eventually(lambda: row_of(site, ghost.id).dead_at)
    lived = (dead - row_of(site, worker).started_at).total_seconds()
    assert lived >= LEASE


class Scene:
    """A workflow of one step whose first attempt does not end by itself."""

    def __init__(self, site: Site, **options: Any) -> None:
        self.said: list[int] = []
        self.ended: list[str] = []
        self.go = threading.Event()

        async def waits(ctx):
            self.said.append(ctx.attempt)
            try:
                while ctx.attempt == 1 and not self.go.is_set():
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                self.ended.append("cancelled")
                raise
            return ctx.attempt

        async def flow(event, step):
            try:
                return await step.do("s", waits, **options)
            except (WorkerLost, StepFailed) as error:
                return type(error).__name__

        self.flow = site.workflow(flow)

    def begin(self) -> Any:
        created = self.flow.create()
        eventually(lambda: self.said)
        return created


@pytest.mark.parametrize("limit, result", [(5, 2), (1, 2), (0, "WorkerLost")])
def test_the_steps_of_the_dead_are_handed_on(site: Site, limit: int, result: Any) -> None:
    """protocols §6, §7: a death is declared after the lease; the attempt is ``WorkerLost``, not counted, and the step
    handed out again at once; with ``limit=0`` the first loss is final."""
    scene = Scene(site, retries=Retries(limit=limit, delay=30))
    doomed = site.worker(lease=LEASE)
    created = scene.begin()
    other = site.worker(lease=LEASE, chef=True)
    doomed.crash()
    dead_at = time.monotonic()
    assert created.result(10) == result
    assert time.monotonic() - dead_at < 2 * LEASE + 3
    assert row_of(site, doomed).dead_at is not None
    (record,) = created.steps()
    assert record.attempts[0].error is not None
    assert record.attempts[0].error.name == "WorkerLost"
    assert row_of(site, other).dead_at is None


def test_a_declared_dead_worker_comes_back_as_another(site: Site) -> None:
    """protocols §6: the dead incarnation never beats again: its process drops replays and attempts, and comes back
    under a new uuid."""
    scene = Scene(site)
    worker = site.worker(lease=LEASE, chef=True)
    created = scene.begin()
    before = worker.runtime.liveness.id
    site.sql("UPDATE orchestrator_workers SET dead_at = now() WHERE id = :id", id=before)
    eventually(lambda: worker.runtime.liveness.id != before and row_of(site, worker))
    eventually(lambda: scene.ended == ["cancelled"])
    assert created.result(10) == 2
    assert site.step(site.id_of(created.id), "do:s:1").worker == worker.runtime.liveness.id
    assert row_of(site, before).dead_at is not None
    assert row_of(site, worker).dead_at is None


def test_a_worker_that_cannot_renew_stands_still(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §6: after a lease without heartbeat it cancels its async bodies and claims nothing; when heartbeats
    succeed again it goes on."""
    scene = Scene(site)
    worker = site.worker(lease=LEASE, chef=True)
    created = scene.begin()
    cut = time.monotonic()
    with monkeypatch.context() as patch:

        def away(*_: Any) -> Any:
            raise OperationalError("x", None, psycopg.OperationalError("no route to host"))

        patch.setattr(workers, "heartbeat", away)
        eventually(lambda: scene.ended == ["cancelled"], "its bodies' end", 10)
        assert time.monotonic() - cut >= LEASE * 2 / 3
        second = scene.flow.create()
        eventually(lambda: worker.runtime.attempts.active >= 1)
        id2 = site.id_of(second.id)
        eventually(lambda: site.step(id2, "do:s:1") is not None)
        assert not worker.runtime._may_claim.is_set()
        assert site.step(id2, "do:s:1").status == "handed"
    scene.go.set()
    assert created.result(10) == 2
    assert second.result(10) in (1, 2)


def test_a_blocked_loop_is_logged_with_its_stack(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    """protocols §6: a loop that is blocked for two seconds is logged with the line it stands on."""
    go = threading.Event()

    async def blocks_the_loop():
        go.wait(30)

    async def flow(event, step):
        await step.do("s", blocks_the_loop)

    site.worker(lease=90.0)  # the log does not wait for a heartbeat
    created = site.workflow(flow).create()
    eventually(lambda: "event loop has been blocked" in caplog.text, "the log", 20)
    assert "blocks_the_loop" in caplog.text
    go.set()
    created.result(10)


def test_a_blocked_loop_does_not_beat(site: Site) -> None:
    """protocols §6: heartbeats go on only while the loop answered within the lease: others take over."""
    go = threading.Event()
    said: list[int] = []

    async def blocks(ctx):
        said.append(ctx.attempt)
        if ctx.attempt == 1:
            go.wait(20)
        return ctx.attempt

    async def flow(event, step):
        return await step.do("s", blocks)

    flows = site.workflow(flow)
    stuck = site.worker(lease=LEASE)
    created = flows.create()
    eventually(lambda: said)
    stuck_id = stuck.runtime.liveness.id
    site.post.targets.clear()
    other = site.worker(lease=LEASE, chef=True)
    assert created.result(15) == 2
    assert row_of(site, stuck_id).dead_at is not None
    assert row_of(site, other).dead_at is None
    go.set()
    eventually(lambda: stuck.runtime.liveness.id != stuck_id, "being reborn")


@pytest.mark.parametrize("skew", [3600.0, -3600.0])
def test_wall_clocks_are_never_compared(site: Site, skew: float) -> None:
    """protocols §6: time is Postgres' time: workers and clients whose wall clocks are an hour off agree on it."""

    async def flow(event, step):
        first = step.now()
        await step.sleep("nap", 0.3)
        got = await step.wait_for_event("w", type="go", timeout=20)
        return (step.now() - first).total_seconds(), (got.timestamp - first).total_seconds()

    flows = site.workflow(flow)
    wrong = site.worker(chef=True, skew=skew)
    right = site.worker(chef=True)
    site.client._clock._offset += skew / 2
    created = flows.create()
    began = time.monotonic()
    created.send_event("go")
    napped, event_after = created.result(10)
    assert 0.3 <= napped < time.monotonic() - began + 0.1
    assert abs(event_after) < 2
    database = site.sql("SELECT extract(epoch FROM clock_timestamp())::float8")[0][0]
    for worker in (wrong, right):
        assert abs(worker.runtime.clock.now() - database) < 0.5
    assert abs(site.client.now() - database) < 0.5
