"""The end of a worker, and Celery's own words with it: SIGTERM under load, revocation, a Postgres that is away."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from sqlalchemy.exc import OperationalError

from orchestrator import Retries
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.dispatch.celery_app import create_client
from orchestrator.settings import Settings
from orchestrator.store import turns, workers
from tests.integration import flows
from tests.integration.harness import Site, eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


class Process:
    """A Celery worker in a process of its own."""

    def __init__(self, settings: Settings, folder: Path, **environ: str) -> None:
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        env = {
            **os.environ,
            "ORCHESTRATOR_DATABASE_URL": settings.database_url,
            "ORCHESTRATOR_REDIS_URL": settings.redis_url,
            "ORCHESTRATOR_ACCOUNT": settings.account,
            "ORCHESTRATOR_QUEUE": settings.queue,
            "ORCHESTRATOR_WORKFLOWS": "tests.integration.flows",
            **environ,
        }
        argv = [sys.executable, "-m", "celery", "-A", "orchestrator.worker", "worker", "-l", "INFO"]
        argv += [
            "--without-mingle",
            "--without-gossip",
            "-n",
            f"{settings.account}-{time.monotonic_ns()}@test",
        ]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(argv, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)

    def stop(self, patience_s: float) -> tuple[int, float]:
        """SIGTERM; the exit code and how long it took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end; it says:\n{self.log.read_text()[-4000:]}")
        return code, time.monotonic() - began


@pytest.fixture
def process(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(**environ: str) -> Process:
        started.append(Process(settings, tmp_path, **environ))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()


@pytest.fixture
def client(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings) as one:
        yield one


class Facts:
    """What the bodies told."""

    def __init__(self, settings: Settings) -> None:
        self.redis = redis.Redis.from_url(settings.redis_url, decode_responses=True)
        self.prefix = settings.account

    def told(self, fact: str) -> list[str]:
        return list(self.redis.lrange(f"{self.prefix}:{fact}", 0, -1))


@pytest.fixture
def facts(settings: Settings) -> Iterator[Facts]:
    one = Facts(settings)
    yield one
    for key in one.redis.scan_iter(f"*{settings.account}*"):
        one.redis.delete(key)
    one.redis.close()


def workers_of(site: Site) -> list[Any]:
    return site.sql("SELECT * FROM orchestrator_workers WHERE account = :a", a=site.settings.account)


@pytest.mark.slow
def test_sigterm_under_load(
    site: Site, settings: Settings, client: Orchestrator, facts: Facts, process: Callable[..., Process]
) -> None:
    """protocols §18: no attempt is lost; what ends within the grace is recorded, what does not is handed back, recorded
    as WorkerShutdown and not counted (``limit=0``); the worker row is gone; exit within grace + 5 s."""
    grace = 1.5
    first = process(ORCHESTRATOR_SHUTDOWN_GRACE=str(grace))
    stays = flows.stays.create(orchestrator=client)
    load = flows.busy.create_batch(count=60, params=8, orchestrator=client).created
    eventually(lambda: facts.told("long") and facts.told("polite"), "the long bodies", 30)
    eventually(lambda: len(facts.told("short")) > 20, "some load", 30)
    code, took = first.stop(grace + 20)
    assert code == 0
    assert took < grace + 5
    assert workers_of(site) == []
    assert len(facts.told("short")) < 60 * 8, "the load was over before the signal"
    left = site.sql(
        "SELECT key, s.status FROM orchestrator_steps s JOIN orchestrator_instances i ON i.id = s.instance_id "
        "WHERE i.account = :a AND s.status IN ('running', 'cancelling')",
        a=settings.account,
    )
    assert left == [], "attempts that nobody runs any more"
    records = {s.name: s for s in stays.steps()}
    for record in records.values():
        assert record.attempts[0].error is not None
        assert record.attempts[0].error.name == "WorkerShutdown"

    process()
    assert stays.result(30) == [2, 2]
    for each in load:
        assert each.result(30) == "done"
    runs = Counter(facts.told("short"))
    assert len(runs) == 60 * 8
    assert set(runs.values()) == {1}, "a body ran again"


@pytest.mark.slow
@pytest.mark.parametrize("delivery", ["in_place", "broker"])
def test_a_cold_shutdown_hands_back_what_runs(
    client: Orchestrator, facts: Facts, process: Callable[..., Process], delivery: str
) -> None:
    """protocols §18: Celery cancels its active requests at SIGQUIT; nobody asked for these attempts to fail, so they do
    not count, not even with ``limit=0``."""
    first = process(ORCHESTRATOR_DELIVERY=delivery)
    stays = flows.stays.create(orchestrator=client)
    eventually(lambda: facts.told("long") and facts.told("polite"), "the long bodies", 30)
    first.process.send_signal(signal.SIGQUIT)
    first.process.wait(40)
    process()
    assert stays.result(60) == [2, 2]
    for record in stays.steps():
        assert [a.error.name if a.error else None for a in record.attempts] == ["WorkerShutdown", None]


@pytest.mark.slow
def test_celery_sees_steps_and_may_terminate_them(
    settings: Settings, client: Orchestrator, facts: Facts, process: Callable[..., Process]
) -> None:
    """protocols §19: a step is a task in Celery's ``active``, under a name that holds no ids; revoking it with
    terminate is a failed attempt, which is retried."""
    process()
    created = flows.killed.create(id="k1", orchestrator=client)
    eventually(lambda: facts.told("long"), "the body", 30)
    app = create_client(settings)

    def active() -> list[dict[str, Any]]:
        answer = app.control.inspect(timeout=1).active() or {}
        mine = [tasks for name, tasks in answer.items() if name.startswith(settings.account)]
        return [task for tasks in mine for task in tasks]

    (task,) = eventually(active)
    assert task["name"] in ("orchestrator.step", "killed.long-${...}")
    app.control.revoke(task["id"], terminate=True)
    assert created.result(20) == 2
    (record,) = created.steps()
    assert [a.error.name if a.error else None for a in record.attempts] == ["Cancelled", None]
    app.close()


# -- in process: the finer points --------------------------------------------------------------------------


def test_what_ends_within_the_grace_is_recorded(site: Site) -> None:
    """protocols §18: bodies run on for the grace; their outcomes are flushed, nothing new is begun, messages that
    still come are left to others."""
    go = threading.Event()
    began: list[str] = []

    def body(ctx):
        began.append(ctx.name)
        go.wait(10)
        return "kept"

    async def flow(event, step):
        got = await step.do("one", body)
        await step.do("two", body)
        return got

    flow_ = site.workflow(flow)
    worker = site.worker(shutdown_grace=10.0)
    created = flow_.create()
    eventually(lambda: began)
    threading.Timer(0.3, go.set).start()
    worker.drain()
    assert began == ["one"]
    (one, two) = created.steps()
    assert (one.status, one.output, two.status) == ("done", "kept", "handed")
    assert workers_of(site) == []
    site.post.targets.clear()
    site.worker().run(site.post.handouts[-1])
    assert created.result(10) == "kept"


def test_what_a_last_flush_placed_is_waited_for(settings: Settings) -> None:
    """protocols §18: a flush that was under way when the signal came may place another step, just when the worker was
    idle: the worker row must not go while that one runs."""
    go, began = threading.Event(), threading.Event()

    async def one() -> int:
        return 1

    def two() -> int:
        began.set()
        go.wait(10)
        return 2

    async def flow(event, step):
        return [await step.do("one", one), await step.do("two", two, retries=Retries(limit=0))]

    with Site(replace(settings, delivery="in_place")) as site:
        created, worker = site.workflow(flow), site.worker(shutdown_grace=10.0)
        plain, closing = turns.commit, threading.Event()

        def commit(connection: Any, writes: Any) -> Any:
            if any(
                "do:two:1" in each.steps and each.steps["do:two:1"].status == "running" for each in writes
            ):
                threading.Thread(target=lambda: (worker.drain(), closing.set())).start()
                eventually(lambda: worker.runtime.attempts.closing)
            return plain(connection, writes)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(turns, "commit", commit)
            instance = created.create()
            assert began.wait(10)
            assert not closing.wait(0.3), "the worker has gone"
            go.set()
            assert closing.wait(20)
        assert [(s.status, s.output, len(s.attempts)) for s in instance.steps()] == [
            ("done", 1, 1),
            ("done", 2, 1),
        ]


def test_a_body_that_hears_nothing_does_not_hold_up_the_end(site: Site) -> None:
    """protocols §18: a sync body that never looks is left behind; it is handed on as lost, at once."""
    go = threading.Event()

    def deaf(ctx):
        if ctx.attempt == 1:
            go.wait(30)
        return ctx.attempt

    async def flow(event, step):
        return await step.do("s", deaf)

    flow_ = site.workflow(flow)
    worker = site.worker(shutdown_grace=0.2)
    created = flow_.create()
    eventually(lambda: [s.status for s in created.steps()] == ["running"])
    site.post.targets.clear()
    began = time.monotonic()
    worker.drain()
    assert time.monotonic() - began < 0.2 + 6
    site.post.targets.append(site.worker(chef=True, deliver=False))
    assert created.result(10) == 2
    go.set()
    (record,) = created.steps()
    assert record.attempts[0].error is not None
    assert record.attempts[0].error.name == "WorkerShutdown"


def test_the_end_does_not_wait_for_postgres(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """protocols §18: with Postgres away a worker ends in time all the same; its lease brings everything back."""

    async def body(ctx):
        while ctx.attempt == 1 and not go.is_set():
            await asyncio.sleep(0.01)
        return ctx.attempt

    go = threading.Event()

    async def flow(event, step):
        return await step.do("s", body)

    flow_ = site.workflow(flow)
    worker = site.worker(shutdown_grace=0.3, lease=1.2)
    created = flow_.create()
    eventually(lambda: [s.status for s in created.steps()] == ["running"])
    site.post.targets.clear()

    def away(*_: Any, **__: Any) -> Any:
        raise OperationalError("x", None, psycopg.OperationalError("no route to host"))

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(turns, "commit", away)
        patch.setattr(turns, "lock", away)
        patch.setattr(workers, "leave", away)
        go.set()
        worker.drain()
    assert time.monotonic() - began < 0.3 + 7
    site.post.targets.append(site.worker(chef=True, deliver=False, lease=1.2))
    assert created.result(15) == 2
