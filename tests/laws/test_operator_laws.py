"""The laws of replay hold when operators finish failed rollbacks, over the shapes that undo anything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.workflow import codec, saga
from orchestrator.workflow.deciding import redoing
from orchestrator.workflow.deciding.turn import decide
from orchestrator.workflow.execution import Arrival, Writes
from orchestrator.workflow.history import FINAL, StepRow
from orchestrator.workflow.lifecycle import LifecycleEvent, Record, events, failed_of
from orchestrator.workflow.status import Status
from tests.laws import shown
from tests.laws.corpus import SHAPES, Shape
from tests.laws.schedules import Schedule
from tests.laws.world import START, Driven, World

NAMES = (
    "caught_then_fails_later",
    "fails_with_work_in_flight",
    "rolls_back_in_parallel",
    "rollback_that_fails",
    "cancelled_then_fails",
)
undoing = pytest.mark.parametrize("shape", [SHAPES[name] for name in NAMES], ids=str)
choices = st.lists(st.integers(0, 719), max_size=200)
laws = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TRIES = 4


class Operated(Schedule):
    """A schedule with an operator who retries and skips until the rollback is complete, or he gives up."""

    def __init__(self, shape: Shape, choices: Any) -> None:
        super().__init__(shape, choices)
        self.told: list[LifecycleEvent] = []
        self.tries = 0

    def rounds(self) -> Iterator[World]:
        yield from super().rounds()
        while self.tries < TRIES and redoing.is_failed(self.world.status, self.world.rollback):
            self.tries += 1
            self._tell()
            self._operate()
            yield from super().rounds()
        self._tell()

    def _operate(self) -> None:
        world = self.world
        before = {key: row for key, row in world.rows.items() if row.kind == "rollback"}
        kept = (world.error, world.ended_seq, world.seq, world.output)
        left = [row for row in saga.eligible(world.rows.values()) if is_left(row, before)]
        assert left, "what failed is there to be retried or skipped"
        skipped = left[self.pick(len(left))].key if self.pick(3) == 2 else None
        end = world.status
        if skipped is None:
            world.retry_rollback()
        else:
            world.skip_rollback(skipped)
            assert world.rows[saga.handler_key(skipped)].status == "cancelled"
        assert world.finished or (world.status, world.ending) == (Status.ROLLING_BACK, end.value)
        assert (world.error, world.ended_seq, world.output) == (kept[0], kept[1], kept[3])
        assert world.seq > kept[2]
        for key, row in before.items():
            if row.status in ("done", "cancelled"):
                assert world.rows[key] == row, "what is handled stays so"

    def _tell(self) -> None:
        """What was told stays as it was, and what is new comes after it."""
        told = events(record(self.world))
        ids = [event.event_id for event in told]
        assert ids == sorted(set(ids))
        assert told[: len(self.told)] == self.told
        self.told = told


def is_left(row: StepRow, handlers: dict[str, StepRow]) -> bool:
    handler = handlers.get(saga.handler_key(row.key))
    return handler is None or handler.status == "failed"


def record(world: World) -> Record:
    """As ``store.records.lifecycle`` reads it."""
    transitions = world.transitions
    return Record(
        "it", world.status, world.seq, START, started_at=world.started_at, output=world.output, error=world.error,
        rollback=world.rollback, first=transitions[0].seq, last=transitions[-1].seq,
        steps=list(world.rows.values()), attempts=world.attempts, transitions=transitions,
        failed=failed_of(world.attempts), past=world.past,
    )  # fmt: skip


@undoing
@laws
@given(choices)
def test_a_cold_replay_is_the_live_one_through_retries_and_skips(shape: Shape, choices: list[int]) -> None:
    """semantics §5.8: whatever fails, and whatever is retried or skipped, a rebuild from rows is what is in memory, and
    writes the same; handlers that are done never run again; and the story is only ever continued."""
    schedule = Operated(shape, choices)
    world = schedule.world

    def compare(arrivals: tuple[Arrival, ...]) -> Any:
        cold, live = world.cold(), world.live
        if live is not None and live.execution.started_at is not None and world.blocked is None:
            live.execution.inbox = list(world.inbox)
            assert shown.execution(cold.execution) == shown.execution(live.execution)
            assert cold.seen == live.seen
        unaware = any(row.status == "running" for row in cold.execution.open.values())
        with cold.watched() as execution:
            rebuilt = shown.writes(decide(execution, arrivals, world.now))

        def after(live: Driven, writes: Writes) -> None:
            kept = shown.writes(writes)
            if unaware:  # of a claim: then it looks for the loss of a message at another moment
                del kept["alarm_at"], rebuilt["alarm_at"]
            assert rebuilt == kept
            cold.discard()

        return after

    world.before_turn = compare
    schedule.run()
    assert all(row.status in FINAL for row in world.rows.values())
    if schedule.tries:
        rollback = codec.decode(world.rollback or "null")
        failed = [row for row in world.rows.values() if row.kind == "rollback" and row.status == "failed"]
        assert rollback["outcome"] == ("failed" if failed else "complete")
        assert len(rollback["errors"]) == len(failed)


def test_schedules_do_come_to_operators() -> None:
    """The law above would say nothing if no rollback ever failed."""
    schedule = Operated(SHAPES["rollback_that_fails"], [])
    schedule.run()
    assert schedule.tries == TRIES
