"""What may be done to an instance as it stands. Pure.

Owns: which verbs a page offers, and why not the others. Does not own: the verbs, which decide for themselves
(``workflow.deciding``): what is offered here may be refused a moment later.
"""

from __future__ import annotations

from orchestrator.workflow.status import FINISHED, Status

VERBS = (
    "pause",
    "resume",
    "terminate",
    "restart",
    "send-event",
    "retry-rollback",
    "skip-rollback",
    "delete",
)
"""As they stand in the paths of the API; ``delete`` is the method DELETE."""

_PAUSED = frozenset({Status.PAUSED, Status.WAITING_FOR_PAUSE})


def allowed(
    status: Status | str, rollback_outcome: str | None = None, *, ending: str | None = None
) -> dict[str, str | None]:
    """For each verb ``None`` if it may be called, else why not."""
    status = Status(status)
    is_over = status in FINISHED
    over = f"The instance is {status}." if is_over else None
    undoing = "It is rolling back." if status is Status.ROLLING_BACK or ending is not None else None
    failed = None
    if not is_over or rollback_outcome != "failed":
        failed = "Only a finished instance whose rollback has failed has one to finish."
    return {
        "pause": over or undoing or ("It is paused already." if status in _PAUSED else None),
        "resume": over or (None if status in _PAUSED else "It is not paused."),
        "terminate": over or undoing,
        "restart": None,
        "send-event": over,
        "retry-rollback": failed,
        "skip-rollback": failed,
        "delete": None,
    }
