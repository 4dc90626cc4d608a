"""The inbox: events that were received and not yet consumed.

Owns: appending. Does not own: which waiter gets an event (``workflow.turn``); consuming is part of a turn.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import Connection

from orchestrator.errors import InstanceNotFound, InvalidTransition
from orchestrator.workflow.status import FINISHED, Status

_LOCK = """
SELECT id, status FROM orchestrator_instances
WHERE account = %(account)s AND workflow = %(workflow)s AND name_id = %(name_id)s FOR NO KEY UPDATE
"""

# A statement of its own, after the lock: only then it sees a wait that a turn has just begun.
_APPEND = """
WITH waiter AS (
  SELECT EXISTS (SELECT 1 FROM orchestrator_steps s WHERE s.instance_id = %(id)s::uuid AND s.kind = 'wait'
    AND s.status = 'waiting' AND s.config::json ->> 'type' = %(type)s) AS waits),
moved AS (
  UPDATE orchestrator_instances i SET seq = i.seq + 1,
    alarm_at = CASE WHEN waiter.waits AND i.blocked IS NULL AND i.status IN ('running', 'waiting')
      THEN LEAST(i.alarm_at, to_timestamp(%(now)s)) ELSE i.alarm_at END
  FROM waiter WHERE i.id = %(id)s::uuid RETURNING i.id, i.seq, waiter.waits),
added AS (
  INSERT INTO orchestrator_inbox (instance_id, number, type, payload, received_at)
  SELECT id, seq, %(type)s, %(payload)s, to_timestamp(%(now)s) FROM moved)
SELECT waits FROM moved
"""


def append(
    connection: Connection, account: str, workflow: str, name_id: str, type: str, payload: str, now: float
) -> tuple[UUID, bool]:
    """Append an event; returns the instance and whether anything waits there.

    Raises ``InstanceNotFound``, and ``InvalidTransition`` if the instance is finished.
    """
    target = {"account": account, "workflow": workflow, "name_id": name_id}
    row = connection.exec_driver_sql(_LOCK, target).one_or_none()
    if row is None:
        raise InstanceNotFound(name_id)
    instance, status = row
    if Status(status) in FINISHED:
        raise InvalidTransition(f"Instance {name_id!r} is {status}; it takes no more events.")
    waits = connection.exec_driver_sql(
        _APPEND, {"id": instance, "type": type, "payload": payload, "now": now}
    ).scalar_one()
    return instance, bool(waits)
