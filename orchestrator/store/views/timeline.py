"""The steps of one instance for people: a page of them, one of them, or all of them without their values.

Owns: these queries. Does not own: what is redacted (``monitoring.documents``).

A page costs what it holds, however long the instance is: it is read by the index of start order, values above a size
stay where they are, and of the failed attempts of a step only the last ones are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.store.histories import STEP_COLUMNS
from orchestrator.workflow.execution import AttemptRow, Transition
from orchestrator.workflow.history import StepRow

SCANNED = 20_000
"""Failed attempts of an instance that are looked through for one page, at most."""


class Shown(NamedTuple):
    """A step. ``row.output`` is ``None`` where it is longer than asked for; ``output_bytes`` is how long it is."""

    row: StepRow
    output_bytes: int | None


@dataclass(slots=True)
class Slim:
    """A step without its values: what a trace needs (``diagrams.tracing.Row``)."""

    key: str
    kind: str
    status: str
    attempt: int
    line: int | None
    label: str
    started_at: float
    finished_at: float | None


_CUT = STEP_COLUMNS.replace(
    "s.output", "CASE WHEN octet_length(s.output) <= %(most)s::int8 THEN s.output END"
)
_PAGE = f"""
SELECT {_CUT}, octet_length(s.output) FROM orchestrator_steps s
WHERE s.instance_id = %(id)s::uuid AND s.started_seq > 0 AND s.started_seq > %(after)s::int8 AND s.kind <> 'patch'
ORDER BY s.started_seq LIMIT %(limit)s::int8
"""
_KEYS = f"""
SELECT {_CUT}, octet_length(s.output) FROM orchestrator_steps s
WHERE s.instance_id = %(id)s::uuid AND s.key = ANY(%(keys)s::text[]) AND s.kind <> 'patch'
ORDER BY s.started_seq
"""
_SLIM = """
SELECT key, kind, status, attempt, line, label, extract(epoch FROM started_at)::float8,
  extract(epoch FROM finished_at)::float8
FROM orchestrator_steps WHERE instance_id = %(id)s::uuid AND started_seq > 0 ORDER BY started_seq
"""
_ATTEMPTS = """
WITH near AS MATERIALIZED (
  SELECT * FROM orchestrator_attempts WHERE instance_id = %(id)s::uuid AND seq > %(after)s::int8
  ORDER BY seq LIMIT %(scanned)s::int8),
numbered AS (
  SELECT *, row_number() OVER (PARTITION BY key ORDER BY seq DESC) AS place FROM near WHERE key = ANY(%(keys)s::text[]))
SELECT key, attempt, fence, seq, error, CASE WHEN %(tracebacks)s::bool THEN traceback ELSE '' END,
  extract(epoch FROM handed_at)::float8, extract(epoch FROM claimed_at)::float8, extract(epoch FROM ended_at)::float8,
  retry_delay_s
FROM numbered WHERE place <= %(limit)s::int8 ORDER BY seq
"""
_TRANSITIONS = """
SELECT seq, status, extract(epoch FROM at)::float8 FROM (
  SELECT seq, status, at FROM orchestrator_transitions WHERE instance_id = %(id)s::uuid
  ORDER BY seq DESC LIMIT %(limit)s::int8) t ORDER BY seq
"""


def page(connection: Connection, instance: UUID, after: int, limit: int, most: int) -> list[Shown]:
    """At most ``limit`` steps and compensations that started after the seq ``after``, in start order; outputs of at
    most ``most`` bytes."""
    parameters = {"id": str(instance), "after": after, "limit": limit, "most": most}
    return [Shown(StepRow(*row[:-1]), row[-1]) for row in session.rows(connection, _PAGE, parameters)]


def chosen(connection: Connection, instance: UUID, keys: Sequence[str], most: int) -> list[Shown]:
    """Those of ``keys`` that there are, in start order; outputs of at most ``most`` bytes."""
    parameters = {"id": str(instance), "keys": array(keys, "text"), "most": most}
    return [Shown(StepRow(*row[:-1]), row[-1]) for row in session.rows(connection, _KEYS, parameters)]


def slim(connection: Connection, instance: UUID) -> list[Slim]:
    """Every step and compensation, in start order, without values."""
    return [Slim(*row) for row in session.rows(connection, _SLIM, {"id": str(instance)})]


def failures(
    connection: Connection,
    instance: UUID,
    keys: Sequence[str],
    after: int,
    limit: int,
    *,
    tracebacks: bool = False,
) -> list[AttemptRow]:
    """The last ``limit`` failed attempts of each of ``keys`` after the seq ``after``, in order; tracebacks if asked."""
    parameters = {
        "id": str(instance),
        "keys": array(keys, "text"),
        "after": after,
        "limit": limit,
        "scanned": SCANNED,
        "tracebacks": tracebacks,
    }
    return [AttemptRow(*row) for row in session.rows(connection, _ATTEMPTS, parameters)]


def transitions(connection: Connection, instance: UUID, limit: int) -> list[Transition]:
    """The last ``limit`` changes of its status, in order."""
    rows = session.rows(connection, _TRANSITIONS, {"id": str(instance), "limit": limit})
    return [Transition(*row) for row in rows]
