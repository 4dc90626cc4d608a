"""Prefork workers, as processes: bodies of both kinds, what is killed, what is recorded for it.

The workflow runs on an asyncio worker, its heavy steps on a prefork worker that serves only their queue.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.dev.process import free_port
from orchestrator.dispatch.celery_app import create_client
from orchestrator.settings import Settings
from tests.chaos.proxy import Proxy
from tests.integration import prefork_flows as flows
from tests.integration.harness import Site, eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


class Process:
    """A Celery worker in a process of its own."""

    def __init__(self, settings: Settings, folder: Path, argv: list[str], **environ: str) -> None:
        self.log = folder / f"worker-{time.monotonic_ns()}.log"
        env = {
            **os.environ,
            "ORCHESTRATOR_DATABASE_URL": settings.database_url,
            "ORCHESTRATOR_REDIS_URL": settings.redis_url,
            "ORCHESTRATOR_ACCOUNT": settings.account,
            "ORCHESTRATOR_QUEUE": settings.queue,
            "ORCHESTRATOR_WORKFLOWS": "tests.integration.prefork_flows",
            "PREFORK_OWNER": str(os.getpid()),
            **environ,
        }
        self.name = f"{settings.account}-{time.monotonic_ns()}@test"
        command = [sys.executable, "-m", "celery", "-A", "orchestrator.worker", "worker", "-l", "INFO", *argv]
        command += ["--without-mingle", "--without-gossip", "-n", self.name]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int:
        return self.process.pid

    def stop(self, patience_s: float) -> float:
        """SIGTERM; how long it took to end in order."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it does not end; it says:\n{self.log.read_text()[-4000:]}")
        assert code == 0
        return time.monotonic() - began


Start = Callable[..., Process]


@pytest.fixture
def started(settings: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[list[Process]]:
    all_of_them: list[Process] = []
    yield all_of_them
    for each in all_of_them:
        if each.process.poll() is None:
            each.process.kill()
            each.process.wait()
    for each in all_of_them:
        print(f"--- {each.name}\n{each.log.read_text(errors='replace')[-6000:]}")


@pytest.fixture
def asyncio_worker(settings: Settings, tmp_path: Path, started: list[Process]) -> Start:
    """Starts a worker for the workflows themselves."""

    def start(**environ: str) -> Process:
        started.append(Process(settings, tmp_path, [], ORCHESTRATOR_POOL="asyncio", **environ))
        return started[-1]

    return start


@pytest.fixture
def prefork_worker(settings: Settings, tmp_path: Path, started: list[Process]) -> Start:
    """Starts a worker for the queue of heavy steps."""

    def start(processes: int = 2, *more: str, **environ: str) -> Process:
        argv = ["-Q", f"{settings.account}-cpu", "-c", str(processes), *more]
        started.append(Process(settings, tmp_path, argv, ORCHESTRATOR_POOL="prefork", **environ))
        return started[-1]

    return start


@pytest.fixture
def client(settings: Settings) -> Iterator[Orchestrator]:
    with Orchestrator(settings) as one:
        yield one


@pytest.fixture(autouse=True)
def queue(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "PREFIX", settings.account)


class Facts:
    """What the bodies told."""

    def __init__(self, settings: Settings) -> None:
        self.redis = redis.Redis.from_url(settings.redis_url, decode_responses=True)
        self.prefix = settings.account

    def told(self, fact: str) -> list[str]:
        return list(self.redis.lrange(f"{self.prefix}:{fact}", 0, -1))

    def pid(self, fact: str, attempt: int = 1) -> int:
        """The process of a body that told ``attempt:pid``."""
        found = eventually(
            lambda: [t for t in self.told(fact) if t.startswith(f"{attempt}:")],
            f"attempt {attempt} of {fact}",
            40,
        )
        return int(found[0].partition(":")[2])


@pytest.fixture
def facts(settings: Settings) -> Iterator[Facts]:
    one = Facts(settings)
    yield one
    for key in one.redis.scan_iter(f"*{settings.account}*"):
        one.redis.delete(key)
    one.redis.close()


def is_gone(pid: int) -> bool:
    """Whether a process has ended (a zombie counts)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def errors(created: Any, step: str) -> list[str | None]:
    """The errors of the attempts of a step, by name."""
    record = next(r for r in created.steps() if r.name == step)
    return [a.error.name if a.error else None for a in record.attempts]


def test_two_workers_together(
    settings: Settings,
    client: Orchestrator,
    facts: Facts,
    asyncio_worker: Start,
    prefork_worker: Start,
    site: Site,
) -> None:
    """Steps of the ``cpu`` queue run in children of the prefork worker, sync and async ones; all others, and the turns
    of the workflow's messages, on the asyncio worker."""
    ours, heavy = asyncio_worker(), prefork_worker()
    created = flows.both.create(orchestrator=client)
    here, crunched, light, there = created.result(60)
    assert (here, crunched, light) == (ours.pid, 332833500, 2)
    children = {int(pid) for pid in facts.told("pid")} | {there}
    assert not children & {ours.pid, heavy.pid}
    assert {r.status for r in created.steps()} == {"done"}
    rows = site.sql("SELECT pid, queues FROM orchestrator_workers WHERE account = :a", a=settings.account)
    assert {ours.pid, heavy.pid} | children <= {row.pid for row in rows}
    queues = {row.pid: row.queues for row in rows}
    assert queues.pop(ours.pid) == [settings.queue]
    assert all(served == [f"{settings.account}-cpu"] for served in queues.values())


def test_a_fan_out(client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start) -> None:
    """Many steps at once share the children; each runs once."""
    asyncio_worker()
    prefork_worker()
    assert flows.many.create(40, orchestrator=client).result(60) == 40 * 332833500
    assert len(facts.told("pid")) == 40
    assert len(set(facts.told("pid"))) == 2


def test_children_that_come_and_go(
    settings: Settings,
    client: Orchestrator,
    facts: Facts,
    asyncio_worker: Start,
    prefork_worker: Start,
    site: Site,
) -> None:
    """Celery replaces a child after a few tasks: nothing is lost, and no row of those that went is left."""
    ours = asyncio_worker()
    heavy = prefork_worker(2, "--max-tasks-per-child", "4")
    created = flows.many.create(24, orchestrator=client)
    assert created.result(90) == 24 * 332833500
    assert errors(created, "crunch") == [None]
    assert len(facts.told("pid")) == 24
    assert len(set(facts.told("pid"))) >= 24 / 4

    def left() -> set[int]:
        rows = site.sql("SELECT pid FROM orchestrator_workers WHERE account = :a", a=settings.account)
        return {row.pid for row in rows} - {ours.pid, heavy.pid}

    eventually(lambda: not any(map(is_gone, left())), "no row of a process that has ended", 20)


@pytest.mark.parametrize("kind", ["sync", "async", "deaf"])
def test_killed_at_its_timeout(
    kind: str, client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """A body that listens to nobody is stopped by a kill; the attempt is a ``StepTimeout``, counted, and the next one
    runs in another process."""
    asyncio_worker()
    heavy = prefork_worker(1)
    created = flows.spins.create(kind, orchestrator=client)
    first = facts.pid("spin")
    assert created.result(60) == 2
    assert errors(created, "spin") == ["StepTimeout", None]
    assert is_gone(first)
    assert facts.pid("spin", 2) != first
    (record,) = created.steps()
    assert record.attempts[0].error is not None
    assert "took over 1 seconds, and its process was killed" in record.attempts[0].error.message
    assert "Hard time limit (1.0s) exceeded for spins.spin" in heavy.log.read_text()


def test_a_delay_function_is_asked_after_a_kill(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """Nobody but today's code can say the delay; the parent asks it for the dead child."""
    asyncio_worker()
    prefork_worker(1)
    created = flows.spins_with_delay.create(orchestrator=client)
    assert created.result(60) == 2
    assert errors(created, "spin") == ["StepTimeout", None]
    (record,) = created.steps()
    assert record.attempts[0].retry_delay == 0.25


def test_a_dead_child_is_lost_at_once(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """SIGKILL, and ``os._exit`` in a body: ``WorkerLost``, long before any lease (here an hour) runs out."""
    slow = {"ORCHESTRATOR_LEASE": "3600", "ORCHESTRATOR_HEARTBEAT": "1"}
    asyncio_worker(**slow)
    prefork_worker(2, **slow)
    created = flows.endless.create(orchestrator=client)
    os.kill(facts.pid("spin"), signal.SIGKILL)
    assert created.result(60) == 2
    assert errors(created, "spin") == ["WorkerLost", None]
    exits = flows.dies.create(orchestrator=client)
    assert exits.result(60) == 2
    assert errors(exits, "die") == ["WorkerLost", None]
    once = flows.dies_once.create(orchestrator=client)
    eventually(lambda: once.status().status == "errored", "the end", 30)
    assert once.status().error.name == "WorkerLost"


def test_an_error_comes_back_as_its_class(
    client: Orchestrator, asyncio_worker: Start, prefork_worker: Start
) -> None:
    asyncio_worker()
    prefork_worker(1)
    assert flows.catches.create(orchestrator=client).result(60) == "caught over 90 degrees"


def test_rollback_and_what_is_sensitive(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """The handler of a step that ran in a child is given its output; pages see none of it."""
    asyncio_worker()
    prefork_worker(1)
    created = flows.undone_apart.create(orchestrator=client)
    eventually(lambda: created.status().status == "errored", "the end", 60)
    status = created.status()
    assert (status.error.name, status.rollback.outcome) == ("ValueError", "complete")
    (told,) = facts.told("undone_apart")
    assert told.startswith("285:")
    record = next(r for r in created.steps() if r.name == "crunch")
    assert record.output == "[REDACTED]"


@pytest.mark.parametrize("how", ["terminate", "code", "failure"])
def test_cancelling_kills(
    how: str, client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """An operator, the code, or a workflow that fails meanwhile: the body is really stopped."""
    asyncio_worker()
    prefork_worker(1)
    flow = {"terminate": flows.endless, "code": flows.taken_back, "failure": flows.raced}[how]
    created = flow.create(orchestrator=client)
    body = facts.pid("spin")
    if how == "terminate":
        created.terminate()
    else:
        created.send_event("go")
    eventually(lambda: is_gone(body), "the end of the body", 20)
    ended = {"terminate": "terminated", "code": "complete", "failure": "errored"}[how]
    eventually(lambda: created.status().status == ended, f"the status {ended}", 20)
    assert len(facts.told("spin")) == 1
    if how == "failure":  # its handler ran after the body had ended, and was told that there is no output
        (told,) = facts.told("undone_apart")
        assert told.startswith("None:")
        assert created.status().error.name == "ValueError"


def test_celery_sees_and_may_terminate(
    settings: Settings, client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """A step is a task among the active ones, with the pid of its child; *terminate* is a failed attempt."""
    asyncio_worker()
    heavy = prefork_worker(1)
    created = flows.endless.create(orchestrator=client)
    body = facts.pid("spin")
    app = create_client(settings)

    def active() -> list[dict[str, Any]]:
        return (app.control.inspect([heavy.name], timeout=1).active() or {}).get(heavy.name, [])

    (task,) = eventually(active, "the task among the active ones", 20)
    assert (task["name"], task["worker_pid"]) == ("endless.spin", body)
    app.control.revoke(task["id"], terminate=True, destination=[heavy.name])
    assert created.result(60) == 2
    assert errors(created, "spin") == ["Cancelled", None]
    eventually(lambda: active() == [], "no active task", 20)
    app.close()


def test_warm_shutdown(
    settings: Settings,
    client: Orchestrator,
    facts: Facts,
    asyncio_worker: Start,
    prefork_worker: Start,
    site: Site,
) -> None:
    """What ends within the grace is recorded, what does not is killed and handed back (``limit=0``, not counted)."""
    asyncio_worker()
    heavy = prefork_worker(2, ORCHESTRATOR_SHUTDOWN_GRACE="3")
    short = flows.naps_there.create(1.5, orchestrator=client)
    eventually(lambda: len(facts.told("nap")) == 1, "the short body", 40)
    long = flows.naps_there.create(60, orchestrator=client)
    eventually(lambda: len(facts.told("nap")) == 2, "the long body", 40)
    assert heavy.stop(40) < 3 + 7
    assert short.result(10) == 1
    assert errors(short, "nap") == [None]
    assert errors(long, "nap")[0] == "WorkerShutdown"
    pids = {int(told.partition(":")[2]) for told in facts.told("nap")} | {heavy.pid}
    left = site.sql("SELECT pid FROM orchestrator_workers WHERE account = :a", a=settings.account)
    assert not pids & {row.pid for row in left}
    assert all(map(is_gone, pids))
    prefork_worker(1)
    facts.pid("nap", 2)  # goes on elsewhere, although it may not be retried
    long.terminate()


def test_cold_shutdown(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """SIGQUIT: no grace; the body is killed and handed back."""
    asyncio_worker()
    heavy = prefork_worker(1)
    created = flows.endless.create(orchestrator=client)
    body = facts.pid("spin")
    heavy.process.send_signal(signal.SIGQUIT)
    heavy.process.wait(30)
    assert is_gone(body)
    assert errors(created, "spin")[0] == "WorkerShutdown"
    prefork_worker(1)
    assert created.result(60) == 2


def test_a_killed_parent(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """SIGKILL of the parent: its children end too, and the instance goes on on another worker after a lease."""
    short = {"ORCHESTRATOR_LEASE": "3"}
    asyncio_worker(**short)
    heavy = prefork_worker(1, **short)
    created = flows.deaf.create(600, orchestrator=client)
    body = facts.pid("spin")
    heavy.process.kill()
    eventually(lambda: is_gone(body), "the end of the child", 10)
    prefork_worker(1, **short)
    assert created.result(60) == 2
    assert errors(created, "hold") == ["WorkerLost", None]


def test_a_body_may_hold_the_interpreter(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """The parent keeps its child alive for several leases, in which no thread of the child runs."""
    short = {"ORCHESTRATOR_LEASE": "2"}
    asyncio_worker(**short)
    prefork_worker(1, **short)
    created = flows.deaf.create(7, orchestrator=client)
    assert created.result(60) == 1
    assert errors(created, "hold") == [None]


def test_a_stopped_parent(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """A parent that stands still for more than a lease is taken for dead, and its children with it; when it goes on, it
    ends the body that is no longer its own."""
    short = {"ORCHESTRATOR_LEASE": "2"}
    asyncio_worker(**short)
    heavy = prefork_worker(1, **short)
    created = flows.endless.create(orchestrator=client)
    body = facts.pid("spin")
    heavy.process.send_signal(signal.SIGSTOP)
    eventually(lambda: errors(created, "spin")[0] == "WorkerLost", "the declaration", 30)
    assert not is_gone(body)
    heavy.process.send_signal(signal.SIGCONT)
    eventually(lambda: is_gone(body), "the end of the body", 20)
    assert created.result(60) == 2
    assert errors(created, "spin") == ["WorkerLost", None]


def test_a_prefork_worker_alone(
    settings: Settings, client: Orchestrator, facts: Facts, started: list[Process], tmp_path: Path
) -> None:
    """One that serves the account's queue too: turns of messages and all steps run in its children."""
    argv = ["-Q", f"{settings.queue},{settings.account}-cpu", "-c", "2"]
    started.append(Process(settings, tmp_path, argv, ORCHESTRATOR_POOL="prefork"))
    here, crunched, light, there = flows.both.create(orchestrator=client).result(60)
    assert (crunched, light) == (332833500, 2)
    assert started[0].pid not in (here, there)


def test_slots_in_children(settings: Settings, started: list[Process], tmp_path: Path) -> None:
    """semantics §6, protocols §8: turns in the children of a prefork worker stand at the gate like any others: with one
    slot, and two children free, one body runs after the other; what is given back is taken at once."""
    narrow = replace(settings, max_concurrency=1)
    argv = ["-Q", f"{settings.queue},{settings.account}-cpu", "-c", "2"]
    limits = {"ORCHESTRATOR_POOL": "prefork", "ORCHESTRATOR_MAX_CONCURRENCY": "1"}
    started.append(Process(settings, tmp_path, argv, **limits))
    with Orchestrator(narrow) as client, Site(narrow) as site:
        many = [flows.naps_there.create(0.2, orchestrator=client) for _ in range(5)]
        assert [created.result(90) for created in many] == [1] * 5
        bodies = site.sql(
            "SELECT s.claimed_at, s.finished_at FROM orchestrator_steps s JOIN orchestrator_instances i "
            "ON i.id = s.instance_id WHERE i.account = :account ORDER BY s.claimed_at",
            account=settings.account,
        )
    assert len(bodies) == 5
    assert all(ended <= began for (_, ended), (began, _) in pairwise(bodies))
    with redis.Redis.from_url(settings.redis_url) as server:
        eventually(lambda: server.zcard(f"{settings.hash_tag}:slots") == 0, "all slots are given back")


class Link(Proxy):
    """The way of one worker to Postgres, which can be closed: connections break, and new ones are refused."""

    def __init__(self, settings: Settings) -> None:
        parts = urlsplit(settings.database_url)
        assert parts.hostname is not None
        super().__init__((parts.hostname, parts.port or 5432))
        login = parts.netloc.rpartition("@")[0]
        self.url = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{self.port}"))
        self._there = self._target

    def close(self) -> None:
        self._target = ("127.0.0.1", free_port())
        self.cut()

    def open(self) -> None:
        self._target = self._there


@pytest.fixture
def link(settings: Settings) -> Iterator[Link]:
    with Link(settings) as one:
        yield one


def test_a_turn_that_stalls_the_parent_ends_no_body(
    settings: Settings,
    client: Orchestrator,
    facts: Facts,
    started: list[Process],
    tmp_path: Path,
    site: Site,
) -> None:
    """protocols §6: the parent's own row goes stale while workflow code keeps its engine; its children's do not."""
    argv = ["-Q", f"{settings.queue},{settings.account}-cpu", "-c", "2"]
    heavy = Process(settings, tmp_path, argv, ORCHESTRATOR_POOL="prefork", ORCHESTRATOR_LEASE="2")
    started.append(heavy)
    naps = flows.naps_there.create(14, orchestrator=client)
    nap = facts.pid("nap")
    stalled = flows.stalls.create(7, orchestrator=client)

    def age(pid: int) -> float:
        rows = site.sql(
            "SELECT extract(epoch FROM clock_timestamp() - heartbeat_at)::float8 AS age FROM orchestrator_workers "
            "WHERE account = :a AND pid = :pid",
            a=settings.account,
            pid=pid,
        )
        return float(rows[0].age)

    eventually(lambda: age(heavy.pid) > 3.5, "the parent's row is stale", 30)
    assert age(nap) < 2
    assert stalled.result(60) == "done"
    assert naps.result(60) == 1
    assert errors(naps, "nap") == [None]
    assert len(facts.told("nap")) == 1


def test_postgres_away_for_more_than_a_lease(
    settings: Settings,
    client: Orchestrator,
    facts: Facts,
    asyncio_worker: Start,
    prefork_worker: Start,
    link: Link,
) -> None:
    """protocols §6: bodies from before are killed, no message is fetched meanwhile, and who begins when Postgres is
    back goes on: children come to it before their parent does."""
    short = {"ORCHESTRATOR_LEASE": "3"}
    asyncio_worker(**short)
    heavy = prefork_worker(2, **short, ORCHESTRATOR_DATABASE_URL=link.url)
    spins = flows.endless.create(orchestrator=client)
    body = facts.pid("spin")
    link.close()
    eventually(lambda: is_gone(body), "the end of the body", 30)
    eventually(lambda: errors(spins, "spin")[0] == "WorkerLost", "the declaration", 30)
    naps = [flows.naps_there.create(4, orchestrator=client) for _ in range(3)]
    queue = f"{settings.account}-cpu"
    # Of four messages one was asked for before, and is kept for later.
    eventually(lambda: facts.redis.llen(queue) >= 3, "messages that nobody takes", 20)
    app = create_client(settings)
    at_work = app.control.inspect([heavy.name], timeout=5).active()[heavy.name]
    assert "naps_there.nap" not in {task["name"] for task in at_work}
    assert facts.redis.llen(queue) >= 3
    link.open()
    assert [nap.result(90) for nap in naps] == [1, 1, 1]
    assert [errors(nap, "nap") for nap in naps] == [[None]] * 3
    assert spins.result(60) == 2
    assert errors(spins, "spin") == ["WorkerLost", None]
    assert len(facts.told("nap")) == 3
    app.close()


def test_a_shutdown_while_a_child_waits_for_postgres(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start, link: Link
) -> None:
    """A child that has a message and cannot claim is at work: it is not waited for without end, and does not run the
    body when Postgres is back and nobody keeps it alive any more."""
    asyncio_worker()
    heavy = prefork_worker(1, ORCHESTRATOR_DATABASE_URL=link.url, ORCHESTRATOR_SHUTDOWN_GRACE="1")
    assert flows.many.create(1, orchestrator=client).result(60) == 332833500
    (child,) = map(int, facts.told("pid"))
    link.close()
    naps = flows.naps_there.create(0.5, orchestrator=client)
    eventually(lambda: "A child waits for Postgres" in heavy.log.read_text(), "a message in the child", 40)
    heavy.stop(60)
    assert is_gone(child)
    link.open()
    prefork_worker(1)
    assert naps.result(60) == 1
    assert errors(naps, "nap") == [None]
    assert len(facts.told("nap")) == 1


def test_a_child_whose_engine_does_not_start(
    client: Orchestrator, facts: Facts, asyncio_worker: Start, prefork_worker: Start
) -> None:
    """It ends and another is forked, instead of taking messages that it cannot serve. (Where the first ones fail,
    Celery ends the worker.)"""
    asyncio_worker()
    heavy = prefork_worker(1, "--max-tasks-per-child", "1", PREFORK_BREAKS="1")
    assert flows.many.create(4, orchestrator=client).result(60) == 4 * 332833500
    assert len(facts.told("pid")) == 4
    said = heavy.log.read_text()
    assert "A child could not start its engine" in said
    assert "broken on purpose" in said


def test_the_wrong_pool_is_refused(settings: Settings, tmp_path: Path, started: list[Process]) -> None:
    started.append(Process(settings, tmp_path, ["-P", "threads"], ORCHESTRATOR_POOL="prefork"))
    assert started[0].process.wait(40) != 0
    assert "is to run the prefork pool" in started[0].log.read_text()
