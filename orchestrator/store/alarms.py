"""What is due: alarms about to ring.

Owns: reading the index that brings back every unfinished instance that is not queued. Does not own: what a wake-up
does, the queue (``control.queue``).
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array

# ``seen`` reads the index alone; ``chosen`` are the oldest of each workflow in turn, so that a flood of one delays no
# other; only those are locked. One that was moved since it was seen is somebody else's.
_TAKE = """
WITH known AS (SELECT * FROM unnest(%(workflows)s::text[], %(versions)s::text[]) AS known(workflow, version)),
seen AS MATERIALIZED (
  SELECT d.id, d.alarm_at, row_number() OVER (PARTITION BY k.workflow ORDER BY d.alarm_at) AS place
  FROM known k CROSS JOIN LATERAL (
    SELECT i.id, i.alarm_at FROM orchestrator_instances i
    WHERE i.account = %(account)s AND i.workflow = k.workflow AND i.version = k.version
      AND i.alarm_at < to_timestamp(%(until)s) AND i.alarm_at < 'infinity'::timestamptz
    ORDER BY i.alarm_at LIMIT %(limit)s) d),
chosen AS MATERIALIZED (SELECT id, alarm_at FROM seen ORDER BY place, alarm_at LIMIT %(limit)s),
due AS MATERIALIZED (
  SELECT i.id, i.alarm_at FROM chosen c JOIN orchestrator_instances i ON i.id = c.id AND i.alarm_at = c.alarm_at
  FOR NO KEY UPDATE OF i SKIP LOCKED)
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
    """Alarms that ring before ``until``, each with its moment, of the workflows in ``known`` (``name@version``): at
    most ``limit``, shared max-min between the workflows, the oldest of each first.

    Each is moved to ``again`` seconds after its moment: should the taker die, it rings there for somebody else.
    """
    parts = [name.partition("@") for name in known]
    parameters = {
        "account": account,
        "workflows": array([name for name, _, _ in parts], "text"),
        "versions": array([version for _, _, version in parts], "text"),
        "now": now,
        "until": until,
        "again": again,
        "limit": limit,
    }
    return [(row[0], row[1]) for row in session.rows(connection, _TAKE, parameters)]
