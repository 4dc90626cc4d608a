"""Steps, and what operators did, for people, from rows. Owns: the view, and the redaction of sensitive values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from orchestrator.client.records import REDACTED, Attempt, AuditRecord, StepRecord
from orchestrator.workflow import codec, saga
from orchestrator.workflow.execution import AttemptRow
from orchestrator.workflow.history import StepRow


def step_records(rows: Iterable[StepRow], failed: Sequence[AttemptRow]) -> list[StepRecord]:
    """One record per row, with its attempts: not with those of a handler that was taken back before this one."""
    attempts: dict[str, list[AttemptRow]] = {}
    for attempt in failed:
        attempts.setdefault(attempt.key, []).append(attempt)
    return [
        _record(row, [each for each in attempts.get(row.key, ()) if each.seq > row.started_seq])
        for row in rows
    ]


def audit_record(verb: str, detail: str, by: str, at: float) -> AuditRecord:
    """What somebody did, from its row."""
    return AuditRecord(verb, instant(at), by, codec.decode(detail))


def _record(row: StepRow, failed: Sequence[AttemptRow]) -> StepRecord:
    config: dict[str, Any] = codec.decode(row.config) if row.config else {}
    _, _, name_count = saga.forward_key(row.key).partition(":")
    name, _, count = name_count.rpartition(":")
    output = None if row.output is None else codec.decode(row.output)
    if config.get("sensitive") and row.output is not None:
        output = REDACTED
    return StepRecord(
        key=row.key,
        kind=row.kind,
        name=name,
        count=int(count),
        status=row.status,
        output=output,
        error=None if row.error is None else codec.error_info(row.error),
        attempts=_attempts(row, failed),
        config=config,
        started_at=instant(row.started_at),
        finished_at=None if row.finished_at is None else instant(row.finished_at),
    )


def _attempts(row: StepRow, failed: Sequence[AttemptRow]) -> list[Attempt]:
    shown = [
        Attempt(
            a.attempt,
            codec.error_info(a.error),
            optional_instant(a.claimed_at or a.handed_at),
            instant(a.ended_at),
            a.retry_delay_s,
        )
        for a in failed
    ]
    if row.attempt > (failed[-1].attempt if failed else 0) and row.kind in ("do", "rollback"):
        began = optional_instant(row.claimed_at or row.handed_at)
        shown.append(Attempt(row.attempt, None, began, optional_instant(row.finished_at)))
    return shown


def instant(seconds: float) -> datetime:
    """The aware datetime of epoch seconds."""
    return datetime.fromtimestamp(seconds, UTC)


def optional_instant(seconds: float | None) -> datetime | None:
    """``instant``, of nothing nothing."""
    return None if seconds is None else instant(seconds)
