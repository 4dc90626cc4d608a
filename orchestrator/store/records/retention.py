"""Retention: deleting finished instances whose time is over.

Owns: which are due, and one batch of deletions. Does not own: when batches come (``control.retention``), nor the
deletion itself (``deletion``).

Any number of workers may sweep at once: each takes rows that nobody holds. An account deletes its own instances alone.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.records import deletion
from orchestrator.store.records.children import KEPT_FOR_PARENT

SOONEST_S, LATEST_S = 60.0, 3600.0
"""An expired child that is kept for its parent is looked at again after a tenth of its age, but no sooner than the
first and no later than the second: else those that are kept would be read in every sweep, however many they are."""


class Swept(NamedTuple):
    """How many expired instances were looked at, and how many of them are deleted."""

    seen: int
    deleted: int


# A restart takes ``expires_at`` back. So whoever holds the lock of a row that has it holds a finished instance.
_DUE = f"""
WITH due AS MATERIALIZED (
  SELECT i.id, i.ended_at, {KEPT_FOR_PARENT} AS is_kept FROM orchestrator_instances i
  WHERE i.account = %(account)s::text AND i.expires_at <= to_timestamp(%(now)s::float8)
  ORDER BY i.expires_at LIMIT %(limit)s::int8 FOR UPDATE OF i SKIP LOCKED),
later AS (
  UPDATE orchestrator_instances i SET expires_at = to_timestamp(%(now)s::float8 + LEAST({LATEST_S}, GREATEST(
    {SOONEST_S}, (%(now)s::float8 - extract(epoch FROM due.ended_at)::float8) / 10)))
  FROM due WHERE i.id = due.id AND due.is_kept)
SELECT id, is_kept FROM due
"""


def sweep(connection: Connection, account: str, now: float, limit: int) -> Swept:
    """Look at no more than ``limit`` instances that have expired at ``now``, those that expired first, and delete them.

    Spares children that one of their ancestors may yet have to undo. Needs a transaction.
    """
    parameters = {"account": account, "now": now, "limit": limit}
    due = session.rows(connection, _DUE, parameters)
    over = [instance for instance, is_kept in due if not is_kept]
    return Swept(len(due), len(deletion.delete(connection, over)) if over else 0)
