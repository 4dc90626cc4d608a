"""Where an instance stands, and waiting for its end.

Owns: the look-up by name, the wait (in a thread or on a loop) and what its end means to who asked. Does not own: the
verbs (``instance``), the thread that waits for all (``waiters``).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.client.asking import blocked
from orchestrator.client.orchestrator import Orchestrator, offload
from orchestrator.client.records import InstanceStatus, Listed
from orchestrator.errors import (
    ErrorInfo,
    InstanceNotFound,
    RollbackStatus,
    SerializationError,
    UnknownWorkflow,
    WorkflowFailed,
    WorkflowTerminated,
)
from orchestrator.ports import monotonic
from orchestrator.workflow import codec
from orchestrator.workflow.language.definition import Definition, registry
from orchestrator.workflow.language.durations import Duration, seconds
from orchestrator.workflow.status import FINISHED, Status

if TYPE_CHECKING:
    from orchestrator.store.instances import Result


class Seen(NamedTuple):
    """The uuid of an instance, and when (monotonic) it was not finished."""

    id: str
    at: float


class Standing:
    """The part of an instance that asks. ``seen`` saves waiting for a fresh one from looking at its row before there
    are news of it.

    The version of an instance is its row's: what it returned is read by the code of that version, if that is known in
    this process, whatever version the handle came from.
    """

    listed: Listed | None = None
    """What the list knew that this handle came from; ``None`` if it came from elsewhere."""

    def __init__(
        self, definition: Definition, id: str, orchestrator: Orchestrator, seen: Seen | None = None
    ) -> None:
        self.id = id
        self._seen = seen
        self._definition = definition
        self._orchestrator = orchestrator

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

    def _awaited(self, deadline: Deadline) -> Result:
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

    async def _aawaited(self, deadline: Deadline) -> Result:
        waiters, loop = await self._orchestrator.awaiters(), asyncio.get_running_loop()
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

    def _at_the_deadline(self, deadline: Deadline) -> Result:
        row = self._found()
        if row.status not in FINISHED:
            raise TimeoutError(
                f"Instance {self.id!r} is still {row.status} after {deadline.timeout:g} seconds."
            )
        return row

    def _shown(self, row: Result) -> InstanceStatus:
        """The status for people: it also says of an instance that nobody sees to why that is."""
        status = self._standing(row, strict=False)
        if status.blocked is None and status.status not in FINISHED:
            status = replace(status, blocked=blocked.why(self._orchestrator, self._definition.name, row))
        return status

    def _standing(self, row: Result, *, strict: bool) -> InstanceStatus:
        """The status; ``strict`` raises ``SerializationError`` for an output that is not of the annotated type."""
        output = None
        if row.output is not None:
            try:
                output = codec.decode(row.output, definition_of(self._definition, row.version).return_type)
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


class Deadline:
    """When a wait of ``timeout`` from now is over; ``None`` and infinity never are, a negative number is at once.

    Raises ``InvalidConfig`` for what is no duration.
    """

    def __init__(self, timeout: Duration | None) -> None:
        self.timeout = _patience_s(timeout)
        self._at = monotonic() + self.timeout

    def left(self) -> float:
        """Seconds, as many as a lock can wait."""
        return min(max(0.0, self._at - monotonic()), threading.TIMEOUT_MAX)


def _patience_s(timeout: Duration | None) -> float:
    if timeout is None:
        return math.inf
    # What is left of a caller's own deadline may be nothing, or without an end.
    if isinstance(timeout, float) and (timeout < 0 or timeout == math.inf):
        return timeout
    if isinstance(timeout, int) and timeout < 0:
        return float(timeout)
    return seconds(timeout, what="timeout of result()")


def definition_of(known: Definition, version: str) -> Definition:
    """The code of that version of a workflow, if it is known in this process; else ``known``."""
    if known.version != version:
        with contextlib.suppress(UnknownWorkflow):
            return registry.get(known.name, version)
    return known


def _info(text: str | None) -> ErrorInfo | None:
    return None if text is None else codec.error_info(text)
