"""What a turn learns of attempts that are Celery tasks of the application: how they ended, and which are over their
time.

Owns: reading reports for instances that have such attempts in flight, and turning both into outcomes. Does not own:
the table (``store.records.reports``), who fills it (``dispatch.foreign``), nor what an outcome does (``workflow``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.engine.running.placement import Ready
from orchestrator.store.histories import Stored
from orchestrator.store.records import reports
from orchestrator.store.session import Connection
from orchestrator.store.steps import Claim, Claimed
from orchestrator.workflow.deciding import signatures
from orchestrator.workflow.execution import Execution, Outcome, Wake
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.config import StepConfig


def load(connection: Connection, stored: Iterable[Stored]) -> None:
    """Fill ``reported`` of those that have a task in flight; the others cost no statement."""
    having = {one.id: one for one in stored if any(signatures.is_task(row) for row in one.rows)}
    if not having:
        return
    for report in reports.read(connection, list(having)):
        having[report.claim.instance].reported.append(
            Outcome(
                report.claim.key,
                report.claim.fence,
                output=report.output,
                error=report.error,
                traceback=report.traceback,
                final=report.is_final,
                loss=report.loss,
                dice=report.dice,
                is_reported=True,
            )
        )


def told(
    stored: Stored,
    execution: Execution,
    now: float,
    queue_of: Callable[[StepRow, Execution], str],
    asked: list[tuple[Ready, Outcome]],
) -> list[Outcome]:
    """The ends of tasks that a turn can take now. A failure that today's code has a delay function for is added to
    ``asked``, until that has answered; its report stays where it is."""
    taken: list[Outcome] = []
    for outcome in (*stored.reported, *_late(stored, execution, now, queue_of)):
        ready = _to_be_asked(execution, outcome)
        if ready is None:
            taken.append(outcome)
        else:
            asked.append((ready, outcome))
    return taken


def without(wake: Wake | None, asked: Iterable[tuple[Ready, Outcome]]) -> Wake | None:
    """``wake`` without the attempts whose end is known and waits for an answer: their workers may be gone since."""
    keys = {outcome.key for _, outcome in asked}
    if wake is None or not keys:
        return wake
    return Wake(tuple(key for key in wake.lost if key not in keys), wake.unclaimed)


def _to_be_asked(execution: Execution, outcome: Outcome) -> Ready | None:
    row, call = execution.open.get(outcome.key), execution.replay.calls.get(outcome.key)
    if row is None or call is None or call.delay is None or outcome.error is None or outcome.final:
        return None
    config = StepConfig.from_json(row.config or "")
    is_over = row.status == "cancelling" or row.attempt - row.uncounted > config.retries_limit
    if row.fence != outcome.fence or is_over or not config.has_delay_function:
        return None
    origin = execution.replay.origin
    claim = Claim(execution.id, row.key, row.fence)
    claimed = Claimed(claim, execution.seq, execution.run, origin.name_id, None, None, row.copy(), None, None)
    return Ready(claimed, call, execution.replay.definition)


def _late(
    stored: Stored, execution: Execution, now: float, queue_of: Callable[[StepRow, Execution], str]
) -> list[Outcome]:
    """The ends of attempts that are over their time, and of which nothing was reported."""
    reported = {outcome.key for outcome in stored.reported}
    return [
        signatures.late(row, queue_of(row, execution))
        for row in stored.rows
        if row.key not in reported and signatures.is_task(row) and signatures.deadline(row) <= now
    ]
