"""Random sagas on the kit, against an oracle that computes from the records alone what was to be undone.

The kit runs the engine's own decisions; the same programs meet real workers in
``tests/integration/test_saga_oracle.py``.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from orchestrator import InvalidTransition, Status
from orchestrator.errors import StepTimeout
from orchestrator.ports import FOREVER
from orchestrator.testing import InstanceUnderTest, WorkflowEnvironment
from orchestrator.testing.instance import told
from orchestrator.testing.simulation.storage import Record
from orchestrator.workflow import codec
from orchestrator.workflow.lifecycle import events
from orchestrator.workflow.status import FINISHED
from tests.laws import sagas
from tests.laws.oracle import Ended, check, errors_of, to_be_undone
from tests.laws.sagas import POLICIES, WORKFLOWS, drawn

DELAYS, SECONDS = (0.0, 5.0), (1.0, 10.0)
ROUNDS = 500
EXAMPLES = 1_000 if os.environ.get("ORCHESTRATOR_SOAK") else 100
OPERATIONS = (
    *["act"] * 8, "event", "event", "pause", "resume", "resume", "lose", "hand_back", "time_out", "repeat",
    "forget", "forget", "time", "time", "hold", "reload", "reload_without", "undo", "terminate",
)  # fmt: skip

pytestmark = pytest.mark.timeout(3600 if os.environ.get("ORCHESTRATOR_SOAK") else 120)

laws = settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=EXAMPLES,
    phases=[Phase.generate],  # programs are drawn from seeds: a smaller seed is no smaller program
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
seeds = st.integers(0, 2**32)
# Long from the start: by itself hypothesis prefers lists of a few, in which hardly anything meets.
disturbances = st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 99)), min_size=20, max_size=50)


class Saga:
    """One instance of a random program, and what meets it."""

    def __init__(self, env: WorkflowEnvironment, seed: int, policy: str) -> None:
        self.env, self.policy = env, POLICIES[policy]
        self.workflow = WORKFLOWS[policy]
        sagas.code.without = ""
        self.instance: InstanceUnderTest = env.create(self.workflow, drawn(seed, DELAYS, SECONDS), id="it")
        self.record: Record = next(iter(env.storage))
        sagas.journal.pop(str(self.record.id), None)
        self.is_undone = False
        self._outcomes: list[Any] = []

    def meet(self, operation: str, number: int) -> None:
        if self.record.status not in FINISHED:
            getattr(self, operation)(number)

    def act(self, number: int) -> None:
        for _ in range(number % 5 + 1):
            self.env.driver.act()

    def event(self, number: int) -> None:
        self.instance.send_event("x", number)

    def pause(self, number: int) -> None:
        self.instance.pause()

    def resume(self, number: int) -> None:
        self.instance.resume()

    def lose(self, number: int) -> None:
        """The worker of a body, or of a handler, is lost before its outcome arrives."""
        self._spoil(number, loss="lost")

    def hand_back(self, number: int) -> None:
        self._spoil(number, loss="handed_back")

    def time_out(self, number: int) -> None:
        """It took too long after all."""
        self._spoil(number, error=codec.encode_error(StepTimeout("an attempt took too long")))

    def _spoil(self, number: int, **changes: Any) -> None:
        ended = self.env.bodies.ended
        if ended:
            instance, outcome = ended[number % len(ended)]
            ended[number % len(ended)] = (
                instance,
                outcome._replace(**{"output": None, "error": None, **changes}),
            )

    def repeat(self, number: int) -> None:
        """An outcome arrives twice, or long after its time."""
        self._outcomes.extend(self.env.bodies.ended)
        if self._outcomes:
            self.env.bodies.ended.append(self._outcomes[number % len(self._outcomes)])

    def forget(self, number: int) -> None:
        """The live replay is lost: the next turn, or handler, is built cold."""
        self.env.turns.drop(self.record.id)

    def time(self, number: int) -> None:
        now, due = self.env.now.timestamp(), self.record.next_due()
        self.env.move((now + 1, now + 30, due if due < FOREVER else now + 1)[number % 3])

    def hold(self, number: int) -> None:
        """A worker with other code comes by: what has ended is recorded without the code, which then goes on."""
        if self.record.status in (Status.PAUSED, Status.WAITING_FOR_PAUSE):
            return
        self.forget(number)
        ended = [outcome for _, outcome in self.env.bodies.ended]
        self.env.bodies.ended.clear()
        self.env.turns.hold(self.record, ended, LookupError("other code was here"))

    def reload(self, number: int) -> None:
        """The code is deployed again, and is as it was at first."""
        sagas.code.without = ""
        self.env.deploy(self.workflow)

    def reload_without(self, number: int) -> None:
        """Code is deployed that gives steps of some names no rollback any more."""
        if number < 30:
            sagas.code.without = sagas.NAMES[number % 4]
            self.env.deploy(self.workflow)

    def undo(self, number: int) -> None:
        if number < 25:
            self._terminate(rollback=True)

    def terminate(self, number: int) -> None:
        if number < 10:
            self._terminate(rollback=False)

    def _terminate(self, *, rollback: bool) -> None:
        is_ending = self.record.ending is not None
        try:
            self.instance.terminate(rollback=rollback)
        except InvalidTransition:
            assert is_ending, "only what ends already refuses to be terminated (semantics §5.7)"
        else:
            assert not is_ending
            self.is_undone = rollback

    def finish(self) -> Ended:
        """Let it come to its end by itself, and give its records."""
        for _ in range(ROUNDS):
            self.env.run_until_idle()
            if self.record.is_finished:
                break
            if self.record.status is Status.PAUSED:
                self.instance.resume()
                continue
            due = self.record.next_due()
            assert due < FOREVER, f"{self.record.status} for ever"
            self.env.move(due)
        record = self.record
        assert record.is_finished, "it does not end"
        is_compensating = record.status is Status.ERRORED or self.is_undone
        return Ended(
            record.id, self.policy, record.status, is_compensating, record.in_order(), record.error, record.rollback,
            record.run, record.attempts,
        )  # fmt: skip


def check_story(saga: Saga, undone: list[str]) -> None:
    """semantics §7: a rollback is told in its order, and not at all where there is none."""
    story = [event for event in events(told(saga.record)) if event.type.startswith("rollback_")]
    if not undone:
        assert story == []
        return
    assert story[0].type == "rollback_started"
    assert story[-1].type in ("rollback_completed", "rollback_errored")
    names = [f"{each.step_name}:{each.count}" for each in story if each.type == "rollback_step_started"]
    assert names == [key.split(":", 1)[1] for key in undone]
    ends = [each for each in story if each.type in ("rollback_step_completed", "rollback_step_errored")]
    assert len(ends) == len(undone)


def played(seed: int, policy: str, disturbed: list[tuple[str, int]], order: int | None) -> tuple[Saga, Ended]:
    with WorkflowEnvironment(strict=False, seed=order) as env:
        saga = Saga(env, seed, policy)
        for operation, number in disturbed:
            saga.meet(operation, number)
        return saga, saga.finish()


@laws
@given(seeds, st.sampled_from(sorted(POLICIES)), disturbances, st.integers(0, 1000))
def test_what_was_undone_is_what_had_to_be(
    seed: int, policy: str, disturbed: list[tuple[str, int]], order: int
) -> None:
    """semantics §5.0, §5.1, §5.2, §5.3, §5.4, §5.5, §5.6, §5.8: whatever fails, is late, lost, paused, rebuilt or
    reloaded in between, the handlers that ran, their order and what they were told follow from the records alone."""
    saga, ended = played(seed, policy, disturbed, order)
    undone = check(ended)
    check_story(saga, undone)
    if "RollbackMissing" in errors_of(ended.rows):
        assert "reload_without" in {operation for operation, _ in disturbed}


def test_the_law_sees_all_kinds_of_ends() -> None:
    """The law above would say nothing of what never happens in it."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        policy = sorted(POLICIES)[seed % 4]
        _, ended = played(seed, policy, [("act", seed), *[("undo", 0)] * (seed % 5 == 4)], seed)
        undone = check(ended)
        seen[ended.status] += 1
        seen["undone"] += bool(undone)
        seen["several"] += len(undone) > 2
        seen["failed"] += "failed" in (ended.rollback or "")
        seen["stopped"] += len(undone) < len(to_be_undone(ended)) and ended.is_compensating
        seen["cut short"] += any(_row(ended, key).status == "cancelled" for key in undone)
        seen["half"] += any(
            _row(ended, key).status == "cancelled" and _row(ended, key).output for key in undone
        )
        seen["none"] += any(_row(ended, key).output == "null" for key in undone)
        seen["waits"] += any(key.startswith("wait:") for key in undone)
        seen["late"] += "StepTimeout" in errors_of(ended.rows)
    wanted = ("errored", "terminated", "complete", "undone", "several", "failed", "stopped", "cut short", "half",
              "none", "waits", "late")  # fmt: skip
    assert [kind for kind in wanted if not seen[kind]] == [], seen


def _row(ended: Ended, key: str) -> Any:
    return next(row for row in ended.rows if row.key == key)


def three_undone() -> Ended:
    """A plain saga: three steps, then a failure; all are undone."""
    node = {**sagas.TIDY, "part": "do", "caught": False, "limit": 0}
    program = [{**node, "name": name} for name in "abc"] + [{"part": "fail", "name": "fail", "caught": False}]
    with WorkflowEnvironment() as env:
        saga = Saga(env, 0, "sequential_stop")
        env.get(saga.workflow, "it").delete()
        saga.instance = env.create(saga.workflow, program, id="it")
        saga.record = next(iter(env.storage))
        sagas.journal.pop(str(saga.record.id), None)
        ended = saga.finish()
    assert check(ended) == ["do:c:1", "do:b:1", "do:a:1"]
    return ended


@pytest.mark.parametrize(
    "wrong",
    [
        "left out",
        "another order",
        "at once",
        "other outcome",
        "no outcome",
        "not begun",
        "none to undo",
        "other output",
    ],
)
def test_the_oracle_sees_what_is_wrong(wrong: str) -> None:
    """An oracle that agrees with everything would prove nothing."""
    ended = three_undone()
    rows = {row.key: row for row in ended.rows}
    first, last = rows["do:c:1:rollback"], rows["do:a:1:rollback"]
    match wrong:
        case "left out":
            ended.rows.remove(last)
        case "another order":
            first.started_seq, last.started_seq = last.started_seq, first.started_seq
            first.finished_seq, last.finished_seq = last.finished_seq, first.finished_seq
        case "at once":
            last.started_seq = first.started_seq + 1
        case "other outcome":
            ended.rollback = codec.encode({"outcome": "failed", "error": None, "errors": []}, what="it")
        case "no outcome":
            ended.rollback = None
        case "not begun":
            rows["do:b:1"].claimed_at, rows["do:b:1"].status = None, "cancelled"
        case "none to undo":
            ended = replace(ended, is_compensating=False)
        case "other output":
            rows["do:b:1"].output = '"something else"'
    with pytest.raises(AssertionError):
        check(ended)
