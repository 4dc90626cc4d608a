"""Workflow shapes: the ways in which people write concurrent, failing, waiting and looping code.

Owns: the shapes and their bodies. Bodies are plain functions without state; whether an attempt fails in addition is
up to whoever drives the shape. Everything the code is given goes through ``see``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import EventTimeout, NonRetryableError, NotDurable, StepLimitExceeded
from orchestrator.workflow.language.config import Retries, RollbackPolicy
from orchestrator.workflow.language.definition import Definition, define
from tests.laws.world import START, World, seen


@dataclass(frozen=True)
class Shape:
    """A workflow and the events that are sent to it."""

    definition: Definition
    events: tuple[str, ...] = ()
    max_steps: int | None = None

    def __str__(self) -> str:
        return self.definition.name

    def world(self) -> World:
        return World(self.definition, {"n": 3}, max_steps=self.max_steps)


SHAPES: dict[str, Shape] = {}


def shape(events: str = "", max_steps: int | None = None, **options: Any) -> Any:
    def add(fn: Any) -> Any:
        definition = define(fn, **options)
        SHAPES[definition.name] = Shape(definition, tuple(events.split()), max_steps)
        return fn

    return add


def see(value: Any) -> Any:
    """Note a value, an error or an event as the code was given it."""
    said: Any = repr(value)
    if isinstance(value, BaseException):
        said = (repr(value.args), str(value), value.__cause__ is None)
    seen.get().append((type(value).__qualname__, said))
    return value


async def look(awaitable: Awaitable[Any]) -> Any:
    """Await, note what came, and pass it on."""
    try:
        return see(await awaitable)
    except (Exception, asyncio.CancelledError) as error:
        see(error)
        raise


# -- bodies ----------------------------------------------------------------------------------------------------


class Refused(Exception):
    def __init__(self, reason: str, *, code: int = 0) -> None:
        super().__init__(reason)
        self.code = code


class Unknowable(Exception):
    """Its argument has no JSON form."""


@dataclass
class Order:
    id: int
    lines: list[str]
    paid: bool = False


def give(value: Any = None) -> Any:
    return value


def order(number: int) -> Order:
    return Order(number, ["tea", "milk"])


def boom(text: str) -> None:
    raise ValueError(text)


def refuse(reason: str) -> None:
    raise Refused(reason, code=7)


def final(text: str) -> None:
    raise NonRetryableError(text, "Final")


class Opaque:
    """Has no JSON form."""

    def __repr__(self) -> str:
        return "Opaque()"


def unknowable() -> None:
    raise Unknowable(Opaque())


def third_time(ctx: Any) -> str:
    if ctx.attempt < 3:
        raise ConnectionError(f"attempt {ctx.attempt}")
    return "connected"


def undo(ctx: Any) -> list[Any]:
    return ["undone", ctx.output, list(ctx.args)]


def undo_fails(ctx: Any) -> None:
    raise Refused("cannot undo")


ONCE = Retries(limit=0)
SOON = Retries(limit=1, delay=1, backoff="constant")


# -- one after the other -----------------------------------------------------------------------------------------


@shape()
async def nothing(event, step):
    return event.payload


@shape()
async def sequential(event, step):
    total = 0
    for name in ("a", "b", "c"):
        total += await look(step.do(name, give, event.payload["n"]))
    return total


@shape()
async def same_names(event, step):
    return [await look(step.do("again", give, index)) for index in range(4)]


@shape()
async def conditional(event, step):
    if await look(step.do("check", give, event.payload["n"])) > 2:
        await look(step.do("many", give, "many"))
    else:
        await look(step.do("few", give, "few"))
    return await look(step.do("check", give, None))


@shape()
async def typed_results(event, step):
    first = await look(step.do("order", order, 7))
    first.paid = True
    second = await look(step.do("same", order, first.id))
    return [first.paid, second.paid, type(first).__name__]


@shape()
async def until_it_works(event, step):
    return await look(step.do("connect", third_time, retries=Retries(limit=5, delay=2, backoff="linear")))


@shape()
async def steps_in_nested_functions(event, step):
    async def leaf(name: str) -> Any:
        return await look(step.do(name, give, name))

    async def branch(name: str) -> Any:
        return [await leaf(f"{name}.1"), await leaf(f"{name}.2")]

    return [await branch("x"), await branch("y")]


@shape()
async def deep_recursion(event, step):
    async def down(depth: int) -> int:
        if depth == 0:
            return await look(step.do("bottom", give, 1))
        return 1 + await down(depth - 1)

    return await down(60)


@shape()
async def while_loop(event, step):
    count = 0
    while await look(step.do("more", give, count < 3)):
        count += 1
        await look(step.sleep("between", 5))
    return count


# -- all at once -------------------------------------------------------------------------------------------------


@shape()
async def gathered(event, step):
    return see(await asyncio.gather(*[step.do(f"g{index}", give, index) for index in range(5)]))


@shape()
async def gathered_with_errors(event, step):
    results = await asyncio.gather(
        step.do("fine", give, 1), step.do("wrong", boom, "no", retries=ONCE), return_exceptions=True
    )
    return [repr(see(each)) for each in results]


@shape()
async def gathered_and_one_fails(event, step):
    try:
        await asyncio.gather(
            step.do("wrong", boom, "no", retries=ONCE), step.do("a", give), step.do("b", give)
        )
    except Exception as error:
        see(error)
    return await look(step.do("after", give, "after"))


@shape()
async def gathered_helpers(event, step):
    async def two(name: str) -> list[Any]:
        return [await look(step.do("one", give, name)), await look(step.do("two", give, name))]

    return see(await asyncio.gather(two("x"), two("y"), two("z")))


@shape()
async def first_completed(event, step):
    waiting = {step.do(f"race{index}", give, index) for index in range(4)}
    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    see(sorted(future.get_name() for future in done))
    done, _ = await asyncio.wait(waiting)
    return sorted(future.get_name() for future in done)


@shape()
async def first_completed_cancels(event, step):
    done, late = await asyncio.wait(
        [step.do("slow", give, "slow", rollback=undo), step.do("fast", give, "fast"), step.sleep("max", 30)],
        return_when=asyncio.FIRST_COMPLETED,
    )
    for future in late:
        future.cancel()
    see([future.get_name() for future in done])
    return await look(step.do("after", give, len(done)))


@shape()
async def all_completed(event, step):
    futures = [step.do("a", give, 1), step.do("b", boom, "b", retries=SOON), step.sleep("s", 3)]
    done, late = await asyncio.wait(futures, return_when=asyncio.ALL_COMPLETED)
    return [len(done), len(late), *[repr(see(f.exception())) for f in futures]]


@shape()
async def as_they_complete(event, step):
    got = []
    for each in asyncio.as_completed([step.do(f"c{index}", give, index) for index in range(5)]):
        got.append(await look(each))
    return got


@shape()
async def sets_of_futures(event, step):
    futures = {step.do("s", give, index) for index in range(6)}
    return [await look(future) for future in futures]


@shape()
async def sets_of_tasks(event, step):
    async def work(index: int) -> Any:
        return await look(step.do("t", give, index))

    tasks = {asyncio.create_task(work(index)) for index in range(12)}
    while tasks:
        done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await look(step.do("noted", give, task.result()))
    return len(tasks)


@shape()
async def task_group(event, step):
    async with asyncio.TaskGroup() as group:
        first = group.create_task(step.do("a", give, 1))
        second = group.create_task(look(step.do("b", give, 2)))
    return [first.result(), second.result()]


@shape()
async def task_group_with_a_failing_sibling(event, step):
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(step.do("wrong", boom, "no", retries=ONCE))
            group.create_task(look(step.do("slow", give, 1, rollback=undo)))
            group.create_task(step.sleep("long", 100))
    except* ValueError as errors:
        see([repr(each) for each in errors.exceptions])
    return await look(step.do("after", give, "after"))


@shape()
async def created_tasks(event, step):
    first = asyncio.create_task(step.do("a", give, 1))
    second = asyncio.create_task(step.do("b", give, 2), name="b")
    third = await look(step.do("c", give, 3))
    return [await second, third, await first]


@shape()
async def helper_task_in_the_background(event, step):
    async def ticking() -> None:
        for index in range(3):
            await look(step.sleep("tick", 2))
            await look(step.do("tock", give, index))

    helper = asyncio.create_task(ticking())
    await look(step.do("main", give, "main"))
    await helper
    return "over"


@shape()
async def cancelled_helper_task(event, step):
    async def endless() -> None:
        try:
            while True:
                await look(step.sleep("tick", 7))
        finally:
            await look(step.do("tidy", give, "tidy"))

    helper = asyncio.create_task(endless())
    await look(step.do("main", give, 1))
    await look(step.sleep("nap", 10))
    helper.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await helper
    return await look(step.do("last", give, "last"))


@shape()
async def wide(event, step):
    results = await asyncio.gather(*[step.do("item", give, index) for index in range(200)])
    return sum(results)


@shape()
async def a_semaphore_and_a_queue(event, step):
    queue: asyncio.Queue[int] = asyncio.Queue()
    semaphore = asyncio.Semaphore(2)
    for index in range(5):
        queue.put_nowait(index)

    async def worker(name: str) -> None:
        while not queue.empty():
            index = await queue.get()
            async with semaphore:
                await look(step.do(f"work.{name}", give, index))

    await asyncio.gather(*[worker(name) for name in "xyz"])
    return queue.qsize()


# -- errors ------------------------------------------------------------------------------------------------------


@shape()
async def try_except_finally(event, step):
    try:
        await look(step.do("risky", refuse, "no", retries=SOON))
    except Refused as error:
        await look(step.do("mend", give, [error.args, getattr(error, "code", None)]))
    except Exception as error:
        await look(step.do("other", give, type(error).__name__))
    finally:
        await look(step.do("close", give, "closed"))
    return "mended"


@shape()
async def fails_and_tidies_up(event, step):
    try:
        await look(step.do("fatal", final, "over"))
    finally:
        await look(step.do("close", give, "closed"))


@shape()
async def caught_then_fails_later(event, step):
    await look(step.do("debit", give, 100, rollback=undo))
    with contextlib.suppress(Exception):
        await look(step.do("notify", boom, "no mail", retries=ONCE, rollback=undo))
    await look(step.do("credit", refuse, "closed account", retries=SOON, rollback=undo))


@shape()
async def fails_with_work_in_flight(event, step):
    slow = [step.do(f"slow{index}", give, index, rollback=undo) for index in range(3)]
    await look(step.wait_for_event("approve", type="go", timeout=20, rollback=undo))
    await look(step.do("fatal", final, "no"))
    return await asyncio.gather(*slow)


@shape(rollback=RollbackPolicy(order="parallel", on_error="continue"))
async def rolls_back_in_parallel(event, step):
    await asyncio.gather(*[step.do(f"p{index}", give, index, rollback=undo) for index in range(4)])
    await look(step.do("bad undo", give, 1, rollback=undo_fails, rollback_retries=ONCE))
    raise RuntimeError("all of it")


@shape()
async def rollback_that_fails(event, step):
    await look(step.do("first", give, 1, rollback=undo))
    await look(step.do("second", give, 2, rollback=undo_fails, rollback_retries=SOON))
    await look(step.do("third", give, 3, rollback=undo))
    await look(step.do("fatal", final, "no"))


@shape()
async def exception_group(event, step):
    async def attempt(name: str) -> None:
        await look(step.do(name, boom, name, retries=ONCE))

    async with asyncio.TaskGroup() as group:
        group.create_task(attempt("x"))
        group.create_task(attempt("y"))


@shape()
async def unstorable_error(event, step):
    try:
        await look(step.do("odd", unknowable, retries=ONCE))
    except Exception as error:
        return [type(error).__name__, str(error)]


@shape(max_steps=3)
async def step_limit(event, step):
    done = 0
    try:
        for index in range(5):
            await look(step.do("s", give, index))
            done += 1
    except StepLimitExceeded as error:
        see(error)
        await look(step.sleep("still allowed", 1))
    return done


@shape()
async def not_durable_is_caught(event, step):
    for refused in (lambda: asyncio.sleep(1), lambda: asyncio.wait_for(step.do("w", give, 1), 5)):
        try:
            await refused()
        except NotDurable as error:
            see(error)
    return await look(step.do("after", give, 2))


@shape()
async def result_that_cannot_be_stored(event, step):
    await look(step.do("a", give, 1))
    return Opaque()


# -- time and events ---------------------------------------------------------------------------------------------


@shape()
async def sleeps(event, step):
    await look(step.sleep("long", "2 hours"))
    await look(step.do("woke", give, "woke"))
    await asyncio.gather(step.sleep("a", 3), step.sleep("b", 1), step.sleep("c", 2))
    return step.now().timestamp() >= START + 7203


@shape()
async def sleep_nothing(event, step):
    for _ in range(10):
        await look(step.sleep("x", 0))
    await asyncio.sleep(0)
    return await look(step.do("after", give, 1))


@shape()
async def sleep_until_moments(event, step):
    await look(step.sleep_until("soon", START + 60))
    beside = step.do("beside", give, 1)
    results = await asyncio.gather(
        step.sleep_until("past", START - 1), beside, step.do("too", give, 2), return_exceptions=True
    )
    return [type(see(each)).__name__ for each in results]


@shape(events="go go stop go")
async def several_waiters_of_one_type(event, step):
    waiters = [step.wait_for_event(f"w{index}", type="go", timeout=60) for index in range(3)]
    with contextlib.suppress(EventTimeout):
        await look(step.wait_for_event("end", type="stop", timeout=30))
    return [repr(see(each)) for each in await asyncio.gather(*waiters, return_exceptions=True)]


@shape()
async def event_that_never_comes(event, step):
    try:
        await look(step.wait_for_event("approve", type="go", timeout=10))
    except EventTimeout:
        return await look(step.do("late", give, "late"))


@shape(events="go")
async def event_against_the_clock(event, step):
    arrived, alarm = step.wait_for_event("answer", type="go"), step.sleep("patience", 15)
    done, late = await asyncio.wait([arrived, alarm], return_when=asyncio.FIRST_COMPLETED)
    for future in late:
        future.cancel()
    return "in time" if arrived in done else await look(step.do("escalate", give, "escalated"))


@shape(events="go go go go")
async def events_in_a_loop(event, step):
    got = []
    while len(got) < 4:
        got.append((await look(step.wait_for_event("next", type="go", timeout=40))).payload)
        await look(step.do("handle", give, got[-1]))
    return got


@shape()
async def chance_and_time_in_arguments(event, step):
    name = f"n{int(step.random() * 1000)}"
    first = await look(step.do(name, give, str(step.uuid())))
    await look(step.sleep("nap", 1 + step.random()))
    second = await look(step.do(f"at {step.now().isoformat()}", give, step.now().timestamp()))
    return [name, first, second, step.random()]


# -- decorated steps, and marks -----------------------------------------------------------------------------------


@shape()
async def decorated_steps(event, step):
    @step.do("load")
    def load(ctx):
        return [1, ctx.attempt > 0]

    @step.do("price", retries=SOON)
    def price(load):
        return load[0] * 10

    @step.do()
    def total(price, load, ctx):
        return price + load[0]

    see(await total())
    return [await look(load()), await look(price())]


@shape()
async def decorated_together(event, step):
    @step.do("left")
    def left():
        return "l"

    @step.do("right")
    def right(left):
        return left + "r"

    @step.do("far", concurrent=True)
    def far(right, left):
        return right + left

    @step.do("both", concurrent=True, rollback=undo)
    def both(left, far, right):
        return [left, far, right]

    first, second = both(), both()
    beside = step.do("beside", give, 1)
    return see([await look(first), await look(beside), await look(second)])


@shape()
async def decorated_and_failing(event, step):
    @step.do("load", retries=ONCE)
    def load():
        raise ValueError("empty")

    @step.do("slow")
    def slow():
        return "slow"

    @step.do("use", concurrent=True, rollback=undo)
    def use(slow, load):
        return load

    @step.do("after")
    def after(slow, use):
        return use

    for call in (use, after, use):
        try:
            await look(call())
        except ValueError as error:
            await look(step.do("noted", give, str(error)))
    return await look(slow())


@shape()
async def decorated_and_cancelled(event, step):
    @step.do("load")
    def load():
        return 1

    @step.do("clean")
    def clean(load):
        return load

    @step.do("use", rollback=undo)
    def use(clean):
        return clean

    doomed, kept = use(), clean()
    await look(step.do("other", give, 2))
    doomed.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await look(doomed)
    use().cancel()
    done, late = await asyncio.wait([kept, step.sleep("max", 30)], return_when=asyncio.FIRST_COMPLETED)
    for future in late:
        future.cancel()
    return [len(done), await look(use())]


@shape()
async def decorated_in_a_group(event, step):
    @step.do("load")
    def load():
        return 1

    @step.do("wrong", retries=ONCE)
    def wrong(load):
        raise ValueError(f"not {load}")

    @step.do("slow")
    def slow(load):
        return load

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(wrong())
            group.create_task(slow())
    except* ValueError as errors:
        see([repr(each) for each in errors.exceptions])
    return await look(load())


@shape()
async def marked_code(event, step):
    first = step.do("first", give, 1)
    if see(step.patched("beside")):
        await look(step.do("new", give, "new"))
    else:
        await look(step.do("old", give, "old"))
    for index in range(3):
        if see(step.patched("loop")):
            await look(step.sleep("pause", 1))
        await look(step.do("round", give, index))
    doomed = step.do("doomed", give)
    doomed.cancel()
    return [await look(first), see(step.patched("end"))]


# -- the ends of the world ---------------------------------------------------------------------------------------


@shape()
async def cancelled_step(event, step):
    doomed = step.do("doomed", give, 1)
    await look(step.do("other", give, 2))
    doomed.cancel()
    try:
        await look(doomed)
    except asyncio.CancelledError:
        return await look(step.do("after", give, "cancelled"))
    return "was done before"


@shape()
async def cancelled_at_once(event, step):
    step.do("never", give, 1).cancel()
    step.wait_for_event("nor this", type="go").cancel()
    return await look(step.do("after", give, 3))


@shape()
async def cancelled_then_fails(event, step):
    doomed = step.do("doomed", give, "half", rollback=undo)
    await look(step.do("other", give, 2))
    doomed.cancel()
    await look(step.do("fatal", final, "no"))


@shape()
async def fire_and_forget(event, step):
    step.do("forgotten", give, 1)
    step.sleep("forgotten too", 1000)
    asyncio.create_task(look(step.do("in a task", give, 2)))  # noqa: RUF006
    return await look(step.do("main", give, "done"))


@shape()
async def returns_at_once(event, step):
    step.do("never seen", give, 1)
    return "gone"


@shape()
async def raises_at_once(event, step):
    step.do("never seen", give, 1, rollback=undo)
    raise KeyError("gone")


async def numbers(step: Any, count: int) -> AsyncIterator[int]:
    try:
        for index in range(count):
            yield await look(step.do("number", give, index))
    finally:
        await look(step.do("closed", give, count))


@shape()
async def async_generator(event, step):
    return [number async for number in numbers(step, 3)]


@shape()
async def async_generator_closed_early(event, step):
    async with contextlib.aclosing(numbers(step, 5)) as stream:
        async for number in stream:
            if number == 1:
                break
    return await look(step.do("after", give, "after"))


@shape()
async def async_generator_left_alone(event, step):
    async for number in numbers(step, 5):
        if number == 1:
            break
    return await look(step.do("after", give, "after"))


@shape()
async def shielded(event, step):
    inner = step.do("inner", give, 1)
    outer = asyncio.shield(inner)
    await look(step.do("other", give, 2))
    outer.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await outer
    return await look(inner)


@shape(name="a_class")
class AClass:
    def __init__(self) -> None:
        self.total = 0

    async def run(self, event, step):
        for index in range(3):
            await self.add(step, index)
        return self.total

    async def add(self, step: Any, index: int) -> None:
        self.total += await look(step.do("add", give, index))
