"""Restarting an instance, from the top or from one of its steps: which rows go, and what the others become. Pure.

Owns: the cut through history, and what is fed again after it. Does not own: the locks and the look-up
(``client.steering``), how rows go (``store.records.restarts``).

With T the start of the step: what started at T or later goes. What started before it and ended after it keeps its
result, but the end is taken out of history and fed again after it, in the old order (protocols §10). What the code, or
its end, cancelled after T is taken up again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from orchestrator.errors import InvalidConfig, InvalidTransition
from orchestrator.ports import FOREVER
from orchestrator.workflow.deciding import verbs
from orchestrator.workflow.deciding.turn import Turn
from orchestrator.workflow.execution import AttemptRow, Execution, Transition, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.kin import child_id
from orchestrator.workflow.language.commands import DO, INVOKE, ROLLBACK, SLEEP, WAIT
from orchestrator.workflow.status import HOLDS_SLOT, Status, check

KINDS = (DO, SLEEP, WAIT, INVOKE)
"""Kinds of steps that an instance can be restarted from."""


@dataclass(slots=True, frozen=True)
class Restart:
    """What a restart changes. First go the rows in ``gone`` with their attempts, compensations, transitions from
    ``since`` on, every buffered event, and of the instance its output, error, ``ended_seq`` and ``rollback``; where
    ``since`` is 0 all attempts, ``started_at`` and ``began_seq`` too. Then ``writes`` are applied, to kept rows."""

    run: int
    seed: int
    since: int
    gone: tuple[str, ...]
    writes: Writes
    awaited: tuple[UUID, ...] = ()
    """Children that are awaited again, by steps that had been cut short: those that were terminated with their steps
    (``is_cut_short``) are restarted from the top along with this instance."""


def restart(execution: Execution, rows: Iterable[StepRow], now: float) -> Restart:
    """From the top: nothing is kept but what the instance was created with. ``rows`` are all its steps."""
    turn = Turn(execution, now)
    run = execution.run + 1
    _anew(turn)
    execution.state_bytes = len(execution.replay.origin.params)
    return Restart(run, run, 0, tuple(row.key for row in rows), turn.stand())


def restart_from(
    execution: Execution,
    rows: Sequence[StepRow],
    attempts: Iterable[AttemptRow],
    key: str,
    now: float,
    paused_at: float | None = None,
) -> Restart:
    """From the step ``key``. ``rows`` are all steps of the instance and are changed in place, ``attempts`` its failed
    attempts; ``paused_at`` is when it came to be ``paused``, if it is: its timers shift as by ``resume``.

    Raises ``InvalidTransition`` if the step has not started.
    """
    since = next((row.started_seq for row in rows if row.key == key and row.kind in KINDS), None)
    if since is None:
        raise InvalidTransition(
            f"The instance has no step {key!r} to restart from: it has not started (in this run). Look at its steps() "
            "for those there are; a compensation cannot be chosen."
        )
    turn = Turn(execution, now)
    kept = [row for row in rows if row.started_seq < since and row.kind != ROLLBACK]
    changed = verbs.shift(kept, paused_at, now) if execution.status is Status.PAUSED else []
    _anew(turn)
    recorded = {(each.key, each.attempt): each.retry_delay_s is not None for each in attempts}
    late = [row for row in kept if row.finished_seq is not None and row.finished_seq > since]
    for row in sorted(late, key=lambda row: row.finished_seq or 0):
        if row.status in ("done", "failed"):
            row.finished_seq = turn.next_seq()
        else:
            _take_up(turn, row, recorded.get((row.key, row.attempt)))
    execution.state_bytes = len(execution.replay.origin.params) + sum(
        len(row.output or "") + len(row.error or "") for row in kept if row.status in ("done", "failed")
    )
    turn.writes.steps = {row.key: row for row in (*changed, *late)}
    staying = {row.key for row in kept}
    gone = tuple(row.key for row in rows if row.key not in staying)
    awaited = [row for row in late if row.kind == INVOKE and row.status == "waiting"]
    children = tuple(child_id(execution.id, row.run, row.key) for row in awaited)
    return Restart(execution.run + 1, execution.replay.origin.seed, since, gone, turn.stand(), children)


def is_cut_short(status: str, ending: str | None) -> bool:
    """Whether a child that is awaited again was terminated, or is about to be. Any other goes on, or its end counts."""
    return Status.TERMINATED in (status, ending)


def step_key(name: str, count: Any, kind: str) -> str:
    """The key of a step that somebody names. Raises ``InvalidConfig``."""
    if kind not in KINDS:
        raise InvalidConfig(f"kind= of a step to restart from is one of {', '.join(KINDS)}, not {kind!r}.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise InvalidConfig(f"count= says which of the steps of that name it is, from 1 on, not {count!r}.")
    return f"{kind}:{name}:{count}"


def _anew(turn: Turn) -> None:
    """The instance itself: an instance that has a slot keeps it, else it queues. That is a fact of its own, also where
    the status stays what it was."""
    execution = turn.execution
    status = Status.RUNNING if execution.status in HOLDS_SLOT else Status.QUEUED
    if status is not execution.status:
        check(execution.status, status)
    execution.status = status
    execution.ending = execution.blocked = None
    execution.alarm_at = turn.now if status is Status.RUNNING else FOREVER
    turn.writes.queued_at = turn.now
    turn.writes.transitions.append(Transition(turn.next_seq(), status.value, turn.now))
    turn.writes.again = True


def _take_up(turn: Turn, row: StepRow, has_failed: bool | None) -> None:
    """A step that was cut short after T goes on. ``has_failed``: its last attempt is on record as one that failed, or
    as one that was cut short; that, or one of which there is no record, does not count, and if nobody had claimed it
    there was none."""
    row.finished_seq = row.finished_at = row.output = None
    if row.kind != DO:
        row.status = "waiting"
    elif row.attempt and has_failed is None and row.claimed_at is None:
        verbs.take_back(turn, row)
    else:
        row.uncounted += not (has_failed or row.attempt == 0)
        row.fence = turn.next_seq()
        row.status, row.due_at = "pending", turn.now
