"""Reading instances for turns: the row, the steps a process lacks, the inbox.

Owns: the queries behind an ``Execution``. Does not own: building the replay from them (``engine.loading``).

A process that holds a replay up to ``seq`` asks only for what came after: steps started since, and those it
knew as open. So the cost of a turn does not grow with the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from orchestrator.store import session
from orchestrator.store.arrays import array
from orchestrator.workflow.execution import Outcome
from orchestrator.workflow.history import InboxEvent, StepRow
from orchestrator.workflow.kin import ChildState, ParentState


@dataclass(slots=True)
class Stored:
    """One instance as stored. ``rows`` are the steps asked for; ``dead`` the keys among them that a dead worker
    had claimed."""

    id: UUID
    account: str
    workflow: str
    name_id: str
    version: str
    run: int
    status: str
    seq: int
    alarm_at: float
    created_at: float
    started_at: float | None
    ended_seq: int | None
    ending: str | None
    blocked: str | None
    state_bytes: int
    params: str
    has_events: bool
    seed: int = 0
    schedule: str | None = None
    scheduled_at: float | None = None
    parent_id: UUID | None = None
    parent_key: str | None = None
    rows: list[StepRow] = field(default_factory=list)
    inbox: list[InboxEvent] = field(default_factory=list)
    dead: set[str] = field(default_factory=set)
    parent: ParentState | None = None
    """How its parent stands, where it has one and somebody asked (``records.children``)."""
    children: list[ChildState] | None = None
    """How its children stand, where it has any and somebody asked."""
    reported: list[Outcome] = field(default_factory=list)
    """Ends of attempts that are Celery tasks of the application, as their workers reported them: not history yet."""


@dataclass(slots=True, frozen=True)
class Known:
    """What a process holds of an instance: everything up to ``seq``, with these steps open. 0: nothing."""

    id: UUID
    seq: int = 0
    open: Sequence[str] = ()


_HEAD = """
SELECT i.id, i.account, i.workflow, i.name_id, i.version, i.run, i.status, i.seq,
  extract(epoch FROM i.alarm_at)::float8, extract(epoch FROM i.created_at)::float8,
  extract(epoch FROM i.started_at)::float8, i.ended_seq, i.ending, i.blocked, i.state_bytes,
  CASE WHEN k.seq = 0 THEN p.params ELSE '' END,
  EXISTS (SELECT 1 FROM orchestrator_inbox b WHERE b.instance_id = i.id),
  i.seed, i.schedule, extract(epoch FROM i.scheduled_at)::float8, i.parent_id, i.parent_key
FROM unnest(%(ids)s::uuid[], %(seqs)s::int8[]) AS k(id, seq)
JOIN orchestrator_instances i ON i.id = k.id JOIN orchestrator_payloads p ON p.instance_id = i.id
"""

STEP_COLUMNS = """
  s.key, s.kind, s.status, s.started_seq, extract(epoch FROM s.started_at)::float8, s.finished_seq,
  extract(epoch FROM s.finished_at)::float8, s.attempt, s.losses, s.uncounted, s.fence, s.config, s.label, s.output,
  s.error, s.has_rollback, s.worker, extract(epoch FROM s.due_at)::float8, s.line,
  extract(epoch FROM s.handed_at)::float8, extract(epoch FROM s.claimed_at)::float8, s.run
"""
"""In the order of ``StepRow``'s fields."""

_STEPS = f"""
SELECT s.instance_id, (s.status IN ('running', 'cancelling') AND s.worker IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM orchestrator_workers w WHERE w.id = s.worker AND w.dead_at IS NULL)), {STEP_COLUMNS}
FROM unnest(%(ids)s::uuid[], %(seqs)s::int8[]) AS k(id, seq)
JOIN orchestrator_steps s ON s.instance_id = k.id AND s.started_seq > k.seq AND s.started_seq > 0
UNION ALL
SELECT s.instance_id, (s.status IN ('running', 'cancelling') AND s.worker IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM orchestrator_workers w WHERE w.id = s.worker AND w.dead_at IS NULL)), {STEP_COLUMNS}
FROM unnest(%(open_ids)s::uuid[], %(open_keys)s::text[], %(open_seqs)s::int8[]) AS o(id, key, seq)
JOIN orchestrator_steps s ON s.instance_id = o.id AND s.key = o.key AND s.started_seq <= o.seq
"""

_INBOX = """
SELECT b.instance_id, b.number, b.type, b.payload, extract(epoch FROM b.received_at)::float8
FROM unnest(%(ids)s::uuid[]) AS k(id) JOIN orchestrator_inbox b ON b.instance_id = k.id
ORDER BY b.instance_id, b.number
"""


READS = 10


def load(connection: Connection, known: Iterable[Known], reads: int = READS) -> dict[UUID, Stored]:
    """The current rows of these instances and what came after what is known of each. Missing ids are deleted.

    One statement where nothing came since, else up to three: under READ COMMITTED each sees what was committed when it
    began. Where a turn was committed in between, the facts would be ahead of the instance's ``seq`` and be fed twice:
    such an instance is read again. A caller that needs what stays true holds the rows' locks (``turns.lock``), or
    checks ``seq`` when it writes.
    """
    wanted = list(known)
    parameters: dict[str, Any] = {
        "ids": array([k.id for k in wanted], "uuid"),
        "seqs": array([k.seq for k in wanted], "int8"),
    }
    found = {row[0]: Stored(*row) for row in session.rows(connection, _HEAD, parameters)}
    behind = [k for k in wanted if k.id in found and (k.open or found[k.id].seq > k.seq)]
    _load_steps(connection, behind, found)
    holders = [stored.id for stored in found.values() if stored.has_events]
    if holders:
        for instance, *columns in session.rows(connection, _INBOX, {"ids": array(holders, "uuid")}):
            found[instance].inbox.append(InboxEvent(*columns))
    torn = [k for k in wanted if k.id in found and _is_torn(found[k.id])]
    if torn and reads > 1:
        found.update(load(connection, torn, reads - 1))
    return found


def _load_steps(connection: Connection, wanted: Sequence[Known], found: dict[UUID, Stored]) -> None:
    if not wanted:
        return
    opened = [(k.id, key, k.seq) for k in wanted for key in k.open]
    parameters = {
        "ids": array([k.id for k in wanted], "uuid"),
        "seqs": array([k.seq for k in wanted], "int8"),
        "open_ids": array([o[0] for o in opened], "uuid"),
        "open_keys": array([o[1] for o in opened], "text"),
        "open_seqs": array([o[2] for o in opened], "int8"),
    }
    for instance, is_dead, *columns in session.rows(connection, _STEPS, parameters):
        row = StepRow(*columns)
        found[instance].rows.append(row)
        if is_dead:
            found[instance].dead.add(row.key)


def _is_torn(stored: Stored) -> bool:
    return any(max(row.started_seq, row.finished_seq or 0) > stored.seq for row in stored.rows)
