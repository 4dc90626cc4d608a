"""How many instances there were when they were counted last.

Owns: the ``counts`` table, and which workflow is due to be counted. Does not own: counting (``records.listing``), who
counts and when (``control.counts``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array


class Kept(NamedTuple):
    """Instances by status, when they were counted (epoch seconds), and how long that took."""

    counts: Mapping[str, int]
    counted_at: float
    took_s: float

    @property
    def total(self) -> int:
        return sum(self.counts.values())


_KEEP = """
INSERT INTO orchestrator_counts AS c (account, workflow, counts, counted_at, took_s)
VALUES (%(account)s::text, %(workflow)s::text, %(counts)s::text, clock_timestamp(), %(took)s::float8)
ON CONFLICT (account, workflow) DO UPDATE
SET counts = excluded.counts, counted_at = excluded.counted_at, took_s = excluded.took_s
"""
_READ = """
SELECT workflow, counts, extract(epoch FROM counted_at)::float8, took_s FROM orchestrator_counts
WHERE account = %(account)s::text
"""
_DUE = """
SELECT w.name FROM unnest(%(workflows)s::text[]) AS w(name)
LEFT JOIN orchestrator_counts c ON c.account = %(account)s::text AND c.workflow = w.name
WHERE c.workflow IS NULL OR c.counted_at + make_interval(
  secs => greatest(%(every)s::float8, %(share)s::float8 * c.took_s)) < clock_timestamp()
ORDER BY c.counted_at NULLS FIRST
"""
_LOCK = """
SELECT pg_try_advisory_xact_lock(
  hashtextextended('orchestrator counts ' || %(account)s::text || ' ' || %(workflow)s::text, 0))
"""


def keep(
    connection: Connection, account: str, workflow: str, counts: Mapping[str, int], took_s: float
) -> None:
    """Note what was counted just now."""
    parameters = {
        "account": account,
        "workflow": workflow,
        "counts": json.dumps(dict(counts)),
        "took": took_s,
    }
    session.rows(connection, _KEEP, parameters)


def read(connection: Connection, account: str) -> dict[str, Kept]:
    """What is kept of all workflows of an account, by name."""
    found = session.rows(connection, _READ, {"account": account})
    return {row[0]: Kept(json.loads(row[1]), row[2], row[3]) for row in found}


def read_one(connection: Connection, account: str, workflow: str) -> Kept | None:
    """What is kept of one workflow, if it was ever counted."""
    parameters = {"account": account, "workflow": workflow}
    for row in session.rows(connection, f"{_READ} AND workflow = %(workflow)s::text", parameters):
        return Kept(json.loads(row[1]), row[2], row[3])
    return None


def due(
    connection: Connection, account: str, workflows: Sequence[str], every_s: float, share: float
) -> list[str]:
    """Those of ``workflows`` that were counted ``every_s`` ago or earlier, and ``share`` times as long ago as it took;
    who waits longest comes first."""
    parameters = {
        "account": account,
        "workflows": array(list(workflows), "text"),
        "every": every_s,
        "share": share,
    }
    return [row[0] for row in session.rows(connection, _DUE, parameters)]


def may_count(connection: Connection, account: str, workflow: str) -> bool:
    """Whether nobody else is counting this workflow; nobody else will, until this transaction ends."""
    ((is_got,),) = session.rows(connection, _LOCK, {"account": account, "workflow": workflow})
    return bool(is_got)
