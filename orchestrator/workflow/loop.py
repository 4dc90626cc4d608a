"""The deterministic event loop that workflow code runs on.

Owns: the order in which callbacks run, the identity (hash) of futures and tasks, and the refusal of everything
that is not durable. Does not own: what a step is (``replay``), nor any clock, thread, selector or I/O: it has none.

The standard ``asyncio.Task`` runs on it unchanged, so ``gather``, ``wait``, ``TaskGroup`` and helper coroutines
work as everywhere. Three details make every process agree on the order: callbacks run first in, first out;
tasks and futures hash by creation order, so sets of them iterate alike; and the loop keeps its tasks alive, so
the garbage collector takes no part.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from typing import Any, NoReturn

from orchestrator.errors import NotDurable

CALLBACKS_PER_RUN = 10_000

_inside: ContextVar[bool] = ContextVar("orchestrator_inside_workflow", default=False)


def inside_workflow() -> bool:
    """Whether the caller is workflow code (outside a step body)."""
    return _inside.get()


def workflow_context() -> Context:
    """A copy of the current context in which ``inside_workflow()`` is true."""
    context = copy_context()
    context.run(_inside.set, True)
    return context


class _Call:
    """One scheduled callback. Has the part of ``asyncio.Handle`` that callers use: ``cancel``."""

    __slots__ = ("args", "callback", "context", "dropped")

    def __init__(self, callback: Callable[..., Any], args: tuple[Any, ...], context: Context | None) -> None:
        self.callback = callback
        self.args = args
        self.context = context
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True

    def cancelled(self) -> bool:
        return self.dropped


class WorkflowTask(asyncio.Task[Any]):
    """A standard task that hashes by creation order."""

    def __init__(self, coro: Any, *, loop: WorkflowLoop, name: str | None, context: Context | None) -> None:
        self._order = loop.next_order()  # before Task.__init__, which puts the task into a WeakSet
        super().__init__(
            coro, loop=loop, name=name or f"workflow-task-{self._order & 0xFFFFF}", context=context
        )
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self._order


class StepFuture(asyncio.Future[Any]):
    """What ``step.*`` returns: hashes by creation order and tells the replay when it is cancelled."""

    def __init__(self, loop: WorkflowLoop, on_cancel: Callable[[str], None], key: str) -> None:
        super().__init__(loop=loop)
        self._order = loop.next_order()
        self._on_cancel = on_cancel
        self._key = key

    def __hash__(self) -> int:
        return self._order

    def cancel(self, msg: Any | None = None) -> bool:
        if not super().cancel(msg=msg):
            return False
        self._on_cancel(self._key)
        return True

    def set_name(self, value: object) -> None:
        """Accepted because ``TaskGroup.create_task(step.do(...))`` hands back the future itself."""

    def get_name(self) -> str:
        return self._key


class WorkflowLoop(asyncio.AbstractEventLoop):
    """FIFO of callbacks, run until idle. ``identity`` (any int) spreads hashes between loops."""

    def __init__(self, identity: int) -> None:
        # High bits tell loops apart (every task of the process shares asyncio's WeakSet of tasks), the low
        # ones count: small sets iterate in creation order.
        self._order = (identity & 0xFF_FFFF_FFFF) << 20
        self._ready: deque[_Call] = deque()
        self._tasks: dict[asyncio.Future[Any], None] = {}

    def next_order(self) -> int:
        self._order += 1
        return self._order

    def run(self, budget: int = CALLBACKS_PER_RUN) -> bool:
        """Run callbacks until none is left (true) or ``budget`` of them have run (false).

        Must be called outside any running ``asyncio.Task`` (Python 3.14 allows one current task per thread).
        """
        ready = self._ready
        outer = asyncio._get_running_loop()
        hooks = sys.get_asyncgen_hooks()
        asyncio._set_running_loop(self)
        # An abandoned async generator is dropped, not finalised whenever the collector comes by.
        sys.set_asyncgen_hooks(firstiter=None, finalizer=_drop)
        try:
            while ready and budget > 0:
                call = ready.popleft()
                if call.dropped:
                    continue
                budget -= 1
                try:
                    if call.context is None:
                        call.callback(*call.args)
                    else:
                        call.context.run(call.callback, *call.args)
                except (SystemExit, KeyboardInterrupt):
                    pass  # the task has recorded it as its exception; a workflow cannot stop its worker
        finally:
            asyncio._set_running_loop(outer)
            sys.set_asyncgen_hooks(*hooks)
        return not ready

    def close(self) -> None:
        """Forget everything scheduled and close the coroutines of unfinished tasks."""
        self._ready.clear()
        tasks, self._tasks = self._tasks, {}
        outer = asyncio._get_running_loop()
        asyncio._set_running_loop(self)  # finally: blocks run now, and must not reach the worker's own loop
        try:
            for task in tasks:
                coro = task.get_coro() if isinstance(task, asyncio.Task) else None
                if coro is not None:
                    workflow_context().run(_close_quietly, coro)
        finally:
            asyncio._set_running_loop(outer)
        self._ready.clear()

    # -- what asyncio's futures, tasks, gather, wait and TaskGroup call ------------------------------------

    def call_soon(self, callback: Any, *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        call = _Call(callback, args, context)
        self._ready.append(call)
        return call

    def create_future(self) -> asyncio.Future[Any]:
        return _PlainFuture(self)

    def create_task(
        self, coro: Any, *, name: str | None = None, context: Context | None = None, **_: Any
    ) -> Any:
        if isinstance(coro, asyncio.Future):
            return coro  # TaskGroup.create_task(step.do(...)): the step is already running
        if not isinstance(coro, (Coroutine, Generator)):
            raise TypeError(f"create_task needs a coroutine or a step, not {type(coro).__name__}.")
        if sys._getframe(1).f_code.co_name.endswith("ensure_future") and _in_as_completed():
            coro.close()
            raise NotDurable(
                "asyncio.as_completed goes through bare coroutines in memory order, which differs from replay to "
                "replay: wrap each in asyncio.create_task(...) first."
            )
        task = WorkflowTask(coro, loop=self, name=name, context=context)
        self._tasks[task] = None
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Future[Any]) -> None:
        self._tasks.pop(task, None)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return asyncio._get_running_loop() is self

    def is_closed(self) -> bool:
        return False

    def get_task_factory(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Futures report errors nobody fetched here, when they are collected: not part of any history."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.call_exception_handler(context)


class _PlainFuture(asyncio.Future[Any]):
    """A future of the loop itself, with a hash that every process agrees on."""

    def __init__(self, loop: WorkflowLoop) -> None:
        super().__init__(loop=loop)
        self._order = loop.next_order()

    def __hash__(self) -> int:
        return self._order


def _drop(generator: object) -> None:
    return None


def _close_quietly(coro: Any) -> None:
    try:
        coro.close()
    except BaseException:  # whatever a finally: block of a discarded replay does has no meaning any more
        return


def _in_as_completed() -> bool:
    frame = sys._getframe(2)
    for _ in range(4):
        if frame.f_back is None:
            return False
        frame = frame.f_back
        if frame.f_code.co_name in ("as_completed", "_AsCompletedIterator"):
            return True
    return False


_INSTEAD = {
    "call_later": "asyncio.sleep and time-outs are not durable: use `await step.sleep(name, duration)`, or the "
    "`timeout=` of the step",
    "call_at": "asyncio.timeout is not durable: use the `timeout=` of step.do or step.wait_for_event",
    "time": "the loop's clock is not durable: use `step.now()`, and the `timeout=` of step.do or "
    "step.wait_for_event instead of asyncio.timeout",
    "run_in_executor": "threads and executors are not durable: put the call into `step.do(name, fn, ...)`; "
    "a sync function runs in a thread there",
    "call_soon_threadsafe": "threads are not durable: put the work into `step.do(name, fn, ...)`",
}
_IO = "I/O is not durable in workflow code: put it into `step.do(name, fn, ...)`"


def _refusal(method: str) -> Callable[..., Any]:
    def refuse(self: WorkflowLoop, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotDurable(f"{_INSTEAD.get(method, _IO)} (workflow code called the event loop's {method}).")

    return refuse


for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("__") and _name not in WorkflowLoop.__dict__:
        setattr(WorkflowLoop, _name, _refusal(_name))
