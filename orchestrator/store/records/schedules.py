"""The schedules of registered workflows: entering them, taking what is due, pausing.

Owns: the ``schedules`` table, and inserting the instances that schedules create. Does not own: which moments are due
(``control.schedules``), nor what an expression means (``workflow.language.schedule``). Instants are epoch seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.ports import FOREVER
from orchestrator.store.arrays import array
from orchestrator.store.control.layouts import CHOSEN, LAST


class Planned(NamedTuple):
    """A schedule as a definition has it. ``params`` is the codec's text; ``next_at`` counts if it is new."""

    workflow: str
    version: str
    cron: str
    tz: str
    params: str
    next_at: float


class Row(NamedTuple):
    """A schedule as it stands. ``last_at`` is the moment it fired for last."""

    workflow: str
    version: str
    cron: str
    tz: str
    params: str
    is_paused: bool
    next_at: float
    last_at: float | None


class Firing(NamedTuple):
    """A schedule that fires for ``moment``, the instance that is to be created for it, and when it fires next."""

    row: Row
    moment: float
    next_at: float
    instance: UUID
    name_id: str
    success_retention_s: float
    error_retention_s: float


_ANY = (
    "SELECT EXISTS (SELECT 1 FROM orchestrator_schedules "
    "WHERE account = %(account)s AND workflow = ANY(%(workflows)s::text[]))"
)
# Whoever registers does so alone, for the order of rows says nothing while some are deleted and others inserted.
_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('orchestrator.schedules:' || %(account)s::text, 0))"
_PLANNED = (
    "unnest(%(names)s::text[], %(versions)s::text[], %(crons)s::text[], %(zones)s::text[], %(params)s::text[], "
    "%(nexts)s::float8[]) AS p(workflow, version, cron, tz, params, next_at)"
)
_DROP = f"""
DELETE FROM orchestrator_schedules s WHERE account = %(account)s AND workflow = ANY(%(workflows)s::text[])
  AND NOT EXISTS (SELECT 1 FROM {_PLANNED} WHERE (p.workflow, p.cron, p.tz) = (s.workflow, s.cron, s.tz))
"""
_ENTER = f"""
INSERT INTO orchestrator_schedules (account, workflow, cron, tz, version, params, next_at)
SELECT %(account)s::text, p.workflow, p.cron, p.tz, p.version, p.params, to_timestamp(p.next_at) FROM {_PLANNED}
ORDER BY p.workflow, p.cron, p.tz
ON CONFLICT (account, workflow, cron, tz) DO UPDATE SET version = excluded.version, params = excluded.params
"""


def register(
    connection: Connection, account: str, workflows: Sequence[str], planned: Sequence[Planned]
) -> None:
    """Let ``planned`` be all the schedules that these workflows have. Those that stay keep their next moment, and stay
    paused if they were."""
    parameters = {
        "account": account,
        "workflows": array(workflows, "text"),
        "names": array([p.workflow for p in planned], "text"),
        "versions": array([p.version for p in planned], "text"),
        "crons": array([p.cron for p in planned], "text"),
        "zones": array([p.tz for p in planned], "text"),
        "params": array([p.params for p in planned], "text"),
        "nexts": array([p.next_at for p in planned], "float8"),
    }
    if not planned and not connection.exec_driver_sql(_ANY, parameters).scalar_one():
        return
    for statement in (_ALONE, _DROP, _ENTER):
        connection.exec_driver_sql(statement, parameters)


_COLUMNS = (
    "workflow, version, cron, tz, params, is_paused, extract(epoch FROM next_at)::float8, "
    "extract(epoch FROM last_at)::float8"
)
_READY = "account = %(account)s AND NOT is_paused AND workflow || '@' || version = ANY(%(known)s::text[])"
_DUE = f"""
SELECT {_COLUMNS} FROM orchestrator_schedules WHERE {_READY} AND next_at <= to_timestamp(%(now)s)
ORDER BY next_at, workflow, cron, tz LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED
"""


def due(connection: Connection, account: str, known: Sequence[str], now: float, limit: int) -> list[Row]:
    """Lock the schedules whose next moment has come, of the workflows in ``known`` (``name@version``); those that
    another process has locked are left to it."""
    parameters = {"account": account, "known": array(known, "text"), "now": now, "limit": limit}
    return [Row(*row) for row in connection.exec_driver_sql(_DUE, parameters)]


def nearest(connection: Connection, account: str, known: Sequence[str]) -> float:
    """The earliest next moment of the schedules of ``known`` that are not paused; ``FOREVER`` if there is none."""
    found = connection.exec_driver_sql(
        f"SELECT extract(epoch FROM min(next_at))::float8 FROM orchestrator_schedules WHERE {_READY}",
        {"account": account, "known": array(known, "text")},
    ).scalar_one()
    return FOREVER if found is None else float(found)


_FIRE = f"""
WITH f AS (SELECT * FROM unnest(%(ids)s::uuid[], %(workflows)s::text[], %(versions)s::text[], %(crons)s::text[],
  %(zones)s::text[], %(params)s::text[], %(names)s::text[], %(moments)s::float8[], %(nexts)s::float8[],
  %(success)s::float8[], %(error)s::float8[])
  AS f(id, workflow, version, cron, tz, params, name_id, moment, next_at, success, error)),
made AS (
  INSERT INTO orchestrator_instances (id, account, workflow, name_id, version, status, alarm_at, queued_at,
    created_at, state_bytes, success_retention_s, error_retention_s, schedule, scheduled_at, shard)
  SELECT f.id, %(account)s::text, f.workflow, f.name_id, f.version, 'queued', 'infinity', to_timestamp(%(now)s::float8),
    to_timestamp(%(now)s::float8), length(f.params), f.success, f.error, f.cron, to_timestamp(f.moment),
    {CHOSEN.format(1)}
  FROM f {LAST.format("%(account)s::text", "f.workflow")}
  ORDER BY f.workflow, f.name_id ON CONFLICT (account, workflow, name_id) DO NOTHING RETURNING id),
kept AS (INSERT INTO orchestrator_payloads (instance_id, params)
  SELECT f.id, f.params FROM f JOIN made ON made.id = f.id),
moved AS (
  UPDATE orchestrator_schedules s SET next_at = to_timestamp(f.next_at), last_at = to_timestamp(f.moment)
  FROM f WHERE s.account = %(account)s AND (s.workflow, s.cron, s.tz) = (f.workflow, f.cron, f.tz))
SELECT id FROM made
"""


def fire(connection: Connection, account: str, firings: Sequence[Firing], now: float) -> set[UUID]:
    """Queue the instances of these schedules, which this transaction has locked, and move the schedules on. Returns
    those whose id was free: an instance of that id means that it has fired for this moment before."""
    rows = [firing.row for firing in firings]
    parameters = {
        "account": account,
        "now": now,
        "ids": array([f.instance for f in firings], "uuid"),
        "workflows": array([row.workflow for row in rows], "text"),
        "versions": array([row.version for row in rows], "text"),
        "crons": array([row.cron for row in rows], "text"),
        "zones": array([row.tz for row in rows], "text"),
        "params": array([row.params for row in rows], "text"),
        "names": array([f.name_id for f in firings], "text"),
        "moments": array([f.moment for f in firings], "float8"),
        "nexts": array([f.next_at for f in firings], "float8"),
        "success": array([f.success_retention_s for f in firings], "float8"),
        "error": array([f.error_retention_s for f in firings], "float8"),
    }
    return {row[0] for row in connection.exec_driver_sql(_FIRE, parameters)}


def listed(connection: Connection, account: str, workflow: str | None = None) -> list[Row]:
    """All schedules, or those of one workflow, by workflow, expression and time zone."""
    return [
        Row(*row)
        for row in connection.exec_driver_sql(
            f"SELECT {_COLUMNS} FROM orchestrator_schedules WHERE account = %(account)s "
            "AND (%(workflow)s::text IS NULL OR workflow = %(workflow)s::text) ORDER BY workflow, cron, tz",
            {"account": account, "workflow": workflow},
        )
    ]


def pause(connection: Connection, account: str, row: Row) -> None:
    """Let the schedule fire no more. Nothing changes if it is paused already."""
    connection.exec_driver_sql(
        "UPDATE orchestrator_schedules SET is_paused = true WHERE account = %(account)s "
        "AND (workflow, cron, tz) = (%(workflow)s, %(cron)s, %(tz)s) AND NOT is_paused",
        {"account": account, "workflow": row.workflow, "cron": row.cron, "tz": row.tz},
    )


def resume(connection: Connection, account: str, row: Row, next_at: float) -> None:
    """Let the schedule fire again, first at ``next_at``. Nothing changes if it is not paused."""
    connection.exec_driver_sql(
        "UPDATE orchestrator_schedules SET is_paused = false, next_at = to_timestamp(%(next_at)s) "
        "WHERE account = %(account)s AND (workflow, cron, tz) = (%(workflow)s, %(cron)s, %(tz)s) AND is_paused",
        {"account": account, "workflow": row.workflow, "cron": row.cron, "tz": row.tz, "next_at": next_at},
    )
