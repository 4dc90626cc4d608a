"""The records of one instance for those who tell what happened to it, page by page.

Owns: the query of one page, and asking many instances at once whether there is more. Does not own: what the records
mean (``workflow.lifecycle``).

A page is one statement, so all of it is of one moment; it ends where it has enough facts or bytes. What is left out of
it is found by the next, since no fact of a committed turn is ever put in before another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.workflow.execution import AttemptRow, Transition
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.lifecycle import FailedRollback, Record
from orchestrator.workflow.status import FINISHED, Status

FACTS = 1000
BYTES = 4 * 1024 * 1024
"""What a page holds at most; a single larger fact is a page of its own."""


@dataclass(slots=True, frozen=True)
class Page:
    """A part of the record. ``until`` is the seq of its last fact, ``None`` if nothing is left out after it."""

    record: Record
    until: int | None


_ENDS = ", ".join(f"'{status}'" for status in sorted(FINISHED))
_AT = "extract(epoch FROM {})::float8".format

# ``near`` are the steps with a fact from ``since`` on; ``f`` lists the facts from there with their sizes, one more than
# a page takes; ``p`` is where the page ends, ``s`` its steps, read by one scan of the instance: a join with ``near``
# could be planned as a loop in a loop. The arrays are in the order of the fields of StepRow, AttemptRow and
# Transition. Values outside of the page are not read.
_PAGE = f"""
WITH near AS (
  SELECT s.started_seq, s.fence, s.finished_seq,
    100 + coalesce(octet_length(s.output), 0) + coalesce(octet_length(s.error), 0) AS size
  FROM orchestrator_steps s
  WHERE s.instance_id = %(id)s::uuid AND greatest(s.started_seq, s.fence, s.finished_seq) >= %(since)s::int8),
f AS MATERIALIZED (
  SELECT seq, size FROM (
    SELECT v.seq, v.size FROM near n,
      LATERAL (VALUES (n.started_seq, 100), (n.fence, 100), (n.finished_seq, n.size)) AS v(seq, size)
    UNION ALL SELECT a.seq, 100 + octet_length(a.error) FROM orchestrator_attempts a
      WHERE a.instance_id = %(id)s::uuid
    UNION ALL SELECT a.fence, 100 FROM orchestrator_attempts a WHERE a.instance_id = %(id)s::uuid
    UNION ALL SELECT t.seq, 100 FROM orchestrator_transitions t WHERE t.instance_id = %(id)s::uuid) facts
  WHERE seq >= %(since)s::int8 ORDER BY seq LIMIT %(facts)s::int8 + 1),
p AS MATERIALIZED (
  SELECT max(seq) AS until, count(*) AS facts FROM (
    SELECT seq, row_number() OVER w AS place, sum(size) OVER w - size AS before FROM f WINDOW w AS (ORDER BY seq)) r
  WHERE place <= %(facts)s::int8 AND before < %(bytes)s::int8),
s AS MATERIALIZED (
  SELECT s.* FROM p, orchestrator_steps s WHERE s.instance_id = %(id)s::uuid
    AND (s.started_seq BETWEEN %(since)s::int8 AND p.until OR s.finished_seq BETWEEN %(since)s::int8 AND p.until
      OR s.fence BETWEEN %(since)s::int8 AND p.until))
SELECT i.name_id, i.status, i.seq, {_AT("i.created_at")}, i.seed, i.began_seq, {_AT("i.started_at")},
  CASE WHEN %(since)s::int8 <= coalesce(i.began_seq, i.seq) THEN v.params END,
  CASE WHEN i.status IN ({_ENDS}) THEN v.output END, v.error, i.rollback,
  (SELECT min(t.seq) FROM orchestrator_transitions t WHERE t.instance_id = i.id),
  (SELECT max(t.seq) FROM orchestrator_transitions t WHERE t.instance_id = i.id),
  (SELECT t.status = 'rolling_back' FROM orchestrator_transitions t WHERE t.instance_id = i.id
    AND t.seq < %(since)s::int8 AND t.status IN ('rolling_back', {_ENDS}) ORDER BY t.seq DESC LIMIT 1),
  CASE WHEN p.facts < (SELECT count(*) FROM f) THEN p.until END,
  (SELECT json_agg(json_build_array(s.key, s.kind, s.status, s.started_seq, {_AT("s.started_at")}, s.finished_seq,
      {_AT("s.finished_at")}, s.attempt, s.losses, s.uncounted, s.fence, s.config, s.label,
      CASE WHEN s.finished_seq BETWEEN %(since)s::int8 AND p.until THEN s.output END, s.error, s.has_rollback, NULL,
      {_AT("s.due_at")}, s.line, {_AT("s.handed_at")}, {_AT("s.claimed_at")}, s.run)) FROM s),
  (SELECT json_agg(json_build_array(a.key, a.attempt, a.fence, a.seq, a.error, '', {_AT("a.handed_at")},
      {_AT("a.claimed_at")}, {_AT("a.ended_at")}, a.retry_delay_s) ORDER BY a.seq)
    FROM orchestrator_attempts a WHERE a.instance_id = i.id
    AND (a.seq BETWEEN %(since)s::int8 AND p.until OR a.fence BETWEEN %(since)s::int8 AND p.until)),
  (SELECT json_agg(json_build_array(t.seq, t.status, {_AT("t.at")}) ORDER BY t.seq)
    FROM orchestrator_transitions t WHERE t.instance_id = i.id AND t.seq BETWEEN %(since)s::int8 AND p.until),
  (SELECT json_agg(json_build_array(o.seq, o.past) ORDER BY o.seq) FROM orchestrator_audit o
    WHERE o.instance_id = i.id AND o.past IS NOT NULL),
  (SELECT json_agg(json_build_array(l.key, l.attempt, l.fence)) FROM (
    SELECT DISTINCT ON (a.key) a.key, a.attempt, a.fence FROM orchestrator_attempts a
    WHERE a.instance_id = i.id AND EXISTS (SELECT 1 FROM s WHERE s.key = a.key) ORDER BY a.key, a.seq DESC) l)
FROM orchestrator_instances i JOIN orchestrator_payloads v ON v.instance_id = i.id CROSS JOIN p
WHERE i.id = %(id)s::uuid
"""

_HEADS = """
SELECT w.id, i.seq FROM unnest(%(ids)s::uuid[]) AS w(id) LEFT JOIN orchestrator_instances i ON i.id = w.id
"""


def page(
    connection: Connection, instance: UUID | str, since: int, facts: int = FACTS, size: int = BYTES
) -> Page | None:
    """The facts of an instance from the seq ``since`` on, as many as go into a page; ``None`` if there is no such
    instance (any more)."""
    parameters = {"id": str(instance), "since": since, "facts": facts, "bytes": size}
    for row in session.rows(connection, _PAGE, parameters):
        steps, attempts, transitions, past, failed = (found or () for found in row[15:20])
        record = Record(row[0], Status(row[1]), *row[2:13])
        record.undoing = bool(row[13])
        record.steps = [StepRow(*each) for each in steps]
        record.attempts = [AttemptRow(*each) for each in attempts]
        record.transitions = [Transition(*each) for each in transitions]
        record.past = [FailedRollback.from_json(*each) for each in past]
        record.failed = {key: (attempt, fence) for key, attempt, fence in failed}
        return Page(record, row[14])
    return None


def heads(connection: Connection, instances: Sequence[str]) -> dict[str, int | None]:
    """The ``seq`` of each of these instances; ``None`` for one that does not exist (any more)."""
    rows: list[Any] = session.rows(connection, _HEADS, {"ids": array(instances, "uuid")})
    return {str(row[0]): row[1] for row in rows}
