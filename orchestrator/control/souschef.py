"""The SousChef: once a second, start what is queued and wake what is due.

Owns: one cycle, and the thread that repeats it. Does not own: what a wake-up does (``engine``), slots (``Gate``).

Every worker runs one for the workflows it knows. Alarms are taken row by row under ``SKIP LOCKED``, for the second
to come, each to ring at its own moment; a taken alarm is moved a second past its moment, so that if this process
dies it rings elsewhere. Before that, in each cycle, the duties have their round (``duties``).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator.control.duties import Duty
from orchestrator.control.rounds import Round
from orchestrator.failpoints import reach
from orchestrator.ports import FOREVER, Clock, Gate
from orchestrator.store import alarms, session
from orchestrator.store.session import Engine

logger = logging.getLogger(__name__)

CYCLE_S = 1.0
SOON_S = 0.05
"""The pause after a cycle that left something over."""
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
    again_at: float = FOREVER
    """When a duty wants the next cycle, if not in its time."""


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
        duties: Sequence[Duty] = (),
    ) -> None:
        self._engine = engine
        self._account = account
        self._known = known
        self._clock = clock
        self._gate = gate
        self._wake = wake
        self._waiting = waiting
        self._duties = duties
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
        rounds = [self._round(duty, now, known) for duty in self._duties]
        with self._engine.begin() as connection:
            queued = alarms.queued(connection, self._account, known, room)
            granted = self._gate.acquire(queued) if queued else set()
            started = alarms.start(connection, list(granted), now + START_ALARM_S) if granted else []
        with self._engine.begin() as connection:
            due = alarms.take(connection, self._account, known, now, now + CYCLE_S, AGAIN_S, room)
        wakes = [(instance, now) for instance in started] + due
        wakes += [wake for each in rounds for wake in each.wakes]
        if wakes:
            reach("souschef.after_take")
        is_full = room > AT_LEAST and (len(due) >= room or len(started) >= room)
        return Cycle(wakes, is_full, min((each.again_at for each in rounds), default=FOREVER))

    def _round(self, duty: Duty, now: float, known: Sequence[str]) -> Round:
        """A duty that fails keeps nobody waiting: neither the others nor what is due."""
        try:
            return duty.cycle(now, known)
        except Exception as error:
            _tell(error, f"A round of {type(duty).__name__}")
            return Round()

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
                pause = self._pause(cycle)
            except Exception as error:
                _tell(error, "A cycle of the SousChef")
            self._stop.wait(pause)

    def _pause(self, cycle: Cycle) -> float:
        """Until the next cycle, seconds."""
        if cycle.is_full:
            return SOON_S
        wanted_in = cycle.again_at - self._clock.now() + 0.0005
        return min(CYCLE_S, max(wanted_in, SOON_S / 10))


def _tell(error: Exception, what: str) -> None:
    if session.is_away(error) or session.is_contention(error) or session.is_missing_schema(error):
        logger.warning("%s was skipped: %s", what, error)
    else:
        logger.error("%s failed.", what, exc_info=error)
