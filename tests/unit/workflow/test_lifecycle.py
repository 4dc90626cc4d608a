"""Lifecycle events: derived from records alone, complete, in order, and the same whenever they are derived."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.workflow.execution import Writes
from orchestrator.workflow.lifecycle import (
    NUMBERS,
    PER_SEQ,
    TERMINAL,
    LifecycleEvent,
    Record,
    events,
    failed_of,
)
from tests.laws.corpus import SHAPES, Shape
from tests.laws.schedules import Schedule
from tests.laws.test_verb_laws import Steered
from tests.laws.world import START, World

laws = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=200 if os.environ.get("ORCHESTRATOR_SOAK") else 8,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=str)
choices = st.lists(st.integers(0, 719), max_size=150)


class Told:
    """A schedule, and the record of its world."""

    def __init__(self, shape: Shape, choices: list[int], kind: type[Schedule] = Schedule) -> None:
        self.schedule = kind(shape, choices)
        self.world: World = self.schedule.world
        self.began_seq: int | None = None
        self.world.before_turn = lambda arrivals: self._turned

    def _turned(self, live: object, writes: Writes) -> None:
        self.began_seq = self.began_seq or writes.began_seq

    def rounds(self) -> Iterator[list[LifecycleEvent]]:
        for _ in self.schedule.rounds():
            yield events(self.record())

    def record(self, after: int = -1) -> Record:
        """The record, without what has no fact after the event ``after``."""
        world, seq = self.world, after // PER_SEQ
        before = [t for t in world.transitions if t.seq < seq]
        marks = [
            t.status for t in before if t.status in ("rolling_back", "complete", "errored", "terminated")
        ]
        return Record(
            "it",
            world.status,
            world.seq,
            START,
            seed=world.seed - 1,
            began_seq=self.began_seq,
            started_at=world.started_at,
            params="{}",
            output=world.output,
            error=world.error,
            rollback=world.rollback,
            first=min((t.seq for t in world.transitions), default=None),
            last=max((t.seq for t in world.transitions), default=None),
            undoing=bool(marks) and marks[-1] == "rolling_back",
            steps=[r for r in world.rows.values() if max(r.started_seq, r.fence, r.finished_seq or 0) >= seq],
            attempts=[a for a in world.attempts if max(a.seq, a.fence) >= seq],
            transitions=[t for t in world.transitions if t.seq >= seq],
            failed=failed_of(world.attempts),
        )


def numbers(told: list[LifecycleEvent]) -> list[int]:
    return [event.event_id for event in told]


@every_shape
@laws
@given(choices)
def test_events_are_complete_and_in_order(shape: Shape, choices: list[int]) -> None:
    """Semantics §7, protocols §11: for every history the events are numbered strictly upwards, begin with
    ``workflow_queued`` and end with the terminal event; every start has exactly one end, after it."""
    told: list[LifecycleEvent] = []
    one = Told(shape, choices)
    for told in one.rounds():
        assert numbers(told) == sorted(set(numbers(told)))
        assert told[0].type == "workflow_queued"
        assert [e.type in TERMINAL for e in told].count(True) == one.world.finished
    assert told[-1].type in TERMINAL
    open_: Counter[object] = Counter()
    for event in told:
        head, _, verb = event.type.rpartition("_")
        if head == "workflow" or head.startswith("workflow_waiting"):
            continue
        family = "attempt" if "attempt" in head else "rollback" if head == "rollback" else "step"
        key = (family, "rollback" in head, event.step_name, event.count, event.attempt)
        open_[key] += 1 if verb == "started" else -1
        assert open_[key] in (0, 1), f"{event} has not begun, or twice"
    assert not +open_, "began and never ended"


@every_shape
@laws
@given(choices)
def test_who_reads_on_from_anywhere_gets_exactly_the_rest(shape: Shape, choices: list[int]) -> None:
    """Semantics §7: a cursor is exclusive; from any event on, and from only those records that have a fact since,
    exactly the rest comes; and what was told while the instance went on is what is told afterwards."""
    before: list[LifecycleEvent] = []
    one = Told(shape, choices)
    for told in one.rounds():
        assert told[: len(before)] == before, "what had been told was taken back"
        before = told
    for at, event in enumerate(before):
        if at % max(1, len(before) // 40) == 0 or len(before) - at < 10:
            assert events(one.record(event.event_id), event.event_id) == before[at + 1 :]
            until = event.event_id // PER_SEQ
            assert events(one.record(), until=until) == [e for e in before if e.event_id // PER_SEQ <= until]


@every_shape
@laws
@given(choices)
def test_numbers_mean_one_thing_whatever_operators_do(shape: Shape, choices: list[int]) -> None:
    """Semantics §7, protocols §10: through pauses and restarts from any step the events stay strictly numbered from
    ``workflow_queued`` on, a number never comes to mean something else, what started has one end or is open, and a
    cursor gives the rest."""
    meant: dict[int, object] = {}
    one = Told(shape, choices, Steered)
    for told in one.rounds():
        assert numbers(told) == sorted(set(numbers(told)))
        assert told[0].type == "workflow_queued"
        open_: Counter[object] = Counter()
        for event in told:
            what = (event.type, event.step_name, event.count, event.attempt)
            assert meant.setdefault(event.event_id, what) == what
            if "step" in event.type or event.type.startswith(("sleep", "wait")):
                key = (event.type.startswith("rollback"), event.step_name, event.count)
                open_[key] += 1 if event.type.endswith("started") else -1
                assert open_[key] in (0, 1), f"{event} has not begun, or twice"
        for event in (told[len(told) // 2], told[-1]):
            rest = [each for each in told if each.event_id > event.event_id]
            assert events(one.record(event.event_id), event.event_id) == rest


def test_a_restart_from_the_top_begins_anew() -> None:
    """Semantics §4 and §7: all is gone; the first event is ``workflow_queued`` again, above all there was."""
    one = Told(SHAPES["sequential"], [])
    *_, first = one.rounds()
    one.began_seq = None
    one.world.restart()
    while not one.world.finished:
        one.world.end()
    second = events(one.record())
    assert [e.type for e in second if e.type.startswith("step")] == ["step_started", "step_completed"] * 3
    assert (second[0].type, second[0].params) == ("workflow_queued", {})
    assert second[0].event_id > first[-1].event_id
    assert events(one.record(first[-1].event_id), first[-1].event_id) == second


def test_types_that_share_a_fact_have_numbers_of_their_own() -> None:
    """Protocols §11: ``event_id = 8 * seq + n``, with a fixed n from 0 to 7 for each type."""
    assert all(0 <= n < PER_SEQ for n in NUMBERS.values())
    for shared in (
        ("step_started", "attempt_started"),
        ("rollback_step_started", "rollback_attempt_started"),
        ("attempt_started", "attempt_errored", "step_errored"),
        ("attempt_completed", "step_completed"),
        ("workflow_queued", "workflow_running"),
        ("workflow_queued", "workflow_started"),
        ("rollback_completed", "workflow_errored"),
        ("rollback_errored", "workflow_terminated"),
    ):
        places = [NUMBERS[each] for each in shared]
        assert places == sorted(set(places))
