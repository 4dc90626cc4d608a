"""Lists of the instances of a workflow, and how many there are: by the index of lists alone.

Owns: these queries, and finding many instances by name. Does not own: cursors as applications see them (``client``).

The order is that of the ids, which are made in the order of time. The index has it within each status, so a list
without a status merges one scan for each: it reads as many rows as it gives, however many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.workflow.status import Status


class Row(NamedTuple):
    """An instance in a list; instants are epoch seconds."""

    id: UUID
    name_id: str
    status: str
    version: str
    created_at: float
    started_at: float | None
    ended_at: float | None


_COLUMNS = """id, name_id, status, version, extract(epoch FROM created_at)::float8 AS created_at,
  extract(epoch FROM started_at)::float8 AS started_at, extract(epoch FROM ended_at)::float8 AS ended_at"""


@lru_cache(64)
def _list(statuses: tuple[str, ...], has_cursor: bool, newest_first: bool) -> str:
    way, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
    after = f"AND id {beyond} %(cursor)s::uuid" if has_cursor else ""
    scans = [
        f"(SELECT {_COLUMNS} FROM orchestrator_instances WHERE account = %(account)s::text "
        f"AND workflow = %(workflow)s::text AND status = '{Status(status).value}' {after} "
        f"AND created_at > '-infinity'::timestamptz ORDER BY id {way} LIMIT %(limit)s::int8)"
        for status in statuses
    ]
    if len(scans) == 1:
        return scans[0]
    return f"SELECT * FROM ({' UNION ALL '.join(scans)}) l ORDER BY id {way} LIMIT %(limit)s::int8"


def page(
    connection: Connection,
    account: str,
    workflow: str,
    statuses: Sequence[Status],
    limit: int,
    cursor: UUID | None,
    *,
    newest_first: bool = True,
) -> list[Row]:
    """At most ``limit`` instances of ``workflow`` in one of ``statuses``, beyond the id ``cursor``."""
    statement = _list(tuple(sorted(statuses)), cursor is not None, newest_first)
    parameters = {
        "account": account,
        "workflow": workflow,
        "limit": limit,
        "cursor": None if cursor is None else str(cursor),
    }
    return [Row(*row) for row in session.rows(connection, statement, parameters)]


_COUNT = """
SELECT status, count(*) FROM orchestrator_instances
WHERE account = %(account)s::text AND workflow = %(workflow)s::text AND created_at > '-infinity'::timestamptz
GROUP BY status
"""


def count(connection: Connection, account: str, workflow: str) -> dict[str, int]:
    """How many instances there are in each status that any is in. Exact; the cost grows with their number."""
    parameters = {"account": account, "workflow": workflow}
    return {row[0]: row[1] for row in session.rows(connection, _COUNT, parameters)}


_NAMED = """
SELECT name_id, id FROM orchestrator_instances
WHERE account = %(account)s::text AND workflow = %(workflow)s::text AND name_id = ANY(%(names)s::text[])
"""


def named(connection: Connection, account: str, workflow: str, names: Sequence[str]) -> dict[str, UUID]:
    """Those of these instances that there are."""
    parameters = {"account": account, "workflow": workflow, "names": array(names, "text")}
    return {row[0]: row[1] for row in session.rows(connection, _NAMED, parameters)}


_FORGET = """
WITH schedules AS (DELETE FROM orchestrator_schedules WHERE account = %(account)s AND workflow = %(workflow)s),
shards AS (DELETE FROM orchestrator_shards WHERE account = %(account)s AND workflow = %(workflow)s),
layouts AS (DELETE FROM orchestrator_layouts WHERE account = %(account)s AND workflow = %(workflow)s),
counts AS (DELETE FROM orchestrator_counts WHERE account = %(account)s AND workflow = %(workflow)s)
DELETE FROM orchestrator_workflows WHERE account = %(account)s AND name = %(workflow)s
"""


def forget(connection: Connection, account: str, workflow: str) -> None:
    """Delete the registration of a workflow, every version of it, with its schedules and counts. Its instances and what
    operators set for it stay."""
    session.rows(connection, _FORGET, {"account": account, "workflow": workflow})
