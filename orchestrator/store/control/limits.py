"""What operators set at run time: rows that win over settings and definitions.

Owns: the ``limits`` table. Does not own: what a limit is where nobody set one (``control.gatekeeping.limits``), nor
that it holds (scripts of ``control.gatekeeping``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy import Connection

from orchestrator.store import session

ACCOUNT = ""
"""In place of a workflow: the limits of the whole account."""
NAMES = ("concurrency", "creation_rate", "creation_burst", "max_queued")


class Override(NamedTuple):
    """What was set for one workflow, or for the account; ``None`` where nothing is. ``changed_at`` is epoch seconds."""

    workflow: str = ACCOUNT
    concurrency: int | None = None
    creation_rate: float | None = None
    creation_burst: float | None = None
    max_queued: int | None = None
    changed_at: float = 0.0
    changed_by: str = ""

    @property
    def values(self) -> dict[str, float]:
        """What is set, by name."""
        found = zip(NAMES, self[1 : 1 + len(NAMES)], strict=True)
        return {name: float(value) for name, value in found if isinstance(value, int | float)}


_READ = """
SELECT workflow, concurrency, creation_rate, creation_burst, max_queued, extract(epoch FROM changed_at)::float8,
  changed_by
FROM orchestrator_limits WHERE account = %(account)s::text
"""
_SET = ", ".join(
    f"{name} = CASE WHEN '{name}' = ANY(%(changed)s::text[]) THEN excluded.{name} ELSE l.{name} END"
    for name in NAMES
)
_PUT = f"""
INSERT INTO orchestrator_limits AS l (account, workflow, concurrency, creation_rate, creation_burst, max_queued,
  changed_at, changed_by)
VALUES (%(account)s::text, %(workflow)s::text, %(concurrency)s::int4, %(creation_rate)s::float8,
  %(creation_burst)s::float8, %(max_queued)s::int4, clock_timestamp(), %(by)s::text)
ON CONFLICT (account, workflow) DO UPDATE SET {_SET}, changed_at = excluded.changed_at,
  changed_by = excluded.changed_by
"""


def read(connection: Connection, account: str) -> dict[str, Override]:
    """Everything that was set, by workflow (``ACCOUNT`` for the account), also what was cleared since."""
    found = [Override(*row) for row in session.rows(connection, _READ, {"account": account})]
    return {row.workflow: row for row in found}


def put(
    connection: Connection, account: str, workflow: str, changed: Mapping[str, float | None], by: str
) -> None:
    """Set the limits that ``changed`` names (of ``NAMES``), ``None`` to clear one; the others stay as they are.

    The row stays when nothing is set any more: it tells who cleared it, and when.
    """
    parameters = {name: changed.get(name) for name in NAMES}
    session.rows(
        connection,
        _PUT,
        {**parameters, "account": account, "workflow": workflow, "changed": list(changed), "by": by},
    )
