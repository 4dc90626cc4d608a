"""The SousChef: once a second, start what is queued and wake what is due; sooner, what got no slot.

Owns: one cycle, the thread that repeats it, and what a worker's SousChef is made of. Does not own: what a wake-up does
(``engine``), which part of the queue is this worker's (``shards``), what of it asks for slots (``queues``), slots
(``gatekeeping``).

Every worker runs one for the workflows it knows, each at a phase of its own within the second. The queue is divided by
shards. Alarms are not: they are taken row by row under ``SKIP LOCKED``, for the second to come, each to ring at its own
moment; a taken alarm is moved a second past its moment, so that if this process dies it rings elsewhere. Before that
the duties have their round (``duties``).
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from orchestrator.control import duties
from orchestrator.control.duties import Duty
from orchestrator.control.gatekeeping.means import Means
from orchestrator.control.queues import Queues, Slots
from orchestrator.control.rounds import Round
from orchestrator.control.shards import Shards
from orchestrator.failpoints import reach
from orchestrator.ports import FOREVER, Clock
from orchestrator.settings import Settings
from orchestrator.store import alarms, session
from orchestrator.store.control import holders
from orchestrator.store.session import Engine
from orchestrator.workflow.language.definition import Registry

logger = logging.getLogger(__name__)

CYCLE_S = 1.0
SOON_S = 0.05
"""The pause after a cycle that left something over that may go on at once."""
SHORT_S = 0.2
"""The pause while something is queued that got no slot."""
ASK_S = 0.005
"""At least so much of it for each worker there is, up to a cycle: together they ask Redis 200 times a second."""
FREED_S = 0.02
"""The least pause when slots have become free in this process."""
AGAIN_S = 1.0
PER_CYCLE = 1000
"""A worker takes no more than it can see to before what it took rings elsewhere (``AGAIN_S``)."""
PAGE = 1000
AT_LEAST = 100
"""Alarms a saturated worker takes each second all the same: a sleeper must not wait for a flood to end."""


@dataclass(slots=True, frozen=True)
class Cycle:
    """What one cycle found: instances to wake, each at its moment."""

    wakes: Sequence[tuple[UUID, float]] = ()
    is_full: bool = False
    """There was more than one cycle takes: the next one should not wait."""
    again_at: float = FOREVER
    """When a duty wants the next cycle, if not in its time."""
    is_short: bool = False
    """Something queued got no slot."""
    is_more: bool = False
    """All that asked for a slot got one, and more is queued."""


class SousChef:
    """``wake`` is told (instance, moment) pairs and may be called from this thread; ``waiting`` says how many turns
    this process has yet to run."""

    def __init__(
        self,
        engine: Engine,
        account: str,
        known: Callable[[], Sequence[tuple[str, str]]],
        clock: Clock,
        slots: Slots,
        wake: Callable[[Sequence[tuple[UUID, float]]], None],
        shards: Shards,
        waiting: Callable[[], int] = lambda: 0,
        duties: Sequence[Duty] = (),
    ) -> None:
        self._engine = engine
        self._account = account
        self._known = known
        self._clock = clock
        self._wake = wake
        self._shards = shards
        self._queues = Queues(engine, account, slots)
        self._waiting = waiting
        self._duties = duties
        self._full_at = 0.0
        """When the next cycle is due that looks at everything; those before it look at the queue alone."""
        self._stop = threading.Event()
        self._bell = threading.Event()
        self._heeds_bell = False
        self._thread = threading.Thread(target=self._run, name="orchestrator-souschef", daemon=True)

    def cycle(self, now: float) -> Cycle:
        """Start queued instances that get a slot, and take the alarms that ring before the next cycle: all of it only
        as far as the turns that wait here already leave room. Otherwise a backlog feeds itself: whatever is late rings,
        and ringing again each second is more work than what it asks for."""
        room = self._room()
        known = [f"{name}@{version}" for name, version in self._known()]
        if not known:
            return Cycle()
        rounds = [self._round(duty, now, known) for duty in self._duties]
        served = self._looked_after(now)
        with self._engine.begin() as connection:
            taken = alarms.take(connection, self._account, known, now, now + CYCLE_S, AGAIN_S, room)
        wakes = [*served.wakes, *taken.due]
        wakes += [wake for each in rounds for wake in each.wakes]
        if wakes:
            reach("souschef.after_take")
        is_full = room > AT_LEAST and taken.is_full
        again_at = min((each.again_at for each in rounds), default=FOREVER)
        return Cycle(wakes, is_full, again_at, served.is_short, served.is_more)

    def serve(self, now: float) -> Cycle:
        """Look at the queue alone: ask for slots, and start what gets one."""
        known = {f"{name}@{version}" for name, version in self._known()}
        served = self._queues.serve(self._shards.share, known, now, self._room())
        wakes = [(instance, now) for instance in served.started]
        return Cycle(wakes, is_short=served.is_short, is_more=served.is_more)

    def _looked_after(self, now: float) -> Cycle:
        """Shards, then the queue. What fails there keeps no alarm waiting; without a look, shards stay as they were."""
        served = Cycle()
        try:
            self._shards.cycle(now)
        except Exception as error:
            _tell(error, "A look at the shards")
        try:
            served = self.serve(now)
        except Exception as error:
            _tell(error, "A look at the queue")
        return served

    def _room(self) -> int:
        return max(AT_LEAST, PER_CYCLE - self._waiting())

    def _round(self, duty: Duty, now: float, known: Sequence[str]) -> Round:
        """A duty that fails keeps nobody waiting: neither the others nor what is due."""
        try:
            return duty.cycle(now, known)
        except Exception as error:
            _tell(error, f"A round of {type(duty).__name__}")
            return Round()

    def start(self) -> None:
        self._thread.start()

    def stop(self, *, give_up: bool = True) -> None:
        """End after the cycle that is under way; with ``give_up`` other workers have its shards at once."""
        self._stop.set()
        self._bell.set()
        if self._thread.ident is not None:
            self._thread.join(5)
        if give_up:
            try:
                self._shards.release()
            except Exception as error:
                _tell(error, "Giving up the shards of this worker")

    def freed(self) -> None:
        """Slots have become free here: whatever was refused one need not wait for the next cycle. Called from any
        thread."""
        if self._heeds_bell:
            self._bell.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = CYCLE_S
            try:
                pause = self._step(self._clock.now())
            except Exception as error:
                self._full_at = 0.0
                _tell(error, "A cycle of the SousChef")
            if self._bell.wait(pause):
                self._stop.wait(FREED_S)
            self._bell.clear()

    def _step(self, now: float) -> float:
        """One cycle, of everything if it is time for that; returns the pause until the next one, seconds."""
        is_due = now >= self._full_at
        cycle = self.cycle(now) if is_due else self.serve(now)
        if cycle.wakes:
            self._wake(cycle.wakes)
        now = self._clock.now()
        if is_due:
            self._full_at = self._next_full(cycle, now)
        self._heeds_bell = cycle.is_short
        pause = self._full_at - now
        if cycle.is_more:
            pause = min(pause, SOON_S)
        elif cycle.is_short:
            pause = min(pause, patience(self._shards.share.workers))
        return max(pause, SOON_S / 10)

    def _next_full(self, cycle: Cycle, now: float) -> float:
        if cycle.is_full:
            return now + SOON_S
        phase = self._shards.phase * CYCLE_S
        return min(now + CYCLE_S - (now - phase) % CYCLE_S, cycle.again_at + 0.0005)


def appoint(
    settings: Settings,
    registry: Registry,
    means: Means,
    engine: Engine,
    clock: Clock,
    worker: Callable[[], UUID],
    wake: Callable[[Sequence[tuple[UUID, float]]], None],
    waiting: Callable[[], int],
) -> SousChef:
    """The SousChef of a worker process, with its shards and all duties. ``worker``: its incarnation of the moment."""
    chef = SousChef(
        engine,
        settings.account,
        registry.known,
        clock,
        means.gate,
        wake,
        Shards(engine, settings, worker, registry.known),
        waiting,
        duties.standard(
            engine,
            settings,
            registry,
            means.limits,
            means.scripts,
            means.gate,
            functools.partial(offer_again, engine, settings.account),
        ),
    )
    means.gate.on_freed = chef.freed
    return chef


def offer_again(engine: Engine, account: str, now: float) -> None:
    """Redis has lost what it held, and messages with it: let every hand-out that nobody has claimed be looked at now,
    however long a backlog has put that off. Its turn tells whether it waits in a queue still."""
    with engine.begin() as connection:
        left = holders.stretches(holders.workflows(connection, account))
    rung = 0
    while left:
        with engine.begin() as connection:
            page, left = holders.page(connection, account, left, PAGE)
            rung += alarms.ring_handed(connection, [holder.instance for holder in page], now)
    logger.warning("Redis has lost messages: %d instances with unclaimed hand-outs are looked at now.", rung)


def patience(workers: int) -> float:
    """The pause of a SousChef that asked in vain, of so many, seconds. Slots wait that long for whom they are due."""
    return min(CYCLE_S, max(SHORT_S, workers * ASK_S))


def _tell(error: Exception, what: str) -> None:
    if session.is_away(error) or session.is_contention(error) or session.is_missing_schema(error):
        logger.warning("%s was skipped: %s", what, error)
    else:
        logger.error("%s failed.", what, exc_info=error)
