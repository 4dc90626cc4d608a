"""Histories replayed against changed code: what is refused, by which name, and what is accepted."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.errors import NonDeterminismError, SerializationError
from orchestrator.workflow.language.definition import define
from tests.laws.corpus import give, undo
from tests.laws.world import World


async def recorded(event, step):
    first = await step.do("a", give, 1)
    await step.sleep("nap", 5)
    both = await asyncio.gather(step.do("b", give, 2), step.do("c", give, 3))
    await step.wait_for_event("ok", type="go", timeout=60)
    return [first, *both]


def history_of(fn: Any, *, whole: bool = False) -> World:
    """A world that has run ``fn`` up to its wait, or to its end, and holds no live replay."""
    world = World(define(fn, name="changing"))
    world.turn()
    world.end()
    world.advance()
    world.end("do:c:1")
    world.end("do:b:1")
    if whole:
        world.send("go")
        world.turn()
        assert world.finished
    world.evict()
    return world


def refused(fn: Any, *, whole: bool = False) -> NonDeterminismError:
    with pytest.raises(NonDeterminismError) as caught:
        history_of(recorded, whole=whole).cold(define(fn, name="changing"))
    return caught.value


def test_the_same_code_is_accepted() -> None:
    """Semantics §1.1: the histories of these tests replay against the code that made them."""
    rebuilt = history_of(recorded).cold(define(recorded, name="changing"))
    assert not rebuilt.execution.replay.pending
    rebuilt.discard()


def test_a_renamed_step() -> None:
    """Semantics §1.6: other names are refused, with what was expected and what came."""

    async def changed(event, step):
        await step.do("A", give, 1)

    error = refused(changed)
    assert error.expected == "start of 'do:a:1'"
    assert error.came is not None
    assert error.came.startswith("start of 'do:A:1' (line ")
    assert "do:a:1" in str(error)
    assert "do:A:1" in str(error)


def test_reordered_steps() -> None:
    """Semantics §1.6: another order of starts is refused."""

    async def changed(event, step):
        await step.do("a", give, 1)
        await step.sleep("nap", 5)
        await asyncio.gather(step.do("c", give, 3), step.do("b", give, 2))

    error = refused(changed)
    assert error.expected == "start of 'do:b:1'"
    assert "do:c:1" in (error.came or "")


def test_a_removed_step() -> None:
    """Semantics §1.6: code that passes over a recorded step is refused."""

    async def changed(event, step):
        await step.do("a", give, 1)
        await asyncio.gather(step.do("b", give, 2), step.do("c", give, 3))

    error = refused(changed)
    assert error.expected == "start of 'sleep:nap:1'"
    assert "do:b:1" in (error.came or "")


def test_an_extra_step_before_a_recorded_one() -> None:
    """Semantics §1.6: a new step in the middle is refused."""

    async def changed(event, step):
        await step.do("a", give, 1)
        await step.do("new", give, 1)
        await step.sleep("nap", 5)

    error = refused(changed)
    assert error.expected == "start of 'sleep:nap:1'"
    assert "do:new:1" in (error.came or "")


def test_another_kind_under_the_same_name() -> None:
    """Semantics §1.2: the kind is part of the key."""

    async def changed(event, step):
        await step.do("a", give, 1)
        await step.do("nap", give, 5)

    error = refused(changed)
    assert (error.expected, "do:nap:1" in (error.came or "")) == ("start of 'sleep:nap:1'", True)


def test_code_that_ends_before_a_recorded_step() -> None:
    """Semantics §1.6: ending without reaching a recorded step is refused."""

    async def changed(event, step):
        return await step.do("a", give, 1)

    assert refused(changed).came == "end of the workflow"

    async def fails(event, step):
        await step.do("a", give, 1)
        raise LookupError("no more")

    assert refused(fails).came == "failure of the workflow (LookupError: no more)"


def test_code_that_waits_for_something_else_than_recorded() -> None:
    """Semantics §1.6: code that comes to nothing, where a start is recorded, is refused."""

    async def changed(event, step):
        await step.do("a", give, 1)
        await asyncio.Event().wait()

    assert refused(changed).came == "nothing"


def test_a_step_that_is_no_longer_cancelled() -> None:
    """Protocols §13: a cancellation has its place in the order, and is checked like a start."""

    async def cancels(event, step):
        doomed = step.sleep("long", 100)
        await step.do("a", give, 1)
        doomed.cancel()
        await step.do("b", give, 2)

    async def changed(event, step):
        step.sleep("long", 100)
        await step.do("a", give, 1)
        await step.do("b", give, 2)

    world = World(define(cancels, name="changing"))
    world.turn()
    world.end("do:a:1")
    world.evict()
    with pytest.raises(NonDeterminismError, match=r"cancellation of 'sleep:long:1'.*start of 'do:b:1'"):
        world.cold(define(changed, name="changing"))


def test_extra_steps_at_the_tail_are_accepted() -> None:
    """Semantics §1.6: what comes after everything recorded is new, and may be anything."""

    async def changed(event, step):
        first = await step.do("a", give, 1)
        await step.sleep("nap", 5)
        both = await asyncio.gather(step.do("b", give, 2), step.do("c", give, 3))
        beside = step.do("beside", give, 4)
        await step.wait_for_event("ok", type="go", timeout=60)
        return [first, *both, await beside]

    world = history_of(recorded)
    # Here the new step comes before a recorded start: refused. Without that start it is at the tail.
    with pytest.raises(NonDeterminismError):
        world.cold(define(changed, name="changing"))

    async def longer(event, step):
        result = await recorded(event, step)
        return [*result, await step.do("last", give, 4)]

    world.definition = define(longer, name="changing")
    world.send("go")
    world.turn()
    world.end("do:last:1")
    assert world.output == "[1,2,3,4]"


def test_what_is_not_in_the_order_may_change() -> None:
    """Semantics §1.3: bodies, arguments and configuration of recorded steps may change; results stay recorded."""

    async def changed(event, step):
        first = await step.do("a", give, 100, timeout=1)
        await step.sleep("nap", 5000)
        both = await asyncio.gather(step.do("b", give, 200), step.do("c", give, 300))
        await step.wait_for_event("ok", type="go", timeout=60)
        return [first, *both]

    world = history_of(recorded)
    world.definition = define(changed, name="changing")
    world.send("go")
    world.turn()
    assert world.output == "[1,2,3]"


def test_a_recorded_value_that_no_longer_fits() -> None:
    """Protocols §17: a value that fails validation on a later replay blocks the instance."""

    def texts() -> list[str]:
        return ["one"]

    def numbers() -> list[int]:
        return [1]

    async def before(event, step):
        await step.do("a", texts)
        await step.sleep("nap", 5)

    async def after(event, step):
        await step.do("a", numbers)
        await step.sleep("nap", 5)

    world = World(define(before, name="changing"))
    world.turn()
    world.end()
    world.evict()
    with pytest.raises(SerializationError, match=r"'do:a:1' no longer fits its annotation list\[int\]"):
        world.cold(define(after, name="changing"))


def test_steps_that_ended_while_the_instance_was_blocked() -> None:
    """Protocols §12, semantics §1.6: outcomes are recorded while code does not fit; code that fits goes on, and its
    commands between those ends are new."""

    async def two_branches(event, step):
        async def branch(name: str) -> Any:
            return [await step.do(f"{name}1", give, name), await step.do(f"{name}2", give, name)]

        return await asyncio.gather(branch("x"), branch("y"))

    world = World(define(two_branches))
    world.turn()
    world.claim()
    outcomes = [world.outcome("do:x1:1"), world.outcome("do:y1:1")]
    world.hold(*outcomes, error=NonDeterminismError("other code"))
    assert world.status.value == "waiting"
    world.turn()
    assert world.handed() == ["do:x2:1", "do:y2:1"]
    assert world.blocked is None
    world.evict()
    world.end()
    assert world.output == '[["x","x"],["y","y"]]'
    world.cold().discard()


def test_a_step_that_ended_while_blocked_and_is_cancelled_by_the_code() -> None:
    """Protocols §12, §13: the cancellation comes too late, and takes no place in the order."""

    async def race(event, step):
        slow, fast = step.do("slow", give, 1), step.do("fast", give, 2)
        await fast
        slow.cancel()
        return await step.do("after", give, 3)

    world = World(define(race))
    world.turn()
    world.claim()
    world.hold(
        world.outcome("do:fast:1"), world.outcome("do:slow:1"), error=NonDeterminismError("other code")
    )
    world.turn()
    assert world.rows["do:slow:1"].status == "done"
    world.evict()
    world.end("do:after:1")
    assert world.output == "3"


def test_a_workflow_that_ends_while_blocked() -> None:
    """Protocols §12: code that had come to its end before a recorded outcome ends when it fits again."""

    async def hasty(event, step):
        step.do("slow", give, 1)
        return await step.do("fast", give, 2)

    world = World(define(hasty))
    world.turn()
    world.claim()
    world.hold(
        world.outcome("do:fast:1"), world.outcome("do:slow:1"), error=NonDeterminismError("other code")
    )
    world.turn()
    assert (world.status.value, world.output) == ("complete", "2")


def test_compensations_are_rebuilt_after_the_end() -> None:
    """Semantics §5.3, protocols §11: what follows the recorded end is no fact of the code, so handlers are rebuilt."""

    async def fails(event, step):
        await step.do("a", give, 1, rollback=undo)
        step.do("b", give, 2)
        raise RuntimeError("no")

    world = World(define(fails))
    world.turn()
    world.end("do:a:1")
    world.evict()
    assert world.handed() == ["do:a:1:rollback"]
    world.end("do:a:1:rollback")
    assert world.status.value == "errored"
