"""Steps that are Celery tasks of the application: when an attempt of one is over its time, and why.

Owns: telling such a row from others, its deadline, and the error of a late attempt. Does not own: sending it, or what
its worker reports (``dispatch.foreign``); that error is an outcome like any other (``outcomes``).

Nobody of ours runs the body, so nobody of ours ends it: the time of an attempt is kept by the instance's alarm. Until
a worker has claimed it, it runs from the hand-out, since a worker without this package never does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from orchestrator.errors import StepTimeout
from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.execution import Execution, Outcome
from orchestrator.workflow.history import BUSY, StepRow
from orchestrator.workflow.language.config import StepConfig
from orchestrator.workflow.language.signatures import is_signature

_MARK = '"task":'


def is_task(row: StepRow) -> bool:
    """Whether ``row`` is an attempt in flight of a step that is a Celery task. Asked of every open row: a look at the
    text is enough, for what users write there has its quotes escaped."""
    return row.config is not None and _MARK in row.config and row.status in BUSY


def signature_of(execution: Execution, row: StepRow) -> Any:
    """What is to be sent for ``row``, or ``None`` where today's code has a function in its place."""
    call = execution.replay.calls.get(row.key)
    return call.fn if call is not None and is_signature(call.fn) else None


def deadline(row: StepRow) -> float:
    """When the attempt in flight of ``row`` is over its time."""
    began = row.claimed_at or row.handed_at
    return FOREVER if began is None else began + StepConfig.from_json(row.config or "").timeout_s


def next_deadline(rows: Iterable[StepRow]) -> float:
    """The first deadline of tasks among ``rows``."""
    return min((deadline(row) for row in rows if is_task(row)), default=FOREVER)


def late(row: StepRow, queue: str) -> Outcome:
    """The end of an attempt that is over its time; ``queue`` is where its message went."""
    config = StepConfig.from_json(row.config or "")
    what = f"attempt {row.attempt} of step {row.key!r} (the Celery task {config.task!r}, queue {queue!r})"
    if row.claimed_at is None:
        text = (
            f"{what} was not taken up within {config.timeout_s:g} seconds: no worker of that queue has reported it. "
            "Either none serves it in time, or it runs without this package: only a worker whose app was given to "
            "Orchestrator(celery=app) can report what became of the task."
        )
    else:
        text = (
            f"{what} took over {config.timeout_s:g} seconds. Its worker was not stopped; what it still returns is not "
            "recorded."
        )
    return Outcome(
        row.key,
        row.fence,
        error=codec.encode_error(StepTimeout(text)),
        worker=row.worker,
        claimed_at=row.claimed_at,
        attempt=row.attempt,
    )
