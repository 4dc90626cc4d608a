"""What happens next: ``decide(execution, arrivals, now) -> Writes``. Pure.

Owns: the order in which arrivals are taken, hand-outs, the status and the alarm. Does not own: retries and losses
(``outcomes``), timers and which waiter gets which event (``waiting``), how an instance ends and compensates
(``ending``), loading and saving, time.

In one turn outcomes are taken as they came, then due timers and time-outs by due time, then events by number;
what the code starts meanwhile is settled in the same turn, up to a budget. The engine calls this around SQL, the
testing kit around a dictionary.

While a pause is pending (``waiting_for_pause``) the code is fed what ends, but its commands stay in the replay, nothing
rings and nothing is handed out. A cold replay finds the same commands pending, since ends may be fed while some are.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from orchestrator.errors import InvalidConfig
from orchestrator.ports import FOREVER, HandOut
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import children, ending, outcomes, signatures, waiting
from orchestrator.workflow.execution import Arrival, ChildEnded, Execution, Outcome, Transition, Wake, Writes
from orchestrator.workflow.history import BUSY, Began, Finished, StepRow
from orchestrator.workflow.language.commands import (
    PATCH,
    ROLLBACK,
    CancelStep,
    Command,
    Complete,
    Fail,
    Mark,
    StartStep,
)
from orchestrator.workflow.language.config import StepConfig
from orchestrator.workflow.language.durations import MAX_SECONDS
from orchestrator.workflow.status import FINISHED, Status, check

FACTS_PER_TURN = 1000
UNCLAIMED_S = 5.0
"""A hand-out nobody claimed for this long is looked at."""
UNCLAIMED_MAX_S = 300.0
RUNNING_S = 60.0
"""A running instance is looked at this often, whatever happens."""

DEFAULT_QUEUE = ""
"""Stands for the account's own queue in a step's configuration."""


def decide(execution: Execution, arrivals: Iterable[Arrival], now: float) -> Writes:
    """Take ``arrivals`` (in order) into ``execution``, which is changed in place, and say what to write.

    Raises what ``Replay.feed`` raises, and ``NonDeterminismError`` for code that waits for no step; the execution
    must then be dropped. The same goes for a failed write.
    """
    turn = Turn(execution, now)
    if execution.status in FINISHED:
        turn.writes.stale.extend(a for a in arrivals if isinstance(a, Outcome))
        return turn.writes
    if execution.status is Status.PAUSED:
        turn.writes.stale.extend(a for a in arrivals if isinstance(a, Outcome))
        return turn.stand()
    turn.begin()
    for arrival in arrivals:
        if turn.spent:
            turn.writes.left.append(arrival)
        elif isinstance(arrival, Outcome):
            outcomes.take(turn, arrival)
        elif isinstance(arrival, ChildEnded):
            children.take(turn, arrival)
        else:
            turn.wake(arrival)
    if not (turn.may_pause and turn.is_pausing):
        waiting.settle(turn)
    waiting.check(turn)
    turn.close()
    return turn.writes


class Turn:
    """One turn of one instance, while it is being decided."""

    def __init__(self, execution: Execution, now: float) -> None:
        self.execution = execution
        self.now = now
        self.writes = Writes(execution.id, expected_seq=execution.seq)
        self._facts = 0
        self.may_pause = execution.status is Status.WAITING_FOR_PAUSE
        """Whether a pause was pending when the turn began: no turn begins one that it must heed itself."""
        self.woken = False
        """Whether fresh rows were looked at."""
        self._deadline = FOREVER
        """When the first of the Celery tasks that were offered in this turn is over its time."""
        self.due: list[tuple[float, int, str]] = []
        """A heap of what is to ring in this turn: when, in which order, which step."""

    @property
    def spent(self) -> bool:
        """Whether the budget of this turn is used up, or the code is not idle and can be fed nothing."""
        return self._facts >= FACTS_PER_TURN or not self.execution.replay.idle

    @property
    def is_pausing(self) -> bool:
        """Whether nothing may be started: a pause waits for the steps in flight. An end is not held up by it."""
        execution = self.execution
        if execution.status is not Status.WAITING_FOR_PAUSE:
            return False
        return execution.ending is None and not execution.replay.ended

    def next_seq(self) -> int:
        self.execution.seq += 1
        return self.execution.seq

    def write(self, row: StepRow) -> None:
        """Note that ``row`` changed."""
        self.execution.keep(row)
        self.writes.steps[row.key] = row
        if row.due_at is not None and row.due_at <= self.now and row.key in self.execution.due:
            heapq.heappush(self.due, (row.due_at, row.started_seq, row.key))

    # -- the code ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the code if it never ran, go on with it if it ran out of budget, take what it asked for."""
        execution = self.execution
        if execution.blocked is not None:
            execution.blocked = None
            self.next_seq()
        if execution.started_at is None and execution.ending is None:
            execution.started_at = self.writes.started_at = self.now
            self.writes.began_seq = self.next_seq()
            execution.replay.feed([Began(self.writes.began_seq, self.now)])
        elif not execution.replay.idle:
            execution.replay.run()
        self.drain()

    def drain(self) -> None:
        """Take the commands the code gave, if there is room left for what they will bring. They stay where they are
        while a pause is pending, unless the code has ended."""
        replay = self.execution.replay
        if replay.idle and not replay.ended and ending.is_full(self.execution):
            ending.overflow(self)
        if self.may_pause and self.is_pausing:
            return
        while replay.pending:
            self._command(replay.pending.popleft())

    def _command(self, command: Command) -> None:
        match command:
            case StartStep():
                self._start(command)
            case CancelStep(key=key):
                row = self.execution.open.get(key)
                if row is not None:
                    ending.cut(self, row)
                    self.execution.replay.forget(key)
            case Mark():
                self._mark(command)
            case Complete():
                ending.complete(self, command)
            case Fail(error=error):
                ending.fail(self, error)

    def _start(self, command: StartStep) -> None:
        call, seq = command.call, self.next_seq()
        row = StepRow(
            key=call.key,
            kind=call.kind,
            status="waiting",
            started_seq=seq,
            started_at=self.now,
            label=call.label,
            line=call.line,
            has_rollback=call.rollback is not None,
            run=self.execution.run,
        )
        if call.config is not None:
            row.config = call.config.to_json()
            self.hand(row, seq)
            return
        if command.invoke is not None:
            children.start(self, row, command.invoke)
        elif command.wait is not None:
            row.config = command.wait.to_json()
            row.due_at = self.now + command.wait.timeout_s
        elif command.until is not None:
            row.config = f'{{"until":{command.until!r}}}' if command.until < FOREVER else None
            row.due_at = command.until
        else:
            delay = command.sleep_s or 0.0
            row.config = f'{{"duration_s":{delay!r}}}'
            row.due_at = self.now + delay
        if command.until is not None:
            self._check_until(row, command.until)
        self.write(row)

    def _mark(self, mark: Mark) -> None:
        """Record that the code went the new way: a start in the order, and nothing that could end."""
        self.write(
            StepRow(
                key=mark.key,
                kind=PATCH,
                status="done",
                started_seq=self.next_seq(),
                started_at=self.now,
                finished_at=self.now,
                line=mark.line,
                run=self.execution.run,
            )
        )

    def _check_until(self, row: StepRow, until: float) -> None:
        """Refuse a moment in the past, once: its record then speaks on every replay.

        The row is due at once and ends with this error when it rings: the code cannot be told while it is
        still giving commands.
        """
        told_at = self.execution.replay.now  # the code cannot know of a pause that held its command since
        if until < told_at:
            text = f"step.sleep_until({row.key!r}) is {told_at - until:.3f} s in the past"
        elif until > self.now + MAX_SECONDS:
            text = f"step.sleep_until({row.key!r}) is more than 365 days ahead"
        else:
            return
        row.due_at, row.error = self.now, codec.encode_error(InvalidConfig(text))

    def hand(self, row: StepRow, fence: int | None = None) -> None:
        """Offer the next attempt of ``row`` to the workers. A hand-out is a fact: it raises the fence. While a pause is
        pending the row is left to be handed out later."""
        if self.may_pause and self.is_pausing:
            row.status, row.due_at = "pending", self.now
            self.write(row)
            return
        row.fence = self.next_seq() if fence is None else fence
        row.status = "handed"
        row.attempt += 1
        row.handed_at = self.now
        row.worker = row.claimed_at = row.due_at = None
        self.write(row)
        self.offer(row)

    def offer(self, row: StepRow) -> None:
        execution = self.execution
        config = StepConfig.from_json(row.config or "")
        label = f"{execution.workflow}.{row.label}"
        if row.kind == ROLLBACK:
            label += ".rollback"
        signature = None
        if config.task is not None:
            signature = signatures.signature_of(execution, row)
            self._deadline = min(self._deadline, signatures.deadline(row))
        queue = config.queue or DEFAULT_QUEUE
        self.writes.handouts.append(
            HandOut(execution.id, row.key, row.fence, queue, execution.workflow, label, signature)
        )

    def finish(self, row: StepRow, *, output: str | None = None, error: str | None = None) -> None:
        """Record the end of a step and let the code see it."""
        self._facts += 1
        seq = self.next_seq()
        row.status = "done" if error is None else "failed"
        row.finished_seq, row.finished_at = seq, self.now
        row.output, row.error, row.due_at = output, error, None
        self.execution.state_bytes += len(output or "") + len(error or "")
        self.write(row)
        if row.kind != ROLLBACK and not self.execution.replay.ended:
            self.execution.replay.feed([Finished(seq, row.key, self.now, output, error)])
            self.drain()

    # -- what fresh rows told -------------------------------------------------------------------------------

    def wake(self, wake: Wake) -> None:
        """Act on what fresh rows told: dead workers, lost messages. What is due is settled after."""
        self.woken = True
        for key in wake.lost:
            row = self.execution.open.get(key)
            if row is not None and row.status in ("running", "cancelling"):
                outcomes.lose(self, row)
        for key in wake.unclaimed:
            row = self.execution.open.get(key)
            if row is not None and row.status == "handed":
                self.offer(row)

    # -- the close -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """Compensate, then settle status and alarm."""
        execution, writes = self.execution, self.writes
        if execution.ending is not None and execution.status not in FINISHED:
            ending.compensate(self)
        self.become(execution.status if execution.status in FINISHED else self._status())
        self._set_alarm()
        writes.handouts = [offer for offer in writes.handouts if self._stands(offer)]
        self.stand()
        if writes.cut or not execution.replay.idle:
            writes.again = True  # storage tells after the commit which of the cut bodies run
        if execution.status in FINISHED:
            writes.again = False
        elif writes.again or writes.left or writes.reads_relatives:
            writes.queued_at = self.now

    def stand(self) -> Writes:
        """The writes, with where the instance stands now."""
        execution, writes = self.execution, self.writes
        writes.seq, writes.status, writes.alarm_at = execution.seq, execution.status, execution.alarm_at
        writes.ending, writes.blocked = execution.ending, execution.blocked
        writes.state_bytes = execution.state_bytes
        return writes

    def _stands(self, offer: HandOut) -> bool:
        """Whether a hand-out of this turn was not taken back by what came after it."""
        row = self.execution.open.get(offer.key)
        return row is not None and row.status == "handed" and row.fence == offer.fence

    def become(self, status: Status) -> None:
        execution = self.execution
        if status is not execution.status:
            check(execution.status, status)
            execution.status = status
            self.writes.transitions.append(Transition(self.next_seq(), status.value, self.now))

    def _status(self) -> Status:
        execution = self.execution
        if execution.ending is not None and not self.writes.cut and ending.is_compensating(execution):
            return Status.ROLLING_BACK
        if execution.ending is not None and execution.status is Status.ROLLING_BACK:
            return Status.ROLLING_BACK
        if self.may_pause and self.is_pausing:
            in_flight = any(row.status in BUSY for row in execution.open.values())
            return Status.WAITING_FOR_PAUSE if in_flight or not execution.replay.idle else Status.PAUSED
        busy = len(execution.open) > len(execution.due) or not execution.replay.idle or self.writes.again
        busy = busy or self.writes.reads_relatives
        return Status.RUNNING if busy else Status.WAITING

    def _set_alarm(self) -> None:
        """An ordinary turn only moves the alarm earlier; a turn it woke may move it on."""
        execution, now = self.execution, self.now
        fired = self.woken or execution.alarm_at <= now
        if execution.status in FINISHED or execution.status is Status.PAUSED:
            alarm = FOREVER
        else:
            is_held = execution.status is Status.WAITING_FOR_PAUSE
            alarm = FOREVER if is_held else min(execution.due.values(), default=FOREVER)
            if execution.status is not Status.WAITING and (fired or execution.alarm_at > now + UNCLAIMED_S):
                rows = execution.open.values()
                alarm = min(alarm, now + RUNNING_S, self._unclaimed_alarm(rows))
                alarm = min(alarm, signatures.next_deadline(rows))
            alarm = min(alarm, self._deadline)
            if execution.invoked and children.is_watching(execution):
                alarm = min(alarm, now + children.LOOK_S)
            if not fired and alarm > execution.alarm_at:
                alarm = execution.alarm_at
        execution.alarm_at = alarm

    def _unclaimed_alarm(self, rows: Iterable[StepRow]) -> float:
        handed = [row.handed_at for row in rows if row.status == "handed" and row.handed_at is not None]
        if not handed:
            return FOREVER
        age = self.now - min(handed)
        return self.now + (UNCLAIMED_S - age if age < UNCLAIMED_S else min(UNCLAIMED_MAX_S, age))
