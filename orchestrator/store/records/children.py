"""Instances that others have started: what a parent reads of them, and they of their parent.

Owns: these queries, the net that catches children of ended parents, and the condition under which retention spares a
child. Does not own: creating them (``store.turns``: it comes with the parent's turn), nor what follows from what is
read (``workflow.deciding.children``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.workflow.kin import ChildState, ParentState, child_id
from orchestrator.workflow.status import FINISHED

_FINISHED = ", ".join(f"'{status}'" for status in sorted(FINISHED))

_KEEPS = (
    f"""(p.status NOT IN ({_FINISHED}) OR coalesce(starts_with(p.rollback, '{{"outcome":"failed"'), false))"""
)
KEPT_FOR_PARENT = f"""CASE WHEN i.parent_id IS NULL THEN false ELSE coalesce((WITH RECURSIVE above AS (
    SELECT {_KEEPS} AS keeps, p.parent_id FROM orchestrator_instances p WHERE p.id = i.parent_id
    UNION ALL SELECT {_KEEPS}, p.parent_id FROM above JOIN orchestrator_instances p ON p.id = above.parent_id
      WHERE NOT above.keeps)
  SELECT bool_or(keeps) FROM above), false) END"""
"""SQL: whether the instance ``i`` must be kept, expired or not, because its parent has not ended, or its rollback has
failed and may be taken up again; or because that is so of its parent's parent, at any height, whose chain may undo it
by way of its parent. A value and no EXISTS: that would be planned as one scan of all unfinished instances. (A
comparison of texts: read as JSON, an error with a null character in it would fail.)"""


class Awaited(NamedTuple):
    """A child that ``parent`` awaits, under the id ``name_id`` of ``workflow``."""

    parent: UUID
    id: UUID
    workflow: str
    name_id: str


_ENDED = f"""
SELECT k.parent, k.id, i.status, i.ending, p.output, p.error, i.rollback, false, i.id IS NULL AND EXISTS (
  SELECT 1 FROM orchestrator_instances taken
  WHERE taken.account = %(account)s AND taken.workflow = k.workflow AND taken.name_id = k.name_id)
FROM unnest(%(parents)s::uuid[], %(ids)s::uuid[], %(workflows)s::text[], %(names)s::text[])
  AS k(parent, id, workflow, name_id)
LEFT JOIN orchestrator_instances i ON i.id = k.id
LEFT JOIN orchestrator_payloads p ON p.instance_id = i.id AND i.status IN ({_FINISHED})
WHERE i.id IS NULL OR i.status IN ({_FINISHED})
ORDER BY i.ended_at
"""


def ended(connection: Connection, account: str, awaited: Sequence[Awaited]) -> dict[UUID, list[ChildState]]:
    """Those of these children that have ended, or do not exist, by parent, in the order they ended."""
    parameters = {
        "account": account,
        "parents": array([a.parent for a in awaited], "uuid"),
        "ids": array([a.id for a in awaited], "uuid"),
        "workflows": array([a.workflow for a in awaited], "text"),
        "names": array([a.name_id for a in awaited], "text"),
    }
    found: dict[UUID, list[ChildState]] = {}
    for parent, *columns in session.rows(connection, _ENDED, parameters):
        found.setdefault(parent, []).append(ChildState(*columns))
    return found


# What has undone itself, or was undone, is no longer undoable; nor is what hangs on it. OFFSET keeps it a look-up of
# each one's children: planned as a join it may read all there are.
_ALL = """
WITH RECURSIVE kin AS (
  SELECT c.id AS root, c.id FROM orchestrator_instances c WHERE c.parent_id = ANY(%(parents)s::uuid[])
    AND c.status <> 'errored'
  UNION ALL
  SELECT kin.root, c.id FROM kin CROSS JOIN LATERAL (SELECT i.id FROM orchestrator_instances i
    WHERE i.parent_id = kin.id AND i.status <> 'errored' AND i.rollback IS NULL OFFSET 0) c),
undoable AS (SELECT kin.root FROM kin WHERE EXISTS (
  SELECT 1 FROM orchestrator_steps s WHERE s.instance_id = kin.id AND s.has_rollback AND s.kind IN ('do', 'wait')
    AND (s.kind = 'wait' OR s.status IN ('done', 'failed', 'handed') OR s.claimed_at IS NOT NULL OR s.attempt > 1)))
SELECT i.parent_id, i.id, i.status, i.ending, NULL, NULL, i.rollback, i.id IN (SELECT root FROM undoable)
FROM orchestrator_instances i WHERE i.parent_id = ANY(%(parents)s::uuid[])
"""


def of_parents(connection: Connection, parents: Sequence[UUID]) -> dict[UUID, list[ChildState]]:
    """Every child of these parents, of any run, without output and error, but with whether there is anything to undo:
    by it, or by a child of its own at any depth."""
    found: dict[UUID, list[ChildState]] = {parent: [] for parent in parents}
    for parent, *columns in session.rows(connection, _ALL, {"parents": array(parents, "uuid")}):
        found[parent].append(ChildState(*columns))
    return found


_PARENTS = """
SELECT c.id, c.parent_id, c.parent_key, p.status, p.ending, s.run, s.status, s.error, h.status, c.rollback IS NOT NULL
FROM unnest(%(ids)s::uuid[]) AS k(id) JOIN orchestrator_instances c ON c.id = k.id
LEFT JOIN orchestrator_instances p ON p.id = c.parent_id
LEFT JOIN orchestrator_steps s ON s.instance_id = c.parent_id AND s.key = c.parent_key
LEFT JOIN orchestrator_steps h ON h.instance_id = c.parent_id AND h.key = c.parent_key || ':rollback'
WHERE c.parent_id IS NOT NULL
"""


def parents(connection: Connection, children: Sequence[UUID]) -> Mapping[UUID, ParentState]:
    """How the parents of these children stand. Of a step that started another child than this one, in another run,
    nothing is said."""
    found: dict[UUID, ParentState] = {}
    rows = session.rows(connection, _PARENTS, {"ids": array(children, "uuid")})
    for child, parent, key, status, ending, run, step, error, handler, has_undone in rows:
        if run is None or child_id(parent, run, key) != child:
            step = error = handler = None
        found[child] = ParentState(parent, status, ending, step, error, handler, has_undone)
    return found


def relatives(connection: Connection, instances: Iterable[UUID]) -> list[UUID]:
    """Parents of these, and their children that have not ended: who should look when these are gone."""
    rows = session.rows(
        connection,
        "SELECT parent_id FROM orchestrator_instances WHERE id = ANY(%(ids)s::uuid[]) AND parent_id IS NOT NULL "
        "UNION SELECT id FROM orchestrator_instances WHERE parent_id = ANY(%(ids)s::uuid[]) AND ended_at IS NULL",
        {"ids": array(instances, "uuid")},
    )
    return [row[0] for row in rows]


def lock(connection: Connection, child: UUID) -> None:
    """Lock the row of a child, waiting for whoever holds it."""
    query = "SELECT 1 FROM orchestrator_instances WHERE id = %(id)s::uuid FOR NO KEY UPDATE"
    session.rows(connection, query, {"id": child})


def attach(connection: Connection, child: UUID, parent: UUID, key: str) -> None:
    """Let this (locked) child be undone by its parent once more, which had started it by its step ``key``."""
    query = "UPDATE orchestrator_instances SET parent_id = %(parent)s::uuid, parent_key = %(key)s::text "
    query += "WHERE id = %(id)s::uuid"
    session.rows(connection, query, {"id": child, "parent": parent, "key": key})


# Not by Postgres' JSON, which refuses what a message may hold: a NUL. The name comes first in an error's text.
_TIMED_OUT = """starts_with(s.error, '{"name":"StepTimeout"')"""
_DETACH = f"""
UPDATE orchestrator_instances c SET parent_id = NULL, parent_key = NULL
WHERE c.id = %(id)s::uuid AND c.parent_id IS NOT NULL AND NOT EXISTS (
  SELECT 1 FROM orchestrator_instances p JOIN orchestrator_steps s ON s.instance_id = p.id AND s.key = c.parent_key
  WHERE p.id = c.parent_id AND p.ended_at IS NULL AND p.ending IS NULL
    AND (s.status IN ('waiting', 'done') OR s.status = 'failed' AND NOT {_TIMED_OUT})
    AND s.config::jsonb ->> 'instance' = c.id::text)
"""


def detach(connection: Connection, instance: UUID) -> None:
    """Make this (locked) instance, which is restarted, one of its own if its parent has let go of it: otherwise it
    would be terminated at once."""
    session.rows(connection, _DETACH, {"id": instance})


_STAND_ALONE = """
UPDATE orchestrator_instances c SET parent_id = NULL, parent_key = NULL
WHERE c.id = %(id)s::uuid AND c.parent_id IS NOT NULL AND NOT EXISTS (
  SELECT 1 FROM orchestrator_instances p
  LEFT JOIN orchestrator_steps h ON h.instance_id = p.id AND h.key = c.parent_key || ':rollback'
  WHERE p.id = c.parent_id AND p.ended_at IS NULL AND p.ending IS NOT NULL AND (h.key IS NULL OR h.status = 'waiting'))
"""


def stand_alone(connection: Connection, instance: UUID) -> None:
    """Make this (locked) instance, whose rollback is taken up again by itself, one of its own, unless its parent's
    chain waits for it or has yet to come to it: otherwise it would wait for a chain that is over."""
    session.rows(connection, _STAND_ALONE, {"id": instance})


_SEEN = f"""
SELECT c.id, c.parent_id, p.id IS NULL OR p.ended_at IS NOT NULL OR p.ending IS NOT NULL OR s.key IS NULL
  OR s.status IN ('cancelled', 'abandoned') OR s.status = 'failed' AND {_TIMED_OUT}
  OR (s.config::jsonb ->> 'instance') IS DISTINCT FROM c.id::text
FROM orchestrator_instances c
LEFT JOIN orchestrator_instances p ON p.id = c.parent_id
LEFT JOIN orchestrator_steps s ON s.instance_id = c.parent_id AND s.key = c.parent_key
WHERE c.parent_id IS NOT NULL AND c.ended_at IS NULL AND c.account = %(account)s
  AND (c.parent_id, c.id) > (%(parent)s::uuid, %(id)s::uuid)
ORDER BY c.parent_id, c.id LIMIT %(limit)s
"""
AGAIN_S = 5.0
"""One that was rung before and did not end is rung again after this long: the alarm of a workflow that nobody knows
rings nowhere by itself."""
_RING = """
WITH orphans AS (SELECT id FROM orchestrator_instances WHERE id = ANY(%(ids)s::uuid[]) AND ended_at IS NULL
  AND ending IS NULL AND (alarm_at > to_timestamp(%(now)s::float8) OR alarm_at < to_timestamp(%(before)s::float8))
  ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
UPDATE orchestrator_instances i SET alarm_at = to_timestamp(%(now)s::float8)
FROM orphans WHERE i.id = orphans.id RETURNING i.id
"""
Place = tuple[UUID, UUID]
"""Where a search through all children stands: a parent, and a child of it."""
BEGINNING: Place = (UUID(int=0), UUID(int=0))


def orphans(
    connection: Connection, account: str, now: float, after: Place = BEGINNING, limit: int = 1000
) -> tuple[list[UUID], Place]:
    """Look at ``limit`` children that have not ended, from the place ``after`` on, and let those look for themselves
    whose parent seems to have let go of them: their alarm is set to ``now``, whatever they are at.

    Returns them, and where to go on: at the beginning, once all were looked at.
    """
    parameters = {"account": account, "parent": after[0], "id": after[1], "limit": limit}
    seen = session.rows(connection, _SEEN, parameters)
    lost = [row[0] for row in seen if row[2]]
    moment = {"now": now, "before": now - AGAIN_S}
    rung = session.rows(connection, _RING, {"ids": array(lost, "uuid"), **moment}) if lost else []
    place = (seen[-1][1], seen[-1][0]) if len(seen) >= limit else BEGINNING
    return [row[0] for row in rung], place
