"""One instance in memory: its rows as they would be stored, and what drives turns over them.

Owns: applying ``Writes`` the way storage does (compare and set on ``seq``, deciding what a cut means), claims,
bodies that run, a clock that stands still, and rebuilding an ``Execution`` cold from its rows. Does not own any
decision: those are ``turn.decide``'s.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID

from orchestrator.ports import FOREVER
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import redoing
from orchestrator.workflow.deciding.holding import Held, hold
from orchestrator.workflow.deciding.restarting import Restart, restart, restart_from
from orchestrator.workflow.deciding.turn import decide
from orchestrator.workflow.deciding.verbs import pause, resume, terminate
from orchestrator.workflow.execution import Arrival, AttemptRow, Execution, Outcome, Transition, Wake, Writes
from orchestrator.workflow.history import Began, Fact, InboxEvent, StepRow, facts
from orchestrator.workflow.language import binding
from orchestrator.workflow.language.commands import StepCall
from orchestrator.workflow.language.definition import Definition
from orchestrator.workflow.lifecycle import FailedRollback
from orchestrator.workflow.replay import Origin, Replay
from orchestrator.workflow.status import FINISHED, Status

START = 1_750_000_000.0
INSTANCE = UUID("01234567-89ab-7def-8123-456789abcdef")
WORKER = UUID("00000000-0000-7000-8000-000000000001")
TURNS_AT_ONCE = 400

seen: ContextVar[list[Any]] = ContextVar("seen")
"""What the code of the running replay was given, in order."""


@dataclass
class Driven:
    """An execution with what its code has seen."""

    execution: Execution
    seen: list[Any]

    @contextmanager
    def watched(self) -> Iterator[Execution]:
        token = seen.set(self.seen)
        try:
            yield self.execution
        finally:
            seen.reset(token)

    def discard(self) -> None:
        """End the replay, as a cache does with what it drops."""
        with self.watched() as execution:
            execution.replay.discard()


@dataclass
class World:
    """The committed state of one instance, a live execution over it, and its clock."""

    definition: Definition
    params: Any = None
    id: UUID = INSTANCE
    now: float = START
    max_steps: int | None = None
    max_payload_bytes: int = codec.MIB
    max_state_bytes: int | None = None
    # the row of the instance
    run: int = 1
    seed: int = 1
    status: Status = Status.RUNNING
    seq: int = 0
    alarm_at: float = START + 5
    started_at: float | None = None
    ended_at: float | None = None
    ended_seq: int | None = None
    ending: str | None = None
    output: str | None = None
    error: str | None = None
    rollback: str | None = None
    blocked: str | None = None
    state_bytes: int = 0
    # its other rows
    rows: dict[str, StepRow] = field(default_factory=dict)
    attempts: list[AttemptRow] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    past: list[FailedRollback] = field(default_factory=list)
    inbox: list[InboxEvent] = field(default_factory=list)
    # what is going on outside the database
    events_sent: int = 0
    bodies: dict[str, tuple[int, StepCall]] = field(default_factory=dict)
    """Claimed attempts that have not ended: key to fence and what is to be called."""
    told: set[tuple[str, int]] = field(default_factory=set)
    """Bodies that were told to stop."""
    offered: list[Any] = field(default_factory=list)
    """Every hand-out, in order."""
    turns: int = 0
    live: Driven | None = None
    before_turn: Callable[[tuple[Arrival, ...]], Callable[[Driven, Writes], None]] | None = None
    """Called before each turn; what it returns is called with the live execution and its writes."""

    # -- executions ----------------------------------------------------------------------------------------

    @property
    def finished(self) -> bool:
        return self.status in FINISHED

    def origin(self) -> Origin:
        params = codec.encode(self.params, what="params")
        return Origin(
            self.id, "it", self.run, params, START, self.max_steps, self.max_payload_bytes,
            self.max_state_bytes, self.seed,
        )  # fmt: skip

    def history(self) -> list[Fact]:
        """Every fact so far, from the rows."""
        if self.started_at is None:
            return []
        return [Began(0, self.started_at), *facts(self.rows.values(), ended_seq=self.ended_seq)]

    def replay(self, definition: Definition | None = None) -> Replay:
        return Replay(definition or self.definition, self.origin())

    def cold(self, definition: Definition | None = None) -> Driven:
        """A fresh execution, from nothing but the rows."""
        replay = self.replay(definition)
        execution = Execution(
            self.id, self.definition.name, self.definition.version, self.run, self.status, self.seq,
            self.alarm_at, replay, self.started_at, inbox=list(self.inbox), ending=self.ending,
            blocked=self.blocked, state_bytes=self.state_bytes,
        )  # fmt: skip
        driven = Driven(execution, [])
        try:
            with driven.watched():
                replay.feed(self.history())
        except Exception:
            driven.discard()
            raise
        for row in sorted(self.rows.values(), key=lambda row: row.started_seq):
            execution.keep(replace(row))
        return driven

    def evict(self) -> None:
        """Drop the live execution, as a cache does."""
        if self.live is not None:
            self.live.discard()
            self.live = None

    def current(self) -> Driven:
        """The live execution, made cold if there is none, with the inbox of now."""
        if self.live is None:
            self.live = self.cold()
        self.live.execution.inbox = list(self.inbox)
        return self.live

    # -- turns ---------------------------------------------------------------------------------------------

    def turn(self, *arrivals: Arrival) -> Writes:
        """Turns until nothing is left to do at once; returns the last one's writes."""
        for _ in range(TURNS_AT_ONCE):
            writes = self.one_turn(*arrivals)
            arrivals = tuple(writes.left)
            if not arrivals and not writes.again:
                return writes
        raise AssertionError("turns go on and on without anything arriving")

    def one_turn(self, *arrivals: Arrival) -> Writes:
        """One turn and its commit."""
        after = self.before_turn(arrivals) if self.before_turn is not None else None
        driven = self.current()
        if any(isinstance(arrival, Wake) for arrival in arrivals):
            self.refresh(driven.execution)
        with driven.watched() as execution:
            writes = decide(execution, arrivals, self.now)
        if after is not None:
            after(driven, writes)
        self.turns += 1
        assert self.commit(writes)
        return writes

    def refresh(self, execution: Execution) -> None:
        """Read again what others may have written without a turn: claims."""
        for row in execution.open.values():
            stored = self.rows[row.key]
            row.status, row.worker, row.claimed_at = stored.status, stored.worker, stored.claimed_at

    def held(self) -> Execution:
        """The instance without its code, as verbs and holds see it."""
        held = Execution(
            self.id, self.definition.name, self.definition.version, self.run, self.status, self.seq,
            self.alarm_at, Held(self.definition, self.origin()), self.started_at, ending=self.ending,
            blocked=self.blocked, state_bytes=self.state_bytes,
        )  # fmt: skip
        for row in self._in_order():
            held.keep(replace(row))
        return held

    def terminate(self, *, rollback: bool) -> Writes:
        """The verb: a turn without a replay, after which whoever holds one reads the rows again."""
        return self._steer(terminate(self.held(), self.now, rollback=rollback))

    def pause(self) -> Writes:
        return self._steer(pause(self.held(), self.now))

    def resume(self) -> Writes:
        """The verb; a slot is granted at once."""
        paused = [each.at for each in self.transitions if each.status == "paused"]
        return self._steer(resume(self.held(), self.now, paused[-1] if paused else None))

    def restart(self, key: str | None = None) -> Writes:
        """The verb, from the top or from a step, as ``store.records.restarts`` applies it."""
        held, rows = self.held(), [replace(row) for row in self._in_order()]
        if key is None:
            decided = restart(held, rows, self.now)
        else:
            paused = [each.at for each in self.transitions if each.status == "paused"]
            at = paused[-1] if paused else None
            decided = restart_from(held, rows, self.attempts, key, self.now, at)
        self.evict()
        self._cut(decided)
        return self._steer(decided.writes)

    def _cut(self, decided: Restart) -> None:
        for gone in decided.gone:
            del self.rows[gone]
            self.bodies.pop(gone, None)  # by revocation
        everything = decided.since == 0
        self.attempts = [a for a in self.attempts if a.key not in decided.gone and not everything]
        self.transitions = [t for t in self.transitions if t.seq < decided.since]
        self.inbox = []
        self.run, self.seed, self.status = decided.run, decided.seed, decided.writes.status
        self.output = self.error = self.rollback = self.ended_seq = None
        self.started_at = None if everything else self.started_at
        for key, row in decided.writes.steps.items():
            self.rows[key].finished_seq = row.finished_seq  # the one who may take an end back
            if row.status == "pending" and key in self.bodies and self.bodies[key][0] != row.fence:
                del self.bodies[key]

    def retry_rollback(self) -> Writes:
        return self._redo(redoing.retry(self.held(), self._in_order(), self.rollback, self.now))

    def skip_rollback(self, step: str, count: int = 1) -> Writes:
        return self._redo(redoing.skip(self.held(), self._in_order(), self.rollback, step, count, self.now))

    def _redo(self, decided: redoing.Redo) -> Writes:
        """A verb, as ``store.records.rollbacks`` applies it."""
        self.evict()
        for row in decided.past.handlers:
            del self.rows[row.key]
        self.past.append(decided.past)
        self.rollback, self.status = None, decided.writes.status
        return self._steer(decided.writes)

    def _steer(self, writes: Writes) -> Writes:
        """Commit a verb's writes, and have the turn they ask for. Whoever holds a replay learns of it from rows."""
        if writes.seq == writes.expected_seq:
            return writes
        self.evict()
        assert self.commit(writes)
        return self.turn() if writes.again else writes

    def hold(self, *outcomes: Outcome, error: Exception) -> Writes:
        """Block the instance with ``error``, recording these outcomes without its code."""
        self.evict()
        writes = hold(self.held(), outcomes, codec.encode_error(error), self.now + 60, self.now)
        assert self.commit(writes)
        return writes

    # -- storage -------------------------------------------------------------------------------------------

    def commit(self, writes: Writes) -> bool:
        """Apply the writes where ``seq`` is as expected, as ``store.turns.commit`` does."""
        if writes.expected_seq != self.seq:
            return False
        assert writes.seq >= self.seq or (self.finished and not writes.steps), "seq went back"
        changed = writes.steps or writes.attempts or writes.transitions or writes.consumed or writes.ended_seq
        assert not changed or writes.seq > self.seq, "rows changed, but seq did not: nobody would notice"
        if self.finished:
            assert not changed
            return True
        for row in writes.steps.values():
            assert (row.started_seq > writes.expected_seq) == (row.key not in self.rows)
            self._write_row(row, cut=row.key in writes.cut)
        self.seq, self.status, self.alarm_at = writes.seq, writes.status, writes.alarm_at
        self.blocked = writes.blocked
        self.ending, self.state_bytes, self.ended_at = writes.ending, writes.state_bytes, writes.ended_at
        self.started_at = writes.started_at if self.started_at is None else self.started_at
        self.ended_seq = self.ended_seq if writes.ended_seq is None else writes.ended_seq
        self.output = self.output if writes.output is None else writes.output
        self.error = self.error if writes.error is None else writes.error
        self.rollback = self.rollback if writes.rollback is None else writes.rollback
        self.attempts += writes.attempts
        self.transitions += writes.transitions
        self.inbox = [event for event in self.inbox if event.number not in writes.consumed]
        self.offered += writes.handouts
        self.told.update(writes.cancelled)
        self._settle_cuts(writes)
        return True

    def _write_row(self, row: StepRow, *, cut: bool) -> None:
        stored = self.rows.get(row.key)
        if stored is None:  # the columns of an INSERT
            self.rows[row.key] = replace(row, worker=None, claimed_at=None, losses=0, uncounted=0)
            return
        assert stored.finished_seq in (None, row.finished_seq), "a step ended twice"
        new = replace(row, worker=stored.worker, claimed_at=stored.claimed_at)
        if cut:
            runs = stored.status == "running"
            new.status = "cancelling" if runs else "cancelled"
            new.fence = stored.fence if runs else row.finished_seq or 0
        elif row.status == "handed":
            new.worker = new.claimed_at = None
        elif row.status == "pending":
            new.worker, new.claimed_at = None, row.claimed_at or stored.claimed_at
        self.rows[row.key] = new

    def _settle_cuts(self, writes: Writes) -> None:
        """Tell the live execution what storage decided about the steps that were cut."""
        for key in writes.cut if self.live is not None else ():
            assert self.live is not None
            stored = self.rows[key]
            row = self.live.execution.open[key]
            row.status, row.fence = stored.status, stored.fence
            row.worker, row.claimed_at = stored.worker, stored.claimed_at
            self.live.execution.keep(row)

    # -- workers, events, time -----------------------------------------------------------------------------

    def handed(self) -> list[str]:
        """Steps offered and not claimed, in start order."""
        return [row.key for row in self._in_order() if row.status == "handed"]

    def running(self) -> list[str]:
        """Claimed attempts whose bodies have not ended, in start order."""
        return [row.key for row in self._in_order() if row.key in self.bodies]

    def _in_order(self) -> list[StepRow]:
        return sorted(self.rows.values(), key=lambda row: row.started_seq)

    def claim(self, *keys: str) -> None:
        """Claim these hand-outs, or all there are."""
        for key in keys or self.handed():
            row = self.rows[key]
            assert row.status == "handed", f"{key} is {row.status}"
            row.status, row.worker, row.claimed_at = "running", WORKER, self.now
            call = self.current().execution.replay.calls[key.removesuffix(":rollback")]
            self.bodies[key] = (row.fence, call)

    def outcome(self, key: str, *, error: BaseException | None = None, **changes: Any) -> Outcome:
        """How the claimed attempt of ``key`` ends: as its body does, or with ``error``, or as ``changes`` say."""
        fence, call = self.bodies.pop(key)
        row = self.rows[key]
        found = Outcome(key, fence, worker=WORKER, claimed_at=row.claimed_at, attempt=row.attempt)
        if "loss" in changes or "output" in changes:
            return found._replace(**changes)
        if error is None:
            try:
                output = codec.encode(self._body(row, call), what=f"the result of {key}")
            except Exception as raised:
                error = raised
            else:
                return found._replace(output=output, **changes)
        text = codec.encode_error(error)
        changes.setdefault("final", codec.ends_retries(text))
        return found._replace(error=text, **changes)

    def _body(self, row: StepRow, call: StepCall) -> Any:
        """Run the body, or the handler of the rollback."""
        if row.kind == "rollback":
            forward = self.rows[call.key]
            output = None if forward.output is None else codec.decode(forward.output)
            assert call.rollback is not None
            return call.rollback(SimpleNamespace(output=output, args=call.args, attempt=row.attempt))
        assert call.fn is not None
        return binding.call(call.fn, codec.copied(call.args), SimpleNamespace(attempt=row.attempt))

    def end(self, *keys: str) -> Writes:
        """Claim what is not claimed, end these bodies (or all) and run a turn with their outcomes."""
        chosen = keys or tuple(dict.fromkeys([*self.handed(), *self.running()]))
        for key in chosen:
            if key not in self.bodies:
                self.claim(key)
        return self.turn(*[self.outcome(key) for key in chosen])

    def fail(self, key: str, error: BaseException | None = None, **changes: Any) -> Writes:
        """Claim ``key`` if need be, end its attempt with an error and run a turn."""
        if key not in self.bodies:
            self.claim(key)
        return self.turn(self.outcome(key, error=error or RuntimeError("flaky"), **changes))

    def send(self, type: str, payload: Any = None) -> None:
        """Buffer an event, as ``send_event`` does."""
        self.events_sent += 1
        text = codec.encode(payload, what="payload")
        self.inbox.append(InboxEvent(self.events_sent, type, text, self.now))
        if self.status in (Status.RUNNING, Status.WAITING):
            self.alarm_at = min(self.alarm_at, self.now)
        if self.live is not None:
            self.live.execution.alarm_at = self.alarm_at

    def next_due(self) -> float:
        """The earliest moment at which something is due by itself."""
        due = [row.due_at for row in self.rows.values() if row.status in ("waiting", "pending")]
        return min((each for each in due if each is not None), default=FOREVER)

    def advance(self, seconds: float | None = None) -> Writes:
        """Let time pass (to what is due next if nothing is said), then run the turn of the alarm."""
        self.now = max(self.now, self.next_due()) if seconds is None else self.now + seconds
        assert self.now < FOREVER, "nothing will ever happen here"
        return self.turn(Wake())
