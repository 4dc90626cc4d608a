"""The incarnation under which a worker of the application claims its own tasks that are steps.

Owns: its row and heartbeat, what the children of a prefork pool know of it, the connections of each process. Does not
own: what is claimed (``guard``) or reported (``reports``), nor the engine's own incarnation, if there is an engine.

One row for the worker and all its children: the parent beats, whatever the bodies do. A child that dies is seen by
Celery, which says so; a parent that dies takes its children along, and its row goes stale.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Sequence
from uuid import UUID

from orchestrator.engine.liveness import Liveness
from orchestrator.ports import MonotonicClock
from orchestrator.settings import Settings
from orchestrator.store.session import Engine, connect

_NOBODY = bytes(16)


class Presence:
    """``start`` once, in the worker's main process, after a prefork pool has forked or before: children see what it
    writes. Safe for threads."""

    def __init__(self, settings: Settings, queues: Sequence[str]) -> None:
        self._settings = settings
        self._queues = tuple(queues)
        # Anonymous and shared: a child reads what its parent writes, also after the parent came back as a new one.
        self._page = mmap.mmap(-1, len(_NOBODY))
        self._pid = os.getpid()
        self._engine: Engine | None = None
        self._lock = threading.Lock()
        self._liveness: Liveness | None = None

    @property
    def worker(self) -> UUID | None:
        """The living incarnation; ``None`` while it is not known to Postgres, or cut off from it for a lease."""
        seen = self._page[:]
        return None if seen == _NOBODY else UUID(bytes=seen)

    @property
    def engine(self) -> Engine:
        """The connections of this process; those of a parent are left alone."""
        with self._lock:
            if self._engine is None or self._pid != os.getpid():
                if self._engine is not None:
                    self._engine.dispose(close=False)
                self._pid = os.getpid()
                self._engine = connect(self._settings.database_url, pool_size=4, client=True)
            return self._engine

    def forked(self) -> None:
        """In a child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()

    def start(self) -> None:
        """Enter the row and keep it alive."""
        self._liveness = Liveness(
            self.engine, self._settings, MonotonicClock(), lambda: [], self._queues, self
        )
        self._liveness.start()

    def stop(self) -> None:
        """Sign off: whatever a task still ran is handed on."""
        liveness, self._liveness = self._liveness, None
        if liveness is not None:
            liveness.stop(leave=True)
            self._page[:] = _NOBODY
            self.engine.dispose()

    # -- Life: what liveness tells, in its thread ------------------------------------------------------------

    def reborn(self) -> None:
        self._page[:] = _NOBODY

    def suspended(self) -> None:
        self._page[:] = _NOBODY

    def resumed(self) -> None:
        if self._liveness is not None:
            self._page[:] = self._liveness.id.bytes

    def stuck_s(self) -> float:
        return 0.0

    def ping(self, answered: Callable[[], None]) -> None:
        answered()
