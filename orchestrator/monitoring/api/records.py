"""The documents of one instance as types.

Owns: the shape of each answer about one instance and what it has done, closed as in ``schemas``. Does not own: filling
them (``monitoring.documents``).
"""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict

from orchestrator.monitoring.api.schemas import ErrorInfo, Instant, closed
from orchestrator.workflow.status import Status

Verb = Literal[
    "pause", "resume", "terminate", "restart", "send-event", "retry-rollback", "skip-rollback", "delete"
]


@closed
class Rollback(TypedDict):
    outcome: str | None
    error: ErrorInfo | None
    errors: list[ErrorInfo]


@closed
class ScheduledFor(TypedDict):
    cron: str
    scheduled_time: Instant | None


@closed
class Parent(TypedDict):
    workflow: str
    id: str
    step: str | None


@closed
class Child(TypedDict):
    workflow: str
    id: str
    step: str | None
    status: Status


@closed
class Buffered(TypedDict):
    type: str
    count: int
    oldest_at: Instant


@closed
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


@closed
class Created(TypedDict):
    workflow: str
    id: str
    version: str


@closed
class Attempt(TypedDict):
    number: int
    error: ErrorInfo | None
    started_at: Instant | None
    finished_at: Instant | None
    retry_delay: float | None
    traceback: NotRequired[str | None]


@closed
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


@closed
class StepOf(Step):
    workflow: str
    id: str


@closed
class Steps(TypedDict):
    workflow: str
    id: str
    status: Status
    steps: list[Step]


@closed
class Transition(TypedDict):
    status: Status
    at: Instant


@closed
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


@closed
class NodeTrace(TypedDict):
    state: str
    total: int
    counts: dict[str, int]
    last: str | None
    started_at: Instant | None
    finished_at: Instant | None


@closed
class Unplaced(TypedDict):
    key: str
    state: str
    line: int | None


@closed
class Laid(TypedDict):
    status: str | None
    start: str
    end: str
    nodes: dict[str, NodeTrace]
    entered: list[str]
    rest: list[Unplaced]
    rest_total: int


@closed
class StepState(TypedDict):
    key: str
    state: str


@closed
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


@closed
class Audited(TypedDict):
    verb: str
    at: Instant
    by: str
    detail: dict[str, Any]


@closed
class Audit(TypedDict):
    workflow: str
    id: str
    audit: list[Audited]


@closed
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


@closed
class Events(TypedDict):
    """A page. ``cursor`` leads to the next; ``is_over``: nothing will come after this page."""

    workflow: str
    id: str
    events: list[Event]
    cursor: int | None
    has_more: bool
    is_over: bool
