"""The history of an instance as a document: what a replay needs, to keep, to send, and to run code against.

Owns: the format, written by a production instance and by one under test alike. Does not own: reading it
(``orchestrator.testing.history``), nor the queries (``store.histories``).

A document is plain JSON: ``format`` and ``version`` say what it is; ``workflow``, ``workflow_version``,
``instance_id``, ``id``, ``run``, ``seed``, ``schedule``, ``created_at``, ``params`` what the instance was created as;
``status``, ``ending``, ``started_at``, ``ended_seq`` where it stood; ``steps`` are its steps in start order, each with
its two facts: ``started_seq`` and ``finished_seq``. Instants are epoch seconds. ``params`` and each ``output`` and
``error`` are the very JSON texts that are stored, as strings: so numbers come back exactly as they were.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from uuid import UUID

from orchestrator.client.records import REDACTED
from orchestrator.workflow import codec
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.commands import ROLLBACK

if TYPE_CHECKING:
    from orchestrator.client.orchestrator import Orchestrator

FORMAT = "orchestrator.history"
VERSION = 1


def document(
    *,
    workflow: str,
    version: str,
    id: UUID,
    name_id: str,
    run: int,
    seed: int,
    schedule: tuple[str, float] | None,
    created_at: float,
    params: str,
    status: str,
    ending: str | None,
    started_at: float | None,
    ended_seq: int | None,
    rows: Iterable[StepRow],
    include_sensitive: bool,
) -> dict[str, Any]:
    """The document of one instance. Outputs of sensitive steps are left out unless ``include_sensitive``: such a
    history can be read, and not replayed."""
    steps = sorted((row for row in rows if row.kind != ROLLBACK), key=lambda row: row.started_seq)
    return {
        "format": FORMAT,
        "version": VERSION,
        "workflow": workflow,
        "workflow_version": version,
        "instance_id": name_id,
        "id": str(id),
        "run": run,
        "seed": seed,
        "schedule": None if schedule is None else {"cron": schedule[0], "at": schedule[1]},
        "created_at": created_at,
        "params": params,
        "status": str(status),
        "ending": ending,
        "started_at": started_at,
        "ended_seq": ended_seq,
        "steps": [_step(row, include_sensitive) for row in steps],
    }


def of_instance(where: Orchestrator, instance: UUID, *, include_sensitive: bool) -> dict[str, Any] | None:
    """The document of an instance in production; ``None`` if it was deleted meanwhile."""
    from orchestrator.store import histories
    from orchestrator.store.session import transaction

    with transaction(where.engine) as connection:
        stored = histories.load(connection, [histories.Known(instance)]).get(instance)
    if stored is None:
        return None
    schedule = None if stored.schedule is None else (stored.schedule, stored.scheduled_at or 0.0)
    return document(
        workflow=stored.workflow,
        version=stored.version,
        id=stored.id,
        name_id=stored.name_id,
        run=stored.run,
        seed=stored.seed,
        schedule=schedule,
        created_at=stored.created_at,
        params=stored.params,
        status=stored.status,
        ending=stored.ending,
        started_at=stored.started_at,
        ended_seq=stored.ended_seq,
        rows=stored.rows,
        include_sensitive=include_sensitive,
    )


def _step(row: StepRow, include_sensitive: bool) -> dict[str, Any]:
    written: dict[str, Any] = {
        "key": row.key,
        "kind": row.kind,
        "status": row.status,
        "started_seq": row.started_seq,
        "started_at": row.started_at,
        "finished_seq": row.finished_seq,
        "finished_at": row.finished_at,
        "output": row.output,
        "error": row.error,
    }
    if row.output is not None and not include_sensitive and _is_sensitive(row):
        written["output"] = codec.encode(REDACTED, what="the output")
        written["is_redacted"] = True
    return written


def _is_sensitive(row: StepRow) -> bool:
    config = codec.decode(row.config) if row.config else {}
    return bool(config.get("sensitive"))
