"""Instances by the beginning of their id.

Owns: the query. Does not own: lists in the order of creation (``store.records.listing``).

The index of names finds where ids with the prefix begin. Where the database sorts by a language, ids that differ in
punctuation stand between them: so a range is read and what fits is taken, at most ``SCANNED`` rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.store.records.listing import Row
from orchestrator.workflow.status import Status

SCANNED = 5000

_SEARCH = """
WITH near AS MATERIALIZED (
  SELECT id, name_id, status, version, created_at, started_at, ended_at FROM orchestrator_instances
  WHERE account = %(account)s::text AND workflow = %(workflow)s::text AND name_id >= %(prefix)s::text
    AND (%(after)s::text IS NULL OR name_id > %(after)s::text)
  ORDER BY name_id LIMIT %(scanned)s::int8)
SELECT id, name_id, status, version, extract(epoch FROM created_at)::float8, extract(epoch FROM started_at)::float8,
  extract(epoch FROM ended_at)::float8
FROM near WHERE starts_with(name_id, %(prefix)s::text)
  AND (%(statuses)s::text[] IS NULL OR status = ANY(%(statuses)s::text[]))
ORDER BY name_id LIMIT %(limit)s::int8
"""


def search(
    connection: Connection,
    account: str,
    workflow: str,
    prefix: str,
    statuses: Sequence[Status] | None,
    limit: int,
    after: str | None,
) -> list[Row]:
    """At most ``limit`` instances of ``workflow`` whose id begins with ``prefix``, in the order of their ids, beyond
    the id ``after``; with ``statuses`` only those in one of them."""
    parameters = {
        "account": account,
        "workflow": workflow,
        "prefix": prefix,
        "after": after,
        "statuses": None if statuses is None else array([each.value for each in statuses], "text"),
        "limit": limit,
        "scanned": SCANNED,
    }
    return [Row(*row) for row in session.rows(connection, _SEARCH, parameters)]
