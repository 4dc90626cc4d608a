"""``Orchestrator``: the explicit object that knows where Postgres, Redis and the broker are.

Owns: connections of a client process, also when it forks, the default instance, and the check that client verbs are
not called from workflow code. Does not own: the verbs themselves (``creation``, ``instance``).
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import UUID

from orchestrator.errors import InvalidConfig, NotDurable
from orchestrator.ports import MonotonicClock, monotonic
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import registry
from orchestrator.workflow.loop import inside_workflow

if TYPE_CHECKING:
    from celery import Celery

    from orchestrator.client.followers import Followers
    from orchestrator.client.lanes import Lanes
    from orchestrator.client.waiters import Waiters
    from orchestrator.control.gatekeeping.admission import Admission
    from orchestrator.dispatch.news import News
    from orchestrator.dispatch.publisher import Publisher
    from orchestrator.store.instances import Result
    from orchestrator.store.session import Engine

CLOCK_S = 60.0

P = ParamSpec("P")
T = TypeVar("T")


class Orchestrator:
    """Connections are opened when first needed. Safe for threads; ``close()`` gives them back. In a forked child it
    opens its own.

    ``celery``: the application's own app. What this process publishes goes through it; its workers report their tasks
    that are steps, and those that serve ``settings.queue`` run workflows. Its settings stay as they are.
    """

    def __init__(self, settings: Settings, *, celery: Celery | None = None) -> None:
        if not isinstance(settings, Settings):
            raise InvalidConfig(
                f"Orchestrator takes Settings, not {type(settings).__name__}: Settings.from_env() reads them, or "
                "Settings(database_url=…, redis_url=…)."
            )
        self.settings = settings
        self._clock = MonotonicClock()
        self._clock_read_at = float("-inf")
        self._celery = celery
        if celery is not None:
            from orchestrator.dispatch.existing.adoption import adopt

            adopt(celery, settings, registry)
        self._disconnect()
        _all.add(self)

    def _disconnect(self) -> None:
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._lanes: Lanes | None = None
        self._publisher: Publisher | None = None
        self._news: News | None = None
        self._waiters: Waiters | None = None
        self._followers: Followers | None = None
        self._admission: Admission | None = None

    @property
    def engine(self) -> Engine:
        """The pool of connections to Postgres."""
        with self._lock:
            if self._engine is None:
                from orchestrator.store.session import connect

                self._engine = connect(self.settings.database_url, client=True)
            return self._engine

    @property
    def lanes(self) -> Lanes:
        """Connections to Postgres for single statements."""
        with self._lock:
            if self._lanes is None:
                from orchestrator.client.lanes import Lanes

                self._lanes = Lanes(self.engine)
            return self._lanes

    @property
    def publisher(self) -> Publisher:
        with self._lock:
            if self._publisher is None:
                from orchestrator.dispatch.celery_app import create_client
                from orchestrator.dispatch.publisher import Publisher

                app = self._celery if self._celery is not None else create_client(self.settings)
                self._publisher = Publisher(app, self.settings)
            return self._publisher

    @property
    def news(self) -> News:
        with self._lock:
            if self._news is None:
                from orchestrator.dispatch.news import News

                self._news = News(self.settings)
            return self._news

    @property
    def waiters(self) -> Waiters:
        """Who waits for results in this process."""
        with self._lock:
            if self._waiters is None:
                from orchestrator.client.waiters import Waiters

                # Bound to these lanes: a question that outlives ``close()`` must not open new ones.
                self._waiters = Waiters(self.news, functools.partial(self._ended, self.lanes))
            return self._waiters

    @property
    def followers(self) -> Followers:
        """Who follows instances in this process."""
        with self._lock:
            if self._followers is None:
                from orchestrator.client.followers import Followers

                self._followers = Followers(self.news, functools.partial(self._heads, self.lanes))
            return self._followers

    @property
    def admission(self) -> Admission:
        """Who may be created now."""
        with self._lock:
            if self._admission is None:
                from orchestrator.control.gatekeeping.admission import Admission

                self._admission = Admission(self.settings)
            return self._admission

    async def awaiters(self) -> Waiters:
        """``waiters`` for asyncio: the first time it loads libraries, in a thread; the loop of the caller goes on."""
        if self._waiters is not None:
            return self._waiters
        return await offload(lambda: self.waiters)

    async def afollowers(self) -> Followers:
        """``followers`` for asyncio."""
        if self._followers is not None:
            return self._followers
        return await offload(lambda: self.followers)

    def _heads(self, lanes: Lanes, instances: Sequence[str]) -> dict[str, int | None]:
        from orchestrator.store.records.lifecycle import heads

        with lanes.statement() as connection:
            return heads(connection, instances)

    def _ended(self, lanes: Lanes, instances: Sequence[str]) -> dict[str, Result | None]:
        from orchestrator.store.instances import ended

        with lanes.statement() as connection:
            return ended(connection, instances)

    def now(self) -> float:
        """The database's time, epoch seconds: read once a minute, kept by the monotonic clock in between."""
        if monotonic() - self._clock_read_at > CLOCK_S:
            from orchestrator.store import workers

            with self.lanes.statement() as connection:
                before = monotonic()
                now = workers.clock(connection)
                after = monotonic()
            self._clock.adjust(now, (before + after) / 2)
            self._clock_read_at = after  # last: other threads take the clock as it is from here on
        return self._clock.now()

    def hint(self, instances: Iterable[UUID]) -> None:
        """Ask some worker for a turn of each. Best effort: alarms do the rest."""
        self.publisher.coordinate(instances)

    def hint_aside(self, instances: Iterable[UUID]) -> None:
        """``hint``, in a thread if this one runs an event loop, which must not wait for a broker."""
        ids = list(instances)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.hint(ids)
        else:
            loop.run_in_executor(None, self.hint, ids)

    def close(self) -> None:
        """Close every connection; who waits for a result is told. The next verb opens new ones."""
        with self._lock:
            waiters, followers = self._waiters, self._followers
            lanes, publisher = self._lanes, self._publisher
            news, engine, admission = self._news, self._engine, self._admission
            self._waiters = self._lanes = self._publisher = self._news = self._engine = None
            self._followers = self._admission = None
        for part in (waiters, followers, publisher, news, lanes, admission):
            if part is not None:
                part.close()
        if engine is not None:
            engine.dispose()

    def forked(self) -> None:
        """In the child: open new connections when they are needed, and leave the parent's as they are."""
        engine = self._engine
        self._disconnect()
        if engine is not None:
            engine.dispose(close=False)

    def __enter__(self) -> Orchestrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_all: weakref.WeakSet[Orchestrator] = weakref.WeakSet()


def _forked() -> None:
    global _default_lock
    _default_lock = threading.Lock()  # another thread of the parent may have held it
    for orchestrator in list(_all):
        orchestrator.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

_default: Orchestrator | None = None
_default_lock = threading.Lock()


def configure(settings: Settings | Orchestrator) -> Orchestrator:
    """Set the default that ``workflow.create`` and its siblings use; returns it."""
    global _default
    with _default_lock:
        _default = settings if isinstance(settings, Orchestrator) else Orchestrator(settings)
        return _default


def current() -> Orchestrator:
    """The default; made from the environment if ``configure`` was not called."""
    global _default
    with _default_lock:
        if _default is None:
            _default = Orchestrator(Settings.from_env())
        return _default


def check_outside(verb: str) -> None:
    """Refuse a client verb in workflow code: what it does would be done again on every replay."""
    if inside_workflow():
        raise NotDurable(
            f"{verb}() was called from workflow code, which runs again on every replay: call it inside step.do."
        )


async def offload(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """The async twin of a blocking verb: the same body, in a thread, so that the caller's loop goes on."""
    call: Callable[[], Any] = functools.partial(function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(None, call)
