"""The asyncio pool: native tasks as coroutines on one event loop, all other tasks in threads, in one process.

Owns: the event loop and its thread, the slots of native tasks, the threads of stock tasks, how callbacks travel
back to Celery's own thread, and the order of a shutdown. Does not own: what a task does, its timeout, nor what is
flushed before the loop ends (whoever needs that sets :attr:`TaskPool.drain`).

Set it with ``worker_pool = "orchestrator.dispatch.pool:TaskPool"``. A native task bypasses Celery's tracer: no
result is stored, and of the task signals only ``task_received``, ``task_revoked`` and ``task_failure`` are sent.
Events, acknowledgement, ``active_requests``, revocation and statistics are those of any other pool.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar

from billiard.einfo import ExceptionInfo
from celery import signals
from celery.concurrency.base import BasePool
from celery.exceptions import Terminated, WorkerLostError
from celery.utils.log import get_logger
from celery.utils.saferepr import saferepr
from celery.worker import state

from orchestrator.dispatch.outbox import Outbox
from orchestrator.ports import monotonic

logger = get_logger(__name__)

_CANCEL_PATIENCE_S = 5.0
"""How long a cancelled body may clean up before the loop ends under it."""
LoopHook = Callable[[asyncio.AbstractEventLoop], None]


class _Job:
    """One task on its way through the pool; Celery keeps a weak reference to it in order to terminate it."""

    __slots__ = (
        "__weakref__", "accept", "args", "callback", "entered", "future", "id", "kwargs", "pid", "pool", "raw", "task",
        "terminated",
    )  # fmt: skip

    def __init__(self, pool: TaskPool, pid: int, accept: Any, callback: Any, task: Any, id: str) -> None:
        self.pool = pool
        self.pid = pid
        self.accept = accept
        self.callback = callback
        self.task = task
        self.id = id
        self.args: Any = ()
        self.kwargs: Any = {}
        self.future: asyncio.Task[None] | Future[None] | None = None
        self.raw = False  # the callback wants the value itself, not its text
        self.entered = self.terminated = False

    def terminate(self, signal: int | None = None) -> None:
        self.pool.terminate_job(self.pid, signal)

    def succeeded(self, value: Any, runtime: float) -> None:
        if self.terminated:  # the body caught its cancellation; for Celery it is revoked all the same
            self.failed(Terminated("terminated"), runtime)
        elif self.raw or value is None:
            self.callback((False, value if self.raw else "None", runtime))
        else:
            self.callback((False, saferepr(value, self.task.resultrepr_maxsize), runtime))

    def failed(self, error: BaseException, runtime: float) -> None:
        if self.terminated:
            self.callback((True, _terminated(), runtime))
            return
        if isinstance(error, SystemExit | KeyboardInterrupt):
            error = _raised(WorkerLostError(repr(error)), error)
        info = _einfo(error)
        self._announce(error, info)
        self.callback((True, info, runtime))

    def _announce(self, error: BaseException, info: ExceptionInfo) -> None:
        if isinstance(error, self.task.throws):
            logger.info("Task %s[%s] raised expected: %r", self.task.name, self.id, error)
        else:
            logger.error("Task %s[%s] raised: %r", self.task.name, self.id, error, exc_info=error)
        signals.task_failure.send(
            sender=self.task, task_id=self.id, exception=error, args=self.args, kwargs=self.kwargs,
            traceback=error.__traceback__, einfo=info,
        )  # fmt: skip


class TaskPool(BasePool):  # type: ignore[misc, unused-ignore]
    """Runs native tasks by thousands on one event loop, and every other task in a thread, as Celery would.

    Set before the worker starts (a worker bootstep that requires ``celery.worker.components:Pool``):
    ``on_loop_start``, called in the loop's thread with the running loop, an error there stops the worker;
    ``drain``, awaited on the loop when the worker stops, after the consumer has been cancelled and while
    callbacks are still delivered. It decides how long bodies may still run; those left after it are cancelled.
    """

    signal_safe = False
    threads: int = 64
    """Stock tasks that run at once."""
    grace: float = 25.0
    """Seconds that running native tasks get at a warm shutdown where nobody has set ``drain``."""

    current: ClassVar[TaskPool | None] = None
    """The pool that runs in this process, for those whom Celery does not hand it (a transport)."""
    limit: int
    app: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.on_loop_start: list[LoopHook] = []
        self.drain: Callable[[], Awaitable[None]] | None = None
        self.cut: Callable[[], None] | None = None
        """Called on the loop at a cold shutdown: puts back what runs; cancelling it would count as its failure."""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._outbox = Outbox()
        self._inbox: deque[_Job] = deque()
        self._called = self._closing = self._stopping = False
        self.is_awaited = False
        self._pids = itertools.count(1)
        self._jobs: dict[int, _Job] = {}
        self._waiting: deque[_Job] = deque()
        self._running = 0

    # What Celery calls, in its own thread (``on_apply`` and ``post`` may be called from any thread)

    def on_start(self) -> None:
        started: Future[None] = Future()
        self._executor = ThreadPoolExecutor(self.threads, "orchestrator-task")
        self._thread = threading.Thread(
            target=self._spin, args=(started,), name="orchestrator-loop", daemon=True
        )
        self._thread.start()
        started.result()
        TaskPool.current = self

    def register_with_event_loop(self, loop: Any) -> None:
        self._outbox.hub = loop

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = (),
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        **_: Any,
    ) -> _Job:
        """Start a task. ``args`` are those of Celery's tracer: name, id, request, body, its type and encoding."""
        task = self.app.tasks[args[0]]
        job = _Job(self, next(self._pids), accept_callback, callback, task, args[1])
        self._jobs[job.pid] = job
        if getattr(task, "native", False):
            request = args[2]
            job.args, job.kwargs = request["args"], request["kwargs"]
            self._inbox.append(job)
            self._call()
        else:
            job.future = self._executor.submit(self._trace, job, target, args, kwargs or {})
            job.future.add_done_callback(self._outbox.wake)
        return job

    def enter(self, task: Any, id: str, args: Any, kwargs: Any, accept: Any, callback: Any) -> _Job:
        """Start a native task; ``callback`` is given the value that it returns, not its text."""
        job = _Job(self, next(self._pids), accept, callback, task, id)
        job.args, job.kwargs, job.raw = args, kwargs, True
        self._jobs[job.pid] = job
        self._inbox.append(job)
        self._call()
        return job

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wake the loop once for all tasks that enter meanwhile: a wake-up costs this thread the interpreter."""
        self._called = True
        try:
            yield
        finally:
            self._called = False  # whatever it was: `_take` may have run meanwhile, and one more does no harm
            self._call()

    def post(self, function: Callable[..., Any], *args: Any) -> None:
        """Call ``function`` in Celery's thread soon, after everything posted before it."""
        self._outbox.post(function, *args)

    def vacated(self) -> None:
        """A slot was freed that Celery does not know of: wake it if it waits for one (``is_awaited``)."""
        if self.is_awaited:
            self.is_awaited = False
            self._outbox.wake()

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Cancel the native task accepted under ``pid``. A stock task can only be stopped before it begins."""
        job = self._jobs.get(pid)
        if job is None or self.loop is None:
            return
        if not isinstance(job.future, Future):
            self.loop.call_soon_threadsafe(self._terminate, job)
        elif job.future.cancel():
            del self._jobs[pid]
            job.terminated = True
            self.post(job.failed, Terminated("terminated"), 0.0)
        else:
            raise NotImplementedError("a task that runs in a thread cannot be terminated")

    def grow(self, n: int = 1) -> None:
        self.limit += n
        self._call()
        self.vacated()

    def shrink(self, n: int = 1) -> None:
        self.limit = max(1, self.limit - n)

    def _get_info(self) -> dict[str, Any]:
        waiting = len(self._waiting) + len(self._inbox)
        return {**super()._get_info(), "running": self._running, "waiting": waiting, "threads": self.threads}

    # The end. Celery has cancelled its consumer and still holds its connections, but no longer spins its hub.

    def on_close(self) -> None:
        self._closing = True

    def on_stop(self) -> None:
        self._finish(self._drained)

    def on_terminate(self) -> None:
        self._finish(self._cancelled)

    def _finish(self, farewell: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if self.loop is None or self._thread is None or self._stopping:
            return
        TaskPool.current = None
        self._closing = self._stopping = True
        warm = farewell == self._drained
        # At a cold shutdown Celery stops the pool from within its signal handler.
        self._outbox.take_over(spin=warm and not state.should_terminate)
        done = asyncio.run_coroutine_threadsafe(farewell(), self.loop)
        done.add_done_callback(self._outbox.wake)
        # Tasks that have not begun are not acknowledged: their messages go back to the queue.
        self._executor.shutdown(wait=False, cancel_futures=True)
        while not done.done() or (warm and self._threads_busy()):
            self._outbox.wait()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CANCEL_PATIENCE_S)
        self._outbox.deliver()
        if self._thread.is_alive():
            logger.error("the event loop is blocked by a task and was left behind")

    def _threads_busy(self) -> bool:
        jobs = list(self._jobs.values())
        return any(isinstance(job.future, Future) and not job.future.done() for job in jobs)

    async def _drained(self) -> None:
        self._take()
        try:
            await (self._settled(self.grace) if self.drain is None else self.drain())
        except Exception:
            logger.exception("draining the pool failed")
        await self._cancelled()

    async def _cancelled(self) -> None:
        self._take()
        for job in list(self._jobs.values()):
            if isinstance(job.future, asyncio.Task):
                self._terminate(job)
        await self._settled(_CANCEL_PATIENCE_S)

    async def _settled(self, timeout: float) -> None:
        tasks = [job.future for job in self._jobs.values() if isinstance(job.future, asyncio.Task)]
        if tasks:
            await asyncio.wait(tasks, timeout=timeout)

    # In the loop's thread

    def _spin(self, started: Future[None]) -> None:
        loop = self.loop = _new_loop()
        asyncio.set_event_loop(loop)
        loop.call_soon(self._opened, started)
        try:
            loop.run_forever()
        finally:
            rest = asyncio.all_tasks(loop)
            for task in rest:
                task.cancel()
            if rest:
                loop.run_until_complete(asyncio.wait(rest, timeout=1.0))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _opened(self, started: Future[None]) -> None:
        assert self.loop is not None
        try:
            for hook in self.on_loop_start:
                hook(self.loop)
        except BaseException as error:  # on_start raises it
            started.set_exception(error)
        else:
            started.set_result(None)

    def _call(self) -> None:
        if self.loop is not None and not self._called:
            self._called = True
            self.loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        self._called = False
        while self._inbox:
            self._waiting.append(self._inbox.popleft())
        self._fill()

    def _fill(self) -> None:
        assert self.loop is not None
        while self._waiting and self._running < self.limit and not self._closing:
            job = self._waiting.popleft()
            self._running += 1
            job.future = self.loop.create_task(self._attend(job))

    async def _attend(self, job: _Job) -> None:
        job.entered = True
        began = monotonic()
        self.post(job.accept, job.pid, began)
        try:
            if job.terminated:
                raise Terminated("terminated")
            value = await job.task.run(*job.args, **job.kwargs)
        except BaseException as error:  # a SystemExit must not reach the loop: it would end it
            self.post(job.failed, error, monotonic() - began)
        else:
            self.post(job.succeeded, value, monotonic() - began)
        finally:
            self._running -= 1
            del self._jobs[job.pid]
            self._fill()

    def _terminate(self, job: _Job) -> None:
        if job.terminated or job.pid not in self._jobs:
            return
        self._take()
        job.terminated = True
        if job.future is None:
            self._waiting.remove(job)
            del self._jobs[job.pid]
            self.post(job.failed, Terminated("terminated"), 0.0)
        elif job.entered:  # else it has not begun, and a cancelled coroutine that has not begun says nothing
            job.future.cancel()

    # In a thread of the executor

    def _trace(self, job: _Job, target: Callable[..., Any], args: Any, kwargs: Any) -> None:
        began = monotonic()
        self.post(job.accept, job.pid, began)
        try:
            outcome = target(*args, **kwargs)
        except BaseException as error:  # the tracer itself failed, or a Reject passed through it
            self.post(job.failed, error, monotonic() - began)
        else:
            self.post(job.callback, outcome)
        finally:
            del self._jobs[job.pid]


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _raised(error: BaseException, cause: BaseException | None) -> BaseException:
    try:
        raise error from cause
    except BaseException as raised:
        return raised


@cache
def _terminated() -> ExceptionInfo:
    """One for all: Celery reads no more than its class, and a shutdown may cancel thousands."""
    return _einfo(_raised(Terminated("terminated"), None))


def _einfo(error: BaseException) -> ExceptionInfo:
    """What Celery wants to know of a failure, without the pool's own frame where there is another below it."""
    trace = error.__traceback__
    if trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    info = ExceptionInfo((type(error), error, trace))
    info.exception = error  # not billiard's wrapper for another process: its repr hides the error
    return info
