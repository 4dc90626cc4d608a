"""Attempts placed without a message, as Celery sees them: a task id, events, an entry among the active requests.

Owns: the stand-in for a request, and its events. Does not own: which attempts are placed (``engine.placement``) or how
they run. Flower and ``inspect active`` show them like any task; revoking one with *terminate* cancels its body.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any
from weakref import WeakSet

from celery.worker import state

from orchestrator.dispatch.pool import TaskPool
from orchestrator.dispatch.publisher import STEP_TASK, ids
from orchestrator.engine.running.placement import Ready
from orchestrator.engine.runtime import PlacedTasks
from orchestrator.ports import monotonic

IDS = 256
"""Task ids made at once."""


class PlacedRequest:
    """What Celery's state, consumer and remote control ask of a request."""

    __slots__ = (
        "__weakref__", "_body", "_pool", "began", "eventer", "hostname", "id", "ready", "task",
    )  # fmt: skip

    acknowledged = True
    name = type = STEP_TASK

    def __init__(
        self, ready: Ready, id: str, hostname: str, task: Any, body: asyncio.Task[Any] | None, pool: TaskPool
    ) -> None:
        self.ready = ready
        self.id = id
        self.hostname = hostname
        self.task = task
        self.eventer: Any = None  # set anew by the consumer whenever it has reconnected
        self.began = monotonic()
        self._body = body
        self._pool = pool

    @property
    def argsrepr(self) -> str:
        claim = self.ready.claimed.claim
        return f"('{claim.instance}', {claim.key!r}, {claim.fence})"

    @property
    def stamps(self) -> dict[str, Any]:
        return {}

    @property
    def stamped_headers(self) -> list[str]:
        return []

    def __repr__(self) -> str:
        return f"<placed {self.id}: {self.argsrepr}>"

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Cancel the body; called in Celery's thread."""
        if self._body is not None:
            self._body.get_loop().call_soon_threadsafe(self._body.cancel)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Called for all requests at a cold shutdown: the attempt is put back. Without an engine, as ``terminate``."""
        if self._pool.cut is None or self._pool.loop is None:
            self.terminate(pool, signal)
        else:
            self._pool.loop.call_soon_threadsafe(self._pool.cut)

    def info(self, safe: bool = False) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "type": self.type,
            "args": self.argsrepr,
            "kwargs": "{}",
            "hostname": self.hostname,
            "time_start": self.began,
            "acknowledged": True,
            "delivery_info": {"exchange": "", "routing_key": "", "priority": None, "redelivered": False},
            "worker_pid": os.getpid(),
        }


class _Requests(WeakSet[Any]):
    """Celery's sets of requests, fit for two threads: placed attempts come and go in the loop's while Celery's goes
    through the set, after a reconnect, say, where "changed size during iteration" would end the worker."""

    def __iter__(self) -> Iterator[Any]:
        for reference in list(self.data):  # type: ignore[attr-defined]
            request = reference()
            if request is not None:
                yield request


class PlacedInCelery(PlacedTasks):
    """Runs placed attempts as tasks of the worker ``parent``, on the loop of ``pool``."""

    def __init__(self, parent: Any, pool: TaskPool) -> None:
        state.active_requests.__class__ = state.reserved_requests.__class__ = _Requests
        self._parent = parent
        self._pool = pool
        self._hostname: str = parent.hostname
        self._task = parent.app.tasks[STEP_TASK]
        self._ids: list[str] = []

    async def run(self, ready: Ready, start: Callable[[Ready], Coroutine[Any, Any, str]]) -> str:
        request = PlacedRequest(
            ready, self._id(), self._hostname, self._task, asyncio.current_task(), self._pool
        )
        state.requests[request.id] = request
        state.active_requests.add(request)
        state.reserved_requests.add(request)
        events = self._events()
        if events is not None:
            self._pool.post(_began, events, request)
        try:
            word = await start(ready)
        except BaseException as error:
            if events is not None:
                self._pool.post(_failed, events, request, error)
            raise
        else:
            if events is not None:
                self._pool.post(_succeeded, events, request, word, monotonic() - request.began)
            return word
        finally:
            state.requests.pop(request.id, None)
            state.active_requests.discard(request)
            state.reserved_requests.discard(request)
            state.total_count[STEP_TASK] += 1
            self._pool.vacated()

    def _id(self) -> str:
        """A task id. Throwing dice is a system call, for which a thread gives up the interpreter: many at once."""
        if not self._ids:
            self._ids = list(ids(IDS))
        return self._ids.pop()

    def _events(self) -> Any:
        """Celery's event dispatcher, if it sends task events now (``-E``, or *enable events* while it runs). It belongs
        to Celery's own thread, and waking that thread for events nobody wants cost a third of a step."""
        dispatcher = getattr(getattr(self._parent, "consumer", None), "event_dispatcher", None)
        if dispatcher is None or not dispatcher.enabled:
            return None
        return dispatcher if not dispatcher.groups or "task" in dispatcher.groups else None


def _began(events: Any, request: PlacedRequest) -> None:
    events.send(
        "task-received",
        uuid=request.id,
        name=request.ready.label,
        args=request.argsrepr,
        kwargs="{}",
        retries=0,
    )
    events.send("task-started", uuid=request.id)


def _succeeded(events: Any, request: PlacedRequest, word: str, runtime: float) -> None:
    events.send("task-succeeded", uuid=request.id, result=repr(word), runtime=runtime)


def _failed(events: Any, request: PlacedRequest, error: BaseException) -> None:
    events.send("task-failed", uuid=request.id, exception=repr(error), traceback="")
