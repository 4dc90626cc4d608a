"""The engine of the parent of a prefork worker: it beats, wakes and turns like any worker, and its bodies are children.

Owns: who of the children runs what, killing them (timeout, cancellation, shutdown, a lost lease), and what is recorded
for one that died. Does not own: forking (Celery), nor what a child does (``child``).

A child has an incarnation of its own. When it dies, its row is deleted and the instance gets a turn, which sees a step
that runs on nobody: ``WorkerLost``, by the same path as for a worker on another machine. Only what the parent did on
purpose it must say itself, and it says so while the claim still is the dead child's.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from orchestrator.engine.claims import ClaimWanted
from orchestrator.engine.forking.notices import Notice, Wire
from orchestrator.engine.liveness import Liveness
from orchestrator.engine.results import Results
from orchestrator.engine.running.attempts import Attempts
from orchestrator.engine.running.placement import Ready, Room
from orchestrator.engine.running.threads import Threads
from orchestrator.engine.runtime import Runtime
from orchestrator.errors import Cancelled, StepTimeout
from orchestrator.ports import HandOut, monotonic
from orchestrator.store import session, steps, workers
from orchestrator.store.steps import Claim
from orchestrator.workflow.execution import Outcome, Wake
from orchestrator.workflow.language.config import StepConfig

logger = logging.getLogger(__name__)

TICK_S = 0.05
"""How often the children are looked at."""
REVOKED_S = 1.0
"""How often it is asked which of their attempts were cancelled."""
PATIENCE_S = 0.5
"""A child that was to be ended by Celery, and is still there after this long, is killed here."""
AGAIN_S = 0.5
"""Between tries to read what a dead child ran."""


class Office(Protocol):
    """What the parent's engine does for its children."""

    async def held(self, worker: UUID, claim: Claim) -> Ready | None: ...
    def bury(self, worker: UUID, claim: Claim | None, *, is_unclaimed: bool) -> None: ...
    def ask_revoked(self, running: Sequence[tuple[UUID, Claim]]) -> None: ...


@dataclass(slots=True)
class Child:
    """A child as its notices tell. ``claim``: what it is at, ``since`` when it spoke last; ``has_begun``: it came to
    its body; ``due``: when that, if it is in it, must have ended."""

    pid: int
    worker: UUID
    claim: Claim | None = None
    since: float = 0.0
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
        self, office: Runtime, threads: Threads, wire: Wire, expire: Callable[[int, float], None]
    ) -> None:
        super().__init__(office, threads, office.settings.max_payload_bytes)
        assert isinstance(office, ParentRuntime)
        self._office: Office = office
        self._lease = office.settings.lease
        self._wire = wire
        self._expire = expire
        self._children: dict[int, Child] = {}
        self._concluding: set[asyncio.Task[None]] = set()
        self._lives: frozenset[UUID] = frozenset()

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

    def cancel(self, claim: Claim, why: str = "cancelled") -> None:
        """End a body that nobody wants; and a child that has not come to its body, or past it, for a whole lease."""
        for child in self._children.values():
            if child.claim == claim and (child.due is not None or self._is_stuck(child)):
                self._kill(child, why)

    def _is_stuck(self, child: Child) -> bool:
        """Whether a child has been at something else than a body for too long: in workflow code that does not return,
        for example."""
        return child.due is None and monotonic() - child.since > self._lease

    def _doubtful(self) -> list[tuple[UUID, Claim]]:
        """Attempts of which it is asked whether they were cancelled, or given to others."""
        return [
            (child.worker, child.claim)
            for child in self._children.values()
            if child.claim is not None and (child.due is not None or self._is_stuck(child))
        ]

    def cancel_all(self, why: str, *, sync_too: bool = True) -> None:
        for child in self._children.values():
            if child.due is not None:
                self._kill(child, why)

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
        self._lives = frozenset(child.worker for child in self._children.values())
        self._mark()

    def _note(self, notice: Notice) -> None:
        child = self._children.get(notice.pid)
        if child is None:
            child = self._children[notice.pid] = Child(notice.pid, notice.worker)
        child.worker, child.since = notice.worker, notice.at
        if notice.word in ("took", "over"):  # a kill that came too late was not meant for what follows
            child.why = child.killed_at = None
            child.has_begun = False
        if notice.word == "took":
            child.claim = notice.claim
        elif notice.word == "began":
            child.has_begun = True
            child.due, child.timeout_s = notice.at + notice.timeout_s, notice.timeout_s
        elif notice.word == "ended":
            child.due = None
        elif notice.word == "over":
            child.claim = None

    def terminated(self, pid: int, why: str) -> None:
        """Celery ends this child."""
        self.hear()
        child = self._children.get(pid)
        if child is not None and child.due is not None and child.why is None:
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

    def kill_busy(self) -> None:
        """The worker ends: whoever still is at something is not waited for."""
        self.hear()
        for child in self._children.values():
            if child.claim is not None:
                self._kill(child, "lost")

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


class ParentRuntime(Runtime):
    """A ``Runtime`` that runs no body in its own process, and keeps its children's incarnations alive."""

    def __init__(
        self, wire: Wire, expire: Callable[[int, float], None], queues: Sequence[str], *parts: Any
    ) -> None:
        self._wire = wire
        self._expire = expire
        self._queues = tuple(queues)
        super().__init__(*parts)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        super().start(loop)
        self.liveness.kept = self.children.lives
        self.liveness.gone = functools.partial(self._post, self.children.disown)
        loop.add_reader(self._wire.fileno(), self.children.hear)
        self._spawn(self.children.watch())

    async def drain(self) -> None:
        """As for any worker. Celery then waits for its children: none may be left in a body, or without an answer."""
        try:
            await super().drain()
        finally:
            self.children.kill_busy()

    def terminated(self, pid: int, why: str) -> None:
        """Celery is about to end this child: ``terminated`` by an operator, or ``handed_back``. Called from any
        thread."""
        self._post(self.children.terminated, pid, why)

    # -- Office ----------------------------------------------------------------------------------------------

    async def held(self, worker: UUID, claim: Claim) -> Ready | None:
        """What a dead child had claimed, if it still is its own: a claim for the same incarnation changes nothing."""
        answer: asyncio.Future[Ready | None] = self._loop.create_future()
        wanted = ClaimWanted(claim, functools.partial(self._post, _settle, answer))
        while not answer.done():
            self._batcher.call(functools.partial(self._hold, worker, wanted))
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(answer), AGAIN_S)
        return answer.result()

    def _hold(self, worker: UUID, wanted: ClaimWanted) -> None:
        """Called in the engine thread; on an error, or a locked row, it is called again."""
        if wanted.is_settled:
            return
        results = Results()
        self._claims.acting_for(worker).run([wanted], results)
        self.carry_out(results)

    def bury(self, worker: UUID, claim: Claim | None, *, is_unclaimed: bool) -> None:
        """The end of a child's incarnation, and a turn of what it ran. ``is_unclaimed``: it may have died with a
        message and without the claim; then the hand-out is offered again. Nobody beats for it any more: a failure here
        costs a lease."""
        unclaimed = (claim.key,) if claim is not None and is_unclaimed else ()
        instance = claim.instance if claim is not None else None
        self._batcher.call(functools.partial(self._leave, worker, instance, Wake((), unclaimed)))

    def _leave(self, worker: UUID, instance: UUID | None, wake: Wake) -> None:
        try:
            with self.engine.begin() as connection:
                workers.leave(connection, worker)
        except Exception as error:
            if not session.is_away(error):
                raise
            logger.warning("The death of child %s could not be entered; its lease will run out.", worker)
        if instance is not None:
            self._batcher.arrive(instance, (wake,))

    def ask_revoked(self, running: Sequence[tuple[UUID, Claim]]) -> None:
        if running and not self._has_stopped:
            self._batcher.call(functools.partial(self._ask_of_all, running))

    def _ask_of_all(self, running: Sequence[tuple[UUID, Claim]]) -> None:
        with self.engine.connect() as connection:
            for worker, claim in running:
                if steps.revoked(connection, [claim], worker):
                    self._post(self.children.cancel, claim)

    # -- what differs from other workers ---------------------------------------------------------------------

    def _new_liveness(self) -> Liveness:
        return Liveness(self.engine, self.settings, self.clock, self._definitions, self._queues, self)

    def _new_attempts(self) -> Attempts:
        self.children = Children(self, self._threads, self._wire, self._expire)
        return self.children

    def _serves(self, handout: HandOut) -> bool:
        return False

    def _room(self, ending: int) -> Room:
        return Room(0, 0)


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


def _settle(future: asyncio.Future[Ready | None], ready: Ready | None) -> None:
    if not future.done():
        future.set_result(ready)
