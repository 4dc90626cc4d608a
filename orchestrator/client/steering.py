"""Operators' verbs, applied: lock, decide, write, in a transaction of their own, and the hint that follows.

Owns: the SQL frame around ``workflow.deciding``'s verbs, who is said to have asked for them, and what an unknown
outcome means to who did. Does not own: what the verbs decide.

The instance is locked first, then its steps that are handed out or running: a claim in flight is waited for, none is
made meanwhile, and what is ``handed`` under these locks is claimed by nobody. A verb that changes anything goes on
record in the same transaction, but for ``delete``, which leaves nothing.
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from uuid import UUID

from orchestrator.client.creation import admittance
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.engine.turning import loading
from orchestrator.errors import InstanceNotFound
from orchestrator.store import histories, instances, steps, turns
from orchestrator.store.histories import Known
from orchestrator.store.records import audit, children, deletion, restarts, rollbacks
from orchestrator.store.records.audit import Entry
from orchestrator.store.session import Connection, transaction
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import redoing, restarting, verbs
from orchestrator.workflow.deciding.redoing import Redo
from orchestrator.workflow.execution import Execution, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.definition import Definition


def terminate(where: Orchestrator, definition: Definition, name_id: str, *, rollback: bool) -> None:
    """Terminate one instance. Raises ``InstanceNotFound`` and ``InvalidTransition``."""
    with _transaction(where, "terminated") as connection:
        execution, _ = _locked(connection, where, definition, name_id)
        writes = verbs.terminate(execution, where.now(), rollback=rollback)
        turns.commit(connection, [writes])
        _record(connection, where, writes, "terminate", rollback=rollback)
    _tell(where, execution.id, writes.hints)


def pause(where: Orchestrator, definition: Definition, name_id: str) -> None:
    """Pause one instance. Raises ``InstanceNotFound`` and ``InvalidTransition``."""
    with _transaction(where, "paused") as connection:
        execution, _ = _locked(connection, where, definition, name_id)
        writes = verbs.pause(execution, where.now())
        if writes.seq == writes.expected_seq:
            return
        turns.commit(connection, [writes])
        _record(connection, where, writes, "pause")
    _tell(where, execution.id)


def resume(where: Orchestrator, definition: Definition, name_id: str) -> None:
    """Resume one instance. Raises ``InstanceNotFound`` and ``InvalidTransition``."""
    with _transaction(where, "resumed") as connection:
        execution, _ = _locked(connection, where, definition, name_id)
        writes = verbs.resume(execution, where.now(), instances.paused_at(connection, execution.id))
        if writes.seq == writes.expected_seq:
            return
        turns.commit(connection, [writes])
        _record(connection, where, writes, "resume")
    _tell(where, execution.id)


def restart(where: Orchestrator, definition: Definition, name_id: str, step: str | None) -> None:
    """Restart one instance, from the top or from the step with the key ``step``. Raises ``InstanceNotFound``,
    ``InvalidTransition``, and ``RateLimited`` before anything is changed."""
    admittance.restart(where, definition)
    with _transaction(where, "restarted") as connection:
        execution, rows = _locked(connection, where, definition, name_id)
        if step is None:
            decided = restarting.restart(execution, rows, where.now())
        else:
            failed = steps.failed_attempts(connection, execution.id)
            paused_at = instances.paused_at(connection, execution.id)
            decided = restarting.restart_from(execution, rows, failed, step, where.now(), paused_at)
        restarts.restart(connection, decided)
        _record(connection, where, decided.writes, "restart", from_step=step)
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


def retry_rollback(where: Orchestrator, definition: Definition, name_id: str) -> None:
    """Run the handlers of a failed rollback that failed or never ran. Raises ``InstanceNotFound`` and
    ``InvalidTransition``."""
    with _transaction(where, "taken up again") as connection:
        execution, rows = _locked(connection, where, definition, name_id)
        retried = _retry(connection, where, definition, execution, rows)
        children.stand_alone(connection, execution.id)
        relatives = children.relatives(connection, retried)
    _tell(where, execution.id, [*retried[1:], *relatives])


def _retry(
    connection: Connection,
    where: Orchestrator,
    definition: Definition,
    execution: Execution,
    rows: list[StepRow],
) -> list[UUID]:
    """Take up the rollback of one instance, and those of the children for which it had failed; which they all are."""
    ended = rollbacks.outcome(connection, execution.id)
    decided = redoing.retry(execution, rows, ended, where.now())
    _redo(connection, where, decided, "retry_rollback")
    retried = [execution.id]
    for key, child in decided.children:
        retried += _retry_child(connection, where, definition, child, (execution.id, key))
    return retried


def _retry_child(
    connection: Connection, where: Orchestrator, parents: Definition, child: UUID, parent: tuple[UUID, str]
) -> list[UUID]:
    """A link of its parent's chain: what it had failed to undo it undoes in its place. One that an operator has seen to
    meanwhile is waited for, if need be."""
    children.lock(connection, child)
    steps.lock(connection, [child])
    stored = histories.load(connection, [Known(child)]).get(child)
    if stored is None:
        raise redoing.refusal(parent[1])
    if not redoing.is_taken_along(stored.status, stored.ending):
        return []
    children.attach(connection, child, *parent)
    if not redoing.is_failed(stored.status, rollbacks.outcome(connection, child)):
        return [child]
    return _retry(connection, where, parents, loading.build_held(stored, parents), stored.rows)


def skip_rollback(where: Orchestrator, definition: Definition, name_id: str, step: str, count: int) -> None:
    """Leave the handler of a step out of a failed rollback, and go on with the others. Raises ``InstanceNotFound``,
    ``InvalidConfig`` and ``InvalidTransition``."""
    with _transaction(where, "taken up again") as connection:
        execution, rows = _locked(connection, where, definition, name_id)
        ended = rollbacks.outcome(connection, execution.id)
        decided = redoing.skip(execution, rows, ended, step, count, where.now())
        _redo(connection, where, decided, "skip_rollback")
        children.stand_alone(connection, execution.id)
        relatives = children.relatives(connection, [execution.id])
    _tell(where, execution.id, relatives)


def _redo(connection: Connection, where: Orchestrator, decided: Redo, verb: str) -> None:
    rollbacks.redo(connection, decided)
    _record(connection, where, decided.writes, verb, decided.past.to_json(), **decided.detail)


def delete(where: Orchestrator, definition: Definition, name_id: str) -> None:
    """Delete one instance. Raises ``InstanceNotFound``."""
    with _transaction(where, "deleted") as connection:
        instance = _lock(connection, where, definition, name_id)
        relatives = children.relatives(connection, [instance])
        deletion.delete(connection, [instance])
    where.admission.revoke(definition.name, [instance], 0)  # no worker could tell any more whose slot it was
    _tell(where, instance, relatives)


def _tell(where: Orchestrator, instance: UUID, relatives: Iterable[UUID] = ()) -> None:
    """Whoever waits for news, and a worker: it goes on with the instance, or gives its slot back; its children and its
    parent look at what became of it."""
    where.news.announce([instance])
    where.hint([instance, *relatives])


def _record(
    connection: Connection,
    where: Orchestrator,
    writes: Writes,
    verb: str,
    past: str | None = None,
    **detail: Any,
) -> None:
    """Who did what, and when."""
    text = codec.encode(detail, what="the detail of a verb")
    audit.add(connection, writes.id, Entry(writes.seq, verb, text, asker(), where.now()), past)


@cache
def asker() -> str:
    """Whose process this is, and where."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid()) if hasattr(os, "getuid") else "unknown"
    return f"{user}@{socket.gethostname()}"


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
