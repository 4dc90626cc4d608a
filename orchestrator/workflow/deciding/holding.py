"""Holding an instance that cannot go on: what ended meanwhile is recorded, nothing is fed to the code.

Owns: the writes of a hold, and of one that has to queue for a slot. Does not own: when to hold and for how long
(``engine.turning.holds``), who is granted a slot (``engine.turning.slots``).
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator.ports import FOREVER
from orchestrator.workflow.deciding import outcomes
from orchestrator.workflow.deciding.turn import Turn
from orchestrator.workflow.execution import Execution, Outcome, Writes
from orchestrator.workflow.history import BUSY
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.replay import Origin, Replay
from orchestrator.workflow.status import FINISHED, Status


class Held(Replay):
    """A replay without its code, that is fed nothing: facts are recorded for the code that will fit."""

    def __init__(self, definition: Definition, origin: Origin) -> None:
        super().__init__(definition, origin)
        self.ended = True


def hold(execution: Execution, ended: Iterable[Outcome], blocked: str, alarm_at: float, now: float) -> Writes:
    """Record the outcomes in ``ended`` and block the instance with ``blocked`` (JSON of name and message) until
    ``alarm_at``.

    ``execution`` must hold a ``Held`` replay. No attempt is handed out. A pause goes on: with nothing in flight any
    more the instance is paused, and blocked, and rings no alarm.
    """
    turn = Turn(execution, now)
    writes = turn.writes
    if execution.status in FINISHED:
        writes.stale.extend(ended)
        return writes
    for outcome in ended:
        outcomes.take(turn, outcome)
    for row in execution.open.values():
        if row.status == "handed" and row.fence > writes.expected_seq:  # a retry that nobody was told of
            row.status, row.due_at = "pending", now
            row.attempt -= 1
            turn.write(row)
    writes.handouts.clear()
    execution.blocked = blocked
    if execution.status in (Status.RUNNING, Status.QUEUED):
        turn.become(Status.WAITING)
    elif execution.status is Status.WAITING_FOR_PAUSE and not any(
        row.status in BUSY for row in execution.open.values()
    ):
        turn.become(Status.PAUSED)
    turn.next_seq()
    execution.alarm_at = FOREVER if execution.status is Status.PAUSED else alarm_at
    return turn.stand()


def queue(execution: Execution, now: float) -> Writes:
    """Let an instance that waits queue as awoken: something is due, and it was granted no slot. Events stay in the
    inbox, timers due. What is blocked is tried anew once it has its slot."""
    turn = Turn(execution, now)
    execution.blocked = None
    turn.become(Status.QUEUED)
    turn.writes.queued_at = now
    execution.alarm_at = FOREVER
    return turn.stand()
