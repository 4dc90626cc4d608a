"""The kit: instances in the test's own process, on the engine's own decisions, with a clock that is moved by hand."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from orchestrator import (
    ErrorInfo,
    InstanceExists,
    InstanceNotFound,
    InvalidConfig,
    InvalidInstanceId,
    InvalidTransition,
    NonDeterminismError,
    Status,
    WorkflowEvent,
    WorkflowFailed,
    WorkflowStep,
    WorkflowTerminated,
)
from orchestrator.errors import InvalidParams, StepFailed
from orchestrator.testing import NeverIdle, StillWaiting, WorkflowEnvironment
from orchestrator.testing.simulation import driving
from orchestrator.workflow.language.definition import define
from tests.unit.testing import flows
from tests.unit.testing.flows import Order, Receipt, log

START = datetime(2026, 3, 1, 12, tzinfo=UTC)


def test_the_kit_loads_no_server_library() -> None:
    """api §6: no server is needed, nor any of its libraries."""
    code = (
        "import orchestrator.testing, sys\n"
        "heavy = {'sqlalchemy', 'celery', 'kombu', 'redis', 'psycopg', 'alembic', 'flower'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_an_instance_goes_as_far_as_it_can_without_time() -> None:
    """api §6: run_until_idle does all but what needs time, an event or a verb."""
    log.clear()
    with WorkflowEnvironment(start=START) as env:
        instance = env.create(flows.order, Order(7, ["tea"]), id="o-7")
        assert instance.status().status is Status.QUEUED and log == []
        env.run_until_idle()
        assert log == [("charge", 7)]
        assert instance.status().status is Status.WAITING
        assert [(s.key, s.status) for s in instance.steps()] == [
            ("do:charge:1", "done"),
            ("wait:approval:1", "waiting"),
        ]
        instance.send_event("approval", "carol")
        env.run_until_idle()
        env.advance("23 hours")
        assert instance.status().status is Status.WAITING
        env.advance(timedelta(hours=1))
        assert instance.result() == Receipt(Order(7, ["tea", "charged"]), "carol")
        assert env.now == START + timedelta(days=1)
        assert env.get(flows.order, "o-7").status().output == Receipt(Order(7, ["tea", "charged"]), "carol")


def test_timers_fire_at_their_own_moments_in_order() -> None:
    """api §6: advance fires each timer at its moment, and what the code starts there counts from there."""
    with WorkflowEnvironment(start=START) as env:
        first = env.create(flows.retries)
        second = env.create(flows.chance)
        env.advance("1 hour")
        attempts = first.steps()[0].attempts
        began = [a.started_at for a in attempts]
        assert began == [START, START + timedelta(seconds=10), START + timedelta(seconds=30)]
        assert second.result()[2] == START + timedelta(minutes=1)


def test_failure_is_compensated_and_told_as_in_production() -> None:
    """semantics §5.1: the handler of what was done runs when the workflow fails for good, with output and arguments."""
    log.clear()
    with WorkflowEnvironment() as env:
        instance = env.create(flows.order, Order(8, []), id="o-8")
        instance.send_event("approval", "no")
        env.advance("2 days")
        with pytest.raises(WorkflowFailed) as failed:
            instance.result()
        assert failed.value.error == ErrorInfo("Refused", "order 8 is refused")
        assert failed.value.rollback is not None and failed.value.rollback.outcome == "complete"
        ship = next(s for s in instance.steps() if s.name == "ship")
        assert [a.retry_delay for a in ship.attempts] == [60.0, None]
    assert log == [
        ("charge", 8),
        ("refund", Order(8, ["charged"]), (Order(8, []),), True, "Refused"),
    ], "bodies get copies of their arguments"


def test_what_does_not_come_by_itself_is_an_error_that_says_so() -> None:
    """api §6: wait_for_... and result() say what they wait for and where the instance stands."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.order, Order(1, []), id="o-1")
        with pytest.raises(TimeoutError, match="approval"):
            instance.result()
        with pytest.raises(StillWaiting, match=r"(?s)status 'complete'.*'o-1'.*waiting.*wait:approval:1"):
            instance.wait_for_status("complete")
        with pytest.raises(StillWaiting, match="result of step 'ship'"):
            instance.wait_for_step_result("ship")
        assert instance.wait_for_step_result("charge") == Order(1, ["charged"])
        with pytest.raises(StillWaiting, match="all instances"):
            env.wait_for_status("complete")
        env.wait_for_status(Status.WAITING)
        for waiting in (env, instance):
            with pytest.raises(InvalidConfig, match=r"no status 'done'.*complete"):
                waiting.wait_for_status("done")


def test_a_step_that_failed_is_told_by_its_error() -> None:
    """semantics §2.7: classes in sight of the workflow come back as themselves."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.order, Order(2, []))
        instance.send_event("approval", "no")
        instance.disable_sleeps()
        instance.disable_retry_delays("ship")
        with pytest.raises(flows.Refused, match="order 2"):
            env.wait_for_step_result("ship")


def test_verbs_refuse_as_in_production() -> None:
    """semantics §3.5, §4: finished instances take neither events nor terminate; ids are unique; gone is gone."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.told, id="t")
        with pytest.raises(InstanceExists):
            env.create(flows.told, id="t")
        with pytest.raises(InvalidInstanceId):
            env.create(flows.told, id="not an id")
        with pytest.raises(InvalidParams):
            env.create(flows.order, {"id": "no number"})
        with pytest.raises(InvalidConfig, match="expected a workflow"):
            env.create(flows.context)  # type: ignore[arg-type]
        assert instance.result()["instance"] == "t"
        for refused in (instance.terminate, lambda: instance.send_event("x")):
            with pytest.raises(InvalidTransition):
                refused()
        instance.delete()
        assert not instance.exists()
        with pytest.raises(InstanceNotFound):
            instance.status()
        with pytest.raises(InstanceNotFound):
            env.get(flows.told, "t")
        env.create(flows.told, id="t").result()


def test_terminate_runs_handlers_if_asked_to() -> None:
    """semantics §5.6: terminate with rollback undoes what was done; the end is terminated."""
    log.clear()
    with WorkflowEnvironment() as env:
        instance = env.create(flows.order, Order(3, []))
        env.run_until_idle()
        instance.terminate(rollback=True)
        with pytest.raises(WorkflowTerminated):
            instance.result()
    assert log[-1] == ("refund", Order(3, ["charged"]), (Order(3, []),), True, "Terminated")


def test_chance_is_the_same_in_every_run_of_a_test() -> None:
    """api §2: step.uuid() and step.random() come from the instance, and the kit's ids from a count."""
    found = []
    for _ in range(2):
        with WorkflowEnvironment(start=START) as env:
            instance = env.create(flows.chance)
            env.advance("1 minute")
            found.append(instance.result())
    assert found[0] == found[1]


def test_code_that_is_not_deterministic_is_found_without_asking() -> None:
    """semantics §1.6: each turn is replayed from its record; where that differs the test fails by name."""
    with WorkflowEnvironment() as env:
        env.create(flows.wall_clock)
        with pytest.raises(NonDeterminismError, match=r"(?s)kit-wall-clock.*step\.now"):
            env.run_until_idle()
    with WorkflowEnvironment(check_replay=False) as env:
        instance = env.create(flows.wall_clock)
        assert instance.result() is None, "without the check it passes, as it may in production for a while"


def test_another_result_on_replay_is_found() -> None:
    """semantics §1.1: code runs many times; a result that differs each time is no result."""
    count = iter(range(100))

    async def counted(event: WorkflowEvent[None], step: WorkflowStep) -> int:
        return next(count)

    class Counted:
        definition = define(counted, name="kit-counted")

    with WorkflowEnvironment() as env:
        env.create(Counted())  # type: ignore[arg-type]
        with pytest.raises(NonDeterminismError, match=r"the result 0.*the result 1"):
            env.run_until_idle()


def test_changed_code_blocks_and_code_that_fits_goes_on() -> None:
    """semantics §1.6, protocols §12: an instance that today's code does not fit is blocked, not failed."""

    async def renamed(event: WorkflowEvent[Order], step: WorkflowStep) -> Receipt:
        charged = await step.do("bill", flows.charge, event.payload)
        return Receipt(charged, "nobody")

    class Renamed:
        definition = define(renamed, name="kit-order")

    with WorkflowEnvironment() as env:
        instance = env.create(flows.order, Order(4, []))
        env.run_until_idle()
        env.deploy(Renamed())  # type: ignore[arg-type]
        instance.send_event("approval", "yes")
        env.run_until_idle()
        status = instance.status()
        assert status.status is Status.WAITING and status.blocked is not None
        assert status.blocked.name == "NonDeterminismError" and "bill" in status.blocked.message
        with pytest.raises(StillWaiting, match="blocked by NonDeterminismError"):
            instance.result()
        env.deploy(flows.order)
        env.advance("2 days")
        assert instance.result().by == "yes"


def test_a_loop_without_time_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """api §6: instances that go on for ever without time passing are an error, not a test that hangs."""
    monkeypatch.setattr(driving, "ACTS_AT_ONCE", 500)
    with WorkflowEnvironment(check_replay=False) as env:
        env.create(flows.endless)
        env.advance("10 days")
        env.disable_sleeps("round")
        with pytest.raises(NeverIdle, match="disabled"):
            env.run_until_idle()


def test_a_schedule_is_told_to_the_code() -> None:
    """api §4: event.schedule has the expression and the moment; the kit fires none by itself."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.scheduled, schedule=("0 3 * * *", START))
        assert instance.result() == ["0 3 * * *", START.isoformat().replace("+00:00", "Z")]
        with pytest.raises(InvalidConfig, match="time zone"):
            env.create(flows.scheduled, schedule=("0 3 * * *", datetime(2026, 1, 1)))


def test_values_come_back_as_they_are_recorded() -> None:
    """semantics §1.5: what a body raises that nothing in sight names comes back as StepFailed."""

    class Unseen(Exception):
        pass

    def fail() -> None:
        raise Unseen("far away")

    async def failing(event: WorkflowEvent[None], step: WorkflowStep) -> str:
        try:
            await step.do("fail", body[0], retries=flows.Retries(limit=0))
        except StepFailed as error:
            return f"{error.name}: {error.message}"
        return "?"

    body = [fail]

    class Failing:
        definition = define(failing, name="kit-failing")

    with WorkflowEnvironment() as env:
        assert env.create(Failing()).result() == "Unseen: far away"  # type: ignore[arg-type]
