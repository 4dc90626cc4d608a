"""``step.patched``: changed code under instances that were begun with the code before it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import InvalidName, NonDeterminismError, NotDurable
from orchestrator.workflow import codec
from orchestrator.workflow.history import Started
from orchestrator.workflow.language.definition import define
from tests.laws.corpus import ONCE, Shape, boom, give, look, undo
from tests.laws.schedules import Schedule
from tests.laws.test_replay_laws import choices, laws
from tests.laws.world import World


async def old(event, step):
    first = await step.do("a", give, 1)
    await step.do("b", give, 2)
    return first


async def new(event, step):
    first = await step.do("a", give, 1)
    if step.patched("check"):
        await step.do("check", give, "checked")
    else:
        await step.do("b", give, 2)
    return first


def begun(fn: Any) -> World:
    world = World(define(fn, name="marked"))
    world.turn()
    return world


def deploy(world: World, fn: Any) -> World:
    """Other code comes, in another process."""
    world.evict()
    world.definition = define(fn, name="marked")
    return world


def finish(world: World) -> World:
    while not world.finished:
        if world.handed():
            world.end()
        else:
            world.advance()
    return world


def starts(world: World) -> list[str]:
    return [fact.key for fact in world.history() if isinstance(fact, Started)]


def test_what_has_recorded_the_old_way_goes_on_in_it() -> None:
    """Protocols §20: false where history has a start that the code has not come to; no mark is recorded."""
    world = begun(old)
    world.end("do:a:1")
    finish(deploy(world, new))
    assert starts(world) == ["do:a:1", "do:b:1"]
    assert world.output == "1"


def test_what_is_not_past_the_change_takes_the_new_way() -> None:
    """Protocols §20: true once every recorded start has been matched, and then a mark is recorded."""
    world = deploy(begun(old), new)
    finish(world)
    assert starts(world) == ["do:a:1", "patch:check:1", "do:check:1"]


def test_new_instances_take_the_new_way() -> None:
    """Protocols §20: true, with a mark whose row is a start and nothing else."""
    world = finish(begun(new))
    row = world.rows["patch:check:1"]
    assert starts(world) == ["do:a:1", "patch:check:1", "do:check:1"]
    assert (row.kind, row.status, row.finished_seq, row.attempt, row.fence) == ("patch", "done", None, 0, 0)
    assert row.line == new.__code__.co_firstlineno + 2
    assert row.started_at == row.finished_at


def test_a_mark_decides_from_then_on() -> None:
    """Protocols §20: true exactly if the mark is recorded, wherever and however often it is replayed."""
    world = begun(new)
    world.end("do:a:1")
    for _ in range(3):
        world.evict()
        world.turn()
    assert world.handed() == ["do:check:1"]
    assert starts(finish(world)) == ["do:a:1", "patch:check:1", "do:check:1"]


def test_the_old_way_may_be_removed_once_nobody_goes_it() -> None:
    """Protocols §20: code that calls ``patched`` and does not look at it fits what has the mark."""

    async def only_new(event, step):
        first = await step.do("a", give, 1)
        step.patched("check")
        await step.do("check", give, "checked")
        return first

    world = begun(new)
    world.end("do:a:1")
    assert starts(finish(deploy(world, only_new))) == ["do:a:1", "patch:check:1", "do:check:1"]
    world = begun(old)
    world.end("do:a:1")
    with pytest.raises(NonDeterminismError, match=r"start of 'do:b:1'.*start of 'do:check:1'"):
        deploy(world, only_new).turn()


def test_a_mark_that_is_no_longer_asked_for() -> None:
    """Protocols §20: it counts as a start in the order check, and is named."""

    async def without(event, step):
        first = await step.do("a", give, 1)
        await step.do("check", give, "checked")
        return first

    world = begun(new)
    world.end("do:a:1")
    with pytest.raises(NonDeterminismError) as caught:
        deploy(world, without).turn()
    assert caught.value.expected == "mark of step.patched('check')"
    assert caught.value.came is not None
    assert caught.value.came.startswith("start of 'do:check:1'")


def test_a_mark_where_another_start_is_recorded() -> None:
    """Protocols §20: the mark of another name in its place is refused, by both names."""

    async def renamed(event, step):
        first = await step.do("a", give, 1)
        if step.patched("inspect"):
            await step.do("check", give, "checked")
        return first

    world = begun(new)
    world.end("do:a:1")
    with pytest.raises(NonDeterminismError) as caught:
        deploy(world, renamed).turn()
    # Not recorded, and history goes on: false. So the code comes to its end instead.
    assert (caught.value.expected, caught.value.came) == (
        "mark of step.patched('check')",
        "end of the workflow",
    )


def test_every_call_in_a_loop_counts_for_itself() -> None:
    """Protocols §20, semantics §1.2: rounds of the old way stay in it, later ones take the new."""

    async def rounds(event, step):
        for index in range(4):
            await step.do("round", give, index)

    async def with_pause(event, step):
        for index in range(4):
            if step.patched("pause"):
                await step.sleep("pause", 1)
            await step.do("round", give, index)

    world = begun(rounds)
    world.end("do:round:1")
    deploy(world, with_pause)
    finish(world)
    assert starts(world) == [
        "do:round:1",
        "do:round:2",
        "patch:pause:3",
        "sleep:pause:1",
        "do:round:3",
        "patch:pause:4",
        "sleep:pause:2",
        "do:round:4",
    ]
    world.cold().discard()


def test_a_recorded_cancellation_is_history_too() -> None:
    """Protocols §13, §20: code that has a recorded cancellation before it is not past all that is recorded."""

    async def cancels(event, step):
        slow, other = step.do("slow", give, 1), step.do("other", give, 2)
        await step.sleep("nap", 5)
        slow.cancel()
        return await other

    async def changed(event, step):
        slow, other = step.do("slow", give, 1), step.do("other", give, 2)
        await step.sleep("nap", 5)
        if step.patched("mind"):
            return await slow
        slow.cancel()
        return await other

    world = begun(cancels)
    world.advance()
    finish(deploy(world, changed))
    assert "patch:mind:1" not in world.rows
    assert (world.rows["do:slow:1"].status, world.output) == ("cancelled", "2")


def test_a_cancellation_that_came_too_late_is_none() -> None:
    """Protocols §12, §13, §20: what ended while the instance was blocked was not cancelled, though the code asks for
    it: that is not taken for a command that history holds."""

    async def race(event, step):
        slow, fast = step.do("slow", give, 1), step.do("fast", give, 2)
        await fast
        slow.cancel()
        return await step.do("after", give, 3)

    async def changed(event, step):
        slow, fast = step.do("slow", give, 1), step.do("fast", give, 2)
        await fast
        slow.cancel()
        if step.patched("more"):
            await step.do("more", give, 4)
        return await step.do("after", give, 3)

    world = begun(race)
    world.claim()
    ends = world.outcome("do:fast:1"), world.outcome("do:slow:1")
    world.hold(*ends, error=NonDeterminismError("other code"))
    world.turn()
    assert starts(world)[-1] == "do:after:1"
    finish(deploy(world, changed))
    assert (starts(world)[-1], world.output) == ("do:after:1", "3")


def test_marks_do_not_count_as_steps() -> None:
    """Semantics §1.7: only ``step.do`` does."""

    async def marks(event, step):
        return [step.patched("a"), step.patched("a"), await step.do("one", give, 1)]

    world = World(define(marks, name="marked"), max_steps=1)
    world.turn()
    assert finish(world).output == "[true,true,1]"


def test_a_mark_that_the_rollback_does_not_know() -> None:
    """Semantics §5.3, protocols §20: handlers are rebuilt by code that has gained a mark since the end."""

    async def fails(event, step):
        await step.do("pay", give, 1, rollback=undo)
        raise LookupError("no")

    async def fails_later(event, step):
        await step.do("pay", give, 1, rollback=undo)
        if step.patched("more"):
            await step.do("more", give, 2)
        raise LookupError("no")

    world = begun(fails)
    world.end("do:pay:1")
    deploy(world, fails_later)
    assert world.handed() == ["do:pay:1:rollback"]
    finish(world)
    assert (world.status.value, "patch:more:1" in world.rows) == ("errored", False)
    assert codec.decode(world.rollback or "")["outcome"] == "complete"


def test_a_mark_has_a_name_and_belongs_to_workflow_code() -> None:
    """Semantics §3.4, protocols §20: names as those of steps; a call in a body is a named error."""

    async def flow(event, step):
        with pytest.raises(InvalidName):
            step.patched("")
        return await step.do("body", lambda: step.patched("inside"), retries=ONCE)

    world = begun(flow)
    world.claim()
    with pytest.raises(NotDurable, match="'inside' was called from inside a step body"):
        world.bodies["do:body:1"][1].fn()  # type: ignore[misc]


def test_facts_of_another_process_that_ran_the_old_code() -> None:
    """Protocols §20: what is fed to a live replay is history before the code is asked anything."""
    world = begun(old)
    live, seq = world.cold(define(new, name="marked")), world.seq
    world.end("do:a:1")
    live.execution.replay.feed(fact for fact in world.history() if fact.seq > seq)
    assert not live.execution.replay.pending
    live.discard()


async def long_old(event, step):
    await step.do("a", give, 1)
    last = step.do("b", give, 2)
    return await last


async def long_new(event, step):
    if step.patched("early"):
        await step.do("x", give, 0)
    await step.do("a", give, 1)
    if step.patched("between"):
        await step.do("y", give, 0)
    last = step.do("b", give, 2)
    if step.patched("late"):
        await step.do("z", give, 0)
    return await last


def test_the_answer_may_change_within_one_replay() -> None:
    """Protocols §20: false as long as history goes on, true where it ends, in one cold replay."""
    world = begun(long_old)
    world.end("do:a:1")
    finish(deploy(world, long_new))
    assert starts(world) == ["do:a:1", "do:b:1", "patch:late:1", "do:z:1"]


def test_the_answer_may_change_back_when_other_facts_come() -> None:
    """Protocols §20: a live replay that has come to the end of history is asked anew about what is fed to it later."""

    async def answers_early(event, step):
        step.patched("early")
        return await long_new(event, step)

    world = begun(answers_early)
    live = world.current()
    assert starts(world) == ["patch:early:1", "patch:early:2", "do:x:1"]
    world.end("do:x:1")
    assert world.live is live
    assert world.handed() == ["do:a:1"]

    async def old_from_here(event, step):
        step.patched("early")
        step.patched("early")
        await step.do("x", give, 0)
        return await long_old(event, step)

    seq = world.seq
    elsewhere = world.cold(define(old_from_here, name="marked"))
    world.live = elsewhere
    world.end("do:a:1")
    live.execution.replay.feed(fact for fact in world.history() if fact.seq > seq)
    assert [command.key for command in live.execution.replay.pending] == ["patch:late:1", "do:z:1"]  # type: ignore[union-attr]
    live.discard()


def test_a_live_replay_that_answered_too_early() -> None:
    """Protocols §20: one that has said yes before the old code went on elsewhere is refused; built anew it fits."""

    async def two(event, step):
        first = step.do("a", give, 1)
        await first
        await step.do("b", give, 2)

    async def two_and_a_mark(event, step):
        first = step.do("a", give, 1)
        if step.patched("beside"):
            await step.do("beside", give, 3)
        await first
        await step.do("b", give, 2)

    world = begun(two)
    live, seq = world.cold(define(two_and_a_mark, name="marked")), world.seq
    world.end("do:a:1")
    with pytest.raises(NonDeterminismError, match=r"start of 'do:b:1'.*mark of step\.patched"):
        live.execution.replay.feed(fact for fact in world.history() if fact.seq > seq)
    live.discard()
    finish(deploy(world, two_and_a_mark))
    assert starts(world) == ["do:a:1", "do:b:1"]


def test_a_mark_that_a_pause_holds() -> None:
    """Protocols §10, §20: with a pause pending the answer is that of what is recorded, live and cold alike; the mark
    waits with the other commands, and is recorded in its place after the resume."""

    async def flow(event, step):
        first, second = step.do("first", give, 1), step.do("second", give, 2)
        await first
        if step.patched("more"):
            await step.do("more", give, 3)
        return await second

    world = begun(flow)
    world.claim()
    world.pause()
    world.turn(world.outcome("do:first:1"))
    for _ in range(2):
        pending = world.current().execution.replay.pending
        assert [command.key for command in pending] == ["patch:more:1", "do:more:1"]  # type: ignore[union-attr]
        world.evict()
    assert starts(world) == ["do:first:1", "do:second:1"]
    world.turn(world.outcome("do:second:1"))
    assert world.status.value == "paused"
    world.resume()
    finish(world)
    assert starts(world) == ["do:first:1", "do:second:1", "patch:more:1", "do:more:1"]
    assert world.output == "2"


def test_a_restart_from_a_step_decides_anew_what_follows_it() -> None:
    """Semantics §4, protocols §10, §20: a mark before the target stays, one after it is wiped; without a mark, what
    went the old way takes the new one from there."""
    world = finish(begun(new))
    world.restart("do:check:1")
    world.turn()
    assert starts(finish(world)) == ["do:a:1", "patch:check:1", "do:check:1"]
    world.restart("do:a:1")
    assert "patch:check:1" not in world.rows
    world.turn()
    assert starts(finish(world)) == ["do:a:1", "patch:check:1", "do:check:1"]

    world = finish(begun(old))
    deploy(world, new).restart("do:b:1")
    world.turn()
    assert starts(finish(world)) == ["do:a:1", "patch:check:1", "do:check:1"]


# -- any code, changed at any moment -----------------------------------------------------------------------------


async def before(event, step):
    """Sequences, groups, races, cancellations, a loop and a helper."""

    async def helper(name: str) -> Any:
        await look(step.do(f"{name} 1", give, name))
        return await look(step.do(f"{name} 2", give, name))

    total = await look(step.do("first", give, event.payload["n"]))
    both = await asyncio.gather(helper("x"), helper("y"))
    doomed = step.do("doomed", give, "d", rollback=undo)
    done, late = await asyncio.wait([doomed, step.sleep("max", 5)], return_when=asyncio.FIRST_COMPLETED)
    for future in late:
        future.cancel()
    for index in range(3):
        with contextlib.suppress(ValueError):
            await look(step.do("round", boom, str(index), retries=ONCE))
    return [total, both, len(done)]


async def after(event, step):
    """The same, with something new wherever there is room for it."""

    async def more(name: str) -> None:
        if step.patched(name):
            await look(step.do(f"new {name}", give, name))

    async def helper(name: str) -> Any:
        await more(f"in {name}")
        await look(step.do(f"{name} 1", give, name))
        await more(f"between {name}")
        return await look(step.do(f"{name} 2", give, name))

    await more("begin")
    total = await look(step.do("first", give, event.payload["n"]))
    beside = step.sleep("beside", 3) if step.patched("beside") else None
    both = await asyncio.gather(helper("x"), helper("y"))
    await more("before doomed")
    doomed = step.do("doomed", give, "d", rollback=undo)
    step.patched("unused")
    done, late = await asyncio.wait([doomed, step.sleep("max", 5)], return_when=asyncio.FIRST_COMPLETED)
    await more("before cancel")
    for future in late:
        future.cancel()
    for index in range(3):
        await more("round")
        with contextlib.suppress(ValueError):
            await look(step.do("round", boom, str(index), retries=ONCE))
    if beside is not None:
        beside.cancel()
    await more("end")
    return [total, both, len(done)]


@laws
@given(choices, st.integers(0, 30))
def test_code_may_be_changed_under_marks_at_any_moment(choices: list[int], moment: int) -> None:
    """Protocols §20, semantics §1.6: whatever is recorded by then, the changed code fits, comes to an end, and every
    later replay of it, live or cold, decides the same."""
    schedule = Schedule(Shape(define(before, name="changing")), choices)
    schedule.world.params = {"n": 3}
    changed = define(after, name="changing")
    for number, world in enumerate(schedule.rounds()):
        if number == moment:
            world.evict()
            world.definition = changed
        elif number > moment:
            cold = world.cold()
            assert not cold.execution.replay.pending or world.blocked is not None
            if world.live is not None:
                assert cold.seen == world.live.seen
            cold.discard()
    assert schedule.world.finished


def test_marks_are_taken_and_left() -> None:
    """The law above is worth something: some moments leave both marks and unmarked places."""
    found = set()
    for moment in range(8):
        schedule = Schedule(Shape(define(before, name="changing")), ())
        schedule.world.params = {"n": 3}
        for number, world in enumerate(schedule.rounds()):
            if number == moment:
                world.evict()
                world.definition = define(after, name="changing")
        found.add(sum(row.kind == "patch" for row in schedule.world.rows.values()))
    assert len(found) >= 4
