"""Retention: deleting finished instances whose time is over.

Owns: which are due, and one batch of deletions. Does not own: when batches come (``control.retention``), nor the
deletion itself (``deletion``).

Any number of workers may sweep at once: each takes rows that nobody holds. An account deletes its own instances alone.
"""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.records import deletion
from orchestrator.store.records.children import KEPT_FOR_PARENT

# A restart takes ``expires_at`` back. So whoever holds the lock of a row that has it holds a finished instance.
_DUE = f"""
SELECT i.id FROM orchestrator_instances i
WHERE i.account = %(account)s::text AND i.expires_at <= to_timestamp(%(now)s::float8)
  AND NOT {KEPT_FOR_PARENT}
ORDER BY i.expires_at LIMIT %(limit)s::int8 FOR UPDATE OF i SKIP LOCKED
"""


def sweep(connection: Connection, account: str, now: float, limit: int) -> int:
    """Delete at most ``limit`` instances that have expired at ``now``, those that expired first; how many they were.

    Spares children whose parent has not ended, or may yet be rolled back further. Needs a transaction.
    """
    parameters = {"account": account, "now": now, "limit": limit}
    due = [row[0] for row in session.rows(connection, _DUE, parameters)]
    return len(deletion.delete(connection, due)) if due else 0
