"""The engine of one worker process: the engine thread, attempts, liveness, and the hints between them.

Owns: putting the parts together, starting them and shutting them down in order. Does not own: Celery (``dispatch``
holds one of these per worker) nor the control plane.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any
from uuid import UUID

from orchestrator.engine.batch import Batcher
from orchestrator.engine.claims import Claims, ClaimWanted
from orchestrator.engine.drawing import Drawing
from orchestrator.engine.liveness import Liveness
from orchestrator.engine.running.attempts import Attempts
from orchestrator.engine.running.placement import Placement, Ready, Room
from orchestrator.engine.running.threads import Threads
from orchestrator.engine.turning.coordinator import Coordinator
from orchestrator.engine.turning.loading import Limits
from orchestrator.engine.turning.recovery import Recovery
from orchestrator.engine.turning.replays import Replays
from orchestrator.engine.turning.results import Results
from orchestrator.engine.turning.watch import Watch
from orchestrator.ports import Dispatcher, Gate, HandOut, MonotonicClock
from orchestrator.settings import Settings
from orchestrator.store import steps
from orchestrator.store.session import Lane, connect
from orchestrator.store.steps import Claim
from orchestrator.workflow import codec
from orchestrator.workflow.execution import Outcome, Wake
from orchestrator.workflow.language.definition import Registry

logger = logging.getLogger(__name__)

REVOKED_S = 1.0
"""How often a worker asks whether what it runs is still its own."""
CANCEL_S = 5.0
"""How long cancelled bodies may take to end at shutdown."""


class PlacedTasks:
    """How attempts placed here are run; ``dispatch`` makes Celery tasks of them."""

    async def run(self, ready: Ready, start: Callable[[Ready], Coroutine[Any, Any, str]]) -> str:
        """Run ``start(ready)``."""
        return await start(ready)


class Runtime:
    """One per worker process. ``start`` and the coroutines belong to the event loop; the rest is thread-safe."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        dispatcher: Dispatcher,
        gate: Gate,
        tasks: PlacedTasks | None = None,
    ) -> None:
        self._tasks = tasks or PlacedTasks()
        self.settings = settings
        self.registry = registry
        self.clock = MonotonicClock()
        self.engine = connect(settings.database_url, pool_size=4, turns=True)
        self._lane = lane = Lane(self.engine)
        self._dispatcher = dispatcher
        self._replays = Replays(
            settings.cached_replays,
            Limits(
                settings.max_steps,
                settings.max_payload_bytes,
                settings.max_state_bytes,
                settings.success_retention,
                settings.error_retention,
                settings.retention_limit,
            ),
        )
        self._recovery = recovery = Recovery(
            settings.queue, settings.lease, dispatcher.backlog, dispatcher.destination
        )
        placement = Placement(
            settings.queue, lambda: self.liveness.id, self._room, dispatcher.backlog, lambda: self.liveness.sharing,
        )  # fmt: skip
        self._watch = Watch()
        self._coordinator = Coordinator(
            self.engine, lane, registry, self._replays, self.clock, gate, recovery, placement, self._watch,
            self._recorded,
        )  # fmt: skip
        self.liveness = self._new_liveness()
        self._coordinator.listener = self.liveness.totals
        self.liveness.drawing = Drawing(self.engine, settings.account, registry)
        self._claims = Claims(
            lane, registry, self._replays, self._coordinator, self.clock, recovery, lambda: self.liveness.id
        )
        self._batcher = Batcher(self._coordinator, self._claims, self)
        self._reports: dict[tuple[UUID, int], asyncio.Future[None]] = {}
        self._released: deque[Claim] = deque()
        self._wanted: list[ClaimWanted] = []
        self._arrived: list[tuple[UUID, Outcome]] = []
        """What attempts ask of the engine thread, until the loop has gone through all that is ready now."""
        self._may_claim = asyncio.Event()
        self._calls: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._is_rung = False
        self._closing = self._has_stopped = False
        self._has_begun = False
        self._is_up: bool | None = None
        self.on_up: Callable[[bool], None] = lambda is_up: None
        """Told whenever this worker comes to be able to claim, or no longer is. Called from any thread."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start everything; called in the loop's thread while it runs."""
        self._loop = loop
        self._threads = Threads(self.settings.threads, loop)
        self.attempts = self._new_attempts()
        self._background: set[asyncio.Future[Any]] = set()
        self._dispatcher.backlog(self.settings.queue)  # from now on it is known
        self.liveness.start()
        self._spawn(self._watch_revoked())

    def _new_liveness(self) -> Liveness:
        return Liveness(
            self.engine, self.settings, self.clock, self._definitions, (self.settings.queue,), self
        )

    def _new_attempts(self) -> Attempts:
        """Called in the loop."""
        return Attempts(self, self._threads, self.settings.max_payload_bytes)

    # -- hints that come in --------------------------------------------------------------------------------

    async def step(self, instance: UUID, key: str, fence: int) -> str:
        """Run one attempt, if it can be claimed here."""
        return await self.attempts.run(Claim(instance, key, fence))

    def coordinate(self, instances: Iterable[UUID]) -> None:
        """Run a turn of each of these."""
        for instance in instances:
            self._batcher.arrive(instance, (Wake(),))

    def refused(self, handout: HandOut, outcome: Outcome) -> None:
        """A hand-out that can never be sent: the attempt has ended with ``outcome``. Called from any thread."""
        self._batcher.arrive(handout.instance, (outcome,))

    def waiting(self) -> int:
        """Instances whose turn has yet to be run here."""
        return self._batcher.waiting

    def wake_at(self, wakes: Iterable[tuple[UUID, float]]) -> None:
        """Run a turn of each instance at its moment. Called from any thread."""
        self._post(self._set_timers, list(wakes))

    async def drain(self) -> None:
        """Shut down in order (protocols §18): start nothing, let bodies run for the grace, then cancel the async
        ones and hand them back, flush, sign off."""
        self._closing = True
        self.attempts.closing = True
        await self._caught_up()
        if not await self.attempts.settled(self.settings.shutdown_grace):
            logger.warning("Handing back %d attempts that are still running.", self.attempts.active)
            self.attempts.cancel_all("handed_back")
            await self.attempts.settled(CANCEL_S)
            for claim in self.attempts.bodies:  # in threads that do not listen; they end with the process
                handed_back = Outcome(claim.key, claim.fence, loss="handed_back", worker=self.liveness.id)
                self._batcher.arrive(claim.instance, (handed_back,))
        await self._loop.run_in_executor(None, self._stop)
        for recorded in list(self._reports.values()):  # whoever still waits for what nobody writes any more
            _settle(recorded, None)

    async def _caught_up(self) -> None:
        """Let the flush that is under way end, and its bodies begin: it was decided before this worker was closing."""
        reached: asyncio.Future[None] = self._loop.create_future()
        self._batcher.call(lambda: self._post(_settle, reached, None))
        await asyncio.wait((reached,), timeout=self.settings.shutdown_grace)

    def hand_back(self) -> None:
        """Cancel every body and put its attempt back, uncounted. Called in the loop."""
        self.attempts.cancel_all("handed_back")

    def _stop(self) -> None:
        self._has_stopped = True
        self._watch.stop()
        if self._batcher.stop(CANCEL_S):
            self._lane.close()
        self.liveness.stop(leave=True)
        self.engine.dispose()

    # -- Desk: what attempts ask of the engine thread --------------------------------------------------------

    async def claim(self, claim: Claim) -> Ready | None:
        await self._may_claim.wait()
        answer: asyncio.Future[Ready | None] = self._loop.create_future()
        self._ask()
        self._wanted.append(ClaimWanted(claim, functools.partial(self._post, _settle, answer)))
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:  # nobody is there to run it any more
            answer.add_done_callback(
                lambda answer: self.release(claim) if answer.result() is not None else None
            )
            raise

    def release(self, claim: Claim) -> None:
        """Put a claim back unrun. What is lost on the way comes back by its deadline."""
        self._released.append(claim)
        self._batcher.call(self._unclaim)

    def _unclaim(self) -> None:
        """Called in the engine thread."""
        released = [self._released.popleft() for _ in range(len(self._released))]
        if not released:
            return
        try:
            with self.engine.begin() as connection:
                steps.unclaim(connection, released, self.liveness.id)
        except Exception:
            self._released.extend(released)
            self._batcher.call(self._unclaim)
            raise

    async def report(self, claim: Claim, outcome: Outcome) -> None:
        """Hand in an outcome; returns when it is recorded, or never can be. Who is cancelled meanwhile no longer
        waits; the outcome is recorded all the same."""
        if self._has_stopped:
            return
        recorded = self._loop.create_future()
        self._reports[claim.instance, id(outcome)] = recorded
        self._ask()
        self._arrived.append((claim.instance, outcome))
        await recorded

    def _ask(self) -> None:
        """Have the engine thread told at the end of this round of the loop. Told one by one it would begin with the
        first alone, and both threads would fight for the interpreter; so all bodies of a round share a flush."""
        if not (self._wanted or self._arrived):
            self._loop.call_soon(self._told)

    def _told(self) -> None:
        wanted, self._wanted = self._wanted, []
        arrived, self._arrived = self._arrived, []
        self._batcher.take(wanted, arrived)

    def _recorded(self, instance: UUID, outcome: Outcome) -> None:
        """Called in the engine thread."""
        recorded = self._reports.pop((instance, id(outcome)), None)
        if recorded is not None:
            self._post(_settle, recorded, None)

    # -- Effects: what follows a commit; called in the engine thread -----------------------------------------

    def carry_out(self, results: Results) -> None:
        away = [h for h in results.local if not self._serves(h)]
        results.local = [h for h in results.local if h not in away]
        if results.handouts or away:
            self._dispatcher.steps([self._addressed(h) for h in (*results.handouts, *away)])
        if results.hints:
            self._dispatcher.coordinate(list(dict.fromkeys(results.hints)))
        if results.news:
            self._dispatcher.announce(results.news)
        self._dispatcher.changed(results.changed)
        if any((results.cancels, results.local, results.mine, results.timers, results.placed, results.asked)):
            self._post(self._carry_on, results)

    def _serves(self, handout: HandOut) -> bool:
        """Whether a hand-out that was lost on its way may run here: its queue is ours, and there is room."""
        is_ours = handout.queue in ("", self.settings.queue)
        return is_ours and self.attempts.active < self.settings.concurrency

    def _addressed(self, h: HandOut) -> HandOut:
        if h.queue or h.signature is not None:
            return h
        return HandOut(h.instance, h.key, h.fence, self.settings.queue, h.workflow, h.label)

    def _carry_on(self, results: Results) -> None:
        """In the loop: tell bodies to stop, run what was lost on its way, keep short timers."""
        for ready in results.placed:
            self._spawn(self._tasks.run(ready, self.attempts.start))
        for asked, failure in results.asked:
            self._spawn(self.attempts.answer(asked, failure))
        for instance, key, fence in results.cancels:
            self.attempts.cancel(Claim(instance, key, fence))
        for handout in (*results.mine, *results.local):
            claim = Claim(handout.instance, handout.key, handout.fence)
            if not self._closing:
                self._spawn(self.attempts.run(claim))
            elif handout in results.mine and not self.attempts.holds(claim):
                self.release(claim)
        self._set_timers(results.timers)

    def _set_timers(self, timers: Iterable[tuple[UUID, float]]) -> None:
        now = self.clock.now()
        for instance, due_at in timers:
            if due_at <= now:
                self.coordinate((instance,))
            else:
                self._loop.call_later(due_at - now + 0.0005, self.coordinate, (instance,))

    # -- Life: what liveness tells; called in its thread ------------------------------------------------------

    def reborn(self) -> None:
        self._batcher.call(self._replays.clear)
        self._post(self.attempts.cancel_all, "lost")

    def suspended(self) -> None:
        self._post(self._turn, False)

    def resumed(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._batcher.start()  # no turn before the database's clock is known
        self._post(self._turn, True)

    def _turn(self, is_up: bool) -> None:
        """In the loop: claim, or claim nothing and cancel what runs."""
        if is_up:
            self._may_claim.set()
        else:
            self._may_claim.clear()
            self.attempts.cancel_all("lost")
        if is_up is not self._is_up:
            self._is_up = is_up
            self.on_up(is_up)

    def stuck_s(self) -> float:
        return self._watch.stuck_s()

    def ping(self, answered: Callable[[], None]) -> None:
        self._post(answered)

    # -- inside ---------------------------------------------------------------------------------------------

    def _definitions(self) -> list[tuple[str, str, str, str]]:
        found = []
        for name, version in self.registry.known():
            definition = self.registry.get(name, version)
            names = ("max_steps", "concurrency", "creation_rate")
            options = codec.encode(
                {name: getattr(definition.options, name) for name in names}, what="the options"
            )
            found.append((name, version, definition.source_hash, options))
        return found

    async def _watch_revoked(self) -> None:
        """Ask, while bodies run, which of them were cancelled from elsewhere, and stand still if nobody answers."""
        while not self._closing:
            await asyncio.sleep(REVOKED_S)
            if self.liveness.is_overdue:
                self.suspended()
                continue
            running = self.attempts.next_bodies()
            if running:
                self._batcher.call(functools.partial(self._ask_revoked, running))

    def _ask_revoked(self, running: list[Claim]) -> None:
        with self.engine.connect() as connection:
            gone = steps.revoked(connection, running, self.liveness.id)
        for claim in gone:
            self._post(self.attempts.cancel, claim)

    def _room(self, ending: int) -> Room:
        """What may be placed here when ``ending`` attempts are over. Asked by the engine thread: an estimate."""
        is_well = self.liveness.is_registered and not self.liveness.is_overdue
        if self._closing or self.settings.delivery != "in_place" or not is_well:
            return Room(0, 0)
        bodies = self.settings.concurrency - self.attempts.active + ending
        return Room(bodies, self.settings.threads - self._threads.busy)

    def _post(self, function: Callable[..., Any], *args: Any) -> None:
        """Have the loop call ``function``. What gathers before it does shares one wake-up."""
        self._calls.append((function, args))
        if not self._is_rung:
            self._is_rung = True
            try:
                self._loop.call_soon_threadsafe(self._answer)
            except RuntimeError:
                logger.debug("The event loop is closed; %r is dropped.", function)

    def _answer(self) -> None:
        self._is_rung = False
        while self._calls:
            function, args = self._calls.popleft()
            try:
                function(*args)
            except Exception:
                logger.exception("A call into the event loop failed: %r", function)

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _settle(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
