"""One attempt of one step or compensation: claim, call, time out, encode, report.

Owns: running bodies on the event loop and in threads, time-outs, cancellation, delay functions, and what a result
or error becomes. Does not own: whether there is a retry (``workflow.turn``), claims and turns (the engine thread).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from orchestrator.engine.running.bodies import Body, Flag, call_of, context_of, needs_thread
from orchestrator.engine.running.placement import Ready
from orchestrator.engine.running.threads import Threads
from orchestrator.errors import Cancelled, OrchestratorError, RollbackMissing, StepTimeout
from orchestrator.failpoints import reach
from orchestrator.ports import dice
from orchestrator.store.steps import Claim
from orchestrator.workflow import codec
from orchestrator.workflow.deciding.outcomes import unanswered
from orchestrator.workflow.execution import Outcome
from orchestrator.workflow.language.config import StepConfig
from orchestrator.workflow.language.durations import bounded

logger = logging.getLogger(__name__)

DELAY_FUNCTION_S = 5.0
DELAY_THREADS = 8
"""Delay functions have threads of their own: they must answer while every other one is in a body."""
AT_ONCE = 5000
"""Of fifty thousand bodies a tenth is asked about at a time: each of them costs."""


class Desk(Protocol):
    """The engine thread, as attempts see it."""

    async def claim(self, claim: Claim) -> Ready | None: ...
    def release(self, claim: Claim) -> None: ...
    async def report(self, claim: Claim, outcome: Outcome) -> None: ...


class Attempts:
    """Runs attempts in this process. Used from the event loop only."""

    def __init__(self, desk: Desk, threads: Threads, max_payload_bytes: int) -> None:
        self._desk = desk
        self._threads = threads
        self._delays = Threads(DELAY_THREADS, asyncio.get_running_loop())
        self._seats = asyncio.Semaphore(threads.limit)
        self._limit = max_payload_bytes
        self._active: dict[Claim, Body | None] = {}
        self._asking: set[Claim] = set()
        self._leftovers: set[asyncio.Future[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._full_said = float("-inf")
        self._asked = 0
        self.closing = False

    async def run(self, claim: Claim) -> str:
        """Run this attempt if it can be claimed; returns what became of it, in a word, for people.

        Cancelling it (a worker's *terminate*) cancels the body, which is recorded as a failed attempt.
        """
        if claim in self._active or self.closing:
            return "duplicate" if claim in self._active else "closing"
        self._active[claim] = None
        self._idle.clear()
        try:
            return await self._carry(await self._desk.claim(claim))
        finally:
            self._leave(claim)

    async def start(self, ready: Ready) -> str:
        """Run an attempt that the turn which discovered it has claimed for this process."""
        claim = ready.claimed.claim
        if claim in self._active:
            return "duplicate"
        self._active[claim] = None
        self._idle.clear()
        try:
            return await self._carry(ready)
        finally:
            self._leave(claim)

    def _leave(self, claim: Claim) -> None:
        del self._active[claim]
        if not self._active:
            self._idle.set()

    async def _carry(self, ready: Ready | None) -> str:
        """Run a claimed attempt to its record."""
        if ready is None:
            return "dropped"
        has_seat = needs_thread(ready)
        if has_seat:
            seated = await self._seated(ready)
            if seated is None:
                return "dropped"
            ready = seated
        claim = ready.claimed.claim
        try:
            outcome = await self._attempt(ready)
        finally:
            if has_seat:
                self._leave_seat(self._active[claim])
        reach("attempt.after_body")
        await self._desk.report(claim, outcome)
        return "failed" if outcome.error is not None else "done"

    @property
    def bodies(self) -> list[Claim]:
        """Attempts whose body is running."""
        return [claim for claim, body in self._active.items() if body is not None]

    def next_bodies(self) -> list[Claim]:
        """Attempts whose body is running, at most ``AT_ONCE``: one call after the other goes through all of them."""
        bodies, first = self.bodies, self._asked
        if first >= len(bodies):
            first = 0
        self._asked = first + AT_ONCE
        return bodies[first : self._asked]

    @property
    def active(self) -> int:
        return len(self._active)

    def holds(self, claim: Claim) -> bool:
        """Whether this attempt is active here."""
        return claim in self._active

    def cancel(self, claim: Claim, why: str = "cancelled") -> None:
        """Tell a body to stop; its end is reported all the same. ``why``: ``cancelled``, ``lost``,
        ``handed_back``."""
        body = self._active.get(claim)
        if body is not None:
            body.cancel(why)

    def cancel_all(self, why: str, *, sync_too: bool = True) -> None:
        for claim in self.bodies:
            body = self._active[claim]
            if body is not None and (sync_too or not body.in_thread):
                body.cancel(why)

    async def settled(self, timeout: float) -> bool:
        """Wait until nothing is active; false if that took longer than ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self._active:  # a turn that was under way may have placed another since it was idle
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    # -- seats: one per thread ------------------------------------------------------------------------------

    async def _seated(self, ready: Ready) -> Ready | None:
        """Keep the claim of a sync body only when there is a thread for it. Until then its step is left to whoever has
        one, and neither its time-out nor its deadline runs."""
        claim, kept = ready.claimed.claim, ready
        if self._seats.locked():
            self._warn_full()
            self._desk.release(claim)
            await self._seats.acquire()
            again = None
            try:
                again = None if self.closing else await self._desk.claim(claim)
            finally:
                if again is None:
                    self._seats.release()
            if again is None:
                return None
            kept = again
        else:
            await self._seats.acquire()
        return kept

    def _leave_seat(self, body: Body | None) -> None:
        """Give the seat back when the thread is free: a body that nobody waits for any more still has it."""
        if body is None or body.thread is None:
            self._seats.release()
        else:
            body.thread.add_done_callback(lambda _: self._seats.release())

    def _warn_full(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._full_said > 60:
            self._full_said = now
            logger.warning(
                "All %d threads are in sync bodies; further sync steps wait for one (ORCHESTRATOR_THREADS).",
                self._threads.limit,
            )

    # -- one attempt ---------------------------------------------------------------------------------------

    async def _attempt(self, ready: Ready) -> Outcome:
        claimed, row = ready.claimed, ready.claimed.row
        config = StepConfig.from_json(row.config or "")
        if ready.call is None:
            missing = RollbackMissing(f"Today's code gives no rollback for step {row.key!r}.")
            return self._outcome(ready, error=missing, final=True)
        body = Body(self._threads)
        self._active[claimed.claim] = body
        try:
            reach("attempt.before_body")
            value = await self._run(ready, body, config)
        except asyncio.CancelledError:
            if body.why is None:  # not told by us: the pool cancelled this very coroutine
                body.cancel("terminated")
                self._keep(body)
                return self._outcome(
                    ready, error=Cancelled(f"The task of step {row.key!r} was terminated."), delay_s=0.0
                )
            return self._cut(ready, body.why)
        except TimeoutError as error:
            if not body.timed_out:
                return await self._failed(ready, error, config)
            self._keep(body)
            late = StepTimeout(
                f"attempt {row.attempt} of step {row.key!r} took over {config.timeout_s:g} seconds"
            )
            return await self._failed(ready, late, config)
        except BaseException as error:
            return self._cut(ready, body.why) if body.why else await self._failed(ready, error, config)
        return self._returned(ready, body, value)

    async def _run(self, ready: Ready, body: Body, config: StepConfig) -> Any:
        """The body itself, up to its timeout."""
        return await body.run(call_of(ready, config, body.flag), config.timeout_s)

    def _returned(self, ready: Ready, body: Body, value: Any) -> Outcome:
        claimed, call = ready.claimed, ready.call
        if claimed.row.kind == "rollback":
            value = None  # nobody reads it, and what a handler returns must not fail it
        what = f"the result of step {claimed.row.key!r}"
        try:
            text = codec.encode(value, what=what, limit=self._limit)
            if call is not None and claimed.row.kind != "rollback" and call.annotation is not Any:
                codec.decode(text, call.annotation, what=what)
        except Exception as error:
            return self._cut(ready, body.why) if body.why else self._outcome(ready, error=error, final=True)
        return self._outcome(ready, output=text)

    async def _failed(self, ready: Ready, error: BaseException, config: StepConfig) -> Outcome:
        """An error of the body, with the delay that a delay function gives if there may be a retry."""
        final = isinstance(error, OrchestratorError) and error.ends_retries
        row, call = ready.claimed.row, ready.call
        delay = (call.rollback_delay if row.kind == "rollback" else call.delay) if call is not None else None
        if (
            final
            or delay is None
            or not config.has_delay_function
            or row.attempt - row.uncounted > config.retries_limit
        ):
            return self._outcome(ready, error=error, final=final)
        try:
            asked = await self._ask(delay, context_of(ready, config, Flag()), error)
            seconds = bounded(asked, what=f"the delay of step {row.key!r}")
        except asyncio.CancelledError:  # the task was terminated, but its attempt has failed before
            return self._outcome(ready, error=error, delay_s=0.0)
        except BaseException as refused:
            wrong = unanswered(row, error, refused)
            return self._outcome(ready, error=wrong, final=True)
        return self._outcome(ready, error=error, delay_s=seconds)

    async def answer(self, ready: Ready, outcome: Outcome) -> None:
        """Report the failure of an attempt that ran elsewhere, with the delay that today's code says."""
        claim = ready.claimed.claim
        if claim in self._asking or outcome.error is None:
            return
        self._asking.add(claim)
        try:
            error = codec.revive(outcome.error, ready.definition.error_classes)
            said = await self._failed(ready, error, StepConfig.from_json(ready.claimed.row.config or ""))
            if said.delay_s is not None:
                outcome = outcome._replace(delay_s=said.delay_s)
            else:  # no answer: that is the end of the step
                outcome = said._replace(is_reported=outcome.is_reported)
            await self._desk.report(claim, outcome)
        finally:
            self._asking.discard(claim)

    async def _ask(self, delay: Callable[..., Any], context: Any, error: BaseException) -> Any:
        """Call a delay function; it has five seconds."""
        try:
            async with asyncio.timeout(DELAY_FUNCTION_S) as limit:
                if inspect.iscoroutinefunction(delay):
                    return await delay(context, error)
                answer = await self._delays.submit(lambda: delay(context, error))
                return await answer if isinstance(answer, Awaitable) else answer
        except TimeoutError as late:  # its own, or one that the function raised
            if limit.expired():
                raise TimeoutError(f"no answer within {DELAY_FUNCTION_S:g} seconds") from late
            raise

    def _cut(self, ready: Ready, why: str) -> Outcome:
        """The end of a body that was told to stop and gave no result."""
        if why in ("lost", "handed_back"):
            return self._outcome(ready, loss=why)
        return self._outcome(ready, error=Cancelled(f"Step {ready.claimed.row.key!r} was cancelled."))

    def _outcome(self, ready: Ready, *, error: BaseException | None = None, **fields: Any) -> Outcome:
        row = ready.claimed.row
        if error is not None:
            fields["error"] = codec.encode_error(error)
            fields["traceback"] = _readable("".join(traceback.format_exception(error)))
        return Outcome(
            key=row.key,
            fence=row.fence,
            worker=row.worker,
            claimed_at=row.claimed_at,
            attempt=row.attempt,
            dice=dice(),
            **fields,
        )

    def _keep(self, body: Body) -> None:
        """A body that nobody waits for any more: it is held until it ends, and its result is discarded."""
        future = body.future
        if future is not None and not future.done():
            self._leftovers.add(future)
            future.add_done_callback(self._swept)

    def _swept(self, future: asyncio.Future[Any]) -> None:
        self._leftovers.discard(future)
        if not future.cancelled() and future.exception() is not None:
            logger.debug("A body that had timed out raised: %r", future.exception())


def _readable(text: str) -> str:
    """Text that Postgres can store."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
