"""Operators' verbs on an instance. They need no code: only rows, under the instance's lock.

Owns: what terminating writes. Does not own: the lock and the look-up (``client``), nor the compensation that may
follow, which the next turn starts.
"""

from __future__ import annotations

from orchestrator.workflow.deciding import ending
from orchestrator.workflow.deciding.turn import Turn
from orchestrator.workflow.execution import Execution, Writes
from orchestrator.workflow.status import FINISHED, Status


def terminate(execution: Execution, now: float, *, rollback: bool) -> Writes:
    """The writes of ``terminate``; ``again`` says that compensation is left for the next turn.

    Raises ``InvalidTransition`` on an instance that is finished or rolling back.
    """
    turn = Turn(execution, now)
    ending.terminate(turn, rollback=rollback)
    writes = turn.writes
    if execution.status not in FINISHED:
        turn.become(Status.ROLLING_BACK if ending.is_compensating(execution) else Status.RUNNING)
        execution.alarm_at = now
    writes.seq, writes.status, writes.alarm_at = execution.seq, execution.status, execution.alarm_at
    writes.ending, writes.state_bytes = execution.ending, execution.state_bytes
    writes.again = execution.status not in FINISHED
    return writes
