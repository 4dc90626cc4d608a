"""Threads for sync bodies: daemons, so that a body that never returns cannot keep its process alive.

Owns: the threads and their number. Does not own: time-outs (``attempts``). ``concurrent.futures`` joins its
threads when the interpreter exits, which is what must not happen here.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

Job = tuple["asyncio.Future[Any]", contextvars.Context, Callable[[], Any]]


class Threads:
    """At most ``limit`` calls at once; the others wait their turn. A thread in a timed-out body stays counted."""

    def __init__(self, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self.limit = limit
        self._loop = loop
        self._jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0
        self._lock = threading.Lock()

    def submit(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run ``call`` in a thread, in a copy of the caller's context. Called from the loop."""
        future: asyncio.Future[Any] = self._loop.create_future()
        with self._lock:
            if self._idle > 0:
                self._idle -= 1
            elif self._threads < self.limit:
                self._threads += 1
                name = f"orchestrator-body-{self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
        self._jobs.put((future, contextvars.copy_context(), call))
        return future

    @property
    def busy(self) -> int:
        """Threads in a body."""
        return self._threads - self._idle

    def _work(self) -> None:
        while True:
            future, context, call = self._jobs.get()
            value, error = None, None
            if not future.cancelled():
                try:
                    value = context.run(call)
                except BaseException as raised:
                    error = raised
            with self._lock:
                self._idle += 1
            try:
                self._loop.call_soon_threadsafe(_settle, future, value, error)
            except RuntimeError:
                return  # the loop is closed; the process is going
            del future, context, call, value, error


def _settle(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    elif isinstance(error, StopIteration):  # a future refuses it
        future.set_exception(RuntimeError(f"the body raised StopIteration: {error}"))
    else:
        future.set_exception(error)
