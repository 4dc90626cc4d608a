"""A body while it runs: on the loop or in a thread, until it returns, raises, times out or is told to stop.

Owns: the call with its arguments, the cancel flag, waiting with a limit. Does not own: what the end means
(``attempts``), nor what a body is told (``workflow.contexts``).
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from orchestrator.engine.running.placement import Ready
from orchestrator.engine.running.threads import Threads
from orchestrator.workflow import codec
from orchestrator.workflow.contexts import rollback_context, step_context
from orchestrator.workflow.language import binding
from orchestrator.workflow.language.config import CancelFlag, RollbackContext, StepConfig, StepContext


@dataclass(slots=True, frozen=True)
class Call:
    """A body about to run: ``start()`` calls it; ``is_async`` says that this gives a coroutine at once."""

    start: Callable[[], Any]
    is_async: bool


class Flag:
    """``ctx.cancelled``: an event whose lock is made only if a body waits for it."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: threading.Event | None = None

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        if self._event is not None:
            self._event.set()

    def wait(self, timeout: float | None = None) -> bool:
        event = self._event = self._event or threading.Event()
        return self._is_set or event.wait(timeout)


class Escaped(Exception):
    """Carries what would end the event loop (``SystemExit``, ``KeyboardInterrupt``) past it."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Body:
    """Runs one call. ``flag`` is the ``ctx.cancelled`` of its body, ``thread`` its end if it has a thread."""

    def __init__(self, threads: Threads) -> None:
        self.flag = Flag()
        self.why: str | None = None
        self.timed_out = False
        self.in_thread = False
        self.future: asyncio.Future[Any] | None = None
        self.thread: asyncio.Future[Any] | None = None
        self._threads = threads
        self._is_told = False

    async def run(self, call: Call, timeout_s: float) -> Any:
        """The call's result. Raises what it raises, ``TimeoutError`` (with ``timed_out``) after ``timeout_s``, and
        ``CancelledError`` when it was told to stop.

        A thread cannot be stopped: told to stop, it is still waited for, up to the timeout.
        """
        self.in_thread = not call.is_async
        loop = asyncio.get_running_loop()
        self.future = future = loop.create_task(self._whole(call))
        waiter = loop.create_future()
        future.add_done_callback(lambda _: _release(waiter))
        timer = loop.call_later(timeout_s, _release, waiter)
        try:
            await waiter
        finally:
            timer.cancel()
        if not future.done():
            self.timed_out = True
            self.flag.set()
            future.cancel()
            raise TimeoutError
        try:
            return future.result()
        except Escaped as escaped:
            raise escaped.error from None

    async def _whole(self, call: Call) -> Any:
        try:
            if call.is_async:
                return await call.start()
            self.thread = self._threads.submit(call.start)
            result = await asyncio.shield(self.thread)
            if isinstance(result, Awaitable):
                self.in_thread = False
                return await result
            return result
        except (SystemExit, KeyboardInterrupt) as error:
            raise Escaped(error) from error

    def cancel(self, why: str) -> None:
        """Tell the body to stop: an async one is cancelled, once, so that it may clean up; a sync one sees its flag."""
        if self.why is None:
            self.why = why
        self.flag.set()
        if self.future is not None and not self.in_thread and not self._is_told:
            self._is_told = True
            self.future.cancel()


def _release(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def needs_thread(ready: Ready) -> bool:
    """Whether the body of this attempt is sync."""
    call = ready.call
    if call is None:
        return False
    return not inspect.iscoroutinefunction(call.rollback if ready.claimed.row.kind == "rollback" else call.fn)


def call_of(ready: Ready, config: StepConfig, flag: Flag) -> Call:
    """The call of a claimed attempt, with copies of its arguments."""
    call, row = ready.call, ready.claimed.row
    assert call is not None
    if row.kind == "rollback":
        handler, argument = call.rollback, _rollback_context(ready, context_of(ready, config, flag))
        assert handler is not None
        return Call(lambda: handler(argument), inspect.iscoroutinefunction(handler))
    fn, args = call.fn, codec.copied(call.args)
    assert fn is not None
    context = context_of(ready, config, flag) if binding.may_take_context(fn) else None
    return Call(lambda: binding.call(fn, args, context), inspect.iscoroutinefunction(fn))


def context_of(ready: Ready, config: StepConfig, flag: CancelFlag) -> StepContext:
    """What a body, or a delay function, is told of its attempt."""
    claimed, call = ready.claimed, ready.call
    assert call is not None
    instance = claimed.claim.instance
    return step_context(instance, claimed.name_id, ready.definition.name, call, claimed.row, config, flag)


def _rollback_context(ready: Ready, context: StepContext) -> RollbackContext:
    claimed, call = ready.claimed, ready.call
    assert call is not None
    return rollback_context(
        claimed.claim.instance,
        call,
        claimed.row,
        context,
        output=claimed.forward_output,
        forward_attempt=claimed.forward_attempt,
        error=claimed.error if claimed.ending == "errored" else None,
    )
