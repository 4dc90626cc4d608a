"""The queue: instances that wait for a slot, by workflow, shard, version and place.

Owns: reading the queue index, and starting what was granted. Does not own: who reads which shard (``shards``), who is
granted (the gate). However many are queued, a read touches the rows it returns and little else: their places in a shard
are the order of the index.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store.arrays import array
from orchestrator.workflow.status import HOLDS_SLOT


class Part(NamedTuple):
    """Of the queue of a workflow, those of one version in one shard."""

    workflow: str
    shard: int
    version: str


class Queued(NamedTuple):
    """An instance that waits for a slot. ``queued_at``: since when, epoch seconds."""

    id: UUID
    workflow: str
    shard: int
    version: str
    awoken: bool
    queued_at: float

    @property
    def part(self) -> Part:
        return Part(self.workflow, self.shard, self.version)

    @property
    def place(self) -> tuple[bool, float, UUID]:
        """Its place in the queue of its workflow: awoken before new, older before newer."""
        return (not self.awoken, self.queued_at, self.id)


# A part is a piece of the index, in order; every other order would have all of it read and sorted.
_IN_PART = (
    "i.account = %(account)s AND i.workflow = p.workflow AND i.shard = p.shard AND i.version = p.version "
    "AND i.status = 'queued'"
)
_FILLED = f"""
SELECT p.workflow, p.shard, p.version
FROM unnest(%(workflows)s::text[], %(shards)s::int2[], %(versions)s::text[]) AS p(workflow, shard, version)
CROSS JOIN LATERAL (
  SELECT FROM orchestrator_instances i WHERE {_IN_PART} ORDER BY i.awoken DESC, i.queued_at LIMIT 1) AS q
"""


def filled(connection: Connection, account: str, parts: Collection[Part]) -> list[Part]:
    """Those of these parts in which anything is queued."""
    rows = connection.exec_driver_sql(_FILLED, {"account": account, **_columns(parts)})
    return [Part(*row) for row in rows]


_FIRST = f"""
SELECT q.id, p.workflow, p.shard, p.version, q.awoken, extract(epoch FROM q.queued_at)::float8
FROM unnest(%(workflows)s::text[], %(shards)s::int2[], %(versions)s::text[], %(limits)s::int[])
  AS p(workflow, shard, version, most)
CROSS JOIN LATERAL (
  SELECT i.id, i.awoken, i.queued_at FROM orchestrator_instances i WHERE {_IN_PART}
  ORDER BY i.awoken DESC, i.queued_at LIMIT p.most) AS q
"""


def first(connection: Connection, account: str, limits: Mapping[Part, int]) -> list[Queued]:
    """The first of each part, as many as its limit, in their places; one part after the other."""
    parameters = {"account": account, "limits": array(limits.values(), "int4"), **_columns(limits)}
    return [Queued(*row) for row in connection.exec_driver_sql(_FIRST, parameters)]


def _columns(parts: Collection[Part]) -> dict[str, str]:
    return {
        "workflows": array([part.workflow for part in parts], "text"),
        "shards": array([part.shard for part in parts], "int2"),
        "versions": array([part.version for part in parts], "text"),
    }


# From one shard to the next that has anything in it: as many steps in the index as there are such shards.
_STRAYS = """
SELECT g.workflow, found.shard FROM unnest(%(workflows)s::text[], %(lows)s::int[], %(highs)s::int[])
  AS g(workflow, low, high) CROSS JOIN LATERAL (
  WITH RECURSIVE stray AS (
    (SELECT i.shard FROM orchestrator_instances i WHERE i.account = %(account)s AND i.workflow = g.workflow
      AND i.status = 'queued' AND i.shard >= g.low AND i.shard <= g.high ORDER BY i.shard LIMIT 1)
    UNION ALL
    SELECT next.shard FROM stray CROSS JOIN LATERAL (
      SELECT i.shard FROM orchestrator_instances i WHERE i.account = %(account)s AND i.workflow = g.workflow
        AND i.status = 'queued' AND i.shard > stray.shard AND i.shard <= g.high ORDER BY i.shard LIMIT 1) AS next)
  SELECT shard FROM stray LIMIT %(limit)s) AS found
"""


def strays(
    connection: Connection, account: str, gaps: Mapping[str, Sequence[tuple[int, int]]], limit: int
) -> list[tuple[str, int]]:
    """The shards in these gaps (workflow: lowest and highest numbers) in which anything is queued, at most ``limit`` of
    each gap: what stands where no layout is."""
    flat = [(workflow, low, high) for workflow, found in gaps.items() for low, high in found]
    parameters = {
        "account": account,
        "workflows": array([workflow for workflow, _, _ in flat], "text"),
        "lows": array([low for _, low, _ in flat], "int4"),
        "highs": array([high for _, _, high in flat], "int4"),
        "limit": limit,
    }
    return [(row[0], row[1]) for row in connection.exec_driver_sql(_STRAYS, parameters)]


_START = """
WITH q AS (SELECT id FROM orchestrator_instances WHERE id = ANY(%(ids)s::uuid[]) AND status = 'queued'
  ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),
started AS (
  UPDATE orchestrator_instances i SET status = 'running', seq = i.seq + 1, queued_at = NULL,
    alarm_at = to_timestamp(%(alarm)s)
  FROM q WHERE i.id = q.id RETURNING i.id, i.seq),
recorded AS (INSERT INTO orchestrator_transitions (instance_id, seq, status, at)
  SELECT id, seq, 'running', clock_timestamp() FROM started)
SELECT id FROM started
"""


def start(connection: Connection, granted: Collection[UUID], alarm_at: float) -> list[UUID]:
    """Let queued instances that were granted a slot run; returns those that still were queued. Those that somebody
    holds are skipped."""
    rows = connection.exec_driver_sql(_START, {"ids": array(granted, "uuid"), "alarm": alarm_at})
    return [row[0] for row in rows]


_IDLE = f"""
SELECT w.id FROM unnest(%(ids)s::uuid[]) AS w(id) LEFT JOIN orchestrator_instances i ON i.id = w.id
WHERE i.id IS NULL OR i.status NOT IN ('queued', {", ".join(f"'{status}'" for status in sorted(HOLDS_SLOT))})
"""


def idle(connection: Connection, ids: Collection[UUID]) -> set[UUID]:
    """Those of these that need no slot: neither do they run, nor do they wait to."""
    return {row[0] for row in connection.exec_driver_sql(_IDLE, {"ids": array(ids, "uuid")})}
