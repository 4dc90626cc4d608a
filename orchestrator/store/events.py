"""The inbox: events that were received and not yet consumed.

Owns: appending. Does not own: which waiter gets an event (``workflow.turn``); consuming is part of a turn.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection

from orchestrator.errors import InstanceNotFound, InvalidTransition
from orchestrator.store import session
from orchestrator.workflow.status import FINISHED, Status

_FINISHED = ", ".join(f"'{status}'" for status in sorted(FINISHED))

# The waiter is looked for as things stood when the statement began. If it then had to wait for the row, a turn may
# have begun a wait meanwhile: the row it gets has another ``seq`` than the one it saw. Then the alarm rings anyway.
# An event is received when it has the row: a turn that had it before, and timed a waiter out, has overlooked nothing.
_APPEND = f"""
WITH target AS MATERIALIZED (
  SELECT id, seq, status FROM orchestrator_instances
  WHERE account = %(account)s AND workflow = %(workflow)s AND name_id = %(name_id)s),
waiter AS MATERIALIZED (
  SELECT EXISTS (SELECT 1 FROM target, orchestrator_steps s WHERE s.instance_id = target.id AND s.kind = 'wait'
    AND s.status = 'waiting' AND s.config::json ->> 'type' = %(type)s) AS waits),
moved AS (
  UPDATE orchestrator_instances i SET seq = i.seq + 1,
    alarm_at = CASE WHEN (waiter.waits OR i.seq <> target.seq) AND i.blocked IS NULL
        AND i.status IN ('running', 'waiting')
      THEN LEAST(i.alarm_at, coalesce(to_timestamp(%(now)s::float8), clock_timestamp())) ELSE i.alarm_at END
  FROM target, waiter WHERE i.id = target.id AND i.status NOT IN ({_FINISHED})
  RETURNING i.id, i.seq, waiter.waits OR i.seq <> target.seq + 1 AS waits,
    coalesce(to_timestamp(%(now)s::float8), clock_timestamp()) AS at),
added AS (
  INSERT INTO orchestrator_inbox (instance_id, number, type, payload, received_at)
  SELECT id, seq, %(type)s, %(payload)s, at FROM moved)
SELECT target.id, target.status, moved.waits FROM target LEFT JOIN moved ON true
"""


def append(
    connection: Connection,
    account: str,
    workflow: str,
    name_id: str,
    type: str,
    payload: str,
    now: float | None = None,
    *,
    joined: bool = False,
) -> tuple[UUID, bool]:
    """Append an event; returns the instance and whether anything waits there, or may do so. It is received at ``now``,
    or when it is written, by the database's clock. ``joined``: the connection is an application's, which may drive it
    as it likes.

    Raises ``InstanceNotFound``, and ``InvalidTransition`` if the instance is finished.
    """
    parameters = {
        "account": account,
        "workflow": workflow,
        "name_id": name_id,
        "type": type,
        "payload": payload,
        "now": now,
    }
    while True:
        if joined:
            rows = [tuple(row) for row in connection.exec_driver_sql(_APPEND, parameters)]
        else:
            rows = session.rows(connection, _APPEND, parameters)
        if not rows:
            raise InstanceNotFound(name_id)
        instance, status, waits = rows[0]
        if waits is not None:
            return instance, bool(waits)
        if Status(status) in FINISHED:
            raise InvalidTransition(f"Instance {name_id!r} is {status}; it takes no more events.")
        # It ended, or went, while the statement waited for its row: the next look sees that.
