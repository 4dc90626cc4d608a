"""What the client hands out: statuses, steps, the results of batches. Plain records."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ErrorInfo, RollbackStatus
from orchestrator.workflow.lifecycle import REDACTED, LifecycleEvent
from orchestrator.workflow.status import Status

if TYPE_CHECKING:
    from orchestrator.client.instance import WorkflowInstance

__all__ = [
    "REDACTED",
    "Attempt",
    "AuditRecord",
    "BatchError",
    "BatchResult",
    "DeleteResult",
    "InstanceStatus",
    "LifecycleEvent",
    "Listed",
    "Page",
    "StepRecord",
]


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """Where an instance stands. ``blocked`` says why an unfinished one cannot go on."""

    status: Status
    output: Any = None
    error: ErrorInfo | None = None
    rollback: RollbackStatus | None = None
    blocked: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a step. ``retry_delay`` is in seconds; ``None`` if there was no retry."""

    number: int
    error: ErrorInfo | None
    started_at: datetime | None
    finished_at: datetime | None
    retry_delay: float | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One recorded step. ``count`` is the 1-based occurrence of its name; ``kind`` is ``do``, ``sleep``, ``wait``
    or ``rollback``. Values of sensitive steps read ``[REDACTED]``."""

    key: str
    kind: str
    name: str
    count: int
    status: str
    output: Any
    error: ErrorInfo | None
    attempts: list[Attempt]
    config: dict[str, Any]
    started_at: datetime
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A verb that somebody called on an instance. ``by`` is ``user@host`` of the process that did."""

    verb: str
    at: datetime
    by: str
    detail: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BatchError:
    """One entry of a batch that was not created, or not deleted. ``code`` is that of the error class; ``retry_after``,
    in seconds, that of a ``RateLimited``."""

    index: int
    id: str
    code: str
    message: str
    retry_after: float | None = None


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What ``create_batch`` did, in the order of the request."""

    created: list[WorkflowInstance] = field(default_factory=list)
    errors: list[BatchError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """What ``delete_batch`` did, in the order of the request."""

    deleted: list[str] = field(default_factory=list)
    errors: list[BatchError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Listed:
    """What a list knew of an instance when it was read."""

    status: Status
    version: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    """A page of a list. ``cursor`` leads to the next one; ``None`` if this is the last."""

    items: list[WorkflowInstance] = field(default_factory=list)
    cursor: str | None = None
