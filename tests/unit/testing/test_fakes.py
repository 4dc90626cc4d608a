"""Fakes change what comes from outside; the rest runs as in production."""

from __future__ import annotations

import pytest

from orchestrator import InvalidConfig, StepTimeout, WorkflowFailed
from orchestrator.errors import SerializationError
from orchestrator.testing import UnusedMock, WorkflowEnvironment
from tests.unit.testing import flows
from tests.unit.testing.flows import Order, log


def test_sleeps_can_be_disabled_by_name_or_all() -> None:
    """api §6: disable_sleeps lets sleeps be over at once; the clock does not move."""
    with WorkflowEnvironment() as env:
        began = env.now
        one = env.create(flows.chance)
        one.disable_sleeps("a while")
        one.result()
        other = env.create(flows.chance)
        env.run_until_idle()
        assert not other.status().output
        env.disable_sleeps()
        other.result()
        assert env.now == began


def test_retries_can_come_at_once() -> None:
    """api §6: disable_retry_delays; the delays are recorded as configured."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.retries)
        env.run_until_idle()
        instance.disable_retry_delays("connect")
        assert instance.result() == 3
        assert [a.retry_delay for a in instance.steps()[0].attempts] == [10.0, 20.0, None]


def test_a_mocked_result_stands_for_the_body() -> None:
    """api §6: the body does not run; the value is recorded and typed like any result."""
    log.clear()
    with WorkflowEnvironment() as env:
        instance = env.create(flows.order, Order(1, []))
        instance.mock_step_result("charge", {"id": 5, "lines": ["mocked"]})
        assert instance.wait_for_step_result("charge") == Order(5, ["mocked"])
        assert log == []
        wrong = env.create(flows.order, Order(1, []))
        wrong.mock_step_result("charge", "no order")
        with pytest.raises(WorkflowFailed) as failed:
            wrong.result()
        assert failed.value.error.name == SerializationError.__name__


def test_mocked_errors_come_for_a_number_of_attempts() -> None:
    """api §6: mock_step_error(times=2): the first two attempts fail, the third is the body's."""
    with WorkflowEnvironment() as env:
        env.disable_retry_delays()
        env.mock_step_error("tell", ValueError("away"), times=2)
        instance = env.create(flows.told)
        assert instance.result()["attempt"] == 3
        errors = [a.error and a.error.name for a in instance.steps()[0].attempts]
        assert errors == ["ValueError", "ValueError", None]


def test_mocked_errors_without_number_come_always() -> None:
    """semantics §2.2: five retries by default, then the step fails with the error."""
    with WorkflowEnvironment() as env:
        env.disable_retry_delays("tell")
        instance = env.create(flows.told)
        instance.mock_step_error("tell", ValueError)
        with pytest.raises(WorkflowFailed, match="ValueError"):
            instance.result()
        assert len(instance.steps()[0].attempts) == 6


def test_one_instance_goes_before_all() -> None:
    """api §6: fakes per instance, or for all."""
    with WorkflowEnvironment() as env:
        env.mock_step_result("tell", {"by": "all"})
        one, other = env.create(flows.told), env.create(flows.told)
        one.mock_step_result("tell", {"by": "one"})
        assert (one.result(), other.result()) == ({"by": "one"}, {"by": "all"})


def test_attempts_can_be_made_to_run_out_of_time() -> None:
    """semantics §2.3: the timeout is per attempt; no real time passes."""
    with WorkflowEnvironment() as env:
        env.disable_retry_delays()
        instance = env.create(flows.told)
        instance.force_step_timeout("tell", times=1)
        assert instance.result()["attempt"] == 2
        error = instance.steps()[0].attempts[0].error
        assert error is not None and error.name == StepTimeout.__name__ and "600 seconds" in error.message


def test_an_event_can_be_mocked_for_all() -> None:
    """api §6: mock_event reaches the instances there are and those to come."""
    with WorkflowEnvironment() as env:
        first = env.create(flows.order, Order(1, []))
        env.mock_event("approval", "robot")
        second = env.create(flows.order, Order(2, []))
        env.advance("2 days")
        assert (first.result().by, second.result().by) == ("robot", "robot")


def test_a_wait_can_be_made_to_time_out_whatever_events_there_are() -> None:
    """api §6: force_event_timeout; the events stay for the waits that may have them."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.two_waits)
        instance.send_event("go", 1)
        instance.force_event_timeout("first")
        assert instance.result() == ["EventTimeout", 1]
        later = env.create(flows.two_waits)
        env.run_until_idle()
        later.send_event("go", 2)
        later.force_event_timeout("first")
        assert later.result() == ["EventTimeout", 2]


def test_mocks_that_nobody_used_are_told() -> None:
    """A mock of a step that never came is mostly a wrong name: the end of the environment says so."""
    with (
        pytest.raises(UnusedMock, match=r"(?s)mock_step_result\('chrage'\).*do:tell:1"),
        WorkflowEnvironment() as env,
    ):
        env.mock_step_result("chrage", 1)
        env.create(flows.told).result()
    for verb in (
        "disable_sleeps",
        "disable_retry_delays",
        "force_step_timeout",
        "force_event_timeout",
        "mock_event",
    ):
        with pytest.raises(UnusedMock, match=rf"{verb}\('nothing'\)"), WorkflowEnvironment() as env:
            getattr(env.create(flows.told), verb)("nothing")
    with WorkflowEnvironment() as env:
        env.disable_retry_delays("tell")  # no retry came up, but the step is there
        env.create(flows.told).result()
    with WorkflowEnvironment(strict=False) as env:
        env.mock_step_result("chrage", 1)
    with pytest.raises(ZeroDivisionError), WorkflowEnvironment() as env:
        env.mock_step_result("chrage", 1)
        raise ZeroDivisionError("the test's own failure goes before")


def test_mocks_that_make_no_sense_are_refused() -> None:
    """Bad input gets a clear error at the call."""
    with WorkflowEnvironment(strict=False) as env:
        for times in (0, -1, True, 1.5):
            with pytest.raises(InvalidConfig, match="times"):
                env.mock_step_error("x", ValueError(), times=times)  # type: ignore[arg-type]
        with pytest.raises(InvalidConfig, match="exception"):
            env.mock_step_error("x", "boom")  # type: ignore[arg-type]
        with pytest.raises(SerializationError):
            env.mock_event("x", object())
