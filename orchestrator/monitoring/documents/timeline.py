"""What an instance has done: its steps with their attempts, sleeps, waits and compensations, page by page.

Owns: both documents. Does not own: the redaction and the attempts of a step (``client.asking.history``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.client.asking.history import step_records
from orchestrator.client.orchestrator import Orchestrator
from orchestrator.client.records import REDACTED, Attempt, StepRecord
from orchestrator.errors import InstanceNotFound, InvalidConfig
from orchestrator.monitoring.documents.instance import find
from orchestrator.monitoring.documents.values import WHOLE, Document, at, info
from orchestrator.store.views import timeline as stored
from orchestrator.store.views.timeline import Shown
from orchestrator.workflow import saga
from orchestrator.workflow.execution import AttemptRow
from orchestrator.workflow.history import FINAL
from orchestrator.workflow.language.commands import ROLLBACK

MOST = 500
"""Steps of one page."""
SHORT = 1000
"""Bytes of an output that a page has with it; longer ones are in the step's own document."""
ATTEMPTS = 20
"""Failed attempts of each step on a page: the last ones."""
ALL_ATTEMPTS = 1000
"""Those of a step in its own document."""
CHANGES = 500
"""Changes of the instance's status."""
_LAST = 2**63 - 1  # Postgres has no longer numbers


def timeline(where: Orchestrator, name: str, id: str, *, after: int = 0, limit: int = 100) -> Document:
    """At most ``limit`` (1 to 500) steps in the order they started, after the place ``after``; ``next`` is where the
    next page begins, ``None`` if this is the last. The first page has the changes of the instance's status with it.

    Raises ``InstanceNotFound``, ``InvalidConfig``.
    """
    if not 1 <= limit <= MOST:
        raise InvalidConfig(f"limit is {limit!r}; it must be a whole number from 1 to {MOST}")
    if after > _LAST:
        raise InvalidConfig(f"after is {after}; it must be the place of a step, at most {_LAST}")
    row = find(where, name, id)
    with where.lanes.statement() as connection:
        shown = stored.page(connection, row.id, max(0, after), limit + 1, SHORT)
        failed = _failures(connection, row.id, shown[:limit])
        changes = stored.transitions(connection, row.id, CHANGES) if after <= 0 else []
    return {
        "workflow": name,
        "id": id,
        "status": row.status,
        "created_at": at(row.created_at),
        "started_at": at(row.started_at),
        "ended_at": at(row.ended_at),
        "steps": _entries(shown[:limit], failed),
        "next": shown[limit - 1].row.started_seq if len(shown) > limit else None,
        "transitions": [{"status": each.status, "at": at(each.at)} for each in changes],
    }


def chosen(where: Orchestrator, name: str, id: str, keys: Sequence[str]) -> Document:
    """These steps as a page has them, those that there are: for who shows them and hears that they changed. At most 500
    keys count. Raises ``InstanceNotFound``."""
    row = find(where, name, id)
    with where.lanes.statement() as connection:
        shown = stored.chosen(connection, row.id, keys[:MOST], SHORT)
        failed = _failures(connection, row.id, shown)
    return {"workflow": name, "id": id, "status": row.status, "steps": _entries(shown, failed)}


def step(where: Orchestrator, name: str, id: str, key: str) -> Document:
    """One step, by its key (``do:charge:1``, ``do:charge:1:rollback``): all of its output, and the failed attempts with
    their tracebacks. Raises ``InstanceNotFound`` if there is no such instance or step."""
    row = find(where, name, id)
    with where.lanes.statement() as connection:
        shown = stored.chosen(connection, row.id, [key], WHOLE)
        failed = stored.failures(connection, row.id, [key], 0, ALL_ATTEMPTS, tracebacks=True)
    if not shown:
        raise InstanceNotFound(id, f"instance {id!r} of workflow {name!r} has no step {key!r}")
    (entry,) = _entries(shown, failed)
    tracebacks = {each.attempt: each.traceback for each in failed}
    for attempt in entry["attempts"]:
        attempt["traceback"] = tracebacks.get(attempt["number"]) or None
    return {"workflow": name, "id": id, **entry}


def _failures(connection: Any, instance: Any, shown: Sequence[Shown]) -> list[AttemptRow]:
    """Most pages have none, and are not looked for."""
    rows = [each.row for each in shown]
    keys = [
        row.key for row in rows if row.attempt > 1 or (row.attempt and row.status in ("failed", "pending"))
    ]
    if not keys:
        return []
    first = min(row.started_seq for row in rows)
    return stored.failures(connection, instance, keys, first, ATTEMPTS)


def _entries(shown: Sequence[Shown], failed: Sequence[AttemptRow]) -> list[Document]:
    records = step_records([each.row for each in shown], failed)
    return [_entry(each, record) for each, record in zip(shown, records, strict=True)]


def _entry(shown: Shown, record: StepRecord) -> Document:
    row, config = shown.row, record.config
    is_sensitive = bool(config.get("sensitive"))
    has_output = shown.output_bytes is not None
    return {
        "key": record.key,
        "kind": record.kind,
        "name": record.name,
        "count": record.count,
        "label": row.label or record.name,
        "place": row.started_seq,
        "undoes": saga.forward_key(row.key) if row.kind == ROLLBACK else None,
        "status": record.status,
        "is_final": row.status in FINAL,
        "is_sensitive": is_sensitive,
        "has_rollback": row.has_rollback,
        "line": row.line,
        "config": config,
        "output": REDACTED if is_sensitive and has_output else record.output,
        "output_bytes": None if is_sensitive else shown.output_bytes,
        "error": info(record.error),
        "started_at": at(record.started_at),
        "claimed_at": at(row.claimed_at),
        "due_at": at(row.due_at) if row.status in ("waiting", "pending") else None,
        "finished_at": at(record.finished_at),
        "attempt": row.attempt,
        "attempts": [_attempt(each) for each in record.attempts],
    }


def _attempt(attempt: Attempt) -> Document:
    return {
        "number": attempt.number,
        "error": info(attempt.error),
        "started_at": at(attempt.started_at),
        "finished_at": at(attempt.finished_at),
        "retry_delay": attempt.retry_delay,
    }
