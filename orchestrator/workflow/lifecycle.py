"""Lifecycle events: what happened to an instance, told in order. Pure.

Owns: the event, its number, and the derivation of events from the records of an instance. Does not own: reading the
records (``store.records.lifecycle``), following an instance live (``client.asking.subscription``).

Nothing is written for an event: each is derived from the fact that it tells of, and is numbered ``8 * seq + n`` with
the ``seq`` of that fact and an ``n`` of its type. So what is derived later, or from a part of the records, is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from orchestrator.errors import ErrorInfo
from orchestrator.workflow import codec, saga
from orchestrator.workflow.execution import AttemptRow, Transition
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.commands import DO, ROLLBACK, SLEEP, WAIT
from orchestrator.workflow.status import FINISHED, Status

REDACTED = "[REDACTED]"
PER_SEQ = 8

# Types that can share a ``seq`` stand in the order in which they are told.
NUMBERS: dict[str, int] = {
    "workflow_queued": 1,
    "step_started": 1,
    "sleep_started": 1,
    "wait_started": 1,
    "rollback_step_started": 1,
    "workflow_started": 2,
    "attempt_started": 2,
    "rollback_attempt_started": 2,
    "attempt_completed": 3,
    "attempt_errored": 3,
    "rollback_attempt_completed": 3,
    "rollback_attempt_errored": 3,
    "step_completed": 4,
    "step_errored": 4,
    "sleep_completed": 4,
    "wait_completed": 4,
    "wait_timed_out": 4,
    "rollback_step_completed": 4,
    "rollback_step_errored": 4,
    "rollback_started": 5,
    "rollback_completed": 5,
    "rollback_errored": 5,
    "workflow_running": 6,
    "workflow_waiting": 6,
    "workflow_waiting_for_pause": 6,
    "workflow_paused": 6,
    "workflow_completed": 7,
    "workflow_errored": 7,
    "workflow_terminated": 7,
}
"""Every type of event, and its place among those of one ``seq``."""

TERMINAL = frozenset({"workflow_completed", "workflow_errored", "workflow_terminated"})

_BY_STATUS = {
    Status.QUEUED: "workflow_queued",
    Status.RUNNING: "workflow_running",
    Status.WAITING: "workflow_waiting",
    Status.WAITING_FOR_PAUSE: "workflow_waiting_for_pause",
    Status.PAUSED: "workflow_paused",
    Status.ROLLING_BACK: "rollback_started",
    Status.COMPLETE: "workflow_completed",
    Status.ERRORED: "workflow_errored",
    Status.TERMINATED: "workflow_terminated",
}
_CANCELLED = ErrorInfo(
    "Cancelled", "The step was cancelled by the workflow code, or by a verb on its instance."
)
_ABANDONED = ErrorInfo(
    "Abandoned", "The workflow returned while this step, which it never awaited, was unfinished."
)
_PATCH = "patch"


@dataclass(frozen=True, slots=True)
class LifecycleEvent:
    """Something that happened to an instance. What does not apply to the type is ``None``.

    ``event_id`` grows with every event of the instance and is the cursor of ``subscribe``. ``retry_delay`` and
    ``duration`` are in seconds: how long a sleep is to last (``sleep_started``), or how long what ended has taken. The
    output of a sensitive step reads ``[REDACTED]``.
    """

    instance_id: str
    event_id: int
    timestamp: datetime
    type: str
    step_name: str | None = None
    count: int | None = None
    attempt: int | None = None
    output: Any = None
    error: ErrorInfo | None = None
    retry_delay: float | None = None
    duration: float | None = None
    event_type: str | None = None
    config: dict[str, Any] | None = None
    params: Any = None


class FailedRollback(NamedTuple):
    """A rollback that had failed and was taken up again at ``seq``: how it had ended, and those of its handlers that
    were taken back for that."""

    seq: int
    rollback: str
    handlers: tuple[StepRow, ...]

    def to_json(self) -> str:
        """Its text, without the ``seq``."""
        rows = [
            (
                row.key,
                row.started_seq,
                row.started_at,
                row.finished_seq,
                row.finished_at,
                row.config,
                row.error,
            )
            for row in self.handlers
        ]
        return codec.encode({"rollback": self.rollback, "handlers": rows}, what="a failed rollback")

    @classmethod
    def from_json(cls, seq: int, text: str) -> FailedRollback:
        """What ``to_json`` wrote."""
        read = codec.decode(text)
        rows = (
            StepRow(key, ROLLBACK, "failed", began, began_at, ended, ended_at, config=config, error=error)
            for key, began, began_at, ended, ended_at, config, error in read["handlers"]
        )
        return cls(seq, read["rollback"], tuple(rows))


@dataclass(slots=True)
class Record:
    """What is recorded of an instance, or the part of it that a reader lacks. Texts are the codec's JSON.

    ``status`` and ``seq`` are those of the whole instance; ``first`` and ``last`` the seqs of its first and last
    transition. ``failed`` is the last failed attempt of each step in ``steps``, as attempt and fence. ``undoing``: the
    part begins in the middle of a rollback. ``past``: all its rollbacks that failed and were taken up again, in order.
    """

    name_id: str
    status: Status
    seq: int
    created_at: float
    seed: int = 0
    began_seq: int | None = None
    started_at: float | None = None
    params: str | None = None
    output: str | None = None
    error: str | None = None
    rollback: str | None = None
    first: int | None = None
    last: int | None = None
    undoing: bool = False
    steps: Sequence[StepRow] = ()
    attempts: Sequence[AttemptRow] = ()
    transitions: Sequence[Transition] = ()
    failed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    past: Sequence[FailedRollback] = ()


def events(record: Record, after: int = -1, until: int | None = None) -> list[LifecycleEvent]:
    """The events of ``record`` above the number ``after``, and of facts up to the seq ``until``, in order.

    ``record`` may lack what has no fact from ``after`` on.
    """
    most = None if until is None else PER_SEQ * until + PER_SEQ - 1
    chosen = [
        event
        for event in _Teller(record).all()
        if event.event_id > after and (most is None or event.event_id <= most)
    ]
    return sorted(chosen, key=lambda event: event.event_id)


def failed_of(attempts: Sequence[AttemptRow]) -> dict[str, tuple[int, int]]:
    """The last failed attempt of each step, of all failed attempts in order: what ``Record.failed`` holds."""
    return {each.key: (each.attempt, each.fence) for each in attempts}


class _Teller:
    """Tells the events of one record, in no order."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def all(self) -> Iterator[LifecycleEvent]:
        yield from self._birth()
        yield from self._transitions()
        for row in self._record.steps:
            if row.kind != _PATCH:
                yield from self._step(row)
        for attempt in self._record.attempts:
            yield from self._failed(attempt)
        for past in self._record.past:
            for row in past.handlers:
                yield from self._step(row)

    def _event(self, type: str, seq: int, at: float, **fields: Any) -> LifecycleEvent:
        number = PER_SEQ * seq + NUMBERS[type]
        return LifecycleEvent(self._record.name_id, number, datetime.fromtimestamp(at, UTC), type, **fields)

    # -- the instance --------------------------------------------------------------------------------------

    def _birth(self) -> Iterator[LifecycleEvent]:
        record = self._record
        if record.seed == 0:  # else it was restarted from the top, which its first transition tells
            yield self._event("workflow_queued", 0, record.created_at, params=self._params())
        if record.started_at is not None:
            yield self._event(
                "workflow_started", record.began_seq or 0, record.started_at, params=self._params()
            )

    def _params(self) -> Any:
        return None if self._record.params is None else codec.decode(self._record.params)

    def _transitions(self) -> Iterator[LifecycleEvent]:
        record, undoing = self._record, self._record.undoing
        for each in record.transitions:
            status = Status(each.status)
            if record.seed > 0 and each.seq == record.first:
                yield self._event("workflow_queued", each.seq, each.at, params=self._params())
                if status is Status.QUEUED:
                    continue
            if status is Status.ROLLING_BACK:
                undoing = True
            elif status in FINISHED:
                if undoing:
                    yield self._undone(each)
                yield self._end(status, each)
                undoing = False
                continue
            fields = {"error": self._failure()} if status is Status.ROLLING_BACK else {}
            yield self._event(_BY_STATUS[status], each.seq, each.at, **fields)

    def _failure(self) -> ErrorInfo | None:
        return None if self._record.error is None else codec.error_info(self._record.error)

    def _undone(self, end: Transition) -> LifecycleEvent:
        """The end of a rollback: the last one, or one that failed and was taken up again later."""
        record = self._record
        told = next((past.rollback for past in record.past if past.seq > end.seq), record.rollback)
        status = codec.decode(told) if told is not None else {}
        if status.get("outcome") != "failed":
            return self._event("rollback_completed", end.seq, end.at)
        error = status.get("error")
        return self._event(
            "rollback_errored", end.seq, end.at, error=None if error is None else ErrorInfo.of(error)
        )

    def _end(self, status: Status, end: Transition) -> LifecycleEvent:
        record, fields = self._record, dict[str, Any]()
        if status is Status.COMPLETE and record.output is not None:
            fields["output"] = codec.decode(record.output)
        elif status is Status.ERRORED:
            fields["error"] = self._failure()
        if record.started_at is not None:
            fields["duration"] = max(0.0, end.at - record.started_at)
        return self._event(_BY_STATUS[status], end.seq, end.at, **fields)

    # -- steps ---------------------------------------------------------------------------------------------

    def _step(self, row: StepRow) -> Iterator[LifecycleEvent]:
        name, count = _named(row.key)
        config: dict[str, Any] = codec.decode(row.config) if row.config else {}
        fields: dict[str, Any] = {"step_name": name, "count": count}
        kind = {ROLLBACK: "rollback_step", SLEEP: "sleep", WAIT: "wait"}.get(row.kind, "step")
        if row.kind == WAIT:
            fields["event_type"] = config.get("type")
        began = dict(fields)
        if row.kind == SLEEP:
            began["duration"] = _asked(config, row.started_at)
        if config or row.kind != DO:
            began["config"] = config if kind != "step" or row.kind == DO else {"kind": row.kind, **config}
        yield self._event(f"{kind}_started", row.started_seq, row.started_at, **began)
        yield from self._attempt(row, fields)
        if row.finished_seq is not None:
            yield self._finished(row, row.finished_seq, kind, config, fields)

    def _finished(
        self, row: StepRow, seq: int, kind: str, config: Mapping[str, Any], fields: Mapping[str, Any]
    ) -> LifecycleEvent:
        at = row.finished_at or row.started_at
        told = {**fields, "duration": max(0.0, at - row.started_at)}
        if row.status == "done":
            if row.output is not None:
                told["output"] = REDACTED if config.get("sensitive") else codec.decode(row.output)
            return self._event(f"{kind}_completed", seq, at, **told)
        error = told["error"] = _error(row)
        if kind == "wait" and row.status == "failed" and error.name == "EventTimeout":
            return self._event("wait_timed_out", seq, at, **told)
        if kind == "rollback_step":
            return self._event("rollback_step_errored", seq, at, **told)
        return self._event("step_errored", seq, at, **told)  # a sleep or wait that was cancelled, too

    # -- attempts ------------------------------------------------------------------------------------------

    def _attempt(self, row: StepRow, fields: Mapping[str, Any]) -> Iterator[LifecycleEvent]:
        """The start of the first attempt, and the one that no failure is recorded of."""
        if row.kind not in (DO, ROLLBACK):
            return
        prefix = "rollback_attempt" if row.kind == ROLLBACK else "attempt"
        number, seq = row.attempt, row.fence
        if row.kind == DO:
            yield self._event(f"{prefix}_started", row.started_seq, row.started_at, **fields, attempt=1)
            number = max(1, number)  # one that was taken back, unclaimed, has begun all the same
        end = row.finished_seq
        is_raised = end is not None and row.fence >= end  # its own was lost when the step was cut short
        if number == 0 or (row.status == "pending" and number == row.attempt):
            return  # so for handlers that were taken back: all their attempts are on record as failed
        last = self._record.failed.get(row.key)
        if last is not None and last[0] == number and (is_raised or last[1] == row.fence):
            return
        fields = {**fields, "attempt": number}
        if row.kind == ROLLBACK or number > 1:
            seq = end if is_raised and end is not None else seq
            yield self._event(f"{prefix}_started", seq, row.handed_at or row.started_at, **fields)
        if end is None:
            return
        at = row.finished_at or row.started_at
        fields["duration"] = max(0.0, at - (row.claimed_at or row.handed_at or row.started_at))
        if row.status == "done":
            yield self._event(f"{prefix}_completed", end, at, **fields)
        else:
            yield self._event(f"{prefix}_errored", end, at, **fields, error=_error(row))

    def _failed(self, failed: AttemptRow) -> Iterator[LifecycleEvent]:
        is_rollback = failed.key.endswith(saga.SUFFIX)
        prefix = "rollback_attempt" if is_rollback else "attempt"
        name, count = _named(failed.key)
        fields: dict[str, Any] = {"step_name": name, "count": count, "attempt": failed.attempt}
        began_at = failed.claimed_at or failed.handed_at or failed.ended_at
        if is_rollback or failed.attempt > 1:  # the first of a step is told with its row
            yield self._event(f"{prefix}_started", failed.fence, failed.handed_at or began_at, **fields)
        yield self._event(
            f"{prefix}_errored",
            failed.seq,
            failed.ended_at,
            **fields,
            error=codec.error_info(failed.error),
            # As JSON, a whole number has lost its point on the way.
            retry_delay=None if failed.retry_delay_s is None else float(failed.retry_delay_s),
            duration=max(0.0, failed.ended_at - began_at),
        )


def _named(key: str) -> tuple[str, int]:
    """Name and count of a step; those of the step it undoes, for a compensation."""
    _, _, name_count = saga.forward_key(key).partition(":")
    name, _, count = name_count.rpartition(":")
    return name, int(count)


def _asked(config: Mapping[str, Any], started_at: float) -> float | None:
    """How long a sleep is to last, in seconds."""
    if "until" in config:
        return max(0.0, float(config["until"]) - started_at)
    duration: float | None = config.get("duration_s")
    return duration


def _error(row: StepRow) -> ErrorInfo:
    if row.status == "abandoned":
        return _ABANDONED
    if row.error is None or (row.status in ("cancelled", "cancelling") and row.kind != ROLLBACK):
        return _CANCELLED  # a compensation says by itself that it was skipped
    return codec.error_info(row.error)
