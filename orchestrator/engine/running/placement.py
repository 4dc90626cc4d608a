"""Delivery in place: which hand-outs of a turn this very process starts, claimed in the turn's own transaction.

Owns: the choice, and marking the rows as claimed. Does not own: running them (``attempts``), nor publishing the rest.
It is a delivery, not a second engine: the attempt has its row, its fence and its task like any other; only the trip
through the broker is saved. Rules: protocols §19.

A compensation is placed like a step, if this process knows what its handler is to be told: a claim by message reads the
error of the instance, which an execution built from rows lacks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from orchestrator.ports import HandOut
from orchestrator.store.steps import Claim, Claimed
from orchestrator.workflow import saga
from orchestrator.workflow.execution import Execution, Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.language.commands import DO, ROLLBACK, StepCall
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.status import Status

FEW = 8
"""Of a fan-out at least this many start here, or this worker's share if that is more; the rest is published, so that it
spreads over the workers."""
IN_A_ROW = 100
"""Steps of one instance in a row while messages wait in the queue."""


class Ready(NamedTuple):
    """A claimed attempt and what runs it. ``call`` is ``None`` for a compensation today's code does not give."""

    claimed: Claimed
    call: StepCall | None
    definition: Definition
    label: str = ""
    """The name of its task, where it was placed without a message."""


@dataclass(slots=True, frozen=True)
class Room:
    """What this process can take on now: bodies on the loop, and among them bodies in threads."""

    bodies: int
    threads: int


class Placement:
    """``room(ending)`` is asked once a flush, with the number of attempts that are over; ``backlog`` says whether
    messages wait, ``sharing`` how many workers serve the queue. Used from the engine thread."""

    def __init__(
        self,
        queue: str,
        worker: Callable[[], UUID],
        room: Callable[[int], Room],
        backlog: Callable[[str], int | None],
        sharing: Callable[[], int] = lambda: 1,
    ) -> None:
        self._queue = queue
        self._worker = worker
        self._room = room
        self._backlog = backlog
        self._sharing = sharing
        self._bodies = self._threads = 0
        self._is_busy = False
        self._in_a_row: dict[UUID, int] = {}

    def begin(self, ending: int = 0) -> None:
        """A flush begins: see what there is room for. ``ending`` attempts of this process are over with it: their
        successors take their places."""
        room = self._room(ending)
        self._bodies, self._threads = room.bodies, room.threads
        self._is_busy = bool(self._backlog(self._queue))
        if not self._is_busy:
            self._in_a_row.clear()

    def place(self, writes: Writes, execution: Execution, now: float) -> list[Ready]:
        """Claim some of this turn's hand-outs, in its own writes; they leave ``writes.handouts``."""
        if not writes.handouts or self._bodies <= 0:
            return []
        placed: list[Ready] = []
        left: list[HandOut] = []
        share = max(FEW, -(-len(writes.handouts) // self._sharing()))
        for offer in writes.handouts:
            call = execution.replay.calls.get(offer.key) or _undone(offer, execution)
            if len(placed) < share and call is not None and self._fits(offer, call, writes):
                placed.append(self._claim(offer, call, execution, now))
            else:
                left.append(offer)
        writes.handouts = left
        return placed

    def _fits(self, offer: HandOut, call: StepCall, writes: Writes) -> bool:
        if self._bodies <= 0 or offer.queue not in ("", self._queue) or offer.signature is not None:
            return False
        if offer.fence <= writes.expected_seq or offer.key not in writes.steps:
            return False
        is_forward = writes.steps[offer.key].kind == DO
        is_sync = not inspect.iscoroutinefunction(call.fn if is_forward else call.rollback)
        if is_sync and self._threads <= 0:
            return False
        if self._is_busy:
            row = self._in_a_row[writes.id] = self._in_a_row.get(writes.id, 0) + 1
            if row > IN_A_ROW:
                del self._in_a_row[writes.id]
                return False
        self._threads -= is_sync
        self._bodies -= 1
        return True

    def forget(self, instance: UUID) -> None:
        """The instance is over."""
        self._in_a_row.pop(instance, None)

    def _claim(self, offer: HandOut, call: StepCall, execution: Execution, now: float) -> Ready:
        row = execution.open[offer.key]
        row.status, row.worker, row.claimed_at = "running", self._worker(), now
        claim = Claim(execution.id, offer.key, offer.fence)
        origin = execution.replay.origin
        seen = row.copy()  # the attempt keeps it in another thread, while turns go on changing the row
        ending = error = output = attempt = None
        if row.kind == ROLLBACK:
            ending, error, forward = execution.ending, execution.error, execution.forward[call.key]
            output, attempt = forward.output, forward.attempt
        claimed = Claimed(
            claim, execution.seq, execution.run, origin.name_id, ending, error, seen, output, attempt
        )
        return Ready(claimed, call, execution.replay.definition, offer.label)

    def mine(self, rows: Iterable[StepRow], execution: Execution) -> list[HandOut]:
        """Attempts that this process holds by these rows: after a flush of unknown outcome it may not know of them."""
        worker = self._worker()
        return [
            HandOut(execution.id, row.key, row.fence, self._queue, execution.workflow, row.label)
            for row in rows
            if row.status == "running" and row.worker == worker
        ]


def _undone(offer: HandOut, execution: Execution) -> StepCall | None:
    """The call whose compensation is offered, if this process knows all that its handler is to be told."""
    row = execution.handlers.get(offer.key)
    if row is None or (execution.ending == Status.ERRORED and execution.error is None):
        return None
    call = execution.replay.calls.get(saga.forward_key(offer.key))
    return call if call is not None and call.rollback is not None and call.key in execution.forward else None
