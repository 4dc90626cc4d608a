"""Who of the children runs what, and the end of those that must not go on: each is killed, none is asked.

Owns: what is known of each child, killing it (timeout, cancellation, shutdown, a lost lease), and the verdict on what
one that died was at. Does not own: the engine beside it (``parent``), forking (Celery), what a child does (``child``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from orchestrator.engine.forking.notices import Notice, Wire
from orchestrator.engine.running.attempts import Attempts, Desk
from orchestrator.engine.running.placement import Ready
from orchestrator.engine.running.threads import Threads
from orchestrator.errors import Cancelled, StepTimeout
from orchestrator.ports import monotonic
from orchestrator.settings import Settings
from orchestrator.store.steps import Claim
from orchestrator.workflow.execution import Outcome
from orchestrator.workflow.language.config import StepConfig

logger = logging.getLogger(__name__)

TICK_S = 0.05
"""How often the children are looked at."""
REVOKED_S = 1.0
"""How often it is asked which of their attempts were cancelled."""
PATIENCE_S = 0.5
"""A child that was to be ended by Celery, and is still there after this long, is killed here."""


class Office(Desk, Protocol):
    """What the parent's engine does for its children."""

    async def held(self, worker: UUID, claim: Claim) -> Ready | None: ...
    def bury(self, worker: UUID, claim: Claim | None, *, is_unclaimed: bool) -> None: ...
    def ask_revoked(self, running: Sequence[tuple[UUID, Claim]]) -> None: ...
    def kept_at(self) -> float: ...
    def handed(self, queue: str, handed_at: float) -> None: ...


@dataclass(slots=True)
class Child:
    """A child as its notices tell. ``claim``: what it is at, ``since`` when it spoke last; ``has_taken``: it may have
    claimed that; ``has_begun``: it came to its body; ``due``: when that, if it is in it, must have ended;
    ``alive_at``: when it last renewed its row itself."""

    pid: int
    worker: UUID
    claim: Claim | None = None
    since: float = 0.0
    alive_at: float = 0.0
    has_taken: bool = False
    has_begun: bool = False
    due: float | None = None
    timeout_s: float = 0.0
    why: str | None = None
    """Why it was killed: ``timeout``, ``cancelled``, ``lost``, ``handed_back``, ``terminated``."""
    killed_at: float | None = None


class Children(Attempts):
    """The children, in the place of a worker's own attempts. Used from the event loop only.

    ``expire(pid, seconds)`` has Celery end a child whose body is over its time.
    """

    def __init__(
        self,
        office: Office,
        threads: Threads,
        settings: Settings,
        wire: Wire,
        expire: Callable[[int, float], None],
    ) -> None:
        super().__init__(office, threads, settings.max_payload_bytes)
        self._office = office
        self._lease = settings.lease
        self._wire = wire
        self._expire = expire
        self._children: dict[int, Child] = {}
        self._concluding: set[asyncio.Task[None]] = set()
        self._lives: frozenset[UUID] = frozenset()
        self._is_leaving = False

    def lives(self) -> set[UUID]:
        """The incarnations of the children. Called from the heartbeat thread too."""
        return set(self._lives)

    # -- what a worker asks of its attempts -----------------------------------------------------------------

    async def run(self, claim: Claim) -> str:
        raise NotImplementedError("The parent of a prefork worker runs no bodies; its children do.")

    @property
    def bodies(self) -> list[Claim]:
        """None in this process."""
        return []

    @property
    def active(self) -> int:
        at_work = sum(child.claim is not None for child in self._children.values())
        return at_work + len(self._concluding)

    async def settled(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while self.active:
                    self._mark()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    def cancel(self, claim: Claim, why: str = "cancelled") -> None:
        """End a body that nobody wants; and a child that has not come to its body, or past it, for a whole lease."""
        for child in self._children.values():
            if child.claim == claim and (child.due is not None or self._is_stuck(child)):
                self._kill(child, why)

    def _is_stuck(self, child: Child) -> bool:
        """Whether a child has been at something else than a body for too long: in workflow code that does not return,
        for example. One that waits for Postgres with its message is not."""
        return child.has_taken and child.due is None and monotonic() - child.since > self._lease

    def _doubtful(self) -> list[tuple[UUID, Claim]]:
        """Attempts of which it is asked whether they were cancelled, or given to others."""
        return [
            (child.worker, child.claim)
            for child in self._children.values()
            if child.claim is not None and (child.due is not None or self._is_stuck(child))
        ]

    def cancel_all(self, why: str, *, sync_too: bool = True) -> None:
        """End whatever children are at. ``lost``: only bodies whose own lease has run out. This worker's may have, and
        theirs not: a child renews its row before each attempt, and it is renewed here while our turns are stuck."""
        for child in self._children.values():
            if child.claim is not None and (why != "lost" or self._is_expired(child)):
                self._kill(child, why)

    def _is_expired(self, child: Child) -> bool:
        """Whether a child is in a body, and nobody has renewed its row for a lease."""
        renewed = max(self._office.kept_at(), child.alive_at)
        return child.due is not None and monotonic() - renewed > self._lease

    def _mark(self, _: object = None) -> None:
        """Let ``settled`` know whether anything is going on."""
        (self._idle.clear if self.active else self._idle.set)()

    # -- watching --------------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Look at the children for as long as this worker lives."""
        asked_at = monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            try:
                self.look()
                if monotonic() - asked_at >= REVOKED_S:
                    asked_at = monotonic()
                    self._office.ask_revoked(self._doubtful())
            except Exception:
                logger.exception("Looking at the children failed.")

    def look(self) -> None:
        """Hear what they say, end who is over its time, conclude for who is dead."""
        self.hear()
        now = monotonic()
        dead = [child for child in self._children.values() if is_gone(child.pid)]
        if dead:
            self.hear()  # what they said last
        for child in dead:
            self._bury(child)
        for child in self._children.values():
            if child.killed_at is not None:
                if now > child.killed_at + PATIENCE_S:
                    _kill(child.pid)
            elif child.due is not None and now > child.due:
                child.why, child.killed_at = "timeout", now
                self._expire(child.pid, child.timeout_s)

    def hear(self) -> None:
        for notice in self._wire.heard():
            self._note(notice)
        self._lives = frozenset(child.worker for child in self._children.values() if child.alive_at)
        self._mark()

    def _note(self, notice: Notice) -> None:
        child = self._children.get(notice.pid)
        if child is None:
            child = self._children[notice.pid] = Child(notice.pid, notice.worker)
        child.worker, child.since, child.alive_at = notice.worker, notice.at, notice.alive_at
        if notice.word in ("got", "over"):  # a kill that came too late was not meant for what follows
            child.why = child.killed_at = None
            child.has_taken = child.has_begun = False
        if notice.word == "got":
            child.claim = notice.claim
        elif notice.word == "took":
            child.claim, child.has_taken = notice.claim, True
        elif notice.word == "began":
            child.has_begun = True
            child.due, child.timeout_s = notice.at + notice.timeout_s, notice.timeout_s
            self._office.handed(notice.queue, notice.handed_at)
        elif notice.word == "ended":
            child.due = None
        elif notice.word == "over":
            child.claim = None
        if self._is_leaving and child.claim is not None:
            self._kill(child, "handed_back")

    def terminated(self, pid: int, why: str) -> None:
        """Celery ends this child."""
        self.hear()
        child = self._children.get(pid)
        if child is not None and child.claim is not None and child.why is None:
            child.why, child.killed_at = why, monotonic()

    def _kill(self, child: Child, why: str) -> None:
        if child.why is None:
            child.why, child.killed_at = why, monotonic()
        if not is_gone(child.pid):
            _kill(child.pid)

    def disown(self, declared: set[UUID]) -> None:
        """Others took these incarnations for dead: what they run is run elsewhere."""
        for child in self._children.values():
            if child.worker in declared and child.due is not None:
                self._kill(child, "lost")

    def leave(self) -> None:
        """The worker ends: whoever is at an attempt, or comes to one from now on, is killed and hands it back."""
        self._is_leaving = True
        self.hear()
        self.cancel_all("handed_back")

    # -- the dead --------------------------------------------------------------------------------------------

    def _bury(self, child: Child) -> None:
        del self._children[child.pid]
        task = asyncio.get_running_loop().create_task(self._conclude(child))
        self._concluding.add(task)
        task.add_done_callback(self._concluding.discard)
        task.add_done_callback(self._mark)

    async def _conclude(self, child: Child) -> None:
        """Record what the parent did on purpose; then the incarnation ends, and a turn finds whatever it still ran."""
        try:
            if child.claim is not None:
                outcome = await self._verdict(child, child.claim)
                if outcome is not None:
                    await self._desk.report(child.claim, outcome)
        except Exception:
            logger.exception("What child %d ran is left to be found as lost: %s", child.pid, child.claim)
        finally:
            self._office.bury(child.worker, child.claim, is_unclaimed=not child.has_begun)

    async def _verdict(self, child: Child, claim: Claim) -> Outcome | None:
        if child.why not in ("timeout", "terminated", "handed_back"):
            return None
        if child.why == "handed_back" and not child.has_taken:  # nobody has claimed it; it is offered again
            return None
        ready = await self._office.held(child.worker, claim)
        if ready is None:  # recorded before it died, or cancelled
            return None
        row = ready.claimed.row
        if child.why == "handed_back":
            return self._outcome(ready, loss="handed_back")
        if child.why == "terminated":
            return self._outcome(
                ready, error=Cancelled(f"The task of step {row.key!r} was terminated."), delay_s=0.0
            )
        late = StepTimeout(
            f"attempt {row.attempt} of step {row.key!r} took over {child.timeout_s:g} seconds, and its process "
            "was killed"
        )
        return await self._failed(ready, late, StepConfig.from_json(row.config or ""))


def is_gone(pid: int) -> bool:
    """Whether a child has ended; who forked it may still read its status."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13: known once Celery has read the status
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return False
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
