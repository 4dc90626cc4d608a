"""Rollbacks that ended: how, and taking a failed one up again.

Owns: this SQL. Does not own: what is taken back and written for it (``workflow.deciding.redoing``), nor the locks,
which the caller holds.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session, turns
from orchestrator.store.arrays import array
from orchestrator.workflow.deciding.redoing import Redo

# Rows go that other processes remember as they were: a new run, so that what they remember is void. Nothing is named by
# it: handlers have the run of their step, chance has the seed.
_TAKE_BACK = """
WITH steps AS (DELETE FROM orchestrator_steps WHERE instance_id = %(id)s::uuid AND key = ANY(%(gone)s::text[]))
UPDATE orchestrator_instances SET rollback = NULL, run = run + 1 WHERE id = %(id)s::uuid
"""


def outcome(connection: Connection, instance: UUID) -> str | None:
    """How the rollback of this instance ended, as text; ``None`` if it had none, or it has not ended."""
    query = "SELECT rollback FROM orchestrator_instances WHERE id = %(id)s::uuid"
    return next((row[0] for row in session.rows(connection, query, {"id": instance})), None)


def redo(connection: Connection, redo: Redo) -> None:
    """Take a failed rollback up again, in the transaction that locked the instance and read what it was decided on."""
    parameters: dict[str, Any] = {
        "id": redo.writes.id,
        "gone": array([row.key for row in redo.past.handlers], "text"),
    }
    session.rows(connection, _TAKE_BACK, parameters)
    turns.commit(connection, [redo.writes])
