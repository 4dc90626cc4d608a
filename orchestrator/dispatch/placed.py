"""Attempts placed without a message, as Celery sees them: a task id, events, an entry among the active requests.

Owns: the stand-in for a request, and its events. Does not own: which attempts are placed (``engine.placement``) or how
they run. Flower and ``inspect active`` show them like any task; revoking one with *terminate* cancels its body.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

from celery.worker import state

from orchestrator.dispatch.publisher import STEP_TASK, ids
from orchestrator.engine.running.placement import Ready
from orchestrator.engine.runtime import PlacedTasks
from orchestrator.ports import monotonic


class PlacedRequest:
    """What Celery's state, consumer and remote control ask of a request."""

    def __init__(self, ready: Ready, id: str, parent: Any, body: asyncio.Task[Any] | None) -> None:
        claim = ready.claimed.claim
        self.id = id
        self.type = self.name = STEP_TASK
        self.argsrepr = f"('{claim.instance}', {claim.key!r}, {claim.fence})"
        self.hostname = parent.hostname
        self.task = parent.app.tasks[STEP_TASK]
        self.eventer: Any = None  # set anew by the consumer whenever it has reconnected
        self.began = monotonic()
        self.acknowledged = True
        self.stamps: dict[str, Any] = {}
        self.stamped_headers: list[str] = []
        self._body = body

    def __repr__(self) -> str:
        return f"<placed {self.id}: {self.argsrepr}>"

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Cancel the body; called in Celery's thread."""
        if self._body is not None:
            self._body.get_loop().call_soon_threadsafe(self._body.cancel)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """As ``terminate``: the engine decides about a retry."""
        self.terminate(pool, signal)

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


class PlacedInCelery(PlacedTasks):
    """Runs placed attempts as tasks of the worker ``parent``."""

    def __init__(self, parent: Any) -> None:
        self._parent = parent

    async def run(self, ready: Ready, start: Callable[[Ready], Coroutine[Any, Any, str]]) -> str:
        (task_id,) = ids(1)
        request = PlacedRequest(ready, task_id, self._parent, asyncio.current_task())
        state.requests[task_id] = request
        state.active_requests.add(request)
        state.reserved_requests.add(request)
        events = self._events()
        if events is not None:
            self._send(
                events,
                "task-received",
                task_id,
                name=ready.label,
                args=request.argsrepr,
                kwargs="{}",
                retries=0,
            )
            self._send(events, "task-started", task_id, pid=os.getpid())
        try:
            word = await start(ready)
        except BaseException as error:
            if events is not None:
                self._send(events, "task-failed", task_id, exception=repr(error), traceback="")
            raise
        else:
            if events is not None:
                runtime = monotonic() - request.began
                self._send(events, "task-succeeded", task_id, result=repr(word), runtime=runtime)
            return word
        finally:
            state.requests.pop(task_id, None)
            state.active_requests.discard(request)
            state.reserved_requests.discard(request)
            state.total_count[STEP_TASK] += 1

    def _events(self) -> Any:
        dispatcher = getattr(getattr(self._parent, "consumer", None), "event_dispatcher", None)
        return dispatcher if dispatcher is not None and dispatcher.enabled else None

    def _send(self, events: Any, type: str, task_id: str, **fields: Any) -> None:
        """Celery's event dispatcher belongs to its own thread."""
        self._parent.pool.post(_send, events, type, task_id, fields)


def _send(events: Any, type: str, task_id: str, fields: dict[str, Any]) -> None:
    events.send(type, uuid=task_id, **fields)
