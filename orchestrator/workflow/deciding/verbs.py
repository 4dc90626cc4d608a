"""Operators' verbs on an instance: ``verb(execution, now, …) -> Writes``. They need no code: only rows, under locks.

Owns: what terminating, pausing and resuming write. Does not own: the locks and the look-up (``client.steering``),
restarts (``restarting``), nor what follows in the next turn: compensation, the end of a pause, held commands.

``execution`` holds a ``Held`` replay and is dropped afterwards. Its steps that are ``handed`` are locked, so nobody has
claimed them. Writes whose ``seq`` is what was expected change nothing; ``again`` asks for a turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.errors import InvalidTransition
from orchestrator.ports import FOREVER
from orchestrator.workflow.deciding import ending
from orchestrator.workflow.deciding.turn import Turn
from orchestrator.workflow.execution import Execution, Writes
from orchestrator.workflow.history import BUSY, StepRow
from orchestrator.workflow.status import FINISHED, Status


def terminate(execution: Execution, now: float, *, rollback: bool) -> Writes:
    """The writes of ``terminate``; ``again`` says that compensation is left for the next turn.

    Raises ``InvalidTransition`` on an instance that is finished or rolling back.
    """
    turn = Turn(execution, now)
    ending.terminate(turn, rollback=rollback)
    execution.blocked = None
    if execution.status not in FINISHED:
        turn.become(Status.ROLLING_BACK if ending.is_compensating(execution) else Status.RUNNING)
        execution.alarm_at = now
        turn.writes.again = True
    return turn.stand()


def pause(execution: Execution, now: float) -> Writes:
    """The writes of ``pause``: offers that nobody took are taken back; with steps in flight their end is waited for.

    Changes nothing where the instance is paused, or will be, or rolls back, which a pause does not hold up. Raises
    ``InvalidTransition`` on a finished instance.
    """
    turn = Turn(execution, now)
    _refuse_finished(execution, "paused")
    is_there = execution.status in (Status.WAITING_FOR_PAUSE, Status.PAUSED, Status.ROLLING_BACK)
    if is_there or execution.ending is not None:
        return turn.stand()
    for row in list(execution.open.values()):
        if row.status == "handed":
            take_back(turn, row)
            turn.write(row)
    if any(row.status in BUSY for row in execution.open.values()):
        turn.become(Status.WAITING_FOR_PAUSE)
        execution.alarm_at = now
    else:
        turn.become(Status.PAUSED)
        execution.alarm_at = FOREVER
    return turn.stand()


def resume(execution: Execution, now: float, paused_at: float | None = None) -> Writes:
    """The writes of ``resume``. A pending pause is taken back; after one every timer shifts by its length, and the
    instance queues as awoken. ``paused_at``: when it came to be ``paused`` (epoch seconds), if it is.

    What is blocked is tried anew. Changes nothing where the instance is neither paused nor about to be. Raises
    ``InvalidTransition`` on a finished instance.
    """
    turn = Turn(execution, now)
    _refuse_finished(execution, "resumed")
    if execution.status is Status.WAITING_FOR_PAUSE:
        turn.become(Status.RUNNING)
        turn.writes.queued_at = now
        execution.alarm_at = now
    elif execution.status is Status.PAUSED:
        for row in shift(list(execution.open.values()), paused_at, now):
            turn.write(row)
        turn.become(Status.QUEUED)
        turn.writes.queued_at = now
        execution.alarm_at = FOREVER
    else:
        return turn.stand()
    execution.blocked = None
    turn.writes.again = True
    return turn.stand()


def take_back(turn: Turn, row: StepRow) -> None:
    """An offer that nobody took was no attempt: the step is due, under a fence no message knows."""
    row.fence = turn.next_seq()
    row.status, row.due_at = "pending", turn.now
    row.attempt -= 1
    if row.attempt:
        row.claimed_at = row.handed_at  # an earlier attempt did run, which its compensation must know


def shift(rows: Iterable[StepRow], paused_at: float | None, now: float) -> list[StepRow]:
    """Those of ``rows`` that wait for a moment, which is later by the length of the pause."""
    waiting = [row for row in rows if row.status in ("waiting", "pending") and row.due_at is not None]
    for row in waiting:
        row.due_at = (row.due_at or 0.0) + max(0.0, now - (now if paused_at is None else paused_at))
    return waiting


def _refuse_finished(execution: Execution, verb: str) -> None:
    if execution.status in FINISHED:
        raise InvalidTransition(f"The instance is {execution.status} already; it cannot be {verb}.")
