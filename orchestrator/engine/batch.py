"""The engine thread: one flush in flight, what arrives meanwhile shares the next.

Owns: the queue, the thread that owns every replay and the turn connection, and patience with a Postgres that is
away (nothing queued is lost). Does not own: what a flush does (``coordinator``, ``claims``).

There is no timer: an idle engine takes a single arrival at once, a busy one takes all that gathered.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Protocol
from uuid import UUID

from orchestrator.engine.claims import Claims, ClaimWanted
from orchestrator.engine.turning.coordinator import Coordinator
from orchestrator.engine.turning.results import Results
from orchestrator.store import session
from orchestrator.workflow.execution import Arrival, Outcome

logger = logging.getLogger(__name__)

INSTANCES_PER_FLUSH = 128
"""A flush this large costs hardly more per instance than one four times as large, and while it is written the bodies of
the others run: without a limit all instances come to walk in step, and one core waits for the other."""
BYTES_PER_FLUSH = 8 * 1024 * 1024
ASIDE_S = 5.0
"""How long arrivals whose turn failed for no foreseen reason are put aside."""
STALLED_S = 0.005
"""Between tries of what somebody else holds locked; longer each time, up to ten times this."""
PATIENCE_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
"""Waits between tries while Postgres is away."""


class Effects(Protocol):
    """What is done after a flush; called from the engine thread."""

    def carry_out(self, results: Results) -> None: ...


class Batcher:
    """Collects claims and arrivals and flushes them. All methods may be called from any thread."""

    def __init__(self, coordinator: Coordinator, claims: Claims, effects: Effects) -> None:
        self._coordinator = coordinator
        self._claims = claims
        self._effects = effects
        self._wanted: list[ClaimWanted] = []
        self._arrivals: dict[UUID, list[Arrival]] = {}
        self._calls: list[Callable[[], None]] = []
        self._condition = threading.Condition()
        self._stopping = False
        self._fresh = False
        """Something came since the last flush took what there was."""
        self._skipped = False
        """The last flush met rows that somebody else holds."""
        self._thread = threading.Thread(target=self._run, name="orchestrator-engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def arrive(self, instance: UUID, arrivals: Iterable[Arrival]) -> None:
        """Queue arrivals of one instance; none at all still means a turn."""
        with self._condition:
            self._arrivals.setdefault(instance, []).extend(arrivals)
            self._fresh = True
            self._condition.notify()

    def take(self, wanted: Iterable[ClaimWanted], arrivals: Iterable[tuple[UUID, Arrival]]) -> None:
        """Queue claims and arrivals of many instances at once: one wake-up, and one flush for all of them."""
        with self._condition:
            self._wanted.extend(wanted)
            for instance, arrival in arrivals:
                self._arrivals.setdefault(instance, []).append(arrival)
            self._fresh = True
            self._condition.notify()

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function`` in the engine thread, before the next flush."""
        with self._condition:
            self._calls.append(function)
            self._fresh = True
            self._condition.notify()

    @property
    def waiting(self) -> int:
        """Instances whose turn has yet to be run."""
        return len(self._arrivals)

    def stop(self, timeout: float) -> bool:
        """Flush what is queued, then end the thread; false if that took longer than ``timeout`` seconds."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- in the engine thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        failures = stalls = 0
        while True:
            with self._condition:
                if stalls:
                    self._condition.wait_for(
                        lambda: self._fresh or self._stopping, STALLED_S * min(stalls, 10)
                    )
                while not (self._wanted or self._arrivals or self._calls or self._stopping):
                    self._condition.wait()
                if self._stopping and not (self._wanted or self._arrivals or self._calls):
                    return
                calls, self._calls = self._calls, []
                wanted, self._wanted = self._wanted, []
                arrivals = self._take()
                self._fresh = self._skipped = False
            is_well = self._flush(calls, wanted, arrivals)
            failures = 0 if is_well else failures + 1
            stalls = stalls + 1 if self._skipped else 0
            if failures:
                with self._condition:
                    self._condition.wait_for(
                        lambda: self._stopping, PATIENCE_S[min(failures, len(PATIENCE_S)) - 1]
                    )
                    if self._stopping and failures > len(PATIENCE_S):
                        return  # told to stop and nobody to write to: alarms and leases bring it all back

    def _take(self) -> dict[UUID, list[Arrival]]:
        taken: dict[UUID, list[Arrival]] = {}
        size = 0
        for instance in list(islice(self._arrivals, INSTANCES_PER_FLUSH)):
            taken[instance] = self._arrivals.pop(instance)
            size += sum(len(a.output or "") for a in taken[instance] if isinstance(a, Outcome))
            if size >= BYTES_PER_FLUSH:
                break
        return taken

    def _flush(
        self, calls: list[Callable[[], None]], wanted: list[ClaimWanted], arrivals: dict[UUID, list[Arrival]]
    ) -> bool:
        """Do all of it; false if Postgres is away or something unforeseen happened, and it is queued again."""
        is_well = True
        for function in calls:
            is_well = self._guarded(function) and is_well
        if wanted:
            is_well = self._claim(wanted) and is_well
        if arrivals:
            done = self._turns(arrivals)
            if done is None:
                self._isolate(arrivals)
            else:
                is_well = is_well and not done.uncertain
                self._finish(done, [])
        return is_well

    def _claim(self, wanted: list[ClaimWanted]) -> bool:
        """Claim all of these; one by one if they are refused together. A message that is refused alone is dropped."""
        results = Results()
        try:
            again = self._claims.run(wanted, results)
        except Exception as error:
            again = [w for w in wanted if not w.is_settled]
            if session.is_away(error) or session.is_contention(error):
                logger.warning("Claims are repeated: %s", error)
                self._finish(results, again)
                return False
            self._finish(results, [])
            if len(wanted) > 1:
                said = [self._claim([want]) for want in again]
                return all(said)
            logger.exception("A claim was refused, and its message is dropped: %r", wanted[0].claim)
            for want in again:
                want.settle(None)
            return True
        self._finish(results, again)
        return True

    def _isolate(self, arrivals: dict[UUID, list[Arrival]]) -> None:
        """Something unforeseen failed a whole flush: try one by one, and put aside, for a while, what fails alone."""
        for instance, some in arrivals.items():
            done = self._turns({instance: some})
            if done is not None:
                self._finish(done, [])
            else:
                timer = threading.Timer(ASIDE_S, self.arrive, (instance, some))
                timer.daemon = True
                timer.start()

    def _turns(self, arrivals: dict[UUID, list[Arrival]]) -> Results | None:
        done: list[Results] = []
        return done[0] if self._guarded(lambda: done.append(self._coordinator.run(arrivals))) else None

    def _guarded(self, function: Callable[[], None]) -> bool:
        try:
            function()
        except Exception as error:
            if session.is_away(error):
                logger.warning("Postgres is away: %s", error)
            else:
                logger.exception("A flush failed and is repeated.")
            return False
        return True

    def _finish(self, results: Results, again: list[ClaimWanted]) -> None:
        with self._condition:
            self._skipped = self._skipped or results.skipped or bool(again)
            self._wanted = [*again, *self._wanted]
            for instance, arrivals in results.repeat.items():
                self._arrivals[instance] = [*arrivals, *self._arrivals.get(instance, ())]
        self._effects.carry_out(results)
        self._coordinator.settle(results)
