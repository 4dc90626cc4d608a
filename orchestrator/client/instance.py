"""``WorkflowInstance``: the verbs on one instance.

Owns: status, result, events, steps, termination as an application sees them. Does not own: what they mean
(``workflow``) or the rows (``store``).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

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
from orchestrator.ports import monotonic, pause
from orchestrator.workflow import codec
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.language.names import check_event_type
from orchestrator.workflow.status import FINISHED, Status

if TYPE_CHECKING:
    from orchestrator.store.instances import Result

POLL_S = 1.0
"""News come by Redis; without them Postgres is asked this often."""


class WorkflowInstance:
    """One instance, addressed by its id. Holds no state: every call asks Postgres."""

    def __init__(self, definition: Definition, id: str, orchestrator: Orchestrator) -> None:
        self.id = id
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
        return self._standing(strict=False)

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
        deadline = None if timeout is None else monotonic() + timeout
        status = self._standing()
        if status.status in FINISHED:
            return self._ended(status)
        instance = self._found().id
        with self._orchestrator.news.listening() as listener:
            while (status := self._standing()).status not in FINISHED:
                left = POLL_S if deadline is None else deadline - monotonic()
                if left <= 0:
                    raise TimeoutError(
                        f"Instance {self.id!r} is still {status.status} after {timeout:g} seconds."
                    )
                until = monotonic() + min(POLL_S, left)
                while not listener.heard(instance, max(0.0, until - monotonic())):
                    if monotonic() >= until:
                        break
                    if not listener.is_well:
                        pause(min(0.2, max(0.0, until - monotonic())))
        return self._ended(status)

    async def aresult(self, timeout: float | None = None) -> Any:
        """``result`` for asyncio: no thread waits meanwhile."""
        check_outside("aresult")
        deadline = None if timeout is None else monotonic() + timeout
        delay = 0.01
        while (status := await offload(self._standing)).status not in FINISHED:
            left = POLL_S if deadline is None else deadline - monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"Instance {self.id!r} is still {status.status} after {timeout:g} seconds."
                )
            await asyncio.sleep(min(delay, left))
            delay = min(delay * 1.5, POLL_S / 2)
        return self._ended(status)

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
        from orchestrator.store.session import transaction

        check_event_type(type)
        where = self._orchestrator
        text = codec.encode(payload, what=f"event {type!r}", limit=where.settings.max_payload_bytes)
        unknown = "That was in the commit: it is unknown whether the event was stored."
        with transaction(where.engine, "The event was not stored.", unknown) as connection:
            instance, is_awaited = events.append(
                connection,
                where.settings.account,
                self._definition.name,
                self.id,
                type,
                text,
                where.now(),
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
        from orchestrator.store.session import transaction

        where = self._orchestrator
        with transaction(where.engine) as connection:
            return instances.result(connection, where.settings.account, self._definition.name, self.id)

    def _found(self) -> Result:
        found = self._find()
        if found is None:
            raise InstanceNotFound(self.id)
        return found

    def _standing(self, *, strict: bool = True) -> InstanceStatus:
        """The status; ``strict`` raises ``SerializationError`` for an output that is not of the annotated type."""
        found = self._found()
        output = None
        if found.output is not None:
            try:
                output = codec.decode(found.output, self._definition.return_type)
            except SerializationError:
                if strict:
                    raise
                output = codec.decode(found.output)
        return InstanceStatus(
            Status(found.status),
            output,
            _info(found.error),
            None if found.rollback is None else RollbackStatus.of(codec.decode(found.rollback)),
            _info(found.blocked),
        )

    def _ended(self, status: InstanceStatus) -> Any:
        if status.status is Status.COMPLETE:
            return status.output
        if status.status is Status.TERMINATED:
            raise WorkflowTerminated(self.id, status.rollback)
        raise WorkflowFailed(self.id, status.error or ErrorInfo("Error", ""), status.rollback)


def _info(text: str | None) -> ErrorInfo | None:
    return None if text is None else codec.error_info(text)
