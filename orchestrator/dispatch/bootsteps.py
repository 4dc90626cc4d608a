"""The engine inside a Celery worker: started with its pool, drained with it.

Owns: one ``Worker`` per app, the bootstep that starts engine and SousChef. Does not own: either of them.
"""

from __future__ import annotations

import asyncio
import gc
from dataclasses import replace
from typing import Any

from celery import Celery, bootsteps
from celery.concurrency.prefork import TaskPool as TaskPoolOfProcesses

from orchestrator.control import souschef
from orchestrator.control.gatekeeping.means import Means
from orchestrator.dispatch.courier import Courier
from orchestrator.dispatch.native import NativeTask
from orchestrator.dispatch.news import News
from orchestrator.dispatch.placed import PlacedInCelery
from orchestrator.dispatch.pool import TaskPool
from orchestrator.dispatch.prefork import Prefork
from orchestrator.dispatch.publisher import Publisher
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import InvalidConfig, ServiceUnavailable
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import Registry


class Worker:
    """What a worker process of this app holds beside Celery."""

    def __init__(self, app: Celery, settings: Settings, registry: Registry) -> None:
        self._app = app
        self._settings = settings
        self._registry = registry
        self._engine: Runtime | None = None
        self._limit: int | None = None
        self._has_drained = False
        self.pool: TaskPool | None = None
        self.prefork = Prefork(app, settings, registry, self._adopt) if settings.pool == "prefork" else None

    @property
    def task_base(self) -> type[NativeTask]:
        """What the tasks of this worker derive from."""
        return NativeTask if self.prefork is None else self.prefork.task_base()

    def _adopt(self, engine: Runtime) -> None:
        self._engine = engine

    @property
    def engine(self) -> Runtime:
        if self._engine is None:
            raise ServiceUnavailable("The engine of this worker is not running.", "worker")
        return self._engine

    @property
    def is_running(self) -> bool:
        """Whether this process has an engine that runs turns."""
        return self._engine is not None and not self._has_drained

    def attach(self, parent: Any, pool: TaskPool, *, is_beside: bool = False) -> None:
        """Take the place of the engine in the worker ``parent``: started with ``pool``, drained with it.

        ``is_beside``: the worker has a pool of its own for its other tasks, whose messages must not wait while ours can
        not be run; then what cannot be claimed waits here.
        """
        self._placed = PlacedInCelery(parent, pool)
        self.pool = pool
        self._is_beside = is_beside
        pool.on_loop_start.append(self.start)
        pool.drain = self.drain
        pool.cut = self.cut

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start everything; called in the pool's loop."""
        _spare_the_collector()
        self._has_drained = False
        self._means = means = Means.of_process(self._settings, self._registry)
        self._courier = Courier(Publisher(self._app, self._settings), News(self._settings))
        self._engine = engine = Runtime(
            self._settings, self._registry, self._courier, means.gate, self._placed
        )
        self._souschef = souschef.appoint(
            self._settings,
            self._registry,
            means,
            engine.engine,
            engine.clock,
            lambda: engine.liveness.id,
            engine.wake_at,
            engine.waiting,
        )
        self._courier.heed(engine.refused)
        self._has_begun = False
        engine.on_up = self._turned
        engine.start(loop)

    def _turned(self, is_up: bool) -> None:
        """Begin to look at alarms with the first heartbeat, which knows the time; fetch no messages while cut off
        from Postgres: others can do what they ask for."""
        if is_up and not self._has_begun:
            self._has_begun = True
            self._souschef.start()
        if self.pool is None or self._is_beside:
            return
        if not is_up and self._limit is None:
            self._limit, self.pool.limit = self.pool.limit, 0
        elif is_up and self._limit is not None:
            limit, self._limit = self._limit, None
            self.pool.grow(limit)

    def cut(self) -> None:
        """Celery cancels its active requests, at a cold shutdown: nobody asked for these attempts to fail."""
        self.engine.hand_back()

    def hurry(self) -> None:
        """Give bodies no time when it drains: what runs is put back."""
        if self._engine is not None:
            self._engine.settings = replace(self._engine.settings, shutdown_grace=0.0)

    async def drain(self) -> None:
        """The end, in order: give up alarms, let bodies finish, flush, deliver the last hints."""
        await asyncio.get_running_loop().run_in_executor(None, self._souschef.stop)
        await self.engine.drain()
        self._has_drained = True
        await asyncio.get_running_loop().run_in_executor(None, self._courier.close)
        self._means.gate.close()


def _spare_the_collector() -> None:
    """Thousands of live replays are long-lived objects: by default each full collection walks through all of them, and
    one comes with every few hundred steps. Measured: a third of the CPU of a turn."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def refuse_cluster(app: Celery) -> None:
    """Raise ``InvalidConfig`` if the broker is a node of a Redis Cluster: kombu's keys stand in several slots, and the
    commands that name more than one would fail. A broker that does not answer is Celery's to wait for."""
    with app.connection_for_read() as connection:
        if connection.transport.driver_type != "redis":
            return
        try:
            told = connection.channel().client.info("cluster")
        except (*connection.connection_errors, *connection.channel_errors):
            return
    if told.get("cluster_enabled"):
        raise InvalidConfig(
            "ORCHESTRATOR_BROKER_URL names a Redis Cluster, which cannot be a Celery broker: take a single Redis or "
            "Valkey, one behind Sentinel, or RabbitMQ."
        )


def install(app: Celery, worker: Worker) -> None:
    """Have every worker of ``app`` run ``worker``."""

    class EngineStep(bootsteps.StartStopStep):  # type: ignore[misc, unused-ignore]
        """Attaches the engine to the pool before it starts."""

        requires = ("celery.worker.components:Pool",)

        def create(self, parent: Any) -> Any:
            refuse_cluster(app)
            wanted = TaskPool if worker.prefork is None else TaskPoolOfProcesses
            if not isinstance(parent.pool, wanted):
                name = "asyncio" if worker.prefork is None else "prefork"
                raise InvalidConfig(
                    f"This worker runs the {type(parent.pool).__module__} pool, and is to run the {name} pool "
                    "(ORCHESTRATOR_POOL): start it without -P (and without worker_pool in the configuration)."
                )
            if worker.prefork is not None:
                return worker.prefork.attach(parent)
            worker.attach(parent, parent.pool)
            return None

    app.steps["worker"].add(EngineStep)
