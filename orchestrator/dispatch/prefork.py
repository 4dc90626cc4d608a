"""The engine in a prefork worker: one in the parent, one in each child, each on an event loop in a thread.

Owns: starting and ending both, the task base that runs in a child, how a child learns that its parent is gone, and how
Celery is told of a body that is over its time. Does not own: what either engine does (``engine.forking``), forking.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from typing import Any

from celery import Celery, signals
from celery.worker import state

from orchestrator.control import souschef
from orchestrator.control.gatekeeping.means import Means
from orchestrator.dispatch.courier import Courier
from orchestrator.dispatch.native import NativeTask
from orchestrator.dispatch.news import News
from orchestrator.dispatch.publisher import Publisher
from orchestrator.engine.forking.child import ChildRuntime
from orchestrator.engine.forking.notices import Wire
from orchestrator.engine.forking.parent import ParentRuntime
from orchestrator.engine.runtime import Runtime
from orchestrator.ports import pause
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import Registry

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
"""From Linux' ``sys/prctl.h``."""
REPLAYS_PER_CHILD = 100
THREADS_PER_CHILD = 4
ORPHAN_S = 0.5
"""How often a child looks whether it still has its parent."""
GOODBYE_S = 10.0
FAREWELL_S = 30.0
"""What a drain may take beyond the grace."""
NOTHING = -1
"""A ``max_concurrency`` with which Celery fetches no message (0 would mean the size of the pool)."""


class Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, name="orchestrator-loop", daemon=True).start()

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout: float | None = None) -> Any:
        """Run ``coroutine`` there, and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout)

    def begin(self, engine: Runtime) -> None:
        async def start() -> None:
            engine.start(self.loop)

        self.run(start())


class Prefork:
    """The engine of a prefork worker; a Celery bootstep's object. ``adopt`` is given the engine of this process."""

    def __init__(
        self, app: Celery, settings: Settings, registry: Registry, adopt: Callable[[Runtime], None]
    ) -> None:
        self._app = app
        self._settings = settings
        self._registry = registry
        self._adopt = adopt
        self._loop: Loop | None = None
        self._child: Child | None = None

    def task_base(self) -> type[NativeTask]:
        """The base of tasks that run in a child, to their end, on its event loop."""
        prefork = self

        class ForkedTask(NativeTask):
            abstract = True

            def __call__(self, *args: Any, **kwargs: Any) -> Any:
                assert prefork._child is not None
                return prefork._child.loop.run(self.run(*args, **kwargs))

        return ForkedTask

    def attach(self, parent: Any) -> Prefork:
        """Before the first fork: what the children inherit."""
        self._parent = parent
        self._parent_pid = os.getpid()
        self._wire = Wire()
        signals.worker_process_init.connect(self._forked, weak=False)
        return self

    # -- the parent ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Celery has forked its children; later ones are forked beside these threads."""
        self._loop = loop = Loop()
        self._courier = Courier(Publisher(self._app, self._settings), News(self._settings))
        self._means = means = Means.of_process(self._settings, self._registry)
        queues = tuple(self._app.amqp.queues.consume_from)
        self._engine = engine = ParentRuntime(
            self._wire, self._expire, queues, self._settings, self._registry, self._courier, means.gate
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
        self._most = self._parent.max_concurrency
        engine.on_up = self._turned
        self._heed_terminate()
        self._adopt(engine)
        loop.begin(engine)

    def stop(self) -> None:
        """Celery fetches nothing any more, and waits for its children after this."""
        self._end(self._settings.shutdown_grace)

    def terminate(self) -> None:
        """A cold shutdown: bodies are killed and handed back."""
        self._end(0.0)

    def _end(self, grace: float) -> None:
        loop, self._loop = self._loop, None
        if loop is None:
            return
        self._souschef.stop()
        self._engine.settings = replace(self._settings, shutdown_grace=grace)
        try:
            loop.run(self._engine.drain(), grace + FAREWELL_S)
        except Exception:
            logger.exception("The engine did not end in order; leases and alarms make up for it.")
        self._courier.close()
        self._means.gate.close()

    def _turned(self, is_up: bool) -> None:
        """Look at alarms from the first heartbeat on, which knows the time; fetch no messages while cut off from
        Postgres: others can do what they ask for. (On Redis. Another broker has sent as many as there are children.)"""
        self._parent.max_concurrency = self._most if is_up else NOTHING
        if is_up and not self._has_begun:
            self._has_begun = True
            self._souschef.start()

    def _heed_terminate(self) -> None:
        """A task that is revoked with *terminate* is a failed attempt, not a lost worker. Celery ends tasks the same
        way when it is told to end at once itself; those are handed back."""
        pool = self._parent.pool
        stock = pool.terminate_job

        def terminate_job(pid: int, number: Any = None) -> None:
            self._engine.terminated(pid, "terminated" if is_revoked(pid) else "handed_back")
            stock(pid, number)

        pool.terminate_job = terminate_job

    def _expire(self, pid: int, seconds: float) -> None:
        """Have Celery end a child as for its own hard time limit, so that it and Flower say why. It does so in its own
        thread; one that is not there any more (a shutdown), or is blocked, is made up for by the engine."""
        hub = getattr(self._parent, "hub", None)
        if hub is not None:
            hub.call_soon(self._over_time, pid, seconds)

    def _over_time(self, pid: int, seconds: float) -> None:
        pool = self._parent.pool._pool
        for job in list(pool._cache.values()):
            if pid in job.worker_pids() and not job.ready():
                job._timeout = seconds
                pool.on_hard_timeout(job)

    # -- a child ---------------------------------------------------------------------------------------------

    def _forked(self, **_: Any) -> None:
        """Called in a new child, before its first task. What it inherited of the parent's engine is left alone: its
        connections are the parent's. Celery would let a child go on that fails here, and give it messages."""
        try:
            self._become_child()
        except BaseException:
            logger.exception("A child could not start its engine and ends.")
            os._exit(1)

    def _become_child(self) -> None:
        threading.Thread(
            target=die_with, args=(self._parent_pid,), name="orchestrator-orphan", daemon=True
        ).start()
        if (
            getattr(self._parent, "hub", None) is not None
        ):  # else a thread forks, and the kernel means its end
            ask_kernel_to_kill()
        self._child = Child(self._app, self._settings, self._registry, self._wire)
        self._adopt(self._child.engine)
        signals.worker_process_shutdown.connect(self._child.end, weak=False)


class Child:
    """The engine of this child process."""

    def __init__(self, app: Celery, settings: Settings, registry: Registry, wire: Wire) -> None:
        self.loop = Loop()
        small = replace(
            settings,
            concurrency=1,
            threads=THREADS_PER_CHILD,
            cached_replays=min(settings.cached_replays, REPLAYS_PER_CHILD),
        )
        self._courier = Courier(Publisher(app, settings), News(settings))
        self._gate = Means.of_process(settings, registry).gate
        queues = tuple(app.amqp.queues.consume_from)
        self.engine = ChildRuntime(wire, queues, small, registry, self._courier, self._gate)
        self._courier.heed(self.engine.refused)
        self.loop.begin(self.engine)

    def end(self, **_: Any) -> None:
        """The child ends in order: sign off, deliver the last hints."""
        try:
            self.loop.run(self.engine.drain(), GOODBYE_S)
        except Exception as error:
            logger.warning("A child did not end in order: %r", error)
        self._courier.close()
        self._gate.close()


def is_revoked(pid: int) -> bool:
    """Whether the task that runs in this child was revoked."""
    return any(request.worker_pid == pid and request.id in state.revoked for request in state.active_requests)


def die_with(parent: int) -> None:
    """End this process soon after its parent: nobody is left who could keep it alive or end its body."""
    while os.getppid() == parent:
        pause(ORPHAN_S)
    os._exit(1)


def ask_kernel_to_kill() -> None:
    """Have Linux kill this process when its parent ends: a body that keeps the interpreter to itself leaves
    ``die_with`` no turn."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
