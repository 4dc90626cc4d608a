"""What was to be undone, from the records of an instance alone.

Owns: the rules of semantics §5, told once more and without the code that follows them: from the rows of the steps, how
the instance ended and its policy come the handlers that must have run, their order, what they must have been told, and
the outcome. Does not own: what ran (``sagas.journal``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from orchestrator.workflow import codec
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.config import RollbackPolicy
from orchestrator.workflow.status import Status
from tests.laws.sagas import Line, journal

TERMINATED = ("Terminated", "Instance terminated during rollback")


@dataclass
class Ended:
    """The records of an instance at its end."""

    id: UUID
    policy: RollbackPolicy
    status: Status
    is_compensating: bool
    """Whether its end was to be undone: it failed, or was terminated with a rollback."""
    rows: list[StepRow]
    error: str | None
    rollback: str | None
    run: int = 0
    attempts: list[Any] = field(default_factory=list)

    @property
    def forward(self) -> list[StepRow]:
        return [row for row in self.rows if row.kind != "rollback"]

    @property
    def handlers(self) -> dict[str, StepRow]:
        """By the key of the step that they undo, in the order in which they were started."""
        found = sorted((row for row in self.rows if row.kind == "rollback"), key=lambda row: row.started_seq)
        return {row.key.removesuffix(":rollback"): row for row in found}

    @property
    def lines(self) -> list[Line]:
        return journal[str(self.id)]


def to_be_undone(ended: Ended) -> list[StepRow]:
    """Every ``do`` and wait with a handler that has started, last started first (semantics §5.2, §5.3)."""
    chosen = [row for row in ended.forward if row.has_rollback and _has_started(row)]
    return sorted(chosen, key=lambda row: -row.started_seq)


def _has_started(row: StepRow) -> bool:
    """A wait starts by itself, a body when it is claimed: once at least."""
    if row.kind == "wait" or row.status in ("done", "failed"):
        return True
    return row.claimed_at is not None or row.attempt > 1


def check(ended: Ended, *, all_claimed_ran: bool = True, all_cut_ran: bool = True) -> list[str]:
    """What ran is what had to run. Returns the keys of the steps that were undone, in order.

    ``all_claimed_ran``: no process was lost between a claim and its body. ``all_cut_ran``: none was told to stop there.
    """
    due = to_be_undone(ended) if ended.is_compensating else []
    _check_bodies(ended, all_claimed_ran, all_cut_ran)
    handled = ended.handlers
    if ended.policy.order == "parallel":
        _check_parallel(ended, due)
    else:
        _check_sequence(ended, due)
    _check_outcome(ended, due)
    for row in due:
        if row.key in handled:
            _check_told(ended, row, handled[row.key], all_claimed_ran)
    if all_claimed_ran:
        _check_none_after(ended)
    return list(handled)


def _check_bodies(ended: Ended, all_claimed_ran: bool, all_cut_ran: bool) -> None:
    """No body has run that is not on record as one that may have."""
    begun = {line.key for line in ended.lines if line.what == "begin"}
    started = {row.key: row for row in ended.forward if row.kind == "do" and _has_started(row)}
    assert begun <= started.keys(), f"ran, but are not undone: {begun - started.keys()}"
    if all_claimed_ran:
        never = {key for key in started.keys() - begun if all_cut_ran or started[key].status != "cancelled"}
        assert not never, f"are undone, but never ran: {never}"


def _check_sequence(ended: Ended, due: list[StepRow]) -> None:
    """One after the other; with ``stop`` none after the first that failed for good (semantics §5.3, §5.4)."""
    handled, expected, last = ended.handlers, [], 0
    for row in due:
        expected.append(row.key)
        handler = handled.get(row.key)
        assert handler is not None, f"{row.key} was never undone: {list(handled)}"
        assert handler.started_seq > last, f"the handler of {row.key} began before the one before had ended"
        assert handler.finished_seq is not None, "a handler is left open"
        last = handler.finished_seq
        if handler.status == "failed" and ended.policy.on_error == "stop":
            break
    assert list(handled) == expected


def _check_parallel(ended: Ended, due: list[StepRow]) -> None:
    """All of them, and all started before any has ended (semantics §5.8)."""
    handled = ended.handlers
    assert set(handled) == {row.key for row in due}
    starts = [row.started_seq for row in handled.values()]
    ends = [row.finished_seq or 0 for row in handled.values() if row.attempt]
    assert not ends or max(starts) < min(ends), "a handler had to wait for another"
    assert list(handled) == [row.key for row in due], "started in the order in which they would run"


def _check_outcome(ended: Ended, due: list[StepRow]) -> None:
    """``rollback`` tells how the chain ended, beside the error of the instance (semantics §5.4)."""
    failed = [row for row in ended.handlers.values() if row.status == "failed"]
    failed.sort(key=lambda row: row.finished_seq or 0)
    errors = [codec.decode(row.error or "") for row in failed]
    told = None if ended.rollback is None else codec.decode(ended.rollback)
    if not due:
        assert told is None, f"nothing was to be undone, and the rollback is {told}"
        return
    assert told is not None, "the outcome of the rollback is missing"
    assert told["outcome"] == ("failed" if failed else "complete")
    pairs = [(each["name"], each["message"]) for each in told["errors"]]
    assert pairs == [(each["name"], each["message"]) for each in errors]
    assert all(row.status in ("done", "failed") for row in ended.handlers.values())
    if ended.status is Status.ERRORED:
        assert ended.error is not None and codec.error_info(ended.error).name != "RollbackMissing"


def _check_told(ended: Ended, forward: StepRow, handler: StepRow, all_claimed_ran: bool) -> None:
    """Each attempt of a handler is told of its step what is on record (api §2)."""
    calls = [line for line in ended.lines if line.what == "undo" and line.key == handler.key]
    is_missing = handler.error is not None and codec.error_info(handler.error).name == "RollbackMissing"
    numbers = [line.attempt for line in calls]
    assert numbers == sorted(numbers)
    assert max(numbers, default=0) <= handler.attempt
    if all_claimed_ran and not is_missing:
        assert numbers == list(range(1, handler.attempt + 1)), f"{handler.key} has {handler.attempt} attempts"
    output = None if forward.output is None else codec.decode(forward.output)
    error = codec.error_info(ended.error) if ended.status is Status.ERRORED and ended.error else None
    for line in calls:
        told = line.told
        assert told is not None
        is_event = forward.kind == "wait" and told.has_output
        said = told.output.payload if is_event else told.output
        recorded = output["payload"] if is_event else output
        assert (said, told.has_output) == (recorded, forward.output is not None)
        assert told.idempotency_key == f"{ended.id}:{ended.run}:{handler.key}"
        assert told.step.idempotency_key == f"{ended.id}:{ended.run}:{forward.key}"
        assert told.step.attempt == max(1, forward.attempt)
        assert (told.error.name, told.error.message) == ((error.name, error.message) if error else TERMINATED)
        assert [each["name"] for each in told.args] == ([told.step.name] if forward.kind == "do" else [])


def _check_none_after(ended: Ended) -> None:
    """No body is at work once the first handler is (semantics §5.0), but for those that ran out of time: they were told
    to stop, and are not waited for."""
    timed_out = {
        (each.key, each.attempt)
        for each in ended.attempts
        if codec.error_info(each.error).name == "StepTimeout"
    }
    open_bodies: Counter[tuple[str, int]] = Counter()
    undone = False
    for line in ended.lines:
        at = (line.key, line.attempt)
        if line.what == "undo":
            undone = True
            at_work = [each for each, count in open_bodies.items() if count and each not in timed_out]
            assert not at_work, f"{line.key} was called while bodies were at work: {at_work}"
        elif line.what == "begin":
            assert not undone, f"{line.key} began after the first handler"
            open_bodies[at] += 1
        else:
            open_bodies[at] -= 1


def errors_of(rows: Iterable[StepRow]) -> set[str]:
    """The names of the errors with which handlers failed."""
    return {codec.error_info(row.error).name for row in rows if row.kind == "rollback" and row.error}
