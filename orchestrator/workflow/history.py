"""The facts of an instance, in order: what a replay is fed, and the rows they are read from.

Owns: the row of a step as the pure core sees it, and the derivation of facts from rows.
Does not own: how rows are stored (``store``), nor what follows from facts (``replay``, ``turn``).

Every fact of an instance has a ``seq`` of its own. A start and its end are two facts of one row; rows sorted
by those numbers rebuild any replay.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter
from typing import Literal, NamedTuple
from uuid import UUID

StepStatus = Literal[
    "handed", "running", "pending", "waiting", "cancelling", "done", "failed", "cancelled", "abandoned"
]
"""``handed`` offered to workers · ``running`` claimed · ``pending`` waits for its retry · ``waiting`` a sleep or
wait · ``cancelling`` cancelled while its body was running, which has not ended yet · the rest are final."""

BUSY = frozenset({"handed", "running", "cancelling"})
FINAL = frozenset({"done", "failed", "cancelled", "abandoned"})


@dataclass(slots=True)
class StepRow:
    """One step as stored. Values are the codec's JSON text; instants are epoch seconds."""

    key: str
    kind: str
    status: StepStatus
    started_seq: int
    started_at: float
    finished_seq: int | None = None
    finished_at: float | None = None
    attempt: int = 0
    losses: int = 0
    """Attempts lost with their worker."""
    uncounted: int = 0
    """Attempts that do not count against ``limit``: the lost ones, and those handed back at a shutdown."""
    fence: int = 0
    config: str | None = None
    label: str = ""
    output: str | None = None
    error: str | None = None
    has_rollback: bool = False
    worker: UUID | None = None
    due_at: float | None = None
    line: int | None = None
    handed_at: float | None = None
    claimed_at: float | None = None
    run: int = 0
    """The run it was started in; one kept by a restart from a later step keeps it."""

    def copy(self) -> StepRow:
        """The same row, for who keeps it while turns go on changing this one."""
        return StepRow(
            self.key, self.kind, self.status, self.started_seq, self.started_at, self.finished_seq, self.finished_at,
            self.attempt, self.losses, self.uncounted, self.fence, self.config, self.label, self.output, self.error,
            self.has_rollback, self.worker, self.due_at, self.line, self.handed_at, self.claimed_at, self.run,
        )  # fmt: skip

    @property
    def has_begun(self) -> bool:
        """Whether a body of it may have run."""
        ended = self.status in ("done", "failed")
        return (
            ended
            or self.claimed_at is not None
            or self.attempt > 1
            or self.kind in ("wait", "sleep", "invoke")
        )


class Began(NamedTuple):
    """The first fact: the workflow's code starts."""

    seq: int
    at: float


class Started(NamedTuple):
    seq: int
    key: str


class Cancelled(NamedTuple):
    seq: int
    key: str


class Finished(NamedTuple):
    """A step came to its end: ``output`` or ``error`` is set, both the codec's text."""

    seq: int
    key: str
    at: float
    output: str | None = None
    error: str | None = None


class Ended(NamedTuple):
    """The code's run is over, though steps may still be recorded (cancelled bodies, compensations)."""

    seq: int


Fact = Began | Started | Cancelled | Finished | Ended


@dataclass(slots=True, frozen=True)
class InboxEvent:
    """A buffered event: ``number`` is its place in line, ``payload`` the codec's text."""

    number: int
    type: str
    payload: str
    received_at: float


def facts(rows: Iterable[StepRow], *, after: int = 0, ended_seq: int | None = None) -> list[Fact]:
    """The facts above ``after`` that these rows hold, by ``seq``. Compensations are no facts of the code."""
    starts: list[Fact] = []
    ends: list[Fact] = []
    for row in rows:
        if row.kind == "rollback":
            continue
        if row.started_seq > after:
            starts.append(Started(row.started_seq, row.key))
        if row.finished_seq is not None and row.finished_seq > after:
            ends.append(_end(row, row.finished_seq))
    by_seq = attrgetter("seq")
    marks: list[Fact] = [Ended(ended_seq)] if ended_seq is not None and ended_seq > after else []
    return list(heapq.merge(sorted(starts, key=by_seq), sorted(ends, key=by_seq), marks, key=by_seq))


def _end(row: StepRow, seq: int) -> Fact:
    if row.status in ("cancelled", "cancelling", "abandoned"):
        return Cancelled(seq, row.key)
    return Finished(seq, row.key, row.finished_at or 0.0, row.output, row.error)
