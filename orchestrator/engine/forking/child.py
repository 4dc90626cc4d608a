"""The engine of one child of a prefork worker: a worker that runs one body at a time and tells its parent.

Owns: the child's incarnation, and what it does not do itself: beat, time out, be cancelled. Does not own: any of the
engine's work, nor the end of a body that does not listen (``parent`` kills the process).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from uuid import UUID

from orchestrator.engine.forking.notices import Notice, Wire, Word
from orchestrator.engine.liveness import Liveness
from orchestrator.engine.running.attempts import Attempts
from orchestrator.engine.running.bodies import Body, call_of
from orchestrator.engine.running.placement import Ready, Room
from orchestrator.engine.runtime import Runtime
from orchestrator.ports import HandOut, monotonic
from orchestrator.store import session, workers
from orchestrator.store.steps import Claim
from orchestrator.telemetry import written
from orchestrator.workflow.language.config import StepConfig

logger = logging.getLogger(__name__)

NO_LIMIT_S = 10 * 365 * 86400.0
"""A body's timeout in a child: it is the parent that keeps time."""
AGAIN_S = 0.5
"""Between tries while Postgres is away."""

Tell = Callable[..., None]


class ChildLiveness(Liveness):
    """An incarnation kept alive by the parent's heartbeats: a body may hold the interpreter for hours. The child only
    looks, before each attempt, whether it was declared dead, and what time it is."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._looking = threading.Lock()
        self.looked_at = 0.0
        """When this child last renewed its row itself, on the monotonic clock; 0 before it has."""

    def start(self) -> None:
        """No thread."""

    def stop(self, *, leave: bool) -> None:
        if leave:
            self.leave()

    @property
    def is_overdue(self) -> bool:
        return False

    def look(self) -> None:
        """Enter this child, or make sure that it is not taken for dead; then it comes back as a new one. Called from
        any thread."""
        with self._looking:
            with self._engine.begin() as connection:
                before, counted = monotonic(), self.totals.series() if self.is_registered else {}
                now = workers.heartbeat(connection, self.id, written(counted)) if self.is_registered else None
                if now is None:
                    if self.is_registered:
                        logger.error("Child %s was declared dead; it comes back as a new one.", self.id)
                        self.incarnation = self._new()
                        self.totals.reborn()
                        self.is_registered, counted = False, {}
                    now = self._enter(connection)
                after = monotonic()
            self.totals.told(counted)
            self._clock.adjust(now, (before + after) / 2)
            self.is_registered = True
            self.looked_at = before
        self._life.resumed()


class ChildAttempts(Attempts):
    """Runs the one attempt of the moment; ``tell`` lets the parent know how far it is. ``queue`` is the account's."""

    tell: Tell
    queue: str

    async def run(self, claim: Claim) -> str:
        self.tell("took", claim)
        try:
            return await super().run(claim)
        finally:
            self.tell("over", claim)

    async def _run(self, ready: Ready, body: Body, config: StepConfig) -> Any:
        claim, row = ready.claimed.claim, ready.claimed.row
        self.tell("began", claim, config.timeout_s, config.queue or self.queue, row.handed_at or 0.0)
        try:
            return await body.run(call_of(ready, config, body.flag), NO_LIMIT_S)
        finally:
            self.tell("ended", claim)


class ChildRuntime(Runtime):
    """A ``Runtime`` whose steps come from the parent and whose hand-outs are all published."""

    def __init__(self, wire: Wire, queues: Sequence[str], *parts: Any) -> None:
        self._wire = wire
        self._queues = tuple(queues)
        self._told_id: UUID | None = None
        self._looking = asyncio.Lock()
        super().__init__(*parts)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        super().start(loop)
        self._spawn(self._look())

    async def step(self, instance: UUID, key: str, fence: int) -> str:
        claim = Claim(instance, key, fence)
        self._tell("got", claim)  # before anything that may take long: a shutdown must not overlook it
        try:
            await self._look()
            return await super().step(instance, key, fence)
        finally:
            self._tell("over", claim)

    def coordinate(self, instances: Iterable[UUID]) -> None:
        if monotonic() - self._own.looked_at > self.settings.heartbeat:
            self._batcher.call(self._is_known_at_once)  # before the turn: nothing else tells a child the time
        super().coordinate(instances)

    async def _look(self) -> None:
        """Be known to Postgres and to the parent, however long that takes."""
        async with self._looking:
            while True:
                if await self._loop.run_in_executor(None, self._is_known):
                    return
                await asyncio.sleep(AGAIN_S)

    def _is_known_at_once(self) -> None:
        self._is_known()

    def _is_known(self) -> bool:
        """Look once; false while Postgres is away. Called from any thread."""
        try:
            self._own.look()
        except Exception as error:
            if not (session.is_away(error) or session.is_missing_schema(error)):
                raise
            logger.warning("A child waits for Postgres: %s", error)
            return False
        if self._told_id != self.liveness.id:
            self._told_id = self.liveness.id
            self._tell("up")
        return True

    @property
    def _own(self) -> ChildLiveness:
        assert isinstance(self.liveness, ChildLiveness)
        return self.liveness

    def _tell(
        self,
        word: Word,
        claim: Claim | None = None,
        timeout_s: float = 0.0,
        queue: str = "",
        handed_at: float = 0.0,
    ) -> None:
        own = self._own
        self._wire.tell(
            Notice(os.getpid(), own.id, word, claim, monotonic(), timeout_s, own.looked_at, queue, handed_at)
        )

    def _new_liveness(self) -> Liveness:
        return ChildLiveness(self.engine, self.settings, self.clock, self._definitions, self._queues, self)

    def _new_attempts(self) -> Attempts:
        attempts = ChildAttempts(self, self._threads, self.settings.max_payload_bytes)
        attempts.tell, attempts.queue = self._tell, self.settings.queue
        return attempts

    def _serves(self, handout: HandOut) -> bool:
        return False

    def _room(self, ending: int) -> Room:
        return Room(0, 0)

    async def _watch_revoked(self) -> None:
        """The parent does."""
