"""The deterministic loop: what it refuses, in which order it goes through sets, what it keeps alive."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.errors import NonDeterminismError, NotDurable
from orchestrator.workflow.codec import revive
from orchestrator.workflow.language.definition import define
from orchestrator.workflow.loop import (
    CALLBACKS_PER_RUN,
    StepFuture,
    WorkflowLoop,
    inside_workflow,
    workflow_context,
)
from orchestrator.workflow.replay import RUNS_UNTIL_STUCK
from tests.laws.world import World


def give(value: Any = None) -> Any:
    return value


def loop() -> WorkflowLoop:
    return WorkflowLoop(7)  # type: ignore[abstract]


def result_of(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing outside the loop."""
    here = loop()
    task = here.create_task(coroutine)
    assert here.run()
    return task.result()


def error_of(workflow: Any) -> Exception:
    """What a workflow fails with in its first turn."""
    world = World(define(workflow))
    world.turn()
    assert world.error is not None, world.status
    return revive(world.error, {})


async def wait_for_a_step(event, step):
    await asyncio.wait_for(step.do("s", give), 5)


async def timeout(event, step):
    async with asyncio.timeout(5):
        await step.do("s", give)


async def timeout_at(event, step):
    async with asyncio.timeout_at(asyncio.get_running_loop().time() + 5):
        await step.do("s", give)


async def wait_with_timeout(event, step):
    await asyncio.wait([step.do("s", give)], timeout=5)


async def as_completed_with_timeout(event, step):
    for each in asyncio.as_completed([step.do("s", give)], timeout=5):
        await each


async def a_sleep(event, step):
    await asyncio.sleep(1)


async def a_short_sleep(event, step):
    await asyncio.sleep(0.001)


async def a_thread(event, step):
    await asyncio.to_thread(print)


async def an_executor(event, step):
    await asyncio.get_running_loop().run_in_executor(None, print)


async def from_a_thread(event, step):
    asyncio.get_running_loop().call_soon_threadsafe(print)


async def a_connection(event, step):
    await asyncio.open_connection("localhost", 1)


async def a_server(event, step):
    await asyncio.start_server(lambda r, w: None, "localhost", 1)


async def a_name(event, step):
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)


async def a_process(event, step):
    await asyncio.create_subprocess_exec("true")


async def a_signal(event, step):
    asyncio.get_running_loop().add_signal_handler(1, print)


async def bare_as_completed(event, step):
    async def work(name: str) -> Any:
        return await step.do(name, give)

    for each in asyncio.as_completed([work("a"), work("b")]):
        await each


@pytest.mark.parametrize(
    ("workflow", "instead"),
    [
        (wait_for_a_step, "`timeout=` of"),
        (timeout, "`timeout=` of step.do"),
        (timeout_at, "`step.now()`"),
        (wait_with_timeout, "`timeout=` of the step"),
        (as_completed_with_timeout, "`timeout=` of the step"),
        (a_sleep, "`await step.sleep(name, duration)`"),
        (a_short_sleep, "`await step.sleep(name, duration)`"),
        (a_thread, "`step.do(name, fn, ...)`"),
        (an_executor, "`step.do(name, fn, ...)`"),
        (from_a_thread, "`step.do(name, fn, ...)`"),
        (a_connection, "`step.do(name, fn, ...)`"),
        (a_server, "`step.do(name, fn, ...)`"),
        (a_name, "`step.do(name, fn, ...)`"),
        (a_process, "`step.do(name, fn, ...)`"),
        (a_signal, "`step.do(name, fn, ...)`"),
        (bare_as_completed, "asyncio.create_task(...)"),
    ],
)
def test_what_is_not_durable_is_refused_by_name(workflow: Any, instead: str) -> None:
    """Protocols §2: waiting by the clock, threads and I/O raise an error that names the durable call."""
    error = error_of(workflow)
    assert isinstance(error, NotDurable)
    assert instead in str(error)


def test_yielding_is_fine() -> None:
    """Protocols §2: only ``asyncio.sleep(n > 0)`` is refused."""

    async def yields() -> str:
        for _ in range(100):
            await asyncio.sleep(0)
        return "through"

    assert result_of(yields()) == "through"


def test_the_primitives_of_asyncio_work() -> None:
    """Locks, events, queues and barriers need no clock."""

    async def uses() -> list[Any]:
        lock, done, queue, barrier = asyncio.Lock(), asyncio.Event(), asyncio.Queue(), asyncio.Barrier(2)
        seen: list[Any] = []

        async def other() -> None:
            async with lock:
                seen.append(await queue.get())
            await barrier.wait()
            done.set()

        task = asyncio.create_task(other(), name="other")
        await queue.put("item")
        await barrier.wait()
        await done.wait()
        await task
        return [*seen, task.get_name(), asyncio.current_task() is not task]

    assert result_of(uses()) == ["item", "other", True]


def test_tasks_in_a_set_come_in_creation_order() -> None:
    """Protocols §13: tasks hash by creation order, so sets of them iterate alike in every process."""

    async def order() -> list[str]:
        async def nothing() -> None:
            await asyncio.sleep(0)

        tasks = {asyncio.create_task(nothing(), name=f"t{index}") for index in range(40)}
        return [task.get_name() for task in tasks]

    assert result_of(order()) == [f"t{index}" for index in range(40)]
    assert result_of(order()) == result_of(order())


def test_futures_in_a_set_come_in_creation_order() -> None:
    """Protocols §13: step futures and plain futures likewise."""
    here = loop()
    steps = [StepFuture(here, lambda key: None, str(index)) for index in range(40)]
    assert [future.get_name() for future in set(steps)] == [str(index) for index in range(40)]
    plain = [here.create_future() for _ in range(40)]
    assert list(set(plain)) == plain
    assert len({*steps, *plain}) == 80


def test_loops_do_not_share_hashes() -> None:
    """Protocols §13: all tasks of a process stand in one weak set; loops must not collide there."""
    first, second = WorkflowLoop(1), WorkflowLoop(2)  # type: ignore[abstract]
    assert not {hash(first.create_future()) for _ in range(100)} & {
        hash(second.create_future()) for _ in range(100)
    }


def test_tasks_nobody_holds_are_kept_alive() -> None:
    """Protocols §13: the garbage collector takes no part in what happens."""

    async def starts() -> list[int]:
        done: list[int] = []

        async def work(index: int, gate: asyncio.Future[None]) -> None:
            await gate
            done.append(index)

        gate = asyncio.get_running_loop().create_future()
        for index in range(3):
            asyncio.create_task(work(index, gate))  # noqa: RUF006
        await asyncio.sleep(0)
        gc.collect()
        gate.set_result(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return done

    assert result_of(starts()) == [0, 1, 2]


def test_an_abandoned_generator_is_not_finalised_by_the_collector() -> None:
    """Protocols §1: a ``finally:`` must not run whenever the collector comes by."""
    ran: list[str] = []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            ran.append("finally")

    async def leaves() -> None:
        async for _ in numbers():
            break
        gc.collect()
        await asyncio.sleep(0)

    result_of(leaves())
    gc.collect()
    assert ran == []


def test_a_budget_ends_the_run_and_the_next_goes_on() -> None:
    """Protocols §1 (6): one feed runs so many callbacks, then says that it is not idle."""
    here = loop()

    async def counts() -> int:
        for _ in range(25):
            await asyncio.sleep(0)
        return 25

    task = here.create_task(counts())
    assert not here.run(10)
    assert not here.run(10)
    assert here.run(10)
    assert task.result() == 25


def test_what_was_cancelled_does_not_run() -> None:
    """``call_soon`` gives a handle, as asyncio's own code expects."""
    here, ran = loop(), []
    handle = here.call_soon(ran.append, 1)
    here.call_soon(ran.append, 2)
    handle.cancel()
    assert handle.cancelled()
    assert here.run()
    assert ran == [2]


def test_the_running_loop_is_restored() -> None:
    """Protocols §1: a replay is driven from a callback of whatever loop; that one stands again afterwards."""

    async def outer() -> bool:
        mine = asyncio.get_running_loop()
        here = loop()
        here.call_soon(lambda: None)
        here.run()
        return asyncio.get_running_loop() is mine

    assert asyncio.run(outer())
    here = loop()
    here.call_soon(exec, "raise LookupError")
    with pytest.raises(LookupError):
        here.run()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_what_is_no_coroutine_is_no_task() -> None:
    """``create_task`` takes coroutines and steps."""
    with pytest.raises(TypeError, match="needs a coroutine or a step, not int"):
        loop().create_task(1)


def test_a_step_is_its_own_task() -> None:
    """Protocols §13: ``create_task(step.do(...))`` hands back the step."""
    here = loop()
    future = StepFuture(here, lambda key: None, "do:a:1")
    assert here.create_task(future) is future


@pytest.mark.parametrize("exit_", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_workflow_code_stays_there(exit_: type[BaseException]) -> None:
    """A workflow cannot stop its worker: whatever asks for an exit fails the workflow."""

    async def exits(event, step):
        raise exit_(3)

    world = World(define(exits))
    world.turn()
    assert world.status.value == "errored"
    assert exit_.__name__ in (world.error or "")


def test_workflow_code_is_told_by_a_context_variable() -> None:
    """Protocols §2: what runs inside a workflow knows it, in helper tasks too, and nobody else does."""
    found: list[bool] = []

    async def asks(event, step):
        found.append(inside_workflow())
        await asyncio.create_task(helper())

    async def helper() -> None:
        found.append(inside_workflow())

    World(define(asks)).turn()
    assert found == [True, True]
    assert not inside_workflow()
    assert workflow_context().run(inside_workflow)


# -- discarding --------------------------------------------------------------------------------------------------


def discarded(workflow: Callable[..., Any]) -> World:
    world = World(define(workflow))
    world.turn()
    world.evict()
    return world


def test_no_step_starts_in_a_finally_of_a_discarded_replay() -> None:
    """Protocols §1: an evicted replay is marked dead first; steps in its ``finally:`` raise a ``BaseException``."""
    came: list[str] = []

    async def tidies(event, step):
        try:
            await step.do("work", give)
        finally:
            came.append("finally")
            try:
                await step.do("tidy", give)
            except Exception:
                came.append("swallowed")
            came.append("after")

    world = discarded(tidies)
    assert came == ["finally"]
    assert list(world.rows) == ["do:work:1"]


def test_helper_tasks_of_a_discarded_replay_end_too() -> None:
    """Protocols §1: likewise in every task of the replay, and nothing that it schedules runs."""
    came: list[str] = []

    async def helped(event, step):
        async def helper() -> None:
            try:
                await step.sleep("long", 100)
            finally:
                came.append("helper")
                asyncio.get_running_loop().call_soon(came.append, "scheduled")

        asyncio.create_task(helper())  # noqa: RUF006
        await step.do("work", give)

    discarded(helped)
    assert came == ["helper"]


def test_a_finally_of_a_discarded_replay_is_still_workflow_code() -> None:
    """Protocols §2: clients are refused there, and the worker's own loop is out of reach."""
    found: list[Any] = []

    async def looks(event, step):
        try:
            await step.do("work", give)
        finally:
            found.append(inside_workflow())
            found.append(type(asyncio.get_running_loop()).__name__)

    async def worker() -> None:
        discarded(looks)

    asyncio.run(worker())
    assert found == [True, "WorkflowLoop"]


# -- budgets -----------------------------------------------------------------------------------------------------


def test_code_that_spins_is_held() -> None:
    """Protocols §1 (6): a feed that never becomes idle holds the instance, and says why."""

    async def spins(event, step):
        while True:
            await asyncio.sleep(0)

    world = World(define(spins))
    with pytest.raises(NonDeterminismError, match="without waiting for any step"):
        for turns in range(RUNS_UNTIL_STUCK + 5):  # noqa: B007
            assert world.one_turn().again
            assert world.status.value == "running"
    assert turns == RUNS_UNTIL_STUCK
    assert world.rows == {}


def test_code_that_takes_long_goes_on_in_the_next_turn() -> None:
    """Protocols §1 (6): code over its budget commits what it asked for so far, and goes on."""

    async def long(event, step):
        early = step.do("early", give, 1)
        for _ in range(2 * CALLBACKS_PER_RUN):
            await asyncio.sleep(0)
        return [await early, await step.do("late", give, 2)]

    world = World(define(long))
    writes = world.one_turn()
    assert writes.again
    assert world.handed() == ["do:early:1"]
    world.claim()
    writes = world.one_turn(world.outcome("do:early:1"))
    assert writes.left
    world.turn(*writes.left)
    world.evict()
    world.end("do:late:1")
    assert world.output == "[1,2]"
