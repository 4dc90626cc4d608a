"""Restarting an instance: the rows that go, then what the others become.

Owns: the SQL of a restart. Does not own: which rows go (``workflow.deciding.restarting``), nor the locks, which the
caller holds.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from orchestrator.store import session, turns
from orchestrator.store.arrays import array
from orchestrator.workflow.deciding.restarting import Restart

_CUT = """
WITH steps AS (DELETE FROM orchestrator_steps
  WHERE instance_id = %(id)s::uuid AND key = ANY(%(gone)s::text[])),
attempts AS (DELETE FROM orchestrator_attempts
  WHERE instance_id = %(id)s::uuid AND (key = ANY(%(gone)s::text[]) OR %(since)s::int8 = 0)),
reports AS (DELETE FROM orchestrator_reports
  WHERE instance_id = %(id)s::uuid AND key = ANY(%(gone)s::text[])),
transitions AS (DELETE FROM orchestrator_transitions
  WHERE instance_id = %(id)s::uuid AND seq >= %(since)s::int8),
inbox AS (DELETE FROM orchestrator_inbox WHERE instance_id = %(id)s::uuid),
audit AS (UPDATE orchestrator_audit SET past = NULL WHERE instance_id = %(id)s::uuid AND past IS NOT NULL),
payloads AS (UPDATE orchestrator_payloads SET output = NULL, error = NULL
  WHERE instance_id = %(id)s::uuid AND (output IS NOT NULL OR error IS NOT NULL))
UPDATE orchestrator_instances SET run = %(run)s::int4, seed = %(seed)s::int4, ended_seq = NULL, rollback = NULL,
  started_at = CASE WHEN %(since)s::int8 = 0 THEN NULL ELSE started_at END,
  began_seq = CASE WHEN %(since)s::int8 = 0 THEN NULL ELSE began_seq END
WHERE id = %(id)s::uuid
"""


def restart(connection: Connection, restart: Restart) -> None:
    """Apply a restart, in the transaction that locked the instance and read what it was decided on."""
    parameters: dict[str, Any] = {
        "id": restart.writes.id,
        "run": restart.run,
        "seed": restart.seed,
        "since": restart.since,
        "gone": array(restart.gone, "text"),
    }
    session.rows(connection, _CUT, parameters)
    turns.commit(connection, [restart.writes])
