"""What is due: alarms about to ring.

Owns: reading the index that brings back every unfinished instance that is not queued, and moving on, without a turn,
the alarms at which none is needed. Does not own: what a turn does, the queue (``control.queue``).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.workflow.deciding.turn import RUNNING_S
from orchestrator.workflow.history import FINAL

_FINAL = ", ".join(f"'{status}'" for status in sorted(FINAL))
LOOKED = 1000
"""So many more than may be taken are looked at, since most may need no turn."""
SHORT = 200
"""An instance with no more facts than this is judged here: of a longer one a turn knows what is open, and this would
read all of its steps."""

# Whether a turn of a running instance would find nothing to do, and when the next one is due then; else NULL. All that
# is open is a body of ours on a live worker, within its time, or waits for later; nothing was received; and no turn is
# outstanding (awoken). A child is left to a turn: its parent may have a word for it.
_NEXT = f"""
CASE WHEN i.status = 'running' AND NOT i.awoken AND i.seq <= {SHORT} AND i.started_at IS NOT NULL AND i.ending IS NULL
    AND i.blocked IS NULL AND i.parent_id IS NULL
    AND NOT EXISTS (SELECT FROM orchestrator_inbox b WHERE b.instance_id = i.id)
  THEN (SELECT CASE WHEN bool_and(o.is_well) AND bool_or(o.is_running)
      THEN LEAST(GREATEST(i.alarm_at, to_timestamp(%(now)s)) + make_interval(secs => {RUNNING_S}), min(o.due_at)) END
    FROM (SELECT s.status = 'running' AS is_running, s.due_at,
        coalesce(CASE WHEN s.status = 'running' THEN strpos(s.config, '"task":') = 0
          AND s.claimed_at + make_interval(secs => (s.config::json ->> 'timeout_s')::float8) > to_timestamp(%(until)s)
          AND EXISTS (SELECT FROM orchestrator_workers w WHERE w.id = s.worker AND w.dead_at IS NULL)
        ELSE s.status IN ('waiting', 'pending') AND s.kind <> 'invoke' AND s.due_at > to_timestamp(%(until)s) END,
          false) AS is_well
      FROM orchestrator_steps s WHERE s.instance_id = i.id AND s.status NOT IN ({_FINAL})) o) END
"""

# ``seen`` reads the index alone; ``looked`` are the oldest of each workflow in turn, so that a flood of one delays no
# other, and so are those of them that are taken. Only these are locked. What was changed since it was seen is left:
# steps were read as of then.
_TAKE = f"""
WITH known AS (SELECT * FROM unnest(%(workflows)s::text[], %(versions)s::text[]) AS known(workflow, version)),
seen AS MATERIALIZED (
  SELECT d.id, d.alarm_at, k.workflow, row_number() OVER (PARTITION BY k.workflow ORDER BY d.alarm_at) AS place
  FROM known k CROSS JOIN LATERAL (
    SELECT i.id, i.alarm_at FROM orchestrator_instances i
    WHERE i.account = %(account)s AND i.workflow = k.workflow AND i.version = k.version
      AND i.alarm_at < to_timestamp(%(until)s) AND i.alarm_at < 'infinity'::timestamptz
    ORDER BY i.alarm_at LIMIT %(limit)s + {LOOKED}) d),
looked AS MATERIALIZED (
  SELECT s.id, s.workflow, i.alarm_at, i.seq, {_NEXT} AS next_at
  FROM (SELECT id, workflow FROM seen ORDER BY place, alarm_at LIMIT %(limit)s + {LOOKED}) s
  JOIN orchestrator_instances i ON i.id = s.id),
ranked AS (SELECT l.*, row_number() OVER (PARTITION BY workflow, next_at IS NULL ORDER BY alarm_at) AS place
  FROM looked l),
chosen AS MATERIALIZED (
  SELECT id, alarm_at, seq, next_at FROM ranked WHERE next_at IS NOT NULL UNION ALL
  (SELECT id, alarm_at, seq, next_at FROM ranked WHERE next_at IS NULL ORDER BY place, alarm_at LIMIT %(limit)s)),
due AS MATERIALIZED (
  SELECT i.id, i.alarm_at, c.next_at FROM chosen c JOIN orchestrator_instances i ON i.id = c.id
  WHERE i.alarm_at = c.alarm_at AND (c.next_at IS NULL OR i.seq = c.seq)
  FOR NO KEY UPDATE OF i SKIP LOCKED)
UPDATE orchestrator_instances i SET alarm_at = coalesce(due.next_at,
  GREATEST(due.alarm_at, to_timestamp(%(now)s)) + make_interval(secs => %(again)s))
FROM due WHERE i.id = due.id RETURNING i.id, extract(epoch FROM due.alarm_at)::float8, due.next_at IS NULL
"""


class Taken(NamedTuple):
    """What was due."""

    due: list[tuple[UUID, float]]
    """Instances that want a turn, each at its moment."""
    settled: int
    """How many were looked at and need none: their alarms were moved on."""
    is_full: bool
    """There may be more."""


def take(
    connection: Connection,
    account: str,
    known: Sequence[str],
    now: float,
    until: float,
    again: float,
    limit: int,
) -> Taken:
    """Alarms that ring before ``until``, each with its moment, of the workflows in ``known`` (``name@version``): at
    most ``limit`` that want a turn, shared max-min between the workflows, the oldest of each first.

    Each of these is moved to ``again`` seconds after its moment: should the taker die, it rings there for others.
    Those at which a turn would find nothing to do are not among them: they are moved to where that turn would.
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
    rows = session.rows(connection, _TAKE, parameters)
    due = [(row[0], row[1]) for row in rows if row[2]]
    return Taken(due, len(rows) - len(due), len(due) >= limit or len(rows) >= limit + LOOKED)


_RING_HANDED = """
UPDATE orchestrator_instances SET alarm_at = to_timestamp(%(now)s) WHERE id IN (
  SELECT i.id FROM unnest(%(ids)s::uuid[]) AS k(id) JOIN orchestrator_instances i ON i.id = k.id
  WHERE i.alarm_at > to_timestamp(%(now)s) AND i.alarm_at < 'infinity' AND EXISTS (
    SELECT FROM orchestrator_steps s WHERE s.instance_id = i.id AND s.status = 'handed')
  FOR NO KEY UPDATE OF i SKIP LOCKED)
RETURNING id
"""


def ring_handed(connection: Connection, instances: Collection[UUID], now: float) -> int:
    """Let those of these instances be looked at now that have a hand-out nobody has claimed: its message may be gone.
    Returns how many; those that somebody holds are left to the alarm they have."""
    return len(session.rows(connection, _RING_HANDED, {"ids": array(instances, "uuid"), "now": now}))
