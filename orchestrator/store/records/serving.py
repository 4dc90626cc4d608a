"""Whether an instance is served: live workers that know its code, and the queues of its steps.

Owns: the query. Does not own: what is said about the answer (``client``), nor who is declared dead (``workers``).
"""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session


@dataclass(slots=True, frozen=True)
class Serving:
    """How many workers are alive, which versions of the workflow they know, and the oldest step in a queue that none of
    them serves, with when (epoch seconds) it was handed out."""

    workers: int
    is_known: bool
    versions: tuple[str, ...]
    step: str | None
    queue: str | None
    handed_at: float | None


# Of an application's own task nobody here knows which of its workers serve the queue.
_SERVING = """
WITH w AS MATERIALIZED (
  SELECT queues, known FROM orchestrator_workers WHERE account = %(account)s::text AND dead_at IS NULL
    AND heartbeat_at > clock_timestamp() - make_interval(secs => %(live_s)s::float8)),
s AS (
  SELECT s.key, coalesce(s.config::json ->> 'queue', %(queue)s::text) AS queue,
    extract(epoch FROM s.handed_at)::float8 AS handed_at
  FROM orchestrator_steps s WHERE s.instance_id = %(id)s::uuid AND s.status = 'handed'
    AND s.handed_at < to_timestamp(%(handed_before)s::float8) AND s.config::json ->> 'task' IS NULL)
SELECT (SELECT count(*) FROM w), (SELECT coalesce(bool_or(%(mine)s::text = ANY(known)), false) FROM w),
  (SELECT array_agg(DISTINCT k.name) FROM w, unnest(known) AS k(name) WHERE starts_with(k.name, %(prefix)s::text)),
  o.key, o.queue, o.handed_at
FROM (SELECT 1) AS always LEFT JOIN LATERAL (
  SELECT * FROM s WHERE NOT EXISTS (SELECT 1 FROM w WHERE s.queue = ANY(w.queues))
  ORDER BY s.handed_at LIMIT 1) o ON true
"""


def of(
    connection: Connection,
    account: str,
    instance: UUID,
    workflow: str,
    version: str,
    queue: str,
    *,
    live_s: float,
    handed_before: float,
) -> Serving:
    """How one instance is served. ``queue`` is the account's own; a worker is alive that renewed within ``live_s``
    seconds; only steps count that were handed out before ``handed_before`` (epoch seconds)."""
    prefix = f"{workflow}@"
    parameters = {
        "account": account,
        "id": str(instance),
        "mine": prefix + version,
        "prefix": prefix,
        "queue": queue,
        "live_s": live_s,
        "handed_before": handed_before,
    }
    (row,) = session.rows(connection, _SERVING, parameters)
    versions = tuple(sorted(name.removeprefix(prefix) for name in row[2] or ()))
    return Serving(row[0], row[1], versions, row[3], row[4], row[5])
