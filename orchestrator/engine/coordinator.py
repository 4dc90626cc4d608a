"""Turns in batches: load, decide, save, for many instances in one flush.

Owns: the fast path (compare and set), the slow path (lock), holding what cannot go on, and what is to be done after
a commit. Does not own: deciding (``workflow.turn``), SQL (``store``), the thread it runs in (``batch``).

Everything here runs in the one engine thread of the process, outside of any event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from uuid import UUID

from orchestrator.engine import loading
from orchestrator.engine.recovery import Recovery
from orchestrator.engine.replays import Replays
from orchestrator.engine.results import Results
from orchestrator.engine.running.placement import Placement, Ready
from orchestrator.errors import OrchestratorError, UnknownWorkflow
from orchestrator.failpoints import reach
from orchestrator.ports import Clock, Gate, busy
from orchestrator.store import histories, session, turns
from orchestrator.store.histories import Known, Stored
from orchestrator.store.session import Connection, Engine
from orchestrator.workflow import codec
from orchestrator.workflow.execution import Arrival, Execution, Outcome, Wake, Writes
from orchestrator.workflow.holding import hold
from orchestrator.workflow.language.definition import Definition, Registry
from orchestrator.workflow.status import FINISHED, Status
from orchestrator.workflow.turn import decide

logger = logging.getLogger(__name__)

SLOW_S = 0.1
"""A turn that took longer runs alone from then on, and is logged."""
BLOCKED_S, BLOCKED_MAX_S = 60.0, 600.0
HINT_S = 2.0
"""Timers nearer than this are also kept in this process."""

Batch = Mapping[UUID, list[Arrival]]


class Coordinator:
    """Runs turns. ``done`` is called for each outcome that is recorded, or can never be."""

    def __init__(
        self,
        engine: Engine,
        lane: session.Lane,
        registry: Registry,
        replays: Replays,
        clock: Clock,
        gate: Gate,
        recovery: Recovery,
        placement: Placement,
        done: Callable[[UUID, Outcome], None],
    ) -> None:
        self._engine = engine
        self._lane = lane
        self._registry = registry
        self._replays = replays
        self._clock = clock
        self._gate = gate
        self._recovery = recovery
        self._placement = placement
        self._done = done
        self._uncertain: set[UUID] = set()
        self._fresh: set[UUID] = set()
        self._placed: dict[UUID, list[Ready]] = {}
        self._alone: set[UUID] = set()
        self._holds: dict[UUID, int] = {}
        self._to_hold: list[tuple[UUID, Iterable[Arrival], BaseException]] = []

    # -- a flush -------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> Results:
        """Run one turn of each instance. Never raises for one instance's sake; what Postgres did not take is in
        ``repeat``."""
        results = Results()
        self._placement.begin()
        self._placed.clear()
        alone = [instance for instance in batch if instance in self._alone] if len(batch) > 1 else []
        shared = {i: a for i, a in batch.items() if i not in self._alone} if alone else batch
        try:
            for some in (shared, *({instance: batch[instance]} for instance in alone)):
                self._run(some, results)
            self._hold_all(results)
        except Exception as error:
            self._to_hold.clear()
            self._forget(batch, results)
            if not session.is_away(error):
                raise
            logger.warning("Postgres went away during a flush: %s", error)
            results.uncertain = True
        return results

    def _run(self, batch: Batch, results: Results) -> None:
        now = self._clock.now()
        batch = self._prepare(batch, now, results)
        fast = {i: a for i, a in batch.items() if self._is_fast(i, a, now)}
        slow = {i: a for i, a in batch.items() if i not in fast}
        slow.update(self._fast(fast, now, results))
        if slow:
            self._slow(slow, results)

    def _is_fast(self, instance: UUID, arrivals: list[Arrival], now: float) -> bool:
        execution = self._replays.get(instance)
        return (
            execution is not None
            and execution.status in (Status.RUNNING, Status.ROLLING_BACK)
            and (instance in self._fresh or instance not in self._uncertain)
            and not self._replays.is_contended(instance, now)
            and (instance in self._fresh or not any(isinstance(arrival, Wake) for arrival in arrivals))
        )

    def _fast(self, batch: Batch, now: float, results: Results) -> dict[UUID, list[Arrival]]:
        """Decide from memory, write with compare-and-set; returns those that lost the race."""
        decided = self._decide(batch, now, results)
        if not decided:
            return {}
        written = self._write([writes for writes, _ in decided.values()], batch, results)
        if written is None:
            return {}
        lost: dict[UUID, list[Arrival]] = {}
        for instance, (writes, execution) in decided.items():
            if instance in written:
                self._committed(writes, execution, written[instance], batch[instance], results)
            else:
                self._replays.drop(instance)
                self._replays.lost_race(instance, now)
                lost[instance] = batch[instance]
        return lost

    def _write(
        self, all_writes: list[Writes], batch: Batch, results: Results
    ) -> dict[UUID, list[turns.Cut]] | None:
        """One statement, one commit. On contention or bad data nothing is written and ``None`` comes back."""
        try:
            with self._lane.connection() as connection:
                reach("turn.before_write")
                written = turns.commit(connection, all_writes)
            reach("turn.after_commit")
            return written
        except Exception as error:
            if session.is_away(error):
                raise
            self._refused(error, batch, results)
            return None

    def _refused(self, error: Exception, batch: Batch, results: Results) -> None:
        """The database refused the flush: repeat it, one by one if its data are to blame."""
        for instance in batch:
            self._replays.drop(instance)
        if session.is_contention(error):
            logger.info("A flush of %d instances met locks and is repeated: %s", len(batch), error)
            results.repeat.update(batch)
        elif len(batch) > 1:
            logger.warning(
                "A flush of %d instances was refused and is repeated one by one: %s", len(batch), error
            )
            for instance, arrivals in batch.items():
                self._slow({instance: arrivals}, results)
        else:
            for instance, arrivals in batch.items():
                logger.error("The turn of instance %s was refused: %s", instance, error)
                self._to_hold.append((instance, arrivals, error))

    # -- the slow path -------------------------------------------------------------------------------------

    def _slow(self, batch: Batch, results: Results) -> None:
        """Build what is missing from an unlocked read, then lock, read the rest, decide and write."""
        batch = self._prepare(batch, self._clock.now(), results)
        if not batch:
            return
        try:
            with self._engine.begin() as connection:
                locked = turns.lock(connection, list(batch))
                results.repeat.update((i, a) for i, a in batch.items() if i not in locked)
                results.skipped = results.skipped or len(locked) < len(batch)
                batch = {i: a for i, a in batch.items() if i in locked}
                decided = self._decide_locked(connection, batch, results)
                if decided:
                    reach("turn.before_write")
                    written = turns.commit(connection, [writes for writes, _ in decided.values()])
                    reach("turn.before_commit")
            reach("turn.after_commit")
        except Exception as error:
            if session.is_away(error):
                raise
            self._refused(error, batch, results)
            return
        for instance, (writes, execution) in decided.items():
            self._committed(writes, execution, written[instance], batch[instance], results)

    def _prepare(self, batch: Batch, now: float, results: Results) -> Batch:
        """Cold replays of what is not in the cache; instances that are gone, finished or unknown here drop out.

        What was read just now is as good as locked, while compare-and-set guards the write: the first turn of an
        instance needs no lock. What fresh rows tell is added to its arrivals.
        """
        self._fresh.clear()
        missing = [i for i in batch if self._replays.get(i) is None]
        if not missing:
            return batch
        with self._lane.connection() as connection:
            stored = histories.load(connection, [Known(i) for i in missing])
        ready = dict(batch)
        for instance in missing:
            arrivals = ready.pop(instance)
            found = stored.get(instance)
            if found is None or Status(found.status) in FINISHED:
                self._over(instance, arrivals)
            elif (definition := self._definition(found)) is not None:
                try:
                    execution = loading.build(found, definition)
                except BaseException as error:
                    self._to_hold.append((instance, arrivals, error))
                else:
                    self._replays.put(execution)
                    self._fresh.add(instance)
                    ready[instance] = [*arrivals, *self._told(found, execution, now, results)]
        return ready

    def _told(self, found: Stored, execution: Execution, now: float, results: Results) -> list[Arrival]:
        """What fresh rows tell about steps in flight."""
        uncertain = found.id in self._uncertain
        if uncertain:
            results.local.extend(self._placement.mine(found.rows, execution))
        wake = self._recovery.wake(found, execution, now, uncertain=uncertain)
        return [wake] if wake is not None else []

    def _definition(self, stored: Stored) -> Definition | None:
        """Today's code, or ``None``: an instance of other workflows is left to a worker that knows it."""
        try:
            return self._registry.get(stored.workflow, stored.version)
        except UnknownWorkflow:
            return None

    def _decide_locked(
        self, connection: Connection, batch: Batch, results: Results
    ) -> dict[UUID, tuple[Writes, Execution]]:
        executions = {i: e for i in batch if (e := self._replays.get(i)) is not None}
        stored = histories.load(connection, [loading.known(e) for e in executions.values()])
        now = self._clock.now()
        ready: dict[UUID, list[Arrival]] = {}
        queued = [i for i, s in stored.items() if self._needs_slot(s, batch[i])]
        granted = self._gate.acquire(queued) if queued else set()
        for instance, execution in executions.items():
            found = stored.get(instance)
            if found is None or found.run != execution.run or Status(found.status) in FINISHED:
                self._replays.drop(instance)
                if found is not None and found.run != execution.run:
                    results.repeat[instance] = batch[instance]
                else:
                    self._over(instance, batch[instance])
                continue
            if instance in queued and instance not in granted:
                continue
            try:
                loading.advance(execution, found)
            except BaseException as error:
                self._to_hold.append((instance, batch[instance], error))
                continue
            ready[instance] = [*batch[instance], *self._told(found, execution, now, results)]
        return self._decide(ready, now, results)

    def _needs_slot(self, stored: Stored, arrivals: list[Arrival]) -> bool:
        """Whether a turn of it must be granted. An outcome (of a blocked instance's body) is recorded anyway."""
        idle = stored.status in (Status.QUEUED, Status.WAITING)
        return idle and not any(isinstance(arrival, Outcome) for arrival in arrivals)

    # -- deciding ------------------------------------------------------------------------------------------

    def _decide(self, batch: Batch, now: float, results: Results) -> dict[UUID, tuple[Writes, Execution]]:
        decided: dict[UUID, tuple[Writes, Execution]] = {}
        for instance, arrivals in batch.items():
            execution = self._replays.get(instance)
            assert execution is not None
            began = busy()
            alarm_at = execution.alarm_at
            try:
                writes = decide(execution, arrivals, now)
            except BaseException as error:  # workflow code may raise anything; this thread serves all others
                self._to_hold.append((instance, arrivals, error))
                continue
            self._placed[instance] = self._placement.place(writes, execution, now)
            if busy() - began > SLOW_S:
                self._alone.add(instance)
                logger.warning("The turn of instance %s took %.0f ms.", instance, (busy() - began) * 1000)
            if writes.seq != writes.expected_seq or writes.alarm_at != alarm_at:
                decided[instance] = (writes, execution)
            else:
                self._after(writes, execution, arrivals, results)
        return decided

    def _committed(
        self,
        writes: Writes,
        execution: Execution,
        cuts: Iterable[turns.Cut],
        arrivals: list[Arrival],
        results: Results,
    ) -> None:
        for cut in cuts:
            row = execution.open[cut.key]
            row.status = "cancelling" if cut.status == "cancelling" else "cancelled"
            row.fence, row.worker, row.claimed_at = cut.fence, cut.worker, cut.claimed_at
            execution.keep(row)
        self._after(writes, execution, arrivals, results)

    def _after(self, writes: Writes, execution: Execution, arrivals: list[Arrival], results: Results) -> None:
        """Effects of a turn that is committed."""
        instance = writes.id
        self._uncertain.discard(instance)
        self._holds.pop(instance, None)
        left = {id(a) for a in writes.left}
        for arrival in arrivals:
            if isinstance(arrival, Outcome) and id(arrival) not in left:
                self._done(instance, arrival)
        results.placed.extend(self._placed.pop(instance, ()))
        fresh, lost = self._recovery.split(writes.handouts, writes.expected_seq)
        results.handouts.extend(fresh)
        results.local.extend(lost)
        results.cancels.extend((instance, key, fence) for key, fence in writes.cancelled)
        if writes.abandoned:
            logger.warning(
                "Instance %s (%s) returned while steps it never awaited were open; they were cancelled: %s",
                execution.replay.origin.name_id,
                execution.workflow,
                ", ".join(writes.abandoned),
            )
        if writes.left or writes.again:
            results.repeat.setdefault(instance, []).extend(writes.left)
        if execution.status in FINISHED:
            results.news.append(instance)
            self._alone.discard(instance)
            self._replays.drop(instance)
        else:
            nearest = min(execution.due.values(), default=None)
            if nearest is not None and nearest < self._clock.now() + HINT_S:
                results.timers.append((instance, nearest))
        if execution.status not in (Status.RUNNING, Status.ROLLING_BACK):
            self._gate.release([instance])

    # -- what cannot go on ---------------------------------------------------------------------------------

    def _over(self, instance: UUID, arrivals: Iterable[Arrival]) -> None:
        """Finished or deleted: what still arrives can never be recorded."""
        for arrival in arrivals:
            if isinstance(arrival, Outcome):
                self._done(instance, arrival)

    def block(self, failures: Iterable[tuple[UUID, BaseException]], results: Results) -> None:
        """Hold instances that this process's code cannot run."""
        self._to_hold.extend((instance, (), error) for instance, error in failures)
        self._hold_all(results)

    def _hold_all(self, results: Results) -> None:
        """Hold what failed in this flush, now that no transaction is open."""
        while self._to_hold:
            self._hold(*self._to_hold.pop(), results)

    def _hold(
        self, instance: UUID, arrivals: Iterable[Arrival], error: BaseException, results: Results
    ) -> None:
        """Record outcomes, feed nothing, mark the instance blocked; it is tried again, ever more rarely."""
        self._replays.drop(instance)
        outcomes = [arrival for arrival in arrivals if isinstance(arrival, Outcome)]
        count = self._holds[instance] = self._holds.get(instance, 0) + 1
        blocked = codec.encode_error(error)
        level = logging.WARNING if isinstance(error, OrchestratorError) else logging.ERROR
        logger.log(level, "Instance %s is blocked: %s", instance, error, exc_info=level == logging.ERROR)
        with self._engine.begin() as connection:
            if instance not in turns.lock(connection, [instance]):
                results.repeat.setdefault(instance, []).extend(outcomes)
                results.skipped = True
                return
            found = histories.load(connection, [Known(instance)]).get(instance)
            definition = self._definition(found) if found is not None else None
            if found is None or definition is None or Status(found.status) in FINISHED:
                return self._over(instance, outcomes)
            execution = loading.build_held(found, definition)
            now = self._clock.now()
            alarm_at = now + min(BLOCKED_MAX_S, BLOCKED_S * 2 ** (count - 1))
            writes = hold(execution, outcomes, blocked, alarm_at, now)
            turns.commit(connection, [writes])
        if writes.status is Status.WAITING:
            self._gate.release([instance])
        self._over(instance, outcomes)

    def _forget(self, batch: Batch, results: Results) -> None:
        """The outcome of a flush is unknown: nothing fed may be trusted; everything is done again, from rows."""
        for instance, arrivals in batch.items():
            self._replays.drop(instance)
            self._uncertain.add(instance)
            results.repeat[instance] = arrivals
