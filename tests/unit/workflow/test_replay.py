"""Replays: what the code is given, what it asks for, and what it may not do."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

import pytest
from pydantic import AfterValidator

from orchestrator.errors import NotDurable, ReplayDiscarded
from orchestrator.workflow import codec
from orchestrator.workflow.codec import revive
from orchestrator.workflow.history import Began, Finished, Started
from orchestrator.workflow.language.definition import WorkflowEvent, define
from orchestrator.workflow.loop import workflow_context
from orchestrator.workflow.replay import Origin, Replay
from tests.laws.world import INSTANCE, START, World


@dataclass
class Order:
    id: int
    lines: list[str]


class Declined(Exception):
    def __init__(self, reason: str, *, code: int) -> None:
        super().__init__(reason)
        self.code = code


def refuse(value: str) -> str:
    raise LookupError("no such thing")


Refused = Annotated[str, AfterValidator(refuse)]


def give(value: Any = None) -> Any:
    return value


def fetch() -> Order:
    return Order(7, ["tea"])


def decline() -> None:
    raise Declined("no money", code=3)


def world_of(fn: Any, params: Any = None, **fields: Any) -> World:
    world = World(define(fn), params, **fields)
    world.turn()
    return world


def outcome_of(world: World) -> Any:
    if world.error is not None:
        return codec.error_info(world.error)
    return codec.decode(world.output or "null")


# -- keys and order ----------------------------------------------------------------------------------------------


def test_keys_count_per_kind_and_name() -> None:
    """Semantics §1.2: kind, name and a 1-based counter per kind and name."""

    async def flow(event, step):
        step.do("a", give), step.do("b", give), step.do("a", give), step.sleep("a", 1), step.do("a", give)
        step.wait_for_event("a", type="go")
        await step.sleep("end", 100)

    world = world_of(flow)
    keys = ["do:a:1", "do:b:1", "do:a:2", "sleep:a:1", "do:a:3", "wait:a:1", "sleep:end:1"]
    assert list(world.rows) == keys
    assert [row.started_seq for row in world.rows.values()] == sorted(
        r.started_seq for r in world.rows.values()
    )


def test_a_step_starts_when_it_is_called() -> None:
    """API: not when it is awaited."""

    async def flow(event, step):
        first = step.do("first", give, 1)
        second = await step.do("second", give, 2)
        return [await first, second]

    world = world_of(flow)
    assert world.handed() == ["do:first:1", "do:second:1"]


def test_completions_are_fed_one_at_a_time() -> None:
    """Semantics §1.5: the code runs until idle between two of them, also when they come in one batch."""

    async def flow(event, step):
        a, b = step.do("a", give, 1), step.do("b", give, 2)
        done, _ = await asyncio.wait([a, b], return_when=asyncio.FIRST_COMPLETED)
        return [len(done), a in done]

    world = world_of(flow)
    world.claim()
    world.turn(world.outcome("do:a:1"), world.outcome("do:b:1"))
    assert outcome_of(world) == [1, True]


# -- values and errors -------------------------------------------------------------------------------------------


def test_the_event_holds_validated_parameters() -> None:
    """API: the payload as annotated, id, workflow name and time of creation."""

    async def flow(event: WorkflowEvent[Order], step):
        assert isinstance(event.payload, Order)
        return [event.payload.lines, event.instance_id, event.workflow_name, event.timestamp.timestamp()]

    assert outcome_of(world_of(flow, Order(1, ["tea"]))) == [["tea"], "it", "flow", START]


def test_a_value_is_revived_from_its_record() -> None:
    """Semantics §1.5: never the object that the body returned, and into the type that it says."""

    original = {"list": (1, 2)}

    async def flow(event, step):
        order = await step.do("order", fetch)
        plain = await step.do("plain", give, original)
        return [type(order).__name__, plain is original, plain]

    world = world_of(flow)
    world.end()
    world.end()
    assert outcome_of(world) == ["Order", False, {"list": [1, 2]}]


def test_an_error_is_revived_without_its_init() -> None:
    """Protocols §17: class and arguments are those recorded; attributes set in ``__init__`` are not there."""

    async def flow(event, step):
        try:
            await step.do("pay", decline)
        except Declined as error:
            return [error.args, hasattr(error, "code")]

    world = world_of(flow)
    world.claim()
    world.turn(world.outcome("do:pay:1", final=True))
    assert outcome_of(world) == [["no money"], False]


def test_none_is_a_result_like_any_other() -> None:
    """Semantics §1.2: recorded, and not asked for again."""

    async def flow(event, step):
        return [await step.do("a", give), await step.sleep("b", 1)]

    world = world_of(flow)
    world.end()
    assert world.rows["do:a:1"].output == "null"
    world.evict()
    world.advance()
    assert outcome_of(world) == [None, None]


def test_arguments_are_copied_when_the_step_starts() -> None:
    """Protocols §17: what the code does to them afterwards is its own business."""

    async def flow(event, step):
        cart = ["tea"]
        future = step.do("buy", give, cart)
        cart.append("milk")
        return await future

    world = world_of(flow)
    world.end()
    assert outcome_of(world) == ["tea"]


# -- time and chance ---------------------------------------------------------------------------------------------


def test_now_is_the_time_of_the_fact_being_fed() -> None:
    """Protocols §13: the start before the first, then that of each completion; never decreasing."""

    async def flow(event, step):
        times = [step.now().timestamp()]
        await step.do("a", give)
        times.append(step.now().timestamp())
        await step.sleep("s", 5)
        return [*times, step.now().timestamp(), step.now().tzinfo is not None]

    world = World(define(flow))
    world.now += 1
    world.turn()
    world.now += 1
    world.end()
    world.evict()
    world.now += 100
    world.advance()
    assert outcome_of(world) == [START + 1, START + 2, START + 102, True]


def test_now_never_goes_back() -> None:
    """Protocols §13: even if a completion was recorded with an earlier time."""

    async def flow(event, step):
        before = step.now()
        await step.do("a", give)
        return step.now() >= before

    world = world_of(flow)
    world.now -= 60
    world.end()
    assert outcome_of(world) is True


def test_chance_is_the_same_on_every_replay_and_another_in_every_run() -> None:
    """Protocols §13: a generator seeded with instance and run."""

    async def flow(event, step):
        return [str(step.uuid()), step.random(), str(step.uuid())]

    first = outcome_of(world_of(flow))
    assert first == outcome_of(world_of(flow))
    assert UUID(first[0]).version == 4
    assert first[0] != first[2]
    assert 0 <= first[1] < 1
    assert first != outcome_of(world_of(flow, run=2, seed=2))
    assert first == outcome_of(world_of(flow, run=2)), (
        "a restart from a step keeps the chance of what it keeps"
    )
    assert first != outcome_of(world_of(flow, id=UUID(int=INSTANCE.int + 1)))


def test_sets_are_walked_alike_after_a_restart_from_a_step() -> None:
    """protocols §10, §13: history that such a restart keeps is replayed in another run, and must find every set of
    steps in the order in which it was walked before: also those few (one in 600) that depend on more than counting."""
    walked: dict[int, list[list[str]]] = {}

    async def flow(event, step):
        steps = [step.do(f"s{n}", give) for n in range(60)]
        dice = random.Random(1)
        sets = [{dice.choice(steps) for _ in range(4)} for _ in range(5000)]
        walked[event.payload] = [[each.get_name() for each in chosen] for chosen in sets]
        await asyncio.gather(*steps)

    for run in range(4):
        origin = Origin(UUID(int=7 << 90), "one", run, str(run), START)
        Replay(define(flow), origin).feed([Began(1, START)])
    assert walked[0] == walked[1] == walked[2] == walked[3]


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [lambda s: s.do("x", give), lambda s: s.sleep("x", 1), lambda s: s.now()])
def test_steps_may_not_be_called_from_bodies(inside: Any) -> None:
    """Protocols §20: ``step.*`` inside a step body, or from another thread, is a named error."""
    steps: list[Any] = []

    async def flow(event, step):
        steps.append(step)
        await step.sleep("nap", 1)

    world = world_of(flow)
    with pytest.raises(NotDurable, match="called from inside a step body"):
        inside(steps[0])
    assert list(world.rows) == ["sleep:nap:1"]


@pytest.mark.parametrize("inside", [lambda s: s.do("x", give), lambda s: s.sleep("x", 1), lambda s: s.now()])
def test_steps_may_not_be_called_from_rollback_handlers(inside: Any) -> None:
    """Semantics §5.7: a named error that is final, also though the code's run is over by then."""
    steps: list[Any] = []

    async def flow(event, step):
        steps.append(step)
        await step.do("a", give, rollback=lambda ctx: inside(steps[0]))
        raise LookupError("no")

    world = world_of(flow)
    world.end()
    world.end("do:a:1:rollback")
    handler = world.rows["do:a:1:rollback"]
    assert (handler.status, handler.attempt) == ("failed", 1)
    assert codec.error_info(handler.error or "").name == "NotDurable"


def test_steps_of_a_run_that_is_over_are_refused() -> None:
    """Protocols §1: by a ``BaseException``, so that code cannot swallow it."""
    steps: list[Any] = []

    async def flow(event, step):
        steps.append(step)

    world_of(flow)
    with pytest.raises(ReplayDiscarded):
        workflow_context().run(steps[0].do, "x", give)


@pytest.mark.parametrize(("count", "fits"), [(3, True), (4, False)])
def test_exactly_max_steps_are_fine(count: int, fits: bool) -> None:
    """Semantics §1.7: number N+1 raises; sleeps and waits do not count."""

    async def flow(event, step):
        for _ in range(5):
            await step.sleep("free", 0)
        await asyncio.gather(*[step.do("s", give, index) for index in range(count)])
        return "fits"

    world = World(define(flow, max_steps=3))
    world.turn()
    if fits:
        world.end()
        assert outcome_of(world) == "fits"
    else:
        assert outcome_of(world).name == "StepLimitExceeded"


def test_a_result_that_cannot_be_stored_fails_the_workflow() -> None:
    """Semantics §2.6: ``SerializationError``."""

    async def flow(event, step):
        return object()

    assert outcome_of(world_of(flow)).name == "SerializationError"


def test_a_result_that_does_not_fit_its_annotation_fails_the_workflow() -> None:
    """Semantics §2.6, protocols §17: rather than to complete with what nobody can read; rollbacks run."""

    async def flow(event, step) -> Order:
        await step.do("a", give, rollback=give)
        return {"id": "seven"}  # type: ignore[return-value]

    world = world_of(flow)
    world.end()
    assert world.status.value == "rolling_back"
    world.end()
    assert world.output is None
    error = outcome_of(world)
    assert error.name == "SerializationError"
    assert "the result of workflow 'flow' does not fit its annotation" in error.message


def test_a_result_that_its_own_validator_refuses_fails_the_workflow() -> None:
    """Semantics §2.6: whatever the validator raises."""

    async def flow(event, step) -> Refused:
        return "it"

    assert outcome_of(world_of(flow)).name == "SerializationError"


def test_a_result_that_fits_its_annotation_is_stored_as_it_is() -> None:
    """API: as JSON text."""

    async def flow(event, step) -> Order:
        return Order(7, ["tea"])

    assert world_of(flow).output == '{"id":7,"lines":["tea"]}'


def test_the_deployment_limits_the_result() -> None:
    """Semantics §6: a setting."""

    async def flow(event, step):
        return "12345678"

    assert outcome_of(world_of(flow, max_payload_bytes=10)) == "12345678"
    error = outcome_of(world_of(flow, max_payload_bytes=9))
    assert error.name == "PayloadTooLarge"
    assert "has 10 bytes as JSON; at most 9 are allowed" in error.message


def test_a_workflow_that_cancels_itself_fails() -> None:
    """A cancellation that nobody catches is an error of the workflow."""

    async def flow(event, step):
        future = step.do("a", give)
        future.cancel()
        await future

    world = world_of(flow)
    assert outcome_of(world).message == "The workflow's code cancelled itself."
    assert isinstance(revive(world.error or "", {}), RuntimeError)


# -- futures -----------------------------------------------------------------------------------------------------


def test_cancelling_a_finished_step_does_nothing() -> None:
    """Protocols §13: a future that is done is not cancelled."""

    async def flow(event, step):
        future = step.do("a", give, 1)
        await future
        return [future.cancel(), future.result()]

    world = world_of(flow)
    world.end()
    assert outcome_of(world) == [False, 1]


def test_gather_cancels_nothing() -> None:
    """Protocols §13: a sibling of a failed step goes on."""

    async def flow(event, step):
        slow = step.do("slow", give, "slow")
        try:
            await asyncio.gather(slow, step.do("wrong", decline))
        except Declined:
            return await slow

    world = world_of(flow)
    world.claim()
    world.turn(world.outcome("do:wrong:1", final=True))
    assert world.rows["do:slow:1"].status == "running"
    world.end()
    assert outcome_of(world) == "slow"


def test_cancelling_a_task_cancels_the_step_it_awaits() -> None:
    """Protocols §13: as asyncio has it."""

    async def flow(event, step):
        async def helper() -> None:
            await step.sleep("long", 1000)

        task = asyncio.create_task(helper())
        await step.do("a", give)
        task.cancel()
        await step.do("b", give)

    world = world_of(flow)
    world.end()
    assert world.rows["sleep:long:1"].status == "cancelled"


def test_nothing_follows_from_ends_after_the_code_has_ended() -> None:
    """Protocols §1: a replay that is over takes no more facts into account."""

    async def flow(event, step):
        step.do("a", give)
        return 1

    world = world_of(flow)
    replay = world.replay()
    replay.feed([Began(0, START), Started(2, "do:a:1")])
    assert replay.ended
    replay.feed([Finished(3, "do:a:1", START, "1")])
    assert len(replay.pending) == 1


def test_feeding_resumes_code_that_was_over_its_budget() -> None:
    """Protocols §1 (6): a fact is fed only to code that is idle."""

    async def flow(event, step):
        first = step.do("a", give)
        for _ in range(15_000):
            await asyncio.sleep(0)
        return [await first, await step.do("b", give, 2)]

    world = World(define(flow))
    replay = world.replay()
    replay.feed([Began(0, START), Started(1, "do:a:1")])
    replay.feed([Finished(2, "do:a:1", START, "1"), Started(3, "do:b:1")])
    assert not replay.pending
    replay.discard()
