"""Layouts: how the queue of a workflow is cut into shards, one generation after the other.

Owns: the tables ``accounts`` and ``layouts``, and which shards there are. Does not own: who looks after a shard
(``shards``), what is in it (``queue``).

New instances get a random shard of the last generation, by ``CHOSEN`` in the statement that inserts them. Those before
it drain: their shards are looked after as before, nothing is moved. Among the generations that there are no number
belongs to two. A generation that has drained is removed and its numbers may come again; what still comes to stand in
one of its shards then (an old transaction, an awoken sleeper) is found by ``queue.strays``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from orchestrator.errors import InvalidConfig
from orchestrator.settings import MAX_SHARDS
from orchestrator.store.arrays import array

ONE, MANY = "one", "many"
"""Who coordinates an account: one worker for all of it (V1), or all of them (V2)."""
HIGHEST = 32767
"""The highest number of a shard."""

LAST = (
    "LEFT JOIN LATERAL (SELECT first, shards FROM orchestrator_layouts WHERE account = {} AND workflow = {} "
    "ORDER BY generation DESC LIMIT 1) AS layout ON true"
)
"""Joins the last generation of a workflow, if it has any, by the expressions of account and workflow."""
CHOSEN = "(coalesce(layout.first, 0) + floor(random() * coalesce(layout.shards, {})))::int2"
"""A shard for a new instance, by ``LAST``; in braces how many there will be, if there is no layout yet."""


class Generation(NamedTuple):
    """One cut of a workflow's queue: into the shards ``first`` to ``last``."""

    workflow: str
    generation: int
    first: int
    shards: int

    @property
    def last(self) -> int:
        return self.first + self.shards - 1


_COORDINATORS = "SELECT coordinators FROM orchestrator_accounts WHERE account = %(account)s"


def coordinators(connection: Connection, account: str) -> str:
    """``ONE`` or ``MANY``, as it was set last."""
    return str(connection.exec_driver_sql(_COORDINATORS, {"account": account}).scalar_one_or_none() or MANY)


def generations(
    connection: Connection, account: str, workflows: Sequence[str] | None = None
) -> list[Generation]:
    """The generations there are, of these workflows or of all, by workflow, the last of each at its end."""
    rows = connection.exec_driver_sql(
        "SELECT workflow, generation, first, shards FROM orchestrator_layouts WHERE account = %(account)s "
        "AND (%(workflows)s::text[] IS NULL OR workflow = ANY(%(workflows)s::text[])) ORDER BY workflow, generation",
        {"account": account, "workflows": None if workflows is None else array(workflows, "text")},
    )
    return [Generation(*row) for row in rows]


# Whoever changes the layouts of an account does so alone.
_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended('orchestrator.layouts:' || %(account)s::text, 0))"
_SHARDS_OF_MADE = """
cut AS (
  INSERT INTO orchestrator_shards (account, workflow, shard, generation)
  SELECT %(account)s, made.workflow, number, made.generation
  FROM made CROSS JOIN LATERAL generate_series(made.first, made.first + made.shards - 1) AS number
  ON CONFLICT DO NOTHING)
SELECT workflow FROM made
"""
_ENTER = f"""
WITH made AS (
  INSERT INTO orchestrator_layouts (account, workflow, generation, first, shards, created_at)
  SELECT %(account)s, w.workflow, 1, 0, CASE WHEN ({_COORDINATORS}) = '{ONE}' THEN 1 ELSE %(shards)s::int END,
    clock_timestamp()
  FROM unnest(%(workflows)s::text[]) AS w(workflow) ORDER BY w.workflow
  ON CONFLICT DO NOTHING RETURNING workflow, generation, first, shards),
{_SHARDS_OF_MADE}"""


def enter(connection: Connection, account: str, workflows: Sequence[str], shards: int) -> None:
    """Give those of these workflows a first generation that have none: of ``shards`` shards, or of one where one
    worker coordinates the account."""
    connection.exec_driver_sql(_ALONE, {"account": account})
    parameters = {"account": account, "workflows": array(workflows, "text"), "shards": shards}
    connection.exec_driver_sql(_ENTER, parameters)


_ADD = f"""
WITH made AS (
  INSERT INTO orchestrator_layouts (account, workflow, generation, first, shards, created_at)
  VALUES (%(account)s, %(workflow)s, %(generation)s, %(first)s, %(shards)s, clock_timestamp())
  RETURNING workflow, generation, first, shards),
{_SHARDS_OF_MADE}"""


def add(connection: Connection, account: str, workflow: str, shards: int) -> Generation:
    """Let the instances of ``workflow`` that are created from the commit on use a new generation of ``shards`` shards.

    Returns it; the last one, where that is cut so already. Raises ``InvalidConfig`` for a number of shards that cannot
    be, and where there is no room for it beside what still drains.
    """
    if not 1 <= shards <= MAX_SHARDS:
        raise InvalidConfig(f"A queue is cut into 1 to {MAX_SHARDS:,} shards, not {shards:,}.")
    connection.exec_driver_sql(_ALONE, {"account": account})
    found = generations(connection, account, [workflow])
    if found and found[-1].shards == shards:
        return found[-1]
    number = found[-1].generation + 1 if found else 1
    new = Generation(workflow, number, _room(workflow, shards, found), shards)
    connection.exec_driver_sql(_ADD, {"account": account, **new._asdict()})
    return new


def _room(workflow: str, shards: int, found: Sequence[Generation]) -> int:
    """The first of ``shards`` numbers that no generation has: after the last one, or where there is room below."""
    starts = [found[-1].last + 1 if found else 0, 0, *sorted(each.last + 1 for each in found)]
    for first in starts:
        last = first + shards - 1
        if last <= HIGHEST and all(last < each.first or first > each.last for each in found):
            return first
    raise InvalidConfig(
        f"The queue of workflow {workflow!r} cannot be cut anew: {len(found):,} generations of it still drain. "
        "`orchestrator control status` shows them; try again when one has drained."
    )


def coordinate(connection: Connection, account: str, who: str, shards: int) -> list[Generation]:
    """Let ``ONE`` worker, or ``MANY``, coordinate the account from the commit on, and cut the queue of each workflow
    anew: into one shard for one, into ``shards`` for many. Returns the last generations.

    Raises ``InvalidConfig``, as ``add`` does. Nothing changes where it is so already.
    """
    if who not in (ONE, MANY):
        raise InvalidConfig(f"An account is coordinated by {ONE!r} or {MANY!r}, not {who!r}.")
    connection.exec_driver_sql(_ALONE, {"account": account})
    workflows = sorted({each.workflow for each in generations(connection, account)})
    if coordinators(connection, account) == who:
        return [generations(connection, account, [workflow])[-1] for workflow in workflows]
    connection.exec_driver_sql(
        "INSERT INTO orchestrator_accounts (account, coordinators, changed_at) "
        "VALUES (%(account)s, %(who)s, clock_timestamp()) "
        "ON CONFLICT (account) DO UPDATE SET coordinators = excluded.coordinators, changed_at = excluded.changed_at",
        {"account": account, "who": who},
    )
    return [add(connection, account, workflow, 1 if who == ONE else shards) for workflow in workflows]


_RETIRE = """
WITH over AS (
  DELETE FROM orchestrator_layouts l WHERE account = %(account)s AND workflow = ANY(%(workflows)s::text[])
    AND EXISTS (SELECT FROM orchestrator_layouts n WHERE n.account = l.account AND n.workflow = l.workflow
      AND n.generation > l.generation AND n.created_at < clock_timestamp() - make_interval(secs => %(age)s))
    AND NOT EXISTS (SELECT FROM orchestrator_instances i WHERE i.account = l.account AND i.workflow = l.workflow
      AND i.shard BETWEEN l.first AND l.first + l.shards - 1 AND i.status = 'queued')
  RETURNING workflow, generation, first, shards),
gone AS (DELETE FROM orchestrator_shards s USING over WHERE s.account = %(account)s AND s.workflow = over.workflow
  AND s.generation = over.generation)
SELECT workflow, generation, first, shards FROM over
"""


def retire(connection: Connection, account: str, workflows: Sequence[str], age_s: float) -> list[Generation]:
    """Remove the generations of these workflows that have drained; returns them. Those that were followed by another
    less than ``age_s`` ago are left: somebody may be creating with them."""
    connection.exec_driver_sql(_ALONE, {"account": account})
    parameters = {"account": account, "workflows": array(workflows, "text"), "age": age_s}
    return [Generation(*row) for row in connection.exec_driver_sql(_RETIRE, parameters)]
