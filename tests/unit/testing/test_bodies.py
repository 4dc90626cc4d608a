"""Bodies run for real: sync ones directly, async ones on a loop of the kit's own, also from within a running loop."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from celery import Celery

from orchestrator import NonRetryableError, Retries, RetryDelayError, WorkflowEvent, WorkflowStep
from orchestrator.errors import NotDurable
from orchestrator.testing import WorkflowEnvironment
from orchestrator.testing.simulation import bodies
from orchestrator.workflow.language.definition import define
from tests.unit.testing import flows


class Once:
    """A workflow that no registry knows."""

    def __init__(self, fn: Any, name: str) -> None:
        self.definition = define(fn, name=name)


def run(fn: Any, *, name: str = "kit-once", **options: Any) -> Any:
    with WorkflowEnvironment(**options) as env:
        return env.create(Once(fn, name)).result()  # type: ignore[arg-type]


def test_async_bodies_under_way_run_at_once() -> None:
    """api §2: steps that were started run at once."""
    began = time.monotonic()
    with WorkflowEnvironment() as env:
        assert env.create(flows.fan, 100).result() == list(range(100))
    assert time.monotonic() - began < 100 * 0.01 * 5, "one after the other they take longer than that"


def test_a_cancelled_body_is_cancelled() -> None:
    """protocols §13: a step that loses a race and is cancelled gets its CancelledError, and is recorded so."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.race)
        assert instance.result() == "fast"
        env.run_until_idle()
        assert [(s.name, s.status) for s in instance.steps()] == [("fast", "done"), ("slow", "cancelled")]


def test_a_body_is_told_what_it_is() -> None:
    """api §2: name, attempt, instance and an idempotency key that names instance, run and step (protocols §3)."""
    with WorkflowEnvironment() as env:
        instance = env.create(flows.told, id="t")
        told = instance.result()
    assert (told["name"], told["attempt"], told["instance"]) == ("tell", 1, "t")
    assert told["key"].endswith(":0:do:tell:1")


def test_real_timeouts_hold() -> None:
    """semantics §2.3: an async body is cancelled at its timeout; a sync one that took too long has timed out."""
    ends: list[str] = []

    async def sleepy() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("cancelled")

    def slow() -> None:
        time.sleep(0.05)

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> list[str]:
        found = []
        for fn in (sleepy, slow):
            try:
                await step.do(fn.__name__, fn, timeout=0.02, retries=Retries(limit=0))
            except Exception as error:
                found.append(type(error).__name__)
        return found

    assert run(code) == ["StepTimeout", "StepTimeout"]
    assert ends == ["cancelled"]


def test_delay_functions_are_asked() -> None:
    """semantics §2.4: sync or async; what they return is multiplied; a wrong answer fails the step."""

    async def asked(ctx: Any, error: Exception) -> float:
        return 7.0 if str(error) == "attempt 1" else 9.0

    def wrong(ctx: Any, error: Exception) -> str:
        return "soon"

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("connect", flows.third_time, retries=Retries(limit=3, delay=asked, backoff="constant"))
        try:
            await step.do("again", flows.third_time, retries=Retries(limit=3, delay=wrong))
        except Exception as error:
            return type(error).__name__
        return "?"

    with WorkflowEnvironment() as env:
        instance = env.create(Once(code, "kit-delays"))  # type: ignore[arg-type]
        env.advance(60)
        assert instance.result() == "RetryDelayError"
        assert [a.retry_delay for a in instance.steps()[0].attempts] == [7.0, 9.0, None]


@pytest.mark.parametrize("is_sync", [True, False])
def test_delay_functions_may_be_too_slow(monkeypatch: pytest.MonkeyPatch, is_sync: bool) -> None:
    """semantics §2.4: sync or async, an answer that comes too late fails the step, in production's words."""
    assert bodies.DELAY_FUNCTION_S == 5.0
    monkeypatch.setattr(bodies, "DELAY_FUNCTION_S", 0.05)

    def blocks(ctx: Any, error: Exception) -> float:
        threading.Event().wait(0.1)
        return 0.0

    async def sleeps(ctx: Any, error: Exception) -> float:
        await asyncio.sleep(60)
        return 0.0

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> str:
        try:
            delay = blocks if is_sync else sleeps
            await step.do("again", flows.third_time, retries=Retries(limit=3, delay=delay))
        except RetryDelayError as error:
            return str(error)
        return "?"

    said = run(code)
    assert (
        "TimeoutError: no answer within 0.05 seconds (attempt 1 had failed with ConnectionError: attempt 1)"
        in said
    )


def test_errors_that_end_retries_do() -> None:
    """semantics §2.2: NonRetryableError fails the step at once."""

    def give_up() -> None:
        raise NonRetryableError("no use", "Hopeless")

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> str:
        try:
            await step.do("x", give_up)
        except NonRetryableError as error:
            return error.name
        return "?"

    assert run(code) == "Hopeless"


def test_a_body_may_steer_but_not_drive() -> None:
    """api §6: bodies create, send and terminate as in production; driving is the test's."""
    said: list[str] = []

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("steer", steer)
        return "unreachable"

    with WorkflowEnvironment() as env:
        instance: Any = None

        async def steer() -> None:
            env.create(flows.told, id="made")
            with pytest.raises(NotDurable, match="must not drive"):
                env.run_until_idle()
            instance.terminate()
            said.append("terminated")
            await asyncio.sleep(60)

        instance = env.create(Once(code, "kit-steering"))  # type: ignore[arg-type]
        env.run_until_idle()
        assert said == ["terminated"]
        assert instance.status().status == "terminated"
        assert env.get(flows.told, "made").status().status == "complete"


def test_workflow_code_may_not_call_the_kit() -> None:
    """protocols §2: client verbs are refused in workflow code."""

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> str:
        try:
            env.create(flows.told)
        except NotDurable as error:
            return str(error)
        return "?"

    with WorkflowEnvironment() as env:
        assert "inside step.do" in env.create(Once(code, "kit-calls")).result()  # type: ignore[arg-type]


def test_the_kit_can_be_driven_from_a_running_loop() -> None:
    """api §6: in a coroutine the sync verbs work (on a thread), and so do the async twins, with the loop going on."""

    async def test() -> None:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        with WorkflowEnvironment() as env:
            assert env.create(flows.fan, 3).result() == [0, 1, 2]
            before = ticks
            instance = await env.acreate(flows.order, flows.Order(1, []))
            await env.arun_until_idle()
            assert (await instance.astatus()).status == "waiting"
            await instance.asend_event("approval", "yes")
            await env.aadvance("2 days")
            assert (await instance.aresult()).by == "yes"
            assert (await instance.await_for_status("complete")).output.by == "yes"
            assert await instance.await_for_step_result("charge") == flows.Order(1, ["charged"])
            assert len(await instance.asteps()) == 3
            assert ticks > before
        ticking.cancel()

    asyncio.run(test())


def test_sync_bodies_run_on_the_thread_of_the_test() -> None:
    """api §6: no threads: a sync body may use what belongs to the test's thread, and asyncio.run of its own."""
    seen: list[Any] = []

    def body() -> int:
        seen.append(threading.current_thread())
        return asyncio.run(flows.nap(0, 5))

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> int:
        return int(await step.do("x", body))

    assert run(code) == 5
    assert seen == [threading.current_thread()]


def test_a_seed_draws_the_order_in_which_bodies_end() -> None:
    """api §6: start order by default; with a seed another one, the same for the same seed."""

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> list[int]:
        order: list[int] = []

        async def note(n: int) -> None:
            order.append(await step.do("n", flows.nap, 0, n))

        await asyncio.gather(*[note(n) for n in range(6)])
        return order

    orders = [run(code, seed=seed) for seed in (None, 1, 1, 2)]
    assert orders[0] == list(range(6)) and orders[1] == orders[2]
    assert len({tuple(order) for order in orders}) == 3


def test_signals_of_the_test_runner_reach_it() -> None:
    """pytest.fail in a body ends the test, not the step."""

    def body() -> None:
        pytest.fail("this body must not run")

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("x", body)

    with pytest.raises(pytest.fail.Exception, match="must not run"):
        run(code)


def test_decorated_steps_and_marks_run_too() -> None:
    """api §2: the kit knows no step by its kind: decorated ones, with what they ask for, and step.patched."""

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> list[Any]:
        @step.do("load")
        async def load() -> int:
            return 5

        @step.do("double")
        def double(load: int) -> int:
            return load * 2

        return [step.patched("doubled"), await double()]

    assert run(code) == [True, 10]
    with WorkflowEnvironment() as env:
        instance = env.create(Once(code, "kit-decorated"))  # type: ignore[arg-type]
        instance.mock_step_result("load", 8)
        assert instance.result() == [True, 16]


def test_an_end_that_nobody_waits_for_does_not_stop_the_others() -> None:
    """semantics §4: what a body of a terminated instance returns is not recorded; other instances go on."""

    async def code(event: WorkflowEvent[None], step: WorkflowStep) -> str:
        return str(await step.do("end", end))

    def end() -> None:
        ending.terminate()

    with WorkflowEnvironment() as env:
        ending = env.create(Once(code, "kit-ending"))  # type: ignore[arg-type]
        other = env.create(flows.told)
        env.run_until_idle()
        assert (ending.status().status, other.status().status) == ("terminated", "complete")


def test_a_celery_signature_calls_its_task() -> None:
    """protocols §16: under test it needs no broker; what Celery would retry is a failed attempt."""
    app = Celery("kit", broker="memory://", set_as_current=False)
    tries: list[int] = []

    @app.task(name="kit.charge", shared=False, bind=True, autoretry_for=(ConnectionError,), retry_backoff=60)
    def charge(self: Any, order: str, amount: int = 0) -> list[Any]:
        tries.append(amount)
        if len(tries) == 1:
            raise ConnectionError("away")
        return [order, amount, self.request.called_directly]

    async def flow(event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
        return await step.do("charge", charge.s("o-1", amount=2), retries=Retries(limit=1, delay=0))

    assert run(flow, name="kit-signature") == ["o-1", 2, True]
    assert tries == [2, 2]
