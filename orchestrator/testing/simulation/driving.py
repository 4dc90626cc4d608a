"""How far instances go: turn after turn and body after body, until nothing can happen without time passing.

Owns: the order of what is done, the thread it is done on, and noticing that it never ends. Does not own: turns
(``turns``), bodies (``bodies``) or the clock (``environment``).
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections.abc import Callable
from typing import TypeVar
from uuid import UUID

from orchestrator.errors import NotDurable
from orchestrator.testing.errors import NeverIdle
from orchestrator.testing.simulation.bodies import Bodies, attempt_of
from orchestrator.testing.simulation.fakes import Fakes, name_of
from orchestrator.testing.simulation.storage import Record
from orchestrator.testing.simulation.turns import Turns
from orchestrator.workflow.execution import Writes
from orchestrator.workflow.language.commands import DO

T = TypeVar("T")

ACTS_AT_ONCE = 60_000
"""Turns and bodies without any time passing after which instances are said to go on for ever."""


class Driver:
    """Drives all instances of an environment. One call at a time; the lock is free while bodies run."""

    def __init__(
        self,
        turns: Turns,
        bodies: Bodies,
        fakes: Callable[[UUID], Fakes],
        lock: threading.RLock,
        seed: int | None = None,
    ) -> None:
        self._turns = turns
        self._bodies = bodies
        self._fakes = fakes
        self._lock = lock
        self._dice = None if seed is None else random.Random(seed)
        self._is_driving = False
        turns.committed = self._committed

    def run(self, until: Callable[[], bool] | None = None) -> bool:
        """Do what can be done now, in order, until ``until()`` holds or nothing is left; whether it holds.

        Raises ``NeverIdle``, and what the check of replays raises.
        """
        if self._is_driving:
            raise NotDurable(
                "The environment is being driven already: a step body, or another thread, must not drive it too. A "
                "body may send events, create instances and call verbs; the test drives."
            )
        self._is_driving = True
        try:
            for _ in range(ACTS_AT_ONCE):
                if until is not None and until():
                    return True
                if not self.act():
                    return until is None or until()
        finally:
            self._is_driving = False
        raise NeverIdle(
            f"After {ACTS_AT_ONCE:,} turns and bodies the instances still go on, and no time has passed: a loop that "
            "waits for nothing, or whose sleeps are disabled. Give the loop an end, or advance() time instead."
        )

    def act(self) -> bool:
        """One thing that can be done now: bodies are started first, then what ended is told, one end a turn."""
        if self._dice is not None and self._bodies.ended and self._dice.random() < 0.5:
            return self._take()
        return self._start() or self._take() or self._turn() or self._wait()

    def _turn(self) -> bool:
        with self._lock:
            return self._turns.step()

    def _start(self) -> bool:
        with self._lock:
            offers = self._turns.offers
            if not offers:
                return False
            if self._dice is not None:
                offers.rotate(-self._dice.randrange(len(offers)))
            offer = offers.popleft()
            execution = self._turns.claim(offer)
            record = self._turns.storage.get(offer.instance)
            if execution is None or record is None:
                return True
            attempt = attempt_of(record, offer, execution)
            if attempt.row.kind == DO:
                attempt.fake = self._fakes(record.id).attempt(name_of(offer.key))
        self._bodies.start(attempt)
        return True

    def _take(self) -> bool:
        ended = self._bodies.ended
        if not ended:
            return False
        if self._dice is not None:
            ended.rotate(-self._dice.randrange(len(ended)))
        instance, outcome = ended.popleft()
        with self._lock:
            self._turns.wake(instance, outcome)
            self._turns.step()  # none, if the instance has ended meanwhile: others may still have ends to be told
        return True

    def _wait(self) -> bool:
        if not self._bodies.active:
            return False
        self._bodies.wait()
        return True

    def _committed(self, record: Record, writes: Writes) -> None:
        self._bodies.revoke(self._turns.storage.get(record.id), record.id)
        self._bodies.ring()


def outside(call: Callable[[], T]) -> T:
    """``call()``, on a thread of its own where the caller is on a running event loop: workflow code must not run
    inside another loop's task, nor may bodies have to wait for it. The caller waits."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return call()
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="workflow-environment")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
