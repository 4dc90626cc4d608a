"""How an attempt's end is taken: a result, a retry after its delay, a loss, a hand-back.

Owns: retries, losses and the record of failed attempts. Does not own: the end of a step (``turn``), nor cut ones
(``ending``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import RetryDelayError, WorkerLost, WorkerShutdown
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import ending
from orchestrator.workflow.execution import AttemptRow, Outcome
from orchestrator.workflow.history import BUSY, StepRow
from orchestrator.workflow.language.config import StepConfig

if TYPE_CHECKING:
    from orchestrator.workflow.deciding.turn import Turn

LOSSES_ALLOWED = 10
_SHUTDOWN = "The worker shut down and handed the attempt back."


def take(turn: Turn, outcome: Outcome) -> None:
    """An attempt ended; one that no longer counts is kept aside as stale."""
    if outcome.is_reported:
        turn.writes.reported.append((outcome.key, outcome.fence))
    row = turn.execution.open.get(outcome.key)
    if row is None or row.fence != outcome.fence or row.status not in BUSY:
        turn.writes.stale.append(outcome)
        return
    row.worker = outcome.worker or row.worker
    row.claimed_at = outcome.claimed_at or row.claimed_at
    if row.status == "cancelling":
        ending.body_ended(turn, row, outcome.output)
    elif outcome.loss == "handed_back":
        row.uncounted += 1
        _record_attempt(turn, row, codec.encode_error(WorkerShutdown(_SHUTDOWN)), "", 0.0)
        turn.hand(row)
    elif outcome.loss is not None:
        lose(turn, row)
    elif outcome.error is None:
        turn.finish(row, output=outcome.output)
    else:
        _failed(turn, row, outcome, outcome.error)


def _failed(turn: Turn, row: StepRow, outcome: Outcome, error: str) -> None:
    config = StepConfig.from_json(row.config or "")
    failures = row.attempt - row.uncounted
    if outcome.final or failures > config.retries_limit:
        _record_attempt(turn, row, error, outcome.traceback, None)
        turn.finish(row, error=error)
        return
    asked = outcome.delay_s if config.has_delay_function else None  # a delay on record stays as it is
    if config.has_delay_function and asked is None:
        _record_attempt(turn, row, error, outcome.traceback, None)
        turn.finish(row, error=codec.encode_error(_no_delay(row, error)))
        return
    delay = config.wait_s(failures, outcome.dice, asked)
    _record_attempt(turn, row, error, outcome.traceback, delay)
    row.status = "pending"
    row.due_at = turn.now + delay
    turn.write(row)


def lose(turn: Turn, row: StepRow) -> None:
    """The worker that ran ``row`` is gone: record the attempt, hand the step out again at once."""
    if row.status == "cancelling":
        ending.body_ended(turn, row, None)
        return
    row.losses += 1
    row.uncounted += 1
    limit = StepConfig.from_json(row.config or "").retries_limit
    error = codec.encode_error(
        WorkerLost(
            f"The worker that ran attempt {row.attempt} of step {row.key!r} was lost in the middle of it."
        )
    )
    last = limit == 0 or row.losses > LOSSES_ALLOWED
    _record_attempt(turn, row, error, "", None if last else 0.0)
    if last:
        turn.finish(row, error=error)
    else:
        turn.hand(row)


def _record_attempt(turn: Turn, row: StepRow, error: str, traceback: str, delay: float | None) -> None:
    turn.writes.attempts.append(
        AttemptRow(
            row.key,
            row.attempt,
            row.fence,
            turn.next_seq(),
            error,
            traceback,
            row.handed_at,
            row.claimed_at,
            turn.now,
            delay,
        )
    )


def unanswered(row: StepRow, error: BaseException, refused: BaseException) -> RetryDelayError:
    """Why a step is not retried whose delay function was asked after ``error`` and failed with ``refused``."""
    wrong = RetryDelayError(
        f"the delay function of step {row.key!r} failed: {type(refused).__name__}: {refused} "
        f"(attempt {row.attempt} had failed with {codec.error_info(codec.encode_error(error))})"
    )
    wrong.__cause__ = refused
    return wrong


def _no_delay(row: StepRow, error: str) -> RetryDelayError:
    """Why a step is not retried whose delay function gave no answer: today's code may have none any more."""
    return RetryDelayError(
        f"Step {row.key!r} is to be retried after a delay that a function says, and there was no answer from it "
        f"(does today's code give it one?). Attempt {row.attempt} had failed with {codec.error_info(error)}"
    )
