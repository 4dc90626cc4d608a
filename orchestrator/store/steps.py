"""The row of a step as the referee between workers: claims, and what a worker may still call its own.

Owns: claiming attempts, handing them back unrun, asking what was revoked, holding what a verb decides about, and
listing steps for people.
Does not own: outcomes, which are written by turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.store.histories import STEP_COLUMNS
from orchestrator.workflow.execution import AttemptRow
from orchestrator.workflow.history import StepRow


class Claim(NamedTuple):
    """An attempt somebody wants to run."""

    instance: UUID
    key: str
    fence: int


class Claimed(NamedTuple):
    """An attempt that is ours now, with what its body needs beside the code's own call."""

    claim: Claim
    seq: int
    run: int
    name_id: str
    ending: str | None
    error: str | None
    row: StepRow
    forward_output: str | None
    forward_attempt: int | None


_CLAIM = f"""
WITH c AS (SELECT * FROM unnest(%(ids)s::uuid[], %(keys)s::text[], %(fences)s::int8[]) AS c(id, key, fence)),
held AS (
  SELECT s.instance_id, s.key FROM c
  JOIN orchestrator_steps s ON s.instance_id = c.id AND s.key = c.key
  JOIN orchestrator_instances i ON i.id = c.id
  WHERE s.fence = c.fence AND i.workflow || '@' || i.version = ANY(%(known)s::text[])
    AND (s.status = 'handed' OR (s.status IN ('running', 'cancelling') AND s.worker = %(worker)s::uuid))
  ORDER BY s.instance_id, s.key FOR NO KEY UPDATE OF s SKIP LOCKED),
claimed AS (
  UPDATE orchestrator_steps s SET status = CASE s.status WHEN 'handed' THEN 'running' ELSE s.status END,
    worker = %(worker)s::uuid, claimed_at = to_timestamp(%(now)s)
  FROM held WHERE s.instance_id = held.instance_id AND s.key = held.key
    AND EXISTS (SELECT 1 FROM orchestrator_workers w WHERE w.id = %(worker)s::uuid AND w.dead_at IS NULL)
  RETURNING s.*)
SELECT s.instance_id, i.seq, i.run, i.name_id, i.ending, p.error, f.output, f.attempt, {STEP_COLUMNS}
FROM claimed s JOIN orchestrator_instances i ON i.id = s.instance_id
LEFT JOIN orchestrator_payloads p ON s.kind = 'rollback' AND p.instance_id = s.instance_id
LEFT JOIN orchestrator_steps f ON s.kind = 'rollback' AND f.instance_id = s.instance_id
  AND f.key = left(s.key, -9)
"""

_STILL = """
SELECT c.id, c.key, c.fence FROM unnest(%(ids)s::uuid[], %(keys)s::text[], %(fences)s::int8[]) AS c(id, key, fence)
JOIN orchestrator_steps s ON s.instance_id = c.id AND s.key = c.key
JOIN orchestrator_instances i ON i.id = c.id
WHERE s.fence = c.fence AND s.status = 'handed' AND i.workflow || '@' || i.version = ANY(%(known)s::text[])
"""

_UNCLAIM = """
WITH held AS (
  SELECT s.instance_id, s.key
  FROM unnest(%(ids)s::uuid[], %(keys)s::text[], %(fences)s::int8[]) AS c(id, key, fence)
  JOIN orchestrator_steps s ON s.instance_id = c.id AND s.key = c.key
  WHERE s.fence = c.fence AND s.status = 'running' AND s.worker = %(worker)s::uuid
  ORDER BY s.instance_id, s.key FOR NO KEY UPDATE OF s)
UPDATE orchestrator_steps s SET status = 'handed', worker = NULL, claimed_at = NULL
FROM held WHERE s.instance_id = held.instance_id AND s.key = held.key
"""
_LOCK = """
SELECT 1 FROM orchestrator_steps WHERE instance_id = ANY(%(ids)s::uuid[]) AND status IN ('handed', 'running')
ORDER BY instance_id, key FOR NO KEY UPDATE
"""


def claim(
    connection: Connection, claims: Sequence[Claim], worker: UUID, known: Sequence[str], now: float
) -> tuple[dict[Claim, Claimed], set[Claim]]:
    """Claim these attempts for ``worker``. Returns those it got, and those to try again (their rows were locked).

    A step that is not handed out under that fence, or whose workflow is not ``known`` (``name@version``), is
    neither: its message is dropped. Repeating a claim of the same worker and fence gives the same answer.
    """
    parameters = _claims(claims) | {"worker": worker, "known": array(known, "text"), "now": now}
    got: dict[Claim, Claimed] = {}
    for row in session.rows(connection, _CLAIM, parameters):
        step = StepRow(*row[8:])
        key = Claim(row[0], step.key, step.fence)
        got[key] = Claimed(key, row[1], row[2], row[3], row[4], row[5], step, row[6], row[7])
    if len(got) == len(claims):
        return got, set()
    still = {Claim(*row) for row in session.rows(connection, _STILL, parameters)}
    return got, still - got.keys()


def _claims(claims: Sequence[Claim]) -> dict[str, Any]:
    return {
        "ids": array([c.instance for c in claims], "uuid"),
        "keys": array([c.key for c in claims], "text"),
        "fences": array([c.fence for c in claims], "int8"),
    }


def unclaim(connection: Connection, claims: Sequence[Claim], worker: UUID) -> None:
    """Put claims back as if they had never been made: this process cannot run them."""
    connection.exec_driver_sql(_UNCLAIM, _claims(claims) | {"worker": worker})


def lock(connection: Connection, instances: Sequence[UUID]) -> None:
    """Lock the steps of these (locked) instances that are handed out or running: a claim in flight is waited for, and
    none is made from now on. Who waits for steps does so in the order of their keys."""
    connection.exec_driver_sql(_LOCK, {"ids": array(instances, "uuid")})


def revoked(connection: Connection, running: Sequence[Claim], worker: UUID) -> set[Claim]:
    """Those of ``running`` that ``worker`` should stop: cancelled, handed to another, or gone."""
    rows = connection.exec_driver_sql(
        "SELECT c.id, c.key, c.fence "
        "FROM unnest(%(ids)s::uuid[], %(keys)s::text[], %(fences)s::int8[]) AS c(id, key, fence) "
        "LEFT JOIN orchestrator_steps s ON s.instance_id = c.id AND s.key = c.key "
        "WHERE s.key IS NULL OR s.fence <> c.fence OR s.status <> 'running' OR s.worker <> %(worker)s::uuid",
        _claims(running) | {"worker": worker},
    )
    return {Claim(*row) for row in rows}


def of_instance(connection: Connection, instance: UUID) -> list[StepRow]:
    """Every step of an instance, in start order."""
    rows = connection.exec_driver_sql(
        f"SELECT {STEP_COLUMNS} FROM orchestrator_steps s WHERE s.instance_id = %(id)s AND s.started_seq > 0 "
        f"ORDER BY s.started_seq",
        {"id": instance},
    )
    return [StepRow(*row) for row in rows]


def failed_attempts(connection: Connection, instance: UUID) -> list[AttemptRow]:
    """The recorded failed attempts of an instance, in order."""
    rows = connection.exec_driver_sql(
        "SELECT key, attempt, fence, seq, error, traceback, extract(epoch FROM handed_at)::float8, "
        "extract(epoch FROM claimed_at)::float8, extract(epoch FROM ended_at)::float8, retry_delay_s "
        "FROM orchestrator_attempts WHERE instance_id = %(id)s ORDER BY seq",
        {"id": instance},
    )
    return [AttemptRow(*row) for row in rows]
