"""The SousChef: once a second, start what is queued and wake what is due.

Owns: one cycle, and the thread that repeats it. Does not own: what a wake-up does (``engine``), slots (``Gate``).

Every worker runs one for the workflows it knows. Alarms are taken row by row under ``SKIP LOCKED``, for the second
to come, each to ring at its own moment; a taken alarm is moved a second past its moment, so that if this process
dies it rings elsewhere.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator.failpoints import reach
from orchestrator.ports import Clock, Gate
from orchestrator.store import alarms, session
from orchestrator.store.session import Engine

logger = logging.getLogger(__name__)

CYCLE_S = 1.0
AGAIN_S = 1.0
PER_CYCLE = 1000
"""A worker takes no more than it can see to before what it took rings elsewhere (``AGAIN_S``)."""
AT_LEAST = 100
"""Alarms a saturated worker takes each second all the same: a sleeper must not wait for a flood to end."""
START_ALARM_S = 5.0
"""A started instance whose turn got lost is looked at after this long."""


@dataclass(slots=True, frozen=True)
class Cycle:
    """What one cycle found: instances to wake, each at its moment."""

    wakes: list[tuple[UUID, float]]
    is_full: bool
    """There was more than one cycle takes: the next one should not wait."""


class SousChef:
    """``wake`` is told (instance, moment) pairs and may be called from this thread; ``waiting`` says how many turns
    this process has yet to run."""

    def __init__(
        self,
        engine: Engine,
        account: str,
        known: Callable[[], Sequence[tuple[str, str]]],
        clock: Clock,
        gate: Gate,
        wake: Callable[[Sequence[tuple[UUID, float]]], None],
        waiting: Callable[[], int] = lambda: 0,
    ) -> None:
        self._engine = engine
        self._account = account
        self._known = known
        self._clock = clock
        self._gate = gate
        self._wake = wake
        self._waiting = waiting
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orchestrator-souschef", daemon=True)

    def cycle(self, now: float) -> Cycle:
        """Start queued instances that get a slot, and take the alarms that ring before the next cycle: all of it only
        as far as the turns that wait here already leave room. Otherwise a backlog feeds itself: whatever is late rings,
        and ringing again each second is more work than what it asks for."""
        room = max(AT_LEAST, PER_CYCLE - self._waiting())
        known = [f"{name}@{version}" for name, version in self._known()]
        if not known:
            return Cycle([], False)
        with self._engine.begin() as connection:
            queued = alarms.queued(connection, self._account, known, room)
            granted = self._gate.acquire(queued) if queued else set()
            started = alarms.start(connection, list(granted), now + START_ALARM_S) if granted else []
        with self._engine.begin() as connection:
            due = alarms.take(connection, self._account, known, now, now + CYCLE_S, AGAIN_S, room)
        wakes = [(instance, now) for instance in started] + due
        if wakes:
            reach("souschef.after_take")
        is_full = room > AT_LEAST and (len(due) >= room or len(started) >= room)
        return Cycle(wakes, is_full)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(5)

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = CYCLE_S
            try:
                cycle = self.cycle(self._clock.now())
                if cycle.wakes:
                    self._wake(cycle.wakes)
                pause = 0.05 if cycle.is_full else CYCLE_S
            except Exception as error:
                if session.is_away(error) or session.is_missing_schema(error):
                    logger.warning("A cycle of the SousChef was skipped: %s", error)
                else:
                    logger.exception("A cycle of the SousChef failed.")
            self._stop.wait(pause)
