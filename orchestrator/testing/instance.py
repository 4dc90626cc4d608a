"""``InstanceUnderTest``: one instance in an environment, with the verbs of ``WorkflowInstance``.

Owns: the verbs and what they give. Does not own: what they decide (``workflow.deciding``), or driving (``driving``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

from orchestrator.client.asking.exported import document
from orchestrator.client.asking.history import step_records
from orchestrator.client.asking.subscription import checked_cursor, checked_types
from orchestrator.client.listing import checked_status
from orchestrator.client.orchestrator import check_outside
from orchestrator.client.records import InstanceStatus, StepRecord
from orchestrator.errors import (
    ErrorInfo,
    InstanceNotFound,
    InvalidTransition,
    RollbackStatus,
    SerializationError,
    WorkflowFailed,
    WorkflowTerminated,
)
from orchestrator.testing.controls import Controls
from orchestrator.testing.errors import StillWaiting
from orchestrator.testing.simulation.fakes import Event, Fakes
from orchestrator.testing.simulation.storage import Record
from orchestrator.testing.twins import InstanceTwins
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import verbs
from orchestrator.workflow.deciding.restarting import step_key
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.language.names import check_event_type
from orchestrator.workflow.lifecycle import LifecycleEvent, events, failed_of
from orchestrator.workflow.lifecycle import Record as Told
from orchestrator.workflow.replay import revive_output
from orchestrator.workflow.status import Status

if TYPE_CHECKING:
    from orchestrator.testing.environment import WorkflowEnvironment

KINDS = ("do", "wait", "invoke", "sleep")


class InstanceUnderTest(Controls, InstanceTwins):
    """One instance, addressed by its id. Verbs change it at once; ``result()`` and ``wait_for_…`` drive it."""

    def __init__(self, environment: WorkflowEnvironment, definition: Definition, id: str, uuid: UUID) -> None:
        self.id = id
        self._environment = environment
        self._definition = definition
        self._uuid = uuid

    def __repr__(self) -> str:
        return f"<instance {self.id!r} of workflow {self._definition.name!r} under test>"

    # -- asking ----------------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is such an instance (still)."""
        return self._environment.storage.get(self._uuid) is not None

    def status(self) -> InstanceStatus:
        """Where the instance stands now; nothing is driven. Raises ``InstanceNotFound``."""
        check_outside("status")
        return standing(self._found())

    def result(self, timeout: float | None = None) -> Any:
        """Drive until the instance has ended, and return its typed output. ``timeout`` has no meaning here: time
        does not pass by itself.

        Raises ``WorkflowFailed``, ``WorkflowTerminated``, and ``StillWaiting`` (a ``TimeoutError``) where the
        instance waits for time, an event or a verb.
        """
        check_outside("result")
        self._until(lambda record: record.is_finished, "its end")
        record = self._found()
        status = standing(record)
        if status.status is Status.COMPLETE:
            return codec.decode(record.output or "null", record.definition.return_type)
        if status.status is Status.TERMINATED:
            raise WorkflowTerminated(self.id, status.rollback)
        raise WorkflowFailed(self.id, status.error or ErrorInfo("Error", ""), status.rollback)

    def steps(self) -> list[StepRecord]:
        """The recorded steps, in the order they started. Raises ``InstanceNotFound``."""
        check_outside("steps")
        record = self._found()
        return step_records(record.in_order(), record.attempts)

    def export_history(self, *, include_sensitive: bool = False) -> dict[str, Any]:
        """The history as a JSON-able document, as ``WorkflowInstance.export_history()`` gives it in production."""
        check_outside("export_history")
        record = self._found()
        return document(
            workflow=record.definition.name,
            version=record.definition.version,
            id=record.id,
            name_id=record.name_id,
            run=record.run,
            seed=record.seed,
            schedule=record.schedule,
            created_at=record.created_at,
            params=record.params,
            status=record.status,
            ending=record.ending,
            started_at=record.started_at,
            ended_seq=record.ended_seq,
            rows=record.steps.values(),
            include_sensitive=include_sensitive,
        )

    def subscribe(
        self, cursor: int | None = None, types: Iterable[str] | None = None
    ) -> Iterator[LifecycleEvent]:
        """What happened, from the beginning or from the event of that ``event_id`` on (exclusive). At the end of what
        happened so far the instance is driven on; the iterator ends with it, or where nothing more happens by itself.

        Raises ``InstanceNotFound`` (also later, if it is deleted), and ``InvalidConfig`` for types and cursors that
        there are not.
        """
        check_outside("subscribe")
        after, wanted = checked_cursor(cursor), checked_types(types)
        self._found()
        return self._events(after, wanted)

    def _events(self, after: int, wanted: frozenset[str] | None) -> Iterator[LifecycleEvent]:
        while True:
            record = self._found()
            fresh, seq = events(told(record), after), record.seq
            for event in fresh:
                after = event.event_id
                if wanted is None or event.type in wanted:
                    yield event
            if not fresh and (record.is_finished or not self._environment.drive(self._moved(seq))):
                return

    def _moved(self, seq: int) -> Callable[[], bool]:
        return lambda: self._found().seq != seq

    def wait_for_step_result(self, name: str, count: int = 1) -> Any:
        """Drive until the ``count``-th step of this name has ended, and return its result as the workflow sees it.

        Raises the step's error if it failed, and ``StillWaiting`` if it does not end without time passing.
        """
        check_outside("wait_for_step_result")
        keys = [f"{kind}:{name}:{count}" for kind in KINDS]

        def over(record: Record) -> bool:
            return any(key in record.steps and record.steps[key].finished_seq for key in keys)

        self._until(over, f"the result of step {name!r}" + (f" ({count})" if count > 1 else ""))
        record = self._found()
        row = next(record.steps[k] for k in keys if k in record.steps and record.steps[k].finished_seq)
        if row.error is not None:
            raise codec.revive(row.error, record.definition.error_classes)
        if row.output is None:
            return None
        return revive_output(row.kind, row.output, record.annotations.get(row.key, Any))

    def wait_for_status(self, status: Status | str) -> InstanceStatus:
        """Drive until the instance is ``status``, and return where it stands. Raises ``StillWaiting``."""
        check_outside("wait_for_status")
        wanted = checked_status(status)
        self._until(lambda record: record.status is wanted, f"status {wanted.value!r}")
        return standing(self._found())

    # -- steering --------------------------------------------------------------------------------------------

    def send_event(self, type: str, payload: Any = None) -> None:
        """Send an event; it is kept until a wait of that type consumes it.

        Raises ``InvalidName``, ``InstanceNotFound``, ``InvalidTransition`` if the instance is finished,
        ``SerializationError``, ``PayloadTooLarge``.
        """
        check_outside("send_event")
        check_event_type(type)
        text = codec.encode(payload, what=f"event {type!r}")
        with self._environment.lock:
            record = self._found()
            if record.is_finished:
                raise InvalidTransition(f"Instance {self.id!r} is {record.status}: it takes no more events.")
            self._environment.deliver(record, type, text)

    def terminate(self, rollback: bool = False) -> None:
        """Stop the instance: running bodies are told to stop. With ``rollback``, compensation is run first, when
        the environment is driven. Raises ``InvalidTransition`` if it is finished or rolling back already."""
        check_outside("terminate")
        with self._environment.lock:
            self._environment.turns.apply(
                self._found(), lambda execution, now: verbs.terminate(execution, now, rollback=rollback)
            )

    def pause(self) -> None:
        """Let the steps in flight finish, start none, and stand still until ``resume``. Does nothing if it is paused,
        or rolls back. Raises ``InstanceNotFound``, and ``InvalidTransition`` if it is finished."""
        check_outside("pause")
        with self._environment.lock:
            self._environment.turns.apply(self._found(), verbs.pause)

    def resume(self) -> None:
        """Go on: a pending pause is taken back; after one, every timer is later by its length. Does nothing if it is
        not paused. Raises ``InstanceNotFound``, and ``InvalidTransition`` if it is finished."""
        check_outside("resume")
        with self._environment.lock:
            record = self._found()
            self._environment.turns.apply(
                record, lambda execution, now: verbs.resume(execution, now, record.paused_at)
            )

    def restart(self, from_step: str | None = None, count: int = 1, kind: str = "do") -> None:
        """Begin anew, from any status, with the same id and params; with ``from_step`` only that step goes, and every
        step that started after it.

        Raises ``InstanceNotFound``, ``InvalidConfig``, and ``InvalidTransition`` if there is no such step.
        """
        check_outside("restart")
        key = None if from_step is None else step_key(from_step, count, kind)
        with self._environment.lock:
            self._environment.turns.restart(self._found(), key)

    def retry_rollback(self) -> None:
        """Take a failed rollback up again: driven, what failed runs once more, then what it never came to.

        Raises ``InstanceNotFound``, and ``InvalidTransition`` unless it is finished and its rollback has failed.
        """
        check_outside("retry_rollback")
        with self._environment.lock:
            self._environment.turns.retry_rollback(self._found())

    def skip_rollback(self, step: str, count: int = 1) -> None:
        """Say that a step is undone, or need not be: driven, a failed rollback goes on without its handler.

        Raises ``InstanceNotFound``, ``InvalidConfig``, and ``InvalidTransition`` if there is nothing to skip.
        """
        check_outside("skip_rollback")
        with self._environment.lock:
            self._environment.turns.skip_rollback(self._found(), step, count)

    def delete(self) -> None:
        """Forget the instance: no rollback, its id is free at once. Raises ``InstanceNotFound``."""
        check_outside("delete")
        with self._environment.lock:
            self._environment.remove(self._found())

    # -- inside ----------------------------------------------------------------------------------------------

    def _found(self) -> Record:
        record = self._environment.storage.get(self._uuid)
        if record is None:
            raise InstanceNotFound(self.id)
        return record

    def _until(self, holds: Any, what: str) -> None:
        if not self._environment.drive(lambda: holds(self._found())):
            raise StillWaiting(f"Waiting for {what}: {described(self._found())}")

    def _controlled(self) -> Fakes:
        return self._environment.fakes_of(self._uuid)

    def _refaked(self) -> None:
        with self._environment.lock:
            self._environment.turns.refake(self._found())

    def _send_fake(self, event: Event) -> None:
        with self._environment.lock:
            self._environment.fake_event(self._found(), event)


def told(record: Record) -> Told:
    """The record as lifecycle events are derived from it."""
    return Told(
        record.name_id,
        record.status,
        record.seq,
        record.created_at,
        record.seed,
        record.began_seq,
        record.started_at,
        record.params,
        record.output,
        record.error,
        record.rollback,
        first=record.transitions[0].seq if record.transitions else None,
        last=record.transitions[-1].seq if record.transitions else None,
        steps=record.in_order(),
        attempts=record.attempts,
        transitions=record.transitions,
        failed=failed_of(record.attempts),
        past=record.past,
    )


def standing(record: Record) -> InstanceStatus:
    """Where an instance stands, for people. An output that does not fit today's annotation is plain JSON values."""
    output = None
    if record.output is not None:
        try:
            output = codec.decode(record.output, record.definition.return_type)
        except SerializationError:
            output = codec.decode(record.output)
    return InstanceStatus(
        record.status,
        output,
        None if record.error is None else codec.error_info(record.error),
        None if record.rollback is None else RollbackStatus.of(codec.decode(record.rollback)),
        None if record.blocked is None else codec.error_info(record.blocked),
    )


def described(record: Record) -> str:
    """Where an instance stands and what it waits for, in a sentence or two."""
    text = f"instance {record.name_id!r} of workflow {record.definition.name!r} is {record.status}"
    if record.blocked is not None:
        return f"{text} and blocked by {codec.error_info(record.blocked)}"
    if record.error is not None:
        text += f" with {codec.error_info(record.error)}"
    if record.is_finished:
        return f"{text}."
    waits = [f"{row.key} ({_waits(row)})" for row in record.in_order() if row.key in record.open]
    if record.status is Status.PAUSED:
        return f"{text}: resume() it."
    return f"{text}, and nothing more happens without time, an event or a verb; open are: {', '.join(waits) or 'none'}."


def _waits(row: Any) -> str:
    if row.status == "pending":
        return "its retry"
    if row.kind == "wait":
        return f"an event of type {codec.decode(row.config or '{}').get('type')!r}"
    return str(row.status)
