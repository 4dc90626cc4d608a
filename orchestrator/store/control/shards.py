"""Shards: which worker looks after which part of a queue.

Owns: the table ``shards``, and ``shards_until`` of workers, which says how long the shards a worker owns are its own.
Does not own: which shards there are (``layouts``), who is to have how many (``control.shards``).

Ownership spares work, nothing rests on it: two workers that both look at a shard start each instance once. Owners are
alive as long as they renew one row of theirs, however many shards they own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store.arrays import array


class Owned(NamedTuple):
    """The shards of one workflow, as one worker sees them."""

    shards: int
    """How many there are, of all generations."""
    mine: tuple[int, ...]
    """Those it owns, in their order."""
    free: int
    """Those whose owner is nobody, or not alive."""


def renew(connection: Connection, worker: UUID, until: float) -> bool:
    """Let the shards that ``worker`` owns be its own until then. ``False`` if it is unknown or was declared dead."""
    done = connection.exec_driver_sql(
        "UPDATE orchestrator_workers SET shards_until = to_timestamp(%(until)s) "
        "WHERE id = %(worker)s::uuid AND dead_at IS NULL",
        {"worker": worker, "until": until},
    )
    return done.rowcount == 1


def alive(connection: Connection, account: str, now: float) -> dict[UUID, frozenset[str]]:
    """The workers that look after shards, each with what it knows (``name@version``), the eldest first."""
    rows = connection.exec_driver_sql(
        "SELECT id, known FROM orchestrator_workers WHERE account = %(account)s AND dead_at IS NULL "
        "AND shards_until > to_timestamp(%(now)s) ORDER BY id",
        {"account": account, "now": now},
    )
    return {row[0]: frozenset(row[1]) for row in rows}


_ALIVE = (
    "EXISTS (SELECT FROM orchestrator_workers w WHERE w.id = s.owner AND w.dead_at IS NULL "
    "AND w.shards_until > to_timestamp(%(now)s))"
)
_OWNED = f"""
SELECT workflow, count(*), array_agg(shard ORDER BY shard) FILTER (WHERE owner = %(worker)s::uuid),
  count(*) FILTER (WHERE owner IS DISTINCT FROM %(worker)s::uuid AND NOT {_ALIVE})
FROM orchestrator_shards s WHERE account = %(account)s AND workflow = ANY(%(workflows)s::text[]) GROUP BY workflow
"""


def owned(
    connection: Connection, account: str, workflows: Sequence[str], worker: UUID, now: float
) -> dict[str, Owned]:
    """The shards of these workflows."""
    rows = connection.exec_driver_sql(
        _OWNED,
        {"account": account, "workflows": array(workflows, "text"), "worker": worker, "now": now},
    )
    return {row[0]: Owned(row[1], tuple(row[2] or ()), row[3]) for row in rows}


_TAKE = f"""
WITH free AS (
  SELECT f.* FROM unnest(%(workflows)s::text[], %(counts)s::int[]) AS wanted(workflow, count)
  CROSS JOIN LATERAL (
    SELECT s.account, s.workflow, s.shard FROM orchestrator_shards s
    WHERE s.account = %(account)s AND s.workflow = wanted.workflow AND s.owner IS DISTINCT FROM %(worker)s::uuid
      AND NOT {_ALIVE}
    ORDER BY random() LIMIT wanted.count FOR NO KEY UPDATE OF s SKIP LOCKED) AS f)
UPDATE orchestrator_shards s SET owner = %(worker)s::uuid, taken_at = to_timestamp(%(now)s) FROM free
WHERE s.account = free.account AND s.workflow = free.workflow AND s.shard = free.shard
RETURNING s.workflow, s.shard
"""


def take(
    connection: Connection, account: str, worker: UUID, wanted: Mapping[str, int], now: float
) -> list[tuple[str, int]]:
    """Take up to so many shards of each of these workflows of which nobody is the owner, any of them; returns those
    got. What somebody else is just taking is left to him."""
    rows = connection.exec_driver_sql(
        _TAKE,
        {
            "account": account,
            "worker": worker,
            "workflows": array(wanted, "text"),
            "counts": array(wanted.values(), "int4"),
            "now": now,
        },
    )
    return [(row[0], row[1]) for row in rows]


_GIVE = """
UPDATE orchestrator_shards s SET owner = NULL
FROM (SELECT s.account, s.workflow, s.shard FROM orchestrator_shards s
  JOIN unnest(%(workflows)s::text[], %(shards)s::int[]) AS g(workflow, shard)
    ON s.account = %(account)s AND s.workflow = g.workflow AND s.shard = g.shard
  WHERE s.owner = %(worker)s::uuid FOR NO KEY UPDATE OF s SKIP LOCKED) AS given
WHERE s.account = given.account AND s.workflow = given.workflow AND s.shard = given.shard
"""


def give_up(connection: Connection, account: str, worker: UUID, given: Iterable[tuple[str, int]]) -> None:
    """Leave these (workflow, shard) to others, where ``worker`` owns them."""
    shards = list(given)
    connection.exec_driver_sql(
        _GIVE,
        {
            "account": account,
            "worker": worker,
            "workflows": array([workflow for workflow, _ in shards], "text"),
            "shards": array([shard for _, shard in shards], "int4"),
        },
    )


def release_all(connection: Connection, worker: UUID) -> None:
    """Leave everything that ``worker`` owns to others at once: it is going."""
    connection.exec_driver_sql(
        "UPDATE orchestrator_workers SET shards_until = NULL WHERE id = %(worker)s::uuid", {"worker": worker}
    )
