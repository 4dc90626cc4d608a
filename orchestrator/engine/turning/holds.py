"""Holding instances that cannot go on here: blocked in the open, tried again ever more rarely.

Owns: what failed in a flush, the writes of a hold, and the back-off. Does not own: deciding that something failed
(``coordinator``, ``claims``), nor what a hold records (``workflow.holding``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from uuid import UUID

from orchestrator.engine.turning import loading
from orchestrator.engine.turning.results import Results
from orchestrator.engine.turning.slots import Slots
from orchestrator.errors import OrchestratorError, SerializationError, UnknownWorkflow
from orchestrator.ports import Clock
from orchestrator.store import histories, session, turns
from orchestrator.store.histories import Known
from orchestrator.store.session import Engine
from orchestrator.workflow import codec
from orchestrator.workflow.deciding.holding import hold
from orchestrator.workflow.execution import Arrival, Outcome
from orchestrator.workflow.language.definition import Registry
from orchestrator.workflow.status import FINISHED, HOLDS_SLOT, Status

logger = logging.getLogger(__name__)

BLOCKED_S, BLOCKED_MAX_S = 60.0, 600.0


class Holds:
    """Collects failures during a flush, when transactions may be open, and writes them after it. ``done`` is told of
    each outcome that is recorded or never can be."""

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        clock: Clock,
        slots: Slots,
        done: Callable[[UUID, Outcome], None],
    ) -> None:
        self._engine = engine
        self._registry = registry
        self._clock = clock
        self._slots = slots
        self._done = done
        self._counts: dict[UUID, int] = {}
        self._failed: list[tuple[UUID, list[Outcome], BaseException, int | None]] = []

    def add(
        self, instance: UUID, arrivals: Iterable[Arrival], error: BaseException, seq: int | None = None
    ) -> None:
        """``instance`` cannot go on because of ``error``; outcomes among ``arrivals`` are still to be recorded.
        ``seq``: where the instance stood as it failed; if it stands elsewhere by now, it is looked at again instead."""
        self._failed.append((instance, [a for a in arrivals if isinstance(a, Outcome)], error, seq))

    def drop(self) -> None:
        """Forget what failed: the flush is done again."""
        self._failed.clear()

    def forget(self, instance: UUID) -> None:
        """``instance`` goes on: its next hold, if any, is a first one."""
        self._counts.pop(instance, None)

    def write(self, results: Results) -> None:
        """Hold what was collected. What somebody else has locked comes back in ``results.repeat``."""
        while self._failed:
            instance, outcomes, error, seq = self._failed.pop()
            try:
                is_held = self._hold(instance, outcomes, error, seq)
            except Exception as refused:
                if not session.is_contention(refused):
                    raise
                is_held = False
            if not is_held:
                results.repeat.setdefault(instance, []).extend(outcomes)
                results.skipped = True

    def _hold(self, instance: UUID, outcomes: list[Outcome], error: BaseException, seq: int | None) -> bool:
        count = self._counts.get(instance, 0) + 1
        blocked = codec.encode_error(error)
        try:
            is_held = self._write(instance, outcomes, blocked, count, seq)
        except Exception as refused:
            if session.is_away(refused) or session.is_contention(refused):
                raise
            logger.exception(
                "The outcomes of instance %s cannot be stored and are recorded as failed.", instance
            )
            text = f"the result could not be stored ({type(refused).__name__})"
            spoilt = codec.encode_error(SerializationError(text))
            failed = [o._replace(output=None, error=spoilt, traceback="", final=True) for o in outcomes]
            is_held = self._write(instance, failed, blocked, count, seq)
        if is_held:
            self._counts[instance] = count
            level = logging.WARNING if isinstance(error, OrchestratorError) else logging.ERROR
            logger.log(
                level,
                "Instance %s is blocked: %s",
                instance,
                error,
                exc_info=error if level == logging.ERROR else None,
            )
            for outcome in outcomes:
                self._done(instance, outcome)
        return is_held

    def _write(
        self, instance: UUID, outcomes: list[Outcome], blocked: str, count: int, seq: int | None
    ) -> bool:
        """Write one hold; false if somebody else has the row, or had it since it was at ``seq``."""
        with self._engine.begin() as connection:
            locked = turns.lock(connection, [instance])
            found = histories.load(connection, [Known(instance)]).get(instance)
            if found is None or Status(found.status) in FINISHED:
                return True
            if instance not in locked or (seq is not None and found.seq != seq):
                return False
            try:
                definition = self._registry.get(found.workflow, found.version)
            except UnknownWorkflow:
                return True
            execution = loading.build_held(found, definition)
            now = self._clock.now()
            alarm_at = now + min(BLOCKED_MAX_S, BLOCKED_S * 2 ** (count - 1))
            writes = hold(execution, outcomes, blocked, alarm_at, now)
            turns.commit(connection, [writes])
        if writes.status not in HOLDS_SLOT:
            self._slots.release(instance, found.workflow)
        return True
