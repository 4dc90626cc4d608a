"""What the workers of an application's tasks tell of the attempts they run: claims, and how they ended.

Owns: the table of reports, claiming one attempt by a worker that has no replay, putting the claim aside for a Celery
retry, and reading reports for turns. Does not own: taking them (a turn does, and deletes them), nor ordinary claims
(``steps``).

A report is no fact: the turn that takes it writes those. But it raises the instance's ``seq``, so that a turn which has
not seen it does not move the alarm that it sets. The row of the step stays the referee: what no longer has its fence is
neither claimed nor stored, nor read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.store.steps import Claim


class Report(NamedTuple):
    """How an attempt ended. Texts are the codec's; ``dice`` is [0, 1), for the jitter of a retry's delay."""

    claim: Claim
    output: str | None = None
    error: str | None = None
    traceback: str = ""
    is_final: bool = False
    loss: str | None = None
    dice: float = 0.5


_CLAIM = """
WITH held AS (
  SELECT s.instance_id, s.key FROM orchestrator_steps s
  WHERE s.instance_id = %(id)s::uuid AND s.key = %(key)s AND s.fence = %(fence)s::int8
    AND (s.status = 'handed' OR (s.status = 'running' AND (s.worker IS NULL
      OR (%(again)s::bool AND s.worker = %(worker)s::uuid))))
  FOR NO KEY UPDATE)
UPDATE orchestrator_steps s SET status = 'running', worker = %(worker)s::uuid,
  claimed_at = coalesce(s.claimed_at, clock_timestamp())
FROM held WHERE s.instance_id = held.instance_id AND s.key = held.key
  AND EXISTS (SELECT 1 FROM orchestrator_workers w WHERE w.id = %(worker)s::uuid AND w.dead_at IS NULL)
RETURNING s.config, extract(epoch FROM s.claimed_at)::float8, extract(epoch FROM clock_timestamp())::float8
"""


def claim(
    connection: Connection, wanted: Claim, worker: UUID, *, again: bool
) -> tuple[str, float, float] | None:
    """Claim an attempt for ``worker``: its configuration, when it was claimed first, and the database's time. ``None``
    if it is not handed out under that fence (any more), runs already, or ``worker`` was declared dead.

    ``again``: an earlier try had an unknown outcome, so what is ours already is got once more. A claim that was put
    aside keeps the instant of the first: the time of the attempt goes on.
    """
    parameters = _key(wanted) | {"worker": worker, "again": again}
    found = session.rows(connection, _CLAIM, parameters)
    return (found[0][0] or "", found[0][1], found[0][2]) if found else None


def put_aside(connection: Connection, claim: Claim) -> None:
    """The task will be run again by Celery, perhaps elsewhere: the claim stands, and is nobody's meanwhile."""
    connection.exec_driver_sql(
        "UPDATE orchestrator_steps SET worker = NULL WHERE instance_id = %(id)s::uuid AND key = %(key)s "
        "AND fence = %(fence)s::int8 AND status = 'running'",
        _key(claim),
    )


def standing(connection: Connection, claim: Claim) -> str | None:
    """How this attempt stands: ``handed``, ``running``, ``cancelling``; ``None`` once it is over."""
    found = session.rows(
        connection,
        "SELECT status FROM orchestrator_steps WHERE instance_id = %(id)s::uuid AND key = %(key)s "
        "AND fence = %(fence)s::int8 AND status IN ('handed', 'running', 'cancelling')",
        _key(claim),
    )
    return found[0][0] if found else None


_LOCK = "SELECT 1 FROM orchestrator_instances WHERE id = %(id)s::uuid FOR NO KEY UPDATE"
_STORE = """
WITH attempt AS (
  SELECT s.instance_id FROM orchestrator_steps s WHERE s.instance_id = %(id)s::uuid AND s.key = %(key)s
    AND s.fence = %(fence)s::int8 AND s.status IN ('handed', 'running', 'cancelling')),
stored AS (
  INSERT INTO orchestrator_reports
    (instance_id, key, fence, output, error, traceback, is_final, loss, dice, reported_at)
  SELECT instance_id, %(key)s, %(fence)s::int8, %(output)s, %(error)s, %(traceback)s, %(is_final)s::bool, %(loss)s,
    %(dice)s::float8, clock_timestamp() FROM attempt
  ON CONFLICT (instance_id, key, fence) DO NOTHING RETURNING instance_id)
UPDATE orchestrator_instances i SET seq = i.seq + 1, alarm_at = LEAST(i.alarm_at, clock_timestamp())
FROM stored WHERE i.id = stored.instance_id RETURNING i.id
"""


def store(connection: Connection, report: Report) -> bool:
    """Store a report and set the instance's alarm; false if the attempt is not current, or has been reported. In a
    transaction: the row is locked first, and the step read in a statement after that."""
    claim = report.claim
    session.rows(connection, _LOCK, {"id": claim.instance})
    parameters = _key(claim) | {
        "output": report.output,
        "error": report.error,
        "traceback": report.traceback,
        "is_final": report.is_final,
        "loss": report.loss,
        "dice": report.dice,
    }
    return bool(session.rows(connection, _STORE, parameters))


_READ = """
SELECT r.instance_id, r.key, r.fence, r.output, r.error, r.traceback, r.is_final, r.loss, r.dice
FROM unnest(%(ids)s::uuid[]) AS k(id) JOIN orchestrator_reports r ON r.instance_id = k.id
JOIN orchestrator_steps s ON s.instance_id = r.instance_id AND s.key = r.key AND s.fence = r.fence
WHERE s.status IN ('handed', 'running', 'cancelling') ORDER BY r.instance_id, r.reported_at
"""


def read(connection: Connection, instances: Sequence[UUID]) -> list[Report]:
    """The reports of these instances that no turn has taken, in the order in which they came."""
    rows = session.rows(connection, _READ, {"ids": array(instances, "uuid")})
    return [Report(Claim(*row[:3]), *row[3:]) for row in rows]


def _key(claim: Claim) -> dict[str, Any]:
    return {"id": claim.instance, "key": claim.key, "fence": claim.fence}
