"""What operators did to instances: who, when, which verb. Kept as long as the instance, also over its restarts.

Owns: the ``audit`` table. Does not own: what a verb does, nor who is said to have asked for it (``client.steering``).
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session


class Entry(NamedTuple):
    """One verb on one instance, as the fact ``seq`` of it. ``detail`` is JSON text, ``at`` epoch seconds."""

    seq: int
    verb: str
    detail: str
    by: str
    at: float


_ADD = """
INSERT INTO orchestrator_audit (instance_id, seq, verb, detail, by, at, past)
VALUES (%(id)s::uuid, %(seq)s::int8, %(verb)s::text, %(detail)s::text, %(by)s::text, to_timestamp(%(at)s::float8),
  %(past)s::text)
"""
_ALL = """
SELECT seq, verb, detail, by, extract(epoch FROM at)::float8 FROM orchestrator_audit
WHERE instance_id = %(id)s::uuid ORDER BY seq
"""


def add(connection: Connection, instance: UUID, entry: Entry, past: str | None = None) -> None:
    """Put a verb on record, in its own transaction. ``past`` is the text of a rollback that it took up again."""
    session.rows(connection, _ADD, {"id": instance, **entry._asdict(), "past": past})


def of_instance(connection: Connection, instance: UUID) -> list[Entry]:
    """Everything that operators did to an instance, in order."""
    return [Entry(*row) for row in session.rows(connection, _ALL, {"id": instance})]
