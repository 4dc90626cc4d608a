"""``WorkflowInstance``: the verbs on one instance.

Owns: status, result, events, steps, termination as an application sees them. Does not own: what they mean
(``workflow``) or the rows (``store``).
"""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from typing import Any
from uuid import UUID

from orchestrator.client.asking.standing import Deadline, Standing
from orchestrator.client.asking.subscription import AsyncSubscription, Subscription
from orchestrator.client.orchestrator import check_outside, offload
from orchestrator.client.records import AuditRecord, InstanceStatus, StepRecord
from orchestrator.errors import InstanceNotFound, InvalidConfig
from orchestrator.workflow import codec
from orchestrator.workflow.language.durations import Duration
from orchestrator.workflow.language.names import check_event_type

_NOT_STORED = "The event was not stored."
AT_HAND = 64 * 1024
"""Bytes of an output that are decoded on the caller's event loop; longer ones in a thread."""


class WorkflowInstance(Standing):
    """One instance, addressed by its id. Holds no state: every call asks Postgres.

    ``seen`` saves ``result()`` of a fresh instance from looking at its row before there are news of it.
    """

    def __repr__(self) -> str:
        return f"<instance {self.id!r} of workflow {self._definition.name!r}>"

    # -- asking ----------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is such an instance (still)."""
        check_outside("exists")
        return self._find() is not None

    async def aexists(self) -> bool:
        """``exists`` for asyncio."""
        check_outside("aexists")
        return await offload(self.exists)

    def status(self) -> InstanceStatus:
        """Where the instance stands. An output that does not fit the workflow's return annotation of today is given
        as plain JSON values. Raises ``InstanceNotFound``."""
        check_outside("status")
        return self._shown(self._found())

    async def astatus(self) -> InstanceStatus:
        """``status`` for asyncio."""
        check_outside("astatus")
        return await offload(self.status)

    def result(self, timeout: Duration | None = None) -> Any:
        """Wait for the end and return the typed output. ``timeout`` is a duration; ``None`` waits for ever.

        Raises ``WorkflowFailed`` (with ``.error`` and ``.rollback``), ``WorkflowTerminated``, ``TimeoutError``,
        ``InstanceNotFound``, ``SerializationError`` if the output does not fit today's return annotation, and
        ``InvalidConfig`` for what is no duration.
        """
        check_outside("result")
        return self._ended(self._awaited(Deadline(timeout)))

    async def aresult(self, timeout: Duration | None = None) -> Any:
        """``result`` for asyncio: no thread waits meanwhile."""
        check_outside("aresult")
        row = await self._aawaited(Deadline(timeout))
        if len(row.output or "") > AT_HAND:
            return await offload(self._ended, row)
        return self._ended(row)

    def steps(self) -> list[StepRecord]:
        """The recorded steps, in the order they started. Raises ``InstanceNotFound``."""
        check_outside("steps")
        from orchestrator.client.asking.history import step_records
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

    def export_history(self, *, include_sensitive: bool = False) -> dict[str, Any]:
        """The history as a JSON-able document, for ``orchestrator.testing.replay_history``. Outputs of sensitive steps
        are in it only with ``include_sensitive``; without them it cannot be replayed. Raises ``InstanceNotFound``."""
        check_outside("export_history")
        from orchestrator.client.asking import exported

        found = exported.of_instance(self._orchestrator, self._uuid(), include_sensitive=include_sensitive)
        if found is None:
            raise InstanceNotFound(self.id)
        return found

    async def aexport_history(self, *, include_sensitive: bool = False) -> dict[str, Any]:
        """``export_history`` for asyncio."""
        check_outside("aexport_history")
        return await offload(self.export_history, include_sensitive=include_sensitive)

    def subscribe(self, cursor: int | None = None, types: Iterable[str] | None = None) -> Subscription:
        """What happened to the instance, from the beginning or from the event of that ``event_id`` on (exclusive), and
        then as it happens: an iterator that ends with the instance, also if ``types`` leaves its last event out.

        Raises ``InstanceNotFound`` (also later, if it is deleted), and ``InvalidConfig`` for types and cursors that
        there are not.
        """
        check_outside("subscribe")
        return Subscription(self._orchestrator, self.id, self._uuid, cursor, types).begin()

    def asubscribe(self, cursor: int | None = None, types: Iterable[str] | None = None) -> AsyncSubscription:
        """``subscribe`` for asyncio: ``async for event in instance.asubscribe()``. An instance that there is not is
        told with the first event."""
        check_outside("asubscribe")
        return AsyncSubscription(self._orchestrator, self.id, self._uuid, cursor, types)

    def _uuid(self) -> UUID:
        return self._found().id

    # -- steering --------------------------------------------------------------------------------------------

    def send_event(self, type: str, payload: Any = None, *, connection: Any = None) -> None:
        """Send an event; it is kept until a wait of that type consumes it.

        With ``connection`` (a SQLAlchemy ``Connection`` or ``Session``) it is sent in the caller's transaction, and
        counts if and only if that commits. Until then the instance stands still: commit soon.

        Raises ``InvalidName``, ``InstanceNotFound``, ``InvalidTransition`` if the instance is finished,
        ``SerializationError``, ``PayloadTooLarge``, ``InvalidConfig``.
        """
        check_outside("send_event")
        from orchestrator.store import events

        check_event_type(type)
        where = self._orchestrator
        text = codec.encode(payload, what=f"event {type!r}", limit=where.settings.max_payload_bytes)
        target = (where.settings.account, self._definition.name, self.id)
        if connection is not None:
            from orchestrator.store import session

            with session.explained(_NOT_STORED):
                instance, _ = events.append(session.join(connection), *target, type, text, joined=True)
            session.after_commit(connection, where.hint_aside, [instance])
            return
        unknown = "The request may have got there: it is unknown whether the event was stored."
        with where.lanes.statement(_NOT_STORED, unknown) as lane:
            instance, is_awaited = events.append(lane, *target, type, text)
        if is_awaited:
            where.hint([instance])

    async def asend_event(self, type: str, payload: Any = None, *, connection: Any = None) -> None:
        """``send_event`` for asyncio; ``connection`` may be an ``AsyncConnection`` or ``AsyncSession``."""
        check_outside("asend_event")
        if connection is None:
            await offload(self.send_event, type, payload)
            return
        if not hasattr(connection, "run_sync"):
            raise InvalidConfig(
                "asend_event(connection=) takes a SQLAlchemy AsyncConnection or AsyncSession, not "
                f"{builtins.type(connection).__name__}."
            )
        await connection.run_sync(lambda sync: self.send_event(type, payload, connection=sync))

    def terminate(self, rollback: bool = False) -> None:
        """Stop the instance: running bodies are cancelled, nothing they return is recorded. With ``rollback``,
        compensation runs first.

        Raises ``InstanceNotFound``, and ``InvalidTransition`` if it is finished or rolling back already.
        """
        check_outside("terminate")
        from orchestrator.client import steering

        steering.terminate(self._orchestrator, self._definition, self.id, rollback=rollback)

    async def aterminate(self, rollback: bool = False) -> None:
        """``terminate`` for asyncio."""
        check_outside("aterminate")
        await offload(self.terminate, rollback)

    def pause(self) -> None:
        """Let the steps in flight finish, start none, and stand still until ``resume``. Without steps in flight it is
        paused at once. Does nothing if it is paused, or rolls back, which a pause does not hold up.

        Raises ``InstanceNotFound``, and ``InvalidTransition`` if it is finished.
        """
        check_outside("pause")
        from orchestrator.client import steering

        steering.pause(self._orchestrator, self._definition, self.id)

    async def apause(self) -> None:
        """``pause`` for asyncio."""
        check_outside("apause")
        await offload(self.pause)

    def resume(self) -> None:
        """Go on: a pause that waits for steps in flight is taken back; after one, every timer is later by its length
        and the instance queues. Does nothing if it is not paused.

        Raises ``InstanceNotFound``, and ``InvalidTransition`` if it is finished.
        """
        check_outside("resume")
        from orchestrator.client import steering

        steering.resume(self._orchestrator, self._definition, self.id)

    async def aresume(self) -> None:
        """``resume`` for asyncio."""
        check_outside("aresume")
        await offload(self.resume)

    def restart(self, from_step: str | None = None, count: int = 1, kind: str = "do") -> None:
        """Begin anew, from any status, with the same id and params: steps, timers and buffered events are gone.

        With ``from_step`` only that step goes, and every step that started after it; earlier results stay, also of
        steps that ended later. ``count`` (from 1) says which of the steps of that name, ``kind`` what it is: ``do``,
        ``sleep``, ``wait`` or ``invoke``. Running bodies that are gone are cancelled. A restart counts against
        the creation rate. Raises ``InstanceNotFound``, ``InvalidConfig``, ``RateLimited``, and ``InvalidTransition`` if
        there is no such step.
        """
        check_outside("restart")
        from orchestrator.client import steering
        from orchestrator.workflow.deciding.restarting import step_key

        step = None if from_step is None else step_key(from_step, count, kind)
        steering.restart(self._orchestrator, self._definition, self.id, step)

    async def arestart(self, from_step: str | None = None, count: int = 1, kind: str = "do") -> None:
        """``restart`` for asyncio."""
        check_outside("arestart")
        await offload(self.restart, from_step, count, kind)

    def retry_rollback(self) -> None:
        """Take a failed rollback up again: the handlers that failed for good run once more, with fresh attempts and the
        same idempotency key, then those that it never came to. The instance is ``rolling_back`` until then, and ends as
        it had ended, with its original error; a child whose own rollback had failed is undone in its place.

        Raises ``InstanceNotFound``, and ``InvalidTransition`` unless it is finished and its rollback has failed.
        """
        check_outside("retry_rollback")
        from orchestrator.client import steering

        steering.retry_rollback(self._orchestrator, self._definition, self.id)

    async def aretry_rollback(self) -> None:
        """``retry_rollback`` for asyncio."""
        check_outside("aretry_rollback")
        await offload(self.retry_rollback)

    def skip_rollback(self, step: str, count: int = 1) -> None:
        """Say that a step is undone, or need not be: its handler, which failed or never ran in a failed rollback, is
        left out, and the chain goes on with the others. ``step`` is the name of a ``do``, and ``count`` (from 1) says
        which of that name; or it is the key of any step, such as ``wait:approval:1``.

        Raises ``InstanceNotFound``, ``InvalidConfig``, and ``InvalidTransition`` unless the instance is finished, its
        rollback has failed, and the step is one that can be skipped.
        """
        check_outside("skip_rollback")
        from orchestrator.client import steering

        steering.skip_rollback(self._orchestrator, self._definition, self.id, step, count)

    async def askip_rollback(self, step: str, count: int = 1) -> None:
        """``skip_rollback`` for asyncio."""
        check_outside("askip_rollback")
        await offload(self.skip_rollback, step, count)

    def audit(self) -> list[AuditRecord]:
        """The verbs that changed the instance, in order, with who called them and when; restarts do not erase them.
        Raises ``InstanceNotFound``."""
        check_outside("audit")
        from orchestrator.client.asking.history import audit_record
        from orchestrator.store.records import audit
        from orchestrator.store.session import transaction

        found = self._found()
        with transaction(self._orchestrator.engine) as connection:
            return [audit_record(*entry[1:]) for entry in audit.of_instance(connection, found.id)]

    async def aaudit(self) -> list[AuditRecord]:
        """``audit`` for asyncio."""
        check_outside("aaudit")
        return await offload(self.audit)

    def delete(self) -> None:
        """Remove the instance with everything recorded of it; its id is free at once. Running bodies are cancelled,
        nothing is compensated. A step of the instance itself may call this.

        Raises ``InstanceNotFound``.
        """
        check_outside("delete")
        from orchestrator.client import steering

        steering.delete(self._orchestrator, self._definition, self.id)

    async def adelete(self) -> None:
        """``delete`` for asyncio."""
        check_outside("adelete")
        await offload(self.delete)
