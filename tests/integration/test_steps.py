"""Steps on real workers, rule by rule: what is recorded of them, what comes back, and what a replay makes of it.

``both`` runs a workflow on a worker that keeps its replays and on one that builds them anew in every flush: whatever
the code sees must be the same.
"""

from __future__ import annotations

import asyncio
import enum
import json
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, TypedDict
from uuid import UUID

import pydantic
import pytest

from orchestrator import (
    NonRetryableError,
    PayloadTooLarge,
    Retries,
    SerializationError,
    Status,
    StepFailed,
    StepLimitExceeded,
    WorkflowEvent,
)
from orchestrator.cli import main
from orchestrator.errors import InvalidParams, NotDurable
from orchestrator.ports import Holder
from orchestrator.workflow import codec
from orchestrator.workflow.language.definition import Registry
from tests.integration.harness import ManualClock, Site, eventually

pytestmark = pytest.mark.integration

ONCE = Retries(limit=0)
SOON = Retries(limit=3, delay=0)


@pytest.fixture(params=["live", "cold"])
def both(request: pytest.FixtureRequest, site: Site) -> Site:
    """A site with a worker that feeds its live replays, or replays everything in every flush."""
    if request.param == "live":
        site.worker()
    else:
        forgetful(site)
    return site


def forgetful(site: Site) -> None:
    """A worker that keeps no replay from one flush to the next."""
    site.worker().runtime._replays._limit = 0


def give(value: Any = None) -> Any:
    return value


# -- replay and identity -----------------------------------------------------------------------------------


def test_code_runs_many_times_and_bodies_once(site: Site) -> None:
    """Semantics §1.1: code outside steps runs from the top on every replay; a finished step gives what was recorded."""
    ran: list[str] = []

    def body(name: str) -> str:
        ran.append(f"body {name}")
        return name

    async def flow(event, step):
        ran.append("code")
        return [await step.do("a", body, "a"), await step.do("b", body, "b")]

    forgetful(site)
    assert site.workflow(flow, name="steps_top").create().result(10) == ["a", "b"]
    assert (ran.count("body a"), ran.count("body b")) == (1, 1)
    assert ran.count("code") >= 3


def test_results_are_stored_by_instance_and_step(both: Site) -> None:
    """Semantics §1.2: keys are kind, name and count; ``None`` is a result like any other, and not asked for again."""
    ran: list[int] = []

    async def flow(event, step):
        got = []
        for index in range(3):
            got.append(await step.do("charge", lambda index: ran.append(index), index))
        await step.sleep("charge", 0)
        got.append(await step.do("a:b", give, 0))
        return got

    workflow = both.workflow(flow, name="steps_keys")
    one, other = workflow.create(), workflow.create()
    assert one.result(10) == other.result(10) == [None, None, None, 0]
    assert sorted(ran) == [0, 0, 1, 1, 2, 2]
    for created in (one, other):
        keys = ["do:charge:1", "do:charge:2", "do:charge:3", "sleep:charge:1", "do:a:b:1"]
        assert [record.key for record in created.steps()] == keys
        assert [(record.name, record.count) for record in created.steps()][-2:] == [("charge", 1), ("a:b", 1)]
        assert both.step(both.id_of(created.id), "do:charge:2").output == "null"


def registries(site: Site, before: Any, after: Any, name: str) -> tuple[Any, Registry]:
    registry = Registry()
    site.workflow(after, registry, name=name)
    return site.workflow(before, name=name), registry


def test_a_configuration_is_that_of_the_first_start(site: Site) -> None:
    """Semantics §1.3: code that is deployed later changes the configuration of steps that have not started; a running
    one keeps its limit, its delays and its time-out."""
    seen: list[Any] = []

    def body(ctx) -> None:
        seen.append((ctx.name, ctx.attempt, ctx.timeout, ctx.retries.limit))
        raise ConnectionError(f"attempt {ctx.attempt}")

    def code(limit: int, delay: float, timeout: int) -> Any:
        async def flow(event, step):
            for name in ("first", "second"):
                try:
                    await step.do(name, body, retries=Retries(limit, delay, "constant"), timeout=timeout)
                except ConnectionError as error:
                    seen.append(str(error))

        return flow

    flow, registry = registries(site, code(1, 5, 50), code(0, 7, 70), "steps_config")
    created = flow.create()
    clock = ManualClock(time.time())
    bench = site.bench(clock=clock)
    (handout,) = bench.wake(site.id_of(created.id)).handouts
    error = codec.encode_error(ConnectionError("attempt 1"))
    bench.finish(handout, error=error)
    site.sql("UPDATE orchestrator_steps SET due_at = now() WHERE instance_id = :id", id=handout.instance)
    site.worker(registry, chef=True)
    site.post.coordinate([handout.instance])
    created.result(15)
    assert seen == [("first", 2, 50.0, 1), "attempt 2", ("second", 1, 70.0, 0), "attempt 1"]
    first, second = created.steps()
    assert (first.config["retries_limit"], first.config["delay_s"], first.config["timeout_s"]) == (1, 5, 50)
    assert (second.config["retries_limit"], second.config["timeout_s"]) == (0, 70)
    assert [attempt.retry_delay for attempt in first.attempts] == [5.0, None]


def test_a_delay_function_is_that_of_todays_code(site: Site) -> None:
    """Semantics §1.3: a function is no part of the record; the one in the code that runs the attempt is asked."""

    def fails(ctx) -> int:
        if ctx.attempt < 3:
            raise ConnectionError("down")
        return ctx.attempt

    def code(delay: float) -> Any:
        async def flow(event, step):
            return await step.do("s", fails, retries=Retries(5, lambda ctx, error: delay, "constant"))

        return flow

    flow, registry = registries(site, code(3600), code(0.125), "steps_delay")
    created = flow.create()
    instance = site.id_of(created.id)
    before = site.worker(chef=True)
    eventually(lambda: [a.retry_delay for step in created.steps() for a in step.attempts] == [3600])
    before.crash()
    site.worker(registry, chef=True)
    site.sql("UPDATE orchestrator_steps SET due_at = now() WHERE instance_id = :id", id=instance)
    site.post.coordinate([instance])
    assert created.result(15) == 3
    (record,) = created.steps()
    assert [attempt.retry_delay for attempt in record.attempts] == [3600, 0.125, None]
    assert record.config["delay_s"] is None


def test_a_failed_step_throws_the_same_on_every_replay(both: Site) -> None:
    """Semantics §1.4: without running again; a caught ``NonRetryableError`` counts as failed for good too."""
    ran: list[str] = []

    def fails(error: str) -> None:
        ran.append(error)
        raise {"final": NonRetryableError, "value": ValueError}[error](error, "code")

    async def flow(event, step):
        said = []
        for kind, retries in (("final", SOON), ("value", ONCE)):
            try:
                await step.do(kind, fails, kind, retries=retries)
            except (NonRetryableError, ValueError) as error:
                said.append([type(error).__name__, *map(str, error.args)])
            await step.do("beside", give, 1)
        return said

    created = both.workflow(flow, name="steps_failed").create()
    assert created.result(10) == [["NonRetryableError", "final", "code"], ["ValueError", "value", "code"]]
    assert ran == ["final", "value"]


def test_exactly_as_many_steps_as_allowed(both: Site) -> None:
    """Semantics §1.7: N steps are fine, number N+1 raises what may be caught; retries, sleeps and rollbacks are not
    counted."""
    undone: list[str] = []

    def second_time(ctx) -> int:
        if ctx.attempt == 1:
            raise ConnectionError
        return ctx.attempt

    async def flow(event, step):
        await step.do("a", second_time, retries=SOON, rollback=lambda r: undone.append("a"))
        await step.sleep("s", 0)
        await step.do("b", second_time, retries=SOON, rollback=lambda r: undone.append("b"))
        try:
            await step.do("c", give)
        except StepLimitExceeded as error:
            await step.sleep("still", 0)
            raise LookupError(str(error)) from error

    created = both.workflow(flow, name="steps_limit", max_steps=2).create()
    eventually(lambda: created.status().status is Status.ERRORED)
    status = created.status()
    assert status.error is not None
    assert "step 'c' is number 3; this workflow may start 2 steps" in status.error.message
    assert undone == ["b", "a"]


# -- attempts ------------------------------------------------------------------------------------------------


def test_a_failure_is_recorded_with_its_times(site: Site) -> None:
    """Semantics §2.2: error, start, end and the delay that follows, for people also with its traceback."""

    def fails(ctx) -> int:
        if ctx.attempt < 3:
            raise ConnectionError(f"down {ctx.attempt}")
        return 1

    async def flow(event, step):
        return await step.do("s", fails, retries=Retries(5, 0.02, "exponential"))

    site.worker()
    created = site.workflow(flow, name="steps_record").create()
    created.result(10)
    (record,) = created.steps()
    errors = [attempt.error and attempt.error.message for attempt in record.attempts]
    assert errors == ["down 1", "down 2", None]
    assert [attempt.retry_delay for attempt in record.attempts] == [0.02, 0.04, None]
    moments = [(attempt.started_at, attempt.finished_at) for attempt in record.attempts]
    assert all(began is not None and ended is not None and began <= ended for began, ended in moments)
    for (_, ended), (began, _), delay in zip(moments, moments[1:], (0.02, 0.04), strict=False):
        assert began - ended >= timedelta(seconds=delay)  # type: ignore[operator]
    rows = site.sql(
        "SELECT traceback FROM orchestrator_attempts WHERE instance_id = :id", id=site.id_of(created.id)
    )
    assert all("in fails" in row.traceback and "ConnectionError" in row.traceback for row in rows)


def test_a_waiting_retry_holds_nothing(site: Site) -> None:
    """Semantics §2.2, §4: no worker, no message, no slot: the instance waits, with its alarm at the retry."""

    async def flow(event, step):
        await step.do("s", give, retries=Retries(1, "1 hour"))

    flow_ = site.workflow(flow, name="steps_retry")
    instance = flow_.plant()
    clock = ManualClock()
    bench = site.bench(clock=clock)
    released: list[Holder] = []
    bench.coordinator._slots._gate.release = released.extend  # type: ignore[method-assign]
    (handout,) = bench.wake(instance).handouts
    results = bench.finish(handout, error=codec.encode_error(ConnectionError("down")))
    assert (results.handouts, results.placed, site.post.take()) == ([], [], [])
    row = site.row(instance)
    assert row.status == "waiting"
    assert [holder.instance for holder in released] == [instance]
    stored = site.step(instance, "do:s:1")
    assert (stored.status, stored.worker) == ("pending", None)
    due_at, clock.at = clock.at + 3600, row.alarm
    assert bench.wake(instance).handouts == []
    assert site.row(instance).alarm == due_at  # an alarm moves later only when it fires
    clock.at = due_at
    assert [each.key for each in bench.wake(instance).handouts] == ["do:s:1"]


async def says_later(ctx, error) -> str:
    await asyncio.sleep(0)
    return "1 second"


def test_a_delay_function_may_be_async_and_is_multiplied(site: Site) -> None:
    """Semantics §2.4: the back-off applies to what it returned, then ``max_delay``; a duration of any kind."""

    def fails() -> None:
        raise ConnectionError("down")

    async def flow(event, step):
        await step.do("s", fails, retries=Retries(4, says_later, "exponential", max_delay=3))

    site.worker()
    created = site.workflow(flow, name="steps_async_delay").create()
    eventually(lambda: any(s.status == "pending" for s in created.steps()))
    (record,) = created.steps()
    assert record.attempts[0].retry_delay == 1.0
    # The rest of the row of delays is arithmetic (tests/unit/workflow/language/test_config.py::test_backoff).


def test_an_attempt_whose_delay_cannot_be_told_keeps_its_own_error(site: Site) -> None:
    """Semantics §2.4: the step fails with ``RetryDelayError``, without a retry, and its text says what the attempt had
    failed with."""

    def fails() -> None:
        raise ConnectionError("the bank is closed")

    def throws(ctx, error) -> float:
        raise KeyError("no such delay")

    async def flow(event, step):
        await step.do("s", fails, retries=Retries(4, throws))

    site.worker()
    created = site.workflow(flow, name="steps_no_delay").create()
    eventually(lambda: created.status().status is Status.ERRORED)
    error = created.status().error
    assert error is not None
    assert error.name == "RetryDelayError"
    assert "KeyError" in error.message
    assert "ConnectionError: the bank is closed" in error.message


# -- values --------------------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Order:
    id: UUID
    total: Decimal
    tags: set[str] = field(default_factory=set)
    pair: tuple[int, str] = (0, "")


class Address(pydantic.BaseModel):
    street: str
    since: datetime | None = None


class Row(TypedDict):
    name: str
    raw: bytes


MOMENT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
VALUES: dict[str, Any] = {
    "order": Order(UUID(int=7), Decimal("1.10"), {"a"}, (1, "x")),
    "address": Address(street="high", since=MOMENT),
    "row": {"name": "n", "raw": b"\x00\xff"},
    "moment": MOMENT,
    "money": Decimal("0.30"),
    "colour": Colour.RED,
    "raw": b"\xff\x00",
    "tags": {1, 2, 3},
    "pair": (1, "two"),
    "several": [Order(UUID(int=8), Decimal(2))],
    "nothing": None,
    "maybe": Address(street="low"),
    "wait": timedelta(minutes=3),
    "identity": UUID(int=9),
}


def order() -> Order:
    return VALUES["order"]


def address() -> Address:
    return VALUES["address"]


def row() -> Row:
    return VALUES["row"]


async def moment() -> datetime:
    return VALUES["moment"]


def money() -> Decimal:
    return VALUES["money"]


def colour() -> Colour:
    return VALUES["colour"]


def raw() -> bytes:
    return VALUES["raw"]


async def tags() -> set[int]:
    return VALUES["tags"]


def pair() -> tuple[int, str]:
    return VALUES["pair"]


def several() -> list[Order]:
    return VALUES["several"]


def nothing() -> Address | None:
    return None


def maybe() -> Address | None:
    return VALUES["maybe"]


def wait() -> timedelta:
    return VALUES["wait"]


def identity() -> UUID:
    return VALUES["identity"]


BODIES = (
    order,
    address,
    row,
    moment,
    money,
    colour,
    raw,
    tags,
    pair,
    several,
    nothing,
    maybe,
    wait,
    identity,
)


def test_results_have_the_type_that_the_body_says(both: Site) -> None:
    """API §2, semantics §1.5, §2.6: dataclasses, models, TypedDicts, datetime, Decimal, Enum, bytes, sets, tuples,
    optional ones: validated from the record into the annotation, live as on a replay."""
    wrong: list[Any] = []

    async def flow(event, step):
        for body in BODIES:
            got = await step.do(body.__name__, body)
            expected = VALUES[body.__name__]
            is_itself = got is expected and not isinstance(got, Colour | None)
            if got != expected or type(got) is not type(expected) or is_itself:
                wrong.append((body.__name__, got))
        return len(BODIES)

    created = both.workflow(flow, name="steps_typed").create()
    assert created.result(20) == len(BODIES)
    assert wrong == []


def test_values_come_back_as_they_were_written(both: Site) -> None:
    """Semantics §2.6: the text of the codec, never ``jsonb``: ``1e22`` stays a float, ``\\u0000`` a character, an
    integer of any size itself, without an annotation as plain JSON values."""
    odd = [1e22, 1e16, -0.0, 2**70, "\u0000 and \u2028", {"\u0000": [None, True]}, "é😀"]

    async def flow(event, step):
        got = await step.do("odd", give, odd)
        plain = await step.do("plain", give, VALUES["order"])
        kinds = [type(each).__name__ for each in got]
        return [got == odd, kinds, got is odd, str(got[2]), plain, event.payload == odd]

    created = both.workflow(flow, name="steps_odd").create(odd)
    kinds = ["float", "float", "float", "int", "str", "dict", "str"]
    plain = {"id": str(UUID(int=7)), "total": "1.10", "tags": ["a"], "pair": [1, "x"]}
    assert created.result(10) == [True, kinds, False, "-0.0", plain, True]
    assert created.steps()[0].output == odd


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (object(), SerializationError),
        (float("nan"), SerializationError),
        ({"deep": [float("-inf")]}, SerializationError),
        (lambda: 1, SerializationError),
        ("x" * 1_048_575, PayloadTooLarge),
    ],
    ids=["object", "nan", "infinity", "function", "large"],
)
def test_what_cannot_be_stored_fails_its_step_and_is_undone(
    site: Site, value: Any, error: type[Exception]
) -> None:
    """Semantics §2.6: no retry; the code may catch it; uncaught, the rollback runs, that of the step included."""
    undone: list[Any] = []

    async def flow(event, step):
        await step.do("before", give, 1, rollback=lambda r: undone.append(("before", r.output)))
        try:
            await step.do(
                "bad", lambda: value, retries=SOON, rollback=lambda r: undone.append(("bad", r.has_output))
            )
        except error as caught:
            if event.payload == "catch":
                return type(caught).__name__
            raise

    site.worker()
    workflow = site.workflow(flow, name=f"steps_bad_{error.__name__}")
    assert workflow.create("catch").result(10) == error.__name__
    assert undone == []
    created = workflow.create("raise")
    eventually(lambda: created.status().status is Status.ERRORED)
    status = created.status()
    assert status.error is not None
    assert status.error.name == error.__name__
    assert "do:bad:1" in status.error.message
    assert undone == [("bad", False), ("before", 1)]
    record = next(each for each in created.steps() if each.key == "do:bad:1")
    assert (record.status, len(record.attempts)) == ("failed", 1)


def test_a_result_of_exactly_the_limit_is_fine(site: Site) -> None:
    """Semantics §2.6, §6: 1 MiB of text, quotes included."""

    async def flow(event, step):
        return len(await step.do("large", lambda: "x" * (1_048_576 - 2)))

    site.worker()
    assert site.workflow(flow, name="steps_mebibyte").create().result(10) == 1_048_574


def test_parameters_are_checked_at_the_call(site: Site) -> None:
    """Semantics §2.6: what cannot be stored, is too large or does not fit the annotation creates nothing."""

    async def flow(event: WorkflowEvent[Order], step):
        return type(event.payload).__name__

    workflow = site.workflow(flow, name="steps_params")
    for params, error in (
        (object(), SerializationError),
        (float("nan"), SerializationError),
        ("x" * 1_048_576, PayloadTooLarge),
        ({"id": "no uuid"}, InvalidParams),
    ):
        with pytest.raises(error, match="params"):
            workflow.create(params)
    rows = site.sql(
        "SELECT 1 FROM orchestrator_instances WHERE account = :account", account=site.settings.account
    )
    assert rows == []
    site.worker()
    assert workflow.create(VALUES["order"]).result(10) == "Order"


# -- errors --------------------------------------------------------------------------------------------------


class Declined(Exception):
    def __init__(self, reason: str, *, code: int) -> None:
        super().__init__(reason, code)
        self.code = code


class Bank:
    class Closed(Exception):
        """Reached by no name of the module."""


class Unknowable(Exception):
    """Its argument has no JSON form."""


def test_errors_come_back_by_class(both: Site) -> None:
    """Semantics §2.7: builtins, our own, the module's and those of ``errors=``; arguments without a JSON form leave the
    text; what is not reachable is ``StepFailed``."""

    class Listed(Exception):
        pass

    made = {
        "value": lambda: ValueError("v", 1),
        "declined": lambda: Declined("no funds", code=51),
        "unknowable": lambda: Unknowable(object),
        "nested": lambda: Bank.Closed("sunday"),
        "final": lambda: NonRetryableError("no", "Refused"),
    }

    async def fails(kind: str) -> None:
        raise Listed("l", [1]) if kind == "listed" else made[kind]()

    async def flow(event, step):
        got = []
        for kind in (*made, "listed"):
            try:
                await step.do(kind, fails, kind, retries=ONCE)
            except Exception as error:
                args = [repr(each) for each in error.args]
                got.append(
                    [kind, type(error).__name__, getattr(error, "name", None), args, "code" in vars(error)]
                )
        return got

    created = both.workflow(flow, name="steps_errors", errors=[Listed]).create()
    assert created.result(10) == [
        ["value", "ValueError", None, ["'v'", "1"], False],
        ["declined", "Declined", None, ["'no funds'", "51"], False],
        ["unknowable", "Unknowable", None, [repr(str(object))], False],
        ["nested", "StepFailed", "Closed", ["'Closed'", "'sunday'"], False],
        ["final", "NonRetryableError", "Refused", ["'no'", "'Refused'"], False],
        ["listed", "Listed", None, ["'l'", "[1]"], False],
    ]


def test_a_record_imports_nothing(site: Site) -> None:
    """Semantics §2.7: a stored error that names a module of this machine, or a class of another module of the package,
    comes back as ``StepFailed``, and nothing was imported for it."""
    assert "antigravity" not in sys.modules

    async def flow(event, step):
        got = []
        for _ in range(3):
            try:
                await step.do("s", give, retries=ONCE)
            except StepFailed as error:
                got.append(error.name)
        return got

    created = site.workflow(flow, name="steps_import").create()
    bench = site.bench(clock=ManualClock(time.time()))
    (handout,) = bench.wake(site.id_of(created.id)).handouts
    for kind in ("antigravity:Error", "orchestrator.settings:Settings", "os:system"):
        record = json.dumps({"name": kind, "message": "m", "kind": kind, "args": ["x"]})
        following = bench.finish(handout, error=record).handouts
        handout = following[0] if following else handout
        bench.replays.clear()
    assert created.result(1) == ["antigravity:Error", "orchestrator.settings:Settings", "os:system"]
    assert "antigravity" not in sys.modules


def test_sensitive_values_are_redacted_and_errors_are_not(
    site: Site, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Semantics §2.8: records, lifecycle events and the command line show ``[REDACTED]``; the code and the handler get
    the real value."""
    got: list[Any] = []

    def refuse() -> None:
        raise ValueError("the card ends in 4242")

    async def flow(event, step):
        secret = await step.do(
            "secret", lambda: "hunter2", sensitive=True, rollback=lambda r: got.append(r.output)
        )
        got.append(secret)
        await step.do("charge", refuse, sensitive=True, retries=ONCE)

    site.worker()
    created = site.workflow(flow, name="steps_sensitive").create()
    eventually(lambda: created.status().status is Status.ERRORED)
    assert got == ["hunter2", "hunter2"]
    secret, charge, _ = created.steps()
    assert (secret.output, charge.error and charge.error.message) == ("[REDACTED]", "the card ends in 4242")
    seen = [(e.type, e.output, e.error and e.error.message) for e in created.subscribe()]
    assert ("step_completed", "[REDACTED]", None) in seen
    assert ("step_errored", None, "the card ends in 4242") in seen
    assert "hunter2" not in repr(seen)

    monkeypatch.setattr("orchestrator.client.orchestrator._default", None)  # another test's, perhaps
    monkeypatch.setenv("ORCHESTRATOR_DATABASE_URL", site.settings.database_url)
    monkeypatch.setenv("ORCHESTRATOR_REDIS_URL", site.settings.redis_url)
    monkeypatch.setenv("ORCHESTRATOR_ACCOUNT", site.settings.account)
    for form in ((), ("--json",)):
        main(["instances", "describe", "steps_sensitive", created.id, *form])
        shown = capsys.readouterr().out
        assert "[REDACTED]" in shown
        assert "the card ends in 4242" in shown
        assert "hunter2" not in shown


# -- arguments -----------------------------------------------------------------------------------------------


def test_arguments_are_bound_at_the_call(both: Site) -> None:
    """API §2, protocols §17: each body and handler gets what was passed, copied, also of a loop variable; a lambda that
    reads one sees its last value, as everywhere in Python."""
    undone: list[Any] = []

    def spoil(items: list[int]) -> list[int]:
        items.append(99)
        return items

    async def flow(event, step):
        shared = [0]
        futures = []
        for number in range(3):
            shared[0] = number
            undo = step.do("passed", spoil, shared, rollback=lambda r: undone.append((r.args, number)))
            futures += [undo, step.do("read", lambda: number)]
        got = await asyncio.gather(*futures)
        await step.do("fails", spoil, None, retries=ONCE) if event.payload else None
        return [got[0::2], got[1::2], shared]

    workflow = both.workflow(flow, name="steps_arguments")
    passed, read, shared = workflow.create(False).result(10)
    assert (passed, shared) == ([[0, 99], [1, 99], [2, 99]], [2])
    assert read == [2, 2, 2]
    created = workflow.create(True)
    eventually(lambda: created.status().status is Status.ERRORED)
    assert undone == [(([2],), 2), (([1],), 2), (([0],), 2)]


def test_decorated_steps_on_workers(both: Site) -> None:
    """API §2: sync and async bodies, the context, what is shared, typed values, and handlers' arguments."""
    ran: list[str] = []
    undone: list[Any] = []

    async def flow(event, step):
        @step.do("order")
        async def load(ctx) -> Order:
            ran.append(ctx.idempotency_key.rpartition(":do")[2])
            return VALUES["order"]

        @step.do
        def price(order: Order) -> Decimal:
            return order.total * 2

        @step.do("pay", concurrent=True, rollback=lambda r: undone.append(r.args))
        async def pay(price, ctx, order) -> list[str]:
            return [str(price), type(order).__name__, ctx.name]

        first = pay()
        beside = step.do("beside", give, 1)
        result = [await first, await beside, str(await price())]
        if event.payload:
            raise LookupError("no")
        return result

    workflow = both.workflow(flow, name="steps_decorated")
    assert workflow.create(False).result(10) == [["2.20", "Order", "pay"], 1, "2.20"]
    assert ran == [":order:1"]
    created = workflow.create(True)
    eventually(lambda: created.status().status is Status.ERRORED)
    assert undone == [(Decimal("2.20"), VALUES["order"])]


# -- what is not durable -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (lambda: asyncio.sleep(1), r"step\.sleep"),
        (lambda: asyncio.wait_for(asyncio.get_running_loop().create_future(), 1), r"timeout="),
        (lambda: asyncio.to_thread(give), r"step\.do"),
        (lambda: asyncio.open_connection("localhost", 1), r"step\.do"),
        (lambda: asyncio.create_subprocess_exec("true"), r"step\.do"),
        (lambda: asyncio.get_running_loop().run_in_executor(None, give), r"step\.do"),
    ],
    ids=["sleep", "wait_for", "to_thread", "socket", "process", "executor"],
)
def test_waiting_for_the_world_names_the_durable_call(site: Site, wrong: Any, named: str) -> None:
    """Protocols §2: what no replay can repeat raises an error that says what to call; uncaught it is the instance's."""

    async def flow(event, step):
        if event.payload:
            with pytest.raises(NotDurable, match=named):
                await wrong()
            return await step.do("after", give, "went on")
        await wrong()

    site.worker()
    workflow = site.workflow(flow, name="steps_durable")
    assert workflow.create(True).result(10) == "went on"
    created = workflow.create(False)
    eventually(lambda: created.status().status is Status.ERRORED)
    error = created.status().error
    assert error is not None
    assert error.name == "NotDurable"
