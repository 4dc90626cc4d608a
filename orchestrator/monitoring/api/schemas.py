"""The documents of the API as types: what the OpenAPI document says of them.

Owns: the shape of each answer, closed: a field that is not here is in no answer. Does not own: filling them
(``monitoring.documents``); a test holds every answer against these.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from orchestrator.workflow.status import Status

_closed = with_config(ConfigDict(extra="forbid"))
Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Verb = Literal[
    "pause", "resume", "terminate", "restart", "send-event", "retry-rollback", "skip-rollback", "delete"
]


@_closed
class ErrorBody(TypedDict):
    code: str
    message: str


@_closed
class Error(TypedDict):
    """Every refusal. ``code`` is stable."""

    error: ErrorBody


@_closed
class ErrorInfo(TypedDict):
    name: str
    message: str


@_closed
class Counts(TypedDict):
    """Instances by status. ``counted_at``: when many were counted last; null means now."""

    by_status: dict[Status, int]
    total: int
    counted_at: Instant | None


@_closed
class Limit(TypedDict):
    """A limit (null: there is none), who says so, and how much of it is used."""

    limit: float | None
    source: Literal["operator", "definition", "settings"]
    used: NotRequired[int]


@_closed
class Limits(TypedDict):
    """``changed_at`` and ``changed_by``: the operator who changed any of them last."""

    concurrency: Limit
    creation_rate: Limit
    creation_burst: Limit
    queued: Limit
    max_steps: int
    changed_at: Instant | None
    changed_by: str | None


@_closed
class AccountLimits(TypedDict):
    concurrency: Limit
    creation_rate: Limit
    creation_burst: Limit
    changed_at: Instant | None
    changed_by: str | None


@_closed
class Generation(TypedDict):
    """One cut of a queue. ``waiting`` are at least so many if ``is_more``."""

    generation: int
    shards: int
    owned: int
    is_draining: bool
    waiting: int
    is_more: bool


@_closed
class Queue(TypedDict):
    oldest_at: Instant | None
    age_s: float
    generations: list[Generation]


@_closed
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


@_closed
class Workflows(TypedDict):
    account: str
    limits: AccountLimits
    is_granting: bool | None
    workers: int
    workflows: list[WorkflowSummary]


@_closed
class Version(TypedDict):
    version: str
    source_hash: str
    registered_at: Instant
    has_graph: bool
    options: dict[str, Any]
    worker_count: int


@_closed
class Schedule(TypedDict):
    cron: str
    tz: str
    version: str
    params: Any
    paused: bool
    next_at: Instant | None
    last_at: Instant | None


@_closed
class LiveWorker(TypedDict):
    id: str
    hostname: str
    pid: int
    queues: list[str]
    versions: list[str]
    started_at: Instant
    heartbeat_at: Instant


@_closed
class InstanceSummary(TypedDict):
    id: str
    status: Status
    version: str
    created_at: Instant
    started_at: Instant | None
    ended_at: Instant | None


@_closed
class Workflow(WorkflowSummary):
    details: list[Version]
    schedules: list[Schedule]
    queue: Queue
    live_workers: list[LiveWorker]
    params_schema: dict[str, Any] | None
    instances: list[InstanceSummary]


@_closed
class Instances(TypedDict):
    """A page. ``cursor`` leads to the next; null after the last."""

    workflow: str
    instances: list[InstanceSummary]
    cursor: str | None


@_closed
class Rollback(TypedDict):
    outcome: str | None
    error: ErrorInfo | None
    errors: list[ErrorInfo]


@_closed
class ScheduledFor(TypedDict):
    cron: str
    scheduled_time: Instant | None


@_closed
class Parent(TypedDict):
    workflow: str
    id: str
    step: str | None


@_closed
class Child(TypedDict):
    workflow: str
    id: str
    step: str | None
    status: Status


@_closed
class Buffered(TypedDict):
    type: str
    count: int
    oldest_at: Instant


@_closed
class Instance(TypedDict):
    workflow: str
    id: str
    uuid: str
    version: str
    run: int
    status: Status
    is_finished: bool
    params: Any
    output: Any
    error: ErrorInfo | None
    rollback: Rollback | None
    blocked: ErrorInfo | None
    created_at: Instant
    queued_at: Instant | None
    started_at: Instant | None
    ended_at: Instant | None
    expires_at: Instant | None
    schedule: ScheduledFor | None
    parent: Parent | None
    children: list[Child]
    has_more_children: bool
    buffered_events: list[Buffered]
    state_bytes: int
    cursor: int
    actions: dict[Verb, str | None]


@_closed
class Created(TypedDict):
    workflow: str
    id: str
    version: str


@_closed
class Attempt(TypedDict):
    number: int
    error: ErrorInfo | None
    started_at: Instant | None
    finished_at: Instant | None
    retry_delay: float | None
    traceback: NotRequired[str | None]


@_closed
class Step(TypedDict):
    """``place`` orders the steps; ``undoes`` is the key of the step that a compensation undoes. ``output`` is null
    where it is longer than a page holds, or there is none; ``output_bytes`` tells."""

    key: str
    kind: str
    name: str
    count: int
    label: str
    place: int
    undoes: str | None
    status: str
    is_final: bool
    is_sensitive: bool
    has_rollback: bool
    line: int | None
    config: dict[str, Any]
    output: Any
    output_bytes: int | None
    error: ErrorInfo | None
    started_at: Instant
    claimed_at: Instant | None
    due_at: Instant | None
    finished_at: Instant | None
    attempt: int
    attempts: list[Attempt]


@_closed
class StepOf(Step):
    workflow: str
    id: str


@_closed
class Steps(TypedDict):
    workflow: str
    id: str
    status: Status
    steps: list[Step]


@_closed
class Transition(TypedDict):
    status: Status
    at: Instant


@_closed
class Timeline(TypedDict):
    """A page of steps. ``next`` leads to the next page (``after=``); null after the last."""

    workflow: str
    id: str
    status: Status
    created_at: Instant
    started_at: Instant | None
    ended_at: Instant | None
    steps: list[Step]
    next: int | None
    transitions: list[Transition]


@_closed
class NodeTrace(TypedDict):
    state: str
    total: int
    counts: dict[str, int]
    last: str | None
    started_at: Instant | None
    finished_at: Instant | None


@_closed
class Unplaced(TypedDict):
    key: str
    state: str
    line: int | None


@_closed
class Laid(TypedDict):
    status: str | None
    start: str
    end: str
    nodes: dict[str, NodeTrace]
    entered: list[str]
    rest: list[Unplaced]
    rest_total: int


@_closed
class StepState(TypedDict):
    key: str
    state: str


@_closed
class Trace(TypedDict):
    workflow: str
    id: str
    version: str
    status: Status
    cursor: int
    graph: dict[str, Any] | None
    trace: Laid | None
    step_count: int
    steps: list[StepState]


@_closed
class Audited(TypedDict):
    verb: str
    at: Instant
    by: str
    detail: dict[str, Any]


@_closed
class Audit(TypedDict):
    workflow: str
    id: str
    audit: list[Audited]


@_closed
class Event(TypedDict):
    """A lifecycle event; what does not apply to its type is left out."""

    instance_id: str
    event_id: int
    timestamp: Instant
    type: str
    step_name: NotRequired[str]
    count: NotRequired[int]
    attempt: NotRequired[int]
    output: NotRequired[Any]
    error: NotRequired[ErrorInfo]
    retry_delay: NotRequired[float]
    duration: NotRequired[float]
    event_type: NotRequired[str]
    config: NotRequired[dict[str, Any]]
    params: NotRequired[Any]


@_closed
class Events(TypedDict):
    """A page. ``cursor`` leads to the next; ``is_over``: nothing will come after this page."""

    workflow: str
    id: str
    events: list[Event]
    cursor: int | None
    has_more: bool
    is_over: bool


@_closed
class Graph(TypedDict):
    """The diagram of a workflow as JSON."""

    version: int
    workflow: dict[str, Any]
