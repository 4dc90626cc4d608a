"""Random programs and random operations on the kit, against a plain model of what may happen.

The kit runs the engine's own decisions, so what holds here holds in production, but for SQL: that part is in
``tests/integration/test_model_on_postgres.py``.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator import InvalidTransition, Status
from orchestrator.ports import FOREVER
from orchestrator.testing import InstanceUnderTest, WorkflowEnvironment
from orchestrator.testing.instance import told
from orchestrator.testing.simulation.storage import Record
from orchestrator.workflow import codec, saga
from orchestrator.workflow.execution import Writes
from orchestrator.workflow.history import StepRow
from orchestrator.workflow.lifecycle import TERMINAL, events
from orchestrator.workflow.status import FINISHED
from tests.laws import model
from tests.laws.model import AFTER, EVENTS, Program, programs

DELAYS, SECONDS = (0.0, 5.0), (0.0, 10.0, 100.0)
ROUNDS = 500

OPERATIONS = (
    "act", "act", "act", "act", "act", "act", "act", "act", "event", "event", "event", "pause", "pause", "resume",
    "resume", "resume", "terminate", "undo", "undo", "restart", "restart_from", "restart_from", "lose", "hand_back",
    "repeat", "repeat", "forget", "time", "time", "time", "hold", "retry", "skip",
)  # fmt: skip

pytestmark = pytest.mark.timeout(3600 if os.environ.get("ORCHESTRATOR_SOAK") else 120)

laws = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=3_000 if os.environ.get("ORCHESTRATOR_SOAK") else 200,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

# Long from the start: by itself hypothesis prefers lists of a few, in which hardly anything meets.
operations = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 99)), min_size=20, max_size=60)


class Watch:
    """One record, and what must hold of it after every commit."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []
        self.since = 0
        """Where the restart that comes next cuts."""
        self.retaken: list[str] = []
        """Handlers that an operator's word takes back."""
        self._rows: list[StepRow] = []
        self._status, self._seq, self._run = Status.QUEUED, 0, 0
        self._was_blocked = self._carries = False

    def committed(self, record: Record, writes: Writes, *, steering: bool) -> None:
        rows = record.in_order()
        changed = writes.steps or writes.attempts or writes.transitions or writes.consumed or writes.ended_seq
        assert record.seq >= self._seq, "seq went back"
        assert record.seq > self._seq or not changed, "rows changed and seq did not: nobody would notice"
        if record.run != self._run:
            self.sent = model.taken(rows)
            model.check_moved(rows, self.since, self._seq)
            same = {row.key: row.finished_seq for row in rows}
            self._rows = [row for row in self._rows if same.get(row.key, -1) == row.finished_seq]
        else:
            model.check_transitions(self._status, writes.transitions)
            if not steering and record.ending is None:  # a failure is not held up by a pause
                model.check_paused(self._status, record.status, self._rows, rows)
        model.check_kept([row for row in self._rows if row.key not in self.retaken], record.steps)
        model.check_attempts(rows, record.attempts)
        model.check_alarm(
            record.status, writes.alarm_at, record.next_due(), is_blocked=record.blocked is not None
        )
        # What was blocked with bodies in flight, and is restarted from a later step, queues with them.
        self._carries = record.status is Status.QUEUED and (self._carries or self._was_blocked)
        is_blocked = self._was_blocked = record.blocked is not None
        model.check_rows(record.status, rows, is_blocked=is_blocked or self._carries)
        model.check_seqs(rows, record.attempts, record.transitions, record.seq)
        model.check_events(rows, record.inbox, self.sent)
        if record.status is Status.WAITING and not (writes.again or writes.left) and record.ending is None:
            awaits = any(row.kind == "invoke" for row in record.open.values())
            assert awaits or record.next_due() < FOREVER, "it waits, and nothing will ever wake it"
        self._rows = [row.copy() for row in rows]
        self._status, self._seq, self._run = record.status, record.seq, record.run


class Run:
    """One instance, its children, and the operations that meet it."""

    def __init__(self, env: WorkflowEnvironment, program: Program) -> None:
        self.env = env
        self.instance: InstanceUnderTest = env.create(model.model, program, id="it")
        self.events = 0
        self._watches: defaultdict[UUID, Watch] = defaultdict(Watch)
        self._steering = False
        self._outcomes: list[Any] = []
        self._told: Callable[[Record, Writes], None] = env.turns.committed
        env.turns.committed = self._committed

    @property
    def record(self) -> Record:
        return next(record for record in self.env.storage if record.name_id == "it")

    @property
    def watch(self) -> Watch:
        return self._watches[self.record.id]

    def _committed(self, record: Record, writes: Writes) -> None:
        self._told(record, writes)
        self._watches[record.id].committed(record, writes, steering=self._steering)

    # -- operations ------------------------------------------------------------------------------------------------

    def do(self, operation: str, number: int) -> None:
        if self.record.status in FINISHED and number % 4:  # else most of what follows would meet the end only
            operation = ("retry", "skip")[number % 2] if self._has_failed(self.record) else "restart_from"
        getattr(self, operation)(number)

    def act(self, number: int) -> None:
        """Some turns, bodies or ends."""
        for _ in range(number % 7 + 1):
            self.env.driver.act()

    def event(self, number: int) -> None:
        """One event, or several in a row."""
        for _ in range(number % 3 + 1):
            self.events += 1
            sent = (EVENTS[number % 5 == 4], self.events)
            if self.record.status not in FINISHED:
                self.watch.sent.append(sent)
            self._verb("event", lambda sent=sent: self.instance.send_event(*sent))

    def pause(self, number: int) -> None:
        self._verb("pause", self.instance.pause)
        if self.record.status in (Status.PAUSED, Status.WAITING_FOR_PAUSE):
            assert not [row for row in self.record.open.values() if row.status == "handed"], (
                "an offer stays open"
            )

    def resume(self, number: int) -> None:
        record, now = self.record, self.env.now.timestamp()
        lasted = now - (record.paused_at or now) if record.status is Status.PAUSED else 0.0
        due = {row.key: row.due_at + lasted for row in record.open.values() if row.due_at is not None}
        self._verb("resume", self.instance.resume)
        for row in record.open.values() if not record.is_finished else ():
            assert row.due_at is None or abs(row.due_at - due[row.key]) < 1e-3, "timers shift by the pause"

    def terminate(self, number: int) -> None:
        if number < 50:
            self._verb("terminate", self.instance.terminate)

    def undo(self, number: int) -> None:
        if number < 80 and self.record.steps:
            self._verb("undo", lambda: self.instance.terminate(rollback=True))

    def restart(self, number: int) -> None:
        if number < 30:
            self.watch.since = 0
            self._verb("restart", self.instance.restart)

    def restart_from(self, number: int) -> None:
        rows = [row for row in self.record.in_order() if row.kind in ("do", "sleep", "wait", "invoke")]
        if not rows:
            self.restart(0)
            return
        chosen = rows[number % len(rows)]
        self.watch.since = chosen.started_seq
        kind, rest = chosen.key.split(":", 1)
        name, count = rest.rsplit(":", 1)
        self._verb("restart", lambda: self.instance.restart(name, int(count), kind))

    def retry(self, number: int) -> None:
        self._redo(self.instance.retry_rollback)

    def skip(self, number: int) -> None:
        failed = [
            row.key for row in self.record.in_order() if row.kind == "rollback" and row.status == "failed"
        ]
        chosen = saga.forward_key(failed[number % len(failed)]) if failed else "do:a:1"
        self._redo(lambda: self.instance.skip_rollback(chosen))

    def _has_failed(self, record: Record) -> bool:
        """Whether its rollback has failed."""
        return record.is_finished and codec.decode(record.rollback or "{}").get("outcome") == "failed"

    def _redo(self, call: Callable[[], Any]) -> None:
        """Only a finished instance whose rollback has failed takes it up again (semantics §5.8)."""
        record = self.record
        has_failed = self._has_failed(record)
        for each in self.env.storage:  # children for which it had failed are taken along
            handlers = [row for row in each.in_order() if row.kind == "rollback"]
            self._watches[each.id].retaken = [row.key for row in handlers if row.status == "failed"]
        self._steering = True
        try:
            call()
        except InvalidTransition:
            assert not has_failed, "a failed rollback could not be taken up again"
        else:
            assert has_failed and record.status is Status.ROLLING_BACK
        finally:
            self._steering = False
            for watch in self._watches.values():
                watch.retaken = []

    def _verb(self, verb: str, call: Callable[[], Any]) -> None:
        """Call a verb: it does what the table says, or refuses."""
        before, blocked = self.record.status, self.record.blocked
        allowed = AFTER[verb].get(before, model.REFUSED)
        is_ending = self.record.ending is not None
        self._steering = True
        try:
            call()
        except InvalidTransition:
            assert not allowed or (is_ending and verb in ("terminate", "undo")), (
                f"{verb} was refused at {before}"
            )
            return
        finally:
            self._steering = False
        after = self.record.status
        assert after in allowed or (is_ending and after is before), (
            f"{verb} at {before} ({blocked}) led to {after}"
        )

    # -- what goes wrong -------------------------------------------------------------------------------------------

    def lose(self, number: int) -> None:
        """The worker of a body is lost before its outcome arrives."""
        self._spoil(number, "lost")

    def hand_back(self, number: int) -> None:
        """The worker of a body shuts down in the middle of it."""
        self._spoil(number, "handed_back")

    def _spoil(self, number: int, loss: str) -> None:
        ended = self.env.bodies.ended
        if ended:
            at = number % len(ended)
            instance, outcome = ended[at]
            ended[at] = (instance, outcome._replace(output=None, error=None, loss=loss))

    def repeat(self, number: int) -> None:
        """An outcome arrives twice, or long after its time: rather one of a step that has been handed out since."""
        self._outcomes.extend(each for each in self.env.bodies.ended if each not in self._outcomes)
        busy = {
            (record.id, row.key): row.fence for record in self.env.storage for row in record.open.values()
        }
        late = [(id_, o) for id_, o in self._outcomes if busy.get((id_, o.key), o.fence) != o.fence]
        chosen = late or self._outcomes
        if chosen:
            self.env.bodies.ended.append(chosen[number % len(chosen)])

    def forget(self, number: int) -> None:
        """The live replay is lost: the next turn is built cold."""
        self.env.turns.drop(self.record.id)

    def time(self, number: int) -> None:
        """Some time passes, or just as much as it needs."""
        now, due = self.env.now.timestamp(), self.record.next_due()
        self.env.move((now + 1, now + 30, due if due < FOREVER else now + 1)[number % 3])

    def hold(self, number: int) -> None:
        """A worker with other code comes by: what has ended is recorded without the code, which then goes on."""
        if self.record.status in FINISHED or self.record.status in (Status.PAUSED, Status.WAITING_FOR_PAUSE):
            return
        self.env.turns.drop(self.record.id)
        mine = [each for each in self.env.bodies.ended if each[0] == self.record.id]
        for each in mine:
            self.env.bodies.ended.remove(each)
        ended = [outcome for _, outcome in mine]
        self.env.turns.hold(self.record, ended, LookupError("other code was here"))

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Whatever has happened, all come to an end by themselves if they are let."""
        for _ in range(ROUNDS):
            self.env.run_until_idle()
            left = [record for record in self.env.storage if not record.is_finished]
            if not left:
                break
            if self.record.status is Status.PAUSED:
                self.resume(0)
                continue
            due = min(record.next_due() for record in left)
            assert due < FOREVER, f"{[record.status for record in left]} for ever"
            self.env.move(due)
        for record in self.env.storage:
            assert record.is_finished, "it does not end"
            assert not (record.rollback and record.status is Status.COMPLETE)
            model.check_undone(record.in_order(), record.status)
            self._check_told(record)

    def finish_rollback(self) -> None:
        """An operator can bring every failed rollback to an end."""
        for _ in range(ROUNDS):
            if not self._has_failed(self.record):
                return
            self.skip(0)
            self.finish()
        raise AssertionError("a rollback cannot be finished")

    def _check_told(self, record: Record) -> None:
        """semantics §7: the events of the whole life are in order and end with its end."""
        happened = events(told(record))
        ids = [event.event_id for event in happened]
        assert ids == sorted(set(ids))
        assert happened[-1].type in TERMINAL


@laws
@given(programs(DELAYS, SECONDS), operations)
def test_whatever_happens_the_rules_hold(program: Program, operations: list[tuple[str, int]]) -> None:
    """semantics §1.5, §2.1, §3.2, §4: no forbidden transition, no event lost or delivered twice, no step recorded
    twice, seq grows, and after every turn a cold replay is the live one."""
    with WorkflowEnvironment(strict=False) as env:
        run = Run(env, program)
        for operation, number in operations:
            run.do(operation, number)
        run.finish()
        run.finish_rollback()


@laws
@given(programs(DELAYS, SECONDS), st.integers(0, 1000))
def test_an_undisturbed_run_does_each_attempt_once(program: Program, seed: int) -> None:
    """semantics §2.1: without losses no attempt is run twice, in whatever order bodies end; and a rerun of the same
    program in the same order is the same."""
    outputs = []
    for _ in range(2):
        model.ran.clear()
        with WorkflowEnvironment(strict=False, seed=seed) as env:
            run = Run(env, program)
            run.finish()
            assert [key for key, count in model.ran.items() if count > 1] == []
            record = run.record
            outputs.append((record.status, record.output, record.error and codec.error_info(record.error)))
    assert outputs[0] == outputs[1]
