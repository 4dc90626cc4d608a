"""Decorated steps: what a parameter means, what is run for it, and what comes back."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from orchestrator.errors import InvalidConfig, InvalidName, NotDurable, StepLimitExceeded
from orchestrator.workflow import codec
from orchestrator.workflow.history import Started
from orchestrator.workflow.language.config import Retries, StepConfig
from orchestrator.workflow.language.definition import define
from tests.laws.world import World

ONCE = Retries(limit=0)


def world_of(fn: Any, **fields: Any) -> World:
    world = World(define(fn, name=f"decorated_{fn.__name__}"), **fields)
    world.turn()
    return world


def ended(fn: Any, **fields: Any) -> World:
    """A world in which every body ends as soon as it may, one generation after the other."""
    world = world_of(fn, **fields)
    while world.handed():
        world.end()
    return world


def output(world: World) -> Any:
    assert world.error is None, codec.error_info(world.error or "")
    return codec.decode(world.output or "null")


def starts(world: World) -> list[str]:
    return [fact.key for fact in world.history() if isinstance(fact, Started)]


def test_calling_a_decorated_function_starts_its_step() -> None:
    """API §2: calling starts the step, at once, and gives its future."""

    async def flow(event, step):
        @step.do("load")
        def load() -> list[int]:
            return [1, 2]

        future = load()
        beside = step.do("beside", lambda: 3)
        return [isinstance(future, asyncio.Future), await beside, await future]

    world = world_of(flow)
    assert world.handed() == ["do:load:1", "do:beside:1"]
    world.end()
    assert output(world) == [True, 3, [1, 2]]


def test_the_name_is_that_of_the_function_if_none_is_given() -> None:
    """API §2: ``@step.do()``, and ``@step.do`` without parentheses; the function is described by its step."""

    async def flow(event, step):
        @step.do()
        def first() -> int:
            """The first."""
            return 1

        @step.do
        def second(first: int) -> int:
            return first + 1

        return [await second(), repr(first), first.__doc__, first.__name__]

    world = ended(flow)
    assert output(world) == [2, "<step 'first'>", "The first.", "first"]
    assert [row.label for row in world.rows.values()] == ["first", "second"]


def test_the_bounded_name_stands_where_the_step_is_decorated() -> None:
    """Protocols §19: a dynamic name is shown as its template; the line is that of the call."""

    async def flow(event, step):
        @step.do(f"load {event.instance_id}", timeout=5)
        def load() -> int:
            return 1

        return await load()

    world = ended(flow)
    (row,) = world.rows.values()
    assert (row.key, row.label) == ("do:load it:1", "load ${...}")
    first = flow.__code__.co_firstlineno
    assert row.line == first + 5


def test_a_parameter_receives_the_result_of_the_step_of_that_name() -> None:
    """API §2: run on demand, once, shared; the step's name counts, not the function's."""

    async def flow(event, step):
        @step.do("load")
        def anything() -> int:
            return 20

        @step.do("double")
        def twice(load) -> int:
            return load * 2

        @step.do("report")
        def report(double, load) -> list[int]:
            return [double, load]

        return await report()

    world = ended(flow)
    assert starts(world) == ["do:load:1", "do:double:1", "do:report:1"]
    assert output(world) == [40, 20]


def test_a_needed_step_is_shared_by_all_that_need_it() -> None:
    """API §2: once, also while it is under way; a direct second call is a new step."""

    async def flow(event, step):
        @step.do("load")
        def load(ctx) -> int:
            return ctx.attempt

        @step.do("a")
        def a(load) -> int:
            return load

        @step.do("b")
        def b(load) -> int:
            return load

        both = await asyncio.gather(a(), b())
        again = await load()
        return [*both, again]

    world = ended(flow)
    assert starts(world) == ["do:load:1", "do:a:1", "do:b:1", "do:load:2"]
    assert output(world) == [1, 1, 1]


def test_a_direct_call_is_what_others_receive() -> None:
    """API §2: a step that was called is not run again for who needs it; its latest call counts."""

    async def flow(event, step):
        calls = []

        @step.do("load")
        def load() -> int:
            calls.append(1)
            return len(calls)

        @step.do("use")
        def use(load) -> int:
            return load

        await load()
        first = await use()
        await load()
        return [first, await use()]

    world = ended(flow)
    assert starts(world) == ["do:load:1", "do:use:1", "do:load:2", "do:use:2"]
    assert output(world) == [1, 2]


def test_what_a_step_needs_is_run_one_after_the_other() -> None:
    """API §2: without ``concurrent``, the next starts when the one before it has ended."""

    async def flow(event, step):
        @step.do("a")
        def a() -> str:
            return "a"

        @step.do("b")
        def b() -> str:
            return "b"

        @step.do("c")
        def c(a, b) -> str:
            return a + b

        return await c()

    world = world_of(flow)
    assert world.handed() == ["do:a:1"]
    world.end()
    assert world.handed() == ["do:b:1"]
    world.end()
    assert world.handed() == ["do:c:1"]
    world.end()
    assert output(world) == "ab"


def test_what_a_step_needs_is_run_together() -> None:
    """API §2: with ``concurrent=True``, all of it starts at the call."""

    async def flow(event, step):
        @step.do("a")
        def a() -> str:
            return "a"

        @step.do("b")
        def b() -> str:
            return "b"

        @step.do("c", concurrent=True)
        def c(ctx, b, a) -> str:
            return a + b

        later = c()
        assert not later.done()
        return await later

    world = world_of(flow)
    assert world.handed() == ["do:b:1", "do:a:1"]
    world.end("do:a:1")
    assert world.handed() == ["do:b:1"]
    world.end()
    world.end()
    assert output(world) == "ab"


def test_the_context_stands_wherever_it_is_written() -> None:
    """API §2: ``ctx`` is the context, the others are filled by name, keyword-only ones too; defaults are ignored."""

    async def flow(event, step):
        @step.do("a")
        def a() -> str:
            return "a"

        @step.do("b")
        def b(a="default", ctx=None) -> str:
            return f"{a}{ctx.attempt}"

        @step.do("c")
        def c(a, /, ctx, *, b) -> str:
            return f"{a}{ctx.attempt}{b}"

        return [await b(), await c()]

    assert output(ended(flow)) == ["a1", "a1a1"]


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ("nobody", "'nobody', which names no step"),
        ("load=1, times=3", "'times', which names no step"),
        ("*load", "'load', which names the step itself or one that is decorated after it|names no step"),
        ("itself", "'itself', which names the step itself or one that is decorated after it"),
        ("later", "'later', which names the step itself or one that is decorated after it"),
    ],
)
def test_any_other_parameter_is_refused_at_the_call(parameters: str, said: str) -> None:
    """API §2: ``TypeError`` at the call, which says what a parameter may be; so there are no circles."""

    async def flow(event, step):
        @step.do("load")
        def load() -> int:
            return 1

        names: dict[str, Any] = {}
        exec(f"def itself({parameters}): return 1", names)
        itself = step.do("itself")(names["itself"])

        @step.do("later")
        def later(itself) -> int:
            return 1

        with pytest.raises(TypeError, match=said):
            itself()
        with pytest.raises(TypeError, match=said):
            later()
        return await load()

    world = ended(flow)
    assert starts(world) == ["do:load:1"]
    assert output(world) == 1


def test_arguments_are_refused() -> None:
    """API §2: a decorated step takes none; the text says what does. Nor is the step itself awaitable."""

    async def flow(event, step):
        @step.do("load")
        def load() -> int:
            return 1

        with pytest.raises(TypeError, match=r"called without arguments.*step\.do\(name, fn, \*args\)"):
            load(1)
        with pytest.raises(TypeError, match=r"write `await load\(\)`"):
            await load
        with pytest.raises(TypeError, match=r"step\.do\('load'\) was given no function to run"):
            await step.do("load")
        return None

    assert output(ended(flow)) is None


def test_mistakes_are_told_when_a_step_is_decorated() -> None:
    """API §2: names and options are checked with the decoration; ``fn`` that is no function, and ``concurrent`` with
    one, are refused."""

    async def flow(event, step):
        with pytest.raises(InvalidName):
            step.do("line\nbreak")(lambda: 1)
        with pytest.raises(InvalidConfig, match="timeout"):
            step.do("x", timeout=-1)(lambda: 1)
        with pytest.raises(InvalidConfig, match="no rollback="):
            step.do("x", rollback_timeout=1)(lambda: 1)
        with pytest.raises(InvalidConfig, match="decorates a function, not int"):
            step.do("x")(3)
        with pytest.raises(InvalidConfig, match=r"which has no name: write @step\.do\(name\)"):
            step.do()(partial(int))
        with pytest.raises(InvalidConfig, match="needs a function to run, not NoneType"):
            step.do("x", None)
        with pytest.raises(InvalidConfig, match="concurrent="):
            step.do("x", lambda: 1, concurrent=True)
        return None

    assert output(ended(flow)) is None


def test_options_are_those_of_any_step() -> None:
    """API §2: retries, timeout, sensitive, queue and the rollback's own."""

    async def flow(event, step):
        @step.do(
            "pay",
            retries=Retries(limit=1, delay=lambda ctx, error: 3),
            timeout="5 seconds",
            sensitive=True,
            queue="cpu",
            rollback=lambda r: None,
            rollback_retries=ONCE,
            rollback_timeout=7,
        )
        def pay() -> int:
            return 1

        await pay()

    world = world_of(flow)
    (row,) = world.rows.values()
    config = StepConfig.from_json(row.config or "")
    assert (config.retries_limit, config.delay_s, config.timeout_s) == (1, None, 5)
    assert (config.sensitive, config.queue, row.has_rollback) == (True, "cpu", True)
    assert world.live is not None
    call = world.live.execution.replay.calls["do:pay:1"]
    assert call.delay is not None
    assert call.rollback_config == StepConfig.build(ONCE, 7, False, "cpu")


def test_a_handler_sees_what_the_step_was_given() -> None:
    """API §2: ``RollbackContext.args`` are the results that were passed, in the order of the parameters."""
    undone: list[Any] = []

    async def flow(event, step):
        @step.do("a")
        def a() -> str:
            return "a"

        @step.do("b")
        def b() -> list[str]:
            return ["b"]

        @step.do("pay", rollback=lambda r: undone.append((r.args, r.output)))
        def pay(b, ctx, a) -> str:
            return "paid"

        await pay()
        raise RuntimeError("no")

    world = ended(flow)
    assert world.error is not None
    assert undone == [((["b"], "a"), "paid")]


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_needed_step_that_fails_fails_the_call(concurrent: bool) -> None:
    """API §2: with the same error, without running the step; and again for whoever needs it later."""

    async def flow(event, step):
        @step.do("load", retries=ONCE)
        def load() -> int:
            raise LookupError("nothing there")

        @step.do("other")
        def other() -> int:
            return 1

        @step.do("use", concurrent=concurrent)
        def use(load, other) -> int:
            return 1

        said = []
        for _ in range(2):
            try:
                await use()
            except LookupError as error:
                said.append(str(error))
        return said

    world = ended(flow)
    assert output(world) == ["nothing there", "nothing there"]
    assert "do:use:1" not in world.rows
    assert [key for key in starts(world) if key.startswith("do:load")] == ["do:load:1"]


def test_cancelling_a_call_cancels_what_only_it_needs() -> None:
    """Protocols §13: the step it waits for, unless another call needs that too, or the code called it itself."""

    async def flow(event, step):
        @step.do("load")
        def load() -> int:
            return 1

        @step.do("clean")
        def clean(load) -> int:
            return load

        @step.do("a")
        def a(clean) -> int:
            return clean

        @step.do("b")
        def b(clean) -> int:
            return clean

        first, second = a(), b()
        await step.do("wait", lambda: 0)
        first.cancel()
        await step.do("look", lambda: 0)
        second.cancel()
        await step.do("over", lambda: 0)
        direct = load()
        third = a()
        await step.do("third", lambda: 0)
        third.cancel()
        return await direct

    world = world_of(flow)
    assert world.handed() == ["do:load:1", "do:wait:1"]
    world.end("do:wait:1")
    assert world.rows["do:load:1"].status == "handed"
    world.end("do:look:1")
    assert world.rows["do:load:1"].status == "cancelled"
    world.end("do:over:1")
    world.end("do:third:1")
    assert world.handed() == ["do:load:2"]
    world.end("do:load:2")
    assert output(world) == 1


def test_a_call_that_is_cancelled_at_once_leaves_nothing_behind() -> None:
    """Protocols §13: also before its task has run."""

    async def flow(event, step):
        @step.do("load")
        def load() -> int:
            return 1

        @step.do("use")
        def use(load) -> int:
            return load

        use().cancel()
        return await step.do("after", lambda: 2)

    world = ended(flow)
    assert world.rows["do:load:1"].status == "cancelled"
    assert output(world) == 2


def test_a_step_that_was_cancelled_is_run_anew_for_who_needs_it() -> None:
    """API §2: a cancelled run has no result to share."""

    async def flow(event, step):
        @step.do("load")
        def load() -> int:
            return 1

        @step.do("use")
        def use(load) -> int:
            return load

        load().cancel()
        return await use()

    world = ended(flow)
    assert (starts(world), output(world)) == (["do:load:1", "do:load:2", "do:use:1"], 1)


def test_calls_stand_in_groups_and_waits() -> None:
    """API §2: what comes back is a future of asyncio, for ``gather``, ``wait``, ``TaskGroup``."""

    async def flow(event, step):
        @step.do("load")
        def load() -> int:
            return 1

        @step.do("use")
        def use(load) -> int:
            return load + 1

        async with asyncio.TaskGroup() as group:
            task = group.create_task(use())
        done, _ = await asyncio.wait([use(), step.sleep("long", 100)], return_when=asyncio.FIRST_COMPLETED)
        return [task.result(), *[each.result() for each in done], *await asyncio.gather(use(), load())]

    assert output(ended(flow)) == [2, 2, 2, 1]


def test_decorated_steps_are_made_and_called_in_workflow_code_only() -> None:
    """Protocols §20: a call in a body is a named error, so a step cannot run itself."""

    async def flow(event, step):
        @step.do("again", retries=ONCE)
        def again() -> Any:
            return again()

        return await again()

    world = world_of(flow)
    key = world.handed()[0]
    world.claim(key)
    with pytest.raises(NotDurable, match="'again' was called from inside a step body"):
        world.bodies[key][1].fn()  # type: ignore[misc]


def test_steps_run_on_demand_count_against_the_limit() -> None:
    """Semantics §1.7: number N+1 raises, at the call or out of its await."""

    async def flow(event, step):
        @step.do("a")
        def a() -> int:
            return 1

        @step.do("b")
        def b(a) -> int:
            return a

        try:
            return await b()
        except StepLimitExceeded as error:
            return str(error).partition(";")[0]

    assert output(ended(flow, max_steps=2)) == 1
    assert output(ended(flow, max_steps=1)) == "step 'b' is number 2"


def test_a_step_of_a_loop_needs_that_of_its_own_round() -> None:
    """API §2: a parameter means the step of that name decorated last before it."""

    async def flow(event, step):
        seen = []
        for index in range(3):
            step.do("load")(giving(index))

            @step.do("use")
            def use(load) -> int:
                return load * 10

            seen.append(await use())
        return seen

    assert output(ended(flow)) == [0, 10, 20]


def giving(number: int) -> Any:
    return lambda: number
