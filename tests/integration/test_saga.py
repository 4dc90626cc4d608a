"""Sagas on real workers and a real Postgres: what is undone, when, in which order, and what handlers are told."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from orchestrator import (
    EventTimeout,
    InvalidTransition,
    NonRetryableError,
    Retries,
    RollbackContext,
    RollbackPolicy,
    Status,
    WorkflowFailed,
    WorkflowTerminated,
)
from orchestrator.errors import ErrorInfo
from orchestrator.settings import Settings
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import Created, Site, eventually

pytestmark = pytest.mark.integration

ONCE = Retries(limit=0)
TWICE = Retries(limit=1, delay=0)
TERMINATED = ErrorInfo("Terminated", "Instance terminated during rollback")


class Hotel:
    """Bodies that book and handlers that cancel. What happened is in ``said``; ``go`` lets go what waits for it."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.told: list[RollbackContext] = []
        self.keys: list[tuple[str, str]] = []
        self.go = threading.Event()

    async def book(self, name: str, ctx: Any) -> str:
        self.said.append(f"book {name}")
        self.keys.append((name, ctx.idempotency_key))
        return f"booked {name}"

    async def refuse(self, name: str) -> None:
        self.said.append(f"refuse {name}")
        raise NonRetryableError(f"no {name}")

    async def cancel(self, r: RollbackContext) -> object:
        self.said.append(f"cancel {r.step.name}")
        self.told.append(r)
        self.keys.append((f"cancel {r.step.name}", r.idempotency_key))
        return object()  # nobody reads it, so it need not be storable

    def wait(self, name: str) -> str:
        self.said.append(f"book {name}")
        assert self.go.wait(20)
        self.said.append(f"end {name}")
        return f"booked {name}"

    @property
    def cancelled(self) -> list[str]:
        return [said.removeprefix("cancel ") for said in self.said if said.startswith("cancel ")]


@pytest.fixture
def hotel() -> Iterator[Hotel]:
    one = Hotel()
    yield one
    one.go.set()


@pytest.fixture(params=["broker", "in_place"])
def delivered(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site whose steps and handlers are started by message, or in place."""
    with Site(replace(settings, delivery=request.param)) as one:
        yield one


def failed(created: Any) -> WorkflowFailed:
    with pytest.raises(WorkflowFailed) as raised:
        created.result(20)
    return raised.value


def terminated(created: Any) -> WorkflowTerminated:
    with pytest.raises(WorkflowTerminated) as raised:
        created.result(20)
    return raised.value


def is_status(created: Any, status: str) -> None:
    eventually(lambda: created.status().status == status, f"the status {status}")


def story(created: Any) -> list[str]:
    """The lifecycle events of its rollback, with the step they are about."""
    told = [event for event in created.subscribe() if event.type.startswith("rollback_")]
    return [f"{event.type} {event.step_name}" if event.step_name else event.type for event in told]


# -- what starts a rollback ------------------------------------------------------------------------------------------


def test_a_caught_error_undoes_nothing_until_the_workflow_fails(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.1: a step error that the code catches does not trigger it; if the workflow fails later, that step's
    handler runs too, in its place."""

    async def saga_caught(event, step):
        await step.do("room", hotel.book, "room", rollback=hotel.cancel)
        try:
            await step.do("car", hotel.refuse, "car", rollback=hotel.cancel)
        except NonRetryableError:
            await step.do("bus", hotel.book, "bus", rollback=hotel.cancel)
        if event.payload == "fails":
            raise LookupError("later")
        return "travelled"

    flow = delivered.workflow(saga_caught)
    delivered.worker()
    fine = flow.create("fine")
    assert fine.result(20) == "travelled"
    assert (fine.status().rollback, hotel.cancelled, story(fine)) == (None, [], [])
    error = failed(flow.create("fails"))
    assert (error.error.name, error.rollback.outcome) == ("LookupError", "complete")  # type: ignore[union-attr]
    assert hotel.cancelled == ["bus", "car", "room"]


def test_an_attempt_that_is_retried_undoes_nothing(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.1: only the final failure of a step makes the workflow fail."""

    async def flaky(ctx: Any) -> str:
        if ctx.attempt == 1:
            raise ConnectionError("not yet")
        return "at last"

    async def saga_retried(event, step):
        await step.do("room", hotel.book, "room", rollback=hotel.cancel)
        return await step.do("flaky", flaky, retries=TWICE, rollback=hotel.cancel)

    flow = delivered.workflow(saga_retried)
    delivered.worker()
    created = flow.create()
    assert created.result(20) == "at last"
    assert (hotel.cancelled, created.status().rollback) == ([], None)


def test_without_anything_to_undo_there_is_no_rollback(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.4: no eligible step: no rollback events, ``rollback is None``; not ``rolling_back`` for a moment."""

    async def saga_nothing(event, step):
        await step.do("room", hotel.book, "room")
        await step.do("car", hotel.refuse, "car")

    flow = delivered.workflow(saga_nothing)
    delivered.worker()
    created = flow.create()
    assert failed(created).rollback is None
    assert (created.status().rollback, story(created)) == (None, [])
    transitions = delivered.sql(
        "SELECT status FROM orchestrator_transitions WHERE instance_id = :id", id=delivered.id_of(created.id)
    )
    assert "rolling_back" not in [status for (status,) in transitions]


# -- what is undone --------------------------------------------------------------------------------------------------


def test_the_failing_step_a_wait_and_what_gave_none_are_undone(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.2, api §2: completed, failed, or waited for; ``has_output`` tells a recorded ``None`` from none at
    all; each handler has its step's arguments, and its context with the attempt that it came to."""

    async def nothing(name: str, ctx: Any) -> None:
        if ctx.attempt == 1:
            raise ConnectionError("not yet")

    async def saga_eligible(event, step):
        await step.do("none", nothing, "x", retries=TWICE, rollback=hotel.cancel)
        await step.wait_for_event("paid", type="paid", rollback=hotel.cancel)
        with contextlib.suppress(EventTimeout):
            await step.wait_for_event("late", type="never", timeout=1, rollback=hotel.cancel)
        await step.do("plain", hotel.book, "plain")
        await step.do("car", hotel.refuse, "car", rollback=hotel.cancel)

    flow = delivered.workflow(saga_eligible)
    delivered.worker(chef=True)
    created = flow.create()
    created.send_event("paid", {"by": "carol"})
    assert failed(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    assert hotel.cancelled == ["car", "late", "paid", "none"]
    car, late, paid, none = hotel.told
    assert (car.output, car.has_output, car.args) == (None, False, ("car",))
    assert (late.output, late.has_output, late.args) == (None, False, ())
    assert (paid.output.payload, paid.output.type, paid.has_output) == ({"by": "carol"}, "paid", True)
    assert (none.output, none.has_output, none.args, none.step.attempt) == (None, True, ("x",), 2)
    assert {(r.error.name, r.error.message) for r in hotel.told} == {("NonRetryableError", "no car")}
    assert {r.step.instance_id for r in hotel.told} == {created.id}


def test_what_never_began_is_not_undone(site: Site, hotel: Hotel) -> None:
    """semantics §5.2: an offer that nobody took has not started, nor has a wait that the code never came to."""

    async def saga_unbegun(event, step):
        room = await step.do("room", hotel.book, "room", rollback=hotel.cancel)
        offered = step.do("offered", hotel.book, "offered", queue="nobody", rollback=hotel.cancel)
        await step.do("car", hotel.refuse, "car")
        await step.wait_for_event("never", type="never", rollback=hotel.cancel)
        return room, offered

    site.post.loses = lambda handout: handout.key == "do:offered:1"
    site.worker()
    created = site.workflow(saga_unbegun).create()
    assert failed(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    assert hotel.said == ["book room", "refuse car", "cancel room"]
    assert {step.key: step.status for step in created.steps()}["do:offered:1"] == "cancelled"


def test_reverse_order_of_start_whoever_ended_first(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.3: handlers run one at a time in reverse *start* order, over gathers, helpers and loops."""
    done: list[str] = []

    async def slowly(name: str, ctx: Any) -> str:
        while name == "a" and "c" not in done:
            await asyncio.sleep(0.005)
        done.append(name)
        return name

    async def both(step: Any, first: str, second: str) -> None:
        await asyncio.gather(
            step.do(first, slowly, first, rollback=hotel.cancel),
            step.do(second, slowly, second, rollback=hotel.cancel),
        )

    async def saga_order(event, step):
        await asyncio.gather(both(step, "a", "b"), step.do("c", slowly, "c", rollback=hotel.cancel))
        for _ in range(2):
            await step.do("loop", slowly, "loop", rollback=hotel.cancel)
        raise LookupError("no")

    flow = delivered.workflow(saga_order)
    delivered.worker()
    created = flow.create()
    failed(created)
    started = [step.name for step in created.steps() if step.kind == "do"]
    assert done.index("c") < done.index("a")
    assert hotel.cancelled == started[::-1]
    assert [r.step.count for r in hotel.told[:2]] == [2, 1]


def test_the_keys_differ_and_are_stable(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.3, protocols §3: the handler has an idempotency key of its own, the same on every attempt; after a
    restart both are others."""
    keys: list[str] = []

    async def undo(r: RollbackContext) -> None:
        keys.append(r.idempotency_key)
        await hotel.cancel(r)
        if r.attempt < 3:
            raise ConnectionError("not yet")

    async def saga_keys(event, step):
        await step.do("room", hotel.book, "room", rollback=undo, rollback_retries=Retries(limit=2, delay=0))
        raise LookupError("no")

    flow = delivered.workflow(saga_keys)
    delivered.worker()
    created = flow.create()
    failed(created)
    created.restart()
    eventually(lambda: len(keys) == 6)
    assert failed(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    forward = [key for name, key in hotel.keys if name == "room"]
    assert (len(set(keys[:3])), len(set(keys[3:])), len({*keys, *forward})) == (1, 1, 4)
    assert keys[0] == f"{forward[0]}:rollback"
    assert [r.step.idempotency_key for r in hotel.told] == [forward[0]] * 3 + [forward[1]] * 3
    assert [r.attempt for r in hotel.told] == [1, 2, 3] * 2


def test_decorated_steps_tell_their_handlers_what_they_were_given(delivered: Site, hotel: Hotel) -> None:
    """api §2: ``RollbackContext.args`` of a decorated step are the results that were passed to it."""

    async def saga_decorated(event, step):
        @step.do("load", rollback=hotel.cancel)
        async def load():
            return [1, 2]

        @step.do("charge", rollback=hotel.cancel)
        async def charge(load, ctx):
            return sum(load)

        await charge()
        raise LookupError("no")

    flow = delivered.workflow(saga_decorated)
    delivered.worker()
    failed(flow.create())
    assert [(r.step.name, r.args, r.output) for r in hotel.told] == [
        ("charge", ([1, 2],), 3),
        ("load", (), [1, 2]),
    ]


# -- handlers are steps ----------------------------------------------------------------------------------------------


def test_retries_and_time_outs_of_handlers_are_their_own(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.3, api §2: ``rollback_retries`` and ``rollback_timeout``, not those of the step; the delay function
    is asked with the handler's attempt; without them the defaults hold."""
    asked: list[tuple[int, str]] = []

    def delay(ctx: Any, error: Exception) -> float:
        asked.append((ctx.attempt, type(error).__name__))
        return 0.0

    async def slow(r: RollbackContext) -> None:
        await hotel.cancel(r)
        if r.attempt < 3:
            await asyncio.sleep(60)

    async def saga_own(event, step):
        await step.do("plain", hotel.book, "plain", retries=ONCE, timeout=7, rollback=hotel.cancel)
        await step.do(
            "slow", hotel.book, "slow", retries=ONCE, rollback=slow, rollback_timeout=0.1,
            rollback_retries=Retries(limit=2, delay=delay, backoff="constant"),
        )  # fmt: skip
        raise LookupError("no")

    flow = delivered.workflow(saga_own)
    delivered.worker()
    created = flow.create()
    assert failed(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    assert asked == [(1, "StepTimeout"), (2, "StepTimeout")]
    assert [(r.step.name, r.attempt) for r in hotel.told] == [
        ("slow", 1), ("slow", 2), ("slow", 3), ("plain", 1),
    ]  # fmt: skip
    handlers = {step.key: step for step in created.steps() if step.kind == "rollback"}
    plain, own = (handlers[f"do:{name}:1:rollback"].config for name in ("plain", "slow"))
    assert (plain["retries_limit"], plain["delay_s"], plain["timeout_s"]) == (5, 10.0, 600.0)
    assert (own["retries_limit"], own["timeout_s"]) == (2, 0.1)
    assert [attempt.error.name for attempt in handlers["do:slow:1:rollback"].attempts[:2]] == [
        "StepTimeout"
    ] * 2


def test_a_handler_that_gives_up_stops_the_chain(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.4: ``NonRetryableError`` is final in a handler, too; the first that fails for good stops the chain;
    the original error stays that of the instance; and all is told in order (semantics §7)."""

    async def gives_up(r: RollbackContext) -> None:
        await hotel.cancel(r)
        raise NonRetryableError("cannot")

    async def saga_stops(event, step):
        await step.do("a", hotel.book, "a", rollback=hotel.cancel)
        await step.do("b", hotel.book, "b", rollback=gives_up)
        await step.do("c", hotel.book, "c", rollback=hotel.cancel)
        raise LookupError("the original error")

    flow = delivered.workflow(saga_stops)
    delivered.worker()
    created = flow.create()
    error = failed(created)
    assert (error.error.name, error.error.message) == ("LookupError", "the original error")
    rollback = created.status().rollback
    assert (rollback.outcome, str(rollback.error)) == ("failed", "NonRetryableError: cannot")
    assert list(rollback.errors) == [rollback.error]
    assert hotel.cancelled == ["c", "b"]
    assert story(created) == [
        "rollback_started",
        "rollback_step_started c", "rollback_attempt_started c", "rollback_attempt_completed c",
        "rollback_step_completed c",
        "rollback_step_started b", "rollback_attempt_started b", "rollback_attempt_errored b",
        "rollback_step_errored b",
        "rollback_errored",
    ]  # fmt: skip


def test_on_error_continue_reports_all(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.4: ``on_error="continue"`` goes on, and reports every handler that failed."""

    async def gives_up(r: RollbackContext) -> None:
        await hotel.cancel(r)
        raise NonRetryableError(f"cannot {r.step.name}")

    async def saga_continues(event, step):
        for name, handler in (("a", gives_up), ("b", hotel.cancel), ("c", gives_up)):
            await step.do(name, hotel.book, name, rollback=handler)
        raise LookupError("no")

    flow = delivered.workflow(saga_continues, rollback=RollbackPolicy(on_error="continue"))
    delivered.worker()
    rollback = failed(flow.create()).rollback
    assert rollback is not None
    assert (rollback.outcome, [error.message for error in rollback.errors]) == (
        "failed",
        ["cannot c", "cannot a"],
    )
    assert hotel.cancelled == ["c", "b", "a"]


def test_parallel_handlers_meet_and_finish(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.8, protocols §20: ``order="parallel"`` runs them beside each other; with ``stop`` those that run, or
    wait for their retry, finish when one has failed."""
    meeting = {"here": 0}

    async def meets(r: RollbackContext) -> None:
        meeting["here"] += 1
        while meeting["here"] < 3:
            await asyncio.sleep(0.005)
        if r.step.name == "b":
            raise NonRetryableError("cannot b")
        if r.step.name == "a" and r.attempt == 1:
            raise ConnectionError("not yet")
        while r.step.name == "c" and not hotel.go.is_set():
            await asyncio.sleep(0.005)
        await hotel.cancel(r)

    async def saga_parallel(event, step):
        for name in "abc":
            await step.do(name, hotel.book, name, rollback=meets, rollback_retries=TWICE)
        raise LookupError("no")

    flow = delivered.workflow(saga_parallel, rollback=RollbackPolicy(order="parallel"))
    delivered.worker()
    created = flow.create()
    status = {"do:a:1:rollback": "done", "do:b:1:rollback": "failed"}
    eventually(lambda: status.items() <= {step.key: step.status for step in created.steps()}.items())
    assert created.status().status is Status.ROLLING_BACK
    hotel.go.set()
    rollback = failed(created).rollback
    assert rollback is not None
    assert (rollback.outcome, [str(error) for error in rollback.errors]) == (
        "failed",
        ["NonRetryableError: cannot b"],
    )
    assert sorted(hotel.cancelled) == ["a", "c"]


def test_a_step_called_from_a_handler_is_refused(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.7: a named error, that fails the handler at once."""

    async def saga_nested(event, step):
        async def undo(r: RollbackContext) -> None:
            await hotel.cancel(r)
            await step.do("inner", hotel.book, "inner")

        await step.do("room", hotel.book, "room", rollback=undo)
        raise LookupError("no")

    flow = delivered.workflow(saga_nested)
    delivered.worker()
    created = flow.create()
    rollback = failed(created).rollback
    assert rollback is not None and rollback.error is not None
    assert rollback.error.name == "NotDurable"
    assert "'inner' was called from inside a step body, a rollback handler" in rollback.error.message
    assert hotel.said == ["book room", "cancel room"]
    assert [step.key for step in created.steps()] == ["do:room:1", "do:room:1:rollback"]


def test_handlers_are_celery_tasks_of_their_own_name(site: Site, hotel: Hotel) -> None:
    """semantics §5.3, protocols §19: a task of its own, shown as ``<workflow>.<step>.rollback``, under a fence:
    delivered twice, it runs once."""

    async def saga_named(event, step):
        await step.do(f"room {event.payload}", hotel.book, "room", rollback=hotel.cancel)
        raise LookupError("no")

    worker = site.worker()
    created = site.workflow(saga_named).create(7)
    failed(created)
    (forward, handler) = site.post.take()
    assert (forward.label, handler.label) == ("saga_named.room ${...}", "saga_named.room ${...}.rollback")
    assert (handler.key, handler.fence > forward.fence) == ("do:room 7:1:rollback", True)
    assert worker.run(handler).result(15) == "dropped", "its message came twice"
    assert hotel.said == ["book room", "cancel room 7"]


# -- rule 0: bodies in flight ----------------------------------------------------------------------------------------


def test_an_async_body_may_still_say_what_it_did(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.0: it is cancelled first, and what it returns is the output its handler sees."""

    async def stubborn() -> str:
        hotel.said.append("book room")
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            hotel.said.append("end room")
            return "half a room"
        return "a room"

    async def saga_stubborn(event, step):
        room = step.do("room", stubborn, rollback=hotel.cancel)
        await step.wait_for_event("go", type="go")
        raise LookupError(f"too late for {room}")

    flow = delivered.workflow(saga_stubborn)
    delivered.worker()
    created = flow.create()
    eventually(lambda: hotel.said)
    created.send_event("go")
    failed(created)
    assert hotel.said == ["book room", "end room", "cancel room"]
    assert (hotel.told[0].output, hotel.told[0].has_output) == ("half a room", True)


@pytest.mark.parametrize("how", ["fails", "terminated"])
def test_the_chain_waits_for_threads(delivered: Site, hotel: Hotel, how: str) -> None:
    """semantics §5.0, protocols §14: a sync body is told, and waited for; its handler sees what it returned, and no
    handler of another step runs before."""

    async def saga_threads(event, step):
        await step.do("first", hotel.book, "first", rollback=hotel.cancel)
        room = step.do("room", hotel.wait, "room", rollback=hotel.cancel)
        await step.wait_for_event("go", type="go")
        raise LookupError(f"too late for {room}")

    flow = delivered.workflow(saga_threads)
    delivered.worker()
    created = flow.create()
    eventually(lambda: "book room" in hotel.said)
    if how == "fails":
        created.send_event("go")
    else:
        created.terminate(rollback=True)
    id_ = delivered.id_of(created.id)
    eventually(lambda: delivered.step(id_, "do:room:1").status == "cancelling")
    is_status(created, "rolling_back")
    assert hotel.cancelled == []
    hotel.go.set()
    end = failed(created) if how == "fails" else terminated(created)
    assert end.rollback is not None and end.rollback.outcome == "complete"
    assert hotel.said == ["book first", "book room", "end room", "cancel room", "cancel first"]
    assert (hotel.told[0].output, hotel.told[0].has_output) == ("booked room", True)


def test_a_thread_that_does_not_listen_is_waited_for_up_to_its_time_out(
    delivered: Site, hotel: Hotel
) -> None:
    """semantics §5.0, protocols §14: what it returns after that is discarded; its handler is told of no output."""

    async def saga_deaf(event, step):
        room = step.do("room", hotel.wait, "room", timeout=0.5, rollback=hotel.cancel)
        await step.wait_for_event("go", type="go")
        raise LookupError(f"too late for {room}")

    flow = delivered.workflow(saga_deaf)
    delivered.worker()
    created = flow.create()
    eventually(lambda: "book room" in hotel.said)
    created.terminate(rollback=True)
    assert terminated(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    assert hotel.said == ["book room", "cancel room"]
    hotel.go.set()
    eventually(lambda: hotel.said[-1] == "end room")
    assert (hotel.told[0].output, hotel.told[0].has_output) == (None, False)
    assert created.steps()[0].output is None


def test_a_body_whose_worker_is_gone_is_waited_for_by_its_lease(site: Site, hotel: Hotel) -> None:
    """semantics §5.0, protocols §14: the chain goes on when the worker that ran it is declared dead, without output."""
    began = threading.Event()

    async def hangs() -> None:
        began.set()
        await asyncio.sleep(600)

    async def saga_lost(event, step):
        await step.do("first", hotel.book, "first", rollback=hotel.cancel)
        room = step.do("room", hangs, rollback=hotel.cancel)
        await step.wait_for_event("go", type="go")
        raise LookupError(f"too late for {room}")

    flow = site.workflow(saga_lost)
    doomed = site.worker(chef=True, lease=1.0)
    created = flow.create()
    assert began.wait(15)
    is_status(created, "running")
    doomed.crash()
    created.terminate(rollback=True)
    assert created.status().status == "rolling_back"
    assert hotel.cancelled == []
    site.worker(chef=True, lease=1.0)
    assert terminated(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    assert [(r.step.name, r.has_output) for r in hotel.told] == [("room", False), ("first", True)]


# -- terminate, pause and other code ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "where", ["running", "waiting", "waiting_for_pause", "paused", "queued", "blocked", "lost"]
)
def test_terminate_with_rollback_from_wherever(site: Site, hotel: Hotel, where: str) -> None:
    """semantics §5.6: from every status with something to undo, and after a crash: the process that undoes has never
    seen the instance, and runs no body for it."""

    def code(home: Registry, *names: str) -> Created:
        async def saga_terminated(event, step):
            for name in names:
                await step.do(name, hotel.book, name, rollback=hotel.cancel)
            if event.payload in ("running", "waiting_for_pause"):
                await step.do("long", hotel.wait, "long", rollback=hotel.cancel)
            await step.wait_for_event("never", type="never")

        return site.workflow(saga_terminated, home)

    flow = code(site.registry, "a", "b")
    first = site.worker(chef=True, lease=1.0)
    created = flow.create(where)
    is_long = where in ("running", "waiting_for_pause")
    eventually(lambda: "book long" in hotel.said if is_long else created.status().status == "waiting")
    if where in ("waiting_for_pause", "paused", "queued"):
        created.pause()
    if where in ("queued", "blocked", "lost"):
        first.crash()
    if where == "queued":
        created.resume()  # as awoken, with nobody there who could start it
    if where == "blocked":
        other = Registry()
        code(other, "x")
        second = site.worker(other, chef=True, lease=1.0)
        created.send_event("anything")
        eventually(lambda: created.status().blocked)
        second.crash()
    expected = {"blocked": "waiting", "lost": "waiting"}.get(where, where)
    assert created.status().status == expected
    said = list(hotel.said)
    created.terminate(rollback=True)
    with pytest.raises(InvalidTransition):
        created.terminate(rollback=True)
    if where in ("queued", "blocked", "lost"):
        site.worker(chef=True, lease=1.0)
    hotel.go.set()
    assert terminated(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    assert hotel.cancelled == (["long"] if is_long else []) + ["b", "a"]
    assert [each for each in hotel.said[len(said) :] if each.startswith("book")] == []
    assert {(r.error.name, r.error.message) for r in hotel.told} == {(TERMINATED.name, TERMINATED.message)}
    assert created.status().status is Status.TERMINATED


def test_a_terminated_instance_ends_terminated_though_its_handler_fails(
    delivered: Site, hotel: Hotel
) -> None:
    """semantics §5.6: the end is ``terminated``, with the failed outcome beside it and no error of the instance."""

    async def gives_up(r: RollbackContext) -> None:
        raise NonRetryableError("cannot")

    async def saga_ends(event, step):
        await step.do("room", hotel.book, "room", rollback=gives_up)
        await step.wait_for_event("never", type="never")

    flow = delivered.workflow(saga_ends)
    delivered.worker()
    created = flow.create()
    is_status(created, "waiting")
    created.terminate(rollback=True)
    rollback = terminated(created).rollback
    assert rollback is not None and (rollback.outcome, str(rollback.error)) == (
        "failed",
        "NonRetryableError: cannot",
    )
    status = created.status()
    assert (status.status, status.error) == (Status.TERMINATED, None)


def test_nothing_that_meets_a_rollback_holds_it_up(delivered: Site, hotel: Hotel) -> None:
    """semantics §5.7: a pause is taken and changes nothing; a terminate is refused, with a rollback or without."""

    def undo(r: RollbackContext) -> None:
        hotel.said.append("undoing")
        assert hotel.go.wait(20)

    async def saga_met(event, step):
        await step.do("a", hotel.book, "a", rollback=hotel.cancel)
        await step.do("b", hotel.book, "b", rollback=undo)
        raise LookupError("no")

    flow = delivered.workflow(saga_met)
    delivered.worker()
    created = flow.create()
    eventually(lambda: "undoing" in hotel.said)
    created.pause()
    assert created.status().status is Status.ROLLING_BACK
    for rollback in (True, False):
        with pytest.raises(InvalidTransition, match="rolling back"):
            created.terminate(rollback=rollback)
    created.resume()
    hotel.go.set()
    assert failed(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    assert hotel.cancelled == ["a"]


@pytest.mark.parametrize("when", ["before the end", "amid the chain"])
def test_a_rollback_that_todays_code_does_not_give(site: Site, hotel: Hotel, when: str) -> None:
    """semantics §5.3, §5.5: handlers are rebuilt by a replay that runs no body; a step that today's code gives no
    rollback any more is named, and the chain stops there."""

    async def holds(r: RollbackContext) -> None:
        await hotel.cancel(r)
        while not hotel.go.is_set():
            await asyncio.sleep(0.01)

    def code(home: Registry, *, gives: bool) -> Created:
        async def saga_not_given(event, step):
            await step.do("a", hotel.book, "a", rollback=hotel.cancel)
            await step.do("b", hotel.book, "b", rollback=hotel.cancel if gives else None)
            await step.do("c", hotel.book, "c", rollback=holds)
            await step.wait_for_event("go", type="go")
            raise LookupError("no")

        return site.workflow(saga_not_given, home)

    flow = code(site.registry, gives=True)
    first = site.worker(chef=True, lease=1.0)
    created = flow.create()
    is_status(created, "waiting")
    if when == "amid the chain":
        created.send_event("go")
        eventually(lambda: hotel.cancelled == ["c"])
    first.crash()
    other = Registry()
    code(other, gives=False)
    hotel.go.set()
    site.worker(other, chef=True, lease=1.0)
    if when == "before the end":
        created.send_event("go")
    rollback = failed(created).rollback
    assert rollback is not None and rollback.error is not None
    assert (rollback.outcome, rollback.error.name) == ("failed", "RollbackMissing")
    assert "do:b:1" in rollback.error.message
    assert hotel.cancelled == (["c"] if when == "before the end" else ["c", "c"])
    assert [said for said in hotel.said if said.startswith("book")] == ["book a", "book b", "book c"]


@pytest.mark.parametrize("when", ["before the end", "amid the chain"])
def test_a_step_that_todays_code_does_not_come_to(site: Site, hotel: Hotel, when: str) -> None:
    """semantics §5.5, §5.6: code that has become too short does not hold an end up: what it does not come to is
    named, and the rollback fails; code that comes to it undoes it when an operator retries."""

    async def holds(r: RollbackContext) -> None:
        await hotel.cancel(r)
        while not hotel.go.is_set():
            await asyncio.sleep(0.01)

    def code(home: Registry, *names: str) -> Created:
        async def saga_too_short(event, step):
            for name in names:
                await step.do(name, hotel.book, name, rollback=holds if name == "c" else hotel.cancel)
            await step.wait_for_event("go", type="go")

        return site.workflow(saga_too_short, home)

    flow = code(site.registry, "a", "b", "c")
    first = site.worker(chef=True, lease=1.0)
    created = flow.create()
    is_status(created, "waiting")
    if when == "amid the chain":
        created.terminate(rollback=True)
        eventually(lambda: hotel.cancelled == ["c"])
    first.crash()
    if when == "before the end":
        created.terminate(rollback=True)
    hotel.go.set()
    other = Registry()
    code(other, "a")
    short = site.worker(other, chef=True, lease=1.0)
    rollback = terminated(created).rollback
    assert rollback is not None and rollback.error is not None
    assert (rollback.outcome, rollback.error.name) == ("failed", "RollbackMissing")
    assert "do:c:1" in rollback.error.message
    short.crash()
    site.worker(chef=True, lease=1.0)
    created.retry_rollback()
    eventually(lambda: hotel.cancelled[-1:] == ["a"])
    assert terminated(created).rollback.outcome == "complete"  # type: ignore[union-attr]
    assert hotel.cancelled[-3:] == ["c", "b", "a"]
    assert [said for said in hotel.said if said.startswith("book")] == ["book a", "book b", "book c"]


@pytest.mark.parametrize(("limit", "outcome"), [(1, "complete"), (0, "failed")])
def test_a_handler_whose_worker_is_lost(site: Site, hotel: Hotel, limit: int, outcome: str) -> None:
    """semantics §5.3, §2.5: it runs again, another attempt under the same key; with ``limit=0`` its loss is final."""

    async def hangs_once(r: RollbackContext) -> None:
        await hotel.cancel(r)
        if r.attempt == 1:
            await asyncio.sleep(600)

    async def saga_handler_lost(event, step):
        await step.do("a", hotel.book, "a", rollback=hotel.cancel)
        await step.do(
            "b", hotel.book, "b", rollback=hangs_once, rollback_retries=Retries(limit=limit, delay=0)
        )
        raise LookupError("no")

    flow = site.workflow(saga_handler_lost)
    doomed = site.worker(chef=True, lease=1.0)
    created = flow.create()
    eventually(lambda: hotel.cancelled == ["b"])
    doomed.crash()
    site.worker(chef=True, lease=1.0)
    rollback = failed(created).rollback
    assert rollback is not None and rollback.outcome == outcome
    if outcome == "failed":
        assert rollback.error is not None and rollback.error.name == "WorkerLost"
        assert hotel.cancelled == ["b"]
    else:
        assert [(r.step.name, r.attempt) for r in hotel.told] == [("b", 1), ("b", 2), ("a", 1)]
        assert hotel.told[0].idempotency_key == hotel.told[1].idempotency_key
