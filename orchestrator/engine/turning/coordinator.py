"""Turns in batches: load, decide, save, for many instances in one flush.

Owns: the fast path (compare and set), the slow path (lock), holding what cannot go on, and what is to be done after
a commit. Does not own: deciding (``workflow.turn``), SQL (``store``), the thread it runs in (``batch``).

Everything here runs in the one engine thread of the process, outside of any event loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from uuid import UUID

from orchestrator.engine.running.placement import Placement, Ready
from orchestrator.engine.turning.holds import Holds
from orchestrator.engine.turning.lineage import Lineage, hints
from orchestrator.engine.turning.reading import Batch, Reading
from orchestrator.engine.turning.recovery import Recovery
from orchestrator.engine.turning.replays import Replays
from orchestrator.engine.turning.results import Results
from orchestrator.engine.turning.slots import Slots
from orchestrator.engine.turning.watch import Watch
from orchestrator.failpoints import reach
from orchestrator.ports import FOREVER, Clock, Gate, monotonic
from orchestrator.store import session, turns
from orchestrator.store.session import Engine
from orchestrator.telemetry import Listener
from orchestrator.workflow.deciding.turn import decide
from orchestrator.workflow.execution import Arrival, Execution, Outcome, Wake, Writes
from orchestrator.workflow.language.definition import Registry
from orchestrator.workflow.status import FINISHED, Status

logger = logging.getLogger(__name__)

LOCKED_S = 0.5
"""Nothing more is decided under a lock after this long; Postgres breaks it after two seconds."""
HINT_S = 2.0
"""Timers nearer than this are also kept in this process."""


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
        watch: Watch,
        done: Callable[[UUID, Outcome], None],
    ) -> None:
        self._engine = engine
        self._lane = lane
        self._replays = replays
        self._clock = clock
        self._recovery = recovery
        self._placement = placement
        self._done = done
        self._uncertain: set[UUID] = set()
        self._placed: dict[UUID, list[Ready]] = {}
        self._alone: set[UUID] = set()
        self._watch = watch
        self.listener: Listener | None = None
        """Told of what is committed, if anybody wants to hear."""
        self._slots = Slots(lane, clock, gate)
        self._holds = Holds(engine, registry, clock, self._slots, done)
        self._lineage = Lineage(engine, replays, clock, self._slots, self._forgotten)
        self._reading = Reading(
            registry, replays, clock, self._slots, recovery, placement, watch, self._holds, self._lineage,
            self._uncertain, self._alone, self._over, self._forgotten,
        )  # fmt: skip

    # -- a flush -------------------------------------------------------------------------------------------

    def run(self, batch: Batch) -> Results:
        """Run one turn of each instance. Never raises for one instance's sake; what Postgres did not take is in
        ``repeat``."""
        results, began = Results(), monotonic()
        self._replays.trim()
        self._placement.begin(sum(isinstance(a, Outcome) for some in batch.values() for a in some))
        self._placed.clear()
        self._slots.begin()
        alone = [instance for instance in batch if instance in self._alone] if len(batch) > 1 else []
        shared = {i: a for i, a in batch.items() if i not in self._alone} if alone else batch
        try:
            for some in (shared, *({instance: batch[instance]} for instance in alone)):
                self._run(some, results)
            self._holds.write(results)
            self._lineage.write(results)
            self._slots.write(results)
        except Exception as error:
            self._holds.drop()
            self._lineage.drop()
            self._forget(batch, results)
            if not session.is_away(error):
                raise
            logger.warning("Postgres went away during a flush: %s", error)
            results.uncertain = True
            return results
        if self.listener is not None:
            self.listener.flushed(len(batch), monotonic() - began)
        return results

    def _run(self, batch: Batch, results: Results) -> None:
        """From memory what is current there, from an unlocked read the rest: compare-and-set guards both. Only what
        lost a race lately is locked, and never an instance whose code is slow."""
        now = self._clock.now()
        locked = {
            i: a for i, a in batch.items() if self._replays.is_contended(i, now) and i not in self._alone
        }
        current = {i: a for i, a in batch.items() if i not in locked and self._is_current(i, a)}
        rest = {i: a for i, a in batch.items() if i not in locked and i not in current}
        lost = self._fast({**current, **self._refresh(rest, results)}, now, results)
        for instance, arrivals in lost.items():
            if instance in self._alone:
                results.repeat[instance] = batch[instance]
            else:
                locked[instance] = batch.get(instance, arrivals)
        if locked:
            self._slow(locked, results)

    def _is_current(self, instance: UUID, arrivals: list[Arrival]) -> bool:
        """Whether the replay in memory is all that these arrivals need."""
        execution = self._replays.get(instance)
        return (
            execution is not None
            and execution.status in (Status.RUNNING, Status.ROLLING_BACK)
            and instance not in self._uncertain
            and not any(isinstance(arrival, Wake) for arrival in arrivals)
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
            self._refused(error, batch, results, all_writes)
            return None

    def _refused(
        self, error: Exception, batch: Batch, results: Results, all_writes: Iterable[Writes] = ()
    ) -> None:
        """The database refused the flush: repeat it, one by one if its data are to blame."""
        for instance in batch:
            self._replays.drop(instance)
        if session.is_contention(error):
            # Somebody may hold the id of a child for as long as he likes: the others must not wait for him.
            self._alone.update(writes.id for writes in all_writes if writes.children)
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
                self._replays.drop(instance)
                self._holds.add(instance, arrivals, error)

    # -- reading -------------------------------------------------------------------------------------------

    def _refresh(self, batch: Batch, results: Results) -> Batch:
        """Build or bring up to date from an unlocked read; what may be decided now, with what fresh rows tell."""
        if not batch:
            return batch
        with self._lane.connection() as connection:
            stored = self._reading.load(connection, batch)
        return self._reading.bring_up(batch, stored, results)

    def _slow(self, batch: Batch, results: Results) -> None:
        """Replays are built before; then lock, read what came since, decide and write. No lock is held for long."""
        self._refresh(batch, results)
        batch = {
            i: a
            for i, a in batch.items()
            if self._replays.get(i) is not None and not self._slots.is_denied(i)
        }
        if not batch:
            return
        try:
            with self._engine.begin() as connection:
                locked = turns.lock(connection, list(batch))
                until = monotonic() + LOCKED_S
                results.repeat.update((i, a) for i, a in batch.items() if i not in locked)
                results.skipped = results.skipped or len(locked) < len(batch)
                batch = {i: a for i, a in batch.items() if i in locked}
                stored = self._reading.load(connection, batch)
                batch = self._reading.bring_up(batch, stored, results, until)
                decided = self._decide(batch, self._clock.now(), results, until)
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

    # -- deciding ------------------------------------------------------------------------------------------

    def _decide(
        self, batch: Batch, now: float, results: Results, until: float = FOREVER
    ) -> dict[UUID, tuple[Writes, Execution]]:
        decided: dict[UUID, tuple[Writes, Execution]] = {}
        for instance, arrivals in batch.items():
            execution = self._replays.get(instance)
            assert execution is not None
            if monotonic() > until:
                results.repeat[instance] = arrivals
                continue
            alarm_at, seq = execution.alarm_at, execution.seq
            try:
                with self._watch.over(instance, execution.workflow, self._alone.add):
                    writes = decide(execution, arrivals, now)
            except BaseException as error:  # workflow code may raise anything; this thread serves all others
                self._replays.drop(instance)
                self._holds.add(instance, arrivals, error, seq)
                continue
            self._placed[instance] = self._placement.place(writes, execution, now)
            # An ordinary turn never moves an alarm later, also not one that somebody else has set meanwhile.
            woken = alarm_at <= now or any(isinstance(arrival, Wake) for arrival in arrivals)
            rests = execution.status in FINISHED or execution.status is Status.PAUSED
            writes.sets_alarm = woken or rests
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
            if cut.status == turns.TAKEN:
                results.repeat.setdefault(writes.id, []).append(Wake())
                continue
            row = execution.open[cut.key]
            row.status = "cancelling" if cut.status == "cancelling" else "cancelled"
            row.fence, row.worker, row.claimed_at = cut.fence, cut.worker, cut.claimed_at
            execution.keep(row)
        self._after(writes, execution, arrivals, results)

    def _after(self, writes: Writes, execution: Execution, arrivals: list[Arrival], results: Results) -> None:
        """Effects of a turn that is committed."""
        instance = writes.id
        self._uncertain.discard(instance)
        self._holds.forget(instance)
        left = {id(a) for a in writes.left}
        for arrival in arrivals:
            if isinstance(arrival, Outcome) and id(arrival) not in left:
                self._done(instance, arrival)
        if self.listener is not None:
            ended = writes.status if writes.ended_at is not None else None
            since, failed = writes.expected_seq, len(writes.attempts)
            self.listener.turned(execution.workflow, since, writes.steps.values(), failed, ended)
        results.changed.append(instance)
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
        if writes.reads_relatives:
            results.repeat.setdefault(instance, []).append(Wake())
        if writes.children or writes.hints:
            results.hints.extend(hints([writes]))
        if execution.status in FINISHED:
            results.news.append(instance)
            self._replays.drop(instance)
            self._forgotten(instance)
        else:
            nearest = min(execution.due.values(), default=None)
            is_held = execution.status in (Status.WAITING_FOR_PAUSE, Status.PAUSED)
            if nearest is not None and nearest < self._clock.now() + HINT_S and not is_held:
                results.timers.append((instance, nearest))
        self._slots.went(writes, execution)

    # -- what cannot go on ---------------------------------------------------------------------------------

    def _over(self, instance: UUID, arrivals: Iterable[Arrival]) -> None:
        """Finished or deleted: what still arrives can never be recorded."""
        self._replays.drop(instance)
        self._forgotten(instance)
        for arrival in arrivals:
            if isinstance(arrival, Outcome):
                self._done(instance, arrival)

    def _forgotten(self, instance: UUID) -> None:
        """This process has nothing to do with the instance any more."""
        self._uncertain.discard(instance)
        self._alone.discard(instance)
        self._placement.forget(instance)
        self._holds.forget(instance)

    def block(self, failures: Iterable[tuple[UUID, BaseException]], results: Results) -> None:
        """Hold instances that this process's code cannot run."""
        for instance, error in failures:
            self._replays.drop(instance)
            self._holds.add(instance, (), error)
        self._slots.begin()
        self._holds.write(results)
        self._slots.write(results)

    def settle(self, results: Results) -> None:
        """Tell the gate what the flush came to; the last of its effects, since it may take a while."""
        self._slots.settle(results)

    def _forget(self, batch: Batch, results: Results) -> None:
        """The outcome of a flush is unknown: nothing fed may be trusted; everything is done again, from rows."""
        for instance, arrivals in batch.items():
            self._replays.drop(instance)
            self._uncertain.add(instance)
            results.repeat[instance] = arrivals
