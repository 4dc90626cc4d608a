"""What a turn reads and what it writes.

Owns: ``Execution``, the state of one instance as committed up to ``seq``; ``Writes``, the changes of one turn;
and the arrivals that cause it. Does not own: deciding (``turn``), loading or saving (``store``, ``testing``).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID

from orchestrator.ports import FOREVER, HandOut
from orchestrator.workflow.history import InboxEvent, StepRow
from orchestrator.workflow.kin import ChildState, NewChild, ParentState
from orchestrator.workflow.replay import Replay
from orchestrator.workflow.status import Status


@dataclass(slots=True)
class Execution:
    """One instance between turns. ``open`` holds every step that is not final, by key, in start order."""

    id: UUID
    workflow: str
    version: str
    run: int
    status: Status
    seq: int
    alarm_at: float
    replay: Replay
    started_at: float | None = None
    open: dict[str, StepRow] = field(default_factory=dict)
    due: dict[str, float] = field(default_factory=dict)
    """When each sleep, wait or retry in ``open`` is due; what is open and not here is busy."""
    forward: dict[str, StepRow] = field(default_factory=dict)
    """Steps with a compensation, final or not."""
    handlers: dict[str, StepRow] = field(default_factory=dict)
    """Compensations, by their own key."""
    invoked: dict[str, StepRow] = field(default_factory=dict)
    """Steps that have started a child, final or not."""
    awaited: dict[str, StepRow] = field(default_factory=dict)
    """Those of them that wait for its end."""
    inbox: list[InboxEvent] = field(default_factory=list)
    ending: str | None = None
    """``errored`` or ``terminated`` once the end is decided and compensation goes on; else ``None``."""
    error: str | None = None
    """What the code failed with, in the process that saw it fail; one built from rows does not say."""
    blocked: str | None = None
    state_bytes: int = 0
    children: dict[UUID, ChildState] | None = None
    """Its children as they were read last, while it compensates; ``None`` if they were not."""
    parent: ParentState | None = None
    """Its parent as that was read last; ``None`` if it was not, or there is none."""
    parent_id: UUID | None = None

    def keep(self, row: StepRow) -> None:
        """File a row under the indexes it belongs to."""
        if row.kind == "rollback":
            self.handlers[row.key] = row
        elif row.has_rollback:
            self.forward[row.key] = row
            if row.kind == "invoke":
                self.invoked[row.key] = self.awaited[row.key] = row
        if row.status in ("done", "failed", "cancelled", "abandoned"):
            self.open.pop(row.key, None)
            self.due.pop(row.key, None)
            if row.kind == "invoke":
                self.awaited.pop(row.key, None)
            return
        self.open[row.key] = row
        if row.due_at is not None and row.status in ("waiting", "pending"):
            self.due[row.key] = row.due_at
        elif row.kind == "invoke":
            self.due[row.key] = FOREVER
        else:
            self.due.pop(row.key, None)


class Outcome(NamedTuple):
    """An attempt ended. ``output`` or ``error`` is set (codec's text).

    ``final``: no retry whatever the limit. ``loss``: ``lost`` with its worker, ``handed_back`` at a shutdown,
    or ``unrunnable`` (claimed by a process whose code cannot run it). ``delay_s``: what a delay function
    returned. ``dice``: [0, 1), for the jitter.
    """

    key: str
    fence: int
    output: str | None = None
    error: str | None = None
    traceback: str = ""
    final: bool = False
    loss: str | None = None
    delay_s: float | None = None
    dice: float = 0.5
    worker: UUID | None = None
    claimed_at: float | None = None
    attempt: int | None = None
    is_reported: bool = False
    """It was found in storage, where the worker of an application's task had put it: to be taken from there."""


@dataclass(slots=True, frozen=True)
class Wake:
    """Look at what is due. What only fresh rows can tell comes along: steps whose worker is dead, and
    steps whose message must have been lost."""

    lost: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()


class ChildEnded(NamedTuple):
    """The child that step ``key`` awaits has ended, or there is none."""

    key: str
    child: ChildState


Arrival = Outcome | Wake | ChildEnded


class AttemptRow(NamedTuple):
    """A failed attempt."""

    key: str
    attempt: int
    fence: int
    seq: int
    error: str
    traceback: str
    handed_at: float | None
    claimed_at: float | None
    ended_at: float
    retry_delay_s: float | None


class Transition(NamedTuple):
    """The instance came to another status."""

    seq: int
    status: str
    at: float


@dataclass(slots=True)
class Writes:
    """The changes of one turn of one instance, applied only where ``seq`` still is ``expected_seq``.

    ``cut``: keys of rows in ``steps`` that were ``handed`` when they were cut short: storage decides whether
    they become ``cancelling`` (a body runs: it keeps its fence) or ``cancelled``.
    """

    id: UUID
    expected_seq: int
    seq: int = 0
    status: Status = Status.RUNNING
    alarm_at: float = FOREVER
    sets_alarm: bool = True
    """Whether ``alarm_at`` may move the stored alarm later; an ordinary turn only moves it earlier."""
    started_at: float | None = None
    began_seq: int | None = None
    """The fact at which the code began, in the turn that began it."""
    queued_at: float | None = None
    """Since when it waits, as awoken: for a slot where ``status`` is ``queued``, else for the turn that has to follow,
    which no row of a step tells of."""
    ended_at: float | None = None
    ended_seq: int | None = None
    ending: str | None = None
    rollback: str | None = None
    """How compensation ended, as the codec's text of a ``RollbackStatus``; ``None`` keeps what is stored."""
    output: str | None = None
    error: str | None = None
    blocked: str | None = None
    """Why the instance cannot go on; ``None`` clears what is stored."""
    state_bytes: int = 0
    steps: dict[str, StepRow] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    attempts: list[AttemptRow] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    consumed: list[int] = field(default_factory=list)
    children: list[NewChild] = field(default_factory=list)
    """Instances that are created with this turn."""
    created_at: float = 0.0
    """When they are; only where there are any."""
    reported: list[tuple[str, int]] = field(default_factory=list)
    """Outcomes taken from where the workers of an application's tasks had put them: key and fence."""
    # effects after the commit, and what the caller is told
    handouts: list[HandOut] = field(default_factory=list)
    cancelled: list[tuple[str, int]] = field(default_factory=list)
    """Running bodies to cancel: key and fence."""
    stale: list[Outcome] = field(default_factory=list)
    left: list[Arrival] = field(default_factory=list)
    """Arrivals that did not fit into the budget: for the next turn."""
    again: bool = False
    """There is more to do at once: run another turn after the commit."""
    reads_relatives: bool = False
    """There is more to decide once it is known how the children, or the parent, stand."""
    hints: list[UUID] = field(default_factory=list)
    """Other instances, children or the parent, that should look at what was written here."""
    abandoned: list[str] = field(default_factory=list)
