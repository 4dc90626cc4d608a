"""How the queues stand, for people: each generation of each workflow, what waits in it, and who looks after it.

Owns: these queries, whose cost does not grow with what is queued. Does not own: the tables (``layouts``, ``shards``,
``queue``).
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session

COUNTED = 10_000
"""Of a generation about so many are counted: of each shard its part."""


class Cut(NamedTuple):
    """One generation of a workflow's queue: its shards, how many of them a living worker owns, how many instances wait
    there at least, whether more may than were counted, and since when the oldest waits (epoch seconds). The last
    generation is not counted."""

    workflow: str
    generation: int
    first: int
    shards: int
    owned: int
    waiting: int
    is_more: bool
    oldest_at: float | None


# Of a shard each version is a piece of the queue index, in two stretches: awoken and new. Of each the first is the
# oldest, and so many are read as are counted; of the last generation no more than that, since its count is kept.
_OF_SHARD = (
    "i.account = l.account AND i.workflow = l.workflow AND i.shard = s.shard::int2 AND i.status = 'queued'"
)
_CUTS = f"""
SELECT l.workflow, l.generation, l.first, l.shards, coalesce(o.owned, 0), q.waiting, q.is_more, q.oldest
FROM (
  SELECT *, CASE WHEN generation = max(generation) OVER (PARTITION BY workflow) THEN 1
    ELSE %(counted)s::int8 / shards + 1 END AS read
  FROM orchestrator_layouts
  WHERE account = %(account)s::text AND (%(workflow)s::text IS NULL OR workflow = %(workflow)s::text)) l
LEFT JOIN (
  SELECT s.workflow, s.generation, count(*) AS owned FROM orchestrator_shards s
  JOIN orchestrator_workers w ON w.id = s.owner AND w.dead_at IS NULL AND w.shards_until > clock_timestamp()
  WHERE s.account = %(account)s::text GROUP BY s.workflow, s.generation) o
  ON o.workflow = l.workflow AND o.generation = l.generation
CROSS JOIN LATERAL (
  SELECT coalesce(sum(part.waiting), 0)::int8 AS waiting, coalesce(bool_or(part.waiting = l.read), false) AS is_more,
    extract(epoch FROM min(part.oldest))::float8 AS oldest
  FROM generate_series(l.first::int, l.first + l.shards - 1) AS s(shard)
  CROSS JOIN LATERAL (
    WITH RECURSIVE v AS (
      (SELECT i.version FROM orchestrator_instances i WHERE {_OF_SHARD} ORDER BY i.version LIMIT 1)
      UNION ALL
      SELECT next.version FROM v CROSS JOIN LATERAL (SELECT i.version FROM orchestrator_instances i
        WHERE {_OF_SHARD} AND i.version > v.version ORDER BY i.version LIMIT 1) AS next)
    SELECT version FROM v) AS v
  CROSS JOIN (VALUES (true), (false)) AS a(awoken)
  CROSS JOIN LATERAL (
    SELECT count(*) AS waiting, min(found.queued_at) AS oldest FROM (
      SELECT i.queued_at FROM orchestrator_instances i
      WHERE {_OF_SHARD} AND i.version = v.version AND i.awoken = a.awoken
      ORDER BY i.queued_at LIMIT l.read) AS found) AS part) AS q
ORDER BY l.workflow, l.generation
"""


def cuts(connection: Connection, account: str, workflow: str | None = None) -> list[Cut]:
    """Every generation of one workflow, or of all, the last of each at its end."""
    parameters = {"account": account, "workflow": workflow, "counted": COUNTED}
    return [Cut(*row) for row in session.rows(connection, _CUTS, parameters)]


_OWNERS = """
SELECT s.owner, count(*) FROM orchestrator_shards s
JOIN orchestrator_workers w ON w.id = s.owner AND w.dead_at IS NULL AND w.shards_until > clock_timestamp()
WHERE s.account = %(account)s::text GROUP BY s.owner
"""


def owners(connection: Connection, account: str) -> dict[UUID, int]:
    """How many shards each living worker owns, of those that own any."""
    return {row[0]: row[1] for row in session.rows(connection, _OWNERS, {"account": account})}
