"""Creating instances: one, many, or within the caller's own transaction.

Owns: checking ids, params and options, the insert, and the hint that follows it. Does not own: rates and slots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from orchestrator.client.instance import Seen
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.records import BatchError
from orchestrator.errors import (
    InstanceExists,
    InvalidConfig,
    InvalidInstanceId,
    InvalidParams,
    PayloadTooLarge,
    SerializationError,
    rebuilt,
)
from orchestrator.ports import monotonic, new_id
from orchestrator.workflow.language.definition import Definition, validate_params
from orchestrator.workflow.language.durations import Duration, optional
from orchestrator.workflow.language.names import check_instance_id

if TYPE_CHECKING:
    from orchestrator.store.instances import NewInstance
    from orchestrator.store.session import Connection

MOST = 1000
START_ALARM_S = 5.0
"""An instance whose first hint got lost starts after this long."""
_ENTRY = frozenset({"id", "params", "success_retention", "error_retention"})
_KEPT = "No instance was created."
_UNKNOWN = "The request may have got there: it is unknown whether any instance was created."


@dataclass(frozen=True, slots=True)
class Wish:
    """One instance somebody wants, checked. ``wished_at`` is monotonic: before that there was none."""

    id: UUID
    wished_at: float
    name_id: str
    params: str
    success_s: float | None
    error_s: float | None

    @property
    def seen(self) -> Seen:
        """What its maker knows of it: it was not finished before it was wished for."""
        return Seen(str(self.id), self.wished_at)


def wish(
    orchestrator: Orchestrator,
    definition: Definition,
    params: Any,
    name_id: str | None,
    success_retention: Duration | None,
    error_retention: Duration | None,
) -> Wish:
    """Check one instance. Raises ``InvalidParams``, ``InvalidInstanceId``, ``InvalidConfig``, ``PayloadTooLarge``."""
    uuid = new_id(orchestrator.now())
    return Wish(
        uuid,
        monotonic(),
        str(uuid) if name_id is None else check_instance_id(name_id),
        validate_params(definition, params, limit=orchestrator.settings.max_payload_bytes),
        optional(success_retention, what="success_retention"),
        optional(error_retention, what="error_retention"),
    )


def entries(batch: Sequence[Any] | None, count: Any, params: Any) -> Sequence[Mapping[str, Any]]:
    """The entries of ``create_batch``'s arguments. Raises ``InvalidConfig``."""
    if (batch is None) == (count is None):
        raise InvalidConfig(
            "create_batch takes either a list of entries or count=, not both and not neither."
        )
    if batch is None:
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise InvalidConfig(f"count= must be a number of instances, not {count!r}.")
        batch = [{"params": params}] * count
    if len(batch) > MOST:
        raise InvalidConfig(f"create_batch takes at most {MOST:,} instances at once, not {len(batch):,}.")
    for index, entry in enumerate(batch):
        if not isinstance(entry, Mapping) or not _ENTRY.issuperset(entry):
            unknown = sorted(set(entry) - _ENTRY) if isinstance(entry, Mapping) else type(entry).__name__
            raise InvalidConfig(f"Entry {index} of the batch may hold {sorted(_ENTRY)}; it has {unknown}.")
    return batch


def wishes(
    orchestrator: Orchestrator, definition: Definition, batch: Sequence[Any] | None, count: Any, params: Any
) -> list[Wish]:
    """Check ``create_batch``'s arguments, entry by entry. Raises what ``wish`` raises; the text names the entry."""
    checked = []
    for index, entry in enumerate(entries(batch, count, params)):
        options = [entry.get(key) for key in ("params", "id", "success_retention", "error_retention")]
        try:
            checked.append(wish(orchestrator, definition, *options))
        except (
            InvalidParams,
            InvalidInstanceId,
            InvalidConfig,
            PayloadTooLarge,
            SerializationError,
        ) as error:
            if batch is None:
                raise
            raise rebuilt(type(error), (f"Entry {index}: {error.message}", *error.args[1:])) from error
    return checked


def insert(
    orchestrator: Orchestrator, definition: Definition, wishes: Sequence[Wish]
) -> tuple[list[Wish], list[BatchError]]:
    """Insert what is free, in one statement, and hint a worker at it."""
    unique, errors = _without_duplicates(wishes)
    now = orchestrator.now()
    with orchestrator.lanes.statement(_KEPT, _UNKNOWN) as connection:
        made = _create(connection, orchestrator, definition, list(unique.values()), now, now + START_ALARM_S)
    created = [w for w in unique.values() if w.id in made]
    errors += [_exists(i, w) for i, w in unique.items() if w.id not in made]
    if created:
        orchestrator.hint(w.id for w in created)
    return created, sorted(errors, key=lambda error: error.index)


def join(orchestrator: Orchestrator, definition: Definition, wanted: Wish, connection: Any) -> None:
    """Insert within the caller's transaction; the instance exists, and runs, if and only if that commits.

    ``connection`` is a SQLAlchemy ``Connection`` or ``Session`` on the same database, through psycopg 3. Raises
    ``InstanceExists`` without aborting the caller's transaction, and ``InvalidConfig``.
    """
    from orchestrator.store import session

    now = orchestrator.now()
    with session.explained(_KEPT):
        target = session.join(connection)
        made = _create(target, orchestrator, definition, [wanted], now, None)
    if wanted.id not in made:
        raise InstanceExists(wanted.name_id)
    session.after_commit(connection, orchestrator.hint_aside, [wanted.id])


def _create(
    connection: Connection,
    orchestrator: Orchestrator,
    definition: Definition,
    wishes: Sequence[Wish],
    now: float,
    alarm_at: float | None,
) -> set[UUID]:
    from orchestrator.ports import FOREVER
    from orchestrator.store import instances

    new = [_new(orchestrator, definition, w) for w in wishes]
    account = orchestrator.settings.account
    at = FOREVER if alarm_at is None else alarm_at
    return instances.create(
        connection,
        account,
        definition.name,
        definition.version,
        new,
        now,
        alarm_at=at,
        joined=alarm_at is None,
    )


def _new(orchestrator: Orchestrator, definition: Definition, w: Wish) -> NewInstance:
    from orchestrator.store.instances import NewInstance

    settings, options = orchestrator.settings, definition.options
    return NewInstance(
        w.id,
        w.name_id,
        w.params,
        _first(w.success_s, options.success_retention_s, settings.success_retention),
        _first(w.error_s, options.error_retention_s, settings.error_retention),
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _without_duplicates(wishes: Sequence[Wish]) -> tuple[dict[int, Wish], list[BatchError]]:
    unique: dict[int, Wish] = {}
    errors: list[BatchError] = []
    seen: set[str] = set()
    for index, wanted in enumerate(wishes):
        if wanted.name_id in seen:
            errors.append(_exists(index, wanted))
        else:
            seen.add(wanted.name_id)
            unique[index] = wanted
    return unique, errors


def _exists(index: int, wanted: Wish) -> BatchError:
    error = InstanceExists(wanted.name_id)
    return BatchError(index, wanted.name_id, error.code, str(error))
