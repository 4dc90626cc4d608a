"""What is due: alarms about to ring, and queued instances about to start.

Owns: reading the two indexes that bring every unfinished instance back. Does not own: what a wake-up does.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.ports import Holder

_TAKE = """
WITH due AS (
  SELECT id, alarm_at FROM orchestrator_instances
  WHERE account = %(account)s AND alarm_at < to_timestamp(%(until)s) AND alarm_at < 'infinity'::timestamptz
    AND workflow || '@' || version = ANY(%(known)s::text[])
  ORDER BY alarm_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED)
UPDATE orchestrator_instances i
SET alarm_at = GREATEST(due.alarm_at, to_timestamp(%(now)s)) + make_interval(secs => %(again)s)
FROM due WHERE i.id = due.id RETURNING i.id, extract(epoch FROM due.alarm_at)::float8
"""


def take(
    connection: Connection,
    account: str,
    known: Sequence[str],
    now: float,
    until: float,
    again: float,
    limit: int,
) -> list[tuple[UUID, float]]:
    """Alarms that ring before ``until``, each with its moment, of the workflows in ``known`` (``name@version``).

    Each is moved to ``again`` seconds after its moment: should the taker die, it rings there for somebody else.
    """
    rows = connection.exec_driver_sql(
        _TAKE,
        {
            "account": account,
            "known": list(known),
            "now": now,
            "until": until,
            "again": again,
            "limit": limit,
        },
    )
    return [(row[0], row[1]) for row in rows]


_QUEUED = """
SELECT id, workflow FROM orchestrator_instances
WHERE account = %(account)s AND status = 'queued' AND workflow || '@' || version = ANY(%(known)s::text[])
ORDER BY awoken DESC, queued_at LIMIT %(limit)s
"""


def queued(connection: Connection, account: str, known: Sequence[str], limit: int) -> list[Holder]:
    """Instances that wait for a slot, awoken ones first, then by age."""
    rows = connection.exec_driver_sql(_QUEUED, {"account": account, "known": list(known), "limit": limit})
    return [Holder(*row) for row in rows]


_START = """
WITH q AS (SELECT id FROM orchestrator_instances WHERE id = ANY(%(ids)s::uuid[]) AND status = 'queued'
  ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),
started AS (
  UPDATE orchestrator_instances i SET status = 'running', seq = i.seq + 1, queued_at = NULL, awoken = false,
    alarm_at = to_timestamp(%(alarm)s)
  FROM q WHERE i.id = q.id RETURNING i.id, i.seq),
recorded AS (INSERT INTO orchestrator_transitions (instance_id, seq, status, at)
  SELECT id, seq, 'running', clock_timestamp() FROM started)
SELECT id FROM started
"""


def start(connection: Connection, granted: Sequence[UUID], alarm_at: float) -> list[UUID]:
    """Let queued instances that were granted a slot run; returns those that still were queued."""
    rows = connection.exec_driver_sql(_START, {"ids": list(granted), "alarm": alarm_at})
    return [row[0] for row in rows]
