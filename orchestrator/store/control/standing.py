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
    there at least, whether there are more than were counted, and since when the oldest waits (epoch seconds)."""

    workflow: str
    generation: int
    first: int
    shards: int
    owned: int
    waiting: int
    is_more: bool
    oldest_at: float | None


# A shard is two stretches of the queue index, awoken and new: each gives its oldest, and no more than can be counted.
_CUTS = """
SELECT l.workflow, l.generation, l.first, l.shards, coalesce(o.owned, 0), q.waiting, q.is_more, q.oldest
FROM orchestrator_layouts l
LEFT JOIN (
  SELECT s.workflow, s.generation, count(*) AS owned FROM orchestrator_shards s
  JOIN orchestrator_workers w ON w.id = s.owner AND w.dead_at IS NULL AND w.shards_until > clock_timestamp()
  WHERE s.account = %(account)s::text GROUP BY s.workflow, s.generation) o
  ON o.workflow = l.workflow AND o.generation = l.generation
CROSS JOIN LATERAL (
  SELECT sum(part.waiting)::int8 AS waiting, bool_or(part.waiting > %(counted)s::int8 / l.shards) AS is_more,
    extract(epoch FROM min(part.oldest))::float8 AS oldest
  FROM generate_series(l.first::int, l.first + l.shards - 1) AS s(shard)
  CROSS JOIN (VALUES (true), (false)) AS a(awoken)
  CROSS JOIN LATERAL (
    SELECT count(*) AS waiting, min(found.queued_at) AS oldest FROM (
      SELECT i.queued_at FROM orchestrator_instances i WHERE i.account = l.account AND i.workflow = l.workflow
        AND i.shard = s.shard::int2 AND i.awoken = a.awoken AND i.status = 'queued'
      ORDER BY i.queued_at LIMIT %(counted)s::int8 / l.shards + 1) AS found) AS part) AS q
WHERE l.account = %(account)s::text AND (%(workflow)s::text IS NULL OR l.workflow = %(workflow)s::text)
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
