"""What a child does at its parent's word: it terminates itself, or undoes what it did. Needs no code, like a verb.

Owns: the writes. Does not own: what a parent asks for (``children``), the locks (``engine.turning.lineage``), nor the
compensation that follows in the next turn.
"""

from __future__ import annotations

from orchestrator.workflow.deciding import verbs
from orchestrator.workflow.deciding.children import Word, word
from orchestrator.workflow.deciding.turn import Turn
from orchestrator.workflow.execution import Execution, Writes
from orchestrator.workflow.status import Status


def obey(execution: Execution, now: float) -> Writes | None:
    """The writes of what ``execution.parent`` asks for, or ``None`` if that is nothing. ``again`` asks for a turn."""
    parent = execution.parent
    said = None if parent is None else word(execution.status, execution.ending, parent)
    if said is None:
        return None
    if said is Word.UNDO:
        return _undo(execution, now)
    return verbs.terminate(execution, now, rollback=said is Word.ROLL_BACK)


def _undo(execution: Execution, now: float) -> Writes:
    """A child that has ended rolls back: it comes to be terminated, whatever it came to before."""
    turn = Turn(execution, now)
    execution.ending = Status.TERMINATED.value
    turn.become(Status.ROLLING_BACK)
    execution.alarm_at = now
    turn.writes.again = True
    return turn.stand()
