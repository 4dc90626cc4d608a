"""What a turn learns of attempts that are Celery tasks of the application: how they ended, and which are over their
time.

Owns: reading reports for instances that have such attempts in flight, and turning both into outcomes. Does not own:
the table (``store.records.reports``), who fills it (``dispatch.foreign``), nor what an outcome does (``workflow``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from orchestrator.store.histories import Stored
from orchestrator.store.records import reports
from orchestrator.store.session import Connection
from orchestrator.workflow.deciding import signatures
from orchestrator.workflow.execution import Execution, Outcome
from orchestrator.workflow.history import StepRow


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


def late(
    stored: Stored, execution: Execution, now: float, queue_of: Callable[[StepRow, Execution], str]
) -> list[Outcome]:
    """The ends of attempts that are over their time, and of which nothing was reported."""
    told = {outcome.key for outcome in stored.reported}
    return [
        signatures.late(row, queue_of(row, execution))
        for row in stored.rows
        if row.key not in told and signatures.is_task(row) and signatures.deadline(row) <= now
    ]
