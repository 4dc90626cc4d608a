"""The workflows of an account as their workers registered them, and the workers that are alive.

Owns: these queries. Does not own: registering (``store.workers``). No code of a workflow is needed to read them.
"""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session


class Registered(NamedTuple):
    """One version of a workflow. ``options`` is JSON text, ``registered_at`` epoch seconds."""

    name: str
    version: str
    source_hash: str
    options: str
    registered_at: float
    has_graph: bool


class LiveWorker(NamedTuple):
    """A worker that renewed its lease lately; ``known`` are ``workflow@version``."""

    id: UUID
    hostname: str
    pid: int
    queues: tuple[str, ...]
    known: tuple[str, ...]
    started_at: float
    heartbeat_at: float


_REGISTERED = """
SELECT name, version, source_hash, options, extract(epoch FROM registered_at)::float8, graph IS NOT NULL
FROM orchestrator_workflows
WHERE account = %(account)s::text AND (%(name)s::text IS NULL OR name = %(name)s::text)
ORDER BY name, registered_at DESC, version DESC
"""
_LIVE = """
SELECT id, hostname, pid, queues, known, extract(epoch FROM started_at)::float8,
  extract(epoch FROM heartbeat_at)::float8
FROM orchestrator_workers WHERE account = %(account)s::text AND dead_at IS NULL
  AND heartbeat_at > clock_timestamp() - make_interval(secs => %(live_s)s::float8)
ORDER BY hostname, pid, id
"""


def versions(connection: Connection, account: str, name: str | None = None) -> list[Registered]:
    """Every version of one workflow, or of all: by name, the one registered last first."""
    parameters = {"account": account, "name": name}
    return [Registered(*row) for row in session.rows(connection, _REGISTERED, parameters)]


def live_workers(connection: Connection, account: str, live_s: float) -> list[LiveWorker]:
    """The workers that have renewed within ``live_s`` seconds and were not declared dead."""
    rows = session.rows(connection, _LIVE, {"account": account, "live_s": live_s})
    return [LiveWorker(row[0], row[1], row[2], tuple(row[3]), tuple(row[4]), row[5], row[6]) for row in rows]
