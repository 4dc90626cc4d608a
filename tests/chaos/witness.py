"""The witness: a table in which every body says when it began and ended, whatever becomes of its worker.

Owns: the table, writing it (through a connection of its own, autocommit), and the audit that compares it with what
the orchestrator recorded. Does not own: which bodies there are (``flows``).
"""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any
from uuid import uuid4

import psycopg

PATIENCE_S = 60.0

TABLE = """
CREATE TABLE IF NOT EXISTS chaos_bodies (
  id uuid PRIMARY KEY, instance_id uuid NOT NULL, key text NOT NULL, run int NOT NULL, attempt int NOT NULL,
  idempotency_key text NOT NULL, pid int NOT NULL, started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
  ended_at timestamptz)
"""


def libpq(url: str) -> str:
    """A SQLAlchemy URL as libpq knows it."""
    return url.replace("postgresql+psycopg://", "postgresql://")


class Witness:
    """Writes for the bodies of one process. A Postgres that is away is waited for: a body must not end unseen."""

    def __init__(self, url: str) -> None:
        self._url = libpq(url)
        self._lock = threading.Lock()
        self._connection: psycopg.Connection[Any] | None = None

    @contextlib.contextmanager
    def body(self, idempotency_key: str, attempt: int) -> Iterator[None]:
        row = self._begin(idempotency_key, attempt)
        yield
        self._end(row)

    @contextlib.asynccontextmanager
    async def abody(self, idempotency_key: str, attempt: int) -> AsyncIterator[None]:
        row = await asyncio.to_thread(self._begin, idempotency_key, attempt)
        yield
        await asyncio.to_thread(self._end, row)

    def _begin(self, idempotency_key: str, attempt: int) -> Any:
        row = uuid4()
        instance, run, key = idempotency_key.split(":", 2)
        self._write(
            "INSERT INTO chaos_bodies (id, instance_id, key, run, attempt, idempotency_key, pid) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            (row, instance, key, int(run), attempt, idempotency_key, os.getpid()),
        )
        return row

    def _end(self, row: Any) -> None:
        self._write("UPDATE chaos_bodies SET ended_at = clock_timestamp() WHERE id = %s", (row,))

    def _write(self, statement: str, parameters: tuple[Any, ...]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                with self._lock:
                    if self._connection is None or self._connection.closed:
                        self._connection = psycopg.connect(self._url, autocommit=True, connect_timeout=5)
                    self._connection.execute(statement, parameters)
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


# -- the audit: what was recorded, against what was seen -----------------------------------------------------

_TWICE = """
SELECT instance_id, key, attempt, count(*) FROM chaos_bodies WHERE instance_id = ANY(%(ids)s)
GROUP BY 1, 2, 3 HAVING count(*) > 1
"""

_MORE = """
SELECT b.instance_id, b.key, b.n, coalesce(a.n, 0) FROM
  (SELECT instance_id, key, count(*) AS n FROM chaos_bodies WHERE instance_id = ANY(%(ids)s) GROUP BY 1, 2) b
  LEFT JOIN (SELECT instance_id, key, count(*) AS n FROM orchestrator_attempts GROUP BY 1, 2) a USING (instance_id, key)
WHERE b.n > 1 + coalesce(a.n, 0)
"""

_UNSEEN = """
SELECT s.instance_id, s.key, s.attempt FROM orchestrator_steps s
WHERE s.instance_id = ANY(%(ids)s) AND s.kind IN ('do', 'rollback') AND s.key NOT LIKE 'invoke:%%'
  AND s.status = 'done' AND NOT EXISTS (
  SELECT 1 FROM chaos_bodies b WHERE b.instance_id = s.instance_id AND b.key = s.key AND b.attempt = s.attempt
    AND b.ended_at IS NOT NULL)
"""

_SEQS = """
SELECT instance_id, seq, count(*) FROM (
  SELECT instance_id, started_seq AS seq FROM orchestrator_steps
  UNION ALL SELECT instance_id, finished_seq FROM orchestrator_steps WHERE finished_seq IS NOT NULL
  UNION ALL SELECT instance_id, seq FROM orchestrator_attempts
  UNION ALL SELECT instance_id, seq FROM orchestrator_transitions) facts
WHERE instance_id = ANY(%(ids)s) GROUP BY 1, 2 HAVING count(*) > 1
"""

_AHEAD = """
SELECT i.id, i.seq, max(f.seq) FROM orchestrator_instances i JOIN (
  SELECT instance_id, greatest(started_seq, finished_seq) AS seq FROM orchestrator_steps
  UNION ALL SELECT instance_id, seq FROM orchestrator_attempts
  UNION ALL SELECT instance_id, seq FROM orchestrator_transitions) f ON f.instance_id = i.id
WHERE i.id = ANY(%(ids)s) GROUP BY 1, 2 HAVING max(f.seq) > i.seq
"""

_OPEN = """
SELECT s.instance_id, s.key, s.status FROM orchestrator_steps s JOIN orchestrator_instances i ON i.id = s.instance_id
WHERE i.id = ANY(%(ids)s) AND i.status IN ('complete', 'errored', 'terminated')
  AND (s.finished_seq IS NULL OR s.status NOT IN ('done', 'failed', 'cancelled', 'abandoned'))
"""

# An incarnation that was declared dead after it had claimed, and yet has the recorded end.
_GHOSTS = """
SELECT s.instance_id, s.key, w.id FROM orchestrator_steps s JOIN orchestrator_workers w ON w.id = s.worker
WHERE s.instance_id = ANY(%(ids)s) AND s.status = 'done' AND s.finished_at > w.dead_at + interval '3 seconds'
"""

CHECKS = {
    "bodies ran twice in one attempt": _TWICE,
    "bodies ran more often than losses were recorded": _MORE,
    "results recorded of bodies that never ended": _UNSEEN,
    "two facts with one seq": _SEQS,
    "facts ahead of the instance's seq": _AHEAD,
    "steps left open in a finished instance": _OPEN,
    "results recorded for workers long declared dead": _GHOSTS,
}


def audit(connection: psycopg.Connection[Any], ids: list[Any]) -> list[str]:
    """Everything that is wrong with these instances; empty when all is well."""
    wrong = []
    for what, query in CHECKS.items():
        rows = connection.execute(query, {"ids": ids}).fetchall()
        if rows:
            wrong.append(f"{what}: {len(rows)}, the first: {rows[0]}")
    return wrong
