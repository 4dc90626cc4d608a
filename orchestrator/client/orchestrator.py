"""``Orchestrator``: the explicit object that knows where Postgres, Redis and the broker are.

Owns: connections of a client process, the default instance, and the check that client verbs are not called from
workflow code. Does not own: the verbs themselves (``creation``, ``instance``).
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import UUID

from orchestrator.errors import NotDurable
from orchestrator.ports import MonotonicClock, monotonic
from orchestrator.settings import Settings
from orchestrator.workflow.loop import inside_workflow

if TYPE_CHECKING:
    from celery import Celery

    from orchestrator.dispatch.news import News
    from orchestrator.dispatch.publisher import Publisher
    from orchestrator.store.session import Engine

CLOCK_S = 60.0

P = ParamSpec("P")
T = TypeVar("T")


class Orchestrator:
    """Connections are opened when first needed. Safe for threads; ``close()`` gives them back."""

    def __init__(self, settings: Settings, *, celery: Celery | None = None) -> None:
        self.settings = settings
        self._clock = MonotonicClock()
        self._clock_read_at = float("-inf")
        self._celery = celery
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._publisher: Publisher | None = None
        self._news: News | None = None

    @property
    def engine(self) -> Engine:
        """The pool of connections to Postgres."""
        with self._lock:
            if self._engine is None:
                from orchestrator.store.session import connect

                self._engine = connect(self.settings.database_url, client=True)
            return self._engine

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

    def now(self) -> float:
        """The database's time, epoch seconds: read once a minute, kept by the monotonic clock in between."""
        if monotonic() - self._clock_read_at > CLOCK_S:
            from orchestrator.store import workers
            from orchestrator.store.session import transaction

            with transaction(self.engine) as connection:
                before = monotonic()
                now = workers.clock(connection)
                self._clock_read_at = monotonic()
            self._clock.adjust(now, (before + self._clock_read_at) / 2)
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
        """Close every connection. The next verb opens new ones."""
        with self._lock:
            engine, self._engine = self._engine, None
            publisher, self._publisher = self._publisher, None
            news, self._news = self._news, None
        for part in (publisher, news):
            if part is not None:
                part.close()
        if engine is not None:
            engine.dispose()

    def __enter__(self) -> Orchestrator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
