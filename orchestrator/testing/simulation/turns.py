"""Turns of instances in memory: feed, decide, commit; holds and verbs.

Owns: the live executions, which instances are to have a turn, and what their turns hand out. Does not own: any
decision (``workflow.deciding``), running what is handed out (``bodies``), or how far to go (``driving``).

It is the coordinator of production without its SQL: the same ``decide``, on the same facts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from uuid import UUID

from orchestrator.ports import HandOut
from orchestrator.testing.simulation import kin
from orchestrator.testing.simulation.fakes import Fakes
from orchestrator.testing.simulation.replays import build, build_held, compare
from orchestrator.testing.simulation.storage import Record, Storage
from orchestrator.workflow import codec
from orchestrator.workflow.deciding import redoing, restarting
from orchestrator.workflow.deciding.holding import hold
from orchestrator.workflow.deciding.lineage import obey
from orchestrator.workflow.deciding.redoing import Redo
from orchestrator.workflow.deciding.turn import decide
from orchestrator.workflow.execution import Arrival, Execution, Outcome, Wake, Writes
from orchestrator.workflow.status import Status

BLOCKED_S = 60.0
"""How long a blocked instance waits before it is tried again."""
CHECKED_ALWAYS = 200
"""Histories up to so many steps are replayed after every turn; longer ones whenever they grew by a fifth."""

Verb = Callable[[Execution, float], Writes]


class Clock:
    """A clock that stands still until it is moved; epoch seconds."""

    def __init__(self, at: float) -> None:
        self.at = at

    def now(self) -> float:
        return self.at


class Turns:
    """Runs one turn at a time. ``fakes`` gives those of an instance, ``find`` the code of a child; ``committed`` is
    called after every commit, ``created`` with every child."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        fakes: Callable[[UUID], Fakes],
        find: kin.Find,
        *,
        check_replay: bool = True,
    ) -> None:
        self.storage = storage
        self.clock = clock
        self.offers: deque[HandOut] = deque()
        self.committed: Callable[[Record, Writes], None] = lambda record, writes: None
        self.created: Callable[[Record], None] = lambda record: None
        self._fakes = fakes
        self._find = find
        self._check_replay = check_replay
        self._live: dict[UUID, Execution] = {}
        self._arrivals: dict[UUID, list[Arrival]] = {}
        self._checked: dict[UUID, int] = {}

    # -- what is to be done ----------------------------------------------------------------------------------

    def wake(self, id: UUID, *arrivals: Arrival) -> None:
        """Let the instance have a turn, with these arrivals or to look at what is due."""
        self._arrivals.setdefault(id, []).extend(arrivals)

    def step(self) -> bool:
        """Run one turn, or do a parent's word, if there is one to be done."""
        while self._arrivals:
            instance = next(iter(self._arrivals))
            arrivals = self._arrivals.pop(instance)
            record = self.storage.get(instance)
            if record is not None and record.parent_id is not None and self._obey(record):
                self.wake(instance, *arrivals)
                return True
            if record is not None and not record.is_finished:
                self._turn(record, arrivals or [Wake()])
                return True
            self.drop(instance)
        return False

    def wake_due(self) -> None:
        """Let those have a turn for whom something is due now."""
        for record in self.storage:
            if record.next_due() <= self.clock.now():
                self.wake(record.id)

    # -- a turn ----------------------------------------------------------------------------------------------

    def _turn(self, record: Record, arrivals: list[Arrival]) -> None:
        if record.status is Status.PAUSED:
            return  # what is due stays due, and events stay buffered, until it is resumed
        forces = bool(record.inbox) and self._fakes(record.id).forces()
        try:
            execution = self._current(record)
            execution.inbox = [] if forces else list(record.inbox)
            told = kin.tell(self.storage, record, execution)
            writes = decide(execution, [*arrivals, *told], self.clock.now())
        except Exception as error:
            self.drop(record.id)
            self.hold(record, arrivals, error)
            return
        self._commit(record, writes, execution)
        if forces:
            self._deliver(record)

    def _obey(self, record: Record) -> bool:
        """Do what the parent asks of its child, if anything: also of one that is queued, paused or has ended."""
        held = build_held(record)
        held.parent_id, held.parent = record.parent_id, kin.parent_of(self.storage, record)
        writes = obey(held, self.clock.now())
        if writes is None:
            return False
        self.storage.commit(record, writes)
        self.drop(record.id)
        self._after(record, writes)
        self._wake_relatives(record)
        return True

    def _wake_relatives(self, record: Record) -> None:
        for each in kin.relatives(self.storage, record):
            self.wake(each)

    def _deliver(self, record: Record) -> None:
        """Events one at a time: a wait that is to time out may begin in any turn, and must not be given one."""
        for event in list(record.inbox):
            if record.is_finished or record.status is Status.PAUSED:
                return
            try:
                execution = self._current(record)
                execution.inbox = [event]
                kin.tell(self.storage, record, execution)
                writes = decide(execution, [Wake()], self.clock.now())
            except Exception as error:
                self.drop(record.id)
                self.hold(record, [], error)
                return
            self._commit(record, writes, execution)

    def _current(self, record: Record) -> Execution:
        execution = self._live.get(record.id)
        if execution is None:
            execution = self._live[record.id] = build(record)
        return execution

    def _commit(self, record: Record, writes: Writes, execution: Execution) -> None:
        calls = execution.replay.calls
        record.annotations.update((key, calls[key].annotation) for key in writes.steps if key in calls)
        self.storage.commit(record, writes)
        for key in writes.cut:
            row, stored = execution.open[key], record.steps[key]
            row.status, row.fence, row.worker = stored.status, stored.fence, stored.worker
            row.claimed_at = stored.claimed_at
            execution.keep(row)
        self.offers.extend(writes.handouts)
        self._after(record, writes)
        if self._is_checked(record, writes):
            compare(record, execution)
        if record.is_finished:
            self.drop(record.id)

    def _after(self, record: Record, writes: Writes) -> None:
        made = kin.create(self.storage, record, writes, self._find, self.clock.now())
        for child in made:
            self.created(child)
        if len(made) < len(writes.children):
            self.wake(record.id)  # an id was taken, which its step has to hear
        for relative in writes.hints:
            self.wake(relative)
        if not record.is_finished and (writes.again or writes.left or writes.reads_relatives):
            self.wake(record.id, *writes.left)
        self.refake(record)
        self.committed(record, writes)

    def _is_checked(self, record: Record, writes: Writes) -> bool:
        if (
            not self._check_replay
            or record.blocked is not None
            or writes.seq == writes.expected_seq
            or writes.again
        ):
            return False
        count = len(record.steps)
        if (
            count > CHECKED_ALWAYS
            and not record.is_finished
            and count < 1.2 * self._checked.get(record.id, 0)
        ):
            return False
        self._checked[record.id] = count
        return True

    def hold(self, record: Record, arrivals: Iterable[Arrival], error: Exception) -> None:
        """Today's code does not fit, or did what no replay can repeat: blocked in the open, as in production."""
        ended = [each for each in arrivals if isinstance(each, Outcome)]
        now = self.clock.now()
        writes = hold(build_held(record), ended, codec.encode_error(error), now + BLOCKED_S, now)
        self.storage.commit(record, writes)
        self._after(record, writes)

    # -- from outside ----------------------------------------------------------------------------------------

    def apply(self, record: Record, verb: Verb) -> None:
        """An operator's verb: decided on the rows, without the code. Raises ``InvalidTransition``."""
        writes = verb(build_held(record), self.clock.now())
        if writes.seq == writes.expected_seq:
            return  # the instance is there already
        self.storage.commit(record, writes)
        self.drop(record.id)
        self._after(record, writes)
        self._wake_relatives(record)

    def restart(self, record: Record, key: str | None) -> None:
        """Restart the instance, from the top or from a step. Raises ``InvalidTransition``."""
        held, rows, now = build_held(record), [row.copy() for row in record.in_order()], self.clock.now()
        if key is None:
            decided = restarting.restart(held, rows, now)
        else:
            decided = restarting.restart_from(held, rows, record.attempts, key, now, record.paused_at)
        self.storage.restart(record, decided)
        self.drop(record.id)
        self._after(record, decided.writes)
        kin.detach(self.storage, record)
        for child in decided.awaited:
            stored = self.storage.get(child)
            if stored is not None and restarting.is_cut_short(stored.status, stored.ending):
                self.restart(stored, None)
        self._wake_relatives(record)

    def retry_rollback(self, record: Record) -> None:
        """Take a failed rollback up again. Raises ``InvalidTransition``."""
        self._retry(record)
        kin.stand_alone(self.storage, record)

    def _retry(self, record: Record) -> None:
        """With it, the rollbacks of children for which it had failed."""
        decided = redoing.retry(build_held(record), record.in_order(), record.rollback, self.clock.now())
        for key, instance in decided.children:
            if self.storage.get(instance) is None:
                raise redoing.refusal(key)
        self._redo(record, decided)
        for key, instance in decided.children:
            child = self.storage.get(instance)
            if child is None or not redoing.is_taken_along(child.status, child.ending):
                continue
            child.parent_id, child.parent_key = record.id, key
            if redoing.is_failed(child.status, child.rollback):
                self._retry(child)

    def skip_rollback(self, record: Record, step: str, count: int) -> None:
        """Leave a handler out of a failed rollback. Raises ``InvalidTransition`` and ``InvalidConfig``."""
        held, rows = build_held(record), record.in_order()
        self._redo(record, redoing.skip(held, rows, record.rollback, step, count, self.clock.now()))
        kin.stand_alone(self.storage, record)

    def _redo(self, record: Record, decided: Redo) -> None:
        self.storage.redo(record, decided)
        self.drop(record.id)
        self._after(record, decided.writes)
        self._wake_relatives(record)

    def claim(self, offer: HandOut) -> Execution | None:
        """Take a hand-out, if it is still offered under that fence."""
        record = self.storage.get(offer.instance)
        row = record.steps.get(offer.key) if record is not None else None
        if record is None or row is None or row.status != "handed" or row.fence != offer.fence:
            return None
        try:
            execution = self._current(record)
        except Exception as error:
            self.hold(record, [], error)
            return None
        mine = execution.open[offer.key]
        for each in (row, mine):
            each.status, each.claimed_at = "running", self.clock.now()
        return execution

    def refake(self, record: Record) -> None:
        """Move what a fake makes due."""
        if record.is_finished:
            return
        fakes, now, execution = self._fakes(record.id), self.clock.now(), self._live.get(record.id)
        for row in record.open.values():
            if row.status not in ("waiting", "pending"):
                continue
            due = fakes.due(row, now)
            if due is not None and row.due_at != due:
                row.due_at = due
                if execution is not None:
                    execution.open[row.key].due_at = due
                    execution.keep(execution.open[row.key])
        if record.next_due() <= now:
            self.wake(record.id)

    def drop(self, id: UUID) -> None:
        """Forget the live execution: the next turn builds it anew from the record."""
        execution = self._live.pop(id, None)
        if execution is not None:
            execution.replay.discard()

    def close(self) -> None:
        for instance in list(self._live):
            self.drop(instance)
