"""Bringing replays up to date from rows: what may be decided now, and what fresh rows tell.

Owns: reading, the choice of the code that fits, and who drops out. Does not own: deciding and writing
(``coordinator``), the queries (``store.histories``), feeding (``loading``), who needs a slot (``slots``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from uuid import UUID

from orchestrator.engine.running.placement import Placement, Ready
from orchestrator.engine.turning import lineage, loading, reports, slots
from orchestrator.engine.turning.holds import Holds
from orchestrator.engine.turning.lineage import Lineage
from orchestrator.engine.turning.recovery import Recovery
from orchestrator.engine.turning.replays import Replays
from orchestrator.engine.turning.results import Results
from orchestrator.engine.turning.slots import Slots
from orchestrator.engine.turning.watch import Watch
from orchestrator.errors import NonDeterminismError, UnknownWorkflow
from orchestrator.ports import FOREVER, Clock, monotonic
from orchestrator.store import histories
from orchestrator.store.histories import Known, Stored
from orchestrator.store.session import Connection
from orchestrator.workflow.execution import Arrival, Execution, Outcome
from orchestrator.workflow.language.definition import Definition, Registry
from orchestrator.workflow.status import FINISHED, Status

logger = logging.getLogger(__name__)

Batch = Mapping[UUID, list[Arrival]]

RESTS = FINISHED | {Status.PAUSED}
"""Nothing that arrives is recorded: nothing runs, and whatever was handed out was taken back. Code that never ran does
not begin either."""


class Reading:
    """Reads for the coordinator. ``uncertain`` and ``alone`` are its sets: instances whose last flush has an unknown
    outcome, and those whose code is slow. ``over`` is told of instances that are finished or deleted, ``forgotten`` of
    those this process has nothing to do with."""

    def __init__(
        self,
        registry: Registry,
        replays: Replays,
        clock: Clock,
        slots: Slots,
        recovery: Recovery,
        placement: Placement,
        watch: Watch,
        holds: Holds,
        lineage: Lineage,
        uncertain: set[UUID],
        alone: set[UUID],
        over: Callable[[UUID, Iterable[Arrival]], None],
        forgotten: Callable[[UUID], None],
    ) -> None:
        self._registry = registry
        self._replays = replays
        self._clock = clock
        self._slots = slots
        self._recovery = recovery
        self._placement = placement
        self._watch = watch
        self._holds = holds
        self._lineage = lineage
        self._uncertain = uncertain
        self._alone = alone
        self._over = over
        self._forgotten = forgotten
        self._unknown: set[tuple[str, str]] = set()

    def load(self, connection: Connection, batch: Batch) -> Mapping[UUID, Stored]:
        """What came since of each instance in ``batch``."""
        stored = histories.load(connection, self._known(batch))
        reports.load(connection, stored.values())
        lineage.load(connection, stored.values(), self._replays)
        return stored

    def _known(self, batch: Batch) -> list[Known]:
        return [Known(i) if (e := self._replays.get(i)) is None else loading.known(e) for i in batch]

    def bring_up(
        self, batch: Batch, stored: Mapping[UUID, Stored], results: Results, until: float = FOREVER
    ) -> Batch:
        """Feed what was read; those that are gone, finished, paused or unknown here, or get no slot, drop out. With an
        ``until`` (a moment of the monotonic clock) their rows are locked."""
        now = self._clock.now()
        called = {i for i, s in stored.items() if s.parent is not None and lineage.has_word(s)}
        idle = {i for i, s in stored.items() if i not in called and self._needs_slot(s, batch[i], now)}
        if until == FOREVER:
            self._slots.ask([stored[i] for i in batch if i in idle])
        ready: dict[UUID, list[Arrival]] = {}
        for instance, arrivals in batch.items():
            found, execution = stored.get(instance), self._replays.get(instance)
            if instance in called:
                self._call(stored[instance], arrivals, results)
            elif found is None or Status(found.status) in RESTS:
                self._rests(instance, found, execution, arrivals)
            elif monotonic() > until or (execution is not None and execution.run != found.run):
                self._replays.drop(instance)
                results.repeat[instance] = arrivals
            elif instance not in idle or self._slots.is_granted(instance):
                self._slots.came(found, execution)
                execution = self._fed(found, execution, arrivals, results)
                if execution is not None:
                    ready[instance] = [*arrivals, *self._told(found, execution, now, results)]
            elif until == FOREVER:
                self._slots.deny(found)
            else:  # it came to need one since: nobody is asked while its row is locked
                results.repeat[instance] = arrivals
        return ready

    def _rests(
        self, instance: UUID, found: Stored | None, execution: Execution | None, arrivals: list[Arrival]
    ) -> None:
        """Whoever paused, ended or deleted it from outside could not give its slot back."""
        known = found or execution
        if known is not None:
            self._slots.release(instance, known.workflow)
        self._over(instance, arrivals)

    def _call(self, found: Stored, arrivals: list[Arrival], results: Results) -> None:
        """Its parent asks something of it, which is done after this flush; what ended meanwhile is looked at then."""
        self._lineage.add(found.id)
        outcomes: list[Arrival] = [a for a in arrivals if isinstance(a, Outcome)]
        if outcomes:
            results.repeat[found.id] = outcomes

    def _fed(
        self, found: Stored, execution: Execution | None, arrivals: list[Arrival], results: Results
    ) -> Execution | None:
        """The replay of ``found`` up to date, or ``None`` if its code is not known here or does not fit."""
        is_live = execution is not None
        definition = self._definition(found)
        if definition is None:
            return None
        try:
            with self._watch.over(found.id, found.workflow, self._alone.add):
                if execution is None:
                    execution = loading.build(found, definition, self._replays.limits)
                    self._replays.put(execution)
                else:
                    loading.advance(execution, found)
        except BaseException as error:  # workflow code may raise anything; this thread serves all others
            self._replays.drop(found.id)
            if is_live and isinstance(error, NonDeterminismError):
                # It may have answered step.patched before another process went on the old way: built anew it may fit.
                results.repeat[found.id] = arrivals
            else:
                self._holds.add(found.id, arrivals, error, found.seq)
            return None
        return execution

    def _told(self, found: Stored, execution: Execution, now: float, results: Results) -> list[Arrival]:
        """What fresh rows tell about steps in flight."""
        uncertain = found.id in self._uncertain
        if uncertain:
            results.mine.extend(self._placement.mine(found.rows, execution))
        wake = self._recovery.wake(found, execution, now, uncertain=uncertain)
        asked: list[tuple[Ready, Outcome]] = []
        ended = reports.told(found, execution, now, self._recovery.task_queue, asked)
        results.asked.extend(asked)
        wake = reports.without(wake, asked)
        told: list[Arrival] = [*ended, *lineage.told(found, execution)]
        return [*told, wake] if wake is not None else told

    def _definition(self, stored: Stored) -> Definition | None:
        """Today's code, or ``None``: an instance of other workflows is left to a worker that knows it."""
        try:
            return self._registry.get(stored.workflow, stored.version)
        except UnknownWorkflow as error:
            self._forgotten(stored.id)
            if (stored.workflow, stored.version) not in self._unknown:
                self._unknown.add((stored.workflow, stored.version))
                logger.warning("Instances of it are left to another worker: %s", error)
            return None

    def _needs_slot(self, stored: Stored, arrivals: list[Arrival], now: float) -> bool:
        return slots.needs(stored, arrivals, now) and self._definition(stored) is not None
