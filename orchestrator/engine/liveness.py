"""Who is alive: this process's heartbeats, the deaths of others, the database's clock.

Owns: the heartbeat thread, the incarnation, and when this process may declare or must stand still. Does not own:
what happens to the steps of the dead (turns), nor bodies (told through ``Life``). Rules: protocols §6.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Protocol
from uuid import UUID

from orchestrator.engine.drawing import Drawing
from orchestrator.engine.stacks import stack_of
from orchestrator.ports import MonotonicClock, monotonic, new_id
from orchestrator.settings import Incarnation, Settings
from orchestrator.store import instances, session, workers
from orchestrator.store.session import Connection, Engine
from orchestrator.telemetry import Totals, written

logger = logging.getLogger(__name__)

BLOCKED_LOOP_S = 2.0
WATCH_S = 0.5
FORGET_S = 3600.0


class Life(Protocol):
    """What liveness tells the rest of the process; called from its thread."""

    def reborn(self) -> None:
        """This incarnation was declared dead: drop replays and running attempts."""

    def suspended(self) -> None:
        """No heartbeat succeeded for a lease: cancel bodies, claim nothing."""

    def resumed(self) -> None:
        """Heartbeats succeed (again): claims may go on."""

    def stuck_s(self) -> float:
        """How long the engine thread has been in one piece of workflow code, seconds."""

    def ping(self, answered: Callable[[], None]) -> None:
        """Have the event loop call ``answered``."""


class Liveness:
    """Heartbeats from a thread of its own, and only while the event loop answers."""

    def __init__(
        self,
        engine: Engine,
        settings: Settings,
        clock: MonotonicClock,
        definitions: Callable[[], Sequence[tuple[str, str, str, str]]],
        queues: Sequence[str],
        life: Life,
    ) -> None:
        self._engine = engine
        self._settings = settings
        self._clock = clock
        self._definitions = definitions
        self._queues = tuple(queues)
        self._life = life
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orchestrator-heartbeat", daemon=True)
        self.incarnation = self._new()
        self.is_registered = False
        self._renewed = float("-inf")
        self._unbroken_since = float("inf")
        self._asked_at: float | None = None
        self._loop_thread: int | None = None
        self._warned = False
        self.totals = Totals()
        """What this process has counted of its work; its beats carry it."""
        self.sharing = 1
        """Workers that serve this one's queue, itself included, as of its last beat."""
        self.kept: Callable[[], set[UUID]] = set
        """Other incarnations that this process's beats keep alive: its children's."""
        self.kept_at = float("-inf")
        """When they were last renewed, on the monotonic clock."""
        self.gone: Callable[[set[UUID]], None] = lambda workers: None
        """Told which of them were declared dead."""
        self.drawing: Drawing | None = None
        """What draws the workflows once they are entered."""

    @property
    def id(self) -> UUID:
        return self.incarnation.id

    @property
    def is_overdue(self) -> bool:
        """No heartbeat has succeeded for a lease, perhaps because one waits for an answer that never comes."""
        return self.is_registered and monotonic() - self._renewed > self._settings.lease

    def start(self) -> None:
        """Start beating. Called in the event loop's thread."""
        self._loop_thread = threading.get_ident()
        self._thread.start()

    def stop(self, *, leave: bool) -> None:
        """Stop beating; with ``leave`` the worker row is deleted, and what it still ran is handed on."""
        self._stop.set()
        if self.drawing is not None:
            self.drawing.stop()
        self._thread.join(10)
        if leave and self.is_registered:
            self.leave()

    def leave(self) -> None:
        """Delete the worker row, and hand on what this incarnation still ran."""
        try:
            with self._engine.begin() as connection:
                workers.leave(connection, self.id, written(self.totals.series()))
                workers.alarm(connection, self._settings.account, [self.id], self._clock.now())
        except Exception as error:
            logger.warning("Could not sign off from Postgres (%s); the lease will run out.", error)

    # -- in the thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            pause = self._settings.heartbeat
            try:
                self._beat()
            except Exception as error:
                if not (session.is_away(error) or session.is_missing_schema(error)):
                    logger.exception("A heartbeat failed.")
                elif session.is_missing_schema(error):
                    logger.error("The schema is missing or old: run `orchestrator migrate`. Waiting for it.")
                else:
                    logger.warning("A heartbeat did not reach Postgres: %s", error)
                self._unbroken_since = float("inf")
                pause = min(pause, 1.0)
            if self.is_overdue:
                self._life.suspended()
            self._watch(pause)

    def _watch(self, pause: float) -> None:
        """Wait for the next beat, with an eye on the event loop."""
        until = monotonic() + pause
        while (left := until - monotonic()) > 0 and not self._stop.wait(min(WATCH_S, left)):
            self._loop_answers()

    def _beat(self) -> None:
        if self.is_registered:
            if not self._loop_answers():
                return
            if (
                self._life.stuck_s() > self._settings.lease
            ):  # its own turns stand still; those it keeps are well
                self._keep()
                return
        carried = self.totals.series() if self.is_registered else {}
        with self._engine.begin() as connection:
            before = monotonic()
            if self.is_registered:
                now = workers.heartbeat(connection, self.id, written(carried))
            else:
                now = self._register(connection)
            after = monotonic()
            self.sharing = max(1, workers.sharing(connection, self._settings.account, self._settings.queue))
        if now is None:
            logger.error("Worker %s was declared dead; it comes back as a new one.", self.id)
            self.is_registered = False
            self._unbroken_since = float("inf")
            self.incarnation = self._new()
            self.totals.reborn()
            self._life.reborn()
            self._beat()
            return
        self.totals.told(carried)
        self._clock.adjust(now, (before + after) / 2)
        if self._unbroken_since == float("inf") or after - self._renewed > self._settings.lease:
            self._unbroken_since = after
        self._renewed = after
        if self.drawing is not None:
            self.drawing.start()
        self._keep()
        self._life.resumed()
        # Whoever was cut off itself must not judge others.
        if after - self._unbroken_since >= self._settings.lease:
            self._bury()

    def _keep(self) -> None:
        """Renew the others that this process keeps alive."""
        kept, before = self.kept(), monotonic()
        gone: set[UUID] = set()
        if kept:
            with self._engine.begin() as connection:
                gone = kept - workers.renew(connection, kept)
        self.kept_at = before
        if gone:
            self.gone(gone)

    def _enter(self, connection: Connection) -> float:
        """Enter this incarnation; or a new one, if an earlier try had done so unheard and it was declared dead."""
        known = [f"{name}@{version}" for name, version, *_ in self._definitions()]
        while (now := workers.register(connection, self._settings.account, self.incarnation, known)) is None:
            self.incarnation = self._new()
        return now

    def _register(self, connection: Connection) -> float:
        definitions = self._definitions()
        account = self._settings.account
        now = self._enter(connection)
        if definitions:
            changed = workers.register_workflows(connection, account, definitions)
            if changed:
                instances.release_blocked(connection, account, changed, now)
        self._renewed = monotonic()
        self.is_registered = True
        return now

    def _bury(self) -> None:
        account, lease = self._settings.account, self._settings.lease
        with self._engine.begin() as connection:
            dead = workers.declare_dead(connection, account, lease, self._clock.now())
            workers.forget_dead(connection, account, FORGET_S)
        for worker in dead:
            logger.warning("Worker %s has not renewed its lease of %g s and is declared dead.", worker, lease)

    def _loop_answers(self) -> bool:
        """Whether the event loop answered within the last lease; a blocked one is logged with its stack."""
        asked_at = self._asked_at
        if asked_at is None:
            self._asked_at = monotonic()
            self._life.ping(self._answer)
            self._warned = False
            return True
        silent = monotonic() - asked_at
        if silent > BLOCKED_LOOP_S and not self._warned:
            self._warned = True
            stack = stack_of(self._loop_thread or 0)
            logger.warning(
                "The event loop has been blocked for %.1f s, at:\n%s", silent, stack or "(unknown)"
            )
        return silent <= self._settings.lease

    def _answer(self) -> None:
        self._asked_at = None

    def _new(self) -> Incarnation:
        return Incarnation(new_id(self._clock.now()), socket.gethostname(), os.getpid(), self._queues)
