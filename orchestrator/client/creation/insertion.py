"""Creating what is wished for, as it is admitted: one, many, or within the caller's own transaction.

Owns: the insert, the hint that follows it, and giving back what was admitted and not created. Does not own: the checks
(``wishes``), waiting (``admittance``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from orchestrator.client.creation.admittance import Patience, Work, awaited
from orchestrator.client.creation.wishes import Wish
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.records import BatchError
from orchestrator.errors import InstanceExists, OrchestratorError, RateLimited, ServiceUnavailable
from orchestrator.ports import FOREVER
from orchestrator.workflow.language.definition import Definition

if TYPE_CHECKING:
    from orchestrator.store.session import Connection

START_ALARM_S = 5.0
"""An instance whose first hint got lost starts after this long."""
_KEPT = "No instance was created."
_UNKNOWN = "The request may have got there: it is unknown whether any instance was created."


def one(where: Orchestrator, definition: Definition, wanted: Wish, wait_s: float | None) -> Work[None]:
    """Create one. Raises ``InstanceExists``, ``RateLimited``, ``TooManyQueued``, ``ServiceUnavailable``."""
    name, options = definition.name, definition.options
    admitted = yield from awaited(lambda: where.admission.admit(name, options, [wanted.id]), wait_s)
    if not _insert(where, definition, [wanted], admitted.running):
        raise InstanceExists(wanted.name_id)


def many(
    where: Orchestrator, definition: Definition, wishes: Sequence[Wish], wait_s: float | None
) -> Work[tuple[list[Wish], list[BatchError]]]:
    """Create these in their order, each time as many as are admitted in one statement; who was created, and why others
    were not. Raises ``ServiceUnavailable`` as long as nothing was created."""
    left, errors = _without_duplicates(wishes)
    created: list[Wish] = []
    patience = Patience(wait_s)
    while left:
        answer = where.admission.admit(definition.name, definition.options, [w.id for _, w in left])
        portion, left = left[: answer.count], left[answer.count :]
        try:
            made = _insert(where, definition, [w for _, w in portion], answer.running) if portion else ()
        except OrchestratorError as error:
            if not created:
                raise
            return created, _in_order(errors + [_refused(i, w, error) for i, w in portion + left])
        created += [w for _, w in portion if w.id in made]
        errors += [_refused(i, w, InstanceExists(w.name_id)) for i, w in portion if w.id not in made]
        if left:
            assert answer.refusal is not None
            pause_s = patience.pause_s(answer, len(left))
            if pause_s is None:
                errors += [_refused(i, w, answer.refusal) for i, w in left]
                break
            yield pause_s
    return created, _in_order(errors)


def permit(where: Orchestrator, definition: Definition, wanted: Wish, wait_s: float | None) -> Work[None]:
    """Ask for the creation of one in the caller's transaction, which ``join`` does then. It costs a token whether that
    commits or not, and gets no slot."""
    name, options = definition.name, definition.options
    yield from awaited(lambda: where.admission.admit(name, options, [wanted.id], may_run=False), wait_s)


def join(where: Orchestrator, definition: Definition, wanted: Wish, connection: Any) -> None:
    """Insert within the caller's transaction; the instance exists, and runs, if and only if that commits.

    ``connection`` is a SQLAlchemy ``Connection`` or ``Session`` on the same database, through psycopg 3. Raises
    ``InstanceExists`` without aborting the caller's transaction, and ``InvalidConfig``.
    """
    from orchestrator.store import session

    now = where.now()
    with session.explained(_KEPT):
        target = session.join(connection)
        made = _create(target, where, definition, [wanted], now, joined=True)
    if wanted.id not in made:
        raise InstanceExists(wanted.name_id)
    session.after_commit(connection, where.hint_aside, [wanted.id])


def _insert(where: Orchestrator, definition: Definition, wishes: Sequence[Wish], slots: int) -> set[UUID]:
    """Insert what is free, in one statement, and hint a worker at what runs; the first ``slots`` hold one."""
    running = {w.id for w in wishes[:slots]}
    is_sent = False
    try:
        now = where.now()
        with where.lanes.statement(_KEPT, _UNKNOWN) as connection:
            is_sent = True
            made = _create(connection, where, definition, wishes, now, running)
    except Exception as error:
        if not (is_sent and _may_be_there(error)):
            where.admission.revoke(definition.name, running, len(wishes) - slots)
        raise
    if len(made) < len(wishes):
        lost = [w.id in running for w in wishes if w.id not in made]
        where.admission.revoke(definition.name, running - made, lost.count(False))
    if running & made:
        where.hint(w.id for w in wishes if w.id in running and w.id in made)
    return made


def _may_be_there(error: Exception) -> bool:
    """Whether the instances may exist although inserting them failed. Then their slots are left alone: a worker renews
    those of instances there are, and the others end."""
    from orchestrator.store.session import is_contention

    return isinstance(error, ServiceUnavailable) and not (error.__cause__ and is_contention(error.__cause__))


def _create(
    connection: Connection,
    where: Orchestrator,
    definition: Definition,
    wishes: Sequence[Wish],
    now: float,
    running: Collection[UUID] = (),
    *,
    joined: bool = False,
) -> set[UUID]:
    from orchestrator.store import instances

    return instances.create(
        connection,
        where.settings.account,
        definition.name,
        definition.version,
        [instances.NewInstance(w.id, w.name_id, *w.terms) for w in wishes],
        now,
        alarm_at=now + START_ALARM_S if running else FOREVER,
        running=running,
        shards=where.settings.shards,
        joined=joined,
    )


def _without_duplicates(wishes: Sequence[Wish]) -> tuple[list[tuple[int, Wish]], list[BatchError]]:
    unique: list[tuple[int, Wish]] = []
    errors: list[BatchError] = []
    seen: set[str] = set()
    for index, wanted in enumerate(wishes):
        if wanted.name_id in seen:
            errors.append(_refused(index, wanted, InstanceExists(wanted.name_id)))
        else:
            seen.add(wanted.name_id)
            unique.append((index, wanted))
    return unique, errors


def _in_order(errors: list[BatchError]) -> list[BatchError]:
    return sorted(errors, key=lambda error: error.index)


def _refused(index: int, wanted: Wish, error: OrchestratorError) -> BatchError:
    retry_after = error.retry_after if isinstance(error, RateLimited) else None
    return BatchError(index, wanted.name_id, error.code, str(error), retry_after)
