"""Engines without Celery: as many workers as a test wants, in its own process, and one to be driven by hand.

Owns: ``Site`` (one account with its workflows, client and workers), ``Worker`` (a ``Runtime`` on a loop in a thread),
``Bench`` (a coordinator and claims without any thread, with a manual clock), ``Post`` (the dispatcher: it records
what is handed out and delivers it to the workers, or does not). Does not own any behaviour of its own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Connection, text

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.workflow import Workflow
from orchestrator.control import duties
from orchestrator.control.gatekeeping.admission import Admitted
from orchestrator.control.shards import Shards
from orchestrator.control.souschef import SousChef
from orchestrator.engine.claims import ClaimWanted, Ready
from orchestrator.engine.runtime import Runtime
from orchestrator.engine.turning.results import Results
from orchestrator.ports import FOREVER, Gate, HandOut, OpenGate, new_id
from orchestrator.settings import Incarnation, Settings
from orchestrator.store import instances, workers
from orchestrator.store.instances import NewInstance
from orchestrator.store.session import connect
from orchestrator.store.steps import Claim
from orchestrator.workflow import codec
from orchestrator.workflow.execution import Arrival, Outcome, Wake
from orchestrator.workflow.language.definition import Registry, define

T = TypeVar("T")
PATIENCE_S = 15.0
START = 1_800_000_000.0
"""Where the clock of a bench stands at first."""


def eventually(check: Callable[[], T], what: str = "it", patience_s: float = PATIENCE_S) -> T:
    """Wait for a fact: call ``check`` until it gives something true, and return that."""
    deadline = time.monotonic() + patience_s
    while not (value := check()):
        assert time.monotonic() < deadline, f"{what} did not happen within {patience_s:g} s"
        time.sleep(0.01)
    return value


@dataclass
class ManualClock:
    """A clock that stands still."""

    at: float = START

    def now(self) -> float:
        return self.at


class Post:
    """A dispatcher of the tests' own. What it is given is recorded, then delivered to ``targets`` in turn."""

    def __init__(self) -> None:
        self.handouts: list[HandOut] = []
        self.turns: list[UUID] = []
        self.news: list[UUID] = []
        self.waiting: int | None = 0
        """What ``backlog`` answers."""
        self.targets: list[Worker] = []
        self.spread: Callable[[list[UUID]], None] = lambda instances: None
        """The news channel, which whoever waits for a result listens to."""
        self.spread_changes: Callable[[list[UUID]], None] = lambda instances: None
        """The channel of changes, which whoever follows instances listens to."""
        self.loses: Callable[[HandOut], bool] = lambda handout: False
        """Hand-outs that never arrive."""
        self._next = 0

    def steps(self, handouts: Sequence[HandOut]) -> None:
        self.handouts.extend(handouts)
        for handout in handouts:
            if self.targets and not self.loses(handout):
                self._target().run(handout)

    def coordinate(self, instances: Iterable[UUID]) -> None:
        ids = list(instances)
        self.turns.extend(ids)
        if self.targets:
            self._target().runtime.coordinate(ids)

    def announce(self, instances: Iterable[UUID]) -> None:
        ids = list(instances)
        self.news.extend(ids)
        self.spread(ids)

    def changed(self, instances: Iterable[UUID]) -> None:
        self.spread_changes(list(instances))

    def backlog(self, queue: str) -> int | None:
        return self.waiting

    def destination(self, signature: Any) -> str:
        return str(signature["options"].get("queue", "celery"))

    def take(self) -> list[HandOut]:
        """What was handed out since the last call."""
        taken, self.handouts = self.handouts, []
        return taken

    def _target(self) -> Worker:
        self._next += 1
        return self.targets[self._next % len(self.targets)]


class Client(Orchestrator):
    """An application's side, whose hints go through the post."""

    def __init__(self, settings: Settings, post: Post) -> None:
        super().__init__(settings)
        self._post = post
        self.revoked: Callable[[Iterable[UUID]], None] = lambda instances: None
        """Told whose slots were given back by this side."""

    def hint(self, instances: Iterable[UUID]) -> None:
        self._post.coordinate(instances)

    @property
    def admission(self) -> Any:
        return OpenAdmission(self)


class OpenAdmission:
    """Lets everything in, and gives it a slot, as ``OpenGate`` does: creation limits have tests of their own."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def admit(self, workflow: str, options: Any, ids: Sequence[UUID], *, may_run: bool = True) -> Admitted:
        return Admitted(len(ids), len(ids) if may_run else 0)

    def restart(self, workflow: str, options: Any) -> Admitted:
        return Admitted(1)

    def revoke(self, workflow: str, running: Iterable[UUID], queued: int) -> None:
        self._client.revoked(running)


class Site:
    """One account: its workflows, client, post, workers and benches; all of them end with it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = Registry()
        self.post = Post()
        self.client = Client(settings, self.post)
        self.post.spread = self.client.news.announce
        self.workers: list[Worker] = []
        self.benches: list[Bench] = []
        self.engine = connect(settings.database_url)

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.post.targets.clear()
        for worker in self.workers:
            worker.close()
        for bench in self.benches:
            bench.close()
        self.client.close()
        self.engine.dispose()

    def workflow(self, fn: Callable[..., Any], registry: Registry | None = None, **options: Any) -> Created:
        """Register a workflow here (or in ``registry``: other code in another worker)."""
        home = self.registry if registry is None else registry
        return Created(home.register(define(fn, **options)), self)

    def worker(
        self,
        registry: Registry | None = None,
        *,
        chef: bool = False,
        deliver: bool = True,
        skew: float = 0.0,
        **settings: Any,
    ) -> Worker:
        """Start a worker; with ``deliver`` the post brings it hints, with ``chef`` it has a SousChef. ``skew``: how far
        its wall clock is off."""
        if "lease" in settings:
            settings.setdefault("heartbeat", settings["lease"] / 3)
        worker = Worker(self, registry or self.registry, replace(self.settings, **settings), chef, skew)
        self.workers.append(worker)
        if deliver:
            self.post.targets.append(worker)
        return worker

    def bench(
        self, registry: Registry | None = None, clock: ManualClock | None = None, gate: Gate | None = None
    ) -> Bench:
        bench = Bench(self, registry or self.registry, clock or ManualClock(), gate or OpenGate())
        self.benches.append(bench)
        return bench

    def sql(self, statement: str, **parameters: Any) -> list[Any]:
        """Run a statement in a transaction of its own; its rows, if it has any."""
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), parameters)
            return list(result) if result.returns_rows else []

    def row(self, instance: UUID) -> Any:
        """The row of an instance; ``alarm`` is in epoch seconds."""
        (row,) = self.sql(
            "SELECT id, name_id, run, status, seq, extract(epoch FROM alarm_at)::float8 AS alarm, started_at, "
            "ended_at, ended_seq, ending, blocked, rollback, state_bytes FROM orchestrator_instances WHERE id = :id",
            id=instance,
        )
        return row

    def step(self, instance: UUID, key: str) -> Any:
        rows = self.sql(
            "SELECT * FROM orchestrator_steps WHERE instance_id = :id AND key = :key", id=instance, key=key
        )
        return rows[0] if rows else None

    def id_of(self, name_id: str) -> UUID:
        found = self.sql(
            "SELECT id FROM orchestrator_instances WHERE account = :account AND name_id = :name",
            account=self.settings.account,
            name=name_id,
        )
        return UUID(str(found[0][0]))

    @contextmanager
    def locked(self, instance: UUID) -> Iterator[Connection]:
        """Hold the row of an instance, as a slow turn elsewhere would."""
        with self.engine.begin() as connection:
            connection.execute(
                text("SELECT 1 FROM orchestrator_instances WHERE id = :id FOR UPDATE"), {"id": instance}
            )
            yield connection


class Created(Workflow):
    """A workflow whose verbs go to the site by themselves."""

    def __init__(self, definition: Any, site: Site) -> None:
        super().__init__(definition)
        self.site = site

    def create(self, params: Any = None, **options: Any) -> Any:
        return super().create(params, **{"orchestrator": self.site.client, **options})

    def create_batch(self, batch: Any = None, **options: Any) -> Any:
        return super().create_batch(batch, **{"orchestrator": self.site.client, **options})

    async def acreate(self, params: Any = None, **options: Any) -> Any:
        return await super().acreate(params, **{"orchestrator": self.site.client, **options})

    async def acreate_batch(self, batch: Any = None, **options: Any) -> Any:
        return await super().acreate_batch(batch, **{"orchestrator": self.site.client, **options})

    def get(self, id: str, **options: Any) -> Any:
        return super().get(id, **{"orchestrator": self.site.client, **options})

    def list(self, *args: Any, **options: Any) -> Any:
        return super().list(*args, **{"orchestrator": self.site.client, **options})

    def count(self, exact: bool = False, **options: Any) -> Any:
        return super().count(exact, **{"orchestrator": self.site.client, **options})

    def delete_batch(self, ids: Any, **options: Any) -> Any:
        return super().delete_batch(ids, **{"orchestrator": self.site.client, **options})

    def delete_all(self, **options: Any) -> Any:
        return super().delete_all(**{"orchestrator": self.site.client, **options})

    def latest(self, **options: Any) -> Any:
        return super().latest(**{"orchestrator": self.site.client, **options})

    def plant(self, params: Any = None, *, now: float = START, queued: bool = False) -> UUID:
        """Create an instance at ``now``, without a hint; its uuid."""
        instance = new_id(now)
        new = NewInstance(instance, str(instance), codec.encode(params, what="params"), 3600.0, 3600.0)
        with self.site.engine.begin() as connection:
            instances.create(
                connection,
                self.site.settings.account,
                self.name,
                self.version,
                [new],
                now,
                alarm_at=FOREVER if queued else now + 5.0,
            )
        return instance


class Worker:
    """The engine of one worker process, on an event loop in a thread."""

    def __init__(self, site: Site, registry: Registry, settings: Settings, chef: bool, skew: float) -> None:
        self.site = site
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.runtime = Runtime(settings, registry, site.post, OpenGate())
        self.runtime.clock._offset += skew
        self.is_open = True
        self.wakes: list[tuple[UUID, float]] = []
        self.call(self._start())
        self.chef = self._chef(registry, settings) if chef else None

    async def _start(self) -> None:
        self.runtime.start(asyncio.get_running_loop())

    def _chef(self, registry: Registry, settings: Settings) -> SousChef:
        runtime = self.runtime

        def wake(wakes: Sequence[tuple[UUID, float]]) -> None:
            self.wakes.extend(wakes)
            runtime.wake_at(wakes)

        eventually(lambda: runtime.liveness.is_registered)
        seen_to = duties.standard(runtime.engine, settings, registry)
        chef = SousChef(
            runtime.engine,
            settings.account,
            registry.known,
            runtime.clock,
            OpenGate(),
            wake,
            Shards(runtime.engine, settings, lambda: runtime.liveness.id, registry.known),
            runtime.waiting,
            seen_to,
        )
        chef.start()
        return chef

    def call(self, coroutine: Any, timeout: float = PATIENCE_S) -> Any:
        """Run a coroutine on the worker's loop and return what it gives."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def run(self, handout: HandOut) -> Future[str]:
        """Deliver the message of a hand-out."""
        coming = self.runtime.step(handout.instance, handout.key, handout.fence)
        return asyncio.run_coroutine_threadsafe(coming, self.loop)

    def drain(self, timeout: float = 60.0) -> None:
        """Shut down in order."""
        self.is_open = False
        if self.chef is not None:
            self.chef.stop()
        self.call(self.runtime.drain(), timeout)
        self._end()

    def crash(self) -> None:
        """Stop without a word, as SIGKILL does: no flush, no sign-off, bodies stay where they are."""
        self.is_open = False
        if self in self.site.post.targets:
            self.site.post.targets.remove(self)
        if self.chef is not None:
            self.chef.stop(give_up=False)
        self._end()
        self.runtime.liveness.stop(leave=False)
        self.runtime._batcher.stop(5)
        self.runtime.engine.dispose()

    def close(self) -> None:
        if self.is_open:
            self.runtime.settings.__dict__["shutdown_grace"] = 0.0
            self.drain()

    def _end(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)


@dataclass
class Bench:
    """A coordinator and claims without threads: every flush is a call. Its worker is registered and never dies."""

    site: Site
    registry: Registry
    clock: ManualClock
    gate: Gate

    def __post_init__(self) -> None:
        settings = self.site.settings
        self.done: list[tuple[UUID, Outcome]] = []
        runtime = Runtime(
            settings, self.registry, self.site.post, self.gate
        )  # never started: parts, no threads
        self.engine, self.coordinator, self.claims = (
            runtime.engine,
            runtime._coordinator,
            runtime._batcher._claims,
        )
        self.replays, self.id = runtime._replays, runtime.liveness.id
        turning = self.coordinator
        for part in (
            turning,
            self.claims,
            turning._holds,
            turning._reading,
            turning._slots,
            turning._lineage,
        ):
            part._clock = self.clock
        for part in (self.coordinator, self.coordinator._holds):
            part._done = lambda instance, outcome: self.done.append((instance, outcome))
        with self.engine.begin() as connection:
            workers.register(connection, settings.account, Incarnation(self.id), [])

    def shards(self, registry: Registry | None = None) -> Shards:
        """What its SousChef looks after."""
        known = (registry or self.registry).known
        return Shards(self.engine, self.site.settings, lambda: self.id, known)

    def close(self) -> None:
        self.coordinator._watch.stop()  # the one thread there may be: that of the first turn
        self.replays.clear()
        self.engine.dispose()

    def run(self, batch: dict[UUID, list[Arrival]]) -> Results:
        """One flush, and what the gate is told of it."""
        results = self.coordinator.run(batch)
        self.coordinator.settle(results)
        return results

    def wake(self, *woken: UUID) -> Results:
        return self.run({instance: [Wake()] for instance in woken})

    def claim(self, *handouts: HandOut) -> list[Ready | None]:
        """Claim these, as messages that came in one flush would; ``None`` for those that were not got."""
        answers: dict[int, Ready | None] = {}
        wanted = [
            ClaimWanted(Claim(h.instance, h.key, h.fence), lambda ready, at=at: answers.update({at: ready}))
            for at, h in enumerate(handouts)
        ]
        results = Results()
        again = self.claims.run(wanted, results)
        self.again, self.blocked = [w.claim for w in again], results
        return [answers.get(at) for at in range(len(handouts))]

    def outcome(self, ready: Ready | None, value: Any = None, **fields: Any) -> Outcome:
        """What an attempt reports: ``value`` as its output, or the fields of an error."""
        assert ready is not None, "the claim was not got"
        row = ready.claimed.row
        if not fields.keys() & {"error", "loss"}:
            fields["output"] = codec.encode(value, what="a result")
        return Outcome(
            key=row.key,
            fence=row.fence,
            worker=row.worker,
            claimed_at=row.claimed_at,
            attempt=row.attempt,
            **fields,
        )

    def finish(self, handout: HandOut, value: Any = None, **fields: Any) -> Results:
        """Claim a hand-out and report its end in one go."""
        (ready,) = self.claim(handout)
        return self.run({handout.instance: [self.outcome(ready, value, **fields)]})
