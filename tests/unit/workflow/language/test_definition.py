from __future__ import annotations

import asyncio
import dataclasses
import functools
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.errors import InvalidConfig, InvalidName, InvalidParams, UnknownWorkflow
from orchestrator.workflow.codec import kind_of
from orchestrator.workflow.language.config import RollbackPolicy
from orchestrator.workflow.language.definition import (
    Registry,
    ScheduledRun,
    WorkflowEvent,
    define,
    load_params,
    validate_params,
)
from orchestrator.workflow.language.schedule import Schedule

if TYPE_CHECKING:
    from nowhere import WorkflowStep

EVENT = WorkflowEvent({"a": 1}, datetime(2026, 1, 1, tzinfo=UTC), "id", "transfer")


class Declined(Exception):
    pass


@dataclasses.dataclass
class Transfer:
    source: str
    amount: int


ORDER = Transfer("alice", 5)


async def transfer(event: WorkflowEvent[Transfer], step: WorkflowStep) -> Later | None:
    return event.payload


async def untyped(event, step):
    return event.payload


class Later:
    pass


class Classy:
    async def run(self, event: WorkflowEvent[list[int]], step) -> int:
        return len(event.payload)


def test_defaults():
    definition = define(transfer)
    options = definition.options
    assert (definition.name, definition.version, definition.fn) == ("transfer", "1", transfer)
    assert (options.max_steps, options.concurrency, options.creation_rate) == (10_000, None, None)
    assert options.rollback == RollbackPolicy()
    assert definition.source_file == __file__


def test_options():
    options = define(
        transfer,
        name="t-2",
        version="2026-01",
        concurrency=5,
        creation_rate=0.5,
        max_steps=25_000,
        success_retention="1 day",
        error_retention=0,
        schedules=[Schedule("0 * * * *", params=ORDER), Schedule("0 9 * * 1", "Europe/Berlin", ORDER)],
        rollback=RollbackPolicy(order="parallel"),
        errors=[Declined],
    ).options
    assert (options.name, options.version, options.concurrency, options.creation_rate) == (
        "t-2",
        "2026-01",
        5,
        0.5,
    )
    assert (options.success_retention_s, options.error_retention_s) == (86_400, 0)
    assert [each.tz for each in options.schedules] == ["UTC", "Europe/Berlin"]
    assert define(untyped, schedules="0 * * * *").options.schedules == (Schedule("0 * * * *"),)


@pytest.mark.parametrize(
    "options",
    [
        {"version": ""},
        {"version": 1},
        {"version": "a\nb"},
        {"concurrency": 0},
        {"concurrency": True},
        {"creation_rate": 0},
        {"creation_rate": float("nan")},
        {"creation_rate": "fast"},
        {"max_steps": 0},
        {"max_steps": 25_001},
        {"success_retention": "soon"},
        {"error_retention": -1},
        {"schedules": "hourly"},
        {"schedules": [5]},
        {"schedules": 5},
        {"schedules": None},
        {"errors": 5},
        {"schedules": ["0 * * * *", "0 * * * *"]},
        {"rollback": "parallel"},
        {"errors": [5]},
        {"errors": [KeyboardInterrupt]},
        {"errors": [StopIteration]},
    ],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(InvalidConfig):
        define(transfer, **options)


def test_targets_that_are_no_workflows():
    def plain(event, step): ...

    async def generator(event, step):
        yield 1

    async def short(event): ...

    async def keyword(event, *, step): ...

    class Unrunnable: ...

    class Needy:
        def __init__(self, something): ...

        async def run(self, event, step): ...

    for target in (plain, generator, short, keyword, Unrunnable, Needy, 5, None):
        with pytest.raises(InvalidConfig, match="workflow"):
            define(target)
    for name in ("a b", "", "x" * 65):
        with pytest.raises(InvalidName):
            define(transfer, name=name)
    with pytest.raises(InvalidName):
        define(functools.partial(transfer))


def test_what_annotations_say_even_as_text():
    definition = define(transfer)
    assert definition.payload_type is Transfer
    assert definition.return_type == Later | None
    classy = define(Classy)
    assert classy.payload_type == list[int]
    assert classy.return_type is int


def test_local_and_missing_annotations():
    @dataclasses.dataclass
    class Local:
        a: int

    async def local(event: WorkflowEvent[Local], step) -> None: ...

    async def bare(event, step): ...

    async def lost(event: WorkflowEvent[Nowhere], step) -> Nowhere: ...  # noqa: F821

    definition = define(local)
    assert definition.payload_type is Local
    assert definition.return_type is type(None)
    assert load_params(definition, '{"a":1}') == Local(1)
    for each in (define(bare), define(lost)):
        assert each.payload_type is Any
        assert each.return_type is Any


def test_decorated_workflows_keep_their_annotations():
    @functools.wraps(transfer)
    async def wrapper(*args):
        return await transfer(*args)

    assert define(wrapper).payload_type is Transfer


def test_starting_makes_one_instance_of_a_class_per_replay():
    seen = []

    class Counting:
        async def run(self, event, step):
            seen.append(self)
            return event.payload

    counting = define(Counting)
    for _ in range(2):
        assert asyncio.run(counting.start(EVENT, None)) == {"a": 1}
    assert seen[0] is not seen[1]
    assert asyncio.run(define(transfer).start(EVENT, None)) == {"a": 1}


def test_errors_that_are_revived():
    class Inner(Exception): ...

    async def local(event, step):
        raise Inner

    classes = define(local).error_classes
    assert classes[kind_of(Declined)] is Declined
    assert classes[kind_of(Inner)] is Inner
    assert kind_of(InvalidConfig) in classes
    listed = type("Listed", (Exception,), {"__module__": "elsewhere"})
    assert define(transfer, errors=[listed]).error_classes["elsewhere:Listed"] is listed


def test_the_source_hash_follows_the_source():
    async def one(event, step):
        return 1

    async def two(event, step):
        return 2

    assert define(one).source_hash == define(one).source_hash
    assert define(one).source_hash != define(two).source_hash
    without = {}
    exec("async def made(event, step):\n    return [x for x in (1, 2)]", without)
    other = {}
    exec("async def made(event, step):\n    return [y + 1 for y in (1, 2)]", other)
    assert define(without["made"]).source_hash != define(other["made"]).source_hash


def test_params_are_checked_and_loaded():
    definition = define(transfer)
    text = validate_params(definition, {"source": "a", "amount": 5})
    assert load_params(definition, text) == Transfer("a", 5)
    assert validate_params(definition, Transfer("a", 5)) == text
    with pytest.raises(InvalidParams, match="amount: Input should be a valid integer"):
        validate_params(definition, {"source": "a", "amount": "x"})
    with pytest.raises(InvalidParams):
        validate_params(definition, None)


def test_events_know_their_schedule():
    run = ScheduledRun("0 * * * *", datetime(2026, 1, 1, tzinfo=UTC))
    assert dataclasses.replace(EVENT, schedule=run).schedule.cron == "0 * * * *"


def test_registry():
    async def other(event, step): ...

    registry = Registry()
    first = registry.register(define(transfer))
    second = registry.register(define(transfer, version="2"))
    assert registry.known() == [("transfer", "1"), ("transfer", "2")]
    assert registry.get("transfer", "1") is first
    assert registry.latest("transfer") is second
    again = registry.register(define(transfer))
    assert registry.get("transfer", "1") is again
    with pytest.raises(InvalidConfig, match="defined twice"):
        registry.register(define(other, name="transfer"))
    with pytest.raises(UnknownWorkflow, match=r"known are: transfer \(version 1\), transfer \(version 2\)"):
        registry.get("transfer", "3")
    with pytest.raises(UnknownWorkflow, match="ORCHESTRATOR_WORKFLOWS"):
        Registry().latest("transfer")
