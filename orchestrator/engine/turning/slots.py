"""Slots in a flush: asked for in one call, given back in one call, and what is granted none queues.

Owns: which instances of a flush need a slot, which of them were granted one, and the writes of those that were not.
Does not own: slots (``ports.Gate``), the queue (``control``), what queueing records (``workflow.deciding.holding``).

Nothing is asked while rows are locked, and nothing is given back before the commit of what made it superfluous.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from orchestrator.engine.turning import loading
from orchestrator.engine.turning.results import Results
from orchestrator.ports import Clock, Gate, Holder
from orchestrator.store import session, turns
from orchestrator.store.histories import Stored
from orchestrator.workflow.deciding.holding import queue
from orchestrator.workflow.execution import Arrival, Execution, Outcome, Wake, Writes
from orchestrator.workflow.history import BUSY
from orchestrator.workflow.language.commands import WAIT
from orchestrator.workflow.language.config import WaitConfig
from orchestrator.workflow.status import HOLDS_SLOT, Status

_IDLE = (Status.QUEUED, Status.WAITING)


class Slots:
    """What one flush asks of the gate."""

    def __init__(self, lane: session.Lane, clock: Clock, gate: Gate) -> None:
        self._lane = lane
        self._clock = clock
        self._gate = gate
        self._granted: set[UUID] = set()
        self._denied: dict[UUID, Stored] = {}
        self._insisted: list[Holder] = []
        self._released: list[Holder] = []

    def begin(self) -> None:
        """A flush begins: what the last one was granted is known to the gate alone."""
        self._granted, self._denied, self._insisted, self._released = set(), {}, [], []

    def ask(self, wanted: Collection[Stored]) -> None:
        """Ask for a slot for each of these, in one call."""
        if wanted:
            self._granted |= self._gate.acquire([Holder(one.id, one.workflow) for one in wanted])

    def is_granted(self, instance: UUID) -> bool:
        """Whether it was granted a slot in this flush."""
        return instance in self._granted

    def deny(self, found: Stored) -> None:
        """``found`` was granted none: nothing is fed, and after this flush it queues, if it does not already."""
        self._denied[found.id] = found

    def is_denied(self, instance: UUID) -> bool:
        """Whether it was granted none in this flush."""
        return instance in self._denied

    def came(self, found: Stored, execution: Execution | None) -> None:
        """``found`` was read, and is at its end: a rollback has a slot whatever the limits are. Only what this process
        did not see become so is insisted on."""
        if found.ending is not None and (execution is None or execution.ending is None):
            self.insist(found.id, found.workflow)

    def went(self, writes: Writes, execution: Execution) -> None:
        """A turn was committed. Called for every turn, few of which come to another status."""
        if execution.status not in HOLDS_SLOT:
            if writes.transitions or execution.id in self._granted:
                self.release(execution.id, execution.workflow)
        elif writes.transitions and (
            execution.status is Status.ROLLING_BACK or execution.id not in self._granted
        ):
            self.insist(execution.id, execution.workflow)

    def insist(self, instance: UUID, workflow: str) -> None:
        self._insisted.append(Holder(instance, workflow))

    def release(self, instance: UUID, workflow: str) -> None:
        """It needs its slot no more, if it had any."""
        self._released.append(Holder(instance, workflow))

    def write(self, results: Results) -> None:
        """Let those that were denied queue; who was changed meanwhile is looked at again. What is to be given back, or
        insisted on, is among ``results`` from now on."""
        denied = [found for found in self._denied.values() if found.status != Status.QUEUED]
        for some in (denied[at : at + turns.MOST] for at in range(0, len(denied), turns.MOST)):
            self._queue(some, results)
        results.insisted.extend(self._insisted)
        results.released.extend(self._released)
        self.begin()

    def settle(self, results: Results) -> None:
        """Insist and give back, as a flush that is committed came to: after its other effects, which need not wait."""
        if results.insisted:
            self._gate.insist(results.insisted)
        if results.released:
            self._gate.release(results.released)

    def _queue(self, denied: Sequence[Stored], results: Results) -> None:
        now = self._clock.now()
        with self._lane.connection() as connection:
            written = turns.commit(connection, [queue(loading.build_held(found), now) for found in denied])
        for found in denied:
            if found.id in written:
                results.changed.append(found.id)
            else:
                results.repeat.setdefault(found.id, []).append(Wake())


def needs(found: Stored, arrivals: Sequence[Arrival], now: float) -> bool:
    """Whether a turn of ``found`` has to be granted a slot first: it has none, and something is due that its code would
    be fed. Where nothing is, the turn changes nothing. The end of a body (one that was in flight when its instance was
    blocked) is recorded anyway."""
    if found.status not in _IDLE or any(isinstance(arrival, Outcome) for arrival in arrivals):
        return False
    if found.status == Status.QUEUED or found.blocked is not None or found.children or found.reported:
        return True
    received = {event.type for event in found.inbox}
    return any(
        row.status in BUSY
        or (row.due_at is not None and row.due_at <= now and row.status in ("waiting", "pending"))
        or (
            row.kind == WAIT
            and row.status == "waiting"
            and WaitConfig.from_json(row.config or "").type in received
        )
        for row in found.rows
    )
