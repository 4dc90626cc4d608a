"""Operators' verbs, applied: lock, decide, write, in a transaction of their own, and the hint that follows.

Owns: the SQL frame around ``workflow.deciding``'s verbs, and what an unknown outcome means to who asked. Does not own:
what the verbs decide.

The instance is locked first, then its steps that are handed out or running: a claim in flight is waited for, none is
made meanwhile, and what is ``handed`` under these locks is claimed by nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from uuid import UUID

from orchestrator.client.orchestrator import Orchestrator
from orchestrator.engine.turning import loading
from orchestrator.errors import InstanceNotFound
from orchestrator.store import histories, instances, steps, turns
from orchestrator.store.histories import Known
from orchestrator.store.records import children, deletion, restarts
from orchestrator.store.session import Connection, transaction
from orchestrator.workflow.deciding import restarting, verbs
from orchestrator.workflow.execution import Execution
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.definition import Definition


def terminate(where: Orchestrator, definition: Definition, name_id: str, *, rollback: bool) -> None:
    """Terminate one instance. Raises ``InstanceNotFound`` and ``InvalidTransition``."""
    with _transaction(where, "terminated") as connection:
        execution, _ = _locked(connection, where, definition, name_id)
        writes = verbs.terminate(execution, where.now(), rollback=rollback)
        turns.commit(connection, [writes])
    _tell(where, execution.id, writes.hints)


def pause(where: Orchestrator, definition: Definition, name_id: str) -> None:
    """Pause one instance. Raises ``InstanceNotFound`` and ``InvalidTransition``."""
    with _transaction(where, "paused") as connection:
        execution, _ = _locked(connection, where, definition, name_id)
        writes = verbs.pause(execution, where.now())
        if writes.seq == writes.expected_seq:
            return
        turns.commit(connection, [writes])
    _tell(where, execution.id)


def resume(where: Orchestrator, definition: Definition, name_id: str) -> None:
    """Resume one instance. Raises ``InstanceNotFound`` and ``InvalidTransition``."""
    with _transaction(where, "resumed") as connection:
        execution, _ = _locked(connection, where, definition, name_id)
        writes = verbs.resume(execution, where.now(), instances.paused_at(connection, execution.id))
        if writes.seq == writes.expected_seq:
            return
        turns.commit(connection, [writes])
    _tell(where, execution.id)


def restart(where: Orchestrator, definition: Definition, name_id: str, step: str | None) -> None:
    """Restart one instance, from the top or from the step with the key ``step``. Raises ``InstanceNotFound`` and
    ``InvalidTransition``."""
    with _transaction(where, "restarted") as connection:
        execution, rows = _locked(connection, where, definition, name_id)
        if step is None:
            decided = restarting.restart(execution, rows, where.now())
        else:
            failed = steps.failed_attempts(connection, execution.id)
            paused_at = instances.paused_at(connection, execution.id)
            decided = restarting.restart_from(execution, rows, failed, step, where.now(), paused_at)
        restarts.restart(connection, decided)
        children.detach(connection, execution.id)
        for child in decided.awaited:
            _restart_child(connection, where, definition, child)
        relatives = children.relatives(connection, [execution.id, *decided.awaited])
    _tell(where, execution.id, relatives)


def _restart_child(connection: Connection, where: Orchestrator, parents: Definition, child: UUID) -> None:
    """A child of a step that is taken up again goes on with it. Whoever holds two instances holds the parent first."""
    children.lock(connection, child)
    steps.lock(connection, [child])
    stored = histories.load(connection, [Known(child)]).get(child)
    if stored is not None and restarting.is_cut_short(stored.status, stored.ending):
        execution = loading.build_held(stored, parents)  # no code is run: any definition will do
        restarts.restart(connection, restarting.restart(execution, stored.rows, where.now()))


def delete(where: Orchestrator, definition: Definition, name_id: str) -> None:
    """Delete one instance. Raises ``InstanceNotFound``."""
    with _transaction(where, "deleted") as connection:
        instance = _lock(connection, where, definition, name_id)
        relatives = children.relatives(connection, [instance])
        deletion.delete(connection, [instance])
    _tell(where, instance, relatives)


def _tell(where: Orchestrator, instance: UUID, relatives: Iterable[UUID] = ()) -> None:
    """Whoever waits for news, and a worker: it goes on with the instance, or gives its slot back; its children and its
    parent look at what became of it."""
    where.news.announce([instance])
    where.hint([instance, *relatives])


@contextmanager
def _transaction(where: Orchestrator, done: str) -> Iterator[Connection]:
    unknown = f"That was in the commit: it is unknown whether the instance was {done}."
    with transaction(where.engine, f"The instance was not {done}.", unknown) as connection:
        yield connection


def _lock(connection: Connection, where: Orchestrator, definition: Definition, name_id: str) -> UUID:
    instance = instances.lock_by_name(connection, where.settings.account, definition.name, name_id)
    if instance is None:
        raise InstanceNotFound(name_id)
    return instance


def _locked(
    connection: Connection, where: Orchestrator, definition: Definition, name_id: str
) -> tuple[Execution, list[StepRow]]:
    """The instance as it stands under its locks, without its code, and all its steps."""
    instance = _lock(connection, where, definition, name_id)
    steps.lock(connection, [instance])
    stored = histories.load(connection, [Known(instance)])[instance]
    return loading.build_held(stored, definition), stored.rows
