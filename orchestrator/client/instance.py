"""``WorkflowInstance``: the verbs on one instance.

Owns: status, result, events, steps, termination as an application sees them. Does not own: what they mean
(``workflow``) or the rows (``store``).
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.client.orchestrator import Orchestrator, check_outside, offload
from orchestrator.client.records import InstanceStatus, StepRecord
from orchestrator.errors import (
    ErrorInfo,
    InstanceNotFound,
    RollbackStatus,
    SerializationError,
    WorkflowFailed,
    WorkflowTerminated,
)
from orchestrator.ports import monotonic
from orchestrator.workflow import codec
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.language.names import check_event_type
from orchestrator.workflow.status import FINISHED, Status

if TYPE_CHECKING:
    from orchestrator.store.instances import Result

AT_HAND = 64 * 1024
"""Bytes of an output that are decoded on the caller's event loop; longer ones in a thread."""


class Seen(NamedTuple):
    """The uuid of an instance, and when (monotonic) it was not finished."""

    id: str
    at: float


class WorkflowInstance:
    """One instance, addressed by its id. Holds no state: every call asks Postgres.

    ``seen`` saves ``result()`` of a fresh instance from looking at its row before there are news of it.
    """

    def __init__(
        self, definition: Definition, id: str, orchestrator: Orchestrator, seen: Seen | None = None
    ) -> None:
        self.id = id
        self._seen = seen
        self._definition = definition
        self._orchestrator = orchestrator

    def __repr__(self) -> str:
        return f"<instance {self.id!r} of workflow {self._definition.name!r}>"

    # -- asking ----------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is such an instance (still)."""
        return self._find() is not None

    def status(self) -> InstanceStatus:
        """Where the instance stands. An output that does not fit the workflow's return annotation of today is given
        as plain JSON values. Raises ``InstanceNotFound``."""
        check_outside("status")
        return self._standing(self._found(), strict=False)

    async def astatus(self) -> InstanceStatus:
        """``status`` for asyncio."""
        check_outside("astatus")
        return await offload(self.status)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the typed output. ``timeout`` is in seconds.

        Raises ``WorkflowFailed`` (with ``.error`` and ``.rollback``), ``WorkflowTerminated``, ``TimeoutError``,
        ``InstanceNotFound``, and ``SerializationError`` if the output does not fit today's return annotation.
        """
        check_outside("result")
        return self._ended(self._awaited(_Deadline(timeout)))

    async def aresult(self, timeout: float | None = None) -> Any:
        """``result`` for asyncio: no thread waits meanwhile."""
        check_outside("aresult")
        row = await self._aawaited(_Deadline(timeout))
        if len(row.output or "") > AT_HAND:
            return await offload(self._ended, row)
        return self._ended(row)

    def steps(self) -> list[StepRecord]:
        """The recorded steps, in the order they started. Raises ``InstanceNotFound``."""
        check_outside("steps")
        from orchestrator.client.history import step_records
        from orchestrator.store import steps
        from orchestrator.store.session import transaction

        found = self._found()
        with transaction(self._orchestrator.engine) as connection:
            rows = steps.of_instance(connection, found.id)
            attempts = steps.failed_attempts(connection, found.id)
        return step_records(rows, attempts)

    async def asteps(self) -> list[StepRecord]:
        """``steps`` for asyncio."""
        check_outside("asteps")
        return await offload(self.steps)

    # -- steering --------------------------------------------------------------------------------------------

    def send_event(self, type: str, payload: Any = None) -> None:
        """Send an event; it is kept until a wait of that type consumes it.

        Raises ``InvalidName``, ``InstanceNotFound``, ``InvalidTransition`` if the instance is finished,
        ``SerializationError``, ``PayloadTooLarge``.
        """
        check_outside("send_event")
        from orchestrator.store import events

        check_event_type(type)
        where = self._orchestrator
        text = codec.encode(payload, what=f"event {type!r}", limit=where.settings.max_payload_bytes)
        now = where.now()
        unknown = "The request may have got there: it is unknown whether the event was stored."
        with where.lanes.statement("The event was not stored.", unknown) as connection:
            instance, is_awaited = events.append(
                connection, where.settings.account, self._definition.name, self.id, type, text, now
            )
        if is_awaited:
            where.hint([instance])

    async def asend_event(self, type: str, payload: Any = None) -> None:
        """``send_event`` for asyncio."""
        check_outside("asend_event")
        await offload(self.send_event, type, payload)

    def terminate(self, rollback: bool = False) -> None:
        """Stop the instance: running bodies are cancelled, nothing they return is recorded. With ``rollback``,
        compensation runs first.

        Raises ``InstanceNotFound``, and ``InvalidTransition`` if it is finished or rolling back already.
        """
        check_outside("terminate")
        from orchestrator.client.steering import terminate
        from orchestrator.store.session import transaction

        where = self._orchestrator
        unknown = "That was in the commit: it is unknown whether the instance was terminated."
        with transaction(where.engine, "The instance was not terminated.", unknown) as connection:
            ended = terminate(
                connection,
                where.settings.account,
                self._definition,
                self.id,
                where.now(),
                rollback=rollback,
            )
        if ended.again:
            where.hint([ended.id])
        else:
            where.news.announce([ended.id])

    async def aterminate(self, rollback: bool = False) -> None:
        """``terminate`` for asyncio."""
        check_outside("aterminate")
        await offload(self.terminate, rollback)

    # -- inside ----------------------------------------------------------------------------------------------

    def _find(self) -> Result | None:
        from orchestrator.store import instances

        where = self._orchestrator
        with where.lanes.statement() as connection:
            return instances.result(connection, where.settings.account, self._definition.name, self.id)

    def _found(self) -> Result:
        at = monotonic()
        found = self._find()
        if found is None:
            raise InstanceNotFound(self.id)
        self._seen = Seen(str(found.id), float("-inf") if found.status in FINISHED else at)
        return found

    def _awaited(self, deadline: _Deadline) -> Result:
        """The row of the instance once it is finished. Raises ``TimeoutError``."""
        waiters = self._orchestrator.waiters
        while True:
            seen = self._seen
            if seen is None:
                if (row := self._found()).status in FINISHED:
                    return row
                continue
            answer = waiters.register(seen.id)
            try:
                if not waiters.is_unfinished(*seen) and (row := self._found()).status in FINISHED:
                    return row
                ended = answer.result(deadline.left())
            except TimeoutError:
                return self._at_the_deadline(deadline)
            finally:
                waiters.leave(seen.id, answer)
            if ended is not None:
                return ended
            self._seen = None  # gone; there may be another of its name

    async def _aawaited(self, deadline: _Deadline) -> Result:
        waiters, loop = self._orchestrator.waiters, asyncio.get_running_loop()
        while True:
            seen = self._seen
            if seen is None:
                if (row := await offload(self._found)).status in FINISHED:
                    return row
                continue
            answer = waiters.register(seen.id)
            coming = asyncio.wrap_future(answer)
            try:
                if not waiters.is_unfinished(*seen):
                    waiters.ask_aside(seen.id, loop)
                await asyncio.wait((coming,), timeout=deadline.left())
                if not coming.done():
                    return await offload(self._at_the_deadline, deadline)
                ended = coming.result()
            finally:
                coming.cancel()
                waiters.leave(seen.id, answer)
            if ended is not None:
                return ended
            self._seen = None

    def _at_the_deadline(self, deadline: _Deadline) -> Result:
        row = self._found()
        if row.status not in FINISHED:
            raise TimeoutError(
                f"Instance {self.id!r} is still {row.status} after {deadline.timeout:g} seconds."
            )
        return row

    def _standing(self, row: Result, *, strict: bool) -> InstanceStatus:
        """The status; ``strict`` raises ``SerializationError`` for an output that is not of the annotated type."""
        output = None
        if row.output is not None:
            try:
                output = codec.decode(row.output, self._definition.return_type)
            except SerializationError:
                if strict:
                    raise
                output = codec.decode(row.output)
        return InstanceStatus(
            Status(row.status),
            output,
            _info(row.error),
            None if row.rollback is None else RollbackStatus.of(codec.decode(row.rollback)),
            _info(row.blocked),
        )

    def _ended(self, row: Result) -> Any:
        status = self._standing(row, strict=True)
        if status.status is Status.COMPLETE:
            return status.output
        if status.status is Status.TERMINATED:
            raise WorkflowTerminated(self.id, status.rollback)
        raise WorkflowFailed(self.id, status.error or ErrorInfo("Error", ""), status.rollback)


class _Deadline:
    """When a wait of ``timeout`` seconds from now is over; ``None`` never is."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout if timeout is not None else float("inf")
        self._at = monotonic() + self.timeout

    def left(self) -> float:
        """Seconds, as many as a lock can wait."""
        return min(max(0.0, self._at - monotonic()), threading.TIMEOUT_MAX)


def _info(text: str | None) -> ErrorInfo | None:
    return None if text is None else codec.error_info(text)
