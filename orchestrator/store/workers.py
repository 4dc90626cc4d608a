"""Workers: heartbeats, declared deaths, what they know, and the database's clock.

Owns: the ``workers`` and ``workflows`` tables. Does not own: when to declare (``engine.liveness``), nor what a graph
is (``diagrams``).

A declared-dead incarnation can never heartbeat again. ``now`` is read from Postgres in the same statement, so
no wall clock is compared between machines.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.settings import Incarnation

_CLOCK = "extract(epoch FROM clock_timestamp())::float8"


def clock(connection: Connection) -> float:
    """The database's time, epoch seconds."""
    return float(connection.exec_driver_sql(f"SELECT {_CLOCK}").scalar_one())


def register(connection: Connection, account: str, worker: Incarnation, known: Sequence[str]) -> float | None:
    """Enter an incarnation; returns the database's time, or ``None`` if it was entered before (by a try of which nobody
    heard the outcome) and declared dead."""
    return connection.exec_driver_sql(
        "INSERT INTO orchestrator_workers AS w (id, account, hostname, pid, queues, known, started_at, heartbeat_at) "
        "VALUES (%(id)s::uuid, %(account)s, %(hostname)s, %(pid)s, %(queues)s::text[], %(known)s::text[], "
        "clock_timestamp(), clock_timestamp()) "
        "ON CONFLICT (id) DO UPDATE SET heartbeat_at = clock_timestamp() WHERE w.dead_at IS NULL "
        f"RETURNING {_CLOCK}",
        {
            "id": worker.id,
            "account": account,
            "hostname": worker.hostname,
            "pid": worker.pid,
            "queues": list(worker.queues),
            "known": list(known),
        },
    ).scalar_one_or_none()


def heartbeat(connection: Connection, worker: UUID, totals: str | None = None) -> float | None:
    """Renew; returns the database's time, or ``None`` if this incarnation was declared dead. ``totals`` is what it has
    counted so far (``telemetry``), JSON text."""
    return connection.exec_driver_sql(
        "UPDATE orchestrator_workers SET heartbeat_at = clock_timestamp(), totals = coalesce(%(totals)s, totals) "
        f"WHERE id = %(id)s::uuid AND dead_at IS NULL RETURNING {_CLOCK}",
        {"id": worker, "totals": totals},
    ).scalar_one_or_none()


def sharing(connection: Connection, account: str, queue: str) -> int:
    """How many living incarnations serve ``queue``."""
    return int(
        connection.exec_driver_sql(
            "SELECT count(*) FROM orchestrator_workers "
            "WHERE account = %(account)s AND dead_at IS NULL AND %(queue)s = ANY(queues)",
            {"account": account, "queue": queue},
        ).scalar_one()
    )


def renew(connection: Connection, incarnations: Collection[UUID]) -> set[UUID]:
    """Renew several; returns those that live. The others were declared dead."""
    rows = connection.exec_driver_sql(
        "UPDATE orchestrator_workers SET heartbeat_at = clock_timestamp() "
        "WHERE id = ANY(%(ids)s::uuid[]) AND dead_at IS NULL RETURNING id",
        {"ids": list(incarnations)},
    )
    return {row[0] for row in rows}


# What workers have counted stays when they go. Rows are locked in one order, for several may go at once.
_ADD_UP = """
INSERT INTO orchestrator_totals AS t (account, series, value)
SELECT g.account, c.key, sum(c.value::float8) FROM gone g, json_each_text(g.totals::json) c
GROUP BY 1, 2 ORDER BY 1, 2
ON CONFLICT (account, series) DO UPDATE SET value = t.value + excluded.value
"""
_LEAVE = f"""
WITH gone AS (DELETE FROM orchestrator_workers WHERE id = %(id)s::uuid
  RETURNING account, coalesce(%(totals)s, totals) AS totals)
{_ADD_UP}
"""


def leave(connection: Connection, worker: UUID, totals: str | None = None) -> None:
    """Delete a worker that shut down in order, and add what it has counted to what those before it had: ``totals``,
    else what its last heartbeat carried."""
    connection.exec_driver_sql(_LEAVE, {"id": worker, "totals": totals})


ALARM_AGAIN_S = 20.0
"""For so long after a death its alarms are set again: an instance whose row was locked then is caught later."""

# Nothing here waits for a lock, so that no row somebody holds can undo a declaration.
_DECLARE = """
WITH silent AS (
  SELECT id FROM orchestrator_workers WHERE account = %(account)s AND dead_at IS NULL
    AND heartbeat_at < clock_timestamp() - make_interval(secs => %(lease)s)
  FOR NO KEY UPDATE SKIP LOCKED),
dead AS (
  UPDATE orchestrator_workers w SET dead_at = clock_timestamp() FROM silent WHERE w.id = silent.id RETURNING w.id)
SELECT id, true FROM dead UNION ALL
SELECT id, false FROM orchestrator_workers WHERE account = %(account)s
  AND dead_at > clock_timestamp() - make_interval(secs => %(again)s)
"""

# Without an index on steps.worker: unfinished instances are few beside finished ones, and deaths are rare.
_ALARM = """
UPDATE orchestrator_instances SET alarm_at = to_timestamp(%(now)s) WHERE id IN (
  SELECT i.id FROM orchestrator_instances i
  WHERE i.account = %(account)s AND i.alarm_at < 'infinity' AND i.alarm_at > to_timestamp(%(now)s) AND EXISTS (
    SELECT 1 FROM orchestrator_steps s WHERE s.instance_id = i.id AND s.status IN ('running', 'cancelling')
      AND s.worker = ANY(%(dead)s::uuid[]))
  FOR NO KEY UPDATE OF i SKIP LOCKED)
"""


def declare_dead(connection: Connection, account: str, lease: float, now: float) -> list[UUID]:
    """Declare dead whoever has not renewed for ``lease`` seconds, and set the alarms of what they ran.

    Returns those declared now. The alarms are set for those who died lately as well (``ALARM_AGAIN_S``).
    """
    parameters = {"account": account, "lease": lease, "again": ALARM_AGAIN_S}
    found = [(row[0], row[1]) for row in connection.exec_driver_sql(_DECLARE, parameters)]
    if found:
        alarm(connection, account, [worker for worker, _ in found], now)
    return [worker for worker, is_new in found if is_new]


def alarm(connection: Connection, account: str, workers: Sequence[UUID], now: float) -> None:
    """Wake the unfinished instances that have a step running on any of ``workers``, but for locked ones: the alarm
    they have finds them within a minute."""
    connection.exec_driver_sql(_ALARM, {"account": account, "dead": list(workers), "now": now})


_FORGET_DEAD = f"""
WITH gone AS (DELETE FROM orchestrator_workers WHERE id IN (SELECT id FROM orchestrator_workers
    WHERE account = %(account)s AND dead_at < clock_timestamp() - make_interval(secs => %(age)s)
    FOR UPDATE SKIP LOCKED)
  RETURNING account, totals)
{_ADD_UP}
"""


def forget_dead(connection: Connection, account: str, age_s: float) -> None:
    """Delete declared-dead workers after ``age_s``; their steps were handed to others long ago. What they have counted
    stays."""
    connection.exec_driver_sql(_FORGET_DEAD, {"account": account, "age": age_s})


def register_workflows(
    connection: Connection, account: str, definitions: Sequence[tuple[str, str, str, str]]
) -> list[str]:
    """Enter (name, version, source hash, options); returns the names whose code differs from what was known."""
    rows = connection.exec_driver_sql(
        "WITH d AS (SELECT * FROM unnest(%(names)s::text[], %(versions)s::text[], %(hashes)s::text[], "
        "%(options)s::text[]) AS d(name, version, hash, options)), "
        "changed AS (SELECT d.name FROM d LEFT JOIN orchestrator_workflows w ON w.account = %(account)s "
        "AND w.name = d.name AND w.version = d.version WHERE w.source_hash IS DISTINCT FROM d.hash), "
        "written AS (INSERT INTO orchestrator_workflows (account, name, version, source_hash, options, registered_at) "
        "SELECT %(account)s, name, version, hash, options, clock_timestamp() FROM d ORDER BY name, version "
        "ON CONFLICT (account, name, version) DO UPDATE SET source_hash = excluded.source_hash, "
        "options = excluded.options, registered_at = excluded.registered_at) SELECT DISTINCT name FROM changed",
        {
            "account": account,
            "names": [d[0] for d in definitions],
            "versions": [d[1] for d in definitions],
            "hashes": [d[2] for d in definitions],
            "options": [d[3] for d in definitions],
        },
    )
    return [row[0] for row in rows]


class Drawn(NamedTuple):
    """The graph of one version of a workflow, as JSON text; ``None`` if its source cannot be drawn."""

    name: str
    version: str
    source_hash: str
    graph: str | None


# Locked in the order in which they are registered. Newer code that was registered meanwhile has a graph of its own.
_KEEP_GRAPHS = """
WITH d AS (SELECT * FROM unnest(%(names)s::text[], %(versions)s::text[], %(hashes)s::text[], %(graphs)s::text[])
  AS d(name, version, hash, graph)),
found AS (SELECT w.name, w.version, d.graph FROM orchestrator_workflows w
  JOIN d ON d.name = w.name AND d.version = w.version AND d.hash = w.source_hash
  WHERE w.account = %(account)s AND w.graph IS DISTINCT FROM d.graph
  ORDER BY w.name, w.version FOR NO KEY UPDATE OF w)
UPDATE orchestrator_workflows w SET graph = found.graph FROM found
WHERE w.account = %(account)s AND w.name = found.name AND w.version = found.version
"""


def keep_graphs(connection: Connection, account: str, drawn: Sequence[Drawn]) -> None:
    """Store graphs of registered workflows, where they are others than before and the code is still the same."""
    connection.exec_driver_sql(
        _KEEP_GRAPHS,
        {
            "account": account,
            "names": [each.name for each in drawn],
            "versions": [each.version for each in drawn],
            "hashes": [each.source_hash for each in drawn],
            "graphs": [each.graph for each in drawn],
        },
    )


def graph(connection: Connection, account: str, workflow: str, version: str) -> str | None:
    """The graph of one version of a workflow as JSON text; ``None`` if no worker knew it, or could draw it."""
    return connection.exec_driver_sql(
        "SELECT graph FROM orchestrator_workflows "
        "WHERE account = %(account)s AND name = %(name)s AND version = %(version)s",
        {"account": account, "name": workflow, "version": version},
    ).scalar_one_or_none()
