"""Bodies, handlers and delay functions, run in the test's own process.

Owns: calling them with their context and copies of their arguments, the private event loop that async ones run on,
time-outs, telling them to stop, and what their end is as an ``Outcome``. Does not own: retries and records (``turns``).

A sync body is called directly, on the thread of the test. An async one is a task on a loop of the kit's own; those
that are under way at once run at once, in real time.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

from orchestrator.errors import Cancelled, OrchestratorError, RollbackMissing, StepTimeout
from orchestrator.ports import HandOut, monotonic
from orchestrator.testing.simulation.fakes import Faked
from orchestrator.testing.simulation.storage import Record
from orchestrator.workflow import codec, saga
from orchestrator.workflow.contexts import rollback_context, step_context
from orchestrator.workflow.deciding.outcomes import unanswered
from orchestrator.workflow.execution import Execution, Outcome
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language import binding
from orchestrator.workflow.language.commands import ROLLBACK, StepCall
from orchestrator.workflow.language.config import StepConfig, StepContext
from orchestrator.workflow.language.durations import bounded

T = TypeVar("T")
Ended = tuple[UUID, Outcome]

DELAY_FUNCTION_S = 5.0


class _Late(Exception):
    """The attempt took longer than its timeout."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One claimed attempt and what runs it."""

    record: Record
    row: StepRow
    call: StepCall | None
    claimed_at: float
    fake: Faked | None = None
    flag: threading.Event = field(default_factory=threading.Event)
    task: asyncio.Task[Any] | None = None
    """The body, while it is a task."""
    whole: asyncio.Task[Any] | None = None
    """Waits for the body, up to its timeout."""
    is_told: bool = False

    @property
    def config(self) -> StepConfig:
        return StepConfig.from_json(self.row.config or "")

    def context(self) -> StepContext:
        record, call = self.record, self.call
        assert call is not None
        name = record.definition.name
        return step_context(record.id, record.name_id, name, call, self.row, self.config, self.flag)


def attempt_of(record: Record, offer: HandOut, execution: Execution) -> Attempt:
    """The attempt that a hand-out is for, which was just claimed."""
    row = execution.open[offer.key]
    call = execution.replay.calls.get(saga.forward_key(offer.key))
    if row.kind == ROLLBACK and (call is None or call.rollback is None):
        call = None
    return Attempt(record, row.copy(), call, row.claimed_at or 0.0)


class Bodies:
    """Runs attempts; what has ended is in ``ended``, in the order in which it did."""

    def __init__(self) -> None:
        self.ended: deque[Ended] = deque()
        self.active: list[Attempt] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: asyncio.Future[None] | None = None

    def start(self, attempt: Attempt) -> None:
        """Run a sync body to its end, or an async one to where it first waits."""
        try:
            began = monotonic()
            result = self._faked(attempt) if attempt.fake is not None else self._called(attempt)
            if inspect.isawaitable(result):
                self._wait_for(attempt, result)
                return
            if monotonic() - began > attempt.config.timeout_s:
                raise _Late
        except (Exception, SystemExit) as error:
            self._over(attempt, self._failed(attempt, error))
        else:
            self._over(attempt, self._returned(attempt, result))

    def wait(self) -> None:
        """Wait until a body that is under way has ended, or ``ring`` was called."""
        loop = self._looped()
        bell = self._bell = loop.create_future()
        tasks = [attempt.whole for attempt in self.active if attempt.whole is not None]
        loop.run_until_complete(asyncio.wait([*tasks, bell], return_when=asyncio.FIRST_COMPLETED))
        self._bell = None
        self._collect()

    def ring(self) -> None:
        """Something changed that bodies are not to be waited for. May be called from any thread."""
        bell = self._bell
        if bell is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(_settle, bell)

    def revoke(self, record: Record | None, id: UUID) -> None:
        """Tell those bodies of an instance to stop whose steps are not theirs any more; ``None``: it was deleted."""
        for attempt in self.active:
            row = record.steps.get(attempt.row.key) if record is not None else None
            lost = row is None or row.status != "running" or row.fence != attempt.row.fence
            if attempt.record.id == id and lost and not attempt.is_told:
                attempt.is_told = True
                attempt.flag.set()
                if attempt.task is not None and self._loop is not None:
                    self._loop.call_soon_threadsafe(attempt.task.cancel)

    def close(self) -> None:
        """Cancel what is under way, and close the loop."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=1.0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    # -- calling -------------------------------------------------------------------------------------------

    def _called(self, attempt: Attempt) -> Any:
        call, row = attempt.call, attempt.row
        if call is None:
            raise RollbackMissing(f"Today's code gives no rollback for step {row.key!r}.")
        self.active.append(attempt)
        context = contextvars.copy_context()
        if row.kind == ROLLBACK:
            assert call.rollback is not None
            return context.run(call.rollback, self._rollback(attempt, call))
        assert call.fn is not None
        needs = binding.may_take_context(call.fn)
        args = codec.copied(call.args)
        return context.run(binding.call, call.fn, args, attempt.context() if needs else None)

    def _rollback(self, attempt: Attempt, call: StepCall) -> Any:
        record = attempt.record
        forward = record.steps[saga.forward_key(attempt.row.key)]
        return rollback_context(
            record.id,
            call,
            attempt.row,
            attempt.context(),
            output=forward.output,
            forward_attempt=forward.attempt,
            error=record.error if record.ending == "errored" else None,
        )

    def _faked(self, attempt: Attempt) -> Any:
        fake = attempt.fake
        assert fake is not None
        if fake.has_value:
            return fake.value
        raise _Late if fake.error is None else fake.error

    def _wait_for(self, attempt: Attempt, awaitable: Awaitable[Any]) -> None:
        loop = self._looped()
        attempt.whole = loop.create_task(self._limited(attempt, awaitable))
        loop.run_until_complete(asyncio.wait([attempt.whole], timeout=0))
        self._collect()

    async def _limited(self, attempt: Attempt, awaitable: Awaitable[Any]) -> Any:
        attempt.task = asyncio.get_running_loop().create_task(_body(awaitable))
        done, _ = await asyncio.wait([attempt.task], timeout=attempt.config.timeout_s)
        if not done:
            attempt.flag.set()
            attempt.task.cancel()
            raise _Late
        return attempt.task.result()

    def _collect(self) -> None:
        """Take the ends of the tasks that are done, in the order in which their bodies were started."""
        for attempt in [each for each in self.active if each.whole is not None and each.whole.done()]:
            assert attempt.whole is not None
            try:
                value = attempt.whole.result()
            except asyncio.CancelledError:
                text = f"Step {attempt.row.key!r} was cancelled."
                self._over(attempt, self._outcome(attempt, error=Cancelled(text)))
            except _Escaped as escaped:
                self._over(attempt, self._failed(attempt, escaped.error))
            except Exception as error:
                self._over(attempt, self._failed(attempt, error))
            else:
                self._over(attempt, self._returned(attempt, value))

    # -- what an end means -----------------------------------------------------------------------------------

    def _over(self, attempt: Attempt, outcome: Outcome) -> None:
        if attempt in self.active:
            self.active.remove(attempt)
        self.ended.append((attempt.record.id, outcome))

    def _returned(self, attempt: Attempt, value: Any) -> Outcome:
        call, row = attempt.call, attempt.row
        if row.kind == ROLLBACK:
            value = None  # nobody reads it
        what = f"the result of step {row.key!r}"
        try:
            text = codec.encode(value, what=what)
            if call is not None and row.kind != ROLLBACK and call.annotation is not Any:
                codec.decode(text, call.annotation, what=what)
        except Exception as error:
            return self._outcome(attempt, error=error, final=True)
        return self._outcome(attempt, output=text)

    def _failed(self, attempt: Attempt, error: BaseException) -> Outcome:
        call, row, config = attempt.call, attempt.row, attempt.config
        if isinstance(error, _Late):
            error = StepTimeout(
                f"attempt {row.attempt} of step {row.key!r} took over {config.timeout_s:g} seconds"
            )
        final = (isinstance(error, OrchestratorError) and error.ends_retries) or call is None
        delay = None
        if call is not None:
            delay = call.rollback_delay if row.kind == ROLLBACK else call.delay
        last = row.attempt - row.uncounted > config.retries_limit
        if final or delay is None or not config.has_delay_function or last:
            return self._outcome(attempt, error=error, final=final)
        try:
            asked = self._asked(delay, attempt.context(), error)
            seconds = bounded(asked, what=f"the delay of step {row.key!r}")
        except Exception as refused:
            return self._outcome(attempt, error=unanswered(row, error, refused), final=True)
        return self._outcome(attempt, error=error, delay_s=seconds)

    def _asked(self, delay: Callable[..., Any], context: StepContext, error: BaseException) -> Any:
        """What a delay function answers. A sync one cannot be cut short here; it fails for having been too slow."""
        began, is_late = monotonic(), False
        answer = delay(context, error)
        if inspect.isawaitable(answer):
            task = self._looped().create_task(_body(answer))
            done, _ = self._looped().run_until_complete(asyncio.wait([task], timeout=DELAY_FUNCTION_S))
            is_late = not done
            answer = task.result() if done else task.cancel()
        if is_late or monotonic() - began > DELAY_FUNCTION_S:
            raise TimeoutError(f"no answer within {DELAY_FUNCTION_S:g} seconds")
        return answer

    def _outcome(self, attempt: Attempt, *, error: BaseException | None = None, **fields: Any) -> Outcome:
        row = attempt.row
        if error is not None:
            fields["error"] = codec.encode_error(error)
            fields["traceback"] = "".join(traceback.format_exception(error))
        return Outcome(row.key, row.fence, claimed_at=attempt.claimed_at, attempt=row.attempt, **fields)

    def _looped(self) -> asyncio.AbstractEventLoop:
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.new_event_loop()
        return self._loop


class _Escaped(Exception):
    """Carries a ``SystemExit`` past the event loop."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


async def _body(awaitable: Awaitable[T]) -> T:
    try:
        return await awaitable
    except SystemExit as error:
        raise _Escaped(error) from error


def _settle(bell: asyncio.Future[None]) -> None:
    if not bell.done():
        bell.set_result(None)
