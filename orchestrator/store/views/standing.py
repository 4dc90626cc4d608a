"""One instance with everything its row says, its parent, and its first children.

Owns: these queries. Does not own: the steps (``timeline``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session


@dataclass(slots=True, frozen=True)
class Standing:
    """The row of an instance. Texts are the codec's JSON, instants epoch seconds; ``parent_workflow`` and
    ``parent_name`` say which instance started it by ``step.invoke``, as step ``parent_key``."""

    id: UUID
    name_id: str
    version: str
    run: int
    status: str
    seq: int
    ending: str | None
    blocked: str | None
    rollback: str | None
    state_bytes: int
    created_at: float
    queued_at: float | None
    started_at: float | None
    ended_at: float | None
    expires_at: float | None
    schedule: str | None
    scheduled_at: float | None
    params: str
    output: str | None
    error: str | None
    parent_key: str | None
    parent_workflow: str | None
    parent_name: str | None


class Child(NamedTuple):
    """An instance that another one started, as the step ``key``."""

    workflow: str
    name_id: str
    key: str | None
    status: str


class Buffered(NamedTuple):
    """Events of one type that were received and not yet consumed."""

    type: str
    number: int
    oldest_at: float


_AT = "extract(epoch FROM {})::float8".format

_STANDING = f"""
SELECT i.id, i.name_id, i.version, i.run, i.status, i.seq, i.ending, i.blocked, i.rollback, i.state_bytes,
  {_AT("i.created_at")}, {_AT("i.queued_at")}, {_AT("i.started_at")}, {_AT("i.ended_at")}, {_AT("i.expires_at")},
  i.schedule, {_AT("i.scheduled_at")}, p.params, p.output, p.error, i.parent_key, o.workflow, o.name_id
FROM orchestrator_instances i JOIN orchestrator_payloads p ON p.instance_id = i.id
LEFT JOIN orchestrator_instances o ON o.id = i.parent_id
WHERE i.account = %(account)s::text AND i.workflow = %(workflow)s::text AND i.name_id = %(name_id)s::text
"""
_NAMED = """
SELECT workflow, name_id FROM orchestrator_instances WHERE account = %(account)s::text AND id = %(id)s::uuid
"""
_CHILDREN = """
SELECT workflow, name_id, parent_key, status FROM orchestrator_instances WHERE parent_id = %(id)s::uuid
ORDER BY id LIMIT %(limit)s::int8
"""
_BUFFERED = f"""
SELECT type, count(*), {_AT("min(received_at)")} FROM (
  SELECT type, received_at FROM orchestrator_inbox WHERE instance_id = %(id)s::uuid
  ORDER BY number LIMIT %(limit)s::int8) b
GROUP BY type ORDER BY type
"""


def find(connection: Connection, account: str, workflow: str, name_id: str) -> Standing | None:
    """The instance, or ``None`` if there is none."""
    parameters = {"account": account, "workflow": workflow, "name_id": name_id}
    for row in session.rows(connection, _STANDING, parameters):
        return Standing(*row)
    return None


def named(connection: Connection, account: str, instance: str) -> tuple[str, str] | None:
    """The workflow and the name id of the instance with this uuid, or ``None`` if there is none."""
    for row in session.rows(connection, _NAMED, {"account": account, "id": instance}):
        return row[0], row[1]
    return None


def children(connection: Connection, instance: UUID, limit: int) -> list[Child]:
    """The first ``limit`` instances that this one started, in their order."""
    parameters = {"id": str(instance), "limit": limit}
    return [Child(*row) for row in session.rows(connection, _CHILDREN, parameters)]


def buffered(connection: Connection, instance: UUID, limit: int) -> list[Buffered]:
    """What is in the inbox, by type; the first ``limit`` events count. Payloads are not read: a step that takes one may
    be sensitive."""
    parameters = {"id": str(instance), "limit": limit}
    return [Buffered(*row) for row in session.rows(connection, _BUFFERED, parameters)]
