"""Instances as they would be stored: a dictionary in place of Postgres.

Owns: ``Record`` (the rows of one instance) and applying the ``Writes`` of a turn to it, as ``store.turns`` does in SQL.
Does not own: deciding what is written (``workflow.deciding``), nor when (``turns``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from orchestrator.errors import InstanceExists
from orchestrator.ports import FOREVER
from orchestrator.workflow.deciding.redoing import Redo
from orchestrator.workflow.deciding.restarting import Restart
from orchestrator.workflow.execution import AttemptRow, Transition, Writes
from orchestrator.workflow.history import FINAL, Began, Fact, InboxEvent, StepRow, facts
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.lifecycle import FailedRollback
from orchestrator.workflow.replay import Origin
from orchestrator.workflow.status import FINISHED, Status


@dataclass(slots=True)
class Record:
    """Everything that is remembered of one instance; the fields are the columns of its rows."""

    id: UUID
    name_id: str
    definition: Definition
    params: str
    created_at: float
    schedule: tuple[str, float] | None = None
    parent_id: UUID | None = None
    parent_key: str | None = None
    run: int = 0
    seed: int = 0
    status: Status = Status.QUEUED
    seq: int = 0
    alarm_at: float = FOREVER
    queued_at: float | None = None
    started_at: float | None = None
    began_seq: int | None = None
    ended_at: float | None = None
    ended_seq: int | None = None
    ending: str | None = None
    output: str | None = None
    error: str | None = None
    rollback: str | None = None
    blocked: str | None = None
    state_bytes: int = 0
    steps: dict[str, StepRow] = field(default_factory=dict)
    open: dict[str, StepRow] = field(default_factory=dict)
    """Those of ``steps`` that are not final."""
    attempts: list[AttemptRow] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    past: list[FailedRollback] = field(default_factory=list)
    """Rollbacks that had failed and were taken up again."""
    inbox: list[InboxEvent] = field(default_factory=list)
    events: int = 0
    """Events received so far; the last one has this number."""
    annotations: dict[str, Any] = field(default_factory=dict)
    """What today's code says that a step's result is, by key: for who asks for it."""

    @property
    def is_finished(self) -> bool:
        return self.status in FINISHED

    def origin(self) -> Origin:
        """What a replay of it starts from."""
        return Origin(
            self.id,
            self.name_id,
            self.run,
            self.params,
            self.created_at,
            seed=self.seed,
            schedule=self.schedule,
        )

    @property
    def paused_at(self) -> float | None:
        """When it came to be paused for the last time."""
        return next((each.at for each in reversed(self.transitions) if each.status == Status.PAUSED), None)

    def history(self) -> list[Fact]:
        """Every fact so far, in order."""
        if self.started_at is None:
            return []
        return [Began(0, self.started_at), *facts(self.steps.values(), ended_seq=self.ended_seq)]

    def in_order(self) -> list[StepRow]:
        """Its steps, in start order."""
        return sorted(self.steps.values(), key=lambda row: row.started_seq)

    def next_due(self) -> float:
        """The moment at which something is due by itself; ``FOREVER`` if nothing is."""
        if self.is_finished or self.status is Status.PAUSED:
            return FOREVER
        if self.blocked is not None:
            return self.alarm_at
        if self.status is Status.WAITING_FOR_PAUSE:
            return FOREVER  # what is due stays due; only the end of what is in flight goes on
        due = [row.due_at for row in self.open.values() if row.status in ("waiting", "pending")]
        return min((each for each in due if each is not None), default=FOREVER)

    def file(self, row: StepRow) -> None:
        """Put a row in the place of what was stored under its key."""
        self.steps[row.key] = row
        if row.status in FINAL:
            self.open.pop(row.key, None)
        else:
            self.open[row.key] = row

    def receive(self, type: str, payload: str, now: float) -> int:
        """Buffer an event, and give its number."""
        self.events += 1
        self.inbox.append(InboxEvent(self.events, type, payload, now))
        return self.events


class Storage:
    """The records there are, by id and by name."""

    def __init__(self) -> None:
        self._records: dict[UUID, Record] = {}
        self._names: dict[tuple[str, str], UUID] = {}

    def __iter__(self) -> Iterator[Record]:
        return iter(list(self._records.values()))

    def get(self, id: UUID) -> Record | None:
        return self._records.get(id)

    def find(self, workflow: str, name_id: str) -> Record | None:
        """The record of that name, if it exists (still)."""
        found = self._names.get((workflow, name_id))
        return None if found is None else self._records.get(found)

    def add(self, record: Record) -> None:
        """Raises ``InstanceExists``."""
        if self.find(record.definition.name, record.name_id) is not None:
            raise InstanceExists(record.name_id)
        self._records[record.id] = record
        self._names[record.definition.name, record.name_id] = record.id

    def remove(self, id: UUID) -> None:
        """Forget the record; its name is free at once."""
        record = self._records.pop(id, None)
        if record is not None:
            del self._names[record.definition.name, record.name_id]

    def commit(self, record: Record, writes: Writes) -> None:
        """Apply the writes of a turn or a verb, decided on the record as it is."""
        assert writes.expected_seq == record.seq, "two turns at once"
        if record.is_finished and not writes.steps and writes.seq in (0, record.seq):
            return
        for row in writes.steps.values():
            _write_step(record, row, cut=row.key in writes.cut)
        record.seq, record.status, record.alarm_at = writes.seq, writes.status, writes.alarm_at
        record.queued_at, record.ended_at, record.ending = writes.queued_at, writes.ended_at, writes.ending
        record.blocked, record.state_bytes = writes.blocked, writes.state_bytes
        for name in ("output", "error", "rollback", "ended_seq"):
            value = getattr(writes, name)
            if value is not None:
                setattr(record, name, value)
        if record.started_at is None:
            record.started_at, record.began_seq = writes.started_at, writes.began_seq
        record.attempts.extend(writes.attempts)
        record.transitions.extend(writes.transitions)
        record.inbox = [event for event in record.inbox if event.number not in writes.consumed]

    def restart(self, record: Record, decided: Restart) -> None:
        """Apply a restart, as ``store.records.restarts`` does: what goes, goes first."""
        since, gone = decided.since, set(decided.gone)
        for key in gone:
            record.steps.pop(key, None)
            record.open.pop(key, None)
        record.attempts = [each for each in record.attempts if since and each.key not in gone]
        record.transitions = [each for each in record.transitions if each.seq < since]
        record.inbox.clear()
        record.past.clear()
        record.run, record.seed = decided.run, decided.seed
        record.output = record.error = record.rollback = record.ended_seq = None
        if not since:
            record.started_at = record.began_seq = None
        for key, row in decided.writes.steps.items():
            record.steps[key].finished_seq = row.finished_seq  # only a restart moves an end
        self.commit(record, decided.writes)

    def redo(self, record: Record, decided: Redo) -> None:
        """Take a failed rollback up again, as ``store.records.rollbacks`` does: what is taken back goes first."""
        for row in decided.past.handlers:
            del record.steps[row.key]
        record.past.append(decided.past)
        record.rollback = None
        self.commit(record, decided.writes)


def _write_step(record: Record, row: StepRow, *, cut: bool) -> None:
    """Insert or update one step. Where it was cut short, the claim decides what it becomes, as in SQL."""
    stored, new = record.steps.get(row.key), row.copy()
    if stored is not None:
        assert stored.finished_seq in (None, row.finished_seq), f"step {row.key} ended twice"
        if cut:
            runs = stored.status == "running"
            new.status = "cancelling" if runs else "cancelled"
            new.fence = stored.fence if runs else row.finished_seq or 0
        if row.status in ("handed", "pending"):
            new.worker = None
        elif row.status != "running":
            new.worker = stored.worker
        if row.status == "pending":
            new.claimed_at = row.claimed_at or stored.claimed_at
        elif row.status not in ("handed", "running"):
            new.claimed_at = stored.claimed_at
    record.file(new)
