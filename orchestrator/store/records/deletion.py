"""Deleting instances: every row of them, under their locks.

Owns: the one verb that removes rows of instances. Does not own: which are deleted (the client's verbs, retention), nor
telling bodies that still run: their workers find that the rows are gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session, steps
from orchestrator.store.arrays import array

_LOCK = """
SELECT id FROM orchestrator_instances WHERE id = ANY(%(ids)s::uuid[]) ORDER BY id FOR UPDATE
"""
_DELETE = """
WITH steps AS (DELETE FROM orchestrator_steps WHERE instance_id = ANY(%(ids)s::uuid[])),
attempts AS (DELETE FROM orchestrator_attempts WHERE instance_id = ANY(%(ids)s::uuid[])),
transitions AS (DELETE FROM orchestrator_transitions WHERE instance_id = ANY(%(ids)s::uuid[])),
inbox AS (DELETE FROM orchestrator_inbox WHERE instance_id = ANY(%(ids)s::uuid[])),
audit AS (DELETE FROM orchestrator_audit WHERE instance_id = ANY(%(ids)s::uuid[])),
reports AS (DELETE FROM orchestrator_reports WHERE instance_id = ANY(%(ids)s::uuid[])),
payloads AS (DELETE FROM orchestrator_payloads WHERE instance_id = ANY(%(ids)s::uuid[]))
DELETE FROM orchestrator_instances WHERE id = ANY(%(ids)s::uuid[]) RETURNING id
"""


def delete(connection: Connection, ids: Iterable[UUID]) -> set[UUID]:
    """Delete these instances, whatever they do; returns those there were. Waits for whoever holds one of them.

    Needs a transaction: a caller that must look at an instance before (retention, which spares what was restarted
    meanwhile) locks it in the same one. No compensation runs.
    """
    # Each statement sees what was committed when it began: no row is added under the first lock, and none that a turn
    # added before it is missed by the last.
    locked = [row[0] for row in session.rows(connection, _LOCK, {"ids": array(ids, "uuid")})]
    if not locked:
        return set()
    steps.lock(connection, locked)
    return {row[0] for row in session.rows(connection, _DELETE, {"ids": array(locked, "uuid")})}
