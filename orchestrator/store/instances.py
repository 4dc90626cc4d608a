"""Instances: creating them, finding them, letting blocked ones try again.

Owns: inserts, look-ups by id, the result as stored. Does not own: turns (``turns``), listing and limits.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.ports import FOREVER
from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.store.control.layouts import CHOSEN, LAST
from orchestrator.workflow.status import FINISHED


@dataclass(slots=True, frozen=True)
class NewInstance:
    """An instance to create. ``params`` is the codec's text, retention is in seconds."""

    id: UUID
    name_id: str
    params: str
    success_retention_s: float
    error_retention_s: float


@dataclass(slots=True, frozen=True)
class Result:
    """What an instance came to so far; texts are the codec's JSON."""

    id: UUID
    name_id: str
    status: str
    output: str | None
    error: str | None
    rollback: str | None
    blocked: str | None
    version: str
    created_at: float


_CREATE = f"""
WITH n AS (SELECT * FROM unnest(%(ids)s::uuid[], %(names)s::text[], %(params)s::text[], %(success)s::float8[],
  %(error)s::float8[], %(runs)s::bool[]) AS n(id, name_id, params, success, error, runs)),
made AS (
  INSERT INTO orchestrator_instances (id, account, workflow, name_id, version, status, alarm_at, queued_at,
    created_at, state_bytes, success_retention_s, error_retention_s, shard)
  SELECT n.id, %(account)s::text, %(workflow)s::text, n.name_id, %(version)s::text,
    CASE WHEN n.runs THEN 'running' ELSE 'queued' END,
    CASE WHEN n.runs THEN to_timestamp(%(alarm_at)s::float8) ELSE 'infinity' END,
    CASE WHEN n.runs THEN NULL ELSE to_timestamp(%(now)s::float8) END, to_timestamp(%(now)s::float8),
    length(n.params), n.success, n.error, {CHOSEN.format("%(shards)s::int")}
  FROM n {LAST.format("%(account)s::text", "%(workflow)s::text")}
  ORDER BY n.name_id ON CONFLICT (account, workflow, name_id) DO NOTHING RETURNING id),
kept AS (INSERT INTO orchestrator_payloads (instance_id, params)
  SELECT n.id, n.params FROM n JOIN made ON made.id = n.id)
SELECT id FROM made
"""


def create(
    connection: Connection,
    account: str,
    workflow: str,
    version: str,
    new: Sequence[NewInstance],
    now: float,
    *,
    alarm_at: float = FOREVER,
    running: Collection[UUID] | None = None,
    shards: int = 1,
    joined: bool = False,
) -> set[UUID]:
    """Insert these instances; returns those whose id was free. The caller's transaction is never aborted.

    With an ``alarm_at`` they are ``running`` (their slot is taken), or only those in ``running``; without they are
    ``queued``. ``shards``: into how many the queue will be cut, if no worker has entered the workflow yet. ``joined``:
    the connection is an application's, which may drive it as it likes.
    """
    if running is None:
        running = () if alarm_at == FOREVER else {n.id for n in new}
    parameters = {
        "ids": array([n.id for n in new], "uuid"),
        "names": array([n.name_id for n in new], "text"),
        "params": array([n.params for n in new], "text"),
        "success": array([n.success_retention_s for n in new], "float8"),
        "error": array([n.error_retention_s for n in new], "float8"),
        "account": account,
        "workflow": workflow,
        "version": version,
        "runs": array([n.id in running for n in new], "bool"),
        "alarm_at": alarm_at,
        "now": now,
        "shards": shards,
    }
    if joined:  # it may be async beneath, and its transaction must begin: SQLAlchemy knows how
        return {row[0] for row in connection.exec_driver_sql(_CREATE, parameters)}
    return {row[0] for row in session.rows(connection, _CREATE, parameters)}


_FINISHED = ", ".join(f"'{status}'" for status in sorted(FINISHED))
_COLUMNS = (
    "i.id, i.name_id, i.status, p.output, p.error, i.rollback, i.blocked, i.version, "
    "extract(epoch FROM i.created_at)::float8"
)
_BY_NAME = f"""
SELECT {_COLUMNS} FROM orchestrator_instances i JOIN orchestrator_payloads p ON p.instance_id = i.id
WHERE i.account = %(account)s AND i.workflow = %(workflow)s AND i.name_id = %(name_id)s
"""
_ENDED = f"""
SELECT w.id, {_COLUMNS} FROM unnest(%(ids)s::uuid[]) AS w(id)
LEFT JOIN orchestrator_instances i ON i.id = w.id
LEFT JOIN orchestrator_payloads p ON p.instance_id = i.id
WHERE i.id IS NULL OR i.status IN ({_FINISHED})
"""


def result(connection: Connection, account: str, workflow: str, name_id: str) -> Result | None:
    """What the instance came to so far, or ``None`` if there is no such instance."""
    target = {"account": account, "workflow": workflow, "name_id": name_id}
    for row in session.rows(connection, _BY_NAME, target):
        return Result(*row)
    return None


def ended(connection: Connection, instances: Sequence[str]) -> dict[str, Result | None]:
    """Those of these instances that are finished, and those that do not exist (``None``)."""
    rows = session.rows(connection, _ENDED, {"ids": array(instances, "uuid")})
    return {str(row[0]): None if row[1] is None else Result(*row[1:]) for row in rows}


def lock_by_name(connection: Connection, account: str, workflow: str, name_id: str) -> UUID | None:
    """Lock one instance, waiting for whoever holds it; its id, or ``None`` if there is none."""
    return connection.exec_driver_sql(
        "SELECT id FROM orchestrator_instances WHERE account = %(account)s AND workflow = %(workflow)s "
        "AND name_id = %(name_id)s FOR NO KEY UPDATE",
        {"account": account, "workflow": workflow, "name_id": name_id},
    ).scalar_one_or_none()


def paused_at(connection: Connection, instance: UUID) -> float | None:
    """When this (locked) instance came to be paused last, epoch seconds."""
    rows = session.rows(
        connection,
        "SELECT extract(epoch FROM at)::float8 FROM orchestrator_transitions "
        "WHERE instance_id = %(id)s::uuid AND status = 'paused' ORDER BY seq DESC LIMIT 1",
        {"id": instance},
    )
    return rows[0][0] if rows else None


def release_blocked(connection: Connection, account: str, workflows: Sequence[str], now: float) -> int:
    """Let the blocked instances of these workflows be tried again: other code has come.

    Locked ones are left out: they are tried again by their own alarm.
    """
    done = connection.exec_driver_sql(
        "UPDATE orchestrator_instances SET alarm_at = to_timestamp(%(now)s) WHERE id IN ("
        "SELECT id FROM orchestrator_instances WHERE account = %(account)s "
        "AND workflow = ANY(%(workflows)s::text[]) AND blocked IS NOT NULL AND alarm_at < 'infinity' "
        "FOR NO KEY UPDATE SKIP LOCKED)",
        {"account": account, "workflows": list(workflows), "now": now},
    )
    return done.rowcount
