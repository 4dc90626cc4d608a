"""The documents of the API as types: what the OpenAPI document says of them.

Owns: the shape of each answer about workflows and lists, closed: a field that is not here is in no answer. Does not
own: those about one instance (``records``), filling them (``monitoring.documents``); a test holds every answer against
these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from orchestrator.workflow.status import Status

closed = with_config(ConfigDict(extra="forbid"))
Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]


@closed
class ErrorBody(TypedDict):
    code: str
    message: str


@closed
class Error(TypedDict):
    """Every refusal. ``code`` is stable."""

    error: ErrorBody


@closed
class ErrorInfo(TypedDict):
    name: str
    message: str


@closed
class Counts(TypedDict):
    """Instances by status. ``counted_at``: when many were counted last; null means now."""

    by_status: dict[Status, int]
    total: int
    counted_at: Instant | None


@closed
class Limit(TypedDict):
    """A limit (null: there is none), who says so, and how much of it is used."""

    limit: float | None
    source: Literal["operator", "definition", "settings"]
    used: NotRequired[int]


@closed
class Limits(TypedDict):
    """``changed_at`` and ``changed_by``: the operator who changed any of them last."""

    concurrency: Limit
    creation_rate: Limit
    creation_burst: Limit
    queued: Limit
    max_steps: int
    changed_at: Instant | None
    changed_by: str | None


@closed
class AccountLimits(TypedDict):
    concurrency: Limit
    creation_rate: Limit
    creation_burst: Limit
    changed_at: Instant | None
    changed_by: str | None


@closed
class Generation(TypedDict):
    """One cut of a queue. ``waiting`` are at least so many if ``is_more``."""

    generation: int
    shards: int
    owned: int
    is_draining: bool
    waiting: int
    is_more: bool


@closed
class Queue(TypedDict):
    oldest_at: Instant | None
    age_s: float
    generations: list[Generation]


@closed
class WorkflowSummary(TypedDict):
    name: str
    version: str | None
    versions: list[str]
    registered_at: Instant | None
    counts: Counts
    limits: Limits
    schedule_count: int
    worker_count: int
    oldest_queued_s: float | None


@closed
class Workflows(TypedDict):
    account: str
    limits: AccountLimits
    is_granting: bool | None
    workers: int
    workflows: list[WorkflowSummary]


@closed
class Version(TypedDict):
    version: str
    source_hash: str
    registered_at: Instant
    has_graph: bool
    options: dict[str, Any]
    worker_count: int


@closed
class Schedule(TypedDict):
    cron: str
    tz: str
    version: str
    params: Any
    paused: bool
    next_at: Instant | None
    last_at: Instant | None


@closed
class LiveWorker(TypedDict):
    id: str
    hostname: str
    pid: int
    queues: list[str]
    versions: list[str]
    started_at: Instant
    heartbeat_at: Instant


@closed
class InstanceSummary(TypedDict):
    id: str
    status: Status
    version: str
    created_at: Instant
    started_at: Instant | None
    ended_at: Instant | None


@closed
class Workflow(WorkflowSummary):
    details: list[Version]
    schedules: list[Schedule]
    queue: Queue
    live_workers: list[LiveWorker]
    params_schema: dict[str, Any] | None
    instances: list[InstanceSummary]


@closed
class Instances(TypedDict):
    """A page. ``cursor`` leads to the next; null after the last."""

    workflow: str
    instances: list[InstanceSummary]
    cursor: str | None


@closed
class Graph(TypedDict):
    """The diagram of a workflow as JSON."""

    version: int
    workflow: dict[str, Any]
