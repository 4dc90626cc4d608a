"""What only fresh rows can tell: attempts whose worker is gone, hand-outs whose message must have been lost.

Owns: telling a lost message from a backlog. Does not own: declaring workers dead (``liveness``), nor what follows
from a loss (``workflow.turn``). Rules: protocols §5 and §7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from orchestrator.ports import HandOut
from orchestrator.store.histories import Stored
from orchestrator.workflow.deciding import signatures
from orchestrator.workflow.deciding.turn import UNCLAIMED_S
from orchestrator.workflow.execution import Execution, Wake
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.config import StepConfig

OVERTAKEN_S = 10.0
"""A hand-out is lost when one this much younger was claimed from its queue."""
UNKNOWN_S = 60.0
"""Where the broker cannot say what waits, or others serve the queue and this process claims nothing from it, a hand-out
counts as lost after this long. If it was not, one message more is dropped at its claim."""

FETCHED_S = 10.0
"""How long a task of the application may lie in a worker that has fetched it, before an empty queue means that its
message was lost. If it was not, one message more is dropped at its claim."""


class Recovery:
    """Remembers what this process claimed, by queue. ``backlog`` asks the broker what waits there; ``destination`` says
    which queue Celery sends a signature to."""

    def __init__(
        self,
        queue: str,
        lease: float,
        backlog: Callable[[str], int | None],
        destination: Callable[[Any], str] = lambda signature: "",
    ) -> None:
        self._destination = destination
        self._queue = queue
        self._lease = lease
        self._backlog = backlog
        self._newest: dict[str, float] = {}

    def claimed(self, row: StepRow) -> None:
        """Note that ``row`` was claimed."""
        self.note(self._queue_of(row), row.handed_at or 0.0)

    def note(self, queue: str, handed_at: float) -> None:
        """Note that a hand-out of this age was claimed from ``queue``, here or in a process of this worker. Called from
        any thread: an older one that gets in between costs a moment."""
        self._newest[queue] = max(self._newest.get(queue, 0.0), handed_at)

    def wake(self, stored: Stored, execution: Execution, now: float, *, uncertain: bool) -> Wake | None:
        """What fresh rows say about the steps in flight. ``uncertain``: hand-outs may never have been published."""
        lost, unclaimed = [], []
        for row in stored.rows:
            if row.status in ("running", "cancelling"):
                if row.key in stored.dead or self._is_overdue(row, now):
                    lost.append(row.key)
            elif row.status == "handed" and (uncertain or self._is_lost(row, now, execution)):
                unclaimed.append(row.key)
        return Wake(tuple(lost), tuple(unclaimed)) if lost or unclaimed else None

    def split(self, offers: Iterable[HandOut], known_seq: int) -> tuple[list[HandOut], list[HandOut]]:
        """New hand-outs, to be published, and those offered again, which are run here: whoever took the message may
        not know this workflow, and this process does. Tasks of the application are always sent to their own workers."""
        fresh: list[HandOut] = []
        again: list[HandOut] = []
        for offer in offers:
            is_fresh = offer.fence > known_seq or offer.signature is not None
            (fresh if is_fresh else again).append(offer)
        return fresh, again

    def _is_overdue(self, row: StepRow, now: float) -> bool:
        timeout = StepConfig.from_json(row.config or "").timeout_s
        return row.claimed_at is not None and row.claimed_at + timeout + self._lease <= now

    def _is_lost(self, row: StepRow, now: float, execution: Execution) -> bool:
        if row.handed_at is None or now - row.handed_at < UNCLAIMED_S:
            return False
        if signatures.is_task(row):
            return self._is_task_lost(self.task_queue(row, execution), now - row.handed_at)
        queue = self._queue_of(row)
        newest = self._newest.get(queue)
        if newest is not None and row.handed_at + OVERTAKEN_S < newest:
            return True
        waiting = self._backlog(queue)
        # Others serve this queue, and nobody here sees what overtakes.
        is_blind = waiting is None or (newest is None and queue != self._queue)
        return waiting == 0 or (is_blind and now - row.handed_at >= UNKNOWN_S)

    def task_queue(self, row: StepRow, execution: Execution) -> str:
        """Where the message of a Celery task goes: as the step or its signature says, else where Celery routes it."""
        named = StepConfig.from_json(row.config or "").queue
        signature = None if named else signatures.signature_of(execution, row)
        return named or (self._queue if signature is None else self._destination(signature))

    def _is_task_lost(self, queue: str, age: float) -> bool:
        """Of an application's queue nothing is known but its length, and its workers fetch more than they run."""
        waiting = self._backlog(queue)
        return age >= UNKNOWN_S or (waiting == 0 and age >= FETCHED_S)

    def _queue_of(self, row: StepRow) -> str:
        return StepConfig.from_json(row.config or "").queue or self._queue
