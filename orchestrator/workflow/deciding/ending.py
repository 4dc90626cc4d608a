"""How an instance ends: completion, failure, termination, cut-short steps and the chain of compensations.

Owns: what becomes of steps in flight when the code ends or cancels them, when the chain starts and stops, and the
failure of what has grown too large.
Does not own: the order of the chain (``saga``), nor ordinary progress (``turn``).

A workflow that fails with bodies in flight first cancels them and waits until each has ended, so that no body
does its work after its own compensation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.errors import Cancelled, ErrorInfo, InvalidTransition, PayloadTooLarge, RollbackMissing
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec, saga
from orchestrator.workflow.deciding import children
from orchestrator.workflow.execution import AttemptRow, Execution
from orchestrator.workflow.history import BUSY, Ended, StepRow, StepStatus
from orchestrator.workflow.language.commands import INVOKE, ROLLBACK, Complete
from orchestrator.workflow.status import FINISHED, Status

if TYPE_CHECKING:
    from orchestrator.workflow.deciding.turn import Turn

TERMINATED = ErrorInfo("Terminated", "Instance terminated during rollback")
"""What handlers see as the error when an operator terminates with rollback (semantics §5.6)."""


def complete(turn: Turn, command: Complete) -> None:
    """The code returned: steps it never awaited are cancelled and recorded as abandoned."""
    if is_full(turn.execution, len(command.output)):
        fail(turn, _too_large(turn.execution, len(command.output)))
        return
    turn.writes.output = command.output
    turn.execution.state_bytes += len(command.output)
    turn.writes.abandoned = [row.key for row in turn.execution.open.values() if row.status != "cancelling"]
    _end(turn, Status.COMPLETE, "abandoned")


def fail(turn: Turn, error: str) -> None:
    """The code raised: cut short what runs, then compensate or end."""
    turn.writes.error = turn.execution.error = error
    turn.execution.state_bytes += len(error)
    begin_end(turn, "errored")


def is_full(execution: Execution, more: int = 0) -> bool:
    """Whether the values of an instance, with ``more`` bytes of them, are over the limit of the deployment."""
    limit = execution.replay.origin.max_state_bytes
    return limit is not None and execution.state_bytes + more > limit


def overflow(turn: Turn) -> None:
    """The values of the instance have come to be too large: it fails, whatever its code goes on to do."""
    fail(turn, _too_large(turn.execution))
    assert turn.writes.ended_seq is not None
    turn.execution.replay.feed([Ended(turn.writes.ended_seq)])


def _too_large(execution: Execution, more: int = 0) -> str:
    size, limit = execution.state_bytes + more, execution.replay.origin.max_state_bytes or 0
    text = f"the state of the instance has {size:,} bytes; at most {limit:,} are allowed"
    return codec.encode_error(PayloadTooLarge(text))


def terminate(turn: Turn, *, rollback: bool) -> None:
    """An operator's word. Raises ``InvalidTransition`` on an instance that is finished or rolling back."""
    execution = turn.execution
    if execution.status in FINISHED:
        raise InvalidTransition(f"The instance is {execution.status} already; it cannot be terminated.")
    if execution.ending is not None:
        raise InvalidTransition("The instance is rolling back; it ends by itself.")
    if rollback:
        begin_end(turn, "terminated")
    else:
        _end(turn, Status.TERMINATED, "cancelled")


def begin_end(turn: Turn, status: str) -> None:
    """Decide the end; with anything to compensate it comes after the chain."""
    execution = turn.execution
    # What is handed out, or was cut just now, may have been claimed: storage tells.
    if not any(row.has_begun or row.status in BUSY for row in execution.forward.values()):
        _end(turn, Status(status), "cancelled")
        return
    turn.writes.ended_seq = turn.next_seq()
    turn.writes.ending = execution.ending = status
    for row in list(execution.open.values()):
        if row.status != "cancelling":
            cut(turn, row)


def cut(turn: Turn, row: StepRow) -> None:
    """Cancel one step. Where a body may be running, storage tells: it holds the claim (``Writes.cut``)."""
    _cut_retry(turn, row)
    seq = turn.next_seq()
    row.finished_seq, row.finished_at = seq, turn.now  # due_at is kept: a restart may take the step up again
    fresh = row.status == "handed" and row.fence > turn.writes.expected_seq  # nobody has seen this hand-out
    if row.status in ("handed", "running") and not fresh:
        turn.writes.cancelled.append((row.key, row.fence))
        turn.writes.cut.add(row.key)
        row.status = "cancelling"
    else:
        row.status = "cancelled"
        row.fence = seq
        if row.kind == INVOKE:
            children.let_go(turn, row)
    turn.write(row)


def _cut_retry(turn: Turn, row: StepRow) -> None:
    """A retry in flight that is cut short goes on record: when it was handed out would be lost with its fence."""
    if row.attempt > 1 and row.status in ("handed", "running"):
        error = codec.encode_error(Cancelled(f"Attempt {row.attempt} of step {row.key!r} was cut short."))
        attempt = AttemptRow(
            row.key, row.attempt, row.fence, turn.next_seq(), error, "", row.handed_at, row.claimed_at, turn.now, None
        )  # fmt: skip
        turn.writes.attempts.append(attempt)


def body_ended(turn: Turn, row: StepRow, output: str | None) -> None:
    """A body that was told to stop has ended; what it returned is for its compensation only."""
    turn.writes.cut.discard(row.key)  # if it was cut in this very turn, there is nothing left to tell
    turn.next_seq()
    row.status = "cancelled"
    row.output = output
    turn.write(row)


def is_compensating(execution: Execution) -> bool:
    """Whether there is, or may be, anything to undo."""
    return bool(execution.handlers) or bool(saga.eligible(children.links(execution)))


def compensate(turn: Turn) -> None:
    """Go on with the chain as far as it goes without waiting."""
    execution, writes = turn.execution, turn.writes
    if writes.cut:
        writes.again = True  # storage tells after the commit which bodies run
        return
    if any(row.status == "cancelling" for row in execution.open.values()):
        return
    if not children.have_stopped(turn) or children.is_held(turn):
        return
    if children.is_forsaken(execution):
        _end(turn, Status(execution.ending or "terminated"), "cancelled")
        return
    children.end_undoing(turn)
    policy = execution.replay.definition.options.rollback
    while True:
        chain = saga.advance(children.links(execution), execution.handlers, policy)
        if chain.start:
            turn.become(Status.ROLLING_BACK)  # on record before the first handler
        for row in chain.start:
            _start_handler(turn, row)
        if chain.over:
            _conclude(turn, chain.failed)
            return
        if not any(saga.handler_key(row.key) not in execution.open for row in chain.start):
            return


def _start_handler(turn: Turn, forward: StepRow) -> None:
    seq = turn.next_seq()
    key = saga.handler_key(forward.key)
    handler = StepRow(
        key, ROLLBACK, "handed", seq, turn.now, label=forward.label, line=forward.line, run=forward.run
    )
    if forward.kind == INVOKE:
        children.begin_undoing(turn, forward, handler)
        return
    call = turn.execution.replay.calls.get(forward.key)
    if call is None or call.rollback is None or call.rollback_config is None:
        error = RollbackMissing(
            f"Step {forward.key!r} has run and must be undone, but today's code does not come to it, or gives it "
            "no rollback. Deploy code that does and call retry_rollback(), or skip_rollback() if it is undone."
        )
        turn.finish(handler, error=codec.encode_error(error))
        return
    handler.config = call.rollback_config.to_json()
    turn.hand(handler, seq)


def _conclude(turn: Turn, failed: tuple[StepRow, ...]) -> None:
    execution = turn.execution
    status = Status(execution.ending or "errored")
    has_begun = bool(execution.handlers) or execution.status is Status.ROLLING_BACK
    if has_begun or children.is_undone_by_parent(execution):
        errors = [codec.error_info(row.error or "") for row in failed]
        turn.writes.rollback = codec.encode(
            {
                "outcome": "failed" if failed else "complete",
                "error": errors[0] if errors else None,
                "errors": errors,
            },
            what="the rollback status",
        )
    _end(turn, status, "cancelled")


def _end(turn: Turn, status: Status, left: StepStatus) -> None:
    """The last turn: nothing stays open, whoever still runs is told and fenced off."""
    execution, writes = turn.execution, turn.writes
    if writes.ended_seq is None and execution.ending is None:
        writes.ended_seq = turn.next_seq()  # before the steps it cuts short: those were not the code's doing
    for row in list(execution.open.values()):
        if row.status in ("handed", "running", "cancelling"):
            writes.cancelled.append((row.key, row.fence))
        if row.finished_seq is None:
            _cut_retry(turn, row)
        seq = turn.next_seq()
        if row.finished_seq is None:
            row.finished_seq, row.finished_at = seq, turn.now
        row.status = "cancelled" if row.status == "cancelling" else left
        row.fence = seq
        if row.kind == INVOKE:
            children.let_go(turn, row)
        turn.write(row)
    children.part(turn)
    execution.ending = writes.ending = None
    writes.cut.clear()
    writes.ended_at = turn.now
    turn.become(status)
    execution.alarm_at = FOREVER
