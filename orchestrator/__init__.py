"""Durable workflows on the Celery that a team already runs.

A workflow is an ``async def``; each ``step.do`` in it is an idempotent Celery task whose result is stored in
Postgres. Importing this package loads no server library.
"""

from orchestrator.workflow.language.config import Retries, RollbackContext, RollbackPolicy, StepContext  # isort: skip
from orchestrator.client.instance import WorkflowInstance
from orchestrator.client.orchestrator import Orchestrator, configure
from orchestrator.client.records import (
    Attempt,
    AuditRecord,
    BatchError,
    BatchResult,
    DeleteResult,
    InstanceStatus,
    LifecycleEvent,
    Page,
    StepRecord,
)
from orchestrator.client.schedules import ScheduleRecord
from orchestrator.client.workflow import Workflow, workflow
from orchestrator.errors import (
    ErrorInfo,
    EventTimeout,
    InstanceExists,
    InstanceNotFound,
    InvalidConfig,
    InvalidInstanceId,
    InvalidName,
    InvalidTransition,
    NonDeterminismError,
    NonRetryableError,
    OrchestratorError,
    PayloadTooLarge,
    RateLimited,
    RetryDelayError,
    RollbackStatus,
    SerializationError,
    ServiceUnavailable,
    StepFailed,
    StepLimitExceeded,
    StepTimeout,
    TooManyQueued,
    WorkflowFailed,
    WorkflowTerminated,
)
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import ReceivedEvent, WorkflowEvent
from orchestrator.workflow.language.schedule import Schedule
from orchestrator.workflow.language.step import WorkflowStep
from orchestrator.workflow.status import Status

__all__ = [
    "Attempt",
    "AuditRecord",
    "BatchError",
    "BatchResult",
    "DeleteResult",
    "ErrorInfo",
    "EventTimeout",
    "InstanceExists",
    "InstanceNotFound",
    "InstanceStatus",
    "InvalidConfig",
    "InvalidInstanceId",
    "InvalidName",
    "InvalidTransition",
    "LifecycleEvent",
    "NonDeterminismError",
    "NonRetryableError",
    "Orchestrator",
    "OrchestratorError",
    "Page",
    "PayloadTooLarge",
    "RateLimited",
    "ReceivedEvent",
    "Retries",
    "RetryDelayError",
    "RollbackContext",
    "RollbackPolicy",
    "RollbackStatus",
    "Schedule",
    "ScheduleRecord",
    "SerializationError",
    "ServiceUnavailable",
    "Settings",
    "Status",
    "StepContext",
    "StepFailed",
    "StepLimitExceeded",
    "StepRecord",
    "StepTimeout",
    "TooManyQueued",
    "Workflow",
    "WorkflowEvent",
    "WorkflowFailed",
    "WorkflowInstance",
    "WorkflowStep",
    "WorkflowTerminated",
    "configure",
    "workflow",
]
