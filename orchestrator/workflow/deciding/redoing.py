"""Finishing a rollback that has failed: failed handlers run anew, or an operator says that a step needs none. Pure.

Owns: which rollbacks may be taken up again, which handlers are taken back for it, and the row of one that is skipped.
Does not own: the chain that follows (``ending``), the locks and the look-up (``client.steering``), how rows go
(``store.records.rollbacks``).

A handler that is taken back loses its row. So the chain comes to it as if it never had: in its order, under its policy,
with fresh attempts and the same idempotency key. One that is skipped has a row that is ``cancelled``, and that counts
as handled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from orchestrator.errors import InvalidTransition, RollbackStatus, StepFailed
from orchestrator.workflow import codec, saga
from orchestrator.workflow.deciding.restarting import step_key
from orchestrator.workflow.deciding.turn import Turn
from orchestrator.workflow.execution import Execution, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.kin import child_id
from orchestrator.workflow.language.commands import DO, INVOKE, ROLLBACK
from orchestrator.workflow.lifecycle import FailedRollback
from orchestrator.workflow.status import FINISHED, Status

SKIPPED = "Skipped"
"""Under this name the row of a handler that was skipped says so."""


@dataclass(slots=True, frozen=True)
class Redo:
    """What taking a failed rollback up again changes. First the rows of ``past.handlers`` go, and what the instance
    remembers of its ``rollback``; then ``writes`` are applied."""

    writes: Writes
    past: FailedRollback
    """What was taken back, for the story of the instance."""
    detail: dict[str, Any]
    """What was done, for people."""
    children: tuple[tuple[str, UUID], ...] = ()
    """Steps whose child could not be undone, with the child: that one's own rollback is taken up again, too."""


def is_failed(status: str, rollback: str | None) -> bool:
    """Whether an instance of that status, with that record of its rollback, may be taken up again."""
    return status in FINISHED and _outcome(rollback) == "failed"


def is_taken_along(status: str, ending: str | None) -> bool:
    """Whether a child that could not be undone belongs to its parent's chain when that is retried. What failed has
    undone itself, and what was restarted has a life of its own."""
    return Status.TERMINATED in (status, ending)


def refusal(key: str) -> InvalidTransition:
    """Why a rollback cannot be retried: the child of the step ``key`` could not be undone, and was deleted."""
    return InvalidTransition(
        f"The child that step {key!r} had started could not be undone, and was deleted since: retry_rollback() can do "
        f"nothing about it. Say with skip_rollback({key!r}) that it is undone, or need not be; then retry the others."
    )


def retry(execution: Execution, rows: Iterable[StepRow], rollback: str | None, now: float) -> Redo:
    """The handlers that failed for good run once more, then those that the chain never came to. ``rows`` are all steps
    of the instance, ``rollback`` is how its rollback ended.

    Raises ``InvalidTransition`` unless the instance is finished and its rollback has failed.
    """
    _check(execution, rollback, "retry_rollback()")
    failed = [row for row in rows if row.kind == ROLLBACK and row.status == "failed"]
    turn = Turn(execution, now)
    past = _take_up(turn, failed, rollback or "")
    undone = [execution.forward[saga.forward_key(row.key)] for row in failed]
    children = tuple(
        (row.key, child_id(execution.id, row.run, row.key)) for row in undone if row.kind == INVOKE
    )
    detail = {"steps": [_named(row) for row in failed]}
    return Redo(turn.stand(), past, detail, children)


def skip(
    execution: Execution, rows: Sequence[StepRow], rollback: str | None, step: str, count: int, now: float
) -> Redo:
    """The step is undone, or need not be: its handler is left out, and the chain goes on with the others. ``step`` is
    the name of a ``do``, with ``count``, or the key of any step.

    Raises ``InvalidTransition`` unless the instance is finished, its rollback has failed, and the handler of that step
    has failed or never run; ``InvalidConfig`` for a count that is none.
    """
    _check(execution, rollback, "skip_rollback()")
    forward = _chosen(execution, rows, step, count)
    handler = execution.handlers.get(saga.handler_key(forward.key))
    turn = Turn(execution, now)
    past = _take_up(turn, [handler] if handler is not None else [], rollback or "")
    error = codec.encode_error(
        StepFailed(SKIPPED, "an operator said that this step is undone, or need not be")
    )
    began, ended = turn.next_seq(), turn.next_seq()
    execution.state_bytes += len(error)
    turn.write(
        StepRow(
            saga.handler_key(forward.key),
            ROLLBACK,
            "cancelled",
            began,
            now,
            ended,
            now,
            fence=ended,
            error=error,
            label=forward.label,
            line=forward.line,
            run=forward.run,
        )
    )
    detail = {"step": forward.key} if handler is None else _named(handler)
    return Redo(turn.stand(), past, detail)


def _take_up(turn: Turn, failed: Sequence[StepRow], rollback: str) -> FailedRollback:
    """The instance rolls back again, to end as it had ended; its error stays."""
    execution = turn.execution
    for row in failed:
        execution.handlers.pop(row.key)
        execution.state_bytes -= len(row.output or "") + len(row.error or "")
    execution.ending = execution.status.value
    turn.become(Status.ROLLING_BACK)
    execution.alarm_at = turn.now
    turn.writes.again = True
    # All their attempts are on record as failed: none is to be told with the row.
    return FailedRollback(execution.seq, rollback, tuple(replace(row, attempt=0) for row in failed))


def _check(execution: Execution, rollback: str | None, verb: str) -> None:
    if is_failed(execution.status, rollback):
        return
    if execution.status is Status.ROLLING_BACK:
        text = "it is rolling_back: wait for the end of that, its handlers are retried by themselves"
    elif execution.status not in FINISHED:
        text = f"it is {execution.status}, and has not ended: terminate(rollback=True) undoes what it did"
    elif rollback is None:
        text = f"it is {execution.status}, and nothing was rolled back"
    else:
        text = f"it is {execution.status}, and its rollback is {_outcome(rollback)}"
    raise InvalidTransition(f"{verb} is for an instance whose rollback has failed, but {text}.")


def _chosen(execution: Execution, rows: Sequence[StepRow], step: str, count: int) -> StepRow:
    """The step that is meant. Raises ``InvalidTransition`` if it cannot be skipped, and ``InvalidConfig``."""
    wanted = step_key(step, count, DO)
    eligible = {row.key: row for row in saga.eligible(rows)}
    forward = eligible.get(wanted) or (eligible.get(step) if count == 1 else None)
    handler = None if forward is None else execution.handlers.get(saga.handler_key(forward.key))
    if forward is not None and (handler is None or handler.status == "failed"):
        return forward
    if forward is not None and handler is not None:
        state = "has been skipped already" if handler.status == "cancelled" else "has run: it is undone"
        text = f"The rollback of step {forward.key!r} {state}."
    else:
        text = f"There is no step {wanted!r} that has run and has a rollback."
    left = [
        f"{row.key} ({'failed' if saga.handler_key(row.key) in execution.handlers else 'not run'})"
        for row in eligible.values()
        if execution.handlers.get(saga.handler_key(row.key), row).status == "failed"
        or saga.handler_key(row.key) not in execution.handlers
    ]
    raise InvalidTransition(f"{text} Those that can be skipped: {', '.join(left) or 'none'}.")


def _named(handler: StepRow) -> dict[str, Any]:
    """A handler that failed, and with what, for people."""
    return {"step": saga.forward_key(handler.key), "error": str(codec.error_info(handler.error or ""))}


def _outcome(rollback: str | None) -> str | None:
    return None if rollback is None else RollbackStatus.of(codec.decode(rollback)).outcome
