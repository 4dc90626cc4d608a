"""The engine of the parent of a prefork worker: it beats, wakes and turns like any worker, and its bodies are children.

Owns: what the children's keeper needs of an engine, and the order of a shutdown. Does not own: what is known of the
children and killing them (``children``), forking (Celery), nor what a child does (``child``).

A child has an incarnation of its own. When it dies, its row is deleted and the instance gets a turn, which sees a step
that runs on nobody: ``WorkerLost``, by the same path as for a worker on another machine. Only what the parent did on
purpose it must say itself, and it says so while the claim still is the dead child's.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from orchestrator.engine.claims import ClaimWanted
from orchestrator.engine.forking.children import Children
from orchestrator.engine.forking.notices import Wire
from orchestrator.engine.liveness import Liveness
from orchestrator.engine.running.attempts import Attempts
from orchestrator.engine.running.placement import Ready, Room
from orchestrator.engine.runtime import CANCEL_S, Runtime
from orchestrator.engine.turning.results import Results
from orchestrator.ports import HandOut
from orchestrator.store import session, steps, workers
from orchestrator.store.steps import Claim
from orchestrator.workflow.execution import Wake

logger = logging.getLogger(__name__)

AGAIN_S = 0.5
"""Between tries to read what a dead child ran."""


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
        """As for any worker, but that Celery then waits for its children: none may be left at an attempt, or come to
        one. Whoever does is killed, as long as that can be recorded, and later as well."""
        self._closing = True
        if not await self.children.settled(self.settings.shutdown_grace):
            logger.warning(
                "Killing %d children that are at an attempt; it is handed back.", self.children.active
            )
        self.children.leave()
        await self.children.settled(CANCEL_S)
        self.settings = replace(self.settings, shutdown_grace=0.0)  # it is used up
        await super().drain()

    def terminated(self, pid: int, why: str) -> None:
        """Celery is about to end this child: ``terminated`` by an operator, or ``handed_back``. Called from any
        thread."""
        self._post(self.children.terminated, pid, why)

    # -- Office ----------------------------------------------------------------------------------------------

    async def held(self, worker: UUID, claim: Claim) -> Ready | None:
        """What a dead child had claimed, if it still is its own: a claim for the same incarnation changes nothing."""
        answer: asyncio.Future[Ready | None] = self._loop.create_future()
        wanted = ClaimWanted(claim, functools.partial(self._post, _settle, answer))
        while not (answer.done() or self._has_stopped):
            tried: asyncio.Future[None] = self._loop.create_future()
            self._batcher.call(functools.partial(self._hold, worker, wanted, tried))
            while not (tried.done() or self._has_stopped):
                await asyncio.wait((tried,), timeout=AGAIN_S)
            await asyncio.wait((answer,), timeout=AGAIN_S)
        return answer.result() if answer.done() else None

    def _hold(self, worker: UUID, wanted: ClaimWanted, tried: asyncio.Future[None]) -> None:
        """Called in the engine thread; on an error, or a locked row, it is called again."""
        try:
            results = Results()
            self._claims.acting_for(worker).run([wanted], results)
            self.carry_out(results)
            self._coordinator.settle(results)
        finally:
            self._post(_settle, tried, None)

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

    def kept_at(self) -> float:
        """When the children's rows were last renewed by this process, on the monotonic clock."""
        return self.liveness.kept_at

    def handed(self, queue: str, handed_at: float) -> None:
        """A child runs what was handed out then to this queue: what was handed out long before has lost its message."""
        self._recovery.note(queue, handed_at)

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
        self.children = Children(self, self._threads, self.settings, self._wire, self._expire)
        return self.children

    def _serves(self, handout: HandOut) -> bool:
        return False

    def _room(self, ending: int) -> Room:
        return Room(0, 0)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
